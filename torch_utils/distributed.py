"""Processes of one run: who am I, how many are we, average this.

Works the same for one process (nothing is initialised), for `launch` and under torchrun.
"""

import os
import socket
import sys

import torch
import torch.distributed as dist
import torch.multiprocessing

from dnnlib.errors import UserError


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
    device = torch.device('cuda', int(os.environ.get('LOCAL_RANK', 0)))
    torch.cuda.set_device(device)
    return device


def start():
    """Join the process group that the environment describes; nothing to do for a single process."""
    if under_torchrun() and int(os.environ['WORLD_SIZE']) > 1:
        dist.init_process_group('nccl' if torch.cuda.is_available() else 'gloo')


def stop():
    if dist.is_initialized():
        dist.destroy_process_group()


def launch(function, processes):
    """Call `function()` in `processes` processes of this machine; with one, right here.

    function must be picklable. A UserError of any process is raised here; other failures as torch.multiprocessing does.
    """
    if processes == 1 or under_torchrun():
        return function()
    messages = torch.multiprocessing.get_context('spawn').SimpleQueue()
    try:
        torch.multiprocessing.spawn(_worker, args=(function, processes, _free_port(), messages), nprocs=processes)
    except (torch.multiprocessing.ProcessExitedException, torch.multiprocessing.ProcessRaisedException):
        if messages.empty():
            raise
        raise UserError(messages.get()) from None


def _worker(local_rank, function, processes, port, messages):
    os.environ.update(MASTER_ADDR='localhost', MASTER_PORT=str(port), WORLD_SIZE=str(processes), RANK=str(local_rank),
                      LOCAL_RANK=str(local_rank))
    try:
        function()
    except UserError as error:
        messages.put(str(error))
        sys.exit(1)


def _free_port():
    with socket.socket() as probe:
        probe.bind(('localhost', 0))
        return probe.getsockname()[1]


def average(tensor):
    """The mean of `tensor` over all processes, in place."""
    if world_size() > 1:
        dist.all_reduce(tensor)
        tensor /= world_size()
    return tensor


def total(tensor):
    """The sum of `tensor` over all processes, in place."""
    if world_size() > 1:
        dist.all_reduce(tensor)
    return tensor


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
            dist.broadcast(tensor.detach(), src=0)
