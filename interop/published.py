"""Networks of the published EG3D and Mimic3D releases, rebuilt as this project's modules.

`training.snapshots.load_networks` opens their files with it, `training.legacy` is its command line.
"""

import os
import re
import reprlib
from collections import defaultdict

import torch

from interop.pickles import (
    LegacyError,
    Tensors,
    as_module,
    listed,
    modules_of,
    plain,
    printable,
    read_pickle,
    saying_where,
    tensors_of,
)
from torch_utils.ops.upfirdn2d import setup_filter
from training.config import (
    FFHQ_FOCAL,
    NOISE_MODES,
    SHAPENET_FOCAL,
    ConfigError,
    DiscriminatorConfig,
    GeneratorConfig,
    RenderingConfig,
)
from training.networks.discriminator import DualDiscriminator, PatchDiscriminator
from training.networks.generator import Generator
from training.networks.stylegan2 import RESAMPLE_TAPS

GENERATORS = ('training.triplane.TriPlaneGenerator', 'training.dual_triplane.DualTriPlaneGenerator')
DUAL_DISCRIMINATORS = ('training.dual_discriminator.DualDiscriminator',)
SINGLE_DISCRIMINATORS = ('training.dual_discriminator.SingleDiscriminator',)
# Pickles name the class without its module.
_BY_CLASS_NAME = {name.rpartition('.')[2]: name for name in GENERATORS + DUAL_DISCRIMINATORS + SINGLE_DISCRIMINATORS}
_SUPERRESOLUTION = {  # by the end of the class name: image, input, channels, whether larger renders are resized
    'SuperresolutionHybrid2X': (128, 64, (128, 64), True),
    'SuperresolutionHybrid4X': (256, 128, (128, 64), False),
    'SuperresolutionHybrid8XDC': (512, 128, (256, 128), True),
}
MAX_NETWORKS = 16  # in a file; published ones have four
_SHAPENET_RADIUS = 1.7  # of the viewer's cameras; no other published data set has it
_CONV_CLAMP = 256.0  # the releases' own wherever they compute in fp16
_OFF = (None, False, 0, '', 'none')
_SWITCHED_OFF = (
    'blur_plane',
    'roll_out',
    'add_block',
    'depth_guided_sample',
    'add_sr_module',
    'aware3d_att',
)  # in all released ones

# ---------------------------------------------------------------------------------------------------------------------
# What takes no part in computing an image, or says again what is known from elsewhere. All else that is unknown is refused.

