"""gen_videos.py: films and texture images."""

import numpy as np
import pytest
import torch
from PIL import Image

import gen_videos
from sampling import subjects, videos
from sampling.geometry import SurfaceOptions
from tests.helpers import assert_one_clear_line, invoke, read_video, succeed
from tests.scripts.generating import IMAGE, forbid
from torch_utils.images import to_uint8
from training.rendering.cameras import split_label, view_label


def film(tmp_path, *arguments):
    path = tmp_path / 'videos' / 'film.mp4'
    succeed(gen_videos.main, '--network=stage2.pkl', f'--output={path}', '--fps=10', *arguments)
    assert sorted(file.name for file in path.parent.iterdir()) == ['film.mp4', 'film.mp4.cameras.json']
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
    monkeypatch.setattr(videos, 'make_subject', lambda G, ws, **more: shown.append(ws) or make_subject(G, ws, **more))
    _, frames = film(tmp_path, '--seeds=0-5', '--grid=2x1', '--mode=interpolate', '--frames=2', '--branch=coarse')
    keys = subjects.seed_ws(networks['stage2'], range(6), 0.7)
    assert len(frames) == 6 and len(shown) == 12
    for seed, position in enumerate([0, 1, 4, 5, 8, 9]):
        torch.testing.assert_close(shown[position], keys[seed, None])
    assert not torch.allclose(shown[2], keys[0, None], atol=1e-3)


def test_seeds_must_fill_the_grid(networks, tmp_path):
    result = invoke(gen_videos.main, '--network=stage2.pkl', '--seeds=0-2', '--grid=2x1', f'--output={tmp_path}/film.mp4')
    assert_one_clear_line(result, '3 subjects, which do not divide into the 2 cells of --grid=2x1')


def test_texture_images_of_both_branches_stand_side_by_side(networks, tmp_path):
    path = tmp_path / 'pictures' / 'texture.png'
    result = succeed(gen_videos.main, '--network=stage2.pkl', '--seeds=3,5', '--epi', '--frames=9', f'--output={path}')
    assert Image.open(path).size == (2 * IMAGE, 2 * 9)
    lines = result.stdout.splitlines()
    assert [line.split(':')[0] for line in lines] == ['seed 3', 'seed 5']
    assert all('straightness 2d 0.' in line and ', 3d 0.' in line for line in lines)


