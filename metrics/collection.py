"""Streaming images through the detector into collectors."""

from concurrent.futures import ThreadPoolExecutor

import torch
from tqdm import tqdm

from torch_utils import distributed


def collect(source, wanted, detector, task, description):
    """Stream images through the detector into collectors.

    source: see metrics/images.py; wanted: [(statistic, count)], in the same order on every process; detector: for statistics that
    have a layer, or None.
    Returns {(statistic, count): what its collector found}. Every process must call it.
    """
    collectors = {(statistic, count): statistic.start(count, source.resolution, task.device) for statistic, count in wanted}
    longest = max(count for _, count in wanted)
    detects = any(statistic.layer for statistic, _ in wanted)
    beside = Beside(task.device)

    def take_in(numbers, images):
        features = detector(images) if detects else {}
        for (_, count), collector in collectors.items():
            n = len(range(numbers.start, min(numbers.stop, count)))
            if n:
                collector.add(numbers[:n], images[:n], {layer: values[:n] for layer, values in features.items()})

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
