"""How fast planes become images: fused kernels against plain PyTorch.

    python -m benchmarks.render --json=render.json
    python -m benchmarks.render --network=network-snapshot.pkl --skip=1e-4,1e-3,1e-2

Times are medians; peak memory is what a call takes beyond planes and weights. The floor is the longer of two times: the
decoder's and the lookups' operations at the device's measured rate of matrix products, and the bytes of planes, rays and
pixels at its measured copy bandwidth. The difference is the picture's, from that of plain PyTorch, in 8-bit levels.
Weights are random unless a network is given; what skipping saves depends on the subject, so it takes a network. Without a
GPU small sizes run on the CPU, in plain PyTorch only, which shows that the benchmark works and nothing more.
"""

import functools
import os
from typing import NamedTuple

import click
import torch

from benchmarks.measuring import device_name, markdown, number, peak_megabytes, write_json
from benchmarks.ops import copy_bandwidth, median_time
from dnnlib.cli import friendly_errors, refuse_idle
from dnnlib.params import UserPath
from sampling.subjects import load_generator
from training.config import RENDER_PRECISIONS
from training.networks.generator import Generator, Planes
from training.presets import PRESETS, generator_config
from training.rendering.cameras import view_label
from training.rendering.fused import VARIABLE

LEVELS = 127.5  # 8-bit levels per unit of an image in [-1, 1]
# What products of each precision are measured with: dtype, and whether fp32 may be rounded to TF32.
RATES = {
    'fp32': (torch.float32, False),
    'tf32': (torch.float32, True),
    'fp16': (torch.float16, True),
    'bf16': (torch.bfloat16, True),
}
RATE_OF = {'tf32x3': 'tf32'}  # takes three of them


class RenderCase(NamedTuple):
    """What is rendered: branch, images, whether gradients are taken."""

    name: str
    branch: str
    batch: int
    training: bool = False


CASES = (
    RenderCase('3D branch', '3d', 1),
    RenderCase('3D branch', '3d', 4),
    RenderCase('2D branch', '2d', 1),
    RenderCase('2D branch', '2d', 4),
    RenderCase('training step', 'both', 4, training=True),
)


class Variant(NamedTuple):
    """How it is rendered."""

    renderer: str  # 'ref' or 'fused'
    precision: str = 'fp32'
    skip: float = 0.0

    @property
    def name(self):
        precision = f' {self.precision}' if self.renderer == 'fused' else ''
        return self.renderer + precision + (f' skip {self.skip:g}' if self.skip else '')


class Setting:
    """Cached planes of a batch, the ws and cameras they are seen with."""

    def __init__(self, G, batch, device):
        self.G = G
        self.c = view_label(G.config, yaw=torch.linspace(-0.3, 0.3, batch), pitch=torch.zeros(batch)).to(device)
        with torch.no_grad():
            self.ws = G.mapping(torch.randn(batch, G.config.z_dim, device=device), self.c, truncation_psi=0.7)
            self.planes = G.planes(self.ws, noise_mode='const')
        beside = G.config.image_resolution - G.config.render_resolution
        self.corners = torch.randint(beside + 1, (batch, 2), device=device)
        self.bounds = None

    def image(self, case, variant):
        """The image of a branch. Deterministic sampling, so that variants can be compared."""
        options = dict(precision=variant.precision, sampling='deterministic')
        with torch.no_grad():
            if variant.skip:
                self.bounds = self.bounds or self.G.density_bounds(self.planes, case.branch)
                options.update(skip=variant.skip, bounds=self.bounds)
            return self.G.render(self.planes, self.c, case.branch, ws=self.ws, **options)['image']

    def training_step(self, variant):
        """Volume render of the 2D branch and a patch of the 3D branch, forward and backward, as G's step has them."""
        G, options = self.G, dict(precision=variant.precision)
        planes = Planes(*(p.detach().requires_grad_() for p in self.planes))
        raw = G.render(planes, self.c, '2d', ws=self.ws, **options)['image_raw']
        patch = G.render(planes, self.c, '3d', patch=self.corners, **options)['image']
        (raw.square().mean() + patch.square().mean()).backward()
        G.zero_grad(set_to_none=True)


def samples_of(config, case):
    """Samples of a case, as (rays, samples per ray, colours, sets of planes) for each of its renders."""
    per_ray = config.rendering.depth_samples + config.rendering.importance_samples
    small, large = config.render_resolution**2, config.image_resolution**2
    of_2d = (case.batch * small, per_ray, config.plane_channels, 1)
    of_3d = (case.batch * (small if case.training else large), per_ray, 3, 2)
    return {'2d': [of_2d], '3d': [of_3d], 'both': [of_2d, of_3d]}[case.branch]


def floor_milliseconds(config, case, rates, precision):
    """The least time: operations over the rate of products, or bytes over the bandwidth; training counts three times."""
    c, h = config.plane_channels, config.decoder_hidden
    operations = moved = 0
    for rays, per_ray, colors, sets in samples_of(config, case):
        operations += rays * per_ray * 2 * (c * h + h * (1 + colors) + sets * 12 * c)
        texels = case.batch * 3 * c * sum((k * config.plane_resolution) ** 2 for k in range(1, sets + 1))
        moved += 4 * (texels + rays * (6 + 3 + colors))
    passes = 3 if case.training else 1  # backward: the same again for inputs and for weights
    times = 3 if precision == 'tf32x3' else 1
    at_rate = times * operations / (rates[RATE_OF.get(precision, precision)] * 1e9)
    return passes * max(at_rate, moved / (rates['copy'] * 1e6))


