"""The fused renderer: its checks in a process of their own, through Triton's interpreter and on a GPU; that it compiles."""

import os
import subprocess
import sys

import pytest
import torch

from tests.helpers import ROOT

triton = pytest.importorskip('triton')


def run_checks(**environment):
    """Run tests/fused_checks.py in a fresh process; its output is shown where it fails."""
    command = [sys.executable, '-m', 'pytest', '-q', '-p', 'no:cacheprovider', 'tests/fused_checks.py']
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
    constants = {**constants, **{name: None for name in absent}}
    signature = {name: 'constexpr' if name in constants else 'i32' if name in INTEGERS else POINTERS.get(name, '*fp32')
                 for name in kernel.arg_names}
    source = triton.compiler.ASTSource(fn=kernel, signature=signature, constexprs=constants)
    target = triton.backends.compiler.GPUTarget('cuda', capability, 32)
    return triton.compile(source, target=target, options=launch)


def field_constants(colours, precision, block):
    from torch_utils.ops import triplane
    mlp = triplane.FusedMLP(torch.empty(64, 32), torch.empty(64), torch.empty(1 + colours, 64), torch.empty(1 + colours))
    return triplane._constants(triplane.Geometry(1.0, ('xy', 'yz', 'zx')), precision, mlp, block)


@pytest.mark.slow
@pytest.mark.parametrize('capability', [80, 90])
@pytest.mark.parametrize('precision', ['fp32', 'tf32x3', 'fp16'])
def test_field_kernels_compile(capability, precision):
    """At the published sizes, and within the shared memory that a block has on these GPUs."""
    from torch_utils.ops import triplane
    few, many = ('grad_pixels', 'weights', 'grad_weights'), ('grad_density', 'grad_colours')
    cases = [(triplane._samples_kernel, 3, triplane.SAMPLES_PER_BLOCK, {}, ('chosen',)),
             (triplane._samples_kernel, 0, triplane.SAMPLES_PER_BLOCK, {}, ()),
             (triplane._pixels_kernel, 32, triplane.RAYS_PER_BLOCK, dict(SAMPLES=96), ()),
             (triplane._backward_kernel, 3, triplane.BACKWARD_SAMPLES_PER_BLOCK, dict(ROUNDS=8), few),
             (triplane._backward_kernel, 32, triplane.BACKWARD_SAMPLES_PER_BLOCK, dict(ROUNDS=8), many)]
    for kernel, colours, block, more, absent in cases:
        constants = {**field_constants(colours, precision, block), **more}
        compiled = compile_kernel(kernel, capability, triplane.LAUNCH, constants, absent)
        assert compiled.metadata.shared < 99 * 1024


@pytest.mark.slow
@pytest.mark.parametrize('capability', [80, 90])
def test_ray_kernels_compile(capability):
    from torch_utils.ops import ray_samples, triplane
    rays = dict(SAMPLES=96, BLOCK=ray_samples.RAYS_PER_BLOCK)
    tile = dict(SAMPLES=96, BLOCK=ray_samples.RAYS_PER_TILE)
    cases = [(ray_samples._interval_weights_kernel, rays), (ray_samples._composite_kernel, rays),
             (ray_samples._composite_backward_kernel, rays), (ray_samples._sort_kernel, dict(tile, SAMPLE_BLOCK=128)),
             (ray_samples._importance_kernel, dict(tile, DRAWN=48, DRAWN_BLOCK=64)),
             (triplane._grid_kernel, dict(TO_PLANE=2.0, BLOCK=triplane.SAMPLES_PER_GRID_BLOCK))]
    for kernel, constants in cases:
        assert 'cubin' in compile_kernel(kernel, capability, ray_samples.LAUNCH, constants).asm
