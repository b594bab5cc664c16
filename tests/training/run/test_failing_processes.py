"""Whole runs of which one process fails: they end, or go on, for a named reason."""

import functools
import os
import re
import shutil
import subprocess
import sys

import pytest

import dataset_tool
from metrics.images import READ_BATCH
from metrics.monitoring import Monitor
from tests.helpers import ROOT, succeed
from tests.tiny import tiny_config, tiny_discriminator_config, tiny_run
from tests.torch_utils import failing
from tests.torch_utils.failing import LONGEST_S
from torch_utils import distributed
from training.data.dataset import batch_indices
from training.training_loop import train


def test_a_broken_picture_in_one_processs_share_of_a_metric_is_named_and_the_training_goes_on(data, tmp_path):
    """A process that fails in a metric does not meet the others in another collective."""
    shutil.copytree(data, tmp_path / 'set')
    config = tiny_run(
        str(tmp_path / 'set'),
        str(tmp_path / 'run'),
        threads=1,
        gpus=2,
        metrics=('swd40', 'swd8'),
        snapshot_ticks=1,
        stage2=tiny_run('', '').stage2.replace(kimg=0),
        generator=tiny_config(image_resolution=64, sr_input_resolution=16),
        discriminator=tiny_discriminator_config(resolution=64),
    )
    met = batch_indices(40, config.seed, 0, 16).tolist()
    broken = next(index for index in range(READ_BATCH, 40) if index not in met)  # the second process reads it
    picture = sorted((tmp_path / 'set').rglob('*.png'))[broken]
    picture.write_bytes(picture.read_bytes()[:200])
    (tmp_path / 'run').mkdir()
    monitor = Monitor(list(config.metrics), config.data, config.mirror, config.outdir, workers=0)
    assert distributed.launch(functools.partial(train, config, None, monitor), 2)
    log = (tmp_path / 'run' / 'log.txt').read_text()
    assert re.search(rf'no swd40, swd8 of this snapshot, 2d branch: process 1 of 2: .*{picture.name} cannot be read', log)
    assert 'Traceback' not in log and (tmp_path / 'run' / 'finished').exists()


def test_a_bug_on_one_process_ends_both_and_its_traceback_is_in_the_log(data, tmp_path):
    config = tiny_run(
        str(data),
        str(tmp_path / 'run'),
        threads=1,
        gpus=2,
        generator=tiny_config(image_resolution=64, sr_input_resolution=16),
        discriminator=tiny_discriminator_config(resolution=64),
    )
    (tmp_path / 'run').mkdir()
    with pytest.raises(RuntimeError, match="KeyError: 'a bug'"):
        distributed.launch(functools.partial(failing.train_with_a_bug, config), 2)
    log = (tmp_path / 'run' / 'log.txt').read_text()
    assert (
        "the run ends: process 1 of 2 has failed: KeyError: 'a bug', in step 0 of stage 1" in log
        and 'in discriminator_loss' in log
    )


@pytest.fixture(scope='module')
def data(tmp_path_factory):
    """A demo set of 40 images of 64x64, as a folder."""
    path = tmp_path_factory.mktemp('data') / 'heads'
    succeed(dataset_tool.main, 'demo', f'--dest={path}', '--images=40')
    return path


def torchrun(fault, script, *arguments, restarts=0):
    """The output of a script in two processes, of which the second has a fault at first (one_fails.py)."""
    command = [sys.executable, '-m', 'torch.distributed.run', '--standalone', '--nproc-per-node=2', f'--max-restarts={restarts}']
    done = subprocess.run(
        [*command, 'tests/training/run/one_fails.py', fault, script, *map(str, arguments)],
        capture_output=True,
        text=True,
        cwd=ROOT,
        env={**os.environ, 'OMP_NUM_THREADS': '1'},
        timeout=3 * LONGEST_S,
    )
    assert done.returncode == (0 if restarts else 1)
    return done.stdout + done.stderr


@pytest.mark.slow
@pytest.mark.parametrize(
    'fault, reason, logged',
    [
        ('lack_weights', 'process 1 of 2: vgg16.pth is not on this machine', None),
        ('lack_data', 'process 1 of 2: data.zip does not exist', None),
        ('fill_gpu', 'process 1 of 2 has failed: the GPU has too little memory; lower --batch-gpu', 'too little memory'),
        ('meet_a_bug', "process 1 of 2 has failed: KeyError: 'a bug'", 'in discriminator_loss|in fail'),
        ('be_killed', 'process 0 of 2 has lost the others: process 1 was killed or hangs', 'process 1 was killed'),
    ],
)
def test_under_torchrun_a_training_ends_for_the_reason_of_one_process(fault, reason, logged, data, tmp_path):
    imitation = 'lpips' if fault == 'lack_weights' else 'pyramid'
    output = torchrun(
        fault, 'train', '--preset=demo', f'--data={data}', f'--run-dir={tmp_path / "run"}', f'--imitation={imitation}'
    )
    assert f'Error: {reason}' in output
    assert logged is None or re.search(logged, (tmp_path / 'run' / 'log.txt').read_text())


@pytest.mark.slow
def test_under_torchrun_what_ended_a_run_does_not_end_its_restart(data, tmp_path):
    arguments = ('--preset=demo', f'--data={data}', f'--run-dir={tmp_path / "run"}', '--stage1-kimg=0.032', '--stage2-kimg=0')
    torchrun('meet_a_bug', 'train', *arguments, restarts=1)
    assert 'the run ends: process 1 of 2 has failed' in (tmp_path / 'run' / 'log.txt').read_text()
    assert (tmp_path / 'run' / 'finished').exists()


@pytest.mark.slow
def test_under_torchrun_a_metric_ends_for_the_reason_of_one_process(data, tmp_path):
    output = torchrun(
        'break_a_metric', 'calc_metrics', '--metrics=swd40', f'--images={data}', f'--data={data}', f'--outdir={tmp_path}'
    )
    assert 'Error: process 1 of 2: the metric broke' in output and not list(tmp_path.iterdir())
