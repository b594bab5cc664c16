"""Turning photographs with known cameras into a data set: crop, resize, and a world that the presets expect.

Reads a folder or zip with either a NeRF-style `transforms.json` (OpenGL axes, intrinsics in pixels) or a ready
`dataset.json`. See docs/conventions.md for the axes.
"""

import dataclasses
import json
import math

import numpy as np
import scipy.ndimage
import torch
from PIL import Image

from training.dataset import (LABEL_FILE, DatasetError, FileStore, check_declared_size, image_names, image_size, open_image,
                              read_labels)

TRANSFORMS_FILE = 'transforms.json'
_SUFFIXES_TRIED = ('', '.png', '.jpg', '.jpeg', '.PNG', '.JPG', '.JPEG')
_OPENGL_TO_OPENCV = np.diag([1.0, -1.0, -1.0, 1.0])
_DEGENERATE = 1e-3  # a mean direction shorter than this, or axes this parallel, determine nothing
_LARGEST = 1e9  # entries of a pose beyond it are no camera's, and squares must stay finite
_BOX_PER_VIEW = 1.6  # side of the published presets' boxes, in widths of the view at the world's origin
_PRESET_NEAR, _PRESET_FAR = 0.45, 0.6  # FFHQ: radius - 0.45 and radius + 0.6 for a box of side 1


@dataclasses.dataclass
class View:
    """One image and its camera: `pose` [4, 4] camera-to-world, OpenCV axes; `intrinsics` [3, 3], normalised.

    `distortion` holds OpenCV's (k1, k2, p1, p2).
    """

    name: str
    pose: np.ndarray
    intrinsics: np.ndarray
    distortion: tuple = (0.0, 0.0, 0.0, 0.0)

    def label(self):
        """The camera label, float array [25]."""
        return np.concatenate([self.pose.ravel(), self.intrinsics.ravel()])


def load_views(source, radius):
    """The store and the views of a source folder or zip.

    With `transforms.json` the world is turned, moved and scaled (`normalise_world`) to camera distances of `radius`;
    the cameras of a `dataset.json` stay as they are. Raises DatasetError for unusable sources.
    """
    store = FileStore(source)
    if TRANSFORMS_FILE in store:
        return store, normalise_world(_read_transforms(store), radius)
    if LABEL_FILE in store:
        return store, _read_dataset(store)
    raise DatasetError(f'--source={source} has neither {TRANSFORMS_FILE} nor {LABEL_FILE} at its top: '
                       'give a folder or zip that has one of them')


def converted_image(store, view, resolution, background='black'):
    """The undistorted, centrally cropped and resized picture of a view, and its label.

    Returns uint8 [resolution, resolution, 3] and float [25]. Transparent pixels are composited on `background`, a colour name.
    """
    image = open_image(store, view.name, background)
    if any(view.distortion):
        image = undistort(image, view.intrinsics, view.distortion)
    side = min(image.size)
    left, top = (image.width - side) // 2, (image.height - side) // 2
    intrinsics = crop_intrinsics(view.intrinsics, image.size, left, top, side)
    box = (left, top, left + side, top + side)
    pixels = np.array(image.resize((resolution, resolution), Image.Resampling.LANCZOS, box=box))
    return pixels, dataclasses.replace(view, intrinsics=intrinsics).label()


def crop_intrinsics(intrinsics, size, left, top, side):
    """Normalised intrinsics [3, 3] of the square window of `side` pixels at (left, top) of an image of `size`."""
    if size == (side, side):
        return intrinsics  # untouched to the last bit
    width, height = size
    to_window = np.array([[width / side, 0, -left / side], [0, height / side, -top / side], [0, 0, 1]])
    return to_window @ intrinsics


def undistort(image, intrinsics, distortion):
    """The image that a camera without lens distortion would have taken (OpenCV's k1, k2, p1, p2 model)."""
    k1, k2, p1, p2 = distortion
    pixels = np.asarray(image, dtype=np.float32)
    height, width = pixels.shape[:2]
    to_pixels = np.diag([width, height, 1.0]) @ intrinsics
    row, column = np.mgrid[:height, :width] + 0.5
    y = (row - to_pixels[1, 2]) / to_pixels[1, 1]
    x = (column - to_pixels[0, 2] - to_pixels[0, 1] * y) / to_pixels[0, 0]
    square = x * x + y * y
    radial = 1 + k1 * square + k2 * square * square
    bent_x = x * radial + 2 * p1 * x * y + p2 * (square + 2 * x * x)
    bent_y = y * radial + p1 * (square + 2 * y * y) + 2 * p2 * x * y
    source_row = bent_y * to_pixels[1, 1] + to_pixels[1, 2] - 0.5
    source_column = bent_x * to_pixels[0, 0] + bent_y * to_pixels[0, 1] + to_pixels[0, 2] - 0.5
    source = [source_row, source_column]
    channels = [scipy.ndimage.map_coordinates(channel, source, order=1, mode='nearest')
                for channel in pixels.transpose(2, 0, 1)]
    return Image.fromarray((np.stack(channels, axis=-1) + 0.5).astype(np.uint8))


