"""ImageNet as WebDataset tars, as timm's mirrors have it: `jpg`, `cls` and `json` of each sample side by side."""

from __future__ import annotations

import glob
import json
import os
import posixpath
import re
from collections.abc import Iterator
from itertools import islice
from pathlib import Path

from mlpdata import labels
from mlpdata.errors import Error
from mlpdata.hub import Repository
from mlpdata.manifest import info_path
from mlpdata.sources import Broken, ClassFilter, Sample, Source, Unit, most_samples
from mlpdata.sources.blob import PlainFile
from mlpdata.sources.tarscan import BLOCK, Damage, Member, next_member, scan
from mlpdata.sources.url import UrlFile

IMAGES = ("jpg", "jpeg", "png", "webp")
SPLIT = re.compile(r"(?:^|[-_.])(train|validation|valid|val|test)(?=[-_.])")
SPLITS = {"train": "train", "validation": "val", "valid": "val", "val": "val", "test": "test"}
WNID = re.compile(r"(?:^|/)(n\d{8})[_/]")
PEEK = 16  # samples looked at in as many tars, to learn which class list the labels count in
MAX_IMAGE_BYTES = 256 << 20
MAX_JSON_BYTES = 1 << 16
MAX_INFO_BYTES = 64 << 20
MAX_CLASSES = 21_841


def find(path: Path | Repository) -> list[Path]:
    """The tars of a directory, of a pattern like `imagenet1k-train-*.tar`, or the one at `path`; [] if they are none.

    They are told by the first members of the first tar: a sample's class or JSON lies beside its image. Those of a
    repository are given by their paths in it.
    """
    if isinstance(path, Repository):
        tars = [Path(name) for name in sorted(path.files) if name.endswith(".tar")]
    elif path.is_dir():
        with os.scandir(path) as entries:
            tars = sorted(path / e.name for e in entries if e.name.endswith(".tar") and not e.name.startswith("."))
    elif path.exists():
        tars = [path]
    else:
        tars = sorted(Path(p) for p in glob.glob(str(path)))
    if not tars or not (isinstance(path, Repository) or tars[0].is_file()):
        return []
    blob = _open(path, tars[0])
    first = list(islice(scan(blob.read_at, 0, blob.size), 4))
    blob.close()
    names = [_split_name(m.name) for m in first if isinstance(m, Member)]
    kinds = {ext for key, ext in names if names and key == names[0][0]}
    return tars if kinds & set(IMAGES) and kinds & {"cls", "json"} else []


