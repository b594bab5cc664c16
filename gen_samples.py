"""Pictures, depth maps and meshes of generated subjects.

python gen_samples.py --network=network-snapshot.pkl --seeds=0-7 --views=-0.4/0,0/0,0.4/0 --outdir=out --shapes
"""

import click

from dnnlib.cli import friendly_errors, refuse_idle
from dnnlib.options import GroupedCommand, config_options
from sampling.samples import GROUPS, SampleOptions, write_samples


@click.command(cls=GroupedCommand, context_settings=dict(max_content_width=120, show_default=True))
@config_options(SampleOptions, GROUPS)
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
