"""Results in tables, beside the published ones, and as curves over a training."""

import csv
import io
from pathlib import PurePath

from dnnlib.errors import UserError
from dnnlib.files import replacing
from metrics.images import PUBLISHED, WITHOUT_CHANCE

# FID, PSNR_mv, SSIM_mv as printed in the paper (docs/method.md, section 7); None: not given.
PUBLISHED_DATA = {'ffhq256': 'FFHQ 256', 'ffhq512': 'FFHQ 512', 'cats256': 'Cats 256', 'cats512': 'Cats 512'}
_METRICS = ('fid50k_full', 'psnr_mv', 'ssim_mv')
_FID3D = 'fid3d50k_full'
_SHOWN_PARTS = ('precision', 'recall')
_PUBLISHED = {
    'StyleSDF': {'ffhq256': (11.5,), 'ffhq512': (11.2,), 'cats512': (7.91,)},
    'VolumeGAN': {'ffhq256': (9.10, 33.6, 0.926)},
    'StyleNeRF': {'ffhq256': (8.00, 31.9, 0.915), 'ffhq512': (7.80, 30.9, 0.843)},
    'EG3D': {'ffhq256': (4.80, 34.0, 0.928), 'ffhq512': (4.70, 32.4, 0.861), 'cats256': (3.88,), 'cats512': (2.77,)},
    'Mimic3D 2D branch': {'ffhq256': (3.91, 35.7, 0.938), 'ffhq512': (4.14, 33.3, 0.891), 'cats256': (3.41,), 'cats512': (2.72,)},
    'GRAM': {'ffhq256': (13.8, 38.0, 0.966), 'cats256': (13.4,)},
    'GRAM-HD': {'ffhq256': (10.4, 36.5, 0.955), 'cats512': (7.67,)},
    'GMPI': {'ffhq256': (11.4, 39.8, 0.977), 'ffhq512': (8.29, 39.0, 0.961), 'cats512': (7.79,)},
    'EpiGRAF': {'ffhq256': (9.71,), 'ffhq512': (9.92, 37.3, 0.949), 'cats256': (6.93,)},
    'VoxGRAF': {'ffhq256': (9.60, 37.2, 0.960), 'cats256': (9.60,)},
    'Mimic3D 3D branch': {'ffhq256': (5.14, 39.3, 0.974), 'ffhq512': (5.37, 37.8, 0.955), 'cats256': (4.14,), 'cats512': (4.29,)},
}

# FID and FID3D at FFHQ 512, as printed in CGS-GAN's README.
_OTHER_PROTOCOL = {'GSGAN': (5.02, 10.50), 'GGHead': (4.34, 7.90), 'CGS-GAN': (4.94, 4.94)}
OTHER_SOURCE = 'CGS-GAN, another protocol'
_OTHER_HEADING = '### Another protocol (CGS-GAN: other backgrounds and crops): compare these with each other only'


def published_rows(choice):
    """The published results on a data set of PUBLISHED_DATA, on 'all' of them, or on 'none': the paper's, then CGS-GAN's."""
    paper = [
        {'method': method, 'data': name, 'source': 'published', **dict(zip(_METRICS, by_data[key]))}
        for key, name in PUBLISHED_DATA.items()
        if choice in (key, 'all')
        for method, by_data in _PUBLISHED.items()
        if key in by_data
    ]
    others = [
        {'method': method, 'data': PUBLISHED_DATA['ffhq512'], 'source': OTHER_SOURCE, 'fid50k_full': fid, _FID3D: fid3d}
        for method, (fid, fid3d) in _OTHER_PROTOCOL.items()
        if choice in ('ffhq512', 'all')
    ]
    return paper + others


def rows(records, every=False, published='none'):
    """Rows of a table, dictionaries: one per method, branch, snapshot and protocol settings that users change.

    every: all snapshots; otherwise the one of the highest kimg, per method and branch. Of results of the same thing, the
    last one counts. A metric that was not computed on images as it usually is has a column of its own.
    """
    measured = {}
    for record in records:
        psi = record['protocol'].get('truncation_psi')
        identity = (psi, *map(record.get, ('label', 'branch', 'snapshot', 'kimg', 'images', 'data')))
        row = measured.setdefault(identity, _row(record, psi))
        column = _column(record)
        row[column] = record['value']
        row.update({f'{column} {part}': record['parts'][part] for part in _SHOWN_PARTS if part in record['parts']})
    chosen = list(measured.values())
    if not every:
        newest = {(row['method'], row['data'], row['psi']): row for row in sorted(chosen, key=lambda row: row['kimg'] or 0)}
        chosen = [row for row in chosen if row is newest[row['method'], row['data'], row['psi']]]
    return chosen + published_rows(published)


def _column(record):
    """The metric's name, and how images were generated where that is not the metric's own way."""
    protocol = record['protocol']
    usual = PUBLISHED if 'detector' in protocol else WITHOUT_CHANCE
    sampling, noise_mode = protocol.get('sampling'), protocol.get('noise_mode')
    if (sampling, noise_mode) in (usual[:2], (None, None)):
        return record['metric']
    return f'{record["metric"]} ({sampling} rays, {noise_mode} noise)'


def _row(record, psi):
    branch = f' {record["branch"].upper()} branch' if record['branch'] else ''
    return {
        'method': f'{record["label"]}{branch}',
        'data': PurePath(record.get('data') or '').name,
        'source': 'measured',
        'kimg': record.get('kimg'),
        'psi': psi,
    }


def format_table(rows, form='markdown'):
    """The rows as text: 'csv', or 'markdown' with a table of its own for results of another protocol. Columns without any value
    are left out."""
    if form == 'csv':
        return _csv(*_cells(rows))
    others = [row for row in rows if row['source'] == OTHER_SOURCE]
    main = _markdown(*_cells([row for row in rows if row['source'] != OTHER_SOURCE]))
    return f'{main}\n\n{_OTHER_HEADING}\n\n{_markdown(*_cells(others))}' if others else main


def _cells(rows):
    """Names of columns, and the rows' texts."""
    known = ['method', 'data', 'source', 'kimg', 'psi', *_METRICS, _FID3D]
    names = dict.fromkeys([*known, *(name for row in rows for name in row)])
    columns = [name for name in names if any(row.get(name) not in (None, '') for row in rows)]
    return columns, [[_text(row.get(name)) for name in columns] for row in rows]


def _text(value):
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
