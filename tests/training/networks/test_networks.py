"""Networks: sizes, the public face, what conditions what."""

import pytest
import torch
import torch.nn.functional as F

from tests.helpers import assert_close
from tests.tiny import tiny_config, tiny_generator
from torch_utils.ops.upfirdn2d import setup_filter, upfirdn2d
from torch_utils.random import BatchRandom
from training.config import ConfigError, GeneratorConfig, RenderingConfig
from training.networks.discriminator import DualDiscriminator, PatchDiscriminator, minibatch_std
from training.networks.generator import Generator
from training.networks.stylegan2 import conv2d, modulated_conv2d
from training.networks.superresolution import RenderSizeError
from training.presets import PRESETS, generator_config, resolve
from training.rendering.cameras import view_label


def millions(module):
    return sum(p.numel() for p in module.parameters()) / 1e6


def test_sizes_of_the_paper():
    """Paper, table 3 (docs/method.md, section 3)."""
    G = Generator(generator_config(PRESETS['ffhq512']))
    assert millions(G.backbone.blocks) + millions(G.mapping) == pytest.approx(29.0, abs=0.05)
    assert millions(G.backbone) + millions(G.mapping) == pytest.approx(32.5, abs=0.05)
    assert millions(G.superresolution) == pytest.approx(1.65, abs=0.005)
    assert millions(G) == pytest.approx(34.5, abs=0.05)


def test_the_variant_that_is_aware_in_its_latents_trains():
    """Both branches render, and every parameter of E learns from a plane that it only sees pooled."""
    G = tiny_generator(aware='latent')
    z, c = inputs(G)
    planes = G.planes(G.mapping(z, c), noise_mode='const')
    assert planes.coarse.shape == (2, 3, 8, 16, 16) and planes.residual.shape == (2, 3, 8, 32, 32)
    planes.coarse[:, 2].square().sum().backward()
    assert all(p.grad is not None and p.grad.abs().max() > 0 for p in G.backbone.parameters())
    first = G.backbone.blocks[0].const.grad.unflatten(0, (3, -1))
    assert all(plane.abs().max() > 0 for plane in first)
    assert G(z, c, branch='3d')['image'].shape == (2, 3, 32, 32)


@pytest.mark.parametrize('name', PRESETS)
def test_every_preset_resolves_and_builds(name):
    config = resolve(name, 'data.zip', 'out')
    assert type(config).from_dict(config.to_dict()) == config
    with torch.device('meta'):
        Generator(config.generator)
        DualDiscriminator(config.discriminator)
        PatchDiscriminator(config.patch_discriminator)


def test_presets_hold_the_numbers_of_the_method():
    config = resolve('afhq512', 'data.zip', 'out')
    assert (config.augment, config.stage1.loss.r1_gamma, config.stage1.loss.patch_weight) == ('ada', 5, 0.1)
    assert config.generator.rendering.camera_pivot == (0.0, 0.0, -0.06)
    assert (config.stage2.loss.density_spread, config.stage2.ada_kimg, config.stage2.ema_rampup) == (0.002, 100, None)
    assert (config.stage2.loss.blur_fade_kimg, config.stage2.loss.swap_start) == (0, 0.5)
    cars = resolve('shapenet128', 'data.zip', 'out').generator
    assert (cars.rendering.near, cars.rendering.far, cars.rendering.box_size) == (0.1, 2.6, 1.6)
    assert cars.rendering.white_background
    assert (cars.sr_input_resolution, cars.sr_channels, cars.rendering.depth_samples) == (64, (128, 64), 64)


@pytest.mark.parametrize(
    'values, message',
    [
        (dict(plane_resolution=48), 'power of two'),
        (dict(image_resolution=128), '2 or 4 times'),
        (dict(plane_order='zyx'), 'plane_order'),
        (dict(plane_order='eg3d'), '--aware=stream aligns planes'),
        (dict(surprise=1), 'no field surprise'),
    ],
)
def test_configurations_that_cannot_work_are_refused(values, message):
    with pytest.raises(ConfigError, match=message):
        GeneratorConfig.from_dict({**GeneratorConfig().to_dict(), **values})


def test_rendering_limits_are_checked():
    with pytest.raises(ConfigError, match='below far'):
        RenderingConfig(near=3.0, far=2.0)
    with pytest.raises(ConfigError, match="both be 'auto'"):
        RenderingConfig(near='auto', far=2.0)


