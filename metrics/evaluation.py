"""From metrics' names and a task to records that say what was found and exactly how."""

import contextlib
import importlib.metadata
import platform
import time

import torch

from metrics import registry
from torch_utils import distributed

_LIBRARIES = ('torch', 'torch-fidelity', 'numpy', 'scipy', 'pillow')


def compute_records(names, task, about=None):
    """Compute metrics, group by group. Every process must iterate over it, with the same arguments but for the device.

    names: metrics' names, such as ['fid50k_full', 'swd']; task: registry.Task, of one branch; about: what else the records should
    say (plain data: snapshot, kimg, label ...). Yields records (plain data), one per metric, the same on every process; those
    of a group as soon as it is done, so that a later failure does not take them along.
    Raises UserError for a task that cannot be done, WeightsError (torch_utils/pretrained.py) for missing detector weights.
    """
    for group, metrics in registry.by_group(names).items():
        start = time.perf_counter()
        with full_precision(), distributed.together():
            outcomes = group.compute(list(metrics.values()), task)
        seconds = time.perf_counter() - start
        for name, outcome in outcomes.items():
            yield _record(name, outcome, task, seconds, about or {})


@contextlib.contextmanager
def full_precision():
    """Without TF32, which would move a metric in its third digit. The settings of before come back."""
    before = torch.backends.cuda.matmul.allow_tf32, torch.backends.cudnn.allow_tf32
    torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = False
    try:
        yield
    finally:
        torch.backends.cuda.matmul.allow_tf32, torch.backends.cudnn.allow_tf32 = before


def _record(name, outcome, task, seconds, about):
    """A line of metric-<name>.jsonl. `seconds` are those of all metrics that were computed together."""
    versions = {library: importlib.metadata.version(library) for library in _LIBRARIES}
    on_gpu = task.device.type == 'cuda'
    return {
        'metric': name,
        'value': outcome.value,
        'parts': outcome.parts,
        'branch': task.branch,
        **about,
        'plane_parameters': None if task.generator is None else task.generator.count_plane_parameters(),
        'data': task.data,
        'images': task.images,
        'protocol': {'sampling': None, 'noise_mode': None, **outcome.protocol},  # None: nothing was generated
        'details': outcome.details,
        'seconds': seconds,
        'processes': distributed.world_size(),
        'device': torch.cuda.get_device_name(task.device) if on_gpu else platform.machine(),
        'gpus': distributed.world_size() if on_gpu else 0,
        'versions': {'python': platform.python_version(), **versions},
        'time': time.strftime('%Y-%m-%dT%H:%M:%S%z'),
    }