def measure_rates(device, repeats):
    """{'copy': GB/s, precision: TFLOP/s of a large matrix product}."""
    size = 8192 if device.type == 'cuda' else 512
    rates = dict(copy=copy_bandwidth(device, repeats))
    allowed = torch.backends.cuda.matmul.allow_tf32
    for name, (dtype, tf32) in RATES.items():
        torch.backends.cuda.matmul.allow_tf32 = tf32
        a = torch.randn(size, size, device=device).to(dtype)
        rates[name] = 2 * size**3 / median_time(functools.partial(torch.matmul, a, a), device, repeats) / 1e9
    torch.backends.cuda.matmul.allow_tf32 = allowed
    return rates


def measure_render(setting, case, variant, rates, device, repeats):
    """One row of the table."""
    config = setting.G.config
    os.environ[VARIABLE] = variant.renderer

    def call():
        return setting.training_step(variant) if case.training else setting.image(case, variant)

    memory, milliseconds = peak_megabytes(call, device), median_time(call, device, repeats)
    samples = sum(rays * per_ray for rays, per_ray, *_ in samples_of(config, case))
    difference = None
    if not case.training and variant != Variant('ref'):
        image = call()
        os.environ[VARIABLE] = 'ref'
        off = (image - setting.image(case, Variant('ref'))).abs() * LEVELS
        difference = dict(mean=off.mean().item(), largest=off.max().item())
    return dict(
        case=case.name,
        batch=case.batch,
        resolution=config.image_resolution,
        variant=variant.name,
        milliseconds=milliseconds,
        floor=floor_milliseconds(config, case, rates, variant.precision),
        megabytes=memory,
        samples_per_second=samples / milliseconds * 1000,
        difference=difference,
    )


def variants(case, device, skips):
    fused = [Variant('fused', precision) for precision in RENDER_PRECISIONS] if device.type == 'cuda' else []
    skipping = []
    if case.branch == '3d':
        fastest = Variant('fused', 'fp16') if fused else Variant('ref')
        skipping = [base._replace(skip=eps) for base in dict.fromkeys([Variant(fastest.renderer), fastest]) for eps in skips]
    return [Variant('ref'), *fused, *skipping]


def measure_renders(G, device, repeats, skips):
    """{'device', 'torch', 'rates', 'rows'}."""
    rates, rows = measure_rates(device, repeats), []
    forced = os.environ.get(VARIABLE)
    try:
        for case in CASES:
            setting = Setting(G, case.batch, device)
            rows += [measure_render(setting, case, variant, rates, device, repeats) for variant in variants(case, device, skips)]
    finally:
        os.environ.pop(VARIABLE, None)
        if forced is not None:
            os.environ[VARIABLE] = forced
    return dict(device=device_name(device), torch=torch.__version__, rates=rates, repeats=repeats, rows=rows)


def renders_table(result):
    """Lines of text: the device and its rates, and a table."""
    rates = ', '.join(f'{name} {rate:.2f} TFLOP/s' for name, rate in result['rates'].items() if name != 'copy')
    yield f'{result["device"]}, PyTorch {result["torch"]}; copy {result["rates"]["copy"]:.0f} GB/s; products in {rates}\n'
    titles = ('case', 'batch', 'size', 'variant', 'ms', 'floor, ms', 'MiB', 'Msamples/s', 'mean difference', 'largest')
    yield from markdown(
        titles,
        [
            (
                row['case'],
                row['batch'],
                row['resolution'],
                row['variant'],
                number(row['milliseconds'], 2),
                number(row['floor'], 2),
                number(row['megabytes'], 0),
                number(row['samples_per_second'] / 1e6, 2),
                *(number(row['difference'] and row['difference'][which], 4) for which in ('mean', 'largest')),
            )
            for row in result['rows']
        ],
    )


def build_generator(preset, small, device):
    """A generator with random weights, of a preset's size or, small, of one that a CPU renders in a moment."""
    config = generator_config(PRESETS['demo' if small else preset])
    torch.manual_seed(0)
    return Generator(config).to(device).requires_grad_(True)


@click.command()
@click.option('--preset', type=click.Choice(sorted(PRESETS)), default='ffhq512', show_default=True, help='Sizes')
@click.option('--network', type=UserPath(), help='A snapshot to render, in place of random weights')
@click.option(
    '--skip',
    'skips',
    default='1e-4,1e-3,1e-2',
    show_default=True,
    help='With a network: weights under which samples are left out',
)
@click.option('--small', is_flag=True, help='Small sizes, as without a GPU')
@click.option('--repeats', type=click.IntRange(min=1), default=20, show_default=True)
@click.option('--json', 'json_path', type=UserPath(dir_okay=False), help='Also write the result to this file')
@friendly_errors
def main(preset, network, skips, small, repeats, json_path):
    """Times of rendering, as a table."""
    device = torch.device('cuda' if torch.cuda.is_available() else 'cpu')
    if network:
        refuse_idle(('preset', 'small'), 'with --network')
        G = load_generator(network, device).requires_grad_(True)
    else:
        refuse_idle(('skips',), 'without --network')
        G = build_generator(preset, small or device.type == 'cpu', device)
    result = measure_renders(G, device, repeats, [float(eps) for eps in skips.split(',')] if network else [])
    print('\n'.join(renders_table(result)))
    if device.type == 'cpu':
        print('\nThere is no CUDA device: plain PyTorch only. The fused kernels are not yet measured here.')
    if json_path:
        write_json(result, json_path)


if __name__ == '__main__':
    main()
