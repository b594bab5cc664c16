"""Train Mimic3D: stage 1 (the 2D branch), then stage 2 (both branches), in one command."""

import os
import signal

from torch_utils.interrupts import SIGNALS, STOPPED

if __name__ == '__main__':  # until the run listens to signals itself: the imports below take seconds
    for _number in SIGNALS:
        signal.signal(_number, lambda *_: os._exit(STOPPED))

import functools
import json
import math
import sys

import click
import torch

from dnnlib.cli import friendly_errors, refuse_idle
from dnnlib.options import GroupedCommand, config_options, grouped_option, settings
from dnnlib.params import UserPath
from torch_utils import distributed
from training.config import GROUPS, ConfigError, RunConfig, check
from training.presets import ABLATIONS, PRESETS, ablation_options, differences, resolve, with_options
from training.run.resuming import LATEST, check_unchanged, claim_run_dir, has_state, next_run_dir, run_to_resume, saved_config

UNSET = None
MOST_IMAGES_CHECKED = 300  # two seconds at 512x512


def process_count(option):
    """--gpus, or under torchrun the number of processes that it started."""
    if not distributed.under_torchrun():
        return option
    started = int(os.environ['WORLD_SIZE'])
    check(option in (UNSET, started), f'--gpus={option}, but torchrun started {started} processes; leave --gpus out')
    return started


def difference_line(config):
    found = differences(config)
    return 'Differs from the full method: ' + '; '.join(found) if found else 'The full method of the paper.'


@click.command(cls=GroupedCommand, context_settings=dict(max_content_width=120, show_default=True))
@grouped_option(
    '--preset', group='Run', type=click.Choice(list(PRESETS)), help='Configuration to start from; other options override it.'
)
@grouped_option(
    '--ablation', group='Run', type=click.Choice(list(ABLATIONS)), help='Row of table 2 of the paper; E is the full method.'
)
@grouped_option('--data', group='Run', type=UserPath(), metavar='ZIP|DIR', help='Posed images with a dataset.json.')
@grouped_option(
    '--outdir', group='Run', default='runs', type=UserPath(), metavar='DIR', help='Where the folder of the run is made.'
)
@grouped_option(
    '--run-id', group='Run', metavar='NAME', help='Name of the run in --outdir, instead of a number; if it is there, it goes on.'
)
@grouped_option(
    '--run-dir', group='Run', type=UserPath(), metavar='DIR', help='Folder of the run itself; if it holds a run, that goes on.'
)
@grouped_option(
    '--resume',
    group='Run',
    type=UserPath(words=[LATEST]),
    metavar='RUN_DIR|latest',
    help='Go on with a run, with its own options.',
)
@config_options(RunConfig, GROUPS, default=UNSET)  # the preset's values are the defaults
@grouped_option('--dry-run', group='Run', is_flag=True, help='Print the resolved configuration and stop.')
@friendly_errors
def main(preset, ablation, data, outdir, run_id, run_dir, resume, dry_run, **options):
    """Train Mimic3D on posed images.

    Example: python train.py --preset=ffhq512 --data=ffhq512.zip --gpus=8

    A run that was interrupted goes on when the same command is given again with its --run-id or --run-dir, or with
    --resume. SIGTERM, SIGINT and SIGUSR1 finish the step, save, and exit with code 75; a second one exits at once.
    """
    options['gpus'] = process_count(options['gpus'])
    given = {name: value for name, value in options.items() if value is not UNSET}
    folder_named = run_dir is not UNSET or resume not in (UNSET, LATEST)

    def resolved():
        named = choose_run_dir(outdir, run_id, run_dir, resume)
        config = run_config(preset, ablation, data, named or next_run_dir(outdir, preset), given)
        refuse_idle_options(config, folder_named)
        return config, named is not None

    if dry_run:
        config, _ = resolved()
        click.echo(json.dumps(config.to_dict(), indent=2))
        click.echo(difference_line(config), err=True)  # stdout is JSON
        return
    # Under torchrun every process comes here, and what one machine lacks ends all of them.
    with distributed.joined(given.get('timeout', RunConfig.timeout_minutes)):
        with distributed.together():
            config, named = resolved()
            vgg_weights = check_inputs(config)
            config = with_run_dir(config, named)
        finished = start(config, vgg_weights)
    if not finished:
        sys.exit(distributed.exit_code_when_stopped())


