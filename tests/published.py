"""Writes pickles as EG3D's and Mimic3D's training loops do, at any size: what tests of their reader open.

Nine kinds of snapshot are described here as far as a reader can see. Where the recorded layouts are at hand
(snapshot_layouts.json among the goldens), tests/interop/test_published.py holds this description against them.
"""

import contextlib
import pickle
import re
import sys
import types
from unittest import mock

import numpy as np
import torch

from interop import published
from interop.pickles import path_of
from torch_utils.ops.upfirdn2d import setup_filter
from training.config import GeneratorConfig
from training.networks.discriminator import DualDiscriminator, PatchDiscriminator
from training.networks.generator import Generator

STAGE1_CLASS, STAGE2_CLASS = published.GENERATORS
DUAL_CLASS, SINGLE_CLASS = published.DUAL_DISCRIMINATORS[0], published.SINGLE_DISCRIMINATORS[0]

# ---------------------------------------------------------------------------------------------------------------------
# Constructor arguments of the nine kinds

_S2D = {128: 'SuperresolutionHybrid2X', 256: 'SuperresolutionHybrid4X', 512: 'SuperresolutionHybrid8XDC'}
_ALL = [4, 8, 16, 32, 64, 128, 256]
_MAPS = dict(channel_base=32768, channel_max=512, fused_modconv_default='inference_only')
_CARS = dict(
    depth_resolution=64,
    depth_resolution_importance=64,
    ray_start=0.1,
    ray_end=2.6,
    box_warp=1.6,
    white_back=True,
    avg_camera_radius=1.7,
    avg_camera_pivot=[0, 0, 0],
)
_CATS = dict(avg_camera_pivot=[0, 0, -0.06])


def rendering(resolution, **changes):
    return (
        dict(
            image_resolution=resolution,
            disparity_space_sampling=False,
            clamp_mode='softplus',
            superresolution_module=f'training.superresolution.{_S2D[resolution]}',
            c_gen_conditioning_zero=False,
            gpc_reg_prob=0.5,
            c_scale=1.0,
            superresolution_noise_mode='none',
            density_reg=0.25,
            density_reg_p_dist=0.004,
            reg_type='l1',
            decoder_lr_mul=1.0,
            sr_antialias=True,
            depth_resolution=48,
            depth_resolution_importance=48,
            ray_start=2.25,
            ray_end=3.3,
            box_warp=1,
            avg_camera_radius=2.7,
            avg_camera_pivot=[0, 0, 0.2],
        )
        | changes
    )


def eg3d(resolution, sr_num_fp16_res=4, **changes):
    """Constructor arguments of EG3D's generator."""
    return dict(
        z_dim=512,
        w_dim=512,
        mapping_kwargs={'num_layers': 2},
        rendering_kwargs=rendering(resolution, **changes),
        num_fp16_res=0,
        sr_num_fp16_res=sr_num_fp16_res,
        sr_kwargs=dict(_MAPS),
        conv_clamp=None,
        c_dim=25,
        img_resolution=resolution,
        img_channels=3,
        **_MAPS,
    )


def mimic3d(resolution, stage, **changes):
    """Constructor arguments of Mimic3D's generators."""
    return eg3d(resolution, **{'c_scale': 1, 'density_reg_p_dist': 0.004 / stage} | changes) | dict(
        retidx=None if stage == 1 else [-3, -1],
        add_sr_module=False,
        add_block=0,
        triplane_resolution=256,
        triplane_channels=96,
        triplane_act=None,
        blur_plane=0,
        neural_rendering_resolution=64,
        decoder_output_dim=32,
        depth_guided_sample=0,
        roll_out=None,
        aware3d_res=_ALL,
        aware3d_att=False,
    )


def dual(resolution, noise=0, fp16=4):
    """Constructor arguments of D2D."""
    return dict(
        block_kwargs={'freeze_layers': 0},
        mapping_kwargs={},
        epilogue_kwargs={'mbstd_group_size': 4},
        channel_base=32768,
        channel_max=512,
        disc_c_noise=noise,
        num_fp16_res=fp16,
        conv_clamp=256 if fp16 else None,
        c_dim=25,
        img_resolution=resolution,
        img_channels=3,
    )


