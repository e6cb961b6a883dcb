"""Assembly: one shard of the shuffled order, gathered from the parts and written in both formats.

Runs in worker processes; `convert` hands out the tasks. A shard's journal (`.convert/shards/NAME.arrow`) holds a
checksum, which also covers what conversion it is of, and the shard's rows of the index, and is renamed into place when
the shard's bytes are written.
"""

from __future__ import annotations

import contextlib
import dataclasses
import hashlib
import io
import json
import os
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import xxhash

from mlpdata import image
from mlpdata.convert import parts, units
from mlpdata.convert.parts import Part
from mlpdata.convert.shuffle import Order
from mlpdata.convert.sums import PixelSums, Summary
from mlpdata.errors import Error
from mlpdata.shards import beton, tar
from mlpdata.shards.index import SCHEMA
from mlpdata.shards.manifest import tar_path, work_path
from mlpdata.sources import Source
from mlpdata.system.disk import Buffers, Writer

PARTS, SHARDS = "parts", "shards"  # folders of journals in the work directory
LABELS = "labels.npy"  # in the work directory: the output's label of each of the source's
CHECK_BYTES = 64  # in front of a shard's journal; Arrow likes its bytes aligned
BLOCK_BYTES = 8 << 20  # payload gathered at a time

UNIQUE = ("key", "source", "offset", "bytes", "digest")  # a dictionary of their values only makes the index larger


@dataclass
class State:
    """What every worker knows."""

    source: Source
    recipe: units.Recipe
    root: Path
    beton_codec: str | None
    tar_codec: str | None
    unit_names: list[str]  # all of the plan, in its order: parts are known by their number in it
    plan_digest: str  # what an earlier run left is of this conversion only if its checksums say so

    def __post_init__(self):
        self.work = work_path(self.root)
        self._image_library = image.library_versions()
        self._parts: dict[int, Part] = {}
        self._scratch: dict[str, np.ndarray] = {}

    def arrive(self) -> None:
        """Check that another machine of a cluster can do the work. Raises Error."""
        node, needed = os.uname().nodename, "--engine ray needs it on a disk that all nodes share, under the same path"
        for path in (str(self.work), *filter(os.path.isabs, self.source.files)):
            if not os.path.exists(path):
                raise Error(f"node {node} does not see {path}: {needed}")
        if image.library_versions() != self._image_library:
            theirs = ", ".join(image.library_versions().values())
            raise Error(
                f"node {node} has {theirs}, this machine {', '.join(self._image_library.values())}: make them equal"
            )

    @cached_property
    def label_map(self) -> np.ndarray:
        return np.load(self.work / LABELS, allow_pickle=False)

    def part_key(self, task: units.Task) -> str:
        """What a part is of."""
        return f"{self.plan_digest} {task.unit.name} {sorted(task.limits.items()) if task.limits else ''}"

    def order(self, split: str) -> Order:
        return Order(self.work, split, len(self.unit_names))

    def scratch(self, kind: str, num_bytes: int) -> np.ndarray:
        """A (num_bytes,) uint8 buffer that is used again and again: fresh memory costs more than the copy into it."""
        if kind not in self._scratch or len(self._scratch[kind]) < num_bytes:
            self._scratch[kind] = np.empty(num_bytes, np.uint8)
        return self._scratch[kind][:num_bytes]

    @cached_property
    def buffers(self) -> Buffers:
        return Buffers()

    def part(self, number: int) -> Part:
        if number not in self._parts:
            self._parts[number] = Part(part_path(self.work, self.unit_names[number]))
        return self._parts[number]


@dataclass(frozen=True)
class ShardTask:
    """One shard: consecutive samples of the split's order."""

    split: str
    number: int
    first: int
    num_samples: int
    durable: bool  # sync it before it counts
    beton_end: int  # the byte of the beton behind its samples, and behind all tables for the last one; 0: no beton

    @property
    def name(self) -> str:
        return tar_path(Path(), self.split, self.number).name

    def __len__(self) -> int:
        return self.num_samples

    def __str__(self) -> str:
        return f"shard {self.name}"