def run_config(preset, ablation, data, run_dir, given):
    """The RunConfig of a new run in a folder, or with which the one there goes on; given: the options {name: value}."""
    saved = saved_config(run_dir)
    name = preset if saved is None else saved.preset
    if ablation is not UNSET and name is not UNSET:
        given = ablation_options(name, ablation) | given
    return new_run(preset, data, run_dir, given) if saved is None else continued(saved, preset, data, run_dir, given)


def refuse_idle_options(config, folder_named):
    """Raise UserError for options that were given and that the run takes no notice of."""
    imitation, no_stage2 = config.stage2.loss.imitation, config.stage2.kimg == 0
    for idle, names, reason in (
        (folder_named, ['outdir'], 'where the folder of the run itself is named'),
        (not config.generator.pose_conditioning, ['swap'], 'without --pose-conditioning'),
        (no_stage2, ['imitation', 'lpips_weights', 'patch_weight', 'ablation'], 'without stage 2'),
        (no_stage2 and config.generator.has_3d_branch, ['branch_3d'], 'without stage 2'),
        (config.render_resolution_end is None, ['render_growth_start', 'render_growth'], 'without --render-resolution-end'),
        (imitation != 'lpips', ['lpips_weights'], f'with --imitation={imitation}'),
        (not config.metrics, ['metrics_every', 'detector'], 'without --metrics'),
    ):
        if idle:
            refuse_idle(names, reason)


def choose_run_dir(outdir, run_id, run_dir, resume):
    """The folder of the run that the options name, or None."""
    named = {
        name: value for name, value in (('--run-id', run_id), ('--run-dir', run_dir), ('--resume', resume)) if value is not UNSET
    }
    check(len(named) <= 1, f'{" and ".join(named)} name the run twice; give one of them')
    check(run_id is UNSET or run_id.strip('./'), f'--run-id={run_id} names no run; give it a name, or leave it out')
    check(
        named or not distributed.under_torchrun(),
        'under torchrun, name the run with --run-id or --run-dir: a process that is started again must find it',
    )
    if resume is not UNSET:
        run_dir = run_to_resume(resume, outdir)
    elif run_id is not UNSET:
        run_dir = os.path.join(outdir, run_id)
    return run_dir


def new_run(preset, data, run_dir, given):
    check(preset is not UNSET, f'--preset is missing; choose one of: {", ".join(PRESETS)}')
    check(data is not UNSET, '--data is missing: a zip or folder of posed images')
    if 'init_from' in given:
        from training.snapshots import newest_snapshot

        given = {**given, 'init_from': newest_snapshot(given['init_from'])}
    return with_options(resolve(preset, data, run_dir), given)


def continued(saved, preset, data, run_dir, given):
    """The configuration with which a saved run goes on. Raises ConfigError for an option that would change it."""
    check(
        preset in (UNSET, saved.preset),
        f'--preset={preset}, but the run in {run_dir} has --preset={saved.preset}; name another folder',
    )
    saved = saved.replace(outdir=run_dir, data=data or saved.data)
    if 'init_from' in given and _holds(given['init_from'], saved.init_from):
        given = {**given, 'init_from': saved.init_from}  # of a folder, the run took the snapshot that was the newest then
    resumable = {option.name for option in settings(RunConfig).values() if option.resumable}
    check_unchanged(saved, lambda some: with_options(saved, some), {name: given[name] for name in given if name not in resumable})
    config = with_options(saved, {name: given[name] for name in given if name in resumable})
    check(
        config.images_per_group == saved.images_per_group,
        f'--gpus={config.gpus} and --batch-gpu={config.batch_per_pass} would '
        f"change the run: the discriminators' minibatch statistics are over groups of {saved.images_per_group} images of a pass",
    )
    return config


