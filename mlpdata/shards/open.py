"""Open a split: a shard directory's, a single beton, or other people's WebDataset tars; all give one `ShardIndex`.

A shard directory is opened by its manifest and its index, and nothing that they say is believed before it is checked:
afterwards every payload lies inside its file, and every size and label in its bounds.
"""

from __future__ import annotations

import hashlib
import re
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path

import numpy as np

from mlpdata.choices import CODECS
from mlpdata.errors import Error, first_line
from mlpdata.image.limits import MAX_PIXELS
from mlpdata.shards import beton, foreign, streamed, tar
from mlpdata.shards.manifest import Manifest, beton_path, index_path
from mlpdata.shards.shard_index import ShardIndex
from mlpdata.sources.wds_tars import PACKED
from mlpdata.system.format import plural

FORMATS = ("beton", "tar")
RAW = CODECS.index("raw")
CHECK_ROWS = 1 << 18  # at a time: indices are large
MAX_CLASSES = 1_000_000  # of what others made: a larger label is an id


@dataclass(frozen=True, kw_only=True)
class DataSplit:
    """A split that can be loaded. manifest: None for files that are not a shard directory's."""

    index: ShardIndex
    split: str  # its name
    num_classes: int
    manifest: Manifest | None

    @cached_property
    def digest(self) -> str:
        """16 hex digits that tell the samples of one split from others: of its index, which has the pixels' digests.

        Where there is no index: of sizes, places and labels. The same for any path, and for both formats.
        """
        if self.manifest:
            return self.manifest.files[index_path(Path(), self.split).name]["sha256"][:16]
        digest = hashlib.sha256()
        for name in ("file", "offset", "num_bytes", "codec", "width", "height", "label"):
            column = getattr(self.index, name)
            for start in range(0, len(column), CHECK_ROWS):
                digest.update(np.ascontiguousarray(column[start : start + CHECK_ROWS], np.int64).data)
        return digest.hexdigest()[:16]


def open_split(
    path: str | Path | list[Path],
    split: str = "train",
    format: str | None = None,
    image_column: str | None = None,
    label_column: str | None = None,
    cache_bytes: int | None = None,
) -> DataSplit:
    """Find a split and check that every payload lies inside its file.

    path: a shard directory; a `.beton` file; a tar, a pattern of tars, a list of those, or a directory of nothing but
    tars (the names of files and folders there say their splits). split and format choose inside a shard directory;
    image_column and label_column among the fields of a `.beton` file of others (None: see beton.open_index).
    cache_bytes: of a directory that is streamed (mlpdata.shards.streamed), how many bytes of tars are kept here.
    Raises Error where there is nothing to open, and for what is unfinished, cut short or damaged.
    """
    if format is not None and not (isinstance(format, str) and format in FORMATS):
        raise Error(f"format {format!r:.80} is neither 'beton' nor 'tar'")
    if not isinstance(split, str):
        raise Error(f"split {split!r:.80} is no name of a split")
    if re.search(r"[][+%:]", split):
        raise Error(
            f"split {split!r:.80} is a slice or a sum as datasets has them; load one split: subset=slice(0, 100) takes "
            f"its first 100 samples, subset=0.1 a tenth of them at random"
        )
    where = path[0] if isinstance(path, list) else Path(path)
    try:
        paths = path if isinstance(path, list) else where
        data = _open(paths, split, format, image_column, label_column, cache_bytes)
    except OSError as e:
        raise Error(f"cannot read {e.filename or where}: {e.strerror or first_line(e)}") from None
    if not len(data.index):
        raise Error(f"{where}: split {data.split!r} has no samples")
    return data


def _open(
    path: Path | list[Path],
    split: str,
    format: str | None,
    image_column: str | None,
    label_column: str | None,
    cache_bytes: int | None,
) -> DataSplit:
    if isinstance(path, Path) and path.is_file() and not path.name.lower().endswith((".tar", *PACKED)):
        return _foreign_split(beton.open_index(path, image_column, label_column), split)
    if image_column or label_column:
        raise Error(f"image_column and label_column are for .beton files of others; {path} is none")
    tars, name = foreign.find_tars(path, split)
    if isinstance(path, list) or tars:
        return _foreign_split(foreign.scan_tars(tars), name)
    return _own_split(path, split, format, cache_bytes)


