"""Shaded surfaces, against balls whose points and normals are known."""

import math

import pytest
import torch

from shape_utils.grid import sample_grid
from shape_utils.shading import Surface, first_hits, shaded_view
from training.rendering.cameras import cast_rays, look_at_pose, make_label, pinhole, pixel_centres

LEVEL, RADIUS = 10.0, 0.28
CENTRE = (0.05, -0.12, 0.1)


def surface(*centres, box_size=1.0, resolution=64):
    def density(points):
        distance = torch.stack([(points - torch.tensor(centre)).norm(dim=-1) for centre in centres]).amin(dim=0) - RADIUS
        return (LEVEL - 200 * distance).clamp(min=0)

    return Surface(sample_grid(density, box_size, resolution, 'cpu'), LEVEL, box_size)


def camera(yaw, pitch, focal=3.0):
    return make_label(look_at_pose(math.pi / 2 + yaw, math.pi / 2 + pitch, (0.0, 0.0, 0.0), 2.7), pinhole(focal))


def degrees_between(a, b):
    return torch.rad2deg(torch.atan2(torch.linalg.cross(a, b).norm(dim=-1), (a * b).sum(dim=-1)))


@pytest.mark.parametrize('yaw, pitch', [(0, 0), (0.7, 0.3), (math.pi / 2, 0), (2.5, -0.8)])
@pytest.mark.parametrize('box_size', [1.0, 1.6])
def test_points_and_normals_are_those_of_a_ball(yaw, pitch, box_size):
    body = surface(CENTRE, box_size=box_size)
    origins, directions = (rays[0] for rays in cast_rays(camera(yaw, pitch), pixel_centres(48)))
    points, hit = first_hits(body, origins, directions)
    to_centre = torch.tensor(CENTRE) - origins
    along = (to_centre * directions).sum(dim=-1)
    passes_by = (to_centre.square().sum(dim=-1) - along.square()).sqrt()  # distance of the ray from the centre
    margin = body.voxel / 2
    assert hit[passes_by < RADIUS - margin].all() and not hit[passes_by > RADIUS + margin].any()
    points, passes_by, directions = points[hit], passes_by[hit], directions[hit]
    true_normals = (points - torch.tensor(CENTRE)) / RADIUS
    assert (true_normals.norm(dim=-1) - 1).abs().max() < 0.1 * body.voxel / RADIUS
    assert degrees_between(body.normals_at(points), true_normals).max() < 2
    assert ((true_normals * directions).sum(dim=-1)[passes_by < 0.95 * RADIUS] < 0).all()  # the near side


def test_what_is_in_front_hides_what_is_behind():
    origins, directions = torch.tensor([[0.0, 0.0, 2.7]]), torch.tensor([[0.0, 0.0, -1.0]])
    body = surface((0, 0, 0.2), (0, 0, -0.2), box_size=1.2)
    points, hit = first_hits(body, origins, directions)
    assert hit.all()
    torch.testing.assert_close(points, torch.tensor([[0.0, 0.0, 0.2 + RADIUS]]), atol=0.1 * body.voxel, rtol=0)


def test_a_headlight_shades_grey_on_white():
    label = camera(0, 0)
    picture = shaded_view(surface((0, 0, 0)), label, 33)
    assert picture.shape == (3, 33, 33) and (picture == picture[:1]).all()
    brightness = (picture[0] + 1) / 2
    assert (brightness[[0, 0, -1, -1], [0, -1, 0, -1]] == 1).all()
    assert brightness[16, 16] == pytest.approx(0.8, abs=0.01)  # faces the camera
    x = (torch.arange(33) + 0.5) / 33 - 0.5  # of the middle row, in image widths
    sine = x.abs() / 3 * 2.7 / RADIUS  # of the normal's angle, for a ball far away
    body = sine < 0.8
    expected = 0.15 + 0.65 * (1 - sine[body].square()).sqrt()
    torch.testing.assert_close(brightness[16, body], expected, atol=0.04, rtol=0)


def test_pictures_do_not_depend_on_how_rays_are_split(monkeypatch):
    body, label = surface(CENTRE), camera(0.3, 0.1)
    whole = shaded_view(body, label, 16)
    monkeypatch.setattr('shape_utils.shading._LOOKUPS_PER_PASS', 64 * 50)
    torch.testing.assert_close(shaded_view(body, label, 16), whole)
