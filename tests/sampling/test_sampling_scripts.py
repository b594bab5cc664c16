"""gen_samples.py, gen_videos.py and what they are made of."""

import math
import os

import click
import imageio_ffmpeg
import numpy as np
import pytest
import torch
import trimesh
from click.testing import CliRunner
from PIL import Image

import gen_samples
import gen_videos
from dnnlib.errors import UserError
from dnnlib.params import GridSize, PixelSize, SeedList, ViewList
from dnnlib.video import VideoWriter
from sampling import samples, subjects, videos
from sampling.texture_images import straightness
from shape_utils.grid import density_grid
from torch_utils.images import depth_to_image, image_grid, to_uint8
from training.config import GeneratorConfig, RenderingConfig
from training.networks.generator import Generator
from training.rendering.cameras import full_orbit, portrait_orbit, split_label, view_label
from training.snapshots import save_snapshot

IMAGE, RAW = 16, 8  # pixels per side


def tiny_generator(**changes):
    torch.manual_seed(0)
    config = GeneratorConfig(
        z_dim=16,
        w_dim=16,
        image_resolution=IMAGE,
        render_resolution=RAW,
        plane_resolution=8,
        channel_base=64,
        channel_max=16,
        sr_input_resolution=8,
        sr_channels=(8, 8),
        decoder_hidden=8,
        precision='fp32',
        rendering=RenderingConfig(depth_samples=6, importance_samples=4, box_size=1.2),
    ).replace(**changes)
    return Generator(config).eval()


