"""The preset table, and how presets, options and what a run starts from make its configuration.

Numbers of the presets: paper and release, see docs/fidelity.md.
"""

import functools
from dataclasses import dataclass, field

from dnnlib.options import flat, nested, settings
from training.config import (
    SHAPENET_FOCAL,
    DiscriminatorConfig,
    GeneratorConfig,
    LossConfig,
    OptimizerConfig,
    RenderingConfig,
    RunConfig,
    StageConfig,
    check,
)

CONTINUED_ADA_KIMG = 100.0
# Table 2 of the paper, in options. E is the full method. What a row does not use is not built, computed or saved.
ABLATIONS = {
    'A': dict(branch_3d='coarse', imitation='none', patch_weight=0.0),  # P^c rendered directly
    'B': dict(branch_3d='coarse', patch_weight=0.0),  # + imitation
    'C': dict(patch_weight=0.0),  # + S3D
    'D': dict(imitation='none'),  # S3D and D3D without imitation
    'E': {},
}
AWARE = {name: dict(aware=name) for name in ('none', 'latent', 'triplane', 'stream')}  # table 3
ABLATIONS_PRESET = 'ffhq256'  # that the paper made tables 2 and 3 with

_FFHQ_CAMERAS = dict(near=2.25, far=3.3, box_size=1.0, camera_radius=2.7, camera_pivot=(0.0, 0.0, 0.2))
_AFHQ_CAMERAS = dict(_FFHQ_CAMERAS, camera_pivot=(0.0, 0.0, -0.06))
_CARS = dict(
    near=0.1,
    far=2.6,
    box_size=1.6,
    depth_samples=64,
    importance_samples=64,
    white_background=True,
    camera_radius=1.7,
    camera_pivot=(0.0, 0.0, 0.0),
    focal=SHAPENET_FOCAL,
)
_SR = {
    512: dict(sr_input_resolution=128, sr_channels=(256, 128)),
    256: dict(sr_input_resolution=128, sr_channels=(128, 64), sr_resize_larger=False),
    128: dict(sr_input_resolution=64, sr_channels=(128, 64)),
}


@dataclass(frozen=True)
class Preset:
    """One row of the table of presets (docs/method.md, section 5)."""

    resolution: int
    rendering: dict
    gamma: float
    patch_weight: float
    stage1_kimg: float = 25000
    stage2_kimg: float = 15000
    augment: str = 'none'
    generator: dict = field(default_factory=dict)  # changes to the defaults of GeneratorConfig
    discriminator: dict = field(default_factory=dict)  # of both DiscriminatorConfigs
    loss: dict = field(default_factory=dict)  # of LossConfig, both stages
    optimizer: dict = field(default_factory=dict)
    run: dict = field(default_factory=dict)


_DEMO = Preset(  # minutes on two CPU cores: small networks, high learning rates, no pretrained weights, objects on white
    resolution=64,
    gamma=0.3,
    patch_weight=0.2,
    stage1_kimg=12,
    stage2_kimg=5,
    rendering=dict(_FFHQ_CAMERAS, camera_pivot=(0.0, 0.0, 0.0), depth_samples=8, importance_samples=6, white_background=True),
    generator=dict(
        z_dim=64,
        w_dim=128,
        render_resolution=16,
        plane_resolution=16,
        plane_channels=16,
        channel_base=512,
        channel_max=64,
        decoder_hidden=32,
        sr_input_resolution=16,
        sr_channels=(16, 8),
        precision='fp32',
        conv_clamp=None,
    ),
    discriminator=dict(channel_base=512, channel_max=64, mapping_layers=2, precision='fp32', conv_clamp=None),
    loss=dict(imitation='pyramid', blur_fade_kimg=2.0, swap_fade_kimg=12.0, density_points=200),
    optimizer=dict(g_lr=0.008, d_lr=0.006, lr_rampup_kimg=0.5),
    run=dict(batch=8, tick_kimg=1.0, snapshot_ticks=4, ema_kimg=0.3, share_fakes=True, workers=0, grid_size=(8, 4)),
)


def _eg3d(resolution, rendering, **changes):
    """A row of EG3D: its planes, no 3D-aware convolutions, the 2D branch alone."""
    generator = dict(aware='none', branch_3d='none', plane_order='eg3d')
    return Preset(resolution, rendering, patch_weight=0.0, stage2_kimg=0, generator=generator, **changes)


