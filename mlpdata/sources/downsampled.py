"""Downsampled-ImageNet (Chrabaszcz et al., 2017): ImageNet-1k at 8 to 64 pixels, as pickles or npz, zipped or not.

A batch is a pickled dict or an npz of `data`, uint8 (N, 3 * res * res), planar RGB, and `labels` from 1 to 1,000 in the
order of `map_clsloc.txt`, which become ranks of the sorted wnids. A batch of 64 pixels has 1.6 GB and is never loaded
whole: rows are read in place, through all the zips around them.
"""

from __future__ import annotations

import io
import os
import pickle
import re
import struct
import zipfile
import zlib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np

from mlpdata import labels, splits
from mlpdata.archive import pickles
from mlpdata.errors import Error, first_line, reading
from mlpdata.sources import keys
from mlpdata.sources.base import Broken, ClassFilter, Sample, Source, Unit
from mlpdata.sources.files import is_system
from mlpdata.system.progress import Progress

NAME = re.compile(r"(?P<name>(?P<split>train|val)_data(?:_batch_(?P<number>\d+))?)(?:\.npz|\.pkl|\.pickle)?")
SIZES = (8, 16, 32, 64)
UNIT_ROWS = 20_000
READ_BYTES = 1 << 20
MAX_ROWS = 2_000_000
MAX_BATCH_BYTES = 32 << 30  # unpacked; all of train at 64 pixels has 16 GB
NUM_BATCHES = 10  # of train


Layers = tuple[tuple[int, bool], ...]  # (where a member's bytes start in the file around it, whether they are deflated)


@dataclass(frozen=True, slots=True)
class BatchFile:
    """One batch of the data set, and where it lies."""

    name: str  # as the authors call it: train_data_batch_1, val_data
    split: str
    number: int  # of a batch of train; 0 for the whole split
    path: Path
    member: str = ""  # of the zip at `path`; "" for a file of its own


@dataclass(frozen=True, slots=True)
class BatchRows:
    """Where the pixels of a batch lie, and its labels."""

    batch: BatchFile
    layers: Layers  # the zips around it, outermost first
    offset: int  # of the first row, inside all layers
    res: int
    labels: np.ndarray  # (N,) int16, from 1


def find(path: Path) -> list[BatchFile]:
    """The batches of a directory, a zip or a single file, in order; [] if it has none. Raises Error.

    Files are recognised by their first bytes and zips by their members. A pickle does not say what it is and needs the
    authors' name.
    """
    with reading(path):
        if path.is_dir():
            with os.scandir(path) as entries:
                names = sorted(e.name for e in entries if NAME.fullmatch(e.name) or e.name.endswith((".zip", ".npz")))
            files = [path / name for name in names if not is_system(name)]
        else:
            files = [path]
        batches = [batch for file in files if file.is_file() for batch in _batches_in(file)]
    return sorted(batches, key=lambda b: (b.split, b.number))


def _batches_in(path: Path) -> list[BatchFile]:
    with reading(path), open(path, "rb") as f:
        magic = f.read(2)
    match = NAME.fullmatch(path.name)
    if magic == b"PK" and not match:
        try:
            with zipfile.ZipFile(path) as archive:
                names = archive.namelist()
        except (zipfile.BadZipFile, ValueError, NotImplementedError, OverflowError, MemoryError, struct.error) as e:
            raise Error(f"{path} is no whole zip archive ({first_line(e)}); get it again") from None
        matches = ((name, NAME.fullmatch(name.rpartition("/")[2])) for name in names)
        return [_batch(match, path, name) for name, match in matches if match]
    if match and (magic == b"PK" or magic[:1] == pickle.PROTO):
        return [_batch(match, path)]
    return []


def _batch(match: re.Match, path: Path, member: str = "") -> BatchFile:
    return BatchFile(match["name"], match["split"], int(match["number"] or 0), path, member)


