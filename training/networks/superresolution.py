"""S2D: from the low-resolution volume render to the 2D branch's image."""

import torch.nn.functional as F
from torch import nn

from dnnlib.errors import UserError
from torch_utils.ops.upfirdn2d import setup_filter, upsample2d
from training.networks.stylegan2 import RESAMPLE_TAPS, SynthesisBlock, working_dtype

IMAGE_CHANNELS = 3


class RenderSizeError(UserError, ValueError):
    """A volume render that S2D cannot bring to the network's size; the message is one line with the cause and the cure."""


class Superresolution(nn.Module):
    """S2D: two StyleGAN2 blocks on (rendered RGB, rendered features), every layer styled by the last w.

    docs/method.md, section 3. The second block doubles the resolution; the first does where the image is four times S2D's input.
    """

    def __init__(self, config):
        super().__init__()
        self.input_resolution = config.sr_input_resolution
        self.largest, self.antialias = config.largest_s2d_render, config.sr_antialias
        self.noise_mode, self.precision = config.sr_noise_mode, config.precision
        size, first_up = config.image_resolution, config.image_resolution // config.sr_input_resolution // 2
        first, second = config.sr_channels
        shared = dict(image_channels=IMAGE_CHANNELS, w_dim=config.w_dim, conv_clamp=config.conv_clamp)
        self.blocks = nn.ModuleList(
            [
                SynthesisBlock(config.plane_channels, first, resolution=size // 2, up=first_up, **shared),
                SynthesisBlock(first, second, resolution=size, up=2, **shared),
            ]
        )
        self.register_buffer('resample_filter', setup_filter(RESAMPLE_TAPS), persistent=False)

    def forward(self, image_raw, features, ws, noise_mode=None, random=None):
        """image_raw: [N, 3, h, w]; features: [N, C, h, w]; ws: [N, num_ws, w_dim]. Both results in fp32.

        Returns the image [N, 3, H, W] and the raw image [N, 3, h, w] that D2D sees beside it: the render, plus the first
        block's RGB where that block has the render's size. The release adds them in place, and its 128^2 networks were
        trained so (docs/fidelity.md). Raises RenderSizeError for h and w that it does not take.
        """
        self.check_input(image_raw.shape[-1])
        ws = ws[:, -1:].expand(-1, 3, -1).unbind(1)
        image, x = self._fit(image_raw), self._fit(features)
        x = x.to(working_dtype(self.precision, x.device))
        for block in self.blocks:
            x, own = block(x, ws, noise_mode or self.noise_mode, random)
            into_raw = own.shape[-1] == image.shape[-1] and image is image_raw
            if own.shape[-1] != image.shape[-1]:
                image = upsample2d(image, self.resample_filter)
            image = image + own.float()
            image_raw = image if into_raw else image_raw
        return image, image_raw

    def check_input(self, size):
        """Raises RenderSizeError for a render of `size` pixels per side whose image would not be of the network's size."""
        if size > self.largest:
            raise RenderSizeError(
                f"branch '2d' of this network takes volume renders of {self.largest} pixels per side at most, "
                f"not {size}: choose a smaller render resolution, or branch '3d'"
            )

    def _fit(self, x):
        """Resize a render to S2D's input."""
        size = self.input_resolution
        if x.shape[-1] == size:
            return x
        return F.interpolate(x, size=(size, size), mode='bilinear', align_corners=False, antialias=self.antialias)
