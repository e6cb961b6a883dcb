"""`hf:` against a server on 127.0.0.1 that speaks the part of the Hub's interface that huggingface_hub calls."""

import io
import json
import re
import shutil
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from archives import encoded, make_cifar, make_wds, picture, tar_bytes
from conftest import convert_quietly, run_cli
from PIL import Image
from servers import HubServer, cut, stall, status

import mlpdata
from mlpdata import Error, labels
from mlpdata.convert.options import Options
from mlpdata.convert.run import convert
from mlpdata.shards import remote, upload
from mlpdata.shards.manifest import Manifest
from mlpdata.sources import cifar, parquet_files
from mlpdata.sources import parquet as parquet_source

ROOT = Path(__file__).parents[2]
ROWS = 30  # images a batch of the small CIFAR archives
PUT = remote.ObjectStore.put


# ------------------------------------------------------------------------------------------------ repositories made


def parquet(images, labels, features, names=("img", "label"), group=16, metadata=True):
    """A parquet file as `datasets` writes it: struct of bytes and path, features in the schema's metadata."""
    kind = pa.struct([("bytes", pa.binary()), ("path", pa.string())])
    rows = [{"bytes": data, "path": None} for data in images]
    table = pa.table({names[0]: pa.array(rows, kind), **{n: pa.array(v) for n, v in labels.items()}})
    if metadata:
        info = json.dumps({"info": {"features": features}})
        table = table.replace_schema_metadata({"huggingface": info})
    out = io.BytesIO()
    pq.write_table(table, out, row_group_size=group)
    return out.getvalue()


def png(pixels):
    return encoded(Image.fromarray(pixels), "PNG")


def class_label(names):
    return {"names": list(names), "_type": "ClassLabel"}


CARD = """---
license: unknown
dataset_info:
  config_name: plain_text
  features:
  - name: img
    dtype: image
  - name: label
    dtype:
      class_label:
        names:
          '0': class0
          '1': class1
  splits:
  - name: train
    num_bytes: 1
    num_examples: 150
configs:
- config_name: plain_text
  data_files:
  - split: train
    path: plain_text/train-*
  - split: test
    path: plain_text/test-*
  default: true
---
# Dataset Card
"""


def cifar_repo(tmp_path, monkeypatch):
    """(archive, repository files) with the same small CIFAR-10, the latter with rows as the Hub's copy has them."""
    small = {name: (split, ROWS) for name, (split, _) in cifar.CIFAR10.batches.items()}
    monkeypatch.setattr(cifar, "CIFAR10", replace(cifar.CIFAR10, batches=small))
    made = make_cifar(tmp_path / "c.tar.gz", rows=ROWS)
    features = {"img": {"_type": "Image"}, "label": class_label(f"class{i}" for i in range(10))}
    order = np.concatenate([np.arange(ROWS) + (int(name[-1]) - 1) * ROWS for name in cifar.ARCHIVE_ORDER])
    files = {"README.md": CARD.encode(), ".gitattributes": b""}
    for ours, theirs in (("train", "train"), ("val", "test")):
        images, labels = made[ours]
        rows = order if ours == "train" else np.arange(len(images))
        data = parquet([png(images[i]) for i in rows], {"label": [labels[i] for i in rows]}, features)
        files[f"plain_text/{theirs}-00000-of-00001.parquet"] = data
    return tmp_path / "c.tar.gz", files


def photos(n, seed=0):
    return [encoded(picture(70 + 10 * (i % 3), 60, seed + i)) for i in range(n)]


# ---------------------------------------------------------------------------------------------------------- cifar10


@pytest.mark.parametrize("codec", ["png", "raw"])
def test_parquet_and_the_archive_give_identical_shards(serve, tmp_path, monkeypatch, codec):
    archive, files = cifar_repo(tmp_path, monkeypatch)
    server = serve({"uoft-cs/cifar10": files})
    monkeypatch.setattr(parquet_files, "ROWS_A_UNIT", 40)
    options = {"dataset": "cifar10", "codec": codec, "workers": 2, "shard_size": 60}
    ours, _ = convert_quietly(source=str(archive), out=tmp_path / "a", **options)
    theirs, _ = convert_quietly(source="hf:uoft-cs/cifar10", out=tmp_path / "b", **options)
    sha, _ = server.tree("uoft-cs/cifar10")
    assert theirs.release == f"hf:uoft-cs/cifar10@{sha}"
    same = {name for name in ours.files if not name.endswith("README.md")}
    assert {n: theirs.files[n] for n in same} == {n: ours.files[n] for n in same}
    assert any(n.endswith(".tar") for n in same) and any(n.endswith(".beton") for n in same)
    # And from a local copy of the repository.
    for name, data in files.items():
        path = tmp_path / "copy" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(data)
    local, _ = convert_quietly(source=str(tmp_path / "copy"), out=tmp_path / "c", **options)
    assert {n: local.files[n] for n in same} == {n: ours.files[n] for n in same}


