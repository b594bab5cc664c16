"""When the GPU's memory is full."""

import contextlib

import torch

from dnnlib.errors import UserError


@contextlib.contextmanager
def naming_memory(cure):
    """A block, or as a decorator a function, whose want of GPU memory becomes a UserError with the cure."""
    try:
        yield
    except torch.OutOfMemoryError as error:
        reason = (str(error).strip().splitlines() or ['out of memory'])[0]  # torch appends advice of its own
        raise UserError(f'the GPU has too little memory; {cure} ({reason[:200]})') from None
