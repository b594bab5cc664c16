"""bias_act and upfirdn2d: the PyTorch versions, the operators' derivatives and traces (on a CPU), and CUDA against PyTorch."""

import functools
import json
import random

import pytest
import torch
from torch.autograd import gradcheck, gradgradcheck

from benchmarks import ops as benchmark
from dnnlib.errors import UserError
from tests.helpers import invoke
from torch_utils import custom_ops
from torch_utils.ops import bias_act as bias_act_module
from torch_utils.ops.bias_act import KERNEL_SLOPES, bias_act
from torch_utils.ops.upfirdn2d import setup_filter, upfirdn2d, upsample2d
from training.networks.stylegan2 import conv2d

UPFIRDN_CASES = [  # up, down, padding, flip_filter, filter shape
    ((1, 1), (1, 1), (1, 2, -1, 3), False, (4, 4)),
    ((2, 2), (1, 1), (2, 1, 2, 1), False, (4, 4)),
    ((1, 1), (2, 2), (1, 1, 2, 0), True, (4, 4)),
    ((2, 1), (1, 1), (6, 5, 0, 0), False, (1, 12)),
    ((1, 1), (1, 2), (0, 0, 4, 5), True, (12, 1)),
    ((3, 2), (2, 3), (-2, 4, 1, 1), False, (2, 5)),
]


def bias_act_operator(x, b=None, dim=1, slope=0.2, gain=1.0, clamp=None):
    """What bias_act does with impl='cuda', also on a CPU."""
    return torch.ops.mimic3d.bias_act(x, b, dim, slope, gain, clamp)


def bias_act_reference(x, b=None, dim=1, slope=0.2, gain=1.0, clamp=None):
    return bias_act_module.reference(x, b, dim, slope, gain, clamp)


def doubles(*shape):
    return torch.randn(shape, dtype=torch.float64, requires_grad=True)


def derivatives(function, inputs, precision, seed):
    """Output, gradients with respect to the inputs, and gradients of a function of those.

    inputs: first converted to `precision`, their own or a higher one; directions are the same for all precisions.
    """
    generator, given = torch.Generator().manual_seed(seed), inputs[0].dtype

    def direction(like):
        return torch.randn(like.shape, generator=generator).to(given).to(like.device, precision)

    inputs = [value.detach().to(precision).requires_grad_() for value in inputs]
    y = function(*inputs)
    dy = direction(y).requires_grad_()
    first = torch.autograd.grad(y, inputs, dy, create_graph=True)
    second = torch.autograd.grad(sum((g * direction(g)).sum() for g in first), [dy, *inputs], allow_unused=True)
    zeros = [torch.zeros_like(value) if g is None else g for g, value in zip(second, [dy, *inputs])]
    return [y, *first, *zeros]


# ---- The PyTorch versions


def test_upfirdn2d_reference_by_hand():
    x, f = torch.tensor([[1.0, 2.0]]).reshape(1, 1, 1, 2), torch.tensor([[1.0, 10.0]])
    # Upsampled: 1 0 2 0; padded: 0 1 0 2 0; convolved (the kernel is mirrored): 10 * left + 1 * right.
    assert upfirdn2d(x, f, up=(2, 1), padding=(1, 0, 0, 0), impl='ref').flatten().tolist() == [1, 10, 2, 20]
    assert upfirdn2d(x, f, up=(2, 1), padding=(1, 0, 0, 0), flip_filter=True, impl='ref').flatten().tolist() == [10, 1, 20, 2]
    assert upfirdn2d(x, f, up=(2, 1), down=(2, 1), padding=(1, 0, 0, 0), gain=2, impl='ref').flatten().tolist() == [2, 4]


# ---- The operators: derivatives, memory layouts and traces. The CPU kernel stands in for CUDA's.


@pytest.mark.parametrize('clamp', (None, 0.9))
@pytest.mark.parametrize('slope', (0.2, 1.0))
def test_bias_act_operator_agrees_to_the_second_derivative(slope, clamp):
    for gain in (1.3, -0.7):
        x, b = doubles(2, 3, 4), doubles(3)
        options = dict(slope=slope, gain=gain, clamp=clamp)
        torch.testing.assert_close(bias_act_operator(x, b, **options), bias_act_reference(x, b, **options))
        assert gradcheck(lambda x, b: bias_act_operator(x, b, **options), (x, b))
        assert gradgradcheck(lambda x, b: bias_act_operator(x, b, **options), (x, b))


