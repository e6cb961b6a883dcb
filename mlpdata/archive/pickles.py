"""Pickled batches of pixels and labels, as the authors of CIFAR and Downsampled-ImageNet ship them.

They come from Python 2 or 3, from strangers, and with up to 1.6 GB of pixels. So nothing is called that a pickle asks
for, only arrays and plain containers come of it, and the bytes of large arrays stay in the file: what is loaded is
where they are.
"""

from __future__ import annotations

import math
import pickle
from dataclasses import dataclass
from typing import BinaryIO

import numpy as np

from mlpdata.errors import first_line

MAX_TEXT_BYTES = 512 << 20  # protocol 2 spells pixels as text
DTYPES = {f"{kind}{size}" for kind in "iuf" for size in "1248"} - {"f1"}
LARGE_BYTES = 4 << 10  # strings of bytes from this size on stay in the file
READ_BYTES = 1 << 20
BYTES_OPCODES = (pickle.BINBYTES, pickle.BINBYTES8, pickle.BINSTRING, pickle.BYTEARRAY8)


class Large:
    """Bytes left in the file."""

    __slots__ = ("offset", "size")

    def __init__(self, offset: int, size: int):
        self.offset, self.size = offset, size

    def __setstate__(self, state):
        raise ValueError("it moves its pixels")


@dataclass(frozen=True, slots=True)
class Located:
    """An array whose bytes were left in the file, rows first."""

    shape: tuple[int, ...]
    dtype: np.dtype
    offset: int


def load(file: BinaryIO) -> dict[str, object]:
    """The dict in a pickle: text keys; arrays as numpy arrays, large ones as Located.

    file: positioned at the pickle; read, told and sought. Raises ValueError, in one line, for anything else in it.
    """
    try:
        batch = _Unpickler(_Reader(file), encoding="bytes").load()
        if not isinstance(batch, dict):
            raise ValueError(f"it holds a {type(batch).__name__}, not a batch")
        values = {k: v.value() if isinstance(v, _Array) else v for k, v in batch.items()}
    except Exception as e:  # damaged pickles raise nearly anything
        told = str(e) if isinstance(e, (ValueError, pickle.UnpicklingError)) else f"{type(e).__name__} {e}"
        raise ValueError(f"cannot be read: {first_line(told)[:200]}") from None
    named = {k.decode("latin1") if isinstance(k, bytes) else k: v for k, v in values.items()}
    if len(named) < len(values):
        raise ValueError("cannot be read: it has two values of one name")
    return named


class _Reader:
    """A file in which reading a large string of bytes gives only where it is."""

    def __init__(self, file: BinaryIO):
        self._file, self._opcode = file, b""
        self.readline = file.readline

    def read(self, size: int) -> bytes | Large:
        if size >= LARGE_BYTES:
            # An opcode is read alone; its length and its body follow.
            if self._opcode in BYTES_OPCODES:
                large = Large(self._file.tell(), size)
                while size > 0:  # read, not sought: a zip verifies what is read
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
    """Stands for a numpy.dtype while a pickle is read."""

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
    """Stands for a numpy.ndarray while a pickle is read."""

    def __init__(self, state: tuple = ()):
        self.__setstate__(state)

    def __setstate__(self, state):
        self.state = state  # version, shape, dtype, column-major, bytes

    def value(self) -> np.ndarray | Located:
        _, shape, dtype, fortran, data = self.state
        dtype = dtype.value()
        if len(shape) > 4 or not all(type(n) is int and n >= 0 for n in shape):
            raise ValueError("it holds an array of a strange shape")
        found = data.size if isinstance(data, Large) else len(data)
        if found != dtype.itemsize * math.prod(shape) or (fortran and len(shape) > 1):
            raise ValueError(f"it holds an array of shape {tuple(shape)} in {found} bytes")
        if isinstance(data, Large):
            return Located(tuple(shape), dtype, data.offset)
        return np.frombuffer(bytes(data), dtype).reshape(shape)


class _Call:
    """A function that a pickle may call, and do nothing else with."""

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
    ("numpy", "ndarray"): None,  # named by the first, never called
    ("numpy", "dtype"): _Call(lambda name, *_: _Dtype(name)),
    ("_codecs", "encode"): _Call(_encode),  # how protocol 2 spells bytes
}


# The unpickler in Python, not the one in C: a few bytes make that one take any amount of memory.
class _Unpickler(pickle._Unpickler):
    dispatch = dict(pickle._Unpickler.dispatch)  # noqa: RUF012 - that is how pickle does it

    def find_class(self, module, name):
        wanted = (module.replace("numpy._core", "numpy.core"), name)
        if wanted not in STAND_INS:
            raise pickle.UnpicklingError(f"it asks for {module}.{name}, which no batch of pixels needs")
        return STAND_INS[wanted]

    def load_bytearray8(self):
        self.append(self.read(int.from_bytes(self.read(8), "little")))

    def load_frame(self):  # says how much may be read at once, which is of no use here: large arrays are not read
        self.read(8)

    dispatch[pickle.BYTEARRAY8[0]] = load_bytearray8
    dispatch[pickle.FRAME[0]] = load_frame
