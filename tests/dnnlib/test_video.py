"""Writing videos."""

import os

import numpy as np
import pytest

from dnnlib.errors import UserError
from dnnlib.video import VideoWriter
from tests.helpers import read_video

# ---------------------------------------------------------------------------------------------------------------------
# gen_videos.py


def test_broken_off_video_leaves_no_file(tmp_path):
    with pytest.raises(KeyboardInterrupt):
        with VideoWriter(tmp_path / 'film.mp4', fps=10) as video:
            video.add(np.zeros((16, 16, 3), np.uint8))
            raise KeyboardInterrupt
    assert not list(tmp_path.iterdir())


def test_video_keeps_colours_and_pads_odd_sizes(tmp_path):
    color = np.array([200, 80, 40], np.uint8)
    with VideoWriter(tmp_path / 'film.mp4', fps=24, crf=10) as video:
        for _ in range(3):
            video.add(np.broadcast_to(color, (33, 65, 3)))
    meta, frames = read_video(tmp_path / 'film.mp4')
    assert meta['size'] == (66, 34) and len(frames) == 3
    assert 'bt709' in meta['pix_fmt']
    assert np.abs(frames[1].astype(int) - color).max() <= 4


# ---------------------------------------------------------------------------------------------------------------------
# Outputs that cannot be written, and full memories


def test_an_encoder_that_fails_is_one_line_and_leaves_no_file(tmp_path):
    frame = np.zeros((16, 16, 3), np.uint8)
    with pytest.raises(UserError, match='film.mp4 could not be written by ffmpeg'):
        with VideoWriter(tmp_path / 'absent' / 'film.mp4', fps=10) as video:
            for _ in range(10**4):  # more than the pipe to an encoder that has ended would take
                video.add(frame)
    with pytest.raises(UserError, match='film.mp4 could not be written by ffmpeg'):
        with VideoWriter(tmp_path / 'absent' / 'film.mp4', fps=10) as video:
            video.add(frame)
    with pytest.raises(UserError, match='film.mp4 could not be written by ffmpeg'):
        with VideoWriter(tmp_path / 'film.mp4', fps=10) as video:
            video.add(frame)
            video._encoder.close()
            os.truncate(tmp_path / 'film.part.mp4', 40)  # as on a full disk
    assert not list(tmp_path.iterdir())
