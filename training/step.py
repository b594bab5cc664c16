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
from training.augment import adapt_probability
from training.losses import blur, blur_sigma, crop, draw_corners, draw_fake_inputs, r1_penalty, ramp, swap_probability
from training.networks.discriminator import resize

FINITE = dict(nan=0.0, posinf=1e5, neginf=-1e5)  # what replaces gradients that are not finite
# What a random number is for: a part of its key.
PHASES = ('generator', 'density', 'discriminator', 'discriminator_r1', 'patch', 'patch_r1')


class BadGradients(UserError):
    """Gradients that have not been finite for too long."""


class Fakes(NamedTuple):
    """Generated images of a pass; what was not asked for is None."""

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
class Objective:
    """What the losses of a step depend on besides images and random numbers.

    D_patch: None in stage 1; imitation: (patch, target) -> distances [N], or None; augment: (images [N, 3k, H, W], p, random) ->
    images, or None; seen: {name: values that a loss has noted}.
    """

    G: torch.nn.Module
    D: torch.nn.Module
    D_patch: torch.nn.Module | None
    loss: Any  # LossConfig
    imitation: Any = None
    augment: Any = None
    augment_p: float = 0.0
    blur_sigma: float = 0.0  # pixels
    noise_mode: str = 'random'
    sampling: str = 'stratified'
    seen: dict = field(default_factory=dict)

    def note(self, name, values):
        self.seen.setdefault(name, []).append(values.detach())

    def note_logits(self, kind, logits):
        self.note(f'logits/{kind}', logits)
        self.note(f'signs/{kind}', logits.sign())


@dataclass(frozen=True)
class Pass:
    """One forward and backward pass of this process: its number of how many, its rows of the whole batch, and its real images."""

    index: int
    count: int
    rows: slice
    real: torch.Tensor  # [n, 3, R, R] in [-1, 1]
    real_c: torch.Tensor  # [n, 25]

    def backward(self, loss):
        (loss / self.count).backward()


def training_step(state, real, real_c):
    """One step of all networks of a stage.

    state: TrainingState, changed in place; real: this process's images, uint8 [n, 3, R, R]; real_c: their cameras [n, 25].
    Returns {name: [tensors]}: the losses, logits, gradient norms and so on that this process has noted.
    """
    config, loss, step = state.config, state.stage.loss, state.steps
    G, D, D_patch = (state.networks[name] for name in ('G', 'D', 'D_patch'))
    stage_images = step * config.batch
    swap_p = swap_probability(loss, stage_images)
    passes = split(state, real, real_c)
    o = Objective(
        G,
        D,
        D_patch,
        loss,
        imitation=state.imitation,
        augment=state.augment,
        augment_p=state.augment_p,
        blur_sigma=blur_sigma(loss, stage_images, config.batch),
    )
    scale_learning_rates(state, ramp(0.0, 1.0, stage_images + config.batch, config.optimizer.lr_rampup_kimg * 1000))

    # G: L_total = L_imitation + lambda_p L_adv_3D + L_adv_2D (equation 8)
    inputs, fakes = draw_inputs(state, 'generator', swap_p), []
    for p in optimize(state, 'G', 'generator', passes, o):  # when all passes are done, it steps G's optimiser
        total, made = generator_loss(o, inputs.rows(p.rows), draws(state, 'generator', p.rows))
        p.backward(total)
        fakes.append(made.detach())
    G.mapping.update_w_avg(distributed.average(torch.stack([made.mean_w for made in fakes]).mean(dim=0)))

    # G: density regularisation, lazily: every k-th step with k times the weight (StyleGAN2, appendix B)
    every = config.optimizer.density_interval
    if loss.density_weight > 0 and step % every == 0:
        inputs = draw_inputs(state, 'density', swap_p, swap_together=True)
        for p in optimize(state, 'G', 'density', passes, o):
            p.backward(every * density_loss(o, inputs.rows(p.rows), draws(state, 'density', p.rows)))

    # D2D: real and generated images, each beside its raw counterpart; R1, lazily
    if not config.share_fakes:
        fakes = make_fakes(o, state, 'discriminator', swap_p, passes, image=True)
    for p in optimize(state, 'D', 'discriminator', passes, o):
        p.backward(discriminator_loss(o, fakes[p.index], p.real, p.real_c, draws(state, 'discriminator', p.rows)))
    every = config.optimizer.r1_interval
    if loss.r1_gamma > 0 and step % every == 0:
        for p in optimize(state, 'D', 'discriminator_r1', passes, o):
            p.backward(every * discriminator_r1(o, p.real, p.real_c, draws(state, 'discriminator_r1', p.rows)))

    # D3D: the 3D branch's patches and patches of real images; R1, lazily
    if D_patch is not None:
        if not config.share_fakes:
            fakes = make_fakes(o, state, 'patch', swap_p, passes, patch=True)
        for p in optimize(state, 'D_patch', 'patch', passes, o):
            p.backward(patch_discriminator_loss(o, fakes[p.index], p.real, draws(state, 'patch', p.rows)))
        if loss.r1_gamma_patch > 0 and step % every == 0:
            for p in optimize(state, 'D_patch', 'patch_r1', passes, o):
                p.backward(every * patch_discriminator_r1(o, p.real, draws(state, 'patch_r1', p.rows)))

    # ADA's probability, G's moving average
    adapt_augmentation(state, o)
    update_average(state.networks['G_ema'], G, average_beta(config.batch, state.ema_kimg, state.stage.ema_rampup, stage_images))
    state.steps += 1
    state.images_seen += config.batch
    return o.seen


