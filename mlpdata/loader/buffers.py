"""Memory for pixels: large stores for random access, and batch buffers that are used again."""

from __future__ import annotations

import contextlib
import math
import mmap
import threading
import weakref

import numpy as np
import torch

HUGE_PAGE = 2 << 20
MAX_BUFFERS = 8  # that a pool remembers: twice the batches that wait ready


def huge_empty(size: int) -> np.ndarray:
    """Uninitialised uint8 (size,) for random access: in pages of 2 MiB where the system has them, aligned to one.

    Gathering rows from ordinary pages spends a sixth of its time on translating addresses.
    """
    memory = mmap.mmap(-1, size + HUGE_PAGE, mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
    with contextlib.suppress(AttributeError, OSError):  # another system, or one that was built without them
        memory.madvise(mmap.MADV_HUGEPAGE)
    whole = np.frombuffer(memory, np.uint8)
    start = -whole.ctypes.data % HUGE_PAGE
    return whole[start : start + size]


def empty_store(shape: tuple[int, ...], device: torch.device) -> torch.Tensor:
    """Uninitialised uint8 memory for the pixels of a whole split, on a device."""
    if device.type != "cpu":
        return torch.empty(shape, dtype=torch.uint8, device=device)
    return torch.from_numpy(huge_empty(math.prod(shape))).view(shape)


class BufferPool:
    """CPU buffers for batches, used again once nobody refers to them: fresh memory costs a page fault for every 4 kB,
    several times what filling it costs.

    `take` hands out a fresh array over a buffer and keeps a weak reference to the array: when the last tensor that
    views the array is gone, the buffer is free again.

    >>> pool = BufferPool()
    >>> pool.take((2, 3)).shape
    torch.Size([2, 3])
    """

    def __init__(self):
        self._lock = threading.Lock()  # iterations may run in threads of their own
        self._buffers: list[tuple[np.ndarray, weakref.ref]] = []

    def take(self, shape: tuple[int, ...]) -> torch.Tensor:
        """An uninitialised uint8 tensor."""
        size = math.prod(shape)
        with self._lock:
            free = (k for k, (memory, out) in enumerate(self._buffers) if out() is None and len(memory) >= size)
            k = next(free, None)
            # torch aligns its memory to cache lines, numpy does not: that is an eighth of a gather's time.
            memory = torch.empty(size, dtype=torch.uint8).numpy() if k is None else self._buffers.pop(k)[0]
            array = memory[:size]
            self._buffers.append((memory, weakref.ref(array)))
            # A consumer that keeps its batches gets new buffers; those forgotten here live as long as it holds them.
            del self._buffers[:-MAX_BUFFERS]
        return torch.from_numpy(array).view(shape)
