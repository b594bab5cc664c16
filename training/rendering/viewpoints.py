"""Viewpoints on the sphere around a subject, and camera paths for videos (docs/conventions.md).

Angles are radians away from the frontal view. Positive yaw moves the camera towards +x, to the subject's own left;
positive pitch moves it down. Both are offsets of the look-at angles (h, v) = (pi/2 + yaw, pi/2 + pitch); v is uniform
in height, so the elevation is arcsin(-2 pitch / pi).
"""

import math

import torch

from training.rendering.cameras import look_at_pose, make_label, pinhole


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
