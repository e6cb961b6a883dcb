"""Which samples of shard directories are taken, and into which split: columns of numbers, no image is read.

A choice is drawn by the hash of (seed, key), the number by which splits are shuffled: the same samples are taken
wherever they stand, `--per-class 10` takes some of those that `--per-class 20` takes, and of a directory that has the
same seed `--limit N` takes the first N.
"""

from __future__ import annotations

import itertools
from dataclasses import dataclass, field

import numpy as np
import xxhash

from mlpdata.derive import near
from mlpdata.derive.derivation import NEAR_BITS, Derivation
from mlpdata.derive.parents import ClassMaps, Parent
from mlpdata.errors import Error
from mlpdata.shards import index
from mlpdata.sources import keys
from mlpdata.system.format import plural

LEFT_OUT, REMOVED = 0, 255  # of a sample's target: left out unsaid; left out and listed. Else 1 + the split's number
MAX_SPLITS = 250

Removed = dict[tuple[int, str], dict[int, str]]  # (number of the parent, its split) -> row -> why it is listed


@dataclass
class Choice:
    """Where every sample goes."""

    splits: list[str]  # of the output
    targets: dict[tuple[int, str], np.ndarray]  # (number of the parent, its split) -> (N,) uint8: see LEFT_OUT
    removed: Removed = field(default_factory=dict)
    renamed: dict[tuple[int, str], np.ndarray] = field(default_factory=dict)  # (N,) bool: the parent's name goes before
    notes: list[str] = field(default_factory=list)  # for the user; so are the warnings
    warnings: list[str] = field(default_factory=list)

    def digest(self, maps: list[np.ndarray]) -> str:
        """A hash of the choice. maps: the new label of every class of each parent."""
        check = xxhash.xxh3_128()
        for label_map in maps:
            check.update(label_map.tobytes())
        for key, target in self.targets.items():
            check.update(f"{key} {self.splits} ".encode())
            check.update(target.data)
        return check.hexdigest()

    def takes_all(self, number: int, split: str) -> bool:
        """Whether a split of a parent is taken whole, as the split that it is."""
        target = self.targets.get((number, split))
        return target is not None and split in self.splits and bool((target == 1 + self.splits.index(split)).all())


@dataclass
class _Rows:
    """The samples of all parents and splits, one after the other."""

    starts: dict[tuple[int, str], slice]
    target: np.ndarray  # (N,) uint8
    label: np.ndarray  # (N,) int32, new
    hash: np.ndarray  # (N,) uint64; empty where nothing is drawn
    digest: np.ndarray  # (N,) uint64; empty where nothing is compared

    def first(self, of: np.ndarray, by_class: bool, count) -> np.ndarray:
        """Of the rows `of` ((n,) positions), those with the smallest hashes.

        by_class: of each class. count: of a group's size ((groups,) integers), how many.
        """
        group = self.label[of] if by_class else np.zeros(len(of), np.int32)
        order = np.lexsort((self.hash[of], group))
        group = group[order]
        firsts = np.flatnonzero(np.append(True, group[1:] != group[:-1])[: len(group)])
        sizes = np.diff(np.append(firsts, len(group)))
        rank = np.arange(len(group)) - np.repeat(firsts, sizes)
        return of[order[rank < np.repeat(count(sizes), sizes)]]

    def of_split(self, number: int) -> np.ndarray:
        return np.flatnonzero(self.target == 1 + number)


