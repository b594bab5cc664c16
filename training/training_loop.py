"""The training loop: build, then for each stage step, report and save."""

import contextlib
import copy
import math
import os
from typing import NamedTuple

import torch

from dnnlib.errors import UserError
from torch_utils import distributed
from torch_utils.checkpoint import copy_to_cpu
from torch_utils.interrupts import StopRequests
from torch_utils.random import BatchRandom
from torch_utils.stats import Statistics
from training import augment
from training.dataset import PosedImageDataset
from training.loading import naming_dead_helpers, real_batches
from training.losses import Objectives, Schedule, blur_sigma, draw_fake_inputs, ramp, swap_probability
from training.networks.discriminator import DualDiscriminator, PatchDiscriminator
from training.networks.generator import Generator
from training.perceptual import build_imitation
from training.players import BadGradients, Player, average_beta, update_average
from training.reporting import Clock, Reporter, SampleGrid
from training.saving import Saver, describe_resumption
from training.snapshots import copy_matching, describe_all, load_networks

# What a random number is for; part of its key.
PHASES = ('generator', 'density', 'discriminator', 'discriminator_r1', 'patch', 'patch_r1')
CHECK_STEPS = 16  # how often, in steps, the host looks at the gradients' health: it has to wait for the GPU


def train(config, vgg_weights=None, monitor=None):
    """Run both stages of a RunConfig in this process, which may be one of several; go on from a saved state if there is one.

    vgg_weights: file for LPIPS, where the configuration uses it; monitor: metrics.monitoring.Monitor or None. Leaves in
    config.outdir what docs/training.md lists.
    Returns whether the run is finished; if not, a signal or --max-minutes stopped it. Raises UserError.
    """
    try:
        distributed.start(config.timeout_minutes)
        with StopRequests() as requests, contextlib.closing(Run(config, vgg_weights, monitor, requests)) as run:
            return run.go()
    except torch.OutOfMemoryError:
        raise UserError('the GPU has too little memory; lower --batch-gpu, which may change as the run goes on') from None
    except torch.OutOfMemoryError:
        raise UserError('the GPU has too little memory; lower --batch-gpu, which may change as the run goes on') from None
    except OSError as error:
        raise UserError(f'{error.filename or config.outdir}: {error.strerror or error}; the last training state in {config.outdir} '
                        'is kept: mend the cause, and the same command goes on from it') from None
    finally:
        distributed.stop()


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


