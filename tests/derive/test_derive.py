"""Directories made of directories: everything is the same bytes, a part is that part, and nothing is lost unsaid."""

import hashlib
import io
import json
import re
import sys
import tarfile
from pathlib import Path

import numpy as np
import pytest
from archives import encoded, make_folder, make_ilsvrc, picture
from conftest import ROOT, Inline, change_manifest, convert_quietly, relist, run_cli

import mlpdata
from mlpdata import Error
from mlpdata.convert import run
from mlpdata.convert.derived import derive
from mlpdata.derive.derivation import Derivation, SplitOff
from mlpdata.derive.duplicates import find_duplicates
from mlpdata.inspect.info import info
from mlpdata.inspect.verify import verify
from mlpdata.shards import index
from mlpdata.shards.classes import read_classes, read_real
from mlpdata.shards.manifest import Manifest

sys.path.insert(0, str(ROOT / "tests" / "golden"))
import cases

DATA = (".beton", ".tar", ".parquet", "classes.txt", "_info.json", "skipped.jsonl", ".real.json")


@pytest.fixture(autouse=True)
def inline(monkeypatch):
    monkeypatch.setattr(run, "LocalEngine", Inline)


def make(command, *directories, out, said=None, output=None, **choices):
    """Derive, prove the result whole and return its manifest."""
    derivation = Derivation(command=command, directories=tuple(directories), **choices)
    manifest = derive(derivation, out, quiet=True, say=(said if said is not None else []).append, **(output or {}))
    assert not verify(out, quiet=True)[1].problems
    return manifest


def data_sums(root):
    """SHA-256 of every file that holds data: not of the card and the manifest, which name the directory's origin."""
    return {
        path.name: hashlib.sha256(path.read_bytes()).hexdigest()
        for path in Path(root).iterdir()
        if path.name.endswith(DATA)
    }


def rows(root, split):
    """{key: (label, digest)} of a split."""
    manifest = Manifest.load(root)
    columns = index.columns(root, manifest, split, ["label", "digest"])
    keys = index.keys(root, manifest, split)
    return dict(zip(keys, zip(columns["label"].tolist(), columns["digest"].tolist(), strict=True), strict=True))


@pytest.fixture(scope="module")
def small_dir(tmp_path_factory):
    """300 train and 300 val samples of ten classes at 16 px: raw beton, PNG tars of 80."""
    out = tmp_path_factory.mktemp("small") / "small-16"
    convert_quietly(dataset="shapes", res=16, out=out, limit=300, shard_size=80, workers=1)
    return out


@pytest.fixture(scope="module")
def mixed_dir(tmp_path_factory):
    """JPEGs kept and encoded, PNGs, damaged ones that are skipped, equal images, unequal classes, a leak into val."""
    base = tmp_path_factory.mktemp("mixed")
    make_folder(base / "in", per_class=11)
    twin = encoded(picture(32, 32, 900))
    for name in ("train/cat/twin-a", "train/cat/twin-b", "train/dog/twin-c", "val/cat/twin-d", "train/dog/x"):
        (base / "in" / f"{name}.jpg").write_bytes(twin if "twin" in name else encoded(picture(32, 32, 901)))
    (base / "in" / "train" / "cat" / "cut.jpg").write_bytes(twin[:150])
    convert_quietly(dataset="folder", source=str(base / "in"), res=32, out=base / "mixed", shard_size=7,
                    max_skipped=0.1, workers=1)  # fmt: skip
    return base / "mixed"


@pytest.fixture(scope="module")
def ilsvrc_dir(tmp_path_factory):
    """Some of ImageNet-1k, with ReaL labels."""
    base = tmp_path_factory.mktemp("ilsvrc")
    make_ilsvrc(base / "in")
    convert_quietly(dataset="imagenet1k", source=str(base / "in"), res=24, out=base / "out", workers=1)
    return base / "out"


