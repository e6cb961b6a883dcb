import gzip
import json
import multiprocessing as mp
import os
import pickle
import shutil
import tarfile

import numpy as np
import pytest
from archives import (
    EVERYTHING,
    SYNSETS,
    bad_images,
    class_images,
    encoded,
    expected,
    filtered,
    make_ilsvrc,
    make_imagenet,
    picture,
    read,
    tar_bytes,
)
from conftest import convert_quietly, read_jsonl

from mlpdata import Error, labels
from mlpdata.archive.blob import open_blob
from mlpdata.archive.gzip import GzipFile
from mlpdata.shards.classes import read_classes
from mlpdata.sources import Broken, ClassFilter, imagenet, imagenet_scan
from mlpdata.sources.imagenet import ImageNetTars
from mlpdata.sources.imagenet_detect import open_imagenet1k, open_imagenet21k
from mlpdata.sources.imagenet_release import recognise
from mlpdata.system import engines


@pytest.fixture(autouse=True)
def own_cache(tmp_path, monkeypatch):
    monkeypatch.setenv("MLPDATA_HOME", str(tmp_path / "home"))
    # What reads a gzip stream first takes over what is patched here only when forked, whatever other tests imported.
    monkeypatch.setattr(engines, "process_context", lambda: mp.get_context("fork"))


# ------------------------------------------------------------------------------------------------ layouts, releases


@pytest.mark.parametrize(("name", "folder"), [("f.tar", ""), ("w.tar.gz", "winter21_whole/"), ("x.tar", "./some/")])
def test_class_tars_plain_and_gzip(tmp_path, name, folder):
    classes = make_imagenet(tmp_path / name, folder=folder)
    source = ImageNetTars(tmp_path / name)
    assert read(source) == (expected(classes), [])
    assert [c for c, _ in source.classes] == SYNSETS and source.classes[0][1] == "tench, Tinca tinca"
    assert "cannot tell" in source.release and source.splits == ("train",)


def test_directory_of_class_tars(tmp_path):
    for i, wnid in enumerate(SYNSETS):
        (tmp_path / "d").mkdir(exist_ok=True)
        (tmp_path / "d" / f"{wnid}.tar").write_bytes(tar_bytes(class_images(wnid, 3, i)))
    found, broken = read(open_imagenet21k(tmp_path / "d", ClassFilter(), 64, tmp_path))
    assert len(found) == 15 and not broken
    assert {wnid for _, wnid, _ in found.values()} == set(SYNSETS)


def processed(per_class=6):
    files, want = {"imagenet21k_resized/readme.txt": b"x"}, {}
    for part, split in (
        ("imagenet21k_train", "train"),
        ("imagenet21k_val", "val"),
        ("imagenet21k_small_classes", None),
    ):
        for i, wnid in enumerate(SYNSETS[:3] if split else SYNSETS[3:]):
            n = per_class if split == "train" else 2
            for name, data in class_images(wnid, n, i + 10 * len(part)).items():
                name = name if split == "train" else name.replace("_", "_9")
                files[f"imagenet21k_resized/{part}/{wnid}/{name}"] = data
                if split:
                    want[name.removesuffix(".JPEG")] = (data, wnid, split)
    return files, want


@pytest.mark.parametrize("format_", [tarfile.USTAR_FORMAT, tarfile.PAX_FORMAT, tarfile.GNU_FORMAT])
def test_processed_archive_has_its_own_splits(tmp_path, format_):
    files, want = processed()
    (tmp_path / "p.tar.gz").write_bytes(gzip.compress(tar_bytes(files, format_)))
    source = ImageNetTars(tmp_path / "p.tar.gz")
    assert read(source) == (want, [Broken("imagenet21k_resized/readme.txt", "is a document", is_data=False)])
    assert source.splits == ("train", "val") and "processed and resized" in source.release
    # A class is as large as all of it: val parts, which are small, must not fall to the filter for that.
    larger = ImageNetTars(tmp_path / "p.tar.gz", filtered(min_class_size=8))
    assert read(larger)[0] == want
    with pytest.raises(Error, match=r"no class has 9 images \(the largest is n\d{8} with 8\)"):
        ImageNetTars(tmp_path / "p.tar.gz", filtered(min_class_size=9))
    with pytest.raises(Error, match="train and val of its own"):
        ImageNetTars(tmp_path / "p.tar.gz", filtered(val_per_class=2))


