"""The shuffled order: which stretch of which part goes into which shard, settled by the parent, read by the workers.

Position in a split is rank of hash(seed, key). Nobody holds the samples: the parent has some 36 bytes of each for a
moment, and leaves two files in the work directory from which a worker reads the few rows its shard needs.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np

from mlpdata.convert.parts import Part
from mlpdata.shards import beton

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

    def pointers(self, first: int, n: int) -> np.ndarray:
        """Where n samples from `first` on go in the beton."""
        return np.fromfile(self.pointers_path, POINTER, n, offset=first * POINTER.itemsize)


@dataclass(frozen=True)
class Beton:
    """What the tables of a split's beton say, in the order of the split."""

    layout: beton.Layout
    columns: dict[str, np.ndarray]  # (N,) each: sizes, widths, heights, and labels as the source numbers them


def settle(order: Order, parts: list[Path], shard_size: int, size_field: str | None) -> tuple[list[int], Beton | None]:
    """Write the order of one split.

    parts:      journals of all parts, in the order of the plan.
    size_field: which column of ROW has the beton's payload sizes; None where there is no beton.
    Returns the number of samples of each shard, and what goes into the beton.
    """
    ranges = [Part(path).record["splits"].get(order.split, (0, 0)) for path in parts]
    total = sum(stop - start for start, stop in ranges)
    fields = {"sizes": size_field, "widths": "width", "heights": "height", "labels": "label"} if size_field else {}
    narrow = {"widths": np.uint16, "heights": np.uint16}  # as the beton has them
    hashes = np.empty(total, np.uint64)
    columns = {name: np.empty(total, narrow.get(name, np.int32)) for name in fields}
    at = 0
    for path, (start, stop) in zip(parts, ranges, strict=True):
        rows = Part(path).rows(start, stop)[::-1]  # as a shard is put together: of equal hashes too in the same order
        hashes[at : at + len(rows)] = rows["hash"]
        for name, field in fields.items():
            columns[name][at : at + len(rows)] = rows[field]
        at += len(rows)
    if fields:
        ranks = np.argsort(hashes, kind="stable")
        hashes = hashes[ranks]
        for name, values in columns.items():  # raw squares: no need for a size of each
            same = values.min() == values.max()
            columns[name] = np.broadcast_to(values[0], total) if same else values[ranks]
        del ranks
    else:
        hashes.sort()
    edges = np.unique(hashes[::shard_size])  # the first hash of every shard; equal hashes stay together
    del hashes

    # (shards + 1, parts): where in each part the stretch of each shard ends.
    places = np.empty((len(edges) + 1, len(parts)), PLACE)
    for p, (path, (start, stop)) in enumerate(zip(parts, ranges, strict=True)):
        ascending = Part(path).rows(start, stop)["hash"][::-1]
        places[:-1, p] = stop - np.searchsorted(ascending, edges)
        places[-1, p] = start
    places.tofile(order.places_path)
    lengths = (places[:-1].astype(np.int64) - places[1:]).sum(axis=1).tolist()
    if not fields:
        return lengths, None
    layout = beton.layout(columns["sizes"])
    layout.ptrs.view(POINTER).tofile(order.pointers_path)
    return lengths, Beton(layout, columns)
