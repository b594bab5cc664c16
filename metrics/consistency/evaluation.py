"""The metrics of multi-view consistency, `psnr_mv`, `ssim_mv` and `reproj`, their options, and the first two themselves.

For these, every subject is reconstructed from its views, and the views are compared with re-renders. A run's
folder holds `<subject>.json` and `<subject>.png` for every subject that is done, and `page.png`. Its name says what the results
depend on, so the same command goes on where it was interrupted, and another command starts anew.
"""

import hashlib
import json
import re
import time
from pathlib import Path

import click
import torch
from PIL import Image

from dnnlib.errors import UserError
from dnnlib.files import replacing
from dnnlib.params import FiniteRange, UserPath, pixel_size
from metrics.consistency.mesh import extract_surface
from metrics.consistency.recipes import RECIPES
from metrics.consistency.rendering import BACKGROUNDS
from metrics.consistency.reprojection import evaluate_reprojection
from metrics.consistency.scoring import SSIM_SETTINGS, check_window, score_views
from metrics.consistency.trainer import fit
from metrics.consistency.views import find_subjects
from metrics.registry import GENERATION_OPTIONS, Group, Outcome, register
from shape_utils.files import save_mesh
from torch_utils import distributed
from torch_utils.images import save_png

_POLL_SECONDS = 1.0
FIXED_CHOICES = {
    'version': 3,  # to be raised with every change of this package that moves a score: half-done runs then start anew
    'psnr': 'of 8-bit views in [0, 1]; mean over the views of a subject, then over the subjects',
    'ssim': {**SSIM_SETTINGS, 'library': 'scikit-image', 'channels': 'mean', 'mean': 'as psnr'},
}


def evaluate_reconstruction(metrics, task):
    """The Outcomes of 'psnr_mv' and 'ssim_mv' for a metrics.registry.Task; both come from the same reconstructions.

    Every process works on its share of the subjects. Raises UserError, once all others are done, if a subject could not be
    scored; results so far are kept.
    """
    run = Reconstructions(task)
    distributed.from_first(run.prepare)
    for index in range(distributed.rank(), len(run.names), distributed.world_size()):
        run.work_on(index)
    records = run.collect()
    found = {name: [record[name] for record in records] for name in ('psnr', 'ssim', 'seconds')}
    parts = {
        'psnr_std': _deviation(found['psnr']),
        'ssim_std': _deviation(found['ssim']),
        'subjects': len(records),
        'seconds_per_subject': _mean(found['seconds']),
    }
    outcomes = {}
    for metric in metrics:
        scores = found[metric.removesuffix('_mv')]
        details = {'content': run.subjects.fingerprint, 'folder': run.folder.name, 'per_subject': dict(zip(run.names, scores))}
        outcomes[metric] = Outcome(_mean(scores), parts, {**run.protocol, 'subjects': run.names}, details)
    return outcomes


def _mean(values):
    return sum(values) / len(values)


def _deviation(values):
    return torch.tensor(values, dtype=torch.float64).std(correction=0).item()


