"""3D-aware convolution: every plane sees itself and what the other two know about its axes (paper, section 3.3).

`align_planes` and an ordinary modulated convolution are the specification. `aware_modulated_conv2d` computes the same
without the concatenated planes: the other two planes' parts are constant along one axis, so their convolution is that
of a narrow strip, widened and added. That is exact, borders included, and takes about a third of the multiplications.

`PlaneLayer` and `PlaneToRGB` are the layers of three planes that share convolution weights, with such an alignment or
without (docs/method.md, section 3).
"""

import torch

from training.networks.stylegan2 import StyledConv, SynthesisLayer, ToRGB, conv2d, demodulation, modulated_conv2d

NUM_PLANES = 3
AWARE_AXES = ('xy', 'yz', 'zx')  # the planes that alignment is defined for: (width axis, height axis)


def align_planes(planes):
    """Give every plane what the other two know about its axes.

    planes: [N, 3, C, R, R], in the order xy, yz, zx. Each plane is concatenated with the two others, pooled (mean) over
    the axis that it lacks and repeated along the axis that they lack. Returns [N, 3, 3C, R, R]; within a plane's 3C
    channels the order is that of the planes.
    """
    aligned = [
        [_seen_from(planes[:, source], AWARE_AXES[source], AWARE_AXES[target]) for source in range(NUM_PLANES)]
        for target in range(NUM_PLANES)
    ]
    return torch.stack([torch.cat(parts, dim=1) for parts in aligned], dim=1)


def _seen_from(plane, source, target):
    """`plane` [N, C, H, W] with axes `source` as plane `target` sees it: the shared axis kept, the other averaged."""
    if source == target:
        return plane
    shared = next(axis for axis in source if axis in target)
    profile = plane.mean(dim=-2 if source[0] == shared else -1)  # [N, C, R] along the shared axis
    profile = profile.unsqueeze(-2 if target[0] == shared else -1)
    return profile.expand(plane.shape)


def aware_modulated_conv2d(planes, weight, styles, up=1, resample_filter=None, demodulate=True):
    """Modulated convolution of aligned planes, without aligning them.

    planes: [N, 3, C, R, R]; weight: [C_out, 3C, k, k]; styles: [N, 3, 3C]; with (k, up) one of (1, 1), (3, 1), (3, 2).
    Returns what `plane_modulated_conv2d` returns for `align_planes(planes)`: [N, 3, C_out, R', R'].
    """
    style_of = styles.unflatten(2, (NUM_PLANES, -1))  # [N, target, source, C]
    width = weight.shape[-1]  # of a strip: with one column inside, and to each side those that a border changes
    edge = width // 2 * up  # how many columns of the result a border changes

    def convolve(images, ahead):
        """Images [N, target, C, h, w] made from source plane target + ahead, with that source's weights and styles."""
        sources = [(target + ahead) % NUM_PLANES for target in range(NUM_PLANES)]
        scales = torch.stack([style_of[:, target, source] for target, source in enumerate(sources)], dim=1)
        kernels_of = weight.unflatten(1, (NUM_PLANES, -1))
        kernels = torch.cat([kernels_of[:, source] for source in sources])  # target by target
        y = conv2d((images * scales[..., None, None]).flatten(1, 2), kernels, resample_filter, up=up, groups=NUM_PLANES)
        return y.unflatten(1, (NUM_PLANES, -1))

    # The next plane shares this one's height axis (as its width axis); the one after shares the width axis.
    heights = planes.mean(dim=-2).roll(-1, dims=1)[..., :, None].expand(*planes.shape[:-1], width)
    widths = planes.mean(dim=-1).roll(1, dims=1)[..., None, :].expand(*planes.shape[:-2], width, -1)
    y = convolve(planes, 0)
    size = y.shape[-1]
    y = y + _widen(convolve(heights, 1), size, edge, dim=-1) + _widen(convolve(widths, 2), size, edge, dim=-2)
    return y * demodulation(weight, styles) if demodulate else y


def _widen(strip, size, edge, dim):
    """Repeat the interior of a strip until it measures `size` along `dim`."""
    if edge == 0:
        return strip
    first, interior, last = strip.split([edge, strip.shape[dim] - 2 * edge, edge], dim=dim)
    shape = list(strip.shape)
    shape[dim] = size - 2 * edge
    return torch.cat([first, interior.narrow(dim, 0, 1).expand(shape), last], dim=dim)


def plane_modulated_conv2d(planes, weight, styles, **options):
    """Modulated convolution of planes that see themselves only: [N, 3, C, R, R] to [N, 3, C_out, R', R'].

    weight: [C_out, C, k, k], shared by the planes; styles: [N, 3, C]; options: of `modulated_conv2d`.
    """
    return modulated_conv2d(planes.flatten(0, 1), weight, styles.flatten(0, 1), **options).unflatten(0, (-1, NUM_PLANES))


class PlaneConv(StyledConv):
    """A modulated convolution of three planes: weights are shared by the planes, styles are not (supplement, section I.1).

    Planes stand side by side in the channels, so that a layer is used like one of StyleGAN2's; in_channels and
    out_channels count those of all three. align: every plane sees the aligned planes (3D-aware), otherwise itself.
    """

    planes = NUM_PLANES

    def __init__(self, in_channels, out_channels, kernel_size, w_dim, align=False):
        seen = in_channels if align else in_channels // NUM_PLANES
        super().__init__(seen, out_channels // NUM_PLANES, kernel_size, w_dim, styles=NUM_PLANES * seen)
        self.convolution = aware_modulated_conv2d if align else plane_modulated_conv2d

    def convolve(self, x, styles, **options):
        """x: [N, in_channels, R, R]; styles: those of xy, then of yz, then of zx.

        Returns the planes one by one, [N, 3, out_channels / 3, R', R'].
        """
        planes, styles = (values.unflatten(1, (NUM_PLANES, -1)) for values in (x, styles))
        return self.convolution(planes, self.weight, styles, **options)


class PlaneLayer(SynthesisLayer, PlaneConv):
    """StyleGAN2's synthesis layer for three planes. Stored noise is one map for all three; each draws its own."""


class PlaneToRGB(ToRGB, PlaneConv):
    """ToRGB for three planes."""
