"""Published pickles: a file in their layout opens as the same network, and hostile ones are refused without a trace."""

import io
import json
import math
import pickle
import re
import struct
import sys
import tracemalloc
import types

import numpy as np
import pytest
import torch
from click.testing import CliRunner

from dnnlib.errors import UserError
from tests.goldens.frozen import fill
from tests.tiny import tiny_config, tiny_discriminator_config
from torch_utils.ops.upfirdn2d import setup_filter
from training import legacy, reference_networks
from training.legacy import LegacyError, build_from_reference
from training.networks.discriminator import DualDiscriminator, PatchDiscriminator
from training.networks.generator import Generator
from training.reference_pickle import read_pickle
from training.rendering import cameras
from training.snapshots import SnapshotError, load_networks, save_snapshot

# ---------------------------------------------------------------------------------------------------------------------
# Published arguments, names and files, at sizes for tests

RENDERING = dict(
    image_resolution=128, disparity_space_sampling=False, clamp_mode='softplus', c_gen_conditioning_zero=False, c_scale=1,
    superresolution_module='training.superresolution.SuperresolutionHybrid2X', superresolution_noise_mode='none',
    gpc_reg_prob=0.5, density_reg=0.25, density_reg_p_dist=0.004, reg_type='l1', decoder_lr_mul=1.0, sr_antialias=True,
    depth_resolution=6, depth_resolution_importance=6, ray_start=2.25, ray_end=3.3, box_warp=1, avg_camera_radius=2.7,
    avg_camera_pivot=[0, 0, 0.2])
GENERATOR = dict(
    z_dim=8, c_dim=25, w_dim=16, img_resolution=128, img_channels=3, mapping_kwargs=dict(num_layers=2),
    rendering_kwargs=RENDERING, sr_num_fp16_res=4,
    sr_kwargs=dict(channel_base=32768, channel_max=512, fused_modconv_default='inference_only'),
    channel_base=64, channel_max=8, fused_modconv_default='inference_only', num_fp16_res=0, conv_clamp=None,
    triplane_resolution=8, triplane_channels=12, triplane_act=None, blur_plane=0, aware3d_res=[4, 8], retidx=[-3, -1])
STAGE1 = {key: value for key, value in GENERATOR.items() if key != 'retidx'}
EG3D = {key: value for key, value in STAGE1.items() if key not in ('triplane_resolution', 'triplane_act', 'blur_plane', 'aware3d_res')}
DUAL = dict(c_dim=25, img_resolution=32, img_channels=3, channel_base=128, channel_max=8, num_fp16_res=4, conv_clamp=256,
            disc_c_noise=0, block_kwargs=dict(freeze_layers=0), mapping_kwargs={}, epilogue_kwargs=dict(mbstd_group_size=2))
SINGLE = {key: value for key, value in DUAL.items() if key not in ('disc_c_noise', 'mapping_kwargs')} | dict(c_dim=0, img_resolution=16)
STAGE1_CLASS, STAGE2_CLASS = reference_networks.GENERATORS
DUAL_CLASS, SINGLE_CLASS = reference_networks.DUAL_DISCRIMINATORS[0], reference_networks.SINGLE_DISCRIMINATORS[0]


def changed(kwargs, **changes):
    """Arguments with changes; those of rendering_kwargs go there."""
    rendering = {key: changes.pop(key) for key in list(changes) if key in RENDERING}
    kwargs = kwargs | changes
    return kwargs | {'rendering_kwargs': kwargs['rendering_kwargs'] | rendering} if rendering else kwargs


def network(class_name, kwargs):
    """This project's module for published arguments, with weights."""
    if class_name in reference_networks.GENERATORS:
        return fill(Generator(reference_networks.generator_config(class_name, kwargs)))
    build = DualDiscriminator if class_name == DUAL_CLASS else PatchDiscriminator
    return fill(build(reference_networks.discriminator_config(class_name, kwargs)))


