import ast
import errno
import json
import os
import shutil
import tarfile
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from archives import encoded, make_folder, make_tinyimagenet, picture
from conftest import Inline, change_manifest, convert_quietly, relist, run_cli

import mlpdata
from mlpdata import image
from mlpdata.errors import Error
from mlpdata.inspect import info, read_back, snippets, stats, verify
from mlpdata.shards import beton, tar
from mlpdata.shards.manifest import Manifest


@pytest.fixture(autouse=True)
def _inline(monkeypatch):
    monkeypatch.setattr(verify, "LocalEngine", Inline)


def problems(root):
    _, found = verify.verify(root, quiet=True)
    assert found.num_problems >= len(found.problems)
    return found.problems


@pytest.fixture(scope="module")
def kept_dir(tmp_path_factory):
    """JPEGs that are stored as they are, beside their pixels."""
    base = tmp_path_factory.mktemp("kept")
    make_tinyimagenet(base / "tiny.zip")
    convert_quietly(dataset="tinyimagenet", source=str(base / "tiny.zip"), out=base / "out", workers=1, shard_size=300)
    return base / "out"


CASES = [
    {},
    {"codec": "jpg"},
    {"codec": "png"},
    {"codec": "raw"},
    {"resize": "longest", "codec": "jpg", "quality": 97},
    {"format": "tar"},
    {"format": "beton"},
    {"format": "beton", "codec": "jpg"},
]


@pytest.mark.parametrize("options", CASES, ids=str)
def test_what_convert_makes_is_whole(options, tmp_path):
    make_folder(tmp_path / "in", per_class=7)
    convert_quietly(
        dataset="folder", source=str(tmp_path / "in"), res=32, out=tmp_path / "out", workers=1, shard_size=6, **options
    )
    assert problems(tmp_path / "out") == []


def test_kept_jpegs_and_skipped_images_are_whole(kept_dir):
    assert problems(kept_dir) == []


@pytest.mark.parametrize("name", ["train.beton", "train-000000.tar", "classes.txt"])
def test_a_missing_file_is_one_problem(photos_dir, tmp_path, name):
    root = copy(photos_dir, tmp_path)
    (root / name).unlink()
    assert problems(root) == [f"{name} cannot be read: No such file or directory"]


def test_another_version_of_the_encoder_is_allowed_what_versions_differ_in(photos_dir, tmp_path, monkeypatch):
    root = copy(photos_dir, tmp_path)
    monkeypatch.setattr(image, "encode_jpeg", lambda pixels, quality: encoded(pixels, quality=quality))
    assert "is not the image whose pixels" in problems(root)[0]  # of this version it has to be the very bytes
    change_manifest(root, image_library={"jpeg": "simplejpeg 0.1", "resize": "pillow 1", "png": "deflate 0"})
    assert problems(root) == []
    monkeypatch.setattr(image, "encode_jpeg", lambda pixels, quality: encoded(pixels[::-1], quality=quality))
    assert "is not the image whose pixels" in problems(root)[0]


def test_where_some_jpegs_are_kept_and_some_encoded_the_mean_is_not_asked_of_a_part(tmp_path):
    make_folder(tmp_path / "in", per_class=7)
    for i in range(5):
        (tmp_path / "in" / "train" / "cat" / f"small{i}.jpg").write_bytes(encoded(picture(32, 32, 900 + i)))
    out = tmp_path / "out"
    convert_quietly(dataset="folder", source=str(tmp_path / "in"), res=32, out=out, workers=1, format="tar")
    assert problems(out) == []


# ---------------------------------------------------------------------------------------------------------- damage


def copy(root, tmp_path):
    shutil.copytree(root, tmp_path / "copy")
    return tmp_path / "copy"


def overwrite(path, at, data):
    with open(path, "r+b") as f:
        f.seek(at)
        f.write(data)


def change_index(root, split, column, change):
    path = root / f"{split}.index.parquet"
    table = pq.read_table(path)
    number = table.schema.get_field_index(column)
    values = table[column].to_pylist()
    change(values)
    pq.write_table(
        table.set_column(number, table.schema.field(number), pa.array(values, table.schema.field(number).type)), path
    )


@pytest.mark.parametrize("how", ["a bit", "cut short", "gone"])
def test_damage_to_any_file_is_found_and_the_file_named(photos_dir, tmp_path, how):
    for name, entry in Manifest.load(photos_dir).files.items():
        root = tmp_path / name
        shutil.copytree(photos_dir, root)
        path, at = root / name, max(1, entry["bytes"]) // 2
        if how == "gone":
            path.unlink()
        elif not entry["bytes"]:  # nothing was skipped
            path.write_bytes(b"x")
        elif how == "cut short":
            path.write_bytes(path.read_bytes()[:at])
        else:
            overwrite(path, at, bytes([path.read_bytes()[at] ^ 1]))
        said = problems(root)
        assert any(
            name in p and ("sha256" in p or " the manifest says " in p or "cannot be read" in p) for p in said
        ), said
        shutil.rmtree(root)


