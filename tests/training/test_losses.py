"""Losses, schedules, optimisers."""

import math
import pickle

import pytest
import torch
from torch import nn

from tests.helpers import Prescribed, assert_close
from tests.tiny import tiny_config, tiny_discriminator_config, tiny_generator, tiny_run
from torch_utils.pretrained import WeightsError
from torch_utils.random import BatchRandom
from training import step
from training.augment import augment_rows
from training.config import LossConfig, StageConfig
from training.losses import (
    FakeInputs,
    blur,
    blur_sigma,
    crop,
    draw_corners,
    draw_fake_inputs,
    pyramid_distance,
    r1_penalty,
    ramp,
    swap_probability,
)
from training.networks.discriminator import DualDiscriminator, PatchDiscriminator, resize
from training.networks.generator import Generator
from training.perceptual import VGG_URL, find_vgg_weights, load_lpips
from training.presets import second_stage
from training.rendering.cameras import view_label
from training.state import build_state
from training.step import BadGradients

VGG_FILE = VGG_URL.rsplit('/', 1)[1]

# Schedules and draws


def test_schedules():
    config = LossConfig()
    assert ramp(1.0, 0.5, 5, 10) == 0.75 and ramp(1.0, 0.5, 20, 10) == 0.5 and ramp(1.0, 0.5, 0, 0) == 0.5
    assert swap_probability(config, 500_000) == 0.75
    assert blur_sigma(config, 100_000, batch=32) == 5.0 and blur_sigma(config, 100_000, batch=64) == 7.5
    second = second_stage(StageConfig(kimg=1, loss=config), kimg=1).loss
    assert blur_sigma(second, 0, 32) == 0 and swap_probability(second, 0) == 0.5 and second.density_spread == 0.002


@pytest.mark.parametrize('together', [False, True])
def test_swapping_takes_the_neighbours_camera(together):
    labels = torch.arange(50.0)[:, None].expand(50, 25)

    def draw(p):
        return draw_fake_inputs(4, labels, p, BatchRandom.keyed((3,), 64), together)

    assert torch.equal(draw(0.0).c_cond, draw(0.0).c)
    assert torch.equal(draw(1.0).c_cond, draw(1.0).c.roll(1, dims=0))
    some = draw(0.5)
    swapped = (some.c_cond != some.c).any(dim=1)
    assert swapped.all() or not swapped.any() if together else 10 < swapped.sum() < 54


def test_crop_is_slicing():
    images, corners = torch.randn(3, 2, 9, 9), torch.tensor([[0, 0], [5, 2], [1, 4]])
    for part, image, (top, left) in zip(crop(images, corners, 4), images, corners.tolist()):
        assert torch.equal(part, image[:, top : top + 4, left : left + 4])


def test_corners_reach_every_place():
    corners = draw_corners(BatchRandom.keyed((0,), 1000), 10, 8)
    assert set(corners.flatten().tolist()) == {0, 1, 2}


def test_blur_kernel_by_hand():
    image = torch.zeros(1, 1, 9, 9)
    image[0, 0, 4, 4] = 1
    taps = torch.tensor([2.0**-9, 2.0**-4, 2.0**-1, 1, 2.0**-1, 2.0**-4, 2.0**-9])  # sigma 1: |i| up to 3
    taps = taps / taps.sum()
    assert_close(blur(image, 1.0)[0, 0, 1:8, 1:8], torch.outer(taps, taps), 1e-6)
    assert torch.equal(blur(image, 0.0), image)


def test_pyramid_distance():
    x, y = torch.rand(2, 3, 16, 16), torch.rand(2, 3, 16, 16)
    assert pyramid_distance(x, x).tolist() == [0, 0]
    assert_close(pyramid_distance(x, y), pyramid_distance(y, x), 1e-6)
    assert_close(pyramid_distance(x, x + 0.5), torch.tensor([0.5, 0.5]), 1e-5)  # a constant lives on the last level only


def test_r1_of_a_linear_network():
    slope = torch.randn(3, 4, 4)
    x = torch.randn(5, 3, 4, 4, requires_grad=True)
    assert_close(r1_penalty((x * slope).sum(dim=(1, 2, 3)), [x]), slope.square().sum().expand(5), 1e-5)


