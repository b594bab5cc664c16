"""One process fails, and all of them hear of it: they end, or go on, for the same named reason."""

import functools
import multiprocessing
import sys

import pytest

from dnnlib.errors import UserError
from tests.torch_utils import failing
from tests.torch_utils.failing import LONGEST_S
from torch_utils import distributed


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


# ---------------------------------------------------------------------------------------------------------------------
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


# ---------------------------------------------------------------------------------------------------------------------
# What the others say


def test_what_other_processes_say_is_kept_as_the_cause():
    with pytest.raises(distributed.LostContact) as caught, distributed._naming_the_loss():
        raise RuntimeError('[enforce fail] Connection closed by peer. And so on')
    assert 'Connection closed by peer' in str(caught.value) and isinstance(caught.value.__cause__, RuntimeError)


def test_a_killed_helper_is_no_loss_of_contact():
    with pytest.raises(RuntimeError, match='DataLoader worker') as caught, distributed._naming_the_loss():
        raise RuntimeError('DataLoader worker (pid 3) is killed by signal: Killed.')
    assert not isinstance(caught.value, UserError)