# ---------------------------------------------------------------------------------------------------------------------
# Losses. Each returns a scalar to minimise, and notes what it saw.


def generator_loss(o, inputs, random, corners=None):
    """L_adv_2D, and in stage 2 L_imitation and L_adv_3D (equations 5 to 8). Returns the loss and the Fakes.

    corners: of the patches [N, 2], drawn where None.
    """
    fakes = generate(o, inputs, random, image=True, patch=o.D_patch is not None, corners=corners)
    logits = o.D(*discriminator_inputs(o, fakes.image, fakes.image_raw, random), inputs.c)
    total = L_adv_2D = F.softplus(-logits).mean()
    o.note_logits('fake', logits)
    o.note('loss/G/adversarial', L_adv_2D)
    if fakes.patch is not None and o.imitation is not None:  # the 2D branch is the target, and learns nothing from it
        target = crop(fakes.image, fakes.corners, fakes.patch.shape[-1]).detach()
        L_imitation = o.imitation(fakes.patch, target).mean()
        o.note('loss/G/imitation', L_imitation)
        total = total + o.loss.imitation_weight * L_imitation
    if o.D_patch is not None:
        logits = o.D_patch(patch_discriminator_input(o, fakes.patch, random))
        L_adv_3D = F.softplus(-logits).mean()
        o.note_logits('patch_fake', logits)
        o.note('loss/G/patch', L_adv_3D)
        total = total + o.loss.patch_weight * L_adv_3D
    o.note('depth/mean', fakes.depth)
    o.note('depth/spread', fakes.depth.std(dim=(1, 2, 3)))
    return total, fakes


def density_loss(o, inputs, random, points=None, perturbation=None):
    """Raw density, of coarse and residual planes together, should not change over a small step (EG3D).

    points: [N, P, 3], uniform in [-1, 1]^3, world units: as in the release, also where the box is smaller; perturbation:
    standard normal [N, P, 3]; drawn where None.
    """
    planes = o.G.planes(o.G.mapping(inputs.z, inputs.c_cond), noise_mode=o.noise_mode, random=random)
    points = random.uniform(o.loss.density_points, 3) * 2 - 1 if points is None else points
    perturbation = random.normal(o.loss.density_points, 3) if perturbation is None else perturbation
    moved = points + perturbation * o.loss.density_spread
    density, _ = o.G.query(planes, torch.cat([points, moved], dim=1))
    here, there = density.chunk(2, dim=1)
    loss = o.loss.density_weight * (here - there).abs().mean()
    o.note('loss/G/density', loss)
    o.note('density/mean', density)
    o.note('density/spread', density.std(dim=(1, 2)))
    return loss


def discriminator_loss(o, fakes, real, real_c, random):
    """D2D: Fakes against real images [N, 3, R, R] with cameras real_c [N, 25]."""
    fake_logits = o.D(*discriminator_inputs(o, fakes.image, fakes.image_raw, random), fakes.c)
    real_logits = o.D(*real_inputs(o, real, random), real_c)
    return non_saturating(o, 'D', '', fake_logits, real_logits)


def discriminator_r1(o, real, real_c, random):
    """R1 of D2D at what it receives, after blur and augmentation: the image and its raw counterpart are two inputs."""
    inputs = [x.detach().requires_grad_() for x in real_inputs(o, real, random)]
    return r1(o, 'D', o.loss.r1_gamma, o.D(*inputs, real_c), inputs)


