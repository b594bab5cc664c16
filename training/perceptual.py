"""The imitation losses by name, and LPIPS with weights that are found before training starts."""

import os
import warnings
from pathlib import Path

import torch

from dnnlib.errors import UserError
from training.losses import pyramid_distance

VGG_FILE = 'vgg16-397923af.pth'  # torchvision's file name, which ends in the hash of its contents
VGG_URL = f'https://download.pytorch.org/models/{VGG_FILE}'


class WeightsError(UserError):
    """Pretrained weights that could not be had."""


def cached_vgg():
    """Where torch keeps downloaded weights of VGG-16."""
    return Path(torch.hub.get_dir()) / 'checkpoints' / VGG_FILE


def find_vgg_weights(option=None):
    """The file with torchvision's VGG-16 weights: `option`, else torch's cache, else a download into it.

    Raises WeightsError naming the file and the place where it is looked for.
    """
    if option is not None:
        if not os.path.isfile(option):
            raise WeightsError(f'--lpips-weights={option}: no such file; it should be torchvision\'s {VGG_FILE}')
        return Path(option)
    cached = cached_vgg()
    if not cached.is_file():
        _download(cached)
    return cached


def _download(target):
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        torch.hub.download_url_to_file(VGG_URL, str(target), hash_prefix=VGG_FILE[-12:-4], progress=True)
    except Exception as error:  # network failures come as many types
        raise WeightsError(f'LPIPS needs {VGG_FILE}, which is not at {target} and could not be downloaded from {VGG_URL} '
                           f'({error}). Put it there, name it with --lpips-weights=FILE, or train with '
                           '--imitation=pyramid') from None


def load_lpips(weights, device):
    """LPIPS (VGG) as a function (x, target) -> [N], images [N, 3, H, W] in [-1, 1]; gradients reach x only."""
    import lpips  # imports torchvision's models: slow, and not needed by every script

    with warnings.catch_warnings():  # lpips names torchvision's weights in an old way
        warnings.simplefilter('ignore', UserWarning)
        model = lpips.LPIPS(net='vgg', pnet_rand=True, verbose=False)
    try:
        state = torch.load(weights, map_location='cpu', weights_only=True)
        convolutions = {name: value for name, value in state.items() if name.startswith('features.')}
        _fill_vgg(model.net, convolutions)
    except Exception as error:  # any unreadable or unfitting file
        raise WeightsError(f'{weights} is not torchvision\'s {VGG_FILE}: {error}') from None
    model = model.eval().requires_grad_(False).to(device)
    return lambda x, target: model(x, target).flatten()


def _fill_vgg(net, convolutions):
    """Copy torchvision's `features.<i>` tensors into lpips's slices, which keep the same numbers."""
    own = {}
    for name, parameter in net.named_parameters():
        _, index, kind = name.split('.')
        own[f'features.{index}.{kind}'] = parameter
    missing = sorted(set(own) - set(convolutions))
    if missing:
        raise KeyError(f'missing {missing[0]}')
    with torch.no_grad():
        for name, parameter in own.items():
            parameter.copy_(convolutions[name])


def build_imitation(name, vgg_weights, device):
    """The imitation loss (patch, target) -> [N] of a LossConfig's name, or None for 'none'."""
    if name == 'lpips':
        return load_lpips(vgg_weights, device)
    return {'pyramid': pyramid_distance, 'none': None}[name]
