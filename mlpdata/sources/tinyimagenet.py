"""TinyImageNet-200, read inside `tiny-imagenet-200.zip`."""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import xxhash

from mlpdata.archive.blob import PlainFile
from mlpdata.archive.zipdir import LOCAL_HEADER_BYTES, MAX_MEMBER_BYTES, read_directory, unpack
from mlpdata.errors import Error
from mlpdata.sources import Broken, Sample, Source, Unit, keys
from mlpdata.sources.files import IMAGE_SUFFIXES, is_system
from mlpdata.sources.folder import Folder
from mlpdata.sources.folder_layout import ANNOTATIONS, SYSTEM, parse_annotations

ROOT = "tiny-imagenet-200"
WNID = re.compile(r"n\d{8}")
IMAGES_A_UNIT = 2_000
MAX_READ_BYTES = 256 << 20  # at once; the members of a unit have 4 MB
HEADER_BYTES = LOCAL_HEADER_BYTES + (1 << 10)  # of a member, with its name and what may stand behind it
METADATA = ("wnids.txt", "words.txt", f"val/{ANNOTATIONS}")


@dataclass(frozen=True, repr=False)
class Members:
    """Some members of the zip."""

    labels: np.ndarray  # (N,) int32; -1 where none is given
    names: list[str]
    keys: list[str]
    entries: np.ndarray  # (N,) zipdir.FOUND

    def __repr__(self) -> str:  # stands for the content in the checksum of the plan
        content = xxhash.xxh3_64("\0".join((*self.names, *self.keys)).encode("utf-8", "surrogateescape"))
        content.update(self.labels.tobytes() + self.entries.tobytes())
        return f"Members({content.hexdigest()})"

    def take(self, numbers: list[int]) -> Members:
        names, their_keys = [self.names[i] for i in numbers], [self.keys[i] for i in numbers]
        return Members(self.labels[numbers], names, their_keys, self.entries[numbers])

    def packed(self) -> np.ndarray:
        """(N,) int64, bytes in the zip; of no member more than is read."""
        return np.minimum(self.entries["packed"], np.uint64(MAX_MEMBER_BYTES)).astype(np.int64)

    def rows(self) -> Iterator[tuple]:
        """(label, name, key, offset, packed, size, method, crc, flags) of each."""
        columns = (self.entries[f].tolist() for f in ("offset", "packed", "size", "method", "crc", "flags"))
        return zip(self.labels.tolist(), self.names, self.keys, *columns, strict=True)


@dataclass(slots=True)
class Place:
    """What the files of a folder in the zip are."""

    split: str = ""
    wnid: str = ""  # "": each file has its own, as in val
    left_out: str = ""  # why they are left out, where they are
    is_known: bool = False  # left out in every archive, without a word: test images have no labels
    numbers: list[int] = field(default_factory=list)  # of its images in the directory


