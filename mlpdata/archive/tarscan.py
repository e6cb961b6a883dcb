"""Members of a tar, found at offsets and through damage.

`tarfile` stops at the first bad header and takes a block of zeros for the end of the archive. An archive of a terabyte
has some of both. This scanner goes on at the next header whose checksum is right, so that damage costs only what is
damaged. It takes zeros for the end only where nothing but zeros follows, and never believes a size that leads out of
the archive. It also reports members that are no plain files. Time is linear in the bytes it looks at.
"""

from __future__ import annotations

import zlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace

BLOCK = 512
RECORD = 20 * BLOCK  # writers fill their last record with zeros
MAX_PADDING = 2 << 20  # zeros at the end of an archive: the largest record in use has 1 MiB; more is a hole
MAX_LONG_NAME = 1 << 16  # bytes of an extended header that are read; real ones have a few hundred
FIRST_STEP, LAST_STEP = 4 << 10, 1 << 20  # bytes read at a time while searching
LOOK_BACK = 8 << 10  # the most that the extended headers of one member take
ZEROS, STEP_OF_ZEROS = bytes(BLOCK), bytes(LAST_STEP)
EXTENDED = b"xXgLK"  # kinds of headers that describe the next member, or all members
FOLDERS = b"5DVN"  # and labels of volumes
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


ReadAt = Callable[[int, int], bytes]  # (offset, size) -> at most size bytes; fewer only at the end


@dataclass(frozen=True, slots=True)
class Member:
    """A regular file in a tar. Bytes of its name that are no UTF-8 are surrogate escapes, as in file names."""

    name: str
    offset: int  # of its first data byte
    size: int
    start: int = 0  # of its first header: extended headers come before its own


@dataclass(frozen=True, slots=True)
class Special:
    """A member that has a name and is neither a plain file nor a folder."""

    name: str
    offset: int
    reason: str  # what kind of member it is
    target: str = ""  # of a link: the name it leads to, as written
    size: int = 0
    start: int = 0


@dataclass(frozen=True, slots=True)
class Damage:
    """A stretch of the archive that is no tar."""

    offset: int
    reason: str  # what is wrong, and where reading went on
    member: Member | None = None  # what is left of a file that is cut short
    last: bool = False  # nothing could be read after it
    lost: bool = True  # False: nothing was lost as far as one can tell; the reason is a remark


