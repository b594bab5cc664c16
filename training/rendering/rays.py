"""Rays of pinhole cameras: whole images and patches (METHOD: pixel centres at (i + 0.5) / R)."""

import torch

from training.rendering.cameras import split_label


def pixel_centres(resolution, device=None):
    """Image coordinates [resolution^2, 2] of the pixel centres, (x, y) in (0, 1), row by row."""
    centres = (torch.arange(resolution, device=device, dtype=torch.float32) + 0.5) / resolution
    y, x = torch.meshgrid(centres, centres, indexing='ij')
    return torch.stack([x, y], dim=-1).reshape(-1, 2)


def patch_centres(corners, size, resolution):
    """Image coordinates [N, size^2, 2] of the pixels of `size` x `size` windows of an image of `resolution` pixels.

    corners: integer [N, 2], rows of (top, left) in pixels of the full image.
    Raises ValueError when a window leaves the image; corners on a GPU are not looked at, which would wait for it.
    """
    if corners.device.type == 'cpu' and len(corners) and (corners.min() < 0 or corners.max() + size > resolution):
        raise ValueError(f'a {size}x{size} patch at (top, left) {corners.tolist()} leaves the {resolution}x{resolution} image')
    steps = torch.arange(size, device=corners.device)
    y = corners[:, 0, None] + steps
    x = corners[:, 1, None] + steps
    y = y[:, :, None].expand(-1, size, size)
    x = x[:, None, :].expand(-1, size, size)
    return (torch.stack([x, y], dim=-1).reshape(len(corners), -1, 2) + 0.5) / resolution


def cast_rays(label, image_points):
    """Rays through points of the image plane.

    label: cameras [N, 25]; image_points: [M, 2] or [N, M, 2], (x, y) in image sizes, origin at the top left corner.
    Returns origins and unit directions, both [N, M, 3], world units.
    """
    pose, intrinsics = split_label(label)
    image_points = image_points.expand(len(label), -1, 2)
    focal_x, focal_y = intrinsics[:, 0, 0, None], intrinsics[:, 1, 1, None]
    skew, centre_x, centre_y = intrinsics[:, 0, 1, None], intrinsics[:, 0, 2, None], intrinsics[:, 1, 2, None]
    y = (image_points[..., 1] - centre_y) / focal_y
    x = (image_points[..., 0] - centre_x - skew * y) / focal_x
    in_camera = torch.stack([x, y, torch.ones_like(x)], dim=-1)
    directions = torch.nn.functional.normalize(in_camera @ pose[:, :3, :3].transpose(1, 2), dim=-1)
    origins = pose[:, None, :3, 3].expand_as(directions)
    return origins, directions


def intersect_box(origins, directions, side):
    """Entry and exit distances of rays through the cube of `side` centred on the world's origin (slab method).

    origins, directions: [N, M, 3]. Returns near, far [N, M, 1] in world units, and hit [N, M, 1] (bool).
    """
    inverse = 1 / directions
    low, high = (-side / 2 - origins) * inverse, (side / 2 - origins) * inverse
    near = torch.minimum(low, high).amax(dim=-1, keepdim=True)
    far = torch.maximum(low, high).amin(dim=-1, keepdim=True)
    return near, far, far > near


def box_limits(origins, directions, side):
    """Near and far [N, M, 1] of every ray by the box it crosses.

    Rays that miss are sampled between the smallest and the largest ENTRY distance of the rays of this call that hit; where
    none hits, from -1 to -2. That is what the release does (docs/fidelity.md), and what its networks were trained with.
    """
    near, far, hit = intersect_box(origins, directions, side)
    first, last = near.where(hit, torch.inf).min(), near.where(hit, -torch.inf).max()  # nothing here waits for a GPU
    any_hit = first.isfinite()
    return near.where(hit, first.where(any_hit, -1.0)), far.where(hit, last.where(any_hit, -2.0))
