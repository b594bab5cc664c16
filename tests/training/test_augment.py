"""Discriminator augmentation against the published pipeline, and against what each transform means."""

import math

import pytest
import torch
import torch.nn.functional as F

from tests.helpers import assert_close, load_golden
from training import augment as module
from training.augment import GATES, NORMAL_DRAWS, UNIFORM_DRAWS, adapt_probability, augment, draw_parameters

COLOR = ('brightness', 'contrast', 'lumaflip', 'hue', 'saturation')
GATES_OF_ROTATION = ('rotate_before', 'rotate_after')


def drawn(n, seed=0):
    return draw_parameters(n, torch.Generator().manual_seed(seed))


def only(draws, *names):
    """The same draws with the gates of all other transforms closed."""
    closed = [False] * len(UNIFORM_DRAWS + NORMAL_DRAWS) + [name not in names for name in GATES]
    return draws.masked_fill(torch.tensor(closed), 1.0)


def set_draws(n, **values):
    """Draws with every gate open and the values given; the rest have no effect (uniform 0.5 for those about 0)."""
    table = {name: 0.0 if name in ('xflip', 'rotate90', 'lumaflip') else 0.5 for name in UNIFORM_DRAWS}
    table |= dict.fromkeys(NORMAL_DRAWS, 0.0)
    assert values.keys() <= table.keys()
    table |= values

    row = [table[name] for name in UNIFORM_DRAWS + NORMAL_DRAWS] + [0.0] * len(GATES)
    return torch.tensor([row], dtype=torch.float64).repeat(n, 1)


def at_percentile(n, q):
    """The goldens' draws: uniform q, normal erfinv(2q - 1) without the sqrt 2, second half of the rotation 0."""
    normal = torch.erfinv(torch.tensor(2 * q - 1, dtype=torch.float64)).item()
    draws = dict.fromkeys(UNIFORM_DRAWS, q) | dict.fromkeys(NORMAL_DRAWS, normal)
    return set_draws(n, **(draws | {'rotate_after': 0.5}))


@pytest.mark.parametrize('index', range(5))
def test_golden(index):
    arrays, meta = load_golden('augment_pipe')
    draws = at_percentile(len(arrays['images']), meta['debug_percentiles'][index])
    output = augment(arrays['images'], draws, 1.0)
    assert_close(output, arrays[f'out/{index}'], 2e-5)


def test_probability_zero_changes_nothing():
    images = torch.rand(3, 6, 16, 16) * 2 - 1
    assert torch.equal(augment(images, drawn(3), 0.0), images)
    assert torch.equal(augment(images, drawn(3), torch.tensor(0.0)), images)
    assert torch.equal(augment(images, only(drawn(3)), 1.0), images)


def test_each_gate_opens_its_own_transform():
    """What is left where one gate only is open follows from that transform's draws alone."""
    images = torch.rand(8, 3, 16, 16) * 2 - 1
    for name in GATES:
        assert not torch.equal(augment(images, only(drawn(8), name), 1.0), images), name
        others = {draw: 0.9 for draw in UNIFORM_DRAWS + NORMAL_DRAWS if draw.removesuffix('_x').removesuffix('_y') != name}
        assert torch.equal(augment(images, only(set_draws(8, **others), name), 1.0), images), name


def test_resampling_is_perfect_where_nothing_moves():
    image = torch.rand(1, 3, 17, 24, dtype=torch.float64) * 2 - 1
    assert_close(module._warp(image, torch.eye(3, dtype=torch.float64)), image, 1e-9)


@pytest.mark.parametrize(
    ('name', 'values', 'expected'),
    [
        ('xflip', {'xflip': 0.5}, lambda x: x.flip(3)),
        ('rotate90', {'rotate90': 0.3}, lambda x: torch.rot90(x, 1, [2, 3])),
        ('rotate90', {'rotate90': 0.5}, lambda x: x.flip([2, 3])),
        ('rotate90', {'rotate90': 0.8}, lambda x: torch.rot90(x, -1, [2, 3])),
        # 0.125 * 32 = 4 pixels at most: 2 to the right and 4 up, the uncovered part reflected.
        ('xint', {'xint_x': 0.75, 'xint_y': 0.0}, lambda x: F.pad(x, (2, 0, 0, 4), mode='reflect')[:, :, 4:, :-2]),
        ('xfrac', {'xfrac_x': -0.5}, lambda x: F.pad(x, (0, 2, 0, 0), mode='reflect')[:, :, :, 2:]),
    ],
)
def test_geometry_of_whole_pixels(name, values, expected):
    images = torch.rand(2, 3, 32, 32, dtype=torch.float64) * 2 - 1
    # Sampling on whole pixels of an asymmetric filter bank: exact for translations, not quite for the rest.
    tolerance = 1e-9 if name in ('xint', 'xfrac') else 0.04
    smooth = F.interpolate(torch.rand(2, 3, 6, 6, dtype=torch.float64), size=(32, 32), mode='bicubic')
    assert_close(augment(smooth, only(set_draws(2, **values), name), 1.0), expected(smooth), tolerance)
    if tolerance < 1e-6:
        assert_close(augment(images, only(set_draws(2, **values), name), 1.0), expected(images), tolerance)


