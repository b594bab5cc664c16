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
from dnnlib.params import FiniteFloat, FiniteRange, NameList, UserPath
from torch_utils import distributed
from training.config import AUTO, PRESETS, RENDER_PRECISIONS, ConfigError, check, continuing, from_nothing, resolve
from training.resuming import LATEST, check_unchanged, has_state, new_run_dir, run_to_resume, saved_config

UNSET = None
AWARE = ('stream', 'latent')
MOST_IMAGES_CHECKED = 300  # two seconds at 512x512


def process_count(option):
    """--gpus, or under torchrun the number of processes that it started."""
    if not distributed.under_torchrun():
        return option
    started = int(os.environ['WORLD_SIZE'])
    check(option in (UNSET, started), f'--gpus={option}, but torchrun started {started} processes; leave --gpus out')
    return started


def near_or_far(value):
    """A distance in world units, or 'auto'."""
    if value == AUTO:
        return value
    try:
        return FiniteFloat().convert(value, None, None)
    except click.BadParameter:
        raise click.BadParameter(f"{value} is neither a finite number nor 'auto'") from None


# Options by the part of the configuration that they override: {option name: field name}.
_RUN = dict(batch='batch', batch_gpu='batch_gpu', gpus='gpus', seed='seed', mirror='mirror', workers='workers', augment='augment',
            ada_target='ada_target', ema_kimg='ema_kimg', share_fakes='share_fakes', tf32='tf32', tick='tick_kimg',
            snap='snapshot_ticks', init_from='init_from', fresh_schedules='fresh_schedules', lpips_weights='lpips_weights', threads='threads', state_every='state_every',
            keep_states='keep_states', max_minutes='max_minutes', max_bad_steps='max_bad_steps', timeout='timeout_minutes',
            metrics='metrics', metrics_every='metrics_every', detector='detector')
_GENERATOR = dict(render_resolution='render_resolution', plane_resolution='plane_resolution', pose_conditioning='pose_conditioning',
                  g_channel_base='channel_base', g_channel_max='channel_max', precision='precision')
_DISCRIMINATOR = dict(d_channel_base='channel_base', d_channel_max='channel_max', precision='precision')
_RENDERING = dict(near='near', far='far', box='box_size', samples='depth_samples', importance_samples='importance_samples',
                  white_background='white_background', camera_radius='camera_radius', focal='focal',
                  render_precision='precision')
_LOSS = dict(gamma='r1_gamma', gamma_patch='r1_gamma_patch', imitation='imitation', imitation_weight='imitation_weight',
             patch_weight='patch_weight', density_weight='density_weight', blur_fade='blur_fade_kimg')
_OPTIMIZER = dict(glr='g_lr', dlr='d_lr', lr_rampup='lr_rampup_kimg')

# Options that a resumed run may change: none of them changes what is trained.
_CHANGEABLE = ('gpus', 'batch_gpu', 'workers', 'threads', 'tick', 'snap', 'stage2_kimg', 'lpips_weights', 'state_every', 'keep_states',
               'max_minutes', 'max_bad_steps', 'timeout', 'metrics', 'metrics_every', 'detector')


def override(config, options):
    """The configuration with every given option in its place."""
    given = _given(options)

    def changes(table):
        return {field: given[name] for name, field in table.items() if name in given}
    rendering = config.generator.rendering.replace(**changes(_RENDERING))
    generator = config.generator.replace(rendering=rendering, **_awareness(given), **changes(_GENERATOR))
    discriminator = config.discriminator.replace(**changes(_DISCRIMINATOR))
    patch = config.patch_discriminator.replace(resolution=generator.render_resolution, **changes(_DISCRIMINATOR))
    stages = {}
    for number in (1, 2):
        stage = getattr(config, f'stage{number}')
        stages[f'stage{number}'] = stage.replace(kimg=given.get(f'stage{number}_kimg', stage.kimg),
                                                 loss=stage.loss.replace(**_stage_loss(changes(_LOSS), number, given)))
    stages = _scheduled(stages, config.replace(**changes(_RUN)), given)
    optimizer = config.optimizer.replace(**changes(_OPTIMIZER))
    return config.replace(generator=generator, discriminator=discriminator, patch_discriminator=patch, optimizer=optimizer,
                          **stages, **changes(_RUN))


