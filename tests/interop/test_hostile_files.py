"""Hostile, damaged and odd files are refused in one line, without a trace."""

import math
import pickle
import sys
import tracemalloc

import numpy as np
import pytest
import torch

from interop.pickles import Tensors, read_pickle
from tests.interop.hostile import HOSTILE, TENSOR, ZIPPED, call, entry, persistent, storage_bytes, tensor, text, value
from tests.interop.small_files import write_small
from training.legacy import LegacyError
from training.snapshots import SnapshotError, load_augment_p, load_networks

torch.save(torch.zeros(4), ZIPPED)


@pytest.mark.parametrize('case', HOSTILE)
def test_hostile_files_are_refused_without_a_trace(tmp_path, monkeypatch, case):
    content, named = HOSTILE[case]
    monkeypatch.chdir(tmp_path)
    path = tmp_path / 'network.pkl'
    path.write_bytes(content)
    modules = set(sys.modules)
    tracemalloc.start()
    with pytest.raises(LegacyError, match=named) as caught:
        load_networks(path)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert '\n' not in str(caught.value) and str(caught.value).isascii() and len(str(caught.value)) < 600
    assert 'network.pkl' in str(caught.value)
    assert [path.name for path in tmp_path.iterdir()] == ['network.pkl']
    assert not {'this', 'subprocess_trace'} & (set(sys.modules) - modules)
    assert peak < 64 * 2**20


def test_hostile_files_would_run_elsewhere(tmp_path, monkeypatch):
    """The test above means something only if the usual loader would have run them."""
    monkeypatch.chdir(tmp_path)
    for case in ('os.system', 'eval', 'exec', 'subprocess', 'pickle in a pickle'):
        pickle.loads(HOSTILE[case][0])
        (tmp_path / 'trace').unlink()


def test_truncated_files_are_refused(tmp_path):
    path = tmp_path / 'network.pkl'
    write_small(path)
    whole = path.read_bytes()
    for share in np.linspace(0.0, 1.0, 23)[1:-1].tolist() + [1 - 1 / len(whole)]:
        path.write_bytes(whole[: math.floor(share * len(whole))])
        for strict in (True, False):
            with pytest.raises(LegacyError, match='network.pkl'):
                load_networks(path, strict=strict)


def test_lenient_does_not_open_what_is_hostile(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for case in ('os.system', 'several', 'storage with code', 'modules that double', 'tensor beyond its storage', 'huge network'):
        (tmp_path / 'network.pkl').write_bytes(HOSTILE[case][0])
        with pytest.raises(LegacyError, match=HOSTILE[case][1]):
            load_networks('network.pkl', strict=False)
        assert [path.name for path in tmp_path.iterdir()] == ['network.pkl']


def test_one_text_as_many_storages_is_read_once(tmp_path):
    """As protocol 2 writes bytes; each of 3000 copies would take a megabyte."""
    data = storage_bytes(numel=2**18, data=bytes(2**20)).decode('latin1')
    one = call('torch.storage', '_load_from_bytes', call('_codecs', 'encode', b'h\x09', text('latin1')))
    tensors = b''.join(text(f't{i}') + call(*TENSOR, one, value(0), value((3,)), value((1,))) for i in range(3000))
    (tmp_path / 'file.pkl').write_bytes(b'\x80\x04}(' + text('data') + text(data) + b'q\x09' + tensors + b'u.')
    read = read_pickle(tmp_path / 'file.pkl')
    del read['data']
    tracemalloc.start()
    tensors = Tensors(read)
    kept = list(tensors.values())
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert len(kept) == 3000 and len({value.untyped_storage().data_ptr() for value in kept}) == 1 and peak < 16 * 2**20


@pytest.mark.parametrize(
    'p, message', [(torch.tensor(math.nan), 'no probability'), (torch.zeros(2), 'no probability'), ('0.5', 'no tensor')]
)
def test_a_probability_of_adas_that_is_none_is_refused(tmp_path, p, message):
    written = (
        text(p) if isinstance(p, str) else tensor(tuple(p.shape), (1,) * p.ndim, data=p.new_full((4,), p.max()).numpy().tobytes())
    )
    pipe = persistent('AugmentPipe', state=b'}' + text('_buffers') + b'}' + text('p') + written + b'ss')
    (tmp_path / 'network.pkl').write_bytes(entry(pipe, key='augment_pipe'))
    with pytest.raises(LegacyError, match=f'network.pkl: .*{message}'):
        load_augment_p(tmp_path / 'network.pkl')


def test_one_network_under_many_names_is_refused(tmp_path):
    """Else a small file could ask for as many large networks as it has names."""

    for count, message in ((8, 'too small for the networks'), (10_000, 'more than 16 networks')):

        def alias(content, tensors, count=count):
            content.update({f'G{i}': content['G_ema'] for i in range(count)})

        write_small(tmp_path / 'network.pkl', alias)
        with pytest.raises(LegacyError, match=message):
            load_networks(tmp_path / 'network.pkl')


@pytest.mark.parametrize('content', [b'', b'PK\x03\x04', b'hello', b'cos\nsystem\n(S"touch trace"\ntR.'])
def test_other_files_are_refused(tmp_path, monkeypatch, content):
    """The last one is a pickle of protocol 0, which no release writes."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / 'network.pkl').write_bytes(content)
    with pytest.raises(SnapshotError, match='network.pkl'):
        load_networks('network.pkl')
    assert [path.name for path in tmp_path.iterdir()] == ['network.pkl']


def test_a_file_of_torch_before_1_6_is_refused(tmp_path):
    path = tmp_path / 'old.pkl'
    torch.save({'G': torch.zeros(3)}, path, _use_new_zipfile_serialization=False)
    with pytest.raises(LegacyError, match='follows its end'):
        load_networks(path)
