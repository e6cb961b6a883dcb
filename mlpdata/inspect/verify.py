"""Is a shard directory what its manifest says? Every checksum, every sample, both formats equal.

Worker processes check one file, or the samples of one shard, at a time; memory does not grow with the data. A problem
is a line of text, not an exception: what is wrong elsewhere is to be known as well.
"""

from __future__ import annotations

import errno
import math
import os
from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path

import numpy as np
import xxhash

from mlpdata import image
from mlpdata.convert.sums import PixelSums, Summary
from mlpdata.errors import Error, reading
from mlpdata.inspect.read_back import StoredSample, beton_samples, tar_samples
from mlpdata.shards import card, index
from mlpdata.shards.classes import read_classes, read_real
from mlpdata.shards.files import difference, local_sizes
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
from mlpdata.system.format import plural
from mlpdata.system.progress import Progress
from mlpdata.system.threads import cores

MAX_LISTED = 10  # problems of one file or shard that are listed one by one
# Endings that readers go by, and those of unfinished files.
STRAY_ENDINGS = (".tar", ".beton", ".parquet", ".real.json", ".tmp", ".part")
LOSSLESS = ("raw", "png")
# Mean squared difference of JPEGs of one quality from two encoders: on noise up to 8 from Pillow's to simplejpeg's.
ANOTHER_ENCODER = 16.0


@dataclass
class Findings:
    """What is wrong with one file or shard, and what its samples add up to."""

    problems: list[str] = field(default_factory=list)
    num_problems: int = 0  # all of them; `problems` lists only the first
    class_counts: dict[str, np.ndarray] = field(default_factory=dict)  # split -> (classes,), by its index
    summary: Summary = field(default_factory=Summary)  # of the training pixels that are stored exactly

    @property
    def is_denied(self) -> bool:
        """Whether nothing is known to be wrong but that files may not be read."""
        denied = os.strerror(errno.EACCES)
        return self.num_problems == len(self.problems) and all(denied in text for text in self.problems)

    def note(self, text: str) -> None:
        self.num_problems += 1
        if len(self.problems) < MAX_LISTED:
            self.problems.append(text)

    def add(self, other: Findings) -> None:
        new = [text for text in other.problems if text not in self.problems]  # several checks meet a missing file
        self.problems += new
        self.num_problems += other.num_problems - len(other.problems) + len(new)
        self.summary.add(other.summary)
        for split, counts in other.class_counts.items():
            self.class_counts[split] = self.class_counts.get(split, 0) + counts


@dataclass(frozen=True)
class VerifyContext:
    """What every worker knows."""

    root: Path
    manifest: Manifest
    training_split: str


@dataclass(frozen=True)
class FileCheck:
    """One file, whose checksum is taken."""

    name: str

    def __str__(self) -> str:
        return f"file {self.name}"


@dataclass(frozen=True)
class SamplesCheck:
    """Consecutive samples of a split: those of a tar, where there are tars."""

    split: str
    first: int
    num_samples: int
    tar: str | None

    def __str__(self) -> str:
        return f"samples {self.first} to {self.first + self.num_samples - 1} of split {self.split}"


def verify(root: Path, workers: int | None = None, quiet: bool = False) -> tuple[str, Findings]:
    """Check a shard directory. Returns (what was checked, what is wrong).

    workers: processes; None: the cores. Raises Error only where there is no finished directory to check.
    """
    root = Path(root)
    manifest = Manifest.load(root)
    context = VerifyContext(root, manifest, "train" if "train" in manifest.splits else next(iter(manifest.splits)))
    total = Findings()
    _check_directory(context, total)
    checks = list(_plan_checks(context, total))
    num_samples = sum(map(_num_samples, checks))
    with (
        LocalEngine(min(workers or cores(), len(checks)), context) as engine,
        Progress("verifying", num_samples, quiet=quiet) as progress,
    ):
        for _, findings in engine.map(_run_check, checks, progress, lambda check, _: (_num_samples(check),)):
            total.add(findings)
    if not total.num_problems:  # else the totals would only say so once more
        _check_totals(context, total)
    num_bytes = sum(entry["bytes"] for entry in manifest.files.values())
    num_samples = sum(info.num_samples for info in manifest.splits.values())
    both = ", equal in both formats" if len(manifest.formats) > 1 else ""
    return f"{plural(len(manifest.files), 'file')} of {num_bytes:,} bytes, {plural(num_samples, 'sample')}{both}", total


