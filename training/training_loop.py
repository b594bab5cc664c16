"""The training loop: build or resume, then for each stage step, report and save."""

import contextlib
import os

import torch

from dnnlib.errors import UserError
from torch_utils import distributed
from torch_utils.checkpoint import copy_to_cpu
from torch_utils.interrupts import StopRequests
from torch_utils.memory import naming_memory
from torch_utils.stats import Statistics
from training.data.dataset import PosedImageDataset
from training.data.loader import naming_dead_helpers, real_batches
from training.presets import experiment
from training.rendering.fused import agree_on_kernels
from training.run.checkpoints import Saver, circumstances, describe_resumption, without_tensors
from training.run.grids import SampleGrid
from training.run.reporting import Clock, Reporter
from training.snapshots import load_augment_p, load_networks, networks_to_data
from training.state import build_state
from training.step import BadGradients, training_step

CHECK_STEPS = 16  # how often, in steps, the host looks at the gradients' health: it has to wait for the GPU


def train(config, vgg_weights=None, monitor=None):
    """Run both stages of a RunConfig in this process, which may be one of several; go on from a saved state if there is one.

    vgg_weights: file for LPIPS, where the configuration uses it; monitor: metrics.monitoring.Monitor or None. Leaves in
    config.outdir what docs/training.md lists.
    Returns whether the run is finished; if not, a signal or --max-minutes stopped it. Raises UserError.
    """
    with (
        distributed.joined(config.timeout_minutes),
        naming_memory('lower --batch-gpu, which may change as the run goes on'),
        naming_files(config.outdir),
        StopRequests() as requests,
        TrainingRun(config, vgg_weights, monitor, requests) as run,
    ):
        return run.go()


@contextlib.contextmanager
def naming_files(outdir):
    """A block whose trouble with files becomes a UserError."""
    try:
        yield
    except OSError as error:
        raise UserError(
            f'{error.filename or outdir}: {error.strerror or error}; what was whole in {outdir} '
            'stays so: mend the cause, and the same command goes on'
        ) from None


