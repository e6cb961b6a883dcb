"""ImageNet in other people's containers: WebDataset tars and Downsampled-ImageNet's batches."""

import io
import pickle
import random
import zipfile

import numpy as np
import pytest
from archives import encoded, make_imagenet, make_wds, picture, python2_pickle, read, tar_bytes
from conftest import convert_quietly

from mlpdata import Error, labels
from mlpdata.archive import pickles
from mlpdata.sources import ClassFilter, downsampled, webdataset
from mlpdata.sources.imagenet_detect import open_imagenet1k, open_imagenet21k

NONE = ClassFilter()

# ----------------------------------------------------------------------------------------------------- WebDataset


@pytest.mark.parametrize("list_name", ["fall11", "fall11-12k", "winter21-p"])
@pytest.mark.parametrize("info", [False, True])
def test_webdataset_labels_count_in_the_list_that_fits(tmp_path, list_name, info):
    want = make_wds(tmp_path / "w", labels.classes(list_name), info=info)
    source = open_imagenet21k(tmp_path / "w", NONE, 64, tmp_path)
    assert read(source) == (want, [])
    assert list_name in source.release and len(source.classes) == len(labels.classes(list_name))
    assert [u.num_samples for u in source.units()] == pytest.approx([10] * 4, abs=0 if info else 8)


def test_webdataset_of_imagenet1k_by_pattern_and_without_names(tmp_path):
    want = make_wds(tmp_path / "w", labels.classes("ilsvrc2012"), named=False)
    pattern = open_imagenet1k(tmp_path / "w" / "*-train-*.tar", NONE, 64, tmp_path)
    assert read(pattern)[0] == {k: v for k, v in want.items() if v[2] == "train"}
    assert read(open_imagenet1k(tmp_path / "w", NONE, 64, tmp_path)) == (want, [])
    single = open_imagenet1k(tmp_path / "w" / "imagenet-train-0001.tar", NONE, 64, tmp_path)
    assert len(read(single)[0]) == 10
    manifest, _ = convert_quietly(
        dataset="imagenet1k", source=str(tmp_path / "w" / "*-train-*.tar"), res=16, out=tmp_path / "out", workers=2
    )
    assert manifest.splits["train"].num_samples == 30 and manifest.num_classes == 1000


def test_webdataset_of_an_unpublished_list_goes_by_wnid(tmp_path):
    unpublished = sorted(set(labels.classes("fall11")) - set(labels.classes("fall11-p")))[::3]
    want = make_wds(tmp_path / "w", unpublished)
    source = open_imagenet21k(tmp_path / "w", NONE, 64, tmp_path)
    assert read(source) == (want, []) and source.drops_empty_classes
    manifest, _ = convert_quietly(dataset="imagenet21k", source=str(tmp_path / "w"), res=16, out=tmp_path / "out")
    assert manifest.num_classes == len({wnid for _, wnid, _ in want.values()})


def test_webdataset_ranges_share_nothing_and_leave_nothing_out(tmp_path):
    want = make_wds(tmp_path / "w", labels.classes("ilsvrc2012"), per_tar=40, num_tars=1, val=False)
    for format_ in (0, 1, 2):
        for pieces in (2, 7, 40, 150):
            source = webdataset.WebDataset(tmp_path / "w", webdataset.find(tmp_path / "w"), NONE, 64, ("ilsvrc2012",))
            source._most = 40 / pieces
            units = source.units()
            assert len(units) >= pieces * 0.8
            samples = [s for u in units for s in source.samples(u)]
            assert len(samples) == 40 and {s.key for s in samples} == set(want)
        # The same with extended headers before every member, of both kinds.
        path = tmp_path / "w" / "imagenet-train-0000.tar"
        import tarfile

        files = {}
        with tarfile.open(path) as archive:
            for m in archive:
                files[m.name] = archive.extractfile(m).read()
        longer = {f"{'long' * 30}/{n}" if "/" not in n else n: d for n, d in files.items()}
        path.write_bytes(tar_bytes(longer, format_=(tarfile.GNU_FORMAT, tarfile.PAX_FORMAT, 0)[format_]))
        want = {f"{'long' * 30}/{k}" if "/" not in k else k: v for k, v in want.items()}


