"""Where each sample of a split lies: the one record that every format gives and the loader reads by."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from mlpdata.shards.tar_cache import TarCache


@dataclass(frozen=True, kw_only=True)
class ShardIndex:
    """Where each sample of a split lies, whatever the format.

    All arrays have N rows in the order of the split, and are read-only. A column that is the same for all samples may
    be a broadcast scalar (stride 0), which takes no memory.
    """

    files: list[Path]
    file: np.ndarray  # (N,) integer, position in `files`
    offset: np.ndarray  # (N,) int64, the byte of the file where the payload starts
    num_bytes: np.ndarray  # (N,) int64, of the payload
    codec: np.ndarray  # (N,) uint8, position in CODECS
    width: np.ndarray  # (N,) integer, pixels
    height: np.ndarray  # (N,) integer, pixels
    label: np.ndarray  # (N,) int32 or int64
    cache: TarCache | None = None  # where the files come from, if they are not all here
    is_foreign: bool = False  # written by others: its JPEGs may be ones that libjpeg warns about

    def __post_init__(self):
        for column in (self.file, self.offset, self.num_bytes, self.codec, self.width, self.height, self.label):
            column.flags.writeable = False

    def __len__(self) -> int:
        return len(self.label)
