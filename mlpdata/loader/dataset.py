"""A split as a torch Dataset, for people with a DataLoader of their own."""

from __future__ import annotations

import operator
import os
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from PIL import Image
from torch.utils.data import Dataset

from mlpdata.errors import Error
from mlpdata.loader.options import shown
from mlpdata.system.format import plural

if TYPE_CHECKING:
    from mlpdata.loader.reader import Reader


class TorchDataset(Dataset):
    """Item i is (image, label int), in the order of Loader.labels; an i below 0 counts from the end.

    Without a transform an image is a uint8 (3, H, W) tensor, channels first as torch and torchvision expect. A
    transform is called with an RGB PIL image, as torchvision's own data sets do, and what it returns takes the image's
    place: transforms of torchvision (v1 and v2) and of timm work unchanged.

    labels, targets: int64 (n,), read-only. classes: a name for each label. class_to_idx: the label of each name.

    Pickles are small: each worker of a DataLoader opens the files for itself. Raises
    mlpdata.Error as the Loader does, and if the shards have changed since; IndexError beyond the end; TypeError for an
    index that is no whole number.
    """

    def __init__(
        self,
        source: tuple,
        res: int | None,
        fingerprint: tuple[str, list[tuple[int, int]]],
        ids: np.ndarray | None,
        labels: np.ndarray,
        classes: list[str],
        transform: Callable[[Image.Image], Any] | None = None,
    ):
        """Loader.dataset calls this. source: the arguments of open_split. res: as of the Loader.

        fingerprint: the digest of the index and the stamps of the files. ids: int64 (n,); None: item i is sample i.
        """
        if transform is not None and not callable(transform):
            raise Error(f"transform {shown(transform)} cannot be called")
        self._source, self._res, self._fingerprint, self._ids = source, res, fingerprint, ids
        self.labels, self.classes, self.transform = labels, classes, transform
        self._reader: Reader | None = None
        self._pid = 0

    def __getstate__(self):
        return {**self.__dict__, "_reader": None}

    def __setstate__(self, state):
        self.__dict__.update(state)
        self.labels.flags.writeable = False  # pickles do not keep this flag

    @property
    def targets(self) -> np.ndarray:
        """The labels, by the name that torchvision's data sets have for them."""
        return self.labels

    @property
    def class_to_idx(self) -> dict[str, int]:
        """{name of a class: its label}."""
        return {name: label for label, name in enumerate(self.classes)}

    def __len__(self) -> int:
        return len(self.labels)

    def __getitem__(self, i: int) -> tuple:
        return self.__getitems__([i])[0]

    def __getitems__(self, items: list[int]) -> list[tuple]:
        """Several items at once, as DataLoader asks for them: neighbours in the files are read together."""
        rows = np.array([self._row(item) for item in items], np.int64)
        reader = self._open()
        images = np.empty((len(rows), *reader.shape), np.uint8)
        reader.read(rows if self._ids is None else self._ids[rows], images)
        if self.transform is None:
            results = torch.from_numpy(images).permute(0, 3, 1, 2).contiguous().unbind()
        else:
            results = [self.transform(Image.fromarray(image)) for image in images]
        return list(zip(results, self.labels[rows].tolist(), strict=True))

    def _row(self, item: Any) -> int:
        if isinstance(item, (bool, np.bool_)) or getattr(item, "dtype", None) == torch.bool:
            raise TypeError(f"{shown(item)} is not the number of a sample")
        try:
            row = operator.index(item)
        except TypeError:
            raise TypeError(f"{shown(item)} is not the number of a sample") from None
        if not -len(self) <= row < len(self):
            raise IndexError(f"there are {plural(len(self), 'sample')}; asked for {shown(item)}")
        return row % len(self)

    def _open(self) -> Reader:
        """A Reader of this process."""
        if self._reader is None or self._pid != os.getpid():
            from mlpdata.loader.reader import Reader  # here: the interop tests import this module without a JPEG codec
            from mlpdata.shards.open import open_split

            opened = open_split(*self._source)
            reader = Reader(opened.index, 1, self._res)
            if (opened.digest, reader.stamps) != self._fingerprint:
                where = self._source[0][0] if isinstance(self._source[0], list) else self._source[0]
                raise Error(f"{where} changed since it was loaded; load it again")
            self._reader, self._pid = reader, os.getpid()
        return self._reader
