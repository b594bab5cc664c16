"""Measured runs in the rows of the paper's tables 2 and 3."""

import csv

from metrics import published, tables
from tests.metrics.test_metrics import record
from training.presets import ABLATIONS, AWARE, experiment, resolve, with_options

NOTES_OF_DEMO = 'preset demo; imitation by a Laplacian pyramid instead of LPIPS; one set of fakes for all networks of a step'


def measured(value, options, branch='3d', preset='ffhq256', stage=2, parameters=32_517_000, **about):
    """The record of a run with options of train.py, as calc_metrics.py writes it."""
    config = with_options(resolve(preset, 'data', 'out'), options)
    return {**record(value, branch=branch, **about), 'experiment': experiment(config, stage), 'plane_parameters': parameters}


def sections(records, choice, **options):
    """{heading: (rows of cells by column, what stands beneath)} of the tables that stand beneath headings."""
    found = {}
    text = tables.format_table(tables.rows(records, published=choice, **options))
    for block in text.split('### ')[1:]:
        heading, table, *notes = block.strip().split('\n\n')
        names, _, *lines = [[cell.strip() for cell in line.split('|')[1:-1]] for line in table.splitlines()]
        found[heading] = [dict(zip(names, line)) for line in lines], '\n\n'.join(notes)
    return found


def table(records, name, **options):
    """Rows and notes of table 2 or 3 (of table 3 its FID)."""
    return next(found for heading, found in sections(records, f'table{name}', **options).items() if f'Table {name}' in heading)


def test_the_published_ablations_are_those_of_the_paper():
    rows, notes = table([], 2)
    assert [(row['row'][0], row['paper']) for row in rows] == [
        (row, str(fid)) for row, fid in zip('ABCDE', (30.6, 29.9, 9.29, 22.8, 5.14))
    ]
    assert not notes and 'here' not in rows[0]
    rows, notes = table([], 3)
    assert [(row['row'], row['2D paper'], row['3D paper'], row['note']) for row in rows] == [
        ('none', '4.8', '6.71', ''),
        ('latent', '', '', '1'),
        ('triplane', '4.14', '', ''),
        ('stream', '3.91', '5.14', ''),
    ]
    assert notes == '1. out of memory in the paper'
    *_, (sizes, _) = sections([], 'table3').values()
    assert [(row['parameters paper'], row['memory paper']) for row in sizes] == [
        ('29', '2.3'),
        ('111.7', '11.6'),
        ('32.6', '2.4'),
        ('32.6', '2.4'),
    ]


def test_every_table_can_be_chosen():
    def sources(choice):
        return {row['source'] for row in published.published_rows(choice)}

    first = {published.TABLE1, published.OTHER_SOURCE}
    assert [sources(choice) for choice in ('table1', 'table2', 'table3', 'none')] == [
        first,
        {published.TABLE2},
        {published.TABLE3},
        set(),
    ]
    assert sources('all') == first | {published.TABLE2, published.TABLE3} and sources('cats512') == {published.TABLE1}
    assert all(published.published_rows(choice) for choice in published.CHOICES if choice != 'none')


def test_a_measured_run_stands_in_the_row_of_its_ablation():
    found = [measured(value, ABLATIONS[row], label=f'run-{row}') for row, value in zip('ABCDE', (31.0, 30.0, 9.0, 23.0, 5.0))]
    rows, notes = table([*found, measured(4.0, ABLATIONS['A'], branch='2d', label='run-A')], 2)
    assert [(row['row'][0], row['here'], row['run'], row['data'], row['kimg']) for row in rows] == [
        (row, value, f'run-{row}', 'b.zip', '1') for row, value in zip('ABCDE', ('31', '30', '9', '23', '5'))
    ]
    assert not notes, 'nothing but the row sets these runs apart from the full method'


def test_both_branches_of_a_run_stand_in_one_line_of_table_3():
    found = [
        measured(value, AWARE[aware], branch, label=f'run-{aware}')
        for aware, of_2d, of_3d in (('none', 4.9, 6.9), ('stream', 3.8, 5.2))
        for branch, value in (('2d', of_2d), ('3d', of_3d))
    ]
    rows, _ = table(found, 3)
    assert [(row['row'], row['2D here'], row['3D here'], row['run']) for row in rows] == [
        ('none', '4.9', '6.9', 'run-none'),
        ('latent', '', '', ''),
        ('triplane', '', '', ''),
        ('stream', '3.8', '5.2', 'run-stream'),
    ]


