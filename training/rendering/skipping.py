"""Rendering without the samples that cannot be seen: `G.render(..., skip=eps)` (docs/method.md, section 4).

First, provable upper bounds of the density of a tri-plane field. Features are bilinear between texel centres. So on a lattice
that holds all of these centres' coordinates, any function that is linear in the features takes its largest value over a cell of
each plane at one of the cell's lattice points. The inputs of the decoder's hidden units are such functions, which gives their
range in every cell of a grid. Within it, each softplus lies below its chord and above its tangents (it is convex). Chords for
units that raise the density, tangents for those that lower it: that is a bound that is linear in the features again, and its
largest value is known (linear relaxation: Zhang et al. 2018, "Efficient neural network robustness certification with general
activation functions").

Then, what they allow. A sample is not evaluated where it provably weighs less than eps: because the bounds let both intervals
that it borders take away less than eps of the light, or because less than eps of the light is left in front of it. Such
intervals count as empty. Both passes work so, from front to back, part by part. With S samples on a ray, the weights of a pixel
change by less than S eps in sum. The depths of the importance samples move a little, too, since the first pass counts intervals
as empty that are nearly so.
"""

import functools
from typing import NamedTuple

import torch
import torch.nn.functional as F

from training.rendering.volume import first_and_last, interval_alpha

MAX_CELLS = 128  # per axis, unless a caller asks for more
MARGIN = 1e-3  # for rounding: the bound is computed in other steps than the density
NUMBERS_PER_PASS = 2**25
EMPTY = -1e4  # raw density that leaves an interval empty, whatever its other end is
SAMPLES_PER_PART = 16


# Bounds of the density -----------------------------------------------------------------------------------------------


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
    """DensityBounds of a TriplaneField on a grid of `cells` per axis: a power of two, as the planes' resolutions are, and
    at most twice the smallest of those. Raises ValueError for other numbers."""
    sizes = sorted(planes.shape[3] for planes in field.planes)
    square = all(planes.shape[3] == planes.shape[4] for planes in field.planes)
    if not square or sizes[-1] % sizes[0] or 2 * sizes[-1] % cells or cells > 2 * sizes[0]:
        raise ValueError(f'{cells} cells do not fit planes of {" and ".join(map(str, sizes))} texels')
    span = 2 * sizes[-1] // cells  # lattice steps per cell
    grids = [_grid_of_image(field.of_image(index), cells, span) for index in range(len(field.planes[0]))]
    return DensityBounds(torch.stack(grids), field.box_size)


