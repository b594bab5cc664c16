"""How alike views and their re-renders are: PSNR and SSIM per view, and a strip of pictures to look at."""

import numpy as np
import torch
from skimage.metrics import structural_similarity

from dnnlib.errors import UserError
from torch_utils.images import tile, to_pil

# Those of the paper that introduced SSIM (Wang et al. 2004): an 11 x 11 Gaussian window, population covariances.
SSIM_SETTINGS = {'gaussian_weights': True, 'sigma': 1.5, 'use_sample_covariance': False, 'data_range': 1.0}
SSIM_WINDOW = 11
DIFFERENCE_GAIN = 5  # the difference is shown so many times brighter
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


def score_views(reconstruction, views):
    """Scores of a reconstruction at the cameras of `views`: a record (plain data), and a strip of pictures of one view."""
    rgb, normal = (x.cpu() for x in reconstruction.render(views.labels, views.size))
    given = views.images.float() / 255
    per_view = {'psnr_views': psnr(rgb, given), 'ssim_views': ssim(rgb, given)}
    shown = len(views) // 4  # neither frontal nor at the end of the range
    record = {
        'psnr': per_view['psnr_views'].mean().item(),
        'ssim': per_view['ssim_views'].mean().item(),
        **{name: [round(value, 5) for value in values.tolist()] for name, values in per_view.items()},
    }
    return record, picture_strip(given[shown], rgb[shown], normal[shown])


def picture_strip(view, rendered, normal):
    """One row of the page: the given view, NeuS's view, their difference (5 times brighter), the normals.

    view, rendered: [H, W, 3] in [0, 1]; normal: [H, W, 3] in [-1, 1], world axes. Returns a PIL image.
    """
    difference = ((view - rendered).abs() * DIFFERENCE_GAIN).clamp(max=1)
    cells = torch.stack([view, rendered, difference, (normal + 1) / 2])
    return to_pil(tile((cells.permute(0, 3, 1, 2) * 255).round().to(torch.uint8), columns=4))
