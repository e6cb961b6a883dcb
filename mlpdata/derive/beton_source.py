"""Other people's FFCV `.beton` files as a source: any field names, raw images and JPEGs, splits by the names of files.

A beton has numbers for classes and no names for samples: classes are called by their numbers unless `--classes` names
them, samples by file and row.
"""

from __future__ import annotations

import warnings
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from mlpdata import labels, splits
from mlpdata.archive.blob import PlainFile
from mlpdata.choices import CODECS
from mlpdata.errors import Error
from mlpdata.image.limits import MAX_IMAGE_BYTES
from mlpdata.shards import beton
from mlpdata.shards.open import open_split
from mlpdata.shards.shard_index import ShardIndex
from mlpdata.sources import keys
from mlpdata.sources.base import Broken, ClassFilter, Sample, Source, Unit, most_samples
from mlpdata.sources.files import is_system, matching
from mlpdata.sources.wds_tars import names_below

SUFFIXES = (".beton", ".ffcv")  # of files in folders; a file that is named itself may be called anything
RAW, JPG = CODECS.index("raw"), CODECS.index("jpg")
READ_BYTES = 8 << 20  # of neighbouring images that are read at once
GAP_BYTES = 1 << 16  # read over between two images, rather than read on its own


def find(path: object) -> tuple[Path, list[str]]:
    """(folder, files below it) of the betons that a file, a folder or a pattern stands for. Raises Error for none."""
    if not isinstance(path, Path):
        raise Error(f"{path}: betons are read from local files; download them first")
    root, names = path, []
    if path.is_dir():
        names = [n for n in names_below(path) if n.lower().endswith(SUFFIXES) and not is_system(n)]
    else:
        root, matches = matching(path)
        names = [p.relative_to(root).as_posix() for p in matches if p.is_file()]
    if tars := [name for name in names if name.lower().endswith((".tar", ".tgz", ".tar.gz"))]:
        raise Error(f"{root / tars[0]} is a tar: `mlpdata convert wds` reads WebDataset tars")
    if not names:
        raise Error(f"{path} holds no {' or '.join(SUFFIXES)} files")
    return root, names


@dataclass(frozen=True)
class _File:
    """One beton of the source."""

    name: str  # below the source's folder, with `/`
    key: str  # the keys of its samples begin with it
    path: Path
    split: str
    index: ShardIndex


class BetonRows:
    """Rows `start` to `stop` of a file. What the index says of them goes along to a worker, and nothing else of it."""

    def __init__(self, file: _File, start: int, stop: int):
        self.path, self.name, self.key, self.start, self.stop = str(file.path), file.name, file.key, start, stop
        self._index: ShardIndex | None = file.index
        self._columns: dict[str, np.ndarray] = {}

    def __repr__(self) -> str:  # part of the identity of a conversion
        return f"BetonRows({self.name!r}, {self.start}, {self.stop})"

    def __getstate__(self):
        return {**self.__dict__, "_index": None, "_columns": self.columns()}

    def columns(self) -> dict[str, np.ndarray]:
        """Offsets, sizes, codecs, shapes and labels of the rows, (n,) each."""
        if self._index is None:
            return self._columns
        names = ("offset", "num_bytes", "codec", "width", "height", "label")
        return {name: np.array(getattr(self._index, name)[self.start : self.stop]) for name in names}


