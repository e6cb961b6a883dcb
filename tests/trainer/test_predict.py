import hashlib
import json
import os
import shutil

import numpy as np
import pytest
from archives import encoded
from conftest import change_manifest, run_cli
from PIL import Image

import mlpdata
import trainer
from mlpdata.errors import Error
from mlpdata.shards.classes import distinct_names, read_classes
from mlpdata.shards.manifest import Manifest
from trainer import checkpoint
from trainer.evaluate import EvalOptions
from trainer.evaluate import run as evaluate
from trainer.predict import run
from trainer.recipe import Data, Model, Recipe, Train


def rows_of(*arguments, **options):
    """What --json prints, and the lines beside it."""
    said, told = [], []
    num_errors = run(*arguments, device="cpu", as_json=True, say=said.append, tell=told.append, **options)
    rows = json.loads(*said)
    assert num_errors == sum("error" in row for row in rows)
    return rows, told


def save(path, shapes_dir, shards, precision="fp32"):
    """A checkpoint of an untrained model, which prefers some class for each image."""
    manifest, config = Manifest.load(shapes_dir), Model(depth=1, width=16)
    recipe = Recipe(name="x", data=Data(shards=str(shards)), model=config, train=Train(precision=precision))
    facts = {"res": 16, "num_classes": 10, "classes_sha256": manifest.classes_sha256}
    facts |= {"mean": manifest.mean, "std": manifest.std}
    checkpoint.save_weights(path, trainer.build(config, 16, 10, seed=1).state_dict(), recipe, facts)
    return path


@pytest.fixture(scope="module")
def saved(tmp_path_factory, shapes_dir):
    return save(tmp_path_factory.mktemp("saved") / "best.safetensors", shapes_dir, shapes_dir)


@pytest.fixture(scope="module")
def pictures(tmp_path_factory, shapes_dir):
    """The held-out images as PNG files, without loss, in the order of the split."""
    folder = tmp_path_factory.mktemp("pictures")
    images, _ = mlpdata.load(shapes_dir, "val", batch_size=64).arrays()
    for i, pixels in enumerate(images[:40]):
        Image.fromarray(pixels).save(folder / f"{i:03d}.png")
    return sorted(folder.iterdir())


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_predictions_are_those_of_eval_on_the_same_images(precision, shapes_dir, pictures, tmp_path):
    import pyarrow.parquet as pq

    saved = save(tmp_path / "best.safetensors", shapes_dir, shapes_dir, precision)
    evaluate(EvalOptions(checkpoint=saved, shards=shapes_dir, device="cpu", predictions=tmp_path / "p.parquet"))
    expected = pq.read_table(tmp_path / "p.parquet").slice(0, len(pictures)).to_pylist()
    rows, told = rows_of(saved, pictures)
    assert not told
    names = distinct_names(read_classes(shapes_dir))
    for path, row, wanted in zip(pictures, rows, expected, strict=True):
        assert row["image"] == str(path)
        assert [top["label"] for top in row["top"]] == wanted["top"]
        assert [top["class"] for top in row["top"]] == [names[label] for label in wanted["top"]]
        assert np.allclose([top["probability"] for top in row["top"]], wanted["prob"], atol=1e-4)


def test_any_size_and_format_is_taken_and_a_run_directory(saved, tmp_path):
    pixels = np.random.default_rng(0).integers(0, 256, (90, 70, 3), np.uint8)
    for name, kind in (("a.jpg", "JPEG"), ("b.png", "PNG"), ("c", "WEBP")):
        (tmp_path / name).write_bytes(encoded(pixels, kind))
    done = run_cli("predict", saved.parent, *(tmp_path / name for name in ("a.jpg", "b.png", "c")), "--device", "cpu")
    lines = done.stdout.splitlines()
    assert done.returncode == 0 and len(lines) == 18
    assert lines[0] == str(tmp_path / "a.jpg") and "%  " in lines[1]


def test_without_its_shards_classes_are_numbers(shapes_dir, pictures, tmp_path):
    path = save(tmp_path / "x.safetensors", shapes_dir, tmp_path / "gone")
    (row,), (line,) = rows_of(path, pictures[:1])
    assert all(top["class"] == str(top["label"]) for top in row["top"])
    assert f"no shard directory at {tmp_path / 'gone'}; --shards DIR names" in line
    (named,), told = rows_of(path, pictures[:1], shapes_dir)
    assert [top["label"] for top in named["top"]] == [top["label"] for top in row["top"]]
    assert all(not top["class"].isdigit() for top in named["top"]) and not told


