"""The arithmetic of the CUDA kernels, run on a CPU thread by thread; and whether CUDA's compiler takes them.

What a thread does is plain C++ (torch_utils/ops/*.h). test_ops_kernels.cpp calls it for every thread of every block.
"""

import ctypes
import random
import shutil
import subprocess
from pathlib import Path

import pytest
import torch

from tests.helpers import ROOT
from torch_utils import custom_ops
from torch_utils.ops import bias_act
from torch_utils.ops.upfirdn2d import upfirdn2d

TORCH_HEADERS = Path(torch.__file__).parent / 'include'
DTYPES = (torch.float16, torch.bfloat16, torch.float32, torch.float64)
# Largest error, relative to the output's scale: float sums in another order, and one rounding of the result.
TOLERANCES = {torch.float16: 2**-11, torch.bfloat16: 2**-8, torch.float32: 2e-6, torch.float64: 1e-12}
SLOPES = (0.2, 1.0)  # of the leaky ReLU; 1: no activation


def fields(kind, names):
    return [(name, kind) for name in names.split()]


class BiasActParams(ctypes.Structure):
    _fields_ = fields(ctypes.c_void_p, 'input bias y output block_sums') + fields(ctypes.c_int64, 'size bias_stride bias_size')
    _fields_ += fields(ctypes.c_double, 'slope gain clamp') + fields(ctypes.c_bool, 'aligned')


class UpfirdnParams(ctypes.Structure):
    _fields_ = fields(ctypes.c_void_p, 'x filter y') + fields(ctypes.c_int64 * 4, 'x_stride y_stride')
    _fields_ += fields(ctypes.c_int, 'batch channels in_height in_width out_height out_width filter_height filter_width')
    _fields_ += fields(ctypes.c_int, 'up_x up_y down_x down_y pad_left pad_top')
    _fields_ += fields(ctypes.c_bool, 'flip_filter channels_last') + fields(ctypes.c_double, 'gain')


@pytest.fixture(scope='module')
def kernels(tmp_path_factory):
    compiler = shutil.which('g++')
    if compiler is None:
        pytest.skip("needs g++ to run the kernels' arithmetic on the CPU")
    library = tmp_path_factory.mktemp('kernels') / 'kernels.so'
    options, source = ['-std=c++20', '-O1', '-shared', '-fPIC'], Path(__file__).with_suffix('.cpp')
    subprocess.run([compiler, *options, f'-I{ROOT}', '-isystem', TORCH_HEADERS, source, '-o', library], check=True)
    loaded = ctypes.CDLL(str(library))
    loaded.run_upfirdn2d.restype = ctypes.c_bool
    return loaded


def surrounded(shape, dtype, offset=64):
    """(not-a-numbers of this shape, the memory around them): a read outside shows in the result, a write in the memory."""
    size = torch.Size(shape).numel()
    memory = torch.full([size + 128], torch.nan, dtype=dtype)
    return memory[offset : offset + size].view(shape), memory


def assert_agrees(actual, expected, dtype):
    error = (actual.double() - expected).abs().max() if actual.numel() else torch.zeros([])
    scale = expected.abs().max().clamp(min=1) if actual.numel() else 1
    assert error <= TOLERANCES[dtype] * scale, f'error {error:.3g}, scale {scale:.3g}'


# ---- bias_act


def run_bias_act(
    kernels, values, slope, dtype, bias=None, bias_stride=1, y=None, block_sums=None, clamp=None, gain=1.3, offset=64
):
    """The kernels' output for dense `values` (any shape, seen as a row); with `y` that of the backward pass."""
    x, _ = surrounded([values.numel()], dtype, offset)
    x.copy_(values.flatten())
    out, memory = surrounded([values.numel()], dtype, offset)
    given = {'input': x.data_ptr(), 'output': out.data_ptr(), 'size': x.numel(), 'slope': slope, 'gain': gain}
    if bias is not None:
        given |= {'bias': bias.data_ptr(), 'bias_size': len(bias), 'bias_stride': bias_stride}
    if y is not None:
        seen, _ = surrounded([values.numel()], dtype, offset)
        given['y'] = seen.copy_(y.flatten()).data_ptr()
    if block_sums is not None:
        given['block_sums'] = block_sums.data_ptr()
    rounded_clamp = -1 if clamp is None else float(torch.tensor(clamp, dtype=dtype))
    aligned = all(pointer % 16 == 0 for pointer in (x.data_ptr(), out.data_ptr(), given.get('y', 0)))
    params = BiasActParams(**given, clamp=rounded_clamp, aligned=aligned)
    kernels.run_bias_act(DTYPES.index(dtype), y is not None, ctypes.byref(params))
    assert memory.isnan().sum() == 128 + out.isnan().sum(), 'wrote outside'
    return out.view(values.shape), aligned