def inputs(G, n=2):
    z = torch.randn(n, G.config.z_dim)
    c = view_label(G.config, yaw=torch.linspace(-0.3, 0.3, n), pitch=torch.zeros(n))
    return z, c


def test_the_public_face():
    G = tiny_generator()
    z, c = inputs(G)
    ws = G.mapping(z, c, truncation_psi=0.7)
    assert ws.shape == (2, G.backbone.num_ws, G.config.w_dim)
    planes = G.planes(ws, noise_mode='const')
    assert planes.coarse.shape == (2, 3, 8, 16, 16) and planes.residual.shape == (2, 3, 8, 32, 32)
    two = G.render(planes, c, branch='2d', ws=ws)
    assert {key: list(value.shape) for key, value in two.items()} == {
        'image': [2, 3, 32, 32],
        'image_raw': [2, 3, 8, 8],
        'image_depth': [2, 1, 8, 8],
    }
    three = G.synthesis(ws, c, branch='3d')
    assert three['image'].shape == (2, 3, 32, 32) and three['image_raw'] is three['image']
    assert G.render(planes, c, branch='coarse', render_resolution=12)['image'].shape == (2, 3, 12, 12)
    sigma, rgb = G.query(planes, torch.rand(2, 7, 3) - 0.5)
    assert sigma.shape == (2, 7, 1) and rgb.shape == (2, 7, 8)
    assert G(z, c)['image'].shape == (2, 3, 32, 32)


def test_a_patch_is_the_same_pixels_of_the_full_render():
    G = tiny_generator()
    z, c = inputs(G)
    planes = G.planes(G.mapping(z, c), noise_mode='const')
    corners = torch.tensor([[3, 10], [24, 0]])
    with torch.no_grad():
        whole = G.render(planes, c, '3d', sampling='deterministic')['image']
        patch = G.render(planes, c, '3d', sampling='deterministic', patch=corners)['image']
    for i, (top, left) in enumerate(corners.tolist()):
        assert_close(patch[i], whole[i, :, top : top + 8, left : left + 8], 1e-5)


def test_s3d_works_for_the_3d_branch_alone(monkeypatch):
    G = tiny_generator()
    z, c = inputs(G)
    whole = {
        branch: G(z, c, branch=branch, noise_mode='const', sampling='deterministic')['image'] for branch in ('2d', 'coarse', '3d')
    }
    calls = []
    monkeypatch.setattr(G.residual, 'forward', lambda *_: calls.append(1))
    for branch in ('2d', 'coarse'):
        assert torch.equal(G(z, c, branch=branch, noise_mode='const', sampling='deterministic')['image'], whole[branch])
    assert not calls
    with pytest.raises(ValueError, match=r'make them with G.planes\(..., residual=True\)'):
        G.render(G.planes(G.mapping(z, c), residual=False), c, '3d')


def test_stage_1_has_no_3d_branch():
    G = Generator(tiny_config(branch_3d='none'))
    z, c = inputs(G)
    with pytest.raises(ValueError, match='no 3D branch'):
        G(z, c, branch='3d')


@pytest.mark.parametrize(
    'options, message',
    [
        (dict(branch='4d'), 'branch must be one of'),
        (dict(branch='2d', patch=torch.zeros(2, 2, dtype=torch.int64)), 'patches exist for'),
        (dict(branch='3d', patch=torch.zeros(2, 2)), r'patch must be integers of shape \[N, 2\], got torch.float32'),
        (dict(branch='3d', patch=torch.zeros(2, dtype=torch.int64)), r'patch must be .* of shape \[2\]'),
        (dict(branch='coarse', patch=torch.zeros(2, 1, dtype=torch.int64)), r'patch must be .* of shape \[2, 1\]'),
        (dict(sampling='best'), 'sampling must be one of'),
        (dict(precision='fp8'), 'precision must be one of'),
        (dict(noise_mode='loud'), 'noise_mode must be one of'),
    ],
)
def test_wrong_arguments_are_named(options, message):
    G = tiny_generator()
    with pytest.raises(ValueError, match=message):
        G(*inputs(G), **options)


def test_wrong_shapes_are_named():
    G = tiny_generator()
    z, c = inputs(G)
    with pytest.raises(ValueError, match='z must have shape'):
        G(z[:, :-1], c)
    with pytest.raises(ValueError, match='c must have shape'):
        G(z, c[:, :-1])


