"""ImageNet's class lists, and maps between them by wnid.

The lists are facts copied from timm's wheel and from tensorflow-datasets' (`data/synsets.tsv.gz` names the files), as
are the ReaL labels. `google-21843` is what Google's models (BiT, ViT, MLP-Mixer) count in, `microsoft-21842` what
Microsoft's (Swin, BEiT) do. Two lists are published nowhere: the 19,167 classes of winter21, and the 11,230 of the
paper, which are those of fall11 with at least 500 images. A conversion records its own list in `classes.txt`, and
`mapping` takes any list of wnids:

    to_1k = labels.mapping([wnid for wnid, _ in read_classes("shards/imagenet21k-64")], "ilsvrc2012")
"""

from __future__ import annotations

import gzip
import re
from collections.abc import Iterable, Sequence
from functools import cache
from importlib.resources import files

import numpy as np

from mlpdata.errors import Error

# Name -> marks of its synsets.
LISTS = {"fall11": "f", "fall11-12k": "t", "fall11-p": "p", "winter21-p": "w", "ilsvrc2012": "k", "google-21843": "fg",
         "microsoft-21842": "fk"}  # fmt: skip
WNID = re.compile(r"n\d{8}")  # the name of a synset
VAL_KEY = re.compile(r"ILSVRC2012_val_(\d{8})$")


def _lines(name: str) -> list[str]:
    text = gzip.decompress((files("mlpdata") / "data" / name).read_bytes()).decode()
    return [line for line in text.splitlines() if not line.startswith("#")]


@cache
def _table() -> dict[str, list[str]]:
    """wnid -> [marks, lemmas, number in map_clsloc.txt if it has one]."""
    return {wnid: rest for wnid, *rest in (line.split("\t") for line in _lines("synsets.tsv.gz"))}


@cache
def classes(name: str) -> tuple[str, ...]:
    """The wnids of a list of LISTS in label order. Raises Error.

    They are 21,841 / 11,821 / 11,221 / 10,450 / 1,000 / 21,843 / 21,842. All are sorted but Microsoft's, which is the
    list of ILSVRC2012 followed by the rest of fall11.

    >>> classes("fall11")[0], classes("microsoft-21842")[0]
    ('n00004475', 'n01440764')
    """
    if name not in LISTS:
        raise Error(f"no class list {name!r}; there are {', '.join(LISTS)}")
    wnids = [wnid for wnid, row in _table().items() if not set(LISTS[name]).isdisjoint(row[0])]
    if name == "microsoft-21842":
        first = set(classes("ilsvrc2012"))
        wnids.sort(key=lambda wnid: wnid not in first)
    return tuple(wnids)


@cache
def clsloc() -> tuple[str, ...]:
    """The 1,000 wnids of ILSVRC2012 in the order of `map_clsloc.txt`, which Downsampled-ImageNet's labels follow."""
    numbered = [(int(row[2]), wnid) for wnid, row in _table().items() if len(row) > 2]
    return tuple(wnid for _, wnid in sorted(numbered))


@cache
def _real_rows() -> tuple[str, ...]:
    return tuple(_lines("real.txt.gz"))


def real(keys: Iterable[str], wnids: Sequence[str]) -> dict[str, list[int]]:
    """The ReaL labels of the val images of ILSVRC2012 among `keys`, in the order of `keys`.

    keys:  of samples; those that end in `ILSVRC2012_val_` and eight digits have ReaL labels.
    wnids: the classes in label order; labels that are not among them are left out.
    Returns key -> labels, at most 9 and possibly none: 3,163 of the 50,000 images have none, and do not count when
    accuracy is measured. From Beyer et al., "Are we done with ImageNet?", 2020.
    """
    label_map = mapping("ilsvrc2012", wnids).tolist()
    found = {}
    for key in keys:
        match = VAL_KEY.search(key)
        if match and 1 <= int(match[1]) <= len(_real_rows()):
            row = [label_map[int(label)] for label in _real_rows()[int(match[1]) - 1].split()]
            found[key] = [label for label in row if label >= 0]
    return found


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
