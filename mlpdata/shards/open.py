"""What can be opened, and where its samples lie: shard directories, single betons, other people's WebDataset tars.

A directory of ours answers from its manifest and index.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path

import numpy as np

from mlpdata.errors import Error, first_line
from mlpdata.image.limits import MAX_PIXELS
from mlpdata.shards import beton, foreign, tar
from mlpdata.shards.manifest import CODECS, Manifest, ShardIndex, beton_path

FORMATS = ("beton", "tar")
RAW = CODECS.index("raw")
CHECK_ROWS = 1 << 18
MAX_CLASSES = 1_000_000  # of what others made: a larger label is an id


@dataclass(frozen=True, kw_only=True)
class DataSplit:
    """A split that was found. manifest: None for files that are not a shard directory's."""

    index: ShardIndex
    split: str
    num_classes: int
    manifest: Manifest | None

    @cached_property
    def digest(self) -> str:
        """What tells the samples of one split from others: of its index, which has the digests of the pixels.

        Where there is no index: of sizes, places and labels. The same for any path, and for both formats.
        """
        listed = self.manifest and self.manifest.files.get(self.manifest.splits[self.split].index)
        if listed:
            return listed["sha256"][:16]
        digest = hashlib.sha256()
        for name in ("file", "offset", "num_bytes", "codec", "width", "height", "label"):
            column = getattr(self.index, name)
            for at in range(0, len(column), CHECK_ROWS):
                digest.update(np.ascontiguousarray(column[at : at + CHECK_ROWS], np.int64))
        return digest.hexdigest()[:16]


def open_split(
    path: str | Path,
    split: str = "train",
    format: str | None = None,
    image_column: str | None = None,
    label_column: str | None = None,
) -> DataSplit:
    """Find a split and check that every payload lies inside its file.

    path: a shard directory; a `.beton` file; a tar, a pattern of tars, or a directory of nothing but tars (the names
    of files and folders there say their splits). split and format choose inside a shard directory;
    image_column and label_column among the fields of a `.beton` file of others (None: see beton.open_index).
    Raises Error where there is nothing to open, and for what is unfinished, cut short or damaged.
    """
    if format is not None and not (isinstance(format, str) and format in FORMATS):
        raise Error(f"format {format!r:.80} is neither 'beton' nor 'tar'")
    if not isinstance(split, str):
        raise Error(f"split {split!r:.80} is no name of a split")
    try:
        opened = _open(Path(path), split, format, image_column, label_column)
    except OSError as e:
        raise Error(f"cannot read {e.filename or path}: {e.strerror or first_line(e)}") from None
    if not len(opened.index):
        raise Error(f"{path}: split {opened.split!r} has no samples")
    return opened


def _open(path: Path, split: str, format: str | None, image_column: str | None, label_column: str | None) -> DataSplit:
    if path.is_file() and path.suffix.lower() != ".tar":
        return _foreign(beton.open_index(path, image_column, label_column), split)
    if image_column or label_column:
        raise Error(f"image_column and label_column are for .beton files of others; {path} is none")
    tars, name = foreign.find_tars(path, split)
    if tars:
        return _foreign(foreign.scan_tars(tars), name)
    manifest = Manifest.load(path)
    split = manifest.split(split)
    if format == "beton" and not manifest.splits[split].beton:
        raise Error(f"{path} has no beton of split {split!r}; it has {', '.join(manifest.formats)}")
    manifest.check_sizes(path, split)
    if format == "tar" or not manifest.splits[split].beton:
        index = tar.open_index(path, manifest, split)
    else:
        index = beton.open_index(beton_path(path, split), "image", "label")
    _check(index)
    for side in (index.width, index.height):
        if side.min(initial=1) < 1 or side.max(initial=1) > manifest.res:
            raise Error(f"{path}: split {split!r} has images of more than {manifest.res} pixels a side; convert again")
    if index.label.min(initial=0) < 0 or index.label.max(initial=0) >= manifest.num_classes:
        raise Error(f"{path}: split {split!r} has labels of more than {manifest.num_classes} classes; convert again")
    return DataSplit(index=index, split=split, num_classes=manifest.num_classes, manifest=manifest)


def _foreign(index: ShardIndex, split: str) -> DataSplit:
    _check(index)
    if len(index.files) == 1:
        _check_apart(index)
    for wrong, what in (
        (index.width.astype(np.int64) * index.height > MAX_PIXELS, "claims {width} x {height} pixels"),
        (index.label < 0, "has the label {label}, which is none"),
        (index.label >= MAX_CLASSES, f"has the label {{label}}; classes are numbered from 0 to {MAX_CLASSES - 1:,}"),
    ):
        if wrong.any():
            i = int(wrong.argmax())
            found = what.format(width=int(index.width[i]), height=int(index.height[i]), label=int(index.label[i]))
            raise Error(f"{index.files[int(index.file[i])]}: sample {i} {found}")
    index = replace(index, is_foreign=True)
    return DataSplit(index=index, split=split, num_classes=int(index.label.max(initial=-1)) + 1, manifest=None)


def _check(index: ShardIndex) -> None:
    """Raise Error where a payload leaves its file or a raw one does not fit its shape. By pieces: indices are large."""
    try:
        sizes = np.array([path.stat().st_size for path in index.files], np.int64)
    except OSError as e:
        raise Error(f"cannot read {e.filename}: {e.strerror}") from None
    for at in range(0, len(index), CHECK_ROWS):
        part = slice(at, at + CHECK_ROWS)
        start, length = index.offset[part], index.num_bytes[part]
        beyond = (start < 0) | (length < 0) | (start > sizes[index.file[part]] - length)
        if beyond.any():
            i = at + int(beyond.argmax())
            raise Error(f"{index.files[int(index.file[i])]} is cut short or damaged: sample {i} lies beyond its end")
        unfit = (index.codec[part] == RAW) & (length != np.int64(3) * index.width[part] * index.height[part])
        if unfit.any():
            i = at + int(unfit.argmax())
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
