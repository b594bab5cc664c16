"""What is kept of a set of images while it streams by: feature moments, features, or patches.

A statistic says what is kept; `start(count, resolution, device)` gives an empty collector for `count` images, with
  add(numbers, images, features)   for a batch: a range of image numbers, uint8 [n, 3, R, R], {layer: float32 [n, C]}
  finish()                         over all processes: a dictionary of arrays, the same everywhere
`layer`: of the detector's features, or None where it works on the images themselves; `cacheable`: whether results are
small enough to be kept on disk.
"""

from dataclasses import dataclass

import numpy as np
import torch

from metrics.detector import WIDTHS
from torch_utils import distributed


@dataclass(frozen=True)
class FeatureMoments:
    """Count, mean [C] and unbiased covariance [C, C], float64: what a Frechet distance needs, at constant memory."""

    layer: str
    cacheable = True

    def start(self, count, resolution, device):
        return _MomentCollector(self.layer, count, device)


class _MomentCollector:
    def __init__(self, layer, count, device):
        self.layer, self.count = layer, count
        self.total = torch.zeros(WIDTHS[layer], dtype=torch.float64, device=device)
        self.products = torch.zeros(WIDTHS[layer], WIDTHS[layer], dtype=torch.float64, device=device)

    def add(self, numbers, images, features):
        x = features[self.layer].double()
        self.total += x.sum(dim=0)
        self.products.addmm_(x.T, x)

    def finish(self):
        mean = distributed.total(self.total) / self.count
        scatter = distributed.total(self.products) - self.count * torch.outer(mean, mean)
        covariance = scatter / (self.count - 1)
        return {'count': np.array(self.count), 'mean': mean.cpu().numpy(), 'covariance': covariance.cpu().numpy()}


@dataclass(frozen=True)
class FeatureList:
    """The features themselves, float32 [count, C], in the order of the images."""

    layer: str
    cacheable = True

    def start(self, count, resolution, device):
        return _FeatureCollector(self.layer, count, device)


class _FeatureCollector:
    def __init__(self, layer, count, device):
        self.layer = layer
        self.features = torch.zeros(count, WIDTHS[layer], device=device)

    def add(self, numbers, images, features):
        self.features[numbers.start : numbers.stop] = features[self.layer]

    def finish(self):
        return {'features': distributed.total(self.features).cpu().numpy()}  # rows of other processes are zero
