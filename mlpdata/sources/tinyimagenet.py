"""TinyImageNet-200, read inside `tiny-imagenet-200.zip`."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import xxhash

from mlpdata.archive.blob import PlainFile
from mlpdata.archive.zip import LOCAL_HEADER_BYTES, MAX_MEMBER_BYTES, read_directory, unpack
from mlpdata.errors import Error
from mlpdata.labels import WNID
from mlpdata.sources import keys
from mlpdata.sources.base import Broken, Sample, Source, Unit, left_out_units, left_out_warnings
from mlpdata.sources.files import IMAGE_SUFFIXES, is_system
from mlpdata.sources.folder import Folder
from mlpdata.sources.folder_layout import ANNOTATIONS, SYSTEM, parse_annotations
from mlpdata.system.format import plural

ROOT = "tiny-imagenet-200"
IMAGES_A_UNIT = 2_000
MAX_READ_BYTES = 256 << 20  # at once; the members of a unit have 4 MB
MAX_LOCAL_BYTES = 1 << 16  # of a local header's name and extra field
HEADER_BYTES = LOCAL_HEADER_BYTES + (1 << 10)  # of a member, with its name and what may stand behind it
METADATA = ("wnids.txt", "words.txt", f"val/{ANNOTATIONS}")
READ_FIELDS = ["offset", "packed", "size", "method", "crc", "flags"]  # of a zip's member, as `unpack` takes them


@dataclass(frozen=True, repr=False)
class ZipImages:
    """Images in the zip."""

    labels: np.ndarray  # (N,) int32; -1 where no list gives a class
    names: list[str]
    keys: list[str]
    members: np.ndarray  # (N,) zip.MEMBER

    def __repr__(self) -> str:  # a hash of the content, for the checksum of a conversion's plan
        content = xxhash.xxh3_64("\0".join((*self.names, *self.keys)).encode("utf-8", "surrogateescape"))
        content.update(self.labels.tobytes() + self.members.tobytes())
        return f"Members({content.hexdigest()})"

    def take(self, numbers: list[int]) -> ZipImages:
        names, image_keys = [self.names[i] for i in numbers], [self.keys[i] for i in numbers]
        return ZipImages(self.labels[numbers], names, image_keys, self.members[numbers])

    def packed(self) -> np.ndarray:
        """(N,) int64, bytes to read in the zip."""
        return np.minimum(self.members["packed"], np.uint64(MAX_MEMBER_BYTES)).astype(np.int64)

    def rows(self) -> Iterator[tuple]:
        """(label, name, key, *READ_FIELDS) of each."""
        columns = (self.members[name].tolist() for name in READ_FIELDS)
        return zip(self.labels.tolist(), self.names, self.keys, *columns, strict=True)


@dataclass(slots=True)
class FolderRole:
    """What the files of a folder in the zip are."""

    split: str = ""
    wnid: str = ""  # "": a list gives the class of each file, as in val
    left_out: str = ""  # why the files are left out, if they are
    is_known: bool = False  # whether every archive has the files, so that nothing is said: test images have no labels
    numbers: list[int] = field(default_factory=list)  # positions of its images in the zip's directory


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
        self._names, self._members = directory.names, directory.members
        self._root = self._find_root()
        texts = {name: i for i, name in enumerate(self._names) if name.endswith(".txt")}
        wnids = keys.lines(self._text(texts, "wnids.txt"))
        if strange := next((name for name in wnids if not WNID.fullmatch(name)), None):
            raise Error(f"{path}: wnids.txt has a line that is no wnid: {keys.shown(strange[:80])}")
        parts = (line.partition("\t") for line in keys.lines(self._text(texts, "words.txt")))
        words = {wnid: word for wnid, _, word in parts}
        self.classes = [(wnid, words.get(wnid) or wnid) for wnid in sorted(set(wnids))]
        self._labels = {wnid: i for i, (wnid, _) in enumerate(self.classes)}
        try:
            self._annotations = parse_annotations(self._text(texts, f"val/{ANNOTATIONS}"))
        except ValueError as e:
            raise Error(f"{path}: val/{ANNOTATIONS} {e}") from None
        self._left_out: list[Broken] = []
        roles = self._sort_into_folders()
        self._images = {split: self._images_of(split, roles) for split in ("train", "val")}
        self._warn()

    def __getstate__(self):
        # Each unit carries its own images; workers need nothing else.
        return {**self.__dict__, "_images": {}, "_annotations": {}, "_names": [], "_members": None, "_left_out": []}

    def _find_root(self) -> str:
        """The folder in the zip that holds the data set, with its `/`."""
        lists = {name for name in self._names if name.endswith("wnids.txt")}
        roots = {name[:-9] for name in lists if name.rpartition("/")[2] == "wnids.txt" and not is_system(name)}
        if len(roots) != 1:
            several = f"several: {', '.join(sorted(map(keys.shown, roots))[:3])}" if roots else "none"
            first = keys.shown(min(self._names, default="-"))
            raise Error(f"{self.path} is not {ROOT}.zip: of wnids.txt it has {several}; its first member is {first}")
        return roots.pop()

    def _text(self, texts: dict[str, int], name: str) -> bytes:
        number = texts.get(f"{self._root}{name}")
        if number is None:
            raise Error(f"{self.path} is not {ROOT}.zip: it has no {self._root}{name}")
        data = self._read(*self._members[READ_FIELDS][number].tolist())
        if isinstance(data, str):
            raise Error(f"{self.path}: {name} {data}; get it again")
        return data

    # -------------------------------------------------------------------------------------------------- folders

    def _sort_into_folders(self) -> dict[str, FolderRole]:
        """The role of every folder, with its images in the order of the directory; all other files are left out."""
        roles: dict[str, FolderRole] = {}
        repeated = self._repeated()
        for i, name in enumerate(self._names):
            folder, _, file = name.rpartition("/")
            if (role := roles.get(folder)) is None:
                role = roles[folder] = self._role(folder)
            if file.endswith(".JPEG") and file[:2] != "._" and not role.left_out and i not in repeated:
                role.numbers.append(i)  # the fast path: nearly all of the 120,000
            elif file and not role.is_known:
                reason = "is there twice" if i in repeated else self._why_left_out(role, name)
                if reason is None:
                    role.numbers.append(i)
                elif reason:
                    is_data = not is_system(name) and (bool(role.split) or file.lower().endswith(IMAGE_SUFFIXES))
                    self._left_out.append(Broken(keys.text(name), reason, role.split, is_data))
        return roles

    def _repeated(self) -> set[int]:
        """Positions of the members whose name came before."""
        if len(set(self._names)) == len(self._names):
            return set()
        seen: set[str] = set()
        return {i for i, name in enumerate(self._names) if name in seen or seen.add(name)}

    def _role(self, folder: str) -> FolderRole:
        path = f"{folder}/" if folder else ""
        if is_system(path):
            return FolderRole(left_out=SYSTEM)
        if not path.startswith(self._root) or {"", ".", ".."} & set(path.split("/")[:-1]):
            return FolderRole(left_out=f"is not in {self._root or 'the folders of the data set'}")
        top, _, below = path.removeprefix(self._root).partition("/")
        if top == "test":
            return FolderRole(is_known=True)
        if top == "val":
            return FolderRole("val")
        if top == "train" and below:
            return FolderRole("train", below.partition("/")[0])
        return FolderRole(left_out="is no part of the data set")

    def _why_left_out(self, role: FolderRole, name: str) -> str | None:
        """Why a file is no sample; "" for a file that every archive has, None for a sample."""
        file = name.rpartition("/")[2]
        if name.removeprefix(self._root) in METADATA or file == f"{role.wnid}_boxes.txt":
            return ""
        return SYSTEM if is_system(file) else role.left_out or None

    def _images_of(self, split: str, roles: dict[str, FolderRole]) -> ZipImages:
        numbers: list[int] = []
        labels: list[int] = []
        image_keys: list[str] = []
        for folder, role in roles.items():
            if role.split != split or not role.numbers:
                continue
            name_start, prefix = len(folder) + 1 if folder else 0, f"{role.wnid}_"
            files = [self._names[i][name_start:] for i in role.numbers]
            stems = [file.rpartition(".")[0] or file for file in files]
            if role.wnid:
                labels += [self._labels.get(role.wnid, -1)] * len(files)
                image_keys += [keys.part(s) if s.startswith(prefix) else f"{role.wnid}/{keys.part(s)}" for s in stems]
            else:
                labels += [self._labels.get(self._annotations.get(file, ""), -1) for file in files]
                image_keys += map(keys.part, stems)
            numbers += role.numbers
        names = [self._names[i] for i in numbers]
        return ZipImages(np.array(labels, np.int32), names, keys.distinct(image_keys), self._members[numbers])

    def _warn(self) -> None:
        self.warnings = left_out_warnings(self.path, self._left_out)
        if empty := sorted(set(range(len(self.classes))) - set(self._images["train"].labels.tolist())):
            first = self.classes[empty[0]][0]
            self.warnings += (f"{self.path}: {plural(len(empty), 'class')} of wnids.txt without train images: {first}",)
        files = {name.rpartition("/")[2] for name in self._images["val"].names}
        if missing := len(self._annotations.keys() - files):
            of = f"of the {len(self._annotations):,} val images with labels"
            self.warnings += (f"{self.path} lacks {missing:,} {of}",)

    # -------------------------------------------------------------------------------------------------- samples

    def units(self) -> list[Unit]:
        units = []
        for split, images in self._images.items():
            by_offset = images.members["offset"].argsort(kind="stable").tolist()
            for k in range(0, len(by_offset), IMAGES_A_UNIT):
                block = images.take(by_offset[k : k + IMAGES_A_UNIT])
                num_bytes = int(block.packed().sum())
                units.append(Unit(f"{split}-{k:06d}", split, len(block.names), num_bytes, block, exact=True))
        return units + (left_out_units(self._left_out, units[0].split) if units else [])

    def samples(self, unit: Unit) -> Iterator[Sample | Broken]:
        if isinstance(unit.content, tuple):
            yield from unit.content
            return
        # Members of a unit lie close together: one read brings them all, with the local header of the last.
        offsets = unit.content.members["offset"].astype(np.int64)
        start, stop = int(offsets[0]), int((offsets + unit.content.packed()).max()) + MAX_LOCAL_BYTES
        is_close = stop - start < min(2 * unit.num_bytes + (1 << 20), MAX_READ_BYTES)
        block = self._blob.read_at(start, stop - start) if is_close else None
        for label, name, key, offset, *fields in unit.content.rows():
            origin = keys.text(name)
            if label < 0:
                yield Broken(origin, "no class is given for it")
                continue
            data = self._read(offset, *fields) if block is None else unpack(block, offset - start, *fields)
            yield Broken(origin, data) if isinstance(data, str) else Sample(key, data, label, origin)

    def _read(self, offset: int, packed: int, *fields: int) -> bytes | str:
        """The content of one member, or the reason why it cannot be read. See `unpack`."""
        return unpack(self._blob.read_at(offset, HEADER_BYTES + min(packed, MAX_MEMBER_BYTES)), 0, packed, *fields)


def extracted(path: Path, res: int, splits: tuple[str, ...]) -> Folder:
    """The archive's folder, or a directory that holds it, extracted. See Folder."""
    source = Folder(path / ROOT if (path / ROOT).is_dir() else path, res=res, only=splits)
    source.release = ROOT
    return source
