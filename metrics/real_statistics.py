"""Statistics of real images, computed once and kept on disk."""

import hashlib
import json
import warnings
from pathlib import Path

import numpy as np

from dnnlib.files import cache_path, replacing
from metrics.images import StoredImages, real_subset
from metrics.statistics import collect_statistics
from torch_utils import distributed

_VERSION = 1  # of what is kept; a change of any statistic needs a new one


def real_statistics(wanted, data, content, task, detector, detector_hash):
    """{(statistic, count): what was found}, for the first process to read.

    wanted: [(Statistic, count)], in the same order on every process; data: the ImageDataset of task.data, content: its
    `image_hash`. Every process must call it; the missing ones are computed by all together. Features are kept, patches, which are
    much larger, are not. A file that is damaged is made anew; one that cannot be written costs a warning.
    """

    def path_of(statistic, count):
        name, seed = statistic.collector.__name__, None if count == len(data) else task.seed
        depends_on = [name, statistic.layer, detector_hash, content, data.resolution, data.background, task.mirror, count, seed]
        key = hashlib.sha256(json.dumps([_VERSION, *depends_on]).encode()).hexdigest()[:32]
        file, folder = f'{data.name}-{name}-{key}.npz', task.options.get('cache_dir')
        return Path(folder) / file if folder else cache_path(file)

    def load_all():
        stored = {key: load_arrays(path_of(*key)) for key in wanted if key[0].layer}
        found.update((key, arrays) for key, arrays in stored.items() if arrays is not None)
        return list(found)

    found = {}
    known = distributed.from_first(load_all)
    missing = [key for key in wanted if key not in known]
    for count in sorted({count for _, count in missing}):
        source = StoredImages(data, task, real_subset(data, task.seed, count))
        new = collect_statistics(source, [key for key in missing if key[1] == count], detector, task, 'real images')
        found.update(new)
        if distributed.rank() == 0:
            for key, arrays in new.items():
                if key[0].layer:
                    save_arrays(path_of(*key), arrays)
    return found


def load_arrays(path):
    """The arrays of a file by name, or None where it is missing or damaged."""
    try:
        with np.load(path, allow_pickle=False) as archive:
            return {name: archive[name] for name in archive.files}
    except Exception:  # damaged files fail in many ways, and all have one cure: to make the file anew
        return None


def save_arrays(path, arrays):
    """Write a file of arrays, whole or not at all; a warning says where it cannot be written."""
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with replacing(path) as file:
            np.savez(file, **arrays)
    except OSError as error:
        warnings.warn(
            f'statistics of the real images are not kept, since {path} cannot be written ({error.strerror}); '
            'name another folder with --cache-dir',
            stacklevel=2,
        )
