"""Whether a shard directory is what its manifest says: every checksum, every sample, both formats equal.

Files and shards are checked by worker processes, one at a time each; memory does not grow with the data. A problem is
a line of text, not an exception: what is wrong elsewhere is to be known as well.
"""

from __future__ import annotations

import hashlib
import math
import os
from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path

import numpy as np
import xxhash

from mlpdata import image
from mlpdata.convert.sums import PixelSums, Summary
from mlpdata.errors import Error
from mlpdata.inspect.read_back import Stored, beton_samples, index_rows, tar_samples
from mlpdata.shards import card, index
from mlpdata.shards.classes import read_classes, read_real
from mlpdata.shards.manifest import (
    Manifest,
    Skipped,
    beton_path,
    classes_path,
    index_path,
    info_path,
    real_path,
    skipped_path,
    work_path,
)
from mlpdata.shards.text import MAX_TEXT_BYTES, open_file, parse_json, read_text, shown
from mlpdata.system.engines import LocalEngine
from mlpdata.system.progress import Progress
from mlpdata.system.threads import cores

MAX_TOLD = 10  # problems of one file or shard that are told one by one
# Endings that readers go by, and those of unfinished files.
TAKEN = (".tar", ".beton", ".parquet", ".real.json", ".tmp", ".part")
LOSSLESS = ("raw", "png")
# Mean squared difference of JPEGs of one quality from two encoders: on noise up to 8 from Pillow's to simplejpeg's.
ANOTHER_ENCODER = 16.0


@dataclass
class Findings:
    """What was found in one file or shard; adds up."""

    problems: list[str] = field(default_factory=list)
    num_problems: int = 0  # as many as there are; only the first are told
    class_counts: dict[str, np.ndarray] = field(default_factory=dict)  # split -> (classes,), by its index
    summary: Summary = field(default_factory=Summary)  # of the training pixels that are stored exactly

    def note(self, text: str) -> None:
        self.num_problems += 1
        if len(self.problems) < MAX_TOLD:
            self.problems.append(text)

    def add(self, other: Findings) -> None:
        self.problems += other.problems
        self.num_problems += other.num_problems
        self.summary.add(other.summary)
        for split, counts in other.class_counts.items():
            self.class_counts[split] = self.class_counts.get(split, 0) + counts


@dataclass(frozen=True)
class State:
    """What every worker knows."""

    root: Path
    manifest: Manifest
    training_split: str


@dataclass(frozen=True)
class FileTask:
    """One file, whose checksum is taken."""

    name: str

    def __str__(self) -> str:
        return f"file {self.name}"


@dataclass(frozen=True)
class ShardTask:
    """Consecutive samples of a split: those of a tar, where there are tars."""

    split: str
    first: int
    num_samples: int
    tar: str | None

    def __len__(self) -> int:
        return self.num_samples

    def __str__(self) -> str:
        return f"samples {self.first} to {self.first + self.num_samples - 1} of split {self.split}"


def verify(root: Path, workers: int | None = None, quiet: bool = False) -> tuple[str, Findings]:
    """Check a shard directory. Returns (what was checked, what is wrong).

    workers: processes; None: the cores. Raises Error only where there is no finished directory to check.
    """
    root = Path(root)
    manifest = Manifest.load(root)
    training = "train" if "train" in manifest.splits else next(iter(manifest.splits))
    total = Findings()
    _check_directory(root, manifest, total)
    state = State(root, manifest, training)
    tasks = list(_tasks(state, total))
    num_samples = sum(len(task) for task in tasks if isinstance(task, ShardTask))
    with (
        LocalEngine(min(workers or cores(), len(tasks)), state) as engine,
        Progress("verifying", num_samples, quiet=quiet) as progress,
    ):
        for _, found in engine.map(_check, tasks, progress, _num_samples):
            total.add(found)
    if not total.num_problems:  # else they would say so once more
        _check_totals(manifest, training, total)
    num_bytes = sum(f["bytes"] for f in manifest.files.values())
    num_samples = sum(s.num_samples for s in manifest.splits.values())
    both = ", equal in both formats" if len(manifest.formats) > 1 else ""
    return f"{len(manifest.files)} files of {num_bytes:,} bytes, {num_samples:,} samples{both}", total


# ------------------------------------------------------------------------------------------------------ directory


def _num_samples(task, findings) -> tuple[int]:
    return (len(task) if isinstance(task, ShardTask) else 0,)


