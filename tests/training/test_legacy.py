"""Published snapshots described and converted, on the command line."""

import json
import re
import sys

import pytest
import torch

from dnnlib.errors import UserError
from tests import published as files
from tests.helpers import invoke, save_snapshot
from tests.interop.hostile import HOSTILE
from tests.interop.small_files import add_unknown, write_small
from tests.tiny import tiny_networks
from training import legacy
from training.legacy import LegacyError
from training.snapshots import load_networks, read_snapshot


def run(*arguments):
    result = invoke(legacy.main, *arguments)
    assert result.exception is None or isinstance(result.exception, SystemExit), result.exception
    return result.exit_code, result.output


def test_convert_and_info(tmp_path):
    source, target = tmp_path / 'network.pkl', tmp_path / 'converted.pkl'
    tensors = write_small(source)
    code, output = run('convert', source, target)
    assert code == 0 and 'G_ema' in output and 'Warning' not in output
    files.assert_holds(load_networks(target), tensors)
    torch.load(target, weights_only=True)
    for path in (source, target):
        code, output = run('info', path)
        assert (
            code == 0 and re.search(r'G_ema: Generator, \d\.\d\d M parameters', output) and '"plane_order": "mimic3d"' in output
        )


def test_names_of_the_file_are_shown_without_their_escapes(tmp_path):
    def rename(content, tensors):
        add_unknown(content, tensors)
        content['G\x1b[31m\nError'] = content.pop('G_ema')

    write_small(tmp_path / 'network.pkl', rename)
    for command in (('info',), ('convert', '--lenient', tmp_path / 'converted.pkl'), ('info', '--lenient')):
        output = run(command[0], tmp_path / 'network.pkl', *command[1:])[1]
        assert 'G\\x1b' in output and '\x1b' not in output and '\nError' not in output


def test_convert_and_info_leniently(tmp_path):
    source, target = tmp_path / 'network.pkl', tmp_path / 'converted.pkl'
    tensors = write_small(source, add_unknown)
    for command in (('info', source), ('convert', source, target)):
        code, output = run(*command)
        assert code == 1 and output.startswith('Error: ') and len(output.splitlines()) == 1 and 'tensor boost' in output
        assert not target.exists()
        code, output = run(*command, '--lenient')
        assert code == 0 and len(re.findall('^Warning: .*ignored.*tensor boost', output, re.MULTILINE)) == 1
    files.assert_holds(load_networks(target), tensors)
    assert 'tensor boost' in read_snapshot(target)['about']['ignored']


def test_safetensors(tmp_path):
    safetensors = pytest.importorskip('safetensors')
    networks = tiny_networks()
    save_snapshot(tmp_path / 'own.pkl', networks, {})
    assert run('convert', tmp_path / 'own.pkl', tmp_path / 'out.pkl', '--safetensors', tmp_path / 'out.safetensors')[0] == 0
    with safetensors.safe_open(tmp_path / 'out.safetensors', 'pt') as file:
        state = networks['G_ema'].state_dict()
        stored = {key for key in file.keys() if key.startswith('G_ema.')}  # noqa: SIM118 (an open file is no dictionary)
        assert stored == {f'G_ema.{name}' for name in state}
        assert all(torch.equal(file.get_tensor(f'G_ema.{name}'), value) for name, value in state.items())
        described = json.loads(file.metadata()['G_ema'])
    assert type(networks['G_ema'].config).from_dict(described['config']) == networks['G_ema'].config


def test_safetensors_missing(tmp_path, monkeypatch):
    save_snapshot(tmp_path / 'own.pkl', tiny_networks(), {})
    monkeypatch.setitem(sys.modules, 'safetensors.torch', None)
    code, output = run('convert', tmp_path / 'own.pkl', tmp_path / 'out.pkl', '--safetensors', tmp_path / 'out.safetensors')
    assert code == 1 and 'pip install safetensors' in output and not (tmp_path / 'out.pkl').exists()


def test_convert_refuses_in_one_line(tmp_path):
    source = tmp_path / 'network.pkl'
    source.write_bytes(HOSTILE['os.system'][0])
    code, output = run('convert', source, tmp_path / 'out.pkl')
    assert code == 1 and output.startswith('Error: ') and 'os.system' in output and len(output.splitlines()) == 1
    assert not (tmp_path / 'out.pkl').exists()
    assert issubclass(LegacyError, UserError)


def test_convert_names_a_target_that_cannot_be_written(tmp_path):
    save_snapshot(tmp_path / 'own.pkl', tiny_networks(), {})
    (tmp_path / 'file').write_text('')
    for options in ([tmp_path / 'file/x.pkl'], ['/proc/x.pkl'], [tmp_path / 'x.pkl', '--safetensors', '/proc/x.safetensors']):
        code, output = run('convert', tmp_path / 'own.pkl', *options)
        assert code == 1 and output.startswith('Error: ') and len(output.splitlines()) == 1 and 'choose another path' in output
    assert not (tmp_path / 'x.pkl').exists()


def test_convert_makes_the_folder_of_its_target(tmp_path):
    save_snapshot(tmp_path / 'own.pkl', tiny_networks(), {})
    assert run('convert', tmp_path / 'own.pkl', tmp_path / 'new' / 'x.pkl')[0] == 0
    assert (tmp_path / 'new' / 'x.pkl').is_file()
