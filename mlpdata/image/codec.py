"""Image bytes to pixels and back: decode, encode, and which JPEGs are stored as they are. Arrays in, arrays out.

The fast path for JPEG decodes at the DCT scale (1/8, 2/8, 4/8 or full) that leaves enough pixels on both sides, and
resizes from there; the exact path decodes in full. `squared_error` measures the difference between the two.

Orientation (EXIF's, XMP's, TIFF's) is ignored, as torchvision's, timm's and ffcv's ImageNet pipelines ignore it: labels
and published accuracies come from images that were not turned.

libjpeg-turbo's strict mode, in which every warning is an error, tells which JPEGs all readers decode to the same
pixels. Only those are stored as they are, and shards are read in that mode. Other JPEGs are decoded as Pillow does it.
"""

from __future__ import annotations

import deflate
import numpy as np
import PIL
import simplejpeg

from mlpdata.image import jpeg
from mlpdata.image.limits import MAX_DECODE_BYTES, MAX_PIXELS, ImageError, check_scans, check_size
from mlpdata.image.pillow import (
    declared_size,
    decode_with_pillow,
    is_jpeg,
    open_with_pillow,
    pillow_settings,
    reason_of,
)
from mlpdata.image.resize import Resize, resized

# Memory of a pixel that is decoded and resized: as uint8, and as float32.
JPEG_BYTES, SCALED_JPEG_BYTES = 8, 16
COEFFICIENT_BYTES = 2
MEASURED_PIXELS = 1 << 24  # a larger image is not decoded a second time to measure a scaled decode against
# libjpeg-turbo decodes to any k/8, but only these have SIMD code: 3/8 takes longer than 4/8.
SCALES = (1, 2, 4)
# A scaled decode keeps at least this many source pixels for each target pixel, on both sides.
OVERSAMPLE = 2.0
# Box does with fewer, as an area mean. Against exact decode and Pillow's box, on 400 ImageNet photographs at 64 px:
# 38.4 dB at 2.0, 36.7 at 1.5, 35.5 at 1.45, 35.3 at 1.4, 33.1 at 1.3; the first four take 1375, 1329, 1276 and 1272 us
# an image. (With Pillow's Hamming in its place 35.4 dB and 1356 us at 1.45.) 1.45 lets a photograph of 500 x 375, the
# commonest size, be decoded at 2/8.
BOX_OVERSAMPLE = 1.45
# A larger JPEG is not stored as it is: twice its pixels and the tables. Quality 100 without subsampling takes less.
KEPT_BYTES, KEPT_HEADER_BYTES = 6, 16 << 10
FULL_CHROMA = 95  # quality of JPEGs from which on chroma is stored at full resolution


def library_versions() -> dict[str, str]:
    """The libraries that make the pixels, for the manifest: equal versions give equal bytes."""
    # pillow-simd and Pillow overwrite each other's files, so only the loaded module tells which one it is.
    pillow = "pillow-simd" if ".post" in PIL.__version__ else "pillow"
    return {
        "jpeg": f"simplejpeg {simplejpeg.__version__}",
        "resize": f"{pillow} {PIL.__version__}",
        "png": f"deflate {deflate.__version__}",
    }


# --------------------------------------------------------------------------------------------------------- decode


def probe(data: bytes) -> tuple[int, int, bool]:
    """(width, height, whether it is a JPEG that libjpeg decodes to RGB) of an image, from its header.

    Decodes nothing. Raises ImageError, also for an image of more pixels than any that is decoded.
    """
    if data[:3] == jpeg.MAGIC and (header := jpeg.header_of(data)):
        width, height, is_rgb_jpeg = header.width, header.height, not header.is_cmyk
    else:
        with pillow_settings:
            image = open_with_pillow(data)
            width, height = declared_size(image)
            is_rgb_jpeg = is_jpeg(image) and image.mode != "CMYK"
    check_size(width, height, MAX_PIXELS)
    return width, height, is_rgb_jpeg


def decode(
    data: bytes, resize: Resize, strict: bool = False, warned: list[str] | None = None, exact: bool = False
) -> tuple[np.ndarray, tuple[int, int]]:
    """Decode an image of any format to RGB at its stored size.

    strict: a JPEG that libjpeg warns about is damaged, as in shards that were written here.
    warned: a list to which libjpeg's warning is added, if Pillow decodes the image nonetheless.
    exact: JPEGs are decoded in full, not at the scale that leaves enough pixels; only of those for which that takes too
    much memory (more than 67 megapixels) a scaled decode is taken nonetheless.
    Returns (uint8 (H, W, 3), (source width, source height)). Raises ImageError with the reason.

    >>> from mlpdata.image.png import encode_png
    >>> pixels, source_size = decode(encode_png(np.full((48, 64, 3), 7, np.uint8)), Resize(16))
    >>> pixels.shape, source_size
    ((16, 16, 3), (64, 48))
    """
    warning = None
    try:
        if data[:3] == jpeg.MAGIC:
            try:
                if decoded := _decode_jpeg(data, resize, exact):
                    return decoded
            except ValueError as e:
                warning = reason_of(e)
                if strict:
                    raise ImageError(f"cannot decode: {warning}") from None
        image = decode_with_pillow(data)
        if warning and warned is not None:
            warned.append(warning)
        box, size = resize.box_and_size(*image.size)
        return np.array(image if image.size == size else resize.pillow(image, size, box)), image.size
    except MemoryError:
        raise ImageError("cannot decode: there is not enough memory") from None


