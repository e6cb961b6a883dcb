"""Tars of classes that are not as we know them: zeroed blocks, splits inside, links, names of any bytes."""

import gzip
import io
import multiprocessing as mp
import pickle
import tarfile
import time

import pytest
from archives import SYNSETS, class_images, encoded, expected, filtered, make_imagenet, picture, read, tar_bytes
from conftest import convert_quietly

from mlpdata import Error
from mlpdata.sources import Broken, ClassFilter, Sample
from mlpdata.sources.imagenet import ImageNetTars
from mlpdata.sources.imagenet_detect import open_imagenet21k
from mlpdata.system import engines

JPEG = encoded(picture(40, 30, 1))


@pytest.fixture(autouse=True)
def forked(monkeypatch):
    # What reads a gzip stream first takes over what is patched here only when forked, whatever other tests imported.
    monkeypatch.setattr(engines, "process_context", lambda: mp.get_context("fork"))


def open_(tmp_path, data, packed=False, **options):
    path = tmp_path / ("a.tar.gz" if packed else "a.tar")
    path.write_bytes(gzip.compress(data, 1) if packed else data)
    return ImageNetTars(path, **options)


def raw_tar(files):
    """A tar of {name as bytes: bytes}."""
    out = io.BytesIO()
    with tarfile.open(fileobj=out, mode="w", format=tarfile.GNU_FORMAT, encoding="latin-1") as archive:
        for name, data in files.items():
            info = tarfile.TarInfo(name.decode("latin-1"))
            info.size = len(data)
            archive.addfile(info, io.BytesIO(data))
    return out.getvalue()


def exact(source):
    """Whether every unit that promises a number of samples keeps it; and how many do promise one."""
    promises = [unit for unit in source.units() if unit.exact]
    for unit in promises:  # as convert counts them
        counted = [not isinstance(s, Broken) or s.is_data or s.is_counted for s in source.samples(unit)]
        assert sum(counted) == unit.num_samples
    return len(promises)


# ----------------------------------------------------------------------------------------------------------- damage


@pytest.mark.parametrize("packed", [False, True])
def test_what_a_listing_counts_is_what_a_conversion_counts(tmp_path, packed):
    classes = {}
    for i, wnid in enumerate(SYNSETS):
        files = {**class_images(wnid, 4, 10 * i), "._x.JPEG": b"\0\5\x16\7" + bytes(99), ".DS_Store": b"x" * 99}
        whole = tar_bytes(files)
        cut = whole.rstrip(b"\0")
        classes[f"{wnid}.tar"] = whole if i else cut + bytes(-len(cut) % 512)  # the first has no end mark
    path = tmp_path / ("a.tar.gz" if packed else "a.tar")
    path.write_bytes(gzip.compress(tar_bytes(classes)) if packed else tar_bytes(classes))
    manifest, lines = convert_quietly(dataset="imagenet21k", source=str(path), res=16, out=tmp_path / "out", workers=1,
                                      min_class_size=0, val_per_class=0)  # fmt: skip
    n = len(SYNSETS)
    assert manifest.splits["train"].class_counts == [4] * n
    assert any(f"{2 * n + 1} files left out" in line for line in lines), lines


@pytest.mark.parametrize("packed", [False, True])
@pytest.mark.parametrize("inner", [True, False])
def test_a_zeroed_block_costs_what_it_hit(tmp_path, packed, inner):
    classes = {wnid: class_images(wnid, 4, 10 * i) for i, wnid in enumerate(SYNSETS)}
    if inner:
        data = bytearray(tar_bytes({f"{wnid}.tar": tar_bytes(files) for wnid, files in classes.items()}))
        hits = (f"{SYNSETS[1]}.tar", f"{SYNSETS[2]}_7.JPEG", f"{SYNSETS[4]}_21.JPEG")
    else:
        data = bytearray(tar_bytes({f"x/{w}/{n}": d for w, files in classes.items() for n, d in files.items()}))
        hits = (f"x/{SYNSETS[0]}/{SYNSETS[0]}_0.JPEG", f"x/{SYNSETS[2]}/{SYNSETS[2]}_7.JPEG",
                f"x/{SYNSETS[4]}/{SYNSETS[4]}_21.JPEG")  # fmt: skip
    want = expected(classes)
    for name in hits:
        at = data.index(name.encode())
        data[at : at + 512] = bytes(512)
        want.pop(name.rpartition("/")[2].removesuffix(".JPEG"), None)
    source = open_(tmp_path, data, packed)
    found, broken = read(source)
    assert found == want  # a class whose tar lost its header is found by the names of its images
    lost = [b for b in broken if b.is_data]
    assert len(lost) == 3 and all("zeros" in b.reason for b in lost)
    assert exact(source) or (inner and not packed)


