"""ImageNet's archives: tars of class tars, tars of class folders, plain or gzip, read at offsets and never extracted.

`fall11_whole.tar` and `ILSVRC2012_img_train.tar` hold `<wnid>.tar`, `winter21_whole.tar.gz` holds
`winter21_whole/<wnid>.tar`, `imagenet21k_resized.tar.gz` holds `imagenet21k_resized/<part>/<wnid>/*.JPEG`. A directory
of `<wnid>.tar` files is read the same way. Either way a class is a stretch of a file that is a piece of a tar.
"""

from __future__ import annotations

import posixpath
import re
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from mlpdata import labels
from mlpdata.manifest import Error
from mlpdata.sources import Broken, ClassFilter, Sample, Source, Unit
from mlpdata.sources.blob import GzipFile, PlainFile, open_blob
from mlpdata.sources.tarscan import Damage, Member, scan

IMAGES = (".jpeg", ".jpg", ".png", ".webp")
MAX_IMAGE_BYTES = 256 << 20
UNIT_BYTES = (4 << 20, 256 << 20)  # a unit is a 256th of the archive, within these bounds
MEAN_IMAGE_BYTES = 110_000  # of ImageNet's photographs: how many there are is only known when they are read
WNID = re.compile(r"n\d{8}")
PROCESSED_PARTS = {"imagenet21k_train": "train", "imagenet21k_val": "val"}  # imagenet21k_small_classes is left out


@dataclass(frozen=True, slots=True)
class Stretch:
    """The images of one class: a piece of a tar."""

    blob: int  # which of the source's files
    class_name: str
    split: str  # "" where the class filter decides
    start: int
    end: int
    num_images: int  # 0 where only reading can tell


