import os

import pytest
import torch
from click.testing import CliRunner

import dataset_tool
from tests.helpers import load_golden
from tests.photographs import write_photographs
from tests.tiny import train_tiny

# Tests are small: threads slow them down, many times over where the machine has other work.
torch.set_num_threads(1)


@pytest.fixture(autouse=True)
def _seeded():
    torch.manual_seed(0)


@pytest.fixture
def goldens():
    """`load_golden` as a fixture: goldens(name) -> (arrays, meta)."""
    return load_golden


@pytest.fixture
def photographs(tmp_path):
    return write_photographs(tmp_path)


@pytest.fixture(scope='session')
def data(tmp_path_factory):
    """A demo set of 24 images of 32x32."""
    path = tmp_path_factory.mktemp('data') / 'heads.zip'
    result = CliRunner().invoke(dataset_tool.main, ['demo', f'--dest={path}', '--resolution=32', '--images=24'])
    assert result.exit_code == 0, result.output
    return path


@pytest.fixture(scope='session')
def finished(data, tmp_path_factory):
    """A finished run of both stages: its folder, its last snapshot as plain data, its statistics."""
    outdir = tmp_path_factory.mktemp('runs') / 'one'
    return outdir, *train_tiny(data, outdir)


def pytest_configure(config):
    """Hide GPUs from all but `pytest -m gpu` and what it starts: the other tests compare bit-exactly, and start more processes
    than there may be GPUs. Torch looks at the variable when CUDA is first needed; processes that tests start inherit it."""
    if config.option.markexpr == 'gpu':
        os.environ['MIMIC3D_GPU_TESTS'] = '1'
    elif 'MIMIC3D_GPU_TESTS' not in os.environ:
        os.environ['CUDA_VISIBLE_DEVICES'] = ''


def pytest_collection_modifyitems(items):
    if torch.cuda.is_available():
        return
    for item in items:
        if 'gpu' in item.keywords:
            item.add_marker(pytest.mark.skip(reason='needs a CUDA device'))
