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
    loader = torch.utils.data.DataLoader(
        CarryErrors(dataset), batch_sampler=batches, collate_fn=collate_or_error, pin_memory=pin_memory, **helpers
    )
    for batch in loader:
        if isinstance(batch, UserError):
            raise batch
        yield batch


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


class CarryErrors(torch.utils.data.Dataset):
    """A dataset whose users' errors come out as items: raised in a worker process, they would become tracebacks."""

    def __init__(self, dataset):
        self.dataset = dataset

    def __len__(self):
        return len(self.dataset)

    def __getitem__(self, index):
        try:
            return self.dataset[index]
        except UserError as error:
            return error


def collate_or_error(items):
    """A batch, or the first error among its items."""
    errors = [item for item in items if isinstance(item, UserError)]
    return errors[0] if errors else torch.utils.data.default_collate(items)
