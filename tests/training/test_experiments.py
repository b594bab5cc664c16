"""Every experiment of the paper's tables 2 and 3, and EG3D, trains with exactly the networks and losses that it should have."""

import json
import os
from dataclasses import dataclass

import click.testing
import pytest
import torch

import train
from tests.tiny import tiny_config, tiny_run
from training.config import ConfigError
from training.losses import render_resolution
from training.networks.generator import Generator
from training.presets import ABLATIONS, PRESETS, differences, experiment, generator_config, resolve, with_options
from training.state import build_state
from training.step import training_step

BATCH = 4


@dataclass
class Experiment:
    """What stage 2 (EG3D: stage 1) of a row has. stream: where 3D-aware blocks are beside E's own."""

    options: dict
    stream: bool = True
    s3d: bool = True
    imitation: bool = True
    d3d: bool = True
    branch_3d: bool = True
    stage: int = 2


EXPERIMENTS = {
    'A': Experiment(ABLATIONS['A'], s3d=False, imitation=False, d3d=False),
    'B': Experiment(ABLATIONS['B'], s3d=False, d3d=False),
    'C': Experiment(ABLATIONS['C'], d3d=False),
    'D': Experiment(ABLATIONS['D'], imitation=False),
    'E': Experiment(ABLATIONS['E']),
    'none': Experiment(dict(aware='none'), stream=False),
    'latent': Experiment(dict(aware='latent'), stream=False),
    'triplane': Experiment(dict(aware='triplane')),
    'stream': Experiment(dict(aware='stream')),
    'eg3d': Experiment(
        dict(aware='none', branch_3d='none', plane_order='eg3d', stage2_kimg=0.0),
        stream=False,
        s3d=False,
        imitation=False,
        d3d=False,
        branch_3d=False,
        stage=1,
    ),
}


def small(options):
    """The demo preset at a small size with the options of an experiment."""
    config = tiny_run('data', 'out', batch=BATCH)
    return with_options(config.replace(stage2=config.stage2.replace(kimg=1.0)), options)


def step_of(config, stage, steps=1):
    """The state after some steps on random images, what the last one noted, and the names of the tensors that changed."""
    torch.manual_seed(0)
    size = config.generator.image_resolution
    c = torch.cat([torch.eye(4).flatten(), torch.tensor([4.26, 0, 0.5, 0, 4.26, 0.5, 0, 0, 1])]).repeat(BATCH, 1)
    c[:, 11] = -2.7
    state = build_state(config, stage, torch.device('cpu'), c)
    before = {(name, key): value.clone() for name, weights in state.weights().items() for key, value in weights.items()}
    for _ in range(steps):
        seen = training_step(state, torch.randint(0, 256, (BATCH, 3, size, size), dtype=torch.uint8), c)
    after = {(name, key): value for name, weights in state.weights().items() for key, value in weights.items()}
    return state, seen, {place for place, value in after.items() if not torch.equal(value, before[place])}


def learnable(state):
    """(network, parameter) of what should learn: all but the strengths of S2D's noise, which no preset adds."""
    names = {(network, key) for network in state.optimizers for key, _ in state.networks[network].named_parameters()}
    return {
        (network, key) for network, key in names if not (key.startswith('superresolution.') and key.endswith('noise_strength'))
    }


@pytest.mark.parametrize('name', EXPERIMENTS)
def test_an_experiment_has_its_networks_its_losses_and_its_gradients(name):
    row = EXPERIMENTS[name]
    state, seen, changed = step_of(small(row.options), row.stage)
    G, D_patch = state.networks['G'], state.networks.get('D_patch')
    assert bool(G.backbone.stream) == row.stream
    assert (G.residual is not None) == row.s3d
    assert G.config.has_3d_branch == row.branch_3d
    assert (D_patch is not None) == row.d3d == ('D_patch' in state.optimizers)
    losses = {'loss/G/adversarial', 'loss/G/density', 'loss/D', 'loss/D/r1_penalty'}
    losses |= {'loss/G/imitation'} if row.imitation else set()
    losses |= {'loss/G/patch', 'loss/D_patch', 'loss/D_patch/r1_penalty'} if row.d3d else set()
    assert {key for key in seen if key.startswith('loss/')} == losses
    assert learnable(state) <= changed, 'every parameter that there is learns'


