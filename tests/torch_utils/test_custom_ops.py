"""Building operators: many processes at once, killed ones, failures, and what is said. The compiler is a stand-in."""

import multiprocessing
import os
import signal
import subprocess
import sys
import textwrap
import time

import pytest
import torch

from dnnlib import files
from dnnlib.errors import UserError
from tests.helpers import ROOT, invoke
from torch_utils import custom_ops, distributed

# Notes its process number, then makes the library, fails, or hangs if it is the first to run.
COMPILER = textwrap.dedent("""
    import os, sys, time
    behaviour, notes, library = sys.argv[1:]
    first = not os.path.exists(notes)
    with open(notes, 'a') as file:
        file.write(f'{os.getpid()}\\n')
    open(library, 'w').write('half of it')
    time.sleep(60 if first and behaviour == 'hang' else 0.5)
    if behaviour == 'fail':
        sys.exit('expected a semicolon')
    open(library, 'w').write('all of it')
""")


class Workshop:
    """A cache, a made-up GPU and a compiler whose behaviour can be changed."""

    def __init__(self, folder):
        self.behaviour, self.notes, self.compiler, self.cache = 'work', folder / 'notes', folder / 'compiler.py', folder / 'cache'
        self.compiler.write_text(COMPILER)

    def command(self, operator, folder, architectures):
        return [sys.executable, '-S', str(self.compiler), self.behaviour, str(self.notes), str(folder / f'{operator}.so')]

    def compilers(self):
        """Process numbers of the compilers that ran so far."""
        return [int(line) for line in self.notes.read_text().splitlines()] if self.notes.exists() else []

    def wait_for_compilers(self, count):
        deadline = time.time() + 60
        while len(self.compilers()) < count:
            assert time.time() < deadline, 'no compiler was started'
            time.sleep(0.02)

    def start(self, count):
        """Processes that build, and what they find: a list of (process, receiving end)."""
        context = multiprocessing.get_context('fork')
        together, started = context.Barrier(count), []  # a busy machine may start the last one after the first one's end
        for _ in range(count):
            receive, send = context.Pipe(duplex=False)
            process = context.Process(target=_build_and_tell, args=(send, together))
            process.start()
            started.append((process, receive))
        return started

    def outcomes(self, started):
        answers = [receive.recv() if receive.poll(60) else 'no answer' for _, receive in started]
        for process, _ in started:
            process.join(60)
        return answers


def _build_and_tell(send, together):
    together.wait(60)
    try:
        send.send(custom_ops.build('bias_act').read_text())
    except custom_ops.BuildError as error:
        send.send(f'BuildError: {error}')


@pytest.fixture
def workshop(tmp_path, monkeypatch):
    made = Workshop(tmp_path)
    monkeypatch.setenv('XDG_CACHE_HOME', str(made.cache))
    monkeypatch.delenv('MIMIC3D_OPS', raising=False)
    monkeypatch.setattr(custom_ops, 'gpu_architectures', lambda: ['90'])
    monkeypatch.setattr(custom_ops, 'cuda_home', lambda: tmp_path)
    monkeypatch.setattr(custom_ops, 'compile_command', made.command)
    custom_ops.load.cache_clear()
    custom_ops._warn.cache_clear()
    files._temporary_cache.cache_clear()
    yield made
    custom_ops.load.cache_clear()
    custom_ops._warn.cache_clear()


def test_of_many_processes_one_compiles(workshop):
    assert workshop.outcomes(workshop.start(6)) == 6 * ['all of it']
    assert len(workshop.compilers()) == 1
    custom_ops.build('bias_act')  # from the cache
    assert len(workshop.compilers()) == 1


def test_a_failure_is_shared_and_not_repeated(workshop):
    workshop.behaviour = 'fail'
    answers = workshop.outcomes(workshop.start(6))
    assert len(set(answers)) == 1 and "the compiler's output is in" in answers[0]
    assert len(workshop.compilers()) == 1
    log = answers[0].split(' in ')[-1]
    assert 'expected a semicolon' in open(log).read()