def _check_directory(root: Path, manifest: Manifest, total: Findings) -> None:
    """What the names and the small files say. What is missing is told with the other files."""
    try:
        names = sorted(os.listdir(root))
    except OSError as e:
        raise Error(f"cannot read {root}: {e.strerror}") from None
    for name in {*names} - {*manifest.files}:
        if name.lower().endswith(TAKEN) or name == work_path(root).name:
            total.note(f"{shown(name)} is not in the manifest, and readers that go by names would take it: remove it")
    for path, check in (
        (classes_path(root), lambda: read_classes(root, manifest)),
        (skipped_path(root), lambda: _check_skipped(root, manifest, total)),
        (info_path(root), lambda: _check_info(root, manifest)),
        *((real_path(root, split), lambda s=split: read_real(root, manifest, s)) for split in manifest.splits),
    ):
        if path.name in names and path.name in manifest.files:
            try:
                check()
            except Error as e:
                total.note(str(e))


def _check_skipped(root: Path, manifest: Manifest, total: Findings) -> None:
    """Every line names a split, and there are as many as the manifest says."""
    path, skipped = skipped_path(root), dict.fromkeys(manifest.splits, 0)
    try:
        with open_file(path) as f:
            while line := f.readline(MAX_TEXT_BYTES):
                row = parse_json(line, path, Skipped)
                split = row["split"]
                if split not in skipped:
                    raise Error(f"{path} names the split {split!r:.80}, which is none of the manifest's")
                skipped[split] += row.get("is_data", True)
    except OSError as e:
        raise Error(f"cannot read {path}: {e.strerror}") from None
    for split, info in manifest.splits.items():
        if skipped[split] != info.num_skipped:
            total.note(f"{path.name} lists {skipped[split]:,} images of split {split}, "
                       f"the manifest {info.num_skipped:,}")  # fmt: skip


def _check_info(root: Path, manifest: Manifest) -> None:
    """timm's table says what the manifest says."""
    found = parse_json(read_text(info_path(root)), info_path(root), dict[str, dict[str, dict]])
    for split, row in card.timm_info(manifest)["splits"].items():
        if split in manifest.splits and found.get("splits", {}).get(split) != row:
            raise Error(f"{info_path(root)} says other things of split {split} than the manifest")


def _tasks(state: State, total: Findings) -> Iterator[FileTask | ShardTask]:
    """Betons first, for they take longest; then each tar and at once, while it is in memory, its samples."""
    manifest, told = state.manifest, set()
    for info in manifest.splits.values():
        if info.beton:
            told.add(info.beton)
            yield FileTask(info.beton)
    for split, info in manifest.splits.items():
        try:
            with index.opened(state.root, manifest, split) as file:
                groups = [file.metadata.row_group(g).num_rows for g in range(file.num_row_groups)]
        except Error as e:
            total.note(str(e))
            groups = []
        lengths, names = (info.tar_lengths, info.tars) if info.tars else (groups, [None] * len(groups))
        first = 0
        for n, name in zip(lengths, names, strict=False):
            if name is not None:
                told.add(name)
                yield FileTask(name)
            if groups and n:
                yield ShardTask(split, first, n, name)
            first += n
    for name in manifest.files:
        if name not in told:
            yield FileTask(name)


def _check_totals(manifest: Manifest, training: str, total: Findings) -> None:
    for split, info in manifest.splits.items():
        counts = total.class_counts.get(split, np.zeros(manifest.num_classes, np.int64))
        if counts.tolist() != info.class_counts:
            total.note(f"manifest.json: split {split} has other class counts than the index")
    if total.summary.num_samples == manifest.splits[training].num_samples:
        mean, std = total.summary.mean_std()
        if (mean, std) != (manifest.mean, manifest.std):
            total.note(f"mean and std of split {training} are {mean}, {std}, not as the manifest says")


# -------------------------------------------------------------------------------------------------------- workers


def _check(state: State, task: FileTask | ShardTask) -> Findings:
    return _check_file(state, task) if isinstance(task, FileTask) else _check_samples(state, task)


def _check_file(state: State, task: FileTask) -> Findings:
    found, listed = Findings(), state.manifest.files[task.name]
    try:
        with open_file(state.root / task.name) as f:
            size = os.fstat(f.fileno()).st_size
            if size != listed["bytes"]:
                found.note(f"{task.name} has {size:,} bytes, the manifest says {listed['bytes']:,}")
            elif (digest := hashlib.file_digest(f, "sha256").hexdigest()) != listed["sha256"]:
                found.note(f"{task.name} has sha256 {digest:.12}..., the manifest says {listed['sha256']:.12}...")
    except OSError as e:
        found.note(f"{task.name} cannot be read: {e.strerror}")
    return found