@pytest.mark.parametrize('name', [name for name, row in EXPERIMENTS.items() if row.branch_3d])
def test_the_3d_branch_renders_the_planes_of_its_experiment(name):
    torch.manual_seed(0)
    config = small(EXPERIMENTS[name].options)
    G = Generator(config.generator).requires_grad_(False)
    z, c = (
        torch.randn(1, G.config.z_dim),
        torch.cat([torch.eye(4).flatten(), torch.tensor([4.26, 0, 0.5, 0, 4.26, 0.5, 0, 0, 1])])[None],
    )
    c[:, 11] = -2.7
    options = dict(sampling='deterministic', noise_mode='none')
    image = G(z, c, branch='3d', **options)['image']
    assert image.shape[-1] == G.config.image_resolution
    coarse = G(z, c, branch='coarse', render_resolution=G.config.image_resolution, **options)['image']
    assert torch.equal(image, coarse) != EXPERIMENTS[name].s3d


def test_imitation_teaches_the_coarse_planes_in_row_b():
    """The 2D branch is the target, and E learns through the planes that the 3D branch renders."""
    with_imitation, without = (step_of(small(ABLATIONS[row]), 2)[0].networks['G'].backbone.state_dict() for row in 'BA')
    assert any(not torch.equal(value, without[key]) for key, value in with_imitation.items())


def test_every_row_differs_from_every_other():
    for names in ('ABCDE', ('none', 'latent', 'triplane', 'stream')):
        outputs = [step_of(small(EXPERIMENTS[name].options), 2)[0].networks['G'].state_dict() for name in names]
        for first, one in enumerate(outputs):
            for other in outputs[:first]:
                assert one.keys() != other.keys() or any(not torch.equal(one[key], other[key]) for key in one)


@pytest.mark.parametrize('aware, size', [('none', 29.0), ('latent', 111.7), ('triplane', 32.6), ('stream', 32.5)])
def test_parameters_of_table_3(aware, size):
    """Of E and the mapping network at 512. The paper's table rounds; within 0.1 M."""
    with torch.device('meta'):
        G = Generator(generator_config(PRESETS['ffhq512'], aware=aware))
    assert G.count_plane_parameters() / 1e6 == pytest.approx(size, abs=0.1)


@pytest.mark.parametrize('name', EXPERIMENTS)
def test_a_result_says_which_rows_of_the_paper_it_belongs_to(name):
    rows = {'E': ('E', 'stream'), 'stream': ('E', 'stream'), 'eg3d': (None, 'none')}
    expected = rows.get(name, (name, None) if name in ABLATIONS else (None, name))
    found = experiment(small(EXPERIMENTS[name].options), EXPERIMENTS[name].stage)
    assert (found['table2'], found['table3']) == expected
    assert json.loads(json.dumps(found)) == found


@pytest.mark.parametrize(
    'options, rows',
    [
        (dict(ABLATIONS['D'], aware='none'), (None, None)),  # of both tables
        (dict(branch_3d='coarse'), (None, None)),  # with D3D, which no row has without S3D
        (dict(pose_conditioning=False, imitation='pyramid'), ('E', 'stream')),  # notes beside the row
    ],
)
def test_only_what_a_table_is_about_decides_on_the_row(options, rows):
    found = experiment(with_options(resolve('ffhq256', 'data', 'out'), options), 2)
    assert (found['table2'], found['table3']) == rows and found['differences']


def test_after_stage_1_a_run_is_no_row_of_table_2():
    found = experiment(resolve('ffhq256', 'data', 'out'), 1)
    assert (found['table2'], found['table3'], found['differences']) == (None, 'stream', ['no 3D branch (stage 1 alone)'])


# EG3D


@pytest.mark.parametrize('name', [name for name in PRESETS if name.startswith('eg3d-')])
def test_an_eg3d_preset_trains_at_a_small_size(name):
    """All that is EG3D's stays; sizes are the tests'."""
    full = resolve(name, 'data', 'out')
    own = dict(
        aware=full.generator.aware,
        branch_3d=full.generator.branch_3d,
        plane_order=full.generator.plane_order,
        render_resolution=8,
        image_resolution=32,
        sr_input_resolution=16,
    )
    config = tiny_run(
        'data',
        'out',
        batch=BATCH,
        generator=tiny_config(**own),
        augment=full.augment,
        stage1=full.stage1,
        stage2=full.stage2,
        render_resolution_end=full.render_resolution_end and 16,
        render_growth_start_kimg=0.004,
        render_growth_kimg=0.008,
    )
    state, seen, changed = step_of(config, 1, steps=4)
    assert not state.networks['G'].backbone.stream and state.networks['G'].residual is None and 'D_patch' not in state.networks
    assert {key for key in seen if key.startswith('loss/')} == {'loss/G/adversarial', 'loss/D'}
    assert learnable(state) <= changed
    grown = 16 if full.render_resolution_end else 8
    assert [state.networks[which].config.render_resolution for which in ('G', 'G_ema')] == [grown, grown]


