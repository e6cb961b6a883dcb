"""Stage 2, in the parent: the order of every split is decided, and every shard of it written."""

from __future__ import annotations

import contextlib
import os
import shutil
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from mlpdata.convert import truncation
from mlpdata.convert.deferred import DeferredFailure
from mlpdata.convert.hasher import Hasher
from mlpdata.convert.journal import IndexWriter, ShardRecord, check_shard
from mlpdata.convert.part import Part
from mlpdata.convert.plan import ConversionPlan, is_large
from mlpdata.convert.shard import write_shard
from mlpdata.convert.shuffle import BetonTables, write_shuffle_table
from mlpdata.convert.stage_parts import Totals
from mlpdata.convert.workdir import WorkDir
from mlpdata.convert.worker import ShardTask, WorkerContext
from mlpdata.shards import beton
from mlpdata.shards.manifest import beton_path
from mlpdata.system.engines import Engine
from mlpdata.system.files import sync_dir
from mlpdata.system.progress import Progress


@dataclass(frozen=True)
class WrittenShards:
    """Every shard of the output."""

    records: dict[str, list[ShardRecord]]  # per split, in order
    hashes: dict[Path, str]  # SHA-256 of the betons, where it was taken on the way


@dataclass(frozen=True)
class PartsNeeded:
    """Which units have to be converted again before the shards can be written."""

    units: set[str]
    do_not_decode: bool  # they hold deferred JPEGs that are damaged; else rows that are needed were truncated


def write_shards(
    plan: ConversionPlan, engine: Engine, context: WorkerContext, totals: Totals
) -> WrittenShards | PartsNeeded:
    """Write every shard that is not there yet, the first split and its first shard first."""
    work, durable = plan.work, is_large(totals.payload_bytes)  # now the size is known; the plan had to guess
    _prepare(plan, engine, totals, durable)
    tasks = [task for split in sorted(plan.splits) for task in _shuffle(plan, context, split, totals, durable)]
    checks = [task for task in tasks if work.journal(task.name).exists()]
    with Progress("checking", len(checks), unit="shard", quiet=plan.quiet) as progress:
        results = engine.map(check_shard, checks, progress)
        records: dict[str, ShardRecord] = {task.name: record for task, record in results if record is not None}
    todo = [task for task in tasks if task.name not in records]
    if truncated := truncation.truncated_parts(context, todo):
        return PartsNeeded({context.unit_names[n] for n in truncated}, do_not_decode=False)
    failed: set[int] = set()
    progress = Progress("writing shards", totals.num_samples, quiet=plan.quiet)
    progress.resume(sum(record.num_samples for record in records.values()))
    with contextlib.ExitStack() as stack:
        frontier = _Frontier(plan, context, tasks, stack)
        frontier.advance(records, truncates=durable)
        stack.enter_context(progress)
        for task, result in engine.map(write_shard, todo, progress, _amount):
            if isinstance(result, DeferredFailure):
                failed |= result.parts
            else:
                records[task.name] = result
                frontier.advance(records, truncates=durable and not failed)
        if failed:
            return PartsNeeded({context.unit_names[n] for n in failed}, do_not_decode=True)
        hashes = frontier.finish()
    by_split = {split: [records[t.name] for t in tasks if t.split == split] for split in plan.splits}
    return WrittenShards(by_split, hashes)


def _prepare(plan: ConversionPlan, engine: Engine, totals: Totals, durable: bool) -> None:
    """Get the work directory ready for shards, and the parts ready to be truncated."""
    work = plan.work
    begun = durable and truncation.begun(work, plan.digest) is not None
    if work.shards.exists() and not begun:
        shutil.rmtree(work.shards)  # unsynced shards are not trusted across runs; they are cheap to make again
    work.shards.mkdir(exist_ok=True)
    if durable and not begun:
        if not plan.settings.durable:
            for _ in engine.map(_sync_part, [task.unit.name for task in plan.tasks]):
                pass
            sync_dir(work.parts)
        truncation.begin(work, plan.digest, totals.decoded)
    np.save(work.labels, totals.label_map)


