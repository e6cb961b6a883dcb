"""Limits of what is decoded, in bytes, pixels, memory and scans: no image takes minutes or gigabytes."""

from __future__ import annotations

MAX_IMAGE_BYTES = 256 << 20  # of an encoded image; a larger one is not read
# A JPEG of more pixels is not decoded. ImageNet's largest has about 1.2e8, of which a scaled decode holds a 64th.
MAX_PIXELS = 1 << 27
MAX_DECODE_BYTES = 1 << 29  # of memory, for one image
# libjpeg takes about 0.2 ns a pixel for an empty scan, and encoders write 12 scans: 1.6e9 for the largest image.
MAX_SCANNED_PIXELS = 1 << 33
SCAN_BYTES = 10  # of the shortest scan


class ImageError(Exception):
    """An image that cannot be decoded; the text is the reason that goes to skipped.jsonl."""


def check_size(width: int, height: int, max_pixels: int) -> None:
    """Raise ImageError for an image of no pixels, or of more than max_pixels."""
    if width * height > max_pixels or width < 1 or height < 1:
        raise ImageError(f"declares {width} x {height} pixels; at most {max_pixels} are read")


def check_scans(data: bytes, width: int, height: int) -> None:
    """Raise ImageError for a JPEG whose scans, each of which goes over all pixels, would take minutes."""
    if len(data) > bytes_of_many_scans(width, height):
        scans = data.count(b"\xff\xda")
        if scans * width * height > MAX_SCANNED_PIXELS:
            most = MAX_SCANNED_PIXELS // (width * height)
            raise ImageError(f"has {scans} scans of {width} x {height} pixels; at most {most} are decoded")


def bytes_of_many_scans(width: int, height: int) -> int:
    """The size below which a JPEG cannot have more scans than `check_scans` allows."""
    return SCAN_BYTES * (MAX_SCANNED_PIXELS // max(1, width * height))
