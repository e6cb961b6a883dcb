"""Whether the files of a split are still those that its manifest lists."""

from __future__ import annotations

import hashlib
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import xxhash

from mlpdata.errors import Error
from mlpdata.loader.reader import Reader
from mlpdata.shards import index
from mlpdata.shards.manifest import Manifest
from mlpdata.shards.text import open_file

ROWS = 4096  # compared at a time


def check_files(root: Path, manifest: Manifest, split: str, reader: Reader) -> None:
    """Raise Error naming the first file of the reader that has another sha256 than the manifest lists.

    Where pixels are stored as they were made, the error names the first sample that is not what the index says, too.
    """
    with ThreadPoolExecutor(reader.num_threads) as pool:
        for number, (path, digest) in enumerate(
            zip(reader.index.files, pool.map(_sha256, reader.index.files), strict=True)
        ):
            listed = manifest.files.get(path.name, {}).get("sha256")
            if digest != listed:
                sample = _first_changed(root, manifest, split, reader, number)
                where = (
                    "" if sample is None else f"; sample {sample} at byte {int(reader.index.offset[sample])} is another"
                )
                raise Error(
                    f"{path} has sha256 {digest:.12}..., the manifest lists {listed!s:.12}...{where}; get it again"
                )


def _sha256(path: Path) -> str:
    try:
        with open_file(path) as f:
            return hashlib.file_digest(f, "sha256").hexdigest()
    except OSError as e:
        raise Error(f"cannot read {path}: {e.strerror}") from None


def _first_changed(root: Path, manifest: Manifest, split: str, reader: Reader, file: int) -> int | None:
    """The first sample of a file whose pixels do not have the digest of the index; None where that cannot be told."""
    if not reader.all_raw:
        return None
    try:
        digests = index.column(root, manifest, split, "digest")
    except Error:  # it has changed as well
        return None
    ids = np.flatnonzero(np.broadcast_to(reader.index.file == file, len(reader.index)))
    for at in range(0, len(ids), ROWS):
        part = ids[at : at + ROWS]
        pixels = np.empty((len(part), *reader.shape), np.uint8)
        reader.read(part, pixels)
        for i, row in zip(part.tolist(), pixels, strict=True):
            if xxhash.xxh3_64_intdigest(row) != int(digests[i]):
                return i
    return None
