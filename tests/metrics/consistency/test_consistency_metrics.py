"""PSNR_mv, SSIM_mv and reproj: views, runs that are interrupted, errors, and the order of their scores."""

import dataclasses
import functools
import json
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

import calc_metrics
from dnnlib.errors import UserError
from metrics import results
from metrics.consistency import evaluation
from metrics.consistency.evaluation import ViewSource, split_views
from metrics.consistency.recipes import fast
from metrics.consistency.reprojection import neighbour_psnr, project, warp
from metrics.consistency.scoring import psnr
from metrics.consistency.trainer import fit
from metrics.consistency.views import (
    Views,
    box_of_cameras,
    folder_views,
    generated_views,
    protocol_angles,
    subject_folders,
    view_rays,
)
from tests.helpers import FOX, assert_close, assert_one_clear_line, invoke, save_snapshot, succeed
from tests.metrics.consistency import scenes
from tests.tiny import tiny_generator
from training.data.camera_checks import CameraError
from training.rendering.cameras import split_label, view_label

run = functools.partial(invoke, calc_metrics.main)
score_with = functools.partial(succeed, calc_metrics.main)

QUICK = ['--fit-steps=2', '--fit-rays=16']


@pytest.fixture
def snapshot(tmp_path):
    path = tmp_path / 'network.pkl'
    save_snapshot(path, {'G_ema': tiny_generator()}, {})
    return path


def record(folder, metric):
    lines = (folder / f'metric-{metric}.jsonl').read_text().splitlines()
    assert len(lines) == 1
    return json.loads(lines[0])


# ---------------------------------------------------------------------------------------------------------------------
# Views


def test_protocol_angles():
    yaw, pitch = protocol_angles(5, 0.4)
    assert_close(yaw, torch.tensor([-0.4, -0.2, 0, 0.2, 0.4]))
    assert pitch.tolist() == [0] * 5
    _, pitch = protocol_angles(100, 0.4, 0.2)
    assert pitch.abs().max() <= 0.2 and pitch.histc(4, -0.2, 0.2).min() >= 23


def test_generated_views_are_the_generators():
    G = tiny_generator().eval()
    labels = view_label(G.config, *protocol_angles(3, 0.4))
    views = generated_views(G, 5, '2d', labels)
    again = generated_views(G, 5, '2d', labels[[2, 0]])
    assert views.images.shape == (3, 32, 32, 3) and views.images.dtype == torch.uint8 and views.depth.shape == (3, 8, 8)
    assert again.images.equal(views.images[[2, 0]]), 'a view depends on its camera and seed alone'
    assert views.box_size == G.config.rendering.box_size


def test_stored_views_come_back(tmp_path):
    views = scenes.render(scenes.sphere, scenes.frontal(3), 16)
    scenes.save_views(views, tmp_path / 'views')
    again = folder_views(tmp_path / 'views', box_size=scenes.BOX)
    assert again.images.equal(views.images) and again.box_size == scenes.BOX
    assert_close(again.labels, views.labels, 1e-6)


def test_box_of_cameras_is_that_of_the_presets():
    label = view_label(tiny_generator().config, torch.linspace(-0.4, 0.4, 5))
    assert box_of_cameras(label) == pytest.approx(1, abs=0.02)


def test_transforms_are_converted(tmp_path):
    """OpenGL axes, pixels, images that are not square: a ray through a known point must pass it."""
    poses = split_label(scenes.around(6))[0].double().numpy()
    width, height, focal = 24, 40, 60.0
    frames = []
    for index, pose in enumerate(poses):
        Image.new('RGB', (width, height), (index, 0, 0)).save(tmp_path / f'{index}.png')
        frames.append({'file_path': f'{index}.png', 'transform_matrix': (pose @ np.diag([1, -1, -1, 1])).tolist()})
    content = {'fl_x': focal, 'fl_y': focal, 'cx': 12, 'cy': 20, 'w': width, 'h': height, 'frames': frames}
    (tmp_path / 'transforms.json').write_text(json.dumps(content))
    views = folder_views(tmp_path, size=(20, 12))
    assert views.size == (20, 12) and views.images[:, 0, 0, 0].tolist() == list(range(6))
    origins, directions = view_rays(views.labels, (1, 1))  # the middle of the picture looks at the common centre
    nearest = origins - (origins * directions).sum(dim=-1, keepdim=True) * directions
    assert nearest.norm(dim=-1).max() < 1e-3
    relative = torch.linalg.inv(split_label(views.labels)[0][0].double()) @ split_label(views.labels)[0][3].double()
    expected = torch.linalg.inv(torch.from_numpy(poses[0])) @ torch.from_numpy(poses[3])
    assert_close(relative[:3, :3], expected[:3, :3], 1e-5)
    assert views.labels[0, [16, 20]].tolist() == pytest.approx([focal / width, focal / height])


