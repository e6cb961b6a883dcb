"""The structure of a JPEG (ITU-T T.81, B.2), without decoding: what decoding will cost, which bytes are the picture.

libjpeg has the last word on whether a JPEG is whole. What is decided here is whether it is plain: one that every reader
(Pillow, OpenCV, torchvision, ffcv, browsers) decodes to the same pixels.
"""

from __future__ import annotations

import functools
import re
from dataclasses import dataclass
from typing import NamedTuple

MAGIC = b"\xff\xd8\xff"
SOF0, SOF1, SOF2, DHT, SOF9, EOI, SOS, DQT, DRI, APP0, APP14 = (
    0xC0, 0xC1, 0xC2, 0xC4, 0xC9, 0xD9, 0xDA, 0xDB, 0xDD, 0xE0, 0xEE)  # fmt: skip
FRAMES = frozenset(range(0xC0, 0xD0)) - {DHT, 0xC8, 0xCC}  # start of frame, of every process
# A marker that ends a scan: not a stuffed zero, and not a restart within the scan.
END_OF_SCAN = re.compile(rb"\xff[^\x00\xd0-\xd7]")
JFIF_BYTES = 18  # of a JFIF segment without a thumbnail
CACHED_BYTES = 2048  # headers without metadata are shorter: 623 bytes with the usual tables
PLAIN_SCANS = 100  # encoders write about 12; readers refuse more than some hundreds (libjpeg-turbo's own limit is 500)
# Sampling factors of the luma, (across, down), chroma's being (1, 1): those that TurboJPEG has a name for.
SAMPLINGS = frozenset(((1, 1), (2, 1), (2, 2), (1, 2), (4, 1)))
ALL_COEFFICIENTS = (1 << 64) - 1


@dataclass(frozen=True, slots=True)
class Header:
    """What stands before the data of a JPEG's first scan."""

    frame: int  # the marker of its frame: SOF0 baseline, SOF2 progressive, ...
    precision: int  # bits
    height: int
    width: int
    components: bytes  # three bytes each: its id, its sampling factors, its quantisation table
    tables: int  # bits of those defined: 1 << id for quantisation, 1 << 16 + class and id for Huffman
    segments: tuple[tuple[int, int], ...]  # (start, end) of those before the scan that the pixels depend on
    is_clean: bool  # there is nothing else before the scan
    scan: int  # offset of the marker of the first scan
    scan_data: int  # offset of the data of that scan
    is_plain: bool  # every reader decodes it alike, as far as the header tells
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


class Scan(NamedTuple):
    """The header of a scan."""

    components: bytes  # two bytes each: its id, its Huffman tables
    first: int  # coefficient
    last: int
    precision: int  # bits of the coefficients left out, before this scan (upper four) and after it (lower four)

    @classmethod
    def at(cls, data: bytes, offset: int) -> Scan:
        end = offset + 5 + 2 * data[offset + 4]
        return cls(data[offset + 5 : end], data[end], data[end + 1] & 63, data[end + 2])

    def has_tables(self, tables: int) -> bool:
        """Whether the Huffman tables that the scan needs are among `tables`, the bits of `Header.tables`."""
        huffman = self.components[1::2]
        needs_dc, needs_ac = self.first == 0 and self.precision < 16, self.last > 0
        has_dc = all(tables >> (16 + (table >> 4)) & 1 for table in huffman)
        return (has_dc or not needs_dc) and (
            not needs_ac or all(tables >> (32 + (table & 15)) & 1 for table in huffman)
        )


def header_of(data: bytes) -> Header | None:
    """The header of a JPEG; None if it is damaged or cut short."""
    scan = data.find(b"\xff\xda", 0, CACHED_BYTES)
    if 0 <= scan < len(data) - 4 and (header := _cached_header(data[: scan + 2 + data[scan + 3]])):
        return header
    return _header(data)


