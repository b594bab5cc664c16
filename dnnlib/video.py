"""H.264 videos from frames."""

import contextlib
import os
from pathlib import Path

import imageio_ffmpeg
import numpy as np

from dnnlib.errors import UserError
from dnnlib.files import remove

# HD players assume BT.709; without the tags and the conversion colours shift a little.
_COLOURS = [
    '-vf',
    'scale=out_color_matrix=bt709:out_range=tv',
    '-colorspace',
    'bt709',
    '-color_primaries',
    'bt709',
    '-color_trc',
    'bt709',
    '-color_range',
    'tv',
]


class VideoWriter(contextlib.AbstractContextManager):
    """An mp4 (H.264, yuv420p) that appears under its name only once it is complete.

    with VideoWriter(path, fps) as video:
        video.add(frame)  # uint8 [H, W, 3], all of one size

    crf: constant rate factor, 0 (lossless) to 51 (worst); 18 looks lossless.
    Raises UserError when the encoder cannot write.
    """

    def __init__(self, path, fps, crf=18):
        self.path, self.fps, self.crf = Path(path).absolute(), fps, crf  # ffmpeg reads relative names as options and protocols
        self._beside = self.path.with_name(f'{self.path.stem}.part.mp4')
        self._encoder = None

    def add(self, frame):
        """Append a frame, uint8 [H, W, 3]; odd sizes repeat their last row or column, since yuv420p needs even ones."""
        frame = np.pad(frame, ((0, frame.shape[0] % 2), (0, frame.shape[1] % 2), (0, 0)), mode='edge')
        if self._encoder is None:
            self._encoder = self._start(frame.shape[1], frame.shape[0])
        try:
            self._encoder.send(np.ascontiguousarray(frame))
        except OSError:  # the encoder has ended, and has said why
            raise self._failure() from None

    def __exit__(self, kind, error, traceback):
        if self._encoder is not None:
            self._encoder.close()
        try:
            if kind is None and self._encoder is not None:
                self._finish()
        finally:
            remove(self._beside)

    def _finish(self):
        try:
            next(imageio_ffmpeg.read_frames(str(self._beside)))  # the encoder's exit code is not to be had
        except (OSError, RuntimeError, StopIteration):
            raise self._failure() from None
        os.replace(self._beside, self.path)

    def _failure(self):
        return UserError(f'{self.path} could not be written by ffmpeg; choose another path or make room')

    def _start(self, width, height):
        encoder = imageio_ffmpeg.write_frames(
            str(self._beside),
            (width, height),
            fps=self.fps,
            codec='libx264',
            pix_fmt_out='yuv420p',
            quality=None,
            macro_block_size=2,
            output_params=['-crf', str(self.crf), '-movflags', '+faststart', *_COLOURS],
        )
        encoder.send(None)
        return encoder
