"""Provable upper bounds of the density of a tri-plane field: where nothing can be seen, and samples may be skipped.

Inside a cell of a grid, every feature lies between the smallest and the largest texel that bilinear lookups there can
read. The decoder's density over that box of features is bounded through its hidden layer: softplus is convex, so it lies
below its chord and above its tangents, which makes the density no larger than a linear function of the features, whose
maximum over the box is known (linear relaxation: Zhang et al. 2018, "Efficient neural network robustness certification").
"""

from typing import NamedTuple

import torch
import torch.nn.functional as F

MAX_CELLS = 128  # per axis, unless a caller asks for more
MARGIN = 1e-3  # for rounding: the bound is computed in other steps than the density
FEATURES_PER_PASS = 2**24


class DensityBounds(NamedTuple):
    """grid: [N, G + 2, G + 2, G + 2], the largest raw density in each cell, by x, y and z. G cells cover the box; one
    more on each side stands for all that lies beyond it."""

    grid: torch.Tensor
    box_size: float

    def at(self, points):
        """Upper bounds of the raw density at points [N, ..., 3], world units."""
        cells = self.grid.shape[1]
        index = torch.floor((points / self.box_size + 0.5) * (cells - 2)).clamp(-1, cells - 2).long() + 1
        x, y, z = index.unbind(dim=-1)
        flat = (x * cells + y) * cells + z
        return self.grid.flatten(1).gather(1, flat.flatten(1)).reshape(flat.shape)


@torch.no_grad()
def density_bounds(field, cells):
    """DensityBounds of a TriplaneField on a grid of `cells` per axis, which must divide the planes' resolutions."""
    ranges = [_plane_ranges(planes, cells) for planes in field.planes]
    grid = torch.stack([_grid_of_image([(low[i], high[i]) for low, high in ranges], field, cells)
                        for i in range(len(field.planes[0]))])
    return DensityBounds(grid, field.box_size)


def _plane_ranges(planes, cells):
    """Smallest and largest texel [N, K, C, cells + 2, cells + 2] that lookups in each cell of each plane can read.

    A cell that spans p texels reads one more on each side. Around the planes lie zeros.
    """
    if planes.shape[3] % cells or planes.shape[4] % cells:
        raise ValueError(f'{cells} cells do not divide planes of {planes.shape[3]}x{planes.shape[4]} texels')
    spans = [size // cells for size in planes.shape[3:]]
    margins = [span + 1 for span in reversed(spans) for _ in range(2)]
    padded = F.pad(planes.float().flatten(0, 1), margins)

    def largest(x):
        pooled = F.max_pool2d(x, kernel_size=[span + 2 for span in spans], stride=spans)
        return pooled.unflatten(0, planes.shape[:2])
    return -largest(-padded), largest(padded)


def _grid_of_image(ranges, field, cells):
    """Bounds [G + 2, G + 2, G + 2] of one image, slab by slab along x."""
    spread = [(_spread(low, field.axes), _spread(high, field.axes)) for low, high in ranges]
    channels = field.planes[0].shape[2]
    step = max(1, FEATURES_PER_PASS // (channels * (cells + 2)**2))
    slabs = []
    for first in range(0, cells + 2, step):
        low, high = (sum(_slab(part, first, step) for pair in spread for part in pair[end]) / len(field.axes) for end in (0, 1))
        bound = _largest_density(low.flatten(1).t(), high.flatten(1).t(), *field.mlp())
        slabs.append(bound.reshape(low.shape[1:]))
    return torch.cat(slabs)


def _spread(planes, axes):
    """Planes [K, C, H, W] each as [C, x, y, z], with size 1 along the axis that it lacks."""
    spread = []
    for plane, (width_axis, height_axis) in zip(planes, axes):
        order = sorted((width_axis, height_axis))
        plane = plane if [height_axis, width_axis] == order else plane.transpose(1, 2)
        missing, = set('xyz') - set(order)
        spread.append(plane.unsqueeze(1 + 'xyz'.index(missing)))
    return spread


def _slab(plane, first, step):
    return plane if plane.shape[1] == 1 else plane[:, first:first + step]


def _largest_density(low, high, hidden_weight, hidden_bias, output_weight, output_bias):
    """Upper bounds [P] of the raw density over boxes of features, from low to high [P, C]."""
    middle, radius = (low + high) / 2, (high - low) / 2
    x = F.linear(middle, hidden_weight, hidden_bias)
    reach = F.linear(radius, hidden_weight.abs())
    below, above = F.softplus(x - reach), F.softplus(x + reach)
    rising = output_weight[0] > 0  # of these units the chord is wanted, of the others the tangent in the middle
    slope = torch.where(rising, (above - below) / (2 * reach).clamp(min=1e-6), torch.sigmoid(x))
    value = torch.where(rising, (above + below) / 2, F.softplus(x))
    steepness = (output_weight[0] * slope) @ hidden_weight
    return value @ output_weight[0] + (steepness.abs() * radius).sum(dim=1) + output_bias[0] + MARGIN
