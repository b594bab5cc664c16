"""What one of two processes does wrong, for test_distributed.py and the tests of whole runs."""

import contextlib
import os
import signal
import time

import torch

from dnnlib.errors import UserError
from torch_utils import custom_ops, distributed
from training import step, training_loop
from training.rendering import fused

LONGEST_S = 60  # a process that waits for another one would wait longer


class Broken(UserError):
    """A kind of its own."""


def second():
    return distributed.rank() == 1


def outcome(block):
    """(type's name, message) of what a block of `together` raises on this process, or None."""
    try:
        with distributed.together():
            block()
    except (UserError, RuntimeError) as error:
        return type(error).__name__, str(error)


def fail(error, ranks=(1,)):
    if distributed.rank() in ranks:
        raise error


def fail_before_a_collective():
    fail(Broken('it broke'))
    distributed.wait_for_all()


def fail_between_collectives():
    distributed.share('something')
    fail(KeyError('a bug'))
    distributed.gather('something')
    distributed.average(torch.zeros(3))


def fail_outside_an_inner_block():
    fail(Broken('outside'))
    with distributed.together():
        distributed.wait_for_all()


def fail_in_an_inner_block():
    with distributed.together():
        fail(Broken('inside'))


def swallow():
    """A failure of another process that code in between takes for its own."""
    fail(Broken('it broke'))
    with contextlib.suppress(UserError):
        distributed.wait_for_all()
    with contextlib.suppress(UserError):
        distributed.look_around()
    with contextlib.suppress(UserError):
        distributed.total(torch.zeros(5))  # process 1 is elsewhere


def work_long():
    fail(Broken('it broke'))
    deadline = time.monotonic() + 60
    while time.monotonic() < deadline:
        distributed.look_around()
        time.sleep(0.01)


BLOCKS = {
    'nothing': lambda: None,
    'both': lambda: fail(Broken('both alike'), (0, 1)),
    'each': lambda: fail(Broken(f'process {distributed.rank()} in its way'), (0, 1)),
    'memory': lambda: fail(torch.OutOfMemoryError('CUDA out of memory')),
    'file': lambda: fail(PermissionError(13, 'Permission denied', 'a/b')),
    'bug': lambda: fail(KeyError('a bug')),
    **{
        function.__name__: function
        for function in (
            fail_before_a_collective,
            fail_between_collectives,
            fail_outside_an_inner_block,
            fail_in_an_inner_block,
            swallow,
            work_long,
        )
    },
}


def build_on_one(operator):
    if second():
        raise custom_ops.BuildError('the compiler is missing')
    return operator


def choose_operators():
    """(implementation, warning) of bias_act on a GPU, where process 1 alone cannot build it."""
    warnings = []
    custom_ops._logger.warning = lambda form, *arguments: warnings.append(form % arguments)
    custom_ops.build, torch.ops.load_library, torch.cuda.is_available = build_on_one, lambda path: None, lambda: True
    custom_ops.agree()
    return custom_ops.choose('bias_act', 'cuda'), warnings


def demand_different_operators():
    os.environ['MIMIC3D_OPS'] = 'ref' if second() else ''
    custom_ops.agree()


def find_kernels(error):
    """What the renderer is told of a GPU whose kernels fail with `error` on process 1 alone."""
    fused.sort_depths = lambda depths: fail(error)
    fused._problem_of_triton.agree(torch.device('cpu'))
    return fused._problem_of_triton(torch.device('cpu'))


def go_through_all_blocks():
    """What both processes see of every block, one after the other: {name: [process 0's outcome, process 1's]}."""
    with distributed.joined(timeout_minutes=1):
        seen = {name: outcome(block) for name, block in BLOCKS.items()}
        seen['problem'] = distributed.first_problem('no weights' if second() else None)
        seen['same problem'] = distributed.first_problem('no weights')
        seen['no problem'] = distributed.first_problem(None)
        seen['tensors'] = distributed.share_tensors({'a': [torch.arange(3.0), 5]} if not second() else None, 'cpu')['a'][
            0
        ].tolist()
        try:
            seen['first'] = distributed.from_first(lambda: fail(Broken('the first one broke'), (0,)))
        except Broken as error:
            seen['first'] = str(error)
        seen['full gpu'] = outcome(lambda: find_kernels(torch.OutOfMemoryError('CUDA out of memory. Tried to allocate')))
        seen['kernels'] = find_kernels(RuntimeError('no compiler'))
        seen['demands'] = outcome(demand_different_operators)
        os.environ.pop('MIMIC3D_OPS')
        seen['operators'] = choose_operators()
        both = distributed.gather(seen)
        return {name: [one[name] for one in both] for name in seen} if both else None


def stop_without_a_word():
    os._exit(1)


def be_killed():
    os.kill(os.getpid(), signal.SIGKILL)


def bug():
    raise KeyError('a bug')


def mistake():
    raise Broken('a mistake')


def fail_before_they_meet(rank):
    """The process of that rank finds no GPU; the other one waits for it."""
    if int(os.environ['RANK']) == rank:
        distributed.pick_device = mistake
    with distributed.joined(timeout_minutes=1):
        distributed.wait_for_all()


def fail_between_steps(failure, rank, hang):
    """The process of that rank fails while the other one waits in a collective; or, with `hang`, for something else."""
    with distributed.joined(timeout_minutes=1):
        distributed.wait_for_all()
        if distributed.rank() == rank:
            failure()
        if hang:
            time.sleep(60)
        distributed.wait_for_all()


def discriminator_loss(*arguments):
    raise KeyError('a bug')


def train_with_a_bug(config):
    """On process 1."""
    if os.environ['RANK'] == '1':
        step.discriminator_loss = discriminator_loss
    training_loop.train(config)
