"""Turning photographs with known cameras into a data set: crop, resize, and a world that the presets expect.

Reads a folder or zip with either a NeRF-style `transforms.json` (OpenGL axes, intrinsics in pixels) or a ready
`dataset.json`. See docs/conventions.md for the axes.
"""

import dataclasses

import numpy as np
from PIL import Image

from dataset_prep.lenses import undistort
from dataset_prep.transforms import (
    SPLIT_FILES,
    TO_OPENCV,
    TRANSFORMS_FILE,
    View,
    read_transforms,
    stacked_labels,
    transforms_files,
)
from training.data.camera_checks import AXES, check_cameras, first_fault, likely_slip, seen_scene
from training.data.dataset import (
    LABEL_FILE,
    DatasetError,
    FileStore,
    check_declared_size,
    image_header,
    image_names,
    lies_deeper,
    open_image,
    read_labels,
)
from training.rendering.cameras import split_label

_DEGENERATE = 1e-3  # a mean direction shorter than this, or axes this parallel, determine nothing
_PRESET_NEAR, _PRESET_FAR = 0.45, 0.6  # FFHQ: radius - 0.45 and radius + 0.6 for a box of side 1


def load_views(source, radius, axes='opengl', skip_missing=False):
    """The store, the views and the notes, lines of text, of a source folder or zip.

    With `transforms.json` the world is turned, moved and scaled (`normalise_world`) to camera distances of `radius`;
    axes: of camera_checks.AXES, those that it uses. The cameras of a `dataset.json` stay as they are. skip_missing: leave out
    cameras whose images are not there. Raises DatasetError or CameraError for unusable sources.
    """
    store = FileStore(source)
    if transforms_files(store):
        views, notes = read_transforms(store, axes, skip_missing)
        return store, _placed_views(store, views, radius, axes), notes
    if LABEL_FILE in store:
        views, notes = _read_dataset(store, skip_missing)
        labels = stacked_labels(views)
        check_cameras(labels, [view.name for view in views], f'{store.path}/{LABEL_FILE}', seen_scene(labels))
        return store, views, notes
    cure = lies_deeper(store, TRANSFORMS_FILE, *SPLIT_FILES, LABEL_FILE) or ': give a folder or zip that has one of them'
    raise DatasetError(f'--source={source} has neither {TRANSFORMS_FILE} nor {LABEL_FILE} at its top{cure}')


def converted_image(store, view, resolution, background='black'):
    """The centrally cropped and resized picture of a view, and its label.

    Returns uint8 [resolution, resolution, 3] and float [25]. background: as `view_picture` takes it.
    """
    image = view_picture(store, view, background)
    side = min(image.size)
    left, top = (image.width - side) // 2, (image.height - side) // 2
    box = (left, top, left + side, top + side)
    pixels = np.array(image.resize((resolution, resolution), Image.Resampling.LANCZOS, box=box))
    return pixels, square_label(view, image.size)


def square_label(view, size):
    """The label, float [25], of the central square of a view whose picture has `size` (width, height)."""
    width, height = np.array(size) / min(size)
    to_crop = np.array([[width, 0, (1 - width) / 2], [0, height, (1 - height) / 2], [0, 0, 1]])
    return dataclasses.replace(view, intrinsics=to_crop @ view.intrinsics).label()


def view_picture(store, view, background='black'):
    """The whole picture of a view, undistorted, an RGB image of PIL. What is transparent or masked becomes `background`, a
    colour name."""
    image = open_image(store, view.name, background)
    if view.mask:
        image = Image.composite(image, Image.new('RGB', image.size, background), _read_mask(store, view.mask, image.size))
    return undistort(image, view.intrinsics, view.distortion) if any(view.distortion) else image


def _read_mask(store, name, size):
    """A mask as a greyscale image of `size`, 0 where the picture is hidden and 255 where it is seen."""
    check_declared_size(store, name, size)
    mask = open_image(store, name).convert('L')
    if mask.getextrema()[1] == 1:  # some tools write 0 and 1
        mask = mask.point(lambda value: 255 * value)
    return mask.resize(size)


