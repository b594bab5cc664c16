"""Reads the pickles that the published releases write, as passive data: nothing in a file is imported, called or made.

A pickle is a program for a small stack machine, and the usual machine calls whatever the file names. To this one a name
is text, and a call or an object is a record of what would have been made (`Made`). So reading gives containers, numbers,
text, bytes and records; what a network needs of them is made into numbers and tensors afterwards, from checked sizes.

`pickle.Unpickler` with a closed `find_class` would be shorter and less safe: a memo as large as an index in the file (ten
bytes make it take 4 GiB), dicts with whatever keys (tuples that hash for years), methods called on what lies on its stack.
Its version in Python, `pickle._Unpickler`, has a dict for a memo, but allocates what a BYTEARRAY8 claims, and all that makes,
sets or calls would have to be overridden, which is most of what is here. `torch.load(weights_only=True)` has fixed lists of what
it calls. Only the instructions' form is Python's own: `pickletools.genops` reads it.
"""

import contextlib
import io
import math
import pickletools
import re
import reprlib
from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import torch

from dnnlib.errors import UserError

MAX_OPCODES = 2_000_000  # a published file has some ten thousand
MAX_SIZE = 200_000  # of one network, in names: one whose modules contain one module twice, again and again, comes to an end
MAX_PATH = 500  # characters
MAX_DEPTH = 40  # of arguments within arguments
MAX_AXES = 16  # of a tensor or an array; weights have four at most
MAX_ITEMS = 2**40  # of one tensor: repeated items take no memory, and their number must stay a number that torch can count


class LegacyError(UserError):
    """A published file, weights or constructor arguments that this project cannot or will not open."""


@dataclass(frozen=True)
class Name:
    """A name of the file, with its module; never looked up."""

    dotted: str


@dataclass(eq=False, repr=False)
class Made:
    """What the file would have made: by calling what, with which arguments, and the state that it would have set then."""

    name: str
    arguments: tuple
    state: object = None


def printable(text):
    """One short line of ASCII, whatever the text holds."""
    text = ascii(text[:200])[1:-1]
    return text if len(text) <= 120 else f'{text[:117]}...'


def listed(names, most=8):
    """Names in one line."""
    shown = ', '.join(printable(name) for name in names[:most]) or 'none'
    return shown if len(names) <= most else f'{shown} and {len(names) - most} more'


def require(condition, what):
    """The file must be as a writer of pickles would have made it."""
    if not condition:
        raise LegacyError(f'damaged: {what}')


@contextlib.contextmanager
def _naming_damage():
    """Damaged files fail in many ways."""
    try:
        yield
    except (
        ValueError,
        IndexError,
        KeyError,
        TypeError,
        OverflowError,
        RecursionError,
        AttributeError,
        MemoryError,
        RuntimeError,
    ) as error:
        raise LegacyError(f'damaged ({printable(str(error))})') from None


@contextlib.contextmanager
def saying_where(where):
    """Errors begin with what they are about."""
    try:
        yield
    except LegacyError as error:
        raise LegacyError(f'{where}: {error}') from None


# ---------------------------------------------------------------------------------------------------------------------
# The names that a file may contain. A name decides nothing but how a record is understood, and whether the file is plausible.

_PERSISTENT = 'torch_utils.persistence._reconstruct_persistent_obj'  # how the releases write their own classes
_MODULE = re.compile(r'(torch\.nn\.modules|training)(\.[A-Za-z_]\w*)+', re.ASCII)  # classes that are written by name
_DICT = re.compile(r'collections\.OrderedDict|dnnlib\.(util\.)?EasyDict')
_NAMES = re.compile(
    '|'.join(
        [
            re.escape(_PERSISTENT),
            _MODULE.pattern,
            _DICT.pattern,
            r'torch\._utils\._rebuild_(tensor|tensor_v2|parameter|parameter_with_state)',
            r'torch\.storage\._load_from_bytes',
            r'torch\.(Size|device)',
            r'torch\.(float|bfloat|int|uint)(8|16|32|64)',
            r'torch\.(bool|contiguous_format|channels_last|preserve_format|strided)',
            r'(builtins|__builtin__)\.(set|frozenset|bytes)',
            r'_codecs\.encode',
            r'pathlib(\._local)?\.(Pure)?(Posix|Windows)?Path',
            r'numpy\.(dtype|ndarray)',
            r'numpy\._?core\.(multiarray\.(_reconstruct|scalar)|numeric\._frombuffer)',
        ]
    ),
    re.ASCII,
)
STORAGE_DTYPES = {
    'torch.FloatStorage': torch.float32,
    'torch.DoubleStorage': torch.float64,
    'torch.HalfStorage': torch.float16,
    'torch.BFloat16Storage': torch.bfloat16,
    'torch.LongStorage': torch.int64,
    'torch.IntStorage': torch.int32,
    'torch.ShortStorage': torch.int16,
    'torch.CharStorage': torch.int8,
    'torch.ByteStorage': torch.uint8,
    'torch.BoolStorage': torch.bool,
}
_STORAGE_NAMES = re.compile('|'.join(map(re.escape, STORAGE_DTYPES)))