def patch_discriminator_loss(o, fakes, real, random, corners=None):
    """D3D: the 3D branch's patches against patches of real images [N, 3, R, R]."""
    fake_logits = o.D_patch(patch_discriminator_input(o, fakes.patch, random))
    real_logits = o.D_patch(patch_discriminator_input(o, real_patch(o, real, random, corners), random))
    return non_saturating(o, 'D_patch', 'patch_', fake_logits, real_logits)


def patch_discriminator_r1(o, real, random, corners=None):
    """R1 of D3D at what it receives."""
    patch = patch_discriminator_input(o, real_patch(o, real, random, corners), random).detach().requires_grad_()
    return r1(o, 'D_patch', o.loss.r1_gamma_patch, o.D_patch(patch), [patch])


def non_saturating(o, name, prefix, fake_logits, real_logits):
    o.note_logits(f'{prefix}fake_seen_by_D', fake_logits)
    o.note_logits(f'{prefix}real', real_logits)
    loss = F.softplus(fake_logits).mean() + F.softplus(-real_logits).mean()
    o.note(f'loss/{name}', loss)
    return loss


def r1(o, name, gamma, logits, inputs):
    penalty = r1_penalty(logits, inputs).mean()
    o.note(f'loss/{name}/r1_penalty', penalty)
    return gamma / 2 * penalty


# ---------------------------------------------------------------------------------------------------------------------
# Images: what the generator makes, and what the discriminators receive of them


def generate(o, inputs, random, image=False, patch=False, corners=None):
    """Fakes of one or both branches from the same planes; patches at `corners`, drawn where None."""
    config = o.G.config
    ws = o.G.mapping(inputs.z, inputs.c_cond)
    planes = o.G.planes(ws, noise_mode=o.noise_mode, random=random)
    whole = o.G.render(planes, inputs.c, '2d', ws=ws, sampling=o.sampling, random=random) if image else {}
    part = {}
    if patch:
        if corners is None:
            corners = draw_corners(random, config.image_resolution, config.render_resolution)
        part = o.G.render(planes, inputs.c, '3d', patch=corners, sampling=o.sampling, random=random)
    return Fakes(
        inputs.c,
        whole.get('image'),
        whole.get('image_raw'),
        part.get('image'),
        corners,
        part.get('image_depth', whole.get('image_depth')),
        ws[:, 0].detach().mean(dim=0),
    )


@torch.no_grad()
def make_fakes(o, state, phase, swap_p, passes, image=False, patch=False):
    """New Fakes without gradients for a discriminator, one for each pass."""
    inputs = draw_inputs(state, phase, swap_p)
    return [generate(o, inputs.rows(p.rows), draws(state, phase, p.rows, part=2), image=image, patch=patch) for p in passes]


def discriminator_inputs(o, image, image_raw, random):
    """What D2D receives of an image and its raw counterpart: the image blurred, both augmented together as 6 channels.

    With augmentation the raw image goes up to the image's size and back even at p = 0: it must not become smoother all at once
    when p rises.
    """
    image = blur(image, o.blur_sigma)
    if o.augment is None:
        return image, image_raw
    pair = torch.cat([image, resize(image_raw, image.shape[-1])], dim=1)
    image, raw = o.augment(pair, o.augment_p, random).split(3, dim=1)
    return image, resize(raw, image_raw.shape[-1])


def real_inputs(o, real, random):
    """What D2D receives of real images: their raw counterparts are resized first, then blurred with the same sigma."""
    raw = blur(resize(real, o.G.config.render_resolution), o.blur_sigma)
    return discriminator_inputs(o, real, raw, random)


def patch_discriminator_input(o, patch, random):
    """What D3D receives of a patch, which is cut out first, then blurred and augmented."""
    patch = blur(patch, o.blur_sigma)
    return patch if o.augment is None else o.augment(patch, o.augment_p, random)


def real_patch(o, real, random, corners=None):
    """A random patch of every real image."""
    size = o.G.config.render_resolution
    return crop(real, draw_corners(random, real.shape[-1], size) if corners is None else corners, size)


# ---------------------------------------------------------------------------------------------------------------------
# Random numbers. They are drawn for the whole batch, and a pass keeps its rows: so the number of processes and passes changes
# nothing, and a neighbour in the batch is the same image everywhere.


