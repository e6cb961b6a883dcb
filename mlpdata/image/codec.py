"""Image bytes to pixels and back: decode, resize, encode. Arrays in, arrays out.

What an image is, its content says, never its name: one of the FORMATS, whose decoders start no programs and open no
files, of a size whose decoding is bounded in memory and time. Everything else is an ImageError that says what it is.

The fast path for JPEG decodes at the DCT scale (1/8, 2/8, 4/8 or full) that leaves enough of the image on both sides
and resizes from there; the exact path decodes in full. `squared_error` measures the difference between the two.

Orientation (EXIF's, XMP's, TIFF's) is ignored, as torchvision's, timm's and ffcv's ImageNet pipelines ignore it: labels
and published accuracies come from images that were not turned.

libjpeg-turbo's strict mode, in which every warning is an error, tells which JPEGs all readers see alike: only those are
stored as they are, and shards are read in it. Of other JPEGs that libjpeg warns about, Pillow has the last word.
"""

from __future__ import annotations

import codecs
import contextlib
import functools
import io
import os
import re
import struct
import threading
import warnings
import zlib
from dataclasses import dataclass

import deflate
import numpy as np
import PIL
import simplejpeg
from PIL import Image, ImageFile

from mlpdata import choices
from mlpdata.choices import RESIZES as RESIZES
from mlpdata.errors import first_line
from mlpdata.image import jpeg

MAX_IMAGE_BYTES = 256 << 20  # an encoded image of more is not read
# A JPEG of more pixels is not read. ImageNet's largest has 1.2e8 or so, of which a scaled decode holds a 64th.
MAX_PIXELS = 1 << 27
MAX_DECODE_BYTES = 1 << 29  # of memory that one image takes while it is decoded
# libjpeg takes some 0.2 ns a pixel for a scan that holds nothing, and encoders write 12 scans: 1.6e9 for the largest.
MAX_SCANNED_PIXELS = 1 << 33
# Pillow's names of the formats that are read, and what decoding takes of memory, bytes a pixel, measured on 25 million.
# The rest of Pillow's plugins is left out: EPS starts Ghostscript, the decoders of others have no bounds.
FORMATS = {"JPEG": 8, "PNG": 8, "GIF": 8, "BMP": 8, "DIB": 8, "TIFF": 8, "PPM": 8, "WEBP": 16, "AVIF": 16}
JPEG_BYTES, SCALED_JPEG_BYTES = 8, 16  # of a pixel that is decoded and resized: as uint8, and as float32
COEFFICIENT_BYTES = 2
MEASURED_PIXELS = 1 << 24  # images of more are not decoded once again to measure a scaled decode against
FILTERS = {name: Image.Resampling[name.upper()] for name in choices.FILTERS}
# libjpeg-turbo decodes to any k/8, but only these have SIMD code: 3/8 takes longer than 4/8.
SCALES = (1, 2, 4)
# A scaled decode keeps at least this many source pixels for each target pixel, on both sides.
OVERSAMPLE = 2.0
# Box does with fewer, as an area mean. Against exact decode and Pillow's box, on 400 ImageNet photographs at 64 px:
# 38.4 dB at 2.0, 36.7 at 1.5, 35.5 at 1.45, 35.3 at 1.4, 33.1 at 1.3; the first four take 1375, 1329, 1276 and 1272 us
# an image. (With Pillow's Hamming in its place 35.4 dB and 1356 us at 1.45.) 1.45 lets a photograph of 500 x 375, the
# commonest size, go at 2/8.
BOX_OVERSAMPLE = 1.45
BAND = 8  # target rows or columns that one matrix product makes: more multiply more zeros, fewer are more calls
# Multiplications in one product. OpenBLAS gives threads to products of more than 2^18, and threads of several processes
# that wait for each other take 30 times as long: 126 ms for 4 ms, two processes with 1000 x 700 pixels to 224.
MAX_PRODUCT = 1 << 18
# A JPEG of more is not stored as it is: twice its pixels and the tables. Quality 100 without subsampling has less.
KEPT_BYTES, KEPT_HEADER_BYTES = 6, 16 << 10


