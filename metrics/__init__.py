"""How good generated images are, by name: see metrics/registry.py.

`compute_records(names, task)` computes metrics, offline (calc_metrics.py) and in a training loop alike, where a
`monitoring.Monitor` writes what was found and keeps the best snapshot.
"""

# Modules that register metrics, in the order in which help texts and tables list them.
from metrics import inception, swd  # noqa: F401
from metrics.consistency import evaluation as _consistency  # noqa: F401
from metrics.evaluation import compute_records
from metrics.registry import Task

__all__ = ['Task', 'compute_records']
