"""What published arguments and tensors become here."""

import pytest
import torch

from interop import published
from tests import published as files
from tests.goldens.frozen import fill
from tests.helpers import assert_same_weights
from tests.interop.small_files import DUAL, EG3D, GENERATOR, RENDERING, SINGLE, STAGE1, changed, generator_config, without
from tests.published import DUAL_CLASS, SINGLE_CLASS, STAGE1_CLASS, STAGE2_CLASS
from training.config import FFHQ_FOCAL, SHAPENET_FOCAL
from training.legacy import LegacyError, build_from_reference

# ---------------------------------------------------------------------------------------------------------------------
# Published arguments and files at sizes for tests


def network(class_name, kwargs):
    """This project's module for published arguments, with weights."""
    return fill(files.network(class_name, kwargs))


# ---------------------------------------------------------------------------------------------------------------------
# Arguments and tensors


@pytest.mark.parametrize(
    'class_name, kwargs',
    [
        (STAGE2_CLASS, GENERATOR),
        (STAGE1_CLASS, STAGE1),
        (DUAL_CLASS, DUAL),
        (SINGLE_CLASS, SINGLE),
        (STAGE2_CLASS, changed(GENERATOR, ray_start='auto', ray_end='auto', box_warp=1.3) | {'triplane_act': 'tanh'}),
        (
            STAGE1_CLASS,
            changed(STAGE1, superresolution_noise_mode='random', c_gen_conditioning_zero=True) | {'aware3d_res': None},
        ),
        (STAGE1_CLASS, changed(EG3D, c_scale=0.5)),
    ],
)
def test_published_arguments_build_the_same_network(class_name, kwargs):
    module = network(class_name, kwargs)
    assert_same_weights(build_from_reference(class_name, kwargs, files.published_state(module, class_name, kwargs)), module)


@pytest.mark.parametrize(
    'resolution, suffix, size, channels',
    [(128, '2X', 64, (128, 64)), (256, '4X', 128, (128, 64)), (512, '8XDC', 128, (256, 128))],
)
def test_every_published_resolution_is_known(resolution, suffix, size, channels):
    module = f'training.superresolution.SuperresolutionHybrid{suffix}'
    kwargs = changed(GENERATOR, image_resolution=resolution, superresolution_module=module)
    config = generator_config(STAGE2_CLASS, kwargs | {'img_resolution': resolution})
    assert (config.image_resolution, config.sr_input_resolution, config.sr_channels) == (resolution, size, channels)


def test_what_arguments_mean():
    config = generator_config(STAGE2_CLASS, GENERATOR)
    assert (config.precision, config.conv_clamp, config.plane_order, config.branch_3d) == ('fp16', 256.0, 'mimic3d', 'residual')
    assert config.rendering.focal == FFHQ_FOCAL
    plain = generator_config(STAGE1_CLASS, EG3D | {'sr_num_fp16_res': 0})
    assert (plain.precision, plain.conv_clamp, plain.plane_order, plain.plane_resolution) == ('fp32', None, 'eg3d', 256)
    rendering = RENDERING | {'avg_camera_radius': 1.7, 'avg_camera_pivot': [0, 0, 0], 'white_back': True}
    cars = generator_config(STAGE2_CLASS, GENERATOR | {'rendering_kwargs': rendering}).rendering
    assert (cars.focal, cars.white_background, cars.camera_pivot) == (SHAPENET_FOCAL, True, (0, 0, 0))
    unknown = []
    defaults = published.read_discriminator_config(DUAL_CLASS, dict(c_dim=25, img_resolution=64, img_channels=3), unknown)
    assert (defaults.conv_clamp, defaults.low_precision_resolutions, defaults.minibatch_group, defaults.mapping_layers) == (
        256,
        4,
        4,
        8,
    )
    assert (
        published.read_discriminator_config(DUAL_CLASS, DUAL | {'conv_clamp': None}, unknown).conv_clamp is None and unknown == []
    )


@pytest.mark.parametrize('class_name, kwargs', [(STAGE1_CLASS, EG3D), (STAGE1_CLASS, STAGE1), (STAGE2_CLASS, GENERATOR)])
def test_a_missing_scale_of_the_conditioning_means_none(class_name, kwargs):
    """The releases multiply the camera by c_scale, and by 0 where it is missing."""
    kwargs = kwargs | {'rendering_kwargs': without(kwargs['rendering_kwargs'], 'c_scale')}
    module = network(class_name, kwargs)
    G = build_from_reference(class_name, kwargs, files.published_state(module, class_name, kwargs))
    z, c = torch.randn(2, 8), torch.randn(2, 25)
    assert G.config.conditioning_scale == 0
    assert torch.equal(G.mapping(z, c), G.mapping(z, -3 * c))


@pytest.mark.parametrize('argument, meaning', [(None, 'linear'), ('none', 'sigmoid'), ('sigmoid', 'sigmoid'), ('tanh', 'tanh')])
def test_activations_of_planes_are_what_the_releases_make_of_them(argument, meaning):
    assert generator_config(STAGE2_CLASS, GENERATOR | {'triplane_act': argument}).plane_activation == meaning


