"""ImageNet's class lists, and maps between them by wnid.

The lists are facts copied from timm's wheel (`timm/data/_info`), kept in `data/synsets.tsv.gz`. The 19,167 classes of
winter21 are published nowhere as a list: a winter21 conversion records its own in `classes.txt`, and `mapping` takes
any list of wnids.
"""

from __future__ import annotations

import gzip
from collections.abc import Sequence
from functools import cache
from importlib.resources import files

import numpy as np

from mlpdata.manifest import Error

LISTS = {"fall11": "f", "fall11-p": "p", "winter21-p": "w", "ilsvrc2012": "k"}  # name -> mark in the file


@cache
def _table() -> dict[str, tuple[str, str]]:
    text = gzip.decompress((files("mlpdata") / "data" / "synsets.tsv.gz").read_bytes()).decode()
    rows = (line.split("\t") for line in text.splitlines() if not line.startswith("#"))
    return {wnid: (marks, lemmas) for wnid, marks, lemmas in rows}


@cache
def classes(name: str) -> tuple[str, ...]:
    """The wnids of a list in label order, that is sorted: 21,841 / 11,221 / 10,450 / 1,000. Raises Error."""
    if name not in LISTS:
        raise Error(f"no class list {name!r}; there are {', '.join(LISTS)}")
    return tuple(wnid for wnid, (marks, _) in _table().items() if LISTS[name] in marks)


def readable(wnid: str) -> str:
    """The lemmas of a synset ("tench, Tinca tinca"), or the wnid itself where it is unknown."""
    return _table().get(wnid, ("", wnid))[1]


def mapping(source: str | Sequence[str], target: str | Sequence[str]) -> np.ndarray:
    """Label map between two class lists.

    source, target: a list's name, or wnids in label order (as in a directory's classes.txt).
    Returns (len(source),) int64: the label in `target`, or -1 for a class that is not in it.
    """
    source, target = (classes(x) if isinstance(x, str) else x for x in (source, target))
    position = {wnid: i for i, wnid in enumerate(target)}
    return np.array([position.get(wnid, -1) for wnid in source], np.int64)
