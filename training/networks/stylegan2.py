"""StyleGAN2's parts: convolution, equalised layers, mapping network, modulated convolution, synthesis layers and blocks.

Karras et al., "Analyzing and Improving the Image Quality of StyleGAN", CVPR 2020; conventions and numbers: docs/method.md,
section 3. Weights are stored ~N(0, 1) and scaled by 1/sqrt(fan_in) where they are used (equalised learning rate).
"""

import math

import torch
import torch.nn.functional as F
from torch import nn

from torch_utils.ops.bias_act import GAINS, bias_act
from torch_utils.ops.upfirdn2d import setup_filter, upfirdn2d
from torch_utils.random import BatchRandom
from training.config import NOISE_MODES

RESAMPLE_TAPS = (1, 3, 3, 1)
DTYPES = {'fp32': torch.float32, 'fp16': torch.float16, 'bf16': torch.bfloat16}
W_AVG_DECAY = 0.998


def working_dtype(precision, device):
    """The dtype to compute in; fp16 convolutions are a GPU's matter, so a CPU computes them in fp32."""
    if precision == 'fp16' and device.type == 'cpu':
        return torch.float32
    return DTYPES[precision]


def channels_at(resolution, channel_base, channel_max):
    return min(channel_base // resolution, channel_max)


def normalize_second_moment(x):
    """x [N, C] divided by the root mean square of each row."""
    return x * (x.square().mean(dim=1, keepdim=True) + 1e-8).rsqrt()


def conv2d(x, weight, resample_filter=None, up=1, down=1, groups=1):
    """A convolution that keeps, doubles (up=2) or halves (down=2) the resolution; zeros beyond the border.

    x: [N, C_in, H, W]; weight: [C_out, C_in / groups, k, k], k odd; resample_filter: [t, t], t even, needed where the
    resolution changes. Returns [N, C_out, H', W']. Upsampling is a true convolution, with the flipped kernel; the others
    correlate (docs/method.md, section 3).
    """
    same = weight.shape[-1] // 2  # padding that keeps the size
    if up == 2:
        # The convolution of x with zeros between its pixels, without the products with the zeros; the filter follows.
        transposed = weight.unflatten(0, (groups, -1)).transpose(1, 2).flatten(0, 1)  # [C_in, C_out / groups, k, k]
        x = F.conv_transpose2d(x, transposed, stride=2, groups=groups)
        return upfirdn2d(x, resample_filter, padding=len(resample_filter) // 2 - same, gain=4)
    if down == 1:
        return F.conv2d(x, weight, padding=same, groups=groups)
    padding = len(resample_filter) // 2 - 1 + same
    if same == 0:  # pixels that a 1x1 kernel would skip need not be filtered
        return F.conv2d(upfirdn2d(x, resample_filter, down=2, padding=padding), weight, groups=groups)
    return F.conv2d(upfirdn2d(x, resample_filter, padding=padding), weight, stride=2, groups=groups)


class FullyConnected(nn.Module):
    """A linear layer with equalised learning rate and optional activation: [..., in] -> [..., out]."""

    def __init__(self, in_features, out_features, activation='linear', lr_multiplier=1.0, bias_init=0.0):
        super().__init__()
        self.activation = activation
        self.weight = nn.Parameter(torch.randn(out_features, in_features) / lr_multiplier)
        self.bias = nn.Parameter(torch.full([out_features], float(bias_init)))
        self.weight_gain = lr_multiplier / math.sqrt(in_features)
        self.bias_gain = lr_multiplier

    def forward(self, x, rows=None):
        """`rows` limits the layer to its first outputs."""
        return bias_act(F.linear(x, *self.effective(rows, x.dtype)), act=self.activation)

    def effective(self, rows=None, dtype=torch.float32):
        """Weight and bias as they act, gains included."""
        return self.weight[:rows].to(dtype) * self.weight_gain, self.bias[:rows].to(dtype) * self.bias_gain


class EqualizedConv2d(nn.Module):
    """A convolution with equalised learning rate, optional downsampling, bias and activation."""

    def __init__(self, in_channels, out_channels, kernel_size, bias=True, activation='linear', down=1, conv_clamp=None):
        super().__init__()
        self.activation, self.down, self.conv_clamp = activation, down, conv_clamp
        self.weight = nn.Parameter(torch.randn(out_channels, in_channels, kernel_size, kernel_size))
        self.bias = nn.Parameter(torch.zeros(out_channels)) if bias else None
        self.weight_gain = 1 / math.sqrt(in_channels * kernel_size**2)
        self.register_buffer('resample_filter', setup_filter(RESAMPLE_TAPS), persistent=False)

    def forward(self, x, gain=1.0):
        """x: [N, C_in, H, W]. `gain` multiplies the result, and so the largest magnitude that conv_clamp allows."""
        x = conv2d(x, (self.weight * self.weight_gain).to(x.dtype), self.resample_filter, down=self.down)
        clamp = None if self.conv_clamp is None else self.conv_clamp * gain
        return bias_act(x, self.bias, act=self.activation, gain=GAINS[self.activation] * gain, clamp=clamp)


class MappingNetwork(nn.Module):
    """z and a conditioning label to one w per layer (StyleGAN2 with EG3D's pose conditioning).

    The label passes a linear embedding; latent and embedded label are each normalised by their second moment and
    concatenated. With z_dim=0 only the label is mapped, to a single w where num_ws is None (the discriminator's use).
    conditioning=False puts zeros in the label's place, otherwise it is multiplied by conditioning_scale.
    """

    def __init__(self, z_dim, c_dim, w_dim, num_ws, num_layers, conditioning=True, conditioning_scale=1.0):
        super().__init__()
        self.z_dim, self.c_dim, self.num_ws = z_dim, c_dim, num_ws
        self.conditioning, self.conditioning_scale = conditioning, conditioning_scale
        self.embed = FullyConnected(c_dim, w_dim) if c_dim else None
        sizes = [z_dim + (w_dim if c_dim else 0)] + [w_dim] * num_layers
        self.layers = nn.ModuleList(FullyConnected(a, b, 'lrelu', lr_multiplier=0.01) for a, b in zip(sizes, sizes[1:]))
        if z_dim:
            self.register_buffer('w_avg', torch.zeros(w_dim))

    def forward(self, z, c, truncation_psi=1.0, truncation_cutoff=None):
        """z: [N, z_dim]; c: cameras [N, c_dim]; psi pulls the first `truncation_cutoff` (None: all) ws to their mean.

        Returns [N, num_ws, w_dim], or [N, w_dim] where num_ws is None.
        """
        w = self.single_w(z, c)
        if self.num_ws is None:
            return w
        ws = w.unsqueeze(1).repeat(1, self.num_ws, 1)
        if truncation_psi != 1:
            ws[:, :truncation_cutoff] = self.w_avg.lerp(ws[:, :truncation_cutoff], truncation_psi)
        return ws

    def single_w(self, z, c):
        """w [N, w_dim] before truncation and repetition."""
        parts = []
        if self.z_dim:
            _expect(z, self.z_dim, 'z')
            parts.append(normalize_second_moment(z.float()))
        if self.c_dim:
            _expect(c, self.c_dim, 'c')
            label = c.float() * self.conditioning_scale if self.conditioning else torch.zeros_like(c)
            parts.append(normalize_second_moment(self.embed(label)))
        x = torch.cat(parts, dim=1)
        for layer in self.layers:
            x = layer(x)
        return x

    @torch.no_grad()
    def update_w_avg(self, mean_w):
        """Move the running mean of w, used by truncation, towards the mean [w_dim] of a batch."""
        self.w_avg.copy_(mean_w.lerp(self.w_avg, W_AVG_DECAY))


def _expect(x, size, name):
    if x.ndim != 2 or x.shape[1] != size:
        raise ValueError(f'{name} must have shape [N, {size}], got {list(x.shape)}')


def modulated_conv2d(x, weight, styles, up=1, resample_filter=None, demodulate=True):
    """Convolution with weights scaled per sample and input channel, and normalised per output channel.

    x: [N, C_in, H, W]; weight: [C_out, C_in, k, k]; styles: [N, C_in]; the rest as in `conv2d`. The scales act on the
    activations before and after one shared convolution, which equals convolving every sample with its own weights
    (StyleGAN2, section 2.2).
    """
    if demodulate and x.dtype == torch.float16:  # keeps the products in fp16's range; demodulation undoes it
        weight = weight / (weight.abs().amax(dim=(1, 2, 3), keepdim=True) * math.sqrt(weight[0].numel()))
        styles = styles / styles.abs().amax(dim=1, keepdim=True)
    y = conv2d(x * styles.to(x.dtype)[..., None, None], weight.to(x.dtype), resample_filter, up=up)
    return y * demodulation(weight, styles).to(x.dtype) if demodulate else y


def demodulation(weight, styles):
    """Factors [..., C_out, 1, 1] that give the styled weights of every output channel unit norm; styles: [..., C_in]."""
    energy = styles.square() @ weight.square().sum(dim=(2, 3)).t()
    return (energy + 1e-8).rsqrt()[..., None, None]


def add_noise(x, mode, stored, strength, random=None):
    """x plus noise times a learned strength; noise has one channel, which all channels of x share.

    x: [N, C, R, R], or [N, P, C, R, R], where each of P planes draws its own; mode: 'const' (`stored`, [R, R]), 'random'
    (from `random`, a BatchRandom, or torch's global generator) or 'none'; strength: scalar tensor.
    """
    if mode not in NOISE_MODES:
        raise ValueError(f'noise_mode must be one of {", ".join(NOISE_MODES)}, got {mode!r}')
    if mode == 'none':
        return x
    random = random or BatchRandom(len(x), x.device)
    noise = stored if mode == 'const' else random.normal(*x.shape[1:-3], 1, *stored.shape)
    return x + (noise * strength).to(x.dtype)


class StyledConv(nn.Module):
    """What layers with a modulated convolution have: its weights, a bias, and the affine layer of its styles.

    styles: how many there are, by default one for each channel that comes in.
    """

    planes = 1  # that stand side by side in the channels; those of tri-planes have their own convolution, see PlaneConv

    def __init__(self, in_channels, out_channels, kernel_size, w_dim, styles=None, conv_clamp=None):
        super().__init__()
        self.conv_clamp = conv_clamp
        self.affine = FullyConnected(w_dim, styles or in_channels, bias_init=1.0)
        self.weight = nn.Parameter(torch.randn(out_channels, in_channels, kernel_size, kernel_size))
        self.bias = nn.Parameter(torch.zeros(out_channels))

    def convolve(self, x, styles, **options):
        """x: [N, in_channels, R, R]; styles: of `affine`; options: of `modulated_conv2d`, which this is."""
        return modulated_conv2d(x, self.weight, styles, **options)


class SynthesisLayer(StyledConv):
    """Modulated 3x3 convolution, noise, bias, leaky ReLU. options: of the convolution."""

    def __init__(self, in_channels, out_channels, w_dim, resolution, up=1, **options):
        super().__init__(in_channels, out_channels, 3, w_dim, **options)
        self.up = up
        self.noise_strength = nn.Parameter(torch.zeros([]))
        self.register_buffer('noise_const', torch.randn(resolution, resolution))
        self.register_buffer('resample_filter', setup_filter(RESAMPLE_TAPS), persistent=False)

    def forward(self, x, w, noise_mode, random=None):
        """x: [N, C_in, R, R]; w: [N, w_dim]; noise_mode, random: see `add_noise`. Returns [N, C_out, up * R, up * R]."""
        x = self.convolve(x, self.affine(w), up=self.up, resample_filter=self.resample_filter)
        x = add_noise(x, noise_mode, self.noise_const, self.noise_strength, random)
        return bias_act(x, self.bias, dim=x.ndim - 3, act='lrelu', clamp=self.conv_clamp).flatten(1, -3)


class ToRGB(StyledConv):
    """Modulated 1x1 convolution to an output image, without demodulation or activation. options: of the convolution.

    The style gain counts one plane's own channels, also where it sees the aligned ones.
    """

    def __init__(self, in_channels, out_channels, w_dim, **options):
        super().__init__(in_channels, out_channels, 1, w_dim, **options)
        self.style_gain = 1 / math.sqrt(in_channels // self.planes)

    def forward(self, x, w):
        """x: [N, C_in, R, R]; w: [N, w_dim]. Returns [N, C_out, R, R]."""
        x = self.convolve(x, self.affine(w) * self.style_gain, demodulate=False)
        return bias_act(x, self.bias, dim=x.ndim - 3, clamp=self.conv_clamp).flatten(1, -3)


class SynthesisBlock(nn.Module):
    """Two modulated convolutions at one resolution and a ToRGB (skip architecture; StyleGAN2, figure 7).

    The first block (in_channels = 0) has a learned constant in place of its first convolution. resolution: of the output;
    up: 2 or 1; options: of the layers (conv_clamp).
    """

    layer_type, rgb_type = SynthesisLayer, ToRGB  # tri-planes have their own, see PlaneBlock

    def __init__(self, in_channels, out_channels, image_channels, w_dim, resolution, up=2, **options):
        super().__init__()
        if in_channels == 0:
            self.const = nn.Parameter(torch.randn(out_channels, resolution, resolution))
            self.conv0 = None
        else:
            self.conv0 = self.layer_type(in_channels, out_channels, w_dim, resolution, up=up, **options)
        self.conv1 = self.layer_type(out_channels, out_channels, w_dim, resolution, **options)
        self.to_rgb = self.rgb_type(out_channels, image_channels, w_dim, **options)

    @property
    def num_convs(self):
        return 1 if self.conv0 is None else 2

    def forward(self, x, ws, noise_mode, random=None):
        """x: [N, C_in, R, R], None for the first block; ws: a w [N, w_dim] for each layer, num_convs + 1 in all.

        Returns features [N, C_out, R', R'] and ToRGB's image [N, image_channels, R', R'].
        """
        first = self.conv0 is None
        x = self.const.expand(len(ws[0]), -1, -1, -1) if first else self.conv0(x, ws[0], noise_mode, random)
        x = self.conv1(x, ws[-2], noise_mode, random)
        return x, self.to_rgb(x, ws[-1])