def _awareness(given):
    """Where E's planes see each other: in a stream beside it, or in E itself (paper, table 3)."""
    return {f'aware_{place}': place == given['aware'] for place in AWARE} if 'aware' in given else {}


def _given(options):
    return {name: value for name, value in options.items() if value is not UNSET}


def _scheduled(stages, run, given):
    """The stages with the schedules of what the run starts from, which is told by `run` (a RunConfig).

    Given weights have no use for blur and ramps, in whichever stage comes first. From nothing, the first stage has them, also
    where that is stage 2 (supplement, section II.1).
    """
    first = 'stage1' if stages['stage1'].kimg > 0 else 'stage2'
    if run.init_from is None or run.fresh_schedules:
        return {**stages, first: from_nothing(stages[first], stages['stage1'])}
    if 'init_from' not in given:  # a run that goes on: its schedules are settled
        return stages
    stage = continuing(stages[first])
    if 'blur_fade' in given:
        stage = stage.replace(loss=stage.loss.replace(blur_fade_kimg=given['blur_fade']))
    return {**stages, first: stage}


def _stage_loss(changes, number, given):
    """Options of the loss for one stage: blur and the swap's ramp belong to the first; swap_end holds in both."""
    if number == 2:
        changes.pop('blur_fade_kimg', None)
    if 'swap' in given:
        changes.update(swap_end=given['swap'], **({'swap_start': given['swap']} if number == 2 else {}))
    if 'gamma' in given:
        changes.setdefault('r1_gamma_patch', given['gamma'])
    return changes


def summary(config):
    """The resolved configuration as text."""
    return json.dumps(config.to_dict(), indent=2)


