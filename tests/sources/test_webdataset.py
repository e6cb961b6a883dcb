"""WebDataset tars that are not as timm's: splits, keys, labels, members, tables of splits."""

import io
import json
import tarfile

import pytest
from archives import encoded, picture, tar_bytes
from conftest import convert_quietly, read_jsonl

from mlpdata import Error, labels
from mlpdata.shards.classes import read_classes
from mlpdata.sources import Broken, ClassFilter
from mlpdata.sources.webdataset import WebDataset, find

JPEG, PNG = encoded(picture(24, 20, 1)), encoded(picture(24, 20, 2), "PNG")


def shard(*keys, label=0, **members):
    """A tar of samples with a jpg and a cls each, or with the members given: {extension with _ for dots: bytes}."""
    members = members or {"jpg": JPEG, "cls": b"%d" % label}
    files = {f"{key}.{e.replace('_', '.')}": data for key in keys for e, data in members.items()}
    return tar_bytes(files, tarfile.PAX_FORMAT)


def write(folder, tars):
    for name, data in tars.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(data)
    return folder


def open_(path, lists=(), **options):
    return WebDataset(path, find(path), ClassFilter(**options), 64, lists)


def read(source):
    """{(split, key): (class, bytes)} and the Broken."""
    found, broken = {}, []
    for unit in source.units():
        for s in source.samples(unit):
            if isinstance(s, Broken):
                broken.append(s)
                continue
            at = (s.split or unit.split, s.key)
            assert at not in found and at[0] in unit.splits and set(unit.splits) <= set(source.splits)
            assert (s.key + s.origin).encode() and s.origin.isprintable()
            found[at] = (source.classes[s.label][0], s.data)
    return found, broken


def splits_of(source):
    """{split: sorted keys}."""
    found: dict[str, list[str]] = {}
    for split, key in read(source)[0]:
        found.setdefault(split, []).append(key)
    return {split: sorted(keys) for split, keys in found.items()}


# ------------------------------------------------------------------------------------------------------------ splits


@pytest.mark.parametrize(
    ("train", "other", "split"),
    [
        ("train0000.tar", "val0000.tar", "val"),
        ("training-000.tar", "validation-00000-of-00007.tar", "val"),
        ("Train-0.TAR", "Val-3.tar", "val"),
        ("a-train-0.tar", "a-dev-0.tar", "val"),
        ("x_train_0.tar", "x_eval_0.tar", "val"),
        ("train.tar", "testing.tar", "val"),
        ("train/0000.tar", "test/0000.tar", "val"),
        ("training/s.tar", "validation/s.tar", "val"),
    ],
)
def test_splits_by_names_of_any_spelling(tmp_path, train, other, split):
    source = open_(write(tmp_path, {train: shard("a", "b"), other: shard("a", "c")}))
    assert splits_of(source) == {"train": ["a", "b"], split: ["a", "c"]}
    assert any("'test' is called 'val'" in line for line in source.warnings) == ("test" in other)


def test_three_splits_and_two_names_of_one(tmp_path):
    names = {"train-0.tar": "a", "val-0.tar": "b", "test-0.tar": "c", "dev-0.tar": "d", "valid-1.tar": "e"}
    source = open_(write(tmp_path, {name: shard(key) for name, key in names.items()}))
    assert splits_of(source) == {"train": ["a"], "val": ["b", "d", "e"], "test": ["c"]}


def test_tars_that_name_no_split_or_two(tmp_path):
    source = open_(write(tmp_path / "a", {"0.tar": shard("a"), "val-0.tar": shard("b")}))
    assert splits_of(source) == {"train": ["a"], "val": ["b"]}
    assert any("0.tar name no split and are taken for train" in line for line in source.warnings)
    assert any("taken for train" in line for line in open_(write(tmp_path / "b", {"0.tar": shard("a")})).warnings)
    with pytest.raises(Error, match="fits two splits, test and train"):
        open_(write(tmp_path / "c", {"train-test-0.tar": shard("a")}))


def test_patterns_over_folders_and_folders_with_brackets(tmp_path):
    root = write(tmp_path / "[D] q? a*b", {f"{s}/{k}.tar": shard(f"{s}{k}") for s in ("train", "test") for k in "01"})
    for path in (root, root / "*" / "*.tar"):
        assert splits_of(open_(path)) == {"train": ["train0", "train1"], "val": ["test0", "test1"]}
    assert splits_of(open_(root / "train" / "[0].tar")) == {"train": ["train0"]}
    assert len(read(open_(root / "test" / "1.tar"))[0]) == 1


