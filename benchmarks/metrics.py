"""How fast metrics go: images per second of generation, of features, and of both together.

python -m benchmarks.metrics --preset=ffhq512 --images=256
python -m benchmarks.metrics --network=network-snapshot.pkl --data=data.zip
"""

import io
import tempfile
import time
from pathlib import Path

import click
import torch

from dnnlib.cli import friendly_errors, refuse_idle
from dnnlib.params import UserPath
from metrics.detector import FEATURES, NAME, Detector
from metrics.evaluation import full_precision
from metrics.images import PUBLISHED, GeneratedImages, my_batches
from metrics.inception import FeatureMoments
from metrics.registry import Task
from metrics.statistics import Statistic, collect_statistics
from sampling.subjects import load_generator
from torch_utils import distributed
from training.networks.generator import Generator
from training.presets import PRESETS, generator_config
from training.rendering.cameras import view_label


def random_detector_weights(path):
    """Write random weights of torch-fidelity's Inception, scaled so that features vary with the image: for speed and tests."""
    from torch_fidelity.feature_extractor_inceptionv3 import FeatureExtractorInceptionV3

    class Unloaded(FeatureExtractorInceptionV3):
        def load_state_dict(self, state):
            pass

    nothing = io.BytesIO()
    torch.save({}, nothing)
    nothing.seek(0)
    network = Unloaded(NAME, [FEATURES], feature_extractor_weights_path=nothing)
    for module in network.modules():
        if isinstance(module, torch.nn.Conv2d):
            torch.nn.init.kaiming_normal_(module.weight)
    torch.save(network.state_dict(), path)


def seconds(function, device):
    """Of one call, after one to warm up, with everything on the device done."""
    function(2)
    _wait(device)
    start = time.perf_counter()
    function(None)
    _wait(device)
    return time.perf_counter() - start


def _wait(device):
    if device.type == 'cuda':
        torch.cuda.synchronize(device)


def measure_stages(task, labels, detector, images):
    """Seconds for `images` images of a task's branch: generation alone, features alone, both as metrics do it."""
    source = GeneratedImages(task, labels, PUBLISHED)
    batches = my_batches(images, task.batch)
    example = source.make(batches[0])

    def generate(most):
        for numbers in batches[:most]:
            source.make(numbers)

    def extract(most):
        for numbers in batches[:most]:
            detector(example[: len(numbers)])

    def both(most):
        count = images if most is None else batches[:most][-1].stop
        collect_statistics(source, [(Statistic(FeatureMoments, FEATURES), count)], detector, task, task.branch)

    return [seconds(function, task.device) for function in (generate, extract, both)]


@click.command(context_settings=dict(show_default=True))
@click.option('--network', type=UserPath(), metavar='PATH', help='Snapshot to measure.  [default: a random network of --preset]')
@click.option('--preset', type=click.Choice(list(PRESETS)), default='demo', help='Size of the random network.')
@click.option(
    '--detector',
    type=UserPath(),
    metavar='FILE',
    help='Inception weights; the speed does not depend on them.  [default: random ones]',
)
@click.option('--images', type=click.IntRange(1), default=64, help='Images per measurement.')
@click.option('--batch', type=click.IntRange(1), default=16, help='Images at once.')
@friendly_errors
def main(network, preset, detector, images, batch):
    """Print images per second for each branch, and how much of the shorter work is hidden behind the longer."""
    if network:
        refuse_idle(('preset',), 'with --network')
    device = distributed.pick_device()
    G = load_generator(network, str(device)) if network else Generator(generator_config(PRESETS[preset])).eval().to(device)
    with tempfile.TemporaryDirectory() as folder, full_precision(), torch.no_grad():
        weights = detector or Path(folder) / 'weights.pth'
        if detector is None:
            random_detector_weights(weights)
        features = Detector(weights, [FEATURES], device)
        labels = view_label(G.config, torch.linspace(-0.4, 0.4, 16))
        click.echo(f'{"branch":8}{"generation":>12}{"features":>12}{"together":>12}  img/s   hidden')
        for branch in ('2d', '3d') if G.config.has_3d_branch else ('2d',):
            task = Task(device=device, generator=G, branch=branch, batch=batch, progress=False)
            alone, extraction, together = measure_stages(task, labels, features, images)
            hidden = (alone + extraction - together) / min(alone, extraction)
            rates = ''.join(f'{images / spent:12.2f}' for spent in (alone, extraction, together))
            click.echo(f'{branch:8}{rates}         {hidden:6.0%}')


if __name__ == '__main__':
    main()
