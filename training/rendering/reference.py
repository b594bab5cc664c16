"""The steps of a volume render in plain PyTorch: the specification, and what runs where the fused kernels cannot.

`training.rendering.fused` has the same names. Samples are the last axis: [N, M, S] for S samples on each of M rays of N
images.
"""

import torch

from training.rendering import compositing, sampling
from training.rendering.field import TriplaneField

NAME = 'plain PyTorch'
SAMPLE_AXIS = -1

interval_weights = compositing.interval_weights
importance_depths = sampling.importance_depths


def prepare(field):
    """The field as `evaluate` wants it."""
    return field


def arrange(values):
    """Samples [N, M, S] with the axes in the order of these steps."""
    return values


def evaluate(field, origins, directions, depths):
    """The field at the samples: raw density [N, M, S] and colours [N, M, S, C]."""
    n, m, s = depths.shape
    density, colours = field(_points(origins, directions, depths).reshape(n, m * s, 3))
    return density.reshape(n, m, s), colours.reshape(n, m, s, -1)


def join_colours(first, second):
    """Colours of two sets of samples, one after the other."""
    return torch.cat([first, second], dim=-2)


def sort_depths(depths):
    """Depths in ascending order, and that order."""
    return torch.sort(depths, dim=-1)


def composite(raw_density, depths, order=None):
    """Weights of the samples as they come, opacity and expected depth.

    raw_density: [N, M, S]; depths: [N, M, S], ascending; order: which sample each of the depths belongs to, None where
    the samples are in order. Returns [N, M, S], [N, M, 1] and [N, M, 1].
    """
    weights = compositing.interval_weights(raw_density if order is None else raw_density.gather(-1, order), depths)
    of_samples = compositing.sample_weights(weights)
    of_samples = of_samples if order is None else compositing.unsort(of_samples, order)
    return of_samples, weights.sum(dim=-1, keepdim=True), compositing.expected_depth(weights, depths)


def weighted_colours(field, origins, directions, depths, weights, colours):
    """Pixels [N, M, C]: the sum of the colours of samples, as `evaluate` gave them, times weights [N, M, S]."""
    return torch.einsum('nms,nmsc->nmc', weights, colours)


# For renders that skip samples


def density_limits(bounds, origins, directions, depths):
    """Upper bounds of the raw density [N, M, S] at the samples."""
    return bounds.at(_points(origins, directions, depths))


def evaluate_where(field, origins, directions, depths, chosen):
    """As `evaluate`, for the samples [N, M, S] where `chosen` is true; 0 elsewhere. No gradient."""
    density, colours = depths.new_zeros(depths.shape), depths.new_zeros(*depths.shape, field.colours)
    for index, points in enumerate(_points(origins, directions, depths)):
        wanted = chosen[index]
        if wanted.any():
            values, shades = field.of_image(index)(points[wanted][None])
            density[index, wanted], colours[index, wanted] = values[0, :, 0], shades[0]
    return density, colours


# For the size of chunks


def bytes_per_sample(field):
    """About how much memory a sample takes while rays are rendered without gradients."""
    if not isinstance(field, TriplaneField):
        return 256
    units, channels = field.mlp()[0].shape
    lookups = len(field.planes) * (2 * len(field.axes) * (channels + 1) + channels)
    return 4 * (lookups + channels + 3 * units + 3 * (1 + field.colours) + 12)


def _points(origins, directions, depths):
    return origins[:, :, None] + directions[:, :, None] * depths[..., None]