class ImageError(Exception):
    """An image that cannot be decoded; the text is the reason that goes to skipped.jsonl."""


@dataclass(frozen=True)
class Resize:
    """How images come to their stored size.

    squash:  exactly res x res, aspect ratio given up (the Downsampled-ImageNet and paper's way).
    crop:    shorter side to res, centre res x res kept.
    longest: longer side to res, aspect ratio kept; sizes differ. Smaller images stay as they are.
    """

    res: int
    rule: str = "squash"
    filter: str = "box"

    def box_and_size(self, width: int, height: int) -> tuple[tuple[float, float, float, float], tuple[int, int]]:
        """The source box and the (width, height) it is resized to, for a source of the given size."""
        whole = (0.0, 0.0, float(width), float(height))
        if self.rule == "squash":
            return whole, (self.res, self.res)
        if self.rule == "crop":
            side = min(width, height)
            left, top = (width - side) / 2, (height - side) / 2
            return (left, top, left + side, top + side), (self.res, self.res)
        scale = min(1.0, self.res / max(width, height))
        return whole, (max(1, round(width * scale)), max(1, round(height * scale)))

    def keeps(self, width: int, height: int) -> bool:
        """Whether an image of this size is stored as it is."""
        if self.rule == "longest":  # what box_and_size says, without its arithmetic: it is asked for every image
            return max(width, height) <= self.res
        return width == height == self.res


def library_versions() -> dict[str, str]:
    """The libraries that make the pixels, for the manifest: equal versions give equal bytes."""
    name = "pillow-simd" if is_pillow_simd() else "pillow"
    return {
        "jpeg": f"simplejpeg {simplejpeg.__version__}",
        "resize": f"{name} {PIL.__version__}",
        "png": f"deflate {deflate.__version__}",
    }


def is_pillow_simd() -> bool:
    """Whether the PIL that is loaded is pillow-simd: the two overwrite each other, so only the loaded one tells."""
    return ".post" in PIL.__version__


# --------------------------------------------------------------------------------------------- what an image is

