"""What splits are called: the only table. Every source, shard directory and recipe asks here.

Inside mlpdata the splits are `train`, `val` and `test`; a split with a name of its own keeps it.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping

from mlpdata.errors import Error

_NAMES = {
    "train": "train",
    "training": "train",
    "val": "val",
    "valid": "val",
    "validation": "val",
    "dev": "val",
    "eval": "val",
    "test": "test",
    "testing": "test",
}
HELD_OUT = ("val", "test")  # in the order in which they are looked for
_MAX_NAME = 64


def canonical(name: str) -> str | None:
    """The split that a whole name stands for, in any case; None where it stands for none.

    >>> canonical("Validation"), canonical("dev"), canonical("cats")
    ('val', 'val', None)
    """
    return _NAMES.get(name.strip().lower())


def of_folder(name: str) -> str | None:
    """The split that a folder's name stands for, digits and separators aside; None where it stands for none.

    >>> of_folder("Train"), of_folder("val2017"), of_folder("test_set"), of_folder("bullet train")
    ('train', 'val', None, None)
    """
    return canonical(_without_numbers(name))


def of_path(path: str) -> str | None:
    """The split that a file's path names, or None where no word of it does. Raises Error where two fit.

    path: relative, with `/`. A folder or file whose whole name is a split's (digits, separators and extensions aside)
    counts more than words inside longer names; among those, the file counts more than its folders.

    >>> of_path("imagenet1k-validation-00.tar"), of_path("Val-3.tar"), of_path("train0000.tar"), of_path("a/b.tar")
    ('val', 'val', 'train', None)
    >>> of_path("val/dev-clean-0.parquet"), of_path("train_val_split/val.parquet"), of_path("train/x-test.tar")
    ('val', 'val', 'train')
    """
    *folders, file = [name for name in path.split("/") if name not in ("", ".")] or [""]
    names = [*folders, file.partition(".")[0]]
    choices = [{of_folder(name) for name in names}]  # by whole names, then by the words of each
    choices += [{canonical(word) for word in re.split(r"[^a-z]+", name.lower())} for name in reversed(names)]
    splits = next((some - {None} for some in choices if some - {None}), {None})
    if len(splits) > 1:
        both = " and ".join(sorted(filter(None, splits)))
        raise Error(f"{path} fits two splits, {both}: rename it or move it into a folder of its split")
    return splits.pop()


def _without_numbers(name: str) -> str:
    """`train-00000-of-00007` and `Train_3` as `train`."""
    return re.sub(r"^[\W\d_]+|([\W\d_]+of)?[\W\d_]+$", "", name)


def our_names(names: Iterable[str]) -> dict[str, str]:
    """Our name for each of a data set's splits, in their order. A lone `test` is called `val`: it is what is held out.

    Two names of one split get the same name: the caller puts them together or refuses them. Raises Error where a name
    cannot be part of a file name.

    >>> our_names(["train", "testing"]), our_names(["train", "validation", "test"])
    ({'train': 'train', 'testing': 'val'}, {'train': 'train', 'validation': 'val', 'test': 'test'})
    """
    ours = {name: canonical(name) or checked(name) for name in names}
    if "val" not in ours.values():
        ours = {name: "val" if split == "test" else split for name, split in ours.items()}
    return ours


def renames(ours: Mapping[str, str]) -> list[str]:
    """What the user should know of the names that `our_names` gave: splits that are renamed, and splits that are one.

    >>> renames(our_names(["train", "testing"]))
    ["split 'testing' is called 'val': it is the only one that is held out"]
    >>> renames(our_names(["train", "val", "dev"]))
    ["val and dev are both the split 'val': they are put together"]
    """
    lines = [
        f"split {name!r} is called {split!r}: it is the only one that is held out"
        for name, split in ours.items()
        if split != (canonical(name) or name)
    ]
    for split in dict.fromkeys(ours.values()):
        same = [name for name in ours if ours[name] == split]
        if len(same) > 1:
            lines.append(f"{' and '.join(same)} are both the split {split!r}: they are put together")
    return lines


def checked(name: object) -> str:
    """The name of a split, which becomes part of file names; raises Error where it cannot."""
    if not isinstance(name, str) or not re.fullmatch(r"\w[\w-]*", name) or len(name.encode()) > _MAX_NAME:
        raise Error(f"{name!r:.80} is no name for a split: letters, digits, _ and -, at most {_MAX_NAME} bytes")
    return name


def on_hub(name: str) -> str:
    """The name under which Hugging Face's libraries and timm look for one of our splits.

    >>> on_hub("train"), on_hub("val"), on_hub("my-own")
    ('train', 'validation', 'my_own')
    """
    return "validation" if name == "val" else name.replace("-", "_")


def find(name: str, available: Iterable[str]) -> str | None:
    """Which of the available splits a name means: itself, its other spelling, or the only one that is held out.

    >>> find("validation", ["train", "val"]), find("val", ["train", "test"]), find("val", ["train", "val", "test"])
    ('val', 'test', 'val')
    """
    available = list(available)
    if name in available:
        return name
    wanted = canonical(name)
    same = [split for split in available if wanted and canonical(split) == wanted]
    held_out = [split for split in available if canonical(split) in HELD_OUT]
    if len(same) == 1:
        return same[0]
    return held_out[0] if wanted in HELD_OUT and len(held_out) == 1 else None


def chosen(names: Iterable[str], available: Iterable[str], where: object) -> list[str]:
    """Which of the available splits are meant by names, each once; all where there are no names. Raises Error.

    where: has the available splits, for the message.

    >>> chosen(["validation", "val"], ["train", "val"], "a"), chosen([], ["train", "val"], "a")
    (['val'], ['train', 'val'])
    """
    available, splits = list(available), list[str]()
    for name in names:
        split = find(name, available)
        if split is None:
            raise Error(f"no split {name!r:.80} in {where}; it has {', '.join(available) or 'none'}")
        splits.append(split)
    return list(dict.fromkeys(splits)) or available