@pytest.mark.parametrize('slope', (0.2, 1.0))
def test_second_derivatives_through_both_gradients_at_once(slope):
    """Of a function of x's and b's gradients together; and with a single dimension, where b's gradient is x's."""
    for shape, dim in (((2, 3, 4), 1), ((5,), 0)):
        inputs = [doubles(*shape), doubles(shape[dim])]
        actual = derivatives(lambda x, b: bias_act_operator(x, b, dim, slope), inputs, torch.float64, seed=0)
        expected = derivatives(lambda x, b: bias_act_reference(x, b, dim, slope), inputs, torch.float64, seed=0)
        torch.testing.assert_close(actual, expected)


@pytest.mark.parametrize('dtype', (torch.float16, torch.bfloat16))
def test_clamped_outputs_get_no_gradient_in_low_precision(dtype):
    """sqrt(0.5) * 256 is no number of these types: the comparison must be with what it is rounded to."""
    x = torch.full([4], 1000.0, dtype=dtype, requires_grad=True)
    bias_act_operator(x, gain=2**0.5, clamp=256 * 0.5**0.5).sum().backward()
    assert (x.grad == 0).all()


@pytest.mark.parametrize('up, down, padding, flip, taps', UPFIRDN_CASES)
def test_upfirdn2d_operator_agrees_to_the_second_derivative(up, down, padding, flip, taps):
    x, f = doubles(1, 2, 4, 5), torch.randn(taps)

    def operator(x):
        return torch.ops.mimic3d.upfirdn2d(x, f, up, down, padding, flip, 1.5)

    torch.testing.assert_close(operator(x), upfirdn2d(x, f, up, down, padding, flip, 1.5, impl='ref'))
    assert gradcheck(operator, x)
    assert gradgradcheck(operator, x)


def test_upfirdn2d_operator_refuses_a_derivative_by_the_filter():
    f = torch.ones(1, 1, requires_grad=True)
    y = torch.ops.mimic3d.upfirdn2d(torch.ones(1, 1, 4, 4), f, (1, 1), (1, 1), (0, 0, 0, 0), False, 1.0)
    with pytest.raises(ValueError, match='no derivative with respect to f'):
        y.sum().backward()


def layouts(x):
    """The same values contiguous, channels-last, transposed, cut out of something larger, and with a repeated row."""
    larger = torch.zeros([size + 1 for size in x.shape], device=x.device)
    cut = larger[tuple(slice(1, None) for _ in x.shape)]
    yield from (x, x.to(memory_format=torch.channels_last), x.transpose(2, 3).contiguous().transpose(2, 3), cut.copy_(x))
    yield cut.copy_(x).to(memory_format=torch.channels_last)[:, :, ::2]
    yield x[:, :, :1].expand(-1, -1, 5, -1)


def test_operators_are_described_truly_in_every_layout():
    """torch.library's own checks: schema, autograd registration, and fake against real results, strides included."""
    b, f = torch.randn(3), setup_filter([1, 3, 3, 1])
    for x in layouts(torch.randn(2, 3, 5, 4)):
        check = functools.partial(torch.library.opcheck, test_utils=('test_schema', 'test_faketensor'))
        check(torch.ops.mimic3d.bias_act, (x, b, 1, 0.2, 1.4, 1.0))
        check(torch.ops.mimic3d.bias_act_grad, (torch.randn(x.shape), x, 1, 0.2, 1.4, 1.0))
        check(torch.ops.mimic3d.upfirdn2d, (x, f, (2, 2), (1, 1), (2, 1, 2, 1), False, 1.0))
    x = torch.randn(2, 3, 5, 4).to(memory_format=torch.channels_last).requires_grad_()
    torch.library.opcheck(torch.ops.mimic3d.bias_act, (x, torch.randn(3, requires_grad=True), 1, 0.2, 1.4, None))
    torch.library.opcheck(torch.ops.mimic3d.upfirdn2d, (x, f, (1, 1), (2, 2), (1, 1, 1, 1), False, 1.0))


def test_operators_keep_channels_last():
    x = torch.randn(2, 3, 6, 6).to(memory_format=torch.channels_last)
    assert bias_act_operator(x).is_contiguous(memory_format=torch.channels_last)
    y = torch.ops.mimic3d.upfirdn2d(x, torch.ones(2, 2), (1, 1), (1, 1), (1, 0, 1, 0), False, 1.0)
    assert y.is_contiguous(memory_format=torch.channels_last)


def test_operators_take_empty_batches():
    x, f = torch.randn(0, 3, 6, 6, requires_grad=True), torch.ones(2, 2)
    y = bias_act_operator(x, torch.zeros(3))
    y = torch.ops.mimic3d.upfirdn2d(y, f, (1, 1), (2, 2), (1, 1, 1, 1), False, 1.0)
    y.sum().backward()
    assert y.shape == (0, 3, 4, 4) and x.grad.shape == x.shape


@pytest.fixture
def operators_everywhere(monkeypatch):
    """As if the kernels were there: impl=None takes the operators, whose CPU kernels then answer."""
    monkeypatch.setattr(bias_act_module.custom_ops, 'choose', _always_cuda)


