"""Data sets in parquet files, as they differ: columns, labels, splits, links, damage. No image is decoded here."""

import json
import os

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from mlpdata import Error, datasets
from mlpdata.fetch import hub
from mlpdata.sources import Broken, parquet_files
from mlpdata.sources import parquet as source
from mlpdata.sources.hub_card import HubCard
from mlpdata.sources.parquet import Parquet, ParquetHints
from mlpdata.sources.parquet_splits import holds_parquet

STRUCT = pa.struct([("bytes", pa.binary()), ("path", pa.string())])


def image(i):
    return b"\xff\xd8\xff%05d" % i


def table(labels, first=0, kind=None, image_kind=None, names=None, **others):
    """Rows with the images first, first + 1, ...; labels: None for no such column. names: of a ClassLabel."""
    n = len(labels) if labels is not None else 4
    data = [image(first + i) for i in range(n)]
    images = pa.array([{"bytes": d, "path": None} for d in data], STRUCT)
    if image_kind is not None:
        images = pa.array(data).cast(image_kind) if not pa.types.is_dictionary(image_kind) else pa.array(data)
        images = images.dictionary_encode() if pa.types.is_dictionary(image_kind) else images
    found = {"image": images, **({} if labels is None else {"label": pa.array(labels, kind)}), **others}
    made = pa.table(found)
    if names is not None:
        features = {"image": {"_type": "Image"}, "label": {"_type": "ClassLabel", "names": names}}
        made = made.replace_schema_metadata({"huggingface": json.dumps({"info": {"features": features}})})
    return made


def write(root, files, **options):
    """files: path -> table or bytes. Returns the folder."""
    for path, content in files.items():
        (root / path).parent.mkdir(parents=True, exist_ok=True)
        if isinstance(content, bytes):
            (root / path).write_bytes(content)
        else:
            pq.write_table(content, root / path, **options)
    return root


def read(opened):
    """(split -> [(image number, class name)] in their order, split -> reasons of the rows that are broken)."""
    good, bad = {}, {}
    for unit in opened.units():
        n = 0
        for sample in opened.samples(unit):
            n += 1
            if isinstance(sample, Broken):
                bad.setdefault(unit.split, []).append(f"{sample.origin} {sample.reason}")
            else:
                good.setdefault(unit.split, []).append((int(sample.data[3:]), opened.classes[sample.label][0]))
        assert n == unit.num_samples or not unit.exact
    return good, bad


def refused(root, match, **options):
    with pytest.raises(Error, match=match) as caught:
        read(Parquet(root, **options))
    assert "\n" not in str(caught.value)


# ----------------------------------------------------------------------------------------------------------- labels


@pytest.mark.parametrize(
    ("labels", "kind", "classes"),
    [
        ([0, 1, 2, 1], pa.int8(), ["0", "1", "2"]),
        ([2, 10, 1, 2], pa.int64(), ["1", "2", "10"]),
        ([10**8, 5, 10**8, 5], pa.int64(), ["5", "100000000"]),
        ([2**63 + 5, 1, 1, 1], pa.uint64(), ["1", "9223372036854775813"]),
        ([2.0, 10.0, 1.0, 2.0], pa.float64(), ["1", "2", "10"]),
        ([1.0, 0.0, 1.0, 0.0], pa.float16(), ["0", "1"]),
        ([True, False, False, True], pa.bool_(), ["false", "true"]),
        (["10", "2", "9", "2"], pa.string(), ["10", "2", "9"]),
        (["b", "a", "é", "b"], pa.large_string(), ["a", "b", "é"]),
        (["b", "a", "b", "b"], pa.string_view(), ["a", "b"]),
        (["b", "a", "b", "b"], pa.dictionary(pa.int8(), pa.string()), ["a", "b"]),
    ],
)
def test_labels_of_every_kind(tmp_path, labels, kind, classes):
    opened = Parquet(write(tmp_path, {"train.parquet": table(labels, kind=kind)}))
    assert [name for name, _ in opened.classes] == classes
    as_name = {True: "true", False: "false"} if kind == pa.bool_() else {}
    expected = [as_name.get(v, str(int(v)) if isinstance(v, float) else str(v)) for v in labels]
    assert read(opened) == ({"train": list(enumerate(expected))}, {})
    compacted = (
        classes[0].isdigit() and not pa.types.is_string(kind) and classes != [str(i) for i in range(len(classes))]
    )
    assert any("class numbers of column 'label' are not 0, 1, 2, ..." in w for w in opened.warnings) == compacted


