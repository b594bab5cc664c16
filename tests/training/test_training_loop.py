"""Whole runs at a tiny size: what they leave, and that splitting a batch changes nothing."""

import json

import pytest
import torch

from dnnlib.errors import UserError
from tests.tiny import tiny_run, train_tiny
from torch_utils import distributed
from training.config import RunConfig
from training.run.reporting import Reporter
from training.snapshots import load_networks, newest_snapshot
from training.training_loop import train


def test_a_run_leaves_its_files(finished):
    outdir, snapshot, statistics = finished
    names = {path.name for path in outdir.iterdir()}
    assert {
        'log.txt',
        'stats.jsonl',
        'reals.png',
        'fakes000000_2d.png',
        'fakes000000_depth.png',
        'fakes000000_raw.png',
        'network-snapshot-000000.pkl',
    } <= names
    late = {f'fakes000000k032_{name}.png' for name in ('2d', 'depth', 'raw', '3d')} | {'network-snapshot-000000k032.pkl'}
    assert late <= names and sorted(names & {*late, 'network-snapshot-000000.pkl'})[-1] == 'network-snapshot-000000k032.pkl'
    assert any(name.startswith('events.out.tfevents') for name in names)
    assert not any(name.endswith('.tmp') for name in names)
    assert [record['stage'] for record in statistics] == [1, 1, 2, 2]
    assert 'share_of_time/grids' in statistics[0] and {'depth/spread', 'density/spread'} <= set(statistics[0])
    assert {'loss/G/adversarial', 'loss/D', 'loss/D/r1_penalty', 'loss/G/density', 'seconds_per_kimg'} <= set(statistics[0])
    assert {'loss/G/imitation', 'loss/G/patch', 'loss/D_patch', 'loss/D_patch/r1_penalty'} <= set(statistics[2])
    assert snapshot['about']['images_seen'] == 32 and snapshot['about']['stage'] == 2
    assert RunConfig.from_dict(snapshot['about']['options']).batch == 8


def test_a_snapshot_gives_working_networks(finished):
    outdir, _, _ = finished
    networks = load_networks(newest_snapshot(outdir))
    assert set(networks) == {'G', 'G_ema', 'D', 'D_patch'}
    G = networks['G_ema']
    c = torch.eye(5).flatten()[None, :25] * 0 + networks['G'].mapping.embed.weight.new_zeros(1, 25)
    assert G.mapping(torch.randn(1, G.config.z_dim), c).shape == (1, G.backbone.num_ws, G.config.w_dim)
    assert G.mapping.w_avg.abs().max() > 0


def assert_same_training(first, second, relative):
    """Losses agree, and so do weights: Adam's first steps are signs, so a few weights may differ by a step or two."""
    for a, b in zip(first[1], second[1], strict=True):
        for name in a:
            if name.startswith(('loss', 'logits', 'gradients', 'density', 'depth')):
                assert a[name] == pytest.approx(b[name], rel=relative, abs=relative), (name, a['kimg'])
    for name in ('G', 'G_ema', 'D', 'D_patch'):
        for key, value in first[0]['networks'][name]['state'].items():
            difference = (value - second[0]['networks'][name]['state'][key]).abs().mean()
            assert difference < 5e-4, (name, key, float(difference))


def test_the_same_seed_gives_the_same_bits(finished, data, tmp_path):
    again, statistics = train_tiny(data, tmp_path / 'again')
    for name, network in finished[1]['networks'].items():
        assert all(torch.equal(value, again['networks'][name]['state'][key]) for key, value in network['state'].items())
    other, _ = train_tiny(data, tmp_path / 'other', seed=1)
    assert not torch.equal(other['networks']['D']['state']['out.weight'], again['networks']['D']['state']['out.weight'])


def test_accumulating_passes_equals_one_pass(finished, data, tmp_path):
    assert_same_training(finished[1:], train_tiny(data, tmp_path / 'passes', batch_gpu=4), relative=2e-3)


def test_two_processes_equal_one(finished, data, tmp_path):
    assert_same_training(finished[1:], train_tiny(data, tmp_path / 'two', processes=2, gpus=2), relative=2e-3)


