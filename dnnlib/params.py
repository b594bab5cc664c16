"""Parameter types of the command lines: paths, finite numbers, seeds, viewpoints and grid sizes.

Lists and sizes are functions from what is typed to its value, which raise click.BadParameter.
"""

import math
import re

import click

from dnnlib.errors import UserError
from dnnlib.files import absolute

_LARGEST_SEED = 2**32 - 1  # of NumPy's RandomState
_MOST_SEEDS = 10**6  # a longer list is a slip of the keyboard, and would fill the memory before it failed


class UserPath(click.Path):
    """A path, absolute from here on: `~` is the home, and what is relative is meant from the current folder.

    Options are click.Path's. words: values that are no paths, and stay as they are.
    """

    def __init__(self, *, words=(), **options):
        super().__init__(**options)
        self.words = words

    def convert(self, value, param, ctx):
        if value in self.words:
            return value
        try:
            return super().convert(absolute(value), param, ctx)
        except UserError as error:
            self.fail(str(error), param, ctx)


class _Finite:
    """Number types that take neither `inf` nor `nan`."""

    def convert(self, value, param, ctx):
        number = super().convert(value, param, ctx)
        if not math.isfinite(number):
            self.fail(f'{value} is not a finite number', param, ctx)
        return number


class FiniteFloat(_Finite, click.types.FloatParamType):
    """A finite number."""


class FiniteRange(_Finite, click.FloatRange):
    """A finite number within bounds, those of click.FloatRange."""


def seed_list(text):
    """`0-15,20` -> [0, 1, ..., 15, 20]."""
    seeds = []
    for part in text.split(','):
        match = re.fullmatch(r'\s*(\d+)(?:-(\d+))?\s*', part)
        if not match:
            raise click.BadParameter(f'{part!r} is neither a number nor a range; write seeds like 0-15,20')
        first, last = int(match[1]), int(match[2] or match[1])
        if not first <= last <= _LARGEST_SEED:
            raise click.BadParameter(f'{part!r}: a range runs upwards, to {_LARGEST_SEED} at most')
        if len(seeds) + last - first >= _MOST_SEEDS:
            raise click.BadParameter(f'{text!r} holds more than {_MOST_SEEDS} seeds')
        seeds += range(first, last + 1)
    return seeds


def name_list(text):
    """`fid2k_full,swd` -> ('fid2k_full', 'swd'); `none` -> ()."""
    names = () if text == 'none' else tuple(name.strip() for name in text.split(','))
    if not all(names):
        raise click.BadParameter(f'{text!r} has an empty name; write names like fid2k_full,swd')
    return names


def view_list(text):
    """`0/0,-0.4/0.1` -> [(0.0, 0.0), (-0.4, 0.1)]: yaw/pitch pairs, radians."""
    views = []
    for part in text.split(','):
        try:
            yaw, pitch = (float(angle) for angle in part.split('/'))
        except ValueError:
            raise click.BadParameter(f'{part!r} is not yaw/pitch in radians; write views like 0/0,-0.4/0.1') from None
        if not (math.isfinite(yaw) and abs(pitch) <= math.pi / 2):
            raise click.BadParameter(f'{part!r}: yaw must be finite and pitch within +-pi/2 radians')
        views.append((yaw, pitch))
    return views


def number_list(text):
    """`-0.5,0,1` -> (-0.5, 0.0, 1.0): finite numbers."""
    numbers = tuple(_number(part) for part in text.split(','))
    if len(set(numbers)) < len(numbers):
        raise click.BadParameter(f'{text!r} has a number twice: leave one out')
    return numbers


def point(text):
    """`0,0,0.2` -> (0.0, 0.0, 0.2): a point of three coordinates."""
    coordinates = tuple(_number(part) for part in text.split(','))
    if len(coordinates) != 3:
        raise click.BadParameter(f'{text!r} is not a point; write three coordinates like 0,0,0.2')
    return coordinates


def _number(text):
    try:
        number = float(text)
    except ValueError:
        raise click.BadParameter(f'{text!r} is not a number') from None
    if not math.isfinite(number):
        raise click.BadParameter(f'{text} is not a finite number')
    return number


def grid_size(text):
    """`4x2` -> (4, 2): columns and rows."""
    return _pair(text, 3, 'is not a grid; write columns x rows like 4x2')


def pixel_size(text):
    """`135x240` -> (135, 240): width and height."""
    return _pair(text, 5, 'is not a size in pixels; write width x height like 135x240')


def _pair(text, digits, failure):
    """Two positive numbers of at most so many digits."""
    number = rf'([1-9]\d{{0,{digits - 1}}})'
    match = re.fullmatch(f'{number}x{number}', text)
    if not match:
        raise click.BadParameter(f'{text!r} {failure}')
    return int(match[1]), int(match[2])
