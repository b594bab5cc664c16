"""From seeds to subjects: latents, ws and tri-planes that several views are rendered of."""

from dataclasses import MISSING, dataclass
from pathlib import Path
from typing import NamedTuple

import click
import numpy as np
import torch
from scipy.interpolate import CubicSpline

from dnnlib.errors import UserError, first_line
from dnnlib.files import make_output_folder
from dnnlib.options import setting
from dnnlib.params import FiniteFloat, FiniteRange, UserPath, point, seed_list
from sampling.cameras import Cameras, check_seen, viewer_cameras, write_cameras
from sampling.latents import Latents, map_latents, read_latents, seed_latents, write_latents
from torch_utils.random import BatchRandom, keyed_generator
from training.config import AUTO, POSITIVE, RENDER_PRECISIONS
from training.snapshots import load_networks

SUBJECTS, CAMERAS, RENDERING = 'Subjects', 'Cameras', 'Rendering'  # headings of --help
_SAME_DISTANCE = 0.01  # of a camera, in the network's own: closer, near and far stay as they were in training


def default_device():
    return 'cuda' if torch.cuda.is_available() else 'cpu'


# Options that scripts share, under headings of their own.
def trunc_cutoff_setting(group):
    return setting(None, '--trunc-cutoff', click.IntRange(0), 'Truncate only the first so many ws.  [default: all]', group)


def render_resolution_setting(group):
    return setting(
        None,
        '--render-resolution',
        click.IntRange(1, 4096),
        "Pixels per side of the volume render.  [default: the network's]",
        group,
    )


def samples_setting(group):
    return setting(None, '--samples', click.IntRange(4), "Stratified samples per ray.  [default: the network's]", group)


def importance_samples_setting(group):
    return setting(
        None, '--importance-samples', click.IntRange(0), "Importance samples per ray.  [default: the network's]", group
    )


def skip_setting(group):
    return setting(
        0.0, '--skip', FiniteRange(0, 1, max_open=True), 'Leave out samples that provably weigh less than this; 0: none.', group
    )


