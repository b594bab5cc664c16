"""Reading `transforms.json` as NeRF tools write it: cameras, lenses and masks of photographs.

A key of a frame wins over the same key at the top of the file. What changes the meaning is applied or refused; keys that
are neither known nor known to be harmless are named in a note.
"""

import dataclasses
import math

import numpy as np

from dataset_prep.lenses import folds
from dnnlib.errors import one_line
from training.data.camera_checks import check_cameras
from training.data.dataset import DatasetError, check_declared_size, image_header, match_cameras, read_json

TRANSFORMS_FILE = 'transforms.json'
SPLIT_FILES = ('transforms_train.json', 'transforms_val.json', 'transforms_test.json')
TO_OPENCV = {'opengl': np.diag([1.0, -1.0, -1.0, 1.0]), 'opencv': np.eye(4)}
_DEGENERATE = 1e-3  # axes of a pose this parallel determine nothing
_LARGEST = 1e9  # entries of a pose beyond it are no camera's, and squares must stay finite
_SAME_FOCAL = 0.02  # relative difference of a focal length and the angle of view beside it

_DISTORTION = ('k1', 'k2', 'p1', 'p2', 'k3')  # in OpenCV's order
_MODELS = {
    'PINHOLE': (),
    'SIMPLE_PINHOLE': (),
    'SIMPLE_RADIAL': ('k1',),
    'RADIAL': ('k1', 'k2'),  # and what bends their images
    'OPENCV': _DISTORTION,
    'PERSPECTIVE': _DISTORTION,
}
_REFUSED = (
    'is_fisheye',
    'fisheye',
    'latlong',
    'from_mitsuba',
    'k4',
    'k5',
    'k6',
    'distortion_params',
    *(f'ftheta_p{i}' for i in range(5)),
)
_FOCALS = ('fl_x', 'fl_y', 'camera_angle_x', 'camera_angle_y')
_READ = ('file_path', 'transform_matrix', 'camera_model', 'mask_path', 'cx', 'cy', 'w', 'h', *_FOCALS, *_DISTORTION)
_HARMLESS = (  # where the scene lies and how large it is changes nothing: the world is centred, turned and scaled anyway
    'aabb',
    'aabb_scale',
    'render_aabb',
    'scale',
    'offset',
    'up',
    'applied_transform',
    'applied_scale',
    'orientation_override',
    'auto_scale_poses_override',
    'ply_file_path',
    'colmap_im_id',
    'colmap_id',
    'sharpness',
    'sharpness_discard_threshold',
    'depth_file_path',
    'depth_path',
    'depth_unit_scale_factor',
    'enable_depth_loading',
    'integer_depth_scale',
    'normal_file_path',
    'train_filenames',
    'val_filenames',
    'test_filenames',
    'rotation',
    'timestamp',
    'n_extra_learnable_dims',
)


@dataclasses.dataclass
class View:
    """One image and its camera: `pose` [4, 4] camera-to-world, OpenCV axes; `intrinsics` [3, 3], normalised.

    `distortion` holds OpenCV's (k1, k2, p1, p2, k3); `mask` names an image whose black parts are transparent.
    """

    name: str
    pose: np.ndarray
    intrinsics: np.ndarray
    distortion: tuple = (0.0,) * len(_DISTORTION)
    mask: str | None = None

    def label(self):
        """The camera label, float array [25]."""
        return np.concatenate([self.pose.ravel(), self.intrinsics.ravel()])


def stacked_labels(views):
    """The camera labels, float64 [N, 25], of N views."""
    return np.stack([view.label() for view in views])


def transforms_files(names):
    """Those of the file `names` at the top of a source that hold its cameras: transforms.json, or else its splits."""
    return [TRANSFORMS_FILE] if TRANSFORMS_FILE in names else [file for file in SPLIT_FILES if file in names]


def read_transforms(store, axes='opengl', skip_missing=False):
    """The views of a FileStore's `transforms.json`, or of all its splits, sorted by name, in the world of the file; and notes,
    lines of text: what is applied or left out.

    axes: of camera_checks.AXES, those that the file uses; skip_missing: leave out frames whose images are not there. Raises
    DatasetError or CameraError for what cannot be used.
    """
    files = transforms_files(store)
    names, pairs = ', '.join(files), [pair for file in files for pair in _read_frames(store, file)]
    found, _, notes = match_cameras(store, names, pairs, skip_missing)
    if not found:
        raise DatasetError(f'{store.path}: {names} has no frames with images: add some')
    frames, source = [found[name] for name in sorted(found)], f'{store.path}/{names}'
    in_folder = not any(frame.values.get('mask_path') for frame in frames)
    views = [_read_view(store, frame, axes, in_folder) for frame in frames]
    check_cameras(stacked_labels(views), [view.name for view in views], source, axes=axes)
    _check_lenses(source, views)
    return views, [*notes, *_notes(source, store, frames, views)]


