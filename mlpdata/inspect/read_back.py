"""The samples of a shard as each of its files has them, for `verify` to compare with the index.

Nothing in a file is believed before it is checked: sizes are bounded, and what does not fit is noted.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from mlpdata import image
from mlpdata.archive.tarscan import Damage, Member, Special, scan
from mlpdata.errors import Error, first_line
from mlpdata.shards import beton, tar
from mlpdata.shards.index import IndexRows
from mlpdata.shards.text import open_file

WINDOW_BYTES = 8 << 20  # read at a time

Note = Callable[[str], None]  # takes a line about what is wrong


@dataclass(frozen=True, slots=True)
class StoredSample:
    """One sample in one format."""

    file: str
    codec: str
    payload: bytes


class _Window:
    """Reads of a file from front to back; many small ones are served from one large one."""

    def __init__(self, path: Path):
        self._file, self._data, self._start = open_file(path), b"", 0
        self.size = os.fstat(self._file.fileno()).st_size

    def read_at(self, offset: int, size: int) -> bytes:
        if not self._start <= offset <= offset + size <= self._start + len(self._data):
            self._file.seek(offset)
            self._data, self._start = self._file.read(max(size, WINDOW_BYTES)), offset
        return self._data[offset - self._start : offset - self._start + size]

    def close(self) -> None:
        self._file.close()


def beton_samples(path: Path, codec: str, first: int, rows: IndexRows, note: Note) -> Iterator[StoredSample | None]:
    """Each sample, where the beton's own tables say it is; None from where nothing can be read.

    rows: of the index, from sample `first` of the split on.
    """
    n = len(rows)
    try:
        file = _Window(path)
        meta, allocations = beton.read_rows(path, first, n)
    except (OSError, Error) as e:
        note(f"{path.name} cannot be read: {first_line(e)}")
        yield from [None] * n
        return
    expected = {
        "label": (meta["label"], rows.label),
        "width": (meta["image"]["width"], rows.width),
        "height": (meta["image"]["height"], rows.height),
        "mode": (meta["image"]["mode"], np.full(n, beton.MODES[codec])),
        "allocation": (allocations["ptr"], meta["image"]["data_ptr"]),
        "number": (allocations["sample_id"], np.arange(first, first + n)),
    }
    for name, (seen, wanted) in expected.items():
        if (different := seen != wanted).any():
            i = int(different.argmax())
            note(f"{path.name}: sample {rows.key[i]} has {name} {seen[i]}, and should have {wanted[i]}")
    with contextlib.closing(file):
        extents = zip(meta["image"]["data_ptr"].tolist(), allocations["size"].tolist(), strict=True)
        for i, (key, (offset, size)) in enumerate(zip(rows.key, extents, strict=True)):
            if offset + size > file.size or size > image.MAX_IMAGE_BYTES:
                note(f"{path.name}: sample {key} would have {size:,} bytes at byte {offset:,}, of {file.size:,}")
                yield None
                continue
            try:
                payload = file.read_at(offset, size)
            except OSError as e:
                note(f"{path.name} cannot be read from sample {key} on: {first_line(e)}")
                yield from [None] * (n - i)
                return
            yield StoredSample(path.name, codec, payload)


def tar_samples(path: Path, codec: str, rows: IndexRows, note: Note) -> Iterator[StoredSample | None]:
    """Each sample, as a reader of tars comes upon it; None from where nothing can be read.

    rows: of the index, those of this tar.
    """
    num_read = 0
    try:
        with contextlib.closing(_Window(path)) as file:
            members = scan(file.read_at, 0, file.size)
            for i, key in enumerate(rows.key):
                member = _next_member(members, f"{key}.{tar.EXTENSIONS[codec]}")
                data = file.read_at(member.offset, member.size)
                head = tar.ppm_header(int(rows.width[i]), int(rows.height[i])) if codec == "raw" else b""
                place = (member.offset + len(head), member.size - len(head), path.name, codec)
                if place != (rows.offset[i], rows.bytes[i], rows.file[i], rows.codec[i]):
                    note(f"{path.name}: sample {key} is not where the index says, at byte {rows.offset[i]}")
                if not data.startswith(head):
                    note(f"{path.name}: sample {key} has another PPM header than its size asks for")
                member = _next_member(members, f"{key}.cls")
                label = file.read_at(member.offset, min(member.size, 32))
                if label != b"%d" % rows.label[i]:
                    note(f"{path.name}: sample {key} has class {label!r}, the index says {rows.label[i]}")
                yield StoredSample(path.name, codec, data[len(head) :])
                num_read += 1
            if (member := next(members, None)) is not None:
                raise _unexpected(member, "its end")
    except (OSError, ValueError, Error) as e:
        note(f"{path.name} {first_line(e)}")
        yield from [None] * (len(rows) - num_read)


def _next_member(members: Iterator[Member | Special | Damage], name: str) -> Member:
    """The next member, which has to have a name. Raises ValueError."""
    member = next(members, None)
    if not isinstance(member, Member) or member.name != name:
        raise _unexpected(member, name)
    if member.size > image.MAX_IMAGE_BYTES:
        raise ValueError(f"holds {member.size:,} bytes as {name}")
    return member


def _unexpected(member: Member | Special | Damage | None, wanted: str) -> ValueError:
    if isinstance(member, Damage):
        return ValueError(f"is damaged: {member.reason}")
    return ValueError(f"holds {member.name if member else 'nothing more'} where {wanted} should be")
