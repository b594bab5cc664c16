"""FID and its family: metrics of a set of generated images, most of them against a set of real ones.

One pass over the evaluated images serves all metrics that take the same ones; real images are looked at once, and what was found
is cached (metrics/real_statistics.py).
"""

from dataclasses import dataclass
from typing import ClassVar

import click

from dnnlib.errors import UserError
from dnnlib.params import UserPath
from metrics import detector as detectors
from metrics import registry
from metrics.collection import collect
from metrics.images import (
    PUBLISHED,
    GeneratedImages,
    Rendering,
    StoredImages,
    background_of,
    check_render_resolution,
    check_resolution,
    load_data,
    say_notes,
)
from metrics.real_statistics import real_statistics
from metrics.registry import GENERATION_OPTIONS, Group, Outcome
from torch_utils import distributed
from training.data.dataset import ImageDataset

ALL = 'all'  # every real image


@dataclass(frozen=True)
class ImageMetric:
    """A metric by its numbers. Subclasses add `statistic` (metrics/statistics.py) and `compare`.

    count: evaluated images, None: as many as both sets have; real: real images it takes: a number, ALL or None; least: images
    that a set must have; same_size: whether evaluated and real images must be of one resolution (the detector resizes its own);
    rendering: how a generator makes the images, unless the task says otherwise.
    """

    name: str
    count: int | None
    real: int | str | None
    least: ClassVar[int] = 2
    same_size: ClassVar[bool] = False
    rendering: ClassVar[Rendering] = PUBLISHED

    def compare(self, evaluated, real, task):
        """(value, parts, protocol) from what the statistic's collectors found; `real` is None where none are taken."""
        raise NotImplementedError

    def counts(self, evaluated, real):
        """(evaluated images, real images or None) to take of `evaluated` and `real` that there are (None: any number, none)."""
        count = self.count
        self._check(count, evaluated, 'of --images')
        wanted = real if self.real == ALL else self.real
        self._check(wanted, real, 'of --data')
        return count, wanted

    def rendering_for(self, task):
        """The Rendering of a task with a generator."""
        conditioning = self.rendering.conditioning_camera if task.generator.config.pose_conditioning else 'none'
        return Rendering(task.sampling or self.rendering.sampling, task.noise_mode or self.rendering.noise_mode, conditioning)

    def _check(self, wanted, present, whose):
        if wanted is not None and wanted < self.least:
            raise UserError(f'{self.name} needs at least {self.least} images of each set: ask for a larger number')
        if None not in (wanted, present) and wanted > present:
            raise UserError(f'{self.name} needs {wanted} images, but there are only {present} {whose}: ask for a smaller number')


def needs_detector(name):
    """Whether a metric, by its name, needs the detector's weights."""
    family, match = registry.find(name)
    return family.group is GROUP and family.build(match).statistic.layer is not None


def check_counts(names, real):
    """Raises UserError where a metric of generated images, by its name, takes more than the `real` images that there are."""
    for group, metrics in registry.by_group(names):
        if group is GROUP:
            for metric in metrics:
                metric.counts(None, real)


def evaluate_images(metrics, task):
    """Outcomes of ImageMetrics by name; see registry.Group."""
    data = load_data(task) if task.generator is not None or any(metric.real for metric in metrics) else None
    sources = _evaluated_images(metrics, task, data)
    for metric, source in sources.items():
        if metric.same_size and task.generator is not None:
            check_render_resolution(metric.name, task, source, data)
    present = None if task.generator is not None else len(sources[metrics[0]]), None if data is None else len(data)
    counts = {metric: metric.counts(*present) for metric in metrics}
    layers = sorted({metric.statistic.layer for metric in metrics if metric.statistic.layer})
    weights = detectors.find_weights(task.options.get('detector')) if layers else None
    detector = detectors.Detector(weights[0], layers, task.device) if layers else None
    wanted = [(metric.statistic, counts[metric][1]) for metric in metrics if metric.real]
    real, content = real_statistics(wanted, data, task, detector, weights and weights[1]) if wanted else ({}, None)
    found = {}
    for source in dict.fromkeys(sources.values()):
        taken = [(metric.statistic, counts[metric][0]) for metric in metrics if sources[metric] is source]
        found[source] = collect(source, taken, detector, task, f'{task.branch or "stored"} images')

    def outcome(metric):
        (count, real_count), source = counts[metric], sources[metric]
        evaluated = found[source][metric.statistic, count]
        value, parts, protocol = metric.compare(evaluated, real.get((metric.statistic, real_count)), task)
        return Outcome(value, parts, {**_protocol(metric, count, real_count, source, task, weights, content), **protocol})

    return distributed.from_first(lambda: {metric.name: outcome(metric) for metric in metrics})


