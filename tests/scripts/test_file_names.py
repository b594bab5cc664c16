"""File names are file names: no program that is called takes them for options, protocols, patterns or formats."""

import json
import os
import shutil

import numpy as np
import pytest
import torch
from PIL import Image

import calc_metrics
import dataset_tool
import gen_samples
import gen_videos
from dnnlib.video import VideoWriter
from metrics import results
from tests.helpers import read_video, save_snapshot, succeed
from tests.metrics.test_metrics import write_set
from tests.small_detector import smooth_images, write_images
from tests.tiny import tiny_generator
from training.data.dataset import ImageDataset, PosedImageDataset
from training.rendering.cameras import view_label

NAMES = ('10:30', '-x', '%d %s', '[a]*?', "it's", 'http:', 'pipe:1', 'ä\\n', 'two\nlines')


@pytest.fixture
def here(tmp_path, monkeypatch):
    """A current folder, so that relative paths begin with their name."""
    monkeypatch.chdir(tmp_path)


@pytest.mark.parametrize('name', NAMES)
def test_videos(name, here):
    with VideoWriter(f'{name}.mp4', fps=10) as video:
        for _ in range(2):
            video.add(np.zeros((16, 16, 3), np.uint8))
    assert os.listdir() == [f'{name}.mp4'] and len(read_video(os.path.abspath(f'{name}.mp4'))[1]) == 2


@pytest.mark.parametrize('name', NAMES[:3])
def test_what_the_scripts_read_and_write(name, here):
    """Snapshot, data, pictures, meshes, videos, results, plots."""
    G = tiny_generator()
    images = smooth_images(4, seed=1)
    save_snapshot(f'{name}.pkl', {'G_ema': G}, {'images_seen': 1000})
    write_set(f'{name}.zip', images, view_label(G.config, torch.linspace(-0.5, 0.5, 4)))
    common = (f'--network={name}.pkl', '--seeds=0', '--branch=3d', '--device=cpu')
    succeed(gen_samples.main, *common, '--shapes', '--shape-resolution=8', '--shape-level=0.2', f'--outdir={name}')
    succeed(gen_videos.main, *common, '--frames=2', f'--output={name}.MP4')
    succeed(gen_videos.main, *common, '--frames=2', '--epi', f'--output={name}.PNG')
    succeed(
        calc_metrics.main,
        '--metrics=swd4',
        f'--network={name}.pkl',
        f'--data={name}.zip',
        '--branch=3d',
        '--workers=0',
        f'--outdir={name}.out',
    )
    succeed(calc_metrics.main, 'plot', f'--output={name}.plot', '--', f'{name}.out')
    cameras = ('.PNG.cameras.json', '.MP4.cameras.json')
    suffixes = ('', '.PNG', '.MP4', *cameras, '.out', '.pkl', '.plot', '.zip')
    assert set(os.listdir()) == {f'{name}{suffix}' for suffix in suffixes}
    assert {Image.open(f'{name}{suffix}').format for suffix in ('.PNG', '.plot')} == {'PNG'}
    assert sorted(os.listdir(name)) == ['cameras.json', 'samples_3d.png', 'seed0000.glb', 'seed0000.ply']
    assert results.read_folder(f'{name}.out')[0]['snapshot'] == os.path.abspath(f'{name}.pkl')


def test_images_of_a_set(tmp_path):
    """In a folder and in a zip, with cameras and without."""
    names = [f'{name}.png' for name in NAMES if '\\' not in name]
    folder = write_images(tmp_path / 'set', smooth_images(len(names), seed=1))
    for old, new in zip(sorted(os.listdir(folder)), names):
        os.rename(folder / old, folder / new)
    label = view_label(tiny_generator().config)[0].tolist()
    (folder / 'dataset.json').write_text(json.dumps({'labels': [[name, label] for name in names]}))
    archive = shutil.make_archive(tmp_path / 'set', 'zip', folder)
    for path in (folder, archive):
        for kind in (ImageDataset, PosedImageDataset):
            items = kind(path)
            assert len(items) == len(names) and len({str(items[i]) for i in range(len(items))}) == len(names)
    succeed(dataset_tool.main, 'convert', f'--source={folder}', f'--dest={tmp_path / "a:b%d.zip"}', '--resolution=16')
    assert len(PosedImageDataset(tmp_path / 'a:b%d.zip')) == len(names)
