"""Images as WebDataset tars, as timm's mirrors have ImageNet: `jpg`, `cls` and `json` of each sample side by side.

`wds_tars` finds the tars, `wds_sample` reads samples of them, `wds_contents` looks what they hold, `wds_splits` tells
their splits. Which classes there are, and what is made of each sample, is here.
"""

from __future__ import annotations

import contextlib
import re
from collections import Counter
from collections.abc import Iterator
from itertools import islice, pairwise
from pathlib import Path

from mlpdata import labels
from mlpdata.archive.tarscan import BLOCK
from mlpdata.errors import Error
from mlpdata.image.limits import MAX_IMAGE_BYTES
from mlpdata.sources import keys
from mlpdata.sources.base import Broken, ClassFilter, Sample, Source, Unit, most_samples
from mlpdata.sources.files import IMAGE_SUFFIXES
from mlpdata.sources.location import Location, open_file
from mlpdata.sources.wds_contents import (
    PEEK,
    Peek,
    TarContents,
    read_through,
    refuse_captions,
    refuse_what_is_no_tar,
    repeated_keys,
    wnid_of,
)
from mlpdata.sources.wds_sample import (
    ANY,
    LABELS,
    Blob,
    Columns,
    TarSample,
    image_of,
    iter_samples,
    label_of,
    other_images,
    says_class,
)
from mlpdata.sources.wds_splits import SampleSplits
from mlpdata.sources.wds_tars import CLASS_NAMES, PACKED, TarList, class_names, list_tars, tell_splits
from mlpdata.system.format import plural

OFFICIAL = re.compile(r"(?:^|/)(n\d{8}_\d+|ILSVRC2012_\w+_\d{8}(_n\d{8})?)$")  # names that no two images have
LOOK = 4  # tars that are opened; one of them has to hold samples
MAX_TEXT_BYTES = 64  # of a .txt that is a class, not a caption
MAX_NUMBER = 21_841  # number of classes where the tars are not read through first
MAX_CLASSES = 1 << 20


def find(path: Location, columns: Columns = ANY) -> TarList | None:
    """The tars of a directory, of a pattern like `imagenet1k-train-*.tar`, or the one at `path`; None if they are none.

    The first samples of the first tars decide: in a WebDataset the class or the JSON of a sample lies beside its image.
    """
    if isinstance(path, Path) and path.name.lower().endswith(PACKED) and path.is_file():
        return None  # an archive of another kind, or what `open_tars` refuses
    found = list_tars(path)
    for tar in found.tars[:LOOK]:
        blob = open_file(found.location, tar.name)
        first = islice(iter_samples(blob, columns=columns), 4 * PEEK)
        is_webdataset = any(isinstance(sample, TarSample) and _has_label(sample) for sample in first)
        blob.close()
        if is_webdataset:
            return found
    return None


def open_tars(
    path: Location,
    class_filter: ClassFilter,
    res: int,
    image_column: str | None = None,
    label_column: str | None = None,
) -> WebDataset:
    """The source of what has to be WebDataset tars. Raises Error that says why it is none.

    image_column, label_column: extensions of the members to take, where samples have several; None: any.
    """
    columns = Columns(image_column or "", label_column or "")
    if tars := find(path, columns):
        return WebDataset(path, tars, class_filter, res, (), columns, class_names(tars))
    found = list_tars(path)
    if not found.tars:
        raise Error(found.warnings[0] if found.warnings else f"{path} holds no .tar files")
    with contextlib.closing(open_file(found.location, found.tars[0].name)) as blob:
        samples = (sample for sample in islice(iter_samples(blob), PEEK) if isinstance(sample, TarSample))
        first = next(samples, None)
    name = f"{path}: {found.tars[0].name}"
    if first is None:
        hint = "; `mlpdata convert beton` reads FFCV's files" if name.endswith((".beton", ".ffcv")) else ""
        raise Error(f"{name} is no tar of samples{hint}")
    raise Error(
        f"{name} has samples of {keys.listed(list(first.members), 4) or 'no files'}: wanted are an image and a class "
        f"beside it (cls, or label in a json); {_hint(first)}"
    )


