"""Lenses that bend straight lines: OpenCV's perspective model, k1, k2, k3 (radial) and p1, p2 (tangential)."""

import numpy as np
import scipy.ndimage
from PIL import Image

_FOLD_GRID = 65  # points per side of the frame that folds are looked for at


def undistort(image, intrinsics, distortion):
    """The image that a camera without lens distortion would have taken.

    image: Pillow image, RGB; intrinsics: [3, 3], normalised; distortion: OpenCV's (k1, k2, p1, p2, k3).
    """
    pixels = np.asarray(image, dtype=np.float32)
    height, width = pixels.shape[:2]
    column, row = np.meshgrid((np.arange(width) + 0.5) / width, (np.arange(height) + 0.5) / height)
    source_x, source_y = _seen_at(column, row, intrinsics, distortion)
    source = [source_y * height - 0.5, source_x * width - 0.5]
    channels = [scipy.ndimage.map_coordinates(channel, source, order=1, mode='nearest') for channel in pixels.transpose(2, 0, 1)]
    return Image.fromarray((np.stack(channels, axis=-1) + 0.5).astype(np.uint8))


def folds(intrinsics, distortion):
    """Whether a lens shows some direction within the frame twice: its parameters then hold for a part of the frame only."""
    edge = np.linspace(0, 1, _FOLD_GRID)
    with np.errstate(all='ignore'):  # of parameters that no lens has
        seen = np.stack(_seen_at(*np.meshgrid(edge, edge), intrinsics, distortion))
        down, right = np.gradient(seen, axis=1), np.gradient(seen, axis=2)
        return not (right[0] * down[1] - right[1] * down[0] > 0).all()


def _seen_at(column, row, intrinsics, distortion):
    """Where the lens shows what a lens without distortion shows at (column, row); all in image sizes."""
    k1, k2, p1, p2, k3 = distortion
    y = (row - intrinsics[1, 2]) / intrinsics[1, 1]
    x = (column - intrinsics[0, 2] - intrinsics[0, 1] * y) / intrinsics[0, 0]
    square = x * x + y * y
    radial = 1 + square * (k1 + square * (k2 + square * k3))
    bent_x = x * radial + 2 * p1 * x * y + p2 * (square + 2 * x * x)
    bent_y = y * radial + p1 * (square + 2 * y * y) + 2 * p2 * x * y
    return (
        bent_x * intrinsics[0, 0] + bent_y * intrinsics[0, 1] + intrinsics[0, 2],
        bent_y * intrinsics[1, 1] + intrinsics[1, 2],
    )