def test_shards_elsewhere_name_the_classes_without_a_copy(serve, shapes_dir, pictures, tmp_path, monkeypatch):
    monkeypatch.setenv("MLPDATA_HOME", str(tmp_path / "home"))
    server = serve({"me/shapes": {path.name: path.read_bytes() for path in shapes_dir.iterdir()}})
    path = save(tmp_path / "x.safetensors", shapes_dir, "hf:me/shapes")
    (row,), told = rows_of(path, pictures[:1])
    assert all(not top["class"].isdigit() for top in row["top"]) and not told
    assert rows_of(save(tmp_path / "y.safetensors", shapes_dir, "gone"), pictures[:1], "hf:me/shapes")[0] == [row]
    assert not any(path.endswith((".tar", ".beton", ".parquet")) for _, path, _ in server.requests)
    assert not (tmp_path / "home").exists()


def test_images_that_cannot_be_read_are_said_and_the_rest_predicted(saved, pictures, tmp_path):
    (tmp_path / "bad.jpg").write_bytes(b"\xff\xd8\xff nothing")
    asked = [pictures[0], tmp_path / "bad.jpg", tmp_path / "none.jpg", pictures[0]]
    done = run_cli("predict", saved, *asked, "--device", "cpu")
    assert done.returncode == 1 and done.stdout.splitlines()[0] == done.stdout.splitlines()[6] == str(pictures[0])
    lines = done.stderr.splitlines()
    assert len(lines) == 2 and f"error: {asked[1]}: cannot decode" in lines[0] and f"cannot read {asked[2]}" in lines[1]
    rows, told = rows_of(saved, asked)
    assert [row["image"] for row in rows] == list(map(str, asked)) and told == lines
    assert ["error" in row for row in rows] == [False, True, True, False] and rows[0] == rows[3]
    assert rows[1]["error"] in lines[0] and "top" not in rows[1]


def test_a_folder_stands_for_all_images_in_it(saved, pictures, tmp_path):
    for name in (
        "b.png",
        "a.png",
        ".hidden.png",
        "scan.dat",
        "below/deep/c.png",
        ".git/d.png",
        "._a.png",
        "broken.png",
    ):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(pictures[3], tmp_path / name)
    (tmp_path / "broken.png").write_bytes(b"no image")
    for name in ("notes.txt", "Thumbs.db", "below/list.csv"):
        (tmp_path / name).write_text("text")
    rows, told = rows_of(saved, [tmp_path, tmp_path / "a.png"])
    names = [".hidden.png", "a.png", "b.png", "broken.png", "scan.dat", "below/deep/c.png", "a.png"]
    assert [row["image"] for row in rows] == [str(tmp_path / name) for name in names]
    assert [row["image"] for row in rows if "error" in row] == [str(tmp_path / "broken.png")]
    assert f"{tmp_path}: 2 files are no images: notes.txt, below/list.csv" in told
    (tmp_path / "empty" / "below").mkdir(parents=True)
    (row,), (line,) = rows_of(saved, [tmp_path / "empty"])
    assert row["error"] == f"{tmp_path / 'empty'} has no images in it" and row["error"] in line
    (tmp_path / "empty" / "loop").symlink_to(tmp_path)
    assert any("a loop; remove the link" in row.get("error", "") for row in rows_of(saved, [tmp_path])[0])


def test_an_image_comes_from_standard_input(saved, pictures):
    done = run_cli("predict", saved, "-", "--device", "cpu", "--json", stdin=open(pictures[2], "rb"))  # noqa: SIM115
    (row,), (expected,) = json.loads(done.stdout), rows_of(saved, pictures[2:3])[0]
    assert done.returncode == 0 and row == {**expected, "image": "-"}
    with open(os.devnull, "rb") as nothing:
        done = run_cli("predict", saved, "-", "--device", "cpu", stdin=nothing)
    assert done.returncode == 1 and done.stderr.endswith("standard input: not an image: it is an empty file\n")


def test_what_cannot_be_predicted_is_one_line(saved, shapes_dir, pictures, tmp_path):
    (tmp_path / "bad.jpg").write_bytes(b"\xff\xd8\xff nothing")
    os.mkfifo(tmp_path / "fifo.jpg")
    for name, reason in (("bad.jpg", "cannot decode"), ("none.jpg", "cannot read"), ("fifo.jpg", "no regular file"),
                         ("nobody", "cannot read")):  # fmt: skip
        done = run_cli("predict", saved, tmp_path / name, "--device", "cpu")
        assert done.returncode == 1 and not done.stdout
        assert reason in done.stderr and str(tmp_path / name) in done.stderr and done.stderr.count("\n") == 1
    root = tmp_path / "other"
    shutil.copytree(shapes_dir, root)
    (root / "classes.txt").write_bytes(b"".join(reversed((root / "classes.txt").read_bytes().splitlines(True))))
    change_manifest(root, classes_sha256=hashlib.sha256((root / "classes.txt").read_bytes()).hexdigest())
    with pytest.raises(Error, match="has other classes than"):
        rows_of(saved, pictures[:1], root)
    assert run_cli("predict", saved).returncode == 2
