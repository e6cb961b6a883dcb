"""From bytes on disk to samples: one module a kind of archive, all behind `Source`."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np

from mlpdata.sources.files import stamp

UNIT_PIXELS_BYTES = 192 << 20  # with what is encoded of them, what a worker holds in memory


@dataclass(slots=True)  # not frozen: that takes four times as long to make
class Sample:
    """One labelled image as the archive holds it."""

    key: str  # unique in its split, stable from run to run; letters, digits, `_`, `-`, `/`; no dot
    data: bytes | np.ndarray  # an encoded image, or pixels: uint8 (H, W, 3) RGB
    label: int  # position in the source's class list
    origin: str  # where it came from, for people: member path inside the archive, with [row] where there are rows
    split: str = ""  # where it is not its unit's


@dataclass(frozen=True, slots=True)
class Broken:
    """A sample that is listed in the archive and cannot be read from it, or a file that is none: both are listed."""

    origin: str
    reason: str
    split: str = ""  # where it is not its unit's
    is_data: bool = True  # False: a file that is none of the data (sources.files.is_system); listed, and no more


@dataclass(frozen=True, slots=True)
class Unit:
    """A piece of an archive that any worker can read alone, and again."""

    name: str  # unique in the run and equal in every run; letters, digits, `_`, `-`: it names a file
    split: str
    num_samples: int  # expected; 0 where only reading can tell
    num_bytes: int  # to read from the archive, for the progress line
    at: Any  # where the source finds it; picklable
    exact: bool = False  # whether num_samples is a promise: so many come, Broken ones included, or the source changed


def most_samples(res: int) -> int:
    """How many samples a unit may have: a worker holds their pixels, res * res of them, until all are written."""
    return max(500, min(20_000, UNIT_PIXELS_BYTES // (3 * res * res)))


@dataclass(frozen=True, kw_only=True)
class ClassFilter:
    """Which classes of an archive are taken, and what of them is held out."""

    min_class_size: int = 0  # classes with fewer images are left out
    val_per_class: int = 0  # the first so many by name are the split `val`, as in the ImageNet-21k-P processing
    classes: tuple[str, ...] | None = None  # only these, by name in the source, in this label order

    def __bool__(self) -> bool:
        return self != ClassFilter()

    def split_of(self, names: list[str]) -> dict[str, str]:
        """The split of each image of one class, by file name; {} for a class that is too small."""
        if len(names) < self.min_class_size:
            return {}
        held_out = set(sorted(names)[: self.val_per_class])
        return {name: "val" if name in held_out else "train" for name in names}


class Source(ABC):
    """An opened archive. Cheap to pickle: file handles are opened lazily, in each process.

    The constructor raises mlpdata.Error, in one line, for a missing, truncated or wrong archive.
    """

    classes: list[tuple[str, str]]  # (name in the source, readable name), in label order
    release: str  # which release of the data this is, recognised from the archive
    codec: str  # what its samples are: "jpg", "png" (any other encoded image) or "array"
    files: list[str]  # the files read, for the record and to notice that they changed
    splits: tuple[str, ...] = ()  # every split, where samples of one unit go to several
    warnings: tuple[str, ...] = ()  # what the user should know about the archive before the work starts
    drops_empty_classes = False  # whether a filter may leave classes without samples, which are then left out

    @abstractmethod
    def units(self) -> list[Unit]:
        """Every unit, in a fixed order, without reading the images. Called once, in the parent process."""

    def stamps(self) -> dict[str, str]:
        """What tells whether the files read are still those they were, by path; taken anew it is equal or they changed.

        Of local files and folders only: what is read from a URL is checked as it is read. Raises Error for a folder
        that cannot be read.
        """
        return {path: stamp(path) for path in self.files if not path.startswith(("http://", "https://", "hf:"))}

    @abstractmethod
    def samples(self, unit: Unit) -> Iterator[Sample | Broken]:
        """Read one unit. Damage costs only what is damaged: it yields Broken and goes on where that is possible."""
