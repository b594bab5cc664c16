"""A tri-plane radiance field in one kernel: coordinates, bilinear lookups, mean over planes, MLP, activations.

Written in Triton, for CUDA GPUs (and for any CPU through Triton's interpreter, which the tests use). Nothing but the
results is stored: the backward pass computes features and hidden units again. The reference implementation in plain
PyTorch, which specifies what is computed, is `training.rendering.volume.TriplaneField`.

S samples on each of M rays of N images have depths and densities [N, M, S] and colours [N, M, S, n]. In memory samples come
first: [S, N, M] and [n, S, N, M]. Neighbouring rays then lie side by side, and they read neighbouring texels. Results are
such tensors, seen with the samples last; arguments that are not are copied.

Gradients are first order only, for planes, MLP and sample weights; rays and depths have none. Those of the MLP are sums
in a fixed order. Those of the planes are added atomically, in whatever order the GPU's threads come by, so that they
differ by rounding between runs, as those of `torch.nn.functional.grid_sample` do.
"""

import contextlib
import functools
from typing import NamedTuple

import torch
import triton
import triton.language as tl

# How many samples or rays a program works on at once, and how many programs share a backward pass. Each program keeps
# the MLP in registers and shared memory, so larger blocks load it less often but hold more features.
SAMPLES_PER_BLOCK = 64
RAYS_PER_BLOCK = 32
BACKWARD_SAMPLES_PER_BLOCK = 16  # more would not fit the registers, with all the gradients of the MLP
BACKWARD_PROGRAMS = 1024
SAMPLES_PER_GRID_BLOCK = 256
LAUNCH = dict(num_warps=4, num_stages=1)  # texels fetched ahead by software pipelining would fill the shared memory
SMALLEST_DOT = 16  # tl.dot takes no smaller sizes

COLOR_GAIN, COLOR_OFFSET = tl.constexpr(1.002), tl.constexpr(-0.001)  # colour = sigmoid * 1.002 - 0.001


class Precision(NamedTuple):
    """What the MLP's products read, how fp32 products are made, and what planes are stored in for inference."""

    operands: object
    products: str
    planes: torch.dtype


PRECISIONS = {
    'fp32': Precision(tl.float32, 'ieee', torch.float32),
    'tf32x3': Precision(tl.float32, 'tf32x3', torch.float32),  # three TF32 products: nearly fp32, on tensor cores
    'tf32': Precision(tl.float32, 'tf32', torch.float32),
    'fp16': Precision(tl.float16, 'ieee', torch.float16),
    'bf16': Precision(tl.bfloat16, 'ieee', torch.bfloat16),
}

# Gradients leave fp16's range: those of one sample are often below 1e-8. TF32 has as many digits, and fp32's range.
BACKWARD_PRECISION = {'fp16': 'tf32'}


class FusedField(NamedTuple):
    """A volume.TriplaneField as the kernels read it. Weights are as they act, after any run-time scaling."""

    planes: list  # one or two [N, K, H, W, C] (see `channels_last`), whose features add up
    hidden_weight: torch.Tensor  # [units, C]
    hidden_bias: torch.Tensor  # [units]
    output_weight: torch.Tensor  # [1 + n, units], the density's first
    output_bias: torch.Tensor  # [1 + n]
    box_size: float  # side of the cube that the planes cover, world units
    axes: tuple  # of every plane, such as ('xy', 'yz', 'zx')
    precision: str = 'fp32'  # one of PRECISIONS

    @property
    def mlp(self):
        return self[1:5]

    @property
    def color_channels(self):
        return len(self.output_bias) - 1

    def without_colors(self):
        return self._replace(output_weight=self.output_weight[:1], output_bias=self.output_bias[:1])