MAGIC = {
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
# What else may have an image's name, by how it begins.
OTHERS = (
    ("PostScript (EPS)", rb"%!PS|\xc5\xd0\xd3\xc6"),
    ("a PDF", rb"%PDF"),
    ("a ZIP archive", rb"PK\x03\x04|PK\x05\x06"),
    ("a gzip stream", rb"\x1f\x8b"),
    ("a tar archive", rb".{257}ustar"),
    ("a compressed archive", rb"Rar!|7z\xbc\xaf|BZh[1-9]|\xfd7zXZ|\x28\xb5\x2f\xfd"),
    ("a JPEG 2000 image, a format that is not read", rb"\x00\x00\x00\x0cjP  |\xff\x4f\xff\x51"),
    ("a JPEG XL image, a format that is not read", rb"\xff\x0a|\x00\x00\x00\x0cJXL "),
    ("a HEIC image, a format that is not read", rb"....ftyp(hei|hev|mif1|msf1)"),
    (
        "a video or sound file",
        rb"....ftyp|RIFF....(AVI |WAVE)|\x1a\x45\xdf\xa3|OggS|ID3[\x02-\x04]|\x00\x00\x01[\xb3\xba]",
    ),
    ("a Photoshop document", rb"8BPS"),
    ("an icon or a TGA image", rb"\x00\x00[\x01\x02]\x00|icns"),
    ("a NumPy array", rb"\x93NUMPY"),
    ("an HDF5 file", rb"\x89HDF"),
    ("an AppleDouble file, which macOS leaves beside a file", rb"\x00\x05\x16[\x00\x07]"),
    ("a program", rb"\x7fELF|MZ[\x00-\x1f\x80-\xff]"),
    ("a pointer of Git LFS to a file that was not fetched", rb"version https://git-lfs"),
    ("SVG, a format that is not read", rb"(\xef\xbb\xbf)?\s*<(svg|[?!].*?<svg)"),
    ("an HTML page", rb"(?i)(\xef\xbb\xbf)?\s*<(!doctype\s+html|html|head|body|!--.*?<html)"),
    ("XML", rb"(\xef\xbb\xbf)?\s*<\?xml"),
)
OTHERS = tuple((name, re.compile(pattern, re.DOTALL)) for name, pattern in OTHERS)
HEAD_BYTES = 1024  # that tell what a file is
NOT_IN_TEXT = re.compile(rb"[\x00-\x08\x0e-\x1a\x1c-\x1f]")


def format_of(data: bytes) -> str | None:
    """The name of the format that data begins as, one of FORMATS; None for what is no image that is read.

    >>> format_of(b"\\x89PNG\\r\\n\\x1a\\n"), format_of(b"%!PS-Adobe-3.0 EPSF-3.0")
    ('PNG', None)
    """
    return (
        "JPEG" if data[:3] == jpeg.MAGIC else next((name for name, magic in MAGIC.items() if magic.match(data)), None)
    )


def what_it_is(data: bytes) -> str:
    """What data that is no image looks like, for people.

    >>> what_it_is(b"<!DOCTYPE html><title>404</title>"), what_it_is(b"%!PS-Adobe-3.0 EPSF-3.0"), what_it_is(bytes(9))
    ('an HTML page', 'PostScript (EPS)', 'nothing but zeros')
    """
    if not data:
        return "an empty file"
    head = bytes(data[:HEAD_BYTES])
    for name, magic in OTHERS:
        if magic.match(head):
            return name
    if not head.strip(b"\0") and data.count(0) == len(data):
        return "nothing but zeros"
    if not NOT_IN_TEXT.search(head):
        with contextlib.suppress(UnicodeDecodeError):
            codecs.getincrementaldecoder("utf-8")().decode(head)
            return "text"
    return f"data of no known format, which begins with {head[:8].hex(' ')}"


def probe(data: bytes) -> tuple[int, int, bool]:
    """(width, height, whether it is a JPEG that libjpeg decodes to RGB) of an image, from its first bytes.

    Decodes nothing. Raises ImageError, also for what is larger than anything that is decoded.
    """
    if data[:3] == jpeg.MAGIC and (head := jpeg.header(data)):
        width, height, is_rgb_jpeg = head.width, head.height, not head.is_cmyk
    else:
        with _pillow:
            image = _open(data)
            width, height = _declared_size(image)
            is_rgb_jpeg = image.format in ("JPEG", "MPO") and image.mode != "CMYK"
    check_size(width, height, MAX_PIXELS)
    return width, height, is_rgb_jpeg


# --------------------------------------------------------------------------------------------------------- decode


def decode(
    data: bytes, resize: Resize, strict: bool = False, warned: list[str] | None = None
) -> tuple[np.ndarray, tuple[int, int]]:
    """Decode any image to RGB at its stored size.

    strict: a JPEG that libjpeg warns about is damaged, as in shards that were written here.
    warned: takes what libjpeg warns of, where an image is decoded nonetheless.
    Returns (uint8 (H, W, 3), (source width, source height)). Raises ImageError with the reason.
    """
    warning = None
    try:
        if data[:3] == jpeg.MAGIC:
            try:
                if decoded := _decode_jpeg(data, resize):
                    return decoded
            except ValueError as e:
                warning = _reason(e)
                if strict:
                    raise ImageError(f"cannot decode: {warning}") from None
        picture = _decode_pillow(data)
        if warning and warned is not None:
            warned.append(warning)
        box, size = resize.box_and_size(*picture.size)
        small = picture if picture.size == size else picture.resize(size, FILTERS[resize.filter], box=box)
        return np.array(small), picture.size
    except MemoryError:
        raise ImageError("cannot decode: there is not enough memory") from None


def _decode_jpeg(data: bytes, resize: Resize) -> tuple[np.ndarray, tuple[int, int]] | None:
    """As `decode`; None for CMYK and unusual sampling, which are no fault, but which TurboJPEG does not decode to RGB.

    Raises ValueError where libjpeg warns, ImageError where decoding would cost too much.
    """
    head = jpeg.header(data)
    if head is None:
        raise ValueError("its header is damaged")
    width, height = head.width, head.height
    if not (head.is_plain and head.is_clean):
        if head.is_cmyk:
            return None
        try:
            declared = simplejpeg.decode_jpeg_header(data)[:2]
        except ValueError as e:
            if "subsampling" in str(e):
                return None
            raise
        if declared != (height, width):
            raise ValueError("its header is damaged")
    check_size(width, height, MAX_PIXELS)
    min_width, min_height = _decode_floor(resize, width, height)
    if min_width:
        needed = SCALED_JPEG_BYTES * min_width * min_height
    else:
        needed = JPEG_BYTES * width * height
    if head.is_buffered(data):
        check_scans(data, width, height)
        needed += COEFFICIENT_BYTES * head.coefficients_per_pixel() * width * height
    if needed > MAX_DECODE_BYTES:
        raise ImageError(f"declares {width} x {height} pixels, whose decoding takes {int(needed) >> 20} MiB of memory")
    pixels = simplejpeg.decode_jpeg(data, "RGB", min_width=min_width, min_height=min_height)
    return resized(pixels, resize, width, height), (width, height)


def _decode_floor(resize: Resize, width: int, height: int) -> tuple[int, int]:
    """The smallest (width, height) the scaled decode may give; 0, 0 where the image is to be decoded in full."""
    (left, top, right, bottom), (w, h) = resize.box_and_size(width, height)
    if (w, h) != (width, height):
        oversample = BOX_OVERSAMPLE if resize.filter == "box" else OVERSAMPLE
        need = oversample * max(w / (right - left), h / (bottom - top))  # of the whole image, as a share
        for scale in SCALES:
            if 8 * need <= scale:
                return -(-width * scale // 8), -(-height * scale // 8)
    return 0, 0


def decode_kept(data: bytes, out: np.ndarray) -> None:
    """Decode a JPEG of a shard into (H, W, 3) uint8, C-contiguous. Raises ImageError, also where libjpeg only warns."""
    try:
        shape = simplejpeg.decode_jpeg(data, "RGB", buffer=out).shape
    except ValueError as e:
        try:  # the text of a buffer that is too small names no sizes
            shape = simplejpeg.decode_jpeg_header(data)[:2]
        except ValueError:
            shape = out.shape
        if shape[:2] == out.shape[:2]:
            raise ImageError(f"cannot decode: {_reason(e)}") from None
    if shape[:2] != out.shape[:2]:  # a header that says one thing to one reader and another to the next
        raise ImageError(f"decodes to {shape[1]} x {shape[0]}, its header says {out.shape[1]} x {out.shape[0]}")


def decode_exact(data: bytes, size: tuple[int, int] | None = None) -> np.ndarray:
    """Decode in full to uint8 (H, W, 3) RGB, whatever the format: JPEG, PNG, WebP, ... Raises ImageError.

    size: (width, height) that the image has to have; another one is not decoded.
    """
    return np.array(_decode_pillow(data, size))


def _decode_pillow(data: bytes, size: tuple[int, int] | None = None) -> Image.Image:
    """The first picture of an image of any format, in mode RGB."""
    with _pillow:
        image = _open(data)
        width, height = _declared_size(image)
        if size not in (None, (width, height)):
            raise ImageError(f"is {width} x {height}, not {size[0]} x {size[1]} pixels")
        kind = "JPEG" if image.format == "MPO" else image.format
        most = MAX_DECODE_BYTES // FORMATS[kind]
        check_size(width, height, most)
        if kind == "PNG":
            _check_png(data)
        if kind == "TIFF":  # which decodes a tile at a time, however small the image is
            check_size(image.tag_v2.get(322, 1), image.tag_v2.get(323, 1), most)
        if kind == "JPEG":
            check_scans(data, width, height)
        return to_rgb(image)


def _open(data: bytes) -> Image.Image:
    kind = format_of(data)
    if kind is None:
        raise ImageError(f"not an image: it is {what_it_is(data)}")
    if kind not in Image.OPEN:
        Image.init()
        if kind not in Image.OPEN:
            raise ImageError(f"cannot decode: this Pillow ({PIL.__version__}) reads no {kind}")
    return Image.open(io.BytesIO(data), formats=(kind,))


def _check_png(data: bytes) -> None:
    """Raise ImageError for a critical chunk with another checksum than it says, of which Pillow checks some only."""
    at, kind, view = 8, b"", memoryview(data)
    while at + 12 <= len(data) and kind != b"IEND":
        end = at + 8 + int.from_bytes(data[at : at + 4])
        kind = data[at + 4 : at + 8]
        # Upper case: critical. What is cut short is Pillow's to tell.
        if (
            kind[:1].isupper()
            and end + 4 <= len(data)
            and zlib.crc32(view[at + 4 : end]) != int.from_bytes(data[end : end + 4])
        ):
            raise ImageError(f"cannot decode: its chunk {kind.decode('latin-1')!r} has another checksum than it says")
        at = end + 4


def _declared_size(image: Image.Image) -> tuple[int, int]:
    if image.format == "TIFF":  # its plugin swaps them by the orientation
        return image.tag_v2[256], image.tag_v2[257]
    return image.size


class _PillowSettings:
    """Pillow's settings are the process's. While images are decoded here, in any number of threads, they are ours.

    What Pillow raises comes out as an ImageError: its plugins raise nearly anything on damaged input.
    """

    def __init__(self):
        self._lock, self._users, self._saved = threading.Lock(), 0, None

    def __enter__(self) -> None:
        with self._lock:
            if not self._users:
                quiet = warnings.catch_warnings()
                quiet.__enter__()
                warnings.filterwarnings("ignore", module=r"PIL\b")
                self._saved = quiet, ImageFile.LOAD_TRUNCATED_IMAGES, Image.MAX_IMAGE_PIXELS
                # An image that is cut short is damaged; and how large one may be is decided here.
                ImageFile.LOAD_TRUNCATED_IMAGES, Image.MAX_IMAGE_PIXELS = False, None
            self._users += 1

    def __exit__(self, kind, error, traceback) -> None:
        with self._lock:
            self._users -= 1
            if not self._users:
                quiet, ImageFile.LOAD_TRUNCATED_IMAGES, Image.MAX_IMAGE_PIXELS = self._saved
                quiet.__exit__(None, None, None)
        if isinstance(error, Exception) and not isinstance(error, ImageError):
            raise ImageError(f"cannot decode: {_reason(error)}") from None


_pillow = _PillowSettings()
os.register_at_fork(after_in_child=_pillow.__init__)  # of a process that forks meanwhile


def _reason(error: Exception) -> str:
    """One line that is the same in every run."""
    if isinstance(error, PIL.UnidentifiedImageError):  # its text names an object in memory
        return "it is damaged at its beginning, or of a kind that Pillow does not know"
    return re.sub(r" at 0x[0-9a-f]+", "", first_line(error))


def check_size(width: int, height: int, most: int) -> None:
    if width * height > most or width < 1 or height < 1:
        raise ImageError(f"declares {width} x {height} pixels; at most {most} are read")


def check_scans(data: bytes, width: int, height: int) -> None:
    """Raise ImageError for a JPEG whose scans, each of which goes over all of its pixels, would take minutes."""
    if len(data) > bytes_of_many_scans(width, height):
        scans = data.count(b"\xff\xda")
        if scans * width * height > MAX_SCANNED_PIXELS:
            most = MAX_SCANNED_PIXELS // (width * height)
            raise ImageError(f"has {scans} scans of {width} x {height} pixels; at most {most} are decoded")


def bytes_of_many_scans(width: int, height: int) -> int:
    """What a JPEG has at least that has too many scans: each takes ten bytes."""
    return 10 * (MAX_SCANNED_PIXELS // max(1, width * height))


def to_rgb(image: Image.Image) -> Image.Image:
    """Any Pillow image in mode RGB, loaded: palettes are looked up, alpha is dropped, 16 bits keep their upper 8.

    Raises ValueError for numbers whose range is not known: floating point, and integers of 32 bits.
    """
    is_tiff = image.format == "TIFF"
    # TIFF's plugin turns images by their orientation; here that is undone.
    turned = UNTURN.get(image.getexif().get(0x0112)) if is_tiff else None
    bits, white_is_zero = (image.tag_v2.get(258, (16,))[0], image.tag_v2.get(262) == 0) if is_tiff else (16, False)
    image.load()
    if turned is not None:
        image = image.transpose(turned)
    if image.mode.startswith("I;16") or (image.mode == "I" and image.format in ("PNG", "PPM")):  # 16 bits, also in 32
        grey = (np.asarray(image).clip(0, (1 << bits) - 1) >> (bits - 8)).astype(np.uint8)
        image = Image.fromarray(~grey if white_is_zero else grey)
    elif image.mode in ("I", "F"):
        raise ValueError("its pixels are not of 8 or 16 bits: which value is white is not known")
    if image.mode == "RGBa" or (image.mode == "P" and "transparency" in image.info):
        image = image.convert("RGBA")
    elif image.mode == "La":
        image = image.convert("LA")
    return image if image.mode == "RGB" else image.convert("RGB")


# What undoes the orientations 2 to 8 of TIFF 6.0.
UNTURN = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_90,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_270,
}


def resized(pixels: np.ndarray, resize: Resize, width: int, height: int) -> np.ndarray:
    """Resize decoded pixels, which may be a scaled-down version of a (width, height) source.

    pixels: (H, W, 3) uint8. Returns the stored size, uint8, C-contiguous; `pixels` itself where nothing is to be done.
    """
    box, size = resize.box_and_size(width, height)
    h, w = pixels.shape[:2]
    if (w, h) == size:
        return pixels
    sx, sy = w / width, h / height
    box = (box[0] * sx, box[1] * sy, box[2] * sx, box[3] * sy)
    if resize.filter == "box" and (w, h) != (width, height):
        return area_mean(pixels, box, size)
    return np.asarray(Image.fromarray(pixels).resize(size, FILTERS[resize.filter], box=box))


def area_mean(pixels: np.ndarray, box: tuple[float, float, float, float], size: tuple[int, int]) -> np.ndarray:
    """Every target pixel is the mean of what it covers of the source, pixels at its edges by their covered share.

    Pillow's box weighs a source pixel fully or not at all. Of a full decode a target pixel averages dozens of pixels,
    and that is nearly the same; of a scaled decode it averages two or three by turns, and edges jump.

    pixels: (H, W, 3) uint8, C-contiguous. box: (left, top, right, bottom) in its pixels. size: (width, height), no more
    than the box has. Returns (height, width, 3) uint8.

    Two matrix products, first down, then across, each by bands of the weights that are not zero. Weights are whole
    256ths, so that every sum is a whole number below 2^24: exact in float32, whatever the order of the additions, and
    the bytes are the same on every processor.
    """
    (h, w), (left, top, right, bottom), (width, height) = pixels.shape[:2], box, size
    source = pixels.reshape(h, 3 * w).astype(np.float32)
    rows = np.empty((height, 3 * w), np.float32)
    for first, start, stop, weights in _bands(h, round(top, 6), round(bottom, 6), height, 1):
        step = max(1, MAX_PRODUCT // weights.size)
        for at in range(0, 3 * w, step):
            here = slice(at, at + step)
            np.matmul(weights, source[start:stop, here], out=rows[first : first + BAND, here])
    out = np.empty((height, 3 * width), np.float32)
    for first, start, stop, weights in _bands(w, round(left, 6), round(right, 6), width, 3):
        step = max(1, MAX_PRODUCT // weights.size)
        for at in range(0, height, step):
            np.matmul(rows[at : at + step, start:stop], weights, out=out[at : at + step, first : first + 3 * BAND])
    out += 1 << 15
    out *= 1 / (1 << 16)
    return out.astype(np.uint8).reshape(height, width, 3)


@functools.lru_cache(256)  # 80 kB each for photographs of 500 pixels, which come to few sizes once they are scaled
def _bands(n: int, start: float, stop: float, m: int, channels: int) -> list[tuple[int, int, int, np.ndarray]]:
    """Weights of the means of m equal stretches from `start` to `stop` of n pixels, in 256ths, in bands of BAND means.

    Returns (first mean, first value, value behind the last, float32 weights) of each band. Of one channel the weights
    are (means, values) and go to the left of the values; of several, interleaved, (values, means) to the right.
    """
    step = (stop - start) / m
    edges = start + np.arange(m) * step
    covered = np.clip(np.arange(n + 1) - edges[:, None], 0, step)  # of a stretch, by the pixels before each
    whole = np.diff(np.rint(covered * (256 / step)), axis=1).astype(np.float32)
    bands = []
    for first in range(0, m, BAND):
        weights = whole[first : first + BAND]
        used = np.flatnonzero(weights.any(axis=0))
        a, b = int(used[0]), int(used[-1]) + 1
        weights = weights[:, a:b]
        if channels > 1:
            apart = np.zeros((b - a, channels, len(weights), channels), np.float32)
            for c in range(channels):
                apart[:, c, :, c] = weights.T
            weights = apart.reshape((b - a) * channels, -1)
        bands.append((first * channels, a * channels, b * channels, np.ascontiguousarray(weights)))
    return bands


def squared_error(data: bytes, pixels: np.ndarray, resize: Resize) -> tuple[float, int]:
    """(sum of squared differences, largest difference) of stored pixels against exact decode and the same filter."""
    exact = decode_exact(data)
    exact = resized(exact, resize, exact.shape[1], exact.shape[0])
    diff = exact.astype(np.int32) - pixels
    return float((diff * diff).sum()), int(np.abs(diff).max(initial=0))


# --------------------------------------------------------------------------------------------------------- encode


def encode_jpeg(pixels: np.ndarray, quality: int) -> bytes:
    """uint8 (H, W, 3) RGB to a baseline JPEG, 4:2:0 below quality 95 and 4:4:4 from there on."""
    return simplejpeg.encode_jpeg(
        np.ascontiguousarray(pixels), quality=quality, colorsubsampling="444" if quality >= 95 else "420"
    )


def encode_png(pixels: np.ndarray, level: int = 1) -> bytes:
    """uint8 (H, W, 3) RGB to PNG, every row with the Up filter.

    Written here because at 32 to 64 pixels a general encoder spends its time on set-up, and with libdeflate, which
    takes a third of zlib's time for 2% more bytes. W3C PNG specification, sections 5, 9 and 11.
    """
    height, width = pixels.shape[:2]
    rows = np.empty((height, 1 + 3 * width), np.uint8)
    rows[:, 0] = 2  # filter type Up: each byte minus the one above
    flat = pixels.reshape(height, 3 * width)
    rows[0, 1:] = flat[0]
    np.subtract(flat[1:], flat[:-1], out=rows[1:, 1:])
    return b"".join((_png_head(width, height), _chunk(b"IDAT", deflate.zlib_compress(rows.data, level)), PNG_TAIL))


@functools.lru_cache(256)  # sizes differ with --resize longest
def _png_head(width: int, height: int) -> bytes:
    return b"\x89PNG\r\n\x1a\n" + _chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0))


def _chunk(kind: bytes, body: bytes) -> bytes:
    return b"".join((len(body).to_bytes(4), kind, body, zlib.crc32(body, zlib.crc32(kind)).to_bytes(4)))


PNG_TAIL = _chunk(b"IEND", b"")


def kept_jpeg(data: bytes, resize: Resize) -> tuple[bytes, tuple[int, int]] | None:
    """A JPEG that is stored as it is: (its bytes for a shard, (width, height)). None for what is to be encoded anew.

    That is another size, another format, and a JPEG that is not plain (`jpeg.picture` tells, and cuts out what is no
    picture). The compressed image itself is neither touched nor decoded: `decode_kept` has to take it, too.
    """
    if data[:3] != jpeg.MAGIC:
        return None
    head = jpeg.header(data)
    if head is None or not resize.keeps(head.width, head.height):
        return None
    picture = jpeg.picture(data, head)
    if picture is None or len(picture) > KEPT_BYTES * head.width * head.height + KEPT_HEADER_BYTES:
        return None
    return picture, (head.width, head.height)
