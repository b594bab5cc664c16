"""Tensors to pictures: 8-bit images, grids and depth maps."""

import torch
from PIL import Image, ImageDraw, ImageFont

from dnnlib.files import replacing

_HEADING = 12  # height of letters, pixels
# Anchors of the viridis colour map, dark to bright; between them it is linear to within the eye's tolerance.
_VIRIDIS = [(68, 1, 84), (59, 82, 139), (33, 145, 140), (94, 201, 98), (253, 231, 37)]


def to_uint8(images):
    """8-bit version, clamp(x * 127.5 + 128), of images in [-1, 1]; any shape. 8-bit images pass as they are."""
    if images.dtype == torch.uint8:
        return images
    return (images.float() * 127.5 + 128).clamp(0, 255).to(torch.uint8)


def to_pil(image):
    """PIL image of one image [3, H, W] or [1, H, W], in [-1, 1] or 8-bit."""
    if image.ndim != 3 or image.shape[0] not in (1, 3):
        raise ValueError(f'an image must have shape [3, H, W] or [1, H, W], got {list(image.shape)}')
    pixels = to_uint8(image).permute(1, 2, 0).cpu().numpy()
    return Image.fromarray(pixels[:, :, 0] if pixels.shape[2] == 1 else pixels)


def save_png(image, path):
    """Write a PIL image as a PNG, whatever the path's name; whole or not at all. Raises OSError."""
    with replacing(path) as file:
        image.save(file, format='png')


def tile(images, columns):
    """One image [C, rows * H, columns * W] of images [N, C, H, W], row by row; empty cells are zero."""
    if images.ndim != 4 or len(images) == 0:
        raise ValueError(f'a grid takes at least one image, as [N, C, H, W], got {list(images.shape)}')
    count, channels, height, width = images.shape
    rows = -(-count // columns)
    padding = images.new_zeros(rows * columns - count, channels, height, width)
    cells = torch.cat([images, padding]).reshape(rows, columns, channels, height, width)
    return cells.permute(2, 0, 3, 1, 4).reshape(channels, rows * height, columns * width)


def image_grid(images, columns):
    """PIL image of images [N, 3 or 1, H, W], in [-1, 1] or 8-bit, row by row in `columns`; empty cells are black."""
    return to_pil(tile(to_uint8(images), columns))


def with_headings(picture, headings):
    """A PIL image under a white strip with headings, each at the left of as wide a part of the picture."""
    font = ImageFont.load_default(_HEADING)
    whole = Image.new('RGB', (picture.width, picture.height + 2 * _HEADING), 'white')
    whole.paste(picture, (0, 2 * _HEADING))
    for index, heading in enumerate(headings):
        position = (index * picture.width // len(headings) + 2, _HEADING // 2)
        ImageDraw.Draw(whole).text(position, heading, 'black', font)
    return whole


def depth_to_image(depth):
    """8-bit colour images [N, 3, h, w] of depth maps [N, 1, h, w]: nearer is brighter (viridis).

    Every map is stretched to its own range, so brightness compares pixels of one map and not two maps.
    Non-finite depths count as farthest; a map of one single depth is all dark.
    """
    depth = depth.float()
    finite = depth.isfinite()
    nearest = depth.where(finite, torch.inf).amin(dim=(1, 2, 3), keepdim=True)
    farthest = depth.where(finite, -torch.inf).amax(dim=(1, 2, 3), keepdim=True)
    span = (farthest - nearest).clamp(min=1e-8)
    nearness = ((farthest - depth) / span).where(finite, 0).clamp(0, 1)
    colors = torch.tensor(_VIRIDIS, dtype=torch.float32, device=depth.device)
    position = nearness[:, 0] * (len(colors) - 1)
    lower = position.long().clamp(max=len(colors) - 2)
    blended = torch.lerp(colors[lower], colors[lower + 1], (position - lower)[..., None])
    return blended.round().to(torch.uint8).permute(0, 3, 1, 2)
