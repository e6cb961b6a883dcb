"""Fetch a file whole or not at all: resumed, verified, renamed into place, by one process at a time.

While it is under way a file is `NAME.part`, and `NAME.part.json` says which stretches of it are missing. One connection
fetches it; where that is slow, the rest is split and fetched by several. Mirrors are tried in order, and what one of
them gave is kept for the next if the checksum is known, for then it does not matter whose bytes they are.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import shutil
import threading
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass, replace
from pathlib import Path

from mlpdata.errors import Error, first_line
from mlpdata.fetch import http
from mlpdata.fetch.login import Login
from mlpdata.fetch.retry import ATTEMPTS, Backoff, TransientError, retry
from mlpdata.system.files import sync_dir, write_atomic
from mlpdata.system.progress import Progress

SLOW_AFTER_S, SLOW_BYTES_PER_S = 5.0, 4e6  # one connection this slow after so long gets company
CONNECTIONS = 4  # at most, to one server
SPLIT_BYTES = 8 << 20  # no stretch is split into smaller ones
SAVE_EVERY_S = 1.0  # how much a killed process fetches again
TICK_S = 0.1
UNKNOWN = 1 << 62
MAX_JOURNAL_BYTES = 1 << 20
SPARE_BYTES = 1 << 30  # of the disk, left free by a body whose end nobody knows


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


def fetch(
    wanted: RemoteFile,
    folder: Path,
    login: Login = Login(),  # noqa: B008 - it is frozen
    say: Callable[[str], None] = lambda line: None,
    quiet: bool = False,
) -> Path:
    """Have a file in a folder; returns its path. Does nothing but check it where it is there already.

    say: told what goes on, a line at a time. Raises Error where it cannot be had, or is there and is not the file
    wanted; what has arrived stays for the next call.
    """
    path = folder / wanted.name
    if wanted.urls:
        login.session(wanted.urls[0]).close()  # a login that cannot be read is no matter of mirrors
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with exclusive(folder / f".{wanted.name}.lock", say):
            if path.exists():
                _check(path, wanted, f"{path} is there, but", quiet)
                return path
            fetch_unlocked(wanted, path, login, say, quiet)
    except OSError as e:
        raise Error(f"cannot write {e.filename or path}: {e.strerror or e}") from None
    except KeyboardInterrupt:
        raise Error(f"stopped; what has arrived of {path} stays: the same command goes on from here") from None
    return path


@contextlib.contextmanager
def exclusive(lock_path: Path, say):
    """Hold a file's lock; the system takes it back from a process that dies."""
    from filelock import FileLock, Timeout  # here, as most commands fetch nothing

    lock = FileLock(lock_path)
    try:
        lock.acquire(timeout=0)
    except Timeout:
        say(f"another process is fetching {lock_path.name[1:].removesuffix('.lock')}: waiting for it")
        lock.acquire()
    try:
        yield
    finally:
        lock.release()


def fetch_unlocked(wanted: RemoteFile, path: Path, login: Login, say, quiet: bool = False) -> None:
    """The same for a caller who sees to it that nobody else fetches the file, which is not there yet."""
    failures: list[Error] = []
    for url in wanted.urls:
        if failures:
            say(f"{failures[-1]}; trying the next mirror")
        try:
            _fetch_from(url, wanted, path, login, say, quiet)
            return
        except Error as e:
            failures.append(e)
    raise Error("; ".join(map(str, failures)))


def _fetch_from(url: str, wanted: RemoteFile, path: Path, login: Login, say, quiet: bool) -> None:
    for attempt in (1, 2):
        transfer = _Transfer(wanted, url, path, login, say, quiet)
        resumed = transfer.run()
        try:
            _check(transfer.part, wanted, f"what {url} gave", quiet)
        except Error as e:
            transfer.forget()
            if not resumed or attempt == 2:
                raise Error(f"{e}; it has been deleted") from None
            say(f"{e}, and some of it was of an earlier attempt; starting again")
            continue
        os.replace(transfer.part, path)
        sync_dir(path.parent)
        transfer.forget()
        return


def _check(path: Path, wanted: RemoteFile, what: str, quiet: bool) -> None:
    """Raise Error where a file has another size or checksum than the one wanted."""
    size = path.stat().st_size
    if wanted.num_bytes is not None and size != wanted.num_bytes:
        raise Error(f"{what} has {size:,} bytes instead of {wanted.num_bytes:,}")
    if wanted.checksum is None:
        return
    kind, digest = wanted.checksum
    found = hashlib.new(kind, usedforsecurity=False)
    with open(path, "rb") as f, Progress(f"checking {wanted.name}", size, "bytes", quiet) as progress:
        while block := f.read(4 << 20):
            found.update(block)
            progress.add(len(block))
    if found.hexdigest() != digest:
        raise Error(f"{what} has {kind.upper()} {found.hexdigest()} instead of {digest}")


# -------------------------------------------------------------------------------------------------------- transfer


@dataclass
class _Stretch:
    """Bytes `at` to `stop` that are missing."""

    at: int
    stop: int


