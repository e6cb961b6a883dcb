import io
import tarfile

import numpy as np
from PIL import Image

from mlpdata.shards import tar


def as_tar(keys, payload, codec="jpg", width=4, height=4):
    n, keys = len(keys), [key.encode() for key in keys]
    buffers, offsets = tar.build(keys, np.arange(n), codec, np.full(n, width), np.full(n, height), payload)
    return b"".join(buffers) + tar.END, offsets


def test_headers_equal_tarfile():
    rng = np.random.default_rng(0)
    names = ["a.jpg", "n01443537/n01443537_10026.jpg", "ü_" * 10 + ".cls", "x" * 100]
    sizes = [0, 1, 123456, int(rng.integers(1 << 33))]
    for name, size, row in zip(names, sizes, tar.headers(names, np.array(sizes)), strict=True):
        info = tarfile.TarInfo(name)
        info.size = size
        assert row.tobytes() == info.tobuf(tarfile.USTAR_FORMAT)


def test_members_offsets_and_reproducible_stamps():
    keys = [f"k{i}" for i in range(50)] + ["y" * 150]  # the last needs an extended header
    payload = [np.random.default_rng(i).bytes(i * 37) for i in range(51)]
    data, offsets = as_tar(keys, payload)
    with tarfile.open(fileobj=io.BytesIO(data)) as archive:
        members = archive.getmembers()
        assert [m.name for m in members] == [f"{k}.{e}" for k in keys for e in ("jpg", "cls")]
        assert {(m.mode, m.mtime, m.uid, m.gid, m.isfile()) for m in members} == {(0o644, 0, 0, 0, True)}
        for i in range(51):
            assert archive.extractfile(members[2 * i]).read() == payload[i]
            assert archive.extractfile(members[2 * i + 1]).read() == str(i).encode()
            assert members[2 * i].offset_data == offsets[i]


def test_raw_pixels_are_a_ppm_that_any_reader_opens():
    pixels = np.random.default_rng(0).integers(0, 256, (5, 3 * 4 * 3), dtype=np.uint8)
    data, offsets = as_tar([f"k{i}" for i in range(5)], pixels, "raw", width=4, height=3)
    with tarfile.open(fileobj=io.BytesIO(data)) as archive:
        for i in range(5):
            seen = np.asarray(Image.open(archive.extractfile(f"k{i}.ppm")))
            assert np.array_equal(seen, pixels[i].reshape(3, 4, 3))
            assert data[offsets[i] : offsets[i] + 36] == pixels[i].tobytes()


def test_a_run_at_once_equals_member_by_member():
    keys = [key.encode() for key in ("a", "ü_" * 20, "n01443537_1", "x" * 96)]
    arguments = (
        keys,
        np.array([0, 7, 21840, 3]),
        "jpg",
        np.full(4, 2),
        np.full(4, 2),
        [b"", b"j", bytes(512), b"k" * 1025],
    )
    fast, fast_offsets = tar.build(*arguments)
    slow, slow_offsets = tar._build_one_by_one(*arguments[:2], ".jpg", [b""] * 4, arguments[-1])
    assert b"".join(fast) == b"".join(slow) and fast_offsets.tolist() == slow_offsets.tolist()
    raw = ("raw", np.full(4, 2), np.full(4, 2), np.arange(48, dtype=np.uint8).reshape(4, 12))
    slow, _ = tar._build_one_by_one(*arguments[:2], ".ppm", [tar.ppm_header(2, 2)] * 4, raw[-1])
    assert b"".join(tar.build(*arguments[:2], *raw)[0]) == b"".join(slow)
