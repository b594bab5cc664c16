"""Pictures, depth maps and meshes of seeds."""

from dataclasses import dataclass
from pathlib import Path

import torch
from tqdm import tqdm

from dnnlib.errors import UserError
from dnnlib.files import make_output_folder
from sampling.subjects import choose_branches, load_generator, make_subject, render_subjects, seed_ws
from shape_utils.files import FORMATS, save_mesh
from shape_utils.mesh import extract_mesh
from torch_utils.images import depth_to_image, image_grid, save_png, to_pil, to_uint8
from torch_utils.memory import naming_memory
from training.rendering.cameras import view_label


@dataclass(frozen=True)
class SampleOptions:
    """What to write; the fields are the options of gen_samples.py, see its --help."""

    network: str
    seeds: list
    outdir: Path
    trunc: float
    trunc_cutoff: int | None
    branch: str
    views: list
    grid: bool
    depth: bool
    shapes: bool
    shape_resolution: int
    shape_level: float
    shape_format: str
    render_resolution: int | None
    noise_mode: str
    batch: int
    device: str

    @property
    def shape_suffixes(self):
        return FORMATS if self.shape_format == 'both' else (self.shape_format,)


@naming_memory('lower --batch or --render-resolution')
def write_samples(options):
    """Write all pictures and meshes of `options`. Raises UserError, at the end, if a subject has no surface."""
    G = load_generator(options.network, options.device)
    branches = choose_branches(G, options.branch)
    make_output_folder(options.outdir)
    pictures, shapeless = {}, []
    with tqdm(total=len(options.seeds), unit='subject') as progress:
        for start in range(0, len(options.seeds), options.batch):
            seeds = options.seeds[start : start + options.batch]
            subjects = [_subject(G, seed, options) for seed in seeds]
            for name, rows in _render(G, subjects, branches, options).items():
                pictures.setdefault(name, []).extend(_keep(name, rows, seeds, options))
            if options.shapes:
                shapeless += filter(None, (_write_shape(G, *pair, options) for pair in zip(seeds, subjects)))
            progress.update(len(seeds))
    if options.grid:
        for name, rows in pictures.items():
            save_png(image_grid(torch.cat(rows), columns=len(options.views)), options.outdir / f'samples_{name}.png')
    if shapeless:
        raise UserError(f'{len(shapeless)} of {len(options.seeds)} subjects have no mesh; {shapeless[0]}')


def _subject(G, seed, options):
    ws = seed_ws(G, [seed], options.trunc, options.trunc_cutoff)
    return make_subject(G, ws, options.noise_mode, seed)


def _render(G, subjects, branches, options):
    """8-bit pictures by name, such as '3d' and '3d_depth': for every subject [views, 3, H, W]."""
    by_view = {}
    for branch in branches:
        for yaw, pitch in options.views:
            label = view_label(G.config, yaw, pitch)
            out = render_subjects(G, subjects, label, branch, options.render_resolution)
            by_view.setdefault(branch, []).append(to_uint8(out['image']).cpu())
            if options.depth:
                by_view.setdefault(f'{branch}_depth', []).append(depth_to_image(out['image_depth']).cpu())
    return {name: list(torch.stack(views, dim=1)) for name, views in by_view.items()}


def _keep(name, rows, seeds, options):
    """The rows that the grid needs; without a grid they are written at once, and none are kept."""
    if options.grid:
        return rows
    for seed, row in zip(seeds, rows):
        for view, image in enumerate(row):
            save_png(to_pil(image), options.outdir / f'seed{seed:04d}_view{view:02d}_{name}.png')
    return []


def _write_shape(G, seed, subject, options):
    """Write the subject's meshes; returns a line that says what went wrong, or None."""
    try:
        mesh = extract_mesh(G, subject.planes, options.shape_resolution, options.shape_level)
    except UserError as error:
        return f'seed {seed}: {error}'
    for suffix in options.shape_suffixes:
        save_mesh(mesh, options.outdir / f'seed{seed:04d}.{suffix}')
