"""Networks of the published EG3D and Mimic3D releases, rebuilt as this project's modules."""

import math
import re

import torch

from dnnlib.errors import UserError
from torch_utils.ops.upfirdn2d import setup_filter
from training.config import DiscriminatorConfig, GeneratorConfig, RenderingConfig
from training.networks.discriminator import DualDiscriminator, PatchDiscriminator
from training.networks.generator import Generator
from training.networks.stylegan2 import RESAMPLE_TAPS


class LegacyError(UserError):
    """Published weights or constructor arguments that this project cannot represent."""


GENERATORS = ('training.triplane.TriPlaneGenerator', 'training.dual_triplane.DualTriPlaneGenerator')
DUAL_DISCRIMINATORS = ('training.dual_discriminator.DualDiscriminator',)
SINGLE_DISCRIMINATORS = ('training.dual_discriminator.SingleDiscriminator',)
_SUPERRESOLUTION = {  # by the end of the published class name: input, channels, whether larger renders are resized
    '2X': (64, (128, 64), True),
    '4X': (128, (128, 64), False),
    '8XDC': (128, (256, 128), True),
}


def build_from_reference(class_name, init_kwargs, state_dict):
    """A module of this project with published weights.

    class_name: dotted published class name; init_kwargs: its constructor arguments; state_dict: its tensors or arrays by
    published name. Raises LegacyError naming any class, argument or tensor that has no counterpart here.
    """
    state = {name: torch.as_tensor(value) for name, value in state_dict.items()}
    if class_name in GENERATORS:
        config = generator_config(init_kwargs)
        module, renamed = Generator(config), _rename(state, _generator_rules(config))
    elif class_name in DUAL_DISCRIMINATORS + SINGLE_DISCRIMINATORS:
        config = discriminator_config(init_kwargs)
        build = DualDiscriminator if class_name in DUAL_DISCRIMINATORS else PatchDiscriminator
        module, renamed = build(config), _rename(state, _discriminator_rules(config))
    else:
        raise LegacyError(f'{class_name} is not a published class that this project knows')
    _load(module, renamed)
    return module.eval().requires_grad_(False)


def generator_config(kwargs):
    """GeneratorConfig of published constructor arguments."""
    rendering = kwargs['rendering_kwargs']
    suffix = next((s for s in _SUPERRESOLUTION if rendering['superresolution_module'].endswith(s)), None)
    if suffix is None:
        raise LegacyError(f'superresolution_module {rendering["superresolution_module"]} has no counterpart')
    sr_input, sr_channels, resize_larger = _SUPERRESOLUTION[suffix]
    plane_resolution = kwargs.get('triplane_resolution', 256)
    aware = kwargs.get('aware3d_res')
    return GeneratorConfig(
        z_dim=kwargs['z_dim'], w_dim=kwargs['w_dim'], c_dim=kwargs['c_dim'],
        mapping_layers=kwargs.get('mapping_kwargs', {}).get('num_layers', 8),
        pose_conditioning=not rendering.get('c_gen_conditioning_zero', False),
        conditioning_scale=rendering.get('c_scale', 1), image_resolution=kwargs['img_resolution'],
        plane_resolution=plane_resolution, plane_channels=kwargs.get('triplane_channels', 96) // 3,
        plane_order='mimic3d' if 'triplane_resolution' in kwargs else 'eg3d',
        plane_activation=kwargs.get('triplane_act') or 'linear', channel_base=kwargs.get('channel_base', 32768),
        channel_max=kwargs.get('channel_max', 512), aware_stream=bool(aware), residual='retidx' in kwargs,
        decoder_lr_multiplier=rendering.get('decoder_lr_mul', 1), sr_input_resolution=sr_input, sr_channels=sr_channels,
        sr_resize_larger=resize_larger, sr_antialias=rendering.get('sr_antialias', True),
        sr_noise_mode=rendering.get('superresolution_noise_mode', 'none'),
        precision='fp16' if kwargs.get('sr_num_fp16_res', 0) > 0 else 'fp32',
        conv_clamp=256.0 if kwargs.get('sr_num_fp16_res', 0) > 0 else None,
        rendering=_rendering_config(rendering))


def _rendering_config(kwargs):
    return RenderingConfig(
        near=kwargs['ray_start'], far=kwargs['ray_end'], box_size=kwargs['box_warp'],
        depth_samples=kwargs['depth_resolution'], importance_samples=kwargs['depth_resolution_importance'],
        white_background=kwargs.get('white_back', False), camera_radius=kwargs.get('avg_camera_radius', 2.7),
        camera_pivot=tuple(kwargs.get('avg_camera_pivot', (0, 0, 0.2))))


def discriminator_config(kwargs):
    """DiscriminatorConfig of published constructor arguments."""
    return DiscriminatorConfig(
        resolution=kwargs['img_resolution'], c_dim=kwargs['c_dim'], channel_base=kwargs.get('channel_base', 32768),
        channel_max=kwargs.get('channel_max', 512), mapping_layers=kwargs.get('mapping_kwargs', {}).get('num_layers', 8),
        minibatch_group=kwargs.get('epilogue_kwargs', {}).get('mbstd_group_size', 4),
        low_precision_resolutions=kwargs.get('num_fp16_res', 4), conv_clamp=kwargs.get('conv_clamp'),
        precision='fp16' if kwargs.get('num_fp16_res', 4) else 'fp32')


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
    top = int(math.log2(config.resolution))
    return [
        (r'mapping\.fc(\d+)\.', r'mapping.layers.\1.'),
        (r'b4\.(conv|fc|out)\.', r'\1.'),
        (rf'b{config.resolution}\.fromrgb\.', 'from_rgb.'),
        (r'b(\d+)\.', lambda m: f'blocks.{top - int(math.log2(int(m[1])))}.'),
    ]


def _level(resolution):
    """4, 8, 16, ... to 0, 1, 2, ..."""
    return int(math.log2(int(resolution))) - 2


def _rename(state, rules):
    """Published names to this project's; resampling filters are checked and dropped."""
    standard = setup_filter(RESAMPLE_TAPS)
    renamed = {}
    for name, value in state.items():
        if name.endswith('resample_filter'):
            if not torch.allclose(value.float(), standard):
                raise LegacyError(f'{name} is not the filter [1, 3, 3, 1]')
            continue
        renamed[_rename_one(name, rules).replace('.torgb.', '.to_rgb.')] = value
    return renamed


def _rename_one(name, rules):
    for pattern, replacement in rules:
        new, count = re.subn('^' + pattern, replacement, name)
        if count:
            return new
    return name


def _load(module, state):
    """Copy tensors in, each one accounted for."""
    own = module.state_dict()
    missing, unknown = sorted(set(own) - set(state)), sorted(set(state) - set(own))
    if missing or unknown:
        raise LegacyError(f'weights do not fit: missing {missing or "none"}, unknown {unknown or "none"}')
    for name, target in own.items():
        value = state[name]
        if value.shape != target.shape and value.numel() == target.numel() and name.endswith('.const'):
            value = value.reshape(target.shape)  # the releases differ in a leading axis of 1
        if value.shape != target.shape:
            raise LegacyError(f'{name} has shape {list(value.shape)}, expected {list(target.shape)}')
        target.copy_(value)
