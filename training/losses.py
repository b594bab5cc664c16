"""The objectives of the three players (METHOD: sections 1 and 5; paper equations 5 to 8).

Everything here is a function of its arguments: schedules come in as numbers, random numbers as a BatchRandom.
"""

import math
from typing import NamedTuple

import torch
import torch.nn.functional as F

from torch_utils.ops.upfirdn2d import filter2d
from training.networks.discriminator import resize


class FakeInputs(NamedTuple):
    """What a batch of fakes is made from: z [N, z_dim]; c [N, 25], rendered and judged; c_cond [N, 25], mapped."""

    z: torch.Tensor
    c: torch.Tensor
    c_cond: torch.Tensor


class Fakes(NamedTuple):
    """Generated images; what was not asked for is None."""

    image: torch.Tensor | None  # 2D branch [N, 3, R, R]
    image_raw: torch.Tensor | None  # its volume render [N, 3, h, h]
    patch: torch.Tensor | None  # 3D branch [N, 3, h, h]
    corners: torch.Tensor | None  # where the patch lies [N, 2], (top, left)
    mean_w: torch.Tensor  # [w_dim]
    depth: torch.Tensor | None  # of the patch, or else of the raw render [N, 1, h, h]

    def detach(self):
        """The same images without gradients."""
        return Fakes(*(None if value is None else value.detach() for value in self))


class Schedule(NamedTuple):
    """Numbers that change while training."""

    blur_sigma: float = 0.0  # of images and patches, pixels
    augment_p: float = 0.0


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
    steps = torch.arange(size, device=images.device)
    rows = (corners[:, 0, None] + steps)[:, None, :, None]
    columns = (corners[:, 1, None] + steps)[:, None, None, :]
    samples = torch.arange(len(images), device=images.device)[:, None, None, None]
    channels = torch.arange(images.shape[1], device=images.device)[None, :, None, None]
    return images[samples, channels, rows, columns]


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


