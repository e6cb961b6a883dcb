"""WebDataset shards: plain POSIX tars of KEY.jpg|png|ppm and KEY.cls, equal bytes for equal samples.

Headers are built for a whole shard at once in numpy: `tarfile` makes about 50,000 a second, a shard needs two a sample.
"""

from __future__ import annotations

import tarfile
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq

from mlpdata.errors import Error
from mlpdata.shards import index
from mlpdata.shards.manifest import CODECS, Manifest, ShardIndex

BLOCK = 512
EXTENSIONS = {"raw": "ppm", "jpg": "jpg", "png": "png"}
END = bytes(2 * BLOCK)
COLUMNS = {"label": "<i8", "offset": "<i8", "bytes": "<i8", "codec": "u1", "width": "<i4", "height": "<i4"}


# ---------------------------------------------------------------------------------------------------------- write


def _template() -> np.ndarray:
    """A ustar header with everything but name, size and checksum: regular file, mode 0644, owner 0, time 0."""
    return np.frombuffer(tarfile.TarInfo("").tobuf(tarfile.USTAR_FORMAT), np.uint8).copy()


def headers(names: Sequence[str], sizes: np.ndarray) -> np.ndarray:
    """Build tar headers.

    names: n member names of at most 100 bytes in UTF-8. sizes: (n,) bytes, below 8 GiB.
    Returns (n, 512) uint8, equal to what `tarfile` writes for the same members.
    """
    head = np.empty((len(names), BLOCK), np.uint8)
    packed = np.array([name.encode() for name in names], dtype="S100")
    _fill_headers(head, packed.view(np.uint8).reshape(len(names), 100), sizes)
    return head


def _fill_headers(head: np.ndarray, names: np.ndarray, sizes: np.ndarray) -> None:
    """names: (n, 100) uint8, zero padded. head: (n, 512) uint8, overwritten."""
    template = _template()
    head[:] = template
    head[:, :100] = names
    sizes = np.asarray(sizes, np.int64)
    for digit in range(11):  # octal, right to left, in bytes 124-134
        head[:, 134 - digit] = ord("0") + ((sizes >> (3 * digit)) & 7)
    fixed = int(template[135:148].sum() + template[156:].sum() + template[100:124].sum()) + 8 * ord(" ")
    sums = fixed + np.einsum("ij->i", head[:, :100], dtype=np.int64) + head[:, 124:135].sum(axis=1, dtype=np.int64)
    for digit in range(6):  # six octal digits, NUL, space
        head[:, 153 - digit] = ord("0") + ((sums >> (3 * digit)) & 7)
    head[:, 154], head[:, 155] = 0, ord(" ")


def _header(name: str, size: int) -> bytes:
    """Header blocks of one member; where the name does not fit 100 bytes a POSIX extended header comes first."""
    info = tarfile.TarInfo(name)
    info.size = size
    return info.tobuf(tarfile.PAX_FORMAT if len(name.encode()) > 100 else tarfile.USTAR_FORMAT)


def ppm_header(width: int, height: int) -> bytes:
    """What makes raw RGB pixels a binary PPM, an image format every reader knows."""
    return b"P6\n%d %d\n255\n" % (width, height)