@pytest.mark.parametrize("packed", [False, True])
def test_tars_one_behind_the_other_are_read_whole(tmp_path, packed):
    one, two = ({w: class_images(w, 3, 10 * i)} for i, w in enumerate(SYNSETS[:2]))
    data = b"".join(tar_bytes({f"{w}.tar": tar_bytes(f) for w, f in c.items()}) for c in (one, two))
    source = open_(tmp_path, data, packed)
    found, broken = read(source)
    assert found == expected(one | two) and not [b for b in broken if b.is_data]
    assert any("more headers behind it" in line for line in source.warnings)


@pytest.mark.parametrize("packed", [False, True])
def test_an_archive_without_an_end_mark_is_told(tmp_path, packed):
    classes = {w: class_images(w, 3, 10 * i) for i, w in enumerate(SYNSETS)}
    data = tar_bytes({f"{w}.tar": tar_bytes(f) for w, f in classes.items()})
    source = open_(tmp_path, data[: data.index(f"{SYNSETS[3]}.tar".encode())], packed)
    assert read(source)[0] == expected({w: classes[w] for w in SYNSETS[:3]})
    assert any("without an end mark" in line for line in source.warnings)


def test_an_archive_that_is_zeros_from_some_byte_on_is_refused(tmp_path):
    make_imagenet(tmp_path / "f.tar")
    data = (tmp_path / "f.tar").read_bytes()
    at = data.index(f"{SYNSETS[3]}.tar".encode())
    with pytest.raises(Error, match="unfinished download"):
        open_(tmp_path, data[:at] + bytes(3 << 20))


@pytest.mark.parametrize("kind", ["plain", "packed", "directory"])
@pytest.mark.parametrize("nothing", [b"", tar_bytes({})], ids=["0 bytes", "no member"])
def test_an_empty_class_tar_is_no_class(tmp_path, nothing, kind):
    """As an empty folder is none in a directory of class folders."""

    def opened(files, **filters):
        if kind != "directory":
            return open_(tmp_path, tar_bytes(files), kind == "packed", **filters)
        for name, data in files.items():
            (tmp_path / "d" / name).parent.mkdir(exist_ok=True)
            (tmp_path / "d" / name).write_bytes(data)
        return ImageNetTars(tmp_path / "d", **filters)

    files = {f"{w}.tar": tar_bytes(class_images(w, 2)) if w != SYNSETS[1] else nothing for w in SYNSETS}
    source = opened(files)
    found, broken = read(source)
    assert [name for name, _ in source.classes] == [w for w in SYNSETS if w != SYNSETS[1]]
    assert len(found) == 2 * (len(SYNSETS) - 1)
    reason = "is a class tar without images, so no class"
    assert [(b.origin, b.reason, b.is_data) for b in broken] == [(f"{SYNSETS[1]}.tar", reason, False)]
    (warning,) = [line for line in source.warnings if "left out" in line]
    assert warning.endswith(f": left out, as it is without images, so no class: {SYNSETS[1]}")
    with pytest.raises(Error, match=rf"lacks 1 of the 2 classes asked for: {SYNSETS[1]}, which has no images"):
        opened(files, class_filter=ClassFilter(classes=tuple(SYNSETS[:2])))
    with pytest.raises(Error, match="has class tars, but no images in them"):
        opened({f"{w}.tar": nothing for w in SYNSETS})