def test_classes_that_look_alike_are_told_and_may_be_written_either_way(tmp_path):
    """One file system forms accents in one way, one in another: of two such directories a union has the class twice."""
    for name, accent in (("a", "caf\u00e9"), ("b", "cafe\u0301")):
        for i, label in enumerate((accent, "bar")):
            folder = tmp_path / f"in-{name}" / "train" / label
            folder.mkdir(parents=True)
            (folder / f"{name}.jpg").write_bytes(encoded(picture(40, 30, seed=i)))
        source = str(tmp_path / f"in-{name}")
        _, lines = convert_quietly(dataset="folder", source=source, res=24, out=tmp_path / name, workers=1)
        assert not any("look alike" in line for line in lines)
    said = []
    manifest = make("merge", tmp_path / "a", tmp_path / "b", out=tmp_path / "c", union=True, said=said)
    assert manifest.num_classes == 3
    assert "warning: classes 'caf\\xe9' and 'cafe\\u0301' look alike, and stay different classes" in said
    make("subset", tmp_path / "b", out=tmp_path / "d", classes=("caf\u00e9",))
    assert [name for name, _ in read_classes(tmp_path / "d")] == ["cafe\u0301"]
    make("subset", tmp_path / "c", out=tmp_path / "e", classes=("caf\u00e9",))
    assert [name for name, _ in read_classes(tmp_path / "e")] == ["caf\u00e9"]


@pytest.mark.parametrize(("names", "said"), [(("1", "2", "10"), "class 10 has label 1"), (("01", "02", "10"), "")])
def test_classes_that_are_numbers_and_do_not_count_as_their_labels_do(tmp_path, names, said):
    for i, name in enumerate(names):
        (tmp_path / "in" / name).mkdir(parents=True)
        (tmp_path / "in" / name / "a.jpg").write_bytes(encoded(picture(40, 30, seed=i)))
    _, lines = convert_quietly(dataset="folder", source=str(tmp_path / "in"), res=24, out=tmp_path / "a", workers=1)
    found = [line for line in lines if "the classes are numbers" in line]
    assert [line.rpartition(": ")[2] for line in found] == ([said] if said else [])


# ----------------------------------------------------------------------------------------------------- the same bytes


CONVERSIONS = [
    {},
    {"codec": "raw"},
    {"codec": "jpg"},
    {"codec": "png"},
    {"format": "tar"},
    {"format": "beton"},
    {"format": "tar", "codec": "jpg"},
    {"format": "beton", "codec": "jpg"},
    {"resize": "longest"},
    {"resize": "longest", "codec": "raw"},
    {"seed": 5, "shard_size": 3},
]


@pytest.mark.parametrize("options", CONVERSIONS, ids=str)
def test_all_of_a_directory_is_the_same_bytes(tmp_path, options):
    make_folder(tmp_path / "in", per_class=5)
    (tmp_path / "in" / "train" / "cat" / "kept.jpg").write_bytes(encoded(picture(30, 30, 1)))
    (tmp_path / "in" / "train" / "cat" / "bad.jpg").write_bytes(b"no image")
    options = {"res": 30, "shard_size": 6, "max_skipped": 0.2, **options}
    parent, _ = convert_quietly(dataset="folder", source=str(tmp_path / "in"), out=tmp_path / "a", **options)
    manifest = make("subset", tmp_path / "a", out=tmp_path / "b")
    assert data_sums(tmp_path / "b") == data_sums(tmp_path / "a")
    for field in ("release", "source_files", "mean", "std", "quality", "splits", "fidelity", "codec", "image_library"):
        assert getattr(manifest, field) == getattr(parent, field), field
    path = tmp_path / "a" / "manifest.json"
    assert manifest.parents == [
        {"name": "a", "sha256": hashlib.sha256(path.read_bytes()).hexdigest(), "command": parent.command_with_source,
         "dataset": "folder", "release": parent.release}
    ]  # fmt: skip


def test_a_manifest_of_an_archive_says_nothing_of_parents(photos_dir):
    assert "parents" not in json.loads((photos_dir / "manifest.json").read_text())
    assert "parents" not in json.loads(info(photos_dir, as_json=True))


