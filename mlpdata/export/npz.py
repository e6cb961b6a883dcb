"""numpy's own archives, SPLIT.npz: `images` (N, H, W, 3) uint8, `labels`, `keys`, `classes` and `class_names`.

An archive is a zip of arrays, written here piece by piece: memory does not grow with the split. `np.load` opens it
without pickle. Members are stored, not compressed, as `np.savez` does it.
"""

from __future__ import annotations

import zipfile
from collections.abc import Iterable, Iterator
from pathlib import Path

import numpy as np

from mlpdata.errors import Error, printable
from mlpdata.export.samples import KEY_ROWS, Block
from mlpdata.export.writer import Piece, Say, Writer, Written, one_file
from mlpdata.shards import index
from mlpdata.shards.card import distinct_names
from mlpdata.shards.shard_index import ShardIndex
from mlpdata.system.files import replacing


class NpzWriter(Writer):
    """A split is one file."""

    wants_pixels = True

    def prepare(self, folder: Path, split: str, whole: ShardIndex, say: Say) -> None:
        if (whole.width != whole.width[0]).any() or (whole.height != whole.height[0]).any():
            raise Error(
                f"{self.exported.options.root}: split {split} has images of different sizes, which do not fit in one "
                "array; export to another format, or convert with --resize squash or crop"
            )

    def cut(self, sizes: np.ndarray) -> list[tuple[int, int]]:
        return [(0, len(sizes))]

    def write(self, folder: Path, piece: Piece, blocks: Iterator[Block]) -> Written:
        split, part = piece.rows.split, piece.rows.index
        n, path = len(part), folder / f"{piece.rows.split}.npz"
        shape = (n, int(part.height[0]), int(part.width[0]), 3)
        classes = self.exported.classes
        with replacing(path, sync=False) as f, zipfile.ZipFile(f, "w", zipfile.ZIP_STORED, allowZip64=True) as archive:
            _save(archive, "images", np.dtype(np.uint8), shape, (block.pixels for block in blocks))
            labels = part.label.astype(np.int64)
            _save(archive, "labels", labels.dtype, labels.shape, [labels])
            width = max(len(key) for some in self._keys(split, n) for key in some)
            dtype = np.dtype(f"<U{width}")
            _save(archive, "keys", dtype, (n,), (np.array(some, dtype) for some in self._keys(split, n)))
            for name, values in (
                ("classes", [printable(name) for name, _ in classes]),
                ("class_names", distinct_names(classes)),
            ):
                texts = np.array(values, np.str_)
                _save(archive, name, texts.dtype, texts.shape, [texts])
        return one_file(folder, path, piece)

    def _keys(self, split: str, n: int) -> Iterator[list[str]]:
        root, manifest = self.exported.options.root, self.exported.manifest
        for first in range(0, n, KEY_ROWS):
            yield index.keys(root, manifest, split, np.arange(first, min(n, first + KEY_ROWS)))


def _save(archive: zipfile.ZipFile, name: str, dtype: np.dtype, shape: tuple, arrays: Iterable[np.ndarray]) -> None:
    """One member, of arrays that follow one another. ZipInfo's own time, 1980, keeps equal data equal bytes."""
    with archive.open(zipfile.ZipInfo(f"{name}.npy"), "w", force_zip64=True) as member:
        header = {"descr": np.lib.format.dtype_to_descr(dtype), "fortran_order": False, "shape": shape}
        np.lib.format.write_array_header_1_0(member, header)
        for array in arrays:
            member.write(np.ascontiguousarray(array).view(np.uint8).data)