PRESETS = {
    'ffhq512': Preset(512, _FFHQ_CAMERAS, gamma=1, patch_weight=0.1),
    'ffhq256': Preset(256, _FFHQ_CAMERAS, gamma=1, patch_weight=0.2),
    'afhq512': Preset(512, _AFHQ_CAMERAS, gamma=5, patch_weight=0.1, augment='ada', stage1_kimg=4000, stage2_kimg=6200),
    'afhq256': Preset(256, _AFHQ_CAMERAS, gamma=5, patch_weight=0.2, augment='ada', stage1_kimg=1600, stage2_kimg=10000),
    'shapenet128': Preset(128, _CARS, gamma=1, patch_weight=0.2, stage2_kimg=13600),
    # EG3D itself. The render grows from 64 to 128 pixels over 1000 kimg: after 25 000 kimg on FFHQ, from the first image on cats,
    # which start from FFHQ's weights. How long training goes on after that is our choice.
    'eg3d-ffhq512': _eg3d(
        512, _FFHQ_CAMERAS, gamma=1, stage1_kimg=27500, run=dict(render_resolution_end=128, render_growth_start_kimg=25000.0)
    ),
    'eg3d-afhq512': _eg3d(
        512, _AFHQ_CAMERAS, gamma=5, stage1_kimg=4000, augment='ada', loss=dict(swap_end=0.8), run=dict(render_resolution_end=128)
    ),
    'eg3d-shapenet128': _eg3d(128, _CARS, gamma=0.3),
    'demo': _DEMO,
}


def generator_config(preset, **changes):
    """The generator of a preset row."""
    values = {'image_resolution': preset.resolution, **_SR.get(preset.resolution, {}), **preset.generator}
    return GeneratorConfig(rendering=RenderingConfig(**preset.rendering), **values).replace(**changes)


def resolve(name, data, outdir):
    """The full configuration of a preset. Raises ConfigError for a name that is not in the table."""
    check(name in PRESETS, f'--preset={name} is unknown; choose one of: {", ".join(PRESETS)}')
    row = PRESETS[name]
    generator = generator_config(row)
    discriminator = DiscriminatorConfig(resolution=row.resolution, **row.discriminator)
    patch = discriminator.replace(resolution=generator.render_resolution, c_dim=0)
    loss = LossConfig(r1_gamma=row.gamma, r1_gamma_patch=row.gamma, patch_weight=row.patch_weight).replace(**row.loss)
    stage1 = StageConfig(kimg=row.stage1_kimg, loss=loss)
    return RunConfig(
        preset=name,
        data=str(data),
        outdir=str(outdir),
        generator=generator,
        discriminator=discriminator,
        patch_discriminator=patch,
        optimizer=OptimizerConfig(**row.optimizer),
        augment=row.augment,
        stage1=stage1,
        stage2=second_stage(stage1, row.stage2_kimg),
        **row.run,
    )


def continuing(stage):
    """The schedules of a stage that goes on from given weights: no blur, no ramps, a five times faster ADA."""
    loss = stage.loss.replace(blur_fade_kimg=0.0, swap_start=stage.loss.swap_end, swap_fade_kimg=0.0)
    return stage.replace(loss=loss, ema_rampup=None, ada_kimg=CONTINUED_ADA_KIMG)


def from_nothing(stage, first):
    """`stage` with the schedules of `first`, a stage that starts with random weights."""
    names = ('blur_init_sigma', 'blur_fade_kimg', 'swap_start', 'swap_end', 'swap_fade_kimg')
    loss = stage.loss.replace(**{name: getattr(first.loss, name) for name in names})
    return stage.replace(loss=loss, ema_rampup=first.ema_rampup, ada_kimg=first.ada_kimg)


def second_stage(first, kimg):
    """Stage 2 goes on from stage 1's weights, with half the step of the density regularisation."""
    stage = continuing(first).replace(kimg=kimg)
    return stage.replace(loss=stage.loss.replace(density_spread=first.loss.density_spread / 2))


def ablation_options(name, row):
    """All that tells the rows of table 2 apart, in options: a row's own, and the preset's where it has none."""
    config = resolve(name, 'data', 'out')
    loss = config.stage2.loss
    own = dict(branch_3d=config.generator.branch_3d, imitation=loss.imitation, patch_weight=loss.patch_weight)
    return own | ABLATIONS[row]


