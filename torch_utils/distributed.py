"""Processes of one run: who am I, how many are we, average this; and one that fails is heard of by all.

Works the same for one process (nothing is initialised), for `launch` and under torchrun.

What can fail on one process alone stands in a block of `together`, which ends on all processes alike. Outside of such
blocks, as in a training step, a process that fails tells the others why (torch_utils/watch.py), and they end, too.
"""

import atexit
import contextlib
import datetime
import functools
import os
import re
import signal
import sys
import threading
import time
import traceback
import uuid
from types import SimpleNamespace

import psutil
import torch
import torch.distributed as dist
import torch.multiprocessing

from dnnlib.errors import UserError
from torch_utils.checkpoint import map_tensors
from torch_utils.interrupts import STOPPED, Forwarding
from torch_utils.watch import Watch, describe_failure

_PARENT = os.getppid()  # while it lives; an orphan gets another
GRACE_S = 10.0  # for the other processes to end by themselves when one has failed
_EXPECTED = (UserError, torch.OutOfMemoryError)  # failures whose message says all that there is to say

_watch = None  # over the other processes, while this one is among them
_blocks = []  # of `together`, which this process is in


class LostContact(UserError):
    """The other processes do not answer, or one has said why it failed: this process cannot go on."""


class UnexpectedError(RuntimeError):
    """A bug that showed on some process; its traceback is in the text of the cause."""


class OnAnotherProcess(Exception):
    """The traceback of another process, as a cause: it is printed with the error."""

    def __str__(self):
        return f'\n\n{self.args[0]}'


def rank():
    return dist.get_rank() if dist.is_initialized() else 0


def world_size():
    return dist.get_world_size() if dist.is_initialized() else 1


def under_torchrun():
    return 'WORLD_SIZE' in os.environ and 'RANK' in os.environ


def check_gpus(wanted):
    """Raises UserError where --gpus names more than this machine has; where it has none, processes run on its CPU."""
    present = torch.cuda.device_count()
    if torch.cuda.is_available() and not under_torchrun() and wanted > present:
        raise UserError(f'--gpus={wanted}, but this machine has {present}; use --gpus={present} or fewer')


def pick_device():
    """This process's GPU, or the CPU where there is none."""
    if not torch.cuda.is_available():
        return torch.device('cpu')
    local, present = int(os.environ.get('LOCAL_RANK', 0)), torch.cuda.device_count()
    if local >= present:
        raise UserError(f'process {local} of this machine sees {present} GPU(s) only; start as many processes as it has GPUs')
    device = torch.device('cuda', local)
    torch.cuda.set_device(device)
    return device


@contextlib.contextmanager
def joined(timeout_minutes=30):
    """Be one of the processes that the environment describes, for a block; nothing to do for a single process, or within
    such a block. An exception that leaves the block is told to the others, which end.

    timeout_minutes: how long the others may keep this process waiting. CUDA tensors go through NCCL, others through gloo.
    """
    if dist.is_initialized() or not under_torchrun() or int(os.environ['WORLD_SIZE']) == 1:
        yield
        return
    failed = True
    try:
        _meet(datetime.timedelta(minutes=timeout_minutes))
        pick_device()
        yield
        failed = False
    except Exception as error:
        if _watch is not None and not isinstance(error, LostContact):
            _watch.tell(describe_failure(int(os.environ['RANK']), error, _EXPECTED))  # the group may not have been made yet
        raise
    finally:
        _leave(failed)


def _meet(timeout):
    """Begin to watch the others, and make the process group."""
    global _watch
    number, processes = int(os.environ['RANK']), int(os.environ['WORLD_SIZE'])
    backend = 'cpu:gloo,cuda:nccl' if torch.cuda.is_available() else 'gloo'
    with _naming_the_loss():
        store = next(dist.rendezvous('env://', timeout=timeout))[0]
        attempt = dist.PrefixStore(_name_attempt(store, number, processes, timeout), store)
        _watch = Watch(dist.PrefixStore('watch', attempt), number, processes)
        group = dist.PrefixStore('group', attempt)
        dist.init_process_group(backend, store=group, rank=number, world_size=processes, timeout=timeout)