class TrainingRun(contextlib.AbstractContextManager):
    """One process's part of a run: what lasts longer than a stage. For a `with` block, whose failure it writes to the log."""

    def __init__(self, config, vgg_weights, monitor, requests):
        self.config, self.vgg_weights, self.monitor, self.requests = config, vgg_weights, monitor, requests
        self.device = distributed.pick_device()
        self.first = distributed.rank() == 0
        if config.threads:
            torch.set_num_threads(config.threads)
        torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = config.tf32
        agree_on_kernels(self.device)
        with distributed.together():
            self._prepare(config)

    def _prepare(self, config):
        self.dataset = PosedImageDataset(
            config.data,
            resolution=config.generator.image_resolution,
            mirror=config.mirror,
            background=config.generator.rendering.background,
        )
        data_content = self.dataset.content_hash()
        distributed.check_same(f'the content of --data={config.data}', data_content)
        self.config = config = config.replace(data_content=data_content)
        self.labels = self.dataset.labels.to(self.device)
        self.statistics = Statistics(self.device)
        self.grid = SampleGrid(self.dataset, config, self.device)
        damage, state = [], None
        with distributed.together(naming=False):
            if self.first:
                self.saver = Saver(config)
                state = self.saver.load_state(damage.append)
        others = distributed.share(state and without_tensors(state))  # their tensors come with the stage's networks
        self.saved = (state if self.first else others) or {}
        self.images_seen = self.saved.get('images_seen', 0)  # where the next stage begins
        self.inherited = self.saved.get('inherited', {})  # weights that a later stage begins with
        if self.first:
            self.reporter = Reporter(config, self.device, self.images_seen, **self.saved.get('reporter', {}))
        for line in damage:
            self.log(line)
        self.clock = Clock(config, self.images_seen)
        self.augment_p = 0.0  # ADA's probability that the next stage begins with
        self.stopping = False

    def go(self):
        """Train from where the last state was saved. Returns whether the run is finished; if not, it was asked to stop."""
        self._greet()
        begin = self.saved['stage']['number'] if self.saved else 1
        for number, stage in ((1, self.config.stage1), (2, self.config.stage2)):
            if number >= begin and stage.kimg > 0 and not self.stopping:
                self._train_stage(number)
        finished = self.images_seen >= self.config.total_images and not self.stopping
        if self.first:
            self.saver.finish(finished)
        distributed.wait_for_all()  # a process that ends early would take the others' connections away
        return finished

    def __exit__(self, kind, error, trace):
        if self.first:
            self.reporter.close(error)
            self.saver.close()

    def _train_stage(self, number):
        state = self._begin_stage(number)
        self.log(f'stage {number}: {state.stage.kimg:g} kimg')
        if state.images_seen == 0:
            self._save_samples(state)
        end = state.start + state.total_steps * self.config.batch
        batches = real_batches(self.dataset, self.config, state.images_seen, end, self.device.type == 'cuda')
        try:
            with naming_dead_helpers(), contextlib.closing(batches):
                for real, real_c in self.clock.measure_each('data', batches):
                    for name, tensors in training_step(state, real, real_c).items():
                        for values in tensors:
                            self.statistics.report(name, values)
                    self._after_step(state)
                    if self.stopping:
                        return
        except (distributed.LostContact, BadGradients) as error:
            raise type(error)(
                f'{error}, in step {state.steps} of stage {number}; the last training state is kept, and the '
                'same command goes on from it'
            ) from error
        self.images_seen, self.augment_p = state.images_seen, state.augment_p
        for name, weights in state.weights().items():  # what this stage does not have stays as --init-from gave it
            self.inherited[name] = {**self.inherited.get(name, {}), **weights}

    def _begin_stage(self, number):
        """The TrainingState that the stage goes on from: what a saved one holds, or else what the run brings along."""
        with distributed.together():
            state = build_state(self.config, number, self.device, self.labels, self.vgg_weights)
            state.images_seen = state.start = self.images_seen
            if self.saved:
                state.restore(self.saved['stage'])
                self.statistics.restore(self.saved['statistics'])
            else:
                state.augment_p = self.augment_p
                if self.inherited:
                    state.take(self.inherited, self.log)
            state.agree()
        self.inherited = state.lacking(self.inherited)
        if self.saved.get('to_be_shown'):
            self._show(state, again=True)
        self.saved = {}
        return state

    def _greet(self):
        self.log(
            f'{len(self.dataset)} images of {self.dataset.resolution}x{self.dataset.resolution} from {self.config.data}; '
            f'{distributed.world_size()} process(es) on {self.device.type}'
        )
        for line in [*self.dataset.notes, *(describe_resumption(self.saved, self.config) if self.saved else ())]:
            self.log(line)
        if self.saved:
            return
        if self.config.init_from is not None:
            self.augment_p = distributed.from_first(self._inherit)
        if self.first:
            self.saver.save_reals(self.grid.reals(self.dataset), self.grid.columns)

    def _inherit(self):
        """Take over the weights that --init-from names, for the process that hands weights on. Returns ADA's probability."""
        self.log(f'weights from {self.config.init_from}')
        states = {name: network.state_dict() for name, network in load_networks(self.config.init_from).items()}
        generator = states.get('G', states.get('G_ema', {}))
        self.inherited = {'G': generator, 'G_ema': generator, **states}
        if self.config.augment != 'ada' or self.config.fresh_schedules:
            return 0.0
        augment_p = load_augment_p(self.config.init_from)
        self.log(f"ADA's probability begins at {augment_p:.3f}")
        return augment_p

    def log(self, line):
        if self.first:
            self.reporter.log(line)

    # Between the steps -----------------------------------------------------------------------------------------------

    def _after_step(self, state):
        """Report and save what is due. A snapshot comes with a state, so that what a run has shown is not lost."""
        if state.steps % min(CHECK_STEPS, self.config.max_bad_steps) == 0:
            state.watch_gradients()
        distributed.check_parent()
        if self.first:
            self.reporter.advance(self.config.batch)
            self.saver.check()
        ticks, rest = divmod(state.steps, self.config.steps_per_tick)
        ticked = state.done or rest == 0
        shown = ticked and (state.done or ticks % self.config.snapshot_ticks == 0)
        if ticked:
            collected = self.statistics.collect()  # by every process, from all
            if self.first:
                self.reporter.tick(state.number, state.images_seen, {**collected, **self.clock.shares()})
        late, due = self.clock.read(state.images_seen) if self.first else (False, False)
        asked, late, due = distributed.any_of([self.requests.received, late, due])
        self.stopping = asked or late
        if (self.stopping or due or shown) and state.healthy:
            self._save_state(state, shown)
        if shown and not self.stopping:  # else the run shows it when it goes on
            self._show(state)
        if self.stopping:
            self.log('stopping, as asked; the same command goes on from here' if asked else 'stopping: --max-minutes are over')

    def _show(self, state, again=False):
        """Grids, snapshot and, every so often, metrics of this moment; again: only what an interruption left undone."""
        if not (again and distributed.from_first(lambda: self.saver.has_snapshot(state.images_seen))):
            self._save_samples(state)
        snapshots = state.steps // self.config.steps_per_tick // self.config.snapshot_ticks
        due = self.monitor is not None and (state.done or snapshots % self.config.metrics_every == 0)
        if due and not (again and distributed.from_first(lambda: self.monitor.is_evaluated(state.images_seen / 1000))):
            self._evaluate(state)

    def _save_samples(self, state):
        """Grids and snapshot of this moment; every process draws its part."""
        with self.clock.measure('grids'), distributed.together():
            pictures = self.grid.draw(state.networks['G_ema'])
        if self.first:
            about = {
                'stage': state.number,
                'images_seen': state.images_seen,
                'augment_p': state.augment_p,
                'options': self.config.to_dict(),
            }
            with self.clock.measure('saving'):
                self.saver.save_samples(state.images_seen, pictures, self.grid.columns, networks_to_data(state.networks), about)

    def _evaluate(self, state):
        """Metrics of the snapshot that was just saved. Every process computes its part.

        They can take long, and the state is saved: a stop request is obeyed at once, and the next start does them again.
        """
        snapshot = self.saver.snapshot_path(state.images_seen) if self.first else None
        about = {
            'snapshot': snapshot,
            'kimg': state.images_seen / 1000,
            'label': os.path.basename(self.config.outdir),
            'experiment': experiment(self.config, state.number),
        }
        branches = ('2d', '3d') if state.networks['G_ema'].config.has_3d_branch else ('2d',)
        if self.first:
            self.saver.finish_writing()
        distributed.wait_for_all()
        with self.clock.measure('metrics'), self.requests.obeyed_at_once(distributed.exit_code_when_stopped()):
            records = self.monitor.evaluate_snapshot(state.networks['G_ema'], self.device, branches, about, self.log)
        if self.first:
            for line in self.monitor.keep(records, snapshot, branches):
                self.log(line)
            self.reporter.add_metrics(records, state.images_seen)

    def _save_state(self, state, to_be_shown):
        """Everything that a restart needs. Every process must call it, since all have a part in it."""
        with self.clock.measure('saving'):
            content = {
                'images_seen': state.images_seen,
                'statistics': self.statistics.state(),
                'stage': state.to_dict(),
                'inherited': self.inherited,
                'to_be_shown': to_be_shown,
                'options': self.config.to_dict(),
                'circumstances': circumstances(self.config),
            }
            if self.first:
                self.saver.save_state(state.images_seen, copy_to_cpu({**content, 'reporter': self.reporter.position()}))
        self.clock.state_saved(state.images_seen)
