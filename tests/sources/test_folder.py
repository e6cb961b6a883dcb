"""Folders as people have them: what is a split, a class, an image, and what is left out and named."""

import os
import pickle
import socket

import pytest
from archives import encoded, make_folder, picture
from conftest import convert_quietly, read_jsonl

from mlpdata import Error
from mlpdata.sources import Broken, ClassFilter, Sample, TooSmall, files, folder
from mlpdata.sources.folder import Folder

JPEG = encoded(picture(16, 16, 1))


def write(root, *names, data=JPEG):
    for name in names:
        path = os.path.join(os.fsencode(root), os.fsencode(name))
        os.makedirs(os.path.dirname(path), exist_ok=True)
        with open(path, "wb") as f:
            f.write(data)
    return root


def read(source):
    """{split: {origin: class}} of all samples, and {origin: reason} of what is listed, read as a worker does."""
    copy, found, listed = pickle.loads(pickle.dumps(source)), {}, {}
    for unit in source.units():
        seen = [s for s in copy.samples(unit) if not isinstance(s, TooSmall)]
        if unit.exact:
            assert sum(isinstance(s, Sample) or s.is_data for s in seen) == unit.num_samples
        for s in seen:
            s.origin.encode()
            if isinstance(s, Broken):
                listed[s.origin] = s.reason
            else:
                found.setdefault(s.split or unit.split, {})[s.origin] = source.classes[s.label][0]
        assert len({s.key for s in seen if isinstance(s, Sample)}) == sum(isinstance(s, Sample) for s in seen)
    return found, listed


def keys(source):
    copy = pickle.loads(pickle.dumps(source))
    return {s.origin: s.key for unit in source.units() for s in copy.samples(unit) if isinstance(s, Sample)}


def class_names(source):
    return [name for name, _ in source.classes]


def told(source):
    return "\n".join(source.warnings)


# --------------------------------------------------------------------------------------------------------- classes


def test_splits_and_their_classes(tmp_path):
    written = make_folder(tmp_path)
    source = Folder(tmp_path)
    assert class_names(source) == ["cat", "dog", "émeu x"]
    assert source.codec == "jpg" and not source.warnings
    found, listed = read(source)
    assert not listed
    for split in ("train", "val"):
        assert found[split] == {origin: origin.split("/")[1] for origin in written[split]}
    copy = pickle.loads(pickle.dumps(source))
    assert {s.origin: s.data for u in source.units() for s in copy.samples(u)} == written["train"] | written["val"]
    assert keys(source)["train/émeu x/img.0.jpg"] == "émeu x/img%2E0"


def test_names_that_collide(tmp_path):
    write(tmp_path / "x", "a.jpg", "a.png", "a-2.jpg", "a.b.jpg", "a%2Eb.jpg", "A.JPG", ".hidden.jpg", "no_suffix")
    write(tmp_path / "test", "q.webp", data=b"")
    source = Folder(tmp_path)
    assert class_names(source) == ["test", "x"]  # a class may well be called so
    assert len(set(keys(source).values())) == 9


def test_every_file_of_a_class_is_handed_on_whatever_its_name(tmp_path):
    """Content decides what an image is."""
    write(tmp_path / "x", "1.jpg", "2.bmp", "3.TIFF", "4.jfif", "5.gif", "6.ppm", "7", "8.dat")
    write(tmp_path / "odd", "1.dat", "2.img")  # no suffix of an image in all of the class
    write(tmp_path / "notes", "a.txt", "b.txt", data=b"not an image")
    source = Folder(tmp_path)
    found, listed = read(source)
    assert class_names(source) == ["odd", "x"] and len(found["train"]) == 10
    assert listed == {"notes/": "a folder without images, so no class"} and "notes" in told(source)


def test_images_in_folders_below_the_class(tmp_path):
    write(tmp_path, "cat/1.jpg", "cat/2020/1.jpg", "cat/2021/may.v1/1.jpg", "dog/a/1.jpg", "dog/b/__x/1.jpg")
    source = Folder(tmp_path)
    assert class_names(source) == ["cat", "dog"]
    assert keys(source) == {
        "cat/1.jpg": "cat/1",
        "cat/2020/1.jpg": "cat/2020/1",
        "cat/2021/may.v1/1.jpg": "cat/2021/may%2Ev1/1",
        "dog/a/1.jpg": "dog/a/1",
        "dog/b/__x/1.jpg": "dog/b/%5F_x/1",
    }


