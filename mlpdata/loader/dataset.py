"""A split as a torch Dataset, for people with a DataLoader of their own."""

from __future__ import annotations

import operator
import os

import numpy as np
import torch
from PIL import Image
from torch.utils.data import Dataset

from mlpdata.errors import Error
from mlpdata.loader.options import shown


class TorchDataset(Dataset):
    """Item i is (image, label int), in the order of Loader.labels; an i below 0 counts from the end.

    Without a transform an image is a uint8 (3, H, W) tensor, channels first as torch and torchvision expect them. A
    transform is called with an RGB PIL image, as torchvision's own data sets do, and what it returns stands in the
    image's place: transforms of torchvision's v1 and v2 and timm's take it as it is.

    labels: int64 (n,), read-only. Pickles small: a DataLoader's worker opens the files for itself. Raises mlpdata.Error
    as the Loader does and where the shards are not those that it opened, IndexError beyond the end, and TypeError for
    what is no whole number.
    """

    def __init__(self, where: dict, res: int | None, found: tuple, ids: np.ndarray | None, labels, transform=None):
        """where: what open_split takes. res: as the Loader's. found: the digest of the index, and the files' stamps."""
        if transform is not None and not callable(transform):
            raise Error(f"transform {shown(transform)} cannot be called")
        self._where, self._res, self._found, self._ids = where, res, found, ids
        self.labels, self.transform = labels, transform
        self._reader = None
        self._pid = 0

    def __getstate__(self):
        return {**self.__dict__, "_reader": None}

    def __setstate__(self, state):
        self.__dict__.update(state)
        self.labels.flags.writeable = False  # which pickles do not keep

    def __len__(self) -> int:
        return len(self.labels)

    def __getitem__(self, i: int) -> tuple:
        return self.__getitems__([i])[0]

    def __getitems__(self, items: list[int]) -> list[tuple]:
        """Several at once, which DataLoader asks for: neighbours in the files are read together."""
        rows = np.array([self._row(item) for item in items], np.int64)
        reader = self._open()
        images = np.empty((len(rows), *reader.shape), np.uint8)
        reader.read(rows if self._ids is None else self._ids[rows], images)
        if self.transform is None:
            made = torch.from_numpy(images).permute(0, 3, 1, 2).contiguous().unbind()
        else:
            made = [self.transform(Image.fromarray(image)) for image in images]
        return list(zip(made, self.labels[rows].tolist(), strict=True))

    def _row(self, item) -> int:
        if isinstance(item, (bool, np.bool_)) or getattr(item, "dtype", None) == torch.bool:
            raise TypeError(f"{shown(item)} is no number of a sample")
        try:
            row = operator.index(item)
        except TypeError:
            raise TypeError(f"{shown(item)} is no number of a sample") from None
        if not -len(self) <= row < len(self):
            raise IndexError(f"there are {len(self)} samples; asked for {shown(item)}")
        return row % len(self)

    def _open(self):
        """A Reader of this process."""
        if self._reader is None or self._pid != os.getpid():
            from mlpdata.loader.reader import Reader
            from mlpdata.shards.open import open_split

            opened = open_split(**self._where)
            reader = Reader(opened.index, 1, self._res)
            if (opened.digest, reader.stamps) != self._found:
                raise Error(f"{self._where['path']} changed since it was loaded; load it again")
            self._reader, self._pid = reader, os.getpid()
        return self._reader
