"""Images as WebDataset tars, as timm's mirrors have ImageNet: `jpg`, `cls` and `json` of each sample side by side."""

from __future__ import annotations

import re
from array import array
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from itertools import islice
from pathlib import Path

import numpy as np
import xxhash

from mlpdata import labels
from mlpdata import splits as split_names
from mlpdata.archive.tarscan import BLOCK
from mlpdata.errors import Error
from mlpdata.fetch.hub import Repository
from mlpdata.image.limits import MAX_IMAGE_BYTES
from mlpdata.sources import Broken, ClassFilter, Sample, Source, Unit, keys, most_samples
from mlpdata.sources.files import IMAGE_SUFFIXES
from mlpdata.sources.wds_sample import (
    LABELS,
    Blob,
    TarSample,
    image_of,
    iter_samples,
    label_of,
    other_images,
    record_of,
)
from mlpdata.sources.wds_tars import SourceTar, TarList, list_tars, open_tar, tell_splits
from mlpdata.system.progress import Progress

WNID = re.compile(r"(?:^|/)(n\d{8})[_/]")
OFFICIAL = re.compile(r"(?:^|/)(n\d{8}_\d+|ILSVRC2012_\w+_\d{8}(_n\d{8})?)$")  # names that no two images have
PEEK = 16  # samples looked at in as many tars, to learn which class list the labels count in
LOOK = 4  # tars of which one has to hold samples
MAX_TEXT_BYTES = 64  # of a .txt that is a class, not a caption
MAX_NUMBER = 21_841  # classes by number where the tars are not read through first
MAX_CLASSES = 1 << 20


def find(path: Path | Repository) -> TarList | None:
    """The tars of a directory, of a pattern like `imagenet1k-train-*.tar`, or the one at `path`; None if they are none.

    They are told by the first samples of the first tars: a sample's class or JSON lies beside its image.
    """
    found = list_tars(path)
    for tar in found.tars[:LOOK]:
        blob = open_tar(path, tar.path)
        is_webdataset = any(isinstance(s, TarSample) and _is_sample(s) for s in islice(iter_samples(blob), 4 * PEEK))
        blob.close()
        if is_webdataset:
            return found
    return None


def _is_sample(sample: TarSample) -> bool:
    has_image = any(f".{e}".endswith(IMAGE_SUFFIXES) for e in sample.members)
    text = sample.members.get("txt")
    is_caption = text is not None and text.size > MAX_TEXT_BYTES
    return has_image and any(e in sample.members for e in LABELS if e != "txt" or not is_caption)


@dataclass
class _Contents:
    """What a tar holds, from its headers and labels."""

    name: str
    num_samples: int = 0
    hashes: array = field(default_factory=lambda: array("Q"))  # of the keys
    splits: set[str] = field(default_factory=set)  # that folders inside it name; "" where a sample's name none
    numbers: Counter[int] = field(default_factory=Counter)
    names: Counter[str] = field(default_factory=Counter)


