"""CIFAR-10 and CIFAR-100: pickled batches in `*-python.tar.gz`, read inside the archive.

The pickles are Python 2's and untrusted: see `pickles`.
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
from mlpdata.archive.tarscan import Damage, Member, scan
from mlpdata.errors import Error
from mlpdata.sources import Broken, Sample, Source, Unit, files, keys
from mlpdata.sources.files import is_system

HOLD_BYTES = 512 << 20  # the whole content is kept while units are read: 184 MB
MAX_MEMBER_BYTES = 256 << 20  # the largest real one, CIFAR-100's train, has 155 MB
ROWS_A_UNIT = 10_000
ROW_BYTES = 3072  # pixels of one image
OTHER = ("readme.html", "file.txt~")  # what else the authors' archives have
NOT_READ = "no part of the data set that is read"


@dataclass(frozen=True)
class Layout:
    """What sets the two archives apart."""

    folder: str
    batches: dict[str, tuple[str, int]]  # member -> split, rows
    meta: str
    label_key: str
    names_key: str
    num_classes: int


CIFAR10 = Layout(
    "cifar-10-batches-py",
    {**{f"data_batch_{i}": ("train", 10_000) for i in range(1, 6)}, "test_batch": ("val", 10_000)},
    "batches.meta",
    "labels",
    "label_names",
    10,
)
CIFAR100 = Layout(
    "cifar-100-python",
    {"train": ("train", 50_000), "test": ("val", 10_000)},
    "meta",
    "fine_labels",
    "fine_label_names",
    100,
)
# The batches in the order in which they lie in the authors' archive: copies made by reading it front to back, as the
# Hub's, have their rows in this order.
ARCHIVE_ORDER = ("data_batch_4", "data_batch_3", "data_batch_2", "data_batch_5", "data_batch_1")


def place(layout: Layout, split: str, row: int) -> tuple[str, str]:
    """(key, origin) of a row of a split that has all batches one after the other: those of the archive's own image."""
    names = [name for name, (of, _) in layout.batches.items() if of == split]
    for name in sorted(names, key=ARCHIVE_ORDER.index) if len(names) > 1 else names:
        if row < layout.batches[name][1]:
            return _key(name, row), _origin(layout, name, row)
        row -= layout.batches[name][1]
    raise Error(f"{layout.folder}: split {split!r} has more rows than the archive has images")


def _key(batch: str, row: int) -> str:
    return f"{batch}_{row:05d}"


def _origin(layout: Layout, batch: str, row: int) -> str:
    return f"{layout.folder}/{batch}[{row}]"


