"""Bias, activation, gain and clamp in one call."""

import math
from typing import Callable, NamedTuple

import torch
import torch.nn.functional as F


class Activation(NamedTuple):
    function: Callable  # (x, alpha) -> y
    alpha: float  # slope of the negative side, where there is one
    gain: float  # keeps the second moment of normal inputs near 1


ACTIVATIONS = {
    'linear': Activation(lambda x, alpha: x, 0.0, 1.0),
    'relu': Activation(lambda x, alpha: F.relu(x), 0.0, math.sqrt(2)),
    'lrelu': Activation(lambda x, alpha: F.leaky_relu(x, alpha), 0.2, math.sqrt(2)),
    'tanh': Activation(lambda x, alpha: torch.tanh(x), 0.0, 1.0),
    'sigmoid': Activation(lambda x, alpha: torch.sigmoid(x), 0.0, 1.0),
    'elu': Activation(lambda x, alpha: F.elu(x), 0.0, 1.0),
    'selu': Activation(lambda x, alpha: F.selu(x), 0.0, 1.0),
    'softplus': Activation(lambda x, alpha: F.softplus(x), 0.0, 1.0),
    'swish': Activation(lambda x, alpha: torch.sigmoid(x) * x, 0.0, math.sqrt(2)),
}


def bias_act(x, b=None, dim=1, act='linear', alpha=None, gain=None, clamp=None):
    """clamp(act(x + b) * gain).

    x: any shape; b: [x.shape[dim]] or None; act: a name in ACTIVATIONS; alpha, gain: None takes the activation's own;
    clamp: largest magnitude of the output, or None. Returns the shape and dtype of x. Differentiable to any order.
    """
    spec = ACTIVATIONS[act]
    alpha = spec.alpha if alpha is None else alpha
    gain = spec.gain if gain is None else gain
    if b is not None:
        x = x + b.to(x.dtype).reshape([-1 if axis == dim else 1 for axis in range(x.ndim)])
    x = spec.function(x, alpha)
    if gain != 1:
        x = x * gain
    if clamp is not None:
        x = x.clamp(-clamp, clamp)
    return x
