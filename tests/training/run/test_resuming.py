"""Interrupted runs resume bit-exactly."""

import functools
import json
import multiprocessing
import os
import random
import shutil
import signal
import socket
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor

import pytest
import torch

import train as train_script
from dnnlib.errors import UserError
from tests.helpers import invoke, succeed
from tests.interruption import (
    assert_same_end,
    last_state,
    losses,
    start_in_child,
    train_and_die,
    train_and_watch_traffic,
    train_in_child,
)
from tests.tiny import tiny_run
from torch_utils import distributed
from torch_utils.checkpoint import StateFolder
from torch_utils.interrupts import SAME_REQUEST_S
from training import step
from training.run import resuming
from training.snapshots import newest_snapshot
from training.step import BadGradients
from training.training_loop import train

run_train = functools.partial(invoke, train_script.main)

STEPS = 5  # of each stage


def small_run(data, outdir, steps=STEPS, **changes):
    """A RunConfig of both stages that saves its state every second step and reports every third."""
    base = tiny_run(str(data), str(outdir))
    stages = {name: getattr(base, name).replace(kimg=steps * base.batch / 1000, ada_kimg=0.1) for name in ('stage1', 'stage2')}
    return base.replace(
        **{
            **stages,
            **dict(
                threads=1,
                tick_kimg=0.024,
                snapshot_ticks=1,
                state_every='0.016kimg',
                augment='ada',
                ada_interval=3,
                share_fakes=True,
            ),
            **changes,
        }
    )


def begin(config):
    """The run's folder, as train.py makes it."""
    os.makedirs(config.outdir, exist_ok=True)
    resuming.write_options(config)
    return config


@pytest.fixture(scope='module')
def whole(data, tmp_path_factory):
    """The folder of an uninterrupted run."""
    outdir = tmp_path_factory.mktemp('whole') / 'run'
    assert train_in_child(begin(small_run(data, outdir))) == (0, '')
    assert (outdir / 'finished').exists()
    return outdir


def test_killed_anywhere_a_run_ends_with_the_same_bits(whole, data, tmp_path):
    """One run that is killed again and again: every restart goes on from the last whole state."""
    config = begin(small_run(data, tmp_path / 'run'))
    moments = [
        ('in a step', 1),
        ('writing a state', 1),
        ('after a step', 3),
        ('before a tick', 1),
        ('state written', 1),
        ('stage 2 begins', 2),
        ('after a tick', 1),
        ('writing a state', 1),
        ('writing samples', 1),
        ('writing samples', 2),
    ]
    for moment in moments:
        assert train_in_child(config, moment) == (-signal.SIGKILL, ''), moment
    assert train_in_child(config) == (0, '')
    assert_same_end(tmp_path / 'run', whole)
    assert 'going on from image 16, step 2 of stage 1' in (tmp_path / 'run' / 'log.txt').read_text()


@pytest.mark.slow
def test_killed_at_20_random_moments_runs_end_with_the_same_bits(data, tmp_path):
    """The clock decides: kill -9 from outside, 20 times in all, in as many runs as it takes."""
    steps, draw, killed, runs = 12, random.Random(5), 0, []
    config = begin(small_run(data, tmp_path / 'whole', steps))
    start = time.monotonic()
    assert train_in_child(config) == (0, '')
    longest = 0.3 * (time.monotonic() - start)
    while killed < 20:
        runs.append(tmp_path / str(len(runs)))
        config = begin(small_run(data, runs[-1], steps))
        while killed < 20 and not (runs[-1] / 'finished').exists():
            process, _ = start_in_child(config)
            process.join(draw.uniform(0, longest))
            if process.is_alive():
                process.kill()
                killed += 1
            process.join()
    assert train_in_child(config) == (0, '')
    assert sum((run / 'log.txt').read_text().count('going on from') for run in runs) > 5
    for run in runs:
        assert_same_end(run, tmp_path / 'whole')


