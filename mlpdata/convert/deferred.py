"""Deferred decoding: a JPEG that is stored as it is is decoded when its shard is written, not when its unit is read.

Where a JPEG has the size of the output already, its bytes go into the tar untouched, and its pixels are wanted besides,
for a raw beton and for the index's digest. Pixels take five to ten times the space of the JPEG. So the part holds the
JPEG alone (`has_pixels` 0), and `write_shard` decodes it into the memory from which the beton is written: the pixels
never go through a part. The price is that a JPEG with whole headers and damage inside is found late. `write_shard` then
writes nothing and returns a DeferredFailure with the parts that hold such JPEGs. The conductor removes what was written
of the shards (`discard_shards`), converts those units again with `decodes_all`, which skips and lists the damaged
images as at any other time, and begins stage 2 anew. Nothing is deferred where --limit counts the images that can be
read, nor where PNGs are encoded, which need the pixels at once.
"""

from __future__ import annotations

import shutil
from dataclasses import dataclass

import numpy as np
import xxhash

from mlpdata import image
from mlpdata.convert import truncation
from mlpdata.convert.sums import PixelSums
from mlpdata.convert.workdir import WorkDir
from mlpdata.convert.worker import ImageSettings, UnitTask
from mlpdata.system.files import sync_dir


@dataclass(frozen=True)
class DeferredFailure:
    """A shard that cannot be written: JPEGs whose decoding was deferred turned out to be damaged."""

    parts: set[int]  # the numbers of those that hold such JPEGs


def defers(settings: ImageSettings, task: UnitTask) -> bool:
    """Whether the JPEGs of a unit that are stored as they are are decoded later."""
    return settings.keeps_pixels and settings.encoding != "png" and not task.decodes_all and task.limits is None


def decode_deferred(
    rows: np.ndarray, part_of: np.ndarray, encoded: list, pixels: list | np.ndarray, sums: PixelSums | None
) -> set[int]:
    """Decode what was deferred of a block of samples.

    rows:    (n,) ROW; the digests of what is decoded are filled in.
    part_of: (n,) the number of the part that each sample comes from.
    encoded: n JPEGs.
    pixels:  n buffers, or (n, size) uint8 where all have one size; filled where the decoding was deferred.
    sums:    those pixels are added to it.
    Returns the numbers of the parts that hold JPEGs which do not decode.
    """
    deferred = np.flatnonzero((rows["has_pixels"] == 0) & (rows["pixels_bytes"] > 0))
    shapes = zip(rows["height"][deferred].tolist(), rows["width"][deferred].tolist(), strict=True)
    failed, digests = set(), []
    for i, (height, width) in zip(deferred.tolist(), shapes, strict=True):
        decoded = np.frombuffer(pixels[i], np.uint8).reshape(height, width, 3)
        try:
            image.decode_kept(encoded[i], decoded)
        except image.ImageError:
            failed.add(int(part_of[i]))
        digests.append(xxhash.xxh3_64_intdigest(decoded.data))
    rows["digest"][deferred] = digests
    if sums is not None and isinstance(pixels, np.ndarray) and len(deferred):
        sums.add_many(pixels if len(deferred) == len(rows) else pixels[deferred])
    elif sums is not None:
        for i in deferred.tolist():
            sums.add_many(np.frombuffer(pixels[i], np.uint8).reshape(1, -1))
    return failed


def discard_shards(work: WorkDir, splits: list[str]) -> None:
    """Remove every shard that was written: units with damaged JPEGs are converted again, which changes the order.

    Parts of a large output that were truncated are found damaged by the next check, and made again. This is rare
    enough; decoding every JPEG first would cost every run up to a quarter of its time.
    """
    truncation.end(work)  # before anything else: where its note stands, parts may be truncated
    for split in splits:
        for path in (*work.root.glob(f"{split}-*.tar"), work.beton(split)):
            path.unlink(missing_ok=True)
    shutil.rmtree(work.shards)
    sync_dir(work.path)
