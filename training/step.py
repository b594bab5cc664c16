"""One training step, from top to bottom as in the paper (docs/method.md, sections 1 and 5).

    G         L_total = L_imitation + lambda_p L_adv_3D + L_adv_2D (equations 5 to 8); every few steps density regularisation
    D2D       non-saturating loss; every few steps R1
    D3D       the same on patches (stage 2)
    G_ema     moving average of G

The paper's names and the code's: D2D is `D`, I2D `image`; D3D is `D_patch`, a patch of I3D `patch`, lambda_p `patch_weight`.

A step changes a `TrainingState` and returns what it saw. It knows nothing of files, folders or signals.
"""

from dataclasses import dataclass, field
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch.optim import swa_utils

from dnnlib.errors import UserError
from torch_utils import distributed
from torch_utils.random import BatchRandom
from training.augment import adapt_probability, augment_rows
from training.losses import (
    blur,
    blur_sigma,
    crop,
    draw_corners,
    draw_fake_inputs,
    r1_penalty,
    ramp,
    render_resolution,
    swap_probability,
)
from training.networks.discriminator import resize

# What replaces gradients that are not finite, as in the release (docs/method.md, section 5): +-1e5 keeps the sign, and Adam
# normalises the magnitude.
FINITE = dict(nan=0.0, posinf=1e5, neginf=-1e5)
# What a random number is for: keys hold positions in these tuples, so append only, never reorder.
PHASES = ('generator', 'density', 'discriminator', 'discriminator_r1', 'patch', 'patch_r1')
PARTS = ('inputs', 'loss', 'fakes')


class BadGradients(UserError):
    """Gradients that have not been finite for too long."""


class Fakes(NamedTuple):
    """Generated images of a microbatch; what was not asked for is None."""

    c: torch.Tensor  # cameras they are rendered from [N, 25]
    image: torch.Tensor | None  # 2D branch [N, 3, R, R]
    image_raw: torch.Tensor | None  # its volume render [N, 3, h, h]
    patch: torch.Tensor | None  # 3D branch [N, 3, h, h]
    corners: torch.Tensor | None  # where the patch lies [N, 2], (top, left)
    depth: torch.Tensor  # of the patch, or else of the raw render [N, 1, h, h]
    mean_w: torch.Tensor  # [w_dim]

    def detach(self):
        """The same images without gradients."""
        return Fakes(*(None if value is None else value.detach() for value in self))


@dataclass
class LossContext:
    """What the losses of a step depend on besides images and random numbers.

    D_patch: None in stage 1; imitation: (patch, target) -> distances [N], or None; augment: (images [N, 3k, H, W], probability,
    random) -> images, or None; fakes: what the generator's loss has made of every microbatch, for the discriminators; seen:
    {name: values that a loss has noted}.
    """

    G: torch.nn.Module
    D: torch.nn.Module
    D_patch: torch.nn.Module | None
    loss: Any  # LossConfig
    microbatches: int = 1  # how many losses of this process are averaged
    imitation: Any = None
    augment: Any = None
    augment_p: float = 0.0
    blur_sigma: float = 0.0  # pixels
    noise_mode: str = 'random'
    sampling: str = 'stratified'
    fakes: list = field(default_factory=list)
    seen: dict = field(default_factory=dict)

    def note(self, name, values):
        self.seen.setdefault(name, []).append(values.detach())

    def note_logits(self, kind, logits):
        self.note(f'logits/{kind}', logits)
        self.note(f'signs/{kind}', logits.sign())


class Microbatch(NamedTuple):
    """What one forward and backward pass of this process works on: its rows of the whole batch, and its real images."""

    rows: slice
    real: torch.Tensor  # [n, 3, R, R] in [-1, 1]
    real_c: torch.Tensor  # [n, 25]