def test_two_processes_one_is_killed(data, tmp_path):
    config = begin(small_run(data, tmp_path / 'whole', steps=3, gpus=2))
    assert distributed.launch(functools.partial(train, config), 2)
    config = begin(small_run(data, tmp_path / 'run', steps=3, gpus=2))
    with pytest.raises(UserError, match='process 1 was killed by SIGKILL'):
        distributed.launch(functools.partial(train_and_die, config, ('in a step', 5), 1), 2)
    networks = distributed.launch(functools.partial(train_and_watch_traffic, config), 2)
    stage1 = ['Generator', 'Generator', 'DualDiscriminator']
    assert networks == [*stage1, *stage1, 'PatchDiscriminator']  # once in a stage
    assert 'going on from image' in (tmp_path / 'run' / 'log.txt').read_text()
    assert_same_end(tmp_path / 'run', tmp_path / 'whole', tolerance=1e-6)


def test_another_number_of_processes_goes_on_and_says_what_that_means(whole, data, tmp_path):
    config = begin(small_run(data, tmp_path / 'run'))
    train_in_child(config, ('stage 2 begins', 2))
    two = config.replace(gpus=2)
    assert distributed.launch(functools.partial(train, two), 2)
    log = (tmp_path / 'run' / 'log.txt').read_text()
    assert 'processes: 1 before, 2 now' in log and 'only up to rounding' in log
    for mine, theirs in zip(losses(tmp_path / 'run'), losses(whole), strict=True):
        assert mine['loss/D'] == pytest.approx(theirs['loss/D'], abs=2e-3)


# Asked to stop


@pytest.mark.parametrize('number', [signal.SIGTERM, signal.SIGINT, signal.SIGUSR1])
def test_a_signal_finishes_the_step_and_saves(number, whole, data, tmp_path, monkeypatch):
    config = begin(small_run(data, tmp_path / 'run', state_every='999min'))
    ordinary, steps = step.discriminator_loss, []

    def signalled(*args):
        steps.append(1)
        if len(steps) == 3:
            os.kill(os.getpid(), number)
        return ordinary(*args)

    monkeypatch.setattr(step, 'discriminator_loss', signalled)
    former = signal.getsignal(number)
    assert train(config) is False and signal.getsignal(number) is former
    assert [images for images, _ in StateFolder(config.outdir).paths()] == [24]
    assert not (tmp_path / 'run' / 'finished').exists()
    monkeypatch.undo()
    assert train_in_child(config) == (0, '')
    assert_same_end(tmp_path / 'run', whole)


def test_max_minutes_stop_a_run(data, tmp_path):
    config = begin(small_run(data, tmp_path / 'run', max_minutes=1e-6))
    assert train(config) is False
    assert [images for images, _ in StateFolder(config.outdir).paths()] == [8]
    assert '--max-minutes are over' in (tmp_path / 'run' / 'log.txt').read_text()
    assert train(config.replace(max_minutes=0, stage2=config.stage2.replace(kimg=0)))


def test_a_signal_while_the_script_starts(tmp_path):
    process = script('--preset=demo', '--data=absent.zip', f'--run-dir={tmp_path / "run"}')
    time.sleep(0.7)
    process.send_signal(signal.SIGUSR1)
    process.communicate(timeout=60)
    assert process.returncode == 75 and not (tmp_path / 'run').exists()


def script(*arguments, **options):
    return subprocess.Popen(
        [sys.executable, 'train.py', *map(str, arguments)],
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        env={**os.environ, 'OMP_NUM_THREADS': '1'},
        **options,
    )


@pytest.fixture(scope='module')
def demo_data(tmp_path_factory):
    import dataset_tool

    path = tmp_path_factory.mktemp('data') / 'demo.zip'
    succeed(dataset_tool.main, 'demo', f'--dest={path}', '--images=32')
    return path


def wait_for(condition, is_alive, seconds=120):
    deadline = time.monotonic() + seconds
    while not condition():
        assert is_alive() and time.monotonic() < deadline
        time.sleep(0.05)


