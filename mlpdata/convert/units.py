"""Units of work: one unit of a source is read, decoded, resized, encoded and written as a part.

Runs in worker processes. Everything here depends on the unit and the recipe alone.
"""

from __future__ import annotations

import os
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import xxhash

from mlpdata import image
from mlpdata.convert import parts
from mlpdata.convert.sums import PixelSums, Summary
from mlpdata.errors import Error
from mlpdata.sources import Broken, Sample, Source, TooSmall, Unit

HOLD_BYTES = 256 << 20  # of payloads in memory; a larger unit (a thousand images of 500 px) is held in a file


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
    defers: bool  # a JPEG that is stored as it is is decoded when its shard is written, not before
    splits: tuple[str, ...]  # samples of other splits are left out
    training_split: str  # whose pixels make mean and standard deviation


@dataclass(frozen=True)
class Task:
    """One unit to convert.

    limits: of each split that is wanted of it, at most how many samples that can be read; None: all of all.
    decodes_all: nothing is deferred, as something in the unit is known not to decode.
    """

    unit: Unit
    limits: dict[str, int] | None = None
    decodes_all: bool = False

    def __str__(self) -> str:
        return f"unit {self.unit.name}"

    @property
    def num_samples(self) -> int:
        """Expected; 0 where nobody knows."""
        n = self.unit.num_samples
        return n if self.limits is None else min(n, sum(self.limits.values()))


# -------------------------------------------------------------------------------------------------------- convert


def convert_unit(source: Source, recipe: Recipe, task: Task, folder: Path, key: str) -> dict:
    """Read, decode, resize and encode one unit and write its part.

    key: see parts.write.
    Returns the part's record: `splits` (name -> first row and the row behind the last), `skipped`, `small` (images of
    each class that was left out for its size), `summary` and `decodes_all`. Raises Error where the unit has another
    number of samples than it promises.
    """
    rows: list[tuple] = []
    text: list[bytes] = []
    splits: list[str] = []
    skipped: list[dict] = []
    small: dict[str, int] = {}
    total, sums = Summary(), PixelSums()
    defers = recipe.defers and not task.decodes_all and task.limits is None  # else the limit may not be met in the end
    left, num_listed = dict(task.limits or {}), 0
    with _Payloads(folder) as payloads:
        for sample in source.samples(task.unit):
            if isinstance(sample, TooSmall):
                small[sample.class_name] = sample.num_images
                continue
            is_broken = isinstance(sample, Broken)
            num_listed += not is_broken or sample.is_data or sample.is_counted
            split = sample.split or task.unit.split
            if split not in recipe.splits:
                if split not in (*source.splits, task.unit.split):
                    raise RuntimeError(f"{sample.origin} is of split {split!r}, which the source does not have")
                continue
            if task.limits is not None and not left.get(split):
                continue
            try:
                if is_broken:
                    raise image.ImageError(sample.reason)
                row, pixels, encoded = _convert_sample(sample, recipe, defers, total)
            except image.ImageError as e:
                row = {"split": split, "source": _readable(sample.origin), "reason": _readable(str(e))}
                skipped.append(row if not is_broken or sample.is_data else {**row, "is_data": False})
                continue
            except MemoryError:
                raise
            except Exception as e:
                raise RuntimeError(f"while converting {sample.origin}: {type(e).__name__}: {e}") from e
            name, origin = sample.key.encode(), _readable(sample.origin).encode()
            rows.append((*row, len(name), len(origin)))
            text.append(name + origin)
            splits.append(split)
            payloads.append(memoryview(pixels).cast("B") if pixels is not None and recipe.keep_pixels else b"", encoded)
            if pixels is not None and split == recipe.training_split:
                sums.add(pixels)
            if task.limits is not None:
                left[split] -= 1
                if not any(left.values()):
                    break
        if task.unit.exact and task.limits is None and num_listed != task.unit.num_samples:
            raise Error(
                f"{task} has {num_listed:,} images where {task.unit.num_samples:,} were listed: the source changed "
                "while it was read; convert again into another --out, or delete this one first"
            )
        total.num_samples = len(rows)
        total.add(sums.result())
        order = sorted(range(len(rows)), key=lambda i: (splits[i], rows[i][0], text[i]), reverse=True)
        text = [text[i] for i in order]
        table = np.zeros(len(rows), parts.ROW)
        for name, column in zip(COLUMNS, zip(*(rows[i] for i in order), strict=True), strict=bool(rows)):
            table[name] = column
        table["text"] = np.cumsum([0, *map(len, text)])[:-1]
        ordered = [splits[i] for i in order]
        ranges = {s: (ordered.index(s), ordered.index(s) + ordered.count(s)) for s in sorted(set(splits))}
        record = {"splits": ranges, "skipped": skipped, "small": small, "summary": vars(total)}
        record["decodes_all"] = task.decodes_all
        buffers = payloads.iterate(order)
        parts.write(folder, task.unit.name, table, b"".join(text), buffers, record, recipe.durable, key)
    return record