def reference(x, b=None, dim=1, slope=0.2, gain=1.3, clamp=None):
    return bias_act.reference(x, b, dim, slope, gain, clamp)


@pytest.mark.parametrize('dtype', DTYPES, ids=str)
@pytest.mark.parametrize('slope', SLOPES)
def test_bias_act_kernel(kernels, slope, dtype):
    """Contiguous, channels-last, odd sizes, and tensors that do not begin at a multiple of 16 bytes."""
    for shape, dim, offset in [
        ((2, 3, 40, 33), 1, 64),
        ((2, 7, 6, 5), 3, 64),
        ((5, 8), 1, 64),
        ((3, 5, 7), 0, 63),
        ((1,), 0, 64),
        ((2, 3, 1, 64), 1, 64),
    ]:
        x = (2 * torch.randn(shape)).to(dtype)
        b = torch.randn(shape[dim]).to(dtype)
        y, aligned = run_bias_act(kernels, x, slope, dtype, b, x.stride(dim), clamp=1.7, offset=offset)
        assert aligned == (offset == 64)
        assert_agrees(y, reference(x.double(), b.double(), dim, slope, clamp=float(torch.tensor(1.7, dtype=dtype))), dtype)
        y, _ = run_bias_act(kernels, x, slope, dtype)
        assert_agrees(y, reference(x.double(), slope=slope), dtype)


@pytest.mark.parametrize('clamp', (None, 1.7))
@pytest.mark.parametrize('dtype', DTYPES, ids=str)
@pytest.mark.parametrize('slope', SLOPES)
@pytest.mark.parametrize('gain', (1.3, -0.7))
def test_bias_act_grad_kernel(kernels, gain, slope, dtype, clamp):
    """Against autograd in float64, on an output that was rounded as the forward pass rounds it."""
    x, dy = (2 * torch.randn(3, 700)).to(dtype), torch.randn(3, 700).to(dtype)
    x[0, :3] = torch.tensor([0.0, 30.0, -30.0])
    y, _ = run_bias_act(kernels, x, slope, dtype, clamp=clamp, gain=gain)
    dx, _ = run_bias_act(kernels, dy, slope, dtype, y=y, clamp=clamp, gain=gain)
    exact = x.double().requires_grad_()
    unclamped = reference(exact, slope=slope, gain=gain)
    (expected,) = torch.autograd.grad(unclamped, exact, dy.double())
    if clamp is not None:
        limit = float(torch.tensor(clamp, dtype=dtype))
        outside = unclamped.detach().abs() - limit
        expected = expected.where(outside < 0, 0)
        dx = dx.double().where(outside.abs() > 2 * TOLERANCES[dtype] * limit, expected)  # there, y's rounding decides
        assert (outside >= 0).any()
    assert (dx.double() - expected).abs().max() <= 2 * TOLERANCES[dtype] * dy.abs().max()


@pytest.mark.parametrize('dtype', DTYPES, ids=str)
def test_bias_act_grad_kernel_sums_blocks(kernels, dtype):
    """A block handles 8 KiB; the last one here is not full."""
    block = 8192 // dtype.itemsize
    arithmetic = torch.float64 if dtype == torch.float64 else torch.float32
    dy, y, sums = torch.randn(3 * block + 5).to(dtype), torch.randn(3 * block + 5).to(dtype), torch.zeros(4, dtype=arithmetic)
    dx, _ = run_bias_act(kernels, dy, 0.2, dtype, y=y, block_sums=sums)
    expected = torch.stack([part.double().sum() for part in dx.split(block)])
    assert (sums - expected).abs().max() <= 10 * TOLERANCES[dtype] * block**0.5


