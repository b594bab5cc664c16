"""One stage of a training: its networks, and what a step is."""

import contextlib
import copy
import math
from typing import NamedTuple

import torch

from torch_utils import distributed
from torch_utils.random import BatchRandom
from training import augment
from training.loading import naming_dead_helpers, real_batches
from training.losses import Objectives, Schedule, blur_sigma, draw_fake_inputs, ramp, swap_probability
from training.networks.discriminator import DualDiscriminator, PatchDiscriminator
from training.networks.generator import Generator
from training.perceptual import build_imitation
from training.players import BadGradients, Player, average_beta, update_average
from training.snapshots import copy_matching

# What a random number is for; part of its key.
PHASES = ('generator', 'density', 'discriminator', 'discriminator_r1', 'patch', 'patch_r1')
CHECK_STEPS = 16  # how often, in steps, the host looks at the gradients' health: it has to wait for the GPU


class Networks:
    """The networks of a stage; `D_patch` is None in stage 1."""

    def __init__(self, config, stage, device):
        torch.manual_seed(config.seed)  # every process builds the same weights
        self.G = Generator(config.generator.replace(residual=stage == 2)).to(device)
        self.D = DualDiscriminator(config.discriminator).to(device)
        self.D_patch = PatchDiscriminator(config.patch_discriminator).to(device) if stage == 2 else None
        self.G_ema = copy.deepcopy(self.G).eval().requires_grad_(False)

    def by_name(self):
        return {'G': self.G, 'G_ema': self.G_ema, 'D': self.D, 'D_patch': self.D_patch}

    def agree(self):
        """Give every process the first one's weights."""
        for module in self.by_name().values():
            if module is not None:
                distributed.broadcast(module)

    def states(self):
        """{name: state dict}."""
        return {name: module.state_dict() for name, module in self.by_name().items() if module is not None}

    def restore(self, states):
        """Take exactly the weights that `states` gave."""
        for name, state in states.items():
            self.by_name()[name].load_state_dict(state)

    def lacking(self, states):
        """The part of {name: state dict} that no network here has a tensor for."""
        own = self.states()
        missing = {name: {key: value for key, value in state.items() if key not in own.get(name, {})} for name, state in states.items()}
        return {name: state for name, state in missing.items() if state}

    def take(self, states, log):
        """Copy what fits from {name: state dict}; say what was taken and what was not."""
        for name, module in self.by_name().items():
            state = states.get(name, {})
            taken, left = copy_matching(module, state) if module is not None else ([], [])
            unused = [tensor for tensor in state if tensor not in taken]
            log(f'{name}: took {len(taken)} tensors'
                + (f'; {len(left)} start anew: {_summary(left)}' if left else '')
                + (f'; {len(unused)} not used: {_summary(unused)}' if unused else ''))


def _summary(names, most=4):
    """The modules that tensor names belong to, a few of them."""
    modules = list(dict.fromkeys('.'.join(name.split('.')[:2]) for name in names))
    return ', '.join(modules[:most]) + (f' and {len(modules) - most} more' if len(modules) > most else '')


