"""What is reconstructed: subjects, and views of them with known cameras, from a generator's seeds or from folders.

`GeneratedSubjects` and `StoredSubjects` have one face: names; fingerprint, which changes with whatever is behind the views;
protocol, every choice that the views depend on, plain data; background, the colour name that empty space shows by default; and
`load`, the Views of a subject by its number. `find_subjects` has the one that a command means.
"""

import hashlib
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
from metrics.images import background_of, say_notes
from sampling.subjects import make_subject, render_subjects, seed_ws
from torch_utils.images import to_uint8
from training.config import AUTO, RenderingConfig
from training.data.camera_checks import BOX_PER_VIEW, check_cameras
from training.data.dataset import LABEL_FILE, image_notes
from training.rendering.cameras import cast_rays, pixel_centres, split_label, view_label

CAMERA_FILES = (TRANSFORMS_FILE, *SPLIT_FILES, LABEL_FILE)
CAMERA_RADIUS = 2.7  # that photographs with a transforms.json are brought to
_SEEDS = 2**32
_GOLDEN_RATIO = (5**0.5 - 1) / 2


@dataclass(frozen=True)
class Views:
    """images: uint8 [V, H, W, 3]; labels: float32 [V, 25], world units; box_size: side of the scene's cube, world units;
    depth: [V, h, w], distance along the ray, world units, or None where it is unknown; notes: lines of text, what is odd about
    stored images. Raises UserError for boxes that are none, CameraError for cameras that do not see the box."""

    name: str
    images: torch.Tensor
    labels: torch.Tensor
    box_size: float
    depth: torch.Tensor | None = field(default=None, repr=False)
    notes: tuple = ()

    def __post_init__(self):
        if not 0 < self.box_size < math.inf:
            raise UserError(
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
        depth = None if self.depth is None else self.depth[indices]
        return replace(self, images=self.images[indices], labels=self.labels[indices], depth=depth)


def scene_labels(labels, box_size):
    """Cameras [V, 25] in units of half the box's side."""
    labels = labels.clone()
    labels[:, [3, 7, 11]] *= 2 / box_size
    return labels


def view_rays(labels, size):
    """Origins and unit directions, both [V, H * W, 3], of whole images of `size` (height, width)."""
    return cast_rays(labels, pixel_centres(size, labels.device))


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

    labels: [V, 25]. Raises UserError when the network renders values or depths that are not finite.
    """
    subject = make_subject(G, seed_ws(G, [seed], truncation_psi, truncation_cutoff), residual=branch == '3d')
    rendered = [render_subjects(G, [subject], label[None], branch, render_resolution) for label in labels]
    images = torch.cat([out['image'] for out in rendered])
    depth, name = torch.cat([out['image_depth'][:, 0] for out in rendered]), f'seed {seed}'
    if not images.isfinite().all():
        raise UserError(f'{name}: the network renders values that are not finite: choose another snapshot')
    if depth.isnan().any():
        raise UserError(f'{name}: the network renders depths that are not a number: choose another snapshot')
    return Views(name, to_uint8(images).permute(0, 2, 3, 1).cpu(), labels.cpu(), G.config.rendering.box_size, depth.cpu())


def weights_fingerprint(module):
    """16 hexadecimal digits that change with any weight of a module."""
    digest = hashlib.blake2b(digest_size=8)
    for name, tensor in module.state_dict().items():
        digest.update(name.encode() + tensor.detach().contiguous().cpu().numpy().tobytes())
    return digest.hexdigest()


class GeneratedSubjects:
    """Seeds `task.seed`, `task.seed` + 1, ... of a generator, seen by the protocol's cameras."""

    def __init__(self, task):
        options, config = task.options, task.generator.config
        if task.seed + options['subjects'] > _SEEDS:
            raise UserError(
                f'--seed={task.seed} --subjects={options["subjects"]}: seeds end at {_SEEDS - 1}; choose a smaller --seed'
            )
        self.task = task
        self.labels = view_label(config, *protocol_angles(options['views'], options['yaw'], options['pitch']))
        self.names = [f'seed{task.seed + index:04d}' for index in range(options['subjects'])]
        self.fingerprint = weights_fingerprint(task.generator)
        # Rays that leave the box have met no more than they met: what is left shows the renderer's own background.
        self.background = config.rendering.background
        # 'coarse' is by default rendered at the 2D branch's size; here its views stand beside the other branches'.
        self.render_resolution = task.render_resolution or (config.image_resolution if task.branch == 'coarse' else None)
        self.protocol = {
            'source': 'generator',
            'branch': task.branch,
            'seed': task.seed,
            'conditioning_camera': 'frontal',
            'truncation_psi': task.truncation_psi,
            'truncation_cutoff': task.truncation_cutoff,
            'views': options['views'],
            'yaw_range': options['yaw'],
            'yaw_order': 'even steps from -yaw to yaw',
            'pitch_range': options['pitch'],
            'pitch_order': 'multiples of the golden ratio',
            'camera_radius': config.rendering.camera_radius,
            'camera_pivot': list(config.rendering.camera_pivot),
            'focal': config.rendering.focal,
            'box_size': config.rendering.box_size,
            'render_resolution': self.render_resolution,
            'depth_samples': config.rendering.depth_samples,
            'importance_samples': config.rendering.importance_samples,
            'sampling': 'deterministic',
            'noise_mode': 'const',
        }

    def load(self, index):
        return generated_views(
            self.task.generator,
            self.task.seed + index,
            self.task.branch,
            self.labels,
            self.task.truncation_psi,
            self.task.truncation_cutoff,
            self.render_resolution,
        )


# ---------------------------------------------------------------------------------------------------------------------
# From a folder


def subject_folders(path):
    """The subjects in a folder: the folder itself if it has a camera file, else those of its folders that have one.

    A zip is one subject. Raises UserError when there is none.
    """
    if not path.exists():
        raise UserError(f'--views={path} does not exist: give a folder of images with a camera file')
    if not path.is_dir() or _has_cameras(path):
        return [path]
    folders = sorted(folder for folder in path.iterdir() if folder.is_dir() and _has_cameras(folder))
    if not folders:
        raise UserError(
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
    Raises DatasetError, CameraError or UserError for unusable folders.
    """
    store, views, notes = load_views(path, CAMERA_RADIUS)
    name = source_name(path)
    if len(views) < 2:
        raise UserError(
            f'{name} has {len(views)} view{"s" * (len(views) != 1)}: a scene is determined by two views at least, better by 30'
        )
    images, shape = [], size and size[::-1]  # Pillow's order
    for view in views:  # one at a time: many photographs at full size do not fit into memory
        picture = view_picture(store, view, background)
        shape = shape or picture.size
        if size is None and picture.size != shape:
            raise UserError(
                f'{path}: image {view.name} is not {shape[0]}x{shape[1]} pixels as the first one: make them alike, '
                'or give --view-size'
            )
        images.append(np.asarray(picture.resize(shape, Image.Resampling.LANCZOS)))
    labels = torch.from_numpy(np.stack([view.label() for view in views])).float()
    box_size = box_of_cameras(labels) if box_size is None else box_size
    notes += image_notes(store, [view.name for view in views], background)
    return Views(name, torch.from_numpy(np.stack(images)), labels, box_size, notes=tuple(notes))


def box_of_cameras(labels):
    """Side of the box, world units, by what cameras [V, 25] see at the world's origin: FFHQ's cameras give about 1."""
    poses, intrinsics = split_label(labels)
    return float(BOX_PER_VIEW * poses[:, :3, 3].norm(dim=1).median() / intrinsics[:, 0, 0].median())


class StoredSubjects:
    """A folder or zip of one subject, or a folder of folders, see `subject_folders`."""

    def __init__(self, task):
        self.task, options = task, task.options
        path, self.box_size = options['views'], options['box']
        self.size = options['view_size'] and options['view_size'][::-1]
        self.folders = subject_folders(path)
        if path.is_dir() and Path(task.outdir).resolve().is_relative_to(path.resolve()):
            raise UserError(
                f'--outdir={task.outdir} lies in --views={path}, where results would count as views: name a folder outside'
            )
        self.names = [source_name(folder) for folder in self.folders]
        self.fingerprint = files_fingerprint(path)
        self.background = 'learned'
        self.protocol = {
            'source': str(path),
            'size': self.size,
            'box_size': self.box_size or 'by the cameras',
            'transparent_on': background_of(task),
        }

    def load(self, index):
        views = folder_views(self.folders[index], self.size, self.box_size, background_of(self.task))
        say_notes(self.task, views)
        return views


def files_fingerprint(path):
    """16 hexadecimal digits that change with any file of a folder, or with a zip."""
    digest = hashlib.blake2b(digest_size=8)
    for file in sorted(path.rglob('*')) if path.is_dir() else [path]:
        if file.is_file():
            digest.update(file.relative_to(path).as_posix().encode() + file.read_bytes())
    return digest.hexdigest()


# ---------------------------------------------------------------------------------------------------------------------
# From a network or from stored views


def find_subjects(task):
    """The subjects that a metrics.registry.Task names. Raises UserError when it names none."""
    if isinstance(task.options['views'], Path):
        if task.generator is not None:
            raise UserError(
                f'--network and --views={task.options["views"]} exclude each other: give the number of views of a '
                'network, or leave it out'
            )
        return StoredSubjects(task)
    if task.generator is None:
        raise UserError(
            'consistency is measured on views of the same subjects: give --network, or --views=DIR with a camera '
            'file; --images has none'
        )
    return GeneratedSubjects(task)