@pytest.mark.parametrize(
    ("labels", "kind", "what"),
    [
        ([[0, 1]] * 4, pa.list_(pa.int64()), "list<element: int64>: several values"),
        ([[0.0, 1.0]] * 4, pa.list_(pa.float32(), 2), "fixed_size_list"),
        ([{"x": 1}] * 4, None, "struct<x: int64>"),
        ([b"a"] * 4, pa.binary(), "binary: one class an image"),
        ([1, 2, 3, 4], pa.date32(), "date32"),
        ([1, 2, 3, 4], pa.decimal128(5), "decimal128"),
    ],
)
def test_what_is_no_label_is_refused(tmp_path, labels, kind, what):
    write(tmp_path, {"data/train-0.parquet": table(labels, kind=kind)})
    refused(tmp_path, rf"data/train-0.parquet: column 'label' holds {what}.*--label-column")


def test_floats_that_are_no_numbers_of_classes_are_refused(tmp_path):
    write(tmp_path, {"train.parquet": table([0.0, 1.0, 0.5, 1.0])})
    refused(tmp_path, "train.parquet: column 'label' has the value 0.5, which is no class number")


def test_a_missing_file_of_a_row_is_said(tmp_path):
    files = {f"train-{i:05d}-of-00003.parquet": table([0, 1], 2 * i) for i in (0, 2)}
    (said,) = Parquet(write(tmp_path, files)).warnings
    assert said.endswith("files seem to be missing, by their numbers: train-00001-of-00003.parquet")


def test_too_many_classes_are_refused(tmp_path, monkeypatch):
    monkeypatch.setattr(source, "MAX_CLASSES", 3)
    write(tmp_path, {"train.parquet": table([5, 6, 7, 8])})
    refused(tmp_path, "column 'label' has more than 3 different values: these are no classes")


def test_rows_whose_label_says_nothing_are_listed(tmp_path):
    labels = [0, None, 1, -1, 0, -7]
    opened = Parquet(write(tmp_path / "a", {"train.parquet": table(labels)}))
    good, bad = read(opened)
    assert good == {"train": [(0, "0"), (2, "1"), (4, "0")]}
    assert bad["train"] == [
        "train.parquet[1] has no label",
        "train.parquet[3] has label -1, which stands for none",
        "train.parquet[5] has label -7, which is none of the 2 classes",
    ]
    assert any("rows with a label that is missing or negative" in w for w in opened.warnings)
    # The same where names say what the classes are, and a number has none.
    opened = Parquet(write(tmp_path / "b", {"train.parquet": table([0, 2, -1, 1], names=["x", "y"])}))
    good, bad = read(opened)
    assert good == {"train": [(0, "x"), (3, "y")]} and len(bad["train"]) == 2
    assert bad["train"][0] == "train.parquet[1] has label 2, which is none of the 2 classes"
    # Text that is none, and NaN.
    text = pa.array([b"a", b"\xff", b"", None]).cast(pa.large_binary()).view(pa.large_string())
    opened = Parquet(write(tmp_path / "c", {"train.parquet": table([0] * 4).set_column(1, "label", text)}))
    good, bad = read(opened)
    assert good == {"train": [(0, "a")]} and len(bad["train"]) == 3
    opened = Parquet(write(tmp_path / "d", {"train.parquet": table([1.0, float("nan"), 1.0, None])}))
    assert [len(found["train"]) for found in read(opened)] == [2, 2]


def test_splits_whose_labels_are_withheld_are_left_out_and_said(tmp_path):
    """Decided over the whole split: 2,000 rows without a label may stand before one with it."""
    late = [-1] * 2_000 + [1]
    files = {
        "train-0.parquet": table([0, 1] * 2, names=["x", "y"]),
        "validation-0.parquet": table(late, 10, names=["x", "y"]),
        "test-0.parquet": table([-1] * 5, names=["x", "y"]),
        "nulls-test.parquet": table([None] * 5, kind=pa.int64(), names=["x", "y"]),
    }
    opened = Parquet(write(tmp_path, files))
    good, bad = read(opened)
    assert good["val"] == [(2_010, "y")] and len(bad["val"]) == 2_000
    assert set(good) == {"train", "val"}
    assert "split 'test' is left out: its labels are withheld: all are -1 or missing" in opened.warnings
    refused(tmp_path, "split 'test' cannot be converted: its labels are withheld", splits=("test",))