def test_numbers_of_the_eg3d_presets():
    ffhq, afhq, cars = (resolve(f'eg3d-{name}', 'data', 'out') for name in ('ffhq512', 'afhq512', 'shapenet128'))
    assert [config.stage1.loss.r1_gamma for config in (ffhq, afhq, cars)] == [1, 5, 0.3]
    assert [config.stage1.loss.swap_end for config in (ffhq, afhq, cars)] == [0.5, 0.8, 0.5]
    assert [config.augment for config in (ffhq, afhq, cars)] == ['none', 'ada', 'none']
    assert all(config.generator.plane_axes == ('xy', 'xz', 'zx') for config in (ffhq, afhq, cars))
    assert with_options(ffhq, dict(plane_order='mimic3d')).generator.plane_axes == ('xy', 'yz', 'zx')
    assert [render_resolution(ffhq, 1000 * kimg) for kimg in (0, 25000, 25500, 26000, 27500)] == [64, 64, 96, 128, 128]
    assert render_resolution(cars, 25e6) == 64


def test_a_growing_render_is_for_stage_1_alone():
    with pytest.raises(ConfigError, match='--render-resolution-end is for stage 1 alone'):
        with_options(resolve('ffhq512', 'data', 'out'), dict(render_resolution_end=128))


def test_a_stage_2_needs_a_3d_branch():
    with pytest.raises(ConfigError, match='--branch-3d=none: give --stage2-kimg=0'):
        with_options(resolve('eg3d-ffhq512', 'data', 'out'), dict(stage2_kimg=5.0))


def test_alignment_needs_the_planes_it_is_defined_for():
    with pytest.raises(ConfigError, match='--plane-order=eg3d has no'):
        with_options(resolve('ffhq512', 'data', 'out'), dict(plane_order='eg3d'))


# The command line


def dry_run(*options):
    result = click.testing.CliRunner().invoke(train.main, ['--data=data', '--dry-run', *options])
    assert result.exit_code == 0, result.output
    return json.loads(result.stdout), result.stderr.strip()


@pytest.mark.parametrize(
    'options, line',
    [
        (['--ablation=A'], 'the 3D branch renders the coarse planes, no S3D; no imitation; no patch discriminator D3D'),
        (['--ablation=B'], 'the 3D branch renders the coarse planes, no S3D; no patch discriminator D3D'),
        (['--ablation=C'], 'no patch discriminator D3D'),
        (['--ablation=D'], 'no imitation'),
        (['--aware=none'], 'no 3D-aware convolutions'),
        (['--aware=latent'], '3D-aware convolutions in E itself, no stream'),
        (['--aware=triplane'], "3D-aware convolutions in E's output stream, no stream beside it"),
        (
            ['--ablation=D', '--aware=none', '--stage1-kimg=0'],
            'no 3D-aware convolutions; no imitation; both branches from the first',
        ),
    ],
)
def test_a_dry_run_says_what_differs_from_the_full_method(options, line):
    config, said = dry_run('--preset=ffhq256', *options)
    assert said.startswith(f'Differs from the full method: {line}') and '\n' not in said
    assert config['preset'] == 'ffhq256'


def test_the_full_method_says_so():
    assert dry_run('--preset=ffhq256')[1] == dry_run('--preset=ffhq256', '--ablation=E')[1] == 'The full method of the paper.'
    assert not differences(resolve('afhq512', 'data', 'out'))


@pytest.mark.parametrize('row', ABLATIONS)
@pytest.mark.parametrize('again', ABLATIONS)
def test_a_run_goes_on_as_the_row_that_it_is(row, again, tmp_path):
    config, _ = dry_run('--preset=ffhq256', f'--ablation={row}')
    (tmp_path / 'training_options.json').write_text(
        json.dumps(config | {'data': os.path.abspath('data'), 'outdir': str(tmp_path)})
    )
    result = click.testing.CliRunner().invoke(train.main, [f'--resume={tmp_path}', '--dry-run', f'--ablation={again}'])
    assert (result.exit_code == 0) == (row == again), result.output
    assert row == again or 'would change the run' in result.output


def test_an_option_wins_over_the_ablation():
    config, _ = dry_run('--preset=ffhq256', '--ablation=D', '--imitation=pyramid')
    assert config['stage2']['loss']['imitation'] == 'pyramid'
