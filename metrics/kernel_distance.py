"""kid<N>_full, kid<N>: kernel Inception distance (Binkowski et al. 2018), torch-fidelity's formula."""

import torch

from metrics.detector import FEATURES
from metrics.image_quality import ALL, COUNT, GROUP, ImageMetric, image_count
from metrics.registry import register
from metrics.statistics import FeatureList

SUBSETS, SUBSET_SIZE, SUBSET_SEED = 100, 1000, 2020  # torch-fidelity's defaults


class KernelDistance(ImageMetric):
    statistic = FeatureList(FEATURES)

    def compare(self, evaluated, real, task):
        from torch_fidelity.metric_kid import KEY_METRIC_KID_MEAN, KEY_METRIC_KID_STD, kid_features_to_metric

        first, second = torch.from_numpy(evaluated['features']), torch.from_numpy(real['features'])
        size = min(SUBSET_SIZE, len(first), len(second))
        found = kid_features_to_metric(
            first, second, kid_subsets=SUBSETS, kid_subset_size=size, rng_seed=SUBSET_SEED, verbose=False
        )
        protocol = {'subsets': SUBSETS, 'subset_size': size, 'subset_seed': SUBSET_SEED, 'kernel': '(x y / C + 1)^3'}
        return found[KEY_METRIC_KID_MEAN], {'std': found[KEY_METRIC_KID_STD]}, protocol


register(
    'kid<N>_full',
    GROUP,
    'Kernel distance of N generated images to all real ones.',
    pattern=f'kid{COUNT}_full',
    build=lambda match: KernelDistance(match[0], image_count(match), ALL),
)
register(
    'kid<N>',
    GROUP,
    'Kernel distance of N generated images to N real ones.',
    pattern=f'kid{COUNT}',
    build=lambda match: KernelDistance(match[0], image_count(match), image_count(match)),
)
