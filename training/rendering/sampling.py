"""Where to sample along rays: stratified, and by importance (docs/method.md, section 4)."""

import torch
import torch.nn.functional as F


def stratified_depths(near, far, offsets):
    """Depths at even spacing from near to far, moved by `offsets` of the spacing.

    near, far: [N, M, 1], world units; offsets: [N, M, S] in [0, 1). Returns [N, M, S], ascending.
    """
    count = offsets.shape[-1]
    steps = torch.linspace(0, 1, count, device=near.device)
    return near + (far - near) * (steps + offsets / (count - 1))


def importance_depths(depths, weights, u):
    """Depths drawn where an earlier pass saw weight, by the inverse of the smoothed weights' CDF.

    depths: [N, M, S], ascending; weights: [N, M, S - 1], one per interval; u: [N, M, K] in [0, 1].
    Returns [N, M, K]; no gradient passes.
    """
    with torch.no_grad():
        mids = (depths[..., :-1] + depths[..., 1:]) / 2
        masses = smooth_weights(weights)[..., 1:-1] + 1e-5
        return invert_cdf(mids, masses / masses.sum(dim=-1, keepdim=True), u)


def smooth_weights(weights):
    """Blur interval weights [N, M, K] so that no neighbour of a surface is missed: max-pool, average, floor 0.01."""
    widened = F.max_pool1d(weights, kernel_size=2, stride=1, padding=1)
    return F.avg_pool1d(widened, kernel_size=2, stride=1) + 0.01


def invert_cdf(edges, masses, u):
    """Inverse CDF of a piecewise constant density.

    edges: bin edges [..., B + 1]; masses: [..., B], summing to 1; u: [..., K] in [0, 1]. Returns [..., K].
    """
    cdf = F.pad(masses.cumsum(dim=-1), (1, 0))
    bins = masses.shape[-1]
    above = torch.searchsorted(cdf.contiguous(), u.contiguous(), right=True)
    low, high = (above - 1).clamp(0, bins), above.clamp(max=bins)
    cdf_low, cdf_high = cdf.gather(-1, low), cdf.gather(-1, high)
    step = cdf_high - cdf_low
    step = torch.where(step < 1e-5, torch.ones_like(step), step)
    edge_low, edge_high = edges.gather(-1, low), edges.gather(-1, high)
    return edge_low + (u - cdf_low) / step * (edge_high - edge_low)
