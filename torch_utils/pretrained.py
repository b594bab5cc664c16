"""Weights that others have published: a file that the user names, else torch's cache, else a download into it."""

import os
from pathlib import Path

import torch

from dnnlib.errors import UserError
from dnnlib.files import cache_path


class WeightsError(UserError):
    """Published weights that could not be had, or a file that holds none."""


def find_weights(url, option, flag, otherwise):
    """The Path of a file of weights: `option`, else what `url` names, in torch's cache or by a download into it.

    The name of the file ends in the first digits of its SHA-256. flag, otherwise: for the message, how users name the file, and
    what they can do without it. Raises WeightsError.
    """
    name = url.rsplit('/', 1)[1]
    if option is not None:
        if not os.path.isfile(option):
            raise WeightsError(f'{flag}={option}: no such file; it should be {name} of {url}')
        return Path(option)
    path = cache_path(name, os.path.join(torch.hub.get_dir(), 'checkpoints'))
    if path.is_file():
        return path
    try:
        torch.hub.download_url_to_file(url, str(path), hash_prefix=hash_in_name(path), progress=True)
    except Exception as error:  # network failures come as many types
        raise WeightsError(
            f'{path.name} is not at {path} and could not be downloaded from {url} ({error}). Put it there, name it '
            f'with {flag}=FILE, or {otherwise}'
        ) from None
    return path


def hash_in_name(path):
    """The first digits of the SHA-256 of a published file, which end its name."""
    return Path(path).stem.rsplit('-', 1)[1]


def read_weights(path, whose):
    """{name: tensor} of a file, which is opened as plain data. whose: for the message. Raises WeightsError."""
    try:
        weights = torch.load(path, map_location='cpu', weights_only=True)
    except Exception:  # a wrong file fails in many ways, and torch's advice would be to trust it
        raise WeightsError(
            f'{path} holds no weights of {whose}: it cannot be opened, or holds other things than weights'
        ) from None
    if not isinstance(weights, dict) or not all(isinstance(value, torch.Tensor) for value in weights.values()):
        raise WeightsError(f'{path} holds no weights of {whose}, but something else')
    return weights
