"""What a run shows while it goes: log, progress bar, statistics, TensorBoard; and where the time goes."""

import contextlib
import logging
import math
import os
import sys
import threading
import time
import traceback

import psutil
import torch
from torch.utils.tensorboard import SummaryWriter
from tqdm import tqdm

from dnnlib.errors import UserError
from torch_utils import distributed
from torch_utils.stats import append_json_line, cut
from training.config import parse_interval

# What the code below the loop has to say: which renderer it took, operators that cannot be built.
_LOGGERS = [logging.getLogger(name) for name in ('mimic3d', 'torch_utils')]


# What a tick's line says after stage and time, where there is something to say.
STATUS = {
    'seconds_per_kimg': '{:7.2f} s/kimg',
    'cpu_memory_gib': 'cpu {:.2f} GiB',
    'gpu_memory_gib': 'gpu {:.2f} GiB',
    'loss/G/adversarial': 'G {:.3f}',
    'loss/D': 'D {:.3f}',
    'loss/G/imitation': 'imitation {:.3f}',
    'loss/D_patch': 'D_patch {:.3f}',
    'augment/p': 'ada p {:.3f}',
}


class _LogLines(logging.Handler):
    """Records of a logger as lines of a run's log."""

    def __init__(self, log):
        super().__init__()
        self.log = log

    def emit(self, record):
        self.log(record.getMessage())


def _hide_disk_errors(report):
    """TensorBoard writes in a thread of its own; its OSErrors come out of `flush`, and need no traceback besides."""
    if not issubclass(report.exc_type, OSError):
        threading.__excepthook__(report)


class Reporter:
    """Files and progress of a run, written by the first process only.

    config: RunConfig; device: whose memory is shown; images_seen, seconds, stats_size: where an interrupted run goes on,
    how long it had taken, and how many bytes of stats.jsonl are from before (what came later happens again).
    """

    def __init__(self, config, device, images_seen=0, seconds=0.0, stats_size=0):
        self.outdir, self.device = config.outdir, device
        self.stats_path = os.path.join(self.outdir, 'stats.jsonl')
        cut(self.stats_path, stats_size)
        self.events = SummaryWriter(self.outdir, purge_step=images_seen + 1)
        self.bar = tqdm(
            total=config.total_images, initial=images_seen, unit='img', unit_scale=True, dynamic_ncols=True, smoothing=0.05
        )
        self.tick_start = time.time()
        self.start = self.tick_start - seconds
        self.tick_images = images_seen
        threading.excepthook = _hide_disk_errors
        self.library_lines = _LogLines(self.log)
        for logger in _LOGGERS:
            logger.addHandler(self.library_lines)
            logger.setLevel(logging.INFO)

    def position(self):
        """The arguments with which another Reporter goes on from here, but for images_seen."""
        size = os.path.getsize(self.stats_path) if os.path.exists(self.stats_path) else 0
        return {'seconds': time.time() - self.start, 'stats_size': size}

    def log(self, line):
        """One line to log.txt and to the terminal, above the progress bar."""
        self._write(line)
        tqdm.write(line, file=sys.stderr)

    def _write(self, text):
        with open(os.path.join(self.outdir, 'log.txt'), 'a') as file:
            file.write(text + '\n')

    def advance(self, images):
        self.bar.update(images)

    def tick(self, stage, images_seen, statistics):
        """Status line, stats.jsonl and TensorBoard for what happened since the last tick; of GPU memory, the most since then."""
        now = time.time()
        kimg = images_seen / 1000
        record = {
            'stage': stage,
            'kimg': kimg,
            'seconds': now - self.start,
            'seconds_per_kimg': (now - self.tick_start) * 1000 / max(images_seen - self.tick_images, 1),
            'cpu_memory_gib': psutil.Process().memory_info().rss / 2**30,
            **({'gpu_memory_gib': torch.cuda.max_memory_allocated(self.device) / 2**30} if self.device.type == 'cuda' else {}),
            **statistics,
        }
        append_json_line(self.stats_path, record)
        for name, value in record.items():
            self.events.add_scalar(name, value, images_seen)
        self.events.flush()
        self.log(status_line(record))
        self.tick_start, self.tick_images = now, images_seen
        if self.device.type == 'cuda':
            torch.cuda.reset_peak_memory_stats(self.device)

    def add_metrics(self, records, images_seen):
        """Results of metrics (records with 'metric', 'branch' and 'value') for TensorBoard."""
        for record in records:
            self.events.add_scalar(f'metric/{record["metric"]}/{record["branch"]}', record['value'], images_seen)

    def close(self, error=None):
        """error: what ends the run, if anything does, which the log keeps."""
        if isinstance(error, Exception):
            with contextlib.suppress(OSError):  # of a full disk
                self._write('the run ends: ' + explain(error))
        threading.excepthook = threading.__excepthook__
        for logger in _LOGGERS:
            logger.removeHandler(self.library_lines)
        self.bar.close()
        self.events.close()


def explain(error):
    """An exception as text: a line, and of a bug or a lost process the traceback, on whichever process it showed."""
    lost = isinstance(error, distributed.LostContact)
    line = str(error) if isinstance(error, UserError) else f'{type(error).__name__}: {error}'
    if isinstance(error, (UserError, OSError, torch.OutOfMemoryError)) and not lost:
        return line
    while lost and error.__cause__ is not None:
        error = error.__cause__
    return line + '\n' + ''.join(traceback.format_exception(error)).rstrip()


def status_line(record):
    """A tick in one line of fixed columns."""
    shown = [form.format(record[name]) for name, form in STATUS.items() if name in record]
    return '  '.join(
        [f'stage {record["stage"]}', f'kimg {record["kimg"]:9.2f}', f'{tqdm.format_interval(record["seconds"]):>9}', *shown]
    )


class Clock:
    """Where the time of this process goes, and when time is up."""

    def __init__(self, config, images_seen):
        self._limit = config.max_minutes * 60 - distributed.job_age() if config.max_minutes else math.inf
        self._images_between, self._seconds_between = parse_interval(config.state_every)
        self._start = self._tick = time.monotonic()
        self._spent = {}
        self.state_saved(images_seen)

    def state_saved(self, images_seen):
        """The training state was saved just now."""
        self._saved, self._saved_images = time.monotonic(), images_seen

    def read(self, images_seen):
        """(--max-minutes are over, the training state is due)."""
        now = time.monotonic()
        due = now - self._saved >= self._seconds_between or images_seen - self._saved_images >= self._images_between
        return now - self._start >= self._limit, due

    @contextlib.contextmanager
    def measure(self, name):
        """Count the time of a block under a name."""
        start = time.monotonic()
        try:
            yield
        finally:
            self._spent[name] = self._spent.get(name, 0.0) + time.monotonic() - start

    def measure_each(self, name, items):
        """The items, while the time that each takes to come is counted under a name."""
        iterator = iter(items)
        while True:
            with self.measure(name):
                item = next(iterator, None)
            if item is None:
                return
            yield item

    def shares(self):
        """{share_of_time/<name>: fraction of the time since the last call}."""
        now = time.monotonic()
        spent, whole = self._spent, max(now - self._tick, 1e-9)
        self._spent, self._tick = {}, now
        return {f'share_of_time/{name}': seconds / whole for name, seconds in spent.items()}
