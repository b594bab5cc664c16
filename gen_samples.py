"""Pictures, depth maps and meshes of generated subjects.

python gen_samples.py --network=network-snapshot.pkl --seeds=0-7 --views=-0.4/0,0/0,0.4/0 --outdir=out --shapes
"""

from pathlib import Path

import click

from dnnlib.cli import friendly_errors, refuse_idle
from dnnlib.params import FiniteFloat, FiniteRange, SeedList, UserPath, ViewList
from sampling.samples import SampleOptions, write_samples
from sampling.subjects import BRANCH_CHOICES, default_device
from shape_utils.files import FORMATS
from shape_utils.mesh import DEFAULT_LEVEL


@click.command()
@click.option('--network', required=True, type=UserPath(), metavar='PATH', help='Network snapshot; of a folder, the newest one.')
@click.option('--seeds', type=SeedList(), required=True, help='One subject each, like 0-15,20.')
@click.option('--outdir', type=UserPath(file_okay=False, path_type=Path), required=True, help='Where the files go.')
@click.option('--trunc', type=FiniteRange(min=0), default=0.7, show_default=True, help='Truncation psi; 1: none.')
@click.option('--trunc-cutoff', type=click.IntRange(min=0), help='Truncate only the first so many ws.  [default: all]')
@click.option('--branch', type=click.Choice(BRANCH_CHOICES), default='both', show_default=True, help='What to render.')
@click.option(
    '--views',
    type=ViewList(),
    default='0/0',
    show_default=True,
    help="yaw/pitch pairs in radians, like -0.4/0,0/0,0.4/0. Positive: to the subject's left, down.",
)
@click.option(
    '--grid/--no-grid',
    default=True,
    show_default=True,
    help='One picture per branch, rows are seeds and columns are views; or one per seed and view.',
)
@click.option('--depth', is_flag=True, help='Write depth maps, too: nearer is brighter.')
@click.option('--shapes', is_flag=True, help='Write a mesh per seed, too (marching cubes).')
@click.option(
    '--shape-resolution', type=click.IntRange(8, 2048), default=256, show_default=True, help='Points per side of the grid.'
)
@click.option(
    '--shape-level', type=FiniteFloat(), default=DEFAULT_LEVEL, show_default=True, help='Density at the surface, per world unit.'
)
@click.option('--shape-format', type=click.Choice([*FORMATS, 'both']), default='both', show_default=True)
@click.option(
    '--render-resolution', type=click.IntRange(1, 4096), help="Pixels per side of the volume render.  [default: the network's]"
)
@click.option(
    '--noise-mode',
    type=click.Choice(['const', 'random', 'none']),
    default='const',
    show_default=True,
    help='Noise of the synthesis; random: another one per seed.',
)
@click.option('--batch', type=click.IntRange(min=1), default=4, show_default=True, help='Subjects rendered at once.')
@click.option('--device', default=default_device, help='PyTorch device.  [default: cuda where there is one]')
@friendly_errors
def main(**options):
    """Render generated subjects; one seed is the same subject in every view, branch and run."""
    if not options['shapes']:
        refuse_idle(('shape_resolution', 'shape_level', 'shape_format'), 'without --shapes')
    if options['trunc'] == 1:
        refuse_idle(('trunc_cutoff',), 'with --trunc=1')
    write_samples(SampleOptions(**options))


if __name__ == '__main__':
    main()
