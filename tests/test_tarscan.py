import io
import tarfile

import pytest

from mlpdata.sources.tarscan import Damage, Member, scan


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
