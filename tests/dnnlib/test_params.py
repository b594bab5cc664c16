"""Types of option values."""

import click
import pytest

from dnnlib.params import GridSize, PixelSize, SeedList, ViewList


def test_parameter_types():
    assert SeedList().convert('0-2, 7,5-5', None, None) == [0, 1, 2, 7, 5]
    assert ViewList().convert('0/0,-0.4/0.1', None, None) == [(0.0, 0.0), (-0.4, 0.1)]
    assert GridSize().convert('4x2', None, None) == (4, 2)
    for bad in ('0x2', '4', 'x'):
        with pytest.raises(click.BadParameter, match='columns x rows'):
            GridSize().convert(bad, None, None)
    assert PixelSize().convert('135x1024', None, None) == (135, 1024)
    with pytest.raises(click.BadParameter, match='width x height'):
        PixelSize().convert('0x240', None, None)
