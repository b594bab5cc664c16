"""What volume rendering does along each ray, one thread per ray: weights, importance sampling, merging, compositing.

Written in Triton, like `torch_utils.ops.triplane`, and laid out like it: S samples on each of M rays of N images are
[N, M, S], and come first in memory, so that the threads of neighbouring rays read neighbouring numbers. The reference
implementations in plain PyTorch, which specify what is computed, have the same names, without `triton_`, in
`training.rendering.volume`.

Depths have no gradient; densities have a first one.
"""

import torch
import triton
import triton.language as tl

from torch_utils.ops.triplane import first_derivative_only, on_device, samples_first, samples_last, softplus

RAYS_PER_BLOCK = 128  # one ray per thread
RAYS_PER_TILE = 16  # where a program holds all samples of its rays at once
LAUNCH = dict(num_warps=4, num_stages=1)


def triton_interval_weights(raw_density, depths):
    """Weights [N, M, S - 1] of the intervals between samples of raw density and ascending depths, both [N, M, S].

    No gradient; `triton_composite` has one.
    """
    raw_density, depths = samples_first(raw_density.detach()), samples_first(depths)
    weights = depths.new_empty(len(depths) - 1, *depths.shape[1:])
    _along_rays(_composite_kernel, RAYS_PER_BLOCK, depths, weights, None, None, None, raw_density, depths, None)
    return samples_last(weights)


def triton_importance_depths(depths, weights, u):
    """Depths [N, M, K] at the positions u [N, M, K], in [0, 1], of the CDF of the smoothed weights. No gradient.

    depths: [N, M, S], ascending; weights: [N, M, S - 1].
    """
    depths, weights, u = samples_first(depths), samples_first(weights), samples_first(u)
    drawn = torch.empty_like(u)
    sizes = dict(DRAWN=len(u), DRAWN_BLOCK=triton.next_power_of_2(len(u)))
    _along_rays(_importance_kernel, RAYS_PER_TILE, depths, drawn, depths, weights, u, **sizes)
    return samples_last(drawn)


def triton_sort_depths(depths):
    """Sort depths [N, M, S] along each ray. Returns them and the order (int32), as `torch.sort(depths)` does."""
    depths = samples_first(depths)
    ascending, order = torch.empty_like(depths), torch.empty_like(depths, dtype=torch.int32)
    sizes = dict(SAMPLE_BLOCK=triton.next_power_of_2(len(depths)))
    _along_rays(_sort_kernel, RAYS_PER_TILE, depths, ascending, order, depths, **sizes)
    return samples_last(ascending), samples_last(order)


def triton_composite(raw_density, depths, order=None):
    """Weights of samples in whatever order they come, opacity and expected depth of their rays.

    raw_density: [N, M, S]; depths: [N, M, S], ascending; order: [N, M, S] (int32), which sample each of the depths
    belongs to; None where the samples are in order. Returns the samples' weights [N, M, S], in the order of
    raw_density; their sum over the intervals, the opacity [N, M, 1]; and the mean of the intervals' mid-points [N, M, 1],
    infinite where there is no weight. Differentiable in raw_density, once.
    """
    order = order if order is None else samples_first(order)
    weights, opacity, moment = _Composite.apply(samples_first(raw_density), samples_first(depths), order)
    depth = torch.nan_to_num(moment / opacity, nan=float('inf'), posinf=float('inf'))
    return samples_last(weights), opacity[..., None], depth[..., None]


def _along_rays(kernel, block, depths, *arguments, **sizes):
    """Launch a kernel for all rays of depths [S, N, M], `block` at a time."""
    rays = depths[0].numel()
    with on_device(depths):
        kernel[(triton.cdiv(rays, block),)](*arguments, rays, SAMPLES=len(depths), BLOCK=block, **LAUNCH, **sizes)


# Kernels -------------------------------------------------------------------------------------------------------------

# Arguments of kernels are grouped by what they belong to.
# fmt: off


@triton.jit
def _interval(density, next_density, depth, next_depth):
    """An interval's raw density, what it lets through, and its length."""
    length = next_depth - depth
    mean = (density + next_density) / 2 - 1
    return mean, tl.exp(-softplus(mean) * length), length


@triton.jit
def _mass(weights, here, rays, real):
    """Unnormalised mass of a bin: the interval's weight and its neighbours', max-pooled, averaged, raised a little."""
    before = tl.load(weights + here - rays, mask=real, other=0.0)
    own = tl.load(weights + here, mask=real, other=0.0)
    after = tl.load(weights + here + rays, mask=real, other=0.0)
    return (tl.maximum(before, own) + tl.maximum(own, after)) / 2 + 0.01 + 1e-5