def test_a_class_tar_that_is_empty_in_one_split_stays_a_class(tmp_path):
    images = {w: tar_bytes(class_images(w, 2)) for w in SYNSETS[:2]}
    files = {f"train/{w}.tar": data for w, data in images.items()}
    late = tar_bytes({f"{SYNSETS[1]}_1.JPEG": JPEG})
    source = open_(tmp_path, tar_bytes({**files, f"val/{SYNSETS[0]}.tar": b"", f"val/{SYNSETS[1]}.tar": late}))
    found, broken = read(source)
    assert len(source.classes) == 2 and len(found) == 5
    assert [(b.origin, b.reason, b.split) for b in broken] == [
        (f"{SYNSETS[0]}.tar", "is a class tar without images", "val")
    ]


# ----------------------------------------------------------------------------------------------------------- splits


@pytest.mark.parametrize("packed", [False, True])
@pytest.mark.parametrize("kind", ["folders", "tars"])
@pytest.mark.parametrize(
    ("train", "val"),
    [
        ("train", "val"),
        ("imagenet/train", "imagenet/val"),
        ("Training", "dev"),
        ("x/train", "x/test"),
        ("ILSVRC/Data/CLS-LOC/train", "ILSVRC/Data/CLS-LOC/val"),
    ],
)
def test_one_tar_with_two_splits(tmp_path, train, val, kind, packed):
    files, want = {}, {}
    for folder, split, n in ((train, "train", 4), (val, "val", 2)):
        for i, wnid in enumerate(SYNSETS[:2]):
            images = class_images(wnid, n, 100 * i + len(split))
            if kind == "tars":
                files[f"{folder}/{wnid}.tar"] = tar_bytes(images)
            else:
                files |= {f"{folder}/{wnid}/{name}": data for name, data in images.items()}
            want |= {(split, name.removesuffix(".JPEG")): (data, wnid) for name, data in images.items()}
    source = open_(tmp_path, tar_bytes(files), packed)
    seen = {}
    for unit in source.units():
        for s in source.samples(unit):
            assert s.split == unit.split  # so that a split that nobody asked for is not read
            seen[s.split, s.key] = (s.data, source.classes[s.label][0])
    assert seen == want and source.splits == ("train", "val")
    assert any("test is called val" in line for line in source.warnings) == val.endswith("test")
    exact(source)


@pytest.mark.parametrize("packed", [False, True])
@pytest.mark.parametrize("top", ["", "ILSVRC/Data/CLS-LOC/"])
def test_val_images_without_class_folders(tmp_path, top, packed):
    """As in Kaggle's archive: what labels them lies beside it, and the test images have no labels at all."""
    files = {f"{top}train/{w}/{n}": d for w in SYNSETS[:2] for n, d in class_images(w, 2).items()}
    files |= {f"{top}val/ILSVRC2012_val_{i:08d}.JPEG": encoded(picture(40, 30, i)) for i in range(1, 6)}
    files |= {f"{top}test/ILSVRC2012_test_{i:08d}.JPEG": JPEG for i in range(1, 4)}
    files |= {f"ILSVRC/Annotations/CLS-LOC/val/{i}.xml": b"x" for i in range(3)} | {"ILSVRC/ImageSets/val.txt": b"x"}
    with pytest.raises(Error, match=r"images without class folders: put .*devkit.* or LOC_val_solution.csv"):
        open_(tmp_path, tar_bytes(files), packed)
    wnids = [SYNSETS[i % 2] for i in range(4)]
    rows = [f"ILSVRC2012_val_{i:08d},{wnid} 1 2 3 4\n" for i, wnid in enumerate(wnids, 1)]
    (tmp_path / "LOC_val_solution.csv").write_text("ImageId,PredictionString\n" + "".join(rows))
    source = open_(tmp_path, tar_bytes(files), packed)
    found, broken = read(source)
    val = {key: wnid for key, (_, wnid, split) in found.items() if split == "val"}
    assert val == {f"{wnid}/ILSVRC2012_val_{i:08d}": wnid for i, wnid in enumerate(wnids, 1)} and len(found) == 8
    assert {b.origin: b.is_data for b in broken} == {
        "ILSVRC2012_val_00000005.JPEG": True,  # no list has it
        f"{top}test/ILSVRC2012_test_00000001.JPEG": False,
        "ILSVRC/Annotations/": False,
        "ILSVRC/ImageSets/": False,
    }
    exact(source)


