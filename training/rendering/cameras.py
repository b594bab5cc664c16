"""Cameras: the 25-number label, look-at poses and intrinsics (docs/conventions.md).

A camera label is ``[25]``: the 4x4 camera-to-world matrix, row-major, OpenCV axes (x right, y down, z forward),
then the 3x3 intrinsics normalised by the image size (fx/W, fy/H, cx/W, cy/H). World units; world up is +y.
"""

import math

import torch

LABEL_SIZE = 25
FFHQ_FOCAL = 2985.29 / 700  # FFHQ and AFHQ, in image widths
SHAPENET_FOCAL = 1.7074  # ShapeNet's viewer cameras, in image widths
_POLE_MARGIN = 1e-5  # keeps the viewing direction off the vertical, where "no roll" has no meaning


def camera_origin(horizontal, vertical, radius):
    """The point on the sphere of `radius` around the world's origin at the given angles.

    horizontal, vertical: tensors [N], radians; pi/2, pi/2 is the frontal view. Returns [N, 3], world units.
    """
    vertical = vertical.clamp(_POLE_MARGIN, math.pi - _POLE_MARGIN)
    phi = torch.arccos(1 - 2 * vertical / math.pi)
    theta = math.pi - horizontal
    unit = torch.stack([phi.sin() * theta.cos(), phi.cos(), phi.sin() * theta.sin()], dim=-1)
    return radius * unit


def look_at(origin, target):
    """Camera-to-world matrices of cameras at `origin` that look at `target`, without roll.

    origin: [N, 3]; target: [3] or [N, 3]; world units. Returns [N, 4, 4], OpenCV axes.
    """
    forward = torch.nn.functional.normalize(target - origin, dim=-1)
    up = torch.tensor([0.0, 1.0, 0.0], dtype=origin.dtype, device=origin.device).expand_as(forward)
    right = torch.nn.functional.normalize(torch.linalg.cross(forward, up), dim=-1)
    down = torch.linalg.cross(forward, right)
    pose = torch.eye(4, dtype=origin.dtype, device=origin.device).repeat(len(origin), 1, 1)
    pose[:, :3, :3] = torch.stack([right, down, forward], dim=-1)
    pose[:, :3, 3] = origin
    return pose


def look_at_pose(horizontal, vertical, target, radius):
    """Poses on a sphere around the world's origin, looking at `target`.

    horizontal, vertical: radians, floats or tensors [N]; target: three floats or [3]; radius: world units.
    Returns [N, 4, 4].
    """
    horizontal = torch.atleast_1d(torch.as_tensor(horizontal, dtype=torch.float32))
    vertical = torch.atleast_1d(torch.as_tensor(vertical, dtype=torch.float32))
    horizontal, vertical = torch.broadcast_tensors(horizontal, vertical)
    target = torch.as_tensor(target, dtype=torch.float32, device=horizontal.device)
    return look_at(camera_origin(horizontal, vertical, radius), target)


def pinhole(focal, device=None):
    """Intrinsics [3, 3] of a centred pinhole camera; `focal` in image widths."""
    return torch.tensor([[focal, 0, 0.5], [0, focal, 0.5], [0, 0, 1]], dtype=torch.float32, device=device)


def make_label(poses, intrinsics):
    """Camera labels [N, 25] of poses [N, 4, 4] and intrinsics [3, 3] or [N, 3, 3]."""
    intrinsics = intrinsics.expand(len(poses), 3, 3)
    return torch.cat([poses.reshape(-1, 16), intrinsics.reshape(-1, 9)], dim=1)


def split_label(label):
    """The poses [N, 4, 4] and intrinsics [N, 3, 3] of camera labels [N, 25]."""
    if label.ndim != 2 or label.shape[1] != LABEL_SIZE:
        raise ValueError(f'a camera label must have shape [N, {LABEL_SIZE}], got {list(label.shape)}')
    return label[:, :16].reshape(-1, 4, 4), label[:, 16:].reshape(-1, 3, 3)
