"""Builds the CUDA operators when they are first needed, and decides between them and their PyTorch versions.

`python -m torch_utils.custom_ops` builds all of them now, and says what will be used. The environment variable MIMIC3D_OPS
forces a choice: `ref` for plain PyTorch, `cuda` for the operators or an error.

An operator NAME is built from torch_utils/ops/NAME.{cpp,cu,h} and kernels.h. Its library lies in the user's cache
($XDG_CACHE_HOME/mimic3d/operators), under a key of all that it was built from, and appears there complete or not at all.
"""

import functools
import hashlib
import json
import logging
import os
import platform
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import click
import torch

from dnnlib.cli import friendly_errors
from dnnlib.errors import UserError
from dnnlib.files import cache_path, lock_folder
from torch_utils import distributed

OPERATORS = ('bias_act', 'upfirdn2d')
COMPILER_OPTIONS = ('-O3',)
_ROOT = Path(__file__).resolve().parent.parent
_SOURCES = Path(__file__).resolve().parent / 'ops'
_logger = logging.getLogger(__name__)


class BuildError(Exception):
    """Why an operator cannot be had, in one line."""


# ---- Which implementation


def choose(operator, device_type, impl=None):
    """'cuda' or 'ref': what `operator` is to use for tensors on a device of this type ('cpu', 'cuda', ...).

    impl: 'cuda' or 'ref', as the caller demands; None: as MIMIC3D_OPS demands, or else the CUDA operator for tensors on a
    GPU wherever it can be built. Raises UserError if MIMIC3D_OPS demands what cannot be had, ValueError if the caller does.
    On a GPU, code that is compiled as one graph must have been called before, or `load`: a graph builds nothing.
    """
    if impl not in (None, 'cuda', 'ref'):
        raise ValueError(f"impl must be 'cuda', 'ref' or None, got {impl!r}")
    demanded, on_gpu = impl or demanded_by_user(), device_type == 'cuda'
    if demanded == 'ref' or (demanded is None and not on_gpu):
        return 'ref'
    if impl and not on_gpu:
        raise ValueError(f"{operator}: impl='cuda' needs tensors on a CUDA device, got {device_type!r}")
    problem = load(operator)
    if not problem:
        return 'cuda' if on_gpu else 'ref'
    if impl:
        raise ValueError(f"{operator}: impl='cuda' cannot be had: {problem}")
    if demanded:
        raise UserError(f'MIMIC3D_OPS=cuda, but {operator} cannot be had: {problem}. Unset MIMIC3D_OPS to go on in plain PyTorch')
    if not torch.compiler.is_compiling():  # a graph logs nothing
        _warn(operator, problem)
    return 'ref'


def demanded_by_user(variable='MIMIC3D_OPS', choices=('cuda', 'ref')):
    """The value of an environment variable, one of `choices`, or None where it is not set. Raises UserError for any other."""
    value = os.environ.get(variable) or None
    if value not in (None, *choices):
        raise UserError(f'{variable} must be {" or ".join(choices)}, got {value!r}; unset it to use what there is')
    return value


@functools.cache
def _warn(operator, problem):
    if distributed.rank() == 0:
        _logger.warning('%s: using plain PyTorch, which is slower, because %s', operator, problem)


def agree():
    """Let all processes use the same implementation of every operator; each must call it, before the first use.

    Raises UserError where MIMIC3D_OPS is not the same for all.
    """
    distributed.check_same('MIMIC3D_OPS', demanded_by_user())
    if torch.cuda.is_available() and demanded_by_user() != 'ref':
        for operator in OPERATORS:
            load.agree(operator)


@distributed.Obstacle
def load(operator):
    """Register the operator's CUDA kernels, after building them if need be. None, or why it failed, in one line."""
    try:
        library = build(operator)
        torch.ops.load_library(str(library))
    except BuildError as error:
        return str(error)
    except OSError as error:
        return f'its library could not be loaded: {" ".join(str(error).split())}'
    return None


# ---- Building


def build(operator):
    """The path of the operator's library for the GPUs of this machine, compiled unless the cache has it.

    Any number of processes may call this at once: one compiles, the others wait for it and share its outcome.
    Raises BuildError.
    """
    architectures = gpu_architectures()
    if not architectures:
        raise BuildError('there is no CUDA device')
    asked = time.time()
    try:
        library = cache_path(f'operators/{operator}-{_key(operator, architectures)}/{operator}.so')
        log = library.with_name('failure.log')
        if library.exists():
            return library
        lock = lock_folder(library.parent, patience=-1)
        try:
            failed_meanwhile = log.exists() and log.stat().st_mtime >= asked
            if not library.exists() and not failed_meanwhile:
                _compile(operator, architectures, library, log)
        finally:
            lock.release()
    except OSError as error:
        raise BuildError(f'it could not be built: {error}') from None
    if not library.exists():
        raise BuildError(f"it could not be compiled; the compiler's output is in {log}")
    return library


def gpu_architectures():
    """The compute capabilities of the visible GPUs, without repetition: ['90'] for an H100."""
    if torch.version.cuda is None or not torch.cuda.is_available():
        return []
    capabilities = {torch.cuda.get_device_capability(i) for i in range(torch.cuda.device_count())}
    return [f'{major}{minor}' for major, minor in sorted(capabilities)]


