"""Volume rendering of a tri-plane field, step by step: the reference implementation (docs/method.md, sections 2 and 4).

The entry is `render_rays`; `render_chunk` is the algorithm, in a dozen lines: read these two first. Above them stand their steps,
in the order of their use: the field, where to sample along rays, what samples weigh.

Lengths are in world units; raw density is before its activation. N images, M rays of each, S samples on a ray (I of them by
importance), C colours: depths and densities are [N, M, S], colours [N, M, S, C].

`render_rays` takes the steps from a backend: this module, or `training.rendering.fused`, which has the same names, arguments and
results. Some look trivial here because they are hooks for the fused backend, which says what it does in them.
"""

from typing import NamedTuple

import torch
import torch.nn.functional as F

from torch_utils.random import BatchRandom
from training.rendering.cameras import box_limits

SAMPLING_MODES = ('stratified', 'deterministic')
MAX_POINTS_PER_PASS = 2**22  # on a CPU without gradients, rays are rendered in chunks of about this many samples
SHARE_OF_MEMORY = 0.5  # of what is free on a GPU, for a chunk of rays


# The field -----------------------------------------------------------------------------------------------------------


def sample_planes(planes, points, box_size, axes):
    """Features of points: the mean over the planes of bilinear lookups, zeros outside.

    planes: [N, 3, C, H, W]; points: [N, P, 3], world units; box_size: side of the cube that the planes cover;
    axes: for every plane its width axis and height axis, such as ('xy', 'yz', 'zx'). Returns [N, P, C].
    """
    n, count = planes.shape[:2]
    x, y, z = points.mul(2 / box_size).unbind(dim=-1)
    along = {'x': x, 'y': y, 'z': z}
    grid = torch.stack([torch.stack([along[axis] for axis in pair], dim=-1) for pair in axes], dim=1)  # [N, 3, P, 2]
    looked_up = F.grid_sample(
        planes.flatten(0, 1), grid.flatten(0, 1).unsqueeze(1), mode='bilinear', padding_mode='zeros', align_corners=False
    )
    return looked_up.reshape(n, count, planes.shape[2], -1).mean(dim=1).transpose(1, 2)


class TriplaneField(NamedTuple):
    """Density and colours of points in space, from one or two sets of planes, whose features add up, and a decoder."""

    planes: tuple  # one or two tensors [N, 3, C, H, W]
    decoder: object  # (features, number of colours) -> raw density, colours; has `effective_weights`
    box_size: float  # side of the cube that the planes cover
    axes: tuple  # of every plane, such as ('xy', 'yz', 'zx')
    color_channels: int  # how many of the decoder's colours
    precision: str = 'fp32'  # what the fused steps may round to

    def __call__(self, points):
        """points: [N, P, 3] -> raw density [N, P, 1], colours [N, P, C]."""
        features = sum(sample_planes(planes, points, self.box_size, self.axes) for planes in self.planes)
        return self.decoder(features, self.color_channels)

    def of_image(self, index):
        """The field of one image of the batch."""
        return self._replace(planes=[planes[index : index + 1] for planes in self.planes])

    def mlp(self):
        """The decoder's layers as they act: hidden weight [H, C] and bias, output weight [1 + colours, H] and bias."""
        return self.decoder.effective_weights(self.color_channels)


def prepare(field):
    """The field as `evaluate` wants it."""
    return field


def evaluate(field, origins, directions, depths, chosen=None):
    """The field at the samples: raw density [N, M, S] and colours [N, M, S, C].

    origins, directions: [N, M, 3]; chosen: bool [N, M, S], the samples to evaluate; the others are 0, without gradients.
    """
    points = points_on_rays(origins, directions, depths)
    if chosen is None:
        raw_density, colors = field(points.flatten(1, 2))
        return raw_density.reshape(depths.shape), colors.unflatten(1, depths.shape[1:])
    raw_density, colors = depths.new_zeros(depths.shape), depths.new_zeros(*depths.shape, field.color_channels)
    for index, wanted in enumerate(chosen):
        if wanted.any():
            found, found_colors = field.of_image(index)(points[index, wanted][None])
            raw_density[index, wanted], colors[index, wanted] = found[0, :, 0], found_colors[0]
    return raw_density, colors


def points_on_rays(origins, directions, depths):
    """The points [N, M, S, 3] at depths [N, M, S] along rays [N, M, 3]."""
    return origins[:, :, None] + directions[:, :, None] * depths[..., None]


def density_limits(bounds, origins, directions, depths):
    """Upper bounds [N, M, S] of the raw density at the samples, from skipping.DensityBounds."""
    return bounds.at(points_on_rays(origins, directions, depths))


# Where to sample -----------------------------------------------------------------------------------------------------


def stratified_depths(near, far, jitter):
    """Depths [N, M, S] at even spacing from near to far [N, M, 1], moved by `jitter` [N, M, S], in [0, 1), of the spacing."""
    count = jitter.shape[-1]
    even = torch.linspace(0, 1, count, device=near.device)
    return near + (far - near) * (even + jitter / (count - 1))


