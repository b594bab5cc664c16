import json

import numpy as np
import pytest
import torch
from PIL import Image

import dataset_prep.demo as demo
from dataset_prep import archive
from dataset_prep.archive import DatasetWriter
from dataset_prep.lenses import undistort
from dnnlib.files import lock_folder
from tests.helpers import FOX
from tests.photographs import (
    CENTRE,
    COLOURS,
    FOCAL,
    HEIGHT,
    POINTS,
    WIDTH,
    converted,
    read_frames,
    refused,
    run,
    write_transforms,
)
from training.data.dataset import DatasetError, ImageDataset, PosedImageDataset, mirror_label
from training.rendering.cameras import look_at_pose, make_label, pinhole

RESOLUTION = 32


def project(label, points):
    """Points [N, 3] in image coordinates [N, 2], and their depths [N]."""
    pose, intrinsics = label[:16].reshape(4, 4), label[16:].reshape(3, 3)
    image = (np.asarray(points) - pose[:3, 3]) @ pose[:3, :3] @ intrinsics.T
    return image[:, :2] / image[:, 2:], image[:, 2]


# The demo set


def test_demo_is_a_loadable_set_and_same_seed_gives_same_bytes(tmp_path):
    for name in ('a.zip', 'b.zip'):
        run('demo', '--dest', tmp_path / name, '--images', 4, '--resolution', 16, '--seed', 5)
    run('demo', '--dest', tmp_path / 'c.zip', '--images', 4, '--resolution', 16, '--seed', 6)
    contents = [(tmp_path / name).read_bytes() for name in ('a.zip', 'b.zip', 'c.zip')]
    assert contents[0] == contents[1] != contents[2]
    dataset = PosedImageDataset(tmp_path / 'a.zip', resolution=16)
    assert len(dataset) == 4 and dataset[3][0].shape == (3, 16, 16)
    assert sorted(path.name for path in tmp_path.iterdir()) == ['a.zip', 'b.zip', 'c.zip']


def test_demo_mirror_adds_flipped_copies(tmp_path):
    run('demo', '--dest', tmp_path / 'set', '--images', 2, '--resolution', 16, '--mirror')
    dataset = PosedImageDataset(tmp_path / 'set')
    assert len(dataset) == 4
    for index in (0, 2):
        assert torch.equal(dataset[index + 1][0], dataset[index][0].flip(2))
        torch.testing.assert_close(dataset.labels[index + 1], mirror_label(dataset.labels[index]))


def test_demo_identities_repeat_heads_but_not_cameras():
    items = list(demo.demo_items(4, 16, 2, seed=0, focal=4.2647, radius=2.7))
    heads = [demo.draw_head(np.random.default_rng([0, 1, index])) for index in (0, 1)]
    for index, (pixels, label) in enumerate(items):
        np.testing.assert_array_equal(pixels, demo.render_ellipsoids(heads[index % 2], label, 16))
    assert len({label.tobytes() for _, label in items}) == 4


def test_mirrored_camera_sees_the_mirrored_head():
    for seed in range(4):  # both kinds of headgear
        head = demo.draw_head(np.random.default_rng(seed))
        label = torch.from_numpy(demo.draw_cameras(1, 4.2647, 2.7, np.random.default_rng(seed))[0])
        pixels = demo.render_ellipsoids(head, label.numpy(), RESOLUTION).astype(int)
        mirrored = demo.render_ellipsoids(head, mirror_label(label).numpy(), RESOLUTION).astype(int)
        off = np.abs(pixels[:, ::-1] - mirrored).max(axis=2) > 2
        assert off.mean() < 0.005  # rounding at silhouettes
        assert np.abs(pixels - mirrored).mean() > 1


