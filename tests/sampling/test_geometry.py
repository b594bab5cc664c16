"""The surface of a subject, as each branch renders its density."""

import pytest
import torch

from dnnlib.errors import UserError
from sampling import geometry
from sampling.geometry import SurfaceOptions
from sampling.subjects import make_subject, seed_ws
from shape_utils.grid import density_grid
from shape_utils.mesh import cleared_grid
from shape_utils.shading import Surface, shaded_view
from training.rendering.cameras import view_label


@pytest.fixture
def subject(networks):
    return make_subject(networks['stage2'], seed_ws(networks['stage2'], [3], 0.7))


def test_the_2d_branch_has_the_surface_of_the_coarse_planes(networks, subject):
    G = networks['stage2']
    options = SurfaceOptions(shape_resolution=12, shape_level=0.25)
    label = view_label(G.config, 0.3)
    two, three, coarse = (options.shaded(G, subject, label, branch, 16) for branch in ('2d', '3d', 'coarse'))
    body = Surface(torch.from_numpy(cleared_grid(density_grid(G, subject.planes, 12, fine=False), 0.25)), 0.25, 1.0)
    assert torch.equal(two, coarse) and torch.equal(two, shaded_view(body, label, 16))
    assert (two - three).abs().max() > 0.01


def test_it_is_looked_for_once_per_subject(networks, subject, monkeypatch):
    G, grids = networks['stage2'], []
    monkeypatch.setattr(geometry, 'density_grid', lambda *args, **options: grids.append(args) or density_grid(*args, **options))
    options = SurfaceOptions(shape_resolution=12, shape_level=0.25)
    views = [options.shaded(G, subject, view_label(G.config, yaw), branch, 8) for yaw in (0, 0.4) for branch in ('2d', '3d')]
    assert len(grids) == 2
    assert not torch.equal(views[0], views[2])


def test_a_level_that_no_density_crosses_is_named(networks, subject):
    options = SurfaceOptions(shape_resolution=8, shape_level=1e6)
    with pytest.raises(UserError, match='--shape-level: no surface at density 1e'):
        options.shaded(networks['stage2'], subject, view_label(networks['stage2'].config), '3d', 8)
