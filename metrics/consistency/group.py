"""The metrics of multi-view consistency as metrics/registry.py knows them, and their options."""

import re
from pathlib import Path

import click

from dnnlib.errors import UserError
from dnnlib.params import FiniteRange, PixelSize, UserPath
from metrics.consistency.evaluation import evaluate_reconstruction
from metrics.consistency.recipes import RECIPES
from metrics.consistency.rendering import BACKGROUNDS
from metrics.consistency.reprojection import DEPTH_TOLERANCE, neighbour_psnr
from metrics.consistency.subjects import find_subjects
from metrics.registry import GENERATION_OPTIONS, Group, Outcome, register
from torch_utils import distributed


class ViewSource(click.ParamType):
    """`30` -> 30 views per subject of a network; `DIR` -> the Path of stored views."""

    name = 'number|dir'

    def convert(self, value, param, ctx):
        if isinstance(value, str):
            return int(value) if re.fullmatch(r'\d+', value) else UserPath(path_type=Path).convert(value, param, ctx)
        return value


OPTIONS = (
    click.option('--subjects', type=int, default=50, help='Consistency: subjects of a network, from --seed on.'),
    click.option(
        '--views',
        type=ViewSource(),
        default=30,
        metavar='N|DIR',
        help="Consistency: views per subject of a network; or a folder or zip of any method's views or photographs, "
        'with dataset.json or transforms.json (or a folder of such folders).',
    ),
    click.option('--yaw', type=FiniteRange(0), default=0.4, help='Consistency: views lie within +- this yaw, radians.'),
    click.option('--pitch', type=FiniteRange(0, 1.5), default=0.0, help='Consistency: views lie within +- this pitch, radians.'),
    click.option('--recipe', type=click.Choice(RECIPES), default=RECIPES[0], help='Consistency: how NeuS is trained.'),
    click.option(
        '--background',
        type=click.Choice(BACKGROUNDS),
        help="Consistency: what empty space shows.  [default: the network's; learned for stored views]  White or black is "
        "also what transparent pixels of stored images are composited on.  [default: the network's, or black]",
    ),
    click.option(
        '--box',
        type=FiniteRange(0, min_open=True),
        help="Consistency: side of stored views' scene, world units.  [default: by the cameras]",
    ),
    click.option('--view-size', type=PixelSize(), metavar='WxH', help='Consistency: resize stored views, in pixels.'),
    click.option(
        '--held-out',
        type=click.IntRange(0),
        default=0,
        help='Consistency: score every Nth view, and do not train on it; 0: train on and score all.',
    ),
    click.option('--fit-steps', type=click.IntRange(1), help="Consistency: steps of NeuS.  [default: the recipe's]"),
    click.option('--fit-rays', type=click.IntRange(1), help="Consistency: rays per step.  [default: the recipe's]"),
    click.option('--meshes', is_flag=True, help="Consistency: write every subject's surface, too."),
)


def evaluate_reprojection(metrics, task):
    """The Outcome of 'reproj': PSNR between neighbouring views, each warped into the other through its depth."""
    subjects = find_subjects(task)
    mine, failures = [], []
    for index in range(distributed.rank(), len(subjects.names), distributed.world_size()):
        try:
            scores, shares = neighbour_psnr(subjects.load(index))
            mine.append((index, scores.mean().item(), shares.mean().item()))
        except UserError as error:
            failures.append(str(error))
    found, failures = sorted(_from_all(mine)), _from_all(failures)
    if failures:
        raise UserError(f'{len(failures)} of {len(subjects.names)} subjects could not be scored; {failures[0]}')
    _, scores, shares = zip(*found)
    protocol = {
        **subjects.about(),
        'depth_tolerance': DEPTH_TOLERANCE,
        'psnr': 'over visible pixels of neighbours in the order of the views, both ways; mean over pairs, then subjects',
    }
    details = {'content': subjects.fingerprint, 'per_subject': dict(zip(subjects.names, scores))}
    return {'reproj': Outcome(sum(scores) / len(scores), {'visible': sum(shares) / len(shares)}, protocol, details)}


def _from_all(items):
    """The lists of all processes, joined."""
    return [item for part in distributed.share(distributed.gather(items)) for item in part]


def _uses_of_views(metrics, generated):
    return {'views', *(GENERATION_OPTIONS | {'subjects', 'yaw', 'pitch'} if generated else {'box', 'view_size'})}


def _uses_of_reconstruction(metrics, generated):
    return _uses_of_views(metrics, generated) | {'recipe', 'background', 'held_out', 'fit_steps', 'fit_rays', 'meshes'}


RECONSTRUCTION = Group(evaluate_reconstruction, OPTIONS, _uses_of_reconstruction)
REPROJECTION = Group(evaluate_reprojection, uses=_uses_of_views)

register('psnr_mv', RECONSTRUCTION, 'PSNR between views and re-renders of their reconstruction by NeuS.', higher_is_better=True)
register('ssim_mv', RECONSTRUCTION, 'SSIM between views and re-renders of their reconstruction by NeuS.', higher_is_better=True)
register('reproj', REPROJECTION, 'PSNR between neighbouring views, warped by their depth.', higher_is_better=True)
