"""The benchmarks of rendering and of the generator run small, and count what they say they count."""

import os

import pytest
import torch

from benchmarks import generator, render
from training.presets import PRESETS, generator_config
from training.rendering.fused import VARIABLE


def test_rendering_is_timed(monkeypatch):
    monkeypatch.setenv(VARIABLE, 'ref')
    G = render.build_generator('ffhq512', small=True, device=torch.device('cpu'))
    result = render.measure_renders(G, torch.device('cpu'), repeats=1, skips=[1e-2])
    assert os.environ[VARIABLE] == 'ref'
    names = [(row['case'], row['batch'], row['variant']) for row in result['rows']]
    assert names[:2] == [('3D branch', 1, 'ref'), ('3D branch', 1, 'ref skip 0.01')]
    assert all(row['milliseconds'] > row['floor'] / 10 > 0 for row in result['rows'])  # the rates are measured in a moment
    assert len(list(render.renders_table(result))) == 3 + len(result['rows'])


def test_floors_are_counted_from_the_sizes():
    config = generator_config(PRESETS['ffhq512'])
    case = render.RenderCase('3D branch', '3d', 1)
    assert render.samples_of(config, case) == [(512 * 512, 96, 3, 2)]
    operations = 512 * 512 * 96 * 2 * (32 * 64 + 64 * 4 + 24 * 32)  # MLP, and 4 texels of 6 planes
    rates = dict(copy=1e9, fp32=1.0, tf32=2.0)
    assert render.floor_milliseconds(config, case, rates, 'fp32') == pytest.approx(operations / 1e9)
    assert render.floor_milliseconds(config, case, rates, 'tf32x3') == pytest.approx(operations / 1e9 * 1.5)
    bound_by_memory = render.floor_milliseconds(config, case, dict(copy=1.0, fp32=1e9), 'fp32')
    assert bound_by_memory == pytest.approx(4 * (3 * 32 * (256**2 + 512**2) + 512 * 512 * 12) / 1e6)


def test_the_generator_is_timed():
    result = generator.measure_variants('demo', [1], torch.device('cpu'), repeats=1)
    counts = {(row['awareness'], row['convolution'], row['ran']): row['multiplications'] for row in result['rows']}
    for awareness in ('stream', 'latent'):
        assert counts[awareness, 'strips', 'forward'] < counts[awareness, 'concatenated', 'forward']
        assert counts[awareness, 'strips', 'forward + backward'] > counts[awareness, 'strips', 'forward']
    assert len(list(generator.variants_table(result))) == 3 + len(result['rows'])
