"""The imitation losses by name, and LPIPS with weights that are found before training starts."""

import warnings

import torch

from torch_utils import pretrained
from torch_utils.pretrained import WeightsError
from training.losses import pyramid_distance

VGG_URL = 'https://download.pytorch.org/models/vgg16-397923af.pth'
VGG = "torchvision's VGG-16"


def find_vgg_weights(option=None):
    """The file with torchvision's VGG-16 weights: `option`, else torch's cache, else a download into it. Raises WeightsError."""
    return pretrained.find_weights(VGG_URL, option, '--lpips-weights', 'train with --imitation=pyramid')


def load_lpips(weights, device):
    """LPIPS (VGG) as a function (x, target) -> [N], images [N, 3, H, W] in [-1, 1]; gradients reach x only.

    weights: a file with torchvision's VGG-16. Raises WeightsError for any other.
    """
    import lpips  # imports torchvision's models: slow, and not needed by every script

    with warnings.catch_warnings():  # lpips names torchvision's weights in an old way
        warnings.simplefilter('ignore', UserWarning)
        model = lpips.LPIPS(net='vgg', pnet_rand=True, verbose=False)
    problem = _fill_vgg(model.net, pretrained.read_weights(weights, VGG))
    if problem:
        raise WeightsError(f'{weights} holds no weights of {VGG}: {problem}')
    model = model.eval().requires_grad_(False).to(device)
    return lambda x, target: model(x, target).flatten()


@torch.no_grad()
def _fill_vgg(net, weights):
    """Copy torchvision's `features.<i>` tensors into lpips's slices, which keep their numbers. Returns what is wrong, or None."""
    for name, parameter in net.named_parameters():
        _, index, kind = name.split('.')
        given = weights.get(f'features.{index}.{kind}')
        if given is None:
            return f'it lacks features.{index}.{kind}'
        if given.shape != parameter.shape:
            return f'features.{index}.{kind} measures {list(given.shape)}, not {list(parameter.shape)}'
        if not given.isfinite().all():
            return f'features.{index}.{kind} is not finite'
        parameter.copy_(given)


def build_imitation(name, vgg_weights, device):
    """The imitation loss (patch, target) -> [N] of a LossConfig's name, or None for 'none'."""
    if name == 'lpips':
        return load_lpips(vgg_weights, device)
    return {'pyramid': pyramid_distance, 'none': None}[name]
