"""The steps of a volume render in fused Triton kernels, and whether they or those of `training.rendering.volume` run.

The steps have the names, arguments and results of the reference implementation there, where they are described. In memory
samples are the first axis, so that neighbouring rays lie side by side. Few colours are computed and kept together with the
density. Where there are many, density comes first and colours are weighted in place, in a second evaluation, so that no tensor
ever holds the colours of all samples: `evaluate` then gives None for them.
"""

import functools
import logging
import os
from typing import NamedTuple

import torch

from dnnlib.errors import UserError
from dnnlib.files import cache_path
from torch_utils import custom_ops, distributed
from training.rendering import volume

try:
    from torch_utils.ops import ray_samples, triplane

    interval_weights, importance_depths = ray_samples.interval_weights, ray_samples.importance_depths
    sort_depths, composite = ray_samples.sort_depths, ray_samples.composite
    _NO_TRITON = None
except ImportError as error:  # most platforms without CUDA have no Triton
    _NO_TRITON = f'Triton cannot be imported ({error})'

VARIABLE = 'MIMIC3D_RENDERER'
CHOICES = ('fused', 'ref')
FEW_COLORS = 4


# Which steps run -----------------------------------------------------------------------------------------------------


def is_chosen(field, origins, directions):
    """Whether the fused steps render a field and rays: wherever they can. The one switch.

    The environment variable MIMIC3D_RENDERER, 'fused' or 'ref', forces a choice. Raises UserError where it names another, or
    fused steps where they cannot run.
    """
    forced = _forced()
    obstacle = None if forced == 'ref' else _obstacle(field, origins, directions, forced == 'fused')
    if forced == 'fused' and obstacle:
        raise UserError(f'{VARIABLE}=fused cannot render here: {obstacle}; set {VARIABLE}=ref, or unset it')
    chosen = forced != 'ref' and not obstacle
    _log_once('fused Triton kernels' if chosen else 'plain PyTorch', f'{VARIABLE}={forced}' if forced else obstacle)
    return chosen


def agree_on_kernels(device):
    """Let all processes decide alike whether the fused steps and the CUDA operators are used; each must call it at its start.

    device: the torch.device that this process renders on. Raises UserError where the environment's demands differ.
    """
    distributed.check_same(VARIABLE, _forced())
    if device.type == 'cuda' and _forced() != 'ref' and not _NO_TRITON:
        _problem_of_triton.agree(device)
    custom_ops.agree()


def _forced():
    forced = os.environ.get(VARIABLE) or None
    if forced not in (None, *CHOICES):
        raise UserError(f'{VARIABLE} must be {" or ".join(CHOICES)}, got {forced!r}; unset it to let the renderer choose')
    return forced


def _obstacle(field, origins, directions, forced):
    """Why the fused kernels cannot render this, or None."""
    if _NO_TRITON:
        return _NO_TRITON
    interpreted = forced and os.environ.get('TRITON_INTERPRET') == '1'
    if not (origins.is_cuda or interpreted):
        return f'the fused kernels need a CUDA GPU, and the tensors are on the {origins.device.type}'
    problem = _problem_of_triton(origins.device) if origins.is_cuda else None
    if problem:
        return problem
    if not isinstance(field, volume.TriplaneField):
        return 'the field is not one of tri-planes'
    if torch.is_grad_enabled() and (origins.requires_grad or directions.requires_grad):
        return 'the fused kernels have no gradient for rays'
    return None


@distributed.Obstacle
def _problem_of_triton(device):
    """Why Triton cannot build a kernel for a GPU, in one line, or None. It takes a C compiler and Python's headers.

    Raises torch.OutOfMemoryError where the GPU is full: it may not be so the next time.
    """
    _give_triton_a_cache()
    try:
        sort_depths(torch.zeros(1, 1, 2, device=device))
    except Exception as error:  # as many types as there are reasons
        reason = ' '.join(str(error).split())[:200]
        if isinstance(error, torch.OutOfMemoryError) or 'out of memory' in reason:
            raise torch.OutOfMemoryError(reason) from error
        return f'Triton cannot build them: {reason or type(error).__name__}'
    return None


def _give_triton_a_cache():
    """Where it would write by itself, or where it can if that is not possible: it knows only homes."""
    usual = os.environ.get('TRITON_CACHE_DIR') or os.path.join(os.environ.get('TRITON_HOME') or '~', '.triton', 'cache')
    os.environ['TRITON_CACHE_DIR'] = str(cache_path('kernels', usual).parent)


@functools.cache
def _log_once(name, reason):
    logging.getLogger('mimic3d').info('volume rendering by %s%s', name, f' ({reason})' if reason else '')


# The steps -----------------------------------------------------------------------------------------------------------


class FusedField(NamedTuple):
    """A TriplaneField as the kernels read it; its parts are the first arguments of `triplane`'s functions."""

    planes: list  # one or two [N, K, H, W, C]
    mlp: tuple  # triplane.FusedMLP
    geometry: tuple  # triplane.Geometry
    precision: str

    @property
    def few_colors(self):
        return len(self.mlp.output_bias) - 1 <= FEW_COLORS

    def density_only(self):
        """The same field without colours."""
        mlp = self.mlp
        return self._replace(mlp=mlp._replace(output_weight=mlp.output_weight[:1], output_bias=mlp.output_bias[:1]))


def prepare(field):
    planes = [triplane.channels_last(planes, field.precision) for planes in field.planes]
    return FusedField(planes, triplane.FusedMLP(*field.mlp()), triplane.Geometry(field.box_size, field.axes), field.precision)


def stratified_depths(near, far, jitter):
    return triplane.samples_last(triplane.samples_first(volume.stratified_depths(near, far, jitter)))


def evaluate(field, origins, directions, depths, chosen=None):
    evaluated = field if field.few_colors else field.density_only()
    density, colors = triplane.triplane_samples(*evaluated, origins, directions, depths, chosen)
    return density, colors if field.few_colors else None


def join(first, second):
    if first is None:
        return None
    return triplane.samples_last(torch.cat([triplane.samples_first(x) for x in (first, second)], dim=-3))


def weighted_colors(field, origins, directions, depths, weights, colors):
    if colors is None:
        return triplane.triplane_pixels(*field, origins, directions, depths, weights)
    return (weights[..., None] * colors).sum(dim=2)


def density_limits(bounds, origins, directions, depths):
    return triplane.grid_values(bounds.grid, origins, directions, depths, bounds.box_size)


def bytes_per_sample(field):
    """Depths, densities, weights, order and few colours, some of them twice."""
    return 120
