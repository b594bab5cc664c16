"""Random numbers that do not depend on how a batch is split.

A training step draws for the whole batch and keeps the rows it works on, so one process and eight processes see the
same numbers for the same image; and the generator is keyed by what identifies the step, so nothing needs saving.
"""

import numpy as np
import torch


def keyed_generator(key, device='cpu'):
    """A torch.Generator whose stream depends on all the integers of `key`."""
    words = np.random.SeedSequence([int(part) for part in key]).generate_state(2, np.uint32)
    return torch.Generator(device).manual_seed((int(words[0]) << 31) ^ int(words[1]))


class BatchRandom:
    """Draws for rows `rows` (a slice) of a batch of `batch` samples.

    With `generator=None` it uses torch's global generator of the device.
    """

    def __init__(self, batch, device='cpu', generator=None, rows=slice(None)):
        self.batch, self.device, self.generator, self.rows = batch, torch.device(device), generator, rows

    def normal(self, *shape):
        """Standard normal numbers [rows, *shape]."""
        return torch.randn(self.batch, *shape, device=self.device, generator=self.generator)[self.rows]

    def uniform(self, *shape):
        """Numbers uniform in [0, 1), [rows, *shape]."""
        return torch.rand(self.batch, *shape, device=self.device, generator=self.generator)[self.rows]

    def integers(self, high, *shape):
        """Integers uniform in [0, high), [rows, *shape]."""
        return torch.randint(high, (self.batch, *shape), device=self.device, generator=self.generator)[self.rows]