SINGLE = dict(
    block_kwargs={'freeze_layers': 0},
    epilogue_kwargs={'mbstd_group_size': 4, 'mbstd_num_channels': 1},
    channel_base=32768,
    channel_max=512,
    num_fp16_res=4,
    conv_clamp=256,
    c_dim=0,
    img_resolution=64,
    img_channels=3,
)
KINDS = {  # arguments of G, of D, and whether there is an augmentation pipe
    'eg3d/ffhq512': (eg3d(512), dual(512, 0.0), False),
    'eg3d/afhq512': (eg3d(512, 0, superresolution_noise_mode='random', **_CATS), dual(512, 0.0, fp16=0), True),
    'eg3d/shapenet128': (eg3d(128, c_gen_conditioning_zero=True, gpc_reg_prob=None, **_CARS), dual(128, 0.0), False),
    'mimic3d/ffhq512/stage1': (mimic3d(512, 1), dual(512), False),
    'mimic3d/ffhq512/stage2': (mimic3d(512, 2), dual(512), False),
    'mimic3d/ffhq256/stage2': (mimic3d(256, 2), dual(256), False),
    'mimic3d/shapenet128/stage1': (mimic3d(128, 1, **_CARS), dual(128), False),
    'mimic3d/shapenet128/stage2': (mimic3d(128, 2, **_CARS), dual(128), False),
    'mimic3d/afhq256/stage2': (mimic3d(256, 2, **_CATS), dual(256), True),
}


def reduced(kwargs):
    """The same network with few channels."""
    small = (
        dict(z_dim=8, w_dim=16, channel_base=256, channel_max=8) if 'z_dim' in kwargs else dict(channel_base=512, channel_max=16)
    )
    return kwargs | small


def small_generator(kwargs, planes=8):
    """Mimic3D's arguments with few channels and small planes, too."""
    aware = [r for r in _ALL if r <= planes]
    return reduced(kwargs) | dict(channel_base=64, triplane_resolution=planes, triplane_channels=12, aware3d_res=aware)


# ---------------------------------------------------------------------------------------------------------------------
# Classes and attributes of what a network contains

