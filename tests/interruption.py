"""Runs in processes of their own, which can be killed at a chosen moment."""

import functools
import json
import multiprocessing
import os
import resource
import signal
import time

import torch

from metrics import monitoring
from torch_utils import checkpoint, distributed
from training import step, training_loop
from training.run import checkpoints, reporting
from training.snapshots import newest_snapshot

_CONTEXT = multiprocessing.get_context('forkserver')
_CONTEXT.set_forkserver_preload(['tests.interruption'])  # torch is imported once


def train_in_child(config, moment=None, largest_file=None, monitor=None):
    """Train in a process of its own. Returns its exit code and its error message.

    moment: (name in MOMENTS, n): the process is killed at the n-th such moment. largest_file: bytes that it may write to one
    file.
    """
    process, messages = start_in_child(config, moment, largest_file, monitor)
    process.join()
    return process.exitcode, '' if messages.empty() else messages.get()


def start_in_child(config, moment=None, largest_file=None, monitor=None):
    """`train_in_child` without waiting: the process, and the queue that its error message will come through."""
    messages = _CONTEXT.SimpleQueue()
    process = _CONTEXT.Process(target=_child, args=(config, moment, largest_file, monitor, messages), daemon=True)
    process.start()
    return process, messages


def _child(config, moment, largest_file, monitor, messages):
    torch.set_num_threads(1)
    if largest_file is not None:
        resource.setrlimit(resource.RLIMIT_FSIZE, (largest_file, largest_file))
    if moment is not None:
        arm(*moment)
    try:
        finished = distributed.launch(functools.partial(training_loop.train, config, None, monitor), config.gpus)
    except Exception as error:
        messages.put(f'{type(error).__name__}: {error}')
        os._exit(1)
    os._exit(0 if finished else 75)


def train_and_die(config, moment, rank):
    """train() for `distributed.launch`; the process of that rank is killed at the moment."""
    if int(os.environ['RANK']) == rank:
        arm(*moment)
    return training_loop.train(config)


def train_and_watch_traffic(config):
    """train() for `distributed.launch`. Returns how many networks travelled; other tensors may not do so as plain data."""
    share, broadcast, networks = distributed.share, distributed.broadcast, []

    def watched(value):
        assert all(tensor.is_meta for tensor in tensors(value).values())
        return share(value)

    def counted(module):
        networks.append(type(module).__name__)
        broadcast(module)

    distributed.share, distributed.broadcast = watched, counted
    assert training_loop.train(config)
    return networks


def _die():
    os.kill(os.getpid(), signal.SIGKILL)


def _half_written(write):
    """The first half of a state reaches the disk."""

    def interrupted(path, content):
        write(path, content)
        with open(path, 'rb') as whole, open(f'{path}.tmp', 'wb') as part:
            part.write(whole.read(os.path.getsize(path) // 2))
        os.unlink(path)
        _die()

    return interrupted


def _before(function):
    return lambda *args, **kwargs: _die()


def _after(function):
    def wrapped(*args, **kwargs):
        function(*args, **kwargs)
        _die()

    return wrapped


def _stop_request(function):
    def wrapped(*args, **kwargs):
        os.kill(os.getpid(), signal.SIGTERM)
        time.sleep(600)

    return wrapped


def _hang(function):
    return lambda *args, **kwargs: time.sleep(600)


# What is replaced by what, so that the process dies there.
MOMENTS = {
    'in a step': (step, 'discriminator_loss', _before),
    'after a step': (training_loop, 'training_step', _after),
    'before a tick': (reporting.Reporter, 'tick', _before),
    'after a tick': (reporting.Reporter, 'tick', _after),
    'writing samples': (checkpoints, 'write_snapshot', _before),
    'writing a state': (checkpoint, 'write_state', _half_written),
    'state written': (checkpoint, 'write_state', _after),
    'a metric that is told to stop': (monitoring.Monitor, 'evaluate_snapshot', _stop_request),
    'a step that hangs': (training_loop, 'training_step', _hang),
    'stage 2 begins': (training_loop.TrainingRun, '_train_stage', _before),
}


def arm(name, count):
    """Let this process die at the count-th moment of that name."""
    owner, attribute, deadly = MOMENTS[name]
    ordinary, calls = getattr(owner, attribute), [0]

    def counted(*args, **kwargs):
        calls[0] += 1
        return (deadly(ordinary) if calls[0] == count else ordinary)(*args, **kwargs)

    setattr(owner, attribute, counted)


# What runs are compared by


def last_state(outdir):
    """The content of the newest training state."""
    return checkpoint.StateFolder(outdir).load()


def losses(outdir):
    """The lines of stats.jsonl without what depends on time and machine."""
    lines = (outdir / 'stats.jsonl').read_text().splitlines()
    return [
        {
            name: value
            for name, value in json.loads(line).items()
            if not name.startswith(('share_of_time', 'seconds')) and 'memory' not in name
        }
        for line in lines
    ]


def tensors(tree, path=''):
    """{path: tensor} of nested dicts and lists."""
    if isinstance(tree, torch.Tensor):
        return {path: tree}
    items = tree.items() if isinstance(tree, dict) else enumerate(tree) if isinstance(tree, (list, tuple)) else ()
    return {name: tensor for key, value in items for name, tensor in tensors(value, f'{path}/{key}').items()}


def assert_same_end(outdir, reference, tolerance=0.0):
    """Both runs ended with the same losses, weights, averages and optimiser states."""
    for mine, theirs in zip(losses(outdir), losses(reference), strict=True):
        assert mine.keys() == theirs.keys()
        assert all(abs(mine[name] - theirs[name]) <= tolerance * max(1, abs(theirs[name])) for name in mine), (mine, theirs)
    snapshots = [torch.load(newest_snapshot(folder), weights_only=True) for folder in (outdir, reference)]
    assert snapshots[0]['about']['images_seen'] == snapshots[1]['about']['images_seen']
    mine, theirs = (
        {**tensors(last_state(folder)['stage']), **tensors(snapshot['networks'], '/snapshot')}
        for folder, snapshot in zip((outdir, reference), snapshots)
    )
    assert mine.keys() == theirs.keys() and len(mine) > 100
    for name, tensor in mine.items():
        assert torch.allclose(tensor.double(), theirs[name].double(), rtol=tolerance, atol=tolerance), name
