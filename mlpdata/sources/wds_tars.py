"""The WebDataset tars of a source and their splits: by `_info.json`, else by the names of files and folders.

`_info.json` is somebody else's: it is checked field by field before anything is made of it.
"""

from __future__ import annotations

import contextlib
import json
import os
from dataclasses import dataclass, field
from pathlib import Path

from mlpdata import splits
from mlpdata.errors import Error, first_line
from mlpdata.fetch.hub import Repository
from mlpdata.sources.files import is_system, matching, missing_names, two_versions
from mlpdata.sources.keys import lines, listed
from mlpdata.sources.location import Location, has_file, open_file
from mlpdata.system.format import plural

INFO = "_info.json"  # timm's table of splits
CLASS_NAMES = "classnames.txt"
MAX_NAMES_BYTES = 1 << 20
DATA = "data"  # the folder that repositories of the Hub have
MAX_INFO_BYTES = 64 << 20
LEAST_SAMPLE_BYTES = 1024  # in a tar: two headers
PACKED = (".tar.gz", ".tgz", ".tar.bz2", ".tar.xz", ".tar.zst")


@dataclass
class SourceTar:
    """One tar of a source."""

    name: str  # its path at the source's location, with `/`
    split: str | None = None  # as the data set calls it; None where nothing says one
    num_samples: int = 0  # 0: unknown
    is_listed: bool = False  # in `_info.json`, which then decides


@dataclass
class TarList:
    """The tars of a source, with what there is to say about them."""

    location: Location
    tars: list[SourceTar] = field(default_factory=list)
    warnings: list[str] = field(default_factory=list)


def list_tars(path: Location) -> TarList:
    """The tars of a directory and its split folders, of a pattern, of a repository, or the one at `path`.

    Raises Error for a folder that cannot be read.
    """
    if isinstance(path, Path) and not os.path.isdir(path):
        root, matches = matching(path)
        if packed := [p for p in matches if p.name.lower().endswith(PACKED)]:
            raise Error(f"{packed[0]} is a packed tar, in which no image can be read by itself; unpack it to a .tar")
        return TarList(root, [SourceTar(p.relative_to(root).as_posix()) for p in matches if p.is_file()])
    names = sorted(path.files) if isinstance(path, Repository) else names_below(path)
    tars = TarList(path, [SourceTar(name) for name in names if name.lower().endswith(".tar") and not is_system(name)])
    if packed := sorted(name for name in names if name.lower().endswith(PACKED)):
        packed_names = listed(packed, 1, "others")
        tars.warnings.append(f"{path}: {packed_names} left out: packed tars are not read, unpack them to .tar")
    return tars


def names_below(root: Path) -> list[str]:
    """Files of a directory, of its folders with a split's name and of `data`; class folders are not entered."""
    names = []
    try:
        with os.scandir(root) as entries:
            for entry in sorted(entries, key=lambda e: e.name):
                if not entry.is_dir():
                    names.append(entry.name)
                elif entry.name == DATA or _is_split(entry.name):
                    with os.scandir(entry.path) as inner:
                        names += sorted(f"{entry.name}/{e.name}" for e in inner if not e.is_dir())
    except OSError as e:
        raise Error(f"cannot read the folder {e.filename or root}: {e.strerror}") from None
    return names


def _is_split(folder: str) -> bool:
    try:
        return splits.of_path(folder) is not None
    except Error:  # it fits two splits: `tell_splits` says so of its tars
        return True


def class_names(tars: TarList) -> tuple[str, ...]:
    """The names in a `classnames.txt` beside the tars, as CLIP benchmark has it; () without one."""
    if not has_file(tars.location, CLASS_NAMES):
        return ()
    with contextlib.closing(open_file(tars.location, CLASS_NAMES)) as blob:
        names = lines(blob.read_at(0, MAX_NAMES_BYTES)) if blob.size <= MAX_NAMES_BYTES else []
    if len(set(names)) < len(names):
        tars.warnings.append(f"{tars.location}: {CLASS_NAMES} is not used: it has a name twice")
        return ()
    return tuple(names)


def tell_splits(found: TarList) -> None:
    """Give every tar its split and, where it is known, its number of samples; sort them by split. Raises Error."""
    location = found.location
    info = INFO if isinstance(location, Repository) else str(location / INFO)
    table = _read_info(location, info) if has_file(location, INFO) else {}
    if table and (unlisted := [tar.name for tar in found.tars if tar.name not in table]):
        found.warnings.append(f"{info} does not list {listed(unlisted, 1, 'others')}, whose split is told by its name")
    for tar in found.tars:
        tar.is_listed = tar.name in table
        tar.split, tar.num_samples = table.pop(tar.name, None) or (splits.of_path(tar.name), 0)
        if tar.num_samples and tar.num_samples > (size := open_file(location, tar.name).size) // LEAST_SAMPLE_BYTES:
            raise Error(
                f"{info} says {plural(tar.num_samples, 'sample')} of {tar.name}, which has {size:,} bytes; correct it"
            )
    if not any(tar.is_listed for tar in found.tars) and (gaps := missing_names(tar.name for tar in found.tars)):
        found.warnings.append(f"{location}: tars seem to be missing, by their numbers: {listed(gaps, 3)}")
    if not table and (two := two_versions(tar.name for tar in found.tars)):
        found.warnings.append(f"{location}: {' and '.join(two)} look like files of two versions: both are taken")
    if missing := [name for name in table if not has_file(location, name)]:
        found.warnings.append(f"{info} lists files that are not there: {listed(missing, 1, 'others')}")
    found.tars.sort(key=lambda t: (splits.canonical(t.split or "train") != "train", t.split or "train", t.name))


def _read_info(location: Location, info: str) -> dict[str, tuple[str, int]]:
    """{file: (split, samples or 0)}. info: the table's name in messages."""
    with contextlib.closing(open_file(location, INFO)) as blob:
        try:
            if blob.size > MAX_INFO_BYTES:
                raise ValueError(f"it has {blob.size:,} bytes")
            return _parse_info(json.loads(blob.read_at(0, blob.size)))
        except (ValueError, RecursionError, Error) as e:
            raise Error(f"{info} is no table of splits ({first_line(e)}); correct it or move it away") from None


def _parse_info(record: object) -> dict[str, tuple[str, int]]:
    table: dict[str, tuple[str, int]] = {}
    for name, split in _field(record, "splits", dict).items():
        files: list = _field(split, "filenames", list)
        lengths: list = _field(split, "shard_lengths", list) if split.get("shard_lengths") else [0] * len(files)
        seen: set[str] = set()  # of this split: another one may be the same by another name, as val and validation
        if len(lengths) != len(files):
            raise ValueError(f"split {name!r:.80} has {len(files):,} filenames and {len(lengths):,} shard_lengths")
        for file, n in zip(files, lengths, strict=True):
            if not isinstance(file, str) or type(n) is not int or n < 0:
                raise ValueError(f"split {name!r:.80} has the file {file!r:.80} of {n!r:.40} samples")
            entry = (splits.canonical(name) or splits.checked(name), n)
            if table.setdefault(file, entry) != entry or file in seen:
                raise ValueError(f"it lists {file!r:.80} twice")
            seen.add(file)
    return table


def _field(record: object, name: str, kind: type):
    """A field of a JSON object; ValueError where it is not there or something else."""
    if not isinstance(record, dict) or not isinstance(record.get(name), kind):
        raise ValueError(f"it has no {name} that are {'an object' if kind is dict else 'a list'}")
    return record[name]
