"""The generator and its public face: latent and camera in, images of both branches out."""

from typing import NamedTuple

import torch
from torch import nn

from training.config import RENDER_PRECISIONS
from training.networks.stylegan2 import FullyConnected, MappingNetwork
from training.networks.superresolution import Superresolution
from training.networks.triplane import ResidualPlanes, TriplaneBackbone
from training.rendering import fused, skipping, volume
from training.rendering.cameras import cast_rays, patch_centres, pixel_centres

RGB_CHANNELS = 3
BRANCHES = ('2d', '3d', 'coarse')


class Planes(NamedTuple):
    """Tri-planes of a batch: coarse [N, 3, C, R, R]; residual [N, 3, C, 2R, 2R], None where there are none."""

    coarse: torch.Tensor
    residual: torch.Tensor | None


class Decoder(nn.Module):
    """M: tri-plane features to raw density and colors, one hidden layer (docs/method.md, section 3)."""

    def __init__(self, config):
        super().__init__()
        lr = config.decoder_lr_multiplier
        self.hidden = FullyConnected(config.plane_channels, config.decoder_hidden, 'softplus', lr_multiplier=lr)
        self.output = FullyConnected(config.decoder_hidden, 1 + config.plane_channels, lr_multiplier=lr)

    def forward(self, features, colors=None):
        """features: [N, P, C]; colors: how many of the C colors to compute (None: all), the first three being RGB.

        Returns raw density, before activation, [N, P, 1], and colors in (-0.001, 1.001), [N, P, colors].
        """
        x = self.output(self.hidden(features), rows=None if colors is None else 1 + colors)
        return x[..., :1], torch.sigmoid(x[..., 1:]) * 1.002 - 0.001

    def effective_weights(self, colors):
        """Weight and bias of the hidden layer, and of the output layer's density and first `colors`, gains included."""
        return *self.hidden.effective(), *self.output.effective(rows=1 + colors)


