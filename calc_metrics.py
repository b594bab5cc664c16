"""Image metrics of a network, or of a folder of images, and tables and plots of them.

python calc_metrics.py --metrics=fid50k_full --network=network-snapshot.pkl --data=ffhq512.zip --branch=both --gpus=8
python calc_metrics.py table RUN... ; python calc_metrics.py plot RUN
"""

import functools
from dataclasses import MISSING, dataclass, field, replace
from pathlib import Path

import click

from dnnlib.cli import friendly_errors, refuse_idle
from dnnlib.errors import UserError
from dnnlib.files import make_output_folder, source_name
from dnnlib.options import GroupedGroup, config_options, setting
from dnnlib.params import FiniteRange, UserPath, name_list
from interop.pickles import is_pickle
from metrics import compute_records, published, registry, results, tables
from sampling.subjects import (
    choose_branches,
    importance_samples_setting,
    load_generator,
    render_resolution_setting,
    samples_setting,
    set_rendering,
    skip_setting,
    trunc_cutoff_setting,
)
from torch_utils import distributed
from torch_utils.memory import naming_memory
from training.config import ConfigError, RunConfig
from training.presets import experiment
from training.rendering.fused import agree_on_kernels
from training.snapshots import newest_snapshot, read_snapshot

# Options about the result, or about what a metric may need, whether it does or not.
ALWAYS_USED = {'metrics', 'outdir', 'label', 'seed', 'batch', 'gpus', 'workers', 'detector', 'cache_dir'}


GROUPS = IMAGES, PROTOCOL, MACHINE = 'Images', 'Protocol', 'Machine and output'  # headings of --help


@dataclass(frozen=True, kw_only=True)
class Request:
    """What to evaluate, and how; the fields are the options of the script's own command, but for those that metrics bring."""

    metrics: tuple = setting(
        MISSING,
        '--metrics',
        name_list,
        f'Names, separated by commas: {", ".join(family.form for family in registry.families())}.',
        IMAGES,
        metavar='NAMES',
    )
    network: str | None = setting(
        None, '--network', UserPath(), 'Network snapshot to evaluate; of a folder, the newest one.', IMAGES, metavar='PATH'
    )
    images: str | None = setting(
        None, '--images', UserPath(), 'Images of any other method to evaluate; no network then.', IMAGES, metavar='ZIP|DIR'
    )
    data: str | None = setting(
        None,
        '--data',
        UserPath(),
        'The real images; a network needs their cameras, too.  [default: what it was trained on]',
        IMAGES,
        metavar='ZIP|DIR',
    )
    mirror: bool | None = setting(
        None, '--mirror', click.BOOL, 'Double the data by mirrored copies.  [default: as in training]', IMAGES
    )
    branch: str = setting('both', '--branch', click.Choice(['2d', '3d', 'both', 'coarse']), 'Branch of the network.', IMAGES)
    seed: int = setting(0, '--seed', click.IntRange(0, 2**32 - 1), 'Random seed of latents, cameras and subsets.', PROTOCOL)
    batch: int = setting(16, '--batch', click.IntRange(1), 'Images at once and per process.', PROTOCOL)
    trunc: float = setting(1.0, '--trunc', FiniteRange(0), 'Truncation psi; 1: none.', PROTOCOL)
    trunc_cutoff: int | None = trunc_cutoff_setting(PROTOCOL)
    render_resolution: int | None = render_resolution_setting(PROTOCOL)
    samples: int | None = samples_setting(PROTOCOL)
    importance_samples: int | None = importance_samples_setting(PROTOCOL)
    sampling: str | None = setting(
        None,
        '--sampling',
        click.Choice(['stratified', 'deterministic']),
        'Sampling along rays.  [default: stratified for fid, fid3d, kid, pr and is; else deterministic]',
        PROTOCOL,
    )
    skip: float = skip_setting(PROTOCOL)
    noise_mode: str | None = setting(
        None,
        '--noise-mode',
        click.Choice(['random', 'const', 'none']),
        'Noise of the synthesis.  [default: random for fid, fid3d, kid, pr and is; else const]',
        PROTOCOL,
    )
    gpus: int = setting(1, '--gpus', click.IntRange(1), 'Processes, one per GPU (without one: CPU processes).', MACHINE)
    workers: int = setting(2, '--workers', click.IntRange(0), 'Processes that read images, per GPU.', MACHINE)
    outdir: Path | None = setting(
        None,
        '--outdir',
        UserPath(file_okay=False, path_type=Path),
        "Where metric-<name>.jsonl goes.  [default: the network's folder; for --images the current one]",
        MACHINE,
    )
    label: str | None = setting(
        None, '--label', click.STRING, "The method's name in tables.  [default: the name of the run's or image folder]", MACHINE
    )
    group_options: dict = field(default_factory=dict)


