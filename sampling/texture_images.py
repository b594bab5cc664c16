"""Spatio-temporal texture images: one line of pixels, stacked over a smooth move of the camera (docs/method.md, section 7).

A point of a rigid scene draws a straight, tilted stripe; texture that sticks to the image or flickers does not.
"""

import numpy as np
from scipy.ndimage import gaussian_filter

WINDOW = 3.0  # pixels and frames: standard deviation of the neighbourhood whose stripes are measured
_SMOOTHING = 1.0  # standard deviation of the blur before differences are taken: 8-bit steps are no texture


def straightness(image):
    """How straight the stripes of a texture image [C, T, W] are, from 0 (no direction) to 1 (all straight).

    The coherence (a - b) / (a + b) of the structure tensor's eigenvalues a >= b in windows of WINDOW, averaged with the
    texture's strength a + b as weights (Bigün and Granlund 1987). Not a number where there is no texture at all.
    """
    image = _blur(image.float().numpy(), _SMOOTHING)
    along_time, along_line = np.gradient(image, axis=(1, 2))
    line, time, mixed = _blur(np.stack([along_line**2, along_time**2, along_line * along_time]).sum(axis=1), WINDOW)
    difference = np.sqrt((line - time) ** 2 + 4 * mixed**2)
    with np.errstate(invalid='ignore'):
        return float(difference.sum() / (line + time).sum())


def _blur(images, sigma):
    """images [C, H, W], blurred by a Gaussian with mirrored borders."""
    return gaussian_filter(images, (0, sigma, sigma), mode='mirror', truncate=3)
