import io
import random
import tarfile

import pytest

from mlpdata.sources.tarscan import Damage, Member, next_member, scan


def make(files, format_=tarfile.GNU_FORMAT):
    out = io.BytesIO()
    with tarfile.open(fileobj=out, mode="w", format=format_) as archive:
        folder = tarfile.TarInfo("folder")
        folder.type = tarfile.DIRTYPE
        archive.addfile(folder)
        for name, data in files.items():
            info = tarfile.TarInfo(name)
            info.size = len(data)
            archive.addfile(info, io.BytesIO(data))
    return out.getvalue()


def run(data):
    return list(scan(lambda offset, size: data[offset : offset + size], 0, len(data)))


FILES = {f"f{i}.jpg": bytes([i]) * (i * 700) for i in range(8)}


@pytest.mark.parametrize("format_", [tarfile.GNU_FORMAT, tarfile.PAX_FORMAT, tarfile.USTAR_FORMAT])
def test_members_as_tarfile_sees_them(format_):
    files = dict(FILES)
    files["deep/" * 15 + "x" * 90 + ".jpg"] = b"long"
    if format_ != tarfile.USTAR_FORMAT:
        files["ü" * 120] = b"longer"
    data = make(files, format_)
    with tarfile.open(fileobj=io.BytesIO(data)) as archive:
        expected = [(m.name, m.offset_data, m.size) for m in archive if m.isfile()]
    assert [(m.name, m.offset, m.size) for m in run(data)] == expected


def test_a_bad_header_costs_one_member():
    data = bytearray(make(FILES))
    hit = data.index(b"f3.jpg")
    data[hit + 124 : hit + 136] = b"notanumber!!"
    seen = run(bytes(data))
    assert [m.name for m in seen if isinstance(m, Member)] == [n for n in FILES if n != "f3.jpg"]
    damage = [m for m in seen if isinstance(m, Damage)]
    assert len(damage) == 1 and str(hit) in damage[0].reason


def test_cut_short_inside_a_file_and_inside_a_header():
    data = make(FILES)
    start = data.index(b"f6.jpg")
    for cut in (start + 512 + 100, start + 200):
        seen = run(data[:cut])
        assert [m.name for m in seen if isinstance(m, Member)] == [f"f{i}.jpg" for i in range(6)]
    assert isinstance(run(data[: start + 612])[-1], Damage)


def test_garbage_ends():
    assert run(b"") == []
    assert all(isinstance(m, Damage) for m in run(b"garbage!" * 1000))


def test_an_inner_tar_does_not_end_the_outer_one_after_damage():
    inner = make({"a.jpg": b"a" * 700, "b.jpg": b"b"})
    data = bytearray(make({"one.tar": inner, "two.tar": inner, "end.txt": b"x"}))
    hit = data.index(b"one.tar")
    data[hit + 100 : hit + 148] = b"?" * 48
    names = [m.name for m in run(bytes(data)) if isinstance(m, Member)]
    assert names == ["a.jpg", "b.jpg", "two.tar", "end.txt"]
    # Without damage an end mark is one: what lies behind it in the file is not read.
    assert [m.name for m in run(inner + inner)] == ["a.jpg", "b.jpg"]


def test_where_a_reader_may_start():
    files = {f"{'deep/' * 40}f{i}.jpg": b"x" * 900 for i in range(6)} | {"short.jpg": b"y"}
    for format_ in (tarfile.GNU_FORMAT, tarfile.PAX_FORMAT):
        data = make(files, format_)
        members = [m for m in run(data) if isinstance(m, Member)]
        for at in range(0, len(data), 512):
            follows = [m.start for m in members if m.offset - 512 >= at]
            found = next_member(lambda o, n, data=data: data[o : o + n], at, len(data))
            assert found == next(iter(follows), None) or at < 1024


def checksummed(header):
    header[148:156] = b" " * 8
    header[148:156] = f"{sum(header):06o}\0 ".encode()


@pytest.mark.parametrize(
    "field",
    [
        b"-0000000007\0",
        b"\xff" * 12,  # minus one
        b"\x80" + b"\xff" * 11,  # 2^88
        b"\x80" + b"\0" * 10 + b"\1",
        b"77777777777\0",
        b"9" * 12,
        b" " * 12,
    ],
)
def test_sizes_that_lie(field):
    data = bytearray(make(FILES))
    hit = data.index(b"f5.jpg")
    data[hit + 124 : hit + 136] = field
    header = bytearray(data[hit : hit + 512])
    checksummed(header)
    data[hit : hit + 512] = header
    for item in run(bytes(data)):
        if isinstance(item, Member):
            assert item.size >= 0 and item.offset + item.size <= len(data)
    assert [m.name for m in run(bytes(data)) if isinstance(m, Member)][:5] == list(FILES)[:5]


@pytest.mark.parametrize("value", ["9" * 5000, "-5", "1e9", "٣", "99999999999999999999", "18446744073709551616"])
def test_extended_headers_that_lie(value):
    out = io.BytesIO()
    with tarfile.open(fileobj=out, mode="w", format=tarfile.PAX_FORMAT) as archive:
        for i in range(3):
            info = tarfile.TarInfo(f"f{i}")
            info.size = 1000
            info.pax_headers = {"comment": "c", "size": value} if i == 1 else {}
            archive.addfile(info, io.BytesIO(bytes(1000)))
    members = run(out.getvalue())
    assert members[0].name == "f0" and all(m.size <= len(out.getvalue()) for m in members if isinstance(m, Member))


def test_spoilt_tars_raise_nothing_and_do_not_lie():
    rng = random.Random(0)
    inner = make(FILES)
    wholes = [
        make({"x.tar": inner, "y" * 150: b"z" * 3000} | FILES, f) for f in (tarfile.GNU_FORMAT, tarfile.PAX_FORMAT)
    ]
    for _ in range(600):
        data = bytearray(rng.choice(wholes))
        heads = [i for i in range(0, len(data), 512) if data[i + 257 : i + 262] == b"ustar"]
        for _ in range(rng.randrange(1, 5)):
            head = rng.choice(heads)
            at = head + rng.randrange(512)
            data[at] = rng.choice((rng.randrange(256), data[at] ^ (1 << rng.randrange(8))))
            if rng.random() < 0.5:  # with a checksum that is right again, so that the field is believed
                header = bytearray(data[head : head + 512])
                checksummed(header)
                data[head : head + 512] = header
        if rng.random() < 0.2:
            del data[rng.randrange(len(data)) :]
        seen = run(bytes(data))
        for item in seen:
            if isinstance(item, Member):
                assert 0 <= item.start < item.offset <= item.offset + item.size <= len(data)
        assert len(seen) < 60
    for _ in range(30):
        run(rng.randbytes(20_000))
