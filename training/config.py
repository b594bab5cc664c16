"""What a run is: frozen, validated configuration objects and the preset table.

Every object turns into plain data with `to_dict` and back with `from_dict`; an unknown key is an error.
Numbers of the presets: paper and release, see docs/fidelity.md.
"""

import dataclasses
import math
import re
import typing
from dataclasses import dataclass, field
from typing import NamedTuple

from dnnlib.errors import UserError

AUTO = 'auto'
FFHQ_FOCAL = 2985.29 / 700  # of FFHQ's and AFHQ's cameras, in image widths
SHAPENET_FOCAL = 1.7074  # of ShapeNet's viewer cameras, in image widths
PLANE_AXES = {
    'mimic3d': ('xy', 'yz', 'zx'),  # width axis, then height axis, of each plane
    'eg3d': ('xy', 'xz', 'zx'),  # EG3D's own planes: y-z is missing there, kept for its checkpoints
}
PLANE_ACTIVATIONS = ('linear', 'tanh', 'sigmoid')
PRECISIONS = ('fp32', 'fp16', 'bf16')
RENDER_PRECISIONS = ('fp32', 'tf32x3', 'tf32', 'fp16', 'bf16')
RAW_RESIZE_FILTERS = ('antialiased', 'classic', 'none')


CONTINUED_ADA_KIMG = 100.0
MOST_KIMG = 1e9  # more is a slip of the keyboard, and larger than counters can be
MOST_MINUTES = 1e6


class ConfigError(UserError):
    """A configuration that cannot work, with the name of the option and the cure."""


def check(condition, message):
    if not condition:
        raise ConfigError(message)


def is_power_of_two(value):
    return value >= 1 and value & (value - 1) == 0


class Config:
    """Plain-data conversion shared by all configuration objects."""

    def to_dict(self):
        return dataclasses.asdict(self)

    @classmethod
    def from_dict(cls, values):
        """Rebuild from plain data. Raises ConfigError for a key that this object does not have."""
        fields = {item.name: item for item in dataclasses.fields(cls)}
        unknown = sorted(set(values) - set(fields))
        check(not unknown, f'{cls.__name__} has no field {", ".join(unknown)}; it has: {", ".join(fields)}')
        hints = typing.get_type_hints(cls)
        return cls(**{name: _restore(hints[name], value) for name, value in values.items()})

    def replace(self, **changes):
        return dataclasses.replace(self, **changes)

    def check_finite(self):
        """Raise ConfigError for a field that is infinite or not a number."""
        for name, value in vars(self).items():
            numbers = value if isinstance(value, tuple) else (value,)
            check(all(math.isfinite(n) for n in numbers if isinstance(n, float)), f'{name} must be finite, got {value}')


def _restore(hint, value):
    """JSON knows neither tuples nor our classes."""
    if isinstance(value, dict) and dataclasses.is_dataclass(hint):
        return hint.from_dict(value)
    return tuple(value) if isinstance(value, list) else value


@dataclass(frozen=True)
class RenderingConfig(Config):
    """Volume rendering and the cameras of the data (docs/method.md, sections 2 and 4)."""

    near: float | str = 2.25  # world units along the ray, or 'auto': where the ray enters the box
    far: float | str = 3.3
    box_size: float = 1.0  # side of the cube that the planes cover, world units
    depth_samples: int = 48  # stratified samples per ray
    importance_samples: int = 48
    white_background: bool = False
    camera_radius: float = 2.7  # viewer cameras: distance from the world's origin
    camera_pivot: tuple = (0.0, 0.0, 0.2)  # viewer cameras: the point looked at
    focal: float = FFHQ_FOCAL  # viewer cameras: in image widths
    precision: str = 'fp32'  # what the fused renderer may round to; the PyTorch renderer computes in fp32 throughout

    def __post_init__(self):
        self.check_finite()
        check((self.near == AUTO) == (self.far == AUTO), "near and far must both be numbers or both be 'auto'")
        if self.near != AUTO:
            check(0 <= self.near < self.far, f'near ({self.near}) must be at least 0 and below far ({self.far})')
        check(self.box_size > 0, f'box_size must be positive, got {self.box_size}')
        check(self.depth_samples >= 4, f'depth_samples must be at least 4, got {self.depth_samples}')
        check(self.precision in RENDER_PRECISIONS, f'precision must be one of {", ".join(RENDER_PRECISIONS)}, '
              f'got {self.precision!r}')
        check(self.importance_samples >= 0, f'importance_samples cannot be negative, got {self.importance_samples}')

    @property
    def background(self):
        """'white' or 'black': what rays that meet nothing show, and what transparent pixels of the data are composited on."""
        return 'white' if self.white_background else 'black'


