"""The paper's tables 2 and 3, measured values beside the published ones."""

from metrics.published import FID, MEASURED, TABLE2, TABLE3
from training.presets import ABLATIONS_PRESET, ablation_differences

_HEADINGS = {
    'table2': 'Table 2 of the paper: FID of the 3D branch; the paper: FFHQ 256',
    'table3': 'Table 3 of the paper: FID by where 3D-aware convolutions are (--aware); the paper: FFHQ 256',
}
_SIZE_HEADING = 'Table 3 of the paper: millions of parameters of E and the mapping network, GB to make P^c'
_NAMES = {'A': 'A: P^c alone', 'B': 'B: + imitation', 'C': 'C: + imitation, S3D', 'D': 'D: + S3D, D3D', 'E': 'E: full method'}
_SAME_IMAGES = ('run', 'data', 'kimg', 'psi', 'preset')  # the rows of both branches of a snapshot agree in these


def ablation_tables(rows):
    """Those of tables 2 and 3 whose published results are among the rows of `tables.rows`.

    Yields headings, lines (dictionaries {column: value} of equal keys) and notes, whose numbers, from 1 on, stand in the lines.
    """
    for table, source in (('table2', TABLE2), ('table3', TABLE3)):
        paper = {(row[table], row['branch']): row for row in rows if row['source'] == source}
        if paper:
            notes = []
            runs = {name: _runs(rows, table, paper, name) for name, _ in paper}
            yield _HEADINGS[table], list(_fid_lines(table, paper, runs, notes)), notes
            if table == 'table3':
                yield _SIZE_HEADING, list(_size_lines(paper, runs)), []


def _runs(rows, table, paper, name):
    """Measured rows of a table's row: of every snapshot a dictionary {branch: row}."""
    runs = {}
    for row in rows:
        if row['source'] == MEASURED and row.get(table) == name and (name, row['branch']) in paper:
            runs.setdefault(tuple(map(row.get, _SAME_IMAGES)), {})[row['branch']] = row
    return list(runs.values())


def _fid_lines(table, paper, runs, notes):
    """Per row, metric and snapshot a line; per row at least the paper's. Only the paper's own metric stands beside its values."""
    for name, measured in runs.items():
        metrics = dict.fromkeys([FID, *(column for run in measured for row in run.values() for column in row if _is_fid(column))])
        for metric in metrics:
            found = [run for run in measured if any(metric in row for row in run.values())]
            for run in found or ([{}] if metric == FID else []):
                yield _fid_line(table, name, metric, paper, run, notes)


def _is_fid(column):
    return column.startswith('fid')


def _fid_line(table, name, metric, paper, run, notes):
    branches = sorted(branch for row, branch in paper if row == name)
    about = next(iter(run.values()), {})
    line = {'row': _NAMES.get(name, name), 'metric': metric}
    for branch in branches:
        which = f'{branch.upper()} ' if len(branches) > 1 else ''
        line[f'{which}paper'] = paper[name, branch][FID] if metric == FID else None
        line[f'{which}here'] = run.get(branch, {}).get(metric)
    remarks = [*(paper[name, branches[0]].get('differences') or ()), *_remarks(table, name, about)]
    return line | {name: about.get(name) for name in ('run', 'data', 'kimg')} | {'note': _number(remarks, notes)}


def _remarks(table, name, row):
    """What sets a measured row apart from the paper's experiment of that name."""
    if not row:
        return []
    preset = [f'preset {row["preset"]}'] if row['preset'] != ABLATIONS_PRESET else []
    psi = [f'psi {row["psi"]:g}'] if row['psi'] not in (None, 1) else []
    return preset + [phrase for phrase in row['differences'] if phrase not in ablation_differences()[table][name]] + psi


def _number(remarks, notes):
    """The number of a note, which is added to `notes` if it is new; None for no remarks."""
    note = '; '.join(remarks)
    if note and note not in notes:
        notes.append(note)
    return notes.index(note) + 1 if note else None


def _size_lines(paper, runs):
    """Per row and snapshot a line; per row at least the paper's."""
    for name, measured in runs.items():
        for run in measured or [{}]:
            row, published = next(iter(run.values()), {}), paper[name, '2d']
            yield {
                'row': name,
                'parameters paper': published['parameters_m'],
                'parameters here': row.get('parameters_m'),
                'memory paper': published['memory_gb'],
                'run': row.get('run'),
                'preset': row.get('preset'),
            }
