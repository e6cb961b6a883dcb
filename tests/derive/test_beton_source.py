"""Betons that others wrote become shard directories: fields, splits, classes, JPEGs and raw images, wrong files."""

import pickle
from functools import partial

import numpy as np
import pytest
from archives import encoded, make_beton, picture
from conftest import Inline, convert_quietly, run_cli

import mlpdata
from mlpdata import Error, datasets
from mlpdata.convert import run
from mlpdata.inspect.verify import verify
from mlpdata.shards import beton, index
from mlpdata.shards.classes import read_classes
from mlpdata.shards.manifest import Manifest
from mlpdata.sources import ClassFilter
from mlpdata.system import disk

PAGE = 1 << 21


@pytest.fixture(autouse=True)
def inline(monkeypatch):
    monkeypatch.setattr(run, "LocalEngine", Inline)


def raw_images(n, size=(24, 20), seed=0):
    return [picture(*size, seed + i) for i in range(n)]


def open_beton(path, **options):
    given = {"res": 16, "seed": 0, **options}
    return datasets.open_source(datasets.get("beton"), str(path), **given)


def read(source):
    """{(split, key): (data, label)} of every sample, as workers read them."""
    worker = pickle.loads(pickle.dumps(source))
    found = {}
    for unit in pickle.loads(pickle.dumps(source.units())):
        samples = list(worker.samples(unit))
        assert len(samples) == unit.num_samples
        found |= {(unit.split, sample.key): sample for sample in samples}
    return found


def test_every_image_with_its_label_whatever_its_place(tmp_path):
    images = raw_images(40)
    jpegs = [encoded(image) for image in images]
    mixed = [pair[i % 2] for i, pair in enumerate(zip(images, jpegs, strict=True))]
    make_beton(tmp_path / "x.beton", mixed, np.arange(40) % 7)
    source = open_beton(tmp_path / "x.beton")
    found = read(source)
    assert len(found) == 40 and source.splits == ("train",)
    for i, image in enumerate(mixed):
        sample = found["train", f"x_{i:08d}"]
        assert sample.label == i % 7 and sample.origin == f"x.beton[{i}]"
        assert np.array_equal(sample.data, image) if isinstance(image, np.ndarray) else sample.data == image
    assert source.warnings == (
        f"{tmp_path / 'x.beton'}: 20 of 40 images are JPEGs, the others are raw; without --codec the tars have PNGs of "
        "all of them",
    )


def test_units_cut_the_rows_without_loss(tmp_path, monkeypatch):
    from mlpdata.derive import beton_source

    images = raw_images(23)
    path = make_beton(tmp_path / "x.beton", images, range(23))
    monkeypatch.setattr(beton_source, "most_samples", lambda res: 5)
    monkeypatch.setattr(beton_source, "READ_BYTES", 3000)  # two images
    source = open_beton(path)
    assert [unit.num_samples for unit in source.units()] == [5, 5, 5, 5, 3]
    found = read(source)
    assert all(np.array_equal(found["train", f"x_{i:08d}"].data, image) for i, image in enumerate(images))
    assert len(pickle.dumps(source)) < 2000  # what the index holds does not go to every worker


def test_fields_of_any_name(tmp_path):
    fields = (("id", 1), ("note", 5), ("img", 2), ("target", 1))
    path = make_beton(tmp_path / "x.beton", raw_images(4), [3, 2, 1, 0], fields)
    with pytest.raises(Error, match=r"which field is the label is not clear; it has 'id' \(int\), 'note' \(JSON\)"):
        open_beton(path)
    source = open_beton(path, label_column="id")
    assert [sample.label for sample in read(source).values()] and source.warnings == (
        f"{path}: field 'img' is taken for the image, the only one of type RGB image",
        f"{path}: fields left out: note, target",
    )
    assert not any("taken for" in line for line in open_beton(path, image_column="img", label_column="id").warnings)
    with pytest.raises(Error, match=r"has not exactly one field 'note' of type int"):
        open_beton(path, label_column="note")
    path = make_beton(tmp_path / "y.beton", raw_images(2), [0, 0], (("image", 2), ("y", 0), ("label", 1)))
    data = bytearray(path.read_bytes())
    data[beton.HEADER.itemsize + 2 * beton.FIELD.itemsize] = 0  # the label is a float
    path.write_bytes(data)
    with pytest.raises(Error, match=r"has no field of type int, as the label is; it has .*'label' \(float\)"):
        open_beton(path)


