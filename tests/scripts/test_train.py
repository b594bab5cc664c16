"""train.py: what its options become, and what it says to bad ones."""

import functools
import json
import multiprocessing
import re
import zipfile

import click
import pytest

import train as train_script
from dnnlib.errors import UserError
from tests.helpers import broken, invoke, save_snapshot
from tests.tiny import tiny_generator, tiny_run, train_tiny
from training.config import RunConfig
from training.presets import resolve
from training.snapshots import load_networks, newest_snapshot

run_train = functools.partial(invoke, train_script.main)


def init_from(path, data, tmp_path, **changes):
    """What train.py prints before it would start a run with the weights of a snapshot."""
    from dnnlib.cli import friendly_errors

    config = tiny_run(str(data), str(tmp_path / 'run'), init_from=str(path), **changes)
    command = click.command()(friendly_errors(lambda: train_script.check_inputs(config) and None))
    return invoke(command)


def test_weights_that_do_not_fit_are_refused(finished, data, tmp_path):
    whole = newest_snapshot(finished[0])
    stage = tiny_run('', '').stage1
    assert init_from(whole, data, tmp_path).exit_code == 0
    assert init_from(whole, data, tmp_path, stage1=stage.replace(kimg=0)).exit_code == 0
    save_snapshot(tmp_path / 'D.pkl', {'D': load_networks(whole)['D']}, {})
    result = init_from(tmp_path / 'D.pkl', data, tmp_path)
    assert result.exit_code == 1 and 'D.pkl holds no generator, only: D; give' in result.output
    save_snapshot(tmp_path / 'other.pkl', {'G_ema': tiny_generator(w_dim=24, plane_channels=4, channel_max=4)}, {})
    result = init_from(tmp_path / 'other.pkl', data, tmp_path)
    assert result.exit_code == 1 and re.search(r'other.pkl fits \d+ of the \d+ tensors of the generator', result.output)


class Counting(list):
    """A set of images that counts how many are read."""

    read = 0

    def __getitem__(self, index):
        self.read += 1
        return super().__getitem__(index)


@pytest.mark.parametrize('images, most', [(5, 5), (299, 299), (599, 300), (70000, 300)])
def test_a_spread_of_a_large_set_is_checked(images, most):
    dataset = Counting(range(images))
    train_script.check_images(dataset)
    assert 0.9 * most < dataset.read <= most


def test_images_are_checked_once_for_all_processes_and_before_the_first_step(data, tmp_path, monkeypatch):
    checked = []
    monkeypatch.setattr(train_script, 'check_images', checked.append)
    config = tiny_run(str(data), str(tmp_path))
    train_script.check_inputs(config)
    assert len(checked) == 1
    monkeypatch.setenv('RANK', '1')
    train_script.check_inputs(config)
    monkeypatch.setenv('RANK', '0')
    monkeypatch.setattr(train_script, 'has_state', lambda outdir: True)
    train_script.check_inputs(config)
    assert len(checked) == 1


# ---------------------------------------------------------------------------------------------------------------------
# The script


def test_dry_run_prints_the_resolved_configuration(tmp_path):
    result = run_train(
        '--preset=ffhq256',
        '--data=absent.zip',
        '--dry-run',
        '--gpus=8',
        '--gamma=2',
        '--stage1-kimg=0',
        f'--outdir={tmp_path / "runs"}',
    )
    assert result.exit_code == 0
    config = RunConfig.from_dict(json.loads(result.stdout))
    assert config.gpus == 8 and config.stage1.kimg == 0 and config.stage2.loss.r1_gamma == config.stage2.loss.r1_gamma_patch == 2
    assert config.generator == resolve('ffhq256', '', '').generator
    assert not (tmp_path / 'runs').exists()


SURFACE = [
    option
    for option in train_script.main.params
    if option.name not in ('preset', 'data', 'outdir', 'run_id', 'run_dir', 'resume', 'dry_run')
]

SAMPLES = {
    'swap': 0.3,
    'augment': 'none',
    'near': '0.5',
    'far': '9',
    'gpus': 2,
    'batch': 16,
    'batch_gpu': 4,
    'render_resolution': 32,
    'init_from': 'x.pkl',
    'lpips_weights': 'x.pth',
    'plane_resolution': 64,
    'samples': 9,
    'state_every': '5kimg',
    'metrics': 'swd',
}

