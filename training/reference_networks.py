"""Networks of the published EG3D and Mimic3D releases, rebuilt as this project's modules.

`training.legacy` is the face of this module: its public names and its command line.
"""

import re
import reprlib

import torch

from torch_utils.ops.upfirdn2d import setup_filter
from training.config import ConfigError, DiscriminatorConfig, GeneratorConfig, RenderingConfig
from training.networks.discriminator import DualDiscriminator, PatchDiscriminator
from training.networks.generator import Generator
from training.networks.stylegan2 import NOISE_MODES, RESAMPLE_TAPS
from training.reference_pickle import LegacyError, PassiveObject, is_pickle, plain, printable, read_pickle, state_dict
from training.rendering import cameras

__all__ = ['LegacyError', 'build_from_reference', 'is_pickle', 'load_reference']

GENERATORS = ('training.triplane.TriPlaneGenerator', 'training.dual_triplane.DualTriPlaneGenerator')
DUAL_DISCRIMINATORS = ('training.dual_discriminator.DualDiscriminator',)
SINGLE_DISCRIMINATORS = ('training.dual_discriminator.SingleDiscriminator',)
# Pickles name the class without its module.
CLASSES = {name.rpartition('.')[2]: name for name in GENERATORS + DUAL_DISCRIMINATORS + SINGLE_DISCRIMINATORS}
_SUPERRESOLUTION = {  # by the end of the class name: image, input, channels, whether larger renders are resized
    'SuperresolutionHybrid2X': (128, 64, (128, 64), True),
    'SuperresolutionHybrid4X': (256, 128, (128, 64), False),
    'SuperresolutionHybrid8XDC': (512, 128, (256, 128), True),
}
_SHAPENET_RADIUS = 1.7
_CONV_CLAMP = 256.0  # the releases' own wherever they compute in fp16
_OFF = (None, False, 0, '', 'none')
_SWITCHED_OFF = ('blur_plane', 'roll_out', 'add_block', 'depth_guided_sample')  # in all released configurations
# These decide how the releases train or how fast they run, and nothing about what a network computes.
_TRAINING_ONLY = ('gpc_reg_prob', 'gpc_reg_fade_kimg', 'density_reg', 'density_reg_p_dist', 'density_reg_every', 'reg_type')
_EXECUTION_ONLY = ('fused_modconv_default', 'fp16_channels_last')


def build_from_reference(class_name, init_kwargs, state_dict, render_resolution=None):
    """A module of this project with published weights.

    class_name: dotted published class name; init_kwargs: its constructor arguments; state_dict: its tensors or arrays by
    published name; render_resolution: pixels per side of a generator's volume render (default: 64), which the releases
    keep beside the constructor's arguments. Raises LegacyError naming any class, argument or tensor that has no
    counterpart here.
    """
    state = {name: torch.as_tensor(value) for name, value in state_dict.items()}
    try:
        if class_name in GENERATORS:
            config = generator_config(class_name, init_kwargs)
            config = config if render_resolution is None else config.replace(render_resolution=render_resolution)
            build = Generator
        elif class_name in DUAL_DISCRIMINATORS + SINGLE_DISCRIMINATORS:
            config = discriminator_config(class_name, init_kwargs)
            build = DualDiscriminator if class_name in DUAL_DISCRIMINATORS else PatchDiscriminator
        else:
            raise LegacyError(f'{printable(class_name)} is not a published class that this project knows')
        with torch.device('meta'):  # sizes first: arguments can ask for far more memory than the weights take
            shapes = {name: value.shape for name, value in build(config).state_dict().items()}
    except (ConfigError, ZeroDivisionError, ValueError, RuntimeError) as error:
        raise LegacyError(f'the constructor arguments do not fit together: {printable(str(error))}') from None
    fitting = _fit(shapes, _rename(state, config))
    module = build(config)
    module.load_state_dict(fitting)
    return module.eval().requires_grad_(False)


# ---------------------------------------------------------------------------------------------------------------------
# Constructor arguments