# Gradients: who learns from what


class Scene:
    """All networks of a stage and a batch."""

    def __init__(self, stage=2, **options):
        self.G = tiny_generator() if stage == 2 else Generator(tiny_config(branch_3d='none'))
        self.D = DualDiscriminator(tiny_discriminator_config())
        self.D_patch = PatchDiscriminator(tiny_discriminator_config(resolution=8, c_dim=0)) if stage == 2 else None
        self.context = step.LossContext(
            self.G,
            self.D,
            self.D_patch,
            LossConfig(density_points=20),
            imitation=pyramid_distance if stage == 2 else None,
            **options,
        )
        c = view_label(self.G.config, yaw=torch.linspace(-0.3, 0.3, 4), pitch=torch.zeros(4))
        self.inputs = FakeInputs(torch.randn(4, 8), c, c.roll(1, dims=0))
        self.real, self.random = torch.randn(4, 3, 32, 32), BatchRandom(4)

    def learners(self, loss):
        """The modules of all networks with a gradient of `loss`."""
        loss.backward()
        names = set()
        for prefix, network in (('G', self.G), ('D', self.D), ('D_patch', self.D_patch)):
            if network is not None:
                names |= {
                    f'{prefix}.{name.split(".")[0]}'
                    for name, p in network.named_parameters()
                    if p.grad is not None and p.grad.abs().max() > 0
                }
        return names


G_MODULES = {'G.backbone', 'G.mapping', 'G.decoder', 'G.superresolution'}
D_MODULES = {'from_rgb', 'blocks', 'conv', 'fc', 'out'}


def frozen(scene, *networks):
    for network in networks:
        network.requires_grad_(False)
    return scene


def test_generator_step_of_stage_1():
    scene = Scene(stage=1)
    frozen(scene, scene.D)
    loss = step.generator_loss(scene.context, scene.inputs, scene.random)
    assert scene.context.fakes[0].patch is None and scene.learners(loss) == G_MODULES


def test_generator_step_of_stage_2():
    scene = Scene()
    frozen(scene, scene.D, scene.D_patch)
    loss = step.generator_loss(scene.context, scene.inputs, scene.random)
    assert scene.learners(loss) == G_MODULES | {'G.residual'}


def test_imitation_teaches_the_3d_branch_only():
    """The 2D branch's image is a target: no gradient passes through it, so S2D learns nothing (paper, equation 5)."""
    scene = Scene()
    scene.D.forward = lambda image, raw, c: torch.zeros(4, 1)  # neither discriminator has anything to say
    scene.D_patch.forward = lambda patch: torch.zeros(4, 1)
    learners = scene.learners(step.generator_loss(scene.context, scene.inputs, scene.random))
    assert 'G.superresolution' not in learners and 'G.residual' in learners


def test_density_regularisation_reaches_coarse_and_residual_planes():
    scene = Scene()
    learners = scene.learners(step.density_loss(scene.context, scene.inputs, scene.random))
    assert learners == {'G.backbone', 'G.mapping', 'G.decoder', 'G.residual'}


def fakes_without_gradient(scene, **what):
    with torch.no_grad():
        return step.generate(scene.context, scene.inputs, scene.random, **what)


def test_discriminator_steps_teach_their_discriminator():
    expected = {f'D.{name}' for name in D_MODULES | {'mapping'}}
    scene = Scene()
    fakes = fakes_without_gradient(scene, image=True)
    assert (
        scene.learners(step.discriminator_loss(scene.context, 'D', fakes, scene.real, scene.inputs.c, scene.random)) == expected
    )
    scene = Scene()
    assert scene.learners(step.discriminator_r1(scene.context, 'D', scene.real, scene.inputs.c, scene.random)) == expected


def test_patch_discriminator_steps_teach_it():
    expected = {f'D_patch.{name}' for name in D_MODULES}
    scene = Scene()
    fakes = fakes_without_gradient(scene, patch=True)
    assert (
        scene.learners(step.discriminator_loss(scene.context, 'D_patch', fakes, scene.real, scene.inputs.c, scene.random))
        == expected
    )
    scene = Scene()
    assert scene.learners(step.discriminator_r1(scene.context, 'D_patch', scene.real, scene.inputs.c, scene.random)) == expected


