"""The demo set: simple ray-traced heads, each of random proportions and colours, seen from known cameras.

A head is a short list of ellipsoids. The face looks toward +z; everything fits into the box of side 1.
All shapes and the light are symmetric in x, so that a mirrored picture is a picture of the set.
"""

import dataclasses
import math

import numpy as np

from training.rendering.cameras import look_at_pose, make_label, pinhole

_YAW_RANGE = 0.9  # rad, to either side of the frontal view
_PITCH_SPREAD, _PITCH_LIMIT = 0.2, 0.5  # rad: standard deviation and cut
_SUPERSAMPLING = 2  # rays per pixel and axis
_LIGHT = np.array([0.0, 0.6, 0.8], np.float32)  # unit vector toward the light, fixed in the world
_AMBIENT = 0.45
# Warm skin and cool hair, each along one line: a small network learns these colours within minutes.
_SKIN = (0.98, 0.82, 0.66), (0.78, 0.42, 0.22)
_HAIR = (0.12, 0.75, 0.65), (0.30, 0.18, 0.75)
_IRIS = (0.08, 0.06, 0.10)


@dataclasses.dataclass(frozen=True)
class Ellipsoid:
    """Axis-aligned ellipsoid; `cut` = (normal, offset) keeps only the shell's points with normal . x > offset."""

    centre: np.ndarray  # [3], world units
    axes: np.ndarray  # [3], half axes
    color: np.ndarray  # [3], 0..1
    cut: tuple = (np.zeros(3), -1.0)  # a plane that cuts nothing off


def draw_cameras(count, focal, radius, rng):
    """Random camera labels, float32 array [count, 25]: yaw uniform, pitch normal, looking at the origin."""
    yaw = rng.uniform(-_YAW_RANGE, _YAW_RANGE, count)
    pitch = np.clip(rng.normal(0, _PITCH_SPREAD, count), -_PITCH_LIMIT, _PITCH_LIMIT)
    vertical = math.pi / 2 * (1 - np.sin(pitch))  # the vertical angle is uniform in the height, not in the pitch
    poses = look_at_pose(math.pi / 2 + yaw, vertical, (0.0, 0.0, 0.0), radius)
    return make_label(poses, pinhole(focal)).numpy()


def draw_head(rng):
    """A random identity: a list of ellipsoids inside the sphere of radius 0.32 around the origin."""
    size = rng.uniform([0.17, 0.215, 0.18], [0.21, 0.255, 0.22])
    skin, hair = _blend(_SKIN, rng.uniform()), _blend(_HAIR, rng.uniform())
    head = Ellipsoid(np.array([0, -0.02, 0]), size, skin)
    nose = Ellipsoid(_on_face(head, 0, -0.1), rng.uniform([0.03, 0.036, 0.06], [0.042, 0.05, 0.085]), skin * 0.85)
    lips = np.array([*rng.uniform([0.06, 0.018], [0.09, 0.03]), 0.03])
    mouth = Ellipsoid(_on_face(head, 0, -0.52, 0.97), lips, np.array([0.75, 0.08, 0.15]))
    ear, beside = np.array([*rng.uniform([0.03, 0.045], [0.05, 0.065]), 0.02]), np.array([size[0] + 0.01, 0.01, 0])
    ears = [Ellipsoid(head.centre + beside * [side, 1, 1], ear, skin * 0.9) for side in (-1, 1)]
    eyes = _eyes(rng, head)
    tilt = rng.uniform(0.4, 0.8)  # of the hair line: hair covers the crown and the back
    cut = (np.array([0, math.cos(tilt), -math.sin(tilt)]), rng.uniform(0.02, 0.06))
    return [head, nose, mouth, *ears, *eyes, Ellipsoid(head.centre, size * 1.07, hair, cut)]


def render_ellipsoids(parts, label, resolution):
    """Picture of ellipsoids from a camera, uint8 array [resolution, resolution, 3].

    parts: list of Ellipsoid; label: float array [25]; the camera must be outside all of them.
    """
    fine = resolution * _SUPERSAMPLING
    origin, directions = _camera_rays(label, fine)
    color = np.ones((3, fine, fine), np.float32)  # on white, which the demo preset composites on
    depth = np.full((fine, fine), np.inf, np.float32)
    for part in parts:
        _trace(part, origin, directions, color, depth)
    steps = range(_SUPERSAMPLING)
    mean = sum(color[:, i::_SUPERSAMPLING, j::_SUPERSAMPLING] for i in steps for j in steps) / _SUPERSAMPLING**2
    return (mean.transpose(1, 2, 0) * 255 + 0.5).astype(np.uint8)


