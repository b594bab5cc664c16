"""Density of a subject on a regular grid."""

import numpy as np
import torch
from tqdm import tqdm


def grid_axis(box_size, resolution):
    """Coordinates [resolution] of the grid points along any axis, world units: both faces of the box are included."""
    return np.linspace(-box_size / 2, box_size / 2, resolution)


@torch.no_grad()
def density_grid(G, planes, resolution, chunk=2**18, progress=True):
    """Density at resolution^3 points that fill the generator's box, faces included.

    G: a generator; planes: its tri-planes of one subject; chunk: points per query, which bounds the memory;
    progress: show a progress bar.
    Returns float32 [resolution, resolution, resolution], indexed [x, y, z]: density after activation,
    softplus(sigma - 1), per world unit.
    """
    device = planes.coarse.device
    axis = torch.as_tensor(grid_axis(G.config.rendering.box_size, resolution), dtype=torch.float32, device=device)
    density = torch.empty(resolution**3, dtype=torch.float32)
    for start in tqdm(range(0, len(density), chunk), desc='density', unit='chunk', disable=not progress, leave=False):
        index = torch.arange(start, min(start + chunk, len(density)), device=device)
        points = torch.stack(
            [axis[index // resolution**2], axis[index // resolution % resolution], axis[index % resolution]], dim=-1
        )
        sigma, _ = G.query(planes, points[None])
        density[start : start + len(index)] = torch.nn.functional.softplus(sigma[0, :, 0].float() - 1).cpu()
    return density.reshape(resolution, resolution, resolution).numpy()
