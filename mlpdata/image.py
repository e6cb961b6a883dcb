"""Image bytes to pixels and back: decode, resize, encode. Arrays in, arrays out.

The fast path for JPEG decodes at the DCT scale (1/8, 2/8, 4/8 or full) that leaves enough of the image on both sides
and resizes from there; the exact path decodes in full. `squared_error` measures the difference between the two.

EXIF orientation is ignored, as torchvision's, timm's and ffcv's ImageNet pipelines ignore it: labels and published
accuracies come from images that were not turned.
"""

from __future__ import annotations

import functools
import io
import struct
import warnings
import zlib
from dataclasses import dataclass

import deflate
import numpy as np
import PIL
import simplejpeg
from PIL import Image

MAX_IMAGE_BYTES = 256 << 20  # an encoded image of more is not read
MAX_PIXELS = 1 << 28  # a declared size beyond this is taken for an attack or damage (ImageNet's largest is 1.2e8 or so)
RESIZES = ("squash", "crop", "longest")
FILTERS = {
    "box": Image.Resampling.BOX,
    "bilinear": Image.Resampling.BILINEAR,
    "bicubic": Image.Resampling.BICUBIC,
    "lanczos": Image.Resampling.LANCZOS,
}
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
JPEG_MAGIC, JPEG_END = b"\xff\xd8\xff", b"\xff\xd9"


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


# --------------------------------------------------------------------------------------------------------- decode


def decode(data: bytes, resize: Resize) -> tuple[np.ndarray, tuple[int, int]]:
    """Decode any image to RGB at its stored size.

    Returns (uint8 (H, W, 3), (source width, source height)). Raises ImageError with the reason.
    """
    if data[:3] == JPEG_MAGIC:
        try:
            height, width, colorspace, _ = simplejpeg.decode_jpeg_header(data)
            check_size(width, height)
            if colorspace not in ("CMYK", "YCCK"):
                min_width, min_height = _decode_floor(resize, width, height)
                pixels = simplejpeg.decode_jpeg(data, "RGB", min_width=min_width, min_height=min_height)
                return resized(pixels, resize, width, height), (width, height)
        except ValueError:
            pass  # libjpeg-turbo's strict mode also refuses harmless oddities; Pillow has the last word
    pixels = decode_exact(data)
    height, width = pixels.shape[:2]
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
    """Decode what `kept_jpeg` gave into (H, W, 3) uint8, C-contiguous. Raises ImageError."""
    try:
        shape = simplejpeg.decode_jpeg(data, "RGB", buffer=out).shape
    except ValueError:
        pixels = decode_exact(data)
        shape = pixels.shape
        if shape == out.shape:
            out[:] = pixels
    if shape != out.shape:  # a header that says one thing to one reader and another to the next
        raise ImageError(f"decodes to {shape[1]} x {shape[0]}, its header says {out.shape[1]} x {out.shape[0]}")


def decode_exact(data: bytes) -> np.ndarray:
    """Decode in full to uint8 (H, W, 3) RGB, whatever the format: JPEG, PNG, WebP, ... Raises ImageError."""
    if not data:
        raise ImageError("empty file")
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            image = Image.open(io.BytesIO(data))
            check_size(*image.size)
            return to_rgb(image)
    except ImageError:
        raise
    except PIL.UnidentifiedImageError:  # its own text names an object in memory, another one in every run
        raise ImageError("cannot decode: not an image of a format that Pillow knows") from None
    except Image.DecompressionBombError as e:
        raise ImageError(str(e)) from None
    except Exception as e:  # Pillow's plugins raise nearly anything on damaged input; the reason goes on record
        raise ImageError(f"cannot decode: {str(e).splitlines()[0] if str(e) else type(e).__name__}") from None


def check_size(width: int, height: int) -> None:
    if width * height > MAX_PIXELS or width < 1 or height < 1:
        raise ImageError(f"declares {width} x {height} pixels; at most {MAX_PIXELS} are read")


def to_rgb(image: Image.Image) -> np.ndarray:
    """Any Pillow image as uint8 (H, W, 3): palettes are looked up, alpha is dropped, 16 bits keep their upper 8."""
    if image.mode.startswith("I;16"):
        grey = (np.asarray(image).astype(np.uint32) >> 8).astype(np.uint8)
        return np.repeat(grey[:, :, None], 3, axis=2)
    if image.mode == "I":  # 16-bit PNGs open as 32-bit integers in older Pillows
        grey = (np.asarray(image).clip(0, 65535) >> 8).astype(np.uint8)
        return np.repeat(grey[:, :, None], 3, axis=2)
    if image.mode == "P" and "transparency" in image.info:
        image = image.convert("RGBA")
    return np.array(image.convert("RGB"))


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

    That is another size, another format, a header libjpeg-turbo does not take, and CMYK, where readers would not see
    the pixels we decode. EXIF blocks are cut out: Hugging Face datasets turns images by the orientation tag and
    everyone else does not. The compressed image itself is never touched, nor looked at: it may be damaged.
    """
    if data[:3] != JPEG_MAGIC:
        return None
    try:
        height, width, colorspace, _ = simplejpeg.decode_jpeg_header(data)
    except ValueError:
        return None
    if colorspace in ("CMYK", "YCCK") or not resize.keeps(width, height):
        return None
    return (bytes(data) if data.find(b"Exif\0\0") < 0 else _without_exif(data)), (width, height)


def _without_exif(data: bytes) -> bytes:
    out, at = [data[:2]], 2
    while at + 4 <= len(data) and data[at] == 0xFF and data[at + 1] != 0xDA:
        if data[at + 1] == 0xFF:  # fill byte
            at += 1
            continue
        end = at + 2 + int.from_bytes(data[at + 2 : at + 4], "big")
        if not (data[at + 1] == 0xE1 and data[at + 4 : at + 10] == b"Exif\0\0"):
            out.append(data[at:end])
        at = end
    out.append(data[at:])
    return b"".join(out)