_IGNORED_ARGUMENTS = {
    'how the releases train': (
        'gpc_reg_prob',
        'gpc_reg_fade_kimg',
        'density_reg',
        'density_reg_p_dist',
        'density_reg_every',
        'reg_type',
        'freeze_layers',
        'w_avg_beta',
    ),
    'how fast they run': ('fused_modconv_default', 'fp16_channels_last'),
    'not looked at there either': ('sr_upsample_factor',),
    'overruled by the attribute of the same name, which starts at 64': ('neural_rendering_resolution',),
}
_IGNORED_NAMES = frozenset(name for names in _IGNORED_ARGUMENTS.values() for name in names)
_IGNORED_TENSORS = {
    'dataset_label_std': "spread of the training set's labels, which only a generator's noisy conditioning would need"
}
_KNOWN_ATTRIBUTES = {
    "torch's own, and read here": '_parameters _buffers _modules _non_persistent_buffers_set _is_full_backward_hook '
    '_init_args _init_kwargs',
    'only layers that other networks have would look at it': 'training',
    'what was computed last; made anew for each image': '_last_planes ray_origins_h ray_directions depths '
    'image_coords rendering_options',
    "a generator's or discriminator's constructor arguments, read here or repeated by what they contain": ''
    'z_dim c_dim w_dim img_resolution img_channels img_resolution_log2 triplane_resolution triplane_channels roll_out '
    'neural_rendering_resolution rendering_kwargs plane_act blur_plane depth_guided_sample disc_c_noise mapping_kwargs '
    'channel_base channel_max num_fp16_res sr_num_fp16_res sr_antialias retidx add_block add_sr_module aware3d_res aware3d_att '
    'block_kwargs epilogue_kwargs',
    "what a network's layers are; follows from the constructor's arguments, and its tensors have to fit": ''
    'block_resolutions num_ws num_layers in_channels out_channels channels cmap_dim resolution is_last architecture use_fp16 '
    'channels_last num_conv num_torgb up down padding use_noise activation conv_clamp act_gain weight_gain bias_gain bias '
    'bias_init lr_multiplier in_features out_features kernel_size resample_filter input_resolution hidden_dim beta threshold '
    'first_layer_idx group_size num_channels mbstd_group_size mbstd_num_channels',
    'how the releases train': 'w_avg_beta freeze_layers trainable',
    'how fast they run': 'fused_modconv_default',
    'checked on its own': 'plane_axes',
}
_KNOWN_NAMES = frozenset(' '.join(_KNOWN_ATTRIBUTES.values()).split())
_KNOWN_MODULES = frozenset(
    [
        *_BY_CLASS_NAME,
        *_SUPERRESOLUTION,
        *[
            'Generator',
            'MappingNetwork',
            'SynthesisNetwork',
            'SynthesisBlock',
            'SynthesisBlockNoUp',
            'SynthesisLayer',
            'ToRGBLayer',
            'FullyConnectedLayer',
            'Conv2dLayer',
            'Aware3DBlock',
            'DiscriminatorBlock',
            'DiscriminatorEpilogue',
            'MinibatchStdLayer',
            'OSGDecoder',
            'Sequential',
            'Softplus',
            'ImportanceRenderer',
            'MipRayMarcher2',
            'RaySampler',
        ],
    ]
)
# Attributes that overrule the argument of the constructor that set them: who changes a network changes these.
_OVERRULING = {
    'rendering_kwargs': 'rendering_kwargs',
    'plane_act': 'triplane_act',
    'blur_plane': 'blur_plane',
    'depth_guided_sample': 'depth_guided_sample',
    'disc_c_noise': 'disc_c_noise',
}


def build_from_reference(class_name, init_kwargs, state_dict):
    """A module of this project with published weights.

    class_name: dotted published class name; init_kwargs: its constructor arguments; state_dict: its tensors or arrays by
    published name. Raises LegacyError naming any class, argument or tensor that has no
    counterpart here.
    """
    plan = _Plan(class_name, init_kwargs, state_dict)
    if plan.unknown:
        raise LegacyError(f'images may depend on what this project does not know: {listed(plan.unknown, 1000)}')
    return plan.build()


