"""What can be opened, and where its samples lie: shard directories, single betons, other people's WebDataset tars.

A directory of ours answers from its manifest and index. Tars of others are scanned once, header by header; what was
found is kept in the user's cache, and holds as long as every file has the same size and time of change.
"""

from __future__ import annotations

import glob
import hashlib
import io
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path

import numpy as np

from mlpdata import beton, tar
from mlpdata.archives import download_folder
from mlpdata.errors import Error, first_line
from mlpdata.image import MAX_PIXELS, ImageError, probe
from mlpdata.manifest import CODECS, Manifest, ShardIndex, beton_path, manifest_path, work_path, write_atomic
from mlpdata.sources import tarscan
from mlpdata.sources.blob import PlainFile

FORMATS = ("beton", "tar")
RAW, JPG, OTHER = (CODECS.index(name) for name in ("raw", "jpg", "png"))
# Whatever is neither raw nor JPEG is decoded by Pillow, as PNGs are.
IMAGES = ("jpg", "jpeg", "png", "webp", "ppm")  # extensions of what may be one; the content says which it is
HEAD_BYTES = 1 << 16  # of an image that are read for its size; more where its header is longer
CHECK_ROWS = 1 << 18
MAX_CLASSES = 1_000_000  # of what others made: a larger label is an id
CACHE_VERSION = 2