def _holds(folder, file):
    """Whether a file, or None, lies directly in a folder."""
    return file is not None and os.path.realpath(folder) == os.path.dirname(os.path.realpath(file))


def check_inputs(config):
    """Find everything that is wrong before anything is written. Returns the file for LPIPS, or None."""
    from metrics import registry
    from metrics.detector import check_weights
    from metrics.image_quality import check_counts
    from training.data.dataset import PosedImageDataset
    from training.perceptual import find_vgg_weights, load_lpips
    from training.snapshots import load_networks

    distributed.check_gpus(config.gpus)
    for name in config.metrics:
        registry.find_family(name)
    check(config.detector is None or os.path.isfile(config.detector), f'--detector={config.detector}: no such file')
    dataset = PosedImageDataset(
        config.data, resolution=config.generator.image_resolution, background=config.generator.rendering.background
    )
    dataset.check_scene(config.generator.rendering)
    check_counts(config.metrics, len(dataset) * (2 if config.mirror else 1))
    if config.detector is not None:
        check_weights(config.detector)
    if not has_state(config.outdir):
        if int(os.environ.get('RANK', 0)) == 0:  # under torchrun every process comes here
            check_images(dataset)
        if config.init_from is not None:
            check_initial_weights(config, load_networks(config.init_from))
    if config.stage2.kimg == 0 or config.stage2.loss.imitation != 'lpips':
        return None
    weights = str(find_vgg_weights(config.lpips_weights))
    load_lpips(weights, 'cpu')
    return weights


def check_images(dataset):
    """Read every image of a small set, and a spread of a large one, which shows what is wrong with all of them.

    A single broken image of a large set may be met in training only; the run ends then, and goes on from its last state.
    """
    for index in range(0, len(dataset), math.ceil(len(dataset) / MOST_IMAGES_CHECKED)):
        dataset[index]


def check_initial_weights(config, networks):
    """Raise ConfigError for networks of --init-from that would leave most of the generator untrained."""
    from training.networks.generator import Generator
    from training.snapshots import matching

    given = networks.get('G', networks.get('G_ema'))
    check(
        given is not None,
        f'--init-from={config.init_from} holds no generator, only: {", ".join(networks) or "nothing"}; '
        'give a network-snapshot-*.pkl',
    )
    with torch.device('meta'):  # shapes alone
        own = Generator(config.generator_of(2 if config.stage1.kimg == 0 else 1)).state_dict()
    taken = len(matching(own, given.state_dict()))
    check(
        2 * taken >= len(own),
        f'--init-from={config.init_from} fits {taken} of the {len(own)} tensors of the generator: it was '
        'trained with other sizes; give one of the same --preset and options, or leave it out',
    )


def with_run_dir(config, named):
    """The RunConfig with a folder that is there: its own where the user has named that, else the next free one beside it."""
    try:
        if named:
            os.makedirs(config.outdir, exist_ok=True)
            return config
        return config.replace(outdir=claim_run_dir(os.path.dirname(config.outdir), config.preset))
    except OSError as error:
        raise ConfigError(f'the run folder {config.outdir} cannot be written: {error.strerror}; name another') from None


def start(config, vgg_weights):
    """Train, in as many processes as asked for. Returns whether the run is finished."""
    from metrics.monitoring import Monitor
    from training.training_loop import train

    monitor = (
        Monitor(list(config.metrics), config.data, config.mirror, config.outdir, config.detector, config.workers)
        if config.metrics
        else None
    )
    return distributed.launch(functools.partial(train, config, vgg_weights, monitor), config.gpus)


if __name__ == '__main__':
    main()
