"""Results on disk: metric-<name>.jsonl, and which snapshot is the best."""

import json
import os
import shutil
import warnings
from pathlib import Path

from dnnlib.errors import UserError
from dnnlib.files import replacing
from metrics import registry
from torch_utils.stats import append_json_line

BEST = 'network-snapshot-best.pkl'


def file_of(outdir, metric):
    """The file of a metric's results, by its name, in a folder."""
    return Path(outdir) / f'metric-{metric}.jsonl'


def append_record(outdir, record):
    """Write a record as a line of metric-<name>.jsonl in a folder. Raises OSError."""
    append_json_line(file_of(outdir, record['metric']), record)


def read_folder(folder):
    """All records of a folder, in the order of the files' names and lines.

    Raises UserError for a folder without results. A line that is none, such as a half-written one, costs a warning.
    """
    paths = sorted(Path(folder).glob('metric-*.jsonl'))
    if not paths:
        raise UserError(f'{folder} holds no metric-*.jsonl: give a folder with results of calc_metrics.py')
    return [record for path in paths for record in read_file(path)]


def read_file(path):
    """The records of one file, none where it is missing; see `read_folder`."""
    for number, line in enumerate(path.read_text().splitlines() if path.exists() else [], 1):
        try:
            record = json.loads(line)
            yield {
                'label': path.resolve().parent.name,
                'parts': {},
                'protocol': {},
                'branch': None,
                **record,
                'metric': str(record['metric']),
                'value': float(record['value']),
            }
        except (ValueError, KeyError, TypeError):
            warnings.warn(f'{path}: line {number} is no result and is left out', stacklevel=2)


def format_record(record):
    """A record for the terminal."""
    about = [name for name in (record['branch'], record.get('kimg') is not None and f'{record["kimg"]:g} kimg') if name]
    parts = ', '.join(f'{name} {value:.6g}' for name, value in record['parts'].items())
    return f'{" ".join([record["metric"], *about])}: {record["value"]:.6g}' + (f' ({parts})' if parts else '')


def keep_best(outdir, records, snapshot, metric, branch):
    """Write the records of a snapshot, and keep it as network-snapshot-best.pkl if it is the best so far; returns whether.

    For one process of a training loop. metric, branch: whose record decides; where `records` lack it, nothing is the best.
    """
    earlier = list(read_file(file_of(outdir, metric)))
    best = any(is_best(record, earlier) for record in records if (record['metric'], record['branch']) == (metric, branch))
    for record in records:
        append_record(outdir, record)
    if best:
        with open(snapshot, 'rb') as source, replacing(os.path.join(outdir, BEST)) as target:
            shutil.copyfileobj(source, target)
    return best


def is_best(record, earlier):
    """Whether `record` beats all `earlier` records of its metric, branch and protocol. Not-a-number beats nothing."""
    rivals = [other['value'] for other in earlier if all(other[key] == record[key] for key in ('metric', 'branch', 'protocol'))]
    sign = 1 if registry.find_family(record['metric'])[0].higher_is_better else -1
    return record['value'] == record['value'] and all(not sign * rival >= sign * record['value'] for rival in rivals)
