"""Rendering against numbers computed by hand and against shapes whose picture is known."""

import math

import pytest
import torch

from tests.helpers import assert_close
from torch_utils.random import BatchRandom
from training.config import RenderingConfig
from training.rendering import cameras, volume


def softplus(x):
    return math.log1p(math.exp(x))


# Cameras and rays


def test_camera_conventions_agree_with_the_reference(goldens):
    arrays, meta = goldens('cameras')
    angles = torch.tensor(meta['horizontal_vertical'], dtype=torch.float32)
    poses = cameras.look_at_pose(angles[:, 0], angles[:, 1], meta['lookat'], meta['radius'])
    assert_close(poses, arrays['poses'], 1e-6)
    label = cameras.make_label(arrays['poses'], arrays['intrinsics'])
    origins, directions = cameras.cast_rays(label, cameras.pixel_centres(meta['ray_resolution']))
    assert_close(origins, arrays['ray_origins'], 1e-6)
    assert_close(directions, arrays['ray_directions'], 1e-6)


def frontal_label(radius=2.7, focal=2.0):
    pose = cameras.look_at_pose(math.pi / 2, math.pi / 2, (0.0, 0.0, 0.0), radius)
    return cameras.make_label(pose, cameras.pinhole(focal))


def test_frontal_camera_is_at_plus_z_upright_and_unmirrored():
    pose, _ = cameras.split_label(frontal_label())
    right, down, forward, position = pose[0, :3].T
    assert_close(position, torch.tensor([0.0, 0.0, 2.7]), 1e-5)
    assert_close(forward, torch.tensor([0.0, 0.0, -1.0]), 1e-5)
    assert_close(down, torch.tensor([0.0, -1.0, 0.0]), 1e-5)
    assert_close(torch.linalg.cross(right, down), forward, 1e-5)


def test_central_and_corner_rays_by_hand():
    origins, directions = cameras.cast_rays(frontal_label(focal=2.0), torch.tensor([[0.5, 0.5], [1.0, 0.0]]))
    assert_close(directions[0, 0], torch.tensor([0.0, 0.0, -1.0]), 1e-5)
    corner = torch.tensor([0.25, 0.25, -1.0])  # half an image at focal 2 is a quarter; the top of the image is +y
    assert_close(directions[0, 1], corner / corner.norm(), 1e-5)
    assert_close(origins[0, 1], torch.tensor([0.0, 0.0, 2.7]), 1e-5)


def test_skew_and_off_centre_intrinsics_project_back():
    intrinsics = torch.tensor([[1.5, 0.2, 0.4], [0, 1.7, 0.55], [0, 0, 1]])
    pose = cameras.look_at_pose(torch.tensor([1.2, 1.9]), torch.tensor([1.4, 1.7]), (0.1, 0.0, 0.2), 2.0)
    points = cameras.pixel_centres(5)
    origins, directions = cameras.cast_rays(cameras.make_label(pose, intrinsics), points)
    in_camera = ((origins + 3 * directions) - pose[:, None, :3, 3]) @ pose[:, :3, :3]
    projected = (in_camera / in_camera[..., 2:]) @ intrinsics.T
    assert_close(projected[..., :2], points.expand(2, -1, 2), 1e-5)


def test_patch_rays_are_the_full_image_rays():
    whole = cameras.pixel_centres(16).reshape(16, 16, 2)
    corners = torch.tensor([[0, 0], [3, 7], [12, 12]])
    patches = cameras.patch_centres(corners, 4, 16).reshape(3, 4, 4, 2)
    for patch, (top, left) in zip(patches, corners.tolist()):
        assert torch.equal(patch, whole[top : top + 4, left : left + 4])


def test_patch_outside_the_image_is_refused():
    with pytest.raises(ValueError, match='leaves the 16x16 image'):
        cameras.patch_centres(torch.tensor([[13, 0]]), 4, 16)


def test_box_limits():
    origins = torch.tensor([[[0.0, 0.0, 2.0], [0.0, 0.3, 2.0], [0.0, 5.0, 2.0]]])
    directions = torch.tensor([[[0.0, 0.0, -1.0], [0.0, 0.0, -1.0], [0.0, 0.0, -1.0]]])
    near, far = cameras.box_limits(origins, directions, side=1.0)
    assert near.flatten().tolist() == [1.5, 1.5, 1.5]
    assert far.flatten().tolist() == [2.5, 2.5, 1.5]  # the third ray misses: its far limit is the largest entry