def _name_attempt(store, number, processes, timeout):
    """A new name, the same on all processes. torchrun may keep its store when it starts them again: what an earlier attempt has
    left there, addresses and news of a failure, must not be found by this one.

    The first process tells its name to everyone who has said hello, and who may be of an earlier attempt, until all have it.
    """
    mine, deadline = uuid.uuid4().hex, time.monotonic() + timeout.total_seconds()
    store.set(f'hello/{number}', mine)
    if number > 0:
        name = store.get(f'attempt of {mine}').decode()
        store.add(f'{name}/met', 1)
        return name
    while store.add(f'{mine}/met', 0) < processes - 1:
        if time.monotonic() > deadline:
            raise RuntimeError('not all of them have come')
        for other in range(1, processes):
            if store.check([f'hello/{other}']):
                store.set(f'attempt of {store.get(f"hello/{other}").decode()}', mine)
        time.sleep(0.05)
    return mine


def _leave(failed):
    global _watch
    if failed:  # what NCCL has begun may never end
        last_resort = threading.Timer(GRACE_S, os._exit, [1])
        last_resort.daemon = True
        last_resort.start()
    if dist.is_initialized():
        dist.destroy_process_group()
    if _watch is not None:
        _watch.close(failed)
        _watch = None
    if failed:
        last_resort.cancel()


def exit_code_when_stopped():
    """STOPPED; but torchrun would start a process again that exits so."""
    return 0 if 'TORCHELASTIC_RUN_ID' in os.environ else STOPPED


def job_age():
    """Seconds since the torchrun that started this process was started; 0 for a process without one."""
    return time.time() - psutil.Process(_PARENT).create_time() if 'TORCHELASTIC_RUN_ID' in os.environ else 0.0


def check_parent():
    """Raise LostContact if the torchrun that started this process is gone: a restarted job must not meet this process."""
    if 'TORCHELASTIC_RUN_ID' in os.environ and os.getppid() != _PARENT:
        raise LostContact(f'process {rank()} of {world_size()} has lost the torchrun that started it')


# Processes of this machine ---------------------------------------------------------------------------------------------


def launch(function, processes):
    """Call `function()` in `processes` processes of this machine; with one, right here. Returns the first one's result.

    function must be picklable, and its result small. Stop signals are passed on; where a process ends with STOPPED, by
    a stop signal or for a second one, this one ends so, too. A UserError of any process, or the death of one, is raised
    here as UserError; a bug as RuntimeError with its traceback.
    """
    if processes == 1 or under_torchrun():
        return function()
    outcomes = torch.multiprocessing.get_context('spawn').SimpleQueue()
    former = signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C reaches all processes: while they start, it is this one's
    store = dist.TCPStore('localhost', 0, is_master=True, wait_for_workers=False)  # here it outlives any of the processes
    arguments = (function, processes, store.port, os.getpid(), outcomes)
    try:
        workers = torch.multiprocessing.spawn(_worker, args=arguments, nprocs=processes, join=False)
        with Forwarding(workers.pids()) as forwarding:
            while not workers.join(grace_period=GRACE_S):
                pass
    except torch.multiprocessing.ProcessExitedException as exited:
        if exited.exit_code == STOPPED or (forwarding.received and exited.signal_name == 'SIGTERM'):
            sys.exit(STOPPED)
        if exited.exit_code > 128:
            sys.exit(exited.exit_code)
        raise _most_telling(_drain(outcomes), processes, exited) from None
    finally:
        signal.signal(signal.SIGINT, former)
    return _drain(outcomes)[0]


def _worker(local_rank, function, processes, port, parent, outcomes):
    if os.getppid() != parent:  # it was killed while this process started
        sys.exit(1)
    here = dict(RANK=local_rank, LOCAL_RANK=local_rank, WORLD_SIZE=processes, MASTER_ADDR='localhost', MASTER_PORT=port)
    as_by_torchrun = dict(here, TORCHELASTIC_USE_AGENT_STORE=True, TORCHELASTIC_RESTART_COUNT=0)  # the store is there already
    os.environ.update({name: str(value) for name, value in as_by_torchrun.items()})
    try:
        outcomes.put((local_rank, function()))
    except Exception as error:  # a bug's traceback is shown by the process that launched this one
        bug = None if isinstance(error, UserError) else RuntimeError(f'process {local_rank} failed:\n{traceback.format_exc()}')
        outcomes.put((local_rank, bug or error))
        sys.exit(1)
    # The work is done. A thread of some library has been seen to abort a process while the interpreter is taken down, and with it
    # the run: so it is not taken down. multiprocessing has tidied up by then.
    atexit.register(os._exit, 0)


def _drain(outcomes):
    """What the function returned or raised, by process, in the order in which they ended."""
    found = {}
    while not outcomes.empty():
        number, found[number] = outcomes.get()
    return found


