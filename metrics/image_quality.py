"""FID and its family: metrics of a set of generated images, most of them against a set of real ones.

One pass over the judged images serves all metrics that are asked for; real images are looked at once, and what was found is
cached (metrics/real_statistics.py).
"""

from dataclasses import dataclass
from typing import ClassVar

import click

from dnnlib.errors import UserError
from metrics import detector as detectors
from metrics import registry
from metrics.collection import collect
from metrics.images import GeneratedImages, StoredImages, check_render_resolution, check_resolution, load_data
from metrics.processes import from_first
from metrics.real_statistics import real_statistics
from metrics.registry import Group, Outcome
from training.dataset import ImageDataset

ALL = 'all'  # every real image


@dataclass(frozen=True)
class ImageMetric:
    """A metric by its numbers. Subclasses add `statistic` (metrics/statistics.py) and `compare`.

    count: judged images, None: as many as both sets have; real: real images it takes: a number, ALL or None; least: images
    that a set must have; same_size: whether judged and real images must be of one resolution (the detector resizes its own).
    """

    name: str
    count: int | None
    real: int | str | None
    least: ClassVar[int] = 2
    same_size: ClassVar[bool] = False

    def compare(self, judged, real, task):
        """(value, parts, protocol) from what the statistic's collectors found; `real` is None where none are taken."""
        raise NotImplementedError

    def counts(self, judged, real):
        """(judged images, real images or None) to take of `judged` and `real` that there are (None: any number, none)."""
        count = self.count
        self._check(count, judged, 'of --images')
        wanted = real if self.real == ALL else self.real
        self._check(wanted, real, 'of --data')
        return count, wanted

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


def evaluate(metrics, task):
    """Outcomes of ImageMetrics by name; see registry.Group."""
    data = load_data(task) if task.generator is not None or any(metric.real for metric in metrics) else None
    judged = _judged_images(task, data)
    for metric in metrics:
        if metric.same_size and task.generator is not None:
            check_render_resolution(metric.name, task, judged, data)
    present = None if task.generator is not None else len(judged), None if data is None else len(data)
    counts = {metric: metric.counts(*present) for metric in metrics}
    layers = sorted({metric.statistic.layer for metric in metrics if metric.statistic.layer})
    weights = detectors.find_weights(task.options.get('detector')) if layers else None
    detector = detectors.Detector(weights[0], layers, task.device) if layers else None
    wanted = [(metric.statistic, counts[metric][1]) for metric in metrics if metric.real]
    real, content = real_statistics(wanted, data, task, detector, weights and weights[1]) if wanted else ({}, None)
    found = collect(judged, [(metric.statistic, counts[metric][0]) for metric in metrics], detector, task,
                    f'{task.branch or "stored"} images')

    def outcome(metric):
        count, real_count = counts[metric]
        value, parts, protocol = metric.compare(found[metric.statistic, count], real.get((metric.statistic, real_count)), task)
        return Outcome(value, parts, {**_protocol(metric, count, real_count, judged, task, weights, content), **protocol})
    return from_first(lambda: {metric.name: outcome(metric) for metric in metrics})


def _judged_images(task, data):
    if task.generator is not None:
        return GeneratedImages(task, data.labels)
    if task.images is None:
        raise UserError('there is nothing to judge: give --network=PATH or --images=DIR')
    judged = StoredImages(ImageDataset(task.images), task)
    if data is not None:
        check_resolution(task.images, judged, data)
    return judged


def _protocol(metric, count, real_count, judged, task, weights, content):
    """Every choice that a value depends on."""
    config = task.generator.config if task.generator is not None else None
    about_generator = {} if config is None else {
        'cameras': 'training labels', 'truncation_psi': task.truncation_psi, 'truncation_cutoff': task.truncation_cutoff,
        'render_resolution': _render_resolution(judged, task), 'render_precision': config.rendering.precision,
        'skip': task.skip, 'samples_per_ray': [config.rendering.depth_samples, config.rendering.importance_samples],
        'sampling': task.sampling, 'noise_mode': task.noise_mode}
    return {'images': count, 'real_images': real_count, 'real_subset': None if metric.real is None else
            'all' if metric.real == ALL else 'drawn by the seed', 'resolution': judged.resolution, 'mirror': task.mirror,
            'data_content': content, 'seed': task.seed, 'batch': task.batch, 'tf32': False, **about_generator,
            **({'detector': detectors.NAME, 'detector_sha256': weights[1], 'layer': metric.statistic.layer}
               if metric.statistic.layer else {})}


def _render_resolution(judged, task):
    """Pixels per side of the volume render."""
    own = judged.resolution if task.branch == '3d' else task.generator.config.render_resolution
    return judged.render_resolution or own


def image_count(match):
    """The number of images in a metric's name: '50k' is 50 000."""
    return int(match['count']) * (1000 if match['thousand'] else 1)


COUNT = r'(?P<count>[1-9]\d*)(?P<thousand>k?)'  # in patterns of names

GROUP = Group(evaluate, options=(
    click.option('--detector', metavar='FILE',
                 help='Inception weights of torch-fidelity.  [default: its cache, or its download]'),
    click.option('--cache-dir', metavar='DIR', help='Where statistics of real images are kept.  [default: ~/.cache/mimic3d]')))
