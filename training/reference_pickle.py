"""Reads the pickles that the published releases write, as passive data: nothing in a file is imported, called or run.

A pickle is a program for a small stack machine, and the usual machine calls whatever the file names. This one has no
way to: a global of the file is a name and nothing else, and a call is looked up in a table of constructors that make
plain containers, numpy arrays and tensors out of checked arguments. Names outside the tables are refused by name.
"""

import io
import math
import pickletools
import re
from dataclasses import dataclass, field

import numpy as np
import torch

from dnnlib.errors import UserError

MAX_OPCODES = 2_000_000  # a published file has some ten thousand
MAX_MODULES = 20_000  # of one network, so that modules that contain one module twice, again and again, come to an end
MAX_TENSORS = 200_000
MAX_DEPTH = 40  # of modules within modules
MAX_COPIES = 4  # how many times its own size a file may ask to copy: every byte of a published one is copied once or twice


class LegacyError(UserError):
    """A published file, weights or constructor arguments that this project cannot or will not open."""


@dataclass
class PassiveObject:
    """An object of the file: the name of its class, and its attributes. `persistent`: it carries its own source."""

    class_name: str
    state: dict = field(default_factory=dict)
    persistent: bool = False


@dataclass(frozen=True)
class _Global:
    """A name of the file, never looked up."""

    module: str
    name: str

    def __str__(self):
        return printable(f'{self.module}.{self.name}')


@dataclass(frozen=True)
class _Storage:
    """The contents of a torch storage: a flat tensor."""

    values: torch.Tensor


@dataclass
class _Dtype:
    """A numpy dtype while it is put together."""

    code: str
    order: str = '='

    def numpy(self):
        return np.dtype(self.code).newbyteorder(self.order)


@dataclass
class _Array:
    """A numpy array while it is put together."""

    values: np.ndarray | None = None


class _Mark:
    """Where a run of stack items begins."""


def printable(text):
    """One short line of ASCII, whatever the text holds."""
    text = ascii(text)[1:-1]
    return text if len(text) <= 120 else f'{text[:117]}...'


def refuse(what):
    raise LegacyError(f'refused: {what}')


def check(condition, what):
    """The file must be as a writer of pickles would have made it."""
    if not condition:
        raise ValueError(what)


# ---------------------------------------------------------------------------------------------------------------------
# What a file may construct: functions from checked plain data to plain data

STORAGE_DTYPES = {
    'FloatStorage': torch.float32, 'DoubleStorage': torch.float64, 'HalfStorage': torch.float16,
    'BFloat16Storage': torch.bfloat16, 'LongStorage': torch.int64, 'IntStorage': torch.int32,
    'ShortStorage': torch.int16, 'CharStorage': torch.int8, 'ByteStorage': torch.uint8, 'BoolStorage': torch.bool,
}
NAMED_VALUES = {f'torch.{name}': name for name in (
    'float32', 'float64', 'float16', 'bfloat16', 'int64', 'int32', 'int16', 'int8', 'uint8', 'bool', 'contiguous_format',
    'channels_last', 'preserve_format', 'strided')}
NUMPY_CODES = re.compile(r'[biuf](1|2|4|8)')
# Modules that the releases write by the name of their class. They become passive objects, so the name decides nothing
# but whether the file is plausible.
MODULE_CLASSES = re.compile(
    r'torch\.nn\.modules\.(container|activation|linear)\.[A-Za-z]\w*'
    r'|training\.(triplane|dual_triplane|dual_discriminator|superresolution|networks_stylegan2|volumetric_rendering\.\w+)'
    r'\.[A-Za-z]\w*', re.ASCII)


def _empty_dict(*arguments):
    check(not arguments, 'a dict with arguments')
    return {}


def _ordered_dict(pairs=()):
    result = {}
    for pair in pairs:
        check(isinstance(pair, list | tuple) and len(pair) == 2, 'a pair of an OrderedDict')
        _set_item(result, *pair)
    return result


def _persistent_object(meta):
    """The releases' record of an object: type, version, module_src, class_name, state. The source is dropped unread."""
    check(isinstance(meta, dict), 'the record of a persistent object')
    if meta.get('type') != 'class':
        refuse('a persistent object that is no class')
    check(isinstance(meta.get('class_name'), str), 'class_name of a persistent object')
    check(isinstance(meta.get('state'), dict), 'state of a persistent object')
    return PassiveObject(meta['class_name'], meta['state'], persistent=True)


