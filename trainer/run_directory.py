"""Run directories: which is whose, one trainer in each at a time, and how files get into them."""

from __future__ import annotations

import contextlib
import fcntl
import os
import re
from collections.abc import Callable, Iterator
from pathlib import Path

from mlpdata.errors import Error, first_line
from mlpdata.system.files import make_folder, replacing

LOCK, CURVE = "lock", "curve.png"
MAX_RUNS = 10_000  # of one name


class WriteError(Error):
    """A file of a run cannot be written. Everything before it is whole, so the run can be resumed later."""


def create(runs: Path, name: str) -> tuple[Path, Callable[[], None]]:
    """Make and lock the directory of a new run. A taken name gets a number, so nothing is overwritten.

    Returns the directory and the function that unlocks it. Raises Error.
    """
    with write_errors(runs):
        make_folder(runs)
    for number in range(_last_number(runs, name) + 1, MAX_RUNS):
        folder = runs / (name if number == 1 else f"{name}-{number}")
        with write_errors(folder), contextlib.suppress(FileExistsError):  # another trainer was first
            folder.mkdir()
            return folder, _lock(folder)
    raise Error(f"{runs} has {MAX_RUNS - 1:,} runs {name!r}: give the recipe another name, or move them away")


def reopen(runs: Path, name: str) -> tuple[Path, Callable[[], None]]:
    """Lock the directory of the last run of that name, to resume it; returns as `create` does. Raises Error."""
    number = _last_number(runs, name)
    if not number:
        raise Error(f"nothing to resume: there is no run {runs / name}")
    folder = runs / (name if number == 1 else f"{name}-{number}")
    if not folder.is_dir():
        raise Error(f"nothing to resume: {folder} is no directory")
    release = _lock(folder)
    for leftover in folder.glob("*.tmp"):  # of a trainer that was killed
        with contextlib.suppress(OSError):
            leftover.unlink()
    return folder, release


def _last_number(runs: Path, name: str) -> int:
    """The greatest number of a run of that name, 1 for the name alone; 0 where there is none."""
    try:
        names = [path.name for path in runs.iterdir()] if runs.is_dir() else []
    except OSError as e:
        raise Error(f"cannot read {runs}: {e.strerror}") from None
    matches = [re.fullmatch(re.escape(name) + r"(?:-([2-9]|[1-9]\d{1,3}))?", other) for other in names]
    return max((int(match[1] or 1) for match in matches if match), default=0)


def _lock(folder: Path) -> Callable[[], None]:
    """Lock a run's directory; returns the function that unlocks it. The lock ends with the process, however it ends."""
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
            folder.rmdir()  # an empty run leaves no directory
        file.close()

    # The holder before us may have unlinked the file between our two calls; then we locked a file nobody else opens.
    with contextlib.suppress(OSError):
        if os.path.samestat(os.fstat(file.fileno()), path.stat()):
            return release
    file.close()
    return _lock(folder)


@contextlib.contextmanager
def write_errors(path: Path) -> Iterator[None]:
    """Turn the system's errors while `path` is written into a WriteError."""
    try:
        yield
    except OSError as e:
        raise WriteError(f"cannot write {path}: {e.strerror or first_line(e)}") from None


def write_file(path: Path, data: bytes | memoryview) -> None:
    """Write a file atomically: whenever the machine stops, the old or the new file is whole. Raises WriteError."""
    with write_errors(path), replacing(path) as f:
        f.write(data)
