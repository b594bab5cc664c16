"""What is kept of a set of images while it streams by."""

from concurrent.futures import ThreadPoolExecutor
from typing import NamedTuple

import torch
from tqdm import tqdm

from metrics.detector import WIDTHS
from torch_utils import distributed


class Statistic(NamedTuple):
    """What is kept, and of what.

    layer: of the detector, whose features are taken; None: the images themselves are.
    collector: a class. `collector(count, size, device)` takes in `count` images; size: the features' width, or the images' side.
      add(numbers, values)   a batch: a range of image numbers, and float32 [n, size] or uint8 [n, 3, size, size]
      finish()               over all processes: a dictionary of arrays, the same everywhere
    """

    collector: type
    layer: str | None


def collect_statistics(source, wanted, detector, task, description):
    """Stream images, through the detector, into collectors.

    source: see metrics/images.py; wanted: [(Statistic, count)], in the same order on every process; detector: for statistics
    that have a layer, or None.
    Returns {(statistic, count): what its collector found}. Every process must call it.
    """
    sizes = {None: source.resolution, **WIDTHS}
    collectors = {key: key[0].collector(key[1], sizes[key[0].layer], task.device) for key in wanted}
    longest = max(count for _, count in wanted)
    detects = any(statistic.layer for statistic, _ in wanted)
    beside = Beside(task.device)

    def take_in(numbers, images):
        values = {None: images, **(detector(images) if detects else {})}
        for (statistic, count), collector in collectors.items():
            taken = range(numbers.start, min(numbers.stop, count))
            if taken:
                collector.add(taken, values[statistic.layer][: len(taken)])

    shown = task.progress and distributed.rank() == 0
    with tqdm(total=longest, unit='img', desc=description, dynamic_ncols=True, leave=False, disable=not shown) as bar:
        for numbers, images in source.batches(longest):
            distributed.look_around()
            beside.give(take_in, numbers, images)
            bar.update(min(len(numbers) * distributed.world_size(), longest - bar.n))
        beside.finish()
    return {key: collector.finish() for key, collector in collectors.items()}


class Beside:
    """Work on images beside the work that makes them: in a thread of its own and, on a GPU, on a stream of its own.

    So generation never waits for features, unless these are a whole batch behind, and features wait for their images only.
    """

    def __init__(self, device):
        self._thread, self._last = ThreadPoolExecutor(max_workers=1), None
        self._stream = torch.cuda.Stream(device) if device.type == 'cuda' else None

    def give(self, function, numbers, images):
        """Have `function(numbers, images)` done; waits for what was given before, but on a GPU only for its launch."""
        self._wait()
        if self._stream is None:
            self._last = self._thread.submit(function, numbers, images)
        else:
            images.record_stream(self._stream)  # the allocator must not reuse the memory before this stream is done with it
            made = torch.cuda.current_stream().record_event()
            self._last = self._thread.submit(self._run_on_stream, made, function, numbers, images)

    def _run_on_stream(self, made, function, numbers, images):
        with torch.cuda.device(self._stream.device), torch.cuda.stream(self._stream):
            self._stream.wait_event(made)
            function(numbers, images)

    def _wait(self):
        """Wait for what was given last, and raise its error."""
        last, self._last = self._last, None
        if last is not None:
            last.result()

    def finish(self):
        """End the thread; what follows on the current stream sees all results."""
        self._wait()
        self._thread.shutdown()
        if self._stream is not None:
            torch.cuda.current_stream().wait_stream(self._stream)
