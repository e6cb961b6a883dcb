"""Decoding many JPEGs in one call, without the GIL: threads then decode on as many cores as there are.

This needs numba (the extra `turbo`) and the system's libturbojpeg. If one of them is missing, or gives other pixels
than simplejpeg does, `batch_decoder` says so, and the reader decodes with simplejpeg, image by image.
No wheel has such a call (simplejpeg, PyTurboJPEG, torchvision and imagecodecs decode one image a call).
"""

from __future__ import annotations

import ctypes
import ctypes.util
import functools
from typing import Protocol, cast

import numpy as np
import simplejpeg

from mlpdata.errors import first_line
from mlpdata.system.optional import OPTIONAL

FUNCTIONS = ("tjInitDecompress", "tjDestroy", "tjDecompress2", "tjDecompressToYUVPlanes")  # of every version since 1.4
SUBSAMPLINGS = ("444", "422", "420", "440", "411")


class BatchDecoder(Protocol):
    """Decodes n JPEGs of one size in one call."""

    def __call__(self, data: np.ndarray, starts: np.ndarray, sizes: np.ndarray, *planes: np.ndarray) -> np.ndarray:
        """Decode data[starts[k] : starts[k] + sizes[k]] for every k to planes[...][k].

        data:   uint8 (bytes,). starts, sizes: int64 (n,).
        planes: uint8, either RGB (n, H, W, 3), or luma (n, H, W, 1) and chroma (n, H / 2, W / 2, 2) as coded.
        All arrays are C-contiguous. Returns the numbers k, int64, of the images that it did not decode: damaged ones,
        other sizes, anything that is not baseline; for luma and chroma also anything but grey, and Y, Cb, Cr in 4:2:0.
        """
        ...


@functools.cache
def batch_decoder() -> tuple[BatchDecoder | None, str]:
    """(decoder, what it is), or (None, why there is none). The first call in a process takes half a second."""
    try:
        import llvmlite.binding
        import numba
    except ImportError as e:
        return None, f"numba is not installed, or not for this NumPy ({e}): {OPTIONAL['numba'].install}"
    name = ctypes.util.find_library("turbojpeg")
    if name is None:
        return None, "the system has no libturbojpeg (Debian, Ubuntu: apt install libturbojpeg0; conda: libjpeg-turbo)"
    try:
        library = ctypes.CDLL(name)
        for function in FUNCTIONS:  # the addresses are given by name, so that the library's symbols stay local
            address = ctypes.cast(getattr(library, function), ctypes.c_void_p).value
            llvmlite.binding.add_symbol(function, address)
        decode = _decoder()
        agrees = _agrees(decode)
    except Exception as e:  # an optional library that does not work is no reason to stop: simplejpeg works
        return None, f"{name} and numba {numba.__version__} do not work: {type(e).__name__}: {first_line(e)}"
    if not agrees:
        return None, f"{name} decodes to other pixels than simplejpeg"
    return decode, f"{name}, called by numba {numba.__version__}"


def _decoder() -> BatchDecoder:
    from mlpdata.loader import jpeg_kernels

    # Called through ctypes, which releases the GIL. numba's own wrapper fails if several threads make the first call.
    common = [*[ctypes.c_void_p] * 4, *[ctypes.c_int64] * 3]  # data, starts, sizes, failed; n, height, width
    machine_code = jpeg_kernels.compile_kernels()
    kernels = {
        num_planes: ctypes.CFUNCTYPE(ctypes.c_int64, *common, *[ctypes.c_void_p] * num_planes)(cast(int, code.address))
        for num_planes, code in enumerate(machine_code, 1)
    }

    def decode(data: np.ndarray, starts: np.ndarray, sizes: np.ndarray, *planes: np.ndarray) -> np.ndarray:
        n, height, width, _ = planes[0].shape
        failed = np.zeros(n, np.uint8)
        if not all(a.flags.c_contiguous for a in (data, starts, sizes, *planes)):
            raise ValueError("arrays must be C-contiguous")
        addresses = [a.ctypes.data for a in (data, starts, sizes, failed)]
        kernels[len(planes)](*addresses, n, height, width, *(a.ctypes.data for a in planes))
        return np.flatnonzero(failed)

    decode.machine_code = machine_code  # kept alive with the decoder
    return decode


def _agrees(decode: BatchDecoder) -> bool:
    """Whether pixels and luma are simplejpeg's, for every subsampling and for grey, and a cut JPEG is refused."""
    image = np.random.default_rng(0).integers(0, 256, (36, 46, 3), np.uint8)
    jpegs = [simplejpeg.encode_jpeg(image, 90, colorsubsampling=s) for s in SUBSAMPLINGS]
    jpegs.append(simplejpeg.encode_jpeg(image[:, :, :1].copy(), 90, "GRAY", "Gray"))
    expected = np.stack([simplejpeg.decode_jpeg(jpeg, "RGB") for jpeg in jpegs])
    expected_luma = simplejpeg.decode_jpeg(jpegs[2], "Gray")
    jpegs.append(jpegs[0][:-200])
    n, height, width = len(jpegs), *image.shape[:2]
    sizes = np.array([len(jpeg) for jpeg in jpegs])
    source = np.frombuffer(b"".join(jpegs), np.uint8), sizes.cumsum() - sizes, sizes
    images, luma = np.zeros((n, *image.shape), np.uint8), np.zeros((n, height, width, 1), np.uint8)
    failed = decode(*source, images)
    no_planes = decode(*source, luma, np.zeros((n, height // 2, width // 2, 2), np.uint8))
    return (
        failed.tolist() == [n - 1]
        and np.array_equal(images[:-1], expected)
        and no_planes.tolist() == [0, 1, 3, 4, n - 1]  # the others have 4:2:0, or are grey
        and np.array_equal(luma[2], expected_luma)
    )
