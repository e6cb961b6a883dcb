"""A folder of class sub-folders, optionally below split folders, as torchvision's ImageFolder reads it."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping
from itertools import groupby
from pathlib import Path

import xxhash

from mlpdata import image, labels, splits
from mlpdata.errors import Error
from mlpdata.sources import folder_layout, keys
from mlpdata.sources.base import Broken, ClassFilter, Sample, Source, TooSmall, Unit, most_samples
from mlpdata.sources.files import JPEG_SUFFIXES, is_folder, looks_like_image, read_file, stamp, tree
from mlpdata.sources.folder_files import FileRange, FolderListing, cut, list_folder, sample_keys
from mlpdata.sources.folder_layout import LabelledFolder
from mlpdata.sources.keys import shown
from mlpdata.system.files import resolved
from mlpdata.system.format import plural

UNITS = 256  # a folder is cut into about so many units, within bounds
LEAST_IMAGES = 1_000  # in a unit
SAMPLED = 16  # files of a folder that are opened where no name ends as an image's does


class Folder(Source):
    """Class sub-folders of images, which may lie in folders of their own there.

    `folder_layout` tells splits from classes. Every file of a class is a sample whatever its name: the content decides
    whether it is an image. Links are followed. What is left out is listed, and named in `warnings`.

    No file is touched while listing, and no name is kept: a unit is a range of a class's paths, listed again by the
    worker. class_filter: see ClassFilter; but for `classes` it applies where there are no split folders.
    res: pixels a side of what is made of it; bounds how many images are one unit.
    labelled: split folder -> {file name: class}, for those whose files lie in them without class folders.
    only: names of the splits that are wanted, () for all; classes and their labels are those of all splits.
    Raises Error where there is nothing to convert, and where a layout can be read in two ways.
    """

    def __init__(
        self,
        path: Path,
        class_filter: ClassFilter = ClassFilter(),  # noqa: B008 - it is frozen
        res: int = 64,
        labelled: Mapping[str, Mapping[str, str]] | None = None,
        only: Iterable[str] = (),
    ):
        self.path, self._res = Path(path), res
        self.files = [str(path)]
        self.release = f"folder {keys.text(resolved(self.path).name)}"
        if not self.path.is_dir():
            is_there = self.path.exists()
            raise Error(f"{path} is a file, not a folder of classes" if is_there else f"no folder at {path}")
        self._layout = folder_layout.find(self.path, labelled or {})
        if self._layout.has_splits:
            class_filter = class_filter.only_classes(f"{path} has split folders of its own")
        self.class_filter = class_filter
        all_splits = self._layout.splits
        self._wanted = {split for name in only if (split := splits.find(name, all_splits))} or set(all_splits)
        self._flat = [(s, f) for s, folders in self._layout.labelled.items() if s in self._wanted for f in folders]
        self._class_of = {folder.below: folder.class_of for _, folder in self._flat}  # of files without class folders
        self._cached: tuple[str, FolderListing, list[str]] | None = None
        self._num_jpegs = self._num_files = 0
        self._settle_classes(*self._list_classes())
        self.codec = "jpg" if self._num_jpegs > self._num_files / 2 else "png"
        self.drops_empty_classes = class_filter.min_class_size > 0
        if class_filter.val_per_class:
            self.splits = ("train", "val")
        self.warnings = tuple(self._layout.warnings)

    def __getstate__(self):
        return {**self.__dict__, "_layout": None, "_flat": [], "_ranges": [], "_cached": None}

    # --------------------------------------------------------------------------------------------------- listing

    def _list_classes(self) -> tuple[list[str], list[tuple[FileRange, int]]]:
        """(classes with images in any split, [(files, number of images) of each class folder of a wanted split])."""
        ranges: list[tuple[FileRange, int]] = []
        raw_names: dict[str, str] = {}
        filled: set[str] = set()
        for split, folders in self._layout.classes.items():
            for below in folders:
                raw = below.rpartition("/")[2]
                name = keys.text(raw)
                if raw_names.setdefault(name, raw) != raw:
                    raise Error(f"{self.path}: two class folders would both be called {shown(name)}; rename one")
                if split in self._wanted:
                    listing = self._count(self._list(below))
                    self._refuse_splits_below(below, listing)
                    num_images = sum(map(looks_like_image, listing.names)) or self._num_without_suffix(below, listing)
                    ranges.append((FileRange.whole(split, below, name, listing), num_images))
                else:
                    entries = (entry for _, entries in tree(str(self.path / below)) for entry in entries)
                    num_images = int(any(looks_like_image(e.name) for e in entries if not is_folder(e)))
                if num_images:
                    filled.add(name)
        empty = [name for name in raw_names if name not in filled]
        self._layout.leave_out(empty, "without images, so no class")
        return sorted(filled), [(files, n) for files, n in ranges if files.class_name in filled]

    def _settle_classes(self, names: list[str], ranges: list[tuple[FileRange, int]]) -> None:
        """Choose the classes, and the files that are read."""
        known = names or sorted({name for class_of in self._class_of.values() for name in class_of.values()})
        if not known:
            raise Error(f"{self.path} has class folders, but no images in them")
        chosen = self.class_filter.choose(known, self.path)
        self.classes = [(name, labels.readable(name)) for name in chosen]
        self._labels = {name: i for i, name in enumerate(chosen)}
        ranges = [(files, n) for files, n in ranges if files.class_name in self._labels and files.stop]
        self._ranges = [files for files, n in ranges if self.class_filter.takes(files.class_name, n)]
        too_small = {files.class_name: n for files, n in ranges if n < self.class_filter.min_class_size}
        if too_small and not self._ranges:
            raise self.class_filter.none_left(too_small)
        self._too_small = tuple(TooSmall(name, n) for name, n in too_small.items())
        for split, folder in self._flat:
            listing = self._count(self._list(folder.below))
            self._warn_of_missing(folder, listing)
            self._ranges.append(FileRange.whole(split, folder.below, "", listing))
        filled: dict[str, set[str]] = {split: set() for split in self._wanted}
        for files in self._ranges:
            if files.stop:
                filled[files.split].add(files.class_name)
        for split in self._wanted:
            if not filled[split]:
                raise Error(f"split {split!r} of {self.path} has no images")
            if split != "train" and "train" in filled:
                lacking = sorted(filled[split] - filled["train"] - {""})
                self._layout.warn(f"classes of {split} that train lacks", lacking)
        if len(self.classes) == 1 and self.class_filter.classes is None:
            self._refuse_a_level_too_many()
            self._layout.warnings.append(
                f"{shown(self.path)} has one class only: {shown(chosen[0])}; is it the folder of classes?"
            )
        self._refuse_equal_keys()

    def _list(self, below: str) -> FolderListing:
        """What lies in a folder; of files with labels, those of classes that are taken."""
        class_of = self._class_of.get(below, {})
        return list_folder(self.path, below, lambda path: not (name := class_of.get(path)) or name in self._labels)

    def _count(self, listing: FolderListing) -> FolderListing:
        self._num_files += len(listing.names)
        self._num_jpegs += sum(name.lower().endswith(JPEG_SUFFIXES) for name in listing.names)
        return listing

    def _num_without_suffix(self, below: str, listing: FolderListing) -> int:
        """The images in a folder whose names say nothing: all files if one of the first is an image, else 0."""
        for name in listing.names[:SAMPLED]:
            data = "" if name in listing.reasons else read_file(f"{self.path}/{below}/{name}")
            if isinstance(data, bytes) and image.format_of(data):
                return len(listing.names)
        return 0

    def _refuse_splits_below(self, below: str, listing: FolderListing) -> None:
        inside = [folder for folder in listing.folders if splits.of_folder(folder)]
        if len({splits.of_folder(folder) for folder in inside}) > 1:
            raise Error(
                f"{self.path / below} has {' and '.join(inside)} in it, which are names of splits; expected "
                f"{self.path}/train/CLASS/IMAGE.jpg; where it is no class but holds the splits it has to be --source"
            )

    def _refuse_a_level_too_many(self) -> None:
        """Raise Error where the only class folder holds nothing but folders: those may be the classes."""
        for files in self._ranges:
            listing = self._list(files.below)
            inside = listing.folders
            if all("/" in name for name in listing.names) and (len(inside) > 1 or any(map(splits.of_folder, inside))):
                raise Error(
                    f"{self.path / files.below} would be the only class, and holds no image but the folders "
                    f"{', '.join(map(shown, inside[:5]))}; if these are the classes, or splits, it has to be --source"
                )

    def _warn_of_missing(self, labelled: LabelledFolder, listing: FolderListing) -> None:
        """Of files with labels: warn of those that are not there, and of those whose class is not."""
        names, class_of = set(listing.names), labelled.class_of
        other = [file for file, name in class_of.items() if name not in self._labels]
        missing = sum(file not in names and name in self._labels for file, name in class_of.items())
        folder, warnings = shown(self.path / labelled.below), self._layout.warnings
        if missing:
            warnings.append(f"{folder} lacks {missing:,} of the {plural(len(class_of), 'file')} with labels")
        if other and self.class_filter.classes is None:
            classes = {class_of[file] for file in other}
            warnings.append(
                f"{folder}: {plural(len(other), 'file')} left out, as there is no folder of their "
                f"{plural(len(classes), 'class')}: {min(classes)}"
            )

    def _refuse_equal_keys(self) -> None:
        """Two folders of one class in one split are put together. Raises Error where two files would share a key."""
        folders = defaultdict(list)
        for files in self._ranges:
            folders[files.split, files.class_name].append(files)
        for same in folders.values():
            taken: dict[str, str] = {}
            for files in same if len(same) > 1 else ():
                names = self._list(files.below).names
                for key, name in zip(sample_keys(files, names), names, strict=True):
                    path = f"{files.below}/{name}"
                    if (other := taken.setdefault(key, path)) != path:
                        raise Error(
                            f"{self.path}: {shown(other)} and {shown(path)} are of one split and one name; rename one, "
                            "or leave one of the folders out"
                        )

    def units(self) -> list[Unit]:
        total = sum(files.stop for files in self._ranges)
        most = min(most_samples(self._res), max(LEAST_IMAGES, total // UNITS))
        units: list[Unit] = []
        for split, of_split in groupby(self._ranges, lambda files: files.split):
            for group in cut(of_split, most):
                num_files = sum(files.stop - files.start for files in group)
                units.append(Unit(f"{split}-{len(units):08d}", split, num_files, 0, tuple(group), exact=True))
        for split in dict.fromkeys(files.split for files in self._ranges):
            of_split = {split, ""} if split == units[0].split else {split}
            left_out = tuple(broken for broken in self._layout.left_out if broken.split in of_split) + self._too_small
            if left_out:
                units.append(Unit(f"{split}-left-out", split, 0, 0, left_out))
        return units

    def stamps(self, without: str = "") -> dict[str, str]:
        """See Source.stamps: one for all names, sizes and times of change in the folders that are read."""
        content, whole = xxhash.xxh3_128(), xxhash.xxh3_128()
        for below in dict.fromkeys(files.below for files in self._ranges):
            of_folder = stamp(f"{self.path}/{below}", without)
            content.update(f"{below}\0{of_folder.partition(' ')[0]}\0".encode("utf-8", "surrogateescape"))
            whole.update(f"{below}\0{of_folder}\0".encode("utf-8", "surrogateescape"))
        return {str(self.path): f"{content.hexdigest()} {whole.hexdigest()}"}

    # --------------------------------------------------------------------------------------------------- reading

    def samples(self, unit: Unit) -> Iterator[Sample | Broken | TooSmall]:
        for item in unit.content:
            if isinstance(item, FileRange):
                yield from self._samples_of(item)
            else:
                yield item

    def _samples_of(self, files: FileRange) -> Iterator[Sample | Broken]:
        listing, its_keys = self._list_again(files)
        names, folder = listing.names, keys.text(files.below)
        if files.start == 0:
            for name in listing.system:
                yield Broken(f"{folder}/{keys.text(name)}", folder_layout.SYSTEM, is_data=False)
        split_of: dict[str, str] = {}
        if self.class_filter.val_per_class:  # names decide: the split has to be known before the files are read
            split_of = self.class_filter.split_of(files.class_name, [name for name in names if looks_like_image(name)])
        label, class_of = self._labels.get(files.class_name), self._class_of.get(files.below, {})
        of_range = slice(files.start, files.stop)
        for name, key in zip(names[of_range], its_keys[of_range], strict=True):
            origin, split = f"{folder}/{keys.text(name)}", split_of.get(name, "")
            if not files.class_name:
                label = self._labels.get(class_of.get(name, ""))
            if label is None:
                yield Broken(origin, "no class is given for it")
                continue
            data = listing.reasons.get(name) or read_file(f"{self.path}/{files.below}/{name}")
            yield Broken(origin, data, split) if isinstance(data, str) else Sample(key, data, label, origin, split)

    def _list_again(self, files: FileRange) -> tuple[FolderListing, list[str]]:
        """(listing, keys of its names) of a folder; kept for the next range, which mostly is of the same folder."""
        if self._cached is None or self._cached[0] != files.below:
            listing = self._list(files.below)
            if listing.digest != files.digest:
                raise Error(
                    f"{self.path / files.below} changed while it was converted: files were added, removed or renamed; "
                    "convert again into another --out"
                )
            self._cached = (files.below, listing, sample_keys(files, listing.names))
        return self._cached[1:]