def _num_samples(check: FileCheck | SamplesCheck) -> int:
    return check.num_samples if isinstance(check, SamplesCheck) else 0


def _plan_checks(context: VerifyContext, total: Findings) -> Iterator[FileCheck | SamplesCheck]:
    """Betons first, for they take longest; then each tar and at once, while it is in memory, its samples."""
    root, manifest = context.root, context.manifest
    planned = [info.beton for info in manifest.splits.values() if info.beton]
    yield from map(FileCheck, planned)
    for split, info in manifest.splits.items():
        try:
            groups = index.row_group_sizes(root, manifest, split)
        except Error as e:
            total.note(str(e))
            groups = []
        lengths, tars = (info.tar_lengths, info.tars) if info.tars else (groups, [None] * len(groups))
        first = 0
        for n, tar in zip(lengths, tars, strict=True):
            if tar is not None:
                yield FileCheck(tar)
            if groups and n:
                yield SamplesCheck(split, first, n, tar)
            first += n
        planned += info.tars
    yield from (FileCheck(name) for name in sorted(manifest.files.keys() - planned))


# ------------------------------------------------------------------------------------------------------ directory


def _check_directory(context: VerifyContext, total: Findings) -> None:
    """What the names and the small files say. Files that are missing are told with the checksums."""
    root, manifest = context.root, context.manifest
    names = local_sizes(root).keys()
    for name in sorted(names - manifest.files.keys()):
        if name.lower().endswith(STRAY_ENDINGS) or name == work_path(root).name:
            total.note(
                f"{shown(name)} is not in the manifest, but readers that go by file names would read it: remove it"
            )
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
    with reading(path), open_file(path) as f:
        while line := f.readline(MAX_TEXT_BYTES):
            row = parse_json(line, path, Skipped)
            split = row["split"]
            if split not in skipped:
                raise Error(f"{path} names the split {split!r:.80}, which is none of the manifest's")
            skipped[split] += row.get("is_data", True)
    for split, info in manifest.splits.items():
        if skipped[split] != info.num_skipped:
            listed = f"{plural(skipped[split], 'image')} of split {split}"
            total.note(f"{path.name} lists {listed}, the manifest {info.num_skipped:,}")


def _check_info(root: Path, manifest: Manifest) -> None:
    """timm's table says what the manifest says."""
    table = parse_json(read_text(info_path(root)), info_path(root), dict[str, dict[str, dict]])
    for split, row in card.timm_info(manifest)["splits"].items():
        if split in manifest.splits and table.get("splits", {}).get(split) != row:
            raise Error(f"{info_path(root)} differs from the manifest in split {split}")


def _check_totals(context: VerifyContext, total: Findings) -> None:
    manifest, training = context.manifest, context.training_split
    for split, info in manifest.splits.items():
        counts = total.class_counts.get(split, np.zeros(manifest.num_classes, np.int64))
        if counts.tolist() != info.class_counts:
            total.note(f"manifest.json: split {split} has other class counts than the index")
    if total.summary.num_samples == manifest.splits[training].num_samples:
        mean, std = total.summary.mean_std()
        if (mean, std) != (manifest.mean, manifest.std):
            total.note(f"mean and std of split {training} are {mean}, {std}, not as the manifest says")


# -------------------------------------------------------------------------------------------------------- workers


def _run_check(context: VerifyContext, check: FileCheck | SamplesCheck) -> Findings:
    findings = Findings()
    if isinstance(check, FileCheck):
        _check_file(context, check.name, findings)
    else:
        try:
            rows = index.rows(context.root, context.manifest, check.split, check.first, check.num_samples)
        except Error as e:
            findings.note(f"{check}: {e}")
        else:
            _check_samples(context, check, rows, findings)
    return findings


def _check_file(context: VerifyContext, name: str, findings: Findings) -> None:
    try:
        with open_file(context.root / name) as f:
            if wrong := difference(f, context.manifest.files[name]):
                findings.note(f"{name} {wrong}")
    except OSError as e:
        findings.note(f"{name} cannot be read: {e.strerror}")