@triton.jit
def _importance_kernel(drawn, depths, weights, positions, rays, SAMPLES: tl.constexpr, DRAWN: tl.constexpr,
                       DRAWN_BLOCK: tl.constexpr, BLOCK: tl.constexpr):
    """Walks along the bins of the CDF; every position takes its depth from the bin that holds it."""
    ray = tl.program_id(0).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
    real = ray < rays
    number = tl.arange(0, DRAWN_BLOCK)
    where = number.to(tl.int64)[:, None] * rays + ray[None, :]
    wanted = (number < DRAWN)[:, None] & real[None, :]
    u = tl.load(positions + where, mask=wanted, other=0.0)
    total = tl.zeros([BLOCK], tl.float32)
    here = ray + rays
    for _ in range(SAMPLES - 3):
        total += _mass(weights, here, rays, real)
        here += rays
    first, second = tl.load(depths + ray, mask=real, other=0.0), tl.load(depths + ray + rays, mask=real, other=0.0)
    edge, depth = (first + second) / 2, second
    cdf = tl.zeros([BLOCK], tl.float32)
    found = tl.zeros([DRAWN_BLOCK, BLOCK], tl.float32)
    here = ray + rays
    for _ in range(SAMPLES - 3):
        next_depth = tl.load(depths + here + rays, mask=real, other=0.0)
        next_edge = (depth + next_depth) / 2
        next_cdf = cdf + _mass(weights, here, rays, real) / total
        step = next_cdf - cdf
        step = tl.where(step < 1e-5, 1.0, step)
        inside = (u >= cdf[None, :]) & (u < next_cdf[None, :])
        found = tl.where(inside, edge[None, :] + (u - cdf[None, :]) / step[None, :] * (next_edge - edge)[None, :], found)
        edge, depth, cdf = next_edge, next_depth, next_cdf
        here += rays
    tl.store(drawn + where, tl.where(u >= cdf[None, :], edge[None, :], found), mask=wanted)


@triton.jit
def _sort_kernel(ascending, order, depths, rays, SAMPLES: tl.constexpr, SAMPLE_BLOCK: tl.constexpr, BLOCK: tl.constexpr):
    """Every sample counts how many come before it."""
    ray = tl.program_id(0).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
    sample = tl.arange(0, SAMPLE_BLOCK)
    real = (sample < SAMPLES)[:, None] & (ray < rays)[None, :]
    own = tl.load(depths + sample.to(tl.int64)[:, None] * rays + ray[None, :], mask=real, other=0.0)
    rank = tl.zeros([SAMPLE_BLOCK, BLOCK], tl.int32)
    other = ray
    for index in range(SAMPLES):
        depth = tl.load(depths + other, mask=ray < rays, other=0.0)[None, :]
        rank += ((depth < own) | ((depth == own) & (sample > index)[:, None])).to(tl.int32)
        other += rays
    where = rank.to(tl.int64) * rays + ray[None, :]
    tl.store(ascending + where, own, mask=real)
    tl.store(order + where, tl.zeros([SAMPLE_BLOCK, BLOCK], tl.int32) + sample[:, None], mask=real)


@triton.jit
def _sample_at(order, here, ray, rays, real):
    """Where, among the samples as they come, the sample that is next in depth lies."""
    if order is None:
        return here
    else:  # noqa: RET505  (a compile-time branch: without it Triton would see two results)
        return tl.load(order + here, mask=real, other=0).to(tl.int64) * rays + ray


@triton.jit
def _composite_kernel(interval_weights, sample_weights, opacities, moments, density, depths, order, rays,
                      SAMPLES: tl.constexpr, BLOCK: tl.constexpr):
    """Front to back; the weights of the intervals alone, or all else."""
    ray = tl.program_id(0).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
    real = ray < rays
    passed = tl.full([BLOCK], 1.0, tl.float32)
    opacity, moment, weight = tl.zeros([BLOCK], tl.float32), tl.zeros([BLOCK], tl.float32), tl.zeros([BLOCK], tl.float32)
    here = ray
    sample = _sample_at(order, here, ray, rays, real)
    raw, depth = tl.load(density + sample, mask=real, other=0.0), tl.load(depths + here, mask=real, other=0.0)
    for _ in range(SAMPLES - 1):
        next_sample = _sample_at(order, here + rays, ray, rays, real)
        next_raw = tl.load(density + next_sample, mask=real, other=0.0)
        next_depth = tl.load(depths + here + rays, mask=real, other=0.0)
        _mean, through, _length = _interval(raw, next_raw, depth, next_depth)
        next_weight = (1 - through) * passed
        if interval_weights is not None:
            tl.store(interval_weights + here, next_weight, mask=real)
        else:
            tl.store(sample_weights + sample, (weight + next_weight) / 2, mask=real)
        here += rays
        passed *= through + 1e-10
        opacity += next_weight
        moment += next_weight * (depth + next_depth) / 2
        weight, sample, raw, depth = next_weight, next_sample, next_raw, next_depth
    if interval_weights is None:
        tl.store(sample_weights + sample, weight / 2, mask=real)
        tl.store(opacities + ray, opacity, mask=real)
        tl.store(moments + ray, moment, mask=real)


