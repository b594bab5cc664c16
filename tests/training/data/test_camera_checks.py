"""Labels are cameras that see the scene, or one line says which slip they look like; at every door."""

import json
import math

import numpy as np
import pytest
import torch
from PIL import Image

from metrics.consistency.views import folder_views
from metrics.images import load_data
from metrics.registry import Task
from tests.dataset_prep.test_dataset_tool import convert_error, run
from tests.photographs import refused
from tests.tiny import tiny_generator, tiny_run
from train import check_inputs
from training.config import RenderingConfig
from training.data.camera_checks import CameraError, check_cameras, seen_scene
from training.data.dataset import PosedImageDataset, mirror_label
from training.presets import PRESETS
from training.rendering.cameras import look_at, look_at_pose, make_label, pinhole

OPENGL = np.diag([1.0, -1, -1, 1])


def cameras(count=40, yaw=0.8, pitch=0.4, pivot=(0.0, 0.0, 0.0), centre=(0.0, 0.0, 0.0), radius=2.7, focal=4.2647, wander=0.0):
    """Labels [count, 25] around `centre`, whose axes miss the pivot by `wander`; world units."""
    rng = torch.Generator().manual_seed(3)
    angles = math.pi / 2 + (2 * torch.rand(2, count, generator=rng) - 1) * torch.tensor([[yaw], [pitch]])
    origins = look_at_pose(*angles, (0.0, 0.0, 0.0), radius)[:, :3, 3] + torch.tensor(centre)
    targets = torch.tensor(pivot) + wander * torch.randn(count, 3, generator=rng)
    return make_label(look_at(origins, targets), pinhole(focal)).double().numpy()


def preset_scene(name):
    return RenderingConfig(**PRESETS[name].rendering)


def fault(labels, scene=None):
    """The one line with which labels are refused."""
    with pytest.raises(CameraError) as caught:
        check_cameras(labels, [f'{index}.png' for index in range(len(labels))], 'set/dataset.json', scene)
    assert '\n' not in str(caught.value) and str(caught.value).startswith('set/dataset.json: ')
    return str(caught.value)


def with_poses(change):
    """Labels with other pose matrices."""
    return lambda labels: np.concatenate(
        [np.stack([change(label[:16].reshape(4, 4)).ravel() for label in labels]), labels[:, 16:]], axis=1
    )


def with_intrinsics(change):
    return lambda labels: np.concatenate(
        [labels[:, :16], np.stack([change(label[16:].reshape(3, 3)).ravel() for label in labels])], axis=1
    )


def moved(factor):
    """Labels `factor` times as far from the world's origin."""
    return with_poses(lambda pose: pose * np.array([[1, 1, 1, factor]] * 3 + [[1] * 4]))


# ---------------------------------------------------------------------------------------------------------------------
# What must pass


@pytest.mark.parametrize(
    'preset, options',
    [
        ('ffhq512', dict(pivot=(0, 0, 0.2), wander=0.07)),
        ('ffhq256', dict(pivot=(0, 0, 0.2), centre=(0, 0, 0.175), wander=0.07)),
        ('afhq512', dict(pivot=(0, 0, -0.06), wander=0.07)),
        ('demo', {}),
        ('shapenet128', dict(yaw=math.pi, pitch=1.5, radius=1.3, focal=1.0254)),
        ('shapenet128', dict(yaw=math.pi, pitch=1.5, radius=1.7, focal=1.7074)),
    ],
)
def test_archives_of_every_preset_pass(preset, options):
    labels = torch.from_numpy(cameras(400, **options))
    labels = torch.cat([labels, mirror_label(labels)])
    written = np.array(
        json.loads(json.dumps([[float(f'{value:.7g}') for value in label] for label in labels.tolist()])), dtype=np.float32
    )
    rounded = np.round(written, 3)
    for form in (labels, labels.float(), written, rounded):
        names = [''] * len(form)
        check_cameras(form, names, '', preset_scene(preset))
        check_cameras(form, names, '', seen_scene(np.asarray(form)))


def test_unusual_lenses_pass():
    for intrinsics in (
        [0.4, 0, 0.5, 0, 0.7, 0.5, 0, 0, 1],  # a wide view squeezed into a square
        [12, 0, 0.62, 0, 12, 0.41, 0, 0, 1],  # a crop beside the middle of a telephoto picture
        [1.3, 0.01, 0.51, 0, 1.73, 0.5, 0, 0, 1],
    ):
        labels = cameras()
        labels[:, 16:] = intrinsics
        check_cameras(labels, [''] * len(labels), '')