def _check_samples(state: State, task: ShardTask) -> Findings:
    manifest, found = state.manifest, Findings()
    file = index_path(state.root, task.split).name
    try:
        rows = index_rows(state.root, manifest, task.split, task.first, task.num_samples)
    except Error as e:
        found.note(f"{task}: {e}")
        return found
    labels, sizes = rows["label"], np.stack([rows["width"], rows["height"]], axis=1)
    bad = (labels < 0) | (labels >= manifest.num_classes) | (sizes < 1).any(axis=1) | (sizes > manifest.res).any(axis=1)
    if bad.any():
        i = int(bad.argmax())
        found.note(f"{file}: sample {rows['key'][i]} has label {labels[i]} and {sizes[i, 0]} x {sizes[i, 1]} pixels")
        return found
    found.class_counts[task.split] = np.bincount(labels, minlength=manifest.num_classes)
    if len(set(rows["key"])) < len(rows["key"]):
        found.note(f"{file} has a key twice among {task}")
    sums = PixelSums() if task.split == state.training_split else None
    sources: list[Iterator[Stored | None]] = []
    if manifest.splits[task.split].beton:
        path = beton_path(state.root, task.split)
        sources.append(beton_samples(path, manifest.beton_codec, task.first, rows, found.note))
    if task.tar:
        sources.append(tar_samples(state.root / task.tar, manifest.tar_codec, rows, found.note))
    # Both run until the last sample, and give None for what they cannot read.
    for i, stored in enumerate(zip(*sources, strict=True)):
        exact = _check_sample(state, rows, i, [s for s in stored if s is not None], found)
        if sums is not None and exact is not None:
            sums.add(exact)
            found.summary.num_samples += 1
    if sums is not None:
        found.summary.add(sums.result())
    return found


def _check_sample(state: State, rows: dict, i: int, stored: list[Stored], found: Findings) -> np.ndarray | None:
    """One sample in its formats. Returns its pixels (H, W, 3) where they are known exactly."""
    manifest, key, digest = state.manifest, rows["key"][i], int(rows["digest"][i])
    shape = (int(rows["height"][i]), int(rows["width"][i]), 3)
    exact, lossy = None, []
    for s in stored:
        try:
            pixels = _pixels(s, shape)
        except image.ImageError as e:
            found.note(f"{s.file}: sample {key} {e}")
            continue
        if xxhash.xxh3_64_intdigest(pixels) == digest:
            exact = pixels
        elif s.codec in LOSSLESS or manifest.quality is None:
            found.note(f"{s.file}: sample {key} has other pixels than the index says")
        else:
            lossy.append((s, pixels))
    if len(lossy) == 2 and lossy[0][0].payload != lossy[1][0].payload:
        found.note(f"{lossy[0][0].file} and {lossy[1][0].file}: sample {key} is a different JPEG in each")
    for s, pixels in lossy if exact is not None else ():
        if not _encodes(manifest, s, pixels, exact):
            found.note(f"{s.file}: sample {key} is another image than the one whose pixels the index knows")
    return exact


def _pixels(stored: Stored, shape: tuple[int, int, int]) -> np.ndarray:
    """uint8 `shape`. Raises ImageError."""
    payload = stored.payload
    if stored.codec == "raw":
        if len(payload) != math.prod(shape):
            raise image.ImageError(f"has {len(payload)} bytes, not {shape[1]} x {shape[0]} pixels")
        return np.frombuffer(payload, np.uint8).reshape(shape)
    if stored.codec == "jpg":
        pixels = np.empty(shape, np.uint8)
        image.decode_kept(payload, pixels)
        return pixels
    return image.decode_exact(payload, (shape[1], shape[0]))


def _encodes(manifest: Manifest, stored: Stored, decoded: np.ndarray, pixels: np.ndarray) -> bool:
    """Whether a JPEG that was encoded here is that of some pixels: the encoder tells, for it always does the same."""
    again = image.encode_jpeg(pixels, manifest.quality)
    if again == stored.payload:
        return True
    if manifest.image_library.get("jpeg") == image.library_versions()["jpeg"]:
        return False
    difference = decoded.astype(np.int32) - _pixels(replace(stored, payload=again), pixels.shape)
    return float((difference * difference).mean()) < ANOTHER_ENCODER
