"""Members of a tar, found at offsets and through damage.

`tarfile` stops at the first bad header and takes a block of zeros for the end; an archive of a terabyte has some of
both. This scanner goes on at the next header that is whole, so that damage costs only what is damaged, it takes zeros
for the end only where nothing but zeros follows, and it never believes a size that leads out of the archive. All that
is no plain file is told too. Time is linear in the bytes that are looked at, whatever they are.
"""

from __future__ import annotations

import zlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass

BLOCK = 512
RECORD = 20 * BLOCK  # writers fill their last record with zeros
MAX_PADDING = 2 << 20  # zeros that an end may have: 1 MiB is the largest record in use; more is a hole
MAX_LONG_NAME = 1 << 16  # bytes of an extended header that are read; real ones have a few hundred
FIRST_STEP, LAST_STEP = 4 << 10, 1 << 20  # read at a time where something is looked for
LOOK_BACK = 8 << 10  # bytes that extended headers of one member take at most, where a reader starts amid them
ZEROS, STEP_OF_ZEROS = bytes(BLOCK), bytes(LAST_STEP)
EXTENDED = b"xXgLK"  # headers that say something about the one behind them, or about all
NO_DATA = b"123456"  # links, devices, folders, FIFOs: some writers give them a size all the same
SPECIAL = {
    b"1": "a hard link",
    b"2": "a symbolic link",
    b"3": "a device",
    b"4": "a device",
    b"6": "a FIFO",
    b"M": "the rest of a file that begins in another volume",
    b"S": "a sparse file",
}


@dataclass(frozen=True, slots=True)
class Member:
    """A regular file in a tar. Bytes of its name that are no UTF-8 are surrogate escapes, as in file names."""

    name: str
    offset: int  # of its first data byte
    size: int
    start: int = 0  # of its first header: extended ones come before its own


@dataclass(frozen=True, slots=True)
class Special:
    """A member that has a name and is neither a plain file nor a folder."""

    name: str
    offset: int
    reason: str  # what it is
    target: str = ""  # of a link: the name as it stands there
    size: int = 0
    start: int = 0


@dataclass(frozen=True, slots=True)
class Damage:
    """A stretch that is no tar: what was there, and what could not be read for it."""

    offset: int
    reason: str
    member: Member | None = None  # what is left of a file that is cut short
    last: bool = False  # nothing can be read after it
    lost: bool = True  # False: a word only; as far as one can tell, all that was there has been read


ReadAt = Callable[[int, int], bytes]  # (offset, size) -> at most size bytes; fewer only at the end


