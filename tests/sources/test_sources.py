import gzip
import os
import pickle
import struct
import warnings
import zipfile

import numpy as np
import pytest
from archives import WNIDS, encoded, make_cifar, make_tinyimagenet, picture
from conftest import REAL_DATA

from mlpdata import Error, datasets
from mlpdata.archive.blob import PlainFile
from mlpdata.archive.zip import read_directory
from mlpdata.sources import Broken, Sample, cifar
from mlpdata.sources.cifar import Cifar
from mlpdata.sources.shapes import Shapes
from mlpdata.sources.tinyimagenet import TinyImageNet

LAYOUTS = {"cifar10": cifar.CIFAR10, "cifar100": cifar.CIFAR100}


def read(source, split):
    """Every sample of a split, read as a worker does: from a pickled copy of the source."""
    copy = pickle.loads(pickle.dumps(source))
    return [sample for unit in source.units() if unit.split == split for sample in copy.samples(unit)]


# ---------------------------------------------------------------------------------------------------------- CIFAR


@pytest.mark.parametrize("layout", ["cifar10", "cifar100"])
@pytest.mark.parametrize("python2", [False, True])
def test_cifar_pixels_and_labels(tmp_path, layout, python2):
    path = tmp_path / "c.tar.gz"
    expected = make_cifar(path, layout, python2=python2)
    source = Cifar(path, LAYOUTS[layout])
    for split, (images, labels) in expected.items():
        samples = read(source, split)
        assert np.array_equal(np.stack([s.data for s in samples]), images)
        assert [s.label for s in samples] == labels
        assert len({s.key for s in samples}) == len(samples)
        assert not any("." in s.key for s in samples)
    assert source.classes[3] == (("class3",) * 2 if layout == "cifar10" else ("fine3",) * 2)


def test_cifar_from_its_extracted_folder(tmp_path):
    import tarfile

    expected = make_cifar(tmp_path / "c.tar.gz")
    with tarfile.open(tmp_path / "c.tar.gz") as archive:
        archive.extractall(tmp_path / "out", filter="data")
    samples = read(Cifar(tmp_path / "out", cifar.CIFAR10), "val")
    assert np.array_equal(np.stack([s.data for s in samples]), expected["val"][0])


class Attack:
    def __reduce__(self):
        return os.system, ("touch /tmp/mlpdata-was-here",)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda files: files.pop("data_batch_3"), "lacks data_batch_3"),
        (lambda files: files.update({"data_batch_1": b"garbage"}), "data_batch_1 cannot be read"),
        (lambda files: files.update({"data_batch_1": pickle.dumps(Attack())}), "asks for posix.system"),
        (lambda files: files.update({"data_batch_1": pickle.dumps({"data": [1]}, 2)}), "no uint8 array"),
        (
            lambda files: files.update(
                {"data_batch_1": pickle.dumps({"data": np.zeros((2, 3072), np.uint8), "labels": [0, 10]}, 2)}
            ),
            "labels outside 0 to 9",
        ),
    ],
)
def test_cifar_damage_is_named(tmp_path, change, message):
    path = tmp_path / "c.tar.gz"
    make_cifar(path, change=change)
    with pytest.raises(Error, match=message) as caught:
        read(Cifar(path, cifar.CIFAR10), "train")
    assert "c.tar.gz" in str(caught.value) and "\n" not in str(caught.value)


def test_cifar_wrong_truncated_and_missing_archives(tmp_path):
    make_cifar(tmp_path / "c100.tar.gz", "cifar100")
    with pytest.raises(Error, match="is not cifar-10-batches-py: it holds cifar-100-python/"):
        Cifar(tmp_path / "c100.tar.gz", cifar.CIFAR10)
    make_cifar(tmp_path / "c.tar.gz", rows=300)
    data = (tmp_path / "c.tar.gz").read_bytes()
    for share in (0.3, 0.7, 0.99):
        (tmp_path / "cut.tar.gz").write_bytes(data[: int(len(data) * share)])
        with pytest.raises(Error, match=r"cut.tar.gz"):
            read(Cifar(tmp_path / "cut.tar.gz", cifar.CIFAR10), "train")
    (tmp_path / "plain.tar.gz").write_bytes(b"this is no gzip file at all")
    with pytest.raises(Error, match="not a gzip archive"):
        Cifar(tmp_path / "plain.tar.gz", cifar.CIFAR10)
    (tmp_path / "other.tar.gz").write_bytes(gzip.compress(b"hello" * 1000))
    with pytest.raises(Error, match=r"other.tar.gz"):
        Cifar(tmp_path / "other.tar.gz", cifar.CIFAR10)
    with pytest.raises(Error, match=r"none.tar.gz"):
        Cifar(tmp_path / "none.tar.gz", cifar.CIFAR10)