class _Arguments:
    """Published constructor arguments. Each is taken by name; `finish` refuses those that nobody took."""

    def __init__(self, values, where):
        if not isinstance(values, dict):
            raise LegacyError(f'{where} is no table of arguments')
        self.values, self.where = dict(values), where

    def __contains__(self, name):
        return name in self.values

    def _name(self, name):
        return printable(f'{self.where}.{name}' if self.where else str(name))

    def _wrong(self, name, value, wanted):
        return LegacyError(f'constructor argument {self._name(name)}={printable(reprlib.repr(value))} is not supported; {wanted}')

    def required(self, name, *types):
        if name not in self.values:
            raise LegacyError(f'constructor argument {self._name(name)} is missing')
        return self.optional(name, None, *types)

    def optional(self, name, default, *types):
        """The value, or the release's own default. `types`: what it may be."""
        value = self.values.pop(name, default)
        if value is not default and types and type(value) not in types:
            raise self._wrong(name, value, f'it should be of type {" or ".join(kind.__name__ for kind in types)}')
        return value

    def number(self, name, default):
        return self.optional(name, default, int, float)

    def size(self, name, default=None, largest=65536):
        """An integer from 1 up, or 0 where that means 'none'; `largest` keeps a file from asking for what nobody has."""
        value = self.required(name, int) if default is None else self.optional(name, default, int)
        if not 0 <= value <= largest:
            raise self._wrong(name, value, f'it should lie between 0 and {largest}')
        return value

    def expect(self, name, *allowed):
        """An argument that must have one of the values that this project computes; the first is the default."""
        value = self.values.pop(name, allowed[0])
        if not any(type(value) is type(known) and value == known for known in allowed):
            raise self._wrong(name, value, f'this project has {" or ".join(map(repr, allowed))}')
        return value

    def nested(self, name):
        value = self.values.pop(name, None)
        return _Arguments({} if value is None else value, self._name(name))

    def ignore(self, *names):
        for name in names:
            self.values.pop(name, None)

    def finish(self):
        if self.values:
            names = ', '.join(self._name(name) for name in self.values)
            raise LegacyError(f'constructor argument {names} is unknown; it may change what the network computes')


def generator_config(class_name, init_kwargs):
    """GeneratorConfig of published constructor arguments."""
    kwargs = _Arguments(init_kwargs, '')
    rendering = kwargs.nested('rendering_kwargs')
    for name in _SWITCHED_OFF:
        for arguments in (kwargs, rendering):
            arguments.expect(name, *_OFF)
    kwargs.expect('img_channels', 3)
    kwargs.expect('num_fp16_res', 0)  # of E
    kwargs.expect('conv_clamp', None)
    kwargs.ignore(*_EXECUTION_ONLY)
    values = dict(
        z_dim=kwargs.size('z_dim'), w_dim=kwargs.size('w_dim'), c_dim=kwargs.size('c_dim'),
        image_resolution=kwargs.size('img_resolution', largest=4096), mapping_layers=_mapping_layers(kwargs),
        channel_base=kwargs.size('channel_base', 32768), channel_max=kwargs.size('channel_max', 512))
    values |= _plane_options(class_name, kwargs)
    values |= _precision_options(kwargs)
    values |= _superresolution_options(rendering, values['image_resolution'])
    values |= dict(
        pose_conditioning=not rendering.optional('c_gen_conditioning_zero', False, bool),
        conditioning_scale=rendering.number('c_scale', 1), decoder_lr_multiplier=rendering.number('decoder_lr_mul', 1),
        rendering=_rendering_config(rendering))
    rendering.finish()
    kwargs.finish()
    return GeneratorConfig(**values)


def _mapping_layers(kwargs):
    """The depth of a mapping network; the rest of its arguments must be the releases' own."""
    mapping = kwargs.nested('mapping_kwargs')
    layers = mapping.size('num_layers', 8, largest=64)
    mapping.expect('embed_features', None)
    mapping.expect('layer_features', None)
    mapping.expect('activation', 'lrelu')
    mapping.expect('lr_multiplier', 0.01)
    mapping.ignore('w_avg_beta')  # moves the running mean of w while training
    mapping.finish()
    return layers