@dataclasses.dataclass
class _Frame:
    """What a file says of the image `name`, the common part included. `where` begins messages.

    Two are equal if they mean the same camera and mask.
    """

    name: str
    where: str
    values: dict

    def __eq__(self, other):
        return all(self.values.get(key) == other.values.get(key) for key in _READ if key != 'file_path')

    def error(self, text):
        return DatasetError(f'{self.where} {text}')

    def number(self, key, default=None):
        """A finite number, or `default` where there is none."""
        value = self.values.get(key, default)
        try:
            number = float(value)
        except (TypeError, ValueError, OverflowError):
            number = math.nan
        if not math.isfinite(number):
            raise self.error(f'has "{key}": {str(value)[:40]}, which is no finite number: correct it')
        return number


def _read_frames(store, file):
    """(path of an image, its _Frame) of all frames."""
    common = read_json(store, file)
    try:
        frames = [_merged(common, frame) for frame in common['frames']]
        sound = all(isinstance(frame['file_path'], str) for frame in frames)
    except (KeyError, TypeError):
        sound = False
    if not sound:
        raise DatasetError(
            f'{store.path}: {file} cannot be read: it must be JSON with a list "frames" of "file_path" and "transform_matrix"'
        )
    if not frames:
        raise DatasetError(f'{store.path}: {file} has no frames: add some')
    named = [(frame['file_path'], store.find(frame['file_path']), frame) for frame in frames]
    return [(path, _Frame(name, f'{store.path}: the frame of {name} in {file}', frame)) for path, name, frame in named]


def _merged(common, frame):
    """A frame's keys over the common ones, but a frame that has a focal length or an angle of view has all of its own."""
    left_out = {'frames', *(_FOCALS if any(key in frame for key in _FOCALS) else ())}
    return {**{key: value for key, value in common.items() if key not in left_out}, **frame}


def _notes(source, store, frames, views):
    masked = sum(view.mask is not None for view in views)
    dynamic = sum(name.rpartition('/')[2].startswith('dynamic_mask_') for name in store.names)
    splits = ', '.join(file for file in SPLIT_FILES if file in store and TRANSFORMS_FILE in store)
    unknown = ', '.join(sorted({key for frame in frames for key in frame.values} - {*_READ, *_REFUSED, *_HARMLESS}))
    notes = [
        (masked, f'{masked} of {len(views)} images have a mask: what is black in it is hidden'),
        (
            dynamic,
            f'{dynamic} files dynamic_mask_* are left out: name masks, black where an image is to be hidden, with "mask_path"',
        ),
        (splits, f'{splits} are left out, since there is {TRANSFORMS_FILE}'),
        (unknown, one_line(f'{source} has keys that are not known and have no effect: {unknown}')),
    ]
    return [note for there, note in notes if there]


def _read_view(store, frame, axes, masks_in_folder):
    _check_model(frame)
    distortion = tuple(frame.number(key, 0) for key in _DISTORTION)
    return View(
        frame.name,
        _pose(frame) @ TO_OPENCV[axes],
        _intrinsics(store, frame),
        distortion,
        _mask_name(store, frame, masks_in_folder),
    )


def _check_model(frame):
    values = frame.values
    other = next((key for key in _REFUSED if values.get(key)), None)
    model = str(values.get('camera_model', 'OPENCV')).upper()
    if other or model not in _MODELS:
        key = other or 'camera_model'
        raise frame.error(
            f'has "{key}": {str(values[key])[:40]}, but only {", ".join(_MODELS)} with {", ".join(_DISTORTION)} are known: '
            "undistort the images first, for example with COLMAP's image_undistorter"
        )
    extra = next((key for key in _DISTORTION if values.get(key) and key not in _MODELS[model]), None)
    if extra:
        raise frame.error(f'has "camera_model": {values["camera_model"]!r}, which has no "{extra}": correct one of them')


