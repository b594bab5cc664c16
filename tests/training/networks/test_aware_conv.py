"""The 3D-aware convolution without concatenation against its specification."""

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

from tests.helpers import assert_close
from torch_utils.ops.upfirdn2d import setup_filter
from training.networks.aware_conv import align_planes, aware_modulated_conv2d, plane_modulated_conv2d

CASES = [dict(kernel=3, up=1), dict(kernel=3, up=2), dict(kernel=1, up=1)]


def specification(planes, weight, styles, **options):
    return plane_modulated_conv2d(align_planes(planes), weight, styles, **options)


def example(resolution, kernel, up, channels=4):
    planes = torch.randn(2, 3, channels, resolution, resolution, requires_grad=True)
    weight = torch.randn(5, 3 * channels, kernel, kernel, requires_grad=True)
    styles = torch.randn(2, 3, 3 * channels, requires_grad=True)
    return (planes, weight, styles), dict(up=up, resample_filter=setup_filter([1, 3, 3, 1]), demodulate=kernel == 3)


@pytest.mark.parametrize('case', CASES, ids=str)
@pytest.mark.parametrize('resolution', [4, 8, 16, 32])
def test_equals_the_convolution_of_aligned_planes(case, resolution):
    arguments, options = example(resolution, **case)
    slow, fast = specification(*arguments, **options), aware_modulated_conv2d(*arguments, **options)
    assert_close(fast.detach(), slow.detach(), 1e-5)
    probe = torch.randn_like(slow)
    for a, b in zip(torch.autograd.grad(fast, arguments, probe), torch.autograd.grad(slow, arguments, probe)):
        assert_close(a, b, 1e-5)


@pytest.mark.parametrize('case', CASES, ids=str)
def test_takes_fewer_multiplications(case):
    arguments, options = example(64, **case, channels=32)

    def count(function):
        with FlopCounterMode(display=False) as counter, torch.no_grad():
            function(*arguments, **options)
        return counter.get_total_flops()

    assert count(aware_modulated_conv2d) <= 0.45 * count(specification)


def test_alignment_agrees_with_the_reference(goldens):
    arrays, _ = goldens('ops')
    aligned = align_planes(arrays['aware_in'].unflatten(0, (2, 3))).flatten(0, 1)
    assert_close(aligned, arrays['aware_out'], 1e-6)