def test_box_limits_of_rays_that_miss():
    """Entries at 1.5 and 2.5 and a miss; then misses alone."""
    origins = torch.tensor([[[0.0, 0.0, 2.0], [0.0, 0.0, 3.0], [0.0, 5.0, 2.0]]])
    directions = torch.tensor([0.0, 0.0, -1.0]).expand(1, 3, 3)
    near, far = cameras.box_limits(origins, directions, side=1.0)
    assert (near[0, 2].item(), far[0, 2].item()) == (1.5, 2.5)
    near, far = cameras.box_limits(origins[:, 2:], directions[:, 2:], side=1.0)
    assert (near.item(), far.item()) == (-1.0, -2.0)


# Compositing


def test_interval_weights_by_hand():
    raw, depths = torch.tensor([[[0.0, 2.0, 4.0]]]), torch.tensor([[[1.0, 1.5, 2.5]]])
    first, second = 1 - math.exp(-softplus(0.0) * 0.5), 1 - math.exp(-softplus(2.0) * 1.0)  # means 1 and 3, minus 1
    weights = volume.interval_weights(raw, depths)
    assert_close(weights.flatten(), torch.tensor([first, (1 - first) * second]), 1e-6)


def test_a_colour_counts_as_the_mean_of_interval_ends():
    raw, depths, colors = torch.randn(2, 3, 5), torch.rand(2, 3, 5).cumsum(dim=-1), torch.rand(2, 3, 5, 6)
    by_interval = volume.interval_weights(raw, depths)[..., None] * (colors[:, :, 1:] + colors[:, :, :-1]) / 2
    by_sample = volume.composite(raw, depths)[0][..., None] * colors
    assert_close(by_sample.sum(dim=2), by_interval.sum(dim=2), 1e-6)


def test_gradients_of_compositing():
    raw = torch.randn(1, 2, 5, dtype=torch.float64, requires_grad=True)
    depths = torch.rand(1, 2, 5, dtype=torch.float64).cumsum(-1).requires_grad_()
    assert torch.autograd.gradcheck(volume.interval_weights, (raw, depths))


def test_opacity_and_expected_depth_by_hand():
    depths = torch.tensor([[[1.0, 2.0, 4.0]]])
    _, opacity, depth = volume.composite(torch.full([1, 1, 3], -1e4), depths)
    assert (opacity.item(), depth.item()) == (0.0, math.inf)
    _, opacity, depth = volume.composite(torch.tensor([[[1e4, 1e4, 1e4]]]), depths)
    assert (opacity.item(), depth.item()) == (1.0, 1.5)
    raw = torch.tensor([[[0.0, 2.0, 4.0]]])
    first, second = volume.interval_weights(raw, depths).flatten().tolist()
    _, opacity, depth = volume.composite(raw, depths)
    assert opacity.item() == pytest.approx(first + second)
    assert depth.item() == pytest.approx((1.5 * first + 3 * second) / (first + second))


def test_samples_may_come_in_any_order():
    raw, depths = torch.randn(2, 3, 9), torch.rand(2, 3, 9)
    ascending, order = volume.sort_depths(depths)
    weights, *rest = volume.composite(raw, ascending, order)
    sorted_weights, *sorted_rest = volume.composite(raw.gather(-1, order), ascending)
    assert torch.equal(weights.gather(-1, order), sorted_weights)
    assert all(map(torch.equal, rest, sorted_rest))


# Sampling


def test_stratified_depths_by_hand():
    near, far = torch.full([1, 1, 1], 2.0), torch.full([1, 1, 1], 5.0)
    jitter = torch.tensor([[[0.0, 0.5, 0.25, 0.5]]])
    assert_close(volume.stratified_depths(near, far, jitter).flatten(), torch.tensor([2.0, 3.5, 4.25, 5.5]), 1e-6)


def test_smoothed_weights_by_hand():
    # max-pool with padding: 0, 0.4, 0.4, 0.2, 0.2; average of neighbours, plus 0.01
    smooth = volume.smooth_weights(torch.tensor([[[0.0, 0.4, 0.0, 0.2]]]))
    assert_close(smooth.flatten(), torch.tensor([0.21, 0.41, 0.31, 0.21]), 1e-6)


def test_inverse_cdf_by_hand():
    edges, masses = torch.tensor([0.0, 1.0, 3.0]), torch.tensor([0.25, 0.75])
    depths = volume.invert_cdf(edges, masses, torch.tensor([0.0, 0.125, 0.25, 0.625, 1.0]))
    assert_close(depths, torch.tensor([0.0, 0.5, 1.0, 2.0, 3.0]), 1e-6)


def test_inverse_cdf_steps_over_bins_without_mass():
    edges, masses = torch.tensor([0.0, 1.0, 2.0, 3.0]), torch.tensor([0.5, 0.0, 0.5])
    assert volume.invert_cdf(edges, masses, torch.tensor([0.5])).item() == 2.0  # right-sided search