@click.group(cls=GroupedGroup, invoke_without_command=True, context_settings=dict(max_content_width=120, show_default=True))
@config_options(Request, GROUPS)
@registry.add_group_options
@click.pass_context
@friendly_errors
def main(context, **options):
    """Evaluate a network's images, or a folder of them, against a data set; results go to metric-<name>.jsonl."""
    if context.invoked_subcommand is not None:
        refuse_idle(options, f'on {context.invoked_subcommand}')
        return
    if not options['metrics']:
        raise UserError('--metrics is missing: name what to compute, such as --metrics=fid50k_full,swd')
    if options['network'] and options['images']:
        raise UserError('--network and --images exclude each other: give one')
    refuse_options_of_other_metrics(options)
    own = {name: options.pop(name) for name in registry.default_options()}
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
            task, branches, about = prepare_evaluation(request)
        for branch in branches:
            for record in compute_records(request.metrics, replace(task, branch=branch), about):
                distributed.from_first(functools.partial(publish, task.outdir, record))


def publish(outdir, record):
    """Print a result and write it. It may have taken hours, so that neither is left out because the other fails."""
    try:
        click.echo(results.format_record(record))
    finally:
        try:
            results.append_record(outdir, record)
        except OSError as error:
            raise UserError(
                f'{results.file_of(outdir, record["metric"])} cannot be written ({error.strerror}); the result is printed '
                'above: make room, or name another folder with --outdir'
            ) from None


def prepare_evaluation(request):
    """The registry.Task of a request on this process's device, the branches to evaluate, and what the records say of them.

    Raises UserError for what does not fit together.
    """
    device = distributed.pick_device()
    agree_on_kernels(device)
    generator, branches, trained = None, (None,), {}
    if request.network:
        generator = load_generator(request.network, str(device))
        branches = evaluated_branches(generator, request.branch)
        set_rendering(generator, depth_samples=request.samples, importance_samples=request.importance_samples)
        trained = {} if is_pickle(request.network) else read_snapshot(request.network)['about']  # published pickles say nothing
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
        'experiment': experiment_of(trained),
    }
    return task, branches, about


def experiment_of(trained):
    """The experiment of the paper that a snapshot is from, by what it says of its training; None where that is not known."""
    try:
        return experiment(RunConfig.from_dict(trained['options']), trained['stage'])
    except (KeyError, TypeError, ConfigError):  # a published pickle, or options of another version
        return None


def evaluated_branches(generator, choice):
    """The branches to evaluate. After stage 1 there is no 3D branch: 'both' then means the 2D branch, and a line says so."""
    branches = choose_branches(generator, choice)
    if choice == 'both' and '3d' not in branches:
        if distributed.rank() == 0:
            click.echo('This network has no 3D branch, it comes from stage 1: only the 2D branch is evaluated.', err=True)
        return ('2d',)
    return branches


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
    'choice',
    type=click.Choice(published.CHOICES),
    default='all',
    help='Which published results stand beside: those of a data set of table 1 of the paper, or of one of its tables.',
)
@click.option('--every', is_flag=True, help='All snapshots.  [default: the last one of each method and branch]')
@friendly_errors
def print_table(runs, form, choice, every):
    """Print a table of the results in folders, beside the published ones."""
    records = [record for run in runs for record in results.read_folder(run)]
    click.echo(tables.format_table(tables.rows(records, every, choice), form))


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
