"""Published arguments and snapshots at sizes for tests."""

import torch

from interop import published
from tests import published as files
from tests.published import DUAL_CLASS, SINGLE_CLASS, STAGE2_CLASS

FEW = dict(depth_resolution=6, depth_resolution_importance=6)
GENERATOR = files.small_generator(files.mimic3d(128, 2, **FEW))
STAGE1 = files.small_generator(files.mimic3d(128, 1, **FEW))
EG3D = files.reduced(files.eg3d(128, **FEW)) | dict(channel_base=512)
DUAL = files.dual(32) | dict(channel_base=128, channel_max=8, epilogue_kwargs=dict(mbstd_group_size=2))
SINGLE = files.SINGLE | dict(channel_base=128, channel_max=8, img_resolution=16)
RENDERING = GENERATOR['rendering_kwargs']


def changed(kwargs, **changes):
    """Arguments with changes; those of rendering_kwargs go there."""
    rendering = {key: changes.pop(key) for key in list(changes) if key in RENDERING}
    kwargs = kwargs | changes
    return kwargs | {'rendering_kwargs': kwargs['rendering_kwargs'] | rendering} if rendering else kwargs


def without(table, *names):
    return {key: value for key, value in table.items() if key not in names}


def generator_config(class_name, kwargs):
    """The configuration, where no argument is unknown."""
    unknown = []
    config = published.read_generator_config(class_name, kwargs, unknown)
    assert unknown == []
    return config


def small_layout(class_name=STAGE2_CLASS, kwargs=GENERATOR, **plain):
    """The layout of a snapshot with small networks; its patch discriminator has another name, and G is None."""
    modules = {
        'D': files.module_layout(DUAL_CLASS, DUAL),
        'patch_D': files.module_layout(SINGLE_CLASS, SINGLE),
        'G_ema': files.module_layout(class_name, kwargs),
    }
    plain = {
        'G': None,
        'training_set_kwargs': {'path': 'data.zip', 'max_size': None, 'xflip': True},
        'augment_pipe': None,
    } | plain
    return {'top_level': ['G', 'D', 'patch_D', 'G_ema', *without(plain, 'G')], 'plain': plain, 'modules': modules}


def write_small(path, change=lambda content, tensors: None, protocol=4, **options):
    """Write such a snapshot. Returns its tensors under the names of the networks that it should open as."""
    tensors = files.write(path, small_layout(**options), change, protocol)
    return {{'patch_D': 'D_patch'}.get(key, key): value for key, value in tensors.items()}


def add_unknown(content, tensors):
    """A fork's snapshot: arguments, attributes, tensors and classes that nobody here knows, all of them new."""
    for key in ('G_ema', 'D'):
        root = content[key]
        root._init_kwargs = root._init_kwargs | {'surprise': 1}
        root.register_buffer('spectrum', torch.zeros(3))
        root.register_parameter('boost', torch.nn.Parameter(torch.zeros(2)))
    G = content['G_ema']
    G.rendering_kwargs = G.rendering_kwargs | {'density_noise': 0.5, 'fog': 1}
    G.decoder.sharpness = 2.0
    G.switched_off, G.empty = None, []
    for index, layer in enumerate(('conv0', 'conv1')):
        getattr(G.backbone.synthesis.b8, layer).gate = index
    G.backbone.synthesis.b8.conv0._init_kwargs['gain'] = 2
    content['D'].b4.add_module('attention', torch.nn.ReLU())
