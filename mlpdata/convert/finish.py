"""The end of a conversion: listings and card, every file synced and hashed, and last of all the manifest."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from mlpdata import labels
from mlpdata.convert.plan import ConversionPlan
from mlpdata.convert.stage_parts import Totals, iter_skipped
from mlpdata.convert.stage_shards import ShardRecord, WrittenShards
from mlpdata.convert.worker import WorkerContext
from mlpdata.derive.source import ShardSource
from mlpdata.shards import card
from mlpdata.shards.manifest import Manifest, SplitInfo, beton_path, index_path, real_path, skipped_path
from mlpdata.system.engines import Engine
from mlpdata.system.files import sync_dir


@dataclass(frozen=True)
class FileTask:
    """A file of the finished directory. hashes: whether its SHA-256 is not known yet."""

    path: Path
    hashes: bool

    def __str__(self) -> str:
        return str(self.path)


def finish_file(context: WorkerContext, task: FileTask) -> tuple[int, str]:
    """Sync a file to disk and, if asked, hash it. Returns (bytes, sha256 or "")."""
    with open(task.path, "rb") as f:
        os.fsync(f.fileno())
        digest = hashlib.file_digest(f, "sha256").hexdigest() if task.hashes else ""
        return os.fstat(f.fileno()).st_size, digest


def finish(
    plan: ConversionPlan, engine: Engine, context: WorkerContext, totals: Totals, shards: WrittenShards
) -> Manifest:
    """Write listings and the card, move the betons into place, and last of all write the manifest."""
    root, work, settings = plan.root, plan.work, plan.settings
    hashes, paths = dict(shards.hashes), []
    for split in plan.splits:
        paths.append(index_path(root, split))
        if settings.beton_codec:
            paths.append(work.beton(split))
        for record in shards.records[split]:
            if settings.tar_codec:
                paths.append(root / record.name)
                hashes[root / record.name] = record.sha256
            totals.summary.add(record.summary)
    manifest, classes = _manifest(plan, totals, shards)
    paths += card.write_documents(root, manifest, plan.spec.title, classes)
    for split, find in _real_labels(plan, classes):
        if path := card.write_real(real_path(root, split), index_path(root, split), find):
            paths.append(path)
    paths.append(card.write_skipped(skipped_path(root), iter_skipped(context)))
    # The large files are synced and hashed by the workers, side by side.
    files = {}
    for task, (num_bytes, sha256) in engine.map(finish_file, [FileTask(path, path not in hashes) for path in paths]):
        files[task.path.name] = {"bytes": num_bytes, "sha256": hashes.get(task.path, sha256)}
    if settings.beton_codec:
        for split in plan.splits:
            os.replace(work.beton(split), beton_path(root, split))
    sync_dir(root)
    manifest = replace(manifest, files=dict(sorted(files.items())))
    manifest.save(root)
    return manifest


def _manifest(plan: ConversionPlan, totals: Totals, shards: WrittenShards) -> tuple[Manifest, list[tuple[str, str]]]:
    """The manifest without the sums of files, and the classes; writes classes.txt."""
    kept = totals.label_map >= 0
    classes = [plan.source.classes[i] for i in np.flatnonzero(kept)]
    source, source_filter = plan.source, plan.draft.source_filter
    if plan.class_filter.min_class_size:
        source_filter = {**source_filter, "classes_kept": len(classes)}
    mean, std = totals.summary.mean_std()
    quality = plan.settings.quality if totals.summary.num_encoded_here else None
    fidelity = totals.summary.fidelity()
    if isinstance(source, ShardSource):
        quality, fidelity = quality or source.stored_quality, fidelity or source.fidelity()
        if source.keeps_sums:
            mean, std = source.parents[0].manifest.mean, source.parents[0].manifest.std
    manifest = replace(
        plan.draft,
        source_filter=source_filter,
        num_classes=len(classes),
        classes_sha256=card.write_classes(plan.root, classes),
        quality=quality,
        fidelity=fidelity,
        mean=mean,
        std=std,
        splits={split: _split_info(plan, split, totals, kept, shards.records[split]) for split in plan.splits},
    )
    return manifest, classes


def _split_info(
    plan: ConversionPlan, split: str, totals: Totals, kept: np.ndarray, records: list[ShardRecord]
) -> SplitInfo:
    """The manifest's entry of a split. kept: (classes of the source,) bool. records: of its shards."""
    settings = plan.settings
    return SplitInfo(
        num_samples=int(totals.class_counts[split].sum()),
        num_skipped=totals.num_skipped[split],
        class_counts=totals.class_counts[split][kept].tolist(),
        beton=beton_path(plan.root, split).name if settings.beton_codec else None,
        tars=[record.name for record in records] if settings.tar_codec else [],
        tar_lengths=[record.num_samples for record in records] if settings.tar_codec else [],
        index=index_path(plan.root, split).name,
    )


def _real_labels(plan: ConversionPlan, classes: list[tuple[str, str]]) -> Iterator[tuple[str, Callable]]:
    """(split, what finds the ReaL labels of some keys) of every split that may have some."""
    if isinstance(plan.source, ShardSource):
        for split, known in plan.source.real().items():
            if known:
                yield split, lambda keys, known=known: {key: known[key] for key in keys if key in known}
    elif plan.spec.has_real_labels:
        names = [name for name, _ in classes]
        yield from ((split, lambda keys: labels.real(keys, names)) for split in plan.splits)
