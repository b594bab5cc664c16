"""Statistics of real images, computed once and kept on disk."""

import functools
import hashlib
import json
import os
import tempfile
import warnings
from pathlib import Path

import numpy as np

from dnnlib.files import cache_path
from metrics.collection import collect
from metrics.images import StoredImages, real_subset
from torch_utils import distributed
from training.data.dataset import FileStore, image_names

_VERSION = 1  # of what is kept; a change of any statistic needs a new one


def real_statistics(wanted, data, task, detector, detector_hash):
    """({(statistic, count): what was found}, hash of the data's content). What was found is the first process's to read.

    wanted: [(statistic, count)], in the same order on every process; data: the ImageDataset of task.data. Every process must
    call it; the missing ones are computed by all together. A file that is damaged is made anew; one that cannot be written
    costs a warning.
    """
    content = distributed.from_first(lambda: content_hash(task.data))
    folder = task.options.get('cache_dir')
    found = {}

    def path_of(statistic, count):
        seed = None if count == len(data) else task.seed
        parts = [
            _VERSION,
            type(statistic).__name__,
            statistic.layer,
            detector_hash,
            content,
            data.resolution,
            data.background,
            task.mirror,
            count,
            seed,
        ]
        name = f'{data.name}-{type(statistic).__name__}-{_digest(parts)}.npz'
        return Path(folder) / name if folder else cache_path(name)

    def load_all():
        for statistic, count in wanted:
            if statistic.cacheable:
                stored = load_arrays(path_of(statistic, count))
                if stored is not None:
                    found[statistic, count] = stored
        return list(found)

    known = distributed.from_first(load_all)
    missing = [key for key in wanted if key not in known]
    for count in sorted({count for _, count in missing}):
        source = StoredImages(data, task, real_subset(data, task.seed, count))
        new = collect(source, [key for key in missing if key[1] == count], detector, task, 'real images')
        found.update(new)
        if distributed.rank() == 0:
            for (statistic, _), values in new.items():
                if statistic.cacheable:
                    save_arrays(path_of(statistic, count), values)
    return found, content


def content_hash(path):
    """Hash of the images of a zip or folder: of their names and check sums.

    A zip's directory holds the check sums; the files of a folder are read, again only when their sizes or times change.
    """
    store = FileStore(path)
    names = image_names(store)
    return _content_hash(str(path), tuple(names), tuple(store.stamp(name) for name in names))


@functools.lru_cache(maxsize=2)
def _content_hash(path, names, stamps):
    store = FileStore(path)
    return _digest([names, [store.checksum(name) for name in names]])


def _digest(values):
    return hashlib.sha256(json.dumps(values).encode()).hexdigest()[:32]


def load_arrays(path):
    """The arrays of a file by name, or None where it is missing or damaged."""
    try:
        with np.load(path, allow_pickle=False) as archive:
            return {name: archive[name] for name in archive.files}
    except Exception:  # damaged files fail in many ways, and all have one cure: to make the file anew
        return None


def save_arrays(path, arrays):
    """Write arrays beside and rename, so that a file is whole whoever else writes it and whenever this is interrupted."""
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        beside = tempfile.NamedTemporaryFile(dir=path.parent, suffix='.tmp', delete=False)
        try:
            with beside:
                np.savez(beside, **arrays)
            os.replace(beside.name, path)
        except BaseException:
            os.unlink(beside.name)
            raise
    except OSError as error:
        warnings.warn(
            f'statistics of the real images are not kept, since {path} cannot be written ({error.strerror}); '
            'name another folder with --cache-dir',
            stacklevel=2,
        )