@pytest.mark.parametrize('processes', [1, pytest.param(2, marks=pytest.mark.slow)])
def test_the_script_stops_at_a_signal_and_goes_on(processes, demo_data, tmp_path):
    arguments = (
        '--preset=demo',
        f'--data={demo_data}',
        f'--outdir={tmp_path}',
        '--run-id=mine',
        '--tick=0.016',
        '--threads=1',
        f'--gpus={processes}',
    )
    stats = tmp_path / 'mine' / 'stats.jsonl'
    process = script(*arguments)
    wait_for(stats.exists, lambda: process.poll() is None)
    process.terminate()
    output = process.communicate(timeout=60)[0]
    assert process.returncode == 75 and 'the same command goes on from here' in output and 'Traceback' not in output
    ticks = len(stats.read_text().splitlines())
    process = script(f'--outdir={tmp_path}', '--resume=latest')
    wait_for(lambda: len(stats.read_text().splitlines()) > ticks, lambda: process.poll() is None)
    os.kill(process.pid, signal.SIGINT)
    output = process.communicate(timeout=60)[0]
    assert process.returncode == 75 and 'going on from image' in output


def test_a_second_signal_ends_the_process_at_once(data, tmp_path):
    process, _ = start_in_child(begin(small_run(data, tmp_path / 'run')), ('a step that hangs', 1))
    wait_for((tmp_path / 'run' / 'reals.png').exists, process.is_alive)
    process.terminate()
    process.join(SAME_REQUEST_S + 0.2)
    assert process.is_alive()
    process.terminate()
    process.join(20)
    assert process.exitcode == 128 + signal.SIGTERM


# Several machines


def free_port():
    with socket.socket() as probe:
        probe.bind(('localhost', 0))
        return probe.getsockname()[1]


def torchrun(port, *arguments):
    """A torchrun that stands for one of two machines, with two processes."""
    command = [
        sys.executable,
        '-m',
        'torch.distributed.run',
        '--nnodes=2',
        '--nproc-per-node=2',
        '--max-restarts=3',
        '--rdzv-backend=c10d',
        f'--rdzv-endpoint=localhost:{port}',
        '--rdzv-id=test',
        'train.py',
        *map(str, arguments),
    ]
    environment = {**os.environ, 'OMP_NUM_THREADS': '1', 'TORCH_DISABLE_SHARE_RDZV_TCP_STORE': '1'}  # see docs/cluster.md
    return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, env=environment)


def finish(machines):
    outputs = [machine.communicate(timeout=600)[0] for machine in machines]
    assert [machine.returncode for machine in machines] == [0] * len(machines), outputs
    return outputs


@pytest.mark.slow
def test_two_torchrun_machines_one_dies(demo_data, tmp_path):
    arguments = [
        '--preset=demo',
        f'--data={demo_data}',
        f'--outdir={tmp_path}',
        '--stage1-kimg=0.32',
        '--stage2-kimg=0.16',
        '--tick=0.08',
        '--snap=100',
        '--state-every=0.04kimg',
    ]
    port = free_port()
    finish([torchrun(port, *arguments, '--run-id=whole') for _ in range(2)])

    port = free_port()
    machines = [torchrun(port, *arguments, '--run-id=killed')]
    time.sleep(2)  # the first one holds the rendezvous
    machines.append(torchrun(port, *arguments, '--run-id=killed'))
    wait_for(lambda: len(StateFolder(tmp_path / 'killed').paths()) == 2, lambda: machines[0].poll() is None)
    machines[1].kill()
    machines[1].wait()
    machines[1] = torchrun(port, *arguments, '--run-id=killed')
    outputs = finish(machines)
    assert 'has lost' in outputs[0]
    log = (tmp_path / 'killed' / 'log.txt').read_text()
    assert log.count('4 process(es)') == 2 and 'going on from' in log and (tmp_path / 'killed' / 'finished').exists()
    assert_same_end(tmp_path / 'killed', tmp_path / 'whole', tolerance=1e-6)


# Damage


def flip(path, position):
    content = bytearray(path.read_bytes())
    content[int(len(content) * position)] ^= 1
    path.write_bytes(content)


def cut(path, fraction):
    path.write_bytes(path.read_bytes()[: int(path.stat().st_size * fraction)])


def states(folder):
    """Newest first."""
    return sorted(folder.glob('training-state-*.pt'), reverse=True)


@pytest.fixture
def copy(whole, data, tmp_path):
    """A copy of the finished run, with a state from before its end."""
    shutil.copytree(whole, tmp_path / 'run')
    resuming.write_options(resuming.saved_config(str(whole)).replace(outdir=str(tmp_path / 'run')))
    assert len(states(tmp_path / 'run')) == 2
    return tmp_path / 'run'


