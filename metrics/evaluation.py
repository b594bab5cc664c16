"""From metrics' names and a task to records that say what was found and exactly how."""

import dataclasses
import importlib.metadata
import platform
import time

import torch

from metrics import registry
from torch_utils import distributed

_LIBRARIES = ('torch', 'torch-fidelity', 'numpy', 'scipy', 'pillow')


def evaluate(names, task, about=None):
    """Compute metrics, group by group. Every process must iterate over it, with the same arguments but for the device.

    names: metrics' names, such as ['fid50k_full', 'swd']; task: registry.Task; about: what else the records should say
    (plain data: snapshot, kimg, label ...). Yields records (plain data), one per metric, the same on every process; those
    of a group as soon as it is done, so that a later failure does not take them along.
    Raises UserError for a task that cannot be done, WeightsError (torch_utils/pretrained.py) for missing detector weights.
    """
    for group, metrics in registry.by_group(names):
        start = time.perf_counter()
        with full_precision(), distributed.together():
            outcomes = group.evaluate(metrics, task)
        seconds = time.perf_counter() - start
        for name, outcome in outcomes.items():
            yield _record(name, outcome, task, seconds, about or {})


def evaluate_branches(names, task, branches, about=None):
    """`evaluate` for one branch of the generator after the other."""
    for branch in branches:
        yield from evaluate(names, dataclasses.replace(task, branch=branch), about)


class full_precision:
    """Without TF32, which would move a metric in its third digit. The settings of before come back."""

    def __enter__(self):
        self.before = torch.backends.cuda.matmul.allow_tf32, torch.backends.cudnn.allow_tf32
        torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = False

    def __exit__(self, *error):
        torch.backends.cuda.matmul.allow_tf32, torch.backends.cudnn.allow_tf32 = self.before


def _record(name, outcome, task, seconds, about):
    """A line of metric-<name>.jsonl. `seconds` are those of all metrics that were computed together."""
    return {
        'metric': name,
        'value': outcome.value,
        'parts': outcome.parts,
        'branch': task.branch,
        **about,
        'data': task.data,
        'images': task.images,
        'protocol': {'sampling': None, 'noise_mode': None, **outcome.protocol},  # None: nothing was generated
        'details': outcome.details,
        'seconds': seconds,
        'processes': distributed.world_size(),
        'device': _device_name(task.device),
        'gpus': distributed.world_size() if task.device.type == 'cuda' else 0,
        'versions': {'python': platform.python_version(), **{library: _version(library) for library in _LIBRARIES}},
        'time': time.strftime('%Y-%m-%dT%H:%M:%S%z'),
    }


def _device_name(device):
    return torch.cuda.get_device_name(device) if device.type == 'cuda' else platform.machine()


def _version(library):
    try:
        return importlib.metadata.version(library)
    except importlib.metadata.PackageNotFoundError:
        return None
