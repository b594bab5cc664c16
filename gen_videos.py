"""Videos of generated subjects: a camera moving around them, or subjects turning into each other.

python gen_videos.py --network=network-snapshot.pkl --seeds=0-7 --grid=4x2 --branch=3d --output=orbit.mp4
python gen_videos.py --network=network-snapshot.pkl --seeds=0-3 --epi --output=texture.png
"""

from dataclasses import dataclass
from pathlib import Path

import click
import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image
from tqdm import tqdm

from dnnlib.cli import friendly_errors, refuse_idle
from dnnlib.errors import UserError
from dnnlib.files import make_output_folder
from dnnlib.params import FiniteFloat, FiniteRange, GridSize, SeedList, UserPath
from dnnlib.video import VideoWriter
from metrics.consistency.texture_images import straightness, texture_image
from torch_utils.images import image_grid, save_png, to_uint8
from torch_utils.memory import naming_memory
from training.rendering.cameras import full_orbit, portrait_orbit, view_label
from training.subjects import (BRANCH_CHOICES, choose_branches, closed_path, default_device, load_generator,
                               make_subject, render_subjects, seed_ws)

UPSCALE_FILTERS = {'nearest': Image.Resampling.NEAREST, 'lanczos': Image.Resampling.LANCZOS}


@dataclass(frozen=True)
class VideoOptions:
    """The command line of this script; see its --help."""

    network: str
    seeds: list
    output: Path
    mode: str
    branch: str
    grid: tuple
    frames: int
    fps: int
    yaw_range: float
    pitch_range: float
    full_orbit: bool
    epi: bool
    epi_line: float
    trunc: float
    trunc_cutoff: int | None
    render_resolution: int | None
    upscale: int
    upscale_filter: str
    crf: int
    device: str

    @property
    def cells(self):
        return self.grid[0] * self.grid[1]


@click.command()
@click.option('--network', required=True, type=UserPath(), metavar='PATH', help='Network snapshot; of a folder, the newest one.')
@click.option('--seeds', type=SeedList(), required=True,
              help='Subjects, like 0-15,20; a multiple of the number of grid cells.')
@click.option('--output', type=UserPath(dir_okay=False, path_type=Path), required=True,
              help='The mp4 to write; with --epi, the png.')
@click.option('--mode', type=click.Choice(['orbit', 'interpolate']), default='orbit', show_default=True,
              help='orbit: the subjects one after the other; interpolate: each turns into the next.')
@click.option('--branch', type=click.Choice(BRANCH_CHOICES), default='both', show_default=True,
              help='What to show; both: side by side.')
@click.option('--grid', type=GridSize(), default='1x1', show_default=True, help='Cells of the frame, columns x rows.')
@click.option('--frames', type=click.IntRange(min=1), default=120, show_default=True,
              help='Frames per orbit; interpolate: also from one subject to the next.')
@click.option('--fps', type=click.IntRange(1, 240), default=30, show_default=True, help='Frames per second.')
@click.option('--yaw-range', type=FiniteFloat(), default=0.35, show_default=True, help='Largest yaw in radians.')
@click.option('--pitch-range', type=FiniteRange(-1.5, 1.5), default=0.15, show_default=True,
              help='Largest pitch in radians; full orbit: the constant height above the subject.')
@click.option('--full-orbit', is_flag=True, help='Once around the subject, for objects, without --yaw-range.')
@click.option('--epi', is_flag=True,
              help='Write a spatio-temporal texture image instead: a line of pixels, stacked over yaws from -YAW to YAW.')
@click.option('--epi-line', type=FiniteRange(0, 1, max_open=True), default=0.5, show_default=True,
              help='Which line: share of the height, from the top.')
@click.option('--trunc', type=FiniteRange(min=0), default=0.7, show_default=True, help='Truncation psi; 1: none.')
@click.option('--trunc-cutoff', type=click.IntRange(min=0), help='Truncate only the first so many ws.  [default: all]')
@click.option('--render-resolution', type=click.IntRange(1, 4096),
              help='Pixels per side of the volume render.  [default: the network\'s]')
@click.option('--upscale', type=click.IntRange(1, 16), default=1, show_default=True,
              help='Enlarge frames so many times.')
@click.option('--upscale-filter', type=click.Choice(list(UPSCALE_FILTERS)), default='lanczos', show_default=True)
@click.option('--crf', type=click.IntRange(0, 51), default=18, show_default=True, help='H.264 quality; 0 is lossless.')
@click.option('--device', default=default_device, help='PyTorch device.  [default: cuda where there is one]')
@friendly_errors
def main(**options):
    """Film generated subjects. A subject keeps its w over the orbit: only the camera moves."""
    refuse_idle_options(VideoOptions(**options))
    generate(VideoOptions(**options))


