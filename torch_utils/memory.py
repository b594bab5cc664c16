"""When the GPU's memory is full."""

import contextlib

import torch

from dnnlib.errors import UserError, first_line


@contextlib.contextmanager
def naming_memory(cure):
    """A block, or as a decorator a function, whose want of GPU memory becomes a UserError with the cure."""
    try:
        yield
    except torch.OutOfMemoryError as error:
        raise UserError(f'the GPU has too little memory; {cure} ({first_line(error)})') from None
