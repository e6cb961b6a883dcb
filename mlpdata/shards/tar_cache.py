"""Tars of a directory elsewhere, fetched when they are wanted and kept on local disk up to a limit.

What a manifest lets one verify is a whole file, so a whole tar is what is fetched. It is compared with its SHA-256 on
arrival and takes its name only then; afterwards its size and its time of change, which is made from the SHA-256, tell
that nobody has written to it since. One folder serves all directories and all processes of a user; which tars make room
for others there, mlpdata.shards.tar_room says.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import os
import shutil
import threading
import time
import weakref
from collections.abc import Iterator, Mapping, Sequence
from functools import cache
from pathlib import Path

from mlpdata.errors import Error, first_line
from mlpdata.shards import remote
from mlpdata.shards.files import FileEntry
from mlpdata.shards.tar_room import PARTS, list_tars, locked, opened, removed, stamp_of
from mlpdata.system.threads import is_left

NUM_FETCHERS = 4  # tars that are fetched at a time
FREE_SHARE = 0.8  # of the free disk that is taken where nobody says how much
POLL_S = 0.05


class TarCache:
    """The tars of one split of a directory elsewhere; see the module.

    folder:  of its directory, in the folder of all. address: where the tars come from.
    entries: its tars by name, as the manifest lists them.
    limit:   bytes of tars, of all directories together, that this process adds to; None: FREE_SHARE of what is free.

    total_bytes: of all tars. fetched_bytes: that this process has fetched. free_bytes: of the disk, when it was opened.
    Raises Error where the largest tar is beyond the limit.
    """

    def __init__(self, folder: Path, address: str, entries: Mapping[str, FileEntry], limit: int | None):
        self.folder, self.address, self.entries = folder, address, entries
        self.total_bytes = sum(entry["bytes"] for entry in entries.values())
        self.fetched_bytes = 0
        with self._one_line():
            (folder / PARTS).mkdir(exist_ok=True)
            self._in_use = opened(folder)
            self.free_bytes = shutil.disk_usage(folder).free
            held = sum(tar.num_bytes for tar in list_tars(folder.parent))
        self.limit = int(FREE_SHARE * (self.free_bytes + held)) if limit is None else limit
        self.require(max(entry["bytes"] for entry in entries.values()), "a tar of it")
        self._renew()

    def require(self, num_bytes: int, what: str) -> None:
        """Raise Error where the limit is below what is needed at a time."""
        if num_bytes > self.limit:
            raise Error(
                f"{self.address} cannot be streamed: {what} may take {num_bytes:,} bytes, but at most {self.limit:,} "
                f"may be kept in {self.folder.parent}; raise cache_bytes, or free disk space"
            )

    @property
    def fetched_share(self) -> float:
        """The share of the tars that cannot be kept, and are fetched in every epoch."""
        return max(0.0, 1 - self.limit / self.total_bytes)

    def stamp(self, name: str) -> tuple[int, int]:
        """(bytes, time of change in ns) of a tar that is whole and unchanged."""
        return stamp_of(self.entries[name])

    def want(self, names: Sequence[str]) -> None:
        """Have these tars fetched, in their order, and held until the next call: as many as the limit leaves room for.

        A tar that cannot be had is an Error when it is opened, and not before.
        """
        room, wanted = self.limit, []
        for name in names:
            room -= self.entries[name]["bytes"]
            if room < 0:
                break
            wanted.append(name)
        with self._change():
            self._wanted = {*wanted}
            self._failed.clear()
            for name in self._held.keys() - self._wanted - self._urgent.keys():
                os.close(self._held.pop(name))
            self._todo = [name for name in wanted if name not in self._held]
            self._start_threads()

    def open(self, name: str) -> int:
        """A descriptor of a tar, which is fetched if need be; whoever takes it closes it.

        Raises Error where the tar cannot be had, and where a thread waits for an iteration that was left.
        """
        with self._one_line(), self._change():
            self._urgent[name] = self._urgent.get(name, 0) + 1
            try:
                self._start_threads()
                while name not in self._held:
                    if name in self._failed:
                        raise self._failed[name]
                    if is_left():
                        raise Error(f"nobody waits for {name} any more")
                    self._changed.wait(POLL_S)
                return os.dup(self._held[name])
            finally:
                self._urgent[name] -= 1
                if not self._urgent[name]:
                    del self._urgent[name]
                    if name not in self._wanted:
                        self._failed.pop(name, None)
                        if name in self._held:
                            os.close(self._held.pop(name))

    def wait(self, names: Sequence[str]) -> None:
        """Wait until these tars are here. Raises Error as `open` does."""
        for name in names:
            os.close(self.open(name))

    # ---------------------------------------------------------------------------------------------------- fetching

    def _renew(self) -> None:
        """Begin without threads, and without tars that are held."""
        self._changed, self._pid = threading.Condition(), os.getpid()  # over everything below
        self._wanted: set[str] = set()
        self._todo: list[str] = []  # wanted, and not begun
        self._urgent: dict[str, int] = {}  # how many threads wait for a tar
        self._fetching: set[str] = set()
        self._failed: dict[str, Exception] = {}
        self._held: dict[str, int] = {}  # descriptors of tars, with their locks
        weakref.finalize(self, _close_all, self._held, self._pid)

    @contextlib.contextmanager
    def _change(self) -> Iterator[None]:
        if self._pid != os.getpid():  # a fork has none of the threads
            self._renew()
        with self._changed:
            yield
            self._changed.notify_all()

    def _start_threads(self) -> None:
        for _ in range(NUM_FETCHERS - len(self._fetching)):
            if (name := self._next()) is None:
                return
            self._fetching.add(name)
            threading.Thread(target=self._work, args=(name,), name="mlpdata-tars", daemon=True).start()

    def _next(self) -> str | None:
        """What to fetch next: first what somebody waits for."""
        done = self._held.keys() | self._fetching | self._failed.keys()
        return next((name for name in (*self._urgent, *self._todo) if name not in done), None)

    def _work(self, name: str | None) -> None:
        """Fetch one tar after the other until none is left to fetch."""
        while name is not None:
            fd, failure = None, None
            try:
                fd = self._fetch(name)
            except Exception as e:
                failure = e
            with self._changed:
                self._fetching.discard(name)
                if name in self._todo:
                    self._todo.remove(name)
                if name in self._wanted or name in self._urgent:
                    if failure is not None:
                        self._failed[name] = failure
                    elif fd is not None:
                        self._held[name], fd = fd, None
                name = self._next()
                if name is not None:
                    self._fetching.add(name)
                self._changed.notify_all()
            if fd is not None:
                os.close(fd)

    def _open_whole(self, name: str) -> int | None:
        """A descriptor of a tar under a shared lock; None where it is not here, or was changed."""
        try:
            fd = os.open(self.folder / name, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK | os.O_NOFOLLOW)
        except OSError as e:
            if e.errno in (errno.ENOENT, errno.ELOOP):
                return None
            raise
        fcntl.flock(fd, fcntl.LOCK_SH)
        stat, stamp = os.fstat(fd), self.stamp(name)
        if stat.st_nlink and (stat.st_size, stat.st_mtime_ns) == stamp:
            os.utime(fd, ns=(time.time_ns(), stamp[1]))
            return fd
        os.close(fd)
        return None

    def _fetch(self, name: str) -> int | None:
        """Fetch a tar, where it is not here, and return its descriptor under a shared lock.

        None where others leave no room for it, and nobody waits for it.
        """
        parts, entry = self.folder / PARTS, self.entries[name]
        if (fd := self._open_whole(name)) is not None:
            return fd
        with locked(parts / f"{name}.lock"):  # one thread of one process fetches it
            if (fd := self._open_whole(name)) is not None:
                return fd
            while not self._make_room(name, entry["bytes"]):
                if name not in self._urgent:
                    return None
                time.sleep(POLL_S)  # all of the room is taken by tars on their way
            _store(self.address, os.getpid()).fetch(name, entry, parts, lambda line: None, quiet=True)
            self.fetched_bytes += entry["bytes"]
            fd = os.open(parts / name, os.O_RDONLY | os.O_CLOEXEC)
            fcntl.flock(fd, fcntl.LOCK_SH)
            os.utime(fd, ns=(time.time_ns(), self.stamp(name)[1]))
            os.replace(parts / name, self.folder / name)
            return fd

    def _make_room(self, name: str, size: int) -> bool:
        """Set the room for a tar aside, as a part file of its length, and remove what is in the way."""
        part = self.folder / PARTS / f"{name}.part"
        with locked(self.folder.parent / ".lock"):
            with contextlib.suppress(FileNotFoundError):
                (self.folder / name).unlink()  # it was changed
            tars = [tar for tar in list_tars(self.folder.parent) if tar.path != part]
            too_much = sum(tar.num_bytes for tar in tars) + size - self.limit
            for tar in removed(tars, held_too=name in self._urgent) if too_much > 0 else ():
                too_much -= tar.num_bytes
                if too_much <= 0:
                    break
            if too_much > 0:
                return False
            with open(part, "ab") as f:
                f.truncate(size)
            return True

    @contextlib.contextmanager
    def _one_line(self) -> Iterator[None]:
        try:
            yield
        except OSError as e:
            reason = e.strerror or first_line(e)
            raise Error(f"cannot keep tars of {self.address} in {self.folder}: {reason}") from None


def _close_all(held: dict[str, int], pid: int) -> None:
    if pid == os.getpid():  # a fork's copies go with the fork
        for fd in list(held.values()):  # at the end of a process, threads may still be at work
            os.close(fd)


@cache
def _store(address: str, pid: int) -> remote.Store:
    """The store of an address, opened once a process: connections do not outlive a fork."""
    return remote.open_store(address)