@dataclass(frozen=True, kw_only=True)
class Opened:
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
) -> Opened:
    """Find a split and check that every payload lies inside its file.

    path: a shard directory; a `.beton` file; a tar, a pattern of tars, or a directory of nothing but tars (there the
    names of a split's tars begin with its name). split and format choose inside a shard directory;
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


def _open(path: Path, split: str, format: str | None, image_column: str | None, label_column: str | None) -> Opened:
    if path.is_file() and path.suffix != ".tar":
        return _foreign(beton.open_index(path, image_column, label_column), split)
    if image_column or label_column:
        raise Error(f"image_column and label_column are for .beton files of others; {path} is none")
    tars = _foreign_tars(path, split)
    if tars:
        return _foreign(scan_tars(tars), split)
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
    return Opened(index=index, split=split, num_classes=manifest.num_classes, manifest=manifest)


def _foreign(index: ShardIndex, split: str) -> Opened:
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
    return Opened(index=index, split=split, num_classes=int(index.label.max(initial=-1)) + 1, manifest=None)


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


# ---------------------------------------------------------------------------------------------------- foreign tars


def _foreign_tars(path: Path, split: str) -> list[Path]:
    """The tars a path stands for, sorted; none where it is a shard directory, finished or not, or nothing at all."""
    if path.is_file():
        return [path]
    if not path.exists():
        # The folder may have brackets in its name, which are no pattern.
        found = sorted(path.parent.glob(path.name)) if path.parent.is_dir() else map(Path, sorted(glob.glob(str(path))))
        found = list(found)
        if found and not all(p.suffix == ".tar" and p.is_file() for p in found):
            raise Error(f"{path} matches {next(p for p in found if p.suffix != '.tar' or not p.is_file())}, not a tar")
        return found
    ours = (manifest_path(path), work_path(path), *path.glob("*.index.parquet"), *path.glob("*.beton"))
    if any(p.exists() for p in ours):
        return []
    every = sorted(path.glob("*.tar"))
    found = [p for p in every if p.name.startswith(split)]
    if every and not found:
        raise Error(f"{path} has no tars of split {split!r} (such as {every[0].name}); a pattern chooses by any name")
    return found


def scan_tars(paths: list[Path]) -> ShardIndex:
    """Index tars of the WebDataset kind by their headers, or from the cache where nothing has changed.

    A sample is a run of members with one name up to its first dot; it needs an image (jpg, png, webp, ppm) and a `cls`.
    Raises Error naming tar and sample for anything else.
    """
    try:
        stats = [path.stat() for path in paths]
    except OSError as e:
        raise Error(f"cannot read {e.filename}: {e.strerror}") from None
    stamp = np.array([[CACHE_VERSION, s.st_size, s.st_mtime_ns] for s in stats], np.int64)
    cache = _cache_path(paths)
    columns = _load_cache(cache, stamp)
    if columns is None:
        tables = [_scan_tar(path) for path in paths]
        columns = {name: np.concatenate([t[name] for t in tables]) for name in tables[0]}
        columns["lengths"] = np.array([len(t["label"]) for t in tables])
        if not len(columns["label"]):
            raise Error(f"{paths[0]} holds no samples")
        _save_cache(cache, stamp, columns)
    file = np.repeat(np.arange(len(paths), dtype=np.int32), columns.pop("lengths"))
    return ShardIndex(files=list(paths), file=file, **columns)


def _scan_tar(path: Path) -> dict[str, np.ndarray]:
    blob = PlainFile(path)
    rows: list[tuple] = []
    key, found = None, {}

    def finish() -> None:
        if key is None:
            return
        image = next((m for m in found if m in IMAGES), None)
        if image is None or "cls" not in found:
            what = "image (jpg, png, webp or ppm)" if image is None else "class (cls)"
            raise Error(f"{path}: sample {key!r} has no {what} among its members ({', '.join(found)})")
        rows.append(_row(path, key, blob, found[image], found["cls"]))

    try:
        for item in tarscan.scan(blob.read_at, 0, blob.size):
            if isinstance(item, tarscan.Damage):
                raise Error(f"{path} is damaged: {item.reason}")
            folder, _, base = item.name.rpartition("/")
            stem, _, extension = base.partition(".")
            if f"{folder}/{stem}" != key:
                finish()
                key, found = f"{folder}/{stem}", {}
            found.setdefault(extension.lower(), item)
        finish()
    except OSError as e:
        raise Error(f"cannot read {path}: {e.strerror}") from None
    finally:
        blob.close()
    table = np.array(rows, np.int64).reshape(len(rows), 6)
    names = {"offset": "<i8", "num_bytes": "<i8", "codec": "u1", "width": "<i4", "height": "<i4", "label": "<i8"}
    return {name: table[:, k].astype(kind) for k, (name, kind) in enumerate(names.items())}


def _row(path: Path, key: str, blob: PlainFile, member, label) -> tuple:
    text = blob.read_at(label.offset, min(label.size, 32)).strip()
    if not text.isdigit():
        raise Error(f"{path}: sample {key!r} has the class {text[:20]!r}, which is not a number")
    for size in (min(member.size, HEAD_BYTES), member.size):
        try:
            width, height, is_jpeg = probe(blob.read_at(member.offset, size))
            break
        except ImageError as e:
            if size == member.size:
                raise Error(f"{path}: sample {key!r} is no image that can be read ({e})") from None
    return member.offset, member.size, JPG if is_jpeg else OTHER, width, height, int(text)


def _cache_path(paths: list[Path]) -> Path:
    name = hashlib.sha256("\0".join(str(p.resolve()) for p in paths).encode()).hexdigest()[:24]
    return download_folder() / f"tars-{name}.npz"


def _load_cache(path: Path, stamp: np.ndarray) -> dict[str, np.ndarray] | None:
    try:
        with np.load(path, allow_pickle=False) as data:
            if not np.array_equal(data["stamp"], stamp):
                return None
            return {name: data[name] for name in data.files if name != "stamp"}
    except Exception:  # missing, cut short, of another version: scanning again is the answer to all of them
        return None


def _save_cache(path: Path, stamp: np.ndarray, columns: dict[str, np.ndarray]) -> None:
    out = io.BytesIO()
    np.savez(out, stamp=stamp, **columns)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        write_atomic(path, out.getvalue())
    except OSError:
        pass  # a home that cannot be written costs another scan, not the work
