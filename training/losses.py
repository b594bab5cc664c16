"""What losses are made of: schedules, draws, blur, patches, distances, R1 (docs/method.md, section 5). Pure functions."""

import math
from typing import NamedTuple

import torch
import torch.nn.functional as F

from torch_utils.ops.upfirdn2d import filter2d


class FakeInputs(NamedTuple):
    """What a batch of fakes is made from: z [N, z_dim]; c [N, 25], rendered; c_cond [N, 25], seen by the mapping network."""

    z: torch.Tensor
    c: torch.Tensor
    c_cond: torch.Tensor

    def rows(self, rows):
        """The rows of a pass."""
        return FakeInputs(*(tensor[rows] for tensor in self))


def ramp(start, end, position, length):
    """Linear from start to end over [0, length]; with length 0, the end."""
    if length <= 0:
        return end
    return start + (end - start) * min(max(position / length, 0.0), 1.0)


def swap_probability(config, images_seen):
    """Probability that the mapping network gets the neighbour's camera (EG3D's generator pose conditioning)."""
    return ramp(config.swap_start, config.swap_end, images_seen, config.swap_fade_kimg * 1000)


def blur_sigma(config, images_seen, batch):
    """Sigma of the blur of the discriminators' inputs, pixels; the fade is scaled by batch / 32."""
    return ramp(config.blur_init_sigma, 0.0, images_seen, config.blur_fade_kimg * 1000 * batch / 32)


def render_resolution(config, images_seen):
    """Pixels per side of the 2D branch's volume render, which EG3D lets grow. config: RunConfig; images_seen: in the run."""
    start, end = config.generator.render_resolution, config.render_resolution_end
    grown = images_seen - config.render_growth_start_kimg * 1000
    return start if end is None or grown < 0 else round(ramp(start, end, grown, config.render_growth_kimg * 1000))


def draw_fake_inputs(z_dim, labels, swap_p, random, swap_together=False):
    """Latents, cameras from the training labels, and conditioning cameras swapped with probability swap_p.

    The neighbour is the batch's next row, so `random` must draw whole batches. swap_together: one draw for the batch.
    """
    z = random.normal(z_dim)
    c = labels[random.integers(len(labels))]
    drawn = random.uniform(1)
    swapped = (drawn[:1] if swap_together else drawn) < swap_p
    return FakeInputs(z, c, torch.where(swapped, c.roll(1, dims=0), c))


def blur(image, sigma):
    """Gaussian blur with kernel 2^-(i/sigma)^2 for |i| <= floor(3 sigma)."""
    radius = math.floor(3 * sigma)
    if radius < 1:
        return image
    taps = torch.exp2(-(torch.arange(-radius, radius + 1, device=image.device) / sigma).square())
    taps = taps / taps.sum()
    return filter2d(filter2d(image, taps[None, :]), taps[:, None])


def crop(images, corners, size):
    """Windows [N, C, size, size] of images [N, C, H, W] at corners [N, 2], (top, left)."""
    offsets = torch.arange(size, device=images.device)
    rows, columns = (corners[:, axis, None] + offsets for axis in (0, 1))
    return images.take_along_dim(rows[:, None, :, None], dim=2).take_along_dim(columns[:, None, None, :], dim=3)


def draw_corners(random, image_size, patch_size):
    """(top, left) [N, 2], uniform over all that fit."""
    return random.integers(image_size - patch_size + 1, 2)


def pyramid_distance(x, target, levels=4):
    """L1 between Laplacian pyramids, per sample [N]: an imitation loss without pretrained weights.

    Every level counts with its mean absolute difference, so coarse colours weigh as much as fine edges.
    """
    difference = x - target  # the pyramid is linear
    total = 0
    for _ in range(levels - 1):
        if min(difference.shape[-2:]) < 4:
            break
        smaller = F.avg_pool2d(difference, 2)
        detail = difference - F.interpolate(smaller, size=difference.shape[-2:], mode='bilinear', align_corners=False)
        total = total + detail.abs().mean(dim=(1, 2, 3))
        difference = smaller
    return total + difference.abs().mean(dim=(1, 2, 3))


def r1_penalty(logits, inputs):
    """Squared norm of the gradient of the logits with respect to all inputs, per sample [N] (Mescheder et al. 2018)."""
    gradients = torch.autograd.grad(logits.sum(), inputs, create_graph=True)
    return sum(gradient.square().sum(dim=(1, 2, 3)) for gradient in gradients)
