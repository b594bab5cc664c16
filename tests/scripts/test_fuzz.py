"""Damaged and odd inputs thrown at all readers: data sets, transforms.json, zips, snapshots, training states.

Each must end in success or in a UserError of one line (a script: with exit code 1), soon, and leave nothing half-written. Every
case is made from its number alone: `reproduce` in a failure's message names it.
"""

import contextlib
import io
import json
import os
import random
import traceback
import unicodedata
import warnings
import zipfile

import numpy as np
import pytest
import torch
from PIL import Image

import dataset_tool
from dnnlib.errors import UserError
from metrics.consistency.views import folder_views
from sampling.subjects import load_generator
from tests.helpers import Hanging, deadline, invoke, save_snapshot
from tests.interop.small_files import write_small
from tests.tiny import tiny_generator
from tests.training.data.test_dataset import SIZE, some_label, some_pixels
from torch_utils.checkpoint import read_state, write_state
from training.config import RenderingConfig
from training.data.dataset import ImageDataset, PosedImageDataset
from training.snapshots import load_augment_p, load_networks

IMAGES = 4
MODES = ('RGB', 'RGBA', 'L', 'LA', 'P', '1', 'CMYK', 'I;16', 'I', 'F', 'YCbCr', 'HSV')
KINDS = ('PNG', 'JPEG', 'WEBP', 'TIFF', 'GIF', 'BMP', 'PPM', 'AVIF', 'TGA', 'ICO')
WORDS = ('x', 'mask_path', 'camera_model', 'k1', 'w', 'fl_x', 'camera_angle_x', 'version', 'labels', 'frames', 'transform_matrix')
JUNK = (
    None,
    True,
    0,
    -1,
    0.5,
    1e308,
    float('nan'),
    float('inf'),
    10**400,
    2**63,
    '',
    'x',
    '0',
    '\ud800',
    'a\nb',
    '../x.png',
    'C:\\x.png',
    [],
    {},
    [[]],
    {'a': 1},
    [1, 2],
    'OPENCV_FISHEYE',
)


# Making cases


def mutated_bytes(rng, data):
    """Bytes with a few of them changed, added, left out or repeated."""
    data = bytearray(data)
    for _ in range(rng.choice([1, 1, 2, 8])):
        start = rng.randrange(len(data) + 1)
        end = min(start + rng.choice([1, 1, 2, 4, 50]), len(data))
        data[start:end] = rng.choice(
            [rng.randbytes(end - start), bytes(end - start), b'\xff' * (end - start), b'', rng.randbytes(3), data[start:end] * 2]
        )
    return bytes(data[: rng.randrange(len(data) + 1)] if rng.random() < 0.2 else data)


def mutated_value(rng, value):
    """Plain data with one of its parts replaced, left out, repeated or renamed; numbers may only change their sizes."""
    if type(value) is float and rng.random() < 0.5:
        return value * rng.choice([-1, 0, 2, 0.01, 100, 1e-300])
    if not isinstance(value, (dict, list, tuple)) or not value or rng.random() < 0.05:
        return rng.choice(JUNK)
    keys = list(value) if isinstance(value, dict) else range(len(value))
    key, content = rng.choice(list(keys)), dict(value) if isinstance(value, dict) else list(value)
    deed = rng.choice(['go on'] * 9 + ['remove', 'repeat', 'rename'])
    if deed == 'go on':
        content[key] = mutated_value(rng, content[key])
    elif deed == 'remove':
        del content[key]
    elif isinstance(content, list):
        content.append(content[key])
    else:
        content[rng.choice(WORDS)] = content.pop(key)
    return content


def some_picture(rng):
    """The bytes of a picture of any mode and kind."""
    size = (SIZE, SIZE) if rng.random() < 0.8 else rng.choice([(1, 1), (SIZE, 5), (16, 16), (300, 2)])
    image = Image.fromarray(np.frombuffer(rng.randbytes(size[0] * size[1] * 3), np.uint8).reshape(size[1], size[0], 3))
    exif, file = Image.Exif(), io.BytesIO()
    exif[0x112] = rng.choice([0, 1, 3, 5, 6, 8, 9, 'x'])
    with contextlib.suppress(Exception):  # not every kind takes every mode
        image = image.convert(rng.choice(MODES))
    options = rng.choice([{}, {'exif': exif}, {'transparency': 0}, {'save_all': True, 'append_images': [image] * 2}])
    try:
        image.save(file, rng.choice(KINDS), **options)
    except Exception:
        image.convert('RGB').save(file, 'PNG')
    return file.getvalue()


