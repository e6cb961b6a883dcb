"""Assembly: one shard of the shuffled order, gathered from the parts and written in both formats.

Runs in worker processes; `convert` hands out the tasks. A shard's journal (`.convert/shards/NAME.arrow`) holds its rows
of the index and is renamed into place when the shard's bytes are written.
"""

from __future__ import annotations

import hashlib
import os
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from mlpdata import beton, parts, tar
from mlpdata.manifest import Error, tar_path, work_path
from mlpdata.parts import Part
from mlpdata.sources import Source

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
    table = table.take(pa.array(order))
    _refuse_duplicate_keys(table)
    column = {name: table.column(name).to_numpy() for name in ("label", "width", "height")}
    keys = table.column("key").to_pylist()
    payloads = {}

    def payload(codec: str):
        kind = "pixels" if codec == "raw" else "encoded"
        if kind not in payloads:
            payloads[kind] = _gather(state, task, kind, order)
        return payloads[kind]

    offsets = sizes = None
    if task.beton_rows is not None:
        rows = payload(state.beton_codec)
        with open(beton_work_path(state.work, task.split), "r+b") as f:
            beton.write(
                f.fileno(), task.beton_rows, state.beton_codec, column["width"], column["height"], column["label"], rows
            )
            if state.recipe.durable:
                os.fsync(f.fileno())
        offsets, sizes = task.beton_rows[1].astype(np.int64), np.array([len(p) for p in rows], np.int64)
        file, codec = f"{task.split}.beton", state.beton_codec
    num_bytes, sha256 = 0, ""
    if state.tar_codec:
        rows = payload(state.tar_codec)
        buffers, offsets = tar.build(keys, column["label"], state.tar_codec, column["width"], column["height"], rows)
        sizes = np.array([len(p) for p in rows], np.int64)
        num_bytes, sha256 = _write_tar(state.root / task.name, buffers, state.recipe.durable)
        file, codec = task.name, state.tar_codec
    constant = {"file": file, "codec": codec}
    added = {"offset": pa.array(offsets), "bytes": pa.array(sizes)}
    for name, value in constant.items():
        added[name] = pa.DictionaryArray.from_arrays(pa.array(np.zeros(len(task), np.int32)), pa.array([value]))
    index = pa.table(
        [added.get(f.name, table[f.name] if f.name in table.column_names else None) for f in INDEX_SCHEMA],
        schema=INDEX_SCHEMA,
    )
    made = Made(task.name, len(task), num_bytes, sha256)
    _write_journal(journal_path(state.work, task.name), index, made)
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


def _gather(state: State, task: ShardTask, kind: str, order: np.ndarray) -> np.ndarray | list[memoryview]:
    """The shard's payloads in order: (n, size) uint8 where all have one size, else n buffers."""
    stretches = [state.part(name).read(kind, start, stop) for name, start, stop in task.slices]
    sizes = np.concatenate([np.diff(offsets) for _, offsets in stretches])
    if (sizes == sizes[0]).all():
        place = np.empty(len(order), np.int64)
        place[order] = np.arange(len(order))
        out = np.empty((len(order), int(sizes[0])), np.uint8)
        at = 0
        for buffer, offsets in stretches:
            n = len(offsets) - 1
            out[place[at : at + n]] = np.frombuffer(buffer, np.uint8).reshape(n, -1)
            at += n
        return out
    views = [buffer[a:b] for buffer, offsets in stretches for a, b in pairwise(offsets)]
    return [views[i] for i in order]


def _write_tar(path: Path, buffers: list, durable: bool) -> tuple[int, str]:
    tmp = path.with_name(f"{path.name}.tmp")
    digest, num_bytes = hashlib.sha256(), 0
    with open(tmp, "wb", buffering=0) as f:
        for start in range(0, len(buffers), 5000):  # a few MB at a time
            block = b"".join(buffers[start : start + 5000])
            digest.update(block)
            num_bytes += len(block)
            view = memoryview(block)
            while len(view):
                view = view[f.write(view) :]
        if durable:
            os.fsync(f.fileno())
    os.replace(tmp, path)
    return num_bytes, digest.hexdigest()


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


def forget(work: Path, split: str) -> None:
    """Have all shards of a split written again."""
    for path in (work / "shards").glob(f"{split}-*.arrow"):
        path.unlink()


def write_index(path: Path, work: Path, names: list[str]) -> None:
    """Write a split's parquet index, one row group a shard, in the order of the split."""
    tmp = path.with_name(f"{path.name}.tmp")
    with pq.ParquetWriter(tmp, INDEX_SCHEMA, compression="zstd") as writer:
        for name in names:
            with pa.memory_map(str(journal_path(work, name))) as f:
                writer.write_table(pa.ipc.open_file(f).read_all().replace_schema_metadata())
    os.replace(tmp, path)