# --------------------------------------------------------------------------------------------------- TinyImageNet


def test_tinyimagenet_inside_the_zip(tmp_path):
    path = tmp_path / "t.zip"
    expected = make_tinyimagenet(path)
    source = TinyImageNet(path)
    assert source.classes == [
        ("n01443537", "goldfish, Carassius auratus"),
        ("n02124075", "Egyptian cat"),
        ("n04067472", "n04067472"),
    ]
    for split in ("train", "val"):
        samples = read(source, split)
        assert {s.key: (bytes(s.data), s.label) for s in samples} == expected[split]
    assert {u.split for u in source.units()} == {"train", "val"}


def test_tinyimagenet_damage_costs_one_image(tmp_path):
    path = tmp_path / "t.zip"
    expected = make_tinyimagenet(path)
    data = bytearray(path.read_bytes())
    hit = data.index(expected["train"]["n01443537_1"][0])
    data[hit + 700] ^= 0xFF
    path.write_bytes(data)
    samples = read(TinyImageNet(path), "train")
    broken = [s for s in samples if isinstance(s, Broken)]
    assert [b.origin.rsplit("/", 1)[1] for b in broken] == ["n01443537_1.JPEG"]
    assert "CRC" in broken[0].reason
    assert len(samples) - len(broken) == len(expected["train"]) - 1


def test_tinyimagenet_lying_headers(tmp_path):
    path = tmp_path / "t.zip"
    make_tinyimagenet(path)
    with zipfile.ZipFile(path) as archive:
        info = archive.getinfo("tiny-imagenet-200/train/n01443537/images/n01443537_0.JPEG")
    data = bytearray(path.read_bytes())
    for size in (0xFFFFFFF0, 10):
        changed = data.copy()
        entry = changed.index(info.filename.encode(), changed.index(b"PK\x01\x02")) - 46
        changed[entry + 24 : entry + 28] = size.to_bytes(4, "little")
        path.write_bytes(changed)
        assert sum(isinstance(s, Broken) for s in read(TinyImageNet(path), "train")) == 1


def test_tinyimagenet_wrong_and_truncated_archives(tmp_path):
    path = tmp_path / "t.zip"
    make_tinyimagenet(path)
    (tmp_path / "cut.zip").write_bytes(path.read_bytes()[:5000])
    with pytest.raises(Error, match=r"cut.zip is no whole zip archive"):
        TinyImageNet(tmp_path / "cut.zip")
    with zipfile.ZipFile(tmp_path / "other.zip", "w") as archive:
        archive.writestr("hello.txt", "x")
    with pytest.raises(Error, match=r"is not tiny-imagenet-200.zip"):
        TinyImageNet(tmp_path / "other.zip")
    with pytest.raises(Error, match=r"cannot read .*none.zip: No such file"):
        TinyImageNet(tmp_path / "none.zip")


def zip_as(path, change=None, more=(), top="tiny-imagenet-200/"):
    """A small TinyImageNet of which files are changed ({name: bytes}), with more members ((name, bytes), ...)."""
    made = make_tinyimagenet(path, change=change)
    with zipfile.ZipFile(path) as archive:
        files = [(name.replace("tiny-imagenet-200/", top, 1), archive.read(name)) for name in archive.namelist()]
    with warnings.catch_warnings(), zipfile.ZipFile(path, "w") as archive:
        warnings.simplefilter("ignore")  # of names that are there twice
        for name, data in (*files, *more):
            archive.writestr(name, data)
    return made


def listed(source):
    return {b.origin: (b.reason, b.is_data) for s in ("train", "val") for b in read(source, s) if isinstance(b, Broken)}


def test_tinyimagenet_members_that_are_none_of_it_are_listed(tmp_path):
    top, jpeg = "tiny-imagenet-200/", encoded(picture(64, 64, 7))
    more = {
        f"{top}train/n01443537/images/n01443537_0.JPEG": ("is there twice", True),
        f"{top}train/n01443537/images/../../../../etc/x.JPEG": ("is not in tiny-imagenet-200/", True),
        "/etc/x.JPEG": ("is not in tiny-imagenet-200/", True),
        "other/a.JPEG": ("is not in tiny-imagenet-200/", True),
        "__MACOSX/tiny-imagenet-200/._wnids.txt": ("left there by a system or a tool", False),
        f"{top}train/n01443537/images/._n01443537_0.JPEG": ("left there by a system or a tool", False),
        f"{top}README.md": ("is no part of the data set", False),
        f"{top}train/n99999999/images/n99999999_0.JPEG": ("no class is given for it", True),
        f"{top}val/images/val_77.JPEG": ("no class is given for it", True),
    }
    expected = zip_as(tmp_path / "t.zip", more=[(name, jpeg) for name in more])
    source = TinyImageNet(tmp_path / "t.zip")
    assert listed(source) == more
    for split in ("train", "val"):
        found = {s.key: (bytes(s.data), s.label) for s in read(source, split) if not isinstance(s, Broken)}
        assert found == expected[split]
    assert any("members left out" in warning for warning in source.warnings)
    assert all(u.num_samples == len(list(source.samples(u))) for u in source.units() if u.exact)


