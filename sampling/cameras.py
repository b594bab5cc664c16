"""The cameras that subjects are seen by: the viewer's, or those of a file; and what was used, on disk."""

import json
from typing import NamedTuple

import numpy as np
import torch

from dnnlib.errors import UserError
from dnnlib.files import replacing
from training.config import AUTO
from training.data.camera_checks import check_cameras, first_fault
from training.rendering.cameras import view_label


class Cameras(NamedTuple):
    """names: of N cameras; labels: float32 [N, 25]."""

    names: list
    labels: torch.Tensor

    def __len__(self):
        return len(self.names)


def viewer_cameras(config, yaw, pitch, focal=None, radius=None, pivot=None):
    """The Cameras of a generator's viewer at angles yaw, pitch [N], radians.

    focal (image widths), radius and pivot (world units) take the place of the configuration's. Raises UserError where a camera
    does not see the scene.
    """
    given = {'focal': focal, 'camera_radius': radius, 'camera_pivot': pivot}
    rendering = config.rendering.replace(**{name: value for name, value in given.items() if value is not None})
    labels = view_label(config.replace(rendering=rendering), yaw, pitch)
    names = [f'view{index:02d}' for index in range(len(labels))]
    _, fault, _ = first_fault(labels.double().numpy(), names, _scene(config))
    if fault:
        own = config.rendering
        raise UserError(
            f"--focal, --radius or --pivot: with the viewer's camera {fault.what}; stay nearer to the network's own "
            f'--focal={own.focal:.3g} --radius={own.camera_radius:.3g} --pivot={",".join(map("{:g}".format, own.camera_pivot))}'
        )
    return Cameras(names, labels)


def check_seen(cameras, config, source):
    """Raise CameraError unless all cameras are cameras, and look at the box of a generator; source: for the message."""
    check_cameras(cameras.labels, cameras.names, source, _scene(config))


def _scene(config):
    """The scene of a generator, for cameras at any distance: near and far follow them (`sampling.subjects.follow_camera`)."""
    return config.rendering.replace(near=AUTO, far=AUTO)


def write_cameras(path, cameras):
    """Write Cameras in the form of a data set's dataset.json. Numbers come back to the last bit."""
    lines = [json.dumps([name, label.tolist()]) for name, label in zip(cameras.names, cameras.labels)]
    with replacing(path) as file:
        file.write(('{"labels": [\n' + ',\n'.join(lines) + '\n]}\n').encode())


def save_array(array, path):
    """Write a tensor as an npy, whole or not at all."""
    with replacing(path) as file:
        np.save(file, array.numpy())
