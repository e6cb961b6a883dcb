"""Other people's WebDataset tars, to be loaded as they are: which files a path means, and where samples lie.

Tars are scanned once, header by header. The index is kept in the user's cache and holds as long as every file has
the same size and time of change. A sample that cannot be loaded is an Error: nothing here could list what is left out.
"""

from __future__ import annotations

import hashlib
import io
import warnings
from pathlib import Path

import numpy as np

from mlpdata import splits
from mlpdata.archive.blob import PlainFile
from mlpdata.errors import Error
from mlpdata.fetch.official import download_folder
from mlpdata.image.codec import probe
from mlpdata.image.limits import ImageError
from mlpdata.shards.manifest import CODECS, ShardIndex, manifest_path, work_path
from mlpdata.sources.wds_sample import TarSample, image_of, iter_samples, label_of, other_images
from mlpdata.sources.wds_tars import list_tars, tell_splits
from mlpdata.system.files import write_atomic

JPG, OTHER = (CODECS.index(name) for name in ("jpg", "png"))  # whatever is no JPEG is decoded by Pillow, as PNGs are
HEAD_BYTES = 1 << 16  # of an image that are read for its size; more where its header is longer
COLUMNS = {"offset": "<i8", "num_bytes": "<i8", "codec": "u1", "width": "<i4", "height": "<i4", "label": "<i8"}
CACHE_VERSION = 3


def find_tars(path: Path, split: str) -> tuple[list[Path], str]:
    """(tars, the name of their split) of a path: a tar, all that a pattern matches, or those of a split in a directory.

    No tars of a shard directory, finished or not, and of what is not there. Raises Error for a split that is not there.
    """
    if path.is_dir():
        ours = (manifest_path(path), work_path(path), *path.glob("*.index.parquet"), *path.glob("*.beton"))
        if any(p.exists() for p in ours):
            return [], split
    found = list_tars(path)
    root = found.location if isinstance(found.location, Path) else path
    tars = [root / tar.name for tar in found.tars]
    if not path.is_dir():
        if others := [p for p in tars if p.suffix.lower() != ".tar"]:
            raise Error(f"{path} matches {others[0]}, not a tar")
        return tars, split
    if not tars:
        return [], split
    tell_splits(found)
    ours = splits.settle(sorted({tar.split or "train" for tar in found.tars}))
    of_split: dict[str, list[Path]] = {}
    for tar in found.tars:
        of_split.setdefault(ours[tar.split or "train"], []).append(root / tar.name)
    name = splits.find(split, of_split)
    if name is None:
        there = ", ".join(of_split)
        raise Error(f"{path} has no tars of split {split!r}; it has {there} (such as {found.tars[0].name})")
    if unnamed := [tar.name for tar in found.tars if tar.split is None]:
        found.warnings.append(f"{path}: {unnamed[0]} and whatever else names no split is taken for train")
    for line in found.warnings:
        warnings.warn(line, RuntimeWarning, stacklevel=2)
    return of_split[name], name


def scan_tars(paths: list[Path]) -> ShardIndex:
    """Index tars by their headers, or from the cache where nothing has changed.

    A sample is a run of members with one name up to its first dot; it needs an image, whatever its extension, and the
    number of its class in a `cls` or a JSON. Raises Error naming tar and sample for anything else.
    """
    try:
        stats = [path.stat() for path in paths]
    except OSError as e:
        raise Error(f"cannot read {e.filename}: {e.strerror}") from None
    stamp = np.array([[CACHE_VERSION, s.st_size, s.st_mtime_ns] for s in stats], np.int64)
    cache = _cache_path(paths)
    columns = _load_cache(cache, stamp)
    if columns is None:
        words: list[str] = []
        tables = [_scan_tar(path, words) for path in paths]
        columns = {name: np.concatenate([t[name] for t in tables]) for name in COLUMNS}
        columns["lengths"] = np.array([len(t["label"]) for t in tables])
        if not len(columns["label"]):
            raise Error(f"{paths[0]} holds no samples")
        if words:
            more = f" (and {len(words) - 1:,} things more of this kind)" if len(words) > 1 else ""
            warnings.warn(words[0] + more, RuntimeWarning, stacklevel=2)
        else:  # what has to be said is said again next time
            _save_cache(cache, stamp, columns)
    file = np.repeat(np.arange(len(paths), dtype=np.int32), columns.pop("lengths"))
    return ShardIndex(files=list(paths), file=file, **columns)


def _scan_tar(path: Path, words: list[str]) -> dict[str, np.ndarray]:
    """COLUMNS of the samples of a tar. words: takes what is to be said of it."""
    blob = PlainFile(path)
    rows: list[tuple] = []
    try:
        for group in iter_samples(blob):
            if isinstance(group, TarSample):
                rows.append(_row(path, blob, group, words))
            elif group.is_data:
                raise Error(f"{path} is damaged: {group.reason}")
            elif not group.origin:
                words.append(f"{path}: {group.reason}")
    finally:
        blob.close()
    table = np.array(rows, np.int64).reshape(len(rows), len(COLUMNS))
    return {name: table[:, k].astype(kind) for k, (name, kind) in enumerate(COLUMNS.items())}


def _row(path: Path, blob: PlainFile, group: TarSample, words: list[str]) -> tuple:
    sample = f"{path}: sample {group.name!r}"
    if group.strange:
        raise Error(f"{path}: {group.strange[0][0]} {group.strange[0][1]}; repack the tar")
    (image, why_no_image), (label, why_no_label) = image_of(group), label_of(blob, group)
    if why := why_no_image or why_no_label:
        raise Error(f"{sample} {why} among its members ({', '.join(group.members)})")
    if isinstance(label, str):
        raise Error(f"{sample} has the class {label[:40]!r}, which is not a number; `mlpdata convert hub` takes names")
    if others := other_images(group, image):
        words.append(f"{sample} has several images: {image} is taken, {others[0].name} is not")
    member = group.members[image]
    for size in (min(member.size, HEAD_BYTES), member.size):
        try:
            width, height, is_jpeg = probe(blob.read_at(member.offset, size))
            break
        except ImageError as e:
            if size == member.size:
                raise Error(f"{sample} is no image that can be read ({e})") from None
    return member.offset, member.size, JPG if is_jpeg else OTHER, width, height, label


def _cache_path(paths: list[Path]) -> Path:
    names = "\0".join(str(p.resolve()) for p in paths)
    return download_folder() / f"tars-{hashlib.sha256(names.encode('utf-8', 'surrogateescape')).hexdigest()[:24]}.npz"


def _load_cache(path: Path, stamp: np.ndarray) -> dict[str, np.ndarray] | None:
    try:
        with np.load(path, allow_pickle=False) as data:
            if not np.array_equal(data["stamp"], stamp):
                return None
            columns = {name: data[name].astype(kind, casting="safe") for name, kind in COLUMNS.items()}
            lengths = data["lengths"].astype(np.int64, casting="safe")
    except Exception:  # missing, cut short, of another version: scanning again is the answer to all of them
        return None
    n = lengths.sum() if lengths.shape == (len(stamp),) and (lengths >= 0).all() else -1
    return columns | {"lengths": lengths} if all(c.shape == (n,) for c in columns.values()) else None


def _save_cache(path: Path, stamp: np.ndarray, columns: dict[str, np.ndarray]) -> None:
    out = io.BytesIO()
    np.savez(out, stamp=stamp, **columns)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        write_atomic(path, out.getvalue())
    except OSError:
        pass  # a home that cannot be written costs another scan, not the work
