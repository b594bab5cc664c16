"""How good generated images are, by name: see metrics/registry.py.

`evaluate(names, task)` computes metrics; offline (calc_metrics.py) and in the training loop alike.
"""

# Modules that register metrics, in the order in which help texts and tables list them.
from metrics import frechet_distance, kernel_distance, precision_recall, inception_score, sliced_wasserstein  # noqa: F401
from metrics.consistency import group as _consistency  # noqa: F401
from metrics.detector import DetectorError
from metrics.evaluation import evaluate
from metrics.image_quality import needs_detector
from metrics.registry import Task

__all__ = ['DetectorError', 'Task', 'evaluate', 'needs_detector']
