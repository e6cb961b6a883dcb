"""Other people's WebDataset tars, to be loaded as they are: which files a path means, and where samples lie.

Tars are scanned once, header by header. The index is kept in the user's cache and holds as long as every file has
the same size and time of change. A sample that cannot be loaded is an Error: nothing here could list what is left out.
"""

from __future__ import annotations

import contextlib
import warnings
from collections import Counter
from pathlib import Path

import numpy as np

from mlpdata import splits
from mlpdata.archive.blob import PlainFile
from mlpdata.choices import CODECS
from mlpdata.errors import Error
from mlpdata.image.codec import probe
from mlpdata.image.limits import ImageError
from mlpdata.shards.cache import ColumnCache
from mlpdata.shards.manifest import manifest_path, work_path
from mlpdata.shards.shard_index import ShardIndex
from mlpdata.sources.wds_sample import TarSample, image_of, iter_samples, label_of, other_images
from mlpdata.sources.wds_tars import list_tars, tell_splits

JPG, OTHER = (CODECS.index(name) for name in ("jpg", "png"))  # whatever is no JPEG is decoded by Pillow, as PNGs are
HEAD_BYTES = 1 << 16  # of an image that are read for its size; more where its header is longer
# What is known of each sample, and of which tar it is.
SAMPLE = {"offset": "<i8", "num_bytes": "<i8", "codec": "u1", "width": "<i4", "height": "<i4", "label": "<i8"}
COLUMNS = {"file": "<i4", **SAMPLE}


def find_tars(path: Path | list[Path], split: str) -> tuple[list[Path], str]:
    """Find the tars of a split. Returns them and the name that they have for the split.

    path: a tar, a pattern of tars, a list of those, or a directory. None are found in a shard directory, finished or
    not, and where nothing is. Raises Error where there are tars but none of that split.
    """
    if isinstance(path, list):
        return _listed_tars(path), split
    is_directory = path.is_dir()
    if is_directory:
        shard_files = (manifest_path(path), work_path(path), *path.glob("*.index.parquet"), *path.glob("*.beton"))
        if any(file.exists() for file in shard_files):
            return [], split
    listing = list_tars(path)
    root = listing.location if isinstance(listing.location, Path) else path
    tars = [root / tar.name for tar in listing.tars]
    if not is_directory:
        if others := [tar for tar in tars if tar.suffix.lower() != ".tar"]:
            raise Error(f"{path} matches {others[0]}, not a tar")
        return tars, split
    if not tars:
        if listing.warnings:
            raise Error(listing.warnings[0])
        return [], split
    tell_splits(listing)
    canonical = splits.our_names(sorted({tar.split or "train" for tar in listing.tars}))
    of_split: dict[str, list[Path]] = {}
    for tar in listing.tars:  # which are in another order now
        of_split.setdefault(canonical[tar.split or "train"], []).append(root / tar.name)
    name = splits.find(split, of_split)
    if name is None:
        names = ", ".join(of_split)
        raise Error(f"{path} has no tars of split {split!r}; it has {names} (such as {listing.tars[0].name})")
    if unnamed := [tar.name for tar in listing.tars if tar.split is None]:
        listing.warnings.append(f"{path}: {unnamed[0]} and other tars that name no split are taken for train")
    for line in listing.warnings:
        warnings.warn(line, RuntimeWarning, stacklevel=2)
    return of_split[name], name


def _listed_tars(paths: list[Path]) -> list[Path]:
    """The tars of a list of tars and of patterns."""
    tars: list[Path] = []
    for path in paths:
        found = [] if path.is_dir() else find_tars(path, "train")[0]
        if not found:
            raise Error(f"{path} is not a tar; a list takes WebDataset tars or patterns of them")
        tars += found
    if twice := [tar for tar, count in Counter(tars).items() if count > 1]:
        raise Error(f"{twice[0]} is listed twice")
    return tars


def scan_tars(paths: list[Path]) -> ShardIndex:
    """Index tars by their headers, or from the cache where nothing has changed.

    A sample is a run of members with one name up to its first dot; it needs an image, whatever its extension, and the
    number of its class in a `cls` or a JSON. Raises Error naming tar and sample for anything else.
    """
    stats = [path.stat() for path in paths]
    cache = ColumnCache(paths, np.array([(stat.st_size, stat.st_mtime_ns) for stat in stats]), COLUMNS)
    columns = cache.load()
    if columns is None:
        remarks: list[str] = []
        tables = [_scan_tar(path, remarks) for path in paths]
        columns = {name: np.concatenate([table[name] for table in tables]) for name in SAMPLE}
        columns["file"] = np.repeat(np.arange(len(paths), dtype=np.int32), [len(table["label"]) for table in tables])
        if not len(columns["file"]):
            raise Error(f"{paths[0]} holds no samples")
        if remarks:  # the index is not kept, so that they are made again next time
            more = f" (and {len(remarks) - 1:,} things more of this kind)" if len(remarks) > 1 else ""
            warnings.warn(remarks[0] + more, RuntimeWarning, stacklevel=2)
        else:
            cache.save(columns)
    return ShardIndex(files=paths, **columns)  # pyright: ignore[reportArgumentType] - all of them are its columns


def _scan_tar(path: Path, remarks: list[str]) -> dict[str, np.ndarray]:
    """The columns SAMPLE of a tar, (n,) each. remarks: takes what the user should know of it."""
    rows: list[tuple] = []
    with contextlib.closing(PlainFile(path)) as blob:
        for sample in iter_samples(blob):
            if isinstance(sample, TarSample):
                rows.append(_sample_row(path, blob, sample, remarks))
            elif sample.is_data:
                raise Error(f"{path} is damaged: {sample.reason}")
            elif not sample.origin:
                remarks.append(f"{path}: {sample.reason}")
    table = np.array(rows, np.int64).reshape(len(rows), len(SAMPLE))
    return {name: table[:, k].astype(dtype) for k, (name, dtype) in enumerate(SAMPLE.items())}


def _sample_row(path: Path, blob: PlainFile, sample: TarSample, remarks: list[str]) -> tuple:
    name = f"{path}: sample {sample.name!r}"
    if sample.strange:
        raise Error(f"{path}: {sample.strange[0][0]} {sample.strange[0][1]}; repack the tar")
    (image, why_no_image), (label, why_no_label) = image_of(sample), label_of(blob, sample)
    if why := why_no_image or why_no_label:
        raise Error(f"{name} {why} among its members ({', '.join(sample.members)})")
    if isinstance(label, str):
        raise Error(f"{name} has the class {label[:40]!r}, which is not a number; `mlpdata convert hub` takes names")
    if others := other_images(sample, image):
        remarks.append(f"{name} has several images: {image} is taken, {others[0].name} is not")
    member = sample.members[image]
    for size in (min(member.size, HEAD_BYTES), member.size):
        try:
            width, height, is_jpeg = probe(blob.read_at(member.offset, size))
        except ImageError as e:
            if size == member.size:
                raise Error(f"{name} is no image that can be read ({e})") from None
        else:
            break
    return member.offset, member.size, JPG if is_jpeg else OTHER, width, height, label
