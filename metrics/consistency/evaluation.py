"""PSNR_mv and SSIM_mv: every subject is reconstructed from its views, and the views are compared with re-renders.

A run's folder holds `<subject>.json` and `<subject>.png` for every subject that is done, and `page.png`. Its name says
what the results depend on, so the same command goes on where it was interrupted, and another command starts anew.
"""

import hashlib
import json
import time
from pathlib import Path

import torch
from PIL import Image

from dnnlib.errors import UserError
from dnnlib.files import replacing
from metrics.consistency import pictures
from metrics.consistency.mesh import extract_surface
from metrics.consistency.recipes import make_recipe
from metrics.consistency.scoring import SSIM_SETTINGS, check_window, psnr, ssim
from metrics.consistency.subjects import find_subjects
from metrics.consistency.trainer import fit
from metrics.registry import Outcome
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
    parts = {
        'psnr_std': _deviation(records, 'psnr'),
        'ssim_std': _deviation(records, 'ssim'),
        'subjects': len(records),
        'seconds_per_subject': _mean(records, 'seconds'),
    }
    protocol = {**run.protocol, 'subjects': run.names}
    details = {'content': run.subjects.fingerprint, 'folder': run.folder.name}
    return {metric: _outcome(metric, records, parts, protocol, details) for metric in metrics}


def _outcome(metric, records, parts, protocol, details):
    name = metric.removesuffix('_mv')
    per_subject = {record['subject']: record[name] for record in records}
    return Outcome(_mean(records, name), parts, protocol, {**details, 'per_subject': per_subject})


def _mean(records, name):
    return sum(record[name] for record in records) / len(records)


def _deviation(records, name):
    return torch.tensor([record[name] for record in records], dtype=torch.float64).std(correction=0).item()


class Reconstructions:
    """The subjects of one Task, how they are reconstructed, and the folder of their results."""

    def __init__(self, task):
        self.task, self.options = task, task.options
        self.subjects = find_subjects(task)
        self.names = self.subjects.names
        self.background = self.options['background'] or self.subjects.background
        given = {'steps': self.options['fit_steps'], 'rays': self.options['fit_rays']}
        self.recipe_changes = {name: value for name, value in given.items() if value is not None}
        # What the recipe is at the subjects' own size stands in their files.
        recipe = make_recipe(self.options['recipe'], 256, **self.recipe_changes).to_dict()
        self.protocol = {
            **self.subjects.about(),
            **FIXED_CHOICES,
            'recipe': self.options['recipe'],
            'recipe_at_256_pixels': recipe,
            'recipe_changes': self.recipe_changes,
            'background': self.background,
            'held_out': self.options['held_out'],
            'fit_seed': task.seed,
        }
        depends_on = json.dumps([self.protocol, self.subjects.fingerprint], sort_keys=True)
        key = hashlib.blake2b(depends_on.encode(), digest_size=4).hexdigest()
        self.folder = Path(task.outdir) / f'consistency-{task.branch or "views"}-{key}'

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
        wanted = ('.json', '.ply') if self.options['meshes'] else ('.json',)
        return all(self._file(index, suffix).exists() for suffix in wanted)

    def _score(self, index):
        start = time.perf_counter()
        views = self.subjects.load(index)
        check_window(views.size)
        rendered_after = time.perf_counter() - start
        recipe = make_recipe(self.options['recipe'], max(views.size), **self.recipe_changes)
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
            'recipe': recipe.to_dict(),
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
        save_png(pictures.page(strips), self.folder / 'page.png')

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


def score_views(reconstruction, views):
    """Scores of a reconstruction at the cameras of `views`: a record (plain data), and a strip of pictures of one view."""
    rgb, _, normal, _ = (x.cpu() for x in reconstruction.render(views.labels, views.size))
    given = views.images.float() / 255
    per_view = {'psnr_views': psnr(rgb, given), 'ssim_views': ssim(rgb, given)}
    shown = len(views) // 4  # neither frontal nor at the end of the range
    record = {
        'psnr': per_view['psnr_views'].mean().item(),
        'ssim': per_view['ssim_views'].mean().item(),
        **{name: [round(value, 5) for value in values.tolist()] for name, values in per_view.items()},
    }
    return record, pictures.strip(given[shown], rgb[shown], normal[shown])


def _write(path, text):
    with replacing(path) as file:
        file.write(text.encode())