def _check_samples(context: VerifyContext, check: SamplesCheck, rows: index.IndexRows, findings: Findings) -> None:
    manifest, file = context.manifest, index_path(context.root, check.split).name
    sizes = np.stack([rows.width, rows.height], axis=1)
    bad = (rows.label < 0) | (rows.label >= manifest.num_classes)
    bad |= (sizes < 1).any(axis=1) | (sizes > manifest.res).any(axis=1)
    if bad.any():
        i = int(bad.argmax())
        shape = f"{sizes[i, 0]} x {sizes[i, 1]} pixels"
        findings.note(f"{file}: sample {rows.key[i]} has label {rows.label[i]} and {shape}")
        return
    findings.class_counts[check.split] = np.bincount(rows.label, minlength=manifest.num_classes)
    if len(set(rows.key)) < len(rows):
        findings.note(f"{file} has a key twice among {check}")
    formats: list[Iterator[StoredSample | None]] = []
    if manifest.beton_codec:
        path = beton_path(context.root, check.split)
        formats.append(beton_samples(path, manifest.beton_codec, check.first, rows, findings.note))
    if check.tar and manifest.tar_codec:
        formats.append(tar_samples(context.root / check.tar, manifest.tar_codec, rows, findings.note))
    sums = PixelSums()
    is_training = check.split == context.training_split
    # Both formats give a value a sample, None for what they cannot read.
    for i, stored in enumerate(zip(*formats, strict=True)):
        pixels = _check_sample(manifest, rows, i, [sample for sample in stored if sample is not None], findings)
        if is_training and pixels is not None:
            sums.add(pixels)
            findings.summary.num_samples += 1
    findings.summary.add(sums.result())


def _check_sample(
    manifest: Manifest, rows: index.IndexRows, i: int, stored: list[StoredSample], findings: Findings
) -> np.ndarray | None:
    """Compare one sample in its formats. Returns its pixels (H, W, 3) where they are known exactly."""
    key, shape = rows.key[i], (int(rows.height[i]), int(rows.width[i]), 3)
    exact: np.ndarray | None = None
    lossy: list[tuple[StoredSample, np.ndarray]] = []
    for sample in stored:
        try:
            pixels = _decode(sample, shape)
        except image.ImageError as e:
            findings.note(f"{sample.file}: sample {key} {e}")
            continue
        if xxhash.xxh3_64_intdigest(pixels.data) == int(rows.digest[i]):
            exact = pixels
        elif sample.codec in LOSSLESS or manifest.quality is None:
            findings.note(f"{sample.file}: sample {key} has other pixels than the index says")
        else:
            lossy.append((sample, pixels))
    if len(lossy) == 2 and lossy[0][0].payload != lossy[1][0].payload:
        findings.note(f"{lossy[0][0].file} and {lossy[1][0].file}: sample {key} is a different JPEG in each")
    for sample, pixels in lossy:
        if exact is not None and not _is_encoding_of(exact, manifest, sample, pixels):
            findings.note(f"{sample.file}: sample {key} is not the image whose pixels the index lists")
    return exact


def _decode(sample: StoredSample, shape: tuple[int, ...]) -> np.ndarray:
    """uint8 pixels of a shape (H, W, 3). Raises ImageError."""
    if sample.codec == "raw":
        if len(sample.payload) != math.prod(shape):
            raise image.ImageError(f"has {len(sample.payload)} bytes, not {shape[1]} x {shape[0]} pixels")
        return np.frombuffer(sample.payload, np.uint8).reshape(shape)
    if sample.codec == "jpg":
        pixels = np.empty(shape, np.uint8)
        image.decode_kept(sample.payload, pixels)
        return pixels
    return image.decode_exact(sample.payload, (shape[1], shape[0]))


def _is_encoding_of(pixels: np.ndarray, manifest: Manifest, sample: StoredSample, decoded: np.ndarray) -> bool:
    """Whether a JPEG that was encoded by us is that of some pixels.

    The same encoder always gives the same bytes; those of another version are told by what they decode to.
    """
    again = image.encode_jpeg(pixels, manifest.quality or 100)
    if again == sample.payload:
        return True
    if manifest.image_library.get("jpeg") == image.library_versions()["jpeg"]:
        return False
    error = decoded.astype(np.int32) - _decode(replace(sample, payload=again), decoded.shape)
    return float((error * error).mean()) < ANOTHER_ENCODER