def test_a_split_without_the_column_is_left_out_and_a_file_without_it_is_refused(tmp_path):
    files = {"train-0.parquet": table([0, 1]), "validation-0.parquet": table([1, 0], 50), "test-0.parquet": table(None)}
    opened = Parquet(write(tmp_path, files))
    assert read(opened)[0] == {"train": [(0, "0"), (1, "1")], "val": [(50, "1"), (51, "0")]}
    assert "split 'test' is left out: it has no column 'label'" in opened.warnings
    write(tmp_path, {"train-1.parquet": table(None)})
    refused(tmp_path, r"train-1.parquet has no column 'label', unlike .*train-0.parquet")
    write(tmp_path, {"train-1.parquet": pa.table({"label": [0, 1]})})
    refused(tmp_path, r"train-1.parquet has no column 'image'")


def test_labels_that_differ_by_file(tmp_path):
    write(tmp_path, {"train-0.parquet": table([0, 1]), "train-1.parquet": table([2.0, None, 1.0], 10)})
    good, bad = read(Parquet(tmp_path))
    assert good["train"] == [(0, "0"), (1, "1"), (10, "2"), (12, "1")] and len(bad["train"]) == 1
    write(tmp_path, {"val-0.parquet": table(["0", "1"])})
    refused(tmp_path, r"val-0.parquet: column 'label' holds string, unlike .*train-0.parquet: files must agree")
    write(
        tmp_path, {"val-0.parquet": table([0, 1], names=["y", "x"]), "train-0.parquet": table([0, 1], names=["x", "y"])}
    )
    refused(tmp_path, r"val-0.parquet names the classes of 'label' otherwise than .*train-0.parquet")


def test_names_of_classes_stay_what_they_are(tmp_path):
    names = ["crane", "", "a\tb", "crane", "a b"]
    opened = Parquet(write(tmp_path, {"train.parquet": table([0, 1, 2, 3, 4], names=names)}))
    assert [name for name, _ in opened.classes] == ["crane", "1", "a\tb", "crane-2", "a b"]
    assert read(opened)[0]["train"][3] == (3, "crane-2")
    assert any(
        "2 of the classes' names are empty or there already, such as that of class 1" in w for w in opened.warnings
    )
    labels = ["b\nc", "b c", "é\u2028", "é"]
    opened = Parquet(write(tmp_path, {"train.parquet": table(labels)}))
    assert read(opened)[0]["train"] == list(enumerate(labels))


def test_names_of_a_list_are_taken_only_where_they_fit_it(tmp_path):
    """imagenet1k knows its wnids by position; readable names in another order are another data set's."""
    from mlpdata import labels

    wnids = labels.classes("ilsvrc2012")
    readable = [labels.readable(wnid) for wnid in wnids]
    hints = ParquetHints(classes=wnids)
    opened = Parquet(write(tmp_path, {"train.parquet": table([0, 999], names=readable)}), hints)
    assert [name for _, name in read(opened)[0]["train"]] == [wnids[0], wnids[999]]
    opened = Parquet(write(tmp_path, {"train.parquet": table([0, 999], names=sorted(readable))}), hints)
    assert opened.classes[0][0] == sorted(readable)[0]
    assert any("not in the usual order" in w for w in opened.warnings)


# ----------------------------------------------------------------------------------------------------------- images


@pytest.mark.parametrize(
    "kind", [pa.binary(), pa.large_binary(), pa.binary_view(), pa.binary(8), pa.dictionary(pa.int32(), pa.binary())]
)
def test_images_in_columns_of_bytes(tmp_path, kind):
    opened = Parquet(write(tmp_path, {"train.parquet": table([0, 1, 1], image_kind=kind)}))
    assert read(opened) == ({"train": [(0, "0"), (1, "1"), (2, "1")]}, {}) and opened.codec == "jpg"