def test_subject_folders(tmp_path):
    views = scenes.render(scenes.sphere, scenes.frontal(2), 12, supersampling=1)
    for name in ('b', 'a'):
        scenes.save_views(views, tmp_path / name)
    (tmp_path / 'empty').mkdir()
    assert [folder.name for folder in subject_folders(tmp_path)] == ['a', 'b']
    assert subject_folders(tmp_path / 'a') == [tmp_path / 'a']


def bad_views(box_size=scenes.BOX, **changes):
    views = scenes.render(scenes.sphere, scenes.frontal(2), 12, supersampling=1)
    return dataclasses.replace(
        views, box_size=box_size, **{name: change(getattr(views, name).clone()) for name, change in changes.items()}
    )


def test_cameras_that_are_none():
    def stretched(labels):
        labels[1, 0] *= 2
        return labels

    def mirrored(labels):
        labels[:, [0, 4, 8]] *= -1
        return labels

    def unknown(labels):
        labels[0, 3] = torch.nan
        return labels

    def flat(labels):
        labels[1, 16] = 0
        return labels

    for box_size in (0.0, float('nan'), float('inf')):
        with pytest.raises(UserError, match='give its side in world units with --box'):
            bad_views(box_size)
    for change, message in (
        (flat, 'view 1: its focal length is not positive'),
        (stretched, 'view 1: .* no rotation'),
        (mirrored, 'determinant -1'),
        (unknown, 'not finite'),
    ):
        with pytest.raises(CameraError, match=message):
            bad_views(labels=change)


def test_view_source():
    convert = ViewSource().convert
    assert convert('30', None, None) == 30 and convert('folder', None, None) == Path('folder').absolute()


def test_split_views():
    assert split_views(3, 0) == ([0, 1, 2], [0, 1, 2])
    assert split_views(5, 2) == ([0, 2, 4], [1, 3])
    for held_out in (1, 9):
        with pytest.raises(UserError, match='--held-out'):
            split_views(4, held_out)


# ---------------------------------------------------------------------------------------------------------------------
# The command


def test_command_scores_both_branches(snapshot, tmp_path):
    out = tmp_path / 'out'
    score_with(
        '--metrics=psnr_mv,ssim_mv,reproj', f'--network={snapshot}', '--subjects=2', '--views=3', f'--outdir={out}', *QUICK
    )
    lines = [json.loads(line) for line in (out / 'metric-psnr_mv.jsonl').read_text().splitlines()]
    assert [line['branch'] for line in lines] == ['2d', '3d']
    for line in lines:
        protocol = line['protocol']
        assert protocol['yaw_range'] == 0.4 and protocol['views'] == 3 and protocol['recipe_changes'] == {'steps': 2, 'rays': 16}
        assert line['value'] == pytest.approx(sum(line['details']['per_subject'].values()) / 2)
        folder = out / line['details']['folder']
        assert protocol['recipe_at_256_pixels']['steps'] == 2
        written = {f'seed{number:04d}.{suffix}' for number in (0, 1) for suffix in ('png', 'json')}
        assert {path.name for path in folder.iterdir()} == {'page.png', *written}
        assert Image.open(folder / 'page.png').size == (4 * 32, 2 * 32)
    assert {json.loads(line)['branch'] for line in (out / 'metric-reproj.jsonl').read_text().splitlines()} == {'2d', '3d'}


def test_interrupted_run_goes_on(snapshot, tmp_path, monkeypatch):
    command = [
        '--metrics=psnr_mv',
        f'--network={snapshot}',
        '--subjects=2',
        '--views=3',
        '--branch=3d',
        f'--outdir={tmp_path}',
        *QUICK,
    ]
    fitted = []

    def broken_off(views, *arguments):
        fitted.append(views.name)
        if len(fitted) == 2:
            raise KeyboardInterrupt
        return fit(views, *arguments)

    monkeypatch.setattr(evaluation, 'fit', broken_off)
    assert run(*command).exit_code != 0
    score_with(*command)
    assert fitted == ['seed 0', 'seed 1', 'seed 1']
    score_with(*command, '--fit-steps=3')
    assert fitted[3:] == ['seed 0', 'seed 1'], 'another protocol starts anew'


