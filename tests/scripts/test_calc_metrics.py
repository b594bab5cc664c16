"""calc_metrics.py: what it computes, writes and prints, by several processes too, and what it says to bad input."""

import csv
import functools
import json

import pytest
import torch
from PIL import Image

import calc_metrics
from metrics import detector, results
from tests import small_detector
from tests.helpers import error_line, invoke, save_snapshot, succeed
from tests.metrics.test_metrics import write_set
from tests.small_detector import smooth_images, write_images
from tests.tiny import tiny_generator, tiny_run
from torch_utils import distributed
from training.rendering.cameras import view_label


@pytest.fixture(scope='module')
def folder(tmp_path_factory):
    """A data set of 40 images of 32 x 32, and snapshots of both stages that were trained on it."""
    folder = tmp_path_factory.mktemp('metrics')
    G = tiny_generator()
    data = write_set(folder / 'set.zip', smooth_images(40, seed=1), view_label(G.config, torch.linspace(-0.5, 0.5, 40)))
    options = tiny_run(data, str(folder)).to_dict()
    save_snapshot(folder / 'stage2.pkl', {'G_ema': G}, {'stage': 2, 'images_seen': 12000, 'options': options})
    save_snapshot(
        folder / 'stage1.pkl', {'G_ema': tiny_generator(branch_3d='none')}, {'stage': 1, 'images_seen': 8000, 'options': options}
    )
    write_images(folder / 'images', smooth_images(40, seed=2))
    return folder


def run(folder, *arguments):
    return invoke(calc_metrics.main, '--workers=0', f'--outdir={folder}', *arguments)


def evaluated(folder, *arguments):
    return succeed(calc_metrics.main, '--workers=0', f'--outdir={folder}', *arguments)


def test_both_branches_are_evaluated_on_the_data_of_the_training(folder, tmp_path):
    result = evaluated(
        tmp_path, '--metrics=swd20', f'--network={folder / "stage2.pkl"}', '--label=ours', '--samples=5', '--trunc=0.5'
    )
    first, second = results.read_folder(tmp_path)
    assert [found['branch'] for found in (first, second)] == ['2d', '3d'] and first['value'] != second['value']
    assert (first['kimg'], first['label'], first['data']) == (12.0, 'ours', str(folder / 'set.zip'))
    assert first['protocol']['samples_per_ray'] == [5, 4] and first['protocol']['truncation_psi'] == 0.5
    assert (first['experiment']['table2'], first['experiment']['preset']) == ('E', 'demo')
    assert first['plane_parameters'] == tiny_generator().count_plane_parameters()
    assert f'swd20 2d 12 kimg: {first["value"]:.6g}' in result.output


def test_the_published_way_of_generating_images_is_the_default_and_another_an_option(folder, tmp_path, inception):
    common = ('--metrics=fid20_full,fid3d20_full,swd20', f'--network={folder / "stage2.pkl"}', *inception)
    evaluated(tmp_path / 'default', *common)
    evaluated(tmp_path / 'exact', *common, '--sampling=deterministic', '--noise-mode=const')
    ways = [
        {
            (one['metric'], one['branch']): (one['protocol']['sampling'], one['protocol']['noise_mode'])
            for one in results.read_folder(tmp_path / outdir)
        }
        for outdir in ('default', 'exact')
    ]
    chance, none = ('stratified', 'random'), ('deterministic', 'const')
    assert ways[0] == {(name, branch): none if name == 'swd20' else chance for name, branch in ways[1]}
    assert len(ways[1]) == 6 and set(ways[1].values()) == {none}
    table = invoke(calc_metrics.main, 'table', str(tmp_path / 'default'), '--published=ffhq512').output
    assert 'fid3d20_full' in table and 'GGHead' in table.split('### Another protocol')[1]


def test_a_network_of_stage_1_has_its_2d_branch_evaluated_and_says_so(folder, tmp_path):
    result = evaluated(tmp_path, '--metrics=swd20', f'--network={folder / "stage1.pkl"}')
    assert 'only the 2D branch is evaluated' in result.output
    assert [found['branch'] for found in results.read_folder(tmp_path)] == ['2d']


def test_a_folder_of_images_is_evaluated_and_put_in_tables(folder, tmp_path):
    for label in ('one', 'two'):
        evaluated(
            tmp_path / label, '--metrics=swd', f'--images={folder / "images"}', f'--data={folder / "set.zip"}', f'--label={label}'
        )
    result = invoke(calc_metrics.main, 'table', str(tmp_path / 'one'), str(tmp_path / 'two'), '--format=csv')
    rows = list(csv.DictReader(result.output.splitlines()))
    assert [row['method'] for row in rows[:2]] == ['one', 'two'] and rows[0]['swd'] == rows[1]['swd'] != ''
    assert any(row['method'] == 'Mimic3D 3D branch' and row['fid50k_full'] == '5.37' for row in rows)