@pytest.mark.parametrize(
    ("images", "kind", "what"),
    [
        (["a.jpg"] * 2, pa.string(), "holds string, not images"),
        ([[b"x"]] * 2, pa.list_(pa.binary()), "holds list<element: binary>, not images"),
        ([[[1, 2]]] * 2, pa.list_(pa.list_(pa.uint8())), "holds list<.*, not images"),
        ([{"path": "a.jpg"}] * 2, None, "is a struct without `bytes`"),
        ([{"bytes": "abc"}] * 2, None, "has `bytes` of string"),
        ([{"bytes": {"bytes": b"x"}}] * 2, None, "has `bytes` of struct"),
        ([1.5, 2.5], pa.float32(), "holds float, not images"),
    ],
)
def test_what_is_no_image_is_refused(tmp_path, images, kind, what):
    write(tmp_path, {"train.parquet": pa.table({"image": pa.array(images, kind), "label": [0, 1]})})
    refused(tmp_path, rf"train.parquet: column 'image' {what}.*--image-column")


def test_rows_without_an_image_are_listed_with_their_reason(tmp_path):
    rows = [{"bytes": image(0), "path": "a"}, {"bytes": None, "path": "b.jpg"}, None, {"bytes": b"", "path": None}]
    write(tmp_path, {"train.parquet": pa.table({"image": pa.array(rows, STRUCT), "label": [0] * 4})})
    good, bad = read(Parquet(tmp_path))
    assert good == {"train": [(0, "0")]}
    assert bad["train"] == [
        "train.parquet[1] has a path and no image bytes: the image itself is not in the file",
        "train.parquet[2] has no image bytes",
        "train.parquet[3] has no image bytes",
    ]


def test_the_choice_of_columns_is_said(tmp_path):
    made = table([0, 1])
    many = pa.table({"photo_id": ["a", "b"], "Mask": made["image"], "Image": made["image"], "class": [5, 5]})
    many = many.append_column("Label", made["label"])
    opened = Parquet(write(tmp_path / "a", {"train.parquet": many}))
    assert read(opened)[0] == {"train": [(0, "0"), (1, "1")]}
    assert "images are column 'Image'; 'Mask' may hold others (--image-column)" in opened.warnings
    assert "labels are column 'Label'; 'class' may hold others (--label-column)" in opened.warnings
    only = pa.table({"pixels": made["image"], "label": made["label"]})
    opened = Parquet(write(tmp_path / "b", {"train.parquet": only}))
    assert read(opened)[0] and "images are column 'pixels', the only one that can hold them" in opened.warnings
    both = pa.table({"left": made["image"], "right": made["image"], "label": made["label"]})
    write(tmp_path / "c", {"train.parquet": both})
    refused(tmp_path / "c", "--image-column has to say; it has 'left', 'right', 'label'")
    twice = pa.Table.from_arrays([made["image"], made["label"], made["label"]], names=["image", "label", "label"])
    write(tmp_path / "d", {"train.parquet": twice})
    refused(tmp_path / "d", "which column holds the labels")
    refused(tmp_path / "d", "has 2 columns called 'label'", hints=ParquetHints(label="label"))


# ----------------------------------------------------------------------------------------------------------- splits


def images_of(root, **options):
    return {split: [i for i, _ in rows] for split, rows in read(Parquet(root, **options))[0].items()}


@pytest.mark.parametrize(
    ("paths", "expected", "said"),
    [
        (
            ["train-0", "validation-0", "dev-0"],
            {"train": [0], "val": [2, 1]},
            "put together of files called dev and val",
        ),
        (["train-0", "val/dev-0", "val/dev-1"], {"train": [0], "val": [1, 2]}, None),
        (["s/train", "s/val"], {"train": [0], "val": [1]}, None),
        (["Train0", "TEST-1"], {"train": [0], "val": [1]}, "split 'test' is called 'val'"),
        (["train", "metadata"], {"train": [0]}, "left out, as of no split: 1 parquet file: metadata.parquet"),
        (["a", "b"], {"train": [0, 1]}, "no file's name says which split"),
        (["train/0000/a", "train/0001/b"], {"train": [0, 1]}, None),
        (["train", "._train", ".cache/train", "__MACOSX/train"], {"train": [0]}, None),
    ],
)
def test_splits_by_the_names_of_files(tmp_path, paths, expected, said):
    opened = Parquet(write(tmp_path, {f"{p}.parquet": table([0], i) for i, p in enumerate(paths)}))
    assert {split: [i for i, _ in rows] for split, rows in read(opened)[0].items()} == expected
    assert any(said in w for w in opened.warnings) if said else not opened.warnings


