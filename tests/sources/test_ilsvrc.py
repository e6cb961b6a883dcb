"""ImageNet-1k's val images: what they are called, what says what they are, and one split without the other."""

import gzip
import io
import pickle
import tarfile

import pytest
from archives import SYNSETS, encoded, make_ilsvrc, picture, tar_bytes
from conftest import convert_quietly

from mlpdata import Error
from mlpdata.sources import Broken, ClassFilter, devkit
from mlpdata.sources.imagenet_detect import open_imagenet1k

VAL, DEVKIT, TRAIN = "ILSVRC2012_img_val.tar", "ILSVRC2012_devkit_t12.tar.gz", "ILSVRC2012_img_train.tar"


def members(path):
    with tarfile.open(path) as archive:
        return {m.name: archive.extractfile(m).read() for m in archive}


def read_val(source):
    """({key: wnid}, {origin: reason}) of the val images, read as a worker does."""
    copy = pickle.loads(pickle.dumps(source))
    seen = [s for unit in source.units() if unit.split == "val" for s in copy.samples(unit)]
    found = {s.key: source.classes[s.label][0] for s in seen if not isinstance(s, Broken)}
    return found, {s.origin: s.reason for s in seen if isinstance(s, Broken)}


def test_val_alone_needs_the_val_tar_and_the_devkit_only(tmp_path, monkeypatch):
    truth = make_ilsvrc(tmp_path / "in")
    (tmp_path / "in" / TRAIN).write_bytes(b"not looked at")
    source = open_imagenet1k(tmp_path / "in", ClassFilter(), 64, tmp_path, ("validation",))
    assert [name for name, _ in source.classes] == sorted(SYNSETS)
    assert read_val(source)[0] == {f"ILSVRC2012_val_{i:08d}": wnid for i, wnid in enumerate(truth, 1)}
    assert {unit.split for unit in source.units()} == {"val"} and source.files == [
        str(tmp_path / "in" / VAL),
        str(tmp_path / "in" / DEVKIT),
    ]
    manifest, _ = convert_quietly(
        dataset="imagenet1k", source=str(tmp_path / "in"), res=16, out=tmp_path / "out", splits=("val",), workers=1
    )
    assert {name: s.num_samples for name, s in manifest.splits.items()} == {"val": 12}


def test_train_alone_needs_no_devkit(tmp_path):
    make_ilsvrc(tmp_path / "in")
    (tmp_path / "in" / DEVKIT).unlink()
    source = open_imagenet1k(tmp_path / "in", ClassFilter(), 64, tmp_path, ("train",))
    assert {unit.split for unit in source.units()} == {"train"}


@pytest.mark.parametrize("limit", [3, 15])
def test_so_many_samples_of_each_split(tmp_path, limit):
    make_ilsvrc(tmp_path / "in")  # 20 train, 12 val
    manifest, _ = convert_quietly(
        dataset="imagenet1k", source=str(tmp_path / "in"), res=16, out=tmp_path / "out", limit=limit, workers=1
    )
    counts = {name: s.num_samples for name, s in manifest.splits.items()}
    assert counts == {"train": min(limit, 20), "val": min(limit, 12)}


def test_val_members_that_are_no_val_images_are_listed(tmp_path):
    make_ilsvrc(tmp_path / "in")
    images = list(members(tmp_path / "in" / VAL).items())
    jpeg = encoded(picture(50, 40, 1))
    names = [
        "ILSVRC2012_val_00000013.JPEG",
        "ILSVRC2012_val_00000000.JPEG",
        "val_1.JPEG",
        "._ILSVRC2012_val_00000001.JPEG",
    ]
    out = io.BytesIO()
    with tarfile.open(fileobj=out, mode="w") as archive:
        for name, data in (*images[:11], images[0], *((f"val/{name}", jpeg) for name in names)):
            info = tarfile.TarInfo(name)
            info.size = len(data)
            archive.addfile(info, io.BytesIO(data))
    (tmp_path / "in" / VAL).write_bytes(out.getvalue())
    source = open_imagenet1k(tmp_path / "in", ClassFilter(), 64, tmp_path)
    found, listed = read_val(source)
    assert len(found) == 11 and listed == {
        f"{VAL}/{images[0][0]}": "is there twice",
        f"{VAL}/val/{names[0]}": "has no label: the devkit has 12",
        f"{VAL}/val/{names[1]}": "has no label: the devkit has 12",
        f"{VAL}/val/{names[2]}": "is not named as ILSVRC2012's val images are",
        f"{VAL}/val/{names[3]}": "left there by a system or a tool",
    }
    assert any("lacks 1 of the images" in warning for warning in source.warnings)


