"""Streaming images through the detector into collectors."""

import torch
from tqdm import tqdm

from torch_utils import distributed


def collect(source, wanted, detector, task, description):
    """Stream images through the detector into collectors.

    source: see metrics/images.py; wanted: {(statistic, count)}; detector: None where no statistic needs it.
    Returns {(statistic, count): what its collector found}. Every process must call it.
    """
    collectors = {(statistic, count): statistic.start(count, source.resolution, task.device) for statistic, count in wanted}
    longest = max(count for _, count in wanted)
    beside = SideStream(task.device)

    def take_in(numbers, images):
        features = detector(images) if detector else {}
        for (_, count), collector in collectors.items():
            n = len(range(numbers.start, min(numbers.stop, count)))
            if n:
                collector.add(numbers[:n], images[:n], {layer: values[:n] for layer, values in features.items()})

    shown = task.progress and distributed.rank() == 0
    with tqdm(total=longest, unit='img', desc=description, dynamic_ncols=True, disable=not shown) as bar, torch.no_grad():
        for numbers, images in source.batches(longest):
            beside.run(take_in, numbers, images)
            bar.update(min(len(numbers) * distributed.world_size(), longest - bar.n))
    beside.finish()
    return {key: collector.finish() for key, collector in collectors.items()}


class SideStream:
    """Work on images beside the work that makes them: on a GPU on a stream of its own, elsewhere at once.

    Neither the host nor the stream that generates waits for the features, and the features wait for their own images only.
    """

    def __init__(self, device):
        self.stream = torch.cuda.Stream(device) if device.type == 'cuda' else None

    def run(self, function, numbers, images):
        if self.stream is None:
            return function(numbers, images)
        self.stream.wait_stream(torch.cuda.current_stream())
        images.record_stream(self.stream)  # the allocator must not reuse the memory before this stream is done with it
        with torch.cuda.stream(self.stream):
            function(numbers, images)

    def finish(self):
        """What follows on the current stream sees all results."""
        if self.stream is not None:
            torch.cuda.current_stream().wait_stream(self.stream)
