"""Published pickles: a file in their layout opens as the same network, and hostile ones are refused without a trace."""

import io
import json
import math
import pathlib
import pickle
import re
import struct
import sys
import tracemalloc

import numpy as np
import pytest
import torch
from click.testing import CliRunner

from dnnlib.errors import UserError
from interop import published
from interop.pickles import Made, Name, Tensors, plain, read_pickle
from tests import published as files
from tests.goldens.frozen import fill
from tests.published import DUAL_CLASS, SINGLE_CLASS, STAGE1_CLASS, STAGE2_CLASS
from tests.tiny import tiny_config, tiny_discriminator_config
from training import legacy
from training.config import FFHQ_FOCAL, SHAPENET_FOCAL
from training.legacy import LegacyError, build_from_reference
from training.networks.discriminator import DualDiscriminator
from training.networks.generator import Generator
from training.rendering import cameras
from training.snapshots import SnapshotError, load_augment_p, load_networks, read_snapshot, save_snapshot

# ---------------------------------------------------------------------------------------------------------------------
# Published arguments and files at sizes for tests

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
    config = published.generator_config(class_name, kwargs, unknown)
    assert unknown == []
    return config


def network(class_name, kwargs):
    """This project's module for published arguments, with weights."""
    return fill(files.network(class_name, kwargs))


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


def write(path, content, protocol=4):
    path.write_bytes(pickle.dumps(content, protocol=protocol))
    return path


def assert_same(module, expected):
    assert type(module) is type(expected)
    own, other = module.state_dict(), expected.state_dict()
    assert own.keys() == other.keys()
    assert all(torch.equal(own[name], other[name]) for name in own)


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
    assert networks['G_ema'].config.residual is False and networks['G_ema'].config.plane_order == 'mimic3d'


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


# ---------------------------------------------------------------------------------------------------------------------
# What is not known


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


# ---------------------------------------------------------------------------------------------------------------------
# Files that are refused


def text(value):
    encoded = value.encode()
    return b'X' + struct.pack('<I', len(encoded)) + encoded


def name(module, attribute):
    """A global as protocol 4 writes it: any text at all."""
    return text(module) + text(attribute) + b'\x93'


def call(module, attribute, *arguments):
    """Calls `module.attribute`; arguments are pickled bytes."""
    return name(module, attribute) + b'(' + b''.join(arguments) + b'tR'


def value(content):
    """Pickled plain data, without frame and end."""
    return pickle.dumps(content, protocol=2)[2:-1]


def entry(hostile, key='G_ema'):
    """A file that holds `hostile` where a network should be."""
    return b'\x80\x04}' + text(key) + hostile + b's.'


def persistent(class_name='DualTriPlaneGenerator', state=b'}', kind='class', source='raise SystemExit'):
    meta = value({'type': kind, 'version': 6, 'module_src': source, 'class_name': class_name})
    return name('torch_utils.persistence', '_reconstruct_persistent_obj') + b'(' + meta + text('state') + state + b'stR'


STORAGE = b'(X\x07\0\0\0storagectorch\nFloatStorage\nX\x01\0\0\x000X\x03\0\0\0cpu'


def storage_bytes(record=STORAGE, numel=4, data=bytes(16), magic=0x1950A86A20F9469CFC6C, first=None):
    """A storage in torch's old format."""
    parts = [pickle.dumps(item, protocol=2) for item in (magic, 1001, {'little_endian': True})] if first is None else [first]
    parts += [b'\x80\x02' + record + value(numel) + b'NtQ.', pickle.dumps(['0'], protocol=2), struct.pack('<q', numel), data]
    return b''.join(parts)


def storage(**options):
    return call(
        'torch.storage', '_load_from_bytes', b'B' + struct.pack('<I', len(storage_bytes(**options))) + storage_bytes(**options)
    )


def tensor(size, stride, offset=0, **options):
    rest = [value(item) for item in (offset, size, stride, False, {})]
    return call('torch._utils', '_rebuild_tensor_v2', storage(**options), *rest)


def doubling_modules(levels):
    """A module whose children hold one module twice, again and again: 2^levels modules in a small file."""
    sequential = b'ctorch.nn.modules.container\nSequential\n)\x81}'
    step = sequential + text('_modules') + b'}' + text('a') + b'h\x01s' + text('b') + b'h\x01ssbq\x010'
    return sequential + b'bq\x010' + step * levels + b'h\x01'


def doubling_list(levels):
    """A list that holds one list twice, again and again."""
    return b']q\x010' + b']h\x01ah\x01aq\x010' * levels + b'h\x01'


def in_arguments(kwargs):
    """A network with constructor arguments, pickled bytes."""
    return persistent(state=b'}' + text('_init_args') + b')s' + text('_init_kwargs') + kwargs + b's')