def test_patches_lie_where_the_crops_lie():
    """The 3D branch's patch and the crop of a full 3D render are the same pixels."""
    scene = Scene(noise_mode='const', sampling='deterministic')
    fakes = fakes_without_gradient(scene, patch=True)
    ws = scene.G.mapping(scene.inputs.z, scene.inputs.c_cond)
    with torch.no_grad():
        whole = scene.G.render(scene.G.planes(ws, noise_mode='const'), scene.inputs.c, '3d', sampling='deterministic')['image']
    assert_close(fakes.patch, crop(whole, fakes.corners, 8), 1e-4)


def test_blur_and_augmentation_reach_the_discriminator():
    seen = []
    scene = Scene(augment=lambda images, p, random: seen.append((images.shape[1], p)) or images, blur_sigma=1.5, augment_p=0.3)
    raw, patch = scene.real[:, :, ::4, ::4], scene.real[:, :, :8, :8]
    image, smooth_raw = step.discriminator_inputs(scene.context, scene.real, raw, scene.random)
    assert torch.equal(image, blur(scene.real, 1.5))
    assert torch.equal(smooth_raw, resize(resize(raw, 32), 8))  # a fake's raw render is not blurred
    assert torch.equal(step.patch_discriminator_inputs(scene.context, patch, scene.random)[0], blur(patch, 1.5))
    assert seen == [(6, 0.3), (3, 0.3)]


def test_with_augmentation_raw_images_go_up_and_back_even_at_probability_0():
    scene = Scene(augment=augment_rows)
    raw = scene.real[:, :, ::4, ::4]
    image, smooth_raw = step.discriminator_inputs(scene.context, scene.real, raw, scene.random)
    assert_close(image, scene.real, 1e-6)
    assert_close(smooth_raw, resize(resize(raw, 32), 8), 1e-6)
    assert (smooth_raw - raw).abs().max() > 0.1


class LinearDiscriminator:
    """Logits that are linear in all images, so that R1 is the same wherever it is taken; and what it was given."""

    def __call__(self, *inputs):
        self.seen = [x for x in inputs if x.ndim == 4]
        torch.manual_seed(0)
        return sum((torch.randn(x.shape[1:]) * x).sum(dim=(1, 2, 3)) for x in self.seen)[:, None]

    def penalty(self):
        torch.manual_seed(0)
        return sum(torch.randn(x.shape[1:]).square().sum() for x in self.seen)


@pytest.mark.parametrize('name', ['D', 'D_patch'])
def test_r1_is_taken_at_what_the_discriminator_receives(name):
    """A linear network's penalty at its inputs knows neither blur nor augmentation; at the images before them, it would."""
    scene, linear = (
        Scene(augment=lambda images, p, random: 3 * images.flip(3), blur_sigma=1.5, augment_p=1.0),
        LinearDiscriminator(),
    )
    scene.context.D = scene.context.D_patch = linear
    gamma = LossConfig().r1_gamma
    if name == 'D':
        loss = step.discriminator_r1(scene.context, 'D', scene.real, scene.inputs.c, scene.random)
        assert_close(linear.seen[0], 3 * blur(scene.real, 1.5).flip(3), 1e-6)
        assert linear.seen[1].shape[-1] == 8
    else:
        corners = Prescribed(4, torch.zeros(4, 2, dtype=torch.long))
        loss = step.discriminator_r1(scene.context, 'D_patch', scene.real, scene.inputs.c, corners)
        assert_close(linear.seen[0], 3 * blur(scene.real[:, :, :8, :8], 1.5).flip(3), 1e-6)
    assert_close(loss, gamma / 2 * linear.penalty(), 1e-5)


# Optimisers


def tiny_state(**changes):
    """The TrainingState of a stage 2 of a tiny run."""
    return build_state(tiny_run('', '', **changes), 2, 'cpu', torch.zeros(1, 25))


