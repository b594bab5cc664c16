"""What a run is: frozen, validated configuration objects, whose fields declare their command-line options.

Every object turns into plain data with `to_dict` and back with `from_dict`; an unknown key is an error.
"""

import dataclasses
import math
import re
import typing
from dataclasses import dataclass, field

import click

from dnnlib.errors import UserError
from dnnlib.options import setting
from dnnlib.params import FiniteFloat, FiniteRange, UserPath, name_list

FFHQ_FOCAL = 2985.29 / 700  # FFHQ and AFHQ, in image widths
SHAPENET_FOCAL = 1.7074  # ShapeNet's viewer cameras, in image widths
AUTO = 'auto'
PLANE_AXES = {
    'mimic3d': ('xy', 'yz', 'zx'),  # width axis, then height axis, of each plane
    'eg3d': ('xy', 'xz', 'zx'),  # EG3D's own planes: y-z is missing there, kept for its checkpoints
}
PLANE_ACTIVATIONS = ('linear', 'tanh', 'sigmoid')
RENDER_PRECISIONS = ('fp32', 'tf32x3', 'tf32', 'fp16', 'bf16')
RAW_RESIZE_FILTERS = ('antialiased', 'classic', 'none')
NOISE_MODES = ('const', 'random', 'none')

POSITIVE, NOT_NEGATIVE, COUNT = FiniteRange(0, min_open=True), FiniteRange(0), click.IntRange(1)
GROUPS = TRAINING, LOSSES, SCHEDULES, NETWORKS, RENDERING, MACHINE, OUTPUT = (  # headings of train.py --help
    'Training',
    'Losses',
    'Schedules',
    'Networks',
    'Rendering and cameras',
    'Machine',
    'Saving and metrics',
)

_LARGEST_CLAMP = 1e30  # in fp32, times a layer's gain
_LARGEST_INTEGER = 2**53  # up to which a float is exact
MOST_KIMG = 10**9  # more is a slip of the keyboard, and larger than counters can be
MOST_MINUTES = 10**6


class ConfigError(UserError):
    """A configuration that cannot work, with the name of the option and the cure."""


def check(condition, message):
    if not condition:
        raise ConfigError(message)


def near_or_far(value):
    """A distance in world units, or 'auto'."""
    if value == AUTO:
        return value
    try:
        return FiniteFloat().convert(value, None, None)
    except click.BadParameter:
        raise click.BadParameter(f"{value} is neither a finite number nor 'auto'") from None


def _precision():
    return setting(
        'fp16',
        '--precision',
        click.Choice(['fp32', 'fp16', 'bf16']),
        'Floating-point type of S2D and the highest resolutions of the discriminators.',
        MACHINE,
    )


def _gamma():
    return setting(1.0, '--gamma', NOT_NEGATIVE, 'R1 weight of both discriminators.', LOSSES)


class Config:
    """Plain-data conversion shared by all configuration objects."""

    def to_dict(self):
        return dataclasses.asdict(self)

    @classmethod
    def from_dict(cls, values):
        """Rebuild from plain data. Raises ConfigError for a key that this object does not have, or a value of another type."""
        hints = typing.get_type_hints(cls)
        unknown = sorted(set(values) - set(hints))
        check(not unknown, f'{cls.__name__} has no field {", ".join(unknown)}; it has: {", ".join(hints)}')
        values = {name: _restore(hints[name], value) for name, value in values.items()}
        flags = {item.name: item.metadata['option'].flag for item in dataclasses.fields(cls) if 'option' in item.metadata}
        for name, value in values.items():
            too_large = type(value) is int and abs(value) >= _LARGEST_INTEGER
            check(not too_large, f'{flags.get(name, name)}={str(value)[:40]} is larger than any number here can be')
            check(
                _is_of_type(value, hints[name]),
                f'{cls.__name__} has {name}={str(value)[:40]!r}, which is not of type {hints[name]}',
            )
        return cls(**values)

    def replace(self, **changes):
        return dataclasses.replace(self, **changes)

    def __post_init__(self):
        """Raise ConfigError for a field that is infinite or not a number, or that its own option would not take."""
        for item in dataclasses.fields(self):
            value = getattr(self, item.name)
            numbers = value if isinstance(value, tuple) else (value,)
            check(all(math.isfinite(n) for n in numbers if isinstance(n, float)), f'{item.name} must be finite, got {value}')
            kind = item.metadata['option'].attributes['type'] if 'option' in item.metadata else None
            if value is not None and isinstance(kind, (click.Choice, click.IntRange, click.FloatRange)):
                try:
                    kind.convert(value, None, None)
                except click.BadParameter as error:
                    raise ConfigError(f'{item.name}: {error.message}') from None