@torch.compiler.assume_constant_result
def _always_cuda(operator, device_type, impl=None):
    return 'cuda'


class SmallNetwork(torch.nn.Module):
    def forward(self, x, b, f):
        x = bias_act(x, b, act='lrelu', clamp=2.0)
        x = conv2d(x, torch.ones(3, 3, 3, 3), f, down=2)
        return bias_act(upsample2d(x, f), act='softplus')


def test_operators_pass_through_compile_and_export(operators_everywhere):
    x, b, f = torch.randn(2, 3, 8, 8, requires_grad=True), torch.randn(3), setup_filter([1, 3, 3, 1])
    network = SmallNetwork()
    expected = network(x, b, f)
    (expected_grad,) = torch.autograd.grad(expected.sum(), x)
    compiled = torch.compile(network, backend='aot_eager', fullgraph=True)(x, b, f)
    (grad,) = torch.autograd.grad(compiled.sum(), x)
    torch.testing.assert_close(compiled, expected)
    torch.testing.assert_close(grad, expected_grad)
    exported = torch.export.export(network, (x, b, f))
    used = {str(node.target) for node in exported.graph.nodes if 'mimic3d' in str(node.target)}
    assert used == {'mimic3d.bias_act.default', 'mimic3d.upfirdn2d.default'}
    torch.testing.assert_close(exported.module()(x, b, f), expected)


def test_activations_without_a_kernel_are_plain_pytorch(operators_everywhere):
    x = torch.randn(5)
    torch.testing.assert_close(bias_act(x, act='softplus'), torch.nn.functional.softplus(x))
    with pytest.raises(ValueError, match="impl='cuda' has no activation 'softplus', only linear and lrelu"):
        bias_act(x, act='softplus', impl='cuda')


# ---- The benchmark


def test_benchmark_runs_without_a_gpu(tmp_path, monkeypatch):
    monkeypatch.setattr(torch.cuda, 'is_available', lambda: False)
    done = invoke(benchmark.main, '--repeats=1', '--no-compile', f'--json={tmp_path}/ops.json')
    assert done.exit_code == 0, done.output
    assert 'The CUDA operators are not yet measured.' in done.output
    rows = json.loads((tmp_path / 'ops.json').read_text())['rows']
    assert len(rows) == len(benchmark.CASES) * len(benchmark.PASSES)
    assert all(row['milliseconds']['ref'] > 0 and row['case'] in done.output for row in rows)


def test_benchmark_counts_what_must_be_moved():
    case = benchmark.OpCase('bias_act', '', (2, 3, 4, 5), torch.float16, {})
    x = torch.empty(case.shape, dtype=case.dtype)
    assert benchmark.necessary_bytes(case, False, x) == 2 * 240
    assert benchmark.necessary_bytes(case, True, x) == 5 * 240
    halved = case._replace(operator='upfirdn2d')
    assert benchmark.necessary_bytes(halved, True, x[:, :, ::2]) == 2 * (240 + 120)


# ---- Bad input


def test_choice_of_implementation(monkeypatch):
    x = torch.ones(1)
    with pytest.raises(ValueError, match='needs tensors on a CUDA device'):
        bias_act(x, impl='cuda')
    with pytest.raises(ValueError, match="impl must be 'cuda', 'ref' or None"):
        bias_act(x, impl='CUDA')
    monkeypatch.setenv('MIMIC3D_OPS', 'fast')
    with pytest.raises(UserError, match="MIMIC3D_OPS must be cuda or ref, got 'fast'"):
        bias_act(x)


# ---- CUDA against PyTorch


GPU_DTYPES = {torch.float32: 1e-5, torch.float16: 2**-9, torch.bfloat16: 2**-6}  # largest error, of the result's scale


def assert_same(actual, exact, tolerance, what, summed=0):
    """summed: how many numbers of random sign and magnitude 1 each entry is the sum of; their sum may be near zero."""
    assert actual.shape == exact.shape, what
    if actual.numel():
        error = (actual.double() - exact).abs().max() / exact.abs().max().clamp(min=max(1e-3, summed**0.5))
        assert error <= tolerance, f'{what}: error {error:.3g}'


def gpu_image(draw, dtype):
    """A random image in a random layout; now and then empty."""
    shape = [draw.choice((0, 1, 2, 3)), draw.choice((1, 3, 8, 32)), draw.randint(3, 150), draw.randint(3, 150)]
    x = torch.randn(shape, device='cuda').to(dtype)
    layout = draw.choice(('contiguous', 'channels_last', 'cut', 'transposed', 'unaligned'))
    if layout == 'channels_last':
        return x.to(memory_format=torch.channels_last)
    if layout == 'cut':
        return x[:, :, 1:, :-1]
    if layout == 'transposed':
        return x.transpose(2, 3)
    if layout == 'unaligned' and x.numel():
        return torch.cat([x.new_zeros(1), x.flatten()])[1:].view(x.shape)
    return x