@pytest.mark.parametrize(
    ("names", "splits"),
    [
        (["imagenet_val.beton"], {"imagenet_val": "val"}),
        (["cifar_train_0.beton", "cifar_train_1.beton", "cifar_test.beton"],
         {"cifar_train_0": "train", "cifar_train_1": "train", "cifar_test": "val"}),
        (["train/a.beton", "valid/a.beton"], {"train/a": "train", "valid/a": "val"}),
        (["data.ffcv", "data.beton"], {"data": "train", "data-2": "train"}),
    ],
)  # fmt: skip
def test_splits_by_the_names_of_files(tmp_path, names, splits):
    for k, name in enumerate(names):
        make_beton(tmp_path / name, raw_images(3, seed=10 * k), [0, 1, 2])
    (tmp_path / "labels.npy").write_bytes(b"")
    source = open_beton(tmp_path)
    found = read(source)
    assert len(found) == 3 * len(names) and {(s, key.rpartition("_")[0]) for s, key in found} == {
        (split, key) for key, split in splits.items()
    }
    assert set(source.splits) == set(splits.values())


def test_patterns_and_files_in_two_splits(tmp_path):
    for name in ("a_train.beton", "b_train.beton", "a_val.beton"):
        make_beton(tmp_path / name, raw_images(2), [0, 1])
    assert len(read(open_beton(tmp_path / "*_train.beton"))) == 4
    make_beton(tmp_path / "train_val.beton", raw_images(2), [0, 1])
    with pytest.raises(Error, match="fits two splits"):
        open_beton(tmp_path)


def test_names_of_classes(tmp_path):
    path = make_beton(tmp_path / "x.beton", raw_images(4), [0, 2, 2, 1])
    assert open_beton(path).classes == [("0", "0"), ("1", "1"), ("2", "2")]
    named = open_beton(path, class_filter=ClassFilter(classes=("n01440764", "cat", "dog", "none")))
    assert named.classes[0] == ("n01440764", "tench, Tinca tinca") and len(named.classes) == 4
    with pytest.raises(Error, match=r"has labels from 0 to 2; --classes names 2 of them"):
        open_beton(path, class_filter=ClassFilter(classes=("cat", "dog")))
    with pytest.raises(Error, match=r"gives names to the labels 0, 1, \.\.\."):
        open_beton(path, class_filter=ClassFilter(classes=("0", "2", "1")))
    with pytest.raises(Error, match="takes only --classes"):
        open_beton(path, class_filter=ClassFilter(val_per_class=1))


def test_labels_that_leave_some_out_are_said(tmp_path):
    path = make_beton(tmp_path / "x.beton", raw_images(4), [1, 2, 2, 4])
    assert open_beton(path).warnings == (f"{path}: no image has the label 0, 3, of 0 to 4",)


def test_a_conversion_keeps_jpegs_of_the_size_and_resizes_the_others(tmp_path):
    images = [picture(16, 16, i) for i in range(12)]
    small = [encoded(image) for image in images]
    large = [encoded(picture(50, 40, i)) for i in range(12)]
    make_beton(tmp_path / "in" / "train.beton", small, np.arange(12) % 3)
    make_beton(tmp_path / "in" / "val.beton", large, np.arange(12) % 3)
    out = tmp_path / "out"
    manifest, _ = convert_quietly(dataset="beton", source=str(tmp_path / "in"), res=16, out=out)
    assert {s: info.num_samples for s, info in manifest.splits.items()} == {"train": 12, "val": 12}
    assert not verify(out)[1].problems
    data = (out / "train-000000.tar").read_bytes()
    kept = [data.find(jpeg.partition(b"\xff\xdb")[2]) for jpeg in small]  # what comes before the tables is cut out
    assert min(kept) > 0 and len(set(kept)) == 12
    got, labels = mlpdata.load(out, "train", 4, format="beton").arrays()
    order = {key: i for i, key in enumerate(index.keys(out, manifest, "train"))}
    for i, image in enumerate(images):
        assert labels[order[f"train_{i:08d}"]] == i % 3
        assert np.abs(got[order[f"train_{i:08d}"]].astype(int) - image).mean() < 8
    assert read_classes(out) == [("0", "0"), ("1", "1"), ("2", "2")]


