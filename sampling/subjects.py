"""From seeds to subjects: latents, ws and tri-planes that several views are rendered of."""

from dataclasses import MISSING, dataclass
from typing import NamedTuple

import click
import numpy as np
import torch
from scipy.interpolate import CubicSpline

from dnnlib.errors import UserError, first_line
from dnnlib.options import setting
from dnnlib.params import FiniteRange, UserPath, seed_list
from torch_utils.random import BatchRandom, keyed_generator
from training.rendering.cameras import view_label
from training.snapshots import load_networks

SUBJECTS, RENDERING = 'Subjects', 'Rendering'  # headings of --help


def default_device():
    return 'cuda' if torch.cuda.is_available() else 'cpu'


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
    seeds: list = setting(MISSING, '--seeds', seed_list, 'Subjects, like 0-15,20.', SUBJECTS, metavar='SEEDS', required=True)
    trunc: float = setting(0.7, '--trunc', FiniteRange(0), 'Truncation psi; 1: none.', SUBJECTS)
    trunc_cutoff: int | None = setting(
        None, '--trunc-cutoff', click.IntRange(0), 'Truncate only the first so many ws.  [default: all]', SUBJECTS
    )
    branch: str = setting(
        'both', '--branch', click.Choice(['2d', '3d', 'both', 'coarse']), 'What to render; both: 2D and 3D.', RENDERING
    )
    render_resolution: int | None = setting(
        None,
        '--render-resolution',
        click.IntRange(1, 4096),
        "Pixels per side of the volume render.  [default: the network's]",
        RENDERING,
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

    def load(self):
        """The generator, and the branches to render. Raises UserError."""
        G = load_generator(self.network, self.device)
        return G, choose_branches(G, self.branch)

    def ws(self, G, seeds):
        return seed_ws(G, seeds, self.trunc, self.trunc_cutoff)


class Subject(NamedTuple):
    """What is fixed about one subject: ws [1, num_ws, w_dim] and its tri-planes."""

    ws: torch.Tensor
    planes: tuple


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


@torch.no_grad()
def seed_ws(G, seeds, truncation_psi=1.0, truncation_cutoff=None):
    """ws [N, num_ws, w_dim] of seeds, each of which depends on its own seed alone.

    The frontal camera conditions all of them, whatever camera they are rendered from: the conditioning takes part in
    who the subject is, so a moving one would change it from view to view.
    """
    device = next(G.parameters()).device
    frontal = view_label(G.config).to(device).expand(len(seeds), -1)
    latents = torch.from_numpy(np.stack([np.random.RandomState(seed).randn(G.config.z_dim) for seed in seeds]))
    return G.mapping(latents.float().to(device), frontal, truncation_psi=truncation_psi, truncation_cutoff=truncation_cutoff)


@torch.no_grad()
def make_subject(G, ws, noise_mode='const', seed=0):
    """The Subject of ws [1, num_ws, w_dim]. With noise_mode='random' the noise depends on `seed` alone."""
    random = BatchRandom(1, ws.device, keyed_generator((seed,), ws.device))
    return Subject(ws, G.planes(ws, noise_mode=noise_mode, random=random))


@torch.no_grad()
def render_subjects(G, subjects, label, branch, render_resolution=None):
    """Render several subjects from one camera, label [1, 25], without chance. Returns what G.render returns."""
    ws = torch.cat([subject.ws for subject in subjects])
    planes = type(subjects[0].planes)(*map(_join, zip(*(subject.planes for subject in subjects))))
    label = label.to(ws.device).expand(len(subjects), -1)
    return G.render(planes, label, branch=branch, ws=ws, render_resolution=render_resolution, sampling='deterministic')


def _join(parts):
    return None if parts[0] is None else torch.cat(parts)


def closed_path(keys):
    """A smooth, closed path through `keys` [K, ...], one unit of time apart: a periodic cubic spline.

    Returns a function of time; at t it gives [...] on the keys' device, and at k and k + K exactly keys[k].
    """
    closed = torch.cat([keys, keys[:1]]).cpu().double().numpy()
    spline = CubicSpline(np.arange(len(closed)), closed, bc_type='periodic')
    return lambda t: torch.from_numpy(spline(t % len(keys))).to(keys)
