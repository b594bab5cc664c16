"""Running statistics of a training loop: report anywhere, collect once a tick."""

import json

import torch

from torch_utils import distributed


class Statistics:
    """Means of reported values since the last `collect`, over all processes."""

    def __init__(self):
        self._sums = {}  # name -> [count, sum]

    def report(self, name, values):
        """Add values (a tensor of any shape, or a number) under a name such as 'loss/G'."""
        values = torch.as_tensor(values).detach().double()
        entry = torch.stack([torch.tensor(float(values.numel()), dtype=torch.float64, device=values.device), values.sum()])
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