@dataclass(frozen=True)
class GeneratorConfig(Config):
    """The generator: mapping, E, 3D-aware stream, S3D, decoder, S2D (docs/method.md, section 3)."""

    z_dim: int = 512
    w_dim: int = 512
    c_dim: int = 25
    mapping_layers: int = 2
    pose_conditioning: bool = True  # False: the mapping network sees zeros in place of the camera
    conditioning_scale: float = 1.0
    image_resolution: int = 512
    render_resolution: int = 64  # pixels per side of the 2D branch's volume render and of a patch
    plane_resolution: int = 256
    plane_channels: int = 32
    plane_order: str = 'mimic3d'
    plane_activation: str = 'linear'
    channel_base: int = 32768  # E has min(channel_base / resolution, channel_max) channels
    channel_max: int = 512
    aware_stream: bool = True  # the 3D-aware stream beside E's output stream
    aware_latent: bool = False  # in its place, 3D-aware convolutions in E itself (paper table 3, '3D-aware latent')
    residual: bool = True  # S3D and the 3D branch
    decoder_hidden: int = 64
    decoder_lr_multiplier: float = 1.0
    sr_input_resolution: int = 128
    sr_channels: tuple = (256, 128)  # channels of S2D's two blocks
    sr_resize_larger: bool = True  # resize raw renders that are larger than S2D's input, too
    sr_antialias: bool = True
    sr_noise_mode: str = 'none'
    precision: str = 'fp16'  # of S2D
    conv_clamp: float | None = 256.0  # of S2D
    rendering: RenderingConfig = field(default_factory=RenderingConfig)

    def __post_init__(self):
        for name in ('image_resolution', 'plane_resolution', 'sr_input_resolution'):
            value = getattr(self, name)
            check(is_power_of_two(value) and value >= 4, f'{name} must be a power of two from 4 up, got {value}')
        check(self.plane_order in PLANE_AXES, f'plane_order must be one of {", ".join(PLANE_AXES)}, got {self.plane_order!r}')
        check(self.plane_activation in PLANE_ACTIVATIONS, f'plane_activation must be one of {", ".join(PLANE_ACTIVATIONS)}')
        check(self.precision in PRECISIONS, f'precision must be one of {", ".join(PRECISIONS)}, got {self.precision!r}')
        check(self.channel_base >= self.plane_resolution and self.channel_max >= 1, "the generator's channel_base must be at "
              f'least plane_resolution ({self.plane_resolution}) and channel_max at least 1')
        ratio = self.image_resolution // self.sr_input_resolution
        check(ratio in (2, 4), f'image_resolution must be 2 or 4 times sr_input_resolution, got {self.image_resolution} '
              f'and {self.sr_input_resolution}')
        check(self.plane_channels >= 3 or not self.residual, 'plane_channels must be at least 3')
        check(not (self.aware_stream and self.aware_latent),
              'aware_stream and aware_latent exclude each other; set one to False')
        check(self.residual <= (self.aware_stream or self.aware_latent), 'residual needs aware_stream or aware_latent: S3D continues it')
        check(self.render_resolution <= self.image_resolution, f'render_resolution ({self.render_resolution}) must not exceed '
              f'image_resolution ({self.image_resolution})')
        largest = self.largest_s2d_render
        check(self.render_resolution <= largest, f'render_resolution ({self.render_resolution}) must not exceed {largest}, '
              'the input of S2D, which does not resize larger renders here (sr_resize_larger is False)')

    @property
    def largest_s2d_render(self):
        """Pixels per side of the largest volume render that S2D takes; infinity where it resizes larger ones."""
        return math.inf if self.sr_resize_larger else self.sr_input_resolution

    @property
    def plane_axes(self):
        return PLANE_AXES[self.plane_order]


