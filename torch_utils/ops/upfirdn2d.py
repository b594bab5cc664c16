"""Pad, upsample, filter and downsample images in one call, and the resampling helpers on top of it.

A PyTorch version, and an operator that does it in one pass on a GPU.
"""

import torch
import torch.nn.functional as F

from torch_utils import custom_ops


def setup_filter(taps, device=None):
    """A 2-D FIR filter [h, w] that sums to 1 from 1-D taps (made separable by their outer product) or a 2-D table."""
    taps = torch.as_tensor(taps, dtype=torch.float32, device=device)
    if taps.ndim == 1:
        taps = torch.outer(taps, taps)
    return taps / taps.sum()


def upfirdn2d(x, f, up=1, down=1, padding=0, flip_filter=False, gain=1.0, impl=None):
    """Insert zeros, pad (negative: crop), filter, and keep every `down`-th pixel.

    x: [N, C, H, W]; f: [h, w]; up, down: integer or (x, y); padding: pixels of the upsampled image, a number or
    (x before, x after, y before, y after). The filter is convolved; `flip_filter` correlates. Returns [N, C, H', W'] with
    H' = (H * up + pad - h) // down + 1, scaled by `gain`. Differentiable in x, to any order.

    impl: 'ref', plain PyTorch; 'cuda', the operator (x on a GPU, no derivative with respect to f); None: the operator where
    x is on a GPU and it can be built (see custom_ops). They differ by rounding.
    """
    up, down = ((factor, factor) if isinstance(factor, int) else tuple(factor) for factor in (up, down))
    sides = (padding,) * 4 if isinstance(padding, int) else tuple(padding)
    if custom_ops.choose('upfirdn2d', x.device.type, impl) == 'ref':
        return _reference(x, f, up, down, sides, flip_filter, gain)
    return torch.ops.mimic3d.upfirdn2d(x, f, up, down, sides, flip_filter, gain)


def _reference(x, f, up, down, sides, flip_filter, gain):
    """The specification."""
    x = _insert_zeros(x, *up)
    x = F.pad(x, sides)
    f = f * gain
    kernel = (f if flip_filter else f.flip([0, 1])).to(x.dtype)
    x = F.conv2d(x, kernel.expand(x.shape[1], 1, *kernel.shape), groups=x.shape[1])
    down_x, down_y = down
    return x[:, :, ::down_y, ::down_x]


def _insert_zeros(x, up_x, up_y):
    if up_x == 1 and up_y == 1:
        return x
    n, c, h, w = x.shape
    x = F.pad(x.reshape(n, c, h, 1, w, 1), (0, up_x - 1, 0, 0, 0, up_y - 1))
    return x.reshape(n, c, h * up_y, w * up_x)


# ---- The operator. Its CUDA kernel is added by upfirdn2d.cpp when it is loaded; that for a CPU serves tests and tracing.

torch.library.define(
    'mimic3d::upfirdn2d',
    '(Tensor x, Tensor f, SymInt[2] up, SymInt[2] down, SymInt[4] padding, bool flip_filter, float gain) -> Tensor',
)


@torch.library.register_fake('mimic3d::upfirdn2d')
def _empty_result(x, f, up, down, padding, flip_filter, gain):
    """Channels-last where the channels of x are neighbours in memory, otherwise contiguous; as in upfirdn2d.cpp."""
    n, c, h, w = x.shape
    left, right, top, bottom = padding
    shape = (n, c, (h * up[1] + top + bottom - f.shape[0]) // down[1] + 1, (w * up[0] + left + right - f.shape[1]) // down[0] + 1)
    channels_last = c > 1 and x.stride(1) == 1 and not x.is_contiguous()
    memory_format = torch.channels_last if channels_last else torch.contiguous_format
    return torch.empty(shape, dtype=x.dtype, device=x.device, memory_format=memory_format)


@torch.library.impl('mimic3d::upfirdn2d', 'cpu')
def _(x, f, up, down, padding, flip_filter, gain):
    y = _empty_result(x, f, up, down, padding, flip_filter, gain)
    return y.copy_(_reference(x, f, up, down, padding, flip_filter, gain))


def _save_for_grad(ctx, inputs, output):
    x, f, ctx.up, ctx.down, ctx.padding, ctx.flip_filter, ctx.gain = inputs
    ctx.in_size, ctx.out_size = x.shape[2:], output.shape[2:]
    ctx.save_for_backward(f)


def _grad(ctx, grad_output):
    """The adjoint resamples the other way with the mirrored filter, padded so that the input's size comes out."""
    (f,) = ctx.saved_tensors
    if ctx.needs_input_grad[1]:
        raise ValueError('upfirdn2d: the operator has no derivative with respect to f; use impl="ref"')
    left, _, top, _ = ctx.padding
    padding = (
        *_adjoint_padding(left, f.shape[1], ctx.in_size[1], ctx.out_size[1], ctx.up[0], ctx.down[0]),
        *_adjoint_padding(top, f.shape[0], ctx.in_size[0], ctx.out_size[0], ctx.up[1], ctx.down[1]),
    )
    grad = torch.ops.mimic3d.upfirdn2d(grad_output, f, ctx.down, ctx.up, padding, not ctx.flip_filter, ctx.gain)
    return grad, None, None, None, None, None, None


def _adjoint_padding(before, taps, in_size, out_size, up, down):
    """(before, after) along one axis, for going back from out_size to in_size."""
    return taps - 1 - before, in_size * up - out_size * down + before - up + 1


torch.library.register_autograd('mimic3d::upfirdn2d', _grad, setup_context=_save_for_grad)


# ---- On top of it


def filter2d(x, f):
    """Filter an image x [N, C, H, W], zeros beyond the border; f: [h, w]. The size stays."""
    h, w = f.shape
    return upfirdn2d(x, f, padding=(w // 2, (w - 1) // 2, h // 2, (h - 1) // 2))


def upsample2d(x, f):
    """Double the resolution of an image x [N, C, H, W]; f: [t, t], t even."""
    before = len(f) // 2
    return upfirdn2d(x, f, up=2, padding=(before, before - 1, before, before - 1), gain=4)
