"""Pad, upsample, filter and downsample images in one pass, and the resampling helpers on top of it."""

import torch
import torch.nn.functional as F


def setup_filter(taps, gain=1.0, device=None):
    """A normalised 2-D FIR filter [h, w] from 1-D taps (made separable by their outer product) or a 2-D table."""
    taps = torch.as_tensor(taps, dtype=torch.float32, device=device)
    if taps.ndim == 1:
        taps = torch.outer(taps, taps)
    return taps / taps.sum() * gain


def pair(value):
    """(x, y) of a number or a pair."""
    return (value, value) if isinstance(value, int) else tuple(value)


def four_sides(padding):
    """(x before, x after, y before, y after) of a number, an (x, y) pair, or four numbers."""
    if isinstance(padding, int):
        return (padding,) * 4
    if len(padding) == 2:
        return (padding[0], padding[0], padding[1], padding[1])
    return tuple(padding)


def upfirdn2d(x, f, up=1, down=1, padding=0, flip_filter=False, gain=1.0):
    """Insert zeros, pad (negative: crop), filter, and keep every `down`-th pixel.

    x: [N, C, H, W]; f: [h, w] or None (identity); up, down: integer or (x, y); padding: pixels of the upsampled image,
    a number, (x, y), or (x before, x after, y before, y after). The filter is convolved; `flip_filter` correlates.
    Returns [N, C, H', W'] with H' = (H * up + pad - h) // down + 1, scaled by `gain`. Differentiable in x, to any order.
    """
    (up_x, up_y), (down_x, down_y) = pair(up), pair(down)
    x = _insert_zeros(x, up_x, up_y)
    x = F.pad(x, four_sides(padding))
    if f is not None:
        x = _filter(x, f * gain, flip_filter)
    elif gain != 1:
        x = x * gain
    return x[:, :, ::down_y, ::down_x]


def _insert_zeros(x, up_x, up_y):
    if up_x == 1 and up_y == 1:
        return x
    n, c, h, w = x.shape
    x = F.pad(x.reshape(n, c, h, 1, w, 1), (0, up_x - 1, 0, 0, 0, up_y - 1))
    return x.reshape(n, c, h * up_y, w * up_x)


def _filter(x, f, flip_filter):
    kernel = (f if flip_filter else f.flip([0, 1])).to(x.dtype)
    channels = x.shape[1]
    return F.conv2d(x, kernel.expand(channels, 1, *kernel.shape), groups=channels)


def filter2d(x, f, padding=0, flip_filter=False, gain=1.0):
    """Filter an image; with padding 0 the size stays."""
    h, w = f.shape
    left, right, top, bottom = four_sides(padding)
    sides = (left + w // 2, right + (w - 1) // 2, top + h // 2, bottom + (h - 1) // 2)
    return upfirdn2d(x, f, padding=sides, flip_filter=flip_filter, gain=gain)


def upsample2d(x, f, up=2, padding=0, flip_filter=False, gain=1.0):
    """Upsample an image by `up`; with padding 0 the size becomes exactly `up` times the input's."""
    (up_x, up_y), (h, w) = pair(up), f.shape
    left, right, top, bottom = four_sides(padding)
    sides = (left + (w + up_x - 1) // 2, right + (w - up_x) // 2, top + (h + up_y - 1) // 2, bottom + (h - up_y) // 2)
    return upfirdn2d(x, f, up=up, padding=sides, flip_filter=flip_filter, gain=gain * up_x * up_y)


def downsample2d(x, f, down=2, padding=0, flip_filter=False, gain=1.0):
    """Downsample an image by `down`; with padding 0 the size becomes the input's divided by `down`."""
    (down_x, down_y), (h, w) = pair(down), f.shape
    left, right, top, bottom = four_sides(padding)
    sides = (left + (w - down_x + 1) // 2, right + (w - down_x) // 2, top + (h - down_y + 1) // 2, bottom + (h - down_y) // 2)
    return upfirdn2d(x, f, down=down, padding=sides, flip_filter=flip_filter, gain=gain)
