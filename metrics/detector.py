"""The feature detector: the Inception-v3 of the original TensorFlow FID, as torch-fidelity converted it."""

import functools
import hashlib
import io
from pathlib import Path

import torch

from dnnlib.errors import UserError
from torch_utils import distributed

NAME = 'inception-v3-compat'  # torch-fidelity's name for it
FEATURES, LOGITS = '2048', 'logits_unbiased'  # its names for the pooled features [N, 2048] and for the logits [N, 1008]
WIDTHS = {FEATURES: 2048, LOGITS: 1008}


class DetectorError(UserError):
    """Detector weights that could not be had, or that are none."""


def weights_url():
    from torch_fidelity.feature_extractor_inceptionv3 import URL_INCEPTION_V3  # the import takes seconds
    return URL_INCEPTION_V3


def cached_weights():
    """Where torch-fidelity keeps its download."""
    return Path(torch.hub.get_dir()) / 'checkpoints' / Path(weights_url()).name


def find_weights(option=None):
    """(file, SHA-256) of the weights: `option`, else torch-fidelity's cache, else its download into the cache.

    Files of the cache are checked by the hash in their name; `option` may be any weights of this network. Every process
    must call it; the first one looks and downloads. Raises DetectorError on all of them.
    """
    return distributed.from_first(functools.partial(_find, option))


def _find(option):
    if option is not None:
        if not Path(option).is_file():
            raise DetectorError(f'--detector={option}: no such file; it should be torch-fidelity\'s {Path(weights_url()).name}')
        return str(option), _sha256(option)
    path = cached_weights()
    if not path.is_file():
        _download(path)
    digest = _sha256(path)
    if not digest.startswith(_expected_hash()):
        raise DetectorError(f'{path} is damaged (its SHA-256 is {digest[:8]}..., not {_expected_hash()}...): delete it, or name '
                            'another file with --detector=FILE')
    return str(path), digest


def _expected_hash():
    """The first digits of the SHA-256, which end the file's name."""
    return Path(weights_url()).stem.rsplit('-', 1)[1]


def _sha256(path):
    digest = hashlib.sha256()
    with open(path, 'rb') as file:
        while block := file.read(2**20):
            digest.update(block)
    return digest.hexdigest()


def _download(path):
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        torch.hub.download_url_to_file(weights_url(), str(path), hash_prefix=_expected_hash(), progress=True)
    except Exception as error:  # network failures come as many types
        raise DetectorError(f'the Inception weights {path.name} are not at {path} and could not be downloaded from '
                            f'{weights_url()} ({error}). Put them there, or name them with --detector=FILE; '
                            '--metrics=swd needs none') from None


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
    """Raises DetectorError unless a file holds weights of the detector. Takes two seconds or so."""
    _load(weights, (FEATURES,))


def _load(weights, layers):
    """torch-fidelity's network with weights from a file, which is opened as plain data."""
    from torch_fidelity.feature_extractor_inceptionv3 import FeatureExtractorInceptionV3

    checked = io.BytesIO()  # torch-fidelity unpickles what it is given without restriction, so it gets our own copy
    try:
        torch.save(torch.load(weights, map_location='cpu', weights_only=True), checked)
        checked.seek(0)
        return FeatureExtractorInceptionV3(NAME, list(layers), feature_extractor_weights_path=checked)
    except Exception as error:  # any unreadable or unfitting file
        first_line = (str(error).strip().splitlines() or [type(error).__name__])[0]
        raise DetectorError(f'{weights} holds no weights of torch-fidelity\'s Inception: {first_line[:200]}') from None
