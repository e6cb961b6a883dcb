"""Machine code that decodes many JPEGs in one call, compiled by numba once and then loaded from numba's cache.

These functions stand at the level of a module because numba's cache recognises a function by its code and by the values
that it closes over: a function inside another one would be compiled anew in every process.
"""

from __future__ import annotations

import numba
import numpy as np
from numba import carray, types  # pyright: ignore[reportPrivateImportUsage] # numba lists its names at run time

POINTER, INT, INT64 = types.intp, types.intc, types.int64
BYTES, INT64S = types.CPointer(types.uint8), types.CPointer(types.int64)
RGB = 0  # TJPF_RGB, turbojpeg.h

create = types.ExternalFunction("tjInitDecompress", POINTER())
destroy = types.ExternalFunction("tjDestroy", INT(POINTER))
# handle, JPEG, its bytes, pixels, width, bytes a row (0: as they come), height, format of the pixels, flags
to_rgb = types.ExternalFunction("tjDecompress2", INT(POINTER, POINTER, types.ulong, POINTER, INT, INT, INT, INT, INT))
# handle, JPEG, its bytes, pointers to the planes, width, bytes a row of each plane (0: as they come), height, flags
to_planes = types.ExternalFunction(
    "tjDecompressToYUVPlanes", INT(POINTER, POINTER, types.ulong, POINTER, INT, POINTER, INT, INT)
)


@numba.njit
def is_usual(data, position, end, height, width, as_planes):
    """Whether a JPEG is a baseline image of this size and, for `as_planes`, has Y, Cb and Cr in 4:2:0.

    Reads the segments before the pixels (ITU-T T.81, B.2). libjpeg smooths progressive images that lack coefficients,
    and every version does so differently. It would scale images of another size to fit.
    """
    position += 2
    is_fitting = False
    while position + 9 <= end and data[position] == 0xFF:
        marker = data[position + 1]
        if marker == 0xFF:  # fill byte
            position += 1
            continue
        if marker == 0xDA:
            return is_fitting
        if marker < 0xC0 or 0xD0 <= marker <= 0xD9:
            return False
        if marker == 0xEE and as_planes:  # Adobe's segment, which may say that the planes are others
            return False
        if marker < 0xD0 and marker != 0xC4 and marker != 0xC8 and marker != 0xCC:
            size = (data[position + 5] << 8 | data[position + 6], data[position + 7] << 8 | data[position + 8])
            is_fitting = marker == 0xC0 and size == (height, width) and not is_fitting
            if not is_fitting or not as_planes:
                return is_fitting
            if position + 19 > end or data[position + 9] != 3:
                return False
            first = position + 10  # of three components: its id, its sampling factors, its table
            if data[first + 1] != 0x22 or data[first + 4] != 0x11 or data[first + 7] != 0x11:
                return False
            if data[first] == 82 and data[first + 3] == 71 and data[first + 6] == 66:  # R, G, B
                return False
        position += 2 + (data[position + 2] << 8 | data[position + 3])
    return False


def decode_rgb(data, starts, sizes, failed, n, height, width, images):
    """images: (n, height, width, 3). Sets failed[k] for every image that it does not decode."""
    address = carray(data, 1).ctypes.data
    for k in range(n):
        start, size = starts[k], sizes[k]
        if not is_usual(data, start, start + size, height, width, False):
            failed[k] = 1
            continue
        handle = create()  # a new one each time: an old one would decode a JPEG without tables with its last tables
        if to_rgb(handle, address + start, size, images + k * height * width * 3, width, 0, height, RGB, 0) != 0:
            failed[k] = 1
        destroy(handle)
    return 0


def decode_planes(data, starts, sizes, failed, n, height, width, luma, chroma):
    """luma: (n, height, width, 1). chroma: (n, height / 2, width / 2, 2). See decode_rgb."""
    address, half = carray(data, 1).ctypes.data, height // 2 * (width // 2)
    cb_cr = np.empty(2 * half, np.uint8)
    planes = np.empty(3, np.intp)  # their addresses
    planes[1], planes[2] = cb_cr.ctypes.data, cb_cr.ctypes.data + half
    is_even = height % 2 == 0 and width % 2 == 0  # libturbojpeg rounds luma up to whole samples of chroma
    for k in range(n):
        start, size = starts[k], sizes[k]
        if not is_even or not is_usual(data, start, start + size, height, width, True):
            failed[k] = 1
            continue
        planes[0] = luma + k * height * width
        handle = create()
        if to_planes(handle, address + start, size, planes.ctypes.data, width, 0, height, 0) != 0:
            failed[k] = 1
        destroy(handle)
        to = 2 * k * half
        for i in range(half):
            chroma[to + 2 * i] = cb_cr[i]
            chroma[to + 2 * i + 1] = cb_cr[half + i]
    return 0


def compile_kernels():
    """(decode_rgb, decode_planes) as numba's C functions. libturbojpeg's functions have to be known to LLVM by name."""
    arguments = (BYTES, INT64S, INT64S, BYTES, INT64, INT64, INT64, POINTER)
    return (
        numba.cfunc(INT64(*arguments), cache=True)(decode_rgb),
        numba.cfunc(INT64(*arguments, BYTES), cache=True)(decode_planes),
    )
