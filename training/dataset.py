"""Posed images: the data set on disk, and the order in which training sees it.

A data set is a zip (stored) or a folder of images with a `dataset.json` at its top:
``{"labels": [["dir/name.png", [25 numbers]], ...]}``, or a dictionary from names to labels.
"""

import contextlib
import functools
import hashlib
import json
import os
import pathlib
import struct
import zipfile
import zlib

import numpy as np
import torch

from dnnlib.errors import UserError
from dnnlib.pictures import PICTURE_SUFFIXES, PictureError, fits_proportions, picture_notes, read_header, read_picture
from training.camera_checks import check_cameras
from training.rendering.cameras import LABEL_SIZE

LABEL_FILE = 'dataset.json'
_HEADERS_CHECKED = 5000  # image sizes looked at on construction: under a second; every image is checked when read
_BROKEN_FILE = (OSError, EOFError, SyntaxError, ValueError, struct.error, zlib.error, zipfile.BadZipFile)
# what zipfile and json raise for bad files
_MIRRORED_POSE_ENTRIES = [1, 2, 3, 4, 8]  # (0,1), (0,2), (0,3), (1,0), (2,0) of the row-major 4x4 pose


class DatasetError(UserError, ValueError):
    """A data set that cannot be used as asked; the message is one line with the cause and the cure."""


class FileStore:
    """Read-only files of a zip or of a folder, by relative name with forward slashes.

    Picklable and safe in forked workers: every process opens the zip for itself, at its first read.
    Raises DatasetError when `path` does not exist or is neither a folder nor a sound zip.
    """

    def __init__(self, path):
        self.path = pathlib.Path(path)
        self._zip, self._zip_owner = None, None
        if not self.path.exists():
            raise DatasetError(f'{self.path} does not exist: give the path of a zip or a folder of images')
        self.is_zip = not self.path.is_dir()
        if self.is_zip:
            self._check_zip()
        self.names = sorted(self._list_zip() if self.is_zip else self._list_folder())
        self._known = frozenset(self.names)

    def __contains__(self, name):
        return name in self._known

    def read(self, name):
        """The bytes of a file."""
        with self.open(name) as file:
            return file.read()

    def open(self, name):
        """A binary file object; of a zip it reads only as far as it is asked to."""
        return self._archive().open(name) if self.is_zip else open(self.path / name, 'rb')

    def _check_zip(self):
        if zipfile.is_zipfile(self.path):
            return
        with open(self.path, 'rb') as file:
            looks_like_zip = file.read(4) == b'PK\x03\x04' or self.path.suffix.lower() == '.zip'
        if looks_like_zip:
            raise DatasetError(f'{self.path} is a truncated or corrupt zip: copy or create it again')
        raise DatasetError(f'{self.path} is neither a zip nor a folder: give the path of a zip or a folder of images')

    def _archive(self):
        # A forked child must not share the parent's file position.
        if self._zip is None or self._zip_owner != os.getpid():
            try:
                self._zip, self._zip_owner = zipfile.ZipFile(self.path), os.getpid()
            except (OSError, zipfile.BadZipFile) as error:
                raise DatasetError(
                    f'{self.path} is a truncated or corrupt zip ({error}): copy or create it again') from error
        return self._zip

    def _list_zip(self):
        return [name for name in self._archive().namelist() if not name.endswith('/')]

    def _list_folder(self):
        return [(pathlib.Path(folder) / name).relative_to(self.path).as_posix()
                for folder, _, names in os.walk(self.path, followlinks=True) for name in names]

    def __getstate__(self):
        return {**self.__dict__, '_zip': None, '_zip_owner': None}


def image_names(store):
    """The image files of a FileStore, sorted; hidden files and macOS's resource forks are none."""
    return [name for name in store.names
            if name.lower().endswith(PICTURE_SUFFIXES)
            and not any(part.startswith('.') or part == '__MACOSX' for part in name.split('/'))]


def open_image(store, name, background='black'):
    """The picture of a file, RGB, as `dnnlib.pictures.read_picture` has it. Raises DatasetError naming the file."""
    with _naming(store, name):
        return read_picture(store.read(name), background)


def image_header(store, name):
    """The dnnlib.pictures.PictureHeader of a file. Raises DatasetError as `open_image` does."""
    with _naming(store, name), store.open(name) as file:
        return read_header(file)


def image_size(store, name):
    """(width, height) of a picture file in pixels, upright, from its header. Raises DatasetError as `open_image` does."""
    return image_header(store, name).size