DAMAGE = {
    'a flipped bit in the middle': lambda run: flip(states(run)[0], 0.5),
    'a flipped bit in the checksum': lambda run: flip(states(run)[0], 20 / states(run)[0].stat().st_size),
    'a flipped bit at the beginning': lambda run: flip(states(run)[0], 0),
    'truncated': lambda run: cut(states(run)[0], 0.7),
    'short by a byte': lambda run: states(run)[0].write_bytes(states(run)[0].read_bytes()[:-1]),
    'empty': lambda run: states(run)[0].write_bytes(b''),
    'another file': lambda run: states(run)[0].write_bytes(b'not a state at all'),
    'the newest is gone': lambda run: states(run)[0].unlink(),
    'half a state beside': lambda run: cut(states(run)[0].rename(f'{states(run)[0]}.tmp'), 0.5),
    'no log': lambda run: (states(run)[0].unlink(), (run / 'log.txt').unlink()),
}


@pytest.mark.parametrize('name', DAMAGE)
def test_damage_that_a_run_recovers_from(name, copy, whole):
    DAMAGE[name](copy)
    config = resuming.saved_config(str(copy))
    assert train_in_child(config) == (0, '')
    assert_same_end(copy, whole)
    assert last_state(copy)['images_seen'] == 80
    assert not list(copy.glob('*.tmp'))


@pytest.mark.parametrize(
    'damage',
    [
        lambda path: path.unlink(),
        lambda path: path.write_text('{"preset"'),
        lambda path: path.write_text('[]'),
        lambda path: path.write_text('[' * 100000),
    ],
)
def test_lost_options_come_from_the_state(damage, copy):
    config = resuming.saved_config(str(copy))
    damage(copy / 'training_options.json')
    assert resuming.saved_config(str(copy)).replace(outdir=config.outdir) == config


def remove_states(run):
    shutil.copy(run / 'network-snapshot-000000.pkl', run / 'network-snapshot-000002.pkl')
    for path in run.glob('training-state-*.pt'):
        path.unlink()


REFUSED = {
    'all states damaged': (lambda run: [cut(path, 0.5) for path in states(run)], 'no training state is whole'),
    'all states gone': (remove_states, '--init-from='),
    'options and states gone': (lambda run: (remove_states(run), (run / 'training_options.json').unlink()), 'holds no run'),
    'options of another version': (
        lambda run: (run / 'training_options.json').write_text('{"colour": "red"}'),
        'no field colour',
    ),
}


@pytest.mark.parametrize('name', REFUSED)
def test_damage_that_is_refused_by_name(name, copy, data):
    damage, message = REFUSED[name]
    damage(copy)
    before = sorted(path.name for path in copy.iterdir())
    result = run_train('--preset=demo', f'--data={data}', f'--run-dir={copy}')
    assert result.exit_code == 1 and message in result.output and str(copy) in result.output
    assert len(result.output.strip().splitlines()[-1]) > 20 and 'Traceback' not in result.output
    assert sorted(path.name for path in copy.iterdir() if path.name != 'lock') == [name for name in before if name != 'lock']


# Whose folder, and which data


def test_numbers_are_given_once(tmp_path):
    """Whoever starts together: each makes a folder of its own."""
    with ThreadPoolExecutor(16) as pool:
        folders = list(pool.map(lambda _: resuming.claim_run_dir(str(tmp_path / 'runs'), 'demo'), range(64)))
    assert sorted(map(os.path.basename, folders)) == [f'{number:05d}-demo' for number in range(64)]


def test_a_run_that_was_begun_meanwhile_is_not_written_over(data, tmp_path):
    """The folder was free when this was decided."""
    config = small_run(data, tmp_path / 'run', steps=1)
    assert resuming.saved_config(config.outdir) is None
    assert train_in_child(begin(config.replace(seed=1))) == (0, '')
    before = {path.name: path.read_bytes() for path in (tmp_path / 'run').iterdir()}
    with pytest.raises(UserError, match='another run was begun in .* which has seed = 1'):
        train(config)
    assert {path.name: path.read_bytes() for path in (tmp_path / 'run').iterdir()} == before
    assert train(config.replace(seed=1, workers=1, metrics_every=3, stage2=config.stage2.replace(kimg=0.016)))


