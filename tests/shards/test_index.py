import io
import json
import os
import shutil
import tarfile
import time
import warnings

import numpy as np
import pytest
from archives import encoded, picture

import mlpdata
from mlpdata import Error
from mlpdata.shards import beton, foreign, index, tar
from mlpdata.shards.open import open_split

# -------------------------------------------------------------------------------------------------- foreign betons


def foreign_beton(path, images, modes, fields, shuffled=True, page_size=1 << 21, names=None, labels=None):
    """A beton as ffcv's own writer leaves it: any fields, JPEG and raw mixed, pages and allocations in any order.

    fields: type ids in order; 2 gets the images, 1 the labels; others get an allocation or a number.
    labels: 0, 1, ... by default; a second field of type 1 gets 10 more.
    """
    n = len(images)
    payloads = [encoded(p, quality=95) if m == 0 else p.tobytes() for p, m in zip(images, modes, strict=True)]
    dtypes = {0: "<f8", 1: "<i8", 2: beton.IMAGE, 3: beton.EXTENT, 4: "<u8", 5: beton.EXTENT, 6: "<u8"}
    table = np.zeros(n, np.dtype([(f"f{i}", dtypes[k]) for i, k in enumerate(fields)], align=True))
    rng, allocations, body, base = np.random.default_rng(0), [], {}, page_size
    for i in rng.permutation(n) if shuffled else range(n):
        at = base
        for f, kind in enumerate(fields):
            if kind == 2:
                table[f"f{f}"][i] = (modes[i], images[i].shape[1], images[i].shape[0], at)
                data = payloads[i]
            elif kind in (3, 5):
                data = json.dumps({"i": int(i)}).encode() + b"\0"
                table[f"f{f}"][i] = (at, len(data))
            elif kind in (4, 6):
                data, table[f"f{f}"][i] = bytes(40), at
            else:
                number = i if labels is None else labels[i]
                table[f"f{f}"][i] = number + 10 * fields[:f].count(kind)
                continue
            allocations.append((i, at, len(data)))
            body[at], at = data, at + len(data)
        base = at
    header = np.zeros((), beton.HEADER)
    header["version"], header["num_fields"], header["page_size"] = 2, len(fields), page_size
    header["num_samples"], header["alloc_table_ptr"] = n, base
    descriptors = np.zeros(len(fields), beton.FIELD)
    descriptors["type_id"] = fields
    for row, name in zip(descriptors["name"], names or ["x"] * len(fields), strict=True):
        row[: len(name)] = list(name.encode())
    with open(path, "wb") as f:
        f.write(header.tobytes() + descriptors.tobytes() + table.tobytes())
        for at, data in body.items():
            f.seek(at)
            f.write(data)
        f.seek(base)
        order = rng.permutation(len(allocations))
        f.write(np.array([allocations[k] for k in order], beton.ALLOCATION).tobytes())


@pytest.mark.parametrize("tier", ["resident", "stream"])
@pytest.mark.parametrize(
    ("fields", "modes"), [([2, 1], [1] * 40), ([5, 1, 2, 0], [0] * 40), ([4, 2, 3, 1, 6], [0, 1] * 20)]
)
@pytest.mark.filterwarnings("ignore:.*the only one of type")
def test_foreign_betons_open_by_their_path(tmp_path, fields, modes, tier):
    images = [picture(24, 20, k) for k in range(40)]
    foreign_beton(tmp_path / "x.beton", images, modes, fields)
    loader = mlpdata.load(tmp_path / "x.beton", batch_size=16, tier=tier)
    assert loader.manifest is None and loader.num_classes == 40
    seen = 0
    for batch in loader:
        assert batch.labels.tolist() == batch.ids.tolist()
        for i, pixels in zip(batch.ids.tolist(), batch.images.numpy(), strict=True):
            error = np.abs(pixels.astype(int) - images[i])
            assert error.max() == 0 if modes[i] else error.mean() < 3
            seen += 1
    assert seen == 40


