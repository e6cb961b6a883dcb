"""The stream tier: pixels stay in their files, and windows of blocks are read ahead, in an order shuffled by blocks.

A block is BLOCK_BYTES of neighbouring samples, so that the disk is asked for megabytes at a time. A window is
WINDOW_BYTES of blocks from all over the files; its samples are shuffled among each other (mlpdata.loader.order). At any
time one window is in use and the next one is being read.

Of a directory elsewhere, whose tars are fetched whole, a block is a tar: a window then wants few of them, where blocks
from all over the files would want all at once. Conversions shuffle a split before they cut it into tars, so that those
of a window are a random sample of it. The tars of the window that is read and of the one after it are fetched ahead.
"""

from __future__ import annotations

import contextlib
import queue
import threading
from collections.abc import Generator, Iterator
from dataclasses import dataclass

import numpy as np
import torch

from mlpdata.loader.options import Pixels
from mlpdata.loader.order import EpochOrder, EpochSteps
from mlpdata.loader.pinned import Fill, HostTier
from mlpdata.loader.reader import Payloads, Reader
from mlpdata.loader.subset import Selection
from mlpdata.system.threads import Wait, no_wait, prefetch

BLOCK_BYTES = 4 << 20
WINDOW_BYTES = 128 << 20
TAR_WINDOW_BYTES = 256 << 20  # where blocks are tars, of which there are then from LEAST_TARS to MOST_TARS
LEAST_TARS, MOST_TARS = 2, 32


@dataclass(frozen=True)
class _Window:
    """A window in memory. number: which of its epoch. rows: int64 (n,), in their order."""

    number: int
    rows: np.ndarray
    payloads: Payloads


# (window, first, stop): the rows of a window that belong to one step.
_WindowPart = tuple[_Window, int, int]


