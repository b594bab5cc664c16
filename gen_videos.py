"""Videos of generated subjects: a camera moving around them, or subjects turning into each other.

python gen_videos.py --network=network-snapshot.pkl --seeds=0-7 --grid=4x2 --branch=3d --output=orbit.mp4
python gen_videos.py --network=network-snapshot.pkl --seeds=0-3 --epi --output=texture.png
python gen_videos.py --network=network-snapshot.pkl --seeds=3 --epi --figure --output=figure.png
"""

from itertools import groupby

import click

from dataset_prep.cameras import read_cameras
from dnnlib.cli import friendly_errors, refuse_all_idle
from dnnlib.options import GroupedCommand, config_options
from sampling.videos import GROUPS, VideoOptions, write_texture_images, write_video


@click.command(cls=GroupedCommand, context_settings=dict(max_content_width=120, show_default=True))
@config_options(VideoOptions, GROUPS)
@friendly_errors
def main(**options):
    """Film generated subjects. A subject keeps its w over the orbit: only the camera moves."""
    options = VideoOptions(**options)
    refuse_all_idle(options.idle())
    if not options.epi:
        return write_video(options, read_cameras)
    for subject, rows in groupby(write_texture_images(options, read_cameras), key=lambda row: row.subject):
        click.echo(f'{subject}: straightness ' + ', '.join(f'{row.branch} {row.straightness:.4f}' for row in rows))


if __name__ == '__main__':
    main()