def test_betons_with_fields_or_modes_nobody_knows(tmp_path):
    path = tmp_path / "x.beton"
    foreign_beton(path, [picture(8, 8, 0)] * 3, [1, 1, 1], [2, 1], names=["image", "label"])
    data = bytearray(path.read_bytes())
    at = beton.HEADER.itemsize + beton.FIELD.itemsize
    path.write_bytes(data[:at] + bytes([255]) + data[at + 1 :])
    with pytest.raises(Error, match=r"x.beton has a field of type 255 \('label'\)"):
        mlpdata.load(path)
    mode = beton.METADATA_START + beton.METADATA.itemsize
    path.write_bytes(data[:mode] + bytes([7]) + data[mode + 1 :])
    with pytest.raises(Error, match="sample 1 has image mode 7"):
        mlpdata.load(path)
    foreign_beton(path, [picture(8, 8, 0)], [1], [1])
    with pytest.raises(Error, match="no field of type RGB image, as the image is; it has 'x' \\(int\\)"):
        mlpdata.load(path)


FLOAT, INT, IMAGE, BYTES, ARRAY, JSON = range(6)


@pytest.mark.parametrize(
    ("fields", "image", "label"),
    [
        ({"image": IMAGE, "label": INT}, None, None),
        ({"index": INT, "image": IMAGE, "label": INT}, None, None),
        ({"label": INT, "mask": IMAGE, "index": INT, "image": IMAGE}, None, None),
        ({"x": FLOAT, "photo": IMAGE, "class": INT}, "photo", "class"),
        ({"image": BYTES, "photo": IMAGE, "label": INT}, "photo", None),
    ],
)
def test_fields_are_found_by_name_and_kind(tmp_path, fields, image, label):
    """Where a name had to be guessed it is said; nothing is said of the usual ones."""
    images = [picture(24, 20, k) for k in range(6)]
    path, labels = tmp_path / "x.beton", [3, 1, 2, 0, 1, 3]
    foreign_beton(path, images, [1] * 6, list(fields.values()), names=list(fields), labels=labels)
    with warnings.catch_warnings(record=True) as said:
        warnings.simplefilter("always")
        loader = mlpdata.load(path, batch_size=4)
    assert sum("is taken for the image" in str(w.message) for w in said) == (image is not None)
    assert sum("is taken for the label" in str(w.message) for w in said) == (label is not None)
    seen = [n for n, kind in fields.items() if kind == INT]
    more = 10 * seen.index(label or "label")
    assert loader.labels.tolist() == [n + more for n in labels]
    chosen = mlpdata.load(
        path,
        batch_size=4,
        image_column=image or ("photo" if "photo" in fields else "image"),
        label_column=label or "label",
    )
    assert np.array_equal(chosen.arrays()[0], loader.arrays()[0])
    assert chosen.dataset()[2][1] == loader.labels[2]


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"image": IMAGE, "label": FLOAT}, r"no field of type int, as the label is; .*'label' \(float\)"),
        ({"image": IMAGE, "label": ARRAY}, r"no field of type int, .*'label' \(array\)"),
        ({"image": IMAGE, "label": BYTES}, r"'label' \(bytes\)"),
        ({"image": IMAGE, "label": JSON}, r"'label' \(JSON\)"),
        ({"image": IMAGE}, r"no field of type int, as the label is; it has 'image' \(RGB image\)$"),
        (
            {"image": IMAGE, "label": FLOAT, "index": INT},
            "which field is the label is not clear; .* label_column= chooses",
        ),
        ({"image": IMAGE, "coarse": INT, "fine": INT}, "which field is the label is not clear"),
        ({"image": BYTES, "label": INT}, r"no field of type RGB image, as the image is; it has 'image' \(bytes\)"),
        (
            {"left": IMAGE, "right": IMAGE, "label": INT},
            "which field is the image is not clear; .* image_column= chooses",
        ),
    ],
)
def test_fields_that_are_not_clear_are_refused(tmp_path, fields, message):
    path = tmp_path / "x.beton"
    foreign_beton(path, [picture(8, 8, 0)] * 3, [1] * 3, list(fields.values()), names=list(fields))
    with pytest.raises(Error, match=message) as caught:
        mlpdata.load(path)
    assert "\n" not in str(caught.value)
    for options in ({"label_column": "none"}, {"image_column": "none"}, {"label_column": "image"}):
        with pytest.raises(Error, match=r"has not exactly one field|no field of type|is not clear"):
            mlpdata.load(path, **options)


