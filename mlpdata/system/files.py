"""Files that are written whole or not at all: aside, synced, renamed."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator
from pathlib import Path
from typing import BinaryIO

from mlpdata.errors import Error


@contextlib.contextmanager
def replacing(path: Path, sync: bool = True) -> Iterator[BinaryIO]:
    """Open a file to be written, which takes its name when the block ends and is gone when the block fails.

    sync: whenever the machine stops, either the old file is there or the whole new one. False: only a killed process
    is provided for, and whoever calls syncs later.
    """
    tmp = path.with_name(f"{path.name}.tmp")
    try:
        with open(tmp, "wb") as f:
            yield f
            f.flush()
            if sync:
                os.fsync(f.fileno())
        os.replace(tmp, path)
    except BaseException:
        with contextlib.suppress(OSError):
            tmp.unlink()  # a full disk has no room for half a file
        raise
    if sync:
        sync_dir(path.parent)


def write_atomic(path: Path, data: bytes) -> None:
    """Write a file so that, whenever the machine stops, either the old file is there or the whole new one."""
    with replacing(path) as f:
        f.write(data)


def file_in_the_way(folder: Path) -> Path | None:
    """What keeps a folder from being made: the nearest of it and its parents that exists and is not a folder."""
    return next((path for path in (folder, *folder.parents) if path.exists() and not path.is_dir()), None)


def check_output(path: Path) -> None:
    """Raise Error, before the work, where a folder has the name of a file to write, or a file that of its folder."""
    if path.is_dir():
        raise Error(f"cannot write {path}: it is a folder")
    if file := file_in_the_way(path.parent):
        raise Error(f"cannot write {path}: {file} is a file, not a folder")


def sync_dir(path: Path) -> None:
    """Make renames inside a directory durable."""
    fd = os.open(path, os.O_RDONLY)
    try:
        os.fsync(fd)
    finally:
        os.close(fd)