_TREE = [  # the end of a path, and the class of the module there; the first that matches counts
    (r'renderer', 'training.volumetric_rendering.renderer.ImportanceRenderer'),
    (r'renderer\.ray_marcher', 'training.volumetric_rendering.ray_marcher.MipRayMarcher2'),
    (r'ray_sampler', 'training.volumetric_rendering.ray_sampler.RaySampler'),
    (r'decoder', 'training.triplane.OSGDecoder'),
    (r'decoder\.net', 'torch.nn.modules.container.Sequential'),
    (r'decoder\.net\.1', 'torch.nn.modules.activation.Softplus'),
    (r'backbone', 'Generator'),
    (r'backbone\.synthesis', 'SynthesisNetwork'),
    (r'(.*\.)?mapping', 'MappingNetwork'),
    (r'.*\.b3d\d+', 'Aware3DBlock'),
    (r'.*\.(b\d+|block\d?)', 'SynthesisBlock'),
    (r'b4', 'DiscriminatorEpilogue'),
    (r'b\d+', 'DiscriminatorBlock'),
    (r'b4\.mbstd', 'MinibatchStdLayer'),
    (r'.*\.(affine|embed|fc\d?|out|0|2)', 'FullyConnectedLayer'),
    (r'.*\.torgb', 'ToRGBLayer'),
    (r'.*synthesis\..*\.conv[01]|superresolution\..*\.conv[01]', 'SynthesisLayer'),
    (r'.*\.(conv[01]?|fromrgb|skip)', 'Conv2dLayer'),
]
_PLAIN_MODULES = {'renderer', 'renderer.ray_marcher', 'ray_sampler', 'decoder', 'decoder.net', 'decoder.net.1'}
_SYNTHESIS_OPTIONS = (
    'w_dim img_resolution img_channels roll_out channel_base channel_max retidx add_sr_module add_block '
    'fused_modconv_default num_fp16_res aware3d_res aware3d_att conv_clamp'
)
_GENERATOR = 'z_dim c_dim w_dim img_resolution img_channels neural_rendering_resolution rendering_kwargs _last_planes'
_DISCRIMINATOR = 'c_dim img_resolution img_resolution_log2 img_channels block_resolutions'
_SUPERRESOLUTION = (
    'input_resolution sr_antialias',
    'channels img_resolution sr_num_fp16_res sr_antialias channel_base channel_max fused_modconv_default',
)
_BLOCK = (
    'in_channels w_dim resolution img_channels is_last architecture use_fp16 channels_last fused_modconv_default num_conv '
    'num_torgb',
    'w_dim resolution img_channels is_last use_fp16 fused_modconv_default conv_clamp',
)
CLASSES = {  # class: names of its attributes, names of its constructor's arguments
    'TriPlaneGenerator': (f'{_GENERATOR} triplane_resolution triplane_channels roll_out plane_act blur_plane f', ''),
    'DualTriPlaneGenerator': (f'{_GENERATOR} triplane_resolution triplane_channels roll_out plane_act depth_guided_sample', ''),
    'DualDiscriminator': (f'{_DISCRIMINATOR} disc_c_noise', ''),
    'SingleDiscriminator': (_DISCRIMINATOR, ''),
    'ImportanceRenderer': ('plane_axes', ''),
    'MipRayMarcher2': ('', ''),
    'OSGDecoder': ('hidden_dim', ''),
    'Sequential': ('', ''),
    'RaySampler': ('ray_origins_h ray_directions depths image_coords rendering_options', ''),
    'Softplus': ('beta threshold', ''),
    'Generator': (
        'z_dim c_dim w_dim img_resolution img_channels num_ws',
        f'{_SYNTHESIS_OPTIONS} mapping_kwargs'.replace('w_dim ', ''),
    ),
    'SynthesisNetwork': (
        'w_dim img_resolution img_resolution_log2 img_channels num_fp16_res block_resolutions num_ws retidx add_block sr3d',
        _SYNTHESIS_OPTIONS,
    ),
    'MappingNetwork': ('z_dim c_dim w_dim num_ws num_layers w_avg_beta', 'z_dim c_dim w_dim num_ws num_layers w_avg_beta'),
    'Aware3DBlock': ('block2', ''),
    'SynthesisBlockNoUp': _BLOCK,
    'SynthesisBlock': tuple(f'{names} up roll_out' for names in _BLOCK),
    'SynthesisLayer': (
        'in_channels out_channels w_dim resolution up use_noise activation conv_clamp padding act_gain roll_out',
        'w_dim resolution conv_clamp channels_last up resample_filter roll_out',
    ),
    'ToRGBLayer': ('in_channels out_channels w_dim conv_clamp weight_gain roll_out', 'w_dim conv_clamp channels_last roll_out'),
    'FullyConnectedLayer': ('in_features out_features activation weight_gain bias_gain', 'bias_init activation lr_multiplier'),
    'DiscriminatorBlock': (
        'in_channels resolution img_channels first_layer_idx architecture use_fp16 channels_last num_layers',
        'resolution first_layer_idx use_fp16 freeze_layers img_channels architecture conv_clamp',
    ),
    'Conv2dLayer': (
        'in_channels out_channels activation up down conv_clamp padding weight_gain act_gain bias',
        'kernel_size activation trainable conv_clamp channels_last down resample_filter bias',
    ),
    'DiscriminatorEpilogue': (
        'in_channels cmap_dim resolution img_channels architecture',
        'cmap_dim resolution mbstd_group_size img_channels architecture conv_clamp mbstd_num_channels',
    ),
    'MinibatchStdLayer': ('group_size num_channels', 'group_size num_channels'),
    **dict.fromkeys(_S2D.values(), _SUPERRESOLUTION),
}
_NOTHING = ('_last_planes', 'f', 'sr3d', 'block2', 'bias', 'plane_act', *CLASSES['RaySampler'][0].split())


def class_at(path, class_name, kwargs):
    """The class of the module at a path in a network of published arguments; with its module where it is written by name."""
    if not path:
        return class_name.rpartition('.')[2]
    if path == 'superresolution':
        return kwargs['rendering_kwargs']['superresolution_module'].rpartition('.')[2]
    if path == 'superresolution.block0' and kwargs['img_resolution'] < 512:
        return 'SynthesisBlockNoUp'
    return next(name for pattern, name in _TREE if re.fullmatch(pattern, path))


