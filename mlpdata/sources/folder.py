"""A folder of class sub-folders, optionally below split folders, as torchvision's ImageFolder reads it."""

from __future__ import annotations

import os
from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path

import xxhash

from mlpdata import image, labels, splits
from mlpdata.errors import Error
from mlpdata.sources import (
    Broken,
    ClassFilter,
    Sample,
    Source,
    TooSmall,
    Unit,
    files,
    folder_layout,
    keys,
    most_samples,
)
from mlpdata.sources.files import is_folder, is_system, looks_like_image
from mlpdata.sources.keys import shown

JPEG_SUFFIXES = (".jpg", ".jpeg", ".jpe", ".jfif")
UNITS = 256  # a folder is cut into about so many units, within bounds
LEAST_IMAGES = 1_000  # in a unit
SAMPLED = 16  # files of a folder that are looked into where no name is an image's


@dataclass(frozen=True, slots=True)
class FileRange:
    """Files `start` to `stop`, in the order of their paths, of one class folder and all below it."""

    split: str
    below: str  # the folder, relative to the root
    class_name: str  # "" where the class of each file is known by its name
    start: int
    stop: int
    digest: int  # of all paths in the folder: who reads them lists them again


@dataclass(frozen=True, slots=True)
class FolderListing:
    """What lies in a class folder and below it."""

    names: list[str]  # paths of what is to become samples, sorted
    reasons: dict[str, str]  # why some of them cannot be read
    system: list[str]  # paths of what a system or a tool left there

    @property
    def digest(self) -> int:
        return xxhash.xxh3_64_intdigest("\0".join((*self.names, *self.reasons)).encode("utf-8", "surrogateescape"))


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
        self.path, self.class_filter, self._res = Path(path), class_filter, res
        self.files = [str(path)]
        self.release = f"folder {keys.text(self.path.resolve().name)}"
        if not self.path.is_dir():
            raise Error(
                f"no folder at {path}" if not self.path.exists() else f"{path} is a file, not a folder of classes"
            )
        self._layout = folder_layout.find(self.path, labelled or {})
        if self._layout.has_splits:
            self.class_filter = class_filter = class_filter.beside_splits()
        if (class_filter.min_class_size or class_filter.val_per_class) and self._layout.has_splits:
            raise Error(f"{path} has split folders of its own; of the class filters it takes only --classes")
        found = self._layout.splits
        self._wanted = {splits.find(name, found) for name in only} - {None} or set(found)
        wanted = [folder for split in self._wanted for folder in self._layout.labelled.get(split, ())]
        self._class_of = {folder.below: folder.class_of for folder in wanted}  # of files without class folders
        self._cached: tuple[str, FolderListing, list[str]] | None = None
        self._num_jpegs = self._num_files = 0
        self._take_pieces(*self._list_classes())
        self.codec = "jpg" if self._num_jpegs > self._num_files / 2 else "png"
        self.drops_empty_classes = class_filter.min_class_size > 0
        if class_filter.val_per_class:
            self.splits = ("train", "val")
        self.warnings = tuple(self._layout.warnings)

    def __getstate__(self):
        return {**self.__dict__, "_layout": None, "_pieces": [], "_cached": None}

    # --------------------------------------------------------------------------------------------------- listing

    def _list_classes(self) -> tuple[list[str], list[tuple[FileRange, int]]]:
        """(classes with images in any split, a piece and its number of images for each folder of a wanted split)."""
        pieces: list[tuple[FileRange, int]] = []
        raw_names: dict[str, str] = {}
        filled: set[str] = set()
        for split, folders in self._layout.classes.items():
            for below in folders:
                raw = below.rpartition("/")[2]
                name = keys.text(raw)
                if raw_names.setdefault(name, raw) != raw:
                    raise Error(f"{self.path}: two class folders would both be called {shown(name)}; rename one")
                if split not in self._wanted:
                    entries = (e for _, found in files.tree(str(self.path / below)) for e in found)
                    num_images = int(any(looks_like_image(e.name) for e in entries if not is_folder(e)))
                else:
                    listing = self._listing(below)
                    self._refuse_splits_below(below, listing)
                    num_images = sum(map(looks_like_image, listing.names)) or self._num_without_suffix(below, listing)
                    self._count(listing)
                    pieces.append((FileRange(split, below, name, 0, len(listing.names), listing.digest), num_images))
                if num_images:
                    filled.add(name)
        empty = [name for name in raw_names if name not in filled]
        self._layout.leave_out(empty, "without images, so no class")
        return sorted(filled), [(piece, n) for piece, n in pieces if piece.class_name in filled]

    def _take_pieces(self, names: list[str], pieces: list[tuple[FileRange, int]]) -> None:
        """Settle the classes, and which folders are read."""
        asked = self.class_filter.classes
        known = set(names) or {name for class_of in self._class_of.values() for name in class_of.values()}
        if not known:
            raise Error(f"{self.path} has class folders, but no images in them")
        if missing := [name for name in asked or () if name not in known]:
            raise Error(f"{self.path} lacks {len(missing)} of the classes asked for: {shown(missing[0])}, ...")
        self.classes = [(name, labels.readable(name)) for name in asked or sorted(known)]
        self._labels = {name: i for i, (name, _) in enumerate(self.classes)}
        pieces = [(piece, n) for piece, n in pieces if piece.class_name in self._labels and piece.stop]
        self._pieces = [piece for piece, n in pieces if self.class_filter.takes(piece.class_name, n)]
        self._too_small = tuple(TooSmall(p.class_name, n) for p, n in pieces if n < self.class_filter.min_class_size)
        if self._too_small and not self._pieces:
            raise self.class_filter.none_left({small.class_name: small.num_images for small in self._too_small})
        for split in self._layout.labelled:
            for folder in self._layout.labelled[split] if split in self._wanted else ():
                listing = self._listing(folder.below)
                self._say_what_is_missing(folder, listing)
                self._count(listing)
                self._pieces.append(FileRange(split, folder.below, "", 0, len(listing.names), listing.digest))
        there = {split: {p.class_name for p in self._pieces if p.split == split and p.stop} for split in self._wanted}
        for split in self._wanted:
            if not there[split]:
                raise Error(f"split {split!r} of {self.path} has no images")
            if split != "train" and "train" in there:
                self._layout.warn(f"classes of {split} that train lacks", sorted(there[split] - there["train"] - {""}))
        if len(self.classes) == 1 and asked is None:
            self._refuse_a_level_too_many()
            name = shown(self.classes[0][0])
            self._layout.warnings.append(f"{shown(self.path)} has one class only: {name}; is it the folder of classes?")
        self._refuse_equal_keys()

    def _listing(self, below: str) -> FolderListing:
        """What lies in a folder, without touching any file; of files with labels, those of classes that are taken."""
        found = FolderListing([], {}, [])
        class_of = self._class_of.get(below)
        known = (*folder_layout.KNOWN_FILES, f"{below.rpartition('/')[2]}_boxes.txt")  # of TinyImageNet
        for inside, entries in files.tree(str(self.path / below)):
            for entry in entries:
                path = f"{inside}/{entry.name}" if inside else entry.name
                if is_folder(entry) and not is_system(entry.name + "/"):
                    continue
                if is_folder(entry) or is_system(entry.name):
                    found.system.append(path)
                elif not (entry.name in known and not inside) and self._takes(class_of, path):
                    found.names.append(path)
                    if reason := files.why_no_file(entry):
                        found.reasons[path] = reason
        found.names.sort()
        return found

    def _takes(self, class_of: Mapping[str, str] | None, path: str) -> bool:
        name = class_of and class_of.get(path)
        return not name or name in self._labels

    def _count(self, listing: FolderListing) -> None:
        self._num_files += len(listing.names)
        self._num_jpegs += sum(name.lower().endswith(JPEG_SUFFIXES) for name in listing.names)

    def _num_without_suffix(self, below: str, listing: FolderListing) -> int:
        """How many images a folder may have where no name is an image's: all or none, by the first few."""
        for name in listing.names[:SAMPLED]:
            data = "" if name in listing.reasons else files.read_file(f"{self.path}/{below}/{name}")
            if isinstance(data, bytes) and image.format_of(data):
                return len(listing.names)
        return 0

    def _refuse_splits_below(self, below: str, listing: FolderListing) -> None:
        inside = [head for head in _heads(listing) if splits.of_folder(head)]
        if len({splits.of_folder(head) for head in inside}) > 1:
            raise Error(
                f"{self.path / below} has {' and '.join(inside)} in it, which are names of splits; expected "
                f"{self.path}/train/CLASS/IMAGE.jpg; where it is no class but holds the splits it has to be --source"
            )

    def _refuse_a_level_too_many(self) -> None:
        """Raise Error where the only class is but a folder around what may be the classes."""
        for piece in self._pieces:
            listing = self._listing(piece.below)
            heads = _heads(listing)
            if all("/" in name for name in listing.names) and (len(heads) > 1 or any(map(splits.of_folder, heads))):
                raise Error(
                    f"{self.path / piece.below} would be the only class, and holds no image but the folders "
                    f"{', '.join(map(shown, heads[:5]))}; if these are the classes, or splits, it has to be --source"
                )

    def _say_what_is_missing(self, labelled: folder_layout.LabelledFolder, listing: FolderListing) -> None:
        """Of files with labels: those that are not there, and those whose class is not."""
        there, class_of = set(listing.names), labelled.class_of
        other = [file for file, name in class_of.items() if name not in self._labels]
        missing = sum(file not in there and name in self._labels for file, name in class_of.items())
        folder = shown(self.path / labelled.below)
        if missing:
            self._layout.warnings.append(f"{folder} lacks {missing:,} of the {len(class_of):,} files with labels")
        if other and self.class_filter.classes is None:
            names = {class_of[file] for file in other}
            self._layout.warnings.append(
                f"{folder}: {len(other):,} files left out, as their {len(names):,} classes have no folder: {min(names)}"
            )

    def _refuse_equal_keys(self) -> None:
        """Two folders of one class in one split are added up, unless a file of one would take another's place."""
        folders = defaultdict(list)
        for piece in self._pieces:
            folders[piece.split, piece.class_name].append(piece)
        for pieces in folders.values():
            taken: dict[str, str] = {}
            for piece in pieces if len(pieces) > 1 else ():
                listing = self._listing(piece.below)
                for key, name in zip(_keys(piece, listing.names), listing.names, strict=True):
                    path = f"{piece.below}/{name}"
                    if (other := taken.setdefault(key, path)) != path:
                        raise Error(
                            f"{self.path}: {shown(other)} and {shown(path)} are of one split and one name; rename one, "
                            "or leave one of the folders out"
                        )

    def units(self) -> list[Unit]:
        total = sum(p.stop for p in self._pieces)
        most = min(most_samples(self._res), max(LEAST_IMAGES, total // UNITS))
        units: list[Unit] = []
        group: list[FileRange] = []
        count = 0

        def close():
            nonlocal group, count
            if group:
                split = group[0].split
                units.append(Unit(f"{split}-{len(units):08d}", split, count, 0, tuple(group), exact=True))
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
        for split in dict.fromkeys(piece.split for piece in self._pieces):
            here = {split, ""} if split == units[0].split else {split}
            left_out = tuple(broken for broken in self._layout.left_out if broken.split in here) + self._too_small
            if left_out:
                units.append(Unit(f"{split}-left-out", split, 0, 0, left_out))
        return units

    def stamps(self, without: str = "") -> dict[str, str]:
        """See Source.stamps: one for all names, sizes and times of change in the folders that are read."""
        content, whole = xxhash.xxh3_128(), xxhash.xxh3_128()
        for below in dict.fromkeys(piece.below for piece in self._pieces):
            told = files.stamp(f"{self.path}/{below}", without)
            content.update(f"{below}\0{told.partition(' ')[0]}\0".encode("utf-8", "surrogateescape"))
            whole.update(f"{below}\0{told}\0".encode("utf-8", "surrogateescape"))
        return {str(self.path): f"{content.hexdigest()} {whole.hexdigest()}"}

    # --------------------------------------------------------------------------------------------------- reading

    def samples(self, unit: Unit) -> Iterator[Sample | Broken | TooSmall]:
        for piece in unit.at:
            if isinstance(piece, FileRange):
                yield from self._piece_samples(piece)
            else:
                yield piece

    def _piece_samples(self, piece: FileRange) -> Iterator[Sample | Broken]:
        listing, keys_ = self._listed(piece)
        names, reasons, folder = listing.names, listing.reasons, keys.text(piece.below)
        if piece.start == 0:
            for name in listing.system:
                yield Broken(f"{folder}/{keys.text(name)}", folder_layout.SYSTEM, is_data=False)
        splits_of = self._splits_of(piece, names) if self.class_filter.val_per_class else {}
        label, class_of = self._labels.get(piece.class_name), self._class_of.get(piece.below, {})
        for name, key in zip(names[piece.start : piece.stop], keys_[piece.start : piece.stop], strict=True):
            origin, split = f"{folder}/{keys.text(name)}", splits_of.get(name, "")
            if not piece.class_name and (label := self._labels.get(class_of.get(name))) is None:
                yield Broken(origin, "no class is given for it")
                continue
            data = reasons.get(name) or files.read_file(f"{self.path}/{piece.below}/{name}")
            yield Broken(origin, data, split) if isinstance(data, str) else Sample(key, data, label, origin, split)

    def _splits_of(self, piece: FileRange, names: list[str]) -> dict[str, str]:
        """What is held out of a class. Names decide, for it has to be known before the files are read."""
        return self.class_filter.split_of(piece.class_name, [name for name in names if looks_like_image(name)])

    def _listed(self, piece: FileRange) -> tuple[FolderListing, list[str]]:
        """(what lies in a folder, the keys of its names); the last one is kept for its next piece."""
        if self._cached is None or self._cached[0] != piece.below:
            listing = self._listing(piece.below)
            if listing.digest != piece.digest:
                raise Error(
                    f"{self.path / piece.below} changed while it was converted: files were added, removed or renamed; "
                    "convert again into another --out"
                )
            self._cached = (piece.below, listing, _keys(piece, listing.names))
        return self._cached[1:]


def _keys(piece: FileRange, names: list[str]) -> list[str]:
    """A key for each path in a class folder, in their order; no two are equal, nor are those of two classes."""
    start = f"{keys.part(piece.below.rpartition('/')[2])}/" if piece.class_name else ""
    found = []
    for name in names:
        folders, slash, file = name.rpartition("/")
        stem = keys.part(os.path.splitext(file)[0])
        found.append(f"{start}{'/'.join(map(keys.part, folders.split('/')))}/{stem}" if slash else f"{start}{stem}")
    return keys.distinct(found)


def _heads(listing: FolderListing) -> list[str]:
    """The folders that lie in a class folder."""
    return list(dict.fromkeys(name.partition("/")[0] for name in listing.names if "/" in name))
