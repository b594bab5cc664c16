"""Volume rendering of a radiance field: two passes of samples, merged and composited (docs/method.md, section 4)."""

from typing import NamedTuple

import torch

from torch_utils.random import BatchRandom
from training.config import AUTO
from training.rendering import skipping
from training.rendering.cameras import box_limits
from training.rendering.choice import choose_steps
from training.rendering.sampling import stratified_depths

SAMPLING_MODES = ('stratified', 'deterministic')
MAX_POINTS_PER_PASS = 2**22  # on a CPU without gradients, rays are rendered in chunks of about this many samples
SHARE_OF_MEMORY = 0.5  # of what is free on a GPU, for a chunk of rays


class Rendered(NamedTuple):
    """Pixels [N, M, C] in [-1, 1]; depth [N, M, 1], world units along the ray; opacity [N, M, 1] in [0, 1]."""

    features: torch.Tensor
    depth: torch.Tensor
    opacity: torch.Tensor


def render_rays(field, origins, directions, config, sampling='stratified', random=None, skip=None):
    """Render rays through a field.

    field: points [N, P, 3] -> raw density [N, P, 1], colours [N, P, C], such as a TriplaneField; origins, directions:
    [N, M, 3]; config: RenderingConfig; random: BatchRandom for stratified sampling; skip: a skipping.Skip, to leave out
    samples of a TriplaneField that cannot be seen, without gradients. Differentiable in what the field computes, not in
    the sampled depths.
    """
    near, far = _limits(origins, directions, config)
    offsets, u = _sampling_positions(len(origins), origins.shape[1], config, sampling, random, origins.device)
    steps = choose_steps(field, origins, directions)
    per_chunk = _rays_per_chunk(steps, field, origins, config)
    prepared = steps.prepare(field)
    parts = []
    for first in range(0, origins.shape[1], per_chunk):
        rays = [x[:, first:first + per_chunk] for x in (origins, directions, near, far, offsets, u)]
        parts.append(_finish(*(render_chunk(steps, prepared, *rays) if skip is None
                               else skipping.render_chunk(steps, prepared, *rays, skip)), config))
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


def _rays_per_chunk(steps, field, origins, config):
    """How many rays of every image to render at once: all of them with gradients, else what fits into free memory."""
    n, m = origins.shape[:2]
    if torch.is_grad_enabled():
        return m
    samples = n * (config.depth_samples + config.importance_samples)
    if not origins.is_cuda:
        return max(1, MAX_POINTS_PER_PASS // samples)
    return max(1, int(SHARE_OF_MEMORY * _free_memory(origins.device)) // (samples * steps.bytes_per_sample(field)))


def _free_memory(device):
    """Bytes that a GPU can still give: what nobody has, and what PyTorch holds but does not use."""
    return torch.cuda.mem_get_info(device)[0] + torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)


def render_chunk(steps, field, origins, directions, near, far, offsets, u):
    """Colours [N, M, C] in (0, 1), opacity and depth [N, M, 1], and the sorted depths of all samples.

    steps: `training.rendering.reference`, which says what each step does, or `training.rendering.fused`.
    """
    depths = drawn = steps.arrange(stratified_depths(near, far, offsets))
    order = None
    density, colours = steps.evaluate(field, origins, directions, depths)
    if u.shape[-1]:
        weights = steps.interval_weights(density.detach(), depths)
        finer = steps.importance_depths(depths, weights, steps.arrange(u))
        finer_density, finer_colours = steps.evaluate(field, origins, directions, finer)
        density = torch.cat([density, finer_density], dim=steps.SAMPLE_AXIS)
        colours = steps.join_colours(colours, finer_colours)
        drawn = torch.cat([depths, finer], dim=steps.SAMPLE_AXIS)
        depths, order = steps.sort_depths(drawn)
    weights, opacity, depth = steps.composite(density, depths, order)
    return steps.weighted_colours(field, origins, directions, drawn, weights, colours), opacity, depth, depths


def _finish(colours, opacity, depth, depths, config):
    """Pixels in [-1, 1], depth, opacity, and the smallest and largest depth of a sample."""
    if config.white_background:
        colours = colours + 1 - opacity
    return colours * 2 - 1, depth, opacity, depths.min(), depths.max()