def channels_last(planes, precision='fp32'):
    """Planes [N, K, C, H, W] as the kernels read them: [N, K, H, W, C], contiguous.

    They are stored in the precision's dtype where no gradient is wanted, else as they are: the gradients of the planes
    have their dtype, and would leave fp16's range.
    """
    planes = planes.permute(0, 1, 3, 4, 2)
    wants_gradient = torch.is_grad_enabled() and planes.requires_grad
    return (planes if wants_gradient else planes.to(PRECISIONS[precision].planes)).contiguous()


def samples_first(x):
    """[N, M, S] or [N, M, S, n] as the kernels hold it: [S, N, M] or [n, S, N, M], contiguous."""
    return x.permute(*range(x.ndim - 1, 1, -1), 0, 1).contiguous()


def samples_last(x):
    """The inverse of `samples_first`, without a copy."""
    return x.permute(-2, -1, *range(x.ndim - 3, -1, -1))


def triplane_samples(field, origins, directions, depths, chosen=None):
    """The field at every sample.

    field: FusedField; origins, directions: [N, M, 3], world units; depths: [N, M, S]; chosen: bool [N, M, S]: only these samples
    are computed, all others are 0, and there are no gradients. Returns raw density [N, M, S] and colours [N, M, S, n].
    Differentiable in the field's tensors, once.
    """
    rays = _check(field, origins, directions, depths)
    if chosen is None:
        results = _Samples.apply(field, *rays, *field.mlp, *field.planes)
    else:
        results = _run_samples(field, rays, samples_first(chosen).flatten().nonzero().squeeze(1))
    return tuple(samples_last(x) for x in results)


def triplane_pixels(field, origins, directions, depths, weights):
    """Colours weighted and summed along rays, without storing any sample's colour.

    weights: [N, M, S]; the rest as in `triplane_samples`. Returns [N, M, n]. Differentiable in the field's tensors and weights,
    once.
    """
    rays = _check(field, origins, directions, depths)
    return _Pixels.apply(field, *rays, samples_first(weights), *field.mlp, *field.planes)


def grid_values(grid, origins, directions, depths, box_size):
    """What a grid holds at every sample, without interpolation and without gradients.

    grid: [N, G + 2, G + 2, G + 2], by x, y and z: G cells across the box and one on each side for all that lies beyond.
    depths: [N, M, S]. Returns [N, M, S].
    """
    depths = samples_first(depths)
    values = torch.empty_like(depths)
    with on_device(depths):
        _grid_kernel[(triton.cdiv(depths.numel(), SAMPLES_PER_GRID_BLOCK),)](
            values,
            grid.contiguous(),
            grid.shape[1],
            depths.numel(),
            depths[0].numel(),
            depths.shape[2],
            origins.contiguous(),
            directions.contiguous(),
            depths,
            TO_PLANE=2 / box_size,
            BLOCK=SAMPLES_PER_GRID_BLOCK,
            **LAUNCH,
        )
    return samples_last(values)


def _check(field, origins, directions, depths):
    """Origins, directions and depths as the kernels read them, if everything fits together."""
    (n, m), planes, channels = depths.shape[:2], len(field.axes), field.hidden_weight.shape[1]
    if origins.shape != (n, m, 3) or directions.shape != (n, m, 3):
        raise ValueError(
            f'rays must be [{n}, {m}, 3] for depths {list(depths.shape)}, got {list(origins.shape)} and {list(directions.shape)}'
        )
    if any(x.requires_grad for x in (origins, directions, depths)):
        raise ValueError('the fused tri-plane field has no gradient for rays and depths; use the PyTorch renderer')
    if not 1 <= len(field.planes) <= 2:
        raise ValueError(f'one or two sets of planes are supported, got {len(field.planes)}')
    for p in field.planes:
        if p.shape[:2] != (n, planes) or p.shape[4] != channels or not p.is_contiguous():
            raise ValueError(f'planes must be contiguous [{n}, {planes}, H, W, {channels}], got {list(p.shape)}')
    return origins.contiguous(), directions.contiguous(), samples_first(depths)


# Kernels: parts ------------------------------------------------------------------------------------------------------

# Arguments of kernels are grouped by what they belong to.
# fmt: off


