"""CIFAR, STL-10 and Downsampled-ImageNet that differ from the authors' archives: read rightly, said, or one line."""

import io
import os
import pickle
import struct
import tarfile
import zipfile

import numpy as np
import pytest
from archives import make_cifar, make_stl10

from mlpdata import Error
from mlpdata.sources import Broken, ClassFilter, cifar, downsampled
from mlpdata.sources.cifar import Cifar
from mlpdata.sources.imagenet_detect import open_imagenet1k
from mlpdata.sources.stl10 import Stl10

NAMES = [f"c{i}" for i in range(10)]


def read(source):
    copy = pickle.loads(pickle.dumps(source))
    return [s for unit in source.units() for s in copy.samples(unit)]


def listed(source):
    return {s.origin for s in read(source) if isinstance(s, Broken)}


def refused(opens):
    """The one line that a source is refused with, when it is opened or read."""
    with pytest.raises(Error) as caught:
        read(opens())
    assert "\n" not in str(caught.value)
    return str(caught.value)


def put(name, value, protocol=2):
    data = value if isinstance(value, bytes) else pickle.dumps(value, protocol=protocol)
    return lambda files: files.update({name: data})


# ---------------------------------------------------------------------------------------------------------- CIFAR


def moved_pixels():
    """A pickle that tells the unpickler, after the fact, that its pixels lie elsewhere."""
    dtype = (
        b"cnumpy\ndtype\n(X\x02\x00\x00\x00u1K\x00K\x01tR"
        b"(K\x03X\x01\x00\x00\x00|NNNJ\xff\xff\xff\xffJ\xff\xff\xff\xffK\x00tb"
    )
    empty = b"cnumpy.core.multiarray\n_reconstruct\n(cnumpy\nndarray\nK\x00\x85C\x01btR"
    array = empty + b"(K\x01K\x01M\x00\x0c\x86" + dtype + b"\x89"
    pixels = b"B" + struct.pack("<L", 2 << 20) + bytes(2 << 20) + b"J\xff\xff\xff\x7fM\x00\x0c\x86b"
    return b"\x80\x04}(X\x04\x00\x00\x00data" + array + pixels + b"tbX\x06\x00\x00\x00labels]K\x00au."


PIXELS = np.zeros((20, 3072), np.uint8)


@pytest.mark.parametrize(
    ("change", "told"),
    [
        (put("batches.meta", {"label_names": [*NAMES, "z"]}), "has 11 class names"),
        (put("batches.meta", {"label_names": ["a"] * 10}), "10 class names, 1 of them different"),
        (put("batches.meta", {"label_names": [""] * 10}), "0 of them different"),
        (put("batches.meta", {"label_names": []}), "has 0 class names"),
        (put("batches.meta", {"label_names": NAMES, b"label_names": NAMES}), "two values of one name"),
        (put("batches.meta", b"\x80\x02" + b"]" * 100_000 + b"a" * 99_999 + b"."), "holds a list"),
        (put("batches.meta", b"\x80\x04\x95\xff\xff\xff\xff\xff\xff\xff\x7f."), "batches.meta cannot be read"),
        (put("batches.meta", b"\x80\x04\x8e\xff\xff\xff\xff\xff\xff\xff\x7f."), "batches.meta cannot be read"),
        (put("data_batch_1", {"data": PIXELS.astype(float), "labels": [0] * 20}), "no uint8 array"),
        (put("data_batch_1", {"data": PIXELS[:, :-1].copy(), "labels": [0] * 20}), "no uint8 array"),
        (put("data_batch_1", {"data": PIXELS, "labels": [0] * 19}), "no list of 20 labels"),
        (put("data_batch_1", {"data": PIXELS, "labels": [0.0] * 20}), "no list of 20 labels"),
        (put("data_batch_1", {"data": PIXELS, "labels": [True] * 20}), "no list of 20 labels"),
        (put("data_batch_1", {"data": PIXELS, "labels": [2**70] * 20}), "labels outside 0 to 9"),
        (put("data_batch_1", {"data": PIXELS, "labels": [-1] * 20}), "labels outside 0 to 9"),
        (put("data_batch_1", {"data": np.zeros((10_001, 3072), np.uint8), "labels": [0] * 10_001}), "not 10,000"),
        (
            put("data_batch_1", {"data": np.zeros((9_999, 3072), np.uint8), "labels": [0] * 9_999, "x": "x" * 9999}),
            "not 10,000",
        ),
        (put("data_batch_1", moved_pixels()), "it moves its pixels"),
        (lambda files: files.pop("data_batch_3"), "lacks data_batch_3"),
        (lambda files: files.update({"data_batch_3": b""}), "data_batch_3 cannot be read"),
    ],
)
def test_cifar_that_is_not_the_authors(tmp_path, change, told):
    make_cifar(tmp_path / "c.tar.gz", change=change, rows=20)
    assert told in refused(lambda: Cifar(tmp_path / "c.tar.gz", cifar.CIFAR10))


