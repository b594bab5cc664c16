"""Surfaces and mesh files, on stub generators whose shape is known exactly."""

from types import SimpleNamespace

import numpy as np
import pytest
import torch
import trimesh

from dnnlib.errors import UserError
from shape_utils.files import save_mesh
from shape_utils.grid import density_grid, grid_axis
from shape_utils.mesh import extract_mesh, isosurface

LEVEL = 10.0
RESOLUTION = 48


class StubGenerator:
    """A body given by a signed distance (negative inside), with density LEVEL at its surface; colour by height."""

    def __init__(self, distance, box_size=1.0):
        self.distance = distance
        self.config = SimpleNamespace(rendering=SimpleNamespace(box_size=box_size))
        self.largest_query = 0

    def query(self, planes, points, fine=True):
        self.largest_query = max(self.largest_query, points.shape[1])
        density = (LEVEL - 200 * self.distance(points)).clamp(min=1e-3)
        sigma = density + torch.log(-torch.expm1(-density)) + 1  # undoes softplus(sigma - 1)
        color = torch.full([*points.shape[:2], 32], 0.25)
        color[..., 0] = (points[..., 1] > 0).float()
        color[..., 1] = 1.01  # the decoder's colours leave [0, 1] a little
        return sigma[..., None], color


def ball(radius, centre=(0.0, 0.0, 0.0)):
    return lambda points: (points - torch.tensor(centre)).norm(dim=-1) - radius


def planes():
    return SimpleNamespace(coarse=torch.zeros(1, 3, 32, 4, 4), residual=None)


def mesh_of(distance, box_size=1.0, **options):
    return extract_mesh(StubGenerator(distance, box_size), planes(), RESOLUTION, LEVEL, progress=False, **options)


def test_grid_is_indexed_xyz_and_spans_the_box():
    G = StubGenerator(lambda points: -(points * torch.tensor([1.0, 2.0, 3.0])).sum(dim=-1) / 200 - 0.1, box_size=2.0)
    density = density_grid(G, planes(), 5, chunk=17, progress=False)
    x, y, z = np.meshgrid(*[grid_axis(2.0, 5)] * 3, indexing='ij')
    assert density.dtype == np.float32
    assert grid_axis(2.0, 5).tolist() == [-1.0, -0.5, 0.0, 0.5, 1.0]
    np.testing.assert_allclose(density, LEVEL + 20 + x + 2 * y + 3 * z, rtol=1e-5)


def test_grid_is_evaluated_in_chunks():
    G = StubGenerator(ball(0.3))
    density_grid(G, planes(), 10, chunk=64, progress=False)
    assert G.largest_query == 64


@pytest.mark.parametrize('box_size', [0.8, 1.0, 1.6])
def test_ball_is_closed_and_sized_in_world_units(box_size):
    mesh = mesh_of(ball(0.3), box_size)
    voxel = box_size / (RESOLUTION - 1)
    assert mesh.is_watertight and mesh.is_winding_consistent
    np.testing.assert_allclose(np.linalg.norm(mesh.vertices, axis=1), 0.3, atol=0.1 * voxel)
    assert mesh.volume == pytest.approx(4 / 3 * np.pi * 0.3**3, rel=0.02)  # positive: normals point outward


def test_colours_are_those_of_the_query():
    mesh = mesh_of(ball(0.3))
    top = mesh.vertices[:, 1] > 0
    assert (mesh.visual.vertex_colors[top] == [255, 255, 64, 255]).all()
    assert (mesh.visual.vertex_colors[~top] == [0, 255, 64, 255]).all()


def lopsided(points):
    """Three balls of different sizes, each along one axis."""
    bodies = [ball(0.12, (0.25, 0, 0)), ball(0.09, (0, 0.25, 0)), ball(0.06, (0, 0, 0.25))]
    return torch.stack([body(points) for body in bodies]).amin(dim=0)


@pytest.mark.parametrize('suffix', ['ply', 'glb', 'obj', 'stl'])
def test_files_keep_place_colour_and_orientation(tmp_path, suffix):
    path = tmp_path / f'body.{suffix}'
    save_mesh(mesh_of(lopsided), path)
    loaded = trimesh.load(path, force='mesh')
    parts = sorted(loaded.split(), key=lambda part: -part.volume)
    assert loaded.is_watertight and len(parts) == 3
    for axis, (part, radius) in enumerate(zip(parts, [0.12, 0.09, 0.06])):
        np.testing.assert_allclose(part.centroid, 0.25 * np.eye(3)[axis], atol=1e-3)
        np.testing.assert_allclose(part.extents, 2 * radius, atol=5e-3)
    assert [file.name for file in tmp_path.iterdir()] == [path.name]


def test_ply_colours_are_srgb(tmp_path):
    save_mesh(mesh_of(ball(0.3)), tmp_path / 'ball.ply')
    loaded = trimesh.load(tmp_path / 'ball.ply')
    assert (loaded.visual.vertex_colors[loaded.vertices[:, 1] > 0.1] == [255, 255, 64, 255]).all()


def test_obj_colours_are_srgb_behind_the_positions(tmp_path):
    save_mesh(mesh_of(ball(0.3)), tmp_path / 'ball.obj')
    lines = [line.split()[1:] for line in (tmp_path / 'ball.obj').read_text().splitlines() if line.startswith('v ')]
    numbers = np.array(lines, dtype=float)
    assert numbers.shape[1] == 6
    top = numbers[numbers[:, 1] > 0.1]
    np.testing.assert_allclose(top[:, 3:], [[1, 1, 64 / 255]] * len(top), atol=1e-3)


def test_glb_colours_are_linear(tmp_path):
    save_mesh(mesh_of(ball(0.3)), tmp_path / 'ball.glb')
    (loaded,) = trimesh.load(tmp_path / 'ball.glb').geometry.values()
    colors = loaded.visual.vertex_attributes['color']
    assert np.abs(colors[loaded.vertices[:, 1] > 0.1][:, :3] - [1, 1, 0.05127]).max() < 1e-4
    assert (colors[:, 3] == 1).all()


def test_glb_is_matt_and_has_normals(tmp_path):
    save_mesh(mesh_of(ball(0.3)), tmp_path / 'ball.glb')
    loaded = trimesh.load(tmp_path / 'ball.glb', force='mesh', process=False)
    header = (tmp_path / 'ball.glb').read_bytes()
    assert b'"metallicFactor":0.0' in header and b'"NORMAL"' in header
    outward = loaded.vertices / np.linalg.norm(loaded.vertices, axis=1, keepdims=True)
    assert (np.sum(outward * loaded.vertex_normals, axis=1) > 0.95).all()


def test_border_closes_what_the_box_cuts():
    mesh = mesh_of(ball(0.5), border=0.1)
    assert mesh.is_watertight
    assert 0.38 < mesh.bounds.max() <= 0.4 + 1 / (RESOLUTION - 1)


@pytest.mark.parametrize('level', [1e4, 1e-4, -1.0])
def test_level_outside_the_densities_is_a_clear_error(level):
    density = np.linspace(0.5, 30, 8**3, dtype=np.float32).reshape(8, 8, 8)
    with pytest.raises(UserError, match=f'no surface at density {level:g}: .* range from .* to 25'):
        isosurface(density, level, 1.0)


def test_unknown_mesh_format(tmp_path):
    with pytest.raises(ValueError, match='.ply, .glb, .obj, .stl'):
        save_mesh(trimesh.creation.box(), tmp_path / 'body.off')
