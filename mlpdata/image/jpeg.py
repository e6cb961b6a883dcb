"""The structure of a JPEG (ITU-T T.81, B.2), without decoding: what decoding will cost, which bytes are the picture.

libjpeg has the last word on whether a JPEG is whole. What is decided here is whether it is plain: one that every reader
(Pillow, OpenCV, torchvision, ffcv, browsers) decodes to the same pixels.
"""

from __future__ import annotations

import functools
import re
from dataclasses import dataclass

MAGIC = b"\xff\xd8\xff"
SOF0, SOF1, SOF2, DHT, SOF9, EOI, SOS, DQT, DRI, APP0, APP14 = (
    0xC0, 0xC1, 0xC2, 0xC4, 0xC9, 0xD9, 0xDA, 0xDB, 0xDD, 0xE0, 0xEE)  # fmt: skip
FRAMES = frozenset(range(0xC0, 0xD0)) - {DHT, 0xC8, 0xCC}  # start of frame, of every process
# A marker that ends a scan: not a stuffed zero, and not a restart within the scan.
END_OF_SCAN = re.compile(rb"\xff[^\x00\xd0-\xd7]")
JFIF_BYTES = 18  # of a JFIF segment without a thumbnail
CACHED_BYTES = 2048  # headers without metadata are shorter: 623 bytes with the usual tables
PLAIN_SCANS = 100  # encoders write 12 or so; readers refuse more than some hundreds (libjpeg-turbo's own limit is 500)
# Of the luma in units of both chromas: those that TurboJPEG has a name for.
SAMPLINGS = frozenset(((1, 1), (2, 1), (2, 2), (1, 2), (4, 1)))
ALL = (1 << 64) - 1  # coefficients


@dataclass(frozen=True, slots=True)
class Header:
    """What stands before the data of a JPEG's first scan."""

    frame: int  # the marker of its frame: SOF0 baseline, SOF2 progressive, ...
    precision: int  # bits
    height: int
    width: int
    components: bytes  # three bytes each: its id, its sampling factors, its quantisation table
    tables: int  # bits of those defined: 1 << id for quantisation, 1 << 16 + class and id for Huffman
    segments: tuple[tuple[int, int], ...]  # before the scan, those that the pixels depend on
    is_clean: bool  # there is nothing else before the scan
    scan: int  # where the marker of the first scan stands
    scan_end: int  # where the data of that scan begins
    is_plain: bool  # every reader takes it alike, as far as one sees from here
    is_single: bool  # baseline, in one scan

    def is_buffered(self, data: bytes) -> bool:
        """Whether libjpeg holds all coefficients in memory: progressive, or components in scans of their own."""
        return self.frame not in (SOF0, SOF1, SOF9) or 3 * data[self.scan + 4] != len(self.components)

    @property
    def is_cmyk(self) -> bool:
        return len(self.components) == 12

    def coefficients_per_pixel(self) -> float:
        factors = [divmod(sampling, 16) for sampling in self.components[1::3]]
        largest = max(across for across, _ in factors) * max(down for _, down in factors)
        return sum(across * down for across, down in factors) / max(1, largest)


def header(data: bytes) -> Header | None:
    """The header of a JPEG, or None where it is damaged, or has less than a header."""
    scan = data.find(b"\xff\xda", 0, CACHED_BYTES)
    if 0 <= scan < len(data) - 4 and (head := _cached_header(data[: scan + 2 + data[scan + 3]])):
        return head
    return _header(data)


def _header(data: bytes) -> Header | None:
    at, frame, components, segments, is_clean = 2, None, b"", [], True
    tables, jfif, adobe = 0, False, None
    try:
        while True:
            if data[at] != 0xFF or data[at + 1] in (0, 0xFF):  # libjpeg skips fill bytes, and stray ones with a warning
                at, is_clean = data.index(b"\xff", at + 1), False
                continue
            marker, body, end = data[at + 1], at + 4, at + 2 + (data[at + 2] << 8 | data[at + 3])
            if not body <= end <= len(data) or 0xD0 <= marker <= EOI:
                return None
            if marker == SOS:
                break
            is_picture = True
            if marker == DHT:
                tables |= _huffman_tables(data, body, end)
            elif marker == DQT:
                table = body
                while table < end:
                    tables |= 1 << (data[table] & 15)
                    table += 129 if data[table] >> 4 else 65
            elif marker in FRAMES:
                if frame is not None:
                    return None
                frame = marker, data[body], data[body + 1] << 8 | data[body + 2], data[body + 3] << 8 | data[body + 4]
                components = data[body + 6 : body + 6 + 3 * data[body + 5]]
            elif marker == APP0 and data[body : body + 5] == b"JFIF\0":
                is_picture = not jfif and end - at == JFIF_BYTES
                jfif |= is_picture
            elif marker == APP14 and data[body : body + 5] == b"Adobe" and end - body >= 12:
                is_picture, adobe = adobe is None, data[body + 11]
            else:
                is_picture = marker == DRI
            if is_picture:
                segments.append((at, end))
            else:
                is_clean = False
            at = end
        if not components:
            return None
        # What libjpeg goes by, in this order; and where two of these signs differ, other readers go by another.
        is_ycc = adobe in (None, 1) and (jfif or adobe == 1 or components[::3] == b"\1\2\3")
        is_plain = _is_plain(*frame, components, tables, is_ycc)
        in_scan, first, last, bits = _scan(data, at)
        is_single = frame[0] == SOF0 and in_scan[::2] == components[::3] and (first, last, bits) == (0, 63, 0)
        is_plain &= not is_single or _has_tables(in_scan, first, last, bits, tables)
        return Header(*frame, components, tables, tuple(segments), is_clean, at, end, is_plain, is_single)
    except (IndexError, ValueError):  # it ends too soon
        return None


