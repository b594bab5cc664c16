"""Rendering without the samples that cannot be seen: `render_rays(..., skip=Skip(eps, bounds))`.

A sample is not evaluated where it provably weighs less than eps: because upper bounds of the density let both intervals
that it borders take away less than eps of the light, or because less than eps of the light is left in front of it. Such
intervals count as empty. Both passes work so, from front to back, part by part; at last, colours are evaluated where the
weight is eps or more. With S samples on a ray, a pixel's weights change by at most S eps in sum. The depths of the
importance samples move a little, too, since the first pass weighs intervals as empty that are nearly so.
"""

from typing import NamedTuple

import torch
import torch.nn.functional as F

from training.rendering.bounds import DensityBounds
from training.rendering.compositing import interval_alpha
from training.rendering.sampling import stratified_depths

EMPTY = -1e4  # raw density that leaves an interval empty, whatever its other end is
SAMPLES_PER_PART = 16


class Skip(NamedTuple):
    """eps: weight under which samples are left out, above 0; bounds: DensityBounds of the field."""

    eps: float
    bounds: DensityBounds


def render_chunk(steps, field, origins, directions, near, far, offsets, u, skip):
    """As `renderer.render_chunk`, but for samples that weigh less than eps."""
    axis = steps.SAMPLE_AXIS
    depths = steps.arrange(stratified_depths(near, far, offsets))
    limits = steps.density_limits(skip.bounds, origins, directions, depths)
    unknown = torch.full_like(depths, EMPTY)
    density = _evaluate_needed(steps, field, origins, directions, depths, limits, unknown, skip.eps)
    if u.shape[-1]:
        finer = steps.importance_depths(depths, steps.interval_weights(density, depths), steps.arrange(u))
        limits = torch.cat([limits, steps.density_limits(skip.bounds, origins, directions, finer)], dim=axis)
        density = torch.cat([density, torch.full_like(finer, EMPTY)], dim=axis)
        depths, order = steps.sort_depths(torch.cat([depths, finer], dim=axis))
        limits, density = (x.gather(axis, order.long()) for x in (limits, density))
        density = _evaluate_needed(steps, field, origins, directions, depths, limits, density, skip.eps)
    weights, opacity, depth = steps.composite(density, depths)
    seen = torch.where(weights >= skip.eps, weights, 0.0)
    return steps.colours_where_weighted(field, origins, directions, depths, seen), opacity, depth, depths


def _evaluate_needed(steps, field, origins, directions, depths, limits, density, eps):
    """Raw densities of the samples that may weigh eps or more; those of `density` that are not EMPTY are known."""
    depths, limits, density = (x.movedim(steps.SAMPLE_AXIS, -1) for x in (depths, limits, density))
    closed = interval_alpha(limits, depths) < eps
    needed = ~(F.pad(closed, (1, 0), value=True) & F.pad(closed, (0, 1), value=True)) & (density == EMPTY)
    density = density.clone()
    passed = torch.ones_like(depths[..., :1])
    for first in range(0, depths.shape[-1], SAMPLES_PER_PART):
        part = slice(first, first + SAMPLES_PER_PART)
        chosen = needed[..., part] & (passed >= eps)
        evaluated = steps.density_where(field, origins, directions, _back(steps, depths[..., part]), _back(steps, chosen))
        density[..., part] = torch.where(chosen, evaluated.movedim(steps.SAMPLE_AXIS, -1), density[..., part])
        reached = slice(max(first - 1, 0), first + SAMPLES_PER_PART)
        passed = passed * (1 - interval_alpha(density[..., reached], depths[..., reached])).prod(dim=-1, keepdim=True)
    return _back(steps, density)


def _back(steps, values):
    """Samples as the last axis, where the steps want them."""
    return values.movedim(-1, steps.SAMPLE_AXIS)
