"""The manifest of a shard directory, the record of where its samples lie, and every path inside it.

A shard directory is finished when, and only when, it holds `manifest.json`: that file is written last, to a temporary
name, synced and renamed. Nothing else in the code base builds a path inside a shard directory.
"""

from __future__ import annotations

import json
import os
from dataclasses import asdict, dataclass, field, fields
from pathlib import Path

import numpy as np

from mlpdata.errors import Error

FORMAT_VERSION = 1
CODECS = ("raw", "jpg", "png")  # index.codec counts in this order; raw is uint8 RGB, rows top to bottom
MAX_RES = 1024  # pixels a side
EVAL_NAMES = ("val", "test", "validation", "valid")


# ---------------------------------------------------------------------------------------------------------- paths


def manifest_path(root: Path) -> Path:
    return Path(root) / "manifest.json"


def card_path(root: Path) -> Path:
    return Path(root) / "README.md"


def info_path(root: Path) -> Path:
    return Path(root) / "_info.json"


def classes_path(root: Path) -> Path:
    return Path(root) / "classes.txt"


def skipped_path(root: Path) -> Path:
    return Path(root) / "skipped.jsonl"


def beton_path(root: Path, split: str) -> Path:
    return Path(root) / f"{split}.beton"


def tar_path(root: Path, split: str, shard: int) -> Path:
    return Path(root) / f"{split}-{shard:06d}.tar"


def index_path(root: Path, split: str) -> Path:
    return Path(root) / f"{split}.index.parquet"


def real_path(root: Path, split: str) -> Path:
    """{key: labels} of a split whose images have several true labels each (ReaL), in the order of the split."""
    return Path(root) / f"{split}.real.json"


def work_path(root: Path) -> Path:
    """Where a conversion under way keeps its parts and its journal; gone once the manifest stands."""
    return Path(root) / ".convert"


# ------------------------------------------------------------------------------------------------------- manifest


@dataclass(frozen=True, kw_only=True)
class SplitInfo:
    """One split: its counts and its files, by name inside the directory."""

    num_samples: int
    num_skipped: int
    class_counts: list[int]  # samples of each class, in class order
    beton: str | None = None
    tars: list[str] = field(default_factory=list)
    tar_lengths: list[int] = field(default_factory=list)  # samples in each tar, same order as `tars`
    index: str | None = None


