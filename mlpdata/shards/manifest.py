"""The manifest of a shard directory, and every path inside it.

A shard directory is finished when, and only when, it holds `manifest.json`: that file is written last, to a temporary
name, synced and renamed. Nothing else in the code base builds a path inside a shard directory.
"""

from __future__ import annotations

import hashlib
import json
import math
import os
import re
import shlex
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Annotated, Literal, NotRequired, TypedDict

from msgspec import Meta

from mlpdata import splits
from mlpdata.choices import MAX_RES, MAX_SKIPPED, Codec, Filter, Resize
from mlpdata.errors import Error
from mlpdata.shards.files import Count, FileEntry, Sha256, check_sizes, local_sizes
from mlpdata.shards.text import conform, damaged, json_text, parse_json, read_text, shown
from mlpdata.system.files import write_atomic
from mlpdata.system.format import plural

FORMAT_VERSION = 1
FILE_NAME = re.compile(r"\w[\w.-]*")


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
    return Path(root) / _tar_name(split, shard)


def _tar_name(split: str, shard: int) -> str:
    return f"{split}-{shard:06d}.tar"


def index_path(root: Path, split: str) -> Path:
    return Path(root) / f"{split}.index.parquet"


def real_path(root: Path, split: str) -> Path:
    """{key: labels} of a split whose images have several true labels each (ReaL), in the order of the split."""
    return Path(root) / f"{split}.real.json"


def work_path(root: Path) -> Path:
    """Where a conversion under way keeps its parts and its journal; gone once the manifest stands."""
    return Path(root) / ".convert"


def is_shard_directory(root: Path) -> bool:
    """Whether a folder is a shard directory, finished or not."""
    return work_path(root).is_dir() or (manifest_path(root).is_file() and classes_path(root).is_file())


# ------------------------------------------------------------------------------------------------------- manifest


PerChannel = Annotated[list[Annotated[float, Meta(ge=0, le=1)]], Meta(min_length=3, max_length=3)]


class Fidelity(TypedDict):
    """The fast decode against the exact one, on some of the images."""

    num_samples: Count
    psnr_db: Annotated[float, Meta(ge=0, le=99)]
    psnr_db_upper: NotRequired[Annotated[float, Meta(ge=0, le=99)]]  # what it may be by chance
    max_diff: Annotated[int, Meta(ge=0, le=255)]


class Parent(TypedDict):
    """A shard directory that another one was made of."""

    name: str  # of the directory, without its path
    sha256: Sha256  # of its manifest.json
    command: str  # that made it
    dataset: str
    release: str
    parents: NotRequired[list[Parent]]  # that it was made of in turn


class Skipped(TypedDict):
    """A line of `skipped.jsonl`: an image or a file of the source that was left out."""

    split: str
    source: str
    reason: str
    is_data: NotRequired[bool]  # False: a file that is none of the data, and not counted as skipped


def _lineage(parents: list[Parent], depth: int = 0) -> list[str]:
    lines = []
    for parent in parents:
        lines.append(f"{'  ' * depth}{parent['name']} (manifest {parent['sha256'][:12]}): {parent['command']}")
        lines += _lineage(parent.get("parents", []), depth + 1)
    return lines


@dataclass(frozen=True, kw_only=True)
class SplitInfo:
    """One split: its counts and its files, by name inside the directory."""

    num_samples: Count
    num_skipped: Count
    class_counts: list[Count]  # samples of each class, in class order
    beton: str | None = None
    tars: list[str] = field(default_factory=list)
    tar_lengths: list[Count] = field(default_factory=list)  # samples in each tar, same order as `tars`
    index: str | None = None

    @property
    def files(self) -> list[str]:
        return [name for name in (self.beton, *self.tars, self.index) if name]


def content_sha256(values: dict) -> str:
    """Of what a manifest says, without this sum itself: however the JSON is laid out, a changed value is told.

    It is for accidents and edits by hand, and no signature: who wants to can compute it anew.
    """
    return hashlib.sha256(json.dumps(values, sort_keys=True).encode()).hexdigest()


