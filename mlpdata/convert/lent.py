"""Lent payloads: what a shard directory stores just as the output will is read there when a shard is written.

A part of such a unit has rows and no payloads: a row says where its pixels and its encoding lie in the files of the
directory. So the bytes are written once, not twice, and take no space besides. That is done where the rows of the unit
follow the order of the output, as they do with the seed of the directory: with another seed every shard would gather
its samples from places all over, and a part is what brings them together. Encodings are proven by the SHA-256 of their
file before the part counts, pixels by their digests when they are read.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import xxhash

from mlpdata.convert.part import BUFFERS, ROW, Part, PartRecord
from mlpdata.convert.sums import PixelSums, Summary
from mlpdata.convert.worker import ImageSettings, UnitTask, WorkerContext
from mlpdata.derive.choose import LEFT_OUT, REMOVED
from mlpdata.derive.read import GAP_BYTES, Payloads, check_file
from mlpdata.derive.source import Rows, ShardSource
from mlpdata.errors import Error

Prepared = tuple[np.ndarray, bytes, PartRecord]  # rows (N,) ROW, their text, and the record of a part


def prepare_lent(context: WorkerContext, task: UnitTask) -> Prepared | None:
    """The part of a unit whose payloads are lent; None where they have to be copied. Raises Error for damage."""
    source, settings, content = context.source, context.settings, task.unit.content
    if not (isinstance(source, ShardSource) and isinstance(content, Rows)):
        return None
    parent = source.parents[content.parent]
    if not source.lends(parent) or (not settings.keeps_pixels and settings.training_split in task.unit.splits):
        return None
    index, targets = source.rows_of(content)
    chosen = np.flatnonzero((targets != LEFT_OUT) & (targets != REMOVED))
    names = source.key_names(content, index)
    keys = [names[i].encode() for i in chosen.tolist()]
    hashes = np.array([xxhash.xxh3_64_intdigest(key, settings.seed) for key in keys], np.uint64)
    if (hashes[1:] < hashes[:-1]).any():
        return None
    for name in content.checks:
        check_file(parent, name)
    # As parts have it: by split and then by hash, both descending.
    split_of = np.array(["", *source.splits])[targets[chosen]]
    order = np.lexsort((np.arange(len(chosen)), split_of))[::-1]
    chosen, split_of = chosen[order], split_of[order]
    text = [(keys[i], index.source[c].encode()) for i, c in zip(order.tolist(), chosen.tolist(), strict=True)]
    rows = np.zeros(len(chosen), ROW)
    rows["hash"], rows["digest"] = hashes[order], index.digest[chosen]
    rows["label"] = source.maps[content.parent][index.label[chosen]]
    for name in ("source_width", "source_height", "width", "height"):
        rows[name] = getattr(index, name)[chosen]
    rows["key_bytes"], rows["source_bytes"] = ([len(pair[i]) for pair in text] for i in (0, 1))
    lengths = rows["key_bytes"].astype(np.int64) + rows["source_bytes"]
    rows["text"] = np.cumsum(lengths) - lengths
    payloads, files = Payloads(parent, content.split, content.first, index), ["", ""]
    if settings.keeps_pixels:
        rows["pixels_bytes"], rows["has_pixels"] = 3 * rows["width"] * rows["height"], 1
        files[0], rows["data"] = payloads.places(parent.raw or "", chosen)
    if settings.encoding and parent.encoding:
        rows["encoded_bytes"] = index.bytes[chosen]
        files[1], rows["encoded_at"] = payloads.places(parent.encoding[0], chosen)
    ranges = {}
    for split in sorted(set(split_of.tolist())):
        places = np.flatnonzero(split_of == split)
        ranges[split] = (int(places[0]), int(places[-1]) + 1)
    skipped = [
        {"split": broken.split, "source": broken.origin, "reason": broken.reason, "is_data": False}
        for broken in source.removed(content, index, targets)
    ]
    record = PartRecord(ranges, skipped, {}, Summary(num_samples=len(rows)), task.decodes_all, [],
                        (content.parent, files[0], files[1]))  # fmt: skip
    return rows, b"".join(piece for pair in text for piece in pair), record


def read_lent(source, part: Part, rows: np.ndarray, pixels: Sequence, encoded: Sequence) -> None:
    """Read what is lent. rows: (n,) ROW of one part, their hashes ascending. pixels, encoded: n buffers, to be filled.

    Raises Error where a file is cut, and for pixels that are not those of the index.
    """
    assert part.lent is not None
    number, pixels_file, encoded_file = part.lent
    parent = source.parents[number]
    for name, places, buffers in ((pixels_file, rows["data"], pixels), (encoded_file, rows["encoded_at"], encoded)):
        if name and not _read_scattered(parent.root / name, places.tolist(), buffers):
            raise parent.damaged(parent.root / name, "is cut short")
    if pixels_file:
        for payload, digest in zip(pixels, rows["digest"].tolist(), strict=True):
            if xxhash.xxh3_64_intdigest(payload) != digest:
                raise parent.damaged(parent.root / pixels_file, "is damaged: a sample has other pixels than listed")


def add_lent(settings: ImageSettings, sums: PixelSums, pixels: list | np.ndarray, lent: np.ndarray) -> None:
    """Add the pixels of lent samples to sums. lent: (n,) bool."""
    if not settings.keeps_pixels or not lent.any():
        return
    if isinstance(pixels, np.ndarray):
        sums.add_many(pixels if lent.all() else pixels[lent])
    else:
        for i in np.flatnonzero(lent).tolist():
            sums.add_many(np.frombuffer(pixels[i], np.uint8).reshape(1, -1))


def _read_scattered(path: Path, offsets: list[int], buffers: Sequence) -> bool:
    """Fill buffers from offsets of a file, many in a call: what lies between two of them is read, too, if it is short.

    Returns False where the file ends before. Raises Error where it cannot be read.
    """
    gap = memoryview(bytearray(GAP_BYTES))
    try:
        fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    except OSError as e:
        raise Error(f"cannot read {path}: {e.strerror}") from None
    try:
        i = 0
        while i < len(offsets):
            first = end = offsets[i]
            batch = []
            while i < len(offsets) and len(batch) < BUFFERS - 1 and end <= offsets[i] <= end + GAP_BYTES:
                if offsets[i] > end:
                    batch.append(gap[: offsets[i] - end])
                batch.append(buffers[i])
                end = offsets[i] + len(buffers[i])
                i += 1
            if first < 0 or os.preadv(fd, batch, first) != end - first:
                return False
        return True
    except OSError as e:
        raise Error(f"cannot read {path}: {e.strerror}") from None
    finally:
        os.close(fd)
