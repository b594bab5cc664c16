"""Labelled figures of branches."""

import pytest
import torch
from PIL import Image

from sampling.figures import BranchRow, draw_branches

RED, GREEN, BLUE = (200, 0, 0), (0, 200, 0), (0, 0, 200)


def plain(color, height, width):
    return torch.tensor(color, dtype=torch.uint8)[:, None, None].expand(3, height, width)


def row(branch):
    return BranchRow('seed 3', branch, plain(BLUE, 9, 8), 0.5, image=plain(RED, 8, 8), geometry=plain(GREEN, 300, 300))


def colors(picture, left, top, right, bottom):
    """The colours of a part of a picture; bounds: shares of its width and height."""
    box = (left * picture.width, top * picture.height, right * picture.width, bottom * picture.height)
    return {color for _, color in picture.crop([int(side) for side in box]).getcolors(2**24)}


def test_image_geometry_and_texture_stand_side_by_side(tmp_path):
    draw_branches([row('2d'), row('3d')], 0.25, tmp_path / 'figure.png')
    picture = Image.open(tmp_path / 'figure.png').convert('RGB')
    assert picture.height / picture.width == pytest.approx((2 * 2.2 + 0.6) / (3 * 2.2 + 0.4), rel=0.01)
    for top in (0.1, 0.6):
        thirds = [colors(picture, left, top, left + 0.15, top + 0.25) for left in (0.12, 0.45, 0.8)]
        assert [RED in third for third in thirds] == [True, False, False]
        assert [GREEN in third for third in thirds] == [False, True, False]
        assert [BLUE in third for third in thirds] == [False, False, True]


@pytest.mark.parametrize('line, above', [(0.25, True), (0.75, False)])
def test_the_line_is_marked_in_the_image(tmp_path, line, above):
    dashes = (214, 39, 40)
    draw_branches([row('3d')], line, tmp_path / 'figure.png')
    picture = Image.open(tmp_path / 'figure.png').convert('RGB')
    upper, lower = (colors(picture, 0.1, top, 0.3, top + 0.45) for top in (0, 0.5))
    assert (dashes in upper) is above and (dashes in lower) is not above


def test_panels_have_the_pixels_of_large_pictures(tmp_path):
    draw_branches([row('3d')._replace(geometry=plain(GREEN, 900, 900))], 0.5, tmp_path / 'figure.png')
    assert Image.open(tmp_path / 'figure.png').width > 3 * 900
