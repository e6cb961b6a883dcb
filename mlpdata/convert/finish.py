"""The end of a conversion: listings, card; every file synced and hashed; and last of all the manifest."""

from __future__ import annotations

import errno
import hashlib
import itertools
import os
import threading
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

import mlpdata
from mlpdata.convert import assembly
from mlpdata.convert.options import FORMATS
from mlpdata.convert.parts import Part
from mlpdata.convert.plan import Plan
from mlpdata.convert.sums import Summary
from mlpdata.shards import card
from mlpdata.shards.manifest import FORMAT_VERSION, Manifest, SplitInfo, beton_path, index_path, real_path, skipped_path
from mlpdata.system.disk import ALIGN, aligned, open_direct, preadv
from mlpdata.system.engines import Engine
from mlpdata.system.files import sync_dir
from mlpdata.system.threads import prefetch

HASH_BYTES = 4 << 20  # read at a time


@dataclass
class Found:
    """What all parts together hold."""

    class_counts: dict[str, np.ndarray]  # split -> (classes,) by the source's labels
    num_skipped: dict[str, int]  # by split
    num_left_out: int  # files that are none of the data
    first_reason: str  # of those that were skipped
    small: dict[str, int]  # images of each class that was found too small when it was read
    decoded: set[str]  # units of which nothing was deferred
    payload_bytes: int  # of all samples, as pixels and encoded
    total: Summary
    label_map: np.ndarray  # the source's label -> the output's; -1 for a class that is left out


class Hasher:
    """The SHA-256 of a file that is being written from front to back, behind those who write it.

    It reads what the disk has, not what a cache holds: page by page into the cache would cost more than the hash.
    Only on the machine that writes: a file system over the network may serve a block as it was before.
    """

    def __init__(self, path: Path):
        self._path, self._digest, self._error = path, hashlib.sha256(), None
        self._limit, self._closed, self._changed = 0, False, threading.Condition()
        self._thread = threading.Thread(target=self._run, daemon=True)
        self._thread.start()

    def allow(self, limit: int) -> None:
        """The bytes in front of `limit` are final."""
        with self._changed:
            self._limit = limit
            self._changed.notify()

    def stop(self) -> None:
        """Leave off where it is."""
        with self._changed:
            self._closed, self._limit = True, 0
            self._changed.notify()
        self._thread.join()

    def finish(self) -> str:
        """Go to the end of what is allowed. Returns the digest. Raises what went wrong meanwhile."""
        with self._changed:
            self._closed = True
            self._changed.notify()
        self._thread.join()
        if self._error is not None:
            raise self._error
        return self._digest.hexdigest()

    def _run(self) -> None:
        try:
            fd = open_direct(self._path, os.O_RDONLY)
            if fd is None:
                fd = os.open(self._path, os.O_RDONLY)
            try:
                for chunk in prefetch(self._chunks(fd), 1):
                    self._digest.update(chunk)
            finally:
                os.close(fd)
        except BaseException as e:  # whatever it is: the digest would be of a part of the file
            self._error = e

    def _chunks(self, fd: int) -> Iterator[memoryview]:
        at, rooms = 0, itertools.cycle([memoryview(aligned(HASH_BYTES)) for _ in range(3)])
        while True:
            with self._changed:
                while at >= self._limit // ALIGN * ALIGN and not self._closed:
                    self._changed.wait()
                limit = self._limit if self._closed else self._limit // ALIGN * ALIGN
            if at >= limit:
                return
            room = next(rooms)  # one is being read, one waits, one is being hashed
            n = min(preadv(fd, [room], at), limit - at)
            yield room[:n]
            at += n
            if not n or (at < limit and at % ALIGN):
                raise OSError(errno.EIO, "is shorter than it was written", str(self._path))


def iter_skipped(plan: Plan) -> Iterator[dict]:
    """Every sample that was left out, in the order of the source."""
    for task in plan.tasks:
        yield from Part(assembly.part_path(plan.work, task.unit.name)).record["skipped"]