class TinyImageNet(Source):
    """TinyImageNet's labelled splits: `train`, and `val` with the labels of val_annotations.txt.

    Classes are the sorted wnids (`wnids.txt` is not sorted). Raises Error for a missing, truncated or other archive.
    """

    codec = "jpg"
    release = ROOT

    def __init__(self, path: Path):
        self.path = Path(path)
        self.files = [str(path)]
        self._blob = PlainFile(self.path)
        directory = read_directory(self._blob)
        self._names, self._entries = directory.names, directory.entries
        self._root = self._find_root()
        texts = {name: i for i, name in enumerate(self._names) if name.endswith(".txt")}
        wnids = self._lines(texts, "wnids.txt")
        if strange := next((name for name in wnids if not WNID.fullmatch(name)), None):
            raise Error(f"{path}: wnids.txt has a line that is no wnid: {keys.shown(strange[:80])}")
        parted = (line.partition("\t") for line in self._lines(texts, "words.txt"))  # 82,115 of them
        wanted = set(wnids)
        words = {wnid: word for wnid, _, word in parted if wnid in wanted}
        self.classes = [(wnid, words.get(wnid) or wnid) for wnid in sorted(wanted)]
        self._labels = {wnid: i for i, (wnid, _) in enumerate(self.classes)}
        try:
            self._annotations = parse_annotations(self._text(texts, f"val/{ANNOTATIONS}"))
        except ValueError as e:
            raise Error(f"{path}: val/{ANNOTATIONS} {e}") from None
        self._left_out: list[Broken] = []
        self._members = self._sort_members()

    def __getstate__(self):
        # The workers get what they need with each unit.
        return {**self.__dict__, "_members": {}, "_annotations": {}, "_names": [], "_entries": None, "_left_out": []}

    def _find_root(self) -> str:
        """The folder in the zip that holds the data set, with its `/`."""
        named = {name for name in self._names if name.endswith("wnids.txt")}
        roots = {name[:-9] for name in named if name.rpartition("/")[2] == "wnids.txt" and not is_system(name)}
        if len(roots) != 1:
            found = f"several: {', '.join(sorted(map(keys.shown, roots))[:3])}" if roots else "none"
            first = keys.shown(min(self._names, default="-"))
            raise Error(f"{self.path} is not {ROOT}.zip: of wnids.txt it has {found}; its first member is {first}")
        return roots.pop()

    def _text(self, texts: dict[str, int], name: str) -> bytes:
        number = texts.get(f"{self._root}{name}")
        if number is None:
            raise Error(f"{self.path} is not {ROOT}.zip: it has no {self._root}{name}")
        data = self._read(*self._entries[["offset", "packed", "size", "method", "crc", "flags"]][number].tolist())
        if isinstance(data, str):
            raise Error(f"{self.path}: {name} {data}; get it again")
        return data

    def _lines(self, texts: dict[str, int], name: str) -> list[str]:
        lines = keys.text(self._text(texts, name).decode("utf-8", "surrogateescape")).split("\n")
        return [word for line in lines if (word := line.strip(" \r\t"))]

    # --------------------------------------------------------------------------------------------------- members

    def _sort_members(self) -> dict[str, Members]:
        """The members of each split, in the order of the directory; what is none of it is listed, and said."""
        places: dict[str, Place] = {}
        twice = self._repeated()
        for i, name in enumerate(self._names):
            folder, _, file = name.rpartition("/")
            if (place := places.get(folder)) is None:
                place = places[folder] = self._place(folder)
            if file.endswith(".JPEG") and file[:2] != "._" and not place.left_out and i not in twice:
                place.numbers.append(i)
            elif file and not place.is_known:
                reason = "is there twice" if i in twice else self._why_left_out(place, name)
                if reason is None:
                    place.numbers.append(i)
                elif reason:
                    is_data = not is_system(name) and (bool(place.split) or file.lower().endswith(IMAGE_SUFFIXES))
                    self._left_out.append(Broken(keys.text(name), reason, place.split, is_data))
        members = {split: self._members_of(split, places) for split in ("train", "val")}
        self._say(members)
        return members

    def _repeated(self) -> set[int]:
        """Numbers of the members whose name was there before."""
        if len(set(self._names)) == len(self._names):
            return set()
        seen: set[str] = set()
        return {i for i, name in enumerate(self._names) if name in seen or seen.add(name)}

    def _members_of(self, split: str, places: dict[str, Place]) -> Members:
        numbers: list[int] = []
        labels: list[int] = []
        found: list[str] = []
        for folder, place in places.items():
            if place.split != split or not place.numbers:
                continue
            start, prefix = len(folder) + 1 if folder else 0, f"{place.wnid}_"
            files = [self._names[i][start:] for i in place.numbers]
            stems = [file.rpartition(".")[0] or file for file in files]
            if place.wnid:
                labels += [self._labels.get(place.wnid, -1)] * len(files)
                found += [keys.part(s) if s.startswith(prefix) else f"{place.wnid}/{keys.part(s)}" for s in stems]
            else:
                labels += [self._labels.get(self._annotations.get(file, ""), -1) for file in files]
                found += map(keys.part, stems)
            numbers += place.numbers
        if len(set(found)) < len(found):
            found = keys.distinct(found)
        names = [self._names[i] for i in numbers]
        return Members(np.array(labels, np.int32), names, found, self._entries[numbers])

    def _place(self, folder: str) -> Place:
        path = f"{folder}/" if folder else ""
        if is_system(path):
            return Place(left_out=SYSTEM)
        if not path.startswith(self._root) or {"", ".", ".."} & set(path.split("/")[:-1]):
            return Place(left_out=f"is not in {self._root or 'the folders of the data set'}")
        top, _, below = path.removeprefix(self._root).partition("/")
        if top == "test":
            return Place(is_known=True)
        if top == "val":
            return Place("val")
        if top == "train" and below:
            return Place("train", below.partition("/")[0])
        return Place(left_out="is no part of the data set")

    def _why_left_out(self, place: Place, name: str) -> str | None:
        """Why a file is no sample; "" where it is known and needs no word, None where it is a sample."""
        file = name.rpartition("/")[2]
        if name.removeprefix(self._root) in METADATA or file == f"{place.wnid}_boxes.txt":
            return ""
        return SYSTEM if is_system(file) else place.left_out or None

    def _say(self, members: dict[str, Members]) -> None:
        warnings = []
        if self._left_out:
            names = ", ".join(keys.shown(broken.origin) for broken in self._left_out[:3])
            warnings.append(f"{self.path}: {len(self._left_out):,} members left out: {names}, ...")
        if empty := sorted(set(range(len(self.classes))) - set(members["train"].labels.tolist())):
            first = self.classes[empty[0]][0]
            warnings.append(f"{self.path}: {len(empty):,} classes of wnids.txt have no train images: {first}, ...")
        there = {name.rpartition("/")[2] for name in members["val"].names}
        if missing := len(self._annotations.keys() - there):
            warnings.append(f"{self.path} lacks {missing:,} of the {len(self._annotations):,} val images with labels")
        self.warnings = tuple(warnings)

    def units(self) -> list[Unit]:
        units = []
        for split, members in self._members.items():
            by_offset = members.entries["offset"].argsort(kind="stable").tolist()
            for k in range(0, len(by_offset), IMAGES_A_UNIT):
                part = members.take(by_offset[k : k + IMAGES_A_UNIT])
                num_bytes = int(part.packed().sum())
                units.append(Unit(f"{split}-{k:06d}", split, len(part.names), num_bytes, part, exact=True))
        if self._left_out and units:
            units.append(Unit("left-out", units[0].split, 0, 0, tuple(self._left_out)))
        return units

    def samples(self, unit: Unit) -> Iterator[Sample | Broken]:
        if isinstance(unit.at, tuple):
            yield from unit.at
            return
        # Members of a unit lie close together: one read for all of them, plus what local headers may add at the end.
        offsets = unit.at.entries["offset"].astype(np.int64)
        start, end = int(offsets[0]), int((offsets + unit.at.packed()).max()) + (1 << 16)
        close = end - start < min(2 * unit.num_bytes + (1 << 20), MAX_READ_BYTES)
        whole = self._blob.read_at(start, end - start) if close else None
        for label, name, key, *facts in unit.at.rows():
            if label < 0:
                yield Broken(keys.text(name), "no class is given for it")
                continue
            data = self._read(*facts) if whole is None else unpack(whole, facts[0] - start, *facts[1:])
            yield Broken(keys.text(name), data) if isinstance(data, str) else Sample(key, data, label, keys.text(name))

    def _read(self, offset: int, packed: int, *rest: int) -> bytes | str:
        """One member, found by the directory's numbers: its content, or why it cannot be had."""
        return unpack(self._blob.read_at(offset, HEADER_BYTES + min(packed, MAX_MEMBER_BYTES)), 0, packed, *rest)


def extracted(path: Path, res: int, splits: tuple[str, ...]) -> Folder:
    """The archive's folder, or a directory that holds it, extracted. See Folder."""
    source = Folder(path / ROOT if (path / ROOT).is_dir() else path, res=res, only=splits)
    source.release = ROOT
    return source