class Stage:
    """One stage: its players, objectives and schedules."""

    def __init__(self, run, number, stage, networks):
        config = run.config
        self.run, self.number, self.stage, self.networks, self.config = run, number, stage, networks, config
        self.start, self.steps = run.images_seen, 0
        self.augment_p, self.real_signs = 0.0, []
        self.passes = split_batch(config.batch // (distributed.world_size() * config.batch_per_pass))
        options = config.optimizer

        def player(name, module, lr, interval, weight):
            return Player(name, module, lr, options, interval if weight > 0 else None)
        self.g = player('G', networks.G, options.g_lr, options.density_interval, stage.loss.density_weight)
        self.d = player('D', networks.D, options.d_lr, options.r1_interval, stage.loss.r1_gamma)
        self.d_patch = networks.D_patch and player('D_patch', networks.D_patch, options.d_lr, options.r1_interval,
                                                   stage.loss.r1_gamma_patch)
        imitation = build_imitation(stage.loss.imitation, run.vgg_weights, run.device) if number == 2 else None
        self.objectives = Objectives(networks.G, networks.D, networks.D_patch, stage.loss, imitation,
                                     augment=augment_images if config.augment == 'ada' else None, report=self.report)

    @property
    def images_seen(self):
        """In this stage."""
        return self.steps * self.config.batch

    @property
    def done(self):
        return self.steps >= self.config.steps_of(self.stage)

    @property
    def players(self):
        return [player for player in (self.g, self.d, self.d_patch) if player is not None]

    def go(self):
        """Step to the end of the stage, or until the run is asked to stop."""
        run = self.run
        run.log(f'stage {self.number}: {self.stage.kimg:g} kimg')
        if run.images_seen == 0:
            run.save_samples(self)
        end = self.start + self.config.steps_of(self.stage) * self.config.batch
        batches = real_batches(run.dataset, self.config, run.images_seen, end, run.device.type == 'cuda')
        try:
            with naming_dead_helpers(), contextlib.closing(batches):
                self._steps(batches)
        except (distributed.LostContact, BadGradients) as error:
            raise type(error)(f'{error}, in step {self.steps} of stage {self.number}; the last training state is kept, and the '
                              'same command goes on from it') from error

    def _steps(self, batches):
        for real, real_c in self.run.clock.measure_each('data', batches):
            self.step(real, real_c)
            self._check_gradients()
            self.run.after_step(self)
            if self.run.stopping:
                return

    # For a restart ---------------------------------------------------------------------------------------------------

    def state(self):
        """Every process must call it."""
        signs = distributed.average(torch.stack(self.real_signs)).tolist() if self.real_signs else []
        return {'number': self.number, 'start': self.start, 'steps': self.steps, 'augment_p': self.augment_p, 'real_signs': signs,
                'networks': self.networks.states(),
                'optimizers': {player.name: player.optimizer.state_dict() for player in self.players}}

    def restore(self, state):
        """Go on from what `state` gave. Every process must call it; the first one's has the networks' and optimisers' tensors.

        The others get the optimisers' here, and the networks' from `Networks.agree`.
        """
        self.start, self.steps, self.augment_p = state['start'], state['steps'], state['augment_p']
        self.real_signs = list(torch.tensor(state['real_signs'], device=self.run.device))
        self.networks.restore(state.get('networks', {}))
        for player in self.players:
            saved = state['optimizers'][player.name] if distributed.rank() == 0 else None
            player.optimizer.load_state_dict(distributed.share_tensors(saved, self.run.device))

    # Numbers that go wrong -------------------------------------------------------------------------------------------

    def bad_gradients(self):
        """Whether any player's last gradients were not finite. Waits for the GPU."""
        return any(player.bad_steps() > 0 for player in self.players)

    def _check_gradients(self):
        """From time to time, since it waits for the GPU: players whose gradients stay bad stop at their next bad step."""
        if self.steps % min(CHECK_STEPS, self.config.max_bad_steps) == 0:
            for player in self.players:
                limit = self.config.max_bad_steps
                player.bad_steps_allowed = limit if player.bad_steps() >= limit else math.inf

    # One step --------------------------------------------------------------------------------------------------------

    def step(self, real, real_c):
        """One step of every player on this process's real images (uint8 [n, 3, R, R]) and their cameras [n, 25]."""
        device = self.run.device
        real = real.to(device, non_blocking=True).float() / 127.5 - 1
        real_c = real_c.to(device, non_blocking=True)
        count = len(self.passes)
        reals = [(real[p.index::count], real_c[p.index::count]) for p in self.passes]
        self._scale_learning_rates()
        made = self._step_generator()
        shared = made if self.config.share_fakes else None
        self._step_discriminator(reals, shared or self._make_fakes('discriminator', image=True))
        if self.d_patch is not None:
            self._step_patch_discriminator(reals, shared or self._make_fakes('patch', patch=True))
        self._finish_step()

    @property
    def schedule(self):
        """What the objectives' schedules say at this point of the stage."""
        return Schedule(blur_sigma(self.stage.loss, self.images_seen, self.config.batch), self.augment_p)

    def _scale_learning_rates(self):
        seen = self.images_seen + self.config.batch
        factor = ramp(0.0, 1.0, seen, self.config.optimizer.lr_rampup_kimg * 1000)
        for player in self.players:
            player.scale_learning_rate(factor)

    def _step_generator(self):
        """Steps G; returns its fakes, without gradients, and the cameras they are seen from, for each pass."""
        inputs, made = self._fake_inputs('generator'), []

        def adversarial(p):
            mine = _rows(inputs, p)
            loss, fakes = self.objectives.generator(mine, self.schedule, self._random('generator', p))
            made.append((fakes.detach(), mine.c))
            return loss
        self.g.step('generator', self.passes, adversarial, self.report)
        mean_w = torch.stack([fakes.mean_w for fakes, _ in made]).mean(dim=0)
        self.networks.G.mapping.update_w_avg(distributed.average(mean_w))
        if self.g.regularizes_at(self.steps):
            self._regularize_density()
        return made

    def _regularize_density(self):
        inputs = self._fake_inputs('density', swap_together=True)
        self.g.step('density', self.passes, lambda p: self.g.interval * self.objectives.density(
            _rows(inputs, p), self._random('density', p)), self.report)

    def _step_discriminator(self, reals, fakes):
        self.d.step('discriminator', self.passes, lambda p: self.objectives.discriminator(
            *fakes[p.index], *reals[p.index], self.schedule, self._random('discriminator', p)), self.report)
        if self.d.regularizes_at(self.steps):
            self.d.step('discriminator_r1', self.passes, lambda p: self.d.interval * self.objectives.discriminator_r1(
                *reals[p.index], self.schedule, self._random('discriminator_r1', p)), self.report)

    def _step_patch_discriminator(self, reals, fakes):
        self.d_patch.step('patch', self.passes, lambda p: self.objectives.patch_discriminator(
            fakes[p.index][0], reals[p.index][0], self.schedule, self._random('patch', p)), self.report)
        if self.d_patch.regularizes_at(self.steps):
            self.d_patch.step('patch_r1', self.passes, lambda p: self.d_patch.interval * self.objectives.patch_discriminator_r1(
                reals[p.index][0], self.schedule, self._random('patch_r1', p)), self.report)

    def _finish_step(self):
        config, run = self.config, self.run
        if config.augment == 'ada' and self.steps % config.ada_interval == 0:
            self._adapt_augmentation()
        beta = average_beta(config.batch, config.ema_half_life_kimg, self.stage.ema_rampup, self.images_seen)
        update_average(self.networks.G_ema, self.networks.G, beta)
        self.steps += 1
        run.images_seen += config.batch

    def _adapt_augmentation(self):
        sign = distributed.average(torch.stack(self.real_signs).mean()).item()
        self.real_signs.clear()
        self.augment_p = augment.adapt_probability(self.augment_p, sign, self.config.batch * self.config.ada_interval,
                                                   self.config.ada_target, self.stage.ada_kimg)
        self.report('augment/p', self.augment_p)

    def report(self, name, values):
        """Statistics; the signs of D2D's verdicts on real images also steer the augmentation."""
        self.run.statistics.report(name, values)
        if name == 'signs/real' and self.config.augment == 'ada':
            self.real_signs.append(values.detach().float().mean())

    # Random numbers and fakes ----------------------------------------------------------------------------------------

    def _random(self, phase, p=None, part=1):
        """Random numbers keyed by (seed, images seen, phase, part), for the whole batch or the rows of a pass."""
        key = (self.config.seed, self.run.images_seen, PHASES.index(phase), part)
        return BatchRandom.keyed(key, self.config.batch, self.run.device, slice(None) if p is None else p.rows)

    def _fake_inputs(self, phase, swap_together=False):
        """Latents and cameras of the whole batch."""
        swap_p = swap_probability(self.stage.loss, self.images_seen)
        return draw_fake_inputs(self.config.generator.z_dim, self.run.labels, swap_p, self._random(phase, part=0), swap_together)

    @torch.no_grad()
    def _make_fakes(self, phase, image=False, patch=False):
        """Fakes without gradients and the cameras they are seen from, for each pass."""
        inputs = self._fake_inputs(phase)
        return [(self.objectives.fakes(_rows(inputs, p), self._random(phase, p, part=2), image=image, patch=patch), inputs.c[p.rows])
                for p in self.passes]


class Pass(NamedTuple):
    """One forward and backward pass: its number, and which rows of the whole batch it works on."""

    index: int
    rows: slice


def split_batch(passes):
    """The passes of this process. Rows are interleaved, so that the groups of the discriminators' minibatch statistics
    hold the same images however the batch is split (as long as a pass holds whole groups)."""
    stride = passes * distributed.world_size()
    return [Pass(k, slice(distributed.rank() + distributed.world_size() * k, None, stride)) for k in range(passes)]


def _rows(inputs, p):
    """The rows of a pass of every tensor of FakeInputs."""
    return type(inputs)(*(tensor[p.rows] for tensor in inputs))


def augment_images(images, p, random):
    """ADA with a BatchRandom's rows."""
    return augment.augment(images, augment.draw_parameters(random.batch, random.host_generator)[random.rows], p)
