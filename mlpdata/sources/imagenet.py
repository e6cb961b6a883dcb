"""ImageNet's archives: tars of class tars, tars of class folders, plain or gzip, read at offsets and never extracted.

`fall11_whole.tar` and `ILSVRC2012_img_train.tar` hold `<wnid>.tar`, `winter21_whole.tar.gz` holds
`winter21_whole/<wnid>.tar`, `imagenet21k_resized.tar.gz` holds `imagenet21k_resized/<part>/<wnid>/*.JPEG`. A directory
of `<wnid>.tar` files is read the same way. In all of them, a class is an extent of a file that is a piece of a tar.
"""

from __future__ import annotations

import os
import posixpath
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path

from mlpdata import labels
from mlpdata import splits as split_names
from mlpdata.archive.blob import Blob, open_blob
from mlpdata.archive.gzip import GzipFile
from mlpdata.archive.tarscan import ReadAt
from mlpdata.errors import Error
from mlpdata.sources import keys
from mlpdata.sources.base import Broken, ClassFilter, Sample, Source, TooSmall, Unit, most_samples
from mlpdata.sources.devkit import DEVKIT, val_labels
from mlpdata.sources.imagenet_class import ClassFile, class_text, list_files, settle
from mlpdata.sources.imagenet_listing import ArchiveListing, ClassExtent
from mlpdata.sources.imagenet_release import recognise
from mlpdata.sources.imagenet_scan import list_archive, list_directory
from mlpdata.system.format import plural

UNITS = 256  # an archive is cut into about so many units, within the bounds below
UNIT_BYTES = (16 << 20, 2 << 30)  # least and most to read for one unit
LEAST_SAMPLES = 500  # in one unit
HOLD_BYTES = 128 << 20  # a class of a gzip stream of at most this size is decompressed once, not twice


@dataclass(frozen=True, slots=True)
class Share:
    """A part of one class: images from `share / shares` of it on, in the archive's order."""

    group: int  # the whole class (class filters decide over all of it): position in the source's groups
    share: int = 0
    shares: int = 1

    def of(self, n: int) -> tuple[int, int]:
        """Where the share begins and ends among n images.

        >>> Share(0, 1, 3).of(10)
        (3, 6)
        """
        return n * self.share // self.shares, n * (self.share + 1) // self.shares


