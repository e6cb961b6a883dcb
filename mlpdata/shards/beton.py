"""FFCV `.beton` files (version 2) in plain numpy: laid out once, written in any order by any process.

Layout, as ffcv 1.0.2 reads it: header, one descriptor a field, the metadata table, then data pages (a sample lies
inside one page), then the allocation table to the end of the file. Our files have the fields `image` (RGB image) and
`label` (int), as `ffcv.fields.RGBImageField` and `IntField` write them.
"""

from __future__ import annotations

import os
import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np

from mlpdata.choices import CODECS
from mlpdata.errors import Error, cannot_read, reading
from mlpdata.shards.shard_index import ShardIndex
from mlpdata.system.disk import pwrite
from mlpdata.system.format import plural

PAGE_SIZE = 8 << 20  # ffcv's own default; the reader wants a power of two of at least 2 MiB

HEADER = np.dtype(
    [
        ("version", "<u2"),
        ("num_fields", "<u2"),
        ("page_size", "<u4"),
        ("num_samples", "<u8"),
        ("alloc_table_ptr", "<u8"),
    ],
    align=True,
)
FIELD = np.dtype([("type_id", "<u1"), ("name", ("<u1", 16)), ("arguments", ("<u1", 1024))], align=True)
IMAGE = np.dtype([("mode", "<u1"), ("width", "<u2"), ("height", "<u2"), ("data_ptr", "<u8")])
METADATA = np.dtype([("image", IMAGE), ("label", "<i8")], align=True)
ALLOCATION = np.dtype([("sample_id", "<u8"), ("ptr", "<u8"), ("size", "<u8")])

VERSION = 2
TYPE_FLOAT, TYPE_INT, TYPE_IMAGE = 0, 1, 2
POINTER, EXTENT = np.dtype("<u8"), np.dtype([("ptr", "<u8"), ("size", "<u8")])
# What each field type keeps in the metadata table: float, int, image, bytes, array, JSON, tensor.
FIELD_METADATA = dict(enumerate([np.dtype("<f8"), np.dtype("<i8"), IMAGE, EXTENT, POINTER, EXTENT, POINTER]))
TYPE_NAMES = ("float", "int", "RGB image", "bytes", "array", "JSON", "tensor")
MAX_FIELDS = 256
MODES = {"jpg": 0, "raw": 1}  # the image field's `mode`
RAW, JPG = CODECS.index("raw"), CODECS.index("jpg")
TABLE_ROWS = 1 << 18  # of the tables read or written at a time: opening needs little more memory than the index
METADATA_START = HEADER.itemsize + 2 * FIELD.itemsize


# ---------------------------------------------------------------------------------------------------------- write


@dataclass(frozen=True)
class Layout:
    """Where everything of one file lies, which follows from the payload sizes alone."""

    ptrs: np.ndarray  # (N,) uint64, byte offset of each payload
    alloc_table_ptr: int
    page_size: int = PAGE_SIZE

    @property
    def file_bytes(self) -> int:
        return self.alloc_table_ptr + len(self.ptrs) * ALLOCATION.itemsize


