"""Where the subjects of a run come from: a generator's seeds, or folders of pictures with cameras."""

import hashlib
from pathlib import Path

from dnnlib.errors import UserError
from dnnlib.files import source_name
from metrics.consistency.views import folder_views, generated_views, protocol_labels, subject_folders
from metrics.images import background_of, say_notes

_SEEDS = 2**32


class GeneratedSubjects:
    """Seeds `task.seed`, `task.seed` + 1, ... of a generator, seen by the protocol's cameras.

    fingerprint: of the weights.
    """

    def __init__(self, task):
        options, config = task.options, task.generator.config
        if options['subjects'] < 1:
            raise UserError(f'--subjects={options["subjects"]}: give at least one subject')
        if options['views'] < 2:
            raise UserError(f'--views={options["views"]}: a scene is determined by two views at least, better by 30')
        if task.seed + options['subjects'] > _SEEDS:
            raise UserError(
                f'--seed={task.seed} --subjects={options["subjects"]}: seeds end at {_SEEDS - 1}; choose a smaller --seed'
            )
        self.task = task
        self.fingerprint = weights_fingerprint(task.generator)
        self.labels = protocol_labels(task.generator, options['views'], options['yaw'], options['pitch'])
        self.names = [f'seed{task.seed + index:04d}' for index in range(options['subjects'])]
        # Rays that leave the box have met no more than they met: what is left shows the renderer's own background.
        self.background = config.rendering.background
        # 'coarse' is by default rendered at the 2D branch's size; here its views stand beside the other branches'.
        self.render_resolution = task.render_resolution or (config.image_resolution if task.branch == 'coarse' else None)

    def load(self, index):
        """The Views of subject number `index`."""
        return generated_views(
            self.task.generator,
            self.task.seed + index,
            self.task.branch,
            self.labels,
            self.task.truncation_psi,
            self.task.truncation_cutoff,
            self.render_resolution,
        )

    def about(self):
        """Every choice that the views depend on, plain data."""
        options, task, rendering = self.task.options, self.task, self.task.generator.config.rendering
        return {
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
            'camera_radius': rendering.camera_radius,
            'camera_pivot': list(rendering.camera_pivot),
            'focal': rendering.focal,
            'box_size': rendering.box_size,
            'render_resolution': self.render_resolution,
            'depth_samples': rendering.depth_samples,
            'importance_samples': rendering.importance_samples,
            'sampling': 'deterministic',
            'noise_mode': 'const',
        }


class StoredSubjects:
    """Folders of pictures with a camera file; see views.subject_folders. fingerprint: of all their files."""

    def __init__(self, task):
        self.task, options = task, task.options
        self.path, self.box_size = options['views'], options['box']
        self.size = options['view_size'] and options['view_size'][::-1]
        self.folders = subject_folders(self.path)
        inside = Path(task.outdir).resolve()
        if self.path.is_dir() and inside.is_relative_to(self.path.resolve()):
            raise UserError(
                f'--outdir={task.outdir} lies in --views={self.path}, where results would count as views: name a folder outside'
            )
        self.fingerprint = files_fingerprint(self.path)
        self.names = [source_name(folder) for folder in self.folders]
        self.background = 'learned'

    def load(self, index):
        views = folder_views(self.folders[index], self.size, self.box_size, background_of(self.task))
        say_notes(self.task, views)
        return views

    def about(self):
        return {
            'source': str(self.path),
            'size': self.size,
            'box_size': self.box_size or 'by the cameras',
            'transparent_on': background_of(self.task),
        }


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


def weights_fingerprint(module):
    """16 hexadecimal digits that change with any weight of a module."""
    digest = hashlib.blake2b(digest_size=8)
    for name, tensor in module.state_dict().items():
        digest.update(name.encode() + tensor.detach().contiguous().cpu().numpy().tobytes())
    return digest.hexdigest()


def files_fingerprint(path):
    """16 hexadecimal digits that change with any file of a folder, or with a zip."""
    path = Path(path)
    digest = hashlib.blake2b(digest_size=8)
    for file in sorted(path.rglob('*')) if path.is_dir() else [path]:
        if file.is_file():
            digest.update(file.relative_to(path).as_posix().encode() + file.read_bytes())
    return digest.hexdigest()
