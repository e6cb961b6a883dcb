import hashlib
import io
import json
import os
import re
import shutil
import subprocess
import sys
import tarfile
from dataclasses import replace
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import xxhash
from archives import (
    SYNSETS,
    damaged_inside,
    encoded,
    make_cifar,
    make_folder,
    make_imagenet,
    make_tinyimagenet,
    picture,
    tar_bytes,
)
from conftest import Inline, convert_quietly, read_jsonl, run_cli, sums
from PIL import Image

import mlpdata
from mlpdata import Error
from mlpdata.convert import convert, part, run, unit
from mlpdata.convert.hasher import Hasher
from mlpdata.convert.options import Options
from mlpdata.convert.plan import make_plan
from mlpdata.convert.sums import Summary
from mlpdata.convert.workdir import locked
from mlpdata.datasets import SPECS
from mlpdata.export.options import ExportOptions
from mlpdata.export.run import export
from mlpdata.inspect.info import info
from mlpdata.inspect.stats import stats
from mlpdata.inspect.verify import verify
from mlpdata.shards import beton
from mlpdata.shards.classes import read_classes
from mlpdata.shards.manifest import Manifest
from mlpdata.sources import Broken, ClassFilter, Sample, Unit, folder, shapes


def tar_samples(root, split):
    """{key: (extension, bytes, label)} of a split's tars, in order, as tarfile reads them."""
    out = {}
    for path in sorted(root.glob(f"{split}-*.tar")):
        with tarfile.open(path) as archive:
            members = archive.getmembers()
            for picture_member, class_member in zip(members[::2], members[1::2], strict=True):
                key, _, extension = picture_member.name.rpartition(".")
                assert class_member.name == f"{key}.cls"
                label = int(archive.extractfile(class_member).read())
                out[key] = (extension, archive.extractfile(picture_member).read(), label)
    return out


def decoded(data):
    return np.asarray(Image.open(io.BytesIO(data)).convert("RGB"))


def test_one_of_a_thing_is_singular(tmp_path):
    (tmp_path / "in" / "cat").mkdir(parents=True)
    (tmp_path / "in" / "cat" / "1.png").write_bytes(encoded(picture(20, 20, 0), "PNG"))
    root, out = tmp_path / "out", tmp_path / "parquet"
    _, lines = convert_quietly(dataset="folder", source=str(tmp_path / "in"), res=16, out=root, workers=1)
    export(ExportOptions(root=root, to="parquet", out=out, quiet=True), lines.append)
    said = [*lines, info(root), stats(root), (root / "README.md").read_text(), (out / "README.md").read_text()]
    plural_of_one = r"(?<![\d.,])1 (images|samples|classes|files|pieces)\b"  # and not a rate: "9.1 images/s"
    assert not [found for text in said if (found := re.search(plural_of_one, text))]
    assert lines[-1].startswith("done: 1 image (train 1)") and "1 image of 1 class" in said[-1]


@pytest.mark.parametrize("codec", ["raw", "png", "auto"])
def test_cifar_pixels_survive_in_both_formats(tmp_path, codec):
    expected = make_cifar(tmp_path / "c.tar.gz")
    root = tmp_path / "out"
    manifest, _ = convert_quietly(
        dataset="cifar10", source=str(tmp_path / "c.tar.gz"), codec=codec, out=root, shard_size=40, workers=2
    )
    assert manifest.tar_codec == ("raw" if codec == "raw" else "png") and manifest.beton_codec == "raw"
    for split, (images, labels) in expected.items():
        rows = pq.read_table(root / f"{split}.index.parquet").to_pylist()
        tars = tar_samples(root, split)
        index = beton.open_index(root / f"{split}.beton")
        data = (root / f"{split}.beton").read_bytes()
        order = []
        for i, row in enumerate(rows):
            batch, number = row["key"].rsplit("_", 1)
            place = (0 if split == "val" else 30 * (int(batch[-1]) - 1)) + int(number)
            order.append(place)
            pixels = images[place]
            extension, member, label = tars[row["key"]]
            assert extension == ("ppm" if codec == "raw" else "png")
            assert np.array_equal(decoded(member), pixels)
            start = int(index.offset[i])
            assert data[start : start + 3072] == pixels.tobytes()
            assert label == row["label"] == int(index.label[i]) == labels[place]
            assert row["source"] == f"cifar-10-batches-py/{batch}[{number.lstrip('0') or '0'}]"
            with open(root / row["file"], "rb") as f:
                f.seek(row["offset"])
                stored = f.read(row["bytes"])
            assert stored == (pixels.tobytes() if codec == "raw" else member)
        assert sorted(order) == list(range(len(images))) and order != sorted(order)
        assert manifest.splits[split].num_samples == len(images)
        assert manifest.splits[split].class_counts == np.bincount(labels, minlength=10).tolist()
        assert sum(manifest.splits[split].tar_lengths) == len(images)
    pixels = expected["train"][0].reshape(-1, 3) / 255
    assert np.allclose(manifest.mean, pixels.mean(0), atol=1e-6)
    assert np.allclose(manifest.std, pixels.std(0), atol=1e-6)


