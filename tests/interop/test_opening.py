"""Published pickles open as the same networks."""

import pathlib
import pickle

import numpy as np
import pytest
import torch

from interop.pickles import Made, Name, Tensors, plain, read_pickle
from tests import published as files
from tests.interop.small_files import GENERATOR, STAGE1, changed, generator_config, write_small
from tests.published import STAGE1_CLASS, STAGE2_CLASS
from training.rendering import cameras
from training.snapshots import load_networks

# ---------------------------------------------------------------------------------------------------------------------
# Published arguments and files at sizes for tests


def write(path, content, protocol=4):
    path.write_bytes(pickle.dumps(content, protocol=protocol))
    return path


# ---------------------------------------------------------------------------------------------------------------------
# Files that open


@pytest.mark.parametrize('protocol', [2, 3, 4, 5])
def test_a_published_pickle_opens_as_the_same_networks(tmp_path, protocol):
    def render_at_32(content, tensors):
        content['G_ema'].neural_rendering_resolution = 32  # the releases keep it as an attribute

    path = tmp_path / 'network.pkl'
    tensors = write_small(path, render_at_32, protocol)
    networks = load_networks(path)
    files.assert_holds(networks, tensors)
    G = networks['G_ema']
    assert G.config == generator_config(STAGE2_CLASS, GENERATOR).replace(render_resolution=32)
    z, c = torch.randn(2, 8), cameras.make_label(cameras.look_at_pose([1.4, 1.7], 1.5, (0, 0, 0), 2.7), cameras.pinhole(4.2))
    assert G.mapping(z, c).shape == (2, G.backbone.num_ws, 16)
    assert not any(parameter.requires_grad for parameter in G.parameters()) and not G.training
    assert [path.name for path in tmp_path.iterdir()] == ['network.pkl']


@pytest.mark.parametrize('class_name, kwargs', [(STAGE1_CLASS, STAGE1), (STAGE1_CLASS, changed(STAGE1, aware3d_res=[]))])
def test_generators_of_stage_1_open(tmp_path, class_name, kwargs):
    tensors = write_small(tmp_path / 'network.pkl', class_name=class_name, kwargs=kwargs)
    networks = load_networks(tmp_path / 'network.pkl')
    files.assert_holds(networks, tensors)
    assert networks['G_ema'].config.branch_3d == 'none' and networks['G_ema'].config.plane_order == 'mimic3d'


def test_the_other_contents_do_not_matter(tmp_path):
    other = dict(
        arrays=[np.arange(6, dtype=np.float32), np.float64(0.5), torch.Size([2, 3]), torch.device('cuda', 0), torch.float16],
        folder=pathlib.Path('a/b'),
        names={'a', 'b'},
        frozen=frozenset('c'),
        sparse=torch.zeros(2, 2).expand(2, 2, 2),
    )
    for protocol in (2, 4):
        tensors = write_small(tmp_path / 'network.pkl', protocol=protocol, **other)
        files.assert_holds(load_networks(tmp_path / 'network.pkl'), tensors)


def test_other_contents_are_plain_data_or_records(tmp_path):
    read = read_pickle(
        write(
            tmp_path / 'file.pkl',
            {'a': [1, 2.5, None, True, 2**80, b'x'], 'b': {'c', 'd'}, 'e': ('f', ()), 'g': torch.float16, 'h': np.float64(0.5)},
        )
    )
    assert read['a'] == [1, 2.5, None, True, 2**80, b'x'] and read['b'] == {'c', 'd'} and read['e'] == ('f', ())
    assert (
        read['g'] == Name('torch.float16') and isinstance(read['h'], Made) and plain(read) == {**read, 'e': ['f', []], 'h': 0.5}
    )


