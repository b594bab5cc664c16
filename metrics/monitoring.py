"""Metrics of a run while it trains: computed for snapshots, written beside them, the best snapshot kept."""

import dataclasses
import os
from dataclasses import dataclass
from pathlib import Path

from dnnlib.errors import UserError
from metrics import evaluation, registry, results
from metrics.detector import find_weights
from metrics.image_quality import need_detector
from torch_utils import distributed
from torch_utils.memory import naming_memory
from torch_utils.pretrained import WeightsError


@dataclass
class Monitor:
    """Evaluates the snapshots of a run. Every process has one.

    names: metrics, the first of which decides which snapshot is the best; detector: file of the detector's weights, or
    None; the rest as in registry.Task.
    """

    names: list
    data: str
    mirror: bool
    outdir: str
    detector: str | None = None
    workers: int = 2

    def evaluate_snapshot(self, generator, device, branches, about, log):
        """Records of all metrics and branches that could be computed. Every process must call it.

        `log` is told of those that could not. Without the detector's weights it is told so once, and the metrics that need
        it are left out from then on. Raises LostContact.
        """
        self._leave_out_what_cannot_be(log)
        if not self.names:
            return []
        options = {**registry.default_options(), 'detector': self.detector}
        task = registry.Task(
            device=device,
            generator=generator,
            data=self.data,
            mirror=self.mirror,
            outdir=Path(self.outdir),
            workers=self.workers,
            progress=False,
            options=options,
        )
        records = []
        for branch in branches:
            for metrics in registry.by_group(self.names).values():
                records += self._records_of(list(metrics), dataclasses.replace(task, branch=branch), about, log)
        return records

    def _records_of(self, names, task, about, log):
        """Records of metrics that are computed together; none if that fails, which neither costs the others nor ends the run."""
        try:
            with naming_memory('leave it to calc_metrics.py'):
                return list(evaluation.compute_records(names, task, about))
        except distributed.LostContact:
            raise
        except UserError as error:
            log(f'no {", ".join(names)} of this snapshot, {task.branch} branch: {error}')
            return []

    def _leave_out_what_cannot_be(self, log):
        needing = need_detector(self.names)
        reason = distributed.first_problem(self._obstacle()) if needing else None
        if reason is not None:
            log(f'the training goes on without {", ".join(needing)}: {reason}')
            self.names = [name for name in self.names if name not in needing]

    def _obstacle(self):
        """Why this process has no detector, or None."""
        try:
            path, _ = find_weights(self.detector)
        except WeightsError as error:
            return str(error)
        return None if os.path.isfile(path) else f'{path}: no such file on this machine'

    def _written(self, name):
        """{(kimg, branch)} of a metric's results that are there: a run that was interrupted may meet a moment again."""
        return {(record.get('kimg'), record['branch']) for record in results.read_file(results.file_of(self.outdir, name))}

    def is_evaluated(self, kimg):
        """Whether the results of a moment are there already. For one process."""
        return all(kimg in [moment for moment, _ in self._written(name)] for name in self.names)

    def keep(self, records, snapshot, branches):
        """Write the records that are not there yet; copy their snapshot if it is the best. For one process.

        The first metric of the last of `branches` decides; without its record no snapshot is the best. Returns lines for
        the log.
        """
        new = [record for record in records if (record['kimg'], record['branch']) not in self._written(record['metric'])]
        if not new:
            return []
        best = results.keep_best(self.outdir, new, snapshot, self.names[0], branches[-1])
        return [*map(results.format_record, new), *([f'the best snapshot so far: {results.BEST}'] if best else [])]