def test_render_shows_a_small_ball_where_the_label_projects_it():
    label = make_label(look_at_pose(1.2, 1.3, (0.0, 0.0, 0.0), 2.7), pinhole(4.2647))[0].numpy()
    centre = np.array([0.12, -0.15, 0.1])
    ball = demo.Ellipsoid(centre, np.full(3, 0.02), np.array([1.0, 0, 0]))
    picture = demo.render_ellipsoids([ball], label, 64).astype(float)
    red = picture[..., 0] - picture[..., 1] > 100
    rows, columns = np.nonzero(red)
    seen = np.array([columns.mean() + 0.5, rows.mean() + 0.5]) / 64
    np.testing.assert_allclose(seen, project(label, centre[None])[0][0], atol=0.5 / 64)


def test_render_hides_what_lies_behind():
    label = make_label(look_at_pose(np.pi / 2, np.pi / 2, (0.0, 0.0, 0.0), 2.7), pinhole(4.2647))[0].numpy()
    front = demo.Ellipsoid(np.array([0, 0, 0.2]), np.full(3, 0.1), np.array([1.0, 0, 0]))
    back = demo.Ellipsoid(np.array([0, 0, -0.2]), np.full(3, 0.1), np.array([0, 1.0, 0]))
    one_way, other_way = demo.render_ellipsoids([front, back], label, 16), demo.render_ellipsoids([back, front], label, 16)
    np.testing.assert_array_equal(one_way, other_way)
    assert one_way[8, 8, 0] > 100 and one_way[8, 8, 1] == 0


def test_heads_fit_the_picture_and_fill_most_of_it():
    fill = []
    for pixels, _ in demo.demo_items(40, RESOLUTION, 40, seed=1, focal=4.2647, radius=2.7):
        covered = (255 - pixels.astype(int)).max(axis=2) > 12
        assert not (covered[0].any() or covered[-1].any() or covered[:, 0].any() or covered[:, -1].any())
        fill.append(np.ptp(np.nonzero(covered)[0]) / RESOLUTION)
    assert np.mean(fill) > 0.7


# Converting photographs


def test_convert_keeps_points_on_their_pixels(photographs, tmp_path):
    dataset = converted(photographs, tmp_path / 'set.zip')
    assert len(dataset) == 5
    for image, label in dataset:
        # The world after conversion is the points' own, scaled from distance 3 to 2.7.
        places, depths = project(label.double().numpy(), POINTS * 0.9)
        assert (depths > 0).all()
        for (x, y), color in zip(places, COLOURS):
            pixel = image[:, int(y * 60), int(x * 60)].numpy()
            assert np.abs(pixel.astype(int) - color).max() < 60


def test_convert_puts_cameras_around_the_front(photographs, tmp_path):
    labels = converted(photographs, tmp_path / 'set').labels
    poses = labels[:, :16].reshape(-1, 4, 4)
    torch.testing.assert_close(poses[:, :3, 3].norm(dim=1), torch.full((5,), 2.7))
    yaw = torch.atan2(poses[:, 0, 3], poses[:, 2, 3])
    torch.testing.assert_close(yaw, torch.tensor([-0.6, 0.6, -0.3, 0.3, 0.0]), rtol=0, atol=1e-3)
    torch.testing.assert_close(torch.linalg.det(poses), torch.ones(5))
    torch.testing.assert_close(labels[:, 16], torch.full((5,), FOCAL / WIDTH))
    torch.testing.assert_close(labels[0, [18, 21]], torch.tensor([CENTRE[0] / WIDTH, (CENTRE[1] - 20) / WIDTH]))


def test_convert_radius_limit_and_mirror(photographs, tmp_path):
    dataset = converted(photographs, tmp_path / 'set', '--radius', 1.7, '--max-images', 2, '--mirror')
    assert len(dataset) == 4
    torch.testing.assert_close(dataset.labels[:, [3, 7, 11]].norm(dim=1), torch.full((4,), 1.7))
    assert torch.equal(dataset[1][0], dataset[0][0].flip(2))