@pytest.fixture(autouse=True, scope='module')
def one_thread():
    """For tensors this small, threads only wait for each other."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.fixture(scope='module')
def folder(tmp_path_factory):
    """A folder with two snapshots: 'stage2.pkl' with, 'stage1.pkl' without the 3D branch."""
    folder = tmp_path_factory.mktemp('networks')
    save_snapshot(folder / 'stage2.pkl', {'G_ema': tiny_generator()}, {})
    save_snapshot(folder / 'stage1.pkl', {'G_ema': tiny_generator(residual=False)}, {})
    return folder


@pytest.fixture
def networks(folder, monkeypatch):
    """The two snapshots, in the current folder, as generators by name."""
    monkeypatch.chdir(folder)
    return {name: subjects.load_generator(f'{name}.pkl', 'cpu') for name in ('stage1', 'stage2')}


def run(script, *arguments):
    return CliRunner().invoke(script.main, ['--device=cpu', *map(str, arguments)])


def succeed(script, *arguments):
    result = run(script, *arguments)
    assert result.exit_code == 0, result.output
    return result


def sizes(folder):
    return {path.name: Image.open(path).size for path in folder.glob('*.png')}


def read_video(path):
    reader = imageio_ffmpeg.read_frames(str(path))
    meta = next(reader)
    width, height = meta['size']
    return meta, [np.frombuffer(frame, np.uint8).reshape(height, width, 3) for frame in reader]


# ---------------------------------------------------------------------------------------------------------------------
# gen_samples.py


def test_samples_write_grids_depth_and_shapes(networks, tmp_path):
    G = networks['stage2']
    subject = subjects.make_subject(G, subjects.seed_ws(G, [3], 0.7))
    level = float(np.median(density_grid(G, subject.planes, 12, progress=False)))
    succeed(
        gen_samples,
        '--network=stage2.pkl',
        '--seeds=3,4,5',
        '--views=-0.4/0,0.4/0.1',
        '--batch=2',
        '--depth',
        '--shapes',
        '--shape-resolution=12',
        f'--shape-level={level}',
        f'--outdir={tmp_path}',
    )
    assert sizes(tmp_path) == {
        'samples_2d.png': (2 * IMAGE, 3 * IMAGE),
        'samples_3d.png': (2 * IMAGE, 3 * IMAGE),
        'samples_2d_depth.png': (2 * RAW, 3 * RAW),
        'samples_3d_depth.png': (2 * IMAGE, 3 * IMAGE),
    }
    for suffix in ('ply', 'glb'):
        mesh = trimesh.load(tmp_path / f'seed0003.{suffix}', force='mesh')
        assert 0 < np.abs(mesh.vertices).max() <= G.config.rendering.box_size / 2


def test_single_pictures_are_the_cells_of_the_grid(networks, tmp_path):
    common = ['--network=stage2.pkl', '--seeds=3-4', '--views=0/0,0.4/0', '--branch=3d', f'--outdir={tmp_path}']
    succeed(gen_samples, *common)
    succeed(gen_samples, *common, '--no-grid', '--batch=1')
    assert set(sizes(tmp_path)) == {
        'samples_3d.png',
        'seed0003_view00_3d.png',
        'seed0003_view01_3d.png',
        'seed0004_view00_3d.png',
        'seed0004_view01_3d.png',
    }
    grid = np.asarray(Image.open(tmp_path / 'samples_3d.png')).astype(int)
    for row, seed in enumerate([3, 4]):
        for column in range(2):
            single = np.asarray(Image.open(tmp_path / f'seed{seed:04d}_view{column:02d}_3d.png'))
            cell = grid[row * IMAGE : (row + 1) * IMAGE, column * IMAGE : (column + 1) * IMAGE]
            assert np.abs(cell - single).max() <= 1  # the batch size may move a float's last bit
    assert np.abs(grid[:IMAGE, :IMAGE] - grid[IMAGE:, :IMAGE]).max() > 1
    assert np.abs(grid[:IMAGE, :IMAGE] - grid[:IMAGE, IMAGE:]).max() > 1


def test_render_resolution_sets_the_size_of_volume_renders(networks, tmp_path):
    succeed(gen_samples, '--network=stage2.pkl', '--seeds=0', '--render-resolution=12', '--depth', f'--outdir={tmp_path}')
    assert sizes(tmp_path) == {
        'samples_2d.png': (IMAGE, IMAGE),
        'samples_3d.png': (12, 12),
        'samples_2d_depth.png': (12, 12),
        'samples_3d_depth.png': (12, 12),
    }


@pytest.mark.parametrize('script, output', [(gen_samples, 'outdir'), (gen_videos, 'output')])
def test_renders_too_large_for_super_resolution_are_named(script, output, networks, tmp_path):
    save_snapshot(tmp_path / 'small.pkl', {'G_ema': tiny_generator(sr_resize_larger=False)}, {})
    target = tmp_path / ('out' if output == 'outdir' else 'out.mp4')
    result = run(script, f'--network={tmp_path / "small.pkl"}', '--seeds=0', '--render-resolution=12', f'--{output}={target}')
    assert_one_clear_line(result, 'takes volume renders of 8 pixels per side at most, not 12')
    assert not target.is_file() and not list(tmp_path.glob('out/*'))


def test_stage_1_has_no_3d_branch(networks, tmp_path):
    succeed(gen_samples, '--network=stage1.pkl', '--seeds=0', f'--outdir={tmp_path}')
    assert set(sizes(tmp_path)) == {'samples_2d.png', 'samples_coarse.png'}
    result = run(gen_samples, '--network=stage1.pkl', '--seeds=0', '--branch=3d', f'--outdir={tmp_path}')
    assert_one_clear_line(result, 'comes from stage 1: choose --branch=2d or --branch=coarse')


def test_one_subject_without_surface_does_not_cost_the_others(networks, tmp_path):
    result = run(
        gen_samples,
        '--network=stage2.pkl',
        '--seeds=1-2',
        '--branch=3d',
        '--shapes',
        '--shape-resolution=8',
        '--shape-level=1e6',
        f'--outdir={tmp_path}',
    )
    assert_one_clear_line(result, '2 of 2 subjects have no mesh; seed 1: no surface at density 1e+06')
    assert set(sizes(tmp_path)) == {'samples_3d.png'}


@pytest.mark.parametrize(
    'arguments, message',
    [
        (['--seeds=5-3'], "'5-3': a range runs upwards"),
        (['--seeds=zero'], "'zero' is neither a number nor a range"),
        (['--seeds=0-99999999'], 'more than 1000000 seeds'),
        (['--seeds=0', '--views=1'], 'yaw/pitch'),
        (['--seeds=0', '--branch=4d'], "'4d' is not one of"),
        (['--seeds=0', '--network=nowhere.pkl'], 'nowhere.pkl: no such'),
        (['--seeds=0', '--device=toaster'], '--device=toaster cannot be used'),
        (['--seeds=0', '--trunc=nan'], "'--trunc': nan is not a finite number"),
        (['--seeds=0', '--shape-level=inf'], "'--shape-level': inf is not a finite number"),
    ],
)
def test_bad_input_is_one_clear_line(networks, tmp_path, arguments, message):
    result = run(gen_samples, '--network=stage2.pkl', f'--outdir={tmp_path}', *arguments)
    assert_one_clear_line(result, message)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    'script, output', [(gen_samples, '--outdir=o'), (gen_videos, '--output=o.mp4'), (gen_videos, '--output=o.png --epi')]
)
@pytest.mark.parametrize('device', ['meta', 'cuda:99', 'hpu', ''])
def test_a_device_that_cannot_compute_is_one_clear_line(script, output, device, networks):
    result = CliRunner().invoke(script.main, ['--network=stage2.pkl', '--seeds=0', f'--device={device}', *output.split()])
    assert_one_clear_line(result, f'--device={device} cannot be used (')
    assert result.output.count('\n') == 1 and 'choose cpu' in result.output


def assert_one_clear_line(result, message):
    assert result.exit_code != 0
    assert isinstance(result.exception, SystemExit)
    line = result.output.strip().splitlines()[-1]
    assert line.startswith('Error: ') and message in line


# ---------------------------------------------------------------------------------------------------------------------
# gen_videos.py


def film(tmp_path, *arguments):
    path = tmp_path / 'videos' / 'film.mp4'
    succeed(gen_videos, '--network=stage2.pkl', f'--output={path}', '--fps=10', *arguments)
    assert [file.name for file in path.parent.iterdir()] == ['film.mp4']
    return read_video(path)


def test_orbit_shows_one_group_of_subjects_after_the_other(networks, tmp_path):
    meta, frames = film(tmp_path, '--seeds=0-3', '--grid=2x1', '--frames=4', '--branch=both', '--upscale=2')
    assert meta['size'] == (2 * 2 * IMAGE * 2, IMAGE * 2)
    assert (meta['codec'], meta['fps'], meta['pix_fmt'].split('(')[0]) == ('h264', 10, 'yuv420p')
    assert len(frames) == 8


def test_branches_of_different_sizes_stand_side_by_side(networks, tmp_path):
    meta, _ = film(tmp_path, '--seeds=0', '--frames=1', '--render-resolution=6')
    assert meta['size'] == (2 * IMAGE, IMAGE)


def test_interpolation_passes_through_its_seeds(networks, tmp_path, monkeypatch):
    shown = []
    make_subject = videos.make_subject
    monkeypatch.setattr(videos, 'make_subject', lambda G, ws: shown.append(ws) or make_subject(G, ws))
    _, frames = film(tmp_path, '--seeds=0-5', '--grid=2x1', '--mode=interpolate', '--frames=2', '--branch=coarse')
    keys = subjects.seed_ws(networks['stage2'], range(6), 0.7)
    assert len(frames) == 6 and len(shown) == 12
    for seed, position in enumerate([0, 1, 4, 5, 8, 9]):
        torch.testing.assert_close(shown[position], keys[seed, None])
    assert not torch.allclose(shown[2], keys[0, None], atol=1e-3)


def test_seeds_must_fill_the_grid(networks, tmp_path):
    result = run(gen_videos, '--network=stage2.pkl', '--seeds=0-2', '--grid=2x1', f'--output={tmp_path}/film.mp4')
    assert_one_clear_line(result, '3 subjects, which do not divide into the 2 cells of --grid=2x1')


def test_broken_off_video_leaves_no_file(tmp_path):
    with pytest.raises(KeyboardInterrupt):
        with VideoWriter(tmp_path / 'film.mp4', fps=10) as video:
            video.add(np.zeros((16, 16, 3), np.uint8))
            raise KeyboardInterrupt
    assert not list(tmp_path.iterdir())


def test_video_keeps_colours_and_pads_odd_sizes(tmp_path):
    color = np.array([200, 80, 40], np.uint8)
    with VideoWriter(tmp_path / 'film.mp4', fps=24, crf=10) as video:
        for _ in range(3):
            video.add(np.broadcast_to(color, (33, 65, 3)))
    meta, frames = read_video(tmp_path / 'film.mp4')
    assert meta['size'] == (66, 34) and len(frames) == 3
    assert 'bt709' in meta['pix_fmt']
    assert np.abs(frames[1].astype(int) - color).max() <= 4


def test_texture_images_of_both_branches_stand_side_by_side(networks, tmp_path):
    path = tmp_path / 'pictures' / 'texture.png'
    result = succeed(gen_videos, '--network=stage2.pkl', '--seeds=3,5', '--epi', '--frames=9', f'--output={path}')
    assert Image.open(path).size == (2 * IMAGE, 2 * 9)
    lines = result.stdout.splitlines()
    assert [line.split(':')[0] for line in lines] == ['seed 3', 'seed 5']
    assert all('straightness 2d 0.' in line and ', 3d 0.' in line for line in lines)


def test_texture_image_is_a_line_of_every_yaw_of_the_move(networks, tmp_path):
    G = networks['stage2']
    path = tmp_path / 'texture.png'
    succeed(
        gen_videos,
        '--network=stage2.pkl',
        '--seeds=3',
        '--epi',
        '--frames=3',
        '--yaw-range=0.5',
        '--epi-line=0.25',
        '--branch=3d',
        f'--output={path}',
    )
    subject = subjects.make_subject(G, subjects.seed_ws(G, [3], 0.7))
    for row, yaw in enumerate((-0.5, 0, 0.5)):
        frame = to_uint8(subjects.render_subjects(G, [subject], view_label(G.config, yaw), '3d')['image'])[0]
        assert np.array_equal(np.asarray(Image.open(path))[row], frame[:, IMAGE // 4].T.numpy())


@pytest.mark.parametrize(
    'arguments, message',
    [
        (['--output=texture.mp4'], 'must end in .png with --epi'),
        (['--output=texture.png', '--full-orbit'], '--full-orbit has no effect with --epi: leave it out'),
        (['--output=texture.png', '--mode=orbit'], '--mode has no effect with --epi: leave it out'),
        (
            ['--output=texture.png', '--grid=2x1', '--fps=25', '--crf=3', '--pitch-range=0'],
            '--grid, --fps, --pitch-range, --crf have no effect with --epi: leave them out',
        ),
        (
            ['--output=texture.png', '--upscale=2', '--upscale-filter=nearest'],
            '--upscale, --upscale-filter have no effect with --epi',
        ),
        (['--output=texture.png', '--render-resolution=1'], '--render-resolution=1 leaves one pixel of a line'),
        (['--output=texture.png', '--render-resolution=1', '--branch=3d'], '--render-resolution=1 leaves one pixel of a line'),
        (['--output=texture.png', '--frames=1'], '--frames=1 is too few'),
        (['--output=texture.png', '--yaw-range=nan'], "'--yaw-range': nan is not a finite number"),
    ],
)
def test_bad_texture_images_are_one_clear_line(networks, arguments, message):
    assert_one_clear_line(run(gen_videos, '--network=stage2.pkl', '--seeds=0', '--epi', *arguments), message)


@pytest.mark.parametrize(
    'script, arguments, message',
    [
        (gen_videos, ['--output=film.mp4', '--epi-line=0.5'], '--epi-line has no effect without --epi: leave it out'),
        (gen_videos, ['--output=film.mp4', '--full-orbit', '--yaw-range=1'], '--yaw-range has no effect with --full-orbit'),
        (gen_videos, ['--output=film.mp4', '--upscale-filter=nearest'], '--upscale-filter has no effect without --upscale'),
        (gen_videos, ['--output=film.mp4', '--trunc=1', '--trunc-cutoff=3'], '--trunc-cutoff has no effect with --trunc=1'),
        (
            gen_samples,
            ['--outdir=o', '--shape-level=10', '--shape-format=ply'],
            '--shape-level, --shape-format have no effect without --shapes: leave them out',
        ),
        (gen_samples, ['--outdir=o', '--trunc=1', '--trunc-cutoff=3'], '--trunc-cutoff has no effect with --trunc=1'),
    ],
)
def test_options_without_effect_are_one_clear_line(script, arguments, message, networks):
    assert_one_clear_line(run(script, '--network=stage2.pkl', '--seeds=0', *arguments), message)


def test_one_line_of_pixels_of_the_2d_branch_has_its_full_width(networks, tmp_path):
    succeed(
        gen_videos,
        '--network=stage2.pkl',
        '--seeds=0',
        '--epi',
        '--frames=3',
        '--render-resolution=1',
        '--branch=2d',
        f'--output={tmp_path / "texture.png"}',
    )
    assert Image.open(tmp_path / 'texture.png').size == (IMAGE, 3)


def stripes(jitter=0.0):
    """A texture image of stripes that move by half a pixel a frame; jitter: pixels by which frames stray."""
    frame, column = torch.arange(60.0)[:, None], torch.arange(80.0)
    strays = jitter * torch.randn(60, 1, generator=torch.Generator().manual_seed(0))
    return (128 + 100 * torch.sin(0.8 * (column - 0.5 * frame - strays)))[None].expand(3, -1, -1).to(torch.uint8)


def test_straightness_falls_with_jitter():
    scores = [straightness(stripes(jitter)) for jitter in (0.0, 0.3, 0.6, 1.5)]
    assert scores[0] > 0.99 and scores[-1] < 0.75
    assert all(first > second + 0.01 for first, second in zip(scores, scores[1:])), scores
    noise = torch.randint(256, (3, 60, 80), generator=torch.Generator().manual_seed(0))
    assert straightness(noise) < 0.4 and straightness(stripes().transpose(1, 2)) > 0.99


# ---------------------------------------------------------------------------------------------------------------------
# What they are made of


def test_subject_depends_on_its_seed_alone(networks):
    G = networks['stage2']
    torch.testing.assert_close(subjects.seed_ws(G, [7, 8, 9])[1], subjects.seed_ws(G, [8])[0])
    for name, parameter in G.named_parameters():
        if 'noise_strength' in name:
            parameter.fill_(1.0)
    ws = subjects.seed_ws(G, [8])
    noisy = [subjects.make_subject(G, ws, 'random', seed).planes.coarse for seed in (8, 8, 9)]
    assert noisy[0].equal(noisy[1]) and not noisy[0].equal(noisy[2])


def test_all_views_are_conditioned_on_the_frontal_camera(networks, monkeypatch):
    G = networks['stage2']
    seen = []
    monkeypatch.setattr(G.mapping, 'forward', lambda z, c, **options: seen.append(c))
    subjects.seed_ws(G, [0, 1])
    torch.testing.assert_close(seen[0], view_label(G.config, 0, 0).expand(2, -1))


def test_truncation_reaches_the_mapping(networks):
    G = networks['stage2']
    G.mapping.w_avg.normal_()
    at_mean = subjects.seed_ws(G, [0, 1], 0.0)
    torch.testing.assert_close(at_mean[0], at_mean[1])
    cut = subjects.seed_ws(G, [0], 0.0, 1)[0]
    assert cut[0].equal(at_mean[0, 0]) and not torch.allclose(cut[1], at_mean[0, 1])


@pytest.mark.parametrize('count', [1, 2, 5])
def test_closed_path_meets_its_keys_smoothly(count):
    keys = torch.randn(count, 3, 4, generator=torch.Generator().manual_seed(0))
    path = subjects.closed_path(keys)
    for k in range(2 * count):
        torch.testing.assert_close(path(k), keys[k % count])
    step = 1e-3
    before, after = (keys[0] - path(count - step)) / step, (path(step) - keys[0]) / step
    torch.testing.assert_close(before, after, atol=0.05, rtol=0.05)


def test_view_directions():
    config = GeneratorConfig()
    label = view_label(config, [0.0, 0.3, 0.0], [0.0, 0.0, 0.3])
    poses, intrinsics = split_label(label)
    origin = poses[:, :3, 3]
    torch.testing.assert_close(origin[0], torch.tensor([0.0, 0.0, 2.7]))
    torch.testing.assert_close(origin[1], 2.7 * torch.tensor([math.sin(0.3), 0.0, math.cos(0.3)]))
    assert origin[2, 1] == pytest.approx(2.7 * -0.6 / math.pi, rel=1e-4)
    torch.testing.assert_close(poses[0, :3, 2], torch.tensor([0.0, 0.0, -1.0]))
    to_pivot = torch.nn.functional.normalize(torch.tensor(config.rendering.camera_pivot) - origin[1], dim=0)
    torch.testing.assert_close(poses[1, :3, 2], to_pivot)
    assert intrinsics[:, 0, 0].tolist() == pytest.approx([4.2647] * 3, abs=1e-4)
    assert view_label(config, focal=2.0)[0, 16] == 2


def test_orbits_close_and_keep_their_range():
    yaw, pitch = portrait_orbit(8, 0.4, 0.2)
    torch.testing.assert_close(yaw[[0, 2, 4, 6]], torch.tensor([0, 0.4, 0, -0.4]), atol=1e-6, rtol=0)
    torch.testing.assert_close(pitch[[0, 2, 4, 6]], torch.tensor([0.2, 0, -0.2, 0]), atol=1e-6, rtol=0)
    yaw, pitch = full_orbit(4, -0.1)
    torch.testing.assert_close(yaw, torch.arange(4) * math.pi / 2)
    assert pitch.tolist() == pytest.approx([-0.1] * 4)


def test_full_orbit_looks_down_on_the_subject(networks, tmp_path, monkeypatch):
    labels = []
    monkeypatch.setattr(
        videos,
        'render_subjects',
        lambda G, cast, label, *rest: labels.append(label) or {'image': torch.zeros(1, 3, IMAGE, IMAGE)},
    )
    film(tmp_path, '--seeds=0', '--frames=4', '--full-orbit', '--pitch-range=0.3', '--branch=2d')
    origins = split_label(torch.cat(labels))[0][:, :3, 3]
    assert (origins[:, 1] > 0.4).all()
    assert origins[0, 2] > 2 and origins[1, 0] > 2 and origins[2, 2] < -2 and origins[3, 0] < -2


def test_8_bit_images():
    assert to_uint8(torch.tensor([-2.0, -1.0, 0.0, 0.5, 1.0, 2.0])).tolist() == [0, 0, 128, 191, 255, 255]


def test_image_grid_runs_row_by_row():
    images = torch.arange(1, 6, dtype=torch.uint8)[:, None, None, None].expand(-1, 3, 2, 4)
    pixels = np.asarray(image_grid(images, columns=2))
    assert pixels.shape == (6, 8, 3)
    assert pixels[::2, ::4, 0].tolist() == [[1, 2], [3, 4], [5, 0]]


def test_nearer_is_brighter():
    depth = torch.tensor([[[[2.0, 2.5, 3.0, math.inf]]], [[[1.0, 1.0, 1.0, 1.0]]]])
    brightness = depth_to_image(depth).float().mean(dim=1)[:, 0]
    assert brightness[0, 0] > brightness[0, 1] > brightness[0, 2] == brightness[0, 3]
    assert brightness[1].unique().tolist() == [brightness[0, 2]]


def test_parameter_types():
    assert SeedList().convert('0-2, 7,5-5', None, None) == [0, 1, 2, 7, 5]
    assert ViewList().convert('0/0,-0.4/0.1', None, None) == [(0.0, 0.0), (-0.4, 0.1)]
    assert GridSize().convert('4x2', None, None) == (4, 2)
    for bad in ('0x2', '4', 'x'):
        with pytest.raises(click.BadParameter, match='columns x rows'):
            GridSize().convert(bad, None, None)
    assert PixelSize().convert('135x1024', None, None) == (135, 1024)
    with pytest.raises(click.BadParameter, match='width x height'):
        PixelSize().convert('0x240', None, None)


def test_3d_branch_of_stage_1_is_an_error(networks):
    with pytest.raises(UserError, match='no 3D branch'):
        subjects.choose_branches(networks['stage1'], '3d')


# ---------------------------------------------------------------------------------------------------------------------
# Outputs that cannot be written, and full memories


@pytest.fixture
def nowhere(tmp_path):
    """Folders in which not even the superuser can write: one that would lie in a file, and one of the kernel's."""
    (tmp_path / 'file').write_text('')
    return [tmp_path / 'file', tmp_path / 'file' / 'sub', '/proc']