def importance_depths(depths, weights, u):
    """Importance (hierarchical) samples: depths [N, M, I] by the inverse CDF of the first pass's smoothed weights. No gradient.

    depths: [N, M, S], ascending; weights: [N, M, S - 1], of the intervals; u: [N, M, I] in [0, 1].
    """
    with torch.no_grad():
        # NeRF's [1:-1] is meant for weights of samples; these are of intervals, so the bins are shifted by one: weight j fills
        # [middle j-1, middle j], and the last bin stays empty. Kept, because the published networks were trained so. 1e-5 is
        # NeRF's guard against weights that are all 0; after the + 0.01 of `smooth_weights` it has nothing to do.
        masses = smooth_weights(weights)[..., 1:-1] + 1e-5
        return invert_cdf(midpoints(depths), masses / masses.sum(dim=-1, keepdim=True), u)


def midpoints(depths):
    """The middle [N, M, S - 1] of each interval between consecutive depths [N, M, S]."""
    return (depths[..., :-1] + depths[..., 1:]) / 2


def smooth_weights(weights):
    """Blur interval weights [N, M, S - 1] so that no neighbour of a surface is missed: max-pool, average, plus 0.01.

    What is added sends a few samples everywhere, since a thin surface may lie between those of the first pass.
    """
    widened = F.max_pool1d(weights, kernel_size=2, stride=1, padding=1)
    return F.avg_pool1d(widened, kernel_size=2, stride=1) + 0.01


def invert_cdf(edges, masses, u):
    """Inverse CDF of a piecewise constant density.

    edges: bin edges [..., B + 1]; masses: [..., B], summing to 1; u: [..., I] in [0, 1]. Returns [..., I].
    """
    cdf = F.pad(masses.cumsum(dim=-1), (1, 0))
    bins = masses.shape[-1]
    above = torch.searchsorted(cdf.contiguous(), u.contiguous(), right=True)
    low, high = (above - 1).clamp(0, bins), above.clamp(max=bins)
    cdf_low, cdf_high = cdf.gather(-1, low), cdf.gather(-1, high)
    step = cdf_high - cdf_low
    step = torch.where(step < 1e-5, torch.ones_like(step), step)  # no division by 0: a bin without mass gives its first edge
    edge_low, edge_high = edges.gather(-1, low), edges.gather(-1, high)
    return edge_low + (u - cdf_low) / step * (edge_high - edge_low)


def concat_samples(first, second):
    """Depths, densities or colours of two sets of samples, one after the other."""
    return torch.cat([first, second], dim=2)


def sort_depths(depths):
    """Depths in ascending order, and that order, both [N, M, S]."""
    return torch.sort(depths, dim=-1)


# From densities and colours to pixels --------------------------------------------------------------------------------


def interval_alpha(raw_density, depths):
    """Alpha [N, M, S - 1] of each interval between consecutive samples: the share of light that it stops."""
    lengths = depths[..., 1:] - depths[..., :-1]
    # The shift by -1 biases an untrained field towards empty space: softplus(-1) = 0.31, softplus(0) = 0.69 (as in Mip-NeRF).
    density = F.softplus((raw_density[..., 1:] + raw_density[..., :-1]) / 2 - 1)
    return 1 - torch.exp(-density * lengths)


def interval_weights(raw_density, depths):
    """Weights [N, M, S - 1] of the intervals between samples of ascending depths. Differentiable in both."""
    alpha = interval_alpha(raw_density, depths)
    transmittance = torch.cumprod(1 - alpha + 1e-10, dim=-1)  # NeRF's: never 0, so that gradients pass an opaque interval
    return alpha * F.pad(transmittance[..., :-1], (1, 0), value=1.0)


def composite(raw_density, depths, order=None):
    """Weights [N, M, S] of the samples as they come, opacity and expected depth, both [N, M, 1].

    depths: ascending; order: which sample each of the depths belongs to, None where the samples are in order. The depth is
    infinite where a ray has no weight.

    An interval's colour is the mean of its ends', so a pixel is linear in the samples' colours: sample i counts with half the
    weights of the two intervals that it borders. So colours need neither sorting nor pairing.
    """
    weights = interval_weights(raw_density if order is None else raw_density.gather(-1, order), depths)
    of_samples = (F.pad(weights, (1, 0)) + F.pad(weights, (0, 1))) / 2
    if order is not None:
        of_samples = torch.zeros_like(of_samples).scatter(-1, order, of_samples)
    opacity = weights.sum(dim=-1, keepdim=True)
    depth = (weights * midpoints(depths)).sum(dim=-1, keepdim=True) / opacity
    return of_samples, opacity, torch.nan_to_num(depth, nan=float('inf'), posinf=float('inf'))


