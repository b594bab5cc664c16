"""Pictures of reconstructions: a strip per subject, a page per run."""

import torch
from PIL import Image

from torch_utils.images import tile, to_pil

DIFFERENCE_GAIN = 5  # the difference is shown so many times brighter


def strip(view, rendered, normal):
    """One row of the page: the given view, NeuS's view, their difference (5 times brighter), the normals.

    view, rendered: [H, W, 3] in [0, 1]; normal: [H, W, 3] in [-1, 1], world axes. Returns a PIL image.
    """
    difference = ((view - rendered).abs() * DIFFERENCE_GAIN).clamp(max=1)
    cells = torch.stack([view, rendered, difference, (normal + 1) / 2])
    return to_pil(tile((cells.permute(0, 3, 1, 2) * 255).round().to(torch.uint8), columns=4))


def page(strips):
    """One PIL image of strips (PIL images), one below the other."""
    whole = Image.new('RGB', (max(image.width for image in strips), sum(image.height for image in strips)), 'white')
    top = 0
    for image in strips:
        whole.paste(image, (0, top))
        top += image.height
    return whole
