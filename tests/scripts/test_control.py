"""Cameras, latents, truncation and samples along rays, as gen_samples.py and gen_videos.py let users choose them."""

import json

import numpy as np
import pytest
import torch
from PIL import Image

import gen_samples
import gen_videos
from sampling import subjects
from sampling.cameras import Cameras, viewer_cameras, write_cameras
from sampling.latents import seed_latents
from tests.helpers import assert_one_clear_line, invoke, read_video, succeed
from tests.photographs import read_frames, write_transforms
from tests.scripts.generating import IMAGE
from torch_utils.images import to_uint8
from training.config import RENDER_PRECISIONS
from training.rendering.cameras import split_label, view_label


def sample(folder, *arguments):
    """The 8-bit pixels of samples_3d.png."""
    succeed(gen_samples.main, '--network=stage2.pkl', '--branch=3d', f'--outdir={folder}', *arguments)
    return np.asarray(Image.open(folder / 'samples_3d.png'))


def refused(script, tmp_path, *arguments):
    output = f'--outdir={tmp_path / "out"}' if script is gen_samples else f'--output={tmp_path / "out" / "film.mp4"}'
    result = invoke(script.main, '--network=stage2.pkl', output, *arguments)
    assert not (tmp_path / 'out').exists()
    return result


def rendered(G, label, **changes):
    """What the 3D branch shows of seed 3 to a camera [1, 25], its near, far and so on changed, as uint8 [H, W, 3]."""
    planes = G.planes(subjects.seed_ws(G, [3], 0.7), noise_mode='const')
    rendering = G.config.rendering.replace(**changes)
    with torch.no_grad():
        out = G.render(planes, label, branch='3d', sampling='deterministic', rendering=rendering)
    return to_uint8(out['image'])[0].permute(1, 2, 0).numpy()


def used_labels(path):
    return torch.tensor([label for _, label in json.loads(path.read_text())['labels']])


# Cameras -------------------------------------------------------------------------------------------------------------


def test_cameras_that_were_used_give_the_same_pictures_again(networks, tmp_path):
    first = sample(tmp_path / '1', '--seeds=3', '--views=-0.4/0,0/0.1', '--radius=3.5', '--focal=5', '--pivot=0.1,0,0')
    again = sample(tmp_path / '2', '--seeds=3', f'--cameras={tmp_path}/1/cameras.json')
    assert first.shape == (IMAGE, 2 * IMAGE, 3) and np.array_equal(first, again)
    assert (tmp_path / '1/cameras.json').read_bytes() == (tmp_path / '2/cameras.json').read_bytes()


def test_viewer_options_move_the_camera(networks, tmp_path):
    sample(tmp_path, '--seeds=3', '--views=0.3/0', '--radius=3.5', '--focal=5', '--pivot=0.1,0.05,0')
    pose, intrinsics = split_label(used_labels(tmp_path / 'cameras.json'))
    origin, forward = pose[0, :3, 3], pose[0, :3, 2]
    assert float(origin.norm()) == pytest.approx(3.5, abs=1e-5) and origin[0] > 0.9
    assert float(intrinsics[0, 0, 0]) == float(intrinsics[0, 1, 1]) == 5
    to_pivot = torch.tensor([0.1, 0.05, 0]) - origin
    torch.testing.assert_close(forward, to_pivot / to_pivot.norm())


def test_subjects_stay_who_they_are_when_the_viewer_moves(networks, tmp_path):
    G = networks['stage2']
    path = tmp_path / 'l.npz'
    sample(tmp_path / 'out', '--seeds=3', '--radius=3', '--focal=3', '--pivot=0,0,0', f'--save-latents={path}')
    assert np.array_equal(np.load(path)['ws'], subjects.seed_ws(G, [3], 0.7).numpy())


def test_near_and_far_follow_a_camera_at_another_distance(networks, tmp_path):
    G = networks['stage2']
    label = viewer_cameras(G.config, torch.zeros(1), torch.zeros(1), radius=3.7).labels
    own = G.config.rendering
    assert np.array_equal(sample(tmp_path, '--seeds=3', '--radius=3.7'), rendered(G, label, near=own.near + 1, far=own.far + 1))
    assert not np.array_equal(rendered(G, label, near=own.near + 1, far=own.far + 1), rendered(G, label))
    close = viewer_cameras(G.config, torch.zeros(1), torch.zeros(1), radius=0.3).labels
    assert subjects.follow_camera(own, close).near == 0