def test_classes_without_images(tmp_path):
    for split in ("train", "val"):
        write(tmp_path, f"{split}/cat/1.jpg")
        (tmp_path / split / "zebra").mkdir()
    write(tmp_path, "train/dog/1.jpg")
    (tmp_path / "val" / "dog").mkdir()  # in one split only: no word
    source = Folder(tmp_path)
    assert class_names(source) == ["cat", "dog"]
    assert "without images" in told(source) and "zebra" in told(source) and "dog" not in told(source)
    write(tmp_path / "empty", "a/notes.txt", data=b"no image")
    with pytest.raises(Error, match="no images in them"):
        Folder(tmp_path / "empty")


def test_what_systems_leave_behind(tmp_path):
    write(tmp_path, "cat/1.jpg", "dog/1.jpg")
    write(
        tmp_path,
        "__MACOSX/cat/._1.jpg",
        "@eaDir/x.jpg",
        ".DS_Store",
        "cat/._1.jpg",
        "cat/Thumbs.db",
        "dog/@eaDir/1.jpg",
    )
    source = Folder(tmp_path)
    found, listed = read(source)
    assert class_names(source) == ["cat", "dog"] and len(found["train"]) == 2
    assert set(listed) == {"__MACOSX", "@eaDir", ".DS_Store", "cat/._1.jpg", "cat/Thumbs.db", "dog/@eaDir"}
    assert "__MACOSX" in told(source) and "@eaDir" in told(source)
    copy = pickle.loads(pickle.dumps(source))
    broken = [s for unit in source.units() for s in copy.samples(unit) if isinstance(s, Broken)]
    assert not any(b.is_data for b in broken)


def test_files_beside_the_classes_are_named(tmp_path):
    write(tmp_path, "cat/1.jpg", "dog/1.jpg", "stray.jpg", "README.md")
    source = Folder(tmp_path)
    copy = pickle.loads(pickle.dumps(source))
    broken = {s.origin: s.is_data for u in source.units() for s in copy.samples(u) if isinstance(s, Broken)}
    assert broken == {"stray.jpg": True, "README.md": False}
    assert "stray.jpg" in told(source) and "README.md" in told(source)


def test_class_names_are_as_they_are(tmp_path):
    names = [
        "__background__",
        "a\u2028b",
        "a\x85b",
        "a\rb",
        "a\tb",
        "a\nb",
        "a'b",
        'a"b',
        "[x]",
        "?",
        "x" * 250,
        " ",
        "%2E",
    ]
    write(tmp_path, *(f"{name}/1.jpg" for name in names))
    source = Folder(tmp_path)
    assert class_names(source) == sorted(names)
    found, _ = read(source)
    assert found["train"] == {f"{name}/1.jpg": name for name in names}
    assert all(key.isprintable() for key in keys(source).values())


def test_names_that_are_not_utf8(tmp_path):
    write(tmp_path, b"caf\xe9/1.jpg", b"caf\xe8/1.jpg", b"caf\xe8/\xff.jpg", "x/1.jpg")
    source = Folder(tmp_path)
    assert class_names(source) == ["caf%E8", "caf%E9", "x"]
    found, _ = read(source)
    assert found["train"] == {
        "caf%E8/1.jpg": "caf%E8",
        "caf%E8/%FF.jpg": "caf%E8",
        "caf%E9/1.jpg": "caf%E9",
        "x/1.jpg": "x",
    }
    write(tmp_path, "caf%E9/1.jpg")
    with pytest.raises(Error, match="would both be called caf%E9"):
        Folder(tmp_path)


def test_a_root_that_is_not_utf8(tmp_path):
    root = os.fsdecode(os.fsencode(tmp_path) + b"/d\xe9p\xf4t")
    write(root, "x/1.jpg")
    source = Folder(root)
    assert source.release == "folder d%E9p%F4t"
    assert read(source)[0]["train"] == {"x/1.jpg": "x"}


# ---------------------------------------------------------------------------------------------------------- splits


