"""Run directories: which is whose, one trainer in each at a time, and how files get into them."""

from __future__ import annotations

import contextlib
import fcntl
import os
import re
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import IO

from mlpdata.errors import Error, first_line
from mlpdata.system.files import write_atomic

LOCK = "lock"
MOST = 10_000  # runs of one name


class WriteError(Error):
    """A file of a run cannot be written: what came before it is whole, so the run can go on later."""


def begin(runs: Path, name: str) -> tuple[Path, Callable[[], None]]:
    """Make and lock the directory of a new run. A taken name gets a number, so nothing is overwritten.

    Returns the directory and what unlocks it. Raises Error.
    """
    with writing(runs):
        runs.mkdir(parents=True, exist_ok=True)
    for k in range(_last(runs, name) + 1, MOST):
        folder = runs / (name if k == 1 else f"{name}-{k}")
        with writing(folder), contextlib.suppress(FileExistsError):  # of trainers that start at once, one is first
            folder.mkdir()
            return folder, _lock(folder)
    raise Error(f"{runs} has {MOST - 1:,} runs {name!r}: give the recipe another name, or move them away")


def go_on(runs: Path, name: str) -> tuple[Path, Callable[[], None]]:
    """Lock the directory of the last run of that name, to go on with it; returns as `begin` does. Raises Error."""
    k = _last(runs, name)
    if not k:
        raise Error(f"nothing to resume: there is no run {runs / name}")
    folder = runs / (name if k == 1 else f"{name}-{k}")
    if not folder.is_dir():
        raise Error(f"nothing to resume: {folder} is no directory")
    release = _lock(folder)
    for half in folder.glob("*.tmp"):  # of a trainer that was killed
        with contextlib.suppress(OSError):
            half.unlink()
    return folder, release


def _last(runs: Path, name: str) -> int:
    """The greatest number of a run of that name, 1 for the name alone; 0 where there is none."""
    try:
        names = [path.name for path in runs.iterdir()] if runs.is_dir() else []
    except OSError as e:
        raise Error(f"cannot read {runs}: {e.strerror}") from None
    numbers = [re.fullmatch(re.escape(name) + r"(?:-([2-9]|[1-9]\d{1,3}))?", other) for other in names]
    return max((int(match[1] or 1) for match in numbers if match), default=0)


def _lock(folder: Path) -> Callable[[], None]:
    """Hold a run's directory; returns what lets it go. The lock ends with the process, however that ends."""
    path = folder / LOCK
    try:
        file = open(path, "a")  # noqa: SIM115 - `release` closes it
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        raise Error(f"another trainer is at work in {folder}: wait for it, or stop it first") from None
    except OSError as e:
        raise Error(f"cannot lock {path}: {e.strerror}; train where files can be written and locked") from None

    def release() -> None:
        with contextlib.suppress(OSError):
            path.unlink()
            folder.rmdir()  # where nothing came of the run
        file.close()

    # Its holder may have removed the file between the two calls: the lock is then on one that nobody else opens.
    return release if _is_at(file, path) else _lock(folder)


def _is_at(file: IO, path: Path) -> bool:
    try:
        return os.path.samestat(os.fstat(file.fileno()), os.stat(path))
    except OSError:
        return False


@contextlib.contextmanager
def writing(path: Path) -> Iterator[None]:
    """Turn the system's errors while `path` is written into a WriteError."""
    try:
        yield
    except OSError as e:
        raise WriteError(f"cannot write {path}: {e.strerror or first_line(e)}") from None


def write(path: Path, data: bytes | memoryview) -> None:
    """Write a file in one piece: whenever the machine stops, the old one or the new one is whole. Raises WriteError."""
    with writing(path):
        write_atomic(path, data)