# ---------------------------------------------------------------------------------------------------------------------
# The machine

_LITERALS = (
    'BININT',
    'BININT1',
    'BININT2',
    'LONG1',
    'LONG4',
    'BINFLOAT',
    'BINUNICODE',
    'SHORT_BINUNICODE',
    'BINUNICODE8',
    'BINBYTES',
    'SHORT_BINBYTES',
    'BINBYTES8',
    'BYTEARRAY8',
)
_FRESH = {
    'NONE': lambda: None,
    'NEWTRUE': lambda: True,
    'NEWFALSE': lambda: False,
    'EMPTY_LIST': list,
    'EMPTY_TUPLE': tuple,
    'EMPTY_DICT': dict,
    'EMPTY_SET': set,
}


# What instructions take from the stack: all above the last mark, which goes, too, or a number of items.
_TO_THE_MARK = ('POP_MARK', 'TUPLE', 'FROZENSET', 'APPENDS', 'ADDITEMS', 'SETITEMS')
_TAKEN = {
    'POP': 1,
    'TUPLE1': 1,
    'TUPLE2': 2,
    'TUPLE3': 3,
    'APPEND': 1,
    'SETITEM': 2,
    'STACK_GLOBAL': 2,
    'REDUCE': 2,
    'NEWOBJ': 2,
    'BUILD': 1,
    'BINPERSID': 1,
}


class _Machine:
    """Runs one pickle of a stream: the instructions that protocols 2 to 5 write for plain data and objects.

    names: the names that it may contain. persistent_ids: whether it may refer to what is written elsewhere.
    """

    def __init__(self, stream, names=_NAMES, persistent_ids=False):
        self.stream, self.names, self.persistent_ids = stream, names, persistent_ids
        self.stack, self.below, self.memo = [], [], {}  # below: the stacks under the marks
        self.foreign = {}  # names that the file may not contain, in order

    @_naming_damage()
    def run(self):
        """The object that the pickle describes. The stream is left behind its end."""
        try:
            for count, (opcode, argument, _) in enumerate(pickletools.genops(self.stream)):  # to STOP; without one, it raises
                require(count < MAX_OPCODES, f'more than {MAX_OPCODES} instructions')
                self._step(opcode.name, argument)
            require(len(self.stack) == 1 and not self.below, 'the end of the pickle')
            return self.stack[0]
        finally:  # foreign names say more than the damage that they may have led to
            if self.foreign:
                raise LegacyError(f'it holds what no published network does: {listed(list(self.foreign), 1000)}') from None

    def _step(self, name, argument):
        taken = self._take(name)
        stack = self.stack
        match name:
            case 'PROTO' | 'FRAME' | 'POP' | 'POP_MARK' | 'STOP':
                pass
            case _ if name in _LITERALS:
                # Seeds and sizes are shorter; arithmetic and printing with a number of megabytes would take for ever.
                require(type(argument) is not int or argument.bit_length() <= 128, 'a number as long as a text')
                stack.append(argument)
            case _ if name in _FRESH:
                stack.append(_FRESH[name]())
            case 'MARK':
                self.below.append(stack)
                self.stack = []
            case 'TUPLE' | 'TUPLE1' | 'TUPLE2' | 'TUPLE3':
                stack.append(tuple(taken))
            case 'FROZENSET':
                stack.append(_add(set(), taken))
            case 'ADDITEMS':
                _add(stack[-1], taken)
            case 'APPEND' | 'APPENDS':
                require(isinstance(stack[-1], list), 'an item of something else than a list')
                stack[-1].extend(taken)
            case 'SETITEM' | 'SETITEMS':
                _set_items(stack[-1], taken)
            case 'MEMOIZE' | 'BINPUT' | 'LONG_BINPUT':  # MEMOIZE has no index: it counts entries
                self.memo[len(self.memo) if argument is None else argument] = stack[-1]
            case 'BINGET' | 'LONG_BINGET':
                stack.append(self.memo[argument])
            case 'GLOBAL':
                stack.append(self._name(*argument.split(' ', 1)))
            case 'STACK_GLOBAL':
                stack.append(self._name(*taken))
            case 'REDUCE' | 'NEWOBJ':
                stack.append(_make(*taken))
            case 'BUILD':
                _set_state(stack[-1], *taken)
            case 'BINPERSID' if self.persistent_ids:
                stack.append(Made('persistent id', tuple(taken)))
            case _:
                raise LegacyError(f'it holds the pickle instruction {name}, which no published network does')

    def _take(self, name):
        if name in _TO_THE_MARK:
            items, self.stack = self.stack, self.below.pop()
            return items
        return [self.stack.pop() for _ in range(_TAKEN.get(name, 0))][::-1]

    def _name(self, module, attribute):
        require(isinstance(module, str) and isinstance(attribute, str), 'a name')
        dotted = f'{module}.{attribute}'
        if '.' in attribute or not self.names.fullmatch(dotted):
            self.foreign[dotted] = None
        return Name(dotted)


