"""What the benchmarks of rendering and of the generator share."""

import json
import platform

import torch


def device_name(device):
    return torch.cuda.get_device_name(device) if device.type == 'cuda' else platform.processor() or platform.machine()


def peak_megabytes(function, device):
    """MiB that a call takes beyond what is there before it; None on a CPU."""
    if device.type != 'cuda':
        return None
    torch.cuda.synchronize(device)
    torch.cuda.reset_peak_memory_stats(device)
    before = torch.cuda.memory_allocated(device)
    function()
    torch.cuda.synchronize(device)
    return (torch.cuda.max_memory_allocated(device) - before) / 2**20


def markdown(titles, rows):
    """Lines of a Markdown table. A None is a dash."""
    yield '| ' + ' | '.join(titles) + ' |'
    yield '|' + len(titles) * '---|'
    for row in rows:
        yield '| ' + ' | '.join('-' if cell is None else str(cell) for cell in row) + ' |'


def number(value, digits):
    """A number as text; None stays None."""
    return None if value is None else f'{value:.{digits}f}'


def write_json(result, path):
    with open(path, 'w') as file:
        json.dump(result, file, indent=1)