@pytest.mark.parametrize('radius', [2.71, 2.69])
def test_near_and_far_of_training_hold_at_nearly_its_distance(networks, radius):
    G = networks['stage2']
    label = viewer_cameras(G.config, torch.zeros(1), torch.zeros(1), radius=radius).labels
    assert subjects.follow_camera(G.config.rendering, label) is G.config.rendering


def test_cameras_of_a_data_set_by_name(networks, data, tmp_path):
    columns = sample(tmp_path, '--seeds=3', f'--cameras={data}', '--render-resolution=4').shape[1] // 4
    names = [name for name, _ in json.loads((tmp_path / 'cameras.json').read_text())['labels']]
    assert columns == len(names) == 24 and names[0].endswith('.png') and len(set(names)) == 24


def test_cameras_of_photographs_see_their_central_square(networks, photographs, tmp_path):
    G = networks['stage2']
    for index, path in enumerate((photographs, photographs / 'transforms.json')):
        pixels = sample(tmp_path / str(index), '--seeds=3', f'--cameras={path}')
        assert pixels.shape == (IMAGE, 5 * IMAGE, 3)
        poses, intrinsics = split_label(used_labels(tmp_path / f'{index}/cameras.json'))
        distances = poses[:, :3, 3].norm(dim=1)
        assert float(distances.median()) == pytest.approx(G.config.rendering.camera_radius, rel=1e-4)
        # 120 x 160 pixels with the principal point (57, 84): the square begins 20 pixels down.
        torch.testing.assert_close(intrinsics[0], torch.tensor([[170 / 120, 0, 57 / 120], [0, 170 / 120, 64 / 120], [0, 0, 1]]))


@pytest.fixture
def moving(networks, tmp_path):
    """Cameras of a move, and the options that name their file."""
    cameras = Cameras(['a', 'b', 'c'], view_label(networks['stage2'].config, torch.tensor([-0.4, 0.0, 0.4])))
    write_cameras(tmp_path / 'c.json', cameras)
    return cameras, ['--network=stage2.pkl', '--branch=3d', f'--cameras={tmp_path}/c.json']


@pytest.mark.parametrize('mode', ['orbit', 'interpolate'])
def test_a_video_has_a_frame_per_camera(mode, moving, tmp_path, monkeypatch):
    cameras, common = moving
    seen, render_subjects = [], subjects.render_subjects
    monkeypatch.setattr(
        subjects, 'render_subjects', lambda G, cast, label, *rest: seen.append(label) or render_subjects(G, cast, label, *rest)
    )
    succeed(gen_videos.main, *common, '--seeds=0-1', f'--mode={mode}', f'--output={tmp_path}/film.mp4')
    assert len(read_video(tmp_path / 'film.mp4')[1]) == 6
    assert torch.equal(torch.cat(seen), cameras.labels.repeat(2, 1))
    assert (tmp_path / 'film.mp4.cameras.json').read_bytes() == (tmp_path / 'c.json').read_bytes()


