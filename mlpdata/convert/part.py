"""A part: what the samples of one unit became, on their way from the archive to the shards.

A part is two files. `UNIT.data` holds the payloads: each sample's pixels, then its encoding. `UNIT.rows` describes
them: a checksum, sizes, a JSON record, a table of rows (ROW) and the text they refer to. `UNIT.rows` is also the
journal: its rename into place says that the unit is done. Rows are sorted by split and then by hash(seed, key), both
descending. So the samples of any output shard are consecutive rows of every part, and the first shard's rows are the
last: the payloads of a shard that was written are the end of `UNIT.data`, where they can be cut off (truncation.py).
"""

from __future__ import annotations

import errno
import json
import os
import tempfile
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import asdict, dataclass
from functools import cached_property
from pathlib import Path
from typing import IO

import msgspec
import numpy as np
import xxhash

from mlpdata.convert.sums import Summary
from mlpdata.errors import Error
from mlpdata.system.files import replacing

ROWS_SUFFIX, DATA_SUFFIX = ".rows", ".data"
ROW = np.dtype(
    [
        ("hash", "<u8"),  # of (seed, key)
        ("digest", "<u8"),  # of the pixels, where the part has them
        ("data", "<i8"),  # where the payload starts in UNIT.data; where it is lent (lent.py), the pixels in their file
        ("encoded_at", "<i8"),  # where the encoding starts in its file, if it is lent
        ("text", "<i8"),  # where the key starts in the text; the source's path follows it
        ("label", "<i4"),
        ("source_width", "<i4"),
        ("source_height", "<i4"),
        ("width", "<i4"),
        ("height", "<i4"),
        ("pixels_bytes", "<i4"),  # 0 where no pixels are wanted
        ("has_pixels", "<i4"),  # 1: the part has them; 0: they are decoded when the shard is written (deferred.py)
        ("encoded_bytes", "<i4"),
        ("key_bytes", "<i4"),
        ("source_bytes", "<i4"),
    ]
)
HEAD = np.dtype([("check", "<u8"), ("record_bytes", "<u8"), ("num_rows", "<u8")])
CHECK_BYTES = 8
NUM_BLOCKS = 64  # of a part's payloads, each with a checksum; a part is truncated at the end of a block
HOLD_BYTES = 256 << 20  # of payloads in memory; a larger unit (a thousand images of 500 px) is held in a file
BUFFERS = 1000  # a vectored read or write; the system takes 1,024
BATCH_BYTES = 16 << 20  # about what is written at a time
READ_BYTES = 4 << 20


@dataclass(frozen=True)
class PartRecord:
    """What a part says of the whole unit."""

    splits: dict[str, tuple[int, int]]  # split -> its first row, and the row behind its last
    skipped: list[dict]  # rows of skipped.jsonl: manifest.Skipped
    small: dict[str, int]  # images of each class that was found too small when it was read
    summary: Summary
    decodes_all: bool  # nothing was deferred
    blocks: list[tuple[int, str]]  # of UNIT.data: where each block ends, and its checksum
    # Of lent payloads (lent.py): number of the directory, file of the pixels or "", file of the encodings or ""
    lent: tuple[int, str, str] | None = None

    @property
    def ends(self) -> list[int]:
        """The lengths that UNIT.data may have: those at which a block ends."""
        return [0, *(end for end, _ in self.blocks)]


def keyed_check(key: str, body: bytes | memoryview = b"") -> xxhash.xxh3_64:
    """The checksum of a journal that belongs to `key`: what belongs to another key fails it, as damage does."""
    return xxhash.xxh3_64(body, seed=xxhash.xxh3_64_intdigest(key.encode()))


# ---------------------------------------------------------------------------------------------------------- write