def test_texture_image_is_a_line_of_every_yaw_of_the_move(networks, tmp_path):
    G = networks['stage2']
    path = tmp_path / 'texture.png'
    succeed(
        gen_videos.main,
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
            '--grid, --fps, --crf, --pitch-range have no effect with --epi: leave them out',
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
    assert_one_clear_line(invoke(gen_videos.main, '--network=stage2.pkl', '--seeds=0', '--epi', *arguments), message)


def test_one_line_of_pixels_of_the_2d_branch_has_its_full_width(networks, tmp_path):
    succeed(
        gen_videos.main,
        '--network=stage2.pkl',
        '--seeds=0',
        '--epi',
        '--frames=3',
        '--render-resolution=1',
        '--branch=2d',
        f'--output={tmp_path / "texture.png"}',
    )
    assert Image.open(tmp_path / 'texture.png').size == (IMAGE, 3)


def test_geometry_stands_beside_the_image_of_each_branch(networks, tmp_path):
    surface = ['--geometry', '--shape-resolution=12', '--shape-level=0.25']  # within the densities of both branches
    meta, frames = film(tmp_path, '--seeds=3', '--frames=2', '--pitch-range=0.3', '--crf=0', *surface)
    assert meta['size'] == (4 * IMAGE, IMAGE) and len(frames) == 2
    G = networks['stage2']
    subject = subjects.make_subject(G, subjects.seed_ws(G, [3], 0.7))
    options = SurfaceOptions(shape_resolution=12, shape_level=0.25)
    cells = np.split(frames[0].astype(int), 4, axis=1)
    for branch, cell in (('2d', cells[1]), ('3d', cells[3])):
        shaded = to_uint8(options.shaded(G, subject, view_label(G.config, 0, 0.3), branch, IMAGE))
        assert np.abs(cell - shaded.permute(1, 2, 0).numpy()).max() <= 6  # a video's colours are not RGB
    assert np.abs(cells[1] - cells[3]).max() > 12


def test_geometry_without_a_surface_is_one_clear_line(networks, tmp_path):
    arguments = ['--network=stage2.pkl', '--seeds=3', '--geometry', '--shape-resolution=8', '--shape-level=1e6']
    result = invoke(gen_videos.main, *arguments, '--frames=1', f'--output={tmp_path}/film.mp4')
    assert_one_clear_line(result, '--shape-level: no surface at density 1e+06')
    assert not list(tmp_path.iterdir())


def test_figure_shows_each_branch_from_the_middle_of_the_move(networks, tmp_path, monkeypatch):
    G, drawn = networks['stage2'], []
    monkeypatch.setattr(videos, 'draw_branches', lambda *arguments: drawn.append(arguments))
    surface = ['--shape-resolution=12', '--shape-level=0.25']  # within the densities of both subjects
    arguments = ['--seeds=3,5', '--epi', '--figure', '--epi-line=0.25', '--frames=3', *surface]
    result = succeed(gen_videos.main, '--network=stage2.pkl', *arguments, f'--output={tmp_path / "figure.png"}')
    assert [line.split(':')[0] for line in result.stdout.splitlines()] == ['seed 3', 'seed 5']
    [(rows, line, path)] = drawn
    assert line == 0.25 and path == tmp_path / 'figure.png'
    assert [(row.subject, row.branch) for row in rows] == [('seed 3', '2d'), ('seed 3', '3d'), ('seed 5', '2d'), ('seed 5', '3d')]
    subject = subjects.make_subject(G, subjects.seed_ws(G, [3], 0.7))
    label = view_label(G.config)
    for row in rows[:2]:
        frame = to_uint8(subjects.render_subjects(G, [subject], label, row.branch)['image'])[0]
        assert torch.equal(row.image, frame) and torch.equal(row.texture[:, 1], frame[:, IMAGE // 4])
        shaded = to_uint8(SurfaceOptions(shape_resolution=12, shape_level=0.25).shaded(G, subject, label, row.branch, 320))
        assert (row.geometry.float() - shaded.float()).abs().mean() < 0.1  # the last bit of a ray may move an edge


@pytest.mark.parametrize(
    'arguments, message',
    [
        (['--figure'], '--figure has no effect without --epi: leave it out'),
        (['--shape-level=3'], '--shape-level has no effect without --geometry or --figure: leave it out'),
        (['--epi', '--geometry', '--output=texture.png'], '--geometry has no effect with --epi: leave it out'),
    ],
)
def test_options_of_surfaces_and_figures_that_do_nothing_are_refused(networks, arguments, message):
    result = invoke(gen_videos.main, '--network=stage2.pkl', '--seeds=0', '--output=film.mp4', *arguments)
    assert_one_clear_line(result, message)


def test_full_orbit_looks_down_on_the_subject(networks, tmp_path, monkeypatch):
    labels = []
    monkeypatch.setattr(
        subjects,
        'render_subjects',
        lambda G, cast, label, *rest: labels.append(label) or {'image': torch.zeros(1, 3, IMAGE, IMAGE)},
    )
    film(tmp_path, '--seeds=0', '--frames=4', '--full-orbit', '--pitch-range=0.3', '--branch=2d')
    origins = split_label(torch.cat(labels))[0][:, :3, 3]
    assert (origins[:, 1] > 0.4).all()
    assert origins[0, 2] > 2 and origins[1, 0] > 2 and origins[2, 2] < -2 and origins[3, 0] < -2


@pytest.mark.parametrize('arguments', [['film.mp4'], ['film.png', '--epi', '--frames=3']])
def test_unwritable_videos_are_refused_before_any_work(networks, nowhere, arguments, monkeypatch):
    forbid(monkeypatch)
    for folder in nowhere:
        result = invoke(gen_videos.main, '--network=stage2.pkl', '--seeds=0', f'--output={folder}/{arguments[0]}', *arguments[1:])
        assert_one_clear_line(result, f'{folder} ')
        assert 'choose another path' in result.output