def _plane_options(class_name, kwargs):
    """The tri-planes: Mimic3D says how large they are, EG3D's are always 256^2 and in an order of their own."""
    mimic3d = class_name == GENERATORS[1] or 'triplane_resolution' in kwargs
    resolution = kwargs.size('triplane_resolution', 256, largest=4096)
    channels = kwargs.size('triplane_channels', 96)
    if channels % 3:
        raise LegacyError(f'constructor argument triplane_channels={channels} does not divide into three planes')
    activation = kwargs.expect('triplane_act', None, 'none', 'linear', 'tanh', 'sigmoid')
    aware = kwargs.optional('aware3d_res', None, list, tuple)
    every = [2**i for i in range(2, resolution.bit_length())]
    if aware and list(aware) != every:
        raise LegacyError(f'constructor argument aware3d_res={printable(reprlib.repr(aware))} is not supported; '
                          f'this project has all of {every}, or none')
    residual = class_name == GENERATORS[1]
    kwargs.expect('retidx', *(([-3, -1], (-3, -1)) if residual else (None,)))  # coarse and residual planes are returned
    return dict(plane_resolution=resolution, plane_channels=channels // 3, plane_order='mimic3d' if mimic3d else 'eg3d',
                plane_activation=activation if activation in ('tanh', 'sigmoid') else 'linear',
                aware_stream=bool(aware), residual=residual)


def _precision_options(kwargs):
    """S2D: fp16, with clamped convolutions, or neither."""
    low = kwargs.size('sr_num_fp16_res', 0) > 0
    s2d = kwargs.nested('sr_kwargs')
    s2d.ignore('channel_base', 'channel_max', *_EXECUTION_ONLY)  # its channels are fixed
    s2d.finish()
    return dict(precision='fp16' if low else 'fp32', conv_clamp=_CONV_CLAMP if low else None)


def _superresolution_options(rendering, image_resolution):
    name = rendering.required('superresolution_module', str)
    if name.rpartition('.')[2] not in _SUPERRESOLUTION:
        raise LegacyError(f'constructor argument rendering_kwargs.superresolution_module={printable(name)} is not supported; '
                          f'this project has {", ".join(_SUPERRESOLUTION)}')
    resolution, sr_input, channels, resize_larger = _SUPERRESOLUTION[name.rpartition('.')[2]]
    if resolution != image_resolution:
        raise LegacyError(f'constructor argument img_resolution={image_resolution} does not fit {printable(name)}, '
                          f'which makes {resolution}')
    rendering.expect('image_resolution', resolution)
    return dict(sr_input_resolution=sr_input, sr_channels=channels, sr_resize_larger=resize_larger,
                sr_antialias=rendering.optional('sr_antialias', True, bool),
                sr_noise_mode=rendering.expect('superresolution_noise_mode', 'none', *NOISE_MODES))


def _rendering_config(rendering):
    """Volume rendering. The focal length of the viewer's cameras is not among the arguments: it follows the data set's."""
    rendering.expect('disparity_space_sampling', False)
    rendering.expect('clamp_mode', 'softplus')
    rendering.ignore(*_TRAINING_ONLY)
    radius = rendering.number('avg_camera_radius', 2.7)
    pivot = rendering.optional('avg_camera_pivot', (0, 0, 0.2), list, tuple)
    if len(pivot) != 3 or not all(type(x) in (int, float) for x in pivot):
        raise LegacyError(f'constructor argument rendering_kwargs.avg_camera_pivot={printable(reprlib.repr(pivot))} is no point')
    return RenderingConfig(
        near=_limit(rendering, 'ray_start'), far=_limit(rendering, 'ray_end'), box_size=rendering.required('box_warp', int, float),
        depth_samples=rendering.size('depth_resolution'), importance_samples=rendering.size('depth_resolution_importance'),
        white_background=rendering.optional('white_back', False, bool), camera_radius=radius,
        camera_pivot=tuple(float(x) for x in pivot),
        focal=cameras.SHAPENET_FOCAL if radius == _SHAPENET_RADIUS else cameras.FFHQ_FOCAL)


