"""A folder of class sub-folders, optionally below split folders, as torchvision's ImageFolder reads it."""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

from mlpdata import labels
from mlpdata.manifest import Error
from mlpdata.sources import Broken, ClassFilter, Sample, Source, Unit

EXTENSIONS = {".jpg": "jpg", ".jpeg": "jpg", ".png": "png", ".webp": "png"}
SPLIT_FOLDERS = {"train": "train", "val": "val", "valid": "val", "validation": "val", "test": "test"}
IMAGES_A_UNIT = 1_000
MAX_IMAGE_BYTES = 256 << 20


class Folder(Source):
    """Class sub-folders of jpg, jpeg, png and webp files.

    With `train/` (and `val/`, `valid/`, `validation/`, `test/`) below the root those are the splits, otherwise all is
    `train`. Classes are the sorted folder names. Links to folders are not followed, hidden and other files left out.
    No file is touched while listing. class_filter: see ClassFilter; it applies where there are no split folders.
    Raises Error where there is nothing to convert.
    """

    def __init__(self, path: Path, class_filter: ClassFilter = ClassFilter()):  # noqa: B008 - it is frozen
        self.path, self.class_filter = Path(path), class_filter
        self.files = [str(path)]
        self.release = f"folder {self.path.resolve().name}"
        if not self.path.is_dir():
            raise Error(
                f"no folder at {path}" if not self.path.exists() else f"{path} is a file, not a folder of classes"
            )
        top = _folders(self.path)
        split_folders = [n for n in top if n.lower() in SPLIT_FOLDERS]
        self._splits = {SPLIT_FOLDERS[n.lower()]: n for n in split_folders}
        if "train" not in self._splits or len(split_folders) < len(top):
            self._splits = {"train": ""}  # a class may well be called `test`
        if len(self._splits) < len(split_folders) and self._splits != {"train": ""}:
            raise Error(f"{path} has several folders for one split: {', '.join(split_folders)}")
        self._classes = {s: _folders(self.path / folder) for s, folder in self._splits.items()}
        names = sorted({n for names in self._classes.values() for n in names})
        if not names:
            raise Error(f"{path} has no class folders; expected {path}/CLASS/IMAGE.jpg or {path}/train/CLASS/IMAGE.jpg")
        if class_filter and self._splits != {"train": ""}:
            raise Error(f"{path} has split folders of its own; class filters apply to a folder of classes without them")
        if class_filter.classes is not None:
            missing = [n for n in class_filter.classes if n not in set(names)]
            if missing:
                raise Error(f"{path} lacks {len(missing)} of the classes asked for: {missing[0]}, ...")
            names = list(class_filter.classes)
        if any("\n" in n or "\t" in n for n in names):
            raise Error(f"{path} has a class folder with a TAB or newline in its name; rename it")
        self.classes = [(n, labels.readable(n)) for n in names]
        self.drops_empty_classes = class_filter.min_class_size > 0
        self._labels = {n: i for i, n in enumerate(names)}
        self._listing: list[Unit] | None = None
        kinds = Counter(EXTENSIONS[Path(f).suffix.lower()] for u in self.units() for _, _, f, _ in u.at)
        self.codec = "jpg" if kinds["jpg"] > sum(kinds.values()) / 2 else "png"

    def __getstate__(self):
        return {**self.__dict__, "_listing": None, "_classes": {}}

    def units(self) -> list[Unit]:
        if self._listing is None:
            self._listing = []
            rows: dict[str, list[tuple]] = {split: [] for split in self._splits}
            for split, folder in self._splits.items():
                for name in self._classes[split]:
                    if name not in self._labels:
                        continue
                    found = self._class_rows(folder, name)
                    if not self.class_filter:
                        rows[split] += found
                        continue
                    split_of = self.class_filter.split_of([row[2] for row in found])
                    for row in found if split_of else ():
                        rows.setdefault(split_of[row[2]], []).append(row)
            for split, all_rows in rows.items():
                if not all_rows:
                    raise Error(f"split {split!r} of {self.path} has no jpg, png or webp images")
                for k in range(0, len(all_rows), IMAGES_A_UNIT):
                    part = all_rows[k : k + IMAGES_A_UNIT]
                    self._listing.append(Unit(f"{split}-{k:08d}", split, len(part), 0, part))
        return self._listing

    def _class_rows(self, folder: str, name: str) -> list[tuple]:
        """(key, label, file name, folder) of every image of a class, sorted by name, with keys that differ."""
        below = os.path.join(folder, name)
        with os.scandir(self.path / below) as entries:
            files = sorted(
                e.name
                for e in entries
                if not e.name.startswith(".") and os.path.splitext(e.name)[1].lower() in EXTENSIONS
            )
        stems = [_safe(os.path.splitext(f)[0]) for f in files]
        counts = Counter(stems)
        taken, rows = set(), []
        for file, stem in zip(files, stems, strict=True):
            key = stem if counts[stem] == 1 else f"{stem}-{os.path.splitext(file)[1][1:].lower()}"
            while key in taken or (key != stem and key in counts):
                key += "-"
            taken.add(key)
            rows.append((f"{_safe(name)}/{key}", self._labels[name], file, below))
        return rows

    def samples(self, unit: Unit) -> Iterator[Sample | Broken]:
        for key, label, file, below in unit.at:
            path = self.path / below / file
            origin = os.path.join(below, file)
            try:
                with open(path, "rb") as f:
                    data = f.read(MAX_IMAGE_BYTES + 1)
            except OSError as e:
                yield Broken(origin, e.strerror or str(e))
                continue
            if len(data) > MAX_IMAGE_BYTES:
                yield Broken(origin, f"has more than {MAX_IMAGE_BYTES >> 20} MiB")
            else:
                yield Sample(key, data, label, origin)


def _folders(path: Path) -> list[str]:
    """Names of the sub-folders, sorted; hidden ones and links are left out."""
    with os.scandir(path) as entries:
        return sorted(e.name for e in entries if e.is_dir(follow_symlinks=False) and not e.name.startswith("."))


def _safe(name: str) -> str:
    """A name as part of a WebDataset key, which ends at the first dot: none may be left, and no two names meet."""
    return name.replace("%", "%25").replace(".", "%2E").replace("/", "%2F")