def test_columns_are_for_betons(shapes_dir):
    with pytest.raises(Error, match=r"are for .beton files of others"):
        mlpdata.load(shapes_dir, label_column="label")


def test_labels_that_are_no_classes_are_refused(tmp_path):
    path = tmp_path / "x.beton"
    for label in (-1, 10**6, 10**8, 2**62):
        foreign_beton(path, [picture(8, 8, 0)] * 3, [1] * 3, [2, 1], names=["image", "label"], labels=[0, label, 1])
        with pytest.raises(
            Error, match=f"sample 1 has the label {label}(, which is none|; classes are numbered from 0 to 999,999)"
        ):
            mlpdata.load(path)


@pytest.mark.parametrize(
    ("where", "value", "message"),
    [
        ("version", 3, "not an FFCV beton file of version 2"),
        ("num_fields", 0, "header names 0 fields"),
        ("num_fields", 60_000, "header names 60000 fields"),
        ("num_samples", 10**18, "cut short"),
        ("num_samples", 2**64 - 1, "cut short"),
        ("num_samples", 0, "holds no samples"),
        ("num_samples", 2, "damaged: its allocation table cannot be"),
        ("alloc_table_ptr", 0, "damaged: its allocation table cannot be"),
        ("alloc_table_ptr", 2**64 - 1, "cut short"),
        ("mode", 7, "sample 1 has image mode 7"),
        ("width", 0, "sample 1 has 0 x 8 pixels"),
        ("width", 9, "samples 1 and 2 share bytes"),
        ("width", 60_000, "beyond its end|share bytes"),
        ("data_ptr", 0, "sample 1 has its image at byte 0, among the tables"),
        ("data_ptr", 2**64 - 8, "sample 1 has its image at byte 18446744073709551608, among the tables"),
    ],
)
@pytest.mark.parametrize("mode", [0, 1])
def test_headers_and_tables_are_not_trusted(tmp_path, where, value, message, mode):
    path = tmp_path / "x.beton"
    images = [picture(8, 8, k) for k in range(4)]
    foreign_beton(path, images, [mode] * 4, [2, 1], shuffled=False, names=["image", "label"])
    data = bytearray(path.read_bytes())
    header = np.frombuffer(data, beton.HEADER, 1)
    rows = np.frombuffer(data, beton.METADATA, 4, beton.METADATA_START)["image"]
    for table, row in ((header, 0), (rows, 1)):
        if where in table.dtype.names:
            table[where][row] = value
    path.write_bytes(data)
    if where == "width" and value > 8 and mode == 0:
        return  # what a JPEG's own size is, decoding tells
    with pytest.raises(Error, match=message) as caught:
        mlpdata.load(path)
    assert "\n" not in str(caught.value)


def test_jpegs_of_impossible_size_are_refused(tmp_path):
    path = tmp_path / "x.beton"
    foreign_beton(path, [picture(8, 8, k) for k in range(4)], [0] * 4, [2, 1], names=["image", "label"])
    data = bytearray(path.read_bytes())
    rows = np.frombuffer(data, beton.METADATA, 4, beton.METADATA_START)["image"]
    rows["width"][2], rows["height"][2] = 65_535, 65_535
    path.write_bytes(data)
    with pytest.raises(Error, match="sample 2 claims 65535 x 65535 pixels"):
        mlpdata.load(path)


def test_allocations_of_no_bytes_hide_no_image(tmp_path):
    """ffcv's writer leaves an empty bytes field where the next payload begins."""
    path = tmp_path / "x.beton"
    images = [picture(8, 8, k) for k in range(4)]
    foreign_beton(path, images, [0] * 4, [3, 2, 1], names=["note", "image", "label"])
    data = bytearray(path.read_bytes())
    at = int(np.frombuffer(data, beton.HEADER, 1)["alloc_table_ptr"][0])
    table = np.frombuffer(data, beton.ALLOCATION, 8, at)
    expected = mlpdata.load(path).arrays()[0]
    sizes = {int(row["ptr"]): int(row["size"]) for row in table}
    notes = np.flatnonzero(table["size"] < 20)  # an empty note begins where its sample's image does
    table["ptr"][notes] += np.array([sizes[int(p)] for p in table["ptr"][notes]], np.uint64)
    table["size"][notes] = 0
    path.write_bytes(data)
    assert np.array_equal(mlpdata.load(path).arrays()[0], expected)


