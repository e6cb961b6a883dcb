"""Are these the files that the manifest lists? Told by size at every opening, and by SHA-256 where it matters."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, BinaryIO, TypedDict

from msgspec import Meta

from mlpdata.errors import Error, reading
from mlpdata.system.format import plural

Count = Annotated[int, Meta(ge=0, le=1 << 48)]  # of samples or bytes
Sha256 = Annotated[str, Meta(pattern="^[0-9a-f]{64}$")]


class FileEntry(TypedDict):
    """What a manifest says of one of its files."""

    bytes: Count
    sha256: Sha256


def local_sizes(root: Path) -> dict[str, int | None]:
    """Bytes of everything in a directory by name; None for what is no regular file. Raises Error."""
    with reading(root), os.scandir(root) as entries:
        return {entry.name: entry.stat().st_size if entry.is_file() else None for entry in entries}


def check_sizes(listed: Mapping[str, FileEntry], sizes: Mapping[str, int | None], where: object, advice: str) -> None:
    """Raise Error at the first listed file that is missing, is no file or has another size.

    sizes:  bytes of what there is, by name, as from `local_sizes`.
    where:  of which directory, for the message; advice: what to do then.

    >>> check_sizes({"a.tar": {"bytes": 2, "sha256": ""}}, {"a.tar": 1}, "shards/a", "convert again")
    Traceback (most recent call last):
    mlpdata.errors.Error: shards/a/a.tar has 1 byte, the manifest says 2; convert again
    """
    for name, entry in listed.items():
        if name not in sizes:
            raise Error(f"{where}/{name} is missing, though the manifest lists it; {advice}")
        if (size := sizes[name]) is None:
            raise Error(f"{where}/{name} is no file; {advice}")
        if size != entry["bytes"]:
            raise Error(f"{where}/{name} has {plural(size, 'byte')}, the manifest says {entry['bytes']:,}; {advice}")


def difference(file: BinaryIO, entry: FileEntry) -> str | None:
    """How an open file differs from what the manifest lists; None where it does not. Reads it whole and rewinds it."""
    size = os.fstat(file.fileno()).st_size
    if size != entry["bytes"]:
        return f"has {plural(size, 'byte')}, the manifest says {entry['bytes']:,}"
    digest = hashlib.file_digest(file, "sha256").hexdigest()  # pyright: ignore[reportArgumentType] - any file will do
    file.seek(0)
    if digest != entry["sha256"]:
        return f"has sha256 {digest:.12}..., the manifest lists {entry['sha256']:.12}..."
    return None