def _limit(rendering, name):
    value = rendering.required(name, int, float, str)
    if isinstance(value, str) and value != 'auto':
        raise LegacyError(f"constructor argument rendering_kwargs.{name}={printable(value)} is neither a number nor 'auto'")
    return value


def discriminator_config(class_name, init_kwargs):
    """DiscriminatorConfig of published constructor arguments."""
    kwargs = _Arguments(init_kwargs, '')
    kwargs.expect('img_channels', 3)
    kwargs.expect('architecture', 'resnet')
    kwargs.expect('cmap_dim', None)
    kwargs.expect('disc_c_noise', 0, 0.0)
    kwargs.ignore('sr_upsample_factor', *_EXECUTION_ONLY)
    blocks = kwargs.nested('block_kwargs')
    blocks.expect('activation', 'lrelu')
    blocks.expect('resample_filter', list(RESAMPLE_TAPS), RESAMPLE_TAPS)
    blocks.ignore('freeze_layers', *_EXECUTION_ONLY)  # training only
    blocks.finish()
    epilogue = kwargs.nested('epilogue_kwargs')
    epilogue.expect('mbstd_num_channels', 1)
    epilogue.expect('activation', 'lrelu')
    group = epilogue.size('mbstd_group_size', 4)
    epilogue.finish()
    c_dim = kwargs.size('c_dim')
    if (c_dim > 0) != (class_name in DUAL_DISCRIMINATORS):
        raise LegacyError(f'constructor argument c_dim={c_dim} is not supported: D2D is conditional, D3D is not')
    low = kwargs.size('num_fp16_res', 4)
    clamp = kwargs.optional('conv_clamp', _CONV_CLAMP, int, float, type(None))
    config = DiscriminatorConfig(
        resolution=kwargs.size('img_resolution', largest=4096), c_dim=c_dim, mapping_layers=_mapping_layers(kwargs),
        channel_base=kwargs.size('channel_base', 32768), channel_max=kwargs.size('channel_max', 512),
        minibatch_group=group, low_precision_resolutions=low, conv_clamp=clamp, precision='fp16' if low else 'fp32')
    kwargs.finish()
    return config


# ---------------------------------------------------------------------------------------------------------------------
# Names and tensors


def own_name(name, config):
    """This project's name of a published tensor, or None where it has none."""
    for pattern, replacement in _generator_rules(config) if isinstance(config, GeneratorConfig) else _discriminator_rules(config):
        new, count = re.subn('^' + pattern, replacement, name)
        if count:
            return new.replace('.torgb.', '.to_rgb.')
    return None


def _generator_rules(config):
    last = config.plane_resolution
    return [
        (r'backbone\.mapping\.fc(\d+)\.', r'mapping.layers.\1.'),
        (r'backbone\.mapping\.', 'mapping.'),
        (rf'backbone\.synthesis\.b3d{last}\.block2\.', 'residual.blocks.0.'),
        (rf'backbone\.synthesis\.b3d{last}\.block3\.', 'residual.blocks.1.'),
        (r'backbone\.synthesis\.b3d(\d+)\.block\.', lambda m: f'backbone.stream.{_level(m[1])}.'),
        (r'backbone\.synthesis\.b(\d+)\.', lambda m: f'backbone.blocks.{_level(m[1])}.'),
        (r'superresolution\.block(\d)\.', r'superresolution.blocks.\1.'),
        (r'decoder\.net\.0\.', 'decoder.hidden.'),
        (r'decoder\.net\.2\.', 'decoder.output.'),
    ]


def _discriminator_rules(config):
    top = _level(config.resolution)
    return [
        (r'mapping\.fc(\d+)\.', r'mapping.layers.\1.'),
        (r'mapping\.embed\.', 'mapping.embed.'),
        (r'b4\.(conv|fc|out)\.', r'\1.'),
        (rf'b{config.resolution}\.fromrgb\.', 'from_rgb.'),
        (r'b(\d+)\.', lambda m: f'blocks.{top - _level(m[1])}.'),
    ]


