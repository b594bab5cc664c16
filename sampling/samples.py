"""Pictures, depth maps and meshes of seeds."""

from dataclasses import MISSING, dataclass
from pathlib import Path

import click
import torch
from tqdm import tqdm

from dnnlib.errors import UserError
from dnnlib.files import make_output_folder
from dnnlib.options import setting
from dnnlib.params import UserPath, name_list, number_list, view_list
from sampling.cameras import save_array
from sampling.geometry import SURFACES, SurfaceOptions
from sampling.plane_pictures import PLANES, PlaneOptions, draw_planes
from sampling.subjects import CAMERAS, RENDERING, SUBJECTS, make_subject
from shape_utils.files import FORMATS, save_mesh
from shape_utils.mesh import extract_mesh
from torch_utils.images import depth_to_image, image_grid, save_png, to_pil, to_uint8, with_headings
from torch_utils.memory import naming_memory

PICTURES = 'Pictures'
GROUPS = SUBJECTS, PICTURES, CAMERAS, RENDERING, SURFACES, PLANES  # headings of --help


def mesh_formats(text):
    """`ply,obj` -> ('ply', 'obj'); `all` -> all of FORMATS."""
    names = tuple(FORMATS) if text == 'all' else name_list(text)
    wrong = [name for name in names if name not in FORMATS]
    if wrong or not names:
        raise click.BadParameter(f'{text!r}: meshes are written as {", ".join(FORMATS)}, or all; write them like ply,glb')
    return names


@dataclass(frozen=True, kw_only=True)
class SampleOptions(PlaneOptions, SurfaceOptions):
    """What gen_samples.py writes; the fields are its options."""

    trunc: tuple = setting(
        MISSING,
        '--trunc',
        number_list,
        'Truncation psi; 1: none; negative: the opposites. Several, like -0.5,0,0.5,1: a block of columns each.',
        SUBJECTS,
        metavar='PSIS',
        default='0.7',
    )
    outdir: Path = setting(
        MISSING, '--outdir', UserPath(file_okay=False, path_type=Path), 'Where the files go.', PICTURES, required=True
    )
    views: list = setting(
        MISSING,
        '--views',
        view_list,
        "yaw/pitch pairs in radians, like -0.4/0,0/0,0.4/0. Positive: to the subject's left, down.",
        CAMERAS,
        metavar='VIEWS',
        default='0/0',
    )
    grid: bool = setting(
        True,
        '--grid/--no-grid',
        click.BOOL,
        'One picture per branch, rows are subjects and columns are views; or one per subject and view.',
        PICTURES,
    )
    depth: bool = setting(
        False, '--depth', click.BOOL, 'Write depth maps, too: nearer is brighter; and their numbers.', PICTURES, is_flag=True
    )
    noise_mode: str = setting(
        'const',
        '--noise-mode',
        click.Choice(['const', 'random', 'none']),
        'Noise of the synthesis; random: another one per seed.',
        RENDERING,
    )
    batch: int = setting(4, '--batch', click.IntRange(1), 'Subjects rendered at once.', RENDERING)
    shapes: bool = setting(
        False, '--shapes', click.BOOL, 'Write a mesh per subject, too (marching cubes).', SURFACES, is_flag=True
    )
    shape_format: tuple = setting(
        MISSING,
        '--shape-format',
        mesh_formats,
        f'Of the meshes: some of {", ".join(FORMATS)}, or all; STL has no colours.',
        SURFACES,
        metavar='NAMES',
        default='ply,glb',
    )

    def idle(self):
        return (
            (not self.shapes, ['shape_resolution', 'shape_level', 'shape_format'], 'without --shapes'),
            (self.cameras is not None, ['views'], 'with --cameras'),
            *super().idle(),
        )

    @property
    def psis(self):
        """What the subjects are truncated by, one after the other."""
        return self.trunc if self.subjects.truncatable else (1.0,)

    def casts(self):
        """(row of the latents, psi) of every subject, row by row."""
        return [(row, psi) for row in range(len(self.subjects)) for psi in self.psis]

    def stem(self, row, psi):
        """What the names of a subject's files begin with: 'seed0003', or in a sweep of psi 'seed0003_trunc-0.5'."""
        return self.subjects.stem(row) + (f'_trunc{psi:g}' if len(self.psis) > 1 else '')