def _decode_jpeg(data: bytes, resize: Resize, exact: bool) -> tuple[np.ndarray, tuple[int, int]] | None:
    """As `decode`; None for CMYK and unusual sampling, which are no damage, but TurboJPEG does not decode them to RGB.

    Raises ValueError where libjpeg warns, ImageError where decoding would cost too much.
    """
    header = jpeg.header_of(data)
    if header is None:
        raise ValueError("its header is damaged")
    width, height = header.width, header.height
    if not (header.is_plain and header.is_clean):
        if header.is_cmyk:
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
    in_full = exact and JPEG_BYTES * width * height <= MAX_DECODE_BYTES
    min_width, min_height = (0, 0) if in_full else _smallest_decode(resize, width, height)
    needed = SCALED_JPEG_BYTES * min_width * min_height if min_width else JPEG_BYTES * width * height
    if header.is_buffered(data):
        check_scans(data, width, height)
        needed += COEFFICIENT_BYTES * header.coefficients_per_pixel() * width * height
    if needed > MAX_DECODE_BYTES:
        raise ImageError(f"declares {width} x {height} pixels, whose decoding takes {int(needed) >> 20} MiB of memory")
    pixels = simplejpeg.decode_jpeg(data, "RGB", min_width=min_width, min_height=min_height)
    return resized(pixels, resize, width, height), (width, height)


def _smallest_decode(resize: Resize, width: int, height: int) -> tuple[int, int]:
    """The smallest (width, height) that a scaled decode may give; (0, 0) if the image is to be decoded in full.

    >>> _smallest_decode(Resize(64), 500, 375), _smallest_decode(Resize(64, filter="lanczos"), 500, 375)
    ((125, 94), (250, 188))
    """
    (left, top, right, bottom), (w, h) = resize.box_and_size(width, height)
    if (w, h) != (width, height):
        oversample = BOX_OVERSAMPLE if resize.filter == "box" else OVERSAMPLE
        share = oversample * max(w / (right - left), h / (bottom - top))  # of the image's width and height
        for scale in SCALES:
            if 8 * share <= scale:
                return -(-width * scale // 8), -(-height * scale // 8)
    return 0, 0


def decode_kept(data: bytes, out: np.ndarray) -> None:
    """Decode a JPEG of a shard into (H, W, 3) uint8, C-contiguous. Raises ImageError, also where libjpeg only warns."""
    try:
        shape = simplejpeg.decode_jpeg(data, "RGB", buffer=out).shape
    except ValueError as e:
        try:  # where the buffer is too small, the error's text has no sizes
            shape = simplejpeg.decode_jpeg_header(data)[:2]
        except ValueError:
            shape = out.shape
        if shape[:2] == out.shape[:2]:
            raise ImageError(f"cannot decode: {reason_of(e)}") from None
    if shape[:2] != out.shape[:2]:  # two readers may read different sizes from one header
        raise ImageError(f"decodes to {shape[1]} x {shape[0]}, its header says {out.shape[1]} x {out.shape[0]}")


def decode_exact(data: bytes, size: tuple[int, int] | None = None) -> np.ndarray:
    """Decode an image of any format in full to uint8 (H, W, 3) RGB. Raises ImageError.

    size: (width, height) that the image must have; if it has another one, nothing is decoded.
    """
    return np.array(decode_with_pillow(data, size))


def squared_error(data: bytes, pixels: np.ndarray, resize: Resize) -> tuple[float, int]:
    """(sum of squared differences, largest difference) of stored pixels against exact decode and the same filter."""
    exact = decode_exact(data)
    exact = resized(exact, resize, exact.shape[1], exact.shape[0])
    diff = exact.astype(np.int32) - pixels
    return float((diff * diff).sum()), int(np.abs(diff).max(initial=0))


# --------------------------------------------------------------------------------------------------------- encode


def encode_jpeg(pixels: np.ndarray, quality: int) -> bytes:
    """uint8 (H, W, 3) RGB to a baseline JPEG, 4:2:0 below quality FULL_CHROMA and 4:4:4 from there on."""
    subsampling = "444" if quality >= FULL_CHROMA else "420"
    return simplejpeg.encode_jpeg(np.ascontiguousarray(pixels), quality=quality, colorsubsampling=subsampling)


def kept_jpeg(data: bytes, resize: Resize) -> tuple[bytes, tuple[int, int]] | None:
    """A JPEG that is stored as it is: (its bytes for a shard, (width, height)). None if it has to be encoded anew.

    That is an image of another size or format, and a JPEG that is not plain, as `jpeg.picture` tells, which also cuts
    out what is no picture. The compressed image is neither changed nor decoded: `decode_kept` has to take it, too.
    """
    if data[:3] != jpeg.MAGIC:
        return None
    header = jpeg.header_of(data)
    if header is None or not resize.keeps(header.width, header.height):
        return None
    picture = jpeg.picture(data, header)
    if picture is None or len(picture) > KEPT_BYTES * header.width * header.height + KEPT_HEADER_BYTES:
        return None
    return picture, (header.width, header.height)