class Generator(nn.Module):
    """Mimic3D's generator (and EG3D's, with `aware='none'`). `config` is a GeneratorConfig.

    z, c -> mapping -> ws -> E (backbone) -> coarse planes -> 2D branch: volume render with M (decoder) -> S2D -> image
                                          -> S3D (residual) -> 3D branch: volume render of both planes = image

    Without S3D (`branch_3d='coarse'`) the 3D branch renders the coarse planes alone.
    """

    def __init__(self, config):
        super().__init__()
        self.config, self.plane_axes = config, config.plane_axes
        self.backbone = TriplaneBackbone(config)
        self.mapping = MappingNetwork(
            config.z_dim,
            config.c_dim,
            config.w_dim,
            self.backbone.num_ws,
            config.mapping_layers,
            conditioning=config.pose_conditioning,
            conditioning_scale=config.conditioning_scale,
        )
        self.residual = ResidualPlanes(config) if config.branch_3d == 'residual' else None
        self.decoder = Decoder(config)
        self.superresolution = Superresolution(config)

    def forward(self, z, c, truncation_psi=1.0, truncation_cutoff=None, **synthesis_options):
        """z: [N, z_dim]; c: cameras [N, 25], for conditioning and rendering. Returns what `synthesis` returns."""
        ws = self.mapping(z, c, truncation_psi=truncation_psi, truncation_cutoff=truncation_cutoff)
        return self.synthesis(ws, c, **synthesis_options)

    def synthesis(self, ws, c, branch='2d', noise_mode='random', random=None, **render_options):
        """Planes and render in one call; see `planes` and `render`."""
        planes = self.planes(ws, noise_mode=noise_mode, random=random, residual=branch == '3d')
        return self.render(planes, c, branch=branch, ws=ws, random=random, **render_options)

    def planes(self, ws, noise_mode='random', random=None, residual=True):
        """Tri-planes of ws [N, num_ws, w_dim]. noise_mode: 'const', 'random' (from `random`, a BatchRandom) or 'none'.

        residual: False leaves out S3D and its planes, which the 3D branch alone sees: at 512^2 a third of an image's work.
        """
        self._check_ws(ws)
        coarse = self.backbone(ws, noise_mode, random)
        if self.residual is None or not residual:
            return Planes(self._activate(coarse), None)
        return Planes(self._activate(coarse), self._activate(self.residual(coarse, ws[:, -1], noise_mode, random)))

    def count_plane_parameters(self):
        """Parameters of what makes the coarse planes: E and the mapping network (paper, table 3)."""
        return sum(weights.numel() for module in (self.backbone, self.mapping) for weights in module.parameters())

    def render(
        self,
        planes,
        c,
        branch='2d',
        ws=None,
        render_resolution=None,
        sampling='stratified',
        patch=None,
        noise_mode=None,
        random=None,
        skip=0.0,
        bounds=None,
        precision=None,
        rendering=None,
    ):
        """Images of planes seen by cameras c [N, 25].

        branch: '2d' (volume render and super-resolution; needs ws), '3d' (coarse + residual planes, rendered directly) or
            'coarse' (coarse planes, rendered directly).
        render_resolution: pixels per side of the volume render; by default the configuration's for '2d', 'coarse' and
            patches, the image size for '3d'.
        sampling: 'stratified' (random, from `random`) or 'deterministic'.
        patch: integers [N, 2], (top, left) of a window of render_resolution pixels of the full-resolution image; '3d' and
            'coarse' only.
        noise_mode: S2D's; None takes the configuration's, by default 'none'.
        skip: leave out samples that provably weigh less than this (training/rendering/skipping.py; without gradients only);
            0 evaluates all. bounds: what `density_bounds` gave for these planes and this branch, to share it between views.
        precision: what fused kernels may round to, one of config.RENDER_PRECISIONS; None takes the configuration's.
        rendering: RenderingConfig whose near, far and numbers of samples are taken; None takes the configuration's.

        Returns 'image' [N, 3, H, W] and 'image_raw' [N, 3, h, w], both in about [-1, 1], and 'image_depth' [N, 1, h, w],
        world units along the ray. The raw image is the volume-rendered RGB; for '2d' it holds the RGB of S2D's first block,
        too, where that block has the render's size (128^2 networks).

        Raises ValueError for a branch or a combination that does not exist, RenderSizeError for a render that is too large
        for S2D.
        """
        self._check_branch(branch, ws, patch)
        origins, directions, size = self._rays(c, branch, render_resolution, patch)
        if branch == '2d':
            self.superresolution.check_input(size)  # before the work on the render
        colors = self.config.plane_channels if branch == '2d' else RGB_CHANNELS
        field = self._field(planes, fine=branch == '3d', colors=colors, precision=precision)
        backend = fused if fused.is_chosen(field, origins, directions) else volume
        pixels, depth, _ = volume.render_rays(
            backend,
            field,
            origins,
            directions,
            rendering or self.config.rendering,
            sampling,
            random,
            self._skip(skip, bounds, planes, branch),
        )
        features, depth = _as_image(pixels, size), _as_image(depth, size)
        image = raw = features[:, :RGB_CHANNELS]
        if branch == '2d':
            image, raw = self.superresolution(raw, features, ws, noise_mode, random)
        return {'image': image, 'image_raw': raw, 'image_depth': depth}

    def query(self, planes, points, fine=True):
        """Raw density [N, P, 1] and colors [N, P, C] at points [N, P, 3] in world units; the first three are RGB.

        fine: with the residual planes, where there are any.
        """
        return self._field(planes, fine, self.config.plane_channels)(points)

    def density_bounds(self, planes, branch='3d', cells=None):
        """Upper bounds of the density of planes as `branch` sees them, for `render(..., skip=eps, bounds=...)`.

        cells: of the grid along each axis (default: twice the planes' resolution, at most skipping.MAX_CELLS).
        """
        self._check_branch(branch, ws=planes, patch=None)  # no ws are needed
        cells = cells or min(skipping.MAX_CELLS, 2 * self.config.plane_resolution)
        return skipping.density_bounds(self._field(planes, fine=branch == '3d', colors=RGB_CHANNELS), cells)

    def _field(self, planes, fine, colors, precision=None):
        """The radiance field of planes."""
        rendering = self.config.rendering
        precision = precision or rendering.precision
        if precision not in RENDER_PRECISIONS:
            raise ValueError(f'precision must be one of {", ".join(RENDER_PRECISIONS)}, got {precision!r}')
        if fine and self.residual is not None and planes.residual is None:
            raise ValueError('the 3D branch needs the residual planes: make them with G.planes(..., residual=True)')
        used = planes if fine and planes.residual is not None else planes[:1]
        return volume.TriplaneField(used, self.decoder, rendering.box_size, self.plane_axes, colors, precision)

    def _skip(self, eps, bounds, planes, branch):
        """What render_rays needs to skip samples, or None."""
        if eps == 0:
            return None
        if not 0 < eps < 1:
            raise ValueError(f'skip is a weight, at least 0 and below 1, got {eps}')
        if torch.is_grad_enabled():
            raise ValueError('skip leaves out gradients: render under torch.no_grad()')
        return skipping.Skip(eps, bounds or self.density_bounds(planes, branch))

    def _rays(self, c, branch, render_resolution, patch):
        """Origins, directions [N, M, 3] and the number of pixels per side."""
        whole = self.config.image_resolution if branch == '3d' and patch is None else self.config.render_resolution
        size = render_resolution or whole
        centres = pixel_centres(size, c.device) if patch is None else patch_centres(patch, size, self.config.image_resolution)
        return *cast_rays(c, centres), size

    def _activate(self, planes):
        return planes if self.config.plane_activation == 'linear' else getattr(torch, self.config.plane_activation)(planes)

    def _check_ws(self, ws):
        expected = (self.backbone.num_ws, self.config.w_dim)
        if ws.ndim != 3 or ws.shape[1:] != expected:
            raise ValueError(f'ws must have shape [N, {expected[0]}, {expected[1]}], got {list(ws.shape)}')

    def _check_branch(self, branch, ws, patch):
        if branch not in BRANCHES:
            raise ValueError(f'branch must be one of {", ".join(BRANCHES)}, got {branch!r}')
        if branch == '3d' and self.config.branch_3d == 'none':
            raise ValueError("this generator has no 3D branch (it comes from stage 1); use branch '2d' or 'coarse'")
        if branch == '2d' and ws is None:
            raise ValueError("branch '2d' needs ws, for its super-resolution")
        if branch == '2d' and patch is not None:
            raise ValueError("patches exist for branches '3d' and 'coarse' only")
        if patch is not None and (patch.ndim != 2 or patch.shape[1] != 2 or patch.is_floating_point()):
            raise ValueError(f'patch must be integers of shape [N, 2], got {patch.dtype} of shape {list(patch.shape)}')


def _as_image(values, size):
    """[N, size^2, C] to [N, C, size, size]."""
    return values.transpose(1, 2).unflatten(2, (size, size))