@dataclass(frozen=True)
class DiscriminatorConfig(Config):
    """D2D (dual, conditional: c_dim > 0) or D3D (docs/method.md, section 3)."""

    resolution: int = 512
    c_dim: int = 25
    channel_base: int = 32768
    channel_max: int = 512
    mapping_layers: int = 8
    minibatch_group: int = 4
    low_precision_resolutions: int = 4  # how many of the highest resolutions run in `precision`
    precision: str = 'fp16'
    conv_clamp: float | None = 256.0
    raw_resize: str | float = 'antialiased'

    def __post_init__(self):
        check(is_power_of_two(self.resolution) and self.resolution >= 8,
              f'a discriminator needs a resolution that is a power of two from 8 up, got {self.resolution}')
        check(self.channel_base >= self.resolution and self.channel_max >= 1, "the discriminator's channel_base must be at "
              f'least its resolution ({self.resolution}) and channel_max at least 1')
        check(self.precision in PRECISIONS, f'precision must be one of {", ".join(PRECISIONS)}, got {self.precision!r}')
        known = self.raw_resize in RAW_RESIZE_FILTERS or (isinstance(self.raw_resize, float) and 0 < self.raw_resize < 1)
        check(known, f'raw_resize must be one of {", ".join(RAW_RESIZE_FILTERS)} or a number between 0 and 1')


@dataclass(frozen=True)
class LossConfig(Config):
    """The objectives of one stage (docs/method.md, sections 1 and 5)."""

    r1_gamma: float = 1.0
    r1_gamma_patch: float = 1.0
    imitation: str = 'lpips'  # 'lpips', 'pyramid' or 'none'
    imitation_weight: float = 1.0
    patch_weight: float = 0.1  # lambda_p, of the generator's patch term
    density_weight: float = 0.25
    density_spread: float = 0.004  # standard deviation of the perturbation, world units
    density_points: int = 1000
    blur_init_sigma: float = 10.0  # pixels
    blur_fade_kimg: float = 200.0  # 0: no blur
    swap_start: float = 1.0  # probability that the mapping network gets the neighbour's camera
    swap_end: float = 0.5
    swap_fade_kimg: float = 1000.0

    def __post_init__(self):
        self.check_finite()
        check(self.imitation in ('lpips', 'pyramid', 'none'), f"imitation must be 'lpips', 'pyramid' or 'none', got {self.imitation!r}")
        for name in ('swap_start', 'swap_end'):
            check(0 <= getattr(self, name) <= 1, f'{name} must lie in [0, 1], got {getattr(self, name)}')


@dataclass(frozen=True)
class StageConfig(Config):
    """One stage of a run: how long, and what changes between the stages (docs/method.md, section 5)."""

    kimg: float
    loss: LossConfig
    ema_rampup: float | None = 0.05  # None: no ramp
    ada_kimg: float = 500.0

    def __post_init__(self):
        self.check_finite()
        check(self.kimg <= MOST_KIMG, f'--stage1-kimg and --stage2-kimg can be {MOST_KIMG:.0f} at most, got {self.kimg}')


@dataclass(frozen=True)
class OptimizerConfig(Config):
    """Adam with lazy regularisation."""

    g_lr: float = 0.0025
    d_lr: float = 0.002
    beta1: float = 0.0
    beta2: float = 0.99
    eps: float = 1e-8
    density_interval: int = 4
    r1_interval: int = 16
    lr_rampup_kimg: float = 0.0  # a stage's learning rates rise linearly over so many thousand images; 0: at once

    def __post_init__(self):
        self.check_finite()


