"""ImageNet-1k as ILSVRC2012 ships it: train and val tars, and the devkit that labels the val images."""

from __future__ import annotations

import posixpath
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

from mlpdata import labels
from mlpdata import splits as split_names
from mlpdata.archive.blob import PlainFile, open_blob
from mlpdata.archive.tarscan import Damage, Member, scan
from mlpdata.errors import Error
from mlpdata.image.limits import MAX_IMAGE_BYTES
from mlpdata.sources.base import Broken, ClassFilter, Sample, TooSmall, Unit
from mlpdata.sources.devkit import DEVKIT, VAL_NAME, Devkit, read_devkit
from mlpdata.sources.files import is_system
from mlpdata.sources.imagenet import ImageNetTars
from mlpdata.sources.imagenet_release import recognise
from mlpdata.sources.keys import part, text
from mlpdata.system.format import plural

TRAIN, VAL = "ILSVRC2012_img_train.tar", "ILSVRC2012_img_val.tar"
IMAGES_A_UNIT = 1_000


class ImageNet1k(ImageNetTars):
    """The train tar, and the val tar with the devkit where both lie beside it. Labels are ranks of the sorted wnids.

    path:   the train tar, or the directory that holds it.
    splits: names of those that are wanted, () for all. For `val` alone the train tar is not read, and the classes are
            the devkit's.
    See ImageNetTars for the rest.
    """

    def __init__(
        self,
        path: Path,
        class_filter: ClassFilter = ClassFilter(),  # noqa: B008 - it is frozen
        res: int = 64,
        cache: Path | None = None,
        splits: tuple[str, ...] = (),
    ):
        folder, train = (path, path / TRAIN) if path.is_dir() else (path.parent, path)
        if not train.is_file():
            raise Error(f"{path} has no {TRAIN}")
        val, devkit = folder / VAL, folder / DEVKIT
        has_val = val.is_file() and class_filter.val_per_class == 0
        available = ("train", "val") if has_val else ("train",)
        wanted = {split_names.find(name, available) for name in splits} - {None} or set(available)
        self._has_train = "train" in wanted
        kit = None
        if has_val and "val" in wanted:
            if not devkit.is_file():
                raise Error(f"{val} has no labels without {devkit}; put it there, or move the val tar away")
            kit = read_devkit(devkit)
        if self._has_train or kit is None:
            super().__init__(train, class_filter, res, cache)
            if unknown := {name for name, _ in self.classes} - set(labels.classes("ilsvrc2012")):
                raise Error(f"{train} is not ILSVRC2012: it has class {min(unknown)}")
            if len(self.classes) < 1000:
                self.release = f"ILSVRC2012 ({len(self.classes):,} of 1,000 synsets)"
            if kit is not None and "val" in self.splits:
                self.warnings += (f"{val} is not read, for {train.name} has val images of its own",)
                kit = None
        else:
            self._take_classes_of(kit, val, class_filter)
        self._val: list[tuple[str, int, int, int]] = []  # (name, offset, size, label) of each val image
        self._val_broken: list[Broken] = []
        if kit is not None:
            blob = open_blob(val)
            if not isinstance(blob, PlainFile):
                raise Error(f"{val} is compressed, which the official one is not; decompress it")
            self._val_blob = blob
            self._list_val(kit)
            self.files = [*self.files, str(val), str(devkit)]
            self.splits = ("train", "val") if self._has_train else ("val",)

    def __getstate__(self):
        return {**super().__getstate__(), "_val": [], "_val_broken": []}

    def _take_classes_of(self, kit: Devkit, path: Path, class_filter: ClassFilter) -> None:
        """Initialise the source without the train tar."""
        self.path, self.class_filter, self.files, self._groups = path, class_filter, [], []
        self._left_out, self._last_group = [], None
        if missing := sorted(set(class_filter.classes or ()) - set(kit.classes)):
            raise Error(f"{path} lacks {len(missing)} of the classes asked for: {missing[0]}")
        self.classes = [(wnid, labels.readable(wnid)) for wnid in class_filter.classes or kit.classes]
        self._labels = {wnid: i for i, (wnid, _) in enumerate(self.classes)}
        self.release = recognise(kit.classes, [], True)

    def _list_val(self, kit: Devkit) -> None:
        path = self._val_blob.path
        seen: set[int] = set()
        others: Counter[str] = Counter()  # images by wnid that no class is taken of
        for item in scan(self._val_blob.read_at, 0, self._val_blob.size):
            if isinstance(item, Damage):
                if item.last:
                    raise Error(f"{path} is cut short: {item.reason}; get the rest of it")
                self._val_broken.append(Broken(VAL, item.reason, "val"))
                continue
            name = posixpath.basename(item.name)
            match = VAL_NAME.fullmatch(name)
            number = int(match[1]) if match else 0
            if not isinstance(item, Member):
                reason = item.reason
            elif is_system(item.name):
                reason = "left there by a system or a tool"
            elif not match:
                reason = "is not named as ILSVRC2012's val images are"
            elif not 1 <= number <= len(kit.wnids):
                reason = f"has no label: the devkit has {len(kit.wnids):,}"
            elif number in seen:
                reason = "is there twice"
            else:
                seen.add(number)
                wnid = kit.wnids[number - 1]
                if wnid in self._labels:
                    self._val.append((name, item.offset, item.size, self._labels[wnid]))
                else:
                    others[wnid] += 1
                continue
            self._val_broken.append(Broken(f"{VAL}/{text(item.name)}", reason, "val", not is_system(item.name)))
        if not self._val:
            raise Error(f"{path} holds none of the ILSVRC2012 val images")
        if len(seen) < len(kit.wnids):
            self.warnings += (f"{path} lacks {len(kit.wnids) - len(seen):,} of the images with labels",)
        if others and self.class_filter.classes is None:
            left_out, theirs = plural(others.total(), "image"), plural(len(others), "class")
            what = f"{left_out} left out, as the train tar lacks their {theirs}"
            self.warnings += (f"{path}: {what}: {min(others)}",)

    def units(self) -> list[Unit]:
        units = super().units() if self._has_train else []
        for k in range(0, len(self._val), IMAGES_A_UNIT):
            rows = self._val[k : k + IMAGES_A_UNIT]
            num_bytes = sum(size for _, _, size, _ in rows)
            units.append(Unit(f"val-{k:06d}", "val", len(rows), num_bytes, ("val", rows), exact=True, splits=("val",)))
        if self._val_broken:
            units.append(Unit("val-damage", "val", 0, 0, ("val", self._val_broken), splits=("val",)))
        return units

    def samples(self, unit: Unit) -> Iterator[Sample | Broken | TooSmall]:
        if unit.content[0] != "val":
            yield from super().samples(unit)
            return
        for row in unit.content[1]:
            yield row if isinstance(row, Broken) else self._val_sample(*row)

    def _val_sample(self, name: str, offset: int, size: int, label: int) -> Sample | Broken:
        if size > MAX_IMAGE_BYTES:
            return Broken(f"{VAL}/{name}", f"has {size:,} bytes", "val")
        data = self._val_blob.read_at(offset, size)
        if len(data) < size:
            raise Error(f"{self._val_blob.path} ends inside {name}; it changed while it was read")
        return Sample(part(name.rpartition(".")[0]), data, label, f"{VAL}/{name}", "val")
