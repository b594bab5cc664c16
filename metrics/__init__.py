"""How good generated images are, by name: see metrics/registry.py.

`evaluate_branches(names, task, branches)` computes metrics, offline (calc_metrics.py) and in a training loop alike;
`results.keep_best` writes what a loop found and keeps the best snapshot.
"""

# Modules that register metrics, in the order in which help texts and tables list them.
from metrics import frechet_distance, kernel_distance, precision_recall, inception_score, sliced_wasserstein  # noqa: F401, I001
from metrics.consistency import evaluation as _consistency  # noqa: F401
from metrics.evaluation import evaluate, evaluate_branches
from metrics.image_quality import needs_detector
from metrics.registry import Task

__all__ = ['Task', 'evaluate', 'evaluate_branches', 'needs_detector']
