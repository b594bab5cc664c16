"""The fused kernels against their twins in plain PyTorch. Run by tests/test_fused.py, in a process of its own.

TRITON_INTERPRET decides, when Triton is first imported, whether kernels are compiled for a GPU or interpreted on the
CPU. These checks run either way, and pytest does not collect them by itself.
"""

import os

import pytest
import torch
import torch.nn.functional as F

from tests.helpers import assert_close
from torch_utils.ops import ray_samples
from torch_utils.ops.triplane import FusedMLP, Geometry, channels_last, triplane_pixels, triplane_samples
from training.config import PLANE_AXES
from training.rendering import compositing, sampling
from training.rendering.planes import sample_planes

INTERPRETED = os.environ.get('TRITON_INTERPRET') == '1'
DEVICE = 'cpu' if INTERPRETED else 'cuda'
OUTPUTS, GRADIENTS = 1e-5, 1e-4  # of scale


def samples_first(x):
    return x.movedim(-1, 0)


class Example:
    """A random field and random rays; some samples lie outside the box, and rays of the last image hit nothing."""

    def __init__(self, sizes=((6, 5), (11, 12)), colours=3, channels=8, units=12, box_size=1.3, axes=PLANE_AXES['mimic3d'],
                 images=2, rays=9, samples=4):
        shapes = [(images, 3, channels, *size) for size in sizes]
        self.planes = [torch.randn(shape, device=DEVICE, requires_grad=True) for shape in shapes]
        shapes = ((units, channels), (units,), (1 + colours, units), (1 + colours,))
        self.mlp = FusedMLP(*(torch.randn(shape, device=DEVICE, requires_grad=True) for shape in shapes))
        self.directions = F.normalize(torch.randn(images, rays, 3, device=DEVICE), dim=-1)
        self.origins = torch.randn(images, rays, 3, device=DEVICE) * 0.4
        self.origins[-1, rays // 2:] = 10.0
        self.depths = torch.rand(samples, images, rays, device=DEVICE)
        self.geometry = Geometry(box_size, axes)

    def twin(self):
        """Raw density [S, N, M] and colours [n, S, N, M]."""
        points = self.origins + self.directions * self.depths[..., None]
        features = sum(sample_planes(p, points.movedim(0, 1).flatten(1, 2), *self.geometry) for p in self.planes)
        w1, b1, w2, b2 = self.mlp
        values = F.linear(F.softplus(F.linear(features, w1, b1)), w2, b2)
        values = values.unflatten(1, (len(self.depths), -1)).permute(3, 1, 0, 2)
        return values[0], torch.sigmoid(values[1:]) * 1.002 - 0.001

    def fused(self, precision='fp32', **options):
        planes = [channels_last(p, precision) for p in self.planes]
        return triplane_samples(planes, self.mlp, self.origins, self.directions, self.depths, self.geometry, precision, **options)

    def fused_pixels(self, weights, precision='fp32'):
        planes = [channels_last(p, precision) for p in self.planes]
        return triplane_pixels(planes, self.mlp, self.origins, self.directions, self.depths, weights, self.geometry, precision)


EXAMPLES = {
    'one set of planes, density only': dict(sizes=((4, 4),), colours=0),
    'two sets, eg3d order': dict(axes=PLANE_AXES['eg3d']),
    'a small box, 32 colours': dict(sizes=((3, 7), (16, 2)), box_size=0.4, colours=32, channels=16),
    'a large box, one sample': dict(box_size=7.0, samples=1, rays=40, images=1),
}


def assert_same_gradients(fused, twin, inputs):
    """Both outputs' gradients for one random probe; every input must get one."""
    probes = [torch.randn_like(x) for x in twin]
    for a, b in zip(torch.autograd.grad(fused, inputs, probes), torch.autograd.grad(twin, inputs, probes)):
        assert_close(a, b, GRADIENTS)


@pytest.mark.parametrize('name', EXAMPLES)
def test_samples_and_their_gradients(name):
    example = Example(**EXAMPLES[name])
    fused, twin = example.fused(), example.twin()
    outputs = [i for i, x in enumerate(twin) if x.numel()]
    for i in outputs:
        assert_close(fused[i], twin[i], OUTPUTS)
    assert_same_gradients([fused[i] for i in outputs], [twin[i] for i in outputs], [*example.mlp, *example.planes])


@pytest.mark.parametrize('name', [name for name, values in EXAMPLES.items() if values.get('colours') != 0])
def test_weighted_colours_and_their_gradients(name):
    example = Example(**EXAMPLES[name])
    weights = torch.randn_like(example.depths).requires_grad_()
    fused, twin = example.fused_pixels(weights), torch.einsum('snm,csnm->nmc', weights, example.twin()[1])
    assert_close(fused, twin, OUTPUTS)
    used = [*example.mlp, *example.planes, weights]
    assert_same_gradients([fused], [twin], used)


def test_only_chosen_samples_are_computed():
    example = Example()
    wanted = torch.rand_like(example.depths) < 0.3
    with torch.no_grad():
        density, colours = example.fused(chosen=wanted.flatten().nonzero().squeeze(1))
        expected, expected_colours = example.twin()
    assert_close(density, expected * wanted, OUTPUTS)
    assert_close(colours, expected_colours * wanted, OUTPUTS)


def test_second_derivatives_are_refused():
    example = Example(images=1, rays=4, samples=2)
    with pytest.raises(RuntimeError, match='no second derivatives'):
        torch.autograd.grad(example.fused()[0].sum(), example.planes[0], create_graph=True)


def test_rays_that_want_a_gradient_are_refused():
    example = Example()
    example.origins.requires_grad_()
    with pytest.raises(ValueError, match='no gradient for rays'):
        example.fused()


@pytest.mark.parametrize('precision, allowed', [('fp16', 2e-3), ('bf16', 2e-2), ('tf32', 2e-3), ('tf32x3', 1e-5)])
def test_low_precision_is_close(precision, allowed):
    if INTERPRETED and precision != 'fp16':
        pytest.skip('the interpreter computes no products in TF32 or bf16')
    example = Example(channels=16, units=16)
    with torch.no_grad():
        for fused, twin in zip(example.fused(precision), example.twin()):
            assert float((fused - twin).abs().max() / twin.abs().max()) < allowed


@pytest.mark.parametrize('samples, importance, rays', [(9, 6, 70), (4, 5, 1), (16, 16, 17)])
def test_everything_along_rays(samples, importance, rays):
    near = torch.rand(2, rays, 1, device=DEVICE) + 1
    depths = sampling.stratified_depths(near, near + 1, torch.rand(2, rays, samples, device=DEVICE))
    raw, u = torch.randn(2, rays, samples, device=DEVICE) * 5, torch.rand(2, rays, importance, device=DEVICE)
    u[..., 0], u[..., -1] = 0.0, 1.0
    weights = compositing.interval_weights(raw, depths)
    fused_weights = ray_samples.interval_weights(samples_first(raw), samples_first(depths))
    assert_close(fused_weights, samples_first(weights), OUTPUTS)
    finer = sampling.importance_depths(depths, weights, u)
    assert_close(ray_samples.importance_depths(samples_first(depths), samples_first(weights), samples_first(u)),
                 samples_first(finer), OUTPUTS)
    merged, order = compositing.merge_depths(depths, finer)
    fused_merged, fused_order = ray_samples.sort_depths(samples_first(torch.cat([depths, finer], dim=-1)))
    assert torch.equal(fused_merged, samples_first(merged)) and torch.equal(fused_order.long(), samples_first(order))

    raw = (torch.randn(2, rays, samples + importance, device=DEVICE) * 5).requires_grad_()
    intervals = compositing.interval_weights(raw.gather(-1, order), merged)
    twin = [samples_first(compositing.unsort(compositing.sample_weights(intervals), order)), intervals.sum(dim=-1),
            (intervals * (merged[..., 1:] + merged[..., :-1]) / 2).sum(dim=-1)]
    fused = ray_samples.composite(samples_first(raw), fused_merged, fused_order)
    for a, b in zip(fused, twin):
        assert_close(a, b, OUTPUTS)
    assert_same_gradients(fused, twin, [raw])


def test_compositing_without_an_order():
    raw, depths = torch.randn(6, 1, 3, device=DEVICE), torch.rand(6, 1, 3, device=DEVICE).cumsum(0)
    order = torch.arange(6, device=DEVICE, dtype=torch.int32)[:, None, None].expand(6, 1, 3).contiguous()
    for a, b in zip(ray_samples.composite(raw, depths), ray_samples.composite(raw, depths, order)):
        assert torch.equal(a, b)


def test_gradients_through_opaque_and_empty_intervals():
    """Where intervals let nothing through, or everything, the backward pass still agrees."""
    raw = torch.tensor([-200.0, -200.0, 300.0, 300.0, -200.0, 1.0], device=DEVICE)[:, None, None].requires_grad_()
    depths = torch.arange(6.0, device=DEVICE)[:, None, None]
    weights = compositing.interval_weights(raw.movedim(0, -1), depths.movedim(0, -1))
    twin = samples_first(compositing.sample_weights(weights))
    fused = ray_samples.composite(raw, depths)[0]
    assert_close(fused, twin, OUTPUTS)
    probe = torch.randn_like(twin)
    a, = torch.autograd.grad(fused, raw, probe)
    b, = torch.autograd.grad(twin, raw, probe)
    assert torch.isfinite(a).all()
    assert_close(a, b, GRADIENTS)
