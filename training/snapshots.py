"""Snapshots for users: networks as plain data, loadable with torch.load(weights_only=True)."""

import io
import os
import re
import warnings

import click
import torch

from dnnlib.errors import UserError, first_line
from dnnlib.files import replacing
from interop.pickles import is_pickle
from interop.published import load_published, published_augment_p
from torch_utils.checkpoint import copy_to_cpu
from training.config import DiscriminatorConfig, GeneratorConfig
from training.networks.discriminator import DualDiscriminator, PatchDiscriminator
from training.networks.generator import Generator

FORMAT = 'mimic3d-snapshot'
VERSION = 1
CLASSES = {
    'Generator': (Generator, GeneratorConfig),
    'DualDiscriminator': (DualDiscriminator, DiscriminatorConfig),
    'PatchDiscriminator': (PatchDiscriminator, DiscriminatorConfig),
}


class SnapshotError(UserError):
    """A file that is no snapshot, or one that does not fit."""


def networks_to_data(networks):
    """Networks by name as plain data, a copy: of each its class name, configuration and tensors. None is left out."""
    return {
        name: {'class': type(module).__name__, 'config': module.config.to_dict(), 'state': copy_to_cpu(module.state_dict())}
        for name, module in networks.items()
        if module is not None
    }


def network_from_data(entry):
    """The network of one entry of `networks_to_data`, in evaluation mode."""
    build, config_class = CLASSES[entry['class']]
    config = config_class.from_dict(entry['config'])
    with torch.device('meta'):  # a file that claims sizes that its tensors do not have must not fill the memory
        build(config).load_state_dict(entry['state'], assign=True)
    module = build(config)
    module.load_state_dict(entry['state'])
    return module.eval().requires_grad_(False)


def write_snapshot(path, data, about):
    """Write what `networks_to_data` gave, and `about` (plain data); beside first, then renamed. Raises OSError."""
    payload = io.BytesIO()
    torch.save({'format': FORMAT, 'version': VERSION, 'about': about, 'networks': data}, payload)
    with replacing(path) as file:
        file.write(payload.getbuffer())


def read_snapshot(path):
    """The plain data of a snapshot. Raises SnapshotError naming the file and what is wrong with it."""
    if not os.path.isfile(path):
        raise SnapshotError(f'{path}: no such snapshot file')
    try:
        content = torch.load(path, map_location='cpu', weights_only=True)
    except Exception:  # a damaged file fails in many ways, and torch's advice would be to trust it
        raise SnapshotError(f'{path} is no snapshot of this project, or is damaged; give a network-snapshot-*.pkl') from None
    if (
        not isinstance(content, dict)
        or content.get('format') != FORMAT
        or not all(isinstance(content.get(key), kind) for key, kind in (('version', int), ('about', dict), ('networks', dict)))
    ):
        raise SnapshotError(f'{path} holds no networks of this project; give a network-snapshot-*.pkl')
    if content['version'] > VERSION:
        raise SnapshotError(
            f'{path} was written by a newer version of this project (format {content["version"]}); update to open it'
        )
    return content


def moment(images_seen):
    """How files are named after a moment of a run: '000012' for 12 000 images, '000012k345' for 12 345; names sort by time."""
    kimg, rest = divmod(images_seen, 1000)
    return f'{kimg:06d}' + (f'k{rest:03d}' if rest else '')


def newest_snapshot(path):
    """The snapshot that a user's `path` means: the file itself, or of a run's folder the newest one, and then a line says which.

    The numbers in the names decide: times change when files are copied. Raises SnapshotError for a folder that has none.
    """
    if not os.path.isdir(path):
        return path
    names = [
        entry.name for entry in os.scandir(path) if entry.is_file() and re.fullmatch(r'network-snapshot-.+\.pkl', entry.name)
    ]
    if not names:
        raise SnapshotError(
            f'{path} is a folder without a network-snapshot-*.pkl; name the folder of a run that has written one, '
            'or a snapshot itself'
        )
    newest = max(names, key=lambda name: [int(digits) for digits in re.findall(r'\d+', name)])  # 'best' comes before all others
    click.echo(f'{path}: {newest} is its newest snapshot', err=True)
    return os.path.join(path, newest)


def load_networks(path, device='cpu', strict=True):
    """The networks of a snapshot, or of the newest one in a folder, by name: 'G', 'G_ema', 'D', and after stage 2 'D_patch'.

    Pickles that EG3D and Mimic3D have published open, too. Such a file that holds what this project does not know is refused
    with all the names, since images may depend on them; with `strict=False` it opens all the same where every tensor of a
    network is there, and a warning says what was ignored.
    """
    networks, ignored = open_networks(path, strict)
    if ignored:
        warnings.warn(ignored, stacklevel=2)
    return {name: module.to(device) for name, module in networks.items()}


def open_networks(path, strict=True):
    """What `load_networks` returns, on the CPU, and what it would warn of: one line, or ''."""
    path = newest_snapshot(path)
    if os.path.isfile(path) and is_pickle(path):
        return load_published(path, strict)
    content = read_snapshot(path)
    try:
        return {name: network_from_data(entry) for name, entry in content['networks'].items()}, ''
    except Exception as error:  # numbers of another version, or of a file that was edited, fail in many ways
        raise SnapshotError(f'{path} does not fit this version: {first_line(error)}') from None


def load_augment_p(path):
    """ADA's probability when a snapshot was written; 0 where it does not say."""
    if is_pickle(path):
        return published_augment_p(path)
    return float(read_snapshot(path)['about'].get('augment_p', 0.0))


def copy_matching(target, state):
    """Copy the tensors of `state` that `target` has in the same shape.

    Returns the names taken, and those of `target` that were not in `state` or had another shape.
    """
    fitting = {name: state[name] for name in matching(target.state_dict(), state)}
    return list(fitting), target.load_state_dict(fitting, strict=False).missing_keys


def matching(own, state):
    """The names in the state dict `own` that are in `state`, too, with tensors of the same shape."""
    return [name for name, value in own.items() if name in state and state[name].shape == value.shape]
