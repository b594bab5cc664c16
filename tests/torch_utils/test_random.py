"""Keyed random numbers."""

import itertools

import torch

from torch_utils.random import keyed_generator


def test_different_keys_give_different_streams():
    """Lengths, zeros at either end, and parts that need two words."""
    parts = (0, 1, 2**32, 2**32 + 1)
    keys = [key for length in (1, 2, 3) for key in itertools.product(parts, repeat=length)]
    streams = {torch.rand(4, generator=keyed_generator(key)).numpy().tobytes() for key in keys}
    assert len(streams) == len(keys)
    assert torch.equal(torch.rand(4, generator=keyed_generator((1, 2))), torch.rand(4, generator=keyed_generator((1, 2))))