NEEDED = {
    'branch_3d=none': ['--stage2-kimg=0'],
    'plane_order': ['--aware=none'],
    'render_resolution_end': ['--stage2-kimg=0'],
    'render_growth_start': ['--stage2-kimg=0', '--render-resolution-end=128'],
    'render_growth': ['--stage2-kimg=0', '--render-resolution-end=128'],
    'far': ['--near=0.5'],
    'fresh_schedules': ['--init-from=x.pkl'],
    'metrics_every': ['--metrics=swd'],
    'detector': ['--metrics=swd'],
}  # options that make no sense alone


@pytest.mark.parametrize('option', SURFACE, ids=lambda option: option.name)
def test_every_option_reaches_the_configuration(option):
    """The option surface: each one, given a value of its own, changes what is resolved."""
    values = getattr(option.type, 'choices', None) or [SAMPLES.get(option.name, 'true' if option.type.name == 'boolean' else 7)]
    base = resolve('ffhq512', 'd', 'o').to_dict()
    resolved = []
    for value in [*values, *(['false'] if option.type.name == 'boolean' else [])]:
        needed = NEEDED.get(f'{option.name}={value}', NEEDED.get(option.name, []))
        result = run_train('--preset=ffhq512', '--data=d', '--run-dir=o', '--dry-run', f'{option.opts[0]}={value}', *needed)
        assert result.exit_code == 0, result.output
        resolved.append(json.loads(result.stdout))
    assert any(entry != json.loads(json.dumps(base)) for entry in resolved)


@pytest.mark.parametrize(
    'options, message',
    [
        (['--stage2-kimg=0', '--ablation=C'], '--ablation has no effect without stage 2'),
        (['--stage2-kimg=0', '--branch-3d=coarse'], '--branch-3d has no effect without stage 2'),
        (['--render-growth=5'], '--render-growth has no effect without --render-resolution-end'),
        (['--outdir=x', '--run-dir=o'], '--outdir has no effect where the folder of the run itself is named: leave it out'),
        (['--metrics=none', '--metrics-every=2', '--detector=x'], '--metrics-every, --detector have no effect without --metrics'),
        (['--pose-conditioning=false', '--swap=0.5'], '--swap has no effect without --pose-conditioning'),
        (
            ['--stage2-kimg=0', '--imitation=pyramid', '--patch-weight=1'],
            '--imitation, --patch-weight have no effect without stage 2',
        ),
        (['--imitation=pyramid', '--lpips-weights=x'], '--lpips-weights has no effect with --imitation=pyramid'),
    ],
)
def test_options_without_effect_are_refused(options, message):
    result = run_train('--preset=ffhq512', '--data=d', '--dry-run', *options)
    assert result.exit_code == 1 and result.output.startswith(f'Error: {message}'), result.output


def test_renders_that_super_resolution_would_not_resize_are_refused_before_training():
    assert run_train('--preset=ffhq512', '--data=d', '--dry-run', '--render-resolution=256').exit_code == 0
    result = run_train('--preset=ffhq256', '--data=d', '--dry-run', '--render-resolution=256')
    assert result.exit_code == 1 and result.output.startswith('Error: render_resolution (256) must not exceed 128')


def test_training_everything_from_the_first_image_keeps_the_ramps():
    config = json.loads(run_train('--preset=ffhq512', '--data=d', '--dry-run', '--stage1-kimg=0', '--blur-fade=123').stdout)[
        'stage2'
    ]
    assert (config['loss']['blur_fade_kimg'], config['loss']['swap_start'], config['ema_rampup']) == (123, 1.0, 0.05)


def schedules(*options):
    """(blur, beginning of the swap, ramp of the average, ADA's speed) of both stages."""
    config = json.loads(run_train('--preset=afhq512', '--data=d', '--dry-run', *options).stdout)
    return [
        (stage['loss']['blur_fade_kimg'], stage['loss']['swap_start'], stage['ema_rampup'], stage['ada_kimg'])
        for stage in (config['stage1'], config['stage2'])
    ]


def test_given_weights_need_no_ramps():
    ramps, none = (200, 1.0, 0.05, 500), (0, 0.5, None, 100)
    assert schedules() == [ramps, none]
    assert schedules('--init-from=x.pkl') == [none, none]
    assert schedules('--init-from=x.pkl', '--stage1-kimg=0')[1] == none
    assert schedules('--init-from=x.pkl', '--fresh-schedules') == [ramps, none]
    assert schedules('--init-from=x.pkl', '--fresh-schedules=true', '--stage1-kimg=0')[1] == ramps
    assert schedules('--init-from=x.pkl', '--blur-fade=7', '--swap=0.8') == [(7, 0.8, None, 100), (0, 0.8, None, 100)]
    assert (
        '--fresh-schedules is for runs with --init-from'
        in run_train('--preset=demo', '--data=d', '--dry-run', '--fresh-schedules').output
    )


