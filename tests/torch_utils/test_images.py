"""Pictures of tensors."""

import math

import numpy as np
import torch

from torch_utils.images import depth_to_image, image_grid, to_uint8


def test_8_bit_images():
    assert to_uint8(torch.tensor([-2.0, -1.0, 0.0, 0.5, 1.0, 2.0])).tolist() == [0, 0, 128, 191, 255, 255]


def test_image_grid_runs_row_by_row():
    images = torch.arange(1, 6, dtype=torch.uint8)[:, None, None, None].expand(-1, 3, 2, 4)
    pixels = np.asarray(image_grid(images, columns=2))
    assert pixels.shape == (6, 8, 3)
    assert pixels[::2, ::4, 0].tolist() == [[1, 2], [3, 4], [5, 0]]


def test_nearer_is_brighter():
    depth = torch.tensor([[[[2.0, 2.5, 3.0, math.inf]]], [[[1.0, 1.0, 1.0, 1.0]]]])
    brightness = depth_to_image(depth).float().mean(dim=1)[:, 0]
    assert brightness[0, 0] > brightness[0, 1] > brightness[0, 2] == brightness[0, 3]
    assert brightness[1].unique().tolist() == [brightness[0, 2]]
