"""Networks and runs small enough for tests."""

import torch

from training.config import DiscriminatorConfig, GeneratorConfig, RenderingConfig
from training.networks.generator import Generator
from training.presets import resolve


def tiny_config(**changes):
    rendering = RenderingConfig(depth_samples=6, importance_samples=4)
    values = dict(
        z_dim=8,
        w_dim=16,
        image_resolution=32,
        render_resolution=8,
        plane_resolution=16,
        plane_channels=8,
        channel_base=128,
        channel_max=8,
        decoder_hidden=16,
        sr_input_resolution=8,
        sr_channels=(8, 4),
        precision='fp32',
        conv_clamp=None,
        rendering=rendering,
    )
    return GeneratorConfig(**{**values, **changes})


def tiny_generator(seed=0, **changes):
    torch.manual_seed(seed)
    return Generator(tiny_config(**changes))


def tiny_discriminator_config(**changes):
    values = dict(resolution=32, channel_base=128, channel_max=8, mapping_layers=2, precision='fp32', conv_clamp=None)
    return DiscriminatorConfig(**{**values, **changes})


def tiny_run(data, outdir, **changes):
    """A RunConfig of both stages, two steps each unless changed."""
    config = resolve('demo', data, outdir)
    discriminator = tiny_discriminator_config()
    stages = {f'stage{i}': getattr(config, f'stage{i}').replace(kimg=0.016) for i in (1, 2)}
    values = dict(
        generator=tiny_config(),
        discriminator=discriminator,
        batch=8,
        workers=0,
        tick_kimg=0.008,
        patch_discriminator=discriminator.replace(resolution=8, c_dim=0),
        grid_size=(2, 2),
        share_fakes=False,
        **stages,
    )
    return config.replace(**{**values, **changes})
