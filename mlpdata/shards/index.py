"""`SPLIT.index.parquet`, a row a sample: its one schema, and the only code that reads it.

Arrow may end the whole process on a damaged file, so nothing of a file is parsed before its SHA-256 is the manifest's:
0.3 s for the 430 MB of ImageNet-21k, once a process and file. A beton opens without its index.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import xxhash

from mlpdata.choices import CODECS
from mlpdata.shards.files import FileEntry, difference
from mlpdata.shards.manifest import Manifest, index_path
from mlpdata.shards.text import open_file, unreadable
from mlpdata.system.format import plural

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

TEXTS = ("key", "source", "file", "codec")  # this and the next: of IndexRows
NUMBERS = ("label", "source_width", "source_height", "width", "height", "offset", "bytes", "digest")
_proven: set[tuple] = set()  # (device, inode, bytes, time of change, SHA-256) of files that had that SHA-256


@dataclass(frozen=True, slots=True, kw_only=True)
class IndexRows:
    """Consecutive rows of an index."""

    key: list[str]
    source: list[str]
    file: list[str]
    codec: list[str]
    label: np.ndarray  # this and the next: (n,), typed as in SCHEMA
    source_width: np.ndarray
    source_height: np.ndarray
    width: np.ndarray
    height: np.ndarray
    offset: np.ndarray
    bytes: np.ndarray
    digest: np.ndarray

    def __len__(self) -> int:
        return len(self.key)


def columns(root: Path, manifest: Manifest, split: str, names: Iterable[str]) -> dict[str, np.ndarray]:
    """Whole columns of numbers, (N,) each and typed as in SCHEMA; `codec` as uint8 positions in CODECS.

    A column that is the same everywhere (sizes and codec mostly are) is not read, as its statistics say so: it is a
    constant array as a broadcast scalar (stride 0), which takes no memory. Raises Error.
    """
    result: dict[str, np.ndarray] = {}
    with _open(root, manifest, split) as table:
        for name in names:
            constant = _constant(table.metadata, SCHEMA.get_field_index(name))
            dtype = np.dtype(np.uint8 if name == "codec" else SCHEMA.field(name).type.to_pandas_dtype())
            if constant is None:
                result[name] = np.empty(table.metadata.num_rows, dtype)
            else:
                value = _codec_number(constant) if name == "codec" else constant
                result[name] = np.broadcast_to(dtype.type(value), (table.metadata.num_rows,))
        varying = [name for name, values in result.items() if values.strides != (0,)]
        start = 0
        for batch in table.iter_batches(READ_ROWS, columns=varying) if varying else ():
            for name in varying:
                result[name][start : start + len(batch)] = _numbers(batch.column(name))
            start += len(batch)
    return result


def keys(root: Path, manifest: Manifest, split: str, of_rows: np.ndarray | None = None) -> list[str]:
    """Keys of samples, in the order of the split.

    of_rows: of which samples, ascending integers; None: of all. Row groups that hold none of them are not read.
    Raises Error.
    """
    with _open(root, manifest, split) as table:
        if of_rows is None:
            return _texts(table.read(columns=["key"]).column("key"))
        ends = _row_group_ends(table)
        result, starts = [], np.concatenate([[0], ends[:-1]])
        for group in np.unique(np.searchsorted(ends, of_rows, side="right")).tolist():
            inside = of_rows[(of_rows >= starts[group]) & (of_rows < ends[group])] - starts[group]
            result += _texts(table.read_row_group(group, columns=["key"]).column("key").take(inside))
        return result


def key_hashes(root: Path, manifest: Manifest, split: str, seed: int, prefix: str = "") -> np.ndarray:
    """(N,) uint64, XXH3-64 of every key under a seed: what decides the order of a split. Raises Error.

    prefix: goes before each key.
    """
    hashes, start = np.empty(manifest.splits[split].num_samples, np.uint64), 0
    with _open(root, manifest, split) as table:
        for batch in table.iter_batches(READ_ROWS, columns=["key"]):
            found = [xxhash.xxh3_64_intdigest((prefix + key).encode(), seed) for key in _texts(batch.column("key"))]
            hashes[start : start + len(found)] = found
            start += len(found)
    return hashes


def rows(root: Path, manifest: Manifest, split: str, first: int, n: int) -> IndexRows:
    """The rows of samples first to first + n - 1. Raises Error."""
    with _open(root, manifest, split) as table:
        ends = _row_group_ends(table)
        start, stop = (int(np.searchsorted(ends, row, side="right")) for row in (first, first + n - 1))
        groups = table.read_row_groups(list(range(start, stop + 1)), columns=[*TEXTS, *NUMBERS])
        selected = groups.slice(first - (int(ends[start - 1]) if start else 0), n)
        texts = {name: _texts(selected[name]) for name in TEXTS}
        numbers = {name: _numbers(selected[name].combine_chunks()) for name in NUMBERS}
        return IndexRows(**texts, **numbers)  # pyright: ignore[reportArgumentType] - it has these fields


def row_group_sizes(root: Path, manifest: Manifest, split: str) -> list[int]:
    """How many samples each row group has. Raises Error."""
    with _open(root, manifest, split) as table:
        return np.diff(_row_group_ends(table), prepend=0).tolist()


def keys_just_written(path: Path) -> list[str]:
    """The keys of an index that this process wrote a moment ago, and that no manifest lists yet."""
    with open_file(path) as f:
        return _texts(pq.read_table(f, columns=["key"]).column("key"))


# ------------------------------------------------------------------------------------------------------- the file


@contextlib.contextmanager
def _open(root: Path, manifest: Manifest, split: str) -> Iterator[pq.ParquetFile]:
    """The index of a split, proven to be the file that the manifest lists and to have its columns and rows.

    Raises Error for any other file, and for whatever goes wrong while it is read.
    """
    path = index_path(root, split)
    try:
        # One descriptor for both: what is parsed is what was proven, and Arrow takes no path that is not UTF-8.
        with open_file(path) as f:
            _prove(f, manifest.files[path.name])
            with pq.ParquetFile(f) as table:
                _check_columns(table.schema_arrow)
                wanted = manifest.splits[split].num_samples
                if table.metadata.num_rows != wanted:
                    raise ValueError(f"it lists {plural(table.metadata.num_rows, 'sample')}, the manifest {wanted:,}")
                yield table
    except (OSError, ValueError, pa.ArrowException) as e:
        raise unreadable(path, e) from None


def _prove(f, entry: FileEntry) -> None:
    """Raise ValueError where an open file is not the one that the manifest lists. A file is hashed once a process."""
    stat = os.fstat(f.fileno())
    key = (stat.st_dev, stat.st_ino, stat.st_size, stat.st_mtime_ns, entry["sha256"])
    if key not in _proven:
        if wrong := difference(f, entry):
            raise ValueError(f"it {wrong}")
        _proven.add(key)


def _check_columns(schema: pa.Schema) -> None:
    """Raise ValueError for other columns than SCHEMA's. A missing column is named before one of another type."""
    for field in SCHEMA:
        if (count := len(schema.get_all_field_indices(field.name))) != 1:
            raise ValueError(f"it has {'more than one' if count else 'no'} column {field.name!r}")
    for field in SCHEMA:
        if (kind := schema.field(field.name).type) != field.type:
            raise ValueError(f"its column {field.name!r} has {kind!s:.80} where {field.type} belongs")