def linear_state(module, **changes):
    """A state whose G is `module`, with a learning rate of 0.1."""
    state = tiny_state(**changes)
    module.requires_grad_(False)
    state.networks['G'] = module
    state.optimizers['G'] = torch.optim.Adam(module.parameters(), lr=0.1)
    return state


def one_step(state, phase, *losses):
    """An optimiser step of G on the mean of `losses`, a pass each. Returns what it noted."""
    context = step.LossContext(None, None, None, None, microbatches=len(losses))
    step.optimize(state, 'G', phase, (loss() for loss in losses), context)
    return {name: values[-1] for name, values in context.seen.items()}


def test_lazy_regularisation_scales_adam():
    options = tiny_run('', '').optimizer
    group = tiny_state().optimizers['D'].param_groups[0]
    assert group['lr'] == pytest.approx(options.d_lr * 16 / 17)
    assert group['betas'] == (0.0, pytest.approx(0.99 ** (16 / 17)))
    plain = tiny_run('', '').stage2.loss.replace(r1_gamma=0)
    state = tiny_state(stage2=tiny_run('', '').stage2.replace(loss=plain))
    assert state.optimizers['D'].param_groups[0]['betas'] == (0.0, 0.99)


def test_learning_rates_can_be_scaled():
    state = tiny_state()
    lr = state.optimizers['G'].param_groups[0]['lr']
    for factor in (0.25, 1.0):
        step.scale_learning_rates(state, factor)
        assert state.optimizers['G'].param_groups[0]['lr'] == pytest.approx(lr * factor)


def test_passes_are_averaged_and_only_one_network_learns():
    module, other = nn.Linear(1, 1, bias=False), nn.Linear(1, 1, bias=False).requires_grad_(False)
    noted = one_step(
        linear_state(module), 'generator', *(lambda x=x: other(module(torch.tensor([[x]]))).sum() for x in (1.0, 3.0))
    )
    assert module.weight.grad.item() == pytest.approx(2 * other.weight.item())
    assert noted['gradients/G'] == pytest.approx(abs(2 * other.weight.item())) and noted['gradients/G_not_finite'] == 0
    assert not module.weight.requires_grad


def test_non_finite_gradients_are_replaced_and_counted():
    module = nn.Linear(3, 1, bias=False)
    factor = torch.tensor([float('nan'), float('inf'), float('-inf')])
    noted = one_step(linear_state(module), 'generator', lambda: (module.weight * factor).sum())
    assert module.weight.grad.flatten().tolist() == [0.0, 1e5, -1e5]
    assert noted['gradients/G_not_finite'] == 1 and module.weight.isfinite().all()


def test_bad_steps_are_counted_in_a_row_and_raised_where_that_is_asked():
    module = nn.Linear(1, 1)
    state = linear_state(module, max_bad_steps=1)

    def act(phase, factor):
        one_step(state, phase, lambda: module.weight.sum() * factor + module.bias.sum())

    for phase, factor, expected in (
        ('main', 1.0, 0),
        ('main', math.nan, 1),
        ('R1', 1.0, 1),
        ('main', math.inf, 2),
        ('main', 1.0, 0),
        ('R1', math.nan, 1),
        ('main', 1.0, 1),
        ('R1', 1.0, 0),
    ):
        act(phase, factor)
        assert max(map(int, state.bad_steps.values())) == expected
    state.strict = {'R1'}
    act('R1', math.nan)
    with pytest.raises(BadGradients, match='phase R1: the gradients of G are not finite, 2 times in a row, in weight$'):
        act('R1', math.nan)


def test_moving_average():
    average, module = nn.BatchNorm1d(1), nn.BatchNorm1d(1)
    module.weight.data.fill_(3.0)
    module.running_mean.fill_(7.0)
    step.update_average(average, module, beta=0.75)
    assert average.weight.item() == pytest.approx(0.75 * 1 + 0.25 * 3) and average.running_mean.item() == 7
    assert step.average_beta(32, 10, None, 0) == pytest.approx(0.5 ** (32 / 10_000))
    assert step.average_beta(32, 10, 0.05, 20_000) == pytest.approx(0.5 ** (32 / 1_000))
    assert step.average_beta(32, 10, 0.05, 0) == 0


# LPIPS


