"""Videos of generated subjects: a camera moving around them, or subjects turning into each other.

python gen_videos.py --network=network-snapshot.pkl --seeds=0-7 --grid=4x2 --branch=3d --output=orbit.mp4
python gen_videos.py --network=network-snapshot.pkl --seeds=0-3 --epi --output=texture.png
"""

from pathlib import Path

import click

from dnnlib.cli import friendly_errors, refuse_idle
from dnnlib.params import FiniteFloat, FiniteRange, GridSize, SeedList, UserPath
from sampling.subjects import BRANCH_CHOICES, default_device
from sampling.videos import UPSCALE_FILTERS, VideoOptions, write_texture_images, write_video


@click.command()
@click.option('--network', required=True, type=UserPath(), metavar='PATH', help='Network snapshot; of a folder, the newest one.')
@click.option('--seeds', type=SeedList(), required=True, help='Subjects, like 0-15,20; a multiple of the number of grid cells.')
@click.option(
    '--output', type=UserPath(dir_okay=False, path_type=Path), required=True, help='The mp4 to write; with --epi, the png.'
)
@click.option(
    '--mode',
    type=click.Choice(['orbit', 'interpolate']),
    default='orbit',
    show_default=True,
    help='orbit: the subjects one after the other; interpolate: each turns into the next.',
)
@click.option(
    '--branch', type=click.Choice(BRANCH_CHOICES), default='both', show_default=True, help='What to show; both: side by side.'
)
@click.option('--grid', type=GridSize(), default='1x1', show_default=True, help='Cells of the frame, columns x rows.')
@click.option(
    '--frames',
    type=click.IntRange(min=1),
    default=120,
    show_default=True,
    help='Frames per orbit; interpolate: also from one subject to the next.',
)
@click.option('--fps', type=click.IntRange(1, 240), default=30, show_default=True, help='Frames per second.')
@click.option('--yaw-range', type=FiniteFloat(), default=0.35, show_default=True, help='Largest yaw in radians.')
@click.option(
    '--pitch-range',
    type=FiniteRange(-1.5, 1.5),
    default=0.15,
    show_default=True,
    help='Largest pitch in radians; full orbit: the constant height above the subject.',
)
@click.option('--full-orbit', is_flag=True, help='Once around the subject, for objects, without --yaw-range.')
@click.option(
    '--epi',
    is_flag=True,
    help='Write a spatio-temporal texture image instead: a line of pixels, stacked over yaws from -YAW to YAW.',
)
@click.option(
    '--epi-line',
    type=FiniteRange(0, 1, max_open=True),
    default=0.5,
    show_default=True,
    help='Which line: share of the height, from the top.',
)
@click.option('--trunc', type=FiniteRange(min=0), default=0.7, show_default=True, help='Truncation psi; 1: none.')
@click.option('--trunc-cutoff', type=click.IntRange(min=0), help='Truncate only the first so many ws.  [default: all]')
@click.option(
    '--render-resolution', type=click.IntRange(1, 4096), help="Pixels per side of the volume render.  [default: the network's]"
)
@click.option('--upscale', type=click.IntRange(1, 16), default=1, show_default=True, help='Enlarge frames so many times.')
@click.option('--upscale-filter', type=click.Choice(list(UPSCALE_FILTERS)), default='lanczos', show_default=True)
@click.option('--crf', type=click.IntRange(0, 51), default=18, show_default=True, help='H.264 quality; 0 is lossless.')
@click.option('--device', default=default_device, help='PyTorch device.  [default: cuda where there is one]')
@friendly_errors
def main(**options):
    """Film generated subjects. A subject keeps its w over the orbit: only the camera moves."""
    options = VideoOptions(**options)
    refuse_options_of_other_modes(options)
    if not options.epi:
        return write_video(options)
    for seed, scores in write_texture_images(options):
        click.echo(f'seed {seed}: straightness ' + ', '.join(f'{branch} {score:.4f}' for branch, score in scores.items()))


def refuse_options_of_other_modes(options):
    if options.epi:
        refuse_idle(('mode', 'grid', 'fps', 'pitch_range', 'full_orbit', 'upscale', 'upscale_filter', 'crf'), 'with --epi')
    else:
        refuse_idle(('epi_line',), 'without --epi')
    if options.full_orbit:
        refuse_idle(('yaw_range',), 'with --full-orbit')
    if options.upscale == 1:
        refuse_idle(('upscale_filter',), 'without --upscale')
    if options.trunc == 1:
        refuse_idle(('trunc_cutoff',), 'with --trunc=1')


if __name__ == '__main__':
    main()