def _pose(frame):
    try:
        pose = np.array(frame.values['transform_matrix'], dtype=np.float64).reshape(4, 4)
    except (ValueError, KeyError, TypeError, OverflowError):
        pose = np.full((4, 4), np.nan)
    if not np.isfinite(pose).all():
        raise frame.error('needs a "transform_matrix" of 4x4 finite numbers: correct it')
    lengths = np.linalg.svd(pose[:3, :3], compute_uv=False)  # of the longest to the shortest axis
    if not (np.abs(pose).max() < _LARGEST and lengths[0] > 1 / _LARGEST and lengths[2] > _DEGENERATE * lengths[0]):
        raise frame.error('has a "transform_matrix" that is no camera pose, a rotation and a position: correct it')
    pose[:3, :3] /= np.cbrt(abs(np.linalg.det(pose[:3, :3])))  # some tools leave a scale in the matrix
    return pose


def _mask_name(store, frame, in_folder):
    """The file with the mask of an image: its "mask_path", or its namesake in the folder `masks`, if there is such a folder."""
    path = frame.values.get('mask_path')
    if path:
        mask = store.find(path) if isinstance(path, str) else None
        if mask is None:
            raise frame.error(f'has "mask_path": {path!r}, which does not exist: add it or remove the key')
        return mask
    if not in_folder or not any(other.startswith('masks/') for other in store.names):
        return None
    inner = frame.name.partition('/')[2] or frame.name  # below the folder of the images
    tried = [f'masks/{form}' for path in (inner, frame.name) for form in (path.rpartition('.')[0], path + '.png')]
    mask = next(filter(None, map(store.find, tried)), None)
    if mask is None:
        raise frame.error(f'has no mask {tried[0]}.png in the folder masks: add it, or remove the folder')
    return mask


def _intrinsics(store, frame):
    """Normalised intrinsics [3, 3]."""
    size = _declared_size(store, frame)
    focals = [_focal(frame, axis, side) for axis, side in zip('xy', size)]
    if focals == [None, None]:
        raise frame.error('needs "fl_x" or "camera_angle_x": add one')
    focal_x, focal_y = (other if own is None else own for own, other in (focals, focals[::-1]))  # square pixels
    width, height = size
    centre_x, centre_y = frame.number('cx', width / 2), frame.number('cy', height / 2)
    return np.array([[focal_x / width, 0, centre_x / width], [0, focal_y / height, centre_y / height], [0, 0, 1]])


def _declared_size(store, frame):
    """(width, height) that lengths in pixels refer to: as given, since the image may have been resized, or else the image's."""
    given = [frame.number(key) if key in frame.values else None for key in 'wh']
    if None in given:
        measured = image_header(store, frame.name).size
        scale = next((own / side for own, side in zip(given, measured) if own is not None), 1)
        given = [side * scale for side in measured]
    if min(given) <= 0:
        raise frame.error(f'has a size of {given[0]:g} x {given[1]:g} pixels: correct "w" and "h"')
    check_declared_size(store, frame.name, given)
    return given


def _focal(frame, axis, size):
    """Focal length along an axis of `size` pixels, in pixels; None where neither it nor the angle of view is given."""
    length, angle = f'fl_{axis}', f'camera_angle_{axis}'
    focal = frame.number(length) if length in frame.values else None
    if angle not in frame.values:
        return focal
    radians = frame.number(angle)
    if not 0 < radians < math.pi:
        raise frame.error(f'has "{angle}": {radians:g}, which is no angle of view in radians: correct it')
    by_angle = 0.5 * size / math.tan(0.5 * radians)
    if focal is not None and abs(focal - by_angle) > _SAME_FOCAL * by_angle:
        raise frame.error(f'has "{length}": {focal:g}, but its "{angle}" makes it {by_angle:.5g}: remove the wrong one')
    return by_angle if focal is None else focal


def _check_lenses(source, views):
    # Photographs mostly share a lens: it is looked at once, with the first that has it.
    lenses = {(view.intrinsics.tobytes(), view.distortion): view for view in reversed(views) if any(view.distortion)}
    for view in lenses.values():
        if folds(view.intrinsics, view.distortion):
            raise DatasetError(
                f'{source}: the lens distortion of {view.name} folds the picture within its frame: correct '
                f"{', '.join(_DISTORTION)}, or undistort the images first, for example with COLMAP's image_undistorter"
            )