def layout(sizes: np.ndarray, page_size: int = PAGE_SIZE) -> Layout:
    """Pack payloads into pages in order, each page as full as it gets.

    sizes: (N,) bytes of each payload, none larger than a page. Raises Error naming the first that is.
    """
    sizes = np.asarray(sizes, dtype=np.int64)
    if len(sizes) and sizes.max() > page_size:
        raise Error(f"sample {int(sizes.argmax())} has {sizes.max()} bytes; a beton page holds {page_size}")
    first_page = -(-(METADATA_START + len(sizes) * METADATA.itemsize) // page_size)
    ptrs = np.empty(len(sizes), dtype=np.uint64)
    ends = np.cumsum(sizes)
    start, page, end = 0, first_page, first_page * page_size
    while start < len(sizes):
        before = int(ends[start] - sizes[start])
        stop = int(np.searchsorted(ends, before + page_size, side="right"))  # the page takes samples start..stop-1
        ptrs[start:stop] = page * page_size + (ends[start:stop] - sizes[start:stop] - before)
        end = page * page_size + int(ends[stop - 1] - before)
        start, page = stop, page + 1
    # ffcv reads whole pages where it does not map the file, so the last one is there in full.
    return Layout(ptrs, -(-end // page_size) * page_size, page_size)


def estimated_bytes(n: int, payload_bytes: int, page_size: int = PAGE_SIZE) -> int:
    """How large a file of n samples is whose payloads have so many bytes in all; a page less or more.

    >>> estimated_bytes(1000, 3_072_000) >> 20  # the tables and the payloads begin on pages of their own
    16
    """
    pages = -(-(METADATA_START + n * METADATA.itemsize) // page_size) + -(-payload_bytes // page_size)
    return pages * page_size + n * ALLOCATION.itemsize


def create(path: Path, layout: Layout, codec: str, sizes, widths, heights, labels, keep: bool = False) -> None:
    """Make the file at its final size, whole but for the payloads.

    codec: "raw" or "jpg". sizes, widths, heights, labels: (N,) integers of each sample.
    keep: the file exists, and its payloads stay.
    """
    n = len(layout.ptrs)
    header = np.zeros((), HEADER)
    header["version"], header["num_fields"], header["page_size"] = VERSION, 2, layout.page_size
    header["num_samples"], header["alloc_table_ptr"] = n, layout.alloc_table_ptr
    descriptors = np.zeros(2, FIELD)
    for row, (name, type_id) in zip(descriptors, (("image", TYPE_IMAGE), ("label", TYPE_INT)), strict=True):
        row["type_id"] = type_id
        row["name"][: len(name)] = np.frombuffer(name.encode("ascii"), np.uint8)
    with open(path, "r+b" if keep else "wb", buffering=0) as f:
        f.truncate(layout.file_bytes)
        pwrite(f.fileno(), header.tobytes() + descriptors.tobytes(), 0)
        for start in range(0, n, TABLE_ROWS):
            rows = slice(start, min(n, start + TABLE_ROWS))
            meta = np.zeros(rows.stop - start, METADATA)
            meta["image"]["mode"], meta["image"]["data_ptr"] = MODES[codec], layout.ptrs[rows]
            meta["image"]["width"], meta["image"]["height"] = widths[rows], heights[rows]
            meta["label"] = labels[rows]
            pwrite(f.fileno(), meta, METADATA_START + start * METADATA.itemsize)
            alloc = np.zeros(len(meta), ALLOCATION)
            alloc["sample_id"], alloc["ptr"] = np.arange(start, rows.stop), layout.ptrs[rows]
            alloc["size"] = sizes[rows]
            pwrite(f.fileno(), alloc, layout.alloc_table_ptr + start * ALLOCATION.itemsize)


def write(put: Callable[[Any, int], object], ptrs: np.ndarray, payload: Sequence[memoryview] | np.ndarray) -> None:
    """Write the payloads of consecutive samples into a file made by `create`.

    put:     writes a buffer at an offset.
    ptrs:    their (n,) slice of Layout.ptrs.
    payload: n buffers, or an (n, size) uint8 array where all have one size.
    """
    n, ptrs = len(ptrs), ptrs.astype(np.int64)
    if isinstance(payload, np.ndarray):
        sizes = np.full(n, payload.shape[1], np.int64)
    else:
        sizes = np.fromiter((len(p) for p in payload), np.int64, n)
    # Inside a page the samples touch: one write a page instead of one a sample.
    breaks = np.flatnonzero(ptrs[1:] != ptrs[:-1] + sizes[:-1]) + 1
    for start, stop in zip([0, *breaks.tolist()], [*breaks.tolist(), n], strict=True):
        run = payload[start:stop]
        put(run if isinstance(run, np.ndarray) else b"".join(run), int(ptrs[start]))


# ---------------------------------------------------------------------------------------------------------- index


Fields = list[tuple[str, int]]  # (name, type) of each field of a file


def read_fields(path: Path) -> Fields:
    """The fields of a `.beton` file. Raises Error for a file that is none."""
    with reading(path), open(path, "rb") as f:
        return _read_fields(path, f, os.fstat(f.fileno()).st_size)[1]


def choose_fields(path: Path, fields: Fields, image: str | None, label: str | None) -> tuple[int, int]:
    """Which fields are the image and the label, as `open_index` says. Warns of a guess; raises Error without one."""
    names, types = [name for name, _ in fields], [kind for _, kind in fields]
    return (
        _choose(path, names, types, TYPE_IMAGE, "image", image),
        _choose(path, names, types, TYPE_INT, "label", label),
    )


def open_index(path: Path, image: str | None = None, label: str | None = None) -> ShardIndex:
    """Index a `.beton` file, ours or ffcv's own, without reading its samples.

    image, label: names of the fields that hold them. None: the image field `image` and the int field `label`; where no
    field has that name, the only image field and the only int field, with a warning. Other fields are passed over.
    Nothing stays mapped: a file that is cut short later on cannot take the process with it.
    Raises Error for a file that is no beton, is cut short or damaged, or where it is not clear which field is meant.
    """
    path = Path(path)
    try:
        with open(path, "rb") as f:
            return _read_index(path, f, os.fstat(f.fileno()).st_size, image, label)
    except OSError as e:
        raise cannot_read(path, e) from None
    except MemoryError:
        raise Error(f"{path} holds more samples than there is memory to index them") from None


def _read_fields(path: Path, f: BinaryIO, size: int) -> tuple[np.void, Fields]:
    """(header, fields) of an open file, which is then at its metadata table. Raises Error."""
    header = np.fromfile(f, HEADER, 1)
    if not len(header) or header[0]["version"] != VERSION:
        raise Error(f"{path} is not an FFCV beton file of version {VERSION}")
    num_fields = int(header[0]["num_fields"])
    if not 1 <= num_fields <= MAX_FIELDS or HEADER.itemsize + num_fields * FIELD.itemsize > size:
        raise Error(f"{path} is damaged: its header names {num_fields} fields")
    descriptors = np.fromfile(f, FIELD, num_fields)
    fields = [(_name(field), int(field["type_id"])) for field in descriptors]
    for name, kind in fields:
        if kind not in FIELD_METADATA:
            raise Error(
                f"{path} has a field of type {kind} ({name!r}); only types 0 to {max(FIELD_METADATA)} are known"
            )
    return header[0], fields


def _read_index(path: Path, f: BinaryIO, size: int, image: str | None, label: str | None) -> ShardIndex:
    header, fields = _read_fields(path, f, size)
    n, alloc_ptr = int(header["num_samples"]), int(header["alloc_table_ptr"])
    start, types = HEADER.itemsize + len(fields) * FIELD.itemsize, [kind for _, kind in fields]
    image_field, label_field = (f"f{i}" for i in choose_fields(path, fields, image, label))
    table = np.dtype([(f"f{i}", FIELD_METADATA[kind]) for i, kind in enumerate(types)], align=True)
    end = start + n * table.itemsize
    if end > size or not alloc_ptr <= size or (size - alloc_ptr) // ALLOCATION.itemsize < n:
        raise Error(f"{path} is cut short: {size} bytes do not hold the {plural(n, 'sample')} its header promises")
    if n == 0:
        raise Error(f"{path} holds no samples")
    num_payloads = n * sum(kind not in (TYPE_FLOAT, TYPE_INT) for kind in types)
    if alloc_ptr < end or size - alloc_ptr > num_payloads * ALLOCATION.itemsize:
        raise Error(f"{path} is damaged: its allocation table cannot be from byte {alloc_ptr} to {size}")
    data_ptr, labels = np.empty(n, np.int64), np.empty(n, np.int64)
    codecs, widths, heights = [], [], []
    for first in range(0, n, TABLE_ROWS):
        rows = np.fromfile(f, table, min(TABLE_ROWS, n - first))
        if len(rows) < min(TABLE_ROWS, n - first):
            raise Error(f"{path} is cut short: it ends in the metadata of sample {first + len(rows)}")
        images = rows[image_field]
        _check_images(path, images, first, end, alloc_ptr)
        data_ptr[first : first + len(rows)] = images["data_ptr"]
        labels[first : first + len(rows)] = rows[label_field]
        codecs.append(_narrow(np.where(images["mode"] == MODES["raw"], np.uint8(RAW), np.uint8(JPG))))
        widths.append(_narrow(images["width"].copy()))
        heights.append(_narrow(images["height"].copy()))
    codec, width, height = map(_joined, (codecs, widths, heights))
    return ShardIndex(
        files=[path],
        file=np.broadcast_to(np.uint8(0), (n,)),
        offset=data_ptr,
        num_bytes=_payload_bytes(path, f, data_ptr, codec, width, height, alloc_ptr),
        codec=codec,
        width=width,
        height=height,
        label=labels,
    )


def _check_images(path: Path, images: np.ndarray, first: int, tables_end: int, alloc_ptr: int) -> None:
    """Raise Error for images whose metadata cannot be; images: IMAGE of samples `first` and on."""
    for wrong, what in (
        (images["mode"] > max(MODES.values()), "image mode {mode}, which is neither JPEG nor raw"),
        ((images["width"] == 0) | (images["height"] == 0), "{width} x {height} pixels"),
        (
            (images["data_ptr"] < tables_end) | (images["data_ptr"] >= alloc_ptr),
            "its image at byte {data_ptr}, among the tables",
        ),
    ):
        if wrong.any():
            i = int(wrong.argmax())
            values = {name: images[name][i].item() for name in ("mode", "width", "height", "data_ptr")}
            raise Error(f"{path} is damaged: sample {first + i} has {what.format(**values)}")


def _name(field: np.void) -> str:
    return field["name"].tobytes().rstrip(b"\0").decode("utf-8", "replace")


def _choose(path: Path, names: list[str], types: list[int], wanted: int, usual: str, asked: str | None) -> int:
    """Which field is the image or the label. Raises Error where it is not clear, or not of the type wanted."""
    has = ", ".join(f"{name!r} ({TYPE_NAMES[kind]})" for name, kind in zip(names, types, strict=True))
    has = has if len(has) <= 800 else f"{has[:800]} ..."
    called = [i for i, name in enumerate(names) if name == (usual if asked is None else asked)]
    fit = [i for i, kind in enumerate(types) if kind == wanted]
    if len(called) == 1 and called[0] in fit:
        return called[0]
    if asked is None and len(fit) == 1 and not (called and usual == "label"):
        message = f"{path}: field {names[fit[0]]!r} is taken for the {usual}, the only one of type {TYPE_NAMES[wanted]}"
        warnings.warn(message, stacklevel=7)
        return fit[0]
    if asked is not None:
        raise Error(f"{path} has not exactly one field {asked!r} of type {TYPE_NAMES[wanted]}; it has {has}")
    if not fit:
        raise Error(f"{path} has no field of type {TYPE_NAMES[wanted]}, as the {usual} is; it has {has}")
    raise Error(f"{path}: which field is the {usual} is not clear; it has {has}; {usual}_column= chooses one")


def _narrow(values: np.ndarray) -> np.ndarray:
    """A constant array as a broadcast scalar (stride 0): it takes no memory, and later checks are free."""
    return np.broadcast_to(values[0], values.shape) if (values == values[0]).all() else values


def _joined(parts: list[np.ndarray]) -> np.ndarray:
    """Arrays one after the other; a broadcast scalar where all of them are constant and equal."""
    if all(part.strides == (0,) and part[0] == parts[0][0] for part in parts):
        return np.broadcast_to(parts[0][0], sum(map(len, parts)))
    return np.concatenate(parts)


def _payload_bytes(path: Path, f: BinaryIO, ptrs: np.ndarray, codec, width, height, alloc_ptr: int) -> np.ndarray:
    """(N,) int64 bytes of each image. Those of raw images follow from the shape; others are in the allocation table."""
    if (codec == RAW).all():
        if width.strides == height.strides == (0,):
            return np.broadcast_to(np.int64(3) * width[0] * height[0], ptrs.shape)
        return width.astype(np.int64) * height * 3
    f.seek(alloc_ptr)
    table = np.fromfile(f, ALLOCATION)
    table = table[table["size"] > 0]  # what has no bytes lies where the next one begins
    table_ptrs, sizes = table["ptr"].astype(np.int64), table["size"].astype(np.int64)
    if not len(table_ptrs):
        raise Error(f"{path} is damaged: its allocation table is empty")
    if np.array_equal(table_ptrs[: len(ptrs)], ptrs):  # our own table has the order of the samples; ffcv's has any
        return sizes[: len(ptrs)]
    order = np.argsort(table_ptrs)
    # Searched in a sorted copy: through `sorter`, every step of a search is a cache miss.
    rows = order[np.minimum(np.searchsorted(table_ptrs[order], ptrs), len(order) - 1)]
    if not np.array_equal(table_ptrs[rows], ptrs):
        i = int((table_ptrs[rows] != ptrs).argmax())
        raise Error(f"{path} is damaged: sample {i} is missing from its allocation table")
    return sizes[rows]


# --------------------------------------------------------------------------------------------------------- tables


def read_rows(path: Path, first: int, n: int) -> tuple[np.ndarray, np.ndarray]:
    """Some rows of the two tables of a file that `create` made: (n,) METADATA and (n,) ALLOCATION.

    Raises Error for a file with other fields, or fewer rows.
    """
    with open(path, "rb") as f:
        header, fields = np.fromfile(f, HEADER, 1), np.fromfile(f, FIELD, 2)
        if not len(header) or (int(header[0]["version"]), int(header[0]["num_fields"])) != (VERSION, 2):
            raise Error(f"{path} is not a beton of this tool: its header is another")
        if fields["type_id"].tolist() != [TYPE_IMAGE, TYPE_INT] or int(header[0]["num_samples"]) < first + n:
            raise Error(f"{path} is not a beton of this tool with {plural(first + n, 'sample')} or more")
        f.seek(METADATA_START + first * METADATA.itemsize)
        meta = np.fromfile(f, METADATA, n)
        f.seek(min(int(header[0]["alloc_table_ptr"]) + first * ALLOCATION.itemsize, os.fstat(f.fileno()).st_size))
        allocations = np.fromfile(f, ALLOCATION, n)
    if len(meta) < n or len(allocations) < n:
        raise Error(f"{path} is cut short: it has no tables for {plural(first + n, 'sample')}")
    return meta, allocations