@click.command(context_settings=dict(max_content_width=120, show_default=True))
@click.option('--preset', type=click.Choice(list(PRESETS)), help='Configuration to start from; other options override it.')
@click.option('--data', type=UserPath(), metavar='ZIP|DIR', help='Posed images with a dataset.json.')
@click.option('--outdir', default='runs', type=UserPath(), metavar='DIR', help='Where the folder of the run is made.')
@click.option('--run-id', metavar='NAME', help='Name of the run in --outdir, instead of a number; if it is there, it goes on.')
@click.option('--run-dir', type=UserPath(), metavar='DIR', help='Folder of the run itself; if it holds a run, that goes on.')
@click.option('--resume', type=UserPath(words=[LATEST]), metavar='RUN_DIR|latest', help='Go on with a run, with its own options.')
@click.option('--gpus', type=click.IntRange(1), help='Processes, one per GPU (on a machine without: CPU processes).')
@click.option('--batch', type=click.IntRange(1), help='Images per step over all processes.')
@click.option('--batch-gpu', type=click.IntRange(1), help='Images per process and pass; smaller saves memory.')
@click.option('--stage1-kimg', type=FiniteRange(0), help='Length of stage 1; 0 trains everything together from the start.')
@click.option('--stage2-kimg', type=FiniteRange(0), help='Length of stage 2.')
@click.option('--init-from', type=UserPath(), metavar='PATH', help='Snapshot whose weights the run starts from; of a folder, the newest one.')
@click.option('--fresh-schedules', type=bool, is_flag=False, flag_value=True, help='With --init-from: blur, ramps and ADA begin as in a run from nothing.')
@click.option('--seed', type=click.IntRange(0, 2**32 - 1), help='Random seed.')
@click.option('--mirror', type=bool, help='Double the set by mirrored copies.')
@click.option('--augment', type=click.Choice(['none', 'ada']), help='Augmentation of what the discriminators see.')
@click.option('--ada-target', type=FiniteRange(0, 1), help="ADA's target for sign(D(real)).")
@click.option('--gamma', type=FiniteRange(0), help='R1 weight of both discriminators.')
@click.option('--gamma-patch', type=FiniteRange(0), help='R1 weight of the patch discriminator, where it differs.')
@click.option('--imitation', type=click.Choice(['lpips', 'pyramid', 'none']), help='What the 3D branch imitates with.')
@click.option('--imitation-weight', type=FiniteRange(0), help='Weight of the imitation loss.')
@click.option('--lpips-weights', type=UserPath(), metavar='FILE', help="torchvision's VGG-16 weights for LPIPS; else torch's cache or a download.")
@click.option('--patch-weight', type=FiniteRange(0), help="lambda_p, of the generator's patch term.")
@click.option('--density-weight', type=FiniteRange(0), help='Weight of the density regularisation.')
@click.option('--blur-fade', type=FiniteRange(0), help='Thousands of images over which the blur fades (times batch / 32).')
@click.option('--swap', type=FiniteRange(0, 1), help="Probability of conditioning on a neighbour's camera, after its ramp.")
@click.option('--pose-conditioning', type=bool, help='Condition the generator on the camera.')
@click.option('--glr', type=FiniteRange(0, min_open=True), help="Generator's learning rate.")
@click.option('--dlr', type=FiniteRange(0, min_open=True), help="Discriminators' learning rate.")
@click.option('--lr-rampup', type=FiniteRange(0), help='Thousands of images over which the learning rates of a stage rise.')
@click.option('--ema-kimg', type=FiniteRange(0), help="Half-life of the generator's average (default: batch * 10 / 32).")
@click.option('--share-fakes', type=bool, help='The players of a step share its fakes: one generator pass instead of three.')
@click.option('--render-resolution', type=int, help='Pixels per side of the volume render and of a patch.')
@click.option('--plane-resolution', type=int, help='Side of the coarse tri-planes; the residual ones have twice that.')
@click.option('--aware', type=click.Choice(AWARE), help='Where planes see each other: in a stream beside E, or in E itself.')
@click.option('--g-channel-base', type=int, help="Generator's channels times resolution.")
@click.option('--g-channel-max', type=int, help="Generator's channels at most.")
@click.option('--d-channel-base', type=int, help="Discriminators' channels times resolution.")
@click.option('--d-channel-max', type=int, help="Discriminators' channels at most.")
@click.option('--near', type=near_or_far, help="Where rays start, world units, or 'auto'.")
@click.option('--far', type=near_or_far, help="Where rays end, world units, or 'auto'.")
@click.option('--box', type=FiniteRange(0, min_open=True), help='Side of the cube that the tri-planes cover.')
@click.option('--samples', type=int, help='Stratified samples per ray.')
@click.option('--importance-samples', type=int, help='Importance samples per ray.')
@click.option('--white-background', type=bool, help='Composite on white.')
@click.option('--camera-radius', type=FiniteRange(0, min_open=True), help='Distance of the viewer cameras from the origin.')
@click.option('--focal', type=FiniteRange(0, min_open=True), help='Focal length of the viewer cameras, image widths.')
@click.option('--precision', type=click.Choice(['fp32', 'fp16', 'bf16']), help='Of S2D and the highest resolutions of the discriminators.')
@click.option('--render-precision', type=click.Choice(RENDER_PRECISIONS), help='Of the fused renderer, where it runs.')
@click.option('--tf32', type=bool, help='TF32 matrix products and convolutions.')
@click.option('--tick', type=FiniteRange(0, min_open=True), help='Thousands of images between status lines.')
@click.option('--snap', type=click.IntRange(1), help='Ticks between snapshots and sample grids.')
@click.option('--metrics', type=NameList(), help='Metrics of calc_metrics.py to compute for snapshots, such as fid2k_full,swd; or none.')
@click.option('--metrics-every', type=click.IntRange(1), help='Snapshots from one evaluation to the next.')
@click.option('--detector', type=UserPath(), metavar='FILE', help="The metrics' feature detector; else torch-fidelity's cache or a download.")
@click.option('--workers', type=click.IntRange(0), help='Processes that read images.')
@click.option('--threads', type=click.IntRange(1), help='CPU threads per process.')
@click.option('--state-every', metavar='INTERVAL', help='How often to save the training state, such as 15min or 50kimg.')
@click.option('--keep-states', type=click.IntRange(1), help='Training states that are kept.')
@click.option('--max-minutes', type=FiniteRange(0), help='Stop after so long, to be resumed (exit code 75); 0: never.')
@click.option('--max-bad-steps', type=click.IntRange(1), help='Steps in a row whose gradients may be not finite.')
@click.option('--timeout', type=FiniteRange(0, min_open=True), help='Minutes that a process waits for the others.')
@click.option('--dry-run', is_flag=True, help='Print the resolved configuration and stop.')
@friendly_errors
def main(preset, data, outdir, run_id, run_dir, resume, dry_run, **options):
    """Train Mimic3D on posed images.

    Example: python train.py --preset=ffhq512 --data=ffhq512.zip --gpus=8

    A run that was interrupted goes on when the same command is given again with its --run-id or --run-dir, or with
    --resume. SIGTERM, SIGINT and SIGUSR1 finish the step, save, and exit with code 75; a second one exits at once.
    """
    options['gpus'] = process_count(options['gpus'])
    folder_named = run_dir is not UNSET or resume not in (UNSET, LATEST)
    run_dir = choose_run_dir(preset, outdir, run_id, run_dir, resume)
    saved = saved_config(run_dir)
    config = new_run(preset, data, run_dir, options) if saved is None else continued(saved, preset, data, run_dir, options)
    refuse_idle_options(config, folder_named)
    if dry_run:
        click.echo(summary(config))
        return
    vgg_weights = prepare(config)
    if not start(config, vgg_weights):
        sys.exit(distributed.exit_code_when_stopped())