def normalise_world(views, radius):
    """The same views in a world whose origin is where the optical axes meet.

    The mean camera up becomes +y, the cameras' mean direction from the origin +z (seen from above), and the median
    camera distance `radius`. Raises DatasetError when the cameras determine no meeting point or no up.
    """
    poses = np.stack([view.pose for view in views])
    centre = axes_meeting_point(poses)
    turned = _upright_rotation(poses, centre)
    origins = (poses[:, :3, 3] - centre) @ turned.T
    scale = radius / np.median(np.linalg.norm(origins, axis=1))
    poses[:, :3, :3] = turned @ poses[:, :3, :3]
    poses[:, :3, 3] = origins * scale
    return [dataclasses.replace(view, pose=pose) for view, pose in zip(views, poses)]


def axes_meeting_point(poses):
    """The point [3] with the least summed squared distance to the optical axes of poses [N, 4, 4]."""
    forward = poses[:, :3, 2] / np.linalg.norm(poses[:, :3, 2], axis=1, keepdims=True)
    across = np.eye(3) - forward[:, :, None] * forward[:, None, :]  # projections onto the planes across the axes
    system, target = across.mean(axis=0), (across @ poses[:, :3, 3, None]).mean(axis=0)[:, 0]
    if np.linalg.eigvalsh(system)[0] < _DEGENERATE ** 2:
        raise DatasetError('the optical axes of the cameras are parallel and meet nowhere: '
                           'use photographs taken around the object')
    point = np.linalg.solve(system, target)
    ahead = np.median(((point - poses[:, :3, 3]) * forward).sum(axis=1))
    spread = np.linalg.norm(np.ptp(poses[:, :3, 3], axis=0))
    if ahead <= _DEGENERATE * spread or spread == 0:
        raise DatasetError('the cameras look around from one place, not at a common object: '
                           'use photographs taken around the object')
    return point


def _upright_rotation(poses, centre):
    """The rotation [3, 3] that takes the mean camera up to +y and the mean camera direction into the +z half-plane."""
    up = -poses[:, :3, 1].mean(axis=0)
    if np.linalg.norm(up) < _DEGENERATE:
        raise DatasetError('the cameras have no common up direction: use photographs held upright')
    up /= np.linalg.norm(up)
    outward = poses[:, :3, 3] - centre
    outward = outward - (outward @ up)[:, None] * up
    front = outward.mean(axis=0)
    if np.linalg.norm(front) < _DEGENERATE * np.linalg.norm(outward, axis=1).mean():
        front = outward[0]  # a full circle has no middle: the first camera is as good as any
    front /= np.linalg.norm(front)
    return np.stack([np.cross(up, front), up, front])


def summary(labels):
    """What a set's cameras look like, as lines of text. labels: float array [N, 25].

    Near, far and box suggestions keep the proportions of the published presets.
    """
    poses, focals = labels[:, :16].reshape(-1, 4, 4), labels[:, 16]
    origins = poses[:, :3, 3]
    distances = np.linalg.norm(origins, axis=1)
    yaw, pitch = np.arctan2(origins[:, 0], origins[:, 2]), np.arcsin(origins[:, 1] / distances)
    box = _BOX_PER_VIEW * np.median(distances) / np.median(focals)
    near = max(distances.min() - _PRESET_NEAR * box, 0.1)
    far = distances.max() + _PRESET_FAR * box
    return [
        f'images            {len(labels)}',
        f'camera distance   min {distances.min():.3f}, median {np.median(distances):.3f}, max {distances.max():.3f}',
        f'focal length      {_range(focals)} image widths',
        f'yaw               {_range(yaw)} rad (0 is the frontal view)',
        f'pitch             {_range(pitch)} rad (0 is level)',
        f'suggested         --near={near:.2f} --far={far:.2f}, box side {box:.2f}',
    ]


