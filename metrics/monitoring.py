"""Metrics of a run while it trains: computed for snapshots, written beside them, the best snapshot kept."""

import os
from dataclasses import dataclass, field
from pathlib import Path

from metrics import registry, results
from metrics.detector import DetectorError, find_weights
from metrics.evaluation import evaluate_branches
from metrics.image_quality import needs_detector
from torch_utils import distributed


@dataclass
class Monitor:
    """Judges the snapshots of a run. Every process has one.

    names: metrics, the first of which decides which snapshot is the best; detector: file of the detector's weights, or
    None; the rest as in registry.Task.
    """

    names: list
    data: str
    mirror: bool
    outdir: str
    detector: str | None = None
    workers: int = 2
    _checked: bool = field(default=False, init=False)

    def judge(self, generator, device, branches, about, log):
        """Records of all metrics and branches. Every process must call it.

        Without the detector's weights, `log` is told so once, and the metrics that need it are left out from then on.
        """
        self._leave_out_what_cannot_be(log)
        if not self.names:
            return []
        options = {**registry.default_options(), 'detector': self.detector}
        task = registry.Task(device=device, generator=generator, data=self.data, mirror=self.mirror, outdir=Path(self.outdir),
                             workers=self.workers, progress=False, options=options)
        return list(evaluate_branches(self.names, task, branches, about))

    def _leave_out_what_cannot_be(self, log):
        needing = [name for name in self.names if needs_detector(name)]
        if needing and not self._checked:
            reason = self._obstacle()
            if distributed.any_of([reason is not None])[0]:
                log(f'the training goes on without {", ".join(needing)}: {reason or "another process has no weights"}')
                self.names = [name for name in self.names if name not in needing]
        self._checked = True

    def _obstacle(self):
        """Why this process has no detector, or None."""
        try:
            path, _ = find_weights(self.detector)
        except DetectorError as error:
            return str(error)
        return None if os.path.isfile(path) else f'{path}: no such file on this machine'

    def judged(self, kimg):
        """Whether the results of a moment are there already. For one process."""
        return all(any(record.get('kimg') == kimg for record in self._records(name)) for name in self.names)

    def _records(self, name):
        path = Path(self.outdir) / f'metric-{name}.jsonl'
        return list(results.read_file(path)) if path.exists() else []

    def keep(self, records, snapshot):
        """Write the records, unless there are some of this moment; copy their snapshot if it is the best. For one process.

        Returns lines for the log.
        """
        if not records or self.judged(records[0]['kimg']):
            return []
        best = results.keep_best(self.outdir, records, snapshot)
        return [*map(results.one_line, records), *([f'the best snapshot so far: {results.BEST}'] if best else [])]
