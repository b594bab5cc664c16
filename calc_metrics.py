"""Image metrics of a network, or of a folder of images, and tables and plots of them.

python calc_metrics.py --metrics=fid50k_full --network=network-snapshot.pkl --data=ffhq512.zip --branch=both --gpus=8
python calc_metrics.py table RUN... ; python calc_metrics.py plot RUN
"""

import functools
from dataclasses import dataclass, replace
from pathlib import Path

import click

from dnnlib.cli import friendly_errors, refuse_idle
from dnnlib.errors import UserError
from dnnlib.files import make_output_folder, source_name
from dnnlib.params import FiniteRange, UserPath
from interop.pickles import is_pickle
from metrics import compute_records, registry, results, tables
from sampling.subjects import choose_branches, load_generator
from torch_utils import distributed
from torch_utils.memory import naming_memory
from training.rendering.fused import agree_on_kernels
from training.snapshots import newest_snapshot, read_snapshot

BRANCHES = ('2d', '3d', 'both', 'coarse')
# Options about the result, or about what a metric may need, whether it does or not.
ALWAYS_USED = {'metrics', 'outdir', 'label', 'seed', 'batch', 'gpus', 'workers', 'detector', 'cache_dir'}


class MetricList(click.ParamType):
    """`fid50k_full,swd` -> ['fid50k_full', 'swd']."""

    name = 'metrics'

    def convert(self, value, param, ctx):
        try:
            names = [name.strip() for name in value.split(',')]
            for name in names:
                registry.find_family(name)
        except UserError as error:
            self.fail(str(error), param, ctx)
        return names


@dataclass(frozen=True)
class Request:
    """The command line of the script's own command; see its --help."""

    metrics: list
    network: str | None
    images: str | None
    data: str | None
    mirror: bool | None
    branch: str
    outdir: Path | None
    label: str | None
    seed: int
    batch: int
    trunc: float
    trunc_cutoff: int | None
    render_resolution: int | None
    samples: int | None
    importance_samples: int | None
    sampling: str | None
    skip: float
    noise_mode: str | None
    gpus: int
    workers: int
    group_options: dict


@click.group(invoke_without_command=True, context_settings=dict(max_content_width=120, show_default=True))
@click.option(
    '--metrics',
    type=MetricList(),
    help=f'Names, separated by commas: {", ".join(family.form for family in registry.families())}.',
)
@click.option('--network', type=UserPath(), metavar='PATH', help='Network snapshot to evaluate; of a folder, the newest one.')
@click.option('--images', type=UserPath(), metavar='ZIP|DIR', help='Images of any other method to evaluate; no network then.')
@click.option(
    '--data',
    type=UserPath(),
    metavar='ZIP|DIR',
    help='The real images; a network needs their cameras, too.  [default: what it was trained on]',
)
@click.option('--mirror', type=bool, help='Double the data by mirrored copies.  [default: as in training]')
@click.option('--branch', type=click.Choice(BRANCHES), default='both', help='Of the network.')
@click.option(
    '--outdir',
    type=UserPath(file_okay=False, path_type=Path),
    help="Where metric-<name>.jsonl goes.  [default: the network's folder; for --images the current one]",
)
@click.option('--label', help="The method's name in tables.  [default: the name of the run's or image folder]")
@click.option('--seed', type=click.IntRange(0, 2**32 - 1), default=0, help='Of latents, cameras and subsets.')
@click.option('--batch', type=click.IntRange(1), default=16, help='Images at once and per process.')
@click.option('--trunc', type=FiniteRange(0), default=1.0, help='Truncation psi; 1: none.')
@click.option('--trunc-cutoff', type=click.IntRange(0), help='Truncate only the first so many ws.  [default: all]')
@click.option(
    '--render-resolution', type=click.IntRange(1, 4096), help="Pixels per side of the volume render.  [default: the network's]"
)
@click.option('--samples', type=click.IntRange(4), help="Stratified samples per ray.  [default: the network's]")
@click.option('--importance-samples', type=click.IntRange(0), help="Importance samples per ray.  [default: the network's]")
@click.option(
    '--sampling',
    type=click.Choice(['stratified', 'deterministic']),
    help='Along rays.  [default: stratified for fid, fid3d, kid, pr and is; else deterministic]',
)
@click.option(
    '--skip',
    type=FiniteRange(0, 1, max_open=True),
    default=0.0,
    help='Leave out samples that provably weigh less than this; 0: none.',
)
@click.option(
    '--noise-mode',
    type=click.Choice(['random', 'const', 'none']),
    help='Noise of the synthesis.  [default: random for fid, fid3d, kid, pr and is; else const]',
)
@click.option('--gpus', type=click.IntRange(1), default=1, help='Processes, one per GPU (without one: CPU processes).')
@click.option('--workers', type=click.IntRange(0), default=2, help='Processes that read images, per GPU.')
@registry.add_group_options
@click.pass_context
@friendly_errors
def main(context, **options):
    """Evaluate a network's images, or a folder of them, against a data set; results go to metric-<name>.jsonl."""
    if context.invoked_subcommand is not None:
        refuse_idle(options, f'on {context.invoked_subcommand}')
        return
    if options['metrics'] is None:
        raise UserError('--metrics is missing: name what to compute, such as --metrics=fid50k_full,swd')
    if options['network'] and options['images']:
        raise UserError('--network and --images exclude each other: give one')
    refuse_options_of_other_metrics(options)
    own = {name: options.pop(name) for name in list(options) if name not in Request.__dataclass_fields__}
    request = Request(**options, group_options=own)
    distributed.check_gpus(request.gpus)
    distributed.launch(functools.partial(compute_metrics, request), request.gpus)


