"""Labelled figures, drawn by matplotlib: what all share, and the comparison of branches (paper, figure 5)."""

from typing import NamedTuple

import torch

from dnnlib.files import replacing

BRANCH_NAMES = {'2d': '2D branch', '3d': '3D branch', 'coarse': 'coarse planes'}
_PANEL = 2.2  # inches per side
_DOTS = 150  # per inch; more where a picture has more pixels
GEOMETRY_PIXELS = 320  # a surface has no pixels of its own: per side at least what a panel has


class BranchRow(NamedTuple):
    """One branch of a subject: 8-bit pictures [3, H, W], and how straight the stripes of the texture image are."""

    subject: str
    branch: str
    texture: torch.Tensor
    straightness: float
    image: torch.Tensor | None = None
    geometry: torch.Tensor | None = None


def draw_branches(rows, line, path):
    """Write the figure of BranchRows: image, geometry and texture image side by side.

    line: share of the height, from the top, of the line of pixels that texture images stack. Raises OSError.
    """
    figure = new_figure(columns=3, rows=len(rows))
    grid = figure.subplots(len(rows), 3, squeeze=False)
    for panels, row in zip(grid, rows):
        for panel, picture in zip(panels, (row.image, row.geometry, row.texture)):
            panel.imshow(picture.permute(1, 2, 0).numpy(), aspect='auto', interpolation='nearest')
            panel.set(xticks=[], yticks=[], box_aspect=1)
        height = row.image.shape[1]
        panels[0].axhline(int(line * height), color='tab:red', linewidth=1, linestyle='--')
        panels[0].set_ylabel(f'{row.subject}\n{BRANCH_NAMES[row.branch]}')
        panels[2].set(xlabel=f'straightness {row.straightness:.2f}', ylabel='← camera moves')  # rotated, the arrow points down
    for panel, title in zip(grid[0], ('image', 'geometry', 'texture of dashed line')):
        panel.set_title(title)
    save_figure(figure, path, pixels=max(row.geometry.shape[-1] for row in rows))


def new_figure(columns, rows):
    """An empty figure with room for so many square panels."""
    from matplotlib.figure import Figure  # slow to import

    return Figure(figsize=(_PANEL * columns + 0.4, _PANEL * rows + 0.6), layout='constrained')


def save_figure(figure, path, pixels):
    """Write as a PNG in which a panel has at least `pixels` pixels per side. Raises OSError."""
    with replacing(path) as file:
        figure.savefig(file, format='png', dpi=max(_DOTS, 1.1 * pixels / _PANEL))
