"""CUDA tensors for machines without a GPU: they compute on the CPU, refuse to mix with CPU tensors, and remember who waited.

A `SimulatedTensor` says that it lies on cuda:0, and carries a CPU tensor with its values. What a real GPU would refuse raises
here: operators on tensors of both devices, generators of the wrong device, NumPy. What would make the host wait for the
GPU is noted in `Simulation.waits`: values that are read, sizes that depend on values, copies that are not asynchronous.
"""

import contextlib
import traceback
from unittest import mock

import torch
import torch._dynamo  # which looks at torch's functions when it is imported: before they are replaced
from torch.utils._python_dispatch import TorchDispatchMode, _disable_current_modes
from torch.utils._pytree import tree_leaves, tree_map

from tests.helpers import ROOT

DEVICE = torch.device('cuda', 0)
aten = torch.ops.aten
READS = {aten._local_scalar_dense.default, aten.nonzero.default, aten.masked_select.default, aten.equal.default}
INDEXING = {aten.index.Tensor, aten.index_put_.default, aten._index_put_impl_.default}
MIXING = {aten.copy_.default, aten._to_copy.default, *INDEXING}
_make_tensor, _Generator = torch.tensor, torch.Generator


class SimulatedTensor(torch.Tensor):
    __torch_function__ = torch._C._disabled_torch_function_impl
    device = property(lambda self: DEVICE)
    is_cuda = property(lambda self: True)
    is_cpu = is_meta = property(lambda self: False)

    @staticmethod
    def __new__(cls, values):
        with _disable_current_modes():
            shell = torch.empty_strided(values.shape, values.stride(), dtype=values.dtype, device='meta')
            made = torch.Tensor._make_subclass(cls, shell)
        made.values_on_cpu = values
        return made

    @classmethod
    def __torch_dispatch__(cls, operator, types, arguments=(), options=None):
        return Simulation.current.run(operator, arguments, options or {})

    def __deepcopy__(self, memo):
        copied = SimulatedTensor(self.values_on_cpu.detach().clone())
        copied._is_param = getattr(self, '_is_param', False)
        return memo.setdefault(id(self), copied.requires_grad_(self.requires_grad))

    def __repr__(self):
        return f'SimulatedTensor({list(self.shape)}, {self.dtype})'

    def new_tensor(self, data, dtype=None):
        return torch.tensor(data, dtype=dtype or self.dtype, device=DEVICE)

    def tolist(self):
        Simulation.current.wait('tolist')
        return self.values_on_cpu.tolist()

    def numpy(self, **options):
        raise TypeError("can't convert cuda:0 device type tensor to numpy")

    __array__ = numpy


def _on_gpu(device):
    """Whether a device is the GPU; C++ calls it 'meta', which is what it takes the tensors for."""
    return device is not None and torch.device(device).type in ('cuda', 'meta')


