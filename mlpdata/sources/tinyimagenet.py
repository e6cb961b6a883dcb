"""TinyImageNet-200, read inside `tiny-imagenet-200.zip`."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from mlpdata.manifest import Error
from mlpdata.sources import Broken, Sample, Source, Unit
from mlpdata.sources.blob import PlainFile
from mlpdata.sources.zipdir import LOCAL_HEADER, MAX_MEMBER_BYTES, read_directory, unpack

ROOT = "tiny-imagenet-200"
IMAGES_A_UNIT = 2_000
HEADER_BYTES = LOCAL_HEADER.size + (1 << 10)  # of a member, with its name and what may stand behind it


class TinyImageNet(Source):
    """TinyImageNet's labelled splits: `train`, and `val` with the labels of val_annotations.txt.

    Classes are the sorted wnids (`wnids.txt` is not sorted). Raises Error for a missing, truncated or other archive.
    """

    codec = "jpg"
    release = ROOT

    def __init__(self, path: Path):
        self.path = Path(path)
        self.files = [str(path)]
        try:
            self._blob = PlainFile(self.path)
        except FileNotFoundError:
            raise Error(f"no archive at {path}") from None
        directory = read_directory(self._blob)
        e = directory.entries
        columns = (e[name].tolist() for name in ("offset", "packed", "size", "method", "crc", "flags"))
        self._rows = list(zip(directory.names, *columns, strict=True))
        texts = {row[0]: row for row in self._rows if row[0].endswith(".txt") and row[0].count("/") < 3}
        if f"{ROOT}/wnids.txt" not in texts:
            first = min(directory.names, default="-")
            raise Error(f"{path} is not {ROOT}.zip: it has no {ROOT}/wnids.txt, its first member is {first}")
        words = dict(line.split("\t", 1) for line in self._text(texts, "words.txt") if "\t" in line)
        self.classes = [(w, words.get(w, w)) for w in sorted(set(self._text(texts, "wnids.txt")))]
        self._labels = {wnid: i for i, (wnid, _) in enumerate(self.classes)}
        self._annotations = {}
        for line in self._text(texts, "val/val_annotations.txt"):
            file, _, rest = line.partition("\t")
            self._annotations[file] = rest.split("\t")[0]

    def __getstate__(self):
        # The workers get what they need with each unit.
        return {**self.__dict__, "_rows": [], "_annotations": {}}

    def _text(self, texts: dict[str, tuple], name: str) -> list[str]:
        row = texts.get(f"{ROOT}/{name}")
        if row is None:
            raise Error(f"{self.path} is not {ROOT}.zip: it has no {ROOT}/{name}")
        data = self._read(row)
        if isinstance(data, str):
            raise Error(f"{self.path}: {name} {data}; get it again")
        return [line.strip() for line in data.decode("utf-8", "replace").splitlines() if line.strip()]

    def units(self) -> list[Unit]:
        rows: dict[str, list] = {"train": [], "val": []}
        folders: dict[str, tuple[str, int] | None] = {}  # -> split, label; a label of -1: its images have their own
        for row in self._rows:
            folder, _, file = row[0].rpartition("/")
            if folder not in folders:
                folders[folder] = self._folder(folder)
            place = folders[folder]
            if place is None or not file.lower().endswith((".jpeg", ".jpg")):
                continue
            split, label = place
            if split == "val":
                label = self._labels.get(self._annotations.get(file, ""), -1)
            rows[split].append((label, *row))
        units = []
        for split, all_rows in rows.items():
            all_rows.sort(key=lambda r: r[2])  # in the order of the file
            for k in range(0, len(all_rows), IMAGES_A_UNIT):
                part = all_rows[k : k + IMAGES_A_UNIT]
                units.append(Unit(f"{split}-{k:06d}", split, len(part), sum(r[3] for r in part), part))
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
        start = unit.at[0][2]
        end = max(r[2] + r[3] for r in unit.at) + (1 << 16)
        whole = self._blob.read_at(start, end - start) if end - start < 2 * unit.num_bytes + (1 << 20) else None
        for label, name, *facts in unit.at:
            if label < 0:
                yield Broken(name, "no class is given for it")
                continue
            data = self._read((name, *facts)) if whole is None else unpack(whole, facts[0] - start, *facts[1:])
            if isinstance(data, str):
                yield Broken(name, data)
            else:
                yield Sample(name.rpartition("/")[2].rpartition(".")[0].replace(".", "_"), data, label, name)

    def _read(self, row: tuple) -> bytes | str:
        """One member: (name, offset, packed, size, method, crc, flags) -> its content, or why it cannot be had."""
        _, offset, packed, *rest = row
        return unpack(self._blob.read_at(offset, HEADER_BYTES + min(packed, MAX_MEMBER_BYTES)), 0, packed, *rest)