def _restore(hint, value):
    """JSON knows neither tuples nor our classes."""
    if isinstance(value, dict) and dataclasses.is_dataclass(hint):
        return hint.from_dict(value)
    return tuple(value) if isinstance(value, list) else value


def _is_of_type(value, hint):
    """Whether a value of plain data fits the type of a field. An integer is a float, too; a tuple has numbers or words."""
    kinds = typing.get_args(hint) or (hint,)
    if isinstance(value, tuple):
        return tuple in kinds and any(all(_is_of_type(item, kind) for item in value) for kind in (float, str))
    if type(value) is int:
        return int in kinds or float in kinds
    return type(value) in kinds


@dataclass(frozen=True)
class RenderingConfig(Config):
    """Volume rendering and the cameras of the data (docs/method.md, sections 2 and 4)."""

    near: float | str = setting(
        2.25, '--near', near_or_far, "Where rays start, world units, or 'auto': where they enter the box.", RENDERING
    )
    far: float | str = setting(3.3, '--far', near_or_far, "Where rays end, world units, or 'auto'.", RENDERING)
    box_size: float = setting(1.0, '--box', POSITIVE, 'Side of the cube that the tri-planes cover, world units.', RENDERING)
    depth_samples: int = setting(48, '--samples', click.IntRange(4), 'Stratified samples per ray.', RENDERING)
    importance_samples: int = setting(48, '--importance-samples', click.IntRange(0), 'Importance samples per ray.', RENDERING)
    white_background: bool = setting(False, '--white-background', click.BOOL, 'Composite on white.', RENDERING)
    camera_radius: float = setting(
        2.7, '--camera-radius', POSITIVE, "Viewer cameras: distance from the world's origin.", RENDERING
    )
    camera_pivot: tuple = (0.0, 0.0, 0.2)  # viewer cameras: the point looked at
    focal: float = setting(FFHQ_FOCAL, '--focal', POSITIVE, 'Viewer cameras: focal length, image widths.', RENDERING)
    # What the fused renderer may round to; the PyTorch renderer computes in fp32 throughout.
    precision: str = setting(
        'fp32', '--render-precision', click.Choice(RENDER_PRECISIONS), 'Rounding allowed in the fused renderer.', RENDERING
    )

    def __post_init__(self):
        super().__post_init__()
        check((self.near == AUTO) == (self.far == AUTO), "near and far must both be numbers or both be 'auto'")
        if self.near != AUTO:
            check(0 <= self.near < self.far, f'near ({self.near}) must be at least 0 and below far ({self.far})')
        check(len(self.camera_pivot) == 3, f'camera_pivot must be a point of three coordinates, got {self.camera_pivot}')

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
    # False: the mapping network sees zeros in place of the camera.
    pose_conditioning: bool = setting(True, '--pose-conditioning', click.BOOL, 'Condition the generator on the camera.', NETWORKS)
    conditioning_scale: float = 1.0
    image_resolution: int = 512
    render_resolution: int = setting(
        64, '--render-resolution', click.INT, "Pixels per side of the 2D branch's volume render and of a patch.", NETWORKS
    )
    plane_resolution: int = setting(
        256, '--plane-resolution', click.INT, 'Side of the coarse tri-planes; the residual ones have twice that.', NETWORKS
    )
    plane_channels: int = 32
    plane_order: str = setting(
        'mimic3d', '--plane-order', click.Choice(list(PLANE_AXES)), "Which planes; 'eg3d' has no y-z plane.", NETWORKS
    )
    plane_activation: str = 'linear'
    # E has min(channel_base / resolution, channel_max) channels.
    channel_base: int = 32768
    channel_max: int = 512
    # none: nowhere (EG3D); latent: in E itself; triplane: in E's output stream; stream: in a stream beside that.
    aware: str = setting(
        'stream',
        '--aware',
        click.Choice(['none', 'latent', 'triplane', 'stream']),
        'Where 3D-aware convolutions are (paper, table 3).',
        NETWORKS,
    )
    # coarse: P^c; residual: P^c + P^r, which S3D makes; none: no 3D branch (stage 1, EG3D).
    branch_3d: str = setting(
        'residual',
        '--branch-3d',
        click.Choice(['coarse', 'residual', 'none']),
        'The planes that the 3D branch of stage 2 renders.',
        NETWORKS,
    )
    decoder_hidden: int = 64
    decoder_lr_multiplier: float = 1.0
    sr_input_resolution: int = 128
    sr_channels: tuple = (256, 128)  # channels of S2D's two blocks
    sr_resize_larger: bool = True  # resize raw renders that are larger than S2D's input, too
    sr_antialias: bool = True
    sr_noise_mode: str = 'none'
    precision: str = _precision()  # of S2D
    conv_clamp: float | None = 256.0  # of S2D
    rendering: RenderingConfig = field(default_factory=RenderingConfig)

    def __post_init__(self):
        super().__post_init__()
        check(
            self.conv_clamp is None or 0 < self.conv_clamp < _LARGEST_CLAMP,
            f'conv_clamp must be positive or None, got {self.conv_clamp}',
        )
        for name in ('image_resolution', 'plane_resolution', 'sr_input_resolution'):
            value = getattr(self, name)
            check(value.bit_count() == 1 and value >= 4, f'{name} must be a power of two from 4 up, got {value}')
        choices = {'plane_activation': PLANE_ACTIVATIONS, 'sr_noise_mode': NOISE_MODES}
        for name, known in choices.items():
            check(getattr(self, name) in known, f'{name} must be one of {", ".join(known)}, got {getattr(self, name)!r}')
        check(
            self.channel_base >= self.plane_resolution and self.channel_max >= 1,
            "the generator's channel_base must be at "
            f'least plane_resolution ({self.plane_resolution}) and channel_max at least 1',
        )
        ratio = self.image_resolution // self.sr_input_resolution
        check(
            ratio in (2, 4),
            f'image_resolution must be 2 or 4 times sr_input_resolution, got {self.image_resolution} '
            f'and {self.sr_input_resolution}',
        )
        check(self.plane_channels >= 3 or not self.has_3d_branch, 'plane_channels must be at least 3')
        check(
            self.aware == 'none' or self.plane_order == 'mimic3d',
            f'--aware={self.aware} aligns planes (x,y), (y,z), (z,x), and --plane-order=eg3d has no (y,z): give --aware=none',
        )
        check(
            self.render_resolution <= self.image_resolution,
            f'render_resolution ({self.render_resolution}) must not exceed image_resolution ({self.image_resolution})',
        )
        largest = self.largest_s2d_render
        check(
            self.render_resolution <= largest,
            f'render_resolution ({self.render_resolution}) must not exceed {largest}, '
            'the input of S2D, which does not resize larger renders here (sr_resize_larger is False)',
        )

    @classmethod
    def from_dict(cls, values):
        """`Config.from_dict`, also of files that have three switches in the place of `aware` and `branch_3d`."""
        values = dict(values)
        if 'aware_stream' in values:
            stream, latent = values.pop('aware_stream'), values.pop('aware_latent', False)
            values['aware'] = 'latent' if latent else 'stream' if stream else 'none'
            values['branch_3d'] = 'residual' if values.pop('residual', True) else 'none'
        return super().from_dict(values)

    @property
    def has_3d_branch(self):
        return self.branch_3d != 'none'

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
    precision: str = _precision()
    conv_clamp: float | None = 256.0
    raw_resize: str | float = 'antialiased'

    def __post_init__(self):
        super().__post_init__()
        check(
            self.resolution.bit_count() == 1 and self.resolution >= 8,
            f'a discriminator needs a resolution that is a power of two from 8 up, got {self.resolution}',
        )
        check(
            self.channel_base >= self.resolution and self.channel_max >= 1,
            f"the discriminator's channel_base must be at least its resolution ({self.resolution}) and channel_max at least 1",
        )
        check(self.minibatch_group >= 1, f'minibatch_group must be at least 1, got {self.minibatch_group}')
        known = self.raw_resize in RAW_RESIZE_FILTERS or (isinstance(self.raw_resize, float) and 0 < self.raw_resize < 1)
        check(known, f'raw_resize must be one of {", ".join(RAW_RESIZE_FILTERS)} or a number between 0 and 1')


