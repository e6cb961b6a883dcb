"""A gzip stream, read at offsets of its content by many processes at once."""

from __future__ import annotations

import io
import mmap
import os
import re
import weakref
from collections.abc import Callable
from pathlib import Path
from typing import Any

from mlpdata.errors import Error, reading
from mlpdata.system import engines

READ_BYTES = 8 << 20
SPACING_BYTES = 4 << 20  # between the points where decompression can start
LARGE_BYTES = 128 << 20  # larger files have such points at four times the distance: quicker, and a smaller index
RAPIDGZIP_ERRORS = (ValueError, RuntimeError, OSError, MemoryError, OverflowError)
BAD_CHECKSUM = "its checksum (CRC-32) is wrong: some bytes are not what they were, gzip cannot say which"


class GzipFile:
    """A gzip stream with an index of the points where decompression can start.

    Without an index, the content is read once from front to back, by all cores and with its checksum verified:
    `read_at` goes forward only (and back by a block), and `complete` reads the rest and makes the index. With the
    index, any process reads anywhere. The index is small (of each 32 kB window rapidgzip keeps only the bytes that are
    used later: 5 kB for 1 GB of JPEGs in a large file, 32 kB in a small one) and is pickled with the object.

    size:   bytes of content; known with the index.
    damage: None, or what is wrong with a stream that can still be read. Damage that ends reading is an Error.
    """

    compressed = True

    def __init__(self, path: Path | str):
        self.path = str(path)
        self.size = 0
        self.damage: str | None = None
        self.index: bytes | None = None
        self._open: Any = None  # a RapidgzipFile of the process `_pid`
        self._pid = 0
        self._buffer: bytes | memoryview = b""
        self._buffer_start = 0
        self._previous: bytes | memoryview = b""  # the block before the buffer, while there is no index

    def __getstate__(self):
        return {**self.__dict__, "_open": None, "_buffer": b"", "_buffer_start": 0, "_previous": b""}

    def complete(self, hold_bytes: int = 0) -> None:
        """Read to the end, verify the checksum and make the index. Called once, in the parent process.

        Content of at most hold_bytes stays in memory, where forked workers share it.
        """
        is_shared = hold_bytes and engines.process_context().get_start_method() == "fork"
        held = mmap.mmap(-1, hold_bytes) if is_shared else None
        in_child(GzipFile.read_through, self, held)
        if held is not None and self.size <= hold_bytes:
            self._buffer, self._buffer_start = memoryview(held)[: self.size], 0

    def read_through(self, held: mmap.mmap | None = None) -> None:
        """Do the work of `complete` in this process. held: receives as much of the content as it has room for."""
        start = 0
        while held is not None and (piece := self.read_at(start, min(READ_BYTES, len(held) - start))):
            held[start : start + len(piece)] = piece
            start += len(piece)
        while self.index is None and self._next_block():
            pass
        if self.index is None:
            self._make_index()
        self.close()
        self._buffer, self._buffer_start = b"", 0

    def use(self, index: bytes, size: int, damage: str | None) -> None:
        """Take the index that an earlier run made of this very file."""
        self.index, self.size, self.damage = index, size, damage

    def close(self) -> None:
        """Close the decompressor and its threads; the next read opens it again."""
        if self._open is not None and self._pid == os.getpid():
            self._open.close()
        self._open, self._previous = None, b""

    def read_at(self, offset: int, size: int) -> bytes:
        """At most `size` bytes of the content from `offset`; fewer only at its end."""
        start = offset - self._buffer_start
        if start >= 0 and start + size <= len(self._buffer):
            return bytes(self._buffer[start : start + size])
        if self.index is None:
            return self._read_forward(offset, size)
        data = self._read_indexed(offset, max(size, READ_BYTES))
        self._buffer, self._buffer_start = data, offset
        return data[:size]

    def will_read(self, offset: int, size: int) -> None:
        """Do nothing: the stream is read sequentially anyway."""

    def _read_indexed(self, offset: int, size: int) -> bytes:
        for attempt in range(2):
            try:
                handle = self._handle(1)
                handle.seek(offset)
                return handle.read(size)
            except RAPIDGZIP_ERRORS as e:
                # rapidgzip reports the known wrong checksum again to a handle that has read everything, but not to a
                # new one that starts at an offset.
                if attempt or not self.damage or "CRC32" not in str(e):
                    raise self._error(e) from None
                self.close()
        raise AssertionError

    def _read_forward(self, offset: int, size: int) -> bytes:
        pieces = []
        while size > 0:
            previous_start = self._buffer_start - len(self._previous)
            if offset < previous_start:
                raise RuntimeError(f"{self.path}: byte {offset} is behind what is still in memory")
            if offset >= self._buffer_start + len(self._buffer):
                if not self._next_block():
                    break
                continue
            is_previous = offset < self._buffer_start
            block, start = (self._previous, previous_start) if is_previous else (self._buffer, self._buffer_start)
            pieces.append(block[offset - start : offset - start + size])
            offset, size = offset + len(pieces[-1]), size - len(pieces[-1])
        return b"".join(pieces)

    def _next_block(self) -> bool:
        """Decompress the next block into the buffer; False at the end of the content."""
        end = self._buffer_start + len(self._buffer)
        try:
            data = self._handle(0).read(READ_BYTES)
        except RAPIDGZIP_ERRORS as e:
            if "CRC32" not in str(e):
                raise self._error(e) from None
            # rapidgzip verifies the checksum at the end of the stream and then withholds the last block, which can
            # still be read through the index.
            self._make_index()
            self.damage = BAD_CHECKSUM
            self.close()
            data = self._read_indexed(end, self.size - end)
        if data:
            self._previous, self._buffer, self._buffer_start = self._buffer, data, end
        return bool(data)

    def _make_index(self) -> None:
        import rapidgzip

        index = io.BytesIO()
        try:
            handle = self._handle(0)
            handle.export_index(index, rapidgzip.IndexFormat.GZTOOL)
            self.size = handle.size()
        except RAPIDGZIP_ERRORS as e:
            raise self._error(e) from None
        self.index = index.getvalue()

    def _handle(self, threads: int):
        if self._open is None or self._pid != os.getpid():
            import rapidgzip

            with reading(self.path), open(self.path, "rb") as f:  # rapidgzip calls a file without permission damaged
                spacing = SPACING_BYTES if os.fstat(f.fileno()).st_size < LARGE_BYTES else 4 * SPACING_BYTES
            self._open = rapidgzip.RapidgzipFile(self.path, parallelization=threads, chunk_size=spacing)
            self._pid = os.getpid()
            weakref.finalize(self, _close_in, self._pid, self._open)  # left open at exit, it aborts the process
            if self.index is not None:
                self._open.import_index(io.BytesIO(self.index))
        return self._open

    def _error(self, error: Exception) -> Error:
        if isinstance(error, MemoryError):
            return Error(f"{self.path}: the memory is too small to decompress it; give it more, or decompress the file")
        end = self._buffer_start + len(self._buffer)
        reason = re.sub(r"\[[^]]*\]\s*", "", str(error)).split("! ")[0].split("\n")[0] or type(error).__name__
        return Error(
            f"{self.path}: damaged or incomplete gzip stream ({reason.rstrip('!.')}, after byte {end:,} of its "
            "content); get the file again"
        )


_INHERITED: list = []  # handles of the parent process


def _close_in(pid: int, handle) -> None:
    if os.getpid() == pid:
        handle.close()
    else:  # a fork lacks the threads of the handle: destroying the handle would wait for them for ever
        _INHERITED.append(handle)


def in_child(function: Callable, stream: GzipFile, *args: Any) -> Any:
    """Run function(stream, *args) in a process of its own; the stream takes over the state that the process reached.

    For the first pass over an unknown stream: where memory is short, rapidgzip's threads end their process, which has
    to become an Error.
    """
    with engines.LocalEngine(1, (function, stream, args)) as engine:
        [(_, (result, state))] = engine.map(_run_in_child, [f"the gzip stream {stream.path}"])
    vars(stream).update(state)
    return result


def _run_in_child(state: tuple[Callable, GzipFile, tuple], _) -> tuple[Any, dict]:
    function, stream, args = state
    return function(stream, *args), stream.__getstate__()
