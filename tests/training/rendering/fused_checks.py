"""The fused kernels against the reference implementation in plain PyTorch. Run by test_fused.py, in a process of its own.

TRITON_INTERPRET decides, when Triton is first imported, whether kernels are compiled for a GPU or interpreted on the
CPU. These checks run either way, and pytest does not collect them by itself.
"""

import os

import pytest
import torch
import torch.nn.functional as F

from tests.helpers import assert_close
from tests.tiny import tiny_config
from torch_utils.ops.triplane import FusedField, channels_last, triplane_pixels, triplane_samples
from torch_utils.random import BatchRandom
from training.config import PLANE_AXES, RenderingConfig
from training.networks.generator import Generator, Planes
from training.rendering import fused, volume
from training.rendering.cameras import view_label

INTERPRETED = os.environ.get('TRITON_INTERPRET') == '1'
DEVICE = 'cpu' if INTERPRETED else 'cuda'
OUTPUTS, GRADIENTS = 1e-5, 1e-4  # of scale


class Example:
    """A random field and random rays; some samples lie outside the box, and rays of the last image hit nothing."""

    def __init__(
        self,
        sizes=((6, 5), (11, 12)),
        colors=3,
        channels=8,
        units=12,
        box_size=1.3,
        axes=PLANE_AXES['mimic3d'],
        images=2,
        rays=9,
        samples=4,
    ):
        shapes = [(images, 3, channels, *size) for size in sizes]
        self.planes = [torch.randn(shape, device=DEVICE, requires_grad=True) for shape in shapes]
        shapes = ((units, channels), (units,), (1 + colors, units), (1 + colors,))
        self.mlp = [torch.randn(shape, device=DEVICE, requires_grad=True) for shape in shapes]
        self.directions = F.normalize(torch.randn(images, rays, 3, device=DEVICE), dim=-1)
        self.origins = torch.randn(images, rays, 3, device=DEVICE) * 0.4
        self.origins[-1, rays // 2 :] = 10.0
        self.depths = torch.rand(images, rays, samples, device=DEVICE)
        self.box_size, self.axes = box_size, axes

    def decoder(self, features, colors):
        w1, b1, w2, b2 = self.mlp
        values = F.linear(F.softplus(F.linear(features, w1, b1)), w2, b2)
        return values[..., :1], torch.sigmoid(values[..., 1:]) * 1.002 - 0.001

    def reference(self, **options):
        """Raw density [N, M, S] and colours [N, M, S, n]."""
        field = volume.TriplaneField(self.planes, self.decoder, self.box_size, self.axes, color_channels=len(self.mlp[-1]) - 1)
        return volume.evaluate(field, self.origins, self.directions, self.depths, **options)

    def arguments(self, precision='fp32'):
        planes = [channels_last(p, precision) for p in self.planes]
        field = FusedField(planes, *self.mlp, self.box_size, self.axes, precision)
        return field, self.origins, self.directions, self.depths

    def fused(self, precision='fp32', **options):
        return triplane_samples(*self.arguments(precision), **options)

    def fused_pixels(self, weights):
        return triplane_pixels(*self.arguments(), weights)


EXAMPLES = {
    'one set of planes, density only': dict(sizes=((4, 4),), colors=0),
    'two sets, eg3d order': dict(axes=PLANE_AXES['eg3d']),
    'a small box, 32 colours': dict(sizes=((3, 7), (16, 2)), box_size=0.4, colors=32, channels=16),
    'a large box, one sample': dict(box_size=7.0, samples=1, rays=40, images=1),
}


def assert_same_gradients(results, expected, inputs):
    """Both outputs' gradients for one random probe; every input must get one."""
    probes = [torch.randn_like(x) for x in expected]
    for a, b in zip(torch.autograd.grad(results, inputs, probes), torch.autograd.grad(expected, inputs, probes)):
        assert_close(a, b, GRADIENTS)


@pytest.mark.parametrize('name', EXAMPLES)
def test_samples_and_their_gradients(name):
    example = Example(**EXAMPLES[name])
    results, expected = zip(*((a, b) for a, b in zip(example.fused(), example.reference()) if b.numel()))
    for a, b in zip(results, expected):
        assert_close(a, b, OUTPUTS)
    assert_same_gradients(results, expected, [*example.mlp, *example.planes])


@pytest.mark.parametrize('name', [name for name, values in EXAMPLES.items() if values.get('colors') != 0])
def test_weighted_colors_and_their_gradients(name):
    example = Example(**EXAMPLES[name])
    weights = torch.randn_like(example.depths)
    weights[..., 0] *= 1e-2  # samples that weigh little count; those that weigh nothing are passed over
    weights[..., 1:2] = 0.0
    weights.requires_grad_()
    result = example.fused_pixels(weights)
    expected = volume.weighted_colors(None, None, None, example.depths, weights, example.reference()[1])
    assert_close(result, expected, OUTPUTS)
    assert_same_gradients([result], [expected], [*example.mlp, *example.planes, weights])


def test_only_chosen_samples_are_computed():
    example = Example()
    wanted = torch.rand_like(example.depths) < 0.3
    with torch.no_grad():
        density, colors = example.reference()
        for results in (example.reference(chosen=wanted), example.fused(chosen=wanted)):
            assert_close(results[0], density * wanted, OUTPUTS)
            assert_close(results[1], colors * wanted[..., None], OUTPUTS)


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
        for result, expected in zip(example.fused(precision), example.reference()):
            assert float((result - expected).abs().max() / expected.abs().max()) < allowed


@pytest.mark.parametrize('precision', ['tf32', 'fp16'])
def test_small_gradients_do_not_vanish(precision):
    """Those of one sample of a large image are often below fp16's range."""
    example, scale = Example(), 1e-9
    found = []
    for factor in (1.0, scale):
        density, colors = example.fused(precision)
        gradients = torch.autograd.grad((density.sum() + colors.sum()) * factor, [*example.planes, *example.mlp])
        found.append([gradient / factor for gradient in gradients])
    for large, small in zip(*found):
        assert_close(small, large, 1e-3)


@pytest.mark.parametrize('samples, importance, rays', [(9, 6, 70), (4, 5, 1), (16, 16, 17)])
def test_everything_along_rays(samples, importance, rays):
    near = torch.rand(2, rays, 1, device=DEVICE) + 1
    depths = fused.stratified_depths(near, near + 1, torch.rand(2, rays, samples, device=DEVICE))
    raw, u = torch.randn(2, rays, samples, device=DEVICE) * 5, torch.rand(2, rays, importance, device=DEVICE)
    u[..., 0], u[..., -1] = 0.0, 1.0
    weights = volume.interval_weights(raw, depths)
    assert_close(fused.interval_weights(raw, depths), weights, OUTPUTS)
    finer = volume.importance_depths(depths, weights, u)
    assert_close(fused.importance_depths(depths, weights, u), finer, OUTPUTS)
    drawn = fused.concat_samples(depths, finer)
    assert torch.equal(drawn, volume.concat_samples(depths, finer))
    merged, order = volume.sort_depths(drawn)
    fused_merged, fused_order = fused.sort_depths(drawn)
    assert torch.equal(fused_merged, merged) and torch.equal(fused_order.long(), order)

    raw = (torch.randn(2, rays, samples + importance, device=DEVICE) * 5).requires_grad_()
    results, expected = fused.composite(raw, fused_merged, fused_order), volume.composite(raw, merged, order)
    for a, b in zip(results, expected):
        assert_close(a, b, OUTPUTS)
    assert_same_gradients(results, expected, [raw])


def test_colors_are_joined_like_all_else():
    first, second = torch.rand(2, 3, 4, 5, device=DEVICE), torch.rand(2, 3, 6, 5, device=DEVICE)
    joined = fused.concat_samples(first, second)
    assert torch.equal(joined, volume.concat_samples(first, second)) and joined.permute(3, 2, 0, 1).is_contiguous()


def test_compositing_without_an_order():
    raw, depths = torch.randn(1, 3, 6, device=DEVICE), torch.rand(1, 3, 6, device=DEVICE).cumsum(-1)
    order = torch.arange(6, device=DEVICE, dtype=torch.int32).expand(1, 3, 6)
    for a, b in zip(fused.composite(raw, depths), fused.composite(raw, depths, order)):
        assert torch.equal(a, b)


def test_gradients_through_opaque_and_empty_intervals():
    """Where intervals let nothing through, or everything, the backward pass still agrees."""
    raw = torch.tensor([[[-200.0, -200.0, 300.0, 300.0, -200.0, 1.0]]], device=DEVICE).requires_grad_()
    depths = torch.arange(6.0, device=DEVICE)[None, None]
    result, expected = fused.composite(raw, depths)[0], volume.composite(raw, depths)[0]
    assert_close(result, expected, OUTPUTS)
    probe = torch.randn_like(expected)
    (a,) = torch.autograd.grad(result, raw, probe)
    (b,) = torch.autograd.grad(expected, raw, probe)
    assert torch.isfinite(a).all()
    assert_close(a, b, GRADIENTS)


# Whole renders


@pytest.fixture
def renderer(monkeypatch):
    """renderer('fused') or renderer('ref'): force the steps of the renders that follow."""
    return lambda name: monkeypatch.setenv('MIMIC3D_RENDERER', name)


def generator_and_camera(near=2.25, far=3.3, white=False, plane_order='mimic3d'):
    """A tiny generator, random in every way that a trained one is, and cameras that also see what is beside the box."""
    rendering = RenderingConfig(near=near, far=far, white_background=white, depth_samples=5, importance_samples=3, focal=1.0)
    torch.manual_seed(0)
    G = Generator(tiny_config(rendering=rendering, render_resolution=3, image_resolution=16)).to(DEVICE)
    G.plane_axes = PLANE_AXES[plane_order]  # of what is rendered, whatever the planes were made as
    G.decoder.output.weight.data[0] *= 4
    G.decoder.output.bias.data[0] = 6  # the depth of rays that see next to nothing is next to undefined
    c = view_label(G.config, yaw=torch.tensor([-0.3, 0.4]), pitch=torch.zeros(2)).to(DEVICE)
    planes = G.planes(G.mapping(torch.randn(2, 8, device=DEVICE), c), noise_mode='const')
    return G, Planes(*(p.detach() * 4 for p in planes)), c


RENDERS = {
    'training render of the 2D branch': dict(branch='2d'),
    'patch, on white, eg3d planes': dict(branch='3d', patch=((0, 3), (13, 5)), white=True, plane_order='eg3d'),
    'near and far by the box': dict(branch='3d', render_resolution=3, near='auto', far='auto'),
}


@pytest.mark.parametrize('name', RENDERS)
def test_a_render_and_its_gradients(name, renderer):
    """The same function and the same random numbers, whichever steps it takes."""
    options = dict(RENDERS[name])
    setup = {key: options.pop(key) for key in ('white', 'plane_order', 'near', 'far') if key in options}
    G, planes, c = generator_and_camera(**setup)
    if 'patch' in options:
        options['patch'] = torch.tensor(options['patch'], device=DEVICE)
    ws = torch.randn(2, G.backbone.num_ws, 16, device=DEVICE)
    probes, results = None, []
    for which in ('ref', 'fused'):
        renderer(which)
        inputs = [p.clone().requires_grad_() for p in planes]
        out = G.render(Planes(*inputs), c, ws=ws, random=BatchRandom.keyed((3,), 2, DEVICE), **options)
        probes = probes or [torch.randn_like(out['image_raw']), torch.randn_like(out['image_depth'])]
        wanted = [*inputs[: 1 if options['branch'] == '2d' else 2], *G.decoder.parameters()]
        finite = out['image_depth'].isfinite()
        scalar = (out['image_raw'] * probes[0]).sum() + (out['image_depth'] * probes[1])[finite].sum()
        results.append((out, torch.autograd.grad(scalar, wanted)))
    (expected, expected_gradients), (out, gradients) = results
    for key in ('image_raw', 'image_depth'):
        assert_close(out[key], expected[key], OUTPUTS)
    for a, b in zip(gradients, expected_gradients):
        assert_close(a, b, GRADIENTS)


@pytest.mark.parametrize('branch, resolution', [('3d', 5), ('2d', 3)])
def test_skipping_takes_the_same_samples(branch, resolution, renderer):
    G, planes, c = generator_and_camera()
    ws = torch.randn(2, G.backbone.num_ws, 16, device=DEVICE)
    images = []
    for which in ('ref', 'fused'):
        renderer(which)
        with torch.no_grad():
            images.append(
                G.render(planes, c, branch, ws=ws, sampling='deterministic', render_resolution=resolution, skip=0.02)['image_raw']
            )
    assert_close(images[1], images[0], 1e-4)


def test_chunks_change_nothing(renderer, monkeypatch):
    renderer('fused')
    G, planes, c = generator_and_camera()
    images = []
    for points in (2**22, 2 * 8 * 7):
        monkeypatch.setattr('training.rendering.volume.MAX_POINTS_PER_PASS', points)
        with torch.no_grad():
            images.append(G.render(planes, c, '3d', sampling='deterministic', render_resolution=4)['image'])
    assert_close(images[1], images[0], 1e-6)
