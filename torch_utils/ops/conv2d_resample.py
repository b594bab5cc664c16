"""Convolution with resampling: the padding conventions of StyleGAN2's layers."""

import torch.nn.functional as F

from torch_utils.ops.upfirdn2d import four_sides, upfirdn2d


def conv2d_resample(x, w, f=None, up=1, down=1, padding=0, groups=1, flip_weight=True, impl=None):
    """Convolve after upsampling by `up`, or before downsampling by `down`, with the low-pass filter `f`.

    x: [N, C_in, H, W]; w: [C_out, C_in / groups, k, k]; f: [h, w], normalised, or None; padding: pixels of the
    upsampled image. `flip_weight` correlates (PyTorch's convolution); without it the kernel is flipped. impl: of upfirdn2d.
    """
    sides = _resampling_padding(four_sides(padding), f, up, down)
    kernel = w if flip_weight else w.flip([2, 3])
    if up == 1 and down == 1:
        left, right, top, bottom = sides
        if left == right and top == bottom:
            return F.conv2d(x, kernel, padding=(top, left), groups=groups)
        return F.conv2d(F.pad(x, sides), kernel, groups=groups)
    if up > 1:
        return _upsampling(x, kernel, f, up, down, sides, groups, impl)
    if kernel.shape[-1] == 1:
        return F.conv2d(upfirdn2d(x, f, down=down, padding=sides, impl=impl), kernel, groups=groups)
    return F.conv2d(upfirdn2d(x, f, padding=sides, impl=impl), kernel, stride=down, groups=groups)


def _resampling_padding(sides, f, up, down):
    """Padding that centres the low-pass filter on the resampled grid."""
    height, width = (1, 1) if f is None else f.shape
    left, right, top, bottom = sides
    if up > 1:
        left, right = left + (width + up - 1) // 2, right + (width - up) // 2
        top, bottom = top + (height + up - 1) // 2, bottom + (height - up) // 2
    if down > 1:
        left, right = left + (width - down + 1) // 2, right + (width - down) // 2
        top, bottom = top + (height - down + 1) // 2, bottom + (height - down) // 2
    return left, right, top, bottom


def _upsampling(x, kernel, f, up, down, sides, groups, impl):
    """A transposed convolution makes the products with the inserted zeros disappear; the filter follows."""
    size = kernel.shape[-1]
    left, right, top, bottom = sides
    if size == 1:
        x = F.conv2d(x, kernel, groups=groups)
        return upfirdn2d(x, f, up=up, down=down, padding=sides, gain=up**2, impl=impl)
    transposed = _transpose_weight(kernel, groups).flip([2, 3])
    x = F.conv_transpose2d(x, transposed, stride=up, groups=groups)
    # The transposed convolution pads by size - 1 before and size - up after, in pixels of the upsampled image.
    before, after = size - 1, size - up
    sides = (left - before, right - after, top - before, bottom - after)
    return upfirdn2d(x, f, down=down, padding=sides, gain=up**2, impl=impl)


def _transpose_weight(w, groups):
    """[C_out, C_in / groups, k, k] to the layout of a transposed convolution, [C_in, C_out / groups, k, k]."""
    out_channels, in_per_group, height, width = w.shape
    w = w.reshape(groups, out_channels // groups, in_per_group, height, width).transpose(1, 2)
    return w.reshape(groups * in_per_group, out_channels // groups, height, width)