@pytest.mark.parametrize(
    ("train", "held_out", "split"),
    [
        ("train", "val", "val"),
        ("Train", "Validation", "val"),
        ("training", "dev", "val"),
        ("TRAIN", "test", "val"),
        ("train2017", "val2017", "val"),
        ("training_set", "test_set", "val"),
        ("Train-images", "eval_images", "val"),
    ],
)
def test_split_names(tmp_path, train, held_out, split):
    write(tmp_path, f"{train}/cat/1.jpg", f"{held_out}/cat/1.jpg")
    source = Folder(tmp_path)
    assert {s: list(found) for s, found in read(source)[0].items()} == {
        "train": [f"{train}/cat/1.jpg"],
        split: [f"{held_out}/cat/1.jpg"],
    }
    assert ("is the only one that is held out" in told(source)) == ("test" in held_out)


def test_val_and_test_are_two_splits(tmp_path):
    write(tmp_path, "train/cat/1.jpg", "valid/cat/1.jpg", "Test/cat/1.jpg")
    assert set(read(Folder(tmp_path))[0]) == {"train", "val", "test"}


@pytest.mark.parametrize(
    "extra", ["samples/example.jpg", "README.md", "annotations/1.xml", "labels.csv", "raw/a/1.jpg"]
)
def test_what_lies_beside_train_and_val(tmp_path, extra):
    write(tmp_path, "train/cat/1.jpg", "train/dog/1.jpg", "val/cat/1.jpg", "val/dog/1.jpg", extra)
    source = Folder(tmp_path)
    found, listed = read(source)
    assert class_names(source) == ["cat", "dog"]
    assert {split: len(samples) for split, samples in found.items()} == {"train": 2, "val": 2}
    name = extra.partition("/")[0]
    assert name in told(source) and name in {origin.rstrip("/") for origin in listed}


def test_a_folder_beside_a_lone_train_may_be_a_class(tmp_path):
    write(tmp_path, "train/cat/1.jpg", "docs/a.txt")
    assert class_names(Folder(tmp_path)) == ["cat"]
    write(tmp_path, "bus/1.jpg")
    with pytest.raises(Error, match="bus beside train may be a class"):
        Folder(tmp_path)


def test_classes_that_are_called_as_splits(tmp_path):
    write(tmp_path, "train/1.jpg", "bus/1.jpg", "car/1.jpg", "bullet train/2020/1.jpg", "test tube/1.jpg")
    assert class_names(Folder(tmp_path)) == ["bullet train", "bus", "car", "test tube", "train"]


def test_a_test_split_without_classes_is_left_out(tmp_path):
    write(tmp_path, "train/cat/1.jpg", "val/cat/1.jpg", "test/1.jpg", "test/2.jpg")
    source = Folder(tmp_path)
    found, listed = read(source)
    assert set(found) == {"train", "val"} and "test" in told(source) and "test/" in listed
    write(tmp_path, "testing/unknown/1.jpg")
    assert set(read(Folder(tmp_path))[0]) == {"train", "val"}
    write(tmp_path, "dev/1.jpg")
    with pytest.raises(Error, match="dev has no class folders"):
        Folder(tmp_path)
    write(tmp_path, "dev/Cat/1.jpg")
    with pytest.raises(Error, match="dev has none of train's, but Cat"):
        Folder(tmp_path)


def test_a_class_that_only_val_has_is_named(tmp_path):
    write(tmp_path, "train/cat/1.jpg", "val/cat/1.jpg", "val/Dog/1.jpg")
    source = Folder(tmp_path)
    assert class_names(source) == ["Dog", "cat"] and "classes of val that train lacks: Dog" in told(source)


def test_one_class_is_said(tmp_path):
    write(tmp_path, "images/1.jpg", "labels.csv")
    assert "one class only: images" in told(Folder(tmp_path)) and "labels.csv" in told(Folder(tmp_path))


def test_a_split_in_a_folder_of_its_own_name(tmp_path):
    write(tmp_path / "sets", "training_set/training_set/cats/1.jpg", "training_set/training_set/dogs/1.jpg")
    write(tmp_path / "sets", "test_set/test_set/cats/1.jpg")
    assert {s: len(found) for s, found in read(Folder(tmp_path / "sets"))[0].items()} == {"train": 2, "val": 1}
    tmp_path = tmp_path / "plain"
    write(tmp_path, "train/train/cats/1.jpg", "train/train/dogs/1.jpg", "test/test/cats/1.jpg", "test/README.md")
    source = Folder(tmp_path)
    assert class_names(source) == ["cats", "dogs"]
    assert {s: len(found) for s, found in read(source)[0].items()} == {"train": 2, "val": 1}
    assert "holds nothing but train" in told(source) and "README.md" in told(source)


