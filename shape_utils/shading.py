"""Pictures of a surface without a mesh and without OpenGL: rays through a grid of densities, lit by a headlight.

The surface is that of `shape_utils.mesh`, from the same grid at the same level. Lengths are in world units.
"""

import math
from typing import NamedTuple

import torch
import torch.nn.functional as F

from training.rendering.cameras import cast_rays, intersect_box, pixel_centres

_SUPERSAMPLING = 2  # rays per pixel along each side: outlines are hard edges, which one ray per pixel would leave jagged
_BISECTIONS = 8  # of a step along the ray: the surface is found to within 1/256 of a voxel
_AMBIENT, _DIFFUSE = 0.15, 0.65  # a grey body on white: what faces the camera is 0.8, outlines are dark
_LOOKUPS_PER_PASS = 2**22  # bounds the memory


class Surface(NamedTuple):
    """The surface density = level of a grid that fills a centred box and is empty at the box's faces."""

    density: torch.Tensor  # [R, R, R], indexed [x, y, z]
    level: float
    box_size: float

    @property
    def voxel(self):
        return self.box_size / (len(self.density) - 1)

    def density_at(self, points):
        """Trilinear lookups [...] at points [..., 3]; zero outside."""
        grid = points.flip(-1).mul(2 / self.box_size).reshape(1, 1, 1, -1, 3)  # grid_sample calls the last axis x
        return F.grid_sample(self.density[None, None], grid, align_corners=True).reshape(points.shape[:-1])

    def normals_at(self, points):
        """Unit vectors [P, 3] towards lower density at points [P, 3]: central differences over two voxels."""
        offsets = self.voxel * torch.eye(3, device=points.device)
        below, above = self.density_at(points[:, None, None] + torch.stack([-offsets, offsets])).unbind(dim=1)
        return F.normalize(below - above, dim=-1)


def first_hits(surface, origins, directions):
    """Where rays enter the surface from outside for the first time.

    origins, directions (unit length): [M, 3]. Steps of at most a voxel, then bisection; what is thinner may be missed.
    Returns points [M, 3], of rays that miss anything, and whether rays hit [M].
    """
    near, far, crosses = intersect_box(origins, directions, surface.box_size)
    steps = math.ceil(math.sqrt(3) * (len(surface.density) - 1)) + 1  # voxels along the box's diagonal
    depths = torch.lerp(near.clamp(min=0), far, torch.linspace(0, 1, steps, device=origins.device))
    inside = surface.density_at(origins[:, None] + directions[:, None] * depths[..., None]) >= surface.level
    first = inside.int().argmax(dim=1, keepdim=True)
    before, after = depths.gather(1, (first - 1).clamp(min=0)), depths.gather(1, first)
    for _ in range(_BISECTIONS):
        middle = (before + after) / 2
        entered = (surface.density_at(origins + directions * middle) >= surface.level)[:, None]
        before, after = middle.where(~entered, before), middle.where(entered, after)
    return origins + directions * after, inside.any(dim=1) & crosses[:, 0]


@torch.no_grad()
def shaded_view(surface, label, size):
    """A picture [3, size, size] in [-1, 1] of the surface from a camera, label [1, 25]: grey on white.

    Lambert's law with the light at the camera: what faces it is brightest.
    """
    side = size * _SUPERSAMPLING
    origins, directions = cast_rays(label, pixel_centres(side, label.device))
    rays_per_pass = max(1, _LOOKUPS_PER_PASS // len(surface.density))
    passes = zip(origins[0].split(rays_per_pass), directions[0].split(rays_per_pass))
    brightness = torch.cat([_brightness(surface, *rays) for rays in passes])
    picture = F.avg_pool2d(brightness.reshape(1, side, side), _SUPERSAMPLING)
    return (picture * 2 - 1).expand(3, -1, -1)


def _brightness(surface, origins, directions):
    """Of rays [M, 3], in [0, 1]: [M]."""
    points, hit = first_hits(surface, origins, directions)
    facing = -(surface.normals_at(points) * directions).sum(dim=-1)
    return (_AMBIENT + _DIFFUSE * facing.clamp(0, 1)).where(hit, 1.0)
