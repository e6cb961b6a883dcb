"""Which kind of archive a path is, told by what is in it: the ways in which people have ImageNet."""

from __future__ import annotations

import os
from pathlib import Path

from mlpdata.errors import Error
from mlpdata.fetch.hub import Repository
from mlpdata.sources import ClassFilter, Source, downsampled, webdataset
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

    Of a URL (a string) it is the train tar, of a repository its WebDataset tars. splits: those that are wanted; () all.
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

    Of a URL (a string) it is the one plain tar, of a repository its WebDataset tars.
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
    labelled: dict[str, dict[str, str]] | None = None,
) -> Source:
    """A directory of extracted classes: `<wnid>.tar` files or `<wnid>/` folders, also below split folders."""
    try:
        with os.scandir(path) as found:
            entries = sorted(found, key=lambda e: e.name)
    except OSError as e:
        raise Error(f"cannot read the folder {path}: {e.strerror}") from None
    folders = [e.name for e in entries if is_folder(e) and not is_system(e.name + "/")]
    tars = [e.name for e in entries if e.name.endswith(".tar") and not is_folder(e) and not is_system(e.name)]
    tars = [name for name in tars if not name.startswith("ILSVRC2012")]
    if tars and folders:
        raise Error(f"{path} has tars and folders, {shown(tars[0])} and {shown(folders[0])}: move one kind away")
    if tars:
        return ImageNetTars(path, class_filter, res)
    source = Folder(path, class_filter, res, labelled, splits)
    source.release = recognise([name for name, _ in source.classes], [], False)
    return source