def _own_split(root: Path, split: str, format: str | None, cache_bytes: int | None) -> DataSplit:
    manifest = Manifest.load(root)
    split = manifest.split(split)
    has_beton = bool(manifest.splits[split].beton)
    cache = streamed.open_tars(root, manifest, split, format, cache_bytes)
    if format == "beton" and not has_beton:
        raise Error(f"{root} has no beton of split {split!r}; it has {', '.join(manifest.formats)}")
    if cache is None:
        manifest.check_sizes(root, split)
    if cache or format == "tar" or not has_beton:
        index = replace(tar.open_index(root, manifest, split), cache=cache)
    else:
        index = beton.open_index(beton_path(root, split), "image", "label")
    _check_places(index, [manifest.files[file.name]["bytes"] for file in index.files])
    for side in (index.width, index.height):
        if side.min(initial=1) < 1 or side.max(initial=1) > manifest.res:
            raise Error(f"{root}: split {split!r} has images of more than {manifest.res} pixels a side; convert again")
    if index.label.min(initial=0) < 0 or index.label.max(initial=0) >= manifest.num_classes:
        raise Error(
            f"{root}: split {split!r} has labels of more than {plural(manifest.num_classes, 'class')}; convert again"
        )
    return DataSplit(index=index, split=split, num_classes=manifest.num_classes, manifest=manifest)


def _foreign_split(index: ShardIndex, split: str) -> DataSplit:
    _check_places(index, [file.stat().st_size for file in index.files])
    if len(index.files) == 1:
        _check_apart(index)
    for wrong, what in (
        (index.width.astype(np.int64) * index.height > MAX_PIXELS, "claims {width} x {height} pixels"),
        (index.label < 0, "has the label {label}, which is none"),
        (index.label >= MAX_CLASSES, f"has the label {{label}}; classes are numbered from 0 to {MAX_CLASSES - 1:,}"),
    ):
        if wrong.any():
            i = int(wrong.argmax())
            claim = what.format(width=int(index.width[i]), height=int(index.height[i]), label=int(index.label[i]))
            raise Error(f"{index.files[int(index.file[i])]}: sample {i} {claim}")
    num_classes = int(index.label.max(initial=-1)) + 1
    return DataSplit(index=replace(index, is_foreign=True), split=split, num_classes=num_classes, manifest=None)


def _check_places(index: ShardIndex, file_bytes: list[int]) -> None:
    """Raise Error where a payload leaves its file, or a raw one does not fit its shape."""
    sizes = np.array(file_bytes, np.int64)
    for first in range(0, len(index), CHECK_ROWS):
        rows = slice(first, first + CHECK_ROWS)
        start, length = index.offset[rows], index.num_bytes[rows]
        beyond = (start < 0) | (length < 0) | (start > sizes[index.file[rows]] - length)
        if beyond.any():
            i = first + int(beyond.argmax())
            raise Error(f"{index.files[int(index.file[i])]} is cut short or damaged: sample {i} lies beyond its end")
        unfit = (index.codec[rows] == RAW) & (length != np.int64(3) * index.width[rows] * index.height[rows])
        if unfit.any():
            i = first + int(unfit.argmax())
            raise Error(
                f"{index.files[int(index.file[i])]}: raw sample {i} has {int(index.num_bytes[i])} bytes, which do not "
                f"fit {int(index.width[i])} x {int(index.height[i])} pixels; convert again"
            )


def _check_apart(index: ShardIndex) -> None:
    """Raise Error where payloads of one file share bytes."""
    order = np.argsort(index.offset, kind="stable")
    ends = index.offset[order] + index.num_bytes[order]
    shared = ends[:-1] > index.offset[order][1:]
    if shared.any():
        i, j = order[int(shared.argmax()) :][:2].tolist()
        raise Error(f"{index.files[0]} is damaged: samples {i} and {j} share bytes")
