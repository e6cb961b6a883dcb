"""Files to payloads, payloads to pixels, by sample ids: read in long ranges, gathered or decoded by threads.

Files are read, never mapped: a file that is cut short or changed while it is in use is then an Error, where a memory
map would end the process. Reading, copying and decoding release the GIL, so threads do them.
"""

from __future__ import annotations

import contextlib
import itertools
import os
from dataclasses import dataclass
from functools import cached_property, partial
from typing import NamedTuple

import numpy as np
import simplejpeg
import torch

from mlpdata import image
from mlpdata.augment.chroma import to_ycc420
from mlpdata.choices import CODECS
from mlpdata.errors import Error, first_line
from mlpdata.loader import jpeg_batch
from mlpdata.loader.buffers import huge_empty
from mlpdata.loader.memory_plan import plane_shapes
from mlpdata.shards.shard_index import ShardIndex
from mlpdata.system.disk import ALIGN, open_direct, preadv
from mlpdata.system.threads import Threads, Wait, no_wait

RAW, JPG = CODECS.index("raw"), CODECS.index("jpg")
GAP_BYTES = 64 << 10  # between two samples that are still read in one go: tar headers and page ends, not whole samples
READ_BYTES = 4 << 20  # of one system call at most, so that several threads share a long range
TAR_BLOCK = 512
READ_THREADS = 4  # at least: as many requests as a disk wants to have in its queue
MIN_PIECE = 16  # images that a thread decodes at a time, or more
BATCH_DECODER_AFTER = 1 << 14  # images decoded before the batch decoder is set up, which takes half a second
CONVERT_IMAGES = 64  # converted from RGB to planes at a time: that takes 40 bytes a pixel
PROBE_SAMPLES = 16  # looked at to learn how JPEGs are coded


@dataclass(frozen=True, slots=True)
class Payloads:
    """The stored bytes of some samples in memory: those of sample i are data[starts[i] : starts[i] + its num_bytes]."""

    data: np.ndarray  # (bytes,) uint8
    starts: np.ndarray  # (n,) int64


class _ReadRange(NamedTuple):
    """Bytes of a file that one call reads. needed: how many of `length` have to be there; the rest is alignment."""

    file: int
    start: int
    length: int
    needed: int
    to: int  # place in the buffer


