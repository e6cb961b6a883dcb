import errno
import fcntl
import os
import threading
from itertools import pairwise

import numpy as np
import pytest

from mlpdata.system import disk
from mlpdata.system.disk import ALIGN, BUFFER_BYTES, Buffers, Writer


@pytest.fixture(params=["direct", "no direct open", "no direct write"])
def ways(request, monkeypatch):
    """Past the page cache, and where that cannot be had; the bytes are the same."""
    if request.param == "no direct open":
        monkeypatch.setattr(disk, "open_direct", lambda path, flags: None)
    elif request.param == "no direct write":
        pwrite = os.pwrite

        def refuse(fd, data, at):
            if fcntl.fcntl(fd, fcntl.F_GETFL) & os.O_DIRECT:
                raise OSError(errno.EINVAL, "Invalid argument")
            return pwrite(fd, data, at)

        monkeypatch.setattr(os, "pwrite", refuse)


def pieces(data, seed, most):
    """Cut bytes into pieces of random sizes, empty ones among them."""
    rng, at = np.random.default_rng(seed), 0
    while at < len(data):
        size = int(rng.integers(0, most))
        yield data[at : at + size]
        at += size


def written(path, data, at=0, most=300_000, buffers=None, durable=False):
    writer = Writer(path, buffers or Buffers(), os.O_RDWR | os.O_CREAT, at)
    try:
        for piece in pieces(data, at, most):
            writer.write(piece)
        writer.finish(durable)
        assert writer.position == at + len(data)
    finally:
        writer.close()


@pytest.mark.parametrize("size", [0, 1, ALIGN - 1, ALIGN, 3 * ALIGN + 5, BUFFER_BYTES, 3 * BUFFER_BYTES + 77])
def test_what_is_written_is_there(tmp_path, ways, size):
    data = np.random.default_rng(size).bytes(size)
    written(tmp_path / "file", data, durable=size % 2 == 0)
    assert (tmp_path / "file").read_bytes() == data


def test_neighbours_write_one_file_at_a_time_and_share_blocks(tmp_path, ways):
    rng = np.random.default_rng(0)
    edges = [0, 10, 4000, 4097, 4100, 50_000, 3 * BUFFER_BYTES + 1, 3 * BUFFER_BYTES + 9, 5 * BUFFER_BYTES - 3]
    data, path = rng.bytes(edges[-1]), tmp_path / "file"
    path.write_bytes(bytes(len(data)))
    threads = [
        threading.Thread(target=written, args=(path, data[a:b], a, max(2, (b - a) // 5))) for a, b in pairwise(edges)
    ]
    for thread in threads[::-1]:
        thread.start()
    for thread in threads:
        thread.join()
    assert path.read_bytes() == data


def test_gaps_are_zeros_even_where_something_else_was(tmp_path):
    path = tmp_path / "file"
    path.write_bytes(b"x" * 3 * ALIGN)
    writer = Writer(path, Buffers(), start=5)
    writer.write(b"abc", 10)
    writer.write(b"d", 2 * ALIGN)
    writer.finish(durable=False)
    writer.close()
    expected = b"x" * 5 + bytes(5) + b"abc" + bytes(2 * ALIGN - 13) + b"d"
    assert path.read_bytes() == expected + b"x" * (3 * ALIGN - len(expected))


@pytest.mark.skipif(not os.path.exists("/dev/full"), reason="this system has no /dev/full")
def test_a_full_disk_is_told_with_the_name_of_the_file():
    buffers = Buffers()
    writer = Writer("/dev/full", buffers, os.O_WRONLY)
    with pytest.raises(OSError, match="No space left") as e:
        for _ in range(20):  # more than there are buffers
            writer.write(bytes(BUFFER_BYTES))
        writer.finish(durable=False)
    assert e.value.filename == "/dev/full"
    writer.close()
    for _ in range(disk.NUM_BUFFERS):  # and none of them is lost over it
        buffers.take()


def test_what_was_left_unfinished_does_not_hold_up_the_next(tmp_path):
    buffers = Buffers()
    for k in range(10):
        writer = Writer(tmp_path / f"{k}", buffers, os.O_RDWR | os.O_CREAT)
        writer.write(bytes(BUFFER_BYTES + 1))
        writer.close()
    written(tmp_path / "last", b"abc" * 1000, buffers=buffers)
    assert (tmp_path / "last").read_bytes() == b"abc" * 1000


@pytest.mark.parametrize("size", [ALIGN, 3 * ALIGN + 5])
def test_a_file_that_is_opened_past_the_cache_and_not_read_so_is_read_through_it(tmp_path, size):
    data, path = np.random.default_rng(size).bytes(size), tmp_path / "file"
    path.write_bytes(data)
    fd = disk.open_direct(path, os.O_RDONLY)
    if fd is None:
        pytest.skip("this file system has no way past the cache")
    room = disk.aligned(4 * ALIGN)
    try:
        assert disk.preadv(fd, [room], 0) == size and room[:size] == data
        assert disk.preadv(fd, [room], 7) == size - 7 and room[: size - 7] == data[7:]  # which O_DIRECT refuses
    finally:
        os.close(fd)
