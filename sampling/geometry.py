"""The geometry of subjects: what their density is like as a solid body."""

from dataclasses import dataclass

import click
import torch

from dnnlib.options import setting
from dnnlib.params import FiniteFloat
from shape_utils.grid import density_grid
from shape_utils.mesh import DEFAULT_LEVEL, cleared_grid
from shape_utils.shading import Surface

SURFACES = 'Surfaces'  # heading of --help


@dataclass(frozen=True, kw_only=True)
class SurfaceOptions:
    """Where a subject's surface is: the options that gen_samples.py and gen_videos.py share."""

    shape_resolution: int = setting(
        256, '--shape-resolution', click.IntRange(8, 2048), 'Points per side of the grid in which it is looked for.', SURFACES
    )
    shape_level: float = setting(DEFAULT_LEVEL, '--shape-level', FiniteFloat(), 'Density at it, per world unit.', SURFACES)

    def surface(self, G, subject, branch):
        """The Surface of a Subject as `branch` renders it: the 2D branch renders the coarse planes.

        Raises UserError when no density crosses the level.
        """
        planes = subject.planes if branch == '3d' else subject.planes._replace(residual=None)
        density = cleared_grid(density_grid(G, planes, self.shape_resolution), self.shape_level)
        return Surface(torch.from_numpy(density).to(planes.coarse.device), self.shape_level, G.config.rendering.box_size)
