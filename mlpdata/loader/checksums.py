"""Whether the files of a split are still those that its manifest lists."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import xxhash

from mlpdata.errors import Error, reading
from mlpdata.loader.reader import Reader
from mlpdata.shards import index
from mlpdata.shards.files import FileEntry, difference
from mlpdata.shards.manifest import Manifest
from mlpdata.shards.text import open_file

ROWS = 4096  # compared at a time


def check_files(root: Path, manifest: Manifest | None, split: str, reader: Reader) -> None:
    """Raise Error naming the first file of the reader whose SHA-256 is not the manifest's.

    Where pixels are stored raw, the error also names the first sample that differs from the index.
    """
    if manifest is None:
        raise Error(f"{root} has no manifest, so there are no checksums to compare")
    with ThreadPoolExecutor(reader.num_threads) as pool:
        differences = pool.map(lambda path: _difference(path, manifest.files[path.name]), reader.index.files)
        for number, (path, wrong) in enumerate(zip(reader.index.files, differences, strict=True)):
            if wrong is not None:
                sample = _first_changed(root, manifest, split, reader, number)
                where = ""
                if sample is not None:
                    where = f"; sample {sample} at byte {int(reader.index.offset[sample])} is another"
                raise Error(f"{path} {wrong}{where}; get it again")


def _difference(path: Path, entry: FileEntry) -> str | None:
    with reading(path), open_file(path) as f:
        return difference(f, entry)


def _first_changed(root: Path, manifest: Manifest, split: str, reader: Reader, file: int) -> int | None:
    """The first sample of a file whose pixels do not have the digest that the index lists; None if that is unknown."""
    if not reader.all_raw:
        return None
    try:
        digests = index.columns(root, manifest, split, ["digest"])["digest"]
    except Error:  # the index has changed as well
        return None
    ids = np.flatnonzero(np.broadcast_to(reader.index.file == file, len(reader.index)))
    for first in range(0, len(ids), ROWS):
        some = ids[first : first + ROWS]
        pixels = np.empty((len(some), *reader.shape), np.uint8)
        reader.read(some, pixels)
        for i, row in zip(some.tolist(), pixels, strict=True):
            if xxhash.xxh3_64_intdigest(row.data) != int(digests[i]):
                return i
    return None
