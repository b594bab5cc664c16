"""Metrics by name, and what they are given and give back.

A metric belongs to a `Group`: metrics that share their expensive part (generated images, features, reconstructions) and
are therefore computed together. A module makes a metric known like this, and is listed in `metrics/__init__.py`:

    def compute_views(metrics, task):                # metrics: what `build` made of the names that were asked for
        ...                                          # called on every process, with the same Task
        return {'psnr_mv': Outcome(value=35.7)}      # on every process

    GROUP = Group(compute_views, options=(click.option('--subjects', default=50, help='Subjects to reconstruct.'),))
    register('psnr_mv', GROUP, 'PSNR between generated views and their reconstruction.', higher_is_better=True)

A group's own options appear on calc_metrics.py's command line; their values are in `task.options`, by name. What all
metrics share (network, branch, data, seed, truncation, render resolution, sampling ...) are the fields of `Task`. With
`Group(..., uses=...)`, options that would have no effect are refused.
"""

import re
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import click
import torch

from dnnlib.errors import UserError


@dataclass(frozen=True)
class Task:
    """What is to be evaluated, and how. Every process of a run has the same one, but for the device."""

    device: torch.device
    generator: torch.nn.Module | None = None  # on `device`, in evaluation mode; None: stored images are evaluated
    branch: str | None = None  # of the generator: '2d', '3d' or 'coarse'
    images: str | None = None  # zip or folder of images of any other method
    data: str | None = None  # zip or folder of the real images; a generator's images are seen from their cameras
    mirror: bool = False  # double the data by mirrored copies
    outdir: Path = Path('.')  # where a metric may leave files of its own; the results themselves are not its business
    seed: int = 0
    batch: int = 16  # images in one forward pass; part of the protocol: it may change results in the last digits
    truncation_psi: float = 1.0
    truncation_cutoff: int | None = None
    render_resolution: int | None = None  # pixels per side of the volume render; None: the network's
    sampling: str | None = None  # along rays: 'stratified' or 'deterministic'; None: each metric's own
    skip: float = 0.0  # leave out samples that weigh less than this; 0: none
    noise_mode: str | None = None  # of the synthesis: 'random', 'const' or 'none'; None: each metric's own
    workers: int = 2  # processes per process that read images
    progress: bool = True
    options: dict = field(default_factory=dict)  # values of the groups' own options


@dataclass(frozen=True)
class Outcome:
    """What a metric found."""

    value: float
    parts: dict = field(default_factory=dict)  # further numbers by name, such as {'precision': .., 'recall': ..}
    protocol: dict = field(default_factory=dict)  # every choice that the value depends on, plain data: values of equal
    # protocols may be compared, so what is evaluated has no place in it
    details: dict = field(default_factory=dict)  # further findings and where they lie, plain data


@dataclass(frozen=True)
class Group:
    """Metrics that are computed together; see the head of this file."""

    compute: Callable[[list, Task], dict[str, Outcome]]
    options: tuple = ()  # click options
    # (metrics, whether a generator is evaluated) -> names of the options that have an effect; None: all have
    uses: Callable[[list, bool], set] | None = None


@dataclass(frozen=True)
class Family:
    """A metric, or all metrics whose names differ by their numbers."""

    form: str
    group: Group
    help: str
    higher_is_better: bool
    pattern: str
    build: Callable[[re.Match], Any]


# Names of the options that say how a generator's images are made, whatever the metric.
GENERATION_OPTIONS = {'branch', 'trunc', 'trunc_cutoff', 'render_resolution', 'samples', 'importance_samples'}

_FAMILIES = {}  # form -> Family


def register(form, group, help, higher_is_better=False, pattern=None, build=lambda match: match[0]):
    """Make a metric known.

    form: its name as users read it, such as 'psnr_mv' or 'fid<N>_full'; pattern: the regular expression of its names, where
    that is not the form itself; build: from the pattern's match to what the group's `compute` gets, by default the name.
    """
    _FAMILIES[form] = Family(form, group, help, higher_is_better, pattern or re.escape(form), build)


def families():
    """All metrics that are known, in the order of their registration."""
    return list(_FAMILIES.values())


def groups():
    """All groups, without repetition."""
    return list(dict.fromkeys(family.group for family in families()))


def add_group_options(command):
    """Decorator: all groups' own options for a click command."""
    for group in groups():
        for option in reversed(group.options):
            command = option(command)
    return command


def default_options():
    """{name: default} of all groups' own options."""
    return click.command('metrics')(add_group_options(lambda **options: None)).make_context('metrics', []).params


def find_family(name):
    """(Family, match) of a metric's name. Raises UserError for a name that no metric has."""
    for family in families():
        match = re.fullmatch(family.pattern, name)
        if match:
            return family, match
    raise UserError(f'--metrics: {name!r} is no metric; there are: {", ".join(family.form for family in families())}')


def by_group(names):
    """{Group: {name: metric as `build` made it}}: what is computed together, in the order of `names`."""
    grouped = {}
    for name in names:
        family, match = find_family(name)
        grouped.setdefault(family.group, {})[name] = family.build(match)
    return grouped