@dataclass
class _Journal:
    """What `NAME.part.json` says."""

    url: str
    tag: str
    size: int | None
    missing: list[list[int]]  # [at, stop] of every stretch

    @classmethod
    def read(cls, path: Path) -> _Journal:
        """Raises ValueError for what is none: the file may be damaged, or somebody else's."""
        with open(path, "rb") as f:
            text = f.read(MAX_JOURNAL_BYTES)
        try:
            journal = cls(**json.loads(text))
            pairs = [n for at, stop in journal.missing for n in (at, stop)]
        except (TypeError, ValueError, RecursionError) as e:
            raise ValueError(first_line(e)) from None
        numbers = pairs if journal.size is None else [journal.size, *pairs]
        if not (isinstance(journal.url, str) and isinstance(journal.tag, str) and journal.tag.isprintable()):
            raise ValueError("no text where there should be some")
        if not all(type(n) is int for n in numbers):
            raise ValueError("no whole numbers")
        return journal


class _Endless(Error):
    """A body that is larger than the file wanted, or than the disk."""


class _Transfer:
    """One URL into one part file."""

    def __init__(self, wanted: RemoteFile, url: str, path: Path, login: Login, say, quiet: bool):
        self._wanted, self._url, self._login, self._say, self._quiet = wanted, url, login, say, quiet
        self.part = path.with_name(f"{path.name}.part")
        self._journal_path = path.with_name(f"{path.name}.part.json")
        self._lock = threading.Lock()  # over everything below
        self._woken = threading.Event()
        self._stretches: list[_Stretch] = []
        self._errors: list[BaseException] = []
        self._file = -1
        self._received = 0

    def forget(self) -> None:
        """Delete what has arrived."""
        self.part.unlink(missing_ok=True)
        self._journal_path.unlink(missing_ok=True)

    def run(self) -> bool:
        """Fetch what is missing. Returns whether some of it had been there before. Raises Error."""
        for _ in range(ATTEMPTS):
            try:
                return self._run_once()
            except http.FileChangedError as e:
                self._say(f"{self._url}: {e}; starting again")
                self.forget()
            except _Endless:
                self.forget()
                raise
        raise Error(f"{self._url}: the file could not be had in one piece in {ATTEMPTS} attempts")

    def _run_once(self) -> bool:
        self._tag, self._size, self._stretches = self._resume()
        if not self._stretches:  # an earlier run stopped between the last byte and the renaming
            return True
        first = self._stretches[0]
        resumed = first.at > 0 or len(self._stretches) > 1
        session = self._login.session(self._url)
        answer = retry(
            self._url, lambda: http.get(session, self._url, first.at, self._end(first), self._tag), self._say
        )
        with contextlib.closing(answer):
            self._begin(answer)
            missing = sum(s.stop - s.at for s in self._stretches)
            self._progress = Progress(self._wanted.name, self._size or 0, "bytes", self._quiet)
            if resumed and self._size:
                self._say(f"going on at {self._size - missing:,} of {self._size:,} bytes of {self._wanted.name}")
                self._progress.resume(self._size - missing)
            self._waiting = self._stretches[1:]
            self._received, self._workers, self._errors = 0, 0, []
            try:
                self._employ(session, first, answer)
                self._supervise(answer.ranges)
            finally:
                with self._lock:  # from here on no thread writes
                    self._save()
                    os.close(self._file)
                    self._file = -1
        self._progress.finish()
        return resumed

    def _resume(self) -> tuple[str, int | None, list[_Stretch]]:
        """(tag, size, missing stretches) to begin with: of what an earlier run left, where that is still of use."""
        anew = ("", None, [_Stretch(0, UNKNOWN)])
        try:
            journal = _Journal.read(self._journal_path)
            stretches = [_Stretch(at, stop) for at, stop in journal.missing]
            held = self.part.stat().st_size
        except (OSError, ValueError):
            return anew
        size, checkable = journal.size, self._wanted.checksum is not None and journal.size == self._wanted.num_bytes
        if size is None or held != size or not all(0 <= s.at < s.stop <= size for s in stretches):
            return anew
        if journal.url == self._url:
            return journal.tag, size, stretches
        return ("", size, stretches) if checkable else anew

    def _begin(self, answer: http.Response) -> None:
        """Settle size and tag from the first answer, and open the part file."""
        wanted = self._wanted.num_bytes
        if answer.size is not None and wanted is not None and answer.size != wanted:
            page = answer.response.headers.get("Content-Type", "").startswith("text/html")
            hint = ": it is a web page; it seems that the server wants a login" if page else ""
            raise Error(f"{self._url} has {answer.size:,} bytes instead of {wanted:,}{hint}")
        if self._size is not None and answer.size not in (None, self._size):
            raise http.FileChangedError("the file has changed on the server")
        self._tag, self._size = answer.tag, answer.size if self._size is None else self._size
        if self._stretches[-1].stop == UNKNOWN and self._size is not None:
            self._stretches[-1].stop = self._size
        need = sum(s.stop - s.at for s in self._stretches) if self._size is not None else 0
        free = shutil.disk_usage(self.part.parent).free
        self._most = max(0, free - SPARE_BYTES) if self._size is None else self._size
        if self._size is None and wanted is not None:
            self._most = wanted
        if need > free:
            raise Error(f"no space for {self.part}: {need / 1e9:,.1f} GB are missing, {free / 1e9:,.1f} GB free")
        self._file = os.open(self.part, os.O_RDWR | os.O_CREAT, 0o644)
        os.ftruncate(self._file, self._size or 0)

    def _end(self, stretch: _Stretch) -> int | None:
        """Where a request for a stretch stops: None at the end of the file, which needs no range."""
        return None if stretch.stop in (UNKNOWN, self._size) else stretch.stop

    def _supervise(self, ranges: bool) -> None:
        """Report, save and split until all has arrived. Raises what a thread raised."""
        started = saved = time.monotonic()
        reported, alone = 0, True
        while True:
            self._woken.wait(TICK_S)
            now = time.monotonic()
            with self._lock:
                self._woken.clear()
                received, errors = self._received, self._errors
                whole = all(s.at >= s.stop for s in self._stretches)
                if now - saved >= SAVE_EVERY_S:
                    self._save()
                    saved = now
            self._progress.add(received - reported)
            reported = received
            if errors:
                raise errors[0]
            if whole:
                return
            if ranges and alone and now - started >= SLOW_AFTER_S:
                alone = False
                if received < SLOW_BYTES_PER_S * (now - started):
                    self._split()

    def _split(self) -> None:
        """Share what is missing among several connections."""
        with self._lock:
            largest = max(self._stretches, key=lambda s: s.stop - s.at)
            step = max(-(-(largest.stop - largest.at) // CONNECTIONS), SPLIT_BYTES)
            cuts = range(largest.at + step, largest.stop, step)
            more = [_Stretch(at, min(at + step, largest.stop)) for at in cuts]
            largest.stop = min(largest.at + step, largest.stop)
            self._stretches += more
            self._waiting += more
            company = min(len(self._waiting), CONNECTIONS - 1)
        if company:
            self._say(f"{self._wanted.name}: this is slow; going on with {1 + company} connections")
        for _ in range(company):
            self._employ(self._login.session(self._url))

    # ------------------------------------------------------------------------------------------------------ threads

    def _employ(self, session, stretch: _Stretch | None = None, answer: http.Response | None = None) -> None:
        with self._lock:
            self._workers += 1
        threading.Thread(target=self._work, args=(session, stretch, answer), daemon=True).start()

    def _work(self, session, stretch: _Stretch | None, answer: http.Response | None) -> None:
        """Fetch stretches until none is waiting. A worker that cannot go on leaves its stretch to the others."""
        try:
            while stretch := stretch or self._next():
                self._pull(session, stretch, answer)
                stretch = answer = None
        except BaseException as e:
            with self._lock:
                self._workers -= 1
                if isinstance(e, Error) and self._workers:
                    self._waiting.append(stretch)
                else:
                    self._errors.append(e)
        finally:
            self._woken.set()

    def _next(self) -> _Stretch | None:
        """The next stretch; None ends the worker, which is counted off in the same breath: none is left lying."""
        with self._lock:
            if self._waiting:
                return self._waiting.pop(0)
            self._workers -= 1
            return None

    def _pull(self, session, stretch: _Stretch, answer: http.Response | None) -> None:
        """Fetch one stretch, over as many connections as it takes."""
        pauses = Backoff(self._url, self._say)
        while answer is not None or stretch.at < stretch.stop:
            try:
                if answer is None:
                    answer = http.get(session, self._url, stretch.at, self._end(stretch), self._tag)
                with contextlib.closing(answer):
                    for chunk in answer.chunks():
                        if self._take(stretch, chunk):
                            return
                        pauses.gained(len(chunk))
                if self._size is None:  # the end of the body is all that tells the size
                    with self._lock:
                        stretch.stop = stretch.at
                elif stretch.at < stretch.stop:
                    raise TransientError("the connection was cut")
            except TransientError as e:
                pauses.after(e)
            answer = None

    def _take(self, stretch: _Stretch, chunk: bytes) -> bool:
        """Write what belongs to the stretch; returns whether that was the last of it, or nobody wants any more."""
        with self._lock:
            if self._file < 0:
                return True
            chunk = chunk[: stretch.stop - stretch.at]
            if stretch.at + len(chunk) > self._most:
                raise _Endless(f"{self._url} gives more than {self._most:,} bytes and does not say how many there are")
            if os.pwrite(self._file, chunk, stretch.at) != len(chunk):
                raise Error(f"no space left for {self.part}")
            stretch.at += len(chunk)
            self._received += len(chunk)
            return stretch.at >= stretch.stop

    def _save(self) -> None:
        """Write the journal, behind the bytes it speaks of. Called with the lock held."""
        os.fdatasync(self._file)
        missing = [[s.at, s.stop] for s in self._stretches if s.at < s.stop]
        journal = _Journal(self._url, self._tag, self._size, missing)
        write_atomic(self._journal_path, json.dumps(asdict(journal)).encode())