@pytest.mark.parametrize(
    "names",
    [
        ("data/train/cat/1.jpg", "data/val/cat/1.jpg"),  # a folder around the splits
        ("data/cat/1.jpg", "data/dog/1.jpg"),  # a folder around the classes
        ("train/images/cat/1.jpg", "train/images/dog/1.jpg"),
        ("cat/train/1.jpg", "cat/test/1.jpg", "dog/train/1.jpg", "dog/test/1.jpg"),  # splits below the classes
        ("train/train/cat/1.jpg", "train/val/cat/1.jpg"),
        ("train/1.jpg", "val/2.jpg"),  # no classes at all
        ("1.jpg", "2.jpg"),
        ("val/cat/1.jpg", "cat/1.jpg", "dog/1.jpg"),
    ],
)
def test_layouts_that_can_be_read_in_two_ways_are_refused(tmp_path, names):
    write(tmp_path, *names)
    with pytest.raises(Error) as caught:
        Folder(tmp_path)
    assert "\n" not in str(caught.value) and str(tmp_path) in str(caught.value)


def test_two_folders_of_one_split_add_up_or_are_refused(tmp_path):
    write(tmp_path, "train/cat/1.jpg", "val/cat/1.jpg", "valid/cat/2.jpg", "valid/dog/1.jpg", "train/dog/1.jpg")
    source = Folder(tmp_path)
    assert set(read(source)[0]["val"]) == {"val/cat/1.jpg", "valid/cat/2.jpg", "valid/dog/1.jpg"}
    assert "val and valid are both the split 'val'" in told(source)
    write(tmp_path, "valid/cat/1.png")
    with pytest.raises(Error, match=r"val/cat/1.jpg and valid/cat/1.png are of one split and one name"):
        Folder(tmp_path)


def test_only_the_splits_that_are_asked_for_are_listed(tmp_path, monkeypatch):
    write(tmp_path, "train/cat/1.jpg", "train/dog/1.jpg", "val/dog/1.jpg", "train/empty/1.txt")
    listed = []
    monkeypatch.setattr(
        Folder, "_list", lambda self, below, real=Folder._list: (listed.append(below), real(self, below))[1]
    )
    source = Folder(tmp_path, only=("validation",))
    assert class_names(source) == ["cat", "dog"] and {u.split for u in source.units()} == {"val"}
    assert set(listed) == {"val/dog"}


def test_a_split_without_images_is_an_error(tmp_path):
    make_folder(tmp_path, splits=("train",))
    (tmp_path / "val" / "cat").mkdir(parents=True)
    with pytest.raises(Error, match=r"split 'val' of .* has no images"):
        Folder(tmp_path)


def test_mistakes(tmp_path):
    with pytest.raises(Error, match="no folder at"):
        Folder(tmp_path / "none")
    (tmp_path / "file").write_bytes(b"")
    with pytest.raises(Error, match="is a file"):
        Folder(tmp_path / "file")
    (tmp_path / "file").unlink()
    with pytest.raises(Error, match="no class folders"):
        Folder(tmp_path)


def test_extracted_tinyimagenet(tmp_path):
    write(tmp_path, *(f"train/{w}/images/{w}_{i}.JPEG" for w in ("n1", "n2") for i in range(3)))
    write(tmp_path, "train/n1/n1_boxes.txt", "train/n2/n2_boxes.txt", "wnids.txt", "words.txt", data=b"x")
    write(
        tmp_path, "val/images/val_0.JPEG", "val/images/val_1.JPEG", "val/images/val_2.JPEG", "test/images/test_0.JPEG"
    )
    (tmp_path / "val" / "val_annotations.txt").write_bytes(b"val_0.JPEG\tn2\t0\t0\t9\t9\nval_1.JPEG\tn1\t0\t0\t9\t9\n")
    source = Folder(tmp_path)
    found, listed = read(source)
    assert found["train"] == {f"train/{w}/images/{w}_{i}.JPEG": w for w in ("n1", "n2") for i in range(3)}
    assert found["val"] == {"val/images/val_0.JPEG": "n2", "val/images/val_1.JPEG": "n1"}
    assert listed == {
        "val/images/val_2.JPEG": "no class is given for it",
        "test/": "a folder without class folders of train's: nothing says what its images are",
    }
    (tmp_path / "val" / "val_annotations.txt").write_bytes(b"val_0.JPEG\tn2\nval_0.JPEG\tn1\n")
    with pytest.raises(Error, match=r"gives two classes to val_0.JPEG"):
        Folder(tmp_path)