def test_webdataset_damage_and_mistakes(tmp_path):
    image = encoded(picture(40, 30, 1))
    wnid = labels.classes("ilsvrc2012")[7]
    members = {f"{wnid}_1.cls": b"7", f"{wnid}_1.jpg": image}
    members |= {"b.jpg": image, "c.cls": b"7", "d.jpg": image, "d.cls": b"5000", "e.jpg": image, "e.cls": b"x" * 9}
    (tmp_path / "a-train-0.tar").write_bytes(tar_bytes(members))
    found, broken = read(open_imagenet1k(tmp_path, NONE, 64, tmp_path))
    assert list(found) == [f"{wnid}_1"]
    assert sorted(b.reason for b in broken) == [
        "has no class",
        "has no image",
        "has the class 'xxxxxxxxx', which is no number",
        "is of class 5000, beyond 999",
    ]
    with pytest.raises(Error, match="takes only --classes"):
        open_imagenet1k(tmp_path, ClassFilter(min_class_size=3), 64, tmp_path)
    only = open_imagenet1k(tmp_path, ClassFilter(classes=(labels.classes("ilsvrc2012")[8],)), 64, tmp_path)
    assert read(only)[0] == {}
    (tmp_path / "_info.json").write_text('{"splits": 3}')
    with pytest.raises(Error, match="no table of splits"):
        open_imagenet1k(tmp_path, NONE, 64, tmp_path)


def test_class_tars_are_not_taken_for_webdataset(tmp_path):
    make_imagenet(tmp_path / "f.tar")
    assert webdataset.find(tmp_path / "f.tar") is None
    (tmp_path / "empty.tar").write_bytes(b"")
    assert webdataset.find(tmp_path / "empty.tar") is None and webdataset.find(tmp_path / "no*such.tar") is None


# ------------------------------------------------------------------------------------------- Downsampled-ImageNet


def make_batches(res=8, rows=400):
    """{name: (data, labels)} of two train batches and val; the labels count in map_clsloc's order, from 1."""
    rng = np.random.default_rng(res)
    names = ("train_data_batch_1", "train_data_batch_2", "train_data_batch_10", "val_data")
    return {
        name: (rng.integers(0, 256, (rows, 3 * res * res), dtype=np.uint8), rng.integers(1, 1001, rows))
        for name in names
    }


def as_pickle(data, numbers, protocol=3):
    batch = {"data": data, "labels": numbers.tolist(), "mean": data.mean(0)}
    return python2_pickle(batch) if protocol == "python2" else pickle.dumps(batch, protocol)


def as_npz(data, numbers, packed=False):
    out = io.BytesIO()
    (np.savez_compressed if packed else np.savez)(out, data=data, labels=numbers, mean=data.mean(0))
    return out.getvalue()


def write_batches(folder, layout, batches, monkeypatch):
    monkeypatch.setattr(pickles, "LARGE_BYTES", 70_000)  # small arrays are left in the file as large ones are
    folder.mkdir()
    encode = {
        "protocol3": as_pickle,
        "protocol4": lambda *b: as_pickle(*b, protocol=4),
        "protocol5": lambda *b: as_pickle(*b, protocol=5),
        "python2": lambda *b: as_pickle(*b, protocol="python2"),
        "npz": as_npz,
        "npz-packed": lambda *b: as_npz(*b, packed=True),
    }[layout.removeprefix("zip-").removeprefix("stored-")]
    ending = ".npz" if "npz" in layout else ""
    if not layout.startswith(("zip-", "stored-")):
        for name, batch in batches.items():
            (folder / f"{name}{ending}").write_bytes(encode(*batch))
        return
    method = zipfile.ZIP_DEFLATED if layout.startswith("zip-") else zipfile.ZIP_STORED
    for part, names in {"train_part1": ["train_data_batch_1"], "val": ["val_data"],
                        "train_part2": ["train_data_batch_2", "train_data_batch_10"]}.items():  # fmt: skip
        with zipfile.ZipFile(folder / f"Imagenet8_{part}.zip", "w", method) as archive:
            for name in names:
                archive.writestr(f"some/{name}{ending}", encode(*batches[name]))


LAYOUTS = ["protocol3", "protocol4", "protocol5", "python2", "npz", "npz-packed"]
LAYOUTS += ["zip-protocol3", "stored-protocol3", "zip-npz", "stored-npz-packed"]


@pytest.mark.parametrize("layout", LAYOUTS)
def test_downsampled_pixels_and_labels(tmp_path, monkeypatch, layout):
    batches = make_batches()
    write_batches(tmp_path / "d", layout, batches, monkeypatch)
    monkeypatch.setattr(downsampled, "UNIT_ROWS", 90)
    source = open_imagenet1k(tmp_path / "d", NONE, 8, tmp_path)
    units, copy = source.units(), pickle.loads(pickle.dumps(source))
    assert [u.name.rsplit("-", 1)[0] for u in units[::5]] == list(batches)  # 10 comes after 2
    seen = {(s.key): s for u in units for s in copy.samples(u)}
    order = labels.clsloc()
    assert len(seen) == 1600 and {u.split for u in units} == {"train", "val"}
    for name, (data, numbers) in batches.items():
        for i in range(0, 400, 7):
            sample = seen[f"{name}_{i:07d}"]
            assert np.array_equal(sample.data, data[i].reshape(3, 8, 8).transpose(1, 2, 0))
            assert source.classes[sample.label][0] == order[numbers[i] - 1]
    assert "8x8" in source.release


