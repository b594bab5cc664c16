"""Pictures, depth maps and meshes of seeds."""

from dataclasses import MISSING, dataclass
from pathlib import Path

import click
import torch
from tqdm import tqdm

from dnnlib.errors import UserError
from dnnlib.files import make_output_folder
from dnnlib.options import setting
from dnnlib.params import FiniteFloat, UserPath, view_list
from sampling.subjects import RENDERING, SUBJECTS, SubjectOptions, make_subject, render_subjects
from shape_utils.files import FORMATS, save_mesh
from shape_utils.mesh import DEFAULT_LEVEL, extract_mesh
from torch_utils.images import depth_to_image, image_grid, save_png, to_pil, to_uint8
from torch_utils.memory import naming_memory
from training.rendering.cameras import view_label

PICTURES, MESHES = 'Pictures', 'Meshes'
GROUPS = SUBJECTS, RENDERING, PICTURES, MESHES  # headings of --help


@dataclass(frozen=True, kw_only=True)
class SampleOptions(SubjectOptions):
    """What gen_samples.py writes; the fields are its options."""

    outdir: Path = setting(
        MISSING, '--outdir', UserPath(file_okay=False, path_type=Path), 'Where the files go.', PICTURES, required=True
    )
    views: list = setting(
        MISSING,
        '--views',
        view_list,
        "yaw/pitch pairs in radians, like -0.4/0,0/0,0.4/0. Positive: to the subject's left, down.",
        PICTURES,
        metavar='VIEWS',
        default='0/0',
    )
    grid: bool = setting(
        True,
        '--grid/--no-grid',
        click.BOOL,
        'One picture per branch, rows are seeds and columns are views; or one per seed and view.',
        PICTURES,
    )
    depth: bool = setting(False, '--depth', click.BOOL, 'Write depth maps, too: nearer is brighter.', PICTURES, is_flag=True)
    noise_mode: str = setting(
        'const',
        '--noise-mode',
        click.Choice(['const', 'random', 'none']),
        'Noise of the synthesis; random: another one per seed.',
        RENDERING,
    )
    batch: int = setting(4, '--batch', click.IntRange(1), 'Subjects rendered at once.', RENDERING)
    shapes: bool = setting(False, '--shapes', click.BOOL, 'Write a mesh per seed, too (marching cubes).', MESHES, is_flag=True)
    shape_resolution: int = setting(256, '--shape-resolution', click.IntRange(8, 2048), 'Points per side of the grid.', MESHES)
    shape_level: float = setting(DEFAULT_LEVEL, '--shape-level', FiniteFloat(), 'Density at the surface, per world unit.', MESHES)
    shape_format: str = setting('both', '--shape-format', click.Choice([*FORMATS, 'both']), 'Of the meshes.', MESHES)


@naming_memory('lower --batch or --render-resolution')
def write_samples(options):
    """Write all pictures and meshes of `options`. Raises UserError, at the end, if a subject has no surface."""
    G, branches = options.load()
    make_output_folder(options.outdir)
    pictures, shapeless = {}, []
    batches = [options.seeds[start : start + options.batch] for start in range(0, len(options.seeds), options.batch)]
    for seeds in tqdm(batches, unit='batch'):
        subjects = [make_subject(G, options.ws(G, [seed]), options.noise_mode, seed) for seed in seeds]
        for name, rows in _render(G, subjects, branches, options).items():
            if options.grid:
                pictures.setdefault(name, []).extend(rows)
            else:
                _write_pictures(name, rows, seeds, options)
        if options.shapes:
            shapeless += filter(None, (_write_shape(G, *pair, options) for pair in zip(seeds, subjects)))
    for name, rows in pictures.items():
        save_png(image_grid(torch.cat(rows), columns=len(options.views)), options.outdir / f'samples_{name}.png')
    if shapeless:
        raise UserError(f'{len(shapeless)} of {len(options.seeds)} subjects have no mesh; {shapeless[0]}')


def _render(G, subjects, branches, options):
    """8-bit pictures by name, such as '3d' and '3d_depth': for every subject [views, 3, H, W]."""
    by_view = {}
    for branch in branches:
        for yaw, pitch in options.views:
            out = render_subjects(G, subjects, view_label(G.config, yaw, pitch), branch, options.render_resolution)
            by_view.setdefault(branch, []).append(to_uint8(out['image']).cpu())
            if options.depth:
                by_view.setdefault(f'{branch}_depth', []).append(depth_to_image(out['image_depth']).cpu())
    return {name: list(torch.stack(views, dim=1)) for name, views in by_view.items()}


def _write_pictures(name, rows, seeds, options):
    for seed, row in zip(seeds, rows):
        for view, image in enumerate(row):
            save_png(to_pil(image), options.outdir / f'seed{seed:04d}_view{view:02d}_{name}.png')


def _write_shape(G, seed, subject, options):
    """Write the subject's meshes; returns a line that says what went wrong, or None."""
    try:
        mesh = extract_mesh(G, subject.planes, options.shape_resolution, options.shape_level)
    except UserError as error:
        return f'seed {seed}: {error}'
    for suffix in FORMATS if options.shape_format == 'both' else (options.shape_format,):
        save_mesh(mesh, options.outdir / f'seed{seed:04d}.{suffix}')