def training_step(state, real, real_c):
    """One step of all networks of a stage.

    state: TrainingState, changed in place; real: this process's images, uint8 [n, 3, R, R]; real_c: their cameras [n, 25].
    Returns {name: [tensors]}: the losses, logits, gradient norms and so on that this process has noted.
    """
    config, optimizer_config, loss_config = state.config, state.config.optimizer, state.stage.loss
    set_render_resolution(state)  # no effect unless EG3D's growth is on
    G, D, D_patch = (state.networks.get(name) for name in ('G', 'D', 'D_patch'))
    stage_images = state.steps * config.batch
    sigma, swap_p = blur_sigma(loss_config, stage_images, config.batch), swap_probability(loss_config, stage_images)
    augment = augment_rows if config.augment == 'ada' else None
    microbatches = split(state, real, real_c)
    context = LossContext(G, D, D_patch, loss_config, len(microbatches), state.imitation, augment, state.augment_p, sigma)
    scale_learning_rates(state, ramp(0.0, 1.0, stage_images + config.batch, optimizer_config.lr_rampup_kimg * 1000))

    # G: L_total = L_imitation + lambda_p L_adv_3D + L_adv_2D (equation 8)
    inputs = draw_inputs(state, 'generator', swap_p)
    losses = (  # lazy: `optimize` computes and back-propagates one microbatch at a time, so that one graph is alive
        generator_loss(context, inputs.rows(micro.rows), draws(state, 'generator', 'loss', micro.rows)) for micro in microbatches
    )
    optimize(state, 'G', 'generator', losses, context)
    G.mapping.update_w_avg(distributed.average(torch.stack([fakes.mean_w for fakes in context.fakes]).mean(dim=0)))

    # G: density regularisation, lazily: every k-th step with k times the weight (StyleGAN2, appendix B)
    every = optimizer_config.density_interval
    if loss_config.density_weight > 0 and state.steps % every == 0:
        inputs = draw_inputs(state, 'density', swap_p, swap_together=True)
        losses = (
            every * density_loss(context, inputs.rows(micro.rows), draws(state, 'density', 'loss', micro.rows))
            for micro in microbatches
        )
        optimize(state, 'G', 'density', losses, context)

    # D2D by dual discrimination: each image paired with its raw render. D3D, in stage 2: patches of the 3D branch and of real
    # images. R1 of both, lazily.
    every = optimizer_config.r1_interval
    for name, phase, gamma in (('D', 'discriminator', loss_config.r1_gamma), ('D_patch', 'patch', loss_config.r1_gamma_patch)):
        if name not in state.networks:
            continue
        if not config.share_fakes:  # else those of the generator's loss
            context.fakes = make_fakes(context, state, phase, swap_p, microbatches, patch=name == 'D_patch')
        losses = (
            discriminator_loss(context, name, fakes, micro.real, micro.real_c, draws(state, phase, 'loss', micro.rows))
            for micro, fakes in zip(microbatches, context.fakes, strict=True)
        )
        optimize(state, name, phase, losses, context)
        if gamma > 0 and state.steps % every == 0:
            phase = f'{phase}_r1'
            losses = (
                every * discriminator_r1(context, name, micro.real, micro.real_c, draws(state, phase, 'loss', micro.rows))
                for micro in microbatches
            )
            optimize(state, name, phase, losses, context)

    # ADA's probability, G's moving average
    adapt_augmentation(state, context)
    beta = average_beta(config.batch, state.ema_kimg, state.stage.ema_rampup, stage_images)
    update_average(state.networks['G_ema'], G, beta)
    state.steps += 1
    state.images_seen += config.batch
    return context.seen


def set_render_resolution(state):
    """Give G and G_ema the size of the volume render at this point of its growth (EG3D); snapshots then hold it, too."""
    resolution = render_resolution(state.config, state.images_seen)
    for name in ('G', 'G_ema'):
        network = state.networks[name]
        if network.config.render_resolution != resolution:
            network.config = network.config.replace(render_resolution=resolution)


# ---------------------------------------------------------------------------------------------------------------------
# Losses. Each returns a scalar to minimise, and notes what it saw.