def scan(
    read_at: ReadAt, start: int, end: int, whole: bool = True, origin: int | None = None
) -> Iterator[Member | Special | Damage]:
    """Members between two offsets, in order.

    read_at must answer for the whole range; `end` is where the tar ends (for an inner tar, its member's end), or
    anything beyond it where that is not known.
    whole: whether an end mark has to come; False for a range amid a tar. origin: where the tar begins, if not at start.
    After damage the members of an inner tar may come up, when it is the inner tar's own header that was hit.
    """
    at, first, long_name, long_link, pax = start, start, None, None, {}
    origin = start if origin is None else origin
    damaged = resumed = False  # resumed: extended headers of the next member may have been lost
    while True:
        header = read_at(at, min(BLOCK, end - at)) if at < end else b""
        if len(header) < BLOCK:
            break
        size = None if header == ZEROS else _checked_size(header)
        if size is None:
            if header == ZEROS:
                found, item = _after_zeros(read_at, at, end, origin, whole, damaged)
            else:
                found, padded = _find_header(read_at, at + BLOCK, end)
                where = "nor after it" if found is None else f"went on at byte {found}"
                item = Damage(at, f"no tar header at byte {at}, {where}", last=found is None and not padded)
            if item is not None:
                yield item
            if found is None:
                return
            at, long_name, long_link, pax, damaged, resumed = found, None, None, {}, True, True
            continue
        data, kind = at + BLOCK, header[156:157]
        if long_name is None and not pax:
            first = at
        if pax and "size" in pax and kind not in EXTENDED:
            size = _pax_size(pax["size"], size)
        if size and kind in NO_DATA and _is_header(read_at(data, BLOCK)):
            size = 0
        if kind == b"S":  # GNU: the list of what is there may go on in blocks of its own
            more = header[482:483]
            while more not in (b"", b"\0") and data < end:
                more, data = read_at(data + 504, 1), data + BLOCK
        after = data + -(-size // BLOCK) * BLOCK
        if data + size > end:
            # A tar that is cut short, or a size that lies. What begins with a header is an inner tar: its members are
            # its own.
            name, left = pax.get("path") or long_name or _name(header), max(0, end - data)
            is_tar = _is_header(read_at(data, BLOCK))
            found, padded = (None, False) if is_tar or not left else _find_header(read_at, data, end)
            member = Member(name, data, left, first) if found is None and not padded else None
            reason = f"{_shown(name)} is cut short: {size} bytes announced, {left} there"
            yield Damage(at, reason, member, last=member is not None)
            if found is None:
                return
            at, long_name, long_link, pax, damaged, resumed = found, None, None, {}, True, True
            continue
        if kind in EXTENDED:
            body = read_at(data, size) if size <= MAX_LONG_NAME else b""
            whole_body = len(body) == size
            if kind in b"LK":
                text, _, rest = body.partition(b"\0")
                whole_body = whole_body and bool(text) and not rest.strip(b"\0")
                if kind == b"L":
                    long_name = _decoded(text) or None
                else:
                    long_link = _decoded(text)
            elif kind != b"g":
                pax, read = _pax_fields(body)
                whole_body = whole_body and read == size
            if not whole_body:
                yield Damage(at, f"the extended header at byte {at} is damaged")
                damaged = resumed = True
        else:
            name = pax.get("path") or long_name or _name(header)
            sparse = kind == b"S" or (pax and any(key.startswith("GNU.sparse.") for key in pax))
            if resumed and not pax and long_name is None and header[99] and kind not in b"5D":
                yield Damage(at, f"{_shown(name)}... at byte {at} has lost the header with the rest of its name")
            elif sparse or kind in SPECIAL:
                what = SPECIAL[b"S" if sparse else kind]
                target = pax.get("linkpath") or long_link or _decoded(header[157:257].partition(b"\0")[0])
                name = pax.get("GNU.sparse.name") or name
                yield Special(name, at + BLOCK, what, target if kind in b"12" else "", start=first)
            elif kind not in b"5DVN" and not (
                kind == b"\0" and name.endswith("/")
            ):  # as POSIX has it, of unknown kinds
                yield Member(name, data, size, first)
            long_name, long_link, pax, resumed = None, None, {}, False
        at = after
    if whole and at > start:
        yield from _without_end_mark(read_at, at, header)


def _without_end_mark(read_at: ReadAt, at: int, rest: bytes) -> Iterator[Damage]:
    """What to say of a tar that is over at `at` without a block of zeros. rest: less than a block is there."""
    if rest.strip(b"\0"):
        yield Damage(at, f"the archive ends at byte {at + len(rest)}, inside a header", last=True)
    elif rest or read_at(at - 1, 1):
        yield Damage(at, f"the archive ends at byte {at} without an end mark: it may be cut short there", lost=False)
    else:
        # The padding of the last file is cut, or with it, where the end is not known, the file.
        yield Damage(at, f"the archive ends before byte {at}, which its last header leads to", last=True)


def _after_zeros(
    read_at: ReadAt, at: int, end: int, origin: int, whole: bool, damaged: bool
) -> tuple[int | None, Damage | None]:
    """(where headers go on, what there is to say) behind a block of zeros; (None, None) at a proper end."""
    stop, step, over = at + BLOCK, FIRST_STEP, True
    while stop < end:
        chunk = read_at(stop, min(step, end - stop))
        zeros = len(chunk) if chunk == STEP_OF_ZEROS else len(chunk) - len(chunk.lstrip(b"\0"))
        stop += zeros
        if zeros < len(chunk) or not chunk:
            over = not chunk
            break
        step = min(2 * step, LAST_STEP)
    if over:
        size = stop - at
        if not whole or size < 2 * (BLOCK + RECORD):  # `tar -A` leaves the padding of two
            return None, None
        reason = (
            f"{size:,} bytes of zeros end it from byte {at} on: more than an end mark, as in an unfinished download"
        )
        return None, Damage(at, reason, last=size > MAX_PADDING, lost=size > MAX_PADDING)
    stop = at + (stop - at) // BLOCK * BLOCK
    size = stop - at
    if not _is_header(read_at(stop, BLOCK)):
        found, _ = _find_header(read_at, stop + BLOCK, end)
        where = "and none after it" if found is None else f"went on at byte {found}"
        return found, Damage(at, f"zeros at byte {at} in place of a tar header, {where}")
    # Tars that were put together have an end mark amid them. Anything else that is zeros was something else.
    if 2 * BLOCK <= size < 2 * BLOCK + RECORD and (size == 2 * BLOCK or damaged or (stop - origin) % RECORD == 0):
        return stop, Damage(at, f"an end mark at byte {at} and more headers behind it, which are read too", lost=False)
    return stop, Damage(at, f"{size:,} bytes of zeros at byte {at} in place of a tar header, went on at byte {stop}")


def _is_header(block: bytes) -> bool:
    return len(block) == BLOCK and block != ZEROS and _checked_size(block) is not None


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
    return _find_header(read_at, at, end)[0]


def _find_header(read_at: ReadAt, at: int, end: int) -> tuple[int | None, bool]:
    """The first whole header from a block boundary on, or None and whether the end is two blocks of zeros."""
    tail, step = b"", FIRST_STEP
    while at < end:
        chunk = read_at(at, min(step, end - at))
        for i in range(0, len(chunk) - BLOCK + 1, BLOCK):
            # A checksum is digits; a test that costs little, and images hardly ever pass.
            if chunk[i + 148 : i + 154].strip(b" \0").isdigit() and _is_header(chunk[i : i + BLOCK]):
                return at + i, False
        if len(chunk) < BLOCK:
            break
        at, tail = at + len(chunk) // BLOCK * BLOCK, (tail + chunk)[-2 * BLOCK :]
        step = min(2 * step, LAST_STEP)
    return None, len(tail) == 2 * BLOCK and not tail.strip(b"\0")


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
            if size and blocks[i + 156 : i + 157] in EXTENDED and i + BLOCK + -(-size // BLOCK) * BLOCK == len(blocks):
                found = look_from + i
                break
        else:
            return found
    return None


def _name(header: bytes) -> str:
    name = _decoded(header[:100].split(b"\0", 1)[0])
    prefix = _decoded(header[345:500].split(b"\0", 1)[0]) if header[257:263] == b"ustar\0" else ""
    return f"{prefix}/{name}" if prefix else name


def _decoded(name: bytes) -> str:
    return name.decode("utf-8", "surrogateescape")


def _shown(name: str) -> str:
    return name if name.isprintable() else ascii(name)


def _pax_fields(body: bytes) -> tuple[dict[str, str], int]:
    """Records `LENGTH KEY=VALUE\\n` of a POSIX extended header, up to what is malformed, and their bytes."""
    fields, at = {}, 0
    while at < len(body):
        length = body[at : at + 10].partition(b" ")[0]
        if not length.isdigit() or len(length) > 9 or not len(length) + 1 < int(length) <= len(body) - at:
            break
        key, equals, value = body[at + len(length) + 1 : at + int(length)].rstrip(b"\n").partition(b"=")
        if equals:
            fields[_decoded(key)] = _decoded(value)
        at += int(length)
    return fields, at
