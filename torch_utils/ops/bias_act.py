"""Bias, activation, gain and clamp in one call: a PyTorch version, and an operator that does it in one pass on a GPU."""

import math
from collections.abc import Callable
from typing import NamedTuple

import torch
import torch.nn.functional as F

from torch_utils import custom_ops

_SELU_SCALE, _SELU_ALPHA = 1.0507009873554804934193349852946, 1.6732632423543772848170429916717


class Activation(NamedTuple):
    function: Callable  # (x, alpha) -> y
    alpha: float  # slope of the negative side, where there is one
    gain: float  # keeps the second moment of normal inputs near 1
    # For the operator, which remembers y alone: the first derivative as a function of y (for swish: of x), and that
    # function's own derivative, None where it is zero.
    slope: Callable  # (y, alpha) -> dy/dx
    curvature: Callable | None = None


def _swish_slope(x, alpha):
    s = torch.sigmoid(x)
    return s * (1 + x * (1 - s))


def _swish_curvature(x):
    s = torch.sigmoid(x)
    return s * (1 - s) * (2 + x * (1 - 2 * s))


ACTIVATIONS = {
    'linear': Activation(lambda x, alpha: x, 0.0, 1.0, lambda y, alpha: torch.ones_like(y)),
    'relu': Activation(lambda x, alpha: F.relu(x), 0.0, math.sqrt(2), lambda y, alpha: (y > 0).to(y.dtype)),
    'lrelu': Activation(lambda x, alpha: F.leaky_relu(x, alpha), 0.2, math.sqrt(2),
                        lambda y, alpha: torch.ones_like(y).where(y > 0, alpha)),
    'tanh': Activation(lambda x, alpha: torch.tanh(x), 0.0, 1.0, lambda y, alpha: 1 - y * y, lambda y: -2 * y),
    'sigmoid': Activation(lambda x, alpha: torch.sigmoid(x), 0.0, 1.0, lambda y, alpha: y * (1 - y), lambda y: 1 - 2 * y),
    'elu': Activation(lambda x, alpha: F.elu(x), 0.0, 1.0, lambda y, alpha: 1 + y.clamp(max=0), lambda y: (y < 0).to(y.dtype)),
    'selu': Activation(lambda x, alpha: F.selu(x), 0.0, 1.0,
                       lambda y, alpha: (y + _SELU_SCALE * _SELU_ALPHA).where(y <= 0, _SELU_SCALE),
                       lambda y: (y < 0).to(y.dtype)),
    'softplus': Activation(lambda x, alpha: F.softplus(x), 0.0, 1.0, lambda y, alpha: -torch.expm1(-y), lambda y: torch.exp(-y)),
    'swish': Activation(lambda x, alpha: torch.sigmoid(x) * x, 0.0, math.sqrt(2), _swish_slope, _swish_curvature),
}


def bias_act(x, b=None, dim=1, act='linear', alpha=None, gain=None, clamp=None, impl=None):
    """clamp(act(x + b) * gain).

    x: any shape; b: [x.shape[dim]] or None; act: a name in ACTIVATIONS; alpha (>= 0), gain: None takes the activation's own;
    clamp: largest magnitude of the output, or None. Returns the shape and dtype of x. Differentiable to any order.

    impl: 'ref', plain PyTorch; 'cuda', the operator (x on a GPU); None: the operator where x is on a GPU and it can be built
    (see custom_ops). They differ by rounding, and where the output equals +-clamp: there the operator's derivative is 0.
    """
    spec = ACTIVATIONS[act]
    alpha = spec.alpha if alpha is None else alpha
    gain = spec.gain if gain is None else gain
    b = None if b is None else b.to(x.dtype)
    if act == 'lrelu' and alpha < 0:
        raise ValueError(f'bias_act: alpha must not be negative, got {alpha}')
    if custom_ops.choose('bias_act', x.device.type, impl) == 'cuda':
        return torch.ops.mimic3d.bias_act(x, b, dim, act, alpha, gain, clamp)
    return _reference(x, b, dim, act, alpha, gain, clamp)


def _reference(x, b, dim, act, alpha, gain, clamp):
    """The specification."""
    if b is not None:
        x = x + _along(b, x, dim)
    x = ACTIVATIONS[act].function(x, alpha)
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
# The derivative is taken from y, which the next layer keeps anyway, and not from x. Only swish, which is not monotonic,
# takes it from x + b. This `reference` is an ordinary argument of bias_act_grad with a derivative of its own, so that
# second derivatives reach x through it.

torch.library.define('mimic3d::bias_act',
                     '(Tensor x, Tensor? b, int dim, str act, float alpha, float gain, float? clamp) -> Tensor')
# Returns the gradients of x and, summed over all dimensions but bias_dim, of b; without bias_dim the latter is empty.
torch.library.define('mimic3d::bias_act_grad',
                     '(Tensor grad_output, Tensor reference, int? bias_dim, str act, float alpha, float gain, float? clamp) '
                     '-> (Tensor, Tensor)')


