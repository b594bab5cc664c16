"""Cameras of views and of orbits."""

import math

import pytest
import torch

from training.config import GeneratorConfig
from training.rendering.cameras import full_orbit, portrait_orbit, split_label, view_label


def test_view_directions():
    config = GeneratorConfig()
    label = view_label(config, [0.0, 0.3, 0.0], [0.0, 0.0, 0.3])
    poses, intrinsics = split_label(label)
    origin = poses[:, :3, 3]
    torch.testing.assert_close(origin[0], torch.tensor([0.0, 0.0, 2.7]))
    torch.testing.assert_close(origin[1], 2.7 * torch.tensor([math.sin(0.3), 0.0, math.cos(0.3)]))
    assert origin[2, 1] == pytest.approx(2.7 * -0.6 / math.pi, rel=1e-4)
    torch.testing.assert_close(poses[0, :3, 2], torch.tensor([0.0, 0.0, -1.0]))
    to_pivot = torch.nn.functional.normalize(torch.tensor(config.rendering.camera_pivot) - origin[1], dim=0)
    torch.testing.assert_close(poses[1, :3, 2], to_pivot)
    assert intrinsics[:, 0, 0].tolist() == pytest.approx([4.2647] * 3, abs=1e-4)
    assert view_label(config, focal=2.0)[0, 16] == 2


def test_orbits_close_and_keep_their_range():
    yaw, pitch = portrait_orbit(8, 0.4, 0.2)
    torch.testing.assert_close(yaw[[0, 2, 4, 6]], torch.tensor([0, 0.4, 0, -0.4]), atol=1e-6, rtol=0)
    torch.testing.assert_close(pitch[[0, 2, 4, 6]], torch.tensor([0.2, 0, -0.2, 0]), atol=1e-6, rtol=0)
    yaw, pitch = full_orbit(4, -0.1)
    torch.testing.assert_close(yaw, torch.arange(4) * math.pi / 2)
    assert pitch.tolist() == pytest.approx([-0.1] * 4)
