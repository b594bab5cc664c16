"""gen_samples.py: grids, single pictures, depth, meshes."""

import numpy as np
import pytest
import torch
import trimesh
from PIL import Image

import gen_samples
from sampling import samples
from sampling.subjects import make_subject, seed_ws
from tests.helpers import assert_one_clear_line, invoke, succeed
from tests.scripts.generating import IMAGE, RAW, forbid


def sizes(folder):
    return {path.name: Image.open(path).size for path in folder.glob('*.png')}


def test_samples_write_grids_depth_and_shapes(networks, tmp_path):
    G = networks['stage2']
    succeed(
        gen_samples.main,
        '--network=stage2.pkl',
        '--seeds=3,4,5',
        '--views=-0.4/0,0.4/0.1',
        '--batch=2',
        '--depth',
        '--shapes',
        '--shape-resolution=12',
        '--shape-level=0.35',  # within the densities of all three
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
    succeed(gen_samples.main, *common)
    succeed(gen_samples.main, *common, '--no-grid', '--batch=1')
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
    succeed(gen_samples.main, '--network=stage2.pkl', '--seeds=0', '--render-resolution=12', '--depth', f'--outdir={tmp_path}')
    assert sizes(tmp_path) == {
        'samples_2d.png': (IMAGE, IMAGE),
        'samples_3d.png': (12, 12),
        'samples_2d_depth.png': (12, 12),
        'samples_3d_depth.png': (12, 12),
    }


def test_stage_1_has_no_3d_branch(networks, tmp_path):
    succeed(gen_samples.main, '--network=stage1.pkl', '--seeds=0', f'--outdir={tmp_path}')
    assert set(sizes(tmp_path)) == {'samples_2d.png', 'samples_coarse.png'}
    result = invoke(gen_samples.main, '--network=stage1.pkl', '--seeds=0', '--branch=3d', f'--outdir={tmp_path}')
    assert_one_clear_line(result, 'comes from stage 1: choose --branch=2d or --branch=coarse')


@pytest.mark.parametrize('name, rows', [('stage2', 3), ('stage1', 1)])
def test_planes_are_a_figure_per_seed(networks, tmp_path, name, rows):
    succeed(gen_samples.main, f'--network={name}.pkl', '--seeds=3-4', '--planes', f'--outdir={tmp_path}')
    drawn = sizes(tmp_path)
    assert {'seed0003_planes.png', 'seed0004_planes.png'} < set(drawn)
    width, height = drawn['seed0003_planes.png']
    assert height / width == pytest.approx((2.2 * rows + 0.6) / (2.2 * 3.5 + 0.4), rel=0.01)


def test_planes_of_two_networks_stand_side_by_side(networks, tmp_path, monkeypatch):
    drawn = []
    monkeypatch.setattr(samples, 'draw_planes', lambda panels, path: drawn.append((panels, path.name)))
    succeed(
        gen_samples.main, '--network=stage2.pkl', '--seeds=3', '--planes', '--planes-beside=stage1.pkl', f'--outdir={tmp_path}'
    )
    [(panels, name)] = drawn
    assert name == 'seed0003_planes.png'
    for (title, planes, axes), network in zip(panels, ('stage2', 'stage1'), strict=True):
        G = networks[network]
        assert title.endswith(f'{network}.pkl\n--aware=stream') and axes == G.plane_axes
        torch.testing.assert_close(planes.coarse, make_subject(G, seed_ws(G, [3], 0.7)).planes.coarse)


def test_one_subject_without_surface_does_not_cost_the_others(networks, tmp_path):
    result = invoke(
        gen_samples.main,
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
        (['--seeds=0', '--planes-beside=stage1.pkl'], '--planes-beside has no effect without --planes: leave it out'),
        (['--seeds=0', '--planes', '--planes-beside=nowhere.pkl'], 'nowhere.pkl: no such'),
        (['--seeds=0', '--device=toaster'], '--device=toaster cannot be used'),
        (['--seeds=0', '--trunc=nan'], "'--trunc': nan is not a finite number"),
        (['--seeds=0', '--shape-level=inf'], "'--shape-level': inf is not a finite number"),
    ],
)
def test_bad_input_is_one_clear_line(networks, tmp_path, arguments, message):
    result = invoke(gen_samples.main, '--network=stage2.pkl', f'--outdir={tmp_path}', *arguments)
    assert_one_clear_line(result, message)
    assert not list(tmp_path.iterdir())


def test_unwritable_samples_are_refused_before_any_work(networks, nowhere, monkeypatch):
    forbid(monkeypatch)
    for folder in nowhere[1:]:
        result = invoke(gen_samples.main, '--network=stage2.pkl', '--seeds=0', f'--outdir={folder}')
        assert_one_clear_line(result, f'{folder} cannot be written: ')