def test_raw_pixels_stay_as_they_are(tmp_path):
    images = raw_images(30, (16, 16))
    path = make_beton(tmp_path / "x.beton", images, np.arange(30) % 4)
    manifest, _ = convert_quietly(dataset="beton", source=str(path), res=16, out=tmp_path / "out")
    assert manifest.tar_codec == "png" and manifest.fidelity is None
    for format in ("beton", "tar"):
        got, labels = mlpdata.load(tmp_path / "out", "train", 4, format=format).arrays()
        rows = [int(key.rpartition("_")[2]) for key in index.keys(tmp_path / "out", manifest, "train")]
        assert np.array_equal(got, np.stack(images)[rows]) and np.array_equal(labels, np.array(rows) % 4)


def test_a_jpeg_that_does_not_decode_is_listed(tmp_path):
    jpegs = [encoded(picture(20, 20, i)) for i in range(8)]
    jpegs[3] = jpegs[3][:200] + bytes(len(jpegs[3]) - 200)
    path = make_beton(tmp_path / "x.beton", jpegs, [0] * 8)
    manifest, _ = convert_quietly(dataset="beton", source=str(path), res=16, out=tmp_path / "out", max_skipped=0.2)
    assert (manifest.splits["train"].num_samples, manifest.splits["train"].num_skipped) == (7, 1)
    assert "x.beton[3]" in (tmp_path / "out" / "skipped.jsonl").read_text()


def test_what_is_no_beton_of_others(tmp_path, shapes_dir):
    (tmp_path / "text.beton").write_text("no beton at all, and longer than a header is")
    with pytest.raises(Error, match="is not an FFCV beton file"):
        open_beton(tmp_path / "text.beton")
    (tmp_path / "empty").mkdir()
    with pytest.raises(Error, match=r"holds no \.beton or \.ffcv files"):
        open_beton(tmp_path / "empty")
    with pytest.raises(Error, match="is a shard directory of mlpdata: `mlpdata resize`"):
        open_beton(shapes_dir)
    with pytest.raises(Error, match="is a tar: `mlpdata convert wds`"):
        open_beton(shapes_dir / "train-000000.tar")
    (tmp_path / "other").mkdir()
    (tmp_path / "other" / "manifest.json").write_text("{}")  # of a web page, say
    make_beton(tmp_path / "other" / "x.beton", raw_images(2), [0, 1])
    assert len(read(open_beton(tmp_path / "other"))) == 2


@pytest.mark.parametrize("label", [-1, 1 << 40])
def test_labels_that_are_no_classes(tmp_path, label):
    path = make_beton(tmp_path / "x.beton", raw_images(3), [0, label, 1])
    with pytest.raises(Error, match=r"sample 1 has the label"):
        open_beton(path)


def test_a_file_that_shrinks_while_it_is_read(tmp_path):
    path = make_beton(tmp_path / "x.beton", raw_images(3), [0, 1, 2])
    source = open_beton(path)
    with open(path, "r+b") as f:
        f.truncate(PAGE)
    with pytest.raises(Error, match="changed while it was read"):
        read(source)


def test_our_own_betons_are_betons_too(tmp_path):
    pixels = np.stack(raw_images(5, (8, 8))).reshape(5, -1)
    plan = beton.layout(np.full(5, 192), PAGE)
    beton.create(tmp_path / "x.beton", plan, "raw", np.full(5, 192), np.full(5, 8), np.full(5, 8), np.arange(5))
    with open(tmp_path / "x.beton", "r+b") as f:
        beton.write(partial(disk.pwrite, f.fileno()), plan.ptrs, pixels)
    found = read(open_beton(tmp_path / "x.beton"))
    assert [found["train", f"x_{i:08d}"].data.tobytes() for i in range(5)] == [p.tobytes() for p in pixels]


def test_the_command_line(tmp_path):
    make_beton(tmp_path / "x.beton", raw_images(6), [0, 1, 2, 0, 1, 2], (("photo", 2), ("class", 1)))
    words = ["convert", "beton", "--source", tmp_path / "x.beton", "--res", 8, "--out", tmp_path / "out", "--quiet"]
    done = run_cli(*words, "--image-column", "picture")
    assert done.returncode == 1 and "has not exactly one field 'picture'" in done.stderr
    done = run_cli(*words, "--image-column", "photo")
    assert done.returncode == 0 and "field 'class' is taken for the label" in done.stdout + done.stderr
    manifest = Manifest.load(tmp_path / "out")
    assert "convert beton" in manifest.command and "--image-column photo" in manifest.command