@pytest.fixture(scope='module')
def vgg_file(tmp_path_factory):
    """A file of torchvision's names and shapes, with random weights."""
    import torchvision

    path = tmp_path_factory.mktemp('vgg') / VGG_FILE
    torch.manual_seed(0)
    with torch.device('cpu'):
        state = torchvision.models.vgg16(weights=None, init_weights=False).features.state_dict()
    torch.save({f'features.{name}': value for name, value in state.items()}, path)
    return path


def test_lpips_uses_the_given_weights(vgg_file):
    x = torch.rand(2, 3, 64, 64).mul(2).sub(1).requires_grad_()
    target = torch.rand(2, 3, 64, 64) * 2 - 1
    lpips = load_lpips(find_vgg_weights(str(vgg_file)), 'cpu')
    assert lpips(x, x).abs().max() == 0
    distance = lpips(x, target)
    assert distance.shape == (2,) and (distance > 0).all()
    assert torch.equal(distance, load_lpips(vgg_file, 'cpu')(x, target))
    assert torch.autograd.grad(distance.sum(), x)[0].abs().max() > 0


def test_lpips_weights_are_found_in_torchs_cache(vgg_file, monkeypatch):
    monkeypatch.setattr(torch.hub, 'get_dir', lambda: str(vgg_file.parent.parent))
    (vgg_file.parent.parent / 'checkpoints').mkdir(exist_ok=True)
    cached = vgg_file.parent.parent / 'checkpoints' / VGG_FILE
    cached.symlink_to(vgg_file)
    assert find_vgg_weights() == cached


def test_lpips_weights_that_cannot_be_had(monkeypatch, tmp_path):
    def offline(*args, **kwargs):
        raise OSError('no network')

    monkeypatch.setattr(torch.hub, 'get_dir', lambda: str(tmp_path))
    monkeypatch.setattr(torch.hub, 'download_url_to_file', offline)
    with pytest.raises(WeightsError, match=f'{VGG_FILE}.*could not be downloaded.*--lpips-weights=FILE'):
        find_vgg_weights()
    with pytest.raises(WeightsError, match='no such file'):
        find_vgg_weights(str(tmp_path / 'absent.pth'))


def vgg_with(vgg_file, **changes):
    """VGG-16's tensors, with some replaced or removed."""
    weights = torch.load(vgg_file, weights_only=True) | {name.replace('_', '.'): value for name, value in changes.items()}
    return {name: value for name, value in weights.items() if value is not None}


@pytest.mark.parametrize(
    'content, reason',
    [
        (b'Dear Sir or Madam,\nthese are no weights.\n', 'it cannot be opened'),
        (b'', 'it cannot be opened'),
        (pickle.dumps(print, protocol=2), 'it cannot be opened'),
        (b'PK\x03\x04 a zip?', 'it cannot be opened'),
        ([torch.zeros(3)], 'but something else'),
        ({'a': 'b'}, 'but something else'),
        ({}, 'it lacks features.0.weight'),
        (dict(features_28_bias=None), 'it lacks features.28.bias'),
        (dict(features_0_weight=torch.zeros(64, 3, 1, 1)), r'features.0.weight measures \[64, 3, 1, 1\], not \[64, 3, 3, 3\]'),
        (dict(features_5_bias=torch.zeros(1)), 'features.5.bias measures'),
        (dict(features_5_bias=torch.full((128,), math.nan)), 'features.5.bias is not finite'),
    ],
)
def test_wrong_lpips_weights_are_one_line(content, reason, vgg_file, tmp_path):
    path = tmp_path / 'other.pth'
    if isinstance(content, bytes):
        path.write_bytes(content)
    else:
        changed = isinstance(content, dict) and any(name.startswith('features_') for name in content)
        torch.save(vgg_with(vgg_file, **content) if changed else content, path)
    with pytest.raises(WeightsError, match=f"other.pth holds no weights of torchvision's VGG-16.*{reason}") as caught:
        load_lpips(path, 'cpu')
    assert '\n' not in str(caught.value) and 'trust' not in str(caught.value)
    with pytest.raises(WeightsError, match=f'{tmp_path}: no such file'):
        find_vgg_weights(str(tmp_path))
