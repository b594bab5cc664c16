"""The training loop: build, then for each stage step, report and save."""

import copy
import os
from typing import NamedTuple

import torch

from dnnlib.errors import UserError
from torch_utils import distributed
from torch_utils.random import BatchRandom
from torch_utils.stats import Statistics
from training import augment
from training.dataset import PosedImageDataset, batch_indices
from training.losses import Objectives, Schedule, blur_sigma, draw_fake_inputs, ramp, swap_probability
from training.networks.discriminator import DualDiscriminator, PatchDiscriminator
from training.networks.generator import Generator
from training.perceptual import build_imitation
from training.players import Player, average_beta, update_average
from training.reporting import Reporter, SampleGrid
from training.snapshots import copy_matching, load_networks, save_snapshot

# What a random number is for; part of its key.
PHASES = ('generator', 'density', 'discriminator', 'discriminator_r1', 'patch', 'patch_r1')


def train(config, vgg_weights=None):
    """Run both stages of a RunConfig in this process, which may be one of several.

    vgg_weights: file for LPIPS, where the configuration uses it. Leaves in config.outdir what docs/training.md lists.
    """
    distributed.start()
    try:
        Run(config, vgg_weights).go()
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
    """One process's part of a run."""

    def __init__(self, config, vgg_weights):
        self.config, self.vgg_weights = config, vgg_weights
        self.device = distributed.pick_device()
        self.first = distributed.rank() == 0
        if config.threads:
            torch.set_num_threads(config.threads)
        torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = config.tf32
        self.dataset = PosedImageDataset(config.data, resolution=config.generator.image_resolution, mirror=config.mirror)
        self.labels = self.dataset.labels.to(self.device)
        self.statistics = Statistics(self.device)
        self.images_seen = 0
        total = round((config.stage1.kimg + config.stage2.kimg) * 1000)
        self.reporter = Reporter(config.outdir, total, 0, self.device) if self.first else None
        self.grid = SampleGrid(self.dataset, config, config.generator.z_dim, self.device) if self.first else None

    def go(self):
        self._log(f'{len(self.dataset)} images of {self.dataset.resolution}x{self.dataset.resolution} from {self.config.data}; '
                  f'{distributed.world_size()} process(es) on {self.device.type}')
        if self.first:
            self.grid.save_reals(self.dataset, self.config.outdir)
        states, networks = self._initial_states(), None
        for number, stage in ((1, self.config.stage1), (2, self.config.stage2)):
            if stage.kimg > 0:
                networks = Networks(self.config, number, self.device)
                if states:
                    networks.take(states, self._log)
                Stage(self, number, stage, networks).go()
                for name, module in networks.by_name().items():
                    if module is not None:  # what this stage does not have stays as --init-from gave it
                        states[name] = {**states.get(name, {}), **module.state_dict()}
        if self.first:
            self.reporter.close()

    def _initial_states(self):
        if self.config.init_from is None:
            return {}
        self._log(f'weights from {self.config.init_from}')
        states = {name: network.state_dict() for name, network in load_networks(self.config.init_from).items()}
        generator = states.get('G', states.get('G_ema', {}))
        return {'G': generator, 'G_ema': generator, **states}

    def _log(self, line):
        if self.first:
            self.reporter.log(line)

    def tick(self, stage):
        """Every process: it collects from all."""
        collected = self.statistics.collect()
        if self.first:
            self.reporter.tick(stage, self.images_seen, collected)

    def save(self, stage, networks):
        """Grids and snapshot of this moment."""
        if not self.first:
            return
        kimg = self.images_seen // 1000
        self.grid.save(networks.G_ema, self.config.outdir, kimg)
        path = os.path.join(self.config.outdir, f'network-snapshot-{kimg:06d}.pkl')
        about = {'stage': stage, 'images_seen': self.images_seen, 'options': self.config.to_dict()}
        save_snapshot(path, networks.by_name(), about)