def _latin1(text, encoding):
    """How protocol 2 writes bytes."""
    check(isinstance(text, str) and encoding == 'latin1', 'bytes written as text')
    return text.encode('latin1')


def _are_sizes(values):
    return isinstance(values, tuple) and all(type(value) is int and value >= 0 for value in values)


def _tensor(storage, offset, size, stride, *_):
    """A view of a storage; it must lie within the storage and may not repeat its items."""
    check(isinstance(storage, _Storage), 'the storage of a tensor')
    check(_are_sizes(size) and _are_sizes(stride) and len(size) == len(stride) <= 16, 'the shape of a tensor')
    check(_are_sizes((offset,)), 'the offset of a tensor')
    numel, available = math.prod(size), storage.values.numel()
    last = offset + sum((n - 1) * step for n, step in zip(size, stride))
    check(numel <= available and (numel == 0 or last < available), f'a tensor of shape {size} that its storage does not hold')
    return torch.as_strided(storage.values, size, stride, offset) if numel else torch.zeros(size)


def _parameter(data, *_):
    check(isinstance(data, torch.Tensor), 'the data of a parameter')
    return data


def _size(values=()):
    check(_are_sizes(tuple(values)), 'a torch.Size')
    return tuple(values)


def _device(kind, index=None):
    check(isinstance(kind, str) and (index is None or type(index) is int), 'a device')
    return kind if index is None else f'{kind}:{index}'


def _set(items=()):
    check(isinstance(items, list | tuple), 'the items of a set')
    return _add_items(set(), items)


def _numpy_dtype(code, *_):
    check(isinstance(code, str), 'a numpy dtype')
    if not NUMPY_CODES.fullmatch(code):
        refuse(f'numpy dtype {printable(code)}')
    return _Dtype(code)


def _numpy_empty(kind, *_):
    check(kind == _Global('numpy', 'ndarray'), 'the class of a numpy array')
    return _Array()


def _numpy_values(data, dtype, shape, order):
    check(isinstance(data, bytes | bytearray) and isinstance(dtype, _Dtype) and order in ('C', 'F'), 'a numpy array')
    check(_are_sizes(shape), 'the shape of a numpy array')
    dtype = dtype.numpy()
    check(math.prod(shape) * dtype.itemsize == len(data), f'a numpy array of shape {shape} from {len(data)} bytes')
    return np.frombuffer(data, dtype).reshape(shape, order=order).astype(dtype.newbyteorder('='))


def _numpy_scalar(dtype, data):
    return _numpy_values(data, dtype, (), 'C').item()


def _storage_of_bytes(data):
    """A storage as torch writes it into a pickle: a file of torch's format before 1.6, in bytes.

    Four pickles (magic number, version, system, the object), one with the list of storages, then for each of them its
    number of items and the items.
    """
    check(isinstance(data, bytes), 'the bytes of a storage')
    stream = io.BytesIO(data)
    mark, version, system, persistent_id, keys = [_Machine(stream, of_storage=True).run() for _ in range(5)]
    check(mark == 0x1950A86A20F9469CFC6C and version == 1001, 'the mark of a storage')
    check(isinstance(system, dict) and system.get('little_endian') is True, 'the byte order of a storage')
    check(isinstance(persistent_id, _PersistentId), 'a storage')
    dtype, key, numel = _storage_record(persistent_id.value)
    check(keys == [key], 'the list of storages')
    check(int.from_bytes(stream.read(8), 'little') == numel, 'the length of a storage')
    values = stream.read()
    check(len(values) == numel * dtype.itemsize, f'a storage of {numel} items from {len(values)} bytes')
    return _Storage(torch.frombuffer(bytearray(values), dtype=dtype) if numel else torch.zeros(0, dtype=dtype))


@dataclass(frozen=True)
class _PersistentId:
    value: object


def _storage_record(record):
    """(dtype, key, number of items) of ('storage', class, key, device, items, view)."""
    check(isinstance(record, tuple) and len(record) in (5, 6) and record[0] == 'storage', 'the record of a storage')
    kind, key, _, numel, *view = record[1:]
    check(isinstance(kind, _Global) and kind.module == 'torch' and view in ([], [None]), 'the class of a storage')
    check(isinstance(key, str) and _are_sizes((numel,)), 'the record of a storage')
    return STORAGE_DTYPES[kind.name], key, numel


