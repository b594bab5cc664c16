"""Metrics of a run while it trains."""

import json

import pytest
import torch

import train as train_script
from dnnlib.errors import UserError
from metrics import detector, registry, results
from metrics.monitoring import Monitor
from tests import small_detector
from tests.helpers import error_line, invoke
from tests.interruption import train_in_child
from tests.tiny import tiny_generator, tiny_run
from training.training_loop import train


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


def test_snapshots_are_evaluated_and_the_best_is_kept(data, tmp_path):
    outdir = trained(data, tmp_path / 'run', ['swd8'])
    records = results.read_folder(outdir)
    assert [(record['branch'], record['kimg']) for record in records] == [
        ('2d', 0.008),
        ('2d', 0.016),
        ('2d', 0.024),
        ('3d', 0.024),
        ('2d', 0.032),
        ('3d', 0.032),
    ]
    assert [record['experiment']['table3'] for record in records] == ['stream'] * 6
    assert [record['experiment']['table2'] for record in records] == [None, None, 'E', 'E', 'E', 'E']
    assert (outdir / 'network-snapshot-best.pkl').exists() and 'the best snapshot so far' in (outdir / 'log.txt').read_text()
    last = json.loads((outdir / 'stats.jsonl').read_text().splitlines()[-1])
    assert 0 < last['share_of_time/metrics'] < 1


def test_snapshots_are_evaluated_as_the_published_numbers_were(data, tmp_path, monkeypatch):
    monkeypatch.setattr('metrics.statistics.WIDTHS', small_detector.WIDTHS)
    monkeypatch.setattr(detector, '_load', lambda weights, layers: small_detector.SmallExtractor('small', list(layers)))
    monkeypatch.setenv('XDG_CACHE_HOME', str(tmp_path))
    (tmp_path / 'weights.pth').write_bytes(b'any')
    monitor = Monitor(['fid20_full', 'fid3d20_full'], str(data), False, str(tmp_path), str(tmp_path / 'weights.pth'), workers=0)
    records = monitor.evaluate_snapshot(
        tiny_generator().eval(), torch.device('cpu'), ('2d', '3d'), {'kimg': 1.0, 'label': 'run'}, pytest.fail
    )
    assert [(record['metric'], record['branch']) for record in records] == [
        ('fid20_full', '2d'),
        ('fid3d20_full', '2d'),
        ('fid20_full', '3d'),
        ('fid3d20_full', '3d'),
    ]
    assert len({record['value'] for record in records}) == 4
    for record in records:
        camera = 'frontal' if '3d20' in record['metric'] else 'rendering'
        assert [record['protocol'][name] for name in ('sampling', 'noise_mode', 'conditioning_camera')] == [
            'stratified',
            'random',
            camera,
        ]


def test_metrics_every_so_many_snapshots(data, tmp_path):
    records = results.read_folder(trained(data, tmp_path / 'run', ['swd8'], metrics_every=2))
    assert {record['kimg'] for record in records} == {0.016, 0.032}


def test_metrics_change_nothing_in_the_training(data, tmp_path):
    with_metrics = torch.load(trained(data, tmp_path / 'with', ['swd8']) / 'network-snapshot-000000k032.pkl', weights_only=True)
    without = torch.load(trained(data, tmp_path / 'without') / 'network-snapshot-000000k032.pkl', weights_only=True)
    for name, network in without['networks'].items():
        assert all(torch.equal(value, with_metrics['networks'][name]['state'][key]) for key, value in network['state'].items())


def test_without_the_detector_one_warning_and_the_training_goes_on(data, tmp_path, no_weights):
    outdir = trained(data, tmp_path / 'run', ['fid8_full', 'swd8'])
    assert (outdir / 'log.txt').read_text().count('the training goes on without fid8_full') == 1
    assert {record['metric'] for record in results.read_folder(outdir)} == {'swd8'}


def test_metrics_that_cannot_be_computed_do_not_end_the_training(data, tmp_path):
    outdir = trained(data, tmp_path / 'run', ['swd64'])  # of 24 images
    assert (outdir / 'log.txt').read_text().count('no swd64 of this snapshot') == 6 and not list(outdir.glob('metric-*'))


@pytest.fixture
def fragile(monkeypatch):
    """A function that makes a metric 'fragile' known, which fails in the branches named."""

    def make(*failing):
        def evaluate(metrics, task):
            if task.branch in failing:
                raise UserError('it broke')
            return {'fragile': registry.Outcome(1.0)}

        family = registry.Family('fragile', registry.Group(evaluate), '', False, 'fragile', lambda match: match[0])
        monkeypatch.setitem(registry._FAMILIES, 'fragile', family)

    return make


