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
from sampling.figures import GEOMETRY_PIXELS, BranchRow, draw_branches
from sampling.geometry import SURFACES, SurfaceOptions
from sampling.subjects import CAMERAS, RENDERING, SUBJECTS, SubjectOptions, choose_branches, closed_path, make_subject
from sampling.texture_images import straightness
from torch_utils.images import image_grid, save_png, to_uint8
from torch_utils.memory import naming_memory
from training.rendering.cameras import full_orbit, portrait_orbit

UPSCALE_FILTERS = {'nearest': Image.Resampling.NEAREST, 'lanczos': Image.Resampling.LANCZOS}


_IDLE_WITH_EPI = ['mode', 'grid', 'fps', 'pitch_range', 'full_orbit', 'upscale', 'upscale_filter', 'crf', 'geometry']
VIDEO, TEXTURES = 'Video', 'Texture images'
GROUPS = SUBJECTS, VIDEO, CAMERAS, RENDERING, SURFACES, TEXTURES  # headings of --help


@dataclass(frozen=True, kw_only=True)
class VideoOptions(SubjectOptions, SurfaceOptions):
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
    yaw_range: float = setting(0.35, '--yaw-range', FiniteFloat(), 'Largest yaw in radians.', CAMERAS)
    pitch_range: float = setting(
        0.15,
        '--pitch-range',
        FiniteRange(-1.5, 1.5),
        'Largest pitch in radians; full orbit: the constant height above the subject.',
        CAMERAS,
    )
    full_orbit: bool = setting(
        False, '--full-orbit', click.BOOL, 'Once around the subject, for objects, without --yaw-range.', CAMERAS, is_flag=True
    )
    geometry: bool = setting(
        False,
        '--geometry',
        click.BOOL,
        "Show each branch's surface beside its image, shaded, as --shapes of gen_samples.py would write it.",
        SURFACES,
        is_flag=True,
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
    figure: bool = setting(
        False,
        '--figure',
        click.BOOL,
        'With --epi, a labelled figure: a row per subject and branch, with image, geometry and texture image.',
        TEXTURES,
        is_flag=True,
    )

    @property
    def cells(self):
        return self.grid[0] * self.grid[1]

    def idle(self):
        return (
            (self.epi, _IDLE_WITH_EPI, 'with --epi'),
            (not self.epi, ['epi_line', 'figure'], 'without --epi'),
            (not (self.geometry or self.figure), ['shape_resolution', 'shape_level'], 'without --geometry or --figure'),
            (self.cameras is not None, ['frames', 'yaw_range', 'pitch_range', 'full_orbit'], 'with --cameras'),
            (self.full_orbit, ['yaw_range'], 'with --full-orbit'),
            (self.upscale == 1, ['upscale_filter'], 'without --upscale'),
            *super().idle(),
        )

    def angles(self):
        """Yaw and pitch [frames] of the move of the camera, radians."""
        if self.epi:
            yaw = torch.linspace(-self.yaw_range, self.yaw_range, self.frames)
            return yaw, torch.zeros_like(yaw)
        if self.full_orbit:
            return full_orbit(self.frames, -self.pitch_range)
        return portrait_orbit(self.frames, self.yaw_range, self.pitch_range)

    def prepare(self, read_cameras):
        """The generator, the branches, the Cameras of a move and all ws [N, num_ws, w_dim]. Raises UserError."""
        G, branches = self.load()
        cameras = self.choose_cameras(G, read_cameras, *self.angles())
        make_output_folder(self.output.parent)
        return G, branches, cameras, self.subjects.ws(G, range(len(self.subjects)), self.trunc, self.trunc_cutoff)


@naming_memory('lower --render-resolution')
def write_video(options, read_cameras):
    """Write the video of `options`; a broken-off one leaves no file. read_cameras: see `SubjectOptions.choose_cameras`."""
    if len(options.subjects) % options.cells:
        raise UserError(
            f'{options.subjects.option} names {len(options.subjects)} subjects, which do not divide into the {options.cells} '
            f'cells of --grid={options.grid[0]}x{options.grid[1]}'
        )
    if options.output.suffix.lower() != '.mp4':
        raise UserError(f'--output={options.output} must end in .mp4')
    G, branches, cameras, ws = options.prepare(read_cameras)
    with VideoWriter(options.output, options.fps, options.crf) as video:
        total = len(ws) // options.cells * len(cameras)
        for index, subjects in enumerate(tqdm(casts(G, ws, len(cameras), options), total=total, unit='frame')):
            label = cameras.labels[index % len(cameras), None]
            video.add(render_frame(G, subjects, label, branches, options))
    options.record(Path(f'{options.output}.cameras.json'), cameras, [ws])


@naming_memory('lower --render-resolution')
def write_texture_images(options, read_cameras):
    """Write one picture: a row of texture images per subject, the branches side by side.

    With --figure, a labelled figure of the branches instead. read_cameras: see `SubjectOptions.choose_cameras`.
    Returns the BranchRows.
    """
    if options.output.suffix.lower() != '.png':
        raise UserError(f'--output={options.output} must end in .png with --epi')
    if options.frames < 2:
        raise UserError(f'--epi stacks frames: --frames={options.frames} is too few, take 120')
    if options.render_resolution == 1 and options.branch != '2d':
        raise UserError('--render-resolution=1 leaves one pixel of a line, and --epi needs two: give 2 or more, or leave it out')
    G, branches, cameras, ws = options.prepare(read_cameras)
    if len(cameras) < 2:
        raise UserError(f'--epi stacks frames: {options.cameras} has a single camera, give a smooth move')
    rows = []
    for index, w in enumerate(tqdm(ws, unit='subject')):
        subject = make_subject(G, w[None], residual='3d' in branches)
        rows += [_branch_row(G, subject, options.subjects.name(index), branch, cameras.labels, options) for branch in branches]
    if options.figure:
        draw_branches(rows, options.epi_line, options.output)
    else:
        _write_textures([row.texture for row in rows], len(branches), options.output)
    options.record(Path(f'{options.output}.cameras.json'), cameras, [ws])
    return rows


def _branch_row(G, subject, name, branch, labels, options):
    """The BranchRow of a subject over a move of the camera, labels [T, 25], whose middle is what a figure shows it from."""
    texture = _texture_image(G, subject, labels, branch, options)
    row = BranchRow(name, branch, texture, straightness(texture))
    if not options.figure:
        return row
    label = labels[len(labels) // 2, None]
    image = options.render(G, [subject], label, branch)['image'][0]
    geometry = options.shaded(G, subject, label, branch, max(GEOMETRY_PIXELS, image.shape[-1]))
    return row._replace(image=to_uint8(image).cpu(), geometry=to_uint8(geometry).cpu())


def _texture_image(G, subject, labels, branch, options):
    """uint8 [3, frames, W] of one subject: row t is a line of frame t, --epi-line of the height from the top."""
    frames = [options.render(G, [subject], label[None], branch)['image'][0] for label in labels]
    line = int(options.epi_line * frames[0].shape[1])
    return torch.stack([to_uint8(frame[:, line]).cpu() for frame in frames], dim=1)


def _write_textures(textures, columns, path):
    """Write texture images [3, T, W] as one picture; all become as wide as the widest."""
    width = max(texture.shape[-1] for texture in textures)
    cells = [F.interpolate(texture[None], size=(texture.shape[1], width))[0] for texture in textures]
    save_png(image_grid(torch.stack(cells), columns=columns), path)


def casts(G, ws, frames, options):
    """For every frame of the video the subjects in its cells; ws: [N, num_ws, w_dim]; frames: per move of the camera."""
    residual = '3d' in choose_branches(G, options.branch)
    if options.mode == 'orbit':
        for group in ws.split(options.cells):
            subjects = [make_subject(G, w[None], residual=residual) for w in group]
            yield from [subjects] * frames
    else:
        path = closed_path(ws.unflatten(0, (-1, options.cells)))
        for frame in range(len(ws) // options.cells * frames):
            yield [make_subject(G, w[None], residual=residual) for w in path(frame / frames)]


def render_frame(G, subjects, label, branches, options):
    """One frame, uint8 [H, W, 3]: a grid whose cells show one subject each, the branches side by side."""
    images = [_render_cell(G, subject, label, branches, options) for subject in subjects]
    picture = image_grid(torch.stack(images), columns=options.grid[0])
    return np.asarray(picture.resize([side * options.upscale for side in picture.size], UPSCALE_FILTERS[options.upscale_filter]))


def _render_cell(G, subject, label, branches, options):
    # Subject by subject: a grid of 512-pixel volume renders at once would only cost memory.
    views = [view for branch in branches for view in _views(G, subject, label, branch, options)]
    height = max(view.shape[-1] for view in views)
    return torch.cat([F.interpolate(to_uint8(view)[None], size=(height, height))[0] for view in views], dim=-1)


def _views(G, subject, label, branch, options):
    """What a cell shows of a branch: its image, and with --geometry its surface."""
    image = options.render(G, [subject], label, branch)['image'][0]
    return [image, options.shaded(G, subject, label, branch, image.shape[-1])] if options.geometry else [image]
