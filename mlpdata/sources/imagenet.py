"""ImageNet's archives: tars of class tars, tars of class folders, plain or gzip, read at offsets and never extracted.

`fall11_whole.tar` and `ILSVRC2012_img_train.tar` hold `<wnid>.tar`, `winter21_whole.tar.gz` holds
`winter21_whole/<wnid>.tar`, `imagenet21k_resized.tar.gz` holds `imagenet21k_resized/<part>/<wnid>/*.JPEG`. A directory
of `<wnid>.tar` files is read the same way. Either way a class is a stretch of a file that is a piece of a tar.
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
from mlpdata.archive.blob import open_blob
from mlpdata.archive.tarscan import SPECIAL, Damage, Member, ReadAt, Special
from mlpdata.errors import Error
from mlpdata.image.limits import MAX_IMAGE_BYTES
from mlpdata.sources import Broken, ClassFilter, Sample, Source, TooSmall, Unit, keys, most_samples
from mlpdata.sources.devkit import DEVKIT, val_labels
from mlpdata.sources.files import is_system, looks_like_image
from mlpdata.sources.imagenet_listing import WNID, Listing, Stretch, class_items, list_archive, list_directory

UNITS = 256  # an archive is cut into about so many units, or more: they are bounded both ways
UNIT_BYTES = (16 << 20, 2 << 30)  # read for one unit
LEAST_SAMPLES = 500  # in one unit
HOLD_BYTES = 128 << 20  # a class of a gzip stream of at most so many bytes is decompressed once, not twice


@dataclass(frozen=True, slots=True)
class Share:
    """A share of one class: what lies from `share / shares` of it on, in the archive's order."""

    group: int  # the whole class, for class filters decide over all of it: which of the source's groups
    share: int = 0
    shares: int = 1

    def of(self, n: int) -> tuple[int, int]:
        """Where the share begins and ends in n things."""
        return n * self.share // self.shares, n * (self.share + 1) // self.shares


