"""What can be counted in a shard directory: classes, and images that are there more than once.

Duplicates are images whose stored RGB pixels, before any lossy encoding, are equal: the index has a 64-bit digest of
each. Memory grows by some 40 bytes a sample, for no image is read.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from mlpdata.errors import Error
from mlpdata.shards import index
from mlpdata.shards.classes import read_classes, short_names
from mlpdata.shards.manifest import Manifest
from mlpdata.shards.text import json_text, shown

TOLD_GROUPS = 5
MAX_GROUPS = 10_000  # that --json lists
TOLD_CLASSES = 3


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

    def group(self, g: int) -> np.ndarray:
        return self.rows[self.starts[g] : self.starts[g + 1]]

    def split_of(self, rows: np.ndarray) -> np.ndarray:
        """The number of the split of each row, same shape."""
        return np.searchsorted(self.first_rows, rows, side="right") - 1

    def counts(self) -> np.ndarray:
        """(groups, splits) samples."""
        group = np.repeat(np.arange(len(self)), np.diff(self.starts))
        counts = np.zeros((len(self), len(self.splits)), np.int64)
        np.add.at(counts, (group, self.split_of(self.rows)), 1)
        return counts

    def num_labelled_differently(self) -> int:
        """Groups that have more than one label."""
        if not len(self):
            return 0
        low, high = (f.reduceat(self.labels, self.starts[:-1]) for f in (np.minimum, np.maximum))
        return int((low != high).sum())


def stats(root: Path, as_json: bool = False) -> str:
    """Class counts, mean and std, and duplicates within and across splits, for people or for programs.

    Raises Error where there is no finished directory, or no index that fits it.
    """
    root = Path(root)
    manifest = Manifest.load(root)
    manifest.check_sizes(root)
    names = short_names(read_classes(root, manifest))
    found = _find_duplicates(root, manifest)
    counts = found.counts()
    within = {s: int((counts[:, i] - 1).clip(0).sum()) for i, s in enumerate(found.splits)}
    across = {
        f"{a} in {b}": int(counts[counts[:, j] > 0, i].sum())
        for i, a in enumerate(found.splits)
        for j, b in enumerate(found.splits)
        if i != j
    }
    if as_json:
        groups = list(_named(root, manifest, found, MAX_GROUPS))
        return json_text(
            {
                "splits": {s: _classes(manifest, s) for s in manifest.splits},
                "mean": manifest.mean,
                "std": manifest.std,
                "repeated": within,
                "across": across,
                "groups_labelled_differently": found.num_labelled_differently(),
                "num_groups": len(found),
                "groups": groups,
            }
        ).rstrip()
    return "\n".join(_lines(root, manifest, names, found, within, across))


def _classes(manifest: Manifest, split: str) -> dict:
    counts = np.array(manifest.splits[split].class_counts)
    return {
        "num_samples": manifest.splits[split].num_samples,
        "num_classes": int((counts > 0).sum()),
        "class_counts": {"min": int(counts.min()), "median": float(np.median(counts)), "max": int(counts.max())},
    }


def _lines(
    root: Path, manifest: Manifest, names: list[str], found: Duplicates, within: dict, across: dict
) -> Iterator[str]:
    for split, info in manifest.splits.items():
        counts = np.array(info.class_counts)
        facts = _classes(manifest, split)["class_counts"]
        there = f"{(counts > 0).sum():,} of {len(counts):,} classes"
        yield f"{f'split {split}':<12} {info.num_samples:,} samples of {there}"
        if facts["min"] == facts["max"]:
            yield f"{'':<12} {facts['max']:,} a class"
        else:
            yield f"{'':<12} {facts['min']:,} to {facts['max']:,} a class, median {facts['median']:,.0f}"
            order = np.argsort(counts, kind="stable")
            for word, some in (("fewest", order[:TOLD_CLASSES]), ("most", order[::-1][:TOLD_CLASSES])):
                yield f"{'':<12} {word}: " + ", ".join(f"{names[c]} {counts[c]:,}" for c in some)
    mean, std = (", ".join(f"{v:.4f}" for v in values) for values in (manifest.mean, manifest.std))
    yield f"{'mean, std':<12} ({mean}), ({std})"
    title = "duplicates"
    for split, n in within.items():
        total = manifest.splits[split].num_samples
        yield f"{title:<12} {split}: {n:,} of {total:,} samples ({n / max(total, 1):.2%}) repeat the pixels of another"
        title = ""
    for name, n in across.items():
        if n:
            these, other = name.split(" in ")
            yield f"{'':<12} leak: {n:,} {these} {'images' if n > 1 else 'image'} also in {other}"
    if n := found.num_labelled_differently():
        yield f"{'':<12} {n:,} of {len(found):,} groups of equal images have more than one label"
    for group in _named(root, manifest, found, TOLD_GROUPS):
        some = ", ".join(f"{s['split']}/{shown(s['key'])} ({names[s['label']]})" for s in group[:4])
        yield f"{'':<12} {len(group):,} times: {some}{', ...' if len(group) > 4 else ''}"


def _find_duplicates(root: Path, manifest: Manifest) -> Duplicates:
    digests, labels = [], []
    for split in manifest.splits:
        for column, name in ((digests, "digest"), (labels, "label")):
            column.append(index.column(root, manifest, split, name))
    first_rows = np.cumsum([0, *map(len, digests)])
    digests, labels = np.concatenate(digests), np.concatenate(labels).astype(np.int64)
    if labels.min(initial=0) < 0 or labels.max(initial=0) >= manifest.num_classes:
        raise Error(f"{root} has labels of more than {manifest.num_classes} classes; convert again")
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


def _named(root: Path, manifest: Manifest, found: Duplicates, most: int) -> Iterator[list[dict]]:
    """The first groups, each sample with its split, key and label."""
    groups = [found.group(g) for g in range(min(most, len(found)))]
    keys: dict[int, str] = {}
    wanted = np.sort(np.concatenate(groups)) if groups else found.rows[:0]
    for i, split in enumerate(found.splits):
        first, stop = found.first_rows[i : i + 2]
        here = wanted[(wanted >= first) & (wanted < stop)]
        at = int(first)
        with index.opened(root, manifest, split) as table:
            for g in range(table.num_row_groups):
                n = table.metadata.row_group(g).num_rows
                inside = here[(here >= at) & (here < at + n)]
                if len(inside):
                    column = table.read_row_group(g, columns=["key"]).column("key")
                    keys.update(zip(inside.tolist(), index.texts(column.take(inside - at)), strict=True))
                at += n
    for g, group in enumerate(groups):
        labels = found.labels[found.starts[g] : found.starts[g + 1]].tolist()
        yield [
            {"split": found.splits[i], "key": keys[row], "label": label}
            for row, i, label in zip(group.tolist(), found.split_of(group).tolist(), labels, strict=True)
        ]