def image_notes(store, names, background):
    """What `open_image` does to pictures beside reading them, counted, as lines of text. Raises DatasetError as it does."""
    return picture_notes([image_header(store, name) for name in names], background)


@contextlib.contextmanager
def _naming(store, name):
    """A PictureError of a file as DatasetError."""
    try:
        yield
    except PictureError as error:
        raise DatasetError(f'{store.path}: image {name} {error}') from error
    except _BROKEN_FILE as error:
        raise DatasetError(f'{store.path}: image {name} cannot be read ({error}): replace or remove it') from error


def check_declared_size(store, name, declared):
    """Raises DatasetError unless a picture has the proportions of the `declared` (width, height) that its camera is for."""
    header = image_header(store, name)
    if fits_proportions(header.size, declared):
        return
    width, height = header.size
    said = f'{store.path}: image {name} measures {width}x{height}'
    if fits_proportions(header.stored_size, declared):
        raise DatasetError(f'{said} once its EXIF orientation is applied, but its camera is for {declared[0]:g}x{declared[1]:g}, '
                           'as it is stored: remove the orientation, or make the cameras from upright pictures')
    raise DatasetError(f'{said}, but its camera is for {declared[0]:g}x{declared[1]:g}, of other proportions: give the picture '
                       'that the camera belongs to, resized at most')


def read_labels(store, names):
    """The camera labels of images, float32 [len(names), 25]. Raises DatasetError when any is missing or malformed, and
    CameraError when any is no camera."""
    labels = _label_table(store)
    missing = [name for name in names if name not in labels]
    if missing:
        raise DatasetError(f'{store.path}: {len(missing)} of {len(names)} images have no label in {LABEL_FILE}, '
                           f'first {missing[0]}: add their labels or remove the images')
    wrong = next((name for name in names if not _is_label(labels[name])), None)
    if wrong is not None:
        raise DatasetError(f'{store.path}: the label of {wrong} in {LABEL_FILE} is not a list of {LABEL_SIZE} finite '
                           'numbers (4x4 camera-to-world, 3x3 intrinsics): correct it')
    labels = torch.from_numpy(np.array([labels[name] for name in names], dtype=np.float32))
    check_cameras(labels, names, f'{store.path}/{LABEL_FILE}')
    return labels


def _label_table(store):
    if LABEL_FILE not in store:
        raise DatasetError(f'{store.path} has no {LABEL_FILE} at its top, so the cameras are unknown: '
                           'make the set with dataset_tool.py convert')
    try:
        content = json.loads(store.read(LABEL_FILE))
        labels = content.get('labels', content)
        return {name.replace('\\', '/'): label for name, label in dict(labels).items()}
    except (TypeError, AttributeError, *_BROKEN_FILE) as error:
        raise DatasetError(f'{store.path}: {LABEL_FILE} cannot be read: it must be JSON of the form '
                           '{"labels": [["dir/name.png", [25 numbers]], ...]}') from error


def _is_label(label):
    if not isinstance(label, list) or len(label) != LABEL_SIZE:
        return False
    try:
        return bool(np.isfinite(np.array(label, dtype=np.float32)).all())
    except (TypeError, ValueError):
        return False


def mirror_label(label):
    """The camera that sees the world mirrored in x as the mirrored image shows it.

    label: tensor [..., 25]. Returns a new tensor: pose entries (0,1), (0,2), (1,0), (2,0), (0,3) negated, the
    principal point reflected (0.5 stays) and the skew negated (0 stays).
    """
    mirrored = label.clone()
    mirrored[..., _MIRRORED_POSE_ENTRIES] = -label[..., _MIRRORED_POSE_ENTRIES]
    mirrored[..., 17] = 0 - label[..., 17]
    mirrored[..., 18] = 1 - label[..., 18]
    return mirrored