def weighted_colors(field, origins, directions, depths, weights, colors):
    """Pixels [N, M, C]: the sum of the colours of samples, as `evaluate` gave them, times weights [N, M, S]."""
    return torch.einsum('nms,nmsc->nmc', weights, colors)


# Whole renders -------------------------------------------------------------------------------------------------------


def render_rays(backend, field, origins, directions, config, sampling='stratified', random=None, skip=None):
    """Render rays through a field.

    backend: this module or `training.rendering.fused`; field: points [N, P, 3] -> raw density [N, P, 1], colours [N, P, C], such
    as a TriplaneField; origins, directions: [N, M, 3]; config: RenderingConfig; sampling: one of SAMPLING_MODES; random:
    BatchRandom for stratified sampling; skip: skipping.Skip, to leave out samples of a TriplaneField that cannot be seen,
    without gradients. Returns colours [N, M, C] in [-1, 1]; depth [N, M, 1], world units along the ray; opacity [N, M, 1] in
    [0, 1]. Differentiable in what the field computes, not in the sampled depths.
    """
    if config.near == 'auto':
        near, far = box_limits(origins, directions, config.box_size)
    else:
        near, far = (torch.full_like(origins[..., :1], limit) for limit in (config.near, config.far))
    jitter, u = _sampling_positions(*origins.shape[:2], config, sampling, random, origins.device)
    render = render_chunk if skip is None else skip.render
    per_chunk = _rays_per_chunk(backend, field, origins, config)
    field, chunks = backend.prepare(field), []
    for first in range(0, origins.shape[1], per_chunk):
        rays = [x[:, first : first + per_chunk] for x in (origins, directions, near, far, jitter, u)]
        chunks.append(render(backend, field, *rays))
    colors, opacity, depth, ends = (torch.cat(parts, dim=1) for parts in zip(*chunks))
    if config.white_background:
        colors = colors + 1 - opacity
    # The depth of a ray with opacity 0 is infinite; clamped to the farthest sample of all, so that depth maps are finite.
    return colors * 2 - 1, depth.clamp(ends.min(), ends.max()), opacity


def render_chunk(backend, field, origins, directions, near, far, jitter, u):
    """Colours [N, M, C] in (0, 1), opacity and depth [N, M, 1], and the depths of the first and last sample [N, M, 2].

    jitter, u: [N, M, S] and [N, M, I], of the stratified and the importance samples; I may be 0.
    """
    depths = drawn = backend.stratified_depths(near, far, jitter)
    order = None
    raw_density, colors = backend.evaluate(field, origins, directions, depths)
    if u.shape[-1]:
        importance = backend.importance_depths(depths, backend.interval_weights(raw_density.detach(), depths), u)
        importance_density, importance_colors = backend.evaluate(field, origins, directions, importance)
        raw_density, colors = (
            backend.concat_samples(raw_density, importance_density),
            backend.concat_samples(colors, importance_colors),
        )
        drawn = backend.concat_samples(depths, importance)
        depths, order = backend.sort_depths(drawn)
    weights, opacity, depth = backend.composite(raw_density, depths, order)
    return backend.weighted_colors(field, origins, directions, drawn, weights, colors), opacity, depth, first_and_last(depths)


def first_and_last(depths):
    """The depths [N, M, 2] of the first and the last sample. A slice: an index [0, -1] would have to be copied to a GPU."""
    return depths[..., :: depths.shape[-1] - 1]


def _sampling_positions(n, m, config, sampling, random, device):
    """Jitter of the stratified samples and positions in the importance samples' CDF, each in [0, 1]."""
    if sampling not in SAMPLING_MODES:
        raise ValueError(f'sampling must be one of {", ".join(SAMPLING_MODES)}, got {sampling!r}')
    if sampling == 'deterministic':
        u = torch.linspace(0, 1, config.importance_samples, device=device)
        return torch.full([n, m, config.depth_samples], 0.5, device=device), u.expand(n, m, -1)
    random = random or BatchRandom(n, device)
    return random.uniform(m, config.depth_samples), random.uniform(m, config.importance_samples)


def _rays_per_chunk(backend, field, origins, config):
    """How many rays of every image to render at once: all of them with gradients, else what fits into free memory."""
    n, m = origins.shape[:2]
    if torch.is_grad_enabled():
        return m
    samples = n * (config.depth_samples + config.importance_samples)
    if not origins.is_cuda:
        return max(1, MAX_POINTS_PER_PASS // samples)
    device = origins.device  # free is what nobody has, and what PyTorch holds but does not use
    free = torch.cuda.mem_get_info(device)[0] + torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)
    return max(1, int(SHARE_OF_MEMORY * free) // (samples * backend.bytes_per_sample(field)))


def bytes_per_sample(field):
    """About how much memory a sample takes while rays are rendered without gradients."""
    units, channels = field.mlp()[0].shape
    lookups = len(field.planes) * (2 * len(field.axes) * (channels + 1) + channels)
    return 4 * (lookups + channels + 3 * units + 3 * (1 + field.color_channels) + 12)
