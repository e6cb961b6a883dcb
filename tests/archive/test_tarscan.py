import io
import random
import tarfile

import pytest

from mlpdata.archive.tarscan import Damage, Member, Special, next_member, scan


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


# ------------------------------------------------------------------------------------------------- zeros and the end


def names_and_words(data):
    """(names of members, Damage that lost something, other Damage)."""
    seen = run(data)
    damage = [m for m in seen if isinstance(m, Damage)]
    return (
        [m.name for m in seen if isinstance(m, Member)],
        [d for d in damage if d.lost],
        [d for d in damage if not d.lost],
    )


@pytest.mark.parametrize("format_", [tarfile.GNU_FORMAT, tarfile.PAX_FORMAT, tarfile.USTAR_FORMAT])
def test_a_zeroed_block_is_never_the_end(format_):
    """Whichever block of headers is zeroed, what is lost for it is told and nothing else is missing."""
    files = {f"{'deep/' * 30 if i % 3 == 1 else ''}f{i}.jpg": bytes([65 + i]) * (i * 400) for i in range(8)}
    if format_ == tarfile.USTAR_FORMAT:
        files = FILES
    data = make(files, format_)
    members = [m for m in run(data) if isinstance(m, Member)]
    assert [m.name for m in members] == list(files)
    for m in members:
        for at in range(m.start, m.offset, 512):
            spoilt = data[:at] + bytes(512) + data[at + 512 :]
            names, lost, _ = names_and_words(spoilt)
            assert names == [n for n in files if n != m.name] and lost, (m.name, at)