def test_flat_archive_takes_classes_from_file_names(tmp_path):
    classes = {w: class_images(w, 3, i) for i, w in enumerate(SYNSETS)}
    (tmp_path / "flat.tar").write_bytes(tar_bytes({n: d for files in classes.values() for n, d in files.items()}))
    assert read(ImageNetTars(tmp_path / "flat.tar")) == (expected(classes), [])


def test_releases_are_told_by_classes_and_layout():
    fall11, p, w = (list(labels.classes(n)) for n in ("fall11", "fall11-p", "winter21-p"))
    people = set(p) - set(w)
    assert recognise(fall11, [""], True).startswith("fall11 (21,841")
    assert recognise(fall11[::7], ["winter21_whole"], True).startswith("fall11 (")  # whatever its folder is called
    winter = [c for c in fall11 if c not in people]
    assert recognise(winter[:19_167], ["winter21_whole"], True).startswith("winter21 (19,167")
    assert recognise(winter[::7], [""], True).startswith("winter21 (")
    assert recognise(list(labels.classes("ilsvrc2012")), [""], True).startswith("ILSVRC2012")
    assert recognise(p, ["imagenet21k_resized/imagenet21k_train"], False).startswith("fall11-P")
    assert recognise(w, ["imagenet21k_resized/imagenet21k_train"], False).startswith("winter21-P")
    few = recognise(fall11[:20], [""], True)
    assert "cannot tell from 20 synsets" in few and "fall11" in few
    assert recognise(["cat", "dog"], [""], True).startswith("unknown release")


# ---------------------------------------------------------------------------------------------------- class filters


def test_filters_count_what_is_listed_and_hold_out_by_name(tmp_path):
    def change(classes):
        classes[SYNSETS[0]] = dict(list(classes[SYNSETS[0]].items())[:3])
        classes[SYNSETS[1]][f"{SYNSETS[1]}_100.JPEG"] = b"not readable, yet listed"

    for name in ("f.tar", "f.tar.gz"):
        classes = make_imagenet(tmp_path / name, per_class=6, change=change)
        source = ImageNetTars(tmp_path / name, filtered(min_class_size=6, val_per_class=2))
        found, _ = read(source)
        assert {c for _, c, _ in found.values()} == set(SYNSETS[1:]) and source.drops_empty_classes
        for wnid in SYNSETS[1:]:
            names = sorted(classes[wnid])  # as strings: _100 before _7, as in a sorted directory
            for i, file in enumerate(names):
                assert found[file.removesuffix(".JPEG")][2] == ("val" if i < 2 else "train")


def test_a_class_in_several_units_is_filtered_as_one(tmp_path, monkeypatch):
    monkeypatch.setattr(imagenet, "LEAST_SAMPLES", 4)
    for name in ("f.tar", "f.tar.gz"):
        classes = make_imagenet(tmp_path / name, per_class=21, synsets=SYNSETS[:2])
        for options in ({}, {"val_per_class": 5, "min_class_size": 21}):
            source = ImageNetTars(tmp_path / name, filtered(**options))
            assert len(source.units()) >= 8
            found, _ = read(source)
            assert len(found) == 42
            for wnid, files in classes.items():
                held_out = {n.removesuffix(".JPEG") for n in sorted(files)[: options.get("val_per_class", 0)]}
                assert {k for k, (_, c, s) in found.items() if c == wnid and s == "val"} == held_out
        if name == "f.tar":  # where images are counted when they are read
            assert read(ImageNetTars(tmp_path / name, filtered(min_class_size=22)))[0] == {}


def test_units_are_bounded_in_samples_at_every_resolution(tmp_path):
    data = encoded(picture(8, 8, 1), quality=30)
    files = {f"{wnid}.tar": tar_bytes({f"{wnid}_{i}.JPEG": data for i in range(4000)}) for wnid in SYNSETS}
    (tmp_path / "tiny.tar").write_bytes(tar_bytes(files))
    for res, most in ((32, 500), (256, 500)):
        units = ImageNetTars(tmp_path / "tiny.tar", res=res).units()
        assert sum(u.num_samples for u in units) == pytest.approx(20_000, rel=0.02)
        assert max(u.num_samples for u in units) <= 1.5 * most
    source = ImageNetTars(tmp_path / "tiny.tar")
    assert sum(1 for u in source.units() for _ in source.samples(u)) == 20_000