def generator_loss(context, inputs, random):
    """L_adv_2D, and L_imitation and L_adv_3D where there are any (equations 5 to 8). Its Fakes join those of the context."""
    fakes = generate(context, inputs, random, image=True, patch=context.imitation is not None or context.D_patch is not None)
    context.fakes.append(fakes.detach())
    fake_logits = logits(context, 'D', fake_inputs(context, 'D', fakes, random), fakes.c)
    total = L_adv_2D = F.softplus(-fake_logits).mean()
    context.note_logits('fake', fake_logits)
    context.note('loss/G/adversarial', L_adv_2D)
    if context.imitation is not None:  # stop-gradient: I2D is the target
        target = crop(fakes.image, fakes.corners, fakes.patch.shape[-1]).detach()
        L_imitation = context.imitation(fakes.patch, target).mean()
        context.note('loss/G/imitation', L_imitation)
        total = total + context.loss.imitation_weight * L_imitation
    if context.D_patch is not None:
        fake_logits = logits(context, 'D_patch', fake_inputs(context, 'D_patch', fakes, random), fakes.c)
        L_adv_3D = F.softplus(-fake_logits).mean()
        context.note_logits('patch_fake', fake_logits)
        context.note('loss/G/patch', L_adv_3D)
        total = total + context.loss.patch_weight * L_adv_3D
    context.note('depth/mean', fakes.depth)
    context.note('depth/spread', fakes.depth.std(dim=(1, 2, 3)))
    return total


def density_loss(context, inputs, random):
    """Density regularisation (EG3D): L1 between raw densities at random points and at slightly moved ones, of all planes.

    The points are uniform in [-1, 1]^3, world units: as in the release, also where the box is smaller.
    """
    planes = context.G.planes(context.G.mapping(inputs.z, inputs.c_cond), noise_mode=context.noise_mode, random=random)
    points = random.uniform(context.loss.density_points, 3) * 2 - 1
    moved = points + random.normal(context.loss.density_points, 3) * context.loss.density_spread
    density, _ = context.G.query(planes, torch.cat([points, moved], dim=1))
    here, there = density.chunk(2, dim=1)
    loss = context.loss.density_weight * (here - there).abs().mean()
    context.note('loss/G/density', loss)
    context.note('density/mean', density)
    context.note('density/spread', density.std(dim=(1, 2)))
    return loss


def discriminator_loss(context, name, fakes, real, real_c, random):
    """Of D2D ('D') or D3D ('D_patch'): Fakes against real images [N, 3, R, R] with cameras real_c [N, 25]."""
    fake_logits = logits(context, name, fake_inputs(context, name, fakes, random), fakes.c)
    real_logits = logits(context, name, real_inputs(context, name, real, random), real_c)
    prefix = 'patch_' if name == 'D_patch' else ''
    context.note_logits(f'{prefix}fake_seen_by_D', fake_logits)
    context.note_logits(f'{prefix}real', real_logits)
    loss = F.softplus(fake_logits).mean() + F.softplus(-real_logits).mean()
    context.note(f'loss/{name}', loss)
    return loss


def discriminator_r1(context, name, real, real_c, random):
    """R1 of D2D or D3D at what it receives, after blur and augmentation: D2D's image and its raw counterpart are two inputs."""
    inputs = [x.detach().requires_grad_() for x in real_inputs(context, name, real, random)]
    penalty = r1_penalty(logits(context, name, inputs, real_c), inputs).mean()
    context.note(f'loss/{name}/r1_penalty', penalty)
    gamma = context.loss.r1_gamma if name == 'D' else context.loss.r1_gamma_patch
    return gamma / 2 * penalty


def logits(context, name, inputs, c):
    """[N, 1] of D2D, which sees the cameras c [N, 25], too, or of D3D, which does not."""
    return context.D(*inputs, c) if name == 'D' else context.D_patch(*inputs)