@dataclass(frozen=True)
class Made:
    """A written shard. Where it is durable it can be checked when a later run finds it."""

    name: str
    num_samples: int
    num_bytes: int  # of the tar; 0 where there is none
    sha256: str  # of the tar
    summary: Summary  # of the pixels that were decoded here
    beton_bytes: int = 0  # of its stretch of the beton, from its first sample on; 0 where there is none
    beton_check: str = ""  # XXH3-64 of them


@dataclass(frozen=True)
class Undecodable:
    """A shard that cannot be: JPEGs do not decode that were left for later."""

    parts: set[int]  # the numbers of those that have them


# ----------------------------------------------------------------------------------------------------- task bodies


@dataclass(frozen=True)
class PartFound:
    """What a part holds."""

    counts: dict[str, int]  # samples by split
    num_skipped: int

    @classmethod
    def of(cls, record: dict) -> PartFound:
        counts = {split: stop - start for split, (start, stop) in record["splits"].items()}
        return cls(counts, sum(row.get("is_data", True) for row in record["skipped"]))


@dataclass(frozen=True)
class CheckPart:
    """A part from an earlier run, to be looked at. may_be_cut: see parts.check."""

    task: units.Task
    may_be_cut: bool

    def __str__(self) -> str:
        return f"the check of {self.task}"


def check_part(state: State, check: CheckPart) -> PartFound | None:
    """What a part from an earlier run holds; None where it is torn or of something else, and to be overwritten."""
    journal = part_path(state.work, check.task.unit.name)
    record = parts.check(journal, state.part_key(check.task), check.may_be_cut)
    return None if record is None else PartFound.of(record)


def check_made(state: State, task: ShardTask) -> Made | None:
    """A shard from an earlier run; None where anything of it is not as its journal says."""
    try:
        table = _read_journal(state.work, task.name, state.plan_digest)
        if table is None:
            return None
        made = _made(table)
        if state.tar_codec:
            with open(state.root / task.name, "rb") as f:
                if hashlib.file_digest(f, "sha256").hexdigest() != made.sha256:
                    return None
        if state.beton_codec:
            with open(beton_work_path(state.work, task.split), "rb") as f:
                f.seek(int(state.order(task.split).pointers(task.first, 1)[0]))
                check, left = xxhash.xxh3_64(), made.beton_bytes
                while chunk := f.read(min(left, BLOCK_BYTES)):
                    check.update(chunk)
                    left -= len(chunk)
            if left or check.hexdigest() != made.beton_check:
                return None
    except (FileNotFoundError, NotADirectoryError, IsADirectoryError):
        return None
    return made


def sync_part(state: State, name: str) -> None:
    """Bring a part to the disk that was not synced when it was written."""
    journal = part_path(state.work, name)
    for path in (journal, Part(journal).data_path):
        with open(path, "rb") as f:
            os.fsync(f.fileno())


def convert_task(state: State, task: units.Task) -> PartFound:
    """Convert one unit."""
    return PartFound.of(units.convert_unit(state.source, state.recipe, task, state.work / PARTS, state.part_key(task)))