def _make(name, arguments):
    require(isinstance(name, Name) and isinstance(arguments, tuple), 'a call')
    if not _DICT.fullmatch(name.dotted):
        return Made(name.dotted, arguments)
    require(not arguments, 'a dict with arguments')
    return {}


def _set_state(target, state):
    if isinstance(target, dict):  # attributes of a dict, such as the versions of a state dict
        return
    require(isinstance(target, Made) and target.state is None, f'a state of {_kind(target)}')
    target.state = state


def _set_items(target, items):
    """Keys are text: how long other keys take to hash or compare would be the file's choice."""
    require(isinstance(target, dict) and len(items) % 2 == 0, 'the items of a dict')
    for key in items[::2]:
        require(type(key) is str, f'a key of type {_kind(key)}')
    target.update(zip(items[::2], items[1::2]))


def _add(target, items):
    require(isinstance(target, set) and all(type(item) is str for item in items), 'the items of a set')
    target.update(items)
    return target


def _kind(value):
    return value.name if isinstance(value, Made) else type(value).__name__


def is_pickle(path):
    """Whether a file begins as a pickle does (protocol 2 and later), and not as a zip archive of torch."""
    with open(path, 'rb') as file:
        return file.read(1) == b'\x80'


def read_pickle(path):
    """The passive contents of a published pickle: containers, numbers, text, bytes and records of what would have been made.

    Raises LegacyError naming the file and what was refused or damaged.
    """
    with open(path, 'rb') as file, saying_where(f'{path} is no pickle of a published network'):
        stream = io.BytesIO(file.read())  # in memory, a length that the file only claims costs nothing
        content = _Machine(stream).run()
        require(not stream.read(1), 'something follows its end')
        return content


# ---------------------------------------------------------------------------------------------------------------------
# From records to numbers and tensors


def plain(value, known=None, depth=0):
    """A value of constructor arguments: numpy's numbers as numbers, arrays and tuples as lists, other records as they are.

    known: results by identity, so that a value that holds one value twice, again and again, is gone through once.
    """
    known = {} if known is None else known
    if depth > MAX_DEPTH:
        raise LegacyError('constructor arguments do not end')
    if not isinstance(value, dict | list | tuple | Made):
        return value
    if id(value) not in known:
        if isinstance(value, dict):
            known[id(value)] = {key: plain(item, known, depth + 1) for key, item in value.items()}
        elif isinstance(value, Made):
            known[id(value)] = _array(value).tolist() if value.name.startswith('numpy.') else value
        else:
            known[id(value)] = [plain(item, known, depth + 1) for item in value]
    return known[id(value)]


