"""From seeds to subjects, and the branches of a generator."""

import pytest
import torch

from dnnlib.errors import UserError
from sampling import subjects
from training.rendering.cameras import view_label


def test_subject_depends_on_its_seed_alone(networks):
    G = networks['stage2']
    torch.testing.assert_close(subjects.seed_ws(G, [7, 8, 9])[1], subjects.seed_ws(G, [8])[0])
    for name, parameter in G.named_parameters():
        if 'noise_strength' in name:
            parameter.fill_(1.0)
    ws = subjects.seed_ws(G, [8])
    noisy = [subjects.make_subject(G, ws, 'random', seed).planes.coarse for seed in (8, 8, 9)]
    assert noisy[0].equal(noisy[1]) and not noisy[0].equal(noisy[2])


def test_all_views_are_conditioned_on_the_frontal_camera(networks, monkeypatch):
    G = networks['stage2']
    seen = []
    monkeypatch.setattr(G.mapping, 'forward', lambda z, c, **options: seen.append(c))
    subjects.seed_ws(G, [0, 1])
    torch.testing.assert_close(seen[0], view_label(G.config, 0, 0).expand(2, -1))


def test_truncation_reaches_the_mapping(networks):
    G = networks['stage2']
    G.mapping.w_avg.normal_()
    at_mean = subjects.seed_ws(G, [0, 1], 0.0)
    torch.testing.assert_close(at_mean[0], at_mean[1])
    cut = subjects.seed_ws(G, [0], 0.0, 1)[0]
    assert cut[0].equal(at_mean[0, 0]) and not torch.allclose(cut[1], at_mean[0, 1])


@pytest.mark.parametrize('count', [1, 2, 5])
def test_closed_path_meets_its_keys_smoothly(count):
    keys = torch.randn(count, 3, 4, generator=torch.Generator().manual_seed(0))
    path = subjects.closed_path(keys)
    for k in range(2 * count):
        torch.testing.assert_close(path(k), keys[k % count])
    step = 1e-3
    before, after = (keys[0] - path(count - step)) / step, (path(step) - keys[0]) / step
    torch.testing.assert_close(before, after, atol=0.05, rtol=0.05)


def test_3d_branch_of_stage_1_is_an_error(networks):
    with pytest.raises(UserError, match='no 3D branch'):
        subjects.choose_branches(networks['stage1'], '3d')