CONSTRUCTORS = {
    'collections.OrderedDict': _ordered_dict,
    'dnnlib.util.EasyDict': _empty_dict,
    'dnnlib.EasyDict': _empty_dict,
    'torch_utils.persistence._reconstruct_persistent_obj': _persistent_object,
    'torch._utils._rebuild_tensor_v2': _tensor,
    'torch._utils._rebuild_parameter': _parameter,
    'torch.storage._load_from_bytes': _storage_of_bytes,
    'torch.Size': _size,
    'torch.device': _device,
    'builtins.set': _set,
    '__builtin__.set': _set,
    '_codecs.encode': _latin1,
    'numpy.dtype': _numpy_dtype,
}
for _core in ('numpy.core', 'numpy._core'):
    CONSTRUCTORS[f'{_core}.multiarray._reconstruct'] = _numpy_empty
    CONSTRUCTORS[f'{_core}.multiarray.scalar'] = _numpy_scalar
    CONSTRUCTORS[f'{_core}.numeric._frombuffer'] = _numpy_values


def _named(module, name, of_storage):
    """What stands for a global of the file."""
    check(isinstance(module, str) and isinstance(name, str), 'a name')
    dotted = f'{module}.{name}'
    if of_storage:
        if module == 'torch' and name in STORAGE_DTYPES:
            return _Global(module, name)
    elif '.' not in name:
        if dotted in NAMED_VALUES:
            return NAMED_VALUES[dotted]
        if dotted in CONSTRUCTORS or dotted == 'numpy.ndarray' or MODULE_CLASSES.fullmatch(dotted):
            return _Global(module, name)
    return refuse(printable(dotted))


def _call(function, arguments):
    """What the file's call of a global gives."""
    check(isinstance(function, _Global) and isinstance(arguments, tuple), 'a call')
    constructor = CONSTRUCTORS.get(f'{function.module}.{function.name}')
    return refuse(f'a call of {function}') if constructor is None else constructor(*arguments)


def _new_object(kind, arguments):
    check(isinstance(kind, _Global) and isinstance(arguments, tuple), 'a class')
    if not MODULE_CLASSES.fullmatch(f'{kind.module}.{kind.name}'):
        return _call(kind, arguments)
    check(not arguments, f'arguments of {kind}')
    return PassiveObject(f'{kind.module}.{kind.name}')


def _set_state(target, state):
    """What the file sets on an object after making it. Returns the object."""
    if isinstance(target, PassiveObject) and not target.persistent:
        check(isinstance(state, dict), f'the state of {target.class_name}')
        target.state.update(state)
    elif isinstance(target, _Dtype):
        check(isinstance(state, tuple) and len(state) >= 2 and state[1] in ('<', '>', '|', '='), 'the state of a numpy dtype')
        target.order = state[1]
    elif isinstance(target, _Array):
        check(isinstance(state, tuple) and len(state) == 5, 'the state of a numpy array')
        _, shape, dtype, fortran, data = state
        target.values = _numpy_values(data, dtype, shape, 'F' if fortran else 'C')
    elif isinstance(target, dict):
        check(isinstance(state, dict), 'the state of a dict')  # attributes of a dict, such as the versions of a state dict
    else:
        refuse(f'setting the state of a {type(target).__name__.strip("_")}')
    return target


def _set_item(target, key, value):
    check(isinstance(target, dict), 'an item of something else than a dict')
    if not (key is None or type(key) in (str, int, bool, float)):
        refuse(f'a key of type {type(key).__name__.strip("_")}')
    target[key] = value


def _add_items(target, items):
    check(isinstance(target, set) and all(type(item) in (str, int, bool, float) for item in items), 'the items of a set')
    target.update(items)
    return target


def _extend(target, items):
    check(isinstance(target, list), 'an item of something else than a list')
    target.extend(items)


# ---------------------------------------------------------------------------------------------------------------------
# The machine

_IGNORED = ('PROTO', 'FRAME')
_LITERALS = ('INT', 'BININT', 'BININT1', 'BININT2', 'LONG', 'LONG1', 'LONG4', 'FLOAT', 'BINFLOAT', 'BINUNICODE',
             'SHORT_BINUNICODE', 'BINUNICODE8', 'BINBYTES', 'SHORT_BINBYTES', 'BINBYTES8', 'BYTEARRAY8')
