"""How fast the operators are, against plain PyTorch and compiled PyTorch.

    python -m benchmarks.ops --json=ops.json

At the sizes of the ffhq512 preset with 4 images per GPU. Times are medians, on a GPU measured by CUDA events with a cold
cache. Bandwidth counts the bytes that must be moved, each tensor read or written once; the device's own is that of a copy.
Without a GPU small sizes run on the CPU, which shows that the benchmark works and nothing more.
"""

import json
import platform
import statistics
import time
from typing import NamedTuple

import click
import torch

from dnnlib.cli import friendly_errors
from dnnlib.errors import UserError
from dnnlib.params import UserPath
from torch_utils import custom_ops
from torch_utils.ops.bias_act import bias_act
from torch_utils.ops.upfirdn2d import setup_filter, upfirdn2d

FIR = (1, 3, 3, 1)
PASSES = ('forward', 'forward + backward')
IMPLEMENTATIONS = ('cuda', 'ref', 'compiled')


class OpCase(NamedTuple):
    operator: str
    name: str
    shape: tuple  # of x
    dtype: torch.dtype
    options: dict


CASES = (
    OpCase('bias_act', 'E, 8', (4, 512, 8, 8), torch.float32, dict(act='lrelu')),
    OpCase('bias_act', 'E, 64', (4, 512, 64, 64), torch.float32, dict(act='lrelu')),
    OpCase('bias_act', 'E, 256', (4, 128, 256, 256), torch.float32, dict(act='lrelu')),
    OpCase('bias_act', 'E, to planes', (4, 96, 256, 256), torch.float32, dict(act='linear')),
    OpCase('bias_act', 'S3D, 512', (12, 32, 512, 512), torch.float32, dict(act='lrelu')),
    OpCase('bias_act', 'S2D, 512', (4, 128, 512, 512), torch.float16, dict(act='lrelu', clamp=256)),
    OpCase('bias_act', 'D2D, 512', (4, 64, 512, 512), torch.float16, dict(act='lrelu', clamp=256)),
    OpCase('bias_act', 'D2D, 64', (4, 512, 64, 64), torch.float16, dict(act='lrelu', clamp=256)),
    OpCase('upfirdn2d', 'E, upsampling conv, 256', (4, 128, 257, 257), torch.float32, dict(padding=1, gain=4)),
    OpCase('upfirdn2d', 'S2D, upsampling conv, 512', (4, 128, 513, 513), torch.float16, dict(padding=1, gain=4)),
    OpCase('upfirdn2d', 'E, upsampled planes, 256', (4, 96, 128, 128), torch.float32, dict(up=2, padding=(2, 1, 2, 1), gain=4)),
    OpCase('upfirdn2d', 'S2D, upsampled image, 512', (4, 3, 256, 256), torch.float32, dict(up=2, padding=(2, 1, 2, 1), gain=4)),
    OpCase('upfirdn2d', 'D2D, downsampling conv, 512', (4, 64, 512, 512), torch.float16, dict(padding=2)),
    OpCase('upfirdn2d', 'D2D, downsampled skip, 512', (4, 64, 512, 512), torch.float16, dict(down=2, padding=1)),
    OpCase('upfirdn2d', 'blur of 61 taps, 512', (4, 6, 512, 512), torch.float32, dict(taps=61, padding=(30, 30, 0, 0))),
)


def small(case):
    """The same case with fewer channels and pixels."""
    n, c, h, w = case.shape
    return case._replace(shape=(1, min(c, 8), min(h, 33), min(w, 33)))


def prepare_call(case, implementation, device):
    """(function of the inputs, inputs): what is timed."""
    options = dict(case.options)
    x = torch.randn(case.shape, device=device).to(case.dtype).requires_grad_()
    impl = 'cuda' if implementation == 'cuda' else 'ref'
    if case.operator == 'bias_act':
        b = torch.randn(case.shape[1], device=device).to(case.dtype).requires_grad_()
        function, inputs = lambda x, b: bias_act(x, b, impl=impl, **options), (x, b)
    else:
        taps = options.pop('taps', None)
        f = torch.full([1, taps], 1 / taps, device=device) if taps else setup_filter(FIR, device=device)
        function, inputs = lambda x: upfirdn2d(x, f, impl=impl, **options), (x,)
    if implementation == 'compiled':
        torch.compiler.reset()  # the lambdas of all cases share their code, for which only some compilations are kept
        function = torch.compile(function, fullgraph=True)
    return function, inputs


def necessary_bytes(case, with_backward, output):
    """Of the tensors that are read and written; the backward pass of bias_act also reads y."""
    size = output.element_size()
    x, y = size * torch.Size(case.shape).numel(), size * output.numel()
    if not with_backward:
        return x + y
    return 2 * (x + y) + (y if case.operator == 'bias_act' else 0)


