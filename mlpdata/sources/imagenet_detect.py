"""ImageNet in every form in which people have it: the content of a path decides which source reads it."""

from __future__ import annotations

import os
from pathlib import Path

from mlpdata.errors import Error, reading
from mlpdata.fetch.hub import Repository
from mlpdata.sources import downsampled, webdataset
from mlpdata.sources.base import ClassFilter, Source
from mlpdata.sources.devkit import flat_val
from mlpdata.sources.files import is_folder, is_system
from mlpdata.sources.folder import Folder
from mlpdata.sources.ilsvrc import TRAIN, ImageNet1k
from mlpdata.sources.imagenet import ImageNetTars
from mlpdata.sources.imagenet_release import recognise
from mlpdata.sources.keys import shown


def open_imagenet1k(
    path: Path | str | Repository, class_filter: ClassFilter, res: int, cache: Path, splits: tuple[str, ...] = ()
) -> Source:
    """ILSVRC2012: the official tars, Downsampled-ImageNet, WebDataset tars, or class folders or tars in a directory.

    path:   a string is the URL of the train tar; a repository has to hold WebDataset tars.
    cache:  folder that keeps the listing of gzip streams.
    splits: names of those that are wanted, () for all.
    """
    if not isinstance(path, Path):
        return _remote(path, class_filter, res, cache, ("ilsvrc2012",))
    if path.is_dir() and (path / TRAIN).exists():
        return ImageNet1k(path, class_filter, res, cache, splits)
    if batches := downsampled.find(path):
        return downsampled.Downsampled(path, batches, class_filter, splits)
    if tars := webdataset.find(path):
        return webdataset.WebDataset(path, tars, class_filter, res, ("ilsvrc2012",))
    if path.is_dir():
        return _classes(path, class_filter, res, splits, flat_val(path))
    return ImageNet1k(path, class_filter, res, cache, splits)


def open_imagenet21k(
    path: Path | str | Repository, class_filter: ClassFilter, res: int, cache: Path, splits: tuple[str, ...] = ()
) -> Source:
    """ImageNet-21k: fall11, winter21 or -P in one tar, plain or gzip, WebDataset tars, or class folders or tars.

    path: a string is the URL of the one plain tar; a repository has to hold WebDataset tars. See open_imagenet1k.
    """
    lists = ("fall11", "fall11-12k", "fall11-p", "winter21-p")
    if not isinstance(path, Path):
        return _remote(path, class_filter, res, cache, lists)
    if tars := webdataset.find(path):
        return webdataset.WebDataset(path, tars, class_filter, res, lists)
    return _classes(path, class_filter, res, splits) if path.is_dir() else ImageNetTars(path, class_filter, res, cache)


def _remote(path: str | Repository, class_filter: ClassFilter, res: int, cache: Path, lists: tuple[str, ...]) -> Source:
    if isinstance(path, str):
        return ImageNetTars(path, class_filter, res, cache)
    if tars := webdataset.find(path):
        return webdataset.WebDataset(path, tars, class_filter, res, lists)
    raise Error(f"{path} holds neither parquet files nor WebDataset tars")


def _classes(
    path: Path,
    class_filter: ClassFilter,
    res: int,
    splits: tuple[str, ...],
    val_labels: dict[str, dict[str, str]] | None = None,
) -> Source:
    """A directory of extracted classes: `<wnid>.tar` files or `<wnid>/` folders, also below split folders."""
    with reading(f"the folder {path}"), os.scandir(path) as iterator:
        entries = sorted(iterator, key=lambda e: e.name)
    folders = [e.name for e in entries if is_folder(e) and not is_system(e.name + "/")]
    files = [e.name for e in entries if not is_folder(e) and not is_system(e.name)]
    tars = [name for name in files if name.endswith(".tar") and not name.startswith("ILSVRC2012")]
    if tars and folders:
        raise Error(f"{path} has tars and folders, {shown(tars[0])} and {shown(folders[0])}: move one kind away")
    if tars:
        return ImageNetTars(path, class_filter, res)
    source = Folder(path, class_filter, res, val_labels, splits)
    source.release = recognise([name for name, _ in source.classes], [], False)
    return source
