"""ImageNet's archives: tars of class tars, tars of class folders, plain or gzip, read at offsets and never extracted.

`fall11_whole.tar` and `ILSVRC2012_img_train.tar` hold `<wnid>.tar`, `winter21_whole.tar.gz` holds
`winter21_whole/<wnid>.tar`, `imagenet21k_resized.tar.gz` holds `imagenet21k_resized/<part>/<wnid>/*.JPEG`. A directory
of `<wnid>.tar` files is read the same way. Either way a class is a stretch of a file that is a piece of a tar.
"""

from __future__ import annotations

import posixpath
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from mlpdata import labels
from mlpdata.errors import Error
from mlpdata.sources import Broken, ClassFilter, Sample, Source, TooSmall, Unit, most_samples
from mlpdata.sources.blob import open_blob
from mlpdata.sources.listing import WNID, Listing, Stretch, is_image, list_archive, list_directory
from mlpdata.sources.tarscan import Damage, Member, scan

MAX_IMAGE_BYTES = 256 << 20
UNITS = 256  # an archive is cut into about so many units, or more: they are bounded both ways
UNIT_BYTES = (16 << 20, 2 << 30)  # read for one unit
LEAST_SAMPLES = 500  # in one unit
HOLD_BYTES = 128 << 20  # a class of a gzip stream of at most so many bytes is decompressed once, not twice


