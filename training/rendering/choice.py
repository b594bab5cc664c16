"""Which steps a volume render takes: fused kernels where they run, plain PyTorch elsewhere. The one switch."""

import functools
import importlib
import importlib.util
import logging
import os

import torch

from dnnlib.errors import UserError
from training.rendering import reference
from training.rendering.field import TriplaneField

VARIABLE = 'MIMIC3D_RENDERER'
CHOICES = ('fused', 'ref')


def choose_steps(field, origins, directions):
    """The module of steps for a field and rays: `training.rendering.fused` or `training.rendering.reference`.

    The environment variable MIMIC3D_RENDERER, 'fused' or 'ref', forces one. Raises UserError where it names another, or
    fused steps where they cannot run.
    """
    forced = os.environ.get(VARIABLE) or None
    if forced not in (None, *CHOICES):
        raise UserError(f'{VARIABLE} must be {" or ".join(CHOICES)}, got {forced!r}; unset it to let the renderer choose')
    obstacle = None if forced == 'ref' else _obstacle(field, origins, directions, forced == 'fused')
    if forced == 'fused' and obstacle:
        raise UserError(f'{VARIABLE}=fused cannot render here: {obstacle}; set {VARIABLE}=ref, or unset it')
    steps = reference if forced == 'ref' or obstacle else importlib.import_module('training.rendering.fused')
    _log_once(steps.NAME, f'{VARIABLE}={forced}' if forced else obstacle)
    return steps


def _obstacle(field, origins, directions, forced):
    """Why the fused kernels cannot render this, or None."""
    if importlib.util.find_spec('triton') is None:
        return 'Triton is not installed'
    interpreted = forced and os.environ.get('TRITON_INTERPRET') == '1'
    if not (origins.is_cuda or interpreted):
        return f'the fused kernels need a CUDA GPU, and the tensors are on the {origins.device.type}'
    problem = _problem_of_triton(origins.device) if origins.is_cuda else None
    if problem:
        return problem
    if not isinstance(field, TriplaneField):
        return 'the field is not one of tri-planes'
    if torch.is_grad_enabled() and (origins.requires_grad or directions.requires_grad):
        return 'the fused kernels have no gradient for rays'
    return None


@functools.cache
def _problem_of_triton(device):
    """Why Triton cannot build a kernel for a GPU, in one line, or None. It takes a C compiler and Python's headers."""
    from torch_utils.ops import ray_samples
    try:
        ray_samples.sort_depths(torch.zeros(2, 1, 1, device=device))
    except Exception as error:  # as many types as there are reasons
        reason = ' '.join(str(error).split())[:200]
        return f'Triton cannot build them: {reason or type(error).__name__}'
    return None


@functools.cache
def _log_once(name, reason):
    logging.getLogger('mimic3d').info('volume rendering by %s%s', name, f' ({reason})' if reason else '')