class Reconstructions:
    """The subjects of one Task, how they are reconstructed, and the folder of their results."""

    def __init__(self, task):
        self.task, self.options = task, task.options
        self.subjects = find_subjects(task)
        self.names = self.subjects.names
        self.background = self.options['background'] or self.subjects.background
        given = {'steps': self.options['fit_steps'], 'rays': self.options['fit_rays']}
        self.recipe_changes = {name: value for name, value in given.items() if value is not None}
        self.protocol = {
            **self.subjects.protocol,
            **FIXED_CHOICES,
            'recipe': self.options['recipe'],
            'recipe_at_256_pixels': self._recipe(256)._asdict(),  # that at the subjects' own size stands in their files
            'recipe_changes': self.recipe_changes,
            'background': self.background,
            'held_out': self.options['held_out'],
            'fit_seed': task.seed,
        }
        depends_on = json.dumps([self.protocol, self.subjects.fingerprint], sort_keys=True)
        key = hashlib.blake2b(depends_on.encode(), digest_size=4).hexdigest()
        self.folder = Path(task.outdir) / f'consistency-{task.branch or "views"}-{key}'

    def _recipe(self, image_side):
        return RECIPES[self.options['recipe']](image_side, **self.recipe_changes)

    def prepare(self):
        """Make the folder; forget earlier failures, which are tried again."""
        self.folder.mkdir(parents=True, exist_ok=True)
        for path in self.folder.glob('*.error'):
            path.unlink()

    def work_on(self, index):
        """Score a subject, unless it is done; a failure is written down and stops no other subject."""
        if self._done(index):
            return
        try:
            self._score(index)
        except UserError as error:
            distributed.look_around()  # another process's failure is not the subject's
            _write(self._file(index, '.error'), str(error))

    def collect(self):
        """The records of all subjects, once every process has done its share. Raises UserError if any failed."""
        for index in range(len(self.names)):
            while not (self._done(index) or self._file(index, '.error').exists()):
                distributed.look_around()
                time.sleep(_POLL_SECONDS)
        failures = [path.read_text() for path in sorted(self.folder.glob('*.error'))]
        if failures:
            raise UserError(
                f'{len(failures)} of {len(self.names)} subjects could not be scored; {failures[0]} (the others '
                f'are kept in {self.folder})'
            )
        if distributed.rank() == 0:
            self._write_page()
        return [json.loads(self._file(index, '.json').read_text()) for index in range(len(self.names))]

    def _done(self, index):
        has_mesh = self._file(index, '.ply').exists() or not self.options['meshes']
        return has_mesh and self._file(index, '.json').exists()

    def _score(self, index):
        start = time.perf_counter()
        views = self.subjects.load(index)
        check_window(views.size)
        rendered_after = time.perf_counter() - start
        recipe = self._recipe(max(views.size))
        trained, scored = split_views(len(views), self.options['held_out'])
        reconstruction = fit(views.subset(trained), recipe, self.background, self.task.seed, self.task.device, self.task.progress)
        fitted_after = time.perf_counter() - start
        record, picture = score_views(reconstruction, views.subset(scored))
        save_png(picture, self._file(index, '.png'))
        record = {
            'subject': self.names[index],
            **record,
            'scored_views': scored,
            'size': list(views.size),
            'box_size': views.box_size,
            'recipe': recipe._asdict(),
            'sharpness': reconstruction.fields.sharpness().item(),
            'seconds': time.perf_counter() - start,
            'seconds_views': rendered_after,
            'seconds_fit': fitted_after - rendered_after,
            'device': str(self.task.device),
        }
        _write(self._file(index, '.json'), json.dumps(record, indent=1))
        if self.options['meshes']:
            save_mesh(extract_surface(reconstruction), self._file(index, '.ply'))

    def _write_page(self):
        strips = [Image.open(self._file(index, '.png')) for index in range(len(self.names))]
        page = Image.new('RGB', (max(strip.width for strip in strips), sum(strip.height for strip in strips)), 'white')
        top = 0
        for strip in strips:
            page.paste(strip, (0, top))
            top += strip.height
        save_png(page, self.folder / 'page.png')

    def _file(self, index, suffix):
        return self.folder / f'{self.names[index]}{suffix}'


def split_views(count, held_out):
    """Indices of the views to train on and of those to score. held_out 0: all for both, as published; N: every Nth view is
    scored and not trained on. Raises UserError when that leaves none."""
    everything = list(range(count))
    if not held_out:
        return everything, everything
    scored = everything[held_out // 2 :: held_out]
    trained = [index for index in everything if index not in scored]
    if not scored or len(trained) < 2:
        raise UserError(
            f'--held-out={held_out} leaves {len(trained)} of {count} views to train on and {len(scored)} to score: '
            'choose a number from 2 up and below the number of views'
        )
    return trained, scored


def _write(path, text):
    with replacing(path) as file:
        file.write(text.encode())


# ---------------------------------------------------------------------------------------------------------------------
# Options and names


class ViewSource(click.ParamType):
    """`30` -> 30 views per subject of a network, 2 at least; `DIR` -> the Path of stored views."""

    name = 'number|dir'

    def convert(self, value, param, ctx):
        kind = click.IntRange(2) if re.fullmatch(r'\d+', str(value)) else UserPath(path_type=Path)
        return kind.convert(value, param, ctx)


OPTIONS = (
    click.option('--subjects', type=click.IntRange(1), default=50, help='Consistency: subjects of a network, from --seed on.'),
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
    click.option('--recipe', type=click.Choice(list(RECIPES)), default='neus-fast', help='Consistency: how NeuS is trained.'),
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
    click.option('--view-size', type=pixel_size, metavar='WxH', help='Consistency: resize stored views, in pixels.'),
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


def _uses_of_views(metrics, generated):
    return {'views', *(GENERATION_OPTIONS | {'subjects', 'yaw', 'pitch'} if generated else {'box', 'view_size'})}


def _uses_of_reconstruction(metrics, generated):
    return _uses_of_views(metrics, generated) | {'recipe', 'background', 'held_out', 'fit_steps', 'fit_rays', 'meshes'}


RECONSTRUCTION = Group(evaluate_reconstruction, OPTIONS, _uses_of_reconstruction)

register('psnr_mv', RECONSTRUCTION, 'PSNR between views and re-renders of their reconstruction by NeuS.', higher_is_better=True)
register('ssim_mv', RECONSTRUCTION, 'SSIM between views and re-renders of their reconstruction by NeuS.', higher_is_better=True)
register(
    'reproj',
    Group(evaluate_reprojection, uses=_uses_of_views),
    'PSNR between neighbouring views, warped by their depth.',
    higher_is_better=True,
)