@pytest.mark.parametrize("top", ["", "data/"])
def test_one_tar_with_splits_inside(tmp_path, top):
    data = tar_bytes({f"{top}{s}/{i}.{e}": d for s, n in (("train", 3), ("val", 2)) for i in range(n)
                      for e, d in (("jpg", JPEG), ("cls", b"1"))})  # fmt: skip
    source = open_(write(tmp_path, {"all.tar": data}) / "all.tar")
    assert splits_of(source) == {
        "train": [f"{top}train/{i}" for i in range(3)],
        "val": [f"{top}val/{i}" for i in range(2)],
    }


def test_splits_inside_that_are_not_the_tar_s_own_are_refused(tmp_path):
    data = tar_bytes({f"{s}/{i}.{e}": d for s in ("train", "val") for i in range(2)
                      for e, d in (("jpg", JPEG), ("cls", b"1"))})  # fmt: skip
    path = write(tmp_path / "in", {"train-0.tar": data})
    for source in (path, path / "train-0.tar"):
        with pytest.raises(Error, match=r"train-0.tar is of split train by its name and holds .* folders of val"):
            open_(source)
    table = {"splits": {"train": {"filenames": ["train-0.tar"]}}}
    (path / "_info.json").write_text(json.dumps(table))
    source = open_(path)  # somebody has decided
    assert splits_of(source) == {"train": ["train/0", "train/1", "val/0", "val/1"]}


@pytest.mark.parametrize("name", ["all", "train"])
def test_splits_inside_that_begin_late(tmp_path, name):
    """Names and labels are those of a published list, for which a look at the first samples is enough."""
    wnids = labels.classes("ilsvrc2012")
    data = tar_bytes({f"{s}/{wnids[0]}_{i}.{e}": d for s, n in (("train", 20), ("val", 3)) for i in range(n)
                      for e, d in (("jpg", JPEG), ("cls", b"0"))})  # fmt: skip
    source = open_(write(tmp_path, {f"{name}.tar": data}), ("ilsvrc2012",))
    found, broken = read(source)
    if name == "all":
        assert {split: len(names) for split, names in splits_of(source).items()} == {"train": 20, "val": 3}
    else:
        assert len(found) == 20 and len(broken) == 3 and "of train by its name" in broken[0].reason


def test_packed_tars_are_told(tmp_path):
    source = open_(write(tmp_path, {"train-0.tar": shard("a"), "train-1.tar.gz": b"x", "._train-0.tar": b"x"}))
    assert len(read(source)[0]) == 1 and any("train-1.tar.gz left out" in line for line in source.warnings)


# -------------------------------------------------------------------------------------------------------------- keys


def test_equal_keys_in_two_tars_and_in_one_stay_apart(tmp_path):
    source = open_(write(tmp_path / "a", {f"train-{k}.tar": shard("0", "1", "2") for k in range(3)}))
    assert splits_of(source)["train"] == [f"train-{k}/{i}" for k in range(3) for i in range(3)]
    repeated = io.BytesIO()
    with tarfile.open(fileobj=repeated, mode="w") as archive:
        for name in ("a.jpg", "a.cls", "b.jpg", "b.cls", "a.jpg", "a.cls"):
            data = JPEG if name.endswith("jpg") else b"0"
            info = tarfile.TarInfo(name)
            info.size = len(data)
            archive.addfile(info, io.BytesIO(data))
    found, broken = read(open_(write(tmp_path / "b", {"train-0.tar": repeated.getvalue()})))
    assert len(found) == 3 and not broken
    # Equal keys in two splits are no trouble, and nothing changes for them.
    assert splits_of(open_(write(tmp_path / "c", {f"{s}.tar": shard("0", "1") for s in ("train", "val")}))) == {
        "train": ["0", "1"],
        "val": ["0", "1"],
    }