def _range(values):
    return f'{values.min():.3f} to {values.max():.3f}'


def _read_dataset(store):
    names = image_names(store)
    if not names:
        raise DatasetError(f'{store.path} contains no images: give a zip or folder with PNG files')
    labels = read_labels(store, names).to(torch.float64).numpy()
    return [View(name, label[:16].reshape(4, 4), label[16:].reshape(3, 3)) for name, label in zip(names, labels)]


def _read_transforms(store):
    try:
        transforms = json.loads(store.read(TRANSFORMS_FILE))
        frames = sorted(transforms['frames'], key=lambda frame: frame['file_path'])
    except (ValueError, KeyError, TypeError) as error:
        raise DatasetError(f'{store.path}: {TRANSFORMS_FILE} cannot be read: it must be JSON with a list "frames" '
                           'of "file_path" and "transform_matrix"') from error
    if not frames:
        raise DatasetError(f'{store.path}: {TRANSFORMS_FILE} has no frames: add some')
    return [_frame_view(store, {**transforms, **frame}) for frame in frames]


def _frame_view(store, frame):
    """The view of one frame; its own intrinsics are already merged over the file's common ones."""
    name = _image_file(store, frame['file_path'])
    try:
        pose = np.array(frame['transform_matrix'], dtype=np.float64).reshape(4, 4)
        intrinsics = _frame_intrinsics(store, name, frame)
        distortion = tuple(float(frame.get(key, 0)) for key in ('k1', 'k2', 'p1', 'p2'))
        sound = np.isfinite(pose).all() and np.isfinite(intrinsics).all()
    except (ValueError, KeyError, TypeError, ZeroDivisionError):
        sound = False
    if not sound:
        raise DatasetError(f'{store.path}: the frame of {name} in {TRANSFORMS_FILE} needs a 4x4 "transform_matrix" '
                           'and "fl_x" or "camera_angle_x", all finite numbers: correct it')
    if 'w' in frame and 'h' in frame:
        check_declared_size(store, name, (frame['w'], frame['h']))
    if frame.get('is_fisheye') or frame.get('k3') or frame.get('k4'):
        raise DatasetError(f'{store.path}: {TRANSFORMS_FILE} describes a fisheye lens or k3/k4: undistort the images '
                           'first, for example with COLMAP\'s image_undistorter')
    if not _is_invertible(pose):
        raise DatasetError(f'{store.path}: the frame of {name} in {TRANSFORMS_FILE} has a "transform_matrix" that is no camera '
                           'pose, a rotation and a position: correct it')
    pose = pose @ _OPENGL_TO_OPENCV
    pose[:3, :3] /= np.cbrt(abs(np.linalg.det(pose[:3, :3])))  # some tools leave a scale in the matrix
    return View(name, pose, intrinsics, distortion)


def _is_invertible(pose):
    """Whether the 3x3 part of a finite pose [4, 4] has axes of some length in three directions, and numbers of some sense."""
    lengths = np.linalg.svd(pose[:3, :3], compute_uv=False)  # of the longest to the shortest axis
    return np.abs(pose).max() < _LARGEST and lengths[0] > 1 / _LARGEST and lengths[2] > _DEGENERATE * lengths[0]


def _image_file(store, file_path):
    path = str(file_path).replace('\\', '/').removeprefix('./')
    for suffix in _SUFFIXES_TRIED:
        if path + suffix in store:
            return path + suffix
    raise DatasetError(f'{store.path}: {TRANSFORMS_FILE} names the image {file_path}, which does not exist: '
                       'add it or remove its frame')


def _frame_intrinsics(store, name, frame):
    """Normalised intrinsics [3, 3]. The image may have been resized since: the file's own w and h count, if given."""
    width, height = (frame['w'], frame['h']) if 'w' in frame and 'h' in frame else image_size(store, name)
    focal_x = frame['fl_x'] if 'fl_x' in frame else _focal(width, frame['camera_angle_x'])
    focal_y = frame['fl_y'] if 'fl_y' in frame else focal_x
    if 'fl_y' not in frame and 'fl_x' not in frame and 'camera_angle_y' in frame:
        focal_y = _focal(height, frame['camera_angle_y'])
    centre_x, centre_y = frame.get('cx', width / 2), frame.get('cy', height / 2)
    return np.array([[focal_x / width, 0, centre_x / width], [0, focal_y / height, centre_y / height], [0, 0, 1]])


def _focal(size, angle):
    return 0.5 * size / math.tan(0.5 * angle)