def _sources(operator):
    return [_SOURCES / name for name in (f'{operator}.cpp', f'{operator}.cu', f'{operator}.h', 'kernels.h')]


def _key(operator, architectures):
    """A hash of everything that the library depends on."""
    versions = torch.__version__, torch.version.cuda, platform.python_version(), platform.machine()
    sources = [path.read_bytes() for path in _sources(operator)]
    return hashlib.sha256(repr((versions, COMPILER_OPTIONS, architectures, sources)).encode()).hexdigest()[:16]


def _compile(operator, architectures, library, log):
    """Leaves the finished library, or the compiler's output in `log`. The caller holds the lock."""
    for leftover in library.parent.glob('building-*'):  # of processes that were killed
        shutil.rmtree(leftover, ignore_errors=True)
    log.unlink(missing_ok=True)
    with tempfile.TemporaryDirectory(prefix='building-', dir=library.parent, ignore_cleanup_errors=True) as folder:
        work = Path(folder)
        output = work / 'output.log'
        with open(output, 'wb') as file:
            finished = subprocess.run(
                compile_command(operator, work, architectures),
                env=_compiler_environment(),
                cwd=work,
                stdin=subprocess.DEVNULL,
                stdout=file,
                stderr=subprocess.STDOUT,
            )
        if finished.returncode == 0 and (work / library.name).exists():
            os.replace(work / library.name, library)
        else:
            os.replace(output, log)


def compile_command(operator, folder, architectures):
    """The command that makes folder/OPERATOR.so. A process of its own: its environment is prepared, its output caught."""
    arguments = json.dumps([operator, str(folder), architectures])
    return [sys.executable, '-c', f'from torch_utils.custom_ops import compile_library; compile_library(*{arguments})']


def compile_library(operator, folder, architectures):
    """Compile an operator for GPU architectures such as '90', and try whether it can be loaded. Prints a lot."""
    from torch.utils import cpp_extension  # takes its time, and looks at the environment when it is imported

    targets = [f'-gencode=arch=compute_{architecture},code=sm_{architecture}' for architecture in architectures]
    sources = [str(path) for path in _sources(operator) if path.suffix != '.h']
    cpp_extension.load(
        operator,
        sources,
        extra_cflags=list(COMPILER_OPTIONS),
        extra_cuda_cflags=[*COMPILER_OPTIONS, *targets],
        build_directory=folder,
        is_python_module=False,
        verbose=True,
    )


def _compiler_environment():
    """The environment, with ninja on the PATH also where the virtual environment is not active, and the CUDA toolkit."""
    home = cuda_home()
    if home is None:
        raise OSError(f'no CUDA compiler (nvcc) was found; install the CUDA toolkit {torch.version.cuda} or set CUDA_HOME')
    path = [os.path.dirname(sys.executable), os.environ.get('PATH', os.defpath)]
    modules = [str(_ROOT), *filter(None, [os.environ.get('PYTHONPATH')])]
    return os.environ | {'PATH': os.pathsep.join(path), 'PYTHONPATH': os.pathsep.join(modules), 'CUDA_HOME': str(home)}


def cuda_home():
    """The folder of the CUDA toolkit, or None. Where there are several, one that has the headers too."""
    on_path = shutil.which('nvcc')
    of_compiler = on_path and Path(on_path).resolve().parents[1]
    places = [os.environ.get('CUDA_HOME'), os.environ.get('CUDA_PATH'), of_compiler, '/usr/local/cuda']
    homes = [Path(place) for place in places if place and (Path(place) / 'bin' / 'nvcc').exists()]
    homes.sort(key=lambda home: not (home / 'include' / 'cuda_runtime.h').exists())
    return homes[0] if homes else None


# ---- The report


@click.command()
@friendly_errors
def main():
    """Build all CUDA operators and say which implementation each of them will use."""
    home = cuda_home()
    gpus = [torch.cuda.get_device_name(i) for i in range(torch.cuda.device_count())]
    for name, value in (
        ('PyTorch', f'{torch.__version__}, CUDA {torch.version.cuda}, Python {platform.python_version()}'),
        ('CUDA compiler', f'{_compiler_version(home)} ({home})' if home else 'none'),
        ('GPUs', ', '.join(gpus) or 'none'),
        ('architectures', ', '.join(f'sm_{architecture}' for architecture in gpu_architectures()) or 'none'),
        ('cache', cache_path('operators')),
        ('MIMIC3D_OPS', demanded_by_user() or 'not set'),
    ):
        print(f'{name:14} {value}')
    for operator in OPERATORS:
        problem = None if demanded_by_user() == 'ref' else load(operator)
        used = choose(operator, 'cuda' if gpus else 'cpu')
        print(f'{operator:14} {used}{f" ({problem})" if problem else ""}', flush=True)


def _compiler_version(home):
    """The line with the release in `nvcc --version`: 'Cuda compilation tools, release 13.0, V13.0.88'."""
    answer = subprocess.run([home / 'bin' / 'nvcc', '--version'], capture_output=True, text=True)
    return next((line for line in answer.stdout.splitlines() if 'release' in line), 'does not answer')


if __name__ == '__main__':
    main()