class ImageNetTars(Source):
    """An archive of classes, or a directory of class tars.

    class_filter: see ClassFilter; classes are counted as listed in the archive, readable or not.
    Raises Error for a file that is no such archive, or holds no class at all.
    """

    codec = "jpg"

    def __init__(self, path: Path, class_filter: ClassFilter = ClassFilter()):  # noqa: B008 - it is frozen
        self.path, self.class_filter = Path(path), class_filter
        self._damage: list[Broken] = []
        if self.path.is_dir():
            self._blobs: list[PlainFile | GzipFile] = []
            stretches, self._prefix = self._list_directory(), ""
        else:
            self._blobs = [open_blob(self.path)]
            stretches = self._list_archive()
        self.files = [blob.path for blob in self._blobs]
        found = sorted({s.class_name for s in stretches})
        self._check(found)
        self.release = self._recognise(found)
        wanted = class_filter.classes
        if wanted is not None:
            missing = [c for c in wanted if c not in set(found)]
            if missing:
                raise Error(
                    f"{self.path} lacks {len(missing)} of the {len(wanted)} classes asked for: {missing[0]}, ..."
                )
        names = list(wanted) if wanted is not None else found
        self.classes = [(name, labels.readable(name)) for name in names]
        self._labels = {name: i for i, name in enumerate(names)}
        self._stretches = [s for s in stretches if s.class_name in self._labels]
        splits = {s.split for s in stretches} - {""} or {"train"}
        if class_filter.val_per_class:
            splits.add("val")
        self.splits = tuple(sorted(splits))
        self.drops_empty_classes = class_filter.min_class_size > 0

    def __getstate__(self):
        return {**self.__dict__, "_stretches": []}

    # --------------------------------------------------------------------------------------------------- listing

    def _list_directory(self) -> list[Stretch]:
        stretches = []
        for path in sorted(self.path.iterdir()):
            if path.suffix == ".tar" and path.is_file():
                blob = PlainFile(path)
                stretches.append(Stretch(len(self._blobs), path.stem, "", 0, blob.size, 0))
                self._blobs.append(blob)
        return stretches

    def _list_archive(self) -> list[Stretch]:
        """Every class of the archive, in its order. A gzip stream is read through once, by all cores."""
        blob = self._blobs[0]
        end = blob.size if not blob.compressed else 1 << 62
        stretches: list[Stretch] = []
        run: list | None = None  # the class folder under way: [class, split, start, end, images]
        prefixes: Counter[str] = Counter()
        for item in scan(blob.read_at, 0, end):
            if isinstance(item, Damage):
                self._damage.append(Broken(self.path.name, item.reason))
                item = item.member
                if item is None:
                    continue
            folder, name = posixpath.split(item.name.removeprefix("./"))
            if name.endswith(".tar"):
                prefixes[folder] += 1
                stretches.append(Stretch(0, name.removesuffix(".tar"), "", item.offset, item.offset + item.size, 0))
            elif name.lower().endswith(IMAGES) and folder:
                part, class_name = posixpath.split(folder)
                split = PROCESSED_PARTS.get(posixpath.basename(part), "")
                if posixpath.basename(part) == "imagenet21k_small_classes":
                    continue
                prefixes[part] += 1
                if run is None or run[:2] != [class_name, split]:
                    if run is not None:
                        stretches.append(Stretch(0, *run))
                    run = [class_name, split, item.offset - self._header_bytes(item), 0, 0]
                run[3], run[4] = item.offset + item.size, run[4] + 1
        if run is not None:
            stretches.append(Stretch(0, *run))
        if blob.compressed:
            blob.complete()
        self._prefix = posixpath.basename(min(prefixes, default="")).split("/")[0] if len(prefixes) == 1 else ""
        if any(s.split for s in stretches):
            self._prefix = "imagenet21k_resized"
        return stretches

    @staticmethod
    def _header_bytes(member: Member) -> int:
        return 512  # an extended header before the first member of a class names only that member's long path

    def _check(self, found: list[str]) -> None:
        if not found:
            damage = f" ({self._damage[0].reason})" if self._damage else ""
            raise Error(f"{self.path} holds neither <class>.tar nor <class>/ folders of images{damage}")

    def _recognise(self, found: list[str]) -> str:
        """Which release this is, from the layout and the classes, never from the file's name."""
        known, ilsvrc = set(labels.classes("fall11")), set(labels.classes("ilsvrc2012"))
        if set(found) == ilsvrc:
            return "ILSVRC2012 (all 1,000 synsets)"
        if self._prefix == "imagenet21k_resized":
            return f"winter21-P, processed and resized ({len(found):,} synsets)"
        if self._prefix == "winter21_whole":
            return f"winter21 ({len(found):,} of 19,167 synsets)"
        strangers = [name for name in found if name not in known]
        if all(WNID.fullmatch(name) for name in found) and len(strangers) <= len(found) // 20:
            return f"fall11 ({len(found):,} of 21,841 synsets)"
        return f"unknown release ({len(found):,} classes)"

    # --------------------------------------------------------------------------------------------------- reading

    def units(self) -> list[Unit]:
        total = sum(s.end - s.start for s in self._stretches)
        target = min(max(total // 256, UNIT_BYTES[0]), UNIT_BYTES[1])
        units, group, size = [], [], 0

        def close():
            count = sum(s.num_images or max(1, (s.end - s.start) // MEAN_IMAGE_BYTES) for s in group)
            units.append(Unit(f"unit-{len(units):06d}", self.splits[0], count, size, tuple(group)))

        for s in self._stretches:
            if group and size + s.end - s.start > target:
                close()
                group, size = [], 0
            group.append(s)
            size += s.end - s.start
        if group:
            close()
        if self._damage:
            units.append(Unit("unit-damage", self.splits[0], 0, 0, tuple(self._damage)))
        return units

    def samples(self, unit: Unit) -> Iterator[Sample | Broken]:
        for stretch in unit.at:
            if isinstance(stretch, Broken):
                yield stretch
            else:
                yield from self._class_samples(stretch)

    def _class_samples(self, stretch: Stretch) -> Iterator[Sample | Broken]:
        blob, name = self._blobs[stretch.blob], stretch.class_name
        blob.will_read(stretch.start, stretch.end - stretch.start)
        members, damage = [], []
        for item in scan(blob.read_at, stretch.start, stretch.end):
            if isinstance(item, Damage):
                damage.append(item.reason)
                continue
            if posixpath.basename(item.name).lower().endswith(IMAGES) or "." not in posixpath.basename(item.name):
                members.append(item)
        splits = self.class_filter.split_of([m.name for m in members])
        if not splits and members:
            return  # a class below the size asked for
        for reason in damage:
            yield Broken(f"{name}.tar", reason)
        for member in members:
            split = stretch.split or splits[member.name]
            file = posixpath.basename(member.name)
            origin = f"{name}.tar/{file}" if not stretch.num_images else member.name
            if member.size > MAX_IMAGE_BYTES:
                yield Broken(origin, f"has {member.size} bytes", split)
                continue
            data = blob.read_at(member.offset, member.size)
            stem = file.rpartition(".")[0] or file
            key = stem if stem.startswith(f"{name}_") else f"{name}_{stem}"
            yield Sample(key.replace(".", "_"), data, self._labels[name], origin, split)
        if len(self._blobs) > 1:
            blob.close()