def _header(data: bytes) -> Header | None:
    offset, frame, components, segments, is_clean = 2, None, b"", [], True
    tables, has_jfif, adobe = 0, False, None
    try:
        while True:
            if data[offset] != 0xFF or data[offset + 1] in (0, 0xFF):  # libjpeg skips fill bytes, and warns of others
                offset, is_clean = data.index(b"\xff", offset + 1), False
                continue
            marker, body, end = data[offset + 1], offset + 4, _segment_end(data, offset)
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
                is_picture = not has_jfif and end - offset == JFIF_BYTES
                has_jfif |= is_picture
            elif marker == APP14 and data[body : body + 5] == b"Adobe" and end - body >= 12:
                is_picture, adobe = adobe is None, data[body + 11]
            else:
                is_picture = marker == DRI
            if is_picture:
                segments.append((offset, end))
            else:
                is_clean = False
            offset = end
        if frame is None or not components:
            return None
        # libjpeg tells YCbCr by these signs, in this order. Where two of them differ, other readers go by another.
        is_ycc = adobe in (None, 1) and (has_jfif or adobe == 1 or components[::3] == b"\1\2\3")
        is_plain = _is_plain(*frame, components, tables, is_ycc)
        scan = Scan.at(data, offset)
        is_whole = scan.components[::2] == components[::3] and scan[1:] == (0, 63, 0)
        is_single = frame[0] == SOF0 and is_whole
        is_plain &= not is_single or scan.has_tables(tables)
        return Header(*frame, components, tables, tuple(segments), is_clean, offset, end, is_plain, is_single)
    except (IndexError, ValueError):  # cut short
        return None


_cached_header = functools.lru_cache(1024)(_header)  # one encoder writes one header for all images of one size


def _segment_end(data: bytes, offset: int) -> int:
    return offset + 2 + (data[offset + 2] << 8 | data[offset + 3])


def _huffman_tables(data: bytes, offset: int, end: int) -> int:
    """The tables that a segment defines, as bits of `Header.tables`."""
    tables = 0
    while offset < end:
        tables |= 1 << (16 + (data[offset] & 31))
        offset += 17 + sum(data[offset + 1 : offset + 17])
    return tables


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


def picture(data: bytes, header: Header) -> bytes | None:
    """The bytes of a plain JPEG that its pixels depend on; `data` itself if there are no others. None: not plain.

    Left out are EXIF and XMP, by whose orientation some readers turn images; thumbnails, comments and further images;
    what follows the end of the image; and colour profiles, which none of these readers applies.
    """
    if not header.is_plain:
        return None
    if header.is_single:
        marker = END_OF_SCAN.search(data, header.scan_data)
        end = marker.end() if marker and marker.group() == b"\xff\xd9" else None
    else:
        end = _scans_end(data, header)
    if end is None:
        return None
    if header.is_clean and end == len(data):
        return data
    return b"".join((data[:2], *(data[start:stop] for start, stop in header.segments), data[header.scan : end]))


def _scans_end(data: bytes, header: Header) -> int | None:
    """Where an image of several scans ends; None if they do not bring every coefficient in full.

    libjpeg smooths images that lack coefficients, and each version does so in its own way.
    """
    tables, offset, num_scans = header.tables, header.scan, 0
    received = dict.fromkeys(header.components[::3], 0)  # component -> the coefficients that came in full, as bits
    try:
        while (marker := data[offset + 1]) != EOI:
            end = _segment_end(data, offset)
            if marker == DHT:
                tables |= _huffman_tables(data, offset + 4, end)
                offset = end
            elif marker == SOS and num_scans < PLAIN_SCANS:
                num_scans += 1
                scan = Scan.at(data, offset)
                if not scan.has_tables(tables):
                    return None
                for component in scan.components[::2]:
                    received[component] |= (2 << scan.last) - (1 << scan.first) if scan.precision & 15 == 0 else 0
                if (next_marker := END_OF_SCAN.search(data, end)) is None:
                    return None
                offset = next_marker.start()
            else:
                return None
            if data[offset] != 0xFF:
                return None
    except (IndexError, KeyError, ValueError):  # cut short, or a scan of no component of this image
        return None
    return offset + 2 if all(bits == ALL_COEFFICIENTS for bits in received.values()) else None
