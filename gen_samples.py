"""Pictures, depth maps and meshes of generated subjects.

python gen_samples.py --network=network-snapshot.pkl --seeds=0-7 --views=-0.4/0,0/0,0.4/0 --outdir=out --shapes
"""

import click

from dataset_prep.cameras import read_cameras
from dnnlib.cli import friendly_errors, refuse_all_idle
from dnnlib.options import GroupedCommand, config_options
from sampling.samples import GROUPS, SampleOptions, write_samples


@click.command(cls=GroupedCommand, context_settings=dict(max_content_width=120, show_default=True))
@config_options(SampleOptions, GROUPS)
@friendly_errors
def main(**options):
    """Render generated subjects; one seed is the same subject in every view, branch and run."""
    options = SampleOptions(**options)
    refuse_all_idle(options.idle())
    write_samples(options, read_cameras)


if __name__ == '__main__':
    main()