@dataclass(frozen=True)
class RunConfig(Config):
    """A whole run of train.py; saved as training_options.json."""

    preset: str
    data: str
    outdir: str
    generator: GeneratorConfig
    discriminator: DiscriminatorConfig
    patch_discriminator: DiscriminatorConfig
    stage1: StageConfig
    stage2: StageConfig
    optimizer: OptimizerConfig = field(default_factory=OptimizerConfig)
    batch: int = 32
    batch_gpu: int | None = None  # images per process and forward pass; None: all at once
    gpus: int = 1
    seed: int = 0
    mirror: bool = False
    workers: int = 3
    augment: str = 'none'  # 'none' or 'ada'
    ada_target: float = 0.6
    ada_interval: int = 4
    ema_kimg: float | None = None  # half-life of G's average; None: batch * 10 / 32
    share_fakes: bool = False  # all players of a step judge the same fakes: one forward pass instead of three
    tf32: bool = False
    tick_kimg: float = 4.0
    snapshot_ticks: int = 50
    init_from: str | None = None
    fresh_schedules: bool = False  # with init_from: blur, ramps and ADA begin as in a run from nothing
    lpips_weights: str | None = None
    grid_size: tuple | None = None  # columns and rows of the sample grids; None: by the image size
    threads: int | None = None
    state_every: str = '15min'  # how often the training state is saved: '<number>min' or '<number>kimg'
    keep_states: int = 2
    max_minutes: float | None = None  # the run stops, to be resumed, after so long; None or 0: never
    max_bad_steps: int = 50  # gradients that are not finite in a row, before the run stops
    timeout_minutes: float = 30.0  # how long a process waits for the others
    metrics: tuple = ()  # names of metrics that are computed for snapshots; the first one decides which is the best
    metrics_every: int = 1  # snapshots from one evaluation to the next
    detector: str | None = None  # file of the metrics' feature detector; None: torch-fidelity's cache or download

    def __post_init__(self):
        self.check_finite()
        check(self.batch >= 1 and self.gpus >= 1, '--batch and --gpus must be at least 1')
        check(self.batch % self.gpus == 0, f'--batch={self.batch} does not divide by --gpus={self.gpus}; choose a multiple')
        per_pass = self.batch_per_pass
        check(self.batch % (self.gpus * per_pass) == 0, f'--batch={self.batch} does not divide by --gpus={self.gpus} times '
              f'--batch-gpu={per_pass}; choose a --batch-gpu that divides {self.batch // self.gpus}')
        for name, config in (('D2D', self.discriminator), ('D3D', self.patch_discriminator)):
            group = config.minibatch_group
            check(per_pass % min(group, per_pass) == 0, f'{per_pass} images per pass do not divide into the groups of {group} '
                  f"of {name}'s minibatch statistics; choose --batch and --batch-gpu so that they do")
        check(self.discriminator.resolution == self.generator.image_resolution, 'discriminator.resolution must be the image resolution')
        check(self.patch_discriminator.resolution == self.generator.render_resolution, "patch_discriminator.resolution must be the patch's")
        check(self.augment in ('none', 'ada'), f"--augment must be 'none' or 'ada', got {self.augment!r}")
        check(self.keep_states >= 1 and self.max_bad_steps >= 1, '--keep-states and --max-bad-steps must be at least 1')
        check(self.metrics_every >= 1, '--metrics-every must be at least 1')
        parse_interval(self.state_every)
        check(0 < self.tick_kimg <= MOST_KIMG, f'--tick={self.tick_kimg} must be above 0 and at most {MOST_KIMG:.0f}')
        check(0 < self.timeout_minutes <= MOST_MINUTES, f'--timeout={self.timeout_minutes} must be above 0 and at most {MOST_MINUTES:.0f}')
        check(self.stage1.kimg >= 0 and self.stage2.kimg >= 0, '--stage1-kimg and --stage2-kimg cannot be negative')
        check(self.init_from is not None or not self.fresh_schedules, '--fresh-schedules is for runs with --init-from; leave it out: '
              'a run from nothing has these schedules anyway')
        check(self.stage1.kimg + self.stage2.kimg > 0, 'nothing to train: --stage1-kimg and --stage2-kimg are both 0')

    def steps_of(self, stage):
        """Steps that a StageConfig takes."""
        return math.ceil(round(stage.kimg * 1000) / self.batch)

    @property
    def total_images(self):
        return (self.steps_of(self.stage1) + self.steps_of(self.stage2)) * self.batch

    @property
    def steps_per_tick(self):
        return math.ceil(self.tick_kimg * 1000 / self.batch)

    @property
    def batch_per_pass(self):
        return self.batch_gpu or self.batch // self.gpus

    @property
    def images_per_group(self):
        """Of the discriminators' minibatch statistics."""
        return min(self.discriminator.minibatch_group, self.batch_per_pass)

    @property
    def ema_half_life_kimg(self):
        return self.batch * 10 / 32 if self.ema_kimg is None else self.ema_kimg


