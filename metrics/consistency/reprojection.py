"""Consistency of neighbouring views by their own depth: seconds where a reconstruction takes minutes."""

import torch
import torch.nn.functional as F

from dnnlib.errors import UserError
from metrics.consistency.scoring import psnr
from metrics.consistency.views import find_subjects, view_rays
from metrics.registry import Outcome
from torch_utils import distributed
from training.rendering.cameras import split_label

DEPTH_TOLERANCE = 0.02  # share of the box's side: two depths that differ by less are of the same surface


def evaluate_reprojection(metrics, task):
    """The Outcome of 'reproj': PSNR between neighbouring views, each warped into the other through its depth."""
    subjects = find_subjects(task)
    mine, failures = [], []
    for index in range(distributed.rank(), len(subjects.names), distributed.world_size()):
        try:
            scores, shares = neighbour_psnr(subjects.load(index))
            mine.append((index, scores.mean().item(), shares.mean().item()))
        except UserError as error:
            failures.append(str(error))
    found, failures = sorted(_from_all(mine)), _from_all(failures)
    if failures:
        raise UserError(f'{len(failures)} of {len(subjects.names)} subjects could not be scored; {failures[0]}')
    _, scores, shares = zip(*found)
    protocol = {
        **subjects.protocol,
        'depth_tolerance': DEPTH_TOLERANCE,
        'psnr': 'over visible pixels of neighbours in the order of the views, both ways; mean over pairs, then subjects',
    }
    details = {'content': subjects.fingerprint, 'per_subject': dict(zip(subjects.names, scores))}
    return {'reproj': Outcome(sum(scores) / len(scores), {'visible': sum(shares) / len(shares)}, protocol, details)}


def _from_all(items):
    """The lists of all processes, joined."""
    return [item for part in distributed.share(distributed.gather(items)) for item in part]


def neighbour_psnr(views):
    """PSNR of every view against its neighbours, warped into it, over the pixels that both see.

    views: Views with depth, neighbours next to each other. Returns the PSNR, in dB, of the ordered pairs with visible pixels,
    and the share of visible pixels of all ordered pairs. Raises UserError for views without usable depth.
    """
    if views.depth is None:
        raise UserError(f'{views.name}: reproj needs the depth of the views, which only --network renders: leave it out')
    if views.depth.isnan().any():
        raise UserError(f'{views.name}: a depth is not a number: render the views again')
    pairs = [pair for i in range(len(views) - 1) for pair in ((i, i + 1), (i + 1, i))]
    scores, shares = [], []
    for target, source in pairs:
        warped, visible = warp(views, source, target)
        shares.append(visible.float().mean())
        if visible.any():
            shown = views.images[target].float() / 255
            scores.append(psnr(warped[visible][None], shown[visible][None])[0])
    if not scores:
        raise UserError(f'{views.name}: no pixel of a view is visible in its neighbours: render more views')
    return torch.stack(scores), torch.stack(shares)


def warp(views, source, target):
    """View `source` as camera `target` would see it, by the target's depth.

    Returns colours [H, W, 3] in [0, 1] and which pixels are visible in the source [H, W] (bool): those that fall into its
    picture, where its depth agrees to within DEPTH_TOLERANCE of the box's side.
    """
    height, width = views.size
    origins, directions = (x[0] for x in view_rays(views.labels[target, None], views.size))
    depth = resized_depth(views, target).flatten()
    points = origins + directions * depth.where(depth.isfinite(), 1.0)[:, None]
    position, distance, in_front = project(views.labels[source], points)
    grid = (position * 2 - 1).reshape(1, height, width, 2)
    rgb = _sample(views.images[source].permute(2, 0, 1).float() / 255, grid).permute(1, 2, 0)
    known = _sample(resized_depth(views, source)[None], grid, mode='nearest')[0]
    same = (known - distance.reshape(height, width)).abs() < DEPTH_TOLERANCE * views.box_size
    inside = ((position > 0) & (position < 1)).all(dim=-1) & in_front & depth.isfinite()
    return rgb, inside.reshape(height, width) & same


def project(label, points):
    """Where a camera [25] sees points [P, 3]: image coordinates [P, 2] (x, y in image sizes), distances from the camera [P],
    and whether they lie in front of it [P]."""
    pose, intrinsics = (x[0] for x in split_label(label[None]))
    relative = points - pose[:3, 3]
    in_camera = relative @ pose[:3, :3]
    forward = in_camera[:, 2:]
    projected = in_camera / torch.where(forward.abs() > 1e-6, forward, 1e-6) @ intrinsics.T
    return projected[:, :2], relative.norm(dim=-1), forward[:, 0] > 1e-6


def resized_depth(views, index):
    """The depth [H, W] of a view at the size of its picture."""
    depth = views.depth[index]
    if depth.shape == views.size:
        return depth
    return F.interpolate(depth[None, None], views.size, mode='bilinear')[0, 0]


def _sample(image, grid, mode='bilinear'):
    """image [C, H, W] at grid [1, h, w, 2] -> [C, h, w]."""
    return F.grid_sample(image[None], grid, mode=mode, align_corners=False, padding_mode='border')[0]