def network(class_name, kwargs, device='cpu'):
    """This project's module for published arguments."""
    with torch.device(device):
        if class_name in published.GENERATORS:
            return Generator(published.read_generator_config(class_name, kwargs, []))
        build = DualDiscriminator if class_name == DUAL_CLASS else PatchDiscriminator
        return build(published.read_discriminator_config(class_name, kwargs, []))


def published_name(name, config):
    """The other direction of interop.published.own_name, written independently."""
    name = name.replace('.to_rgb.', '.torgb.')
    if isinstance(config, GeneratorConfig):
        last = f'backbone.synthesis.b3d{config.plane_resolution}'
        rules = [
            (r'mapping\.layers\.(\d+)', r'backbone.mapping.fc\1'),
            (r'mapping\.', 'backbone.mapping.'),
            (r'residual\.blocks\.0', f'{last}.block2'),
            (r'residual\.blocks\.1', f'{last}.block3'),
            (r'backbone\.stream\.(\d+)', lambda m: f'backbone.synthesis.b3d{4 * 2 ** int(m[1])}.block'),
            (r'backbone\.blocks\.(\d+)', lambda m: f'backbone.synthesis.b{4 * 2 ** int(m[1])}'),
            (r'superresolution\.blocks\.', 'superresolution.block'),
            (r'decoder\.hidden', 'decoder.net.0'),
            (r'decoder\.output', 'decoder.net.2'),
        ]
    else:
        rules = [
            (r'mapping\.layers\.(\d+)', r'mapping.fc\1'),
            (r'(conv|fc|out)\.', r'b4.\1.'),
            (r'from_rgb', f'b{config.resolution}.fromrgb'),
            (r'blocks\.(\d+)', lambda m: f'b{config.resolution // 2 ** int(m[1])}'),
        ]
    for pattern, replacement in rules:
        if re.match(pattern, name):
            return re.sub('^' + pattern, replacement, name)
    return name


_WITH_FILTER = (
    'SynthesisBlock',
    'SynthesisBlockNoUp',
    'SynthesisLayer',
    'DiscriminatorBlock',
    'Conv2dLayer',
    'DualDiscriminator',
    'SuperresolutionHybrid2X',
    'SuperresolutionHybrid4X',
)


def published_state(module, class_name, kwargs):
    """A state dict under the published names, with what the releases have beside it."""
    state = {published_name(name, module.config): value for name, value in module.state_dict().items()}
    mimic3d = 'triplane_resolution' in kwargs
    for name in [name for name in state if name.endswith('b4.const') and mimic3d]:
        state[name] = state[name][None]
    for path in paths(state):
        if class_at(path, class_name, kwargs) in _WITH_FILTER:
            state[path_of(path, 'resample_filter')] = setup_filter([1, 3, 3, 1])
    if class_name in published.GENERATORS:
        state['dataset_label_std'] = torch.rand(25)
    return state


def paths(names):
    """The paths of all modules above tensors of these names, the outer ones first."""
    found = {''}
    for name in names:
        parts = name.split('.')[:-1]
        found |= {'.'.join(parts[:i]) for i in range(1, len(parts) + 1)}
    return sorted(found)


# ---------------------------------------------------------------------------------------------------------------------
# Layouts: plain data about all that a snapshot contains, in the form of the recorded ones


def module_layout(class_name, kwargs):
    """The layout of a network of published arguments."""
    module = network(class_name, kwargs, 'meta')
    state = published_state(module, class_name, kwargs)
    inside = set(paths(state)) | ({'b4.mbstd'} if class_name not in published.GENERATORS else _PLAIN_MODULES)
    buffers = [name for name in state if re.search(r'(noise_const|resample_filter|w_avg|dataset_label_std)$', name)]

    def tensors(names):
        return [[name, list(state[name].shape), 'float32', False] for name in names]

    return {
        'submodules': [_submodule(path, class_name, kwargs) for path in sorted(inside)],
        'parameters': tensors([name for name in state if name not in buffers]),
        'buffers': tensors(buffers),
    }