def test_faults_on_the_way_change_nothing(serve, tmp_path, monkeypatch):
    _, files = cifar_repo(tmp_path, monkeypatch)
    server = serve({"uoft-cs/cifar10": files})
    options = {"dataset": "cifar10", "source": "hf:uoft-cs/cifar10", "workers": 2}
    ours, _ = convert_quietly(out=tmp_path / "a", **options)
    server.faults = [cut(100), status(503), stall(20), None, status(429, Retry_After="0"), cut(2000)]
    theirs, _ = convert_quietly(out=tmp_path / "b", **options)
    assert theirs.files == ours.files and not server.faults
    server.faults = [status(503)] * 1000
    with pytest.raises(Error, match=r"503 .*gave up after 5 attempts"):
        convert_quietly(out=tmp_path / "c", **options)


def test_a_run_that_failed_goes_on_at_the_files_it_had_not(serve, tmp_path):
    features = {"image": {"_type": "Image"}, "label": class_label("ab")}
    files = {
        f"data/train-{k:05d}-of-00004.parquet": parquet(
            photos(10, 20 * k), {"label": [i % 2 for i in range(10)]}, features, ("image", "label")
        )
        for k in range(4)
    }
    server = serve({"me/photos": files})
    options = {"dataset": "hub", "source": "hf:me/photos", "res": 16, "workers": 1}
    expected, _ = convert_quietly(out=tmp_path / "a", **options)
    needed, hit = server.sent, server.hit
    server.hit = lambda path: path.endswith("00003-of-00004.parquet")
    server.faults = [None] + [status(503)] * 1000  # its footer is had, its rows are not
    with pytest.raises(Error, match="503"):
        convert_quietly(out=tmp_path / "b", **options)
    server.faults, server.hit, server.sent = [], hit, 0
    manifest, lines = convert_quietly(out=tmp_path / "b", **options)
    assert manifest.files == expected.files
    assert any("going on: 3 of 4 units done" in line for line in lines)
    assert server.sent < needed


def test_a_revision_is_pinned_and_recorded(serve, tmp_path):
    features = {"image": {"_type": "Image"}, "label": class_label("ab")}
    made = parquet(photos(6), {"label": [0, 1] * 3}, features, ("image", "label"))
    server = serve({"me/photos": {"train.parquet": made}})
    old, _ = server.tree("me/photos")
    server.commit(
        "me/photos", {"train.parquet": parquet(photos(4, 50), {"label": [0, 1] * 2}, features, ("image", "label"))}
    )
    options = {"dataset": "hub", "res": 16, "workers": 1}
    new, _ = convert_quietly(source="hf:me/photos", out=tmp_path / "new", **options)
    pinned, _ = convert_quietly(source=f"hf:me/photos@{old}", out=tmp_path / "old", **options)
    assert new.splits["train"].num_samples == 4 and pinned.splits["train"].num_samples == 6
    assert pinned.release.endswith(f"@{old}") and not new.release.endswith(f"@{old}")
    with pytest.raises(Error, match="me/photos has no revision 'nope'"):
        convert_quietly(source="hf:me/photos@nope", out=tmp_path / "x", **options)


# ------------------------------------------------------------------------------------------------- WebDataset tars


