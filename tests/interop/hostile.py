"""Pickles that try what no snapshot should: how each is written, and what the refusal names."""

import io
import math
import pickle
import struct

import torch

from tests.interop.small_files import GENERATOR, changed


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