class ImageDataset(torch.utils.data.Dataset):
    """Square images of one size, sorted by file name; cameras are not needed.

    path: zip or folder. resolution: what the images must measure, in pixels; None takes any. limit: use the first so many
    images only. mirror: double the set; index i + n is image i of n mirrored in x. background: colour name, what transparent
    pixels are composited on.

    Item i is an image, uint8 [3, H, W]; `dnnlib.pictures.read_picture` says what becomes RGB.
    Attributes: `resolution` (pixels), `name` (the file's name without suffix), `background`, `notes` (lines of text: what is
    odd about the set, and what is done about it).
    Raises DatasetError for anything wrong with the files: on construction, or on reading a broken image.
    """

    def __init__(self, path, resolution=None, limit=None, mirror=False, background='black'):
        self._store, self.background = FileStore(path), background
        self._names = self._select(limit)
        self._mirror = mirror
        self.name = self._store.path.resolve().stem
        self.notes = []
        self.resolution = self._check_sizes()
        if resolution is not None and resolution != self.resolution:
            raise DatasetError(
                f'{self._store.path} holds images of {self.resolution}x{self.resolution} pixels, but {resolution}x{resolution} '
                f'are wanted: choose a --preset of {self.resolution} pixels, or resize the set with '
                f'dataset_tool.py convert --resolution={resolution}')

    def __len__(self):
        return len(self._names) * (2 if self._mirror else 1)

    def __getitem__(self, index):
        index = range(len(self))[index]  # negative indices count from the end; IndexError beyond
        name = self._names[index % len(self._names)]
        image = open_image(self._store, name, self.background)
        self._check_size(name, image.size)
        pixels = np.asarray(image)
        if index >= len(self._names):
            pixels = pixels[:, ::-1]
        return torch.from_numpy(pixels.transpose(2, 0, 1).copy())

    def check_scene(self, scene):
        """Raise CameraError unless all cameras see the box of a RenderingConfig, between its near and far."""
        check_cameras(self.labels[:len(self._names)], self._names, f'{self._store.path}/{LABEL_FILE}', scene)

    def _select(self, limit):
        names = image_names(self._store)
        if not names:
            raise DatasetError(f'{self._store.path} contains no images: give a zip or folder with PNG files')
        if limit is not None and limit < 1:
            raise DatasetError(f'the limit on the number of images is {limit}: give at least 1, or no limit')
        return names[:limit]

    def _check_sizes(self):
        """The side of all images, which is that of the first."""
        width, height = image_size(self._store, self._names[0])
        if width != height:
            raise DatasetError(f'{self._store.path}: image {self._names[0]} is not square ({width}x{height}): '
                               'crop all images; dataset_tool.py convert crops those with cameras')
        self.resolution = width
        stride = -(-len(self._names) // _HEADERS_CHECKED)
        headers = []
        for name in self._names[::stride]:
            headers.append(image_header(self._store, name))
            self._check_size(name, headers[-1].size)
        self.notes += picture_notes(headers, self.background)
        return width

    def _check_size(self, name, size):
        if size != (self.resolution, self.resolution):
            raise DatasetError(
                f'{self._store.path}: image {name} measures {size[0]}x{size[1]}, the first one '
                f'{self.resolution}x{self.resolution}: make all images square and of one size')


class PosedImageDataset(ImageDataset):
    """An ImageDataset with cameras, from the `dataset.json` of its zip or folder.

    Item i is (image uint8 [3, H, W], label float32 [25]). Attribute: `labels`, float32 [len, 25].
    """

    def __init__(self, path, resolution=None, limit=None, mirror=False, background='black'):
        super().__init__(path, resolution, limit, mirror, background)
        labels = read_labels(self._store, self._names)
        self.labels = torch.cat([labels, mirror_label(labels)]) if mirror else labels

    def __getitem__(self, index):
        return super().__getitem__(index), self.labels[index].clone()


def epoch_order(n, seed, epoch):
    """The order in which epoch number `epoch` visits n images: a permutation, int64 [n], keyed by (seed, epoch)."""
    return _epoch_order(n, seed, epoch).clone()


@functools.lru_cache(maxsize=2)  # a batch touches at most two epochs, unless the set is smaller than the batch
def _epoch_order(n, seed, epoch):
    # Hashed, so that (seed, epoch + 1) and (seed + 1, epoch) have nothing in common.
    key = hashlib.blake2b(f'{seed} {epoch}'.encode(), digest_size=8).digest()
    generator = torch.Generator().manual_seed(int.from_bytes(key, 'big') >> 1)
    return torch.randperm(n, generator=generator)


def batch_indices(n, seed, start, count):
    """Indices of the images at positions start .. start + count - 1 of the endless stream of shuffled epochs.

    n: images in the set; start: images seen so far. Returns int64 [count]. A pure function: any cut of the stream
    gives the same stream.
    """
    parts = [torch.empty(0, dtype=torch.int64)]
    position, end = start, start + count
    while position < end:
        epoch, offset = divmod(position, n)
        taken = min(n - offset, end - position)
        parts.append(_epoch_order(n, seed, epoch)[offset:offset + taken])
        position += taken
    return torch.cat(parts)
