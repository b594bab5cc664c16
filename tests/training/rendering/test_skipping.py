"""Bounds of the density, and skipping what cannot be seen."""

import pytest
import torch

from tests.helpers import assert_close
from tests.tiny import tiny_config, tiny_generator
from training.config import PLANE_AXES, RenderingConfig
from training.networks.generator import Decoder, Planes
from training.rendering.cameras import view_label
from training.rendering.skipping import MARGIN, density_bounds
from training.rendering.volume import TriplaneField


def field(sizes=(4, 8), order='mimic3d', images=2):
    config = tiny_config()
    decoder = Decoder(config).requires_grad_(False)
    decoder.output.weight[0] *= 3
    planes = [torch.randn(images, 3, config.plane_channels, size, size) for size in sizes]
    return TriplaneField(planes, decoder, 1.3, PLANE_AXES[order], color_channels=3)


@pytest.mark.parametrize('order', PLANE_AXES)
@pytest.mark.parametrize('sizes, cells', [((4,), 4), ((8,), 4), ((4, 8), 8), ((4, 8), 2)])
def test_no_density_exceeds_its_bound(order, sizes, cells):
    f = field(sizes, order)
    points = (torch.rand(2, 20000, 3) - 0.5) * 1.3 * 1.6  # some of them beside the box
    points[:, :3000] = torch.round(points[:, :3000] / 1.3 * 16) / 16 * 1.3  # some on edges of cells and of texels
    slack = density_bounds(f, cells).at(points) - f(points)[0][..., 0]
    assert slack.min() >= 0
    assert slack.median() < 12  # the densities themselves span some 40


def test_the_bound_is_the_density_where_nothing_changes():
    f = field()
    f = TriplaneField([p[:, :, :, :1, :1].expand_as(p).contiguous() for p in f.planes], f.decoder, f.box_size, f.axes, 3)
    points = (torch.rand(2, 100, 3) - 0.5) * 0.6
    gap = density_bounds(f, 8).at(points) - f(points)[0][..., 0]
    assert_close(gap, torch.full_like(gap, MARGIN), 0.1)


def test_cells_that_do_not_fit_the_planes_are_refused():
    with pytest.raises(ValueError, match='16 cells do not fit planes of 4 and 8 texels'):
        density_bounds(field(), 16)


def render_setup(importance_samples):
    rendering = RenderingConfig(depth_samples=24, importance_samples=importance_samples, white_background=True)
    G = tiny_generator(rendering=rendering).requires_grad_(False)
    G.decoder.output.weight[0] *= 6
    G.decoder.output.bias[0] = -10
    c = view_label(G.config, yaw=torch.tensor([0.0, 0.3]), pitch=torch.zeros(2))
    planes = G.planes(torch.randn(2, G.backbone.num_ws, 16), noise_mode='const')
    return G, Planes(*(p * 3 for p in planes)), c


@pytest.mark.parametrize('importance_samples', [0, 24])
@torch.no_grad()
def test_skipping_keeps_its_promise(importance_samples, monkeypatch):
    """Fewer samples, and the change of a pixel, in [-1, 1], within twice the number of samples times eps."""
    G, planes, c = render_setup(importance_samples)
    counts = []
    call = TriplaneField.__call__

    def counted(self, points):
        counts.append(points[..., 0].numel())
        return call(self, points)

    monkeypatch.setattr(TriplaneField, '__call__', counted)
    options = dict(branch='3d', render_resolution=12, sampling='deterministic')
    whole = G.render(planes, c, **options)['image']
    total = sum(counts)
    assert whole.std() > 0.1
    for eps in (1e-4, 1e-3, 1e-2):
        counts.clear()
        image = G.render(planes, c, **options, skip=eps)['image']
        assert sum(counts) < 0.8 * total
        assert (image - whole).abs().max() <= 2 * (24 + importance_samples) * eps


@torch.no_grad()
def test_bounds_can_be_shared_between_views():
    G, planes, c = render_setup(8)
    options = dict(branch='coarse', sampling='deterministic', skip=1e-3)
    shared = G.render(planes, c, bounds=G.density_bounds(planes, 'coarse'), **options)['image']
    assert torch.equal(shared, G.render(planes, c, **options)['image'])


@torch.no_grad()
def test_skipping_is_refused_where_it_makes_no_sense():
    G, planes, c = render_setup(8)
    with pytest.raises(ValueError, match='at least 0 and below 1'):
        G.render(planes, c, '3d', skip=1.5)
    with torch.enable_grad(), pytest.raises(ValueError, match='no_grad'):
        G.render(planes, c, '3d', skip=0.01)
