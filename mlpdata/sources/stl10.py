"""STL-10: `stl10_binary.tar.gz`, arrays of pixels read inside the archive.

Of its 113,000 images the 100,000 of `unlabeled_X.bin` have no labels and are left out.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import numpy as np

from mlpdata.archive.blob import open_blob
from mlpdata.archive.tarscan import Damage, Member, scan
from mlpdata.errors import Error
from mlpdata.sources import Broken, Sample, Source, Unit, keys
from mlpdata.sources.cifar import NOT_READ
from mlpdata.sources.files import is_system

FOLDER = "stl10_binary"
SIDE = 96
ROW_BYTES = 3 * SIDE * SIDE
ROWS_A_UNIT = 500
SPLITS = {"train": "train", "test": "val"}  # the name in the archive -> ours
OFFICIAL = {"train": 5_000, "test": 8_000}
NUM_CLASSES = 10
OTHER = ("unlabeled_X.bin", "fold_indices.txt")  # what else the authors' archive has
MAX_LIST_BYTES = 1 << 20


class Stl10(Source):
    """STL-10's labelled images from the authors' archive: `train` (5,000), and its test set as `val` (8,000).

    Raises Error for another, truncated or damaged archive.
    """

    codec = "array"
    release = FOLDER

    def __init__(self, path: Path):
        self.path, self.files = path, [str(path)]
        if not path.is_file():
            raise Error(f"{path} is not the archive {FOLDER}.tar.gz" if path.exists() else f"no archive at {path}")
        self._blob = open_blob(path)
        if self._blob.compressed:
            self._blob.complete()
            if self._blob.damage:
                raise Error(f"{path} is damaged: {self._blob.damage}; get it again")
        self._members: dict[str, Member] = {}
        self._left_out: list[Broken] = []
        self._list_members()
        wanted = ["class_names.txt", *(f"{split}_{kind}.bin" for split in SPLITS for kind in "Xy")]
        if missing := [name for name in wanted if name not in self._members]:
            raise Error(f"{path} is not {FOLDER}: it lacks {', '.join(missing)}")
        lines = keys.text(self._read("class_names.txt").decode("utf-8", "surrogateescape")).split("\n")
        names = [name for line in lines if (name := line.strip(" \r\t"))]
        if len(names) != NUM_CLASSES or len(set(names)) < len(names):
            raise Error(
                f"{path}: class_names.txt has {len(names):,} names, {len(set(names)):,} of them different; not 10"
            )
        self.classes = [(name, name) for name in names]
        self._labels = {split: self._read_labels(split) for split in SPLITS}
        self._say_what_is_odd(wanted)
        self._blob.close()

    def __getstate__(self):
        return {**self.__dict__, "_left_out": []}

    def _list_members(self) -> None:
        for member in scan(self._blob.read_at, 0, self._blob.size):
            if isinstance(member, Damage):
                if member.lost or member.last:
                    raise Error(f"{self.path} is truncated or damaged ({member.reason}); get it again")
                self.warnings += (f"{self.path}: {member.reason}",)
                continue
            folder, _, name = member.name.removeprefix("./").rpartition("/")
            if folder == FOLDER and isinstance(member, Member) and not is_system(name):
                if name in self._members:
                    raise Error(f"{self.path} has {keys.shown(name)} twice; get it again")
                self._members[name] = member
            else:
                self._left_out.append(Broken(keys.text(member.name), NOT_READ, is_data=False))

    def _say_what_is_odd(self, read: list[str]) -> None:
        other = [name for name in self._members if name not in read and name not in OTHER]
        self._left_out += [Broken(keys.text(f"{FOLDER}/{name}"), NOT_READ, is_data=False) for name in other]
        if self._left_out:
            names = ", ".join(keys.shown(broken.origin) for broken in self._left_out[:3])
            self.warnings += (f"{self.path}: {len(self._left_out):,} members left out: {names}",)
        for split, labels in self._labels.items():
            if len(labels) != OFFICIAL[split]:
                has = f"{len(labels):,} images, the authors' {OFFICIAL[split]:,}"
                self.warnings += (f"{self.path}: {split}_X.bin has {has}",)

    def _read(self, name: str) -> bytes:
        member = self._members[name]
        if member.size > MAX_LIST_BYTES:
            raise Error(f"{self.path}: {name} has {member.size:,} bytes, far more than it should")
        return self._blob.read_at(member.offset, member.size)

    def _read_labels(self, split: str) -> np.ndarray:
        """(N,) from 0: the file counts classes from 1."""
        numbers = np.frombuffer(self._read(f"{split}_y.bin"), np.uint8).astype(np.int64) - 1
        images, rest = divmod(self._members[f"{split}_X.bin"].size, ROW_BYTES)
        if rest or images != len(numbers):
            raise Error(
                f"{self.path}: {split}_X.bin has {images} images and {rest} bytes, {split}_y.bin {len(numbers)} labels"
            )
        if not images:
            raise Error(f"{self.path}: {split}_X.bin has no images")
        if not 0 <= numbers.min() <= numbers.max() < len(self.classes):
            raise Error(f"{self.path}: {split}_y.bin has labels outside 1 to {len(self.classes)}")
        return numbers

    def units(self) -> list[Unit]:
        units = []
        for theirs, ours in SPLITS.items():
            for start in range(0, len(self._labels[theirs]), ROWS_A_UNIT):
                n = min(ROWS_A_UNIT, len(self._labels[theirs]) - start)
                units.append(Unit(f"{ours}-{start:06d}", ours, n, n * ROW_BYTES, (theirs, start, n), exact=True))
        if self._left_out and units:
            units.append(Unit("left-out", units[0].split, 0, 0, tuple(self._left_out)))
        return units

    def samples(self, unit: Unit) -> Iterator[Sample | Broken]:
        if isinstance(unit.at[0], Broken):
            yield from unit.at
            return
        split, start, n = unit.at
        data = self._blob.read_at(self._members[f"{split}_X.bin"].offset + start * ROW_BYTES, n * ROW_BYTES)
        if len(data) < n * ROW_BYTES:
            raise Error(f"{self.path} is truncated inside {split}_X.bin; get it again")
        # Planes of columns: (N, channel, x, y) -> (N, y, x, channel).
        images = np.frombuffer(data, np.uint8).reshape(n, 3, SIDE, SIDE).transpose(0, 3, 2, 1).copy()
        for i, label in enumerate(self._labels[split][start : start + n].tolist()):
            yield Sample(f"{split}_{start + i:05d}", images[i], label, f"{FOLDER}/{split}_X.bin[{start + i}]")