@pytest.mark.parametrize(
    ("dataset", "name", "list_name", "info"),
    [
        ("imagenet21k", "timm/imagenet-22k-wds", "fall11", True),
        ("imagenet21k", "timm/imagenet-12k-wds", "fall11-12k", False),
        ("imagenet1k", "timm/imagenet-1k-wds", "ilsvrc2012", True),
    ],
)
def test_webdataset_tars_of_a_repository(serve, tmp_path, monkeypatch, dataset, name, list_name, info):
    make_wds(tmp_path / "w", labels.classes(list_name), info=info)
    files = {p.name: p.read_bytes() for p in (tmp_path / "w").iterdir()}
    server = serve({name: files}, gated=[name])
    options = {"dataset": dataset, "res": 16, "workers": 2}
    local, _ = convert_quietly(source=str(tmp_path / "w"), out=tmp_path / "local", **options)
    with pytest.raises(Error, match=f"{name} is gated"):
        convert_quietly(source=f"hf:{name}", out=tmp_path / "remote", **options)
    monkeypatch.setenv("HF_TOKEN", HubServer.TOKEN)
    server.faults = [cut(1000), status(503), None, stall(10)]
    remote, _ = convert_quietly(source=f"hf:{name}", out=tmp_path / "remote", **options)
    same = {n for n in local.files if not n.endswith("README.md")}
    assert {n: remote.files[n] for n in same} == {n: local.files[n] for n in same}
    assert list_name in remote.release and server.tree(name)[0] in remote.release
    assert remote.splits["train"].num_samples == 30 and remote.splits["val"].num_samples == 10


def test_webdataset_tars_of_any_classes(serve, tmp_path):
    members = {}
    for i in range(6):
        members |= {f"x{i}.jpg": photos(1, i)[0], f"x{i}.cls": str(i % 2).encode()}
    serve({"me/tars": {"data/train-0000.tar": tar_bytes(members)}})
    manifest, _ = convert_quietly(dataset="hub", source="hf:me/tars", res=16, workers=1, out=tmp_path / "a")
    assert manifest.num_classes == 2 and manifest.splits["train"].num_samples == 6


# ------------------------------------------------------------------------------------------------- any data set


def converted(tmp_path, files, name="me/photos", **options):
    """Convert a local copy of a repository; returns the manifest and its classes."""
    for path, data in files.items():
        (tmp_path / "in" / path).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / "in" / path).write_bytes(data)
    options = {"dataset": "hub", "res": 16, "workers": 1, **options}
    manifest, _ = convert_quietly(source=str(tmp_path / "in"), out=tmp_path / "out", **options)
    return manifest, (tmp_path / "out" / "classes.txt").read_text().split()


def test_columns_and_splits_from_the_features(tmp_path):
    features = {
        "id": {"dtype": "int64", "_type": "Value"},
        "photo_of_it": {"_type": "Image"},
        "fine": class_label(["x", "y", "z"]),
        "coarse": class_label(["p", "q"]),
    }

    def part(n, seed):
        labels = {"id": list(range(n)), "fine": [i % 3 for i in range(n)], "coarse": [i % 2 for i in range(n)]}
        return parquet(photos(n, seed), labels, features, ("photo_of_it", ""))

    withheld = parquet(photos(4), {"id": [0] * 4, "fine": [-1] * 4, "coarse": [-1] * 4}, features, ("photo_of_it", ""))
    files = {
        "data/train-0.parquet": part(9, 0),
        "data/validation-0.parquet": part(6, 20),
        "data/test-0.parquet": withheld,
    }
    manifest, classes = converted(tmp_path, files)
    assert {s: i.num_samples for s, i in manifest.splits.items()} == {"train": 9, "val": 6}
    assert classes == ["x", "y", "z"]
    assert manifest.splits["train"].class_counts == [3, 3, 3]
    manifest, _ = convert_quietly(
        dataset="hub", source=str(tmp_path / "in"), out=tmp_path / "coarse", res=16, workers=1, label_column="coarse"
    )
    assert manifest.num_classes == 2 and "--label-column coarse" in manifest.command
    for option, value, message in (
        ("label_column", "none", "has no column 'none'; it has"),
        ("image_column", "id", "column 'id' holds int64, not images"),
    ):
        with pytest.raises(Error, match=message):
            convert_quietly(dataset="hub", source=str(tmp_path / "in"), out=tmp_path / "x", **{option: value})


def test_columns_and_classes_from_the_card(tmp_path):
    table = parquet(photos(6), {"label": [0, 1] * 3}, {}, metadata=False)
    _, classes = converted(tmp_path, {"README.md": CARD.encode(), "plain_text/train-0.parquet": table})
    assert classes == ["class0", "class1"]


@pytest.mark.parametrize(("labels", "expected"), [(["dog", "cat"] * 3, ["cat", "dog"]), ([0, 2] * 3, ["0", "2"])])
def test_classes_from_the_values(tmp_path, labels, expected):
    table = parquet(photos(6), {"label": labels}, {}, metadata=False)
    manifest, classes = converted(tmp_path, {"train.parquet": table})
    assert classes == expected and manifest.splits["train"].num_samples == 6


