"""From densities and colours along a ray to a pixel (docs/method.md, section 4).

The colour of an interval is the mean of its ends, so a pixel is linear in the samples' colours: sample i counts with
half the weights of the two intervals it borders. Colours therefore need neither sorting nor pairing.
"""

import torch
import torch.nn.functional as F


def interval_alpha(raw_density, depths):
    """How much of the light each interval between consecutive samples takes away; arguments as in `interval_weights`."""
    lengths = depths[..., 1:] - depths[..., :-1]
    density = F.softplus((raw_density[..., 1:] + raw_density[..., :-1]) / 2 - 1)
    return 1 - torch.exp(-density * lengths)


def interval_weights(raw_density, depths):
    """Weights of the intervals between consecutive samples.

    raw_density: [N, M, S], before activation; depths: [N, M, S], ascending. Returns [N, M, S - 1].
    Differentiable in both.
    """
    alpha = interval_alpha(raw_density, depths)
    passed = torch.cumprod(1 - alpha + 1e-10, dim=-1)
    return alpha * F.pad(passed[..., :-1], (1, 0), value=1.0)


def sample_weights(weights):
    """Weights of the samples [N, M, S] from those of the intervals [N, M, S - 1]."""
    return (F.pad(weights, (1, 0)) + F.pad(weights, (0, 1))) / 2


def expected_depth(weights, depths):
    """Mean depth [N, M, 1] of the intervals' mid-points; infinite where a ray has no weight."""
    mids = (depths[..., :-1] + depths[..., 1:]) / 2
    depth = (weights * mids).sum(dim=-1, keepdim=True) / weights.sum(dim=-1, keepdim=True)
    return torch.nan_to_num(depth, nan=float('inf'), posinf=float('inf'))


def unsort(values, order):
    """Undo a sort: the inverse of `x.gather(-1, order)`."""
    return torch.zeros_like(values).scatter(-1, order, values)