class WebDataset(Source):
    """Tars of samples, in any order of classes.

    path:  what the user named; tars: see find. Splits are told by `_info.json` beside them, else by the names of files
           and folders, else by folders inside the tars.
    lists: names of the class lists (mlpdata.labels) that `cls` may count in. The list is found by looking at samples
           whose wnid is known, from their key or the `filename` of their JSON. Where none fits, the classes are those
           wnids, and without any wnid the numbers or names that are there.
    class_filter: only `classes`; class sizes are not known before everything was read.
    """

    def __init__(
        self, path: Path | Repository, tars: TarList, class_filter: ClassFilter, res: int, lists: tuple[str, ...]
    ):
        self.path = path
        self.files = [str(path if isinstance(path, Repository) or path.exists() else tars.root)]
        class_filter = class_filter.beside_splits()
        if class_filter.min_class_size or class_filter.val_per_class:
            raise Error(f"{path} holds shuffled WebDataset tars: of the class filters it takes only --classes")
        self._most = most_samples(res)
        tell_splits(path, tars)
        self._tars, self._warnings = tars.tars, tars.warnings
        self._blobs = {tar.name: open_tar(path, tar.path) for tar in self._tars}
        peeked = self._peek(lists)
        # Keys that are not known to be different, and labels of no known list, are looked through before they are used.
        unnamed = {tar.name for tar in self._tars if tar.split is None}
        splits_inside = any(found.name in unnamed and found.splits - {""} for found in peeked)
        unread = self._list is None or splits_inside or not all(map(OFFICIAL.search, self._peeked_keys))
        if unread and not isinstance(path, Repository):
            contents = self._read_through()
        else:
            contents = peeked
        self._settle_splits(contents)
        self._settle_keys(contents)
        if self._list is None:
            self._settle_classes(contents, contents is not peeked)
        self._names = {name: i for i, name in enumerate(self._list)}
        wanted = class_filter.classes
        if wanted is not None:
            missing = [c for c in wanted if c not in self._names]
            if missing:
                raise Error(f"{path} has no class {missing[0]!r}, nor {len(missing) - 1} others of those asked for")
        names = list(wanted) if wanted is not None else self._list
        self.classes = [(name, labels.readable(name)) for name in names]
        self._labels = {name: i for i, name in enumerate(names)}
        self.warnings = tuple(self._warnings)

    def __getstate__(self):
        return {**self.__dict__, "_peeked_keys": []}

    # ----------------------------------------------------------------------------------------------------- listing

    def _peek(self, lists: tuple[str, ...]) -> list[_Contents]:
        """Look at a few samples: which class list, which codec, how large."""
        pairs, kinds, size, count, self._peeked_keys = set(), [], 0, 0, []
        chosen = self._tars[:: max(1, len(self._tars) // PEEK)]
        contents = []
        for tar in chosen:
            blob, found = self._blobs[tar.name], _Contents(tar.name)
            contents.append(found)
            for sample in islice(iter_samples(blob), PEEK):
                image = image_of(sample)[0] if isinstance(sample, TarSample) else None
                if image is None:
                    continue
                if other_images(sample, image):
                    self._say_once(
                        f"{self.path}: samples have several images: of {keys.line(sample.name)} {image} is taken"
                    )
                kinds.append(image.rpartition(".")[2])
                size, count = size + sample.members[image].size + 3 * BLOCK, count + 1
                self._peeked_keys.append(sample.name)
                self._add(found, blob, sample, has_labels=True)
                number, wnid = label_of(blob, sample)[0], self._wnid(blob, sample)
                if type(number) is int and wnid:
                    pairs.add((number, wnid))
                if type(number) is int and "json" in sample.members:
                    self._compare(number, blob, sample)
            blob.close()
        if not kinds:
            raise Error(f"{self.path}: {chosen[0].name} begins with no sample that has an image")
        self.codec = "jpg" if sum(k in ("jpg", "jpeg", "jpe", "jfif") for k in kinds) * 2 > len(kinds) else "png"
        self._mean_bytes = size / count
        fits = [n for n in lists if all(0 <= number < len(labels.classes(n)) and labels.classes(n)[number] == wnid
                                        for number, wnid in pairs)]  # fmt: skip
        self._by_wnid = bool(pairs) and not fits
        known = bool(fits) and (bool(pairs) or len(lists) == 1)
        self._list = None
        if known:
            self._list, self._numbered = list(labels.classes(fits[0])), True
            self._index = {value: i for i, name in enumerate(self._list) for value in (i, name)}
            told = f"{fits[0]}, {len(self._list):,} synsets"
            numbers = {number for found in contents for number in found.numbers}
            if len(self._list) in numbers and 0 not in numbers:
                raise Error(
                    f"{self.path}: its classes are counted from 1; {fits[0]} is counted from 0: correct its labels"
                )
        elif pairs:
            self._list = sorted(set(labels.classes("fall11")))
            told = "synsets by name, its labels count in no published list"
        else:
            told = "unknown release, classes by number"
        self.drops_empty_classes = not known
        kind = f"{self.path}, " if isinstance(self.path, Repository) else ""
        self.release = f"{kind}WebDataset tars ({told})"
        return contents

    def _say_once(self, line: str) -> None:
        if not any(w.partition(" of ")[0] == line.partition(" of ")[0] for w in self._warnings):
            self._warnings.append(line)

    def _compare(self, number: int, blob: Blob, sample: TarSample) -> None:
        label = (record_of(blob, sample) or {}).get("label")
        if "cls" in sample.members and type(label) is int and label != number:
            self._say_once(
                f"{self.path}: cls and json say different classes of samples: cls is taken of {keys.line(sample.name)}"
            )

    def _read_through(self) -> list[_Contents]:
        """Every header, and labels where they are of no known list."""
        progress = Progress("reading headers", sum(b.size for b in self._blobs.values()) // 10**6, unit="MB")
        contents, has_labels = [], self._list is None
        for tar in self._tars:
            blob, found = self._blobs[tar.name], _Contents(tar.name)
            for sample in iter_samples(blob):
                if isinstance(sample, TarSample):
                    self._add(found, blob, sample, has_labels)
            blob.close()
            tar.num_samples = found.num_samples
            contents.append(found)
            progress.add(blob.size // 10**6)
        progress.finish()
        return contents

    def _add(self, found: _Contents, blob: Blob, sample: TarSample, has_labels: bool) -> None:
        found.num_samples += 1
        found.hashes.append(xxhash.xxh3_64_intdigest(sample.key.encode()))
        found.splits.add(_folder_split(sample.folder) or "")
        if has_labels:
            value, _ = label_of(blob, sample)
            if isinstance(value, str):
                found.names[value] += 1
            elif value is not None and value >= 0:
                found.numbers[value] += 1
            if len(found.names) + len(found.numbers) > MAX_CLASSES:
                raise Error(f"{self.path}: {found.name} has more than {MAX_CLASSES:,} classes")

    def _settle_splits(self, contents: list[_Contents]) -> None:
        inside = {found.name: found.splits for found in contents}
        everywhere = set().union(*inside.values())
        said: set[str] = set()
        unnamed = []
        for tar in self._tars:
            own = inside.get(tar.name, everywhere) - {""}
            if tar.split is not None:
                said.add(tar.split)
                other = own - {split_names.canonical(tar.split)}
                if other and not tar.is_listed:
                    raise Error(
                        f"{self.path}: {tar.name} is of split {tar.split} by its name and holds samples in folders of "
                        f"{' and '.join(sorted(other))}: rename it, for folders inside to decide, or list it in "
                        "_info.json"
                    )
            elif own:
                said |= own
            else:
                unnamed.append(tar.name)
        if unnamed:
            more = f" and {len(unnamed) - 1:,} others" if len(unnamed) > 1 else ""
            self._warnings.append(f"{self.path}: {keys.line(unnamed[0])}{more} name no split and are taken for train")
        self._ours = split_names.settle(sorted(said)) | ({} if "train" in said else {"train": "train"})
        if self._ours.get("test") == "val":
            self._warnings.append(f"{self.path}: its split test is called val: it is what is held out")
        self._named = {t.name: split_names.canonical(t.split) for t in self._tars if t.split and not t.is_listed}
        self._inside = {t.name for t in self._tars if t.split is None and inside.get(t.name, everywhere) - {""}}
        if any("" in inside.get(name, ()) for name in self._inside):
            said_train = f"{self.path}: samples in no split's folder are taken for train, as in {min(self._inside)}"
            self._warnings.append(said_train)
        names = {self._ours[tar.split or "train"] for tar in self._tars if tar.name not in self._inside}
        names |= {self._ours[split or "train"] for name in self._inside for split in inside.get(name, everywhere)}
        self.splits = tuple(sorted(names, key=lambda split: (split != "train", split)))

    def _unit_splits(self, tar: SourceTar) -> tuple[str, ...]:
        return self.splits if tar.name in self._inside else (self._ours[tar.split or "train"],)

    def _settle_keys(self, contents: list[_Contents]) -> None:
        """Where keys of two tars of a split meet, the tar's name goes before them; within one tar the place behind."""
        splits = {tar.name: self._unit_splits(tar) for tar in self._tars}
        of_split: dict[str, list[np.ndarray]] = {}
        self._repeats = set()
        for found in contents:
            hashes = np.unique(np.frombuffer(found.hashes, np.uint64)) if found.hashes else np.empty(0, np.uint64)
            if len(hashes) < len(found.hashes):
                self._repeats.add(found.name)
            for split in splits[found.name]:
                of_split.setdefault(split, []).append(hashes)
        merged = (np.concatenate(hashes) for hashes in of_split.values())
        self._prefixed = any(len(np.unique(hashes)) < len(hashes) for hashes in merged)

    def _settle_classes(self, contents: list[_Contents], is_all: bool) -> None:
        numbers, names = Counter(), Counter()
        for found in contents:
            numbers.update(found.numbers)
            names.update(found.names)
        self._numbered = names.total() <= numbers.total()
        if names.total() > numbers.total():
            if not is_all:
                raise Error(
                    f"{self.path} has classes by name, which are known only when all is read; download it first"
                )
            raw = sorted({*names, *map(str, numbers)})
            self._list = keys.distinct(map(keys.line, raw))
            self._index = {name: i for i, name in enumerate(raw)}
            self.release = self.release.replace("classes by number", "classes by name")
        else:
            values = sorted(numbers) if is_all else range(MAX_NUMBER)
            self._index = {number: i for i, number in enumerate(values)}
            self._list = [str(number) for number in values]
        if len(self._list) > MAX_CLASSES:
            raise Error(f"{self.path} has {len(self._list):,} different classes; at most {MAX_CLASSES:,} are taken")

    # ----------------------------------------------------------------------------------------------------- units

    def units(self) -> list[Unit]:
        units = []
        for tar in self._tars:
            size = self._blobs[tar.name].size
            own = self._unit_splits(tar)
            expected = tar.num_samples or max(1, round(size / self._mean_bytes))
            pieces = max(1, round(expected / self._most))
            edges = [size * k // pieces // BLOCK * BLOCK for k in range(pieces)] + [size]
            for k in range(pieces):
                at = (tar.name, edges[k], edges[k + 1])
                name, num_bytes = f"{own[0]}-{len(units):06d}", edges[k + 1] - edges[k]
                units.append(Unit(name, own[0], expected // pieces, num_bytes, at, splits=own))
        return units

    def samples(self, unit: Unit) -> Iterator[Sample | Broken]:
        name, start, stop = unit.at
        blob = self._blobs[name]
        blob.will_read(start, stop - start)
        shown = keys.line(name)
        for sample in iter_samples(blob, start, stop):
            if isinstance(sample, Broken):
                yield Broken(
                    f"{shown}: {sample.origin}" if sample.origin else shown, sample.reason, is_data=sample.is_data
                )
            else:
                yield from self._sample(name, blob, sample)
        blob.close()

    def _sample(self, name: str, blob: Blob, sample: TarSample) -> Iterator[Sample | Broken]:
        image, reason = image_of(sample)
        origin = keys.line(f"{name}/{sample.name}.{image or 'jpg'}")
        split, inside, own = "", _folder_split(sample.folder), self._named.get(name)
        if name in self._inside:
            split = self._ours.get(inside or "train", "")
            if split not in self.splits:
                yield Broken(origin, "lies in a folder of a split that was not seen when the tars were looked at")
                return
        elif own and inside and inside != own:
            yield Broken(origin, f"lies in a folder of {inside}, in a tar that is of {own} by its name")
            return
        label, why = self._label(blob, sample)
        if label is None and not why:
            return
        reason = reason or why or ("" if sample.stem else "has no key: its name begins with a dot")
        if not reason and sample.members[image].size > MAX_IMAGE_BYTES:
            reason = f"has {sample.members[image].size:,} bytes"
        for strange, what in sample.strange:
            yield Broken(f"{keys.line(name)}/{strange}", what, split, is_data=False)
        if reason:
            is_data = any(e in LABELS or f".{e}".endswith(IMAGE_SUFFIXES) for e in sample.members) or bool(
                sample.strange
            )
            yield Broken(origin, reason, split, is_data)
            return
        for member in other_images(sample, image):
            what = f"is another image of its sample, of which {image} is taken"
            yield Broken(keys.line(f"{name}/{member.name}"), what, split, is_data=False)
        member = sample.members[image]
        yield Sample(self._key(name, sample), blob.read_at(member.offset, member.size), label, origin, split)

    def _key(self, name: str, sample: TarSample) -> str:
        key = sample.key
        if name in self._repeats:
            key = f"{key}-{sample.start // BLOCK}"
        if self._prefixed:
            key = f"{'/'.join(map(keys.part, name[:-4].split('/')))}/{key}"
        return key

    def _label(self, blob: Blob, sample: TarSample) -> tuple[int | None, str]:
        """(label, ""), (None, "") for a class that was not asked for, or (None, why there is none)."""
        if self._by_wnid:
            wnid = self._wnid(blob, sample)
            if wnid not in self._names:
                return None, f"is of class {wnid}, which is in no list" if wnid else "has no wnid"
            return self._labels.get(wnid), ""
        value, why = label_of(blob, sample)
        if value is None:
            return None, why
        at = self._index.get(value if self._numbered or isinstance(value, str) else str(value))
        if at is not None:
            return self._labels.get(self._list[at]), ""
        if isinstance(value, str):
            return None, f"has the class {keys.line(value)[:80]!r}, which is no number"
        if value < 0 or not self._list:
            return None, f"has the class {value}, which is none"
        last = self._list[-1] if self.drops_empty_classes else len(self._list) - 1
        return None, f"is of class {value}, beyond {last}"

    def _wnid(self, blob: Blob, sample: TarSample) -> str | None:
        if match := WNID.search(sample.name):
            return match[1]
        name = (record_of(blob, sample) or {}).get("filename")
        match = WNID.search(name) if isinstance(name, str) else None
        return match[1] if match else None


_folder_splits: dict[str, str | None] = {"": None}


def _folder_split(folder: str) -> str | None:
    """The split that folders inside a tar name. Raises Error where they name two."""
    if folder not in _folder_splits:
        if len(_folder_splits) > 10_000:
            _folder_splits.clear()
        _folder_splits[folder] = split_names.of_path(folder)
    return _folder_splits[folder]
