"""Random numbers that do not depend on how a batch is split.

A training step draws for the whole batch and keeps the rows it works on, so one process and eight processes see the
same numbers for the same image; and the generator is keyed by what identifies the step, so nothing needs saving.
"""

import numpy as np
import torch


def keyed_generator(key, device='cpu'):
    """A torch.Generator whose stream depends on all the integers of `key`, 0 to 2^64 - 1, and on how many there are."""
    # SeedSequence pads what it is given with zeros and writes integers in as few words as they need: the count and a fixed
    # width keep (1,), (1, 0) and (0, 1) apart.
    words = [len(key), *(word for part in key for word in divmod(int(part), 2**32))]
    words = np.random.SeedSequence(words).generate_state(2, np.uint32)
    return torch.Generator(device).manual_seed((int(words[0]) << 31) ^ int(words[1]))


class BatchRandom:
    """Draws for rows `rows` (a slice) of a batch of `batch` samples.

    generator: of the device; host_generator: of the CPU, for numbers that decide sizes. None: torch's global ones.
    """

    def __init__(self, batch, device='cpu', generator=None, rows=slice(None), host_generator=None):
        self.batch, self.device, self.generator, self.rows = batch, torch.device(device), generator, rows
        self.host_generator = host_generator

    @classmethod
    def keyed(cls, key, batch, device='cpu', rows=slice(None)):
        """Draws that depend on the integers of `key` alone."""
        return cls(batch, device, keyed_generator((0, *key), device), rows, keyed_generator((1, *key)))

    def normal(self, *shape):
        """Standard normal numbers [rows, *shape]."""
        return torch.randn(self.batch, *shape, device=self.device, generator=self.generator)[self.rows]

    def uniform(self, *shape):
        """Numbers uniform in [0, 1), [rows, *shape]."""
        return torch.rand(self.batch, *shape, device=self.device, generator=self.generator)[self.rows]

    def integers(self, high, *shape):
        """Integers uniform in [0, high), [rows, *shape]."""
        return torch.randint(high, (self.batch, *shape), device=self.device, generator=self.generator)[self.rows]
