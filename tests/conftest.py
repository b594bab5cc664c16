import os

import pytest
import torch

import dataset_tool
from sampling import subjects
from tests.helpers import load_golden, save_snapshot, succeed
from tests.photographs import write_photographs
from tests.tiny import tiny_generator, train_tiny

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
    succeed(dataset_tool.main, 'demo', f'--dest={path}', '--resolution=32', '--images=24')
    return path


@pytest.fixture(scope='session')
def finished(data, tmp_path_factory):
    """A finished run of both stages: its folder, its last snapshot as plain data, its statistics."""
    outdir = tmp_path_factory.mktemp('runs') / 'one'
    return outdir, *train_tiny(data, outdir)


@pytest.fixture(scope='session')
def stages(tmp_path_factory):
    """A folder with two snapshots: 'stage2.pkl' with, 'stage1.pkl' without the 3D branch."""
    folder = tmp_path_factory.mktemp('networks')
    save_snapshot(folder / 'stage2.pkl', {'G_ema': tiny_generator().eval()}, {})
    save_snapshot(folder / 'stage1.pkl', {'G_ema': tiny_generator(branch_3d='none').eval()}, {})
    return folder


@pytest.fixture
def networks(stages, monkeypatch):
    """The two snapshots, in the current folder, as generators by name."""
    monkeypatch.chdir(stages)
    return {name: subjects.load_generator(f'{name}.pkl', 'cpu') for name in ('stage1', 'stage2')}


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
