"""Posed images: the data set on disk, and the order in which training sees it.

A data set is a zip (stored) or a folder of images with a `dataset.json` at its top:
``{"labels": [["dir/name.png", [25 numbers]], ...]}``, or a dictionary from names to labels.
"""

import collections
import contextlib
import functools
import hashlib
import json
import posixpath

import numpy as np
import torch

from dnnlib.errors import one_line
from dnnlib.pictures import PICTURE_SUFFIXES, PictureError, fits_proportions, picture_notes, read_header, read_picture
from training.data.camera_checks import check_cameras
from training.data.file_store import DatasetError, FileStore
from training.rendering.cameras import LABEL_SIZE

LABEL_FILE = 'dataset.json'
_CHECKSUMS = 500  # in a hash of a set: of a folder, so many pictures are read whenever a run starts
_HEADERS_CHECKED = 5000  # image sizes looked at on construction: under a second; every image is checked when read
_LARGEST = float(np.finfo(np.float32).max)
_MIRRORED_POSE_ENTRIES = [1, 2, 3, 4, 8]  # (0,1), (0,2), (0,3), (1,0), (2,0) of the row-major 4x4 pose


def image_names(store):
    """The picture files of a FileStore, sorted. Raises DatasetError when there are none."""
    names = [name for name in store.names if name.lower().endswith(PICTURE_SUFFIXES)]
    if not names:
        packed = next((f', but {name}: unpack it' for name in store.names if name.lower().endswith('.zip')), '')
        others = f', only files such as {store.names[0]}' if store.names else ''
        raise DatasetError(f'{store.path} contains no images{packed or others}; give a zip or folder with PNG files')
    return names


def open_image(store, name, background='black'):
    """The picture of a file, RGB, as `dnnlib.pictures.read_picture` has it. Raises DatasetError naming the file."""
    with _naming_picture(store, name):
        return read_picture(store.read(name), background)


def image_header(store, name):
    """The dnnlib.pictures.PictureHeader of a picture file. Raises DatasetError as `open_image` does."""
    with _naming_picture(store, name), store.open(name) as file:
        return read_header(file)


def image_notes(store, names, background):
    """What `open_image` does to pictures beside reading them, counted, as lines of text. Raises DatasetError as it does."""
    return picture_notes([image_header(store, name) for name in names], background)


@contextlib.contextmanager
def _naming_picture(store, name):
    """A PictureError of a file as DatasetError."""
    try:
        yield
    except PictureError as error:
        raise DatasetError(f'{store.path}: image {name} {error}') from error


def check_declared_size(store, name, declared):
    """Raises DatasetError unless a picture has the proportions of the `declared` (width, height) that its camera is for."""
    header = image_header(store, name)
    if fits_proportions(header.size, declared):
        return
    width, height = header.size
    said = f'{store.path}: image {name} measures {width}x{height}'
    if fits_proportions(header.stored_size, declared):
        raise DatasetError(
            f'{said} once its EXIF orientation is applied, but its camera is for {declared[0]:g}x{declared[1]:g}, '
            'as it is stored: remove the orientation, or make the cameras from upright pictures'
        )
    raise DatasetError(
        f'{said}, but its camera is for {declared[0]:g}x{declared[1]:g}, of other proportions: give the picture '
        'that the camera belongs to, resized at most'
    )


def read_json(store, name):
    """The content of a JSON file. Raises DatasetError where it is broken, not in UTF-8, or has a key twice."""
    return parse_json(store.read(name), f'{store.path}: {name}')


def parse_json(content, where):
    """What bytes in JSON say; where: they are from, for the message. Raises DatasetError as `read_json` does."""
    try:
        return json.loads(content, object_pairs_hook=_unambiguous)
    except (ValueError, RecursionError) as error:
        raise DatasetError(f'{where} cannot be read ({error}): it must be JSON in UTF-8') from error


def _unambiguous(pairs):
    content = dict(pairs)
    if len(content) < len(pairs):
        twice = collections.Counter(key for key, _ in pairs).most_common(1)[0][0]
        raise ValueError(f'it has {json.dumps(twice)} twice')
    return content


def lies_deeper(store, *files):
    """Where one of `files` lies that is not at the top of a FileStore, and the cure, to go on a message with; '' if nowhere."""
    cure = 'pack what is in it, and nothing else' if store.is_zip else 'give that folder'
    return next(
        (
            f', but {posixpath.basename(name)} in {posixpath.dirname(name)}: {cure}'
            for name in store.names
            if posixpath.basename(name) in files
        ),
        '',
    )


