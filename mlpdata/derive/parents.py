"""The shard directories that something is made of: opened, and held against one another."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from mlpdata import labels
from mlpdata.derive.derivation import Derivation
from mlpdata.derive.label_maps import read_label_map
from mlpdata.errors import Error
from mlpdata.shards import manifest as shards
from mlpdata.shards.classes import read_classes, read_real, spellings
from mlpdata.shards.files import difference
from mlpdata.shards.manifest import Manifest, manifest_path, skipped_path
from mlpdata.shards.text import MAX_TEXT_BYTES, open_file, parse_json, read_text
from mlpdata.sources import keys
from mlpdata.splits import chosen
from mlpdata.system.files import resolved
from mlpdata.system.format import plural

ClassList = list[tuple[str, str]]


@dataclass(frozen=True)
class Parent:
    """One shard directory, whole as far as the sizes of its files tell."""

    root: Path
    name: str  # of the directory; distinct among those that are opened together
    manifest: Manifest
    sha256: str  # of its manifest.json
    classes: ClassList

    @property
    def record(self) -> shards.Parent:
        """What the manifest of what is made of it says of it."""
        m = self.manifest
        record: shards.Parent = {
            "name": self.name, "sha256": self.sha256, "command": m.command_with_source, "dataset": m.dataset,
            "release": m.release,
        }  # fmt: skip
        return {**record, "parents": m.parents} if m.parents else record

    @property
    def encoding(self) -> tuple[str, str] | None:
        """(format, codec) in which the images are stored encoded; None where they are raw alone."""
        if self.manifest.tar_codec in ("jpg", "png"):
            return "tar", self.manifest.tar_codec
        return ("beton", "jpg") if self.manifest.beton_codec == "jpg" else None

    @property
    def raw(self) -> str | None:
        """The format in which the images are stored as pixels; None where they are encoded alone."""
        if self.manifest.beton_codec == "raw":
            return "beton"
        return "tar" if self.manifest.tar_codec == "raw" else None

    @property
    def training_split(self) -> str:
        """The split whose pixels its mean and standard deviation are of."""
        return "train" if "train" in self.manifest.splits else next(iter(self.manifest.splits))

    def skipped(self) -> Iterator[shards.Skipped]:
        """The rows of skipped.jsonl. Raises Error for another file than the manifest lists."""
        path = skipped_path(self.root)
        try:
            with open_file(path) as f:
                if wrong := difference(f, self.manifest.files[path.name]):
                    raise self.damaged(path, wrong)
                while line := f.readline(MAX_TEXT_BYTES):
                    yield parse_json(line, path, shards.Skipped)
        except (OSError, KeyError) as e:
            raise Error(f"cannot read {path}: {getattr(e, 'strerror', None) or 'it is not listed'}") from None

    def real(self, split: str) -> dict[str, list[int]]:
        """The ReaL labels of a split by key, numbered as here; {} where its images have none. Raises Error."""
        return read_real(self.root, self.manifest, split) or {}

    def damaged(self, what: object, wrong: str) -> Error:
        return Error(f"{what} {wrong}: `mlpdata verify {self.root}` lists all damage; get or convert it again")


def open_parents(directories: Sequence[Path], out: Path | None) -> list[Parent]:
    """Open shard directories. out: where their child goes; None where that is no directory here.

    Raises Error for one that is missing, unfinished or damaged, one that is there twice, and one that holds `out`.
    """
    names = keys.distinct(resolved(directory).name for directory in directories)
    parents: list[Parent] = []
    for directory, name in zip(directories, names, strict=True):
        manifest = Manifest.load(directory)
        manifest.check_sizes(directory)
        data = read_text(manifest_path(directory))
        parent = Parent(directory, keys.text(name), manifest, hashlib.sha256(data).hexdigest(),
                        read_classes(directory, manifest))  # fmt: skip
        if twin := next((p for p in parents if p.sha256 == parent.sha256), None):
            raise Error(f"{directory} is the same shard directory as {twin.root}: name each once")
        parents.append(parent)
        if out is not None:
            inside, here = resolved(out), resolved(directory)
            if here == inside:
                raise Error(f"{out} is the input: it cannot be --out as well; choose another --out")
            if here in inside.parents:
                raise Error(f"--out {out} lies in {directory}, which is the input; choose another --out")
    return parents


# ---------------------------------------------------------------------------------------------------------- splits


def chosen_splits(parents: list[Parent], asked: tuple[str, ...]) -> list[str]:
    """The splits to take, those of the first directory first. Raises Error for one that no directory has."""
    known = dict.fromkeys(split for parent in parents for split in parent.manifest.splits)
    return chosen(asked, known, " and ".join(str(parent.root) for parent in parents))


# --------------------------------------------------------------------------------------------------------- classes


@dataclass(frozen=True)
class ClassMaps:
    """The classes of the output, and which of them each class of each parent becomes."""

    classes: ClassList
    maps: list[np.ndarray]  # of each parent, (its classes,) int32: the new label; -1 for a class that is left out
    notes: list[str]  # for the user; so are the warnings
    warnings: list[str] = field(default_factory=list)


def class_maps(parents: list[Parent], derivation: Derivation) -> ClassMaps:
    """What becomes of the classes. Raises Error where that is not clear."""
    result = _union(parents, derivation)
    if derivation.classes is not None:
        result = _chosen(parents[0], result.classes, derivation)
    if derivation.label_map is not None:
        result = _renamed(parents[0], result.classes, derivation)
    return result


def _union(parents: list[Parent], derivation: Derivation) -> ClassMaps:
    """All classes of all parents, by name, those of the first parent first."""
    readable: dict[str, str] = {}
    for parent in parents:
        for name, text in parent.classes:
            readable.setdefault(name, text)
    number = {name: i for i, name in enumerate(readable)}
    maps = [np.array([number[name] for name, _ in parent.classes], np.int32) for parent in parents]
    first, notes = parents[0], []
    for parent in parents[1:]:
        ours, theirs = ([name for name, _ in p.classes] for p in (first, parent))
        if ours != theirs and not derivation.union:
            raise Error(
                f"{_difference(first, ours, parent, theirs)}; --classes union takes all classes, matched by name"
            )
    if len(readable) > len(first.classes):
        notes.append(
            f"{plural(len(readable), 'class')}, matched by name: those of {first.name}, then those of the others"
        )
    return ClassMaps(list(readable.items()), maps, notes)


def _difference(a: Parent, ours: list[str], b: Parent, theirs: list[str]) -> str:
    only_b, only_a = [n for n in theirs if n not in set(ours)], [n for n in ours if n not in set(theirs)]
    if not only_a and not only_b:
        return f"{a.root} and {b.root} have the same classes in another order"
    holder, name = (b, only_b[0]) if only_b else (a, only_a[0])
    counts = f"{len(ours):,} and {len(theirs):,}"
    return f"{a.root} and {b.root} have other classes ({counts}; only {holder.name} has {keys.shown(name)})"


def _chosen(parent: Parent, classes: ClassList, derivation: Derivation) -> ClassMaps:
    position = {name: i for i, (name, _) in enumerate(classes)}
    known = spellings(position)
    names = [known.get(name, name) for name in derivation.classes or ()]
    if len(set(names)) < len(names):
        raise Error(f"--classes {derivation.classes_file}".rstrip() + " names a class twice")
    if missing := [name for name in names if name not in position]:
        where = f"of the {plural(len(names), 'class')} asked for" if len(names) > 1 else "the class asked for"
        count = f"lacks {len(missing):,} {where}" if len(names) > 1 else f"lacks {where}"
        raise Error(f"{parent.root} {count}: {keys.listed(missing)}; the first column of its classes.txt has the names")
    label_map = np.full(len(classes), -1, np.int32)
    label_map[[position[name] for name in names]] = np.arange(len(names))
    notes = []
    if (label_map != np.arange(len(classes))).any():
        notes = [
            f"labels are numbered anew, in the order of --classes: {len(names):,} of {plural(len(classes), 'class')}"
        ]
    return ClassMaps([classes[position[name]] for name in names], [label_map], notes)


def _renamed(parent: Parent, classes: ClassList, derivation: Derivation) -> ClassMaps:
    """The classes that the map gives; several old ones may become one new one."""
    assert derivation.label_map is not None
    found = read_label_map(derivation.label_map, [name for name, _ in classes], derivation.drop_unmapped)
    number, readable = {name: i for i, name in enumerate(found.classes)}, dict(classes)
    label_map = np.array([number.get(found.names.get(name, ""), -1) for name, _ in classes], np.int32)
    notes = [f"{plural(len(found.names), 'class')} to {plural(len(set(found.names.values())), 'new one')}"]
    if found.left_out:
        notes.append(f"left out, not in --map: {plural(len(found.left_out), 'class')}: {keys.listed(found.left_out)}")
    warnings = []
    if found.absent:
        lines = plural(len(found.absent), "line")
        warnings = [f"no effect of {lines} of --map, for {parent.name} has no such class: {keys.listed(found.absent)}"]
    new_classes = [(name, readable.get(name) or labels.readable(name)) for name in found.classes]
    return ClassMaps(new_classes, [label_map], notes, warnings)
