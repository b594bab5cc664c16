"""Fitting NeuS to the views of one subject (Wang et al. 2021, section 3.3)."""

from typing import NamedTuple

import torch
import torch.nn.functional as F
from tqdm import tqdm

from dnnlib.errors import UserError
from metrics.consistency.fields import make_fields
from metrics.consistency.rendering import render_all, render_neus
from metrics.consistency.views import scene_labels, view_rays
from torch_utils import distributed
from torch_utils.random import keyed_generator
from training.rendering.cameras import cast_rays

COLOR_LOSSES = {'l1': F.l1_loss, 'l2': F.mse_loss}


class Reconstruction(NamedTuple):
    """A fitted subject: fields in units of half the box's side, and what they are rendered with."""

    fields: torch.nn.Module
    recipe: object
    background: str
    box_size: float
    eyes: torch.Tensor  # where the training cameras stood, [V, 3], in units of half the box's side

    @torch.no_grad()
    def render(self, labels, size):
        """Re-render the cameras [V, 25] (world units) at `size` (height, width).

        Returns colours in [0, 1] and normals (outward; shorter than 1 where the surface is not certain), both [V, H, W, 3].
        """
        scene = self.fields.build()
        labels = scene_labels(labels, self.box_size).to(next(self.fields.parameters()).device)
        parts = [
            render_all(scene, *(x[0] for x in view_rays(label[None], size)), self.recipe, self.background) for label in labels
        ]
        rgb, normal = (torch.stack(images).unflatten(1, size) for images in zip(*parts))
        return rgb.clamp(0, 1), normal


@torch.enable_grad()
def fit(views, recipe, background, seed=0, device='cpu', progress=False):
    """Reconstruct `views`. Returns a Reconstruction. The same seed gives the same on a CPU; on a GPU,
    sums of gradients depend on their order.

    background: 'white', 'black' or 'learned', what is seen where the box is empty. Raises UserError when it diverges.
    """
    fields = seeded_fields(recipe, background, seed).to(device)
    # The gradients of table entries that few samples meet are tiny: a larger epsilon would stop them (Müller et al. 2022).
    optimizer = torch.optim.Adam(fields.parameter_groups(recipe), eps=1e-15, fused=True)
    schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, recipe.rate_factor)
    sampler = RaySampler(views, recipe, keyed_generator((seed,), device), device)
    for step in tqdm(range(recipe.steps), desc=views.name, unit='step', disable=None if progress else True, leave=False):
        distributed.look_around()
        loss = training_loss(fields, sampler, recipe, background, step)
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        optimizer.step()
        schedule.step()
        if (step % 100 == 99 or step + 1 == recipe.steps) and not loss.isfinite():  # rarely: it waits for the GPU
            raise UserError(f'{views.name}: the reconstruction diverged at step {step + 1}: try another --seed')
    eyes = scene_labels(views.labels, views.box_size)[:, [3, 7, 11]]
    return Reconstruction(fields.eval().requires_grad_(False), recipe, background, views.box_size, eyes)


def seeded_fields(recipe, background, seed):
    """Fields that depend on the seed alone; torch's own random numbers are left as they were."""
    with torch.random.fork_rng(devices=[]):
        torch.random.default_generator.manual_seed(seed)  # torch.manual_seed would seed GPUs, too
        return make_fields(recipe, outside=background == 'learned')


def training_loss(fields, sampler, recipe, background, step):
    """Colour loss of a batch of rays plus the eikonal and the smoothness loss."""
    scene = fields.build(progress=step / recipe.steps)
    origins, directions, target = sampler.draw()
    rendered = render_neus(scene, origins, directions, recipe, background, sampler.generator)
    gradients = rendered.shaded.gradients
    if recipe.eikonal_points:
        gradients = torch.cat([gradients, scene.gradient(sampler.points(recipe.eikonal_points))])
    loss = COLOR_LOSSES[recipe.color_loss](rendered.rgb, target) + recipe.eikonal_weight * eikonal_loss(gradients)
    if recipe.smoothness_weight:
        loss = loss + recipe.smoothness_weight * smoothness_loss(rendered.shaded.curvature)
    return loss


def eikonal_loss(gradients):
    """Mean of (|gradient| - 1)^2, gradients [K, 3]: a distance grows by one per unit of length (eq. 15)."""
    return (gradients.norm(dim=-1) - 1).square().sum() / max(1, len(gradients))


def smoothness_loss(curvature):
    """Mean absolute curvature [K] of the distance (fields.curvature). Absolute, so that an edge costs what it turns by, be it
    sharp or round."""
    return curvature.abs().sum() / max(1, len(curvature))


class RaySampler:
    """Random pixels of views, with their rays, and random points of the box."""

    def __init__(self, views, recipe, generator, device):
        self.labels = scene_labels(views.labels, views.box_size).to(device)
        self.images = views.images.to(device)
        self.rays, self.generator = recipe.rays, generator

    def draw(self):
        """Origins, unit directions and colours in [0, 1], all [rays, 3]."""
        _, height, width, _ = self.images.shape
        view, row, column = (
            torch.randint(limit, (self.rays,), generator=self.generator, device=self.labels.device)
            for limit in self.images.shape[:3]
        )
        centre = torch.stack([(column + 0.5) / width, (row + 0.5) / height], dim=-1)
        origins, directions = (x[:, 0] for x in cast_rays(self.labels[view], centre[:, None]))
        return origins, directions, self.images[view, row, column].float() / 255

    def points(self, count):
        """Points [count, 3], uniform in [-1, 1]^3."""
        return torch.rand(count, 3, generator=self.generator, device=self.labels.device) * 2 - 1
