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
def components(data, position, end, height, width, as_planes):
    """How many components a JPEG has: 1 or 3, 0 for one that is not decoded here.

    That is any but a baseline image of this size and, for `as_planes`, with Y alone or Y, Cb and Cr in 4:2:0. Reads the
    segments before the pixels (ITU-T T.81, B.2). libjpeg smooths progressive images that lack coefficients, and every
    version does so differently. It would scale images of another size to fit.
    """
    position += 2
    found = 0
    while position + 10 <= end and data[position] == 0xFF:
        marker = data[position + 1]
        if marker == 0xFF:  # fill byte
            position += 1
            continue
        if marker == 0xDA:
            return found
        if marker < 0xC0 or 0xD0 <= marker <= 0xD9:
            return 0
        if marker == 0xEE and as_planes:  # Adobe's segment, which may say that the planes are others
            return 0
        if marker < 0xD0 and marker != 0xC4 and marker != 0xC8 and marker != 0xCC:
            size = (data[position + 5] << 8 | data[position + 6], data[position + 7] << 8 | data[position + 8])
            if marker != 0xC0 or size != (height, width) or found:
                return 0
            if not as_planes:
                return 1
            found, first = data[position + 9], position + 10  # of each component: its id, sampling factors, table
            if first + 3 * found > end:
                return 0
            is_grey = found == 1 and data[first + 1] == 0x11
            is_420 = found == 3 and data[first + 1] == 0x22 and data[first + 4] == 0x11 and data[first + 7] == 0x11
            is_named_rgb = found == 3 and data[first] == 82 and data[first + 3] == 71 and data[first + 6] == 66
            if is_named_rgb or not (is_grey or is_420):
                return 0
        position += 2 + (data[position + 2] << 8 | data[position + 3])
    return 0


def decode_rgb(data, starts, sizes, failed, n, height, width, images):
    """images: (n, height, width, 3). Sets failed[k] for every image that it does not decode."""
    address = carray(data, 1).ctypes.data
    for k in range(n):
        start, size = starts[k], sizes[k]
        if not components(data, start, start + size, height, width, False):
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
        num_components = components(data, start, start + size, height, width, True)
        if not is_even or not num_components:
            failed[k] = 1
            continue
        if num_components == 1:  # libturbojpeg writes luma alone
            cb_cr[:] = 128
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
