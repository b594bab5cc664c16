"""Whether camera labels are cameras that see the scene, and which slip they look like if not.

All doors ask here: data sets, stored views, converted photographs.
"""

import itertools
from typing import NamedTuple

import numpy as np

from dnnlib.errors import UserError
from training.config import AUTO, RenderingConfig
from training.rendering.cameras import split_label

AXES = {  # of a camera, by the name of the convention
    'opencv': 'OpenCV axes (x right, y down, z forward)',
    'opengl': 'OpenGL axes (x right, y up, z backward)',
}
BOX_PER_VIEW = 1.6  # side of the published presets' boxes, in widths of the view at the world's origin
_ROUNDING = 1e-5  # of numbers that are 0 or 1
_OFF_ROTATION = 5e-3  # entries of R R^T - 1: rotations that were rounded to three decimals are fine
_SHORTEST_FOCAL, _LONGEST_FOCAL = 0.2, 50.0  # in image widths: angles of view of 136 and 1.1 degrees
_LARGEST_SHARE = 10.0  # a principal point beyond it is not in image widths
_WIDEST_PIXEL = 3.0  # ratio of the focal lengths: pictures are squeezed into squares, but not more than this
_LARGEST_SKEW = 0.1  # in focal lengths
_SWAPPED_ASPECT = 1.1  # width and height more alike than this are not told apart
_OFF_CENTRE = 0.03  # of principal points, in picture sizes
_LIKELY = 0.9  # share of the wrong cameras that a slip must explain
_MOST_TRIED = 1000  # wrong cameras that slips are tried on


class CameraError(UserError, ValueError):
    """Camera labels that are no cameras of the scene; the message is one line."""


class Fault(NamedTuple):
    """wrong: bool [N], the labels that have it; what: of such a camera; slip: what causes it, None where poses tell; cure: where
    they do not tell."""

    wrong: np.ndarray
    what: str
    slip: str | None = None
    cure: str = 'correct or remove them'


@np.errstate(all='ignore')  # what is not a number is not sound either
def check_cameras(labels, names, source, scene=None, axes='opencv'):
    """Raise CameraError unless all labels are cameras, and see the scene if one is given.

    labels: array or tensor [N, 25]; names: of their images, N strings; source: what holds them, for the message.
    scene: RenderingConfig, world units: each optical axis must pass its box, between near and far. axes: of AXES, those that
    the source should have, for the message.
    """
    labels = np.asarray(labels, dtype=np.float64)
    wrong, fault, text = first_fault(labels, names, scene)
    if fault:
        cure = fault.slip or _slip_of_labels(labels[wrong], scene, axes) or fault.cure
        raise CameraError(f'{source}: {text}; {cure}')


@np.errstate(all='ignore')
def first_fault(labels, names, scene=None):
    """(wrong: bool [N], the Fault of the first wrong one, text that counts them and names it) of labels float64 [N, 25]; where
    all are sound, the Fault and the text are None."""
    faults = _faults(labels, scene)
    wrong = np.any([fault.wrong for fault in faults], axis=0)
    if not wrong.any():
        return wrong, None, None
    first = int(wrong.argmax())
    fault = next(fault for fault in faults if fault.wrong[first])
    return wrong, fault, f'{wrong.sum()} of {len(wrong)} cameras cannot be right, first that of {names[first]}: {fault.what}'


@np.errstate(all='ignore')
def likely_slip(poses, sound, axes='opencv'):
    """The name of the slip that explains wrong poses [N, 4, 4], or None.

    sound: a function from poses to bool [N], whether they would be right; axes: of AXES, those that the poses should have.
    """
    found = []
    for (layout, unpacked), (direction, turned), (kind, signs) in itertools.product(_LAYOUTS, _DIRECTIONS, _axes_slips(axes)):
        parts = [part for part in (layout, direction, kind) if part]
        share = np.mean(sound(turned(unpacked(poses)) * signs))
        if parts and share >= _LIKELY:
            found.append((len(parts), -share, ' and '.join(parts)))
    return min(found)[2] if found else None