def _row_group_ends(table: pq.ParquetFile) -> np.ndarray:
    """(row groups,) the row behind the last one of each."""
    return np.cumsum([table.metadata.row_group(g).num_rows for g in range(table.num_row_groups)])


def _constant(metadata: pq.FileMetaData, column: int):
    """The one value of a column, from the statistics of its row groups; None where they differ or do not say."""
    values = set()
    for group in range(metadata.num_row_groups):
        stats = metadata.row_group(group).column(column).statistics
        if stats is None or not stats.has_min_max or stats.null_count or stats.min != stats.max:
            return None
        values.add(stats.min)
        if len(values) > 1:
            return None
    return values.pop() if values else None


def _numbers(array: pa.Array) -> np.ndarray:
    """The integers of a column without nulls, in place (Array.to_numpy would import pandas); codecs by their number."""
    if array.null_count:
        raise ValueError("it has gaps where numbers belong")
    if pa.types.is_dictionary(array.type):
        return np.array(list(map(_codec_number, array.dictionary.to_pylist())), np.uint8)[_numbers(array.indices)]
    values = np.frombuffer(array.buffers()[1], array.type.to_pandas_dtype())
    return values[array.offset : array.offset + len(array)]


def _texts(array: pa.Array | pa.ChunkedArray) -> list[str]:
    """The strings of a column without nulls."""
    if array.null_count:
        raise ValueError("it has gaps where text belongs")
    return array.to_pylist()


def _codec_number(name: str) -> int:
    if name not in CODECS:
        raise ValueError(f"it names a codec this reader does not know: {name!r}")
    return CODECS.index(name)