def differences(config):
    """What sets a run apart from the full method: a list of phrases."""
    G, loss = config.generator, config.stage2.loss
    trains_3d = config.stage2.kimg > 0
    aware = {
        'none': 'no 3D-aware convolutions',
        'latent': '3D-aware convolutions in E itself, no stream',
        'triplane': "3D-aware convolutions in E's output stream, no stream beside it",
    }
    phrases = {
        aware.get(G.aware): G.aware != 'stream',
        "EG3D's planes, of which none is y-z": G.plane_order == 'eg3d',
        'no 3D branch (stage 1 alone)': not trains_3d,
        'the 3D branch renders the coarse planes, no S3D': trains_3d and G.branch_3d == 'coarse',
        'no imitation': trains_3d and loss.imitation == 'none',
        'imitation by a Laplacian pyramid instead of LPIPS': trains_3d and loss.imitation == 'pyramid',
        'no patch discriminator D3D': trains_3d and loss.patch_weight == 0,
        'both branches from the first image, no stage 1': config.stage1.kimg == 0 and config.init_from is None,
        'no conditioning on the camera': not G.pose_conditioning,
        'one set of fakes for all networks of a step': config.share_fakes,
        f'a volume render that grows to {config.render_resolution_end} pixels': config.render_resolution_end is not None,
    }
    return [phrase for phrase, holds in phrases.items() if holds]


@functools.cache
def ablation_differences():
    """{'table2' or 'table3': {row: `differences` of that row of the paper}}."""
    full = resolve(ABLATIONS_PRESET, 'data', 'out')
    return {
        table: {row: differences(with_options(full, options)) for row, options in rows.items()}
        for table, rows in (('table2', ABLATIONS), ('table3', AWARE))
    }


def experiment(config, stage):
    """Which experiment of the paper the networks of a run are after stage 1 or 2, as plain data.

    'differences': from the full method; 'table2', 'table3': the row of each table, None where it has none of these networks and
    losses. Other differences (the preset, LPIPS or not, ...) do not decide on the row.
    """
    trained = config if stage == 2 else config.replace(stage2=config.stage2.replace(kimg=0.0))
    found, tables = differences(trained), ablation_differences()
    decisive = {phrase for rows in tables.values() for phrases in rows.values() for phrase in phrases}
    own = decisive.intersection(found)
    placed = {table: next((row for row in rows if own == set(rows[row])), None) for table, rows in tables.items()}
    if stage == 1:
        placed['table2'] = None  # its rows share stage 1
    return {'preset': config.preset, 'differences': found, **placed}


# ---------------------------------------------------------------------------------------------------------------------
# Options


def with_options(config, given):
    """The RunConfig with every given option {name: value} in its place. Raises ConfigError for what cannot work together."""
    values = flat(config.to_dict())
    values |= {path: given[option.name] for path, option in settings(RunConfig).items() if option.name in given}
    values['patch_discriminator.resolution'] = values['generator.render_resolution']
    asked = RunConfig.from_dict(nested(values))
    return asked.replace(**_scheduled(asked, given, config.stage2.loss.blur_fade_kimg))


def _scheduled(asked, given, stage2_blur):
    """Both stages with the schedules of what they start from.

    Given weights have no use for blur and ramps, in whichever stage comes first, nor has a stage 2 that follows stage 1. From
    nothing, the first stage has them, also where that is stage 2 (supplement, section II.1).
    """
    stage1, stage2 = asked.stage1, asked.stage2
    first = stage1 if stage1.kimg > 0 else stage2
    if asked.init_from is None or asked.fresh_schedules:
        first = from_nothing(first, stage1)
    elif 'init_from' in given:  # else it is a run that goes on, whose schedules are settled
        first = continuing(first)
        first = first.replace(loss=first.loss.replace(blur_fade_kimg=given.get('blur_fade', 0.0)))
    if stage1.kimg == 0:
        return {'stage2': first}
    ramps = dict(blur_fade_kimg=stage2_blur)  # --blur-fade and the ramp to --swap are stage 1's
    if 'swap' in given:
        ramps['swap_start'] = given['swap']
    return {'stage1': first, 'stage2': stage2.replace(loss=stage2.loss.replace(**ramps))}