@np.errstate(all='ignore')
def seen_scene(labels):
    """The RenderingConfig of a scene as large as cameras [N, 25] suggest: FFHQ's give a box of side 1."""
    distances = np.linalg.norm(labels[:, [3, 7, 11]], axis=1)
    side = BOX_PER_VIEW * np.median(distances) / np.median(labels[:, 16])
    return RenderingConfig(near=AUTO, far=AUTO, box_size=float(np.clip(side, 1e-9, 1e9)))


def _faults(labels, scene):
    poses, intrinsics = split_label(labels)
    zeros = (labels[:, :16] == 0).all(axis=1) | (labels[:, 16:] == 0).all(axis=1)
    return [
        Fault(zeros, 'its pose or its intrinsics are all zeros', 'write the estimated cameras, or remove the images'),
        Fault(~np.isfinite(labels).all(axis=1), 'a number is not finite', 'correct or remove them'),
        *_pose_faults(poses),
        *_lens_faults(intrinsics),
        *([] if scene is None else _scene_faults(poses, scene)),
    ]


def _is_row(rows, expected):
    return (np.abs(rows - expected) < _ROUNDING).all(axis=1)


def _pose_faults(poses):
    rotation = poses[:, :3, :3]
    off = np.abs(rotation @ rotation.transpose(0, 2, 1) - np.eye(3)).max(axis=(1, 2))
    return [
        Fault(~_is_row(poses[:, 3], [0, 0, 0, 1]), "its matrix's last row is not 0 0 0 1"),
        Fault(~(off <= _OFF_ROTATION), 'its matrix holds no rotation, three orthogonal axes of length 1'),
        Fault(~(np.linalg.det(rotation) > 0), 'its axes are mirrored, determinant -1'),
    ]


def _lens_faults(intrinsics):
    focals, centres = intrinsics[:, [0, 1], [0, 1]], intrinsics[:, :2, 2]
    rows = _is_row(intrinsics[:, 2], [0, 0, 1]) & (np.abs(intrinsics[:, 1, 0]) < _ROUNDING)
    columns = _is_row(intrinsics[:, :, 2], [0, 0, 1])
    pixels = (focals > _LONGEST_FOCAL).any(axis=1) | (np.abs(centres) > _LARGEST_SHARE).any(axis=1)
    aspect = focals[:, 0] / focals[:, 1]
    return [
        Fault(
            ~rows & columns, 'its intrinsics have no last row 0 0 1', 'this looks like column-major intrinsics: transpose them'
        ),
        Fault(~rows, 'its intrinsics have no last row 0 0 1', 'correct them'),
        Fault(~(focals > 0).all(axis=1), 'its focal length is not positive', 'correct or remove them'),
        Fault(
            pixels,
            'its focal length or principal point is beyond any in image widths',
            'this looks like intrinsics in pixels: divide the first row by the width and the second by the height',
        ),
        Fault(
            (focals < _SHORTEST_FOCAL).any(axis=1),
            f'its focal length is below {_SHORTEST_FOCAL} image widths',
            'this looks like intrinsics that were divided by the image size twice',
        ),
        Fault(
            _swapped(aspect, centres),
            'its focal lengths and principal point fit a picture that lies on its side',
            'this looks like intrinsics divided by width and height swapped',
        ),
        Fault(
            ~((centres >= 0) & (centres <= 1)).all(axis=1),
            'its principal point lies outside the picture',
            'this looks like intrinsics of another picture size, or width and height swapped',
        ),
        Fault(
            ~(np.abs(np.log(aspect)) <= np.log(_WIDEST_PIXEL)),
            'its focal lengths along x and y have nothing in common',
            'correct them',
        ),
        Fault(~(np.abs(intrinsics[:, 0, 1]) <= _LARGEST_SKEW * focals[:, 0]), "its skew is no real camera's", 'correct it'),
    ]


