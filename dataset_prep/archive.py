"""Writing data sets: a stored zip or a folder, in the layout of the FFHQ archives."""

import contextlib
import io
import json
import pathlib
import shutil
import zipfile

from PIL import Image

from dnnlib.errors import UserError
from dnnlib.files import LOCK_FILE, lock_folder
from training.data.dataset import LABEL_FILE, DatasetError

_IMAGES_PER_FOLDER = 1000
_ZIP_EPOCH = (1980, 1, 1, 0, 0, 0)  # a fixed time stamp: the same images give the same bytes


def is_zip_name(path):
    """Whether a data set written to a pathlib.Path is a zip; else it is a folder."""
    return path.suffix.lower() == '.zip'


class DatasetWriter:
    """Context manager that writes images and labels beside `dest` and renames them to it when all went well.

    dest: path of a zip (suffix .zip) or else of a folder. overwrite: replace an existing data set.
    Raises DatasetError when dest exists and may not be replaced, cannot be written, or is being written by another process.
    Nothing is left on errors or interruption; what a killed process left is removed.
    """

    def __init__(self, dest, overwrite=False):
        self.dest = pathlib.Path(dest)
        if self.dest.name in ('', '..'):
            raise DatasetError(f'--dest={dest} names no file or folder that could be made: give one like heads.zip')
        self._folder = self.dest.with_name(self.dest.name + '.partial')
        self._part = self._folder / self.dest.name
        self._overwrite = overwrite
        self._labels = []
        self._zip = None

    def __enter__(self):
        self._check_dest()
        with self._writing(), contextlib.ExitStack() as stack:
            self._claim()
            stack.callback(self._clean_up)
            self._check_dest()  # again: it may have been written before the folder was this process's alone
            _remove_whole(self._part)  # left by a killed process
            if is_zip_name(self.dest):
                self._zip = stack.enter_context(zipfile.ZipFile(self._part, 'w', compression=zipfile.ZIP_STORED))
            else:
                self._part.mkdir()
            self._at_exit = stack.pop_all()
        return self

    def __exit__(self, kind, error, trace):
        with self._writing(), self._at_exit:
            if kind is None:
                self._finish()

    def _claim(self):
        """Have the folder for this process alone."""
        self._folder.mkdir(parents=True, exist_ok=True)
        try:
            self._lock = lock_folder(self._folder, patience=0.0)
        except UserError:
            raise DatasetError(f'--dest={self.dest} is being written by another process: choose another path') from None

    def _clean_up(self):
        """Leave nothing of this writer's. A folder of that name that somebody else has filled keeps the rest."""
        _remove_whole(self._part)
        _remove_whole(self._folder / LOCK_FILE)
        with contextlib.suppress(OSError):
            self._folder.rmdir()
        self._lock.release()

    def add(self, pixels, label):
        """Appends an image (uint8 array [H, W, 3]) with its camera label (25 floats)."""
        number = len(self._labels)
        name = f'{number // _IMAGES_PER_FOLDER:05d}/img{number:08d}.png'
        png = io.BytesIO()
        Image.fromarray(pixels).save(png, format='png')
        self._write_file(name, png.getvalue())
        self._labels.append([name, [float(value) for value in label]])

    def _check_dest(self):
        if self.dest.exists() and not self._overwrite:
            raise DatasetError(f'--dest={self.dest} exists: choose another path, or replace it with --overwrite')
        data_set = self.dest if is_zip_name(self.dest) else self.dest / LABEL_FILE
        if self.dest.exists() and not data_set.is_file():  # --overwrite must not delete somebody's home
            raise DatasetError(f'--dest={self.dest} is not a data set, so --overwrite leaves it alone: choose another path')

    @contextlib.contextmanager
    def _writing(self):
        """An OSError of the file system as DatasetError."""
        try:
            yield
        except OSError as error:
            reason = error.strerror or error
            raise DatasetError(f'--dest={self.dest} cannot be written ({reason}): choose another path or make room') from error

    def _write_file(self, name, data):
        with self._writing():
            if self._zip is not None:
                self._zip.writestr(zipfile.ZipInfo(name, _ZIP_EPOCH), data)
            else:
                (self._part / name).parent.mkdir(exist_ok=True)
                (self._part / name).write_bytes(data)

    def _finish(self):
        self._write_file(LABEL_FILE, json.dumps({'labels': self._labels}).encode())
        if self._zip is not None:
            self._zip.close()
        if self.dest.is_dir():  # a folder cannot be renamed over a full one
            _remove_whole(self.dest)
        self._part.replace(self.dest)


def _remove_whole(path):
    if path.is_dir():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)
