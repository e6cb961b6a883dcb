"""Fetch a file whole or not at all: resumed, verified, renamed into place, by one process at a time.

Mirrors are tried in order. What one of them gave is kept for the next if the checksum is known, for then it does not
matter whose bytes they are.
"""

from __future__ import annotations

import contextlib
import hashlib
import os
from collections.abc import Callable, Generator
from pathlib import Path

from mlpdata.errors import Error
from mlpdata.fetch.login import Login
from mlpdata.fetch.transfer import Access, RemoteFile, forget, part_path, transfer
from mlpdata.system.files import make_folder, sync_dir
from mlpdata.system.progress import Progress

Say = Callable[[str], None]  # is told what goes on, a line at a time


def fetch(
    file: RemoteFile,
    folder: Path,
    login: Login = Login(),  # noqa: B008 - it is frozen
    say: Say = lambda line: None,
    quiet: bool = False,
) -> Path:
    """Ensure the file is in `folder` and return its path; an existing file is only verified.

    Raises Error where it cannot be had, or is there and is not the file wanted; what has arrived stays for the next
    call.
    """
    path = folder / file.name
    if file.urls:
        login.session(file.urls[0]).close()  # a login that cannot be read is no matter of mirrors
    try:
        make_folder(folder)
        with exclusive(folder / f".{file.name}.lock", say):
            if path.exists():
                _check(path, file, f"{path} is there, but", quiet)
                return path
            fetch_unlocked(file, path, login, say, quiet)
    except OSError as e:
        raise Error(f"cannot write {e.filename or path}: {e.strerror or e}") from None
    except KeyboardInterrupt:
        raise Error(f"stopped; what has arrived of {path} stays: the same command goes on from here") from None
    return path


@contextlib.contextmanager
def exclusive(lock_path: Path, say: Say) -> Generator[None, None, None]:
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


def fetch_unlocked(file: RemoteFile, path: Path, access: Access, say: Say, quiet: bool = False) -> None:
    """Fetch a file that is not there yet, for a caller who sees to it that nobody else does."""
    failures: list[Error] = []
    for url in file.urls:
        if failures:
            say(f"{failures[-1]}; trying the next mirror")
        try:
            _fetch_from(url, file, path, access, say, quiet)
            return
        except Error as e:
            failures.append(e)
    raise Error("; ".join(map(str, failures)))


def _fetch_from(url: str, file: RemoteFile, path: Path, access: Access, say: Say, quiet: bool) -> None:
    for attempt in (1, 2):
        resumed = transfer(file, url, path, access, say, quiet)
        try:
            _check(part_path(path), file, f"what {url} gave", quiet)
        except Error as e:
            forget(path)
            if not resumed or attempt == 2:
                raise Error(f"{e}; it has been deleted") from None
            say(f"{e}, and some of it was of an earlier attempt; starting again")
            continue
        os.replace(part_path(path), path)
        sync_dir(path.parent)
        forget(path)
        return


def _check(path: Path, file: RemoteFile, what: str, quiet: bool) -> None:
    """Raise Error where a file has another size or checksum than the one file."""
    size = path.stat().st_size
    if file.num_bytes is not None and size != file.num_bytes:
        raise Error(f"{what} has {size:,} bytes instead of {file.num_bytes:,}")
    if file.checksum is None:
        return
    kind, digest = file.checksum
    computed = hashlib.new(kind, usedforsecurity=False)
    with open(path, "rb") as f, Progress(f"checking {file.name}", size, "bytes", quiet) as progress:
        while block := f.read(4 << 20):
            computed.update(block)
            progress.add(len(block))
    if computed.hexdigest() != digest:
        raise Error(f"{what} has {kind.upper()} {computed.hexdigest()} instead of {digest}")
