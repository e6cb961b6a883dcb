"""What the folders inside an ImageNet archive are: classes, splits, or neither."""

from __future__ import annotations

import posixpath
import re
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass, replace

from mlpdata import splits
from mlpdata.errors import Error
from mlpdata.labels import WNID
from mlpdata.sources import keys
from mlpdata.sources.imagenet_listing import ArchiveListing, ClassExtent
from mlpdata.system.format import plural

VAL_NAME = re.compile(r"ILSVRC2012_val_\d{8}\.\w+")  # the names of the val images do not say their class
SMALL_CLASSES = "imagenet21k_small_classes"  # what ImageNet-21k-P leaves out
ARCHIVE_SUFFIXES = (".gz", ".tgz", ".zip", ".bz2", ".xz", ".zst", ".7z", ".rar", ".lz4")


@dataclass
class Run:
    """Consecutive members of one folder, and of one class where their names say the class."""

    folder: str
    label: str  # in a folder that is no class: a wnid or the name of a val image; else ""
    start: int
    file: str  # the first
    is_behind_damage: bool = False  # which may have hit the header of the class tar that the members are in
    end: int = 0
    images: int = 0
    items: int = 0

    @property
    def first_path(self) -> str:
        return f"{self.folder}/{self.file}" if self.folder else self.file


def settle(listing: ArchiveListing, runs: list[Run], tars: list[ClassExtent], path: str) -> None:
    """Decide which folders are classes and which are splits, and complete the listing with that. Raises Error.

    tars: extents of class tars; as their class and split they have their file name and folder.
    """
    class_of = _class_folders(listing, runs, path)  # folder of images -> (its parent, its name as a class)
    labelled = {run.folder for run in runs if run.label}
    if tars and not class_of and not labelled and all(_split_of(tar.class_name) for tar in tars):
        names = ", ".join(sorted({f"{keys.line(tar.class_name)}.tar" for tar in tars})[:4])
        raise Error(f"{path} holds {names}: archives of splits, not of classes; unpack it and pass what is inside")
    class_paths = {*class_of.values(), *((tar.split, tar.class_name) for tar in tars)}
    name_of = _class_names(class_paths)
    parents = {parent for parent, _ in class_paths} | {posixpath.dirname(folder) for folder in labelled}
    split_of = {folder: _split_of(folder) for folder in parents | labelled}
    has_splits = not set(split_of.values()) <= {"", "train"}
    with_images = {run.folder for run in runs if run.images}
    extents: list[ClassExtent] = []
    num_small, seen = 0, set()
    unused: dict[str, list[Run]] = {}
    for tar in tars:
        class_path = (tar.split, tar.class_name)
        if class_path in seen:
            listing.warnings.append(f"{path} holds {keys.line(tar.class_name)}.tar twice; both are read")
        seen.add(class_path)
        if posixpath.basename(tar.split) == SMALL_CLASSES:
            num_small += tar.num_images
        else:
            extents.append(replace(tar, class_name=name_of[class_path], split=split_of[tar.split]))
    for run in runs:
        name = file = ""
        if run.folder in class_of:
            class_path = class_of[run.folder]
            parent, name = class_path[0], name_of[class_path]
            split = split_of[parent]
        elif run.label:
            parent, split = posixpath.dirname(run.folder), split_of[run.folder]
            if VAL_NAME.fullmatch(run.label):
                file, split = run.label, split or "val"
            else:
                name = run.label
        else:
            unused.setdefault(run.folder, []).append(run)
            continue
        if posixpath.basename(parent) == SMALL_CLASSES:
            num_small += run.images
        elif run.is_behind_damage and not split and has_splits:
            # The run may have lain in a class tar of any split. As training data it could be what is held out.
            reason = f"lies behind damage and in no split's folder{_and_others(run.items)}"
            listing.leave_out(run.first_path, reason)
            listing.warnings.append(f"{path}: {keys.line(run.first_path)} left out: it {reason}")
        else:
            extents.append(ClassExtent(0, name, split, run.start, run.end, run.images, run.items, False, file))
    if num_small:
        listing.warnings.append(
            f"{path}: left out, as in ImageNet-21k-P: {plural(num_small, 'image')} in {SMALL_CLASSES}"
        )
    for folder, rest in unused.items():
        is_test = _is_split(folder) and _split_of(folder) == "test"
        is_data = (folder in with_images and not is_test) or rest[0].file.lower().endswith(ARCHIVE_SUFFIXES)
        others = _and_others(sum(run.items for run in rest))
        listing.leave_out(rest[0].first_path, f"lies in no class{others}", is_data)
    listing.extents = _with_settled_splits(listing, sorted(extents, key=lambda extent: extent.start), path)
    listing.parents = sorted(parents)


