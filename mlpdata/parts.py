"""Parts: what one unit of the source becomes, on its way to the shards.

A part is up to three files in the work directory. `NAME.pixels` and `NAME.encoded` hold the samples' payloads, split
after split and within a split sorted by hash(seed, key); `NAME.arrow` says what they are. The rename of `NAME.arrow` is
the journal: where it stands, the unit is done. Because every part is sorted by the hash that orders the whole split,
the samples of any output shard are one stretch of every part.
"""

from __future__ import annotations

import errno
import json
import os
from dataclasses import dataclass
from itertools import islice
from pathlib import Path

import numpy as np
import pyarrow as pa
import xxhash

from mlpdata import image
from mlpdata.manifest import Error
from mlpdata.sources import Broken, Sample, Source, Unit

SCHEMA = pa.schema(
    [
        ("hash", pa.uint64()),
        ("key", pa.string()),
        ("label", pa.int32()),
        ("source", pa.string()),
        ("source_width", pa.int32()),
        ("source_height", pa.int32()),
        ("width", pa.int32()),
        ("height", pa.int32()),
        ("digest", pa.uint64()),
        ("pixels_bytes", pa.int64()),
        ("encoded_bytes", pa.int64()),
    ]
)
KINDS = ("pixels", "encoded")
BATCH = 1000  # buffers a vectored read or write; the system takes 1,024


@dataclass(frozen=True, kw_only=True)
class Recipe:
    """What is done to every image; the same in all workers."""

    resize: image.Resize
    keep_pixels: bool  # raw payloads are wanted (by the beton or by ppm members)
    encoding: str | None  # "jpg", "png" or None: what else is wanted
    quality: int
    seed: int
    measure_one_in: int  # fidelity is measured on one sample in so many
    durable: bool  # sync parts to disk before they count as done
    splits: tuple[str, ...]  # samples of other splits are left out
    training_split: str  # whose pixels make mean and standard deviation


@dataclass(frozen=True)
class Task:
    """One unit to convert, at most `limit` samples of it (None: all)."""

    unit: Unit
    limit: int | None = None

    def __str__(self) -> str:
        return f"unit {self.unit.name}"


@dataclass
class Summary:
    """What became of one unit; adds up over units."""

    num_samples: int = 0
    num_pixels: int = 0
    pixel_sum: tuple[int, int, int] = (0, 0, 0)
    pixel_sum_squared: tuple[int, int, int] = (0, 0, 0)
    num_encoded_here: int = 0  # lossy encodings made, not passed through
    num_measured: int = 0
    measured_values: int = 0
    measured_squared_error: float = 0.0
    measured_max_diff: int = 0

    def add(self, other: Summary) -> None:
        for name, value in vars(other).items():
            mine = getattr(self, name)
            if name == "measured_max_diff":
                self.measured_max_diff = max(mine, value)
            elif isinstance(value, (tuple, list)):
                setattr(self, name, tuple(a + b for a, b in zip(mine, value, strict=True)))
            else:
                setattr(self, name, mine + value)


# -------------------------------------------------------------------------------------------------------- convert