def changed(folder, change):
    """A copy of a set of images beside it, as a folder in which one thing is changed."""
    other = folder.parent / 'other'
    shutil.copytree(folder, other)
    pictures = sorted(other.rglob('*.png'))
    change(other, pictures)
    return other


def swap_two(folder, pictures):
    first, second = (path.read_bytes() for path in pictures[3:5])
    pictures[3].write_bytes(second)
    pictures[4].write_bytes(first)


def repaint_one(folder, pictures):
    """Of the same size, as plain pictures often are."""
    content = bytearray(pictures[-1].read_bytes())
    content[-20] ^= 1
    pictures[-1].write_bytes(content)


def turn_one(folder, pictures):
    labels = json.loads((folder / 'dataset.json').read_text())
    labels['labels'][7][1] = labels['labels'][6][1]
    (folder / 'dataset.json').write_text(json.dumps(labels))


@pytest.mark.parametrize(
    'change, remove_what',
    [
        (swap_two, 'nothing'),
        (repaint_one, 'nothing'),
        (turn_one, 'nothing'),
        (swap_two, 'training-state-*.pt'),
        (swap_two, 'training_options.json'),
    ],
)
def test_other_content_is_refused(change, remove_what, copy, data, tmp_path):
    shutil.unpack_archive(data, tmp_path / 'set')
    for path in copy.glob(remove_what):
        path.unlink()
    for path in copy.glob('network-snapshot-*' if remove_what.endswith('pt') else 'nothing'):
        path.unlink()
    before = {path.name: path.read_bytes() for path in copy.iterdir()}
    with pytest.raises(UserError, match='holds other images or cameras'):
        train(resuming.saved_config(str(copy)).replace(data=str(changed(tmp_path / 'set', change))))
    assert {path.name: path.read_bytes() for path in copy.iterdir()} == {**before, 'lock': b''}


def test_the_same_content_at_another_place_is_taken(copy, data, tmp_path):
    shutil.unpack_archive(data, tmp_path / 'moved')
    config = resuming.saved_config(str(copy))
    states(copy)[0].unlink()
    assert train(config.replace(data=str(tmp_path / 'moved')))


def test_a_relative_path_means_the_same_from_anywhere(data, tmp_path, monkeypatch):
    monkeypatch.chdir(data.parent)
    monkeypatch.setenv('HOME', str(data.parent))
    for path in (data.name, f'./{data.name}', f'~/{data.name}'):
        config = json.loads(run_train('--preset=demo', f'--data={path}', '--run-dir=run', '--dry-run').stdout)
        assert (config['data'], config['outdir']) == (str(data), str(data.parent / 'run'))


def test_what_a_killed_process_left_half_written_is_removed(copy, data):
    (copy / 'training-state-000000012.pt.tmp').write_bytes(b'half')
    assert train_in_child(resuming.saved_config(str(copy))) == (0, '')
    assert not list(copy.glob('*.tmp'))


@pytest.mark.parametrize('leftover', ['lock', 'training_options.json.tmp'])
def test_a_folder_in_which_nothing_has_begun_is_new(leftover, tmp_path):
    (tmp_path / leftover).write_text('')
    assert resuming.saved_config(str(tmp_path)) is None


