"""Where images come from: a generator, or files. All give 8-bit images in a fixed order, batch by batch."""

import functools
from typing import NamedTuple

import click
import torch

from dnnlib.errors import UserError
from torch_utils import distributed
from torch_utils.images import to_uint8
from torch_utils.random import keyed_generator
from training.data.dataset import ImageDataset, PosedImageDataset, epoch_order
from training.data.loader import read_batches
from training.rendering.cameras import view_label


class Rendering(NamedTuple):
    """How images are generated, as far as metrics differ in it.

    sampling: along rays; noise_mode: of the synthesis; both as the generator takes them. conditioning_camera: what the mapping
    network sees: 'rendering', the camera that the image is rendered from; 'frontal', the same one for all images; 'none'.
    """

    sampling: str
    noise_mode: str
    conditioning_camera: str = 'rendering'


PUBLISHED = Rendering('stratified', 'random')  # as the published Inception metrics were computed (docs/method.md, section 7)
FRONTAL = PUBLISHED._replace(conditioning_camera='frontal')
WITHOUT_CHANCE = Rendering('deterministic', 'const')

READ_BATCH = 32  # stored images at once; a constant, since features depend on it in their last digits


def my_batches(count, batch):
    """This process's share of images 0 .. count - 1, as ranges of up to `batch` numbers.

    Whole batches are dealt out. So an image is always computed together with the same others, and its features are
    bit-identical for any number of processes.
    """
    return [
        range(start, min(start + batch, count))
        for start in range(distributed.rank() * batch, count, distributed.world_size() * batch)
    ]


class GeneratedImages:
    """Images of a generator. The latent of number i, its camera, which is one of the training labels, and its random numbers are
    keyed by (seed, i); latent and camera are the same for every Rendering.

    task: registry.Task with a generator; labels: [M, 25]; rendering: a Rendering.
    Attributes: `resolution` and `render_resolution`, pixels per side of the images, and of the volume render behind them.
    """

    def __init__(self, task, labels, rendering):
        self.task, self.labels, self.rendering = task, labels, rendering
        config = task.generator.config
        self._frontal = view_label(config).to(task.device)
        whole = config.image_resolution
        # 'coarse' is by default rendered at 64 x 64; here its images stand beside the data's.
        self.render_resolution = task.render_resolution or (config.render_resolution if task.branch == '2d' else whole)
        # '3d' and 'coarse' give the volume render itself; S2D brings '2d' to the network's size.
        self.resolution = whole if task.branch == '2d' else self.render_resolution

    def batches(self, count):
        """(numbers: a range, images: uint8 [n, 3, R, R] on the device) of this process's share of the first `count`."""
        for numbers in my_batches(count, self.task.batch):
            yield numbers, self.make(numbers)

    @torch.no_grad()
    def make(self, numbers):
        """Images uint8 [n, 3, R, R], on the device, of numbers (integers). Does not wait for the device."""
        task, G = self.task, self.task.generator
        random = ImageRandom(task.seed, numbers, task.device)
        z, c = (self._to_device(inputs) for inputs in self.draw_inputs(numbers))
        seen = self._frontal.expand_as(c) if self.rendering.conditioning_camera == 'frontal' else c
        ws = G.mapping(z, seen, truncation_psi=task.truncation_psi, truncation_cutoff=task.truncation_cutoff)
        planes = G.planes(ws, noise_mode=self.rendering.noise_mode, random=random, residual=task.branch == '3d')
        out = G.render(
            planes,
            c,
            branch=task.branch,
            ws=ws,
            render_resolution=self.render_resolution,
            sampling=self.rendering.sampling,
            skip=task.skip,
            random=random,
        )
        return to_uint8(out['image'])

    def draw_inputs(self, numbers):
        """Latents [n, z_dim] and cameras [n, 25] of image numbers, on the CPU, so that they are the same on any device."""
        generators = [keyed_generator((self.task.seed, number)) for number in numbers]
        z = torch.stack([torch.randn(self.task.generator.config.z_dim, generator=generator) for generator in generators])
        chosen = torch.cat([torch.randint(len(self.labels), (1,), generator=generator) for generator in generators])
        return z, self.labels[chosen]

    def _to_device(self, tensor):
        if self.task.device.type == 'cuda':  # from pinned memory the copy does not make this thread wait
            tensor = tensor.pin_memory()
        return tensor.to(self.task.device, non_blocking=True)