@pytest.mark.gpu
@pytest.mark.parametrize('dtype', GPU_DTYPES, ids=str)
@pytest.mark.parametrize('act', KERNEL_SLOPES)
def test_cuda_bias_act(act, dtype):
    draw = random.Random(f'{act}{dtype}')
    for trial in range(12):
        x = gpu_image(draw, dtype)
        dim = draw.randint(0, 3)
        inputs = [x] if trial % 3 == 0 else [x, torch.randn(x.shape[dim], device='cuda').to(dtype)]
        clamp = draw.choice((None, 1.0))
        if clamp is not None:
            inputs[0] = _away_from_clamp(x, inputs[1:], dim, act, clamp)

        def outcome(impl, precision):
            function = functools.partial(bias_act, act=act, clamp=clamp, impl=impl)
            return derivatives(lambda x, b=None: function(x, b, dim), inputs, precision, trial)

        actual = outcome('cuda', dtype)
        for i, (ours, exact) in enumerate(zip(actual, outcome('ref', torch.float64))):
            summed = x.numel() // max(len(ours), 1) if ours.ndim == 1 else 0  # b's gradient
            assert_same(ours, exact, GPU_DTYPES[dtype] * (4 if i else 1), f'{act} {list(x.shape)} result {i}', summed)
        assert actual[0].stride() == torch.empty_like(x).stride()


def _away_from_clamp(x, bias, dim, act, clamp):
    """x, but x + b = 5 where the output comes close to the clamp: there rounding decides about the derivative."""
    shift = bias_act_module._along(bias[0].double(), x, dim) if bias else torch.zeros([], device=x.device)
    near = (bias_act(x.double() + shift, act=act, impl='ref').abs() - clamp).abs() < 0.05
    return torch.empty_like(x).copy_(torch.where(near, 5 - shift, x.double()))


@pytest.mark.gpu
@pytest.mark.parametrize('dtype', GPU_DTYPES, ids=str)
@pytest.mark.parametrize('up, down, _, flip, taps', UPFIRDN_CASES + 2 * [(None, None, None, None, None)])
def test_cuda_upfirdn2d(up, down, _, flip, taps, dtype):
    draw = random.Random(f'{up}{down}{taps}{dtype}')
    for trial in range(8):
        factors = (up, down) if up else [(draw.randint(1, 3), draw.randint(1, 3)) for _ in range(2)]
        height, width = taps or (draw.randint(1, 9), draw.randint(1, 9))
        x, f = gpu_image(draw, dtype), torch.randn(height, width, device='cuda')
        padding = [draw.randint(0, 3) + size // 2 for size in (width, width, height, height)]

        def outcome(impl, precision):
            return derivatives(lambda x: upfirdn2d(x, f, *factors, padding, bool(flip), 1.5, impl=impl), [x], precision, trial)

        actual = outcome('cuda', dtype)
        if len(x) == 0:  # PyTorch's convolution need not take these
            assert actual[1].shape == x.shape
            continue
        for i, (ours, exact) in enumerate(zip(actual, outcome('ref', torch.float64))):
            assert_same(ours, exact, GPU_DTYPES[dtype], f'{list(x.shape)} result {i}')


@pytest.mark.gpu
def test_cuda_operators_are_described_truly():
    assert all(custom_ops.load(operator) is None for operator in custom_ops.OPERATORS)
    b, f = torch.randn(3, device='cuda'), setup_filter([1, 3, 3, 1], device='cuda')
    for x in layouts(torch.randn(2, 3, 5, 4, device='cuda')):
        torch.library.opcheck(torch.ops.mimic3d.bias_act, (x, b, 1, 0.2, 1.4, 1.0))
        torch.library.opcheck(torch.ops.mimic3d.bias_act_grad, (torch.randn_like(x), x, 1, 0.2, 1.4, 1.0))
        torch.library.opcheck(torch.ops.mimic3d.upfirdn2d, (x, f, (2, 2), (1, 1), (2, 1, 2, 1), False, 1.0))


@pytest.mark.gpu
def test_cuda_bias_act_of_more_elements_than_32_bits_count():
    if torch.cuda.mem_get_info()[0] < 14 * 2**30:
        pytest.skip('needs 14 GiB of GPU memory')
    x = torch.zeros(2**31 + 40, dtype=torch.float16, device='cuda').view(-1, 8)
    x[-1] = 3
    b = torch.arange(8, dtype=torch.float16, device='cuda')
    assert bias_act(x, b, act='lrelu', gain=1.0, impl='cuda')[-1].tolist() == [3, 4, 5, 6, 7, 8, 9, 10]
