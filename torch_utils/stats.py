"""Running statistics of a training loop: report anywhere, collect once a tick."""

import json
import os

import torch

from torch_utils import distributed


class Statistics:
    """Means of reported values since the last `collect`, over all processes. device: where the sums are kept."""

    def __init__(self, device='cpu'):
        self._device, self._sums = device, {}  # name -> [count, sum]

    def report(self, name, values):
        """Add values (a tensor of any shape, or a number) under a name such as 'loss/G'."""
        values = torch.as_tensor(values, device=self._device).detach().double()
        entry = torch.stack([values.new_full((), values.numel()), values.sum()])
        self._sums[name] = entry if name not in self._sums else self._sums[name] + entry

    def collect(self):
        """The means by name, and start anew. Every process must call it and have reported the same names."""
        totals = self.state()
        self._sums = {}
        return {name: total / count for name, (count, total) in totals.items()}

    def state(self):
        """[count, sum] over all processes by name: what a restart needs. Every process must call it, as for `collect`."""
        names = sorted(self._sums)
        if not names:
            return {}
        return dict(zip(names, distributed.total(torch.stack([self._sums[name] for name in names])).tolist()))

    def restore(self, state):
        """Go on from what `state` gave. Every process must call it; the first one counts on from there, the others from 0."""
        here = state if distributed.rank() == 0 else dict.fromkeys(state, (0.0, 0.0))
        self._sums = {name: torch.tensor(entry, dtype=torch.float64, device=self._device) for name, entry in here.items()}


def append_json_line(path, record):
    """Append one record to a .jsonl file."""
    with open(path, 'a') as file:
        file.write(json.dumps(record) + '\n')


def cut(path, size):
    """Shorten a file to `size` bytes: what was appended later is forgotten. A file that is not there counts as empty."""
    if os.path.exists(path) and os.path.getsize(path) > size:
        os.truncate(path, size)
