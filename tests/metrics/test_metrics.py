"""The parts of metrics: names, moments, distances, sources of images, caches, weights, tables."""

import json
import pickle
import shutil
import threading
import zipfile
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from torch_fidelity import calculate_metrics, register_feature_extractor

from dataset_prep.archive import DatasetWriter
from dnnlib import files
from dnnlib.errors import UserError
from metrics import Task, compute_records, detector, real_statistics, registry, results, swd, tables
from metrics.image_quality import need_detector
from metrics.images import FRONTAL, PUBLISHED, WITHOUT_CHANCE, GeneratedImages, ImageRandom, Rendering, StoredImages
from metrics.inception import FeatureList, FeatureMoments, frechet_distance
from metrics.published import published_rows
from metrics.statistics import Statistic, collect_statistics
from tests import small_detector
from tests.small_detector import WIDTHS, SmallExtractor, smooth_images, write_images
from tests.tiny import tiny_generator
from torch_utils import pretrained
from torch_utils.pretrained import WeightsError
from training.data.dataset import ImageDataset, PosedImageDataset
from training.rendering.cameras import view_label

CPU = torch.device('cpu')


@pytest.fixture
def small(monkeypatch, tmp_path):
    """The small detector, and a file that stands for its weights."""
    monkeypatch.setattr(detector, 'WIDTHS', dict(detector.WIDTHS))
    monkeypatch.setattr(detector, '_load', None)
    monkeypatch.setattr('metrics.statistics.WIDTHS', small_detector.WIDTHS)
    small_detector.install()
    weights = tmp_path / 'weights.pth'
    weights.write_bytes(b'any')
    return str(weights)


def write_set(path, images, labels=None):
    """A data set of images uint8 [N, 3, R, R]."""
    labels = torch.zeros(len(images), 25) if labels is None else labels
    with DatasetWriter(path) as writer:
        for image, label in zip(images, labels):
            writer.add(np.ascontiguousarray(image.permute(1, 2, 0).numpy()), label.numpy())
    return str(path)


@pytest.fixture(scope='module')
def real(tmp_path_factory):
    """A data set of 40 images of 32 x 32."""
    labels = view_label(tiny_generator().config, torch.linspace(-0.5, 0.5, 40))
    return write_set(tmp_path_factory.mktemp('real') / 'set.zip', smooth_images(40, seed=1), labels)


def stored_task(images, data, tmp_path, weights=None, **changes):
    options = {'detector': weights, 'cache_dir': str(tmp_path / 'cache')}
    return Task(device=CPU, images=str(images), data=data, workers=0, progress=False, options=options, **changes)


def values(names, task):
    return {record['metric']: record['value'] for record in compute_records(names, task)}


# ---------------------------------------------------------------------------------------------------------------------
# Names


@pytest.mark.parametrize(
    'name, count, real',
    [
        ('fid50k_full', 50000, 'all'),
        ('fid2k_full', 2000, 'all'),
        ('fid50k', 50000, 50000),
        ('fid3d9k_full', 9000, 'all'),
        ('kid50k_full', 50000, 'all'),
        ('kid7', 7, 7),
        ('pr50k3_full', 50000, 'all'),
        ('is50k', 50000, None),
        ('swd500', 500, 500),
        ('swd', None, 16384),
    ],
)
def test_names_say_how_many_images(name, count, real):
    ((metric,),) = (metrics.values() for metrics in registry.by_group([name]).values())
    assert (metric.name, metric.count, metric.real) == (name, count, real)


def test_only_swd_and_consistency_go_without_the_detector():
    assert need_detector(['fid2k_full', 'swd', 'is50k', 'psnr_mv']) == ['fid2k_full', 'is50k']


@pytest.mark.parametrize('name', ['fid', 'fid0_full', 'fid3d50k', 'fid50m', 'pr50k_full', 'is50k_full', 'nonsense', ''])
def test_other_names_are_refused(name):
    with pytest.raises(UserError, match='fid<N>_full'):
        registry.find_family(name)


# ---------------------------------------------------------------------------------------------------------------------
# Formulas


def test_frechet_distance_of_gaussians_in_closed_form():
    random = np.random.RandomState(0)
    basis = np.linalg.qr(random.randn(5, 5))[0]
    mean1, mean2, spread1, spread2 = random.randn(5), random.randn(5), random.rand(5) + 0.1, random.rand(5) + 0.1
    spread2[:2] = 0  # singular covariances are as exact
    expected = np.square(mean1 - mean2).sum() + np.square(spread1 - spread2).sum()  # of covariances that commute
    found = frechet_distance(mean1, basis * spread1**2 @ basis.T, mean2, basis * spread2**2 @ basis.T)
    assert found == pytest.approx(expected, rel=1e-9)


def test_frechet_distance_of_covariances_that_do_not_commute():
    random = np.random.RandomState(1)
    a, b = (m @ m.T for m in random.randn(2, 4, 4))
    trace = np.sqrt(np.linalg.eigvals(a @ b).astype(complex)).real.sum()
    assert frechet_distance(np.zeros(4), a, np.zeros(4), b) == pytest.approx(np.trace(a) + np.trace(b) - 2 * trace, rel=1e-9)