def test_importance_samples_gather_where_the_weight_is():
    depths = torch.linspace(0, 1, 21).expand(1, 1, -1)
    weights = torch.zeros(1, 1, 20)
    weights[..., 12] = 1.0
    drawn = volume.importance_depths(depths, weights, torch.linspace(0, 1, 100).expand(1, 1, -1))
    near_surface = (drawn - 0.625).abs() < 0.11  # the interval and the neighbours it was blurred into
    assert near_surface.float().mean() > 0.85
    assert (drawn.diff(dim=-1) >= 0).all() and drawn.min() >= 0.02 and drawn.max() <= 0.98


# Planes


def test_planes_read_the_axes_they_say():
    """A ramp along one plane's width or height is the coordinate of that axis."""
    ramp = torch.linspace(-1, 1, 65)
    points = torch.tensor([[[0.1, -0.2, 0.3]]])
    for index, pair in enumerate(('xy', 'yz', 'zx')):
        planes = torch.zeros(1, 3, 2, 65, 65)
        planes[0, index, 0], planes[0, index, 1] = ramp[None, :], ramp[:, None]
        values = volume.sample_planes(planes, points, box_size=1.0, axes=('xy', 'yz', 'zx'))[0, 0] * 3
        expected = torch.tensor([2 * points[0, 0, 'xyz'.index(axis)] for axis in pair]) * 65 / 64  # ramp spans pixel centres
        assert_close(values, expected, 1e-4)


def test_planes_are_zero_outside_the_box():
    planes = torch.ones(1, 3, 4, 8, 8)
    values = volume.sample_planes(planes, torch.tensor([[[0.0, 0.0, 0.0], [2.0, 2.0, 2.0]]]), 1.0, ('xy', 'yz', 'zx'))
    assert values[0, 0].tolist() == [1.0] * 4 and values[0, 1].tolist() == [0.0] * 4


# Whole renders


def sphere_field(radius, color=0.8, density=200.0):
    def field(points):
        inside = points.norm(dim=-1, keepdim=True) < radius
        return torch.where(inside, density, -density), torch.full_like(points, color)

    return field


@pytest.mark.parametrize('mode', ['stratified', 'deterministic'])
def test_a_sphere_is_rendered_at_its_depth(mode):
    config = RenderingConfig(near=2.0, far=3.4, depth_samples=64, importance_samples=64)
    label, radius = frontal_label(), 0.3
    origins, directions = cameras.cast_rays(label, cameras.pixel_centres(33))
    colors, depth, opacity = volume.render_rays(volume, sphere_field(radius), origins, directions, config, mode)
    closest = (origins + directions * -(origins * directions).sum(-1, keepdim=True)).norm(dim=-1)[0]
    hit = closest < radius - 0.03
    along = -(origins * directions).sum(-1)[0]
    expected = along - (radius**2 - closest.square()).clamp(min=0).sqrt()
    assert hit.sum() > 20
    assert (depth[0, :, 0] - expected)[hit].abs().max() < 0.025
    assert_close(colors[0][hit], torch.full([int(hit.sum()), 3], 0.6), 1e-3)  # 0.8 * 2 - 1
    miss = closest > radius + 0.03
    assert opacity[0, :, 0][miss].max() < 1e-3 and colors[0][miss].max() < -0.99


def test_white_background_fills_what_is_not_covered():
    config = RenderingConfig(near=2.0, far=3.4, depth_samples=16, importance_samples=16, white_background=True)
    origins, directions = cameras.cast_rays(frontal_label(), cameras.pixel_centres(8))
    colors, _, _ = volume.render_rays(volume, sphere_field(0.0), origins, directions, config, 'deterministic')
    assert_close(colors, torch.ones_like(colors), 1e-3)


def test_chunks_change_nothing(monkeypatch):
    config = RenderingConfig(near=2.0, far=3.4, depth_samples=8, importance_samples=8)
    origins, directions = cameras.cast_rays(frontal_label(), cameras.pixel_centres(8))
    with torch.no_grad():
        whole = volume.render_rays(volume, sphere_field(0.3), origins, directions, config, 'deterministic')
        monkeypatch.setattr('training.rendering.volume.MAX_POINTS_PER_PASS', 16 * 7)
        parts = volume.render_rays(volume, sphere_field(0.3), origins, directions, config, 'deterministic')
    for a, b in zip(whole, parts):
        assert torch.equal(a, b)


def test_random_numbers_do_not_depend_on_how_a_batch_is_split():
    whole = BatchRandom.keyed((1, 2), 6).normal(3)
    for first in range(2):
        assert torch.equal(BatchRandom.keyed((1, 2), 6, rows=slice(first, None, 2)).normal(3), whole[first::2])
    assert not torch.equal(BatchRandom.keyed((1, 3), 6).normal(3), whole)
