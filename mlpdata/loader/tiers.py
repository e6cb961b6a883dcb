"""Where the pixels are while an epoch runs, and how a batch comes from there to the device.

resident  all pixels as one uint8 tensor on the device; a batch is one gather there.
pinned    all pixels in host memory; a thread gathers the next batches into pinned buffers, which are copied on a stream
          of their own while the device works on the batches before. On a CPU device: the same without the copies.
stream    the pixels stay in their files: windows of blocks are read ahead, in an order shuffled by blocks.
"""

from __future__ import annotations

import contextlib
import itertools
import math
import queue
import threading
import weakref
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import numpy as np
import torch

from mlpdata.augment.batch import Batch
from mlpdata.augment.chroma import from_ycc420, to_ycc420
from mlpdata.loader.order import EpochOrder, EpochSteps
from mlpdata.loader.reader import Payloads, Reader, huge_empty
from mlpdata.system.threads import Wait, no_wait, overlap, prefetch

SHARE = 0.6  # of the free memory that a split may take
AHEAD = 4  # batches that wait ready, or fewer
AHEAD_BYTES = 512 << 20  # where these are more
LOAD_BYTES = 64 << 20  # of pixels read at a time into the resident tier
BLOCK_BYTES = 4 << 20  # neighbours that the stream reads together: megabytes a seek instead of kilobytes
WINDOW_BYTES = 128 << 20  # of blocks whose samples are shuffled among each other; two windows are in memory
IDS = 1 << 16  # sent to a GPU at a time


# --------------------------------------------------------------------------------------------------------- resident


