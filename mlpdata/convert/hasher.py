"""The SHA-256 of a beton, taken by a thread while workers write it from front to back."""

from __future__ import annotations

import errno
import hashlib
import itertools
import os
import threading
from collections.abc import Generator
from pathlib import Path

from mlpdata.system.disk import ALIGN, aligned, open_direct, preadv
from mlpdata.system.threads import prefetch

HASH_BYTES = 4 << 20  # read at a time


class Hasher:
    """Hashes a file that is being written, behind those who write it.

    It reads what is on the disk, past the page cache: page by page into the cache would cost more than the hash. It
    works only on the machine that writes: a file system over the network may serve a block as it was before.
    """

    def __init__(self, path: Path):
        self._path, self._digest = path, hashlib.sha256()
        self._error: BaseException | None = None
        self._limit, self._closed, self._changed = 0, False, threading.Condition()
        self._thread = threading.Thread(target=self._run, daemon=True)
        self._thread.start()

    def allow(self, limit: int) -> None:
        """The bytes in front of `limit` are final."""
        with self._changed:
            self._limit = limit
            self._changed.notify()

    def stop(self) -> None:
        """Stop hashing, without a result."""
        with self._changed:
            self._limit = 0
        self._close()

    def finish(self) -> str:
        """Hash up to the limit. Returns the digest. Raises what went wrong in the thread."""
        self._close()
        if self._error is not None:
            raise self._error
        return self._digest.hexdigest()

    def _close(self) -> None:
        with self._changed:
            self._closed = True
            self._changed.notify()
        self._thread.join()

    def _run(self) -> None:
        try:
            fd = open_direct(self._path, os.O_RDONLY)
            if fd is None:
                fd = os.open(self._path, os.O_RDONLY)
            try:
                for chunk in prefetch(self._chunks(fd), 1):
                    self._digest.update(chunk)
            finally:
                os.close(fd)
        except BaseException as e:  # whatever it is: the digest would be of a part of the file
            self._error = e

    def _chunks(self, fd: int) -> Generator[memoryview, None, None]:
        offset = 0
        # Three buffers: one is being read, one waits, one is being hashed.
        buffers = itertools.cycle([memoryview(aligned(HASH_BYTES)) for _ in range(3)])
        while True:
            with self._changed:
                while offset >= self._limit // ALIGN * ALIGN and not self._closed:
                    self._changed.wait()
                limit = self._limit if self._closed else self._limit // ALIGN * ALIGN
            if offset >= limit:
                return
            buffer = next(buffers)
            n = min(preadv(fd, [buffer], offset), limit - offset)
            yield buffer[:n]
            offset += n
            if not n or (offset < limit and offset % ALIGN):
                raise OSError(errno.EIO, "is shorter than it was written", str(self._path))