def _submodule(path, class_name, kwargs):
    """Values inside a network do not matter to a reader, only which there are."""
    kind = class_at(path, class_name, kwargs)
    attributes, arguments = CLASSES[kind.rpartition('.')[2]]
    default = 1 if path else None
    values = {name: None if name in _NOTHING else kwargs.get(name, default) for name in attributes.split()}
    if kind.endswith('ImportanceRenderer'):
        values = {} if 'triplane_resolution' in kwargs else {'plane_axes': '<tensor [3, 3, 3] float32>'}
    if path in _PLAIN_MODULES:
        return {'path': path, 'class': kind, 'attributes': values}
    return {
        'path': path,
        'class': f'module.{kind}',
        'persistent': True,
        'init_args': [] if not path else [1],
        'init_kwargs': dict.fromkeys(arguments.split(), 1) if path else kwargs,
        'attributes': values,
    }


def kind_layout(kind, change=lambda kwargs: kwargs):
    """The layout of one of KINDS. change: what becomes of constructor arguments."""
    G, D, pipe = KINDS[kind]
    stage2 = kind.endswith('stage2')
    eg3d = kind.startswith('eg3d')
    generator = module_layout(STAGE2_CLASS if stage2 else STAGE1_CLASS, change(G))
    modules = {'G': generator, 'D': module_layout(DUAL_CLASS, change(D)), 'G_ema': generator}
    if stage2:
        modules['D_patch'] = module_layout(SINGLE_CLASS, change(SINGLE))
    plain = {
        'training_set_kwargs': {
            'class_name': 'training.data.dataset.ImageFolderDataset',
            'path': '/data/set.zip',
            'use_labels': True,
            'max_size': 1000,
            'xflip': False,
            'resolution': G['img_resolution'],
            'random_seed': 0,
        }
    }
    if pipe:
        modules['augment_pipe'] = {
            'submodules': [
                {
                    'path': '',
                    'class': 'training.augment.AugmentPipe',
                    'persistent': True,
                    'init_args': [],
                    'init_kwargs': {'xflip': 1},
                    'attributes': {'xflip': 1.0},
                }
            ],
            'parameters': [],
            'buffers': [['p', [], 'float32']],
        }
    elif eg3d:
        plain['augment_pipe'] = None
    return {
        'top_level': ['training_set_kwargs', *modules, *([] if pipe or not eg3d else ['augment_pipe'])],
        'plain': plain,
        'modules': modules,
    }


# ---------------------------------------------------------------------------------------------------------------------
# Writing

SOURCE = 'raise AssertionError("source of the file was run")\n'
EG3D_AXES = torch.tensor(
    [[[1.0, 0, 0], [0, 1, 0], [0, 0, 1]], [[1, 0, 0], [0, 0, 1], [0, 1, 0]], [[0, 0, 1], [1, 0, 0], [0, 1, 0]]]
)


class EasyDict(dict):
    """Stands for the releases' dict with attributes."""


def _reconstruct_persistent_obj(meta):
    raise AssertionError('the loader called a function of the file')


def _persistent_record(module):
    """What the releases write in place of one of their own modules."""
    meta = dict(
        type='class',
        version=6,
        module_src=module.__dict__.get('source', SOURCE),
        class_name=type(module).__name__,
        state={key: value for key, value in vars(module).items() if key != 'source'},
    )
    return _reconstruct_persistent_obj, (meta,)


def stand_in(class_name, persistent):
    """A module class with a published name."""
    module, _, name = class_name.rpartition('.')
    if module.startswith('torch.'):
        return getattr(sys.modules[module], name)
    return type(name, (torch.nn.Module,), {'__module__': module, **({'__reduce__': _persistent_record} if persistent else {})})


@contextlib.contextmanager
def published_modules(*classes):
    """Makes the published names importable, so that pickle agrees to write them."""
    stand_ins = {
        'dnnlib.util': [EasyDict],
        'torch_utils.persistence': [_reconstruct_persistent_obj],
        'training.volumetric_rendering': [],
    }
    for item in classes:
        stand_ins.setdefault(item.__module__, []).append(item)
    modules = {name: types.ModuleType(name) for name in stand_ins}
    with contextlib.ExitStack() as stack:
        stack.enter_context(mock.patch.dict(sys.modules, modules))
        for name, items in stand_ins.items():
            for item in items:
                setattr(modules[name], item.__name__, item)
                stack.enter_context(mock.patch.object(item, '__module__', name))
        yield