def test_a_metric_that_fails_does_not_cost_the_others(data, tmp_path, fragile):
    fragile('2d', '3d')
    outdir = trained(data, tmp_path / 'run', ['swd8', 'fragile'])
    assert [record['branch'] for record in results.read_folder(outdir)] == ['2d', '2d', '2d', '3d', '2d', '3d']
    assert (outdir / 'log.txt').read_text().count('no fragile of this snapshot, 3d branch: it broke') == 2
    assert (outdir / 'network-snapshot-best.pkl').exists()


def test_a_branch_that_fails_does_not_cost_the_other_and_the_best_is_not_chosen_by_it(data, tmp_path, fragile):
    fragile('3d')
    outdir = trained(data, tmp_path / 'run', ['fragile', 'swd8'])
    found = [(record['metric'], record['branch']) for record in results.read_folder(outdir)]
    assert found == [('fragile', '2d')] * 4 + [('swd8', branch) for branch in ('2d', '2d', '2d', '3d', '2d', '3d')]
    assert (outdir / 'log.txt').read_text().count('the best snapshot so far') == 1  # the first one: later ones are no better


def test_results_that_were_written_before_an_interruption_are_not_written_twice(tmp_path):
    monitor = Monitor(['swd8', 'swd9'], '', False, str(tmp_path))
    records = [
        dict(metric='swd8', value=value, branch=branch, kimg=1.0, label='', parts={}, protocol={})
        for branch, value in (('2d', 2.0), ('3d', 1.0))
    ]
    (tmp_path / 'a.pkl').write_bytes(b'a')
    assert monitor.keep(records[:1], tmp_path / 'a.pkl', ('2d', '3d')) == ['swd8 2d 1 kimg: 2']
    assert monitor.keep(records, tmp_path / 'a.pkl', ('2d', '3d')) == [
        'swd8 3d 1 kimg: 1',
        'the best snapshot so far: network-snapshot-best.pkl',
    ]
    assert monitor.keep(records, tmp_path / 'a.pkl', ('2d', '3d')) == []
    assert len(results.read_folder(tmp_path)) == 2


def test_a_signal_during_metrics_ends_the_run_and_the_next_start_does_them_again(data, tmp_path):
    (tmp_path / 'run').mkdir()
    config = tiny_run(str(data), str(tmp_path / 'run'), threads=1, snapshot_ticks=1, metrics=('swd8',))
    assert train_in_child(config, ('a metric that is told to stop', 2), monitor=monitor_of(config)) == (75, '')
    assert [record['kimg'] for record in results.read_folder(tmp_path / 'run')] == [0.008]
    assert train_in_child(config, monitor=monitor_of(config)) == (0, '')
    records = results.read_folder(tmp_path / 'run')
    assert [record['kimg'] for record in records] == [0.008, 0.016, 0.024, 0.024, 0.032, 0.032]
    assert train_in_child(config, monitor=monitor_of(config)) == (0, '') and results.read_folder(tmp_path / 'run') == records


@pytest.fixture
def refused(data, tmp_path, monkeypatch):
    """A function that starts train.py with options, and returns the one line that it must end with before it writes anything."""

    def call(*options):
        monkeypatch.setattr(train_script, 'resolve', lambda *a: tiny_run(a[1], a[2]))
        monkeypatch.setattr(train_script, 'start', lambda *a: pytest.fail('it began to train'))
        result = invoke(train_script.main, '--preset=demo', f'--data={data}', f'--run-dir={tmp_path / "run"}', *options)
        assert result.exit_code == 1 and result.output.count('\n') == 1, result.output
        assert not (tmp_path / 'run').exists()
        return error_line(result)

    return call


def test_an_unknown_metric_is_refused_before_anything_is_written(refused):
    assert "'fun' is no metric" in refused('--metrics=fun')


def test_a_metric_that_takes_more_real_images_than_there_are_is_refused_at_once(refused):
    assert 'swd25 needs 25 images, but there are only 24 of --data' in refused('--metrics=swd,swd25')
    assert 'swd49 needs 49 images, but there are only 48 of --data' in refused('--metrics=swd48,swd49', '--mirror=true')


@pytest.mark.parametrize('content', ['no weights', {'a': torch.zeros(1)}])
def test_a_detector_file_that_holds_none_is_refused_at_once(refused, tmp_path, content):
    path = tmp_path / 'detector.pth'
    path.write_text(content) if isinstance(content, str) else torch.save(content, path)
    assert "detector.pth holds no weights of torch-fidelity's Inception" in refused('--metrics=swd', f'--detector={path}')
