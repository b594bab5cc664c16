"""Makes data sets: a small rendered demo set, or one from photographs with known cameras."""

import pathlib

import click
import numpy as np
import torch
from tqdm import tqdm

from dataset_prep.archive import DatasetWriter, is_zip_name
from dataset_prep.convert import camera_summary, converted_image, load_views
from dataset_prep.demo import demo_items
from dataset_prep.transforms import transforms_files
from dnnlib.cli import friendly_errors, refuse_idle
from dnnlib.params import FiniteRange, UserPath
from training.config import FFHQ_FOCAL
from training.data.camera_checks import check_cameras, seen_scene
from training.data.dataset import LABEL_FILE, DatasetError, image_notes, mirror_label

_POSITIVE = FiniteRange(min=0, min_open=True)
_RESOLUTION = click.IntRange(8, 8192)  # beyond it, a picture fills the memory


def _output_options(command):
    """The options that every subcommand has."""
    for option in (
        click.option('--overwrite', is_flag=True, help='Replace an existing data set.'),
        click.option('--mirror/--no-mirror', default=False, show_default=True, help='Write a mirrored copy after each image.'),
        click.option(
            '--dest', required=True, type=UserPath(), metavar='PATH', help='What to write: a file *.zip, or else a folder.'
        ),
    ):
        command = option(command)
    return command


@click.group()
def main():
    """Make data sets of posed images: a zip or folder of PNG files with dataset.json."""


@main.command()
@_output_options
@click.option('--resolution', type=_RESOLUTION, default=64, show_default=True, help='Pixels per side.')
@click.option('--images', type=click.IntRange(min=1), default=4000, show_default=True, help='Number of images.')
@click.option('--identities', type=click.IntRange(min=1), help='Number of different heads.  [default: one per image]')
@click.option('--seed', type=click.IntRange(min=0), default=0, show_default=True, help='Same seed, same bytes.')
@click.option('--focal', type=_POSITIVE, default=FFHQ_FOCAL, help='In image widths.  [default: 4.2647]')
@click.option(
    '--radius', type=FiniteRange(min=1), default=2.7, show_default=True, help='Distance of the cameras from the origin.'
)
@friendly_errors
def demo(dest, mirror, overwrite, resolution, images, identities, seed, focal, radius):
    """Render simple coloured heads from known cameras: a set to try everything on."""
    items = demo_items(images, resolution, identities or images, seed, focal, radius)
    _write_all(items, [f'image {index}' for index in range(images)], dest, mirror, overwrite)


@main.command('convert')
@click.option(
    '--source', required=True, type=UserPath(), metavar='PATH', help='Folder or zip with transforms.json or dataset.json.'
)
@_output_options
@click.option('--resolution', type=_RESOLUTION, required=True, help='Pixels per side after the crop.')
@click.option(
    '--radius',
    type=_POSITIVE,
    default=2.7,
    show_default=True,
    help='Median distance of the cameras from the origin; for transforms.json only.',
)
@click.option(
    '--axes',
    type=click.Choice(['opengl', 'opencv']),
    default='opengl',
    show_default=True,
    help="The cameras' own axes: opengl is x right, y up, z backward; for transforms.json only.",
)
@click.option(
    '--background',
    type=click.Choice(['black', 'white']),
    default='black',
    show_default=True,
    help='What transparent and masked pixels become: as the preset of the training renders.',
)
@click.option('--max-images', type=click.IntRange(min=1), help='Use only the first so many.  [default: all]')
@click.option('--skip-missing', is_flag=True, help='Go on without images that the camera file names and that are not there.')
@friendly_errors
def convert_photographs(source, dest, mirror, overwrite, resolution, radius, axes, background, max_images, skip_missing):
    """Crop and resize photographs with known cameras, and bring the cameras into this project's form.

    transforms.json: lens distortion is removed, the world moved to where the cameras look, turned so that they stand
    upright around +z, and scaled to the radius. dataset.json: the cameras keep their place.
    """
    _check_apart(pathlib.Path(source).resolve(), pathlib.Path(dest).resolve())
    store, views, notes = load_views(source, radius, axes, skip_missing)
    if not transforms_files(store):
        refuse_idle(('radius', 'axes'), f'on {LABEL_FILE}')
    views = views[:max_images]
    items = (converted_image(store, view, resolution, background) for view in views)
    names = [view.name for view in views]
    for line in (*notes, *image_notes(store, names, background)):
        click.echo(line)
    _write_all(items, names, dest, mirror, overwrite)


def _check_apart(source, dest):
    """Raises DatasetError where a destination would replace its source, or become a part of it; both are resolved paths."""
    if source.is_relative_to(dest):
        raise DatasetError(f'--dest={dest} would replace --source={source}: choose another destination')
    if dest.is_relative_to(source) and not is_zip_name(dest):
        raise DatasetError(
            f'--dest={dest} lies in --source={source}, whose pictures its own would join: choose another destination'
        )


def _write_all(items, names, dest, mirror, overwrite):
    labels = []
    with DatasetWriter(dest, overwrite) as writer:
        for pixels, label in tqdm(items, total=len(names), unit='image', mininterval=0.5):
            labels.append(label)
            writer.add(pixels, label)
            if mirror:
                writer.add(np.ascontiguousarray(pixels[:, ::-1]), mirror_label(torch.as_tensor(label)).numpy())
        check_cameras(labels, names, f'{dest} as converted', seen_scene(np.array(labels)))
    click.echo('\n'.join(camera_summary(np.array(labels))))
    click.echo(f'written           {dest}')


if __name__ == '__main__':
    main()