def test_bias_act_kernel_keeps_not_a_number_and_infinity(kernels):
    x = torch.tensor([torch.nan, torch.inf, -torch.inf, -0.0])
    for slope in SLOPES:
        for clamp in (None, 2.0):
            y, _ = run_bias_act(kernels, x, slope, torch.float32, clamp=clamp)
            torch.testing.assert_close(y, reference(x, dim=0, slope=slope, clamp=clamp), equal_nan=True)


def test_bias_act_grad_kernel_at_gain_zero(kernels):
    dx, _ = run_bias_act(kernels, torch.ones(9), 0.2, torch.float32, y=torch.zeros(9), gain=0.0)
    assert (dx == 0).all()


# ---- upfirdn2d


def run_upfirdn2d(kernels, kernel, x, f, up, down, padding, flip_filter, gain):
    """The kernels' output, or None where `kernel` is not meant for the case."""
    arithmetic = torch.float64 if x.dtype == torch.float64 else torch.float32
    taps, _ = surrounded(f.shape, arithmetic)
    taps.copy_(f)
    n, c, h, w = x.shape
    size = [
        (h * up[1] + sum(padding[2:]) - f.shape[0]) // down[1] + 1,
        (w * up[0] + sum(padding[:2]) - f.shape[1]) // down[0] + 1,
    ]
    channels_last = c > 1 and x.stride(1) == 1 and not x.is_contiguous()
    y, memory = surrounded([n, *size, c] if channels_last else [n, c, *size], x.dtype)
    y = y.permute(0, 3, 1, 2) if channels_last else y
    strides = [(ctypes.c_int64 * 4)(*tensor.stride()) for tensor in (x, y)]
    pointers = [tensor.data_ptr() for tensor in (x, taps, y)]
    numbers = [n, c, h, w, *size, *f.shape, *up, *down, padding[0], padding[2]]
    params = UpfirdnParams(*pointers, *strides, *numbers, flip_filter, channels_last, gain)
    if not kernels.run_upfirdn2d(DTYPES.index(x.dtype), kernel, ctypes.byref(params)):
        return None
    assert memory.isnan().sum() == 128, 'wrote outside, or left something out'
    return y


def image(n, c, h, w, dtype, layout):
    """Random numbers amid not-a-numbers: 'contiguous', 'channels_last', or 'cut' out of a larger image."""
    if layout == 'cut':
        x = torch.full([n, c + 1, h + 3, w + 2], torch.nan, dtype=dtype)[:, 1:, 1:-2, 1:-1]
    elif layout == 'channels_last':
        x = surrounded([n, h, w, c], dtype)[0].permute(0, 3, 1, 2)
    else:
        x = surrounded([n, c, h, w], dtype)[0]
    return x.copy_(torch.randn(n, c, h, w))


PATCH_CASES = [  # up, down, largest filter (height, width)
    ((1, 1), (1, 1), (4, 4)),
    ((2, 2), (1, 1), (4, 4)),
    ((1, 1), (2, 2), (4, 4)),
    ((2, 1), (1, 1), (1, 12)),
    ((1, 2), (1, 1), (12, 1)),
    ((1, 1), (2, 1), (1, 12)),
    ((1, 1), (1, 2), (12, 1)),
]


