"""Processes of one run: who am I, how many are we, average this.

Works the same for one process (nothing is initialised), for `launch` and under torchrun.
"""

import contextlib
import datetime
import os
import re
import signal
import socket
import sys
import time
import traceback
from typing import NamedTuple

import psutil
import torch
import torch.distributed as dist
import torch.multiprocessing

from dnnlib.errors import UserError
from torch_utils.interrupts import STOPPED, Forwarding

_PARENT = os.getppid()  # while it lives; an orphan gets another
GRACE_S = 10.0  # for the other processes to end by themselves when one has failed


class LostContact(UserError):
    """The other processes do not answer: one has failed, was killed, or hangs."""


def rank():
    return dist.get_rank() if dist.is_initialized() else 0


def world_size():
    return dist.get_world_size() if dist.is_initialized() else 1


def under_torchrun():
    return 'WORLD_SIZE' in os.environ and 'RANK' in os.environ


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


def start(timeout_minutes=30):
    """Join the process group that the environment describes; nothing to do for a single process.

    timeout_minutes: how long the others may keep this process waiting. CUDA tensors go through NCCL, others through gloo.
    """
    if under_torchrun() and int(os.environ['WORLD_SIZE']) > 1:
        pick_device()
        backend = 'cpu:gloo,cuda:nccl' if torch.cuda.is_available() else 'gloo'
        with _naming_the_loss():
            dist.init_process_group(backend, timeout=datetime.timedelta(minutes=timeout_minutes))


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


def stop():
    if dist.is_initialized():
        dist.destroy_process_group()


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
    arguments = (function, processes, _free_port(), os.getpid(), outcomes)
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
        raise _most_telling([outcome.error for outcome in _drain(outcomes) if outcome.error is not None], exited) from None
    finally:
        signal.signal(signal.SIGINT, former)
    return next(outcome.result for outcome in _drain(outcomes) if outcome.rank == 0)


class _Outcome(NamedTuple):
    """What became of the function in one process."""

    rank: int
    result: object = None
    error: Exception | None = None


def _worker(local_rank, function, processes, port, parent, outcomes):
    if os.getppid() != parent:  # it was killed while this process started
        sys.exit(1)
    os.environ.update(MASTER_ADDR='localhost', MASTER_PORT=str(port), WORLD_SIZE=str(processes), RANK=str(local_rank),
                      LOCAL_RANK=str(local_rank))
    try:
        outcomes.put(_Outcome(local_rank, result=function()))
    except UserError as error:
        outcomes.put(_Outcome(local_rank, error=error))
        sys.exit(1)
    except Exception:  # a bug: its traceback is shown by the process that launched this one
        outcomes.put(_Outcome(local_rank, error=RuntimeError(f'process {local_rank} failed:\n{traceback.format_exc()}')))
        sys.exit(1)


def _drain(queue):
    items = []
    while not queue.empty():
        items.append(queue.get())
    return items


def _most_telling(errors, exited):
    """The error to show: a cause rather than its consequences in the other processes."""
    causes = [error for error in errors if not isinstance(error, LostContact)]
    if causes:
        return causes[0]
    if exited.signal_name is not None:
        return UserError(f'process {exited.error_index} was killed by {exited.signal_name}; '
                         'if the machine ran out of memory, lower --batch-gpu or --workers')
    return errors[0] if errors else UserError(f'process {exited.error_index} ended with exit code {exited.exit_code}')


def _free_port():
    with socket.socket() as probe:
        probe.bind(('localhost', 0))
        return probe.getsockname()[1]


# Collectives -----------------------------------------------------------------------------------------------------------


@contextlib.contextmanager
def _naming_the_loss():
    """torch's errors about other processes, as LostContact."""
    try:
        yield
    except (torch.OutOfMemoryError, torch.AcceleratorError):  # this process's own trouble, found out here
        raise
    except RuntimeError as error:  # of which torch.distributed.DistError is one
        lines = re.sub(r'^\[[^\]]*\] ', '', str(error)).strip().splitlines()  # without the place in gloo's source
        reason = lines[0][:200] if lines else type(error).__name__
        raise LostContact(f'process {os.environ.get("RANK", 0)} of {os.environ.get("WORLD_SIZE", 1)} has lost the others: one has '
                          f'failed, was killed or hangs ({reason})') from None


def average(tensor):
    """The mean of `tensor` over all processes, in place."""
    if world_size() > 1:
        total(tensor)
        tensor /= world_size()
    return tensor


def total(tensor):
    """The sum of `tensor` over all processes, in place."""
    if world_size() > 1:
        with _naming_the_loss():
            dist.all_reduce(tensor)
    return tensor


def any_of(flags):
    """For each of some flags, whether any process has it set: [bool, ...] -> [bool, ...]. Never waits for a GPU."""
    return [count > 0 for count in total(torch.tensor([int(bool(flag)) for flag in flags])).tolist()]


def share(value):
    """The first process's `value`, plain data, in every process."""
    if world_size() == 1:
        return value
    carrier = [value]
    with _naming_the_loss():
        dist.broadcast_object_list(carrier, src=0, device=torch.device('cpu'))
    return carrier[0]


def gather(value):
    """The list of every process's `value`, plain data, in the first process; None in the others."""
    if world_size() == 1:
        return [value]
    values = [None] * world_size() if rank() == 0 else None
    with _naming_the_loss():
        dist.gather_object(value, values)
    return values


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
            with _naming_the_loss():
                dist.broadcast(tensor.detach(), src=0)
