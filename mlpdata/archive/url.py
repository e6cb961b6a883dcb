"""One large file behind a URL, read at offsets like a file on disk."""

from __future__ import annotations

import contextlib
import os

from mlpdata.errors import Error
from mlpdata.fetch import http
from mlpdata.fetch.login import Login
from mlpdata.fetch.retry import Backoff, TransientError, retry

NEAR_BYTES = 64 << 10  # of the smallest request: a header, and what may follow it
PIECE_BYTES = 16 << 20  # of the largest request
HELD_BYTES = 512 << 20  # an announced stretch of at most this size is fetched once and kept
NO_RANGES = "the server serves no ranges: it cannot be read in place; download it first"


class UrlFile:
    """A file behind a URL, read by ranges and stored nowhere. Pickles as its URL; each process has its own connection.

    size: where the caller knows it; else the server is asked at once. Raises Error for a server without ranges, and
    where the file changes on the server while it is read.
    """

    compressed = False

    def __init__(self, url: str, login: Login = Login(), size: int | None = None):  # noqa: B008 - it is frozen
        self.path, self._login = url, login
        self._session, self._pid, self._tag = None, 0, ""
        self._near, self._near_start, self._ahead = b"", 0, NEAR_BYTES  # what the last request brought
        self._window, self._pieces = (0, 0), {}  # the announced stretch, and what has been fetched of it
        self.size = size if size is not None else self._ask_size()

    def __getstate__(self):
        return {**self.__dict__, "_session": None, "_near": b"", "_window": (0, 0), "_pieces": {}}

    def read_at(self, offset: int, size: int) -> bytes:
        """At most `size` bytes from `offset`; fewer only at the end of the file."""
        stop = min(offset + size, self.size)
        if stop <= offset:
            return b""
        if self._window[0] <= offset and stop <= self._window[1]:
            return self._from_window(offset, stop)
        start = offset - self._near_start
        if not 0 <= start <= start + stop - offset <= len(self._near):
            # Sequential reading makes requests ever longer; jumping from header to header does not.
            is_sequential = 0 <= start <= len(self._near)
            self._ahead = min(2 * self._ahead, PIECE_BYTES) if is_sequential else NEAR_BYTES
            self._near = self._fetch(offset, min(max(stop, offset + self._ahead), self.size))
            self._near_start, start = offset, 0
        return self._near[start : start + stop - offset]

    def will_read(self, offset: int, size: int) -> None:
        """Announce a stretch: it is fetched in large pieces as it is read, and kept until the next announcement."""
        self._window, self._pieces = (offset, min(offset + size, self.size)) if size <= HELD_BYTES else (0, 0), {}

    def close(self) -> None:
        """Close the connection and drop what was read ahead; the next read opens it again."""
        if self._session is not None and self._pid == os.getpid():
            self._session.close()
        self._session, self._near, self._pieces = None, b"", {}

    def _from_window(self, offset: int, stop: int) -> bytes:
        start, end = self._window
        parts = []
        for i in range((offset - start) // PIECE_BYTES, -(-(stop - start) // PIECE_BYTES)):
            piece_start = start + i * PIECE_BYTES
            if i not in self._pieces:
                self._pieces[i] = self._fetch(piece_start, min(piece_start + PIECE_BYTES, end))
            parts.append(self._pieces[i][max(0, offset - piece_start) : stop - piece_start])
        return parts[0] if len(parts) == 1 else b"".join(parts)

    def _fetch(self, start: int, stop: int) -> bytes:
        """Exactly the bytes from `start` to `stop`, over as many connections as that takes."""
        backoff, data = Backoff(self.path), bytearray()
        while len(data) < stop - start:
            try:
                with contextlib.closing(self._get(start + len(data), stop)) as response:
                    if response.size not in (None, self.size):
                        raise http.FileChangedError
                    if response.reply.status_code != 206 and stop - start < self.size:
                        raise Error(f"{self.path}: {NO_RANGES}")
                    for chunk in response.chunks():
                        data += chunk
                        backoff.gained(len(chunk))
                        if len(data) >= stop - start:  # a server may send on for ever
                            break
                if len(data) < stop - start:
                    raise TransientError("the connection was cut")
            except TransientError as e:
                backoff.after(e)
            except http.FileChangedError:
                raise Error(f"{self.path} has changed on the server while it was read; start again") from None
        return bytes(data[: stop - start])

    def _ask_size(self) -> int:
        """Fetch and keep the beginning of the file; the response says how large the whole is."""

        def ask() -> int:
            with contextlib.closing(self._get(0, NEAR_BYTES)) as response:
                if response.reply.status_code != 206 or response.size is None:
                    raise Error(f"{self.path}: {NO_RANGES}")
                self._tag, beginning = response.tag, bytearray()
                for chunk in response.chunks():
                    beginning += chunk
                    if len(beginning) >= NEAR_BYTES:
                        break
                self._near = bytes(beginning[:NEAR_BYTES])
                return response.size

        return retry(self.path, ask)

    def _get(self, start: int, stop: int) -> http.Response:
        if self._session is None or self._pid != os.getpid():  # a connection must not be shared with a fork
            self._session, self._pid = self._login.session(self.path), os.getpid()
        return http.get(self._session, self.path, start, stop, self._tag)
