"""What transforms.json says is applied, or refused in one line."""

import json
import shutil

import numpy as np
import pytest
import torch
from PIL import Image

from dataset_prep.convert import load_views, view_picture
from dataset_prep.lenses import folds
from dnnlib.errors import UserError
from tests.dataset_prep.test_dataset_tool import convert_error
from tests.photographs import FOCAL, HEIGHT, WIDTH, converted, read_frames, run, write_transforms

OPENGL = np.diag([1.0, -1, -1, 1])


def views_of(source, axes='opengl'):
    return load_views(source, 2.7, axes)[1]


def failure(source, axes='opengl'):
    with pytest.raises(UserError) as caught:
        load_views(source, 2.7, axes)
    return str(caught.value)


def turn(source, change):
    """Other pose matrices for all frames."""
    frames = read_frames(source)
    for frame in frames:
        frame['transform_matrix'] = change(np.array(frame['transform_matrix'])).tolist()
    write_transforms(source, frames)


def labels(views):
    return np.stack([view.label() for view in views])


# ---------------------------------------------------------------------------------------------------------------------
# Poses


def test_opencv_axes_are_an_option(photographs, tmp_path):
    expected = converted(photographs, tmp_path / 'expected')
    turn(photographs, lambda pose: pose @ OPENGL)
    line = convert_error(photographs, tmp_path)
    assert 'look away' in line and 'OpenCV axes' in line and '--axes=opencv' in line
    actual = converted(photographs, tmp_path / 'actual', '--axes=opencv')
    torch.testing.assert_close(actual.labels, expected.labels)
    assert torch.equal(actual[2][0], expected[2][0])


def test_opengl_axes_are_not_taken_for_opencv_ones(photographs):
    assert '--axes=opengl' in failure(photographs, axes='opencv')


@pytest.mark.parametrize(
    'change, message',
    [
        (np.transpose, 'last row is not 0 0 0 1; this looks like column-major matrices'),
        (lambda pose: pose @ np.diag([-1, 1, 1, 1]), 'this looks like mirrored axes'),
        (lambda pose: np.diag([1, -1, 1, 1]) @ pose, 'this looks like mirrored axes'),
        (lambda pose: pose @ np.diag([1, 1.2, 1, 1]), 'no rotation'),
        (np.linalg.inv, 'if these are world-to-camera matrices'),
        (lambda pose: np.linalg.inv(pose @ OPENGL), 'if these are world-to-camera matrices and OpenCV axes'),
    ],
)
def test_slips_of_poses_are_named(photographs, change, message):
    turn(photographs, lambda pose: pose - [[0, 0, 0, 3], [0, 0, 0, -2], [0, 0, 0, 5], [0, 0, 0, 0]])  # around the file's origin
    turn(photographs, change)
    line = failure(photographs)
    assert message in line and 'OpenGL axes' in line or message == 'no rotation' and message in line


def test_a_frame_that_looks_elsewhere_is_named(photographs):
    frames = read_frames(photographs)
    frames[3]['transform_matrix'] = (np.array(frames[3]['transform_matrix']) @ OPENGL).tolist()
    write_transforms(photographs, frames)
    line = failure(photographs)
    assert '1 of 5 cameras' in line and 'images/3.png: it looks away' in line and 'these are' not in line


@pytest.mark.parametrize('scale', [1e-3, 40])
def test_a_scale_of_the_world_and_of_the_matrix_changes_nothing(photographs, scale):
    expected = labels(views_of(photographs))
    turn(photographs, lambda pose: np.diag([scale, scale, scale, 1]) @ pose)
    np.testing.assert_allclose(labels(views_of(photographs)), expected, atol=1e-9)


# ---------------------------------------------------------------------------------------------------------------------
# Lenses


@pytest.mark.parametrize(
    'keys',
    [
        {'camera_model': 'OPENCV_FISHEYE', 'k1': 0.02},
        {'camera_model': 'THIN_PRISM_FISHEYE'},
        {'camera_model': 'VR180_L'},
        {'camera_model': 'SPHERICAL'},
        {'camera_model': ''},
        {'camera_model': None},
        {'camera_model': 7},
        {'camera_model': ['PINHOLE']},
        {'is_fisheye': True},
        {'fisheye': 1},
        {'latlong': True},
        {'k4': 0.1},
        {'k6': -0.1},
        {'ftheta_p1': 0.3},
        {'distortion_params': [0.1, 0, 0, 0]},
    ],
)
def test_other_camera_models_are_refused(photographs, keys):
    name = next(iter(keys))
    write_transforms(photographs, read_frames(photographs), **keys)
    assert f'the frame of images/0.png in transforms.json has "{name}"' in failure(photographs)
    frames = read_frames(photographs)
    frames[3].update(keys)
    write_transforms(photographs, frames)
    assert f'the frame of images/3.png in transforms.json has "{name}"' in failure(photographs)


