"""Arrays of pixels in one folder of a tar, as the authors of CIFAR and STL-10 ship them."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Collection, Iterator
from pathlib import Path

from mlpdata.archive.blob import Blob
from mlpdata.archive.gzip import GzipFile
from mlpdata.archive.tarscan import Damage, Member, scan
from mlpdata.errors import Error
from mlpdata.sources import keys
from mlpdata.sources.base import Broken, Sample, Source, Unit, left_out_units, left_out_warnings
from mlpdata.sources.files import is_system
from mlpdata.system.format import plural

NOT_READ = "no part of the data set that is read"


class ArrayArchive(Source):
    """A source that reads known members of one folder, and lists all other members as left out."""

    codec = "array"

    def __init__(self, path: Path, folder: str):
        self.path, self.files, self.folder = path, [str(path)], folder
        self._members: dict[str, Member] = {}  # of the folder, by file name
        self._left_out: list[Broken] = []

    def __getstate__(self):
        return {**self.__dict__, "_left_out": []}

    def _list_members(self, blob: Blob, hold_bytes: int = 0) -> None:
        """List the tar. hold_bytes: see GzipFile.complete. Raises Error for a damaged tar, and for a name twice."""
        if isinstance(blob, GzipFile):
            blob.complete(hold_bytes)
            if blob.damage:
                raise Error(f"{self.path} is damaged: {blob.damage}; get it again")
        for item in scan(blob.read_at, 0, blob.size):
            if isinstance(item, Damage):
                if item.last and item.offset == 0 and item.member is None:
                    break
                if item.lost or item.last:
                    raise Error(f"{self.path} is truncated or damaged ({item.reason}); get it again")
                self.warnings += (f"{self.path}: {item.reason}",)
                continue
            folder, _, name = item.name.removeprefix("./").rpartition("/")
            if folder != self.folder or not isinstance(item, Member) or is_system(name):
                self._left_out.append(Broken(keys.text(item.name), NOT_READ, is_data=False))
            elif name in self._members:
                raise Error(f"{self.path} has {keys.shown(name)} twice; get it again")
            else:
                self._members[name] = item
        if not self._members and not self._left_out:
            raise Error(f"{self.path} is not a tar archive, plain or gzip, or an empty one; expected the authors' own")

    def _set_classes(self, names: list[str], member: str, number: int) -> None:
        """Take the names in a member as the classes. Raises Error where they are not so many, or not all different."""
        num_different = len({*names} - {""})
        if len(names) != number or num_different < number:
            counts = f"{plural(len(names), 'class name')}, {num_different:,} of them different and not empty"
            raise Error(f"{self.path}: {member} has {counts}; {self.folder} has {number}")
        self.classes = [(name, name) for name in names]

    def _leave_out_others(self, known: Collection[str]) -> None:
        """List the members of the folder that are not known, and warn of everything that is left out."""
        others = (name for name in self._members if name not in known)
        self._left_out += [Broken(keys.text(f"{self.folder}/{name}"), NOT_READ, is_data=False) for name in others]
        self.warnings += left_out_warnings(self.path, self._left_out)

    def units(self) -> list[Unit]:
        return [*self._row_units(), *left_out_units(self._left_out, "train")]

    def samples(self, unit: Unit) -> Iterator[Sample | Broken]:
        return iter(unit.content) if isinstance(unit.content[0], Broken) else self._row_samples(unit)

    @abstractmethod
    def _row_units(self) -> list[Unit]:
        """Units of rows of the arrays."""

    @abstractmethod
    def _row_samples(self, unit: Unit) -> Iterator[Sample]:
        """The samples of such a unit."""