def convert_unit(source: Source, recipe: Recipe, task: Task, folder: Path) -> Path:
    """Read, decode, resize and encode one unit and write its part. Returns the path of the journal file."""
    rows: list[tuple] = []
    splits: list[str] = []
    pixels: list[np.ndarray] = []
    encoded: list[bytes] = []
    skipped: list[dict] = []
    total = Summary()
    for sample in islice(source.samples(task.unit), task.limit):
        split = sample.split or task.unit.split
        if split not in recipe.splits:
            continue
        try:
            if isinstance(sample, Broken):
                raise image.ImageError(sample.reason)
            row, image_pixels, image_encoded = _convert_sample(sample, recipe, total)
        except image.ImageError as e:
            skipped.append({"split": split, "source": sample.origin, "reason": str(e)})
            continue
        except Exception as e:
            raise RuntimeError(f"while converting {sample.origin}: {type(e).__name__}: {e}") from e
        rows.append(row)
        splits.append(split)
        pixels.append(image_pixels)
        encoded.append(image_encoded)
    total.num_samples = len(rows)
    _add_pixel_sums([p for p, split in zip(pixels, splits, strict=True) if split == recipe.training_split], total)
    order = sorted(range(len(rows)), key=lambda i: (splits[i], *rows[i][:2]))
    columns = zip(*(rows[i] for i in order), strict=True) if rows else [[] for _ in SCHEMA]
    table = pa.table([pa.array(c, f.type) for c, f in zip(columns, SCHEMA, strict=True)], schema=SCHEMA)
    checks = {}
    if recipe.keep_pixels:
        checks["pixels"] = _write(folder / f"{task.unit.name}.pixels", [pixels[i] for i in order], recipe.durable)
    if recipe.encoding:
        checks["encoded"] = _write(folder / f"{task.unit.name}.encoded", [encoded[i] for i in order], recipe.durable)
    ordered = [splits[i] for i in order]
    ranges = {s: (ordered.index(s), ordered.index(s) + ordered.count(s)) for s in sorted(set(splits))}
    record = {"splits": ranges, "skipped": skipped, "summary": vars(total), "checks": checks}
    return _write_journal(folder / f"{task.unit.name}.arrow", table, record, recipe.durable)


def _convert_sample(sample: Sample, recipe: Recipe, total: Summary) -> tuple[tuple, np.ndarray, bytes]:
    data, resize = sample.data, recipe.resize
    key_hash = xxhash.xxh3_64_intdigest(sample.key.encode(), recipe.seed)
    if isinstance(data, np.ndarray):
        source_height, source_width = data.shape[:2]
        pixels = image.resized(data, resize, source_width, source_height)
    else:
        pixels, (source_width, source_height) = image.decode(data, resize)
    pixels = np.ascontiguousarray(pixels)
    height, width = pixels.shape[:2]
    same_size = (width, height) == (source_width, source_height)
    if not same_size and not isinstance(data, np.ndarray) and (key_hash >> 7) % recipe.measure_one_in == 0:
        squared, largest = image.squared_error(data, pixels, resize)
        total.add(
            Summary(
                num_measured=1, measured_values=pixels.size, measured_squared_error=squared, measured_max_diff=largest
            )
        )
    encoded = b""
    if recipe.encoding == "png":
        encoded = image.encode_png(pixels)
    elif recipe.encoding == "jpg":
        if same_size and isinstance(data, bytes) and data[:3] == image.JPEG_MAGIC:
            encoded = image.passthrough(data) or b""
        if not encoded:
            encoded = image.encode_jpeg(pixels, recipe.quality)
            total.num_encoded_here += 1
    digest = xxhash.xxh3_64_intdigest(pixels)
    row = (
        key_hash,
        sample.key,
        sample.label,
        sample.origin,
        source_width,
        source_height,
        width,
        height,
        digest,
        pixels.nbytes if recipe.keep_pixels else 0,
        len(encoded),
    )
    return row, pixels, encoded


def _add_pixel_sums(pixels: list[np.ndarray], total: Summary) -> None:
    """Exact integer sums for mean and standard deviation, a block of equal shapes at a time.

    A block's sums fit 16 bits and its sums of squares 32 (32 images of 255 at most), which keeps numpy on narrow types.
    """
    total.num_pixels = sum(p.shape[0] * p.shape[1] for p in pixels)
    sums, squares = np.zeros(3, np.int64), np.zeros(3, np.int64)
    start = 0
    while start < len(pixels):
        stop = start + 1
        while stop < len(pixels) and stop - start < 32 and pixels[stop].shape == pixels[start].shape:
            stop += 1
        block = np.stack(pixels[start:stop]).reshape(stop - start, -1)
        squared = np.multiply(block, block, dtype=np.uint16)
        sums += np.add.reduce(block, axis=0, dtype=np.uint16).reshape(-1, 3).sum(axis=0, dtype=np.int64)
        squares += np.add.reduce(squared, axis=0, dtype=np.uint32).reshape(-1, 3).sum(axis=0, dtype=np.int64)
        start = stop
    total.pixel_sum, total.pixel_sum_squared = tuple(sums.tolist()), tuple(squares.tolist())