# ---------------------------------------------------------------------------------------------------------------------
# Images: what the generator makes, and what the discriminators receive of them


def generate(context, inputs, random, image=False, patch=False):
    """Fakes of one or both branches from the same planes."""
    ws = context.G.mapping(inputs.z, inputs.c_cond)
    planes = context.G.planes(ws, noise_mode=context.noise_mode, random=random, residual=patch)
    image_2d, corners, patch_3d = {}, None, {}
    if image:
        image_2d = context.G.render(planes, inputs.c, '2d', ws=ws, sampling=context.sampling, random=random)
    if patch:
        corners = draw_corners(random, context.G.config.image_resolution, context.G.config.render_resolution)
        patch_3d = context.G.render(planes, inputs.c, '3d', patch=corners, sampling=context.sampling, random=random)
    return Fakes(
        inputs.c,
        image_2d.get('image'),
        image_2d.get('image_raw'),
        patch_3d.get('image'),
        corners,
        patch_3d.get('image_depth', image_2d.get('image_depth')),
        ws[:, 0].detach().mean(dim=0),
    )


@torch.no_grad()
def make_fakes(context, state, phase, swap_p, microbatches, patch):
    """New Fakes without gradients for a discriminator, patches or images, one for each microbatch."""
    inputs = draw_inputs(state, phase, swap_p)
    return [
        generate(context, inputs.rows(micro.rows), draws(state, phase, 'fakes', micro.rows), image=not patch, patch=patch)
        for micro in microbatches
    ]


def fake_inputs(context, name, fakes, random):
    """What D2D or D3D receives of Fakes."""
    if name == 'D_patch':
        return patch_discriminator_inputs(context, fakes.patch, random)
    return discriminator_inputs(context, fakes.image, fakes.image_raw, random)


def real_inputs(context, name, real, random):
    """What they receive of real images. D2D: raw counterparts are resized first, then blurred with the same sigma. D3D: a random
    patch of every image."""
    size = context.G.config.render_resolution
    if name == 'D_patch':
        return patch_discriminator_inputs(context, crop(real, draw_corners(random, real.shape[-1], size), size), random)
    return discriminator_inputs(context, real, blur(resize(real, size), context.blur_sigma), random)


def discriminator_inputs(context, image, image_raw, random):
    """An image and its raw counterpart for D2D: the image blurred, both augmented together as 6 channels.

    With augmentation the raw image is resampled through the image's size even at p = 0, so that its sharpness does not jump when
    p leaves 0.
    """
    image = blur(image, context.blur_sigma)
    if context.augment is None:
        return image, image_raw
    pair = torch.cat([image, resize(image_raw, image.shape[-1])], dim=1)
    image, raw = context.augment(pair, context.augment_p, random).split(3, dim=1)
    return image, resize(raw, image_raw.shape[-1])


def patch_discriminator_inputs(context, patch, random):
    """A patch for D3D, which is cut out first, then blurred and augmented."""
    patch = blur(patch, context.blur_sigma)
    return (patch if context.augment is None else context.augment(patch, context.augment_p, random),)


# ---------------------------------------------------------------------------------------------------------------------
# Random numbers. They are drawn for the whole batch, and a microbatch keeps its rows: so the number of processes and
# microbatches changes nothing, and a neighbour in the batch is the same image everywhere.


def split(state, real, real_c):
    """The microbatches of this process. Rows are interleaved, so that the groups of the discriminators' minibatch statistics
    hold the same images however the batch is split (as long as a microbatch holds whole groups)."""
    count, processes, rank = state.passes, distributed.world_size(), distributed.rank()
    real = real.to(state.device, non_blocking=True).float() / 127.5 - 1
    real_c = real_c.to(state.device, non_blocking=True)
    return [
        Microbatch(slice(rank + processes * k, None, count * processes), real[k::count], real_c[k::count]) for k in range(count)
    ]