def _readable(text: str) -> str:
    """Text that UTF-8 can hold: what stands for bytes of names that are none is written as \\udcNN."""
    return text if text.isascii() else text.encode("utf-8", "backslashreplace").decode()


COLUMNS = ("hash", "digest", "label", "source_width", "source_height", "width", "height", "pixels_bytes",
           "has_pixels", "encoded_bytes", "key_bytes", "source_bytes")  # fmt: skip


def _convert_sample(
    sample: Sample, recipe: Recipe, defers: bool, total: Summary
) -> tuple[tuple, np.ndarray | None, bytes]:
    """The row (COLUMNS up to encoded_bytes), the pixels (H, W, 3) and the encoding of one sample.

    No pixels where the sample is a JPEG that is stored as it is and its decoding is deferred.
    """
    data, resize = sample.data, recipe.resize
    key_hash = xxhash.xxh3_64_intdigest(sample.key.encode(), recipe.seed)
    is_array, encoded = isinstance(data, np.ndarray), b""
    pixels = None
    if not is_array and (defers or recipe.encoding == "jpg") and (kept := image.kept_jpeg(data, resize)):
        encoded, (width, height) = kept
        if defers:
            row = (key_hash, 0, sample.label, width, height, width, height, 3 * width * height, 0, len(encoded))
            return row, None, encoded
        pixels, source_width, source_height = np.empty((height, width, 3), np.uint8), width, height
        try:
            image.decode_kept(encoded, pixels)
        except image.ImageError:  # other readers would see other pixels, or none: what Pillow sees is encoded anew
            pixels, encoded = None, b""
    if is_array:
        source_height, source_width = data.shape[:2]
        pixels = image.resized(data, resize, source_width, source_height)
    elif pixels is None:
        warned: list[str] = []
        pixels, (source_width, source_height) = image.decode(data, resize, warned=warned)
        total.num_repaired += len(warned)
    pixels = np.ascontiguousarray(pixels)
    height, width = pixels.shape[:2]
    same_size = (width, height) == (source_width, source_height)
    measurable = not same_size and not is_array and source_width * source_height <= image.MEASURED_PIXELS
    if measurable and (key_hash >> 7) % recipe.measure_one_in == 0:
        squared, largest = image.squared_error(data, pixels, resize)
        total.add(
            Summary(
                num_measured=1,
                measured_values=pixels.size,
                measured_squared_error=squared,
                measured_mse_squared=(squared / pixels.size) ** 2,
                measured_max_diff=largest,
            )
        )
    if recipe.encoding == "png":
        encoded = image.encode_png(pixels)
    elif recipe.encoding == "jpg" and not encoded:
        encoded = image.encode_jpeg(pixels, recipe.quality)
        total.num_encoded_here += 1
    pixels_bytes = pixels.nbytes if recipe.keep_pixels else 0
    digest = xxhash.xxh3_64_intdigest(pixels)
    sizes = (source_width, source_height, width, height, pixels_bytes, int(recipe.keep_pixels), len(encoded))
    return (key_hash, digest, sample.label, *sizes), pixels, encoded


class _Payloads:
    """What a unit's samples become, until their order is known: in memory, and beyond HOLD_BYTES in a nameless file."""

    def __init__(self, folder: Path):
        self._folder, self._file = folder, None
        self._items: list[tuple] = []  # (pixels, encoded) in bytes, or (offset, number of bytes) in the file
        self._in_file = self._held = 0

    def append(self, pixels: memoryview | bytes, encoded: bytes) -> None:
        self._items.append((pixels, encoded))
        self._held += len(pixels) + len(encoded)
        if self._held > HOLD_BYTES:
            self._spill()

    def _spill(self) -> None:
        if self._file is None:
            self._file = tempfile.TemporaryFile(dir=self._folder)  # noqa: SIM115 - closed in __exit__
        for i in range(self._in_file, len(self._items)):
            at = self._file.tell()
            self._file.write(self._items[i][0])
            self._file.write(self._items[i][1])
            self._items[i] = (at, self._file.tell() - at)
        self._file.flush()
        self._in_file, self._held = len(self._items), 0

    def iterate(self, order: list[int]) -> Iterator[memoryview | bytes]:
        """The payloads in an order."""
        for i in order:
            first, second = self._items[i]
            if i < self._in_file:
                yield os.pread(self._file.fileno(), second, first)
            else:
                if first:
                    yield first
                if second:
                    yield second

    def __enter__(self) -> _Payloads:
        return self

    def __exit__(self, *_) -> None:
        if self._file is not None:
            self._file.close()
