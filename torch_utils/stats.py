"""Running statistics of a training loop: report anywhere, collect once a tick."""

import json

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
        names = sorted(self._sums)
        if not names:
            return {}
        table = distributed.total(torch.stack([self._sums[name] for name in names]))
        self._sums = {}
        return {name: float(total / count) for name, (count, total) in zip(names, table.tolist())}


def append_json_line(path, record):
    """Append one record to a .jsonl file."""
    with open(path, 'a') as file:
        file.write(json.dumps(record) + '\n')
