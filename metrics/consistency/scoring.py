"""How alike two sets of pictures are: PSNR and SSIM, per view."""

import numpy as np
import torch
from skimage.metrics import structural_similarity

from dnnlib.errors import UserError

# Those of the paper that introduced SSIM (Wang et al. 2004): an 11 x 11 Gaussian window, population covariances.
SSIM_SETTINGS = {'gaussian_weights': True, 'sigma': 1.5, 'use_sample_covariance': False, 'data_range': 1.0}
SSIM_WINDOW = 11
_SMALLEST_ERROR = 1e-10  # of PSNR: 100 dB for equal pictures


def psnr(images, references):
    """Peak signal-to-noise ratio [V], dB, of images [V, ...] in [0, 1]; 100 dB at most."""
    error = (images - references).double().square().flatten(1).mean(dim=1)
    return -10 * error.clamp(min=_SMALLEST_ERROR).log10()


def check_window(size):
    """Raises UserError for images of `size` (height, width) that are smaller than SSIM's window."""
    if min(size) < SSIM_WINDOW:
        raise UserError(
            f'images of {size[1]}x{size[0]} pixels are smaller than the window of SSIM ({SSIM_WINDOW}): use larger ones'
        )


def ssim(images, references):
    """Structural similarity [V] of images [V, H, W, 3] in [0, 1]: scikit-image's, with SSIM_SETTINGS, mean over channels.

    Raises UserError for images smaller than its window.
    """
    check_window(images.shape[1:3])
    pairs = zip(images.double().cpu().numpy(), references.double().cpu().numpy())
    return torch.from_numpy(np.array([structural_similarity(*pair, channel_axis=2, **SSIM_SETTINGS) for pair in pairs]))
