"""Agreement with the published implementation (where its goldens are at hand), and with this project's own past."""

import math

import numpy as np
import pytest
import torch

from tests.goldens import frozen
from tests.helpers import assert_close
from tests.parity import COMPARISONS, compare


@pytest.fixture(autouse=True, scope='module')
def _one_thread():
    """Tensors this small wait for threads longer than they compute."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.mark.parametrize('name', COMPARISONS)
def test_agrees_with_the_published_implementation(name):
    """`python -m tests.parity` prints the same rows."""
    rows = compare(name).rows
    assert rows and all(math.isfinite(row.allowed) for row in rows)
    wrong = [
        f'{row.quantity}: {row.error:.2g}, allowed {row.allowed:.0e} {row.worst}' for row in rows if not row.error <= row.allowed
    ]
    assert not wrong, f'{name}: ' + '; '.join(wrong)


@pytest.mark.parametrize('name', frozen.CASES)
def test_agrees_with_the_frozen_outputs(name):
    with np.load(frozen.FOLDER / f'{name}.npz') as archive:
        expected = {key: torch.from_numpy(archive[key]) for key in archive.files}
    actual = frozen.CASES[name]()
    assert actual.keys() == expected.keys()
    for key, value in actual.items():
        if key.startswith('gradients/'):
            assert value.shape == expected[key].shape
            allowed = 2e-3 * expected[key] + 1e-6 * expected[key].max()
            assert ((value - expected[key]).abs() <= allowed).all(), key
        else:
            assert torch.isfinite(value).all() and value.abs().max() > 0, key
            assert_close(value.detach(), expected[key], 1e-4)
