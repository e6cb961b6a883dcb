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
from typing import BinaryIO

import numpy as np

from mlpdata import labels, splits
from mlpdata.archive import pickles
from mlpdata.errors import Error, first_line
from mlpdata.sources import Broken, ClassFilter, Sample, Source, Unit, keys
from mlpdata.sources.files import is_system
from mlpdata.system.progress import Progress

NAME = re.compile(r"(?P<name>(?P<split>train|val)_data(?:_batch_(?P<number>\d+))?)(?:\.npz|\.pkl|\.pickle)?")
SIZES = (8, 16, 32, 64)
UNIT_ROWS = 20_000
READ_BYTES = 1 << 20
MAX_ROWS = 2_000_000
MAX_BATCH_BYTES = 32 << 30  # unpacked; all of train at 64 pixels has 16 GB
NUM_BATCHES = 10  # of train


@dataclass(frozen=True, slots=True)
class BatchFile:
    """One batch of the data set, and where it lies."""

    name: str  # as the authors call it: train_data_batch_1, val_data
    split: str
    path: Path
    member: str = ""  # of the zip at `path`; "" for a file of its own


@dataclass(frozen=True, slots=True)
class BatchRows:
    """Where the pixels of a batch lie, and their labels."""

    batch: BatchFile
    layers: tuple[tuple[int, bool], ...]  # of zips, outermost first: where a member's bytes start, whether deflated
    offset: int  # of the first row below all layers
    res: int
    labels: np.ndarray  # (N,) int16, from 1


def find(path: Path) -> list[BatchFile]:
    """The batches of a directory, a zip or a single file, in order; [] if it has none.

    What a file is, is told by its first bytes, and what a zip is, by its members; pickles tell nothing of themselves
    and need the authors' names.
    """
    try:
        if path.is_dir():
            with os.scandir(path) as entries:
                names = sorted(e.name for e in entries if NAME.fullmatch(e.name) or e.name.endswith((".zip", ".npz")))
            files = [path / name for name in names if not is_system(name)]
        else:
            files = [path]
        found = [batch for file in files if file.is_file() for batch in _batches_in(file)]
    except OSError as e:
        raise Error(f"cannot read {e.filename or path}: {e.strerror}") from None
    return sorted(found, key=lambda b: (b.split, int(NAME.fullmatch(b.name)["number"] or 0)))


def _batches_in(path: Path) -> list[BatchFile]:
    with open(path, "rb") as f:
        magic = f.read(2)
    match = NAME.fullmatch(path.name)
    if magic == b"PK" and not match:
        try:
            with zipfile.ZipFile(path) as archive:
                names = archive.namelist()
        except (zipfile.BadZipFile, ValueError, NotImplementedError, OverflowError, MemoryError, struct.error) as e:
            raise Error(f"{path} is no whole zip archive ({first_line(e)}); get it again") from None
        inside = [(n, NAME.fullmatch(n.rpartition("/")[2])) for n in names]
        return [BatchFile(m["name"], m["split"], path, n) for n, m in inside if m]
    if match and (magic == b"PK" or magic[:1] == pickle.PROTO):
        return [BatchFile(match["name"], match["split"], path)]
    return []


class Downsampled(Source):
    """The batches of Downsampled-ImageNet, labels as ranks of the sorted wnids of ILSVRC2012.

    batches: as `find` gives them. class_filter: only `classes`. only: names of the splits that are wanted, () for all.
    Every batch is read through once, to learn where its
    rows are, to have its labels and to verify the checksums of zips. Raises Error for a damaged or other batch.
    """

    codec = "array"

    def __init__(self, path: Path, batches: list[BatchFile], class_filter: ClassFilter, only: tuple[str, ...] = ()):
        if class_filter.min_class_size or class_filter.val_per_class:
            raise Error(f"{path} is Downsampled-ImageNet, whose images have no names: it takes only --classes")
        names = [b.name for b in batches]
        if twice := next((n for n in names if names.count(n) > 1), None):
            raise Error(f"{path} has two files of {twice}; leave one")
        there = list(dict.fromkeys(batch.split for batch in batches))
        wanted_splits = {splits.find(name, there) for name in only} - {None} or set(there)
        batches = [batch for batch in batches if batch.split in wanted_splits]
        self._say_what_is_missing(path, batches)
        self._takes_all = class_filter.classes is None
        self.files = sorted({str(b.path) for b in batches})
        known = labels.classes("ilsvrc2012")
        wanted = class_filter.classes or known
        if strange := [w for w in wanted if w not in known]:
            raise Error(f"{path} has no class {strange[0]!r}: ILSVRC2012 has none of that name")
        self.classes = [(wnid, labels.readable(wnid)) for wnid in wanted]
        self._label_of = np.concatenate(([-1], labels.mapping(labels.clsloc(), wanted))).tolist()  # by label from 1
        progress = Progress(f"reading {path.name}", len(batches), unit="batches")
        self._rows = []
        for batch in batches:
            self._rows.append(_locate(batch))
            progress.add(1)
        progress.finish()
        sizes = "/".join(str(r) for r in sorted({r.res for r in self._rows}))
        self.release = f"Downsampled-ImageNet {sizes}x{sizes} (ILSVRC2012, 1,000 synsets)"

    def _say_what_is_missing(self, path: Path, batches: list[BatchFile]) -> None:
        there = {int(NAME.fullmatch(b.name)["number"] or 0) for b in batches if b.split == "train"}
        missing = [] if 0 in there or not there else sorted(set(range(1, NUM_BATCHES + 1)) - there)
        if missing:
            numbers = ", ".join(map(str, missing))
            self.warnings = (f"{path} has {len(there)} of the {NUM_BATCHES} batches of train; it lacks {numbers}",)

    def units(self) -> list[Unit]:
        units = []
        for k, rows in enumerate(self._rows):
            for start in range(0, len(rows.labels), UNIT_ROWS):
                stop = min(start + UNIT_ROWS, len(rows.labels))
                num_bytes = (stop - start) * 3 * rows.res**2
                name = f"{rows.batch.name}-{start:07d}"
                at = (k, start, stop)
                units.append(Unit(name, rows.batch.split, stop - start, num_bytes, at, exact=self._takes_all))
        return units

    def samples(self, unit: Unit) -> Iterator[Sample | Broken]:
        k, start, stop = unit.at
        rows, name, res = self._rows[k], self._rows[k].batch.name, self._rows[k].res
        row_bytes = 3 * res * res
        with open(rows.batch.path, "rb") as file:
            stream = _below(file, rows.layers)
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
    """Find the rows of a batch and read its labels. Raises Error."""
    where = f"{batch.path}: {batch.member or batch.name}"
    try:
        with open(batch.path, "rb") as file:
            layers: tuple = ()
            content: BinaryIO = file
            if batch.member:
                archive = zipfile.ZipFile(file)
                info = archive.getinfo(batch.member)
                layers = (_layer(file, info),)
                if info.file_size > MAX_BATCH_BYTES:
                    raise ValueError(f"claims {info.file_size:,} bytes")
                content = archive.open(info)
            if content.read(2) == b"PK":
                content.seek(0)
                rows = _locate_npz(batch, content, layers)
            else:
                content.seek(0)
                rows = _locate_pickle(batch, content, layers)
            _skip(content, None)  # at its end a zip's member is verified
            return rows
    except Exception as e:  # damaged zips, pickles and headers of arrays raise nearly anything
        raise Error(f"{keys.shown(where)} {first_line(e)[:300]}; get it again") from None