def flip_pixel(root):
    at = int(beton.open_index(root / "train.beton").offset[3])
    overwrite(root / "train.beton", at + 100, bytes([(root / "train.beton").read_bytes()[at + 100] ^ 1]))


def change_beton_label(root):
    path = root / "train.beton"
    meta, _ = beton.read_rows(path, 0, 1)
    meta["label"] = (meta["label"] + 1) % 3
    overwrite(path, beton.METADATA_START, meta.tobytes())


def swap_places(root):
    path = root / "train.beton"
    meta, _ = beton.read_rows(path, 0, 2)
    meta["image"]["data_ptr"] = meta["image"]["data_ptr"][::-1].copy()
    overwrite(path, beton.METADATA_START, meta.tobytes())


def change_class(root):
    path = root / "train-000000.tar"
    data = path.read_bytes()
    at = data.index(b".cls\0")
    at = at // 512 * 512 + 512
    overwrite(path, at, b"7")


def rename_member(root):
    path = root / "train-000001.tar"
    with tarfile.open(path) as archive:
        member = archive.getmembers()[2]
    overwrite(path, member.offset, tar.headers(["other.jpg"], [member.size]).tobytes())


def another_picture(root):
    """A JPEG in a tar becomes another one that takes as many bytes."""
    path = root / "train-000000.tar"
    row = pq.read_table(root / "train.index.parquet").slice(2, 1).to_pylist()[0]
    for seed in range(1000):
        for quality in range(60, 96, 5):
            data = encoded(picture(32, 32, 5000 + seed), quality=quality)
            if len(data) <= row["bytes"]:
                overwrite(path, row["offset"], data + bytes(row["bytes"] - len(data)))
                return


def add_member(root):
    path = root / "val-000002.tar"
    data = path.read_bytes()
    path.write_bytes(data[:-1024] + data[:512] + data[512:1024].ljust(512, b"\0") + data[-1024:])


def change_digest(root):
    change_index(root, "val", "digest", lambda values: values.__setitem__(4, values[4] ^ 1))


def change_index_label(root):
    change_index(root, "val", "label", lambda values: values.__setitem__(4, (values[4] + 1) % 3))


def label_beyond(root):
    change_index(root, "val", "label", lambda values: values.__setitem__(4, 3))


def move_row(root):
    change_index(root, "val", "offset", lambda values: values.__setitem__(0, values[0] + 512))


def double_key(root):
    change_index(root, "val", "key", lambda values: values.__setitem__(0, values[1]))


def huge_image(root):
    change_index(root, "val", "width", lambda values: values.__setitem__(0, 1 << 30))


def text_for_numbers(root):
    path = root / "val.index.parquet"
    table = pq.read_table(path)
    number = table.schema.get_field_index("width")
    pq.write_table(table.set_column(number, "width", pa.array(["32"] * len(table))), path)


def huge_member(root):
    path = root / "train-000002.tar"
    with tarfile.open(path) as archive:
        member = archive.getmembers()[0]
    overwrite(path, 0, tar.headers([member.name], [2_000_000]).tobytes())
    with open(path, "r+b") as f:
        f.truncate(2_100_000)


def fewer_rows(root):
    path = root / "val.index.parquet"
    pq.write_table(pq.read_table(path).slice(1), path)


def change_counts(root):
    splits = json.loads((root / "manifest.json").read_text())["splits"]
    splits["val"]["class_counts"][0] += 1
    splits["val"]["class_counts"][1] -= 1
    change_manifest(root, splits=splits)


def change_mean(root):
    mean = json.loads((root / "manifest.json").read_text())["mean"]
    change_manifest(root, mean=[mean[0] + 1e-5, *mean[1:]])


def swap_classes(root):
    path = root / "classes.txt"
    lines = path.read_text().splitlines()
    path.write_text("\n".join(lines[::-1]) + "\n")


def invent_skipped(root):
    (root / "skipped.jsonl").write_text('{"split": "val", "source": "x", "reason": "y"}\n')


def skipped_elsewhere(root):
    (root / "skipped.jsonl").write_text('{"split": "other", "source": "x", "reason": "y"}\n')


def skipped_number(root):
    (root / "skipped.jsonl").write_text("5\n")


