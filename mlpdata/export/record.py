"""`export.json`: what a finished export holds and what it was made of. It is written last, and makes the export one."""

from __future__ import annotations

import os
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Annotated

from msgspec import Meta

from mlpdata.errors import Error
from mlpdata.shards.files import Count, FileEntry, Sha256
from mlpdata.shards.text import conform, json_text, parse_json, read_text
from mlpdata.system.files import write_atomic
from mlpdata.system.format import plural

FORMAT_VERSION = 1


def record_path(root: Path) -> Path:
    return Path(root) / "export.json"


def is_export(root: Path) -> bool:
    """Whether a directory holds a finished export."""
    return os.path.lexists(record_path(root))


@dataclass(frozen=True, kw_only=True)
class Origin:
    """The shard directory that was exported."""

    directory: str  # its name
    manifest_sha256: Sha256
    dataset: str
    release: str
    res: Annotated[int, Meta(ge=1)]
    command: str  # that made it


@dataclass(frozen=True, kw_only=True)
class ExportRecord:
    """The content of `export.json`. Equal directories and options give equal records."""

    format_version: int
    format: str
    codec: str  # of the images: raw, jpg or png
    num_classes: Annotated[int, Meta(ge=1)]
    splits: dict[str, Count]  # samples of each, by the directory's own names
    origin: Origin
    command: str
    tool_version: str
    num_files: Count
    num_bytes: Count
    files: dict[str, FileEntry]  # by path below the export; only listings where every image is a file

    def save(self, root: Path) -> None:
        write_atomic(record_path(root), json_text(asdict(self), indent=1).encode())

    def damage(self, root: Path) -> str:
        """What is wrong with the first listed file that is missing or has another size; "" if none is.

        Of images that are files of their own, only the number is looked at.
        """
        for name, entry in self.files.items():
            path = root / name
            if not path.is_file():
                return f"{path} is missing"
            if (size := path.stat().st_size) != entry["bytes"]:
                return f"{path} has {size:,} bytes instead of {entry['bytes']:,}"
        unlisted = self.num_files - len(self.files)
        if unlisted and (found := sum(len(names) for s in self.splits for *_, names in os.walk(root / s))) < unlisted:
            return f"{root} holds {plural(found, 'image')} instead of {unlisted:,}"
        return ""


def load_record(root: Path) -> ExportRecord:
    """The record of a finished export. Raises Error where there is none, or it is damaged."""
    path = record_path(root)
    if not is_export(root):
        raise Error(f"{root} holds no finished export")
    raw = parse_json(read_text(path), path, dict)
    if raw.get("format_version") != FORMAT_VERSION:
        version = repr(raw.get("format_version"))
        raise Error(f"{path} has format version {version:.20}; this mlpdata reads {FORMAT_VERSION}")
    record = conform(raw, ExportRecord, path)
    for name in record.files:
        if name.startswith("/") or ".." in name.split("/"):
            raise Error(f"{path} is damaged: it names a file that cannot be part of it: {name!r:.80}")
    return record
