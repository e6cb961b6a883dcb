"""TinyImageNet-200, read inside `tiny-imagenet-200.zip`."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import xxhash

from mlpdata.errors import Error
from mlpdata.sources import Broken, Sample, Source, Unit
from mlpdata.sources.blob import PlainFile
from mlpdata.sources.zipdir import LOCAL_HEADER_BYTES, MAX_MEMBER_BYTES, read_directory, unpack

ROOT = "tiny-imagenet-200"
IMAGES_A_UNIT = 2_000
EXTENSIONS = (".JPEG", ".jpeg", ".jpg", ".JPG")
HEADER_BYTES = LOCAL_HEADER_BYTES + (1 << 10)  # of a member, with its name and what may stand behind it


@dataclass(frozen=True, repr=False)
class Members:
    """Some members of the zip."""

    labels: np.ndarray  # (N,) int32; -1 where none is given
    names: list[str]
    entries: np.ndarray  # (N,) ENTRY

    def __repr__(self) -> str:  # stands for the content in the checksum of the plan
        content = xxhash.xxh3_64("\0".join(self.names).encode())
        content.update(self.labels.tobytes() + self.entries.tobytes())
        return f"Members({content.hexdigest()})"

    def take(self, numbers, labels=None) -> Members:
        """Those of some numbers, with other labels if they are given."""
        names = [self.names[i] for i in numbers]
        numbers = np.array(numbers, np.int64)
        return Members(
            self.labels[numbers] if labels is None else np.array(labels, np.int32), names, self.entries[numbers]
        )

    def rows(self) -> Iterator[tuple]:
        """(label, name, offset, packed, size, method, crc, flags) of each."""
        columns = (self.entries[f].tolist() for f in ("offset", "packed", "size", "method", "crc", "flags"))
        return zip(self.labels.tolist(), self.names, *columns, strict=True)


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
        self._members = Members(np.zeros(len(directory.names), np.int32), directory.names, directory.entries)
        texts = {name: i for i, name in enumerate(directory.names) if name.endswith(".txt") and name.count("/") < 3}
        if f"{ROOT}/wnids.txt" not in texts:
            first = min(directory.names, default="-")
            raise Error(f"{path} is not {ROOT}.zip: it has no {ROOT}/wnids.txt, its first member is {first}")
        wnids = set(self._text(texts, "wnids.txt"))
        parted = (line.partition("\t") for line in self._text(texts, "words.txt"))  # 82,115 of them
        words = {wnid: word for wnid, _, word in parted if wnid in wnids}
        self.classes = [(wnid, words.get(wnid) or wnid) for wnid in sorted(wnids)]
        self._labels = {wnid: i for i, (wnid, _) in enumerate(self.classes)}
        self._annotations = {}
        for line in self._text(texts, "val/val_annotations.txt"):
            file, _, rest = line.partition("\t")
            self._annotations[file] = rest.split("\t")[0]

    def __getstate__(self):
        # The workers get what they need with each unit.
        return {**self.__dict__, "_members": None, "_annotations": {}}

    def _text(self, texts: dict[str, int], name: str) -> list[str]:
        number = texts.get(f"{ROOT}/{name}")
        if number is None:
            raise Error(f"{self.path} is not {ROOT}.zip: it has no {ROOT}/{name}")
        _, _, *facts = next(self._members.take([number]).rows())
        data = self._read(*facts)
        if isinstance(data, str):
            raise Error(f"{self.path}: {name} {data}; get it again")
        return [line.strip() for line in data.decode("utf-8", "replace").splitlines() if line.strip()]

    def units(self) -> list[Unit]:
        numbers: dict[str, list[int]] = {"train": [], "val": []}
        labels: dict[str, list[int]] = {"train": [], "val": []}
        folders: dict[str, tuple[str, int] | None] = {}  # -> split, label; a label of -1: its images have their own
        for i, name in enumerate(self._members.names):
            folder, _, file = name.rpartition("/")
            if folder not in folders:
                folders[folder] = self._folder(folder)
            place = folders[folder]
            if place is None or not file.endswith(EXTENSIONS):
                continue
            split, label = place
            if split == "val":
                label = self._labels.get(self._annotations.get(file, ""), -1)
            numbers[split].append(i)
            labels[split].append(label)
        units = []
        for split in numbers:
            of_split = self._members.take(numbers[split], labels[split])
            by_offset = of_split.entries["offset"].argsort(kind="stable")
            for k in range(0, len(by_offset), IMAGES_A_UNIT):
                part = of_split.take(by_offset[k : k + IMAGES_A_UNIT])
                num_bytes = int(part.entries["packed"].sum(dtype=np.int64))
                units.append(Unit(f"{split}-{k:06d}", split, len(part.names), num_bytes, part))
        return units

    def _folder(self, folder: str) -> tuple[str, int] | None:
        """The split and label of the images of a folder; None where they have none, as in `test`."""
        parts = folder.split("/")
        if parts == [ROOT, "val", "images"]:
            return "val", -1
        if parts[:2] == [ROOT, "train"] and parts[3:] == ["images"]:
            return "train", self._labels.get(parts[2], -1)
        return None

    def samples(self, unit: Unit) -> Iterator[Sample | Broken]:
        # Members of a unit lie close together: one read for all of them, plus what local headers may add at the end.
        offsets, packed = unit.at.entries["offset"].astype(np.int64), unit.at.entries["packed"]
        start, end = int(offsets[0]), int((offsets + packed).max()) + (1 << 16)
        whole = self._blob.read_at(start, end - start) if end - start < 2 * unit.num_bytes + (1 << 20) else None
        for label, name, *facts in unit.at.rows():
            if label < 0:
                yield Broken(name, "no class is given for it")
                continue
            data = self._read(*facts) if whole is None else unpack(whole, facts[0] - start, *facts[1:])
            if isinstance(data, str):
                yield Broken(name, data)
            else:
                yield Sample(name.rpartition("/")[2].rpartition(".")[0].replace(".", "_"), data, label, name)

    def _read(self, offset: int, packed: int, *rest: int) -> bytes | str:
        """One member, found by the directory's numbers: its content, or why it cannot be had."""
        return unpack(self._blob.read_at(offset, HEADER_BYTES + min(packed, MAX_MEMBER_BYTES)), 0, packed, *rest)