def test_keys_of_any_name(tmp_path):
    names = [
        "__a",
        "../b",
        "/abs/c",
        "d\nx",
        "e\u2028x",
        "f" * 300,
        "h%2E",
        "C:\\i",
        " j ",
        "dir.x/k",
        "a//l",
        "<m>'\"",
    ]
    found, broken = read(open_(write(tmp_path, {"train-0.tar": shard(*names)})))
    assert len(found) == len(names) and not broken
    assert all(key.isprintable() and "." not in key and not key.startswith("__") for _, key in found)
    out = io.BytesIO()
    with tarfile.open(fileobj=out, mode="w", format=tarfile.GNU_FORMAT, encoding="latin-1") as archive:
        for key in ("caf\xe9", "caf\xe8", "plain"):
            for e, data in (("jpg", JPEG), ("cls", b"0")):
                info = tarfile.TarInfo(f"{key}.{e}")
                info.size = len(data)
                archive.addfile(info, io.BytesIO(data))
    source = open_(write(tmp_path / "latin", {"train-0.tar": out.getvalue()}))
    assert splits_of(source) == {"train": ["caf%E8", "caf%E9", "plain"]}


# ------------------------------------------------------------------------------------------------------------ labels


def labelled(values, extension="cls"):
    return tar_bytes({f"{i:03d}.{e}": d for i, v in enumerate(values) for e, d in (("jpg", JPEG), (extension, v))})


@pytest.mark.parametrize(
    ("values", "classes", "reasons"),
    [
        ([b"0", b"2", b" 7\n"], ["0", "2", "7"], []),
        ([b"203000", b"203007", b"3000000000"], ["203000", "203007", "3000000000"], []),
        ([b"3.0", b"10.0", b"3"], ["3", "10"], []),
        ([b"1", b"1", b"-1"], ["1"], ["has the class -1, which is none"]),
        ([b"-1", b"-1"], [], ["has the class -1, which is none"] * 2),
        ([b"cat", b"\xef\xbb\xbfdog", b"\0\0\0"], ["cat", "dog"], ["has an empty class (cls)"]),
        ([b"1", b"1", b"cat"], ["1"], ["has the class 'cat', which is no number"]),
        ([b"1", b"", b"x" * 500], ["1"], ["has an empty class (cls)", "has a class of 500 bytes (cls)"]),
        ([b"cat", b"dog", "émeu".encode(), b"1"], ["1", "cat", "dog", "émeu"], []),
        ([b"a\nb", b"caf\xe9", b"caf\xe8"], ["a%0Ab", "caf%E8", "caf%E9"], []),
        ([b"1", b"9" * 25], ["1"], ["has the class '" + "9" * 25 + "', which is no number"]),
    ],
)
def test_labels_of_any_kind(tmp_path, values, classes, reasons):
    source = open_(write(tmp_path, {"train-0.tar": labelled(values)}))
    found, broken = read(source)
    assert [name for name, _ in source.classes] == classes
    assert [b.reason for b in broken] == reasons and len(found) == len(values) - len(reasons)


@pytest.mark.parametrize(
    ("record", "label"),
    [
        ({"label": 3}, "3"),
        ({"label": 3.0}, "3"),
        ({"label": "3"}, "3"),
        ({"class_id": 3, "width": 5}, "3"),
        ({"annotation": {"category_id": 3}}, "3"),
        ({"class_name": "cat"}, "cat"),
        ({"label": [3]}, None),
        ({"label": True}, None),
        ({"label": 1e30}, None),
        ({"width": 5}, None),
        ([3], None),
    ],
)
def test_labels_in_json(tmp_path, record, label):
    more = json.dumps({"label": label or "7"}).encode()
    tar = labelled([json.dumps(record).encode(), more, more], "json")
    found, broken = read(open_(write(tmp_path, {"train-0.tar": tar})))
    assert [name for name, _ in found.values()] == [label] * 3 if label else len(broken) == 1 and len(found) == 2


def test_class_names_in_text(tmp_path):
    source = open_(write(tmp_path, {"train-0.tar": labelled([b"cat", b"dog"], "txt")}))
    assert [name for name, _ in source.classes] == ["cat", "dog"]
    assert find(write(tmp_path / "captions", {"0.tar": labelled([b"a long caption " * 9] * 20, "txt")})) is None


def test_sparse_numbers_are_compacted_and_named(tmp_path):
    write(tmp_path / "in", {"train-0.tar": labelled([b"90000", b"5", b"90000", b"70000"])})
    manifest, _ = convert_quietly(dataset="hub", source=str(tmp_path / "in"), res=16, out=tmp_path / "out")
    assert manifest.num_classes == 3
    assert [name for name, _ in read_classes(tmp_path / "out")] == ["5", "70000", "90000"]


def test_labels_counted_from_one_are_refused_where_the_list_counts_from_zero(tmp_path):
    tar = labelled([b"%d" % n for n in (1, 1000, 3)])
    with pytest.raises(Error, match="are counted from 1; ilsvrc2012 is counted from 0"):
        open_(write(tmp_path, {"train-0.tar": tar}), lists=("ilsvrc2012",))


# ----------------------------------------------------------------------------------------------------------- members


@pytest.mark.parametrize("extension", ["bmp", "TIFF", "gif", "jfif", "JPG", "ppm", "image", "input_jpg"])
def test_images_of_any_extension(tmp_path, extension):
    write(
        tmp_path,
        {"train-0.tar": shard("a", jpg=JPEG, cls=b"0"), "train-1.tar": shard("b", **{extension: PNG}, cls=b"0")},
    )
    assert {key: data for (_, key), (_, data) in read(open_(tmp_path))[0].items()} == {"a": JPEG, "b": PNG}


def test_several_images_in_a_sample_are_told(tmp_path):
    source = open_(write(tmp_path, {"train-0.tar": shard("a", "b", png=PNG, jpg=JPEG, seg_png=PNG, cls=b"0")}))
    found, broken = read(source)
    assert [data for _, data in found.values()] == [JPEG, JPEG]
    assert [b.is_data for b in broken] == [False] * 4 and "another image of its sample" in broken[0].reason
    assert any("several images" in line for line in source.warnings)
    source = open_(write(tmp_path, {"train-0.tar": shard("a", jpg=JPEG, cls=b"0"),
                                    "train-1.tar": shard("b", left_png=PNG, right_png=PNG, cls=b"0")}))  # fmt: skip
    assert [b.reason for b in read(source)[1]] == ["has 2 images, left.png and right.png: one has to be chosen"]


def test_members_that_are_no_plain_files_or_come_twice_are_listed(tmp_path):
    out = io.BytesIO()
    with tarfile.open(fileobj=out, mode="w", format=tarfile.GNU_FORMAT) as archive:

        def add(name, data=b"", kind=tarfile.REGTYPE, link=""):
            info = tarfile.TarInfo(name)
            info.type, info.linkname, info.size = kind, link, len(data)
            archive.addfile(info, io.BytesIO(data))

        for key in "ab":
            add(f"{key}.jpg", JPEG)
            add(f"{key}.cls", b"0")
        add("c.jpg", kind=tarfile.SYMTYPE, link="/etc/passwd")
        add("c.cls", b"0")
        add("d.jpg", JPEG)
        add("d.cls", kind=tarfile.LNKTYPE, link="a.cls")
        add("e.jpg", JPEG)
        add("e.jpg", PNG)
        add("e.cls", b"0")
        add("folder", kind=tarfile.DIRTYPE)
        add("._f.jpg", b"x")
        add("README.md", b"x")
        add(".hidden.jpg", JPEG)
    found, broken = read(open_(write(tmp_path, {"train-0.tar": out.getvalue()})))
    assert sorted(key for _, key in found) == ["a", "b", "e"] and found["train", "e"][1] == JPEG
    listed = {b.origin.rpartition("/")[2]: (b.reason, b.is_data) for b in broken}
    assert listed["c.jpg"] in (
        ("has no image", True),
        ("is a symbolic link to /etc/passwd, which is not followed", False),
    )
    assert listed["d.jpg"] == ("has no class", True)
    assert listed["d.cls"] == ("is a hard link to a.cls, which is not followed", False)
    assert listed["e.jpg"] == ("is there twice", False)
    assert listed["train-0.tar: ._f.jpg"][1] is False and listed["README.jpg"] == ("has no image", False)


def test_members_of_samples_that_are_apart_are_listed(tmp_path):
    names = ["a.jpg", "b.jpg", "c.jpg", "c.cls", "a.cls", "b.cls"]
    tar = tar_bytes({name: JPEG if name.endswith("jpg") else b"0" for name in names})
    found, broken = read(open_(write(tmp_path, {"train-0.tar": tar})))
    assert [key.partition("-")[0] for _, key in found] == ["c"] and len(broken) == 4


def test_a_zeroed_block_costs_a_sample(tmp_path):
    data = bytearray(tar_bytes({f"{i:03d}.{e}": d for i in range(60) for e, d in (("jpg", JPEG), ("cls", b"0"))}))
    for name in (b"010.jpg", b"030.cls"):
        at = data.index(name)
        data[at : at + 512] = bytes(512)
    source = open_(write(tmp_path, {"train-0.tar": data}))
    for most in (1000, 7):
        source._most = most
        found, broken = read(source)
        assert len(found) == 58 and sum("zeros" in b.reason for b in broken) == 2
        assert sorted(b.reason for b in broken)[:2] == ["has no class", "has no image"]


def test_an_image_called_otherwise_is_converted(tmp_path):
    write(tmp_path / "in", {"train-0.tar": tar_bytes({"a.jpg": PNG, "a.cls": b"0", "b.png": JPEG, "b.cls": b"1",
                                                      "c.jpg": b"no image", "c.cls": b"1"})})  # fmt: skip
    manifest, _ = convert_quietly(
        dataset="hub", source=str(tmp_path / "in"), res=16, out=tmp_path / "out", max_skipped=0.5
    )
    assert manifest.splits["train"].num_samples == 2
    assert [row["source"] for row in read_jsonl(tmp_path / "out" / "skipped.jsonl")] == ["train-0.tar/c.jpg"]


# -------------------------------------------------------------------------------------------------------- _info.json


def info(**splits):
    return json.dumps({"splits": splits}).encode()


@pytest.mark.parametrize(
    "name", ["../../x", "/tmp/x", "a/b", "..", ".", "", "x\ny", "x" * 300, "tr\0ain", "\ud800", ".c"]
)
def test_a_split_name_of_a_table_is_no_path(tmp_path, name):
    table = info(**{name: {"filenames": ["0.tar"], "shard_lengths": [1]}})
    with pytest.raises(Error, match=r"_info\.json is no table of splits .* is no name for a split"):
        open_(write(tmp_path, {"0.tar": shard("a"), "_info.json": table}))


@pytest.mark.parametrize("n", [10**18, 10**9, -5, "12", None, 1.5, [], {}, True, float("nan")])
def test_numbers_of_a_table_are_checked(tmp_path, n):
    table = info(train={"filenames": ["0.tar"], "shard_lengths": [n]})
    with pytest.raises(Error, match=r"_info\.json") as caught:
        open_(write(tmp_path, {"0.tar": shard("a"), "_info.json": table}))
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    "text",
    [b"[]", b"5", b"{", b"[" * 100_000, b'{"splits": []}', b'{"splits": {"train": 5}}', b"\xff\xfe",
     b'{"splits": {"train": {"filenames": 5}}}', b'{"splits": {"train": {"filenames": [[]]}}}',
     info(train={"filenames": ["0.tar", "1.tar"], "shard_lengths": [1]}), info(train={"filenames": ["0.tar", "0.tar"]}),
     info(train={"filenames": ["0.tar"]}, val={"filenames": ["0.tar"]})],
)  # fmt: skip
def test_tables_that_are_none_are_refused(tmp_path, text):
    with pytest.raises(Error, match=r"_info\.json is no table of splits"):
        open_(write(tmp_path, {"0.tar": shard("a"), "_info.json": text}))


def test_a_split_may_have_two_names_in_a_table(tmp_path):
    """As in the tables of our own: timm asks for `validation`."""
    held_out = {"filenames": ["val-0.tar"], "shard_lengths": [1]}
    table = info(train={"filenames": ["train-0.tar"], "shard_lengths": [1]}, val=held_out, validation=held_out)
    files = {"train-0.tar": shard("a"), "val-0.tar": shard("b"), "_info.json": table}
    assert splits_of(open_(write(tmp_path, files))) == {"train": ["a"], "val": ["b"]}


def test_a_table_decides_and_what_does_not_fit_it_is_told(tmp_path):
    table = info(
        Training={"filenames": ["0.tar", "gone.tar"], "shard_lengths": [1, 4]},
        dev={"filenames": ["x/1.tar"]},
        valid={"filenames": ["train-2.tar"]},
        extra={"filenames": ["3.tar"]},
    )
    tars = {"0.tar": shard("a"), "train-2.tar": shard("c"), "3.tar": shard("d"), "4-val.tar": shard("e")}
    source = open_(write(tmp_path, tars | {"_info.json": table}))
    assert splits_of(source) == {"train": ["a"], "val": ["c", "e"], "extra": ["d"]}
    assert any("does not list 4-val.tar" in line for line in source.warnings)
    assert any("files that are not there: gone.tar and 1 others" in line for line in source.warnings)
