"""The steps of a volume render in fused kernels: the same names as `training.rendering.reference`, which specifies them.

Samples are the first axis, [S, N, M], so that neighbouring rays lie side by side in memory. Few colours are computed and
kept together with the density. Where there are many, density comes first and colours are weighted in place, in a second
evaluation, so that no tensor ever holds the colours of all samples.
"""

from typing import NamedTuple

import torch

from torch_utils.ops import ray_samples, triplane

NAME = 'fused Triton kernels'
SAMPLE_AXIS = 0
FEW_COLOURS = 4

interval_weights = ray_samples.interval_weights
importance_depths = ray_samples.importance_depths
sort_depths = ray_samples.sort_depths


class PreparedField(NamedTuple):
    """A TriplaneField as the kernels read it."""

    planes: list  # one or two [N, K, H, W, C]
    mlp: triplane.FusedMLP
    geometry: triplane.Geometry
    precision: str

    @property
    def few_colours(self):
        return len(self.mlp.output_bias) - 1 <= FEW_COLOURS

    def density_only(self):
        """The same field without colours."""
        hidden_weight, hidden_bias, output_weight, output_bias = self.mlp
        return self._replace(mlp=triplane.FusedMLP(hidden_weight, hidden_bias, output_weight[:1], output_bias[:1]))

    def arguments(self, origins, directions, depths):
        """The arguments that all functions of `triplane` begin with."""
        return self.planes, self.mlp, origins, directions, depths


def prepare(field):
    planes = [triplane.channels_last(planes, field.precision) for planes in field.planes]
    return PreparedField(planes, triplane.FusedMLP(*field.mlp()), triplane.Geometry(field.box_size, field.axes), field.precision)


def arrange(values):
    return values.movedim(-1, 0).contiguous()


def evaluate(field, origins, directions, depths, chosen=None):
    """Raw density [S, N, M], and colours [C, S, N, M] or None: where there are many, `weighted_colours` makes them."""
    evaluated = field if field.few_colours else field.density_only()
    density, colours = triplane.triplane_samples(*evaluated.arguments(origins, directions, depths), field.geometry,
                                                 field.precision, chosen)
    return density, colours if field.few_colours else None


def join_colours(first, second):
    return None if first is None else torch.cat([first, second], dim=1)


def composite(raw_density, depths, order=None):
    weights, opacity, moment = ray_samples.composite(raw_density, depths, order)
    depth = torch.nan_to_num(moment / opacity, nan=float('inf'), posinf=float('inf'))
    return weights, opacity[..., None], depth[..., None]


def weighted_colours(field, origins, directions, depths, weights, colours):
    if colours is None:
        return triplane.triplane_pixels(*field.arguments(origins, directions, depths), weights, field.geometry, field.precision)
    return (weights * colours).sum(dim=1).movedim(0, -1)


# For renders that skip samples


def density_limits(bounds, origins, directions, depths):
    return triplane.grid_values(bounds.grid, origins, directions, depths, bounds.box_size)


def evaluate_where(field, origins, directions, depths, chosen):
    return evaluate(field, origins, directions, depths, chosen.flatten().nonzero().squeeze(1))


# For the size of chunks


def bytes_per_sample(field):
    """Depths, densities, weights, order and few colours, some of them twice."""
    return 120