def test_several_configurations_are_told_apart(tmp_path):
    write(tmp_path, {f"{size}/train-0.parquet": table([0], i) for i, size in enumerate(("large", "small"))})
    refused(tmp_path, r"files of split 'train' in several folders, large, small, .*--source .*/large")
    assert images_of(tmp_path / "small") == {"train": [1]}
    write(tmp_path, {"train-both-val.parquet": table([0])})
    refused(tmp_path, "train-both-val.parquet fits two splits, train and val")


def card(text):
    return f"---\n{text}---\n# Data\n".encode()


def test_files_of_two_versions_of_one_split_are_told(tmp_path):
    """A later upload beside an earlier one: the images of one may be those of the other."""
    write(tmp_path, {f"train-{i}.parquet": table([0, 1], 2 * k) for k, i in enumerate(("0-of-1", "0-of-2", "1-of-2"))})
    (said,) = Parquet(tmp_path).warnings
    assert said.endswith(
        "train-0-of-1.parquet and train-0-of-2.parquet look like files of two versions: both are taken"
    )
    (tmp_path / "train-0-of-1.parquet").unlink()
    assert not Parquet(tmp_path).warnings


def test_a_card_that_names_the_classes_otherwise_than_the_files(tmp_path):
    header = """dataset_info:
  features:
  - name: image
    dtype: image
  - name: label
    dtype:
      class_label:
        names: [dog, cat]
"""
    write(tmp_path, {"train-0.parquet": table([0, 1], names=["cat", "dog"]), "README.md": card(header)})
    opened = Parquet(tmp_path)
    assert [name for name, _ in opened.classes] == ["cat", "dog"]
    (said,) = opened.warnings
    assert said.startswith("README.md names the classes of 'label' otherwise than ") and said.endswith(" are taken")
    write(tmp_path, {"README.md": card(header.replace("dog, cat", "cat, dog"))})
    assert not Parquet(tmp_path).warnings


def test_the_configurations_of_a_card(tmp_path):
    both = """configs:
- config_name: large
  data_files:
  - split: train
    path: large/*.parquet
- config_name: small
  data_files:
  - split: training
    path: [small/a-*, "./small/a-1.parquet"]
  - split: dev
    path: "small/**/d.parquet"
  - split: test
    path: gone/*
"""
    paths = ["large/a-0", "large/a-1", "small/a-0", "small/a-1", "small/x/y/d", "more"]
    write(tmp_path, {f"{p}.parquet": table([0], i) for i, p in enumerate(paths)})
    write(tmp_path, {"README.md": card(both)})
    refused(tmp_path, "several configurations and none is the default: 'large', 'small'")
    write(tmp_path, {"README.md": card(both.replace("name: small", "name: small\n  default: true"))})
    opened = Parquet(tmp_path)
    assert read(opened)[0] == {"train": [(2, "0"), (3, "0")], "val": [(4, "0")]}
    said = "; ".join(opened.warnings)
    assert "configuration 'small' is used" in said and "left out: 'large'" in said and "split 'test' of README" in said
    assert "left out, as of no split: 3 parquet files: large/a-0.parquet, large/a-1.parquet, more.parquet" in said
    assert str(tmp_path / "README.md") in opened.files
    twice = (
        "configs:\n- config_name: x\n  data_files:\n  - split: train\n    path: '**'\n  - split: val\n    path: more*\n"
    )
    write(tmp_path, {"README.md": card(twice)})
    refused(tmp_path, "README.md puts more.parquet into two splits, 'train' and 'val'")
    merged = (
        "configs:\n- config_name: x\n  data_files:\n    validation: more*\n    dev: large/*\n    train: small/a-0*\n"
    )
    write(tmp_path, {"README.md": card(merged)})
    opened = Parquet(tmp_path)
    assert {split: len(rows) for split, rows in read(opened)[0].items()} == {"val": 3, "train": 1}
    assert "validation and dev are both the split 'val': they are put together" in opened.warnings
    write(tmp_path, {"README.md": card("configs:\n- config_name: x\n  data_dir: large\n")})
    assert sum(map(len, images_of(tmp_path).values())) == 2


