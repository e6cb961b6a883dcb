"""Parts: the form samples have on their way from an archive to the shards. One unit of the source is one part.

`NAME.data` holds the payloads, each sample's pixels and then its encoding. `NAME.rows` says what they are: a checksum,
sizes, a JSON record, a table of rows (ROW) and the text they refer to. The rename of `NAME.rows` is the journal: where
it stands, the unit is done. What an earlier run left is input like any other: its checksum also covers a key, which
says what the part is of, and the payloads have checksums of their own, block by block. Rows go from the last split and
the largest hash(seed, key) down, so the samples of any output shard are one stretch of every part, and the first
shard's stretch is the end: what is used is cut off there.
"""

from __future__ import annotations

import bisect
import errno
import json
import os
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import xxhash

from mlpdata.errors import Error

ROW = np.dtype(
    [
        ("hash", "<u8"),  # of (seed, key)
        ("digest", "<u8"),  # of the pixels, where the part has them
        ("data", "<i8"),  # where the payload starts in NAME.data
        ("text", "<i8"),  # where the key starts in the text; the source's path follows it
        ("label", "<i4"),
        ("source_width", "<i4"),
        ("source_height", "<i4"),
        ("width", "<i4"),
        ("height", "<i4"),
        ("pixels_bytes", "<i4"),
        (
            "has_pixels",
            "<i4",
        ),  # 1: they are in the part; 0: they are decoded from the encoding when the shard is written
        ("encoded_bytes", "<i4"),
        ("key_bytes", "<i4"),
        ("source_bytes", "<i4"),
    ]
)
HEAD = np.dtype([("check", "<u8"), ("record_bytes", "<u8"), ("num_rows", "<u8")])
CHECK_BYTES = 8
NUM_BLOCKS = 64  # of a part's payloads, each with a checksum: a part is cut off at their ends
BUFFERS = 1000  # a vectored read or write; the system takes 1,024
BATCH_BYTES = 16 << 20  # about what is written at a time
READ_BYTES = 4 << 20


def keyed_check(key: str, body: bytes = b"") -> xxhash.xxh3_64:
    """The checksum of a journal that must be of `key`: another's is as good as damaged."""
    return xxhash.xxh3_64(body, seed=xxhash.xxh3_64_intdigest(key.encode()))


