"""Values on a regular grid, such as the density of a subject."""

import numpy as np
import torch
from tqdm import tqdm


def grid_axis(box_size, resolution):
    """Coordinates [resolution] of the grid points along any axis, world units: both faces of the box are included."""
    return np.linspace(-box_size / 2, box_size / 2, resolution)


def density_grid(G, planes, resolution, chunk=2**18, progress=True, fine=True):
    """Density at resolution^3 points that fill the generator's box, faces included.

    G: a generator; planes: its tri-planes of one subject; chunk, progress: see `sample_grid`;
    fine: with the residual planes, where there are any.
    Returns float32 [resolution, resolution, resolution], indexed [x, y, z]: density after activation,
    softplus(sigma - 1), per world unit.
    """

    def density(points):
        return torch.nn.functional.softplus(G.query(planes, points[None], fine=fine)[0][0, :, 0].float() - 1)

    return sample_grid(density, G.config.rendering.box_size, resolution, planes.coarse.device, chunk, progress).numpy()


@torch.no_grad()
def sample_grid(field, box_size, resolution, device, chunk=2**18, progress=False):
    """Values of a field, points [P, 3] -> [P], at resolution^3 points that fill a centred box of side `box_size`, faces included.

    device: where the points are asked for; chunk: points at once, which bounds the memory; progress: show a progress bar.
    Returns float32 [resolution, resolution, resolution], indexed [x, y, z], on the CPU.
    """
    axis = torch.as_tensor(grid_axis(box_size, resolution), dtype=torch.float32, device=device)
    values = torch.empty(resolution**3, dtype=torch.float32)
    for start in tqdm(range(0, len(values), chunk), desc='grid', unit='chunk', disable=not progress, leave=False):
        index = torch.arange(start, min(start + chunk, len(values)), device=device)
        points = torch.stack(
            [axis[index // resolution**2], axis[index // resolution % resolution], axis[index % resolution]], dim=-1
        )
        values[start : start + len(index)] = field(points).cpu()
    return values.reshape(resolution, resolution, resolution)