class Simulation(TorchDispatchMode):
    """waits: [(what, where)]."""

    current = None

    def __init__(self):
        super().__init__()
        self.waits = []
        self.seeds = set()  # of the GPU's generators, which lose their class on the way to an operator

    def wait(self, what):
        ours = [
            frame
            for frame in traceback.extract_stack()
            if frame.filename.startswith(str(ROOT)) and frame.filename != __file__ and 'site-packages' not in frame.filename
        ]
        places = [f'{frame.filename.removeprefix(str(ROOT))[1:]}:{frame.lineno}' for frame in ours]
        self.waits.append((what, places[-1] if places else '?'))

    def __torch_dispatch__(self, operator, types, arguments=(), options=None):
        options = options or {}
        generator = options.get('generator')
        ours = any(isinstance(x, SimulatedTensor) for x in tree_leaves((arguments, options)))
        if ours or _on_gpu(options.get('device')) or (generator is not None and generator.initial_seed() in self.seeds):
            return self.run(operator, arguments, options)
        return operator(*arguments, **options)

    def run(self, operator, arguments, options):
        tensors = [x for x in tree_leaves((arguments, options)) if isinstance(x, torch.Tensor)]
        here = [x for x in tensors if isinstance(x, SimulatedTensor)]
        self._check_devices(operator, arguments, here, tensors)
        result_here = bool(here)
        if options.get('device') is not None:
            result_here = _on_gpu(options['device'])
            options = {**options, 'device': 'cpu'}
        if options.get('generator') is not None and result_here and options['generator'].initial_seed() not in self.seeds:
            raise RuntimeError(f"{operator}: expected a 'cuda' device type for generator but found 'cpu'")
        if operator is aten.copy_.default:
            result_here = isinstance(arguments[0], SimulatedTensor)
        copies = operator in (aten.copy_.default, aten._to_copy.default)
        crosses = copies and result_here != isinstance(tensors[-1], SimulatedTensor)
        if crosses and not (options.get('non_blocking') or arguments[2:3] == (True,)):
            self.wait('copy')
        known = {id(x.values_on_cpu): x for x in here} | {id(x): x for x in tensors if not isinstance(x, SimulatedTensor)}
        values = tree_map(lambda x: x.values_on_cpu if isinstance(x, SimulatedTensor) else x, (list(arguments), options))
        result = operator(*values[0], **values[1])

        def wrap(x):
            if not isinstance(x, torch.Tensor):
                return x
            return known.get(id(x), SimulatedTensor(x) if result_here else x)

        return tree_map(wrap, result)

    def _check_devices(self, operator, arguments, here, tensors):
        strangers = [x for x in tensors if not isinstance(x, SimulatedTensor) and x.ndim > 0]
        if here and strangers and operator not in MIXING:
            raise RuntimeError(f'{operator}: expected all tensors to be on the same device, but found cuda:0 and cpu')
        if here and operator in INDEXING:
            if not isinstance(arguments[0], SimulatedTensor):
                raise RuntimeError(f'{operator}: indices should be on the same device as the indexed tensor (cpu)')
            indices = [index for index in arguments[1] if index is not None]
            if any(index.dtype == torch.bool or not isinstance(index, SimulatedTensor) for index in indices):
                self.wait('index')
        if here and operator in READS:
            self.wait('read')


class _SimulatedGenerator(torch.Generator):
    def __new__(cls, device='cpu'):
        return super().__new__(cls, 'cpu') if _on_gpu(device) else _Generator('cpu')

    def manual_seed(self, seed):
        Simulation.current.seeds.add(seed)
        return super().manual_seed(seed)


def _tensor(data, *arguments, device=None, **options):
    made = _make_tensor(data, *arguments, **options)
    if not _on_gpu(device):
        return made
    Simulation.current.wait('tensor')
    return SimulatedTensor(made)


def _as_tensor(data, *arguments, device=None, **options):
    if isinstance(data, torch.Tensor):
        return data.to(device=device or data.device, **options)
    return _tensor(data, *arguments, device=device, **options)


@contextlib.contextmanager
def simulated_cuda():
    """Within it, there is one GPU. Gives the Simulation."""

    def nothing(*arguments, **options):
        pass

    replaced = {
        'tensor': _tensor,
        'as_tensor': _as_tensor,
        'Generator': _SimulatedGenerator,
        'Tensor.pin_memory': lambda self: self,
        'cuda.is_available': lambda: True,
        'cuda.device_count': lambda: 1,
        'cuda.set_device': nothing,
        'cuda._lazy_init': nothing,
        'cuda.manual_seed_all': nothing,
        'cuda.get_device_name': lambda device=None: 'simulated',
        'cuda.mem_get_info': lambda device=None: (2**34, 2**34),
        'cuda.memory_reserved': lambda device=None: 0,
        'cuda.memory_allocated': lambda device=None: 0,
        'cuda.max_memory_allocated': lambda device=None: 0,
        'cuda.reset_peak_memory_stats': nothing,
        'optim.Optimizer._accelerator_graph_capture_health_check': nothing,
        'optim.Optimizer._cuda_graph_capture_health_check': nothing,
    }
    simulation = Simulation()
    overwritten = torch.__future__.get_overwrite_module_params_on_conversion()
    with contextlib.ExitStack() as stack:
        for name, value in replaced.items():
            stack.enter_context(mock.patch(f'torch.{name}', value, create=True))
        stack.callback(torch.__future__.set_overwrite_module_params_on_conversion, overwritten)
        torch.__future__.set_overwrite_module_params_on_conversion(True)
        stack.enter_context(mock.patch.object(Simulation, 'current', simulation))
        yield stack.enter_context(simulation)