class ImageRandom:
    """Draws for a batch in which every image has numbers of its own, keyed by (seed, 1, number); see BatchRandom."""

    def __init__(self, seed, numbers, device):
        self.device = device
        self._keys = [(seed, 1, number) for number in numbers]
        self._generators = None

    def normal(self, *shape):
        """Standard normal numbers [n, *shape]."""
        return self._filled(torch.randn, shape)

    def uniform(self, *shape):
        """Numbers uniform in [0, 1), [n, *shape]."""
        return self._filled(torch.rand, shape)

    def _filled(self, draw, shape):
        if self._generators is None:  # renders without chance draw nothing
            self._generators = [keyed_generator(key, self.device) for key in self._keys]
        numbers = torch.empty(len(self._keys), *shape, device=self.device)
        for row, generator in zip(numbers, self._generators):
            draw(shape, generator=generator, out=row)
        return numbers


class StoredImages:
    """Images from files, read ahead by worker processes.

    items: an ImageDataset, with cameras or without; order: int64 [n], which item is number 0, 1, ... (None: as they lie).
    """

    def __init__(self, items, task, order=None):
        self.items, self.task, self.order = items, task, order
        self.resolution = items.resolution

    def __len__(self):
        return len(self.items)

    def batches(self, count):
        """As GeneratedImages.batches. Raises DatasetError for an image that cannot be read."""
        mine = my_batches(count, READ_BATCH)
        # A generator of its own: otherwise the loader would draw from torch's, and training after it would go another way.
        batches = read_batches(
            self.items,
            [numbers if self.order is None else self.order[numbers.start : numbers.stop].tolist() for numbers in mine],
            num_workers=min(self.task.workers, len(mine)),
            pin_memory=self.task.device.type == 'cuda',
            generator=torch.Generator(),
        )
        for numbers, batch in zip(mine, batches):
            images = batch[0] if isinstance(batch, list) else batch  # with cameras, or without
            yield numbers, images.to(self.task.device, non_blocking=True)


def real_subset(items, seed, count):
    """Which `count` of the real images are compared with: chosen by the seed, in their own order. int64 [count]."""
    return epoch_order(len(items), seed, 0)[:count].sort().values


def load_data(task):
    """The real images of a task, with cameras where a generator is evaluated, which needs them.

    Raises UserError when there are none, of another resolution, or when the cameras do not see the generator's box.
    """
    if task.data is None:
        raise UserError('--data is missing: name the zip or folder of real images')
    options = {'mirror': task.mirror, 'background': background_of(task)}
    if task.generator is None:
        data = ImageDataset(task.data, **options)
    else:
        data = PosedImageDataset(task.data, resolution=task.generator.config.image_resolution, **options)
        data.check_scene(task.generator.config.rendering)
    if distributed.rank() == 0:
        say_notes(task, data)
    return data


def say_notes(task, images):
    """Print what is odd about stored images (with `name` and `notes`), once; in training, which has said it, nothing."""
    if task.progress:
        for line in images.notes:
            _say_once(f'{images.name}: {line}')


_say_once = functools.cache(functools.partial(click.echo, err=True))


def background_of(task):
    """'white' or 'black': what transparent pixels of stored images are composited on: the network's, --background, or black."""
    if task.generator is not None:
        return task.generator.config.rendering.background
    return 'white' if task.options.get('background') == 'white' else 'black'


def check_resolution(path, images, data):
    """Raises UserError unless the evaluated images of `path` are of the data's resolution."""
    if images.resolution != data.resolution:
        raise UserError(
            f'--images={path} holds images of {images.resolution}x{images.resolution} pixels, the data '
            f'{data.resolution}x{data.resolution}: compare images of one resolution'
        )


def check_render_resolution(metric, task, images, data):
    """Raises UserError unless the generated images are of the data's resolution, for a metric that needs that."""
    if images.resolution != data.resolution:
        raise UserError(
            f'--render-resolution={task.render_resolution} gives images of {images.resolution}x{images.resolution} '
            f'pixels in the {task.branch} branch, but {metric} needs the size of the data, '
            f'{data.resolution}x{data.resolution}: leave out --render-resolution or {metric}'
        )