def test_moments_are_the_mean_and_the_unbiased_covariance():
    x = torch.randn(30, 12) * 5 + 3
    collector = FeatureMoments(30, 12, CPU)
    for start in (0, 16):
        collector.add(range(start, min(start + 16, 30)), x[start : start + 16])
    found = collector.finish()
    np.testing.assert_allclose(found['mean'], x.double().mean(dim=0), rtol=1e-12)
    np.testing.assert_allclose(found['covariance'], np.cov(x.double().numpy(), rowvar=False), rtol=1e-9, atol=1e-9)


def fidelity(first, second, **options):
    """torch-fidelity's results on two folders, with the small extractor."""
    layers = {f'feature_layer_{metric}': detector.FEATURES for metric in ('fid', 'kid', 'prc')}
    return calculate_metrics(
        input1=str(first),
        input2=str(second),
        cuda=False,
        fid=True,
        kid=True,
        prc=True,
        isc=True,
        feature_extractor='small',
        feature_layer_isc=detector.LOGITS,
        **layers,
        save_cpu_ram=True,
        verbose=False,
        **options,
    )


def test_metrics_agree_with_torch_fidelity_with_the_random_weights_of_a_small_detector(small, tmp_path):
    images, others = smooth_images(40, seed=3), smooth_images(50, seed=4, mean=140)
    first, second = write_images(tmp_path / 'a', others), write_images(tmp_path / 'b', images)
    data = write_set(tmp_path / 's', images)
    register_feature_extractor('small', SmallExtractor)
    theirs = fidelity(first, second, kid_subset_size=40)
    records = {
        record['metric']: record
        for record in compute_records(
            ['fid50_full', 'kid50_full', 'pr503_full', 'is50'], stored_task(first, data, tmp_path, small)
        )
    }
    assert records['fid50_full']['value'] == pytest.approx(theirs['frechet_inception_distance'], rel=1e-5)
    assert records['kid50_full']['value'] == pytest.approx(theirs['kernel_inception_distance_mean'], rel=1e-6)
    assert records['pr503_full']['parts'] == pytest.approx({name: theirs[name] for name in ('precision', 'recall')})
    assert 0 < theirs['precision'] < 1  # else the comparison says nothing
    assert records['is50']['value'] == pytest.approx(theirs['inception_score_mean'], rel=1e-6)


def test_a_smaller_number_takes_the_first_images_and_one_pass_serves_all(small, real, tmp_path):
    folder = write_images(tmp_path / 'a', smooth_images(40, seed=2))
    first = write_images(tmp_path / 'b', smooth_images(40, seed=2)[:33])
    together = values(['fid40_full', 'fid33_full'], stored_task(folder, real, tmp_path, small))
    alone = values(['fid33_full'], stored_task(first, real, tmp_path, small))
    assert together['fid33_full'] == pytest.approx(alone['fid33_full'])
    assert together['fid33_full'] != pytest.approx(together['fid40_full'], rel=1e-3)


# ---------------------------------------------------------------------------------------------------------------------
# Sliced Wasserstein distance


def test_the_laplacian_pyramid_adds_up_again():
    images = smooth_images(2, seed=0, resolution=64).float()
    levels = swd.laplacian_pyramid(images)
    assert [level.shape[-1] for level in levels] == [64, 32, 16]
    flat = swd.laplacian_pyramid(torch.full([1, 3, 64, 64], 9.0))
    assert flat[0].abs().max() < 1e-4 and (flat[-1] - 9).abs().max() < 1e-4  # details of nothing are nothing, borders included
    ramp = torch.arange(64.0).expand(1, 3, 64, 64)
    assert swd.laplacian_pyramid(ramp)[0][..., 4:-4].abs().max() < 1e-4  # enlarging keeps everything in its place


def test_patches_are_cut_where_the_corners_say():
    images = torch.arange(2 * 3 * 10 * 10.0).reshape(2, 3, 10, 10)
    corners = torch.tensor([[[0, 0], [3, 1]], [[2, 2], [1, 3]]])
    patches = swd.cut_patches(images, corners)
    assert torch.equal(patches[0, 1].reshape(3, 7, 7), images[0, :, 3:10, 1:8])
    assert torch.equal(patches[1, 0].reshape(3, 7, 7), images[1, :, 2:9, 2:9])


def test_level_distance_of_a_shift_in_closed_form():
    real = torch.randn(4000, 147) * 20 + 100
    shifted = real + 5
    directions = torch.randn(147, swd.PROJECTIONS, generator=swd.keyed_generator((0,)))
    directions = directions / directions.norm(dim=0)
    std = real.unflatten(1, (3, -1)).std(dim=(0, 2)).repeat_interleave(49)
    expected = ((5 / std)[None] @ directions).abs().mean()
    assert swd.level_distance(shifted, real, seed=0) == pytest.approx(float(expected), rel=1e-3)


