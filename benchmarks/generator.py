"""How fast latents become planes: 3D-aware convolutions without concatenation against those with it, in every variant of E.

    python -m benchmarks.generator --json=generator.json

Times are medians; peak memory is what a call takes beyond the weights; multiplications are counted. Without a GPU small
sizes run on the CPU, which shows that the benchmark works and nothing more.
"""

import click
import torch
from torch.utils.flop_counter import FlopCounterMode

from benchmarks.measuring import device_name, markdown, number, peak_megabytes, write_json
from benchmarks.ops import median_time
from dnnlib.cli import friendly_errors
from dnnlib.params import UserPath
from training.networks.aware_conv import align_planes, aware_modulated_conv2d, plane_modulated_conv2d
from training.networks.generator import Generator
from training.presets import PRESETS, generator_config

# The variants of the paper's table 3: where convolutions see aligned planes.
AWARENESS = {'nowhere': dict(aware='none', branch_3d='none'), 'stream': dict(), 'latent': dict(aware='latent')}
CONVOLUTIONS = ('strips', 'concatenated')
PASSES = ('forward', 'forward + backward')


def concatenating_conv2d(planes, weight, styles, **options):
    """The specification of aware_modulated_conv2d."""
    return plane_modulated_conv2d(align_planes(planes), weight, styles, **options)


def build_variant(preset, awareness, convolution, device):
    torch.manual_seed(0)
    G = Generator(generator_config(PRESETS[preset]).replace(**AWARENESS[awareness])).to(device)
    for layer in G.modules():
        if convolution == 'concatenated' and getattr(layer, 'convolution', None) is aware_modulated_conv2d:
            layer.convolution = concatenating_conv2d
    return G


def measure_planes(G, batch, with_backward, device, repeats):
    """Milliseconds, MiB and billions of multiplications of making planes from ws."""
    ws = torch.randn(batch, G.backbone.num_ws, G.config.w_dim, device=device)

    def call(gradients=with_backward):
        with torch.set_grad_enabled(gradients):
            planes = G.planes(ws, noise_mode='const')
        if with_backward:
            sum(p.square().mean() for p in planes if p is not None).backward()
            G.zero_grad(set_to_none=True)

    with FlopCounterMode(display=False) as counter:
        call(gradients=True)  # which the counter needs; without a backward pass they cost nothing
    return dict(
        milliseconds=median_time(call, device, repeats),
        megabytes=peak_megabytes(call, device),
        multiplications=counter.get_total_flops() / 2e9,
    )


def measure_variants(preset, batches, device, repeats):
    """{'device', 'torch', 'preset', 'rows'}. What does not fit into memory has a row without figures."""
    rows = []
    for awareness in AWARENESS:
        for convolution in CONVOLUTIONS[:1] if awareness == 'nowhere' else CONVOLUTIONS:
            G = build_variant(preset, awareness, convolution, device)
            parameters = sum(p.numel() for part in (G.backbone, G.mapping) for p in part.parameters()) / 1e6
            for batch in batches:
                for name in PASSES:
                    try:
                        measured = measure_planes(G, batch, name != 'forward', device, repeats)
                    except torch.cuda.OutOfMemoryError:
                        measured = dict(milliseconds=None, megabytes=None, multiplications=None)
                    rows.append(
                        dict(
                            awareness=awareness, convolution=convolution, parameters=parameters, batch=batch, ran=name, **measured
                        )
                    )
            del G
    return dict(device=device_name(device), torch=torch.__version__, preset=preset, repeats=repeats, rows=rows)


def variants_table(result):
    """Lines of text: the device, and a table."""
    yield f'{result["device"]}, PyTorch {result["torch"]}, sizes of {result["preset"]}\n'
    titles = ('3D-aware', 'convolution', 'parameters of E and mapping, M', 'batch', 'pass', 'ms', 'MiB', 'multiplications, G')
    yield from markdown(
        titles,
        [
            (
                row['awareness'],
                row['convolution'],
                number(row['parameters'], 1),
                row['batch'],
                row['ran'],
                number(row['milliseconds'], 2),
                number(row['megabytes'], 0),
                number(row['multiplications'], 2),
            )
            for row in result['rows']
        ],
    )


@click.command()
@click.option('--preset', type=click.Choice(sorted(PRESETS)), default='ffhq512', show_default=True, help='Sizes')
@click.option('--small', is_flag=True, help='Small sizes, as without a GPU')
@click.option('--batches', default='1,4', show_default=True, help='Images at a time, separated by commas')
@click.option('--repeats', type=click.IntRange(min=1), default=20, show_default=True)
@click.option('--json', 'json_path', type=UserPath(dir_okay=False), help='Also write the result to this file')
@friendly_errors
def main(preset, small, batches, repeats, json_path):
    """Times of making planes, as a table."""
    device = torch.device('cuda' if torch.cuda.is_available() else 'cpu')
    sizes = 'demo' if small or device.type == 'cpu' else preset
    result = measure_variants(sizes, [int(batch) for batch in batches.split(',')], device, repeats)
    print('\n'.join(variants_table(result)))
    if device.type == 'cpu':
        print('\nThere is no CUDA device: small sizes. The published sizes are not yet measured.')
    if json_path:
        write_json(result, json_path)


if __name__ == '__main__':
    main()