def test_lineage_goes_back_to_the_archive(tmp_path, photos_dir):
    make("subset", photos_dir, out=tmp_path / "a", limit=20)
    make("resize", tmp_path / "a", out=tmp_path / "b", output={"res": 16})
    lines = Manifest.load(tmp_path / "b").lineage
    assert [line.strip().split(" ")[0] for line in lines] == ["a", photos_dir.name]
    for text in (info(tmp_path / "b"), (tmp_path / "b" / "README.md").read_text()):
        assert all(line in text for line in lines)


def test_seed_and_shard_size_are_those_of_a_conversion(tmp_path, mixed_dir):
    make("subset", mixed_dir, out=tmp_path / "other", output={"seed": 9, "shard_size": 4})
    make("subset", tmp_path / "other", out=tmp_path / "back", output={"seed": 0, "shard_size": 7})
    assert data_sums(tmp_path / "other") != data_sums(mixed_dir)
    assert data_sums(tmp_path / "back") == data_sums(mixed_dir)


@pytest.mark.parametrize("fixture", ["mixed_dir", "small_dir"])
def test_each_format_is_made_of_the_other(tmp_path, fixture, request):
    root = request.getfixturevalue(fixture)
    make("subset", root, out=tmp_path / "beton", output={"format": "beton"})
    make("subset", root, out=tmp_path / "tar", output={"format": "tar"})
    make("subset", tmp_path / "tar", out=tmp_path / "both", output={"format": "both"})
    expected = data_sums(root)
    for part in ("beton", "tar"):
        made = {name: s for name, s in data_sums(tmp_path / part).items() if name.endswith(part)}
        assert made == {name: s for name, s in expected.items() if name.endswith(part)}
    tars = {name: s for name, s in data_sums(tmp_path / "both").items() if name.endswith(".tar")}
    assert tars == {name: s for name, s in expected.items() if name.endswith(".tar")}
    if fixture == "small_dir":  # PNGs give the pixels back
        assert data_sums(tmp_path / "both") == expected
        make("subset", tmp_path / "beton", out=tmp_path / "again", output={"format": "both", "codec": "auto"})
        assert data_sums(tmp_path / "again") == expected


@pytest.mark.parametrize("name", cases.OLD)
def test_a_directory_of_an_earlier_version_is_taken_as_it_is(tmp_path, name):
    with tarfile.open(cases.FOLDER / "old" / f"{name}.tar.xz") as tar:
        tar.extractall(tmp_path / "old", filter="data")
    manifest = make("subset", tmp_path / "old", out=tmp_path / "new")
    made, old = data_sums(tmp_path / "new"), data_sums(tmp_path / "old")
    if cases.versions()["index"] != json.loads((cases.FOLDER / "sums.json").read_text())["versions"]["index"]:
        made, old = ({n: s for n, s in x.items() if not n.endswith(".parquet")} for x in (made, old))
    assert made == old
    assert manifest.image_library == Manifest.load(tmp_path / "old").image_library


# ------------------------------------------------------------------------------------------------------------ subset


def test_classes_give_the_bytes_of_a_conversion_of_these_classes(tmp_path):
    make_folder(tmp_path / "in", per_class=8)
    (tmp_path / "list").write_text("dog\ncat\n")
    for out, classes in (("all", None), ("some", tmp_path / "list")):
        convert_quietly(dataset="folder", source=str(tmp_path / "in"), res=20, out=tmp_path / out, classes=classes,
                        shard_size=6)  # fmt: skip
    said = []
    make("subset", tmp_path / "all", out=tmp_path / "derived", classes=("dog", "cat"), said=said)
    assert data_sums(tmp_path / "derived") == data_sums(tmp_path / "some")
    assert "labels are numbered anew, in the order of --classes: 2 of 3 classes" in said


