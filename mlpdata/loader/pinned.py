"""Tiers whose pixels are not on the device: a thread prepares the next batches in host memory and copies them over.

The copies run on a stream of their own while the device works on the batches before. On a CPU device the thread
prepares batches and nothing is copied.
"""

from __future__ import annotations

import itertools
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
            return prefetch(overlap(self._cpu_batches(steps)), depth)
        return self._cuda_batches(steps, depth)

    def _cpu_batches(self, steps: EpochSteps) -> Generator[tuple[Batch, Wait], None, None]:
        buffers = BufferPool()
        for rows, fill in self._fills(steps):
            planes = [buffers.take((len(rows), *shape)) for shape in self.plane_shapes]
            wait = fill([plane.numpy() for plane in planes])
            labels, ids = self.selection.labels[rows], self.selection.ids_of_rows(rows)
            yield batch_of(planes, torch.from_numpy(labels), torch.from_numpy(ids)), wait

    def _cuda_batches(self, steps: EpochSteps, depth: int) -> Generator[Batch, None, None]:
        copy_stream = torch.cuda.Stream(self.device)
        handed_out: deque[torch.Event] = deque()  # in the consumer's stream, one a batch

        def filled():
            ring = itertools.cycle([_PinnedBuffers(self.plane_shapes) for _ in range(max(2, depth))])
            for rows, fill in self._fills(steps):
                buffers = next(ring)
                planes, numbers = buffers.take(len(rows))
                numbers[0] = torch.from_numpy(self.selection.labels[rows])
                numbers[1] = torch.from_numpy(self.selection.ids_of_rows(rows))
                yield (buffers, planes, numbers), fill([plane.numpy() for plane in planes])

        def copied():
            torch.cuda.set_device(self.device)  # this generator runs in a thread of its own
            for buffers, planes, numbers in overlap(filled()):
                # The host may launch work far ahead of the device, and the memory of a batch is only free again when
                # the device is done with it: do not copy more batches than the device is about to need.
                while len(handed_out) > NUM_AHEAD:
                    handed_out.popleft().synchronize()
                with torch.cuda.stream(copy_stream):
                    on_device = [tensor.to(self.device, non_blocking=True) for tensor in (*planes, numbers)]
                    buffers.copied = copy_stream.record_event()
                yield on_device, buffers.copied

        for on_device, event in prefetch(copied(), depth):
            stream = torch.cuda.current_stream(self.device)
            stream.wait_event(event)
            for tensor in on_device:  # their memory belongs to copy_stream: it must not reuse it while this one reads
                tensor.record_stream(stream)
            handed_out.append(stream.record_event())
            *planes, numbers = on_device
            yield batch_of(planes, numbers[0], numbers[1])


class _PinnedBuffers:
    """Pinned memory for a batch, and the event after the last copy out of it: only then it may be filled again."""

    def __init__(self, shapes: list[tuple[int, int, int]]):
        self.copied: torch.Event | None = None
        self._shapes, self._capacity = shapes, 0
        self._planes: list[torch.Tensor] = []
        self._numbers = torch.empty(0, dtype=torch.int64)

    def take(self, n: int) -> tuple[list[torch.Tensor], torch.Tensor]:
        """Planes uint8 (n, ...), and labels and ids int64 (2, n), free to be written."""
        if self.copied is not None:
            self.copied.synchronize()
        if n > self._capacity:
            self._planes = [torch.empty((n, *shape), dtype=torch.uint8, pin_memory=True) for shape in self._shapes]
            self._numbers = torch.empty(2 * n, dtype=torch.int64, pin_memory=True)
            self._capacity = n
        return [plane[:n] for plane in self._planes], self._numbers[: 2 * n].view(2, n)


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
