"""D2D, the dual discriminator of images, and D3D, the discriminator of patches (docs/method.md, section 3)."""

import math

import torch
import torch.nn.functional as F
from torch import nn

from torch_utils.ops.upfirdn2d import setup_filter, upfirdn2d, upsample2d
from training.networks.stylegan2 import RESAMPLE_TAPS, EqualizedConv2d, FullyConnected, MappingNetwork, channels_at, working_dtype


def resize(image, size, mode='antialiased'):
    """Resize [N, C, h, w] to [N, C, size, size] with one of the published filters.

    'antialiased' and 'none': bilinear, with and without antialiasing; 'classic': FIR upsampling by 2, bilinear to
    2 size + 2, FIR downsampling by 2; a number t in (0, 1): (1 - t) aliased + t antialiased.
    """
    if mode == 'antialiased':
        return _bilinear(image, size, antialias=True)
    if mode == 'none':
        return _bilinear(image, size, antialias=False)
    if mode == 'classic':
        taps = setup_filter(RESAMPLE_TAPS, device=image.device)
        image = _bilinear(upsample2d(image, taps), 2 * size + 2, antialias=False)
        return upfirdn2d(image, taps, down=2, flip_filter=True)
    return torch.lerp(resize(image, size, 'none'), resize(image, size), mode)


def _bilinear(image, size, antialias):
    return F.interpolate(image, size=(size, size), mode='bilinear', align_corners=False, antialias=antialias)


def minibatch_std(x, group):
    """Append one channel: the standard deviation over groups of samples, averaged over channels and pixels.

    x: [N, C, H, W], N a multiple of the group; samples i, i + N / group, ... form a group. Returns [N, C + 1, H, W]
    (Karras et al., "Progressive Growing of GANs", ICLR 2018, section 3).
    """
    n, _, h, w = x.shape
    group = min(group, n)
    spread = x.reshape(group, n // group, -1).float().var(dim=0, correction=0)
    statistic = (spread + 1e-8).sqrt().mean(dim=1).to(x.dtype)  # one number per group
    return torch.cat([x, statistic.repeat(group)[:, None, None, None].expand(-1, 1, h, w)], dim=1)


class ResidualBlock(nn.Module):
    """Two convolutions and a skip arm, both arms with gain sqrt(0.5): [N, C_in, H, W] to [N, C_out, H / 2, W / 2]."""

    def __init__(self, in_channels, out_channels, precision, conv_clamp):
        super().__init__()
        self.precision = precision
        self.conv0 = EqualizedConv2d(in_channels, in_channels, 3, activation='lrelu', conv_clamp=conv_clamp)
        self.conv1 = EqualizedConv2d(in_channels, out_channels, 3, activation='lrelu', down=2, conv_clamp=conv_clamp)
        self.skip = EqualizedConv2d(in_channels, out_channels, 1, bias=False, down=2)

    def forward(self, x):
        x = x.to(working_dtype(self.precision, x.device))
        return self.skip(x, gain=math.sqrt(0.5)) + self.conv1(self.conv0(x), gain=math.sqrt(0.5))


class Discriminator(nn.Module):
    """StyleGAN2's residual discriminator; with c_dim > 0 conditioned on the camera by projection.

    config: a DiscriminatorConfig; image_channels: of all images together.
    """

    def __init__(self, config, image_channels):
        super().__init__()
        resolutions = [2**i for i in range(int(math.log2(config.resolution)), 2, -1)]
        channels = [channels_at(k, config.channel_base, config.channel_max) for k in resolutions + [4]]
        precisions = [config.precision if i < config.low_precision_resolutions else 'fp32' for i in range(len(resolutions))]
        self.config, self.precision = config, precisions[0]
        self.from_rgb = EqualizedConv2d(image_channels, channels[0], 1, activation='lrelu', conv_clamp=config.conv_clamp)
        self.blocks = nn.ModuleList(
            ResidualBlock(a, b, precision, config.conv_clamp) for a, b, precision in zip(channels, channels[1:], precisions)
        )
        last = channels[-1]
        self.conv = EqualizedConv2d(last + 1, last, 3, activation='lrelu', conv_clamp=config.conv_clamp)
        self.fc = FullyConnected(last * 16, last, 'lrelu')
        self.out = FullyConnected(last, last if config.c_dim else 1)
        self.mapping = MappingNetwork(0, config.c_dim, last, None, config.mapping_layers) if config.c_dim else None

    def logits(self, image, c=None):
        """image: [N, image_channels, R, R] in [-1, 1]; c: cameras [N, c_dim] or None. Returns [N, 1]."""
        x = self.from_rgb(image.to(working_dtype(self.precision, image.device)))
        for block in self.blocks:
            x = block(x)
        x = self.conv(minibatch_std(x.float(), self.config.minibatch_group))
        x = self.out(self.fc(x.flatten(1)))
        if self.mapping is None:
            return x
        direction = self.mapping(None, c)
        return (x * direction).sum(dim=1, keepdim=True) / math.sqrt(x.shape[1])


class DualDiscriminator(Discriminator):
    """D2D, dual discrimination (EG3D, section 4.3): sees an image together with the volume render behind it."""

    def __init__(self, config):
        super().__init__(config, image_channels=6)

    def forward(self, image, image_raw, c):
        """image: [N, 3, R, R]; image_raw: [N, 3, h, w]; both in [-1, 1]; c: cameras [N, 25]. Returns logits [N, 1]."""
        raw = resize(image_raw, image.shape[-1], self.config.raw_resize)
        return self.logits(torch.cat([image, raw], dim=1), c)


class PatchDiscriminator(Discriminator):
    """D3D: sees patches of the 3D branch, without a condition."""

    def __init__(self, config):
        super().__init__(config, image_channels=3)

    def forward(self, patch):
        """patch: [N, 3, R, R] in [-1, 1]. Returns logits [N, 1]."""
        return self.logits(patch)
