"""CIFAR-10 and CIFAR-100: pickled batches in `*-python.tar.gz`, read inside the archive.

The pickles are Python 2's and untrusted: see `archive.pickles`.
"""

from __future__ import annotations

import io
import math
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from mlpdata.archive import pickles
from mlpdata.archive.blob import open_blob
from mlpdata.archive.tarscan import Member
from mlpdata.errors import Error, reading
from mlpdata.sources import files, keys
from mlpdata.sources.array_archive import ArrayArchive
from mlpdata.sources.base import Sample, Unit
from mlpdata.system.format import plural

HOLD_BYTES = 512 << 20  # the whole content, 184 MB, stays in memory while units are read
MAX_MEMBER_BYTES = 256 << 20  # the largest real member, CIFAR-100's train, has 155 MB
ROWS_A_UNIT = 10_000
ROW_BYTES = 3072  # pixels of one image: 3 planes of 32 x 32
OTHER_MEMBERS = ("readme.html", "file.txt~")  # the other members of the authors' archives


@dataclass(frozen=True)
class CifarLayout:
    """How one of the two data sets is laid out."""

    folder: str
    batches: dict[str, tuple[str, int]]  # member -> (split, rows)
    meta: str
    label_key: str
    names_key: str
    num_classes: int


CIFAR10 = CifarLayout(
    folder="cifar-10-batches-py",
    batches={**{f"data_batch_{i}": ("train", 10_000) for i in range(1, 6)}, "test_batch": ("val", 10_000)},
    meta="batches.meta",
    label_key="labels",
    names_key="label_names",
    num_classes=10,
)
CIFAR100 = CifarLayout(
    folder="cifar-100-python",
    batches={"train": ("train", 50_000), "test": ("val", 10_000)},
    meta="meta",
    label_key="fine_labels",
    names_key="fine_label_names",
    num_classes=100,
)
# The order of the batches in the authors' archive. Copies that were made by reading the archive from front to back, as
# the Hub's, have their rows in this order.
ARCHIVE_ORDER = ("data_batch_4", "data_batch_3", "data_batch_2", "data_batch_5", "data_batch_1")


def key_and_origin(layout: CifarLayout, split: str, row: int) -> tuple[str, str]:
    """(key, origin) that `Cifar` gives an image, from its row in a copy whose splits hold all batches end to end.

    >>> key_and_origin(CIFAR10, "train", 10_003)
    ('data_batch_3_00003', 'cifar-10-batches-py/data_batch_3[3]')
    """
    names = [name for name, (its_split, _) in layout.batches.items() if its_split == split]
    for name in sorted(names, key=ARCHIVE_ORDER.index) if len(names) > 1 else names:
        if row < layout.batches[name][1]:
            return _key(name, row), _origin(layout, name, row)
        row -= layout.batches[name][1]
    raise Error(f"{layout.folder}: split {split!r} has more rows than the archive has images")


def _key(batch: str, row: int) -> str:
    return f"{batch}_{row:05d}"


def _origin(layout: CifarLayout, batch: str, row: int) -> str:
    return f"{layout.folder}/{batch}[{row}]"