class Cifar(Source):
    """CIFAR-10 or CIFAR-100 from the authors' archive, or from a directory that holds its extracted folder.

    The official test set is the split `val`. Raises Error for another, truncated or damaged archive.
    """

    codec = "array"

    def __init__(self, path: Path, layout: Layout):
        self.layout, self.path = layout, Path(path)
        self.files = [str(path)]
        self.release = layout.folder
        self._cached: tuple[str, np.ndarray, np.ndarray] | None = None
        self._left_out: list[Broken] = []
        if self.path.is_dir():
            self._blob, self._members = None, self._list_folder()
        else:
            self._blob, self._members = open_blob(self.path), {}
            self._list_archive()
        missing = [name for name in (*layout.batches, layout.meta) if name not in self._members]
        if missing:
            held = ", ".join(map(keys.shown, sorted(self._members)[:8])) or "none of its members"
            raise Error(f"{self.path} is not {layout.folder}: it lacks {', '.join(missing)} and holds {held}")
        self.classes = [(name, name) for name in self._class_names()]
        self._say_what_is_odd()

    def _class_names(self) -> list[str]:
        layout = self.layout
        names = self._load(layout.meta).get(layout.names_key)
        if not isinstance(names, list) or not all(isinstance(n, (str, bytes)) for n in names):
            raise Error(f"{self.path}: {layout.meta} has no class names under {layout.names_key!r}")
        names = [keys.text(n.decode("utf-8", "surrogateescape") if isinstance(n, bytes) else n) for n in names]
        if len(names) != layout.num_classes or len({*names} - {""}) < len(names):
            different = f"{len(names):,} class names, {len({*names} - {''}):,} of them different and not empty"
            raise Error(f"{self.path}: {layout.meta} has {different}; {layout.folder} has {layout.num_classes}")
        return names

    def _say_what_is_odd(self) -> None:
        read = {*self.layout.batches, self.layout.meta}
        if other := [name for name in self._members if name not in read and name not in OTHER]:
            self._left_out += [
                Broken(keys.text(f"{self.layout.folder}/{name}"), NOT_READ, is_data=False) for name in other
            ]
        if self._left_out:
            names = ", ".join(keys.shown(broken.origin) for broken in self._left_out[:3])
            self.warnings += (f"{self.path}: {len(self._left_out):,} members left out: {names}",)
        if small := [name for name in self.layout.batches if self._is_small(name)]:
            rows = sum(rows for _, rows in self.layout.batches.values())
            self.warnings += (
                f"{self.path}: {', '.join(small)} of fewer images than the authors' archive has, {rows:,} in all",
            )

    def _is_small(self, name: str) -> bool:
        """Whether a batch cannot have all the images that the authors' has."""
        return self._members[name].size // ROW_BYTES < self.layout.batches[name][1]

    def __getstate__(self):
        return {**self.__dict__, "_cached": None, "_left_out": []}

    def _list_folder(self) -> dict[str, Member]:
        folder = self.path / self.layout.folder if (self.path / self.layout.folder).is_dir() else self.path
        self._folder = folder
        try:
            found = {p.name: Member(p.name, 0, p.stat().st_size) for p in sorted(folder.iterdir()) if p.is_file()}
        except OSError as e:
            raise Error(f"cannot read the folder {folder}: {e.strerror}") from None
        self.files = [str(folder / name) for name in (*self.layout.batches, self.layout.meta) if name in found]
        return {name: member for name, member in found.items() if not is_system(name)}

    def _list_archive(self) -> None:
        with open(self.path, "rb") as f:
            if f.read(2) != b"\x1f\x8b":
                name = self.layout.folder.replace("batches-py", "python")
                raise Error(f"{self.path} is not a gzip archive; expected the authors' {name}.tar.gz")
        self._blob.complete(HOLD_BYTES)
        if self._blob.damage:
            raise Error(f"{self.path} is damaged: {self._blob.damage}; get it again")
        for member in scan(self._blob.read_at, 0, self._blob.size):
            if isinstance(member, Damage):
                if member.lost or member.last:
                    raise Error(f"{self.path} is truncated or damaged ({member.reason}); get it again")
                self.warnings += (f"{self.path}: {member.reason}",)
                continue
            folder, _, name = member.name.removeprefix("./").rpartition("/")
            if folder == self.layout.folder and isinstance(member, Member) and not is_system(name):
                if name in self._members:
                    raise Error(f"{self.path} has {keys.shown(name)} twice; get it again")
                self._members[name] = member
            else:
                self._left_out.append(Broken(keys.text(member.name), NOT_READ, is_data=False))
        if not self._members:
            found = keys.shown(self._left_out[0].origin) if self._left_out else "nothing"
            raise Error(f"{self.path} is not {self.layout.folder}: it holds {found}")

    def _load(self, name: str) -> dict[str, object]:
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
            if isinstance(at := batch.get("data"), pickles.ArrayExtent):
                batch["data"] = np.frombuffer(data, at.dtype, math.prod(at.shape), at.offset).reshape(at.shape)
        except ValueError as e:
            raise Error(f"{self.path}: {name} {e}") from None
        return batch

    def units(self) -> list[Unit]:
        units = []
        for name, (split, rows) in self.layout.batches.items():
            # The official count, unless there cannot be so many; one at least, so that every batch is looked into.
            rows = max(1, min(rows, -(-self._members[name].size // ROW_BYTES)))
            for start in range(0, rows, ROWS_A_UNIT):
                n = min(ROWS_A_UNIT, rows - start)
                units.append(
                    Unit(f"{name}-{start:05d}", split, n, n * ROW_BYTES, (name, start), not self._is_small(name))
                )
        if self._left_out:
            units.append(Unit("left-out", "train", 0, 0, tuple(self._left_out)))
        return units

    def samples(self, unit: Unit) -> Iterator[Sample | Broken]:
        if isinstance(unit.at[0], Broken):
            yield from unit.at
            return
        name, start = unit.at
        pixels, labels = self._batch(name)
        stop = start + ROWS_A_UNIT
        planes = pixels[start:stop].reshape(-1, 3, 32, 32)
        images = np.empty((len(planes), 32, 32, 3), np.uint8)
        for channel in range(3):  # four times as fast as numpy's copy of a transposed array
            images[..., channel] = planes[:, channel]
        for i, label in enumerate(labels[start:stop].tolist(), start):
            yield Sample(_key(name, i), images[i - start], label, _origin(self.layout, name, i))

    def _batch(self, name: str) -> tuple[np.ndarray, np.ndarray]:
        """(N, 3072) uint8 planar pixels and (N,) labels; the last batch read is kept for its next unit."""
        if self._cached is None or self._cached[0] != name:
            batch = self._load(name)
            data, labels = batch.get("data"), batch.get(self.layout.label_key)
            if not isinstance(data, np.ndarray) or data.dtype != np.uint8 or data.ndim != 2 or data.shape[1] != 3072:
                raise Error(f"{self.path}: {name} has no uint8 array of shape (N, 3072) under 'data'")
            if not isinstance(labels, list) or len(labels) != len(data) or not all(type(x) is int for x in labels):
                raise Error(f"{self.path}: {name} has no list of {len(data)} labels under {self.layout.label_key!r}")
            official = self.layout.batches[name][1]
            if len(data) > official or (len(data) < official and not self._is_small(name)):
                raise Error(f"{self.path}: {name} has {len(data):,} images, not {official:,}; get it again")
            if labels and not 0 <= min(labels) <= max(labels) < len(self.classes):
                raise Error(f"{self.path}: {name} has labels outside 0 to {len(self.classes) - 1}")
            self._cached = (name, data, np.array(labels))
        return self._cached[1:]