def plain_files(kind):
    """{name: bytes} of a sound set: 'dataset', 'transforms' or 'pictures'."""
    files = {f'a/{number}.png': encoded(some_pixels(number)) for number in range(IMAGES)}
    if kind == 'dataset':
        files['dataset.json'] = {'labels': [[name, some_label(number).tolist()] for number, name in enumerate(files)]}
    if kind == 'transforms':
        poses = [some_label(number)[:16].reshape(4, 4).double().numpy() @ np.diag([1, -1, -1, 1]) for number in range(IMAGES)]
        frames = [{'file_path': name, 'transform_matrix': pose.tolist()} for name, pose in zip(files, poses)]
        files['transforms.json'] = {
            'fl_x': 34.0,
            'fl_y': 34.0,
            'cx': 4.0,
            'cy': 4.0,
            'w': SIZE,
            'h': SIZE,
            'camera_model': 'OPENCV',
            'k1': 0.01,
            'frames': frames,
        }
    return files


def encoded(pixels):
    file = io.BytesIO()
    Image.fromarray(pixels).save(file, 'PNG')
    return file.getvalue()


def other_name(rng, name):
    folder, _, base = name.rpartition('/')
    return rng.choice(
        [
            name.upper(),
            name.replace('/', '\\'),
            f'./{name}',
            f'../{name}',
            f'/{name}',
            f'top/{name}',
            base,
            f'.{name}',
            f'{folder}/\u00e9{base}',
            unicodedata.normalize('NFD', f'{folder}/\u00e9{base}'),
            f'{folder}/a\nb{base}',
            f'{folder}/\udcff{base}',
            f'{name}.txt',
            f'{folder}//{base}',
            f'__MACOSX/{name}',
            'transforms_train.json',
            'x' * 300,
            f'masks/{base}',
        ]
    )


def mutated_files(rng, files):
    """A set with something done to one of its files; JSON is still plain data."""
    name, files = rng.choice(list(files)), dict(files)
    deed = rng.choice(['content', 'content', 'content', 'picture', 'remove', 'rename', 'copy', 'names', 'nothing'])
    if deed == 'content':
        name = next((name for name in files if name.endswith('.json')), name) if rng.random() < 0.8 else name
        change = mutated_bytes if isinstance(files[name], bytes) else mutated_value
        files[name] = change(rng, files[name])
    elif deed == 'picture':
        files[rng.choice([name, 'a/0.png', 'a/9.png', 'masks/0.png'])] = some_picture(rng)
    elif deed == 'remove':
        del files[name]
    elif deed in ('rename', 'copy'):
        files[other_name(rng, name)] = files[name] if deed == 'copy' else files.pop(name)
    elif deed == 'names':
        files = {name if name.endswith('.json') else other_name(rng, name): content for name, content in files.items()}
    return files


def serialised(rng, content):
    """The bytes of a file."""
    if isinstance(content, bytes):
        return content
    data = json.dumps(content).encode(rng.choice(['utf-8'] * 8 + ['utf-8-sig', 'utf-16']))
    return mutated_bytes(rng, data) if rng.random() < 0.1 else data


def write_set(rng, folder, files):
    """A folder with the files, and odd things beside."""
    folder.mkdir()
    for name, content in files.items():
        path = folder / name.lstrip('/').replace('../', '')
        with contextlib.suppress(OSError):  # a name may be too long, or taken by a folder
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(serialised(rng, content))
    if rng.random() < 0.25:
        odd = folder / rng.choice(['a/7.png', 'b', '.hidden', 'dataset.json', 'transforms.json', 'masks'])
        with contextlib.suppress(OSError):
            rng.choice([os.mkfifo, os.mkdir, lambda path: os.symlink('nowhere', path), lambda path: os.symlink('.', path)])(odd)
    return folder


def write_zip(rng, path, files):
    """A zip with the files, perhaps damaged, packed in any way."""
    with zipfile.ZipFile(path, 'w') as archive, warnings.catch_warnings():
        warnings.simplefilter('ignore')  # of names that are there twice
        for name, content in files.items():
            entry = zipfile.ZipInfo('x')
            entry.filename = name.encode('utf-8', 'replace').decode()
            entry.compress_type = rng.choice([zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED, zipfile.ZIP_BZIP2, zipfile.ZIP_LZMA])
            archive.writestr(entry, serialised(rng, content))
    if rng.random() < 0.3:
        path.write_bytes(mutated_bytes(rng, path.read_bytes()))
    return path


# Reading them


def refused(read):
    """Whether a reader raises a UserError, of one line."""
    with deadline(), warnings.catch_warnings():
        warnings.simplefilter('error', RuntimeWarning)
        try:
            read()
        except UserError as error:
            assert str(error).strip() and len(str(error).splitlines()) == 1
            return True
    return False


def read_images(build, path):
    dataset = build(path)
    if build is PosedImageDataset:
        dataset.check_scene(RenderingConfig())
    return [dataset[index] for index in range(len(dataset))]


def convert(rng, source, out):
    """dataset_tool.py convert into `out`: it leaves a whole set or nothing."""
    out.mkdir()
    dest = out / rng.choice(['set', 'set.zip'])
    options = [option for option in ('--skip-missing', '--mirror', '--axes=opencv', '--background=white') if rng.random() < 0.3]
    arguments = ['convert', f'--source={source}', f'--dest={dest}', '--resolution=8', *options]
    result = invoke(dataset_tool.main, *arguments)
    if result.exit_code == 0:
        dataset = PosedImageDataset(dest)
        assert len([dataset[index] for index in range(len(dataset))]) > 0
        return
    assert isinstance(result.exception, SystemExit), ''.join(traceback.format_exception(*result.exc_info))
    assert result.exit_code == 1 and sum(line.startswith('Error: ') for line in result.output.splitlines()) == 1
    assert not list(out.iterdir()), f'left behind: {list(out.iterdir())}'
    raise UserError('as it should')