@pytest.mark.parametrize("packed", [False, True])
def test_images_whose_split_is_lost_are_not_taken_for_train(tmp_path, packed):
    """The header of a class tar in val/ is zeroed: its images come up without any folder."""
    classes = {
        (split, w): {f"{w}_{split}{i}.JPEG": JPEG for i in range(2)} for split in ("train", "val") for w in SYNSETS[:2]
    }
    data = bytearray(tar_bytes({f"{split}/{w}.tar": tar_bytes(files) for (split, w), files in classes.items()}))
    at = data.index(f"val/{SYNSETS[0]}.tar\0".encode())
    data[at : at + 512] = bytes(512)
    source = open_(tmp_path, bytes(data), packed)
    found, broken = read(source)
    lost = f"{SYNSETS[0]}_val0.JPEG"
    assert sorted(found) == sorted(
        name.removesuffix(".JPEG") for at, names in classes.items() if at != ("val", SYNSETS[0]) for name in names
    )
    assert all(key.startswith(f"{w}_{split}") for key, (_, w, split) in found.items())
    assert [b.reason for b in broken if b.origin == lost and b.is_data] == [
        "lies behind damage and in no split's folder, as does 1 file beside it"
    ]
    assert any(f"{lost} left out" in line for line in source.warnings)


def test_an_archive_that_is_all_train_can_still_hold_out(tmp_path):
    files = {f"train/{w}/{n}": d for w in SYNSETS for n, d in class_images(w, 4).items()}
    source = open_(tmp_path, tar_bytes(files), class_filter=filtered(val_per_class=1))
    assert sorted(split for _, _, split in read(source)[0].values()) == ["train"] * 15 + ["val"] * 5


def test_splits_that_cannot_be_told_are_refused(tmp_path):
    files = {f"train/val/{w}/{n}": d for w in SYNSETS for n, d in class_images(w, 1).items()}
    with pytest.raises(Error, match="fits two splits, train and val"):
        open_(tmp_path, tar_bytes(files))
    with pytest.raises(Error, match="archives of splits"):
        open_(tmp_path, tar_bytes({"train.tar": tar_bytes({"a.jpg": JPEG}), "val.tar": tar_bytes({"a.jpg": JPEG})}))


def test_splits_in_class_tars_are_refused(tmp_path):
    tar = tar_bytes({f"{split}/{i}.JPEG": JPEG for i, split in enumerate(("train", "train", "Val"))})
    source = open_(tmp_path, tar_bytes({f"{wnid}.tar": tar for wnid in SYNSETS}))
    with pytest.raises(Error, match=r"tar has folders of train and val in it: splits are expected around classes"):
        read(source)


def test_a_class_beside_splits_is_taken_for_train_with_a_word(tmp_path):
    files = {f"{folder}/{i}.jpg": JPEG for folder in ("val/cat", "val/dog", "cat") for i in range(len(folder), 9, 3)}
    source = open_(tmp_path, tar_bytes(files))
    assert sorted((c, s) for _, c, s in read(source)[0].values() if s == "train") == [("cat", "train")] * 2
    assert any("taken for train" in line for line in source.warnings)


def test_a_class_may_be_called_train(tmp_path):
    source = open_(tmp_path, tar_bytes({f"toys/{c}/{i}.jpg": JPEG for c in ("plane", "train") for i in range(3)}))
    found, _ = read(source)
    assert sorted(c for _, c, _ in found.values()) == ["plane"] * 3 + ["train"] * 3
    assert {s for _, _, s in found.values()} == {"train"} and any("taken for a class" in w for w in source.warnings)