class ImageNetTars(Source):
    """An archive of classes, or a directory of class tars.

    path:         a string is a URL, read in place.
    class_filter: see ClassFilter; it counts the images that the archive lists, readable or not.
    res:          pixels a side of the output; bounds how many images a unit has.
    cache:        folder that keeps the listing of gzip streams between runs; None: nowhere.
    Raises Error for a file that is no such archive or holds no class at all, and for one that is cut short unless the
    filter names the classes to take and all of them are there.
    """

    codec = "jpg"

    def __init__(
        self,
        path: Path | str,
        class_filter: ClassFilter = ClassFilter(),  # noqa: B008 - it is frozen
        res: int = 64,
        cache: Path | None = None,
    ):
        self.path, self.class_filter, self._res = path, class_filter, res
        self._blobs: list[Blob]
        if isinstance(path, Path) and os.path.isdir(path):
            plain_files, listing = list_directory(path)
            self._blobs = [*plain_files]
        else:
            self._blobs = [open_blob(path)]
            listing = list_archive(self._blobs[0], cache)
        self.files = [str(path)]
        self._left_out = [Broken(keys.line(name), why, is_data=is_data) for name, why, is_data in listing.left_out]
        self._label_val_images(listing)
        self._leave_out_empty(listing)
        if not listing.extents:
            damage = f" ({listing.left_out[0][1]})" if listing.left_out else ""
            raise Error(f"{self.path} holds neither <class>.tar nor <class>/ folders of images{damage}")
        all_classes = self._take_classes(listing)
        self._group_extents(listing)
        self.release = recognise(all_classes, listing.parents, listing.extents[0].inner)
        self.warnings = tuple(listing.warnings)
        blob = self._blobs[0]
        if isinstance(blob, GzipFile) and blob.damage:
            self.warnings += (f"{self.path}: {blob.damage}",)
        self._last_group: tuple[int, list[ClassFile], TooSmall | None] | None = None

    def __getstate__(self):
        return {**self.__dict__, "_left_out": [], "_last_group": None}

    def _label_val_images(self, listing: ArchiveListing) -> None:
        """Give the val images of ImageNet-1k their classes, from the list beside the archive.

        They lie in no class folders and their names say no class.
        """
        if all(extent.class_name for extent in listing.extents):
            return
        if not isinstance(self.path, Path):
            raise Error(f"{self.path} has val images without class folders: download it, and {DEVKIT} beside it")
        wnids, known = val_labels(self.path.parent, self.path), []
        for extent in listing.extents:
            if extent.class_name:
                known.append(extent)
            elif extent.file in wnids:
                known.append(replace(extent, class_name=wnids[extent.file]))
            else:
                self._left_out.append(Broken(extent.file, "has no label", extent.split))
        listing.extents = known

    def _leave_out_empty(self, listing: ArchiveListing) -> None:
        """List class tars that hold nothing; a class of nothing else is none, as an empty folder is none."""
        empty = [extent for extent in listing.extents if extent.inner and not extent.num_items]
        listing.extents = [extent for extent in listing.extents if not (extent.inner and not extent.num_items)]
        filled = {extent.class_name for extent in listing.extents}
        self._no_classes = dict.fromkeys(class_text(e.class_name) for e in empty if e.class_name not in filled)
        for extent in empty:
            name = class_text(extent.class_name)
            no_class = ", so no class" if name in self._no_classes else ""
            self._left_out.append(
                Broken(f"{name}.tar", f"is a class tar without images{no_class}", extent.split, is_data=False)
            )
        if self._no_classes:
            they_are = "it is" if len(self._no_classes) == 1 else "they are"
            names = keys.listed(list(self._no_classes))
            listing.warnings.append(f"{self.path}: left out, as {they_are} without images, so no class: {names}")
        if empty and not filled:
            raise Error(f"{self.path} has class tars, but no images in them")

    def _take_classes(self, listing: ArchiveListing) -> list[str]:
        """Set `classes` to those that the filter names. Returns all classes of the archive. Raises Error."""
        in_archive = sorted({extent.class_name for extent in listing.extents})
        archive_name = dict(zip(keys.distinct(map(class_text, in_archive)), in_archive, strict=True))
        wanted = self.class_filter.classes
        if wanted is not None:
            missing = [name for name in wanted if name not in archive_name]
            if missing:
                cut = f" (it is cut short: {listing.cut})" if listing.cut else ""
                count = f"{len(missing)} of the {plural(len(wanted), 'class')} asked for"
                empty = ", which has no images" if missing[0] in self._no_classes else ""
                raise Error(f"{self.path} lacks {count}: {missing[0]}{empty}{cut}")
        elif listing.cut:
            raise Error(
                f"{self.path} is cut short: {listing.cut}; get the rest of it, or take what is there by naming the "
                "classes with --classes FILE"
            )
        names = list(wanted) if wanted is not None else sorted(archive_name)
        self.classes = [(name, labels.readable(name)) for name in names]
        self._labels = {archive_name[name]: i for i, name in enumerate(names)}
        return sorted(archive_name)

    def _group_extents(self, listing: ArchiveListing) -> None:
        """Group the extents of each split and class, without the classes that are too small. Raises Error."""
        splits = {extent.split for extent in listing.extents}
        if has_splits := splits != {""}:
            self.class_filter = self.class_filter.beside_splits()
        if has_splits and self.class_filter.val_per_class:
            raise Error(f"{self.path} has train and val of its own; --val-per-class is for archives without")
        taken = [extent for extent in listing.extents if extent.class_name in self._labels]
        size_of: Counter[str] = Counter()
        for extent in taken:
            size_of[extent.class_name] += extent.num_images
        # Small classes go now where their images are counted; elsewhere the reader of the class finds out.
        counted = {e.class_name: size_of[e.class_name] for e in taken if e.num_items >= 0}
        small = {name for name, n in counted.items() if not self.class_filter.takes(class_text(name), n)}
        groups: dict[tuple[bool, str, str], list[ClassExtent]] = {}
        for extent in taken:
            if extent.class_name not in small:
                groups.setdefault((extent.split != "train", extent.split, extent.class_name), []).append(extent)
        # One split after the other; within a split in the order of the archive.
        self._groups = [tuple(groups[key]) for key in sorted(groups, key=lambda key: key[:2])]
        if not self._groups:
            raise self.class_filter.none_left({class_text(name): n for name, n in counted.items()})
        self.splits = tuple(sorted({split or "train" for split in splits}))
        if self.class_filter.val_per_class:
            self.splits = ("train", "val")
        self.drops_empty_classes = self.class_filter.min_class_size > 0

    # ----------------------------------------------------------------------------------------------------- units

    def units(self) -> list[Unit]:
        """Units of whole classes; a class that is too large for one unit is cut into shares."""
        num_bytes = sum(extent.end - extent.start for group in self._groups for extent in group)
        num_images = sum(extent.num_images for group in self._groups for extent in group)
        most_images = min(most_samples(self._res), max(num_images // UNITS, LEAST_SAMPLES))
        most_bytes = min(UNIT_BYTES[1], max(num_bytes // UNITS, UNIT_BYTES[0]))
        # A class of several splits may turn out too small although every extent of it is counted.
        keeps_all = not self.class_filter.min_class_size or len({group[0].split for group in self._groups}) == 1
        units: list[Unit] = []
        shares: list[Share] = []
        images = size = 0
        is_exact, split = True, ""

        def close():
            nonlocal shares, images, size, is_exact
            if shares:
                own = (split or "train",) if split or not self.class_filter.val_per_class else ()
                name = f"unit-{len(units):06d}"
                units.append(Unit(name, split or self.splits[0], images, size, tuple(shares), is_exact, own))
            shares, images, size, is_exact = [], 0, 0, True

        # Samples of a unit are of one split, so that a split that is not asked for is not read.
        for number, group in enumerate(self._groups):
            class_bytes = sum(extent.end - extent.start for extent in group)
            is_counted = keeps_all and all(extent.num_items >= 0 for extent in group)
            class_images = sum(extent.num_items if is_counted else extent.num_images for extent in group)
            if group[0].split != split or images + class_images > most_images or size + class_bytes > most_bytes:
                close()
            split = group[0].split
            n = max(1, round(class_images / most_images), round(class_bytes / most_bytes))
            for k in range(n):
                share = Share(number, k, n)
                shares.append(share)
                first, stop = share.of(class_images)
                images, size, is_exact = images + stop - first, size + class_bytes // n, is_exact and is_counted
                if n > 1:
                    close()
        close()
        if self._left_out:
            units.append(Unit("unit-damage", self.splits[0], 0, 0, tuple(self._left_out)))
        return units

    # --------------------------------------------------------------------------------------------------- samples

    def samples(self, unit: Unit) -> Iterator[Sample | Broken | TooSmall]:
        for item, following in zip(unit.content, (*unit.content[1:], None), strict=True):
            if isinstance(item, Broken):
                yield item
                continue
            # The next class is announced before this one: a blob that keeps only its last announcement keeps this one.
            next_group = self._groups[following.group] if isinstance(following, Share) else ()
            for extent in (*next_group, *self._groups[item.group]):
                self._blobs[extent.blob].will_read(extent.start, extent.end - extent.start)
            yield from self._class_samples(item)
            if len(self._blobs) > 1:
                for extent in self._groups[item.group]:
                    self._blobs[extent.blob].close()

    def _class_samples(self, share: Share) -> Iterator[Sample | Broken | TooSmall]:
        if self._last_group is None or self._last_group[0] != share.group:
            self._last_group = None  # free its memory before the next class is read
            self._last_group = (share.group, *self._read_names(self._groups[share.group]))
        _, files, too_small = self._last_group
        if too_small is not None:
            if share.share == 0:
                yield too_small
            return
        first, stop = share.of(len(files))
        label = self._labels[self._groups[share.group][0].class_name]
        for file in files[first:stop]:
            yield file.sample(label)

    def _read_names(self, group: tuple[ClassExtent, ...]) -> tuple[list[ClassFile], TooSmall | None]:
        """All files of a class: keys and what is held out depend on all names together."""
        class_name, split = group[0].class_name, group[0].split
        name = self.classes[self._labels[class_name]][0]
        files = [file for extent in group for file in list_files(self._reader(extent), extent, name)]
        if group[0].inner:
            folders = {folder for file in files for folder in posixpath.dirname(file.path).split("/")}
            inside = {named for folder in folders if (named := split_names.of_folder(folder))}
            if len(inside) > 1:
                raise Error(
                    f"{self.path}: {name}.tar has folders of {' and '.join(sorted(inside))} in it: splits are expected "
                    "around classes, not in them; sort them so"
                )
        too_small = settle(files, class_name, name, split, self.class_filter)
        return ([], too_small) if too_small else (files, None)

    def _reader(self, extent: ClassExtent) -> ReadAt:
        blob = self._blobs[extent.blob]
        if blob.compressed and extent.end - extent.start <= HOLD_BYTES:
            # Names are read before images, and going back in a gzip stream means decompressing again.
            held = blob.read_at(extent.start, extent.end - extent.start)
            return lambda offset, size: held[offset - extent.start : offset - extent.start + size]
        return blob.read_at
