"""Videos of generated subjects: a camera moving around them, or subjects turning into each other.

python gen_videos.py --network=network-snapshot.pkl --seeds=0-7 --grid=4x2 --branch=3d --output=orbit.mp4
python gen_videos.py --network=network-snapshot.pkl --seeds=0-3 --epi --output=texture.png
"""

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
    for name, scores in write_texture_images(options, read_cameras):
        click.echo(f'{name}: straightness ' + ', '.join(f'{branch} {score:.4f}' for branch, score in scores.items()))


if __name__ == '__main__':
    main()