class _Plan:
    """A network before it is built: all is checked, and nothing large is made. `unknown`: what is not known of it, as text.

    render_resolution: pixels per side of a generator's volume render (default: 64), which the releases keep beside the
    constructor's arguments.
    """

    def __init__(self, class_name, init_kwargs, state, render_resolution=None):
        self.state, self.unknown = state, []
        if class_name not in _NETWORKS:
            raise LegacyError(f'{printable(class_name)} is not a published class that this project knows')
        self.network, read_config = _NETWORKS[class_name]
        try:
            self.config = read_config(class_name, init_kwargs, self.unknown)
            if self.network is Generator and render_resolution is not None:
                self.config = self.config.replace(render_resolution=render_resolution)
            with torch.device('meta'):  # sizes first: arguments can ask for far more memory than the weights take
                self.shapes = {name: value.shape for name, value in self.network(self.config).state_dict().items()}
        except (ConfigError, ZeroDivisionError, ValueError, RuntimeError) as error:
            raise LegacyError(f'the constructor arguments do not fit together: {printable(str(error))}') from None
        self.published = self._match()

    def _match(self):
        """{own name: published name} of all tensors of the network."""
        published = {}
        for name in self.state:
            if name in _IGNORED_TENSORS:
                continue
            own = own_name(name, self.config)
            if name.endswith('resample_filter'):
                _check_filter(name, self.state)
            elif own in self.shapes and own not in published:
                published[own] = name
            else:
                self.unknown.append(f'tensor {name}')
        missing = sorted(set(self.shapes) - set(published))
        if missing:
            raise LegacyError(f'weights do not fit: missing {listed(missing)}, unknown {listed(self.unknown, 1000)}')
        return published

    def build(self):
        """The network with the published weights."""
        fitting = {own: self._tensor(own, name) for own, name in self.published.items()}
        module = self.network(self.config)
        module.load_state_dict(fitting)
        return module.eval().requires_grad_(False)

    def _tensor(self, own, published):
        value, shape = torch.as_tensor(self.state[published]), self.shapes[own]
        if own.endswith('.const') and value.shape == (1, *shape):
            value = value[0]  # the releases differ in a leading axis of 1
        if value.shape != shape:
            raise LegacyError(f'{printable(published)} has shape {list(value.shape)}, expected {list(shape)}')
        return value


def _check_filter(name, state):
    """This project has one resampling filter, and no tensor for it."""
    value, standard = torch.as_tensor(state[name]), setup_filter(RESAMPLE_TAPS)
    if value.shape != standard.shape or not torch.allclose(value.float(), standard):
        raise LegacyError(f'{printable(name)} is not the filter [1, 3, 3, 1]')


# ---------------------------------------------------------------------------------------------------------------------
# Constructor arguments


_REQUIRED = object()  # in the place of a default


class _Arguments:
    """Published constructor arguments, and tables within them. Each is taken by name; `left` names those that nobody took."""

    def __init__(self, values, where=''):
        if not isinstance(values, dict):
            raise LegacyError(f'{where or "what the constructor got"} is no table of arguments')
        self.values = {name: value for name, value in values.items() if name not in _IGNORED_NAMES}
        self.where, self.tables = where, []

    def _name(self, name):
        return printable(f'{self.where}.{name}' if self.where else str(name))

    def wrong(self, name, value, wanted):
        return LegacyError(f'constructor argument {self._name(name)}={printable(reprlib.repr(value))} is not supported; {wanted}')

    def take(self, name, *types, default=_REQUIRED):
        """The value, which must be of one of the `types` (none: any) or the release's own default."""
        value = self.values.pop(name, default)
        if value is _REQUIRED:
            raise LegacyError(f'constructor argument {self._name(name)} is missing')
        if value is not default and types and type(value) not in types:
            raise self.wrong(name, value, f'it should be of type {" or ".join(kind.__name__ for kind in types)}')
        return value

    def number(self, name, default=_REQUIRED, words=()):
        """A number of a size that occurs, or one of the `words`."""
        value = self.take(name, int, float, *map(type, words), default=default)
        if not (value in words if isinstance(value, str) else -1e9 <= value <= 1e9):
            raise self.wrong(name, value, f'it should be {" or ".join(["a number of a size that occurs", *words])}')
        return value

    def size(self, name, default=_REQUIRED, largest=65536):
        """An integer from 1 up, or 0 where that means 'none'; `largest` keeps a file from asking for what nobody has."""
        value = self.take(name, int, default=default)
        if not 0 <= value <= largest:
            raise self.wrong(name, value, f'it should lie between 0 and {largest}')
        return value

    def choose(self, name, *allowed):
        """An argument that must have one of the values that this project computes; the first is the default."""
        value = self.values.pop(name, allowed[0])
        if not any(type(value) is type(known) and value == known for known in allowed):
            raise self.wrong(name, value, f'this project has {" or ".join(map(repr, allowed))}')
        return value

    def fixed(self, **values):
        """Arguments for which this project computes one value only, which is the default, too."""
        for name, value in values.items():
            self.choose(name, value)

    def nested(self, name):
        value = self.values.pop(name, None)
        self.tables.append(_Arguments({} if value is None else value, self._name(name)))
        return self.tables[-1]

    def left(self):
        inside = [name for table in self.tables for name in table.left()]
        return inside + [f'argument {self._name(name)}' for name in self.values]