def refuse_idle_options(config, folder_named):
    """Raise UserError for options that were given and that the run takes no notice of."""
    imitation = config.stage2.loss.imitation
    for idle, names, reason in (
            (folder_named, ['outdir'], 'where the folder of the run itself is named'),
            (config.augment != 'ada', ['ada_target'], 'without --augment=ada'),
            (not config.generator.pose_conditioning, ['swap'], 'without --pose-conditioning'),
            (config.stage2.kimg == 0, ['imitation', 'imitation_weight', 'lpips_weights', 'patch_weight', 'gamma_patch'], 'without stage 2'),
            (imitation == 'none', ['imitation_weight'], 'with --imitation=none'),
            (imitation != 'lpips', ['lpips_weights'], f'with --imitation={imitation}'),
            (not config.metrics, ['metrics_every', 'detector'], 'without --metrics')):
        if idle:
            refuse_idle(names, reason)


def choose_run_dir(preset, outdir, run_id, run_dir, resume):
    """The folder of the run that the options name, or a new one."""
    named = {name: value for name, value in (('--run-id', run_id), ('--run-dir', run_dir), ('--resume', resume)) if value is not UNSET}
    check(len(named) <= 1, f'{" and ".join(named)} name the run twice; give one of them')
    check(run_id is UNSET or run_id.strip('./'), f'--run-id={run_id} names no run; give it a name, or leave it out')
    check(named or not distributed.under_torchrun(), 'under torchrun, name the run with --run-id or --run-dir: '
          'a process that is started again must find it')
    if resume is not UNSET:
        run_dir = run_to_resume(resume, outdir)
    elif run_id is not UNSET:
        run_dir = os.path.join(outdir, run_id)
    return run_dir or new_run_dir(outdir, preset)