def test_convert_takes_the_field_of_view_and_intrinsics_of_single_frames(photographs, tmp_path):
    frames = read_frames(photographs)
    frames[0].update(fl_x=2 * FOCAL, fl_y=2 * FOCAL)
    angle = 2 * np.arctan(WIDTH / 2 / FOCAL)
    (photographs / 'transforms.json').write_text(json.dumps({'camera_angle_x': angle, 'frames': frames}))
    focals = converted(photographs, tmp_path / 'set').labels[:, [16, 20]]
    expected = torch.full((5, 2), FOCAL / WIDTH)
    expected[0] *= 2
    torch.testing.assert_close(focals, expected)


def test_convert_follows_resized_photographs(photographs, tmp_path):
    full = converted(photographs, tmp_path / 'full').labels
    for path in (photographs / 'images').iterdir():
        Image.open(path).resize((WIDTH // 2, HEIGHT // 2)).save(path)
    torch.testing.assert_close(converted(photographs, tmp_path / 'half').labels, full)


def test_undistort_moves_bent_points_back():
    intrinsics = np.array([[1.1, 0, 0.48], [0, 0.9, 0.53], [0, 0, 1]])
    k1, k2, p1, p2, k3 = distortion = (0.12, -0.05, 0.02, 0.05, 0.1)
    picture = np.zeros((120, 100, 3), np.uint8)
    x, y = 0.3, -0.35  # where the point would be seen without distortion, at unit depth
    square = x * x + y * y
    radial = 1 + k1 * square + k2 * square**2 + k3 * square**3
    bent = np.array(
        [x * radial + 2 * p1 * x * y + p2 * (square + 2 * x * x), y * radial + p1 * (square + 2 * y * y) + 2 * p2 * x * y, 1]
    )
    column, row = (intrinsics @ bent)[:2] * [100, 120]
    assert np.hypot(*((intrinsics @ (bent - [x, y, 1]))[:2] * [100, 120])) > 1.5  # or the test would show nothing
    grid_row, grid_column = np.mgrid[:120, :100] + 0.5
    spot = 255 * np.exp(-((grid_row - row) ** 2 + (grid_column - column) ** 2) / 8)
    picture[:] = spot[..., None]
    straight = np.asarray(undistort(Image.fromarray(picture), intrinsics, distortion))[..., 0].astype(float)
    centre = np.array([(straight * grid_column).sum(), (straight * grid_row).sum()]) / straight.sum()
    np.testing.assert_allclose(centre, (intrinsics @ [x, y, 1])[:2] * [100, 120], atol=0.25)


def test_convert_undistorts(photographs, tmp_path):
    straight = converted(photographs, tmp_path / 'straight')
    write_transforms(photographs, read_frames(photographs), k1=0.3)
    bent = converted(photographs, tmp_path / 'bent')
    assert torch.equal(bent.labels, straight.labels) and not torch.equal(bent[0][0], straight[0][0])


def test_convert_resizes_ready_sets_and_keeps_square_labels(tmp_path):
    run('demo', '--dest', tmp_path / 'demo.zip', '--images', 3, '--resolution', 64)
    dataset = converted(tmp_path / 'demo.zip', tmp_path / 'set')
    assert torch.equal(dataset.labels, PosedImageDataset(tmp_path / 'demo.zip').labels)


def test_options_for_transforms_are_refused_on_ready_sets(tmp_path):
    run('demo', f'--dest={tmp_path}/a', '--images=2', '--resolution=16')
    for options, line in (
        (['--radius=2.7'], '--radius has no effect on dataset.json: leave it out'),
        (['--axes=opengl', '--radius=3'], '--radius, --axes have no effect on dataset.json: leave them out'),
    ):
        assert line in refused('convert', f'--source={tmp_path}/a', f'--dest={tmp_path}/b', '--resolution=8', *options)
    assert not (tmp_path / 'b').exists()


def test_convert_of_oblong_ready_sets_moves_the_intrinsics(tmp_path):
    (tmp_path / 'oblong').mkdir()
    Image.new('RGB', (100, 80)).save(tmp_path / 'oblong/a.png')
    label = np.concatenate([np.eye(4).ravel(), [1.0, 0, 0.5, 0, 1.25, 0.6, 0, 0, 1]])
    label[11] = -2.7
    (tmp_path / 'oblong/dataset.json').write_text(json.dumps({'labels': [['a.png', label.tolist()]]}))
    intrinsics = converted(tmp_path / 'oblong', tmp_path / 'set').labels[0, 16:]
    torch.testing.assert_close(intrinsics, torch.tensor([1.25, 0, 0.5, 0, 1.25, 0.6, 0, 0, 1]))


@pytest.mark.skipif(not FOX.exists(), reason='the fox photographs are not here')
def test_fox(tmp_path):
    output = run('convert', '--source', FOX, '--dest', tmp_path / 'fox', '--resolution', RESOLUTION)
    assert 'images            50' in output and 'suggested         --near=' in output
    dataset = PosedImageDataset(tmp_path / 'fox', resolution=RESOLUTION)
    poses = dataset.labels[:, :16].reshape(-1, 4, 4)
    assert float(poses[:, :3, 3].norm(dim=1).sort().values[24:26].mean()) == pytest.approx(2.7, abs=1e-4)
    # The nose's tip, seen in photographs taken from the right, the front and the left.
    nose, where = np.array([[-0.028, -0.029, 1.441]]), {0: (229, 87), 12: (91, 98), 17: (44, 133)}
    for index, pixel in where.items():
        place = project(dataset.labels[index].double().numpy(), nose)[0][0] * 256
        np.testing.assert_allclose(place, pixel, atol=3)


# Mistakes


@pytest.mark.parametrize('option', ['--focal=inf', '--focal=nan', '--radius=inf'])
def test_numbers_must_be_finite(option, tmp_path):
    assert 'is not a finite number' in run('demo', '--dest', tmp_path / 'set.zip', '--images', 2, option, code=2)
    if 'radius' in option:
        assert 'is not a finite number' in run('convert', '--source', 'x', '--dest', 'y', '--resolution', 8, option, code=2)
    assert not list(tmp_path.iterdir())


def test_existing_destinations_are_kept(tmp_path):
    (tmp_path / 'set.zip').write_bytes(b'precious')
    options = ('demo', '--dest', tmp_path / 'set.zip', '--images', 2, '--resolution', 16)
    assert 'set.zip exists' in refused(*options) and '--overwrite' in refused(*options)
    assert (tmp_path / 'set.zip').read_bytes() == b'precious'
    run(*options, '--overwrite')
    assert len(PosedImageDataset(tmp_path / 'set.zip')) == 2


def test_overwrite_replaces_only_data_sets(tmp_path):
    (tmp_path / 'home').mkdir()
    (tmp_path / 'home/letter.txt').write_text('precious')
    options = ('demo', '--dest', tmp_path / 'home', '--images', 2, '--resolution', 16, '--overwrite')
    assert 'is not a data set' in refused(*options)
    (tmp_path / 'home/letter.txt').rename(tmp_path / 'home/dataset.json')
    run(*options)
    assert len(PosedImageDataset(tmp_path / 'home')) == 2


@pytest.mark.parametrize('name', ['set', 'set.zip'])
@pytest.mark.parametrize('error', [KeyboardInterrupt, RuntimeError])
def test_interruption_leaves_nothing(tmp_path, name, error):
    with pytest.raises(error):
        with DatasetWriter(tmp_path / 'new' / name) as writer:
            writer.add(np.zeros((8, 8, 3), np.uint8), np.zeros(25))
            assert any((tmp_path / 'new').iterdir())
            raise error
    assert not any((tmp_path / 'new').iterdir())


@pytest.mark.parametrize('name', ['set', 'set.zip'])
def test_two_at_once_do_not_write_over_each_other(tmp_path, name):
    picture, label = np.zeros((8, 8, 3), np.uint8), np.zeros(25)
    with DatasetWriter(tmp_path / name) as writer:
        writer.add(picture, label)
        with (
            pytest.raises(DatasetError, match='is being written by another process'),
            DatasetWriter(tmp_path / name, overwrite=True),
        ):
            pass
        writer.add(picture, label)
    assert len(ImageDataset(tmp_path / name)) == 2 and [path.name for path in tmp_path.iterdir()] == [name]


def test_what_appears_while_it_is_claimed_is_left_alone(tmp_path, monkeypatch):
    def finish_first(folder, **options):
        (tmp_path / 'set.zip').write_text('of another process')
        return lock_folder(folder, **options)

    monkeypatch.setattr(archive, 'lock_folder', finish_first)
    with pytest.raises(DatasetError, match='exists'), DatasetWriter(tmp_path / 'set.zip'):
        pass
    assert [path.read_text() for path in tmp_path.iterdir()] == ['of another process']


@pytest.mark.parametrize('name', ['set', 'set.zip'])
def test_what_a_killed_process_left_is_removed(tmp_path, name):
    left = tmp_path / f'{name}.partial' / name
    left.mkdir(parents=True)
    (left / 'img.png').write_text('half')
    with DatasetWriter(tmp_path / name) as writer:
        writer.add(np.zeros((8, 8, 3), np.uint8), np.zeros(25))
    assert len(ImageDataset(tmp_path / name)) == 1 and [path.name for path in tmp_path.iterdir()] == [name]


@pytest.mark.parametrize('fails', [False, True])
def test_somebody_elses_folder_of_that_name_keeps_what_it_holds(tmp_path, monkeypatch, fails):
    theirs = tmp_path / 'set.zip.partial'
    theirs.mkdir()
    (theirs / 'notes.txt').write_text('mine')
    if fails:
        monkeypatch.setattr(archive.zipfile, 'ZipFile', lambda *a, **b: (_ for _ in ()).throw(OSError('no room')))
        with pytest.raises(DatasetError, match='cannot be written'), DatasetWriter(tmp_path / 'set.zip'):
            pass
    else:
        with DatasetWriter(tmp_path / 'set.zip') as writer:
            writer.add(np.zeros((8, 8, 3), np.uint8), np.zeros(25))
    assert [path.name for path in theirs.iterdir()] == ['notes.txt']


@pytest.mark.parametrize(
    'dest, message', [('.', 'is not a data set'), ('/', 'names no file or folder'), ('..', 'names no file or folder')]
)
def test_destinations_without_a_name(dest, message, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert message in refused('demo', '--dest', dest, '--images', 2, '--resolution', 16, '--overwrite')
    assert not list(tmp_path.iterdir())


def test_unwritable_destination(tmp_path):
    (tmp_path / 'file').write_text('')
    with pytest.raises(DatasetError, match='cannot be written'):
        with DatasetWriter(tmp_path / 'file/set.zip'):
            pass


def test_convert_will_not_replace_its_source(tmp_path):
    run('demo', '--dest', tmp_path / 'set', '--images', 2, '--resolution', 16)
    same = tmp_path / 'set'
    line = refused('convert', '--source', same, '--dest', same, '--resolution', 8, '--overwrite')
    assert 'would replace' in line and len(PosedImageDataset(tmp_path / 'set')) == 2


def test_convert_will_not_write_among_its_source(tmp_path):
    run('demo', '--dest', tmp_path / 'set', '--images', 2, '--resolution', 16)
    line = refused('convert', '--source', tmp_path / 'set', '--dest', tmp_path / 'set/small', '--resolution', 8)
    assert 'lies in --source' in line and len(PosedImageDataset(tmp_path / 'set')) == 2
    run('convert', '--source', tmp_path / 'set', '--dest', tmp_path / 'set/small.zip', '--resolution', 8)
    assert len(PosedImageDataset(tmp_path / 'set')) == len(PosedImageDataset(tmp_path / 'set/small.zip')) == 2


def test_convert_points_at_cameras_that_lie_deeper(photographs):
    line = refused('convert', '--source', photographs.parent, '--dest', photographs.parent / 'out.zip', '--resolution', 16)
    assert f'but transforms.json in {photographs.name}: give that folder' in line


@pytest.mark.parametrize('command', [['demo', '--images', 1], ['convert', '--source', '.']])
def test_pictures_that_would_fill_the_memory_are_refused(command, tmp_path):
    output = run(*command, '--dest', tmp_path / 'set', '--resolution', 100000, code=2)
    assert '--resolution' in output and '8192' in output


def convert_error(source, tmp_path):
    line = refused('convert', '--source', source, '--dest', tmp_path / 'out', '--resolution', 16)
    assert not list(tmp_path.glob('out*'))
    return line


def test_convert_without_source_or_cameras(tmp_path):
    assert 'does not exist' in convert_error(tmp_path / 'nowhere', tmp_path)
    (tmp_path / 'empty').mkdir()
    assert 'neither transforms.json nor dataset.json' in convert_error(tmp_path / 'empty', tmp_path)


@pytest.mark.parametrize('content', ['{', '[]', '{}', '{"frames": [1]}', '{"frames": [{}]}'])
def test_convert_with_broken_transforms(photographs, tmp_path, content):
    (photographs / 'transforms.json').write_text(content)
    assert 'transforms.json cannot be read' in convert_error(photographs, tmp_path)


def test_convert_with_bad_frames(photographs, tmp_path):
    frames = read_frames(photographs)
    write_transforms(photographs, [])
    assert 'has no frames' in convert_error(photographs, tmp_path)
    write_transforms(photographs, [{**frames[0], 'file_path': 'images/99'}])
    assert '1 images that transforms.json names do not exist, first images/99' in convert_error(photographs, tmp_path)
    for change in ({'transform_matrix': [1, 2]}, {'fl_x': None}, {'fl_x': float('nan')}, {'w': 0}):
        write_transforms(photographs, [{**frames[0], **change}])
        assert 'the frame of images/0.png' in convert_error(photographs, tmp_path)
    write_transforms(photographs, frames, is_fisheye=True)
    assert 'fisheye' in convert_error(photographs, tmp_path)


@pytest.mark.parametrize('scale', [0, np.diag([1, 1, 0]), np.ones((3, 3)), 1e200, 1e-200])
def test_convert_names_a_frame_without_rotation(photographs, tmp_path, scale):
    frames = read_frames(photographs)
    pose = np.array(frames[2]['transform_matrix'])
    pose[:3, :3] = pose[:3, :3] * scale if np.isscalar(scale) else scale
    frames[2]['transform_matrix'] = pose.tolist()
    write_transforms(photographs, frames)
    assert 'the frame of images/2.png' in convert_error(photographs, tmp_path)


def with_position(frame, position):
    pose = np.array(frame['transform_matrix'])
    pose[:3, 3] = position
    return {**frame, 'transform_matrix': pose.tolist()}


def test_convert_with_cameras_that_share_no_view(photographs, tmp_path):
    frames = read_frames(photographs)
    write_transforms(photographs, frames[:1])
    assert 'a single photograph' in convert_error(photographs, tmp_path)
    write_transforms(photographs, [with_position(frame, [1, 2, 3]) for frame in frames])
    assert 'look around from one place' in convert_error(photographs, tmp_path)
    for frame in frames:
        turned = np.array(frame['transform_matrix'])
        turned[:3, [0, 2]] *= -1
        frame['transform_matrix'] = turned.tolist()
    write_transforms(photographs, frames)
    assert 'look away from the point where their axes meet' in convert_error(photographs, tmp_path)


def test_convert_names_unreadable_photographs(photographs, tmp_path):
    (photographs / 'images/3.png').write_bytes((photographs / 'images/3.png').read_bytes()[:100])
    assert 'images/3.png cannot be read' in convert_error(photographs, tmp_path)