def test_without_pose_conditioning_the_camera_does_not_matter():
    for conditioning in (False, True):
        G = Generator(tiny_config(pose_conditioning=conditioning))
        z, c = inputs(G)
        assert torch.equal(G.mapping(z, c), G.mapping(z, c.flip(0))) != conditioning


def test_truncation():
    G = tiny_generator()
    G.mapping.w_avg.normal_()
    z, c = inputs(G)
    ws, mean = G.mapping(z, c), G.mapping.w_avg
    assert_close(G.mapping(z, c, truncation_psi=0.0), mean.expand_as(ws), 1e-6)
    cut = G.mapping(z, c, truncation_psi=0.5, truncation_cutoff=2)
    assert_close(cut[:, :2], (ws[:, :2] + mean) / 2, 1e-6)
    assert torch.equal(cut[:, 2:], ws[:, 2:])


def test_a_forward_pass_changes_no_state():
    G = tiny_generator().train()
    before = {name: value.clone() for name, value in G.state_dict().items()}
    G(*inputs(G), branch='3d')
    assert all(torch.equal(value, before[name]) for name, value in G.state_dict().items())


def test_synthesis_does_not_depend_on_the_split_of_the_batch():
    G = tiny_generator()
    for layer in G.modules():
        if hasattr(layer, 'noise_strength'):
            layer.noise_strength.data.fill_(0.5)
    z, c = inputs(G, 4)
    whole = G(z, c, branch='3d', random=BatchRandom.keyed((7,), 4))['image']
    for first in range(2):
        rows = slice(first, None, 2)
        part = G(z[rows], c[rows], branch='3d', random=BatchRandom.keyed((7,), 4, rows=rows))['image']
        assert_close(part, whole[rows], 1e-4)


def test_convolutions_that_resample():
    """Up: a true convolution of what lies between inserted zeros, then the filter; down: the filter, then every second pixel.

    The first result is wanted beyond the border, too, as far as the second reaches.
    """
    x, f = torch.randn(2, 3, 6, 6), setup_filter([1, 3, 3, 1])
    for size in (1, 3):
        weight, same = torch.randn(4, 3, size, size), size // 2
        between_zeros = torch.zeros(2, 3, 12, 12)
        between_zeros[:, :, ::2, ::2] = x
        convolved = F.conv2d(between_zeros, weight.flip([2, 3]), padding=same + 2)
        assert_close(conv2d(x, weight, f, up=2), upfirdn2d(convolved, f, padding=(0, -1, 0, -1), gain=4), 1e-5)
        filtered = upfirdn2d(x, f, padding=same + 1)
        assert_close(conv2d(x, weight, f, down=2), F.conv2d(filtered, weight, stride=2), 1e-5)


def test_modulated_convolution_is_a_convolution_per_sample():
    x, weight, styles = torch.randn(2, 3, 6, 6), torch.randn(4, 3, 3, 3), torch.rand(2, 3) + 0.5
    y = modulated_conv2d(x, weight, styles)
    for i in range(2):
        own = weight * styles[i][None, :, None, None]
        own = own / (own.square().sum(dim=(1, 2, 3), keepdim=True) + 1e-8).sqrt()
        assert_close(y[i : i + 1], F.conv2d(x[i : i + 1], own, padding=1), 1e-5)


@pytest.mark.parametrize('resize_larger, render_resolution', [(True, 16), (True, 4), (False, 8), (False, 4)])
def test_the_2d_image_has_the_networks_size_whatever_the_render(resize_larger, render_resolution):
    G = tiny_generator(sr_resize_larger=resize_larger)
    assert G(*inputs(G), render_resolution=render_resolution)['image'].shape == (2, 3, 32, 32)


@pytest.mark.parametrize('image_resolution, render_resolution, added', [(16, 8, True), (16, 6, False), (32, 8, False)])
def test_the_raw_image_holds_s2ds_first_rgb_where_the_first_block_has_its_size(image_resolution, render_resolution, added):
    """As ShapeNet's published networks; elsewhere the raw image is the render of the coarse planes."""
    G = tiny_generator(image_resolution=image_resolution, render_resolution=8)
    z, c = torch.randn(2, 8), view_label(G.config, yaw=torch.tensor([0.0, 0.3]), pitch=torch.zeros(2))
    options = dict(render_resolution=render_resolution, sampling='deterministic')
    first, rgb = G.superresolution.blocks[0], []
    first.register_forward_hook(lambda module, inputs, output: rgb.append(output[1]))
    with torch.no_grad():
        ws = G.mapping(z, c)
        planes = G.planes(ws, noise_mode='const')
        out, render = (G.render(planes, c, branch, ws=ws, **options) for branch in ('2d', 'coarse'))
    difference = out['image_raw'] - render['image_raw']
    assert out['image_raw'].shape[-1] == render_resolution
    assert_close(difference, rgb[0], 1e-4) if added else assert_close(out['image_raw'], render['image_raw'], 1e-5)