def read_generator_config(class_name, init_kwargs, unknown):
    """GeneratorConfig of published constructor arguments; names that are not known join the list `unknown`."""
    kwargs = _Arguments(init_kwargs)
    rendering = kwargs.nested('rendering_kwargs')
    for name in _SWITCHED_OFF:
        for arguments in (kwargs, rendering):
            arguments.choose(name, *_OFF)
    kwargs.fixed(img_channels=3, num_fp16_res=0, conv_clamp=None, decoder_output_dim=32)  # precision and clamp: of E
    values = dict(
        z_dim=kwargs.size('z_dim'),
        w_dim=kwargs.size('w_dim'),
        c_dim=kwargs.size('c_dim'),
        image_resolution=kwargs.size('img_resolution', largest=4096),
        mapping_layers=_mapping_layers(kwargs),
        channel_base=kwargs.size('channel_base', 32768),
        channel_max=kwargs.size('channel_max', 512),
    )
    values |= _plane_options(class_name, kwargs) | _precision_options(kwargs)
    values |= _superresolution_options(rendering, values['image_resolution'])
    values |= dict(
        pose_conditioning=not rendering.take('c_gen_conditioning_zero', bool, default=False),
        conditioning_scale=rendering.number('c_scale', 0),  # the releases multiply the camera by 0 where it is missing
        decoder_lr_multiplier=rendering.number('decoder_lr_mul', 1),
        rendering=_rendering_config(rendering),
    )
    unknown += kwargs.left()
    return GeneratorConfig(**values)


def _mapping_layers(kwargs):
    """The depth of a mapping network; the rest of its arguments must be the releases' own."""
    mapping = kwargs.nested('mapping_kwargs')
    mapping.fixed(embed_features=None, layer_features=None, activation='lrelu', lr_multiplier=0.01)
    return mapping.size('num_layers', 8, largest=64)


_PLANE_ACTIVATIONS = {None: 'linear', 'tanh': 'tanh', 'sigmoid': 'sigmoid', 'none': 'sigmoid'}  # the releases' 'none' is no None


def _plane_options(class_name, kwargs):
    """The tri-planes: Mimic3D says how large they are, EG3D's are always 256^2 and in an order of their own."""
    residual = class_name == GENERATORS[1]
    mimic3d = residual or 'triplane_resolution' in kwargs.values
    resolution = kwargs.size('triplane_resolution', 256, largest=4096)
    channels = kwargs.size('triplane_channels', 96)
    if channels % 3:
        raise LegacyError(f'constructor argument triplane_channels={channels} does not divide into three planes')
    aware = kwargs.take('aware3d_res', list, tuple, default=None)
    every = [2**i for i in range(2, resolution.bit_length())]
    if aware and list(aware) != every:
        raise kwargs.wrong('aware3d_res', aware, f'this project has all of {every}, or none')
    kwargs.choose('retidx', *(([-3, -1], (-3, -1)) if residual else (None,)))  # coarse and residual planes are returned
    return dict(
        plane_resolution=resolution,
        plane_channels=channels // 3,
        plane_order='mimic3d' if mimic3d else 'eg3d',
        plane_activation=_PLANE_ACTIVATIONS[kwargs.choose('triplane_act', *_PLANE_ACTIVATIONS)],
        aware='stream' if aware else 'none',
        branch_3d='residual' if residual else 'none',
    )


