"""3D-aware convolution: every plane sees itself and what the other two know about its axes (paper section 3.3).

`align_planes` and an ordinary modulated convolution are the specification. `aware_modulated_conv2d` computes the same
without the concatenated planes: the other two planes' parts are constant along one axis, so their convolution is that
of a narrow strip, widened and added. That is exact, borders included, and takes about a third of the multiplications.
"""

import torch

from torch_utils.ops.conv2d_resample import conv2d_resample
from training.networks.stylegan2 import demodulation

NUM_PLANES = 3
AWARE_AXES = ('xy', 'yz', 'zx')  # the planes that alignment is defined for: (width axis, height axis)
# Width of a strip, and how many of its output columns at each end differ from the interior, by (kernel size, up).
_STRIPS = {(1, 1): (1, 0), (3, 1): (3, 1), (3, 2): (3, 2)}


def align_planes(planes):
    """Give every plane what the other two know about its axes.

    planes: [N, 3, C, R, R], in the order xy, yz, zx. Each plane is concatenated with the two others, pooled (mean) over
    the axis that it lacks and repeated along the axis that they lack. Returns [N, 3, 3C, R, R]; within a plane's 3C
    channels the order is that of the planes.
    """
    aligned = [[_seen_from(planes[:, source], AWARE_AXES[source], AWARE_AXES[target]) for source in range(NUM_PLANES)]
               for target in range(NUM_PLANES)]
    return torch.stack([torch.cat(parts, dim=1) for parts in aligned], dim=1)


def _seen_from(plane, source, target):
    """`plane` [N, C, H, W] with axes `source` as plane `target` sees it: the shared axis kept, the other averaged."""
    if source == target:
        return plane
    shared = next(axis for axis in source if axis in target)
    profile = plane.mean(dim=-2 if source[0] == shared else -1)  # [N, C, R] along the shared axis
    profile = profile.unsqueeze(-2 if target[0] == shared else -1)
    return profile.expand(plane.shape)


def aware_modulated_conv2d(x, weight, styles, up=1, padding=0, resample_filter=None, demodulate=True):
    """Modulated convolution of aligned planes, without aligning them.

    x: [N * 3, C, R, R], plane by plane; weight: [C_out, 3C, k, k]; styles: [N * 3, 3C]; with (k, up) one of (1, 1),
    (3, 1), (3, 2). Returns what `modulated_conv2d` returns for `align_planes`' output: [N * 3, C_out, R', R'].
    """
    planes = x.unflatten(0, (-1, NUM_PLANES))
    by_source = styles.unflatten(0, (-1, NUM_PLANES)).unflatten(2, (NUM_PLANES, -1))  # [N, target, source, C]
    width, edge = _STRIPS[weight.shape[-1], up]

    def convolve(images, ahead):
        """Images [N, target, C, h, w] made from source plane target + ahead, with that source's weights and styles."""
        targets = torch.arange(NUM_PLANES, device=x.device)
        sources = (targets + ahead) % NUM_PLANES
        scaled = images * by_source[:, targets, sources, :, None, None]
        own = weight.unflatten(1, (NUM_PLANES, -1))[:, sources].transpose(0, 1).flatten(0, 1)
        y = conv2d_resample(scaled.flatten(1, 2), own, f=resample_filter, up=up, padding=padding, groups=NUM_PLANES,
                            flip_weight=(up == 1))
        return y.unflatten(1, (NUM_PLANES, -1))

    # The next plane shares this one's height axis (as its width axis); the one after shares the width axis.
    heights = planes.mean(dim=-2).roll(-1, dims=1)[..., :, None].expand(*planes.shape[:-1], width)
    widths = planes.mean(dim=-1).roll(1, dims=1)[..., None, :].expand(*planes.shape[:-2], width, -1)
    y = convolve(planes, 0)
    size = y.shape[-1]
    y = y + _widen(convolve(heights, 1), size, edge, dim=-1) + _widen(convolve(widths, 2), size, edge, dim=-2)
    y = y.flatten(0, 1)
    return y * demodulation(weight, styles) if demodulate else y


def _widen(strip, size, edge, dim):
    """Repeat the interior of a strip until it measures `size` along `dim`."""
    if edge == 0:
        return strip
    length = strip.shape[dim]
    shape = list(strip.shape)
    shape[dim] = size - 2 * edge
    interior = strip.narrow(dim, edge, 1).expand(shape)
    return torch.cat([strip.narrow(dim, 0, edge), interior, strip.narrow(dim, length - edge, edge)], dim=dim)
