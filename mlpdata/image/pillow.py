"""Images of any format, decoded in full by Pillow."""

from __future__ import annotations

import io
import os
import re
import threading
import warnings
from typing import Any

import numpy as np
import PIL
from PIL import Image, ImageFile

from mlpdata.errors import first_line
from mlpdata.image.formats import format_of, what_it_is
from mlpdata.image.limits import MAX_DECODE_BYTES, ImageError, check_scans, check_size
from mlpdata.image.png import check_png

# Memory that decoding takes, bytes a pixel, measured on 25 million pixels: most formats, and those that take more.
PIXEL_BYTES, MORE_PIXEL_BYTES = 8, {"WEBP": 16, "AVIF": 16}
# Tags of TIFF 6.0.
WIDTH, HEIGHT, BITS, PHOTOMETRIC, TILE_WIDTH, TILE_HEIGHT = 256, 257, 258, 262, 322, 323
ORIENTATION = 274  # here and in EXIF
UNTURN = {  # the inverses of the orientations 2 to 8
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_90,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_270,
}


def decode_with_pillow(data: bytes, size: tuple[int, int] | None = None) -> Image.Image:
    """The first picture of an image of any format, in mode RGB. Raises ImageError.

    size: (width, height) that the image must have; if it has another one, nothing is decoded.
    """
    with pillow_settings:
        image = open_with_pillow(data)
        width, height = declared_size(image)
        if size is not None and size != (width, height):
            raise ImageError(f"is {width} x {height}, not {size[0]} x {size[1]} pixels")
        max_pixels = MAX_DECODE_BYTES // MORE_PIXEL_BYTES.get(image.format, PIXEL_BYTES)
        check_size(width, height, max_pixels)
        if image.format == "PNG":
            check_png(data)
        if image.format == "TIFF":  # it is decoded a tile at a time, and a tile may be larger than the image
            check_size(image.tag_v2.get(TILE_WIDTH, 1), image.tag_v2.get(TILE_HEIGHT, 1), max_pixels)
        if is_jpeg(image):
            check_scans(data, width, height)
        return to_rgb(image)


def open_with_pillow(data: bytes) -> Any:
    """An image of which Pillow has read the header. To be called within `pillow_settings`. Raises ImageError."""
    kind = format_of(data)
    if kind is None:
        raise ImageError(f"not an image: it is {what_it_is(data)}")
    if kind not in Image.OPEN:
        Image.init()
        if kind not in Image.OPEN:
            raise ImageError(f"cannot decode: this Pillow ({PIL.__version__}) reads no {kind}")
    return Image.open(io.BytesIO(data), formats=(kind,))


def declared_size(image: Any) -> tuple[int, int]:
    """(width, height) as stored: Pillow's TIFF plugin swaps them by the orientation."""
    return (image.tag_v2[WIDTH], image.tag_v2[HEIGHT]) if image.format == "TIFF" else image.size


def is_jpeg(image: Any) -> bool:
    return image.format in ("JPEG", "MPO")  # MPO: several JPEGs in one file


def to_rgb(image: Any) -> Image.Image:
    """Any Pillow image in mode RGB, loaded: palettes are looked up, alpha is dropped, 16 bits keep their upper 8.

    Raises ValueError for numbers whose range is not known: floating point, and integers of 32 bits.
    """
    is_tiff = image.format == "TIFF"
    # Pillow's TIFF plugin turns images by their orientation; that is undone here.
    turn_back = UNTURN.get(image.getexif().get(ORIENTATION)) if is_tiff else None
    bits, white_is_zero = (image.tag_v2.get(BITS, (16,))[0], image.tag_v2.get(PHOTOMETRIC) == 0) if is_tiff else (16, 0)
    image.load()
    if turn_back is not None:
        image = image.transpose(turn_back)
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


class _PillowSettings:
    """Pillow's settings belong to the process. While any thread decodes here they are ours, and afterwards the user's.

    Whatever Pillow raises inside comes out as an ImageError: its plugins raise nearly anything on damaged input.
    """

    def __init__(self):
        self._lock, self._users = threading.Lock(), 0
        self._user_settings: Any = None

    def __enter__(self) -> None:
        with self._lock:
            if not self._users:
                user_warnings = warnings.catch_warnings()
                user_warnings.__enter__()
                warnings.filterwarnings("ignore", module=r"PIL\b")
                self._user_settings = user_warnings, ImageFile.LOAD_TRUNCATED_IMAGES, Image.MAX_IMAGE_PIXELS
                # A truncated image is damaged; and how large an image may be is decided here.
                ImageFile.LOAD_TRUNCATED_IMAGES, Image.MAX_IMAGE_PIXELS = False, None
            self._users += 1

    def __exit__(self, kind, error, traceback) -> None:
        with self._lock:
            self._users -= 1
            if not self._users:
                user_warnings, ImageFile.LOAD_TRUNCATED_IMAGES, Image.MAX_IMAGE_PIXELS = self._user_settings
                user_warnings.__exit__(None, None, None)
        if isinstance(error, Exception) and not isinstance(error, ImageError):
            raise ImageError(f"cannot decode: {reason_of(error)}") from None


pillow_settings = _PillowSettings()
os.register_at_fork(after_in_child=pillow_settings.__init__)  # another thread may hold the lock at a fork


def reason_of(error: Exception) -> str:
    """One line that is the same in every run."""
    if isinstance(error, PIL.UnidentifiedImageError):  # its text names an object in memory
        return "it is damaged at its beginning, or of a kind that Pillow does not know"
    return re.sub(r" at 0x[0-9a-f]+", "", first_line(error))
