"""FID and its family: metrics of a set of generated images, most of them against a set of real ones.

One pass over the evaluated images serves all metrics that take the same ones; real images are looked at once, and what was found
is cached (metrics/real_statistics.py).
"""

from dataclasses import dataclass
from typing import ClassVar

import click

from dnnlib.errors import UserError
from dnnlib.params import UserPath
from metrics import registry
from metrics.detector import NAME as DETECTOR_NAME
from metrics.detector import Detector, find_weights
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
from metrics.statistics import Statistic, collect_statistics
from torch_utils import distributed
from training.data.dataset import ImageDataset

ALL, SAME = 'all', 'same'  # every real image; as many as evaluated ones


@dataclass(frozen=True)
class ImageMetric:
    """A metric by its numbers. Subclasses add `statistic` and `compare`.

    count: evaluated images, None: as many as both sets have; real: real images it takes: a number, ALL or None; least: images
    that a set must have; same_size: whether evaluated and real images must be of one resolution (the detector resizes its own);
    rendering: how a generator makes the images, unless the task says otherwise.
    """

    name: str
    count: int | None
    real: int | str | None
    statistic: ClassVar[Statistic]
    least: ClassVar[int] = 2
    same_size: ClassVar[bool] = False
    rendering: ClassVar[Rendering] = PUBLISHED

    def compare(self, evaluated, real, task):
        """(value, parts, protocol) from what the statistic's collectors found; `real` is None where none are taken."""

    def counts(self, evaluated, real):
        """(evaluated images, real images or None) to take of `evaluated` and `real` that there are (None: any number, none)."""
        wanted = real if self.real == ALL else self.real
        self._check(self.count, evaluated, 'of --images')
        self._check(wanted, real, 'of --data')
        return self.count, wanted

    def rendering_for(self, task):
        """The Rendering of a task with a generator."""
        conditioning = self.rendering.conditioning_camera if task.generator.config.pose_conditioning else 'none'
        return Rendering(task.sampling or self.rendering.sampling, task.noise_mode or self.rendering.noise_mode, conditioning)

    def _check(self, wanted, present, whose):
        if wanted is not None and wanted < self.least:
            raise UserError(f'{self.name} needs at least {self.least} images of each set: ask for a larger number')
        if None not in (wanted, present) and wanted > present:
            raise UserError(f'{self.name} needs {wanted} images, but there are only {present} {whose}: ask for a smaller number')


def check_counts(names, real):
    """Raises UserError where a metric of generated images, by its name, takes more than the `real` images that there are."""
    for metric in registry.by_group(names).get(GROUP, {}).values():
        metric.counts(None, real)


def need_detector(names):
    """Those of metrics' names whose metrics need the detector's weights."""
    return [name for name, metric in registry.by_group(names).get(GROUP, {}).items() if metric.statistic.layer]


def compute_image_metrics(metrics, task):
    """Outcomes of ImageMetrics by name; see registry.Group."""
    generated = task.generator is not None
    data = load_data(task) if generated or any(metric.real for metric in metrics) else None
    sources = _evaluated_images(metrics, task, data)
    present = None if generated else len(sources[metrics[0]]), None if data is None else len(data)
    counts = {metric: metric.counts(*present) for metric in metrics}
    layers = sorted({metric.statistic.layer for metric in metrics if metric.statistic.layer})
    weights, digest = find_weights(task.options.get('detector')) if layers else (None, None)
    detector = Detector(weights, layers, task.device) if layers else None
    wanted = [(metric.statistic, counts[metric][1]) for metric in metrics if metric.real]
    content = distributed.from_first(data.image_hash) if wanted else None
    real = real_statistics(wanted, data, content, task, detector, digest)
    found = {}
    for source in dict.fromkeys(sources.values()):
        taken = [(metric.statistic, counts[metric][0]) for metric in metrics if sources[metric] is source]
        found[source] = collect_statistics(source, taken, detector, task, f'{task.branch or "stored"} images')

    def outcome(metric):
        (count, real_count), source = counts[metric], sources[metric]
        evaluated = found[source][metric.statistic, count]
        value, parts, protocol = metric.compare(evaluated, real.get((metric.statistic, real_count)), task)
        about = {
            'images': count,
            'real_images': real_count,
            'real_subset': None if metric.real is None else 'all' if metric.real == ALL else 'drawn by the seed',
            'resolution': source.resolution,
            'mirror': task.mirror,
            'data_content': content,
            'seed': task.seed,
            'tf32': False,
        }
        if generated:
            about |= _about_generation(source, task)
        if metric.statistic.layer:
            about |= {'detector': DETECTOR_NAME, 'detector_sha256': digest, 'layer': metric.statistic.layer}
        return Outcome(value, parts, about | protocol)

    return distributed.from_first(lambda: {metric.name: outcome(metric) for metric in metrics})


def _evaluated_images(metrics, task, data):
    """{metric: where its images come from}; metrics that take the same images share one source."""
    if task.generator is not None:
        renderings = {metric: metric.rendering_for(task) for metric in metrics}
        sources = {rendering: GeneratedImages(task, data.labels, rendering) for rendering in renderings.values()}
        for metric, rendering in renderings.items():
            if metric.same_size:
                check_render_resolution(metric.name, task, sources[rendering], data)
        return {metric: sources[rendering] for metric, rendering in renderings.items()}
    if task.images is None:
        raise UserError('there is nothing to evaluate: give --network=PATH or --images=DIR')
    for metric in metrics:
        if metric.rendering.conditioning_camera == 'frontal':
            raise UserError(f'{metric.name} needs --network: which camera conditioned stored images is unknown; leave it out')
    images = ImageDataset(task.images, background=background_of(task))
    if distributed.rank() == 0:
        say_notes(task, images)
    if data is not None:
        check_resolution(task.images, images, data)
    return dict.fromkeys(metrics, StoredImages(images, task))


def _about_generation(source, task):
    """What generated images depend on, plain data."""
    rendering = task.generator.config.rendering
    about = {
        'cameras': 'training labels',
        **source.rendering._asdict(),
        'truncation_psi': task.truncation_psi,
        'truncation_cutoff': task.truncation_cutoff,
        'render_resolution': source.render_resolution,
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


def _uses(metrics, generated):
    own = GENERATION_OPTIONS | {'sampling', 'noise_mode', 'skip', 'data', 'mirror'} if generated else {'images', 'background'}
    return own | ({'data', 'mirror'} if any(metric.real for metric in metrics) else set())


GROUP = Group(
    compute_image_metrics,
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


def register_numbered(form, kind, real, help, higher_is_better=False):
    """Make an ImageMetric known whose name holds the number of images, N: 50k is 50 000.

    form: such as 'fid<N>_full'; kind: the class; real: as in ImageMetric, or SAME.
    """

    def build(match):
        count = int(match['count']) * (1000 if match['thousand'] else 1)
        return kind(match[0], count, count if real == SAME else real)

    pattern = form.replace('<N>', r'(?P<count>[1-9]\d*)(?P<thousand>k?)')
    registry.register(form, GROUP, help, higher_is_better, pattern, build)
