"""Types of option values."""

import click
import pytest

from dnnlib.params import grid_size, pixel_size, seed_list, view_list


def test_parameter_types():
    assert seed_list('0-2, 7,5-5') == [0, 1, 2, 7, 5]
    assert view_list('0/0,-0.4/0.1') == [(0.0, 0.0), (-0.4, 0.1)]
    assert grid_size('4x2') == (4, 2)
    for bad in ('0x2', '4', 'x'):
        with pytest.raises(click.BadParameter, match='columns x rows'):
            grid_size(bad)
    assert pixel_size('135x1024') == (135, 1024)
    with pytest.raises(click.BadParameter, match='width x height'):
        pixel_size('0x240')
