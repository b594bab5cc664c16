"""Networks and runs small enough for tests."""

import functools
import json

import torch

from tests.goldens.frozen import fill
from torch_utils import distributed
from training.config import DiscriminatorConfig, GeneratorConfig, RenderingConfig
from training.networks.discriminator import DualDiscriminator
from training.networks.generator import Generator
from training.presets import resolve
from training.snapshots import newest_snapshot
from training.training_loop import train


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


def tiny_networks():
    """A generator and its discriminator, with weights that are all different from zero."""
    return {'G_ema': fill(Generator(tiny_config())), 'D': fill(DualDiscriminator(tiny_discriminator_config()))}


def train_tiny(data, outdir, processes=1, **changes):
    """Train; returns the snapshot of the end, as plain data, and the statistics."""
    config = tiny_run(str(data), str(outdir), threads=1, **changes)
    outdir.mkdir()
    distributed.launch(functools.partial(train, config), processes)
    lines = (outdir / 'stats.jsonl').read_text().splitlines()
    return torch.load(newest_snapshot(outdir), weights_only=True), [json.loads(line) for line in lines]
