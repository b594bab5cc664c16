"""Features of positions and directions: sines and cosines, and a hashed multi-resolution grid."""

import math

import torch
from torch import nn

# Large primes, one per axis: neighbouring cells spread over the table (Teschner et al. 2003).
_PRIMES = (1, 2_654_435_761, 805_459_861)


def frequencies(x, count):
    """x [P, D] with the sines and cosines of x, 2x, ... 2^(count - 1) x: [P, D (1 + 2 count)] (Mildenhall et al. 2020)."""
    scaled = [x * 2**i for i in range(count)]
    return torch.cat([x, *(wave(part) for part in scaled for wave in (torch.sin, torch.cos))], dim=-1)


def frequency_width(size, count):
    return size * (1 + 2 * count)


class HashGrid(nn.Module):
    """Features of points in [-1, 1]^3, interpolated in grids of rising resolution whose vertices share hashed entries
    (Müller et al. 2022, section 3).

    levels: grids; coarsest, finest: their cells per side, rising geometrically; table: log2 of the entries per level.
    """

    def __init__(self, levels, coarsest, finest, table, features=4):
        super().__init__()
        growth = (finest / coarsest) ** (1 / max(1, levels - 1))
        cells = [math.floor(coarsest * growth**level + 0.5) for level in range(levels)]
        self.entries, self.width = 2**table, levels * features
        self.register_buffer('cells', torch.tensor(cells), persistent=False)
        self.register_buffer('starts', self.entries * torch.arange(levels)[:, None, None, None], persistent=False)
        self.table = nn.Parameter(torch.empty(levels * self.entries, features).uniform_(-1e-4, 1e-4))

    def forward(self, points):
        """points: [P, 3] in [-1, 1] -> [P, levels * features]. Differentiable in the table only."""
        with torch.no_grad():
            scaled = (points[:, None] + 1) / 2 * self.cells[:, None]  # [P, L, 3]
            lowest = torch.minimum(scaled.floor(), self.cells[:, None] - 1).clamp(min=0)
            share = scaled - lowest
            x, y, z = _by_axis(torch.stack([1 - share, share], dim=-1))
            entries = self._entries(*_by_axis(torch.stack([lowest, lowest + 1], dim=-1).long()))
            weights = x * y * z
        # The backward pass of index_select is, on a CPU, four times faster than that of an embedding.
        looked_up = self.table.index_select(0, entries.flatten()).unflatten(0, entries.shape[:2] + (8,))  # [P, L, 8, F]
        return torch.einsum('plcf,plc->plf', looked_up, weights.flatten(2)).flatten(1)

    def _entries(self, x, y, z):
        """Rows of the table [P, L, 2, 2, 2] of the vertices around points, whose coordinates are given by axis: one to one
        where a level's vertices fit its share of the table, else hashed."""
        side = (self.cells + 1)[:, None, None, None]
        in_order = x + side * (y + side * z)
        hashed = (x * _PRIMES[0]) ^ (y * _PRIMES[1]) ^ (z * _PRIMES[2])
        return torch.where(side**3 <= self.entries, in_order, hashed & (self.entries - 1)) + self.starts


def _by_axis(values):
    """values [P, L, 3, 2] as three tensors that broadcast to [P, L, 2, 2, 2]."""
    x, y, z = values.unbind(dim=2)
    return x[..., :, None, None], y[..., None, :, None], z[..., None, None, :]
