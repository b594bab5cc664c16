"""Adaptive discriminator augmentation ("ADA", Karras et al. 2020): random transforms, and the control of their probability.

The pipeline is 'bgc' (blits, geometry, color) with the constants of that paper's appendix B; docs/method.md, section 5.

Drawing is separate from applying. `draw_parameters` makes every random number of a batch, one row per image;
`augment` is a pure function of the images, those numbers and the probability p. An image's result depends on its own
row alone, so a batch may be split over processes and steps in any way.
"""

import functools
import math

import torch
import torch.nn.functional as F

from torch_utils.ops.upfirdn2d import upfirdn2d

# Strength of the transforms (Karras et al. 2020, appendix B); "std" multiplies a standard normal number.
XINT_MAX = 0.125  # of the image size
SCALE_STD = 0.2  # log2
ROTATE_MAX = math.pi
ANISO_STD = 0.2  # log2
XFRAC_STD = 0.125  # of the image size
BRIGHTNESS_STD = 0.2
CONTRAST_STD = 0.5  # log2
HUE_MAX = math.pi
SATURATION_STD = 1.0  # log2

UNIFORM_DRAWS = ('xflip', 'rotate90', 'xint_x', 'xint_y', 'rotate_before', 'rotate_after', 'lumaflip', 'hue')
NORMAL_DRAWS = ('scale', 'aniso', 'xfrac_x', 'xfrac_y', 'brightness', 'contrast', 'saturation')
GATES = (
    'xflip', 'rotate90', 'xint', 'scale', 'rotate_before', 'aniso', 'rotate_after', 'xfrac',
    'brightness', 'contrast', 'lumaflip', 'hue', 'saturation',
)  # fmt: skip

# Low-pass filter of the symlet with six vanishing moments. Its even shifts are orthonormal, so that upsampling followed
# by downsampling with the flipped filter gives the image back. Its centre of mass lies on tap 5, not between 5 and 6.
SYM6 = (
    0.015404109327027373, 0.0034907120842174702, -0.11799011114819057, -0.048311742585633,
    0.4910559419267466, 0.787641141030194, 0.3379294217276218, -0.07263752278646252,
    -0.021060292512300564, 0.04472490177066578, 0.0017677118642428036, -0.007800708325034148,
)  # fmt: skip
SYM6_CENTRE = 5


def draw_parameters(n, generator):
    """All random numbers that augmenting n images takes, a row for each. generator: a torch.Generator of the CPU.

    There the numbers are the same on every machine, and `augment` can size its buffers without waiting for a GPU.
    Returns float64 [n, columns]: UNIFORM_DRAWS in [0, 1); NORMAL_DRAWS, standard normal; GATES in [0, 1), of which those that
    are below the probability of their transform let it be applied.
    """
    options = dict(generator=generator, dtype=torch.float64)
    uniform, normal = torch.rand([n, len(UNIFORM_DRAWS)], **options), torch.randn([n, len(NORMAL_DRAWS)], **options)
    return torch.cat([uniform, normal, torch.rand([n, len(GATES)], **options)], dim=1)


def augment_rows(images, p, random):
    """`augment` of the rows of the whole batch that a BatchRandom stands for."""
    return augment(images, draw_parameters(random.batch, random.host_generator)[random.rows], p)


def augment(images, draws, p):
    """Augmented images. A pure function; differentiable in `images`.

    images: [N, 3k, H, W] in [-1, 1], RGB triples that share all transforms; draws: N rows (`draw_parameters`);
    p: probability of each transform, a number or scalar tensor; above 1 it acts as 1. Returns the shape and dtype of `images`.
    """
    n, channels, height, width = images.shape
    if channels % 3 != 0:
        raise ValueError(f'augment: {channels} channels are not RGB triples')
    if len(draws) != n:
        raise ValueError(f'augment: {len(draws)} rows of random numbers for {n} images')
    images = apply_geometry(images, geometry_matrices(draws, p, height, width))
    return apply_color(images, color_matrices(draws, p))


def adapt_probability(p, sign_mean, batch_seen, target, kimg):
    """The next p: up while the discriminator overfits, down otherwise (Karras et al. 2020, section 3).

    sign_mean: mean of sign(D(real)) since the last call, against `target`; batch_seen: images seen since the last call;
    kimg: thousands of images in which p can move by 1. p stays at or above 0.
    """
    direction = (sign_mean > target) - (sign_mean < target)
    return max(p + direction * batch_seen / (kimg * 1000), 0.0)


# ---------------------------------------------------------------------------------------------------------------------
# Random numbers to matrices