class Cifar(ArrayArchive):
    """CIFAR-10 or CIFAR-100 from the authors' archive, or from a directory that holds its extracted folder.

    The official test set is the split `val`. Raises Error for another, truncated or damaged archive.
    """

    def __init__(self, path: Path, layout: CifarLayout):
        super().__init__(Path(path), layout.folder)
        self._layout = layout
        self.release = layout.folder
        self._cached: tuple[str, np.ndarray, np.ndarray] | None = None  # batch, its pixels, its labels
        if self.path.is_dir():
            self._list_folder()
        else:
            self._list_archive()
        missing = [name for name in (*layout.batches, layout.meta) if name not in self._members]
        if missing:
            names = ", ".join(map(keys.shown, sorted(self._members)[:8])) or "none of its members"
            raise Error(f"{self.path} is not {self.folder}: it lacks {', '.join(missing)} and holds {names}")
        self._set_classes(self._class_names(), layout.meta, layout.num_classes)
        self._leave_out_others({*layout.batches, layout.meta, *OTHER_MEMBERS})
        if small := [name for name in layout.batches if self._is_small(name)]:
            rows = sum(rows for _, rows in layout.batches.values())
            fewer = f"of fewer images than the authors' archive has, {rows:,} in all"
            self.warnings += (f"{self.path}: {', '.join(small)} {fewer}",)

    def __getstate__(self):
        return {**super().__getstate__(), "_cached": None}

    def _list_folder(self) -> None:
        below = self.path / self.folder
        self._blob, self._folder = None, below if below.is_dir() else self.path
        with reading(f"the folder {self._folder}"):
            members = [Member(p.name, 0, p.stat().st_size) for p in sorted(self._folder.iterdir()) if p.is_file()]
        self._members = {member.name: member for member in members if not files.is_system(member.name)}
        read = (*self._layout.batches, self._layout.meta)
        self.files = [str(self._folder / name) for name in read if name in self._members]

    def _list_archive(self) -> None:
        self._blob = open_blob(self.path)
        if not self._blob.compressed:
            name = self.folder.replace("batches-py", "python")
            raise Error(f"{self.path} is not a gzip archive; expected the authors' {name}.tar.gz")
        self._list_members(self._blob, HOLD_BYTES)
        if not self._members:
            content = keys.shown(self._left_out[0].origin) if self._left_out else "nothing"
            raise Error(f"{self.path} is not {self.folder}: it holds {content}")

    def _class_names(self) -> list[str]:
        meta = self._layout.meta
        names = self._load(meta).get(self._layout.names_key)
        if not isinstance(names, list) or not all(isinstance(n, (str, bytes)) for n in names):
            raise Error(f"{self.path}: {meta} has no class names under {self._layout.names_key!r}")
        return [keys.text(n.decode("utf-8", "surrogateescape") if isinstance(n, bytes) else n) for n in names]

    def _is_small(self, name: str) -> bool:
        """Whether a batch is too small for all the images that the authors' has."""
        return self._members[name].size // ROW_BYTES < self._layout.batches[name][1]

    def _load(self, name: str) -> dict[str, object]:
        """The content of a batch or of the meta file. Raises Error."""
        member = self._members[name]
        if member.size > MAX_MEMBER_BYTES:
            raise Error(f"{self.path}: {name} has {member.size} bytes, far more than it should")
        if self._blob is None:
            data = files.read_file(str(self._folder / name))
            if isinstance(data, str):
                raise Error(f"{self._folder / name} {data}")
        else:
            data = self._blob.read_at(member.offset, member.size)
            self._blob.close()
        if len(data) < member.size:
            raise Error(f"{self.path} is truncated inside {name}; get it again")
        try:
            batch = pickles.load(io.BytesIO(data))
            if isinstance(array := batch.get("data"), pickles.ArrayExtent):
                pixels = np.frombuffer(data, array.dtype, math.prod(array.shape), array.offset)
                batch["data"] = pixels.reshape(array.shape)
        except ValueError as e:
            raise Error(f"{self.path}: {name} {e}") from None
        return batch

    def _row_units(self) -> list[Unit]:
        units = []
        for name, (split, rows) in self._layout.batches.items():
            # The official count, unless the batch is too small for it; at least one, so that every batch is opened.
            rows = max(1, min(rows, -(-self._members[name].size // ROW_BYTES)))
            for start in range(0, rows, ROWS_A_UNIT):
                n = min(ROWS_A_UNIT, rows - start)
                is_exact = not self._is_small(name)
                units.append(Unit(f"{name}-{start:05d}", split, n, n * ROW_BYTES, (name, start), is_exact))
        return units

    def _row_samples(self, unit: Unit) -> Iterator[Sample]:
        name, start = unit.content
        pixels, labels = self._batch(name)
        stop = start + ROWS_A_UNIT
        planes = pixels[start:stop].reshape(-1, 3, 32, 32)
        images = np.empty((len(planes), 32, 32, 3), np.uint8)
        for channel in range(3):  # four times as fast as numpy's copy of a transposed array
            images[..., channel] = planes[:, channel]
        for i, label in enumerate(labels[start:stop].tolist(), start):
            yield Sample(_key(name, i), images[i - start], label, _origin(self._layout, name, i))

    def _batch(self, name: str) -> tuple[np.ndarray, np.ndarray]:
        """(N, 3072) uint8 planar pixels and (N,) labels; the last batch read is kept for its next unit."""
        if self._cached is None or self._cached[0] != name:
            label_key, official = self._layout.label_key, self._layout.batches[name][1]
            batch = self._load(name)
            data, labels = batch.get("data"), batch.get(label_key)
            if not isinstance(data, np.ndarray) or data.dtype != np.uint8 or data.ndim != 2 or data.shape[1] != 3072:
                raise Error(f"{self.path}: {name} has no uint8 array of shape (N, 3072) under 'data'")
            if not isinstance(labels, list) or len(labels) != len(data) or not all(type(x) is int for x in labels):
                raise Error(f"{self.path}: {name} has no list of {plural(len(data), 'label')} under {label_key!r}")
            if len(data) > official or (len(data) < official and not self._is_small(name)):
                raise Error(f"{self.path}: {name} has {plural(len(data), 'image')}, not {official:,}; get it again")
            if labels and not 0 <= min(labels) <= max(labels) < len(self.classes):
                raise Error(f"{self.path}: {name} has labels outside 0 to {len(self.classes) - 1}")
            self._cached = (name, data, np.array(labels))
        return self._cached[1:]