def write_shard(state: State, task: ShardTask) -> Made | Undecodable:
    """Gather one shard, write its tar and its stretch of the beton, then its journal."""
    used, starts, stops = state.order(task.split).stretches(task.number)
    ends = zip(used.tolist(), starts.tolist(), stops.tolist(), strict=True)
    stretches = [state.part(p).stretch(start, stop) for p, start, stop in ends]
    rows = np.concatenate([s.rows[::-1] for s in stretches])  # a part's hashes go down, the shard's up
    piece = np.repeat(np.arange(len(stretches)), stops - starts)
    order = np.argsort(rows["hash"], kind="stable")
    keys, sources = _texts(stretches, order)
    rows, piece = rows[order], used[piece[order]]
    _refuse_duplicate_keys(rows, keys, sources)
    labels = state.label_map[rows["label"]].astype(np.int32)
    sums = PixelSums() if task.split == state.recipe.training_split else None
    undecodable: set[int] = set()
    with contextlib.ExitStack() as stack:
        writers: list = []
        if state.beton_codec:
            writers.append(stack.enter_context(contextlib.closing(_BetonWriter(state, task))))
        if state.tar_codec:
            writers.append(stack.enter_context(contextlib.closing(_TarWriter(state, task))))
        # Block by block, so that memory stays small and the bytes stay in the cache between one copy and the next.
        total = int(rows["pixels_bytes"].sum(dtype=np.int64) + rows["encoded_bytes"].sum(dtype=np.int64))
        step = max(1, BLOCK_BYTES * len(rows) // max(1, total))
        for first in range(0, len(rows), step):
            here = slice(first, first + step)
            payloads = _gather(state, rows[here], piece[here], sums, undecodable)
            for writer in writers:
                writer.write(rows[here], labels[here], keys[here], payloads[_kind(writer.codec)])
        if undecodable:  # all of the shard's are known now
            return Undecodable(undecodable)
        for writer in writers:
            writer.finish()
    last = writers[-1]  # the index points into the tar where there is one
    made = Made(task.name, len(rows), last.num_bytes, last.sha256, sums.result() if sums else Summary())
    if state.beton_codec:
        made = dataclasses.replace(made, **writers[0].stretch)
    columns = {"key": _text_array(keys), "source": _text_array(sources)}
    for name, value in (("file", last.file), ("codec", last.codec)):
        numbers = _number_array(pa.int32(), np.zeros(len(rows)))
        columns[name] = pa.DictionaryArray.from_arrays(numbers, _text_array([value.encode()]))
    numbers = {"label": labels, "offset": np.concatenate(last.offsets), "bytes": rows[f"{_kind(last.codec)}_bytes"]}
    for field in SCHEMA:
        if field.name not in columns:
            values = numbers[field.name] if field.name in numbers else rows[field.name]
            columns[field.name] = _number_array(field.type, values)
    index = pa.Table.from_arrays([columns[name] for name in SCHEMA.names], schema=SCHEMA)
    _write_journal(journal_path(state.work, task.name), index, made, task, state.plan_digest)
    return made


@dataclass(frozen=True)
class FileTask:
    """A file of the finished directory. hashes: whether its SHA-256 is not known yet."""

    path: Path
    hashes: bool

    def __str__(self) -> str:
        return str(self.path)


def seal_file(state: State, task: FileTask) -> tuple[int, str]:
    """Sync a file to disk and, if asked, hash it. Returns (bytes, sha256 or "")."""
    with open(task.path, "rb") as f:
        os.fsync(f.fileno())
        digest = hashlib.file_digest(f, "sha256").hexdigest() if task.hashes else ""
        return os.fstat(f.fileno()).st_size, digest


# -------------------------------------------------------------------------------------------------------- details


def _texts(stretches: list[parts.Stretch], order: np.ndarray) -> tuple[list[bytes], list[bytes]]:
    """Keys and source paths of the shard's rows. order: (N,) positions in the stretches, each of them upside down."""
    text = b"".join(s.text for s in stretches)
    behind = np.cumsum([0, *(len(s.text) for s in stretches)])  # where the text of each stretch starts
    starts = [s.rows["text"][::-1] - s.rows["text"][0] + at for s, at in zip(stretches, behind[:-1], strict=True)]
    start = np.concatenate(starts)[order]
    middle = start + np.concatenate([s.rows["key_bytes"][::-1] for s in stretches])[order]
    end = middle + np.concatenate([s.rows["source_bytes"][::-1] for s in stretches])[order]
    start, middle, end = start.tolist(), middle.tolist(), end.tolist()
    keys = [text[a:b] for a, b in zip(start, middle, strict=True)]
    return keys, [text[a:b] for a, b in zip(middle, end, strict=True)]


def _kind(codec: str) -> str:
    return "pixels" if codec == "raw" else "encoded"


# Straight from their buffers: pa.array looks for pandas, and importing that costs more than writing a shard.


def _text_array(values: list[bytes]) -> pa.StringArray:
    offsets = np.cumsum([0, *map(len, values)]).astype(np.int32)
    return pa.StringArray.from_buffers(len(values), pa.py_buffer(offsets), pa.py_buffer(b"".join(values)))


def _number_array(kind: pa.DataType, values: np.ndarray) -> pa.Array:
    values = np.ascontiguousarray(values, str(kind))
    return pa.Array.from_buffers(kind, len(values), [None, pa.py_buffer(values)])


def _refuse_duplicate_keys(rows: np.ndarray, keys: list[bytes], sources: list[bytes]) -> None:
    seen: dict[bytes, int] = {}  # where each key of those with one hash is
    last = -2
    for i in np.flatnonzero(rows["hash"][1:] == rows["hash"][:-1]).tolist():
        seen = seen if i == last + 1 else {keys[i]: i}
        first, last = seen.setdefault(keys[i + 1], i + 1), i
        if first != i + 1:
            places = f"{sources[first].decode()} and {sources[i + 1].decode()}"
            raise Error(f"two images have the key {keys[first].decode()!r}: {places}")


def _gather(
    state: State, rows: np.ndarray, piece: np.ndarray, sums: PixelSums | None, undecodable: set[int]
) -> dict[str, list | np.ndarray]:
    """The payloads of one block by kind, in order: (n, size) uint8 where all have one size, else n buffers.

    rows: (n,) ROW; the digest of what is decoded here is filled in, and its pixels are added to the sums.
    piece: (n,) which part each comes from.
    undecodable: the numbers of parts in which something does not decode are added.
    """
    gathered: dict[str, list | np.ndarray] = {}
    buffers: dict[str, list] = {}
    for kind in ("pixels", "encoded"):
        sizes = rows[f"{kind}_bytes"]
        ends = np.cumsum(sizes, dtype=np.int64)
        room = state.scratch(kind, int(ends[-1]))
        view = memoryview(room)
        buffers[kind] = [view[end - size : end] for size, end in zip(sizes.tolist(), ends.tolist(), strict=True)]
        gathered[kind] = room.reshape(len(rows), -1) if (sizes == sizes[0]).all() else buffers[kind]
    pixels, encoded = buffers.values()
    there = rows["has_pixels"].tolist()
    by_piece = np.argsort(piece, kind="stable")[::-1]
    for run in np.split(by_piece, np.flatnonzero(np.diff(piece[by_piece])) + 1):
        # Samples of one part lie side by side in it: one vectored read puts each in its place.
        first = int(run[0])
        room = [b for i in run.tolist() for b in ((pixels[i], encoded[i]) if there[i] else (encoded[i],))]
        parts.read_payloads(state.part(int(piece[first])).data_path, int(rows["data"][first]), room)
    deferred = parts.deferred(rows)
    shapes = zip(rows["height"][deferred].tolist(), rows["width"][deferred].tolist(), strict=True)
    digests = []
    for i, (height, width) in zip(deferred.tolist(), shapes, strict=True):
        out = np.frombuffer(pixels[i], np.uint8).reshape(height, width, 3)
        try:
            image.decode_kept(encoded[i], out)
        except image.ImageError:
            undecodable.add(int(piece[i]))
        digests.append(xxhash.xxh3_64_intdigest(out))
    rows["digest"][deferred] = digests
    if sums is not None and len(deferred):
        images = gathered["pixels"]
        if isinstance(images, np.ndarray):
            sums.add_many(images if len(deferred) == len(rows) else images[deferred])
        else:
            for i in deferred.tolist():
                sums.add_many(np.frombuffer(images[i], np.uint8).reshape(1, -1))
    return gathered


class _BetonWriter:
    """Writes a shard's stretch of the split's beton, block by block."""

    def __init__(self, state: State, task: ShardTask):
        self.codec, self.file = state.beton_codec, f"{task.split}.beton"
        self.num_bytes, self.sha256 = 0, ""  # the beton is hashed when it is whole
        self.offsets: list[np.ndarray] = []
        self._done, self._durable = 0, task.durable
        self._ptrs = state.order(task.split).pointers(task.first, len(task))
        self._first = int(self._ptrs[0])
        self._file = Writer(beton_work_path(state.work, task.split), state.buffers, at=self._first)
        self._check = xxhash.xxh3_64()

    @property
    def stretch(self) -> dict:
        """What Made says of it."""
        if not self._durable:
            return {}
        return {"beton_bytes": self._file.at - self._first, "beton_check": self._check.hexdigest()}

    def _put(self, data, at: int) -> None:
        if self._durable:  # else no later run believes it
            self._check.update(bytes(max(0, at - self._file.at)))
            self._check.update(data)
        self._file.write(data, at)

    def write(self, rows: np.ndarray, labels: np.ndarray, keys: list[bytes], payload) -> None:
        ptrs = self._ptrs[self._done : self._done + len(rows)]
        beton.write(self._put, ptrs, payload)
        self._done += len(rows)
        self.offsets.append(ptrs)

    def finish(self) -> None:
        self._file.finish(self._durable)

    def close(self) -> None:
        self._file.close()


class _TarWriter:
    """Writes a shard's tar under a temporary name, block by block, and renames it when it is whole."""

    def __init__(self, state: State, task: ShardTask):
        self.codec, self.file = state.tar_codec, task.name
        self.offsets: list[np.ndarray] = []
        self._path, self._durable = state.root / task.name, task.durable
        self._tmp = state.work / f"{task.name}.tmp"  # there it goes with the rest if nobody comes back for it
        self._digest = hashlib.sha256()
        self._file = Writer(self._tmp, state.buffers, os.O_RDWR | os.O_CREAT | os.O_TRUNC)

    @property
    def num_bytes(self) -> int:
        return self._file.at

    @property
    def sha256(self) -> str:
        return self._digest.hexdigest()

    def write(self, rows: np.ndarray, labels: np.ndarray, keys: list[bytes], payload) -> None:
        buffers, offsets = tar.build(keys, labels, self.codec, rows["width"], rows["height"], payload)
        self.offsets.append(offsets + self.num_bytes)
        for buffer in buffers:
            self._append(buffer)

    def _append(self, data) -> None:
        self._digest.update(data)
        self._file.write(data)

    def finish(self) -> None:
        self._append(tar.END)
        self._file.finish(self._durable)
        os.replace(self._tmp, self._path)

    def close(self) -> None:
        self._file.close()


# -------------------------------------------------------------------------------------------------------- journal


def part_path(work: Path, name: str) -> Path:
    return work / PARTS / f"{name}.rows"


def beton_work_path(work: Path, split: str) -> Path:
    return work / f"{split}.beton"


def journal_path(work: Path, name: str) -> Path:
    return work / SHARDS / f"{name}.arrow"


def _write_journal(path: Path, index: pa.Table, made: Made, task: ShardTask, plan_digest: str) -> None:
    metadata = {"made": json.dumps(dataclasses.asdict(made))}
    body = io.BytesIO()
    with pa.ipc.new_file(body, index.schema.with_metadata(metadata)) as writer:
        writer.write_table(index)
    check = parts.keyed_check(f"{plan_digest} {task.name}", body.getbuffer()).intdigest()
    tmp = path.with_name(f"{path.name}.tmp")
    with open(tmp, "wb") as f:
        f.write(check.to_bytes(CHECK_BYTES, "little"))
        f.write(body.getbuffer())
        if task.durable:  # else nobody believes it in a later run, and a sync waits for what others have written too
            f.flush()
            os.fsync(f.fileno())
    os.replace(tmp, path)


def _read_journal(work: Path, name: str, plan_digest: str) -> pa.Table | None:
    """A shard's rows of the index; None where the journal is damaged, or of something else. Raises OSError."""
    data = memoryview(journal_path(work, name).read_bytes())
    body = data[CHECK_BYTES:]  # looked at before it is parsed: Arrow ends the process at some damage
    if parts.keyed_check(f"{plan_digest} {name}", body).intdigest() != int.from_bytes(data[:CHECK_BYTES], "little"):
        return None
    return pa.ipc.open_file(pa.py_buffer(body)).read_all()


def _made(table: pa.Table) -> Made:
    made = json.loads(table.schema.metadata[b"made"])
    return Made(**{**made, "summary": Summary(**made["summary"])})


class IndexWriter:
    """A split's parquet index, one row group a shard, in the order of the split; in its place only when finished."""

    def __init__(self, path: Path, work: Path, plan_digest: str):
        self._path, self._work, self._tmp = path, work, work / f"{path.name}.tmp"
        self._plan_digest = plan_digest
        repeating = [name for name in SCHEMA.names if name not in UNIQUE]
        self._writer = pq.ParquetWriter(self._tmp, SCHEMA, compression="zstd", use_dictionary=repeating)

    def add(self, name: str) -> None:
        """Append the rows of a shard that is made."""
        table = _read_journal(self._work, name, self._plan_digest)
        if table is None:
            path = journal_path(self._work, name)
            raise Error(f"{path} was changed while the work went on; run the same command again to go on")
        self._writer.write_table(table.replace_schema_metadata())

    def finish(self) -> None:
        self._writer.close()
        os.replace(self._tmp, self._path)

    def close(self) -> None:
        self._writer.close()