def test_images_of_different_sizes_need_a_size(tmp_path):
    images = [picture(16 + k, 20, k) for k in range(12)]
    foreign_beton(tmp_path / "x.beton", images, [0, 1] * 6, [2, 1], names=["image", "label"])
    with pytest.raises(Error, match=r"x.beton holds images of different sizes.*res=N"):
        mlpdata.load(tmp_path / "x.beton")
    for tier in ("resident", "stream"):
        loader = mlpdata.load(tmp_path / "x.beton", batch_size=5, res=16, tier=tier)
        for batch in loader:
            assert batch.images.shape[1:] == (16, 16, 3)
            for i, pixels in zip(batch.ids.tolist(), batch.images.numpy(), strict=True):
                assert np.abs(pixels.mean((0, 1)) - images[i].mean((0, 1))).max() < 4
    assert mlpdata.load(tmp_path / "x.beton", res=16).dataset()[3][0].shape == (3, 16, 16)


# ---------------------------------------------------------------------------------------------------- foreign tars


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch):
    monkeypatch.delenv("MLPDATA_HOME", raising=False)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    return tmp_path / "cache" / "mlpdata"


def write_tar(path, samples):
    """samples: lists of (member name, bytes)."""
    with tarfile.open(path, "w") as archive:
        for name, data in [m for sample in samples for m in sample]:
            info = tarfile.TarInfo(name)
            info.size = len(data)
            archive.addfile(info, io.BytesIO(data))


def tar_samples(first, n, kinds=("JPEG",)):
    extension = {"JPEG": "jpg", "PNG": "png", "WEBP": "webp", "PPM": "ppm"}
    out = []
    for i in range(first, first + n):
        kind = kinds[i % len(kinds)]
        options = {"lossless": True} if kind == "WEBP" else {}
        data = encoded(picture(24, 20, i), kind, **options)
        name = f"some.dir/sample{i:05d}"
        out.append([(f"{name}.json", b"{}"), (f"{name}.{extension[kind]}", data), (f"{name}.cls", b"%d\n" % (i % 7))])
    return out


def test_foreign_tars_open_by_file_pattern_and_directory(tmp_path, monkeypatch, cache):
    kinds = ("PNG", "WEBP", "PPM")
    write_tar(tmp_path / "train-0.tar", tar_samples(0, 20, kinds))
    write_tar(tmp_path / "train-1.tar", tar_samples(20, 10, kinds))
    write_tar(tmp_path / "val-0.tar", tar_samples(100, 5, kinds))
    for path, first, n in ((tmp_path, 0, 30), (tmp_path / "train-*.tar", 0, 30), (tmp_path / "val-0.tar", 100, 5)):
        loader = mlpdata.load(path, batch_size=8)
        images, labels = loader.arrays()
        assert labels.tolist() == [i % 7 for i in range(first, first + n)]
        assert all(np.array_equal(images[i], picture(24, 20, first + i)) for i in range(n))
        for batch in mlpdata.load(path, batch_size=8, tier="stream"):
            assert np.array_equal(batch.images.numpy(), images[batch.ids.numpy()])
    assert mlpdata.load(tmp_path, "val", 8).num_samples == 5
    assert mlpdata.load(tmp_path, "validation", 8).num_samples == 5
    with pytest.raises(Error, match=r"no tars of split 'extra'; it has train, val \(such as train-0.tar\)"):
        mlpdata.load(tmp_path, "extra", 8)

    # A second opening reads the cache; one whose tars changed does not, nor one whose cache is damaged.
    scan, scanned = foreign._scan_tar, []
    monkeypatch.setattr(foreign, "_scan_tar", lambda path, words: scanned.append(path.name) or scan(path, words))
    assert mlpdata.load(tmp_path, "val", 8).num_samples == 5 and not scanned
    write_tar(tmp_path / "val-0.tar", tar_samples(100, 6, kinds))
    assert mlpdata.load(tmp_path, "val", 8).num_samples == 6 and scanned == ["val-0.tar"]
    for file in cache.iterdir():
        file.write_bytes(b"rubbish")
    assert mlpdata.load(tmp_path, "val", 8).num_samples == 6 and len(scanned) == 2