def test_plain_folders_of_images_need_no_cameras(folder, tmp_path, inception):
    """The values are those of the same images with cameras, mirrored copies included."""
    images, names = smooth_images(40, seed=1), ['fid40_full', 'fid20', 'kid40_full', 'pr403_full', 'is40', 'swd']
    write_images(tmp_path / 'plain', images)
    for data, cache in ((tmp_path / 'plain', 'a'), (folder / 'set.zip', 'b')):
        evaluated(
            tmp_path / cache,
            f'--metrics={",".join(names)}',
            f'--images={folder / "images"}',
            f'--data={data}',
            '--mirror=true',
            inception[0],
            f'--cache-dir={tmp_path / f"cache-{cache}"}',
        )
    plain, posed = (results.read_folder(tmp_path / outdir) for outdir in 'ab')
    assert [(one['metric'], one['value']) for one in plain] == [(other['metric'], other['value']) for other in posed]
    assert {one['metric']: one['protocol']['real_images'] for one in plain} == {
        'fid40_full': 80,
        'fid20': 20,
        'kid40_full': 80,
        'pr403_full': 80,
        'is40': None,
        'swd': 40,
    }


def test_a_network_needs_the_cameras_of_the_data(folder, refused, tmp_path):
    write_images(tmp_path / 'plain', smooth_images(40, seed=1))
    line = refused('--metrics=swd', f'--network={folder / "stage2.pkl"}', f'--data={tmp_path / "plain"}', data=False)
    assert 'plain has no dataset.json at its top, so the cameras are unknown' in line


def test_results_are_plotted_over_kimg(folder, tmp_path):
    for stage in (1, 2):
        evaluated(tmp_path, '--metrics=swd20', f'--network={folder / f"stage{stage}.pkl"}')
    succeed(calc_metrics.main, 'plot', tmp_path)
    assert Image.open(tmp_path / 'metrics.png').size[0] > 300


def test_a_plot_that_cannot_be_written_is_named(folder, tmp_path):
    evaluated(tmp_path, '--metrics=swd20', f'--network={folder / "stage1.pkl"}')
    target = tmp_path / 'nodir' / 'x.png'
    result = invoke(calc_metrics.main, 'plot', str(tmp_path), f'--output={target}')
    assert result.exit_code == 1
    assert result.output == f'Error: {target} cannot be written (No such file or directory): name another file with --output\n'


def test_a_result_that_cannot_be_written_is_printed_and_the_file_named(folder, tmp_path):
    file = tmp_path / 'metric-swd20.jsonl'
    file.mkdir()
    result = run(tmp_path, '--metrics=swd20', f'--network={folder / "stage1.pkl"}')
    assert result.exit_code == 1 and isinstance(result.exception, SystemExit)
    found, error = [line.strip() for line in result.output.splitlines() if line.strip().startswith(('swd20', 'Error'))]
    assert found.startswith('swd20 2d 8 kimg: ') and error.startswith(f'Error: {file} cannot be written (Is a directory)')


def test_a_result_that_cannot_be_printed_is_written(folder, tmp_path, monkeypatch):
    monkeypatch.setattr(calc_metrics.results, 'format_record', lambda record: (_ for _ in ()).throw(OSError('no terminal')))
    with pytest.raises(OSError, match='no terminal'):
        calc_metrics.publish(tmp_path, {'metric': 'swd20', 'value': 1.0})
    assert [record['value'] for record in results.read_folder(tmp_path)] == [1.0]


def request_for(metrics, outdir, group_options, **changes):
    """A Request as the command line's defaults make it."""
    return calc_metrics.Request(metrics=metrics, outdir=outdir, workers=0, group_options=group_options, **changes)


def compute_with_small_detector(request):
    """In a process of its own; in the test's process the detector must not stay replaced."""
    before = dict(detector.WIDTHS), detector._load
    small_detector.install()
    torch.set_num_threads(1)  # another number may round a pixel the other way: 2e-6 of this FID
    try:
        calc_metrics.compute_metrics(request)
    finally:
        detector.WIDTHS.update(before[0])
        detector._load = before[1]