def test_a_texture_image_has_a_row_per_camera(moving, networks, tmp_path):
    cameras, common = moving
    succeed(gen_videos.main, *common, '--seeds=3', '--epi', '--epi-line=0.25', f'--output={tmp_path}/texture.png')
    texture = np.asarray(Image.open(tmp_path / 'texture.png'))
    assert texture.shape == (3, IMAGE, 3)
    for row, label in zip(texture, cameras.labels):
        assert np.array_equal(row, rendered(networks['stage2'], label[None])[IMAGE // 4])


def test_texture_images_need_two_cameras(networks, tmp_path):
    write_cameras(tmp_path / 'c.json', Cameras(['a'], view_label(networks['stage2'].config)))
    path = tmp_path / 'texture.png'
    result = invoke(
        gen_videos.main, '--network=stage2.pkl', '--seeds=3', '--epi', f'--output={path}', f'--cameras={tmp_path}/c.json'
    )
    assert_one_clear_line(result, 'c.json has a single camera')


@pytest.mark.parametrize(
    'content, message',
    [
        ('{"labels": [["a", [1, 2]]]}', 'c.json are malformed; the label of a is not a list of 25 finite numbers'),
        ('{"labels": []}', 'c.json has no cameras'),
        ('{"labels": 3}', 'c.json cannot be read: it must be JSON of the form'),
        ('{"labels": [["a", ', 'c.json cannot be read'),
        ('{"frames": []}', 'c.json has the form of a transforms.json: give it that name'),
        (json.dumps({'labels': [['a', [0.0] * 25]]}), 'its pose or its intrinsics are all zeros'),
    ],
)
@pytest.mark.parametrize('script', [gen_samples, gen_videos])
def test_files_without_cameras_are_one_clear_line(script, content, message, networks, tmp_path):
    (tmp_path / 'c.json').write_text(content)
    assert_one_clear_line(refused(script, tmp_path, '--seeds=0', f'--cameras={tmp_path}/c.json'), message)


def test_cameras_that_look_away_are_one_clear_line(networks, tmp_path):
    label = view_label(networks['stage2'].config)
    label[:, [1, 2, 5, 6, 9, 10]] *= -1
    write_cameras(tmp_path / 'c.json', Cameras(['a'], label))
    result = refused(gen_samples, tmp_path, '--seeds=0', f'--cameras={tmp_path}/c.json')
    assert_one_clear_line(result, 'first that of a: it looks away from the scene')
    assert 'this looks like OpenGL axes' in result.output


@pytest.mark.parametrize('path', ['nowhere', 'nowhere.json', 'empty', 'one'])
def test_paths_without_cameras_are_one_clear_line(path, networks, photographs, tmp_path):
    (tmp_path / 'empty').mkdir()
    write_transforms(photographs, read_frames(photographs)[:1])
    photographs.rename(tmp_path / 'one')
    messages = {'empty': 'has neither transforms.json nor dataset.json', 'one': 'there is a single photograph'}
    result = refused(gen_samples, tmp_path, '--seeds=0', f'--cameras={tmp_path / path}')
    assert_one_clear_line(result, messages.get(path, 'does not exist'))


@pytest.mark.parametrize(
    'arguments, message',
    [
        (['--pivot=3,0,0'], 'its optical axis misses the box of side 1'),
        (['--focal=100'], 'its focal length or principal point is beyond any'),
        (['--radius=0'], "'--radius': 0"),
        (['--radius=nan'], "'--radius': nan is not a finite number"),
        (['--pivot=1,2'], "'1,2' is not a point; write three coordinates like 0,0,0.2"),
        (['--pivot=1,2,x'], "'x' is not a number"),
        (['--pivot=1,2,inf'], 'inf is not a finite number'),
        (['--cameras=c.json', '--radius=3', '--focal=2'], '--focal, --radius have no effect with --cameras'),
        (['--samples=3'], "'--samples': 3 is not in the range"),
        (['--skip=1'], "'--skip': 1"),
    ],
)
@pytest.mark.parametrize('script', [gen_samples, gen_videos])
def test_bad_control_is_one_clear_line(script, arguments, message, networks, tmp_path):
    assert_one_clear_line(refused(script, tmp_path, '--seeds=0', *arguments), message)


def test_a_wrong_viewer_is_told_the_networks_own(networks, tmp_path):
    result = refused(gen_samples, tmp_path, '--seeds=0', '--pivot=3,0,0')
    assert "stay nearer to the network's own --focal=4.26 --radius=2.7 --pivot=0,0,0.2" in result.output


@pytest.mark.parametrize(
    'script, argument',
    [
        (gen_samples, '--views=0/0'),
        (gen_videos, '--frames=3'),
        (gen_videos, '--yaw-range=1'),
        (gen_videos, '--pitch-range=1'),
        (gen_videos, '--full-orbit'),
    ],
)
def test_cameras_exclude_the_viewers_moves(script, argument, networks, tmp_path):
    result = refused(script, tmp_path, '--seeds=0', '--cameras=c.json', argument)
    assert_one_clear_line(result, f'{argument.split("=")[0]} has no effect with --cameras')


# Latents and truncation ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize('kind', ['z', 'w', 'ws'])
def test_latents_of_a_file_are_the_subjects(kind, networks, tmp_path):
    G = networks['stage2']
    ws = subjects.seed_ws(G, [3, 5], 1.0)
    rows = {'z': seed_latents(G, [3, 5]), 'w': ws[:, 0], 'ws': ws}[kind]
    np.savez(tmp_path / 'l.npz', **{kind: rows.double().numpy()})
    trunc = ['--trunc=1'] if kind == 'z' else []
    pixels = sample(tmp_path / 'file', f'--latents={tmp_path}/l.npz', *trunc)
    assert np.array_equal(pixels, sample(tmp_path / 'seeds', '--seeds=3,5', '--trunc=1'))
    sample(tmp_path / 'file', f'--latents={tmp_path}/l.npz', '--batch=1', *trunc)
    succeed(gen_samples.main, '--network=stage2.pkl', f'--latents={tmp_path}/l.npz', '--no-grid', f'--outdir={tmp_path}', *trunc)
    assert (tmp_path / 'latent0001_view00_3d.png').exists()


def test_saved_latents_come_back_to_the_last_bit(networks, tmp_path):
    arguments = ['--depth', '--views=0.2/0']
    first = sample(tmp_path / '1', '--seeds=3,5', '--trunc=-0.5,1', f'--save-latents={tmp_path}/a/l.npz', *arguments)
    again = sample(tmp_path / '2', f'--latents={tmp_path}/a/l.npz', f'--save-latents={tmp_path}/m.npz', *arguments)
    ws = np.load(tmp_path / 'a/l.npz')['ws']
    assert ws.dtype == np.float32 and len(ws) == 4 and np.array_equal(ws, np.load(tmp_path / 'm.npz')['ws'])
    depths = [np.load(tmp_path / f'{run}/samples_3d_depth.npy') for run in '12']
    assert np.array_equal(depths[0].reshape(4, 1, IMAGE, IMAGE), depths[1])
    cells = [first[-2 * IMAGE :][:IMAGE, IMAGE:], again[IMAGE : 2 * IMAGE]]  # seed 3 with psi 1
    assert np.array_equal(*cells)


def test_latents_of_a_video(networks, tmp_path):
    G = networks['stage2']
    common = ['--network=stage2.pkl', '--branch=3d', '--epi', '--frames=2', f'--output={tmp_path}/t.png']
    succeed(gen_videos.main, *common, '--seeds=3,5', '--trunc=-1', f'--save-latents={tmp_path}/l.npz')
    ws = subjects.seed_ws(G, [3, 5], -1)
    assert np.array_equal(np.load(tmp_path / 'l.npz')['ws'], ws.numpy())
    pixels = np.asarray(Image.open(tmp_path / 't.png'))
    result = succeed(gen_videos.main, *common, f'--latents={tmp_path}/l.npz')
    assert np.array_equal(pixels, np.asarray(Image.open(tmp_path / 't.png')))
    assert [line.split(':')[0] for line in result.stdout.splitlines()] == ['latent 0', 'latent 1']
    result = refused(gen_videos, tmp_path, f'--latents={tmp_path}/l.npz', '--grid=3x1')
    assert_one_clear_line(result, f'--latents={tmp_path}/l.npz names 2 subjects, which do not divide into the 3 cells')


def test_a_sweep_of_psi_has_a_block_of_views_for_each(networks, tmp_path):
    G = networks['stage2']
    sheet = sample(tmp_path, '--seeds=3,5', '--trunc=-0.5,0,1', '--views=-0.4/0,0.4/0', '--batch=4')
    heading = sheet.shape[0] - 2 * IMAGE
    assert 0 < heading < IMAGE and sheet.shape[1] == 6 * IMAGE
    for row, seed in enumerate((3, 5)):
        for block, psi in enumerate((-0.5, 0, 1)):
            subject = subjects.make_subject(G, subjects.seed_ws(G, [seed], psi))
            for view, yaw in enumerate((-0.4, 0.4)):
                image = subjects.render_subjects(G, [subject], view_label(G.config, yaw), '3d')['image']
                left, top = (2 * block + view) * IMAGE, heading + row * IMAGE
                cell = sheet[top : top + IMAGE, left : left + IMAGE].astype(int)
                assert np.abs(cell - to_uint8(image)[0].permute(1, 2, 0).numpy()).max() <= 1


def test_files_of_a_sweep_are_named_after_psi(networks, tmp_path):
    succeed(
        gen_samples.main,
        '--network=stage2.pkl',
        '--seeds=3',
        '--trunc=0.7,0.75',
        '--branch=3d',
        '--no-grid',
        '--shapes',
        '--shape-resolution=12',
        '--shape-level=0.35',
        '--shape-format=obj,stl',
        '--depth',
        f'--outdir={tmp_path}',
    )
    singles = [f'{psi}_view00_3d{end}' for psi in ('0.7', '0.75') for end in ('.png', '_depth.png', '_depth.npy')]
    meshes = [f'{psi}.{suffix}' for psi in ('0.7', '0.75') for suffix in ('obj', 'stl')]
    names = {f'seed0003_trunc{end}' for end in [*singles, *meshes]}
    assert {path.name for path in tmp_path.iterdir()} == {'cameras.json', *names}


@pytest.mark.parametrize(
    'arrays, message',
    [
        ({'z': np.zeros((2, 9))}, 'z has the shape [2, 9], but this network takes [N, 8]'),
        ({'w': np.zeros((2, 8))}, 'w has the shape [2, 8], but this network takes [N, 16]'),
        ({'ws': np.zeros((2, 3, 16))}, 'ws has the shape [2, 3, 16], but this network takes [N,'),
        ({'ws': np.zeros((2, 16))}, 'ws must be numbers of shape [N, num_ws, w_dim], not float64 [2, 16]'),
        ({'z': np.zeros((0, 8))}, 'z must be numbers of shape [N, z_dim], not float64 [0, 8]'),
        ({'z': np.full((1, 8), 'a')}, 'z must be numbers'),
        ({'z': np.full((1, 8), np.nan)}, 'z holds numbers that are not finite'),
        ({'z': np.full((1, 8), 1e300)}, 'z holds numbers that are not finite'),
        ({'x': np.zeros((2, 8))}, 'holds x, but one of z, w, ws is needed: name the array'),
        ({'z': np.zeros((2, 8)), 'w': np.zeros((2, 16))}, 'holds z, w, but one of z, w, ws is needed: keep one'),
        ({'z': np.array([None])}, 'is no npz of arrays'),
    ],
)
def test_latents_that_do_not_fit_are_one_clear_line(arrays, message, networks, tmp_path):
    np.savez(tmp_path / 'l.npz', **arrays)
    assert_one_clear_line(refused(gen_samples, tmp_path, f'--latents={tmp_path}/l.npz'), message)


@pytest.mark.parametrize(
    'content, message',
    [
        (b'', 'is no npz of arrays'),
        (b'PK\x03\x04 and no more', 'is no npz of arrays'),
        (b'anything', 'is no npz of arrays'),
        (None, 'cannot be read: No such file'),
    ],
)
def test_files_that_are_no_latents_are_one_clear_line(content, message, networks, tmp_path):
    if content is not None:
        (tmp_path / 'l.npz').write_bytes(content)
    assert_one_clear_line(refused(gen_samples, tmp_path, f'--latents={tmp_path}/l.npz'), message)


def test_an_array_by_itself_is_no_latents(networks, tmp_path):
    np.save(tmp_path / 'l.npy', np.zeros((2, 8)))
    assert_one_clear_line(refused(gen_videos, tmp_path, f'--latents={tmp_path}/l.npy'), 'is no npz of arrays')


@pytest.mark.parametrize('script', [gen_samples, gen_videos])
def test_subjects_have_one_source(script, networks, tmp_path):
    np.savez(tmp_path / 'l.npz', ws=np.zeros((1, networks['stage2'].backbone.num_ws, 16)))
    latents = f'--latents={tmp_path}/l.npz'
    for arguments in ([], ['--seeds=0', latents]):
        assert_one_clear_line(
            refused(script, tmp_path, *arguments), 'give either --seeds, like --seeds=0-7, or --latents=FILE.npz'
        )
    result = refused(script, tmp_path, latents, '--trunc=0.5', '--trunc-cutoff=2')
    assert_one_clear_line(result, '--trunc, --trunc-cutoff have no effect on ws, which are used as they are')


@pytest.mark.parametrize(
    'script, trunc, message',
    [
        (gen_samples, '0.5,0.5', 'has a number twice'),
        (gen_samples, '0.5,', "'' is not a number"),
        (gen_samples, '0,inf', 'inf is not a finite number'),
        (gen_videos, '0,1', "'0,1' is not a valid float"),
    ],
)
def test_wrong_psis_are_one_clear_line(script, trunc, message, networks, tmp_path):
    assert_one_clear_line(refused(script, tmp_path, '--seeds=0', f'--trunc={trunc}'), message)


def test_latents_that_cannot_be_written_are_refused_before_any_work(networks, nowhere, tmp_path):
    result = refused(gen_samples, tmp_path, '--seeds=0', f'--save-latents={nowhere[0]}/l.npz')
    assert_one_clear_line(result, f'{nowhere[0]} ')


# Rendering -----------------------------------------------------------------------------------------------------------


def test_samples_along_rays_are_those_asked_for(networks, tmp_path):
    G = networks['stage2']
    asked = ['--samples=9', '--importance-samples=2']
    pixels = sample(tmp_path, '--seeds=3', *asked)
    assert np.array_equal(pixels, rendered(G, view_label(G.config), depth_samples=9, importance_samples=2))
    assert not np.array_equal(pixels, rendered(G, view_label(G.config)))


def test_skip_and_precision_reach_the_renderer(networks, tmp_path, monkeypatch):
    seen, render = [], type(networks['stage2']).render
    bounded, density_bounds = [], type(networks['stage2']).density_bounds

    def spy(self, planes, c, **options):
        seen.append((options['skip'], options['bounds'].grid.shape[0], self.config.rendering.precision))
        return render(self, planes, c, **options)

    monkeypatch.setattr(type(networks['stage2']), 'render', spy)
    monkeypatch.setattr(type(networks['stage2']), 'density_bounds', lambda *args: bounded.append(args) or density_bounds(*args))
    sample(tmp_path, '--seeds=3,4', '--views=0/0,0.1/0', '--skip=1e-3', f'--render-precision={RENDER_PRECISIONS[-1]}')
    assert seen == [(1e-3, 2, RENDER_PRECISIONS[-1])] * 2
    assert len(bounded) == 2  # once per subject, for all views


def test_skipping_changes_next_to_nothing(networks, tmp_path):
    whole, skipped = sample(tmp_path / '1', '--seeds=3'), sample(tmp_path / '2', '--seeds=3', '--skip=1e-3')
    assert np.abs(whole.astype(int) - skipped).max() <= 5


def test_depths_are_world_units_along_rays(networks, tmp_path):
    G = networks['stage2']
    sample(tmp_path, '--seeds=3-5', '--views=0/0,0.1/0', '--depth')
    depths = np.load(tmp_path / 'samples_3d_depth.npy')
    assert depths.shape == (3, 2, IMAGE, IMAGE) and depths.dtype == np.float32
    subject = subjects.make_subject(G, subjects.seed_ws(G, [5], 0.7))
    own = subjects.render_subjects(G, [subject], view_label(G.config, 0.1), '3d')['image_depth'][0, 0]
    np.testing.assert_allclose(depths[2, 1], own.numpy(), rtol=1e-4)
    succeed(gen_samples.main, '--network=stage2.pkl', '--seeds=5', '--no-grid', '--depth', f'--outdir={tmp_path}')
    assert np.load(tmp_path / 'seed0005_view00_3d_depth.npy').shape == (IMAGE, IMAGE)
    assert np.load(tmp_path / 'seed0005_view00_2d_depth.npy').shape == (8, 8)


@pytest.mark.parametrize('formats', ['off', 'ply,off', 'none', 'ply,'])
def test_unknown_mesh_formats_are_one_clear_line(formats, networks, tmp_path):
    result = refused(gen_samples, tmp_path, '--seeds=0', '--shapes', f'--shape-format={formats}')
    assert_one_clear_line(result, "'--shape-format': ")
