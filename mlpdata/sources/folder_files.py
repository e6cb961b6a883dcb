"""The files of one class folder: listed without touching them, cut into ranges, and named as samples."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path

import xxhash

from mlpdata.sources import keys
from mlpdata.sources.files import is_folder, is_system, tree, why_no_file
from mlpdata.sources.folder_layout import KNOWN_FILES, is_data_folder


@dataclass(frozen=True, slots=True)
class FolderListing:
    """What lies in a class folder and below it."""

    names: list[str] = field(default_factory=list)  # sorted paths of the files that become samples
    reasons: dict[str, str] = field(default_factory=dict)  # why some of them cannot be read
    system: list[str] = field(default_factory=list)  # paths of what a system or a tool left there

    @property
    def digest(self) -> int:
        return xxhash.xxh3_64_intdigest("\0".join((*self.names, *self.reasons)).encode("utf-8", "surrogateescape"))

    @property
    def folders(self) -> list[str]:
        """The folders in the class folder itself that hold files."""
        return list(dict.fromkeys(name.partition("/")[0] for name in self.names if "/" in name))


def list_folder(root: Path, below: str, is_wanted: Callable[[str], bool]) -> FolderListing:
    """List root/below, without touching any file. is_wanted: whether a file's path in it may become a sample."""
    listing = FolderListing()
    known = (*KNOWN_FILES, f"{below.rpartition('/')[2]}_boxes.txt")  # of TinyImageNet
    for inside, entries in tree(str(root / below)):
        for entry in entries:
            path = f"{inside}/{entry.name}" if inside else entry.name
            if is_data_folder(entry):
                continue
            if is_folder(entry) or is_system(entry.name):
                listing.system.append(path)
            elif (inside or entry.name not in known) and is_wanted(path):
                listing.names.append(path)
                if reason := why_no_file(entry):
                    listing.reasons[path] = reason
    listing.names.sort()
    return listing


@dataclass(frozen=True, slots=True)
class FileRange:
    """Files `start` to `stop`, in the order of their paths, of one class folder and all below it."""

    split: str
    below: str  # the folder, relative to the root
    class_name: str  # "" where the class of each file is known by its name
    start: int
    stop: int
    digest: int  # of all paths in the folder, which the worker lists again

    @classmethod
    def whole(cls, split: str, below: str, class_name: str, listing: FolderListing) -> FileRange:
        return cls(split, below, class_name, 0, len(listing.names), listing.digest)


def cut(ranges: Iterable[FileRange], most: int) -> Iterator[list[FileRange]]:
    """Cut ranges into groups of `most` files; the last group may have fewer."""
    group: list[FileRange] = []
    room = most
    for files in ranges:
        start = files.start
        while start < files.stop:
            stop = min(files.stop, start + room)
            group.append(replace(files, start=start, stop=stop))
            start, room = stop, room - (stop - start)
            if not room:
                yield group
                group, room = [], most
    if group:
        yield group


def sample_keys(files: FileRange, names: list[str]) -> list[str]:
    """A key for each path in a class folder, in order: unique in the folder and among classes."""
    start = f"{keys.part(files.below.rpartition('/')[2])}/" if files.class_name else ""
    paths: list[str] = []
    for name in names:
        folders, slash, file = name.rpartition("/")
        stem = keys.part(os.path.splitext(file)[0])
        paths.append(f"{start}{'/'.join(map(keys.part, folders.split('/')))}/{stem}" if slash else f"{start}{stem}")
    return keys.distinct(paths)