# ------------------------------------------------------------------------------------------------- folders to classes


def test_classes_of_one_name_in_two_folders_are_two(tmp_path):
    files = {f"{f}/{i}.jpg": JPEG for f in ("animals/seal", "tools/seal", "tools/saw") for i in range(2)}
    source = open_(tmp_path, tar_bytes(files))
    assert [name for name, _ in source.classes] == ["animals/seal", "saw", "tools/seal"]
    assert len(read(source)[0]) == 6
    tars = {f"{f}.tar": tar_bytes({"1.jpg": JPEG}) for f in ("animals/seal", "tools/seal")}
    assert [name for name, _ in open_(tmp_path, tar_bytes(tars)).classes] == ["animals/seal", "tools/seal"]
    # A synset is the same everywhere.
    source = open_(tmp_path, tar_bytes({f"{p}/{SYNSETS[0]}/{p}.jpg": JPEG for p in "ab"}))
    assert [name for name, _ in source.classes] == [SYNSETS[0]] and len(read(source)[0]) == 2


def test_images_one_folder_deeper(tmp_path):
    files = {f"train/{w}/images/{n}": d for w in SYNSETS for n, d in class_images(w, 2).items()}
    assert [name for name, _ in open_(tmp_path, tar_bytes(files)).classes] == SYNSETS
    files = {f"{c}/images/{i}.jpg": JPEG for c in ("cat", "dog") for i in range(2)}
    assert [name for name, _ in open_(tmp_path, tar_bytes(files)).classes] == ["cat", "dog"]


def test_what_lies_in_no_class_is_listed(tmp_path):
    files = {f"cat/{i}.jpg": JPEG for i in range(3)}
    files |= {"lost.jpg": JPEG, "notes/a.csv": b"x", "notes/b.csv": b"x", "n01440764.tar.gz": b"x", "README": b"x"}
    files |= {"cat/._0.jpg": b"x", "__MACOSX/cat/1.jpg": b"x", "cat/.hidden.jpg": JPEG, "cat/notes.txt": b"x"}
    source = open_(tmp_path, tar_bytes(files))
    found, broken = read(source)
    # What lies in a class is a sample whatever it is called: its content decides.
    assert sorted(found) == ["cat/%2Ehidden", "cat/0", "cat/1", "cat/2", "cat/notes"]
    listed = {b.origin: b.is_data for b in broken}
    assert listed == dict.fromkeys(("README", "notes/a.csv", "cat/._0.jpg", "__MACOSX/cat/1.jpg"), False) | {
        "lost.jpg": True
    }
    assert any("lost.jpg" in line for line in source.warnings)


# ------------------------------------------------------------------------------------------------------------- names


@pytest.mark.parametrize("inner", [True, False])
def test_names_that_are_no_utf_8_stay_apart(tmp_path, inner):
    names = (b"caf\xe9", b"caf\xe8", b"plain", b"caf%E9")
    if inner:
        data = raw_tar({n + b".tar": raw_tar({b"\xe9.jpg": JPEG, b"\xe8.jpg": JPEG}) for n in names})
    else:
        data = raw_tar({n + b"/" + i + b".jpg": JPEG for n in names for i in (b"\xe9", b"\xe8")})
    source = open_(tmp_path, data)
    found, broken = read(source)
    assert sorted(name for name, _ in source.classes) == ["caf%E8", "caf%E9", "caf%E9-2", "plain"]
    assert len(found) == 8 and not broken
    for unit in source.units():
        for s in source.samples(unit):
            assert (s.key + s.origin).encode() and (s.key + s.origin).isprintable()
    only = open_(tmp_path, data, class_filter=filtered(classes=("caf%E8",)))
    assert len(read(only)[0]) == 2


