"""Columns of an index in the user's cache: what took a second to read, or minutes to scan, is there at once.

Columns are kept under a stamp, and valid only under that: whoever keeps them puts into the stamp whatever they depend
on, sizes and times of change of files above all.
"""

from __future__ import annotations

import contextlib
import hashlib
from collections.abc import Iterable, Mapping
from pathlib import Path

import numpy as np
import xxhash

from mlpdata.fetch.official import download_folder
from mlpdata.system.files import replacing, resolved

# Of the layout: [version, checksum of the columns], stamp, [rows], the columns; each an array as numpy saves it.
VERSION = 4


class ColumnCache:
    """The columns of one index. dtypes: name -> dtype, in the order in which they are kept."""

    def __init__(self, files: Iterable[Path], stamp: np.ndarray, dtypes: Mapping[str, str]):
        """files: what the index is of. stamp: integers of any shape."""
        names = "\0".join(str(resolved(path)) for path in files).encode("utf-8", "surrogateescape")
        self._path = download_folder() / f"index-{hashlib.sha256(names).hexdigest()[:24]}.npy"
        self._stamp, self._dtypes = np.asarray(stamp, np.int64).reshape(-1), dtypes

    def load(self) -> dict[str, np.ndarray] | None:
        """(N,) each; None where none are kept, or not under this stamp."""
        try:
            with open(self._path, "rb") as f:
                head, stamp, rows = (np.load(f, allow_pickle=False) for _ in range(3))
                if head[0] != VERSION or not np.array_equal(stamp, self._stamp):
                    return None
                columns = {name: np.load(f, allow_pickle=False) for name in self._dtypes}
            if head[1] != _checksum(columns):
                return None
            return {name: np.broadcast_to(values, rows) for name, values in columns.items()}
        except Exception:  # missing, cut short, of another version: reading again is the answer to all of them
            return None

    def save(self, columns: Mapping[str, np.ndarray]) -> None:
        """Keep columns, a broadcast scalar as one value. Does nothing where nothing can be written."""
        rows = len(next(iter(columns.values())))
        kept = {n: columns[n][:1] if columns[n].strides == (0,) else columns[n] for n in self._dtypes}
        kept = {name: values.astype(self._dtypes[name], casting="safe", copy=False) for name, values in kept.items()}
        with contextlib.suppress(OSError):
            self._path.parent.mkdir(parents=True, exist_ok=True)
            with replacing(self._path, sync=False) as f:
                for values in (np.array([VERSION, _checksum(kept)]), self._stamp, np.array([rows]), *kept.values()):
                    np.save(f, values, allow_pickle=False)


def _checksum(columns: Mapping[str, np.ndarray]) -> int:
    digest = xxhash.xxh3_64()
    for values in columns.values():
        digest.update(values.data)
    return digest.intdigest() >> 1  # fits int64
