"""ImageNet-1k as ILSVRC2012 ships it: train and val tars, and the devkit that labels the val images."""

from __future__ import annotations

import io
import os
import posixpath
import re
import tarfile
from collections.abc import Iterator
from itertools import islice
from pathlib import Path

import numpy as np

from mlpdata import labels
from mlpdata.errors import Error
from mlpdata.sources import Broken, ClassFilter, Sample, Unit
from mlpdata.sources.blob import open_blob
from mlpdata.sources.imagenet import MAX_IMAGE_BYTES, ImageNetTars
from mlpdata.sources.tarscan import Damage, scan

TRAIN, VAL, DEVKIT = "ILSVRC2012_img_train.tar", "ILSVRC2012_img_val.tar", "ILSVRC2012_devkit_t12.tar.gz"
SOLUTION = "LOC_val_solution.csv"
VAL_NAME = re.compile(r"ILSVRC2012_val_(\d{8})\.JPEG")
IMAGES_A_UNIT = 1_000
MAX_DEVKIT_BYTES = 64 << 20


class ImageNet1k(ImageNetTars):
    """The train tar, and the val tar with the devkit where both lie beside it. Labels are ranks of the sorted wnids.

    path: the train tar, or the directory that holds it. See ImageNetTars for the rest.
    """

    def __init__(
        self,
        path: Path,
        class_filter: ClassFilter = ClassFilter(),  # noqa: B008 - it is frozen
        res: int = 64,
        cache: Path | None = None,
    ):
        folder = path if path.is_dir() else path.parent
        train = folder / TRAIN if path.is_dir() else path
        if not train.is_file():
            raise Error(f"{path} has no {TRAIN}")
        super().__init__(train, class_filter, res, cache)
        unknown = {name for name, _ in self.classes} - set(labels.classes("ilsvrc2012"))
        if unknown:
            raise Error(f"{train} is not ILSVRC2012: it has class {min(unknown)}")
        if len(self.classes) < 1000:
            self.release = f"ILSVRC2012 ({len(self.classes):,} of 1,000 synsets)"
        self._val: list[tuple] = []
        self._val_damage: list[Broken] = []
        val, devkit = folder / VAL, folder / DEVKIT
        if val.is_file() and class_filter.val_per_class == 0:
            if not devkit.is_file():
                raise Error(f"{val} has no labels without {devkit}; put it there, or move the val tar away")
            self._val_blob = open_blob(val)
            if self._val_blob.compressed:
                raise Error(f"{val} is compressed, which the official one is not; decompress it")
            self._list_val(read_devkit(devkit))
            self.files += [str(val), str(devkit)]
            self.splits = ("train", "val")

    def __getstate__(self):
        return {**super().__getstate__(), "_val": []}

    def _list_val(self, wnids: list[str]) -> None:
        for item in scan(self._val_blob.read_at, 0, self._val_blob.size):
            if isinstance(item, Damage):
                if item.last:
                    raise Error(f"{self._val_blob.path} is cut short: {item.reason}; get the rest of it")
                self._val_damage.append(Broken(VAL, item.reason, "val"))
                continue
            match = VAL_NAME.fullmatch(posixpath.basename(item.name))
            if match and 1 <= int(match[1]) <= len(wnids):
                label = self._labels.get(wnids[int(match[1]) - 1])
                if label is not None:
                    self._val.append((posixpath.basename(item.name), item.offset, item.size, label))
        if not self._val:
            raise Error(f"{self._val_blob.path} holds none of the ILSVRC2012 val images")

    def units(self) -> list[Unit]:
        units = super().units()
        for k in range(0, len(self._val), IMAGES_A_UNIT):
            rows = self._val[k : k + IMAGES_A_UNIT]
            units.append(Unit(f"val-{k:06d}", self.splits[0], len(rows), sum(r[2] for r in rows), ("val", rows)))
        if self._val_damage:
            units.append(Unit("val-damage", self.splits[0], 0, 0, tuple(self._val_damage)))
        return units

    def samples(self, unit: Unit) -> Iterator[Sample | Broken]:
        if unit.at[0] != "val":
            yield from super().samples(unit)
            return
        for name, offset, size, label in unit.at[1]:
            origin = f"{VAL}/{name}"
            if size > MAX_IMAGE_BYTES:
                yield Broken(origin, f"has {size} bytes", "val")
            else:
                data = self._val_blob.read_at(offset, size)
                yield Sample(name.removesuffix(".JPEG"), data, label, origin, "val")


def flat_val(path: Path) -> dict[str, dict[str, str]]:
    """{"val": {file: wnid}} where the val images of a directory lie in one folder, as they come; {} where they do not.

    The devkit beside the folder says what they are, or Kaggle's LOC_val_solution.csv. Raises Error without either.
    """
    folder = next((path / n for n in ("val", "validation", "valid") if (path / n).is_dir()), None)
    if folder is None:
        return {}
    with os.scandir(folder) as entries:
        if not any(VAL_NAME.fullmatch(e.name) for e in islice(entries, 100)):
            return {}
    if (path / DEVKIT).is_file():
        return {"val": {f"ILSVRC2012_val_{i:08d}.JPEG": wnid for i, wnid in enumerate(read_devkit(path / DEVKIT), 1)}}
    solution = path / SOLUTION
    if not solution.is_file():
        raise Error(
            f"{folder} has images without class folders: put {DEVKIT} or {SOLUTION} into {path}, for their labels"
        )
    rows = (line.split(",") for line in solution.read_text(errors="replace").splitlines()[1:])
    return {"val": {f"{row[0]}.JPEG": row[1].split(" ")[0] for row in rows if len(row) > 1}}


def read_devkit(path: Path) -> list[str]:
    """The wnid of every val image in order, from the devkit's ground truth and meta.mat. Raises Error."""
    from scipy.io import loadmat

    try:
        with tarfile.open(path) as archive:
            members = {posixpath.basename(m.name): m for m in archive if m.isfile() and m.size < MAX_DEVKIT_BYTES}
            truth = archive.extractfile(members["ILSVRC2012_validation_ground_truth.txt"]).read()
            meta = archive.extractfile(members["meta.mat"]).read()
        synsets = loadmat(io.BytesIO(meta), squeeze_me=True)["synsets"]
        leaves = synsets[np.asarray(synsets["num_children"], int) == 0]
        wnid = {int(i): str(w) for i, w in zip(leaves["ILSVRC2012_ID"], leaves["WNID"], strict=True)}
        return [wnid[int(line)] for line in truth.split()]
    except Exception as e:  # damaged archives and matrices raise nearly anything
        raise Error(f"{path} is not the ILSVRC2012 devkit ({type(e).__name__}: {e}); get it again") from None
