"""The steps of a volume render in fused Triton kernels, and whether they or those of `training.rendering.volume` run.

The steps have the names, arguments and results of the reference implementation there, where they are described; the field is
what `prepare` gives, a triplane.FusedField. In memory samples are the first axis, so that neighbouring rays lie side by side. Few
colours are computed and kept together with the density. Where there are many, density comes first and colours are weighted in
place, in a second evaluation, so that no tensor ever holds the colours of all samples: `evaluate` then gives None for them.

Hooks that the reference has for these steps: `prepare` lays planes out anew, once per render; `stratified_depths` and
`concat_samples` fix the layout of all that comes along rays; `weighted_colors` knows field and rays, to evaluate colours again;
`bytes_per_sample` is smaller here.
"""

import functools
import logging
import os

import torch

from dnnlib.errors import UserError
from dnnlib.files import cache_path
from torch_utils import custom_ops, distributed
from training.rendering import volume

try:
    from torch_utils.ops import ray_samples, triplane

    interval_weights, importance_depths = ray_samples.triton_interval_weights, ray_samples.triton_importance_depths
    sort_depths, composite = ray_samples.triton_sort_depths, ray_samples.triton_composite
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
    forced = custom_ops.demanded_by_user(VARIABLE, CHOICES)
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
    forced = custom_ops.demanded_by_user(VARIABLE, CHOICES)
    distributed.check_same(VARIABLE, forced)
    if device.type == 'cuda' and forced != 'ref' and not _NO_TRITON:
        _problem_of_triton.agree(device)
    custom_ops.agree()


def _obstacle(field, origins, directions, forced):
    """Why the fused kernels cannot render this, or None."""
    if _NO_TRITON:
        return _NO_TRITON
    interpreted = forced and os.environ.get('TRITON_INTERPRET') == '1'
    if not (origins.is_cuda or interpreted):
        return f'the fused kernels need a CUDA GPU, and the tensors are on the {origins.device.type}'
    if origins.is_cuda and _problem_of_triton(origins.device):
        return _problem_of_triton(origins.device)
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
    # Triton's kernels go where it would write them by itself, or where it can if that is not possible: it knows only homes.
    usual = os.environ.get('TRITON_CACHE_DIR') or os.path.join(os.environ.get('TRITON_HOME') or '~', '.triton', 'cache')
    os.environ['TRITON_CACHE_DIR'] = str(cache_path('kernels', usual).parent)
    try:
        sort_depths(torch.zeros(1, 1, 2, device=device))
    except Exception as error:  # as many types as there are reasons
        reason = ' '.join(str(error).split())[:200]
        if isinstance(error, torch.OutOfMemoryError) or 'out of memory' in reason:
            raise torch.OutOfMemoryError(reason) from error
        return f'Triton cannot build them: {reason or type(error).__name__}'
    return None


@functools.cache
def _log_once(name, reason):
    logging.getLogger('mimic3d').info('volume rendering by %s%s', name, f' ({reason})' if reason else '')


# The steps -----------------------------------------------------------------------------------------------------------


def prepare(field):
    planes = [triplane.channels_last(planes, field.precision) for planes in field.planes]
    return triplane.FusedField(planes, *field.mlp(), field.box_size, field.axes, field.precision)


def stratified_depths(near, far, jitter):
    return triplane.samples_last(triplane.samples_first(volume.stratified_depths(near, far, jitter)))


def evaluate(field, origins, directions, depths, chosen=None):
    if field.color_channels <= FEW_COLORS:
        return triplane.triplane_samples(field, origins, directions, depths, chosen)
    return triplane.triplane_samples(field.without_colors(), origins, directions, depths, chosen)[0], None


def concat_samples(first, second):
    if first is None:
        return None
    return triplane.samples_last(torch.cat([triplane.samples_first(x) for x in (first, second)], dim=-3))


def weighted_colors(field, origins, directions, depths, weights, colors):
    if colors is None:
        return triplane.triplane_pixels(field, origins, directions, depths, weights)
    return (weights[..., None] * colors).sum(dim=2)


def density_limits(bounds, origins, directions, depths):
    return triplane.grid_values(bounds.grid, origins, directions, depths, bounds.box_size)


def bytes_per_sample(field):
    """Depths, densities, weights, order and few colours, some of them twice."""
    return 120