def demo_items(images, resolution, identities, seed, focal, radius):
    """Yields (picture, label) of the demo set: uint8 [resolution, resolution, 3], float32 [25].

    Image i shows identity i modulo `identities`. The same arguments give the same pictures.
    """
    cameras = draw_cameras(images, focal, radius, np.random.default_rng([seed, 0]))
    for index, label in enumerate(cameras):
        head = draw_head(np.random.default_rng([seed, 1, index % identities]))
        yield render_ellipsoids(head, label, resolution), label


def _blend(colors, position):
    """The colour at `position` in [0, 1] on the way from the first of two colours to the second."""
    first, second = np.array(colors)
    return first + (second - first) * position


def _on_face(head, x, y, height=1.0):
    """The point of the face at (x, y), in the head's half axes; `height` > 1 lies above the skin."""
    unit = np.array([x, y, math.sqrt(1 - x * x - y * y)])
    return head.centre + head.axes * unit * height


def _eyes(rng, head):
    x, y = rng.uniform(0.4, 0.46), rng.uniform(0.12, 0.22)
    white, pupil = rng.uniform(0.052, 0.062), rng.uniform(0.03, 0.036)
    eyes = []
    for side in (-1, 1):
        centre = _on_face(head, side * x, y, 0.93)
        front = centre + np.array([0, 0, white - 0.4 * pupil])
        eyes.append(Ellipsoid(centre, np.full(3, white), np.array([0.97, 0.97, 0.97])))
        eyes.append(Ellipsoid(front, np.full(3, pupil), np.array(_IRIS)))
    return eyes


# Images of the tracer are channels first, so that numpy's inner loops are long.


def _camera_rays(label, resolution):
    """Camera origin [3] and directions [3, resolution, resolution], of unit depth, not of unit length."""
    pose, intrinsics = label[:16].reshape(4, 4), label[16:].reshape(3, 3)
    centres = (np.arange(resolution, dtype=np.float32) + 0.5) / resolution
    x = (centres - intrinsics[0, 2]) / intrinsics[0, 0]
    y = (centres - intrinsics[1, 2]) / intrinsics[1, 1]
    right, down, forward = pose[:3, :3].T[:, :, None, None]
    return pose[:3, 3], (x * right + y[:, None] * down + forward).astype(np.float32)


def _trace(part, origin, directions, color, depth):
    """Draws one ellipsoid into the colour [3, h, w] and depth [h, w] buffers, in place."""
    inverse = (1 / part.axes).astype(np.float32)
    start = (origin - part.centre).astype(np.float32) * inverse  # the ellipsoid is the unit sphere here
    a = _dot(inverse**2, directions**2)
    b = _dot(start * inverse, directions)
    discriminant = b * b - a * (_dot(start, start) - 1)
    rows, columns = np.nonzero(discriminant > 0)
    a, b, root = a[rows, columns], b[rows, columns], np.sqrt(discriminant[rows, columns])
    rays = directions[:, rows, columns]
    distance = _first_kept(part.cut, origin, rays, (-b - root) / a, (root - b) / a)
    seen = distance < depth[rows, columns]
    rows, columns, rays, distance = rows[seen], columns[seen], rays[:, seen], distance[seen]
    depth[rows, columns] = distance
    color[:, rows, columns] = part.color.astype(np.float32)[:, None] * _shading(start, inverse, rays, distance)


def _shading(start, inverse, rays, distance):
    """Lambert's law plus ambient light at the points `distance` [n] along `rays` [3, n]."""
    normal = (start[:, None] + rays * distance * inverse[:, None]) * inverse[:, None]
    # The inside of a cut shell faces the camera as well.
    facing = -np.sign(_dot(normal, rays)) / np.sqrt(_dot(normal, normal))
    return _AMBIENT + (1 - _AMBIENT) * np.maximum(_dot(_LIGHT, normal) * facing, 0)


def _dot(a, b):
    """Scalar products along the first axis, of size 3: no BLAS, whose threads and roundings differ by machine."""
    return a[0] * b[0] + a[1] * b[1] + a[2] * b[2]


def _first_kept(cut, origin, rays, entry, leave):
    """The first of entry and leave that lies on the kept side of the cut, else infinity."""
    normal, offset = cut[0].astype(np.float32), np.float32(cut[1])
    along, start = _dot(normal, rays), _dot(normal, origin)
    kept_leave = np.where(start + leave * along > offset, leave, np.inf)
    return np.where(start + entry * along > offset, entry, kept_leave)
