"""What a run shows while it goes: log, progress bar, statistics, TensorBoard, picture grids."""

import os
import sys
import time

import psutil
import torch
from torch.utils.tensorboard import SummaryWriter
from tqdm import tqdm

from torch_utils.images import depth_to_image, image_grid
from torch_utils.random import BatchRandom
from torch_utils.stats import append_json_line


class Reporter:
    """Files and progress of a run, written by the first process only.

    outdir: the run's folder; total: images of the whole run; device: whose memory is shown.
    """

    def __init__(self, outdir, total, images_seen, device):
        self.outdir, self.device = outdir, device
        self.events = SummaryWriter(outdir)
        self.bar = tqdm(total=total, initial=images_seen, unit='img', unit_scale=True, dynamic_ncols=True, smoothing=0.05)
        self.start = self.tick_start = time.time()
        self.tick_images = images_seen

    def log(self, line):
        """One line to log.txt and to the terminal, above the progress bar."""
        with open(os.path.join(self.outdir, 'log.txt'), 'a') as file:
            file.write(line + '\n')
        tqdm.write(line, file=sys.stderr)

    def advance(self, images):
        self.bar.update(images)

    def tick(self, stage, images_seen, statistics):
        """Status line, stats.jsonl and TensorBoard for what happened since the last tick."""
        now = time.time()
        kimg = images_seen / 1000
        record = {
            'stage': stage, 'kimg': kimg, 'seconds': now - self.start,
            'seconds_per_kimg': (now - self.tick_start) * 1000 / max(images_seen - self.tick_images, 1),
            'cpu_memory_gib': psutil.Process().memory_info().rss / 2**30,
            **({'gpu_memory_gib': torch.cuda.max_memory_allocated(self.device) / 2**30} if self.device.type == 'cuda' else {}),
            **statistics}
        append_json_line(os.path.join(self.outdir, 'stats.jsonl'), record)
        for name, value in record.items():
            self.events.add_scalar(name, value, images_seen)
        self.events.flush()
        self.log(status_line(record))
        self.tick_start, self.tick_images = now, images_seen

    def close(self):
        self.bar.close()
        self.events.close()


def status_line(record):
    """A tick in one line of fixed columns."""
    memory = f'cpu {record["cpu_memory_gib"]:.2f} GiB'
    if 'gpu_memory_gib' in record:
        memory += f'  gpu {record["gpu_memory_gib"]:.2f} GiB'
    losses = [f'{label} {record[name]:.3f}' for label, name in (
        ('G', 'loss/G/adversarial'), ('D', 'loss/D'), ('imitation', 'loss/G/imitation'), ('D_patch', 'loss/D_patch'),
        ('ada p', 'augment/p')) if name in record]
    return (f'stage {record["stage"]}  kimg {record["kimg"]:9.2f}  {_duration(record["seconds"]):>9}  '
            f'{record["seconds_per_kimg"]:7.2f} s/kimg  {memory}  ' + '  '.join(losses))


def _duration(seconds):
    minutes, seconds = divmod(int(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f'{hours}h {minutes:02d}m' if hours else f'{minutes}m {seconds:02d}s'


def default_grid(resolution):
    """Columns and rows that fill about a 4K picture, within reason."""
    return min(max(3840 // resolution, 4), 15), min(max(2160 // resolution, 2), 8)


class SampleGrid:
    """The same latents and cameras, drawn again and again while training."""

    def __init__(self, dataset, config, z_dim, device):
        self.columns, rows = config.grid_size or default_grid(dataset.resolution)
        count = self.columns * rows
        random = BatchRandom.keyed((config.seed, 0), count)
        self.indices = random.integers(len(dataset))
        self.z = random.normal(z_dim).to(device)
        self.c = dataset.labels[self.indices].to(device)
        self.batch = config.batch_per_pass

    def save_reals(self, dataset, outdir):
        """reals.png: the images whose cameras the samples are seen from."""
        images = torch.stack([dataset[i][0] for i in self.indices.tolist()])
        image_grid(images, self.columns).save(os.path.join(outdir, 'reals.png'))

    @torch.no_grad()
    def save(self, G, outdir, kimg):
        """fakes<kimg>_{2d,raw,depth}.png, and _3d.png for a generator that has a 3D branch. Returns the paths."""
        pictures = {}
        for z, c in zip(self.z.split(self.batch), self.c.split(self.batch)):
            for name, images in self._render(G, z, c).items():
                pictures.setdefault(name, []).append(images.cpu())
        paths = []
        for name, parts in pictures.items():
            paths.append(os.path.join(outdir, f'fakes{kimg:06d}_{name}.png'))
            image_grid(torch.cat(parts), self.columns).save(paths[-1])
        return paths

    @staticmethod
    def _render(G, z, c):
        ws = G.mapping(z, c)
        planes = G.planes(ws, noise_mode='const')
        out = G.render(planes, c, '2d', ws=ws, sampling='deterministic')
        pictures = {'2d': out['image'], 'raw': out['image_raw'], 'depth': depth_to_image(out['image_depth'])}
        if G.config.residual:
            out = G.render(planes, c, '3d', sampling='deterministic')
            pictures.update({'3d': out['image'], 'depth': depth_to_image(out['image_depth'])})
        return pictures