def test_tinyimagenet_files_of_any_name_and_keys_that_meet(tmp_path):
    top, jpeg = "tiny-imagenet-200/train/", encoded(picture(64, 64, 7))
    names = ["n01443537/images/x.png", "n01443537/y.jpg", "n02124075/images/x.JPEG", "n02124075/images/x.jpg",
             "n02124075/images/deep/a\u2028.b"]  # fmt: skip
    expected = zip_as(tmp_path / "t.zip", more=[(top + name, jpeg) for name in names])
    source = TinyImageNet(tmp_path / "t.zip")
    found = {s.key: source.classes[s.label][0] for s in read(source, "train") if s.key not in expected["train"]}
    assert found == {
        "n01443537/x": "n01443537",
        "n01443537/y": "n01443537",
        "n02124075/x": "n02124075",
        "n02124075/x-2": "n02124075",
        "n02124075/a%E2%80%A8": "n02124075",
    }


@pytest.mark.parametrize("top", ["", "data/tiny-imagenet-200/", "tiny/"])
def test_tinyimagenet_below_any_folder(tmp_path, top):
    expected = zip_as(tmp_path / "t.zip", top=top)
    source = TinyImageNet(tmp_path / "t.zip")
    assert not listed(source) and {s.key for s in read(source, "train")} == set(expected["train"])


def test_tinyimagenet_names_that_are_no_utf8(tmp_path):
    name = "tiny-imagenet-200/train/n01443537/images/n01443537_é"
    zip_as(tmp_path / "t.zip", more=[(f"{name}1.JPEG", encoded(picture(64, 64, 7)))])
    data = (tmp_path / "t.zip").read_bytes()
    (tmp_path / "t.zip").write_bytes(data.replace("é1".encode(), b"\xe91\xff"))
    found = [s for s in read(TinyImageNet(tmp_path / "t.zip"), "train") if "%" in s.key]
    assert [(s.key, s.origin.rpartition("/")[2]) for s in found] == [("n01443537_%E91%FF", "n01443537_%E91%FF.JPEG")]


@pytest.mark.parametrize(
    ("change", "told"),
    [
        ({"wnids.txt": b"n01443537\nfish\n"}, "wnids.txt has a line that is no wnid: fish"),
        ({"other/wnids.txt": b"n01443537\n"}, "of wnids.txt it has several"),
        ({"val/val_annotations.txt": b"val_0.JPEG n01443537\n"}, "line 1 that is not a file, a TAB and a class"),
        ({"val/val_annotations.txt": b"a\tn01443537\na\tn02124075\n"}, "gives two classes to a"),
        ({"words.txt": bytes(17 << 20)}, "words.txt claims 17825792 bytes"),
    ],
)
def test_tinyimagenet_lists_that_are_none(tmp_path, change, told):
    zip_as(tmp_path / "t.zip", change=lambda files: files.update(change))
    with pytest.raises(Error, match=told):
        TinyImageNet(tmp_path / "t.zip")


def test_tinyimagenet_of_which_something_is_missing_says_so(tmp_path):
    def change(files):
        for name in list(files):
            if "/n04067472/" in name or name == "val/images/val_1.JPEG":
                del files[name]

    zip_as(tmp_path / "t.zip", change=change)
    told = TinyImageNet(tmp_path / "t.zip").warnings
    assert any("1 class of wnids.txt without train images: n04067472" in warning for warning in told)
    assert any("lacks 1 of the 5 val images" in warning for warning in told)


def test_tinyimagenet_extracted(tmp_path):
    expected = make_tinyimagenet(tmp_path / "t.zip")
    with zipfile.ZipFile(tmp_path / "t.zip") as archive:
        archive.extractall(tmp_path / "out")
    for given in (tmp_path / "out", tmp_path / "out" / "tiny-imagenet-200"):
        source = datasets.open_source(datasets.get("tinyimagenet"), str(given), res=64, seed=0)
        assert source.release == "tiny-imagenet-200" and [n for n, _ in source.classes] == sorted(WNIDS)
        for split in ("train", "val"):
            found = {
                (s.origin.rpartition("/")[2][:-5], s.data, s.label)
                for s in read(source, split)
                if isinstance(s, Sample)
            }
            assert found == {(key, data, label) for key, (data, label) in expected[split].items()}


