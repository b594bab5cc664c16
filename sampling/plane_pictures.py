"""Pictures of tri-planes: where features are large (paper, figure 8)."""

from dataclasses import dataclass
from pathlib import Path

import click
import torch.nn.functional as F

from dnnlib.options import setting
from dnnlib.params import UserPath
from sampling.figures import new_figure, save_figure
from sampling.subjects import SubjectOptions, load_generator

PLANES = 'Planes'  # heading of --help


@dataclass(frozen=True, kw_only=True)
class PlaneOptions(SubjectOptions):
    """Whether planes are drawn, and of which networks; the fields are options of gen_samples.py."""

    planes: bool = setting(
        False,
        '--planes',
        click.BOOL,
        'Write a figure per subject, too: the L2 norm over channels of the coarse planes, the residual ones, and both.',
        PLANES,
        is_flag=True,
    )
    planes_beside: str | None = setting(
        None,
        '--planes-beside',
        UserPath(),
        'Another network, such as one without 3D-aware stream: its planes of the same seeds stand beside, in one scale.',
        PLANES,
        metavar='PATH',
    )

    def idle(self):
        return (not self.planes, ['planes_beside'], 'without --planes'), *super().idle()

    def networks(self, G):
        """The generators whose planes are drawn, (title, generator) each. Raises UserError for a file that cannot be used."""
        networks = [(self.network, G)]
        if self.planes_beside is not None:
            networks.append((self.planes_beside, load_generator(self.planes_beside, self.device)))
            self.subjects.check(networks[-1][1])
        return [(title(path, network), network) for path, network in networks]


def title(path, G):
    """What a figure says of a network: the end of its path, and where it has 3D-aware convolutions."""
    return f'{"/".join(Path(path).parts[-2:])}\n--aware={G.config.aware}'


def plane_norms(planes):
    """The L2 norm over channels at every position of the planes of one subject: [3, R, R], or [3, 2R, 2R], by name.

    'coarse'; with residual planes 'residual', too, and 'sum', of both, as the 3D branch looks them up.
    """
    sets = {'coarse': planes.coarse[0]}
    if planes.residual is not None:
        residual = planes.residual[0]
        widened = F.interpolate(planes.coarse[0], size=residual.shape[-2:], mode='bilinear')
        sets |= {'residual': residual, 'sum': widened + residual}
    return {name: features.float().norm(dim=1).cpu() for name, features in sets.items()}


def draw_planes(networks, path):
    """Write the figure of one subject per network: a row per set of planes, a column per plane, all in one scale of colours.

    networks: (title, planes, axes) each, side by side; axes: as in TriplaneField. y points up wherever it is. Raises OSError.
    """
    norms = [plane_norms(planes) for _, planes, _ in networks]
    names = max(norms, key=len)
    highest = max(float(values.max()) for sets in norms for values in sets.values())
    figure = new_figure(columns=3 * len(networks) + 0.5, rows=len(names))
    *parts, edge = figure.subfigures(1, len(networks) + 1, width_ratios=[3] * len(networks) + [0.5])
    for part, (title, _, axes), sets in zip(parts, networks, norms):
        part.suptitle(title)
        grid = part.subplots(len(names), len(axes), squeeze=False)
        for panels, name in zip(grid, names):
            if name not in sets:
                for panel in panels:
                    panel.set_axis_off()
                continue
            for panel, values, pair in zip(panels, sets[name], axes):
                drawn = _draw_plane(panel, values, pair, highest)
            panels[0].text(-0.3, 0.5, name, rotation=90, va='center', transform=panels[0].transAxes)
        for panel, pair in zip(grid[0], axes):
            panel.set_title(f'{pair} plane')
    scale = edge.subplots()
    scale.set_box_aspect(10 * len(names))
    edge.colorbar(drawn, cax=scale, label='L2 norm over channels')
    save_figure(figure, path, pixels=max(planes[-1].shape[-1] for planes in norms[0].values()))


def _draw_plane(panel, values, pair, highest):
    across, up = pair
    if across == 'y':
        values, across, up = values.T, up, across
    panel.set(xticks=[], yticks=[], xlabel=across, ylabel=up)
    return panel.imshow(values.numpy(), origin='lower', vmin=0, vmax=highest, interpolation='nearest')
