"""How a subject is reconstructed: the published recipe of NeuS, and a fast one on the same code (docs/metrics.md).

Lengths are in units of half the box's side: the scene is the cube [-1, 1]^3.
"""

import math
from typing import NamedTuple


class Recipe(NamedTuple):
    """Every number of a reconstruction."""

    name: str
    fields: str  # 'mlp': the published networks; 'grid': multi-resolution grids
    steps: int
    rays: int  # per step
    coarse_samples: int  # per ray, stratified
    rounds: int  # of up-sampling
    samples_per_round: int
    first_round_sharpness: float  # s of the first round; it doubles from round to round
    negligible_weight: float  # sections below it are given no colour; 0: all are, and have a part in the eikonal loss
    most_shaded: int  # sections of a ray that are given a colour; 0: all
    initial_radius: float  # of the sphere that the surface starts as
    initial_variance: float  # v of s = exp(10 v)
    color_loss: str  # 'l1' or 'l2'
    eikonal_weight: float
    eikonal_points: int  # random points of the box per step, beside those on the rays
    smoothness_weight: float  # of the curvature, at the shaded sections
    warmup: float  # share of the steps during which the learning rates rise
    final_rate: float  # share of the learning rates that the cosine ends at
    network_rate: float  # learning rates, of Adam
    variance_rate: float
    grid_rate: float = 0.0  # of the coarsest distance grid, in its voxels: what a step may move the surface by
    feature_rate: float = 0.0
    coarsest_voxels: int = 0  # per side, of the distance grid
    finest_voxels: int = 0
    feature_levels: int = 0
    finest_feature_voxels: int = 0
    feature_table: int = 0  # log2 of the entries per level
    hidden: int = 256  # width of the networks
    position_frequencies: int = 6
    view_frequencies: int = 4

    def rate_factor(self, step):
        """What all learning rates are multiplied by at `step`: a linear warm-up, then a cosine."""
        warmup = max(1, round(self.warmup * self.steps))
        if step < warmup:
            return (step + 1) / warmup
        progress = (step - warmup) / max(1, self.steps - warmup)
        return self.final_rate + (1 - self.final_rate) * 0.5 * (1 + math.cos(math.pi * progress))


def published(**changes):
    """The networks, samples, losses and schedule of NeuS as published (Wang et al. 2021, section 4.1 and supplement;
    docs/method.md, section 7); up-sampling is this package's own (rendering.possible_weights)."""
    recipe = Recipe(
        name='neus',
        fields='mlp',
        steps=300_000,
        rays=512,
        coarse_samples=64,
        rounds=4,
        samples_per_round=16,
        first_round_sharpness=64,
        negligible_weight=0.0,
        most_shaded=0,
        initial_radius=0.5,
        initial_variance=0.3,
        color_loss='l1',
        eikonal_weight=0.1,
        eikonal_points=0,
        smoothness_weight=0.0,
        warmup=5000 / 300_000,
        final_rate=0.05,
        network_rate=5e-4,
        variance_rate=5e-4,
    )
    return recipe._replace(**changes)


def fast(image_side, **changes):
    """The fast recipe for images of `image_side` pixels; the grids are as fine as the pixels make use of: about a
    voxel per pixel up to 128 pixels; beyond, where such a grid would cost more than it gives, per two."""
    side = min(max(image_side, 32), 512)
    voxels = 2 ** round(math.log2(side))
    recipe = Recipe(
        name='neus-fast',
        fields='grid',
        steps=2000,
        rays=1024,
        coarse_samples=48,
        rounds=2,
        samples_per_round=12,
        first_round_sharpness=64,
        negligible_weight=1e-3,
        most_shaded=12,
        initial_radius=0.5,
        initial_variance=0.3,
        color_loss='l1',
        eikonal_weight=0.1,
        eikonal_points=2048,
        smoothness_weight=3e-3,
        warmup=0.02,
        final_rate=0.05,
        network_rate=2e-3,
        variance_rate=6e-3,
        grid_rate=0.04,
        feature_rate=1e-2,
        coarsest_voxels=16,
        finest_voxels=max(voxels // 2, min(voxels, 128)),
        feature_levels=6,
        finest_feature_voxels=4 * side,
        feature_table=15 if side <= 128 else 18,
        hidden=64,
        position_frequencies=0,
        view_frequencies=1,
    )
    return recipe._replace(**changes)


RECIPES = {'neus-fast': fast, 'neus': lambda image_side, **changes: published(**changes)}  # the first is the default