def choose(parents: list[Parent], splits: list[str], classes: ClassMaps, derivation: Derivation, seed: int) -> Choice:
    """Decide where every sample goes. Raises Error where nothing is left."""
    rows = _rows(parents, splits, classes, derivation, seed)
    splits, notes, warnings, removed = list(splits), [], [], {}
    if derivation.dedupe:
        removed = _dedupe(parents, splits, rows, notes, warnings)
    if derivation.dedupe == "perceptual":
        _dedupe_near(parents, splits, rows, removed, notes)
    if derivation.split_off:
        _split_off(splits, rows, classes, derivation, notes)
    for number in range(len(splits)):
        for is_asked, by_class, count in (
            (derivation.per_class, True, lambda sizes: np.full_like(sizes, derivation.per_class)),
            (derivation.fraction, True, lambda sizes: _share(sizes, derivation.fraction)),
            (derivation.limit, False, lambda sizes: np.full_like(sizes, derivation.limit)),
        ):
            if is_asked:
                of = rows.of_split(number)
                taken = rows.first(of, by_class, count)
                rows.target[of] = LEFT_OUT
                rows.target[taken] = 1 + number
    counts = np.bincount(rows.target, minlength=256)[1 : 1 + len(splits)]
    if not counts.sum():
        raise Error(f"nothing is left of {' and '.join(str(p.root) for p in parents)}: no sample fits the options")
    if not counts.all():  # an empty split cannot be written
        empty = [split for split, n in zip(splits, counts.tolist(), strict=True) if not n]
        warnings.append(f"split {' and '.join(empty)} is left out: none of its samples fits the options")
        number = np.full(256, LEFT_OUT, np.uint8)
        number[REMOVED] = REMOVED
        number[1 + np.flatnonzero(counts)] = 1 + np.arange(np.count_nonzero(counts))
        rows.target = number[rows.target]
        splits = [split for split, n in zip(splits, counts.tolist(), strict=True) if n]
    targets = {key: rows.target[part] for key, part in rows.starts.items()}
    choice = Choice(splits, targets, removed, notes=notes, warnings=warnings)
    if len(parents) > 1:
        _rename(parents, choice)
        _warn_of_leaks(parents, choice)
    return choice


def _share(sizes: np.ndarray, fraction: float | None) -> np.ndarray:
    """So many of each class: its share, rounded, and at least one."""
    return np.maximum(1, np.floor(sizes * (fraction or 0) + 0.5).astype(np.int64))


def _rows(parents: list[Parent], splits: list[str], classes: ClassMaps, derivation: Derivation, seed: int) -> _Rows:
    if len(splits) + (derivation.split_off is not None) > MAX_SPLITS:
        raise Error(f"{len(splits)} splits are too many, {MAX_SPLITS} is the most; choose some with --split")
    starts, targets, labels, hashes, digests, n = {}, [], [], [], [], 0
    for p, parent in enumerate(parents):
        for split in (s for s in splits if s in parent.manifest.splits):
            of = (parent.root, parent.manifest, split)
            old = index.columns(*of, ["label"])["label"]
            if old.min(initial=0) < 0 or old.max(initial=0) >= len(parent.classes):
                raise parent.damaged(parent.root, f"has labels of more than {plural(len(parent.classes), 'class')}")
            labels.append(classes.maps[p][old])
            targets.append(np.where(labels[-1] >= 0, np.uint8(1 + splits.index(split)), np.uint8(LEFT_OUT)))
            if derivation.draws:
                hashes.append(index.key_hashes(*of, seed))
            if derivation.dedupe:
                digests.append(index.columns(*of, ["digest"])["digest"])
            starts[p, split] = slice(n, n + len(old))
            n += len(old)
    none = np.empty(0, np.uint64)
    return _Rows(starts, np.concatenate(targets), np.concatenate(labels),
                 np.concatenate(hashes) if hashes else none, np.concatenate(digests) if digests else none)  # fmt: skip


# ---------------------------------------------------------------------------------------------------------- dedupe


