"""Scenes of known geometry, rendered by sphere tracing, for the tests of metrics/consistency."""

import json
import math
from pathlib import Path

import torch
import torch.nn.functional as F
from PIL import Image

from metrics.consistency.views import Views, view_rays
from training.data.dataset import LABEL_FILE
from training.rendering.cameras import look_at_pose, make_label, pinhole

BOX = 1.0  # side of the scene's cube
RADIUS, FOCAL = 2.7, 2.6  # cameras that see the whole box


def sphere(points):
    return points.norm(dim=-1) - 0.3


def box(points):
    return _cuboid(points, (0.26, 0.2, 0.23))


def table(points):
    """A plate of 4 % of the box on a pole of 8 %: the thin part."""
    return torch.minimum(
        _cuboid(points - torch.tensor([0, 0.1, 0]), (0.3, 0.02, 0.22)),
        _cuboid(points + torch.tensor([0, 0.1, 0]), (0.04, 0.2, 0.04)),
    )


SHAPES = {'sphere': sphere, 'box': box, 'table': table}


def _cuboid(points, half):
    beyond = points.abs() - torch.tensor(half)
    return beyond.clamp(min=0).norm(dim=-1) + beyond.amax(dim=-1).clamp(max=0)


def texture(points):
    """Smooth coloured stripes across all three axes: colours [P, 3] between 0.4 and 0.84, the contrast of a photograph."""
    directions = torch.tensor([[9.0, 5.0, 3.0], [-4.0, 11.0, 5.0], [6.0, -5.0, 10.0]])
    return 0.62 + 0.22 * torch.sin(2.5 * points @ directions.T)


def normals(shape, points, step=1e-3):
    """Outward unit normals [P, 3] of a shape by central differences."""
    offsets = step * torch.eye(3)
    ends = [shape(points + offset) - shape(points - offset) for offset in offsets]
    return F.normalize(torch.stack(ends, dim=-1), dim=-1)


def around(count):
    """Labels [count, 25] of cameras all around, between 40 degrees above and below the horizon."""
    yaw = torch.arange(count) * (2 * math.pi * 0.381966)  # the golden angle: no two cameras above each other
    pitch = torch.linspace(-1, 1, count)
    return make_label(look_at_pose(math.pi / 2 + yaw, math.pi / 2 + pitch, (0, 0, 0), RADIUS), pinhole(FOCAL))


def frontal(count, yaw_range=0.4):
    """Labels [count, 25] of the protocol's cameras."""
    yaw = torch.linspace(-yaw_range, yaw_range, count)
    return make_label(look_at_pose(math.pi / 2 + yaw, math.pi / 2, (0, 0, 0), RADIUS), pinhole(FOCAL))


def trace(shape, origins, directions, steps=96):
    """Distances [M] along rays to a shape, and whether they hit it."""
    depth = torch.full_like(origins[:, 0], RADIUS - BOX)
    for _ in range(steps):
        depth = depth + shape(origins + directions * depth[:, None])
    return depth, shape(origins + directions * depth[:, None]).abs() < 1e-3


def render(shape, labels, resolution, supersampling=2):
    """Views of a shape on white."""
    images, depth = render_images(shape, labels, resolution, texture, supersampling)
    return Views('scene', images, labels, BOX, depth)


def render_images(shape, labels, resolution, texture=texture, supersampling=2):
    """Images uint8 [V, R, R, 3] on white and depth [V, R, R], infinite beside the shape.

    texture: points [P, 3] -> colours [P, 3] in [0, 1].
    """
    fine = resolution * supersampling
    images, depths = [], []
    for label in labels:
        origins, directions = (x[0] for x in view_rays(label[None], (fine, fine)))
        depth, hit = trace(shape, origins, directions)
        colors = torch.where(hit[:, None], texture(origins + directions * depth[:, None]), torch.ones(3))
        images.append(colors.reshape(resolution, supersampling, resolution, supersampling, 3).mean(dim=(1, 3)))
        depths.append(depth.where(hit, torch.inf).reshape(fine, fine)[::supersampling, ::supersampling])
    return (torch.stack(images) * 255).round().to(torch.uint8), torch.stack(depths)


def save_views(views, folder):
    """Write views as PNG files and a dataset.json, as `--views` reads them."""
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    names = [f'view{index:03d}.png' for index in range(len(views))]
    for name, image in zip(names, views.images.numpy()):
        Image.fromarray(image).save(folder / name)
    content = {'labels': [[name, label] for name, label in zip(names, views.labels.tolist())]}
    (folder / LABEL_FILE).write_text(json.dumps(content))