def test_foreign_tars_that_cannot_be_read(tmp_path):
    path = tmp_path / "x.tar"
    jpg = encoded(picture(8, 8, 0))
    cases = [
        (
            [[("a.jpg", jpg), ("a.cls", b"1")], [("b.jpg", jpg)]],
            r"x.tar: sample 'b' has no class among its members \(jpg\)",
        ),
        ([[("d/a.cls", b"1"), ("d/a.txt", b"x")]], r"sample 'd/a' has no image .*\(cls, txt\)"),
        ([[("a.jpg", jpg), ("a.cls", b"cat")]], r"sample 'a' has the class 'cat', which is not a number"),
        ([[("a.jpg", b"nothing"), ("a.cls", b"1")]], r"sample 'a' is no image"),
        ([], "holds no samples"),
    ]
    for samples, message in cases:
        write_tar(path, samples)
        with pytest.raises(Error, match=message) as caught:
            mlpdata.load(path)
        assert "\n" not in str(caught.value)
    write_tar(path, tar_samples(0, 9))
    with open(path, "r+b") as f:
        f.truncate(9000)
    with pytest.raises(Error, match=r"x.tar is damaged: .* is cut short"):
        mlpdata.load(path)
    with pytest.raises(Error, match="no shard directory"):
        mlpdata.load(tmp_path / "none-*.tar")


def test_a_zeroed_block_in_a_foreign_tar_is_an_error(tmp_path):
    path = tmp_path / "x.tar"
    write_tar(path, tar_samples(0, 9))
    data = bytearray(path.read_bytes())
    at = data.index(b"some.dir/sample00004.jpg")
    data[at : at + 512] = bytes(512)
    path.write_bytes(data)
    with pytest.raises(Error, match=r"x.tar is damaged: zeros at byte \d+ in place of a tar header"):
        mlpdata.load(path)


def test_foreign_tars_that_are_read_with_a_word(tmp_path):
    one, two = tmp_path / "1.tar", tmp_path / "2.tar"
    write_tar(one, tar_samples(0, 9))
    write_tar(two, tar_samples(9, 4))
    both = tmp_path / "both.tar"
    both.write_bytes(one.read_bytes() + two.read_bytes())
    cut = tmp_path / "cut.tar"
    data = one.read_bytes()
    cut.write_bytes(data[: data.index(b"some.dir/sample00007.json")])
    several = tmp_path / "several.tar"
    write_tar(several, [[*sample, (sample[0][0][:-4] + "seg.png", b"x")] for sample in tar_samples(0, 5)])
    for path, word, n in (
        (both, "more headers behind it", 13),
        (cut, "without an end mark", 7),
        (several, "has several images: jpg is taken", 5),
    ):
        for _ in range(2):  # the second time too, though what was found may be kept
            with pytest.warns(RuntimeWarning, match=word):
                assert mlpdata.load(path).labels.tolist() == [i % 7 for i in range(n)]


def test_splits_and_names_of_foreign_tars(tmp_path):
    root = tmp_path / "[D] q? a*b"
    for name, first in (("train/0.tar", 0), ("test/0.tar", 10), ("Valid/0.tar", 20)):
        (root / name).parent.mkdir(parents=True)
        write_tar(root / name, tar_samples(first, 5))
    for split, first in (("train", 0), ("test", 10), ("val", 20), ("validation", 20)):
        assert mlpdata.load(root, split).labels.tolist() == [i % 7 for i in range(first, first + 5)]
    assert mlpdata.load(root / "*" / "0.tar").num_samples == 15
    assert mlpdata.load(root / "train" / "?.tar").num_samples == mlpdata.load(root / "train" / "0.tar").num_samples == 5
    (tmp_path / "plain").mkdir()
    write_tar(tmp_path / "plain" / "0.tar", tar_samples(0, 5))
    with pytest.warns(RuntimeWarning, match="name no split are taken for train"):
        assert mlpdata.load(tmp_path / "plain").num_samples == 5