@pytest.fixture(scope='module')
def distance(real, tmp_path_factory):
    """The value of swd between changed copies of the data set and itself."""
    images = smooth_images(40, seed=1)
    counter = iter(range(100))

    def measure(change):
        folder = tmp_path_factory.mktemp('swd')
        write_images(folder / f'{next(counter)}', change(images))
        return values(['swd'], stored_task(next(folder.iterdir()), real, folder))['swd']

    return measure


def blurred(images, radius):
    size = 2 * radius + 1
    padded = torch.nn.functional.pad(images.float(), [radius] * 4, mode='reflect')
    return torch.nn.functional.avg_pool2d(padded, size, stride=1).to(torch.uint8)


def noisy(images, strength):
    return (images + strength * torch.randn(images.shape, generator=swd.keyed_generator((5,)))).clamp(0, 255).to(torch.uint8)


def test_swd_is_zero_for_the_same_set(distance):
    assert distance(lambda images: images) == 0


@pytest.mark.parametrize(
    'changes',
    [
        [lambda images, radius=radius: blurred(images, radius) for radius in (1, 2, 4)],
        [lambda images, strength=strength: noisy(images, strength) for strength in (4, 12, 36)],
        [lambda images, modes=modes: images[torch.arange(40) % modes] for modes in (20, 6, 2)],
        [lambda images, contrast=contrast: (images * contrast).to(torch.uint8) for contrast in (0.9, 0.7, 0.4)],
    ],
    ids=['blur', 'noise', 'missing modes', 'darkness'],
)
def test_swd_grows_with(changes, distance):
    found = [0.0, *map(distance, changes)]
    assert all(later > 1.2 * earlier for earlier, later in zip(found, found[1:])), found


# ---------------------------------------------------------------------------------------------------------------------
# Images


def noisy_generator(**changes):
    """A generator whose noise is seen."""
    G = tiny_generator(**changes).eval()
    with torch.no_grad():
        for name, parameter in G.named_parameters():
            if 'noise_strength' in name:
                parameter.fill_(0.2)
    return G


def generated(rendering=WITHOUT_CHANCE, **changes):
    G = noisy_generator()
    labels = view_label(G.config, torch.linspace(-0.5, 0.5, 9))
    return GeneratedImages(Task(device=CPU, generator=G, **{'branch': '3d', **changes}), labels, rendering)


@pytest.mark.parametrize('branch', ['2d', '3d', 'coarse'])
def test_image_i_does_not_depend_on_its_batch(branch):
    source = generated(PUBLISHED, branch=branch)
    whole = source.make(range(6)).int()
    parts = torch.cat([source.make(range(0, 1)), source.make(range(1, 6))]).int()
    assert whole.shape == (6, 3, 32, 32)
    assert (whole - parts).abs().max() <= 1  # rounding
    assert (whole[1:] - whole[:1]).abs().amax(dim=(1, 2, 3)).min() > 2
    assert (generated(PUBLISHED, branch=branch, seed=1).make(range(6)).int() - whole).abs().max() > 2


@pytest.mark.parametrize('sampling', ['stratified', 'deterministic'])
@pytest.mark.parametrize('noise_mode', ['random', 'const'])
def test_chance_in_images_is_keyed_by_their_numbers(sampling, noise_mode):
    source = generated(Rendering(sampling, noise_mode))
    G, (z, c) = source.task.generator, source.draw_inputs(range(3))
    random = ImageRandom(0, range(3), CPU)  # the noise takes its numbers first, then the rays
    planes = G.planes(G.mapping(z, c), noise_mode=noise_mode, random=random)
    expected = G.render(planes, c, branch='3d', sampling=sampling, random=random)['image']
    assert torch.equal(source.make(range(3)), (expected * 127.5 + 128).clamp(0, 255).to(torch.uint8))
    others = [
        generated(Rendering(*other)).make(range(3)).int()
        for other in {('stratified', 'random'), ('stratified', 'const'), ('deterministic', 'random'), ('deterministic', 'const')}
        - {(sampling, noise_mode)}
    ]
    assert all((source.make(range(3)).int() - other).abs().max() > 2 for other in others)


def test_random_numbers_of_images_are_keyed_by_seed_and_number():
    drawn = {key: ImageRandom(*key, CPU) for key in [(0, range(4)), (1, range(4)), (0, range(2, 4))]}
    normal, other, part = (random.normal(500, 2) for random in drawn.values())
    uniform = drawn[0, range(4)].uniform(1000)
    assert normal.shape == (4, 500, 2) and abs(float(normal.mean())) < 0.1 and float(normal.std()) == pytest.approx(1, abs=0.05)
    assert uniform.shape == (4, 1000) and 0 <= uniform.min() and uniform.max() < 1
    assert float(uniform.mean()) == pytest.approx(0.5, abs=0.05)
    assert torch.equal(part, normal[2:]) and not torch.equal(other, normal) and not torch.equal(normal[0], normal[1])