@triton.jit
def _along(x, y, z, axis):
    """The coordinate along axis 0, 1 or 2."""
    return tl.where(axis == 0, x, tl.where(axis == 1, y, z))


@triton.jit
def _point(origins, directions, depth, ray, real, TO_PLANE: tl.constexpr):
    """Plane coordinates, the box being [-1, 1], of the points at `depth` along rays number `ray`."""
    x = tl.load(origins + ray * 3, mask=real, other=0.0) + tl.load(directions + ray * 3, mask=real, other=0.0) * depth
    y = tl.load(origins + ray * 3 + 1, mask=real, other=0.0) + tl.load(directions + ray * 3 + 1, mask=real, other=0.0) * depth
    z = tl.load(origins + ray * 3 + 2, mask=real, other=0.0) + tl.load(directions + ray * 3 + 2, mask=real, other=0.0) * depth
    return x * TO_PLANE, y * TO_PLANE, z * TO_PLANE


@triton.jit
def _position(x, y, z, plane, height, width, AXES: tl.constexpr):
    """Where points lie on a plane, in texels: its width axis and height axis take two bits each of AXES."""
    u = ((_along(x, y, z, (AXES >> (4 * plane)) & 3) + 1) * width - 1) / 2
    v = ((_along(x, y, z, (AXES >> (4 * plane + 2)) & 3) + 1) * height - 1) / 2
    return u, v


@triton.jit
def _texel(u, v, real, height, width, CORNER: tl.constexpr):
    """One of the four texels around each point: its index in the plane, its bilinear weight, and whether it exists."""
    column = tl.floor(u) + CORNER % 2
    row = tl.floor(v) + CORNER // 2
    weight = (1 - tl.abs(u - column)) * (1 - tl.abs(v - row))
    exists = real & (column >= 0) & (column < width) & (row >= 0) & (row < height)
    index = tl.where(exists, row, 0.0).to(tl.int32) * width + tl.where(exists, column, 0.0).to(tl.int32)
    return index, weight, exists


# The loop over the planes is a real loop: unrolled, all of its addresses would have to be kept for the backward pass.


@triton.jit
def _add_lookups(features, planes, image, x, y, z, real, height, width, channel,
                 PLANES: tl.constexpr, AXES: tl.constexpr, CHANNELS: tl.constexpr):
    """features [B, C] plus the mean over the planes of bilinear lookups."""
    for plane in range(PLANES):
        u, v = _position(x, y, z, plane, height, width, AXES)
        first = (image * PLANES + plane) * height * width
        for CORNER in tl.static_range(4):
            index, weight, exists = _texel(u, v, real, height, width, CORNER)
            where = (first + index)[:, None] * CHANNELS + channel[None, :]
            texel = tl.load(planes + where, mask=exists[:, None] & (channel < CHANNELS)[None, :], other=0.0)
            features += (weight / PLANES)[:, None] * texel.to(tl.float32)
    return features


@triton.jit
def _scatter_lookups(gradients, grad_features, image, x, y, z, real, height, width, channel,
                     PLANES: tl.constexpr, AXES: tl.constexpr, CHANNELS: tl.constexpr):
    """The adjoint of _add_lookups: adds grad_features [B, C] to the texels they were looked up from."""
    for plane in range(PLANES):
        u, v = _position(x, y, z, plane, height, width, AXES)
        first = (image * PLANES + plane) * height * width
        for CORNER in tl.static_range(4):
            index, weight, exists = _texel(u, v, real, height, width, CORNER)
            where = (first + index)[:, None] * CHANNELS + channel[None, :]
            tl.atomic_add(gradients + where, (weight / PLANES)[:, None] * grad_features,
                          mask=exists[:, None] & (channel < CHANNELS)[None, :], sem='relaxed')