@dataclass(frozen=True)
class LossConfig(Config):
    """The objectives of one stage (docs/method.md, sections 1 and 5)."""

    r1_gamma: float = _gamma()
    r1_gamma_patch: float = _gamma()
    imitation: str = setting(
        'lpips', '--imitation', click.Choice(['lpips', 'pyramid', 'none']), 'Imitation loss of the 3D branch.', LOSSES
    )
    imitation_weight: float = 1.0
    patch_weight: float = setting(
        0.1, '--patch-weight', NOT_NEGATIVE, "lambda_p, of the generator's patch term; 0: no patch discriminator.", LOSSES
    )
    density_weight: float = setting(0.25, '--density-weight', NOT_NEGATIVE, 'Weight of the density regularisation.', LOSSES)
    density_spread: float = 0.004  # standard deviation of the perturbation, world units
    density_points: int = 1000
    blur_init_sigma: float = 10.0  # pixels
    blur_fade_kimg: float = setting(
        200.0,
        '--blur-fade',
        NOT_NEGATIVE,
        'Thousands of images over which the blur fades (times batch / 32); 0: no blur.',
        SCHEDULES,
    )
    swap_start: float = 1.0  # pose swap: probability that the mapping network gets the neighbour's camera
    swap_end: float = setting(
        0.5, '--swap', FiniteRange(0, 1), 'Pose swap of generator pose conditioning: probability after its ramp.', SCHEDULES
    )
    swap_fade_kimg: float = 1000.0

    def __post_init__(self):
        super().__post_init__()
        check(0 <= self.swap_start <= 1, f'swap_start must lie in [0, 1], got {self.swap_start}')