def match_cameras(store, file, pairs, skip_missing):
    """What a file with cameras says of the images of a FileStore.

    file: its name; pairs: (name of an image, what is said of it), the names in any spelling that `FileStore.find` knows;
    skip_missing: go on where images are missing. Returns {image: what is said of it}, the names that no image has, and notes:
    lines of text about these and about images that are there twice.
    Raises DatasetError where images are missing, or two different things are said of one.
    """
    found, missing, repeated, different = {}, [], [], []
    for name, said in pairs:
        image = store.find(name)
        if image is None:
            missing.append(name)
        elif image not in found:
            found[image] = said
        else:
            (repeated if found[image] == said else different).append(image)
    if different:
        raise DatasetError(
            f'{store.path}: {file} has two different cameras for {len(different)} images, first {different[0]}'
            ': remove the wrong ones'
        )
    if missing and not skip_missing:
        raise DatasetError(
            f'{store.path}: {len(missing)} images that {file} names do not exist, first {missing[0]}: '
            'add them, or go on without them by dataset_tool.py convert --skip-missing'
        )
    notes = [
        one_line(f'{len(names)} cameras in {file} {what}, first {names[0]}')
        for names, what in ((missing, 'are left out, since their images are not there'), (repeated, 'are there twice'))
        if names
    ]
    return found, missing, notes


def read_labels(store, names, skip_missing=True):
    """The camera labels of images from a FileStore's `dataset.json`, float32 [len(names), 25], and the notes of `match_cameras`.

    Raises DatasetError where there is no such file, or any label is missing or malformed, and CameraError when any is no camera.
    """
    found, missing, notes = match_cameras(store, LABEL_FILE, _named_labels(store), skip_missing)
    unknown = [name for name in names if name not in found]
    if unknown:
        others = f', but one for {missing[0]}, which is not there' if missing else ''
        raise DatasetError(
            f'{store.path}: {len(unknown)} of {len(names)} images have no label in {LABEL_FILE}, first '
            f'{unknown[0]}{others}: add their labels or remove the images'
        )
    return stacked_cameras([found[name] for name in names], names, store.path, LABEL_FILE), notes


def stacked_cameras(labels, names, folder, file):
    """Camera labels, float32 [N, 25], of what the `file` of a `folder` says of the images `names`.

    Raises DatasetError where a label is malformed, and CameraError where one is no camera.
    """
    wrong = [name for name, label in zip(names, labels) if not _is_label(label)]
    if wrong:
        raise DatasetError(
            f'{folder}: {len(wrong)} of {len(names)} labels in {file} are malformed; the label '
            f'of {wrong[0]} is not a list of {LABEL_SIZE} finite numbers (4x4 camera-to-world, 3x3 intrinsics): '
            'correct it'
        )
    labels = np.array(labels, dtype=np.float32)
    check_cameras(labels, names, f'{folder}/{file}')
    return torch.from_numpy(labels)


def _named_labels(store):
    """(name, label) pairs as `dataset.json` has them."""
    if LABEL_FILE not in store:
        deeper = lies_deeper(store, LABEL_FILE)
        cure = f'{deeper}, or' if deeper else ', so the cameras are unknown:'
        raise DatasetError(f'{store.path} has no {LABEL_FILE} at its top{cure} make the set with dataset_tool.py convert')
    return label_pairs(read_json(store, LABEL_FILE), store.path, LABEL_FILE)


def label_pairs(content, folder, file):
    """(name, label) pairs of the content of a `file` in the form of dataset.json. Raises DatasetError for other forms."""
    labels = content.get('labels', content) if isinstance(content, dict) else None
    pairs = list(labels.items()) if isinstance(labels, dict) else labels
    if not isinstance(pairs, list) or not all(
        isinstance(pair, list | tuple) and len(pair) == 2 and isinstance(pair[0], str) for pair in pairs
    ):
        raise DatasetError(
            f'{folder}: {file} cannot be read: it must be JSON of the form {{"labels": [["dir/name.png", [25 numbers]], ...]}}'
        )
    return pairs