_FRESH = {
    'NONE': lambda: None, 'NEWTRUE': lambda: True, 'NEWFALSE': lambda: False, 'EMPTY_LIST': list, 'EMPTY_TUPLE': tuple,
    'EMPTY_DICT': dict, 'EMPTY_SET': set, 'MARK': _Mark,
}
_TUPLES = {'TUPLE1': 1, 'TUPLE2': 2, 'TUPLE3': 3}


class _Machine:
    """Runs one pickle of a stream. `of_storage`: one of those that hold a storage, which name no class but a storage's."""

    def __init__(self, stream, of_storage=False):
        self.stream, self.of_storage = stream, of_storage
        self.stack, self.memo = [], {}
        self.copies_left = MAX_COPIES * stream.getbuffer().nbytes + 2**16

    def run(self):
        """The object that the pickle describes. The stream is left behind its end."""
        for count, (opcode, argument, _) in enumerate(pickletools.genops(self.stream)):
            if count > MAX_OPCODES:
                refuse(f'more than {MAX_OPCODES} instructions')
            if opcode.name == 'STOP':
                check(len(self.stack) == 1 and not isinstance(self.stack[0], _Mark), 'the end of the pickle')
                return self.stack[0]
            self._step(opcode.name, argument)
        raise ValueError('no end')

    def _step(self, name, argument):
        if name in _IGNORED:
            return
        if name in _LITERALS:
            self.stack.append(argument)
        elif name in _FRESH:
            self.stack.append(_FRESH[name]())
        elif name in _TUPLES:
            self.stack.append(tuple([self._pop() for _ in range(_TUPLES[name])][::-1]))
        elif hasattr(self, f'_op_{name.lower()}'):
            getattr(self, f'_op_{name.lower()}')(argument)
        else:
            refuse(f'the pickle instruction {name}')

    def _pop(self):
        value = self.stack.pop()
        check(not isinstance(value, _Mark), 'the stack')
        return value

    def _pop_run(self):
        """The items above the last mark, which goes, too."""
        for index in range(len(self.stack) - 1, -1, -1):
            if isinstance(self.stack[index], _Mark):
                items = self.stack[index + 1:]
                del self.stack[index:]
                return items
        raise ValueError('a mark is missing')

    def _top(self):
        check(not isinstance(self.stack[-1], _Mark), 'the stack')
        return self.stack[-1]

    def _op_pop(self, _):
        self.stack.pop()

    def _op_pop_mark(self, _):
        self._pop_run()

    def _op_dup(self, _):
        self.stack.append(self._top())

    def _op_memoize(self, _):
        self.memo[len(self.memo)] = self._top()

    def _op_put(self, index):
        self.memo[index] = self._top()

    def _op_get(self, index):
        self.stack.append(self.memo[index])

    _op_binput = _op_long_binput = _op_put
    _op_binget = _op_long_binget = _op_get

    def _op_append(self, _):
        item = self._pop()
        _extend(self._top(), [item])

    def _op_appends(self, _):
        items = self._pop_run()
        _extend(self._top(), items)

    def _op_list(self, _):
        self.stack.append(self._pop_run())

    def _op_tuple(self, _):
        self.stack.append(tuple(self._pop_run()))

    def _op_setitem(self, _):
        value, key = self._pop(), self._pop()
        _set_item(self._top(), key, value)

    def _op_setitems(self, _):
        items = self._pop_run()
        check(len(items) % 2 == 0, 'the items of a dict')
        for key, value in zip(items[::2], items[1::2]):
            _set_item(self._top(), key, value)

    def _op_dict(self, _):
        items = self._pop_run()
        self.stack.append(_ordered_dict(list(zip(items[::2], items[1::2]))))

    def _op_additems(self, _):
        items = self._pop_run()
        _add_items(self._top(), items)

    def _op_frozenset(self, _):
        self.stack.append(_add_items(set(), self._pop_run()))

    def _op_global(self, argument):
        self.stack.append(_named(*argument.split(' ', 1), self.of_storage))

    def _op_stack_global(self, _):
        name, module = self._pop(), self._pop()
        self.stack.append(_named(module, name, self.of_storage))

    def _spend(self, *values):
        """Count what a constructor may copy: one item of the file can be copied for every few bytes of it."""
        self.copies_left -= sum(len(value) for value in values if isinstance(value, bytes | bytearray | str | list | tuple | dict))
        if self.copies_left < 0:
            refuse('many copies of the same data')

    def _op_reduce(self, _):
        arguments, function = self._pop(), self._pop()
        self._spend(*arguments if isinstance(arguments, tuple) else ())
        self.stack.append(_call(function, arguments))

    def _op_newobj(self, _):
        arguments, kind = self._pop(), self._pop()
        self.stack.append(_new_object(kind, arguments))

    def _op_build(self, _):
        state, target = self._pop(), self._pop()
        self._spend(state, *state if isinstance(state, tuple) else ())
        self.stack.append(_set_state(target, state))

    def _op_binpersid(self, _):
        if not self.of_storage:
            refuse('the pickle instruction BINPERSID')
        self.stack.append(_PersistentId(self._pop()))


