"""The samples of a shard as each of its files tells them, for `verify` to compare: the index, the beton, the tar.

Nothing in a file is believed before it is checked: sizes are bounded, and what does not fit is a ValueError or a note.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from mlpdata import image
from mlpdata.archive.tarscan import Damage, Member, scan
from mlpdata.errors import Error, first_line
from mlpdata.shards import beton, index, tar
from mlpdata.shards.manifest import Manifest
from mlpdata.shards.text import open_file

WINDOW_BYTES = 8 << 20  # read at a time
TEXT, NUMBERS = ("key", "file", "codec"), ("label", "width", "height", "offset", "bytes", "digest")

Rows = dict[str, np.ndarray | list[str]]
Note = Callable[[str], None]  # takes a line about what is wrong


@dataclass(frozen=True, slots=True)
class Stored:
    """One sample in one format."""

    file: str
    codec: str
    payload: bytes


def index_rows(root: Path, manifest: Manifest, split: str, first: int, n: int) -> Rows:
    """Rows of a split's index: TEXT as lists, NUMBERS as arrays. Raises Error."""
    with index.opened(root, manifest, split) as table:
        ends = np.cumsum([table.metadata.row_group(g).num_rows for g in range(table.num_row_groups)])
        start, stop = (int(np.searchsorted(ends, row, side="right")) for row in (first, first + n - 1))
        rows = table.read_row_groups(list(range(start, stop + 1)), columns=[*TEXT, *NUMBERS])
        rows = rows.slice(first - (int(ends[start - 1]) if start else 0), n)
        numbers = {name: index.integers(rows[name].combine_chunks()) for name in NUMBERS}
        return numbers | {name: index.texts(rows[name]) for name in TEXT}


class _Window:
    """Reads of a file from front to back, of which many small ones are one."""

    def __init__(self, path: Path):
        self._file, self._held, self._held_at = open_file(path), b"", 0
        self.size = os.fstat(self._file.fileno()).st_size

    def read_at(self, offset: int, size: int) -> bytes:
        if not self._held_at <= offset <= offset + size <= self._held_at + len(self._held):
            self._file.seek(offset)
            self._held, self._held_at = self._file.read(max(size, WINDOW_BYTES)), offset
        return self._held[offset - self._held_at : offset - self._held_at + size]

    def close(self) -> None:
        self._file.close()


def beton_samples(path: Path, codec: str, first: int, rows: Rows, note: Note) -> Iterator[Stored | None]:
    """Each sample, where the beton's own tables say it is; None from where nothing can be read.

    rows: of the index, from sample `first` of the split on.
    """
    n = len(rows["key"])
    try:
        file = _Window(path)
        meta, allocations = beton.read_rows(path, first, n)
    except (OSError, Error) as e:
        note(f"{path.name} cannot be read: {first_line(e)}")
        yield from [None] * n
        return
    expected = {
        "label": (meta["label"], rows["label"]),
        "width": (meta["image"]["width"], rows["width"]),
        "height": (meta["image"]["height"], rows["height"]),
        "mode": (meta["image"]["mode"], np.full(n, beton.MODES[codec])),
        "allocation": (allocations["ptr"], meta["image"]["data_ptr"]),
        "number": (allocations["sample_id"], np.arange(first, first + n)),
    }
    for name, (seen, wanted) in expected.items():
        if (different := seen != wanted).any():
            i = int(different.argmax())
            note(f"{path.name}: sample {rows['key'][i]} has {name} {seen[i]}, and should have {wanted[i]}")
    with contextlib.closing(file):
        places = zip(meta["image"]["data_ptr"].tolist(), allocations["size"].tolist(), strict=True)
        for done, (key, (at, size)) in enumerate(zip(rows["key"], places, strict=True)):
            if at + size > file.size or size > image.MAX_IMAGE_BYTES:
                note(f"{path.name}: sample {key} would have {size:,} bytes at byte {at:,}, of {file.size:,}")
                yield None
                continue
            try:
                data = file.read_at(at, size)
            except OSError as e:
                note(f"{path.name} cannot be read from sample {key} on: {first_line(e)}")
                yield from [None] * (n - done)
                return
            yield Stored(path.name, codec, data)


def tar_samples(path: Path, codec: str, rows: Rows, note: Note) -> Iterator[Stored | None]:
    """Each sample, as a reader of tars comes upon it; None from where nothing can be read.

    rows: of the index, those of this tar.
    """
    done = 0
    try:
        with contextlib.closing(_Window(path)) as file:
            members = scan(file.read_at, 0, file.size)
            for i, key in enumerate(rows["key"]):
                member = _next_member(members, f"{key}.{tar.EXTENSIONS[codec]}")
                data = file.read_at(member.offset, member.size)
                head = tar.ppm_header(int(rows["width"][i]), int(rows["height"][i])) if codec == "raw" else b""
                where = (member.offset + len(head), member.size - len(head), path.name, codec)
                if where != (rows["offset"][i], rows["bytes"][i], rows["file"][i], rows["codec"][i]):
                    note(f"{path.name}: sample {key} is not where the index says, at byte {rows['offset'][i]}")
                if not data.startswith(head):
                    note(f"{path.name}: sample {key} has another PPM header than its size asks for")
                member = _next_member(members, f"{key}.cls")
                label = file.read_at(member.offset, min(member.size, 32))
                if label != b"%d" % rows["label"][i]:
                    note(f"{path.name}: sample {key} has class {label!r}, the index says {rows['label'][i]}")
                yield Stored(path.name, codec, data[len(head) :])
                done += 1
            _next_member(members, None)
    except (OSError, ValueError, Error) as e:
        note(f"{path.name} {first_line(e)}")
        yield from [None] * (len(rows["key"]) - done)


def _next_member(members: Iterator[Member | Damage], name: str | None) -> Member | None:
    """The next member, which has to have a name; None: there is to be no more. Raises ValueError."""
    member = next(members, None)
    if isinstance(member, Damage):
        raise ValueError(f"is damaged: {member.reason}")
    if (member and member.name) != name:
        raise ValueError(f"holds {member.name if member else 'nothing more'} where {name or 'its end'} should be")
    if member and member.size > image.MAX_IMAGE_BYTES:
        raise ValueError(f"holds {member.size:,} bytes as {name}")
    return member