# ---------------------------------------------------------------------------------------------------------------------
# Slips


def swapped(intrinsics):
    width, height = 640, 360
    return np.diag([1 / height, 1 / width, 1]) @ [[900, 0, width / 2], [0, 900, height / 2], [0, 0, 1]]


SLIPS = {
    'all zeros': lambda labels: labels * 0,
    'pose or its intrinsics are all zeros': with_intrinsics(lambda intrinsics: 0 * intrinsics),
    'not finite': lambda labels: np.where(np.arange(25) == 6, np.nan, labels),
    'intrinsics in pixels': with_intrinsics(lambda intrinsics: np.diag([256, 256, 1]) @ intrinsics),
    'intrinsics that were divided by the image size twice': with_intrinsics(
        lambda intrinsics: np.diag([1 / 256, 1 / 256, 1]) @ intrinsics
    ),
    'column-major intrinsics': with_intrinsics(np.transpose),
    'width and height swapped': with_intrinsics(swapped),
    'intrinsics of another picture size': with_intrinsics(lambda intrinsics: np.diag([3, 3, 1]) @ intrinsics),
    'focal length is not positive': with_intrinsics(lambda intrinsics: intrinsics * [[1, 1, 1], [1, -1, 1], [1, 1, 1]]),
    'skew is no real': with_intrinsics(lambda intrinsics: intrinsics + [[0, 2, 0], [0, 0, 0], [0, 0, 0]]),
    'have nothing in common': with_intrinsics(
        lambda intrinsics: np.diag([1, 0.2, 1]) @ intrinsics + [[0, 0, 0], [0, 0, 0.4], [0, 0, 0]]
    ),
    'looks like column-major matrices': with_poses(np.transpose),
    'looks like mirrored axes (determinant -1)': with_poses(lambda pose: pose @ np.diag([1, -1, 1, 1])),
    'holds no rotation': with_poses(lambda pose: pose @ np.diag([1, 1.1, 1, 1])),
}
SLIPS_OF_PLACE = {
    'looks like OpenGL axes': with_poses(lambda pose: pose @ OPENGL),
    'looks like world-to-camera matrices': with_poses(np.linalg.inv),
    'looks like world-to-camera matrices and OpenGL axes': with_poses(lambda pose: np.linalg.inv(pose @ OPENGL)),
    "stands at the world's origin": moved(0),
    "move the scene to the world's origin": with_poses(
        lambda pose: pose + [[0, 0, 0, 4], [0, 0, 0, 0], [0, 0, 0, 0], [0, 0, 0, 0]]
    ),
}


@pytest.mark.parametrize('message', SLIPS)
def test_what_is_no_camera_is_named(message):
    line = fault(SLIPS[message](cameras()))
    assert message in line and '40 of 40 cameras' in line and 'first that of 0.png' in line


def test_shares_of_the_wrong_side_and_focal_lengths_in_pixels_are_named():
    labels = cameras()
    labels[:, 16:] = [5, 0, 2 / 3, 0, 5 * 9 / 16, 0.375, 0, 0, 1]  # of 640 x 480, swapped, in a picture squeezed into a square
    assert 'width and height swapped' in fault(labels)
    labels[:, 16:] = [900, 0, 0.5, 0, 900, 0.5, 0, 0, 1]
    assert 'intrinsics in pixels' in fault(labels)


@pytest.mark.parametrize('preset', [None, 'demo', 'ffhq512'])
@pytest.mark.parametrize('message', SLIPS_OF_PLACE)
def test_what_does_not_see_the_scene_is_named(message, preset):
    labels = SLIPS_OF_PLACE[message](cameras())
    check_cameras(labels, [''] * len(labels), '')  # they are cameras
    assert message in fault(labels, preset_scene(preset) if preset else seen_scene(labels))


@pytest.mark.parametrize('preset, factor', [('ffhq512', 1.5), ('ffhq512', 0.1), ('ffhq512', 1000), ('shapenet128', 2)])
def test_wrong_distances_are_named_with_the_factor(preset, factor):
    line = fault(moved(factor)(cameras()), preset_scene(preset))
    assert 'looks like a wrong distance' in line and f'{2.7 * factor:.3g} from' in line and '--near, --far and --box' in line
    rendering = preset_scene(preset)
    scene = rendering.replace(near='auto', far='auto') if factor < 1 else rendering.replace(near=2.0 * factor, far=3.5 * factor)
    labels = moved(factor)(cameras())
    check_cameras(labels, [''] * len(labels), '', scene)