@pytest.mark.parametrize(
    ("text", "label"),
    [(b" 7 ", 7), (b"3.0", 3), (b"9223372036854775807", None), (b"4294967296", None), (b"99999999999999999999", None),
     (b"-1", None), (b"", None), (b"1e3", None), (b"0x10", None), (b"3\n4", None), ("٣".encode(), None)],
)  # fmt: skip
def test_labels_of_foreign_tars(tmp_path, text, label):
    path, jpg = tmp_path / "x.tar", encoded(picture(8, 8, 0))
    write_tar(path, [[("a.jpg", jpg), ("a.cls", text)], [("b.bmp", encoded(picture(8, 8, 1), "BMP")), ("b.cls", b"0")]])
    if label is not None:
        assert mlpdata.load(path).labels.tolist() == [label, 0]
        return
    with pytest.raises(Error, match=r"x.tar: sample ('a'|0) ") as caught:
        mlpdata.load(path)
    assert "\n" not in str(caught.value)


def test_labels_of_foreign_tars_in_json_and_links(tmp_path):
    path, jpg = tmp_path / "x.tar", encoded(picture(8, 8, 0))
    write_tar(path, [[(f"{i}.jpg", jpg), (f"{i}.json", b'{"label": %d}' % i)] for i in range(3)])
    assert mlpdata.load(path).labels.tolist() == [0, 1, 2]
    with tarfile.open(path, "a") as archive:
        link = tarfile.TarInfo("3.jpg")
        link.type, link.linkname = tarfile.SYMTYPE, "/etc/passwd"
        archive.addfile(link)
    with pytest.raises(Error, match=r"3.jpg is a symbolic link to /etc/passwd, which is not followed; repack"):
        mlpdata.load(path)


def test_our_directory_without_its_manifest_is_no_set_of_tars(photos_dir, tmp_path):
    for name in ("train-000000.tar", "train.index.parquet"):
        (tmp_path / name).symlink_to(photos_dir / name)
    with pytest.raises(Error, match=r"has no manifest.json"):
        mlpdata.load(tmp_path)
    assert mlpdata.load(tmp_path / "*.tar").num_samples == 25  # asked for by name, they are tars like any others


def test_opening_a_million_samples_is_a_matter_of_moments(tmp_path):
    """The index of a sparse beton: no loop over the samples, no sample read."""
    n, path = 1_000_000, tmp_path / "x.beton"
    sizes, pixels = np.full(n, 12288), np.full(n, 64)
    beton.create(path, beton.layout(sizes), "raw", sizes, pixels, pixels, np.arange(n) % 1000)
    started = time.process_time()
    opened = open_split(path)
    assert len(opened.index) == n and opened.num_classes == 1000
    assert time.process_time() - started < 20  # a hundredth of this where nothing else runs


def test_a_large_index_of_tars_is_read_once(shapes_dir, tmp_path, monkeypatch, cache):
    """It comes from the cache as long as its file is the same; a damaged cache is passed over."""
    root = tmp_path / "out"
    shutil.copytree(shapes_dir, root)
    opened, read = [], index.columns
    monkeypatch.setattr(index, "columns", lambda *arguments: opened.append(arguments) or read(*arguments))
    small = open_split(root, "train", "tar").index
    assert not list(cache.glob("index-*")) and len(opened) == 1
    monkeypatch.setattr(tar, "CACHED_ROWS", 1)
    kept = [open_split(root, "train", "tar").index for _ in range(3)]
    assert len(list(cache.glob("index-*"))) == 1 and len(opened) == 2
    names = ("file", "offset", "num_bytes", "codec", "width", "height", "label")
    for other in kept:
        assert other.files == small.files and other.width.strides == (0,)
        assert all(np.array_equal(getattr(other, name), getattr(small, name)) for name in names)
    (file,) = cache.glob("index-*")
    whole = file.read_bytes()
    for damaged in (whole[:-1], whole[:-1] + bytes([whole[-1] ^ 1]), b"", b"rubbish"):
        file.write_bytes(damaged)
        assert np.array_equal(open_split(root, "train", "tar").index.label, small.label)
        assert file.read_bytes() == whole
    os.utime(root / "train.index.parquet", ns=(0, 0))
    open_split(root, "train", "tar")
    assert len(opened) == 7
