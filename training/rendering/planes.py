"""Looking points up in tri-planes (docs/method.md, section 2)."""

import torch
import torch.nn.functional as F


def sample_planes(planes, points, box_size, axes):
    """Features of points: the mean over the planes of bilinear lookups, zeros outside.

    planes: [N, K, C, H, W]; points: [N, P, 3], world units; box_size: side of the cube that the planes cover;
    axes: for every plane its width axis and height axis, such as ('xy', 'yz', 'zx'). Returns [N, P, C].
    """
    n, count = planes.shape[:2]
    x, y, z = points.mul(2 / box_size).unbind(dim=-1)
    along = {'x': x, 'y': y, 'z': z}
    grid = torch.stack([torch.stack([along[axis] for axis in pair], dim=-1) for pair in axes], dim=1)  # [N, K, P, 2]
    looked_up = F.grid_sample(planes.flatten(0, 1), grid.flatten(0, 1).unsqueeze(1), mode='bilinear',
                              padding_mode='zeros', align_corners=False)
    return looked_up.reshape(n, count, planes.shape[2], -1).mean(dim=1).transpose(1, 2)