def test_the_frontal_camera_conditions_and_the_image_is_seen_from_its_label(monkeypatch):
    frontal, usual = generated(FRONTAL), generated(PUBLISHED)
    (z, c), (same_z, same_c) = (source.draw_inputs(range(4)) for source in (frontal, usual))
    assert torch.equal(z, same_z) and torch.equal(c, same_c) and len(c.unique(dim=0)) > 1
    G, seen = frontal.task.generator, []
    mapping, render = G.mapping.forward, G.render
    monkeypatch.setattr(G.mapping, 'forward', lambda z, c, **options: seen.append(c) or mapping(z, c, **options))
    monkeypatch.setattr(G, 'render', lambda planes, c, **options: seen.append(c) or render(planes, c, **options))
    images = frontal.make(range(4))
    assert torch.equal(seen[0], view_label(G.config, yaw=0).expand(4, -1)) and torch.equal(seen[1], c)
    assert (images.int() - usual.make(range(4)).int()).abs().max() > 2


@pytest.mark.parametrize(
    'branch, render_resolution, expected',
    [('2d', 16, 32), ('3d', 48, 48), ('coarse', 16, 16), ('2d', None, 32), ('3d', None, 32), ('coarse', None, 32)],
)
def test_the_resolution_is_that_of_the_images(branch, render_resolution, expected):
    source = generated(branch=branch, render_resolution=render_resolution)
    assert source.resolution == expected and source.make(range(1)).shape[-1] == expected


def test_the_camera_comes_from_the_labels_and_conditions_the_generator():
    source = generated(truncation_psi=0.7)
    z, c = source.draw_inputs(range(30))
    assert all((label == source.labels).all(dim=1).any() for label in c) and len(c.unique(dim=0)) > 5
    assert len(z.unique(dim=0)) == 30
    assert abs(float(z.mean())) < 0.3 and float(z.std()) == pytest.approx(1, abs=0.2)
    G = source.task.generator
    ws = G.mapping(z, c, truncation_psi=0.7)
    expected = G.render(G.planes(ws, noise_mode='const'), c, branch='3d', sampling='deterministic')['image']
    assert torch.equal(source.make(range(30)), (expected * 127.5 + 128).clamp(0, 255).to(torch.uint8))


def test_workers_read_the_same_images_in_the_same_order(real):
    data = PosedImageDataset(real)
    tasks = [Task(device=CPU, workers=workers) for workers in (0, 2)]
    read = [torch.cat([images for _, images in StoredImages(data, task).batches(40)]) for task in tasks]
    assert torch.equal(*read) and torch.equal(read[0], torch.stack([data[i][0] for i in range(40)]))


class SlowlyMade:
    """Two batches of images; the event says that the second one is being made."""

    resolution = 32

    def __init__(self):
        self.second_begun = threading.Event()

    def batches(self, count):
        yield range(0, 1), smooth_images(1, seed=0)
        self.second_begun.set()
        yield range(1, 2), smooth_images(1, seed=1)


def test_generation_goes_on_while_features_are_computed(small):
    source, seen = SlowlyMade(), []

    def slow_detector(images):
        seen.append(source.second_begun.wait(timeout=20))
        return {detector.FEATURES: torch.zeros(len(images), WIDTHS[detector.FEATURES])}

    collect_statistics(
        source, [(Statistic(FeatureList, detector.FEATURES), 2)], slow_detector, Task(device=CPU, progress=False), ''
    )
    assert seen == [True, True]


@pytest.mark.gpu
@pytest.mark.parametrize('branch', ['2d', '3d'])
def test_features_beside_generation_are_those_after_it(small, branch):
    G = tiny_generator().eval().cuda()
    source = GeneratedImages(
        Task(device=torch.device('cuda'), generator=G, branch=branch, batch=7, progress=False),
        view_label(G.config, torch.linspace(-0.5, 0.5, 9)),
        PUBLISHED,
    )
    extract = SmallExtractor('small', [detector.FEATURES])
    extract.first = extract.first.cuda()
    statistic = Statistic(FeatureList, detector.FEATURES)
    found = collect_statistics(
        source, [(statistic, 100)], lambda images: {detector.FEATURES: extract(images)[0]}, source.task, ''
    )
    expected = torch.cat([extract(images)[0] for _, images in source.batches(100)])
    np.testing.assert_allclose(found[statistic, 100]['features'], expected.cpu().numpy(), rtol=1e-5, atol=1e-5)


def test_errors_of_the_side_thread_come_out():
    def fail(images):
        raise UserError('broken')

    task = Task(device=CPU, generator=tiny_generator().eval(), branch='2d', progress=False)
    with pytest.raises(UserError, match='broken'):
        source = GeneratedImages(task, view_label(task.generator.config), PUBLISHED)
        collect_statistics(source, [(Statistic(FeatureList, detector.FEATURES), 2)], fail, task, '')


def test_metrics_leave_torchs_random_numbers_alone(real):
    G = tiny_generator().eval()
    task = Task(device=CPU, generator=G, branch='2d', data=real, workers=1, progress=False, noise_mode='random')
    before = torch.get_rng_state()
    values(['swd20'], task)
    assert torch.equal(torch.get_rng_state(), before)