def split(state, real, real_c):
    """The passes of this process. Rows are interleaved, so that the groups of the discriminators' minibatch statistics hold the
    same images however the batch is split (as long as a pass holds whole groups)."""
    count, processes, rank = state.passes, distributed.world_size(), distributed.rank()
    real = real.to(state.device, non_blocking=True).float() / 127.5 - 1
    real_c = real_c.to(state.device, non_blocking=True)
    return [
        Pass(k, count, slice(rank + processes * k, None, count * processes), real[k::count], real_c[k::count])
        for k in range(count)
    ]


def draws(state, phase, rows=slice(None), part=1):
    """Random numbers keyed by (seed, images seen, phase, part), for rows of the batch."""
    key = (state.config.seed, state.images_seen, PHASES.index(phase), part)
    return BatchRandom.keyed(key, state.config.batch, state.device, rows)


def draw_inputs(state, phase, swap_p, swap_together=False):
    """FakeInputs of the whole batch. swap_together: one draw for the batch, as for the density regularisation."""
    return draw_fake_inputs(state.config.generator.z_dim, state.labels, swap_p, draws(state, phase, part=0), swap_together)


# ---------------------------------------------------------------------------------------------------------------------
# Optimisers, augmentation, moving average


def optimize(state, name, phase, passes, o):
    """Yields the passes, for a backward pass each; then steps the optimiser of network `name` on their mean gradient.

    The gradients are averaged over processes, then what is not finite is replaced (docs/method.md, section 5). Raises
    BadGradients where state.strict names the phase and its gradients are still not finite.
    """
    network, optimizer = state.networks[name], state.optimizers[name]
    optimizer.zero_grad(set_to_none=True)
    network.requires_grad_(True)
    yield from passes
    network.requires_grad_(False)
    distributed.average_gradients(network.parameters())
    gradients = [p.grad for p in network.parameters() if p.grad is not None]
    norm = torch.nn.utils.get_total_norm(gradients)
    o.note(f'gradients/{name}', norm.nan_to_num(**FINITE))
    o.note(f'gradients/{name}_not_finite', 1 - norm.isfinite().float())
    state.bad_steps[phase] = torch.where(norm.isfinite(), 0, state.bad_steps.get(phase, 0) + 1)
    if phase in state.strict and state.bad_steps[phase] > state.config.max_bad_steps:
        bad = [key for key, p in network.named_parameters() if p.grad is not None and not p.grad.isfinite().all()]
        raise BadGradients(
            f'phase {phase}: the gradients of {name} are not finite, {int(state.bad_steps[phase])} times in a row, in '
            + ', '.join(bad[:5])
            + (f' and {len(bad) - 5} more' if len(bad) > 5 else '')
        )
    for gradient in gradients:
        torch.nan_to_num(gradient, **FINITE, out=gradient)
    optimizer.step()


def scale_learning_rates(state, factor):
    for name, optimizer in state.optimizers.items():
        for group in optimizer.param_groups:
            group['lr'] = state.learning_rates[name] * factor


def adapt_augmentation(state, o):
    """ADA: every few steps, p follows the signs of D2D's logits of real images (Karras et al. 2020)."""
    config = state.config
    if config.augment != 'ada':
        return
    # What D2D's loss has noted of the real images, for the log and for this.
    state.real_signs += [signs.float().mean() for signs in o.seen['signs/real']]
    if state.steps % config.ada_interval == 0:
        sign = distributed.average(torch.stack(state.real_signs).mean()).item()
        state.real_signs.clear()
        state.augment_p = adapt_probability(
            state.augment_p, sign, config.batch * config.ada_interval, config.ada_target, state.stage.ada_kimg
        )
        o.note('augment/p', torch.tensor(state.augment_p, dtype=torch.float64))


@torch.no_grad()
def update_average(average, module, beta):
    """Exponential moving average of parameters; buffers are copied."""
    swa_utils.get_ema_multi_avg_fn(beta)(list(average.parameters()), list(module.parameters()), None)
    for target, source in zip(average.buffers(), module.buffers(), strict=True):
        target.copy_(source)


def average_beta(batch, half_life_kimg, rampup, images_seen):
    """EMA decay per step: half-life in thousands of images, at most `rampup` times the images seen."""
    half_life = half_life_kimg * 1000
    if rampup is not None:
        half_life = min(half_life, images_seen * rampup)
    return 0.5 ** (batch / max(half_life, 1e-8))
