"""Results in tables, beside the published ones, and as curves over a training."""

import csv
import io
from pathlib import PurePath

from dnnlib.errors import UserError
from dnnlib.files import replacing
from metrics.ablations import ablation_tables
from metrics.images import PUBLISHED, WITHOUT_CHANCE
from metrics.published import FID3D, MEASURED, METRICS, OTHER_SOURCE, TABLE1, published_rows

_SHOWN_PARTS = ('precision', 'recall')
_ABOUT = ('method', 'data', 'source', 'kimg', 'psi')
_EXPERIMENT = ('run', 'branch', 'preset', 'table2', 'table3', 'differences', 'parameters_m', 'memory_gb')  # columns of CSV alone
_OTHER_HEADING = '### Another protocol (CGS-GAN: other backgrounds and crops): compare these with each other only'


def rows(records, every=False, published='none'):
    """Rows of a table, dictionaries: one per method, branch, snapshot and protocol settings that users change.

    every: all snapshots; otherwise the one of the highest kimg, per method and branch. Of results of the same thing, the
    last one counts. A metric that was not computed on images as it usually is has a column of its own. published: one of
    published.CHOICES.
    """
    measured = {}
    for record in records:
        psi = record['protocol'].get('truncation_psi')
        identity = (psi, *map(record.get, ('label', 'branch', 'snapshot', 'kimg', 'images', 'data')))
        row = measured.setdefault(identity, _row(record, psi))
        column = _column(record)
        row[column] = record['value']
        row.update({f'{column} {part}': record['parts'][part] for part in _SHOWN_PARTS if part in record['parts']})
    chosen = _join_views(list(measured.values()))
    if not every:
        newest = {_what(row): row for row in sorted(chosen, key=lambda row: row['kimg'] or 0)}
        chosen = [row for row in chosen if row is newest[_what(row)]]
    return chosen + published_rows(published)


def _join_views(rows):
    """Rows, where those of stored views are one with those of the same method's stored images, if these have one data set."""
    joined = [row for row in rows if row['data'] or row['branch']]
    for row in rows:
        if row not in joined:
            images = [other for other in joined if other['method'] == row['method']]
            if len(images) == 1:
                images[0].update({name: value for name, value in row.items() if value not in (None, '')})
            else:
                joined.append(row)
    return joined


def _what(row):
    """What a row is of, whatever the moment. Folders of several ablations may have one name."""
    return tuple(map(row.get, ('method', 'data', 'psi', 'table2', 'table3')))


def _column(record):
    """The metric's name, and how images were generated where that is not the metric's own way."""
    protocol = record['protocol']
    usual = PUBLISHED if 'detector' in protocol else WITHOUT_CHANCE
    sampling, noise_mode = protocol.get('sampling'), protocol.get('noise_mode')
    if (sampling, noise_mode) in (usual[:2], (None, None)):
        return record['metric']
    return f'{record["metric"]} ({sampling} rays, {noise_mode} noise)'


def _row(record, psi):
    branch, parameters = record['branch'], record.get('plane_parameters')
    return {
        'method': f'{record["label"]} {branch.upper()} branch' if branch else str(record['label']),
        'data': PurePath(record.get('data') or '').name,
        'source': MEASURED,
        'kimg': record.get('kimg'),
        'psi': psi,
        'run': record['label'],
        'branch': branch,
        **(record.get('experiment') or {}),
        'parameters_m': parameters and parameters / 1e6,
    }


def format_table(rows, form='markdown'):
    """The rows as text: one 'csv', or in 'markdown' several tables: of another protocol and of the paper's ablations apart.

    Columns without any value are left out.
    """
    if form == 'csv':
        return _csv(*_cells(rows, [*_columns(rows), *_EXPERIMENT]))
    main, others = ([row for row in rows if row['source'] in sources] for sources in ((MEASURED, TABLE1), (OTHER_SOURCE,)))
    sections = [_markdown(*_cells(main, _columns(main)))] if main else []
    if others:
        sections += [_OTHER_HEADING, _markdown(*_cells(others, _columns(others)))]
    for heading, lines, notes in ablation_tables(rows):
        sections += [f'### {heading}', _markdown(*_cells(lines, list(lines[0])))]
        sections += ['\n'.join(f'{number}. {note}' for number, note in enumerate(notes, 1))] if notes else []
    return '\n\n'.join(sections)


def _columns(rows):
    """Names of the columns of `rows`, without those of _EXPERIMENT."""
    names = dict.fromkeys([*_ABOUT, *METRICS, FID3D, *(name for row in rows for name in row)])
    return [name for name in names if name not in _EXPERIMENT]


def _cells(rows, columns):
    """Those of the columns that have a value, and the rows' texts in them."""
    filled = [name for name in columns if any(row.get(name) not in (None, '', []) for row in rows)]
    return filled, [[_text(row.get(name)) for name in filled] for row in rows]


def _text(value):
    if isinstance(value, list):
        return '; '.join(value)
    return '' if value is None else f'{value:.5g}' if isinstance(value, float) else str(value)


def _csv(columns, cells):
    text = io.StringIO()
    csv.writer(text, lineterminator='\n').writerows([columns, *cells])
    return text.getvalue().rstrip('\n')


def _markdown(columns, cells):
    cells = [[cell.replace('|', '\\|') for cell in row] for row in [columns, *cells]]
    widths = [max(map(len, column)) for column in zip(*cells)]
    lines = ['| ' + ' | '.join(cell.ljust(width) for cell, width in zip(row, widths)) + ' |' for row in cells]
    return '\n'.join([lines[0], '|' + '|'.join('-' * (width + 2) for width in widths) + '|', *lines[1:]])


def plot_metrics(records, path):
    """Draw every metric against kimg, a panel each and a line per branch, as a PNG. The last result of a kimg counts.

    Raises UserError when no record says at which kimg it was measured, or when the file cannot be written.
    """
    from matplotlib.figure import Figure  # slow to import

    curves = {}
    for record in records:
        if record.get('kimg') is not None:
            points = curves.setdefault(record['metric'], {}).setdefault(record['branch'] or record['label'], {})
            points[record['kimg']] = record['value']
    if not curves:
        raise UserError('no result says at which kimg it was measured: evaluate snapshots of a run, or train with --metrics')
    figure = Figure(figsize=(4.8 * len(curves), 3.6), layout='constrained')
    for axes, (metric, branches) in zip(figure.subplots(1, len(curves), squeeze=False)[0], curves.items()):
        for branch, points in sorted(branches.items()):
            axes.plot(*zip(*sorted(points.items())), marker='o', markersize=3, label=branch)
        axes.set(title=metric, xlabel='kimg')
        axes.grid(alpha=0.3)
        axes.legend()
    try:
        with replacing(path) as file:
            figure.savefig(file, format='png', dpi=120)
    except OSError as error:
        raise UserError(f'{path} cannot be written ({error.strerror}): name another file with --output') from None