@dataclass(frozen=True, slots=True)
class Share:
    """A share of the images of one class: image numbers from `share / shares` of them on, in the archive's order."""

    stretches: tuple[Stretch, ...]  # the whole class, for class filters decide over all of it
    share: int = 0
    shares: int = 1


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
        if isinstance(path, Path) and path.is_dir():
            self._blobs, listing = list_directory(path)
        else:
            self._blobs = [open_blob(path)]
            listing = list_archive(self._blobs[0], cache)
        self.files = [str(path)]
        self._damage = [Broken(posixpath.basename(str(path)), reason) for reason in listing.damage]
        found = sorted({s.class_name for s in listing.stretches})
        if not found:
            damage = f" ({listing.damage[0]})" if listing.damage else ""
            raise Error(f"{self.path} holds neither <class>.tar nor <class>/ folders of images{damage}")
        if strange := next((n for n in found if n.startswith(".") or not n.isprintable()), None):
            raise Error(f"{self.path} has a class called {strange!r}, which is no name for one")
        self._take_classes(found, listing)
        self.release = recognise(found, listing.parts, listing.stretches[0].inner)
        if self._blobs[0].compressed and self._blobs[0].damage:
            self.warnings = (f"{self.path}: {self._blobs[0].damage}",)

    def _take_classes(self, found: list[str], listing: Listing) -> None:
        wanted, size_of, known = self.class_filter.classes, Counter(), set(found)
        if wanted is not None:
            missing = [c for c in wanted if c not in known]
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
        names = list(wanted) if wanted is not None else found
        self.classes = [(name, labels.readable(name)) for name in names]
        self._labels = {name: i for i, name in enumerate(names)}
        for s in listing.stretches:
            size_of[s.class_name] += s.num_images
        # Where images are counted already, small classes can go now; elsewhere who reads a class finds out.
        here = {s.class_name for s in listing.stretches if s.counted and s.class_name in self._labels}
        counted = {name: size_of[name] for name in here}
        small = {name for name, n in counted.items() if not self.class_filter.takes(name, n)}
        self._stretches = [s for s in listing.stretches if s.class_name in self._labels and s.class_name not in small]
        if not self._stretches:
            raise self.class_filter.none_left(counted)
        self.splits = tuple(sorted((splits - {""}) | ({"train"} if "" in splits else set()))) or ("train",)
        if self.class_filter.val_per_class:
            self.splits = ("train", "val")
        self.drops_empty_classes = self.class_filter.min_class_size > 0

    def __getstate__(self):
        return {**self.__dict__, "_stretches": []}

    # ----------------------------------------------------------------------------------------------------- units

    def units(self) -> list[Unit]:
        """Units of whole classes, except for those too large for one."""
        groups: dict[tuple, list[Stretch]] = {}
        for s in self._stretches:
            groups.setdefault((s.class_name, s.split), []).append(s)
        num_bytes = sum(s.end - s.start for s in self._stretches)
        num_images = sum(s.num_images for s in self._stretches)
        most_images = min(most_samples(self._res), max(num_images // UNITS, LEAST_SAMPLES))
        most_bytes = min(UNIT_BYTES[1], max(num_bytes // UNITS, UNIT_BYTES[0]))
        units: list[Unit] = []
        shares: list[Share] = []
        images = size = 0

        def close():
            nonlocal shares, images, size
            if shares:
                units.append(Unit(f"unit-{len(units):06d}", self.splits[0], images, size, tuple(shares)))
            shares, images, size = [], 0, 0

        for group in groups.values():
            class_images, class_bytes = sum(s.num_images for s in group), sum(s.end - s.start for s in group)
            if images + class_images > most_images or size + class_bytes > most_bytes:
                close()
            n = max(1, round(class_images / most_images), round(class_bytes / most_bytes))
            for k in range(n):
                shares.append(Share(tuple(group), k, n))
                images, size = images + class_images // n, size + class_bytes // n
                if n > 1:
                    close()
        close()
        if self._damage:
            units.append(Unit("unit-damage", self.splits[0], 0, 0, tuple(self._damage)))
        return units

    # --------------------------------------------------------------------------------------------------- samples

    def samples(self, unit: Unit) -> Iterator[Sample | Broken | TooSmall]:
        for item, following in zip(unit.at, (*unit.at[1:], None), strict=True):
            if isinstance(item, Broken):
                yield item
                continue
            # What comes next is announced first: a file that keeps one announcement keeps that of what is read now.
            for s in (*(following.stretches if isinstance(following, Share) else ()), *item.stretches):
                self._blobs[s.blob].will_read(s.start, s.end - s.start)
            yield from self._class_samples(item)
            if len(self._blobs) > 1:
                for s in item.stretches:
                    self._blobs[s.blob].close()

    def _class_samples(self, share: Share) -> Iterator[Sample | Broken | TooSmall]:
        name, found, damage = share.stretches[0].class_name, [], []
        for s in share.stretches:
            read_at = self._reader(s)
            for item in scan(read_at, s.start, s.end):
                if isinstance(item, Damage):
                    damage.append(item.reason)
                elif is_image(item.name):
                    found.append((s, read_at, item))
        splits = self._splits_of(share.stretches[0], [member.name for _, _, member in found])
        if found and not splits:
            if share.share == 0:
                yield TooSmall(name, len(found))
            return
        if share.share == 0:
            for reason in damage:
                yield Broken(f"{name}.tar", reason)
        keys = _keys(name, [posixpath.basename(member.name) for _, _, member in found])
        first, stop = (len(found) * k // share.shares for k in (share.share, share.share + 1))
        for (s, read_at, member), key in zip(found[first:stop], keys[first:stop], strict=True):
            split = splits[member.name]
            origin = f"{name}.tar/{posixpath.basename(member.name)}" if s.inner else member.name
            yield self._sample(read_at, member, key, origin, split, self._labels[name])

    def _sample(self, read_at, member: Member, key: str, origin: str, split: str, label: int) -> Sample | Broken:
        if member.size > MAX_IMAGE_BYTES:
            return Broken(origin, f"has {member.size} bytes", split)
        data = read_at(member.offset, member.size)
        if len(data) < member.size:
            return Broken(origin, f"is cut short: {member.size} bytes announced, {len(data)} there", split)
        return Sample(key, data, label, origin, split)

    def _splits_of(self, stretch: Stretch, names: list[str]) -> dict[str, str]:
        if stretch.split:
            return dict.fromkeys(names, stretch.split)
        return self.class_filter.split_of(stretch.class_name, names)

    def _reader(self, s: Stretch):
        blob = self._blobs[s.blob]
        if blob.compressed and s.end - s.start <= HOLD_BYTES:
            # Names come before bytes, and going back in a gzip stream means decompressing again.
            held = blob.read_at(s.start, s.end - s.start)
            return lambda offset, size: held[offset - s.start : offset - s.start + size]
        return blob.read_at


def _keys(class_name: str, files: list[str]) -> list[str]:
    """Keys of the images of a class that differ from each other and from those of other classes."""
    taken: set[str] = set()
    keys = []
    for file in files:
        stem = (file.rpartition(".")[0] or file).replace(".", "_")
        if stem.startswith(f"{class_name}_") and WNID.fullmatch(class_name):
            key = stem
        else:
            key = f"{class_name.replace('.', '%2E')}/{stem}"
        while key in taken:
            key += "-"
        taken.add(key)
        keys.append(key)
    return keys


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