def test_samples_are_drawn_by_seed_and_key_whatever_the_order(tmp_path, small_dir):
    make("subset", small_dir, out=tmp_path / "a", per_class=7)
    make("subset", small_dir, out=tmp_path / "order", output={"seed": 3, "shard_size": 50})
    make("subset", tmp_path / "order", out=tmp_path / "b", per_class=7, output={"seed": 0, "shard_size": 80})
    assert data_sums(tmp_path / "a") == data_sums(tmp_path / "b")
    make("subset", small_dir, out=tmp_path / "more", per_class=9)
    assert rows(tmp_path / "a", "val").items() < rows(tmp_path / "more", "val").items()
    make("subset", small_dir, out=tmp_path / "c", per_class=7, output={"seed": 1})
    assert rows(tmp_path / "a", "val").keys() != rows(tmp_path / "c", "val").keys()


def test_limit_is_the_first_samples_of_the_same_seed(tmp_path, small_dir):
    make("subset", small_dir, out=tmp_path / "a", limit=33)
    for split in ("train", "val"):
        assert list(rows(tmp_path / "a", split)) == list(rows(small_dir, split))[:33]


def test_a_fraction_keeps_the_shares_of_classes(tmp_path, small_dir):
    manifest = make("subset", small_dir, out=tmp_path / "a", fraction=0.1)
    before, after = (np.array(m.splits["train"].class_counts) for m in (Manifest.load(small_dir), manifest))
    assert np.array_equal(after, np.maximum(1, np.floor(before * 0.1 + 0.5)))


def test_a_split_is_held_out(tmp_path, small_dir):
    said = []
    manifest = make("subset", small_dir, out=tmp_path / "a", split_off=SplitOff("dev", 5), said=said)
    assert set(manifest.splits["dev"].class_counts) == {5}
    train, dev, before = rows(tmp_path / "a", "train"), rows(tmp_path / "a", "dev"), rows(small_dir, "train")
    assert not train.keys() & dev.keys()
    assert train | dev == before
    assert rows(tmp_path / "a", "val") == rows(small_dir, "val")
    manifest = make("subset", small_dir, out=tmp_path / "b", splits=("train",), split_off=SplitOff("val", None, 0.25))
    assert list(manifest.splits) == ["train", "val"]
    before = Manifest.load(small_dir).splits["train"].class_counts
    assert abs(np.array(manifest.splits["val"].class_counts) - 0.25 * np.array(before)).max() <= 0.5


def test_equal_images_are_left_out_those_of_val_stay(tmp_path, mixed_dir):
    said = []
    make("subset", mixed_dir, out=tmp_path / "a", dedupe="exact", said=said)
    kept = [key for split in ("train", "val") for key in rows(tmp_path / "a", split) if "twin" in key]
    assert kept == ["cat/twin-d"]
    listed = [json.loads(line) for line in (tmp_path / "a" / "skipped.jsonl").read_text().splitlines()]
    removed = [row for row in listed if "twin" in row["source"]]
    assert {row["reason"] for row in removed} == {"equal pixels to val/cat/twin-d"}
    assert len(removed) == 3
    assert any("cut.jpg" in row["source"] for row in listed), "what was skipped before stays listed"
    assert "3 images with the pixels of another left out, 3 with those of another split's" in said
    assert "warning: labels differ in 1 group of equal images: that of the one kept stays" in said


def test_real_labels_follow_their_images(tmp_path, ilsvrc_dir):
    root = ilsvrc_dir
    names = [name for name, _ in read_classes(root)]
    make("subset", root, out=tmp_path / "all")
    assert data_sums(tmp_path / "all") == data_sums(root)
    chosen = tuple(reversed(names[:400]))
    manifest = make("subset", root, out=tmp_path / "some", classes=chosen)
    real, before = read_real(tmp_path / "some", manifest, "val"), read_real(root, Manifest.load(root), "val")
    assert real is not None
    assert list(real) == [key for key in rows(tmp_path / "some", "val") if key in before]
    for key, labels in real.items():
        assert [chosen[n] for n in labels] == [names[n] for n in before[key] if names[n] in chosen]