def test_schedules_of_given_weights_stay_when_the_run_goes_on(data, tmp_path, finished):
    snapshot, again = newest_snapshot(finished[0]), ['--preset=demo', '--data=d', f'--run-dir={tmp_path}', '--dry-run']
    config = json.loads(run_train(*again, f'--init-from={snapshot}', '--blur-fade=7').stdout)
    (tmp_path / 'training_options.json').write_text(json.dumps(config))
    for repeated in ([], ['--tick=2'], [f'--init-from={snapshot}', '--blur-fade=7']):
        assert json.loads(run_train(*again, *repeated).stdout)['stage1'] == config['stage1']


@pytest.mark.parametrize(
    'arguments, message',
    [
        (['--preset=ffhq1024'], "Invalid value for '--preset'"),
        (['--preset=demo', '--colour=red'], 'No such option'),
        (['--preset=demo', '--batch=10', '--gpus=4'], '--batch=10 does not divide by --gpus=4'),
        (['--preset=demo', '--batch=8', '--batch-gpu=3'], '--batch-gpu=3'),
        (['--preset=demo', '--samples=4611686018427387904'], '--samples=4611686018427387904 is larger than'),
        (['--preset=demo', '--batch=12', '--batch-gpu=6'], 'minibatch statistics'),
        (['--preset=demo', '--stage1-kimg=0', '--stage2-kimg=0'], 'nothing to train'),
        (['--preset=demo', '--near=3', '--far=2'], 'below far'),
        (['--preset=demo', '--near=close'], 'neither a finite number'),
        (['--preset=demo', '--stage2-kimg=inf'], "'--stage2-kimg': inf is not in the range"),
        (['--preset=demo', '--gamma=nan'], "'--gamma': nan is not a finite number"),
        (['--preset=demo', '--far=inf'], "inf is neither a finite number nor 'auto'"),
        (['--preset=demo', '--stage1-kimg=1e300'], "'--stage1-kimg': 1e+300 is not in the range"),
        (['--preset=demo', '--tick=1e300'], "'--tick': 1e+300 is not in the range"),
        (['--preset=demo', '--timeout=1e300'], "'--timeout': 1e+300 is not in the range"),
        (['--preset=demo', '--data=absent.zip'], 'absent.zip'),
        (['--preset=ffhq512'], 'choose a --preset of 32 pixels'),
        (['--preset=demo', '--init-from=BROKEN'], 'is no snapshot'),
        (['--preset=demo', '--init-from=absent.pkl'], 'absent.pkl'),
        (['--preset=demo', '--imitation=lpips', '--lpips-weights=absent.pth'], 'absent.pth'),
        (['--preset=demo', '--imitation=lpips', '--lpips-weights=BROKEN'], "holds no weights of torchvision's VGG-16"),
    ],
)
def test_bad_input_is_one_line_and_leaves_nothing(arguments, message, data, tmp_path, monkeypatch):
    arguments = [a.replace('BROKEN', str(broken(tmp_path / 'broken.pkl'))) for a in arguments]
    defaults = [a for a in (f'--data={data}', f'--outdir={tmp_path / "runs"}') if not any(b.startswith(a[:6]) for b in arguments)]
    if '--preset=demo' in arguments:
        monkeypatch.setattr(train_script, 'resolve', lambda *a: tiny_run(a[1], a[2]))
    result = run_train(*arguments, *defaults)
    assert result.exit_code != 0 and message in result.output
    assert result.exception is None or isinstance(result.exception, SystemExit)
    assert not (tmp_path / 'runs').exists()


def test_no_option_takes_numbers_that_are_not_finite():
    for option in train_script.main.params:
        for value in ('inf', 'nan', '1e400'):
            if isinstance(option.type, click.types.FloatParamType):
                result = run_train(f'{option.opts[0]}={value}')
                assert result.exit_code == 2 and f"Invalid value for '{option.opts[0]}'" in result.output


@pytest.mark.parametrize(
    'part, field',
    [
        ('generator.rendering', 'far'),
        ('generator.rendering', 'camera_pivot'),
        ('stage1', 'kimg'),
        ('stage2.loss', 'r1_gamma'),
        ('optimizer', 'g_lr'),
        ('', 'tick_kimg'),
    ],
)
@pytest.mark.parametrize('number', [float('inf'), float('nan')])
def test_saved_numbers_must_be_finite(part, field, number):
    values = tiny_run('d', 'o').to_dict()
    inner = values
    for name in filter(None, part.split('.')):
        inner = inner[name]
    inner[field] = (number, 0.0, 0.0) if field == 'camera_pivot' else number
    with pytest.raises(UserError, match=f'{field} must be finite'):
        RunConfig.from_dict(values)