def _sync_part(context: WorkerContext, unit: str) -> None:
    """Bring a part to the disk that was not synced when it was written."""
    part = Part(context.work.part(unit))
    for path in (part.journal, part.data_path):
        with open(path, "rb") as f:
            os.fsync(f.fileno())


def _shuffle(
    plan: ConversionPlan, context: WorkerContext, split: str, totals: Totals, durable: bool
) -> list[ShardTask]:
    """Decide the order of a split, cut it into shards, and make room for its beton."""
    codec = plan.settings.beton_codec
    size_field = {"raw": "pixels_bytes", None: None}.get(codec, "encoded_bytes")
    parts = [context.part(number) for number in range(len(plan.tasks))]
    lengths, tables = write_shuffle_table(context.shuffle_table(split), parts, plan.shard_size, size_field)
    firsts = np.cumsum([0, *lengths]).tolist()
    ends = [0] * len(lengths)
    if tables is not None and codec is not None:
        _prepare_beton(plan.work, split, codec, tables, totals.label_map)
        ends = [*tables.layout.ptrs[firsts[1:-1]].tolist(), tables.layout.file_bytes]
    return [ShardTask(split, k, firsts[k], n, durable, ends[k]) for k, n in enumerate(lengths)]


def _prepare_beton(work: WorkDir, split: str, codec: str, tables: BetonTables, label_map: np.ndarray) -> None:
    path, final = work.beton(split), beton_path(work.root, split)
    if final.exists() and not path.exists():  # an earlier run stopped between this rename and the manifest
        os.replace(final, path)
    # Where a shard is there already so are its payloads; the tables are cheap to write again.
    keep = any(work.shards.glob(f"{split}-*.arrow")) and path.exists()
    columns = {**tables.columns, "labels": label_map.astype(np.int32)[tables.columns["labels"]]}
    beton.create(path, tables.layout, codec, **columns, keep=keep)


def _amount(task: ShardTask, result: ShardRecord | DeferredFailure) -> tuple[int, int]:
    """(samples, bytes), for the progress line."""
    return (result.num_samples, result.num_bytes) if isinstance(result, ShardRecord) else (0, 0)


class _Frontier:
    """The first shard that is not written yet, and what is done to the shards before it, in their order.

    Their rows go into the index, their bytes of the beton are hashed, and the parts that they were made of are
    truncated. Everything ends with the stack.
    """

    def __init__(self, plan: ConversionPlan, context: WorkerContext, tasks: list[ShardTask], stack):
        self._context, self._tasks = context, tasks
        self._num_passed = self._num_truncated = 0
        self._hashers, self._indexes = {}, {}
        for split in plan.splits:
            self._indexes[split] = IndexWriter(plan.work, split, plan.digest)
            stack.callback(self._indexes[split].close)
            if plan.settings.beton_codec and plan.engine == "local":  # only the machine that writes can hash meanwhile
                self._hashers[split] = Hasher(plan.work.beton(split))
                stack.callback(self._hashers[split].stop)

    def advance(self, records: dict[str, ShardRecord], truncates: bool) -> None:
        """Pass every shard that is written, as far as all before it are."""
        while self._num_passed < len(self._tasks) and (task := self._tasks[self._num_passed]).name in records:
            if task.split in self._hashers:
                self._hashers[task.split].allow(task.beton_end)
            self._indexes[task.split].add(task.name)
            self._num_passed += 1
        if truncates and self._num_passed - self._num_truncated > len(self._tasks) // truncation.CUTS:
            truncation.truncate_parts(self._context, self._tasks[self._num_truncated : self._num_passed])
            self._num_truncated = self._num_passed

    def finish(self) -> dict[Path, str]:
        """Bring the indexes into their places. Returns the SHA-256 of the betons that were hashed."""
        for index in self._indexes.values():
            index.finish()
        work = self._context.work
        return {work.beton(split): hasher.finish() for split, hasher in self._hashers.items()}
