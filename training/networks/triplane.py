"""E and its 3D-aware stream, and S3D: from ws to coarse and residual tri-planes (paper section 3.3, figure 4)."""

import math

from torch import nn

from torch_utils.ops.upfirdn2d import setup_filter, upsample2d
from training.networks.aware_conv import NUM_PLANES, aware_modulated_conv2d
from training.networks.stylegan2 import RESAMPLE_TAPS, SynthesisBlock, SynthesisLayer, ToRGB, channels_at, modulated_conv2d


class PlaneBlock(nn.Module):
    """A synthesis block that treats the three planes alike: shared weights, own styles, optional alignment.

    Its output is its ToRGB's output alone. With `align` (B_k of the 3D-aware stream) every convolution sees the aligned
    planes; without (S3D's blocks) each plane sees itself.
    """

    def __init__(self, channels, w_dim, resolution, up, align):
        super().__init__()
        inputs = channels * (NUM_PLANES if align else 1)
        shared = dict(copies=NUM_PLANES, convolution=aware_modulated_conv2d if align else modulated_conv2d)
        self.conv0 = SynthesisLayer(inputs, channels, w_dim, resolution, up=up, **shared)
        self.conv1 = SynthesisLayer(inputs, channels, w_dim, resolution, **shared)
        self.to_rgb = ToRGB(inputs, channels, w_dim, style_channels=channels, **shared)

    def forward(self, planes, w, noise_mode, random=None):
        """planes: [N, 3, C, R, R]; w: [N, w_dim]. Returns [N, 3, C, R', R']."""
        x = planes.flatten(0, 1)
        x = self.conv0(x, w, noise_mode, random)
        x = self.conv1(x, w, noise_mode, random)
        return self.to_rgb(x, w).unflatten(0, (-1, NUM_PLANES))


class TriplaneBackbone(nn.Module):
    """E: StyleGAN2 synthesis with skip outputs, and beside its output stream the 3D-aware stream.

    T_k = B_k(T_{k-1} + O_k), where O_k is the accumulated ToRGB output at resolution k; without the stream (EG3D) the
    last O_k are the planes. With `aware_latent` E itself is 3D-aware: its features are three planes, every convolution
    sees them aligned, and the last O_k are the planes (paper table 3).
    """

    def __init__(self, config):
        super().__init__()
        self.plane_channels = config.plane_channels
        self.resolutions = [2**i for i in range(2, int(math.log2(config.plane_resolution)) + 1)]
        channels = [channels_at(k, config.channel_base, config.channel_max) for k in self.resolutions]
        kind = dict(image_channels=NUM_PLANES * config.plane_channels)
        if config.aware_latent:
            kind = dict(image_channels=config.plane_channels, copies=NUM_PLANES, seen=NUM_PLANES,
                        convolution=aware_modulated_conv2d)
        self.blocks = nn.ModuleList(SynthesisBlock(a, b, w_dim=config.w_dim, resolution=k, **kind)
                                    for a, b, k in zip([0] + channels, channels, self.resolutions))
        self.stream = nn.ModuleList()
        if config.aware_stream:
            self.stream.extend(self._stream_block(k, config) for k in self.resolutions)
        self.num_ws = sum(block.num_convs for block in self.blocks) + 1
        self.register_buffer('resample_filter', setup_filter(RESAMPLE_TAPS), persistent=False)

    def _stream_block(self, k, config):
        up = 1 if k == self.resolutions[-1] else 2
        return PlaneBlock(config.plane_channels, config.w_dim, k * up, up, align=True)

    def forward(self, ws, noise_mode, random=None):
        """ws: [N, num_ws, w_dim]. Returns the coarse planes [N, 3, C, R, R]."""
        x = output = planes = None
        first = 0
        for index, block in enumerate(self.blocks):
            x, image = block(x, ws[:, first:first + block.num_convs + 1], noise_mode, random)
            image = image.reshape(len(ws), -1, *image.shape[2:])
            output = image if output is None else upsample2d(output, self.resample_filter) + image
            first += block.num_convs
            if self.stream:
                own = self._as_planes(output)
                planes = self.stream[index](own if planes is None else planes + own, ws[:, first], noise_mode, random)
        return planes if self.stream else self._as_planes(output)

    def _as_planes(self, image):
        return image.unflatten(1, (NUM_PLANES, self.plane_channels))


class ResidualPlanes(nn.Module):
    """S3D: two blocks without alignment; the first doubles the resolution (supplement, figure IV a)."""

    def __init__(self, config):
        super().__init__()
        resolution = 2 * config.plane_resolution
        self.blocks = nn.ModuleList(PlaneBlock(config.plane_channels, config.w_dim, resolution, up, align=False) for up in (2, 1))

    def forward(self, planes, w, noise_mode, random=None):
        """planes: coarse, [N, 3, C, R, R]; w: the last one, [N, w_dim]. Returns [N, 3, C, 2R, 2R]."""
        for block in self.blocks:
            planes = block(planes, w, noise_mode, random)
        return planes