def _class_folders(listing: ArchiveListing, runs: list[Run], path: str) -> dict[str, tuple[str, str]]:
    """(parent, class) of every folder that is a class."""
    labelled = {run.folder for run in runs if run.label}
    folders = {run.folder for run in runs if run.images and run.folder}
    folders = {f for f in folders if not (_is_split(f) and f in labelled)}
    # A folder of images with the name of a split is a class only where other classes lie beside it.
    parents = {posixpath.dirname(f) for f in folders if not _is_split(f)}
    folders = {f for f in folders if not _is_split(f) or posixpath.dirname(f) in parents}
    for f in sorted(filter(_is_split, folders)):
        listing.warnings.append(f"{path}: the folder {keys.line(f)} is taken for a class, for classes lie beside it")
    names = {posixpath.basename(f) for f in folders}
    below = next(iter(names)) if len(names) == 1 and len(folders) > 1 else None  # as in <class>/images/
    return {f: _class_place(f, below) for f in folders}


def _class_place(folder: str, below: str | None) -> tuple[str, str]:
    """(parent, class) of a folder of images: the class is the deepest synset in its path, else the deepest folder.

    below: a folder that lies in every class, and is none itself.
    """
    names = folder.split("/")
    depth = next((i for i in reversed(range(len(names))) if WNID.fullmatch(names[i])), None)
    if depth is None:
        depth = len(names) - (2 if len(names) > 1 and names[-1] == below else 1)
    return "/".join(names[:depth]), names[depth]


def _class_names(class_paths: Iterable[tuple[str, str]]) -> dict[tuple[str, str], str]:
    """The name of the class by (parent, class).

    Folders of one name below different parents are different classes, and get the parent into their name. Folders of
    one synset are one class everywhere, and so are those of one name below different splits.
    """
    full_names = {class_path: f"{_below_split(class_path[0])}{class_path[1]}" for class_path in class_paths}
    count = Counter(name for name, _ in {(name, full) for (_, name), full in full_names.items()})
    return {
        class_path: class_path[1] if count[class_path[1]] == 1 or WNID.fullmatch(class_path[1]) else full
        for class_path, full in full_names.items()
    }


def _and_others(count: int) -> str:
    if count < 2:
        return ""
    return f", as {'does' if count == 2 else 'do'} {plural(count - 1, 'file')} beside it"


def _is_split(folder: str) -> bool:
    return splits.canonical(posixpath.basename(folder)) is not None


def _split_of(folder: str) -> str:
    return splits.of_path(folder) or "" if folder else ""


def _below_split(parent: str) -> str:
    """The folders around a class, below the one that names the split."""
    names = parent.split("/") if parent else []
    depth = next((i for i in reversed(range(len(names))) if _split_of(names[i])), -1)
    return "".join(f"{name}/" for name in names[depth + 1 :])


def _with_settled_splits(listing: ArchiveListing, extents: list[ClassExtent], path: str) -> list[ClassExtent]:
    names = {extent.split for extent in extents}
    if names <= {"", "train"}:  # everything is for training: without splits, a class filter may hold images out
        return [replace(extent, split="") for extent in extents] if "train" in names else extents
    if "" in names:
        first = keys.line(next(extent.class_name for extent in extents if not extent.split))
        listing.warnings.append(f"{path}: what lies in no split's folder is taken for train, such as {first}")
    ours = splits.our_names(sorted(names - {""})) | {"": "train"}
    if ours.get("test") == "val":
        listing.warnings.append(f"{path}: its split test is called val: it is what is held out")
    return [replace(extent, split=ours[extent.split]) for extent in extents]
