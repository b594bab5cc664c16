"""Files that appear whole or not at all, and folders that one process has for itself."""

import contextlib
import errno
import functools
import os
import tempfile
import warnings
from pathlib import Path

from filelock import FileLock, Timeout

from dnnlib.errors import UserError


def make_output_folder(folder):
    """Make a folder, unless it is there, and try to write in it: a program should know before it works for hours.

    Raises UserError naming the folder.
    """
    try:
        os.makedirs(folder, exist_ok=True)
        tempfile.TemporaryFile(dir=folder).close()
    except FileExistsError:
        raise UserError(f'{folder} is a file, and a folder is needed there; choose another path') from None
    except OSError as error:
        raise UserError(f'{folder} cannot be written: {error.strerror}; choose another path or make room') from None


def absolute(path):
    """A path as users write it, as str: `~` and `~name` are homes, and what is relative is meant from the current folder.

    Raises UserError where there is no such home or no current folder, or no path at all.
    """
    if not str(path):
        raise UserError('the path is empty')
    try:
        return str(Path(path).expanduser().absolute())  # `..` stays: behind a link it is not what it seems
    except (RuntimeError, OSError) as error:
        raise UserError(f'{path} cannot be found from here ({error}): give an absolute path') from None


def cache_path(name, folder=None):
    """Where the file `name` of a cache is, or is to be written: in `folder`, by default `mimic3d` in $XDG_CACHE_HOME or ~/.cache.

    Its folder is made. Without a home, or where the folder cannot be written, it lies in a temporary folder, which goes with
    this process, and a warning says so.
    """
    try:
        path = Path(folder or os.path.join(os.environ.get('XDG_CACHE_HOME') or '~/.cache', 'mimic3d')).expanduser() / name
        if not path.exists():  # a cache that can only be read is good for what it holds
            path.parent.mkdir(parents=True, exist_ok=True)
            tempfile.TemporaryFile(dir=path.parent).close()
    except (RuntimeError, OSError) as error:  # the first: there is no home
        path = Path(_temporary_cache(str(error)).name) / name
        path.parent.mkdir(parents=True, exist_ok=True)
    return path


@functools.cache
def _temporary_cache(reason):
    try:
        folder = tempfile.TemporaryDirectory(prefix='mimic3d-')
    except OSError:
        raise UserError(
            f'no cache folder can be written ({reason}), and none for temporary files; set TMPDIR or XDG_CACHE_HOME'
        ) from None
    warnings.warn(
        f'no cache folder can be written ({reason}): what is kept in {folder.name} instead is lost when this process ends; '
        'set XDG_CACHE_HOME',
        stacklevel=3,
    )
    return folder


def source_name(path):
    """The name of a folder, or of a file without its ending; of `.`, that of the folder it stands for."""
    path = os.path.realpath(path)
    name = os.path.basename(path)
    return name if os.path.isdir(path) else os.path.splitext(name)[0]


@contextlib.contextmanager
def replacing(path):
    """A new binary file that takes the place of `path` when the block ends well; else `path` stays as it was.

    It is written beside, synced to the disk, and renamed. Raises OSError with the name `path`.
    """
    beside = f'{path}.{os.getpid()}.tmp'  # another process may write the same file
    try:
        with open(beside, 'wb') as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
    except BaseException as error:
        remove(beside)  # a full disk needs the room
        if isinstance(error, OSError) and error.filename in (None, beside):
            raise OSError(error.errno, error.strerror, str(path)) from None
        raise
    os.replace(beside, path)
    _sync_folder(os.path.dirname(path) or '.')


def remove(path):
    """Delete a file, if it is there."""
    with contextlib.suppress(FileNotFoundError, NotADirectoryError):
        os.unlink(path)


def _sync_folder(folder):
    """Make a rename lasting."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


LOCK_FILE = 'lock'


def lock_folder(folder, patience=60.0):
    """A folder for this process alone until its end, or `release()` of what is returned: an advisory lock on its LOCK_FILE.

    Waits up to `patience` seconds, negative for ever, since helpers of a process that was killed may hold on for a moment.
    Raises UserError.
    """
    lock = FileLock(os.path.join(folder, LOCK_FILE), timeout=patience, poll_interval=0.2)
    try:
        lock.acquire()
    except Timeout:
        raise UserError(f'{folder} is in use by another process; wait for its end, or name another folder') from None
    except OSError as error:
        if error.errno not in (errno.ENOTSUP, errno.ENOLCK):
            raise
        warnings.warn(f'{folder}: this file system has no locks; see to it that one process at a time is here', stacklevel=2)
    return lock
