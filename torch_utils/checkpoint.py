"""Training states on disk: complete or absent, checked when read, the last few kept."""

import hashlib
import io
import os
import re

import torch

from dnnlib.errors import UserError
from dnnlib.files import remove, replacing

MAGIC = b'training-state 1\n'
DIGEST_SIZE = hashlib.sha256().digest_size
PATTERN = re.compile(r'training-state-(\d+)\.pt')


class StateError(UserError):
    """A state that is missing, damaged or of another kind; the message names the file."""


def write_state(path, content):
    """Write `content`, plain data with tensors: beside `path` with a checksum, synced to the disk, then renamed.

    Whatever happens in between, `path` holds its former content or the whole new one. Raises OSError.
    """
    payload = io.BytesIO()
    torch.save(content, payload)
    with replacing(path) as file:
        file.write(MAGIC + hashlib.sha256(payload.getbuffer()).digest())
        file.write(payload.getbuffer())


def read_state(path):
    """What `write_state` wrote, on the CPU. Raises StateError naming the file and what is wrong with it."""
    try:
        with open(path, 'rb') as file:
            magic, digest, payload = file.read(len(MAGIC)), file.read(DIGEST_SIZE), file.read()
    except OSError as error:
        raise StateError(f'{path} cannot be read: {error.strerror}') from None
    if magic != MAGIC:
        raise StateError(f'{path} is no training state')
    if hashlib.sha256(payload).digest() != digest:
        raise StateError(f'{path} is damaged: its checksum does not fit')
    return torch.load(io.BytesIO(payload), map_location='cpu', weights_only=True)


class StateFolder:
    """The states of a run: `training-state-<images seen>.pt` in `folder`, of which the last `keep` stay."""

    def __init__(self, folder, keep=2):
        self.folder, self.keep = folder, keep

    def paths(self):
        """The files, newest first, by images seen: [(images seen, path), ...]."""
        names = os.listdir(self.folder) if os.path.isdir(self.folder) else []
        numbered = [(int(match[1]), os.path.join(self.folder, name)) for name in names if (match := PATTERN.fullmatch(name))]
        return sorted(numbered, reverse=True)

    def save(self, images_seen, content):
        """Write a state; then remove those before the last `keep`, and any later one, which could not be resumed from."""
        write_state(os.path.join(self.folder, f'training-state-{images_seen:09d}.pt'), content)
        paths = self.paths()
        later = [path for number, path in paths if number > images_seen]
        earlier = [path for number, path in paths if number <= images_seen]
        for path in later + earlier[self.keep :]:
            remove(path)

    def load(self, log=print):
        """The newest state that is whole, None where there is none; `log` is told of damaged ones.

        Raises StateError when there are states and all are damaged.
        """
        paths = [path for _, path in self.paths()]
        for path in paths:
            try:
                return read_state(path)
            except StateError as error:
                log(f'{error}; trying the one before')
        if paths:
            raise StateError(
                f'{self.folder}: no training state is whole ({len(paths)} damaged); remove them to start the run '
                'from its first image, or start another with --init-from=<its last snapshot>'
            )
        return None


def copy_to_cpu(value):
    """A copy of plain data in which every tensor lies on the CPU and shares memory with nothing."""
    return map_tensors(lambda tensor: tensor.detach().to('cpu', copy=True), value)


def map_tensors(function, value):
    """Plain data with `function(tensor)` in the place of every tensor."""
    if isinstance(value, torch.Tensor):
        return function(value)
    if isinstance(value, dict):
        return {key: map_tensors(function, item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return type(value)(map_tensors(function, item) for item in value)
    return value