def test_names_of_any_kind(tmp_path):
    names = ["a\nb", "two\u2028lines", "..", "...", " ", "a\\b", 'q"uote', "__init__", "%2E", "a.b", "a%2Eb", "x" * 250]
    out = io.BytesIO()
    with tarfile.open(fileobj=out, mode="w", format=tarfile.PAX_FORMAT) as archive:
        for name in names:
            data = tar_bytes({"./a.jpg": JPEG, "../a.jpg": JPEG, "/a.jpg": JPEG, "b/../a.jpg": JPEG})
            info = tarfile.TarInfo(f"{name}.tar")
            info.size = len(data)
            archive.addfile(info, io.BytesIO(data))
    source = open_(tmp_path, out.getvalue())
    found, broken = read(source)
    assert len(found) == 4 * len(names) and not broken
    shown = [name for name, _ in source.classes]
    assert len(set(shown)) == len(names) and all(n.isprintable() and n not in (".", "..") for n in shown)
    assert {"a%0Ab", "two%E2%80%A8lines", "%2E%2E", "a.b", "a%2Eb"} <= set(shown)


def test_images_of_one_name_take_linear_time(tmp_path):
    files = [("n01440764_1.JPEG", JPEG[:10])] * 20_000
    out = io.BytesIO()
    with tarfile.open(fileobj=out, mode="w") as archive:
        for name, data in files:
            info = tarfile.TarInfo(name)
            info.size = len(data)
            archive.addfile(info, io.BytesIO(data))
    source = open_(tmp_path, tar_bytes({"n01440764.tar": out.getvalue()}))
    started = time.process_time()
    keys = [s.key for unit in source.units() for s in source.samples(unit)]
    assert len(set(keys)) == len(keys) == 20_000
    assert time.process_time() - started < 60  # a hundredth of it; each name against all others takes minutes


def test_a_class_with_damage_everywhere_takes_linear_time(tmp_path):
    good = tarfile.TarInfo("n01440764_x.JPEG").tobuf(tarfile.USTAR_FORMAT)
    started = time.process_time()
    source = open_(tmp_path, (good + b"\xff" * 512) * 30_000 + bytes(1024))
    units = source.units()
    assert sum(1 for unit in units for _ in source.samples(unit)) == 60_000 and len(pickle.dumps(units)) < 1 << 20
    assert time.process_time() - started < 60  # a hundredth of it
    assert exact(source)


# ------------------------------------------------------------------------------------------- what is no plain file


@pytest.mark.parametrize("packed", [False, True])
@pytest.mark.parametrize("inner", [True, False])
def test_links_lead_to_their_images_and_the_rest_is_listed(tmp_path, inner, packed):
    folder = "" if inner else "x/cat/"
    out = io.BytesIO()
    with tarfile.open(fileobj=out, mode="w", format=tarfile.GNU_FORMAT) as archive:
        for name, kind, link in (
            ("1.jpg", tarfile.REGTYPE, ""),
            ("hard.jpg", tarfile.LNKTYPE, f"{folder}1.jpg"),
            ("soft.jpg", tarfile.SYMTYPE, "1.jpg"),
            ("out.jpg", tarfile.SYMTYPE, "../../../etc/passwd"),
            ("loop.jpg", tarfile.SYMTYPE, "loop.jpg"),
            ("pipe.jpg", tarfile.FIFOTYPE, ""),
            ("sub", tarfile.DIRTYPE, ""),
            ("last.jpg", tarfile.REGTYPE, ""),
        ):
            info = tarfile.TarInfo(f"{folder}{name}")
            info.type, info.linkname = kind, link
            info.size = len(JPEG) if kind == tarfile.REGTYPE else 0
            archive.addfile(info, io.BytesIO(JPEG))
    source = open_(tmp_path, tar_bytes({"cat.tar": out.getvalue()}) if inner else out.getvalue(), packed)
    samples = [s for unit in source.units() for s in source.samples(unit)]
    images = {s.key: s.data for s in samples if isinstance(s, Sample)}
    assert images == dict.fromkeys(("cat/1", "cat/hard", "cat/soft", "cat/last"), JPEG)
    reasons = {s.origin.rpartition("/")[2]: s.reason for s in samples if isinstance(s, Broken)}
    assert reasons["pipe.jpg"] == "is a FIFO" and "etc/passwd, which is not in its class" in reasons["out.jpg"]
    assert set(reasons) == {"pipe.jpg", "out.jpg", "loop.jpg"}
    assert exact(source) or (inner and not packed)