def scan(
    read_at: ReadAt, start: int, end: int, whole: bool = True, origin: int | None = None
) -> Iterator[Member | Special | Damage]:
    """Members between two offsets, in order.

    read_at: must answer for the whole range.
    end:     where the tar ends (an inner tar: where its member ends), or anything beyond where that is unknown.
    whole:   whether an end mark has to come; False for a range amid a tar.
    origin:  where the tar begins, if not at `start`.
    After damage to the header of an inner tar, that tar's own members come up.
    """
    origin = start if origin is None else origin
    position = first = start  # of the header under the reader; of the first header of the same member
    extended = _Extended()
    damaged = resumed = False  # resumed: extended headers of the next member may have been lost
    while True:
        header = read_at(position, min(BLOCK, end - position)) if position < end else b""
        if len(header) < BLOCK:
            break
        jump, size, data, kind, name = None, _checked_size(header), position + BLOCK, header[156:157], ""
        if header == ZEROS:
            jump = _after_zeros(read_at, position, end, origin, whole, damaged)
        elif size < 0:
            jump = _after_noise(read_at, position, end)
        else:
            if not extended.long_name and not extended.pax:
                first = position
            if "size" in extended.pax and kind not in EXTENDED:
                size = _pax_size(extended.pax["size"], size)
            if size and kind in NO_DATA and _is_header(read_at(data, BLOCK)):
                size = 0
            if kind == b"S":  # GNU sparse: the list of the stored ranges may go on in blocks of its own
                more = header[482:483]
                while more not in (b"", b"\0") and data < end:
                    more, data = read_at(data + 504, 1), data + BLOCK
            name = extended.pax.get("path") or extended.long_name or _name(header)
            if data + size > end:
                jump = _after_overrun(read_at, position, Member(name, data, size, first), end)
        if jump:
            resume_at, damage = jump
            if damage:
                yield damage
            if resume_at is None:
                return
            position, extended, damaged, resumed = resume_at, _Extended(), True, True
            continue
        if kind in EXTENDED:
            if not extended.read(kind, read_at(data, size) if size <= MAX_LONG_NAME else b"", size):
                yield Damage(position, f"the extended header at byte {position} is damaged")
                damaged = resumed = True
        else:
            if resumed and not extended.pax and not extended.long_name and header[99] and kind not in b"5D":
                reason = f"{_shown(name)}... at byte {position} has lost the header with the rest of its name"
                yield Damage(position, reason)
            elif found := _found(header, Member(name, data, size, first), position + BLOCK, extended):
                yield found
            extended, resumed = _Extended(), False
        position = data + -(-size // BLOCK) * BLOCK
    if whole and position > start:
        yield _without_end_mark(read_at, position, header)


class _Extended:
    """What extended headers say about the next member."""

    __slots__ = ("long_link", "long_name", "pax")

    def __init__(self):
        self.long_name, self.long_link = "", ""
        self.pax: dict[str, str] = {}

    def read(self, kind: bytes, body: bytes, size: int) -> bool:
        """Take in a header. size: of its body as announced. Returns whether it is undamaged."""
        if kind in b"LK":
            text, _, rest = body.partition(b"\0")
            if kind == b"L":
                self.long_name = _decoded(text)
            else:
                self.long_link = _decoded(text)
            return len(body) == size and bool(text) and not rest.strip(b"\0")
        if kind == b"g":
            return len(body) == size
        self.pax, parsed_bytes = _pax_fields(body)
        return len(body) == parsed_bytes == size


def _found(header: bytes, member: Member, offset: int, extended: _Extended) -> Member | Special | None:
    """What a header stands for; None: a folder or a label. offset: behind the header, where a Special begins."""
    kind, pax = header[156:157], extended.pax
    is_sparse = kind == b"S" or (pax and any(key.startswith("GNU.sparse.") for key in pax))
    if is_sparse or kind in SPECIAL:
        target = pax.get("linkpath") or extended.long_link or _decoded(header[157:257].partition(b"\0")[0])
        name, reason = pax.get("GNU.sparse.name") or member.name, SPECIAL[b"S" if is_sparse else kind]
        return Special(name, offset, reason, target if kind in b"12" else "", start=member.start)
    if kind in FOLDERS or (kind == b"\0" and member.name.endswith("/")):
        return None
    return member  # unknown kinds are plain files, as POSIX has it


# ------------------------------------------------------------------------- damage: where reading goes on, what to say

Jump = tuple[int | None, Damage | None]  # None: nothing can be read any more; there is nothing to say


def _after_noise(read_at: ReadAt, position: int, end: int) -> Jump:
    """After a block that is no header."""
    resume_at, is_padded = _find_header(read_at, position + BLOCK, end)
    where = "nor after it" if resume_at is None else f"went on at byte {resume_at}"
    reason = f"no tar header at byte {position}, {where}"
    return resume_at, Damage(position, reason, last=resume_at is None and not is_padded)


def _after_overrun(read_at: ReadAt, position: int, member: Member, end: int) -> Jump:
    """After a header whose member leads beyond the end: the tar is cut short, or the size is wrong.

    Data that begins with a header is an inner tar, whose members are its own.
    """
    left = max(0, end - member.offset)
    is_tar = _is_header(read_at(member.offset, BLOCK))
    resume_at, is_padded = (None, False) if is_tar or not left else _find_header(read_at, member.offset, end)
    is_last = resume_at is None and not is_padded
    reason = f"{_shown(member.name)} is cut short: {member.size} bytes announced, {left} there"
    return resume_at, Damage(position, reason, replace(member, size=left) if is_last else None, last=is_last)


def _without_end_mark(read_at: ReadAt, position: int, rest: bytes) -> Damage:
    """The remark on a tar that ends at `position` without a block of zeros. rest: the last bytes, less than a block."""
    if rest.strip(b"\0"):
        return Damage(position, f"the archive ends at byte {position + len(rest)}, inside a header", last=True)
    if rest or read_at(position - 1, 1):
        reason = f"the archive ends at byte {position} without an end mark: it may be cut short there"
        return Damage(position, reason, lost=False)
    # The padding of the last file is missing, or (where the end is unknown) some of the file as well.
    return Damage(position, f"the archive ends before byte {position}, which its last header leads to", last=True)


def _after_zeros(read_at: ReadAt, position: int, end: int, origin: int, whole: bool, damaged: bool) -> Jump:
    """After a block of zeros: the end mark, a hole, or both of two tars that were put together."""
    stop, step, only_zeros = position + BLOCK, FIRST_STEP, True
    while stop < end:
        chunk = read_at(stop, min(step, end - stop))
        zeros = len(chunk) if chunk == STEP_OF_ZEROS else len(chunk) - len(chunk.lstrip(b"\0"))
        stop += zeros
        if zeros < len(chunk) or not chunk:
            only_zeros = not chunk
            break
        step = min(2 * step, LAST_STEP)
    if only_zeros:
        size = stop - position
        if not whole or size < 2 * (BLOCK + RECORD):  # `tar -A` leaves the padding of two
            return None, None
        much = "more than an end mark, as in an unfinished download"
        reason, is_hole = f"{size:,} bytes of zeros end it from byte {position} on: {much}", size > MAX_PADDING
        return None, Damage(position, reason, last=is_hole, lost=is_hole)
    stop = position + (stop - position) // BLOCK * BLOCK
    size = stop - position
    if not _is_header(read_at(stop, BLOCK)):
        resume_at, _ = _find_header(read_at, stop + BLOCK, end)
        where = "and none after it" if resume_at is None else f"went on at byte {resume_at}"
        return resume_at, Damage(position, f"zeros at byte {position} in place of a tar header, {where}")
    # Tars that were put together have an end mark amid them. Any other zeros stand where something else was.
    if 2 * BLOCK <= size < 2 * BLOCK + RECORD and (size == 2 * BLOCK or damaged or (stop - origin) % RECORD == 0):
        reason = f"an end mark at byte {position} and more headers behind it, which are read too"
        return stop, Damage(position, reason, lost=False)
    reason = f"{size:,} bytes of zeros at byte {position} in place of a tar header, went on at byte {stop}"
    return stop, Damage(position, reason)


def _find_header(read_at: ReadAt, position: int, end: int) -> tuple[int | None, bool]:
    """(the first whole header from a block boundary on, or None; whether two blocks of zeros end the archive)."""
    tail, step = b"", FIRST_STEP
    while position < end:
        chunk = read_at(position, min(step, end - position))
        for i in range(0, len(chunk) - BLOCK + 1, BLOCK):
            # A checksum is digits: a cheap test, which images hardly ever pass.
            if chunk[i + 148 : i + 154].strip(b" \0").isdigit() and _is_header(chunk[i : i + BLOCK]):
                return position + i, False
        if len(chunk) < BLOCK:
            break
        position, tail = position + len(chunk) // BLOCK * BLOCK, (tail + chunk)[-2 * BLOCK :]
        step = min(2 * step, LAST_STEP)
    return None, len(tail) == 2 * BLOCK and not tail.strip(b"\0")


def next_member(read_at: ReadAt, position: int, end: int) -> int | None:
    """Where the first member begins whose own header lies at or after a block boundary, or None.

    The extended headers of that member may lie before the boundary.
    """
    start, _ = _find_header(read_at, position, end)
    while start is not None:
        look_from = max(0, start - LOOK_BACK)
        blocks = read_at(look_from, start - look_from)
        for i in range(len(blocks) - BLOCK, -1, -BLOCK):
            size = _checked_size(blocks[i : i + BLOCK])
            if (
                size > 0
                and blocks[i + 156 : i + 157] in EXTENDED
                and i + BLOCK + -(-size // BLOCK) * BLOCK == len(blocks)
            ):
                start = look_from + i
                break
        else:
            return start
    return None


# ------------------------------------------------------------------------------------------------ fields of a header


def _is_header(block: bytes) -> bool:
    return len(block) == BLOCK and _checked_size(block) >= 0


def _checked_size(header: bytes) -> int:
    """The size field of a header whose checksum is right, else -1."""
    try:
        stored = int(header[148:156].strip(b" \0") or b"x", 8)
    except ValueError:
        return -1
    # The low half of Adler-32 is the sum of the bytes and 1, modulo 65,521, without a loop in Python.
    if ((zlib.adler32(header) & 0xFFFF) - 1 - sum(header[148:156]) + 8 * ord(" ") - stored) % 65521:
        return -1
    field = header[124:136]
    if field[0] & 0x80:  # GNU: binary, for 8 GiB and more; 0xff would be a negative number
        return int.from_bytes(field[1:], "big") if field[0] == 0x80 else -1
    try:
        return max(-1, int(field.strip(b" \0") or b"0", 8))
    except ValueError:
        return -1


def _pax_size(text: str, otherwise: int) -> int:
    """The size that an extended header gives; a number that no file can have is ignored."""
    return int(text) if text.isascii() and text.isdigit() and len(text) < 20 else otherwise


def _name(header: bytes) -> str:
    name = _decoded(header[:100].split(b"\0", 1)[0])
    prefix = _decoded(header[345:500].split(b"\0", 1)[0]) if header[257:263] == b"ustar\0" else ""
    return f"{prefix}/{name}" if prefix else name


def _decoded(name: bytes) -> str:
    return name.decode("utf-8", "surrogateescape")


def _shown(name: str) -> str:
    return name if name.isprintable() else ascii(name)


def _pax_fields(body: bytes) -> tuple[dict[str, str], int]:
    """The records `LENGTH KEY=VALUE\\n` of a POSIX extended header up to the first malformed one, and their bytes."""
    fields, start = {}, 0
    while start < len(body):
        length = body[start : start + 10].partition(b" ")[0]
        if not length.isdigit() or len(length) > 9 or not len(length) + 1 < int(length) <= len(body) - start:
            break
        key, equals, value = body[start + len(length) + 1 : start + int(length)].rstrip(b"\n").partition(b"=")
        if equals:
            fields[_decoded(key)] = _decoded(value)
        start += int(length)
    return fields, start