class BetonSource(Source):
    """The samples of betons that others wrote.

    path: a file, a folder of betons with or without split folders, or a pattern.
    class_filter: only its `classes`, which are the names of the labels 0, 1, ... here.
    image_column, label_column: see shards.beton.open_index.
    Raises Error for files that are no betons, are damaged, or have no image or no label of an int field.
    """

    def __init__(
        self,
        path: object,
        class_filter: ClassFilter,
        res: int,
        image_column: str | None = None,
        label_column: str | None = None,
    ):
        self._most, self._notes = most_samples(res), []
        class_filter = class_filter.only_classes(f"{path} holds betons")
        root, names = find(path)
        split_of, self.splits = self._tell_splits(path, names)
        names = sorted(names, key=lambda name: (split_of[name] != "train", split_of[name], name))
        self._files = [
            _File(name, key, root / name, split_of[name], self._open(root / name, image_column, label_column))
            for name, key in zip(names, keys.distinct(map(_stem, names)), strict=True)
        ]
        self.files = [str(file.path) for file in self._files]
        num_classes = 1 + max(int(file.index.label.max()) for file in self._files)
        class_sizes = np.zeros(num_classes, np.int64)
        for file in self._files:
            class_sizes += np.bincount(file.index.label, minlength=num_classes)
        self.classes = self._name_classes(path, num_classes, class_filter.classes)
        self._note_odd_labels(path, class_sizes)
        how = "by number" if class_filter.classes is None else f"by {len(self.classes):,} names that were given"
        self.release = f"FFCV betons (classes {how})"
        num_samples = sum(len(file.index) for file in self._files)
        num_jpegs = sum(int((file.index.codec == JPG).sum()) for file in self._files)
        self.codec = "jpg" if 2 * num_jpegs > num_samples else "array"
        if 0 < num_jpegs < num_samples:
            auto = "JPEG" if self.codec == "jpg" else "PNG"
            self._notes.append(
                f"{path}: {num_jpegs:,} of {num_samples:,} images are JPEGs, the others are raw; without --codec the "
                f"tars have {auto}s of all of them"
            )
        self.warnings = tuple(dict.fromkeys(self._notes))

    def __getstate__(self):
        return {**self.__dict__, "_files": []}  # workers get the rows of their units with them

    def _tell_splits(self, path: object, names: list[str]) -> tuple[dict[str, str], tuple[str, ...]]:
        """(the split of each file, all of them). Raises Error where a name fits two splits."""
        theirs = {name: splits.of_path(name) for name in names}
        unnamed = [name for name in names if theirs[name] is None]
        if unnamed and len(names) > 1:
            self._notes.append(f"{path}: {keys.listed(unnamed, 1, 'others')} name no split and are taken for train")
        ours = splits.our_names(sorted({split or "train" for split in theirs.values()}))
        self._notes += [f"{path}: {line}" for line in splits.renames(ours)]
        split_of = {name: ours[split or "train"] for name, split in theirs.items()}
        return split_of, tuple(sorted(set(split_of.values()), key=lambda split: (split != "train", split)))

    def _open(self, path: Path, image_column: str | None, label_column: str | None) -> ShardIndex:
        fields = beton.read_fields(path)
        with warnings.catch_warnings(record=True) as guesses:
            warnings.simplefilter("always")
            image, label = beton.choose_fields(path, fields, image_column, label_column)
        self._notes += [str(guess.message) for guess in guesses]
        if others := [name for k, (name, _) in enumerate(fields) if k not in (image, label)]:
            self._notes.append(f"{path}: fields left out: {keys.listed(others)}")
        index = open_split(path, image_column=fields[image][0], label_column=fields[label][0]).index
        return replace(index, num_bytes=_narrow(index.num_bytes, np.uint32), label=_narrow(index.label, np.int32))

    def _name_classes(self, path: object, num_classes: int, names: tuple[str, ...] | None) -> list[tuple[str, str]]:
        if names is None:
            return [(str(label), str(label)) for label in range(num_classes)]
        if all(name.isdecimal() for name in names):
            raise Error(
                f"{path}: --classes gives names to the labels 0, 1, ... of betons, but has numbers; to take some "
                "classes, convert first, then say `mlpdata subset --classes`"
            )
        if len(names) < num_classes:
            raise Error(f"{path} has labels from 0 to {num_classes - 1:,}; --classes names {len(names):,} of them")
        return [(name, labels.readable(name)) for name in names]

    def _note_odd_labels(self, path: object, class_sizes: np.ndarray) -> None:
        """Say where labels count from 1 or leave classes out."""
        empty = np.flatnonzero(class_sizes == 0)
        if len(empty):
            last = len(class_sizes) - 1
            self._notes.append(f"{path}: no image has the label {keys.listed(empty.tolist())}, of 0 to {last:,}")

    def units(self) -> list[Unit]:
        units = []
        for file in self._files:
            for start in range(0, len(file.index), self._most):
                stop = min(start + self._most, len(file.index))
                num_bytes = int(file.index.num_bytes[start:stop].sum())
                name = f"{file.split}-{len(units):06d}"
                rows = BetonRows(file, start, stop)
                units.append(Unit(name, file.split, stop - start, num_bytes, rows, exact=True))
        return units

    def samples(self, unit: Unit) -> Iterator[Sample | Broken]:
        rows: BetonRows = unit.content
        columns = rows.columns()
        order = np.argsort(columns["offset"], kind="stable")  # pages lie in any order
        offset, size, codec, width, height, label = (column[order].tolist() for column in columns.values())
        blob, origin = PlainFile(rows.path), keys.line(rows.name)
        first, data = 0, memoryview(b"")  # a stretch of the file
        for k, i in enumerate(order.tolist()):
            row = rows.start + i
            place, stop = f"{origin}[{row}]", offset[k] + size[k]
            if codec[k] == JPG and size[k] > MAX_IMAGE_BYTES:
                yield Broken(place, f"has {size[k]:,} bytes")
                continue
            if stop > first + len(data):
                end, j = stop, k + 1
                while (
                    j < len(offset) and offset[j] <= end + GAP_BYTES and offset[j] + size[j] <= offset[k] + READ_BYTES
                ):
                    end, j = offset[j] + size[j], j + 1
                first, data = offset[k], memoryview(blob.read_at(offset[k], end - offset[k]))
                if len(data) < end - first:
                    raise Error(f"{rows.path} ends inside row {row}; it changed while it was read")
            image = data[offset[k] - first : stop - first]
            pixels = np.frombuffer(image, np.uint8).reshape(height[k], width[k], 3) if codec[k] == RAW else bytes(image)
            yield Sample(f"{rows.key}_{row:08d}", pixels, label[k], place)
        blob.close()


def _narrow(column: np.ndarray, dtype: type) -> np.ndarray:
    """A column in half the memory, where its values fit; a broadcast scalar takes none and stays."""
    if column.strides == (0,) or column.max(initial=0) > np.iinfo(dtype).max:
        return column
    return column.astype(dtype)


def _stem(name: str) -> str:
    """The part of a key that a file's name gives: its path without the ending.

    >>> _stem("val/my set.v2.beton")
    'val/my set%2Ev2'
    """
    for suffix in SUFFIXES:
        name = name.removesuffix(suffix)
    return "/".join(map(keys.part, name.split("/")))