def test_zeros_to_the_end_are_the_end_unless_they_are_too_many():
    data = make(FILES)
    last = [m for m in run(data) if isinstance(m, Member)][-1]
    for blocks in (1, 2, 5, 20, 40):  # a padding of any usual size
        padded = data[: last.offset + -(-last.size // 512) * 512] + bytes(512 * blocks)
        assert names_and_words(padded) == (list(FILES), [], [])
    names, lost, words = names_and_words(data + bytes(100_000))
    assert (names, lost) == (list(FILES), []) and "unfinished download" in words[0].reason
    names, lost, words = names_and_words(data + bytes(3 << 20))
    assert names == list(FILES) and "unfinished download" in lost[0].reason and lost[0].last
    # A file that is zeros from some byte on, as one that was allocated and not filled.
    hole = data[: data.index(b"f4.jpg")] + bytes(40_000)
    names, lost, words = names_and_words(hole)
    assert names == list(FILES)[:4] and words


def test_tars_behind_tars_are_read_with_a_word():
    one, two = make({"a.jpg": b"a" * 700}), make({"b.jpg": b"b"})
    bare = one[: 512 * 3 + 512] + bytes(1024)  # an end mark alone, as some writers leave it
    for first in (one, bare):
        names, lost, words = names_and_words(first + two + one)
        assert names == ["a.jpg", "b.jpg", "a.jpg"] and not lost
        assert len(words) == 2 and "more headers behind it" in words[0].reason
    # Zeros of another size were something else: here a whole member.
    files = {f"f{i}": b"x" * 3000 for i in range(5)}
    data = make(files)
    hit = data.index(b"f2")
    names, lost, _ = names_and_words(data[:hit] + bytes(512 + 3072) + data[hit + 512 + 3072 :])
    assert names == ["f0", "f1", "f3", "f4"] and "zeros" in lost[0].reason
    # One block alone is no end mark either.
    data = make({"a": b"", "b": b"", "c": b""})
    names, lost, _ = names_and_words(data[:1024] + bytes(512) + data[1536:])
    assert names == ["a", "c"] and len(lost) == 1


def test_a_tar_cut_at_a_member_has_no_end_mark():
    data = make(FILES)
    for name in ("f3.jpg", "f7.jpg"):
        at = data.index(name.encode())
        names, lost, words = names_and_words(data[:at])
        assert names == list(FILES)[: int(name[1])] and not lost
        assert "without an end mark" in words[0].reason and str(at) in words[0].reason
        # A piece of a tar needs no end mark.
        assert not [m for m in scan(lambda o, n: data[o : o + n], 0, at, whole=False) if isinstance(m, Damage)]
        # Where the end is not known, as in a gzip stream: the same, and a file that is cut is told from it.
        cut = data[:at]
        seen = list(scan(lambda o, n, cut=cut: cut[o : o + n], 0, 1 << 62))
        assert isinstance(seen[-1], Damage) and not seen[-1].last and not seen[-1].lost
    cut = data[: data.index(b"f6.jpg") - 700]
    assert list(scan(lambda o, n: cut[o : o + n], 0, 1 << 62))[-1].last


def test_garbage_behind_the_end_is_told():
    data = make(FILES)
    names, lost, _ = names_and_words(data + b"garbage" * 1000)
    assert names == list(FILES) and len(lost) == 1 and not lost[0].last


def test_time_is_linear_in_damage_and_holes():
    """What is read to find what follows damage: a few bytes for each of the archive, however much of it is bad."""
    good = tarfile.TarInfo("x.jpg").tobuf(tarfile.USTAR_FORMAT)
    for data in ((good + b"\xff" * 512) * 4000, (good + bytes(512)) * 4000, good + bytes(4 << 20) + good):
        num_read = 0

        def read_at(offset, size, data=data):
            nonlocal num_read
            num_read += size
            return data[offset : offset + size]

        seen = list(scan(read_at, 0, len(data)))
        assert num_read < 12 * len(data)
        assert sum(isinstance(m, Member) for m in seen) == data.count(good)


# ------------------------------------------------------------------------------------------- what is no plain file


def special(name, kind, link="", size=0, data=b"", **fields):
    info = tarfile.TarInfo(name)
    info.type, info.linkname, info.size = kind, link, size
    for field, value in fields.items():
        setattr(info, field, value)
    return info.tobuf(tarfile.GNU_FORMAT) + data + bytes(-len(data) % 512)


def test_what_is_no_plain_file_is_told():
    plain = special("plain.jpg", tarfile.REGTYPE, size=3, data=b"abc")
    sparse = bytearray(special("sparse.jpg", tarfile.GNUTYPE_SPARSE, size=600))
    sparse[482] = 1  # its list goes on in a block
    checksummed(block := sparse[:512])
    parts = [
        special("hard.jpg", tarfile.LNKTYPE, "plain.jpg"),
        special("hard2.jpg", tarfile.LNKTYPE, "plain.jpg", size=5000),  # no data follows: star writes such
        special("soft.jpg", tarfile.SYMTYPE, "x" * 150),
        special("pipe", tarfile.FIFOTYPE),
        special("device", tarfile.CHRTYPE),
        special("folder", tarfile.DIRTYPE),
        bytes(block) + bytes(512) + b"s" * 600 + bytes(424),
        special("rest.jpg", b"M", size=600, data=b"m" * 600),
        special("label", b"V"),
        special("contiguous.jpg", b"7", size=3, data=b"abc"),
    ]
    seen = run(plain.join(parts) + plain + bytes(1024))
    assert not [m for m in seen if isinstance(m, Damage)]
    assert [m.name for m in seen if isinstance(m, Member)] == ["plain.jpg"] * 9 + ["contiguous.jpg", "plain.jpg"]
    specials = {m.name: (m.reason, m.target) for m in seen if isinstance(m, Special)}
    assert specials == {
        "hard.jpg": ("a hard link", "plain.jpg"),
        "hard2.jpg": ("a hard link", "plain.jpg"),
        "soft.jpg": ("a symbolic link", "x" * 150),
        "pipe": ("a FIFO", ""),
        "device": ("a device", ""),
        "sparse.jpg": ("a sparse file", ""),
        "rest.jpg": ("the rest of a file that begins in another volume", ""),
    }


def test_sparse_files_of_posix_headers_are_told():
    out = io.BytesIO()
    with tarfile.open(fileobj=out, mode="w", format=tarfile.PAX_FORMAT, pax_headers={"comment": "global"}) as archive:
        info = tarfile.TarInfo("GNUSparseFile.0/x.jpg")
        info.size, info.pax_headers = 3, {"GNU.sparse.major": "1", "GNU.sparse.name": "x.jpg"}
        archive.addfile(info, io.BytesIO(b"abc"))
    [item] = run(out.getvalue())
    assert (item.name, item.reason) == ("x.jpg", "a sparse file")


def test_names_that_are_no_utf_8_stay_apart():
    for format_ in (tarfile.USTAR_FORMAT, tarfile.GNU_FORMAT):
        out = io.BytesIO()
        with tarfile.open(fileobj=out, mode="w", format=format_, encoding="latin-1") as archive:
            for name in ("caf\xe9", "caf\xe8"):
                archive.addfile(tarfile.TarInfo(f"{name * (20 if format_ == tarfile.GNU_FORMAT else 1)}.jpg"))
        names = [m.name for m in run(out.getvalue())]
        assert len(set(names)) == 2 and names[0].encode("utf-8", "surrogateescape").endswith(b"caf\xe9.jpg")


def test_a_size_that_leads_out_of_the_archive_costs_one_member():
    data = bytearray(make(FILES))
    hit = data.index(b"f5.jpg")
    data[hit + 124 : hit + 136] = b"77777777777\0"
    header = bytearray(data[hit : hit + 512])
    checksummed(header)
    data[hit : hit + 512] = header
    names, lost, _ = names_and_words(bytes(data))
    assert names == [n for n in FILES if n != "f5.jpg"] and len(lost) == 1 and not lost[0].last


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
