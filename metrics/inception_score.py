"""is<N>: Inception score (Salimans et al. 2016), torch-fidelity's formula."""

import torch

from metrics.detector import LOGITS
from metrics.image_quality import COUNT, GROUP, ImageMetric, image_count
from metrics.registry import register
from metrics.statistics import FeatureList

SPLITS, SHUFFLE_SEED = 10, 2020  # torch-fidelity's defaults


class InceptionScore(ImageMetric):
    statistic = FeatureList(LOGITS)
    least = SPLITS

    def compare(self, evaluated, real, task):
        from torch_fidelity.metric_isc import KEY_METRIC_ISC_MEAN, KEY_METRIC_ISC_STD, isc_features_to_metric

        found = isc_features_to_metric(
            torch.from_numpy(evaluated['features']), splits=SPLITS, shuffle=True, rng_seed=SHUFFLE_SEED
        )
        return found[KEY_METRIC_ISC_MEAN], {'std': found[KEY_METRIC_ISC_STD]}, {'splits': SPLITS, 'shuffle_seed': SHUFFLE_SEED}


register(
    'is<N>',
    GROUP,
    'Inception score of N generated images.',
    higher_is_better=True,
    pattern=f'is{COUNT}',
    build=lambda match: InceptionScore(match[0], image_count(match), None),
)
