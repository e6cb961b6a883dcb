"""The samples of a shard as each of its files has them, for `verify` to compare with the index.

Nothing in a file is believed before it is checked: sizes are bounded, and what does not fit is noted.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import BinaryIO

import numpy as np

from mlpdata import image
from mlpdata.archive.tarscan import Damage, Member, Special, scan
from mlpdata.errors import Error, first_line
from mlpdata.shards import beton, tar
from mlpdata.shards.index import IndexRows
from mlpdata.shards.text import open_file

BUFFER_BYTES = 8 << 20  # read at a time

Note = Callable[[str], None]  # takes a line about what is wrong


@dataclass(frozen=True, slots=True)
class StoredSample:
    """One sample in one format."""

    file: str
    codec: str
    payload: bytes


def _read_at(file: BinaryIO, offset: int, size: int) -> bytes:
    """Read from front to back: what lies in the file's buffer costs no call of the system."""
    file.seek(offset)
    return file.read(size)


def beton_samples(path: Path, codec: str, first: int, rows: IndexRows, note: Note) -> Iterator[StoredSample | None]:
    """Each sample, where the beton's own tables say it is; None from where nothing can be read.

    rows: of the index, from sample `first` of the split on.
    """
    n = len(rows)
    try:
        file = open_file(path, BUFFER_BYTES)
        meta, allocations = beton.read_rows(path, first, n)
    except (OSError, Error) as e:
        note(f"{path.name} cannot be read: {getattr(e, 'strerror', None) or first_line(e)}")
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
    with file:
        file_bytes = os.fstat(file.fileno()).st_size
        extents = zip(meta["image"]["data_ptr"].tolist(), allocations["size"].tolist(), strict=True)
        for i, (key, (offset, size)) in enumerate(zip(rows.key, extents, strict=True)):
            if offset + size > file_bytes or size > image.MAX_IMAGE_BYTES:
                note(f"{path.name}: sample {key} would have {size:,} bytes at byte {offset:,}, of {file_bytes:,}")
                yield None
                continue
            try:
                payload = _read_at(file, offset, size)
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
        with open_file(path, BUFFER_BYTES) as file:
            members = scan(partial(_read_at, file), 0, os.fstat(file.fileno()).st_size)
            for i, key in enumerate(rows.key):
                member = _next_member(members, f"{key}.{tar.EXTENSIONS[codec]}")
                data = _read_at(file, member.offset, member.size)
                head = tar.ppm_header(int(rows.width[i]), int(rows.height[i])) if codec == "raw" else b""
                place = (member.offset + len(head), member.size - len(head), path.name, codec)
                if place != (rows.offset[i], rows.bytes[i], rows.file[i], rows.codec[i]):
                    note(f"{path.name}: sample {key} is not where the index says, at byte {rows.offset[i]}")
                if not data.startswith(head):
                    note(f"{path.name}: sample {key} has another PPM header than its size asks for")
                member = _next_member(members, f"{key}.cls")
                label = _read_at(file, member.offset, min(member.size, 32))
                if label != b"%d" % rows.label[i]:
                    note(f"{path.name}: sample {key} has class {label!r}, the index says {rows.label[i]}")
                yield StoredSample(path.name, codec, data[len(head) :])
                num_read += 1
            if (member := next(members, None)) is not None:
                raise _unexpected(member, "its end")
    except (OSError, ValueError, Error) as e:
        # In the words of the check of the file, so that one missing file is one problem.
        note(f"{path.name} {f'cannot be read: {e.strerror}' if isinstance(e, OSError) else first_line(e)}")
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
