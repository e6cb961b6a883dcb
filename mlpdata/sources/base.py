"""What every source of samples is made of: `Sample`, `Unit`, `ClassFilter`, and `Source` itself."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Collection, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from mlpdata.errors import Error
from mlpdata.sources import keys
from mlpdata.sources.files import stamp
from mlpdata.sources.keys import shown
from mlpdata.system.format import plural

UNIT_PIXELS_BYTES = 192 << 20  # the pixels of a unit that a worker holds in memory, beside their encoded form


@dataclass(slots=True)  # not frozen: creating a frozen one takes four times as long
class Stored:
    """What a shard directory knows of a sample that it holds, whose `data` is at the size of the output or above it."""

    source_size: tuple[int, int]  # (width, height) of the original
    size: tuple[int, int]  # (width, height) as it is stored
    is_final: bool  # it stays as it is: nothing is resized
    digest: int  # XXH3-64 of its pixels, before any lossy encoding
    codec: str  # of `data`: "jpg", "png", or "raw" for pixels
    pixels: np.ndarray | None = None  # uint8 (H, W, 3), where they are at hand beside an encoding


@dataclass(slots=True)
class Sample:
    """One labelled image as the archive holds it."""

    key: str  # unique in its split, the same in every run; letters, digits, `_`, `-`, `/`; no dot
    data: bytes | np.ndarray  # an encoded image, or pixels: uint8 (H, W, 3) RGB
    label: int  # position in the source's class list
    origin: str  # for people: the member's path inside the archive, with [row] where there are rows
    split: str = ""  # where it differs from the unit's
    stored: Stored | None = None  # where the source is a shard directory


@dataclass(frozen=True, slots=True)
class Broken:
    """A sample of the archive that cannot be read, or a file that is no sample. Both are listed in the output."""

    origin: str
    reason: str
    split: str = ""  # where it differs from the unit's
    is_data: bool = True  # False: a file that is no part of the data (sources.files.is_system): listed, not counted
    is_counted: bool = False  # whether an exact Unit.num_samples includes it although is_data is False


@dataclass(frozen=True, slots=True)
class TooSmall:
    """A class that the class filter leaves out; its size became known only when it was read."""

    class_name: str
    num_images: int


@dataclass(frozen=True, slots=True)
class Unit:
    """A piece of an archive that any worker can read alone, and again."""

    name: str  # unique in the run and the same in every run; letters, digits, `_`, `-`: it becomes a file name
    split: str
    num_samples: int  # expected; 0 where only reading can tell
    num_bytes: int  # to read from the archive, for the progress line
    content: Any  # what of the archive it is, for the source to read; picklable
    exact: bool = False  # whether exactly num_samples come, Broken ones included, unless the source changed
    splits: tuple[str, ...] = ()  # the splits its samples may have; (): its own, or any of the source's `splits`


def most_samples(res: int) -> int:
    """How many samples a unit may have: a worker holds their pixels, res * res each, until all are written.

    >>> most_samples(32), most_samples(64), most_samples(1024)
    (20000, 16384, 500)
    """
    return max(500, min(20_000, UNIT_PIXELS_BYTES // (3 * res * res)))


def left_out_units(left_out: list[Broken], split: str) -> list[Unit]:
    """The unit that lists the files which are no samples; none where there are none."""
    return [Unit("left-out", split, 0, 0, tuple(left_out))] if left_out else []


def left_out_warnings(path: Path, left_out: list[Broken]) -> tuple[str, ...]:
    """The warning that names the first of them."""
    names = ", ".join(keys.shown(broken.origin) for broken in left_out[:3])
    more = ", ..." if len(left_out) > 3 else ""
    return (f"{path}: {plural(len(left_out), 'member')} left out: {names}{more}",) if left_out else ()


class NothingLeft(Error):
    """The options leave no sample to convert: the same command can never succeed."""


@dataclass(frozen=True, kw_only=True)
class ClassFilter:
    """Which classes of an archive are taken, and how many images of each are held out.

    >>> ClassFilter(min_class_size=3, val_per_class=1).split_of("cat", ["b.jpg", "a.jpg", "c.jpg"])
    {'b.jpg': 'train', 'a.jpg': 'val', 'c.jpg': 'train'}
    """

    min_class_size: int = 0  # classes with fewer images are left out
    val_per_class: int = 0  # the first so many by name are the split `val`, as in the ImageNet-21k-P processing
    classes: tuple[str, ...] | None = None  # only these, by name in the source, in this label order
    is_default: bool = False  # whether it is the data set's own, not the user's

    def __bool__(self) -> bool:
        return self != ClassFilter()

    def beside_splits(self) -> ClassFilter:
        """The filter for a source that has splits of its own, which take precedence over a default filter."""
        return ClassFilter() if self.is_default else self

    def only_classes(self, source: str) -> ClassFilter:
        """The filter for a source with splits of its own that can apply `classes` alone. Raises Error for class sizes.

        source: what the source is, with its path; the Error begins with it.
        """
        applied = self.beside_splits()
        if applied.min_class_size or applied.val_per_class:
            raise Error(f"{source}: of the class filters it takes only --classes")
        return applied

    def choose(self, known: Collection[str], source: object) -> list[str]:
        """The names of the classes to take, in label order. known: the names in the source, in its order.

        Raises Error for a class that the source lacks.
        """
        in_source = set(known)
        if missing := [name for name in self.classes or () if name not in in_source]:
            raise Error(
                f"{source} lacks {len(missing):,} of the {plural(len(self.classes or ()), 'class')} asked for: "
                f"{shown(missing[0])}"
            )
        return list(self.classes or known)

    def takes(self, class_name: str, num_images: int) -> bool:
        """Whether a class is large enough. Raises Error where val_per_class leaves no image of it for training."""
        if num_images < self.min_class_size:
            return False
        if 0 < num_images <= self.val_per_class:
            raise NothingLeft(
                f"class {class_name} has {plural(num_images, 'image')}: --val-per-class {self.val_per_class} leaves "
                f"none of them for training; hold out fewer, or leave such classes out with --min-class-size "
                f"{self.val_per_class + 1}"
            )
        return True

    def none_left(self, sizes: dict[str, int]) -> Error:
        """The Error where every class is too small. sizes: number of images by class."""
        largest = max(sizes, key=lambda name: (sizes[name], name), default=None)
        hint = f"the largest is {largest} with {sizes[largest]:,}" if largest else "there is none"
        return NothingLeft(f"no class has {plural(self.min_class_size, 'image')} ({hint}); lower --min-class-size")

    def split_of(self, class_name: str, names: list[str]) -> dict[str, str]:
        """The split of each image of one class, by file name; {} for a class that is too small. Raises as `takes`."""
        if not self.takes(class_name, len(names)):
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
    files: list[str]  # the files read, for the record and to notice changes
    given: str = ""  # what `--source` says of it where it lies: no path, and nothing of a login; "" for none
    splits: tuple[str, ...] = ()  # every split, where samples of one unit go to several
    warnings: tuple[str, ...] = ()  # what the user should know about the archive before the work starts
    notes: tuple[str, ...] = ()  # what was chosen, for the user; nothing to worry about
    class_filter: ClassFilter = ClassFilter()  # as much of the given filter as is applied
    drops_empty_classes = False  # whether the filter may leave classes without samples, which are then removed
    is_whole = False  # whether an image that cannot be read is an Error: nothing is skipped

    @abstractmethod
    def units(self) -> list[Unit]:
        """Every unit, in a fixed order, without reading the images. Called once, in the parent process."""

    def stamps(self, without: str = "") -> dict[str, str]:
        """A stamp of each local file and folder that is read, by path; it changes when the file does.

        without: a folder that does not count, where it lies in one that is read: the output of the conversion.
        What is read from a URL has no stamp, for it is verified as it is read. Raises Error for a folder that cannot be
        read.
        """
        local = (path for path in self.files if not path.startswith(("http://", "https://", "hf:")))
        return {path: stamp(path, without) for path in local}

    @abstractmethod
    def samples(self, unit: Unit) -> Iterator[Sample | Broken | TooSmall]:
        """Read one unit. Damage costs only what is damaged: it yields Broken and goes on where that is possible."""