class Tensors(Mapping):
    """The tensors of records by name; each is made when it is asked for, as a view of its storage. Raises LegacyError."""

    def __init__(self, records):
        self.records, self.storages = records, {}

    def __iter__(self):
        return iter(self.records)

    def __len__(self):
        return len(self.records)

    def __getitem__(self, name):
        record = self.records[name]
        with saying_where(f'tensor {printable(name)}'), _naming_damage():
            return self._tensor(record)

    def _tensor(self, record):
        require(isinstance(record, Made), 'no tensor')
        if record.name.startswith('torch._utils._rebuild_parameter'):
            record = record.arguments[0]
            require(isinstance(record, Made), 'the data of a parameter')
        if record.name.startswith('numpy.'):
            return torch.from_numpy(_array(record))
        require(record.name.startswith('torch._utils._rebuild_tensor'), f'{printable(record.name)} is no tensor')
        storage, offset, size, stride = record.arguments[:4]
        size = size.arguments[0] if isinstance(size, Made) and size.name == 'torch.Size' else size
        return _view(self._storage(storage), offset, size, stride)

    def _storage(self, record):
        """A storage, made once however many records and tensors share it."""
        require(isinstance(record, Made) and record.name == 'torch.storage._load_from_bytes', 'the storage of a tensor')
        (data,) = record.arguments
        key = id(data.arguments[0]) if isinstance(data, Made) else id(data)
        if key not in self.storages:
            self.storages[key] = _storage_of_bytes(_bytes(data))
        return self.storages[key]


def _view(values, offset, size, stride):
    """A view of a storage, within it. It may repeat items, and takes no memory."""
    require(_are_sizes(size) and _are_sizes(stride) and len(size) == len(stride) <= MAX_AXES, 'the shape of a tensor')
    require(_are_sizes((offset,)) and math.prod(size) <= MAX_ITEMS, 'the size of a tensor')
    if math.prod(size) == 0:
        return torch.zeros(size, dtype=values.dtype)
    last = offset + sum((n - 1) * step for n, step in zip(size, stride))
    require(last < values.numel(), f'a tensor of shape {size} that its storage does not hold')
    return torch.as_strided(values, size, stride, offset)


def _are_sizes(values):
    return isinstance(values, tuple) and all(type(value) is int and value >= 0 for value in values)


def _bytes(data):
    """Bytes, or the text as which protocol 2 writes them."""
    if isinstance(data, Made) and data.name == '_codecs.encode':
        text, encoding = data.arguments
        require(isinstance(text, str) and encoding == 'latin1', 'bytes written as text')
        return text.encode('latin1')
    require(isinstance(data, bytes | bytearray), 'bytes')
    return bytes(data)


def _storage_of_bytes(data):
    """A storage as torch writes it into a pickle: a file of torch's format before 1.6, in bytes.

    Four pickles (magic number, version, system, the object), one with the list of storages, then for each of them its
    number of items and the items. Returns a flat tensor.
    """
    stream = io.BytesIO(data)
    mark, version, system, reference, keys = [_Machine(stream, _STORAGE_NAMES, persistent_ids=True).run() for _ in range(5)]
    require(mark == 0x1950A86A20F9469CFC6C and version == 1001, 'the mark of a storage')
    require(isinstance(system, dict) and system.get('little_endian') is True, 'the byte order of a storage')
    require(isinstance(reference, Made), 'a storage')
    (record,) = reference.arguments
    kind, key, _, numel, *view = record[1:]
    require(record[0] == 'storage' and isinstance(kind, Name) and view in ([], [None]), 'the class of a storage')
    require(type(key) is str and keys == [key] and _are_sizes((numel,)), 'the record of a storage')
    require(int.from_bytes(stream.read(8), 'little') == numel, 'the length of a storage')
    dtype, values = STORAGE_DTYPES[kind.dotted], bytearray(stream.read())
    require(len(values) == numel * dtype.itemsize, f'a storage of {numel} items from {len(values)} bytes')
    return torch.frombuffer(values, dtype=dtype) if numel else torch.zeros(0, dtype=dtype)