def published_name(name, config):
    """The other direction of reference_networks.own_name, written independently."""
    name = name.replace('.to_rgb.', '.torgb.')
    if isinstance(config, type(tiny_config())):
        last = f'backbone.synthesis.b3d{config.plane_resolution}'
        rules = [(r'mapping\.layers\.(\d+)', r'backbone.mapping.fc\1'), (r'mapping\.', 'backbone.mapping.'),
                 (r'residual\.blocks\.0', f'{last}.block2'), (r'residual\.blocks\.1', f'{last}.block3'),
                 (r'backbone\.stream\.(\d+)', lambda m: f'backbone.synthesis.b3d{4 * 2 ** int(m[1])}.block'),
                 (r'backbone\.blocks\.(\d+)', lambda m: f'backbone.synthesis.b{4 * 2 ** int(m[1])}'),
                 (r'superresolution\.blocks\.', 'superresolution.block'), (r'decoder\.hidden', 'decoder.net.0'),
                 (r'decoder\.output', 'decoder.net.2')]
    else:
        rules = [(r'mapping\.layers\.(\d+)', r'mapping.fc\1'), (r'(conv|fc|out)\.', r'b4.\1.'),
                 (r'from_rgb', f'b{config.resolution}.fromrgb'),
                 (r'blocks\.(\d+)', lambda m: f'b{config.resolution // 2 ** int(m[1])}')]
    for pattern, replacement in rules:
        if re.match(pattern, name):
            return re.sub('^' + pattern, replacement, name)
    return name


def published_state(module):
    """A state dict under the published names, resampling filters and the releases' leading axis of 1 included."""
    state = {published_name(name, module.config): value for name, value in module.state_dict().items()}
    filters = [re.sub(r'noise_const$', 'resample_filter', name) for name in state if name.endswith('noise_const')]
    state |= {name: setup_filter([1, 3, 3, 1]) for name in filters}
    for name in [name for name in state if name.endswith('b4.const')]:
        state[name] = state[name][None]
    return state


class EasyDict(dict):
    """Stands for the releases' dict with attributes."""

    __getattr__ = dict.__getitem__


def _reconstruct_persistent_obj(meta):
    raise AssertionError('the loader called a function of the file')


class PersistentModule(torch.nn.Module):
    """Pickles as the releases' modules do: as a record of class name, source and attributes."""

    class_name, source = 'FullyConnectedLayer', 'raise AssertionError("the source was run")'

    def __reduce__(self):
        state = {key: value for key, value in self.__dict__.items() if key not in ('class_name', 'source')}
        meta = dict(type='class', version=6, module_src=self.source, class_name=self.class_name, state=state)
        return _reconstruct_persistent_obj, (EasyDict(meta),)


class OSGDecoder(torch.nn.Module):
    """A module that the releases pickle by name."""


class ImportanceRenderer(torch.nn.Module):
    """Another, with a tensor that is no weight."""

    def __init__(self):
        super().__init__()
        self.plane_axes = torch.eye(3).expand(3, 3, 3).clone()


STAND_INS = {'dnnlib.util': EasyDict, 'torch_utils.persistence': _reconstruct_persistent_obj, 'training.triplane': OSGDecoder,
             'training.volumetric_rendering': None, 'training.volumetric_rendering.renderer': ImportanceRenderer}


@pytest.fixture
def writing(monkeypatch):
    """Makes the published module names importable, so that pickle agrees to write them; `writing()` ends that."""
    for module, item in STAND_INS.items():
        stand_in = types.ModuleType(module)
        if item is not None:
            setattr(stand_in, item.__name__, item)
            monkeypatch.setattr(item, '__module__', module)
        monkeypatch.setitem(sys.modules, module, stand_in)
    return monkeypatch.undo


def published_module(class_name, kwargs, state):
    """A tree of modules as the releases build it, from dotted names."""
    root = PersistentModule()
    root.class_name = class_name.rpartition('.')[2]
    root._init_args, root._init_kwargs = (), EasyDict(kwargs)
    if 'rendering_kwargs' in kwargs:
        root._init_kwargs['rendering_kwargs'] = root.rendering_kwargs = EasyDict(kwargs['rendering_kwargs'])
        root.neural_rendering_resolution = 32
        root.renderer = ImportanceRenderer()
        root.decoder = OSGDecoder()
        root.decoder.net = torch.nn.Sequential(PersistentModule(), torch.nn.Softplus(), PersistentModule())
    for name, value in state.items():
        *path, last = name.split('.')
        node = root
        for part in path:
            if not hasattr(node, part):
                node.add_module(part, PersistentModule())
            node = getattr(node, part)
        if re.search(r'noise_const|resample_filter|w_avg', last):
            node.register_buffer(last, value)
        else:
            node.register_parameter(last, torch.nn.Parameter(value))
    return root