def test_real_labels_of_images_that_get_another_key(tmp_path, ilsvrc_dir):
    names = [name for name, _ in read_classes(ilsvrc_dir)]
    make("subset", ilsvrc_dir, out=tmp_path / "a", splits=("val",))
    make("subset", ilsvrc_dir, out=tmp_path / "b", splits=("val",), limit=5)
    manifest = make("merge", tmp_path / "a", tmp_path / "b", out=tmp_path / "c")
    whole, real = read_real(ilsvrc_dir, Manifest.load(ilsvrc_dir), "val"), read_real(tmp_path / "c", manifest, "val")
    assert whole and real
    twice = rows(tmp_path / "b", "val").keys()
    expected = {f"a/{key}" if key in twice else key: row for key, row in whole.items()}
    assert real == expected | {f"b/{key}": whole[key] for key in twice}
    (tmp_path / "map").write_text("".join(f"{name}\tall\n" for name in names))
    manifest = make("relabel", tmp_path / "a", out=tmp_path / "d", label_map=tmp_path / "map")
    assert read_real(tmp_path / "d", manifest, "val") == {key: [0] if row else [] for key, row in whole.items()}


def test_real_labels_are_for_their_split_alone(tmp_path, ilsvrc_dir):
    """A training image that happens to have the key of a val image has no ReaL labels."""
    make("subset", ilsvrc_dir, out=tmp_path / "a", splits=("val",))
    key = next(iter(rows(tmp_path / "a", "val")))
    (tmp_path / "in").mkdir()
    with tarfile.open(tmp_path / "in" / "train-000000.tar", "w") as tar:
        for name, data in ((f"{key}.jpg", encoded(picture(40, 30, seed=1))), (f"{key}.cls", b"0")):
            member = tarfile.TarInfo(name)
            member.size = len(data)
            tar.addfile(member, io.BytesIO(data))
    convert_quietly(dataset="wds", source=str(tmp_path / "in"), res=24, out=tmp_path / "b", workers=1)
    assert list(rows(tmp_path / "b", "train")) == [key]
    manifest = make("merge", tmp_path / "a", tmp_path / "b", out=tmp_path / "c", union=True)
    assert list(rows(tmp_path / "c", "train")) == [key]
    assert read_real(tmp_path / "c", manifest, "train") is None
    assert read_real(tmp_path / "c", manifest, "val") == read_real(ilsvrc_dir, Manifest.load(ilsvrc_dir), "val")


# ------------------------------------------------------------------------------------- merge, relabel, resize


def test_halves_come_together_again(tmp_path, small_dir):
    names = [name for name, _ in read_classes(small_dir)]
    make("subset", small_dir, out=tmp_path / "a", classes=tuple(names[:3]))
    make("subset", small_dir, out=tmp_path / "b", classes=tuple(names[3:]))
    make("merge", tmp_path / "a", tmp_path / "b", out=tmp_path / "c", union=True)
    assert data_sums(tmp_path / "c") == data_sums(small_dir)
    assert Manifest.load(tmp_path / "c").mean == Manifest.load(small_dir).mean
    assert [p["name"] for p in Manifest.load(tmp_path / "c").parents] == ["a", "b"]


def test_where_keys_meet_the_name_of_the_directory_goes_before(tmp_path, small_dir):
    make("subset", small_dir, out=tmp_path / "a", limit=30)
    make("subset", small_dir, out=tmp_path / "b.2", limit=40)
    said = []
    make("merge", tmp_path / "a", tmp_path / "b.2", out=tmp_path / "c", said=said)
    first, merged = rows(tmp_path / "a", "train"), rows(tmp_path / "c", "train")
    expected = {f"{name}/{key}": row for name in ("a", "b%2E2") for key, row in first.items()}
    alone = {key: row for key, row in rows(tmp_path / "b.2", "train").items() if key not in first}
    assert merged == expected | alone
    assert "120 images have keys that another directory has, too: a/ and b%2E2/ go before them" in said