def test_zip_members_with_numbers_of_64_bits(tmp_path):
    path = tmp_path / "a.zip"
    with zipfile.ZipFile(path, "w") as archive:
        for i in range(3):
            archive.writestr(f"{i}", b"x" * (i + 1))
    data = bytearray(path.read_bytes())
    at, end = data.index(b"PK\1\2"), data.rindex(b"PK\5\6")
    entries, whole = [], read_directory(PlainFile(path))
    for _ in range(3):
        size, name = data[at + 20 : at + 28], data[at + 46 : at + 47]
        packed, unpacked = struct.unpack("<LL", size)
        extra = struct.pack("<HHQQ", 1, 16, unpacked, packed)
        entry = bytearray(data[at : at + 46])
        entry[20:28] = b"\xff" * 8
        entry[30:32] = struct.pack("<H", 4 + 2 + len(extra))
        entries.append(bytes(entry) + name + struct.pack("<HHH", 7, 2, 9) + extra)
        at += 47
    directory = b"".join(entries)
    start = data.index(b"PK\1\2")
    path.write_bytes(
        data[:start] + directory + data[end : end + 12] + struct.pack("<L", len(directory)) + data[end + 16 :]
    )
    found = read_directory(PlainFile(path))
    assert found.names == whole.names and found.members.tolist() == whole.members.tolist()


@pytest.mark.parametrize(
    "members", [3, 70_000], ids=["plain", "zip64"]
)  # beyond 65,535 the directory's end has 64 bits
def test_zip_directories_are_read_as_zipfile_reads_them(tmp_path, members):
    path = tmp_path / "a.zip"
    path.write_bytes(b"something before it")
    with zipfile.ZipFile(path, "a") as archive:
        archive.comment = b"PK\x05 a comment"
        for i in range(members):
            archive.writestr(f"folder/é{i}" if i < 2 else f"{i}", b"x" * (i % 7))
    with zipfile.ZipFile(path) as archive:
        expected = [(e.filename, e.header_offset, e.compress_size, e.file_size, e.CRC) for e in archive.infolist()]
    found = read_directory(PlainFile(path))
    columns = (found.members[name].tolist() for name in ("offset", "packed", "size", "crc"))
    assert list(zip(found.names, *columns, strict=True)) == expected


def test_damaged_zip_directories_are_one_error(tmp_path):
    path = tmp_path / "t.zip"
    make_tinyimagenet(path)
    data = path.read_bytes()
    directory = data.index(b"PK\x01\x02")
    rng, errors = np.random.default_rng(0), 0
    for _ in range(300):
        changed = bytearray(data)
        for at in rng.integers(directory, len(data), 3):
            changed[at] = rng.integers(256)
        path.write_bytes(changed)
        try:
            read(TinyImageNet(path), "train")
        except Error as e:
            errors += 1
            assert "\n" not in str(e)
    assert errors


# --------------------------------------------------------------------------------------------------------- shapes


def test_shapes_are_the_same_every_time_and_differ_by_seed():
    def images(seed, res=16, n=600):
        source = Shapes(res, seed, n, 100)
        return {s.key: (s.data, s.label) for split in ("train", "val") for s in read(source, split)}

    first, again, other, fewer = images(0), images(0), images(1), images(0, n=550)
    assert len(first) == 700
    assert all(np.array_equal(first[k][0], again[k][0]) and first[k][1] == again[k][1] for k in first)
    assert sum(np.array_equal(first[k][0], other[k][0]) for k in first) == 0
    assert all(np.array_equal(first[k][0], fewer[k][0]) for k in fewer)
    assert first["train_000000"][0].shape == (16, 16, 3)
    assert len({label for _, label in first.values()}) == 10
    assert len({image.tobytes() for image, _ in first.values()}) == 700


# ------------------------------------------------------------------------------------------------------ real data


@pytest.mark.skipif(not (REAL_DATA / "tiny-imagenet-200.zip").exists(), reason="the real archives are not at hand")
def test_real_tinyimagenet():
    source = TinyImageNet(REAL_DATA / "tiny-imagenet-200.zip")
    assert len(source.classes) == 200
    units = source.units()
    assert sum(u.num_samples for u in units if u.split == "val") == 5000
    samples = list(source.samples(units[0]))
    assert all(s.key.startswith(source.classes[s.label][0]) for s in samples)
