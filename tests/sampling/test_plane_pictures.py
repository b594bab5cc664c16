"""Where features of planes are large."""

import torch
from PIL import Image

from sampling.plane_pictures import draw_planes, plane_norms
from training.networks.generator import Planes
from training.rendering.volume import sample_planes

AXES = ('xy', 'yz', 'zx')


def test_norms_are_over_channels_and_the_sum_is_what_the_3d_branch_looks_up():
    coarse, residual = torch.randn(1, 3, 5, 4, 4), torch.randn(1, 3, 5, 8, 8)
    norms = plane_norms(Planes(coarse, residual))
    torch.testing.assert_close(norms['coarse'], coarse[0].square().sum(dim=1).sqrt())
    torch.testing.assert_close(norms['residual'], residual[0].square().sum(dim=1).sqrt())
    column, row = 3, 2
    x, y = ((torch.tensor(index) + 0.5) / 8 * 2 - 1 for index in (column, row))
    point = torch.stack([x, y, x])[None, None]  # box of side 2; on the first plane, this is the middle of a texel
    looked_up = sum(sample_planes(planes[:, :1], point, 2.0, AXES[:1]) for planes in (coarse, residual))
    torch.testing.assert_close(norms['sum'][0, row, column], looked_up.norm())
    assert set(plane_norms(Planes(coarse, None))) == {'coarse'}


BRIGHTEST, QUARTER = (253, 231, 36), (59, 82, 139)  # viridis at 1 and 1/4


def colors(path, left, top, right, bottom):
    """The colours of a part of a picture; bounds: shares of its width and height."""
    picture = Image.open(path).convert('RGB')
    box = (left * picture.width, top * picture.height, right * picture.width, bottom * picture.height)
    return {color for _, color in picture.crop([int(side) for side in box]).getcolors(2**24)}


def test_two_networks_share_one_scale_of_colours(tmp_path):
    bright, dark = (Planes(torch.full([1, 3, 4, 2, 2], value), None) for value in (1.0, 0.25))
    draw_planes([('one', bright, AXES)], tmp_path / 'one.png')
    draw_planes([('other', dark, AXES)], tmp_path / 'other.png')
    draw_planes([('one', bright, AXES), ('other', dark, AXES)], tmp_path / 'both.png')
    assert all(BRIGHTEST in colors(tmp_path / name, 0, 0, 0.8, 1) for name in ('one.png', 'other.png'))
    left, right = (colors(tmp_path / 'both.png', half / 2, 0, half / 2 + 0.45, 1) for half in (0, 1))
    assert BRIGHTEST in left and QUARTER in right and QUARTER not in left and BRIGHTEST not in right


def test_y_points_up(tmp_path):
    upwards = torch.zeros(1, 3, 1, 2, 2)
    upwards[0, 0, 0, 1] = 1  # rows of the xy plane are y
    upwards[0, 1, 0, :, 1] = 1  # columns of the yz plane are y
    draw_planes([('', Planes(upwards, None), AXES)], tmp_path / 'planes.png')
    for left in (0, 0.3):
        upper, lower = (colors(tmp_path / 'planes.png', left, top, left + 0.2, top + 0.4) for top in (0, 0.55))
        assert BRIGHTEST in upper and BRIGHTEST not in lower