def test_cifar_names_are_as_they_are(tmp_path):
    odd = ["a\nb", "c\x85d", "e\u2028f", b"caf\xe9", "a\tb", '"', "?", "[x]", " ", "x" * 300]
    make_cifar(tmp_path / "c.tar.gz", change=put("batches.meta", {"label_names": odd}), rows=2)
    names = [name for name, _ in Cifar(tmp_path / "c.tar.gz", cifar.CIFAR10).classes]
    assert names == [*odd[:3], "caf%E9", *odd[4:]]


def test_cifar_with_other_members_reads_its_own_and_names_them(tmp_path):
    def change(files):
        files.update({"data_batch_6": files["data_batch_1"], "._data_batch_1": b"x", "../../x": b"x"})

    make_cifar(tmp_path / "c.tar.gz", change=change, rows=2)
    source = Cifar(tmp_path / "c.tar.gz", cifar.CIFAR10)
    top = "cifar-10-batches-py"
    assert listed(source) == {f"{top}/data_batch_6", f"{top}/._data_batch_1", f"{top}/../../x"}
    assert any("data_batch_6" in warning for warning in source.warnings)
    assert any("fewer images than the authors'" in warning for warning in source.warnings)


def test_cifar_with_a_batch_twice(tmp_path):
    make_cifar(tmp_path / "c.tar.gz", rows=2)
    with tarfile.open(tmp_path / "c.tar.gz") as archive:
        files = [(m.name, archive.extractfile(m).read()) for m in archive]
    with tarfile.open(tmp_path / "c.tar.gz", "w:gz") as archive:
        for name, data in (*files, files[0]):
            info = tarfile.TarInfo(name)
            info.size = len(data)
            archive.addfile(info, io.BytesIO(data))
    assert "has data_batch_1 twice" in refused(lambda: Cifar(tmp_path / "c.tar.gz", cifar.CIFAR10))


def test_cifar_extracted_with_a_fifo_beside_it(tmp_path):
    make_cifar(tmp_path / "c.tar.gz", rows=2)
    with tarfile.open(tmp_path / "c.tar.gz") as archive:
        archive.extractall(tmp_path / "out", filter="data")
    folder = tmp_path / "out" / "cifar-10-batches-py"
    os.mkfifo(folder / "pipe")
    source = Cifar(tmp_path / "out", cifar.CIFAR10)
    assert sum(not isinstance(s, Broken) for s in read(source)) == 12
    before = source.stamps()
    (folder / "data_batch_1").write_bytes((folder / "data_batch_2").read_bytes())
    assert source.stamps() != before
    (folder / "data_batch_1").unlink()
    os.mkfifo(folder / "data_batch_1")
    assert "lacks data_batch_1" in refused(lambda: Cifar(tmp_path / "out", cifar.CIFAR10))


# --------------------------------------------------------------------------------------------------------- STL-10


@pytest.mark.parametrize(
    ("change", "told"),
    [
        ({"train_y.bin": b"\0" * 30}, "labels outside 1 to 10"),
        ({"train_y.bin": b"\x0b" * 30}, "labels outside 1 to 10"),
        ({"train_y.bin": b"\1" * 29}, "30 images and 0 bytes, train_y.bin 29 labels"),
        ({"train_X.bin": b"\1" * 100}, "0 images and 100 bytes"),
        ({"train_X.bin": b"", "train_y.bin": b""}, "train_X.bin has no images"),
        ({"class_names.txt": b""}, "has 0 class names"),
        ({"class_names.txt": b"a\n" * 10}, "10 class names, 1 of them different"),
        ({"class_names.txt": "\n".join(NAMES[:9]).encode()}, "has 9 class names"),
        ({"class_names.txt": b"a\n" * (1 << 20)}, "far more than it should"),
    ],
)
def test_stl10_that_is_not_the_authors(tmp_path, change, told):
    make_stl10(tmp_path / "s.tar.gz", change=lambda files: files.update(change))
    assert told in refused(lambda: Stl10(tmp_path / "s.tar.gz"))