def test_renders_that_superresolution_would_not_resize_are_refused():
    G = tiny_generator(sr_resize_larger=False)
    with pytest.raises(RenderSizeError, match="takes volume renders of 8 pixels per side at most, not 16: .* or branch '3d'"):
        G(*inputs(G), render_resolution=16)
    assert G(*inputs(G), branch='3d', render_resolution=16)['image'].shape == (2, 3, 16, 16)
    raw, ws = torch.zeros(1, 3, 16, 16), torch.zeros(1, G.backbone.num_ws, 16)
    with pytest.raises(RenderSizeError):
        G.superresolution(raw, torch.zeros(1, 8, 16, 16), ws)


def test_a_configuration_whose_renders_would_not_be_resized_is_refused():
    with pytest.raises(ConfigError, match=r'render_resolution \(16\) must not exceed 8'):
        tiny_config(sr_resize_larger=False, render_resolution=16)
    assert tiny_config(sr_resize_larger=True, render_resolution=16).render_resolution == 16


def test_minibatch_std_by_hand():
    x = torch.zeros(4, 1, 2, 2)
    x[2:] = 2.0  # groups of 2 are (0, 2) and (1, 3): standard deviation 1 in both
    out = minibatch_std(x, 2)
    assert out.shape == (4, 2, 2, 2)
    assert_close(out[:, 1], torch.ones(4, 2, 2), 1e-6)


def test_discriminators_depend_on_all_their_inputs():
    config = resolve('demo', 'd', 'o')
    D, P = DualDiscriminator(config.discriminator), PatchDiscriminator(config.patch_discriminator)
    image = torch.randn(4, 3, config.discriminator.resolution, config.discriminator.resolution)
    raw = torch.randn(4, 3, 16, 16)
    c = view_label(config.generator, yaw=torch.linspace(-0.3, 0.3, 4), pitch=torch.zeros(4))
    logits = D(image, raw, c)
    assert logits.shape == (4, 1)
    assert not torch.allclose(logits, D(image, raw.flip(1), c)) and not torch.allclose(logits, D(image, raw, c.flip(0)))
    patch = torch.randn(4, 3, config.patch_discriminator.resolution, config.patch_discriminator.resolution)
    assert P(patch).shape == (4, 1)


def test_low_precision_is_close_and_keeps_fp32_outputs():
    """bf16 runs on a CPU, so it stands for the casts that fp16 takes on a GPU."""
    exact, rough = tiny_generator(), tiny_generator(precision='bf16', conv_clamp=256.0)
    z, c = inputs(exact)
    options = dict(noise_mode='const')
    a, b = (
        G.render(G.planes(G.mapping(z, c), **options), c, '2d', ws=G.mapping(z, c), sampling='deterministic')['image']
        for G in (exact, rough)
    )
    assert b.dtype == torch.float32 and 0 < (a - b).abs().max() < 0.05 * a.abs().max()
    torch.manual_seed(1)
    D = DualDiscriminator(resolve('demo', 'd', 'o').discriminator)
    torch.manual_seed(1)
    D16 = DualDiscriminator(resolve('demo', 'd', 'o').discriminator.replace(precision='bf16', conv_clamp=256.0))
    image = torch.randn(4, 3, 64, 64, requires_grad=True)
    a, b = D(image, image[:, :, ::4, ::4], c.repeat(2, 1)), D16(image, image[:, :, ::4, ::4], c.repeat(2, 1))
    assert b.dtype == torch.float32 and (a - b).abs().max() < 0.1 * a.abs().max()
    (gradient,) = torch.autograd.grad(b.sum(), image, create_graph=True)
    gradient.square().sum().backward()  # R1's second pass


def test_published_precision():
    config = resolve('ffhq512', 'd', 'o')
    assert config.generator.precision == config.discriminator.precision == config.patch_discriminator.precision == 'fp16'
    D = DualDiscriminator(config.discriminator.replace(channel_base=1024, channel_max=4))
    assert [block.precision for block in D.blocks] == ['fp16'] * 4 + ['fp32'] * 3