@triton.jit
def _features(coarse, fine, image, x, y, z, real, coarse_height, coarse_width, fine_height, fine_width, channel,
              BLOCK: tl.constexpr, CHANNEL_BLOCK: tl.constexpr, PLANES: tl.constexpr, AXES: tl.constexpr, CHANNELS: tl.constexpr):
    """Features [B, C] of points: the sum over one or two sets of planes."""
    features = tl.zeros([BLOCK, CHANNEL_BLOCK], tl.float32)
    features = _add_lookups(features, coarse, image, x, y, z, real, coarse_height, coarse_width, channel, PLANES, AXES, CHANNELS)
    if fine is not None:
        features = _add_lookups(features, fine, image, x, y, z, real, fine_height, fine_width, channel, PLANES, AXES, CHANNELS)
    return features


@triton.jit
def _dot(a, b, OPERANDS: tl.constexpr, PRODUCTS: tl.constexpr):
    return tl.dot(a.to(OPERANDS), b.to(OPERANDS), input_precision=PRODUCTS)


@triton.jit
def softplus(x):
    return tl.maximum(x, 0.0) + tl.log(1 + tl.exp(-tl.abs(x)))


@triton.jit
def _load_hidden(weight, bias, channel, unit, CHANNELS: tl.constexpr, UNITS: tl.constexpr):
    """The hidden layer's weights [C, H] and bias [H], zero where padded."""
    real = (channel < CHANNELS)[:, None] & (unit < UNITS)[None, :]
    return tl.load(weight + unit[None, :] * CHANNELS + channel[:, None], mask=real, other=0.0), \
        tl.load(bias + unit, mask=unit < UNITS, other=0.0)


@triton.jit
def _load_colors(weight, bias, unit, color, UNITS: tl.constexpr, COLORS: tl.constexpr):
    """The colours' weights [H, n] and bias [n], zero where padded. Row 0 of the output layer is the density's."""
    real = (unit < UNITS)[:, None] & (color < COLORS)[None, :]
    return tl.load(weight + (1 + color)[None, :] * UNITS + unit[:, None], mask=real, other=0.0), \
        tl.load(bias + 1 + color, mask=color < COLORS, other=0.0)


# Kernels -------------------------------------------------------------------------------------------------------------


@triton.jit
def _samples_kernel(density_out, colors_out, chosen, count, samples, rays, rays_per_image, origins, directions, depths,
                    hidden_weight, hidden_bias, output_weight, output_bias,
                    coarse, coarse_height, coarse_width, fine, fine_height, fine_width,
                    BLOCK: tl.constexpr, CHANNELS: tl.constexpr, UNITS: tl.constexpr, COLORS: tl.constexpr,
                    CHANNEL_BLOCK: tl.constexpr, UNIT_BLOCK: tl.constexpr, COLOR_BLOCK: tl.constexpr,
                    PLANES: tl.constexpr, AXES: tl.constexpr, TO_PLANE: tl.constexpr,
                    OPERANDS: tl.constexpr, PRODUCTS: tl.constexpr):
    """Density and colours of a block of samples."""
    channel, unit, color = tl.arange(0, CHANNEL_BLOCK), tl.arange(0, UNIT_BLOCK), tl.arange(0, COLOR_BLOCK)
    w1, b1 = _load_hidden(hidden_weight, hidden_bias, channel, unit, CHANNELS, UNITS)
    wd, bd = tl.load(output_weight + unit, mask=unit < UNITS, other=0.0), tl.load(output_bias)  # row 0 is the density's
    sample = tl.program_id(0).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
    real = sample < count
    if chosen is not None:
        sample = tl.load(chosen + sample, mask=real, other=0)
    ray = sample % rays
    depth = tl.load(depths + sample, mask=real, other=0.0)
    x, y, z = _point(origins, directions, depth, ray, real, TO_PLANE)
    features = _features(coarse, fine, ray // rays_per_image, x, y, z, real, coarse_height, coarse_width, fine_height, fine_width,
                         channel, BLOCK, CHANNEL_BLOCK, PLANES, AXES, CHANNELS)
    hidden = softplus(_dot(features, w1, OPERANDS, PRODUCTS) + b1[None, :])
    tl.store(density_out + sample, tl.sum(hidden * wd[None, :], axis=1) + bd, mask=real)
    if COLORS > 0:
        wc, bc = _load_colors(output_weight, output_bias, unit, color, UNITS, COLORS)
        values = tl.sigmoid(_dot(hidden, wc, OPERANDS, PRODUCTS) + bc[None, :]) * COLOR_GAIN + COLOR_OFFSET
        tl.store(colors_out + color.to(tl.int64)[None, :] * samples + sample[:, None], values,
                 mask=real[:, None] & (color < COLORS)[None, :])


