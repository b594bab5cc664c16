"""What gen_samples.py and gen_videos.py do alike."""

import pytest
import torch

import gen_samples
import gen_videos
from sampling import subjects
from tests.helpers import assert_one_clear_line, invoke, save_snapshot
from tests.tiny import tiny_generator
from training.networks.triplane import ResidualPlanes


@pytest.mark.parametrize('script, output', [(gen_samples, 'outdir'), (gen_videos, 'output')])
def test_renders_too_large_for_super_resolution_are_named(script, output, networks, tmp_path):
    save_snapshot(tmp_path / 'small.pkl', {'G_ema': tiny_generator(sr_resize_larger=False)}, {})
    target = tmp_path / ('out' if output == 'outdir' else 'out.mp4')
    network = f'--network={tmp_path / "small.pkl"}'
    result = invoke(script.main, network, '--seeds=0', '--render-resolution=12', f'--{output}={target}')
    assert_one_clear_line(result, 'takes volume renders of 8 pixels per side at most, not 12')
    assert not target.is_file() and not list(tmp_path.glob('out/*'))


@pytest.mark.parametrize(
    'script, output', [(gen_samples, '--outdir=o'), (gen_videos, '--output=o.mp4'), (gen_videos, '--output=o.png --epi')]
)
@pytest.mark.parametrize('device', ['meta', 'cuda:99', 'hpu', ''])
def test_a_device_that_cannot_compute_is_one_clear_line(script, output, device, networks):
    result = invoke(script.main, '--network=stage2.pkl', '--seeds=0', f'--device={device}', *output.split())
    assert_one_clear_line(result, f'--device={device} cannot be used (')
    assert result.output.count('\n') == 1 and 'choose cpu' in result.output


@pytest.mark.parametrize(
    'script, arguments, message',
    [
        (gen_videos, ['--output=film.mp4', '--epi-line=0.5'], '--epi-line has no effect without --epi: leave it out'),
        (gen_videos, ['--output=film.mp4', '--full-orbit', '--yaw-range=1'], '--yaw-range has no effect with --full-orbit'),
        (gen_videos, ['--output=film.mp4', '--upscale-filter=nearest'], '--upscale-filter has no effect without --upscale'),
        (gen_videos, ['--output=film.mp4', '--trunc=1', '--trunc-cutoff=3'], '--trunc-cutoff has no effect with --trunc=1'),
        (
            gen_samples,
            ['--outdir=o', '--shape-level=10', '--shape-format=ply'],
            '--shape-level, --shape-format have no effect without --shapes: leave them out',
        ),
        (gen_samples, ['--outdir=o', '--trunc=1', '--trunc-cutoff=3'], '--trunc-cutoff has no effect with --trunc=1'),
    ],
)
def test_options_without_effect_are_one_clear_line(script, arguments, message, networks):
    assert_one_clear_line(invoke(script.main, '--network=stage2.pkl', '--seeds=0', *arguments), message)


@pytest.mark.parametrize(
    'script, arguments, cure',
    [(gen_samples, ['--outdir=out'], 'lower --batch'), (gen_videos, ['--output=out/film.mp4'], 'lower --render-resolution')],
)
def test_a_full_gpu_is_one_clear_line(script, arguments, cure, networks, tmp_path, monkeypatch):
    def full(*_):
        raise torch.OutOfMemoryError('CUDA out of memory')

    monkeypatch.setattr(subjects, 'render_subjects', full)
    monkeypatch.chdir(tmp_path)
    network = f'--network={tmp_path / "network.pkl"}'
    save_snapshot(tmp_path / 'network.pkl', {'G_ema': networks['stage2']}, {})
    assert_one_clear_line(invoke(script.main, network, '--seeds=0', *arguments), f'too little memory; {cure}')


@pytest.mark.parametrize(
    'script, arguments',
    [
        (gen_samples, '--outdir=o'),
        (gen_videos, '--output=o/film.mp4 --frames=2'),
        (gen_videos, '--output=o/film.mp4 --frames=2 --mode=interpolate'),
        (gen_videos, '--output=o/epi.png --epi --frames=4'),
    ],
)
@pytest.mark.parametrize('branch', ['2d', 'coarse'])
def test_s3d_stays_out_of_what_does_not_show_the_3d_branch(script, arguments, branch, networks, tmp_path, monkeypatch):
    def unwanted(*_):
        raise AssertionError('S3D was asked for planes that nobody renders')

    monkeypatch.setattr(ResidualPlanes, 'forward', unwanted)
    arguments = arguments.replace('=o', f'={tmp_path}/o').split()
    result = invoke(script.main, '--network=stage2.pkl', '--seeds=0', f'--branch={branch}', *arguments)
    assert result.exit_code == 0, result.output
