"""Unbiased volume rendering of a signed distance (Wang et al. 2021, section 3.2).

Lengths are in units of half the box's side: the scene is [-1, 1]^3. M rays, S samples, S - 1 sections between them.
"""

from typing import NamedTuple

import torch
import torch.nn.functional as F

from metrics.consistency.fields import Shaded
from training.rendering.cameras import intersect_box
from training.rendering.volume import invert_cdf

OUTSIDE_SAMPLES = 32
BACKGROUNDS = ('white', 'black', 'learned')
_FARTHEST = 1e3  # where the samples beyond the box end
_SAMPLES_PER_CHUNK = 2**18


class RenderedSurface(NamedTuple):
    """rgb [M, 3] in [0, 1]; depth [M], expected distance along the ray; normal [M, 3], weighted mean of unit normals;
    opacity [M] of the surface; shaded: the fields.Shaded of the K shaded points."""

    rgb: torch.Tensor
    depth: torch.Tensor
    normal: torch.Tensor
    opacity: torch.Tensor
    shaded: Shaded


def section_weights(distance, sharpness):
    """Weights T_i alpha_i of the sections between samples, alpha_i = max((Phi_i - Phi_(i+1)) / Phi_i, 0) with Phi the
    logistic function of sharpness * distance (eq. 10 to 13).

    distance: [..., S], signed, along a ray; sharpness: s > 0. Returns [..., S - 1]. Differentiable in both. Computed from
    logarithms: deep inside, Phi underflows, but the ratio of two Phi does not.
    """
    log_passed = _log_passed(distance, sharpness)
    return -torch.expm1(log_passed) * _reached(log_passed)


def possible_weights(distance, lengths, sharpness):
    """`section_weights` as large as sections of `lengths` [..., S - 1] could have them, each if those before it are as they
    seem: a distance changes by at most one per unit of length, so a section with both ends outside can hide a thin part."""
    start, end = distance[..., :-1], distance[..., 1:]
    lowest = torch.minimum((start + end - lengths) / 2, end)
    least_passed = (F.logsigmoid(lowest * sharpness) - F.logsigmoid(start * sharpness)).clamp(max=0)
    return -torch.expm1(least_passed) * _reached(_log_passed(distance, sharpness))


def _log_passed(distance, sharpness):
    """log(1 - alpha) of sections."""
    return F.logsigmoid(distance * sharpness).diff(dim=-1).clamp(max=0)


def _reached(log_passed):
    """The light that reaches each section."""
    return F.pad(log_passed.cumsum(dim=-1)[..., :-1], (1, 0)).exp()


@torch.no_grad()
def sample_depths(distance, origins, directions, near, far, recipe, generator=None):
    """Depths [M, S], ascending, from near to far: even ones, then rounds of up-sampling around the surface.

    distance: points [P, 3] -> [P]; origins, directions: [M, 3]; near, far: [M, 1]. Each round draws from the possible
    weights under a fixed sharpness, twice that of the round before (supplement, "up-sampling"). generator: moves the even samples
    at random within their strata; None: none moves.
    """
    steps = torch.linspace(0, 1, recipe.coarse_samples, device=near.device)
    depths = near + (far - near) * steps
    if generator is not None:
        spacing = (far - near) / (recipe.coarse_samples - 1)
        offsets = torch.rand(depths.shape, generator=generator, device=depths.device) - 0.5
        depths = torch.maximum(torch.minimum(depths + spacing * offsets, far), near)
    values = _along(distance, origins, directions, depths)
    u = (torch.arange(recipe.samples_per_round, device=near.device) + 0.5) / recipe.samples_per_round
    for index in range(recipe.rounds):
        masses = possible_weights(values, depths.diff(dim=-1), recipe.first_round_sharpness * 2**index) + 1e-5
        finer = invert_cdf(depths, masses / masses.sum(dim=-1, keepdim=True), u.expand(len(depths), -1))
        depths, order = torch.sort(torch.cat([depths, finer], dim=-1), dim=-1)
        values = torch.cat([values, _along(distance, origins, directions, finer)], dim=-1).gather(-1, order)
    return depths


def _along(distance, origins, directions, depths):
    points = origins[:, None] + directions[:, None] * depths[..., None]
    return distance(points.reshape(-1, 3)).reshape(depths.shape)