def test_parameters_stand_beside_the_papers():
    *_, (sizes, _) = sections([measured(4.9, AWARE['none'], '2d', parameters=29_012_345)], 'table3').values()
    assert (sizes[0]['parameters paper'], sizes[0]['parameters here']) == ('29', '29.012') and not sizes[3]['parameters here']


def test_a_demo_is_not_mistaken_for_the_papers_training():
    rows, notes = table([measured(61.3, {}, preset='demo', kimg=170.0, label='demo')], 2)
    assert rows[4] == {
        'row': 'E: full method',
        'metric': 'fid50k_full',
        'paper': '5.14',
        'here': '61.3',
        'run': 'demo',
        'data': 'b.zip',
        'kimg': '170',
        'note': '1',
    }
    assert notes == f'1. {NOTES_OF_DEMO}'
    assert table([record(5.0)], 2) == table([], 2), 'a result that does not say how it was trained has no row'


def test_equal_notes_have_one_number_and_truncation_is_a_note():
    found = [measured(5.0, {}, preset='demo', label='a'), measured(6.0, {}, preset='demo', label='b')]
    found += [measured(7.0, ABLATIONS['A'], truncation_psi=0.7)]
    rows, notes = table(found, 2)
    assert [(row['row'][0], row['note']) for row in rows] == [('A', '1'), *((row, '') for row in 'BCD'), ('E', '2'), ('E', '2')]
    assert notes == f'1. psi 0.7\n2. {NOTES_OF_DEMO}'


def test_other_metrics_do_not_stand_beside_the_papers_values():
    found = [measured(8.0, {}, metric=metric) for metric in ('fid2k_full', 'fid3d50k_full', 'swd')]
    rows, _ = table(found, 2)
    assert [(row['metric'], row['paper'], row['here']) for row in rows if row['row'].startswith('E')] == [
        ('fid50k_full', '5.14', ''),
        ('fid2k_full', '', '8'),
        ('fid3d50k_full', '', '8'),
    ]


def test_of_a_run_the_last_snapshot_counts_and_folders_of_one_name_are_not_one_run():
    found = [
        measured(value, ABLATIONS[row], kimg=kimg) for row, value, kimg in (('A', 9.0, 1.0), ('A', 8.0, 2.0), ('E', 7.0, 3.0))
    ]
    assert [row['here'] for row in table(found, 2)[0]] == ['8', '', '', '', '7']
    assert [row['here'] for row in table(found, 2, every=True)[0]] == ['9', '8', '', '', '', '7']


def test_views_of_another_method_stand_in_the_row_of_its_images():
    fid = record(9.9, None, None, label='StyleSDF')
    views = {**record(30.0, None, None, 'psnr_mv', 'StyleSDF'), 'data': None, 'snapshot': None}
    (row,) = tables.rows([{**fid, 'snapshot': None}, views])
    assert (row['method'], row['data'], row['fid50k_full'], row['psnr_mv']) == ('StyleSDF', 'b.zip', 9.9, 30.0)
    of_two_sets = [{**fid, 'snapshot': None, 'data': data} for data in ('ffhq256.zip', 'ffhq512.zip')]
    assert [row.get('psnr_mv') for row in tables.rows([*of_two_sets, views])] == [None, None, 30.0]
    assert len(tables.rows([views, {**views, 'label': 'GRAM'}])) == 2


def test_csv_has_the_ablations_in_columns():
    rows = tables.rows([measured(9.0, ABLATIONS['C'], preset='demo')], published='all')
    lines = list(csv.DictReader(tables.format_table(rows, 'csv').splitlines()))
    in_row = [line for line in lines if line['table2'] == 'C']
    assert [(line['source'], line['fid50k_full'], line['preset']) for line in in_row] == [
        ('measured', '9', 'demo'),
        ('published, table 2', '9.29', ''),
    ]
    assert 'no patch discriminator D3D' in in_row[0]['differences'].split('; ') and in_row[0]['parameters_m'] == '32.517'
    assert len([line for line in lines if line['table3']]) == 8