@_naming_damage()
def _array(record):
    """The numpy array of a record in one of the three ways in which numpy writes arrays and numbers."""
    order = 'C'
    match record.name.rpartition('.')[2]:
        case 'scalar':
            (dtype, data), shape = record.arguments, ()
        case '_frombuffer':
            data, dtype, shape, order = record.arguments
        case '_reconstruct':
            require(record.arguments[0] == Name('numpy.ndarray'), 'the class of a numpy array')
            _, shape, dtype, fortran, data = record.state
            order = 'F' if fortran else 'C'
        case _:
            raise LegacyError(f'{printable(record.name)} is no array')
    data, dtype = _bytes(data), _dtype(dtype)
    require(_are_sizes(shape) and len(shape) <= MAX_AXES and order in ('C', 'F'), 'the shape of a numpy array')
    require(math.prod(shape) * dtype.itemsize == len(data), f'a numpy array of shape {shape} from {len(data)} bytes')
    return np.frombuffer(data, dtype).reshape(shape, order=order).astype(dtype.newbyteorder('='))


def _dtype(record):
    require(isinstance(record, Made) and record.name == 'numpy.dtype', 'a numpy dtype')
    code, order = record.arguments[0], '=' if record.state is None else record.state[1]
    require(type(code) is str and re.fullmatch('[biuf][1248]', code), f'numpy dtype {printable(reprlib.repr(code))}')
    require(order in ('<', '>', '|', '='), 'the byte order of a numpy dtype')
    return np.dtype(code).newbyteorder(order)


# ---------------------------------------------------------------------------------------------------------------------
# Modules


@dataclass(eq=False, repr=False)
class Module:
    """A torch module of the file: the name of its class without that of its module, and its attributes."""

    class_name: str
    state: dict

    def table(self, name):
        """A dict among the attributes: `_parameters`, `_buffers`, `_modules` or `_init_kwargs`. Empty where there is none."""
        table = self.state.get(name)
        require(table is None or isinstance(table, dict), f'{name} of {printable(self.class_name)} is no dict')
        return table or {}

    def temporary_buffers(self):
        """Names of buffers that a state dict leaves out."""
        names = self.state.get('_non_persistent_buffers_set') or ()
        names = names.arguments[0] if isinstance(names, Made) and names.arguments else names  # before protocol 4
        require(isinstance(names, set | list | tuple) and all(type(name) is str for name in names), 'names of buffers')
        return set(names)

    def size(self):
        """How much there is to look at."""
        tables = [self.table(name) for name in ('_parameters', '_buffers', '_modules', '_init_kwargs')]
        return 1 + sum(map(len, [self.state, self.temporary_buffers(), *tables]))


def as_module(value):
    """The Module that a value of the file stands for, or None.

    The releases write their own classes as a record of type, version, source and class_name; the source is dropped unread.
    """
    if not isinstance(value, Made):
        return None
    if value.name == _PERSISTENT:
        (meta,) = value.arguments if len(value.arguments) == 1 else (None,)
        require(isinstance(meta, dict) and value.state is None, 'the record of a persistent object')
        require(meta.get('type') == 'class', 'a persistent object that is no class')
        class_name, state = meta.get('class_name'), meta.get('state')
    elif _MODULE.fullmatch(value.name):
        require(not value.arguments, f'arguments of {printable(value.name)}')
        class_name, state = value.name.rpartition('.')[2], value.state
    else:
        return None
    require(isinstance(class_name, str) and isinstance(state, dict), 'the class_name or the state of a persistent object')
    return Module(class_name, state)


def modules_of(root):
    """{path: Module} of a Module and all that it contains; its own path is ''."""
    found, pending, size = {}, [('', root)], 0
    while pending:
        path, module = pending.pop()
        size += module.size() + len(path)
        if size > MAX_SIZE or len(path) > MAX_PATH:
            raise LegacyError(f'the modules of {printable(root.class_name)} do not end')
        found[path] = module
        for name, value in module.table('_modules').items():
            child = as_module(value)
            require(child or value is None, f'{printable(name)} is no module')
            if child:
                pending.append((path_of(path, name), child))
    return found


def path_of(path, name):
    """A dotted name."""
    require(len(name) <= 100 and '.' not in name, f'the name {printable(name)}')
    return f'{path}.{name}' if path else name


def tensors_of(modules):
    """Tensors of `modules_of` by dotted name: what a state dict has."""
    records = {}
    for path, module in modules.items():
        temporary = module.temporary_buffers()
        buffers = {name: value for name, value in module.table('_buffers').items() if name not in temporary}
        for name, value in (module.table('_parameters') | buffers).items():
            if value is not None:
                records[path_of(path, name)] = value
    return Tensors(records)