@pytest.mark.parametrize(
    'part, changes, message',
    [
        ('generator', dict(channel_base=8), "generator's channel_base"),
        ('discriminator', dict(channel_max=0), "discriminator's channel_base .* channel_max at least 1"),
        ('discriminator', dict(minibatch_group=0), 'minibatch_group must be at least 1'),
        ('generator', dict(plane_order='xyz'), "plane_order: 'xyz' is not one of"),
        ('generator.rendering', dict(precision='fp8'), "precision: 'fp8' is not one of"),
        ('generator.rendering', dict(depth_samples=3), 'depth_samples: 3 is not in the range'),
        ('stage2.loss', dict(swap_end=1.5), 'swap_end: 1.5 is not in the range'),
        ('stage1', dict(kimg=2e9), 'kimg: 2000000000.0 is not in the range'),
        ('', dict(metrics_every=0), 'metrics_every: 0 is not in the range'),
    ],
)
def test_saved_values_must_be_what_the_options_take(part, changes, message):
    values = tiny_run('d', 'o').to_dict()
    inner = values
    for name in filter(None, part.split('.')):
        inner = inner[name]
    inner.update(changes)
    with pytest.raises(UserError, match=message):
        RunConfig.from_dict(values)


def with_a_broken_image(data, path):
    """A copy of a data set in which the last image is damaged."""
    with zipfile.ZipFile(data) as source, zipfile.ZipFile(path, 'w') as target:
        names = source.namelist()
        damaged = [name for name in names if name.endswith('.png')][-1]
        for name in names:
            content = source.read(name)
            target.writestr(name, content[: len(content) // 2] if name == damaged else content)
    return path, damaged


def test_a_broken_image_is_found_before_anything_is_written(data, tmp_path, monkeypatch):
    monkeypatch.setattr(train_script, 'resolve', lambda *a: tiny_run(a[1], a[2]))
    path, name = with_a_broken_image(data, tmp_path / 'broken.zip')
    result = run_train('--preset=demo', f'--data={path}', f'--run-dir={tmp_path / "run"}')
    assert result.exit_code == 1 and name in result.output and not (tmp_path / 'run').exists()


@pytest.mark.parametrize('processes, workers', [(1, 1), (2, 0)])
def test_a_broken_image_met_in_training_is_one_line(processes, workers, data, tmp_path):
    path, name = with_a_broken_image(data, tmp_path / 'broken.zip')
    with pytest.raises(UserError) as caught:
        train_tiny(
            path,
            tmp_path / 'run',
            processes=processes,
            gpus=processes,
            workers=workers,
            stage1=tiny_run('', '').stage1.replace(kimg=0.1),
        )
    assert name in str(caught.value) and 'Traceback' not in str(caught.value)
    assert not multiprocessing.active_children()  # a helper that stays would keep the process from ending


def test_an_unwritable_run_folder_is_named(data, tmp_path, monkeypatch):
    monkeypatch.setattr(train_script, 'resolve', lambda *a: tiny_run(a[1], a[2]))
    (tmp_path / 'file').write_text('')
    result = run_train('--preset=demo', f'--data={data}', f'--outdir={tmp_path / "file"}')
    assert result.exit_code == 1 and 'cannot be written' in result.output


def test_a_run_folder_in_use_is_refused(data, tmp_path, monkeypatch):
    monkeypatch.setattr(train_script, 'resolve', lambda *a: tiny_run(a[1], a[2]))
    (tmp_path / 'mine').mkdir()
    (tmp_path / 'mine' / 'keep.txt').write_text('precious')
    result = run_train('--preset=demo', f'--data={data}', f'--run-dir={tmp_path / "mine"}')
    assert result.exit_code != 0 and 'not empty' in result.output
    assert [path.name for path in (tmp_path / 'mine').iterdir()] == ['keep.txt']


# ---------------------------------------------------------------------------------------------------------------------
# Snapshots


def test_under_torchrun_the_processes_are_counted(monkeypatch):
    monkeypatch.setenv('WORLD_SIZE', '4')
    monkeypatch.setenv('RANK', '0')
    result = run_train('--preset=ffhq512', '--data=d', '--run-id=x', '--dry-run')
    assert json.loads(result.stdout)['gpus'] == 4
    assert (
        'torchrun started 4 processes' in run_train('--preset=ffhq512', '--data=d', '--run-id=x', '--dry-run', '--gpus=8').output
    )
    assert 'name the run' in run_train('--preset=ffhq512', '--data=d', '--dry-run').output
