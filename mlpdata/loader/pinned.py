"""Tiers whose pixels are not on the device: a thread prepares the next batches in host memory and copies them over.

The copies run on a stream of their own while the device works on the batches before. On a CPU device the thread
prepares batches and nothing is copied.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Generator, Iterator

import numpy as np
import torch

from mlpdata.augment.batch import Batch
from mlpdata.loader.buffers import BufferPool
from mlpdata.loader.order import EpochSteps
from mlpdata.loader.reader import Reader
from mlpdata.loader.resident import batch_of, load_pixels, plane_shapes
from mlpdata.loader.subset import Selection
from mlpdata.system.threads import Wait, no_wait, overlap, prefetch

NUM_AHEAD = 4  # batches that wait ready, or fewer
AHEAD_BYTES = 512 << 20  # if those would be larger

# Starts to fill the planes of a batch, uint8 arrays (n, ...); the Wait returns when they are filled.
Fill = Callable[[list[np.ndarray]], Wait]


class HostTier:
    """What Pinned and Stream share: batches ahead of the consumer, and their way to the device."""

    blocks: tuple[int, int] | None = None

    def __init__(self, reader: Reader, selection: Selection, device: torch.device, pixels: str = "rgb"):
        self.reader, self.selection, self.device = reader, selection, device
        self.plane_shapes = plane_shapes(reader.shape, pixels)

    def _fills(self, steps: EpochSteps) -> Iterator[tuple[np.ndarray, Fill]]:
        """(rows of a step, what fills the planes with their pixels), step by step."""
        raise NotImplementedError

    def batches(self, steps: EpochSteps) -> Generator[Batch, None, None]:
        """The batches of an epoch's steps."""
        depth = max(1, min(NUM_AHEAD, AHEAD_BYTES // (steps.local_batch_size * self.reader.image_bytes)))
        if self.device.type == "cpu":
            prepared = overlap(self._prepare(steps, BufferPool().take))
            return prefetch((_batch(*tensors) for tensors in prepared), depth)
        return self._copy(steps, depth)

    def _prepare(
        self, steps: EpochSteps, empty: Callable[[tuple[int, ...]], torch.Tensor]
    ) -> Generator[tuple[list[torch.Tensor], Wait], None, None]:
        """([*planes, labels and ids int64 (2, n)] of a batch in host memory, until when), step by step."""
        for rows, fill in self._fills(steps):
            planes = [empty((len(rows), *shape)) for shape in self.plane_shapes]
            numbers = torch.from_numpy(np.stack([self.selection.labels[rows], self.selection.ids_of_rows(rows)]))
            if self.device.type == "cuda":
                numbers = numbers.pin_memory()
            yield [*planes, numbers], fill([plane.numpy() for plane in planes])

    def _copy(self, steps: EpochSteps, depth: int) -> Generator[Batch, None, None]:
        copy_stream = torch.cuda.Stream(self.device)
        handed_out: deque[torch.Event] = deque()  # in the consumer's stream, one a batch

        def pinned(shape: tuple[int, ...]) -> torch.Tensor:
            # torch keeps pinned memory that is let go of, and gives it out again only when copies from it are done.
            return torch.empty(shape, dtype=torch.uint8, pin_memory=True)

        def copied() -> Generator[tuple[list[torch.Tensor], torch.Event], None, None]:
            torch.cuda.set_device(self.device)  # this generator runs in a thread of its own
            for tensors in overlap(self._prepare(steps, pinned)):
                # The host may launch work far ahead of the device, and the memory of a batch is only free again when
                # the device is done with it: do not copy more batches than the device is about to need.
                while len(handed_out) > NUM_AHEAD:
                    handed_out.popleft().synchronize()
                with torch.cuda.stream(copy_stream):
                    on_device = [tensor.to(self.device, non_blocking=True) for tensor in tensors]
                yield on_device, copy_stream.record_event()

        for on_device, event in prefetch(copied(), depth):
            stream = torch.cuda.current_stream(self.device)
            stream.wait_event(event)
            for (
                tensor
            ) in on_device:  # their memory belongs to copy_stream, which must not reuse it while this one reads
                tensor.record_stream(stream)
            handed_out.append(stream.record_event())
            yield _batch(*on_device)


def _batch(*tensors: torch.Tensor) -> Batch:
    *planes, numbers = tensors
    return batch_of(planes, numbers[0], numbers[1])


class Pinned(HostTier):
    """All pixels in host memory; a batch is one gather there, into pinned buffers."""

    def __init__(self, reader: Reader, selection: Selection, device: torch.device, pixels: str = "rgb"):
        super().__init__(reader, selection, device, pixels)
        self.stores = load_pixels(reader, selection.all_ids, torch.device("cpu"), pixels)

    def _fills(self, steps: EpochSteps) -> Iterator[tuple[np.ndarray, Fill]]:
        for step in steps.range:
            rows = steps.rows(step)

            def fill(planes: list[np.ndarray], rows: np.ndarray = rows) -> Wait:
                for store, plane in zip(self.stores, planes, strict=True):
                    torch.index_select(store, 0, torch.from_numpy(rows), out=torch.from_numpy(plane))
                return no_wait

            yield rows, fill
