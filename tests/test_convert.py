import hashlib
import io
import json
import os
import random
import signal
import subprocess
import sys
import tarfile
import time

import numpy as np
import pyarrow.parquet as pq
import pytest
from conftest import convert_quietly, encoded, make_cifar, make_folder, make_tinyimagenet, picture, read_jsonl, run_cli
from PIL import Image

import mlpdata
from mlpdata import Error, beton, image
from mlpdata.manifest import Manifest, read_classes


def sums(root):
    return {p.name: hashlib.sha256(p.read_bytes()).hexdigest() for p in sorted(root.iterdir())}


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
    with pytest.raises(Error, match=r"3 of 29 images \(10.34%\) could not be read, more than --max-skipped 0.01"):
        convert_quietly(**options)
    assert not (root / "manifest.json").exists() and list(root.iterdir()) == [root / ".convert"]
    assert len(read_jsonl(root / ".convert" / "skipped.jsonl")) == 3
    manifest, lines = convert_quietly(**options, max_skipped=0.2)
    assert "going on" in lines[1]
    assert manifest.splits["train"].num_samples == 26 and manifest.splits["train"].num_skipped == 3
    skipped = read_jsonl(root / "skipped.jsonl")
    assert {s["source"].rsplit("/", 1)[1] for s in skipped} == {"truncated.jpg", "empty.jpg", "text.jpg"}
    assert all(s["reason"] for s in skipped)


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
    with pytest.raises(Error, match="not empty and no conversion of ours"):
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
    import shutil

    make_folder(tmp_path / "in")
    monkeypatch.setattr(shutil, "disk_usage", lambda _: shutil._ntuple_diskusage(10, 9, 1))
    with pytest.raises(Error, match="no space for"):
        convert_quietly(dataset="folder", source=str(tmp_path / "in"), res=8, out=tmp_path / "out")


@pytest.mark.skipif(not os.path.exists("/dev/full"), reason="needs a device that is always full")
def test_disk_full_while_writing(tmp_path, monkeypatch):
    make_folder(tmp_path / "in", splits=("train",))
    root = tmp_path / "out"
    (root / ".convert" / "parts").mkdir(parents=True)
    (root / ".convert" / "parts" / "train-00000000.data").symlink_to("/dev/full")
    with pytest.raises(Error, match="No space left on device"):
        convert_quietly(dataset="folder", source=str(tmp_path / "in"), res=8, out=root)
    assert not (root / "manifest.json").exists()


def test_unknown_split_and_option_values(tmp_path):
    make_folder(tmp_path / "in")
    with pytest.raises(Error, match="no split 'dev' with images; it has train, val"):
        convert_quietly(dataset="folder", source=str(tmp_path / "in"), splits=("dev",), out=tmp_path / "o")
    manifest, _ = convert_quietly(
        dataset="folder", source=str(tmp_path / "in"), res=8, splits=("test",), out=tmp_path / "o"
    )
    assert list(manifest.splits) == ["val"]
    for bad in ({"res": 0}, {"codec": "gif"}, {"workers": 0}, {"max_skipped": 2.0}, {"limit": 0}):
        with pytest.raises(Error):
            convert_quietly(dataset="shapes", out=tmp_path / "x", **bad)


def test_two_images_with_one_key_are_an_error(tmp_path, monkeypatch):
    from mlpdata.sources import folder

    make_folder(tmp_path / "in", splits=("train",))
    monkeypatch.setattr(folder, "_safe", lambda name: "same")
    with pytest.raises(Error, match=r"two images have the key 'same/.*': .* and "):
        convert_quietly(dataset="folder", source=str(tmp_path / "in"), res=8, out=tmp_path / "out", workers=1)


# --------------------------------------------------------------------------------------------------- interruption


def start(*words):
    command = [sys.executable, "-m", "mlpdata.cli", "convert", *map(str, words)]
    return subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, start_new_session=True
    )


@pytest.fixture(scope="module")
def big_folder(tmp_path_factory):
    """Enough images of enough work for a kill to hit anything: 1,800 photographs of 200 x 150 in small units."""
    root = tmp_path_factory.mktemp("big") / "in"
    data = [encoded(picture(200, 150, i)) for i in range(40)]
    for c in range(6):
        (root / f"class{c}").mkdir(parents=True)
        for i in range(300):
            (root / f"class{c}" / f"{i}.jpg").write_bytes(data[(7 * c + i) % 40])
    return root