def test_downsampled_converts_from_a_zip(tmp_path, monkeypatch):
    write_batches(tmp_path / "d", "zip-protocol3", make_batches(), monkeypatch)
    manifest, _ = convert_quietly(
        dataset="imagenet1k", source=str(tmp_path / "d"), res=8, out=tmp_path / "o", workers=2
    )
    assert {s: i.num_samples for s, i in manifest.splits.items()} == {"train": 1200, "val": 400}
    one = tmp_path / "d" / "Imagenet8_val.zip"
    manifest, _ = convert_quietly(dataset="imagenet1k", source=str(one), res=8, out=tmp_path / "o2", workers=1)
    assert list(manifest.splits) == ["val"]


def test_downsampled_damage_is_named(tmp_path, monkeypatch):
    batches = make_batches()
    write_batches(tmp_path / "d", "zip-protocol3", batches, monkeypatch)
    path = tmp_path / "d" / "Imagenet8_val.zip"
    whole = path.read_bytes()
    for spoilt in (whole[: len(whole) // 2], whole[:300] + b"\0" * 50 + whole[350:], whole[:-30]):
        path.write_bytes(spoilt)
        with pytest.raises(Error, match=r"Imagenet8_val\.zip") as caught:
            open_imagenet1k(path, NONE, 8, tmp_path)
        assert "\n" not in str(caught.value)
    data, numbers = batches["val_data"]
    changes = {
        "no 400 labels": {"labels": numbers.tolist()[:-1]},
        "labels from 1 to 1,000": {"labels": [0] * 400},
        "not uint8": {"data": data.astype(np.int32)},
        "no array of pixels": {"data": [1, 2]},
        "asks for posix.system": {"x": Attack()},
    }
    for message, change in changes.items():
        file = tmp_path / "val_data"
        file.write_bytes(pickle.dumps({"data": data, "labels": numbers.tolist(), **change}, 3))
        with pytest.raises(Error, match=message):
            open_imagenet1k(file, NONE, 8, tmp_path)
    with pytest.raises(Error, match="takes only --classes"):
        open_imagenet1k(file, ClassFilter(val_per_class=1), 8, tmp_path)


class Attack:
    def __reduce__(self):
        import os

        return os.system, ("true",)


# ------------------------------------------------------------------------------------------------------------ fuzz


def test_spoilt_pickles_raise_one_kind_of_error(monkeypatch):
    monkeypatch.setattr(pickles, "LARGE_BYTES", 70_000)
    data, numbers = make_batches()["val_data"]
    rng = random.Random(0)
    for protocol in (2, 3, 4, 5):
        whole = pickle.dumps({"data": data, "labels": numbers.tolist(), "mean": data.mean(0)}, protocol)
        for _ in range(400):
            spoilt = bytearray(whole)
            for _ in range(rng.randrange(1, 6)):
                at = rng.choice((rng.randrange(len(spoilt)), rng.randrange(min(300, len(spoilt)))))
                spoilt[at] = rng.randrange(256)
            if rng.random() < 0.2:
                del spoilt[rng.randrange(len(spoilt)) :]
            try:
                pickles.load(io.BytesIO(bytes(spoilt)))
            except ValueError as e:
                assert "\n" not in str(e)


@pytest.mark.parametrize(
    "attack",
    [
        b"\x80\x02]q\x00r\xff\xff\xff\xff.",  # a memo of four billion places
        b"\x80\x04\x8e\xff\xff\xff\xff\xff\xff\xff\x7f.",  # a string of 2^63 bytes
        b"\x80\x05\x96\xff\xff\xff\xff\xff\x00\x00\x00.",  # a bytearray of 2^40 bytes
        b"\x80\x02I" + b"9" * 5000 + b"\n.",
        b"\x80\x02cnumpy\nndarray\n(J\xff\xff\xff\x7fJ\xff\xff\xff\x7ftR.",  # an array of 2^62 floats
        b"\x80\x02cnumpy\ndtype\n(X\x01\x00\x00\x00OtR.",
        b"\x80\x02c_codecs\nencode\n(X\x01\x00\x00\x00xX\x04\x00\x00\x00zliBtR.",
        b"\x80\x02c_codecs\nencode\n}X\x01\x00\x00\x00aK\x01sb.",  # changes a function
        b"\x80\x02" + b"(" * 100_000 + b".",
        b"cbuiltins\neval\n(X\x01\x00\x00\x001tR.",
        b"\x80\x02]q\x00h\x00a.",  # a list that holds itself
    ],
)
def test_hostile_pickles(attack):
    with pytest.raises(ValueError, match=r"cannot be read"):
        pickles.load(io.BytesIO(attack))
