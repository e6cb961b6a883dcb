import json
import os
import shutil

import numpy as np
import pytest
from archives import encoded
from conftest import run_cli
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
    rows = json.loads(run(saved, pictures, device="cpu", as_json=True))
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
    (row,) = json.loads(run(path, pictures[:1], device="cpu", as_json=True))
    assert all(top["class"] == str(top["label"]) for top in row["top"])
    assert "--shards DIR names them" in run(path, pictures[:1], device="cpu")
    (named,) = json.loads(run(path, pictures[:1], shapes_dir, device="cpu", as_json=True))
    assert [top["label"] for top in named["top"]] == [top["label"] for top in row["top"]]
    assert all(not top["class"].isdigit() for top in named["top"])


def test_what_cannot_be_predicted_is_one_line(saved, shapes_dir, pictures, tmp_path):
    (tmp_path / "bad.jpg").write_bytes(b"\xff\xd8\xff nothing")
    os.mkfifo(tmp_path / "fifo.jpg")
    for name, reason in (("bad.jpg", "cannot decode"), ("none.jpg", "cannot read"), ("fifo.jpg", "no regular file"),
                         (".", "is a folder; name the image files in it")):  # fmt: skip
        done = run_cli("predict", saved, pictures[0], tmp_path / name, "--device", "cpu")
        assert done.returncode == 1 and not done.stdout
        assert reason in done.stderr and str(tmp_path / name) in done.stderr and done.stderr.count("\n") == 1
    root = tmp_path / "other"
    shutil.copytree(shapes_dir, root)
    text = json.loads((root / "manifest.json").read_text())
    (root / "manifest.json").write_text(json.dumps({**text, "classes_sha256": "0" * 64}))
    with pytest.raises(Error, match="has other classes than"):
        run(saved, pictures[:1], root, device="cpu")
    assert run_cli("predict", saved).returncode == 2