def test_images_as_plain_bytes_and_rows_that_are_broken(tmp_path):
    images = [*photos(200), b"", None, encoded(picture(30, 30, 1))[:200]]
    table = pa.table({"jpg": pa.array(images, pa.binary()), "cls": pa.array([1] * 202 + [7], pa.int64())})
    table = table.set_column(1, "cls", pa.array([0] * 200 + [0, 0, 7], pa.int64()))
    out = io.BytesIO()
    pq.write_table(table, out)
    manifest, _ = converted(tmp_path, {"train.parquet": out.getvalue()}, max_skipped=0.1)
    assert manifest.splits["train"].num_samples == 200 and manifest.splits["train"].num_skipped == 3
    skipped = (tmp_path / "out" / "skipped.jsonl").read_text()
    assert "train.parquet[200]" in skipped and "has no image bytes" in skipped


def test_damage_in_a_file(tmp_path):
    features = {"image": {"_type": "Image"}, "label": class_label("ab")}
    data = bytearray(parquet(photos(40), {"label": [0, 1] * 20}, features, ("image", "label"), group=10))
    footer = pq.ParquetFile(io.BytesIO(bytes(data))).metadata
    column = footer.row_group(1).column(0)
    at = column.dictionary_page_offset or column.data_page_offset
    data[at : at + 20] = b"\xff" * 20
    manifest, _ = converted(tmp_path, {"train.parquet": bytes(data)}, max_skipped=0.5)
    assert manifest.splits["train"].num_samples == 30 and manifest.splits["train"].num_skipped == 10
    (tmp_path / "in" / "train.parquet").write_bytes(bytes(data[: len(data) // 2]))
    with pytest.raises(Error, match=r"train.parquet is no whole parquet file"):
        convert_quietly(dataset="hub", source=str(tmp_path / "in"), out=tmp_path / "x", res=16)


def test_many_files_are_counted_when_they_are_read(tmp_path, monkeypatch):
    monkeypatch.setattr(parquet_source, "FOOTERS_READ", 2)
    features = {"image": {"_type": "Image"}, "label": class_label("ab")}
    files = {
        f"data/train-{k}.parquet": parquet(photos(5, 9 * k), {"label": [0, 1, 0, 1, 1]}, features, ("image", "label"))
        for k in range(4)
    }
    manifest, _ = converted(tmp_path, files)
    assert manifest.splits["train"].num_samples == 20


# -------------------------------------------------------------------------------------------------- one clear line


def test_closed_and_missing_repositories_are_one_line(serve, tmp_path, monkeypatch):
    features = {"image": {"_type": "Image"}, "label": class_label("ab")}
    made = {"train.parquet": parquet(photos(6), {"label": [0, 1] * 3}, features, ("image", "label"))}
    server = serve({"ILSVRC/imagenet-1k": made, "me/text": {"README.md": b"hello"}}, gated=["ILSVRC/imagenet-1k"])

    def line(source, dataset="hub"):
        done = run_cli("convert", dataset, "--source", source, "--out", tmp_path / "x", "--res", 16)
        assert done.returncode == 1 and "Traceback" not in done.stderr, done.stderr
        assert done.stderr.count("\n") == 1 and done.stderr.startswith("mlpdata: error: ")
        return done.stderr

    gated = line("hf:ILSVRC/imagenet-1k", "imagenet1k")
    assert "is gated" in gated and f"{server.url}/datasets/ILSVRC/imagenet-1k" in gated and "HF_TOKEN" in gated
    assert "no data set me/none on the Hub" in line("hf:me/none")
    assert "me/text@" in line("hf:me/text") and "holds neither parquet files nor" in line("hf:me/text")
    assert "holds no parquet files of CIFAR-10" in line("hf:me/text", "cifar10")
    assert "names no repository" in line("hf:nonsense")
    monkeypatch.setenv("HF_TOKEN", HubServer.TOKEN)
    done = run_cli("convert", "hub", "--source", "hf:ILSVRC/imagenet-1k", "--out", tmp_path / "x", "--res", 16)
    assert done.returncode == 0, done.stderr
    monkeypatch.setenv("HF_ENDPOINT", "http://127.0.0.1:9")
    assert "cannot reach http://127.0.0.1:9" in line("hf:me/none")


# ---------------------------------------------------------------------------------------------------- push and pull

LOAD = """
import sys
from datasets import load_dataset
for split in load_dataset(sys.argv[1]).values():
    print(split.split, len(split), split.features["cls"].names if hasattr(split.features["cls"], "names") else "")
print(load_dataset(sys.argv[1], split="train", streaming=True).take(1).__iter__().__next__()["png"].size)
"""


def test_a_directory_goes_to_the_hub_and_comes_back(serve, tmp_path, monkeypatch, shapes_dir):
    server = serve({})
    monkeypatch.setenv("HF_TOKEN", HubServer.TOKEN)
    monkeypatch.setenv("MLPDATA_HOME", str(tmp_path / "home"))
    assert upload.push(shapes_dir, "me/shapes-16") == f"{server.url}/datasets/me/shapes-16"
    manifest = Manifest.load(shapes_dir)
    _, tree = server.tree("me/shapes-16")
    assert set(tree) == {*manifest.files, "manifest.json", ".gitattributes"}
    assert "manifest.json" not in server.commits["me/shapes-16"][-2][1], "the manifest is the last to come"
    # The same again uploads nothing and changes nothing.
    uploads = len([r for r in server.requests if r[0] == "PUT"])
    assert run_cli("push", shapes_dir, "me/shapes-16").returncode == 0
    assert server.tree("me/shapes-16")[1] == tree
    assert len([r for r in server.requests if r[0] == "PUT"]) == uploads
    # Hugging Face's own library reads it from there.
    done = subprocess.run([sys.executable, "-c", LOAD, "me/shapes-16"], capture_output=True, text=True, timeout=900)
    assert done.returncode == 0, done.stderr[-2000:]
    assert "train 1500" in done.stdout and "validation 1500" in done.stdout and "(16, 16)" in done.stdout
    # And so does ours, of which the second time nothing is copied.
    loader = mlpdata.load("hf:me/shapes-16", "val", batch_size=500)
    assert np.array_equal(loader.arrays()[0], mlpdata.load(shapes_dir, "val", batch_size=500).arrays()[0])
    sent = server.sent
    pulled = run_cli("pull", "me/shapes-16")
    assert pulled.returncode == 0 and Path(pulled.stdout.strip()) == loader.root
    assert server.sent - sent < 2 * len(tree["manifest.json"])


def test_a_push_replaces_what_was_there(serve, tmp_path, monkeypatch, shapes_dir):
    server = serve({"me/x": {"notes.txt": b"mine", "train-000999.tar": b"old", "manifest.json": b"old"}})
    monkeypatch.setenv("HF_TOKEN", HubServer.TOKEN)
    upload.push(shapes_dir, "me/x", say=lambda line: None)
    _, tree = server.tree("me/x")
    assert "train-000999.tar" not in tree and tree["notes.txt"] == b"mine"
    assert tree["manifest.json"] == (shapes_dir / "manifest.json").read_bytes()


LOAD_EXPORT = """
import sys
from datasets import load_dataset
for split in load_dataset(sys.argv[1]).values():
    print(split.split, len(split), split.features["label"].names, split[0]["image"].size)
print(next(iter(load_dataset(sys.argv[1], split="train", streaming=True)))["image"].size)
"""


def test_a_parquet_export_goes_to_the_hub(serve, tmp_path, monkeypatch, shapes_dir):
    old = {"data/train-00000-of-00009.parquet": b"old", "train-000000.tar": b"old", "notes.txt": b"mine"}
    server = serve({"me/shapes": old})
    monkeypatch.setenv("HF_TOKEN", HubServer.TOKEN)
    out = tmp_path / "out"
    assert run_cli("export", shapes_dir, "--to", "parquet", "-o", out, "--file-mb", 0.5).returncode == 0
    done = run_cli("push", out, "me/shapes")
    assert done.returncode == 0 and done.stdout.splitlines()[-1] == f"{server.url}/datasets/me/shapes", done.stderr
    _, tree = server.tree("me/shapes")
    files = {path.relative_to(out).as_posix(): path.read_bytes() for path in out.rglob("*") if path.is_file()}
    assert {name: data for name, data in tree.items() if name != ".gitattributes"} == {**files, "notes.txt": b"mine"}
    assert "export.json" not in server.commits["me/shapes"][-2][1], "the record is the last to come"
    done = subprocess.run([sys.executable, "-c", LOAD_EXPORT, "me/shapes"], capture_output=True, text=True, timeout=900)
    assert done.returncode == 0, done.stderr[-2000:]
    assert "train 1500 ['disc'," in done.stdout and "validation 1500" in done.stdout and "(16, 16)" in done.stdout
    back = run_cli("convert", "hub", "--source", "hf:me/shapes", "--res", 16, "--out", tmp_path / "back")
    assert back.returncode == 0, back.stderr
    assert Manifest.load(tmp_path / "back").splits["val"].num_samples == 1500
    # What the Hub does not read is refused, and so is what lacks a file.
    assert run_cli("export", shapes_dir, "--to", "npz", "-o", tmp_path / "npz").returncode == 0
    assert "made with --to parquet" in run_cli("push", tmp_path / "npz", "me/x").stderr
    next(out.glob("data/val*")).unlink()
    assert "is missing; delete" in run_cli("push", out, "me/x").stderr


def test_copies_are_verified_and_go_on_after_faults(serve, tmp_path, monkeypatch, shapes_dir):
    files = {p.name: p.read_bytes() for p in shapes_dir.iterdir() if p.is_file()}
    server = serve({"me/x": files, "me/bad": {**files, "train.beton": files["train.beton"][:-1] + b"x"}})
    monkeypatch.setenv("MLPDATA_HOME", str(tmp_path))
    server.faults = [None, cut(1000), status(503), stall(5)]
    server.faults += [None] * 3 + [status(503)] * 1000
    with pytest.raises(Error, match="503"):
        remote.local_copy("hf:me/x")
    assert {p.parent.name for p in tmp_path.rglob("manifest.json")} == {".remote"}
    with pytest.raises(Error, match="503"):
        mlpdata.load("hf:me/x", batch_size=10)
    server.faults, server.sent = [], 0
    copy = remote.local_copy("hf:me/x")
    assert {p.name: p.read_bytes() for p in copy.iterdir()} == files
    assert server.sent < sum(map(len, files.values())) + len(files["manifest.json"])
    with pytest.raises(Error, match=r"train.beton gave has SHA256 \w+ instead of"):
        remote.local_copy("hf:me/bad")
    with pytest.raises(Error, match=r"me/empty@\w+ has no manifest.json; it is not a finished shard directory"):
        server.commit("me/empty", {"README.md": b""})
        remote.local_copy("hf:me/empty")


def test_what_cannot_be_pushed_is_one_line(serve, tmp_path, shapes_dir):
    serve({})
    (tmp_path / "x").mkdir()
    for directory, message in (
        (tmp_path / "x", "has no manifest.json"),
        (tmp_path / "none", "no shard directory at"),
        (shapes_dir, "that may do this"),  # without a token
    ):
        done = run_cli("push", directory, "me/x")
        assert done.returncode == 1 and message in done.stderr, done.stderr
        assert "Traceback" not in done.stderr and done.stderr.count("\n") == 1


# -------------------------------------------------------------------------------------------------- object storage


def test_convert_list_and_train_with_object_storage(s3, tmp_path, monkeypatch):
    monkeypatch.setenv("MLPDATA_HOME", str(tmp_path / "home"))
    monkeypatch.setenv("PYTHONPATH", str(ROOT))
    options = {"dataset": "shapes", "res": 16, "workers": 1, "limit": 300, "shard_size": 100}
    local, _ = convert_quietly(out=tmp_path / "local", **options)
    there = {**options, "out": "s3://bucket/shards/a"}
    said = convert_quietly(**there)[1]
    assert said[-2].startswith("uploaded ") and said[-2].endswith(" to s3://bucket/shards/a")
    assert re.fullmatch(r"done: 600 images .* in s3://bucket/shards/a, [\d.]+ s, [\d,.]+ images/s", said[-1])
    listed = {
        o["Key"].removeprefix("shards/a/"): o["Size"]
        for o in s3.list_objects(Bucket="bucket", Prefix="shards/a/")["Contents"]
    }
    assert listed == {p.name: p.stat().st_size for p in (tmp_path / "local").iterdir()}
    assert not list((tmp_path / "home" / "staging").iterdir())
    again, lines = convert_quietly(**there)
    assert again == local and lines == [
        "s3://bucket/shards/a already holds exactly this: nothing to do (`mlpdata verify` reads every byte)"
    ]
    with pytest.raises(Error, match="s3://bucket/shards/a holds another conversion"):
        convert_quietly(**there, seed=1)
    taken = s3.get_object(Bucket="bucket", Key="shards/a/train.beton")["Body"].read()
    s3.put_object(Bucket="bucket", Key="shards/a/train.beton", Body=taken[:-1])
    with pytest.raises(Error, match=r"train\.beton has [\d,]+ bytes, .*; delete s3://bucket/shards/a and run the same"):
        convert_quietly(**there)
    s3.put_object(Bucket="bucket", Key="shards/a/train.beton", Body=taken)
    loader = mlpdata.load("s3://bucket/shards/a", "train", batch_size=100)
    assert np.array_equal(loader.arrays()[0], mlpdata.load(tmp_path / "local", "train", batch_size=100).arrays()[0])
    assert loader.manifest == local
    recipe = ROOT / "recipes" / "shapes.yaml"
    settings = ["data.shards=s3://bucket/shards/a", "train.epochs=1"]
    done = run_cli("train", recipe, *[w for s in settings for w in ("--set", s)], cwd=tmp_path)
    assert done.returncode == 0, done.stderr


def test_object_storage_copies_are_verified(s3, tmp_path, monkeypatch, shapes_dir):
    monkeypatch.setenv("MLPDATA_HOME", str(tmp_path))
    for path in shapes_dir.iterdir():
        s3.upload_file(str(path), "bucket", f"bad/{path.name}")
    s3.put_object(Bucket="bucket", Key="bad/val.beton", Body=(shapes_dir / "val.beton").read_bytes()[:-1] + b"x")
    for url, message in (
        ("s3://bucket/bad", r"bad/val\.beton gave has SHA256 \w+ instead of \w+; it has been deleted"),
        ("s3://bucket/none", "has no manifest.json"),
        ("s3://nobucket/none", "s3://nobucket/none"),
        ("nonsense://x/y", "cannot use nonsense://x/y"),
    ):
        with pytest.raises(Error, match=message) as caught:
            remote.local_copy(url)
        assert "\n" not in str(caught.value)
    assert {p.parent.name for p in tmp_path.rglob("manifest.json")} == {".remote"}
    with pytest.raises(Error, match="is not empty and not a conversion of mlpdata"):
        s3.put_object(Bucket="bucket", Key="mine/letter.txt", Body=b"dear")
        convert_quietly(dataset="shapes", res=16, limit=50, workers=1, out="s3://bucket/mine")


def test_a_url_of_this_machine_is_no_storage(tmp_path, monkeypatch):
    """Without its leading slash the path would be below the current directory."""
    monkeypatch.setenv("MLPDATA_HOME", str(tmp_path / "home"))
    monkeypatch.chdir(tmp_path)
    for act in (remote.local_copy, lambda url: convert_quietly(dataset="shapes", limit=10, out=url)):
        with pytest.raises(Error, match=rf"file://{tmp_path}/out is a directory .* give it as a path, {tmp_path}/out$"):
            act(f"file://{tmp_path}/out")
    assert not list(tmp_path.iterdir())


def count_uploads(monkeypatch, names, dies_after=None):
    """Every file that is stored is added to `names`; the line is dead once there are so many."""

    def counting(self, path):
        if len(names) == dies_after:
            raise Error("the line is dead")
        names.append(path.name)
        PUT(self, path)

    monkeypatch.setattr(remote.ObjectStore, "put", counting)


def test_an_upload_that_failed_goes_on(s3, tmp_path, monkeypatch):
    monkeypatch.setenv("MLPDATA_HOME", str(tmp_path))
    options = {"dataset": "shapes", "res": 16, "workers": 1, "limit": 200, "out": "s3://bucket/again"}
    names = []
    count_uploads(monkeypatch, names, dies_after=3)
    said = []
    with pytest.raises(Error, match="the line is dead"):
        convert(Options(**options, quiet=True), said.append)
    assert not [line for line in said if line.startswith("done")]
    count_uploads(monkeypatch, names)
    said = convert_quietly(**options)[1]
    assert said[-1].endswith("to s3://bucket/again") and said[0].startswith(
        f"{tmp_path}/staging/s3--bucket--again already"
    )
    assert len(names) == len(set(names)) and names[-1] == "manifest.json"
    assert not list((tmp_path / "staging").iterdir())


@pytest.mark.parametrize(
    "lost", ["the staging folder", "the staging folder and what was uploaded", "one uploaded file"]
)
def test_an_upload_begun_anew_is_whole_before_its_manifest_comes(s3, tmp_path, monkeypatch, lost):
    monkeypatch.setenv("MLPDATA_HOME", str(tmp_path))
    url = f"s3://bucket/anew{len(lost)}"
    options = {"dataset": "shapes", "res": 16, "workers": 1, "limit": 200, "shard_size": 100, "out": url}
    names = []
    count_uploads(monkeypatch, names, dies_after=5)
    with pytest.raises(Error, match="the line is dead"):
        convert_quietly(**options)
    count_uploads(monkeypatch, [])
    folder = url.removeprefix("s3://bucket/")
    if "staging" in lost:
        shutil.rmtree(next(p for p in (tmp_path / "staging").iterdir() if p.is_dir()))
    for name in names if "uploaded" in lost else ():
        s3.delete_object(Bucket="bucket", Key=f"{folder}/{name}")
        if "one" in lost:
            break
    manifest, _ = convert_quietly(**options)
    listed = {o["Key"]: o["Size"] for o in s3.list_objects(Bucket="bucket", Prefix=f"{folder}/")["Contents"]}
    listed.pop(f"{folder}/manifest.json")
    assert listed == {f"{folder}/{name}": entry["bytes"] for name, entry in manifest.files.items()}


def test_no_manifest_goes_where_a_file_has_not_arrived(s3, serve, tmp_path, monkeypatch, shapes_dir):
    monkeypatch.setenv("MLPDATA_HOME", str(tmp_path))
    monkeypatch.setattr(remote.ObjectStore, "put", lambda self, p: None if p.name == "val.beton" else PUT(self, p))
    with pytest.raises(Error, match=r"s3://bucket/lost/val\.beton is missing, though .*; run the same"):
        convert_quietly(dataset="shapes", res=16, workers=1, limit=200, out="s3://bucket/lost")
    assert not any(o["Key"] == "lost/manifest.json" for o in s3.list_objects(Bucket="bucket")["Contents"])
    s3.put_object(Bucket="bucket", Key="lost/train-000077.tar", Body=b"x")
    monkeypatch.setattr(remote.ObjectStore, "put", PUT)
    with pytest.raises(Error, match=r"also holds train-000077\.tar, which is not part of it"):
        convert_quietly(dataset="shapes", res=16, workers=1, limit=200, out="s3://bucket/lost")
    # The Hub, where somebody else removes a file meanwhile; and a directory that lacks one from the start.
    server = serve({})
    monkeypatch.setenv("HF_TOKEN", HubServer.TOKEN)
    copy = tmp_path / "copy"
    shutil.copytree(shapes_dir, copy)
    plain = Manifest.check_sizes
    monkeypatch.setattr(Manifest, "check_sizes", lambda self, root: (copy / "val.beton").unlink())
    with pytest.raises(Error, match=r"me/x/val\.beton is missing"):
        upload.push(copy, "me/x", say=lambda line: None)
    assert "manifest.json" not in server.tree("me/x")[1]
    monkeypatch.setattr(Manifest, "check_sizes", plain)
    with pytest.raises(Error, match=r"val\.beton is missing"):
        upload.push(copy, "me/x", say=lambda line: None)


def test_a_manifest_from_elsewhere_is_not_believed(s3, serve, tmp_path, monkeypatch, shapes_dir):
    """Names that lead out, sizes that are none, no end: one line, and nothing is written beside the copy."""
    monkeypatch.setenv("MLPDATA_HOME", str(tmp_path / "home"))
    raw = json.loads((shapes_dir / "manifest.json").read_text())
    entry = {"bytes": 1, "sha256": "0" * 64}
    for i, text in enumerate(
        (
            json.dumps({**raw, "files": {**raw["files"], "../../escape": entry}}),
            json.dumps({**raw, "files": {**raw["files"], "train.beton": {"bytes": "1", "sha256": "0" * 64}}}),
            "[" * 100_000,
            "\xff",
            " " * (33 << 20),
        )
    ):
        s3.put_object(Bucket="bucket", Key=f"bad{i}/manifest.json", Body=text.encode("latin1"))
        serve({f"me/bad{i}": {"manifest.json": text.encode("latin1")}})
        for url in (f"s3://bucket/bad{i}", f"hf:me/bad{i}"):
            with pytest.raises(Error, match=r"manifest\.json") as caught:
                remote.local_copy(url)
            assert "\n" not in str(caught.value) and f"bad{i}" in str(caught.value)
    assert not [p for p in tmp_path.rglob("*") if p.is_file() and p.suffix != ".lock"]
    for path in shapes_dir.iterdir():  # a file that does not end
        s3.upload_file(str(path), "bucket", f"long/{path.name}")
    s3.put_object(Bucket="bucket", Key="long/val.beton", Body=(shapes_dir / "val.beton").read_bytes() * 3)
    with pytest.raises(Error, match=r"long/val\.beton has [\d,]+ bytes instead of [\d,]+$"):
        remote.local_copy("s3://bucket/long")