def test_a_subject_that_fails_stops_no_other(snapshot, tmp_path, monkeypatch):
    def failing(views, *arguments):
        if views.name == 'seed 0':
            raise UserError('seed 0: the reconstruction diverged')
        return fit(views, *arguments)

    monkeypatch.setattr(evaluation, 'fit', failing)
    command = [
        '--metrics=psnr_mv',
        f'--network={snapshot}',
        '--subjects=2',
        '--views=3',
        '--branch=3d',
        f'--outdir={tmp_path}',
        *QUICK,
    ]
    assert_one_clear_line(run(*command), '1 of 2 subjects could not be scored; seed 0: the reconstruction diverged')
    (folder,) = tmp_path.glob('consistency-*')
    assert (folder / 'seed0001.json').exists()
    monkeypatch.setattr(evaluation, 'fit', fit)
    score_with(*command)


@pytest.mark.slow
def test_two_processes_share_the_subjects(snapshot, tmp_path):
    command = ['--metrics=psnr_mv,reproj', f'--network={snapshot}', '--subjects=3', '--views=2', '--branch=3d', *QUICK]
    score_with(*command, f'--outdir={tmp_path / "one"}')
    score_with(*command, f'--outdir={tmp_path / "two"}', '--gpus=2')
    for metric in ('psnr_mv', 'reproj'):
        one, two = (record(tmp_path / name, metric) for name in ('one', 'two'))
        assert (one['protocol'], one['details'], one['value']) == (two['protocol'], two['details'], two['value'])


def test_stored_views_are_scored(tmp_path):
    views = scenes.render(scenes.sphere, scenes.frontal(4), 16)
    scenes.save_views(views, tmp_path / 'views')
    score_with(
        '--metrics=psnr_mv',
        f'--views={tmp_path / "views"}',
        f'--outdir={tmp_path / "out"}',
        '--background=white',
        '--held-out=2',
        '--box=1',
        '--view-size=14x12',
        '--meshes',
        *QUICK,
    )
    found = record(tmp_path / 'out', 'psnr_mv')
    folder = tmp_path / 'out' / found['details']['folder']
    subject = json.loads((folder / 'views.json').read_text())
    assert subject['scored_views'] == [1, 3] and subject['size'] == [12, 14] and subject['box_size'] == 1
    assert (folder / 'views.ply').exists() and found['label'] == 'views'


def test_meshes_can_be_asked_for_later(tmp_path):
    scenes.save_views(scenes.render(scenes.sphere, scenes.frontal(4), 16), tmp_path / 'views')
    command = ['--metrics=psnr_mv', f'--views={tmp_path / "views"}', f'--outdir={tmp_path / "out"}', '--held-out=3', *QUICK]
    score_with(*command)
    score_with(*command, '--meshes')
    assert len(list(tmp_path.glob('out/*/views.ply'))) == 1


def test_subjects_keep_their_names(tmp_path):
    for name in ('chair.1', 'chair.2'):
        scenes.save_views(scenes.render(scenes.sphere, scenes.frontal(3), 16), tmp_path / 'chairs.v1' / name)
    score_with('--metrics=psnr_mv', f'--views={tmp_path / "chairs.v1"}', f'--outdir={tmp_path / "out"}', *QUICK)
    found = record(tmp_path / 'out', 'psnr_mv')
    assert list(found['details']['per_subject']) == ['chair.1', 'chair.2'] and found['label'] == 'chairs.v1'


def test_the_folder_one_stands_in_is_scored(tmp_path, monkeypatch):
    scenes.save_views(scenes.render(scenes.sphere, scenes.frontal(3), 16), tmp_path / 'mine')
    monkeypatch.chdir(tmp_path / 'mine')
    assert_one_clear_line(run('--metrics=psnr_mv', '--views=.', *QUICK), '--outdir=. lies in --views=')
    score_with('--metrics=psnr_mv', '--views=.', '--outdir=../out', *QUICK)
    assert record(tmp_path / 'out', 'psnr_mv')['label'] == 'mine'


def test_snapshots_compete(tmp_path):
    """Results of other weights under the same protocol are rivals: which snapshot is the best depends on it."""
    G = tiny_generator()
    for name in ('first', 'second'):
        with torch.no_grad():
            G.decoder.output.bias += 0.1
        save_snapshot(tmp_path / f'{name}.pkl', {'G_ema': G}, {})
        score_with(
            '--metrics=psnr_mv,reproj',
            f'--network={tmp_path / name}.pkl',
            '--branch=3d',
            '--subjects=1',
            '--views=2',
            f'--outdir={tmp_path / "out"}',
            *QUICK,
        )
    for metric in ('psnr_mv', 'reproj'):
        first, second = list(results.read_file(tmp_path / 'out' / f'metric-{metric}.jsonl'))
        assert first['protocol'] == second['protocol'] and first['details']['content'] != second['details']['content']
        assert not results.is_best({**second, 'value': first['value'] - 1}, [first])
    assert len(list((tmp_path / 'out').glob('consistency-*'))) == 2, 'other weights are fitted anew'


