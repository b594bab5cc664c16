"""Metrics of features of the Inception network (metrics/detector.py).

fid<N>_full, fid<N>   Frechet Inception distance (Heusel et al. 2017); fid3d<N>_full: with a fixed conditioning camera
kid<N>_full, kid<N>   kernel Inception distance (Binkowski et al. 2018)
pr<N>3_full           improved precision and recall (Kynkaanniemi et al. 2019)
is<N>                 Inception score (Salimans et al. 2016)

The formulas of all but the first are torch-fidelity's, which is imported where it is needed, since that takes seconds.
"""

import warnings

import numpy as np
import scipy.linalg
import torch

from metrics.detector import FEATURES, LOGITS
from metrics.image_quality import ALL, SAME, ImageMetric, register_numbered
from metrics.images import FRONTAL
from metrics.statistics import Statistic
from torch_utils import distributed

KID_SUBSETS, KID_SUBSET_SIZE = 100, 1000  # torch-fidelity's defaults, and those of the Inception score
SPLITS, SHUFFLE_SEED = 10, 2020
NEIGHBOURHOOD = 3  # of precision and recall: the radius of a sample's ball is the distance to its third neighbour
DISTANCE_ROWS = 10000  # of the matrix of distances between samples, at once


class FeatureMoments:
    """Count, mean [C] and unbiased covariance [C, C], float64: what a Frechet distance needs, at constant memory."""

    def __init__(self, count, size, device):
        self.count = count
        self.total = torch.zeros(size, dtype=torch.float64, device=device)
        self.products = torch.zeros(size, size, dtype=torch.float64, device=device)

    def add(self, numbers, features):
        x = features.double()
        self.total += x.sum(dim=0)
        self.products.addmm_(x.T, x)

    def finish(self):
        mean = distributed.total(self.total) / self.count
        scatter = distributed.total(self.products) - self.count * torch.outer(mean, mean)
        covariance = scatter / (self.count - 1)
        return {'count': np.array(self.count), 'mean': mean.cpu().numpy(), 'covariance': covariance.cpu().numpy()}


class FeatureList:
    """The features themselves, float32 [count, C], in the order of the images."""

    def __init__(self, count, size, device):
        self.features = torch.zeros(count, size, device=device)

    def add(self, numbers, features):
        self.features[numbers.start : numbers.stop] = features

    def finish(self):
        return {'features': distributed.total(self.features).cpu().numpy()}  # rows of other processes are zero


class FrechetDistance(ImageMetric):
    statistic = Statistic(FeatureMoments, FEATURES)

    def compare(self, evaluated, real, task):
        width = len(real['mean'])
        singular = bool(min(evaluated['count'], real['count']) <= width)
        if singular:
            warnings.warn(
                f'{width} images or fewer give singular covariances: such a FID is biased upwards, and '
                'only compares with others of the same number of images',
                stacklevel=2,
            )
        value = frechet_distance(evaluated['mean'], evaluated['covariance'], real['mean'], real['covariance'])
        return value, {}, {'singular_covariance': singular}


class FrechetDistance3D(FrechetDistance):
    """CGS-GAN's FID3D (docs/method.md, section 7): a generator that hides the camera in what the mapping network makes of it, so
    that its subjects differ from view to view, does worse than in FID."""

    rendering = FRONTAL


def frechet_distance(mean1, covariance1, mean2, covariance2):
    """|mean1 - mean2|^2 + trace(covariance1 + covariance2 - 2 (covariance1 covariance2)^(1/2)), float64 arrays.

    The trace of the root is that of (A covariance2 A)^(1/2) with A = covariance1^(1/2): symmetric, so that its eigenvalues
    are real and, unlike those of the product, exact to rounding even where covariances are singular.
    """
    values, vectors = scipy.linalg.eigh(covariance1)
    root = (vectors * np.sqrt(values.clip(min=0))) @ vectors.T
    eigenvalues = scipy.linalg.eigvalsh(root @ covariance2 @ root)
    trace_of_root = np.sqrt(eigenvalues.clip(min=0)).sum()
    return float(np.square(mean1 - mean2).sum() + np.trace(covariance1) + np.trace(covariance2) - 2 * trace_of_root)


class KernelDistance(ImageMetric):
    statistic = Statistic(FeatureList, FEATURES)

    def compare(self, evaluated, real, task):
        from torch_fidelity.metric_kid import KEY_METRIC_KID_MEAN, KEY_METRIC_KID_STD, kid_features_to_metric

        first, second = torch.from_numpy(evaluated['features']), torch.from_numpy(real['features'])
        size = min(KID_SUBSET_SIZE, len(first), len(second))
        found = kid_features_to_metric(
            first, second, kid_subsets=KID_SUBSETS, kid_subset_size=size, rng_seed=SHUFFLE_SEED, verbose=False
        )
        protocol = {'subsets': KID_SUBSETS, 'subset_size': size, 'subset_seed': SHUFFLE_SEED, 'kernel': '(x y / C + 1)^3'}
        return found[KEY_METRIC_KID_MEAN], {'std': found[KEY_METRIC_KID_STD]}, protocol


class PrecisionRecall(ImageMetric):
    """The value is the F-score; precision and recall are parts."""

    statistic = Statistic(FeatureList, FEATURES)
    least = NEIGHBOURHOOD + 1

    def compare(self, evaluated, real, task):
        from torch_fidelity.metric_prc import KEY_METRIC_F_SCORE, KEY_METRIC_PRECISION, KEY_METRIC_RECALL, prc_features_to_metric

        features = (torch.from_numpy(found['features']).to(task.device) for found in (evaluated, real))
        found = prc_features_to_metric(
            *features, prc_neighborhood=NEIGHBOURHOOD, prc_batch_size=DISTANCE_ROWS, save_cpu_ram=True, verbose=False
        )
        parts = {'precision': found[KEY_METRIC_PRECISION], 'recall': found[KEY_METRIC_RECALL]}
        return found[KEY_METRIC_F_SCORE], parts, {'neighbourhood': NEIGHBOURHOOD}


class InceptionScore(ImageMetric):
    statistic = Statistic(FeatureList, LOGITS)
    least = SPLITS

    def compare(self, evaluated, real, task):
        from torch_fidelity.metric_isc import KEY_METRIC_ISC_MEAN, KEY_METRIC_ISC_STD, isc_features_to_metric

        found = isc_features_to_metric(
            torch.from_numpy(evaluated['features']), splits=SPLITS, shuffle=True, rng_seed=SHUFFLE_SEED
        )
        return found[KEY_METRIC_ISC_MEAN], {'std': found[KEY_METRIC_ISC_STD]}, {'splits': SPLITS, 'shuffle_seed': SHUFFLE_SEED}


register_numbered('fid<N>_full', FrechetDistance, ALL, 'Frechet distance of N generated images to all real ones.')
register_numbered('fid<N>', FrechetDistance, SAME, 'Frechet distance of N generated images to N real ones.')
register_numbered('fid3d<N>_full', FrechetDistance3D, ALL, 'As fid<N>_full, but the frontal camera conditions all images.')
register_numbered('kid<N>_full', KernelDistance, ALL, 'Kernel distance of N generated images to all real ones.')
register_numbered('kid<N>', KernelDistance, SAME, 'Kernel distance of N generated images to N real ones.')
register_numbered(
    'pr<N>3_full', PrecisionRecall, ALL, 'Precision and recall of N generated images and all real ones, 3 neighbours.', True
)
register_numbered('is<N>', InceptionScore, None, 'Inception score of N generated images.', True)
