"""The split of every sample of WebDataset tars: that of its tar, else that of its folder inside the tar."""

from __future__ import annotations

import functools
from collections.abc import Mapping

from mlpdata import splits
from mlpdata.errors import Error
from mlpdata.sources.keys import listed
from mlpdata.sources.wds_tars import SourceTar


@functools.lru_cache(10_000)  # called for every sample
def of_folder(folder: str) -> str:
    """The split that the folders of a member's path name; "" for none. Raises Error where they name two."""
    return (folder and splits.of_path(folder)) or ""


class SampleSplits:
    """The splits of a source and of its samples. Raises Error where a tar and folders inside it disagree.

    names: of the splits, train's first. tars: with their splits as the data set calls them.
    inside: tar -> what `of_folder` gave for samples of it, of those tars that were looked into.
    """

    def __init__(self, path: object, tars: list[SourceTar], inside: Mapping[str, set[str]], notes: list[str]):
        anywhere = set().union(*inside.values())
        self._inside: dict[str, set[str]] = {}  # of tars whose folders decide
        theirs, unnamed = set(), []
        for tar in tars:
            folders = inside.get(tar.name, anywhere)
            named = folders - {""}
            if tar.split is not None:
                theirs.add(tar.split)
                if not tar.is_listed and (other := named - {splits.canonical(tar.split)}):
                    raise Error(
                        f"{path}: {tar.name} is of split {tar.split} by its name and holds samples in folders of "
                        f"{' and '.join(sorted(other))}: rename it, for folders inside to decide, or list it in "
                        "_info.json"
                    )
            elif named:
                theirs |= named
                self._inside[tar.name] = folders
            else:
                unnamed.append(tar.name)
        if unnamed:
            notes.append(f"{path}: {listed(unnamed, 1, 'others')} name no split and are taken for train")
        self._ours = splits.our_names(sorted(theirs))
        notes += [f"{path}: {line}" for line in splits.renames(self._ours)]
        self._ours.setdefault("train", "train")
        self._of_tar = {tar.name: self._ours[tar.split or "train"] for tar in tars if tar.name not in self._inside}
        self._by_name = {t.name: splits.canonical(t.split) for t in tars if t.split and not t.is_listed}
        if rest := [name for name in self._inside if "" in inside.get(name, ())]:
            notes.append(f"{path}: samples in no split's folder are taken for train, as in {min(rest)}")
        names = {*self._of_tar.values(), *(self._ours[f or "train"] for fs in self._inside.values() for f in fs)}
        self.names = tuple(sorted(names, key=lambda split: (split != "train", split)))

    def of_tar(self, tar: str) -> tuple[str, ...]:
        """The splits that samples of a tar may be of."""
        return (self._of_tar[tar],) if tar in self._of_tar else self.names

    def of_sample(self, tar: str, folder: str) -> tuple[str, str]:
        """(split of a sample, "" for its tar's; why it has none, or "")."""
        inside, by_name = of_folder(folder), self._by_name.get(tar)
        if tar in self._inside:
            split = self._ours.get(inside or "train", "")
            if split not in self.names:
                return "", "lies in a folder of a split that was not seen when the tars were looked at"
            return split, ""
        if by_name and inside and inside != by_name:
            return "", f"lies in a folder of {inside}, in a tar that is of {by_name} by its name"
        return "", ""
