"""Which WebDataset tars a source has, and of what split each is: by `_info.json`, else by names of files and folders.

`_info.json` is somebody else's: it is checked field by field before anything is made of it.
"""

from __future__ import annotations

import json
import os
from dataclasses import dataclass, field
from pathlib import Path

from mlpdata import splits
from mlpdata.archive.blob import PlainFile
from mlpdata.archive.url import UrlFile
from mlpdata.errors import Error, first_line
from mlpdata.fetch.hub import Repository
from mlpdata.sources import keys
from mlpdata.sources.files import is_system, matching

INFO = "_info.json"  # timm's table of splits

MAX_INFO_BYTES = 64 << 20
LEAST_SAMPLE_BYTES = 1024  # in a tar: two headers


@dataclass
class SourceTar:
    """One tar of a source."""

    name: str  # its path below the source's root, with `/`
    path: Path
    split: str | None  # as the data set calls it; None where nothing says one
    num_samples: int = 0  # 0 where nobody says
    is_listed: bool = False  # in `_info.json`, which then decides


@dataclass
class TarList:
    """The tars of a source, with what there is to say about them."""

    root: Path
    tars: list[SourceTar] = field(default_factory=list)
    warnings: list[str] = field(default_factory=list)


def list_tars(path: Path | Repository) -> TarList:
    """The tars of a directory and its split folders, of a pattern, of a repository, or the one at `path`.

    Those of a repository are given by their paths in it. Raises Error for a folder that cannot be read.
    """
    if isinstance(path, Repository):
        names = sorted(name for name in path.files if _is_tar(name))
        return TarList(Path(), [SourceTar(name, Path(name), None) for name in names], _packed(str(path), path.files))
    if os.path.isdir(path):
        names = _names_below(path)
        tars = [SourceTar(name, path / name, None) for name in names if _is_tar(name)]
        return TarList(path, tars, _packed(str(path), names))
    root, found = matching(path)
    return TarList(root, [SourceTar(p.relative_to(root).as_posix(), p, None) for p in found if p.is_file()])


def _is_tar(name: str) -> bool:
    return name.lower().endswith(".tar") and not is_system(name)


def _packed(path: str, names) -> list[str]:
    packed = sorted(
        name for name in names if name.lower().endswith((".tar.gz", ".tgz", ".tar.bz2", ".tar.xz", ".tar.zst"))
    )
    if not packed:
        return []
    return [f"{path}: {_first(packed)} left out: packed tars are not read, unpack them to .tar"]


def _first(names: list[str]) -> str:
    return keys.line(names[0]) + (f" and {len(names) - 1:,} others" if len(names) > 1 else "")


def _names_below(root: Path) -> list[str]:
    """Files of a directory and of the folders in it that are called as splits are; without entering class folders."""
    found = []
    try:
        with os.scandir(root) as entries:
            for entry in sorted(entries, key=lambda e: e.name):
                if not entry.is_dir():
                    found.append(entry.name)
                elif _split_of(entry.name):
                    with os.scandir(entry.path) as inner:
                        found += sorted(f"{entry.name}/{e.name}" for e in inner if not e.is_dir())
    except OSError as e:
        raise Error(f"cannot read the folder {e.filename or root}: {e.strerror}") from None
    return found


def _split_of(name: str) -> str | None:
    try:
        return splits.of_path(name)
    except Error:  # it fits two: whoever takes its tars says so
        return "train"


def open_tar(path: Path | Repository, tar: Path) -> PlainFile | UrlFile:
    """A file of the source, to be read at offsets."""
    if isinstance(path, Repository):
        return UrlFile(path.url(tar.as_posix()), path.login(), path.files[tar.as_posix()])
    return PlainFile(tar)


def tell_splits(path: Path | Repository, found: TarList) -> None:
    """Give every tar its split and, where it is known, its number of samples. Raises Error."""
    info = found.root / INFO
    there = info.as_posix() in path.files if isinstance(path, Repository) else info.is_file()
    table = _read_info(path, info) if there else {}
    sizes = path.files if isinstance(path, Repository) else None
    unlisted = [tar.name for tar in found.tars if tar.name not in table]
    if table and unlisted:
        found.warnings.append(f"{info} does not list {_first(unlisted)}, whose split is told by its name")
    for tar in found.tars:
        listed = table.pop(tar.name, None)
        tar.split, tar.num_samples = listed or (splits.of_path(tar.name), 0)
        tar.is_listed = listed is not None
        if listed and tar.num_samples:
            size = sizes[tar.name] if sizes else PlainFile(tar.path).size
            if tar.num_samples > size // LEAST_SAMPLE_BYTES:
                raise Error(
                    f"{info} says {tar.num_samples:,} samples of {tar.name}, which has {size:,} bytes; correct it"
                )
    if missing := [name for name in table if not _is_there(path, found.root, name)]:
        found.warnings.append(f"{info} lists files that are not there: {_first(missing)}")
    found.tars.sort(key=lambda t: (splits.canonical(t.split or "train") != "train", t.split or "train", t.name))


def _is_there(path: Path | Repository, root: Path, name: str) -> bool:
    return name in path.files if isinstance(path, Repository) else os.path.isfile(os.path.join(root, name))


def _read_info(path: Path | Repository, info: Path) -> dict[str, tuple[str, int]]:
    """{file: (split, samples or 0)}."""
    table = open_tar(path, info)
    try:
        if table.size > MAX_INFO_BYTES:
            raise ValueError(f"it has {table.size:,} bytes")
        found: dict[str, tuple[str, int]] = {}
        for name, split in _field(json.loads(table.read_at(0, table.size)), "splits", dict).items():
            files = _field(split, "filenames", list)
            lengths = _field(split, "shard_lengths", list) if split.get("shard_lengths") else [0] * len(files)
            if len(lengths) != len(files):
                raise ValueError(f"split {name!r:.80} has {len(files):,} filenames and {len(lengths):,} shard_lengths")
            for file, n in zip(files, lengths, strict=True):
                if not isinstance(file, str) or type(n) is not int or n < 0:
                    raise ValueError(f"split {name!r:.80} has the file {file!r:.80} of {n!r:.40} samples")
                if file in found:
                    raise ValueError(f"it lists {file!r:.80} twice")
                found[file] = (splits.canonical(name) or splits.checked(name), n)
        return found
    except (ValueError, RecursionError, Error) as e:
        raise Error(f"{info} is no table of splits ({first_line(e)}); correct it or move it away") from None
    finally:
        table.close()


def _field(record: object, name: str, kind: type):
    """A field of a JSON object; ValueError where it is not there or something else."""
    if not isinstance(record, dict) or not isinstance(record.get(name), kind):
        raise ValueError(f"it has no {name} that are {'an object' if kind is dict else 'a list'}")
    return record[name]