def write_part(
    journal: Path,
    rows: np.ndarray,
    text: bytes,
    payloads: Iterable[bytes | memoryview],
    record: PartRecord,
    durable: bool,
    key: str,
) -> None:
    """Write a part: its payloads, and then its journal.

    rows:     (N,) ROW; `data` is filled in here, unless payloads are lent.
    payloads: the buffers of UNIT.data, one after the other.
    record:   its blocks are filled in here.
    durable:  sync both files before they count.
    key:      what the part belongs to: `check_part` asks for it again.
    """
    sizes = rows["pixels_bytes"].astype(np.int64) * rows["has_pixels"] + rows["encoded_bytes"]
    if record.lent is None:
        rows["data"] = np.cumsum(sizes) - sizes
    block_bytes = int(sizes.sum()) // NUM_BLOCKS + 1
    record.blocks[:] = _write_data(journal.with_suffix(DATA_SUFFIX), payloads, durable, block_bytes)
    line = json.dumps(asdict(record)).encode()
    head = np.zeros((), HEAD)
    head["record_bytes"], head["num_rows"] = len(line), len(rows)
    body = head.tobytes()[CHECK_BYTES:] + line + rows.tobytes() + text
    check = keyed_check(key, body).intdigest().to_bytes(CHECK_BYTES, "little")
    with replacing(journal, sync=durable) as f:
        f.write(check + body)


def _write_data(path: Path, payloads: Iterable, durable: bool, block_bytes: int) -> list[tuple[int, str]]:
    """Write buffers one after the other. Returns the blocks, each of about `block_bytes`: PartRecord.blocks."""
    check, batch, size = xxhash.xxh3_64(), [], 0
    blocks, start, end = [], 0, 0
    with open(path, "wb", buffering=0) as f:

        def flush():
            # One system call for a thousand payloads, straight from where they lie.
            if os.writev(f.fileno(), batch) != size:
                raise OSError(errno.ENOSPC, "short write: no space left on device", str(path))

        for payload in payloads:
            check.update(payload)
            batch.append(payload)
            size += len(payload)
            end += len(payload)
            if end - start >= block_bytes:
                blocks.append((end, check.hexdigest()))
                start = end
                check.reset()
            if len(batch) == BUFFERS or size > BATCH_BYTES:
                flush()
                batch, size = [], 0
        flush()
        if durable:
            os.fsync(f.fileno())
    return [*blocks, (end, check.hexdigest())] if end > start else blocks


class PayloadStore:
    """The payloads of a unit until their order is known: in memory, and beyond HOLD_BYTES in a nameless file."""

    def __init__(self, folder: Path):
        self._folder = folder
        self._file: IO[bytes] | None = None
        self._items: list[tuple] = []  # (pixels, encoded) in bytes, or (offset, number of bytes) in the file
        self._num_in_file = self._held_bytes = 0

    def append(self, pixels: memoryview | bytes, encoded: bytes) -> None:
        self._items.append((pixels, encoded))
        self._held_bytes += len(pixels) + len(encoded)
        if self._held_bytes > HOLD_BYTES:
            self._spill()

    def _spill(self) -> None:
        if self._file is None:
            self._file = tempfile.TemporaryFile(dir=self._folder)  # noqa: SIM115 - closed in __exit__
        for i in range(self._num_in_file, len(self._items)):
            offset = self._file.tell()
            self._file.writelines(self._items[i])
            self._items[i] = (offset, self._file.tell() - offset)
        self._file.flush()
        self._num_in_file, self._held_bytes = len(self._items), 0

    def iterate(self, order: list[int]) -> Iterator[memoryview | bytes]:
        """The payloads in an order, each as one or two buffers."""
        for i in order:
            first, second = self._items[i]
            if self._file is not None and i < self._num_in_file:
                yield os.pread(self._file.fileno(), second, first)
            else:
                yield from filter(None, (first, second))

    def __enter__(self) -> PayloadStore:
        return self

    def __exit__(self, *_) -> None:
        if self._file is not None:
            self._file.close()


# ----------------------------------------------------------------------------------------------------------- read


@dataclass(frozen=True, slots=True)
class PartRows:
    """Consecutive rows of a part."""

    rows: np.ndarray  # (N,) ROW
    text: bytes  # key, source, key, source, ...: the text of these rows