@dataclass(frozen=True, kw_only=True)
class SubjectOptions:
    """Which subjects, and how they are rendered: the options that gen_samples.py and gen_videos.py share."""

    network: str = setting(
        MISSING,
        '--network',
        UserPath(),
        'Network snapshot; of a folder, the newest one.',
        SUBJECTS,
        metavar='PATH',
        required=True,
    )
    seeds: list | None = setting(None, '--seeds', seed_list, 'Subjects, like 0-15,20.', SUBJECTS, metavar='SEEDS')
    latents: Latents | None = setting(
        None,
        '--latents',
        read_latents,
        'Subjects of a file in place of seeds: z [N, z_dim], w [N, w_dim] or ws [N, num_ws, w_dim].',
        SUBJECTS,
        metavar='NPZ',
    )
    save_latents: Path | None = setting(
        None,
        '--save-latents',
        UserPath(dir_okay=False, path_type=Path),
        'Write the ws of what is rendered, for --latents.',
        SUBJECTS,
        metavar='NPZ',
    )
    trunc: float = setting(0.7, '--trunc', FiniteFloat(), 'Truncation psi; 1: none; negative: the opposites.', SUBJECTS)
    trunc_cutoff: int | None = trunc_cutoff_setting(SUBJECTS)
    branch: str = setting(
        'both', '--branch', click.Choice(['2d', '3d', 'both', 'coarse']), 'What to render; both: 2D and 3D.', RENDERING
    )
    render_resolution: int | None = render_resolution_setting(RENDERING)
    samples: int | None = samples_setting(RENDERING)
    importance_samples: int | None = importance_samples_setting(RENDERING)
    skip: float = skip_setting(RENDERING)
    render_precision: str | None = setting(
        None,
        '--render-precision',
        click.Choice(RENDER_PRECISIONS),
        "Rounding allowed in the fused renderer.  [default: the network's]",
        RENDERING,
    )
    cameras: str | None = setting(
        None,
        '--cameras',
        UserPath(),
        'Cameras of a dataset.json or transforms.json, or of a data set, in place of the viewer.',
        CAMERAS,
        metavar='FILE|ZIP|DIR',
    )
    focal: float | None = setting(
        None, '--focal', POSITIVE, "Viewer's focal length, image widths.  [default: the network's]", CAMERAS
    )
    radius: float | None = setting(
        None, '--radius', POSITIVE, "Viewer's distance from the origin, world units.  [default: the network's]", CAMERAS
    )
    pivot: tuple | None = setting(
        None, '--pivot', point, "The point that the viewer looks at.  [default: the network's]", CAMERAS, metavar='X,Y,Z'
    )
    device: str = setting(
        MISSING,
        '--device',
        click.STRING,
        'PyTorch device.  [default: cuda where there is one]',
        RENDERING,
        default=default_device,
        show_default=False,
    )

    def idle(self):
        """(whether, names of options, reason) of what has no effect beside other options."""
        return (
            (self.trunc in (1, (1,)), ['trunc_cutoff'], 'with --trunc=1'),
            (not self.subjects.truncatable, ['trunc', 'trunc_cutoff'], f'on {self.subjects.kind}, which are used as they are'),
            (self.cameras is not None, ['focal', 'radius', 'pivot'], 'with --cameras'),
        )

    @property
    def subjects(self):
        """The Latents of --seeds or --latents. Raises UserError unless one of the two is given."""
        if (self.seeds is None) == (self.latents is None):
            raise UserError('give either --seeds, like --seeds=0-7, or --latents=FILE.npz')
        return Latents('seed', self.seeds) if self.latents is None else self.latents

    def load(self):
        """The generator, and the branches to render. Raises UserError."""
        G = load_generator(self.network, self.device)
        self.subjects.check(G)
        if self.save_latents:
            make_output_folder(self.save_latents.parent)
        set_rendering(G, depth_samples=self.samples, importance_samples=self.importance_samples, precision=self.render_precision)
        return G, choose_branches(G, self.branch)

    def choose_cameras(self, G, read_cameras, yaw, pitch):
        """The Cameras of --cameras, or the viewer's at angles yaw, pitch [N]. Raises CameraError for those that see no scene.

        read_cameras: from a path and the distance of the network's own cameras to names and labels.
        """
        if self.cameras is None:
            return viewer_cameras(G.config, yaw, pitch, self.focal, self.radius, self.pivot)
        cameras = Cameras(*read_cameras(self.cameras, G.config.rendering.camera_radius))
        check_seen(cameras, G.config, self.cameras)
        return cameras

    def record(self, path, cameras, ws):
        """Write the Cameras that were used, and with --save-latents the list of ws [N, num_ws, w_dim] that was rendered."""
        write_cameras(path, cameras)
        if self.save_latents:
            write_latents(self.save_latents, torch.cat(ws))

    def render(self, G, subjects, label, branch):
        """`render_subjects` with these options."""
        return render_subjects(G, subjects, label, branch, self.render_resolution, self.skip)


class Subject(NamedTuple):
    """What is fixed about one subject: ws [1, num_ws, w_dim], tri-planes, and by branch, once needed, what is derived of them.

    bounds: of the density; surfaces: see `sampling.geometry`.
    """

    ws: torch.Tensor
    planes: tuple
    bounds: dict
    surfaces: dict


def load_generator(path, device):
    """G_ema of a snapshot on `device` (a name). Raises UserError for a file or device that cannot be used."""
    try:  # before the file, which may take long to read
        torch.rand(2, device=device, generator=torch.Generator(device)).sum().item()
    except Exception as error:  # every backend that is missing or unknown has errors of its own
        raise UserError(
            f'--device={device} cannot be used ({first_line(error)}); choose cpu, or cuda where there is a GPU'
        ) from None
    networks = load_networks(path)
    if 'G_ema' not in networks:
        raise UserError(f'{path} holds no generator G_ema, only: {", ".join(networks) or "nothing"}')
    return networks['G_ema'].to(device)


