"""Metrics of a run while it trains."""

import json

import pytest
import torch
from click.testing import CliRunner

import train as train_script
from metrics import results
from metrics.monitoring import Monitor
from tests.interruption import train_in_child
from tests.tiny import tiny_run
from training.training_loop import train


@pytest.fixture(scope='module')
def data(tmp_path_factory):
    """A demo set of 24 images of 32x32."""
    import dataset_tool
    path = tmp_path_factory.mktemp('data') / 'heads.zip'
    assert CliRunner().invoke(dataset_tool.main, ['demo', f'--dest={path}', '--resolution=32', '--images=24']).exit_code == 0
    return path


def trained(data, outdir, names=(), **changes):
    """A tiny run of four snapshots, with metrics."""
    outdir.mkdir()
    config = tiny_run(str(data), str(outdir), threads=1, snapshot_ticks=1, metrics=tuple(names), **changes)
    assert train(config, monitor=monitor_of(config) if names else None)
    return outdir


def monitor_of(config):
    return Monitor(list(config.metrics), config.data, config.mirror, config.outdir, config.detector, workers=0)


@pytest.fixture
def no_weights(tmp_path, monkeypatch):
    """A cache without the detector's weights, and no network to download them from."""
    monkeypatch.setattr(torch.hub, 'get_dir', lambda: str(tmp_path / 'hub'))
    monkeypatch.setattr(torch.hub, 'download_url_to_file', lambda *args, **kwargs: (_ for _ in ()).throw(OSError('offline')))


def test_snapshots_are_judged_and_the_best_is_kept(data, tmp_path):
    outdir = trained(data, tmp_path / 'run', ['swd8'])
    records = results.read(outdir)
    assert [(record['branch'], record['kimg']) for record in records] == [
        ('2d', 0.008), ('2d', 0.016), ('2d', 0.024), ('3d', 0.024), ('2d', 0.032), ('3d', 0.032)]
    assert (outdir / 'network-snapshot-best.pkl').exists() and 'the best snapshot so far' in (outdir / 'log.txt').read_text()
    last = json.loads((outdir / 'stats.jsonl').read_text().splitlines()[-1])
    assert 0 < last['share_of_time/metrics'] < 1


def test_metrics_every_so_many_snapshots(data, tmp_path):
    records = results.read(trained(data, tmp_path / 'run', ['swd8'], metrics_every=2))
    assert {record['kimg'] for record in records} == {0.016, 0.032}


def test_metrics_change_nothing_in_the_training(data, tmp_path):
    with_metrics = torch.load(trained(data, tmp_path / 'with', ['swd8']) / 'network-snapshot-000000.pkl', weights_only=True)
    without = torch.load(trained(data, tmp_path / 'without') / 'network-snapshot-000000.pkl', weights_only=True)
    for name, network in without['networks'].items():
        assert all(torch.equal(value, with_metrics['networks'][name]['state'][key]) for key, value in network['state'].items())


def test_without_the_detector_one_warning_and_the_training_goes_on(data, tmp_path, no_weights):
    outdir = trained(data, tmp_path / 'run', ['fid8_full', 'swd8'])
    assert (outdir / 'log.txt').read_text().count('the training goes on without fid8_full') == 1
    assert {record['metric'] for record in results.read(outdir)} == {'swd8'}


def test_metrics_that_cannot_be_computed_do_not_end_the_training(data, tmp_path):
    outdir = trained(data, tmp_path / 'run', ['swd64'])  # of 24 images
    assert (outdir / 'log.txt').read_text().count('no metrics of this snapshot') == 4


def test_a_signal_during_metrics_ends_the_run_and_the_next_start_does_them_again(data, tmp_path):
    (tmp_path / 'run').mkdir()
    config = tiny_run(str(data), str(tmp_path / 'run'), threads=1, snapshot_ticks=1, metrics=('swd8',))
    assert train_in_child(config, ('a metric that is told to stop', 2), monitor=monitor_of(config)) == (75, '')
    assert [record['kimg'] for record in results.read(tmp_path / 'run')] == [0.008]
    assert train_in_child(config, monitor=monitor_of(config)) == (0, '')
    records = results.read(tmp_path / 'run')
    assert [record['kimg'] for record in records] == [0.008, 0.016, 0.024, 0.024, 0.032, 0.032]
    assert train_in_child(config, monitor=monitor_of(config)) == (0, '') and results.read(tmp_path / 'run') == records


def test_an_unknown_metric_is_refused_before_anything_is_written(data, tmp_path, monkeypatch):
    monkeypatch.setattr(train_script, 'resolve', lambda *a: tiny_run(a[1], a[2]))
    result = CliRunner().invoke(train_script.main, ['--preset=demo', f'--data={data}', f'--run-dir={tmp_path / "run"}', '--metrics=fun'])
    assert result.exit_code == 1 and "'fun' is no metric" in result.output and not (tmp_path / 'run').exists()