def test_classes_asked_for_come_in_their_order(tmp_path):
    make_imagenet(tmp_path / "f.tar")
    wanted = (SYNSETS[3], SYNSETS[0])
    source = ImageNetTars(tmp_path / "f.tar", filtered(classes=wanted))
    assert tuple(c for c, _ in source.classes) == wanted
    assert {c for _, c, _ in read(source)[0].values()} == set(wanted)
    with pytest.raises(Error, match=r"lacks 1 of the 1 class asked for: n99999999"):
        ImageNetTars(tmp_path / "f.tar", filtered(classes=("n99999999",)))


# ----------------------------------------------------------------------------------------------------------- damage


def test_bad_images_end_to_end(tmp_path):
    def change(classes):
        classes[SYNSETS[0]] = bad_images()

    root = tmp_path / "out"
    inner_cut = tar_bytes(class_images(SYNSETS[4], 4, 7))
    hit = inner_cut.index(f"{SYNSETS[4]}_21.JPEG".encode())
    classes = make_imagenet(tmp_path / "a.tar", change=change)
    parts = {f"{w}.tar": tar_bytes(files) for w, files in classes.items()}
    parts[f"{SYNSETS[4]}.tar"] = inner_cut[: hit + 700]
    (tmp_path / "a.tar").write_bytes(tar_bytes(parts))
    manifest, _ = convert_quietly(
        dataset="imagenet21k",
        source=str(tmp_path / "a.tar"),
        res=24,
        out=root,
        workers=2,
        max_skipped=0.5,
        **EVERYTHING,
    )
    skipped = {s["source"]: s["reason"] for s in read_jsonl(root / "skipped.jsonl")}
    bad = {f"{SYNSETS[0]}.tar/{n}" for n in classes[SYNSETS[0]] if "_bad" in n}
    assert set(skipped) == bad | {f"{SYNSETS[4]}.tar"}
    assert "cut short" in skipped[f"{SYNSETS[4]}.tar"] and all(skipped.values())
    info = manifest.splits["train"]
    assert info.num_skipped == len(skipped) == 5
    assert info.class_counts == [5, 6, 6, 6, 3] and info.num_samples == 26


def test_a_damaged_header_of_a_class_tar_costs_no_class(tmp_path):
    classes = make_imagenet(tmp_path / "f.tar")
    data = bytearray((tmp_path / "f.tar").read_bytes())
    hit = data.index(f"{SYNSETS[1]}.tar".encode())
    data[hit + 148 : hit + 156] = b"garbage!"
    (tmp_path / "f.tar").write_bytes(data)
    found, broken = read(ImageNetTars(tmp_path / "f.tar"))
    assert found == expected(classes)  # its images are found all the same, and the classes after it
    [damage] = [b for b in broken if b.is_data]
    assert str(hit) in damage.reason


