"""Parts: the form samples have on their way from an archive to the shards. One unit of the source is one part.

`NAME.data` holds the payloads, each sample's pixels and then its encoding. `NAME.rows` says what they are: a checksum,
sizes, a JSON record, a table of rows (ROW) and the text they refer to. The rename of `NAME.rows` is the journal: where
it stands, the unit is done. Rows go from the last split and the largest hash(seed, key) down, so the samples of any
output shard are one stretch of every part, and the first shard's stretch is the end: what is used is cut off there.
"""

from __future__ import annotations

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
BUFFERS = 1000  # a vectored read or write; the system takes 1,024
BATCH_BYTES = 16 << 20  # about what is written at a time
READ_BYTES = 4 << 20


def write(
    folder: Path, name: str, rows: np.ndarray, text: bytes, payloads: Iterable, record: dict, durable: bool
) -> Path:
    """Write a part. Returns the path of its journal.

    rows:     (N,) ROW; `data` is filled in here.
    payloads: the buffers of NAME.data, one after the other.
    record:   anything for JSON.
    durable:  sync both files before they count.
    """
    sizes = rows["pixels_bytes"].astype(np.int64) * rows["has_pixels"] + rows["encoded_bytes"]
    rows["data"] = np.cumsum(sizes) - sizes
    check = _write_data(folder / f"{name}.data", payloads, durable)
    line = json.dumps({**record, "data_check": check}).encode()
    head = np.zeros((), HEAD)
    head["record_bytes"], head["num_rows"] = len(line), len(rows)
    body = head.tobytes()[CHECK_BYTES:] + line + rows.tobytes() + text
    path = folder / f"{name}.rows"
    tmp = path.with_name(f"{path.name}.tmp")
    with open(tmp, "wb") as f:
        f.write(xxhash.xxh3_64_intdigest(body).to_bytes(CHECK_BYTES, "little") + body)
        if durable:
            f.flush()
            os.fsync(f.fileno())
    os.replace(tmp, path)
    return path


def _write_data(path: Path, payloads: Iterable, durable: bool) -> str:
    """Write buffers one after the other; returns the checksum that tells a whole file from a torn one."""
    check, batch, size = xxhash.xxh3_64(), [], 0
    with open(path, "wb", buffering=0) as f:

        def flush():
            # One system call for a thousand payloads, straight from where they lie.
            if os.writev(f.fileno(), batch) != size:
                raise OSError(errno.ENOSPC, "short write: no space left on device", str(path))

        for payload in payloads:
            check.update(payload)
            batch.append(payload)
            size += len(payload)
            if len(batch) == BUFFERS or size > BATCH_BYTES:
                flush()
                batch, size = [], 0
        flush()
        if durable:
            os.fsync(f.fileno())
    return check.hexdigest()


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
            return json.loads(self._read(f, HEAD.itemsize, self._rows_at - HEAD.itemsize))

    def __len__(self) -> int:
        return self._num_rows

    def rows(self, start: int, stop: int) -> np.ndarray:
        """(stop - start,) ROW."""
        return np.fromfile(self.journal, ROW, stop - start, offset=self._rows_at + start * ROW.itemsize)

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
            raise Error(f"{self.journal} is cut short; delete it and run the same command again")
        return data


def read_payloads(path: str, offset: int, buffers: Sequence) -> None:
    """Fill buffers from NAME.data, one after the other from an offset on."""
    fd = os.open(path, os.O_RDONLY)
    try:
        for at in range(0, len(buffers), BUFFERS):
            batch = buffers[at : at + BUFFERS]
            expected = sum(map(len, batch))
            if os.preadv(fd, batch, offset) != expected:
                raise Error(f"{path} is shorter than its journal says; delete both and run the same command again")
            offset += expected
    finally:
        os.close(fd)


def check(journal: Path) -> bool:
    """Whether a part found on disk is whole: a power cut may leave a renamed file without its bytes."""
    whole = xxhash.xxh3_64()
    try:
        with open(journal, "rb") as f:
            expected = int.from_bytes(f.read(CHECK_BYTES), "little")
            while chunk := f.read(READ_BYTES):
                whole.update(chunk)
        if whole.intdigest() != expected:
            return False
        part, data = Part(journal), xxhash.xxh3_64()
        with open(part.data_path, "rb") as f:
            while chunk := f.read(READ_BYTES):
                data.update(chunk)
    except FileNotFoundError:
        return False
    return data.hexdigest() == part.record["data_check"]


def deferred(rows: np.ndarray) -> np.ndarray:
    """The numbers of the rows whose pixels are wanted and not in the part."""
    return np.flatnonzero((rows["has_pixels"] == 0) & (rows["pixels_bytes"] > 0))


def cut_off(part: Part, row: int) -> None:
    """Give back the disk space of the payloads from a row on. A row that is cut off already stays so."""
    end = int(part.rows(row, row + 1)["data"][0])
    if os.stat(part.data_path).st_size > end:
        os.truncate(part.data_path, end)