def _is_label(label):
    return (
        isinstance(label, list)
        and len(label) == LABEL_SIZE
        and all(type(number) in (int, float) and abs(number) <= _LARGEST for number in label)
    )


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

    path: zip or folder. resolution: what the images must measure, in pixels; None takes any. mirror: double the set; index
    i + n is image i of n mirrored in x. background: colour name, what transparent pixels are composited on.

    Item i is an image, uint8 [3, H, W]; `dnnlib.pictures.read_picture` says what becomes RGB.
    Attributes: `resolution` (pixels), `name` (the file's name without suffix), `background`, `notes` (lines of text: what is
    odd about the set, and what is done about it).
    Raises DatasetError for anything wrong with the files: on construction, or on reading a broken image.
    """

    def __init__(self, path, resolution=None, mirror=False, background='black'):
        self._store, self.background = FileStore(path), background
        self._names = image_names(self._store)
        self._mirror = mirror
        self.name = self._store.path.resolve().stem
        self._check_sizes()
        if resolution is not None and resolution != self.resolution:
            raise DatasetError(
                f'{self._store.path} holds images of {self.resolution}x{self.resolution} pixels, but {resolution}x{resolution} '
                f'are wanted: choose a --preset of {self.resolution} pixels, or resize the set with '
                f'dataset_tool.py convert --resolution={resolution}'
            )

    def __len__(self):
        return len(self._names) * (2 if self._mirror else 1)

    def __getitem__(self, index):
        index = range(len(self))[index]  # negative indices count from the end; IndexError beyond
        mirrored, number = divmod(index, len(self._names))
        image = open_image(self._store, self._names[number], self.background)
        self._check_size(self._names[number], image.size)
        pixels = np.asarray(image)[:, :: -1 if mirrored else 1]
        return torch.from_numpy(pixels.transpose(2, 0, 1).copy())

    def image_hash(self, checksums=None, more=b''):
        """Hash of the images' names, sizes and check sums, and of `more` bytes: the same for every copy of a set.

        checksums: how many, of a spread over the set; None: all. A zip's directory has them; of a folder, files are read.
        """
        stride = -(-len(self._names) // (checksums or len(self._names)))
        files = [
            (name, self._store.size(name), self._store.checksum(name) if index % stride == 0 else None)
            for index, name in enumerate(self._names)
        ]
        return hashlib.sha256(json.dumps(files).encode() + more).hexdigest()[:32]

    def _check_sizes(self):
        """Have the side of the first image as resolution, look for others among the rest, and note what is odd."""
        stride = -(-len(self._names) // _HEADERS_CHECKED)
        headers = {name: image_header(self._store, name) for name in self._names[::stride]}
        width, height = headers[self._names[0]].size
        if width != height:
            raise DatasetError(
                f'{self._store.path}: image {self._names[0]} is not square ({width}x{height}): '
                'crop all images; dataset_tool.py convert crops those with cameras'
            )
        self.resolution = width
        for name, header in headers.items():
            self._check_size(name, header.size)
        sparsely = f' (every {stride}th image was looked at)' if stride > 1 else ''
        self.notes = [note + sparsely for note in picture_notes(headers.values(), self.background)]

    def _check_size(self, name, size):
        if size != (self.resolution, self.resolution):
            raise DatasetError(
                f'{self._store.path}: image {name} measures {size[0]}x{size[1]}, the first one '
                f'{self.resolution}x{self.resolution}: make all images square and of one size'
            )


class PosedImageDataset(ImageDataset):
    """An ImageDataset with cameras, from the `dataset.json` of its zip or folder.

    Item i is (image uint8 [3, H, W], label float32 [25]). Attribute: `labels`, float32 [len, 25].
    """

    def __init__(self, path, resolution=None, mirror=False, background='black'):
        super().__init__(path, resolution, mirror, background)
        labels, notes = read_labels(self._store, self._names)
        self.notes += notes
        self.labels = torch.cat([labels, mirror_label(labels)]) if mirror else labels

    def __getitem__(self, index):
        return super().__getitem__(index), self.labels[index].clone()

    def check_scene(self, scene):
        """Raise CameraError unless all cameras see the box of a RenderingConfig, between its near and far."""
        check_cameras(self.labels[: len(self._names)], self._names, f'{self._store.path}/{LABEL_FILE}', scene)

    def content_hash(self):
        """Hash of a spread of the images, as `image_hash`, and of the cameras."""
        return self.image_hash(_CHECKSUMS, self.labels[: len(self._names)].numpy().tobytes())


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
    epochs = range(start // n, (start + count) // n + 1)
    return torch.cat([_epoch_order(n, seed, epoch) for epoch in epochs])[start % n :][:count]