def skipped_deep(root):
    (root / "skipped.jsonl").write_text("[" * 100_000)


def other_table(root):
    path = root / "_info.json"
    path.write_text(path.read_text().replace('"num_samples": 60', '"num_samples": 59', 1))


def table_gone_wrong(root):
    (root / "_info.json").write_text("{")


def stray_tar(root):
    shutil.copy(root / "train-000000.tar", root / "train-000009.tar")


def stray_part(root):
    (root / "other.beton.tmp").write_bytes(b"x")


DAMAGE = [
    (flip_pixel, "train.beton: sample {key3} has other pixels"),
    (change_beton_label, "train.beton: sample"),
    (swap_places, "train.beton: sample {key0} has allocation"),
    (change_class, "train-000000.tar: sample {key0} has class b'7'"),
    (rename_member, "train-000001.tar holds "),
    (another_picture, "train-000000.tar: sample {key2} is not the image whose pixels the index lists"),
    (add_member, "val-000002.tar holds "),
    (change_digest, "val.beton: sample"),
    (change_index_label, "the index says"),
    (label_beyond, "has label 3"),
    (move_row, "is not where the index says"),
    (double_key, "has a key twice"),
    (huge_image, "1073741824 x 32 pixels"),
    (text_for_numbers, "its column 'width' has string where int32 belongs"),
    (huge_member, "train-000002.tar holds 2,000,000 bytes"),
    (fewer_rows, "val.index.parquet: it lists 59 samples, the manifest 60"),
    (change_counts, "split val has other class counts"),
    (change_mean, "mean and std of split train"),
    (swap_classes, "classes.txt is not the class list"),
    (invent_skipped, "skipped.jsonl lists 1 image of split val, the manifest 0"),
    (skipped_elsewhere, "skipped.jsonl names the split 'other'"),
    (skipped_number, "skipped.jsonl is damaged"),
    (skipped_deep, "skipped.jsonl is damaged"),
    (other_table, "_info.json differs from the manifest in split train"),
    (table_gone_wrong, "_info.json is damaged"),
    (stray_tar, "train-000009.tar is not in the manifest"),
    (stray_part, "other.beton.tmp is not in the manifest"),
]


@pytest.mark.parametrize(("damage", "message"), DAMAGE, ids=[d.__name__ for d, _ in DAMAGE])
def test_what_checksums_do_not_tell_is_found_in_the_samples(photos_dir, tmp_path, monkeypatch, damage, message):
    monkeypatch.setattr(image, "MAX_IMAGE_BYTES", 1 << 20)
    root = copy(photos_dir, tmp_path)
    keys = pq.read_table(root / "train.index.parquet")["key"].to_pylist()
    damage(root)
    relist(root)
    found = problems(root)
    assert any(message.format(key0=keys[0], key2=keys[2], key3=keys[3]) in p for p in found), found
    assert not any("sha256" in p for p in found)


def test_a_kept_jpeg_has_to_have_the_very_pixels(kept_dir, tmp_path):
    root = copy(kept_dir, tmp_path)
    row = pq.read_table(root / "train.index.parquet").slice(0, 1).to_pylist()[0]
    path = root / row["file"]
    pixels = image.decode_exact(path.read_bytes()[row["offset"] : row["offset"] + row["bytes"]])
    data = encoded(255 - pixels, quality=30)
    assert len(data) <= row["bytes"]
    overwrite(path, row["offset"], data + bytes(row["bytes"] - len(data)))
    relist(root)
    assert any(f"{row['file']}: sample {row['key']} has other pixels" in p for p in problems(root))


def test_twins_of_jpegs_are_compared_byte_by_byte(tmp_path):
    make_folder(tmp_path / "in", per_class=7)
    convert_quietly(dataset="folder", source=str(tmp_path / "in"), res=32, out=tmp_path / "out", workers=1, codec="jpg")
    row = pq.read_table(tmp_path / "out" / "val.index.parquet").slice(1, 1).to_pylist()[0]
    data = (tmp_path / "out" / row["file"]).read_bytes()[row["offset"] : row["offset"] + row["bytes"]]
    again = encoded(image.decode_exact(data), quality=20)
    overwrite(tmp_path / "out" / row["file"], row["offset"], again + bytes(row["bytes"] - len(again)))
    relist(tmp_path / "out")
    assert any(f"sample {row['key']} is a different JPEG in each" in p for p in problems(tmp_path / "out"))


def test_many_problems_are_counted_and_some_are_told(photos_dir, tmp_path):
    root = copy(photos_dir, tmp_path)
    change_index(root, "train", "digest", lambda values: values.__setitem__(slice(None), [d ^ 1 for d in values]))
    relist(root)
    _, found = verify.verify(root, quiet=True)
    assert found.num_problems >= 60 and len(found.problems) == 3 * verify.MAX_LISTED  # of three shards