@triton.jit
def _pixels_kernel(pixels_out, weights, rays, rays_per_image, origins, directions, depths,
                   hidden_weight, hidden_bias, output_weight, output_bias,
                   coarse, coarse_height, coarse_width, fine, fine_height, fine_width, SAMPLES: tl.constexpr,
                   BLOCK: tl.constexpr, CHANNELS: tl.constexpr, UNITS: tl.constexpr, COLORS: tl.constexpr,
                   CHANNEL_BLOCK: tl.constexpr, UNIT_BLOCK: tl.constexpr, COLOR_BLOCK: tl.constexpr,
                   PLANES: tl.constexpr, AXES: tl.constexpr, TO_PLANE: tl.constexpr,
                   OPERANDS: tl.constexpr, PRODUCTS: tl.constexpr):
    """Weighted sums of colours over the samples of a block of rays. Samples that weigh nothing are passed over."""
    channel, unit, color = tl.arange(0, CHANNEL_BLOCK), tl.arange(0, UNIT_BLOCK), tl.arange(0, COLOR_BLOCK)
    w1, b1 = _load_hidden(hidden_weight, hidden_bias, channel, unit, CHANNELS, UNITS)
    wc, bc = _load_colors(output_weight, output_bias, unit, color, UNITS, COLORS)
    ray = tl.program_id(0).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
    real = ray < rays
    pixels = tl.zeros([BLOCK, COLOR_BLOCK], tl.float32)
    sample = ray
    for _ in range(SAMPLES):
        weight = tl.load(weights + sample, mask=real, other=0.0)
        if tl.max(tl.abs(weight), axis=0) > 0:
            depth = tl.load(depths + sample, mask=real, other=0.0)
            x, y, z = _point(origins, directions, depth, ray, real, TO_PLANE)
            features = _features(coarse, fine, ray // rays_per_image, x, y, z, real, coarse_height, coarse_width, fine_height,
                                 fine_width, channel, BLOCK, CHANNEL_BLOCK, PLANES, AXES, CHANNELS)
            hidden = softplus(_dot(features, w1, OPERANDS, PRODUCTS) + b1[None, :])
            values = tl.sigmoid(_dot(hidden, wc, OPERANDS, PRODUCTS) + bc[None, :]) * COLOR_GAIN + COLOR_OFFSET
            pixels += weight[:, None] * values
        sample += rays
    tl.store(pixels_out + ray[:, None] * COLORS + color[None, :], pixels, mask=real[:, None] & (color < COLORS)[None, :])