@pytest.mark.parametrize(
    'change',
    [
        dict(disparity_space_sampling=True),
        dict(clamp_mode='relu'),
        dict(aware3d_res=[8]),
        dict(aware3d_res=[4, 8, 16]),
        dict(blur_plane=1),
        dict(roll_out='a'),
        dict(add_block=1),
        dict(depth_guided_sample=True),
        dict(retidx=[-1]),
        dict(img_channels=4),
        dict(add_sr_module=True),
        dict(aware3d_att=True),
        dict(decoder_output_dim=48),
        dict(z_dim=True),
        dict(num_fp16_res=4),
        dict(conv_clamp=256),
        dict(triplane_act='relu'),
        dict(triplane_act='linear'),
        dict(mapping_kwargs={'lr_multiplier': 1}),
        dict(mapping_kwargs={'depth': 2}),
        dict(sr_kwargs={'surprise': 1}),
        dict(surprise=1),
        dict(ray_start='near'),
        dict(superresolution_module='training.superresolution.SuperresolutionHybrid8X'),
        dict(superresolution_noise_mode='loud'),
        dict(rendering_kwargs=RENDERING | {'surprise': 1}),
        dict(image_resolution=256),
        dict(avg_camera_pivot=[0, 0]),
        dict(z_dim='8'),
        dict(triplane_channels=32),
        dict(w_dim=-1),
        dict(c_gen_conditioning_zero='no'),
        dict(channel_max=0),
        dict(triplane_resolution=12, aware3d_res=None, retidx=[-3, -1]),
    ],
)
def test_arguments_without_a_counterpart_are_named(change):
    argument = next(iter(change))
    named = {
        'mapping_kwargs': '|'.join(change.get('mapping_kwargs', {})),
        'sr_kwargs': 'surprise',
        'rendering_kwargs': 'rendering_kwargs.surprise',
        'triplane_resolution': 'do not fit together',
        'channel_max': 'do not fit together',
    }.get(argument, argument)
    with pytest.raises(LegacyError, match=named):
        build_from_reference(STAGE2_CLASS, changed(GENERATOR, **change), {})


def test_missing_rendering_arguments_are_named():
    with pytest.raises(LegacyError, match='rendering_kwargs.box_warp is missing'):
        build_from_reference(STAGE2_CLASS, GENERATOR | {'rendering_kwargs': without(RENDERING, 'box_warp')}, {})


@pytest.mark.parametrize(
    'class_name, change',
    [
        (DUAL_CLASS, dict(disc_c_noise=0.1)),
        (DUAL_CLASS, dict(architecture='skip')),
        (DUAL_CLASS, dict(cmap_dim=8)),
        (DUAL_CLASS, dict(c_dim=0)),
        (SINGLE_CLASS, dict(c_dim=25)),
        (DUAL_CLASS, dict(img_channels=6)),
        (DUAL_CLASS, dict(surprise=1)),
        (DUAL_CLASS, dict(block_kwargs={'activation': 'relu'})),
        (DUAL_CLASS, dict(epilogue_kwargs={'mbstd_num_channels': 2})),
    ],
)
def test_arguments_of_discriminators_without_a_counterpart_are_named(class_name, change):
    argument = next(iter(change))
    with pytest.raises(LegacyError, match=argument):
        build_from_reference(class_name, (DUAL if class_name == DUAL_CLASS else SINGLE) | change, {})


def test_every_tensor_is_accounted_for():
    state = files.published_state(network(STAGE2_CLASS, GENERATOR), STAGE2_CLASS, GENERATOR)

    def build(**changes):
        merged = state | changes
        return build_from_reference(STAGE2_CLASS, GENERATOR, {name: value for name, value in merged.items() if value is not None})

    build()
    with pytest.raises(LegacyError, match='missing decoder.hidden.bias, unknown none'):
        build(**{'decoder.net.0.bias': None})
    with pytest.raises(LegacyError, match='tensor encoder.weight$'):
        build(**{'encoder.weight': torch.zeros(1)})
    with pytest.raises(LegacyError, match=r'tensor backbone.synthesis.b3d8.block4.conv0.bias'):
        build(**{'backbone.synthesis.b3d8.block4.conv0.bias': torch.zeros(4)})
    for second in ('backbone.synthesis.b5.conv1.bias', 'backbone.synthesis.b4.to_rgb.bias'):  # two names for one of ours
        with pytest.raises(LegacyError, match=f'tensor {second}'):
            build(**{second: torch.zeros(8)})
    with pytest.raises(LegacyError, match='tensor decoder.hidden.bias'):  # our own names are not published names
        build(**{'decoder.hidden.bias': torch.zeros(64)})
    with pytest.raises(LegacyError, match=r'decoder.net.0.bias has shape \[3\], expected \[64\]'):
        build(**{'decoder.net.0.bias': torch.zeros(3)})
    with pytest.raises(LegacyError, match=r'superresolution.block0.conv0.resample_filter is not the filter'):
        build(**{'superresolution.block0.conv0.resample_filter': torch.ones(4, 4)})
    with pytest.raises(LegacyError, match='training.networks.Evil is not a published class'):
        build_from_reference('training.networks.Evil', {}, {})


def test_arrays_serve_as_weights():
    module = network(SINGLE_CLASS, SINGLE)
    state = {name: value.numpy() for name, value in files.published_state(module, SINGLE_CLASS, SINGLE).items()}
    assert_same_weights(build_from_reference(SINGLE_CLASS, SINGLE, state), module)
