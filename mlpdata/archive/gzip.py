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
SPACING_BYTES = 4 << 20  # between places where decompression can start
LARGE_BYTES = 128 << 20  # gzip files from this size on have them at four times the distance: quicker, and less to load
RAPIDGZIP_ERRORS = (ValueError, RuntimeError, OSError, MemoryError, OverflowError)


class GzipFile:
    """A gzip stream read at offsets of its content, through an index of places where decompression can start.

    Until it has an index the content is read once from front to back, by all cores and with its checksum verified:
    `read_at` goes forward only (and back by a block), and `complete` reads the rest and makes the index. From then on
    any process reads anywhere. The index is small (rapidgzip keeps only those bytes of a window that are used later:
    5 kB for 1 GB of JPEGs in a large file, 32 kB in a small one) and travels with the pickle.

    size:   bytes of content; known with the index.
    damage: None, or what is wrong with a stream that can still be read; damage that ends reading is an Error.
    """

    compressed = True

    def __init__(self, path: Path):
        self.path = str(path)
        self.size = 0
        self.damage: str | None = None
        self.index: bytes | None = None
        self._open = None
        self._pid = 0
        self._buffer, self._buffer_at = b"", 0
        self._before = b""  # the block before the buffer, while there is no index

    def __getstate__(self):
        return {**self.__dict__, "_open": None, "_buffer": b"", "_buffer_at": 0, "_before": b""}

    def complete(self, hold_bytes: int = 0) -> None:
        """Read to the end, check it, and keep the index: called in the parent, once.

        Content of at most hold_bytes stays in memory, where forked workers share it.
        """
        held = (
            mmap.mmap(-1, hold_bytes) if hold_bytes and engines.process_context().get_start_method() == "fork" else None
        )
        in_child(GzipFile.read_through, self, held)
        if held is not None and self.size <= hold_bytes:
            self._buffer, self._buffer_at = memoryview(held)[: self.size], 0

    def read_through(self, held: mmap.mmap | None = None) -> None:
        """What `complete` does, in this process. held: takes the content, if it fits."""
        at = 0
        while held is not None and (piece := self.read_at(at, min(READ_BYTES, len(held) - at))):
            held[at : at + len(piece)] = piece
            at += len(piece)
        while self.index is None and self._next_block():
            pass
        if self.index is None:
            self._make_index()
        self.close()
        self._buffer, self._buffer_at = b"", 0

    def use(self, index: bytes, size: int, damage: str | None) -> None:
        """Take an index that an earlier run made of this very file."""
        self.index, self.size, self.damage = index, size, damage

    def close(self) -> None:
        """Let go of the decompressor and its threads; reading again opens it again."""
        if self._open is not None and self._pid == os.getpid():
            self._open.close()
        self._open, self._before = None, b""

    def read_at(self, offset: int, size: int) -> bytes:
        """At most `size` bytes of the content from `offset`; fewer only at its end."""
        at = offset - self._buffer_at
        if at >= 0 and at + size <= len(self._buffer):
            return bytes(self._buffer[at : at + size])
        if self.index is None:
            return self._read_forward(offset, size)
        data = self._read_indexed(offset, max(size, READ_BYTES))
        self._buffer, self._buffer_at = data, offset
        return data[:size]

    def _read_indexed(self, offset: int, size: int) -> bytes:
        for attempt in range(2):
            try:
                handle = self._handle(1)
                handle.seek(offset)
                return handle.read(size)
            except RAPIDGZIP_ERRORS as e:
                # Who has read everything is told of the wrong checksum again; who starts further on is not.
                if attempt or not self.damage or "CRC32" not in str(e):
                    raise self._error(e) from None
                self.close()
        raise AssertionError

    def _read_forward(self, offset: int, size: int) -> bytes:
        pieces = []
        while size > 0:
            end = self._buffer_at + len(self._buffer)
            before_at = self._buffer_at - len(self._before)
            if offset >= end:
                if not self._next_block():
                    break
                continue
            if offset < before_at:
                raise RuntimeError(f"{self.path}: byte {offset} is behind what is still in memory")
            block, at = (self._before, before_at) if offset < self._buffer_at else (self._buffer, self._buffer_at)
            pieces.append(block[offset - at : offset - at + size])
            offset, size = offset + len(pieces[-1]), size - len(pieces[-1])
        return b"".join(pieces)

    def _next_block(self) -> bool:
        """Go on by a block of content; False at its end."""
        end = self._buffer_at + len(self._buffer)
        try:
            data = self._handle(0).read(READ_BYTES)
        except RAPIDGZIP_ERRORS as e:
            if "CRC32" not in str(e):
                raise self._error(e) from None
            # rapidgzip tells at the end of the stream, and keeps the last block to itself: the index leads to it.
            self._make_index()
            self.damage = "its checksum (CRC-32) is wrong: some bytes are not what they were, gzip cannot say which"
            self.close()
            data = self._read_indexed(end, self.size - end)
        if data:
            self._before, self._buffer, self._buffer_at = self._buffer, data, end
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

    def will_read(self, offset: int, size: int) -> None:
        """Nothing to do: reading is sequential by itself."""

    def _handle(self, threads: int):
        if self._open is None or self._pid != os.getpid():
            import rapidgzip

            with (
                reading(self.path),
                open(self.path, "rb"),
            ):  # rapidgzip says of a file that is closed to us that it is damaged
                spacing = SPACING_BYTES if os.stat(self.path).st_size < LARGE_BYTES else 4 * SPACING_BYTES
            self._open = rapidgzip.RapidgzipFile(self.path, parallelization=threads, chunk_size=spacing)
            self._pid = os.getpid()
            weakref.finalize(self, _close_in, self._pid, self._open)  # left open at exit, it aborts the process
            if self.index is not None:
                self._open.import_index(io.BytesIO(self.index))
        return self._open

    def _error(self, error: Exception) -> Error:
        if isinstance(error, MemoryError):
            return Error(f"{self.path}: the memory is too small to decompress it; give it more, or decompress the file")
        at = self._buffer_at + len(self._buffer)
        why = re.sub(r"\[[^]]*\]\s*", "", str(error)).split("! ")[0].split("\n")[0] or type(error).__name__
        return Error(
            f"{self.path}: damaged or incomplete gzip stream ({why.rstrip('!.')}, after byte {at:,} of its content); "
            "get the file again"
        )


_INHERITED: list = []  # handles of the process that this one was forked from


def _close_in(pid: int, handle) -> None:
    if os.getpid() == pid:
        handle.close()
    else:  # its threads are not in this process: whoever destroyed it here would wait for them for ever
        _INHERITED.append(handle)


def in_child(function: Callable, blob: GzipFile, *args: Any) -> Any:
    """function(blob, *args) in a process of its own, as far as it reads the stream; the blob learns what that learned.

    Nobody has looked at the stream before, and rapidgzip's threads end their process where memory is short: that has to
    be an Error.
    """
    with engines.LocalEngine(1, (function, blob, args)) as engine:
        [(_, (result, state))] = engine.map(_read_in_child, [f"the gzip stream {blob.path}"])
    vars(blob).update(state)
    return result


def _read_in_child(state: tuple[Callable, GzipFile, tuple], _) -> tuple[Any, dict]:
    function, blob, args = state
    return function(blob, *args), blob.__getstate__()