class Part:
    """A finished part. It keeps in memory only where the pieces of its journal lie."""

    def __init__(self, journal: Path):
        self.journal, self.data_path = journal, journal.with_suffix(DATA_SUFFIX)
        with open(journal, "rb", buffering=0) as f:
            head = np.frombuffer(self._read(f, 0, HEAD.itemsize), HEAD)[0]
        self.num_rows, self._rows_offset = int(head["num_rows"]), HEAD.itemsize + int(head["record_bytes"])
        self._text_offset = self._rows_offset + self.num_rows * ROW.itemsize

    @property
    def record(self) -> PartRecord:
        with open(self.journal, "rb", buffering=0) as f:
            line = self._read(f, HEAD.itemsize, self._rows_offset - HEAD.itemsize)
        try:
            return msgspec.convert(json.loads(line), PartRecord)
        except (ValueError, msgspec.MsgspecError):
            raise self._changed() from None

    @cached_property
    def lent(self) -> tuple[int, str, str] | None:
        """See PartRecord."""
        return self.record.lent

    def rows(self, start: int, stop: int) -> np.ndarray:
        """(stop - start,) ROW."""
        rows = np.fromfile(self.journal, ROW, stop - start, offset=self._rows_offset + start * ROW.itemsize)
        if len(rows) < stop - start:
            raise self._changed()
        return rows

    def rows_with_text(self, start: int, stop: int) -> PartRows:
        with open(self.journal, "rb", buffering=0) as f:
            data = self._read(f, self._rows_offset + start * ROW.itemsize, (stop - start) * ROW.itemsize)
            rows = np.frombuffer(data, ROW)
            first, last = rows[0], rows[-1]
            size = int(last["text"] + last["key_bytes"] + last["source_bytes"] - first["text"])
            return PartRows(rows, self._read(f, self._text_offset + int(first["text"]), size))

    def read_payloads(self, offset: int, buffers: Sequence) -> None:
        """Fill buffers from UNIT.data, one after the other from an offset on."""
        fd = os.open(self.data_path, os.O_RDONLY)
        try:
            for first in range(0, len(buffers), BUFFERS):
                batch = buffers[first : first + BUFFERS]
                expected = sum(map(len, batch))
                if os.preadv(fd, batch, offset) != expected:
                    raise Error(f"{self.data_path} was cut while the work went on; run the same command again to go on")
                offset += expected
        finally:
            os.close(fd)

    def _read(self, f, offset: int, size: int) -> bytes:
        data = os.pread(f.fileno(), size, offset)
        if len(data) != size:
            raise self._changed()
        return data

    def _changed(self) -> Error:
        return Error(f"{self.journal} was changed while the work went on; run the same command again to go on")


def check_part(journal: Path, key: str, may_be_truncated: bool) -> PartRecord | None:
    """The record of a part that an earlier run left; None where it is missing, damaged, or belongs to another key.

    A power cut may leave a renamed file without its bytes, and people may change any file.
    may_be_truncated: whether UNIT.data may end at the end of any of its blocks.
    """
    whole = keyed_check(key)
    try:
        with open(journal, "rb") as f:
            expected = int.from_bytes(f.read(CHECK_BYTES), "little")
            while chunk := f.read(READ_BYTES):
                whole.update(chunk)
        if whole.intdigest() != expected:
            return None
        part = Part(journal)
        record = part.record
        with open(part.data_path, "rb") as f:
            size, start, ends = os.fstat(f.fileno()).st_size, 0, record.ends
            if size != ends[-1] and not (may_be_truncated and size in ends):
                return None
            for end, expected in record.blocks[: ends.index(size)]:
                if checksum_of(f, end - start) != expected:
                    return None
                start = end
    except (FileNotFoundError, NotADirectoryError, IsADirectoryError):
        return None
    return record


def checksum_of(f: IO[bytes], size: int) -> str:
    """XXH3-64 of the next bytes of a file; of fewer where it ends."""
    check = xxhash.xxh3_64()
    while chunk := f.read(min(size, READ_BYTES)):
        check.update(chunk)
        size -= len(chunk)
    return check.hexdigest()