def _hint(sample: TarSample) -> str:
    """What may be wrong with the first sample of tars that are none of images with classes."""
    images = [e for e in sample.members if f".{e}".endswith(IMAGE_SUFFIXES)]
    if len({e.rpartition(".")[2] for e in images}) < len(images):
        return "names are cut at their first dot: rename the members"
    if len(images) > 1 or len(sample.members) > len(images) > 0:
        return "--image-column and --label-column name the members to take"
    if sample.folder and images:
        return "of class folders, unpacked, `mlpdata convert folder` makes shards"
    return "the members of a sample have one name, and follow one another"


def _has_label(sample: TarSample) -> bool:
    text = sample.members.get("txt")
    is_caption = text is not None and text.size > MAX_TEXT_BYTES
    has_class = any(says_class(e) for e in sample.members if e != "txt" or not is_caption)
    return has_class and any(f".{e}".endswith(IMAGE_SUFFIXES) for e in sample.members)


class WebDataset(Source):
    """Tars of samples, in any order of classes.

    path:  what the user named; tars: see find. Splits follow from `_info.json` beside them, else from names of files
           and folders, else from folders inside the tars.
    lists: names of the class lists (mlpdata.labels) that `cls` may count in. The list is found by looking at samples
           whose wnid is known, from their key or the `filename` of their JSON. Where none fits, the classes are those
           wnids, and without any wnid the numbers or names that are there.
    class_filter: only its `classes`; class sizes are not known before everything was read. Where the labels are numbers
           and its classes are not, these are their names.
    columns: the members to take. class_names: of the classes 0, 1, ..., where there are so many.
    """

    def __init__(
        self,
        path: Location,
        tars: TarList,
        class_filter: ClassFilter,
        res: int,
        lists: tuple[str, ...],
        columns: Columns = ANY,
        class_names: tuple[str, ...] = (),
    ):
        self.path, self._most, self._columns = path, most_samples(res), columns
        is_local = isinstance(path, Path)
        self.files = [str(tars.location if is_local and not path.exists() else path)]
        class_filter = class_filter.only_classes(f"{path} holds shuffled WebDataset tars")
        tell_splits(tars)
        self._tars, self._notes = tars.tars, tars.warnings
        self._blobs: dict[str, Blob] = {tar.name: open_file(tars.location, tar.name) for tar in self._tars}
        if is_local:
            refuse_what_is_no_tar(path, self._blobs)
        peek = Peek(path, self._tars, self._blobs, self._notes, columns)
        self.codec, self._mean_bytes = peek.codec, peek.mean_bytes
        self._by_wnid = False
        known = self._find_list(peek, lists)
        # Keys that may not be unique and labels of no published list are known only when every header has been read.
        unnamed = {tar.name for tar in self._tars if tar.split is None}
        splits_inside = any(tar.name in unnamed and tar.splits - {""} for tar in peek.contents)
        is_sure = known and not splits_inside and all(map(OFFICIAL.search, peek.sample_names))
        is_all = is_local and not is_sure
        contents = read_through(self._tars, self._blobs, not known, columns) if is_all else peek.contents
        self._splits = SampleSplits(path, self._tars, {tar.name: tar.splits for tar in contents}, self._notes)
        self.splits = self._splits.names
        splits_of = {tar.name: self._splits.of_tar(tar.name) for tar in self._tars}
        self._repeating, self._is_prefixed = repeated_keys(contents, splits_of)
        if not known:
            self._take_values(contents, is_all)
            class_filter = self._name_numbers(class_filter, class_names, is_all)
        if len(self._list) > MAX_CLASSES:
            raise Error(f"{path} has {len(self._list):,} different classes; at most {MAX_CLASSES:,} are taken")
        names = class_filter.choose(dict.fromkeys(self._list), path)
        self.classes = [(name, labels.readable(name)) for name in names]
        self._labels = {name: i for i, name in enumerate(names)}
        self.warnings = tuple(self._notes)

    # ---------------------------------------------------------------------------------------------------- classes

    def _find_list(self, peek: Peek, lists: tuple[str, ...]) -> bool:
        """Set the classes from a published list, or from all synsets; False where only the labels tell the classes.

        _name_of: name of a class by what samples say: its number, its name, or its synset.
        """
        fits = [name for name in lists if _counts_in(labels.classes(name), peek.pairs)]
        is_published = bool(fits) and (bool(peek.pairs) or len(lists) == 1)
        self.drops_empty_classes = not is_published
        self._list: list[str] = []
        self._name_of: dict[int | str, str] = {}
        classes = "unknown release, classes by number"
        if is_published:
            self._list = list(labels.classes(fits[0]))
            self._name_of = {value: name for i, name in enumerate(self._list) for value in (i, name)}
            classes = f"{fits[0]}, {len(self._list):,} synsets"
            numbers = set().union(*(tar.numbers for tar in peek.contents))
            if len(self._list) in numbers and 0 not in numbers:
                raise Error(
                    f"{self.path}: its classes are counted from 1; {fits[0]} is counted from 0: correct its labels"
                )
        elif peek.pairs:
            self._by_wnid = True
            self._list = sorted(set(labels.classes("fall11")))
            self._name_of = {name: name for name in self._list}
            classes = "synsets by name, its labels count in no published list"
        kind = "" if isinstance(self.path, Path) else f"{self.path}, "
        self.release = f"{kind}WebDataset tars ({classes})"
        return bool(self._list)

    def _take_values(self, contents: list[TarContents], is_all: bool) -> None:
        """Make classes of the labels that are there. is_all: whether all samples were looked at."""
        numbers: Counter[int] = Counter()
        names: Counter[str] = Counter()
        for tar in contents:
            numbers.update(tar.numbers)
            names.update(tar.names)
        if names.total() > numbers.total():
            if not is_all:
                raise Error(
                    f"{self.path} has classes by name, which are known only when all is read; download it first"
                )
            if not self._columns.label:
                refuse_captions(self.path, contents)
            raw = sorted({*names, *map(str, numbers)})
            self._list = keys.distinct(map(keys.line, raw))
            self._name_of = dict(zip(raw, self._list, strict=True))
            self._name_of |= {number: self._name_of[str(number)] for number in numbers}
            self.release = self.release.replace("classes by number", "classes by name")
        else:
            values = sorted(numbers) if is_all else range(MAX_NUMBER)
            self._name_of = {number: str(number) for number in values}
            self._list = list(self._name_of.values())

    def _name_numbers(self, class_filter: ClassFilter, class_names: tuple[str, ...], is_all: bool) -> ClassFilter:
        """Give names to classes that are numbers; returns the filter that is left. Raises Error for too few names."""
        given, values = class_filter.classes, list(self._name_of)
        if not values or any(isinstance(value, str) for value in values):
            return class_filter
        last = max(map(int, values)) if is_all else 0
        if given is not None and not all(map(str.isdecimal, given)):
            if last >= len(given):
                raise Error(f"{self.path} has classes from 0 to {last:,}; --classes names {len(given):,} of them")
            class_names, class_filter = given, ClassFilter()
        elif given is not None or last >= len(class_names):
            if class_names and given is None:
                names = plural(len(class_names), "name")
                self._notes.append(f"{self.path}: {CLASS_NAMES} is not used: it has {names} for classes to {last:,}")
            if last >= len(values):
                self._notes.append(
                    f"{self.path}: the class numbers are not 0, 1, 2, ...: the {len(values):,} that occur are counted "
                    "from 0, and are the names of the classes"
                )
            return class_filter
        else:
            self._notes.append(f"{self.path}: the classes have the names of {CLASS_NAMES}")
        self._list, self._name_of = list(class_names), dict(enumerate(class_names))
        self.drops_empty_classes = False
        self.release = self.release.replace("classes by number", "classes by number, with names")
        return class_filter

    def _label(self, blob: Blob, sample: TarSample) -> tuple[int | None, str]:
        """(label, ""), (None, "") for a class that was not asked for, or (None, why there is none)."""
        value, why = (wnid_of(blob, sample), "has no wnid") if self._by_wnid else label_of(blob, sample)
        if value is None:
            return None, why
        name = self._name_of.get(value)
        if name is not None:
            return self._labels.get(name), ""
        if self._by_wnid:
            return None, f"is of class {value}, which is in no list"
        if isinstance(value, str):
            return None, f"has the class {keys.line(value)[:80]!r}, which is no number"
        if value < 0 or not self._list:
            return None, f"has the class {value}, which is none"
        last = self._list[-1] if self.drops_empty_classes else len(self._list) - 1
        return None, f"is of class {value}, beyond {last}"

    # ----------------------------------------------------------------------------------------------------- reading

    def units(self) -> list[Unit]:
        units = []
        for tar in self._tars:
            size, splits = self._blobs[tar.name].size, self._splits.of_tar(tar.name)
            expected = tar.num_samples or max(1, round(size / self._mean_bytes))
            num_units = max(1, round(expected / self._most))
            edges = [size * k // num_units // BLOCK * BLOCK for k in range(num_units)] + [size]
            for start, stop in pairwise(edges):
                name, at = f"{splits[0]}-{len(units):06d}", (tar.name, start, stop)
                units.append(Unit(name, splits[0], expected // num_units, stop - start, at, splits=splits))
        return units

    def samples(self, unit: Unit) -> Iterator[Sample | Broken]:
        tar, start, stop = unit.content
        blob, shown = self._blobs[tar], keys.line(tar)
        blob.will_read(start, stop - start)
        is_empty = stop - start == blob.size
        for sample in iter_samples(blob, start, stop, self._columns):
            is_empty = False
            if isinstance(sample, TarSample):
                yield from self._sample(tar, blob, sample)
            else:
                origin = f"{shown}: {sample.origin}" if sample.origin else shown
                yield Broken(origin, sample.reason, is_data=sample.is_data)
        if is_empty:
            yield Broken(shown, "is a tar without samples", is_data=False)
        blob.close()

    def _sample(self, tar: str, blob: Blob, sample: TarSample) -> Iterator[Sample | Broken]:
        image, why_no_image = image_of(sample)
        origin = keys.line(f"{tar}/{sample.name}.{image or 'jpg'}")
        split, why = self._splits.of_sample(tar, sample.folder)
        if why:
            yield Broken(origin, why)
            return
        label, why_no_label = self._label(blob, sample)
        if label is None and not why_no_label:
            return
        member = sample.members.get(image)
        reason = why_no_image or why_no_label or ("" if sample.stem else "has no key: its name begins with a dot")
        if not reason and member and member.size > MAX_IMAGE_BYTES:
            reason = f"has {member.size:,} bytes"
        for strange, what in sample.strange:
            yield Broken(f"{keys.line(tar)}/{strange}", what, split, is_data=False)
        if reason or member is None or label is None:
            is_data = any(e in LABELS or f".{e}".endswith(IMAGE_SUFFIXES) for e in sample.members)
            yield Broken(origin, reason, split, is_data or bool(sample.strange))
            return
        for other in other_images(sample, image):
            what = f"is another image of its sample, of which {image} is taken"
            yield Broken(keys.line(f"{tar}/{other.name}"), what, split, is_data=False)
        yield Sample(self._key(tar, sample), blob.read_at(member.offset, member.size), label, origin, split)

    def _key(self, tar: str, sample: TarSample) -> str:
        """A sample's key. Where keys of two tars of a split meet, the tar's name goes before; in one tar, the place."""
        key = f"{sample.key}-{sample.start // BLOCK}" if tar in self._repeating else sample.key
        if self._is_prefixed:
            key = f"{'/'.join(map(keys.part, tar[:-4].split('/')))}/{key}"
        return key


def _counts_in(classes: tuple[str, ...], pairs: set[tuple[int, str]]) -> bool:
    """Whether the labels of samples whose synset is known count in a class list."""
    return all(0 <= number < len(classes) and classes[number] == wnid for number, wnid in pairs)
