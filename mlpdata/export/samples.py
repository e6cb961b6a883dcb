"""The samples of a split in their order, in blocks: as encoded images or as pixels, from either format.

What is stored as JPEG or PNG passes through unchanged unless another codec is asked for. Raw pixels become PNGs, which
lose nothing, or JPEGs. Memory does not grow with the data: a worker gets the rows of the index that it is to read, and
holds one block of samples.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import BinaryIO

import numpy as np

from mlpdata import image
from mlpdata.choices import CODECS
from mlpdata.errors import Error, cannot_read, first_line
from mlpdata.export.options import DEFAULT_QUALITY, ExportOptions
from mlpdata.shards import index
from mlpdata.shards.manifest import Manifest
from mlpdata.shards.shard_index import ShardIndex
from mlpdata.shards.text import open_file

RAW, JPG, PNG = (CODECS.index(codec) for codec in ("raw", "jpg", "png"))
BLOCK_ROWS, BLOCK_BYTES = 1024, 16 << 20  # of samples as they are stored
KEY_ROWS = 1 << 16  # keys read at a time
PNG_OVERHEAD = 128  # bytes beside the pixels, and what filters add to noise


@dataclass(frozen=True, slots=True)
class Block:
    """Consecutive samples of a split."""

    first: int  # the row of the first one in its split
    keys: list[str]
    labels: np.ndarray  # (n,) int64
    codecs: list[str]  # of `images`
    images: list[bytes]  # encoded; empty where pixels were asked for
    pixels: np.ndarray  # (n, H, W, 3) uint8; (0,) where encoded images were asked for

    def __len__(self) -> int:
        return len(self.keys)


@dataclass(frozen=True, slots=True)
class Rows:
    """Consecutive rows of a split, for a worker to read. index: of these rows alone."""

    split: str
    first: int
    index: ShardIndex

    def __len__(self) -> int:
        return len(self.index)


def rows_of(split: str, whole: ShardIndex, first: int, stop: int) -> Rows:
    """Rows first to stop - 1, with no more of the index than they need."""
    part = slice(first, stop)
    file = whole.file[part].astype(np.int64)
    low, high = int(file[0]), int(file[-1])
    columns = {
        name: getattr(whole, name)[part] for name in ("offset", "num_bytes", "codec", "width", "height", "label")
    }
    return Rows(split, first, replace(whole, files=whole.files[low : high + 1], file=file - low, **columns))


def format_to_read(manifest: Manifest, options: ExportOptions, pixels: bool) -> str:
    """Which of a directory's two formats is read where the user does not say: the one that needs least coding.

    Encoded images are taken where they are stored in the codec that is asked for, pixels where they are stored raw.
    """
    codecs = {name: codec for name, codec in (("tar", manifest.tar_codec), ("beton", manifest.beton_codec)) if codec}
    if options.format:
        if options.format not in codecs:
            raise Error(f"{options.root} has no {options.format}; it has {', '.join(manifest.formats)}")
        return options.format
    wanted = {"stored": ("jpg", "png", "raw"), "jpg": ("jpg", "raw", "png"), "png": ("png", "raw", "jpg")}
    order = ("raw", "png", "jpg") if pixels else wanted[options.codec]
    return min(codecs, key=lambda name: order.index(codecs[name]))


def estimated_bytes(whole: ShardIndex, options: ExportOptions, pixels: bool) -> np.ndarray:
    """(N,) int64: about how many bytes each sample takes in an export; exact where it passes through."""
    raw = whole.width.astype(np.int64) * whole.height * 3
    if pixels:
        return raw
    stored = whole.num_bytes.astype(np.int64)
    if options.codec == "jpg":
        return np.where(whole.codec == JPG, stored, raw // 4 + PNG_OVERHEAD)
    passes = (whole.codec == PNG) | ((whole.codec == JPG) & (options.codec == "stored"))
    return np.where(passes, stored, raw + PNG_OVERHEAD)


def read_blocks(root: Path, manifest: Manifest, options: ExportOptions, rows: Rows, pixels: bool) -> Iterator[Block]:
    """The samples of some rows. Raises Error naming file and sample for what cannot be read or decoded."""
    files: dict[int, BinaryIO] = {}
    keys: list[str] = []
    keys_from = 0
    try:
        for start, stop in _block_bounds(rows.index):
            if stop > keys_from + len(keys):
                keys_from = start
                ids = np.arange(rows.first + start, rows.first + min(len(rows), max(stop, start + KEY_ROWS)))
                keys = index.keys(root, manifest, rows.split, ids)
            yield _read_block(rows, start, stop, keys[start - keys_from : stop - keys_from], files, options, pixels)
    finally:
        for file in files.values():
            file.close()


def _block_bounds(part: ShardIndex) -> Iterator[tuple[int, int]]:
    """Blocks of at most so many rows and bytes, each of one file."""
    ends, start = np.cumsum(part.num_bytes.astype(np.int64)), 0
    while start < len(part):
        before = int(ends[start - 1]) if start else 0
        stop = int(np.searchsorted(ends, before + BLOCK_BYTES, side="right"))
        stop = min(max(stop, start + 1), start + BLOCK_ROWS)
        stop = min(stop, int(np.searchsorted(part.file, part.file[start], side="right")))
        yield start, stop
        start = stop


def _read_block(rows: Rows, start: int, stop: int, keys, files, options: ExportOptions, pixels: bool) -> Block:
    part, number = rows.index, int(rows.index.file[start])
    path = part.files[number]
    begin = int(part.offset[start:stop].min())
    end = int((part.offset[start:stop] + part.num_bytes[start:stop]).max())
    try:
        if number not in files:
            for file in files.values():
                file.close()
            files.clear()
            files[number] = open_file(path, 0)
        data = memoryview(_read_range(files[number], begin, end - begin, path))
    except OSError as e:
        raise cannot_read(path, e) from None
    images: list[bytes] = []
    codecs: list[str] = []
    out = np.empty((stop - start, int(part.height[start]), int(part.width[start]), 3) if pixels else 0, np.uint8)
    columns = (part.offset, part.num_bytes, part.codec, part.width, part.height)
    for i, (offset, size, codec, width, height) in enumerate(
        zip(*(column[start:stop].tolist() for column in columns), strict=True)
    ):
        payload = data[offset - begin : offset - begin + size]
        try:
            if pixels:
                out[i] = _pixels(payload, codec, width, height)
            else:
                codec, encoded = _encoded(payload, codec, width, height, options)
                codecs.append(codec)
                images.append(encoded)
        except (image.ImageError, ValueError) as e:
            where = f"sample {rows.first + start + i} at byte {offset} ({keys[i]})"
            raise Error(f"{path}: {where} cannot be decoded ({first_line(e)}); convert or get it again") from e
    return Block(rows.first + start, keys, part.label[start:stop].astype(np.int64), codecs, images, out)


def _read_range(file: BinaryIO, begin: int, length: int, path: Path) -> bytes:
    data = os.pread(file.fileno(), length, begin)
    if len(data) < length:
        raise Error(f"{path} is cut short: it ends at byte {begin + len(data)}; get or convert it again")
    return data


def _encoded(payload: memoryview, codec: int, width: int, height: int, options: ExportOptions) -> tuple[str, bytes]:
    """(codec, encoded image) of a stored sample."""
    wanted = options.codec if options.codec != "stored" else "png" if codec == RAW else CODECS[codec]
    if CODECS[codec] == wanted:
        return wanted, bytes(payload)
    pixels = _pixels(payload, codec, width, height)
    return wanted, image.encode_jpeg(
        pixels, options.quality or DEFAULT_QUALITY
    ) if wanted == "jpg" else image.encode_png(pixels)


def _pixels(payload: memoryview, codec: int, width: int, height: int) -> np.ndarray:
    """uint8 (H, W, 3) of a stored sample."""
    if codec == RAW:
        return np.frombuffer(payload, np.uint8).reshape(height, width, 3)
    if codec == JPG:
        pixels = np.empty((height, width, 3), np.uint8)
        image.decode_kept(bytes(payload), pixels)
        return pixels
    return image.decode_exact(bytes(payload), (width, height))