def _precision_options(kwargs):
    """S2D: fp16, with clamped convolutions, or neither."""
    low = kwargs.size('sr_num_fp16_res', 0) > 0
    s2d = kwargs.nested('sr_kwargs')
    for name in ('channel_base', 'channel_max'):  # its channels are fixed
        s2d.take(name, default=None)
    return dict(precision='fp16' if low else 'fp32', conv_clamp=_CONV_CLAMP if low else None)


def _superresolution_options(rendering, image_resolution):
    name = rendering.take('superresolution_module', str)
    if name.rpartition('.')[2] not in _SUPERRESOLUTION:
        raise rendering.wrong('superresolution_module', name, f'this project has {", ".join(_SUPERRESOLUTION)}')
    resolution, sr_input, channels, resize_larger = _SUPERRESOLUTION[name.rpartition('.')[2]]
    if resolution != image_resolution:
        raise LegacyError(
            f'constructor argument img_resolution={image_resolution} does not fit {printable(name)}, which makes {resolution}'
        )
    rendering.fixed(image_resolution=resolution)
    return dict(
        sr_input_resolution=sr_input,
        sr_channels=channels,
        sr_resize_larger=resize_larger,
        sr_antialias=rendering.take('sr_antialias', bool, default=True),
        sr_noise_mode=rendering.choose('superresolution_noise_mode', 'none', *NOISE_MODES),
    )


def _rendering_config(rendering):
    """Volume rendering. The focal length of the viewer's cameras is not among the arguments: it follows the data set's."""
    rendering.fixed(disparity_space_sampling=False, clamp_mode='softplus')
    radius = rendering.number('avg_camera_radius', 2.7)
    pivot = rendering.take('avg_camera_pivot', list, tuple, default=(0, 0, 0.2))
    if len(pivot) != 3 or not all(type(x) in (int, float) for x in pivot):
        raise rendering.wrong('avg_camera_pivot', pivot, 'it should be a point')
    return RenderingConfig(
        near=rendering.number('ray_start', words=('auto',)),
        far=rendering.number('ray_end', words=('auto',)),
        box_size=rendering.take('box_warp', int, float),
        depth_samples=rendering.size('depth_resolution'),
        importance_samples=rendering.size('depth_resolution_importance'),
        white_background=rendering.take('white_back', bool, default=False),
        camera_radius=radius,
        camera_pivot=tuple(float(x) for x in pivot),
        focal=SHAPENET_FOCAL if radius == _SHAPENET_RADIUS else FFHQ_FOCAL,
    )


def read_discriminator_config(class_name, init_kwargs, unknown):
    """DiscriminatorConfig of published constructor arguments; names that are not known join the list `unknown`."""
    kwargs = _Arguments(init_kwargs)
    kwargs.fixed(img_channels=3, architecture='resnet', cmap_dim=None)
    kwargs.choose('disc_c_noise', 0, 0.0)
    blocks = kwargs.nested('block_kwargs')
    blocks.fixed(activation='lrelu')
    blocks.choose('resample_filter', list(RESAMPLE_TAPS), RESAMPLE_TAPS)
    epilogue = kwargs.nested('epilogue_kwargs')
    epilogue.fixed(mbstd_num_channels=1, activation='lrelu')
    c_dim = kwargs.size('c_dim')
    if (c_dim > 0) != (class_name in DUAL_DISCRIMINATORS):
        raise LegacyError(f'constructor argument c_dim={c_dim} is not supported: D2D is conditional, D3D is not')
    low = kwargs.size('num_fp16_res', 4)
    config = DiscriminatorConfig(
        resolution=kwargs.size('img_resolution', largest=4096),
        c_dim=c_dim,
        mapping_layers=_mapping_layers(kwargs),
        channel_base=kwargs.size('channel_base', 32768),
        channel_max=kwargs.size('channel_max', 512),
        minibatch_group=epilogue.size('mbstd_group_size', 4),
        low_precision_resolutions=low,
        conv_clamp=kwargs.take('conv_clamp', int, float, type(None), default=_CONV_CLAMP),
        precision='fp16' if low else 'fp32',
    )
    unknown += kwargs.left()
    return config