def test_labelled_images_of_classes_without_a_folder_are_named(tmp_path):
    write(tmp_path, "train/n1/1.jpg", "val/a.jpg", "val/b.jpg")
    labelled = {"val": {"a.jpg": "n1", "b.jpg": "n7", "gone.jpg": "n1"}}
    source = Folder(tmp_path, labelled=labelled)
    found, listed = read(source)
    assert found["val"] == {"val/a.jpg": "n1"} and not listed
    assert "1 file left out, as there is no folder of their 1 class: n7" in told(source)
    assert "lacks 1 of the 3 files with labels" in told(source)
    assert not Folder(tmp_path, ClassFilter(classes=("n1",)), labelled={"val": {"a.jpg": "n1", "b.jpg": "n7"}}).warnings


# ------------------------------------------------------------------------------------------- what is no plain file


def test_links_to_folders_and_files_are_followed(tmp_path):
    real = write(
        tmp_path / "real", *(f"{s}/{c}/{i}.jpg" for s in ("train", "val") for c in ("cat", "dog") for i in range(3))
    )
    made = tmp_path / "made"
    (made / "train").mkdir(parents=True)
    (made / "val").symlink_to(real / "val")
    (made / "train" / "cat").symlink_to(real / "train" / "cat")
    (made / "train" / "kitten").symlink_to(real / "train" / "cat")
    (made / "train" / "dog").mkdir()
    (made / "train" / "dog" / "1.jpg").symlink_to(real / "train" / "dog" / "1.jpg")
    found, listed = read(Folder(made))
    assert {s: len(samples) for s, samples in found.items()} == {"train": 7, "val": 6} and not listed


def test_loops_of_links_are_refused(tmp_path):
    write(tmp_path / "in", "train/cat/1.jpg")
    (tmp_path / "in" / "train" / "cat" / "loop").symlink_to(tmp_path)
    with pytest.raises(Error, match=r"in/train/cat/loop is the same folder as one around it: a loop; remove the link$"):
        Folder(tmp_path / "in")


def test_what_is_no_file_is_listed_and_never_opened(tmp_path):
    write(tmp_path, "cat/1.jpg", "dog/1.jpg")
    os.mkfifo(tmp_path / "cat" / "2.jpg")
    (tmp_path / "cat" / "3.jpg").symlink_to("/dev/zero")
    (tmp_path / "cat" / "4.jpg").symlink_to("/nowhere")
    (tmp_path / "cat" / "5.jpg").symlink_to(tmp_path / "cat" / "5.jpg")
    with socket.socket(socket.AF_UNIX) as s:
        there = os.getcwd()
        os.chdir(tmp_path / "cat")  # names of sockets are short
        s.bind("6.jpg")
        os.chdir(there)
    with open(tmp_path / "cat" / "7.jpg", "wb") as f:
        f.truncate(300 << 30)
    found, listed = read(Folder(tmp_path))
    assert len(found["train"]) == 2
    assert listed == {
        "cat/2.jpg": "no file but a FIFO",
        "cat/3.jpg": "no file but a device",
        "cat/4.jpg": "a link that leads nowhere: No such file or directory",
        "cat/5.jpg": "a link that leads nowhere: Too many levels of symbolic links",
        "cat/6.jpg": "no file but a socket",
        "cat/7.jpg": "has 322,122,547,200 bytes; at most 256 MiB are read",
    }