@pytest.mark.parametrize(
    'model, keys, extra',
    [
        ('PINHOLE', {}, 'k1'),
        ('SIMPLE_PINHOLE', {'k1': 0}, 'p1'),
        ('SIMPLE_RADIAL', {'k1': 0.1}, 'k2'),
        ('RADIAL', {'k2': 0.02}, 'p2'),
        ('opencv', {'k1': 0.1, 'p2': 0.01, 'k3': 0.02, 'k4': 0, 'is_fisheye': False}, None),
    ],
)
def test_known_camera_models_and_their_parameters(photographs, model, keys, extra):
    write_transforms(photographs, read_frames(photographs), camera_model=model, **keys)
    assert views_of(photographs)[1].distortion == tuple(keys.get(key, 0) for key in ('k1', 'k2', 'p1', 'p2', 'k3'))
    if extra:
        write_transforms(photographs, read_frames(photographs), camera_model=model, **{**keys, extra: 0.1})
        assert f'which has no "{extra}"' in failure(photographs)


def test_frames_have_lenses_of_their_own(photographs):
    frames = read_frames(photographs)
    frames[1].update(k1=0.2, cx=50)
    frames[2].update(camera_model='PINHOLE', k1=0)
    write_transforms(photographs, frames, k1=0.1)
    views = views_of(photographs)
    assert [view.distortion[0] for view in views] == [0.1, 0.2, 0, 0.1, 0.1]
    assert views[1].intrinsics[0, 2] == 50 / WIDTH != views[0].intrinsics[0, 2]


@pytest.mark.parametrize('distortion', [{'k1': -0.9}, {'k1': 0.3, 'k2': -4}, {'k3': -20}, {'p2': 1.5}, {'k1': 1e300}])
def test_a_lens_that_folds_the_picture_is_refused(photographs, distortion):
    frames = read_frames(photographs)
    frames[4].update(distortion)
    write_transforms(photographs, frames)
    assert 'distortion of images/4.png folds the picture' in failure(photographs)


def test_lenses_fold_where_the_distance_from_the_middle_no_longer_grows():
    # r (1 + k r^2) grows up to r = 1 / sqrt(-3 k); the corners of this frame lie at r = 1.
    intrinsics = np.array([[2**-0.5, 0, 0.5], [0, 2**-0.5, 0.5], [0, 0, 1]])
    assert not folds(intrinsics, (-0.31, 0, 0, 0, 0)) and folds(intrinsics, (-0.36, 0, 0, 0, 0))


# ---------------------------------------------------------------------------------------------------------------------
# Focal lengths and sizes


ANGLES = {'camera_angle_x': 2 * np.arctan(WIDTH / 2 / FOCAL), 'camera_angle_y': 2 * np.arctan(HEIGHT / 2 / FOCAL)}


@pytest.mark.parametrize(
    'keys',
    [
        {'fl_x': FOCAL},
        {'fl_y': FOCAL},
        {'camera_angle_x': ANGLES['camera_angle_x']},
        {'camera_angle_y': ANGLES['camera_angle_y']},
        ANGLES,
        {'fl_x': FOCAL, **ANGLES},
        {'fl_x': 2 * FOCAL, 'w': 2 * WIDTH},
        {'fl_y': FOCAL / 4, 'h': HEIGHT / 4, 'cx': WIDTH / 8},
    ],
)
def test_focal_lengths_come_in_several_forms(photographs, keys):
    frames = read_frames(photographs)
    (photographs / 'transforms.json').write_text(json.dumps({**keys, 'frames': frames}))
    np.testing.assert_allclose(
        views_of(photographs)[0].intrinsics, [[FOCAL / WIDTH, 0, 0.5], [0, FOCAL / HEIGHT, 0.5], [0, 0, 1]]
    )