def _locate_pickle(batch: BatchFile, content: BinaryIO, layers: tuple) -> BatchRows:
    found = pickles.load(content)
    data = found.get("data")
    if not isinstance(data, pickles.ArrayExtent):
        raise ValueError("has no array of pixels under 'data'")
    res, labels_ = _res(data.shape, data.dtype), found.get("labels")
    if isinstance(labels_, pickles.ArrayExtent) and labels_.shape == data.shape[:1]:
        content.seek(labels_.offset)
        labels_ = np.frombuffer(content.read(labels_.shape[0] * labels_.dtype.itemsize), labels_.dtype)
    return BatchRows(batch, layers, data.offset, res, _labels(labels_, data.shape[0]))


def _locate_npz(batch: BatchFile, content: BinaryIO, layers: tuple) -> BatchRows:
    archive = zipfile.ZipFile(content)
    names = archive.namelist()
    if "data.npy" not in names or "labels.npy" not in names:
        raise ValueError(f"has no data.npy and labels.npy inside, but {', '.join(names[:4])}")
    info = archive.getinfo("labels.npy")
    if info.file_size > 8 * MAX_ROWS + 4096:
        raise ValueError(f"has {info.file_size} bytes of labels")
    found = np.load(io.BytesIO(archive.read(info)), allow_pickle=False)
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
    return BatchRows(batch, (*layers, _layer(content, info)), offset, res, _labels(found, shape[0]))


def _res(shape: tuple[int, ...], dtype: np.dtype) -> int:
    is_shape = isinstance(shape, tuple) and len(shape) == 2 and all(type(n) is int for n in shape)
    res = next((r for r in SIZES if is_shape and shape[1] == 3 * r * r), None)
    if res is None or dtype != np.uint8 or not 0 < shape[0] <= MAX_ROWS:
        raise ValueError(f"has pixels of shape {shape!r:.80} and type {dtype}, not uint8 (N, 3 * res * res)")
    return res


def _labels(found: object, num_rows: int) -> np.ndarray:
    if isinstance(found, list) and all(type(x) is int and 1 <= x <= 1000 for x in found):
        found = np.array(found, np.int16)  # not before: lists of lists of one another fill any memory
    array = found if isinstance(found, np.ndarray) else np.empty(0)
    if array.shape != (num_rows,) or array.dtype.kind not in "iu" or array.min() < 1 or array.max() > 1000:
        raise ValueError(f"has no {num_rows} labels from 1 to 1,000 under 'labels'")
    return array.astype(np.int16)


def _layer(enclosing: BinaryIO, info: zipfile.ZipInfo) -> tuple[int, bool]:
    """(where the bytes of a member start in the file around it, whether they are deflated)."""
    if info.compress_type not in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED) or info.flag_bits & 1:
        raise ValueError("is compressed in a way no zip of this data set is")
    at = enclosing.tell()
    enclosing.seek(info.header_offset + 26)
    name_bytes, extra_bytes = struct.unpack("<2H", enclosing.read(4))
    enclosing.seek(at)
    return info.header_offset + 30 + name_bytes + extra_bytes, info.compress_type == zipfile.ZIP_DEFLATED


class _Inflate:
    """Read a deflated stream from front to back."""

    def __init__(self, stream: BinaryIO):
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


def _below(file: BinaryIO, layers: tuple[tuple[int, bool], ...]) -> BinaryIO:
    stream = file
    for start, deflated in layers:
        _skip(stream, start)
        stream = _Inflate(stream) if deflated else stream
    return stream


def _skip(stream: BinaryIO, size: int | None) -> None:
    """Read so many bytes, or all there are, and forget them."""
    if size and isinstance(stream, io.IOBase):
        stream.seek(size, os.SEEK_CUR)
        return
    while size is None or size > 0:
        data = stream.read(READ_BYTES if size is None else min(size, READ_BYTES))
        if not data:
            return
        size = None if size is None else size - len(data)
