import contextlib
import dataclasses
import hashlib
import json
import shutil

import numpy as np
import pyarrow.parquet as pq
import pytest
import torch
from conftest import change_manifest, read_jsonl, run_cli

import mlpdata
import trainer
from mlpdata import Augment, Batch, Error
from mlpdata.augment.settings import Augmentation
from mlpdata.errors import UsageError
from mlpdata.shards.manifest import Manifest, index_path, real_path
from trainer import checkpoint
from trainer.evaluate import EvalOptions, TestTimeCrops, evaluate, read_real_labels, run
from trainer.recipe import Data, Model, Recipe
from trainer.train import run as train


@pytest.fixture(scope="module")
def saved(tmp_path_factory, shapes_dir):
    """A checkpoint of an untrained model, which is wrong often enough to tell the measures apart."""
    path = tmp_path_factory.mktemp("saved") / "model.safetensors"
    manifest = Manifest.load(shapes_dir)
    config = Model(depth=1, width=16)
    recipe = Recipe(
        name="x", data=Data(shards=str(shapes_dir)), model=config, augment=Augmentation(crop_scale=(0.5, 1.0))
    )
    facts = {"res": 16, "num_classes": 10, "classes_sha256": manifest.classes_sha256}
    facts |= {"mean": manifest.mean, "std": manifest.std}
    checkpoint.save_weights(path, trainer.build(config, 16, 10, seed=1).state_dict(), recipe, facts)
    return path


def scores(saved, shapes_dir, augment=None, epoch=0):
    """(N, C) probabilities the long way round, and the labels."""
    manifest = Manifest.load(shapes_dir)
    augment = augment or Augment(crop_scale=None, flip=False, mean=tuple(manifest.mean), std=tuple(manifest.std))
    images, labels = mlpdata.load(shapes_dir, "val").arrays()
    ids = torch.arange(len(labels))
    batch = augment.apply(Batch(torch.from_numpy(images), torch.from_numpy(labels), ids), epoch, 0)
    with torch.inference_mode():
        return trainer.load(saved)(batch.images).softmax(1).numpy(), labels


def test_the_measures_are_what_they_say(saved, shapes_dir):
    probs, labels = scores(saved, shapes_dir)
    options = EvalOptions(checkpoint=saved, shards=shapes_dir, as_json=True, per_class=True, batch_size=700)
    found = json.loads(run(options))
    order = np.argsort(-probs, axis=1)
    right = order[:, 0] == labels
    assert found["val_top1"] == pytest.approx(right.mean())
    assert found["val_top5"] == pytest.approx((order[:, :5] == labels[:, None]).any(1).mean())
    assert found["val_loss"] == pytest.approx(-np.log(probs[range(1500), labels]).mean(), rel=1e-4)
    of_class = [right[labels == c].mean() for c in range(10)]
    assert list(found["per_class"].values()) == pytest.approx(of_class) and "val_real" not in found


@pytest.mark.parametrize("average", ["probabilities", "logits"])
def test_crops_are_those_of_training_and_averaged_as_asked(saved, shapes_dir, average):
    manifest = Manifest.load(shapes_dir)
    crop = Augment(crop_scale=(0.5, 1.0), flip=True, mean=tuple(manifest.mean), std=tuple(manifest.std))
    probs = [scores(saved, shapes_dir, crop, epoch=k)[0] for k in range(3)]
    labels = scores(saved, shapes_dir)[1]
    mean = np.mean(probs, 0) if average == "probabilities" else np.mean(np.log(probs), 0)
    found = json.loads(run(EvalOptions(checkpoint=saved, shards=shapes_dir, tta=3, average=average, as_json=True)))
    assert found["val_top1"] == pytest.approx((mean.argmax(1) == labels).mean(), abs=0.002)
    if average == "probabilities":
        assert found["val_loss"] == pytest.approx(-np.log(mean[range(1500), labels]).mean(), rel=1e-3)


def test_it_is_probabilities_that_are_averaged():
    class View:
        def apply(self, batch, epoch, seed):
            return Batch(batch.images + epoch, batch.labels, batch.ids)

    table = torch.tensor([[4.0, 0.0], [0.0, 1.0]])
    views = TestTimeCrops(crop=View(), crops=2)
    batch = Batch(torch.zeros(1, dtype=torch.int64), torch.zeros(1), torch.zeros(1))
    mean = views.logits(lambda x: table[x], batch, contextlib.nullcontext, 0)
    assert torch.allclose(mean.exp(), (table[:1].softmax(1) + table[1:].softmax(1)) / 2)