def render_neus(scene, origins, directions, recipe, background, generator=None):
    """Render rays [M, 3] of a Scene, in front of a background: 'white', 'black' or 'learned'.

    A section's colour is that of its middle; see `shaded_sections`. Differentiable in the fields.
    """
    near, far, hit = (x[0] for x in intersect_box(origins[None], directions[None], 2.0))
    near = torch.where(hit, near.clamp(min=0), 0.0)  # a camera may stand in the box
    far = torch.where(hit & (far > 0), far, near + 1e-3)
    hit = hit & (far > near + 1e-3)
    depths = sample_depths(scene.distance, origins, directions, near, far, recipe, generator)
    weights = section_weights(_along(scene.distance, origins, directions, depths), scene.sharpness) * hit
    middles = (depths[:, 1:] + depths[:, :-1]) / 2
    weight = weights.sum(dim=-1)
    opacity = weight * (weights >= recipe.negligible_weight).any(dim=-1)  # what is not shaded is not seen
    ray, section = shaded_sections(weights.detach(), recipe)
    points = origins[ray] + directions[ray] * middles[ray, section, None]
    shaded = scene.shade(points, directions[ray])
    shown = weights[ray, section]
    # The sections that are shaded stand for the others.
    shown = shown * (opacity / torch.zeros_like(opacity).index_add(0, ray, shown).clamp(min=1e-9))[ray]
    rgb = torch.zeros_like(origins).index_add(0, ray, shown[:, None] * shaded.rgb)
    normal = torch.zeros_like(origins).index_add(0, ray, shown[:, None] * F.normalize(shaded.gradients, dim=-1))
    depth = (weights * middles).sum(dim=-1) / weight.clamp(min=1e-6)
    behind = _background(scene, origins, directions, far, background)
    return RenderedSurface(rgb + (1 - opacity)[:, None] * behind, depth, normal, opacity, shaded)


def shaded_sections(weights, recipe):
    """Ray and section numbers, both [K], of the sections that are given a colour: those of not negligible weight, and
    of these the heaviest `recipe.most_shaded` of a ray (0: all)."""
    heavy = weights >= recipe.negligible_weight
    if recipe.most_shaded:
        least = weights.topk(min(recipe.most_shaded, weights.shape[-1]), dim=-1).values[:, -1:]
        heavy &= weights >= least
    return torch.nonzero(heavy, as_tuple=True)


def _background(scene, origins, directions, far, background):
    if background == 'learned':
        return _render_outside(scene.outside, origins, directions, far)
    return torch.full_like(origins, {'black': 0.0, 'white': 1.0}[background])


def _render_outside(outside, origins, directions, start):
    """Colours [M, 3] of what lies beyond `start` [M, 1], by samples that are even in inverse depth."""
    start = start.clamp(min=0.1)
    steps = torch.linspace(0, 1, OUTSIDE_SAMPLES + 1, device=start.device)
    depths = 1 / (1 / start * (1 - steps) + steps / _FARTHEST)
    middles, lengths = (depths[:, 1:] + depths[:, :-1]) / 2, depths.diff(dim=-1)
    points = (origins[:, None] + directions[:, None] * middles[..., None]).flatten(0, 1)
    density, rgb = outside(points, directions.repeat_interleave(OUTSIDE_SAMPLES, dim=0))
    # What lies beyond is opaque in the end: the last sample takes all light that is left.
    passed = torch.exp(-(density.reshape(lengths.shape) * lengths)[:, :-1]).cumprod(dim=-1)
    reached = F.pad(passed, (1, 0), value=1.0)
    weights = reached - F.pad(passed, (0, 1))
    return (weights[..., None] * rgb.reshape(*weights.shape, 3)).sum(dim=1)


@torch.no_grad()
def render_all(scene, origins, directions, recipe, background):
    """rgb and normal, both [M, 3], of `render_neus` for any number of rays [M, 3], in chunks, without gradients and
    without chance."""
    rays_per_chunk = max(1, _SAMPLES_PER_CHUNK // (recipe.coarse_samples + recipe.rounds * recipe.samples_per_round))
    parts = [
        render_neus(scene, *rays, recipe, background)
        for rays in zip(origins.split(rays_per_chunk), directions.split(rays_per_chunk))
    ]
    return torch.cat([part.rgb for part in parts]), torch.cat([part.normal for part in parts])