@triton.jit
def _backward_kernel(grad_density, grad_colors, grad_pixels, weights, grad_weights, grad_coarse, grad_fine,
                     grad_hidden_weight, grad_hidden_bias, grad_output_weight, grad_output_bias,
                     samples, rays, rays_per_image, origins, directions, depths,
                     hidden_weight, hidden_bias, output_weight, output_bias,
                     coarse, coarse_height, coarse_width, fine, fine_height, fine_width, ROUNDS: tl.constexpr,
                     BLOCK: tl.constexpr, CHANNELS: tl.constexpr, UNITS: tl.constexpr, COLORS: tl.constexpr,
                     CHANNEL_BLOCK: tl.constexpr, UNIT_BLOCK: tl.constexpr, COLOR_BLOCK: tl.constexpr,
                     PLANES: tl.constexpr, AXES: tl.constexpr, TO_PLANE: tl.constexpr,
                     OPERANDS: tl.constexpr, PRODUCTS: tl.constexpr):
    """Gradients of either forward kernel, from features and hidden units computed again.

    Of _samples_kernel where grad_density is given; of _pixels_kernel where grad_pixels is, and then also of its weights.
    Every program works on blocks of samples and leaves its sum of the MLP's gradients in a row of its own.
    """
    channel, unit, color = tl.arange(0, CHANNEL_BLOCK), tl.arange(0, UNIT_BLOCK), tl.arange(0, COLOR_BLOCK)
    w1, b1 = _load_hidden(hidden_weight, hidden_bias, channel, unit, CHANNELS, UNITS)
    wd = tl.load(output_weight + unit, mask=unit < UNITS, other=0.0)  # row 0 is the density's
    wc, bc = _load_colors(output_weight, output_bias, unit, color, UNITS, COLORS)
    g_w1 = tl.zeros([CHANNEL_BLOCK, UNIT_BLOCK], tl.float32)
    g_b1 = tl.zeros([UNIT_BLOCK], tl.float32)
    g_wd = tl.zeros([UNIT_BLOCK], tl.float32)
    g_bd = tl.zeros([BLOCK], tl.float32)
    g_wc = tl.zeros([UNIT_BLOCK, COLOR_BLOCK], tl.float32)
    g_bc = tl.zeros([COLOR_BLOCK], tl.float32)
    sample = tl.program_id(0).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
    for _ in range(ROUNDS):
        real = sample < samples
        ray = sample % rays
        image = ray // rays_per_image
        depth = tl.load(depths + sample, mask=real, other=0.0)
        x, y, z = _point(origins, directions, depth, ray, real, TO_PLANE)
        features = _features(coarse, fine, image, x, y, z, real, coarse_height, coarse_width, fine_height, fine_width,
                             channel, BLOCK, CHANNEL_BLOCK, PLANES, AXES, CHANNELS)
        before = _dot(features, w1, OPERANDS, PRODUCTS) + b1[None, :]
        hidden = softplus(before)
        g_hidden = tl.zeros([BLOCK, UNIT_BLOCK], tl.float32)
        if COLORS > 0:
            has_color = real[:, None] & (color < COLORS)[None, :]
            squashed = tl.sigmoid(_dot(hidden, wc, OPERANDS, PRODUCTS) + bc[None, :])
            if grad_pixels is not None:
                g_color = tl.load(grad_pixels + ray[:, None] * COLORS + color[None, :], mask=has_color, other=0.0)
                values = squashed * COLOR_GAIN + COLOR_OFFSET
                tl.store(grad_weights + sample, tl.sum(g_color * values, axis=1), mask=real)
                g_color = g_color * tl.load(weights + sample, mask=real, other=0.0)[:, None]
            else:
                g_color = tl.load(grad_colors + color.to(tl.int64)[None, :] * samples + sample[:, None], mask=has_color,
                                   other=0.0)
            g_out = g_color * (COLOR_GAIN * squashed * (1 - squashed))
            g_hidden += _dot(g_out, tl.trans(wc), OPERANDS, PRODUCTS)
            g_wc += _dot(tl.trans(hidden), g_out, OPERANDS, PRODUCTS)
            g_bc += tl.sum(g_out, axis=0)
        if grad_density is not None:
            g_density = tl.load(grad_density + sample, mask=real, other=0.0)
            g_hidden += g_density[:, None] * wd[None, :]
            g_wd += tl.sum(hidden * g_density[:, None], axis=0)
            g_bd += g_density
        g_before = g_hidden * tl.sigmoid(before)
        g_w1 += _dot(tl.trans(features), g_before, OPERANDS, PRODUCTS)
        g_b1 += tl.sum(g_before, axis=0)
        g_features = _dot(g_before, tl.trans(w1), OPERANDS, PRODUCTS)
        _scatter_lookups(grad_coarse, g_features, image, x, y, z, real, coarse_height, coarse_width, channel, PLANES, AXES,
                         CHANNELS)
        if fine is not None:
            _scatter_lookups(grad_fine, g_features, image, x, y, z, real, fine_height, fine_width, channel, PLANES, AXES,
                             CHANNELS)
        sample += tl.num_programs(0) * BLOCK
    row = tl.program_id(0).to(tl.int64)
    tl.store(grad_hidden_weight + (row * UNITS + unit[None, :]) * CHANNELS + channel[:, None], g_w1,
             mask=(channel < CHANNELS)[:, None] & (unit < UNITS)[None, :])
    tl.store(grad_hidden_bias + row * UNITS + unit, g_b1, mask=unit < UNITS)
    tl.store(grad_output_weight + row * (1 + COLORS) * UNITS + unit, g_wd, mask=unit < UNITS)
    tl.store(grad_output_bias + row * (1 + COLORS), tl.sum(g_bd, axis=0))
    tl.store(grad_output_weight + (row * (1 + COLORS) + 1 + color[None, :]) * UNITS + unit[:, None], g_wc,
             mask=(unit < UNITS)[:, None] & (color < COLORS)[None, :])
    tl.store(grad_output_bias + row * (1 + COLORS) + 1 + color, g_bc, mask=color < COLORS)


