"""The feature detector: the Inception-v3 of the original TensorFlow FID, as torch-fidelity converted it."""

import functools
import hashlib
import io

import torch

from dnnlib.errors import first_line
from torch_utils import distributed, pretrained

INCEPTION = "torch-fidelity's Inception"
NAME = 'inception-v3-compat'  # torch-fidelity's name for it
FEATURES, LOGITS = '2048', 'logits_unbiased'  # its names for the pooled features [N, 2048] and for the logits [N, 1008]
WIDTHS = {FEATURES: 2048, LOGITS: 1008}


def weights_url():
    from torch_fidelity.feature_extractor_inceptionv3 import URL_INCEPTION_V3  # the import takes seconds

    return URL_INCEPTION_V3


def find_weights(option=None):
    """(file, SHA-256) of the weights: `option`, else torch-fidelity's cache, else its download into the cache.

    Files of the cache are checked by the hash in their name; `option` may be any weights of this network. Every process
    must call it; the first one looks and downloads. Raises WeightsError on all of them.
    """
    return distributed.from_first(functools.partial(_find, option))


def _find(option):
    url = weights_url()
    path = pretrained.find_weights(url, option, '--detector', 'leave it to --metrics=swd, which needs none')
    expected = pretrained.hash_in_name(url)
    digest = hashlib.sha256(path.read_bytes()).hexdigest()
    if option is None and not digest.startswith(expected):
        raise pretrained.WeightsError(
            f'{path} is damaged (its SHA-256 is {digest[:8]}..., not {expected}...): delete it, or name '
            'another file with --detector=FILE'
        )
    return str(path), digest


class Detector:
    """Features of 8-bit images. weights: a file; layers: which of FEATURES and LOGITS to compute."""

    def __init__(self, weights, layers, device):
        self.layers = tuple(layers)
        self._network = _load(weights, self.layers).to(device)

    @torch.no_grad()
    def __call__(self, images):
        """images: uint8 [N, 3, H, W]. Returns {layer: float32 [N, C]}."""
        return dict(zip(self.layers, self._network(images)))


def check_weights(weights):
    """Raises WeightsError unless a file holds weights of the detector. Takes two seconds or so."""
    _load(weights, (FEATURES,))


def _load(weights, layers):
    """torch-fidelity's network with weights from a file, which is opened as plain data."""
    from torch_fidelity.feature_extractor_inceptionv3 import FeatureExtractorInceptionV3

    checked = io.BytesIO()  # torch-fidelity unpickles what it is given without restriction, so it gets our own copy
    torch.save(pretrained.read_weights(weights, INCEPTION), checked)
    checked.seek(0)
    try:
        return FeatureExtractorInceptionV3(NAME, list(layers), feature_extractor_weights_path=checked)
    except Exception as error:  # weights that do not fit
        raise pretrained.WeightsError(f'{weights} holds no weights of {INCEPTION}: {first_line(error)}') from None
