"""The geometry of subjects: what their density is like as a solid body."""

from dataclasses import dataclass

import click
import torch

from dnnlib.errors import UserError
from dnnlib.options import setting
from dnnlib.params import FiniteFloat
from shape_utils.grid import density_grid
from shape_utils.mesh import DEFAULT_LEVEL, cleared_grid
from shape_utils.shading import Surface, shaded_view

SURFACES = 'Surfaces'  # heading of --help


@dataclass(frozen=True, kw_only=True)
class SurfaceOptions:
    """Where a subject's surface is: the options that gen_samples.py and gen_videos.py share."""

    shape_resolution: int = setting(
        256, '--shape-resolution', click.IntRange(8, 2048), 'Points per side of the grid in which it is looked for.', SURFACES
    )
    shape_level: float = setting(DEFAULT_LEVEL, '--shape-level', FiniteFloat(), 'Density at it, per world unit.', SURFACES)

    def shaded(self, G, subject, label, branch, size):
        """A picture [3, size, size] in [-1, 1] of the surface of a Subject, seen by a camera, label [1, 25]: grey on white.

        The surface is that of the density that `branch` renders, for the 2D branch that of the coarse planes. It is looked for
        once per subject. Raises UserError when no density crosses the level.
        """
        fine = branch == '3d'
        if fine not in subject.surfaces:
            subject.surfaces[fine] = self._surface(G, subject.planes, fine)
        return shaded_view(subject.surfaces[fine], label.to(subject.ws.device), size)

    def _surface(self, G, planes, fine):
        density = density_grid(G, planes, self.shape_resolution, fine=fine)
        try:
            density = cleared_grid(density, self.shape_level)
        except UserError as error:
            raise UserError(f'--shape-level: {error}') from None
        return Surface(torch.from_numpy(density).to(planes.coarse.device), self.shape_level, G.config.rendering.box_size)