def made_from(source_files: dict[str, dict]) -> str:
    """Which files something was made from, for people.

    >>> made_from({"photos": {}}), made_from({"a": {}, "b": {}, "c": {}, "d": {}}), made_from({})
    (', from photos', ', from a, b and 2 more', '')
    """
    names = [shown(name) for name in source_files]
    listed = ", ".join(names if len(names) <= 3 else names[:2])
    return f", from {listed}{f' and {len(names) - 2} more' if len(names) > 3 else ''}" if names else ""


@dataclass(frozen=True, kw_only=True)
class Manifest:
    """What a finished shard directory holds and how it was made. Equal inputs and options give equal manifests.

    `load` holds a file to these types and ranges, and to what `_check` says of how they hang together.
    """

    format_version: int
    dataset: str
    release: str
    source_files: dict[str, dict]  # name -> size and a checksum of both ends of every file read
    source_filter: dict  # class and split filters applied to the source; {} for none
    num_classes: Annotated[int, Meta(ge=1, le=1 << 31)]
    classes_sha256: Sha256  # of classes.txt
    res: Annotated[int, Meta(ge=1, le=MAX_RES)]
    resize: Resize
    filter: Filter
    formats: list[Literal["beton", "tar"]]
    codec: Literal["auto"] | Codec  # as asked for; the next two say what that meant here
    beton_codec: Literal["raw", "jpg"] | None
    tar_codec: Codec | None
    quality: Annotated[int, Meta(ge=1, le=100)] | None  # of the JPEGs encoded here; None where none was
    seed: int
    shard_size: int
    image_library: dict[str, str]
    fidelity: Fidelity | None  # None: always exact
    mean: PerChannel  # over the training pixels, on the scale of 0 to 1
    std: PerChannel
    splits: Annotated[dict[str, SplitInfo], Meta(min_length=1)]
    files: dict[str, FileEntry]  # every file of the directory but the manifest
    tool_version: str
    command: str
    parents: list[Parent] = field(default_factory=list)  # the shard directories it was made of; left out where none
    source: str = ""  # what `--source` is where the source lies; left out where there is none

    @property
    def command_with_source(self) -> str:
        source = f" --source {shlex.quote(self.source)}" if self.source else ""
        return re.sub(r"^mlpdata convert \S+", lambda match: match[0] + source, self.command)

    @property
    def made_by(self) -> str:
        """A command that makes the same files again, run in a folder that has the source, or the parents, by name."""
        if self.parents:
            name = "-".join([self.parents[0]["name"], *self.command.split()[1:2]])
            return f"{self.command} --out {shlex.quote(name)}"
        num_skipped = sum(info.num_skipped for info in self.splits.values())
        share = num_skipped / max(1, num_skipped + sum(info.num_samples for info in self.splits.values()))
        # What `--max-skipped` was is not on record, for it changes no byte: as much as lets these pass.
        most = f" --max-skipped {math.ceil(share * 1000) / 1000}" if share > MAX_SKIPPED else ""
        return f"{self.command_with_source}{most}"

    def as_dict(self) -> dict:
        """What is written: a conversion of an archive says nothing of parents."""
        return {name: value for name, value in asdict(self).items() if name not in ("parents", "source") or value}

    @property
    def lineage(self) -> list[str]:
        """The directories it was made of, the nearest first, a line each; those of a parent are indented."""
        return _lineage(self.parents)

    def split(self, name: str) -> str:
        """The directory's own name for a split. `val` and `test` stand for each other where only one exists."""
        return splits.chosen([name], self.splits, "this directory")[0]

    def _check(self) -> None:
        """Raise ValueError or Error for what no conversion writes: readers size buffers, and print code, by these."""
        codecs = {"beton": self.beton_codec, "tar": self.tar_codec}
        if [name for name, codec in codecs.items() if codec] != sorted(self.formats):
            raise ValueError(f"its formats are {self.formats}, its codecs {self.beton_codec} and {self.tar_codec}")
        for name in self.files:
            if not FILE_NAME.fullmatch(name) or len(name.encode()) > 255 or name == manifest_path(Path()).name:
                raise ValueError(f"it names a file that cannot be part of it: {name!r:.80}")
        for name, info in self.splits.items():
            splits.checked(name)
            if len(info.class_counts) != self.num_classes or sum(info.class_counts) != info.num_samples:
                raise ValueError(f"the class counts of split {name} do not add up to its samples and classes")
            tars = [_tar_name(name, i) for i in range(len(info.tars))]
            wanted = (beton_path(Path(), name).name if self.beton_codec else None, tars, index_path(Path(), name).name)
            if (info.beton, info.tars, info.index) != wanted:
                raise ValueError(f"split {name} has other files than {', '.join(filter(None, map(str, wanted)))}")
            if missing := {*tars, info.index, info.beton} - {None, *self.files}:
                raise ValueError(f"split {name} has {min(missing)}, which is not among its files")
            lengths = info.tar_lengths
            if len(lengths) != len(tars) or (self.tar_codec and sum(lengths) != info.num_samples) or 0 in lengths:
                raise ValueError(f"the tars of split {name} do not add up to its {plural(info.num_samples, 'sample')}")

    def save(self, root: Path) -> None:
        """Write `manifest.json`: the act that turns unfinished work into a shard directory."""
        values = self.as_dict()
        text = json_text({**values, "manifest_sha256": content_sha256(values)}, indent=1)
        write_atomic(manifest_path(root), text.encode())

    def check_sizes(self, root: Path, split: str | None = None) -> None:
        """Raise Error where a listed file, of one split or at all, is missing, is no file or has another size."""
        names = self.files if split is None else self.splits[split].files
        check_sizes({name: self.files[name] for name in names}, local_sizes(root), root, "get or convert it again")

    @classmethod
    def load(cls, root: str | Path) -> Manifest:
        """Read and check a directory's manifest.

        Raises Error when it is missing, damaged, from another version, or was changed after it was written.
        """
        root = Path(root)
        path = manifest_path(root)
        if not os.path.isdir(root):
            what = " is a file" if os.path.lexists(root) else ""
            raise Error(f"{root}{what}; a shard directory is a folder" if what else f"no shard directory at {root}")
        if not os.path.lexists(path):
            hint = "its conversion did not finish: run the same convert command again"
            if not os.path.exists(work_path(root)):
                is_ours = any(root.glob(f"*{index_path(root, '').name}"))
                hint = "get or convert it again" if is_ours else "it is not a shard directory"
                if (root / "export.json").is_file():
                    hint = "it is an export for another library: give the shard directory that it was made of"
                elif (root / "recipe.yaml").is_file():
                    hint = "it is a run of `mlpdata train`: give the shard directory that it was trained on"
            raise Error(f"{root} has no manifest.json; {hint}")
        return cls.parse(read_text(path), path)

    @classmethod
    def parse(cls, data: bytes, name: object) -> Manifest:
        """The manifest that some bytes are. Raises Error, in which the manifest is called by `name`."""
        raw = parse_json(data, name, dict)
        if raw.get("format_version") != FORMAT_VERSION:
            version = repr(raw.get("format_version"))
            raise Error(f"{name} has format version {version:.20}; this mlpdata reads {FORMAT_VERSION}")
        manifest = conform(raw, cls, name)
        try:
            manifest._check()
        except (ValueError, Error) as e:
            raise damaged(name, e) from None
        # Manifests of before this sum have none.
        if (digest := raw.pop("manifest_sha256", None)) is not None and digest != content_sha256(raw):
            raise Error(
                f"{name} was changed after it was written: its manifest_sha256 is another; get or convert it again"
            )
        return manifest