def _write(path: Path, payloads: list, durable: bool) -> str:
    """Write payloads one after the other; returns the checksum that tells a whole file from a torn one."""
    check = xxhash.xxh3_64()
    with open(path, "wb", buffering=0) as f:
        for start in range(0, len(payloads), BATCH):
            batch = payloads[start : start + BATCH]
            expected = sum(memoryview(p).nbytes for p in batch)
            # One system call for a thousand payloads, straight from where they lie.
            if os.writev(f.fileno(), batch) != expected:
                raise OSError(errno.ENOSPC, "short write: no space left on device", str(path))
            for payload in batch:
                check.update(payload)
        if durable:
            os.fsync(f.fileno())
    return check.hexdigest()


def _write_journal(path: Path, table: pa.Table, record: dict, durable: bool) -> Path:
    sink = pa.BufferOutputStream()
    with pa.ipc.new_file(sink, SCHEMA.with_metadata({"record": json.dumps(record)})) as writer:
        writer.write_table(table.combine_chunks())
    body = sink.getvalue()
    tmp = path.with_name(f"{path.name}.tmp")
    with open(tmp, "wb") as f:
        f.write(xxhash.xxh3_64_digest(body))
        f.write(body)
        if durable:
            f.flush()
            os.fsync(f.fileno())
    os.replace(tmp, path)
    return path


# ----------------------------------------------------------------------------------------------------------- read


class Part:
    """A finished part, opened for reading: its table is mapped, its payloads are read by stretches."""

    def __init__(self, journal: Path):
        self.journal = journal
        self.name = journal.stem
        with pa.memory_map(str(journal)) as f:
            body = f.read_buffer()[8:]
            reader = pa.ipc.open_file(body)
            self.table = reader.read_all()
        record = json.loads(self.table.schema.metadata[b"record"])
        self.splits: dict[str, tuple[int, int]] = {k: tuple(v) for k, v in record["splits"].items()}  # rows of each
        self.skipped: list[dict] = record["skipped"]
        self.summary = Summary(**record["summary"])
        self.checks: dict[str, str] = record["checks"]
        self._offsets: dict[str, np.ndarray] = {}

    def __len__(self) -> int:
        return len(self.table)

    def column(self, name: str) -> np.ndarray:
        """A numeric column, (N,)."""
        return self.table.column(name).to_numpy()

    def path(self, kind: str) -> Path:
        return self.journal.with_suffix(f".{kind}")

    def offsets(self, kind: str) -> np.ndarray:
        """(N + 1,) int64: payload i is bytes offsets[i] to offsets[i + 1] of its file."""
        if kind not in self._offsets:
            self._offsets[kind] = np.concatenate(([0], np.cumsum(self.column(f"{kind}_bytes"))))
        return self._offsets[kind]

    def read_into(self, kind: str, start: int, buffers: list) -> None:
        """Read the payloads of consecutive samples from `start` on, each into a buffer of its size."""
        offsets = self.offsets(kind)
        with open(self.path(kind), "rb", buffering=0) as f:
            for at in range(0, len(buffers), BATCH):
                batch = buffers[at : at + BATCH]
                expected = int(offsets[start + at + len(batch)] - offsets[start + at])
                if os.preadv(f.fileno(), batch, int(offsets[start + at])) != expected:
                    raise Error(f"{f.name} is shorter than its journal says; delete it and run the same command again")


def check(journal: Path) -> bool:
    """Whether a part found on disk is whole: a power cut may leave a renamed file without its bytes."""
    data = journal.read_bytes()
    if len(data) < 8 or xxhash.xxh3_64_digest(data[8:]) != data[:8]:
        return False
    part = Part(journal)
    for kind, expected in part.checks.items():
        found = xxhash.xxh3_64()
        try:
            with open(part.path(kind), "rb") as f:
                while chunk := f.read(1 << 22):
                    found.update(chunk)
        except FileNotFoundError:
            return False
        if found.hexdigest() != expected:
            return False
    return True


def cut_off(part: Part, row: int) -> None:
    """Give back the disk space of the payloads from a row on."""
    for kind in KINDS:
        if part.path(kind).exists():
            os.truncate(part.path(kind), int(part.offsets(kind)[row]))