def test_real_accuracy_counts_only_images_with_labels(saved, shapes_dir, tmp_path):
    root = tmp_path / "shards"
    shutil.copytree(shapes_dir, root)
    keys = pq.read_table(index_path(root, "val"), columns=["key"])["key"].to_pylist()
    probs, _ = scores(saved, shapes_dir)
    best = probs.argmax(1)
    labels = {}
    for i, key in enumerate(keys):
        other = int(best[i] + 1) % 10
        labels[key] = [[], [other, int(best[i])], [other]][i % 3]  # without labels, right by its second, wrong
    labels.pop(keys[0])  # a key that is not named has no labels either
    real_path(root, "val").write_text(json.dumps(labels))
    files = json.loads((root / "manifest.json").read_text())["files"]
    change_manifest(root, files={**files, "val.real.json": {"bytes": 0, "sha256": "0" * 64}})
    found = json.loads(run(EvalOptions(checkpoint=saved, shards=root, as_json=True, batch_size=400)))
    assert found["val_real"] == pytest.approx(500 / 1000)
    assert "ReaL 50.00%" in run(EvalOptions(checkpoint=saved, shards=root))
    real_path(root, "val").write_text("[1]")
    with pytest.raises(Error, match=r"val\.real\.json is damaged"):
        read_real_labels(root, Manifest.load(root), "val")


def test_predictions_and_the_command(saved, shapes_dir, tmp_path):
    out = tmp_path / "p.parquet"
    done = run_cli("eval", saved, "--shards", shapes_dir, "--predictions", out, "--per-class", "--device", "cpu")
    assert done.returncode == 0, done.stderr
    assert "top-1" in done.stdout and f"predictions: {out}" in done.stdout
    assert len(done.stdout.splitlines()) == 12
    table = pq.read_table(out)
    probs, labels = scores(saved, shapes_dir)
    assert table["key"].to_pylist() == pq.read_table(index_path(shapes_dir, "val"))["key"].to_pylist()
    assert (table["label"].to_numpy() == labels).all()
    top, prob = (np.stack(table[c].to_pylist()) for c in ("top", "prob"))
    assert (top[:, 0] == probs.argmax(1)).mean() > 0.999
    assert np.allclose(prob, np.take_along_axis(probs, top, 1), atol=1e-4)


def test_a_checkpoint_of_the_authors_is_evaluated_at_its_own_resolution(shapes_dir, tmp_path):
    torch.save(trainer.build("B_1-Wi_8", 24, 10, seed=0).state_dict(), tmp_path / "B_1-Wi_8")
    assert "1,500 samples" in run(EvalOptions(checkpoint=tmp_path / "B_1-Wi_8", shards=shapes_dir, tta=1))
    torch.save(trainer.build("B_1-Wi_8", 16, 11, seed=0).state_dict(), tmp_path / "other")
    with pytest.raises(Error, match=r"knows 11 classes and .* has 10; the class lists must be equal"):
        run(EvalOptions(checkpoint=tmp_path / "other", shards=shapes_dir))


def test_mean_and_std_are_the_checkpoints_unless_asked_otherwise(saved, shapes_dir):
    manifest = Manifest.load(shapes_dir)
    losses = [
        json.loads(run(EvalOptions(checkpoint=saved, shards=shapes_dir, normalize=n, as_json=True)))["val_loss"]
        for n in (None, "own", "imagenet")
    ]
    assert manifest.mean != [0.485, 0.456, 0.406] and losses[0] == losses[1] != losses[2]


@pytest.mark.parametrize(
    "settings",
    [["train.precision=bf16", "eval.batch_size=7"], ["data.format=tar", "data.pixels=ycc420", "augment.res=20"]],
)
def test_a_runs_best_accuracy_is_what_eval_says_of_it(settings, photos_dir, tmp_path, capsys):
    recipe = tmp_path / "tiny.yaml"
    recipe.write_text(f"data: {{shards: {photos_dir}}}\nmodel: {{depth: 1, width: 32}}\n"
                      "train: {epochs: 2, batch_size: 10, device: cpu}\nlog: {tensorboard: false}\n")  # fmt: skip
    folder = train(recipe, settings, runs=tmp_path / "runs")
    said = capsys.readouterr().out.splitlines()[-1]
    best = max(read_jsonl(folder / "metrics.jsonl"), key=lambda row: row["val_top1"])
    options = {"checkpoint": folder, "shards": photos_dir, "device": "cpu"}
    found = json.loads(run(EvalOptions(**options, as_json=True)))
    assert {name: found[name] for name in ("val_loss", "val_top1", "val_top5")} == {
        name: best[name] for name in ("val_loss", "val_top1", "val_top5")
    }
    assert found["precision"] == ("bf16" if "train.precision=bf16" in settings else "fp32")
    assert said.startswith(f"best val top-1 {best['val_top1']:.2%}, epoch {best['epoch']}, {found['precision']}; ")
    assert f"val, {found['precision']}: top-1 {best['val_top1']:.2%}  " in run(EvalOptions(**options))
    assert json.loads(run(EvalOptions(**options, as_json=True, precision="fp32")))["precision"] == "fp32"


