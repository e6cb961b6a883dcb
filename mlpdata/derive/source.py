"""`ShardSource`: shard directories as a source of samples; payloads are taken as they are where that is possible."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from mlpdata.choices import stored_codecs
from mlpdata.derive.choose import LEFT_OUT, REMOVED, choose
from mlpdata.derive.derivation import Derivation
from mlpdata.derive.parents import Parent, chosen_splits, class_maps, open_parents
from mlpdata.derive.read import Payloads, check_file
from mlpdata.image import Resize
from mlpdata.shards import index
from mlpdata.shards.manifest import Fidelity, SplitInfo, manifest_path
from mlpdata.sources import Broken, Sample, Source, Stored, Unit, keys, most_samples
from mlpdata.system.format import plural


@dataclass(frozen=True)
class Wanted:
    """What the output stores, which decides what is read."""

    resize: Resize
    beton_codec: str | None
    tar_codec: str | None

    @property
    def encoding(self) -> str | None:
        return next((codec for codec in (self.beton_codec, self.tar_codec) if codec in ("jpg", "png")), None)

    @property
    def pixels(self) -> bool:
        return "raw" in (self.beton_codec, self.tar_codec)


@dataclass(frozen=True)
class Rows:
    """What a unit holds: consecutive samples of one split of one directory."""

    parent: int
    split: str
    first: int
    num_rows: int
    checks: tuple[str, ...]  # files to hold against the manifest first


@dataclass(frozen=True)
class Listing:
    """What a unit without samples holds: what is listed of one directory as left out."""

    parent: int


class ShardSource(Source):
    """One or several shard directories. Raises Error for damage: a directory made of others loses no sample unsaid.

    derivation: what is made of them. out: where it goes. resize, format, codec: of the output, as convert's options.
    seed: of the choices.
    """

    is_whole = True

    def __init__(self, derivation: Derivation, out: Path | None, resize: Resize, format: str, codec: str, seed: int):
        self.derivation, self.seed = derivation, seed
        self.parents = open_parents(derivation.directories, out)
        encodings = {parent.encoding and parent.encoding[1] for parent in self.parents}
        self.codec = "jpg" if "jpg" in encodings else "array"
        self.wanted = Wanted(resize, *stored_codecs(format, codec, self.codec == "jpg"))
        splits = chosen_splits(self.parents, derivation.splits)
        class_list = class_maps(self.parents, derivation)
        self.classes, self.maps = class_list.classes, class_list.maps
        self.choice = choose(self.parents, splits, class_list, derivation, seed)
        self.splits = tuple(self.choice.splits)
        self.choice_digest = self.choice.digest(self.maps)
        self.release = " + ".join(dict.fromkeys(parent.manifest.release for parent in self.parents))
        self.files = [
            str(parent.root / name)
            for parent in self.parents
            for name in (*parent.manifest.files, manifest_path(Path()).name)
        ]
        self.training_split = "train" if "train" in self.splits else self.splits[0]
        self.keeps_sums = self._keeps_sums()
        self._lists = [self._lists_skipped(p) for p in range(len(self.parents))]
        self.notes = (*class_list.notes, *self.choice.notes, *self._not_listed(), *self._not_resized())
        self.warnings = (*class_list.warnings, *self.choice.warnings, *self._enlarged())

    # -------------------------------------------------------------------------------------------- what stays the same

    def is_final(self, parent: Parent) -> bool:
        """Whether the images of a directory have the size of the output already."""
        resize, manifest = self.wanted.resize, parent.manifest
        return resize.res == manifest.res and (resize.rule == manifest.resize or manifest.resize != "longest")

    @property
    def keeps_pixels(self) -> bool:
        """Whether every image stays as it is."""
        return all(map(self.is_final, self.parents))

    def _keeps_sums(self) -> bool:
        """Whether the mean and standard deviation of the one directory are those of the output, too."""
        split, parent = self.training_split, self.parents[0]
        if len(self.parents) > 1 or not self.keeps_pixels or parent.training_split != split:
            return False
        if parent.manifest.quality and not parent.raw and (self.wanted.pixels or not self._takes_encoding(parent)):
            return False  # of JPEGs that were encoded here the pixels are others than those before
        return self.choice.takes_all(0, split)  # and nothing else goes into it: splits keep their names

    @property
    def stored_quality(self) -> int | None:
        """The quality of JPEGs that an earlier conversion encoded and that are taken as they are; None if none."""
        qualities = [p.manifest.quality for p in self.parents if self._takes_encoding(p) and p.manifest.quality]
        return qualities[0] if qualities and self.wanted.encoding == "jpg" else None

    def libraries(self, present: dict[str, str]) -> dict[str, str]:
        """The libraries that made the images. present: those of now; they count for what is made now."""
        encoding = self.wanted.encoding
        makes = {"jpeg": encoding == "jpg", "png": encoding == "png", "resize": not self.keeps_pixels}
        makes_anew = {kind: makes.get(kind, True) for kind in present}
        for kind in ("jpeg", "png"):
            if makes[kind] and all(map(self._takes_encoding, self.parents)):
                makes_anew[kind] = False
        found = {}
        for kind, version in present.items():
            said = [parent.manifest.image_library.get(kind) for parent in self.parents]
            theirs = dict.fromkeys(filter(None, said))
            found[kind] = version if makes_anew[kind] or not theirs else " and ".join(theirs)
        return found

    def fidelity(self) -> Fidelity | None:
        """What the directories say of the decode that made their images: of the one that says the worst."""
        said = [parent.manifest.fidelity for parent in self.parents if parent.manifest.fidelity]
        return min(said, key=lambda fidelity: fidelity["psnr_db"], default=None)

    def _takes_encoding(self, parent: Parent) -> bool:
        return self.is_final(parent) and parent.encoding is not None and parent.encoding[1] == self.wanted.encoding

    def _lists_skipped(self, number: int) -> bool:
        """Whether what was skipped for a directory is skipped for the output: all of its splits' samples are taken."""
        manifest = self.parents[number].manifest
        taken = [split for split in manifest.splits if (number, split) in self.choice.targets]
        return all((self.choice.targets[number, split] != LEFT_OUT).all() for split in taken)

    def _not_listed(self) -> list[str]:
        return [
            f"not listed again: {plural(n, 'image')} that {parent.name} lists as skipped"
            for parent, lists in zip(self.parents, self._lists, strict=True)
            if (n := sum(info.num_skipped for info in parent.manifest.splits.values())) and not lists
        ]

    def _not_resized(self) -> list[str]:
        resize = self.wanted.resize
        return [
            f"no image is resized: none of {parent.name} has more than {resize.res} px a side"
            for parent in self.parents
            if self.derivation.command == "resize" and (self.is_final(parent) or resize.rule == "longest")
            if parent.manifest.res <= resize.res
        ]

    def _enlarged(self) -> list[str]:
        resize = self.wanted.resize
        return [
            f"images of {parent.manifest.res} px are enlarged to {resize.res}: they show no more than before"
            for parent in self.parents
            if resize.res > parent.manifest.res and resize.rule != "longest"
        ]

    def real(self) -> dict[str, dict[str, list[int]]]:
        """Of each split of the output: ReaL labels by key, numbered as the output's classes."""
        found: dict[str, dict[str, list[int]]] = {split: {} for split in self.splits}
        for number, parent in enumerate(self.parents):
            label_map = self.maps[number].tolist()
            for (_, split), targets in ((of, t) for of, t in self.choice.targets.items() if of[0] == number):
                labels = parent.real(split)
                if not labels:
                    continue
                names = _new_keys(parent, split, self.choice.renamed.get((number, split)))
                rows = {
                    names.get(key, key): list(dict.fromkeys(label_map[n] for n in row if label_map[n] >= 0))
                    for key, row in labels.items()
                }
                for target in set(np.unique(targets).tolist()) - {LEFT_OUT, REMOVED}:
                    found[self.splits[target - 1]] |= rows
        return found

    # ----------------------------------------------------------------------------------------------------- the samples

    def units(self) -> list[Unit]:
        units = []
        for number, parent in enumerate(self.parents):
            if self._lists[number]:
                units.append(Unit(f"{number}-listed", self.splits[0], 0, 0, Listing(number), splits=self.splits))
            for split in (s for p, s in self.choice.targets if p == number):
                units += self._units_of(number, parent, split)
        return units

    def _units_of(self, number: int, parent: Parent, split: str) -> Iterator[Unit]:
        """Ranges of the index: of each tar, and of no more samples than a worker holds."""
        info, targets, checked = parent.manifest.splits[split], self.choice.targets[number, split], set()
        lengths = info.tar_lengths or [info.num_samples]
        most = most_samples(max(parent.manifest.res, self.wanted.resize.res))
        bytes_a_sample = sum(parent.manifest.files[name]["bytes"] for name in info.files) // max(1, info.num_samples)
        first = 0
        for i, length in enumerate(lengths):
            for start in range(first, first + length, most):
                n = min(most, first + length - start)
                found = np.unique(targets[start : start + n])
                into = tuple(self.splits[t - 1] for t in found.tolist() if t not in (LEFT_OUT, REMOVED))
                if not into and REMOVED not in found:
                    continue
                checks = ()
                if into and (name := self._checked_file(parent, info, i)) and name not in checked:
                    checked.add(name)
                    checks = (name,)
                count = int(np.isin(targets[start : start + n], (LEFT_OUT, REMOVED), invert=True).sum())
                yield Unit(f"{number}-{split}-{start:09d}", into[0] if into else self.splits[0], count,
                           n * bytes_a_sample, Rows(number, split, start, n, checks), exact=True,
                           splits=into or self.splits)  # fmt: skip
            first += length

    def _checked_file(self, parent: Parent, info: SplitInfo, tar: int) -> str | None:
        """The file whose encodings are read, which no digest covers; None where only pixels are."""
        if not self._reads(parent)[1]:
            return None
        return info.tars[tar] if parent.encoding and parent.encoding[0] == "tar" else info.beton

    def _reads(self, parent: Parent) -> tuple[bool, bool]:
        """Whether the pixels and whether the encodings of a directory are read."""
        takes_encoding = self._takes_encoding(parent)
        if not parent.raw:
            return False, True
        return not (takes_encoding and not self.wanted.pixels and self.keeps_sums), takes_encoding

    def samples(self, unit: Unit) -> Iterator[Sample | Broken]:
        if isinstance(unit.content, Listing):
            yield from self._skipped(unit.content.parent)
            return
        content: Rows = unit.content
        number, split, first = content.parent, content.split, content.first
        parent = self.parents[number]
        for name in content.checks:
            check_file(parent, name)
        rows, targets = self.rows_of(content)
        yield from self.removed(content, rows, targets)
        chosen = np.flatnonzero((targets != LEFT_OUT) & (targets != REMOVED))
        if not len(chosen):
            return
        payloads = Payloads(parent, split, first, rows)
        reads_pixels, reads_encoded = self._reads(parent)
        all_pixels = payloads.pixels(chosen) if reads_pixels else [None] * len(chosen)
        all_encoded = payloads.encoded(chosen) if reads_encoded else [None] * len(chosen)
        names = self.key_names(content, rows)
        label = self.maps[number][rows.label]
        columns = (label, targets, rows.source_width, rows.source_height, rows.width, rows.height, rows.digest)
        numbers = zip(chosen.tolist(), *(column[chosen].tolist() for column in columns), strict=True)
        is_final, codec = self.is_final(parent), parent.encoding[1] if parent.encoding else ""
        for values, pixels, encoded in zip(numbers, all_pixels, all_encoded, strict=True):
            i, label, target, source_width, source_height, width, height, digest = values
            data = pixels if encoded is None else bytes(encoded)
            stored = Stored((source_width, source_height), (width, height), is_final, digest,
                            "raw" if encoded is None else codec, None if encoded is None else pixels)  # fmt: skip
            assert data is not None
            yield Sample(names[i], data, label, rows.source[i], self.splits[target - 1], stored)

    def rows_of(self, content: Rows) -> tuple[index.IndexRows, np.ndarray]:
        """The rows of a unit, and (n,) where each goes."""
        parent = self.parents[content.parent]
        rows = index.rows(parent.root, parent.manifest, content.split, content.first, content.num_rows)
        targets = self.choice.targets[content.parent, content.split]
        return rows, targets[content.first : content.first + content.num_rows]

    def key_names(self, content: Rows, rows: index.IndexRows) -> list[str]:
        """The key of each row in the output."""
        renamed = self.choice.renamed.get((content.parent, content.split))
        if renamed is None:
            return rows.key
        prefix, of_rows = _prefix(self.parents[content.parent]), renamed[content.first :].tolist()
        return [prefix + key if is_renamed else key for key, is_renamed in zip(rows.key, of_rows, strict=False)]

    def removed(self, content: Rows, rows: index.IndexRows, targets: np.ndarray) -> Iterator[Broken]:
        """What is listed of a unit as left out, for another sample has the same pixels."""
        split = content.split if content.split in self.splits else self.splits[0]
        for i in np.flatnonzero(targets == REMOVED).tolist():
            reason = self.choice.removed[content.parent, content.split][content.first + i]
            yield Broken(rows.source[i], reason, split, is_data=False)

    @property
    def lends_all(self) -> bool:
        """Whether nothing is copied on the way: every image lies in a directory as it is stored, in the same order."""
        in_order = all(parent.manifest.seed == self.seed for parent in self.parents) and not self.choice.renamed
        return in_order and all(map(self.lends, self.parents)) and (self.wanted.pixels or self.keeps_sums)

    def lends(self, parent: Parent) -> bool:
        """Whether all that is stored of an image lies in a directory just so."""
        has_pixels, has_encoding = not self.wanted.pixels or parent.raw, self._takes_encoding(parent)
        return self.is_final(parent) and bool(has_pixels) and (self.wanted.encoding is None or has_encoding)

    def _skipped(self, number: int) -> Iterator[Broken]:
        taken = {split for p, split in self.choice.targets if p == number}
        for row in self.parents[number].skipped():
            if row["split"] in taken & set(self.splits):
                yield Broken(row["source"], row["reason"], row["split"], row.get("is_data", True))


def _prefix(parent: Parent) -> str:
    """What goes before the keys of a directory that another directory has, too."""
    return f"{keys.part(parent.name)}/"


def _new_keys(parent: Parent, split: str, renamed: np.ndarray | None) -> dict[str, str]:
    """{key: key in the output} of the samples of a split that are renamed. renamed: see Choice."""
    if renamed is None:
        return {}
    old = index.keys(parent.root, parent.manifest, split, np.flatnonzero(renamed))
    return {key: _prefix(parent) + key for key in old}
