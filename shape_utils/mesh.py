"""Surfaces of a subject: marching cubes of its density, coloured by the generator."""

import numpy as np
import torch
import trimesh
from skimage.measure import marching_cubes

from dnnlib.errors import UserError
from shape_utils.grid import density_grid

DEFAULT_LEVEL = 10.0  # density per world unit: half of the light is absorbed within 7 % of a unit box
DEFAULT_BORDER = 0.02  # share of the box's side


def extract_mesh(G, planes, resolution=256, level=DEFAULT_LEVEL, border=DEFAULT_BORDER, progress=True):
    """The coloured surface where the density of one subject crosses `level`.

    G: a generator; planes: its tri-planes of one subject; resolution: grid points per side of the box;
    level: density after activation, per world unit; border: share of the box's side that is cleared
    at every face, see `isosurface`.
    Returns a closed trimesh.Trimesh in world units (+y up), normals outward, with colours at its vertices.
    Raises UserError when no density crosses the level.
    """
    density = density_grid(G, planes, resolution, progress=progress)
    mesh = isosurface(density, level, G.config.rendering.box_size, border)
    mesh.visual.vertex_colors = vertex_colors(
        lambda points: G.query(planes, points[None])[1][0, :, :3].float(), mesh.vertices, planes.coarse.device
    )
    return mesh


def isosurface(density, level, box_size, border=DEFAULT_BORDER):
    """The surface density = level of a grid [R, R, R], indexed [x, y, z], that spans a centred box of side `box_size`.

    The grid's outer shell counts as empty, see `cleared_grid`. Returns a trimesh.Trimesh in world units with normals towards
    lower density. Raises UserError when the level is not between the extremes inside the shell.
    """
    cleared = cleared_grid(density, level, border)
    spacing = box_size / (len(density) - 1)
    # scikit-image winds by the left hand: its 'ascent' is what turns our normals outward.
    vertices, faces, _, _ = marching_cubes(cleared, level, spacing=(spacing,) * 3, gradient_direction='ascent')
    return trimesh.Trimesh(vertices - box_size / 2, faces)


def cleared_grid(density, level, border=DEFAULT_BORDER):
    """The density grid [R, R, R] with zeros in its outer shell, `border` of the side thick and at least the outermost points.

    Stray density gathers at the box's faces, which no training camera sees from outside, and so every surface closes inside
    the box. Raises UserError when the level is not between the extremes inside the shell.
    """
    shell = max(1, round(border * (len(density) - 1)))
    inside = (slice(shell, -shell),) * 3
    lowest, highest = float(density[inside].min()), float(density[inside].max())
    if not max(lowest, 0) < level < highest:
        raise UserError(
            f'no surface at density {level:g}: the densities found range from {lowest:.4g} to '
            f'{highest:.4g}; choose a positive level between them'
        )
    cleared = np.zeros_like(density)
    cleared[inside] = density[inside]
    return cleared


@torch.no_grad()
def vertex_colors(rgb, vertices, device, chunk=2**18):
    """8-bit sRGB [V, 3] of points [V, 3], by a function: points [P, 3] on `device` -> rgb [P, 3], clamped to [0, 1]."""
    points = torch.as_tensor(np.asarray(vertices), dtype=torch.float32, device=device)
    colors = torch.cat([rgb(part) for part in points.split(chunk)])
    return (colors.clamp(0, 1) * 255).round().to(torch.uint8).cpu().numpy()
