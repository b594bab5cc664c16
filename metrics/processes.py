"""How the processes of a run share the work on a metric."""

from dnnlib.errors import UserError
from torch_utils import distributed


def from_first(function):
    """What `function()` returns on the first process, on all of them; it is called there alone.

    A UserError that it raises is raised everywhere, so that no process waits for another that gave up.
    """
    answer = [None, None]
    if distributed.rank() == 0:
        try:
            answer[0] = function()
        except UserError as error:
            answer[1] = error
    answer = distributed.share(answer)
    if answer[1] is not None:
        raise answer[1]
    return answer[0]


def my_batches(count, batch):
    """This process's share of images 0 .. count - 1, as ranges of up to `batch` numbers.

    Whole batches are dealt out. So an image is always computed together with the same others, and its features do not
    depend on the number of processes to the last bit.
    """
    return [range(start, min(start + batch, count))
            for start in range(distributed.rank() * batch, count, distributed.world_size() * batch)]