@triton.jit
def _composite_backward_kernel(grad_density, grad_weights, grad_opacities, grad_moments, transmittances, density, depths, order,
                               rays, SAMPLES: tl.constexpr, BLOCK: tl.constexpr):
    """Front to back once more for the transmittances, then back to front.

    With g_i the gradient of interval i's weight, what interval i lets through earns, per unit of transmittance,
    behind_i = g_(i+1) alpha_(i+1) + (1 - alpha_(i+1) + 1e-10) behind_(i+1). So alpha_i has the gradient
    transmittance_i (g_i - behind_i), which needs no division.
    """
    ray = tl.program_id(0).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
    real = ray < rays
    here = ray
    sample = _sample_at(order, here, ray, rays, real)
    raw, depth = tl.load(density + sample, mask=real, other=0.0), tl.load(depths + here, mask=real, other=0.0)
    passed = tl.full([BLOCK], 1.0, tl.float32)
    for _ in range(SAMPLES - 1):
        tl.store(transmittances + here, passed, mask=real)
        here += rays
        sample = _sample_at(order, here, ray, rays, real)
        next_raw = tl.load(density + sample, mask=real, other=0.0)
        next_depth = tl.load(depths + here, mask=real, other=0.0)
        _mean, through, _length = _interval(raw, next_raw, depth, next_depth)
        passed *= through + 1e-10
        raw, depth = next_raw, next_depth
    tl.debug_barrier()
    g_opacity = tl.load(grad_opacities + ray, mask=real, other=0.0)
    g_moment = tl.load(grad_moments + ray, mask=real, other=0.0)
    g_sample = tl.load(grad_weights + sample, mask=real, other=0.0)
    behind, g_mean = tl.zeros([BLOCK], tl.float32), tl.zeros([BLOCK], tl.float32)
    for _ in range(SAMPLES - 1):
        here -= rays
        before = _sample_at(order, here, ray, rays, real)
        raw_before = tl.load(density + before, mask=real, other=0.0)
        depth_before = tl.load(depths + here, mask=real, other=0.0)
        mean, through, length = _interval(raw_before, raw, depth_before, depth)
        g_before = tl.load(grad_weights + before, mask=real, other=0.0)
        g_weight = (g_before + g_sample) / 2 + g_opacity + g_moment * (depth_before + depth) / 2
        g_alpha = tl.load(transmittances + here, mask=real, other=0.0) * (g_weight - behind)
        g_mean_before = g_alpha * through * length * tl.sigmoid(mean)
        tl.store(grad_density + sample, (g_mean + g_mean_before) / 2, mask=real)
        behind = g_weight * (1 - through) + (through + 1e-10) * behind
        g_mean, g_sample, sample, raw, depth = g_mean_before, g_before, before, raw_before, depth_before
    tl.store(grad_density + sample, g_mean / 2, mask=real)
# fmt: on


class _Composite(torch.autograd.Function):
    @staticmethod
    def forward(ctx, density, depths, order):
        ctx.save_for_backward(density, depths, order)
        weights = torch.empty_like(density)
        opacity, moment = density.new_empty(2, *density.shape[1:])
        _along_rays(_composite_kernel, RAYS_PER_BLOCK, depths, None, weights, opacity, moment, density, depths, order)
        return weights, opacity, moment

    @staticmethod
    @first_derivative_only
    def backward(ctx, *gradients):
        density, depths, order = ctx.saved_tensors
        grad_density, transmittances = torch.empty_like(density), torch.empty_like(density)
        given = [gradient.contiguous() for gradient in gradients]
        inputs = (transmittances, density, depths, order)
        _along_rays(_composite_backward_kernel, RAYS_PER_BLOCK, depths, grad_density, *given, *inputs)
        return grad_density, None, None