def test_a_merge_that_puts_images_of_train_into_val_warns(tmp_path, small_dir):
    make("subset", small_dir, out=tmp_path / "a", splits=("train",), split_off=SplitOff("val", 5))
    make("subset", small_dir, out=tmp_path / "b")
    said = []
    make("merge", tmp_path / "a", tmp_path / "b", out=tmp_path / "c", said=said)
    (warning,) = [line for line in said if "will be in" in line]
    held_out = rows(tmp_path / "a", "val")
    assert held_out and re.match(rf"warning: {len(held_out)} images of train will be in val, too", warning)
    duplicates = find_duplicates(tmp_path / "c", Manifest.load(tmp_path / "c"))
    assert duplicates.leaks()["train", "val"] == len(held_out)
    said = []
    make("merge", small_dir, tmp_path / "b", out=tmp_path / "d", said=said)
    assert not [line for line in said if "will be in" in line]


def test_the_name_of_a_directory_may_be_part_of_keys_already(tmp_path):
    for name, keys in (("cat", ("x", "y")), ("other", ("x", "cat/x", "z"))):
        for i, key in enumerate(keys):
            path = tmp_path / "in" / name / "train" / "cat" / f"{key}.png"
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(encoded(picture(8, 8, 10 * len(keys) + i), "PNG"))
        convert_quietly(dataset="folder", source=str(tmp_path / "in" / name), res=8, out=tmp_path / name, workers=1)
    make("merge", tmp_path / "cat", tmp_path / "other", out=tmp_path / "both")
    expected = {f"{n}/{key}": row for n in ("cat", "other") for key, row in rows(tmp_path / n, "train").items()}
    assert "cat/cat/x" in rows(tmp_path / "other", "train")
    assert rows(tmp_path / "both", "train") == expected


def test_classes_get_other_names(tmp_path, small_dir):
    names = [name for name, _ in read_classes(small_dir)]
    lines = [f"{name}\t{'odd' if i % 2 else 'even'}\n" for i, name in enumerate(names)]
    (tmp_path / "map").write_text("".join(["wolf\tnone\n", *lines]))
    manifest = make("relabel", small_dir, out=tmp_path / "a", label_map=tmp_path / "map", said=(said := []))
    assert f"warning: no effect of 1 line of --map, for {small_dir.name} has no such class: wolf" in said
    assert read_classes(tmp_path / "a") == [("even", "even"), ("odd", "odd")]
    old = rows(small_dir, "val")
    assert rows(tmp_path / "a", "val") == {key: (label % 2, digest) for key, (label, digest) in old.items()}
    assert manifest.mean == Manifest.load(small_dir).mean
    (tmp_path / "part").write_text("".join(lines[1:]))
    with pytest.raises(Error, match=r"part does not map 1 of the .* classes: .*--drop-unmapped"):
        make("relabel", small_dir, out=tmp_path / "b", label_map=tmp_path / "part")
    make("relabel", small_dir, out=tmp_path / "b", label_map=tmp_path / "part", drop_unmapped=True)
    assert len(rows(tmp_path / "b", "val")) == sum(label > 0 for label, _ in old.values())


def test_another_resolution_is_that_of_a_conversion_of_the_stored_images(tmp_path, small_dir):
    make("resize", small_dir, out=tmp_path / "a", output={"res": 8, "filter": "lanczos"})
    pixels, labels = mlpdata.load(small_dir, "train", 8, format="beton").arrays()
    for label in range(labels.max() + 1):
        (tmp_path / "in" / f"{label:02d}").mkdir(parents=True)
    for i, (image, label) in enumerate(zip(pixels, labels, strict=True)):
        (tmp_path / "in" / f"{label:02d}" / f"{i}.png").write_bytes(encoded(image, "PNG"))
    convert_quietly(dataset="folder", source=str(tmp_path / "in"), res=8, out=tmp_path / "b", filter="lanczos")
    digests = [sorted(d for _, d in rows(tmp_path / root, "train").values()) for root in "ab"]
    assert digests[0] == digests[1]
    sizes = index.columns(tmp_path / "a", Manifest.load(tmp_path / "a"), "train", ["source_width", "width"])
    original = index.columns(small_dir, Manifest.load(small_dir), "train", ["source_width"])
    assert set(sizes["source_width"].tolist()) == set(original["source_width"].tolist())
    said = []
    make("resize", small_dir, out=tmp_path / "c", output={"res": 20}, said=said)
    assert "warning: images of 16 px are enlarged to 20: they show no more than before" in said


