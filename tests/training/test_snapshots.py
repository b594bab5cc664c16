"""Snapshots of this project: plain data, whole or refused."""

import resource

import pytest
import torch

from tests.helpers import assert_same_weights, broken, save_snapshot
from tests.tiny import tiny_generator, tiny_networks
from training.snapshots import SnapshotError, load_networks


def plain_types(value):
    if isinstance(value, dict):
        return set().union(*(plain_types(item) for pair in value.items() for item in pair)) | {dict}
    if isinstance(value, list | tuple):
        return set().union({type(value)}, *(plain_types(item) for item in value))
    return {type(value)}


def test_snapshots_are_plain_data(tmp_path):
    networks = tiny_networks()
    save_snapshot(tmp_path / 'own.pkl', networks, {'stage': 1})
    assert not [
        item for item in torch.serialization.get_safe_globals() if str(getattr(item, '__module__', '')).startswith('training')
    ]
    content = torch.load(tmp_path / 'own.pkl', weights_only=True)
    assert plain_types(content) <= {dict, list, tuple, str, int, float, bool, type(None), torch.Tensor}
    for name, module in load_networks(tmp_path / 'own.pkl').items():
        assert_same_weights(module, networks[name])
        assert module.config == networks[name].config


@pytest.mark.parametrize('aware', ['none', 'latent', 'stream'])
@pytest.mark.parametrize('branch_3d', ['none', 'residual'])
def test_snapshots_with_switches_of_before_the_ablations_open(aware, branch_3d, tmp_path):
    """The 3D-aware convolutions and the 3D branch were three switches, then two choices."""
    network = tiny_generator(aware=aware, branch_3d=branch_3d)
    save_snapshot(tmp_path / 'own.pkl', {'G': network}, {})
    content = torch.load(tmp_path / 'own.pkl', weights_only=True)
    config = content['networks']['G']['config']
    config |= dict(aware_stream=aware == 'stream', aware_latent=aware == 'latent', residual=branch_3d == 'residual')
    del config['aware'], config['branch_3d']
    torch.save(content, tmp_path / 'before.pkl')
    opened = load_networks(tmp_path / 'before.pkl')['G']
    assert opened.config == network.config
    assert_same_weights(opened, network)


def test_a_truncated_snapshot_is_refused(finished, tmp_path):
    whole = (finished[0] / 'network-snapshot-000000k032.pkl').read_bytes()
    for keep in (0.3, 0.9, 0.999):
        with pytest.raises(SnapshotError, match='cut.pkl'):
            load_networks(broken(tmp_path / 'cut.pkl', whole[: int(len(whole) * keep)]))


def test_a_snapshot_of_other_content_is_refused(tmp_path):
    torch.save({'weights': torch.zeros(3)}, tmp_path / 'other.pkl')
    with pytest.raises(SnapshotError, match='holds no networks'):
        load_networks(tmp_path / 'other.pkl')


def test_saving_leaves_the_old_file_when_it_fails(tmp_path, monkeypatch):
    path = tmp_path / 'network-snapshot.pkl'
    path.write_bytes(b'old')

    def fail(*args, **kwargs):
        raise OSError('disk full')

    monkeypatch.setattr(torch, 'save', fail)
    with pytest.raises(OSError):
        save_snapshot(path, {}, {})
    assert path.read_bytes() == b'old'


def test_sizes_that_the_tensors_do_not_have_are_refused_before_memory_is_taken(tmp_path):
    save_snapshot(tmp_path / 'own.pkl', {'G': tiny_generator()}, {})
    content = torch.load(tmp_path / 'own.pkl', weights_only=True)
    content['networks']['G']['config'] |= dict(plane_resolution=2**12, channel_base=2**12)
    torch.save(content, tmp_path / 'claims.pkl')
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    with pytest.raises(SnapshotError, match='claims.pkl'):
        load_networks(tmp_path / 'claims.pkl')
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss < peak + 500_000  # KB