@pytest.mark.parametrize("name", ["f.tar", "f.tar.gz"])
def test_an_archive_cut_short_is_refused_unless_the_classes_are_named(tmp_path, name):
    rng = np.random.default_rng(0)

    def change(classes):
        for wnid in classes:  # large enough for a gzip stream to have several places to start from
            classes[wnid] = {f"{wnid}_{i}.JPEG": rng.bytes(500_000) for i in range(10)}

    make_imagenet(tmp_path / name, change=change)
    data = (tmp_path / name).read_bytes()
    (tmp_path / name).write_bytes(data[: len(data) // 2])
    with pytest.raises(Error, match=r"cut short.*get the rest of it.*--classes|incomplete gzip stream") as caught:
        ImageNetTars(tmp_path / name)
    assert "\n" not in str(caught.value)
    if name == "f.tar.gz":
        return  # whether anything can be had of a cut gzip stream depends on where it is cut
    found, broken = read(ImageNetTars(tmp_path / name, filtered(classes=tuple(SYNSETS[:2]))))
    assert len(found) == 20 and len(broken) == 1


def test_a_wrong_checksum_in_the_gzip_is_told_and_recorded(tmp_path):
    def change(classes):
        for wnid, files in classes.items():  # no image, but room for the stream to have parts
            files[f"{wnid}.txt"] = np.random.default_rng(len(files)).bytes(3_000_000)

    make_imagenet(tmp_path / "w.tar.gz", change=change)
    data = bytearray((tmp_path / "w.tar.gz").read_bytes())
    data[-8] ^= 1  # the stored CRC: all images are whole, and nobody can know
    (tmp_path / "w.tar.gz").write_bytes(data)
    root = tmp_path / "out"
    manifest, lines = convert_quietly(
        dataset="imagenet21k", source=str(tmp_path / "w.tar.gz"), res=16, out=root, max_skipped=0.2, **EVERYTHING
    )
    assert manifest.splits["train"].num_samples == 30
    reasons = [row["reason"] for row in read_jsonl(root / "skipped.jsonl")]
    assert len(reasons) == 6 and sum("CRC" in reason for reason in reasons) == 1  # the others are what is no image
    assert any(line.startswith("warning") and "CRC" in line for line in lines)


def test_a_broken_gzip_stream_is_an_error(tmp_path):
    make_imagenet(tmp_path / "w.tar.gz", per_class=40)
    data = bytearray((tmp_path / "w.tar.gz").read_bytes())
    for spoilt in (data[: len(data) // 2] + bytes(2000) + data[len(data) // 2 + 2000 :], data[:-4], data[:15]):
        # A small stream has one part, and its checksum is for all of it: nothing can be had of it.
        (tmp_path / "w.tar.gz").write_bytes(spoilt)
        with pytest.raises(Error, match=r"w\.tar\.gz") as caught:
            read(ImageNetTars(tmp_path / "w.tar.gz"))
        assert "\n" not in str(caught.value)


def test_not_such_an_archive(tmp_path):
    (tmp_path / "a.tar").write_bytes(tar_bytes({"hello.txt": b"x"}))
    (tmp_path / "b.tar").write_bytes(b"no tar " * 500)
    (tmp_path / "c.tar").write_bytes(b"")
    for name in ("a.tar", "b.tar", "c.tar"):
        with pytest.raises(Error, match=r"holds neither <class>\.tar nor"):
            ImageNetTars(tmp_path / name)


# ------------------------------------------------------------------------------------------------------------- gzip


def test_a_gzip_stream_is_read_through_once_and_never_again(tmp_path, monkeypatch):
    classes = make_imagenet(tmp_path / "w.tar.gz")
    first = ImageNetTars(tmp_path / "w.tar.gz", cache=tmp_path / "cache")
    [kept] = (tmp_path / "cache").iterdir()

    def refuse(*_):
        raise AssertionError("the stream was read through again")

    with monkeypatch.context() as patch:
        patch.setattr(GzipFile, "_next_block", refuse)
        again = ImageNetTars(tmp_path / "w.tar.gz", cache=tmp_path / "cache")
        assert again.units() == first.units() and read(again) == (expected(classes), [])
        filtered_ = ImageNetTars(tmp_path / "w.tar.gz", filtered(val_per_class=1), cache=tmp_path / "cache")
        assert len(read(filtered_)[0]) == 30  # what is kept does not depend on filters
    # Another file, or a torn or foreign listing, is noticed.
    data = kept.read_bytes()
    for torn in (data[:-1], data[: len(data) // 2], b"", b"\0" * len(data)):
        kept.write_bytes(torn)
        assert read(ImageNetTars(tmp_path / "w.tar.gz", cache=tmp_path / "cache")) == (expected(classes), [])
    stat = os.stat(tmp_path / "w.tar.gz")
    os.utime(tmp_path / "w.tar.gz", ns=(stat.st_atime_ns, stat.st_mtime_ns + 1))
    monkeypatch.setattr(GzipFile, "_next_block", refuse)
    with pytest.raises(RuntimeError, match="was read through again"):
        ImageNetTars(tmp_path / "w.tar.gz", cache=tmp_path / "cache")


def test_a_cache_that_cannot_be_written_harms_nobody(tmp_path):
    make_imagenet(tmp_path / "w.tar.gz")
    (tmp_path / "file").write_bytes(b"")
    assert len(read(ImageNetTars(tmp_path / "w.tar.gz", cache=tmp_path / "file" / "cache"))[0]) == 30


def test_gzip_reads_at_offsets_what_zlib_reads(tmp_path):
    rng = np.random.default_rng(0)
    content = b"".join(rng.bytes(70_000) + b"JFIF" * 50 for _ in range(400))
    (tmp_path / "x.gz").write_bytes(gzip.compress(content[: 20 << 20]) + gzip.compress(content[20 << 20 :]))
    file = open_blob(tmp_path / "x.gz")
    at = 0
    while data := file.read_at(at, 512):  # forward, in leaps, before there is an index
        assert data == content[at : at + 512]
        at += int(rng.integers(512, 4_000_000))
    file.complete()
    assert file.size == len(content) and len(file.index) < 20_000
    copy = pickle.loads(pickle.dumps(file))
    for _ in range(30):
        at, n = int(rng.integers(len(content))), int(rng.integers(1, 200_000))
        assert copy.read_at(at, n) == content[at : at + n]
    copy.close()


# -------------------------------------------------------------------------------------------------------- ImageNet-1k


def test_ilsvrc_val_labels_and_real_labels(tmp_path):
    truth = make_ilsvrc(tmp_path / "in")
    found, broken = read(open_imagenet1k(tmp_path / "in", ClassFilter(), 64, tmp_path))
    assert not broken and len(found) == 20 + 12
    for i, wnid in enumerate(truth):
        assert found[f"ILSVRC2012_val_{i + 1:08d}"][1:] == (wnid, "val")
    root = tmp_path / "out"
    manifest, _ = convert_quietly(dataset="imagenet1k", source=str(tmp_path / "in"), res=16, out=root, workers=1)
    assert "val.real.json" in manifest.files and "train.real.json" not in manifest.files
    real = json.loads((root / "val.real.json").read_text())
    import pyarrow.parquet as pq

    assert list(real) == pq.read_table(root / "val.index.parquet").column("key").to_pylist()
    assert manifest.release == "ILSVRC2012 (5 of 1,000 synsets)"
    # None of the first 12 val images has a ReaL label among these five classes.
    assert all(value == [] for value in real.values())


@pytest.mark.parametrize("labelled_by", ["folders", "devkit", "csv"])
def test_ilsvrc_extracted(tmp_path, labelled_by):
    truth = make_ilsvrc(tmp_path / "tars")
    root = tmp_path / "in"
    for wnid in SYNSETS:
        (root / "train" / wnid).mkdir(parents=True)
        for name, data in class_images(wnid, 3).items():
            (root / "train" / wnid / name).write_bytes(data)
    (root / "val").mkdir()
    with tarfile.open(tmp_path / "tars" / "ILSVRC2012_img_val.tar") as archive:
        for i, member in enumerate(archive):
            below = root / "val" / (truth[i] if labelled_by == "folders" else "")
            below.mkdir(exist_ok=True)
            (below / member.name).write_bytes(archive.extractfile(member).read())
    if labelled_by != "folders":
        with pytest.raises(Error, match=r"class folders: put .*devkit.* or LOC_val_solution.csv"):
            open_imagenet1k(root, ClassFilter(), 64, tmp_path)
    if labelled_by == "devkit":
        shutil.copy(tmp_path / "tars" / "ILSVRC2012_devkit_t12.tar.gz", root)
    if labelled_by == "csv":
        rows = [f"ILSVRC2012_val_{i:08d},{wnid} 1 2 3 4 \n" for i, wnid in enumerate(truth, 1)]
        (root / "LOC_val_solution.csv").write_text("ImageId,PredictionString\n" + "".join(rows[::-1]))
    found, broken = read(open_imagenet1k(root, ClassFilter(), 64, tmp_path))
    assert not broken and len(found) == 15 + 12
    val = {key.rpartition("/")[2]: wnid for key, (_, wnid, split) in found.items() if split == "val"}
    assert val == {f"ILSVRC2012_val_{i:08d}": wnid for i, wnid in enumerate(truth, 1)}
    manifest, _ = convert_quietly(dataset="imagenet1k", source=str(root), res=16, out=tmp_path / "out", workers=1)
    assert "val.real.json" in manifest.files and manifest.splits["val"].num_samples == 12


def test_real_labels_in_the_classes_of_a_directory():
    all_wnids = labels.classes("ilsvrc2012")
    real = labels.real(["x/ILSVRC2012_val_00000002", "n01440764_1", "ILSVRC2012_val_00000001"], all_wnids)
    assert real == {"x/ILSVRC2012_val_00000002": [970, 795], "ILSVRC2012_val_00000001": []}
    turned = labels.real(["ILSVRC2012_val_00000002"], (all_wnids[795], all_wnids[0]))
    assert turned == {"ILSVRC2012_val_00000002": [0]}
    every = labels.real([f"ILSVRC2012_val_{i:08d}" for i in range(60_000)], all_wnids)
    assert len(every) == 50_000 and sum(not v for v in every.values()) == 3_163 and max(map(len, every.values())) == 9


def test_ilsvrc_mistakes(tmp_path):
    make_ilsvrc(tmp_path / "in")
    shutil.move(tmp_path / "in" / "ILSVRC2012_devkit_t12.tar.gz", tmp_path / "kit")
    with pytest.raises(Error, match=r"no labels without .*devkit"):
        open_imagenet1k(tmp_path / "in", ClassFilter(), 64, tmp_path)
    (tmp_path / "in" / "ILSVRC2012_devkit_t12.tar.gz").write_bytes((tmp_path / "kit").read_bytes()[:300])
    with pytest.raises(Error, match="is not the ILSVRC2012 devkit"):
        open_imagenet1k(tmp_path / "in", ClassFilter(), 64, tmp_path)
    shutil.copy(tmp_path / "kit", tmp_path / "in" / "ILSVRC2012_devkit_t12.tar.gz")
    val = tmp_path / "in" / "ILSVRC2012_img_val.tar"
    val.write_bytes(val.read_bytes()[:9000])
    with pytest.raises(Error, match=r"val\.tar is cut short"):
        open_imagenet1k(tmp_path / "in", ClassFilter(), 64, tmp_path)
    make_imagenet(tmp_path / "other.tar", synsets=["n00004475"])
    with pytest.raises(Error, match="is not ILSVRC2012: it has class n00004475"):
        open_imagenet1k(tmp_path / "other.tar", ClassFilter(), 64, tmp_path)


# ------------------------------------------------------------------------------------------------------- class lists


def test_class_lists_and_maps():
    sizes = {"fall11": 21_841, "fall11-12k": 11_821, "fall11-p": 11_221, "winter21-p": 10_450, "ilsvrc2012": 1000}
    for name, size in sizes.items():
        assert len(labels.classes(name)) == size and list(labels.classes(name)) == sorted(labels.classes(name))
    google, microsoft = labels.classes("google-21843"), labels.classes("microsoft-21842")
    assert len(google) == 21_843 and list(google) == sorted(google)
    assert set(google) - set(labels.classes("fall11")) == {"n03931044", "n09859684"}
    assert (google[9205], google[15027], labels.readable(google[15027])) == ("n03931044", "n09859684", "bleacher")
    assert len(microsoft) == len(set(microsoft)) == 21_842 and microsoft[850] == "n04399382"
    assert microsoft[:1000] == labels.classes("ilsvrc2012")
    assert microsoft[1000] == "n00004475" and list(microsoft[1000:]) == sorted(microsoft[1000:])
    assert (labels.mapping("ilsvrc2012", "microsoft-21842") == range(1000)).all()
    assert (labels.mapping("fall11", "google-21843") >= 0).all()
    to_1k = labels.mapping("fall11", "ilsvrc2012")
    assert (to_1k >= 0).sum() == 999  # the teddy bear is not in fall11
    assert (labels.mapping("ilsvrc2012", "winter21-p") >= 0).sum() == 991
    assert labels.mapping(["n01443537", "nothing"], "ilsvrc2012").tolist() == [1, -1]
    order = labels.clsloc()
    assert order[:3] == ("n02119789", "n02100735", "n02110185") and order[999] == "n03255030"
    assert sorted(order) == list(labels.classes("ilsvrc2012"))
    with pytest.raises(Error, match="no class list 'winter21'"):
        labels.classes("winter21")


def test_a_gzip_conversion_end_to_end(tmp_path):
    classes = make_imagenet(tmp_path / "w.tar.gz", folder="winter21_whole/")
    make_imagenet(tmp_path / "f.tar")
    for name in ("w.tar.gz", "f.tar"):
        convert_quietly(
            dataset="imagenet21k",
            source=str(tmp_path / name),
            res=16,
            out=tmp_path / f"out-{name}",
            workers=2,
            min_class_size=0,
            val_per_class=2,
        )
    for file in ("train.beton", "val.beton", "train-000000.tar", "classes.txt"):
        assert (tmp_path / "out-w.tar.gz" / file).read_bytes() == (tmp_path / "out-f.tar" / file).read_bytes()
    assert [name for name, _ in read_classes(tmp_path / "out-f.tar")] == list(classes)
    assert imagenet_scan.list_archive  # the cache lies in the user's folder, not beside the archive
    assert any((tmp_path / "home" / "listings").iterdir())