def test_stl10_names_other_members_and_counts(tmp_path):
    names = [b"a\x0bb", b"caf\xe9", "e\u2028f".encode(), *(f"c{i}".encode() for i in range(7))]
    change = {"class_names.txt": b"\n".join(names), "more.bin": b"x"}
    make_stl10(tmp_path / "s.tar.gz", change=lambda files: files.update(change))
    source = Stl10(tmp_path / "s.tar.gz")
    assert [name for name, _ in source.classes][:3] == ["a\x0bb", "caf%E9", "e\u2028f"]
    assert listed(source) == {"stl10_binary/more.bin"}
    assert any("train_X.bin has 30 images, the authors' 5,000" in warning for warning in source.warnings)


# ------------------------------------------------------------------------------------------- Downsampled-ImageNet

ROWS = np.random.default_rng(0).integers(0, 256, (40, 192), dtype=np.uint8)


def batch(folder, name="val_data", **changes):
    (folder / name).write_bytes(pickle.dumps({"data": ROWS, "labels": [1] * 40, **changes}, 4))
    return folder / name


def open_(path, splits=()):
    return open_imagenet1k(path, ClassFilter(), 8, path.parent, splits)


def nested(depth, width):
    value = 1
    for _ in range(depth):
        value = [value] * width
    return value


@pytest.mark.parametrize(
    "labels",
    [nested(9, 10), nested(26, 2), [True] * 40, [1.0] * 40, [2**70] * 40, [0] * 40, [1001] * 40, [1] * 39, "1" * 40,
     None, np.ones((40, 1), int), np.ones(40), {i: 1 for i in range(40)}],
)  # fmt: skip
def test_downsampled_labels_that_are_none(tmp_path, labels):
    path = batch(tmp_path, labels=labels)
    assert "has no 40 labels from 1 to 1,000" in refused(lambda: open_(path))


@pytest.mark.parametrize("kind", [np.int64, np.uint16])
def test_downsampled_labels_in_an_array(tmp_path, monkeypatch, kind):
    monkeypatch.setattr(downsampled.pickles, "LARGE_BYTES", 40)
    path = batch(tmp_path, labels=np.arange(1, 41).astype(kind))
    source = open_(path)
    order = downsampled.labels.clsloc()
    assert [source.classes[s.label][0] for s in read(source)] == list(order[:40])
    assert all(unit.exact for unit in source.units())


def npy(header, body):
    text = header.encode()
    text += b" " * (-(len(text) + 11) % 64) + b"\n"
    return b"\x93NUMPY\1\0" + struct.pack("<H", len(text)) + text + body


@pytest.mark.parametrize(
    "shape", ["(10**18, 192)", "(1000000000000000000, 192)", "(-40, 192)", "'ab'", "(40.0, 192)", "(True, 192)",
              "(39, 192)", "(41, 192)", "(40, 193)", "()", "(" * 5000, "(" + "9" * 5000 + ", 192)"]
)  # fmt: skip
def test_downsampled_arrays_that_lie_of_their_shape(tmp_path, shape):
    data = npy(f"{{'descr': '|u1', 'fortran_order': False, 'shape': {shape}, }}", ROWS.tobytes())
    with zipfile.ZipFile(tmp_path / "val_data.npz", "w") as archive:
        archive.writestr("data.npy", data)
        header = "{'descr': '<i8', 'fortran_order': False, 'shape': (40,), }"
        archive.writestr("labels.npy", npy(header, np.ones(40, int).tobytes()))
    refused(lambda: open_(tmp_path / "val_data.npz"))


def test_downsampled_reads_only_the_split_that_is_asked_for(tmp_path):
    batch(tmp_path)
    (tmp_path / "train_data_batch_1").write_bytes(b"\x80 damaged, and not looked into")
    source = open_(tmp_path, ("val",))
    assert {unit.split for unit in source.units()} == {"val"} and len(read(source)) == 40


def test_downsampled_says_which_batches_are_missing(tmp_path):
    batch(tmp_path, "train_data_batch_1")
    batch(tmp_path, "train_data_batch_3")
    assert "has 2 of the 10 batches of train; it lacks 2, 4, 5" in open_(tmp_path).warnings[0]
    batch(tmp_path, "val_data.pkl")
    batch(tmp_path, "val_data")
    assert "two files of val_data" in refused(lambda: open_(tmp_path))


def test_downsampled_members_that_claim_too_much(tmp_path, monkeypatch):
    monkeypatch.setattr(downsampled, "MAX_BATCH_BYTES", 10_000)
    with zipfile.ZipFile(tmp_path / "v.zip", "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("val_data", bytes(20_000))
    assert "claims 20,000 bytes" in refused(lambda: open_(tmp_path / "v.zip"))
