"""Which folders of a directory are splits, which are classes, and which are neither.

A split taken for a class, or a class for a split, makes a data set that looks whole and is wrong. So a layout that can
be read in two ways is refused, and every folder that is left out is listed and named.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

from mlpdata import splits
from mlpdata.errors import Error, reading
from mlpdata.sources.base import Broken
from mlpdata.sources.files import IMAGE_SUFFIXES, is_folder, is_system, looks_like_image, tree, why_no_file
from mlpdata.sources.keys import listed, shown, text

SYSTEM = "left there by a system or a tool"
MAX_ANNOTATIONS_BYTES = 64 << 20
ANNOTATIONS = "val_annotations.txt"  # of TinyImageNet: file, class and a box a line
# What TinyImageNet and ImageNet-1k have beside their images: either read elsewhere or of no use for classes.
KNOWN_FILES = ("wnids.txt", "words.txt", ANNOTATIONS, "ILSVRC2012_devkit_t12.tar.gz", "ILSVRC2012_devkit_t3.tar.gz",
               "LOC_val_solution.csv", "LOC_train_solution.csv", "LOC_synset_mapping.txt", "LOC_sample_submission.csv",
               "real.json")  # fmt: skip


@dataclass(frozen=True)
class LabelledFolder:
    """A folder of images without class folders, whose classes a list names."""

    below: str  # the folder, relative to the root
    class_of: Mapping[str, str]  # by file name


@dataclass
class FolderLayout:
    """The folders of a directory: classes by split, and what is left out."""

    root: Path
    has_splits: bool = False
    classes: dict[str, list[str]] = field(default_factory=dict)  # split -> class folders, relative to the root
    labelled: dict[str, list[LabelledFolder]] = field(default_factory=dict)  # split -> folders without class folders
    left_out: list[Broken] = field(default_factory=list)
    warnings: list[str] = field(default_factory=list)

    @property
    def splits(self) -> list[str]:
        return list(dict.fromkeys((*self.classes, *self.labelled)))

    def warn(self, what: str, names: list[str]) -> None:
        """Add a warning that names the first few of some files or folders."""
        if names:
            self.warnings.append(f"{shown(self.root)}: {what}: {listed(names)}")

    def leave_out(self, folders: list[str], why: str) -> None:
        """List folders as left out, and say so."""
        self.warn(f"left out, as {'it is' if len(folders) == 1 else 'they are'} {why}", folders)
        self.left_out += [Broken(f"{text(name)}/", f"a folder {why}", is_data=False) for name in folders]


def find(root: Path, labelled: Mapping[str, Mapping[str, str]]) -> FolderLayout:
    """Read the upper levels of a directory. labelled: split folder -> {file name: class}, where that is known.

    Raises Error where there is no class folder, and where splits and classes cannot be told apart.
    """
    layout = FolderLayout(root)
    folders = _level(layout, "")
    split_of = _split_names(folders)
    others = [name for name in folders if name not in split_of]
    classes = {name: _class_names(root / name) for name in split_of}
    trained = {c for name, split in split_of.items() if split == "train" for c in classes[name]}
    # Folders of a held-out split that are no class of train's are no classes, such as test/images/ and test/unknown/.
    deep = [
        name
        for name in split_of
        if name in labelled
        or (root / name / ANNOTATIONS).is_file()
        or (classes[name] & trained if trained else classes[name])
    ]
    if not deep and (others or not folders):
        layout.classes = {"train": folders}
        if not folders:
            raise Error(f"{root} has no class folders; expected {root}/CLASS/IMAGE.jpg or {root}/train/CLASS/IMAGE.jpg")
        return layout
    layout.has_splits = True
    flat = [name for name in split_of if name not in deep]
    if missing := [name for name in flat if split_of[name] != "test"] or (not deep and flat):
        lacks = f"none of train's, but {', '.join(map(shown, sorted(classes[missing[0]])[:3]))}"
        lacks = lacks if classes[missing[0]] else "no class folders"
        raise Error(f"{root / missing[0]} has {lacks}; sort its images into class folders, or move it away")
    if "train" not in split_of.values() or set(split_of.values()) == {"train"}:
        _refuse_classes_beside(root, deep, others)
    layout.leave_out(others, "beside the split folders")
    layout.leave_out(flat, "without class folders of train's: nothing says what its images are")
    ours = splits.our_names(split_of[name] for name in deep)
    layout.warnings += [f"{shown(root)}: {line}" for line in splits.renames(ours)]
    folders_of: dict[str, list[str]] = {}
    for name in deep:
        split = ours[split_of[name]]
        folders_of.setdefault(split, []).append(name)
        _read_split(layout, split, name, labelled.get(name))
    for split, names in folders_of.items():
        if len(names) > 1:
            both = f"{' and '.join(names)} are both the split {split!r}"
            layout.warnings.append(f"{shown(root)}: {both}: they are put together")
    return layout


def _split_names(folders: list[str]) -> dict[str, str]:
    """The split of each folder with a split's name; without any, words decide if all folders have one (`test_set`)."""
    named = {name: split for name in folders if (split := splits.of_folder(name))}
    if not named:
        by_words = {name: split for name in folders if (split := _by_words(name))}
        named = by_words if len(by_words) == len(folders) else {}
    return named