def choose_branches(G, choice):
    """The branches to render: `choice`, or for 'both' the 2D branch and the 3D branch.

    A generator of stage 1 has no 3D branch: 'both' then means the 2D branch and the coarse planes.
    Raises UserError when '3d' is asked of it.
    """
    if choice == 'both':
        return ('2d', '3d') if G.config.has_3d_branch else ('2d', 'coarse')
    if choice == '3d' and not G.config.has_3d_branch:
        raise UserError('this network has no 3D branch, it comes from stage 1: choose --branch=2d or --branch=coarse')
    return (choice,)


def set_rendering(G, **changes):
    """Render with other fields of the RenderingConfig than the network's own; None leaves one as it is."""
    rendering = G.config.rendering.replace(**{name: value for name, value in changes.items() if value is not None})
    G.config = G.config.replace(rendering=rendering)


def seed_ws(G, seeds, truncation_psi=1.0, truncation_cutoff=None):
    """ws [N, num_ws, w_dim] of seeds, each of which depends on its own seed alone; see `map_latents`."""
    return map_latents(G, seed_latents(G, seeds), truncation_psi, truncation_cutoff)


@torch.no_grad()
def make_subject(G, ws, noise_mode='const', seed=0, residual=True):
    """The Subject of ws [1, num_ws, w_dim]. With noise_mode='random' the noise depends on `seed` alone.

    residual: False leaves out the planes that the 3D branch alone sees (`Generator.planes`).
    """
    random = BatchRandom(1, ws.device, keyed_generator((seed,), ws.device))
    return Subject(ws, G.planes(ws, noise_mode=noise_mode, random=random, residual=residual), {}, {})


@torch.no_grad()
def render_subjects(G, subjects, label, branch, render_resolution=None, skip=0.0):
    """Render several subjects from one camera, label [1, 25], without chance. Returns what G.render returns.

    Where the camera's distance is not the one of the network's viewer, near and far move along with it (`follow_camera`).
    """
    ws = torch.cat([subject.ws for subject in subjects])
    planes = type(subjects[0].planes)(*map(_join, zip(*(subject.planes for subject in subjects))))
    return G.render(
        planes,
        label.to(ws.device).expand(len(subjects), -1),
        branch=branch,
        ws=ws,
        render_resolution=render_resolution,
        sampling='deterministic',
        skip=skip,
        bounds=_joint_bounds(G, subjects, branch) if skip else None,
        rendering=follow_camera(G.config.rendering, label),
    )


def follow_camera(rendering, label):
    """A RenderingConfig whose rays sample the same part of the scene when the camera, label [1, 25], is nearer or farther."""
    moved = float(label[0, [3, 7, 11]].norm()) - rendering.camera_radius
    if rendering.near == AUTO or abs(moved) <= _SAME_DISTANCE * rendering.camera_radius:
        return rendering
    return rendering.replace(near=max(0.0, rendering.near + moved), far=rendering.far + moved)


def _joint_bounds(G, subjects, branch):
    """The density's bounds of several subjects, computed once for each of them."""
    for subject in subjects:
        if branch not in subject.bounds:
            subject.bounds[branch] = G.density_bounds(subject.planes, branch)
    own = [subject.bounds[branch] for subject in subjects]
    return own[0]._replace(grid=torch.cat([bounds.grid for bounds in own]))


def _join(parts):
    return None if parts[0] is None else torch.cat(parts)


def closed_path(keys):
    """A smooth, closed path through `keys` [K, ...], one unit of time apart: a periodic cubic spline.

    Returns a function of time; at t it gives [...] on the keys' device, and at k and k + K exactly keys[k].
    """
    closed = torch.cat([keys, keys[:1]]).cpu().double().numpy()
    spline = CubicSpline(np.arange(len(closed)), closed, bc_type='periodic')
    return lambda t: torch.from_numpy(spline(t % len(keys))).to(keys)
