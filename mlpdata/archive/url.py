"""One large file behind a URL, read at offsets like a file on disk."""

from __future__ import annotations

import contextlib
import os

from mlpdata.errors import Error
from mlpdata.fetch import http
from mlpdata.fetch.login import Login
from mlpdata.fetch.retry import Backoff, TransientError, retry

NEAR_BYTES = 64 << 10  # the least that is asked of a server: a header, and what may follow it
PIECE_BYTES = 16 << 20  # the most that is asked of a server at once
NO_RANGES = "the server serves no ranges: it cannot be read in place; download it first"
HELD_BYTES = 512 << 20  # announced stretches up to this size are fetched once, however often they are read


class UrlFile:
    """A file behind a URL, read by ranges and stored nowhere. Pickles as its URL; each process has its own connection.

    size: where it is known, else the server is asked at once. Raises Error for a server without ranges, and when the
    file becomes another one while it is read.
    """

    compressed = False

    def __init__(self, url: str, login: Login = Login(), size: int | None = None):  # noqa: B008 - it is frozen
        self.path, self._login = url, login
        self._session, self._pid, self._tag = None, 0, ""
        self._near, self._near_at, self._ahead = b"", 0, NEAR_BYTES
        self._window, self._pieces = (0, 0), {}
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
        at = offset - self._near_at
        if not 0 <= at <= at + stop - offset <= len(self._near):
            # Sequential reading earns ever longer requests; jumping from header to header does not.
            sequential = 0 <= at <= len(self._near)
            self._ahead = min(2 * self._ahead, PIECE_BYTES) if sequential else NEAR_BYTES
            self._near = self._fetch(offset, min(max(stop, offset + self._ahead), self.size))
            self._near_at, at = offset, 0
        return self._near[at : at + stop - offset]

    def will_read(self, offset: int, size: int) -> None:
        """Fetch a stretch in large pieces when it is read, and keep them until another one is announced."""
        held = size <= HELD_BYTES
        self._window, self._pieces = (offset, min(offset + size, self.size)) if held else (0, 0), {}

    def close(self) -> None:
        """Let go of the connection and of what was read ahead; reading again opens it again."""
        if self._session is not None and self._pid == os.getpid():
            self._session.close()
        self._session, self._near, self._pieces = None, b"", {}

    def _from_window(self, offset: int, stop: int) -> bytes:
        start, end = self._window
        found = []
        for i in range((offset - start) // PIECE_BYTES, -(-(stop - start) // PIECE_BYTES)):
            at = start + i * PIECE_BYTES
            if i not in self._pieces:
                self._pieces[i] = self._fetch(at, min(at + PIECE_BYTES, end))
            found.append(self._pieces[i][max(0, offset - at) : stop - at])
        return found[0] if len(found) == 1 else b"".join(found)

    def _fetch(self, start: int, stop: int) -> bytes:
        """Exactly the bytes `start` to `stop`, over as many connections as it takes."""
        pauses, data = Backoff(self.path), bytearray()
        while len(data) < stop - start:
            try:
                with contextlib.closing(self._get(start + len(data), stop)) as answer:
                    if answer.size not in (None, self.size):
                        raise http.FileChangedError
                    if answer.response.status_code != 206 and stop - start < self.size:
                        raise Error(f"{self.path}: {NO_RANGES}")
                    for chunk in answer.chunks():
                        data += chunk
                        pauses.gained(len(chunk))
                        if len(data) >= stop - start:  # a server may send on for ever
                            break
                if len(data) < stop - start:
                    raise TransientError("the connection was cut")
            except TransientError as e:
                pauses.after(e)
            except http.FileChangedError:
                raise Error(f"{self.path} has changed on the server while it was read; start again") from None
        return bytes(data[: stop - start])

    def _ask_size(self) -> int:
        """Ask for the beginning, which tells the size too, and keep it."""

        def ask() -> int:
            with contextlib.closing(self._get(0, NEAR_BYTES)) as answer:
                if answer.response.status_code != 206 or answer.size is None:
                    raise Error(f"{self.path}: {NO_RANGES}")
                self._tag, begun = answer.tag, bytearray()
                for chunk in answer.chunks():
                    begun += chunk
                    if len(begun) >= NEAR_BYTES:
                        break
                self._near = bytes(begun[:NEAR_BYTES])
                return answer.size

        return retry(self.path, ask)

    def _get(self, start: int, stop: int) -> http.Response:
        if self._session is None or self._pid != os.getpid():  # a connection must not be shared with a fork
            self._session, self._pid = self._login.session(self.path), os.getpid()
        return http.get(self._session, self.path, start, stop, self._tag)