def try_readers(rng, path, out):
    return [
        refused(read)
        for read in (
            lambda: read_images(PosedImageDataset, path),
            lambda: read_images(ImageDataset, path),
            lambda: folder_views(path, (8, 8)),
            lambda: ImageDataset(path).image_hash(),
            lambda: convert(rng, path, out),
        )
    ]


def try_cameras(rng, folder):
    """A sound set but for what its camera file says."""
    kind = rng.choice(['dataset', 'transforms', 'transforms'])
    files = plain_files(kind)
    for _ in range(rng.choice([1, 1, 2, 4])):
        files[f'{kind}.json'] = mutated_value(rng, files[f'{kind}.json'])
    return try_readers(rng, write_set(random.Random(0), folder / 'set', files), folder / 'out')


def try_set(rng, folder):
    kind = rng.choice(['dataset', 'dataset', 'transforms', 'transforms', 'transforms', 'pictures'])
    files = plain_files(kind)
    for _ in range(rng.choice([1, 1, 2, 3])):
        files = mutated_files(rng, files) or files
    path = write_zip(rng, folder / 'set.zip', files) if rng.random() < 0.4 else write_set(rng, folder / 'set', files)
    return try_readers(rng, path, folder / 'out')


def try_pictures(rng, folder):
    """A folder of a picture of any kind, mode and orientation, damaged or not."""
    data = some_picture(rng)
    (folder / 'a.png').write_bytes(data if rng.random() < 0.3 else mutated_bytes(rng, data))
    return [refused(lambda: read_images(ImageDataset, folder))]


def own_snapshot(rng, path):
    save_snapshot(path, {'G_ema': tiny_generator(), 'G': None}, {'images_seen': 1000, 'options': {}})
    content = torch.load(path, weights_only=True)
    network = content['networks']['G_ema']
    change = rng.choice(['nothing', 'anything', 'config', 'config', 'config', 'state'])
    if change == 'anything':
        content = mutated_value(rng, content)
    elif change != 'nothing':
        network[change] = mutated_value(rng, network[change])
    torch.save(content, path)


def published_snapshot(rng, path):
    def change(content, tensors):
        if rng.random() < 0.7:
            network = content['G_ema']
            network._init_kwargs = mutated_value(rng, dict(network._init_kwargs))

    write_small(path, change, rng.choice([2, 4]))


def try_snapshot(rng, folder):
    path = folder / 'network-snapshot-000001.pkl'
    rng.choice([own_snapshot, published_snapshot])(rng, path)
    if rng.random() < 0.3:
        path.write_bytes(mutated_bytes(rng, path.read_bytes()))
    return [
        refused(read)
        for read in (
            lambda: load_generator(rng.choice([path, folder]), 'cpu'),
            lambda: load_networks(path, strict=False),
            lambda: load_augment_p(path),
        )
    ]


def try_state(rng, folder):
    path = folder / 'training-state-000001000.pt'
    write_state(path, {'images_seen': 1000, 'tensor': torch.ones(3)})
    path.write_bytes(mutated_bytes(rng, path.read_bytes()))
    return [refused(lambda: read_state(path))]


ATTEMPTS = {  # what makes a case and tries it: cases in `make test`, cases in all
    try_set: (40, 500),
    try_cameras: (40, 400),
    try_pictures: (50, 500),
    try_snapshot: (6, 200),
    try_state: (5, 50),
}


def fuzz(attempt, numbers, tmp_path):
    found, failures = [], []
    for number in numbers:
        folder = tmp_path / str(number)
        folder.mkdir()
        try:
            found += attempt(random.Random(number), folder)
        except (Exception, Hanging):
            failures.append(
                f'reproduce: {attempt.__name__}(random.Random({number}), an empty folder)\n{traceback.format_exc(limit=-6)}'
            )
    assert not failures, f'{len(failures)} of {len(numbers)} cases:\n' + '\n'.join(failures[:8])
    assert True in found and (False in found or attempt is try_state)  # else the cases would show nothing


@pytest.mark.filterwarnings('ignore')
@pytest.mark.parametrize('attempt', ATTEMPTS)
def test_odd_inputs(attempt, tmp_path):
    fuzz(attempt, range(ATTEMPTS[attempt][0]), tmp_path)


@pytest.mark.slow
@pytest.mark.filterwarnings('ignore')
@pytest.mark.parametrize('attempt', ATTEMPTS)
def test_many_odd_inputs(attempt, tmp_path):
    fuzz(attempt, range(1000, 1000 + ATTEMPTS[attempt][1]), tmp_path)
