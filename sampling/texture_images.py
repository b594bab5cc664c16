"""Spatio-temporal texture images: one line of pixels, stacked over a smooth move of the camera (docs/method.md, section 7).

A point of a rigid scene draws a straight, tilted stripe; texture that sticks to the image or flickers does not.
"""

import torch
import torch.nn.functional as F

WINDOW = 3.0  # pixels and frames: standard deviation of the neighbourhood whose stripes are measured
_SMOOTHING = 1.0  # standard deviation of the blur before differences are taken: 8-bit steps are no texture


def texture_image(frames, line):
    """The image [C, T, W] of frames [T, C, H, W] whose row t is row `line` of frame t, line: share of the height, [0, 1)."""
    return frames[:, :, int(line * frames.shape[2])].transpose(0, 1)


def straightness(image):
    """How straight the stripes of a texture image [C, T, W] are, from 0 (no direction) to 1 (all straight).

    The coherence (a - b) / (a + b) of the structure tensor's eigenvalues a >= b in windows of WINDOW, averaged with the
    texture's strength a + b as weights (Bigün and Granlund 1987). Not a number where there is no texture at all.
    """
    image = _blur(image.float(), _SMOOTHING)
    along_time, along_line = torch.gradient(image, dim=(1, 2))
    products = torch.stack([along_line.square(), along_time.square(), along_line * along_time]).sum(dim=1)
    line, time, mixed = _blur(products, WINDOW)
    strength = line + time
    difference = torch.sqrt((line - time).square() + 4 * mixed.square())
    return (difference.sum() / strength.sum()).item()


def _blur(images, sigma):
    """images [C, H, W], blurred by a Gaussian with mirrored borders (as far as there is something to mirror)."""
    for dim in (1, 2):
        reach = min(round(3 * sigma), images.shape[dim] - 1)
        kernel = torch.exp(-(torch.arange(-reach, reach + 1) / sigma).square() / 2).to(images)
        moved = F.pad(images.movedim(dim, -1), (reach, reach), mode='reflect')
        shape = moved.shape[:-1]
        blurred = F.conv1d(moved.reshape(-1, 1, moved.shape[-1]), (kernel / kernel.sum())[None, None])
        images = blurred.reshape(*shape, -1).movedim(-1, dim)
    return images
