"""fid<N>_full, fid<N>: Frechet Inception distance (Heusel et al. 2017); fid3d<N>_full: with a fixed conditioning camera."""

import warnings

import numpy as np
import scipy.linalg

from metrics.detector import FEATURES, WIDTHS
from metrics.image_quality import ALL, COUNT, GROUP, ImageMetric, image_count
from metrics.images import FRONTAL
from metrics.registry import register
from metrics.statistics import FeatureMoments


class FrechetDistance(ImageMetric):
    statistic = FeatureMoments(FEATURES)

    def compare(self, evaluated, real, task):
        width = WIDTHS[self.statistic.layer]
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


register(
    'fid<N>_full',
    GROUP,
    'Frechet distance of N generated images to all real ones.',
    pattern=f'fid{COUNT}_full',
    build=lambda match: FrechetDistance(match[0], image_count(match), ALL),
)
register(
    'fid<N>',
    GROUP,
    'Frechet distance of N generated images to N real ones.',
    pattern=f'fid{COUNT}',
    build=lambda match: FrechetDistance(match[0], image_count(match), image_count(match)),
)
register(
    'fid3d<N>_full',
    GROUP,
    'As fid<N>_full, but the frontal camera conditions all images.',
    pattern=f'fid3d{COUNT}_full',
    build=lambda match: FrechetDistance3D(match[0], image_count(match), ALL),
)
