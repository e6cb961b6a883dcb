"""One URL into one part file, over one connection or, where that is slow, over several; resumed from a journal.

`NAME.part` has the length of the whole file, and `NAME.part.json`, the journal, says which ranges of it are missing.
"""

from __future__ import annotations

import contextlib
import os
import shutil
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Protocol

import msgspec

from mlpdata.errors import Error
from mlpdata.fetch import http
from mlpdata.fetch.retry import ATTEMPTS, Backoff, TransientError, retry
from mlpdata.system.files import write_atomic
from mlpdata.system.format import format_bytes
from mlpdata.system.progress import Progress

SLOW_AFTER_S, SLOW_BYTES_PER_S = 5.0, 4e6  # one connection this slow after so long gets company
CONNECTIONS = 4  # at most, to one server
SPLIT_BYTES = 8 << 20  # no range is split into smaller ones
SAVE_EVERY_S = 1.0  # how much a killed process fetches again
TICK_S = 0.1
UNKNOWN = 1 << 62
MAX_JOURNAL_BYTES = 1 << 20
SPARE_BYTES = 1 << 30  # of the disk, left free by a body that does not say how long it is


class Body(Protocol):
    """A stretch of a file that is still to be read; see http.Response."""

    @property
    def size(self) -> int | None: ...
    @property
    def tag(self) -> str: ...
    @property
    def ranges(self) -> bool: ...
    @property
    def is_page(self) -> bool: ...
    def chunks(self) -> Iterator[bytes]: ...
    def close(self) -> None: ...


class Access(Protocol):
    """How the bytes of a file are asked for: a Login for HTTP, or a StorageFile."""

    def session(self, url: str) -> Any:
        """A connection of its own for a thread."""
        ...

    def get(self, session: Any, url: str, start: int = 0, stop: int | None = None, tag: str = "") -> Body:
        """See http.get."""
        ...


@dataclass(frozen=True, kw_only=True)
class RemoteFile:
    """A file to be fetched."""

    name: str
    urls: tuple[str, ...]  # the official one and its mirrors, in the order they are tried
    num_bytes: int | None = None
    md5: str | None = None
    sha256: str | None = None

    def from_urls(self, *urls: str) -> RemoteFile:
        """The same file from elsewhere."""
        return replace(self, urls=urls)

    @property
    def checksum(self) -> tuple[str, str] | None:
        """(algorithm, digest) where one is known."""
        return ("sha256", self.sha256) if self.sha256 else ("md5", self.md5) if self.md5 else None


@dataclass
class _Range:
    """Bytes `start` to `stop` of the file, which are missing."""

    start: int
    stop: int
    taken: bool = False  # by a connection

    @property
    def num_bytes(self) -> int:
        return self.stop - self.start


class _Journal(msgspec.Struct):
    """What `NAME.part.json` says."""

    url: str
    tag: str
    size: int | None
    missing: list[tuple[int, int]]  # (start, stop) of every range


class _TooLargeError(Error):
    """The body is larger than the file wanted, or than the disk."""


def part_path(path: Path) -> Path:
    """Where a file is while it is fetched."""
    return path.with_name(f"{path.name}.part")


def forget(path: Path) -> None:
    """Delete what has arrived of a file."""
    part_path(path).unlink(missing_ok=True)
    _journal_path(path).unlink(missing_ok=True)


def _journal_path(path: Path) -> Path:
    return path.with_name(f"{path.name}.part.json")


def transfer(file: RemoteFile, url: str, path: Path, access: Access, say: Callable[[str], None], quiet: bool) -> bool:
    """Fetch what is missing of a file from one URL into `part_path(path)`.

    Returns whether some of it had been there before. Raises Error; what has arrived then stays for the next call.
    """
    connections = CONNECTIONS
    for _ in range(ATTEMPTS):
        try:
            return _Transfer(file, url, path, access, say, quiet).run(connections)
        except http.FileChangedError as e:
            say(f"{url}: {e}; starting again")
            forget(path)
            connections = 1  # some servers offer ranges and then do not serve them
        except _TooLargeError:
            forget(path)
            raise
    raise Error(f"{url}: the file could not be had in one piece in {ATTEMPTS} attempts")


