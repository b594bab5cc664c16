"""Training on a simulated GPU: no tensor on the wrong device, and no step that waits for the GPU."""

import functools

import pytest
import torch

import dataset_tool
from tests.helpers import succeed
from tests.simulated_cuda import DEVICE, SimulatedTensor, simulated_cuda
from tests.tiny import tiny_config, tiny_discriminator_config, tiny_run
from torch_utils.random import keyed_generator
from training import augment, training_loop
from training.config import RenderingConfig


def works():
    """Whether this release of torch can be deceived like that."""
    try:
        with simulated_cuda():
            layer = torch.nn.Linear(2, 1).to(DEVICE)
            layer(torch.ones(1, 2, device=DEVICE)).sum().backward()
            return isinstance(layer.weight.grad, SimulatedTensor)
    except Exception:
        return False


pytestmark = pytest.mark.skipif(not works(), reason='this release of torch cannot simulate CUDA tensors')


@pytest.fixture(autouse=True)
def plain_pytorch(monkeypatch):
    monkeypatch.setenv('MIMIC3D_OPS', 'ref')
    monkeypatch.setenv('MIMIC3D_RENDERER', 'ref')


def test_the_simulation_notices_mistakes():
    with simulated_cuda() as simulation:
        x = torch.ones(3, device=DEVICE)
        assert not simulation.waits
        with pytest.raises(RuntimeError, match='same device'):
            x + torch.ones(3)
        with pytest.raises(RuntimeError, match='generator'):
            torch.randn(3, device=DEVICE, generator=keyed_generator((1,)))
        with pytest.raises(TypeError, match='numpy'):
            x.numpy()
        torch.ones(3).to(DEVICE, non_blocking=True)
        torch.randn(3, device=DEVICE, generator=keyed_generator((2,), DEVICE))
        assert not simulation.waits
        x.sum().item(), x[x > 0], torch.ones(3).to(DEVICE), x.cpu(), torch.tensor([1.0], device=DEVICE)
        assert [what for what, _ in simulation.waits] == ['read', 'index', 'copy', 'copy', 'tensor']


@pytest.mark.parametrize('precision, near, far', [('fp16', 2.25, 3.3), ('bf16', 'auto', 'auto')])
def test_both_stages_train_and_no_step_waits(tmp_path, monkeypatch, precision, near, far):
    data, run = tmp_path / 'heads.zip', tmp_path / 'run'
    run.mkdir()
    succeed(dataset_tool.main, 'demo', f'--dest={data}', '--resolution=32', '--images=8')
    discriminator = tiny_discriminator_config(precision=precision, conv_clamp=256.0)
    rendering = RenderingConfig(depth_samples=4, importance_samples=2, near=near, far=far, white_background=True)
    config = tiny_run(
        str(data),
        str(run),
        threads=1,
        batch=4,
        tick_kimg=0.004,
        grid_size=(1, 1),
        discriminator=discriminator,
        patch_discriminator=discriminator.replace(resolution=8, c_dim=0),
        generator=tiny_config(precision=precision, conv_clamp=256.0, rendering=rendering),
    )
    stages = {name: getattr(config, name).replace(kimg=0.004) for name in ('stage1', 'stage2')}
    step, steps = training_loop.training_step, []
    with simulated_cuda() as simulation:

        @functools.wraps(step)
        def watched(*arguments):
            before = len(simulation.waits)
            seen = step(*arguments)
            steps.append(simulation.waits[before:])
            return seen

        monkeypatch.setattr(training_loop, 'training_step', watched)
        batches = training_loop.real_batches  # without the thread that pins memory, for which CUDA must be there
        monkeypatch.setattr(training_loop, 'real_batches', lambda *arguments: batches(*arguments[:4]))
        assert training_loop.train(config.replace(**stages))
    assert steps == [[], []]
    assert list(run.glob('fakes*_3d.png'))


def test_augmentation_does_not_wait():
    draws = augment.draw_parameters(3, keyed_generator((0,)))
    with simulated_cuda() as simulation:
        images = torch.rand(3, 6, 16, 16, device=DEVICE).requires_grad_()
        out = augment.augment(images, draws, 1.0)
        (gradient,) = torch.autograd.grad(out.sum(), images)
        assert isinstance(gradient, SimulatedTensor) and simulation.waits == []
        assert torch.allclose(out.detach().values_on_cpu, augment.augment(images.detach().values_on_cpu, draws, 1.0))
