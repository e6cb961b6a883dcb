"""STL-10: `stl10_binary.tar.gz`, arrays of pixels read inside the archive.

Of its 113,000 images the 100,000 of `unlabeled_X.bin` have no labels and are left out.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import numpy as np

from mlpdata.archive.blob import open_blob
from mlpdata.errors import Error
from mlpdata.sources import keys
from mlpdata.sources.array_archive import ArrayArchive
from mlpdata.sources.base import Sample, Unit
from mlpdata.system.format import plural

FOLDER = "stl10_binary"
SIDE = 96
ROW_BYTES = 3 * SIDE * SIDE
ROWS_A_UNIT = 500
SPLITS = {"train": "train", "test": "val"}  # name in the archive -> our name
OFFICIAL = {"train": 5_000, "test": 8_000}
NUM_CLASSES = 10
OTHER_MEMBERS = ("unlabeled_X.bin", "fold_indices.txt")
MAX_LIST_BYTES = 1 << 20


class Stl10(ArrayArchive):
    """STL-10's labelled images from the authors' archive: `train` (5,000), and its test set as `val` (8,000).

    Raises Error for another, truncated or damaged archive.
    """

    release = FOLDER

    def __init__(self, path: Path):
        super().__init__(path, FOLDER)
        if not path.is_file():
            raise Error(f"{path} is not the archive {FOLDER}.tar.gz" if path.exists() else f"no archive at {path}")
        self._blob = open_blob(path)
        self._list_members(self._blob)
        wanted = ["class_names.txt", *(f"{split}_{kind}.bin" for split in SPLITS for kind in "Xy")]
        if missing := [name for name in wanted if name not in self._members]:
            raise Error(f"{path} is not {FOLDER}: it lacks {', '.join(missing)}")
        self._set_classes(keys.lines(self._read("class_names.txt")), "class_names.txt", NUM_CLASSES)
        self._labels = {split: self._read_labels(split) for split in SPLITS}
        self._leave_out_others({*wanted, *OTHER_MEMBERS})
        for split, labels in self._labels.items():
            if len(labels) != OFFICIAL[split]:
                counts = f"{plural(len(labels), 'image')}, the authors' {OFFICIAL[split]:,}"
                self.warnings += (f"{path}: {split}_X.bin has {counts}",)
        self._blob.close()

    def _read(self, name: str) -> bytes:
        member = self._members[name]
        if member.size > MAX_LIST_BYTES:
            raise Error(f"{self.path}: {name} has {member.size:,} bytes, far more than it should")
        return self._blob.read_at(member.offset, member.size)

    def _read_labels(self, split: str) -> np.ndarray:
        """(N,) int64 from 0: the file counts classes from 1."""
        labels = np.frombuffer(self._read(f"{split}_y.bin"), np.uint8).astype(np.int64) - 1
        images, rest = divmod(self._members[f"{split}_X.bin"].size, ROW_BYTES)
        if rest or images != len(labels):
            counts = f"{split}_X.bin has {images} images and {rest} bytes, {split}_y.bin {len(labels)} labels"
            raise Error(f"{self.path}: {counts}")
        if not images:
            raise Error(f"{self.path}: {split}_X.bin has no images")
        if not 0 <= labels.min() <= labels.max() < NUM_CLASSES:
            raise Error(f"{self.path}: {split}_y.bin has labels outside 1 to {NUM_CLASSES}")
        return labels

    def _row_units(self) -> list[Unit]:
        units = []
        for theirs, ours in SPLITS.items():
            for start in range(0, len(self._labels[theirs]), ROWS_A_UNIT):
                n = min(ROWS_A_UNIT, len(self._labels[theirs]) - start)
                units.append(Unit(f"{ours}-{start:06d}", ours, n, n * ROW_BYTES, (theirs, start, n), exact=True))
        return units

    def _row_samples(self, unit: Unit) -> Iterator[Sample]:
        split, start, n = unit.content
        data = self._blob.read_at(self._members[f"{split}_X.bin"].offset + start * ROW_BYTES, n * ROW_BYTES)
        if len(data) < n * ROW_BYTES:
            raise Error(f"{self.path} is truncated inside {split}_X.bin; get it again")
        # The planes hold columns: (N, channel, x, y) -> (N, y, x, channel).
        images = np.frombuffer(data, np.uint8).reshape(n, 3, SIDE, SIDE).transpose(0, 3, 2, 1).copy()
        for i, label in enumerate(self._labels[split][start : start + n].tolist()):
            yield Sample(f"{split}_{start + i:05d}", images[i], label, f"{FOLDER}/{split}_X.bin[{start + i}]")