# ------------------------------------------------------------------------------------------------------- wrong uses


@pytest.mark.parametrize(
    ("name", "message"), [("none.txt", "there is no such file"), ("names.txt", "it is not UTF-8 text")]
)
def test_a_wrong_file_of_classes_is_refused(small_dir, tmp_path, name, message):
    (tmp_path / "names.txt").write_bytes(b"\xff\xfe")
    done = run_cli("subset", small_dir, "--classes", tmp_path / name, "--out", tmp_path / "out")
    assert done.returncode == 1 and message in done.stderr and done.stderr.count("\n") == 1


def test_classes_may_be_named_as_in_classes_txt(tmp_path):
    names = ["a\nb", "back\\slash", "blank ", "plain"]
    make_folder(tmp_path / "photos", splits=("train",), classes=names)
    convert_quietly(dataset="folder", source=str(tmp_path / "photos"), res=8, format="tar", out=tmp_path / "in")
    lines = (tmp_path / "in" / "classes.txt").read_text().split("\n")[:-1]
    assert lines != names
    for asked, out in ((tuple(lines), "a"), (tuple(name.strip() for name in names), "b")):
        make("subset", tmp_path / "in", out=tmp_path / out, classes=asked[::-1])
        assert [name for name, _ in read_classes(tmp_path / out)] == names[::-1]
    with pytest.raises(Error, match="--classes names a class twice"):
        make("subset", tmp_path / "in", out=tmp_path / "c", classes=("a\nb", "a\\nb"))


@pytest.mark.parametrize("mark", [b"", b"\xef\xbb\xbf"])
@pytest.mark.parametrize("end", [b"\n", b"\r\n", b"\r"])
def test_a_list_of_classes_as_any_editor_saves_it(small_dir, tmp_path, mark, end):
    names = [name.encode() for name, _ in read_classes(small_dir)][1::-1]
    (tmp_path / "names.txt").write_bytes(mark + end.join([names[0], b"", b" " + names[1] + b"\treadable ", b""]))
    done = run_cli("subset", small_dir, "--classes", tmp_path / "names.txt", "--out", tmp_path / "out", "--quiet")
    assert done.returncode == 0, done.stderr
    assert [name.encode() for name, _ in read_classes(tmp_path / "out")] == names


def test_wrong_uses_are_one_line(tmp_path, small_dir, photos_dir):
    make("subset", small_dir, out=tmp_path / "a", limit=10)
    (tmp_path / "foreign").mkdir()
    (tmp_path / "foreign" / "mine.txt").write_text("x")
    (tmp_path / "unfinished" / ".convert").mkdir(parents=True)
    a = tmp_path / "a"
    for message, run_ in (
        ("is the input: it cannot be --out as well", lambda: make("subset", a, out=a)),
        ("which is the input; choose another", lambda: make("subset", a, out=a / "b")),
        ("no shard directory at", lambda: make("subset", tmp_path / "no", out=tmp_path / "b")),
        ("did not finish", lambda: make("subset", tmp_path / "unfinished", out=tmp_path / "b")),
        ("it is not a shard directory", lambda: make("subset", tmp_path / "foreign", out=tmp_path / "b")),
        ("not a conversion of mlpdata", lambda: make("subset", a, out=tmp_path / "foreign")),
        ("another conversion", lambda: make("subset", small_dir, out=a, limit=11)),
        ("name each once", lambda: make("merge", a, a, out=tmp_path / "b")),
        ("mlpdata resize", lambda: make("merge", a, photos_dir, out=tmp_path / "b")),
        ("lacks the class asked for: zebra", lambda: make("subset", a, out=tmp_path / "b", classes=("zebra",))),
        ("no split 'extra'", lambda: make("subset", a, out=tmp_path / "b", splits=("extra",))),
        (
            "a split val already .*; name another one, or leave that one out with --split train",
            lambda: make("subset", a, out=tmp_path / "b", split_off=SplitOff("val", 1)),
        ),
        ("leaves none of the", lambda: make("subset", a, out=tmp_path / "b", split_off=SplitOff("dev", 9))),
    ):
        with pytest.raises(Error, match=message) as e:
            run_()
        assert "\n" not in str(e.value)
    assert not (tmp_path / "b").exists()


