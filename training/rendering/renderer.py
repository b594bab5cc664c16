"""Volume rendering of a radiance field: two passes of samples, merged and composited (METHOD: section 4)."""

from typing import NamedTuple

import torch

from torch_utils.random import BatchRandom
from training.config import AUTO
from training.rendering.compositing import expected_depth, interval_weights, merge_depths, sample_weights, unsort
from training.rendering.rays import box_limits
from training.rendering.sampling import importance_depths, stratified_depths

SAMPLING_MODES = ('stratified', 'deterministic')
MAX_POINTS_PER_PASS = 2**22  # without gradients, rays are rendered in chunks of about this many samples


class Rendered(NamedTuple):
    """Pixels [N, M, C] in [-1, 1]; depth [N, M, 1], world units along the ray; opacity [N, M, 1] in [0, 1]."""

    features: torch.Tensor
    depth: torch.Tensor
    opacity: torch.Tensor


def render_rays(field, origins, directions, config, sampling='stratified', random=None):
    """Render rays through a field.

    field: points [N, P, 3] -> raw density [N, P, 1], colours [N, P, C]; origins, directions: [N, M, 3];
    config: RenderingConfig; random: BatchRandom for stratified sampling. Differentiable in what the field computes,
    not in the sampled depths.
    """
    near, far = _limits(origins, directions, config)
    offsets, u = _sampling_positions(len(origins), origins.shape[1], config, sampling, random, origins.device)
    per_chunk = _rays_per_chunk(origins, config)
    parts = [_render_chunk(field, *(x[:, i:i + per_chunk] for x in (origins, directions, near, far, offsets, u)), config)
             for i in range(0, origins.shape[1], per_chunk)]
    features, depth, opacity, first, last = zip(*parts)
    depth = torch.cat(depth, dim=1).clamp(torch.stack(first).min(), torch.stack(last).max())
    return Rendered(torch.cat(features, dim=1), depth, torch.cat(opacity, dim=1))


def _limits(origins, directions, config):
    """near and far [N, M, 1] of every ray."""
    if config.near == AUTO:
        return box_limits(origins, directions, config.box_size)
    whole = torch.ones_like(origins[..., :1])
    return whole * config.near, whole * config.far


def _sampling_positions(n, m, config, sampling, random, device):
    """Offsets of the stratified samples and positions in the importance samples' CDF, each in [0, 1]."""
    if sampling not in SAMPLING_MODES:
        raise ValueError(f'sampling must be one of {", ".join(SAMPLING_MODES)}, got {sampling!r}')
    if sampling == 'deterministic':
        u = torch.linspace(0, 1, config.importance_samples, device=device)
        return torch.full([n, m, config.depth_samples], 0.5, device=device), u.expand(n, m, -1)
    random = random or BatchRandom(n, device)
    return random.uniform(m, config.depth_samples), random.uniform(m, config.importance_samples)


def _rays_per_chunk(origins, config):
    n, m = origins.shape[:2]
    if torch.is_grad_enabled():
        return m
    return max(1, MAX_POINTS_PER_PASS // (n * (config.depth_samples + config.importance_samples)))


def _render_chunk(field, origins, directions, near, far, offsets, u, config):
    depths = stratified_depths(near, far, offsets)
    density, colours = _evaluate(field, origins, directions, depths)
    if u.shape[-1]:
        weights = interval_weights(density.detach(), depths)
        finer = importance_depths(depths, weights, u)
        finer_density, finer_colours = _evaluate(field, origins, directions, finer)
        depths, order = merge_depths(depths, finer)
        density = torch.cat([density, finer_density], dim=-1).gather(-1, order)
        colours = torch.cat([colours, finer_colours], dim=-2)
        weights = interval_weights(density, depths)
        colour_weights = unsort(sample_weights(weights), order)
    else:
        weights = interval_weights(density, depths)
        colour_weights = sample_weights(weights)
    pixels = torch.einsum('nms,nmsc->nmc', colour_weights, colours)
    opacity = weights.sum(dim=-1, keepdim=True)
    if config.white_background:
        pixels = pixels + 1 - opacity
    return pixels * 2 - 1, expected_depth(weights, depths), opacity, depths.min(), depths.max()


def _evaluate(field, origins, directions, depths):
    """The field at the samples: raw density [N, M, S] and colours [N, M, S, C]."""
    n, m, s = depths.shape
    points = origins[:, :, None] + directions[:, :, None] * depths[..., None]
    density, colours = field(points.reshape(n, m * s, 3))
    return density.reshape(n, m, s), colours.reshape(n, m, s, -1)
