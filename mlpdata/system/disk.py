"""Reading and writing past the page cache (O_DIRECT), where the file system can.

A conversion writes more than is worth caching. Through the page cache, every byte is copied into fresh pages (on a
virtual machine whose host takes free memory back, that costs more than decoding a small JPEG); those pages push out the
archive that is being read; two processes that write to one file wait for each other; and the last sync waits for all of
it.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import mmap
import os
from collections import deque
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path

ALIGN = 4096  # what O_DIRECT wants of offsets, lengths and addresses
BUFFER_BYTES = 4 << 20
NUM_BUFFERS = 4


def open_direct(path: Path | str, flags: int) -> int | None:
    """A descriptor that bypasses the page cache; None where there is none (tmpfs, another system than Linux)."""
    try:
        return os.open(path, flags | os.O_DIRECT | os.O_CLOEXEC)
    except (AttributeError, OSError):  # if the file itself cannot be opened, opening it without O_DIRECT says why
        return None


def preadv(fd: int, buffers: list, offset: int) -> int:
    """os.preadv; falls back to the page cache for good where a file opens with O_DIRECT but cannot be read so."""
    try:
        return os.preadv(fd, buffers, offset)
    except OSError as e:
        flags = fcntl.fcntl(fd, fcntl.F_GETFL)
        if e.errno != errno.EINVAL or not flags & getattr(os, "O_DIRECT", 0):
            raise
        fcntl.fcntl(fd, fcntl.F_SETFL, flags & ~os.O_DIRECT)
        return os.preadv(fd, buffers, offset)


def aligned(num_bytes: int) -> mmap.mmap:
    """Memory in pages of its own, as O_DIRECT wants it."""
    return mmap.mmap(-1, num_bytes, mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)


def pwrite(fd: int, data, offset: int) -> None:
    """Write all of a buffer at an offset, in as many system calls as it takes."""
    view = memoryview(data).cast("B")
    while len(view):
        done = os.pwrite(fd, view, offset)
        view, offset = view[done:], offset + done


class Buffers:
    """The buffers of one process's writers, and the thread that writes full ones while others are filled.

    Buffers are reused: fresh memory costs more than the copy into it.
    """

    def __init__(self):
        self._thread = ThreadPoolExecutor(1, "mlpdata-write")
        self._free = [aligned(BUFFER_BYTES) for _ in range(NUM_BUFFERS)]
        self._under_way: deque[tuple[Future, mmap.mmap]] = deque()

    def take(self) -> mmap.mmap:
        """A free buffer; waits for the oldest write if there is none. Raises OSError where that write failed."""
        if self._free:
            return self._free.pop()
        future, buffer = self._under_way.popleft()
        if error := future.exception():
            self._free.append(buffer)
            raise error
        return buffer

    def give_back(self, buffer: mmap.mmap, work=None, *args) -> None:
        """Return a buffer; with work, once work(*args), which writes it, is done."""
        if work is None:
            self._free.append(buffer)
        else:
            self._under_way.append((self._thread.submit(work, *args), buffer))

    def wait(self) -> None:
        """Wait until everything is written. Raises the first OSError of the writes."""
        errors = []
        while self._under_way:
            future, buffer = self._under_way.popleft()
            errors.append(future.exception())
            self._free.append(buffer)
        if error := next(filter(None, errors), None):
            raise error


class Writer:
    """Writes a range of a file from front to back.

    position: the next byte to be written; `start` at first. Other processes may write their ranges of the
    same file at the same time: blocks that two ranges share go through the page cache, which keeps the bytes of both.
    """

    def __init__(self, path: Path | str, buffers: Buffers, flags: int = os.O_RDWR, start: int = 0):
        self.position, self._path, self._buffers = start, path, buffers
        self._plain = os.open(path, flags | os.O_CLOEXEC, 0o666)
        self._direct = open_direct(path, os.O_WRONLY)
        self._buffer: mmap.mmap | None = None
        self._first = self._end = 0  # the bytes of the buffer that belong to the range

    def write(self, data, offset: int | None = None) -> None:
        """Append bytes, after zeros up to `offset` if given. Raises OSError, perhaps for bytes of an earlier call."""
        if offset is not None and offset > self.position:
            self.write(bytes(offset - self.position))
        view = memoryview(data).cast("B")
        while len(view):
            if self._buffer is None:
                self._buffer = self._buffers.take()
                self._first = self._end = self.position % ALIGN  # so that blocks of the file are blocks of the buffer
            n = min(len(view), BUFFER_BYTES - self._end)
            self._buffer[self._end : self._end + n] = view[:n]
            view = view[n:]
            self.position, self._end = self.position + n, self._end + n
            if self._end == BUFFER_BYTES:
                self._flush()

    def finish(self, durable: bool) -> None:
        """Wait until everything is written, and if durable, synced. Raises OSError."""
        self._flush()
        self._buffers.wait()
        if durable:
            os.fsync(self._plain)

    def close(self) -> None:
        """Close the file. Writes that have started are awaited; a buffer that is not full is dropped."""
        if self._buffer is not None:
            self._buffers.give_back(self._buffer)
            self._buffer = None
        with contextlib.suppress(OSError):  # `finish` has raised it
            self._buffers.wait()
        for fd in (self._plain, self._direct):
            if fd is not None:
                os.close(fd)

    def _flush(self) -> None:
        if (buffer := self._buffer) is not None:
            self._buffer = None
            self._buffers.give_back(
                buffer, self._put, memoryview(buffer), self._first, self._end, self.position - self._end
            )

    def _put(self, view: memoryview, first: int, end: int, base: int) -> None:
        """Write view[first:end] at base + first; base is a multiple of ALIGN."""
        low, high = min(-(-first // ALIGN) * ALIGN, end), end // ALIGN * ALIGN
        done = low
        try:
            if self._direct is not None:
                try:
                    while done < high:
                        done += os.pwrite(self._direct, view[done:high], base + done)
                except OSError as e:
                    if e.errno != errno.EINVAL:  # some file systems open with O_DIRECT and cannot write so
                        raise
            pwrite(self._plain, view[first:low], base + first)
            pwrite(self._plain, view[done:end], base + done)
        except OSError as e:
            raise OSError(e.errno, e.strerror, str(self._path)) from None