class WebDataset(Source):
    """Tars of samples, in any order of classes.

    path:  what the user named; tars: the files. Splits are told by `_info.json` beside them, else by the file names.
    lists: names of the class lists (mlpdata.labels) that `cls` may count in. The list is found by looking at samples
           whose wnid is known, from their key or the `filename` of their JSON. Where none fits, the classes are those
           wnids, and without any wnid the numbers as they are.
    class_filter: only `classes`; class sizes are not known before everything was read.
    """

    def __init__(
        self, path: Path | Repository, tars: list[Path], class_filter: ClassFilter, res: int, lists: tuple[str, ...]
    ):
        self.path = path
        self.files = [str(path if isinstance(path, Repository) or path.exists() else path.parent)]
        class_filter = class_filter.beside_splits()
        if class_filter.min_class_size or class_filter.val_per_class:
            raise Error(f"{path} holds shuffled WebDataset tars: of the class filters it takes only --classes")
        self._most = most_samples(res)
        self._tars = _with_splits(path, tars)
        self._blobs = {name: _open(path, tar) for name, tar, _, _ in self._tars}
        self._peek(lists)
        self._names = {name: i for i, name in enumerate(self._list)}
        wanted = class_filter.classes
        if wanted is not None:
            missing = [c for c in wanted if c not in self._names]
            if missing:
                raise Error(f"{path} has no class {missing[0]!r}, nor {len(missing) - 1} others of those asked for")
        names = list(wanted) if wanted is not None else self._list
        self.classes = [(name, labels.readable(name)) for name in names]
        self._labels = {name: i for i, name in enumerate(names)}

    def _peek(self, lists: tuple[str, ...]) -> None:
        """Look at a few samples: which class list, which codec, how large."""
        pairs, kinds, size, count = set(), [], 0, 0
        chosen = self._tars[:: max(1, len(self._tars) // PEEK)]
        for name, *_ in chosen:
            blob = self._blobs[name]
            for sample in islice(_groups(blob, 0, blob.size, blob.size), PEEK):
                if isinstance(sample, Broken):
                    continue
                key, files = sample
                image = next((e for e in IMAGES if e in files), None)
                if image is None:
                    continue
                kinds.append(image)
                size, count = size + files[image].size + 3 * BLOCK, count + 1
                number, wnid = self._number(blob, files), self._wnid(blob, key, files)
                if number is not None and wnid:
                    pairs.add((number, wnid))
            blob.close()
        if not kinds:
            raise Error(f"{self.path}: {chosen[0][0]} begins with no sample that has an image")
        self.codec = "jpg" if sum(k in ("jpg", "jpeg") for k in kinds) * 2 > len(kinds) else "png"
        self._mean_bytes = size / count
        fits = [n for n in lists if all(number < len(labels.classes(n)) and labels.classes(n)[number] == wnid
                                        for number, wnid in pairs)]  # fmt: skip
        self._by_wnid = bool(pairs) and not fits
        known = bool(fits) and (bool(pairs) or len(lists) == 1)
        if known:
            self._list = list(labels.classes(fits[0]))
            told = f"{fits[0]}, {len(self._list):,} synsets"
        elif pairs:
            self._list = sorted(set(labels.classes("fall11")))
            told = "synsets by name, its labels count in no published list"
        else:
            self._list = [str(i) for i in range(MAX_CLASSES)]
            told = "unknown release, classes by number"
        self.drops_empty_classes = not known
        kind = f"{self.path}, " if isinstance(self.path, Repository) else ""
        self.release = f"{kind}WebDataset tars ({told})"

    # ----------------------------------------------------------------------------------------------------- units

    def units(self) -> list[Unit]:
        units = []
        for name, _, split, num_samples in self._tars:
            size = self._blobs[name].size
            expected = num_samples or max(1, round(size / self._mean_bytes))
            pieces = max(1, round(expected / self._most))
            edges = [size * k // pieces // BLOCK * BLOCK for k in range(pieces)] + [size]
            for k in range(pieces):
                at = (name, edges[k], edges[k + 1])
                units.append(Unit(f"{split}-{len(units):06d}", split, expected // pieces, edges[k + 1] - edges[k], at))
        return units

    def samples(self, unit: Unit) -> Iterator[Sample | Broken]:
        name, start, stop = unit.at
        blob = self._blobs[name]
        blob.will_read(start, stop - start)
        for sample in _groups(blob, start, stop, blob.size):
            if isinstance(sample, Broken):
                yield Broken(f"{name}: {sample.origin}" if sample.origin else name, sample.reason)
                continue
            key, files = sample
            image = next((e for e in IMAGES if e in files), None)
            origin = f"{name}/{key}.{image or 'jpg'}"
            label = self._label(blob, key, files)
            if image is None:
                yield Broken(origin, "has no image")
            elif isinstance(label, str):
                yield Broken(origin, label)
            elif label is not None and files[image].size > MAX_IMAGE_BYTES:
                yield Broken(origin, f"has {files[image].size} bytes")
            elif label is not None:
                yield Sample(key, blob.read_at(files[image].offset, files[image].size), label, origin)
        blob.close()

    def _label(self, blob: PlainFile | UrlFile, key: str, files: dict[str, Member]) -> int | str | None:
        """The label, None for a class that was not asked for, or why there is none."""
        if self._by_wnid:
            wnid = self._wnid(blob, key, files)
            if wnid not in self._names:
                return f"is of class {wnid}, which is in no list" if wnid else "has no wnid"
            return self._labels.get(wnid)
        number = self._number(blob, files)
        if number is None or number >= len(self._list):
            return "has no class" if number is None else f"is of class {number}, beyond {len(self._list) - 1}"
        return self._labels.get(self._list[number])

    def _number(self, blob: PlainFile | UrlFile, files: dict[str, Member]) -> int | None:
        if "cls" in files:
            text = blob.read_at(files["cls"].offset, min(files["cls"].size, 32)).strip()
            return int(text) if text.isdigit() and len(text) < 10 else None
        label = _json(blob, files).get("label")
        return label if type(label) is int and label >= 0 else None

    def _wnid(self, blob: PlainFile | UrlFile, key: str, files: dict[str, Member]) -> str | None:
        if match := WNID.search(key):
            return match[1]
        name = _json(blob, files).get("filename")
        match = WNID.search(name) if isinstance(name, str) else None
        return match[1] if match else None


def _groups(
    blob: PlainFile | UrlFile, start: int, stop: int, end: int
) -> Iterator[tuple[str, dict[str, Member]] | Broken]:
    """Samples, (key, members by extension), of a range of a tar.

    Ranges that meet have no sample in common and leave none out: one belongs to the range in which it begins, but for
    the first sample with a header at or after an edge, which belongs to the range before that edge.
    """
    skipping, last, current = start > 0, False, None
    at = start if start == 0 else next_member(blob.read_at, start, end)
    if at is None:
        return
    for item in scan(blob.read_at, at, end):
        if isinstance(item, Damage):
            yield Broken("", item.reason)
            continue
        key, extension = _split_name(item.name)
        if current is None or key != current[0]:
            if current is not None and not skipping:
                yield current
            if last:
                return
            skipping = skipping and current is None
            current = (key, {})
        last = last or item.offset - BLOCK >= stop
        current[1].setdefault(extension, item)
    if current is not None and not skipping:
        yield current


def _split_name(name: str) -> tuple[str, str]:
    """Key and lower-case extension of a member: its base name is cut at the first dot."""
    folder, file = posixpath.split(name.removeprefix("./"))
    stem, _, extension = file.partition(".")
    folder = folder.replace(".", "%2E").strip("/")
    return (f"{folder}/{stem}" if folder else stem), extension.lower()


def _json(blob: PlainFile | UrlFile, files: dict[str, Member]) -> dict:
    member = files.get("json")
    if member is None or member.size > MAX_JSON_BYTES:
        return {}
    try:
        record = json.loads(blob.read_at(member.offset, member.size))
    except (ValueError, RecursionError):
        return {}
    return record if isinstance(record, dict) else {}


def _open(path: Path | Repository, tar: Path) -> PlainFile | UrlFile:
    if isinstance(path, Repository):
        return UrlFile(path.url(tar.as_posix()), path.login(), path.files[tar.as_posix()])
    return PlainFile(tar)


def _with_splits(path: Path | Repository, tars: list[Path]) -> list[tuple[str, Path, str, int]]:
    """(name, path, split, samples or 0) of each tar."""
    told: dict[str, tuple[str, int]] = {}
    info = info_path(tars[0].parent)
    try:
        there = info.as_posix() in path.files if isinstance(path, Repository) else info.is_file()
        table = _open(path, info) if there else None
        if table is not None and table.size < MAX_INFO_BYTES:
            text = table.read_at(0, table.size)
            table.close()
            for name, split in json.loads(text)["splits"].items():
                lengths = split.get("shard_lengths") or [0] * len(split["filenames"])
                for file, n in zip(split["filenames"], lengths, strict=True):
                    told.setdefault(file, (SPLITS.get(name, name), int(n)))
    except (OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError) as e:
        raise Error(f"{info} is no table of splits ({type(e).__name__}: {e}); correct it or move it away") from None
    rows = []
    for tar in tars:
        match = SPLIT.search(tar.name)
        rows.append((tar.name, tar, *told.get(tar.name, (SPLITS[match[1]] if match else "train", 0))))
    return sorted(rows, key=lambda row: (row[2] != "train", row[2], row[0]))