@pytest.mark.parametrize('own', [{'fl_x': 2 * FOCAL}, {'camera_angle_x': 2 * np.arctan(WIDTH / 4 / FOCAL)}])
@pytest.mark.parametrize('common', [{'fl_x': FOCAL, 'fl_y': FOCAL}, ANGLES])
def test_the_focal_length_of_a_frame_wins_in_any_form(photographs, own, common):
    frames = read_frames(photographs)
    frames[2].update(own)
    (photographs / 'transforms.json').write_text(json.dumps({**common, 'frames': frames}))
    focals = labels(views_of(photographs))[:, [16, 20]]
    np.testing.assert_allclose(focals[2], [2 * FOCAL / WIDTH, 2 * FOCAL / HEIGHT])
    np.testing.assert_allclose(focals[3], [FOCAL / WIDTH, FOCAL / HEIGHT])


@pytest.mark.parametrize(
    'keys, message',
    [
        ({'camera_angle_x': 0.9}, 'remove the wrong one'),
        ({'camera_angle_y': 40}, 'no angle of view in radians'),
        ({'fl_x': FOCAL / WIDTH, 'fl_y': FOCAL / HEIGHT, 'cx': 0.5, 'cy': 0.5}, 'divided by the image size twice'),
        ({'cx': 200}, 'principal point lies outside'),
        ({'fl_x': -FOCAL}, 'not positive'),
        ({'fl_y': 0}, 'not positive'),
        ({'w': 0, 'h': 0}, 'correct "w" and "h"'),
        ({'p1': float('nan')}, '"p1": nan'),
        ({'cx': 'left'}, '"cx": left'),
        ({'fl_x': [1]}, '"fl_x": [1]'),
        ({'k2': 10**400}, '"k2": 1000'),
        ({'cy': None}, '"cy": None'),
    ],
)
def test_numbers_that_cannot_be_right_are_refused(photographs, keys, message):
    write_transforms(photographs, read_frames(photographs), **keys)
    assert message in failure(photographs)
    frames = read_frames(photographs)
    frames[1].update(keys if 'camera_angle_x' not in keys else {'fl_x': FOCAL, **keys})
    write_transforms(photographs, frames)
    assert message in failure(photographs) and 'images/1.png' in failure(photographs)


# ---------------------------------------------------------------------------------------------------------------------
# Masks