def refuse_options_of_other_metrics(options):
    """Raise UserError for options that none of the metrics takes notice of."""
    source = next((name for name in ('network', 'views', 'images') if isinstance(options[name], str | Path)), None)
    groups = registry.by_group(options['metrics'])
    if source is not None and all(group.uses for group in groups):
        used = {source, *ALWAYS_USED}.union(
            *(group.uses(list(metrics.values()), source == 'network') for group, metrics in groups.items())
        )
        refuse_idle(set(options) - used, f'on {", ".join(options["metrics"])} with --{source}')
    if options['trunc'] == 1:
        refuse_idle(('trunc_cutoff',), 'with --trunc=1')


def compute_metrics(request):
    """Compute, print and write what a Request asks for, in this process, which may be one of several."""
    with distributed.joined(), naming_memory('lower --batch, --render-resolution or --fit-rays'):
        if request.network:
            request = replace(request, network=distributed.from_first(functools.partial(newest_snapshot, request.network)))
        with distributed.together():
            evaluation = prepare_evaluation(request)
        for branch in evaluation.branches:
            for record in compute_records(request.metrics, replace(evaluation.task, branch=branch), evaluation.about):
                distributed.from_first(functools.partial(publish, evaluation.task.outdir, record))


def publish(outdir, record):
    """Print a result and write it. It may have taken hours, so that neither is left out because the other fails."""
    try:
        click.echo(results.format_record(record))
    finally:
        write(outdir, record)


def write(outdir, record):
    try:
        results.append_record(outdir, record)
    except OSError as error:
        raise UserError(
            f'{results.file_of(outdir, record["metric"])} cannot be written ({error.strerror}); the result is printed '
            'above: make room, or name another folder with --outdir'
        ) from None


@dataclass(frozen=True)
class Evaluation:
    """What is evaluated, in which branches, and what the records say of it."""

    task: registry.Task
    branches: tuple
    about: dict


def prepare_evaluation(request):
    """The Evaluation of a request, on this process's device. Raises UserError for what does not fit together."""
    device = distributed.pick_device()
    agree_on_kernels(device)
    generator, branches, trained = None, (None,), {}
    if request.network:
        generator = load_generator(request.network, str(device))
        branches = evaluated_branches(generator, request.branch)
        set_samples(generator, request.samples, request.importance_samples)
        trained = training_of(request.network)
    outdir = request.outdir or (Path(request.network).parent if request.network else Path('.'))
    distributed.from_first(functools.partial(make_output_folder, outdir))
    options = trained.get('options', {})
    same = ('images', 'seed', 'batch', 'render_resolution', 'sampling', 'skip', 'noise_mode', 'workers')
    task = registry.Task(
        device=device,
        generator=generator,
        data=request.data or options.get('data'),
        mirror=options.get('mirror', False) if request.mirror is None else request.mirror,
        outdir=outdir,
        truncation_psi=request.trunc,
        truncation_cutoff=request.trunc_cutoff,
        options=request.group_options,
        **{name: getattr(request, name) for name in same},
    )
    seen = trained.get('images_seen')
    about = {
        'snapshot': request.network,
        'kimg': None if seen is None else seen / 1000,
        'label': request.label or default_label(request),
    }
    return Evaluation(task, branches, about)


def evaluated_branches(generator, choice):
    """The branches to evaluate. After stage 1 there is no 3D branch: 'both' then means the 2D branch, and a line says so."""
    branches = choose_branches(generator, choice)
    if choice == 'both' and '3d' not in branches:
        if distributed.rank() == 0:
            click.echo('This network has no 3D branch, it comes from stage 1: only the 2D branch is evaluated.', err=True)
        return ('2d',)
    return branches


def set_samples(generator, samples, importance_samples):
    """Render with other numbers of samples per ray than the network's own; None leaves a number as it is."""
    given = {'depth_samples': samples, 'importance_samples': importance_samples}
    rendering = generator.config.rendering.replace(**{name: value for name, value in given.items() if value is not None})
    generator.config = generator.config.replace(rendering=rendering)


def training_of(path):
    """What a snapshot says of its training: 'images_seen' and 'options'; {} for published pickles, which say nothing."""
    return {} if is_pickle(path) else read_snapshot(path)['about']


def default_label(request):
    """The name of the folder that the network lies in, or of the images or views."""
    if request.network:
        return Path(request.network).resolve().parent.name
    images = request.images or request.group_options['views']
    return source_name(images) if isinstance(images, str | Path) else None


@main.command('table')
@click.argument('runs', nargs=-1, required=True, type=UserPath(exists=True, file_okay=False), metavar='RUN...')
@click.option('--format', 'form', type=click.Choice(['markdown', 'csv']), default='markdown')
@click.option(
    '--published',
    type=click.Choice([*tables.PUBLISHED_DATA, 'all', 'none']),
    default='all',
    help='Of which data the published results of the paper stand beside.',
)
@click.option('--every', is_flag=True, help='All snapshots.  [default: the last one of each method and branch]')
@friendly_errors
def print_table(runs, form, published, every):
    """Print a table of the results in folders, beside the published ones."""
    records = [record for run in runs for record in results.read_folder(run)]
    click.echo(tables.format_table(tables.rows(records, every, published), form))


@main.command()
@click.argument('run', type=UserPath(exists=True, file_okay=False), metavar='RUN_DIR')
@click.option('--output', type=UserPath(dir_okay=False, path_type=Path), help='The PNG to write.  [default: RUN_DIR/metrics.png]')
@friendly_errors
def plot(run, output):
    """Draw metrics against kimg."""
    output = output or Path(run) / 'metrics.png'
    tables.plot_metrics(results.read_folder(run), output)
    click.echo(f'written {output}')


if __name__ == '__main__':
    main()