def test_the_command_says_what_is_wrong_and_fails(photos_dir, tmp_path):
    done = run_cli("verify", photos_dir)
    assert done.returncode == 0
    assert "is whole" in done.stdout and "120 samples, equal in both formats" in done.stdout
    root = copy(photos_dir, tmp_path)
    flip_pixel(root)
    done = run_cli("verify", root)
    assert done.returncode == 1
    assert "train.beton has sha256" in done.stdout and "has other pixels than the index says" in done.stdout
    assert done.stderr.startswith("mlpdata: error: ") and "2 problems, listed above" in done.stderr
    assert run_cli("verify", tmp_path).returncode == 1


@pytest.mark.parametrize("how", ["gone", "a folder", "a FIFO", "a broken link", "a device", "no permission"])
@pytest.mark.parametrize(
    "name", ["train.beton", "train-000000.tar", "val.index.parquet", "classes.txt", "skipped.jsonl", "_info.json"]
)
def test_what_is_no_file_is_one_line_and_nobody_waits_for_it(photos_dir, tmp_path, monkeypatch, name, how):
    root = copy(photos_dir, tmp_path)
    path = root / name
    data = path.read_bytes()
    path.unlink()
    if how == "a folder":
        path.mkdir()
    elif how == "a FIFO":
        os.mkfifo(path)
    elif how == "a broken link":
        path.symlink_to(root / "nothing")
    elif how == "a device":
        path.symlink_to("/dev/zero")
    elif how == "no permission":
        path.write_bytes(data)
        plain = os.open
        monkeypatch.setattr(os, "open", lambda p, *a, **k: refuse(p) if Path(p) == path else plain(p, *a, **k))
    assert any(name in p and "\n" not in p for p in problems(root))
    assert verify.verify(root, quiet=True)[1].is_denied == (how == "no permission")
    if how == "no permission" and name != "classes.txt":
        return
    for look in (info.info, stats.stats, lambda r: mlpdata.load(r, name.partition("-")[0].partition(".")[0], 8)):
        if name in ("classes.txt", "skipped.jsonl", "_info.json") and look not in (info.info, stats.stats):
            continue
        with pytest.raises(Error, match=name):
            look(root)


def test_a_disk_that_fails_is_told_by_file(photos_dir, monkeypatch):
    plain = read_back._read_at

    def failing(file, offset, size):
        if offset > 40_000:
            raise OSError(errno.EIO, "Input/output error")
        return plain(file, offset, size)

    monkeypatch.setattr(read_back, "_read_at", failing)
    found = problems(photos_dir)
    for name in ("train.beton", "train-000000.tar", "val-000001.tar"):
        assert any(p.startswith(name) and "Input/output error" in p for p in found), (name, found)


def refuse(path):
    raise PermissionError(errno.EACCES, "Permission denied", str(path))


def test_a_damaged_index_is_not_parsed(photos_dir, tmp_path, monkeypatch):
    """Arrow ends the process on some of them: whoever reads an index asks for its checksum first."""
    root = copy(photos_dir, tmp_path)
    path = root / "train.index.parquet"
    data = path.read_bytes()
    path.write_bytes(data[: len(data) // 2] + bytes([data[len(data) // 2] ^ 1]) + data[len(data) // 2 + 1 :])
    parsed = []
    plain = pq.ParquetFile
    monkeypatch.setattr(pq, "ParquetFile", lambda p, **k: parsed.append(str(p)) or plain(p, **k))
    assert any("train.index.parquet: it has sha256" in p for p in problems(root))
    with pytest.raises(Error, match=r"train\.index\.parquet: it has sha256"):
        stats.stats(root)
    with pytest.raises(Error, match=r"train\.index\.parquet: it has sha256"):
        mlpdata.load(root, "train", 8, format="tar")
    assert str(path) not in parsed
    assert len(mlpdata.load(root, "train", 8, format="beton").labels) == 60  # which needs no index


@pytest.mark.parametrize("library", snippets.SNIPPETS)
def test_no_path_becomes_code_in_a_snippet(photos_dir, tmp_path, library):
    root = tmp_path / "x\"+print('got you')+\"{print('got you')}'\\\n"
    shutil.copytree(photos_dir, root)
    calls = [n for n in ast.walk(ast.parse(snippets.snippet(root, library))) if isinstance(n, ast.Call)]
    assert not any("got you" in ast.unparse(a) for n in calls if ast.unparse(n.func) == "print" for a in n.args)