@naming_memory('lower --batch or --render-resolution')
def write_samples(options, read_cameras):
    """Write all pictures and meshes of `options`. Raises UserError, at the end, if a subject has no surface.

    read_cameras: see `SubjectOptions.choose_cameras`.
    """
    G, branches = options.load()
    cameras = options.choose_cameras(G, read_cameras, *torch.tensor(options.views).T)
    compared = options.networks(G)
    make_output_folder(options.outdir)
    casts = options.casts()
    sheets, ws, shapeless = {}, [], []
    for batch in tqdm([casts[start : start + options.batch] for start in range(0, len(casts), options.batch)], unit='batch'):
        subjects = [_make(G, *cast, options, residual='3d' in branches or options.shapes) for cast in batch]
        ws += [subject.ws for subject in subjects] if options.save_latents else []
        for name, rows in _render(G, subjects, branches, cameras.labels, options).items():
            if options.grid:
                sheets.setdefault(name, []).extend(rows)
            else:
                _write_singles(name, rows, [options.stem(*cast) for cast in batch], options.outdir)
        if options.planes:
            for cast in batch:
                _write_planes(compared, cast, options)
        if options.shapes:
            shapeless += filter(None, (_write_shape(G, *pair, options) for pair in zip(batch, subjects)))
    for name, rows in sheets.items():
        _write_sheet(name, torch.cat(rows), options)
    options.record(options.outdir / 'cameras.json', cameras, ws)
    if shapeless:
        raise UserError(f'{len(shapeless)} of {len(casts)} subjects have no mesh; {shapeless[0]}')


def _make(G, row, psi, options, residual=True):
    latents = options.subjects
    ws = latents.ws(G, [row], psi, options.trunc_cutoff)
    return make_subject(G, ws, options.noise_mode, latents.number(row), residual)


def _render(G, subjects, branches, labels, options):
    """By name, such as '3d' and '3d_depth', for every subject 8-bit pictures [views, 3, H, W], or depths [views, 1, h, w]."""
    by_view = {}
    for branch in branches:
        for label in labels:
            out = options.render(G, subjects, label[None], branch)
            by_view.setdefault(branch, []).append(to_uint8(out['image']).cpu())
            if options.depth:
                by_view.setdefault(f'{branch}_depth', []).append(out['image_depth'].float().cpu())
    return {name: list(torch.stack(views, dim=1)) for name, views in by_view.items()}


def _write_sheet(name, images, options):
    """Write images [N, C, H, W] as one picture, a row per latent; of a sweep with the psis above; depths as an array, too."""
    images = images.unflatten(0, (len(options.subjects), -1))
    if images.shape[2] == 1:
        save_array(images[:, :, 0], options.outdir / f'samples_{name}.npy')
    sheet = image_grid(_visible(images.flatten(0, 1)), columns=images.shape[1])
    if len(options.psis) > 1:
        sheet = with_headings(sheet, [f'psi {psi:g}' for psi in options.psis])
    save_png(sheet, options.outdir / f'samples_{name}.png')


def _write_singles(name, rows, stems, folder):
    """Write the images [views, C, H, W] of every row as single pictures; depths as [h, w], too."""
    for stem, row in zip(stems, rows):
        for view, image in enumerate(row):
            path = folder / f'{stem}_view{view:02d}_{name}.png'
            if len(image) == 1:
                save_array(image[0], path.with_suffix('.npy'))
            save_png(to_pil(_visible(image[None])[0]), path)


def _visible(images):
    """8-bit pictures [N, 3, H, W]; depth maps [N, 1, h, w] become colours."""
    return depth_to_image(images) if images.shape[1] == 1 else images


def _write_planes(networks, cast, options):
    """Write the figure of the planes that the networks make of one subject."""
    panels = [(title, _make(G, *cast, options).planes, G.plane_axes) for title, G in networks]
    draw_planes(panels, options.outdir / f'{options.stem(*cast)}_planes.png')


def _write_shape(G, cast, subject, options):
    """Write the subject's meshes; returns a line that says what went wrong, or None."""
    try:
        mesh = extract_mesh(G, subject.planes, options.shape_resolution, options.shape_level)
    except UserError as error:
        return f'{options.subjects.name(cast[0])}: {error}'
    for suffix in options.shape_format:
        save_mesh(mesh, options.outdir / f'{options.stem(*cast)}.{suffix}')
