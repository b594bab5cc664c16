"""E and its 3D-aware stream, and S3D: from ws to coarse and residual tri-planes (paper, section 3.3 and figure 4).

Inside, three planes stand side by side in the channels of an image, as in E's output: [N, 3C, R, R].
"""

import math

from torch import nn

from torch_utils.ops.upfirdn2d import setup_filter, upsample2d
from training.networks.aware_conv import NUM_PLANES, PlaneLayer, PlaneToRGB
from training.networks.stylegan2 import RESAMPLE_TAPS, SynthesisBlock, channels_at


class PlaneBlock(SynthesisBlock):
    """A synthesis block of three planes: weights are shared by the planes, styles are not (supplement, section I.1).

    With align=True (B_k of the 3D-aware stream) every convolution sees the aligned planes; without it (S3D) each plane
    is convolved on its own. Channels count those of all three planes.
    """

    layer_type, rgb_type = PlaneLayer, PlaneToRGB


class TriplaneBackbone(nn.Module):
    """E: StyleGAN2 synthesis with skip outputs, and beside its output stream the 3D-aware stream (docs/method.md, section 3).

    T_k = B_k(T_{k-1} + O_k) for k = 4, 8, ...: O_k is E's accumulated ToRGB output at resolution k. All layers of B_k, a
    PlaneBlock, share the w of E's ToRGB at k, and only its ToRGB output is passed on. The last T_k is P^c. Without the
    stream the last O_k is P^c. The paper's table 3 compares what `aware` chooses:

        stream      T_k as above; every B_k but the last doubles the resolution
        triplane    inside the output stream: O_k = B_k(up(O_{k-1}) + ToRGB_k), and no B_k changes the resolution
        latent      in E itself: its features are three planes, and every convolution sees them aligned
        none        nowhere (EG3D)
    """

    def __init__(self, config):
        super().__init__()
        outputs = NUM_PLANES * config.plane_channels
        resolutions = [2**i for i in range(2, int(math.log2(config.plane_resolution)) + 1)]
        channels = [channels_at(k, config.channel_base, config.channel_max) for k in resolutions]
        block_type, options = SynthesisBlock, {}
        if config.aware == 'latent':
            block_type, options, channels = PlaneBlock, dict(align=True), [NUM_PLANES * count for count in channels]
        self.blocks = nn.ModuleList(
            block_type(a, b, outputs, config.w_dim, k, **options) for a, b, k in zip([0] + channels, channels, resolutions)
        )
        self.aware = config.aware
        self.stream = nn.ModuleList()  # B_k
        if config.aware in ('stream', 'triplane'):
            for k in resolutions:
                up = 2 if config.aware == 'stream' and k < config.plane_resolution else 1  # the stream's last keeps its size
                self.stream.append(PlaneBlock(outputs, outputs, outputs, config.w_dim, up * k, up, align=True))
        self.num_ws = sum(block.num_convs for block in self.blocks) + 1
        self.register_buffer('resample_filter', setup_filter(RESAMPLE_TAPS), persistent=False)

    def forward(self, ws, noise_mode, random=None):
        """ws: [N, num_ws, w_dim]. Returns the coarse planes P^c, [N, 3, C, R, R]."""
        x = output = planes = None
        first = 0
        for index, block in enumerate(self.blocks):
            last = first + block.num_convs  # ToRGB's w, and the next block's first
            x, image = block(x, ws[:, first : last + 1].unbind(1), noise_mode, random)
            output = image if output is None else upsample2d(output, self.resample_filter) + image  # O_k
            if self.aware == 'stream':
                planes = output if planes is None else planes + output  # T_{k-1} + O_k
                _, planes = self.stream[index](planes, 3 * [ws[:, last]], noise_mode, random)  # T_k
            elif self.aware == 'triplane':
                _, output = self.stream[index](output, 3 * [ws[:, last]], noise_mode, random)
            first = last
        return (planes if self.aware == 'stream' else output).unflatten(1, (NUM_PLANES, -1))


class ResidualPlanes(nn.Module):
    """S3D: two blocks without alignment, each fed by the ToRGB output before; the first doubles the resolution.

    Supplement, figure IV a.
    """

    def __init__(self, config):
        super().__init__()
        channels, resolution = NUM_PLANES * config.plane_channels, 2 * config.plane_resolution
        self.blocks = nn.ModuleList(PlaneBlock(channels, channels, channels, config.w_dim, resolution, up) for up in (2, 1))

    def forward(self, planes, w, noise_mode, random=None):
        """planes: coarse, [N, 3, C, R, R]; w: the last one, [N, w_dim]. Returns P^r, [N, 3, C, 2R, 2R]."""
        x = planes.flatten(1, 2)
        for block in self.blocks:
            _, x = block(x, 3 * [w], noise_mode, random)
        return x.unflatten(1, (NUM_PLANES, -1))