def test_a_later_start_tries_again_after_a_failure(workshop):
    workshop.behaviour = 'fail'
    with pytest.raises(custom_ops.BuildError):
        custom_ops.build('bias_act')
    workshop.behaviour = 'work'
    library = custom_ops.build('bias_act')
    assert library.read_text() == 'all of it'
    assert {path.name for path in library.parent.iterdir()} == {'lock', library.name}


def test_killing_the_builder_breaks_nothing(workshop):
    """SIGKILL while it compiles, with another process waiting for the lock: that one builds; nothing half-made stays."""
    workshop.behaviour = 'hang'
    [(builder, _)] = workshop.start(1)
    workshop.wait_for_compilers(1)
    waiting = workshop.start(1)
    time.sleep(0.3)
    assert len(workshop.compilers()) == 1, 'the second process did not wait'
    os.kill(builder.pid, signal.SIGKILL)
    builder.join(60)
    try:
        assert workshop.outcomes(waiting) == ['all of it']
    finally:
        os.kill(workshop.compilers()[0], signal.SIGKILL)  # the killed builder's compiler, which still runs
    library = custom_ops.build('bias_act')
    assert {path.name for path in library.parent.iterdir()} == {'lock', library.name}


def test_the_cache_is_keyed_by_all_that_matters(workshop, tmp_path, monkeypatch):
    keys = [custom_ops._key('bias_act', ['90'])]
    assert custom_ops._key('bias_act', ['90']) == keys[0]
    keys.append(custom_ops._key('upfirdn2d', ['90']))
    keys.append(custom_ops._key('bias_act', ['80', '90']))
    with monkeypatch.context() as patch:
        patch.setattr(torch, '__version__', '2.99.0')
        keys.append(custom_ops._key('bias_act', ['90']))
    with monkeypatch.context() as patch:
        patch.setattr(torch.version, 'cuda', '99.0')
        keys.append(custom_ops._key('bias_act', ['90']))
    with monkeypatch.context() as patch:
        patch.setattr(custom_ops, 'COMPILER_OPTIONS', ('-O0',))
        keys.append(custom_ops._key('bias_act', ['90']))
    for changed in ('bias_act.cpp', 'bias_act.cu', 'bias_act.h', 'kernels.h'):
        with monkeypatch.context() as patch:
            for path in custom_ops._sources('bias_act'):
                (tmp_path / path.name).write_bytes(path.read_bytes() + (b'\n' if path.name == changed else b''))
            patch.setattr(custom_ops, '_SOURCES', tmp_path)
            keys.append(custom_ops._key('bias_act', ['90']))
    assert len(set(keys)) == len(keys)


def test_a_failure_is_reported_once_in_one_line_on_rank_0(workshop, caplog, monkeypatch):
    workshop.behaviour = 'fail'
    assert [custom_ops.choose('bias_act', 'cuda') for _ in range(3)] == 3 * ['ref']
    [record] = caplog.records
    assert record.levelname == 'WARNING' and '\n' not in record.getMessage()
    assert str(workshop.cache) in record.getMessage() and 'failure.log' in record.getMessage()
    assert len(workshop.compilers()) == 1
    caplog.clear()
    custom_ops._warn.cache_clear()
    monkeypatch.setattr(distributed, 'rank', lambda: 1)
    assert custom_ops.choose('bias_act', 'cuda') == 'ref' and not caplog.records


def test_the_environment_variable_forces_a_choice(workshop, monkeypatch):
    workshop.behaviour = 'fail'
    monkeypatch.setenv('MIMIC3D_OPS', 'ref')
    assert custom_ops.choose('bias_act', 'cuda') == 'ref'
    assert not workshop.compilers(), 'it was built although it is not wanted'
    monkeypatch.setenv('MIMIC3D_OPS', 'cuda')
    for device in ('cuda', 'cpu'):
        with pytest.raises(UserError, match='MIMIC3D_OPS=cuda, but bias_act cannot be had: it could not be compiled'):
            custom_ops.choose('bias_act', device)
    assert custom_ops.choose('bias_act', 'cpu', impl='ref') == 'ref', 'what the caller demands goes first'
    with pytest.raises(ValueError, match="impl='cuda' cannot be had: it could not be compiled"):
        custom_ops.choose('bias_act', 'cuda', impl='cuda')