def published_file(class_name=STAGE2_CLASS, kwargs=GENERATOR):
    """The content of a published pickle, and this project's networks that it should open as."""
    G = network(class_name, kwargs)
    D, D_patch = network(DUAL_CLASS, DUAL), network(SINGLE_CLASS, SINGLE)
    content = {
        'G': None, 'D': published_module(DUAL_CLASS, DUAL, published_state(D)),
        'patch_D': published_module(SINGLE_CLASS, SINGLE, published_state(D_patch)),
        'G_ema': published_module(class_name, kwargs, published_state(G)),
        'training_set_kwargs': EasyDict(path='data.zip', max_size=None, xflip=True), 'augment_pipe': None,
        'arrays': [np.arange(6, dtype=np.float32).reshape(2, 3), np.float64(0.5), torch.Size([2, 3]), torch.device('cuda', 0),
                   torch.float16]}
    return content, {'G_ema': G, 'D': D, 'D_patch': D_patch}


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
def test_a_published_pickle_opens_as_the_same_networks(tmp_path, writing, protocol):
    content, expected = published_file()
    path = write(tmp_path / 'network.pkl', content, protocol)
    writing()
    networks = load_networks(path)
    assert networks.keys() == expected.keys()
    for name, module in expected.items():
        assert_same(networks[name], module)
    G, original = networks['G_ema'], expected['G_ema']
    assert G.config == original.config.replace(render_resolution=32)  # the releases keep it as an attribute
    z, c = torch.randn(2, 8), cameras.make_label(cameras.look_at_pose([1.4, 1.7], 1.5, (0, 0, 0), 2.7), cameras.pinhole(4.2))
    ws = G.mapping(z, c)
    assert torch.equal(G.planes(ws, noise_mode='const').residual, original.planes(ws, noise_mode='const').residual)
    assert not any(parameter.requires_grad for parameter in G.parameters()) and not G.training
    assert [path.name for path in tmp_path.iterdir()] == ['network.pkl']


@pytest.mark.parametrize('class_name, kwargs', [(STAGE1_CLASS, STAGE1), (STAGE1_CLASS, changed(STAGE1, aware3d_res=[]))])
def test_generators_of_stage_1_open(tmp_path, writing, class_name, kwargs):
    content, expected = published_file(class_name, kwargs)
    path = write(tmp_path / 'network.pkl', content)
    writing()
    G = load_networks(path)['G_ema']
    assert_same(G, expected['G_ema'])
    assert G.config.residual is False and G.config.plane_order == 'mimic3d'


def test_the_other_contents_are_plain(tmp_path, writing):
    content, _ = published_file()
    path = write(tmp_path / 'network.pkl', content)
    writing()
    read = read_pickle(path)
    array, *rest = read['arrays']
    assert array.values.tolist() == [[0, 1, 2], [3, 4, 5]] and rest == [0.5, (2, 3), 'cuda:0', 'float16']
    assert read['training_set_kwargs'] == {'path': 'data.zip', 'max_size': None, 'xflip': True}


def test_tensors_of_every_kind_open(tmp_path):
    whole = torch.arange(24.0).reshape(4, 6)
    tensors = {'whole': whole, 'part': whole[1:3, ::2], 'turned': whole.t(), 'half': whole.half(), 'bf16': whole.bfloat16(),
               'long': whole.long(), 'flags': whole > 3, 'number': torch.tensor(2.5), 'none': torch.zeros(0, 3),
               'double': whole.double(), 'bytes': whole.byte()}
    read = read_pickle(write(tmp_path / 'tensors.pkl', tensors))
    for name, value in tensors.items():
        assert torch.equal(read[name], value) and read[name].dtype == value.dtype, name