@pytest.mark.parametrize(
    "text",
    ["a: [", "a: 2001-99-99\n", "[" * 20_000, "configs: 5\n", "configs:\n- data_files: 7\n", "? [a]\n: b\n",
     "configs:\n- data_files:\n  - split: [a]\n    path: '*'\n", "a: &a [*a]\n",
     "a: !!python/object/apply:os.system [x]\n", "dataset_info:\n  features:\n  - name: [a]\n    dtype: image\n",
     "configs:\n- data_files:\n  - split: train\n    path:\n",
     "a0: &a0 [x, x]\n" + "".join(f"a{i}: &a{i} [*a{i - 1}, *a{i - 1}]\n" for i in range(1, 40))
     + "configs:\n- data_files:\n  - split: *a39\n    path: '*'\n"],
)  # fmt: skip
def test_cards_of_any_content(tmp_path, text):
    write(tmp_path, {"train.parquet": table([0, 1]), "README.md": card(text)})
    assert images_of(tmp_path) == {"train": [0, 1]}


def test_names_of_splits_that_cannot_name_files_are_refused(tmp_path):
    write(tmp_path, {"x.parquet": table([0, 1])})
    for name in ("../x", "x" * 400, "a b"):
        write(tmp_path, {"README.md": card(f"configs:\n- data_files:\n  - split: {name}\n    path: '*'\n")})
        refused(tmp_path, "is no name for a split")


def test_class_names_of_a_card_are_text_as_it_stands():
    """YAML has `no` for false and 010 for 8; a class has a name."""
    names = "\n".join(f"        '{i}': {name}" for i, name in enumerate(("no", "010", "1e3", "2001-01-01", "~")))
    head = "dataset_info:\n  features:\n  - name: label\n    dtype:\n      class_label:\n        names:\n"
    assert HubCard(card(head + names.replace("        '", "          '") + "\n").decode()).features() == {
        "label": {"_type": "ClassLabel", "names": ["no", "010", "1e3", "2001-01-01", "~"]}
    }
    odd = HubCard(card(head + "          '0': x\n          '5': y\n").decode())
    assert odd.features()["label"]["names"] is None and "otherwise than 0, 1" in odd.problems[0]


# ------------------------------------------------------------------------------------------------ limits and files


def test_a_limit_plans_the_files_it_needs_and_labels_do_not_depend_on_it(tmp_path, monkeypatch):
    monkeypatch.setattr(source, "READERS", 2)
    files = {f"train-{k:03d}.parquet": table([7, k], 2 * k, names=None) for k in range(10, 80)}
    write(tmp_path, {**files, "val-0.parquet": table([3, 3])})
    whole, some = Parquet(tmp_path), Parquet(tmp_path, limit=5)
    assert sum(unit.num_samples for unit in whole.units()) == 142 and all(unit.exact for unit in whole.units())
    planned = [unit for unit in some.units() if unit.split == "train"]
    assert len(planned) == 4 and planned == whole.units()[:4]
    assert some.classes == whole.classes == Parquet(tmp_path, splits=("validation",)).classes
    assert {unit.split for unit in Parquet(tmp_path, splits=("validation",)).units()} == {"val"}
    refused(tmp_path, "no split 'nope' in .*; it has train, val", splits=("nope",))


def test_files_are_not_read_for_names_that_are_there(tmp_path, monkeypatch):
    write(tmp_path, {f"train-{k:03d}.parquet": table([0, 1], names=["x", "y"]) for k in range(100)})
    opened, open_file = [], parquet_files.open_file
    monkeypatch.setattr(parquet_files, "open_file", lambda at, path: opened.append(path) or open_file(at, path))
    Parquet(tmp_path, limit=3)
    assert len(set(opened)) <= source.READERS


def test_links_are_followed_and_what_cannot_be_read_is_named(tmp_path):
    """The Hub's cache: snapshots/COMMIT/... are links to blobs/...."""
    cache = tmp_path / "datasets--me--x"
    write(cache / "blobs", {"0a": table([0, 1])}).joinpath("refs").mkdir()
    snapshot = cache / "snapshots" / "c0ffee" / "data"
    snapshot.mkdir(parents=True)
    (snapshot / "train-0.parquet").symlink_to(cache / "blobs" / "0a")
    (tmp_path / "linked").symlink_to(snapshot, target_is_directory=True)
    for root in (cache, snapshot.parent, snapshot, tmp_path / "linked"):
        assert holds_parquet(root) and images_of(root) == {"train": [0, 1]}
    (tmp_path / "above" / "data").mkdir(parents=True)
    (tmp_path / "above" / "data" / "more").symlink_to(snapshot, target_is_directory=True)
    assert images_of(tmp_path / "above") == {"train": [0, 1]}
    (snapshot / "loop").symlink_to(snapshot, target_is_directory=True)
    refused(snapshot, "the same folder as one around it")
    (snapshot / "loop").unlink()
    (snapshot / "train-1.parquet").symlink_to(cache / "blobs" / "gone")
    refused(snapshot, "train-1.parquet cannot be read: it is a link that leads nowhere")
    (snapshot / "train-1.parquet").unlink()
    os.mkfifo(snapshot / "train-1.parquet")
    refused(snapshot, "train-1.parquet cannot be read: it is no file but a FIFO")