@torch.library.register_fake('mimic3d::bias_act')
def _(x, b, dim, act, alpha, gain, clamp):
    return torch.empty_like(x)


@torch.library.register_fake('mimic3d::bias_act_grad')
def _(grad_output, reference, bias_dim, act, alpha, gain, clamp):
    return torch.empty_like(reference), reference.new_empty([0 if bias_dim is None else reference.shape[bias_dim]])


@torch.library.impl('mimic3d::bias_act', 'cpu')
def _(x, b, dim, act, alpha, gain, clamp):
    return torch.empty_like(x).copy_(_reference(x, b, dim, act, alpha, gain, clamp))


@torch.library.impl('mimic3d::bias_act_grad', 'cpu')
def _(grad_output, reference, bias_dim, act, alpha, gain, clamp):
    slope = ACTIVATIONS[act].slope(_before_gain(reference, act, gain), alpha)
    grad = _unless_clamped(grad_output * gain * slope, reference, act, alpha, gain, clamp)
    grad = torch.empty_like(reference).copy_(grad)
    return grad, _sum_along(grad, bias_dim)


def _sum_along(grad, dim):
    """[grad.shape[dim]], or nothing, [0], without a dim."""
    if dim is None:
        return grad.new_empty([0])
    others = [axis for axis in range(grad.ndim) if axis != dim]
    return grad.sum(others) if others else grad.clone()


def _before_gain(reference, act, gain):
    """What the slope is a function of: the activation's value, or, for swish, its argument."""
    return reference if act == 'swish' or gain in (0, 1) else reference / gain


def _unless_clamped(grad, reference, act, alpha, gain, clamp):
    if clamp is None:
        return grad
    y = _reference(reference, None, 1, act, alpha, gain, None) if act == 'swish' else reference
    return grad.where(y.abs() < clamp, 0)


def _needs_reference(act, clamp):
    return act != 'linear' or clamp is not None


def _save_for_grad(ctx, inputs, output):
    x, b, ctx.dim, *ctx.settings = inputs
    act, _, _, clamp = ctx.settings
    if act == 'swish':
        ctx.save_for_backward(x, b)
    elif _needs_reference(act, clamp):
        ctx.save_for_backward(output)


def _grad(ctx, grad_output):
    act, _, gain, clamp = ctx.settings
    bias_dim = ctx.dim if ctx.needs_input_grad[1] else None
    if _needs_reference(act, clamp):
        grad, grad_b = torch.ops.mimic3d.bias_act_grad(grad_output, _reference_for_grad(ctx), bias_dim, *ctx.settings)
    else:
        grad = grad_output if gain == 1 else grad_output * gain
        grad_b = _sum_along(grad, bias_dim)
    return grad, None if bias_dim is None else grad_b, None, None, None, None, None


def _reference_for_grad(ctx):
    if ctx.settings[0] != 'swish':
        return ctx.saved_tensors[0]
    x, b = ctx.saved_tensors
    return x if b is None else x + _along(b, x, ctx.dim)


def _save_for_grad_grad(ctx, inputs, output):
    grad_output, reference, ctx.bias_dim, *ctx.settings = inputs
    smooth = ACTIVATIONS[ctx.settings[0]].curvature is not None
    ctx.save_for_backward(reference, grad_output if smooth else None)
    ctx.set_materialize_grads(False)  # of the two outputs often one only is used


def _grad_grad(ctx, grad, grad_of_b):
    """bias_act_grad is linear in grad_output; in the reference it changes by the slope's own derivative."""
    reference, grad_output = ctx.saved_tensors
    if grad_of_b is not None and ctx.bias_dim is not None:
        spread = _along(grad_of_b, reference, ctx.bias_dim)
        grad = spread.expand(reference.shape) if grad is None else grad + spread
    grad_grad_output, grad_reference = None, None
    if grad is not None:
        grad_grad_output, _ = torch.ops.mimic3d.bias_act_grad(grad, reference, None, *ctx.settings)
        if grad_output is not None and ctx.needs_input_grad[1]:
            grad_reference = _grad_of_reference(grad, grad_output, reference, *ctx.settings)
    return grad_grad_output, grad_reference, None, None, None, None, None


def _grad_of_reference(grad, grad_output, reference, act, alpha, gain, clamp):
    curvature = ACTIVATIONS[act].curvature(_before_gain(reference, act, gain))
    # The slope is a function of the reference divided by the gain, which cancels the gain in front; not so for swish.
    factor = gain if act == 'swish' else (0 if gain == 0 else 1)
    return _unless_clamped(grad * grad_output * curvature * factor, reference, act, alpha, gain, clamp)


torch.library.register_autograd('mimic3d::bias_act', _grad, setup_context=_save_for_grad)
torch.library.register_autograd('mimic3d::bias_act_grad', _grad_grad, setup_context=_save_for_grad_grad)