class Downsampled(Source):
    """The batches of Downsampled-ImageNet, labels as ranks of the sorted wnids of ILSVRC2012.

    batches:      as `find` gives them.
    class_filter: only its `classes`.
    only:         names of the splits that are wanted, () for all.
    Every batch is read through once, to find its rows and labels and to verify the checksums of zips. Raises Error for
    a damaged batch, and for one of another data set.
    """

    codec = "array"

    def __init__(self, path: Path, batches: list[BatchFile], class_filter: ClassFilter, only: tuple[str, ...] = ()):
        if class_filter.min_class_size or class_filter.val_per_class:
            raise Error(f"{path} is Downsampled-ImageNet, whose images have no names: it takes only --classes")
        names = [b.name for b in batches]
        if twice := next((n for n in names if names.count(n) > 1), None):
            raise Error(f"{path} has two files of {twice}; leave one")
        available = list(dict.fromkeys(batch.split for batch in batches))
        wanted_splits = {splits.find(name, available) for name in only} - {None} or set(available)
        batches = [batch for batch in batches if batch.split in wanted_splits]
        self._warn_of_missing(path, batches)
        self._takes_all = class_filter.classes is None
        self.files = sorted({str(b.path) for b in batches})
        known = labels.classes("ilsvrc2012")
        wanted = class_filter.classes or known
        if strange := [w for w in wanted if w not in known]:
            raise Error(f"{path} has no class {strange[0]!r}: ILSVRC2012 has none of that name")
        self.classes = [(wnid, labels.readable(wnid)) for wnid in wanted]
        self._label_of = np.concatenate(([-1], labels.mapping(labels.clsloc(), wanted))).tolist()  # by label from 1
        progress = Progress(f"reading {path.name}", len(batches), unit="batch")
        self._rows = []
        for batch in batches:
            self._rows.append(_locate(batch))
            progress.add(1)
        progress.finish()
        sizes = "/".join(str(r) for r in sorted({r.res for r in self._rows}))
        self.release = f"Downsampled-ImageNet {sizes}x{sizes} (ILSVRC2012, 1,000 synsets)"

    def _warn_of_missing(self, path: Path, batches: list[BatchFile]) -> None:
        numbers = {batch.number for batch in batches if batch.split == "train"}
        missing = sorted(set(range(1, NUM_BATCHES + 1)) - numbers) if numbers and 0 not in numbers else []
        if missing:
            lacks = f"it lacks {', '.join(map(str, missing))}"
            self.warnings = (f"{path} has {len(numbers)} of the {NUM_BATCHES} batches of train; {lacks}",)

    def units(self) -> list[Unit]:
        units = []
        for k, rows in enumerate(self._rows):
            for start in range(0, len(rows.labels), UNIT_ROWS):
                stop = min(start + UNIT_ROWS, len(rows.labels))
                name, num_bytes = f"{rows.batch.name}-{start:07d}", (stop - start) * 3 * rows.res**2
                content = (k, start, stop)
                units.append(Unit(name, rows.batch.split, stop - start, num_bytes, content, exact=self._takes_all))
        return units

    def samples(self, unit: Unit) -> Iterator[Sample | Broken]:
        k, start, stop = unit.content
        rows = self._rows[k]
        name, res, row_bytes = rows.batch.name, rows.res, 3 * rows.res**2
        with open(rows.batch.path, "rb") as file:
            stream = _inside(file, rows.layers)
            _skip(stream, rows.offset + start * row_bytes)
            for i in range(start, stop):
                data = stream.read(row_bytes)
                if len(data) < row_bytes:
                    raise Error(f"{rows.batch.path} ends inside row {i} of {name}; it changed while it was read")
                if (label := self._label_of[rows.labels[i]]) >= 0:
                    image = np.frombuffer(data, np.uint8).reshape(3, res, res).transpose(1, 2, 0)
                    yield Sample(f"{name}_{i:07d}", np.ascontiguousarray(image), label, f"{name}[{i}]")


# --------------------------------------------------------------------------------------------------------- batches


def _locate(batch: BatchFile) -> BatchRows:
    """Find the rows of a batch, read its labels, and verify the checksums of the zips around it. Raises Error."""
    try:
        with open(batch.path, "rb") as file:
            layers: Layers = ()
            content: Any = file
            if batch.member:
                archive = zipfile.ZipFile(file)
                info = archive.getinfo(batch.member)
                layers = (_layer(file, info),)
                if info.file_size > MAX_BATCH_BYTES:
                    raise ValueError(f"claims {info.file_size:,} bytes")
                content = archive.open(info)
            is_npz = content.read(2) == b"PK"
            content.seek(0)
            rows = (_locate_npz if is_npz else _locate_pickle)(batch, content, layers)
            _skip(content, None)  # zipfile verifies a member at its end
            return rows
    except Exception as e:  # damaged zips, pickles and headers of arrays raise nearly anything
        name = f"{batch.path}: {batch.member or batch.name}"
        raise Error(f"{keys.shown(name)} {first_line(e)[:300]}; get it again") from None


def _locate_pickle(batch: BatchFile, content: BinaryIO, layers: Layers) -> BatchRows:
    batch_dict = pickles.load(content)
    data = batch_dict.get("data")
    if not isinstance(data, pickles.ArrayExtent):
        raise ValueError("has no array of pixels under 'data'")
    res, labels_ = _res(data.shape, data.dtype), batch_dict.get("labels")
    if isinstance(labels_, pickles.ArrayExtent) and labels_.shape == data.shape[:1]:
        content.seek(labels_.offset)
        labels_ = np.frombuffer(content.read(labels_.shape[0] * labels_.dtype.itemsize), labels_.dtype)
    return BatchRows(batch, layers, data.offset, res, _labels(labels_, data.shape[0]))


