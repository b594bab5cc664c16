"""What several tests share."""

import contextlib
import json
import os
import signal
from pathlib import Path

import imageio_ffmpeg
import numpy as np
import pytest
import torch
from click.testing import CliRunner

from torch_utils.random import BatchRandom
from training.snapshots import networks_to_data, write_snapshot

ROOT = Path(__file__).resolve().parent.parent
# Arrays recorded from the published implementation. They are not part of the repository: by default they are looked for
# beside it, and MIMIC3D_GOLDENS names another folder.
GOLDENS = Path(os.environ.get('MIMIC3D_GOLDENS') or ROOT.parent / 'shared' / 'goldens')
FOX = ROOT.parent / 'shared' / 'data' / 'fox'  # photographs with a transforms.json, not part of the repository either


def load_golden(name):
    """(arrays, meta) of the golden `name`: a dict of tensors and a dict. Skips the calling test where it is absent."""
    path = GOLDENS / f'{name}.npz'
    if not path.is_file():
        pytest.skip(f'golden {name}.npz not found (set MIMIC3D_GOLDENS to the folder that holds it)')
    with np.load(path) as archive:
        arrays = {key: archive[key] for key in archive.files}
    meta = json.loads(bytes(arrays.pop('meta')))
    return {key: torch.from_numpy(value) for key, value in arrays.items()}, meta


class Prescribed(BatchRandom):
    """A BatchRandom that gives the tensors given where a loss draws; normal numbers are 0 where there are none."""

    def __init__(self, batch, corners=None, points=None, perturbation=None):
        super().__init__(batch)
        self.corners, self.points, self.perturbation = corners, points, perturbation

    def normal(self, *shape):
        return torch.zeros(self.batch, *shape) if self.perturbation is None else self.perturbation

    def uniform(self, *shape):
        assert self.points.shape == (self.batch, *shape)
        return self.points

    def integers(self, high, *shape):
        assert self.corners.shape == (self.batch, *shape) and self.corners.max() < high
        return self.corners


def worst_error(actual, expected):
    """Largest difference, relative to the largest magnitude of `expected`. Shapes must agree."""
    assert actual.shape == expected.shape, f'{tuple(actual.shape)} is not {tuple(expected.shape)}'
    actual, expected = actual.detach(), expected.detach()
    return float((actual - expected).abs().max() / expected.abs().max().clamp_min(1e-30))


def assert_close(actual, expected, tolerance=1e-4):
    """Agreement within `tolerance` of the expected output's own scale; not-a-number never agrees."""
    error = worst_error(actual, expected)
    assert error <= tolerance, f'worst error {error:.3g} of the output scale, allowed {tolerance:.3g}'


def assert_same_weights(module, expected):
    assert type(module) is type(expected)
    own, other = module.state_dict(), expected.state_dict()
    assert own.keys() == other.keys()
    assert all(torch.equal(own[name], other[name]) for name in own)


def broken(path, content=b'not a snapshot'):
    path.write_bytes(content)
    return path


def invoke(command, *arguments):
    """The result of a script's `main` in this process."""
    return CliRunner().invoke(command, [str(argument) for argument in arguments])


def succeed(command, *arguments):
    """The result of a script that must end well."""
    result = invoke(command, *arguments)
    assert result.exit_code == 0, (result.output, result.exception)
    return result


def error_line(result):
    """The one line with which a script must end that cannot do what is asked, without a traceback."""
    assert result.exit_code != 0 and isinstance(result.exception, SystemExit), (result.output, result.exception)
    (line,) = [line for line in result.output.splitlines() if line.startswith('Error: ')]
    assert result.output.rstrip().endswith(line), result.output
    return line


def assert_one_clear_line(result, message):
    assert message in error_line(result)


def read_video(path):
    reader = imageio_ffmpeg.read_frames(str(path))
    meta = next(reader)
    width, height = meta['size']
    return meta, [np.frombuffer(frame, np.uint8).reshape(height, width, 3) for frame in reader]


class Hanging(BaseException):
    """Raised by `deadline`; no reader takes it for a damaged file."""


@contextlib.contextmanager
def deadline(seconds=20):
    """Raises Hanging in the block if it takes longer. For the main thread."""

    def late(*_):
        raise Hanging(f'it takes more than {seconds} s')

    before = signal.signal(signal.SIGALRM, late)
    signal.alarm(seconds)
    try:
        yield
    finally:
        signal.alarm(0)
        signal.signal(signal.SIGALRM, before)


def save_snapshot(path, networks, about):
    """A snapshot file of networks (by name, None left out) and `about` (plain data)."""
    write_snapshot(path, networks_to_data(networks), about)