_NETWORKS = {  # by dotted class name: this project's class, and what reads its configuration
    **dict.fromkeys(GENERATORS, (Generator, read_generator_config)),
    **dict.fromkeys(DUAL_DISCRIMINATORS, (DualDiscriminator, read_discriminator_config)),
    **dict.fromkeys(SINGLE_DISCRIMINATORS, (PatchDiscriminator, read_discriminator_config)),
}

# ---------------------------------------------------------------------------------------------------------------------
# Names


def own_name(name, config):
    """This project's name of a published tensor, or None where it has none."""
    for pattern, replacement in _generator_rules(config) if isinstance(config, GeneratorConfig) else _discriminator_rules(config):
        new, count = re.subn('^' + pattern, replacement, name)
        if count:
            return new.replace('.torgb.', '.to_rgb.')
    return None


def _generator_rules(config):
    return [
        (r'backbone\.mapping\.fc(\d+)\.', r'mapping.layers.\1.'),
        (r'backbone\.mapping\.', 'mapping.'),
        (rf'backbone\.synthesis\.b3d{config.plane_resolution}\.block2\.', 'residual.blocks.0.'),
        (rf'backbone\.synthesis\.b3d{config.plane_resolution}\.block3\.', 'residual.blocks.1.'),
        (r'backbone\.synthesis\.b3d(\d+)\.block\.', lambda m: f'backbone.stream.{_level(m[1])}.'),
        (r'backbone\.synthesis\.b(\d+)\.', lambda m: f'backbone.blocks.{_level(m[1])}.'),
        (r'superresolution\.block(\d)\.', r'superresolution.blocks.\1.'),
        (r'decoder\.net\.0\.', 'decoder.hidden.'),
        (r'decoder\.net\.2\.', 'decoder.output.'),
    ]


def _discriminator_rules(config):
    return [
        (r'mapping\.fc(\d+)\.', r'mapping.layers.\1.'),
        (r'mapping\.embed\.', 'mapping.embed.'),
        (r'b4\.(conv|fc|out)\.', r'\1.'),
        (rf'b{config.resolution}\.fromrgb\.', 'from_rgb.'),
        (r'b(\d+)\.', lambda m: f'blocks.{_level(config.resolution) - _level(m[1])}.'),
    ]


def _level(resolution):
    """4, 8, 16, ... to 0, 1, 2, ..."""
    return int(resolution).bit_length() - 3


# ---------------------------------------------------------------------------------------------------------------------
# Files


def load_published(path, strict=True):
    """The networks of a published pickle by this project's names ('G', 'G_ema', 'D', 'D_patch', those that it holds), and a
    line that says what of them was ignored ('': nothing).

    Nothing in the file is executed. Entries that are not networks are passed over. Raises LegacyError, also for all that
    is not known to take no part in computing an image; with `strict=False` that is ignored where all tensors are there.
    """
    content = read_pickle(path)
    if not isinstance(content, dict):
        raise LegacyError(f'{path} holds no networks: its content is no dict')
    plans, unknown = _plans_of(path, content)
    found = '; '.join(f'in {", ".join(networks)}: {names}' for names, networks in unknown.items())
    if found and strict:
        raise LegacyError(
            f'{path}: images may depend on what this project does not know: {found}. To ignore it: '
            'python -m training.legacy convert --lenient, or load_networks(..., strict=False)'
        )
    if not plans:
        raise LegacyError(f'{path} holds no networks of EG3D or Mimic3D; entries: {listed(list(content))}')
    if sum(shape.numel() for plan in plans.values() for shape in plan.shapes.values()) > os.path.getsize(path):
        raise LegacyError(f'{path} is too small for the networks that it describes')
    networks = {}
    for name, plan in plans.items():
        with saying_where(f'{path}: {name}'):
            networks[name] = plan.build()
    return networks, found and f'{path}: ignored what this project does not know, though images may depend on it: {found}'