@pytest.mark.parametrize('processes', [pytest.param(2, marks=pytest.mark.slow), 3])
def test_the_number_of_processes_changes_nothing(processes, folder, tmp_path):
    weights = tmp_path / 'weights.pth'
    weights.write_bytes(b'any')
    found, names = [], ['fid40_full', 'fid3d40_full', 'fid20', 'kid21_full', 'pr403_full', 'is40', 'swd']
    for count in (1, processes):
        options = {'detector': str(weights), 'cache_dir': str(tmp_path / f'cache{count}')}
        request = request_for(
            names,
            tmp_path / str(count),
            options,
            network=str(folder / 'stage2.pkl'),
            mirror=True,
            branch='3d',
            batch=6,
            gpus=count,
        )
        distributed.launch(functools.partial(compute_with_small_detector, request), count)
        found.append(results.read_folder(tmp_path / str(count)))
    assert len(found[0]) == 7 and [record['processes'] for record in found[1]] == [processes] * 7
    for one, several in zip(*found, strict=True):
        assert several['value'] == pytest.approx(one['value'], rel=1e-6), one['metric']
        assert several['protocol'] == one['protocol']


# ---------------------------------------------------------------------------------------------------------------------
# Bad input: one line, no traceback


@pytest.fixture
def refused(folder, tmp_path):
    """A function that runs the script and returns the one line that it ends with."""

    def call(*arguments, data=True):
        result = run(tmp_path / 'out', *([f'--data={folder / "set.zip"}'] if data else []), *arguments)
        assert not list((tmp_path / 'out').glob('metric-*'))
        return error_line(result)

    return call


def test_a_full_gpu_is_named(refused, folder, monkeypatch):
    def full(*arguments):
        raise torch.OutOfMemoryError('CUDA out of memory')

    monkeypatch.setattr(calc_metrics, 'compute_records', full)
    assert 'lower --batch' in refused('--metrics=swd', f'--network={folder / "stage2.pkl"}')


def test_missing_weights_are_named(refused, folder, tmp_path, monkeypatch):
    def offline(*arguments, **options):
        raise OSError('no route to host')

    monkeypatch.setattr(torch.hub, 'get_dir', lambda: str(tmp_path))
    monkeypatch.setattr(torch.hub, 'download_url_to_file', offline)
    assert '--detector=FILE' in refused('--metrics=fid40_full', f'--network={folder / "stage2.pkl"}')


def test_an_empty_folder_is_named(refused, tmp_path):
    (tmp_path / 'empty').mkdir()
    assert 'empty contains no images' in refused('--metrics=swd', f'--images={tmp_path / "empty"}')
    assert 'nowhere does not exist' in refused('--metrics=swd', f'--images={tmp_path / "nowhere"}')


@pytest.mark.parametrize('workers', [0, 1])
def test_mixed_sizes_are_named(refused, tmp_path, workers):
    images = write_images(tmp_path / 'mixed', smooth_images(5, seed=0))
    Image.new('RGB', (16, 16)).save(images / '0003.png')
    assert '0003.png measures 16x16' in refused('--metrics=swd', f'--images={images}', f'--workers={workers}')


def test_too_few_images_are_named(refused, folder):
    network, images = f'--network={folder / "stage2.pkl"}', f'--images={folder / "images"}'
    assert 'needs 50 images, but there are only 40 of --images' in refused('--metrics=fid50_full', images)
    assert 'needs 50 images, but there are only 40 of --data' in refused('--metrics=fid50', network)
    assert 'fid1_full needs at least 2 images' in refused('--metrics=fid1_full', network)
    assert 'is9 needs at least 10 images' in refused('--metrics=is9', network)
    assert 'pr33_full needs at least 4 images' in refused('--metrics=pr33_full', network)


@pytest.fixture
def inception(tmp_path, monkeypatch):
    """Options for the small detector in place of the Inception."""
    monkeypatch.setattr('metrics.statistics.WIDTHS', small_detector.WIDTHS)
    monkeypatch.setattr(detector, '_load', lambda weights, layers: small_detector.SmallExtractor('small', list(layers)))
    (tmp_path / 'weights.pth').write_bytes(b'any')
    return f'--detector={tmp_path / "weights.pth"}', f'--cache-dir={tmp_path / "cache"}'


def test_singular_covariances_cost_a_warning(folder, tmp_path, inception):
    with pytest.warns(UserWarning, match='singular'):
        evaluated(tmp_path, '--metrics=fid12_full', f'--images={folder / "images"}', f'--data={folder / "set.zip"}', *inception)
    assert json.loads((tmp_path / 'metric-fid12_full.jsonl').read_text())['protocol']['singular_covariance'] is True