def geometry_matrices(draws, p, height, width):
    """[N, 3, 3] float64: where each image's output pixels come from, as (x, y, 1) in pixels from the image's centre.

    The inverse of the transforms in their order: a source coordinate is T1^-1 T2^-1 ... of an output coordinate.
    """
    uniform, normal, gate = _named(draws, p)
    flip = gate['xflip'] * torch.floor(uniform['xflip'] * 2)
    quarter_turns = gate['rotate90'] * torch.floor(uniform['rotate90'] * 4)
    xint = [gate['xint'] * (uniform[name] * 2 - 1) * XINT_MAX for name in ('xint_x', 'xint_y')]
    zoom = torch.exp2(gate['scale'] * normal['scale'] * SCALE_STD)
    before = gate['rotate_before'] * (uniform['rotate_before'] * 2 - 1) * ROTATE_MAX
    stretch = torch.exp2(gate['aniso'] * normal['aniso'] * ANISO_STD)
    after = gate['rotate_after'] * (uniform['rotate_after'] * 2 - 1) * ROTATE_MAX
    xfrac = [gate['xfrac'] * normal[name] * XFRAC_STD for name in ('xfrac_x', 'xfrac_y')]

    inverses = [
        _affine(xx=1 - 2 * flip),
        _rotation(quarter_turns * (math.pi / 2)),
        _affine(x=-torch.round(xint[0] * width), y=-torch.round(xint[1] * height)),
        _affine(xx=1 / zoom, yy=1 / zoom),
        _rotation(before),
        _affine(xx=1 / stretch, yy=stretch),
        _rotation(after),
        _affine(x=-xfrac[0] * width, y=-xfrac[1] * height),
    ]
    return functools.reduce(torch.matmul, inverses)


def _affine(xx=1.0, xy=0.0, x=0.0, yx=0.0, yy=1.0, y=0.0):
    """Matrices [[xx, xy, x], [yx, yy, y], [0, 0, 1]], float64, of numbers or tensors of one shape."""
    entries = [torch.as_tensor(entry, dtype=torch.float64) for entry in (xx, xy, x, yx, yy, y, 0, 0, 1)]
    return torch.stack(torch.broadcast_tensors(*entries), dim=-1).unflatten(-1, (3, 3))


def _rotation(angle):
    cos, sin = torch.cos(angle), torch.sin(angle)
    return _affine(xx=cos, xy=-sin, yx=sin, yy=cos)


def color_matrices(draws, p):
    """[N, 4, 4] float64: the transform of (r, g, b, 1)."""
    uniform, normal, gate = _named(draws, p)
    brightness = gate['brightness'] * normal['brightness'] * BRIGHTNESS_STD
    contrast = torch.exp2(gate['contrast'] * normal['contrast'] * CONTRAST_STD)
    lumaflip = gate['lumaflip'] * torch.floor(uniform['lumaflip'] * 2)
    hue = gate['hue'] * (uniform['hue'] * 2 - 1) * HUE_MAX
    saturation = torch.exp2(gate['saturation'] * normal['saturation'] * SATURATION_STD)
    brightness, contrast, lumaflip, hue, saturation = (
        values[:, None, None] for values in (brightness, contrast, lumaflip, hue, saturation)
    )

    identity = torch.eye(4, dtype=torch.float64)
    rgb = identity.new_tensor([1, 1, 1, 0])
    axis = rgb / math.sqrt(3)  # of greys
    luma = torch.outer(axis, axis)  # projects a colour onto its grey part,
    chroma = torch.diag(rgb) - luma  # and this onto the rest.
    a = 1 / math.sqrt(3)
    luma_cross = identity.new_tensor([[0, -a, a, 0], [a, 0, -a, 0], [-a, a, 0, 0], [0, 0, 0, 0]])

    last_first = [
        identity + (saturation - 1) * chroma,
        identity + (torch.cos(hue) - 1) * chroma + torch.sin(hue) * luma_cross,  # Rodrigues' rotation
        identity - 2 * lumaflip * luma,
        identity + (contrast - 1) * (luma + chroma),
        identity + brightness * torch.outer(rgb, identity[3]),
    ]
    return functools.reduce(torch.matmul, last_first)


def _named(draws, p):
    """The columns of the draws by name: uniform, normal, and each gate as 1 (apply) or 0 (leave)."""
    names = UNIFORM_DRAWS, NORMAL_DRAWS, GATES
    columns = draws.split([len(part) for part in names], dim=1)
    uniform, normal, gates = (dict(zip(part, values.unbind(dim=1))) for part, values in zip(names, columns))
    p = torch.as_tensor(p, dtype=draws.dtype).clamp(0, 1)
    p_half = 1 - torch.sqrt(1 - p)  # of the two rotations, which together have the probability of one
    opened = {name: gate < (p_half if name.startswith('rotate_') else p) for name, gate in gates.items()}
    return uniform, normal, {name: is_open.to(draws.dtype) for name, is_open in opened.items()}