class Interval(NamedTuple):
    """Whichever comes first: so many images or so many seconds."""

    images: float
    seconds: float


def parse_interval(text):
    """'10min' or '50kimg' as an Interval. Raises ConfigError for anything else."""
    match = re.fullmatch(r'(\d+(?:\.\d+)?)(min|kimg)', text)
    check(match and float(match[1]) > 0, f'--state-every={text} is no interval; write minutes or '
          'thousands of images, such as 15min or 50kimg')
    amount = float(match[1])
    return Interval(math.inf, amount * 60) if match[2] == 'min' else Interval(amount * 1000, math.inf)


# ---------------------------------------------------------------------------------------------------------------------
# Presets

_FFHQ_CAMERAS = dict(near=2.25, far=3.3, box_size=1.0, camera_radius=2.7, camera_pivot=(0.0, 0.0, 0.2))
_AFHQ_CAMERAS = dict(_FFHQ_CAMERAS, camera_pivot=(0.0, 0.0, -0.06))
_CARS = dict(near=0.1, far=2.6, box_size=1.6, depth_samples=64, importance_samples=64, white_background=True,
             camera_radius=1.7, camera_pivot=(0.0, 0.0, 0.0), focal=SHAPENET_FOCAL)
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
    resolution=64, gamma=0.3, patch_weight=0.2, stage1_kimg=12, stage2_kimg=5,
    rendering=dict(_FFHQ_CAMERAS, camera_pivot=(0.0, 0.0, 0.0), depth_samples=8, importance_samples=6, white_background=True),
    generator=dict(z_dim=64, w_dim=128, render_resolution=16, plane_resolution=16, plane_channels=16, channel_base=512,
                   channel_max=64, decoder_hidden=32, sr_input_resolution=16, sr_channels=(16, 8), precision='fp32', conv_clamp=None),
    discriminator=dict(channel_base=512, channel_max=64, mapping_layers=2, precision='fp32', conv_clamp=None),
    loss=dict(imitation='pyramid', blur_fade_kimg=2.0, swap_fade_kimg=12.0, density_points=200),
    optimizer=dict(g_lr=0.008, d_lr=0.006, lr_rampup_kimg=0.5),
    run=dict(batch=8, tick_kimg=1.0, snapshot_ticks=4, ema_kimg=0.3, share_fakes=True, workers=0, grid_size=(8, 4)))

PRESETS = {
    'ffhq512': Preset(512, _FFHQ_CAMERAS, gamma=1, patch_weight=0.1),
    'ffhq256': Preset(256, _FFHQ_CAMERAS, gamma=1, patch_weight=0.2),
    'afhq512': Preset(512, _AFHQ_CAMERAS, gamma=5, patch_weight=0.1, augment='ada', stage1_kimg=4000, stage2_kimg=6200),
    'afhq256': Preset(256, _AFHQ_CAMERAS, gamma=5, patch_weight=0.2, augment='ada', stage1_kimg=1600, stage2_kimg=10000),
    'shapenet128': Preset(128, _CARS, gamma=1, patch_weight=0.2, stage2_kimg=13600),
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
        preset=name, data=str(data), outdir=str(outdir), generator=generator, discriminator=discriminator,
        patch_discriminator=patch, optimizer=OptimizerConfig(**row.optimizer), augment=row.augment,
        stage1=stage1, stage2=second_stage(stage1, row.stage2_kimg), **row.run)


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