def _swapped(aspect, centres):
    """Whether intrinsics in pixels were divided by (height, width) in place of (width, height).

    With r = width / height, a central principal point becomes (r / 2, 1 / 2r), and fx : fy becomes r for square pixels, r^2
    for a picture that was squeezed into a square.
    """
    ratios = np.stack([aspect, np.sqrt(aspect)])
    swapped = np.stack([ratios / 2, 0.5 / ratios], axis=-1)
    off, apart = np.linalg.norm(centres - swapped, axis=-1), np.linalg.norm(swapped - 0.5, axis=-1)
    return (np.abs(np.log(aspect)) > np.log(_SWAPPED_ASPECT)) & (off < np.minimum(apart / 3, _OFF_CENTRE)).any(axis=0)


def _scene_faults(poses, scene):
    origins, forward, half = poses[:, :3, 3], poses[:, :3, 2], scene.box_size / 2
    near, far = (0.0, np.inf) if scene.near == AUTO else (scene.near, scene.far)
    depth = -(origins * forward).sum(axis=1)  # of the axis's point nearest to the world's origin, where the box is centred
    ends = np.stack([(-half - origins) / forward, (half - origins) / forward])
    entry, leave = ends.min(axis=0).max(axis=1), ends.max(axis=0).min(axis=1)
    moving = "correct or remove them, or move the scene to the world's origin"
    return [
        Fault(np.linalg.norm(origins, axis=1) < _ROUNDING * scene.box_size, "it stands at the world's origin, inside the scene"),
        Fault(~(depth > 0), "it looks away from the scene, which is at the world's origin", cure=moving),
        Fault(
            ~(entry <= leave),
            f"its optical axis misses the box of side {scene.box_size:.3g} around the world's origin",
            cure=moving,
        ),
        Fault(
            ~((near <= depth) & (depth <= far)),
            f'its optical axis meets the box outside near {near:.3g} and far {far:.3g}',
            cure='correct or remove them, or train with the --near, --far and --box that dataset_tool.py convert suggests',
        ),
    ]


def _slip_of_labels(labels, scene, axes):
    """What wrong labels look like, as the end of a message; None when nothing fits."""
    poses = split_label(labels[:_MOST_TRIED])[0]

    def sound(poses):
        faults = _pose_faults(poses) + ([] if scene is None else _scene_faults(poses, scene))
        return ~np.any([fault.wrong for fault in faults], axis=0)

    slip = likely_slip(poses, sound, axes)
    if slip:
        return f'this looks like {slip}: give row-major camera-to-world matrices with {AXES[axes]}'
    if scene is None or scene.near == AUTO:
        return None
    distance = np.median(np.linalg.norm(poses[:, :3, 3], axis=1))
    factor = (scene.near + scene.far) / 2 / distance
    moved = poses.copy()
    moved[:, :3, 3] *= factor
    if np.mean(sound(moved)) >= _LIKELY:
        return (
            f"this looks like a wrong distance, {distance:.3g} from the world's origin: multiply positions by {factor:.2g}, or "
            'train with other --near, --far and --box'
        )


def _unturned(poses):
    """Poses [N, 4, 4] whose 3x3 part alone is transposed."""
    turned = poses.copy()
    turned[:, :3, :3] = poses[:, :3, :3].transpose(0, 2, 1)
    return turned


def _inverse(poses):
    """The inverse of rigid motions [N, 4, 4]. What is none, and may have no inverse, becomes something that is wrong, too."""
    inverse = _unturned(poses)
    inverse[:, :3, 3:] = -inverse[:, :3, :3] @ poses[:, :3, 3:]
    return inverse


_LAYOUTS = [
    (None, lambda poses: poses),
    ('column-major matrices', lambda poses: poses.transpose(0, 2, 1)),
    ('transposed rotations', _unturned),
]
_DIRECTIONS = [(None, lambda poses: poses), ('world-to-camera matrices', _inverse)]


def _axes_slips(axes):
    """(name, signs of the columns) of what the axes of cameras may be in place of `axes`."""
    other = next(text for name, text in AXES.items() if name != axes)
    mirrored = 'mirrored axes (determinant -1)'
    return [(None, [1, 1, 1, 1]), (other, [1, -1, -1, 1]), (mirrored, [-1, 1, 1, 1]), (mirrored, [1, 1, -1, 1])]
