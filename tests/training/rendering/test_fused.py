"""The fused steps of a render: when they run, their checks in a process of their own, and that they compile."""

import logging
import os
import subprocess
import sys

import pytest
import torch

from dnnlib.errors import UserError
from tests.helpers import ROOT
from training.config import RENDER_PRECISIONS, ConfigError, RenderingConfig
from training.rendering import fused

# Which steps run -----------------------------------------------------------------------------------------------------

ANY_FIELD, RAYS = None, (torch.zeros(1, 1, 3), torch.zeros(1, 1, 3))


@pytest.fixture
def nothing_forced(monkeypatch):
    monkeypatch.delenv('MIMIC3D_RENDERER', raising=False)


def test_a_cpu_renders_by_the_reference_implementation(nothing_forced):
    assert not fused.is_chosen(ANY_FIELD, *RAYS)


@pytest.mark.parametrize(
    'value, message',
    [
        ('quick', "MIMIC3D_RENDERER must be fused or ref, got 'quick'; unset it"),
        ('fused', 'MIMIC3D_RENDERER=fused cannot render here: .*; set MIMIC3D_RENDERER=ref, or unset it'),
    ],
)
def test_a_choice_that_cannot_be_is_one_clear_line(value, message, monkeypatch):
    monkeypatch.setenv('MIMIC3D_RENDERER', value)
    with pytest.raises(UserError, match=message) as raised:
        fused.is_chosen(ANY_FIELD, *RAYS)
    assert '\n' not in str(raised.value)


def test_without_triton_plain_pytorch_renders():
    """Where Triton is missing, which most platforms without CUDA are, everything is imported and says why."""
    code = (
        "import sys; sys.modules['triton'] = None; from training.rendering import fused; "
        'print(fused._obstacle(None, None, None, forced=True))'
    )
    result = subprocess.run([sys.executable, '-c', code], cwd=ROOT, capture_output=True, text=True, check=True)
    assert result.stdout.startswith('Triton cannot be imported (')


def test_the_choice_is_logged_once(caplog, monkeypatch):
    monkeypatch.setenv('MIMIC3D_RENDERER', 'ref')
    fused._log_once.cache_clear()
    with caplog.at_level(logging.INFO, 'mimic3d'):
        for _ in range(3):
            fused.is_chosen(ANY_FIELD, *RAYS)
    assert caplog.messages == ['volume rendering by plain PyTorch (MIMIC3D_RENDERER=ref)']


def test_precisions_of_the_configuration_are_those_of_the_kernels():
    triplane = pytest.importorskip('torch_utils.ops.triplane')
    assert tuple(triplane.PRECISIONS) == RENDER_PRECISIONS
    with pytest.raises(ConfigError, match="precision: 'fp8' is not one of"):
        RenderingConfig(precision='fp8')


# Checks of the kernels -----------------------------------------------------------------------------------------------


def run_checks(**environment):
    """Run fused_checks.py in a fresh process; its output is shown where it fails."""
    pytest.importorskip('triton')
    command = [sys.executable, '-m', 'pytest', '-q', '-p', 'no:cacheprovider', 'tests/training/rendering/fused_checks.py']
    result = subprocess.run(command, cwd=ROOT, env={**os.environ, **environment}, capture_output=True, text=True)
    assert result.returncode == 0, result.stdout + result.stderr


def test_kernels_in_the_interpreter():
    run_checks(TRITON_INTERPRET='1')


@pytest.mark.gpu
def test_kernels_on_the_gpu():
    run_checks(TRITON_INTERPRET='0')


# Compiling needs no GPU ----------------------------------------------------------------------------------------------

INTEGERS = ('count', 'samples', 'rays', 'rays_per_image', 'cells', 'coarse_height', 'coarse_width', 'fine_height', 'fine_width')
POINTERS = {'chosen': '*i64', 'order': '*i32'}  # all others are fp32


def compile_kernel(kernel, capability, launch, constants, absent=()):
    """Compile a kernel for GPUs of a compute capability; returns what Triton says of it."""
    triton = pytest.importorskip('triton')
    constants = {**constants, **dict.fromkeys(absent)}
    signature = {
        name: 'constexpr' if name in constants else 'i32' if name in INTEGERS else POINTERS.get(name, '*fp32')
        for name in kernel.arg_names
    }
    source = triton.compiler.ASTSource(fn=kernel, signature=signature, constexprs=constants)
    target = triton.backends.compiler.GPUTarget('cuda', capability, 32)
    return triton.compile(source, target=target, options=launch)


def field_constants(colors, precision, block):
    from torch_utils.ops import triplane

    mlp = torch.empty(64, 32), torch.empty(64), torch.empty(1 + colors, 64), torch.empty(1 + colors)
    return triplane._constants(triplane.FusedField([], *mlp, 1.0, ('xy', 'yz', 'zx'), precision), block)


@pytest.mark.slow
@pytest.mark.parametrize('capability', [80, 90])
@pytest.mark.parametrize('precision', ['fp32', 'tf32x3', 'fp16'])
def test_field_kernels_compile(capability, precision):
    """At the published sizes, and within the shared memory that a block has on these GPUs."""
    from torch_utils.ops import triplane

    few, many = ('grad_pixels', 'weights', 'grad_weights'), ('grad_density', 'grad_colors')
    cases = [
        (triplane._samples_kernel, 3, triplane.SAMPLES_PER_BLOCK, {}, ('chosen',)),
        (triplane._samples_kernel, 0, triplane.SAMPLES_PER_BLOCK, {}, ()),
        (triplane._pixels_kernel, 32, triplane.RAYS_PER_BLOCK, dict(SAMPLES=96), ()),
        (triplane._backward_kernel, 3, triplane.BACKWARD_SAMPLES_PER_BLOCK, dict(ROUNDS=8), few),
        (triplane._backward_kernel, 32, triplane.BACKWARD_SAMPLES_PER_BLOCK, dict(ROUNDS=8), many),
    ]
    for kernel, colors, block, more, absent in cases:
        constants = {**field_constants(colors, precision, block), **more}
        compiled = compile_kernel(kernel, capability, triplane.LAUNCH, constants, absent)
        assert compiled.metadata.shared < 99 * 1024


@pytest.mark.slow
@pytest.mark.parametrize('capability', [80, 90])
def test_ray_kernels_compile(capability):
    from torch_utils.ops import ray_samples, triplane

    rays = dict(SAMPLES=96, BLOCK=ray_samples.RAYS_PER_BLOCK)
    tile = dict(SAMPLES=96, BLOCK=ray_samples.RAYS_PER_TILE)
    cases = [
        (ray_samples._composite_kernel, dict(rays, sample_weights=None, opacities=None, moments=None, order=None)),
        (ray_samples._composite_kernel, dict(rays, interval_weights=None)),
        (ray_samples._composite_backward_kernel, rays),
        (ray_samples._sort_kernel, dict(tile, SAMPLE_BLOCK=128)),
        (ray_samples._importance_kernel, dict(tile, DRAWN=48, DRAWN_BLOCK=64)),
        (triplane._grid_kernel, dict(TO_PLANE=2.0, BLOCK=triplane.SAMPLES_PER_GRID_BLOCK)),
    ]
    for kernel, constants in cases:
        assert 'cubin' in compile_kernel(kernel, capability, ray_samples.LAUNCH, constants).asm
