import json
import pickle
import zipfile

import numpy as np
import pytest
import torch
from PIL import Image

from training.data.dataset import DatasetError, FileStore, PosedImageDataset, batch_indices, epoch_order, mirror_label
from training.rendering.cameras import look_at_pose, make_label, pinhole

SIZE = 8


def some_label(number=0):
    return make_label(look_at_pose(1.2 + 0.1 * number, 1.5, (0.0, 0.0, 0.2), 2.7), pinhole(4.2647))[0]


def some_pixels(number):
    return np.random.default_rng(number).integers(0, 256, (SIZE, SIZE, 3), dtype=np.uint8)


def write_folder(path, count=5):
    (path / 'a').mkdir(parents=True)
    labels = []
    for number in reversed(range(count)):  # unsorted on purpose
        Image.fromarray(some_pixels(number)).save(path / f'a/{number}.png')
        labels.append([f'a/{number}.png', some_label(number).tolist()])
    write_labels(path, {'labels': labels})
    return path


def write_labels(path, content):
    (path / 'dataset.json').write_text(json.dumps(content))


def read_json(path):
    return json.loads((path / 'dataset.json').read_text())


def zip_folder(folder, path):
    with zipfile.ZipFile(path, 'w', zipfile.ZIP_STORED) as archive:
        for file in sorted(folder.rglob('*'), reverse=True):
            if file.is_file():
                archive.write(file, file.relative_to(folder).as_posix())
    return path


@pytest.fixture
def folder(tmp_path):
    return write_folder(tmp_path / 'set')


def fails(match, path, **options):
    with pytest.raises(DatasetError, match=match) as caught:
        PosedImageDataset(path, **options)
    assert '\n' not in str(caught.value)
    return str(caught.value)


@pytest.mark.parametrize('packed', [False, True])
def test_images_and_labels_come_sorted_and_unchanged(folder, tmp_path, packed):
    dataset = PosedImageDataset(zip_folder(folder, tmp_path / 'set.zip') if packed else folder)
    assert (len(dataset), dataset.resolution, dataset.name) == (5, SIZE, 'set')
    assert dataset.labels.shape == (5, 25) and dataset.labels.dtype == torch.float32
    for number in range(5):
        image, label = dataset[number]
        assert image.dtype == torch.uint8
        np.testing.assert_array_equal(image.permute(1, 2, 0), some_pixels(number))
        torch.testing.assert_close(label, some_label(number), rtol=0, atol=0)
    with pytest.raises(IndexError):
        dataset[5]


@pytest.mark.parametrize('form', [lambda labels: {'labels': dict(labels)}, dict])
def test_dictionary_labels(folder, form):
    expected = PosedImageDataset(folder).labels
    write_labels(folder, form(read_json(folder)['labels']))
    assert torch.equal(PosedImageDataset(folder).labels, expected)


def test_zip_in_pickles_and_workers(folder, tmp_path):
    dataset = PosedImageDataset(zip_folder(folder, tmp_path / 'set.zip'))
    image, _ = dataset[1]  # the zip is open now
    assert torch.equal(pickle.loads(pickle.dumps(dataset))[1][0], image)
    loader = torch.utils.data.DataLoader(dataset, batch_size=1, num_workers=2)
    images = torch.cat([images for images, _ in loader])
    assert torch.equal(images, torch.stack([dataset[number][0] for number in range(5)]))


def test_every_process_opens_the_zip_for_itself(folder, tmp_path, monkeypatch):
    store = FileStore(zip_folder(folder, tmp_path / 'set.zip'))
    mine = store._archive()
    assert store._archive() is mine
    monkeypatch.setattr('os.getpid', lambda: -1)  # as in a forked worker
    assert store._archive() is not mine


def test_mirrored_half(folder):
    dataset = PosedImageDataset(folder, mirror=True)
    assert len(dataset) == len(dataset.labels) == 10
    for number in range(5):
        (image, label), (mirrored, mirrored_label) = dataset[number], dataset[number + 5]
        assert torch.equal(mirrored, image.flip(2)) and not torch.equal(mirrored, image)
        assert torch.equal(mirrored_label, mirror_label(label))
        assert torch.equal(mirrored_label, dataset.labels[number + 5])


def test_mirrored_label_is_the_camera_on_the_other_side():
    label = make_label(look_at_pose(1.1, 1.4, (0.0, 0.1, 0.2), 2.7), pinhole(4.0))
    expected = make_label(look_at_pose(torch.pi - 1.1, 1.4, (0.0, 0.1, 0.2), 2.7), pinhole(4.0))
    torch.testing.assert_close(mirror_label(label), expected)


def test_mirrored_label_projects_mirrored_points_to_mirrored_places():
    label = some_label().double()
    label[16:] = torch.tensor([4.0, 0.1, 0.45, 0, 4.2, 0.52, 0, 0, 1])
    point = torch.tensor([0.1, -0.2, 0.15], dtype=torch.float64)

    def project(label, point):
        pose, intrinsics = label[:16].reshape(4, 4), label[16:].reshape(3, 3)
        x, y, w = intrinsics @ pose[:3, :3].T @ (point - pose[:3, 3])
        return torch.stack([x / w, y / w])

    x, y = project(label, point)
    mirrored = project(mirror_label(label), point * torch.tensor([-1, 1, 1]))
    torch.testing.assert_close(mirrored, torch.stack([1 - x, y]))


