"""Views of one subject: pictures with known cameras, from a generator or from a folder."""

import math
from dataclasses import dataclass, field, replace
from pathlib import Path

import numpy as np
import torch
from PIL import Image

from dataset_prep.convert import load_views, view_picture
from dataset_prep.transforms import SPLIT_FILES, TRANSFORMS_FILE
from dnnlib.errors import UserError
from dnnlib.files import source_name
from sampling.subjects import make_subject, render_subjects, seed_ws
from torch_utils.images import to_uint8
from training.config import AUTO, RenderingConfig
from training.data.camera_checks import BOX_PER_VIEW, check_cameras
from training.data.dataset import LABEL_FILE, image_notes
from training.rendering.cameras import cast_rays, split_label, view_label

CAMERA_FILES = (TRANSFORMS_FILE, *SPLIT_FILES, LABEL_FILE)
CAMERA_RADIUS = 2.7  # that photographs with a transforms.json are brought to
_GOLDEN_RATIO = (5**0.5 - 1) / 2


class ViewsError(UserError):
    """Views that cannot be scored; the message is one line with the cause and the cure."""


@dataclass(frozen=True)
class Views:
    """images: uint8 [V, H, W, 3]; labels: float32 [V, 25], world units; box_size: side of the scene's cube, world units;
    depth: [V, h, w], distance along the ray, world units, or None where it is unknown; notes: lines of text, what is odd about
    stored images. Raises ViewsError for boxes that are none, CameraError for cameras that do not see the box."""

    name: str
    images: torch.Tensor
    labels: torch.Tensor
    box_size: float
    depth: torch.Tensor | None = field(default=None, repr=False)
    notes: tuple = ()

    def __post_init__(self):
        if not 0 < self.box_size < math.inf:
            raise ViewsError(
                f'{self.name}: a box of side {self.box_size:g} holds no scene: give its side in world units with --box'
            )
        scene = RenderingConfig(near=AUTO, far=AUTO, box_size=self.box_size)
        check_cameras(self.labels, [f'view {index}' for index in range(len(self.labels))], self.name, scene)

    def __len__(self):
        return len(self.images)

    @property
    def size(self):
        """(height, width) in pixels."""
        return tuple(self.images.shape[1:3])

    def subset(self, indices):
        """The views at `indices`, in that order."""
        indices = list(indices)
        return replace(
            self,
            images=self.images[indices],
            labels=self.labels[indices],
            depth=None if self.depth is None else self.depth[indices],
        )


def pixel_grid(height, width, device=None):
    """Image coordinates [height * width, 2] of the pixel centres, (x, y) in (0, 1), row by row."""
    y, x = torch.meshgrid(
        (torch.arange(height, device=device) + 0.5) / height, (torch.arange(width, device=device) + 0.5) / width, indexing='ij'
    )
    return torch.stack([x, y], dim=-1).reshape(-1, 2)


def scene_labels(views):
    """The cameras [V, 25] in units of half the box's side."""
    labels = views.labels.clone()
    labels[:, [3, 7, 11]] *= 2 / views.box_size
    return labels


def view_rays(labels, size):
    """Origins and unit directions, both [V, H * W, 3], of whole images of `size` (height, width)."""
    return cast_rays(labels, pixel_grid(*size, device=labels.device))


# ---------------------------------------------------------------------------------------------------------------------
# From a generator


def protocol_angles(count, yaw_range, pitch_range=0.0):
    """Yaw and pitch, both [count], radians: yaw in even steps over +-yaw_range; pitch spread evenly over +-pitch_range in an
    order without pattern (multiples of the golden ratio). No chance."""
    yaw = torch.linspace(-yaw_range, yaw_range, count)
    return yaw, pitch_range * (2 * ((torch.arange(count) + 0.5) * _GOLDEN_RATIO % 1) - 1)