def test_a_network_with_stored_views_is_one_clear_line(snapshot, tmp_path):
    scenes.save_views(scenes.render(scenes.sphere, scenes.frontal(3), 16), tmp_path / 'views')
    assert_one_clear_line(
        run(
            '--metrics=psnr_mv', f'--network={snapshot}', f'--views={tmp_path / "views"}', f'--outdir={tmp_path / "out"}', *QUICK
        ),
        'exclude each other',
    )


@pytest.mark.parametrize(
    'arguments, message',
    [(['--held-out=9'], '--held-out=9 leaves'), (['--seed=4294967295', '--subjects=2'], 'choose a smaller --seed')],
)
def test_bad_options_are_one_clear_line(snapshot, tmp_path, arguments, message):
    assert_one_clear_line(
        run(
            '--metrics=psnr_mv',
            f'--network={snapshot}',
            '--branch=3d',
            f'--outdir={tmp_path}',
            '--subjects=1',
            '--views=2',
            *QUICK,
            *arguments,
        ),
        message,
    )


@pytest.mark.parametrize(
    'option',
    [
        *('--yaw=nan', '--pitch=inf', '--box=nan', '--trunc=nan', '--skip=nan'),
        *('--subjects=0', '--views=1', '--fit-rays=0', '--recipe=x'),
    ],
)
def test_values_out_of_range_are_refused(snapshot, option):
    result = run('--metrics=psnr_mv', f'--network={snapshot}', option)
    assert result.exit_code == 2 and option.split('=')[0] in result.output


def test_images_without_cameras_are_one_clear_line(tmp_path):
    result = run('--metrics=psnr_mv', f'--images={tmp_path}', f'--outdir={tmp_path}')
    assert_one_clear_line(result, 'give --network, or --views=DIR')


def test_bad_folders_are_one_clear_line(tmp_path):
    def score(folder):
        return run('--metrics=psnr_mv', f'--views={folder}', f'--outdir={tmp_path / "out"}', *QUICK)

    assert_one_clear_line(score('nowhere'), 'nowhere does not exist: give a folder')
    (tmp_path / 'empty').mkdir()
    assert_one_clear_line(score(tmp_path / 'empty'), 'holds no subject')
    views = scenes.render(scenes.sphere, scenes.frontal(2), 12, supersampling=1)
    scenes.save_views(views.subset([0]), tmp_path / 'single')
    assert_one_clear_line(score(tmp_path / 'single'), 'single has 1 view')
    scenes.save_views(views, tmp_path / 'lost')
    (tmp_path / 'lost' / 'view001.png').unlink()
    assert_one_clear_line(score(tmp_path / 'lost'), '1 images that dataset.json names do not exist, first view001.png')
    scenes.save_views(views, tmp_path / 'garbled')
    (tmp_path / 'garbled' / 'dataset.json').write_text('{"labels": [["view000.png", [1, 2]], ["view001.png", [3]]]}')
    assert_one_clear_line(score(tmp_path / 'garbled'), 'is not a list of 25 finite numbers')


def test_views_that_are_not_numbers_are_one_clear_line(tmp_path):
    G = tiny_generator()
    with torch.no_grad():
        G.decoder.output.bias[0] = torch.nan
    save_snapshot(tmp_path / 'broken.pkl', {'G_ema': G}, {})
    for metric, options in (('psnr_mv', QUICK), ('reproj', ())):
        assert_one_clear_line(
            run(
                f'--metrics={metric}',
                f'--network={tmp_path / "broken.pkl"}',
                '--branch=3d',
                '--subjects=1',
                '--views=2',
                f'--outdir={tmp_path}',
                *options,
            ),
            'not finite',
        )


# ---------------------------------------------------------------------------------------------------------------------
# Reprojection


def test_projection_undoes_rays():
    label = scenes.around(4)[1:2]  # turned and raised: without either, its rotation would be its own inverse
    origins, directions = (x[0] for x in view_rays(label, (4, 6)))
    distance = torch.linspace(0.5, 3, 24)
    position, found, in_front = project(label[0], origins + directions * distance[:, None])
    assert_close(found, distance, 1e-5)
    assert in_front.all() and not project(label[0], origins - directions)[2].any()
    assert_close(position[7], torch.tensor([1.5 / 6, 1.5 / 4]), 1e-5)


