"""Assembly: one shard of the shuffled order, gathered from the parts and written in both formats.

Runs in worker processes; `convert` hands out the tasks. A shard's journal (`.convert/shards/NAME.arrow`) holds its rows
of the index and is renamed into place when the shard's bytes are written.
"""

from __future__ import annotations

import contextlib
import hashlib
import os
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from mlpdata import beton, parts, tar
from mlpdata.manifest import Error, tar_path, work_path
from mlpdata.parts import KINDS, Part
from mlpdata.sources import Source

LABELS = "labels.npy"  # in the work directory: the output's label of each of the source's
BLOCK_BYTES = 8 << 20  # payload gathered at a time

INDEX_SCHEMA = pa.schema(
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


@dataclass
class State:
    """What every worker knows."""

    source: Source
    recipe: parts.Recipe
    root: Path
    beton_codec: str | None
    tar_codec: str | None

    def __post_init__(self):
        self.work = work_path(self.root)
        self._open_parts: dict[str, Part] = {}
        self._scratch: dict[str, np.ndarray] = {}

    @cached_property
    def label_map(self) -> np.ndarray:
        return np.load(self.work / LABELS, allow_pickle=False)

    def scratch(self, kind: str, num_bytes: int) -> np.ndarray:
        """A (num_bytes,) uint8 buffer that is used again and again: fresh memory costs more than the copy into it."""
        if kind not in self._scratch or len(self._scratch[kind]) < num_bytes:
            self._scratch[kind] = np.empty(num_bytes, np.uint8)
        return self._scratch[kind][:num_bytes]

    def part(self, name: str) -> Part:
        if name not in self._open_parts:
            self._open_parts[name] = Part(self.work / "parts" / f"{name}.arrow")
        return self._open_parts[name]


@dataclass(frozen=True)
class ShardTask:
    """One shard: consecutive samples of the split's order, as stretches of parts."""

    split: str
    number: int
    num_samples: int
    slices: list[tuple[str, int, int]]  # part, first sample, behind the last
    beton_rows: tuple[int, np.ndarray, int] | None  # see beton.write

    @property
    def name(self) -> str:
        return tar_path(Path(), self.split, self.number).name

    def __len__(self) -> int:
        return self.num_samples

    def __str__(self) -> str:
        return f"shard {self.name}"


@dataclass(frozen=True)
class Made:
    """A written shard."""

    name: str
    num_samples: int
    num_bytes: int  # of the tar; 0 where there is none
    sha256: str  # of the tar


# ----------------------------------------------------------------------------------------------------- task bodies


def check_part(state: State, name: str) -> bool:
    """Whether a part from an earlier run is whole; what is left of a torn one is overwritten later."""
    return parts.check(state.work / "parts" / f"{name}.arrow")


def convert_task(state: State, task: parts.Task) -> tuple[int, int]:
    """Convert one unit. Returns (samples, skipped)."""
    journal = parts.convert_unit(state.source, state.recipe, task, state.work / "parts")
    part = Part(journal)
    return len(part), len(part.skipped)


def write_shard(state: State, task: ShardTask) -> Made:
    """Gather one shard, write its tar and its stretch of the beton, then its journal."""
    pieces = [state.part(name).table.slice(start, stop - start) for name, start, stop in task.slices]
    table = pa.concat_tables(pieces).combine_chunks().replace_schema_metadata()
    order = np.argsort(table.column("hash").to_numpy(), kind="stable")
    piece = np.repeat(np.arange(len(pieces)), [len(p) for p in pieces])[order]  # which part each sample comes from
    table = table.take(pa.array(order))
    labels = state.label_map[table.column("label").to_numpy()]
    table = table.set_column(table.column_names.index("label"), "label", pa.array(labels, pa.int32()))
    _refuse_duplicate_keys(table)
    with contextlib.ExitStack() as stack:
        writers: list = []
        if task.beton_rows is not None:
            writers.append(_BetonWriter(state, task))
        if state.tar_codec:
            writers.append(_TarWriter(state, task))
        for writer in writers:
            stack.enter_context(writer)
        # Block by block, so that memory stays small and the bytes stay in the cache between one copy and the next.
        cursors = np.array([start for _, start, _ in task.slices])
        row_bytes = max(1, int(table["pixels_bytes"][0].as_py() + table["encoded_bytes"][0].as_py()))
        step = max(1, BLOCK_BYTES // row_bytes)
        for first in range(0, len(task), step):
            block = table.slice(first, step)
            rows = {kind: _gather(state, task, kind, block, piece[first : first + step], cursors) for kind in KINDS}
            cursors += np.bincount(piece[first : first + step], minlength=len(cursors))
            for writer in writers:
                writer.write(block, rows["pixels" if writer.codec == "raw" else "encoded"])
    last = writers[-1]  # the index points into the tar where there is one
    added = {"offset": pa.array(np.concatenate(last.offsets)), "bytes": pa.array(np.concatenate(last.sizes))}
    for name, value in (("file", last.file), ("codec", last.codec)):
        added[name] = pa.DictionaryArray.from_arrays(pa.array(np.zeros(len(task), np.int32)), pa.array([value]))
    columns = [added[f.name] if f.name in added else table[f.name] for f in INDEX_SCHEMA]
    made = Made(task.name, len(task), last.num_bytes, last.sha256)
    _write_journal(journal_path(state.work, task.name), pa.table(columns, schema=INDEX_SCHEMA), made)
    return made


def seal_file(state: State, task: tuple[Path, bool]) -> tuple[int, str]:
    """Sync a file to disk and, if asked, hash it. Returns (bytes, sha256 or "")."""
    path, wants_hash = task
    with open(path, "rb") as f:
        os.fsync(f.fileno())
        digest = hashlib.file_digest(f, "sha256").hexdigest() if wants_hash else ""
        return os.fstat(f.fileno()).st_size, digest


# -------------------------------------------------------------------------------------------------------- details


def _refuse_duplicate_keys(table: pa.Table) -> None:
    hashes = table.column("hash").to_numpy()
    for i in np.flatnonzero(hashes[1:] == hashes[:-1]).tolist():
        first, second = table.slice(i, 2).select(["key", "source"]).to_pylist()
        if first["key"] == second["key"]:
            raise Error(f"two images have the key {first['key']!r}: {first['source']} and {second['source']}")


def _gather(state, task, kind: str, block: pa.Table, piece: np.ndarray, cursors: np.ndarray) -> list | np.ndarray:
    """The payloads of one block in order: (n, size) uint8 where all have one size, else n buffers.

    piece: (n,) which part each comes from. cursors: (parts,) where in each part its next sample is.
    """
    sizes = block.column(f"{kind}_bytes").to_numpy()
    ends = np.cumsum(sizes)
    if not ends[-1]:
        return []
    room = state.scratch(kind, int(ends[-1]))
    view = memoryview(room)
    rows = [view[end - size : end] for size, end in zip(sizes.tolist(), ends.tolist(), strict=True)]
    by_piece = np.argsort(piece, kind="stable")
    for stretch in np.split(by_piece, np.flatnonzero(np.diff(piece[by_piece])) + 1):
        source = int(piece[stretch[0]])
        # Samples of one part are in order in the block as in the part: one vectored read puts each in its place.
        state.part(task.slices[source][0]).read_into(kind, int(cursors[source]), [rows[i] for i in stretch])
    if (sizes == sizes[0]).all():
        return room.reshape(len(sizes), -1)
    return rows


class _BetonWriter:
    """Writes a shard's stretch of the split's beton, block by block."""

    def __init__(self, state: State, task: ShardTask):
        self.codec, self.file = state.beton_codec, f"{task.split}.beton"
        self.num_bytes, self.sha256 = 0, ""  # the beton is hashed when it is whole
        self.offsets, self.sizes = [], []
        self._rows, self._done, self._durable = task.beton_rows, 0, state.recipe.durable
        self._path = beton_work_path(state.work, task.split)

    def __enter__(self):
        self._file = open(self._path, "r+b", buffering=0)
        return self

    def write(self, block: pa.Table, payload) -> None:
        first, ptrs, alloc_table_ptr = self._rows
        here = ptrs[self._done : self._done + len(block)]
        column = {name: block.column(name).to_numpy() for name in ("label", "width", "height")}
        beton.write(self._file.fileno(), (first + self._done, here, alloc_table_ptr), self.codec,
                    column["width"], column["height"], column["label"], payload)  # fmt: skip
        self._done += len(block)
        self.offsets.append(here.astype(np.int64))
        self.sizes.append(np.array([len(p) for p in payload], np.int64))

    def __exit__(self, kind, *_):
        if kind is None:
            start, last = int(self._rows[1][0]), int(self._rows[1][-1])
            _write_back(self._file.fileno(), start, last - start, self._durable)
        self._file.close()


class _TarWriter:
    """Writes a shard's tar under a temporary name, block by block, and renames it when it is whole."""

    def __init__(self, state: State, task: ShardTask):
        self.codec, self.file = state.tar_codec, task.name
        self.num_bytes = 0
        self.offsets, self.sizes = [], []
        self._path, self._durable = state.root / task.name, state.recipe.durable
        self._tmp = self._path.with_name(f"{task.name}.tmp")
        self._digest = hashlib.sha256()

    def __enter__(self):
        self._file = open(self._tmp, "wb", buffering=0)
        return self

    def write(self, block: pa.Table, payload) -> None:
        column = {name: block.column(name).to_numpy() for name in ("label", "width", "height")}
        keys = block.column("key").to_pylist()
        buffers, offsets = tar.build(keys, column["label"], self.codec, column["width"], column["height"], payload)
        self.offsets.append(offsets + self.num_bytes)
        self.sizes.append(np.array([len(p) for p in payload], np.int64))
        self._append(b"".join(buffers))

    def _append(self, data: bytes) -> None:
        self._digest.update(data)
        self.num_bytes += len(data)
        view = memoryview(data)
        while len(view):
            view = view[self._file.write(view) :]

    def __exit__(self, kind, *_):
        if kind is None:
            self._append(tar.END)
            _write_back(self._file.fileno(), 0, self.num_bytes, self._durable)
            os.replace(self._tmp, self._path)
        self._file.close()
        self.sha256 = self._digest.hexdigest()


def _write_back(fd: int, offset: int, size: int, durable: bool) -> None:
    """Have a stretch written to disk: now and for certain, or begun now so that sealing does not wait as long."""
    if durable:
        os.fsync(fd)
    elif hasattr(os, "posix_fadvise"):
        os.posix_fadvise(fd, offset, size, os.POSIX_FADV_DONTNEED)  # on dirty pages this starts the writing


# -------------------------------------------------------------------------------------------------------- journal


def beton_work_path(work: Path, split: str) -> Path:
    return work / f"{split}.beton"


def journal_path(work: Path, name: str) -> Path:
    return work / "shards" / f"{name}.arrow"


def _write_journal(path: Path, index: pa.Table, made: Made) -> None:
    metadata = {k: str(v) for k, v in vars(made).items()}
    tmp = path.with_name(f"{path.name}.tmp")
    with open(tmp, "wb") as f:
        with pa.ipc.new_file(f, index.schema.with_metadata(metadata)) as writer:
            writer.write_table(index)
        f.flush()
        os.fsync(f.fileno())
    os.replace(tmp, path)


def is_made(work: Path, name: str) -> bool:
    return journal_path(work, name).exists()


def read_made(work: Path, name: str) -> Made:
    with pa.memory_map(str(journal_path(work, name))) as f:
        m = pa.ipc.open_file(f).schema.metadata
    return Made(name, int(m[b"num_samples"]), int(m[b"num_bytes"]), m[b"sha256"].decode())


def write_index(path: Path, work: Path, names: list[str]) -> None:
    """Write a split's parquet index, one row group a shard, in the order of the split."""
    tmp = path.with_name(f"{path.name}.tmp")
    with pq.ParquetWriter(tmp, INDEX_SCHEMA, compression="zstd") as writer:
        for name in names:
            with pa.memory_map(str(journal_path(work, name))) as f:
                writer.write_table(pa.ipc.open_file(f).read_all().replace_schema_metadata())
    os.replace(tmp, path)
