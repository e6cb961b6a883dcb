"""The folder of tars that are kept of directories elsewhere: its locks, and which tars make room for others.

A tar that somebody wants or reads is open under a shared lock, which the system takes back from a process that dies.
When room is needed, tars of directories that no process has open go first, the least recently used before the others.
Then go tars that nobody holds, the most recently used first: an epoch takes every tar once and in a new order, so that
of two tars the one read last is not wanted before the next epoch, while the other may still be wanted in this one.
(With room for half of the tars, about half of them are then found here in every epoch; with the least recently used
going first it would be one in seven.) Only then, and only for a tar that is wanted at once, go tars that are held; who
holds one can read it to its end.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import shutil
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import IO

from mlpdata.shards.files import FileEntry

PARTS = ".parts"  # the folder, in that of a directory, of tars that are on their way, and of their locks


@dataclass(frozen=True, kw_only=True)
class StoredTar:
    """A file that takes room in the folder of a directory: a tar, or one on its way."""

    folder: Path
    path: Path
    num_bytes: int
    used: int  # when it was last, in ns


def stamp_of(entry: FileEntry) -> tuple[int, int]:
    """(bytes, time of change in ns) of a file that was fetched and verified, and that nobody has written to since.

    The time, which is set then, is made from the SHA-256: one between 2001 and 2017, in whole seconds, which every file
    system keeps.
    """
    return entry["bytes"], (10**9 + 2 * (int(entry["sha256"][:12], 16) % 250_000_000)) * 10**9


def opened(folder: Path) -> IO:
    """An open file that says, as long as it is open, that a directory's folder is in use. Raises OSError."""
    file = open(_use_path(folder), "ab")  # noqa: SIM115 - for whoever calls
    fcntl.flock(file, fcntl.LOCK_SH)
    return file


def _use_path(folder: Path) -> Path:
    return folder.with_name(f".{folder.name}.lock")


def list_tars(root: Path) -> list[StoredTar]:
    """What there is of the tars of all directories.

    A tar on its way is PARTS/X.tar.part, then PARTS/X.tar, then X.tar. It is looked for in this order, by the name of
    its lock, which stays: one that moves meanwhile is seen twice, but seen.
    """
    tars: list[StoredTar] = []
    for folder in [entry.path for entry in os.scandir(root) if entry.is_dir(follow_symlinks=False)]:
        parts = os.path.join(folder, PARTS)
        with contextlib.suppress(FileNotFoundError):
            names = {name.removesuffix(".lock").removesuffix(".part") for name in os.listdir(parts)}
            for name in sorted(name for name in names if name.endswith(".tar")):
                tars += [*_stored(folder, Path(parts, f"{name}.part")), *_stored(folder, Path(parts, name))]
        with contextlib.suppress(FileNotFoundError):
            for name in os.listdir(folder):
                tars += _stored(folder, Path(folder, name)) if name.endswith(".tar") else []
    return tars


def _stored(folder: str, path: Path) -> list[StoredTar]:
    """The tar at a path, if there is one."""
    try:
        stat = path.lstat()
    except FileNotFoundError:
        return []
    return [StoredTar(folder=Path(folder), path=path, num_bytes=stat.st_size, used=stat.st_atime_ns)]


def removed(tars: list[StoredTar], held_too: bool) -> Iterator[StoredTar]:
    """Remove one tar after the other, in the order of the module's text, as long as more are asked for."""
    with contextlib.ExitStack() as stack:
        idle = set()
        for folder in {tar.folder for tar in tars}:
            if _try_lock(stack.enter_context(open(_use_path(folder), "ab"))):
                idle.add(folder)
        for tar in sorted((tar for tar in tars if tar.folder in idle), key=lambda tar: tar.used):
            tar.path.unlink(missing_ok=True)
            yield tar
        for folder in idle:
            shutil.rmtree(folder)
        others = sorted((tar for tar in tars if tar.folder not in idle), key=lambda tar: -tar.used)
        held = []
        for tar in others:
            if _remove_unheld(tar):
                yield tar
            elif tar.path.parent == tar.folder:
                held.append(tar)
        for tar in held if held_too else ():
            tar.path.unlink(missing_ok=True)
            yield tar


def _remove_unheld(tar: StoredTar) -> bool:
    """Remove a tar that nobody holds, or the part that somebody left who died. Returns whether its room is free."""
    is_part = tar.path.parent != tar.folder
    lock = tar.path.with_name(f"{tar.path.name.removesuffix('.part')}.lock") if is_part else tar.path
    try:
        with open(lock, "ab" if is_part else "rb") as file:
            if not _try_lock(file):
                return False
            tar.path.unlink()
    except FileNotFoundError:
        return not is_part  # a part that is gone has moved
    return True


def _try_lock(file: IO) -> bool:
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True


@contextlib.contextmanager
def locked(path: Path) -> Iterator[None]:
    """Hold a file's lock against all other threads and processes; the system takes it back from one that dies."""
    with open(path, "ab") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield
