"""WebDataset tars as other tools lay them out, each made by hand: what `mlpdata convert wds` makes of them."""

import io
import json
import tarfile

import numpy as np
import pytest
from archives import encoded, picture
from conftest import Inline, convert_quietly

from mlpdata import Error, datasets
from mlpdata.convert import run
from mlpdata.inspect.verify import verify
from mlpdata.sources import Broken, ClassFilter

CAPTION = {"caption": "a cat on a mat", "url": "http://x/y.jpg", "key": "0", "status": "success", "width": 40}


def make(path, samples, mode="w"):
    """A tar of (name without extension, {extension: text, bytes or JSON object}) in this order."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with tarfile.open(path, mode) as tar:
        for name, members in samples:
            for extension, data in members.items():
                data = json.dumps(data) if isinstance(data, dict) else data
                data = data.encode() if isinstance(data, str) else data
                info = tarfile.TarInfo(f"{name}.{extension}")
                info.size = len(data)
                tar.addfile(info, io.BytesIO(data))


def img(i, kind="JPEG"):
    return encoded(picture(40, 30, i), kind)


def open_wds(path, **options):
    given = {"res": 16, "seed": 0, **options}
    return datasets.open_source(datasets.get("wds"), str(path), **given)


def read(source):
    """({(split, name of the class): how many}, [reasons of what is left out])."""
    found, reasons = {}, []
    for unit in source.units():
        for sample in source.samples(unit):
            if isinstance(sample, Broken):
                reasons.append(sample.reason)
            else:
                kind = (sample.split or unit.split, source.classes[sample.label][0])
                found[kind] = found.get(kind, 0) + 1
    return found, reasons


def img2dataset(root):
    for k in range(2):
        make(root / f"{k:05d}.tar", [
            (f"{k:05d}{i:04d}", {"jpg": img(i), "json": {**CAPTION, "label": i % 2}, "txt": "a cat on a mat"})
            for i in range(4)
        ])  # fmt: skip
        (root / f"{k:05d}.parquet").write_bytes(b"PAR1")
        (root / f"{k:05d}_stats.json").write_text("{}")


def timm(root):
    for split, n in (("train", 2), ("validation", 1)):
        for k in range(n):
            rows = [(f"{('n01440764', 'n01443537')[i % 2]}_{k}{i}", i % 2, i) for i in range(4)]
            samples = [(key, {"cls": str(c), "jpg": img(i), "json": {"label": c}}) for key, c, i in rows]
            make(root / f"imagenet1k-{split}-{k:04d}.tar", samples)


def webdataset_docs(root):
    for split in ("train", "val"):
        make(
            root / f"imagenet-{split}-000000.tar", [(f"{i:06d}", {"cls": str(i % 2), "jpg": img(i)}) for i in range(4)]
        )


def clip_benchmark(root):
    for split in ("train", "test"):
        make(root / split / "0.tar", [(f"s{i:07d}", {"cls": str(i % 2), "webp": img(i, "WEBP")}) for i in range(4)])
        (root / split / "nshards.txt").write_text("1")
    (root / "classnames.txt").write_text("airplane\nbird\n")


def hub_with_features(root):
    rows = [(f"{i:06d}", {"image.png": img(i, "PNG"), "label.cls": str(i % 2)}) for i in range(4)]
    make(root / "data" / "train-00000-of-00001.tar", rows)


def hub_with_json(root):
    rows = [(f"{i}", {"png": img(i, "PNG"), "json": {"label": i % 2, "label_name": "x"}}) for i in range(4)]
    make(root / "train.tar", rows)


def names_in_cls(root):
    make(root / "shard-000000.tar", [(f"{i}", {"jpeg": img(i), "cls": ["cat", "dog"][i % 2]}) for i in range(4)])


def names_in_txt(root):
    make(root / "a.tar", [(f"IMG_{i}", {"JPG": img(i), "TXT": ["cat", "dog"][i % 2]}) for i in range(4)])


def open_clip_with_classes(root):
    for split in ("train", "valid"):
        rows = [(f"{i}", {"jpg": img(i), "json": {**CAPTION, "meta": {"class_id": i % 2}}}) for i in range(4)]
        make(root / split / "000.tar", rows)


def decoded_ppm(root):
    for k in range(2):
        make(root / f"a-{k:06d}.tar", [(f"{k}{i}", {"ppm": img(i, "PPM"), "cls": str(i % 2)}) for i in range(2)])


def x_and_y(root):
    make(root / "train.tar", [(f"{i}", {"x.png": img(i, "PNG"), "y.cls": str(i % 2)}) for i in range(4)])


NUMBERS, PETS = ("0", "1"), ("cat", "dog")
TRAIN = ("train",)
BOTH = ("train", "val")
LAYOUTS = {
    img2dataset: (TRAIN, NUMBERS, 4),
    timm: (BOTH, ("n01440764", "n01443537"), 2),
    webdataset_docs: (BOTH, NUMBERS, 2),
    clip_benchmark: (BOTH, ("airplane", "bird"), 2),
    hub_with_features: (TRAIN, NUMBERS, 2),
    hub_with_json: (TRAIN, NUMBERS, 2),
    names_in_cls: (TRAIN, PETS, 2),
    names_in_txt: (TRAIN, PETS, 2),
    open_clip_with_classes: (BOTH, NUMBERS, 2),
    decoded_ppm: (TRAIN, NUMBERS, 2),
    x_and_y: (TRAIN, NUMBERS, 2),
}


@pytest.mark.parametrize("layout", LAYOUTS, ids=lambda f: f.__name__)
def test_a_layout_is_read(tmp_path, layout):
    layout(tmp_path)
    splits, classes, n = LAYOUTS[layout]
    found, reasons = read(open_wds(tmp_path))
    if layout is timm:
        assert {kind: found.pop(kind) for kind in [("train", c) for c in classes]} == {("train", c): 4 for c in classes}
        splits = ("val",)
    assert found == {(split, c): n for split in splits for c in classes} and not reasons


def test_a_conversion_of_one_is_whole(tmp_path, monkeypatch):
    monkeypatch.setattr(run, "LocalEngine", Inline)
    clip_benchmark(tmp_path / "in")
    manifest, said = convert_quietly(dataset="wds", source=str(tmp_path / "in"), res=16, out=tmp_path / "out")
    assert not verify(tmp_path / "out")[1].problems and manifest.num_classes == 2
    assert any("the classes have the names of classnames.txt" in line for line in said)


def refused(rows, message, path, **options):
    make(path / "train.tar", rows)
    with pytest.raises(Error, match=message):
        open_wds(path, **options)


def number_in_npy():
    file = io.BytesIO()
    np.save(file, np.int64(3))
    return file.getvalue()


@pytest.mark.parametrize(
    ("rows", "message"),
    [
        ([("0", {"jpg": img(0)}), ("1", {"jpg": img(1)})], r"train\.tar has samples of jpg: wanted are"),
        ([("cat/0", {"jpg": img(0)})], r"of class folders, unpacked, `mlpdata convert folder`"),
        ([("0", {"jpg": img(0), "target": "3"})], r"samples of jpg, target: .* --image-column and --label-column name"),
        ([("0", {"jpg": img(0), "label.npy": number_in_npy()})], r"samples of jpg, label\.npy"),
        ([("a", {"0.jpg": img(0)}), ("a", {"1.jpg": img(1)})], r"names are cut at their first dot"),
        (
            [("0", {"a.jpg": img(0), "b.jpg": img(1), "cls": "0"})],
            r"the first has 2 images, a\.jpg and b\.jpg: one has",
        ),
        ([("0", {"txt": "3"})], r"wanted are an image"),
        ([], r"train\.tar is no tar of samples"),
    ],
)
def test_what_is_no_image_with_a_class_is_refused(tmp_path, rows, message):
    refused(rows, message, tmp_path)


def test_captions_and_several_classes_are_listed(tmp_path):
    rows = [("0", {"jpg": img(0), "json": CAPTION}), ("1", {"jpg": img(1), "json": {"label": 1}})]
    make(tmp_path / "a.tar", [*rows, ("2", {"jpg": img(2), "cls": "0 1"}), ("3", {"jpg": img(3), "cls": "[0, 1]"})])
    found, reasons = read(open_wds(tmp_path))
    assert found == {("train", "1"): 1}
    assert reasons[0].startswith("has no class: its JSON has caption, url")
    assert reasons[1:] == ["has several classes (cls: 0 1)", "has several classes (cls: [0, 1])"]


def test_members_that_the_user_chooses(tmp_path):
    rows = [(f"{i}", {"in.jpg": img(i), "out.png": img(9, "PNG"), "cls": "5", "target": str(i % 2)}) for i in range(4)]
    make(tmp_path / "train.tar", rows)
    source = open_wds(tmp_path, image_column="in.jpg", label_column="target")
    assert read(source) == ({("train", "0"): 2, ("train", "1"): 2}, [])
    samples = [sample for unit in source.units() for sample in source.samples(unit)]
    assert [sample.data for sample in samples] == [img(i) for i in range(4)]
    assert read(open_wds(tmp_path, image_column="out.png"))[0] == {("train", "5"): 4}


def test_patterns_braces_and_packed_tars(tmp_path):
    timm(tmp_path)
    found, _ = read(open_wds(tmp_path / "imagenet1k-train-{0000..0001}.tar"))
    assert sum(found.values()) == 8
    with pytest.raises(Error, match=r"train-0002\.tar is not there, which .* lists"):
        open_wds(tmp_path / "imagenet1k-train-{0000..0002}.tar")
    make(tmp_path / "gz" / "train.tgz", [("0", {"jpg": img(0), "cls": "0"})], "w:gz")
    with pytest.raises(Error, match=r"packed tars are not read, unpack"):
        open_wds(tmp_path / "gz")
    with pytest.raises(Error, match=r"is a packed tar"):
        open_wds(tmp_path / "gz" / "train.tgz")
    (tmp_path / "none").mkdir()
    with pytest.raises(Error, match=r"holds no \.tar files"):
        open_wds(tmp_path / "none")


def test_names_for_numbers(tmp_path):
    webdataset_docs(tmp_path)
    named = open_wds(tmp_path, class_filter=ClassFilter(classes=("cat", "dog", "owl")))
    assert [name for name, _ in named.classes] == ["cat", "dog", "owl"]
    assert read(named)[0] == {(split, name): 2 for split in BOTH for name in PETS}
    with pytest.raises(Error, match=r"has classes from 0 to 1; --classes names 1 of them"):
        open_wds(tmp_path, class_filter=ClassFilter(classes=("cat",)))
    assert read(open_wds(tmp_path, class_filter=ClassFilter(classes=("1",))))[0] == {(s, "1"): 2 for s in BOTH}
    (tmp_path / "classnames.txt").write_bytes(b"\xef\xbb\xbfcat\r\ndog\r\n")  # as an editor on Windows saves it
    assert [name for name, _ in open_wds(tmp_path).classes] == ["cat", "dog"]
    for text, why in (("cat\n", "it has 1 name for classes to 1"), ("cat\ncat\n", "it has a name twice")):
        (tmp_path / "classnames.txt").write_text(text)
        unnamed = open_wds(tmp_path)
        assert [name for name, _ in unnamed.classes] == ["0", "1"]
        assert any(f"classnames.txt is not used: {why}" in warning for warning in unnamed.warnings)
    make(tmp_path / "names" / "a.tar", [("0", {"jpg": img(0), "cls": "cat"})])
    with pytest.raises(Error, match="lacks 1 of the 1 class asked for: dog"):
        open_wds(tmp_path / "names", class_filter=ClassFilter(classes=("dog",)))


def test_numbers_that_do_not_begin_at_0_are_said(tmp_path):
    make(tmp_path / "train.tar", [(str(i), {"jpg": img(i), "cls": str(1 + i % 2)}) for i in range(4)])
    source = open_wds(tmp_path)
    assert [name for name, _ in source.classes] == ["1", "2"]
    assert any("class numbers are not 0, 1, 2, ...: the 2 that occur" in warning for warning in source.warnings)


def test_captions_are_no_classes(tmp_path):
    make(tmp_path / "train.tar", [(str(i), {"jpg": img(i), "txt": f"cat number {i}"}) for i in range(8)])
    with pytest.raises(
        Error, match=r"\.txt of its samples are captions, 8 different ones in 8 samples.*--label-column"
    ):
        open_wds(tmp_path)
    assert len(open_wds(tmp_path, label_column="txt").classes) == 8
    make(tmp_path / "train.tar", [(str(i), {"jpg": img(i), "txt": f"cat {i % 4}"}) for i in range(8)])
    assert len(open_wds(tmp_path).classes) == 4


@pytest.mark.parametrize(
    ("data", "what"),
    [
        (b"", "an empty file"),
        (b"<!DOCTYPE html><title>404</title>" * 50, "an HTML page"),
        (b"version https://git-lfs.github.com/spec/v1\n", "a pointer of Git LFS"),
        (bytes(range(256)) * 40, "data of no known format"),
    ],
)
def test_a_file_that_only_is_called_a_tar_is_no_tar(tmp_path, data, what):
    webdataset_docs(tmp_path)
    (tmp_path / "train-000009.tar").write_bytes(data)
    with pytest.raises(Error, match=rf"train-000009\.tar is no tar but {what}.*; get it again, or move it out"):
        open_wds(tmp_path)
    (tmp_path / "train-000009.tar").write_bytes(bytes(10240))  # a tar of no members
    assert read(open_wds(tmp_path))[1] == ["is a tar without samples"]


def test_a_missing_number_is_said(tmp_path):
    for number in (0, 1, 3):
        make(tmp_path / f"train-{number:03d}.tar", [(f"{number}", {"jpg": img(number), "cls": "0"})])
    assert any("missing, by their numbers: train-002.tar" in warning for warning in open_wds(tmp_path).warnings)
    (tmp_path / "train-001.tar").unlink()  # now it may be a choice
    assert not any("missing" in warning for warning in open_wds(tmp_path).warnings)


def test_what_is_ours_or_ffcvs(shapes_dir):
    with pytest.raises(Error, match="is a shard directory of mlpdata"):
        open_wds(shapes_dir)
    with pytest.raises(Error, match="is no tar of samples; `mlpdata convert beton` reads FFCV's files"):
        open_wds(shapes_dir / "train.beton")


@pytest.mark.parametrize("name", ["data-000000.tar", "data-000001.tar", "data-000002.tar"])
def test_a_tar_without_samples_among_others_is_listed(tmp_path, name):
    for k in range(3):
        make(tmp_path / f"data-{k:06d}.tar", [(f"{k}{i}", {"jpg": img(i), "cls": str(i % 2)}) for i in range(4)])
    make(tmp_path / name, [])
    source = open_wds(tmp_path)
    found = [sample for unit in source.units() for sample in source.samples(unit)]
    left_out = [(sample.origin, sample.reason, sample.is_data) for sample in found if isinstance(sample, Broken)]
    assert left_out == [(name, "is a tar without samples", False)] and len(found) == 8 + 1