def test_a_file_that_cannot_grow_leaves_the_last_state(whole, data, tmp_path):
    """The kernel refuses writes beyond a size, as a full disk does."""
    config = begin(small_run(data, tmp_path / 'run', snapshot_ticks=100))
    assert train_in_child(config, ('in a step', 4))[0] == -signal.SIGKILL
    (state,) = [path for _, path in StateFolder(config.outdir).paths()]
    before = open(state, 'rb').read()
    code, message = train_in_child(config, largest_file=len(before) // 2)
    assert code == 1 and message.startswith('UserError') and 'training-state' in message and 'File too large' in message
    assert open(state, 'rb').read() == before and not list((tmp_path / 'run').glob('*.tmp'))
    assert train_in_child(config) == (0, '')
    assert_same_end(tmp_path / 'run', whole)


def test_a_dataset_that_vanishes_is_named(data, tmp_path, monkeypatch):
    folder = tmp_path / 'images'
    shutil.unpack_archive(data, folder)
    config = begin(small_run(folder, tmp_path / 'run'))
    ordinary, steps = step.discriminator_loss, []

    def vanish(*args):
        steps.append(1)
        if len(steps) == 3:
            shutil.rmtree(folder)
        return ordinary(*args)

    monkeypatch.setattr(step, 'discriminator_loss', vanish)
    with pytest.raises(UserError, match=str(folder)):
        train(config)
    assert last_state(config.outdir)['images_seen'] == 24


def test_a_killed_helper_is_named(data, tmp_path, monkeypatch):
    config = begin(small_run(data, tmp_path / 'run', steps=50, workers=1))
    ordinary = step.discriminator_loss

    def kill_the_helper(*args):
        for process in multiprocessing.active_children():
            process.kill()
        return ordinary(*args)

    monkeypatch.setattr(step, 'discriminator_loss', kill_the_helper)
    with pytest.raises(UserError, match='a process that reads images was killed'):
        train(config)


def test_weights_for_the_next_stage_survive_a_restart(whole, data, tmp_path):
    """What --init-from gives and stage 1 has no use for is in the state: the file itself may be gone."""
    snapshot = tmp_path / 'init.pkl'
    shutil.copy(newest_snapshot(whole), snapshot)
    straight = begin(small_run(data, tmp_path / 'straight', steps=2, init_from=str(snapshot)))
    assert train_in_child(straight) == (0, '')
    config = begin(small_run(data, tmp_path / 'run', steps=2, init_from=str(snapshot)))
    assert train_in_child(config, ('stage 2 begins', 2))[0] == -signal.SIGKILL
    snapshot.unlink()
    assert train_in_child(config) == (0, '')
    assert_same_end(tmp_path / 'run', tmp_path / 'straight')


def test_a_run_in_use_is_refused(copy, monkeypatch):
    from dnnlib.files import lock_folder

    lock = lock_folder(str(copy))
    with pytest.raises(UserError, match='in use by another process'):
        lock_folder(str(copy), patience=0.0)
    lock.release()
    lock_folder(str(copy), patience=0.0).release()


# Numbers that go wrong


def test_gradients_that_stay_bad_stop_the_run(data, tmp_path, monkeypatch):
    config = begin(small_run(data, tmp_path / 'run', steps=20, max_bad_steps=3, augment='none', snapshot_ticks=100))
    ordinary, calls = step.discriminator_loss, []

    def spoiled(*args):
        calls.append(1)
        loss = ordinary(*args)
        return loss * float('nan') if len(calls) > 4 else loss

    monkeypatch.setattr(step, 'discriminator_loss', spoiled)
    with pytest.raises(BadGradients) as caught:
        train(config)
    message = str(caught.value)
    assert 'phase discriminator: the gradients of D are not finite' in message and 'from_rgb.weight' in message
    assert 'step 7 of stage 1' in message or 'step 9 of stage 1' in message
    assert [images for images, _ in StateFolder(config.outdir).paths()][0] == 32  # the state before the first bad step
    record = json.loads((tmp_path / 'run' / 'stats.jsonl').read_text().splitlines()[-1])
    assert record['gradients/D_not_finite'] > 0


def test_bad_gradients_of_one_phase_stop_the_run_though_others_are_good(data, tmp_path, monkeypatch):
    config = begin(small_run(data, tmp_path / 'run', steps=30, max_bad_steps=6, augment='none', snapshot_ticks=100))
    ordinary = step.generator_loss

    def spoiled(*args):
        return ordinary(*args) * float('nan')

    monkeypatch.setattr(step, 'generator_loss', spoiled)
    with pytest.raises(BadGradients, match='phase generator: the gradients of G'):
        train(config)
    assert last_state(config.outdir) is None  # no state is saved after a bad step


def test_a_few_bad_gradients_do_not(data, tmp_path, monkeypatch):
    config = begin(small_run(data, tmp_path / 'run', max_bad_steps=3))
    ordinary, calls = step.discriminator_loss, []

    def spoiled(*args):
        calls.append(1)
        loss = ordinary(*args)
        return loss * float('inf') if len(calls) in (2, 4) else loss

    monkeypatch.setattr(step, 'discriminator_loss', spoiled)
    assert train(config)
    assert all(torch.isfinite(value).all() for value in last_state(config.outdir)['stage']['networks']['D'].values())


# Options on resuming


@pytest.mark.parametrize(
    'option',
    [
        '--glr=0.5',
        '--batch=16',
        '--seed=3',
        '--preset=ffhq512',
        '--plane-resolution=32',
        '--gamma=7',
        '--stage1-kimg=3',
        '--augment=none',
        '--mirror=true',
        '--precision=bf16',
    ],
)
def test_an_option_that_would_change_the_run_is_refused_by_name(option, copy):
    result = run_train(f'--resume={copy}', option, '--dry-run')
    assert result.exit_code == 1 and option.split('=')[0] in result.output
    assert 'would change' in result.output or 'has --preset' in result.output


def test_passes_too_small_for_the_groups_are_refused(copy):
    result = run_train(f'--resume={copy}', '--batch-gpu=2', '--dry-run')
    assert result.exit_code == 1 and 'groups of 4' in result.output
    assert run_train(f'--resume={copy}', '--batch-gpu=4', '--metrics=none', '--max-minutes=0', '--dry-run').exit_code == 0


def test_options_that_make_no_sense_alone_are_refused_by_name(copy):
    result = run_train(f'--resume={copy}', '--near=auto', '--far=auto', '--dry-run')
    assert result.exit_code == 1 and '--near' in result.output and 'would change' in result.output


def test_options_that_change_nothing_are_taken(copy, data):
    result = run_train(
        '--preset=demo',
        f'--data={data}',
        f'--run-dir={copy}',
        '--workers=2',
        '--stage2-kimg=0.08',
        '--gpus=2',
        '--seed=0',
        '--state-every=3kimg',
        '--dry-run',
    )
    assert result.exit_code == 0, result.output
    config = json.loads(result.stdout)
    assert (config['workers'], config['gpus'], config['state_every'], config['stage2']['kimg']) == (2, 2, '3kimg', 0.08)
    assert config['generator']['plane_resolution'] == 16  # the run's own, not the preset's


def test_a_run_may_be_the_current_folder(data, tmp_path, monkeypatch):
    begin(tiny_run(str(data), str(tmp_path)))
    monkeypatch.chdir(tmp_path)
    for option in ('--resume=.', '--run-dir=.'):
        assert run_train(option, '--dry-run').exit_code == 0


def test_the_same_options_again_are_no_change(data, tmp_path):
    arguments = [
        '--preset=demo',
        f'--data={data}',
        f'--outdir={tmp_path}',
        '--run-id=a',
        '--gamma=2',
        '--swap=0.3',
        '--near=2',
        '--far=4',
        '--stage1-kimg=0',
        '--blur-fade=3',
        '--dry-run',
    ]
    first = run_train(*arguments)
    assert first.exit_code == 0, first.output
    from training.config import RunConfig

    begin(RunConfig.from_dict(json.loads(first.stdout)))
    again = run_train(*arguments)
    assert again.exit_code == 0 and json.loads(again.stdout) == json.loads(first.stdout)
    assert json.loads(run_train(f'--resume={tmp_path / "a"}', '--dry-run').stdout) == json.loads(first.stdout)


@pytest.mark.parametrize(
    'arguments, message',
    [
        (['--resume=absent'], 'no such folder'),
        (['--resume=latest'], 'there is no run in'),
        (['--resume=EMPTY'], 'holds no run: name'),
        (['--resume=EMPTY', '--preset=demo', '--data=d'], 'holds no run: name'),
        (['--run-id='], '--run-id= names no run'),
        (['--run-id=.'], '--run-id=. names no run'),
        (['--resume=latest', '--run-id=x'], 'name the run twice'),
        (['--data=d'], '--preset is missing'),
        (['--preset=demo'], '--data is missing'),
        (['--preset=demo', '--data=d', '--state-every=often'], '--state-every=often'),
        (['--preset=demo', '--data=d', '--state-every=0min'], '--state-every=0min'),
    ],
)
def test_bad_ways_to_name_a_run(arguments, message, tmp_path):
    (tmp_path / 'elsewhere' / 'empty').mkdir(parents=True)
    arguments = [argument.replace('EMPTY', str(tmp_path / 'elsewhere' / 'empty')) for argument in arguments]
    result = run_train(*arguments, f'--outdir={tmp_path}')
    assert result.exit_code == 1 and message in result.output