def test_a_model_in_training_is_left_in_training(shapes_dir):
    model = trainer.build("B_1-Wi_8", 16, 10, seed=0).train()
    loader = mlpdata.load(shapes_dir, "val", 500, augment=Augment(crop_scale=None, flip=False), shuffle=False)
    result = evaluate(model, loader, contextlib.nullcontext)
    assert model.training and result.class_total.sum() == 1500
    assert result.class_right.sum() / 1500 == pytest.approx(result.metrics["val_top1"])


# ------------------------------------------------------------------------------------ what cannot be evaluated, and why


def changed(shapes_dir, root, change, classes=None):
    """A copy of the shards with another manifest, and another list of classes."""
    shutil.copytree(shapes_dir, root)
    manifest = json.loads((root / "manifest.json").read_text())
    if classes is not None:
        (root / "classes.txt").write_bytes(classes)
        manifest["classes_sha256"] = hashlib.sha256(classes).hexdigest()
        manifest["files"]["classes.txt"] = {"bytes": len(classes), "sha256": manifest["classes_sha256"]}
    change(manifest)
    change_manifest(root, **manifest)
    return root


def test_a_split_that_is_not_there_is_said_with_those_that_are(saved, shapes_dir, tmp_path):
    root = changed(shapes_dir, tmp_path / "s", lambda m: m["splits"].pop("val"))
    with pytest.raises(Error, match="s has no split 'val', only train; --split chooses one of these"):
        run(EvalOptions(checkpoint=saved, shards=root))
    assert f"1,500 samples of {root}, train" in run(EvalOptions(checkpoint=saved, shards=root, split="train"))
    for name in ("validation", "dev", "test"):  # val by another name
        assert f"1,500 samples of {shapes_dir}, val" in run(
            EvalOptions(checkpoint=saved, shards=shapes_dir, split=name)
        )


def test_the_shards_and_the_split_are_those_of_the_training(saved, shapes_dir, tmp_path, monkeypatch):
    found = json.loads(run(EvalOptions(checkpoint=saved, as_json=True)))
    assert found == json.loads(run(EvalOptions(checkpoint=saved, shards=shapes_dir, as_json=True)))
    assert found["shards"] == str(shapes_dir) and found["split"] == "val"
    assert f"samples of {shapes_dir}, val" in run(EvalOptions(checkpoint=saved))
    ckpt = checkpoint.open_checkpoint(saved)

    def trained_on(**data):
        facts = {key: value for key, value in ckpt.facts.items() if key != "recipe"}
        recipe = Recipe(name="x", data=Data(**data), model=Model(depth=1, width=16))
        checkpoint.save_weights(tmp_path / "x.safetensors", ckpt.model.state_dict(), recipe, facts)
        return EvalOptions(checkpoint=tmp_path / "x.safetensors")

    options = trained_on(shards=str(shapes_dir), eval_split="train")
    assert f"{shapes_dir}, train" in run(options)  # as in training
    assert f"{shapes_dir}, val" in run(dataclasses.replace(options, split="val"))
    monkeypatch.chdir(tmp_path)
    with pytest.raises(Error, match=r"x\.safetensors was trained on shards/gone \(seen from the folder .*--shards DIR"):
        run(trained_on(shards="shards/gone"))
    with pytest.raises(Error, match=r"--shards DIR .*; `mlpdata convert shapes --res 16` makes it"):
        run(trained_on(shards="shards/shapes-16"))
    (tmp_path / "shards").mkdir()
    shutil.copytree(shapes_dir, tmp_path / "shards" / "shapes-16")
    assert "samples of shards/shapes-16, val" in run(trained_on(shards="shards/shapes-16"))
    done = run_cli("eval", saved, "--device", "cpu")
    assert done.returncode == 0 and f"samples of {shapes_dir}, val" in done.stdout