def in_weights(hostile, name='resample_filter'):
    """A network with a tensor, pickled bytes; a filter is looked at before all others."""
    state = text('_init_kwargs') + value(GENERATOR) + b's' + text('_buffers') + b'}' + text(name) + hostile + b'ss'
    return persistent(state=b'}' + state)


def nested(deep, wide=b''):
    """Modules within modules. deep: bytes of what comes between."""
    return persistent(state=b'}' + text('_init_kwargs') + b'}s' + text('_modules') + deep + b's' + wide)


def binary(data):
    return b'B' + struct.pack('<I', len(data)) + data


def scalar(*parts):
    return in_weights(call('numpy._core.multiarray', 'scalar', *parts))


def dtype(code, state=b''):
    return call('numpy', 'dtype', text(code), value(False), value(True)) + state


TRACE = 'open("trace", "w").close()'
ZIPPED = io.BytesIO()
torch.save(torch.zeros(4), ZIPPED)
TENSOR, ARRAY = ('torch._utils', '_rebuild_tensor_v2'), ('numpy.core.multiarray', '_reconstruct')
HOSTILE = {  # what it tries: (the file, what the message names)
    # Names
    'os.system': (entry(call('os', 'system', text('touch trace'))), 'os.system'),
    'posix.system': (entry(call('posix', 'system', text('touch trace'))), 'posix.system'),
    'os.system, unused': (entry(name('os', 'system')), 'os.system'),
    'os.system, thrown away': (entry(name('os', 'system') + b'0N'), 'os.system'),
    'os.system, then damage': (entry(call('os', 'system', text('touch trace')) + b'bbb'), 'os.system'),
    'several': (entry(b'(' + name('os', 'system') + name('builtins', 'eval') + b't'), 'os.system, builtins.eval'),
    'eval': (entry(call('builtins', 'eval', text('__import__("pathlib").Path("trace").touch()'))), 'builtins.eval'),
    'exec': (entry(call('builtins', 'exec', text(TRACE))), 'builtins.exec'),
    'exec of Python 2': (entry(b'c__builtin__\nexec\n(' + text(TRACE) + b'tR'), '__builtin__.exec'),
    'subprocess': (entry(call('subprocess', 'check_output', value(['touch', 'trace']))), 'subprocess.check_output'),
    'subprocess class': (entry(name('subprocess', 'Popen') + b'(' + value(['touch', 'trace']) + b't\x81'), 'subprocess.Popen'),
    'import by getattr': (
        entry(call('builtins', 'getattr', name('builtins', '__import__'), text('__call__'))),
        'builtins.getattr',
    ),
    '__import__': (entry(call('builtins', '__import__', text('this'))), 'builtins.__import__'),
    'getattr': (entry(call('builtins', 'getattr', value({}), text('__class__'))), 'builtins.getattr'),
    'pickle in a pickle': (
        entry(call('pickle', 'loads', value(entry(call('os', 'system', text('touch trace')))))),
        'pickle.loads',
    ),
    'marshal': (entry(call('marshal', 'loads', value(b'x'))), 'marshal.loads'),
    'lambda': (entry(name('__main__', '<lambda>')), '__main__.<lambda>'),
    'copyreg': (entry(call('copyreg', '_reconstructor', name('os', 'system'))), 'copyreg._reconstructor'),
    'attribute of a known module': (entry(call('torch', 'os.system', text('touch trace'))), 'torch.os.system'),
    'attribute of a known name': (
        entry(call('collections', 'OrderedDict.__class__', text('touch trace'))),
        'collections.OrderedDict.__class__',
    ),
    'attribute of a known function': (
        entry(name('torch._utils', '_rebuild_tensor_v2.__globals__')),
        '_rebuild_tensor_v2.__globals__',
    ),
    'known function by a dotted name': (entry(name('torch', '_utils._rebuild_tensor_v2')), 'torch._utils._rebuild_tensor_v2'),
    'the same in protocol 2': (entry(b'ctorch\n_utils._rebuild_tensor_v2\n'), 'torch._utils._rebuild_tensor_v2'),
    'attribute of a network class': (
        entry(call('training.triplane', 'os.system', text('touch trace'))),
        'training.triplane.os.system',
    ),
    'known class by a dotted name': (entry(name('training', 'triplane.OSGDecoder') + b')\x81}b'), 'training.triplane.OSGDecoder'),
    'a name behind a line': (entry(name('torch\n', 'float16')), r'torch.n.float16'),
    'a name that begins as a known one': (entry(name('collections', 'OrderedDictionary')), 'collections.OrderedDictionary'),
    'a name that is no text': (entry(b'KAKA\x93'), 'damaged'),
    'unknown class': (entry(b'c__main__\nGenerator\n)\x81}b'), '__main__.Generator'),
    'unknown torch function': (entry(call('torch', 'load', text('trace'))), 'torch.load'),
    'unknown torch class': (entry(b'ctorch.utils.data.dataset\nDataset\n)\x81}b'), 'torch.utils.data.dataset.Dataset'),
    'import of a module': (entry(name('this', 's')), 'this.s'),
    'functools.partial': (entry(call('functools', 'partial', name('os', 'system'))), 'functools.partial'),
    'codecs': (entry(call('_codecs', 'decode', value(b'00'), text('hex'))), '_codecs.decode'),
    'a name over several lines': (entry(name('os\nError: all is well', 'system')), 'os.nError'),
    'many names': (entry(b'(' + b''.join(name('os', f'a{i}') for i in range(3)) + b't'), 'os.a0, os.a1, os.a2'),
    # Instructions
    'instance': (entry(b'(' + text('touch trace') + b'ios\nsystem\n'), 'INST'),
    'object': (entry(b'(' + name('collections', 'OrderedDict') + b'o'), 'OBJ'),
    'object with keywords': (entry(name('collections', 'OrderedDict') + b')}\x92'), 'NEWOBJ_EX'),
    'extension': (entry(b'\x82\x01'), 'EXT1'),
    'extension, 16 bits': (entry(b'\x83\x01\x01'), 'EXT2'),
    'extension, 32 bits': (entry(b'\x84\x01\x01\x01\x01'), 'EXT4'),
    'persistent id': (entry(text('x') + b'Q'), 'BINPERSID'),
    'persistent id of protocol 0': (entry(b'Px\n'), 'PERSID'),
    'buffer out of band': (entry(b'\x97'), 'NEXT_BUFFER'),
    'memo by a text': (entry(b'Np99999999999999999999\n'), 'PUT'),
    'number in digits': (entry(b'I7\n'), 'INT'),
    # Calls, objects and states
    'call of a network class': (entry(call('torch.nn.modules.container', 'Sequential', text('x'))), 'Sequential'),
    'call of a text': (entry(text('os.system') + b')R'), 'damaged'),
    'call of a call': (entry(call('collections', 'OrderedDict') + b')R'), 'damaged'),
    'call without arguments': (entry(name('collections', 'OrderedDict') + b'NR'), 'damaged'),
    'call with a dict': (entry(name('torch', 'Size') + b'}R'), 'damaged'),
    'dict with arguments': (entry(call('collections', 'OrderedDict', value([('a', 1)]))), 'a dict with arguments'),
    'object of a text': (entry(text('os.system') + b')\x81'), 'damaged'),
    'state of a class': (entry(name('collections', 'OrderedDict') + value({'__reduce__': 1}) + b'b'), 'state of Name'),
    'state of a list': (entry(b']' + value({'__class__': 1}) + b'b'), 'state of list'),
    'state of a text': (entry(text('x') + value({'__class__': 1}) + b'b'), 'state of str'),
    'state of a dict': (entry(b'}' + value({'__class__': 1, 'update': 2}) + b'b'), 'no networks'),
    'state of a record': (entry(persistent() + value({'class_name': 'x'}) + b'b'), 'record of a persistent object'),
    'two states': (entry(b'ctorch.nn.modules.container\nSequential\n)\x81}b}b'), 'state of torch.nn'),
    'items of a record': (entry(persistent() + text('a') + b'Ns'), 'items of a dict'),
    'items of a tensor': (entry(in_weights(call(*TENSOR) + b'Na')), 'something else than a list'),
    'items of a name': (entry(name('builtins', 'set') + b'(' + text('a') + b'\x90'), 'items of a set'),
    'keys that hash for ever': (entry(b'}' + b')' + b''.join(b'q\x01h\x01\x86' for _ in range(90)) + b'Ns'), 'key of type tuple'),
    'set that hashes for ever': (entry(b'\x8f()' + b''.join(b'q\x01h\x01\x86' for _ in range(90)) + b'\x90'), 'items of a set'),
    'frozen set that hashes for ever': (
        entry(b'()' + b''.join(b'q\x01h\x01\x86' for _ in range(90)) + b'\x91'),
        'items of a set',
    ),
    'keys that all collide': (entry(value({(2**61 - 1) * i: 0 for i in range(10)})), 'key of type int'),
    'key and value of the wrong number': (entry(b'}(' + text('a') + b'u'), 'items of a dict'),
    'source of an unknown class': (entry(persistent('Evil', source=TRACE)), 'Evil'),
    'record of another type': (entry(persistent(kind='function')), 'no class'),
    'record without state': (
        entry(call('torch_utils.persistence', '_reconstruct_persistent_obj', value({'type': 'class', 'class_name': 'G'}))),
        'state',
    ),
    'record of nothing': (entry(call('torch_utils.persistence', '_reconstruct_persistent_obj')), 'record of a persistent object'),
    'record of two': (
        entry(call('torch_utils.persistence', '_reconstruct_persistent_obj', b'}}')),
        'record of a persistent object',
    ),
    'record of a list': (
        entry(call('torch_utils.persistence', '_reconstruct_persistent_obj', b']')),
        'record of a persistent object',
    ),
    'state that is a list': (entry(persistent(state=b']')), 'state of a persistent object'),
    # Arrays
    'object array': (entry(scalar(dtype('O8'), value(b'12345678'))), 'numpy dtype .O8'),
    'structured array': (entry(scalar(call('numpy', 'dtype', value([('a', 'O')])), binary(b''))), 'numpy dtype'),
    'array of a type that doubles': (entry(scalar(call('numpy', 'dtype', doubling_list(60)), binary(b''))), 'numpy dtype'),
    'array of many axes': (
        entry(in_weights(call('numpy.core.numeric', '_frombuffer', binary(b'1234'), dtype('f4'), value((1,) * 1000), text('C')))),
        'shape of a numpy array',
    ),
    'array of a byte order that is none': (entry(scalar(dtype('f4', value((3, 'x')) + b'b'), value(b'1234'))), 'byte order'),
    'array of another class': (
        entry(
            in_weights(
                call(*ARRAY, name('collections', 'OrderedDict'), value((0,)), value(b'b')) + value((1, (), 0, 0, 0)) + b'b'
            )
        ),
        'class of a numpy array',
    ),
    'array without state': (entry(in_weights(call(*ARRAY, name('numpy', 'ndarray'), value((0,)), value(b'b')))), 'damaged'),
    'array without arguments': (entry(in_weights(call(*ARRAY))), 'damaged'),
    'huge array': (
        entry(in_weights(call('numpy.core.numeric', '_frombuffer', binary(b'1234'), dtype('f4'), value((2**50,)), text('C')))),
        'from 4 bytes',
    ),
    # Sizes that are only claimed
    'huge bytes': (b'\x80\x04}' + text('G_ema') + b'\x8e' + struct.pack('<Q', 2**40) + b'x', 'damaged'),
    'huge bytes, 32 bits': (b'\x80\x04}' + text('G_ema') + b'B' + struct.pack('<I', 2**32 - 1) + b'x', 'damaged'),
    'huge bytearray': (b'\x80\x05}' + text('G_ema') + b'\x96' + struct.pack('<Q', 2**40) + b'x', 'damaged'),
    'huge text': (b'\x80\x04}' + text('G_ema') + b'\x8d' + struct.pack('<Q', 2**40) + b'x', 'damaged'),
    'huge number': (b'\x80\x04}' + text('G_ema') + b'\x8b' + struct.pack('<i', 2**31 - 1) + b'x', 'damaged'),
    'number of negative length': (b'\x80\x04}' + text('G_ema') + b'\x8b' + struct.pack('<i', -1) + b'x', 'damaged'),
    'long number': (
        entry(in_arguments(b'}' + text('z_dim') + b'\x8b' + struct.pack('<i', 10**6) + b'x' * 10**6 + b's')),
        'a number',
    ),
    'huge frame': (b'\x80\x04\x95' + struct.pack('<Q', 2**60) + b'}', 'damaged'),
    'huge memo': (entry(b'Nr\xff\xff\xff\xff'), 'no networks'),
    'huge memo, read': (entry(b'j\xff\xff\xff\xff'), 'damaged'),
    'huge storage': (entry(in_weights(tensor((4,), (1,), numel=2**50))), 'from 16 bytes'),
    # Tensors
    'tensor beyond its storage': (entry(in_weights(tensor((5,), (1,)))), 'does not hold'),
    'tensor before its storage': (entry(in_weights(tensor((2,), (1,), offset=-2))), 'size of a tensor'),
    'tensor with negative stride': (entry(in_weights(tensor((2,), (-1,), offset=2))), 'shape of a tensor'),
    'tensor with a long stride': (entry(in_weights(tensor((2,), (2**70,)))), 'does not hold'),
    'tensor that repeats': (entry(in_weights(tensor((2**40,), (0,)))), 'is not the filter'),
    'tensor that repeats for ever': (entry(in_weights(tensor((2**62, 2**62), (0, 0)))), 'size of a tensor'),
    'empty tensor of huge sides': (entry(in_weights(tensor((0, 2**62, 2**62), (0, 0, 0)))), 'damaged'),
    'tensor of 100 axes': (entry(in_weights(tensor((1,) * 100, (0,) * 100))), 'shape of a tensor'),
    'tensor without arguments': (entry(in_weights(call(*TENSOR))), 'damaged'),
    'tensor of a text': (entry(in_weights(call(*TENSOR, text('x'), value(0), value(()), value(())))), 'storage of a tensor'),
    'parameter of a text': (entry(in_weights(call('torch._utils', '_rebuild_parameter', text('x')))), 'data of a parameter'),
    'parameter of a parameter': (
        entry(in_weights(call('torch._utils', '_rebuild_parameter', call('torch._utils', '_rebuild_parameter', tensor((), ()))))),
        'no tensor',
    ),
    'parameter without arguments': (entry(in_weights(call('torch._utils', '_rebuild_parameter'))), 'damaged'),
    'a text as a tensor': (entry(in_weights(text('x'))), 'no tensor'),
    'storage with code': (
        entry(in_weights(tensor((), (), first=b'\x80\x02cos\nsystem\n(' + text('touch trace') + b'tR.'))),
        'os.system',
    ),
    'storage in a storage': (
        entry(in_weights(tensor((), (), first=b'\x80\x04' + storage() + b'.'))),
        'torch.storage._load_from_bytes',
    ),
    'storage that names a function': (
        entry(in_weights(tensor((), (), first=b'\x80\x04' + name('torch', 'load') + b'.'))),
        'torch.load',
    ),
    'storage in a zip': (
        entry(
            in_weights(
                call(
                    *TENSOR,
                    call('torch.storage', '_load_from_bytes', binary(ZIPPED.getvalue())),
                    value(0),
                    value((4,)),
                    value((1,)),
                )
            )
        ),
        'damaged',
    ),
    'unknown storage': (
        entry(in_weights(tensor((), (), record=b'(' + text('storage') + b'cos\nsystem\n' + text('0') + text('cpu')))),
        'os.system',
    ),
    'storage of another kind': (
        entry(in_weights(tensor((), (), record=b'(' + text('module') + b'ctorch\nFloatStorage\n' + text('0') + text('cpu')))),
        'class of a storage',
    ),
    'storage with another mark': (entry(in_weights(tensor((), (), magic=1))), 'mark of a storage'),
    'storage from a codec': (
        entry(
            in_weights(
                call(
                    *TENSOR,
                    call('torch.storage', '_load_from_bytes', call('_codecs', 'encode', text('x'), text('zip'))),
                    value(0),
                    value(()),
                    value(()),
                )
            )
        ),
        'bytes written as text',
    ),
    # What does not end
    'modules that double': (entry(nested(b'}' + text('a') + doubling_modules(30) + b's')), 'do not end'),
    'modules in a circle': (
        entry(
            nested(b'}q\x09' + text('a') + b'ctorch.nn.modules.container\nSequential\n)\x81}' + text('_modules') + b'h\x09sbs')
        ),
        'do not end',
    ),
    'modules with a long name': (
        entry(nested(b'}' + text('a' * 10**6) + b'ctorch.nn.modules.container\nSequential\n)\x81}bs')),
        'the name aaa',
    ),
    'modules that share a table': (
        entry(
            nested(
                b'}('
                + b''.join(
                    text(f'm{i}')
                    + b'ctorch.nn.modules.container\nSequential\n)\x81}'
                    + text('_parameters')
                    + (b'h\x09' if i else value({f'p{j}': None for j in range(3000)}) + b'q\x09')
                    + b'sb'
                    for i in range(3000)
                )
                + b'u'
            )
        ),
        'do not end',
    ),
    'a module that is none': (entry(nested(b'}' + text('a') + text('b') + b's')), 'a is no module'),
    'arguments that double': (
        entry(in_arguments(b'}' + text('rendering_kwargs') + b'}s' + text('z_dim') + doubling_list(30) + b's')),
        'z_dim',
    ),
    'arguments without end': (entry(in_arguments(b'}' + text('z_dim') + doubling_list(60) + b's')), 'do not end'),
    'arguments in a circle': (entry(in_arguments(b'}q\x09' + text('mapping_kwargs') + b'h\x09s')), 'do not end'),
    'lists in lists': (entry(in_arguments(b'}' + text('z_dim') + b']' * 20_000 + b'a' * 19_999 + b's')), 'do not end'),
    'tuples in tuples': (entry(in_arguments(b'}' + text('z_dim') + b'N' + b'\x85' * 20_000 + b's')), 'do not end'),
    'calls in calls': (entry(b'ctorch\nSize\n' * 20_000 + b')' + b'\x85R' * 20_000), 'no networks'),
    'a shape that doubles': (
        entry(in_weights(call(*TENSOR, storage(), value(0), doubling_list(60), b'NN'))),
        'shape of a tensor',
    ),
    # Networks larger than the file
    'huge argument': (entry(in_arguments(value(changed(GENERATOR, mapping_kwargs={'num_layers': 2**60})))), 'num_layers'),
    'huge network': (
        entry(in_arguments(value(changed(GENERATOR, w_dim=65536, channel_base=65536, channel_max=65536)))),
        'weights do not fit',
    ),
    'infinite argument': (entry(in_arguments(value(changed(GENERATOR, box_warp=math.inf)))), 'box_size must be finite'),
    # Other damage
    'something behind the end': (entry(persistent()) + b'\x80\x04N.', 'follows its end'),
    'no end': (entry(value(1))[:-1], 'damaged'),
    'empty stack': (b'\x80\x04.', 'damaged'),
    'memo that is not there': (entry(b'h\x07'), 'damaged'),
    'a mark in a place of a value': (entry(b'('), 'damaged'),
    'a mark that stays': (b'\x80\x04}(.', 'damaged'),
    'unknown instruction': (entry(b'\xff'), 'damaged'),
    'no networks': (b'\x80\x04}.', 'no networks'),
    'a list': (b'\x80\x04].', 'no dict'),
    'a network named to mislead': (entry(persistent(), key='G\n\x1b[31mError: all is well'), 'x1b'),
}


