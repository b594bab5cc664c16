"""Bias, activation, gain and clamp in one call: a PyTorch version, and an operator that does it in one pass on a GPU.

The operator computes the leaky ReLU, and with slope 1 no activation: what StyleGAN2's convolutions need.
"""

import math

import torch
import torch.nn.functional as F

from torch_utils import custom_ops

GAINS = {'linear': 1.0, 'lrelu': math.sqrt(2), 'softplus': 1.0}  # keep the second moment of normal inputs near 1
KERNEL_SLOPES = {'linear': 1.0, 'lrelu': 0.2}  # below 0, of the activations that the operator has


def bias_act(x, b=None, dim=1, act='linear', gain=None, clamp=None, impl=None):
    """clamp(act(x + b) * gain).

    x: any shape; b: [x.shape[dim]] or None; act: a name in GAINS; gain: None takes the activation's own; clamp: largest
    magnitude of the output, or None. Returns the shape and dtype of x. Differentiable to any order.

    impl: 'ref', plain PyTorch; 'cuda', the operator (x on a GPU, act one of KERNEL_SLOPES); None: the operator where it
    has the activation, x is on a GPU and it can be built (see custom_ops). They differ by rounding, and where the output
    equals +-clamp: there the operator's derivative is 0.
    """
    gain = GAINS[act] if gain is None else gain
    b = None if b is None else b.to(x.dtype)
    chosen = custom_ops.choose('bias_act', x.device.type, impl)
    if chosen == 'cuda' and act in KERNEL_SLOPES:
        return torch.ops.mimic3d.bias_act(x, b, dim, KERNEL_SLOPES[act], gain, clamp)
    if impl == 'cuda':
        raise ValueError(f"bias_act: impl='cuda' has no activation {act!r}, only {' and '.join(KERNEL_SLOPES)}")
    return reference(x, b, dim, KERNEL_SLOPES.get(act), gain, clamp)


def reference(x, b, dim, slope, gain, clamp):
    """The specification. slope: of the leaky ReLU, 1 for no activation; None stands for softplus."""
    if b is not None:
        x = x + _along(b, x, dim)
    if slope is None:
        x = F.softplus(x)
    elif slope != 1:
        x = F.leaky_relu(x, slope)
    if gain != 1:
        x = x * gain
    if clamp is not None:
        x = x.clamp(-clamp, clamp)
    return x


def _along(b, x, dim):
    """b [x.shape[dim]] with as many dimensions as x."""
    return b.reshape([-1 if axis == dim else 1 for axis in range(x.ndim)])


# ---- The operator. CUDA kernels are added by bias_act.cpp when it is loaded; those for a CPU serve tests and tracing.
#
# The derivative is taken from y, which the next layer keeps anyway, and not from x: their signs are those of each other
# (times the gain's). It is piecewise constant, so that second derivatives reach x through grad_output alone.

torch.library.define('mimic3d::bias_act', '(Tensor x, Tensor? b, int dim, float slope, float gain, float? clamp) -> Tensor')
# Returns the gradients of x and, summed over all dimensions but bias_dim, of b; without bias_dim the latter is empty.
torch.library.define(
    'mimic3d::bias_act_grad',
    '(Tensor grad_output, Tensor y, int? bias_dim, float slope, float gain, float? clamp) -> (Tensor, Tensor)',
)


@torch.library.register_fake('mimic3d::bias_act')
def _(x, b, dim, slope, gain, clamp):
    return torch.empty_like(x)


@torch.library.register_fake('mimic3d::bias_act_grad')
def _(grad_output, y, bias_dim, slope, gain, clamp):
    return torch.empty_like(y), y.new_empty([0 if bias_dim is None else y.shape[bias_dim]])


@torch.library.impl('mimic3d::bias_act', 'cpu')
def _(x, b, dim, slope, gain, clamp):
    return torch.empty_like(x).copy_(reference(x, b, dim, slope, gain, clamp))


@torch.library.impl('mimic3d::bias_act_grad', 'cpu')
def _(grad_output, y, bias_dim, slope, gain, clamp):
    grad = grad_output * gain
    grad = grad.where(y * gain > 0, grad * slope)
    if clamp is not None:
        grad = grad.where(y.abs() < clamp, 0)
    grad = torch.empty_like(y).copy_(grad)
    return grad, _sum_along(grad, bias_dim)


def _sum_along(grad, dim):
    """[grad.shape[dim]], or nothing, [0], without a dim."""
    if dim is None:
        return grad.new_empty([0])
    others = [axis for axis in range(grad.ndim) if axis != dim]
    return grad.sum(others) if others else grad.clone()


def _save_for_grad(ctx, inputs, output):
    _, _, ctx.dim, *ctx.settings = inputs
    slope, _, clamp = ctx.settings
    ctx.linear = slope == 1 and clamp is None
    if not ctx.linear:
        ctx.save_for_backward(output)


def _grad(ctx, grad_output):
    bias_dim = ctx.dim if ctx.needs_input_grad[1] else None
    if ctx.linear:
        _, gain, _ = ctx.settings
        grad = grad_output if gain == 1 else grad_output * gain
        grad_b = _sum_along(grad, bias_dim)
    else:
        (y,) = ctx.saved_tensors
        grad, grad_b = torch.ops.mimic3d.bias_act_grad(grad_output, y, bias_dim, *ctx.settings)
    return grad, None if bias_dim is None else grad_b, None, None, None, None


def _save_for_grad_grad(ctx, inputs, output):
    _, y, ctx.bias_dim, *ctx.settings = inputs
    ctx.save_for_backward(y)
    ctx.set_materialize_grads(False)  # of the two outputs often one only is used


def _grad_grad(ctx, grad, grad_of_b):
    """bias_act_grad is linear in grad_output."""
    (y,) = ctx.saved_tensors
    if grad_of_b is not None and ctx.bias_dim is not None:
        spread = _along(grad_of_b, y, ctx.bias_dim)
        grad = spread.expand(y.shape) if grad is None else grad + spread
    if grad is not None:
        grad, _ = torch.ops.mimic3d.bias_act_grad(grad, y, None, *ctx.settings)
    return grad, None, None, None, None, None


torch.library.register_autograd('mimic3d::bias_act', _grad, setup_context=_save_for_grad)
torch.library.register_autograd('mimic3d::bias_act_grad', _grad_grad, setup_context=_save_for_grad_grad)