def _most_telling(outcomes, processes, exited):
    """The error to show: a cause rather than its consequences in the other processes; which process it was, if not all."""
    errors = {number: outcome for number, outcome in outcomes.items() if isinstance(outcome, Exception)}
    causes = {number: error for number, error in errors.items() if not isinstance(error, LostContact)}
    if causes:
        number, error = next(iter(causes.items()))
        alone = len(causes) == 1 and isinstance(error, UserError)
        return type(error)(f'process {number} of {processes}: {error}') if alone else error
    if exited.signal_name is not None:
        killed = f'process {exited.error_index} was killed by {exited.signal_name}'
        memory = '; if the machine ran out of memory, lower --batch-gpu or --workers' if exited.signal_name == 'SIGKILL' else ''
        return UserError(killed + memory)
    return next(iter(errors.values()), UserError(f'process {exited.error_index} ended with exit code {exited.exit_code}'))


# Collectives -----------------------------------------------------------------------------------------------------------


@contextlib.contextmanager
def _naming_the_loss():
    """torch's errors about other processes, as LostContact that says what became of them."""
    try:
        yield
    except (torch.OutOfMemoryError, torch.AcceleratorError):  # this process's own trouble, found out here
        raise
    except RuntimeError as error:  # of which torch.distributed.DistError is one
        if 'DataLoader worker' in str(error):  # comes from a signal, whatever this process was doing
            raise
        failure = _watch and _watch.failure()
        if failure:
            _give_up(failure, error)
        lines = re.sub(r'^\[[^\]]*\] ', '', str(error)).strip().splitlines()  # without the place in gloo's source
        reason = lines[0].split('. ')[0][:200] if lines else type(error).__name__
        raise LostContact(
            f'process {os.environ.get("RANK", 0)} of {os.environ.get("WORLD_SIZE", 1)} has lost the others: '
            f'{_who_is_silent()} ({reason})'
        ) from error


def _give_up(failure, error=None):
    """Raise what another process has told; error: how this one noticed."""
    raise LostContact(f'process {failure.rank} of {os.environ["WORLD_SIZE"]} has failed: {failure.text}') from (
        OnAnotherProcess(failure.details) if failure.details else error
    )


def _who_is_silent():
    silent = _watch.silent() if _watch else []
    return f'process {", ".join(map(str, silent))} was killed or hangs' if silent else 'one has failed, was killed or hangs'


@contextlib.contextmanager
def together(naming=True):
    """A block that ends on all processes alike: when it fails on one of them, it fails on all, for the same reason.

    Every process must come here. The block may contain collectives, which then cost a little more: before each of them, and
    at the end of the block, the processes ask each other whether any has failed. Raises what the first one that failed had
    raised, if that is a UserError or a want of memory, and UnexpectedError for any other exception; naming: with the number
    of the process in the message, unless all failed alike.
    """
    if world_size() == 1:
        yield
        return
    block, mine = SimpleNamespace(naming=naming, broken=None), None  # broken: why another process left the block
    _blocks.append(block)
    try:
        yield
    except LostContact:
        raise
    except Exception as error:
        mine = error
        if block.broken is None:
            _watch.raise_alarm()
    finally:
        _blocks.remove(block)
    if block.broken is None:
        _agree(block, mine)
    elif mine is None:
        raise block.broken
    else:
        raise mine


def _agree(block=None, error=None):
    """Ask all processes whether any has failed; if so, fail with the same reason. error: with which this one left `block`."""
    failed = torch.tensor(int(error is not None))
    with _naming_the_loss():
        dist.all_reduce(failed)
        if not failed:
            return
        reports = [None] * world_size()  # of those that have failed: in how many blocks, whether to be named, and why
        dist.all_gather_object(reports, error and (len(_blocks), block.naming, describe_failure(rank(), error, _EXPECTED)))
    _watch.settle()
    depths, naming, failures = zip(*filter(None, reports))
    first, where = failures[0], f'process {failures[0].rank} of {world_size()}: ' if naming[0] else ''
    reason = (first.kind or UnexpectedError)(where + first.text)
    for other in _blocks[min(depths) :]:
        other.broken = reason
    if error is not None and len(failures) == world_size() and len({failure.text for failure in failures}) == 1:
        raise error
    raise reason from (error or (first.details and OnAnotherProcess(first.details)))


def _collective(operation, *arguments, **options):
    """Take part in one of torch.distributed's; but within `together`, another process may have failed, and would never come."""
    _check_in()
    with _naming_the_loss():
        operation(*arguments, **options)


