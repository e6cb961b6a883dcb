"""Payloads of a range of samples, read from front to back in long pieces and proven to be what was written.

Pixels are held against the digest in the index. An encoding has no digest of its own, so its whole file is held against
the SHA-256 in the manifest, once, by the unit that holds the file's first samples.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from functools import cached_property
from pathlib import Path

import numpy as np
import xxhash

from mlpdata.derive.parents import Parent
from mlpdata.errors import Error
from mlpdata.shards import beton
from mlpdata.shards.files import difference
from mlpdata.shards.index import IndexRows
from mlpdata.shards.manifest import beton_path
from mlpdata.shards.text import open_file

BLOCK_BYTES = 4 << 20  # read at a time
GAP_BYTES = 64 << 10  # a shorter gap is read too: that costs less than another call

Payload = memoryview


class Payloads:
    """Where the payloads of consecutive samples of one split lie, and the payloads themselves.

    parent, split: whose samples. first: the first of them; rows: theirs of the index.
    """

    def __init__(self, parent: Parent, split: str, first: int, rows: IndexRows):
        self._parent, self._split, self._first, self._rows = parent, split, first, rows

    @cached_property
    def _beton_offsets(self) -> np.ndarray:
        if not self._parent.manifest.tar_codec:
            return self._rows.offset
        path = beton_path(self._parent.root, self._split)
        meta, _ = beton.read_rows(path, self._first, len(self._rows))
        return meta["image"]["data_ptr"].astype(np.int64)

    def places(self, of_format: str, chosen: np.ndarray) -> tuple[str, np.ndarray]:
        """The file that holds all of some samples in one format, and (n,) where each begins."""
        if of_format == "beton":
            return beton_path(self._parent.root, self._split).name, self._beton_offsets[chosen]
        return self._rows.file[0], self._rows.offset[chosen]

    def encoded(self, chosen: np.ndarray) -> Iterator[Payload]:
        """The encodings of some samples, (n,) ascending positions in the rows."""
        of_format, _ = self._parent.encoding or ("", "")
        return self._read(of_format, chosen, self._rows.bytes[chosen])

    def pixels(self, chosen: np.ndarray) -> Iterator[np.ndarray]:
        """The pixels of some samples, uint8 (H, W, 3) each. Raises Error where they are not those of the index."""
        heights, widths = self._rows.height[chosen].astype(np.int64), self._rows.width[chosen].astype(np.int64)
        digests = self._rows.digest[chosen].tolist()
        payloads = self._read(self._parent.raw or "", chosen, 3 * heights * widths)
        shapes = zip(heights.tolist(), widths.tolist(), strict=True)
        for i, (payload, digest, shape) in enumerate(zip(payloads, digests, shapes, strict=True)):
            if xxhash.xxh3_64_intdigest(payload) != digest:
                key = self._rows.key[int(chosen[i])]
                raise self._parent.damaged(self._parent.root, f"is damaged: sample {key} has other pixels than listed")
            yield np.frombuffer(payload, np.uint8).reshape(*shape, 3)

    def _read(self, of_format: str, chosen: np.ndarray, sizes: np.ndarray) -> Iterator[Payload]:
        if of_format == "beton":
            path = beton_path(self._parent.root, self._split)
            yield from read_payloads(self._parent, path, self._beton_offsets[chosen], sizes)
            return
        files = np.array(self._rows.file)[chosen]
        edges = np.flatnonzero(np.append(True, files[1:] != files[:-1])[: len(files)]).tolist()
        for start, stop in zip(edges, [*edges[1:], len(files)], strict=True):
            path = self._parent.root / str(files[start])
            yield from read_payloads(self._parent, path, self._rows.offset[chosen[start:stop]], sizes[start:stop])


def read_payloads(parent: Parent, path: Path, offsets: np.ndarray, sizes: np.ndarray) -> Iterator[Payload]:
    """Payloads of one file, at (n,) offsets, of (n,) bytes. Raises Error where the file ends before."""
    starts, lengths = offsets.tolist(), sizes.tolist()
    try:
        with open_file(path, 0) as f:
            i = 0
            while i < len(starts):
                first = end = starts[i]
                stop = i
                while stop < len(starts) and end <= starts[stop] <= end + GAP_BYTES:
                    end = starts[stop] + lengths[stop]
                    stop += 1
                    if end - first >= BLOCK_BYTES:
                        break
                block = memoryview(os.pread(f.fileno(), end - first, first)) if first >= 0 else memoryview(b"")
                if len(block) < end - first or end < first:
                    raise parent.damaged(path, "is cut short")
                for k in range(i, stop):
                    yield block[starts[k] - first : starts[k] - first + lengths[k]]
                i = stop
    except OSError as e:
        raise Error(f"cannot read {path}: {e.strerror}") from None


def check_file(parent: Parent, name: str) -> None:
    """Raise Error where a file is not the one that the manifest lists."""
    path = parent.root / name
    try:
        with open_file(path) as f:
            if wrong := difference(f, parent.manifest.files[name]):
                raise parent.damaged(path, wrong)
    except OSError as e:
        raise Error(f"cannot read {path}: {e.strerror}") from None
