"""STL-10: `stl10_binary.tar.gz`, arrays of pixels read inside the archive.

Of its 113,000 images the 100,000 of `unlabeled_X.bin` have no labels and are left out.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import numpy as np

from mlpdata.errors import Error
from mlpdata.sources import Sample, Source, Unit
from mlpdata.sources.blob import open_blob
from mlpdata.sources.tarscan import Damage, Member, scan

FOLDER = "stl10_binary"
SIDE = 96
ROW_BYTES = 3 * SIDE * SIDE
ROWS_A_UNIT = 500
SPLITS = {"train": "train", "test": "val"}  # the name in the archive -> ours
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
        self._members: dict[str, Member] = {}
        for member in scan(self._blob.read_at, 0, self._blob.size):
            if isinstance(member, Damage):
                raise Error(f"{path} is truncated or damaged ({member.reason}); get it again")
            folder, _, name = member.name.removeprefix("./").rpartition("/")
            if folder == FOLDER:
                self._members[name] = member
        wanted = ["class_names.txt", *(f"{split}_{kind}.bin" for split in SPLITS for kind in "Xy")]
        missing = [name for name in wanted if name not in self._members]
        if missing:
            raise Error(f"{path} is not {FOLDER}: it lacks {', '.join(missing)}")
        names = [line.strip() for line in self._read("class_names.txt").decode("utf-8", "replace").splitlines()]
        self.classes = [(name, name) for name in names if name]
        self._labels = {split: self._read_labels(split) for split in SPLITS}
        self._blob.close()

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
        if len(numbers) and not 0 <= numbers.min() <= numbers.max() < len(self.classes):
            raise Error(f"{self.path}: {split}_y.bin has labels outside 1 to {len(self.classes)}")
        return numbers

    def units(self) -> list[Unit]:
        units = []
        for theirs, ours in SPLITS.items():
            for start in range(0, len(self._labels[theirs]), ROWS_A_UNIT):
                n = min(ROWS_A_UNIT, len(self._labels[theirs]) - start)
                units.append(Unit(f"{ours}-{start:06d}", ours, n, n * ROW_BYTES, (theirs, start, n)))
        return units

    def samples(self, unit: Unit) -> Iterator[Sample]:
        split, start, n = unit.at
        data = self._blob.read_at(self._members[f"{split}_X.bin"].offset + start * ROW_BYTES, n * ROW_BYTES)
        if len(data) < n * ROW_BYTES:
            raise Error(f"{self.path} is truncated inside {split}_X.bin; get it again")
        # Planes of columns: (N, channel, x, y) -> (N, y, x, channel).
        images = np.frombuffer(data, np.uint8).reshape(n, 3, SIDE, SIDE).transpose(0, 3, 2, 1).copy()
        for i, label in enumerate(self._labels[split][start : start + n].tolist()):
            yield Sample(f"{split}_{start + i:05d}", images[i], label, f"{FOLDER}/{split}_X.bin[{start + i}]")
