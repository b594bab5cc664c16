"""The surface of a reconstruction as a mesh."""

import numpy as np
import torch
import torch.nn.functional as F
from scipy import ndimage

from dnnlib.errors import UserError
from shape_utils.grid import sample_grid
from shape_utils.mesh import isosurface, vertex_colors


@torch.no_grad()
def extract_surface(reconstruction, resolution=256):
    """Where the signed distance is zero, by marching cubes: a coloured trimesh.Trimesh in world units, normals outward.

    reconstruction: trainer.Reconstruction; resolution: grid points per side of the box. A vertex has the colour that is
    seen from straight above it. Raises UserError where there is no surface.
    """
    box_size = reconstruction.box_size
    scene = reconstruction.fields.build()
    device = next(reconstruction.fields.parameters()).device
    distance = fill_hollows(sample_grid(scene.distance, 2.0, resolution, device), reconstruction.eyes)
    if not (distance < 0).any():
        raise UserError('the reconstruction has no surface to write as a mesh: leave out --meshes, or fit it longer')
    # `isosurface` takes what is high inside and 0 outside: 1 - distance, which has its surface at 1.
    mesh = isosurface((1 - distance).numpy(), 1.0, box_size)

    def seen_from_above(points):
        return scene.shade(points, -F.normalize(scene.gradient(points), dim=-1)).rgb

    mesh.visual.vertex_colors = vertex_colors(seen_from_above, mesh.vertices * 2 / box_size, device)
    return mesh


def fill_hollows(distance, eyes):
    """Signed distances [R, R, R] over the box, without hollows that no view sees into: sealed, with none of the eyes [V, 3] in
    them. What a fit leaves there means nothing."""
    hollow, _ = ndimage.label(distance.numpy() >= 0)
    seen = {0, *(label for axis in range(3) for face in (0, -1) for label in np.unique(hollow.take(face, axis)))}
    inside = eyes[(eyes.abs() < 1).all(dim=-1)]
    nearest = ((inside + 1) / 2 * (len(distance) - 1)).round().long().tolist()
    seen |= {hollow[tuple(index)] for index in nearest}
    return torch.where(torch.from_numpy(np.isin(hollow, list(seen))), distance, -distance)