@pytest.mark.parametrize('protocol', [2, 4, 5])
def test_arrays_of_every_kind_open(tmp_path, protocol):
    whole = np.arange(24).reshape(4, 6)
    arrays = {'f8': whole.astype('f8'), 'big': whole.astype('>f4'), 'fortran': np.asfortranarray(whole.astype('i4')),
              'flags': whole > 3, 'number': np.array(2.5), 'part': whole[1:3, ::2].astype('u1')}
    read = read_pickle(write(tmp_path / 'arrays.pkl', arrays, protocol))
    for name, value in arrays.items():
        own = read[name].values if hasattr(read[name], 'values') else read[name]
        assert np.array_equal(own, value), name


def test_source_of_the_file_is_not_run(tmp_path, writing, monkeypatch):
    content, expected = published_file()
    content['G_ema'].source = f'import pathlib\npathlib.Path({str(tmp_path / "trace")!r}).write_text("run")\n'
    path = write(tmp_path / 'network.pkl', content)
    writing()
    assert_same(load_networks(path)['G_ema'], expected['G_ema'])
    assert [path.name for path in tmp_path.iterdir()] == ['network.pkl']


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


def storage_bytes(record=("(" + "X\x07\0\0\0storage" + "ctorch\nFloatStorage\n" + "X\x01\0\0\0" + "0X\x03\0\0\0cpu").encode(),
                  numel=4, data=bytes(16), magic=0x1950A86A20F9469CFC6C, first=None):
    """A storage in torch's old format."""
    parts = [pickle.dumps(item, protocol=2) for item in (magic, 1001, {'little_endian': True})] if first is None else [first]
    parts += [b'\x80\x02' + record + value(numel) + b'NtQ.', pickle.dumps(['0'], protocol=2), struct.pack('<q', numel), data]
    return b''.join(parts)


def storage(**options):
    return call('torch.storage', '_load_from_bytes', b'B' + struct.pack('<I', len(storage_bytes(**options))) + storage_bytes(**options))


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