def forbid(monkeypatch, module):
    def rendered(*_):
        raise AssertionError('this was to be found out before')

    monkeypatch.setattr(module, 'render_subjects', rendered)


def test_unwritable_samples_are_refused_before_any_work(networks, nowhere, monkeypatch):
    forbid(monkeypatch, samples)
    for folder in nowhere[1:]:
        result = run(gen_samples, '--network=stage2.pkl', '--seeds=0', f'--outdir={folder}')
        assert_one_clear_line(result, f'{folder} cannot be written: ')


@pytest.mark.parametrize('arguments', [['film.mp4'], ['film.png', '--epi', '--frames=3']])
def test_unwritable_videos_are_refused_before_any_work(networks, nowhere, arguments, monkeypatch):
    forbid(monkeypatch, videos)
    for folder in nowhere:
        result = run(gen_videos, '--network=stage2.pkl', '--seeds=0', f'--output={folder}/{arguments[0]}', *arguments[1:])
        assert_one_clear_line(result, f'{folder} ')
        assert 'choose another path' in result.output


def test_an_encoder_that_fails_is_one_line_and_leaves_no_file(tmp_path):
    frame = np.zeros((16, 16, 3), np.uint8)
    with pytest.raises(UserError, match='film.mp4 could not be written by ffmpeg'):
        with VideoWriter(tmp_path / 'absent' / 'film.mp4', fps=10) as video:
            for _ in range(10**4):  # more than the pipe to an encoder that has ended would take
                video.add(frame)
    with pytest.raises(UserError, match='film.mp4 could not be written by ffmpeg'):
        with VideoWriter(tmp_path / 'absent' / 'film.mp4', fps=10) as video:
            video.add(frame)
    with pytest.raises(UserError, match='film.mp4 could not be written by ffmpeg'):
        with VideoWriter(tmp_path / 'film.mp4', fps=10) as video:
            video.add(frame)
            video._encoder.close()
            os.truncate(tmp_path / 'film.part.mp4', 40)  # as on a full disk
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    'script, module, arguments, cure',
    [
        (gen_samples, samples, ['--outdir=out'], 'lower --batch'),
        (gen_videos, videos, ['--output=out/film.mp4'], 'lower --render-resolution'),
    ],
)
def test_a_full_gpu_is_one_clear_line(script, module, arguments, cure, networks, tmp_path, monkeypatch):
    def full(*_):
        raise torch.OutOfMemoryError('CUDA out of memory')

    monkeypatch.setattr(module, 'render_subjects', full)
    monkeypatch.chdir(tmp_path)
    network = f'--network={tmp_path / "network.pkl"}'
    save_snapshot(tmp_path / 'network.pkl', {'G_ema': networks['stage2']}, {})
    assert_one_clear_line(run(script, network, '--seeds=0', *arguments), f'too little memory; {cure}')
