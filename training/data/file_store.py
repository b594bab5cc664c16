"""The files of a data set, in a zip or in a folder, by names that are compared as paths."""

import contextlib
import os
import pathlib
import posixpath
import unicodedata
import zipfile
import zlib

from dnnlib.errors import UserError
from dnnlib.pictures import PICTURE_SUFFIXES

_ENCRYPTED, _UTF8 = 0x1, 0x800  # flags of a zip's entry
_METHODS = {9: 'Deflate64', 93: 'Zstandard', 95: 'XZ', 98: 'PPMd'}  # that other programs write, and Python may lack

_checksums = {}  # (path, size, time of change): CRC-32; metrics ask for those of a whole set at every snapshot

_LONGEST_REASON = 200  # letters; zipfile may quote half a damaged file


class DatasetError(UserError, ValueError):
    """A data set that cannot be used as asked; the message is one line with the cause and the cure."""


class FileStore:
    """Read-only files of a zip or of a folder, by relative name with forward slashes, in Unicode's composed form.

    Attributes: `path`; `is_zip`; `names`, sorted, without hidden files and macOS's resource forks. Where everything in a zip
    lies under one top folder, names start below it. Methods take a name in any spelling that `find` knows.

    Picklable and safe in forked workers: every process opens the zip for itself, at its first read. Raises DatasetError when
    `path` is neither a folder nor a sound zip, and for what cannot be listed, read or unpacked.
    """

    def __init__(self, path):
        self.path = pathlib.Path(path)
        self._zip, self._zip_owner = None, None
        self.is_zip = self._check_path()
        self._roots = (
            () if self.is_zip else {normal_name(root).rstrip('/') + '/' for root in (self.path.absolute(), self.path.resolve())}
        )
        self._top = ''
        self._files = self._by_name(self._list_zip() if self.is_zip else self._list_folder(self.path, []))
        if self.is_zip:
            self._leave_out_top()
            self._check_packing()
        self.names = sorted(self._files)
        self._pictures = {_split_suffix(name): name for name in reversed(self.names)}

    def __contains__(self, name):
        return self._from_top(name) in self._files

    def find(self, name):
        """The one of `names` that a name in a label or a camera file means, or None.

        It may be absolute, have `..`, `./`, `//`, backslashes, letters with separate accents, its suffix in other capitals, or
        none where that is a picture's.
        """
        name = self._from_top(name)
        if name in self._files:
            return name
        stem, suffix = _split_suffix(name)
        suffixes = [suffix] if suffix else PICTURE_SUFFIXES
        return next((self._pictures[stem, suffix] for suffix in suffixes if (stem, suffix) in self._pictures), None)

    def read(self, name):
        """The bytes of a file."""
        with self.open(name) as file:
            try:
                return file.read()
            except Exception as error:  # damaged zips fail in many ways, and all have one cure
                raise self._unreadable(name, error) from error

    def open(self, name):
        """A binary file object; of a zip it reads only as far as it is asked to."""
        if self.is_zip:
            return self._open_entry(self._entry(name))
        file = self.path / self._files[self.find(name)]
        try:
            if not file.is_file():
                raise OSError('it is no regular file')  # opening a pipe would wait for its other end
            return open(file, 'rb')
        except OSError as error:
            raise self._unreadable(name, error) from error

    def checksum(self, name):
        """CRC-32 of a file's content; of a zip, as its directory has it. A folder's file is read once while it stays as it is."""
        if self.is_zip:
            return self._entry(name).CRC
        stat = self._stat(name)
        state = self.path / self._files[self.find(name)], stat.st_size, stat.st_mtime_ns
        if state not in _checksums:
            _checksums[state] = zlib.crc32(self.read(name))
        return _checksums[state]

    def size(self, name):
        """The length of a file's content in bytes, without reading it."""
        return self._entry(name).file_size if self.is_zip else self._stat(name).st_size

    def _stat(self, name):
        try:
            return (self.path / self._files[self.find(name)]).stat()
        except OSError as error:  # it was there when the folder was listed
            raise self._unreadable(name, error) from error

    def _from_top(self, name):
        """A name as in `names`, wherever it leads."""
        name = normal_name(name)
        for root in self._roots:
            whole = posixpath.normpath(posixpath.join(root, name))
            if whole.startswith(root):
                return whole.removeprefix(root)
        return name.removeprefix('/').removeprefix(self._top)

    def __getstate__(self):
        return {**self.__dict__, '_zip': None, '_zip_owner': None}

    # What the path is ------------------------------------------------------------------------------------------------

    def _check_path(self):
        """Whether the path is a zip; else it is a folder."""
        try:
            if self.path.is_dir():
                return False
            if self.path.is_file() and (self.path.suffix.lower() == '.zip' or zipfile.is_zipfile(self.path)):
                return True  # that it is truncated or corrupt shows when it is listed
            trouble = 'is neither a zip nor a folder' if self.path.exists() else 'does not exist'
        except OSError as error:
            trouble = f'cannot be read ({_reason(error)})'
        raise DatasetError(f'{self.path} {trouble}: give the path of a zip or a folder of images')

    def _archive(self):
        # A forked child must not share the parent's file position.
        if self._zip is None or self._zip_owner != os.getpid():
            try:
                self._zip, self._zip_owner = zipfile.ZipFile(self.path), os.getpid()
            except Exception as error:
                raise DatasetError(
                    f'{self.path} is a truncated or corrupt zip ({_reason(error)}): copy or create it again'
                ) from error
        return self._zip

    def _entry(self, name):
        """What a zip's directory says of a file."""
        return self._archive().getinfo(self._files[self.find(name)])

    def _open_entry(self, entry):
        real = entry.filename
        if entry.flag_bits & _ENCRYPTED:
            raise DatasetError(f'{self.path}: {real} is encrypted: pack the zip anew, without a password')
        try:
            return self._archive().open(entry)
        except NotImplementedError as error:
            method = _METHODS.get(entry.compress_type, f'method {entry.compress_type}')
            raise DatasetError(
                f'{self.path}: {real} is compressed with {method}, which this Python cannot unpack: pack the zip '
                'anew, stored or deflated'
            ) from error
        except Exception as error:
            raise self._unreadable(real, error) from error

    def _unreadable(self, name, error):
        return DatasetError(f'{self.path}: {name} cannot be read ({_reason(error)}): replace or remove it')

    # What there is ---------------------------------------------------------------------------------------------------

    def _list_zip(self):
        """(name, name in the archive) of every file."""
        return [
            (_entry_name(entry), entry.filename)
            for entry in self._archive().infolist()
            if not entry.filename.endswith(('/', '\\'))
        ]

    def _list_folder(self, folder, above):
        """(name, name) of every file in a folder and those below. above: the folders that lead here, by device and number."""
        files = []
        try:
            stat = os.stat(folder)
            if (stat.st_dev, stat.st_ino) in above:
                raise OSError('it leads back to a folder above it')
            for entry in os.scandir(folder):
                name = (folder / entry.name).relative_to(self.path).as_posix()
                if _is_hidden(entry.name):
                    continue
                if entry.is_symlink():
                    os.stat(entry.path)  # raises where there is nothing at the other end
                files += (
                    self._list_folder(folder / entry.name, [*above, (stat.st_dev, stat.st_ino)])
                    if entry.is_dir()
                    else [(name, name)]
                )
        except OSError as error:
            raise DatasetError(f'{error.filename or folder} cannot be read ({_reason(error)}): mend or remove it') from error
        return files

    def _by_name(self, files):
        """{normal name: real name} of the files that are not hidden."""
        named = {}
        for name, real in files:
            normal = normal_name(name).removeprefix('/')
            if normal.startswith('../'):
                raise DatasetError(f'{self.path} holds {name}, which would lie outside of it: pack it anew')
            if any(_is_hidden(part) for part in normal.split('/')):
                continue
            if normal in named:
                raise DatasetError(f'{self.path} holds two files by the name of {normal}: remove one')
            named[normal] = real
        return named

    def _leave_out_top(self):
        """Name the files of a zip from the one folder that holds them all."""
        top = posixpath.commonpath([posixpath.dirname(name) for name in self._files]) if self._files else ''
        self._top = f'{top}/' if top else ''
        self._files = {name.removeprefix(self._top): real for name, real in self._files.items()}

    def _check_packing(self):
        """Raises DatasetError for a kind of packing that cannot be undone."""
        entries = map(self._archive().getinfo, self._files.values())
        kinds = {(entry.compress_type, entry.flag_bits & _ENCRYPTED): entry for entry in entries}
        for entry in kinds.values():
            self._open_entry(entry).close()


def normal_name(name):
    """A path with forward slashes, without detours, in Unicode's composed form."""
    path = posixpath.normpath(unicodedata.normalize('NFC', str(name)).replace('\\', '/'))
    return '/' + path.lstrip('/') if path.startswith('/') else path  # normpath keeps two slashes in front


def _split_suffix(name):
    """(name without suffix, suffix in small letters) of a picture; of another file, all of it and ''."""
    suffix = posixpath.splitext(name)[1].lower()
    return (name[: -len(suffix)], suffix) if suffix in PICTURE_SUFFIXES else (name, '')


def _entry_name(entry):
    """The name of a zip's entry. Some programs write UTF-8 without saying so, which zipfile takes for code page 437."""
    if not entry.flag_bits & _UTF8:
        with contextlib.suppress(UnicodeError):
            return entry.filename.encode('cp437').decode('utf-8')
    return entry.filename


def _is_hidden(part):
    return part != '..' and part.startswith('.') or part == '__MACOSX'


def _reason(error):
    reason = getattr(error, 'strerror', None) or str(error) or type(error).__name__
    return reason if len(reason) <= _LONGEST_REASON else reason[:_LONGEST_REASON] + '...'
