"""Chunks for streaming: MDS of MosaicML's streaming, and those of Lightning's litData. Both are nearly the same file.

A chunk is the number of samples, the offset of each and of the end, for MDS its columns in JSON, then the samples: the
sizes of their columns, then their columns. Integers have 32 bits, little-endian. `index.json` lists a split's chunks.

Both are written here: mosaicml-streaming 0.13 brings the libraries of four clouds and wants a numpy below 2.2, and
neither library's writer goes on after an interruption. The tests read with the libraries.
"""

from __future__ import annotations

import json
from abc import abstractmethod
from collections.abc import Iterator
from pathlib import Path
from typing import Any, ClassVar

import numpy as np

from mlpdata.errors import Error
from mlpdata.export.samples import Block
from mlpdata.export.writer import Piece, Say, Writer, Written, entry, one_file
from mlpdata.shards.classes import classes_text
from mlpdata.shards.files import FileEntry
from mlpdata.shards.manifest import classes_path
from mlpdata.system.files import replacing, write_atomic

MOST_BYTES = 1 << 31  # of a chunk: offsets have 32 bits


class ChunkWriter(Writer):
    """A split is a folder of chunks and their index."""

    file_bytes = 60 << 20  # both libraries take 64 MB

    def cut(self, sizes: np.ndarray) -> list[tuple[int, int]]:
        if (self.exported.options.file_bytes or 0) > MOST_BYTES:
            raise Error(f"a chunk holds at most {MOST_BYTES / 1e6:,.0f} MB; choose a smaller --file-mb")
        return super().cut(sizes)

    @abstractmethod
    def chunk_name(self, number: int) -> str:
        """The file name of a chunk."""

    @abstractmethod
    def columns(self, block: Block) -> Iterator[tuple[list[bytes], bytes]]:
        """(columns whose sizes are listed, columns without a size) of every sample; the latter stand last."""

    def head(self) -> bytes:
        """What stands between the offsets and the samples."""
        return b""

    def write(self, folder: Path, piece: Piece, blocks: Iterator[Block]) -> Written:
        path, n, head = folder / piece.rows.split / self.chunk_name(piece.number), len(piece.rows), self.head()
        path.parent.mkdir(exist_ok=True)
        sizes, start = np.empty(n, np.int64), 4 + 4 * (n + 1) + len(head)
        with replacing(path, sync=False) as f:
            f.write(bytes(start))  # the offsets follow when they are known
            row = 0
            for block in blocks:
                for sized, fixed in self.columns(block):
                    lengths = np.array([len(column) for column in sized], "<u4").tobytes()
                    sizes[row] = f.write(b"".join((lengths, *sized, fixed)))
                    row += 1
            ends = start + np.cumsum(sizes)
            if ends[-1] > 2 * MOST_BYTES - 1:
                raise Error(f"{piece} would be {ends[-1]:,} bytes of one chunk; choose a smaller --file-mb")
            f.seek(0)
            f.write(np.concatenate([[n, start], ends]).astype("<u4").tobytes() + head)
        return one_file(folder, path, piece)

    @abstractmethod
    def listing(self, pieces: list[Written]) -> dict[str, Any]:
        """The content of the index of a split."""

    def finish(self, folder: Path, written: dict[str, list[Written]], say: Say) -> dict[str, FileEntry]:
        classes = classes_path(folder)
        write_atomic(classes, classes_text(self.exported.classes).encode())
        listings = entry(folder, classes)
        for split, pieces in written.items():
            path = folder / split / "index.json"
            write_atomic(path, json.dumps(self.listing(pieces), sort_keys=True).encode())
            listings |= entry(folder, path)
        return listings


def _file(piece: Written) -> tuple[str, FileEntry]:
    """(file name, entry) of a chunk."""
    ((path, file),) = piece.files.items()
    return path.rpartition("/")[2], file


class MdsWriter(ChunkWriter):
    """For `streaming.StreamingDataset(local=..., split=...)`: `image` is a PIL image, `label` an int, `key` a str."""

    def chunk_name(self, number: int) -> str:
        return f"shard.{number:05d}.mds"

    def columns(self, block: Block) -> Iterator[tuple[list[bytes], bytes]]:
        labels = block.labels.astype("<i8")
        for i, (image, key) in enumerate(zip(block.images, block.keys, strict=True)):
            yield [image, key.encode()], labels[i].tobytes()

    def head(self) -> bytes:
        return json.dumps(self._config(), sort_keys=True).encode()

    def _config(self) -> dict[str, Any]:
        encoding = {"jpg": "jpeg", "png": "png"}[self.exported.codec]
        return {
            "version": 2,
            "format": "mds",
            "compression": None,
            "hashes": ["sha256"],
            "size_limit": self.exported.options.file_bytes or self.file_bytes,
            "column_names": ["image", "key", "label"],  # sorted, as the library has them
            "column_encodings": [encoding, "str", "int"],
            "column_sizes": [None, None, 8],
        }

    def listing(self, pieces: list[Written]) -> dict[str, Any]:
        shards = []
        for piece in pieces:
            name, file = _file(piece)
            data = {"basename": name, "bytes": file["bytes"], "hashes": {"sha256": file["sha256"]}}
            shards.append({**self._config(), "samples": piece.num_samples, "raw_data": data, "zip_data": None})
        return {"version": 2, "shards": shards}


class LitdataWriter(ChunkWriter):
    """For `litdata.StreamingDataset(EXPORT/SPLIT)`: `image` is a uint8 tensor (3, H, W), `label` int, `key` str."""

    LEAVES: ClassVar = ["image", "label", "key"]

    def chunk_name(self, number: int) -> str:
        return f"chunk-0-{number}.bin"

    def columns(self, block: Block) -> Iterator[tuple[list[bytes], bytes]]:
        labels = block.labels.astype("<i8")
        for i, (image, key) in enumerate(zip(block.images, block.keys, strict=True)):
            yield [image, labels[i].tobytes(), key.encode()], b""

    def listing(self, pieces: list[Written]) -> dict[str, Any]:
        image = {"jpg": "jpeg", "png": "image:png"}[self.exported.codec]
        leaf = {"type": None, "context": None, "children_spec": []}
        # A dict of leaves, as torch's pytrees write it in version 1.
        spec = {"type": "builtins.dict", "context": json.dumps(self.LEAVES), "children_spec": [leaf] * len(self.LEAVES)}
        config = {
            "chunk_bytes": self.exported.options.file_bytes or self.file_bytes,
            "chunk_size": None,
            "compression": None,
            "data_format": [image, "int", "str"],
            "data_spec": json.dumps([1, spec]),
            "encryption": None,
            "item_loader": "PyTreeLoader",
        }
        chunks = []
        for piece in pieces:
            name, file = _file(piece)
            chunks.append(
                {"filename": name, "chunk_bytes": file["bytes"], "chunk_size": piece.num_samples, "dim": None}
            )
        return {"chunks": chunks, "config": config}
