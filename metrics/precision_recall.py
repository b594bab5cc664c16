"""pr<N>3_full: improved precision and recall (Kynkaanniemi et al. 2019), torch-fidelity's formula, on Inception features."""

import torch

from metrics.detector import FEATURES
from metrics.image_quality import ALL, COUNT, GROUP, ImageMetric, image_count
from metrics.registry import register
from metrics.statistics import FeatureList

NEIGHBOURHOOD = 3  # the radius of a sample's ball is the distance to its third neighbour
ROWS = 10000  # of the distance matrix at once


class PrecisionRecall(ImageMetric):
    """The value is the F-score; precision and recall are parts."""

    statistic = FeatureList(FEATURES)
    least = NEIGHBOURHOOD + 1

    def compare(self, evaluated, real, task):
        from torch_fidelity.metric_prc import KEY_METRIC_F_SCORE, KEY_METRIC_PRECISION, KEY_METRIC_RECALL, prc_features_to_metric

        features = (torch.from_numpy(found['features']).to(task.device) for found in (evaluated, real))
        found = prc_features_to_metric(
            *features, prc_neighborhood=NEIGHBOURHOOD, prc_batch_size=ROWS, save_cpu_ram=True, verbose=False
        )
        parts = {'precision': found[KEY_METRIC_PRECISION], 'recall': found[KEY_METRIC_RECALL]}
        return found[KEY_METRIC_F_SCORE], parts, {'neighbourhood': NEIGHBOURHOOD}


register(
    'pr<N>3_full',
    GROUP,
    'Precision and recall of N generated images and all real ones, 3 neighbours.',
    higher_is_better=True,
    pattern=f'pr{COUNT}3_full',
    build=lambda match: PrecisionRecall(match[0], image_count(match), ALL),
)