_cached_header = functools.lru_cache(1024)(_header)  # one encoder writes one header for all images of one size


def _huffman_tables(data: bytes, at: int, end: int) -> int:
    """The tables a segment defines, as bits of `Header.tables`."""
    tables = 0
    while at < end:
        tables |= 1 << (16 + (data[at] & 31))
        at += 17 + sum(data[at + 1 : at + 17])
    return tables


def picture(data: bytes, head: Header) -> bytes | None:
    """The bytes of a plain JPEG that its pixels depend on: `data` itself where there are no others. None: not plain.

    Cut out are EXIF and XMP, by whose orientation some readers turn images; thumbnails, comments and further images;
    what hangs on behind the end; and colour profiles, which none of these readers applies.
    """
    if not head.is_plain:
        return None
    if head.is_single:
        found = END_OF_SCAN.search(data, head.scan_end)
        end = found.end() if found and found.group() == b"\xff\xd9" else None
    else:
        end = _scans_end(data, head)
    if end is None:
        return None
    if head.is_clean and end == len(data):
        return data
    return b"".join((data[:2], *(data[start:stop] for start, stop in head.segments), data[head.scan : end]))


def _scans_end(data: bytes, head: Header) -> int | None:
    """Where an image of several scans ends; None where they do not bring every coefficient in full.

    libjpeg smooths images that lack some, and each version does so in its own way.
    """
    tables, at, num_scans = head.tables, head.scan, 0
    whole = dict.fromkeys(head.components[::3], 0)  # the coefficients that have come in full, as bits
    try:
        while (marker := data[at + 1]) != EOI:
            end = at + 2 + (data[at + 2] << 8 | data[at + 3])
            if marker == DHT:
                tables |= _huffman_tables(data, at + 4, end)
                at = end
            elif marker == SOS and num_scans < PLAIN_SCANS:
                num_scans += 1
                components, first, last, bits = _scan(data, at)
                if not _has_tables(components, first, last, bits, tables):
                    return None
                for component in components[::2]:
                    whole[component] |= (2 << last) - (1 << first) if bits & 15 == 0 else 0
                at = END_OF_SCAN.search(data, end).start()
            else:
                return None
            if data[at] != 0xFF:
                return None
    except (IndexError, KeyError, AttributeError, ValueError):  # it ends too soon, or is none
        return None
    return at + 2 if all(bits == ALL for bits in whole.values()) else None


def _scan(data: bytes, at: int) -> tuple[bytes, int, int, int]:
    """(two bytes of each component, its first and its last coefficient, bits left out before and now) of a scan."""
    n = 2 * data[at + 4]
    return data[at + 5 : at + 5 + n], data[at + 5 + n], data[at + 6 + n] & 63, data[at + 7 + n]


def _has_tables(components: bytes, first: int, last: int, bits: int, tables: int) -> bool:
    """Whether the Huffman tables that a scan needs are defined."""
    direct = all(tables >> (16 + (table >> 4)) & 1 for table in components[1::2]) or first > 0 or bits > 15
    return direct and (last == 0 or all(tables >> (32 + (table & 15)) & 1 for table in components[1::2]))


def _is_plain(
    frame: int, precision: int, height: int, width: int, components: bytes, tables: int, is_ycc: bool
) -> bool:
    """Whether every reader takes a header alike: 8 bits, grey or YCbCr, with usual sampling and its own tables."""
    if frame not in (SOF0, SOF2) or precision != 8 or not width or not height:
        return False
    if len(components) == 9:
        sampling = divmod(components[1], 16)
        if not is_ycc or len({*components[::3]}) < 3 or sampling not in SAMPLINGS or components[4::3] != b"\x11\x11":
            return False
    elif len(components) != 3:
        return False
    return all(tables >> (table & 15) & 1 for table in components[2::3])