def test_data_of_another_resolution_is_named(refused, tmp_path, folder):
    data = write_set(tmp_path / 'large.zip', smooth_images(4, seed=0, resolution=64))
    line = refused('--metrics=swd', f'--network={folder / "stage2.pkl"}', f'--data={data}', data=False)
    assert 'large.zip holds images of 64x64 pixels' in line and '32' in line
    line = refused('--metrics=swd', f'--images={folder / "images"}', f'--data={data}', data=False)
    assert '32x32' in line and '64x64' in line


@pytest.mark.parametrize('size', [64, 16])
def test_swd_refuses_renders_of_another_size_than_the_data(refused, folder, size):
    line = refused('--metrics=swd', f'--network={folder / "stage2.pkl"}', '--branch=3d', f'--render-resolution={size}')
    assert f'--render-resolution={size} gives images of {size}x{size} pixels' in line and '32x32' in line


def test_the_inception_metrics_take_renders_of_another_size_and_say_which(folder, tmp_path, inception):
    evaluated(
        tmp_path,
        '--metrics=fid20_full',
        f'--network={folder / "stage2.pkl"}',
        '--branch=3d',
        '--render-resolution=16',
        *inception,
    )
    protocol = results.read_folder(tmp_path)[0]['protocol']
    assert (protocol['resolution'], protocol['render_resolution']) == (16, 16)


def test_swd_takes_any_render_resolution_of_the_2d_branch(folder, tmp_path):
    evaluated(tmp_path, '--metrics=swd20', f'--network={folder / "stage2.pkl"}', '--branch=2d', '--render-resolution=16')
    protocol = results.read_folder(tmp_path)[0]['protocol']
    assert (protocol['resolution'], protocol['render_resolution']) == (32, 16)


def test_contradictions_and_gaps_are_named(refused, folder):
    network, images = f'--network={folder / "stage2.pkl"}', f'--images={folder / "images"}'
    assert '--metrics is missing' in refused(network)
    assert 'exclude each other' in refused('--metrics=swd', network, images)
    assert 'nothing to evaluate' in refused('--metrics=swd')
    assert '--data is missing' in refused('--metrics=swd', images, data=False)
    assert 'no 3D branch' in refused('--metrics=swd', f'--network={folder / "stage1.pkl"}', '--branch=3d')
    assert 'no such snapshot' in refused('--metrics=swd', '--network=nowhere.pkl')


@pytest.mark.parametrize(
    'arguments, idle',
    [
        (
            ['--metrics=swd', 'IMAGES', '--trunc=0.5', '--branch=both', '--noise-mode=const'],
            '--branch, --trunc, --noise-mode have no effect on swd with --images: leave them out',
        ),
        (['--metrics=is20', 'IMAGES', '--mirror=true'], '--data, --mirror have no effect on is20 with --images'),
        (
            ['--metrics=swd', 'NETWORK', '--subjects=3', '--fit-steps=4'],
            '--subjects, --fit-steps have no effect on swd with --network',
        ),
        (['--metrics=swd', 'NETWORK', '--background=white'], '--background has no effect on swd with --network'),
        (['--metrics=reproj', 'NETWORK', '--recipe=neus'], '--data, --recipe have no effect on reproj with --network'),
        (
            ['--metrics=psnr_mv', 'NETWORK', '--sampling=stratified', '--skip=0.01'],
            '--data, --sampling, --skip have no effect on psnr_mv with --network',
        ),
        (['--metrics=ssim_mv,swd', 'NETWORK', '--box=2'], '--box has no effect on ssim_mv, swd with --network'),
        (
            ['--metrics=psnr_mv', '--views=.', '--trunc=0.5', '--yaw=0.1', 'IMAGES'],
            '--images, --data, --trunc, --yaw have no effect on psnr_mv with --views',
        ),
        (['--metrics=swd', 'NETWORK', '--trunc-cutoff=8'], '--trunc-cutoff has no effect with --trunc=1'),
    ],
)
def test_options_without_effect_are_named(refused, folder, arguments, idle):
    words = {'NETWORK': f'--network={folder / "stage2.pkl"}', 'IMAGES': f'--images={folder / "images"}'}
    assert idle in refused(*(words.get(argument, argument) for argument in arguments))


def test_options_before_a_subcommand_are_named(folder):
    result = invoke(calc_metrics.main, '--metrics=swd', '--seed=0', 'table', str(folder))
    assert result.exit_code == 1 and result.output == 'Error: --metrics, --seed have no effect on table: leave them out\n'


def test_an_unknown_metric_is_named(folder):
    result = run(folder, '--metrics=fid50k_ful')
    assert result.exit_code == 1 and "--metrics: 'fid50k_ful' is no metric; there are: fid<N>_full" in result.output
