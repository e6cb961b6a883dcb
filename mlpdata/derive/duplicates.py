"""Images that occur more than once in a shard directory: those of equal pixels.

That is the stored RGB pixels, before any lossy encoding: the index has a 64-bit digest of each. Memory grows by some 40
bytes a sample, for no image is read. Images that only look alike are found by reading all of them, see `near`.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path

import numpy as np

from mlpdata.derive import near
from mlpdata.derive.parents import open_parents
from mlpdata.errors import Error
from mlpdata.shards import index
from mlpdata.shards.manifest import Manifest
from mlpdata.system.format import plural


@dataclass(frozen=True)
class Duplicates:
    """Samples that have the pixels of another one; rows count through the splits, one after the other."""

    splits: list[str]
    first_rows: np.ndarray  # (splits + 1,) where each split begins
    rows: np.ndarray  # (M,) int64, group by group, the largest group first, rows ascending in each
    starts: np.ndarray  # (groups + 1,) where each group begins in `rows`
    labels: np.ndarray  # (M,) of the rows

    def __len__(self) -> int:
        return len(self.starts) - 1

    def split_of(self, rows: np.ndarray) -> np.ndarray:
        """The number of the split of each row, same shape."""
        return np.searchsorted(self.first_rows, rows, side="right") - 1

    def counts(self) -> np.ndarray:
        """(groups, splits) samples."""
        group = np.repeat(np.arange(len(self)), np.diff(self.starts))
        counts = np.zeros((len(self), len(self.splits)), np.int64)
        np.add.at(counts, (group, self.split_of(self.rows)), 1)
        return counts

    def repeated(self) -> dict[str, int]:
        """By split, the samples that have the pixels of an earlier sample of the split."""
        return {split: int((n - 1).clip(0).sum()) for split, n in zip(self.splits, self.counts().T, strict=True)}

    def leaks(self) -> dict[tuple[str, str], int]:
        """By (split, other split), the samples of the first whose pixels are also in the other."""
        counts, splits = self.counts(), list(enumerate(self.splits))
        return {(a, b): int(counts[counts[:, j] > 0, i].sum()) for i, a in splits for j, b in splits if i != j}

    def is_labelled_differently(self) -> np.ndarray:
        """(groups,) bool: whether the samples of a group have more than one label."""
        if not len(self):
            return np.zeros(0, bool)
        low, high = (f.reduceat(self.labels, self.starts[:-1]) for f in (np.minimum, np.maximum))
        return low != high


def _columns(root: Path, manifest: Manifest) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """(where each split begins, digests, labels) of all splits. Raises Error."""
    columns = [index.columns(root, manifest, split, ["digest", "label"]) for split in manifest.splits]
    first_rows = np.cumsum([0, *(len(c["label"]) for c in columns)])
    digests = np.concatenate([c["digest"] for c in columns])
    labels = np.concatenate([c["label"] for c in columns]).astype(np.int64)
    if labels.min(initial=0) < 0 or labels.max(initial=0) >= manifest.num_classes:
        raise Error(f"{root} has labels of more than {plural(manifest.num_classes, 'class')}; convert again")
    return first_rows, digests, labels


def find_near(root: Path, manifest: Manifest, most_bits: int) -> tuple[Duplicates, np.ndarray]:
    """Pairs of images that look alike and have different pixels, each a group of two; (groups,) bits that differ.

    The pairs of fewest bits come first. Of images with equal pixels one is looked at. Raises Error.
    """
    first_rows, digests, labels = _columns(root, manifest)
    parent = open_parents((root,), None)[0]
    different = np.sort(np.unique(digests, return_index=True)[1])
    looks = near.all_looks((parent, split) for split in manifest.splits)
    pairs = near.near_pairs(looks[different], most_bits)
    order = np.argsort(pairs.bits, kind="stable")
    rows = different[pairs.rows[order]].reshape(-1)
    starts = np.arange(0, len(rows) + 1, 2)
    return Duplicates(list(manifest.splits), first_rows, rows, starts, labels[rows]), pairs.bits[order]


def find_duplicates(root: Path, manifest: Manifest) -> Duplicates:
    """Group samples of equal digests. Raises Error."""
    first_rows, digests, labels = _columns(root, manifest)
    order = np.argsort(digests, kind="stable")
    digests = digests[order]
    firsts = np.flatnonzero(np.append(True, digests[1:] != digests[:-1])[: len(digests)])
    sizes = np.diff(np.append(firsts, len(digests)))
    rows = order[np.repeat(sizes > 1, sizes)]  # group by group, in the order of their digests
    firsts, sizes = order[firsts[sizes > 1]], sizes[sizes > 1]
    by_size = np.lexsort((firsts, -sizes))
    rank = np.empty_like(by_size)
    rank[by_size] = np.arange(len(by_size))
    rows = rows[np.argsort(np.repeat(rank, sizes), kind="stable")]
    starts = np.concatenate([[0], np.cumsum(sizes[by_size])])
    return Duplicates(list(manifest.splits), first_rows, rows, starts, labels[rows])


def name_groups(root: Path, manifest: Manifest, duplicates: Duplicates, groups: Sequence[int]) -> list[list[dict]]:
    """Some of the groups, each sample as {"split", "key", "label"}. Raises Error."""
    starts, stops = duplicates.starts[:-1][groups], duplicates.starts[1:][groups]
    members = np.concatenate([np.arange(a, b) for a, b in zip(starts, stops, strict=True)] or [starts])
    rows, labels = duplicates.rows[members], duplicates.labels[members]
    split_numbers = duplicates.split_of(rows)
    samples: list[dict] = [{}] * len(rows)
    for i, split in enumerate(duplicates.splits):
        members = np.flatnonzero(split_numbers == i)
        members = members[np.argsort(rows[members])]
        keys = index.keys(root, manifest, split, rows[members] - duplicates.first_rows[i])
        for member, key in zip(members.tolist(), keys, strict=True):
            samples[member] = {"split": split, "key": key, "label": int(labels[member])}
    edges = np.cumsum([0, *(stops - starts)]).tolist()
    return [samples[a:b] for a, b in pairwise(edges)]