def measure_operator(case, implementation, with_backward, device, repeats):
    """(median milliseconds, necessary bytes)."""
    function, inputs = prepare_call(case, implementation, device)
    output = function(*inputs)
    grad = torch.randn_like(output)

    def forward():
        with torch.no_grad():
            function(*inputs)

    def both():
        torch.autograd.grad(function(*inputs), inputs, grad)

    return median_time(both if with_backward else forward, device, repeats), necessary_bytes(case, with_backward, output)


def median_time(function, device, repeats):
    """Milliseconds."""
    for _ in range(3):
        function()
    timer = _time_on_gpu if device.type == 'cuda' else _time_on_cpu
    return statistics.median(timer(function, device) for _ in range(repeats))


def _time_on_cpu(function, device):
    start = time.perf_counter()
    function()
    return (time.perf_counter() - start) * 1000


def _time_on_gpu(function, device):
    torch.empty(2**28, dtype=torch.uint8, device=device).zero_()  # drives everything else out of the cache; also takes longer
    start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))  # than Python needs to issue what is timed
    start.record()
    function()
    end.record()
    end.synchronize()
    return start.elapsed_time(end)


def copy_bandwidth(device, repeats):
    """GB/s of copying within the device's memory, reading and writing counted."""
    source = torch.randn(2**28 if device.type == 'cuda' else 2**22, device=device)
    target = torch.empty_like(source)
    milliseconds = median_time(lambda: target.copy_(source), device, repeats)
    return 2 * source.numel() * source.element_size() / milliseconds / 1e6


def measure_operators(device, repeats, implementations):
    """{'device', 'torch', 'copy_bandwidth': GB/s, 'rows': one per case and pass, with milliseconds by implementation}."""
    cases = CASES if device.type == 'cuda' else [small(case) for case in CASES]
    bandwidth, rows = copy_bandwidth(device, repeats), []
    for case in cases:
        for name in PASSES:
            measured = {which: measure_operator(case, which, name != 'forward', device, repeats) for which in implementations}
            first, necessary = measured[implementations[0]]
            reached = necessary / first / 1e6
            rows.append(
                dict(
                    operator=case.operator,
                    case=case.name,
                    shape=case.shape,
                    dtype=str(case.dtype).removeprefix('torch.'),
                    ran=name,
                    milliseconds={which: milliseconds for which, (milliseconds, _) in measured.items()},
                    bandwidth=reached,
                    of_copy=reached / bandwidth,
                )
            )
    device_name = torch.cuda.get_device_name(device) if device.type == 'cuda' else platform.processor() or platform.machine()
    return dict(device=device_name, torch=torch.__version__, copy_bandwidth=bandwidth, repeats=repeats, rows=rows)


def operators_table(result, implementations):
    """Lines of a Markdown table; bandwidth is that of the first implementation."""
    titles = ['operator', 'case', 'shape', 'dtype', 'pass', *(f'{which}, ms' for which in implementations), 'GB/s', 'of copy']
    yield '| ' + ' | '.join(titles) + ' |'
    yield '|' + len(titles) * '---|'
    for row in result['rows']:
        cells = [
            row['operator'],
            row['case'],
            'x'.join(map(str, row['shape'])),
            row['dtype'],
            row['ran'],
            *(f'{row["milliseconds"][which]:.3f}' for which in implementations),
            f'{row["bandwidth"]:.0f}',
            f'{row["of_copy"]:.0%}',
        ]
        yield '| ' + ' | '.join(cells) + ' |'


@click.command()
@click.option(
    '--repeats', type=click.IntRange(min=1), default=50, show_default=True, help='measurements of which the median is taken'
)
@click.option('--compile/--no-compile', 'with_compile', default=True, help='compare with torch.compile too')
@click.option('--json', 'json_path', type=UserPath(dir_okay=False), help='also write the results to this file')
@friendly_errors
def main(repeats, with_compile, json_path):
    """Time the operators at the sizes of the ffhq512 preset."""
    device = torch.device('cuda' if torch.cuda.is_available() else 'cpu')
    on_gpu = device.type == 'cuda'
    problems = {operator: custom_ops.load(operator) for operator in custom_ops.OPERATORS} if on_gpu else {}
    for operator, problem in problems.items():
        if problem:
            raise UserError(f'{operator} cannot be measured: {problem}')
    possible = {'cuda': on_gpu, 'ref': True, 'compiled': with_compile}
    implementations = [which for which in IMPLEMENTATIONS if possible[which]]
    result = measure_operators(device, repeats, implementations)
    print(f'{result["device"]}, PyTorch {result["torch"]}, copy {result["copy_bandwidth"]:.0f} GB/s\n')
    print('\n'.join(operators_table(result, implementations)))
    if not on_gpu:
        print('\nThere is no CUDA device: small sizes, plain PyTorch only. The CUDA operators are not yet measured.')
    if json_path:
        with open(json_path, 'w') as file:
            json.dump(result, file, indent=1)


if __name__ == '__main__':
    main()