class Stream(HostTier):
    """Pixels in files. direct: read past the page cache, for files that would only flush it."""

    def __init__(self, reader: Reader, selection: Selection, device: torch.device, pixels: Pixels, direct: bool):
        super().__init__(reader, selection, device, pixels)
        self.direct = direct
        # From the mean payload, so that equal files give equal blocks.
        total_bytes, cache = int(reader.index.num_bytes.sum(dtype=np.int64)), reader.index.cache
        mean_bytes = max(1, total_bytes // len(reader.index))
        self.blocks = max(1, min(len(selection.labels), BLOCK_BYTES // mean_bytes)), WINDOW_BYTES // BLOCK_BYTES
        if cache is not None:
            fit = TAR_WINDOW_BYTES * len(reader.index.files) // max(1, total_bytes)
            self.blocks = 0, max(LEAST_TARS, min(MOST_TARS, fit))
            sizes = sorted((cache.entries[path.name]["bytes"] for path in reader.index.files), reverse=True)
            together = sizes[: self.blocks[1]]
            cache.require(sum(together), f"{len(together)} tars, which are shuffled together,")
        self._lock = threading.Lock()  # iterations may run side by side: what one has taken, no other one has
        self._idle: list[np.ndarray] = []  # buffers of the epoch before: fresh memory costs its page faults
        # The first window of the next epoch, read while this epoch ends.
        self._next_epoch: tuple[EpochOrder, _Window] | None = None

    def _fills(self, steps: EpochSteps) -> Iterator[tuple[np.ndarray, Fill]]:
        spans = np.array([steps.span(step) for step in steps.range], np.int64).reshape(-1, 2)
        if not len(spans):
            return
        edges = steps.order.windows
        first = np.searchsorted(edges[:-1], spans[:, 0], side="right") - 1  # window of each step's first sample
        last = np.maximum(first, np.searchsorted(edges, spans[:, 1], side="left") - 1)
        num_buffers = max(2, int((last - first).max()) + 1)  # what one step touches, or one in use and one read ahead
        opening, free = self._take_buffers(steps.order, int(first[0]), num_buffers)
        read = prefetch(self._read_windows(steps, int(first[0]), free, opening), 1)
        windows: dict[int, _Window] = {}
        decoding: list[Wait] = []  # of the step before, which may still read from its windows
        try:
            for (start, stop), low, high in zip(spans.tolist(), first.tolist(), last.tolist(), strict=True):
                for k in [k for k in windows if k < low]:
                    for wait in decoding:
                        wait()
                    free.put(windows.pop(k).payloads.data)
                while high not in windows:
                    window = next(read)
                    windows[window.number] = window
                parts = [
                    (windows[k], max(start, edges[k]) - edges[k], min(stop, edges[k + 1]) - edges[k])
                    for k in range(low, high + 1)
                ]
                yield np.concatenate([window.rows[a:b] for window, a, b in parts]), self._fill(parts, decoding)
        finally:
            for wait in decoding:
                with contextlib.suppress(Exception):
                    wait()
            free.put(None)  # ends a thread that waits for a buffer
            read.close()
            idle = [window.payloads.data for window in windows.values()]
            while not free.empty():
                if (buffer := free.get()) is not None:
                    idle.append(buffer)
            with self._lock:
                self._idle += idle

    def _take_buffers(
        self, order: EpochOrder, first: int, num_buffers: int
    ) -> tuple[_Window | None, queue.SimpleQueue[np.ndarray | None]]:
        """(the window that an iteration begins with, if it was read already; free buffers for the others)."""
        with self._lock:
            next_epoch, self._next_epoch = self._next_epoch, None
            idle, self._idle = self._idle, []
        opening = next_epoch and next_epoch[1]
        if next_epoch and (next_epoch[1].number, next_epoch[0].key) != (first, order.key):
            idle.append(next_epoch[1].payloads.data)
            opening = None
        free: queue.SimpleQueue[np.ndarray | None] = queue.SimpleQueue()
        for _ in range(num_buffers - bool(opening)):
            free.put(idle.pop() if idle else np.empty(0, np.uint8))
        return opening, free

    def _read_windows(
        self, steps: EpochSteps, first: int, free: queue.SimpleQueue[np.ndarray | None], opening: _Window | None
    ) -> Generator[_Window, None, None]:
        """The windows of an epoch from `first` on. Then the window that the next epoch begins with is read."""
        if opening:
            yield opening
        todo = [(steps.order, k) for k in range(first + bool(opening), len(steps.order.windows) - 1)]
        start, _ = steps.span(0)
        next_first = int(np.searchsorted(steps.following.windows[:-1], start, side="right")) - 1
        todo.append((steps.following, next_first))
        for i, (order, k) in enumerate(todo):
            self._want(steps, todo[i : i + 2])
            buffer = free.get()
            if buffer is None:
                return
            rows = steps.to_rows(order.window(k))
            ids = self.selection.ids_of_rows(rows)
            if self.reader.index.cache:
                self.reader.index.cache.wait(self._tars(ids))
            window = _Window(k, rows, self.reader.fetch(ids, buffer, self.direct))
            if order is steps.order:
                yield window
            else:
                self._next_epoch = (order, window)

    def _want(self, steps: EpochSteps, windows: list[tuple[EpochOrder, int]]) -> None:
        """Have the tars of windows fetched, where they come from elsewhere."""
        if self.reader.index.cache is not None:
            ids = [self.selection.ids_of_rows(steps.to_rows(order.window(k))) for order, k in windows]
            self.reader.index.cache.want(list(dict.fromkeys(name for some in ids for name in self._tars(some))))

    def _tars(self, ids: np.ndarray) -> list[str]:
        """The names of the files that have these samples."""
        index = self.reader.index
        return [index.files[file].name for file in np.unique(index.file[ids]).tolist()]

    def _fill(self, parts: list[_WindowPart], decoding: list[Wait]) -> Fill:
        """What decodes parts of windows one behind the other. decoding: becomes the waits of what was started."""

        def fill(planes: list[np.ndarray]) -> Wait:
            decoding.clear()
            done = 0
            for window, first, stop in parts:
                payloads = Payloads(window.payloads.data, window.payloads.starts[first:stop])
                ids = self.selection.ids_of_rows(window.rows[first:stop])
                out = (plane[done : done + len(ids)] for plane in planes)
                decoding.append(self.reader.decode(ids, payloads, *out))
                done += len(ids)
            started = [wait for wait in decoding if wait is not no_wait]

            def wait_for_all() -> None:
                for wait in started:
                    wait()

            return wait_for_all if started else no_wait

        return fill