class Resident:
    """All pixels on the device.

    ids: (N,) int64 of the rows, None where row i is sample i. pixels "ycc420": luma in full and chroma at half
    resolution, 1.5 bytes a pixel instead of 3.
    """

    def __init__(self, reader: Reader, labels: np.ndarray, ids: np.ndarray | None, device: torch.device, pixels: str):
        self.device, self._ycc = device, pixels == "ycc420"
        self.stores = load_pixels(reader, np.arange(len(labels)) if ids is None else ids, device, self._ycc)
        self._labels = torch.from_numpy(labels).to(device)
        self._ids = None if ids is None else torch.from_numpy(ids).to(device)
        self._spare = Spare() if device.type == "cpu" else None

    def batches(self, plan: EpochSteps) -> Iterator[Batch]:
        if self.device.type == "cpu":
            for step in plan.steps:
                yield self._gather(torch.from_numpy(plan.rows(step)))
            return
        per_step = max(1, plan.batch_size // plan.world_size)
        group = max(1, IDS // per_step)
        for first in range(plan.steps.start, plan.steps.stop, group):
            steps = range(first, min(plan.steps.stop, first + group))
            rows = [plan.rows(step) for step in steps]
            # Many batches' rows go at once, so that a batch is launched without a copy of its own.
            there = torch.from_numpy(np.concatenate(rows)).pin_memory().to(self.device, non_blocking=True)
            for part in there.split([len(r) for r in rows]):
                yield self._gather(part)

    def _gather(self, rows: torch.Tensor) -> Batch:
        if self._spare is None:
            planes = [store.index_select(0, rows) for store in self.stores]
        else:
            planes = [self._spare.take((len(rows), *store.shape[1:])) for store in self.stores]
            for store, plane in zip(self.stores, planes, strict=True):
                torch.index_select(store, 0, rows, out=plane)
        labels = self._labels.index_select(0, rows)
        ids = rows if self._ids is None else self._ids.index_select(0, rows)
        if self._ycc:
            return Batch(planes[0], labels, ids, chroma=planes[1])
        return Batch(planes[0], labels, ids)

    def rgb(self) -> torch.Tensor:
        """All pixels, uint8 (N, H, W, 3) on the device."""
        return from_ycc420(*self.stores) if self._ycc else self.stores[0]


def load_pixels(reader: Reader, ids: np.ndarray, device: torch.device, ycc: bool) -> list[torch.Tensor]:
    """Read samples to a device: [uint8 (n, H, W, 3)], or [luma (n, H, W, 1), chroma (n, H/2, W/2, 2)].

    A piece at a time: a GPU may have more memory free than the host.
    """
    height, width, _ = reader.shape
    shapes = [(height, width, 1), ((height + 1) // 2, (width + 1) // 2, 2)] if ycc else [reader.shape]
    stores = [_empty((len(ids), *shape), device) for shape in shapes]
    step = max(1, LOAD_BYTES // reader.image_bytes)
    in_place = device.type == "cpu" and not ycc
    rows = 0 if in_place else min(step, len(ids))
    staging = torch.empty((rows, *reader.shape), dtype=torch.uint8, pin_memory=device.type == "cuda")
    for at in range(0, len(ids), step):
        part = ids[at : at + step]
        into = stores[0][at : at + len(part)] if in_place else staging[: len(part)]
        reader.read(part, into.numpy())
        if not in_place:
            there = into.to(device)  # waits for the copy, so the staging is free again
            for store, plane in zip(stores, to_ycc420(there) if ycc else [there], strict=True):
                store[at : at + len(part)] = plane
    return stores


def _empty(shape: tuple[int, ...], device: torch.device) -> torch.Tensor:
    if device.type != "cpu":
        return torch.empty(shape, dtype=torch.uint8, device=device)
    return torch.from_numpy(huge_empty(math.prod(shape))).view(shape)


def ycc420_psnr(images: np.ndarray) -> float:
    """What images lose by half-resolution chroma: uint8 (n, H, W, 3) -> dB, infinite where nothing."""
    there = torch.from_numpy(images)
    error = (from_ycc420(*to_ycc420(there)).double() - there).square().mean()
    return float(10 * torch.log10(255**2 / error))


# ---------------------------------------------------------------------------------------------- from host memory


class Host:
    """Pixels that are not on the device; a thread prepares the next batches. Pinned and Stream say how."""

    def __init__(self, reader: Reader, labels: np.ndarray, ids: np.ndarray | None, device: torch.device):
        self.reader, self.device = reader, device
        self._labels, self._ids = labels, ids

    def batches(self, plan: EpochSteps) -> Iterator[Batch]:
        if self.device.type == "cpu":
            spare = Spare()
            return prefetch(overlap(self._cpu_batch(spare, *item) for item in self._fills(plan)), self._depth(plan))
        return self._copied(plan, self._depth(plan))

    def _depth(self, plan: EpochSteps) -> int:
        return max(1, min(AHEAD, AHEAD_BYTES // (plan.batch_size // plan.world_size * self.reader.image_bytes)))

    def _fills(self, plan: EpochSteps) -> Iterator[tuple[np.ndarray, Callable[[np.ndarray], Wait]]]:
        """(rows of a step, function that begins to fill an array (n, H, W, 3) with their pixels), step by step."""
        raise NotImplementedError

    def sample_ids(self, rows: np.ndarray) -> np.ndarray:
        return rows if self._ids is None else self._ids[rows]

    def _cpu_batch(self, spare: Spare, rows: np.ndarray, fill) -> tuple[Batch, Wait]:
        images = spare.take((len(rows), *self.reader.shape))
        finish = fill(images.numpy())
        return Batch(images, torch.from_numpy(self._labels[rows]), torch.from_numpy(self.sample_ids(rows))), finish

    def _copied(self, plan: EpochSteps, depth: int) -> Iterator[Batch]:
        side = torch.cuda.Stream(self.device)

        def fills():
            slots = itertools.cycle([_Slot() for _ in range(max(2, depth))])
            for rows, fill in self._fills(plan):
                slot = next(slots)
                images, small = slot.buffers(len(rows), self.reader.shape)
                small[0], small[1] = torch.from_numpy(self._labels[rows]), torch.from_numpy(self.sample_ids(rows))
                yield (slot, images, small), fill(images.numpy())

        def copies():
            for slot, images, small in overlap(fills()):
                with torch.cuda.device(self.device), torch.cuda.stream(side):
                    there = images.to(self.device, non_blocking=True), small.to(self.device, non_blocking=True)
                    slot.copied = side.record_event()
                yield *there, slot.copied

        for images, small, copied in prefetch(copies(), depth):
            here = torch.cuda.current_stream(self.device)
            here.wait_event(copied)
            # The memory belongs to the side stream: it must not be given away while this one still reads it.
            images.record_stream(here)
            small.record_stream(here)
            yield Batch(images, small[0], small[1])


class _Slot:
    """A pinned buffer and the event behind the last copy out of it: it is filled again only when that has passed."""

    def __init__(self):
        self.copied: torch.cuda.Event | None = None
        self._images = self._small = None

    def buffers(self, n: int, shape: tuple[int, ...]) -> tuple[torch.Tensor, torch.Tensor]:
        """Pinned images uint8 (n, *shape), and labels and ids int64 (2, n), free to be written."""
        if self.copied is not None:
            self.copied.synchronize()
        if self._images is None or len(self._images) < n:
            self._images = torch.empty((n, *shape), dtype=torch.uint8, pin_memory=True)
            self._small = torch.empty(2 * n, dtype=torch.int64, pin_memory=True)
        return self._images[:n], self._small[: 2 * n].view(2, n)


class Pinned(Host):
    """All pixels in host memory."""

    def __init__(self, reader, labels, ids, device):
        super().__init__(reader, labels, ids, device)
        every = np.arange(len(labels)) if ids is None else ids
        self.pixels = load_pixels(reader, every, torch.device("cpu"), ycc=False)[0]

    def _fills(self, plan):
        for step in plan.steps:
            rows = plan.rows(step)

            def fill(out, rows=rows):
                torch.index_select(self.pixels, 0, torch.from_numpy(rows), out=torch.from_numpy(out))
                return no_wait

            yield rows, fill


class Stream(Host):
    """Pixels in files. direct: read past the page cache, for files that would only flush it."""

    def __init__(self, reader, labels, ids, device, direct: bool):
        super().__init__(reader, labels, ids, device)
        self.direct = direct
        self._lock = threading.Lock()  # iterations may run side by side: what one took, no other one has
        self._idle: list[np.ndarray] = []  # window buffers of the epoch before: fresh memory costs its page faults
        self._coming: tuple[EpochOrder, _Window] | None = (
            None  # the next epoch's first window, read while this one ends
        )

    def _fills(self, plan):
        spans = np.array([plan.span(step) for step in plan.steps], np.int64).reshape(-1, 2)
        if not len(spans):
            return
        edges = plan.order.windows
        first = np.searchsorted(edges[:-1], spans[:, 0], side="right") - 1
        last = np.maximum(first, np.searchsorted(edges, spans[:, 1], side="left") - 1)
        with self._lock:
            coming, self._coming = self._coming, None
            idle, self._idle = self._idle, []
        if coming and (coming[1].number, coming[0].key) != (int(first[0]), plan.order.key):
            idle.append(coming[1].payloads.data)
            coming = None
        free: queue.SimpleQueue = queue.SimpleQueue()  # buffers: what one step touches, or one used and one read ahead
        for _ in range(max(2, int((last - first).max()) + 1) - bool(coming)):
            free.put(idle.pop() if idle else np.empty(0, np.uint8))
        loaded = prefetch(self._windows(plan, int(first[0]), free, coming and coming[1]), 1)
        windows: dict[int, _Window] = {}
        under_way: list[Wait] = []  # of the step before, which may still read its windows
        try:
            for (start, stop), low, high in zip(spans.tolist(), first.tolist(), last.tolist(), strict=True):
                for k in [k for k in windows if k < low]:
                    for finish in under_way:
                        finish()
                    free.put(windows.pop(k).payloads.data)
                while high not in windows:
                    window = next(loaded)
                    windows[window.number] = window
                parts = [
                    (windows[k], max(start, edges[k]) - edges[k], min(stop, edges[k + 1]) - edges[k])
                    for k in range(low, high + 1)
                ]
                yield np.concatenate([w.rows[a:b] for w, a, b in parts]), self._filler(parts, under_way)
        finally:
            for finish in under_way:
                with contextlib.suppress(Exception):
                    finish()
            free.put(None)  # a thread that waits for a buffer ends
            loaded.close()
            left = [window.payloads.data for window in windows.values()]
            while not free.empty():
                if (data := free.get()) is not None:
                    left.append(data)
            with self._lock:
                self._idle += left

    def _windows(
        self, plan: EpochSteps, first: int, free: queue.SimpleQueue, there: _Window | None
    ) -> Iterator[_Window]:
        """The windows of an epoch, the first of which may be there already. Then the next epoch's first is read."""
        start, _ = plan.span(0)
        next_first = int(np.searchsorted(plan.following.windows[:-1], start, side="right")) - 1
        if there:
            yield there
        todo = [(plan.order, k) for k in range(first + bool(there), len(plan.order.windows) - 1)]
        for order, k in [*todo, (plan.following, next_first)]:
            data = free.get()
            if data is None:
                return
            rows = plan.to_rows(order.window(k))
            window = _Window(k, rows, self.reader.fetch_any(self.sample_ids(rows), data, self.direct))
            if order is plan.order:
                yield window
            else:
                self._coming = (order, window)

    def _filler(self, parts, under_way: list[Wait]):
        def fill(out: np.ndarray) -> Wait:
            under_way.clear()
            at = 0
            for window, a, b in parts:
                payloads = Payloads(window.payloads.data, window.payloads.starts[a:b])
                under_way.append(self.reader.decode(self.sample_ids(window.rows[a:b]), payloads, out[at : at + b - a]))
                at += b - a
            begun = [finish for finish in under_way if finish is not no_wait]
            return (lambda: [finish() for finish in begun]) if begun else no_wait

        return fill


@dataclass(frozen=True)
class _Window:
    number: int
    rows: np.ndarray  # (n,) in their order
    payloads: Payloads


def block_shape(reader: Reader, n: int) -> tuple[int, int]:
    """(samples a block, blocks a window) of a stream, from the mean payload: equal files give equal blocks."""
    mean = max(1, int(reader.index.num_bytes.sum(dtype=np.int64)) // len(reader.index))
    return max(1, min(n, BLOCK_BYTES // mean)), WINDOW_BYTES // BLOCK_BYTES


# ---------------------------------------------------------------------------------------------------- the buffers


class Spare:
    """Buffers for batches on the CPU, used again when nobody has a hold of them any more.

    Fresh memory costs a page fault for every 4 kB, several times what the gather itself costs. Each time a buffer goes
    out it does so as a new array, which the tensor made from it keeps alive for as long as any view of it lives.
    """

    def __init__(self):
        self._lock = threading.Lock()  # iterations may run in threads of their own
        self._buffers: list[tuple[np.ndarray, weakref.ref]] = []

    def take(self, shape: tuple[int, ...]) -> torch.Tensor:
        """uint8 of a shape, with anything in it."""
        size = math.prod(shape)
        with self._lock:
            free = (k for k, (memory, out) in enumerate(self._buffers) if out() is None and len(memory) >= size)
            k = next(free, None)
            # torch's own memory begins at a cache line, numpy's does not: that is an eighth of the gather's time.
            memory = torch.empty(size, dtype=torch.uint8).numpy() if k is None else self._buffers.pop(k)[0]
            array = memory[:size]
            self._buffers.append((memory, weakref.ref(array)))
            # A consumer that keeps its batches gets new ones; those forgotten here live as long as it holds them.
            del self._buffers[: -2 * AHEAD]
        return torch.from_numpy(array).view(shape)
