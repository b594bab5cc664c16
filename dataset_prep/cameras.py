"""The cameras of a file, for pictures of them that are not there: of a data set, of photographs, or written while sampling."""

from pathlib import Path

import numpy as np
import torch

from dataset_prep.convert import load_views, square_label
from dataset_prep.transforms import SPLIT_FILES, TRANSFORMS_FILE, transforms_files
from training.data.dataset import (
    LABEL_FILE,
    DatasetError,
    FileStore,
    image_header,
    label_pairs,
    lies_deeper,
    parse_json,
    read_json,
    stacked_cameras,
)


def read_cameras(path, radius):
    """The names and labels, float32 [N, 25], of the cameras of `path`, in the order of the file.

    path: a file in the form of dataset.json; a transforms.json, whose images must be there; or a folder or zip with one of them.
    The world of a transforms.json is brought to a median camera distance of `radius`, as `dataset_tool.py convert` does, and its
    cameras see the central square. Raises DatasetError or CameraError.
    """
    path = Path(path)
    if path.is_file() and path.suffix.lower() == '.json':
        return _photograph_cameras(path.parent, radius) if path.name == TRANSFORMS_FILE else _file_cameras(path)
    store = FileStore(path)
    if transforms_files(store):
        return _photograph_cameras(path, radius)
    if LABEL_FILE in store:
        return _labels(read_json(store, LABEL_FILE), path, LABEL_FILE)
    cure = lies_deeper(store, TRANSFORMS_FILE, *SPLIT_FILES, LABEL_FILE) or ': give a folder, zip or file that has cameras'
    raise DatasetError(f'{path} has neither {TRANSFORMS_FILE} nor {LABEL_FILE} at its top{cure}')


def _file_cameras(path):
    content = parse_json(path.read_bytes(), f'{path.parent}: {path.name}')
    if isinstance(content, dict) and 'frames' in content:
        raise DatasetError(f'{path} has the form of a {TRANSFORMS_FILE}: give it that name, or give its folder')
    return _labels(content, path.parent, path.name)


def _labels(content, folder, file):
    pairs = label_pairs(content, folder, file)
    if not pairs:
        raise DatasetError(f'{folder}: {file} has no cameras: add some')
    names = [name for name, _ in pairs]
    return names, stacked_cameras([label for _, label in pairs], names, folder, file)


def _photograph_cameras(path, radius):
    store, views, _ = load_views(path, radius)
    labels = [square_label(view, image_header(store, view.name).size) for view in views]
    return [view.name for view in views], torch.from_numpy(np.array(labels, dtype=np.float32))
