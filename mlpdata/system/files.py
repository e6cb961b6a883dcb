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


def resolved(path: str | Path) -> Path:
    """The path without links; of links that lead in a circle, for which Path.resolve() fails, as far as they lead."""
    return Path(os.path.realpath(path))


def in_the_way(folder: Path) -> str:
    """What keeps a folder from being made, as "PATH is a file": the nearest of it and its parents that is no folder."""
    for path in (folder, *folder.parents):
        if path.exists() and not path.is_dir():
            return f"{path} is a file"
        if link := _broken_link(path):
            return f"{path} is {link}"
    return ""


def _broken_link(path: Path) -> str:
    return (
        f"a symbolic link to {os.readlink(path)}, which does not exist"
        if path.is_symlink() and not path.exists()
        else ""
    )


def make_folder(path: Path) -> None:
    """Make a folder and its parents, where they are not there. Raises Error for what is in the way, or OSError."""
    try:
        path.mkdir(parents=True, exist_ok=True)
    except (FileExistsError, NotADirectoryError):
        if found := in_the_way(path):
            raise Error(f"cannot make the folder {path}: {found}") from None
        raise


def check_output(path: Path) -> None:
    """Raise Error, before the work, where something has the name of a file to write, or of a folder that it lies in."""
    if path.is_dir():
        raise Error(f"cannot write {path}: it is a folder")
    if link := _broken_link(path):
        raise Error(f"cannot write {path}: it is {link}")
    if found := in_the_way(path.parent):
        raise Error(f"cannot write {path}: {found}, not a folder")


def sync_dir(path: Path) -> None:
    """Make renames inside a directory durable."""
    fd = os.open(path, os.O_RDONLY)
    try:
        os.fsync(fd)
    finally:
        os.close(fd)
