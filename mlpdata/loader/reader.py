"""Payloads to pixels, by sample ids: read in long stretches, gathered or decoded by threads.

Files are read, never mapped: one that is cut short or changed while it is in use is an Error, where under a map it
would end the process. Reading, copying and decoding release the GIL, so threads do them.
"""

from __future__ import annotations

import contextlib
import itertools
import mmap
import os
from dataclasses import dataclass

import numpy as np
import simplejpeg
import torch

from mlpdata import image
from mlpdata.errors import Error, first_line
from mlpdata.loader import jpeg_batch
from mlpdata.shards.manifest import CODECS, ShardIndex
from mlpdata.system.disk import ALIGN, open_direct, preadv
from mlpdata.system.threads import Threads, Wait, no_wait

RAW, JPG = CODECS.index("raw"), CODECS.index("jpg")
GAP_BYTES = 64 << 10  # between two samples that are still read in one go: tar headers and page ends, not whole samples
READ_BYTES = 4 << 20  # of one system call at most, so that several threads share a long stretch
HUGE_PAGE = 2 << 20
TAR_BLOCK = 512
READ_THREADS = 4  # at least: what a disk wants to have in its queue
PIECE = 16  # images a thread decodes at a time, or more
WORTH = 1 << 14  # images decoded before the batch decoder is set up, which takes half a second


@dataclass(frozen=True, slots=True)
class Payloads:
    """Some samples' bytes in memory: sample i's are data[starts[i] : starts[i] + its num_bytes]."""

    data: np.ndarray  # (bytes,) uint8
    starts: np.ndarray  # (n,) int64


