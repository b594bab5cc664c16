"""How straight the lines of a texture image are."""

import torch

from sampling.texture_images import straightness


def stripes(jitter=0.0):
    """A texture image of stripes that move by half a pixel a frame; jitter: pixels by which frames stray."""
    frame, column = torch.arange(60.0)[:, None], torch.arange(80.0)
    strays = jitter * torch.randn(60, 1, generator=torch.Generator().manual_seed(0))
    return (128 + 100 * torch.sin(0.8 * (column - 0.5 * frame - strays)))[None].expand(3, -1, -1).to(torch.uint8)


def test_straightness_falls_with_jitter():
    scores = [straightness(stripes(jitter)) for jitter in (0.0, 0.3, 0.6, 1.5)]
    assert scores[0] > 0.99 and scores[-1] < 0.75
    assert all(first > second + 0.01 for first, second in zip(scores, scores[1:])), scores
    noise = torch.randint(256, (3, 60, 80), generator=torch.Generator().manual_seed(0))
    assert straightness(noise) < 0.4 and straightness(stripes().transpose(1, 2)) > 0.99
