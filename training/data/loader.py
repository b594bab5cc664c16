"""Batches of real images for one process of a run, from any position of the stream on."""

import contextlib

import torch

from dnnlib.errors import UserError
from torch_utils import distributed
from torch_utils.interrupts import ignore_stop_requests
from training.data.dataset import batch_indices


def real_batches(dataset, config, images_seen, end, pin_memory=False):
    """This process's rows of the batches at images_seen, images_seen + batch, ... before end.

    config: RunConfig. Yields (images uint8 [n, 3, R, R], cameras [n, 25]). Raises UserError for what the data set says.
    Close it (contextlib.closing): its helper processes ignore signals, and end only when they are told.
    """
    rows = slice(distributed.rank(), None, distributed.world_size())
    batches = (
        batch_indices(len(dataset), config.seed, start, config.batch)[rows].tolist()
        for start in range(images_seen, end, config.batch)
    )
    helpers = dict(num_workers=config.workers, prefetch_factor=4, worker_init_fn=ignore_stop_requests) if config.workers else {}
    return read_batches(dataset, batches, pin_memory=pin_memory, **helpers)


def read_batches(dataset, batches, **options):
    """Yields the items of a dataset, collated batch by batch. batches: lists of indices; options: of torch's DataLoader.

    Raises UserError for what the data set says.
    """
    for batch in torch.utils.data.DataLoader(_Batches(dataset), sampler=batches, batch_size=None, **options):
        if isinstance(batch, UserError):
            raise batch
        yield batch


class _Batches(torch.utils.data.Dataset):
    """The batches of a dataset, by their lists of indices. A UserError comes out in place of a batch: raised in a worker process,
    it would become a traceback."""

    def __init__(self, items):
        self.items = items

    def __getitem__(self, indices):
        try:
            return torch.utils.data.default_collate([self.items[index] for index in indices])
        except UserError as error:
            return error


@contextlib.contextmanager
def naming_dead_helpers():
    """torch's error about a process that read images and was killed, which can come at any moment, as UserError."""
    try:
        yield
    except RuntimeError as error:
        if 'DataLoader worker' not in str(error):
            raise
        reason = str(error).strip().splitlines()[0]
        raise UserError(f'a process that reads images was killed ({reason}); if memory ran out, lower --workers') from None