def _dedupe(parents: list[Parent], splits: list[str], rows: _Rows, notes: list[str], warnings: list[str]) -> Removed:
    """Remove all but one of the samples of equal pixels.

    The one in a split that is held out stays, before those of the training split; among equals the one of the smallest
    hash. Returns Choice.removed.
    """
    of = np.flatnonzero(rows.target)
    is_training = rows.target[of] == 1 + _training(splits)
    order = of[np.lexsort((rows.hash[of], is_training, rows.digest[of]))]
    digests = rows.digest[order]
    is_first = np.append(True, digests[1:] != digests[:-1])[: len(order)]
    group = np.cumsum(is_first) - 1
    kept_of = order[is_first][group]  # for each of `order`, the row that stays
    gone, kept = order[~is_first], kept_of[~is_first]
    sorted_by_row = np.argsort(gone)
    gone, kept = gone[sorted_by_row], kept[sorted_by_row]
    differing = len(np.unique(kept[rows.label[gone] != rows.label[kept]]))
    leaks = int((rows.target[gone] != rows.target[kept]).sum())
    notes.append(
        f"{plural(len(gone), 'image')} with the pixels of another left out, {leaks:,} with those of another split's"
    )
    if differing:
        warnings.append(f"labels differ in {plural(differing, 'group')} of equal images: that of the one kept stays")
    removed: Removed = {}
    names = _names(parents, splits, rows, kept)
    _remove(rows, removed, gone, [f"equal pixels to {name}" for name in names])
    return removed


def _dedupe_near(parents: list[Parent], splits: list[str], rows: _Rows, removed: Removed, notes: list[str]) -> None:
    """Remove samples that look like another one, by the same order of precedence; adds to `removed`. Reads all."""
    of = np.flatnonzero((rows.target != LEFT_OUT) & (rows.target != REMOVED))
    looks = near.all_looks((parents[p], split) for p, split in rows.starts)[of]
    pairs = near.near_pairs(looks, NEAR_BITS)
    priority = np.empty(len(of), np.int64)
    priority[np.lexsort((rows.hash[of], rows.target[of] == 1 + _training(splits)))] = np.arange(len(of))
    gone, kept = near.redundant(pairs, priority)
    bits = near.num_bits(looks.hashes[gone] ^ looks.hashes[kept]).tolist()
    gone, kept = of[gone], of[kept]
    leaks = int((rows.target[gone] != rows.target[kept]).sum())
    differing = int((rows.label[gone] != rows.label[kept]).sum())
    notes.append(
        f"{plural(len(gone), 'image')} that look like another left out, {leaks:,} like one of another split, "
        f"{differing:,} like one with another label; `mlpdata report --near` shows such pairs"
    )
    names = zip(_names(parents, splits, rows, kept), bits, strict=True)
    _remove(rows, removed, gone, [f"looks like {name}: {n} of {near.BITS} bits differ" for name, n in names])


def _remove(rows: _Rows, removed: Removed, gone: np.ndarray, reasons: list[str]) -> None:
    """List rows, ascending, as removed."""
    for key, part in rows.starts.items():
        a, b = np.searchsorted(gone, [part.start, part.stop])
        if b > a:
            removed.setdefault(key, {}).update(zip((gone[a:b] - part.start).tolist(), reasons[a:b], strict=True))
    rows.target[gone] = REMOVED


def _training(splits: list[str]) -> int:
    return splits.index("train") if "train" in splits else 0


def _names(parents: list[Parent], splits: list[str], rows: _Rows, wanted: np.ndarray) -> list[str]:
    """SPLIT/KEY of some rows, in their order."""
    names: dict[int, str] = {}
    unique = np.unique(wanted)
    for (p, split), part in rows.starts.items():
        inside = unique[(unique >= part.start) & (unique < part.stop)]
        found = index.keys(parents[p].root, parents[p].manifest, split, inside - part.start) if len(inside) else []
        names |= {row: f"{split}/{key}" for row, key in zip(inside.tolist(), found, strict=True)}
    return [names[row] for row in wanted.tolist()]


# --------------------------------------------------------------------------------------------------- split off, merge