def test_sizes_of_geometry():
    """Zoom enlarges, the anisotropy stretches x and squeezes y, by 2^(0.2 n)."""

    def matrix(**values):
        return module.geometry_matrices(set_draws(1, **values), 1.0, 32, 32)[0]

    assert torch.allclose(matrix(scale=5.0).diag(), torch.tensor([0.5, 0.5, 1.0], dtype=torch.float64))
    assert torch.allclose(matrix(aniso=5.0).diag(), torch.tensor([0.5, 2.0, 1.0], dtype=torch.float64))
    quarter = matrix(rotate_before=0.75)
    assert torch.allclose(quarter, matrix(rotate_after=0.75)) and abs(quarter[0, 1]) > 0.999


def test_color_of_single_transforms():
    grey, red = torch.full([1, 3, 4, 4], 0.25), torch.tensor([0.5, 0.0, 0.0]).reshape(1, 3, 1, 1).expand(1, 3, 4, 4)

    def apply(image, name, **values):
        return augment(image, only(set_draws(1, **values), name), 1.0)[0, :, 0, 0].tolist()

    assert apply(grey, 'brightness', brightness=1.0) == pytest.approx([0.45] * 3)
    assert apply(grey, 'contrast', contrast=2.0) == pytest.approx([0.5] * 3)
    assert apply(grey, 'lumaflip', lumaflip=0.5) == pytest.approx([-0.25] * 3)
    assert apply(grey, 'hue', hue=0.9) == pytest.approx([0.25] * 3)
    assert apply(grey, 'saturation', saturation=1.0) == pytest.approx([0.25] * 3)
    assert apply(red, 'hue', hue=0.5 + 1 / 3) == pytest.approx([0, 0.5, 0], abs=1e-6)  # by 120 degrees
    assert apply(red, 'saturation', saturation=1.0) == pytest.approx([5 / 6, -1 / 6, -1 / 6])


def test_color_is_the_same_for_every_triple():
    images = torch.rand(4, 3, 8, 8)
    output = augment(torch.cat([images, images], dim=1), only(drawn(4), *COLOR), 1.0)
    assert torch.equal(output[:, :3], output[:, 3:])


def test_rows_do_not_depend_on_their_batch():
    images, draws = torch.rand(6, 6, 24, 24) * 2 - 1, drawn(6)
    together = augment(images, draws, 0.7)
    assert not torch.equal(together, images)
    for rows in (slice(0, 1), slice(1, 4), slice(4, 6)):
        assert torch.equal(augment(images[rows], draws[rows], 0.7), together[rows])


def test_draws_repeat_with_their_generator():
    first, again, other = drawn(4, seed=1), drawn(4, seed=1), drawn(4, seed=2)
    assert torch.equal(first, again) and not (first == other).any()
    assert len(first.unique()) == first.numel()


def test_margins_are_enough(monkeypatch):
    """All reflected pixels that exist give the same result as the margins computed, unless those are cut off."""
    images, draws = torch.rand(20, 3, 64, 64, dtype=torch.float64), drawn(20)
    output = augment(images, draws, 0.5)
    matrices = module.geometry_matrices(draws, 0.5, 64, 64)
    margins = [max(module._margins(matrix, 64, 64)) for matrix in matrices]
    whole = [row for row in range(20) if margins[row] < 63]
    assert len(whole) > 10 and min(margins) < 20
    monkeypatch.setattr(module, '_margins', lambda inverse, height, width: (63, 63, 63, 63))
    assert_close(output[whole], augment(images, draws, 0.5)[whole], 1e-9)


@pytest.mark.parametrize('p', [0.0, 0.3, 1.0, 1.7])
def test_probability_of_each_gate(p):
    n = 20000
    _, _, gates = module._named(drawn(n), p)
    share = {name: gate.mean().item() for name, gate in gates.items() if name not in GATES_OF_ROTATION}
    share['rotate'] = torch.maximum(*(gates[name] for name in GATES_OF_ROTATION)).mean().item()
    expected = min(p, 1.0)
    for name, value in share.items():
        assert abs(value - expected) <= 4.5 * math.sqrt(expected * (1 - expected) / n), name


def test_gradients_agree_with_finite_differences():
    """The generator's gradients pass through. Nothing is differentiated twice: R1 is taken behind the augmentation."""
    images = (torch.rand(2, 3, 8, 8, dtype=torch.float64) * 2 - 1).requires_grad_()
    draws = drawn(2)
    assert torch.autograd.gradcheck(lambda images: augment(images, draws, 1.0), [images], fast_mode=True)


def test_controller():
    assert adapt_probability(0.2, 0.7, 128, target=0.6, kimg=500) == pytest.approx(0.2 + 128 / 500000)
    assert adapt_probability(0.2, 0.5, 128, target=0.6, kimg=100) == pytest.approx(0.2 - 128 / 100000)
    assert adapt_probability(0.2, 0.6, 128, target=0.6, kimg=500) == 0.2
    assert adapt_probability(0.0001, -1.0, 128, target=0.6, kimg=500) == 0.0
    assert adapt_probability(0.2, float('nan'), 128, target=0.6, kimg=500) == 0.2


def test_bad_input_is_refused():
    with pytest.raises(ValueError, match='triples'):
        augment(torch.zeros(1, 4, 8, 8), drawn(1), 1.0)
    with pytest.raises(ValueError, match='2 rows'):
        augment(torch.zeros(1, 3, 8, 8), drawn(2), 1.0)