def test_jpegs_that_fit_pass_through_untouched(tmp_path):
    expected = make_tinyimagenet(tmp_path / "t.zip")
    root = tmp_path / "out"
    manifest, _ = convert_quietly(dataset="tinyimagenet", source=str(tmp_path / "t.zip"), out=root, workers=1)
    assert (manifest.beton_codec, manifest.tar_codec, manifest.quality) == ("raw", "jpg", None)
    for split in ("train", "val"):
        tars = tar_samples(root, split)
        assert {k: (d, label) for k, (_, d, label) in tars.items()} == expected[split]
        images, labels = mlpdata.load(root, split, 4).arrays()
        for (_, data, label), pixels, seen in zip(tars.values(), images, labels, strict=True):
            assert np.array_equal(decoded(data), pixels) and label == seen
    assert read_classes(root)[0] == ("n01443537", "goldfish, Carassius auratus")


def test_jpg_in_both_formats_is_one_encoding(tmp_path):
    make_folder(tmp_path / "in", kind="PNG")
    root = tmp_path / "out"
    manifest, _ = convert_quietly(
        dataset="folder", source=str(tmp_path / "in"), res=32, codec="jpg", quality=80, out=root, workers=1
    )
    assert (manifest.beton_codec, manifest.tar_codec, manifest.quality) == ("jpg", "jpg", 80)
    index = beton.open_index(root / "train.beton")
    data = (root / "train.beton").read_bytes()
    seen = [data[o : o + n] for o, n in zip(index.offset.tolist(), index.num_bytes.tolist(), strict=True)]
    assert seen == [member for _, member, _ in tar_samples(root, "train").values()]
    assert simple_size(seen[0]) == (32, 32)


def simple_size(data):
    return Image.open(io.BytesIO(data)).size


@pytest.mark.parametrize("format_", ["beton", "tar"])
def test_one_format_alone(tmp_path, format_):
    make_folder(tmp_path / "in")
    root = tmp_path / "out"
    manifest, _ = convert_quietly(dataset="folder", source=str(tmp_path / "in"), res=16, format=format_, out=root)
    names = {p.name for p in root.iterdir()}
    assert ("train.beton" in names) == (format_ == "beton")
    assert ("train-000000.tar" in names) == ("_info.json" in names) == (format_ == "tar")
    assert manifest.formats == [format_]
    images, _ = mlpdata.load(root, "train", 4).arrays()
    assert images.shape == (12, 16, 16, 3)


def test_longest_keeps_shapes(tmp_path):
    make_folder(tmp_path / "in", splits=("train",))
    root = tmp_path / "out"
    convert_quietly(dataset="folder", source=str(tmp_path / "in"), res=32, resize="longest", codec="png", out=root)
    rows = pq.read_table(root / "train.index.parquet").to_pylist()
    for row, (_, data, _) in zip(rows, tar_samples(root, "train").values(), strict=True):
        assert max(row["width"], row["height"]) == 32
        assert simple_size(data) == (row["width"], row["height"])
        assert row["source_width"] / row["source_height"] == pytest.approx(row["width"] / row["height"], rel=0.1)
    with pytest.raises(Error, match="different sizes"):
        mlpdata.load(root, "train", 4)


def test_bytes_do_not_depend_on_workers_or_place(tmp_path):
    make_tinyimagenet(tmp_path / "t.zip", per_class=60)
    seen = []
    for k, workers in enumerate((1, 2, 5)):
        root = tmp_path / f"out{k}"
        convert_quietly(
            dataset="tinyimagenet", source=str(tmp_path / "t.zip"), res=24, out=root, workers=workers, shard_size=50
        )
        seen.append(sums(root))
    assert seen[0] == seen[1] == seen[2]
    other = tmp_path / "other"
    convert_quietly(dataset="tinyimagenet", source=str(tmp_path / "t.zip"), res=24, out=other, seed=1, shard_size=50)
    assert list(tar_samples(other, "train")) != list(tar_samples(tmp_path / "out0", "train"))


def test_everything_on_record(tmp_path):
    make_folder(tmp_path / "in", per_class=30)
    root = tmp_path / "out"
    manifest, lines = convert_quietly(dataset="folder", source=str(tmp_path / "in"), res=16, out=root, shard_size=30)
    loaded = Manifest.load(root)
    assert loaded == manifest
    assert set(loaded.files) == {p.name for p in root.iterdir()} - {"manifest.json"}
    for name, entry in loaded.files.items():
        data = (root / name).read_bytes()
        assert entry == {"bytes": len(data), "sha256": hashlib.sha256(data).hexdigest()}
    assert loaded.classes_sha256 == loaded.files["classes.txt"]["sha256"]
    assert loaded.fidelity["num_samples"] > 3 and loaded.fidelity["psnr_db"] > 20
    info = json.loads((root / "_info.json").read_text())["splits"]["train"]
    assert info["num_samples"] == 90 and info["shard_lengths"] == [30, 30, 30] and len(info["filenames"]) == 3
    assert not (root / ".convert").exists()
    assert str(tmp_path) not in "".join(p.read_text() for p in root.iterdir() if p.suffix in (".json", ".md", ".txt"))
    # The command on record, run again elsewhere, gives the same bytes.
    again = tmp_path / "again"
    words = [*loaded.command.split()[1:], "--source", tmp_path / "in", "--out", again]
    assert run_cli(*words).returncode == 0
    assert sums(again) == sums(root)
    assert any("images/s" in line for line in lines)