def new_run(preset, data, run_dir, options):
    check(preset is not UNSET, f'--preset is missing; choose one of: {", ".join(PRESETS)}')
    check(data is not UNSET, '--data is missing: a zip or folder of posed images')
    if options['init_from'] is not UNSET:
        from training.snapshots import newest_snapshot
        options = {**options, 'init_from': newest_snapshot(options['init_from'])}
    return override(resolve(preset, data, run_dir), options)


def continued(saved, preset, data, run_dir, options):
    """The configuration with which a saved run goes on. Raises ConfigError for an option that would change it."""
    check(preset in (UNSET, saved.preset), f'--preset={preset}, but the run in {run_dir} has --preset={saved.preset}; name another folder')
    saved = saved.replace(outdir=run_dir, data=data or saved.data)
    given = _given(options)
    if 'init_from' in given and _holds(given['init_from'], saved.init_from):
        given['init_from'] = saved.init_from  # of a folder, the run took the snapshot that was the newest then
    check_unchanged(saved, lambda some: override(saved, some), {name: given[name] for name in given if name not in _CHANGEABLE})
    config = override(saved, {name: given[name] for name in given if name in _CHANGEABLE})
    check(config.images_per_group == saved.images_per_group, f'--gpus={config.gpus} and --batch-gpu={config.batch_per_pass} would '
          f"change the run: the discriminators' minibatch statistics are over groups of {saved.images_per_group} images of a pass")
    return config


def _holds(folder, file):
    """Whether a file, or None, lies directly in a folder."""
    return file is not None and os.path.realpath(folder) == os.path.dirname(os.path.realpath(file))


def prepare(config):
    """Find everything that is wrong before anything is written. Returns the file for LPIPS, or None."""
    from metrics import registry
    from metrics.detector import check_weights
    from metrics.image_quality import check_counts
    from training.dataset import PosedImageDataset
    from training.perceptual import find_vgg_weights, load_lpips
    from training.snapshots import load_networks

    check_gpus(config.gpus)
    for name in config.metrics:
        registry.find(name)
    check(config.detector is None or os.path.isfile(config.detector), f'--detector={config.detector}: no such file')
    dataset = PosedImageDataset(config.data, resolution=config.generator.image_resolution,
                                background=config.generator.rendering.background)
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


def check_gpus(wanted):
    if torch.cuda.is_available() and not distributed.under_torchrun():
        present = torch.cuda.device_count()
        check(wanted <= present, f'--gpus={wanted}, but this machine has {present}; use --gpus={present} or fewer')


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
    check(given is not None, f'--init-from={config.init_from} holds no generator, only: {", ".join(networks) or "nothing"}; '
          'give a network-snapshot-*.pkl')
    with torch.device('meta'):  # shapes alone
        own = Generator(config.generator.replace(residual=config.stage1.kimg == 0)).state_dict()
    taken = len(matching(own, given.state_dict()))
    check(2 * taken >= len(own), f'--init-from={config.init_from} fits {taken} of the {len(own)} tensors of the generator: it was '
          'trained with other sizes; give one of the same --preset and options, or leave it out')


def start(config, vgg_weights):
    """Make the run's folder and train, in as many processes as asked for. Returns whether the run is finished."""
    from metrics.monitoring import Monitor
    from training.training_loop import train

    if int(os.environ.get('RANK', 0)) == 0:
        try:
            os.makedirs(config.outdir, exist_ok=True)
        except OSError as error:
            raise ConfigError(f'the run folder {config.outdir} cannot be written: {error.strerror}; name another') from None
    monitor = Monitor(list(config.metrics), config.data, config.mirror, config.outdir, config.detector,
                      config.workers) if config.metrics else None
    return distributed.launch(functools.partial(train, config, vgg_weights, monitor), config.gpus)


if __name__ == '__main__':
    main()