def test_tensors_of_every_kind_open(tmp_path):
    whole = torch.arange(24.0).reshape(4, 6)
    tensors = {
        'whole': whole,
        'part': whole[1:3, ::2],
        'turned': whole.t(),
        'half': whole.half(),
        'bf16': whole.bfloat16(),
        'long': whole.long(),
        'flags': whole > 3,
        'number': torch.tensor(2.5),
        'none': torch.zeros(0, 3),
        'double': whole.double(),
        'bytes': whole.byte(),
        'repeated': torch.ones(3, 1).expand(3, 5),
        'gradient': whole.clone().requires_grad_(),
        'parameter': torch.nn.Parameter(whole),
        'array': whole.numpy(),
    }
    for protocol in (2, 4, 5):
        read = Tensors(read_pickle(write(tmp_path / 'tensors.pkl', tensors, protocol)))
        assert len(read) == len(tensors)
        for name, value in read.items():
            assert torch.equal(value, torch.as_tensor(tensors[name])) and value.dtype == torch.as_tensor(tensors[name]).dtype, (
                name
            )


@pytest.mark.parametrize('protocol', [2, 4, 5])
def test_arrays_of_every_kind_open(tmp_path, protocol):
    whole = np.arange(24).reshape(4, 6)
    arrays = {
        'f8': whole.astype('f8'),
        'big': whole.astype('>f4'),
        'fortran': np.asfortranarray(whole.astype('i4')),
        'flags': whole > 3,
        'number': np.array(2.5),
        'scalar': np.float32(0.5),
        'part': whole[1:3, ::2].astype('u1'),
    }
    read = read_pickle(write(tmp_path / 'arrays.pkl', arrays, protocol))
    for name, value in arrays.items():
        assert torch.equal(
            Tensors(read)[name], torch.from_numpy(np.array(value).astype(np.array(value).dtype.newbyteorder('=')))
        ), name
        assert plain(read[name]) == value.tolist()


def test_names_of_numpy_1_and_2_open(tmp_path):
    path = write(tmp_path / 'arrays.pkl', {'x': np.float64(0.5), 'y': np.arange(3.0)}, 2)
    content = path.read_bytes()
    own, other = (b'numpy._core', b'numpy.core') if b'numpy._core' in content else (b'numpy.core', b'numpy._core')
    path.write_bytes(content.replace(own, other))
    assert other in path.read_bytes() and plain(read_pickle(path)) == {'x': 0.5, 'y': [0, 1, 2]}


def test_source_of_the_file_is_not_run(tmp_path):
    def hostile(content, tensors):
        content['G_ema'].source = f'import pathlib\npathlib.Path({str(tmp_path / "trace")!r}).write_text("run")\n'

    tensors = write_small(tmp_path / 'network.pkl', hostile)
    assert b'"run"' in (tmp_path / 'network.pkl').read_bytes()
    files.assert_holds(load_networks(tmp_path / 'network.pkl'), tensors)
    assert [path.name for path in tmp_path.iterdir()] == ['network.pkl']


@pytest.mark.parametrize('dtype', [torch.float16, torch.bfloat16, torch.float64])
def test_weights_of_other_types_become_float32(tmp_path, dtype):
    def cast(content, tensors):
        for key in tensors:
            content[key].to(dtype)

    tensors = write_small(tmp_path / 'network.pkl', cast)
    networks = load_networks(tmp_path / 'network.pkl')
    files.assert_holds(networks, tensors)
    assert {value.dtype for value in networks['G_ema'].state_dict().values()} == {torch.float32}


def test_weights_may_be_views_and_ask_for_gradients(tmp_path):
    def as_views(content, tensors):
        for module in content['D'].modules():
            for name, parameter in module._parameters.items():
                if parameter is not None and parameter.ndim >= 2:
                    turned = parameter.detach().transpose(0, 1).contiguous().transpose(0, 1)
                    module._parameters[name] = torch.nn.Parameter(turned, requires_grad=True)
        content['D'].b4.conv._parameters['bias'] = torch.nn.Parameter(torch.cat([tensors['D']['b4.conv.bias']] * 3)[8:16])

    tensors = write_small(tmp_path / 'network.pkl', as_views)
    networks = load_networks(tmp_path / 'network.pkl')
    files.assert_holds(networks, tensors)
    assert not any(parameter.requires_grad for parameter in networks['D'].parameters())