def _level(resolution):
    """4, 8, 16, ... to 0, 1, 2, ..."""
    return int(resolution).bit_length() - 3


def _rename(state, config):
    """Published names to this project's; resampling filters are checked and dropped."""
    standard = setup_filter(RESAMPLE_TAPS)
    renamed, unknown = {}, []
    for name, value in state.items():
        if name.endswith('resample_filter'):
            if value.shape != standard.shape or not torch.allclose(value.float(), standard):
                raise LegacyError(f'{printable(name)} is not the filter [1, 3, 3, 1]')
            continue
        new = own_name(name, config)
        if new is None or new in renamed:
            unknown.append(name)
        else:
            renamed[new] = (name, value)
    if unknown:
        raise LegacyError(f'weights do not fit: unknown {_listed(unknown)}')
    return renamed


def _fit(shapes, renamed):
    """The tensors by own name, each one accounted for. shapes: what is expected; renamed: (published name, tensor)."""
    missing = sorted(set(shapes) - set(renamed))
    unknown = sorted(renamed[name][0] for name in set(renamed) - set(shapes))
    if missing or unknown:
        raise LegacyError(f'weights do not fit: missing {_listed(missing)}, unknown {_listed(unknown)}')
    fitting = {}
    for name, shape in shapes.items():
        published, value = renamed[name]
        if name.endswith('.const') and value.shape == (1, *shape):
            value = value[0]  # the releases differ in a leading axis of 1
        if value.shape != shape:
            raise LegacyError(f'{printable(published)} has shape {list(value.shape)}, expected {list(shape)}')
        fitting[name] = value
    return fitting


def _listed(names, most=8):
    """Names in one line."""
    shown = ', '.join(printable(name) for name in names[:most]) or 'none'
    return shown if len(names) <= most else f'{shown} and {len(names) - most} more'


# ---------------------------------------------------------------------------------------------------------------------
# Files


def load_reference(path):
    """The networks of a published pickle by this project's names: 'G', 'G_ema', 'D', 'D_patch', those that it holds.

    Nothing in the file is executed. Entries that are not networks are passed over. Raises LegacyError.
    """
    content = read_pickle(path)
    if not isinstance(content, dict):
        raise LegacyError(f'{path} holds no networks: its content is no dict')
    networks = {}
    for name, entry in content.items():
        if _is_network(name, entry):
            try:
                networks['D_patch' if entry.class_name == 'SingleDiscriminator' else str(name)] = _rebuild(entry)
            except LegacyError as error:
                raise LegacyError(f'{path}: {printable(str(name))}: {error}') from None
    if not networks:
        raise LegacyError(f'{path} holds no networks of EG3D or Mimic3D; entries: {_listed([str(name) for name in content])}')
    return networks


def _is_network(name, entry):
    if not isinstance(entry, PassiveObject) or not entry.persistent:
        return False
    return entry.class_name in CLASSES or name in ('G', 'G_ema', 'D', 'D_patch')


def _rebuild(entry):
    """This project's module of a published object."""
    if entry.class_name not in CLASSES:
        raise LegacyError(f'{printable(entry.class_name)} is not a published class that this project knows')
    if plain(entry.state.get('_init_args')):
        raise LegacyError('constructor arguments without names are not supported')
    kwargs = plain(entry.state.get('_init_kwargs'))
    if not isinstance(kwargs, dict):
        raise LegacyError('it has no constructor arguments')
    if 'rendering_kwargs' in entry.state:  # as last used; the constructor only sets them
        kwargs['rendering_kwargs'] = plain(entry.state['rendering_kwargs'])
    render_resolution = entry.state.get('neural_rendering_resolution')
    if type(render_resolution) is not int:
        render_resolution = None
    return build_from_reference(CLASSES[entry.class_name], kwargs, state_dict(entry), render_resolution)
