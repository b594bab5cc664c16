"""StyleGAN2's parts: equalised layers, mapping network, modulated convolution, synthesis layers and blocks.

Conventions (docs/method.md, section 3): weights are stored ~N(0, 1) and scaled by 1/sqrt(fan_in) at run time; activations are
leaky ReLU 0.2 with gain sqrt(2); resampling uses [1, 3, 3, 1]; upsampling layers convolve with the flipped kernel.
"""

import math

import torch
from torch import nn

from torch_utils.ops.bias_act import bias_act
from torch_utils.ops.conv2d_resample import conv2d_resample
from torch_utils.ops.upfirdn2d import setup_filter
from torch_utils.random import BatchRandom

RESAMPLE_TAPS = (1, 3, 3, 1)
NOISE_MODES = ('const', 'random', 'none')
DTYPES = {'fp32': torch.float32, 'fp16': torch.float16, 'bf16': torch.bfloat16}


def working_dtype(precision, device):
    """The dtype to compute in; fp16 convolutions are a GPU's matter, so a CPU computes them in fp32."""
    if precision == 'fp16' and device.type == 'cpu':
        return torch.float32
    return DTYPES[precision]


def channels_at(resolution, channel_base, channel_max):
    return min(channel_base // resolution, channel_max)


def normalize_second_moment(x, eps=1e-8):
    return x * (x.square().mean(dim=1, keepdim=True) + eps).rsqrt()


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
        return bias_act(nn.functional.linear(x, *self.effective(rows, x.dtype)), act=self.activation)

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
        self.padding = kernel_size // 2
        self.register_buffer('resample_filter', setup_filter(RESAMPLE_TAPS), persistent=False)

    def forward(self, x, gain=1.0):
        weight = (self.weight * self.weight_gain).to(x.dtype)
        x = conv2d_resample(x, weight, f=self.resample_filter, down=self.down, padding=self.padding)
        return activate(x, self.bias, self.activation, gain, self.conv_clamp)


def activate(x, bias, activation, gain=1.0, clamp=None):
    """Bias and activation with its own gain times `gain`; the clamp scales with `gain`."""
    own = {'linear': 1.0, 'lrelu': math.sqrt(2)}[activation]
    return bias_act(x, bias, act=activation, gain=own * gain, clamp=None if clamp is None else clamp * gain)


class MappingNetwork(nn.Module):
    """z and a conditioning label to one w per layer.

    With z_dim=0 only the label is mapped (the discriminator's use). The label passes a linear embedding; latent and
    embedded label are normalised by their second moments and concatenated.
    """

    def __init__(self, z_dim, c_dim, w_dim, num_ws, num_layers, embed_features=None, lr_multiplier=0.01,
                 conditioning=True, conditioning_scale=1.0):
        super().__init__()
        self.z_dim, self.c_dim, self.num_ws = z_dim, c_dim, num_ws
        self.conditioning, self.conditioning_scale = conditioning, conditioning_scale
        embed_features = w_dim if embed_features is None else embed_features
        self.embed = FullyConnected(c_dim, embed_features) if c_dim else None
        sizes = [z_dim + (embed_features if c_dim else 0)] + [w_dim] * num_layers
        self.layers = nn.ModuleList(FullyConnected(a, b, 'lrelu', lr_multiplier) for a, b in zip(sizes, sizes[1:]))
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
    def update_w_avg(self, mean_w, decay=0.998):
        """Move the running mean of w, used by truncation, towards the mean [w_dim] of a batch."""
        self.w_avg.copy_(mean_w.lerp(self.w_avg, decay))


def _expect(x, size, name):
    if x.ndim != 2 or x.shape[1] != size:
        raise ValueError(f'{name} must have shape [N, {size}], got {list(x.shape)}')


def modulated_conv2d(x, weight, styles, up=1, padding=0, resample_filter=None, demodulate=True):
    """Convolution with weights scaled per sample and input channel, and normalised per output channel.

    x: [N, C_in, H, W]; weight: [C_out, C_in, k, k]; styles: [N, C_in]. The scales act on the activations before and
    after one shared convolution, which equals convolving every sample with its own weights (StyleGAN2, section 2.2).
    """
    if demodulate and x.dtype == torch.float16:  # keeps the products in fp16's range; demodulation undoes it
        weight = weight / (weight.abs().amax(dim=(1, 2, 3), keepdim=True) * math.sqrt(weight[0].numel()))
        styles = styles / styles.abs().amax(dim=1, keepdim=True)
    y = x * styles.to(x.dtype)[:, :, None, None]
    y = conv2d_resample(y, weight.to(x.dtype), f=resample_filter, up=up, padding=padding, flip_weight=(up == 1))
    return y * demodulation(weight, styles).to(x.dtype) if demodulate else y


def demodulation(weight, styles):
    """Factors [N, C_out, 1, 1] that give the styled weights of every output channel unit norm."""
    energy = styles.square() @ weight.square().sum(dim=(2, 3)).t()
    return (energy + 1e-8).rsqrt()[:, :, None, None]


class SynthesisLayer(nn.Module):
    """Modulated 3x3 convolution, noise, bias, leaky ReLU.

    copies: how many images of one sample share the weights and the stored noise, each with styles of its own (the
    three planes of the 3D-aware stream). Input [N * copies, C, ...], sample by sample. convolution: modulated_conv2d or
    a function of the same arguments; in_channels counts the channels of its weights.
    """

    def __init__(self, in_channels, out_channels, w_dim, resolution, up=1, copies=1, convolution=modulated_conv2d, conv_clamp=None):
        super().__init__()
        self.in_channels, self.resolution, self.up, self.copies, self.conv_clamp = in_channels, resolution, up, copies, conv_clamp
        self.convolution = convolution
        self.affine = FullyConnected(w_dim, in_channels * copies, bias_init=1.0)
        self.weight = nn.Parameter(torch.randn(out_channels, in_channels, 3, 3))
        self.bias = nn.Parameter(torch.zeros(out_channels))
        self.noise_strength = nn.Parameter(torch.zeros([]))
        self.register_buffer('noise_const', torch.randn(resolution, resolution))
        self.register_buffer('resample_filter', setup_filter(RESAMPLE_TAPS), persistent=False)

    def forward(self, x, w, noise_mode, random=None):
        """x: [N * copies, C, H, W]; w: [N, w_dim]; random: BatchRandom for noise_mode 'random'."""
        styles = self.affine(w).reshape(-1, self.in_channels)
        x = self.convolution(x, self.weight, styles, up=self.up, padding=1, resample_filter=self.resample_filter)
        noise = self._noise(noise_mode, random, len(w), x.device)
        if noise is not None:
            x = x + noise.to(x.dtype)
        return activate(x, self.bias, 'lrelu', clamp=self.conv_clamp)

    def _noise(self, mode, random, samples, device):
        if mode not in NOISE_MODES:
            raise ValueError(f'noise_mode must be one of {", ".join(NOISE_MODES)}, got {mode!r}')
        if mode == 'none':
            return None
        if mode == 'const':
            return self.noise_const * self.noise_strength
        random = random or BatchRandom(samples, device)
        drawn = random.normal(self.copies, self.resolution, self.resolution)
        return drawn.reshape(-1, 1, self.resolution, self.resolution) * self.noise_strength


class ToRGB(nn.Module):
    """Modulated 1x1 convolution to an output image, without demodulation or activation.

    style_channels: the number of channels that the style gain 1/sqrt(channels) counts (default: in_channels).
    """

    def __init__(self, in_channels, out_channels, w_dim, copies=1, convolution=modulated_conv2d, style_channels=None, conv_clamp=None):
        super().__init__()
        self.in_channels, self.convolution, self.conv_clamp = in_channels, convolution, conv_clamp
        self.affine = FullyConnected(w_dim, in_channels * copies, bias_init=1.0)
        self.weight = nn.Parameter(torch.randn(out_channels, in_channels, 1, 1))
        self.bias = nn.Parameter(torch.zeros(out_channels))
        self.style_gain = 1 / math.sqrt(style_channels or in_channels)

    def forward(self, x, w):
        styles = self.affine(w).reshape(-1, self.in_channels) * self.style_gain
        x = self.convolution(x, self.weight, styles, demodulate=False)
        return activate(x, self.bias, 'linear', clamp=self.conv_clamp)


class SynthesisBlock(nn.Module):
    """Two modulated convolutions at one resolution and a ToRGB.

    The first block (in_channels = 0) has a learned constant and one convolution only. `up` is 2 or 1. copies: images of
    one sample, as in SynthesisLayer, each with a constant and an output of its own; seen: how many of them a convolution
    sees (the channels of its weights are as many times in_channels).
    """

    def __init__(self, in_channels, out_channels, image_channels, w_dim, resolution, up=2, conv_clamp=None, copies=1, seen=1,
                 convolution=modulated_conv2d):
        super().__init__()
        self.copies = copies
        shared = dict(conv_clamp=conv_clamp, copies=copies, convolution=convolution)
        if in_channels == 0:
            self.const = nn.Parameter(torch.randn(copies * out_channels, resolution, resolution))
            self.conv0 = None
        else:
            self.conv0 = SynthesisLayer(seen * in_channels, out_channels, w_dim, resolution, up=up, **shared)
        self.conv1 = SynthesisLayer(seen * out_channels, out_channels, w_dim, resolution, **shared)
        self.to_rgb = ToRGB(seen * out_channels, image_channels, w_dim, style_channels=out_channels, **shared)

    @property
    def num_convs(self):
        return 1 if self.conv0 is None else 2

    def forward(self, x, ws, noise_mode, random=None):
        """x: [N * copies, C, H, W] or None for the first block; ws: [N, num_convs + 1, w_dim]. Returns features and image."""
        if self.conv0 is None:
            x = self.const.expand(len(ws), -1, -1, -1).unflatten(1, (self.copies, -1)).flatten(0, 1)
        else:
            x = self.conv0(x, ws[:, 0], noise_mode, random)
        x = self.conv1(x, ws[:, -2], noise_mode, random)
        return x, self.to_rgb(x, ws[:, -1])