def test_folders_of_image_files_are_not_taken_for_parquet(tmp_path):
    write(tmp_path / "images", {"train/cat/0.jpg": b"", "metadata.parquet": table([0])})
    assert not holds_parquet(tmp_path / "images")
    write(tmp_path / "system", {"._train.parquet": b"", ".cache/train.parquet": b""})
    assert not holds_parquet(tmp_path / "system")


def test_no_two_keys_and_origins_meet(tmp_path):
    names = ("a b-train", "a_b-train", "a_b-train-2", "__a-train", "x")
    write(tmp_path / "in", {f"{name}.parquet": table([0, 1]) for name in names})
    os.rename(tmp_path / "in" / "x.parquet", os.fsencode(tmp_path / "in") + b"/\xe9\n-train.parquet")
    opened = Parquet(tmp_path / "in")
    samples = [sample for unit in opened.units() for sample in opened.samples(unit)]
    assert len({s.key for s in samples}) == len({s.origin for s in samples}) == len(samples) == 10
    assert "a_b-train_0000000" in {s.key for s in samples}
    assert all(s.origin.isprintable() and not s.key.startswith("__") and "." not in s.key for s in samples)


def test_a_folder_of_a_repository():
    files = {"README.md": 1, "small/train-0.parquet": 2, "small/test-0.parquet": 3, "large/train-0.parquet": 4}
    whole = hub.Repository("me/x", "c0ffee", files)
    small = whole.below("small")
    assert small.files == {"train-0.parquet": 2, "test-0.parquet": 3} and str(small) == "hf:me/x/small@c0ffee"
    assert small.url("train-0.parquet").endswith("/small/train-0.parquet")
    match = hub.NAME.fullmatch("hf:me/x/small/more@refs/convert/parquet")
    assert (match["name"], match["below"], match["revision"]) == ("me/x", "/small/more", "refs/convert/parquet")


# ----------------------------------------------------------------------------------------------------------- damage


def parquet_bytes(path, *tables, **options):
    write(path.parent, {path.name: tables[0]}, **options)
    return path.read_bytes()