def _placed_views(store, views, radius, axes):
    """The views in a normalised world. Raises DatasetError, which names the slip that their poses look like."""
    placed, wrong, message = _try_to_place(views, radius)
    if message is None:
        return placed
    to_own_axes = TO_OPENCV[axes]  # its own inverse

    def sound(poses):
        return ~_try_to_place([dataclasses.replace(view, pose=pose @ to_own_axes) for view, pose in zip(views, poses)], radius)[1]

    slip = likely_slip(np.stack([view.pose @ to_own_axes for view in views]), sound, axes) if wrong.mean() > 0.5 else None
    if slip:
        other = next((name for name, text in AXES.items() if text == slip), None)
        cure = f'use dataset_tool.py convert --axes={other}' if other else f'give camera-to-world matrices with {AXES[axes]}'
        message += f'; or, if these are {slip}: {cure}'
    raise DatasetError(f'{store.path}: {message}')


def _try_to_place(views, radius):
    """(views in a normalised world, wrong: bool [N], message): which cameras do not see the scene there, and why."""
    try:
        placed = normalise_world(views, radius)
    except DatasetError as error:
        return views, np.ones(len(views), dtype=bool), str(error)
    labels = stacked_labels(placed)
    wrong, fault, text = first_fault(labels, [view.name for view in views], seen_scene(labels))
    return placed, wrong, fault and f'{text}; correct or remove them'


def normalise_world(views, radius):
    """The same views in a world whose origin is where the optical axes meet.

    The mean camera up becomes +y, the cameras' mean direction from the origin +z (seen from above), and the median
    camera distance `radius`. Raises DatasetError when the cameras determine no meeting point or no up.
    """
    if len(views) == 1:
        raise DatasetError(
            'there is a single photograph, but where the scene lies shows only where several cameras look: '
            'add photographs taken around the object'
        )
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
    if np.linalg.eigvalsh(system)[0] < _DEGENERATE**2:
        raise DatasetError(
            'the optical axes of the cameras are parallel and meet nowhere: use photographs taken around the object'
        )
    point = np.linalg.solve(system, target)
    ahead = np.median(((point - poses[:, :3, 3]) * forward).sum(axis=1))
    spread = np.linalg.norm(np.ptp(poses[:, :3, 3], axis=0))
    if ahead < -_DEGENERATE * spread:
        raise DatasetError('the cameras look away from the point where their axes meet: use photographs taken around an object')
    if ahead <= _DEGENERATE * spread or spread == 0:
        raise DatasetError(
            'the cameras look around from one place, not at a common object: use photographs taken around the object'
        )
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


def camera_summary(labels):
    """What a set's cameras look like, as lines of text. labels: float array [N, 25].

    Near, far and box suggestions keep the proportions of the published presets.
    """
    poses, intrinsics = split_label(labels)
    origins, focals = poses[:, :3, 3], intrinsics[:, 0, 0]
    distances = np.linalg.norm(origins, axis=1)
    yaw, pitch = np.arctan2(origins[:, 0], origins[:, 2]), np.arcsin(origins[:, 1] / distances)
    box = seen_scene(labels).box_size
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


def _read_dataset(store, skip_missing):
    names = image_names(store)
    labels, notes = read_labels(store, names, skip_missing)
    poses, intrinsics = split_label(labels.double().numpy())
    views = [View(*parts) for parts in zip(names, poses, intrinsics)]
    for view in views:
        header = image_header(store, view.name)
        if header.size != header.stored_size:  # turned by EXIF: with square pixels, focal lengths fit one of the sizes
            aspect = view.intrinsics[0, 0] / view.intrinsics[1, 1]
            check_declared_size(store, view.name, (header.size[0], header.size[0] * aspect))
    return views, notes
