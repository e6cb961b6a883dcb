"""Pickled batches of pixels and labels, as the authors of CIFAR and Downsampled-ImageNet ship them.

The pickles come from Python 2 or 3, from strangers, and hold up to 1.6 GB of pixels. So no function that a pickle names
is called, only arrays and plain containers come out, and large arrays stay in the file: `load` returns where their
bytes are.
"""

from __future__ import annotations

import math
import pickle
from dataclasses import dataclass
from typing import Any, BinaryIO

import numpy as np

from mlpdata.errors import first_line

MAX_TEXT_BYTES = 512 << 20  # protocol 2 writes pixels as text
DTYPES = {f"{kind}{size}" for kind in "iuf" for size in "1248"} - {"f1"}
LARGE_BYTES = 4 << 10  # byte strings of at least this size stay in the file
READ_BYTES = 1 << 20
BYTES_OPCODES = (pickle.BINBYTES, pickle.BINBYTES8, pickle.BINSTRING, pickle.BYTEARRAY8)


class BytesExtent:
    """Where a byte string lies in the file."""

    __slots__ = ("offset", "size")

    def __init__(self, offset: int, size: int):
        self.offset, self.size = offset, size

    def __setstate__(self, state):
        raise ValueError("it moves its pixels")


@dataclass(frozen=True, slots=True)
class ArrayExtent:
    """Where an array lies in the file, rows first."""

    shape: tuple[int, ...]
    dtype: np.dtype
    offset: int


def load(file: BinaryIO) -> dict[str, object]:
    """The dict in a pickle: text keys; arrays as numpy arrays, large ones as ArrayExtent.

    file: stands at the start of the pickle; `read` and `tell` are called. Raises ValueError, in one line, where the
    pickle holds anything else.

    >>> import io
    >>> load(io.BytesIO(pickle.dumps({b"labels": [6, 9]})))
    {'labels': [6, 9]}
    """
    try:
        batch = _Unpickler(_Reader(file), encoding="bytes").load()
        if not isinstance(batch, dict):
            raise ValueError(f"it holds a {type(batch).__name__}, not a batch")
        values = {k: v.value() if isinstance(v, _Array) else v for k, v in batch.items()}
    except Exception as e:  # damaged pickles raise nearly anything
        reason = str(e) if isinstance(e, (ValueError, pickle.UnpicklingError)) else f"{type(e).__name__} {e}"
        raise ValueError(f"cannot be read: {first_line(reason)[:200]}") from None
    named: dict[str, object] = {k.decode("latin1") if isinstance(k, bytes) else k: v for k, v in values.items()}
    if len(named) < len(values):
        raise ValueError("cannot be read: it has two values of one name")
    return named


class _Reader:
    """A file from which reading a large byte string returns only where it lies."""

    def __init__(self, file: BinaryIO):
        self._file, self._opcode = file, b""
        self.readline = file.readline

    def read(self, size: int) -> bytes | BytesExtent:
        if size >= LARGE_BYTES:
            # pickle reads an opcode alone, then its length, then its body.
            if self._opcode in BYTES_OPCODES:
                large = BytesExtent(self._file.tell(), size)
                while size > 0:  # read instead of seeking: a zip verifies the bytes that are read
                    if not (data := self._file.read(min(size, READ_BYTES))):
                        raise EOFError("it ends inside its pixels")
                    size -= len(data)
                return large
            if size > MAX_TEXT_BYTES:
                raise ValueError(f"it has a piece of {size} bytes that are no pixels")
        data = self._file.read(size)
        if size == 1:
            self._opcode = data
        return data


class _Dtype:
    """Stands in for a numpy.dtype while a pickle is loaded."""

    def __init__(self, name):
        self.name, self.order = name.decode("latin1") if isinstance(name, bytes) else name, "|"
        if self.name not in DTYPES:
            raise ValueError(f"it holds an array of type {self.name!r}")

    def __setstate__(self, state):
        order = state[1].decode("latin1") if isinstance(state[1], bytes) else state[1]
        self.order = order if order in ("<", ">") else "|"

    def value(self) -> np.dtype:
        return np.dtype(self.order + self.name)


class _Array:
    """Stands in for a numpy.ndarray while a pickle is loaded."""

    def __init__(self, state: tuple = ()):
        self.__setstate__(state)

    def __setstate__(self, state):
        self.state = state  # version, shape, dtype, column-major, bytes

    def value(self) -> np.ndarray | ArrayExtent:
        _, shape, dtype, fortran, data = self.state
        dtype = dtype.value()
        if len(shape) > 4 or not all(type(n) is int and n >= 0 for n in shape):
            raise ValueError("it holds an array of a strange shape")
        num_bytes = data.size if isinstance(data, BytesExtent) else len(data)
        if num_bytes != dtype.itemsize * math.prod(shape) or (fortran and len(shape) > 1):
            raise ValueError(f"it holds an array of shape {tuple(shape)} in {num_bytes} bytes")
        if isinstance(data, BytesExtent):
            return ArrayExtent(tuple(shape), dtype, data.offset)
        return np.frombuffer(bytes(data), dtype).reshape(shape)


class _Call:
    """A function that a pickle may call, but not change."""

    __slots__ = ("_function",)

    def __init__(self, function):
        self._function = function

    def __call__(self, *args):
        return self._function(*args)

    def __setstate__(self, state):
        raise ValueError("it changes a function")


def _encode(text: str, encoding: str = "latin1") -> bytes:
    if encoding not in ("latin1", b"latin1"):
        raise ValueError(f"it asks for the encoding {encoding!r}")
    return text.encode("latin1")


STAND_INS = {
    ("numpy.core.multiarray", "_reconstruct"): _Call(lambda *_: _Array()),
    ("numpy.core.numeric", "_frombuffer"): _Call(
        lambda data, dtype, shape, order: _Array((1, shape, dtype, order == "F", data))
    ),
    ("numpy", "ndarray"): None,  # an argument of `_reconstruct`, never called
    ("numpy", "dtype"): _Call(lambda name, *_: _Dtype(name)),
    ("_codecs", "encode"): _Call(_encode),  # protocol 2 writes bytes as text
}


# The unpickler in Python, because a few bytes make the one in C allocate any amount of memory.
PythonUnpickler: Any = pickle._Unpickler  # typeshed describes it as the one in C


class _Unpickler(PythonUnpickler):
    dispatch = dict(PythonUnpickler.dispatch)  # noqa: RUF012 - that is how pickle does it

    def find_class(self, module, name):
        function = (module.replace("numpy._core", "numpy.core"), name)
        if function not in STAND_INS:
            raise pickle.UnpicklingError(f"it asks for {module}.{name}, which no batch of pixels needs")
        return STAND_INS[function]

    def load_bytearray8(self):
        self.append(self.read(int.from_bytes(self.read(8), "little")))

    def load_frame(self):  # ignores the frame: pickle would read it whole, large arrays included
        self.read(8)

    dispatch[pickle.BYTEARRAY8[0]] = load_bytearray8
    dispatch[pickle.FRAME[0]] = load_frame
