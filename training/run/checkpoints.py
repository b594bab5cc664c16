"""The files of a run that last: training states, snapshots, grids. Written by the first process, beside its other work."""

import os

import torch

from dnnlib.errors import UserError
from dnnlib.files import lock_folder, remove
from torch_utils import distributed
from torch_utils.background import Background
from torch_utils.checkpoint import StateFolder
from torch_utils.images import image_grid, save_png
from training.run.resuming import check_again, write_options
from training.snapshots import SnapshotError, moment, read_snapshot, write_snapshot

FINISHED = 'finished'  # an empty file of this name marks the folder of a run that has nothing left to do


class Saver:
    """Writes into the folder of a RunConfig, which it has for itself."""

    def __init__(self, config):
        self.config = config
        self.lock = lock_folder(config.outdir)
        self.states = StateFolder(config.outdir, config.keep_states)
        self.background = Background()
        self.check = self.background.check
        self.finish_writing = self.background.finish

    def _path(self, name):
        return os.path.join(self.config.outdir, name)

    def load_state(self, log):
        """The newest whole state or None. Raises UserError when it is of another run, or one on other data."""
        saved, state = check_again(self.config), self.states.load(log)
        known = {saved and saved.data_content, state and state['options'].get('data_content')} - {None}
        if not known <= {self.config.data_content}:
            raise UserError(
                f'--data={self.config.data} holds other images or cameras than the run in {self.config.outdir} was started '
                'with; give it the same data'
            )
        for name in (FINISHED, *(name for name in os.listdir(self.config.outdir) if name.endswith('.tmp'))):
            remove(self._path(name))  # what a process that was killed left half-written would fill the disk
        write_options(self.config)  # only now is it sure that the run goes on with them, and here alone
        return state

    def save_state(self, images_seen, content):
        self.background.give(self.states.save, images_seen, content)

    def save_reals(self, images, columns):
        save_png(image_grid(images, columns), self._path('reals.png'))

    def snapshot_path(self, images_seen):
        return self._path(f'network-snapshot-{moment(images_seen)}.pkl')

    def has_snapshot(self, images_seen):
        """Whether the snapshot of this moment was written."""
        try:
            return read_snapshot(self.snapshot_path(images_seen))['about'].get('images_seen') == images_seen
        except SnapshotError:
            return False

    def save_samples(self, images_seen, pictures, columns, networks, about):
        """fakes<moment>_<name>.png for every entry of pictures, and network-snapshot-<moment>.pkl of plain data."""

        def write():
            for name, images in pictures.items():
                save_png(image_grid(images, columns), self._path(f'fakes{moment(images_seen)}_{name}.png'))
            write_snapshot(self.snapshot_path(images_seen), networks, about)

        self.background.give(write)

    def finish(self, finished):
        """Wait until everything is written. finished: whether the run has nothing left to do."""
        self.finish_writing()
        if finished:
            open(self._path(FINISHED), 'w').close()

    def close(self):
        try:
            self.background.finish()
        finally:
            self.lock.release()


def without_tensors(state):
    """What the processes that do not read a state need of it, but for tensors: TrainingState.restore hands these on."""
    stage = {name: value for name, value in state['stage'].items() if name not in ('networks', 'optimizers')}
    return {**state, 'stage': stage, 'inherited': {}}


def circumstances(config):
    """What must not change for a run to resume bit-exactly."""
    device = torch.cuda.get_device_name() if torch.cuda.is_available() else 'CPU'
    return {
        'processes': distributed.world_size(),
        'images per pass': config.batch_per_pass,
        'threads': torch.get_num_threads(),
        'device': device,
        'torch': str(torch.__version__),
    }


def describe_resumption(state, config):
    """Lines for the log of a run that goes on from a state."""
    yield f'going on from image {state["images_seen"]}, step {state["stage"]["steps"]} of stage {state["stage"]["number"]}'
    now, then = circumstances(config), state['circumstances']
    changed = [f'{name}: {then.get(name)} before, {value} now' for name, value in now.items() if then.get(name) != value]
    if changed:
        yield f'{"; ".join(changed)}: equal to an uninterrupted run only up to rounding'