TRACE = 'open("trace", "w").close()'
ZIPPED = io.BytesIO()
torch.save(torch.zeros(4), ZIPPED)
HOSTILE = {  # what it tries: (the file, what the message names)
    'os.system': (entry(call('os', 'system', text('touch trace'))), 'os.system'),
    'posix.system': (entry(call('posix', 'system', text('touch trace'))), 'posix.system'),
    'os.system, unused': (entry(name('os', 'system')), 'os.system'),
    'eval': (entry(call('builtins', 'eval', text('__import__("pathlib").Path("trace").touch()'))), 'builtins.eval'),
    'exec': (entry(call('builtins', 'exec', text(TRACE))), 'builtins.exec'),
    'exec of Python 2': (entry(b'c__builtin__\nexec\n(' + text(TRACE) + b'tR'), '__builtin__.exec'),
    'subprocess': (entry(call('subprocess', 'check_output', value(['touch', 'trace']))), 'subprocess.check_output'),
    'subprocess class': (entry(name('subprocess', 'Popen') + b'(' + value(['touch', 'trace']) + b't\x81'), 'subprocess.Popen'),
    'import by getattr': (entry(call('builtins', 'getattr', name('builtins', '__import__'), text('__call__'))), 'builtins.getattr'),
    '__import__': (entry(call('builtins', '__import__', text('this'))), 'builtins.__import__'),
    'getattr': (entry(call('builtins', 'getattr', value({}), text('__class__'))), 'builtins.getattr'),
    'pickle in a pickle': (entry(call('pickle', 'loads', value(entry(call('os', 'system', text('touch trace')))))), 'pickle.loads'),
    'marshal': (entry(call('marshal', 'loads', value(b'x'))), 'marshal.loads'),
    'lambda': (entry(name('__main__', '<lambda>')), '__main__.<lambda>'),
    'attribute of a known module': (entry(call('torch', 'os.system', text('touch trace'))), 'torch.os.system'),
    'attribute of a known name': (
        entry(call('collections', 'OrderedDict.__class__', text('touch trace'))), 'collections.OrderedDict.__class__'),
    'attribute of a network class': (entry(call('training.triplane', 'os.system', text('touch trace'))), 'training.triplane.os.system'),
    'known class by a dotted name': (entry(name('training', 'triplane.OSGDecoder') + b')\x81}b'), 'training.triplane.OSGDecoder'),
    'unknown class': (entry(b'c__main__\nGenerator\n)\x81}b'), '__main__.Generator'),
    'unknown torch function': (entry(call('torch', 'load', text('trace'))), 'torch.load'),
    'unknown torch class': (entry(b'ctorch.utils.data.dataset\nDataset\n)\x81}b'), 'torch.utils.data.dataset.Dataset'),
    'call of a network class': (entry(call('torch.nn.modules.container', 'Sequential', text('x'))), 'Sequential'),
    'import of a module': (entry(name('this', 's')), 'this.s'),
    'functools.partial': (entry(call('functools', 'partial', name('os', 'system'))), 'functools.partial'),
    'codecs': (entry(call('_codecs', 'decode', value(b'00'), text('hex'))), '_codecs.decode'),
    'encode with another codec': (entry(call('_codecs', 'encode', text('x'), text('zip'))), 'damaged'),
    'instance': (entry(b'(' + text('touch trace') + b'ios\nsystem\n'), 'INST'),
    'object': (entry(b'(' + name('collections', 'OrderedDict') + b'o'), 'OBJ'),
    'extension': (entry(b'\x82\x01'), 'EXT1'),
    'persistent id': (entry(text('x') + b'Q'), 'BINPERSID'),
    'state of a class': (entry(name('collections', 'OrderedDict') + value({'__reduce__': 1}) + b'b'), 'state of a Global'),
    'state of a record': (entry(persistent() + value({'class_name': 'x'}) + b'b'), 'state of a PassiveObject'),
    'keys that hash for ever': (entry(b'}' + b')' + b''.join(b'q\x01h\x01\x86' for _ in range(90)) + b'Ns'), 'key of type tuple'),
    'source of an unknown class': (entry(persistent('Evil', source=TRACE)), 'Evil'),
    'record of another type': (entry(persistent(kind='function')), 'no class'),
    'record without state': (
        entry(call('torch_utils.persistence', '_reconstruct_persistent_obj', value({'type': 'class', 'class_name': 'G'}))), 'state'),
    'object array': (entry(call('numpy', 'dtype', text('O8'), value(False), value(True))), 'numpy dtype O8'),
    'array of another class': (
        entry(call('numpy.core.multiarray', '_reconstruct', name('collections', 'OrderedDict'), value((0,)), value(b'b'))),
        'class of a numpy array'),
    'huge array': (
        entry(call('numpy.core.numeric', '_frombuffer', value(b'1234'), call('numpy', 'dtype', text('f4')), value((2**50,)), text('C'))),
        'from 4 bytes'),
    'huge bytes': (b'\x80\x04}' + text('G_ema') + b'\x8e' + struct.pack('<Q', 2**40) + b'x', 'damaged'),
    'huge bytes, 32 bits': (b'\x80\x04}' + text('G_ema') + b'B' + struct.pack('<I', 2**32 - 1) + b'x', 'damaged'),
    'huge bytearray': (b'\x80\x05}' + text('G_ema') + b'\x96' + struct.pack('<Q', 2**40) + b'x', 'damaged'),
    'huge frame': (b'\x80\x04\x95' + struct.pack('<Q', 2**60) + b'}', 'damaged'),
    'huge storage': (entry(storage(numel=2**50)), 'from 16 bytes'),
    'tensor beyond its storage': (entry(tensor((5,), (1,))), 'does not hold'),
    'tensor before its storage': (entry(tensor((2,), (1,), offset=-2)), 'offset of a tensor'),
    'tensor with negative stride': (entry(tensor((2,), (-1,), offset=2)), 'shape of a tensor'),
    'tensor that repeats': (entry(tensor((2**40,), (0,))), 'does not hold'),
    'storage with code': (entry(storage(first=b'\x80\x02cos\nsystem\n(' + text('touch trace') + b'tR.')), 'os.system'),
    'storage in a storage': (entry(storage(first=b'\x80\x04' + storage() + b'.')), 'torch.storage._load_from_bytes'),
    'storage in a zip': (
        entry(call('torch.storage', '_load_from_bytes', b'B' + struct.pack('<I', len(ZIPPED.getvalue())) + ZIPPED.getvalue())), 'damaged'),
    'unknown storage': (entry(storage(record=b'(' + text('storage') + b'cos\nsystem\n' + text('0') + text('cpu'))), 'os.system'),
    'modules that double': (entry(persistent(state=b'}' + text('_init_kwargs') + b'}s' + text('_modules') + b'}' + text('a')
                                             + doubling_modules(30) + b'ss')), 'do not end'),
    'arguments that double': (
        entry(in_arguments(b'}' + text('rendering_kwargs') + b'}s' + text('z_dim') + doubling_list(30) + b's')), 'z_dim'),
    'arguments without end': (entry(in_arguments(b'}' + text('z_dim') + doubling_list(60) + b's')), 'do not end'),
    'a shape that doubles': (
        entry(tensor((), ())[:-len(value(()) + value(False) + value({}) + b'tR')] + doubling_list(60) + b'NNtR'), 'shape of a tensor'),
    'huge argument': (entry(in_arguments(value(changed(GENERATOR, mapping_kwargs={'num_layers': 2**60})))), 'num_layers'),
    'huge network': (
        entry(in_arguments(value(changed(GENERATOR, w_dim=65536, channel_base=65536, channel_max=65536)))), 'weights do not fit'),
    'something behind the end': (entry(persistent()) + b'\x80\x04N.', 'follows its end'),
    'no end': (entry(value(1))[:-1], 'damaged'),
    'empty stack': (b'\x80\x04.', 'damaged'),
    'memo that is not there': (entry(b'h\x07'), 'damaged'),
    'a mark in a place of a value': (entry(b'('), 'damaged'),
    'unknown instruction': (entry(b'\xff'), 'damaged'),
    'a name over several lines': (entry(name('os\nError: all is well', 'system')), 'os.nError'),
    'many copies of one text': (entry(b'](' + text('x' * 2**16) + b'q\x020' + b''.join(
        call('_codecs', 'encode', b'h\x02', text('latin1')) for _ in range(3000)) + b'e'), 'many copies'),
    'no networks': (b'\x80\x04}.', 'no networks'),
    'a list': (b'\x80\x04].', 'no dict'),
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


def test_truncated_files_are_refused(tmp_path, writing):
    content, _ = published_file()
    whole = pickle.dumps(content, protocol=4)
    writing()
    path = tmp_path / 'network.pkl'
    for share in np.linspace(0.0, 1.0, 23)[1:-1].tolist() + [1 - 1 / len(whole)]:
        path.write_bytes(whole[:math.floor(share * len(whole))])
        with pytest.raises(LegacyError, match='network.pkl'):
            load_networks(path)


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


@pytest.mark.parametrize('class_name, kwargs', [
    (STAGE2_CLASS, GENERATOR), (STAGE1_CLASS, STAGE1), (DUAL_CLASS, DUAL), (SINGLE_CLASS, SINGLE),
    (STAGE2_CLASS, changed(GENERATOR, ray_start='auto', ray_end='auto', box_warp=1.3) | {'triplane_act': 'tanh'}),
    (STAGE1_CLASS, changed(STAGE1, superresolution_noise_mode='random', c_gen_conditioning_zero=True) | {'aware3d_res': None}),
    (STAGE1_CLASS, changed(EG3D, c_scale=0.5) | {'channel_base': 512}),
])
def test_published_arguments_build_the_same_network(class_name, kwargs):
    module = network(class_name, kwargs)
    assert_same(build_from_reference(class_name, kwargs, published_state(module)), module)


@pytest.mark.parametrize('resolution, suffix, size, channels', [
    (128, '2X', 64, (128, 64)), (256, '4X', 128, (128, 64)), (512, '8XDC', 128, (256, 128))])
def test_every_published_resolution_is_known(resolution, suffix, size, channels):
    module = f'training.superresolution.SuperresolutionHybrid{suffix}'
    kwargs = changed(GENERATOR, image_resolution=resolution, superresolution_module=module)
    config = reference_networks.generator_config(STAGE2_CLASS, kwargs | {'img_resolution': resolution})
    assert (config.image_resolution, config.sr_input_resolution, config.sr_channels) == (resolution, size, channels)


def test_what_arguments_mean():
    config = reference_networks.generator_config(STAGE2_CLASS, GENERATOR)
    assert (config.precision, config.conv_clamp, config.plane_order, config.residual) == ('fp16', 256.0, 'mimic3d', True)
    assert config.rendering.focal == cameras.FFHQ_FOCAL
    plain = reference_networks.generator_config(STAGE1_CLASS, EG3D | {'sr_num_fp16_res': 0, 'channel_base': 512})
    assert (plain.precision, plain.conv_clamp, plain.plane_order, plain.plane_resolution) == ('fp32', None, 'eg3d', 256)
    rendering = RENDERING | {'avg_camera_radius': 1.7, 'avg_camera_pivot': [0, 0, 0], 'white_back': True}
    cars = reference_networks.generator_config(STAGE2_CLASS, GENERATOR | {'rendering_kwargs': rendering}).rendering
    assert (cars.focal, cars.white_background, cars.camera_pivot) == (cameras.SHAPENET_FOCAL, True, (0, 0, 0))
    defaults = reference_networks.discriminator_config(DUAL_CLASS, dict(c_dim=25, img_resolution=64, img_channels=3))
    assert (defaults.conv_clamp, defaults.low_precision_resolutions, defaults.minibatch_group, defaults.mapping_layers) == (256, 4, 4, 8)
    assert reference_networks.discriminator_config(DUAL_CLASS, DUAL | {'conv_clamp': None}).conv_clamp is None


@pytest.mark.parametrize('change', [
    dict(disparity_space_sampling=True), dict(clamp_mode='relu'), dict(aware3d_res=[8]), dict(aware3d_res=[4, 8, 16]),
    dict(blur_plane=1), dict(roll_out='a'), dict(add_block=1), dict(depth_guided_sample=True), dict(retidx=[-1]), dict(img_channels=4),
    dict(num_fp16_res=4), dict(conv_clamp=256), dict(triplane_act='relu'), dict(mapping_kwargs={'lr_multiplier': 1}),
    dict(mapping_kwargs={'depth': 2}), dict(sr_kwargs={'surprise': 1}), dict(surprise=1), dict(ray_start='near'),
    dict(superresolution_module='training.superresolution.SuperresolutionHybrid8X'), dict(superresolution_noise_mode='loud'),
    dict(image_resolution=256), dict(avg_camera_pivot=[0, 0]), dict(z_dim='8'), dict(triplane_channels=32), dict(w_dim=-1),
    dict(c_gen_conditioning_zero='no'), dict(channel_max=0), dict(triplane_resolution=12, aware3d_res=None, retidx=[-3, -1])])
def test_arguments_without_a_counterpart_are_named(change):
    argument = next(iter(change))
    named = {'mapping_kwargs': '|'.join(change.get('mapping_kwargs', {})), 'sr_kwargs': 'surprise',
             'triplane_resolution': 'do not fit together', 'channel_max': 'do not fit together'}.get(argument, argument)
    with pytest.raises(LegacyError, match=named):
        build_from_reference(STAGE2_CLASS, changed(GENERATOR, **change), {})


def test_unknown_rendering_arguments_are_named():
    with pytest.raises(LegacyError, match='rendering_kwargs.surprise is unknown'):
        build_from_reference(STAGE2_CLASS, GENERATOR | {'rendering_kwargs': RENDERING | {'surprise': 1}}, {})
    with pytest.raises(LegacyError, match='rendering_kwargs.box_warp is missing'):
        build_from_reference(STAGE2_CLASS, GENERATOR | {'rendering_kwargs': {k: v for k, v in RENDERING.items() if k != 'box_warp'}}, {})


@pytest.mark.parametrize('class_name, change', [
    (DUAL_CLASS, dict(disc_c_noise=0.1)), (DUAL_CLASS, dict(architecture='skip')), (DUAL_CLASS, dict(cmap_dim=8)),
    (DUAL_CLASS, dict(c_dim=0)), (SINGLE_CLASS, dict(c_dim=25)), (DUAL_CLASS, dict(img_channels=6)), (DUAL_CLASS, dict(surprise=1)),
    (DUAL_CLASS, dict(block_kwargs={'activation': 'relu'})), (DUAL_CLASS, dict(epilogue_kwargs={'mbstd_num_channels': 2}))])
def test_arguments_of_discriminators_without_a_counterpart_are_named(class_name, change):
    argument = next(iter(change))
    with pytest.raises(LegacyError, match=argument):
        build_from_reference(class_name, (DUAL if class_name == DUAL_CLASS else SINGLE) | change, {})


def test_every_tensor_is_accounted_for():
    state = published_state(network(STAGE2_CLASS, GENERATOR))

    def build(**changes):
        merged = state | changes
        return build_from_reference(STAGE2_CLASS, GENERATOR, {name: value for name, value in merged.items() if value is not None})

    build()
    with pytest.raises(LegacyError, match='missing decoder.hidden.bias, unknown none'):
        build(**{'decoder.net.0.bias': None})
    with pytest.raises(LegacyError, match='unknown encoder.weight'):
        build(**{'encoder.weight': torch.zeros(1)})
    with pytest.raises(LegacyError, match=r'unknown backbone.synthesis.b3d8.block4.conv0.bias'):
        build(**{'backbone.synthesis.b3d8.block4.conv0.bias': torch.zeros(4)})
    for second in ('backbone.synthesis.b5.conv1.bias', 'backbone.synthesis.b4.to_rgb.bias'):  # two names for one of ours
        with pytest.raises(LegacyError, match=f'unknown {second}'):
            build(**{second: torch.zeros(8)})
    with pytest.raises(LegacyError, match='unknown decoder.hidden.bias'):  # our own names are not published names
        build(**{'decoder.hidden.bias': torch.zeros(64)})
    with pytest.raises(LegacyError, match=r'decoder.net.0.bias has shape \[3\], expected \[64\]'):
        build(**{'decoder.net.0.bias': torch.zeros(3)})
    with pytest.raises(LegacyError, match=r'superresolution.block0.conv0.resample_filter is not the filter'):
        build(**{'superresolution.block0.conv0.resample_filter': torch.ones(4, 4)})
    with pytest.raises(LegacyError, match='training.networks.Evil is not a published class'):
        build_from_reference('training.networks.Evil', {}, {})


def test_arrays_serve_as_weights():
    module = network(SINGLE_CLASS, SINGLE)
    state = {name: value.numpy() for name, value in published_state(module).items()}
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
    assert not [item for item in torch.serialization.get_safe_globals() if str(getattr(item, '__module__', '')).startswith('training')]
    content = torch.load(tmp_path / 'own.pkl', weights_only=True)
    assert plain_types(content) <= {dict, list, tuple, str, int, float, bool, type(None), torch.Tensor}
    for name, module in load_networks(tmp_path / 'own.pkl').items():
        assert_same(module, networks[name])
        assert module.config == networks[name].config


def run(*arguments):
    result = CliRunner().invoke(legacy.main, [str(argument) for argument in arguments])
    assert result.exception is None or isinstance(result.exception, SystemExit), result.exception
    return result.exit_code, result.output


def test_convert_and_info(tmp_path, writing):
    content, expected = published_file()
    source, target = write(tmp_path / 'network.pkl', content), tmp_path / 'converted.pkl'
    writing()
    code, output = run('convert', source, target)
    assert code == 0 and 'G_ema' in output
    networks = load_networks(target)
    for name, module in expected.items():
        assert_same(networks[name], module)
    torch.load(target, weights_only=True)
    for path in (source, target):
        code, output = run('info', path)
        assert code == 0 and re.search(r'G_ema: Generator, \d\.\d\d M parameters', output) and '"plane_order": "mimic3d"' in output


def test_safetensors(tmp_path):
    safetensors = pytest.importorskip('safetensors')
    networks = own_networks()
    save_snapshot(tmp_path / 'own.pkl', networks, {})
    assert run('convert', tmp_path / 'own.pkl', tmp_path / 'out.pkl', '--safetensors', tmp_path / 'out.safetensors')[0] == 0
    with safetensors.safe_open(tmp_path / 'out.safetensors', 'pt') as file:
        state = networks['G_ema'].state_dict()
        assert {key for key in file.keys() if key.startswith('G_ema.')} == {f'G_ema.{name}' for name in state}
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
