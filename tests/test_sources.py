import gzip
import os
import pickle
import zipfile

import numpy as np
import pytest
from conftest import REAL_DATA, make_cifar, make_tinyimagenet

from mlpdata import Error
from mlpdata.sources import Broken, cifar
from mlpdata.sources.blob import PlainFile
from mlpdata.sources.cifar import Cifar
from mlpdata.sources.shapes import Shapes
from mlpdata.sources.tinyimagenet import TinyImageNet
from mlpdata.sources.zipdir import read_directory

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
    columns = (found.entries[name].tolist() for name in ("offset", "packed", "size", "crc"))
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
