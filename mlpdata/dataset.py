"""A split as a torch Dataset, for people with a DataLoader of their own."""

from __future__ import annotations

import os

import numpy as np
import torch
from torch.utils.data import Dataset

from mlpdata.index import open_split
from mlpdata.reader import Reader


class Samples(Dataset):
    """Item i is (image uint8 (H, W, 3) tensor, label int), in the order of Loader.labels.

    transform: called with each image, returns what stands in its place. Pickles small: a DataLoader's worker opens the
    files for itself. Raises mlpdata.Error as the Loader does, and IndexError beyond the end.
    """

    def __init__(self, where: dict, ids: np.ndarray | None, labels: np.ndarray, transform=None):
        self._where, self._ids, self.labels, self.transform = where, ids, labels, transform
        self._reader: Reader | None = None
        self._pid = 0

    def __getstate__(self):
        return {**self.__dict__, "_reader": None}

    def __len__(self) -> int:
        return len(self.labels)

    def __getitem__(self, i: int) -> tuple:
        return self.__getitems__([i])[0]

    def __getitems__(self, items: list[int]) -> list[tuple]:
        """Several at once, which DataLoader asks for: neighbours in the files are read together."""
        rows = np.asarray(items, np.int64)
        if len(rows) and not -len(self) <= rows.min() <= rows.max() < len(self):
            raise IndexError(f"there are {len(self)} samples; asked for {items[int(rows.argmax())]}")
        rows %= max(1, len(self))
        reader = self._open()
        images = np.empty((len(rows), *reader.shape), np.uint8)
        reader.read(rows if self._ids is None else self._ids[rows], images)
        tensors = torch.from_numpy(images).unbind()
        if self.transform is not None:
            tensors = [self.transform(image) for image in tensors]
        return list(zip(tensors, self.labels[rows].tolist(), strict=True))

    def _open(self) -> Reader:
        if self._reader is None or self._pid != os.getpid():
            where = dict(self._where)
            res = where.pop("res")
            self._reader, self._pid = Reader(open_split(where.pop("root"), **where).index, 1, res), os.getpid()
        return self._reader
