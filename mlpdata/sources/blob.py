"""One large file, plain or gzip, read at offsets by many processes at once. Nothing is extracted."""

from __future__ import annotations

import io
import os
from pathlib import Path

from mlpdata.manifest import Error

READ_BYTES = 8 << 20


class PlainFile:
    """A file read at offsets. Pickles as its path; each process opens it for itself."""

    compressed = False

    def __init__(self, path: Path):
        self.path = str(path)
        self._fd = None
        self.size = os.stat(path).st_size

    def __getstate__(self):
        return {**self.__dict__, "_fd": None}

    def read_at(self, offset: int, size: int) -> bytes:
        """At most `size` bytes from `offset`; fewer only at the end of the file."""
        if self._fd is None:
            self._fd = os.open(self.path, os.O_RDONLY)
        data = os.pread(self._fd, size, offset)
        while len(data) < size and (more := os.pread(self._fd, size - len(data), offset + len(data))):
            data += more
        return data

    def close(self) -> None:
        """Let go of the file; reading again opens it again."""
        if self._fd is not None:
            os.close(self._fd)
            self._fd = None

    def will_read(self, offset: int, size: int) -> None:
        """Have the system read a stretch ahead, in one sweep instead of member by member."""
        if self._fd is None:
            self._fd = os.open(self.path, os.O_RDONLY)
        if hasattr(os, "posix_fadvise"):
            os.posix_fadvise(self._fd, offset, size, os.POSIX_FADV_WILLNEED)


class GzipFile:
    """A gzip stream read at offsets of its content, through an index of its blocks.

    The index is made once, by all cores, while the content is listed; it is small and travels with the pickle. Damage
    in the stream (rapidgzip checks every CRC) is an Error naming the file.
    """

    compressed = True

    def __init__(self, path: Path):
        self.path = str(path)
        self.size = 0  # of the content; known when the index is complete
        self._index: bytes | None = None
        self._open = None
        self._pid = 0
        self._buffer, self._buffer_at = b"", 0

    def __getstate__(self):
        return {**self.__dict__, "_open": None, "_buffer": b"", "_buffer_at": 0}

    def complete(self, hold_bytes: int = 0) -> None:
        """Read to the end, check it, and keep the index: called in the parent, once.

        Content of at most hold_bytes stays in memory, where forked workers share it.
        """
        try:
            handle = self._handle(0)
            content = handle.read(hold_bytes + 1) if hold_bytes else b""
            self.size = handle.seek(0, os.SEEK_END)
            index = io.BytesIO()
            handle.export_index(index)
            self._index = index.getvalue()
        except (ValueError, RuntimeError, OSError) as e:
            raise self._damaged(e) from None
        self.close()
        if len(content) == self.size:
            self._buffer, self._buffer_at = content, 0

    def close(self) -> None:
        """Let go of the decompressor and its threads; reading again opens it again."""
        if self._open is not None and self._pid == os.getpid():
            self._open.close()
        self._open = None

    def read_at(self, offset: int, size: int) -> bytes:
        """At most `size` bytes of the content from `offset`; fewer only at its end."""
        at = offset - self._buffer_at
        if at >= 0 and at + size <= len(self._buffer):
            return self._buffer[at : at + size]
        try:
            handle = self._handle(0 if self._index is None else 1)
            handle.seek(offset)
            data = handle.read(max(size, READ_BYTES))
        except (ValueError, RuntimeError, OSError) as e:
            raise self._damaged(e) from None
        self._buffer, self._buffer_at = data, offset
        return data[:size]

    def will_read(self, offset: int, size: int) -> None:
        """Nothing to do: reading is sequential by itself."""

    def _handle(self, threads: int):
        if self._open is None or self._pid != os.getpid():
            import rapidgzip

            self._open, self._pid = rapidgzip.open(self.path, parallelization=threads), os.getpid()
            if self._index is not None:
                self._open.import_index(io.BytesIO(self._index))
        return self._open

    def _damaged(self, error: Exception) -> Error:
        return Error(f"{self.path}: damaged gzip stream ({str(error).splitlines()[0]}); get the file again")


def open_blob(path: Path) -> PlainFile | GzipFile:
    """Open by content, not by name. Raises Error where the file cannot be read."""
    try:
        with open(path, "rb") as f:
            magic = f.read(2)
    except OSError as e:
        raise Error(f"cannot read {path}: {e.strerror}") from None
    return GzipFile(path) if magic == b"\x1f\x8b" else PlainFile(path)
