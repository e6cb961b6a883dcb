"""Maps of classes: files of three kinds, published lists, CIFAR-100's coarse labels."""

import json

import pytest

from mlpdata import Error, labels
from mlpdata.derive.label_maps import CIFAR100_COARSE, NAMES, read_label_map

CLASSES = ["cat", "dog", "red, green"]


@pytest.mark.parametrize(
    "text",
    [
        "dog\tpet\ncat\tpet\nred, green\tcolour\n",
        '\ufeffdog,pet\r\ncat, pet\r\n\r\n"red, green",colour',
        json.dumps({"dog": "pet", "cat": "pet", "red, green": "colour"}, indent=1),
    ],
)
def test_a_file_maps_every_class_and_orders_the_new_ones(tmp_path, text):
    path = tmp_path / "map"
    path.write_text(text, newline="")
    found = read_label_map(path, CLASSES)
    assert list(found.names.items()) == [("cat", "pet"), ("dog", "pet"), ("red, green", "colour")]
    assert found.classes == ("pet", "colour") and found.left_out == ()


def test_old_names_may_be_written_as_in_classes_txt(tmp_path):
    names = ["back\\slash", "two\nlines", " blank "]
    path = tmp_path / "map"
    path.write_text("back\\\\slash\ta\ntwo\\nlines\tb\nblank\tc\n")
    assert read_label_map(path, names).names == dict(zip(names, "abc", strict=True))
    path.write_text("back\\slash\ta\nback\\\\slash\tb\n")
    with pytest.raises(Error, match="twice"):
        read_label_map(path, names)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("cat\ta\n", r"does not map 2 of the 3 classes: dog, red, green; add"),
        ("cat\ta\ncat\tb\n", r"maps 'cat' twice"),
        ("Cat\ta\nwolf\tb\n", r"maps no class of the directory \(cat is one\): it maps Cat, wolf; correct the map"),
        ("Cat\ta\ncat\tb\n", r"does not map 2 of the 3 classes: dog, red, green; add"),
        ("Cat\ta\ncat\tb\nCat\tc\n", r"maps 'Cat' twice"),
        ("cat\n", r"is no map: 'cat': 1 name in a line"),
        ("cat,a\ndog,a,b\n", r"is no map: 'dog, a, b': 3 names"),
        ('cat,"a\n', r"is no map: unexpected end of data"),
        ("cat\t\n", r"maps 'cat' to '', which is no name"),
        ("cat\ta\x1b[2J\n", r"which is no name for a class"),
        ('{"cat": 1}', r"is no map: the new name of 'cat' is no text; write \{\"old\": \"new\", ...\}$"),
        ('{"cat": {"a": "b"}}', r"is no map: the new name of 'cat' is no text"),
        ('{"cat": "a", "cat": "b"}', r"maps 'cat' twice; remove one"),
        ('{"cat": "a",}', r"is no map: .*; correct it$"),
        (b"\xff\xfe", r"cannot read .*map: it is not UTF-8 text$"),
        ("", r"maps no class"),
    ],
)
def test_a_wrong_file_is_refused_in_one_line(tmp_path, text, message):
    path = tmp_path / "map"
    path.write_bytes(text if isinstance(text, bytes) else text.encode())
    with pytest.raises(Error, match=message) as raised:
        read_label_map(path, CLASSES)
    assert "\n" not in str(raised.value)


def test_lines_for_classes_that_are_absent_have_no_effect(tmp_path):
    path = tmp_path / "map"
    path.write_text("wolf\twild\ncat\tpet\ndog\tpet\nred, green\tcolour\nlynx\twild\n")
    found = read_label_map(path, CLASSES)
    assert found.classes == ("pet", "colour") and found.absent == ("wolf", "lynx") and not found.left_out
    assert read_label_map(path, ["cat"]).classes == ("pet",)


def test_no_map_of_that_name(tmp_path):
    with pytest.raises(Error, match=r"is neither a file nor one of cifar100-coarse, fall11"):
        read_label_map(tmp_path / "nothing", CLASSES)
    with pytest.raises(Error, match=r"is neither a file nor one of cifar100-coarse, fall11"):
        read_label_map(tmp_path, CLASSES)


def test_cifar100_coarse():
    fine = sorted(name for names in CIFAR100_COARSE.values() for name in names.split())
    assert len(set(fine)) == 100 and all(len(names.split()) == 5 for names in CIFAR100_COARSE.values())
    found = read_label_map("cifar100-coarse", fine)
    assert found.classes == tuple(sorted(CIFAR100_COARSE)) and len(found.classes) == 20
    coarse = [found.classes.index(found.names[name]) for name in fine]
    # The coarse labels of the fine labels 0 to 19 and 90 to 99, as in the archive's batches.
    assert coarse[:20] == [4, 1, 14, 8, 0, 6, 7, 7, 18, 3, 3, 14, 9, 18, 7, 11, 3, 9, 7, 11]
    assert coarse[90:] == [18, 1, 2, 15, 6, 0, 17, 8, 14, 13]
    with pytest.raises(Error, match=r"do not include cat"):
        read_label_map("cifar100-coarse", ["apple", "cat"])


@pytest.mark.parametrize("name", NAMES[1:])
def test_a_published_list_keeps_its_own_order(name):
    wnids = labels.classes(name)
    with pytest.raises(Error, match=r"does not map 1 of the 3 classes: cat; add them, or .*--drop-unmapped"):
        read_label_map(name, [wnids[7], "cat", wnids[3]])
    found = read_label_map(name, [wnids[7], "cat", wnids[3]], may_lack=True)
    assert found.classes == wnids and found.left_out == ("cat",)
    assert found.names == {wnids[7]: wnids[7], wnids[3]: wnids[3]}
    with pytest.raises(Error, match=f"none of the directory's classes is in {name}"):
        read_label_map(name, ["cat"])