class Run:
    """One process's part of a run: what lasts longer than a stage."""

    def __init__(self, config, vgg_weights, monitor, requests):
        self.config, self.vgg_weights, self.monitor, self.requests = config, vgg_weights, monitor, requests
        self.device = distributed.pick_device()
        self.first = distributed.rank() == 0
        if config.threads:
            torch.set_num_threads(config.threads)
        torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = config.tf32
        self.dataset = PosedImageDataset(config.data, resolution=config.generator.image_resolution, mirror=config.mirror)
        self.labels = self.dataset.labels.to(self.device)
        self.statistics = Statistics(self.device)
        self.grid = SampleGrid(self.dataset, config, self.device)
        self.saver = Saver(config, self.dataset) if self.first else None
        damage = []
        self.state = distributed.share(self.saver.load_state(damage.append) if self.first else None)
        self.images_seen = self.state['images_seen'] if self.state else 0
        position = self.state['reporter'] if self.state else {}
        self.reporter = Reporter(config, self.device, self.images_seen, **position) if self.first else None
        for line in damage:
            self.log(line)
        self.clock = Clock(config, self.images_seen)
        self.inherited = self.state['inherited'] if self.state else {}  # weights that a later stage begins with
        self.stopping = False

    def go(self):
        """Train from where the last state was saved. Returns whether the run is finished; if not, it was asked to stop."""
        self._greet()
        begin = self.state['stage']['number'] if self.state else 1
        for number, stage in ((1, self.config.stage1), (2, self.config.stage2)):
            if number >= begin and stage.kimg > 0 and not self.stopping:
                self._train_stage(number, stage)
        finished = self.images_seen >= self.config.total_images and not self.stopping
        if self.first:
            self.saver.finish(finished)
        distributed.wait_for_all()  # a process that ends early would take the others' connections away
        return finished

    def close(self):
        if self.first:
            self.reporter.close()
            self.saver.close()

    def _train_stage(self, number, options):
        networks = Networks(self.config, number, self.device)
        stage = Stage(self, number, options, networks)
        if self.state:
            stage.restore(self.state['stage'])
            self.statistics.restore(self.state['statistics'])
        elif self.inherited:
            networks.take(self.inherited, self.log)
        networks.agree()
        self.inherited = networks.lacking(self.inherited)
        if self.state and self.state['to_be_shown']:
            self._show_what_is_missing(stage)
        self.state = None
        stage.go()
        for name, state in networks.states().items():  # what this stage does not have stays as --init-from gave it
            self.inherited[name] = {**self.inherited.get(name, {}), **state}

    def _greet(self):
        self.log(f'{len(self.dataset)} images of {self.dataset.resolution}x{self.dataset.resolution} from {self.config.data}; '
                 f'{distributed.world_size()} process(es) on {self.device.type}')
        if self.state:
            for line in describe_resumption(self.state, self.config):
                self.log(line)
            return
        self._inherit()
        if self.first:
            self.saver.save_reals(self.grid.reals(self.dataset), self.grid.columns)

    def _inherit(self):
        """Take over the weights that --init-from names."""
        if self.config.init_from is None:
            return
        self.log(f'weights from {self.config.init_from}')
        states = {name: network.state_dict() for name, network in load_networks(self.config.init_from).items()}
        generator = states.get('G', states.get('G_ema', {}))
        self.inherited = {'G': generator, 'G_ema': generator, **states}

    def log(self, line):
        if self.first:
            self.reporter.log(line)

    # Between the steps -----------------------------------------------------------------------------------------------

    def after_step(self, stage):
        """Report and save what is due. A snapshot comes with a state, so that what a run has shown is not lost."""
        distributed.check_parent()
        if self.first:
            self.reporter.advance(self.config.batch)
            self.saver.check()
        ticks, rest = divmod(stage.steps, self.config.steps_per_tick)
        ticked = stage.done or rest == 0
        shown = ticked and (stage.done or ticks % self.config.snapshot_ticks == 0)
        if ticked:
            self._tick(stage)
        late, due = self.clock.read(self.images_seen) if self.first else (False, False)
        asked, late, due = distributed.any_of([self.requests.received, late, due])
        self.stopping = asked or late
        if (self.stopping or due or shown) and not stage.bad_gradients():
            self._save_state(stage, shown)
        if shown and not self.stopping:  # else the run shows it when it goes on
            self._show(stage)
        if self.stopping:
            self.log('stopping, as asked; the same command goes on from here' if asked else 'stopping: --max-minutes are over')

    def _show(self, stage):
        """Grids, snapshot and, every so often, metrics of this moment."""
        self.save_samples(stage)
        if self._judges(stage):
            self._judge(stage)

    def _show_what_is_missing(self, stage):
        """After a restart from a moment that was to be shown: what the interruption left undone."""
        if not distributed.share(self.saver.has_snapshot(self.images_seen) if self.first else None):
            self.save_samples(stage)
        if self._judges(stage) and not distributed.share(self.monitor.judged(self.images_seen / 1000) if self.first else None):
            self._judge(stage)

    def _judges(self, stage):
        """Whether metrics are due with this snapshot."""
        snapshots = stage.steps // self.config.steps_per_tick // self.config.snapshot_ticks
        return self.monitor is not None and (stage.done or snapshots % self.config.metrics_every == 0)

    def _tick(self, stage):
        """Every process: it collects from all."""
        collected = self.statistics.collect()
        if self.first:
            self.reporter.tick(stage.number, self.images_seen, {**collected, **self.clock.shares()})

    def save_samples(self, stage):
        """Grids and snapshot of this moment; every process draws its part."""
        kimg = self.images_seen // 1000
        with self.clock.measure('grids'):
            pictures = self.grid.draw(stage.networks.G_ema)
        if self.first:
            about = {'stage': stage.number, 'images_seen': self.images_seen, 'options': self.config.to_dict()}
            with self.clock.measure('saving'):
                self.saver.save_samples(kimg, pictures, self.grid.columns, describe_all(stage.networks.by_name()), about)

    def _judge(self, stage):
        """Metrics of the snapshot that was just saved. Every process computes its part.

        They can take long, and the state is saved: a stop request is obeyed at once, and the next start does them again.
        """
        snapshot = self.saver.snapshot_path(self.images_seen // 1000) if self.first else None
        about = {'snapshot': snapshot, 'kimg': self.images_seen / 1000, 'label': os.path.basename(self.config.outdir)}
        if self.first:
            self.saver.finish_writing()
        distributed.wait_for_all()
        with self.clock.measure('metrics'), self.requests.obeyed_at_once(distributed.exit_code_when_stopped()):
            records = self._evaluate(stage.networks.G_ema, about)
        if self.first:
            for line in self.monitor.keep(records, snapshot):
                self.log(line)
            self.reporter.add_metrics(records, self.images_seen)

    def _evaluate(self, generator, about):
        """Records of the metrics; none if they cannot be computed, which does not end the training."""
        branches = ('2d', '3d') if generator.config.residual else ('2d',)
        try:
            return self.monitor.judge(generator, self.device, branches, about, self.log)
        except distributed.LostContact:
            raise
        except UserError as error:
            self.log(f'no metrics of this snapshot: {error}')
            return []

    def _save_state(self, stage, to_be_shown):
        with self.clock.measure('saving'):
            content = self._state(stage, to_be_shown)
            if self.first:
                self.saver.save_state(self.images_seen, content)
        self.clock.state_saved(self.images_seen)

    def _state(self, stage, to_be_shown):
        """Everything that a restart needs, on the CPU. Every process must call it."""
        state = {'images_seen': self.images_seen, 'statistics': self.statistics.state(), 'stage': stage.state(),
                 'inherited': self.inherited, 'to_be_shown': to_be_shown}
        return copy_to_cpu({**state, **self.saver.about(), 'reporter': self.reporter.position()}) if self.first else None


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
            with naming_dead_helpers():
                self._steps(batches)
        except (distributed.LostContact, BadGradients) as error:
            raise type(error)(f'{error}, in step {self.steps} of stage {self.number}; the last training state is kept, and the '
                              'same command goes on from it') from None

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
        """Go on from what `state` gave."""
        self.start, self.steps, self.augment_p = state['start'], state['steps'], state['augment_p']
        self.real_signs = list(torch.tensor(state['real_signs'], device=self.run.device))
        self.networks.restore(state['networks'])
        for player in self.players:
            player.optimizer.load_state_dict(state['optimizers'][player.name])

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