def test_a_file_that_becomes_a_fifo_vanishes_or_is_added(tmp_path):
    write(tmp_path, "cat/1.jpg", "dog/1.jpg")
    source = Folder(tmp_path)
    (unit,) = source.units()
    before = source.stamps()
    (tmp_path / "cat" / "1.jpg").unlink()
    os.mkfifo(tmp_path / "cat" / "1.jpg")
    assert files.read_file(str(tmp_path / "cat" / "1.jpg")) == "is no file any more"
    assert source.stamps() != before
    with pytest.raises(Error, match="cat changed while it was converted"):
        list(pickle.loads(pickle.dumps(source)).samples(unit))
    (tmp_path / "cat" / "1.jpg").unlink()
    with pytest.raises(Error, match="vanished while it was converted"):
        files.read_file(str(tmp_path / "cat" / "1.jpg"))


def test_stamps_tell_what_happens_to_the_pictures_that_are_read(tmp_path):
    write(tmp_path, "train/cat/1.jpg", "train/cat/a/2.jpg", "val/cat/1.jpg", "docs/a.txt")
    source = Folder(tmp_path)
    seen = [source.stamps()]
    write(tmp_path, "docs/b.txt", "out/x")  # not read
    assert source.stamps() == seen[0]
    for change in (
        lambda: write(tmp_path, "train/cat/a/2.jpg", data=JPEG[:-9]),
        lambda: write(tmp_path, "val/cat/2.jpg"),
        lambda: (tmp_path / "val/cat/2.jpg").unlink(),
    ):
        change()
        seen.append(source.stamps())
    assert seen[0] == seen[0] and len({str(s) for s in seen}) >= 3 and seen[-1] != seen[-2]


# ----------------------------------------------------------------------------------------------------------- units


def test_units_are_ranges_of_names_that_are_listed_again(tmp_path, monkeypatch):
    for name in ("big", "small", "tiny"):
        (tmp_path / name).mkdir()
        for i in range({"big": 55, "small": 9, "tiny": 2}[name]):
            (tmp_path / name / f"{i}.jpg").write_bytes(f"{name} {i}".encode())
    monkeypatch.setattr(folder, "LEAST_IMAGES", 10)
    source = Folder(tmp_path)
    units = source.units()
    assert [u.num_samples for u in units] == [10] * 6 + [6] and all(u.exact for u in units)
    assert len(pickle.dumps(units)) < 3000  # of names there are none in it
    assert len(set(keys(source).values())) == 66
    split = Folder(tmp_path, ClassFilter(min_class_size=3, val_per_class=4))
    found, _ = read(split)
    assert len(found["train"]) + len(found["val"]) == 64
    assert split.splits == ("train", "val") and split.drops_empty_classes
    assert {k for k in found["val"] if k.startswith("big")} == {f"big/{i}.jpg" for i in (0, 1, 10, 11)}
    copy = pickle.loads(pickle.dumps(source))
    (tmp_path / "big" / "99.jpg").write_bytes(b"")
    with pytest.raises(Error, match="big changed while it was converted"):
        list(copy.samples(units[0]))


def test_only_what_looks_like_an_image_is_held_out(tmp_path):
    write(tmp_path / "cat", *(f"{i}.jpg" for i in range(4)), "0.txt")
    write(tmp_path / "dog", *(f"{i}.jpg" for i in range(4)))
    found, _ = read(Folder(tmp_path, ClassFilter(val_per_class=1)))
    assert set(found["val"]) == {"cat/0.jpg", "dog/0.jpg"} and "cat/0.txt" in found["train"]


def test_a_folder_with_everything_end_to_end(tmp_path):
    src = tmp_path / "in"
    write(src, "train/cat/1.jpg", "train/cat/more/2.bmp", "train/dog\n/1.jpg", b"train/caf\xe9/\xe8.jpg")
    (src / "train/cat/more/2.bmp").write_bytes(encoded(picture(20, 20, 3), "BMP"))
    write(src, "val/cat/1.jpg", "train/cat/Thumbs.db", "extra/1.jpg")
    write(src, "train/cat/notes.txt", data=b"these are no pixels")
    manifest, lines = convert_quietly(
        dataset="folder", source=str(src), res=16, out=tmp_path / "out", workers=1, max_skipped=0.5
    )
    assert {name: split.num_samples for name, split in manifest.splits.items()} == {"train": 4, "val": 1}
    skipped = {row["source"] for row in read_jsonl(tmp_path / "out" / "skipped.jsonl")}
    assert {"train/cat/notes.txt", "train/cat/Thumbs.db", "extra/"} <= skipped
    assert any("extra" in line for line in lines)