def test_val_images_of_classes_that_train_lacks_are_named(tmp_path):
    truth = make_ilsvrc(tmp_path / "in")
    train = members(tmp_path / "in" / TRAIN)
    (tmp_path / "in" / TRAIN).write_bytes(tar_bytes({name: train[name] for name in list(train)[:2]}))
    source = open_imagenet1k(tmp_path / "in", ClassFilter(), 64, tmp_path)
    others = sum(wnid not in dict(source.classes) for wnid in truth)
    assert any(f"{others} images left out, as the train tar lacks their 3 classes" in w for w in source.warnings)
    asked = ClassFilter(classes=tuple(name for name, _ in source.classes))
    assert not open_imagenet1k(tmp_path / "in", asked, 64, tmp_path).warnings


@pytest.mark.parametrize("name", ["val", "Val", "valid", "validation", "dev"])
def test_extracted_val_images_in_one_folder(tmp_path, name):
    truth = make_ilsvrc(tmp_path / "tars")
    for wnid in SYNSETS:
        (tmp_path / "in" / "train" / wnid).mkdir(parents=True)
        (tmp_path / "in" / "train" / wnid / "a.JPEG").write_bytes(encoded(picture(50, 40, 2)))
    (tmp_path / "in" / name).mkdir()
    for file, data in members(tmp_path / "tars" / VAL).items():
        (tmp_path / "in" / name / file).write_bytes(data)
    (tmp_path / "tars" / DEVKIT).rename(tmp_path / "in" / DEVKIT)
    source = open_imagenet1k(tmp_path / "in", ClassFilter(), 64, tmp_path, ("val",))
    found, listed = read_val(source)
    assert found == {f"ILSVRC2012_val_{i:08d}": wnid for i, wnid in enumerate(truth, 1)} and not listed
    assert not source.warnings


def test_class_tars_beside_class_folders_are_refused(tmp_path):
    (tmp_path / "n01440764.tar").write_bytes(tar_bytes({"n01440764_1.JPEG": encoded(picture(50, 40, 1))}))
    (tmp_path / "@eaDir").mkdir()
    assert [name for name, _ in open_imagenet1k(tmp_path, ClassFilter(), 64, tmp_path).classes] == ["n01440764"]
    (tmp_path / "n01443537").mkdir()
    with pytest.raises(Error, match=r"tars and folders, n01440764.tar and n01443537"):
        open_imagenet1k(tmp_path, ClassFilter(), 64, tmp_path)


def devkit_of(tmp_path, change):
    make_ilsvrc(tmp_path / "in")
    path = tmp_path / "in" / DEVKIT
    files = members(path)
    change(files)
    path.write_bytes(gzip.compress(tar_bytes(files)))
    return path


META, TRUTH = (f"ILSVRC2012_devkit_t12/data/{name}" for name in ("meta.mat", "ILSVRC2012_validation_ground_truth.txt"))


@pytest.mark.parametrize(
    ("change", "told"),
    [
        (lambda files: files.pop(META), "it has no 'meta.mat'"),
        (lambda files: files.update({META: files[META][:200]}), "meta.mat cannot be read"),
        (lambda files: files.update({TRUTH: b"39\n77\n"}), "it has no 77"),
        (lambda files: files.update({TRUTH: b"39\nx\n"}), "invalid literal for int"),
        (lambda files: files.update({"bomb": bytes(65 << 20)}), "it has more than 64 MiB"),
    ],
)
def test_a_damaged_devkit_is_one_line(tmp_path, change, told):
    path = devkit_of(tmp_path, change)
    with pytest.raises(Error, match=told) as caught:
        devkit.read_devkit(path)
    assert str(path) in str(caught.value) and "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("does", "told"),
    [
        ("import os; os.abort()", "meta.mat ends its reader"),
        (f"{devkit.READ_META.partition('import numpy')[0]}\nbytearray(3 << 30)", "cannot be read: MemoryError"),
        (devkit.READ_META.partition("import numpy")[0].replace("60", "1") + "\nwhile True: pass", "ends its reader"),
    ],
)
def test_a_matrix_that_ends_its_reader_ends_nothing_else(tmp_path, monkeypatch, does, told):
    path = devkit_of(tmp_path, lambda files: None)
    monkeypatch.setattr(devkit, "READ_META", does)
    with pytest.raises(Error, match=told):
        devkit.read_devkit(path)


@pytest.mark.parametrize(
    "text",
    [
        "ImageId\nx,n01440764 1\n",
        "ImageId\nILSVRC2012_val_00000001,cat 1\n",
        "I\nILSVRC2012_val_00000001,n01440764\nILSVRC2012_val_00000001,n01443537\n",
    ],
)
def test_a_solution_that_is_none(tmp_path, text):
    (tmp_path / "s.csv").write_text(text)
    with pytest.raises(Error, match=r"line [23] is not an image and its wnid"):
        devkit._read_solution(tmp_path / "s.csv")
