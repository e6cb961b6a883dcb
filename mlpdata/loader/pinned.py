"""Tiers whose pixels are not on the device: a thread prepares the next batches in host memory and copies them over.

The copies run on a stream of their own while the device works on the batches before. On a CPU device the thread
prepares batches and nothing is copied.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Generator, Iterator
from functools import partial

import numpy as np
import torch

from mlpdata.augment.batch import Batch
from mlpdata.loader.buffers import BufferPool
from mlpdata.loader.memory_plan import plane_shapes
from mlpdata.loader.options import Pixels
from mlpdata.loader.order import EpochSteps
from mlpdata.loader.reader import Reader
from mlpdata.loader.resident import batch_of, load_pixels
from mlpdata.loader.subset import Selection
from mlpdata.system.threads import Wait, WaitClock, no_wait, overlap, prefetch

NUM_AHEAD = 4  # batches that wait ready, or fewer
AHEAD_BYTES = 512 << 20  # if those would be larger

# Starts to fill the planes of a batch, uint8 arrays (n, ...); the Wait returns when they are filled.
Fill = Callable[[list[np.ndarray]], Wait]


class HostTier:
    """What Pinned and Stream share: batches ahead of the consumer, and their way to the device."""

    blocks: tuple[int, int] | None = None

    def __init__(self, reader: Reader, selection: Selection, device: torch.device, pixels: Pixels = "rgb"):
        self.reader, self.selection, self.device, self.pixels = reader, selection, device, pixels
        self.plane_shapes = plane_shapes(reader.shape, pixels)

    def _fills(self, steps: EpochSteps) -> Iterator[tuple[np.ndarray, Fill]]:
        """(rows of a step, what fills planes with the pixels of those that are on the host), step by step."""
        raise NotImplementedError

    def _num_on_host(self, rows: np.ndarray) -> int:
        return len(rows)

    def _numbers(self, rows: np.ndarray) -> np.ndarray:
        """What goes along with the pixels: labels, ids, and perhaps more, int64 (2 or more, n)."""
        return np.stack([self.selection.labels[rows], self.selection.ids_of_rows(rows)])

    def _batch(self, *tensors: torch.Tensor) -> Batch:
        """[*planes, numbers] on the device as a batch."""
        *planes, numbers = tensors
        return batch_of(planes, numbers[0], numbers[1])

    def batches(self, steps: EpochSteps, clock: WaitClock | None = None) -> Generator[Batch, None, None]:
        """The batches of an epoch's steps. clock: counts the waiting for pixels."""
        depth = max(1, min(NUM_AHEAD, AHEAD_BYTES // (steps.local_batch_size * self.reader.image_bytes)))
        if self.device.type == "cpu":
            prepared = overlap(self._prepare(steps, BufferPool().take))
            return prefetch((self._batch(*tensors) for tensors in prepared), depth, clock)
        return self._copy(steps, depth, clock or WaitClock())

    def _prepare(
        self, steps: EpochSteps, empty: Callable[[tuple[int, ...]], torch.Tensor]
    ) -> Generator[tuple[list[torch.Tensor], Wait], None, None]:
        """([*planes, numbers] of a batch in host memory, the wait until it is filled), step by step."""
        for rows, fill in self._fills(steps):
            planes = [empty((self._num_on_host(rows), *shape)) for shape in self.plane_shapes]
            numbers = torch.from_numpy(self._numbers(rows))
            if self.device.type == "cuda":
                numbers = numbers.pin_memory()
            yield [*planes, numbers], fill([plane.numpy() for plane in planes])

    def _copy(self, steps: EpochSteps, depth: int, clock: WaitClock) -> Generator[Batch, None, None]:
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
                with clock.held():
                    while len(handed_out) > NUM_AHEAD:
                        handed_out.popleft().synchronize()
                with torch.cuda.stream(copy_stream):
                    on_device = [tensor.to(self.device, non_blocking=True) for tensor in tensors]
                yield on_device, copy_stream.record_event()

        for on_device, event in prefetch(copied(), depth, clock):
            stream = torch.cuda.current_stream(self.device)
            stream.wait_event(event)
            for tensor in on_device:  # copy_stream, which allocated it, must not use its memory again too early
                tensor.record_stream(stream)
            handed_out.append(stream.record_event())
            yield self._batch(*on_device)


class Pinned(HostTier):
    """Pixels in host memory; a batch is one gather there, into pinned buffers.

    num_resident: the tier "split": so many rows, the first, are on the device instead. Shards are shuffled, so about
    the same share of every batch comes from the host. Batches are those of the other tiers, in the same order.

    A batch of the split tier is put together on the device before it is augmented, where the resident tier's
    augmentation gathers on its way. For 16,384 images of 64 px, half of them resident, that moves 0.50 GB as RGB (every
    image read and written once more, those from the host written twice) and 0.25 GB as planes: 0.17 and 0.08 ms at 3
    TB/s, 4% and 2% of a step of the smallest of the paper's models, and less of the others'. That is the most that a
    kernel that reads from two stores could save, at the price of an address for each image in every form of it.
    """

    def __init__(
        self, reader: Reader, selection: Selection, device: torch.device, pixels: Pixels = "rgb", num_resident: int = 0,
        quiet: bool = False,
    ):  # fmt: skip
        super().__init__(reader, selection, device, pixels)
        self.num_resident = num_resident
        self.resident = load_pixels(reader, selection.all_ids[:num_resident], device, pixels, quiet)
        self.stores = load_pixels(reader, selection.all_ids[num_resident:], torch.device("cpu"), pixels, quiet)

    def _fills(self, steps: EpochSteps) -> Iterator[tuple[np.ndarray, Fill]]:
        for step in steps.range:
            rows = steps.rows(step)
            yield rows, partial(self._gather, rows[rows >= self.num_resident] - self.num_resident)

    def _gather(self, rows: np.ndarray, planes: list[np.ndarray]) -> Wait:
        for store, plane in zip(self.stores, planes, strict=True):
            torch.index_select(store, 0, torch.from_numpy(rows), out=torch.from_numpy(plane))
        return no_wait

    def _num_on_host(self, rows: np.ndarray) -> int:
        return int((rows >= self.num_resident).sum())

    def _numbers(self, rows: np.ndarray) -> np.ndarray:
        """Also the resident row of each sample (0 if it is on the host), and where in the batch the host's go."""
        on_host = rows >= self.num_resident
        places = np.zeros(len(rows), np.int64)
        places[: on_host.sum()] = np.flatnonzero(on_host)
        return np.concatenate([super()._numbers(rows), [np.where(on_host, 0, rows), places]])

    def _batch(self, *tensors: torch.Tensor) -> Batch:
        *planes, numbers = tensors
        if self.num_resident:
            planes = [
                store.index_select(0, numbers[2]).index_copy_(0, numbers[3, : len(plane)], plane)
                for store, plane in zip(self.resident, planes, strict=True)
            ]
        return batch_of(planes, numbers[0], numbers[1])