class Reader:
    """Pixels of the samples of an index.

    num_threads: threads that read and decode. res: resize every image to res x res (box filter, aspect ratio given up);
    None takes images as they are, and then all must have the same size.
    Raises Error if sizes differ and res is None; and from every method that reads, naming file and sample, if a file is
    cut short, was changed, or holds an image that cannot be decoded.
    """

    def __init__(self, index: ShardIndex, num_threads: int, res: int | None = None):
        self.index, self.num_threads = index, num_threads
        height, width = (int(index.height[0]), int(index.width[0])) if res is None else (res, res)
        same = bool((index.height == height).all() and (index.width == width).all())
        self._resize = None if same or res is None else image.Resize(res)
        if not same and self._resize is None:
            raise Error(
                f"{index.files[0]} holds images of different sizes, which do not stack into batches; "
                "load with res=N to resize them, or convert with --resize squash or crop"
            )
        self.shape = (height, width, 3)
        self.image_bytes = height * width * 3
        self.all_raw = same and bool((index.codec == RAW).all())
        self._all_jpg = same and bool((index.codec == JPG).all())
        self._num_decoded = 0
        try:
            self.stamps = [index.cache.stamp(p.name) if index.cache else _stamp(os.stat(p)) for p in index.files]
        except OSError as e:
            raise Error(f"cannot read {e.filename}: {e.strerror}") from None
        # Reading is mostly waiting, so it has threads of its own, more than there are cores.
        self._read_threads = Threads(max(READ_THREADS, num_threads) if num_threads > 1 else 1, "mlpdata-read")
        self._decode_threads = Threads(num_threads, "mlpdata-decode")

    def storage_order(self, ids: np.ndarray | None) -> np.ndarray | None:
        """The rows of ids in the order in which their payloads lie in the files, int64 (n,); None if they do already.

        ids: (n,) integers in any order, repeated or not; None for all samples.
        """
        file, offset = self.index.file, self.index.offset
        if ids is not None:
            file, offset = file[ids], offset[ids]
        if ((file[1:] > file[:-1]) | ((file[1:] == file[:-1]) & (offset[1:] >= offset[:-1]))).all():
            return None
        return np.lexsort((offset, file))

    def read(self, ids: np.ndarray, *planes: np.ndarray) -> None:
        """Write the pixels of samples in any order, integers (n,), to planes as of `decode`."""
        ids = np.asarray(ids, np.int64)
        self.decode(ids, self.fetch(ids), *planes)()

    @cached_property
    def has_coded_planes(self) -> bool:
        """Whether most samples are JPEGs that decode straight to luma and half-resolution chroma, by a look at some."""
        decode_batch = jpeg_batch.batch_decoder()[0] if self._all_jpg else None
        if decode_batch is None:
            return False
        ids = np.unique(np.linspace(0, len(self.index) - 1, PROBE_SAMPLES).astype(np.int64))
        payloads = self.fetch(ids)
        planes = [np.empty((len(ids), *shape), np.uint8) for shape in plane_shapes(self.shape, "ycc420")]
        failed = decode_batch(payloads.data, payloads.starts, self.index.num_bytes[ids].astype(np.int64), *planes)
        return len(failed) < len(ids) / 2

    # ----------------------------------------------------------------------------------------------------- reading

    def fetch(self, ids: np.ndarray, buffer: np.ndarray | None = None, direct: bool = False) -> Payloads:
        """Read the payloads of samples, in any order.

        buffer: where to read to, if it is large enough. direct: past the page cache, where the file system can.
        """
        order = self.storage_order(ids)
        if order is None:
            return self._fetch_in_order(ids, buffer, direct)
        payloads = self._fetch_in_order(ids[order], buffer, direct)
        starts = np.empty_like(payloads.starts)
        starts[order] = payloads.starts
        return Payloads(payloads.data, starts)

    def _fetch_in_order(self, ids: np.ndarray, buffer: np.ndarray | None, direct: bool) -> Payloads:
        """As fetch, of samples in the order in which they lie in the files: neighbours become one range."""
        index = self.index
        file, start = index.file[ids], index.offset[ids]
        stop = start + index.num_bytes[ids]
        is_first = np.ones(len(ids), bool)  # of a range
        gap = start[1:] - stop[:-1]
        is_first[1:] = (file[1:] != file[:-1]) | (gap < 0) | (gap > GAP_BYTES)
        first = np.flatnonzero(is_first)
        align = ALIGN if direct else 1
        range_start = start[first] // align * align
        range_stop = np.maximum.reduceat(stop, first) if len(first) else stop
        length = -(-(range_stop - range_start) // align) * align
        to = length.cumsum() - length  # where each range goes in the buffer
        total = int(length.sum())
        if buffer is None or len(buffer) < total:
            if buffer is None and not direct:
                buffer = torch.empty(total, dtype=torch.uint8).numpy()
            else:  # a buffer that is used again gets some room for ranges that are a little longer
                buffer = huge_empty(total + total // 16)
        groups: list[list[_ReadRange]] = [[]]  # a thread's work each, of about READ_BYTES
        size = 0
        columns = (file[first], range_start, range_stop - range_start, length, to)
        for f, begin, needed, n, place in zip(*(column.tolist() for column in columns), strict=True):
            for cut in range(0, n, READ_BYTES):
                if size >= READ_BYTES:
                    groups.append([])
                    size = 0
                piece = min(READ_BYTES, n - cut)
                groups[-1].append(_ReadRange(f, begin + cut, piece, min(piece, needed - cut), place + cut))
                size += piece
        self._read_threads.start(partial(self._read_ranges, buffer.data, direct), groups)()
        range_of = is_first.cumsum() - 1
        return Payloads(buffer, start - range_start[range_of] + to[range_of])

    def _read_ranges(self, buffer: memoryview, direct: bool, ranges: list[_ReadRange]) -> None:
        for file, ranges_of_file in itertools.groupby(ranges, lambda r: r.file):
            fd = -1
            try:
                fd = self._open(file, direct)
                for _, start, length, needed, to in ranges_of_file:
                    done = 0
                    while done < needed:
                        n = preadv(fd, [buffer[to + done : to + length]], start + done)
                        if not n:
                            self._raise_cut_short(fd, file, start + done)
                        done += n
                self.check_stamp(file, os.fstat(fd))  # it may have been written to while it was read
            except OSError as e:
                raise Error(f"cannot read {self.index.files[file]}: {e.strerror}") from None
            finally:
                if fd >= 0:
                    os.close(fd)

    def _open(self, file: int, direct: bool) -> int:
        path = self.index.files[file]
        if self.index.cache:
            return self.index.cache.open(path.name)
        flags = os.O_RDONLY | os.O_NONBLOCK  # a file that was replaced by a pipe must not be waited for
        fd = open_direct(path, flags) if direct else None
        if fd is None:
            fd = os.open(path, flags | os.O_CLOEXEC)
        try:
            self.check_stamp(file, os.fstat(fd))
        except BaseException:
            os.close(fd)
            raise
        return fd

    def _raise_cut_short(self, fd: int, file: int, end: int) -> None:
        self.check_stamp(file, os.fstat(fd))  # it may have changed since it was opened
        index = self.index
        beyond = (index.file == file) & (index.offset + index.num_bytes > end)
        raise Error(f"{index.files[file]} is cut short: it ends at byte {end}, in or before sample {beyond.argmax()}")

    def check_stamp(self, file: int, stat: os.stat_result) -> None:
        """Raise Error if a file is not the one that was indexed."""
        if _stamp(stat) != self.stamps[file]:
            size, before = stat.st_size, self.stamps[file][0]
            what = "it was written to" if size == before else f"it has {size} bytes, it had {before} when it was opened"
            raise Error(
                f"{self.index.files[file]} changed while it was in use: {what}; its samples cannot be trusted, open it "
                "again"
            )

    # ---------------------------------------------------------------------------------------------------- decoding

    def decode(self, ids: np.ndarray, payloads: Payloads, *planes: np.ndarray) -> Wait:
        """Start to write the pixels of samples to planes; the Wait returns when they are written.

        planes: C-contiguous uint8, either RGB (n, H, W, 3), or luma (n, H, W, 1) and chroma (n, H/2, W/2, 2). With the
        batch decoder, JPEGs in 4:2:0 give luma and chroma as coded. All else is converted by `to_ycc420`.
        """
        n, is_rgb = len(ids), len(planes) == 1
        if self.all_raw and n and is_rgb:
            # Rows that start at any byte: a view of overlapping rows, and one gather by torch's own threads.
            data, size = torch.from_numpy(payloads.data), self.image_bytes
            rows, out = (
                data.as_strided((len(data) - size + 1, size), (1, 1)),
                torch.from_numpy(planes[0].reshape(n, size)),
            )
            torch.index_select(rows, 0, torch.from_numpy(payloads.starts), out=out)
            return no_wait
        self._num_decoded += n
        decode_batch = None
        # Planes that are converted from RGB differ from coded ones, so they are decoded in one way from the first on.
        if self._all_jpg and (self._num_decoded > BATCH_DECODER_AFTER or not is_rgb):
            decode_batch = jpeg_batch.batch_decoder()[0]
        data, starts = payloads.data, payloads.starts
        sizes, codecs = self.index.num_bytes[ids].astype(np.int64), self.index.codec[ids]

        def decode_piece(piece: slice) -> None:
            left = np.arange(piece.start, piece.stop)
            if decode_batch is not None:
                left = left[decode_batch(data, starts[piece], sizes[piece], *(plane[piece] for plane in planes))]
            if is_rgb:
                self._decode_each(ids[left], data, starts[left], sizes[left], codecs[left], left, planes[0])
                return
            for first in range(0, len(left), CONVERT_IMAGES):
                rows = left[first : first + CONVERT_IMAGES]
                images = np.empty((len(rows), *self.shape), np.uint8)
                numbers = np.arange(len(rows))
                self._decode_each(ids[rows], data, starts[rows], sizes[rows], codecs[rows], numbers, images)
                for plane, converted in zip(planes, to_ycc420(torch.from_numpy(images)), strict=True):
                    plane[rows] = converted.numpy()

        return self._decode_threads.start(decode_piece, _pieces(n, self.num_threads))

    def _decode_each(self, ids, data, starts, sizes, codecs, rows, out: np.ndarray) -> None:
        """One image after the other: payloads data[starts : starts + sizes] to out[rows]."""
        decode, many_scans = simplejpeg.decode_jpeg, image.bytes_of_many_scans(self.shape[1], self.shape[0])
        view = data.data
        columns = (ids, starts, starts + sizes, codecs, rows)
        for i, start, stop, codec, row in zip(*(column.tolist() for column in columns), strict=True):
            payload, pixels = view[start:stop], out[row]
            try:
                # The common case is kept short: what is done here under the GIL holds up the other threads.
                if codec == JPG and self._resize is None:
                    if stop - start > many_scans:
                        image.check_scans(bytes(payload), self.shape[1], self.shape[0])
                    try:
                        if decode(payload, "RGB", buffer=pixels).shape == self.shape:
                            continue
                    except ValueError:
                        if not self.index.is_foreign:  # a JPEG that was written here is whole, or damaged since
                            raise
                self._decode_unusual(payload, codec, i, pixels)
            except MemoryError:  # which is no damage
                raise
            except Exception as e:
                path, byte = self.index.files[int(self.index.file[i])], int(self.index.offset[i])
                name = _member_name(self.index, i)
                raise Error(
                    f"{path}: sample {i} at byte {byte}{name} cannot be decoded ({first_line(e)}); "
                    "convert or get it again"
                ) from e

    def _decode_unusual(self, payload: memoryview, codec: int, i: int, out: np.ndarray) -> None:
        """Whatever is no JPEG of the size that is wanted."""
        if codec == RAW:
            height, width = int(self.index.height[i]), int(self.index.width[i])
            pixels = np.frombuffer(payload, np.uint8).reshape(height, width, 3)
            if self._resize is not None:
                pixels = image.resized(pixels, self._resize, width, height)
        elif self._resize is not None:
            pixels = image.decode(bytes(payload), self._resize, strict=not self.index.is_foreign)[0]
        else:
            pixels = image.decode_exact(bytes(payload), (self.shape[1], self.shape[0]))
        if pixels.shape != self.shape:
            size = f"{pixels.shape[1]} x {pixels.shape[0]}"
            raise ValueError(f"its size is {size}, not {self.shape[1]} x {self.shape[0]}")
        out[...] = pixels


def _member_name(index: ShardIndex, i: int) -> str:
    """For messages: the name of a tar's member, from the header before its payload; nothing where there is none."""
    path, byte, header = index.files[int(index.file[i])], int(index.offset[i]), b""
    if path.suffix == ".tar" and index.codec[i] != RAW:
        with contextlib.suppress(OSError), open(path, "rb") as f:
            f.seek(byte - TAR_BLOCK)
            header = f.read(TAR_BLOCK)
    is_member = header[257:262] == b"ustar"
    return f" ({header[:100].split(bytes(1))[0].decode(errors='replace')!r})" if is_member else ""


def _pieces(n: int, num_threads: int) -> list[slice]:
    """Cut 0..n-1 into pieces that get smaller, so that all threads are done at about the same moment."""
    pieces, start = [], 0
    while start < n:
        stop = min(n, start + max(MIN_PIECE, (n - start) // (2 * num_threads)))
        pieces.append(slice(start, stop))
        start = stop
    return pieces


def _stamp(stat: os.stat_result) -> tuple[int, int]:
    return stat.st_size, stat.st_mtime_ns
