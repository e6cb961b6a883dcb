"""The members of a zip of small files, listed for all of them at once and read at offsets.

`zipfile` makes an object a member, 8 microseconds each: of TinyImageNet's 120,609 that is a second in which the workers
wait, and a whole conversion takes five. Layout: PKZIP APPNOTE 4.3 and 4.4.
"""

from __future__ import annotations

import struct
import zlib
from dataclasses import dataclass

import numpy as np

from mlpdata.archive.blob import PlainFile
from mlpdata.errors import Error

ENTRY = np.dtype([
    ("magic", "S4"), ("made_by", "<u2"), ("needed", "<u2"), ("flags", "<u2"), ("method", "<u2"), ("time", "<u2"),
    ("date", "<u2"), ("crc", "<u4"), ("packed", "<u4"), ("size", "<u4"), ("name_bytes", "<u2"), ("extra_bytes", "<u2"),
    ("comment_bytes", "<u2"), ("disk", "<u2"), ("internal", "<u2"), ("external", "<u4"), ("offset", "<u4"),
])  # fmt: skip
FOUND = np.dtype([("offset", "<u8"), ("packed", "<u8"), ("size", "<u8"), ("crc", "<u4"), ("method", "<u2"),
                  ("flags", "<u2")])  # fmt: skip
NO_NUMBER = 0xFFFFFFFF  # in an entry: the number has 64 bits and stands in the extra field
EXTRA64 = 1  # the id of that field
LENGTHS = struct.Struct("<3H")  # of name, extra field and comment, from byte 28 on
LOCAL_HEADER_BYTES, LOCAL_LENGTHS = 30, struct.Struct("<2H")  # of name and extra field, from byte 26 on
END = struct.Struct("<4s4H2LH")
END64, LOCATOR64 = struct.Struct("<4sQ2H2L4Q"), struct.Struct("<4sLQL")
MAX_COMMENT = 1 << 16
MAX_DIRECTORY_BYTES = 256 << 20  # of two million members
MAX_MEMBER_BYTES = 16 << 20  # TinyImageNet's have 2 kB; a larger claim is an attack or damage
STORED, DEFLATED = 0, 8


@dataclass(frozen=True)
class Directory:
    """The members of a zip, in the order of its directory."""

    names: list[str]
    entries: np.ndarray  # (N,) FOUND


def read_directory(blob: PlainFile) -> Directory:
    """List a zip. Names that are no UTF-8 though they say so have surrogate escapes, as names of files have.

    Raises Error for a file that is none, or is cut short.
    """
    try:
        return _read_directory(blob)
    except (struct.error, ValueError, OverflowError) as e:
        with open(blob.path, "rb") as f:
            is_zip = f.read(2) == b"PK"
        what = "no whole zip archive" if is_zip else "not a zip archive, or a damaged one"
        raise Error(f"{blob.path} is {what} ({e}); get it again") from None
    except OSError as e:
        raise Error(f"cannot read {blob.path}: {e.strerror}") from None


def _read_directory(blob: PlainFile) -> Directory:
    tail_at = max(0, blob.size - END.size - MAX_COMMENT)
    tail = blob.read_at(tail_at, blob.size - tail_at)
    at = tail.rfind(b"PK\5\6")
    if at < 0:
        raise ValueError("it has no directory at its end")
    _, _, _, _, count, num_bytes, offset, _ = END.unpack_from(tail, at)
    end = tail_at + at  # of the directory
    if at >= LOCATOR64.size and tail[at - LOCATOR64.size :].startswith(b"PK\6\7"):
        end = LOCATOR64.unpack_from(tail, at - LOCATOR64.size)[2]
        magic, *_, count, num_bytes, offset = END64.unpack(blob.read_at(end, END64.size))
        if magic != b"PK\6\6":
            raise ValueError("its directory has no whole end")
    before = end - num_bytes - offset  # what stands before the archive proper
    if before < 0 or num_bytes > MAX_DIRECTORY_BYTES:
        raise ValueError("its directory lies beyond its end")
    data = blob.read_at(end - num_bytes, num_bytes)
    starts, at = [], 0
    for _ in range(count):
        starts.append(at)
        name_bytes, extra_bytes, comment_bytes = LENGTHS.unpack_from(data, at + 28)
        at += ENTRY.itemsize + name_bytes + extra_bytes + comment_bytes
    if at > len(data):
        raise ValueError("its directory is cut short")
    anywhere = np.ndarray(max(0, len(data) - ENTRY.itemsize + 1), ENTRY, data, strides=(1,))  # an entry at every byte
    begins = np.array(starts, np.int64)
    entries = anywhere[begins]
    if (entries["magic"] != b"PK\1\2").any():
        raise ValueError("its directory is damaged")
    found = np.empty(count, FOUND)
    for field in FOUND.names:
        found[field] = entries[field]
    wide = [entries[field] == NO_NUMBER for field in ("size", "packed", "offset")]
    for i in np.flatnonzero(wide[0] | wide[1] | wide[2]).tolist():
        at = starts[i] + ENTRY.itemsize + int(entries["name_bytes"][i])
        _take_extra(found, i, data[at : at + int(entries["extra_bytes"][i])])
    found["offset"] += np.uint64(before)
    np.minimum(
        found["offset"], np.uint64(blob.size), out=found["offset"]
    )  # it lies beyond the end one way or the other
    text, begins = data.decode("latin-1"), begins + ENTRY.itemsize
    names = []
    for a, b, i in zip(begins.tolist(), (begins + entries["name_bytes"]).tolist(), range(count), strict=True):
        name = text[a:b]
        if not name.isascii():
            coded = "utf-8" if entries["flags"][i] & 1 << 11 else "cp437"
            name = data[a:b].decode(coded, "surrogateescape")
        names.append(name)
    return Directory(names, found)


def _take_extra(found: np.ndarray, i: int, extra: bytes) -> None:
    """Take the numbers of 64 bits that an entry's own fields have no room for (APPNOTE 4.5.3), in their order."""
    at = 0
    while at + 4 <= len(extra):
        kind, size = struct.unpack_from("<HH", extra, at)
        if kind == EXTRA64:
            body, place = extra[at + 4 : at + 4 + size], 0
            for field in ("size", "packed", "offset"):
                if found[field][i] == NO_NUMBER:
                    found[field][i] = struct.unpack_from("<Q", body, place)[0]
                    place += 8
            return
        at += 4 + size


def unpack(data: bytes, at: int, packed: int, size: int, method: int, crc: int, flags: int) -> bytes | str:
    """A member's content, checked, or why it cannot be had.

    data: bytes of the zip, with the member's local header at `at`. The other numbers are the directory's.
    """
    if max(packed, size) > MAX_MEMBER_BYTES:
        return f"claims {max(packed, size)} bytes"
    if flags & 1:
        return "is encrypted"
    if at + LOCAL_HEADER_BYTES > len(data):
        return "lies beyond the end of the archive"
    if data[at : at + 4] != b"PK\3\4":
        return "has no local header where the directory says"
    name_bytes, extra_bytes = LOCAL_LENGTHS.unpack_from(data, at + 26)
    start = at + LOCAL_HEADER_BYTES + name_bytes + extra_bytes
    body = data[start : start + packed]
    if len(body) < packed:
        return "is cut short"
    if method == DEFLATED:
        try:
            body = zlib.decompressobj(-15).decompress(body, size + 1)
        except zlib.error as e:
            return f"cannot be decompressed: {e}"
    elif method != STORED:
        return f"uses compression method {method}"
    if len(body) != size or zlib.crc32(body) != crc:
        return "wrong CRC: its bytes are damaged"
    return body
