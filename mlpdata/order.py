"""The shuffled order: which stretch of which part goes into which shard, settled by the parent, read by the workers.

Position in a split is rank of hash(seed, key). Nobody holds the samples: the parent has 8 to 24 bytes of each for a
moment, and leaves two files in the work directory from which a worker reads the few rows its shard needs.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np

from mlpdata import beton
from mlpdata.parts import Part

PLACE, POINTER = np.dtype("<i4"), np.dtype("<i8")


@dataclass(frozen=True)
class Order:
    """Where the samples of one split are and go."""

    work: Path
    split: str
    num_parts: int

    @property
    def places_path(self) -> Path:
        return self.work / f"{self.split}.places"

    @property
    def pointers_path(self) -> Path:
        return self.work / f"{self.split}.pointers"

    def stretches(self, shard: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """(numbers of the parts that have samples of a shard, first row in each, row behind the last)."""
        rows = np.fromfile(self.places_path, PLACE, 2 * self.num_parts, offset=shard * self.num_parts * PLACE.itemsize)
        stop, start = rows.reshape(2, self.num_parts)
        used = np.flatnonzero(stop > start)
        return used, start[used], stop[used]

    def pointers(self, first: int, n: int) -> tuple[np.ndarray, int]:
        """(where n samples from `first` on go in the beton, where its allocation table begins)."""
        table = int(np.fromfile(self.pointers_path, POINTER, 1)[0])
        return np.fromfile(self.pointers_path, POINTER, n, offset=(1 + first) * POINTER.itemsize), table


def settle(
    order: Order, parts: list[Path], shard_size: int, size_field: str | None
) -> tuple[list[int], beton.Layout | None]:
    """Write the order of one split.

    parts:      journals of all parts, in the order of the plan.
    size_field: which column of ROW has the beton's payload sizes; None where there is no beton.
    Returns (samples of each shard, layout of the beton).
    """
    ranges = [Part(path).record["splits"].get(order.split, (0, 0)) for path in parts]
    total = sum(stop - start for start, stop in ranges)
    hashes, sizes = np.empty(total, np.uint64), np.empty(total if size_field else 0, np.int32)
    at = 0
    for path, (start, stop) in zip(parts, ranges, strict=True):
        rows = Part(path).rows(start, stop)
        hashes[at : at + len(rows)] = rows["hash"]
        if size_field:
            sizes[at : at + len(rows)] = rows[size_field]
        at += len(rows)
    if size_field and sizes.min() < sizes.max():
        ranks = np.argsort(hashes, kind="stable")
        hashes, sizes = hashes[ranks], sizes[ranks]
        del ranks
    else:  # raw squares: nothing to sort along, and no need for a size of each
        hashes.sort()
        sizes = np.broadcast_to(sizes[:1].astype(np.int64), total) if size_field else sizes
    edges = np.unique(hashes[::shard_size])  # the first hash of every shard; equal hashes stay together
    del hashes

    # (shards + 1, parts): where in each part the stretch of each shard ends.
    places = np.empty((len(edges) + 1, len(parts)), PLACE)
    for p, (path, (start, stop)) in enumerate(zip(parts, ranges, strict=True)):
        ascending = Part(path).rows(start, stop)["hash"][::-1]
        places[:-1, p] = stop - np.searchsorted(ascending, edges)
        places[-1, p] = start
    places.tofile(order.places_path)
    layout = None
    if size_field:
        layout = beton.layout(sizes)
        with open(order.pointers_path, "wb") as f:
            f.write(np.array([layout.alloc_table_ptr], POINTER).tobytes())
            layout.ptrs.view(POINTER).tofile(f)
    return (places[:-1].astype(np.int64) - places[1:]).sum(axis=1).tolist(), layout