def write(
    folder: Path, name: str, rows: np.ndarray, text: bytes, payloads: Iterable, record: dict, durable: bool, key: str
) -> Path:
    """Write a part. Returns the path of its journal.

    rows:     (N,) ROW; `data` is filled in here.
    payloads: the buffers of NAME.data, one after the other.
    record:   anything for JSON.
    durable:  sync both files before they count.
    key:      what the part is of: `check` wants it again.
    """
    sizes = rows["pixels_bytes"].astype(np.int64) * rows["has_pixels"] + rows["encoded_bytes"]
    rows["data"] = np.cumsum(sizes) - sizes
    blocks = _write_data(folder / f"{name}.data", payloads, durable, int(sizes.sum()) // NUM_BLOCKS + 1)
    line = json.dumps({**record, "blocks": blocks}).encode()
    head = np.zeros((), HEAD)
    head["record_bytes"], head["num_rows"] = len(line), len(rows)
    body = head.tobytes()[CHECK_BYTES:] + line + rows.tobytes() + text
    path = folder / f"{name}.rows"
    tmp = path.with_name(f"{path.name}.tmp")
    with open(tmp, "wb") as f:
        f.write(keyed_check(key, body).intdigest().to_bytes(CHECK_BYTES, "little") + body)
        if durable:
            f.flush()
            os.fsync(f.fileno())
    os.replace(tmp, path)
    return path


def _write_data(path: Path, payloads: Iterable, durable: bool, block_bytes: int) -> list[tuple[int, str]]:
    """Write buffers one after the other; returns (where it ends, checksum) of each block of about so many bytes."""
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


@dataclass(frozen=True, slots=True)
class Stretch:
    """Consecutive rows of a part."""

    rows: np.ndarray  # (N,) ROW
    text: bytes  # key, source, key, source, ...: what the rows' text is


class Part:
    """A finished part. Nothing of it stays in memory but where its pieces lie."""

    def __init__(self, journal: Path):
        self.journal, self.data_path = journal, str(journal.with_suffix(".data"))
        with open(journal, "rb", buffering=0) as f:
            head = np.frombuffer(self._read(f, 0, HEAD.itemsize), HEAD)[0]
        self._num_rows, self._rows_at = int(head["num_rows"]), HEAD.itemsize + int(head["record_bytes"])
        self._text_at = self._rows_at + self._num_rows * ROW.itemsize

    @property
    def record(self) -> dict:
        """What the writer had to say of the whole part."""
        with open(self.journal, "rb", buffering=0) as f:
            line = self._read(f, HEAD.itemsize, self._rows_at - HEAD.itemsize)
        try:
            return json.loads(line)
        except ValueError:
            raise self._changed() from None

    def __len__(self) -> int:
        return self._num_rows

    def rows(self, start: int, stop: int) -> np.ndarray:
        """(stop - start,) ROW."""
        rows = np.fromfile(self.journal, ROW, stop - start, offset=self._rows_at + start * ROW.itemsize)
        if len(rows) < stop - start:
            raise self._changed()
        return rows

    def stretch(self, start: int, stop: int) -> Stretch:
        with open(self.journal, "rb", buffering=0) as f:
            rows = np.frombuffer(
                self._read(f, self._rows_at + start * ROW.itemsize, (stop - start) * ROW.itemsize), ROW
            )
            first, last = rows[0], rows[-1]
            size = int(last["text"] + last["key_bytes"] + last["source_bytes"] - first["text"])
            return Stretch(rows, self._read(f, self._text_at + int(first["text"]), size))

    def _read(self, f, offset: int, size: int) -> bytes:
        data = os.pread(f.fileno(), size, offset)
        if len(data) != size:
            raise self._changed()
        return data

    def _changed(self) -> Error:
        return Error(f"{self.journal} was changed while the work went on; run the same command again to go on")


def read_payloads(path: str, offset: int, buffers: Sequence) -> None:
    """Fill buffers from NAME.data, one after the other from an offset on."""
    fd = os.open(path, os.O_RDONLY)
    try:
        for at in range(0, len(buffers), BUFFERS):
            batch = buffers[at : at + BUFFERS]
            expected = sum(map(len, batch))
            if os.preadv(fd, batch, offset) != expected:
                raise Error(f"{path} was cut while the work went on; run the same command again to go on")
            offset += expected
    finally:
        os.close(fd)


def check(journal: Path, key: str, may_be_cut: bool) -> dict | None:
    """The record of a part found on disk; None where it is damaged, or of something else.

    A power cut may leave a renamed file without its bytes, and people what they like.
    may_be_cut: whether payloads may be gone that `cut_off` takes.
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
            size, start = os.fstat(f.fileno()).st_size, 0
            ends = [0, *(end for end, _ in record["blocks"])]
            if size != ends[-1] and not (may_be_cut and size in ends):
                return None
            for end, expected in record["blocks"][: ends.index(size)]:
                if _block_check(f, end - start) != expected:
                    return None
                start = end
    except (FileNotFoundError, NotADirectoryError, IsADirectoryError):
        return None
    return record


def _block_check(f, size: int) -> str:
    block = xxhash.xxh3_64()
    while chunk := f.read(min(size, READ_BYTES)):
        block.update(chunk)
        size -= len(chunk)
    return block.hexdigest()


def deferred(rows: np.ndarray) -> np.ndarray:
    """The numbers of the rows whose pixels are wanted and not in the part."""
    return np.flatnonzero((rows["has_pixels"] == 0) & (rows["pixels_bytes"] > 0))


def cut_off(part: Part, row: int) -> None:
    """Give back the disk space of the payloads from a row on, but for a block's rest. What is gone already stays so."""
    end = int(part.rows(row, row + 1)["data"][0])
    ends = [0, *(end for end, _ in part.record["blocks"])]
    end = ends[bisect.bisect_left(ends, end)]
    if os.stat(part.data_path).st_size > end:
        os.truncate(part.data_path, end)


def lacks(part: Part, row: int) -> bool:
    """Whether the payload of the row before `row`, and with it what of the part is wanted still, was cut off."""
    last = part.rows(row - 1, row)[0]
    size = last["pixels_bytes"] * last["has_pixels"] + last["encoded_bytes"]
    return os.stat(part.data_path).st_size < last["data"] + size