@torch.no_grad()
def generated_views(G, seed, branch, labels, truncation_psi=1.0, truncation_cutoff=None, render_resolution=None):
    """Views of the subject of a seed, by one branch, rendered without chance; the planes are made once.

    labels: [V, 25]. Raises ViewsError when the network renders values or depths that are not finite.
    """
    subject = make_subject(G, seed_ws(G, [seed], truncation_psi, truncation_cutoff))
    images, depths = [], []
    for label in labels:
        out = render_subjects(G, [subject], label[None], branch, render_resolution)
        images.append(out['image'][0])
        depths.append(out['image_depth'][0, 0])
    name, images, depth = f'seed {seed}', torch.stack(images), torch.stack(depths)
    if not images.isfinite().all():
        raise ViewsError(f'{name}: the network renders values that are not finite: choose another snapshot')
    if depth.isnan().any():
        raise ViewsError(f'{name}: the network renders depths that are not a number: choose another snapshot')
    return Views(name, to_uint8(images).permute(0, 2, 3, 1).cpu(), labels.cpu(), G.config.rendering.box_size, depth.cpu())


def protocol_labels(G, count, yaw_range, pitch_range=0.0):
    """The cameras [count, 25] of the protocol, on the sphere that the generator was trained on."""
    return view_label(G.config, *protocol_angles(count, yaw_range, pitch_range))


# ---------------------------------------------------------------------------------------------------------------------
# From a folder


def subject_folders(path):
    """The subjects in a folder: the folder itself if it has a camera file, else those of its folders that have one.

    A zip is one subject. Raises ViewsError when there is none.
    """
    path = Path(path)
    if not path.exists():
        raise ViewsError(f'--views={path} does not exist: give a folder of images with a camera file')
    if not path.is_dir() or _has_cameras(path):
        return [path]
    folders = sorted(folder for folder in path.iterdir() if folder.is_dir() and _has_cameras(folder))
    if not folders:
        raise ViewsError(
            f'--views={path} holds no subject: put {TRANSFORMS_FILE} or {LABEL_FILE} beside the images, in it or '
            'in a folder per subject'
        )
    return folders


def _has_cameras(path):
    return any((path / name).is_file() for name in CAMERA_FILES)


def folder_views(path, size=None, box_size=None, background='black'):
    """Views of a folder or zip with `dataset.json` (docs/method.md, section 8) or `transforms.json` (OpenGL axes, pixels).

    size: (height, width) to resize to, by default the images' own; the whole image is kept, undistorted; what is transparent or
    masked becomes `background`, a colour name. box_size: world units, by default what the cameras see at the world's origin
    (`box_of_cameras`). The cameras of a `transforms.json` are first brought into the conventions' world
    (`dataset_prep.convert.normalise_world`).
    Raises DatasetError, CameraError or ViewsError for unusable folders.
    """
    store, views, notes = load_views(path, CAMERA_RADIUS)
    name = source_name(path)
    if len(views) < 2:
        raise ViewsError(
            f'{name} has {len(views)} view{"s" * (len(views) != 1)}: a scene is determined by two views at least, better by 30'
        )
    images = []
    for view in views:  # one at a time: many photographs at full size do not fit into memory
        picture = view_picture(store, view, background)
        width, height = size[::-1] if size else images[0].shape[1::-1] if images else picture.size
        if size is None and picture.size != (width, height):
            raise ViewsError(
                f'{path}: image {view.name} is not {width}x{height} pixels as the first one: make them alike, or give --view-size'
            )
        images.append(np.asarray(picture.resize((width, height), Image.Resampling.LANCZOS)))
    labels = torch.from_numpy(np.stack([view.label() for view in views])).float()
    box_size = box_of_cameras(labels) if box_size is None else box_size
    notes += image_notes(store, [view.name for view in views], background)
    return Views(name, torch.from_numpy(np.stack(images)), labels, box_size, notes=tuple(notes))


def box_of_cameras(labels):
    """Side of the box, world units, by what cameras [V, 25] see at the world's origin: FFHQ's cameras give about 1."""
    poses, intrinsics = split_label(labels)
    return float(BOX_PER_VIEW * poses[:, :3, 3].norm(dim=1).median() / intrinsics[:, 0, 0].median())
