"""How the processes of a run share the work on a metric."""

from torch_utils import distributed


def my_batches(count, batch):
    """This process's share of images 0 .. count - 1, as ranges of up to `batch` numbers.

    Whole batches are dealt out. So an image is always computed together with the same others, and its features are
    bit-identical for any number of processes.
    """
    return [
        range(start, min(start + batch, count))
        for start in range(distributed.rank() * batch, count, distributed.world_size() * batch)
    ]