# ---------------------------------------------------------------------------------------------------------------------
# The cache of real statistics


@pytest.fixture
def cached(small, real, tmp_path, monkeypatch):
    """A function that computes a FID; it returns the value and how often real images were read."""
    folder = write_images(tmp_path / 'a', smooth_images(33, seed=2))
    passes = []
    monkeypatch.setattr(
        real_statistics, 'collect_statistics', lambda *arguments: passes.append(1) or collect_statistics(*arguments)
    )

    def run(data=real, weights=small, name='fid33_full', **changes):
        passes.clear()
        return values([name], stored_task(folder, data, tmp_path, weights, **changes))[name], len(passes)

    run.folder = tmp_path / 'cache'
    return run


def test_real_images_are_looked_at_once(cached):
    first, again = cached(), cached()
    assert first[1] == 1 and again == (first[0], 0)


def test_a_damaged_cache_is_rebuilt(cached):
    first, _ = cached()
    (path,) = cached.folder.iterdir()
    whole = path.read_bytes()
    for damage in (whole[: len(whole) // 2], b'', b'nonsense', whole[:300] + bytes([whole[300] ^ 255]) + whole[301:]):
        path.write_bytes(damage)
        assert cached() == (first, 1)
        assert path.read_bytes() == whole or cached() == (first, 0)


def test_an_interrupted_cache_leaves_nothing_broken(cached, monkeypatch):
    def interrupted(file, **arrays):
        file.write(b'half of it')
        raise KeyboardInterrupt

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(np, 'savez', interrupted)
        cached()
    assert list(cached.folder.iterdir()) == []
    assert cached()[1] == 1 and cached()[1] == 0


def test_a_cache_that_cannot_be_written_costs_a_warning(cached, monkeypatch):
    def full(file, **arrays):
        raise OSError(28, 'No space left on device')

    monkeypatch.setattr(np, 'savez', full)
    with pytest.warns(UserWarning, match='No space left on device.*--cache-dir'):
        cached()


@pytest.fixture
def homeless(monkeypatch):
    """A user without a home, as of a container's number."""

    def expand(path):
        raise RuntimeError('Could not determine home directory.')

    monkeypatch.delenv('XDG_CACHE_HOME', raising=False)
    monkeypatch.setattr(Path, 'expanduser', expand)
    files._temporary_cache.cache_clear()


def test_without_a_home_the_cache_is_temporary_and_an_option_wins(homeless, cached, small, real, tmp_path):
    first = cached()  # into --cache-dir, without a warning
    task = stored_task(cached.folder.parent / 'a', real, tmp_path, small)
    task.options['cache_dir'] = None
    passes = []
    with (
        pytest.warns(UserWarning, match='no cache folder can be written .*home directory'),
        pytest.MonkeyPatch.context() as patch,
    ):
        patch.setattr(
            real_statistics, 'collect_statistics', lambda *arguments: passes.append(1) or collect_statistics(*arguments)
        )
        assert [values(['fid33_full'], task)['fid33_full'] for _ in range(2)] == [first[0]] * 2
    assert passes == [1]


def test_the_cache_tells_data_mirroring_and_detectors_apart(cached, real, small, tmp_path):
    first, _ = cached()
    other = tmp_path / 'other.pth'
    other.write_bytes(b'another detector')
    assert [cached(name='fid33', **changes)[1] for changes in ({}, {'mirror': True}, {'seed': 1}, {})] == [1, 1, 1, 0]
    assert cached(weights=str(other))[1] == 1
    changed = tmp_path / 'set.zip'  # of the same name
    assert cached(data=write_set(changed, smooth_images(40, seed=3)))[1] == 1
    assert cached() == (first, 0)


def test_a_copy_of_the_data_is_the_same_data_as_zip_and_as_folder(real, tmp_path):
    shutil.copy(real, tmp_path / 'copy.zip')
    with zipfile.ZipFile(real) as archive:
        archive.extractall(tmp_path / 'folder')
    hashes = {ImageDataset(path).image_hash() for path in (real, tmp_path / 'copy.zip', tmp_path / 'folder')}
    assert len(hashes) == 1
    image = next((tmp_path / 'folder').rglob('*.png'))
    content = bytearray(image.read_bytes())
    content[-1] ^= 1  # as long as before
    image.write_bytes(content)
    assert ImageDataset(tmp_path / 'folder').image_hash() not in hashes


def test_a_change_of_any_image_of_a_large_set_is_noticed(tmp_path):
    """Other statistics of the real images may be kept under its name."""
    for index in range(1001):
        Image.fromarray(np.full((8, 8, 3), index % 256, np.uint8)).save(tmp_path / f'{index:04d}.bmp')  # all equally long
    before = ImageDataset(tmp_path).image_hash()
    (tmp_path / '0001.bmp').write_bytes((tmp_path / '0002.bmp').read_bytes())
    assert ImageDataset(tmp_path).image_hash() != before


# ---------------------------------------------------------------------------------------------------------------------
# Detector weights


@pytest.fixture
def hub(tmp_path, monkeypatch):
    """An empty cache of torch's, and no network."""

    def offline(url, path, **options):
        raise OSError('no route to host')

    monkeypatch.setattr(torch.hub, 'get_dir', lambda: str(tmp_path / 'hub'))
    monkeypatch.setattr(torch.hub, 'download_url_to_file', offline)
    return tmp_path / 'hub' / 'checkpoints' / 'weights-inception-2015-12-05-6726825d.pth'


def test_missing_weights_are_one_clear_line(hub):
    with pytest.raises(WeightsError) as caught:
        detector.find_weights()
    assert all(part in str(caught.value) for part in (str(hub), 'github.com/toshas', 'no route to host', '--detector=FILE'))
    assert '\n' not in str(caught.value)
    with pytest.raises(WeightsError, match='--detector=nowhere.pth'):
        detector.find_weights('nowhere.pth')


def test_weights_come_from_the_option_then_the_cache_then_a_download(hub, tmp_path, monkeypatch):
    content, downloads = b'weights', []
    monkeypatch.setattr(pretrained, 'hash_in_name', lambda path: detector.hashlib.sha256(content).hexdigest()[:8])

    def download(url, path, hash_prefix, progress):
        downloads.append((url, hash_prefix))
        Path(path).write_bytes(content)

    monkeypatch.setattr(torch.hub, 'download_url_to_file', download)
    first, again = detector.find_weights(), detector.find_weights()
    assert first == again == (str(hub), detector.hashlib.sha256(content).hexdigest()) and len(downloads) == 1
    assert downloads[0][0].endswith(hub.name) and downloads[0][1] == pretrained.hash_in_name('')
    own = tmp_path / 'own.pth'
    own.write_bytes(b'own')
    assert detector.find_weights(str(own)) == (str(own), detector.hashlib.sha256(b'own').hexdigest())
    hub.write_bytes(b'damaged')
    with pytest.raises(WeightsError, match='damaged'):
        detector.find_weights()


def test_the_hash_is_that_of_the_published_file():
    assert pretrained.hash_in_name(detector.weights_url()) == '6726825d'


class Trap:
    def __reduce__(self):
        return print, ('executed',)


@pytest.mark.parametrize(
    'content', [b'', b'nonsense', pickle.dumps(Trap(), protocol=2), None], ids=['empty', 'nonsense', 'code', 'other tensors']
)
def test_files_that_are_no_weights_are_refused_and_not_executed(content, tmp_path, capsys):
    path = tmp_path / 'weights.pth'
    torch.save({'x': torch.zeros(1)}, path) if content is None else path.write_bytes(content)
    with pytest.raises(WeightsError, match='weights.pth holds no weights') as caught:
        detector.Detector(path, [detector.FEATURES], CPU)
    assert '\n' not in str(caught.value) and 'executed' not in capsys.readouterr().out


# ---------------------------------------------------------------------------------------------------------------------
# Results


def record(value, kimg=1.0, branch='3d', metric='fid50k_full', label='run', **protocol):
    return {
        'metric': metric,
        'value': value,
        'branch': branch,
        'kimg': kimg,
        'snapshot': f'{kimg}.pkl',
        'label': label,
        'data': 'a/b.zip',
        'images': None,
        'parts': {},
        'protocol': {'truncation_psi': 1.0, **protocol},
    }


def test_the_best_snapshot_is_chosen_among_results_of_the_same_kind():
    earlier = [record(5.0), record(4.0), record(1.0, branch='2d'), record(2.0, seed=1)]
    assert results.is_best(record(3.9), earlier) and not results.is_best(record(4.0), earlier)
    assert not results.is_best(record(float('nan')), earlier) and results.is_best(record(9.0), [record(float('nan'))])
    assert results.is_best(record(9.0, metric='is50k'), [record(8.0, metric='is50k')])


def test_the_best_snapshot_is_kept(tmp_path):
    kept = []
    for number, value in enumerate([5.0, 6.0, 4.0]):
        snapshot = tmp_path / f'network-snapshot-{number}.pkl'
        snapshot.write_text(str(number))
        records = [record(value - 4, branch='2d'), record(value), record(1.0, metric='swd')]
        best = results.keep_best(tmp_path, records, snapshot, 'fid50k_full', '3d')
        kept.append((best, (tmp_path / 'network-snapshot-best.pkl').read_text()))
    assert kept == [(True, '0'), (False, '0'), (True, '2')]
    assert not results.keep_best(tmp_path, [record(0.0, branch='2d'), record(0.0, metric='swd')], snapshot, 'fid50k_full', '3d')
    assert len(results.read_folder(tmp_path)) == 11 and not list(tmp_path.glob('*.tmp'))


def test_results_are_read_back_and_a_broken_line_costs_a_warning(tmp_path):
    for value in (3.0, 2.0):
        results.append_record(tmp_path, record(value))
    assert [found['value'] for found in results.read_folder(tmp_path)] == [3.0, 2.0]
    with open(tmp_path / 'metric-fid50k_full.jsonl', 'a') as file:
        file.write('{"metric": ')
    with pytest.warns(UserWarning, match='metric-fid50k_full.jsonl: line 3'):
        assert len(results.read_folder(tmp_path)) == 2
    with pytest.raises(UserError, match='holds no metric-'):
        results.read_folder(tmp_path / 'nothing')


def test_a_table_shows_the_newest_snapshots_beside_the_published_results():
    found = [
        record(5.0, 10.0),
        record(4.5, 20.0),
        record(4.4, 20.0),
        record(30.0, 20.0, metric='psnr_mv'),
        record(7.0, branch='2d'),
    ]
    rows = tables.rows(found, published='ffhq512')
    measured = [row for row in rows if row['source'] == 'measured']
    assert [(row['method'], row.get('fid50k_full'), row.get('psnr_mv')) for row in measured] == [
        ('run 3D branch', 4.4, 30.0),
        ('run 2D branch', 7.0, None),
    ]
    text = tables.format_table(rows)
    assert '| Mimic3D 3D branch' in text and '5.37' in text and '37.8' in text and '5.14' not in text
    assert len({line.count('|') for line in text.split('\n\n')[0].splitlines()}) == 1
    assert len(tables.rows(found, every=True)) == 3
    best = [{**each, 'snapshot': 'network-snapshot-best.pkl'} for each in found[:2]]  # a name that means another one later
    assert [(row['kimg'], row['fid50k_full']) for row in tables.rows(best)] == [(20.0, 4.5)]
    split = {**record(0.4, metric='pr50k3_full'), 'parts': {'precision': 0.5, 'recall': 0.3}}
    assert tables.rows([split])[0]['pr50k3_full recall'] == 0.3
    assert tables.format_table(rows, 'csv').splitlines()[0].startswith('method,data,source,kimg,psi,fid50k_full,psnr_mv')


def test_the_published_results_are_those_of_the_paper():
    by_method = {(row['method'], row['data']): row for row in published_rows('table1')}
    assert len(by_method) == 33
    assert by_method['EG3D', 'FFHQ 256'] == {
        'method': 'EG3D',
        'data': 'FFHQ 256',
        'source': 'published',
        'fid50k_full': 4.80,
        'psnr_mv': 34.0,
        'ssim_mv': 0.928,
    }
    assert by_method['GRAM-HD', 'Cats 512']['fid50k_full'] == 7.67 and 'psnr_mv' not in by_method['GRAM-HD', 'Cats 512']


def test_results_of_another_protocol_stand_under_a_heading_of_their_own():
    found = [record(5.0), record(6.0, metric='fid3d50k_full')]
    main, heading, others = tables.format_table(tables.rows(found, published='ffhq512')).split('\n\n')
    assert 'another protocol' in heading.lower() and 'CGS-GAN' in heading and 'GGHead' not in main
    assert [[cell.strip() for cell in line.split('|')[1:-1]] for line in others.splitlines()[2:]] == [
        ['GSGAN', 'FFHQ 512', 'CGS-GAN, another protocol', '5.02', '10.5'],
        ['GGHead', 'FFHQ 512', 'CGS-GAN, another protocol', '4.34', '7.9'],
        ['CGS-GAN', 'FFHQ 512', 'CGS-GAN, another protocol', '4.94', '4.94'],
    ]
    first, *_ = tables.rows(found, published='none')
    assert (first['fid50k_full'], first['fid3d50k_full']) == (5.0, 6.0)
    assert 'another protocol' not in tables.format_table(tables.rows(found, published='ffhq256'))
    assert 'GGHead,FFHQ 512,"CGS-GAN, another protocol",4.34' in tables.format_table(tables.rows([], published='all'), 'csv')


def test_another_way_of_generating_images_has_a_column_of_its_own():
    published, exact = [dict(zip(('sampling', 'noise_mode'), rendering)) for rendering in (PUBLISHED, WITHOUT_CHANCE)]
    found = [
        record(5.0, detector='x', **published),
        record(4.0, detector='x', **exact),
        record(3.0, metric='swd', **exact),
        record(2.0, metric='swd', **published),
        record(30.0, metric='psnr_mv', **exact),
    ]
    (row,) = tables.rows(found)
    assert {name: value for name, value in row.items() if isinstance(value, float) and name not in ('kimg', 'psi')} == {
        'fid50k_full': 5.0,
        'fid50k_full (deterministic rays, const noise)': 4.0,
        'swd': 3.0,
        'psnr_mv': 30.0,
        'swd (stratified rays, random noise)': 2.0,
    }


def test_a_plot_needs_kimgs(tmp_path):
    tables.plot_metrics([record(5.0, 10.0), record(4.0, 20.0), record(6.0, 10.0, branch='2d')], tmp_path / 'plot.png')
    assert (tmp_path / 'plot.png').read_bytes().startswith(b'\x89PNG')
    with pytest.raises(UserError, match='kimg'):
        tables.plot_metrics([record(1.0, kimg=None)], tmp_path / 'no.png')


def test_records_are_plain_data_and_say_how_they_were_made(small, real, tmp_path):
    G = tiny_generator().eval()
    task = Task(
        device=CPU,
        generator=G,
        branch='2d',
        data=real,
        workers=0,
        progress=False,
        truncation_psi=0.5,
        seed=3,
        options={'detector': small, 'cache_dir': str(tmp_path)},
    )
    (found,) = compute_records(['fid33_full'], task, {'snapshot': 'x.pkl', 'kimg': 12.0, 'label': 'x'})
    assert json.loads(json.dumps(found)) == found
    assert {'value', 'snapshot', 'kimg', 'branch', 'seconds', 'gpus', 'versions'} <= set(found)
    expected = {
        'images': 33,
        'real_images': 40,
        'cameras': 'training labels',
        'truncation_psi': 0.5,
        'render_resolution': 8,
        'samples_per_ray': [6, 4],
        'sampling': 'stratified',
        'noise_mode': 'random',
        'conditioning_camera': 'rendering',
        'skip': 0.0,
        'seed': 3,
        'detector': detector.NAME,
    }
    assert {name: found['protocol'][name] for name in expected} == expected
    assert len(found['protocol']['detector_sha256']) == 64


NAMES = ('fid33_full', 'fid3d33_full', 'fid20', 'kid20', 'pr203_full', 'is20', 'swd20')


@pytest.fixture
def evaluated(small, real, tmp_path):
    """A function that computes metrics of a generator's 3D branch: records by name."""

    def of_generator(G, names=NAMES, **changes):
        options = {'detector': small, 'cache_dir': str(tmp_path / 'cache')}
        task = Task(device=CPU, generator=G, data=real, workers=0, progress=False, options=options, **{'branch': '3d', **changes})
        return {record['metric']: record for record in compute_records(names, task)}

    return of_generator


def test_every_metric_has_its_own_way_of_generating_images_and_says_so(evaluated):
    def ways(records):
        return {name: tuple(record['protocol'][part] for part in Rendering._fields) for name, record in records.items()}

    inception = dict.fromkeys(NAMES[:-1], tuple(PUBLISHED))
    assert ways(evaluated(noisy_generator())) == {**inception, 'fid3d33_full': tuple(FRONTAL), 'swd20': tuple(WITHOUT_CHANCE)}
    exact = {**dict.fromkeys(NAMES, tuple(WITHOUT_CHANCE)), 'fid3d33_full': ('deterministic', 'const', 'frontal')}
    assert ways(evaluated(noisy_generator(), sampling='deterministic', noise_mode='const')) == exact
    only_rays = evaluated(noisy_generator(), ['is20', 'swd20'], sampling='deterministic')
    assert ways(only_rays) == {'is20': ('deterministic', 'random', 'rendering'), 'swd20': tuple(WITHOUT_CHANCE)}
    frontal = evaluated(noisy_generator(), ['fid3d33_full'])['fid3d33_full']['protocol']['frontal_camera']
    assert frontal == {'radius': 2.7, 'pivot': [0.0, 0.0, 0.2], 'focal': pytest.approx(4.2647)}


def test_metrics_with_chance_are_reproducible_and_do_not_depend_on_the_batch(evaluated):
    first, again, other = (evaluated(noisy_generator(), batch=batch) for batch in (16, 16, 5))
    for name, record in first.items():
        assert again[name]['value'] == record['value']
        assert other[name]['value'] == pytest.approx(record['value'], rel=1e-4), name  # a few pixels round the other way
    exact = evaluated(noisy_generator(), sampling='deterministic', noise_mode='const')
    changed = [name for name in NAMES if exact[name]['value'] != pytest.approx(first[name]['value'], rel=2e-3)]
    assert set(changed) >= {'fid33_full', 'fid3d33_full', 'fid20', 'kid20'} and 'swd20' not in changed


def test_fid3d_is_fid_where_no_camera_conditions_the_generator(evaluated, monkeypatch):
    names = ('fid33_full', 'fid3d33_full')
    conditioned = evaluated(noisy_generator(), names)
    assert conditioned['fid33_full']['value'] != conditioned['fid3d33_full']['value']
    made = []
    make = GeneratedImages.make
    monkeypatch.setattr(GeneratedImages, 'make', lambda self, numbers: made.append(len(numbers)) or make(self, numbers))
    free = evaluated(noisy_generator(pose_conditioning=False), names)
    assert free['fid33_full']['value'] == free['fid3d33_full']['value'] and sum(made) == 33
    assert free['fid3d33_full']['protocol']['conditioning_camera'] == 'none'


def test_stored_images_have_no_fid3d_and_name_no_way_of_generating_them(small, real, tmp_path):
    folder = write_images(tmp_path / 'a', smooth_images(33, seed=2))
    task = stored_task(folder, real, tmp_path, small)
    with pytest.raises(UserError, match='fid3d33_full needs --network'):
        values(['fid3d33_full'], task)
    for found in compute_records(['fid33_full', 'swd'], task):
        assert found['protocol']['sampling'] is None and found['protocol']['noise_mode'] is None
