"""Published pickles with names that are not known: all of them in one message, or passed over leniently."""

import re

import pytest
import torch

from tests import published as files
from tests.interop.small_files import EG3D, GENERATOR, add_unknown, generator_config, write_small
from tests.published import STAGE1_CLASS, STAGE2_CLASS
from training.legacy import LegacyError
from training.snapshots import load_networks

UNKNOWN = (
    'in G_ema: argument rendering_kwargs.density_noise, argument rendering_kwargs.fog, argument surprise, tensor boost, '
    'tensor spectrum, attribute OSGDecoder.sharpness, attribute SynthesisLayer.gain, attribute SynthesisLayer.gate'
)


def test_all_that_is_unknown_is_named_in_one_message(tmp_path):
    path = tmp_path / 'network.pkl'
    write_small(path, add_unknown)
    with pytest.raises(LegacyError) as caught:
        load_networks(path)
    message = str(caught.value)
    assert message.count('network.pkl') == 1 and 'strict=False' in message and '--lenient' in message and '\n' not in message
    for name in re.findall(r'(?:argument|tensor|attribute) [\w.]+', UNKNOWN):
        assert len(re.findall(f'{name}[,;.]', message)) == (2 if 'surprise' in name or 'tensor' in name else 1), (name, message)
    assert 'module b4.attention (ReLU)' in message and 'switched_off' not in message and 'empty' not in message


def test_many_unknown_names_are_all_named(tmp_path):
    def add_many(content, tensors):
        for i in range(100):
            content['G_ema'].register_buffer(f'extra{i}', torch.zeros(1))

    write_small(tmp_path / 'network.pkl', add_many)
    with pytest.raises(LegacyError) as caught:
        load_networks(tmp_path / 'network.pkl')
    assert all(f'tensor extra{i},' in f'{caught.value}'.replace('. To', ',') for i in range(100))


def test_lenient_opens_the_same_and_says_what_it_ignored(tmp_path, recwarn):
    path = tmp_path / 'network.pkl'
    tensors = write_small(path, add_unknown)
    with pytest.warns(
        UserWarning, match='network.pkl: ignored .*argument rendering_kwargs.density_noise.*tensor boost'
    ) as caught:
        networks = load_networks(path, strict=False)
    assert len(caught) == 1
    files.assert_holds(networks, tensors)
    assert networks['G_ema'].config == generator_config(STAGE2_CLASS, GENERATOR)


def test_lenient_still_wants_every_tensor(tmp_path):
    def remove(content, tensors):
        add_unknown(content, tensors)
        del content['G_ema'].decoder.net[0]._parameters['bias']

    write_small(tmp_path / 'network.pkl', remove)
    for strict in (True, False):
        with pytest.raises(LegacyError, match='missing decoder.hidden.bias, unknown .*tensor spectrum'):
            load_networks(tmp_path / 'network.pkl', strict=strict)


def test_lenient_passes_over_networks_of_unknown_classes(tmp_path):
    def rename(content, tensors):
        content['D'].__class__ = files.stand_in('module.StyleDiscriminator', True)

    write_small(tmp_path / 'network.pkl', rename)
    with pytest.raises(LegacyError, match='in D: class StyleDiscriminator'):
        load_networks(tmp_path / 'network.pkl')
    with pytest.warns(UserWarning, match='in D: class StyleDiscriminator'):
        assert set(load_networks(tmp_path / 'network.pkl', strict=False)) == {'G_ema', 'D_patch'}


def test_planes_along_other_axes_are_not_taken_for_eg3ds(tmp_path):
    """A fork that has mended EG3D's third plane computes something else with the same tensors."""
    path = tmp_path / 'network.pkl'
    write_small(path, class_name=STAGE1_CLASS, kwargs=EG3D)
    assert load_networks(path)['G_ema'].config.plane_order == 'eg3d'

    def mend(content, tensors):
        content['G_ema'].renderer.plane_axes = files.EG3D_AXES[[0, 1, 1]]

    write_small(path, mend, class_name=STAGE1_CLASS, kwargs=EG3D)
    with pytest.raises(LegacyError, match='ImportanceRenderer.plane_axes, which are not xy, xz, zx'):
        load_networks(path)


def test_attributes_overrule_the_arguments_that_set_them(tmp_path):
    def change(content, tensors):
        content['G_ema'].plane_act = 'tanh'
        content['G_ema'].rendering_kwargs['depth_resolution'] = 7

    write_small(tmp_path / 'network.pkl', change)
    config = load_networks(tmp_path / 'network.pkl')['G_ema'].config
    assert config.plane_activation == 'tanh' and config.rendering.depth_samples == 7


def test_two_patch_discriminators_are_refused(tmp_path):
    def double(content, tensors):
        content['D_patch'] = content['patch_D']

    write_small(tmp_path / 'network.pkl', double)
    with pytest.raises(LegacyError, match='second patch discriminator'):
        load_networks(tmp_path / 'network.pkl')
