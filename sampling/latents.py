"""What subjects are made of: seeds, or the latents of a file."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import click
import numpy as np
import torch

from dnnlib.errors import UserError, first_line
from dnnlib.files import absolute, replacing
from training.rendering.cameras import view_label

KINDS = {'z': ('z_dim',), 'w': ('w_dim',), 'ws': ('num_ws', 'w_dim')}  # arrays of a file, and the sizes of a row


@dataclass(frozen=True)
class Latents:
    """kind: 'seed' or one of KINDS; rows: a list of seeds, or float32 [N, ...]; source: the file that has them."""

    kind: str
    rows: Any
    source: str | None = None

    def __len__(self):
        return len(self.rows)

    @property
    def option(self):
        return '--seeds' if self.kind == 'seed' else f'--latents={self.source}'

    @property
    def truncatable(self):
        """Whether they are mapped, and so can be truncated: w and ws are used as they are."""
        return self.kind in ('seed', 'z')

    def number(self, index):
        """The seed, or the row in the file."""
        return self.rows[index] if self.kind == 'seed' else index

    def name(self, index):
        """Such as 'seed 3', or 'latent 0' for the first row of a file."""
        return f'{"seed" if self.kind == "seed" else "latent"} {self.number(index)}'

    def stem(self, index):
        """Such as 'seed0003' or 'latent0000', to begin the names of files with."""
        kind, number = self.name(index).split()
        return f'{kind}{int(number):04d}'

    def check(self, G):
        """Raise UserError unless the rows have the shape that a generator takes."""
        if self.kind == 'seed':
            return
        sizes = {'z_dim': G.config.z_dim, 'w_dim': G.config.w_dim, 'num_ws': G.backbone.num_ws}
        expected = [sizes[name] for name in KINDS[self.kind]]
        if list(self.rows.shape[1:]) != expected:
            raise UserError(
                f'{self.option}: {self.kind} has the shape {list(self.rows.shape)}, but this network takes '
                f'[N, {", ".join(map(str, expected))}]: give latents of this network'
            )

    @torch.no_grad()
    def ws(self, G, indices, truncation_psi=1.0, truncation_cutoff=None):
        """ws [len(indices), num_ws, w_dim] of some of the rows, each of which depends on its own row alone."""
        rows = [self.rows[index] for index in indices]
        z = seed_latents(G, rows) if self.kind == 'seed' else torch.stack(rows).to(next(G.parameters()).device)
        if self.truncatable:
            return map_latents(G, z, truncation_psi, truncation_cutoff)
        return z if self.kind == 'ws' else z[:, None].repeat(1, G.backbone.num_ws, 1)


def seed_latents(G, seeds):
    """z [N, z_dim] of seeds, normally distributed, on the generator's device."""
    latents = np.stack([np.random.RandomState(seed).randn(G.config.z_dim) for seed in seeds])
    return torch.from_numpy(latents).float().to(next(G.parameters()).device)


@torch.no_grad()
def map_latents(G, z, truncation_psi=1.0, truncation_cutoff=None):
    """ws [N, num_ws, w_dim] of z [N, z_dim].

    The frontal camera conditions all of them, whatever camera they are rendered from: the conditioning takes part in
    who the subject is, so a moving one would change it from view to view.
    """
    frontal = view_label(G.config).to(z.device).expand(len(z), -1)
    return G.mapping(z, frontal, truncation_psi=truncation_psi, truncation_cutoff=truncation_cutoff)


def read_latents(path):
    """The Latents of an npz with one of the arrays of KINDS. Raises click.BadParameter, as the type of an option."""
    path = absolute(path)
    try:
        with np.load(path, allow_pickle=False) as archive:
            kinds = [kind for kind in KINDS if kind in archive.files]
            rows = archive[kinds[0]] if len(kinds) == 1 else None
            names = ', '.join(archive.files) or 'nothing'
    except OSError as error:
        raise click.BadParameter(f'{path} cannot be read: {error.strerror or first_line(error)}; give an npz') from None
    except Exception as error:  # of the many that damaged or other files cause
        raise click.BadParameter(f'{path} is no npz of arrays ({first_line(error)}): write one with numpy.savez') from None
    if rows is None:
        cure = 'keep one of them' if kinds else 'name the array z, w or ws'
        raise click.BadParameter(f'{path} holds {names}, but one of {", ".join(KINDS)} is needed: {cure}')
    kind, sizes = kinds[0], KINDS[kinds[0]]
    if rows.dtype.kind not in 'fiu' or rows.ndim != 1 + len(sizes) or not len(rows):
        raise click.BadParameter(
            f'{path}: {kind} must be numbers of shape [N, {", ".join(sizes)}], not {rows.dtype} {list(rows.shape)}: correct it'
        )
    with np.errstate(over='ignore'):
        rows = rows.astype(np.float32)
    if not np.isfinite(rows).all():
        raise click.BadParameter(f'{path}: {kind} holds numbers that are not finite: correct them')
    return Latents(kind, torch.from_numpy(rows), path)


def write_latents(path, ws):
    """Write ws [N, num_ws, w_dim], as they were rendered, to an npz that `read_latents` gives back to the last bit."""
    with replacing(Path(path)) as file:
        np.savez(file, ws=ws.cpu().numpy())
