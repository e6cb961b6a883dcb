"""Which format an image has, by its content and never by its name."""

from __future__ import annotations

import codecs
import contextlib
import re

# The formats that are read, by Pillow's names: how each begins. The rest of Pillow's plugins is left out: EPS starts
# Ghostscript, and other decoders have no bounds.
FORMATS = {
    "JPEG": re.compile(rb"\xff\xd8\xff"),
    "PNG": re.compile(rb"\x89PNG\r\n\x1a\n"),
    "GIF": re.compile(rb"GIF8[79]a"),
    "WEBP": re.compile(rb"RIFF....WEBP", re.DOTALL),
    "TIFF": re.compile(rb"II[*+]\x00|MM\x00[*+]"),
    "BMP": re.compile(rb"BM.{12}[\x0c-\x7c]\x00\x00\x00", re.DOTALL),
    "DIB": re.compile(rb"[\x0c\x28\x34\x38\x40\x6c\x7c]\x00\x00\x00.{8}(\x01\x00|....\x01\x00)", re.DOTALL),
    "PPM": re.compile(rb"P[1-6f][ \t\r\n#]"),
    "AVIF": re.compile(rb"....ftyp(avi[fs]|m[is]f1.{0,64}?avif)", re.DOTALL),
}
# Other things that may have an image's name, by how they begin; the first that fits is meant.
OTHERS = {
    "PostScript (EPS)": rb"%!PS|\xc5\xd0\xd3\xc6",
    "a PDF": rb"%PDF",
    "a ZIP archive": rb"PK\x03\x04|PK\x05\x06",
    "a gzip stream": rb"\x1f\x8b",
    "a tar archive": rb".{257}ustar",
    "a compressed archive": rb"Rar!|7z\xbc\xaf|BZh[1-9]|\xfd7zXZ|\x28\xb5\x2f\xfd",
    "a JPEG 2000 image, a format that is not read": rb"\x00\x00\x00\x0cjP  |\xff\x4f\xff\x51",
    "a JPEG XL image, a format that is not read": rb"\xff\x0a|\x00\x00\x00\x0cJXL ",
    "a HEIC image, a format that is not read": rb"....ftyp(hei|hev|mif1|msf1)",
    "a video or sound file": rb"....ftyp|RIFF....(AVI |WAVE)|\x1a\x45\xdf\xa3|OggS|ID3[\2-\4]|\x00\x00\1[\xb3\xba]",
    "a Photoshop document": rb"8BPS",
    "an icon or a TGA image": rb"\x00\x00[\x01\x02]\x00|icns",
    "a NumPy array": rb"\x93NUMPY",
    "an HDF5 file": rb"\x89HDF",
    "an AppleDouble file, which macOS leaves beside a file": rb"\x00\x05\x16[\x00\x07]",
    "a program": rb"\x7fELF|MZ[\x00-\x1f\x80-\xff]",
    "a pointer of Git LFS to a file that was not fetched": rb"version https://git-lfs",
    "SVG, a format that is not read": rb"(\xef\xbb\xbf)?\s*<(svg|[?!].*?<svg)",
    "an HTML page": rb"(?i)(\xef\xbb\xbf)?\s*<(!doctype\s+html|html|head|body|!--.*?<html)",
    "XML": rb"(\xef\xbb\xbf)?\s*<\?xml",
}
HEAD_BYTES = 1024  # of a file: enough to say what it is
NOT_IN_TEXT = re.compile(rb"[\x00-\x08\x0e-\x1a\x1c-\x1f]")


def format_of(data: bytes) -> str | None:
    """The format, one of FORMATS, that data begins as; None for anything else.

    >>> format_of(b"\\x89PNG\\r\\n\\x1a\\n"), format_of(b"%!PS-Adobe-3.0 EPSF-3.0")
    ('PNG', None)
    """
    return next((name for name, beginning in FORMATS.items() if beginning.match(data)), None)


def what_it_is(data: bytes) -> str:
    """What data that is no image looks like, for people.

    >>> what_it_is(b"<!DOCTYPE html><title>404</title>"), what_it_is(b"%!PS-Adobe-3.0 EPSF-3.0"), what_it_is(bytes(9))
    ('an HTML page', 'PostScript (EPS)', 'nothing but zeros')
    """
    if not data:
        return "an empty file"
    head = bytes(data[:HEAD_BYTES])
    for name, beginning in OTHERS.items():
        if re.match(beginning, head, re.DOTALL):
            return name
    if not head.strip(b"\0") and data.count(0) == len(data):
        return "nothing but zeros"
    if not NOT_IN_TEXT.search(head):
        with contextlib.suppress(UnicodeDecodeError):
            codecs.getincrementaldecoder("utf-8")().decode(head)
            return "text"
    return f"data of no known format, which begins with {head[:8].hex(' ')}"
