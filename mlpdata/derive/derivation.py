"""`Derivation`: what shard directories are to become. The command line uses it: nothing heavy is imported."""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path
from shlex import quote

from mlpdata import splits
from mlpdata.errors import Error

DEDUPES = ("exact", "perceptual")  # of images with equal pixels one stays; of those that look alike (near.py), too
NEAR_BITS = 4  # of 64 of a perceptual hash: images then look the same but for compression, size or a retouch
MAX_NEAR_BITS = 8  # with more, pictures of plain things meet by chance


@dataclass(frozen=True)
class SplitOff:
    """A new split, held out of the training split: so many images of each class, or a share of each class.

    >>> SplitOff.parse("val=50"), SplitOff.parse("dev=2.5%")
    (SplitOff(split='val', count=50, share=None), SplitOff(split='dev', count=None, share=0.025))
    """

    split: str
    count: int | None = None
    share: float | None = None

    @classmethod
    def parse(cls, text: str) -> SplitOff:
        """NAME=N or NAME=P%. Raises Error."""
        match = re.fullmatch(r"([^=]+)=(\d{1,12})(?:(\.\d{1,9})?(%))?", text)
        if match is None:
            raise Error(f"--split-off {text!r:.80} is not NAME=N or NAME=P%, as val=50 (of each class) or val=10%")
        name = splits.checked(match[1])
        if match[4]:
            share = float(match[2] + (match[3] or "")) / 100
            if not 0 < share < 1:
                raise Error(f"--split-off {text}: the share must be above 0% and below 100%")
            return cls(name, share=share)
        if not int(match[2]):
            raise Error(f"--split-off {text} holds out nothing")
        return cls(name, count=int(match[2]))

    def __str__(self) -> str:
        return f"{self.split}={self.count if self.share is None else f'{100 * self.share:.9g}%'}"


@dataclass(frozen=True, kw_only=True)
class Derivation:
    """How shard directories become another. Every random choice follows from a hash of (seed, key). Raises Error.

    >>> Derivation(command="subset", directories=(Path("shards/a"),), fraction=2.0)
    Traceback (most recent call last):
    mlpdata.errors.Error: --fraction must be above 0 and at most 1, not 2.0
    """

    command: str  # the name of the command: subset, merge, relabel, resize
    directories: tuple[Path, ...]
    classes: tuple[str, ...] | None = None  # only these, by name in the source, in this label order
    classes_file: str = ""  # the name of the file that lists them
    union: bool = False  # several directories may have different classes: all of them are taken, by name
    splits: tuple[str, ...] = ()  # (): all
    limit: int | None = None  # samples a split
    fraction: float | None = None  # of each class of each split
    per_class: int | None = None  # samples a class and split
    split_off: SplitOff | None = None
    dedupe: str | None = None
    label_map: str | Path | None = None  # what the classes become: see label_maps.read_label_map
    drop_unmapped: bool = False  # classes that the map lacks are left out

    def __post_init__(self):
        if not self.directories:
            raise Error(f"{self.command} takes a shard directory")
        for name in ("limit", "per_class"):
            if (n := getattr(self, name)) is not None and n < 1:
                raise Error(f"--{name.replace('_', '-')} must be at least 1, not {n}")
        if self.fraction is not None and not 0 < self.fraction <= 1:
            raise Error(f"--fraction must be above 0 and at most 1, not {self.fraction}")
        if self.dedupe is not None and self.dedupe not in DEDUPES:
            raise Error(f"--dedupe {self.dedupe!r:.40} is not one of {', '.join(DEDUPES)}")
        if self.classes is not None and (not self.classes or len(set(self.classes)) < len(self.classes)):
            names = f"--classes {self.classes_file}".rstrip()
            raise Error(f"{names} names {'a class twice' if self.classes else 'no class'}")

    @property
    def draws(self) -> bool:
        """Whether some samples are taken and others not, by their hashes."""
        return any(x is not None for x in (self.limit, self.fraction, self.per_class, self.split_off, self.dedupe))

    def words(self, names: list[str]) -> list[str]:
        """The command on record, up to what every command has: names of directories and files, no paths."""
        words = ["mlpdata", self.command, *map(quote, names)]
        if self.classes is not None:
            words.append(f"--classes {quote(self.classes_file or ','.join(self.classes))}")
        words += ["--classes union"] if self.union else []
        words += [f"--split {name}" for name in self.splits]
        for name in ("split_off", "per_class", "fraction", "limit", "dedupe"):
            if (value := getattr(self, name)) is not None:
                words.append(f"--{name.replace('_', '-')} {value}")
        words += [f"--map {quote(Path(self.label_map).name)}"] if self.label_map is not None else []
        return [*words, "--drop-unmapped"] if self.drop_unmapped else words
