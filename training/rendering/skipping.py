"""Rendering without the samples that cannot be seen: `render_rays(..., skip=Skip(eps, bounds))`.

A sample is not evaluated where it provably weighs less than eps: because upper bounds of the density let both intervals
that it borders take away less than eps of the light, or because less than eps of the light is left in front of it. Such
intervals count as empty. Both passes work so, from front to back, part by part. With S samples on a ray, the weights of a
pixel change by less than S eps in sum. The depths of the importance samples move a little, too, since the first pass
counts intervals as empty that are nearly so.
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
    axis, count = steps.SAMPLE_AXIS, offsets.shape[-1]
    rays = (origins, directions)
    first = steps.arrange(stratified_depths(near, far, offsets))
    limits = steps.density_limits(skip.bounds, *rays, first)
    first_density, first_colours = _evaluate_needed(steps, field, *rays, first, limits, torch.full_like(first, EMPTY), skip.eps)
    if not u.shape[-1]:
        weights, opacity, depth = steps.composite(first_density, first)
        return steps.weighted_colours(field, *rays, first, weights, first_colours), opacity, depth, first
    finer = steps.importance_depths(first, steps.interval_weights(first_density, first), steps.arrange(u))
    depths, order = steps.sort_depths(torch.cat([first, finer], dim=axis))
    order = order.long()
    limits = torch.cat([limits, steps.density_limits(skip.bounds, *rays, finer)], dim=axis).gather(axis, order)
    known = torch.cat([first_density, torch.full_like(finer, EMPTY)], dim=axis).gather(axis, order)
    density, colours = _evaluate_needed(steps, field, *rays, depths, limits, known, skip.eps)
    weights, opacity, depth = steps.composite(density, depths)
    # Every colour counts once: with the first pass, or where the second pass evaluated it.
    first_weights = torch.zeros_like(weights).scatter(axis, order, weights).narrow(axis, 0, count)
    first_weights = torch.where(first_density == EMPTY, 0.0, first_weights)
    weights = torch.where(known == EMPTY, weights, 0.0)
    pixels = steps.weighted_colours(field, *rays, first, first_weights, first_colours) \
        + steps.weighted_colours(field, *rays, depths, weights, colours)
    return pixels, opacity, depth, depths


def _evaluate_needed(steps, field, origins, directions, depths, limits, known, eps):
    """Evaluate the samples that may weigh eps or more and whose density is not known yet, that is EMPTY.

    Returns the densities of all samples, EMPTY where none is known, and the colours of those evaluated, 0 elsewhere.
    """
    def last(values):  # the samples' axis moved to the end, and back
        return values.movedim(steps.SAMPLE_AXIS, -1)

    def back(values):
        return values.movedim(-1, steps.SAMPLE_AXIS)

    depths, limits, density = last(depths), last(limits), last(known).clone()
    closed = interval_alpha(limits, depths) < eps
    needed = ~(F.pad(closed, (1, 0), value=True) & F.pad(closed, (0, 1), value=True)) & (density == EMPTY)
    passed = torch.ones_like(depths[..., :1])
    colours = None
    for first in range(0, depths.shape[-1], SAMPLES_PER_PART):
        part = slice(first, first + SAMPLES_PER_PART)
        chosen = needed[..., part] & (passed >= eps)
        values, shades = steps.evaluate_where(field, origins, directions, back(depths[..., part]), back(chosen))
        density[..., part] = torch.where(chosen, last(values), density[..., part])
        colours = shades if first == 0 else steps.join_colours(colours, shades)
        reached = slice(max(first - 1, 0), first + SAMPLES_PER_PART)
        passed = passed * (1 - interval_alpha(density[..., reached], depths[..., reached])).prod(dim=-1, keepdim=True)
    return back(density), colours
