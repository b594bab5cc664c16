import pytest
import torch

from tests.helpers import load_golden

# Tests are small: threads slow them down, many times over where the machine has other work.
torch.set_num_threads(1)


@pytest.fixture(autouse=True)
def _seeded():
    torch.manual_seed(0)


@pytest.fixture
def goldens():
    """`load_golden` as a fixture: goldens(name) -> (arrays, meta)."""
    return load_golden


def pytest_collection_modifyitems(items):
    if torch.cuda.is_available():
        return
    for item in items:
        if 'gpu' in item.keywords:
            item.add_marker(pytest.mark.skip(reason='needs a CUDA device'))