def _by_words(name: str) -> str | None:
    try:
        return splits.of_path(name)
    except Error:  # `train_val_split`
        return None


def _read_split(layout: FolderLayout, split: str, below: str, class_of: Mapping[str, str] | None) -> None:
    folder = layout.root / below
    if class_of is None and (folder / ANNOTATIONS).is_file():
        class_of = read_annotations(folder / ANNOTATIONS)
        below = f"{below}/images" if (folder / "images").is_dir() else below
    if class_of is not None:
        layout.labelled.setdefault(split, []).append(LabelledFolder(below, class_of))
        return
    classes = _level(layout, below, split)
    if len(classes) == 1 and _is_same_split(classes[0], folder.name):
        layout.warnings.append(f"{shown(folder)} holds nothing but {classes[0]}: the classes are read there")
        _read_split(layout, split, f"{below}/{classes[0]}", None)
    elif classes and all(map(splits.of_folder, classes)):
        names = " and ".join(classes)
        raise Error(f"{folder} has {names} where class folders are expected, and those are names of splits")
    else:
        layout.classes.setdefault(split, []).extend(f"{below}/{name}" for name in classes)


def _level(layout: FolderLayout, below: str, split: str = "") -> list[str]:
    """The folders of a level that should hold nothing but folders; everything else is listed as left out."""
    folders, system, strays = [], [], []
    for entry in _entries(layout.root / below):
        path = f"{below}/{entry.name}" if below else entry.name
        if is_data_folder(entry):
            folders.append(entry.name)
        elif is_folder(entry) or is_system(entry.name):
            system += [path] if is_folder(entry) else []
            layout.left_out.append(Broken(text(path), SYSTEM, split, is_data=False))
        elif entry.name not in KNOWN_FILES:
            strays.append(path)
            is_image = entry.name.lower().endswith(IMAGE_SUFFIXES)  # else it is a README, and no data
            reason = why_no_file(entry) or "lies in no class folder"
            layout.left_out.append(Broken(text(path), reason, split, is_data=is_image))
    layout.warn(f"{SYSTEM}, and left out", system)
    layout.warn("in no class folder, and left out", strays)
    return folders


def _refuse_classes_beside(root: Path, deep: list[str], others: list[str]) -> None:
    """Raise Error where folders beside the only split hold images: all of them, the split too, may be classes."""
    for name in others:
        if any(looks_like_image(e.name) for _, entries in tree(str(root / name)) for e in entries if not is_folder(e)):
            raise Error(
                f"{root}: {shown(name)} beside {deep[0]} may be a class beside a class, or no part of a data set with "
                f"splits; move it away, or pass --source {root / deep[0]}"
            )


def _class_names(folder: Path) -> set[str]:
    """The folders in a split folder, or in the only folder in it where that is called as the split is."""
    names = {entry.name for entry in _entries(folder) if is_data_folder(entry)}
    if len(names) == 1 and _is_same_split(only := next(iter(names)), folder.name):
        return _class_names(folder / only)
    return names


def _is_same_split(name: str, other: str) -> bool:
    return bool(_by_words(name)) and (
        name.lower() == other.lower() or splits.of_folder(name) == splits.of_folder(other) is not None
    )


def is_data_folder(entry: os.DirEntry) -> bool:
    """Whether an entry is a folder, and not one that a system or a tool left there."""
    return is_folder(entry) and not is_system(entry.name + "/")


def _entries(folder: Path) -> list[os.DirEntry]:
    with reading(f"the folder {folder}"), os.scandir(folder) as entries:
        return sorted(entries, key=lambda e: e.name)


def read_annotations(path: Path) -> dict[str, str]:
    """The class of each file, from a list such as TinyImageNet has of its val images. Raises Error."""
    with reading(path), open(path, "rb") as f:
        data = f.read(MAX_ANNOTATIONS_BYTES + 1)
    try:
        return parse_annotations(data)
    except ValueError as e:
        raise Error(f"{path} {e}") from None


def parse_annotations(data: bytes) -> dict[str, str]:
    """{file: class} from lines of a file, a TAB, a class, and whatever follows. Raises ValueError, in words.

    >>> parse_annotations(b"val_0.JPEG\\tn01443537\\t0\\t32\\t44\\t62")
    {'val_0.JPEG': 'n01443537'}
    """
    if len(data) > MAX_ANNOTATIONS_BYTES:
        raise ValueError(f"has more than {MAX_ANNOTATIONS_BYTES >> 20} MiB")
    class_of: dict[str, str] = {}
    for number, line in enumerate(data.decode("utf-8-sig", "surrogateescape").split("\n"), 1):
        if not line.strip():
            continue
        file, tab, rest = line.rstrip("\r").partition("\t")
        name = text(rest.partition("\t")[0].strip())
        if not tab or not name:
            raise ValueError(f"has a line {number} that is not a file, a TAB and a class")
        if class_of.setdefault(file, name) != name:
            raise ValueError(f"gives two classes to {shown(file)}: {shown(class_of[file])} and {shown(name)}")
    return class_of
