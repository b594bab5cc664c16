"""Small goldens of this project's own making: what this code computed when it agreed with the published implementation.

    python -m tests.goldens.frozen

writes them anew: only after `python -m tests.parity` has shown that everything still agrees. Weights and inputs are
drawn by numpy's RandomState, whose streams never change, so only outputs are stored.
"""

import zlib
from pathlib import Path

import numpy as np
import torch

from tests.helpers import Prescribed
from training import step
from training.config import FFHQ_FOCAL, DiscriminatorConfig, GeneratorConfig, LossConfig, RenderingConfig
from training.losses import FakeInputs, r1_penalty
from training.networks.discriminator import DualDiscriminator, PatchDiscriminator
from training.networks.generator import Generator
from training.rendering import cameras

FOLDER = Path(__file__).resolve().parent

_GENERATOR = dict(
    z_dim=8,
    w_dim=16,
    image_resolution=32,
    render_resolution=8,
    plane_resolution=8,
    plane_channels=4,
    channel_base=64,
    channel_max=8,
    decoder_hidden=8,
    sr_input_resolution=8,
    sr_channels=(8, 4),
    precision='fp32',
    conv_clamp=None,
)
_DISCRIMINATOR = dict(resolution=32, channel_base=128, channel_max=8, mapping_layers=2, precision='fp32', conv_clamp=None)
_RENDERING = dict(depth_samples=6, importance_samples=5)
GENERATORS = {
    'stage2': GeneratorConfig(rendering=RenderingConfig(**_RENDERING), **_GENERATOR),
    'stage2_auto_white': GeneratorConfig(
        rendering=RenderingConfig(near='auto', far='auto', box_size=1.4, white_background=True, **_RENDERING),
        sr_resize_larger=False,
        **_GENERATOR,
    ),
    'stage1_tanh': GeneratorConfig(
        rendering=RenderingConfig(**_RENDERING),
        branch_3d='none',
        plane_activation='tanh',
        sr_noise_mode='const',
        pose_conditioning=False,
        **_GENERATOR,
    ),
    'eg3d': GeneratorConfig(
        rendering=RenderingConfig(**_RENDERING), branch_3d='none', aware='none', plane_order='eg3d', **_GENERATOR
    ),
}


def fill(module):
    """The module with weights that depend on their names and shapes alone."""
    state = {}
    for name, value in module.state_dict().items():
        drawn = np.random.RandomState(zlib.crc32(name.encode())).randn(*value.shape)
        if name.endswith(('bias', 'noise_strength')):
            drawn = 0.1 * drawn + ('affine' in name)
        elif '.layers.' in name and name.startswith('mapping'):
            drawn = 100 * drawn  # stored divided by its learning-rate multiplier
        state[name] = torch.as_tensor(np.asarray(drawn, np.float32))
    module.load_state_dict(state)
    return module


def draw(name, *shape):
    """Standard normal inputs."""
    return torch.from_numpy(np.random.RandomState(zlib.crc32(name.encode())).randn(*shape).astype(np.float32))


def camera_labels(n=2):
    poses = cameras.look_at_pose(torch.linspace(1.3, 1.8, n), torch.linspace(1.7, 1.4, n), (0.0, 0.0, 0.2), 2.7)
    return cameras.make_label(poses, cameras.pinhole(FFHQ_FOCAL))


def gradient_norms(module, loss):
    """The norms of the loss's gradient for every parameter, in the order of their names."""
    module.zero_grad()
    loss.backward(retain_graph=True)
    parameters = dict(module.named_parameters())
    return torch.tensor(
        [0.0 if parameters[name].grad is None else float(parameters[name].grad.norm()) for name in sorted(parameters)]
    )