@pytest.mark.parametrize('mode', ['L', 'RGBA', 'P', 'LA'])
def test_other_modes_become_rgb(folder, mode):
    Image.fromarray(some_pixels(0)).convert(mode).save(folder / 'a/0.png')
    expected = np.asarray(Image.fromarray(some_pixels(0)).convert(mode).convert('RGB'))
    np.testing.assert_array_equal(PosedImageDataset(folder)[0][0].permute(1, 2, 0), expected)


def test_hidden_files_are_no_images(folder):
    (folder / 'a/._0.png').write_bytes(b'resource fork')
    assert len(PosedImageDataset(folder)) == 5


def test_missing_path(tmp_path):
    assert 'nowhere' in fails('does not exist', tmp_path / 'nowhere')


def test_neither_zip_nor_folder(tmp_path):
    (tmp_path / 'notes.txt').write_text('hello')
    assert 'notes.txt' in fails('neither a zip nor a folder', tmp_path / 'notes.txt')


def test_truncated_zip(folder, tmp_path):
    path = zip_folder(folder, tmp_path / 'set.zip')
    path.write_bytes(path.read_bytes()[:-200])
    fails('truncated or corrupt zip', path)
    path.write_bytes(b'')
    fails('truncated or corrupt zip', path)


def test_corrupt_image_in_zip(folder, tmp_path):
    path = zip_folder(folder, tmp_path / 'set.zip')
    content = path.read_bytes()
    position = content.index(b'IDAT', zipfile.ZipFile(path).getinfo('a/3.png').header_offset) + 20
    path.write_bytes(content[:position] + bytes([content[position] ^ 255]) + content[position + 1 :])
    with pytest.raises(DatasetError, match='a/3.png cannot be read'):
        PosedImageDataset(path)[3]


def test_no_images(tmp_path):
    write_labels(tmp_path, {'labels': []})
    fails('contains no images', tmp_path)


def test_no_label_file(folder):
    (folder / 'dataset.json').unlink()
    fails('has no dataset.json', folder)


@pytest.mark.parametrize(
    'content',
    [
        '{',
        '[]',
        '{"labels": null}',
        '{"labels": 3}',
        '{"labels": [1]}',
        '{"labels": ["ab"]}',
        '7',
        '""',
        '{"labels": [["a/0.png"]]}',
        '{"labels": [[1, []]]}',
        '[' * 10**5,
        '{"a": 1, "a": 2}',
        '',
    ],
)
def test_broken_label_file(folder, content):
    (folder / 'dataset.json').write_text(content)
    fails('dataset.json cannot be read', folder)


def test_image_without_label(folder):
    write_labels(folder, {'labels': read_json(folder)['labels'][:-2]})
    fails('2 of 5 images have no label in dataset.json, first a/0.png', folder)


@pytest.mark.parametrize('label', [[0.0] * 16, None, 7, ['x'] * 25, ['1'] * 25, [True] * 25, [float('nan')] * 25, [10**400] * 25])
def test_malformed_label(folder, label):
    labels = dict(read_json(folder)['labels'])
    write_labels(folder, {'labels': {**labels, 'a/2.png': label}})
    fails('1 of 5 labels .* the label of a/2.png is not a list of 25 finite numbers', folder)


def test_not_square(folder):
    Image.new('RGB', (8, 6)).save(folder / 'a/0.png')
    fails(r'a/0.png is not square \(8x6\)', folder)


def test_mixed_sizes_at_construction(folder):
    Image.new('RGB', (16, 16)).save(folder / 'a/3.png')
    fails('a/3.png measures 16x16, the first one 8x8', folder)


def test_mixed_sizes_at_reading(folder, monkeypatch):
    monkeypatch.setattr('training.data.dataset._HEADERS_CHECKED', 1)
    Image.new('RGB', (16, 16)).save(folder / 'a/3.png')
    with pytest.raises(DatasetError, match='a/3.png measures 16x16, the first one 8x8'):
        PosedImageDataset(folder)[3]


def test_truncated_image_is_named_at_reading(folder):
    content = (folder / 'a/3.png').read_bytes()
    (folder / 'a/3.png').write_bytes(content[: len(content) // 2])
    dataset = PosedImageDataset(folder)
    with pytest.raises(DatasetError, match='a/3.png cannot be read'):
        dataset[3]


def test_something_else_called_png(folder):
    (folder / 'a/3.png').write_text('not a picture')
    fails('a/3.png is no picture', folder)


def test_other_resolution(folder):
    assert PosedImageDataset(folder, resolution=SIZE).resolution == SIZE
    fails('holds images of 8x8 pixels, but 64x64 are wanted: choose a --preset of 8 pixels', folder, resolution=64)


def test_epochs_are_different_permutations():
    orders = [epoch_order(50, seed, epoch) for seed in (0, 1) for epoch in (0, 1)]
    for order in orders:
        assert torch.equal(order.sort().values, torch.arange(50))
    assert len({tuple(order.tolist()) for order in orders}) == 4
    assert torch.equal(orders[0], epoch_order(50, 0, 0))


def test_changing_an_order_leaves_the_stream_alone():
    expected = batch_indices(10, 0, 0, 10)
    epoch_order(10, 0, 0).zero_()
    batch_indices(10, 0, 0, 10).zero_()
    assert torch.equal(batch_indices(10, 0, 0, 10), expected)


def test_stream_can_start_anywhere():
    n, seed = 7, 3
    stream = torch.cat([epoch_order(n, seed, epoch) for epoch in range(5)])
    for start in range(20):
        for count in (0, 1, 4, 15):  # within an epoch, across one end, across several
            assert torch.equal(batch_indices(n, seed, start, count), stream[start : start + count])