class Reader:
    """Pixels of the samples of an index.

    num_threads: that read and decode. res: resize every image to res x res (box filter, aspect ratio given up); None
    takes them as they are, and then they must all have one size.
    Raises Error where sizes differ and no res is given, and, from every method that reads, naming file and sample,
    where a file is cut short, changed or holds an image that cannot be decoded.
    """

    def __init__(self, index: ShardIndex, num_threads: int, res: int | None = None):
        self.index, self.num_threads = index, num_threads
        height, width = (int(index.height[0]), int(index.width[0])) if res is None else (res, res)
        same = (index.height == height).all() and (index.width == width).all()
        if res is None and not same:
            raise Error(
                f"{index.files[0]} holds images of different sizes, which do not stack into batches; "
                "load with res=N to resize them, or convert with --resize squash or crop"
            )
        self._resize = None if same else image.Resize(res)
        self.shape = (height, width, 3)
        self.image_bytes = height * width * 3
        self.all_raw = bool(same and (index.codec == RAW).all())
        self._all_jpg = bool(same and (index.codec == JPG).all())
        self._num_decoded = 0
        try:
            self.stamps = [_stamp(os.stat(path)) for path in index.files]  # equal where nothing was written to
        except OSError as e:
            raise Error(f"cannot read {e.filename}: {e.strerror}") from None
        # Reads mostly wait, so they have threads of their own and more of them than there are cores.
        self._readers = Threads(max(READ_THREADS, num_threads) if num_threads > 1 else 1, "mlpdata-read")
        self._decoders = Threads(num_threads, "mlpdata-decode")

    def by_place(self, ids: np.ndarray | None) -> np.ndarray | None:
        """The order in which the payloads of samples lie in the files: their rows, int64 (n,); None where it is theirs.

        ids: (n,) integers of the rows, in any order and repeated; None for all samples.
        """
        file, offset = self.index.file, self.index.offset
        if ids is not None:
            file, offset = file[ids], offset[ids]
        if ((file[1:] > file[:-1]) | ((file[1:] == file[:-1]) & (offset[1:] >= offset[:-1]))).all():
            return None
        return np.lexsort((offset, file))

    def read(self, ids: np.ndarray, out: np.ndarray) -> None:
        """Pixels of samples in any order: integers (n,) -> out, uint8 (n, H, W, 3)."""
        ids = np.asarray(ids, np.int64)
        self.decode(ids, self.fetch_any(ids), out)()

    # ----------------------------------------------------------------------------------------------------- reading

    def fetch_any(self, ids: np.ndarray, data: np.ndarray | None = None, direct: bool = False) -> Payloads:
        """As `fetch`, of samples in any order, which is that of `starts`."""
        places = self.by_place(ids)
        if places is None:
            return self.fetch(ids, data, direct)
        payloads = self.fetch(ids[places], data, direct)
        starts = np.empty_like(payloads.starts)
        starts[places] = payloads.starts
        return Payloads(payloads.data, starts)

    def fetch(self, ids: np.ndarray, data: np.ndarray | None = None, direct: bool = False) -> Payloads:
        """Read the payloads of samples that are in the order of their places.

        data:   where to read to, if it is large enough.
        direct: past the page cache, where the file system can.
        """
        index = self.index
        file, start = index.file[ids], index.offset[ids]
        stop = start + index.num_bytes[ids]
        new = np.ones(len(ids), bool)  # where a stretch begins that is read in one go
        gap = start[1:] - stop[:-1]
        new[1:] = (file[1:] != file[:-1]) | (gap < 0) | (gap > GAP_BYTES)
        first = np.flatnonzero(new)
        align = ALIGN if direct else 1
        from_byte = start[first] // align * align
        to_byte = np.maximum.reduceat(stop, first) if len(first) else stop
        room = -(-(to_byte - from_byte) // align) * align
        at = room.cumsum() - room  # where each stretch goes in `data`
        total = int(room.sum())
        if data is None or len(data) < total:
            if data is None and not direct:
                data = torch.empty(total, dtype=torch.uint8).numpy()
            else:  # a buffer that comes again gets some room for stretches that are a little longer
                data = huge_empty(total + total // 16)
        which = new.cumsum() - 1
        reads = _Reads(self, memoryview(data), direct)
        groups, size = [[]], 0
        for f, a, b, n, to in zip(
            file[first].tolist(), from_byte.tolist(), to_byte.tolist(), room.tolist(), at.tolist(), strict=True
        ):
            for cut in range(0, n, READ_BYTES):
                if size >= READ_BYTES:
                    groups, size = [*groups, []], 0
                length = min(READ_BYTES, n - cut)
                groups[-1].append((f, a + cut, length, min(length, b - a - cut), to + cut))
                size += length
        self._readers.start(reads, groups)()
        return Payloads(data, start - from_byte[which] + at[which])

    def first_behind(self, file: int, byte: int) -> int:
        """The first sample of a file, by id, whose payload ends behind a byte of it."""
        index = self.index
        behind = (index.file == file) & (index.offset + index.num_bytes > byte)
        return int(behind.argmax())

    def check_stamp(self, file: int, stat: os.stat_result) -> None:
        """Raise Error where a file is not the one that was indexed."""
        if _stamp(stat) != self.stamps[file]:
            now, before = stat.st_size, self.stamps[file][0]
            what = "it was written to" if now == before else f"it has {now} bytes, it had {before} when it was opened"
            raise Error(
                f"{self.index.files[file]} changed while it was in use: {what}; its samples cannot be trusted, open it "
                "again"
            )

    # ---------------------------------------------------------------------------------------------------- decoding

    def decode(self, ids: np.ndarray, payloads: Payloads, out: np.ndarray) -> Wait:
        """Begin with the pixels of samples whose payloads are there: -> out, uint8 (n, H, W, 3), C-contiguous."""
        n = len(ids)
        if self.all_raw and n:
            # Rows that start at any byte: a view of overlapping rows, and one gather by torch's own threads.
            size = self.image_bytes
            rows = torch.from_numpy(payloads.data).as_strided((len(payloads.data) - size + 1, size), (1, 1))
            torch.index_select(rows, 0, torch.from_numpy(payloads.starts), out=torch.from_numpy(out.reshape(n, size)))
            return no_wait
        data, starts = payloads.data, payloads.starts
        sizes, codecs = self.index.num_bytes[ids].astype(np.int64), self.index.codec[ids]
        many, view = self._batch_decoder(n), memoryview(data)

        def piece(part: slice) -> None:
            left = np.arange(part.start, part.stop)
            if many is not None:
                left = left[many(data, starts[part], sizes[part], out[part])]
            decode, many_scans = simplejpeg.decode_jpeg, image.bytes_of_many_scans(self.shape[1], self.shape[0])
            columns = (left, starts[left], starts[left] + sizes[left], codecs[left])
            for k, start, stop, codec in zip(*(column.tolist() for column in columns), strict=True):
                payload, row = view[start:stop], out[k]
                try:
                    # The common case is kept short: what is done here under the GIL holds up the other threads.
                    if codec == JPG and self._resize is None:
                        if stop - start > many_scans:
                            image.check_scans(bytes(payload), self.shape[1], self.shape[0])
                        try:
                            if decode(payload, "RGB", buffer=row).shape == self.shape:
                                continue
                        except ValueError:
                            if not self.index.is_foreign:  # a JPEG that was written here is whole, or damaged since
                                raise
                    self._decode_other(payload, codec, int(ids[k]), row)
                except Exception as e:
                    i = int(ids[k])
                    path, byte = self.index.files[int(self.index.file[i])], int(self.index.offset[i])
                    name, reason = self._member_name(i), first_line(e)
                    raise Error(
                        f"{path}: sample {i} at byte {byte}{name} cannot be decoded ({reason}); convert or get it again"
                    ) from e

        return self._decoders.start(piece, _pieces(n, self.num_threads))

    def _member_name(self, i: int) -> str:
        """For messages: the name of a tar's member, from the header before its payload; nothing where there is none."""
        path, byte = self.index.files[int(self.index.file[i])], int(self.index.offset[i])
        head = b""
        if path.suffix == ".tar" and self.index.codec[i] != RAW:
            with contextlib.suppress(OSError), open(path, "rb") as f:
                f.seek(byte - TAR_BLOCK)
                head = f.read(TAR_BLOCK)
        return f" ({head[:100].split(bytes(1))[0].decode(errors='replace')!r})" if head[257:262] == b"ustar" else ""

    def _batch_decoder(self, n: int) -> jpeg_batch.BatchDecoder | None:
        """What decodes the next n images at once; None where they go one by one."""
        self._num_decoded += n
        return jpeg_batch.batch_decoder()[0] if self._all_jpg and self._num_decoded > WORTH else None

    def _decode_other(self, payload: memoryview, codec: int, i: int, row: np.ndarray) -> None:
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
            raise ValueError(
                f"its size is {pixels.shape[1]} x {pixels.shape[0]}, not {self.shape[1]} x {self.shape[0]}"
            )
        row[...] = pixels


def _pieces(n: int, num_threads: int) -> list[slice]:
    """Cut 0..n-1 into pieces that get smaller, so that all threads are done at about the same moment."""
    pieces, at = [], 0
    while at < n:
        size = max(PIECE, (n - at) // (2 * num_threads))
        pieces.append(slice(at, min(n, at + size)))
        at += size
    return pieces


class _Reads:
    """A function that reads stretches (file, first byte, room, bytes needed, place in the buffer)."""

    def __init__(self, reader: Reader, data: memoryview, direct: bool):
        self._reader, self._data, self._direct = reader, data, direct

    def __call__(self, stretches: list[tuple[int, int, int, int, int]]) -> None:
        for file, of_file in itertools.groupby(stretches, lambda stretch: stretch[0]):
            fd = -1
            try:
                fd = self._open(file)
                for _, start, room, needed, to in of_file:
                    self._read(fd, file, start, room, needed, to)
                self._reader.check_stamp(file, os.fstat(fd))  # it may have been written to while it was read
            except OSError as e:
                raise Error(f"cannot read {self._reader.index.files[file]}: {e.strerror}") from None
            finally:
                if fd >= 0:
                    os.close(fd)

    def _read(self, fd: int, file: int, start: int, room: int, needed: int, to: int) -> None:
        done = 0
        while done < needed:
            got = preadv(fd, [self._data[to + done : to + room]], start + done)
            if not got:
                self._reader.check_stamp(file, os.fstat(fd))  # it may have changed since it was opened
                path, i = self._reader.index.files[file], self._reader.first_behind(file, start + done)
                raise Error(f"{path} is cut short: it ends at byte {start + done}, in or before sample {i}")
            done += got

    def _open(self, file: int) -> int:
        path = self._reader.index.files[file]
        flags = os.O_RDONLY | os.O_NONBLOCK  # what has become a pipe must not be waited for
        fd = open_direct(path, flags) if self._direct else None
        if fd is None:
            fd = os.open(path, flags | os.O_CLOEXEC)
        try:
            self._reader.check_stamp(file, os.fstat(fd))
        except BaseException:
            os.close(fd)
            raise
        return fd


def huge_empty(size: int) -> np.ndarray:
    """(size,) uint8 for random access, in pages of 2 MiB where the system has them, and at the start of one.

    A gather of rows from ordinary pages spends a sixth of its time on looking up where they are.
    """
    memory = mmap.mmap(-1, size + HUGE_PAGE, mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
    with contextlib.suppress(AttributeError, OSError):  # another system, or one that was built without them
        memory.madvise(mmap.MADV_HUGEPAGE)
    whole = np.frombuffer(memory, np.uint8)
    start = -whole.ctypes.data % HUGE_PAGE
    return whole[start : start + size]


def _stamp(stat: os.stat_result) -> tuple[int, int]:
    return stat.st_size, stat.st_mtime_ns