@pytest.mark.parametrize('case', HOSTILE)
def test_hostile_files_are_refused_without_a_trace(tmp_path, monkeypatch, case):
    content, named = HOSTILE[case]
    monkeypatch.chdir(tmp_path)
    path = tmp_path / 'network.pkl'
    path.write_bytes(content)
    modules = set(sys.modules)
    tracemalloc.start()
    with pytest.raises(LegacyError, match=named) as caught:
        load_networks(path)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert '\n' not in str(caught.value) and str(caught.value).isascii() and len(str(caught.value)) < 600
    assert 'network.pkl' in str(caught.value)
    assert [path.name for path in tmp_path.iterdir()] == ['network.pkl']
    assert not {'this', 'subprocess_trace'} & (set(sys.modules) - modules)
    assert peak < 64 * 2**20


def test_hostile_files_would_run_elsewhere(tmp_path, monkeypatch):
    """The test above means something only if the usual loader would have run them."""
    monkeypatch.chdir(tmp_path)
    for case in ('os.system', 'eval', 'exec', 'subprocess', 'pickle in a pickle'):
        pickle.loads(HOSTILE[case][0])
        (tmp_path / 'trace').unlink()


def test_truncated_files_are_refused(tmp_path):
    path = tmp_path / 'network.pkl'
    write_small(path)
    whole = path.read_bytes()
    for share in np.linspace(0.0, 1.0, 23)[1:-1].tolist() + [1 - 1 / len(whole)]:
        path.write_bytes(whole[: math.floor(share * len(whole))])
        for strict in (True, False):
            with pytest.raises(LegacyError, match='network.pkl'):
                load_networks(path, strict=strict)