@dataclass(frozen=True)
class StageConfig(Config):
    """One stage of a run: how long, and what changes between the stages (docs/method.md, section 5)."""

    loss: LossConfig
    kimg: float = setting(
        dataclasses.MISSING,
        '--{}-kimg',
        FiniteRange(0, MOST_KIMG),
        'Length of {}, thousands of images; --stage1-kimg=0 trains both branches from the start.',
        TRAINING,
        resumable=('stage2',),
    )
    ema_rampup: float | None = 0.05  # None: no ramp
    ada_kimg: float = 500.0


@dataclass(frozen=True)
class OptimizerConfig(Config):
    """Adam with lazy regularisation."""

    g_lr: float = setting(0.0025, '--glr', POSITIVE, "Generator's learning rate.", TRAINING)
    d_lr: float = setting(0.002, '--dlr', POSITIVE, "Discriminators' learning rate.", TRAINING)
    beta1: float = 0.0
    beta2: float = 0.99
    eps: float = 1e-8
    density_interval: int = 4
    r1_interval: int = 16
    lr_rampup_kimg: float = setting(
        0.0, '--lr-rampup', NOT_NEGATIVE, "Thousands of images over which a stage's learning rates rise.", SCHEDULES
    )


@dataclass(frozen=True)
class RunConfig(Config):
    """A whole run of train.py; saved as training_options.json."""

    preset: str
    data: str  # absolute
    outdir: str
    generator: GeneratorConfig
    discriminator: DiscriminatorConfig
    patch_discriminator: DiscriminatorConfig
    stage1: StageConfig
    stage2: StageConfig
    optimizer: OptimizerConfig = field(default_factory=OptimizerConfig)
    batch: int = setting(32, '--batch', COUNT, 'Images per step over all processes.', TRAINING)
    # None: all of a process's images at once.
    batch_gpu: int | None = setting(
        None,
        '--batch-gpu',
        COUNT,
        'Images per process and pass (gradient accumulation); smaller saves memory.',
        MACHINE,
        resumable=True,
    )
    gpus: int = setting(
        1, '--gpus', COUNT, 'Processes, one per GPU (on a machine without: CPU processes).', MACHINE, resumable=True
    )
    seed: int = setting(0, '--seed', click.IntRange(0, 2**32 - 1), 'Random seed.', TRAINING)
    mirror: bool = setting(False, '--mirror', click.BOOL, 'Double the set by mirrored copies.', TRAINING)
    workers: int = setting(3, '--workers', click.IntRange(0), 'Processes that read images.', MACHINE, resumable=True)
    augment: str = setting(
        'none', '--augment', click.Choice(['none', 'ada']), 'Augmentation of what the discriminators see.', LOSSES
    )
    ada_target: float = 0.6  # of sign(D(real))
    ada_interval: int = 4
    # None: batch * 10 / 32.
    ema_kimg: float | None = setting(
        None, '--ema-kimg', NOT_NEGATIVE, "Half-life of the generator's moving average, thousands of images.", SCHEDULES
    )
    share_fakes: bool = setting(
        False,
        '--share-fakes',
        click.BOOL,
        'All networks of a step learn from the same fakes: one generator pass instead of three.',
        TRAINING,
    )
    tf32: bool = setting(False, '--tf32', click.BOOL, 'TF32 matrix products and convolutions.', MACHINE)
    tick_kimg: float = setting(
        4.0,
        '--tick',
        FiniteRange(0, MOST_KIMG, min_open=True),
        'Thousands of images between status lines.',
        OUTPUT,
        resumable=True,
    )
    snapshot_ticks: int = setting(50, '--snap', COUNT, 'Ticks between snapshots and sample grids.', OUTPUT, resumable=True)
    init_from: str | None = setting(
        None,
        '--init-from',
        UserPath(),
        'Snapshot whose weights the run starts from; of a folder, the newest one.',
        TRAINING,
        metavar='PATH',
    )
    fresh_schedules: bool = setting(
        False,
        '--fresh-schedules',
        click.BOOL,
        'With --init-from: blur, ramps and ADA begin as in a run from nothing.',
        SCHEDULES,
        is_flag=False,
        flag_value=True,
    )
    lpips_weights: str | None = setting(
        None,
        '--lpips-weights',
        UserPath(),
        "torchvision's VGG-16 weights for LPIPS; else torch's cache or a download.",
        LOSSES,
        metavar='FILE',
        resumable=True,
    )
    grid_size: tuple | None = None  # columns and rows of the sample grids; None: by the image size
    threads: int | None = setting(None, '--threads', COUNT, 'CPU threads per process.', MACHINE, resumable=True)
    state_every: str = setting(
        '15min',
        '--state-every',
        click.STRING,
        'How often to save the training state, such as 15min or 50kimg.',
        OUTPUT,
        metavar='INTERVAL',
        resumable=True,
    )
    keep_states: int = setting(2, '--keep-states', COUNT, 'Training states that are kept.', OUTPUT, resumable=True)
    max_minutes: float | None = setting(
        None,
        '--max-minutes',
        NOT_NEGATIVE,
        'Stop after so long, to be resumed (exit code 75); 0: never.',
        MACHINE,
        resumable=True,
    )
    max_bad_steps: int = setting(
        50, '--max-bad-steps', COUNT, 'Steps in a row whose gradients may be not finite.', MACHINE, resumable=True
    )
    timeout_minutes: float = setting(
        30.0,
        '--timeout',
        FiniteRange(0, MOST_MINUTES, min_open=True),
        'Minutes that a process waits for the others.',
        MACHINE,
        resumable=True,
    )
    # Names of metrics that are computed for snapshots; the first one decides which is the best.
    metrics: tuple = setting(
        (),
        '--metrics',
        name_list,
        'Metrics of calc_metrics.py to compute for snapshots, such as fid2k_full,swd; or none.',
        OUTPUT,
        metavar='NAMES',
        resumable=True,
    )
    metrics_every: int = setting(
        1, '--metrics-every', COUNT, 'Snapshots from one evaluation to the next.', OUTPUT, resumable=True
    )
    detector: str | None = setting(
        None,
        '--detector',
        UserPath(),
        "The metrics' feature detector; else torch-fidelity's cache or a download.",
        OUTPUT,
        metavar='FILE',
        resumable=True,
    )
    # EG3D: the 2D branch's volume render grows from render_resolution to this; None: it keeps its size.
    render_resolution_end: int | None = setting(
        None, '--render-resolution-end', COUNT, 'Pixels per side that the volume render of stage 1 grows to.', SCHEDULES
    )
    render_growth_start_kimg: float = setting(
        0.0, '--render-growth-start', NOT_NEGATIVE, 'Thousands of images after which the volume render grows.', SCHEDULES
    )
    render_growth_kimg: float = setting(
        1000.0, '--render-growth', NOT_NEGATIVE, 'Thousands of images over which the volume render grows.', SCHEDULES
    )
    data_content: str | None = None  # PosedImageDataset.content_hash of the data, which the run itself finds out

    def __post_init__(self):
        super().__post_init__()
        check(self.batch % self.gpus == 0, f'--batch={self.batch} does not divide by --gpus={self.gpus}; choose a multiple')
        per_pass = self.batch_per_pass
        check(
            self.batch % (self.gpus * per_pass) == 0,
            f'--batch={self.batch} does not divide by --gpus={self.gpus} times '
            f'--batch-gpu={per_pass}; choose a --batch-gpu that divides {self.batch // self.gpus}',
        )
        for name, config in (('D2D', self.discriminator), ('D3D', self.patch_discriminator)):
            group = config.minibatch_group
            check(
                per_pass % min(group, per_pass) == 0,
                f'{per_pass} images per pass do not divide into the groups of {group} '
                f"of {name}'s minibatch statistics; choose --batch and --batch-gpu so that they do",
            )
        check(
            self.discriminator.resolution == self.generator.image_resolution,
            'discriminator.resolution must be the image resolution',
        )
        check(
            self.patch_discriminator.resolution == self.generator.render_resolution,
            "patch_discriminator.resolution must be the patch's",
        )
        parse_interval(self.state_every)
        check(
            self.init_from is not None or not self.fresh_schedules,
            '--fresh-schedules is for runs with --init-from; leave it out: a run from nothing has these schedules anyway',
        )
        check(self.stage1.kimg + self.stage2.kimg > 0, 'nothing to train: --stage1-kimg and --stage2-kimg are both 0')
        check(
            self.stage2.kimg == 0 or self.generator.has_3d_branch,
            'stage 2 trains a 3D branch, and --branch-3d=none: give --stage2-kimg=0, or another --branch-3d',
        )
        if self.render_resolution_end is not None:
            check(
                self.stage2.kimg == 0,
                '--render-resolution-end is for stage 1 alone (EG3D): give --stage2-kimg=0, or leave it out',
            )
            self.generator.replace(render_resolution=self.render_resolution_end)  # raises where S2D cannot take it

    def generator_of(self, number):
        """The GeneratorConfig of stage 1 or 2: the 3D branch comes with stage 2."""
        return self.generator if number == 2 else self.generator.replace(branch_3d='none')

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


def parse_interval(text):
    """'10min' or '50kimg' as (images, seconds), of which one is infinite. Raises ConfigError for anything else."""
    match = re.fullmatch(r'(\d+(?:\.\d+)?)(min|kimg)', text)
    check(
        match and float(match[1]) > 0,
        f'--state-every={text} is no interval; write minutes or thousands of images, such as 15min or 50kimg',
    )
    amount = float(match[1])
    return (math.inf, amount * 60) if match[2] == 'min' else (amount * 1000, math.inf)
