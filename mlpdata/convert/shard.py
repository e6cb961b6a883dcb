"""Stage 2, in a worker: one shard of the shuffled order is gathered from the parts and written in both formats."""

from __future__ import annotations

import contextlib
import dataclasses
import hashlib
import os

import numpy as np
import xxhash

from mlpdata.convert.deferred import DeferredFailure, decode_deferred
from mlpdata.convert.journal import ShardRecord, index_rows, write_journal
from mlpdata.convert.lent import add_lent, read_lent
from mlpdata.convert.part import PartRows
from mlpdata.convert.sums import PixelSums, Summary
from mlpdata.convert.worker import ShardTask, WorkerContext
from mlpdata.errors import Error
from mlpdata.shards import beton, tar
from mlpdata.shards.manifest import beton_path
from mlpdata.system.disk import Writer

BLOCK_BYTES = 8 << 20  # of payloads gathered at a time


def write_shard(context: WorkerContext, task: ShardTask) -> ShardRecord | DeferredFailure:
    """Gather one shard, write its tar and its samples of the beton, then its journal."""
    settings = context.settings
    used, starts, stops = context.shuffle_table(task.split).rows_of(task.number)
    extents = zip(used.tolist(), starts.tolist(), stops.tolist(), strict=True)
    parts = [context.part(number).rows_with_text(start, stop) for number, start, stop in extents]
    rows = np.concatenate([part.rows[::-1] for part in parts])  # a part's hashes descend, the shard's ascend
    part_of = np.repeat(used, stops - starts)
    order = np.argsort(rows["hash"], kind="stable")
    keys, sources = _texts(parts, order)
    rows, part_of = rows[order], part_of[order]
    _refuse_duplicate_keys(rows, keys, sources)
    labels = context.label_map[rows["label"]].astype(np.int32)
    sums = PixelSums() if task.split == settings.training_split else None
    failed: set[int] = set()
    with contextlib.ExitStack() as stack:
        writers: list[_BetonWriter | _TarWriter] = []
        if settings.beton_codec:
            writers.append(stack.enter_context(contextlib.closing(_BetonWriter(context, task, settings.beton_codec))))
        if settings.tar_codec:
            writers.append(stack.enter_context(contextlib.closing(_TarWriter(context, task, settings.tar_codec))))
        # Block by block: memory stays small, and the bytes stay in the cache between one copy and the next.
        total = int(rows["pixels_bytes"].sum(dtype=np.int64) + rows["encoded_bytes"].sum(dtype=np.int64))
        step = max(1, BLOCK_BYTES * len(rows) // max(1, total))
        for first in range(0, len(rows), step):
            block = slice(first, first + step)
            payloads = _gather(context, rows[block], part_of[block], sums, failed)
            for writer in writers:
                writer.write(rows[block], labels[block], keys[block], payloads[_kind(writer.codec)])
        if failed:  # only now: all damaged JPEGs of the shard are known
            return DeferredFailure(failed)
        for writer in writers:
            writer.finish()
    last = writers[-1]  # the index points into the tar where there is one
    summary = sums.result() if sums else Summary()
    record = ShardRecord(task.name, len(rows), last.num_bytes, last.sha256, summary)
    if isinstance(writers[0], _BetonWriter) and task.durable:
        num_bytes, check = writers[0].written()
        record = dataclasses.replace(record, beton_bytes=num_bytes, beton_check=check)
    numbers = {"label": labels, "offset": np.concatenate(last.offsets), "bytes": rows[f"{_kind(last.codec)}_bytes"]}
    index = index_rows(rows, {"key": keys, "source": sources}, last.file, last.codec, numbers)
    write_journal(context, task, record, index)
    return record


def _kind(codec: str) -> str:
    """Which payload of a sample a codec stores."""
    return "pixels" if codec == "raw" else "encoded"


# --------------------------------------------------------------------------------------------------------- gather


def _texts(parts: list[PartRows], order: np.ndarray) -> tuple[list[bytes], list[bytes]]:
    """Keys and source paths of the shard's rows. order: (N,) positions in the parts' rows, each part's reversed."""
    text = b"".join(part.text for part in parts)
    offsets = np.cumsum([0, *(len(part.text) for part in parts)])[:-1]
    starts = [p.rows["text"][::-1] - p.rows["text"][0] + offset for p, offset in zip(parts, offsets, strict=True)]
    start = np.concatenate(starts)[order]
    middle = start + np.concatenate([part.rows["key_bytes"][::-1] for part in parts])[order]
    end = middle + np.concatenate([part.rows["source_bytes"][::-1] for part in parts])[order]
    start, middle, end = start.tolist(), middle.tolist(), end.tolist()
    keys = [text[a:b] for a, b in zip(start, middle, strict=True)]
    return keys, [text[a:b] for a, b in zip(middle, end, strict=True)]


def _refuse_duplicate_keys(rows: np.ndarray, keys: list[bytes], sources: list[bytes]) -> None:
    """Raise Error where a key is there twice. Equal keys have equal hashes, and those follow one another."""
    seen: dict[bytes, int] = {}  # of the keys with the present hash: where each is
    last = -2
    for i in np.flatnonzero(rows["hash"][1:] == rows["hash"][:-1]).tolist():
        seen = seen if i == last + 1 else {keys[i]: i}
        first, last = seen.setdefault(keys[i + 1], i + 1), i
        if first != i + 1:
            both = f"{sources[first].decode()} and {sources[i + 1].decode()}"
            raise Error(f"two images have the key {keys[first].decode()!r}: {both}")


def _gather(
    context: WorkerContext, rows: np.ndarray, part_of: np.ndarray, sums: PixelSums | None, failed: set[int]
) -> dict[str, list | np.ndarray]:
    """The payloads of one block by kind, in order: (n, size) uint8 where all have one size, else n buffers.

    rows:    (n,) ROW; digests of what is decoded here are filled in, and its pixels are added to the sums.
    part_of: (n,) the number of the part that each sample comes from.
    failed:  the parts are added in which a deferred JPEG does not decode.
    """
    payloads: dict[str, list | np.ndarray] = {}
    buffers: dict[str, list] = {}
    for kind in ("pixels", "encoded"):
        sizes = rows[f"{kind}_bytes"]
        ends = np.cumsum(sizes, dtype=np.int64)
        scratch = context.scratch(kind, int(ends[-1]))
        view = scratch.data
        buffers[kind] = [view[end - size : end] for size, end in zip(sizes.tolist(), ends.tolist(), strict=True)]
        payloads[kind] = scratch.reshape(len(rows), -1) if (sizes == sizes[0]).all() else buffers[kind]
    pixels, encoded = buffers.values()
    has_pixels = rows["has_pixels"].tolist()
    lent = np.zeros(len(rows), bool)
    by_part = np.argsort(part_of, kind="stable")[::-1]
    for run in np.split(by_part, np.flatnonzero(np.diff(part_of[by_part])) + 1):
        # The samples of one part lie side by side in it: one vectored read puts each payload in its place.
        first = int(run[0])
        part = context.part(int(part_of[first]))
        if part.lent is not None:
            ascending = run[::-1]
            buffers_of = ([of_kind[i] for i in ascending.tolist()] for of_kind in (pixels, encoded))
            read_lent(context.source, part, rows[ascending], *buffers_of)
            lent[run] = True
            continue
        targets = [b for i in run.tolist() for b in ((pixels[i], encoded[i]) if has_pixels[i] else (encoded[i],))]
        part.read_payloads(int(rows["data"][first]), targets)
    if sums is not None:
        add_lent(context.settings, sums, payloads["pixels"], lent)
    failed |= decode_deferred(rows, part_of, encoded, payloads["pixels"], sums)
    return payloads


# ---------------------------------------------------------------------------------------------------------- write


class _BetonWriter:
    """Writes a shard's samples of the split's beton, block by block."""

    num_bytes, sha256 = 0, ""  # of a tar; the beton is hashed as a whole

    def __init__(self, context: WorkerContext, task: ShardTask, codec: str):
        self.codec, self.file = codec, beton_path(context.work.root, task.split).name
        self.offsets: list[np.ndarray] = []
        self._num_written, self._durable = 0, task.durable
        self._pointers = context.shuffle_table(task.split).pointers(task.first, task.num_samples)
        self._first = int(self._pointers[0])
        self._file = Writer(context.work.beton(task.split), context.buffers, start=self._first)
        self._check = xxhash.xxh3_64()

    def written(self) -> tuple[int, str]:
        """(bytes, XXH3-64 of them) from the first sample on."""
        return self._file.position - self._first, self._check.hexdigest()

    def _put(self, data, offset: int) -> None:
        if self._durable:  # else no later run believes the shard
            self._check.update(bytes(max(0, offset - self._file.position)))
            self._check.update(data)
        self._file.write(data, offset)

    def write(self, rows: np.ndarray, labels: np.ndarray, keys: list[bytes], payload) -> None:
        pointers = self._pointers[self._num_written : self._num_written + len(rows)]
        beton.write(self._put, pointers, payload)
        self._num_written += len(rows)
        self.offsets.append(pointers)

    def finish(self) -> None:
        self._file.finish(self._durable)

    def close(self) -> None:
        self._file.close()


class _TarWriter:
    """Writes a shard's tar under a temporary name, block by block, and renames it when it is whole."""

    def __init__(self, context: WorkerContext, task: ShardTask, codec: str):
        self.codec, self.file = codec, task.name
        self.offsets: list[np.ndarray] = []
        self._path, self._durable = context.work.root / task.name, task.durable
        self._tmp = context.work.temporary(task.name)  # removed with the work directory if no run finishes it
        self._digest = hashlib.sha256()
        self._file = Writer(self._tmp, context.buffers, os.O_RDWR | os.O_CREAT | os.O_TRUNC)

    @property
    def num_bytes(self) -> int:
        return self._file.position

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