# ---------------------------------------------------------------------------------------------------------------------
# What callers use


def is_pickle(path):
    """Whether a file begins as a pickle does (protocol 2 and later), and not as a zip archive of torch."""
    with open(path, 'rb') as file:
        return file.read(1) == b'\x80'


def read_pickle(path):
    """The passive contents of a published pickle: containers, numbers, text, tensors, arrays and PassiveObjects.

    Raises LegacyError naming the file and what was refused or damaged.
    """
    with open(path, 'rb') as file:
        stream = io.BytesIO(file.read())  # in memory, a length that the file only claims costs nothing
    try:
        content = _Machine(stream).run()
        check(not stream.read(1), 'something follows its end')
    except LegacyError as error:
        raise LegacyError(f'{path} holds what no published network does; {error}') from None
    except (ValueError, IndexError, KeyError, TypeError, OverflowError, RecursionError, AttributeError, MemoryError) as error:
        raise LegacyError(f'{path} is no pickle of a published network, or is damaged ({printable(str(error))})') from None
    return content


def state_dict(module):
    """The tensors of a PassiveObject that was a torch module, by dotted name."""
    tensors = {}
    pending = [(module, '', 0)]
    visited = 0
    while pending:
        current, prefix, depth = pending.pop()
        visited += 1
        if visited > MAX_MODULES or len(tensors) > MAX_TENSORS or depth > MAX_DEPTH:
            raise LegacyError(f'the modules of {printable(module.class_name)} do not end')
        volatile = current.state.get('_non_persistent_buffers_set')
        volatile = volatile if isinstance(volatile, set) else ()
        for kind in ('_parameters', '_buffers'):
            for name, value in _table(current, kind):
                if value is None or (kind == '_buffers' and name in volatile):
                    continue
                tensors[prefix + name] = _as_tensor(value, prefix + name)
        for name, child in _table(current, '_modules'):
            if child is None:
                continue
            if not isinstance(child, PassiveObject):
                raise LegacyError(f'{printable(prefix + name)} is no module')
            pending.append((child, f'{prefix}{name}.', depth + 1))
    return tensors


def _as_tensor(value, name):
    if isinstance(value, _Array) and value.values is not None:
        value = torch.from_numpy(value.values)
    if not isinstance(value, torch.Tensor):
        raise LegacyError(f'{printable(name)} is no tensor')
    return value


def _table(module, kind):
    table = module.state.get(kind)
    table = {} if table is None else table
    if not isinstance(table, dict) or not all(isinstance(name, str) for name in table):
        raise LegacyError(f'{kind} of {printable(module.class_name)} is no table of names')
    return table.items()


def plain(value, known=None, depth=0):
    """A value of constructor arguments, arrays and tuples as lists; PassiveObjects and tensors are refused.

    known: results by identity, so that a value that holds one value twice, again and again, is gone through once.
    """
    known = {} if known is None else known
    if depth > MAX_DEPTH:
        raise LegacyError('constructor arguments do not end')
    if value is None or isinstance(value, bool | int | float | str):
        return value
    if id(value) not in known:
        if isinstance(value, dict):
            result = {key: plain(item, known, depth + 1) for key, item in value.items()}
        elif isinstance(value, list | tuple):
            result = [plain(item, known, depth + 1) for item in value]
        elif isinstance(value, _Array) and value.values is not None:
            result = value.values.tolist()
        else:
            raise LegacyError(f'a constructor argument is a {type(value).__name__.strip("_")}')
        known[id(value)] = result
    return known[id(value)]