def test_lenient_does_not_open_what_is_hostile(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for case in ('os.system', 'several', 'storage with code', 'modules that double', 'tensor beyond its storage', 'huge network'):
        (tmp_path / 'network.pkl').write_bytes(HOSTILE[case][0])
        with pytest.raises(LegacyError, match=HOSTILE[case][1]):
            load_networks('network.pkl', strict=False)
        assert [path.name for path in tmp_path.iterdir()] == ['network.pkl']


def test_one_text_as_many_storages_is_read_once(tmp_path):
    """As protocol 2 writes bytes; each of 3000 copies would take a megabyte."""
    data = storage_bytes(numel=2**18, data=bytes(2**20)).decode('latin1')
    one = call('torch.storage', '_load_from_bytes', call('_codecs', 'encode', b'h\x09', text('latin1')))
    tensors = b''.join(text(f't{i}') + call(*TENSOR, one, value(0), value((3,)), value((1,))) for i in range(3000))
    (tmp_path / 'file.pkl').write_bytes(b'\x80\x04}(' + text('data') + text(data) + b'q\x09' + tensors + b'u.')
    read = read_pickle(tmp_path / 'file.pkl')
    del read['data']
    tracemalloc.start()
    tensors = Tensors(read)
    kept = list(tensors.values())
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert len(kept) == 3000 and len({value.untyped_storage().data_ptr() for value in kept}) == 1 and peak < 16 * 2**20


@pytest.mark.parametrize(
    'p, message', [(torch.tensor(math.nan), 'no probability'), (torch.zeros(2), 'no probability'), ('0.5', 'no tensor')]
)
def test_a_probability_of_adas_that_is_none_is_refused(tmp_path, p, message):
    written = (
        text(p) if isinstance(p, str) else tensor(tuple(p.shape), (1,) * p.ndim, data=p.new_full((4,), p.max()).numpy().tobytes())
    )
    pipe = persistent('AugmentPipe', state=b'}' + text('_buffers') + b'}' + text('p') + written + b'ss')
    (tmp_path / 'network.pkl').write_bytes(entry(pipe, key='augment_pipe'))
    with pytest.raises(LegacyError, match=f'network.pkl: .*{message}'):
        load_augment_p(tmp_path / 'network.pkl')


def test_one_network_under_many_names_is_refused(tmp_path):
    """Else a small file could ask for as many large networks as it has names."""

    for count, message in ((8, 'too small for the networks'), (10_000, 'more than 16 networks')):

        def alias(content, tensors, count=count):
            content.update({f'G{i}': content['G_ema'] for i in range(count)})

        write_small(tmp_path / 'network.pkl', alias)
        with pytest.raises(LegacyError, match=message):
            load_networks(tmp_path / 'network.pkl')


@pytest.mark.parametrize('content', [b'', b'PK\x03\x04', b'hello', b'cos\nsystem\n(S"touch trace"\ntR.'])
def test_other_files_are_refused(tmp_path, monkeypatch, content):
    """The last one is a pickle of protocol 0, which no release writes."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / 'network.pkl').write_bytes(content)
    with pytest.raises(SnapshotError, match='network.pkl'):
        load_networks('network.pkl')
    assert [path.name for path in tmp_path.iterdir()] == ['network.pkl']


def test_a_file_of_torch_before_1_6_is_refused(tmp_path):
    path = tmp_path / 'old.pkl'
    torch.save({'G': torch.zeros(3)}, path, _use_new_zipfile_serialization=False)
    with pytest.raises(LegacyError, match='follows its end'):
        load_networks(path)


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
    assert_same(build_from_reference(class_name, kwargs, files.published_state(module, class_name, kwargs)), module)


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
    assert (config.precision, config.conv_clamp, config.plane_order, config.residual) == ('fp16', 256.0, 'mimic3d', True)
    assert config.rendering.focal == FFHQ_FOCAL
    plain = generator_config(STAGE1_CLASS, EG3D | {'sr_num_fp16_res': 0})
    assert (plain.precision, plain.conv_clamp, plain.plane_order, plain.plane_resolution) == ('fp32', None, 'eg3d', 256)
    rendering = RENDERING | {'avg_camera_radius': 1.7, 'avg_camera_pivot': [0, 0, 0], 'white_back': True}
    cars = generator_config(STAGE2_CLASS, GENERATOR | {'rendering_kwargs': rendering}).rendering
    assert (cars.focal, cars.white_background, cars.camera_pivot) == (SHAPENET_FOCAL, True, (0, 0, 0))
    unknown = []
    defaults = published.discriminator_config(DUAL_CLASS, dict(c_dim=25, img_resolution=64, img_channels=3), unknown)
    assert (defaults.conv_clamp, defaults.low_precision_resolutions, defaults.minibatch_group, defaults.mapping_layers) == (
        256,
        4,
        4,
        8,
    )
    assert published.discriminator_config(DUAL_CLASS, DUAL | {'conv_clamp': None}, unknown).conv_clamp is None and unknown == []


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
    assert_same(build_from_reference(SINGLE_CLASS, SINGLE, state), module)


# ---------------------------------------------------------------------------------------------------------------------
# This project's own files, and the commands


def own_networks():
    return {'G_ema': fill(Generator(tiny_config())), 'D': fill(DualDiscriminator(tiny_discriminator_config()))}


def plain_types(value):
    if isinstance(value, dict):
        return set().union(*(plain_types(item) for pair in value.items() for item in pair)) | {dict}
    if isinstance(value, list | tuple):
        return set().union({type(value)}, *(plain_types(item) for item in value))
    return {type(value)}


def test_snapshots_are_plain_data(tmp_path):
    networks = own_networks()
    save_snapshot(tmp_path / 'own.pkl', networks, {'stage': 1})
    assert not [
        item for item in torch.serialization.get_safe_globals() if str(getattr(item, '__module__', '')).startswith('training')
    ]
    content = torch.load(tmp_path / 'own.pkl', weights_only=True)
    assert plain_types(content) <= {dict, list, tuple, str, int, float, bool, type(None), torch.Tensor}
    for name, module in load_networks(tmp_path / 'own.pkl').items():
        assert_same(module, networks[name])
        assert module.config == networks[name].config


def run(*arguments):
    result = CliRunner().invoke(legacy.main, [str(argument) for argument in arguments])
    assert result.exception is None or isinstance(result.exception, SystemExit), result.exception
    return result.exit_code, result.output


def test_convert_and_info(tmp_path):
    source, target = tmp_path / 'network.pkl', tmp_path / 'converted.pkl'
    tensors = write_small(source)
    code, output = run('convert', source, target)
    assert code == 0 and 'G_ema' in output and 'Warning' not in output
    files.assert_holds(load_networks(target), tensors)
    torch.load(target, weights_only=True)
    for path in (source, target):
        code, output = run('info', path)
        assert (
            code == 0 and re.search(r'G_ema: Generator, \d\.\d\d M parameters', output) and '"plane_order": "mimic3d"' in output
        )


def test_names_of_the_file_are_shown_without_their_escapes(tmp_path):
    def rename(content, tensors):
        add_unknown(content, tensors)
        content['G\x1b[31m\nError'] = content.pop('G_ema')

    write_small(tmp_path / 'network.pkl', rename)
    for command in (('info',), ('convert', '--lenient', tmp_path / 'converted.pkl'), ('info', '--lenient')):
        output = run(command[0], tmp_path / 'network.pkl', *command[1:])[1]
        assert 'G\\x1b' in output and '\x1b' not in output and '\nError' not in output


def test_convert_and_info_leniently(tmp_path):
    source, target = tmp_path / 'network.pkl', tmp_path / 'converted.pkl'
    tensors = write_small(source, add_unknown)
    for command in (('info', source), ('convert', source, target)):
        code, output = run(*command)
        assert code == 1 and output.startswith('Error: ') and len(output.splitlines()) == 1 and 'tensor boost' in output
        assert not target.exists()
        code, output = run(*command, '--lenient')
        assert code == 0 and len(re.findall('^Warning: .*ignored.*tensor boost', output, re.MULTILINE)) == 1
    files.assert_holds(load_networks(target), tensors)
    assert 'tensor boost' in read_snapshot(target)['about']['ignored']


def test_safetensors(tmp_path):
    safetensors = pytest.importorskip('safetensors')
    networks = own_networks()
    save_snapshot(tmp_path / 'own.pkl', networks, {})
    assert run('convert', tmp_path / 'own.pkl', tmp_path / 'out.pkl', '--safetensors', tmp_path / 'out.safetensors')[0] == 0
    with safetensors.safe_open(tmp_path / 'out.safetensors', 'pt') as file:
        state = networks['G_ema'].state_dict()
        stored = {key for key in file.keys() if key.startswith('G_ema.')}  # noqa: SIM118 (an open file is no dictionary)
        assert stored == {f'G_ema.{name}' for name in state}
        assert all(torch.equal(file.get_tensor(f'G_ema.{name}'), value) for name, value in state.items())
        described = json.loads(file.metadata()['G_ema'])
    assert type(networks['G_ema'].config).from_dict(described['config']) == networks['G_ema'].config


def test_safetensors_missing(tmp_path, monkeypatch):
    save_snapshot(tmp_path / 'own.pkl', own_networks(), {})
    monkeypatch.setitem(sys.modules, 'safetensors.torch', None)
    code, output = run('convert', tmp_path / 'own.pkl', tmp_path / 'out.pkl', '--safetensors', tmp_path / 'out.safetensors')
    assert code == 1 and 'pip install safetensors' in output and not (tmp_path / 'out.pkl').exists()


def test_convert_refuses_in_one_line(tmp_path):
    source = tmp_path / 'network.pkl'
    source.write_bytes(HOSTILE['os.system'][0])
    code, output = run('convert', source, tmp_path / 'out.pkl')
    assert code == 1 and output.startswith('Error: ') and 'os.system' in output and len(output.splitlines()) == 1
    assert not (tmp_path / 'out.pkl').exists()
    assert issubclass(LegacyError, UserError)


def test_convert_names_a_target_that_cannot_be_written(tmp_path):
    save_snapshot(tmp_path / 'own.pkl', own_networks(), {})
    (tmp_path / 'file').write_text('')
    for options in ([tmp_path / 'file/x.pkl'], ['/proc/x.pkl'], [tmp_path / 'x.pkl', '--safetensors', '/proc/x.safetensors']):
        code, output = run('convert', tmp_path / 'own.pkl', *options)
        assert code == 1 and output.startswith('Error: ') and len(output.splitlines()) == 1 and 'choose another path' in output
    assert not (tmp_path / 'x.pkl').exists()


def test_convert_makes_the_folder_of_its_target(tmp_path):
    save_snapshot(tmp_path / 'own.pkl', own_networks(), {})
    assert run('convert', tmp_path / 'own.pkl', tmp_path / 'new' / 'x.pkl')[0] == 0
    assert (tmp_path / 'new' / 'x.pkl').is_file()
