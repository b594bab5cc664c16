"""swd, swd<N>: sliced Wasserstein distance over a Laplacian pyramid (Karras et al. 2018, section 5); no pretrained network.

Of every image and every level of its pyramid, from 16 x 16 to full resolution, 128 patches of 7 x 7 pixels are drawn. The
patches of both sets are normalised by each colour channel's mean and standard deviation, projected onto 512 random
directions and sorted; the mean distance of equal ranks is the level's distance, times 1000. The value is the levels' mean.

One choice differs from the paper, which does not say whose mean and deviation they are: here it is the real set's, for both,
so that a set that is merely too dark or too pale does not score 0.
"""

import numpy as np
import torch

from dnnlib.errors import UserError
from metrics.image_quality import GROUP, SAME, ImageMetric, register_numbered
from metrics.images import WITHOUT_CHANCE
from metrics.registry import register
from metrics.statistics import Statistic
from torch_utils import distributed
from torch_utils.ops.upfirdn2d import setup_filter, upfirdn2d
from torch_utils.random import keyed_generator

MOST_IMAGES = 16384  # the paper's number
PATCH, PATCHES = 7, 128  # side in pixels; per image and level
PROJECTIONS, PROJECTIONS_AT_ONCE = 512, 128
COARSEST = 16  # pixels per side of the pyramid's last level
SCALE = 1000  # the paper prints its distances times 1000


class Patches:
    """Patches of every image and level: {side of the level: float16 [count * 128, 3 * 7 * 7]}, values 0 to 255."""

    def __init__(self, count, size, device):
        self.levels = {
            side: torch.zeros(count, PATCHES, 3 * PATCH**2, dtype=torch.float16, device=device) for side in pyramid_sides(size)
        }

    def add(self, numbers, images):
        for level, (side, picture) in enumerate(zip(self.levels, laplacian_pyramid(images.float()))):
            corners = torch.stack([patch_corners(number, level, side) for number in numbers])
            self.levels[side][numbers.start : numbers.stop] = cut_patches(picture, corners.to(images.device, non_blocking=True))

    def finish(self):
        return {str(side): distributed.total(patches).flatten(0, 1).cpu().numpy() for side, patches in self.levels.items()}


class SlicedWasserstein(ImageMetric):
    statistic = Statistic(Patches, layer=None)
    same_size = True
    rendering = WITHOUT_CHANCE

    def counts(self, evaluated, real):
        if self.count is not None:
            return super().counts(evaluated, real)
        count = min(number for number in (MOST_IMAGES, evaluated, real) if number is not None)
        return count, count

    def compare(self, evaluated, real, task):
        levels = {}
        for side in evaluated:
            patches = (torch.from_numpy(found[side]).to(task.device) for found in (evaluated, real))
            levels[side] = SCALE * level_distance(*patches, task.seed)
        protocol = {
            'patches_per_image': PATCHES,
            'patch': PATCH,
            'projections': PROJECTIONS,
            'scale': SCALE,
            'normalised_by': 'real images',
        }
        return sum(levels.values()) / len(levels), levels, protocol


def pyramid_sides(resolution):
    """Sides of the pyramid's levels, finest first. Raises UserError for images that are smaller than a patch."""
    if resolution < PATCH:
        raise UserError(f'swd needs images of {PATCH}x{PATCH} pixels at least, these measure {resolution}x{resolution}')
    sides = [resolution]
    while sides[-1] % 2 == 0 and sides[-1] > COARSEST:
        sides.append(sides[-1] // 2)
    return sides


def laplacian_pyramid(images):
    """The Laplacian pyramid (Burt and Adelson 1983) of images [N, 3, R, R]: a list, finest level first.

    Every level but the last is what the next smaller picture, enlarged, lacks; the last one is the smallest picture.
    """
    taps = setup_filter([1, 4, 6, 4, 1], device=images.device)
    levels = []
    for _ in pyramid_sides(images.shape[-1])[1:]:
        smaller = upfirdn2d(torch.nn.functional.pad(images, (2, 2, 2, 2), mode='reflect'), taps, down=2)
        enlarged = upfirdn2d(torch.nn.functional.pad(smaller, (1, 1, 1, 1), mode='reflect'), taps, up=2, gain=4)
        levels.append(images - enlarged)
        images = smaller
    return [*levels, images]


def patch_corners(number, level, side):
    """(top, left) int64 [128, 2] of the patches of image `number`: the same for both sets, whatever else is computed."""
    return torch.randint(side - PATCH + 1, (PATCHES, 2), generator=keyed_generator((number, level)))


def cut_patches(images, corners):
    """Patches [N, P, 3 * 7 * 7] of images [N, 3, R, R] at corners int64 [N, P, 2]."""
    windows = images.unfold(2, PATCH, 1).unfold(3, PATCH, 1)  # [N, 3, R - 6, R - 6, 7, 7]
    rows = torch.arange(len(images), device=images.device)[:, None]
    return windows[rows, :, corners[..., 0], corners[..., 1]].flatten(2)


def level_distance(evaluated, real, seed):
    """Sliced Wasserstein distance between patches [M, 3 * 7 * 7] of two sets, in standard deviations of the real pixels."""
    mean, std = channel_statistics(real)
    evaluated, real = (((patches.unflatten(1, (3, -1)).float() - mean) / std).flatten(1) for patches in (evaluated, real))
    directions = torch.randn(evaluated.shape[1], PROJECTIONS, generator=keyed_generator((seed,))).to(evaluated.device)
    directions = directions / directions.norm(dim=0)
    distances = [
        (sort_projections(evaluated, some) - sort_projections(real, some)).abs().mean(dim=1).double()
        for some in directions.split(PROJECTIONS_AT_ONCE, dim=1)
    ]
    return torch.cat(distances).mean().item()


def sort_projections(patches, directions):
    """Sorted projections [K, M] of patches [M, D] onto directions [D, K]."""
    projections = directions.T @ patches.T
    if projections.is_cuda:
        return projections.sort(dim=1).values
    return torch.from_numpy(np.sort(projections.numpy(), axis=1))  # many times faster than torch's sort on a CPU


def channel_statistics(patches):
    """Mean and standard deviation [3, 1] of the colour channels of patches [M, 3 * 7 * 7]."""
    channels = patches.unflatten(1, (3, -1)).double()
    return channels.mean(dim=(0, 2))[:, None].float(), channels.std(dim=(0, 2))[:, None].clamp(min=1e-6).float()


register(
    'swd',
    GROUP,
    f'Sliced Wasserstein distance, of all images there are, {MOST_IMAGES} at most.',
    build=lambda match: SlicedWasserstein('swd', None, MOST_IMAGES),
)
register_numbered('swd<N>', SlicedWasserstein, SAME, 'Sliced Wasserstein distance of N generated images to N real ones.')
