"""NeuS itself: weights, sampling, fields, losses, and reconstructions of scenes of known geometry."""

import math

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from dnnlib.errors import UserError
from metrics.consistency import rendering
from metrics.consistency.fields import (
    DistanceNetwork,
    HashGrid,
    Scene,
    Shaded,
    central_differences,
    contract,
    curvature,
    frequencies,
    frequency_width,
    look_up,
    look_up_around,
    make_fields,
    refine,
)
from metrics.consistency.mesh import extract_surface
from metrics.consistency.recipes import fast, published
from metrics.consistency.rendering import possible_weights, render_neus, sample_depths, section_weights, shaded_sections
from metrics.consistency.scoring import psnr, ssim
from metrics.consistency.trainer import (
    RaySampler,
    Reconstruction,
    eikonal_loss,
    fit,
    seeded_fields,
    smoothness_loss,
    training_loss,
)
from metrics.consistency.views import Views, view_rays
from tests.helpers import assert_close
from tests.metrics.consistency import scenes


def logistic(x):
    return 1 / (1 + math.exp(-x))


# ---------------------------------------------------------------------------------------------------------------------
# Weights (Wang et al. 2021, eq. 13)


def test_weights_by_hand():
    first = (logistic(2) - logistic(1)) / logistic(2)
    second = (logistic(1) - logistic(-1)) / logistic(1)
    weights = section_weights(torch.tensor([1.0, 0.5, -0.5]), torch.tensor(2.0))
    assert_close(weights, torch.tensor([first, (1 - first) * second]), 1e-6)


def test_leaving_a_surface_weighs_nothing():
    weights = section_weights(torch.tensor([0.5, -0.5, 0.5, 0.7, -0.3]), torch.tensor(10.0))
    assert weights[1] == 0 and weights[2] == 0 and weights[0] > 0.9
    assert weights[3] < 0.1, 'the second surface stands behind the first one'


def test_weights_survive_where_the_logistic_function_underflows():
    weights = section_weights(torch.tensor([1.0, -1.0, -2.0, -3.0]), torch.tensor(1000.0))
    assert weights.tolist() == [1, 0, 0]
    inside = section_weights(torch.tensor([-1.0, -1.001]), torch.tensor(1000.0))
    assert_close(inside, torch.tensor([1 - math.exp(-1)]), 1e-3)  # Phi(-1001) / Phi(-1000) = e^-1, though both are 0 in floats


def test_weights_do_not_depend_on_where_a_straight_section_is_cut():
    whole = section_weights(torch.tensor([0.4, -0.2]), torch.tensor(8.0))
    cut = section_weights(torch.linspace(0.4, -0.2, 7), torch.tensor(8.0))
    assert_close(cut.sum(), whole.sum(), 1e-6)


def test_weights_are_unbiased():
    """The weight of a straight approach is largest at the surface itself, whatever the sharpness (section 3.1)."""
    distance = torch.linspace(1, -1, 2001, dtype=torch.float64)
    for sharpness in (5.0, 50.0):
        heaviest = section_weights(distance, torch.tensor(sharpness)).argmax()
        assert abs(distance[heaviest]) < 2e-3