def draws(state, phase, part, rows=slice(None)):
    """Random numbers keyed by (seed, images seen, phase, part), for rows of the batch."""
    key = (state.config.seed, state.images_seen, PHASES.index(phase), PARTS.index(part))
    return BatchRandom.keyed(key, state.config.batch, state.device, rows)


def draw_inputs(state, phase, swap_p, swap_together=False):
    """FakeInputs of the whole batch. swap_together: one draw for the batch, as for the density regularisation."""
    return draw_fake_inputs(state.config.generator.z_dim, state.labels, swap_p, draws(state, phase, 'inputs'), swap_together)


# ---------------------------------------------------------------------------------------------------------------------
# Optimisers, augmentation, moving average


def optimize(state, name, phase, losses, context):
    """A step of the optimiser of network `name`, down the mean of the losses' gradients.

    losses: an iterator, of one loss for each of the context's microbatches. The gradients are averaged over processes, then what
    is not finite is replaced (docs/method.md, section 5). Raises BadGradients where state.strict names the phase and its
    gradients are still not finite.
    """
    network, optimizer = state.networks[name], state.optimizers[name]
    optimizer.zero_grad(set_to_none=True)
    network.requires_grad_(True)
    for loss in losses:
        (loss / context.microbatches).backward()
    network.requires_grad_(False)
    gradients = {key: parameter.grad for key, parameter in network.named_parameters() if parameter.grad is not None}
    distributed.average_gradients(network.parameters())
    norm = torch.nn.utils.get_total_norm(list(gradients.values()))
    context.note(f'gradients/{name}', norm.nan_to_num(**FINITE))
    context.note(f'gradients/{name}_not_finite', 1 - norm.isfinite().float())
    state.bad_steps[phase] = torch.where(norm.isfinite(), 0, state.bad_steps.get(phase, 0) + 1)
    if phase in state.strict and state.bad_steps[phase] > state.config.max_bad_steps:
        bad = [key for key, gradient in gradients.items() if not gradient.isfinite().all()]
        raise BadGradients(
            f'phase {phase}: the gradients of {name} are not finite, {int(state.bad_steps[phase])} times in a row, in '
            + ', '.join(bad[:5])
            + (f' and {len(bad) - 5} more' if len(bad) > 5 else '')
        )
    for gradient in gradients.values():
        torch.nan_to_num(gradient, **FINITE, out=gradient)
    optimizer.step()


def scale_learning_rates(state, factor):
    for optimizer in state.optimizers.values():
        for group in optimizer.param_groups:
            group['lr'] = optimizer.defaults['lr'] * factor


def adapt_augmentation(state, context):
    """ADA: every few steps, p follows the signs of D2D's logits of real images (Karras et al. 2020)."""
    config = state.config
    if config.augment != 'ada':
        return
    # What D2D's loss has noted of the real images, for the log and for this.
    state.real_signs += [signs.float().mean() for signs in context.seen['signs/real']]
    if state.steps % config.ada_interval == 0:
        sign = distributed.average(torch.stack(state.real_signs).mean()).item()
        state.real_signs.clear()
        state.augment_p = adapt_probability(
            state.augment_p, sign, config.batch * config.ada_interval, config.ada_target, state.stage.ada_kimg
        )
        context.note('augment/p', torch.tensor(state.augment_p, dtype=torch.float64))


@torch.no_grad()
def update_average(average, module, beta):
    """Exponential moving average of parameters; buffers are copied."""
    swa_utils.get_ema_multi_avg_fn(beta)(list(average.parameters()), list(module.parameters()), None)
    for target, source in zip(average.buffers(), module.buffers(), strict=True):
        target.copy_(source)


def average_beta(batch, half_life_kimg, rampup, images_seen):
    """EMA decay per step: half-life in thousands of images, at most `rampup` times the images seen."""
    half_life = half_life_kimg * 1000 if rampup is None else min(half_life_kimg * 1000, images_seen * rampup)
    return 0.5 ** (batch / max(half_life, 1e-8))