def _grid_of_image(field, cells, span):
    """Bounds [G + 2, G + 2, G + 2] of one image, slab by slab along x."""
    hidden_weight, hidden_bias, output_weight, output_bias = field.mlp()
    parts = torch.einsum('hc,kcyx->khyx', hidden_weight, _on_lattice(field, cells, span)) / len(field.axes)
    parts = [part.transpose(1, 2) if axes[1] > axes[0] else part for part, axes in zip(parts, field.axes)]  # x before y before z
    low, high = (
        [_between(sign * F.max_pool2d(sign * part, span + 1, span), axes) for part, axes in zip(parts, field.axes)]
        for sign in (-1, 1)
    )
    corners = [part.unfold(1, span + 1, span).unfold(2, span + 1, span).flatten(3).permute(1, 2, 0, 3) for part in parts]
    units, points = corners[0].shape[2:]
    step = max(1, NUMBERS_PER_PASS // ((cells + 2) ** 2 * (points + 6 * units)))
    slabs = []
    for first in range(0, cells + 2, step):
        slab = slice(first, first + step)
        ends = [hidden_bias + sum(part if len(part) == 1 else part[slab] for part in parts) for parts in (low, high)]
        slope, bound = _relax(*ends, hidden_bias, output_weight[0], output_bias[0])
        for corner, axes in zip(corners, field.axes):
            bound = bound + _largest(slope, corner, slab, axes)
        slabs.append(bound + MARGIN)
    return torch.cat(slabs)


def _on_lattice(field, cells, span):
    """Summed features [K, C, V, V] of every plane on the lattice, from one cell before the box to one beyond it."""
    lattice = torch.arange(-span, (cells + 1) * span + 1, device=field.planes[0].device)
    positions = lattice / (cells * span) * 2 - 1
    y, x = torch.meshgrid(positions, positions, indexing='ij')
    grid = torch.stack([x, y], dim=-1).expand(len(field.axes), -1, -1, -1)
    return sum(
        F.grid_sample(planes[0].float(), grid, mode='bilinear', padding_mode='zeros', align_corners=False)
        for planes in field.planes
    )


def _missing(axes):
    """The axis that a plane lacks: 0, 1 or 2."""
    return 3 - sum('xyz'.index(axis) for axis in axes)


def _between(plane, axes):
    """Cells [H, a, b] of a plane as [x, y, z, H], of size 1 along the axis that it lacks."""
    return plane.permute(1, 2, 0).unsqueeze(_missing(axes))


def _relax(low, high, hidden_bias, weight, bias):
    """A bound that is linear in the hidden units' inputs, which lie between low and high [x, y, z, H].

    Returns the slope [x, y, z, H] by those inputs, less their bias, and the rest [x, y, z].
    """
    below, above, middle = F.softplus(low), F.softplus(high), (low + high) / 2
    rising = weight > 0
    slope = torch.where(rising, (above - below) / (high - low).clamp(min=1e-6), torch.sigmoid(middle))
    value = torch.where(rising, (above + below) / 2, F.softplus(middle))
    return weight * slope, (value - slope * (middle - hidden_bias)) @ weight + bias


def _largest(slope, corners, slab, axes):
    """Largest value [x, y, z] over each cell of slope [x, y, z, H] times a plane's part of the inputs, [a, b, H, points]."""
    missing = _missing(axes)
    values = slope.movedim(missing, 2) @ (corners if missing == 0 else corners[slab])
    return values.amax(dim=-1).movedim(2, missing)


# Samples -------------------------------------------------------------------------------------------------------------


class Skip(NamedTuple):
    """eps: weight under which samples are left out, above 0; bounds: DensityBounds of the field."""

    eps: float
    bounds: DensityBounds

    def render(self, backend, field, origins, directions, near, far, jitter, u):
        """As `volume.render_chunk`, but for samples that weigh less than eps."""
        rays, count = (origins, directions), jitter.shape[-1]
        first = backend.stratified_depths(near, far, jitter)
        limits = backend.density_limits(self.bounds, *rays, first)
        known = torch.full_like(first, EMPTY)
        first_density, first_colors = _evaluate_needed(backend, field, *rays, first, limits, known, self.eps)
        if not u.shape[-1]:
            weights, opacity, depth = backend.composite(first_density, first)
            return backend.weighted_colors(field, *rays, first, weights, first_colors), opacity, depth, first_and_last(first)
        importance = backend.importance_depths(first, backend.interval_weights(first_density, first), u)
        depths, order = backend.sort_depths(backend.concat_samples(first, importance))
        order = order.long()
        limits = backend.concat_samples(limits, backend.density_limits(self.bounds, *rays, importance)).gather(-1, order)
        known = backend.concat_samples(first_density, torch.full_like(importance, EMPTY)).gather(-1, order)
        raw_density, colors = _evaluate_needed(backend, field, *rays, depths, limits, known, self.eps)
        weights, opacity, depth = backend.composite(raw_density, depths)
        # Every colour counts once: with the first pass, or where the second pass evaluated it.
        first_weights = torch.zeros_like(weights).scatter(-1, order, weights)[..., :count]
        first_weights = torch.where(first_density == EMPTY, 0.0, first_weights)
        weights = torch.where(known == EMPTY, weights, 0.0)
        pixels = backend.weighted_colors(field, *rays, first, first_weights, first_colors)
        pixels = pixels + backend.weighted_colors(field, *rays, depths, weights, colors)
        return pixels, opacity, depth, first_and_last(depths)


def _evaluate_needed(backend, field, origins, directions, depths, limits, known, eps):
    """Evaluate the samples that may weigh eps or more and whose density is not known yet, that is EMPTY.

    Returns the raw densities of all samples, EMPTY where none is known, and the colours of those evaluated, 0 elsewhere.
    """
    closed = interval_alpha(limits, depths) < eps
    needed = ~(F.pad(closed, (1, 0), value=True) & F.pad(closed, (0, 1), value=True)) & (known == EMPTY)
    raw_density, colors, transmittance = known.clone(), [], torch.ones_like(depths[..., :1])
    for first in range(0, depths.shape[-1], SAMPLES_PER_PART):
        part = slice(first, first + SAMPLES_PER_PART)
        chosen = needed[..., part] & (transmittance >= eps)
        found, found_colors = backend.evaluate(field, origins, directions, depths[..., part], chosen)
        raw_density[..., part] = torch.where(chosen, found, raw_density[..., part])
        colors.append(found_colors)
        reached = slice(max(first - 1, 0), first + SAMPLES_PER_PART)
        passed = 1 - interval_alpha(raw_density[..., reached], depths[..., reached])
        transmittance = transmittance * passed.prod(dim=-1, keepdim=True)
    return raw_density, functools.reduce(backend.concat_samples, colors)