# --------------------------------------------------------------------------------------------------------- damage


def test_bad_images_are_skipped_with_their_reasons(tmp_path):
    make_folder(tmp_path / "in", splits=("train",), per_class=8)
    cats = tmp_path / "in" / "train" / "cat"
    good = encoded(picture(64, 64, 1))
    (cats / "truncated.jpg").write_bytes(good[: len(good) // 2])
    (cats / "empty.jpg").write_bytes(b"")
    (cats / "text.jpg").write_bytes(b"no image")
    (cats / "really_png.jpg").write_bytes(encoded(picture(50, 50, 2), "PNG"))
    (cats / "cmyk.jpg").write_bytes(encoded(Image.fromarray(picture(50, 50, 3)).convert("CMYK")))
    root = tmp_path / "out"
    options = dict(dataset="folder", source=str(tmp_path / "in"), res=32, out=root)
    with pytest.raises(
        Error, match=r"3 of 29 images \(10.34%\) could not be read, more than --max-skipped 0.01; the first: "
    ):
        convert_quietly(**options)
    assert not (root / "manifest.json").exists() and list(root.iterdir()) == [root / ".convert"]
    assert len(read_jsonl(root / ".convert" / "skipped.jsonl")) == 3
    manifest, lines = convert_quietly(**options, max_skipped=0.2)
    assert "going on" in lines[1]
    assert manifest.splits["train"].num_samples == 26 and manifest.splits["train"].num_skipped == 3
    skipped = read_jsonl(root / "skipped.jsonl")
    assert {s["source"].rsplit("/", 1)[1] for s in skipped} == {"truncated.jpg", "empty.jpg", "text.jpg"}
    assert all(s["reason"] for s in skipped)


@pytest.mark.parametrize("large", [False, True])
@pytest.mark.parametrize("format_", ["both", "beton"])
def test_a_damaged_jpeg_of_the_right_size_is_skipped(tmp_path, monkeypatch, large, format_):
    """Its decoding waits until shards are written; then it is as if it had been known from the start."""
    for i in range(60):
        folder = tmp_path / "in" / ("val" if i % 3 else "train") / f"class{i % 2}"
        folder.mkdir(parents=True, exist_ok=True)
        (folder / f"{i}.jpg").write_bytes(encoded(picture(32, 32, i)))
    options = {"dataset": "folder", "res": 32, "format": format_, "shard_size": 20, "max_skipped": 0.2}
    convert_quietly(**options, source=str(tmp_path / "in"), out=tmp_path / "expected")
    whole = next((tmp_path / "in" / "val").rglob("*.jpg"))
    whole.with_name("a-damaged.jpg").write_bytes(damaged_inside(whole.read_bytes()))
    whole.with_name("b-damaged.jpg").write_bytes(whole.read_bytes()[:-100])
    whole.with_name("z-damaged.jpg").write_bytes(damaged_inside(whole.read_bytes()))
    if large:
        monkeypatch.setattr("mlpdata.convert.plan.DURABLE_FROM_BYTES", 0)
    manifest, _ = convert_quietly(**options, source=str(tmp_path / "in"), out=tmp_path / "out", workers=2)
    assert [Path(row["source"]).name for row in read_jsonl(tmp_path / "out" / "skipped.jsonl")] == [
        "a-damaged.jpg",
        "b-damaged.jpg",
        "z-damaged.jpg",
    ]
    assert manifest.splits["val"].num_skipped == 3
    expected = sums(tmp_path / "expected")
    assert {k: v for k, v in sums(tmp_path / "out").items() if k.endswith((".tar", ".beton", ".parquet"))} == {
        k: v for k, v in expected.items() if k.endswith((".tar", ".beton", ".parquet"))
    }
    assert manifest.mean == Manifest.load(tmp_path / "expected").mean


def test_a_split_of_broken_images_is_an_error(tmp_path):
    make_folder(tmp_path / "in")
    for path in (tmp_path / "in" / "val").rglob("*.jpg"):
        path.write_bytes(b"broken")
    with pytest.raises(Error, match="split 'val' is empty: none of its images could be read"):
        convert_quietly(dataset="folder", source=str(tmp_path / "in"), res=8, out=tmp_path / "out", max_skipped=1.0)


def test_output_directory_that_holds_something_else(tmp_path):
    make_folder(tmp_path / "in")
    options = dict(dataset="folder", source=str(tmp_path / "in"), res=8)
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "thesis.tex").write_text("mine")
    with pytest.raises(Error, match="not empty and not a conversion of mlpdata"):
        convert_quietly(**options, out=tmp_path / "full")
    assert [p.name for p in (tmp_path / "full").iterdir()] == ["thesis.tex"]
    with pytest.raises(Error, match="is a file"):
        convert_quietly(**options, out=tmp_path / "full" / "thesis.tex")
    convert_quietly(**options, out=tmp_path / "out")
    before = sums(tmp_path / "out")
    _, lines = convert_quietly(**options, out=tmp_path / "out")
    assert "nothing to do" in lines[-1] and sums(tmp_path / "out") == before
    with pytest.raises(Error, match="holds another conversion"):
        convert_quietly(**{**options, "res": 9}, out=tmp_path / "out")


def test_no_space(tmp_path, monkeypatch):
    make_folder(tmp_path / "in")
    options = dict(dataset="folder", source=str(tmp_path / "in"), res=8, out=tmp_path / "out", max_skipped=0)
    monkeypatch.setattr(shutil, "disk_usage", lambda _: shutil._ntuple_diskusage(10, 9, 1))
    with pytest.raises(Error, match=r"no space for .* takes about .* are free"):
        convert_quietly(**options)
    assert not (tmp_path / "out").exists()
    # What an unfinished run has written already is room for the same run.
    (tmp_path / "out" / ".convert" / "parts").mkdir(parents=True)
    (tmp_path / "out" / ".convert" / "parts" / "x.data").write_bytes(bytes(50_000_000))
    convert_quietly(**options)


def test_a_unit_larger_than_memory_is_held_in_a_file(tmp_path, monkeypatch):
    make_folder(tmp_path / "in")
    options = dict(dataset="folder", source=str(tmp_path / "in"), res=16, workers=1)
    convert_quietly(**options, out=tmp_path / "out")
    monkeypatch.setattr(part, "HOLD_BYTES", 2_000)
    convert_quietly(**options, out=tmp_path / "held")
    assert sums(tmp_path / "held") == sums(tmp_path / "out")


def test_several_machines_share_a_plan(tmp_path):
    make_tinyimagenet(tmp_path / "t.zip", per_class=1500)
    words = ["convert", "tinyimagenet", "--source", tmp_path / "t.zip", "--res", 8, "--quiet", "--shard-size", 700]
    assert run_cli(*words, "--out", tmp_path / "alone").returncode == 0
    root = tmp_path / "out"
    done = run_cli(*words, "--out", root, "--part", "2/3")
    assert done.returncode == 0 and "part 2 of 3 is done" in done.stdout and "--assemble" in done.stdout
    done = run_cli(*words, "--out", root, "--assemble")
    assert done.returncode == 1 and done.stderr.count("\n") == 1
    assert "3 of 4 units missing, the first is" in done.stderr and "--part 1/3, --part 3/3" in done.stderr
    with pytest.raises(Error, match="did not finish"):
        Manifest.load(root)
    both = [
        subprocess.Popen([sys.executable, "-m", "mlpdata.cli", *map(str, words), "--out", root, "--part", f"{k}/3"])
        for k in (1, 3)
    ]
    assert [p.wait(60) for p in both] == [0, 0]
    other = run_cli(*words, "--seed", 1, "--out", root, "--part", "1/3")
    assert other.returncode == 1 and "asked for --seed 1, found --seed 0" in other.stderr
    assert run_cli(*words, "--out", root, "--assemble").returncode == 0
    assert sums(root) == sums(tmp_path / "alone")


def test_shares_at_work_keep_others_out(tmp_path):
    make_folder(tmp_path / "in")
    options = dict(dataset="folder", source=str(tmp_path / "in"), res=8, out=tmp_path / "out", quiet=True)
    plan = make_plan(Options(**options, part=(1, 2)))
    plan.work.parts.mkdir(parents=True)
    with locked(plan.work, plan.share):
        with locked(plan.work, (2, 2)):
            pass
        for share in ((1, 2), None):
            with pytest.raises(Error, match="another conversion is at work"), locked(plan.work, share):
                pass


@pytest.mark.skipif(not os.path.exists("/dev/full"), reason="needs a device that is always full")
def test_disk_full_while_writing(tmp_path, monkeypatch):
    make_folder(tmp_path / "in", splits=("train",))
    root = tmp_path / "out"
    options = dict(dataset="folder", source=str(tmp_path / "in"), res=8, out=root)
    plan = make_plan(Options(**options))
    plan.work.parts.mkdir(parents=True)
    (plan.work.parts / f"{plan.tasks[0].unit.name}.data").symlink_to("/dev/full")
    monkeypatch.setattr(run, "tidy", lambda work, shared: None)  # which would remove the link
    with pytest.raises(Error, match="No space left on device"):
        convert_quietly(**options)
    assert not (root / "manifest.json").exists()


def test_unknown_split_and_option_values(tmp_path):
    make_folder(tmp_path / "in")
    with pytest.raises(Error, match="no split 'night' in folder; it has train, val"):
        convert_quietly(dataset="folder", source=str(tmp_path / "in"), splits=("night",), out=tmp_path / "o")
    manifest, _ = convert_quietly(
        dataset="folder", source=str(tmp_path / "in"), res=8, splits=("test",), out=tmp_path / "o"
    )
    assert list(manifest.splits) == ["val"]
    for bad in ({"res": 0}, {"codec": "gif"}, {"workers": 0}, {"max_skipped": 2.0}, {"limit": 0}):
        with pytest.raises(Error):
            convert_quietly(dataset="shapes", out=tmp_path / "x", **bad)


class FewHashes:
    """A module in which every hash is one of four."""

    def __getattr__(self, name):
        return getattr(xxhash, name)

    def xxh3_64_intdigest(self, data, seed=0):
        return xxhash.xxh3_64_intdigest(data, seed) & 3 << 62


def test_keys_with_equal_hashes_are_in_one_order_everywhere(tmp_path, monkeypatch):
    """Tables, payloads and both formats agree; shards are larger, as equal hashes stay together."""
    images = {}
    for c, i in ((c, i) for c in "ab" for i in range(40)):
        path = tmp_path / "in" / c / f"{i}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        images[f"{c}/{i}"] = picture(8 + i % 3, 9, 100 * i + ord(c))
        path.write_bytes(encoded(images[f"{c}/{i}"], "PNG"))
    monkeypatch.setattr(run, "LocalEngine", Inline)
    monkeypatch.setattr(folder, "LEAST_IMAGES", 15)
    monkeypatch.setattr(unit, "xxhash", FewHashes())
    manifest, _ = convert_quietly(dataset="folder", source=str(tmp_path / "in"), res=16, resize="longest", codec="png",
                                  format="both", out=tmp_path / "out", shard_size=10)  # fmt: skip
    assert manifest.splits["train"].num_samples == 80 and len(manifest.splits["train"].tars) <= 4
    rows = pq.read_table(tmp_path / "out" / "train.index.parquet").to_pylist()
    assert sorted(row["key"] for row in rows) == sorted(images)
    index = beton.open_index(tmp_path / "out" / "train.beton")
    tars = tar_samples(tmp_path / "out", "train")
    data = (tmp_path / "out" / "train.beton").read_bytes()
    assert list(tars) == [row["key"] for row in rows]
    for i, row in enumerate(rows):
        shape = (int(index.height[i]), int(index.width[i]), 3)
        start = int(index.offset[i])
        pixels = np.frombuffer(data[start : start + int(index.num_bytes[i])], np.uint8).reshape(shape)
        assert np.array_equal(pixels, decoded(tars[row["key"]][1])), row["key"]
        assert int(index.label[i]) == row["label"] == "ab".index(row["key"][0])


@pytest.mark.parametrize("few", [False, True])
def test_two_images_with_one_key_are_an_error(tmp_path, monkeypatch, few):
    def samples(self, unit):
        for i, key in enumerate(["k1", "k2", "k3", "k4", "k5", "k1" if unit.name == "train-000000" else "k6"]):
            yield Sample(key, np.zeros((8, 8, 3), np.uint8), 0, f"{unit.name}[{i}]")

    monkeypatch.setattr(run, "LocalEngine", Inline)
    monkeypatch.setattr(shapes.Shapes, "samples", samples)
    monkeypatch.setattr(shapes.Shapes, "units", lambda self: [Unit("train-000000", "train", 6, 0, None)])
    if few:
        monkeypatch.setattr(unit, "xxhash", FewHashes())
    with pytest.raises(Error, match=r"two images have the key 'k1': train-000000\[\d\] and train-000000\[\d\]"):
        convert_quietly(dataset="shapes", res=8, out=tmp_path / "out")


def test_fidelity_is_measured_on_resized_images_only(photos_dir, tmp_path):
    folder = tmp_path / "in" / "train" / "cat"
    folder.mkdir(parents=True)
    for i in range(20):
        (folder / f"{i}.jpg").write_bytes(encoded(picture(32, 32, i)))
    manifest, _ = convert_quietly(
        dataset="folder", source=str(tmp_path / "in"), res=32, out=tmp_path / "out", workers=1
    )
    assert manifest.fidelity is None
    seen = Manifest.load(photos_dir).fidelity
    assert 5 < seen["num_samples"] <= 120 and 20 < seen["psnr_db"] <= seen["psnr_db_upper"] <= 99


@pytest.mark.parametrize(
    ("errors", "psnr", "upper", "warned"),
    [
        ([100.0] * 50, 28.13, 28.13, True),
        ([10.0] * 17 + [400.0], 33.12, 99.0, False),  # one image in a few
        ([10.0] * 1700 + [400.0] * 100, 33.12, 33.74, True),  # as many of many
        ([5.0] * 20, 41.14, 41.14, False),
        ([400.0], 22.11, 99.0, False),
        ([0.0, 0.0], 99.0, 99.0, False),
    ],
)
def test_low_fidelity_is_warned_of_unless_chance_explains_it(errors, psnr, upper, warned):
    total = Summary()
    for mse in errors:
        total.add(
            Summary(
                num_measured=1,
                measured_values=12,
                measured_squared_error=12 * mse,
                measured_mse_squared=mse**2,
                measured_max_diff=int(mse > 0),
            )
        )
    seen = total.fidelity()
    assert (seen["num_samples"], seen["psnr_db"], seen["psnr_db_upper"]) == (len(errors), psnr, upper)
    line = run.fidelity_line(seen)
    assert line.startswith("warning: fidelity") == warned
    assert ("too few images to tell" in line) == (psnr < 35 and not warned)


def test_a_file_is_hashed_while_it_is_written(tmp_path):
    data = np.random.default_rng(0).bytes(9_000_000)
    path = tmp_path / "growing"
    path.write_bytes(bytes(len(data)))
    hasher = Hasher(path)
    with open(path, "r+b") as f:
        for at in range(0, len(data), 1_000_000):
            f.write(data[at : at + 1_000_000])
            f.flush()
            hasher.allow(at + 1_000_000)
    assert hasher.finish() == hashlib.sha256(data).hexdigest()
    short = Hasher(path)
    short.allow(len(data) + 1)
    with pytest.raises(OSError, match="shorter"):
        short.finish()
    stopped = Hasher(path)
    stopped.stop()  # and does not wait for more


# ---------------------------------------------------------------------------------------- the data set's own filter


@pytest.fixture
def paper(monkeypatch):
    """The default of imagenet21k at a hundredth: classes of at least 5 images, 2 of each held out."""
    spec = replace(SPECS["imagenet21k"], class_filter=ClassFilter(min_class_size=5, val_per_class=2))
    monkeypatch.setitem(SPECS, "imagenet21k", spec)


def small_classes(classes):
    for wnid, n in zip(classes, (3, 4, 5, 6, 6), strict=True):
        classes[wnid] = dict(list(classes[wnid].items())[:n])


@pytest.mark.parametrize("name", ["f.tar", "w.tar.gz"])
def test_imagenet21k_without_options_is_the_set_of_the_paper(tmp_path, name, paper):
    make_imagenet(tmp_path / name, change=small_classes)
    source = {"dataset": "imagenet21k", "source": str(tmp_path / name), "res": 16}
    manifest, lines = convert_quietly(**source, out=tmp_path / "a")
    assert {s: info.num_samples for s, info in manifest.splits.items()} == {"train": 11, "val": 6}
    assert [name for name, _ in read_classes(tmp_path / "a")] == SYNSETS[2:]
    wanted = {"min_class_size": 5, "val_per_class": 2, "classes_kept": 3}
    assert wanted.items() <= manifest.source_filter.items()
    assert "--min-class-size 5 --val-per-class 2" in manifest.command
    said = "\n".join(lines)
    assert "classes of at least 5 images, the first 2 images by name of each class held out as val" in said
    assert "--min-class-size 0 --val-per-class 0 takes everything" in said
    # Asked for in so many words it is the same conversion.
    asked, lines = convert_quietly(**source, out=tmp_path / "a", min_class_size=5, val_per_class=2)
    assert asked == manifest and "nothing to do" in lines[-1]
    everything, _ = convert_quietly(**source, out=tmp_path / "b", min_class_size=0, val_per_class=0)
    assert {s: info.num_samples for s, info in everything.splits.items()} == {"train": 24}
    assert "--min-class-size 0 --val-per-class 0" in everything.command and everything.source_filter == {}


def test_imagenet21k_says_the_numbers_of_the_paper():
    assert SPECS["imagenet21k"].class_filter == ClassFilter(min_class_size=500, val_per_class=50)
    assert not any(spec.class_filter for name, spec in SPECS.items() if name != "imagenet21k")


@pytest.mark.parametrize("name", ["f.tar", "w.tar.gz", "folder"])
def test_classes_that_are_all_too_small_are_named_before_any_work(tmp_path, name):
    classes = make_imagenet(tmp_path / ("f.tar" if name == "folder" else name), change=small_classes)
    if name == "folder":
        for wnid, files in classes.items():
            (tmp_path / name / wnid).mkdir(parents=True)
            for file, data in files.items():
                (tmp_path / name / wnid / file).write_bytes(data)
    said: list[str] = []
    with pytest.raises(Error, match=r"no class has 500 images \(the largest is n01494475 with 6\)"):
        convert(Options(dataset="imagenet21k", source=str(tmp_path / name), res=16, out=tmp_path / "out"), said.append)
    with pytest.raises(Error, match="class n01440764 has 3 images: --val-per-class 3 leaves none of them for training"):
        convert_quietly(dataset="imagenet21k", source=str(tmp_path / name), res=16, out=tmp_path / "out",
                        min_class_size=0, val_per_class=3)  # fmt: skip
    assert not said and not (tmp_path / "out").exists()
    manifest, _ = convert_quietly(dataset="imagenet21k", source=str(tmp_path / name), res=16, out=tmp_path / "out",
                                  min_class_size=4, val_per_class=1)  # fmt: skip
    assert manifest.splits["val"].num_samples == manifest.num_classes == 4  # what came to nothing is not in the way


def test_a_source_with_splits_of_its_own_keeps_them_and_that_is_said(tmp_path):
    make_folder(tmp_path / "folders", classes=SYNSETS[:3])
    files = {
        f"n01440764_{i}.{e}": d for i in range(4) for e, d in (("jpg", encoded(picture(20, 20, i))), ("cls", b"0"))
    }
    (tmp_path / "tars").mkdir()
    (tmp_path / "tars" / "train-0.tar").write_bytes(tar_bytes(files))
    processed = {
        f"imagenet21k_resized/imagenet21k_{split}/{SYNSETS[0]}/{SYNSETS[0]}_{i}.JPEG": encoded(picture(20, 20, i))
        for i, split in enumerate(("train", "train", "val"))
    }
    (tmp_path / "p.tar").write_bytes(tar_bytes(processed))
    rows = {"image": [encoded(picture(20, 20, i)) for i in range(4)], "label": [0, 1, 0, 1]}
    (tmp_path / "parquet").mkdir()
    pq.write_table(pa.table(rows), tmp_path / "parquet" / "train-0.parquet")
    for name, counts in {
        "folders": {"train": 12, "val": 12},
        "tars": {"train": 4},
        "p.tar": {"train": 2, "val": 1},
        "parquet": {"train": 4},
    }.items():
        source = {"dataset": "imagenet21k", "source": str(tmp_path / name), "res": 16}
        manifest, lines = convert_quietly(**source, out=tmp_path / f"out-{name}")
        assert {s: info.num_samples for s, info in manifest.splits.items()} == counts
        assert any("has splits of its own: nothing is held out" in line for line in lines), lines
        assert "--min-class-size 0 --val-per-class 0" in manifest.command and manifest.source_filter == {}
        with pytest.raises(Error, match=r"of its own|takes only --classes"):
            convert_quietly(**source, out=tmp_path / "x", val_per_class=1)


def test_named_classes_are_taken_whatever_their_size(tmp_path, paper):
    make_imagenet(tmp_path / "f.tar", change=small_classes)
    (tmp_path / "classes.txt").write_text(f"{SYNSETS[3]}\tsome fish\r\n\n{SYNSETS[1]}\n")
    manifest, _ = convert_quietly(dataset="imagenet21k", source=str(tmp_path / "f.tar"), res=16, out=tmp_path / "out",
                                  classes=tmp_path / "classes.txt")  # fmt: skip
    assert [name for name, _ in read_classes(tmp_path / "out")] == [SYNSETS[3], SYNSETS[1]]
    assert {s: info.class_counts for s, info in manifest.splits.items()} == {"train": [6, 4]}


def test_names_of_splits_and_units_cannot_leave_the_directory(tmp_path, monkeypatch):
    for name, split, message in (
        ("ok", "../../up", "'../../up' is no name for a split"),
        ("../up", "train", "cannot name a unit of work"),
        ("a b", "train", "cannot name a unit of work"),
    ):
        monkeypatch.setattr(shapes.Shapes, "units", lambda self: [Unit(name, split, 1, 0, (0, 1))])  # noqa: B023
        with pytest.raises(Error, match=message):
            convert_quietly(dataset="shapes", res=16, out=tmp_path / "out")
    assert list(tmp_path.iterdir()) == []


class Both(shapes.Shapes):
    """Shapes whose units say which splits they may hold."""

    splits = ("train", "val")

    def units(self):
        return [replace(unit, split="train", splits=(unit.split,)) for unit in super().units()]

    def samples(self, unit):
        assert unit.splits == ("val",)
        for sample in super().samples(replace(unit, split="val")):
            sample.split = "val"
            yield sample


def test_only_units_of_the_wanted_splits_are_read(tmp_path, monkeypatch):
    """A source that says what each unit may hold is read only where that is wanted."""
    monkeypatch.setattr(shapes, "Shapes", Both)
    manifest, _ = convert_quietly(dataset="shapes", res=8, out=tmp_path / "out", splits=("validation",), workers=1)
    assert {s: info.num_samples for s, info in manifest.splits.items()} == {"val": 2000}


# ------------------------------------------------------------------------------------------------ what is left out


SHAPES = shapes.Shapes.samples


def yields(monkeypatch, *more, num_samples=None):
    """Shapes of one unit of ten images, and more."""
    monkeypatch.setattr(run, "LocalEngine", Inline)
    monkeypatch.setattr(shapes.Shapes, "samples", lambda self, unit: [*SHAPES(self, unit), *more])
    unit = Unit("train-000000", "train", num_samples or 10, 0, (0, 10), exact=num_samples is not None)
    monkeypatch.setattr(shapes.Shapes, "units", lambda self: [unit])


def test_files_that_are_no_data_are_listed_and_do_not_count_as_skipped(tmp_path, monkeypatch):
    strange = ("caf\udce9/Thumbs.db", "line\u2028end/.DS_Store", "x" * 300, "\ud800")
    yields(monkeypatch, *(Broken(name, f"{name} is no data", is_data=False) for name in strange))
    manifest, lines = convert_quietly(dataset="shapes", res=8, out=tmp_path / "out", max_skipped=0)
    assert manifest.splits["train"].num_skipped == 0
    assert "4 files left out" in lines[-1] and "skipped" not in lines[-1]
    text = (tmp_path / "out" / "skipped.jsonl").read_text(encoding="utf-8")
    rows = [json.loads(line) for line in text.splitlines()]
    assert len({row["source"] for row in rows}) == 4 and all(row["is_data"] is False for row in rows)
    assert not verify(tmp_path / "out")[1].problems
    yields(monkeypatch, Broken("a", "is no image"), Broken("b", "is no data", is_data=False))
    _, lines = convert_quietly(dataset="shapes", res=8, out=tmp_path / "two", max_skipped=0.5)
    assert "1 skipped, 1 file left out" in lines[-1]
    with pytest.raises(Error, match=r"of 11 images \(9.09%\) could not be read"):
        convert_quietly(dataset="shapes", res=8, out=tmp_path / "three", max_skipped=0.05)
    # As many as are allowed, and 13 / 23 * 23 is less than 13.
    yields(monkeypatch, *(Broken(f"{i}", "is no image") for i in range(13)))
    manifest, _ = convert_quietly(dataset="shapes", res=8, out=tmp_path / "four", max_skipped=13 / 23)
    assert manifest.splits["train"].num_skipped == 13


def test_a_unit_has_as_many_images_as_were_listed(tmp_path, monkeypatch):
    more = (Broken("a", "is no image"), Broken("b", "is no data", is_data=False))
    yields(monkeypatch, *more, num_samples=11)
    convert_quietly(dataset="shapes", res=8, out=tmp_path / "out", max_skipped=0.5)
    yields(monkeypatch, num_samples=11)
    with pytest.raises(Error, match="unit train-000000 has 10 images where 11 were listed: the source changed while"):
        convert_quietly(dataset="shapes", res=8, out=tmp_path / "x")
    convert_quietly(dataset="shapes", res=8, out=tmp_path / "few", limit=5)  # nobody read on


def test_warnings_of_the_source_are_said_once(tmp_path, monkeypatch):
    yields(monkeypatch)
    monkeypatch.setattr(shapes.Shapes, "warnings", ("two circles look alike",))
    _, lines = convert_quietly(dataset="shapes", res=8, out=tmp_path / "out")
    assert lines.count("warning: two circles look alike") == 1 and lines[-1].startswith("done: ")


def test_a_sample_of_a_split_that_nobody_announced_is_no_silence(tmp_path, monkeypatch):
    yields(monkeypatch, Sample("k", np.zeros((8, 8, 3), np.uint8), 0, "k", "night"))
    with pytest.raises(RuntimeError, match="is of split 'night', which the source does not have"):
        convert_quietly(dataset="shapes", res=8, out=tmp_path / "out")


@pytest.mark.parametrize(
    ("error", "message"),
    [
        (OSError(5, "Input/output error", "/x/y"), "cannot read /x/y: Input/output error"),
        (OSError(), "cannot read the source: OSError"),
        (MemoryError(), "out of memory while the source was listed"),
        (KeyboardInterrupt(), "stopped before anything was written"),
    ],
)
def test_what_goes_wrong_while_the_source_is_opened_is_one_line(tmp_path, monkeypatch, error, message):
    def units(self):
        raise error

    monkeypatch.setattr(shapes.Shapes, "units", units)
    with pytest.raises(Error, match=f"^{message}"):
        convert_quietly(dataset="shapes", res=8, out=tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_out_of_memory_is_one_line(tmp_path, monkeypatch):
    yields(monkeypatch)
    monkeypatch.setattr(run, "count_parts", lambda *_: (_ for _ in ()).throw(MemoryError))
    with pytest.raises(Error, match=r"^out of memory; run the same command again"):
        convert_quietly(dataset="shapes", res=8, out=tmp_path / "out")


@pytest.mark.parametrize("per_class", [1, 2])
def test_a_class_an_image_is_said(tmp_path, per_class):
    make_folder(tmp_path / "in", splits=("train",), classes=[f"photo {i}" for i in range(8)], per_class=per_class)
    _, said = convert_quietly(dataset="folder", source=str(tmp_path / "in"), res=8, format="tar", out=tmp_path / "out")
    assert any("warning: 8 classes for 8 images: are these the classes" in line for line in said) == (per_class == 1)


def test_links_that_lead_in_a_circle_are_one_line(tmp_path, shapes_dir):
    (tmp_path / "loop").symlink_to(tmp_path / "loop")
    for words in (
        ("convert", "folder", "--source", tmp_path / "loop", "--out", tmp_path / "a"),
        ("subset", shapes_dir, "--out", tmp_path / "loop" / "b"),
        ("export", shapes_dir, "--to", "npz", "-o", tmp_path / "loop" / "c"),
    ):
        done = run_cli(*words)
        assert done.returncode == 1 and done.stderr.startswith("mlpdata: error: "), done.stderr
        assert done.stderr.count("\n") == 1 and "loop" in done.stderr