def easy(value):
    """Nested dicts as the releases' own."""
    return EasyDict({key: easy(item) for key, item in value.items()}) if isinstance(value, dict) else value


def build(layout, tensors, classes):
    """A tree of torch modules of a module's layout. classes: those written by name so far, by name."""
    nodes = {}
    for entry in layout['submodules']:
        persistent = entry.get('persistent', False)
        if not persistent and entry['class'] not in classes:
            classes[entry['class']] = stand_in(entry['class'], False)
        node = (stand_in(entry['class'], True) if persistent else classes[entry['class']])()
        nodes[entry['path']] = node.eval()
        if persistent:
            node._init_args = tuple(entry['init_args'])
            node._init_kwargs = {key: easy(value) for key, value in entry['init_kwargs'].items()}
        parent, _, name = entry['path'].rpartition('.')
        if name:
            nodes[parent].add_module(name, node)
    for name, *_ in layout['parameters']:
        path, _, last = name.rpartition('.')
        nodes[path].register_parameter(last, torch.nn.Parameter(tensors[name], requires_grad=False))
    for name, *_ in layout['buffers']:
        path, _, last = name.rpartition('.')
        nodes[path].register_buffer(last, tensors[name])
    for entry in layout['submodules']:
        node = nodes[entry['path']]
        for name, value in entry['attributes'].items():
            value = EG3D_AXES.clone() if name == 'plane_axes' else np.float64(0.5) if name == 'weight_gain' else easy(value)
            if name not in node._parameters:
                vars(node)[name] = value
    return nodes['']


def random_tensors(layout):
    """Tensors of a module's layout by name. Numbers are whole, so that they are quickly made and fit into 16 bits."""
    tensors = {
        name: torch.randint(-99, 100, shape, dtype=torch.int8).to(getattr(torch, dtype))
        for name, shape, dtype, *_ in layout['parameters'] + layout['buffers']
    }
    return tensors | {name: setup_filter([1, 3, 3, 1]) for name in tensors if name.endswith('resample_filter')}


def write(path, layout, change=lambda content, tensors: None, protocol=4):
    """Write a snapshot of a layout. Returns {key: tensors by published name}. change(content, tensors) may alter it."""
    tensors, content, classes = {}, {}, {}
    for key in layout['top_level']:
        if key in layout['modules']:
            module = layout['modules'][key]
            tensors[key] = random_tensors(module)
            content[key] = build(module, tensors[key], classes)
        else:
            content[key] = easy(layout['plain'][key])
    change(content, tensors)
    with (
        published_modules(*(item for item in classes.values() if not item.__module__.startswith('torch.'))),
        open(path, 'wb') as file,
    ):
        pickle.dump(content, file, protocol=protocol)
    return tensors


def assert_holds(networks, tensors, keys=('G', 'D', 'G_ema', 'D_patch')):
    """The networks hold the tensors of a published file, each its own."""
    assert set(networks) == set(tensors) & set(keys)
    for key, module in networks.items():
        state = dict(tensors[key])
        for name, value in module.state_dict().items():
            written = state.pop(published_name(name, module.config)).float()
            assert torch.equal(value, written[0] if written.ndim > value.ndim else written), f'{key}: {name}'
        assert all(name.endswith('resample_filter') or name == 'dataset_label_std' for name in state)


class _Anything(dict):
    """Takes whatever a pickle does to it."""

    def __new__(cls, *_):
        return super().__new__(cls)

    def __init__(self, *_):
        super().__init__()

    def __setstate__(self, state):
        pass


def globals_of(path):
    """The names that unpickling a file looks up, those of numpy as numpy 2 writes them."""
    names = set()

    class Recorder(pickle.Unpickler):
        def find_class(self, module, name):
            names.add(f'{module}.{name}'.replace('numpy.core.', 'numpy._core.'))
            return _Anything

    with open(path, 'rb') as file:
        Recorder(file).load()
    return names