def _check_in():
    """Raise what has made another process leave a block of `together` that this one is in."""
    broken = _broken()
    if broken:
        raise broken
    if _blocks:
        _agree()


def _broken():
    """What was raised in a block that another process has left, or None; code in between may not have heard of it."""
    return next((block.broken for block in _blocks if block.broken is not None), None)


def look_around():
    """For long work between collectives, now and then: raise what has happened to another process. Costs nothing."""
    if _watch is not None and _watch.has_news():
        _give_up(_watch.failure())
    if _broken() or (_blocks and _watch.alarmed()):
        _check_in()


def from_first(function):
    """What `function()` returns on the first process, plain data, on all of them; it is called there alone.

    What it raises is raised everywhere, as by `together`.
    """
    with together(naming=False):
        value = function() if rank() == 0 else None
    return share(value)


def average(tensor):
    """The mean of `tensor` over all processes, in place."""
    return total(tensor).div_(world_size())


def total(tensor):
    """The sum of `tensor` over all processes, in place."""
    if world_size() > 1:
        _collective(dist.all_reduce, tensor)
    return tensor


def any_of(flags):
    """For each of some flags, whether any process has it set: [bool, ...] -> [bool, ...]. Never waits for a GPU."""
    return [count > 0 for count in total(torch.tensor([int(bool(flag)) for flag in flags])).tolist()]


def share(value):
    """The first process's `value`, plain data, in every process."""
    if world_size() == 1:
        return value
    carrier = [value]
    _collective(dist.broadcast_object_list, carrier, src=0, device=torch.device('cpu'))
    return carrier[0]


def share_tensors(value, device):
    """As `share`, for plain data with tensors: these travel one by one, and arrive on `device`. One process keeps `value`."""
    if world_size() == 1:
        return value
    tensors = []
    map_tensors(tensors.append, value)
    shapes = share(map_tensors(lambda tensor: tensor.to('meta'), value))
    mine = iter(tensors)

    def hand_on(shape):
        tensor = next(mine).to(device).contiguous() if rank() == 0 else torch.empty(shape.shape, dtype=shape.dtype, device=device)
        _collective(dist.broadcast, tensor, src=0)
        return tensor

    return map_tensors(hand_on, shapes)


def gather(value):
    """The list of every process's `value`, plain data, in the first process; None in the others."""
    if world_size() == 1:
        return [value]
    values = [None] * world_size() if rank() == 0 else None
    _collective(dist.gather_object, value, values)
    return values


def first_problem(problem):
    """What keeps any process from something, or None; the same on all. problem: what keeps this one, a text or None."""
    problems = share(gather(problem))
    found = [(number, text) for number, text in enumerate(problems) if text is not None]
    if not found:
        return None
    number, text = found[0]
    return text if set(problems) == {text} else f'process {number} of {world_size()}: {text}'


def check_same(name, value):
    """Raise UserError unless `value`, plain data, is the same on all processes. name: of an environment variable or option."""
    with together():
        first = share(value)
        if value != first:
            raise UserError(f'{name} is {value!r} here, but {first!r} for process 0; make it the same for all processes')


class Obstacle:
    """Decorator of a function that finds out what keeps this process from something, as a text, or None if nothing does.

    It is called once for the same arguments. After `agree`, any process's obstacle is one for all of them.
    """

    def __init__(self, find):
        functools.update_wrapper(self, find)
        self._find, self._found = find, {}

    def __call__(self, *arguments):
        if arguments not in self._found:
            self._found[arguments] = self._find(*arguments)
        return self._found[arguments]

    def agree(self, *arguments):
        """Decide for all processes, each of which must call it."""
        with together():
            self._found[arguments] = first_problem(self(*arguments))

    def cache_clear(self):
        self._found.clear()


def wait_for_all():
    """Return when every process has come here."""
    any_of([False])


def average_gradients(parameters):
    """Replace the gradients of `parameters` by their means over all processes, in one transfer.

    Every process must have gradients for the same parameters.
    """
    gradients = [p.grad for p in parameters if p.grad is not None]
    if world_size() == 1 or not gradients:
        return
    flat = average(torch.cat([g.flatten() for g in gradients]))
    for gradient, part in zip(gradients, flat.split([g.numel() for g in gradients])):
        gradient.copy_(part.view_as(gradient))


def broadcast(module):
    """Give every process the first one's parameters and buffers."""
    if world_size() > 1:
        for tensor in [*module.parameters(), *module.buffers()]:
            _collective(dist.broadcast, tensor.detach(), src=0)