class Objectives:
    """The losses of one stage. Every method returns a scalar to minimise and reports what it saw to `report`.

    G, D, D_patch: networks, D_patch None in stage 1; config: LossConfig; imitation: (patch, target) -> [N];
    augment: (images [N, 3k, H, W], p, random) -> images, or None; report: (name, values) -> None.
    """

    def __init__(self, G, D, D_patch, config, imitation=None, augment=None, report=lambda name, values: None,
                 noise_mode='random', sampling='stratified'):
        self.G, self.D, self.D_patch, self.config = G, D, D_patch, config
        self.imitation, self.augment, self.report = imitation, augment, report
        self.noise_mode, self.sampling = noise_mode, sampling

    # What the generator makes ----------------------------------------------------------------------------------------

    def fakes(self, inputs, random, image=True, patch=False, corners=None):
        """Images of both branches from the same planes."""
        G = self.G
        ws = G.mapping(inputs.z, inputs.c_cond)
        planes = G.planes(ws, noise_mode=self.noise_mode, random=random)
        whole = G.render(planes, inputs.c, '2d', ws=ws, sampling=self.sampling, random=random) if image else {}
        part = {}
        if patch:
            if corners is None:
                corners = draw_corners(random, G.config.image_resolution, G.config.render_resolution)
            part = G.render(planes, inputs.c, '3d', patch=corners, sampling=self.sampling, random=random)
        return Fakes(whole.get('image'), whole.get('image_raw'), part.get('image'), corners, ws[:, 0].detach().mean(dim=0),
                     part.get('image_depth', whole.get('image_depth')))

    # What the discriminators see -------------------------------------------------------------------------------------

    def shown(self, image, image_raw, schedule, random):
        """What D2D receives of an image and its raw render: the image blurred, both augmented together as 6 channels.

        With augmentation the raw image goes up to the image's size and back even at p = 0, so that it is not suddenly smoother
        when p rises.
        """
        image = blur(image, schedule.blur_sigma)
        if self.augment is None:
            return image, image_raw
        pair = torch.cat([image, resize(image_raw, image.shape[-1])], dim=1)
        image, raw = self.augment(pair, schedule.augment_p, random).split(3, dim=1)
        return image, resize(raw, image_raw.shape[-1])

    def shown_real(self, real, schedule, random):
        """What D2D receives of real images: their raw counterparts are resized first, then blurred with the same sigma."""
        raw = blur(resize(real, self.G.config.render_resolution), schedule.blur_sigma)
        return self.shown(real, raw, schedule, random)

    def shown_patch(self, patch, schedule, random):
        """What D3D receives of a patch: cut out first, then blurred and augmented."""
        patch = blur(patch, schedule.blur_sigma)
        return patch if self.augment is None else self.augment(patch, schedule.augment_p, random)

    # Generator -------------------------------------------------------------------------------------------------------

    def generator(self, inputs, schedule, random, corners=None):
        """Adversarial term of the 2D branch; in stage 2 also imitation and the patches' adversarial term (eq. 5 to 8).

        Returns the loss and the Fakes.
        """
        fakes = self.fakes(inputs, random, patch=self.D_patch is not None, corners=corners)
        logits = self.D(*self.shown(fakes.image, fakes.image_raw, schedule, random), inputs.c)
        loss = self._fool(logits, 'G/adversarial', 'fake')
        if self.D_patch is not None:
            loss = loss + self._imitate(fakes) + self._fool_patch(fakes.patch, schedule, random)
        self.report('depth/mean', fakes.depth)
        self.report('depth/spread', fakes.depth.std(dim=(1, 2, 3)))
        return loss, fakes

    def _fool(self, logits, name, kind):
        self._report_logits(logits, kind)
        loss = F.softplus(-logits).mean()
        self.report(f'loss/{name}', loss)
        return loss

    def _fool_patch(self, patch, schedule, random):
        logits = self.D_patch(self.shown_patch(patch, schedule, random))
        return self.config.patch_weight * self._fool(logits, 'G/patch', 'patch_fake')

    def _imitate(self, fakes):
        """L_imitation: the 3D branch follows the 2D branch, which learns nothing from it (eq. 5)."""
        if self.imitation is None:
            return 0.0
        target = crop(fakes.image, fakes.corners, fakes.patch.shape[-1]).detach()
        distance = self.imitation(fakes.patch, target).mean()
        self.report('loss/G/imitation', distance)
        return self.config.imitation_weight * distance

    def density(self, inputs, random, points=None, perturbation=None):
        """Density regularisation: raw density should not change over a small step.

        points: [N, P, 3], uniform in [-1, 1]^3; perturbation: standard normal [N, P, 3]; drawn where None.
        """
        config = self.config
        planes = self.G.planes(self.G.mapping(inputs.z, inputs.c_cond), noise_mode=self.noise_mode, random=random)
        points = random.uniform(config.density_points, 3) * 2 - 1 if points is None else points
        perturbation = random.normal(config.density_points, 3) if perturbation is None else perturbation
        moved = points + perturbation * config.density_spread
        density, _ = self.G.query(planes, torch.cat([points, moved], dim=1))
        here, there = density.chunk(2, dim=1)
        loss = config.density_weight * (here - there).abs().mean()
        self.report('loss/G/density', loss)
        self.report('density/mean', density)
        self.report('density/spread', density.std(dim=(1, 2)))
        return loss

    # Discriminators --------------------------------------------------------------------------------------------------

    def discriminator(self, fakes, c, real, real_c, schedule, random):
        """D2D: Fakes seen from cameras c against real images [N, 3, R, R] with cameras real_c."""
        fake_logits = self.D(*self.shown(fakes.image, fakes.image_raw, schedule, random), c)
        real_logits = self.D(*self.shown_real(real, schedule, random), real_c)
        return self._tell_apart(fake_logits, real_logits, 'D', '')

    def discriminator_r1(self, real, real_c, schedule, random):
        """R1 of D2D at what it receives, after blur and augmentation: the image and its raw counterpart, two inputs."""
        inputs = [x.detach().requires_grad_() for x in self.shown_real(real, schedule, random)]
        return self._r1(self.D(*inputs, real_c), inputs, self.config.r1_gamma, 'D')

    def patch_discriminator(self, fakes, real, schedule, random, corners=None):
        """D3D: the 3D branch's patches against patches of real images."""
        fake_logits = self.D_patch(self.shown_patch(fakes.patch, schedule, random))
        real_logits = self.D_patch(self.shown_patch(self.real_patch(real, random, corners), schedule, random))
        return self._tell_apart(fake_logits, real_logits, 'D_patch', 'patch_')

    def patch_discriminator_r1(self, real, schedule, random, corners=None):
        """R1 of D3D at what it receives."""
        patch = self.shown_patch(self.real_patch(real, random, corners), schedule, random).detach().requires_grad_()
        return self._r1(self.D_patch(patch), [patch], self.config.r1_gamma_patch, 'D_patch')

    def real_patch(self, real, random, corners=None):
        """A random patch of every real image."""
        size = self.G.config.render_resolution
        return crop(real, draw_corners(random, real.shape[-1], size) if corners is None else corners, size)

    def _tell_apart(self, fake_logits, real_logits, name, prefix):
        self._report_logits(fake_logits, f'{prefix}fake_seen_by_D')
        self._report_logits(real_logits, f'{prefix}real')
        loss = F.softplus(fake_logits).mean() + F.softplus(-real_logits).mean()
        self.report(f'loss/{name}', loss)
        return loss

    def _r1(self, logits, inputs, gamma, name):
        penalty = r1_penalty(logits, inputs).mean()
        self.report(f'loss/{name}/r1_penalty', penalty)
        return gamma / 2 * penalty

    def _report_logits(self, logits, kind):
        self.report(f'logits/{kind}', logits)
        self.report(f'signs/{kind}', logits.sign())