def _plans_of(path, content):
    """{name: _Plan} of the networks of a file, and {what is not known: names of the networks that have it}."""
    plans, unknown = {}, defaultdict(list)
    for name, value in content.items():
        name = printable(name)  # of a file, so it may hold anything
        with saying_where(f'{path}: {name}'):
            names, entry = [], as_module(value)
            if entry and entry.class_name in _BY_CLASS_NAME:
                plan = _plan(entry)
                own = 'D_patch' if plan.network is PatchDiscriminator else name
                if own in plans:
                    raise LegacyError('a second patch discriminator')
                plans[own], names = plan, plan.unknown
            elif entry and name in ('G', 'G_ema', 'D', 'D_patch'):
                names = [f'class {entry.class_name}']
            if len(plans) > MAX_NETWORKS:
                raise LegacyError(f'more than {MAX_NETWORKS} networks')
        if names:
            unknown[listed(list(dict.fromkeys(names)), 1000)].append(name)
    return plans, unknown


def published_augment_p(path):
    """ADA's probability when a published pickle was written: of its augmentation pipe, or 0 where there is none."""
    content = read_pickle(path)
    with saying_where(f'{path}: augment_pipe'):
        pipe = as_module(content.get('augment_pipe')) if isinstance(content, dict) else None
        p = tensors_of({'': pipe} if pipe else {}).get('p', torch.zeros(()))
        if p.numel() != 1 or not 0 <= p.item() <= 1e6:
            raise LegacyError('its p is no probability')
    return p.item()


def _plan(entry):
    """The _Plan of a published module."""
    if plain(entry.state.get('_init_args')):
        raise LegacyError('constructor arguments without names are not supported')
    kwargs = plain(entry.table('_init_kwargs')) | {
        argument: plain(entry.state[attribute]) for attribute, argument in _OVERRULING.items() if attribute in entry.state
    }
    render_resolution = plain(entry.state.get('neural_rendering_resolution'))
    if render_resolution is not None and not (type(render_resolution) is int and render_resolution > 0):
        raise LegacyError(
            f'attribute neural_rendering_resolution={printable(reprlib.repr(render_resolution))} is no number of pixels'
        )
    modules = modules_of(entry)
    plan = _Plan(_BY_CLASS_NAME[entry.class_name], kwargs, tensors_of(modules), render_resolution)
    plan.unknown += _unknown_parts(modules, plan.config)
    return plan


def _unknown_parts(modules, config):
    """Modules and attributes that are not known, and axes of planes other than this project's, as a list of text.

    An attribute that is None or empty is something that is not there.
    """
    unknown = []
    for path, module in modules.items():
        if module.class_name not in _KNOWN_MODULES:
            unknown.append(f'module {path} ({module.class_name})')
        names = module.state | module.table('_init_kwargs') if path else module.state  # those of the network itself are all read
        unknown += [
            f'attribute {module.class_name}.{name}'
            for name, value in names.items()
            if name not in _KNOWN_NAMES and not _is_nothing(value)
        ]
        if 'plane_axes' in module.state and not _are_axes(module.state['plane_axes'], config):
            unknown.append(f'attribute {module.class_name}.plane_axes, which are not {", ".join(config.plane_axes)}')
    return unknown


def _is_nothing(value):
    return value is None or isinstance(value, dict | list | tuple | set) and not value


def _are_axes(value, config):
    """Whether a tensor [3, 3, 3] has for each plane the directions of its width, its height and its normal, in this order."""
    order = [['xyz'.index(axis) for axis in (*plane, *set('xyz').difference(plane))] for plane in config.plane_axes]
    expected = torch.eye(3)[torch.tensor(order)]
    axes = Tensors({'plane_axes': value})['plane_axes']
    return axes.shape == expected.shape and torch.equal(axes.float(), expected)