def test_different_classes_are_not_put_together_unasked(tmp_path, small_dir):
    names = [name for name, _ in read_classes(small_dir)]
    make("subset", small_dir, out=tmp_path / "a", classes=tuple(names[:3]), limit=10)
    make("subset", small_dir, out=tmp_path / "b", classes=tuple(names[2:]), limit=10)
    with pytest.raises(Error, match=r"other classes .* only b has .*--classes union"):
        make("merge", tmp_path / "a", tmp_path / "b", out=tmp_path / "c")
    make("subset", small_dir, out=tmp_path / "r", classes=tuple(names[2::-1]), limit=10)
    with pytest.raises(Error, match=r"the same classes in another order.*--classes union"):
        make("merge", tmp_path / "a", tmp_path / "r", out=tmp_path / "c")


def flip(path, offset):
    data = bytearray(path.read_bytes())
    data[offset] ^= 1
    path.write_bytes(data)


@pytest.mark.parametrize("name", ["train.beton", "train-000001.tar", "train.index.parquet", "classes.txt"])
def test_damage_is_an_error_and_no_sample_is_lost(tmp_path, photos_dir, name):
    make("subset", photos_dir, out=tmp_path / "a")
    path = tmp_path / "a" / name
    offset = int(index.rows(tmp_path / "a", Manifest.load(tmp_path / "a"), "train", 30, 1).offset[0]) + 5
    flip(path, {"train.beton": 8 << 20, "train-000001.tar": offset}.get(name, 2))
    with pytest.raises(Error, match=r"mlpdata verify|get or convert it again"):
        make("subset", tmp_path / "a", out=tmp_path / "b")
    assert not (tmp_path / "b" / "manifest.json").exists()


def test_a_damaged_jpeg_of_tars_alone_is_an_error(tmp_path, photos_dir):
    make("subset", photos_dir, out=tmp_path / "a", output={"format": "tar"})
    row = index.rows(tmp_path / "a", Manifest.load(tmp_path / "a"), "train", 3, 1)
    data = bytearray((tmp_path / "a" / row.file[0]).read_bytes())
    data[int(row.offset[0]) : int(row.offset[0]) + 20] = bytes(20)
    (tmp_path / "a" / row.file[0]).write_bytes(data)
    relist(tmp_path / "a")  # whoever made it listed what is damaged
    with pytest.raises(Error, match=r"sample .* cannot decode.*mlpdata verify"):
        make("subset", tmp_path / "a", out=tmp_path / "b", output={"format": "both"})


def test_a_finished_directory_is_that_of_these_parents_or_refused(tmp_path, small_dir):
    make("subset", small_dir, out=tmp_path / "a", limit=20)
    said = []
    make("subset", small_dir, out=tmp_path / "a", limit=20, said=said)
    assert "nothing to do" in said[-1]
    make("subset", small_dir, out=tmp_path / "p", limit=30)
    make("subset", tmp_path / "p", out=tmp_path / "q")
    change_manifest(tmp_path / "p", release="another")
    with pytest.raises(Error, match="was made from other shard directories"):
        make("subset", tmp_path / "p", out=tmp_path / "q")


def test_a_finished_directory_has_the_names_of_the_map_or_is_refused(tmp_path, small_dir):
    names = [name for name, _ in read_classes(small_dir)]
    for word in ("first", "second"):
        (tmp_path / "map").write_text("".join(f"{name}\t{word}-{name}\n" for name in names))
        if word == "first":
            make("relabel", small_dir, out=tmp_path / "a", label_map=tmp_path / "map")
    with pytest.raises(Error, match="the same with other names of classes"):
        make("relabel", small_dir, out=tmp_path / "a", label_map=tmp_path / "map")
