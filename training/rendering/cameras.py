"""Cameras: the 25-number label, look-at poses, the viewer's views, rays and the box they cross (docs/conventions.md).

A camera label is ``[25]``: the 4x4 camera-to-world matrix, row-major, OpenCV axes (x right, y down, z forward),
then the 3x3 intrinsics normalised by the image size (fx/W, fy/H, cx/W, cy/H). World units; world up is +y.
"""

import math

import torch
import torch.nn.functional as F

LABEL_SIZE = 25
_POLE_MARGIN = 1e-5  # keeps the viewing direction off the vertical, where "no roll" has no meaning


# Labels --------------------------------------------------------------------------------------------------------------


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


# Look-at poses -------------------------------------------------------------------------------------------------------


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
    forward = F.normalize(target - origin, dim=-1)
    up = torch.tensor([0.0, 1.0, 0.0], dtype=origin.dtype, device=origin.device).expand_as(forward)
    right = F.normalize(torch.linalg.cross(forward, up), dim=-1)
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


# Views on the sphere around a subject --------------------------------------------------------------------------------
#
# Angles are radians away from the frontal view. Positive yaw moves the camera towards +x, to the subject's own left;
# positive pitch moves it down. Both are offsets of the look-at angles (h, v) = (pi/2 + yaw, pi/2 + pitch); v is uniform
# in height, so the elevation is arcsin(-2 pitch / pi).


def view_label(config, yaw=0.0, pitch=0.0, focal=None):
    """Camera labels [N, 25] of views of the subjects of a generator, on the sphere that it was trained on.

    config: the generator's configuration (`G.config`); yaw, pitch: radians, floats or tensors [N], 0 is frontal;
    focal: in image widths, by default the configuration's.
    """
    rendering = config.rendering
    yaw, pitch = torch.as_tensor(yaw, dtype=torch.float32), torch.as_tensor(pitch, dtype=torch.float32)
    poses = look_at_pose(math.pi / 2 + yaw, math.pi / 2 + pitch, rendering.camera_pivot, rendering.camera_radius)
    return make_label(poses, pinhole(rendering.focal if focal is None else focal))


def portrait_orbit(frames, yaw_range, pitch_range):
    """An ellipse about the frontal view, yaw within +-yaw_range and pitch within +-pitch_range, that closes smoothly.

    Returns yaw and pitch, both [frames], radians.
    """
    phase = _phases(frames)
    return yaw_range * phase.sin(), pitch_range * phase.cos()


def full_orbit(frames, pitch):
    """Once around the subject at the height given by `pitch` (negative: from above).

    Returns yaw and pitch, both [frames], radians.
    """
    return _phases(frames), torch.full([frames], float(pitch))


def _phases(frames):
    # The end point is left out: it is the first frame of the next round.
    return torch.arange(frames) * (2 * math.pi / frames)


# Rays ----------------------------------------------------------------------------------------------------------------


def pixel_centres(size, device=None):
    """Image coordinates [height * width, 2] of the pixel centres, (x, y) in (0, 1), row by row.

    size: (height, width), or an int that is both.
    """
    height, width = (size, size) if isinstance(size, int) else size
    y, x = ((torch.arange(count, device=device, dtype=torch.float32) + 0.5) / count for count in (height, width))
    y, x = torch.meshgrid(y, x, indexing='ij')
    return torch.stack([x, y], dim=-1).reshape(-1, 2)


def patch_centres(corners, size, resolution):
    """Image coordinates [N, size^2, 2] of the pixels of `size` x `size` windows of an image of `resolution` pixels.

    corners: integer [N, 2], rows of (top, left) in pixels of the full image.
    Raises ValueError when a window leaves the image; corners on a GPU are not looked at, which would wait for it.
    """
    if corners.device.type == 'cpu' and len(corners) and (corners.min() < 0 or corners.max() + size > resolution):
        raise ValueError(f'a {size}x{size} patch at (top, left) {corners.tolist()} leaves the {resolution}x{resolution} image')
    top, left = corners[:, :, None, None].unbind(dim=1)
    steps = torch.arange(size, device=corners.device)
    y, x = torch.broadcast_tensors(top + steps[:, None], left + steps)
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
    directions = F.normalize(in_camera @ pose[:, :3, :3].transpose(1, 2), dim=-1)
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
