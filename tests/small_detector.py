"""A detector small enough for tests, for metrics and for torch-fidelity alike, and images to try it on."""

import numpy as np
import torch
from PIL import Image
from torch_fidelity.feature_extractor_base import FeatureExtractorBase

from metrics import detector
from torch_utils.random import keyed_generator

WIDTHS = {detector.FEATURES: 12, detector.LOGITS: 6}


class SmallExtractor(FeatureExtractorBase):
    """Two random layers on downsized images, in the form of torch-fidelity's extractors."""

    def __init__(self, name, features_list, **options):
        super().__init__(name, features_list)
        generator = keyed_generator((7,))
        self.first = torch.randn(WIDTHS[detector.FEATURES], 3 * 8 * 8, generator=generator) / 192**0.5
        self.second = torch.randn(WIDTHS[detector.LOGITS], WIDTHS[detector.FEATURES], generator=generator)

    def forward(self, images):
        small = torch.nn.functional.adaptive_avg_pool2d(images.float() / 127.5 - 1, 8).flatten(1)
        features = torch.relu(small @ self.first.T * 3)
        made = {detector.FEATURES: features, detector.LOGITS: features @ self.second.T}
        return tuple(made[name] for name in self.features_list)

    @staticmethod
    def get_provided_features_list():
        return tuple(WIDTHS)


def install():
    """Replace the Inception in this process. The weights' file can be any."""
    detector.WIDTHS.update(WIDTHS)
    detector._load = lambda weights, layers: SmallExtractor(detector.NAME, list(layers))


def smooth_images(count, seed, resolution=32, spread=60.0, mean=128.0):
    """Random smooth images, uint8 [count, 3, R, R]."""
    noise = torch.randn(count, 3, 6, 6, generator=keyed_generator((seed,)))
    smooth = torch.nn.functional.interpolate(noise, size=(resolution, resolution), mode='bicubic')
    return (smooth * spread + mean).clamp(0, 255).to(torch.uint8)


def write_images(folder, images):
    """PNG files 0000.png ... of images uint8 [N, 3, R, R]."""
    folder.mkdir(parents=True, exist_ok=True)
    for index, image in enumerate(images):
        Image.fromarray(np.ascontiguousarray(image.permute(1, 2, 0).numpy())).save(folder / f'{index:04d}.png')
    return folder
