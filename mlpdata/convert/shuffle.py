"""The shuffle: which rows of which part go into which shard. The parent decides it, workers read it.

The position of a sample in its split is the rank of hash(seed, key). Nobody holds the samples: the parent has some 36
bytes of each for a moment, and leaves two files in the work directory, from which a worker reads what concerns its
shard.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from mlpdata.convert.part import Part
from mlpdata.convert.workdir import WorkDir
from mlpdata.shards import beton

ROW_NUMBER, POINTER = np.dtype("<i4"), np.dtype("<i8")


@dataclass(frozen=True)
class ShuffleTable:
    """The order of one split, on disk."""

    work: WorkDir
    split: str
    num_parts: int

    def rows_of(self, shard: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """(numbers of the parts that hold samples of a shard, first row in each, row behind the last)."""
        offset = shard * self.num_parts * ROW_NUMBER.itemsize
        rows = np.fromfile(self.work.part_rows(self.split), ROW_NUMBER, 2 * self.num_parts, offset=offset)
        stop, start = rows.reshape(2, self.num_parts)
        used = np.flatnonzero(stop > start)
        return used, start[used], stop[used]

    def pointers(self, first: int, n: int) -> np.ndarray:
        """(n,) where the payloads of n samples from `first` on go in the beton."""
        return np.fromfile(self.work.pointers(self.split), POINTER, n, offset=first * POINTER.itemsize)


@dataclass(frozen=True)
class BetonTables:
    """What the tables of a split's beton say, in the order of the split."""

    layout: beton.Layout
    columns: dict[str, np.ndarray]  # (N,) each: sizes, widths, heights, and labels as the source numbers them


def write_shuffle_table(
    table: ShuffleTable, parts: list[Part], shard_size: int, size_field: str | None
) -> tuple[list[int], BetonTables | None]:
    """Decide the order of one split, and write it.

    parts:      all, in the order of the plan.
    shard_size: samples a shard; more where the hashes of several samples are equal: they stay together.
    size_field: which column of ROW has the sizes of the beton's payloads; None where there is no beton.
    Returns the number of samples of each shard, and the beton's tables.
    """
    ranges = [part.record.splits.get(table.split, (0, 0)) for part in parts]
    total = sum(stop - start for start, stop in ranges)
    fields = {"sizes": size_field, "widths": "width", "heights": "height", "labels": "label"} if size_field else {}
    dtypes = {"widths": np.uint16, "heights": np.uint16}  # as the beton has them
    hashes = np.empty(total, np.uint64)
    columns = {name: np.empty(total, dtypes.get(name, np.int32)) for name in fields}
    n = 0
    for part, (start, stop) in zip(parts, ranges, strict=True):
        rows = part.rows(start, stop)[::-1]  # as `write_shard` takes them: equal hashes keep the same order
        hashes[n : n + len(rows)] = rows["hash"]
        for name, field in fields.items():
            columns[name][n : n + len(rows)] = rows[field]
        n += len(rows)
    if fields:
        ranks = np.argsort(hashes, kind="stable")
        hashes = hashes[ranks]
        for name, values in columns.items():  # one value for all, as of raw squares, takes no memory
            is_constant = values.min() == values.max()
            columns[name] = np.broadcast_to(values[0], total) if is_constant else values[ranks]
        del ranks
    else:
        hashes.sort()
    edges = np.unique(hashes[::shard_size])  # the first hash of every shard
    del hashes

    # (shards + 1, parts): the row of each part behind those of each shard, which are also the next shard's first.
    stops = np.empty((len(edges) + 1, len(parts)), ROW_NUMBER)
    for p, (part, (start, stop)) in enumerate(zip(parts, ranges, strict=True)):
        ascending = part.rows(start, stop)["hash"][::-1]
        stops[:-1, p] = stop - np.searchsorted(ascending, edges)
        stops[-1, p] = start
    stops.tofile(table.work.part_rows(table.split))
    lengths = (stops[:-1].astype(np.int64) - stops[1:]).sum(axis=1).tolist()
    if not fields:
        return lengths, None
    layout = beton.layout(columns["sizes"])
    layout.ptrs.view(POINTER).tofile(table.work.pointers(table.split))
    return lengths, BetonTables(layout, columns)
