"""Members of a tar, found at offsets and through damage.

`tarfile` stops at the first bad header; an archive of a terabyte has some. This scanner goes on at the next header that
is whole, so that damage costs only what is damaged, and it never believes a size that leads out of the archive.
"""

from __future__ import annotations

import zlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass

BLOCK = 512
MAX_LONG_NAME = 1 << 16  # bytes of an extended header that are read; real ones have a few hundred
RESYNC_STEP = 1 << 20
LOOK_BACK = 8 << 10  # bytes that extended headers of one member take at most, where a reader starts amid them
ZEROS = bytes(BLOCK)


@dataclass(frozen=True, slots=True)
class Member:
    """A regular file in a tar."""

    name: str
    offset: int  # of its first data byte
    size: int
    start: int = 0  # of its first header: extended ones come before its own


@dataclass(frozen=True, slots=True)
class Damage:
    """A stretch that is no tar: what was there, and what could not be read for it."""

    offset: int
    reason: str
    member: Member | None = None  # what is left of a file that is cut short
    last: bool = False  # nothing can be read after it


ReadAt = Callable[[int, int], bytes]  # (offset, size) -> at most size bytes; fewer only at the end


def scan(read_at: ReadAt, start: int, end: int) -> Iterator[Member | Damage]:
    """Members between two offsets, in order.

    read_at must answer for the whole range; `end` is where the tar ends (for an inner tar, its member's end).
    After damage the members of an inner tar may come up, when it is the inner tar's own header that was hit.
    """
    at, long_name, pax, damaged, first = start, None, {}, False, start
    while at + BLOCK <= end:
        header = read_at(at, BLOCK)
        if len(header) < BLOCK:
            yield Damage(at, f"the archive ends at byte {at + len(header)}, before its end mark", last=True)
            return
        if header == ZEROS:  # the end mark, or that of an inner tar which damage led into
            found = next_header(read_at, at + BLOCK, end) if damaged else None
            if found is None:
                return
            at, long_name, pax = found, None, {}
            continue
        size = _checked_size(header)
        if size is None:
            found = next_header(read_at, at + BLOCK, end)
            where = "nor after it" if found is None else f"went on at byte {found}"
            yield Damage(at, f"no tar header at byte {at}, {where}", last=found is None)
            if found is None:
                return
            at, long_name, pax, damaged = found, None, {}, True
            continue
        data, kind = at + BLOCK, header[156:157]
        if long_name is None and not pax:
            first = at
        if "size" in pax and kind not in b"xgLK":
            size = _pax_size(pax["size"], size)
        after = data + -(-size // BLOCK) * BLOCK
        if kind == b"L":
            long_name = read_at(data, min(size, MAX_LONG_NAME)).rstrip(b"\0").decode("utf-8", "replace")
        elif kind == b"x":
            pax = _pax_fields(read_at(data, min(size, MAX_LONG_NAME)))
        elif kind in (b"0", b"\0", b"7"):
            name = pax.get("path") or long_name or _name(header)
            if data + size > end:
                left = max(0, end - data)
                reason = f"{name} is cut short: {size} bytes announced, {left} there"
                yield Damage(at, reason, Member(name, data, left, first), last=True)
                return
            yield Member(name, data, size, first)
            long_name, pax = None, {}
        elif kind != b"K" and kind != b"g":
            long_name, pax = None, {}  # directories, links and the like hold no images
        at = after


def _checked_size(header: bytes) -> int | None:
    """The size field of a header whose checksum is right, else None."""
    try:
        stored = int(header[148:156].strip(b" \0") or b"x", 8)
    except ValueError:
        return None
    # The low half of Adler-32 is the sum of the bytes and 1, modulo 65,521, without a loop in Python.
    if ((zlib.adler32(header) & 0xFFFF) - 1 - sum(header[148:156]) + 8 * ord(" ") - stored) % 65521:
        return None
    field = header[124:136]
    if field[0] & 0x80:  # GNU: binary, for 8 GiB and more; 0xff would be a negative number
        return int.from_bytes(field[1:], "big") if field[0] == 0x80 else None
    try:
        size = int(field.strip(b" \0") or b"0", 8)
    except ValueError:
        return None
    return size if size >= 0 else None


def _pax_size(text: str, otherwise: int) -> int:
    """The size of an extended header; a number no file can have is not believed."""
    return int(text) if text.isascii() and text.isdigit() and len(text) < 20 else otherwise


def next_header(read_at: ReadAt, at: int, end: int) -> int | None:
    """The first whole header from a block boundary on, or None."""
    while at + BLOCK <= end:
        chunk = read_at(at, min(RESYNC_STEP, end - at))
        for i in range(0, len(chunk) - BLOCK + 1, BLOCK):
            block = chunk[i : i + BLOCK]
            if block[257:262] == b"ustar" and _checked_size(block) is not None:
                return at + i
        if len(chunk) < BLOCK:
            return None
        at += len(chunk) // BLOCK * BLOCK
    return None


def next_member(read_at: ReadAt, at: int, end: int) -> int | None:
    """Where the first member begins whose own header lies at or after a block boundary, or None.

    Extended headers that belong to it may lie before that boundary.
    """
    found = next_header(read_at, at, end)
    while found is not None:
        look_from = max(0, found - LOOK_BACK)
        blocks = read_at(look_from, found - look_from)
        for i in range(len(blocks) - BLOCK, -1, -BLOCK):
            size = _checked_size(blocks[i : i + BLOCK])
            if size and blocks[i + 156 : i + 157] in b"xLKg" and i + BLOCK + -(-size // BLOCK) * BLOCK == len(blocks):
                found = look_from + i
                break
        else:
            return found
    return None


def _name(header: bytes) -> str:
    name = header[:100].split(b"\0", 1)[0].decode("utf-8", "replace")
    prefix = header[345:500].split(b"\0", 1)[0].decode("utf-8", "replace") if header[257:263] == b"ustar\0" else ""
    return f"{prefix}/{name}" if prefix else name


def _pax_fields(body: bytes) -> dict[str, str]:
    """Records `LENGTH KEY=VALUE\\n` of a POSIX extended header; what is malformed is left out."""
    fields = {}
    while body:
        length, _, _ = body.partition(b" ")
        if not length.isdigit() or len(length) > 9 or not len(length) + 1 < int(length) <= len(body):
            break
        key, equals, value = body[len(length) + 1 : int(length)].rstrip(b"\n").partition(b"=")
        if equals:
            fields[key.decode("utf-8", "replace")] = value.decode("utf-8", "replace")
        body = body[int(length) :]
    return fields
