"""WebDataset shards: plain POSIX tars of KEY.jpg|png|ppm and KEY.cls, equal bytes for equal samples.

Headers are built for a whole shard at once in numpy: `tarfile` makes about 50,000 a second, a shard needs two a sample.
"""

from __future__ import annotations

import tarfile
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from mlpdata.errors import Error
from mlpdata.shards import index
from mlpdata.shards.cache import ColumnCache
from mlpdata.shards.manifest import Manifest, index_path
from mlpdata.shards.shard_index import ShardIndex

BLOCK = 512
EXTENSIONS = {"raw": "ppm", "jpg": "jpg", "png": "png"}
END = bytes(2 * BLOCK)
COLUMNS = {"label": "<i4", "offset": "<i8", "bytes": "<i8", "codec": "u1", "width": "<i4", "height": "<i4"}
CACHED_ROWS = 1 << 20  # of indices that are kept in the cache: smaller ones are read in less than 0.1 s


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
    image_suffix, label_suffix = f".{EXTENSIONS[codec]}".encode(), b".cls"
    prefixes = [b""] * n
    if codec == "raw":
        prefixes = [ppm_header(int(w), int(h)) for w, h in zip(widths, heights, strict=True)]
    lengths = np.fromiter(map(len, keys), np.int64, n)
    if n and lengths.max() + len(label_suffix) > 100:
        return _build_one_by_one(keys, labels, image_suffix.decode(), prefixes, payload)
    image_bytes = np.fromiter(map(len, payload), np.int64, n)
    prefix_bytes = np.fromiter(map(len, prefixes), np.int64, n)
    # Everything starts on a block: header of the image, image, header of the label, label.
    blocks = -(-(image_bytes + prefix_bytes) // BLOCK)
    starts = np.cumsum(3 + blocks) - 3 - blocks
    out = np.empty((int((3 + blocks).sum()), BLOCK), np.uint8)
    label_data = np.array([b"%d" % label for label in labels.tolist()], dtype="S20")
    out[starts + blocks] = 0  # the last block of an image is padded with zeros
    out[starts + 2 + blocks] = 0
    out[starts + 2 + blocks, :20] = label_data.view(np.uint8).reshape(n, 20)
    padded_keys = np.array(keys, dtype="S100").view(np.uint8).reshape(n, 100)
    head, rows = np.empty((n, BLOCK), np.uint8), np.arange(n)
    for suffix, head_blocks, sizes in (
        (image_suffix, starts, image_bytes + prefix_bytes),
        (label_suffix, starts + 1 + blocks, np.char.str_len(label_data)),
    ):
        names = padded_keys.copy()
        for i, letter in enumerate(suffix):
            names[rows, lengths + i] = letter
        _fill_headers(head, names, sizes)
        out[head_blocks] = head
    offsets = (starts + 1) * BLOCK + prefix_bytes
    view = out.data.cast("B")
    for offset, prefix, data in zip(offsets.tolist(), prefixes, payload, strict=True):
        view[offset : offset + len(data)] = data
        if prefix:
            view[offset - len(prefix) : offset] = prefix
    return [view], offsets


def _build_one_by_one(keys, labels, image_suffix: str, prefixes: list[bytes], payload) -> tuple[list, np.ndarray]:
    """As `build`, sample by sample, for runs that hold a name beyond 100 bytes: these have extended headers."""
    buffers, offsets, end = [], np.empty(len(keys), np.int64), 0
    for i, (key, label) in enumerate(zip(keys, labels.tolist(), strict=True)):
        digits = b"%d" % label
        size = len(prefixes[i]) + len(payload[i])
        head = _header(f"{key.decode()}{image_suffix}", size)
        padding = bytes(-size % BLOCK)
        tail = _header(f"{key.decode()}.cls", len(digits)) + digits.ljust(BLOCK, b"\0")
        offsets[i] = end + len(head) + len(prefixes[i])
        buffers += (head, prefixes[i], payload[i], padding, tail)
        end += len(head) + size + len(padding) + len(tail)
    return buffers, offsets


# ---------------------------------------------------------------------------------------------------------- index


def open_index(root: Path, manifest: Manifest, split: str) -> ShardIndex:
    """Index the tar shards of a split from its parquet index, without touching the tars.

    A large index is read once and then comes from the user's cache, as long as the file keeps its size and time of
    change: 0.3 s instead of 1 s for ImageNet-21k. Raises Error where the split has no tars, or another index than the
    manifest lists.
    """
    info = manifest.splits[split]
    if not info.tars:
        raise Error(f"{root} has no tar shards of split {split!r}; convert with --format tar or both")
    columns = cache = None
    if info.num_samples >= CACHED_ROWS:
        path = index_path(root, split)
        stat, sha256 = path.stat(), manifest.files[path.name]["sha256"]
        cache = ColumnCache([path], np.array([stat.st_size, stat.st_mtime_ns, int(sha256[:15], 16)]), COLUMNS)
        columns = cache.load()
    if columns is None:
        columns = index.columns(root, manifest, split, COLUMNS)
        if cache:
            cache.save(columns)
    return ShardIndex(
        files=[root / name for name in info.tars],
        # Shards follow one another in the index, so the manifest's lengths say which row lies where.
        file=np.repeat(np.arange(len(info.tars), dtype=np.int32), info.tar_lengths),
        num_bytes=columns.pop("bytes"),
        **columns,  # pyright: ignore[reportArgumentType] - of the other fields
    )