def test_one_graph_holds_the_answer(workshop, monkeypatch):
    """Once an operator was loaded, or could not be; neither logging nor building can be part of a graph."""

    def double_on_gpu(x):
        return x * (2 if custom_ops.choose('bias_act', 'cuda') == 'cuda' else 1)

    monkeypatch.setattr(torch.ops, 'load_library', lambda path: None)
    for behaviour, factor in (('fail', 1), ('work', 2)):
        workshop.behaviour = behaviour
        custom_ops.load.cache_clear()
        custom_ops.load('bias_act')
        torch.compiler.reset()
        assert torch.compile(double_on_gpu, fullgraph=True, backend='eager')(torch.ones([])) == factor


def test_programs_start_without_the_compiler_of_pytorch():
    """Its import takes as long as that of all else."""
    code = "import sys, training.training_loop; print('torch._dynamo' in sys.modules)"
    result = subprocess.run([sys.executable, '-c', code], cwd=ROOT, capture_output=True, text=True, check=True)
    assert result.stdout == 'False\n'


def test_what_is_built_is_used(workshop, monkeypatch):
    loaded = []
    monkeypatch.setattr(torch.ops, 'load_library', loaded.append)
    assert custom_ops.choose('bias_act', 'cuda') == custom_ops.choose('bias_act', 'cuda', impl='cuda') == 'cuda'
    assert custom_ops.choose('bias_act', 'cpu') == 'ref'
    assert loaded == [str(custom_ops.build('bias_act'))]
    monkeypatch.setenv('MIMIC3D_OPS', 'cuda')
    assert custom_ops.choose('bias_act', 'cpu') == 'ref', 'a tensor on a CPU beside a GPU that works'


def test_a_cpu_builds_nothing(workshop):
    assert custom_ops.choose('bias_act', 'cpu') == 'ref'
    assert not workshop.compilers()


def test_reasons_for_doing_without(workshop, monkeypatch):
    """Each in one line."""
    custom_ops.build('bias_act')  # a text file, which cannot be loaded
    assert custom_ops.load('bias_act').startswith('its library could not be loaded')
    monkeypatch.setattr(custom_ops, 'cuda_home', lambda: None)
    assert 'no CUDA compiler (nvcc) was found' in custom_ops.load('upfirdn2d')
    custom_ops.load.cache_clear()
    monkeypatch.setattr(custom_ops, 'gpu_architectures', lambda: [])
    assert custom_ops.load('upfirdn2d') == 'there is no CUDA device'


def test_without_a_cache_it_is_built_in_a_temporary_folder(workshop, monkeypatch):
    custom_ops.build('bias_act')
    (workshop.cache / 'file').write_text('')
    monkeypatch.setenv('XDG_CACHE_HOME', str(workshop.cache / 'file'))
    with pytest.warns(UserWarning, match='no cache folder can be written .*Not a directory'):
        library = custom_ops.build('bias_act')
    assert library.read_text() == 'all of it' and workshop.cache not in library.parents and len(workshop.compilers()) == 2
    assert custom_ops.build('bias_act') == library and len(workshop.compilers()) == 2


def test_report(workshop, monkeypatch):
    monkeypatch.setattr(custom_ops, 'cuda_home', lambda: None)
    monkeypatch.setattr(custom_ops, 'gpu_architectures', lambda: [])
    report = invoke(custom_ops.main)
    assert report.exit_code == 0, report.output
    assert f'PyTorch        {torch.__version__}' in report.output and 'architectures  none' in report.output
    for operator in custom_ops.OPERATORS:
        assert f'{operator:14} ref (there is no CUDA device)' in report.output
    monkeypatch.setenv('MIMIC3D_OPS', 'cuda')
    report = invoke(custom_ops.main)
    assert report.exit_code == 1 and 'Error: MIMIC3D_OPS=cuda, but bias_act cannot be had' in report.output


@pytest.mark.gpu
def test_report_on_a_gpu():
    custom_ops.load.cache_clear()
    report = invoke(custom_ops.main)
    assert report.exit_code == 0
    for operator in custom_ops.OPERATORS:
        assert f'{operator:14} cuda\n' in report.output, report.output
