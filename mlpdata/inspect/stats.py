"""What can be counted in a shard directory: samples a class, and images that occur more than once.

Duplicates are images whose stored RGB pixels, before any lossy encoding, are equal: the index has a 64-bit digest of
each. Memory grows by some 40 bytes a sample, for no image is read.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path

import numpy as np

from mlpdata.errors import Error
from mlpdata.shards import index
from mlpdata.shards.classes import read_classes, short_names
from mlpdata.shards.manifest import Manifest
from mlpdata.shards.text import json_text, rounded, shown
from mlpdata.system.format import plural

MAX_SHOWN_GROUPS = 5
MAX_JSON_GROUPS = 10_000
MAX_SHOWN_CLASSES = 3


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


def stats(root: Path, as_json: bool = False) -> str:
    """Class counts, mean and std, and duplicates within and across splits, for people or for programs.

    Raises Error where there is no finished directory, or no index that fits it.
    """
    root = Path(root)
    manifest = Manifest.load(root)
    manifest.check_sizes(root)
    names = short_names(read_classes(root, manifest))
    duplicates = find_duplicates(root, manifest)
    within, across = duplicates.repeated(), duplicates.leaks()
    if not as_json:
        return "\n".join(_lines(root, manifest, names, duplicates, within, across))
    facts = {
        "splits": {split: _class_facts(manifest, split) for split in manifest.splits},
        "mean": manifest.mean,
        "std": manifest.std,
        "repeated": within,
        "across": {f"{a} in {b}": n for (a, b), n in across.items()},
        "groups_labelled_differently": int(duplicates.is_labelled_differently().sum()),
        "num_groups": len(duplicates),
        "groups": name_groups(root, manifest, duplicates, range(min(MAX_JSON_GROUPS, len(duplicates)))),
    }
    return json_text(facts).rstrip()


def _class_facts(manifest: Manifest, split: str) -> dict:
    counts = np.array(manifest.splits[split].class_counts)
    return {
        "num_samples": manifest.splits[split].num_samples,
        "num_classes": int((counts > 0).sum()),
        "class_counts": {"min": int(counts.min()), "median": float(np.median(counts)), "max": int(counts.max())},
    }


def _lines(
    root: Path,
    manifest: Manifest,
    names: list[str],
    duplicates: Duplicates,
    within: dict[str, int],
    across: dict[tuple[str, str], int],
) -> Iterator[str]:
    for split, info in manifest.splits.items():
        facts = _class_facts(manifest, split)
        low, median, high = facts["class_counts"].values()
        classes = f"{facts['num_classes']:,} of {plural(manifest.num_classes, 'class')}"
        yield f"{f'split {split}':<12} {plural(info.num_samples, 'sample')} of {classes}"
        if low == high:
            yield f"{'':<12} {high:,} a class"
            continue
        yield f"{'':<12} {low:,} to {high:,} a class, median {median:,.0f}"
        order = np.argsort(info.class_counts, kind="stable").tolist()
        for word, some in (("fewest", order[:MAX_SHOWN_CLASSES]), ("most", order[::-1][:MAX_SHOWN_CLASSES])):
            yield f"{'':<12} {word}: " + ", ".join(f"{names[c]} {info.class_counts[c]:,}" for c in some)
    yield f"{'mean, std':<12} {rounded(manifest.mean)}, {rounded(manifest.std)}"
    title = "duplicates"
    for split, n in within.items():
        total = manifest.splits[split].num_samples
        yield f"{title:<12} {split}: {n:,} of {total:,} ({n / max(total, 1):.2%}) repeat the pixels of another sample"
        title = ""
    for (split, other), n in across.items():
        if n:
            yield f"{'':<12} leak: {plural(n, f'{split} image')} also in {other}"
    if n := int(duplicates.is_labelled_differently().sum()):
        yield f"{'':<12} {plural(n, 'group')} of equal images, of {len(duplicates):,}, with more than one label"
    for group in name_groups(root, manifest, duplicates, range(min(MAX_SHOWN_GROUPS, len(duplicates)))):
        some = ", ".join(f"{s['split']}/{shown(s['key'])} ({names[s['label']]})" for s in group[:4])
        yield f"{'':<12} {len(group):,} times: {some}{', ...' if len(group) > 4 else ''}"


def find_duplicates(root: Path, manifest: Manifest) -> Duplicates:
    """Group samples of equal digests. Raises Error."""
    columns = [index.columns(root, manifest, split, ["digest", "label"]) for split in manifest.splits]
    first_rows = np.cumsum([0, *(len(c["label"]) for c in columns)])
    digests = np.concatenate([c["digest"] for c in columns])
    labels = np.concatenate([c["label"] for c in columns]).astype(np.int64)
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
