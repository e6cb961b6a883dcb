"""Which files of a parquet data set make which split: as its card says, else by the names of files and folders."""

from __future__ import annotations

import os
import re
from itertools import islice
from pathlib import Path

from mlpdata import splits
from mlpdata.errors import Error, reading
from mlpdata.fetch.hub import Repository
from mlpdata.sources.files import IMAGE_SUFFIXES, is_folder, is_system, tree, why_no_file
from mlpdata.sources.hub_card import HubCard
from mlpdata.sources.keys import listed, shown
from mlpdata.sources.location import Location
from mlpdata.system.format import plural

CARD = "README.md"
SUFFIX = ".parquet"
INDEX = ".index.parquet"  # of a shard directory: see shards.index
LOOKED_AT = 200  # entries of a folder: it may have millions
LOOKED_BELOW = 4  # levels: the Hub's cache has data sets at snapshots/COMMIT/data


def is_parquet(path: str) -> bool:
    """Whether a file is part of the data by its name.

    >>> is_parquet("data/Train.PARQUET"), is_parquet(".cache/train.parquet"), is_parquet("train.csv")
    (True, False, False)
    """
    return path.lower().endswith(SUFFIX) and not is_system(path) and not re.search(r"(^|/)\.", path)


def holds_images(path: str) -> bool:
    """Whether a parquet file makes a data set of the place where it lies; the index of a shard directory does not.

    >>> holds_images("data/train.parquet"), holds_images("train.index.parquet")
    (True, False)
    """
    return is_parquet(path) and not path.lower().endswith(INDEX)


def list_files(location: Location) -> dict[str, int]:
    """Bytes of the card and of every parquet file, by sorted path. Links are followed.

    Raises Error for a folder or a file that cannot be read.
    """
    if isinstance(location, Repository):
        return {path: size for path, size in sorted(location.files.items()) if path == CARD or is_parquet(path)}
    sizes = {}
    for below, entries in tree(str(location)):
        for entry in entries:
            path = f"{below}/{entry.name}" if below else entry.name
            if (path == CARD or is_parquet(path)) and not is_folder(entry):
                if problem := why_no_file(entry):
                    raise Error(f"{location}: {shown(path)} cannot be read: it is {problem}; remove it or get it again")
                sizes[path] = entry.stat().st_size
    return dict(sorted(sizes.items()))


def assign_files(location: Location, paths: list[str], card: HubCard, notes: list[str]) -> dict[str, list[str]]:
    """The files of each split, in order, under mlpdata's name of the split: by the card, else by file names.

    notes: takes what the user should know. Raises Error for a file of two splits and for several configurations.
    """
    inside = f"{card.folder}/" if card.folder else ""
    relative = [path.removeprefix(inside) for path in paths if path.startswith(inside)]
    by_name = card.assign(relative)
    if by_name is None:
        by_name = _assign_by_names(location, relative, notes)
    assigned = {inside + path for files in by_name.values() for path in files}
    if rest := [path for path in paths if path not in assigned]:
        notes.append(f"left out, as of no split: {plural(len(rest), 'parquet file')}: {listed(rest)}")
    ours = splits.our_names(by_name)
    notes += splits.renames(ours)
    files_of: dict[str, list[str]] = {split: [] for split in ours.values()}
    for name, split in ours.items():
        files_of[split] += [inside + path for path in by_name[name]]
    return files_of


def _assign_by_names(location: Location, paths: list[str], notes: list[str]) -> dict[str, list[str]]:
    """The files of each split, by words of their paths. Raises Error where they look like several configurations."""
    files_of: dict[str, list[str]] = {}
    for path in paths:
        if split := splits.of_path(path):
            files_of.setdefault(split, []).append(path)
    if paths and not files_of:
        notes.append("no file's name says which split it is of: all are 'train'")
        files_of = {"train": paths}
    for split, files in files_of.items():
        folders = sorted(set(map(_configuration, files)))
        if len(folders) > 1:
            example = next(filter(None, folders))
            source = location.below(example) if isinstance(location, Repository) else location / example
            raise Error(
                f"{location} has files of split {split!r} in several folders, {listed([f or '.' for f in folders])}, "
                f"which look like several configurations: take one, as --source {source}, or put the files into one "
                "folder"
            )
        words = {_split_words(path, split) for path in files}
        if len(words) > 1 and not frozenset.intersection(*words):
            names = " and ".join(sorted(frozenset.union(*words)))
            notes.append(f"split {split!r} is put together of files called {names}")
    return files_of


def _configuration(path: str) -> str:
    """The folder that sets a file apart from those of other configurations; "" where there is none.

    >>> _configuration("small/train/0.parquet"), _configuration("train/0000/0.parquet")
    ('small', '')
    """
    folders = path.split("/")[:-1]
    plain = [re.sub(r"[\W\d_]+", "", folder) for folder in folders]
    last = max((i for i, word in enumerate(plain) if word and not splits.canonical(word)), default=-1)
    return "/".join(folders[: last + 1])


def _split_words(path: str, split: str) -> frozenset[str]:
    """The words of a path that stand for its split."""
    return frozenset(word for word in re.split(r"[^a-z]+", path.lower()) if splits.canonical(word) == split)


def holds_parquet(folder: Path) -> bool:
    """Whether a folder is a data set in parquet files, and not one of image files. Looks at few entries only."""
    waiting, has_parquet = [(folder, 0)], False
    while waiting:
        path, level = waiting.pop(0)
        with reading(f"the folder {path}"), os.scandir(path) as entries:
            seen = list(islice(entries, LOOKED_AT))
        if any(entry.name.lower().endswith(IMAGE_SUFFIXES) for entry in seen):
            return False
        has_parquet = has_parquet or any(holds_images(entry.name) for entry in seen)
        below = [Path(e.path) for e in seen if is_folder(e) and not e.name.startswith(".")]
        if level < LOOKED_BELOW and len(below) < LOOKED_AT // 10:
            waiting += [(path, level + 1) for path in below]
    return has_parquet