def test_files_that_are_no_whole_parquet_files(tmp_path):
    good = parquet_bytes(tmp_path / "made" / "x.parquet", table([0, 1]))
    write(tmp_path / "in", {"train-0.parquet": good})
    for damaged in (b"", b"PAR1", good[:-1], good[: len(good) // 2], b"x" * 1000, good[:-4] + b"PARE"):
        (tmp_path / "in" / "train-1.parquet").write_bytes(damaged)
        refused(tmp_path / "in", r"train-1.parquet is no whole parquet file \(.+\); get it again, or move it out")
    if os.getuid():
        (tmp_path / "in" / "train-1.parquet").chmod(0)
        refused(tmp_path / "in", "cannot read .*train-1.parquet: Permission denied")


def test_rows_that_a_footer_only_claims(tmp_path):
    """A footer that counts other rows than its row groups do."""
    good = parquet_bytes(tmp_path / "x" / "train.parquet", table([0, 1] * 10), row_group_size=10)
    size = int.from_bytes(good[-8:-4], "little")
    footer = good[-8 - size : -8]
    total = 0
    for at in (i for i, byte in enumerate(footer) if byte == 40):  # zigzag of 20
        changed = footer[:at] + bytes([42]) + footer[at + 1 :]
        (tmp_path / "x" / "train.parquet").write_bytes(good[: -8 - size] + changed + good[-8:])
        try:
            rows = images_of(tmp_path / "x")["train"]
        except Error as e:
            total += "footer claims 21 rows" in str(e)
        else:
            assert rows == list(range(20))
    assert total == 1


def test_a_row_group_that_cannot_be_read_costs_its_rows(tmp_path):
    good = bytearray(parquet_bytes(tmp_path / "train.parquet", table([0, 1] * 10), row_group_size=5))
    column = pq.ParquetFile(tmp_path / "train.parquet").metadata.row_group(1).column(0)
    at = column.dictionary_page_offset or column.data_page_offset
    good[at : at + 20] = b"\xff" * 20
    (tmp_path / "train.parquet").write_bytes(good)
    good, bad = read(Parquet(tmp_path))
    assert [i for i, _ in good["train"]] == [*range(5), *range(10, 20)]
    assert [line.split()[0] for line in bad["train"]] == [f"train.parquet[{i}]" for i in range(5, 10)]


def test_checksums_of_pages_are_compared(tmp_path):
    options = {"write_page_checksum": True, "compression": "none", "use_dictionary": False, "write_statistics": False}
    options["row_group_size"] = 2
    data = bytearray(parquet_bytes(tmp_path / "train.parquet", table([0, 1] * 3), **options))
    at = data.index(image(3))
    data[at + 7] ^= 1
    (tmp_path / "train.parquet").write_bytes(data)
    good, bad = read(Parquet(tmp_path))
    assert [i for i, _ in good["train"]] == [0, 1, 4, 5] and len(bad["train"]) == 2


def test_rows_without_end_are_an_error(tmp_path, monkeypatch):
    monkeypatch.setattr(source, "MAX_BROKEN", 3)
    write(tmp_path, {"train.parquet": pa.table({"image": pa.nulls(9, pa.binary()), "label": [0] * 9})})
    refused(tmp_path, "more than 3 rows of it cannot be used: each has no image bytes")


def test_a_data_set_without_rows_is_refused(tmp_path):
    write(tmp_path, {"train.parquet": table([], kind=pa.int64())})
    refused(tmp_path, "has no split with labels in column 'label': split 'train' is left out: it has no rows")


def test_a_file_that_becomes_another_one_is_noticed(tmp_path):
    opened = Parquet(write(tmp_path, {"train.parquet": table([0, 1] * 8)}, row_group_size=4))
    before = opened.stamps()
    assert set(before) == {str(tmp_path / "train.parquet")} == set(opened.files)
    write(tmp_path, {"train.parquet": table([0, 1] * 4)}, row_group_size=8)
    assert opened.stamps() != before
    with pytest.raises(Error, match="changed while it was read"):
        [*opened.samples(opened.units()[0])]


def test_the_data_sets_hand_on_what_was_asked_for(tmp_path):
    write(tmp_path, {"train.parquet": table([0, 1]), "val.parquet": table([1, 0])})
    spec = datasets.get("hub")
    opened = datasets.open_source(spec, str(tmp_path), res=32, seed=0, splits=("val",), limit=1)
    assert [unit.split for unit in opened.units()] == ["val"]


def test_the_cache_of_the_datasets_library_is_told_from_its_source(tmp_path):
    write(
        tmp_path,
        {"me___x/default/0.0.0/c0ffee/x-train.arrow": b"", "me___x/default/0.0.0/c0ffee/dataset_info.json": b"{}"},
    )
    with pytest.raises(Error, match="a cache of the `datasets` library"):
        datasets.open_source(datasets.get("hub"), str(tmp_path), res=32, seed=0)


def test_what_save_to_disk_wrote_is_no_cache_and_can_be_read_as_parquet(tmp_path):
    from datasets import ClassLabel, Dataset, DatasetDict, Features, load_from_disk
    from datasets import Image as ImageFeature
    from PIL import Image

    features = Features({"image": ImageFeature(), "label": ClassLabel(names=["cat", "dog"])})
    rows = {"image": [Image.new("RGB", (8, 8), color) for color in ("red", "blue")], "label": [0, 1]}
    DatasetDict(train=Dataset.from_dict(rows, features)).save_to_disk(tmp_path / "saved")
    with pytest.raises(Error, match=r"`save_to_disk` wrote it: .*load_from_disk\(...\)\[SPLIT\].to_parquet\(FILE\)"):
        datasets.open_source(datasets.get("hub"), str(tmp_path / "saved"), res=32, seed=0)
    (tmp_path / "parquet").mkdir()
    load_from_disk(str(tmp_path / "saved"))["train"].to_parquet(str(tmp_path / "parquet" / "train.parquet"))
    opened = datasets.open_source(datasets.get("hub"), str(tmp_path / "parquet"), res=32, seed=0)
    assert [unit.split for unit in opened.units()] == ["train"]
    assert [name for name, _ in opened.classes] == ["cat", "dog"]