class ImageNetTars(Source):
    """An archive of classes, or a directory of class tars.

    path: a string is a URL, read in place.
    res: pixels a side of what is made of it; bounds how many images are one unit.
    class_filter: see ClassFilter; classes are counted as listed in the archive, readable or not.
    cache: folder that keeps the listing of gzip streams between runs; None: nowhere.
    Raises Error for a file that is no such archive, holds no class at all, or is cut short, unless the filter names
    the classes to take and all of them are there.
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
        if isinstance(path, Path) and os.path.isdir(path):
            self._blobs, listing = list_directory(path)
        else:
            self._blobs = [open_blob(path)]
            listing = list_archive(self._blobs[0], cache)
        self.files = [str(path)]
        self._left_out = [
            Broken(keys.line(name), reason, is_data=is_data) for name, reason, is_data in listing.left_out
        ]
        self._label_val_images(listing)
        if not listing.stretches:
            damage = f" ({listing.left_out[0][1]})" if listing.left_out else ""
            raise Error(f"{self.path} holds neither <class>.tar nor <class>/ folders of images{damage}")
        self._take_classes(listing)
        self.release = recognise([name for name, _ in self._all], listing.parts, listing.stretches[0].inner)
        self.warnings = tuple(listing.words)
        if self._blobs[0].compressed and self._blobs[0].damage:
            self.warnings += (f"{self.path}: {self._blobs[0].damage}",)
        self._last: tuple[int, list[_File], TooSmall | None] | None = None

    def _label_val_images(self, listing: Listing) -> None:
        """ImageNet-1k's val images lie in no class folders and their names say no class: lists beside them do."""
        if all(s.class_name for s in listing.stretches):
            return
        if not isinstance(self.path, Path):
            raise Error(f"{self.path} has val images without class folders: download it, and {DEVKIT} beside it")
        wnids, known = val_labels(self.path.parent, self.path), []
        for s in listing.stretches:
            if s.class_name or s.file in wnids:
                known.append(s if s.class_name else replace(s, class_name=wnids[s.file]))
            else:
                self._left_out.append(Broken(s.file, "has no label", s.split))
        listing.stretches = known

    def _take_classes(self, listing: Listing) -> None:
        raw = sorted({s.class_name for s in listing.stretches})
        shown = keys.distinct(map(_class_text, raw))
        self._all = sorted(zip(shown, raw, strict=True))  # every class there is: (name, name in the archive)
        raw_of, wanted, size_of = dict(self._all), self.class_filter.classes, Counter()
        if wanted is not None:
            missing = [c for c in wanted if c not in raw_of]
            if missing:
                cut = f" (it is cut short: {listing.cut})" if listing.cut else ""
                raise Error(
                    f"{self.path} lacks {len(missing)} of the {len(wanted)} classes asked for: {missing[0]}{cut}"
                )
        elif listing.cut:
            raise Error(
                f"{self.path} is cut short: {listing.cut}; get the rest of it, or take what is there by naming the "
                "classes with --classes FILE"
            )
        splits = {s.split for s in listing.stretches}
        if splits - {""}:
            self.class_filter = self.class_filter.beside_splits()
        if splits - {""} and self.class_filter.val_per_class:
            raise Error(f"{self.path} has train and val of its own; --val-per-class is for archives without")
        names = list(wanted) if wanted is not None else [name for name, _ in self._all]
        self.classes = [(name, labels.readable(name)) for name in names]
        self._labels = {raw_of[name]: i for i, name in enumerate(names)}
        for s in listing.stretches:
            size_of[s.class_name] += s.num_images
        # Where images are counted already, small classes can go now; elsewhere who reads a class finds out.
        here = {s.class_name for s in listing.stretches if s.num_items >= 0 and s.class_name in self._labels}
        counted = {name: size_of[name] for name in here}
        small = {name for name, n in counted.items() if not self.class_filter.takes(_class_text(name), n)}
        groups: dict[tuple, list[Stretch]] = {}
        for s in listing.stretches:
            if s.class_name in self._labels and s.class_name not in small:
                groups.setdefault((s.split != "train", s.split, s.class_name), []).append(s)
        # Of one split after the other; each in the order of the archive.
        self._groups = [tuple(groups[key]) for key in sorted(groups, key=lambda key: key[:2])]
        if not self._groups:
            raise self.class_filter.none_left({_class_text(name): n for name, n in counted.items()})
        self.splits = tuple(sorted((splits - {""}) | ({"train"} if "" in splits else set()))) or ("train",)
        if self.class_filter.val_per_class:
            self.splits = ("train", "val")
        self.drops_empty_classes = self.class_filter.min_class_size > 0

    def __getstate__(self):
        return {**self.__dict__, "_left_out": [], "_all": [], "_last": None}

    # ----------------------------------------------------------------------------------------------------- units

    def units(self) -> list[Unit]:
        """Units of whole classes, except for those too large for one."""
        num_bytes = sum(s.end - s.start for group in self._groups for s in group)
        num_images = sum(s.num_images for group in self._groups for s in group)
        most_images = min(most_samples(self._res), max(num_images // UNITS, LEAST_SAMPLES))
        most_bytes = min(UNIT_BYTES[1], max(num_bytes // UNITS, UNIT_BYTES[0]))
        # What a worker does not find again was exchanged or damaged since; but a class may turn out too small.
        keeps_all = not self.class_filter.min_class_size or len({group[0].split for group in self._groups}) == 1
        units: list[Unit] = []
        shares: list[Share] = []
        images = size = 0
        exact, split = True, ""

        def close():
            nonlocal shares, images, size, exact
            if shares:
                own = (split or "train",) if split or not self.class_filter.val_per_class else ()
                name = f"unit-{len(units):06d}"
                units.append(Unit(name, split or self.splits[0], images, size, tuple(shares), exact, own))
            shares, images, size, exact = [], 0, 0, True

        # Units have samples of one split where the archive has splits, so that those not asked for are not read.
        for number, group in enumerate(self._groups):
            class_images, class_bytes = sum(s.num_images for s in group), sum(s.end - s.start for s in group)
            counted = keeps_all and all(s.num_items >= 0 for s in group)
            if counted:
                class_images = sum(s.num_items for s in group)
            if group[0].split != split or images + class_images > most_images or size + class_bytes > most_bytes:
                close()
            split = group[0].split
            n = max(1, round(class_images / most_images), round(class_bytes / most_bytes))
            for k in range(n):
                share = Share(number, k, n)
                shares.append(share)
                first, stop = share.of(class_images)
                images, size, exact = images + stop - first, size + class_bytes // n, exact and counted
                if n > 1:
                    close()
        close()
        if self._left_out:
            units.append(Unit("unit-damage", self.splits[0], 0, 0, tuple(self._left_out)))
        return units

    # --------------------------------------------------------------------------------------------------- samples

    def samples(self, unit: Unit) -> Iterator[Sample | Broken | TooSmall]:
        for item, following in zip(unit.at, (*unit.at[1:], None), strict=True):
            if isinstance(item, Broken):
                yield item
                continue
            # What comes next is announced first: a file that keeps one announcement keeps that of what is read now.
            next_group = self._groups[following.group] if isinstance(following, Share) else ()
            for s in (*next_group, *self._groups[item.group]):
                self._blobs[s.blob].will_read(s.start, s.end - s.start)
            yield from self._class_samples(item)
            if len(self._blobs) > 1:
                for s in self._groups[item.group]:
                    self._blobs[s.blob].close()

    def _class_samples(self, share: Share) -> Iterator[Sample | Broken | TooSmall]:
        if self._last is None or self._last[0] != share.group:
            self._last = None  # before another class comes into memory
            self._last = (share.group, *self._read_names(self._groups[share.group]))
        _, files, too_small = self._last
        if too_small is not None:
            if share.share == 0:
                yield too_small
            return
        first, stop = share.of(len(files))
        label = self._labels[self._groups[share.group][0].class_name]
        for file in files[first:stop]:
            yield file.sample(label)

    def _read_names(self, stretches: tuple[Stretch, ...]) -> tuple[list[_File], TooSmall | None]:
        """All that a class holds: its names together decide on keys and on what is held out."""
        class_name, split = stretches[0].class_name, stretches[0].split
        name = self.classes[self._labels[class_name]][0]
        files: list[_File] = []
        for s in stretches:
            read_at = self._reader(s)
            for item in class_items(read_at, s):
                if isinstance(item, Damage):
                    tar = f"{name}.tar" if s.inner else name
                    files.append(_File(read_at, item, "", tar, reason=item.reason, is_data=item.lost))
                else:
                    path = item.name.removeprefix("./")
                    files.append(_File(read_at, item, path, keys.line(f"{name}.tar/{path}" if s.inner else item.name)))
        if stretches[0].inner:
            folders = {part for file in files for part in posixpath.dirname(file.path).split("/")}
            inside = {found for part in folders if (found := split_names.of_folder(part))}
            if len(inside) > 1:
                raise Error(
                    f"{self.path}: {name}.tar has folders of {' and '.join(sorted(inside))} in it: splits are expected "
                    "around classes, not in them; sort them so"
                )
        _settle_strange(files)
        usable = [file for file in files if not file.reason]
        images = [file.path for file in usable if looks_like_image(file.path)] or [file.path for file in usable]
        split_of = {} if split else self.class_filter.split_of(name, images)
        if images and not split_of and not split:
            return [], TooSmall(name, len(images))
        class_keys = _keys(class_name, [posixpath.basename(file.path) for file in usable])
        for file, key in zip(usable, class_keys, strict=True):
            file.key, file.split = key, split or split_of.get(file.path, "train")
        return files, None

    def _reader(self, s: Stretch) -> ReadAt:
        blob = self._blobs[s.blob]
        if blob.compressed and s.end - s.start <= HOLD_BYTES:
            # Names come before bytes, and going back in a gzip stream means decompressing again.
            held = blob.read_at(s.start, s.end - s.start)
            return lambda offset, size: held[offset - s.start : offset - s.start + size]
        return blob.read_at


@dataclass(slots=True)
class _File:
    """Something that lies in a class."""

    read_at: ReadAt
    item: Member | Special | Damage
    path: str  # inside its tar
    origin: str
    key: str = ""
    split: str = ""
    reason: str = ""  # why it is no sample
    is_data: bool = True

    def sample(self, label: int) -> Sample | Broken:
        reason, member = self.reason, self.item
        if not reason and member.size > MAX_IMAGE_BYTES:
            reason = f"has {member.size} bytes"
        data = b"" if reason else self.read_at(member.offset, member.size)
        if not reason and len(data) < member.size:
            reason = f"is cut short: {member.size} bytes announced, {len(data)} there"
        if reason:
            return Broken(self.origin, reason, self.split, self.is_data, is_counted=True)
        return Sample(self.key, data, label, self.origin, self.split)


def _settle_strange(files: list[_File]) -> None:
    """Lead links to the files of the class that they mean, and say of all else that is no plain file what it is."""
    strange = [file for file in files if isinstance(file.item, Special)]
    plain = {}
    if strange:
        plain = {posixpath.normpath(f.path.lstrip("/")): f for f in files if isinstance(f.item, Member)}
    for file in strange:
        item = file.item
        # A hard link names a member of the archive, a symbolic one a path from where it lies.
        folder = posixpath.dirname(file.path) if item.reason == SPECIAL[b"2"] else ""
        target = plain.get(posixpath.normpath(posixpath.join(folder, item.target).lstrip("/"))) if item.target else None
        if target:
            file.item, file.read_at = target.item, target.read_at
        else:
            to = f" to {keys.line(item.target)}, which is not in its class" if item.target else ""
            file.reason, file.is_data = f"is {item.reason}{to}", looks_like_image(file.path)
    for file in files:
        if not file.reason and is_system(file.path):
            file.reason, file.is_data = "is what a system leaves beside files", False


def _class_text(name: str) -> str:
    """A class's name as a line of text that is no path to elsewhere."""
    return name.replace(".", "%2E") if not name.strip(".") else keys.line(name)


def _keys(class_name: str, files: list[str]) -> list[str]:
    """Keys of the images of a class that differ from each other and from those of other classes."""
    own = f"{class_name}_" if WNID.fullmatch(class_name) else None
    folder, found = keys.part(class_name), []
    for file in files:
        stem = keys.part(file.rpartition(".")[0] or file)
        found.append(stem if own and stem.startswith(own) else f"{folder}/{stem}")
    return keys.distinct(found)


def recognise(found: list[str], parts: list[str], inner: bool) -> str:
    """Which release an archive is, from its classes and layout, never from its name; "cannot tell" where that is so.

    found: its classes. parts: the folders inside that hold them. inner: whether classes are tars.

    winter21 is fall11 without 2,674 synsets, mostly of people; which ones is published only for the -P sets: 771 of the
    11,221 classes of fall11-P are not in winter21-P. A fall11 archive has its share of those 771, a winter21 archive
    next to none.
    """
    classes, count = set(found), f"{len(found):,}"
    if classes == set(labels.classes("ilsvrc2012")):
        return "ILSVRC2012 (all 1,000 synsets)"
    fall11, p_fall11, p_winter21 = (set(labels.classes(n)) for n in ("fall11", "fall11-p", "winter21-p"))
    if len(classes - fall11) > len(classes) // 20:
        return f"unknown release ({count} classes)"
    if any(posixpath.basename(p).startswith("imagenet21k_") for p in parts):
        if classes & (p_fall11 - p_winter21):
            return f"fall11-P, processed and resized ({count} of 11,221 synsets)"
        if len(classes) > 500:
            return f"winter21-P, processed and resized ({count} of 10,450 synsets)"
        return f"fall11-P or winter21-P, cannot tell from {count} synsets, processed and resized"
    people = len(classes & (p_fall11 - p_winter21))
    expected = len(classes) * len(p_fall11 - p_winter21) / len(fall11)
    if len(classes) > 19_167 or (expected >= 5 and people >= expected / 2):
        return f"fall11 ({count} of 21,841 synsets)"
    if expected >= 10 and people <= expected / 20:
        return f"winter21 ({count} of 19,167 synsets)"
    layout = "laid out as neither"
    if inner and parts in ([], [""]):
        layout = "laid out as fall11"
    elif inner and len(parts) == 1:
        layout = "laid out as winter21"
    return f"fall11 or winter21, cannot tell from {count} synsets, {layout}"