def generator_outputs(config):
    G, c = fill(Generator(config)), camera_labels()
    ws = G.mapping(draw('z', 2, config.z_dim), c, truncation_psi=0.7, truncation_cutoff=3)
    planes = G.planes(ws, noise_mode='const')
    two = G.render(planes, c, '2d', ws=ws, sampling='deterministic')
    points = torch.tanh(draw('points', 2, 16, 3)) * 0.6
    sigma, rgb = G.query(planes, points)
    outputs = {
        'ws': ws,
        'planes_coarse': planes.coarse,
        'image': two['image'][..., 1::2, ::2],
        'image_raw': two['image_raw'],
        'image_depth': two['image_depth'],
        'sigma': sigma,
        'rgb': rgb,
    }
    branch = 'coarse' if planes.residual is None else '3d'
    patch = G.render(planes, c, branch, patch=torch.tensor([[3, 17], [24, 0]]), sampling='deterministic')
    outputs |= {'patch': patch['image'], 'patch_depth': patch['image_depth']}
    if planes.residual is not None:
        outputs['planes_residual'] = planes.residual[..., ::2, ::2]
        outputs['image_3d'] = G.render(planes, c, '3d', render_resolution=16, sampling='deterministic')['image']
    for key in ('image_raw', 'patch'):
        outputs[f'gradients/{key}'] = gradient_norms(G, (draw(f'probe/{key}', *outputs[key].shape) * outputs[key]).sum())
    return outputs


def discriminator_outputs(build, **changes):
    config = DiscriminatorConfig(**(_DISCRIMINATOR | changes))
    D = fill(build(config))
    inputs = [draw('image', 4, 3, config.resolution, config.resolution)]
    if config.c_dim:
        inputs.append(draw('image_raw', 4, 3, 8, 8))
    for value in inputs:
        value.requires_grad_()
    logits = D(*inputs, *([camera_labels(4)] if config.c_dim else []))
    penalty = r1_penalty(logits, inputs)
    loss = torch.nn.functional.softplus(-logits).mean() + 0.5 * penalty.mean()
    return {'logits': logits, 'r1_penalty': penalty, 'gradients/loss': gradient_norms(D, loss)}


def loss_outputs():
    G = fill(Generator(GENERATORS['stage2']))
    D = fill(DualDiscriminator(DiscriminatorConfig(**_DISCRIMINATOR)))
    D_patch = fill(PatchDiscriminator(DiscriminatorConfig(**(_DISCRIMINATOR | dict(resolution=8, c_dim=0)))))
    config = LossConfig(r1_gamma=1.3, r1_gamma_patch=0.7, patch_weight=0.2, density_points=32)
    context = step.LossContext(
        G,
        D,
        D_patch,
        config,
        imitation=lambda x, target: (x - target).square().mean(dim=(1, 2, 3)),
        blur_sigma=1.1,
        noise_mode='const',
        sampling='deterministic',
    )
    c, corners, points = camera_labels(), torch.tensor([[3, 17], [24, 0]]), torch.tanh(draw('points', 2, 32, 3))
    inputs = FakeInputs(draw('z', 2, 8), c, c.roll(1, dims=0))
    real = torch.tanh(draw('real', 2, 3, 32, 32))
    random = Prescribed(2, corners, (points + 1) / 2, draw('moves', 2, 32, 3))
    real_random = Prescribed(2, corners.flip(0))
    loss = step.generator_loss(context, inputs, random)
    (fakes,) = context.fakes
    phases = {
        'generator': (G, loss),
        'density': (G, step.density_loss(context, inputs, random)),
        'discriminator': (D, step.discriminator_loss(context, 'D', fakes, real, c, random)),
        'discriminator_r1': (D, step.discriminator_r1(context, 'D', real, c, random)),
        'patch_discriminator': (D_patch, step.discriminator_loss(context, 'D_patch', fakes, real, c, real_random)),
        'patch_discriminator_r1': (D_patch, step.discriminator_r1(context, 'D_patch', real, c, real_random)),
    }
    outputs = {}
    for name, (network, value) in phases.items():
        outputs[name], outputs[f'gradients/{name}'] = value, gradient_norms(network, value)
    return outputs


CASES = {
    **{f'generator_{name}': lambda config=config: generator_outputs(config) for name, config in GENERATORS.items()},
    'discriminator_dual': lambda: discriminator_outputs(DualDiscriminator),
    'discriminator_dual_classic': lambda: discriminator_outputs(DualDiscriminator, raw_resize='classic'),
    'discriminator_patch': lambda: discriminator_outputs(PatchDiscriminator, c_dim=0, resolution=16),
    'losses': loss_outputs,
}


def main():
    for name, compute in CASES.items():
        arrays = {key: value.detach().numpy().astype(np.float32) for key, value in compute().items()}
        np.savez_compressed(FOLDER / f'{name}.npz', **arrays)
        print(f'{name}.npz: {(FOLDER / f"{name}.npz").stat().st_size} bytes')


if __name__ == '__main__':
    torch.set_num_threads(1)
    main()