# ------------------------------------------------------------------------------------------------- gzip and files


def test_a_decompressor_that_dies_is_an_error(tmp_path, monkeypatch):
    import os
    import signal

    from mlpdata.archive.gzip import GzipFile

    monkeypatch.setattr(GzipFile, "_next_block", lambda self: os.kill(os.getpid(), signal.SIGKILL))
    with pytest.raises(Error, match=r"killed by signal 9.*a\.tar\.gz"):
        open_(tmp_path, tar_bytes({"x.tar": b""}), packed=True)


def test_a_kept_listing_that_makes_no_sense_is_made_again(tmp_path, monkeypatch):
    import json
    import zlib

    import xxhash

    from mlpdata.sources import imagenet_listing

    classes = make_imagenet(tmp_path / "w.tar.gz")
    ImageNetTars(tmp_path / "w.tar.gz", cache=tmp_path / "cache")
    [kept] = (tmp_path / "cache").iterdir()
    data = kept.read_bytes()
    start = len(imagenet_listing.CACHE_MAGIC) + 16
    end = start + 8 + int.from_bytes(data[start : start + 8], "little")
    whole = json.loads(zlib.decompress(data[start + 8 : end]))
    for change in (
        {"stretches": [[0, "x"]]},
        {"stretches": 5},
        {"size": "x"},
        {"more": 1},
        {"left_out": [1]},
        {"stretches": [[0, "x", "", 0, 10**15, 1, 1, True, ""]]},
        {"stretches": [[9, "x", "", 0, 9, 1, 1, True, ""]]},
    ):
        text = zlib.compress(json.dumps(whole | change).encode())
        body = len(text).to_bytes(8, "little") + text + data[end:]
        kept.write_bytes(imagenet_listing.CACHE_MAGIC + xxhash.xxh3_128_digest(body) + body)
        assert read(ImageNetTars(tmp_path / "w.tar.gz", cache=tmp_path / "cache")) == (expected(classes), [])


def test_a_directory_of_class_tars_names_what_it_leaves_out(tmp_path):
    for name in (f"{SYNSETS[0]}.tar", f"{SYNSETS[1]}.TAR"):
        (tmp_path / name).write_bytes(tar_bytes(class_images(name[:9], 2)))
    for name in ("README.md", f"._{SYNSETS[0]}.tar", ".DS_Store"):
        (tmp_path / name).write_bytes(b"x")
    (tmp_path / f"{SYNSETS[2]}.tar.gz").write_bytes(b"x")
    (tmp_path / "list.csv").write_bytes(b"x")
    source = open_imagenet21k(tmp_path, filtered(), 64, tmp_path)
    found, broken = read(source)
    assert len(found) == 4 and {b.origin: b.is_data for b in broken} == {
        f"{SYNSETS[2]}.tar.gz": True,
        "list.csv": False,
        "README.md": False,
        f"._{SYNSETS[0]}.tar": False,
        ".DS_Store": False,
    }


def test_files_that_cannot_be_read_are_one_line(tmp_path, monkeypatch):
    import errno
    import os

    from mlpdata.archive.blob import open_blob

    make_imagenet(tmp_path / "f.tar")
    with pytest.raises(Error, match=r"cannot read .*none\.tar: No such file"):
        open_blob(tmp_path / "none.tar")

    def fail(*_, **__):
        raise OSError(errno.EIO, os.strerror(errno.EIO))

    for function in ("open", "pread", "stat"):
        with monkeypatch.context() as patch:
            patch.setattr(os, function, fail)
            with pytest.raises(Error, match=r"f\.tar"):
                ImageNetTars(tmp_path / "f.tar")