def test_ada_moves_its_probability(data, tmp_path):
    stage = tiny_run('', '').stage1.replace(ada_kimg=0.1)
    _, statistics = train_tiny(data, tmp_path / 'ada', augment='ada', ada_interval=1, ada_target=0.0, stage1=stage)
    assert statistics[-1]['augment/p'] >= 0 and 'augment/p' in statistics[0]


def test_adas_probability_carries_over_into_stage_2_and_into_other_runs(data, tmp_path):
    """It rises in stage 1 alone: afterwards ADA is not adapted any more, and keeps what it is given."""
    config = tiny_run('', '')
    still = {name: getattr(config, name).replace(ada_kimg=1e8) for name in ('stage1', 'stage2')}
    ada = dict(augment='ada', ada_interval=1, ada_target=-1.1)
    first, _ = train_tiny(data, tmp_path / 'first', **ada, **{**still, 'stage1': config.stage1.replace(ada_kimg=0.1)})
    assert first['about']['augment_p'] == pytest.approx(2 * 8 / 100, abs=1e-6)
    ada |= dict(init_from=str(next((tmp_path / 'first').glob('network-snapshot-*.pkl'))), **still)
    assert train_tiny(data, tmp_path / 'second', **ada)[0]['about']['augment_p'] == pytest.approx(2 * 8 / 100, abs=1e-6)
    assert train_tiny(data, tmp_path / 'third', fresh_schedules=True, **ada)[0]['about']['augment_p'] == pytest.approx(
        0, abs=1e-6
    )


def test_sharing_fakes_trains_too(data, tmp_path):
    snapshot, statistics = train_tiny(data, tmp_path / 'shared', share_fakes=True)
    assert statistics[-1]['loss/D_patch'] > 0


def test_stage_2_continues_stage_1_and_says_so(finished):
    log = (finished[0] / 'log.txt').read_text()
    assert 'stage 2' in log and 'G: took' in log and 'start anew: residual.blocks' in log


def test_init_from_takes_weights(finished, data, tmp_path):
    snapshot = newest_snapshot(finished[0])
    stage = tiny_run('', '').stage1
    outdir = tmp_path / 'finetuned'
    train_tiny(data, outdir, init_from=snapshot, stage1=stage.replace(kimg=0))
    log = (outdir / 'log.txt').read_text()
    assert f'weights from {snapshot}' in log
    assert 'D_patch: took' in log and 'anew' not in log


# ---------------------------------------------------------------------------------------------------------------------
# The script


def test_a_full_gpu_is_one_line_with_the_cure(tmp_path, monkeypatch):
    def full(*_):
        raise torch.OutOfMemoryError('CUDA out of memory')

    monkeypatch.setattr(distributed, 'pick_device', full)
    with pytest.raises(UserError, match='too little memory; lower --batch-gpu'):
        train(tiny_run('', str(tmp_path)))


def test_the_gpu_memory_of_a_line_is_the_most_since_the_last_one(tmp_path, monkeypatch):
    """What the first minutes took, say of tuning kernels, is not shown for ever."""
    peak = []
    monkeypatch.setattr(torch.cuda, 'max_memory_allocated', lambda device: max(peak) * 2**30)
    monkeypatch.setattr(torch.cuda, 'reset_peak_memory_stats', lambda device: peak.clear())
    reporter = Reporter(tiny_run('', str(tmp_path)), torch.device('cuda'))
    for used in ([3, 9, 4], [4, 5, 2], [6]):
        peak += used
        reporter.tick(1, 8, {})
    reporter.close()
    lines = (tmp_path / 'stats.jsonl').read_text().splitlines()
    assert [json.loads(line)['gpu_memory_gib'] for line in lines] == [9, 5, 6]


# ---------------------------------------------------------------------------------------------------------------------
# Snapshots


def test_a_regularisation_of_weight_0_is_not_computed(data, tmp_path):
    stage = tiny_run('', '').stage1
    loss = stage.loss.replace(density_weight=0.0, r1_gamma=0.0)
    _, statistics = train_tiny(data, tmp_path / 'plain', stage1=stage.replace(loss=loss))
    assert 'loss/G/density' not in statistics[0] and 'loss/D/r1_penalty' not in statistics[0]
