"""Decoding many JPEGs in one call, without the GIL: threads then decode on as many cores as there are.

This needs numba (the extra `turbo`) and the system's libturbojpeg. If one of them is missing, or gives other pixels
than simplejpeg does, `batch_decoder` says so, and the reader decodes with simplejpeg, image by image.
"""

from __future__ import annotations

import ctypes
import ctypes.util
import functools
from collections.abc import Callable

import numpy as np
import simplejpeg

from mlpdata.errors import first_line

FUNCTIONS = ("tjInitDecompress", "tjDestroy", "tjDecompress2")  # of TurboJPEG's API since 1.2; 3.x has them too
RGB = 0  # TJPF_RGB, turbojpeg.h
SUBSAMPLINGS = ("444", "422", "420", "440", "411")

# (data uint8 (bytes,), starts int64 (n,), sizes int64 (n,), out uint8 (n, H, W, 3)) -> numbers of the images that it
# did not decode, int64: damaged ones, other sizes, anything that is not baseline. All arrays are C-contiguous.
BatchDecoder = Callable[[np.ndarray, np.ndarray, np.ndarray, np.ndarray], np.ndarray]


@functools.cache
def batch_decoder() -> tuple[BatchDecoder | None, str]:
    """(decoder, what it is), or (None, why there is none). Takes half a second the first time in a process."""
    try:
        import llvmlite.binding
        import numba
    except ImportError as e:
        return None, f"numba is not installed, or not for this NumPy ({e}): pip install 'mlpdata[turbo]'"
    name = ctypes.util.find_library("turbojpeg")
    if name is None:
        return None, "the system has no libturbojpeg (Debian, Ubuntu: apt install libturbojpeg0; conda: libjpeg-turbo)"
    try:
        decode = _compile(numba, llvmlite.binding, ctypes.CDLL(name))
        agrees = _agrees(decode)
    except Exception as e:  # an optional library that does not work is no reason to stop: simplejpeg works
        return None, f"{name} and numba {numba.__version__} do not work: {type(e).__name__}: {first_line(e)}"
    if not agrees:
        return None, f"{name} decodes to other pixels than simplejpeg"
    return decode, f"{name}, called by numba {numba.__version__}"


def _compile(numba, llvm, library: ctypes.CDLL) -> BatchDecoder:
    types = numba.types
    # numba's code refers to the functions by name. Their addresses are given here, so that the library's symbols are
    # not made global.
    for name in FUNCTIONS:
        llvm.add_symbol(name, ctypes.cast(getattr(library, name), ctypes.c_void_p).value)
    pointer, c_int = types.intp, types.intc
    create = types.ExternalFunction("tjInitDecompress", pointer())
    destroy = types.ExternalFunction("tjDestroy", c_int(pointer))
    decompress = types.ExternalFunction(
        "tjDecompress2", c_int(pointer, pointer, types.ulong, pointer, c_int, c_int, c_int, c_int, c_int)
    )

    @numba.njit
    def is_usual(data, at, end, height, width):
        # Reads the first frame header (ITU-T T.81, B.2.2). Only baseline images: libjpeg smooths progressive ones that
        # lack coefficients, and every version does so differently. Only this size: others would be scaled to fit.
        at += 2
        while at + 9 <= end and data[at] == 0xFF:
            marker = data[at + 1]
            if marker == 0xFF:  # fill byte
                at += 1
            elif marker == 0xDA or marker < 0xC0 or 0xD0 <= marker <= 0xD9:
                return False
            elif marker < 0xD0 and marker != 0xC4 and marker != 0xC8 and marker != 0xCC:
                size = (data[at + 5] << 8 | data[at + 6], data[at + 7] << 8 | data[at + 8])
                return marker == 0xC0 and size == (height, width)
            else:
                at += 2 + (data[at + 2] << 8 | data[at + 3])
        return False

    bytes_type, int64s = types.CPointer(types.uint8), types.CPointer(types.int64)
    signature = types.int64(bytes_type, int64s, int64s, types.intp, bytes_type, types.int64, types.int64, types.int64)

    @numba.cfunc(signature, nopython=True, cache=True)
    def decode_all(data, starts, sizes, out, failed, n, height, width):
        address = numba.carray(data, 1).ctypes.data
        for k in range(n):
            start, size, to = starts[k], sizes[k], out + k * height * width * 3
            if not is_usual(data, start, start + size, height, width):
                failed[k] = 1
                continue
            handle = (
                create()
            )  # one for each image: a JPEG without tables would be decoded with those of the image before
            if decompress(handle, address + start, size, to, width, 0, height, RGB, 0) != 0:
                failed[k] = 1
            destroy(handle)
        return 0

    # Called through ctypes, which releases the GIL. numba's own wrapper fails if several threads make the first call.
    call = ctypes.CFUNCTYPE(ctypes.c_int64, *[ctypes.c_void_p] * 5, *[ctypes.c_int64] * 3)(decode_all.address)

    def decode(data: np.ndarray, starts: np.ndarray, sizes: np.ndarray, out: np.ndarray) -> np.ndarray:
        n, height, width, _ = out.shape
        failed = np.zeros(n, np.uint8)
        arrays = (data, starts, sizes, out, failed)
        if not all(a.flags.c_contiguous for a in arrays):
            raise ValueError("arrays must be C-contiguous")
        call(*(a.ctypes.data for a in arrays), n, height, width)
        return np.flatnonzero(failed)

    decode.code = decode_all  # keeps the machine code alive
    return decode


def _agrees(decode: BatchDecoder) -> bool:
    """Whether it gives simplejpeg's pixels, for every subsampling and for grey, and refuses a cut JPEG."""
    image = np.random.default_rng(0).integers(0, 256, (35, 45, 3), np.uint8)
    jpegs = [simplejpeg.encode_jpeg(image, 90, colorsubsampling=s) for s in SUBSAMPLINGS]
    jpegs.append(simplejpeg.encode_jpeg(image[:, :, :1].copy(), 90, "GRAY", "Gray"))
    expected = np.stack([simplejpeg.decode_jpeg(jpeg, "RGB") for jpeg in jpegs])
    jpegs.append(jpegs[0][:-200])
    sizes = np.array([len(jpeg) for jpeg in jpegs])
    out = np.zeros((len(jpegs), *image.shape), np.uint8)
    failed = decode(np.frombuffer(b"".join(jpegs), np.uint8), sizes.cumsum() - sizes, sizes, out)
    return failed.tolist() == [len(expected)] and np.array_equal(out[:-1], expected)
