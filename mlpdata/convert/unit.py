"""Stage 1, in a worker: one unit of the source is read, decoded, resized, encoded and written as a part.

What comes of a unit depends on the unit and the settings alone.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np
import xxhash

from mlpdata import image
from mlpdata.convert import truncation
from mlpdata.convert.deferred import defers
from mlpdata.convert.lent import prepare_lent
from mlpdata.convert.part import ROW, PartRecord, PayloadStore, check_part, write_part
from mlpdata.convert.sums import PixelSums, Summary
from mlpdata.convert.worker import ImageSettings, UnitTask, WorkerContext
from mlpdata.errors import Error
from mlpdata.sources import Broken, Sample, Stored, TooSmall
from mlpdata.system.format import plural

# Of a row, in this order; the last two are added by convert_unit.
COLUMNS = ("hash", "digest", "label", "source_width", "source_height", "width", "height", "pixels_bytes",
           "has_pixels", "encoded_bytes", "key_bytes", "source_bytes")  # fmt: skip


@dataclass(frozen=True)
class PartCounts:
    """How many samples a part holds."""

    samples: dict[str, int]  # by split
    num_skipped: int

    @classmethod
    def of(cls, record: PartRecord) -> PartCounts:
        samples = {split: stop - start for split, (start, stop) in record.splits.items()}
        return cls(samples, sum(row.get("is_data", True) for row in record.skipped))


def check_unit(context: WorkerContext, task: UnitTask) -> PartCounts | None:
    """What the part of a unit holds that an earlier run left; None where it has to be made."""
    may_be_truncated = truncation.begun(context.work, context.plan_digest) is not None
    record = check_part(context.work.part(task.unit.name), context.part_key(task), may_be_truncated)
    return None if record is None else PartCounts.of(record)


def convert_unit(context: WorkerContext, task: UnitTask) -> PartCounts:
    """Read, decode, resize and encode one unit and write its part.

    Raises Error where the unit has another number of samples than it promises.
    """
    source, settings = context.source, context.settings
    if lent := prepare_lent(context, task):
        table, all_text, record = lent
        if len(table) != task.unit.num_samples:
            raise _changed(task, len(table))
        write_part(context.work.part(task.unit.name), table, all_text, (), record, settings.durable,
                   context.part_key(task))  # fmt: skip
        return PartCounts.of(record)
    rows: list[tuple] = []
    text: list[bytes] = []
    splits: list[str] = []
    skipped: list[dict] = []
    small: dict[str, int] = {}
    summary, sums = Summary(), PixelSums()
    left, num_listed = dict(task.limits or {}), 0
    with PayloadStore(context.work.parts) as payloads:
        for sample in source.samples(task.unit):
            if isinstance(sample, TooSmall):
                small[sample.class_name] = sample.num_images
                continue
            num_listed += not isinstance(sample, Broken) or sample.is_data or sample.is_counted
            split = sample.split or task.unit.split
            if not _is_wanted(context, task, sample, split) or (task.limits is not None and not left.get(split)):
                continue
            if isinstance(sample, Broken):
                skipped.append(_skipped(sample, split, sample.reason))
                continue
            try:
                row, pixels, encoded = _converted(context, task, sample, split, summary)
            except image.ImageError as e:
                skipped.append(_skipped(sample, split, str(e)))
                continue
            key, origin = sample.key.encode(), _readable(sample.origin).encode()
            rows.append((*row, len(key), len(origin)))
            text.append(key + origin)
            splits.append(split)
            payloads.append(pixels.data.cast("B") if pixels is not None and settings.keeps_pixels else b"", encoded)
            if pixels is not None and split == settings.training_split:
                sums.add(pixels)
            if task.limits is not None:
                left[split] -= 1
                if not any(left.values()):
                    break
        if task.unit.exact and task.limits is None and num_listed != task.unit.num_samples:
            raise _changed(task, num_listed)
        summary.num_samples = len(rows)
        summary.add(sums.result())
        table, order, ranges = _ordered(rows, text, splits)
        ordered_text = b"".join(text[i] for i in order)
        record = PartRecord(ranges, skipped, small, summary, task.decodes_all, [])
        write_part(context.work.part(task.unit.name), table, ordered_text, payloads.iterate(order), record,
                   settings.durable, context.part_key(task))  # fmt: skip
    return PartCounts.of(record)


def _is_wanted(context: WorkerContext, task: UnitTask, sample: Sample | Broken, split: str) -> bool:
    """Whether the split of a sample is converted."""
    if split in context.settings.splits:
        return True
    if split not in (*context.source.splits, task.unit.split):
        raise RuntimeError(f"{sample.origin} is of split {split!r}, which the source does not have")
    return False


def _converted(
    context: WorkerContext, task: UnitTask, sample: Sample, split: str, summary: Summary
) -> tuple[tuple, np.ndarray | None, bytes]:
    """The row, pixels and encoding of a sample, as `_convert_sample` has them.

    Raises ImageError for what is to be skipped and Error where nothing may be: in a shard directory.
    """
    settings = context.settings
    try:
        if sample.stored is None:
            return _convert_sample(sample, settings, defers(settings, task), summary)
        needs_pixels = settings.keeps_pixels or split == settings.training_split
        return _take_stored(sample, sample.stored, settings, needs_pixels, summary)
    except image.ImageError as e:
        if context.source.is_whole:
            raise Error(f"sample {sample.key} of a shard directory {e}: `mlpdata verify` lists all damage") from None
        raise
    except MemoryError:
        raise
    except Exception as e:
        raise RuntimeError(f"while converting {sample.origin}: {type(e).__name__}: {e}") from e


def _skipped(sample: Sample | Broken, split: str, reason: str) -> dict:
    """The line of skipped.jsonl for a sample."""
    skip = {"split": split, "source": _readable(sample.origin), "reason": _readable(reason)}
    return {**skip, "is_data": False} if isinstance(sample, Broken) and not sample.is_data else skip


def _changed(task: UnitTask, num_found: int) -> Error:
    return Error(
        f"{task} has {plural(num_found, 'image')} where {task.unit.num_samples:,} were listed: the source changed "
        "while it was read; convert again into another --out, or delete this one first"
    )


def _ordered(
    rows: list[tuple], text: list[bytes], splits: list[str]
) -> tuple[np.ndarray, list[int], dict[str, tuple[int, int]]]:
    """The rows in the order of a part: (N,) ROW, the positions they had before, and PartRecord.splits.

    rows: of COLUMNS each. text: of each row its key and source. splits: of each row.
    """
    order = sorted(range(len(rows)), key=lambda i: (splits[i], rows[i][0], text[i]), reverse=True)
    table = np.zeros(len(rows), ROW)
    for name, column in zip(COLUMNS, zip(*(rows[i] for i in order), strict=True), strict=bool(rows)):
        table[name] = column
    table["text"] = np.cumsum([0, *(len(text[i]) for i in order)])[:-1]
    ordered = [splits[i] for i in order]
    return table, order, {s: (ordered.index(s), ordered.index(s) + ordered.count(s)) for s in sorted(set(splits))}


def _readable(text: str) -> str:
    """Text that UTF-8 can hold: what stands for bytes of names that are none is written as \\udcNN."""
    return text if text.isascii() else text.encode("utf-8", "backslashreplace").decode()


def _convert_sample(
    sample: Sample, settings: ImageSettings, is_deferring: bool, summary: Summary
) -> tuple[tuple, np.ndarray | None, bytes]:
    """The row (COLUMNS up to encoded_bytes), the pixels (H, W, 3) uint8 and the encoding of one sample.

    No pixels where the sample is a JPEG that is stored as it is and its decoding is deferred. Raises ImageError.
    """
    data, resize, encoded = sample.data, settings.resize, b""
    key_hash = xxhash.xxh3_64_intdigest(sample.key.encode(), settings.seed)
    if isinstance(data, np.ndarray):
        source_height, source_width = data.shape[:2]
        pixels = image.resized(data, resize, source_width, source_height)
    else:
        pixels, kept = None, None
        if is_deferring or settings.encoding == "jpg":
            kept = image.kept_jpeg(data, resize)
        if kept is not None:
            encoded, (source_width, source_height) = kept
            size = (source_width, source_height)
            if is_deferring:
                pixels_bytes = 3 * source_width * source_height
                return (key_hash, 0, sample.label, *size, *size, pixels_bytes, 0, len(encoded)), None, encoded
            pixels = np.empty((source_height, source_width, 3), np.uint8)
            try:
                image.decode_kept(encoded, pixels)
            except image.ImageError:  # other readers would see other pixels, or none: what Pillow sees is encoded anew
                pixels, encoded = None, b""
        if pixels is None:
            warned: list[str] = []
            pixels, (source_width, source_height) = image.decode(data, resize, warned=warned, exact=settings.exact)
            summary.num_repaired += len(warned)
            is_resized = pixels.shape[:2] != (source_height, source_width)
            is_chosen = not settings.exact and (key_hash >> 7) % settings.measure_one_in == 0
            if is_resized and is_chosen and source_width * source_height <= image.MEASURED_PIXELS:
                _measure(data, pixels, resize, summary)
    pixels = np.ascontiguousarray(pixels)
    height, width = pixels.shape[:2]
    if settings.encoding == "png":
        encoded = image.encode_png(pixels)
    elif settings.encoding == "jpg" and not encoded:
        encoded = image.encode_jpeg(pixels, settings.quality)
        summary.num_encoded_here += 1
    pixels_bytes = pixels.nbytes if settings.keeps_pixels else 0
    sizes = (source_width, source_height, width, height, pixels_bytes, int(settings.keeps_pixels), len(encoded))
    return (key_hash, xxhash.xxh3_64_intdigest(pixels.data), sample.label, *sizes), pixels, encoded


def _take_stored(
    sample: Sample, stored: Stored, settings: ImageSettings, needs_pixels: bool, summary: Summary
) -> tuple[tuple, np.ndarray | None, bytes]:
    """As `_convert_sample`, of a sample of a shard directory: what is there already is not made again."""
    if not stored.is_final:
        row, pixels, encoded = _convert_sample(sample, settings, False, summary)
        return (*row[:3], *stored.source_size, *row[5:]), pixels, encoded
    data, pixels, digest, encoded = sample.data, stored.pixels, stored.digest, b""
    if isinstance(data, np.ndarray):
        pixels = data
    elif stored.codec == settings.encoding:
        encoded = data
    if pixels is None and (needs_pixels or (settings.encoding and not encoded)):
        pixels, of_pixels = _decode_stored(sample, stored)
        if stored.codec == "jpg":
            digest = of_pixels if settings.keeps_pixels or settings.encoding == "png" else digest
        elif of_pixels != digest:
            raise image.ImageError("has other pixels than its index says")
    if settings.encoding and not encoded:
        assert pixels is not None
        encoded = (
            image.encode_png(pixels) if settings.encoding == "png" else image.encode_jpeg(pixels, settings.quality)
        )
        summary.num_encoded_here += settings.encoding == "jpg"
    width, height = stored.size
    pixels_bytes = 3 * width * height if settings.keeps_pixels else 0
    key_hash = xxhash.xxh3_64_intdigest(sample.key.encode(), settings.seed)
    sizes = (*stored.source_size, width, height, pixels_bytes, int(settings.keeps_pixels), len(encoded))
    return (key_hash, digest, sample.label, *sizes), pixels, encoded


def _decode_stored(sample: Sample, stored: Stored) -> tuple[np.ndarray, int]:
    """The pixels of an encoding, (H, W, 3) uint8, and their digest. Raises ImageError."""
    assert isinstance(sample.data, bytes)
    width, height = stored.size
    if stored.codec == "jpg":
        pixels = np.empty((height, width, 3), np.uint8)
        image.decode_kept(sample.data, pixels)
    else:
        pixels = image.decode_exact(sample.data, stored.size)
    return pixels, xxhash.xxh3_64_intdigest(pixels.data)


def _measure(data: bytes, pixels: np.ndarray, resize: image.Resize, summary: Summary) -> None:
    """Add the difference between these pixels and those of the exact decode."""
    squared, largest = image.squared_error(data, pixels, resize)
    measured = Summary(num_measured=1, measured_values=pixels.size, measured_squared_error=squared)
    mse = squared / pixels.size
    summary.add(replace(measured, measured_mse_squared=mse**2, measured_max_diff=largest))
