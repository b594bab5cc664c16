"""Videos and texture images of seeds: a camera moves around subjects, or subjects turn into each other."""

from dataclasses import MISSING, dataclass
from pathlib import Path

import click
import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image
from tqdm import tqdm

from dnnlib.errors import UserError
from dnnlib.files import make_output_folder
from dnnlib.options import setting
from dnnlib.params import FiniteFloat, FiniteRange, UserPath, grid_size
from dnnlib.video import VideoWriter
from sampling.subjects import RENDERING, SUBJECTS, SubjectOptions, closed_path, make_subject, render_subjects
from sampling.texture_images import straightness
from torch_utils.images import image_grid, save_png, to_uint8
from torch_utils.memory import naming_memory
from training.rendering.cameras import full_orbit, portrait_orbit, view_label

UPSCALE_FILTERS = {'nearest': Image.Resampling.NEAREST, 'lanczos': Image.Resampling.LANCZOS}


VIDEO, CAMERA, TEXTURES = 'Video', 'Camera', 'Texture images'
GROUPS = SUBJECTS, VIDEO, CAMERA, RENDERING, TEXTURES  # headings of --help


@dataclass(frozen=True, kw_only=True)
class VideoOptions(SubjectOptions):
    """What gen_videos.py writes; the fields are its options."""

    output: Path = setting(
        MISSING,
        '--output',
        UserPath(dir_okay=False, path_type=Path),
        'The mp4 to write; with --epi, the png.',
        VIDEO,
        required=True,
    )
    mode: str = setting(
        'orbit',
        '--mode',
        click.Choice(['orbit', 'interpolate']),
        'orbit: the subjects one after the other; interpolate: each turns into the next.',
        VIDEO,
    )
    grid: tuple = setting(
        MISSING,
        '--grid',
        grid_size,
        'Cells of the frame, columns x rows; they divide the number of seeds.',
        VIDEO,
        metavar='GRID',
        default='1x1',
    )
    frames: int = setting(
        120, '--frames', click.IntRange(1), 'Frames per orbit; interpolate: also from one subject to the next.', VIDEO
    )
    fps: int = setting(30, '--fps', click.IntRange(1, 240), 'Frames per second.', VIDEO)
    upscale: int = setting(1, '--upscale', click.IntRange(1, 16), 'Enlarge frames so many times.', VIDEO)
    upscale_filter: str = setting('lanczos', '--upscale-filter', click.Choice(list(UPSCALE_FILTERS)), 'With which filter.', VIDEO)
    crf: int = setting(18, '--crf', click.IntRange(0, 51), 'H.264 quality; 0 is lossless.', VIDEO)
    yaw_range: float = setting(0.35, '--yaw-range', FiniteFloat(), 'Largest yaw in radians.', CAMERA)
    pitch_range: float = setting(
        0.15,
        '--pitch-range',
        FiniteRange(-1.5, 1.5),
        'Largest pitch in radians; full orbit: the constant height above the subject.',
        CAMERA,
    )
    full_orbit: bool = setting(
        False, '--full-orbit', click.BOOL, 'Once around the subject, for objects, without --yaw-range.', CAMERA, is_flag=True
    )
    epi: bool = setting(
        False,
        '--epi',
        click.BOOL,
        'Write a spatio-temporal texture image instead: a line of pixels, stacked over yaws from -YAW to YAW.',
        TEXTURES,
        is_flag=True,
    )
    epi_line: float = setting(
        0.5, '--epi-line', FiniteRange(0, 1, max_open=True), 'Which line: share of the height, from the top.', TEXTURES
    )

    @property
    def cells(self):
        return self.grid[0] * self.grid[1]


@naming_memory('lower --render-resolution')
def write_video(options):
    """Write the video of `options`; a broken-off one leaves no file."""
    if len(options.seeds) % options.cells:
        raise UserError(
            f'--seeds names {len(options.seeds)} subjects, which do not divide into the {options.cells} '
            f'cells of --grid={options.grid[0]}x{options.grid[1]}'
        )
    if options.output.suffix.lower() != '.mp4':
        raise UserError(f'--output={options.output} must end in .mp4')
    G, branches = options.load()
    if options.full_orbit:
        orbit = full_orbit(options.frames, -options.pitch_range)
    else:
        orbit = portrait_orbit(options.frames, options.yaw_range, options.pitch_range)
    labels = view_label(G.config, *orbit)
    make_output_folder(options.output.parent)
    with VideoWriter(options.output, options.fps, options.crf) as video:
        total = len(options.seeds) // options.cells * options.frames
        for index, subjects in enumerate(tqdm(casts(G, options), total=total, unit='frame')):
            video.add(render_frame(G, subjects, labels[index % options.frames, None], branches, options))


@naming_memory('lower --render-resolution')
def write_texture_images(options):
    """Write one picture: a row of texture images per subject, the branches side by side.

    Returns (seed, {branch: straightness}) of every subject.
    """
    if options.output.suffix.lower() != '.png':
        raise UserError(f'--output={options.output} must end in .png with --epi')
    if options.frames < 2:
        raise UserError(f'--epi stacks frames: --frames={options.frames} is too few, take 120')
    G, branches = options.load()
    if options.render_resolution == 1 and branches != ('2d',):
        raise UserError('--render-resolution=1 leaves one pixel of a line, and --epi needs two: give 2 or more, or leave it out')
    labels = view_label(G.config, torch.linspace(-options.yaw_range, options.yaw_range, options.frames))
    make_output_folder(options.output.parent)
    cells, scores = [], []
    for seed, w in zip(tqdm(options.seeds, unit='subject'), options.ws(G, options.seeds)):
        images = [_texture_image(G, make_subject(G, w[None]), labels, branch, options) for branch in branches]
        scores.append((seed, dict(zip(branches, map(straightness, images)))))
        cells += images
    width = max(image.shape[-1] for image in cells)
    cells = [F.interpolate(image[None], size=(options.frames, width))[0] for image in cells]
    save_png(image_grid(torch.stack(cells), columns=len(branches)), options.output)
    return scores


def _texture_image(G, subject, labels, branch, options):
    """uint8 [3, frames, W] of one subject: row t is a line of frame t, --epi-line of the height from the top."""
    frames = [render_subjects(G, [subject], label[None], branch, options.render_resolution)['image'][0] for label in labels]
    line = int(options.epi_line * frames[0].shape[1])
    return torch.stack([to_uint8(frame[:, line]).cpu() for frame in frames], dim=1)


def casts(G, options):
    """For every frame of the video the subjects in its cells."""
    ws = options.ws(G, options.seeds)
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
    return np.asarray(picture.resize([side * options.upscale for side in picture.size], UPSCALE_FILTERS[options.upscale_filter]))


def _render_cell(G, subject, label, branches, options):
    # Subject by subject: a grid of 512-pixel volume renders at once would only cost memory.
    views = [render_subjects(G, [subject], label, branch, options.render_resolution)['image'][0] for branch in branches]
    height = max(view.shape[-1] for view in views)
    return torch.cat([F.interpolate(to_uint8(view)[None], size=(height, height))[0] for view in views], dim=-1)