def _locate_npz(batch: BatchFile, content: BinaryIO, layers: Layers) -> BatchRows:
    archive = zipfile.ZipFile(content)
    names = archive.namelist()
    if "data.npy" not in names or "labels.npy" not in names:
        raise ValueError(f"has no data.npy and labels.npy inside, but {', '.join(names[:4])}")
    info = archive.getinfo("labels.npy")
    if info.file_size > 8 * MAX_ROWS + 4096:
        raise ValueError(f"has {info.file_size} bytes of labels")
    labels_ = np.load(io.BytesIO(archive.read(info)), allow_pickle=False)
    info = archive.getinfo("data.npy")
    with archive.open(info) as member:
        version = np.lib.format.read_magic(member)
        read_header = np.lib.format.read_array_header_1_0 if version == (1, 0) else np.lib.format.read_array_header_2_0
        shape, column_major, dtype = read_header(member)
        offset, res = member.tell(), _res(shape, dtype)
        if column_major:
            raise ValueError("has its pixels in columns")
        if info.file_size != offset + 3 * res * res * shape[0]:
            raise ValueError(f"has {shape[0]:,} rows of pixels in {info.file_size:,} bytes")
        _skip(member, None)
    return BatchRows(batch, (*layers, _layer(content, info)), offset, res, _labels(labels_, shape[0]))


def _res(shape: tuple[int, ...], dtype: np.dtype) -> int:
    is_shape = isinstance(shape, tuple) and len(shape) == 2 and all(type(n) is int for n in shape)
    res = next((r for r in SIZES if is_shape and shape[1] == 3 * r * r), None)
    if res is None or dtype != np.uint8 or not 0 < shape[0] <= MAX_ROWS:
        raise ValueError(f"has pixels of shape {shape!r:.80} and type {dtype}, not uint8 (N, 3 * res * res)")
    return res


def _labels(labels_: object, num_rows: int) -> np.ndarray:
    if isinstance(labels_, list) and all(type(x) is int and 1 <= x <= 1000 for x in labels_):
        labels_ = np.array(labels_, np.int16)  # only after the check: lists of lists of one another fill any memory
    array = labels_ if isinstance(labels_, np.ndarray) else np.empty(0)
    if array.shape != (num_rows,) or array.dtype.kind not in "iu" or array.min() < 1 or array.max() > 1000:
        raise ValueError(f"has no {num_rows} labels from 1 to 1,000 under 'labels'")
    return array.astype(np.int16)


def _layer(enclosing: BinaryIO, info: zipfile.ZipInfo) -> tuple[int, bool]:
    """The layer of a member: where its bytes start, and whether they are deflated. Raises ValueError."""
    if info.compress_type not in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED) or info.flag_bits & 1:
        raise ValueError("is compressed in a way no zip of this data set is")
    position = enclosing.tell()
    enclosing.seek(info.header_offset + 26)
    name_bytes, extra_bytes = struct.unpack("<2H", enclosing.read(4))
    enclosing.seek(position)
    return info.header_offset + 30 + name_bytes + extra_bytes, info.compress_type == zipfile.ZIP_DEFLATED


class _Inflate:
    """Reads a deflated stream from front to back."""

    def __init__(self, stream: Any):
        self._stream, self._inflate = stream, zlib.decompressobj(-15)

    def read(self, size: int) -> bytes:
        pieces = []
        while size > 0 and not self._inflate.eof:
            packed = self._inflate.unconsumed_tail or self._stream.read(READ_BYTES)
            if not packed:
                break
            pieces.append(self._inflate.decompress(packed, size))
            size -= len(pieces[-1])
        return b"".join(pieces)


def _inside(file: BinaryIO, layers: Layers) -> Any:
    """The content inside all layers, as a stream from front to back."""
    stream: Any = file
    for start, deflated in layers:
        _skip(stream, start)
        stream = _Inflate(stream) if deflated else stream
    return stream


def _skip(stream: Any, size: int | None) -> None:
    """Skip so many bytes, or all that follow (None), which are read then."""
    if size and isinstance(stream, io.IOBase):
        stream.seek(size, os.SEEK_CUR)
        return
    while size is None or size > 0:
        data = stream.read(READ_BYTES if size is None else min(size, READ_BYTES))
        if not data:
            return
        size = None if size is None else size - len(data)
