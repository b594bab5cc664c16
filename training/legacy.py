"""Checkpoints of the published EG3D and Mimic3D releases: look into them, convert them, rebuild their networks.

python -m training.legacy info IN.pkl [--lenient]
python -m training.legacy convert IN.pkl OUT.pkl [--safetensors OUT.safetensors] [--lenient]
"""

import json
import os

import click

from dnnlib.cli import friendly_errors
from dnnlib.errors import UserError
from dnnlib.files import make_output_folder, replacing
from dnnlib.params import UserPath
from interop.pickles import LegacyError
from interop.published import build_from_reference
from training.snapshots import load_augment_p, networks_to_data, open_networks, write_snapshot

__all__ = ['LegacyError', 'build_from_reference']


def save_safetensors(path, networks):
    """All tensors as '<network>.<name>', classes and configurations as JSON in the metadata."""
    try:
        from safetensors.torch import save
    except ImportError:
        raise UserError('--safetensors needs the package safetensors: pip install safetensors') from None
    entries = networks_to_data(networks)
    tensors = {f'{name}.{key}': value for name, entry in entries.items() for key, value in entry['state'].items()}
    metadata = {name: json.dumps({'class': entry['class'], 'config': entry['config']}) for name, entry in entries.items()}
    with replacing(path) as file:
        file.write(save(tensors, {'format': 'pt', **metadata}))


@click.group()
def main():
    """Look into EG3D's and Mimic3D's published pickles, and convert them, without running anything in them."""


def opened(source, lenient):
    """(networks, what was ignored), which is printed, too."""
    networks, ignored = open_networks(source, strict=not lenient)
    if ignored:
        click.echo(f'Warning: {ignored}', err=True)
    return networks, ignored


lenient_option = click.option('--lenient', is_flag=True, help='Ignore what this project does not know, and say what it was.')


@main.command()
@click.argument('source', type=UserPath(exists=True, dir_okay=False))
@lenient_option
@friendly_errors
def info(source, lenient):
    """Print what SOURCE holds."""
    for name, module in opened(source, lenient)[0].items():
        count = sum(parameter.numel() for parameter in module.parameters())
        print(f'{name}: {type(module).__name__}, {count / 1e6:.2f} M parameters')
        print(json.dumps(module.config.to_dict(), indent=2))


@main.command()
@click.argument('source', type=UserPath(exists=True, dir_okay=False))
@click.argument('target', type=UserPath(dir_okay=False))
@click.option('--safetensors', type=UserPath(dir_okay=False), help='Also write all tensors to this file.')
@lenient_option
@friendly_errors
def convert(source, target, safetensors, lenient):
    """Write the networks of SOURCE to TARGET in this project's format."""
    for path in filter(None, (target, safetensors)):
        make_output_folder(os.path.dirname(path) or '.')
    networks, ignored = opened(source, lenient)
    if safetensors:
        save_safetensors(safetensors, networks)
    about = {'converted': True, 'ignored': ignored, 'augment_p': load_augment_p(source)}
    write_snapshot(target, networks_to_data(networks), about)
    print(f'{target}: {", ".join(networks)}')


if __name__ == '__main__':
    main()
