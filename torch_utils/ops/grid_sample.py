"""Bilinear sampling whose gradient can be differentiated again, as gradient penalties need."""

import torch
import torch.nn.functional as F


def grid_sample(image, grid):
    """Bilinear samples of `image` at the points of `grid`; zeros outside (`align_corners=False`).

    image: [N, C, H, W]; grid: [N, h, w, 2], (x, y) with the image's outer edges at -1 and 1. Returns [N, C, h, w].
    Differentiable in `image`, to any order. Not in `grid`: a grid that requires a gradient raises.

    PyTorch's own operator gained a second derivative only after the oldest release that this project supports; and
    with a fixed grid none is needed, because sampling is linear: its gradient is the adjoint, which is linear as well.
    """
    if grid.requires_grad:
        raise ValueError('grid_sample: the grid must not require a gradient')
    return _Sample.apply(image, grid)


def _sample(image, grid):
    return F.grid_sample(image, grid, mode='bilinear', padding_mode='zeros', align_corners=False)


class _Sample(torch.autograd.Function):
    @staticmethod
    def forward(ctx, image, grid):
        ctx.save_for_backward(grid)
        ctx.shape = image.shape
        return _sample(image, grid)

    @staticmethod
    def backward(ctx, grad_output):
        (grid,) = ctx.saved_tensors
        return _Scatter.apply(grad_output, grid, ctx.shape), None


class _Scatter(torch.autograd.Function):
    """The adjoint of `_Sample`: adds each value to the four pixels that it would have been sampled from."""

    @staticmethod
    def forward(ctx, values, grid, shape):
        ctx.save_for_backward(grid)
        with torch.enable_grad():  # The values at which a linear map is differentiated do not matter.
            anywhere = values.new_zeros(shape).requires_grad_()
            (image,) = torch.autograd.grad(_sample(anywhere, grid), anywhere, values)
        return image

    @staticmethod
    def backward(ctx, grad_output):
        (grid,) = ctx.saved_tensors
        return _Sample.apply(grad_output, grid), None, None