def test_killed_at_random_moments_it_ends_with_the_same_bytes(tmp_path, big_folder, monkeypatch):
    words = ["folder", "--source", big_folder, "--res", 48, "--shard-size", 200]
    reference = tmp_path / "reference"
    began = time.monotonic()
    assert start(*words, "--out", reference, "--workers", 2).wait(120) == 0
    whole = time.monotonic() - began
    rng = random.Random(5)
    root = tmp_path / "killed"
    kills = 0
    for _ in range(8):
        process = start(*words, "--out", root, "--workers", rng.choice([1, 2, 5]))
        try:
            process.wait(rng.uniform(0.15, whole))
        except subprocess.TimeoutExpired:
            kills += 1
            if rng.random() < 0.7:
                process.kill()  # the parent alone: its workers must notice
            else:
                os.killpg(process.pid, signal.SIGKILL)
        process.wait()
        if (root / "manifest.json").exists():
            break
    assert kills > 0
    assert start(*words, "--out", root, "--workers", 2).wait(120) == 0
    assert sums(root) == sums(reference)


def test_a_killed_worker_ends_the_run_with_a_line_that_says_how_to_go_on(tmp_path, big_folder):
    root = tmp_path / "out"
    words = ["folder", "--source", big_folder, "--res", 48, "--out", root, "--workers", 2]
    process = start(*words)
    killed = False
    deadline = time.monotonic() + 30
    while not killed and process.poll() is None and time.monotonic() < deadline:
        children = subprocess.run(["ps", "-o", "pid=", "--ppid", str(process.pid)], capture_output=True, text=True)
        for pid in children.stdout.split()[:1]:
            os.kill(int(pid), signal.SIGKILL)
            killed = True
        time.sleep(0.02)
    out, _ = process.communicate(timeout=30)
    assert killed and process.returncode == 1
    assert "killed by signal 9" in out and "same command" in out and "Traceback" not in out
    assert start(*words).wait(120) == 0


def test_interrupt_ends_cleanly_and_soon(tmp_path, big_folder):
    root = tmp_path / "out"
    process = start("folder", "--source", big_folder, "--res", 48, "--out", root, "--workers", 2)
    while not (root / ".convert" / "parts").exists() and process.poll() is None:
        time.sleep(0.02)
    time.sleep(0.2)
    asked = time.monotonic()
    process.send_signal(signal.SIGINT)
    out, _ = process.communicate(timeout=30)
    assert time.monotonic() - asked < 3
    assert process.returncode == 1 and "same command goes on" in out and "Traceback" not in out
    assert not (root / "manifest.json").exists()


def test_a_second_run_into_the_same_directory_is_refused(tmp_path, big_folder):
    root = tmp_path / "out"
    words = ["folder", "--source", big_folder, "--res", 48, "--out", root, "--workers", 1]
    first = start(*words)
    while not (root / ".convert" / "lock").exists() and first.poll() is None:
        time.sleep(0.02)
    os.kill(first.pid, signal.SIGSTOP)
    try:
        second = start(*words)
        out, _ = second.communicate(timeout=60)
    finally:
        os.kill(first.pid, signal.SIGCONT)
    assert second.returncode == 1 and "another conversion is at work" in out
    assert first.wait(120) == 0


def test_unfinished_work_is_continued_only_with_its_own_options(tmp_path, big_folder):
    root = tmp_path / "out"
    words = ["folder", "--source", big_folder, "--out", root, "--workers", 1]
    process = start(*words, "--res", 48)
    while not (root / ".convert" / "plan.json").exists() and process.poll() is None:
        time.sleep(0.02)
    process.kill()
    process.wait()
    done = run_cli("convert", *words, "--res", 32)
    assert done.returncode == 1 and "another command" in done.stderr
    with pytest.raises(Error, match="did not finish"):
        mlpdata.load(root, "train", 4)


def test_a_torn_part_is_made_again(tmp_path, big_folder):
    """What a power cut can leave: the journal's name, but not the bytes."""
    root = tmp_path / "out"
    words = ["folder", "--source", big_folder, "--res", 48, "--out", root, "--workers", 1]
    process = start(*words)
    parts = root / ".convert" / "parts"
    while len(list(parts.glob("*.rows")) if parts.exists() else []) < 1 and process.poll() is None:
        time.sleep(0.02)
    process.kill()
    process.wait()
    assert not (root / "manifest.json").exists()
    torn = next(parts.glob("*.rows")).with_suffix(".data")
    with open(torn, "r+b") as f:
        f.truncate(torn.stat().st_size // 2)
    assert start(*words).wait(120) == 0
    reference = tmp_path / "reference"
    assert start(*words[:-4], "--out", reference).wait(120) == 0
    assert sums(root) == sums(reference)


def test_fidelity_is_measured_on_scaled_decodes_only():
    assert image.Resize(32).keeps(32, 32) and not image.Resize(32).keeps(33, 32)