def test_weights_have_the_right_gradients():
    distance = torch.tensor([[0.9, 0.4, 0.1, -0.3, -0.6]], dtype=torch.float64, requires_grad=True)
    sharpness = torch.tensor(3.0, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(section_weights, (distance, sharpness))


def test_possible_weights_by_hand():
    """Sections of 0.8 that start and end 0.3 outside may reach 0.1 into a subject; the light before them is as it seems."""
    hidden = 1 - logistic(-0.2) / logistic(0.6)
    weights = possible_weights(torch.tensor([0.3, 0.3, 0.3]), torch.tensor([0.8, 0.8]), 2.0)
    assert_close(weights, torch.tensor([hidden, hidden]), 1e-6)
    falling = torch.tensor([0.5, -0.1, -0.7])  # by one per unit of length: nothing can hide
    assert_close(possible_weights(falling, torch.tensor([0.6, 0.6]), 2.0), section_weights(falling, torch.tensor(2.0)), 1e-6)


# ---------------------------------------------------------------------------------------------------------------------
# Sampling and rendering


def sphere_scene(radius=0.5, sharpness=400.0):
    """A sphere whose colours are its normals."""

    def shade(points, directions):
        normals = F.normalize(points, dim=-1)
        return Shaded(normals.abs(), normals, None)

    return Scene(
        lambda points: points.norm(dim=-1) - radius,
        lambda points: F.normalize(points, dim=-1),
        shade,
        torch.tensor(sharpness),
        None,
    )


def parallel_rays(*heights):
    origins = torch.tensor([[0.0, height, 3.0] for height in heights])
    return origins, torch.tensor([[0.0, 0.0, -1.0]]).expand(len(heights), 3)


@pytest.mark.parametrize('recipe', [fast(64), published()], ids=['fast', 'published'])
def test_samples_ascend_and_gather_at_the_surface(recipe):
    origins, directions = parallel_rays(0.0, 0.3)
    near, far = torch.full([2, 1], 2.0), torch.full([2, 1], 4.0)
    depths = sample_depths(sphere_scene().distance, origins, directions, near, far, recipe)
    assert depths.shape == (2, recipe.coarse_samples + recipe.rounds * recipe.samples_per_round)
    assert (depths.diff(dim=-1) >= 0).all() and depths.min() >= 2 and depths.max() <= 4
    crossing = torch.tensor([[2.5], [3 - math.sqrt(0.25 - 0.09)]])
    drawn = recipe.rounds * recipe.samples_per_round
    assert ((depths - crossing).abs() < 0.1).sum(dim=-1).min() > 0.8 * drawn


@pytest.mark.parametrize('recipe', [fast(64), published()], ids=['fast', 'published'])
def test_samples_find_a_sheet_between_two_even_samples(recipe):
    """Thinner than their spacing, and just in the middle: at both its ends the section seems to be outside."""
    spacing = 2 / (recipe.coarse_samples - 1)

    def sheet(points):
        return points[:, 2].abs() - spacing / 8

    depths = sample_depths(sheet, *parallel_rays(0.0), torch.full([1, 1], 2.0), torch.full([1, 1], 4.0), recipe)
    assert ((depths - 3).abs() < spacing / 8).sum() >= 3


@pytest.mark.parametrize('recipe', [fast(64), published()], ids=['fast', 'published'])
def test_a_known_sphere_is_rendered_right(recipe):
    origins, directions = parallel_rays(0.0, 0.3, 0.9)
    out = render_neus(sphere_scene(), origins, directions, recipe, 'white')
    z = math.sqrt(0.25 - 0.09) / 0.5
    assert_close(out.rgb, torch.tensor([[0, 0, 1.0], [0, 0.6, z], [1, 1, 1]]), 0.02)
    assert_close(out.normal[:2], torch.tensor([[0, 0, 1.0], [0, 0.6, z]]), 0.02)
    assert_close(out.depth[:2], torch.tensor([2.5, 3 - 0.5 * z]), 0.01)
    assert_close(out.opacity, torch.tensor([1.0, 1, 0]), 1e-3)


def test_backgrounds():
    origins, directions = parallel_rays(0.9)
    for background, value in (('white', 1.0), ('black', 0.0)):
        rgb = render_neus(sphere_scene(), origins, directions, fast(64), background).rgb
        assert_close(rgb + 1, torch.full([1, 3], value) + 1, 1e-3)


def test_rays_beside_the_box_show_the_background():
    origins, directions = parallel_rays(1.5)
    out = render_neus(sphere_scene(radius=2.0), origins, directions, fast(64), 'white')
    assert out.rgb.tolist() == [[1, 1, 1]] and out.opacity.item() == 0


def test_a_camera_inside_the_box_sees_what_is_before_it():
    origins, directions = torch.tensor([[0.0, 0.0, 0.8]]).expand(2, 3), torch.tensor([[0.0, 0.0, -1.0], [0.0, 0.0, 1.0]])
    out = render_neus(sphere_scene(), origins, directions, fast(64), 'white')
    assert_close(out.depth[:1], torch.tensor([0.3]), 0.02)
    assert out.opacity[1] < 1e-3, 'what is behind the camera is not seen'


def test_the_outside_shines_through_where_the_box_is_empty():
    def outside(points, directions):
        assert points.abs().amax(dim=-1).min() >= 1 - 1e-5
        return torch.zeros(len(points)), torch.full([len(points), 3], 0.25)

    scene = sphere_scene()._replace(outside=outside)
    origins, directions = parallel_rays(0.9, 0.0)
    rgb = render_neus(scene, origins, directions, fast(64), 'learned').rgb
    assert_close(rgb, torch.tensor([[0.25] * 3, [0, 0, 1.0]]), 0.02)


def test_only_the_heaviest_sections_are_shaded():
    weights = torch.tensor([[0.5, 0.3, 0.15, 0.0005], [0.0, 0.0, 0.0, 0.0]])
    ray, section = shaded_sections(weights, fast(64, most_shaded=2))
    assert list(zip(ray.tolist(), section.tolist())) == [(0, 0), (0, 1)]
    ray, section = shaded_sections(weights, fast(64, most_shaded=0))
    assert section.tolist() == [0, 1, 2]


def test_published_recipe_shades_all_sections():
    weights = torch.tensor([[0.5, 0.0, 1e-30], [0.0, 0.0, 0.0]])
    assert len(shaded_sections(weights, published())[0]) == 6


def test_a_ray_that_is_not_shaded_shows_the_background():
    """A faint subject whose every section weighs less than is shaded: its opacity must not darken white to grey."""
    origins, directions = parallel_rays(0.75)
    out = render_neus(sphere_scene(sharpness=25.0), origins, directions, fast(64), 'white')
    assert 0 < section_weights(torch.tensor([2.0, 0.25]), torch.tensor(25.0)).item() < 0.01
    assert out.rgb.tolist() == [[1, 1, 1]] and out.opacity.item() == 0
    assert 2 < out.depth.item() < 4, 'its expected depth is still that of the little there is'


def test_rendering_in_chunks_changes_nothing(monkeypatch):
    origins, directions = parallel_rays(*torch.linspace(-0.9, 0.9, 7).tolist())
    whole = rendering.render_all(sphere_scene(), origins, directions, fast(64), 'white')
    monkeypatch.setattr(rendering, '_SAMPLES_PER_CHUNK', 3 * 72)
    parts = rendering.render_all(sphere_scene(), origins, directions, fast(64), 'white')
    assert_close(parts[0], whole[0], 1e-6)


# ---------------------------------------------------------------------------------------------------------------------
# Fields


def test_frequencies():
    x = torch.tensor([[0.1, 0.2]])
    encoded = frequencies(x, 2)
    expected = [
        0.1,
        0.2,
        *map(math.sin, (0.1, 0.2)),
        *map(math.cos, (0.1, 0.2)),
        *map(math.sin, (0.2, 0.4)),
        *map(math.cos, (0.2, 0.4)),
    ]
    assert encoded.shape[1] == frequency_width(2, 2)
    assert_close(encoded[0], torch.tensor(expected), 1e-6)


@pytest.mark.parametrize('table', [4, 14], ids=['hashed', 'one to one'])
def test_hash_grid_interpolates_its_vertices(table):
    grid = HashGrid(levels=2, coarsest=4, finest=8, table=table, features=1)
    with torch.no_grad():
        grid.table.normal_()
    vertex = torch.tensor([[1, 2, 3]]) / 4.0 * 2 - 1  # a vertex of both levels: (1, 2, 3) and (2, 4, 6)
    step = torch.tensor([[2 / 8, 0, 0]])
    ends, middle = grid(torch.cat([vertex, vertex + step])), grid(vertex + step / 2)
    assert_close(middle[0, 1], ends[:, 1].mean(), 1e-5)
    assert_close(middle[0, 0], 0.75 * grid(vertex)[0, 0] + 0.25 * grid(vertex + 2 * step)[0, 0], 1e-5)
    assert grid(torch.tensor([[-1.0] * 3, [1.0] * 3])).isfinite().all()
    assert grid(torch.empty(0, 3)).shape == (0, 2)


def vertex_features(side, table):
    """The row of the table that each vertex of a grid of `side` cells looks up: [(side + 1)^3]."""
    grid = HashGrid(levels=2, coarsest=2, finest=side, table=table, features=1).double()
    with torch.no_grad():
        grid.table[:, 0] = torch.arange(len(grid.table))
    axis = torch.linspace(-1, 1, side + 1, dtype=torch.float64)
    return grid(torch.cartesian_prod(axis, axis, axis))[:, 1].detach()


def test_hash_grid_gives_every_vertex_a_row_of_its_own_while_they_last():
    rows = vertex_features(side=8, table=10)
    assert len(rows.round().unique()) == 9**3 and rows.min() >= 2**10 and rows.max() < 2 * 2**10


def test_hash_grid_spreads_vertices_over_the_table():
    rows = vertex_features(side=16, table=10)
    assert len(rows.round().unique()) > 0.95 * 2**10 and rows.min() >= 2**10 and rows.max() < 2 * 2**10


def test_refined_grid_is_the_same_function():
    grid, points = torch.randn(5, 5, 5), torch.rand(50, 3) * 2 - 1
    assert refine(grid).shape == (9, 9, 9)
    assert_close(look_up(refine(grid), points), look_up(grid, points), 1e-5)


def look_up_gradient(grid, points, step):
    return central_differences(look_up_around(grid, points, step)[1], step)


def test_grid_axes():
    axis = torch.linspace(-1, 1, 5)
    x, y, z = torch.meshgrid(axis, axis, axis, indexing='ij')
    points = torch.rand(20, 3) * 1.4 - 0.7
    plane = x + 10 * y + 100 * z
    assert_close(look_up(plane, points), points @ torch.tensor([1.0, 10, 100]), 1e-5)
    assert_close(look_up_gradient(plane, points, 0.2), torch.tensor([1.0, 10, 100]).expand(20, 3), 1e-4)


def test_gradient_interpolates_the_differences_of_the_vertices():
    """A fast path and its specification: differences over +-voxel, against the interpolated gradient grid."""
    grid, points = torch.randn(9, 9, 9), torch.rand(30, 3) - 0.5
    step = 2 / 8
    per_axis = torch.gradient(grid, spacing=step)
    expected = torch.stack([look_up(component, points) for component in per_axis], dim=-1)
    assert_close(look_up_gradient(grid, points, step), expected, 1e-4)


def test_gradient_and_curvature_hold_up_to_the_faces():
    axis = torch.linspace(-1, 1, 9)
    x, y, z = torch.meshgrid(axis, axis, axis, indexing='ij')
    here, around = look_up_around(x + 10 * y + 100 * z, torch.tensor([[1.0, -1.0, 0.95], [-0.9, 0.9, 1.0]]), 0.25)
    assert_close(central_differences(around, 0.25), torch.tensor([[1.0, 10, 100]]).expand(2, 3), 1e-4)
    assert_close(curvature(here, around, 0.25), torch.zeros(2), 1e-3)


def test_gradient_learns():
    grid = torch.randn(9, 9, 9, dtype=torch.float64, requires_grad=True)
    points = torch.rand(4, 3, dtype=torch.float64) - 0.5
    assert torch.autograd.gradcheck(lambda g: look_up_gradient(g, points, 0.25), grid, fast_mode=True)


@pytest.mark.parametrize('recipe', [fast(32), published()], ids=['grid', 'networks'])
def test_fields_start_as_a_sphere(recipe):
    scene = make_fields(recipe).build(progress=0.0)
    points = F.normalize(torch.randn(200, 3), dim=-1) * torch.linspace(0.3, 0.9, 200)[:, None]
    with torch.no_grad():
        error = scene.distance(points) - (points.norm(dim=-1) - 0.5)
        assert error.abs().mean() < 0.15  # the networks' is random
        cosine = F.cosine_similarity(scene.gradient(points), points, dim=-1)
    assert cosine.mean() > 0.9
    assert scene.sharpness.item() == pytest.approx(math.exp(3), rel=1e-4)


def test_published_network_has_the_published_size():
    network = DistanceNetwork(256, 6, 0.5)
    shapes = [tuple(layer.weight.shape) for layer in network.hidden]
    assert shapes == [(256, 39), (256, 256), (256, 256), (217, 256)] + [(256, 256)] * 4
    assert tuple(network.output.weight.shape) == (257, 256)


def test_network_gradient_is_that_of_the_distance():
    fields = make_fields(published(hidden=64)).double()
    points = torch.rand(5, 3, dtype=torch.float64) - 0.5
    scene = fields.build()
    gradient = scene.gradient(points)
    offset = torch.tensor([1e-5, 0, 0], dtype=torch.float64)
    with torch.no_grad():
        expected = (scene.distance(points + offset) - scene.distance(points - offset)) / 2e-5
    assert_close(gradient[:, 0], expected, 1e-4)
    eikonal_loss(gradient).backward()
    assert fields.distance_network.hidden[0].parametrizations.weight.original1.grad.abs().sum() > 0


def test_curvature_by_hand():
    """Of x^2 + 2 y^2 + 3 z^2 the Laplacian is 12; interpolation between vertices changes nothing at them."""
    axis = torch.linspace(-1, 1, 9)
    x, y, z = torch.meshgrid(axis, axis, axis, indexing='ij')
    grid, vertices, step = x**2 + 2 * y**2 + 3 * z**2, torch.tensor([[0.0, 0.25, -0.5], [0.5, 0.5, 0.0]]), 0.25
    turned = curvature(*look_up_around(grid, vertices, step), step)
    assert_close(turned, torch.full([2], 12 * step), 1e-5)
    assert smoothness_loss(torch.tensor([1.0, -3.0])).item() == 2 and smoothness_loss(torch.empty(0)).item() == 0


def test_contraction():
    near = torch.tensor([[0.5, -1.0, 0.2]])
    assert contract(near).equal(near)
    assert_close(contract(torch.tensor([[4.0, 2.0, 0.0]])), torch.tensor([[1.75, 0.875, 0.0]]), 1e-6)


def test_eikonal_loss_by_hand():
    assert eikonal_loss(torch.tensor([[2.0, 0, 0], [0, 0.5, 0]])).item() == pytest.approx((1 + 0.25) / 2)
    assert eikonal_loss(torch.empty(0, 3)).item() == 0


@pytest.mark.parametrize('recipe', [fast(32, rays=64), published(hidden=64, rays=16)], ids=['grid', 'networks'])
def test_every_parameter_learns(recipe):
    fields = make_fields(recipe, outside=True)
    grouped = [p for group in fields.parameter_groups(recipe) for p in group['params']]
    assert {id(p) for p in grouped} == {id(p) for p in fields.parameters()} and len(grouped) == len(list(fields.parameters()))
    views = scenes.render(scenes.sphere, scenes.around(2), 12, supersampling=1)
    sampler = RaySampler(views, recipe, torch.Generator().manual_seed(0), 'cpu')
    training_loss(fields, sampler, recipe, 'learned', step=recipe.steps - 1).backward()
    still = [name for name, p in fields.named_parameters() if p.grad is None or not p.grad.any()]
    assert not still, 'parameters without a gradient'


# ---------------------------------------------------------------------------------------------------------------------
# Recipes and scores


def test_schedule():
    recipe = published()
    assert recipe.rate_factor(0) == pytest.approx(1 / 5000)
    assert recipe.rate_factor(5000) == pytest.approx(1)
    assert recipe.rate_factor(300_000) == pytest.approx(0.05)
    assert (recipe.steps, recipe.rays, recipe.network_rate) == (300_000, 512, 5e-4)


def test_psnr_by_hand():
    images = torch.zeros(2, 4, 4, 3)
    assert psnr(images + 0.1, images).tolist() == pytest.approx([20, 20], abs=1e-4)
    assert psnr(images, images).tolist() == [100, 100]


def test_ssim():
    images = torch.rand(1, 16, 16, 3)
    assert ssim(images, images).item() == pytest.approx(1)
    assert ssim(images, 1 - images).item() < 0
    with pytest.raises(UserError, match='8x8 pixels are smaller than the window'):
        ssim(images[:, :8, :8], images[:, :8, :8])


# ---------------------------------------------------------------------------------------------------------------------
# Reconstructions

LARGE_STEPS = {'grid_rate': 0.04, 'variance_rate': 1.5e-2}  # for fits of few steps


def reconstruct(shape, labels, resolution, **changes):
    views = scenes.render(scenes.SHAPES[shape], labels, resolution)
    return views, fit(views, fast(resolution, **changes), 'white')


def mean_psnr(views, reconstruction):
    rgb = reconstruction.render(views.labels, views.size)[0]
    return psnr(rgb, views.images.float() / 255).mean().item()


def surface_errors(reconstruction, shape, resolution):
    """Distances of the mesh's vertices from the true surface, in shares of the box, and cosines of the angles between the
    faces' normals and the true ones."""
    mesh = extract_surface(reconstruction, resolution)
    vertices = torch.tensor(mesh.vertices, dtype=torch.float32)
    centres = torch.tensor(mesh.triangles_center, dtype=torch.float32)
    normals = torch.tensor(mesh.face_normals.copy(), dtype=torch.float32)
    cosines = (normals * scenes.normals(scenes.SHAPES[shape], centres)).sum(dim=-1)
    return scenes.SHAPES[shape](vertices).abs() / scenes.BOX, cosines


def test_small_sphere_is_reconstructed():
    """The small form of test_scenes_are_reconstructed: fewer, smaller views, fewer but larger steps, and lower bars."""
    views, reconstruction = reconstruct('sphere', scenes.around(12), 48, steps=200, rays=256, **LARGE_STEPS)
    assert mean_psnr(views, reconstruction) > 31
    errors, cosines = surface_errors(reconstruction, 'sphere', 48)
    assert errors.quantile(0.95) < 0.025 and cosines.median() > 0.95


def test_same_seed_same_reconstruction():
    views = scenes.render(scenes.sphere, scenes.around(3), 16)
    state = torch.random.get_rng_state()
    first = fit(views, fast(16, steps=3, rays=32), 'white', 1)
    assert torch.random.get_rng_state().equal(state), "torch's random numbers belong to the caller"
    torch.rand(1)  # ... who may use them in between
    second, other = (fit(views, fast(16, steps=3, rays=32), 'white', seed) for seed in (1, 2))
    initial = [seeded_fields(fast(16), 'white', seed).network[0].weight for seed in (1, 1, 2)]
    assert initial[0].equal(initial[1]) and not initial[0].equal(initial[2])
    parameters = [torch.cat([p.flatten() for p in result.fields.parameters()]) for result in (first, second, other)]
    assert parameters[0].equal(parameters[1]) and not parameters[0].equal(parameters[2])


def test_rays_meet_their_pixels():
    """The colours tell view, row and column, of images that are not square."""
    view, row, column = torch.meshgrid(torch.arange(3), torch.arange(6), torch.arange(10), indexing='ij')
    labels = scenes.around(3)
    views = Views('numbered', torch.stack([view, row, column], dim=-1).to(torch.uint8), labels, 2.0, None)
    origins, directions, rgb = RaySampler(views, fast(32, rays=200), torch.Generator().manual_seed(0), 'cpu').draw()
    view, row, column = (rgb * 255).round().long().unbind(dim=-1)
    assert row.max() == 5 and column.max() == 9 and len(view.unique()) == 3
    all_origins, all_directions = view_rays(labels, (6, 10))
    assert_close(origins, all_origins[view, row * 10 + column], 1e-5)
    assert_close(directions, all_directions[view, row * 10 + column], 1e-5)


def test_sealed_hollows_are_no_surface():
    fields = make_fields(fast(32))
    axis = torch.linspace(-1, 1, fields.voxels[0] + 1)
    radius = torch.cartesian_prod(axis, axis, axis).norm(dim=-1).reshape(fields.distances[0].shape)
    fields.distances[0].data = (radius - 0.45).abs() - 0.2
    outside, inside = torch.tensor([[0.0, 0.0, 3.0]]), torch.tensor([[0.0, 0.0, 3.0], [0.1, 0.0, 0.0]])
    mesh = extract_surface(Reconstruction(fields, fast(32), 'white', 2.0, outside), 64)
    assert mesh.body_count == 1 and mesh.is_watertight
    assert abs(np.linalg.norm(mesh.vertices, axis=1) - 0.65).max() < 0.02
    assert extract_surface(Reconstruction(fields, fast(32), 'white', 2.0, inside), 64).body_count == 2, 'a room is seen'


def test_a_mesh_of_nothing_is_said():
    fields = make_fields(fast(32))
    fields.distances[0].data.fill_(0.3)
    with pytest.raises(UserError, match='no surface to write as a mesh'):
        extract_surface(Reconstruction(fields, fast(32), 'white', 2.0, torch.zeros(1, 3)), 16)


def test_training_loss_has_three_parts():
    views = scenes.render(scenes.sphere, scenes.around(2), 12, supersampling=1)
    fields = make_fields(fast(32))

    def loss(eikonal, smoothness):
        recipe = fast(32, rays=64, eikonal_weight=eikonal, smoothness_weight=smoothness)
        sampler = RaySampler(views, recipe, torch.Generator().manual_seed(0), 'cpu')
        return training_loss(fields, sampler, recipe, 'white', step=0).item()

    color, eikonal, smoothness = loss(0, 0), loss(1, 0) - loss(0, 0), loss(0, 1) - loss(0, 0)
    assert color > 0.05 and eikonal > 1e-4 and smoothness > 0.1  # a sphere of coarse cells turns, and grows almost by one
    assert loss(2, 3) == pytest.approx(color + 2 * eikonal + 3 * smoothness, rel=1e-4)


def test_divergence_is_said():
    views = scenes.render(scenes.sphere, scenes.around(2), 12, supersampling=1)
    with pytest.raises(UserError, match='scene: the reconstruction diverged at step 2'):
        fit(views, fast(32, steps=2, rays=16, feature_rate=torch.inf), 'white')


def test_published_recipe_learns():
    """Its networks and schedule, in a tiny form: that they can learn at all."""
    views = scenes.render(scenes.sphere, scenes.around(4), 12)
    recipe = published(
        hidden=64, steps=30, rays=48, coarse_samples=12, rounds=2, samples_per_round=4, network_rate=2e-3, variance_rate=2e-3
    )
    untrained = mean_psnr(views, fit(views, recipe._replace(steps=1), 'white'))
    assert mean_psnr(views, fit(views, recipe, 'white')) > untrained + 2


@pytest.mark.slow
@pytest.mark.parametrize('shape', scenes.SHAPES)
def test_scenes_are_reconstructed(shape):
    views, reconstruction = reconstruct(shape, scenes.around(30), 128)
    reached = mean_psnr(views, reconstruction)
    errors, cosines = surface_errors(reconstruction, shape, 128)
    print(
        f'{shape}: PSNR {reached:.2f}; distance to the true surface, % of the box: mean {100 * errors.mean():.3f}, '
        f'99 % {100 * errors.quantile(0.99):.3f}, worst {100 * errors.max():.3f}; cosine of the normals: mean '
        f'{cosines.mean():.4f}, median {cosines.median():.4f}'
    )
    assert reached >= 35
    assert errors.max() < 0.01 and cosines.median() > 0.97