def test_shards_elsewhere_are_read_as_the_recipe_says(serve, saved, shapes_dir, tmp_path, monkeypatch):
    monkeypatch.setenv("MLPDATA_HOME", str(tmp_path / "home"))
    server = serve({"me/shapes": {path.name: path.read_bytes() for path in shapes_dir.iterdir()}})
    ckpt, here = checkpoint.open_checkpoint(saved), json.loads(run(EvalOptions(checkpoint=saved, as_json=True)))
    facts = {key: value for key, value in ckpt.facts.items() if key != "recipe"}
    data = Data(shards="hf:me/shapes", tier="stream")
    recipe = Recipe(name="x", data=data, model=Model(depth=1, width=16))
    checkpoint.save_weights(tmp_path / "x.safetensors", ckpt.model.state_dict(), recipe, facts)
    lines = []
    found = json.loads(run(EvalOptions(checkpoint=tmp_path / "x.safetensors", as_json=True), lines.append))
    assert found["val_top1"] == here["val_top1"] and lines[0].startswith("streaming hf:me/shapes")
    assert not any(path.endswith(".beton") for _, path, _ in server.requests)


def test_what_is_no_checkpoint_is_said(shapes_dir, tmp_path):
    with pytest.raises(UsageError, match="--shards DIR names the shards"):
        state = trainer.build("S_1-Wi_8", 16, 10, seed=0).state_dict()
        torch.save(state, tmp_path / "authors.pt")
        run(EvalOptions(checkpoint=tmp_path / "authors.pt"))
    with pytest.raises(Error, match="is a shard directory: give a checkpoint, or a run directory"):
        run(EvalOptions(checkpoint=shapes_dir))
    path = tmp_path / "r.yaml"
    path.write_text(f"data: {{shards: {shapes_dir}}}\nmodel: {{depth: 1, width: 8}}\ntrain: {{device: cpu}}\n")
    folder = train(path, runs=tmp_path / "runs", quiet=True)
    with pytest.raises(Error, match="is the state of a run, for --resume: give the run directory"):
        run(EvalOptions(checkpoint=next(folder.glob("state-*.pt"))))
    with pytest.raises(Error, match="is a run of `mlpdata train`: give the shard directory"):
        Manifest.load(folder)
    with pytest.raises(Error, match=r"it is no plain file; a run's recipe is .*recipe\.yaml"):
        train(folder, runs=tmp_path / "runs")
    with pytest.raises(Error, match=r"no plain file; train on a shard directory with --set data\.shards=DIR"):
        train(shapes_dir, runs=tmp_path / "runs")


def test_another_list_of_as_many_classes_is_refused(saved, shapes_dir, tmp_path):
    lines = (shapes_dir / "classes.txt").read_bytes().splitlines(True)
    root = changed(shapes_dir, tmp_path / "s", lambda m: None, b"".join(lines[::-1]))
    with pytest.raises(Error, match=r"knows 10 classes and .* has as many, but another list of them; .*fine-tune"):
        run(EvalOptions(checkpoint=saved, shards=root))


def test_classes_of_one_name_and_of_odd_names_each_have_a_line(shapes_dir, tmp_path):
    names = ["ring", "ring", "a\u2028b", 'say "x"', "[red]", "q?", "é", "__x__", "a b", "c"]
    root = changed(
        shapes_dir, tmp_path / "s", lambda m: None, "".join(f"n{k}\t{n}\n" for k, n in enumerate(names)).encode()
    )
    torch.save(trainer.build("B_1-Wi_8", 16, 10, seed=0).state_dict(), tmp_path / "c")
    options = {"checkpoint": tmp_path / "c", "shards": root, "per_class": True}
    per_class = json.loads(run(EvalOptions(**options, as_json=True)))["per_class"]
    assert len(per_class) == 10 and {"ring (n0)", "ring (n1)"} <= per_class.keys()
    lines = run(EvalOptions(**options)).splitlines()
    assert len(lines) == 12 and "does not name its classes" in lines[-1]


def test_predictions_that_cannot_be_written_are_said_before_the_work(saved, shapes_dir, tmp_path, monkeypatch):
    monkeypatch.setattr("trainer.evaluate.evaluate", lambda *_, **__: pytest.fail("it began to work"))
    for out in (tmp_path, tmp_path / "none" / "p.parquet"):
        with pytest.raises(Error, match="cannot write"):
            run(EvalOptions(checkpoint=saved, shards=shapes_dir, predictions=out))
    with pytest.raises(Error, match=r"call it .*p\.parquet, not .*p\.csv"):
        run(EvalOptions(checkpoint=saved, shards=shapes_dir, predictions=tmp_path / "p.csv"))


def test_a_full_disk_leaves_no_half_of_the_predictions(saved, shapes_dir, tmp_path, monkeypatch):
    def full(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("os.fsync", full)
    with pytest.raises(Error, match=r"cannot write .*p\.parquet: No space left on device"):
        run(EvalOptions(checkpoint=saved, shards=shapes_dir, predictions=tmp_path / "p.parquet"))
    assert not list(tmp_path.iterdir())