def test_consistent_views_reproject():
    views = scenes.render(scenes.sphere, scenes.frontal(5), 96)
    scores, shares = neighbour_psnr(views)
    assert scores.shape == (8,) and scores.min() > 27 and 0.2 < shares.min() and shares.max() < 0.5
    warped, visible = warp(views, 1, 2)
    shown = views.images[2].float() / 255
    unmoved = views.images[1].float() / 255
    assert psnr(warped[visible][None], shown[visible][None]) > psnr(unmoved[visible][None], shown[visible][None]) + 5


def test_hidden_pixels_are_left_out():
    views = scenes.render(scenes.box, scenes.around(2), 32)  # almost opposite each other: what one sees the other does not
    assert warp(views, 0, 1)[1].float().mean() < 0.02


def test_reprojection_needs_depth():
    views = dataclasses.replace(scenes.render(scenes.sphere, scenes.frontal(2), 12), depth=None)
    with pytest.raises(UserError, match='reproj needs the depth'):
        neighbour_psnr(views)
    with pytest.raises(UserError, match='depth is not a number'):
        neighbour_psnr(bad_views(depth=lambda depth: depth * torch.nan))


# ---------------------------------------------------------------------------------------------------------------------
# The order of their scores


def jittered(strength, resolution, count):
    """A sphere whose texture lies elsewhere in every view, by up to `strength` world units."""
    shifts = (torch.rand(count, 3, generator=torch.Generator().manual_seed(1)) * 2 - 1) * strength
    labels = scenes.frontal(count)
    parts = [
        scenes.render_images(scenes.sphere, label[None], resolution, lambda x, shift=shift: scenes.texture(x + shift))
        for label, shift in zip(labels, shifts)
    ]
    images, depth = map(torch.cat, zip(*parts))
    return Views('jittered', images, labels, scenes.BOX, depth)


def score(views, **changes):
    reconstruction = fit(views, fast(max(views.size), **changes), 'white')
    return psnr(reconstruction.render(views.labels, views.size)[0], views.images.float() / 255).mean().item()


def assert_strictly_falling(scores, margin=0.3):
    print('scores', [round(score, 2) for score in scores])
    assert all(first > second + margin for first, second in zip(scores, scores[1:])), scores


def test_jitter_lowers_reproj():
    assert_strictly_falling([neighbour_psnr(jittered(strength, 48, 4))[0].mean().item() for strength in (0, 0.01, 0.02, 0.05)])


def test_jitter_lowers_psnr_mv_small():
    """The small form of test_jitter_lowers_psnr_mv: two strengths, few views and steps."""
    assert_strictly_falling([score(jittered(strength, 32, 6), steps=100, rays=192, grid_rate=0.04) for strength in (0, 0.05)])


@pytest.mark.slow
def test_jitter_lowers_psnr_mv():
    assert_strictly_falling([score(jittered(strength, 64, 15), steps=600) for strength in (0, 0.005, 0.01, 0.02, 0.05)])


@pytest.mark.slow
def test_super_resolution_in_2d_scores_below_direct_rendering():
    """A stand-in for a 2D super-resolution: detail that is the same everywhere in the image and not in the scene."""
    direct = scenes.render(scenes.sphere, scenes.frontal(15), 64)
    detail = torch.randn(64, 64, 1, generator=torch.Generator().manual_seed(0)) * 12
    sharpened = (direct.images.float() + detail * direct.depth.isfinite()[..., None]).clamp(0, 255).to(torch.uint8)
    assert_strictly_falling([score(views, steps=600) for views in (direct, dataclasses.replace(direct, images=sharpened))], 1)


@pytest.mark.slow
def test_3d_branch_of_a_fresh_generator_scores_above_its_2d_branch():
    G = tiny_generator().eval()
    labels = view_label(G.config, *protocol_angles(15, 0.4))
    assert_strictly_falling([score(generated_views(G, 0, branch, labels), steps=400) for branch in ('3d', '2d')])


# ---------------------------------------------------------------------------------------------------------------------
# Real photographs


@pytest.mark.slow
@pytest.mark.skipif(not FOX.is_dir(), reason='the photographs of the fox are not part of the repository')
def test_photographs_are_reconstructed(tmp_path):
    score_with('--metrics=psnr_mv', f'--views={FOX}', '--view-size=135x240', '--held-out=8', f'--outdir={tmp_path}')
    assert record(tmp_path, 'psnr_mv')['value'] > 20
