"""A run's folder where a snapshot is asked for: every script takes the newest one and says which, or says that there is none."""

import json

import pytest
import torch

import calc_metrics
import gen_samples
import gen_videos
import train
from metrics import results
from tests.helpers import invoke, save_snapshot
from tests.metrics.test_metrics import write_set
from tests.small_detector import smooth_images
from tests.tiny import tiny_generator, tiny_run
from training.presets import with_options
from training.rendering.cameras import view_label
from training.snapshots import SnapshotError, newest_snapshot

NEWEST = 'network-snapshot-000100.pkl'


@pytest.fixture
def data(tmp_path):
    return write_set(
        tmp_path / 'set.zip', smooth_images(8, seed=1), view_label(tiny_generator().config, torch.linspace(-0.5, 0.5, 8))
    )


@pytest.fixture
def run_folder(tmp_path, data):
    """A folder with good snapshots under the newest name, and under the others files that are none."""
    folder = tmp_path / 'a run: 10%d'
    folder.mkdir()
    options = tiny_run(data, str(folder)).to_dict()
    save_snapshot(folder / NEWEST, {'G_ema': tiny_generator()}, {'images_seen': 100000, 'options': options})
    for name in ('network-snapshot-000099.pkl', 'network-snapshot-best.pkl', f'{NEWEST}.tmp', 'zzz.pkl', 'reals.png'):
        (folder / name).write_text('no snapshot')  # written later than the newest one
    (folder / 'network-snapshot-000200.pkl').mkdir()
    return folder


def doors(folder, tmp_path, data):
    """(command, arguments) of everything that takes a snapshot."""
    return {
        'gen_samples': (
            gen_samples.main,
            [f'--network={folder}', '--seeds=0', '--branch=2d', '--device=cpu', f'--outdir={tmp_path / "o"}'],
        ),
        'gen_videos': (
            gen_videos.main,
            [f'--network={folder}', '--seeds=0', '--frames=1', '--branch=2d', '--device=cpu', f'--output={tmp_path / "o.mp4"}'],
        ),
        'calc_metrics': (calc_metrics.main, [f'--network={folder}', '--metrics=swd4', '--branch=2d', '--workers=0']),
        'train': (train.main, ['--preset=demo', f'--data={data}', f'--init-from={folder}', '--dry-run', f'--outdir={tmp_path}']),
    }


DOORS = ('gen_samples', 'gen_videos', 'calc_metrics', 'train')


@pytest.mark.parametrize('door', DOORS)
def test_a_run_folder_stands_for_its_newest_snapshot(door, run_folder, tmp_path, data):
    command, arguments = doors(run_folder, tmp_path, data)[door]
    result = invoke(command, *arguments)
    assert result.exit_code == 0, result.output
    assert result.stderr.count(f'{run_folder}: {NEWEST} is its newest snapshot') == 1
    if door == 'calc_metrics':  # the result lies beside the snapshot and names it
        (record,) = results.read_folder(run_folder)
        assert (record['snapshot'], record['kimg'], record['label']) == (str(run_folder / NEWEST), 100.0, run_folder.name)
    if door == 'train':
        assert json.loads(result.stdout)['init_from'] == str(run_folder / NEWEST)


@pytest.mark.parametrize('door', DOORS)
def test_a_folder_without_snapshots_is_one_line(door, tmp_path, data):
    folder = tmp_path / 'runs'
    (folder / '00000-demo').mkdir(parents=True)
    command, arguments = doors(folder, tmp_path, data)[door]
    result = invoke(command, *arguments)
    assert result.exit_code == 1 and isinstance(result.exception, SystemExit)
    assert (
        result.output.startswith(f'Error: {folder} is a folder without a network-snapshot-*.pkl')
        and result.output.count('\n') == 1
    )


@pytest.mark.parametrize(
    'names, newest',
    [
        (['network-snapshot-000009.pkl', 'network-snapshot-000010.pkl'], 'network-snapshot-000010.pkl'),
        (['network-snapshot-999999.pkl', 'network-snapshot-1000000.pkl'], 'network-snapshot-1000000.pkl'),
        (['network-snapshot-000001k016.pkl', 'network-snapshot-000001.pkl'], 'network-snapshot-000001k016.pkl'),
        (['network-snapshot-best.pkl', 'network-snapshot-000000.pkl'], 'network-snapshot-000000.pkl'),
        (['network-snapshot-best.pkl'], 'network-snapshot-best.pkl'),
    ],
)
def test_the_numbers_in_the_names_decide(names, newest, tmp_path):
    for name in names:
        (tmp_path / name).touch()
    assert newest_snapshot(tmp_path) == str(tmp_path / newest)


def test_files_are_taken_as_they_are(tmp_path, capsys):
    assert newest_snapshot('anything.pkl') == 'anything.pkl' and capsys.readouterr().err == ''
    with pytest.raises(SnapshotError, match='is a folder without'):
        newest_snapshot(tmp_path)


def test_a_run_goes_on_when_its_init_from_folder_has_newer_snapshots(run_folder, tmp_path, data):
    run_dir = tmp_path / 'run'
    run_dir.mkdir()
    config = with_options(tiny_run(data, str(run_dir)), {'init_from': str(run_folder / NEWEST)})
    (run_dir / 'training_options.json').write_text(json.dumps(config.to_dict()))
    (run_folder / 'network-snapshot-000101.pkl').write_text('')
    command = [f'--run-dir={run_dir}', '--dry-run']
    result = invoke(train.main, *command, f'--init-from={run_folder}')
    assert result.exit_code == 0 and json.loads(result.stdout)['init_from'] == str(run_folder / NEWEST)
    result = invoke(train.main, *command, f'--init-from={tmp_path}')
    assert result.exit_code == 1 and '--init-from' in result.output and 'would change the run' in result.output