def mask_of(left, value=255, size=(WIDTH, HEIGHT), mode='L'):
    """A mask that shows the picture from column `left` on."""
    mask = np.zeros(size[::-1], np.uint8)
    mask[:, left * size[0] // WIDTH :] = value
    return Image.fromarray(mask).convert(mode)


@pytest.mark.parametrize('path', ['masks/one.png', './masks\\one.png'])
@pytest.mark.parametrize(
    'mask', [mask_of(60), mask_of(60, value=1), mask_of(60, size=(WIDTH // 2, HEIGHT // 2)), mask_of(60, mode='RGB')]
)
def test_masks_are_applied(photographs, path, mask):
    (photographs / 'masks').mkdir()
    mask.save(photographs / 'masks/one.png')
    frames = read_frames(photographs)
    frames[1]['mask_path'] = path
    write_transforms(photographs, frames)
    store, views, notes = load_views(photographs, 2.7)
    assert notes[0].startswith('1 of 5 images have a mask')
    for background, value in (('white', 255), ('black', 0)):
        shown = np.asarray(view_picture(store, views[1], background))
        assert (shown[:, :59] == value).all() and views[0].mask is None
        np.testing.assert_array_equal(shown[:, 61:], np.asarray(Image.open(photographs / 'images/1.png'))[:, 61:])


def test_soft_masks_blend_with_the_background_and_with_alpha(photographs):
    colours = np.full((HEIGHT, WIDTH, 4), (200, 100, 0, 128), np.uint8)
    Image.fromarray(colours).save(photographs / 'images/1.png')
    mask_of(0, value=128).save(photographs / 'mask.png')
    frames = read_frames(photographs)
    frames[1]['mask_path'] = 'mask.png'
    write_transforms(photographs, frames)
    store, views, _ = load_views(photographs, 2.7)
    expected = 255 + (np.array([200, 100, 0]) - 255) * (128 / 255) ** 2
    np.testing.assert_allclose(np.asarray(view_picture(store, views[1], 'white'))[5, 5], expected, atol=2)


@pytest.mark.parametrize('form', ['masks/{stem}.png', 'masks/{stem}.png.png', 'masks/images/{stem}.png', 'masks/{stem}.TIF'])
def test_a_folder_of_masks_is_applied(photographs, form, tmp_path):
    for name in range(5):
        path = photographs / form.format(stem=name)
        path.parent.mkdir(parents=True, exist_ok=True)
        mask_of(WIDTH).save(path)
    output = run('convert', '--source', photographs, '--dest', tmp_path / 'set', '--resolution', 16)
    assert '5 of 5 images have a mask' in output
    assert not np.asarray(Image.open(tmp_path / 'set/00000/img00000002.png')).any()
    path.unlink()
    assert 'the frame of images/4.png in transforms.json has no mask' in failure(photographs)


@pytest.mark.parametrize(
    'path, size, message',
    [
        ('masks/none.png', None, '"mask_path": \'masks/none.png\', which does not exist'),
        (3, None, '"mask_path": 3, which does not exist'),
        ('mask.png', (50, 50), '50x50'),
    ],
)
def test_masks_that_cannot_be_applied_are_refused(photographs, path, size, message, tmp_path):
    if size:
        mask_of(0, size=size).save(photographs / 'mask.png')
    frames = read_frames(photographs)
    frames[2]['mask_path'] = path
    write_transforms(photographs, frames)
    assert message in convert_error(photographs, tmp_path)


# ---------------------------------------------------------------------------------------------------------------------
# Files and keys


@pytest.mark.parametrize(
    'parts', [{'train': [0, 2, 4], 'test': [1, 3]}, {'train': [1], 'val': [0, 3], 'test': [2, 4]}, {'val': range(5)}]
)
def test_split_files_become_one_set(photographs, parts):
    expected = labels(views_of(photographs))
    content = json.loads((photographs / 'transforms.json').read_text())
    (photographs / 'transforms.json').unlink()
    for name, indices in parts.items():
        part = {**content, 'frames': [content['frames'][index] for index in indices]}
        (photographs / f'transforms_{name}.json').write_text(json.dumps(part))
    views = views_of(photographs)
    assert [view.name for view in views] == [f'images/{index}.png' for index in range(5)]
    np.testing.assert_array_equal(labels(views), expected)


def test_splits_have_cameras_of_their_own(photographs):
    content = json.loads((photographs / 'transforms.json').read_text())
    for name, indices, focal in (('train', [0, 1, 2], FOCAL), ('test', [2, 3, 4], 1.5 * FOCAL)):
        part = {'camera_angle_x': 2 * np.arctan(WIDTH / 2 / focal), 'frames': [content['frames'][index] for index in indices]}
        (photographs / f'transforms_{name}.json').write_text(json.dumps(part))
    store, views, notes = load_views(photographs, 2.7)
    assert views[4].intrinsics[0, 0] == FOCAL / WIDTH and 'transforms_train.json, transforms_test.json are left out' in notes[0]
    (photographs / 'transforms.json').unlink()
    assert 'two different cameras for 1 images, first images/2.png' in failure(photographs)


def test_keys_that_place_or_describe_the_scene_change_nothing(photographs):
    expected = labels(views_of(photographs))
    frames = [
        {**frame, 'sharpness': 3.0, 'colmap_im_id': 4, 'depth_file_path': 'depth/0.png'} for frame in read_frames(photographs)
    ]
    write_transforms(
        photographs,
        frames,
        aabb_scale=16,
        scale=0.3,
        offset=[1, 2, 3],
        ply_file_path='points.ply',
        applied_scale=0.1,
        applied_transform=[[1, 0, 0, 0], [0, 0, 1, 0], [0, -1, 0, 0]],
    )
    _, views, notes = load_views(photographs, 2.7)
    np.testing.assert_array_equal(labels(views), expected)
    assert not notes


def test_keys_that_nobody_knows_are_said(photographs, tmp_path):
    frames = read_frames(photographs)
    frames[2]['shift_x'] = 0.1
    write_transforms(photographs, frames, rolling_shutter=[0, 0, 1, 0])
    output = run('convert', '--source', photographs, '--dest', tmp_path / 'set', '--resolution', 16)
    assert 'not known and have no effect: rolling_shutter, shift_x' in output


def test_masks_of_moving_things_are_said_to_be_left_out(photographs):
    shutil.copy(photographs / 'images/0.png', photographs / 'images/dynamic_mask_0.png')
    assert '1 files dynamic_mask_*' in load_views(photographs, 2.7)[2][0]
