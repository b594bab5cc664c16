"""One process fails, and all of them hear of it: they end, or go on, for the same named reason."""

import functools
import multiprocessing
import os
import re
import shutil
import subprocess
import sys

import pytest

import dataset_tool
from dnnlib.errors import UserError
from metrics.images import READ_BATCH
from metrics.monitoring import Monitor
from tests.helpers import ROOT, succeed
from tests.tiny import tiny_config, tiny_discriminator_config, tiny_run
from tests.torch_utils import failing
from torch_utils import distributed
from training.data.dataset import batch_indices
from training.training_loop import train

LONGEST_S = 60  # a process that waits for another one would wait longer


@pytest.fixture(scope='module')
def seen():
    """What two processes see of the blocks in failing.py."""
    return distributed.launch(failing.go_through_all_blocks, 2)


@pytest.mark.parametrize(
    'block, kind, message',
    [
        ('memory', 'OutOfMemoryError', 'process 1 of 2: CUDA out of memory'),
        ('file', 'UserError', 'process 1 of 2: a/b: Permission denied; choose another path or make room'),
        ('bug', 'UnexpectedError', "process 1 of 2: KeyError: 'a bug'"),
        ('both', 'Broken', 'both alike'),
        ('each', 'Broken', 'process 0 of 2: process 0 in its way'),
        ('fail_before_a_collective', 'Broken', 'process 1 of 2: it broke'),
        ('fail_between_collectives', 'UnexpectedError', "process 1 of 2: KeyError: 'a bug'"),
        ('fail_outside_an_inner_block', 'Broken', 'process 1 of 2: outside'),
        ('fail_in_an_inner_block', 'Broken', 'process 1 of 2: inside'),
        ('swallow', 'Broken', 'process 1 of 2: it broke'),
        ('work_long', 'Broken', 'process 1 of 2: it broke'),
    ],
)
def test_a_block_ends_on_both_processes_alike(block, kind, message, seen):
    assert seen[block] == [(kind, message)] * 2


def test_a_block_in_which_nothing_happens_says_nothing(seen):
    assert seen['nothing'] == [None, None]


def test_what_only_the_first_process_does_fails_on_both(seen):
    assert seen['first'] == ['the first one broke'] * 2


def test_one_processs_obstacle_is_everyones(seen):
    assert seen['problem'] == ['process 1 of 2: no weights'] * 2
    assert (seen['same problem'], seen['no problem']) == (['no weights'] * 2, [None, None])


def test_operators_that_one_process_cannot_build_are_used_by_none(seen):
    reason = 'bias_act: using plain PyTorch, which is slower, because process 1 of 2: the compiler is missing'
    assert seen['operators'] == [('ref', [reason]), ('ref', [])]


def test_kernels_that_one_process_cannot_build_are_used_by_none(seen):
    """And what was found while a GPU was full is not kept."""
    assert seen['kernels'] == ['process 1 of 2: Triton cannot build them: no compiler'] * 2


def test_a_full_gpu_is_no_reason_to_render_without_kernels(seen):
    assert seen['full gpu'] == [('OutOfMemoryError', 'process 1 of 2: CUDA out of memory. Tried to allocate')] * 2


def test_processes_of_which_different_things_are_demanded_stop(seen):
    assert (
        seen['demands']
        == [
            ('UserError', "process 1 of 2: MIMIC3D_OPS is 'ref' here, but None for process 0; make it the same for all processes")
        ]
        * 2
    )


def test_tensors_travel_from_the_first_process(seen):
    assert seen['tensors'] == [[0, 1, 2]] * 2


def test_blocks_cost_a_single_process_nothing():
    with pytest.raises(KeyError), distributed.together():
        raise KeyError('as it is')
    assert distributed.from_first(lambda: 3) == 3 and distributed.first_problem('this') == 'this'


# A process that ends between two collectives


def launched(function, errors):
    """In a process of its own, so that one that waits for ever can be ended."""
    try:
        distributed.launch(function, 2)
    except Exception as error:
        errors.put((type(error).__name__, str(error)))
        sys.exit(1)


def error_of_a_launch(function, *arguments):
    context = multiprocessing.get_context('spawn')
    errors = context.SimpleQueue()
    process = context.Process(target=launched, args=(functools.partial(function, *arguments), errors))
    process.start()
    process.join(LONGEST_S)
    assert not process.is_alive() and not errors.empty()
    return errors.get()


@pytest.mark.slow
@pytest.mark.parametrize('rank', [0, 1])
@pytest.mark.parametrize('hang', [False, True])
@pytest.mark.parametrize(
    'failure, kind, message',
    [
        (failing.mistake, 'Broken', 'process RANK of 2: a mistake'),
        (failing.bug, 'RuntimeError', "KeyError: 'a bug'"),
        (failing.be_killed, 'UserError', 'process RANK was killed by SIGKILL'),
        (failing.stop_without_a_word, None, 'process RANK '),
    ],
)
def test_a_process_that_ends_takes_the_other_along(failure, kind, message, rank, hang):
    found, text = error_of_a_launch(failing.fail_between_steps, failure, rank, hang)
    assert kind in (found, None) and message.replace('RANK', str(rank)) in text


@pytest.mark.slow
@pytest.mark.parametrize('rank', [0, 1])
def test_a_process_that_ends_before_they_meet_takes_the_other_along(rank):
    assert error_of_a_launch(failing.fail_before_they_meet, rank) == ('Broken', f'process {rank} of 2: a mistake')


# Whole runs


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
        [*command, 'tests/torch_utils/one_fails.py', fault, script, *map(str, arguments)],
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


def test_what_other_processes_say_is_kept_as_the_cause():
    with pytest.raises(distributed.LostContact) as caught, distributed._naming_the_loss():
        raise RuntimeError('[enforce fail] Connection closed by peer. And so on')
    assert 'Connection closed by peer' in str(caught.value) and isinstance(caught.value.__cause__, RuntimeError)


def test_a_killed_helper_is_no_loss_of_contact():
    with pytest.raises(RuntimeError, match='DataLoader worker') as caught, distributed._naming_the_loss():
        raise RuntimeError('DataLoader worker (pid 3) is killed by signal: Killed.')
    assert not isinstance(caught.value, UserError)