def _evaluated_images(metrics, task, data):
    """{metric: where its images come from}; metrics that take the same images share one source."""
    if task.generator is not None:
        renderings = {metric: metric.rendering_for(task) for metric in metrics}
        sources = {rendering: GeneratedImages(task, data.labels, rendering) for rendering in renderings.values()}
        return {metric: sources[rendering] for metric, rendering in renderings.items()}
    if task.images is None:
        raise UserError('there is nothing to evaluate: give --network=PATH or --images=DIR')
    for metric in metrics:
        if metric.rendering.conditioning_camera == 'frontal':
            raise UserError(f'{metric.name} needs --network: which camera conditioned stored images is unknown; leave it out')
    images = ImageDataset(task.images, background=background_of(task))
    if distributed.rank() == 0:
        say_notes(task, images)
    stored = StoredImages(images, task)
    if data is not None:
        check_resolution(task.images, stored, data)
    return dict.fromkeys(metrics, stored)


def _protocol(metric, count, real_count, source, task, weights, content):
    """Every choice that a value depends on."""
    about_generator = {} if task.generator is None else _about_generation(source, task)
    return {
        'images': count,
        'real_images': real_count,
        'real_subset': None if metric.real is None else 'all' if metric.real == ALL else 'drawn by the seed',
        'resolution': source.resolution,
        'mirror': task.mirror,
        'data_content': content,
        'seed': task.seed,
        'tf32': False,
        **about_generator,
        **(
            {'detector': detectors.NAME, 'detector_sha256': weights[1], 'layer': metric.statistic.layer}
            if metric.statistic.layer
            else {}
        ),
    }


def _about_generation(source, task):
    rendering = task.generator.config.rendering
    about = {
        'cameras': 'training labels',
        **source.rendering._asdict(),
        'truncation_psi': task.truncation_psi,
        'truncation_cutoff': task.truncation_cutoff,
        'render_resolution': _render_resolution(source, task),
        'render_precision': rendering.precision,
        'skip': task.skip,
        'batch': task.batch,
        'samples_per_ray': [rendering.depth_samples, rendering.importance_samples],
    }
    if source.rendering.conditioning_camera == 'frontal':
        about['frontal_camera'] = {
            'radius': rendering.camera_radius,
            'pivot': list(rendering.camera_pivot),
            'focal': rendering.focal,
        }
    return about


def _render_resolution(source, task):
    """Pixels per side of the volume render."""
    own = source.resolution if task.branch == '3d' else task.generator.config.render_resolution
    return source.render_resolution or own


def image_count(match):
    """The number of images in a metric's name: '50k' is 50 000."""
    return int(match['count']) * (1000 if match['thousand'] else 1)


COUNT = r'(?P<count>[1-9]\d*)(?P<thousand>k?)'  # in patterns of names


def _uses(metrics, generated):
    own = GENERATION_OPTIONS | {'sampling', 'noise_mode', 'skip', 'data', 'mirror'} if generated else {'images', 'background'}
    return own | ({'data', 'mirror'} if any(metric.real for metric in metrics) else set())


GROUP = Group(
    evaluate_images,
    uses=_uses,
    options=(
        click.option(
            '--detector',
            type=UserPath(),
            metavar='FILE',
            help='Inception weights of torch-fidelity.  [default: its cache, or its download]',
        ),
        click.option(
            '--cache-dir',
            type=UserPath(),
            metavar='DIR',
            help='Where statistics of real images are kept.  [default: ~/.cache/mimic3d]',
        ),
    ),
)
