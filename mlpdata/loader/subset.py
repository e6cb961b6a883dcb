"""Which samples of a split are loaded: what `subset` and `classes` ask for. What is ambiguous is an Error, no guess."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, cast

import numpy as np
import torch

from mlpdata.errors import Error
from mlpdata.loader.options import is_whole, shown
from mlpdata.loader.order import permute
from mlpdata.shards.classes import read_classes
from mlpdata.shards.open import DataSplit
from mlpdata.system.format import plural


@dataclass(frozen=True, kw_only=True)
class Selection:
    """The samples that are loaded; a row is a number of one of them.

    labels:  int64 (N,) of the rows. num_classes: what they are below of.
    ids:     int64 (N,), the id of each row; None: row i is sample i of the split.
    classes: int64, the class numbers that were asked for, as far as their order matters; None: all.
    numbers: with relabel, the class number that each label stands for; None: labels are the split's own.
    tar_lengths: samples in each tar of the split, in a shard directory that has tars.
    """

    labels: np.ndarray
    num_classes: int
    ids: np.ndarray | None = None
    classes: np.ndarray | None = None
    numbers: list[int] | None = None
    tar_lengths: tuple[int, ...] = ()

    @property
    def all_ids(self) -> np.ndarray:
        """int64 (N,): the ids of all rows."""
        return np.arange(len(self.labels)) if self.ids is None else self.ids

    def ids_of_rows(self, rows: np.ndarray) -> np.ndarray:
        """The ids of some rows, int64."""
        return rows if self.ids is None else self.ids[rows]

    @cached_property
    def tar_edges(self) -> np.ndarray | None:
        """Where the rows of each tar begin and end, int64, for rows in the order of their ids; None without tars."""
        if not self.tar_lengths:
            return None
        ends = np.concatenate([[0], np.cumsum(self.tar_lengths, dtype=np.int64)])
        return np.unique(ends if self.ids is None else np.searchsorted(np.sort(self.ids), ends))


def select(opened: DataSplit, root: Path, subset: Any, classes: Any, relabel: bool, seed: int) -> Selection:
    """The samples of a split that `subset` and `classes` ask for, in their order. Raises Error.

    subset, classes, relabel, seed: as mlpdata.load takes them. root: where the split is, for its list of classes.
    """

    def class_names() -> list[str]:
        return [name for name, _ in read_classes(root, opened.manifest)] if opened.manifest else []

    labels, num_classes = np.array(opened.index.label, np.int64), opened.num_classes
    allowed = chosen = numbers = None
    if classes is not None:
        numbers = class_numbers(classes, num_classes, class_names, root)
        allowed = np.flatnonzero(np.isin(labels, numbers))
        chosen = np.array(numbers if relabel else sorted(numbers), np.int64)
        if relabel:
            order = np.argsort(numbers)
            labels[allowed] = order[np.searchsorted(numbers, labels[allowed], sorter=order)]
            num_classes = len(numbers)
    ids = choose(len(labels), subset, allowed, seed)
    if ids is not None and np.array_equal(ids, np.arange(len(labels))):
        ids = None
    labels = labels if ids is None else labels[ids]
    if not len(labels):
        raise Error(f"subset and classes leave no samples of split {opened.split!r}")
    manifest = opened.manifest
    return Selection(
        labels=labels,
        num_classes=num_classes,
        ids=ids,
        classes=chosen,
        numbers=numbers if relabel else None,
        tar_lengths=tuple(manifest.splits[opened.split].tar_lengths) if manifest else (),
    )


def choose(n: int, subset: Any, allowed: np.ndarray | None, seed: int) -> np.ndarray | None:
    """The ids that a subset asks for, int64, in its order; None for all n samples. Raises Error.

    subset: as mlpdata.load takes it. allowed: the ids that it may choose from, ascending; None for all.

    >>> choose(10, [7, 2, 7], None, 0).tolist(), choose(10, slice(8, None), None, 0).tolist()
    ([7, 2, 7], [8, 9])
    """
    if subset is None:
        return allowed
    share = isinstance(subset, (float, np.floating))
    if not share and not is_whole(subset):
        ids = ids_of(subset, n)
        return ids if allowed is None else ids[np.isin(ids, allowed)]
    available = n if allowed is None else len(allowed)
    if share:
        count = round(float(subset) * available) if 0 < subset <= 1 else 0
    else:
        count = int(subset)
    if not 1 <= count <= available:
        raise Error(f"subset {shown(subset)} is not a share or count of the {plural(available, 'sample')} there are")
    drawn = np.sort(permute(np.arange(count), available, f"mlpdata subset {seed}"))
    return drawn if allowed is None else allowed[drawn]


def ids_of(subset: Any, n: int) -> np.ndarray:
    """The ids that a mask over n samples, a slice or a list of ids stands for: int64, in that order. Raises Error."""
    if isinstance(subset, slice):
        try:
            subset = range(*subset.indices(n))
        except (TypeError, ValueError) as e:
            raise Error(f"subset {shown(subset)} is no slice of whole numbers ({e})") from None
    if isinstance(subset, range):
        ends = [subset[0], subset[-1]] if subset else []
        _check_bounds(min(ends, default=0), max(ends, default=0), n)  # before its numbers take memory
        return np.asarray(subset, np.int64)
    listed = isinstance(subset, Sequence) and not isinstance(subset, (str, bytes, bytearray))
    if not (listed or hasattr(subset, "__array__")) or isinstance(subset, np.ma.MaskedArray):
        # A set and an iterator have no order that could be repeated; a string is no list of ids.
        raise Error(f"subset {shown(subset)} is no count, share, mask, slice, array or list of ids")
    try:
        if isinstance(subset, torch.Tensor):
            array = subset.detach().cpu().numpy()
        elif listed:
            numbers = cast(Sequence[Any], subset)  # of Python, numpy or torch
            items = [item.item() if hasattr(item, "item") else item for item in numbers]
            # numpy would take True for 1 among numbers: a list is all ids or all mask.
            kinds = {type(item) for item in items}
            array = np.asarray(items, np.int64 if not items else None if len(kinds) == 1 else object)
            if kinds == {int} and array.dtype == object:  # beyond 64 bits
                _check_bounds(min(items), max(items), n)
        else:
            array = np.asarray(subset)
    except Error:
        raise
    except Exception as e:
        raise Error(f"subset {shown(subset)} is no array of ids ({shown(str(e))})") from None
    if array.ndim != 1 or array.dtype.kind not in "biu":
        what = "in one dimension" if array.ndim != 1 else f"of whole numbers or booleans, not {array.dtype}"
        raise Error(f"subset {shown(subset)} is no list of ids or mask {what}")
    if array.dtype.kind == "b":
        if len(array) != n:
            raise Error(f"subset is a mask of length {len(array)}; the split has {plural(n, 'sample')}")
        return np.flatnonzero(array)
    if len(array):
        _check_bounds(int(array.min()), int(array.max()), n)
        if len(array) == n > 2 and array.max() <= 1:
            raise Error(f"subset has an entry of 0 or 1 for each of the {n} samples: a mask must have booleans")
    return array.astype(np.int64)


def _check_bounds(low: int, high: int, n: int) -> None:
    if low < 0:
        raise Error(f"subset names sample {low}; ids count from 0")
    if high >= n:
        raise Error(f"subset names sample {high}, beyond the {n} of the split")


def class_numbers(classes: Any, num_classes: int, names: Callable[[], list[str]], where: object) -> list[int]:
    """The numbers of classes that are listed by number or by name, in that order. Raises Error.

    names: returns the source's names of the classes in label order. where: what has these classes, for messages.
    """
    if not isinstance(classes, (str, bytes)) and hasattr(classes, "tolist"):
        classes = classes.tolist()
    if not isinstance(classes, (list, tuple, range)) or not classes:
        raise Error(f"classes {shown(classes)} is no list of numbers or names")
    wanted = {c for c in classes if isinstance(c, str)}
    number_of: dict[str, int] = {}
    for number, name in enumerate(names() if wanted else ()):
        if name in wanted and number_of.setdefault(name, number) != number:
            raise Error(f"{where} has two classes of the name {shown(name)}; give the number of the one that is meant")
    numbers = []
    for c in classes:
        number = number_of.get(c, -1) if isinstance(c, str) else c
        if not is_whole(number):
            raise Error(f"classes holds {shown(c)}, which is no number and no name of a class")
        if not 0 <= number < num_classes:
            raise Error(f"{where} has no class {shown(c)}; it has {plural(num_classes, 'class')}")
        numbers.append(int(number))
    if len(set(numbers)) < len(numbers):
        raise Error("classes names a class twice")
    return numbers