def seal(
    plan: Plan, engine: Engine, found: Found, made: dict[str, list[assembly.Made]], hashes: dict[Path, str]
) -> Manifest:
    """Write listings and the card, move the betons into place, and last of all write the manifest.

    hashes: SHA-256 of the files that need not be read for it.
    """
    root, files, splits = plan.root, {}, {}
    paths = []
    for split in plan.splits:
        paths.append(index_path(root, split))
        if plan.beton_codec:
            paths.append(assembly.beton_work_path(plan.work, split))
        if plan.tar_codec:
            for m in made[split]:
                paths.append(root / m.name)
                hashes[paths[-1]] = m.sha256
        splits[split] = SplitInfo(
            num_samples=int(found.class_counts[split].sum()),
            num_skipped=found.num_skipped[split],
            class_counts=found.class_counts[split][found.label_map >= 0].tolist(),
            beton=beton_path(root, split).name if plan.beton_codec else None,
            tars=[m.name for m in made[split]] if plan.tar_codec else [],
            tar_lengths=[m.num_samples for m in made[split]] if plan.tar_codec else [],
            index=index_path(root, split).name,
        )
    card.write_skipped(skipped_path(root), iter_skipped(plan))
    for m in (m for split in plan.splits for m in made[split]):
        found.total.add(m.summary)
    mean, std = found.total.mean_std()
    classes = [plan.source.classes[i] for i in np.flatnonzero(found.label_map >= 0)]
    manifest = Manifest(
        format_version=FORMAT_VERSION,
        dataset=plan.spec.name,
        release=plan.source.release,
        source_files=plan.identity["source_files"],
        source_filter=_source_filter(plan, len(classes)),
        num_classes=len(classes),
        classes_sha256=card.write_classes(root, classes),
        res=plan.res,
        resize=plan.options.resize,
        filter=plan.options.filter,
        formats=FORMATS[plan.options.format],
        codec=plan.options.codec,
        beton_codec=plan.beton_codec,
        tar_codec=plan.tar_codec,
        quality=plan.options.quality if found.total.num_encoded_here else None,
        seed=plan.options.seed,
        shard_size=plan.options.shard_size,
        image_library=plan.identity["image_library"],
        fidelity=_fidelity(found.total),
        mean=mean,
        std=std,
        splits=splits,
        files={},
        tool_version=mlpdata.__version__,
        command=plan.identity["command"],
    )
    paths += card.write_documents(root, manifest, plan.spec.title, classes)
    if plan.spec.has_real_labels:
        written = [card.write_real(real_path(root, s), index_path(root, s), classes) for s in plan.splits]
        paths += [path for path in written if path]
    paths.append(skipped_path(root))
    # The large files are synced and hashed by the workers, side by side.
    tasks = [assembly.FileTask(path, path not in hashes) for path in paths]
    for task, (num_bytes, sha256) in engine.map(assembly.seal_file, tasks):
        files[task.path.name] = {"bytes": num_bytes, "sha256": hashes.get(task.path, sha256)}
    for split in plan.splits:
        if plan.beton_codec:
            os.replace(assembly.beton_work_path(plan.work, split), beton_path(root, split))
    sync_dir(root)
    manifest = replace(manifest, files=dict(sorted(files.items())))
    manifest.save(root)
    return manifest


def _source_filter(plan: Plan, kept: int) -> dict:
    """The filters on record; the classes they left out are counted, not assumed."""
    sizes = {k: getattr(plan.class_filter, k) for k in ("min_class_size", "val_per_class")}
    record = {k: v for k, v in {"limit": plan.options.limit, **sizes}.items() if v}
    if plan.class_filter.min_class_size:
        record |= {"classes_found": len(plan.source.classes), "classes_kept": kept}
    if plan.options.classes:
        record["classes"] = Path(plan.options.classes).name
    return record


def _fidelity(total: Summary) -> dict | None:
    """What the manifest says of it. `psnr_db_upper` is what it may be by chance, two standard errors away."""
    n = total.num_measured
    if not n:
        return None
    mse = total.measured_squared_error / total.measured_values
    variance = max(0.0, total.measured_mse_squared / n - mse**2)
    least = mse - 2 * (variance / (n - 1)) ** 0.5 if n > 1 else 0.0
    return {
        "num_samples": n,
        "psnr_db": _psnr(mse),
        "psnr_db_upper": _psnr(least),
        "max_diff": total.measured_max_diff,
    }


def _psnr(mse: float) -> float:
    """10 log10(255^2 / MSE) in dB, at most 99."""
    return 99.0 if mse <= 0 else min(99.0, round(float(10 * np.log10(255**2 / mse)), 2))
