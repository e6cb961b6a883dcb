"""Folders of images, SPLIT/CLASS/KEY.jpg|png, for torchvision's ImageFolder and `load_dataset("imagefolder")`.

ImageFolder numbers classes in the order of their sorted names. Where that is not the order of the labels, or names do
not make distinct folders on every file system, the folders begin with the label.
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator
from pathlib import Path

import numpy as np
import xxhash

from mlpdata.export.samples import KEY_ROWS, Block
from mlpdata.export.writer import Exported, Piece, Say, Writer, Written, entry
from mlpdata.shards import index
from mlpdata.shards.classes import classes_text
from mlpdata.shards.files import FileEntry
from mlpdata.shards.manifest import classes_path
from mlpdata.shards.shard_index import ShardIndex
from mlpdata.shards.tar import EXTENSIONS
from mlpdata.sources import keys
from mlpdata.system.disk import pwrite
from mlpdata.system.files import write_atomic
from mlpdata.system.format import plural

MOST_NAME_BYTES = 200  # of a folder or file: 255 is what file systems take
PIECE_ROWS = 20_000
DISK_BLOCK = 4096  # a file takes whole ones


class FolderWriter(Writer):
    """A piece is some thousands of files."""

    def __init__(self, exported: Exported):
        super().__init__(exported)
        self._parts = [keys.part(name) for name, _ in exported.classes]
        self._folders = folder_names(self._parts)
        self._ambiguous: dict[str, np.ndarray] = {}  # split -> sorted hashes of names that several samples have

    def disk_bytes(self, sizes: np.ndarray) -> int:
        return int((-(-sizes // DISK_BLOCK) * DISK_BLOCK).sum())

    def prepare(self, folder: Path, split: str, whole: ShardIndex, say: Say) -> None:
        exported = self.exported
        for name in self._folders:
            (folder / split / name).mkdir(parents=True, exist_ok=True)
        if empty := exported.manifest.splits[split].class_counts.count(0):
            say(
                f"split {split} has no samples of {empty:,} of {plural(len(exported.classes), 'class')}: folders are "
                "written empty, so that labels keep their numbers; give ImageFolder allow_empty=True"
            )
        if not self._ambiguous and self._folders != self._parts:
            say("each class folder begins with the label, as ImageFolder numbers folders in the order of their names")
        hashes = np.empty(len(whole), np.uint64)
        for first in range(0, len(whole), KEY_ROWS):
            rows = np.arange(first, min(len(whole), first + KEY_ROWS))
            names = index.keys(exported.options.root, exported.manifest, split, rows)
            labels = whole.label[rows].tolist()
            hashes[rows] = [self._hash(label, self._stem(key, label)) for key, label in zip(names, labels, strict=True)]
        values, counts = np.unique(hashes, return_counts=True)
        self._ambiguous[split] = values[counts > 1]

    def cut(self, sizes: np.ndarray) -> list[tuple[int, int]]:
        return [(start, min(start + PIECE_ROWS, len(sizes))) for start in range(0, len(sizes), PIECE_ROWS)]

    def write(self, folder: Path, piece: Piece, blocks: Iterator[Block]) -> Written:
        num_bytes, split = 0, piece.rows.split
        base = os.fspath(folder / split)
        for block in blocks:
            for i, (key, label) in enumerate(zip(block.keys, block.labels.tolist(), strict=True)):
                name = self._file_name(split, key, label, block.first + i)
                path = f"{base}/{self._folders[label]}/{name}.{EXTENSIONS[block.codecs[i]]}"
                fd = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC, 0o666)
                try:
                    pwrite(fd, block.images[i], 0)
                finally:
                    os.close(fd)
                num_bytes += len(block.images[i])
        return Written(num_samples=len(piece.rows), num_bytes=num_bytes, files={}, facts={"num_files": len(piece.rows)})

    def finish(self, folder: Path, written: dict[str, list[Written]], say: Say) -> dict[str, FileEntry]:
        path = classes_path(folder)
        write_atomic(path, classes_text(self.exported.classes).encode())
        return entry(folder, path)

    def sync(self, folder: Path, names: Iterable[str]) -> None:
        os.sync()  # once for all of them: a sync a file takes longer than everything else

    def _stem(self, key: str, label: int) -> str:
        """A key as a file name: without its class, and in one folder."""
        return key.removeprefix(f"{self._parts[label]}/").replace("/", "_")

    def _file_name(self, split: str, key: str, label: int, row: int) -> str:
        """Unique in its folder, also where upper and lower case are the same. A key has no dot."""
        stem = self._stem(key, label)
        hashes = self._ambiguous[split]
        if len(hashes):
            place = int(np.searchsorted(hashes, np.uint64(self._hash(label, stem))))
            if place < len(hashes) and hashes[place] == self._hash(label, stem):
                return f"{_short(stem)}.{row}"
        return stem if len(stem.encode()) <= MOST_NAME_BYTES else f"{_short(stem)}.{row}"

    @staticmethod
    def _hash(label: int, stem: str) -> int:
        return xxhash.xxh3_64_intdigest(f"{label}/{keys.folded(stem)}".encode())


def folder_names(parts: list[str]) -> list[str]:
    """The folders of classes in label order, such that sorting their names gives that order.

    parts: names of classes as parts of keys.

    >>> folder_names(["cat", "dog"]), folder_names(["dog", "cat"]), folder_names(["A", "a"])
    (['cat', 'dog'], ['0-dog', '1-cat'], ['0-A', '1-a'])
    """
    is_distinct = len({keys.folded(part) for part in parts}) == len(parts)
    if is_distinct and parts == sorted(parts) and all(part and part == _short(part) for part in parts):
        return parts
    digits = len(str(len(parts) - 1))
    return [f"{label:0{digits}d}-{_short(part)}" for label, part in enumerate(parts)]


def _short(name: str) -> str:
    return name if len(name.encode()) <= MOST_NAME_BYTES else name.encode()[:MOST_NAME_BYTES].decode(errors="ignore")
