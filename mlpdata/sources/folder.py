"""A folder of class sub-folders, optionally below split folders, as torchvision's ImageFolder reads it."""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path

import xxhash

from mlpdata import labels
from mlpdata.errors import Error
from mlpdata.sources import Broken, ClassFilter, Sample, Source, Unit, most_samples

EXTENSIONS = {".jpg": "jpg", ".jpeg": "jpg", ".png": "png", ".webp": "png"}
SPLIT_FOLDERS = {"train": "train", "val": "val", "valid": "val", "validation": "val", "test": "test"}
UNITS = 256  # a folder is cut into about so many units, within bounds
LEAST_IMAGES = 1_000  # in a unit
MAX_IMAGE_BYTES = 256 << 20


@dataclass(frozen=True, slots=True)
class Piece:
    """Images `start` to `stop`, in the order of their names, of one folder."""

    split: str
    below: str  # the folder, relative to the root
    class_name: str  # "" where the class of each file is known by its name
    start: int
    stop: int
    names_digest: int  # of all names in the folder: who reads them lists them again


class Folder(Source):
    """Class sub-folders of jpg, jpeg, png and webp files.

    With `train/` (and `val/`, `valid/`, `validation/`, `test/`) below the root those are the splits, otherwise all is
    `train`. Classes are the sorted folder names. Links to folders are not followed, hidden and other files left out.
    No file is touched while listing, and no name is kept: a unit is a range of a folder's names, listed again by the
    worker. class_filter: see ClassFilter; it applies where there are no split folders.
    res: pixels a side of what is made of it; bounds how many images are one unit.
    flat: split -> {file name: class}, for split folders whose files lie in them without class folders.
    Raises Error where there is nothing to convert.
    """

    def __init__(
        self,
        path: Path,
        class_filter: ClassFilter = ClassFilter(),  # noqa: B008 - it is frozen
        res: int = 64,
        flat: Mapping[str, Mapping[str, str]] | None = None,
    ):
        self.path, self.class_filter, self._res, self._flat = Path(path), class_filter, res, flat or {}
        self.files = [str(path)]
        self.release = f"folder {self.path.resolve().name}"
        if not self.path.is_dir():
            raise Error(
                f"no folder at {path}" if not self.path.exists() else f"{path} is a file, not a folder of classes"
            )
        folders = self._split_folders()
        classes = {s: () if s in self._flat else _folders(self.path / below) for s, below in folders.items()}
        names = sorted({n for found in classes.values() for n in found})
        if not names:
            raise Error(f"{path} has no class folders; expected {path}/CLASS/IMAGE.jpg or {path}/train/CLASS/IMAGE.jpg")
        if folders != {"train": ""}:
            self.class_filter = class_filter = class_filter.beside_splits()
        if (class_filter.min_class_size or class_filter.val_per_class) and folders != {"train": ""}:
            raise Error(f"{path} has split folders of its own; of the class filters it takes only --classes")
        if class_filter.classes is not None:
            known = set(names)
            missing = [n for n in class_filter.classes if n not in known]
            if missing:
                raise Error(f"{path} lacks {len(missing)} of the classes asked for: {missing[0]}, ...")
            names = list(class_filter.classes)
        if any("\n" in n or "\t" in n for n in names):
            raise Error(f"{path} has a class folder with a TAB or newline in its name; rename it")
        self.classes = [(n, labels.readable(n)) for n in names]
        self.drops_empty_classes = class_filter.min_class_size > 0
        if class_filter.val_per_class:
            self.splits = ("train", "val")
        self._labels = {n: i for i, n in enumerate(names)}
        self._cached: tuple[str, list[str], list[str]] | None = None
        self._pieces = self._list(folders, classes)

    def __getstate__(self):
        return {**self.__dict__, "_pieces": [], "_cached": None}

    # --------------------------------------------------------------------------------------------------- listing

    def _split_folders(self) -> dict[str, str]:
        top = _folders(self.path)
        found = [n for n in top if n.lower() in SPLIT_FOLDERS]
        splits = {SPLIT_FOLDERS[n.lower()]: n for n in found}
        if "train" not in splits or len(found) < len(top):
            return {"train": ""}  # a class may well be called `test`
        if len(splits) < len(found):
            raise Error(f"{self.path} has several folders for one split: {', '.join(found)}")
        return splits

    def _list(self, folders: dict[str, str], classes: dict[str, list[str]]) -> list[Piece]:
        """One piece a folder."""
        pieces, kinds, sizes = [], Counter(), {}
        for split, below in folders.items():
            here = len(pieces)
            for name in classes[split] or ("",):
                if name not in self._labels and split not in self._flat:
                    continue
                folder = os.path.join(below, name) if name else below
                files = _images(self.path / folder)
                kinds.update(EXTENSIONS[os.path.splitext(f)[1].lower()] for f in files)
                sizes[name] = len(files)
                if files and self.class_filter.takes(name, len(files)):
                    pieces.append(Piece(split, folder, name, 0, len(files), _digest(files)))
            if len(pieces) == here and any(sizes.values()) and self.class_filter.min_class_size:
                raise self.class_filter.none_left(sizes)
            if len(pieces) == here:
                raise Error(f"split {split!r} of {self.path} has no jpg, png or webp images")
        self.codec = "jpg" if kinds["jpg"] > sum(kinds.values()) / 2 else "png"
        return pieces

    def units(self) -> list[Unit]:
        total = sum(p.stop for p in self._pieces)
        most = min(most_samples(self._res), max(LEAST_IMAGES, total // UNITS))
        units: list[Unit] = []
        group: list[Piece] = []
        count = 0

        def close():
            nonlocal group, count
            if group:
                units.append(Unit(f"{group[0].split}-{len(units):08d}", group[0].split, count, 0, tuple(group)))
            group, count = [], 0

        for piece in self._pieces:
            if group and group[0].split != piece.split:
                close()
            start = 0
            while start < piece.stop:
                stop = min(piece.stop, start + most - count)
                group.append(replace(piece, start=start, stop=stop))
                count, start = count + stop - start, stop
                if count == most:
                    close()
        close()
        return units

    # --------------------------------------------------------------------------------------------------- reading

    def samples(self, unit: Unit) -> Iterator[Sample | Broken]:
        for piece in unit.at:
            files, keys = self._folder(piece)
            splits = self.class_filter.split_of(piece.class_name, files) if self.class_filter.val_per_class else {}
            for i in range(piece.start, piece.stop):
                name = piece.class_name or self._flat[piece.split].get(files[i], "")
                origin = os.path.join(piece.below, files[i])
                if not name:
                    yield Broken(origin, "no class is given for it")
                elif name in self._labels:
                    yield self._sample(origin, keys[i], self._labels[name], splits.get(files[i], ""))

    def _sample(self, origin: str, key: str, label: int, split: str) -> Sample | Broken:
        try:
            with open(self.path / origin, "rb") as f:
                data = f.read(MAX_IMAGE_BYTES + 1)
        except OSError as e:
            return Broken(origin, e.strerror or str(e), split)
        if len(data) > MAX_IMAGE_BYTES:
            return Broken(origin, f"has more than {MAX_IMAGE_BYTES >> 20} MiB", split)
        return Sample(key, data, label, origin, split)

    def _folder(self, piece: Piece) -> tuple[list[str], list[str]]:
        """(file names, keys) of all images in a folder; the last one is kept for its next piece."""
        if self._cached is None or self._cached[0] != piece.below:
            files = _images(self.path / piece.below)
            if _digest(files) != piece.names_digest:
                raise Error(
                    f"{self.path / piece.below} changed while it was converted; convert again into another --out"
                )
            self._cached = (piece.below, files, _keys(piece.class_name, files))
        return self._cached[1:]


def _images(folder: Path) -> list[str]:
    """Names of the images in a folder, sorted; no file is touched."""
    with os.scandir(folder) as entries:
        return sorted(
            e.name for e in entries if not e.name.startswith(".") and os.path.splitext(e.name)[1].lower() in EXTENSIONS
        )


def _digest(names: list[str]) -> int:
    return xxhash.xxh3_64_intdigest("\0".join(names).encode("utf-8", "surrogateescape"))


def _keys(class_name: str, files: list[str]) -> list[str]:
    """A key for each file of a class, in their order; no two are equal."""
    stems = [_safe(os.path.splitext(f)[0]) for f in files]
    counts = Counter(stems)
    taken, keys = set(), []
    for file, stem in zip(files, stems, strict=True):
        key = stem if counts[stem] == 1 else f"{stem}-{os.path.splitext(file)[1][1:].lower()}"
        while key in taken or (key != stem and key in counts):
            key += "-"
        taken.add(key)
        keys.append(f"{_safe(class_name)}/{key}" if class_name else key)
    return keys


def _folders(path: Path) -> list[str]:
    """Names of the sub-folders, sorted; hidden ones and links are left out."""
    with os.scandir(path) as entries:
        return sorted(e.name for e in entries if e.is_dir(follow_symlinks=False) and not e.name.startswith("."))


def _safe(name: str) -> str:
    """A name as part of a WebDataset key, which ends at the first dot: none may be left, and no two names meet."""
    return name.replace("%", "%25").replace(".", "%2E").replace("/", "%2F")