def refuse_idle_options(options):
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


@naming_memory('lower --render-resolution')
def generate(options):
    """Write the video of `options`; a broken-off one leaves no file. With --epi, a texture image."""
    if options.epi:
        return write_texture_images(options)
    if len(options.seeds) % options.cells:
        raise UserError(f'--seeds names {len(options.seeds)} subjects, which do not divide into the {options.cells} '
                        f'cells of --grid={options.grid[0]}x{options.grid[1]}')
    if options.output.suffix.lower() != '.mp4':
        raise UserError(f'--output={options.output} must end in .mp4')
    G = load_generator(options.network, options.device)
    branches = choose_branches(G, options.branch)
    labels = camera_path(G.config, options)
    make_output_folder(options.output.parent)
    with VideoWriter(options.output, options.fps, options.crf) as video:
        total = len(options.seeds) // options.cells * options.frames
        for index, subjects in enumerate(tqdm(casts(G, options), total=total, unit='frame')):
            label = labels[index % options.frames, None]
            video.add(render_frame(G, subjects, label, branches, options))


def write_texture_images(options):
    """Write one picture: a row of texture images per subject, the branches side by side; print how straight they are."""
    if options.output.suffix.lower() != '.png':
        raise UserError(f'--output={options.output} must end in .png with --epi')
    if options.frames < 2:
        raise UserError(f'--epi stacks frames: --frames={options.frames} is too few, take 120')
    G = load_generator(options.network, options.device)
    branches = choose_branches(G, options.branch)
    if options.render_resolution == 1 and branches != ('2d',):
        raise UserError('--render-resolution=1 leaves one pixel of a line, and --epi needs two: give 2 or more, or leave it out')
    labels = view_label(G.config, torch.linspace(-options.yaw_range, options.yaw_range, options.frames))
    make_output_folder(options.output.parent)
    cells, lines = [], []
    for seed, w in zip(tqdm(options.seeds, unit='subject'), seed_ws(G, options.seeds, options.trunc, options.trunc_cutoff)):
        images = [_texture_image(G, make_subject(G, w[None]), labels, branch, options) for branch in branches]
        scores = ', '.join(f'{branch} {straightness(image):.4f}' for branch, image in zip(branches, images))
        lines.append(f'seed {seed}: straightness {scores}')
        cells += images
    width = max(image.shape[-1] for image in cells)
    cells = [F.interpolate(image[None], size=(options.frames, width))[0] for image in cells]
    save_png(image_grid(torch.stack(cells), columns=len(branches)), options.output)
    click.echo('\n'.join(lines))


def _texture_image(G, subject, labels, branch, options):
    """uint8 [3, frames, W] of one subject."""
    frames = [to_uint8(render_subjects(G, [subject], label[None], branch, options.render_resolution)['image']).cpu()
              for label in labels]
    return texture_image(torch.cat(frames), options.epi_line)


def camera_path(config, options):
    """Labels [frames, 25] of one orbit."""
    if options.full_orbit:
        return view_label(config, *full_orbit(options.frames, -options.pitch_range))
    return view_label(config, *portrait_orbit(options.frames, options.yaw_range, options.pitch_range))


def casts(G, options):
    """For every frame of the video the subjects in its cells."""
    ws = seed_ws(G, options.seeds, options.trunc, options.trunc_cutoff)
    if options.mode == 'orbit':
        for group in ws.split(options.cells):
            subjects = [make_subject(G, w[None]) for w in group]
            yield from [subjects] * options.frames
    else:
        path = closed_path(ws.unflatten(0, (-1, options.cells)))
        for frame in range(len(ws) // options.cells * options.frames):
            yield [make_subject(G, w[None]) for w in path(frame / options.frames)]


def render_frame(G, subjects, label, branches, options):
    """One frame, uint8 [H, W, 3]: a grid whose cells show one subject each, the branches side by side."""
    images = [_render_cell(G, subject, label, branches, options) for subject in subjects]
    picture = image_grid(torch.stack(images), columns=options.grid[0])
    return np.asarray(picture.resize([side * options.upscale for side in picture.size],
                                     UPSCALE_FILTERS[options.upscale_filter]))


def _render_cell(G, subject, label, branches, options):
    # Subject by subject: a grid of 512-pixel volume renders at once would only cost memory.
    views = [render_subjects(G, [subject], label, branch, options.render_resolution)['image'][0] for branch in branches]
    height = max(view.shape[-1] for view in views)
    return torch.cat([F.interpolate(to_uint8(view)[None], size=(height, height))[0] for view in views], dim=-1)


if __name__ == '__main__':
    main()