# ---------------------------------------------------------------------------------------------------------------------
# Matrices to images


def apply_color(images, matrices):
    """images: [N, 3k, H, W]; matrices: [N, 4, 4], applied to every RGB triple."""
    matrices = _beside(matrices, images)[:, None, :3]
    triples = images.flatten(2).unflatten(1, (-1, 3))
    return (matrices[..., :3] @ triples + matrices[..., 3:]).reshape(images.shape)


def _beside(values, images):
    """A few numbers on the images' device, in their dtype. Only from pinned memory a copy to a GPU does not wait for it."""
    values = values.to(images.dtype)
    if images.is_cuda and values.device.type == 'cpu':
        values = values.pin_memory()
    return values.to(images.device, non_blocking=True)


def apply_geometry(images, matrices):
    """images: [N, C, H, W]; matrices: [N, 3, 3] from `geometry_matrices`. One resampling for all transforms.

    Image by image, because each needs a margin of its own: that is less work than giving all the largest, and makes
    the result of an image bit-identical whatever else is in the batch. Untouched images pass through.
    """
    identity = torch.eye(3, dtype=matrices.dtype)
    rows = zip(images.split(1), matrices, strict=True)
    return torch.cat([image if torch.equal(matrix, identity) else _warp(image, matrix) for image, matrix in rows])


def _warp(image, inverse):
    """image: [1, C, H, W]; inverse: [3, 3]. Low-pass filtered resampling on a grid twice as fine.

    On the fine grid, pixel x (from the centre) lies at 2 x - 1/2, because the filter is centred on one of its taps.
    """
    height, width = image.shape[2:]
    taps = torch.tensor(SYM6, dtype=image.dtype)
    taps = _beside(taps / taps.sum(), image)
    left, right, top, bottom = _margins(inverse, height, width)
    image = F.pad(image, (left, right, top, bottom), mode='reflect')
    fine = _upsample_twice(image, taps)

    to_fine = _affine(xx=2, yy=2, x=-0.5, y=-0.5)
    off_centre = _affine(x=left - right, y=top - bottom)  # in fine pixels
    out_height, out_width = 2 * height + len(SYM6) - 2, 2 * width + len(SYM6) - 2
    to_grid = _affine(xx=2 / fine.shape[3], yy=2 / fine.shape[2])
    from_grid = _affine(xx=out_width / 2, yy=out_height / 2)
    theta = to_grid @ off_centre @ to_fine @ inverse @ torch.linalg.inv(to_fine) @ from_grid
    theta = _beside(theta[None, :2], image)
    grid = F.affine_grid(theta, [1, 1, out_height, out_width], align_corners=False)
    sampled = F.grid_sample(fine, grid, mode='bilinear', padding_mode='zeros', align_corners=False)
    return _downsample_twice(sampled, taps)


def _margins(inverse, height, width):
    """Pixels to add on the (left, right, top, bottom), so that all that is sampled exists; at most size - 1."""
    reach = len(SYM6) / 4  # of the filter, in pixels; bilinear sampling adds half a pixel
    x, y = (width - 1) / 2 + reach, (height - 1) / 2 + reach  # furthest output that the downsampling filter reads
    corners = inverse.new_tensor([[-x, -x, x, x], [-y, y, -y, y], [1, 1, 1, 1]])
    source_x, source_y, _ = (inverse @ corners).tolist()
    margins = []
    sides = (-min(source_x), width), (max(source_x), width), (-min(source_y), height), (max(source_y), height)
    for furthest, size in sides:
        beyond = furthest + reach + 0.5 - (size - 1) / 2
        margins.append(min(max(math.ceil(beyond), 0), size - 1))
    return margins


def _upsample_twice(image, taps):
    before, after = len(SYM6) - 1 - SYM6_CENTRE, SYM6_CENTRE
    image = upfirdn2d(image, taps[None, :], up=(2, 1), padding=(before, after, 0, 0), gain=2)
    return upfirdn2d(image, taps[:, None], up=(1, 2), padding=(0, 0, before, after), gain=2)


def _downsample_twice(image, taps):
    image = upfirdn2d(image, taps[None, :], down=(2, 1), flip_filter=True)
    return upfirdn2d(image, taps[:, None], down=(1, 2), flip_filter=True)