def _split_off(splits: list[str], rows: _Rows, classes: ClassMaps, derivation: Derivation, notes: list[str]) -> None:
    """Hold a new split out of the training split. Raises Error where a class would be left without training images."""
    off = derivation.split_off
    assert off is not None
    if off.split in splits:
        others = " ".join(f"--split {split}" for split in splits if split != off.split)
        leave = f", or leave that one out with {others}" if others else ""
        raise Error(
            f"--split-off {off}: there is a split {off.split} already ({', '.join(splits)}); name another one{leave}"
        )
    number = _training(splits)
    of = rows.of_split(number)
    sizes = np.bincount(rows.label[of], minlength=len(classes.classes))
    if off.count is not None and (small := (sizes > 0) & (sizes <= off.count)).any():
        label = int(small.argmax())
        raise Error(
            f"--split-off {off} leaves none of the {plural(int(sizes[label]), 'image')} of class "
            f"{keys.shown(classes.classes[label][0])} in {splits[number]}; hold out fewer, as {off.split}=10%"
        )

    def count(sizes: np.ndarray) -> np.ndarray:
        if off.count is not None:
            return np.full_like(sizes, off.count)
        return np.floor(sizes * off.share + 0.5).astype(np.int64).clip(0, np.maximum(sizes - 1, 0))

    held_out = rows.first(of, True, count)
    splits.append(off.split)
    rows.target[held_out] = len(splits)
    notes.append(f"{len(held_out):,} of {len(of):,} {splits[number]} images held out as {off.split}")


def _rename(parents: list[Parent], choice: Choice) -> None:
    """Mark the samples whose key another directory has in the same split: each directory's name goes before its own.

    Where such a name is a key already, as in what was merged before, it goes before all keys of the split.
    """
    total, prefixes = 0, [f"{keys.part(parent.name)}/" for parent in parents]
    for split in choice.splits:
        numbers = [p for p in range(len(parents)) if (p, split) in choice.targets]
        if len(numbers) < 2:
            continue
        hashes = [_key_hashes(parents[p], split) for p in numbers]
        values, counts = np.unique(np.concatenate(hashes), return_counts=True)
        if not (counts > 1).any():
            continue
        twice = [np.isin(of_parent, values[counts > 1]) for of_parent in hashes]
        names = [
            np.where(is_twice, _key_hashes(parents[p], split, prefixes[p]), of_parent)
            for p, is_twice, of_parent in zip(numbers, twice, hashes, strict=True)
        ]
        still_meet = len(np.unique(np.concatenate(names))) < sum(map(len, names))
        for p, is_twice in zip(numbers, twice, strict=True):
            choice.renamed[p, split] = np.ones_like(is_twice) if still_meet else is_twice
            total += int(choice.renamed[p, split].sum())
    if total:
        names, has = " and ".join(prefixes), "has a key" if total == 1 else "have keys"
        choice.notes.append(f"{plural(total, 'image')} {has} that another directory has, too: {names} go before them")


def _warn_of_leaks(parents: list[Parent], choice: Choice) -> None:
    """Warn of images of equal pixels that one directory has in one split, and another directory in another."""
    if len(choice.splits) < 2:
        return
    digests = {
        (p, split): index.columns(parents[p].root, parents[p].manifest, split, ["digest"])["digest"]
        for p, split in choice.targets
    }
    for a, b in itertools.combinations(choice.splits, 2):
        total = 0
        for (p, split), ours in digests.items():
            theirs = [other for (q, there), other in digests.items() if q != p and there == b]
            if split == a and theirs:
                total += int(np.isin(ours, np.concatenate(theirs)).sum())
        if total:
            choice.warnings.append(
                f"{plural(total, 'image')} of {a} will be in {b}, too, as the directories differ in what is held out; "
                "`mlpdata subset --dedupe exact` then keeps one of each"
            )


def _key_hashes(parent: Parent, split: str, prefix: str = "") -> np.ndarray:
    return index.key_hashes(parent.root, parent.manifest, split, 0, prefix)