@pytest.mark.parametrize('layout', ('contiguous', 'channels_last', 'cut'))
@pytest.mark.parametrize('up, down, taps', PATCH_CASES)
def test_upfirdn2d_patch_kernels(kernels, up, down, taps, layout):
    """Images smaller and larger than a block's tile, odd and even paddings, also negative; filters up to the largest."""
    draw = random.Random(f'{up}{down}{layout}')
    for trial in range(8):
        dtype = DTYPES[trial % 3]
        f = torch.randn([size if trial < 3 else draw.randint(1, size) for size in taps])
        smallest, largest = (70, 150) if trial in (0, 4) else (3, 20)
        x = image(draw.randint(1, 2), 3, draw.randint(smallest, largest), draw.randint(smallest, largest), dtype, layout)
        padding = [draw.randint(-2, 3) + size // 2 for size in (f.shape[1], f.shape[1], f.shape[0], f.shape[0])]
        flip = bool(trial % 2)
        y = run_upfirdn2d(kernels, 0, x, f, up, down, padding, flip, 1.5)
        assert y is not None, 'no patch kernel took this case'
        assert_agrees(y, upfirdn2d(x.double(), f, up, down, padding, flip, 1.5, impl='ref'), dtype)


@pytest.mark.parametrize('layout', ('contiguous', 'channels_last', 'cut'))
@pytest.mark.parametrize('kernel', (1, 2))
def test_upfirdn2d_output_kernel(kernels, kernel, layout):
    draw = random.Random(f'{kernel}{layout}')
    for trial in range(40):
        up, down = ([draw.randint(1, 4), draw.randint(1, 4)] for _ in range(2))
        dtype, f = DTYPES[trial % 4], torch.randn(draw.randint(1, 9), draw.randint(1, 9))
        padding = [draw.randint(-2, 9) for _ in range(4)]
        x = image(draw.randint(1, 2), draw.randint(1, 3), draw.randint(5, 12), draw.randint(5, 12), dtype, layout)
        if min(x.shape[2] * up[1] + sum(padding[2:]) - f.shape[0], x.shape[3] * up[0] + sum(padding[:2]) - f.shape[1]) < 0:
            continue
        y = run_upfirdn2d(kernels, kernel, x, f, up, down, padding, bool(trial % 2), 0.7)
        assert_agrees(y, upfirdn2d(x.double(), f.double(), up, down, padding, bool(trial % 2), 0.7, impl='ref'), dtype)


def test_patch_kernels_leave_the_rest_alone(kernels):
    x = torch.randn(1, 1, 8, 8)
    for up, down, taps in [
        ((1, 1), (1, 1), (5, 4)),
        ((1, 1), (1, 1), (1, 5)),
        ((3, 3), (1, 1), (4, 4)),
        ((2, 2), (2, 2), (4, 4)),
        ((2, 1), (1, 1), (2, 4)),
        ((2, 1), (1, 1), (1, 13)),
    ]:
        assert run_upfirdn2d(kernels, 0, x, torch.ones(taps), up, down, (6, 6, 6, 6), False, 1.0) is None


# ---- CUDA's compiler


@pytest.mark.slow
@pytest.mark.parametrize('operator', custom_ops.OPERATORS)
def test_cuda_sources_compile(operator, tmp_path):
    home = custom_ops.cuda_home()
    if home is None:
        pytest.skip('no CUDA compiler (nvcc) found')
    if not (home / 'include' / 'cuda_runtime.h').exists():
        pytest.skip(f'no CUDA headers that belong to the compiler in {home}')
    nvcc = home / 'bin' / 'nvcc'
    known = subprocess.run([nvcc, '--list-gpu-arch'], capture_output=True, text=True, check=True).stdout.split()
    targets = [f'-gencode=arch=compute_{a},code=sm_{a}' for a in ('80', '90', '100') if f'compute_{a}' in known]
    assert targets, f'{nvcc} knows none of the architectures'
    source = ROOT / 'torch_utils' / 'ops' / f'{operator}.cu'
    command = [nvcc, '-std=c++17', '-O3', '-Xptxas=-v', *targets, '-isystem', TORCH_HEADERS, '-c', source]
    finished = subprocess.run([*command, '-o', tmp_path / 'object.o'], capture_output=True, text=True)
    assert finished.returncode == 0, finished.stdout + finished.stderr
    assert 'bytes stack frame' in finished.stderr
    frames = [line.strip() for line in finished.stderr.splitlines() if 'bytes stack frame' in line]
    assert all(line.startswith('0 bytes') for line in frames), f'kernels keep arrays in slow memory: {set(frames)}'


@pytest.mark.slow
@pytest.mark.parametrize('operator', custom_ops.OPERATORS)
def test_operators_build_and_load(operator, tmp_path, monkeypatch):
    """The whole way from sources to a registered kernel, short of running it. Needs no GPU."""
    home = custom_ops.cuda_home()
    if torch.version.cuda is None or home is None or not (home / 'include' / 'cuda_runtime.h').exists():
        pytest.skip('needs PyTorch with CUDA and the CUDA toolkit')
    monkeypatch.setenv('XDG_CACHE_HOME', str(tmp_path))
    monkeypatch.setattr(custom_ops, 'gpu_architectures', lambda: ['90'])
    try:
        library = custom_ops.build(operator)
    except custom_ops.BuildError:
        pytest.fail(next(tmp_path.rglob('failure.log')).read_text()[-4000:])
    torch.ops.load_library(str(library))
    assert {path.name for path in library.parent.iterdir()} == {'lock', library.name}