class _Transfer:
    """One attempt. Threads that it leaves behind write nothing any more.

    The thread that calls `run` reports and saves. Every connection has a thread of its own: it takes a range that no
    other has, and when there is none and one connection was slow, the second half of the largest.
    """

    def __init__(self, file: RemoteFile, url: str, path: Path, access: Access, say: Callable[[str], None], quiet: bool):
        self._file, self._url, self._access, self._say = file, url, access, say
        self._part, self._journal_path = part_path(path), _journal_path(path)
        self._woken = threading.Event()
        self._lock = threading.Lock()  # over everything below
        self._tag, self._size, self._ranges = self._resume()
        self._progress = Progress(file.name, self._size or 0, "bytes", quiet)
        self._errors: list[BaseException] = []
        self._fd = -1
        self._max_bytes = self._received = self._num_connections = 0
        self._split = False  # whether ranges may be split among connections

    def run(self, max_connections: int) -> bool:
        """See `transfer`. Raises FileChangedError where everything has to be fetched again."""
        if not self._ranges:  # an earlier run stopped between the last byte and the renaming
            return True
        first = self._ranges[0]
        resumed = first.start > 0 or len(self._ranges) > 1
        session = self._access.session(self._url)
        response = retry(
            self._url, lambda: self._access.get(session, self._url, first.start, self._end(first), self._tag), self._say
        )
        try:
            self._begin(response)
        except BaseException:
            response.close()
            raise
        if resumed and self._size:
            held = self._size - sum(r.num_bytes for r in self._ranges)
            self._say(f"going on at {held:,} of {self._size:,} bytes of {self._file.name}")
            self._progress.resume(held)
        try:
            first.taken = True
            self._connect(session, first, response)  # whose thread closes the response
            self._supervise(max_connections if response.ranges else 1)
        finally:
            with self._lock:  # from here on no thread writes
                self._save()
                os.close(self._fd)
                self._fd = -1
        self._progress.finish()
        return resumed

    def _resume(self) -> tuple[str, int | None, list[_Range]]:
        """(tag, size, missing ranges) to begin with: of what an earlier run left, where that is still of use."""
        anew = ("", None, [_Range(0, UNKNOWN)])
        try:
            with open(self._journal_path, "rb") as f:
                journal = msgspec.json.decode(f.read(MAX_JOURNAL_BYTES), type=_Journal)
            held = self._part.stat().st_size
        except (OSError, ValueError, msgspec.MsgspecError, RecursionError):  # it may be damaged, or somebody else's
            return anew
        size, ranges = journal.size, [_Range(start, stop) for start, stop in journal.missing]
        if size is None or held != size or not all(0 <= r.start < r.stop <= size for r in ranges):
            return anew
        if not journal.tag.isprintable():  # it is sent to the server
            return anew
        if journal.url == self._url:
            return journal.tag, size, ranges
        # Bytes of another mirror are as good, if the checksum will say so.
        return ("", size, ranges) if self._file.checksum is not None and size == self._file.num_bytes else anew

    def _begin(self, response: Body) -> None:
        """Settle size and tag from the first response, and open the part file."""
        wanted = self._file.num_bytes
        if response.size is not None and wanted is not None and response.size != wanted:
            hint = ": it is a web page; it seems that the server wants a login" if response.is_page else ""
            raise Error(f"{self._url} has {response.size:,} bytes instead of {wanted:,}{hint}")
        if self._size is not None and response.size not in (None, self._size):
            raise http.FileChangedError("the file has changed on the server")
        self._tag, self._size = response.tag, response.size if self._size is None else self._size
        free = shutil.disk_usage(self._part.parent).free
        if self._size is None:
            self._max_bytes = max(0, free - SPARE_BYTES) if wanted is None else wanted
        else:
            self._max_bytes = self._size
            self._ranges[-1].stop = min(self._ranges[-1].stop, self._size)
            need = sum(r.num_bytes for r in self._ranges)
            if need > free:
                raise Error(f"no space for {self._part}: {format_bytes(need)} are missing, {format_bytes(free)} free")
        self._progress.total = self._size or 0
        self._fd = os.open(self._part, os.O_RDWR | os.O_CREAT, 0o644)
        os.ftruncate(self._fd, self._size or 0)

    def _end(self, missing: _Range) -> int | None:
        """Where a request for a range stops: None at the end of the file."""
        return None if missing.stop in (UNKNOWN, self._size) else missing.stop

    def _supervise(self, max_connections: int) -> None:
        """Report, save, and add connections, until all has arrived. Raises what a thread raised."""
        started = saved = time.monotonic()
        judged = False
        while True:
            self._woken.wait(TICK_S)
            now = time.monotonic()
            with self._lock:
                self._woken.clear()
                if now - saved >= SAVE_EVERY_S:
                    self._save()
                    saved = now
                self._progress.tick([self._url])
                if self._errors:
                    raise self._errors[0]
                if all(r.start >= r.stop for r in self._ranges):
                    return
                received, largest = self._received, max(r.num_bytes for r in self._ranges)
            if not judged and now - started >= SLOW_AFTER_S:
                judged = True
                more = min(max_connections, largest // SPLIT_BYTES) - 1
                if more > 0 and received < SLOW_BYTES_PER_S * (now - started):
                    self._say(f"{self._file.name}: this is slow; going on with {1 + more} connections")
                    self._split = True
                    for _ in range(more):
                        self._connect(self._access.session(self._url))

    def _save(self) -> None:
        """Write the journal, behind the bytes it speaks of. Called with the lock held."""
        os.fsync(self._fd)
        missing = [(r.start, r.stop) for r in self._ranges if r.start < r.stop]
        write_atomic(self._journal_path, msgspec.json.encode(_Journal(self._url, self._tag, self._size, missing)))

    # -------------------------------------------------------------------------------------------------- connections

    def _connect(self, session, missing: _Range | None = None, response: Body | None = None) -> None:
        """Start the thread of one more connection, with a range and its response where they are there already."""
        with self._lock:
            self._num_connections += 1
        threading.Thread(target=self._work, args=(session, missing, response), daemon=True).start()

    def _work(self, session, missing: _Range | None, response: Body | None) -> None:
        """Fetch ranges until none is left. A connection that cannot go on leaves its range to the others."""
        try:
            while missing := missing or self._take_range():
                self._pull(session, missing, response)
                missing = response = None
        except BaseException as e:
            with self._lock:
                self._num_connections -= 1
                if isinstance(e, Error) and self._num_connections and missing:
                    missing.taken = False
                else:
                    self._errors.append(e)
        finally:
            self._woken.set()

    def _take_range(self) -> _Range | None:
        """The next range; None ends the connection, which is counted off in the same breath: no range is left lying."""
        with self._lock:
            missing = next((r for r in self._ranges if not r.taken and r.num_bytes), None)
            largest = max(self._ranges, key=lambda r: r.num_bytes)
            if missing is None and self._split and largest.num_bytes >= 2 * SPLIT_BYTES:
                middle = largest.start + largest.num_bytes // 2
                missing, largest.stop = _Range(middle, largest.stop), middle
                self._ranges.append(missing)
            if missing is None:
                self._num_connections -= 1
            else:
                missing.taken = True
            return missing

    def _pull(self, session, missing: _Range, response: Body | None) -> None:
        """Fetch one range, with as many requests as it takes."""
        backoff = Backoff(self._url, self._say)
        while response is not None or missing.start < missing.stop:
            try:
                if response is None:
                    response = self._access.get(session, self._url, missing.start, self._end(missing), self._tag)
                with contextlib.closing(response):
                    for chunk in response.chunks():
                        if self._write(missing, chunk):
                            return
                        backoff.gained(len(chunk))
                if self._size is None:  # the end of the body is all that tells the size
                    with self._lock:
                        missing.stop = missing.start
                elif missing.start < missing.stop:
                    raise TransientError("the connection was cut")
            except TransientError as e:
                if self._fd < 0:
                    return
                backoff.after(e)
            response = None

    def _write(self, missing: _Range, chunk: bytes) -> bool:
        """Write what belongs to the range; returns whether that was the last of it, or nobody wants any more."""
        with self._lock:
            if self._fd < 0:
                return True
            chunk = chunk[: missing.num_bytes]
            if missing.start + len(chunk) > self._max_bytes:
                raise _TooLargeError(
                    f"{self._url} gives more than {self._max_bytes:,} bytes and does not say how many there are"
                )
            if os.pwrite(self._fd, chunk, missing.start) != len(chunk):
                raise Error(f"no space left for {self._part}")
            missing.start += len(chunk)
            self._received += len(chunk)
            self._progress.add(len(chunk))
            return missing.start >= missing.stop