class Stage:
    """One stage: its players, objectives and schedules."""

    def __init__(self, run, number, stage, networks):
        config = run.config
        self.run, self.number, self.stage, self.networks, self.config = run, number, stage, networks, config
        self.steps = 0
        self.images_seen = 0  # in this stage
        self.augment_p, self.real_signs = 0.0, []
        self.passes = split_batch(config.batch // (distributed.world_size() * config.batch_per_pass))
        options = config.optimizer

        def player(name, module, lr, interval, weight):
            return Player(name, module, lr, options, interval if weight > 0 else None)
        self.g = player('G', networks.G, options.g_lr, options.density_interval, stage.loss.density_weight)
        self.d = player('D', networks.D, options.d_lr, options.r1_interval, stage.loss.r1_gamma)
        self.d_patch = networks.D_patch and player('D_patch', networks.D_patch, options.d_lr, options.r1_interval,
                                                   stage.loss.r1_gamma_patch)
        for module in networks.by_name().values():
            if module is not None:
                distributed.broadcast(module)
        imitation = build_imitation(stage.loss.imitation, run.vgg_weights, run.device) if number == 2 else None
        self.objectives = Objectives(networks.G, networks.D, networks.D_patch, stage.loss, imitation,
                                     augment=augment_images if config.augment == 'ada' else None, report=self.report)

    def go(self):
        run, config = self.run, self.config
        end = round(self.stage.kimg * 1000)
        run._log(f'stage {self.number}: {end / 1000:g} kimg')
        loader = self._loader(end)
        next_tick, ticks = config.tick_kimg * 1000, 0
        if run.images_seen == 0:
            run.save(self.number, self.networks)
        for real, real_c in loader:
            self.step(real, real_c)
            done = self.images_seen >= end
            if done or self.images_seen >= next_tick:
                next_tick, ticks = self.images_seen + config.tick_kimg * 1000, ticks + 1
                run.tick(self.number)
                if done or ticks % config.snapshot_ticks == 0:
                    run.save(self.number, self.networks)

    def _loader(self, end):
        """Batches of this process's rows, from the images seen so far to the end of the stage."""
        run, config = self.run, self.config
        rows = slice(distributed.rank(), None, distributed.world_size())
        starts = range(run.images_seen, run.images_seen + end, config.batch)
        batches = Batches(starts, lambda start: batch_indices(len(run.dataset), config.seed, start, config.batch)[rows].tolist())
        workers = dict(num_workers=config.workers, persistent_workers=True, prefetch_factor=4) if config.workers else {}
        loader = torch.utils.data.DataLoader(CarryErrors(run.dataset), batch_sampler=batches, collate_fn=collate_or_error,
                                             pin_memory=run.device.type == 'cuda', **workers)
        for batch in loader:
            if isinstance(batch, UserError):
                raise batch
            yield batch

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
        for player in (self.g, self.d, self.d_patch):
            if player is not None:
                player.scale_learning_rate(factor)

    def _step_generator(self):
        """Steps G; returns its fakes, without gradients, and the cameras they are seen from, for each pass."""
        inputs, made = self._fake_inputs('generator'), []

        def adversarial(p):
            mine = _rows(inputs, p)
            loss, fakes = self.objectives.generator(mine, self.schedule, self._random('generator', p))
            made.append((fakes.detach(), mine.c))
            return loss
        self.g.step(self.passes, adversarial, self.report)
        mean_w = torch.stack([fakes.mean_w for fakes, _ in made]).mean(dim=0)
        self.networks.G.mapping.update_w_avg(distributed.average(mean_w))
        if self.g.regularizes_at(self.steps):
            self._regularize_density()
        return made

    def _regularize_density(self):
        inputs = self._fake_inputs('density', swap_together=True)
        self.g.step(self.passes, lambda p: self.g.interval * self.objectives.density(
            _rows(inputs, p), self._random('density', p)), self.report)

    def _step_discriminator(self, reals, fakes):
        self.d.step(self.passes, lambda p: self.objectives.discriminator(
            *fakes[p.index], *reals[p.index], self.schedule, self._random('discriminator', p)), self.report)
        if self.d.regularizes_at(self.steps):
            self.d.step(self.passes, lambda p: self.d.interval * self.objectives.discriminator_r1(
                *reals[p.index], self.schedule, self._random('discriminator_r1', p)), self.report)

    def _step_patch_discriminator(self, reals, fakes):
        self.d_patch.step(self.passes, lambda p: self.objectives.patch_discriminator(
            fakes[p.index][0], reals[p.index][0], self.schedule, self._random('patch', p)), self.report)
        if self.d_patch.regularizes_at(self.steps):
            self.d_patch.step(self.passes, lambda p: self.d_patch.interval * self.objectives.patch_discriminator_r1(
                reals[p.index][0], self.schedule, self._random('patch_r1', p)), self.report)

    def _finish_step(self):
        config, run = self.config, self.run
        if config.augment == 'ada' and self.steps % config.ada_interval == 0:
            self._adapt_augmentation()
        beta = average_beta(config.batch, config.ema_half_life_kimg, self.stage.ema_rampup, self.images_seen)
        update_average(self.networks.G_ema, self.networks.G, beta)
        self.steps += 1
        self.images_seen += config.batch
        run.images_seen += config.batch
        if run.first:
            run.reporter.advance(config.batch)

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


class Batches:
    """A batch sampler: for every start, the indices of a batch."""

    def __init__(self, starts, indices):
        self.starts, self.indices = starts, indices

    def __len__(self):
        return len(self.starts)

    def __iter__(self):
        return map(self.indices, self.starts)


class CarryErrors(torch.utils.data.Dataset):
    """A dataset whose users' errors come out as items: raised in a worker process, they would become tracebacks."""

    def __init__(self, dataset):
        self.dataset = dataset

    def __len__(self):
        return len(self.dataset)

    def __getitem__(self, index):
        try:
            return self.dataset[index]
        except UserError as error:
            return error


def collate_or_error(items):
    """A batch, or the first error among its items."""
    errors = [item for item in items if isinstance(item, UserError)]
    return errors[0] if errors else torch.utils.data.default_collate(items)


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
