"""Parameter types of the command lines: paths, finite numbers, seeds, viewpoints and grid sizes."""

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


class SeedList(click.ParamType):
    """`0-15,20` -> [0, 1, ..., 15, 20]."""

    name = 'seeds'

    def convert(self, value, param, ctx):
        if not isinstance(value, str):
            return value
        seeds = []
        for part in value.split(','):
            match = re.fullmatch(r'\s*(\d+)(?:-(\d+))?\s*', part)
            if not match:
                self.fail(f'{part!r} is neither a number nor a range; write seeds like 0-15,20', param, ctx)
            first, last = int(match[1]), int(match[2] or match[1])
            if not first <= last <= _LARGEST_SEED:
                self.fail(f'{part!r}: a range runs upwards, to {_LARGEST_SEED} at most', param, ctx)
            if len(seeds) + last - first >= _MOST_SEEDS:
                self.fail(f'{value!r} holds more than {_MOST_SEEDS} seeds', param, ctx)
            seeds += range(first, last + 1)
        return seeds


class NameList(click.ParamType):
    """`fid2k_full,swd` -> ('fid2k_full', 'swd'); `none` -> ()."""

    name = 'names'

    def convert(self, value, param, ctx):
        if not isinstance(value, str):
            return value
        if value == 'none':
            return ()
        names = tuple(name.strip() for name in value.split(','))
        if not all(names):
            self.fail(f'{value!r} has an empty name; write names like fid2k_full,swd', param, ctx)
        return names


class ViewList(click.ParamType):
    """`0/0,-0.4/0.1` -> [(0.0, 0.0), (-0.4, 0.1)]: yaw/pitch pairs, radians."""

    name = 'views'

    def convert(self, value, param, ctx):
        if not isinstance(value, str):
            return value
        return [self._view(part, param, ctx) for part in value.split(',')]

    def _view(self, part, param, ctx):
        try:
            yaw, pitch = (float(angle) for angle in part.split('/'))
        except ValueError:
            self.fail(f'{part!r} is not yaw/pitch in radians; write views like 0/0,-0.4/0.1', param, ctx)
        if not (math.isfinite(yaw) and abs(pitch) <= math.pi / 2):
            self.fail(f'{part!r}: yaw must be finite and pitch within +-pi/2 radians', param, ctx)
        return yaw, pitch


class _Pair(click.ParamType):
    """`4x2` -> (4, 2): two positive numbers of at most `digits` digits."""

    digits: int
    failure: str

    def convert(self, value, param, ctx):
        if not isinstance(value, str):
            return value
        number = rf'([1-9]\d{{0,{self.digits - 1}}})'
        match = re.fullmatch(f'{number}x{number}', value)
        if not match:
            self.fail(f'{value!r} {self.failure}', param, ctx)
        return int(match[1]), int(match[2])


class GridSize(_Pair):
    """`4x2` -> (4, 2): columns and rows."""

    name, digits, failure = 'grid', 3, 'is not a grid; write columns x rows like 4x2'


class PixelSize(_Pair):
    """`135x240` -> (135, 240): width and height."""

    name, digits, failure = 'pixels', 5, 'is not a size in pixels; write width x height like 135x240'