@dataclass(frozen=True, kw_only=True)
class Manifest:
    """What a finished shard directory holds and how it was made. Equal inputs and options give equal manifests."""

    format_version: int
    dataset: str
    release: str
    source_files: dict[str, dict]  # name -> size and a checksum of both ends of every file read
    source_filter: dict  # class and split filters applied to the source; {} for none
    num_classes: int
    classes_sha256: str  # of classes.txt
    res: int
    resize: str
    filter: str
    formats: list[str]
    codec: str  # as asked for; the next two say what that meant here
    beton_codec: str | None
    tar_codec: str | None
    quality: int | None  # of the JPEGs encoded here; None where none was
    seed: int
    shard_size: int
    image_library: dict[str, str]
    # num_samples, psnr_db, psnr_db_upper (what it may be by chance), max_diff of the fast decode against the exact one
    fidelity: dict | None  # None: always exact
    mean: list[float]  # per channel over the training pixels, on the scale of 0 to 1
    std: list[float]
    splits: dict[str, SplitInfo]
    files: dict[str, dict]  # name -> {"bytes": int, "sha256": hex}; every file of the directory but the manifest
    tool_version: str
    command: str

    def split(self, name: str) -> str:
        """The directory's own name for a split. `val` and `test` stand for each other where only one exists."""
        if name in self.splits:
            return name
        held_out = [s for s in self.splits if s in EVAL_NAMES]
        if name in EVAL_NAMES and len(held_out) == 1:
            return held_out[0]
        raise Error(f"no split {name!r} in this directory; it has {', '.join(sorted(self.splits))}")

    def _check(self) -> None:
        """Raise ValueError for what no conversion writes: readers size buffers, and print code, by these."""
        counts = [self.num_classes, *(info.num_samples for info in self.splits.values())]
        if not all(type(n) is int and n >= 0 for n in counts):
            raise ValueError("it counts in other than whole numbers")
        if type(self.res) is not int or not 1 <= self.res <= MAX_RES:
            raise ValueError(f"its resolution is {self.res!r}")
        if self.beton_codec not in (None, "raw", "jpg") or self.tar_codec not in (None, *CODECS):
            raise ValueError(f"its codecs are {self.beton_codec!r} and {self.tar_codec!r}")

    def _names(self) -> list[str]:
        """All that names a file, or becomes part of such a name."""
        names = [*self.files, *self.splits]
        for info in self.splits.values():
            names += [*info.tars, *filter(None, (info.beton, info.index))]
        return names

    def save(self, root: Path) -> None:
        """Write `manifest.json`: the act that turns unfinished work into a shard directory."""
        text = json.dumps(asdict(self), indent=1, ensure_ascii=False) + "\n"
        write_atomic(manifest_path(root), text.encode())

    def check_sizes(self, root: Path) -> None:
        """Raise Error where a listed file is missing or has another size."""
        for name, entry in self.files.items():
            path = Path(root) / name
            if not path.is_file():
                raise Error(f"{path} is missing, though the manifest lists it; convert again")
            if (size := path.stat().st_size) != entry["bytes"]:
                raise Error(f"{path} has {size} bytes, the manifest says {entry['bytes']}; convert again")

    @classmethod
    def load(cls, root: str | Path) -> Manifest:
        """Read and check a directory's manifest. Raises Error when it is missing, damaged or from another version."""
        root = Path(root)
        path = manifest_path(root)
        if not root.is_dir():
            raise Error(f"no shard directory at {root}")
        if not path.is_file():
            hint = "its conversion did not finish: run the same convert command again"
            if not work_path(root).exists():
                hint = "it is not a shard directory"
            raise Error(f"{root} has no manifest.json; {hint}")
        try:
            raw = json.loads(path.read_text(encoding="utf-8"))
            if raw["format_version"] != FORMAT_VERSION:
                raise Error(f"{path} has format version {raw['format_version']}; this mlpdata reads {FORMAT_VERSION}")
            names = {f.name for f in fields(cls)}
            raw = {k: v for k, v in raw.items() if k in names}
            raw["splits"] = {k: SplitInfo(**v) for k, v in raw["splits"].items()}
            manifest = cls(**raw)
            manifest._check()
            for name in manifest._names():
                # A manifest may come from anywhere: it must not point outside its directory.
                if Path(name).name != name or name in ("", ".."):
                    raise Error(f"{path} names a file outside its directory: {name!r}")
        except (ValueError, KeyError, TypeError, AttributeError) as e:
            raise Error(f"{path} is damaged ({type(e).__name__}: {e}); convert again") from None
        return manifest


def read_classes(root: str | Path) -> list[tuple[str, str]]:
    """(name in the source, readable name) of every class, in label order. Raises Error."""
    path = classes_path(Path(root))
    try:
        lines = path.read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as e:
        raise Error(f"cannot read {path}: {getattr(e, 'strerror', None) or e}; get or convert it again") from None
    return [(name, readable or name) for name, _, readable in (line.partition("\t") for line in lines)]


def write_atomic(path: Path, data: bytes) -> None:
    """Write a file so that, whenever the machine stops, either the old file is there or the whole new one."""
    tmp = path.with_name(f"{path.name}.tmp")
    with open(tmp, "wb") as f:
        f.write(data)
        f.flush()
        os.fsync(f.fileno())
    os.replace(tmp, path)
    sync_dir(path.parent)


def sync_dir(path: Path) -> None:
    """Make renames inside a directory durable."""
    fd = os.open(path, os.O_RDONLY)
    try:
        os.fsync(fd)
    finally:
        os.close(fd)


# ---------------------------------------------------------------------------------------------------------- index


@dataclass(frozen=True, kw_only=True)
class ShardIndex:
    """Where each sample of a split lies: one record for both formats, so the loader knows only this.

    All arrays have N rows in the order of the split. Arrays may be views of a memory map.
    """

    files: list[Path]
    file: np.ndarray  # (N,) integer, position in `files`
    offset: np.ndarray  # (N,) int64/uint64, where the payload starts in its file
    num_bytes: np.ndarray  # (N,) integer, payload bytes
    codec: np.ndarray  # (N,) uint8, position in CODECS
    width: np.ndarray  # (N,) pixels
    height: np.ndarray  # (N,) pixels
    label: np.ndarray  # (N,) int64

    def __len__(self) -> int:
        return len(self.label)
