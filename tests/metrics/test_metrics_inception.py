"""Metrics with the real Inception: minutes on a CPU. The weights are random; it is the arithmetic that is compared."""

import functools
import json
import subprocess
import sys

import pytest
import torch

from benchmarks.metrics import random_detector_weights
from calc_metrics import compute_metrics
from metrics import results
from tests.metrics.test_metrics import write_set
from tests.scripts.test_calc_metrics import request_for
from tests.small_detector import smooth_images, write_images
from torch_utils import distributed

pytestmark = pytest.mark.slow
NAMES = ['fid40_full', 'kid40_full', 'pr403_full', 'is40']


@pytest.fixture(scope='module')
def folder(tmp_path_factory):
    """Two folders of images, the second one as a data set, too, and random weights."""
    folder = tmp_path_factory.mktemp('inception')
    write_images(folder / 'evaluated', smooth_images(40, seed=2, mean=140))
    write_images(folder / 'real', smooth_images(40, seed=1))
    write_set(folder / 'real.zip', smooth_images(40, seed=1))
    torch.manual_seed(0)
    random_detector_weights(folder / 'weights.pth')
    return folder


@functools.cache
def ours(folder, processes):
    outdir = folder / f'ours{processes}'
    options = {'detector': str(folder / 'weights.pth'), 'cache_dir': str(folder / f'cache{processes}')}
    request = request_for(NAMES, outdir, options, images=str(folder / 'evaluated'), data=str(folder / 'real.zip'), gpus=processes)
    distributed.launch(functools.partial(compute_metrics, request), processes)
    return {record['metric']: record for record in results.read_folder(outdir)}


def test_metrics_agree_with_torch_fidelitys_command_with_random_weights(folder):
    command = [
        sys.executable,
        '-m',
        'torch_fidelity.fidelity',
        '--cpu',
        '--fid',
        '--kid',
        '--prc',
        '--isc',
        '--json',
        '--silent',
        '--kid-subset-size',
        '40',
        '--feature-extractor',
        'inception-v3-compat',
        '--feature-extractor-weights-path',
        str(folder / 'weights.pth'),
        '--input1',
        str(folder / 'evaluated'),
        '--input2',
        str(folder / 'real'),
        '--no-cache',
    ]
    theirs = json.loads(subprocess.run(command, check=True, capture_output=True, text=True, timeout=900).stdout)
    found = ours(folder, 1)
    assert found['fid40_full']['value'] == pytest.approx(theirs['frechet_inception_distance'], rel=1e-3)
    assert found['kid40_full']['value'] == pytest.approx(theirs['kernel_inception_distance_mean'], rel=1e-3)
    assert found['pr403_full']['parts']['precision'] == pytest.approx(theirs['precision'], rel=1e-3)
    assert found['pr403_full']['parts']['recall'] == pytest.approx(theirs['recall'], rel=1e-3)
    assert found['is40']['value'] == pytest.approx(theirs['inception_score_mean'], rel=1e-3)
    assert 0 < theirs['precision'] < 1 and theirs['frechet_inception_distance'] > 1e-3  # else the comparison says little


@pytest.mark.parametrize('processes', [2, 3])
def test_the_number_of_processes_changes_nothing_with_inception(folder, processes):
    for name, record in ours(folder, processes).items():
        assert record['value'] == pytest.approx(ours(folder, 1)[name]['value'], rel=1e-6), name