@triton.jit
def _cell(coordinate, cells):
    """The cell of a plane coordinate: 1 to cells - 2 across the box, 0 and cells - 1 beyond it."""
    return tl.minimum(tl.maximum(tl.floor((coordinate + 1) / 2 * (cells - 2)), -1.0), cells - 2.0).to(tl.int32) + 1


@triton.jit
def _grid_kernel(values, grid, cells, samples, rays, rays_per_image, origins, directions, depths, TO_PLANE: tl.constexpr,
                 BLOCK: tl.constexpr):
    """What the grid holds at a block of samples."""
    sample = tl.program_id(0).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
    real = sample < samples
    ray = sample % rays
    depth = tl.load(depths + sample, mask=real, other=0.0)
    x, y, z = _point(origins, directions, depth, ray, real, TO_PLANE)
    cell = ((ray // rays_per_image * cells + _cell(x, cells)) * cells + _cell(y, cells)) * cells + _cell(z, cells)
    tl.store(values + sample, tl.load(grid + cell, mask=real, other=0.0), mask=real)
# fmt: on


# Launching them ------------------------------------------------------------------------------------------------------


def first_derivative_only(backward):
    """For the backward pass of a Function: refuse to be differentiated again, rather than leave a gradient out."""

    @functools.wraps(backward)
    def checked(ctx, *gradients):
        if torch.is_grad_enabled():  # create_graph=True
            raise RuntimeError('the fused renderer has no second derivatives; use the PyTorch renderer')
        return backward(ctx, *gradients)

    return checked


class _Samples(torch.autograd.Function):
    @staticmethod
    def forward(ctx, field, *tensors):
        ctx.constants = field[5:]
        ctx.save_for_backward(*tensors)
        return _run_samples(field, tensors[:3])

    @staticmethod
    @first_derivative_only
    def backward(ctx, grad_density, grad_colors):
        rays, mlp, planes = ctx.saved_tensors[:3], ctx.saved_tensors[3:7], ctx.saved_tensors[7:]
        given = (grad_density.contiguous(), grad_colors.contiguous(), None, None, None)
        return None, None, None, None, *_run_backward(FusedField(planes, *mlp, *ctx.constants), rays, given)


class _Pixels(torch.autograd.Function):
    @staticmethod
    def forward(ctx, field, origins, directions, depths, weights, *tensors):
        ctx.constants = field[5:]
        ctx.save_for_backward(origins, directions, depths, weights, *tensors)
        samples, n, m = depths.shape
        pixels = depths.new_empty(n, m, field.color_channels)
        blocks, rays = triton.cdiv(n * m, RAYS_PER_BLOCK), (origins, directions, depths)
        _launch(_pixels_kernel, blocks, RAYS_PER_BLOCK, field, rays, pixels, weights, SAMPLES=samples)
        return pixels

    @staticmethod
    @first_derivative_only
    def backward(ctx, grad_pixels):
        *rays, weights = ctx.saved_tensors[:4]
        mlp, planes, grad_weights = ctx.saved_tensors[4:8], ctx.saved_tensors[8:], torch.empty_like(weights)
        given = (None, None, grad_pixels.contiguous(), weights, grad_weights)
        gradients = _run_backward(FusedField(planes, *mlp, *ctx.constants), rays, given)
        return None, None, None, None, grad_weights, *gradients


def _run_samples(field, rays, chosen=None):
    depths = rays[2]
    new = torch.empty if chosen is None else torch.zeros
    raw_density = new(depths.shape, device=depths.device)
    colors = new((field.color_channels, *depths.shape), device=depths.device)
    count = depths.numel() if chosen is None else len(chosen)
    if count:
        blocks, arguments = triton.cdiv(count, SAMPLES_PER_BLOCK), (raw_density, colors, chosen, count, depths.numel())
        _launch(_samples_kernel, blocks, SAMPLES_PER_BLOCK, field, rays, *arguments)
    return raw_density, colors


def _run_backward(field, rays, given):
    """Gradients of the MLP's four tensors, then of the planes. given: the kernel's first five arguments."""
    blocks = triton.cdiv(rays[2].numel(), BACKWARD_SAMPLES_PER_BLOCK)
    programs = max(1, min(BACKWARD_PROGRAMS, blocks))
    of_mlp = [torch.empty(programs, *x.shape, device=x.device) for x in field.mlp]
    of_planes = [torch.zeros_like(p, dtype=torch.float32) for p in field.planes]
    arguments = (*given, of_planes[0], of_planes[1] if len(of_planes) > 1 else None, *of_mlp, rays[2].numel())
    field = field._replace(precision=BACKWARD_PRECISION.get(field.precision, field.precision))
    rounds = triton.cdiv(blocks, programs)
    _launch(_backward_kernel, programs, BACKWARD_SAMPLES_PER_BLOCK, field, rays, *arguments, ROUNDS=rounds)
    return [x.sum(dim=0) for x in of_mlp] + of_planes


def _launch(kernel, programs, block, field, rays, *arguments, **constants):
    """Launch a kernel with its own arguments, and with those that all have: rays, MLP, and one or two sets of planes."""
    depths = rays[2]
    sets = [[p, p.shape[2], p.shape[3]] for p in field.planes]
    coarse, fine = sets if len(sets) > 1 else (*sets, [None, 0, 0])
    with on_device(depths):
        kernel[(programs,)](
            *arguments,
            depths[0].numel(),
            depths.shape[2],
            *rays,
            *(x.contiguous() for x in field.mlp),
            *coarse,
            *fine,
            **LAUNCH,
            **constants,
            **_constants(field, block),
        )


def _constants(field, block):
    """The kernels' compile-time constants."""
    units, channels = field.hidden_weight.shape
    padded = [max(SMALLEST_DOT, triton.next_power_of_2(size)) for size in (channels, units, field.color_channels)]
    return dict(
        BLOCK=block,
        CHANNELS=channels,
        UNITS=units,
        COLORS=field.color_channels,
        CHANNEL_BLOCK=padded[0],
        UNIT_BLOCK=padded[1],
        COLOR_BLOCK=padded[2],
        PLANES=len(field.axes),
        AXES=sum('xyz'.index(axis) << (2 * index) for index, axis in enumerate(''.join(field.axes))),  # two bits each
        TO_PLANE=2 / field.box_size,
        OPERANDS=PRECISIONS[field.precision].operands,
        PRODUCTS=PRECISIONS[field.precision].products,
    )


def on_device(tensor):
    """Kernels are launched on the current device: make it the tensor's."""
    return torch.cuda.device(tensor.device) if tensor.is_cuda else contextlib.nullcontext()
