"""What every format of an export is: which files it has, what goes into each, and the listing that ends it."""

from __future__ import annotations

import hashlib
import os
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from mlpdata.export.options import ExportOptions
from mlpdata.export.samples import Block, Rows
from mlpdata.shards.files import FileEntry
from mlpdata.shards.manifest import Manifest
from mlpdata.shards.shard_index import ShardIndex
from mlpdata.system.files import sync_dir

Say = Callable[[str], None]  # takes a line for the user


@dataclass(frozen=True, kw_only=True)
class Exported:
    """What is exported: a shard directory, and what its manifest and class list say."""

    options: ExportOptions
    manifest: Manifest
    manifest_sha256: str
    classes: list[tuple[str, str]]
    formats: dict[str, str]  # which of the two formats each split is read from
    codec: str  # of the images: raw, jpg or png
    splits: dict[str, int]  # samples of each, without splits that have none


@dataclass(frozen=True, slots=True)
class Piece:
    """What one worker writes at a time: a whole file, or many small ones."""

    number: int  # in its split
    count: int  # pieces of the split
    rows: Rows

    @property
    def name(self) -> str:
        return f"{self.rows.split}-{self.number:06d}"

    def __str__(self) -> str:
        return f"{self.rows.split}, samples {self.rows.first} to {self.rows.first + len(self.rows) - 1}"


@dataclass(frozen=True, kw_only=True)
class Written:
    """What a piece became."""

    num_samples: int
    num_bytes: int
    files: dict[str, FileEntry]  # path below the export -> bytes and SHA-256; {} where there are too many to list
    facts: dict[str, Any]  # what the format's listing has to say of it; JSON


class Writer(ABC):
    """One format. Pickled to every worker; `prepare` and `finish` run in the parent."""

    wants_pixels = False  # instead of encoded images
    file_bytes = 64 << 20  # of the samples in a file, unless the user asks for another size

    def __init__(self, exported: Exported):
        self.exported = exported

    def prepare(self, folder: Path, split: str, whole: ShardIndex, say: Say) -> None:
        """Look at a split before it is written. Raises Error for what the format cannot hold."""
        return

    def cut(self, sizes: np.ndarray) -> list[tuple[int, int]]:
        """(first, stop) of each piece of a split. sizes: (N,) bytes of each sample."""
        limit = self.exported.options.file_bytes or self.file_bytes
        ends, start, pieces = np.cumsum(sizes), 0, []
        while start < len(sizes):
            before = int(ends[start - 1]) if start else 0
            stop = max(start + 1, int(np.searchsorted(ends, before + limit, side="right")))
            pieces.append((start, stop))
            start = stop
        return pieces

    def disk_bytes(self, sizes: np.ndarray) -> int:
        """About how much disk a split takes. sizes: as of `cut`."""
        return int(sizes.sum())

    @abstractmethod
    def write(self, folder: Path, piece: Piece, blocks: Iterator[Block]) -> Written:
        """Write a piece below `folder`, each file whole or not at all."""

    def finish(self, folder: Path, written: dict[str, list[Written]], say: Say) -> dict[str, FileEntry]:
        """Write the listings that readers begin with. Returns their bytes and SHA-256, by path."""
        return {}

    def sync(self, folder: Path, names: Iterable[str]) -> None:
        """Bring to the disk what was written. names: the listed files."""
        paths = [folder / name for name in names]
        for path in paths:
            with open(path, "rb") as f:
                os.fsync(f.fileno())
        for parent in {path.parent for path in paths}:
            sync_dir(parent)


def entry(folder: Path, path: Path) -> dict[str, FileEntry]:
    """{path below the export: bytes and SHA-256} of a file that was just written."""
    with open(path, "rb") as f:
        digest = hashlib.file_digest(f, "sha256").hexdigest()
        return {path.relative_to(folder).as_posix(): {"bytes": os.fstat(f.fileno()).st_size, "sha256": digest}}


def one_file(folder: Path, path: Path, piece: Piece, **facts: Any) -> Written:
    """The Written of a piece that is a single file."""
    files = entry(folder, path)
    num_bytes = sum(file["bytes"] for file in files.values())
    return Written(num_samples=len(piece.rows), num_bytes=num_bytes, files=files, facts=facts)
