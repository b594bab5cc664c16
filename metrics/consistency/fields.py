"""What NeuS learns of a subject: a signed distance, colours and a sharpness (Wang et al. 2021, section 3.1).

Two fields with one face, and the encodings that they see points through. `build` makes a Scene, which the renderer asks for
distances and for shaded points; it is valid until the parameters change. Points are [P, 3] in units of half the box's side, so
that the scene is [-1, 1]^3.
"""

import math
from collections.abc import Callable
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import nn
from torch.nn.utils.parametrizations import weight_norm

# ---------------------------------------------------------------------------------------------------------------------
# What both fields share


class Scene(NamedTuple):
    """A subject as the renderer sees it.

    distance: points [P, 3] -> signed distance [P], negative inside; gradient: points [P, 3] -> its gradients [P, 3]; shade:
    points [P, 3], unit viewing directions [P, 3] -> Shaded; sharpness: the s of the logistic distribution;
    outside: points [P, 3] beyond the box, directions [P, 3] -> density [P] and rgb [P, 3], or None.
    """

    distance: Callable
    gradient: Callable
    shade: Callable
    sharpness: torch.Tensor
    outside: Callable | None


class Shaded(NamedTuple):
    """rgb [P, 3] in [0, 1], gradients [P, 3] of the distance, and its curvature [P], see `curvature`: None where
    the fields have no grid to measure it on."""

    rgb: torch.Tensor
    gradients: torch.Tensor
    curvature: torch.Tensor | None


class OutsideField(nn.Module):
    """Density and colour of what lies beyond the box, on contracted space: photographs only (docs/metrics.md)."""

    def __init__(self):
        super().__init__()
        self.grid = HashGrid(levels=10, coarsest=8, finest=512, table=16)
        self.network = _mlp([self.grid.width + 3, 64, 64, 4])

    def forward(self, points, directions):
        output = self.network(torch.cat([self.grid(contract(points) / 2), directions], dim=-1))
        return F.softplus(output[:, 0] - 1), torch.sigmoid(output[:, 1:])


def contract(points):
    """All of space into [-2, 2]^3: identity in [-1, 1]^3, infinity on the faces (after Barron et al. 2022, eq. 10)."""
    norm = points.abs().amax(dim=-1, keepdim=True).clamp(min=1)
    return points / norm * (2 - 1 / norm)


def _mlp(widths, reparametrise=lambda layer: layer):
    """Linear layers between `widths`, each but the last followed by a ReLU."""
    layers = [reparametrise(nn.Linear(*ends)) for ends in zip(widths, widths[1:])]
    return nn.Sequential(*[part for layer in layers[:-1] for part in (layer, nn.ReLU())], layers[-1])


class _Fields(nn.Module):
    """The variance network, which is one learned number v, and the outside."""

    def __init__(self, recipe, outside):
        super().__init__()
        self.variance = nn.Parameter(torch.tensor(recipe.initial_variance))
        self.outside = OutsideField() if outside else None

    def sharpness(self):
        """s = exp(10 v), the inverse of the logistic distribution's standard deviation; bounded, so that a fit that goes
        astray stays finite."""
        return torch.exp(10 * self.variance).clamp(1e-6, 1e6)

    def parameter_groups(self, recipe):
        """Adam's groups, each with the learning rate that the recipe's schedule multiplies."""
        groups = [(recipe.variance_rate, [self.variance]), *self._own_groups(recipe)]
        if self.outside is not None:
            # The outside is a grid in both recipes, and learns as grids do.
            groups += [(1e-2, [self.outside.grid.table]), (2e-3, list(self.outside.network.parameters()))]
        return [{'params': parameters, 'lr': rate} for rate, parameters in groups]


# ---------------------------------------------------------------------------------------------------------------------
# `neus-fast`: grids


