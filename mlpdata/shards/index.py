"""`SPLIT.index.parquet`, a row a sample: its columns, and the only way to read it.

Arrow may end the whole process on a damaged file, so nothing of one is parsed before its SHA-256 is the manifest's:
0.4 s for the 600 MB of ImageNet-21k, once a process and file. Whoever opens a beton does not need it.
"""

from __future__ import annotations

import contextlib
import hashlib
import os
from collections.abc import Iterator
from pathlib import Path
from typing import BinaryIO

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from mlpdata.errors import Error, first_line
from mlpdata.shards.manifest import Manifest, index_path
from mlpdata.shards.text import open_file

READ_ROWS = 1 << 17  # at a time
SCHEMA = pa.schema(
    [
        ("key", pa.string()),
        ("label", pa.int32()),
        ("source", pa.string()),  # member path in the archive
        ("source_width", pa.int32()),
        ("source_height", pa.int32()),
        ("width", pa.int32()),
        ("height", pa.int32()),
        ("file", pa.dictionary(pa.int32(), pa.string())),  # the tar where there are tars, else the beton
        ("offset", pa.int64()),  # of the payload: encoded bytes, or pixels behind a ppm header
        ("bytes", pa.int64()),
        ("codec", pa.dictionary(pa.int32(), pa.string())),
        ("digest", pa.uint64()),  # XXH3-64 of the RGB pixels, before any lossy encoding
    ]
)

_proven: set[tuple] = set()  # (device, inode, bytes, time of change, SHA-256) of files that had that SHA-256


@contextlib.contextmanager
def opened(root: Path, manifest: Manifest, split: str) -> Iterator[pq.ParquetFile]:
    """The index of a split, which is the file that the manifest lists and has the columns and rows it has to have.

    Raises Error for any other, and for what goes wrong while it is read.
    """
    path = index_path(root, split)
    try:
        # One descriptor for both: what is parsed is what was proven, and Arrow takes no path that is not UTF-8.
        with open_file(path) as f, pq.ParquetFile(_proved(f, manifest.files[path.name]["sha256"])) as table:
            # A column that is missing is named before one that has another type.
            for field in SCHEMA:
                found = table.schema_arrow.get_all_field_indices(field.name)
                if len(found) != 1:
                    raise ValueError(f"it has {'no' if not found else 'more than one'} column {field.name!r}")
            for field in SCHEMA:
                if (kind := table.schema_arrow.field(field.name).type) != field.type:
                    raise ValueError(f"its column {field.name!r} has {kind!s:.80} where {field.type} belongs")
            wanted = manifest.splits[split].num_samples
            if table.metadata.num_rows != wanted:
                raise ValueError(f"it lists {table.metadata.num_rows:,} samples, the manifest {wanted:,}")
            yield table
    except (OSError, ValueError, pa.ArrowException) as e:
        reason = getattr(e, "strerror", None) or first_line(e)
        raise Error(f"cannot read {path}: {reason}; get or convert it again") from None


def _proved(f: BinaryIO, sha256: str) -> BinaryIO:
    """An open file, at its start. Raises ValueError where it has another SHA-256."""
    stat = os.fstat(f.fileno())
    key = (stat.st_dev, stat.st_ino, stat.st_size, stat.st_mtime_ns, sha256)
    if key in _proven:
        return f
    digest = hashlib.file_digest(f, "sha256").hexdigest()
    f.seek(0)
    if digest != sha256:
        raise ValueError(f"it has sha256 {digest:.12}..., the manifest says {sha256:.12}...")
    _proven.add(key)
    return f


def column(root: Path, manifest: Manifest, split: str, name: str) -> np.ndarray:
    """(N,) of a column of numbers, as SCHEMA types it. Raises Error."""
    values, at = np.empty(manifest.splits[split].num_samples, SCHEMA.field(name).type.to_pandas_dtype()), 0
    with opened(root, manifest, split) as table:
        for batch in table.iter_batches(READ_ROWS, columns=[name]):
            values[at : at + len(batch)] = integers(batch.column(0))
            at += len(batch)
    return values


def keys(root: Path, manifest: Manifest, split: str) -> list[str]:
    """The key of every sample, in the order of the split. Raises Error."""
    with opened(root, manifest, split) as table:
        return texts(table.read(columns=["key"]).column("key"))


def integers(array: pa.Array) -> np.ndarray:
    """The integers of a column without nulls, in place: Array.to_numpy would import pandas first."""
    if array.null_count or not pa.types.is_integer(array.type):
        raise ValueError(f"it has gaps or {array.type} where whole numbers belong")
    values = np.frombuffer(array.buffers()[1], array.type.to_pandas_dtype())
    return values[array.offset : array.offset + len(array)]


def texts(array: pa.Array | pa.ChunkedArray) -> list[str]:
    """The strings of a column without nulls."""
    if array.null_count:
        raise ValueError("it has gaps where text belongs")
    return array.to_pylist()
