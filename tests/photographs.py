"""Photographs of known points by hand-made cameras, in a folder with a transforms.json, and dataset_tool.py run on them."""

import json

import numpy as np
from PIL import Image

from dataset_tool import main
from tests.helpers import error_line, invoke
from training.data.dataset import PosedImageDataset

POINTS = np.array([[0.0, 0.1, 0.2], [0.5, 0.2, -0.1], [-0.4, 0.3, 0.3], [0.1, -0.5, 0.1], [-0.2, -0.3, -0.4]])
COLOURS = np.array([[255, 0, 0], [0, 255, 0], [0, 0, 255], [255, 255, 0], [255, 0, 255]], np.uint8)
WIDTH, HEIGHT, FOCAL, CENTRE = 120, 160, 170.0, (57.0, 84.0)
WORLD_TURN, WORLD_MOVE, WORLD_SCALE = np.array([[1.0, 0, 0], [0, 0, -1], [0, 1, 0]]), np.array([3.0, -2, 5]), 4.0


def photograph(pose):
    """A picture of the coloured points, each a 5 x 5 square, taken by a hand-made camera (OpenGL axes)."""
    picture = np.full((HEIGHT, WIDTH, 3), 255, np.uint8)
    in_camera = (POINTS * WORLD_SCALE @ WORLD_TURN.T + WORLD_MOVE - pose[:3, 3]) @ pose[:3, :3]
    for (x, y, z), color in zip(in_camera, COLOURS):
        column, row = int(CENTRE[0] + FOCAL * x / -z), int(CENTRE[1] - FOCAL * y / -z)
        picture[row - 2 : row + 3, column - 2 : column + 3] = color
    return picture


def opengl_pose(yaw, pitch, distance=3.0):
    """Camera around POINTS' origin, in a world that is turned (z up), moved and scaled."""
    back = np.array([np.sin(yaw) * np.cos(pitch), np.sin(pitch), np.cos(yaw) * np.cos(pitch)])
    right = np.cross([0, 1, 0], back) / np.cos(pitch)
    pose = np.eye(4)
    pose[:3, :3] = WORLD_TURN @ np.stack([right, np.cross(back, right), back], axis=1)
    pose[:3, 3] = WORLD_TURN @ back * distance * WORLD_SCALE + WORLD_MOVE
    return pose


def write_photographs(folder):
    """Five photographs of POINTS and their transforms.json, in a new folder; returns it."""
    source = folder / 'photographs'
    (source / 'images').mkdir(parents=True)
    frames = []
    for number, (yaw, pitch) in enumerate([(-0.6, 0.1), (0.6, 0.1), (-0.3, -0.2), (0.3, -0.2), (0.0, 0.2)]):
        pose = opengl_pose(yaw, pitch)
        Image.fromarray(photograph(pose)).save(source / f'images/{number}.png')
        frames.append({'file_path': f'./images/{number}', 'transform_matrix': pose.tolist()})
    write_transforms(source, frames)
    return source


def write_transforms(source, frames, **changes):
    common = {'fl_x': FOCAL, 'fl_y': FOCAL, 'cx': CENTRE[0], 'cy': CENTRE[1], 'w': WIDTH, 'h': HEIGHT}
    (source / 'transforms.json').write_text(json.dumps({**common, **changes, 'frames': frames}))


def read_frames(source):
    return json.loads((source / 'transforms.json').read_text())['frames']


def converted(source, dest, *options):
    run('convert', '--source', source, '--dest', dest, '--resolution', 60, *options)
    return PosedImageDataset(dest, resolution=60)


def run(*arguments, code=0):
    result = invoke(main, *arguments)
    assert result.exit_code == code, result.output
    return result.output


def refused(*arguments):
    """The one error line of a run that must fail."""
    result = invoke(main, *arguments)
    assert result.exit_code == 1
    return error_line(result)