class GridFields(_Fields):
    """`neus-fast`: the distance is a sum of grids, each twice as fine as the one before; colours come from a hash grid and
    a small network.

    A grid of n cells has n + 1 vertices, so a coarse grid is contained in every finer one, and the sum is one grid.
    """

    def __init__(self, recipe, outside=False):
        super().__init__(recipe, outside)
        levels = (recipe.finest_voxels // recipe.coarsest_voxels).bit_length()
        self.voxels = [recipe.coarsest_voxels * 2**level for level in range(levels)]
        self.view_frequencies = recipe.view_frequencies
        self.distances = nn.ParameterList([nn.Parameter(torch.zeros([n + 1] * 3)) for n in self.voxels])
        axis = torch.linspace(-1, 1, self.voxels[0] + 1)
        sphere = torch.stack(torch.meshgrid(axis, axis, axis, indexing='ij')).norm(dim=0) - recipe.initial_radius
        self.distances[0].data.copy_(sphere)
        self.features = HashGrid(
            recipe.feature_levels, recipe.coarsest_voxels, recipe.finest_feature_voxels, recipe.feature_table
        )
        width = self.features.width + 3 + frequency_width(3, recipe.view_frequencies)
        self.network = _mlp([width, recipe.hidden, recipe.hidden, 3])

    def build(self, progress=1.0):
        """The Scene. progress: share of the steps done; finer grids join one after the other over the first half."""
        active = min(len(self.voxels), 1 + int(progress * 2 * len(self.voxels)))
        grid = self.distances[0]
        for finer in self.distances[1:active]:
            grid = refine(grid) + finer
        step = 2 / self.voxels[active - 1]

        def distance(points):
            return look_up(grid, points)

        def gradient(points):
            return central_differences(look_up_around(grid, points, step)[1], step)

        def shade(points, directions):
            here, around = look_up_around(grid, points, step)
            gradients = central_differences(around, step)
            inputs = [self.features(points), F.normalize(gradients, dim=-1), frequencies(directions, self.view_frequencies)]
            rgb = torch.sigmoid(self.network(torch.cat(inputs, dim=-1)))
            return Shaded(rgb, gradients, curvature(here, around, step))

        return Scene(distance, gradient, shade, self.sharpness(), self.outside)

    def _own_groups(self, recipe):
        # A step moves a coarse grid by a larger share of its voxel than a fine one: shape has far to go, detail is noise first.
        shares = [recipe.grid_rate * (self.voxels[0] / n) ** 0.5 for n in self.voxels]
        grids = [(share * 2 / n, [grid]) for share, n, grid in zip(shares, self.voxels, self.distances)]
        return [*grids, (recipe.feature_rate, [self.features.table]), (recipe.network_rate, [*self.network.parameters()])]


def refine(grid):
    """The same trilinear function on twice as many cells: [n + 1]^3 -> [2n + 1]^3, exactly."""
    for axis in range(3):
        grid = grid.movedim(axis, 0)
        between = (grid[1:] + grid[:-1]) / 2
        refined = torch.stack([grid[:-1], between], dim=1).flatten(0, 1)
        grid = torch.cat([refined, grid[-1:]]).movedim(0, axis)
    return grid


def look_up(grid, points):
    """Trilinear interpolation of a grid [x, y, z] that spans [-1, 1]^3 at points [P, 3]; outside, the nearest face's."""
    where = points.flip(-1)[None, :, None, None]  # grid_sample counts the last axis first
    return F.grid_sample(grid[None, None], where, align_corners=True, padding_mode='border').flatten()


def look_up_around(grid, points, step):
    """The trilinear function at points [P, 3], and `step` ahead of and behind them along each axis: [P], [2, 3, P].

    Points within a step of the box's faces are moved inwards: beyond the faces there is no function to look up.
    """
    axes = step * torch.eye(3, dtype=points.dtype, device=points.device)
    points = points.clamp(step - 1, 1 - step)
    found = look_up(grid, torch.cat([points, *(points + axes[:, None]), *(points - axes[:, None])]))
    return found[: len(points)], found[len(points) :].reshape(2, 3, -1)


def central_differences(around, step):
    """Gradients [P, 3] from what `look_up_around` found around. With the voxel as step, this interpolates the vertices'
    differences, so it is continuous, which the trilinear function's own gradient is not."""
    return ((around[0] - around[1]) / (2 * step)).T


def curvature(here, around, step):
    """By how much the gradient turns over a step, summed over the axes: [P], the Laplacian times the step; from what
    `look_up_around` found."""
    return (around.sum(dim=(0, 1)) - 6 * here) / step


# ---------------------------------------------------------------------------------------------------------------------
# `neus`: the published networks


class NetworkFields(_Fields):
    """`neus`: the published networks (Wang et al. 2021, supplement)."""

    def __init__(self, recipe, outside=False):
        super().__init__(recipe, outside)
        self.distance_network = DistanceNetwork(recipe.hidden, recipe.position_frequencies, recipe.initial_radius)
        self.view_frequencies = recipe.view_frequencies
        width = 3 + 3 + frequency_width(3, recipe.view_frequencies) + recipe.hidden
        self.color_network = _mlp([width, *[recipe.hidden] * 4, 3], weight_norm)

    def build(self, progress=1.0):
        """The Scene; these networks have no schedule of their own, `progress` has no say."""
        return Scene(
            lambda points: self.distance_network(points)[:, 0],
            lambda points: self._differentiate(points)[1],
            self._shade,
            self.sharpness(),
            self.outside,
        )

    def _differentiate(self, points):
        """The network's output [P, 1 + hidden] at points and the distance's gradients there [P, 3]."""
        training = torch.is_grad_enabled()
        with torch.enable_grad():
            points = points.detach().requires_grad_()
            output = self.distance_network(points)
            (gradients,) = torch.autograd.grad(output[:, 0].sum(), points, create_graph=training)
        return (output, gradients) if training else (output.detach(), gradients)

    def _shade(self, points, directions):
        output, gradients = self._differentiate(points)
        inputs = [points, gradients, frequencies(directions, self.view_frequencies), output[:, 1:]]
        return Shaded(torch.sigmoid(self.color_network(torch.cat(inputs, dim=-1))), gradients, curvature=None)

    def _own_groups(self, recipe):
        return [(recipe.network_rate, [*self.distance_network.parameters(), *self.color_network.parameters()])]


class DistanceNetwork(nn.Module):
    """Eight hidden layers, the input again at the fifth, that start as the distance to a sphere (geometric initialisation:
    Atzmon and Lipman 2020). Points [P, 3] -> [P, 1 + hidden]: distance, features."""

    DEPTH, SKIP = 8, 4

    def __init__(self, hidden, frequency_count, radius):
        super().__init__()
        self.frequency_count = frequency_count
        encoded, layers = frequency_width(3, frequency_count), []
        for index in range(self.DEPTH):
            inputs = hidden if index else encoded
            outputs = hidden - encoded if index + 1 == self.SKIP else hidden
            layer = nn.Linear(inputs, outputs)
            nn.init.normal_(layer.weight, 0, (2 / outputs) ** 0.5)
            nn.init.zeros_(layer.bias)
            if index in (0, self.SKIP):  # sines and cosines have no say at first: a sphere needs the position alone
                layer.weight.data[:, inputs - encoded + 3 :] = 0
            layers.append(weight_norm(layer))
        self.hidden = nn.ModuleList(layers)
        output = nn.Linear(hidden, 1 + hidden)
        nn.init.normal_(output.weight[:1].data, (torch.pi / hidden) ** 0.5, 1e-4)
        nn.init.constant_(output.bias[:1].data, -radius)
        self.output = weight_norm(output)

    def forward(self, points):
        encoded = frequencies(points, self.frequency_count)
        x = encoded
        for index, layer in enumerate(self.hidden):
            if index == self.SKIP:
                x = torch.cat([x, encoded], dim=-1) / 2**0.5
            x = F.softplus(layer(x), beta=100)
        return self.output(x)


def make_fields(recipe, outside=False):
    """The fields that a recipe names; outside: learn what lies beyond the box, too."""
    return {'grid': GridFields, 'mlp': NetworkFields}[recipe.fields](recipe, outside)


# ---------------------------------------------------------------------------------------------------------------------
# Encodings of positions and directions

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