def build(
    keys: Sequence[bytes],
    labels: np.ndarray,
    codec: str,
    widths: np.ndarray,
    heights: np.ndarray,
    payload: Sequence[memoryview] | np.ndarray,
) -> tuple[list, np.ndarray]:
    """Lay out a run of samples of a shard; the shard's end is `END`.

    keys: in UTF-8.
    payload: n encoded images, or for codec "raw" their pixels (an (n, size) uint8 array will do).
    Returns (buffers, offsets): the bytes are the buffers written one after the other; offsets (n,) int64 say where each
    payload starts in them (for raw: the pixels, behind the PPM header).
    """
    n = len(keys)
    ends = [f".{EXTENSIONS[codec]}".encode(), b".cls"]
    lengths = np.fromiter(map(len, keys), np.int64, n)
    if n and lengths.max() + max(map(len, ends)) > 100:
        return _build_slowly(keys, labels, codec, widths, heights, payload)
    sizes = np.fromiter(map(len, payload), np.int64, n)
    prefixes = [b""] * n if codec != "raw" else _ppm_headers(widths, heights)
    prefix_sizes = np.fromiter(map(len, prefixes), np.int64, n)
    # Everything starts on a block: header, image, header of the class, class.
    blocks = -(-(sizes + prefix_sizes) // BLOCK)
    starts = np.cumsum(3 + blocks) - 3 - blocks
    out = np.empty((int((3 + blocks).sum()), BLOCK), np.uint8)
    class_data = np.array([b"%d" % label for label in labels.tolist()], dtype="S20")
    packed = np.array(keys, dtype="S100").view(np.uint8).reshape(n, 100)
    out[starts + blocks] = 0  # the last block of an image is padded with zeros
    out[starts + 2 + blocks] = 0
    out[starts + 2 + blocks, :20] = class_data.view(np.uint8).reshape(n, 20)
    head, rows = np.empty((n, BLOCK), np.uint8), np.arange(n)
    for end, at, bytes_each in zip(
        ends, (starts, starts + 1 + blocks), (sizes + prefix_sizes, np.char.str_len(class_data)), strict=True
    ):
        named = packed.copy()
        for i, letter in enumerate(end):
            named[rows, lengths + i] = letter
        _fill_headers(head, named, bytes_each)
        out[at] = head
    offsets = (starts + 1) * BLOCK + prefix_sizes
    view = memoryview(out).cast("B")
    for at, prefix, data in zip(offsets.tolist(), prefixes, payload, strict=True):
        view[at : at + len(data)] = data
        if prefix:
            view[at - len(prefix) : at] = prefix
    return [view], offsets


def _ppm_headers(widths: np.ndarray, heights: np.ndarray) -> list[bytes]:
    return [ppm_header(int(w), int(h)) for w, h in zip(widths, heights, strict=True)]


def _build_slowly(keys, labels, codec, widths, heights, payload) -> tuple[list, np.ndarray]:
    """As `build`, member by member, for runs that hold a name beyond 100 bytes."""
    prefixes = [b""] * len(keys) if codec != "raw" else _ppm_headers(widths, heights)
    buffers, offsets, at = [], np.empty(len(keys), np.int64), 0
    for i, (key, label) in enumerate(zip(keys, labels.tolist(), strict=True)):
        number = b"%d" % label
        size = len(prefixes[i]) + len(payload[i])
        start = _header(f"{key.decode()}.{EXTENSIONS[codec]}", size)
        end = _header(f"{key.decode()}.cls", len(number)) + number.ljust(BLOCK, b"\0")
        offsets[i] = at + len(start) + len(prefixes[i])
        pad = bytes(-size % BLOCK)
        buffers += (start, prefixes[i], payload[i], pad, end)
        at += len(start) + size + len(pad) + len(end)
    return buffers, offsets


# ---------------------------------------------------------------------------------------------------------- index


def open_index(root: Path, manifest: Manifest, split: str) -> ShardIndex:
    """Index the tar shards of a split from its parquet index, without touching the tars.

    Raises Error where the split has no tars or the index does not fit the manifest.
    """
    root, info = Path(root), manifest.splits[split]
    if not info.tars:
        raise Error(f"{root} has no tar shards of split {split!r}; convert with --format tar or both")
    with index.opened(root, manifest, split) as table:
        column = _read_columns(table)
    return ShardIndex(
        files=[root / name for name in info.tars],
        # Shards follow one another in the index, so the manifest's lengths say which row lies where.
        file=np.repeat(np.arange(len(info.tars), dtype=np.int32), info.tar_lengths),
        num_bytes=column.pop("bytes"),
        **column,
    )


def _read_columns(table: pq.ParquetFile) -> dict[str, np.ndarray]:
    """The columns the loader needs, (n,) each.

    A column that is the same everywhere (sizes and codec mostly are) shows that in its statistics and is not read.
    """
    meta, schema = table.metadata, table.schema_arrow
    n = meta.num_rows
    column: dict[str, np.ndarray] = {}
    for name, dtype in COLUMNS.items():
        constant = _constant(meta, schema.names.index(name))
        if name == "codec" and constant is not None:
            constant = _codec_number(constant)
        column[name] = np.empty(n, dtype) if constant is None else np.broadcast_to(np.dtype(dtype).type(constant), (n,))
    to_read = [name for name in column if column[name].strides != (0,)]
    at = 0
    for batch in table.iter_batches(index.READ_ROWS, columns=to_read) if to_read else ():
        part = slice(at, at + len(batch))
        for name in to_read:
            values = batch.column(name)
            if name == "codec":
                numbers = np.array([_codec_number(c) for c in values.dictionary.to_pylist()], np.uint8)
                column[name][part] = numbers[index.integers(values.indices)]
            else:
                column[name][part] = index.integers(values)
        at = part.stop
    return column


def _constant(meta: pq.FileMetaData, number: int):
    """The one value of a column, from the statistics of its row groups; None where they differ or do not say."""
    values = set()
    for group in range(meta.num_row_groups):
        stats = meta.row_group(group).column(number).statistics
        if stats is None or not stats.has_min_max or stats.null_count or stats.min != stats.max:
            return None
        values.add(stats.min)
        if len(values) > 1:
            return None
    return values.pop() if values else None


def _codec_number(name: str) -> int:
    if name not in CODECS:
        raise ValueError(f"it names a codec this reader does not know: {name!r}")
    return CODECS.index(name)