def test_cameras_of_many_distances_want_other_limits():
    labels = cameras()
    labels[10:] = moved(1.7)(labels[10:])
    labels[20:] = moved(0.3)(labels[20:])
    assert 'train with the --near, --far and --box that dataset_tool.py convert suggests' in fault(labels, preset_scene('demo'))


def test_a_few_bad_labels_are_counted_and_the_first_is_named():
    labels = cameras()
    labels[[7, 20, 31]] = with_poses(lambda pose: pose @ OPENGL)(labels[[7, 20, 31]])
    line = fault(labels, preset_scene('demo'))
    assert '3 of 40 cameras' in line and 'first that of 7.png: it looks away' in line and 'OpenGL axes' in line


def test_numbers_beyond_all_reason_are_refused():
    for value in (1e38, -1e38, np.inf, 1e300):
        for entry in range(25):
            labels = cameras(2)
            labels[1, entry] = value
            assert '1 of 2 cameras' in fault(labels, preset_scene('demo'))


# ---------------------------------------------------------------------------------------------------------------------
# Doors


def write_set(path, labels, size=(32, 32)):
    path.mkdir()
    for index in range(len(labels)):
        Image.new('RGB', size, (index, 90, 200)).save(path / f'{index}.png')
    (path / 'dataset.json').write_text(
        json.dumps({'labels': [[f'{index}.png', label.tolist()] for index, label in enumerate(labels)]})
    )
    return path


@pytest.fixture
def turned_set(tmp_path):
    """A data set whose cameras look away."""
    return write_set(tmp_path / 'set', SLIPS_OF_PLACE['looks like OpenGL axes'](cameras(3)))


def test_reading_a_data_set_looks_at_its_labels(tmp_path):
    with pytest.raises(CameraError, match='3 of 3 cameras .* first that of 0.png: its pose or its intrinsics are all zeros'):
        PosedImageDataset(write_set(tmp_path / 'set', np.zeros((3, 25))))


def test_training_looks_at_its_cameras_first(turned_set, tmp_path):
    config = tiny_run(turned_set, tmp_path / 'run')
    with pytest.raises(CameraError, match='3 of 3 cameras .* OpenGL axes'):
        check_inputs(config)
    assert not (tmp_path / 'run').exists()


def test_training_compares_the_cameras_with_its_own_near_and_far(tmp_path):
    config = tiny_run(write_set(tmp_path / 'set', cameras(3)), tmp_path / 'run')
    check_inputs(config)
    generator = config.generator.replace(rendering=config.generator.rendering.replace(near=0.1, far=1.0))
    with pytest.raises(CameraError, match='outside near 0.1 and far 1'):
        check_inputs(config.replace(generator=generator))


def test_metrics_of_a_network_look_at_the_cameras_of_the_data(turned_set, tmp_path):
    task = Task(device=torch.device('cpu'), generator=tiny_generator(), data=str(turned_set), options={})
    with pytest.raises(CameraError, match='OpenGL axes'):
        load_data(task)


def test_the_converter_looks_at_ready_labels(turned_set, tmp_path):
    assert 'OpenGL axes' in convert_error(turned_set, tmp_path)


def test_the_converter_looks_at_what_it_writes(tmp_path):
    labels = cameras(3)
    labels[:, 16:] = [0.5, 0, 0.9, 0, 1.5, 0.5, 0, 0, 1]  # of a wide picture, whose middle is kept
    source = write_set(tmp_path / 'set', labels, size=(96, 32))
    line = refused('convert', '--source', source, '--dest', tmp_path / 'out', '--resolution', 16)
    assert 'out as converted: 3 of 3 cameras' in line and 'principal point lies outside' in line
    assert [path.name for path in tmp_path.iterdir()] == ['set']


def test_stored_views_are_looked_at(turned_set):
    with pytest.raises(CameraError, match='OpenGL axes'):
        folder_views(turned_set)


def test_the_demo_set_of_any_distance_passes(tmp_path):
    for name, options in {'near': ('--radius', 1.2, '--focal', 1.5), 'far': ('--radius', 9, '--focal', 14)}.items():
        run('demo', '--dest', tmp_path / name, '--images', 3, '--resolution', 16, '--mirror', *options)
        assert len(PosedImageDataset(tmp_path / name)) == 6
