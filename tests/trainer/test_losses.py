"""Losses of recorded float32 runs: whatever is made faster, the steps stay the same."""

import json
from pathlib import Path

import pytest
import torch
from conftest import read_jsonl

from trainer.train import run

RECORDED = Path(__file__).with_name("losses.json")
RECORDED_WITH = "2.13.0"  # torch
RUNS = {
    "adamw": ["optim.name=adamw", "optim.lr=2e-3", "augment.crop_scale=[0.6, 1]", "schedule.name=cosine"],
    "lion": [
        "optim.name=lion", "optim.lr=3e-4", "optim.weight_decay=0.1", "augment.mixup=0.8", "train.label_smoothing=0.3",
        "train.ema=0.9", "model.dropout=0.1", "train.clip_norm=1.0", "train.accumulate=5",
    ],
    "sgd": [
        "optim.name=sgd", "optim.lr=0.05", "augment.cutmix=0.5", "augment.pad=2", "augment.crop_scale=null",
        "model.kind=s_mlp", "model.norm=batch", "schedule.warmup_epochs=0.5",
    ],
}  # fmt: skip
MEASURES = ("train_loss", "train_top1", "val_loss", "val_top1", "val_top5", "lr", "flops")


def record(folder, shards, name):
    """{losses of the steps, measures of the epochs} of a run of two epochs."""
    recipe = folder / "recipe.yaml"
    recipe.write_text(f"name: {name}\ndata:\n  shards: {shards}\nmodel:\n  depth: 2\n  width: 64\n")
    always = ["train.epochs=2", "train.batch_size=100", "train.device=cpu", "train.record_steps=true"]
    always += ["eval.batch_size=400", "log.tensorboard=false"]
    out = run(recipe, always + RUNS[name], runs=folder / "runs", quiet=True)
    epochs = [{key: row[key] for key in MEASURES} for row in read_jsonl(out / "metrics.jsonl")]
    return {"steps": [row["loss"] for row in read_jsonl(out / "steps.jsonl")], "epochs": epochs}


@pytest.mark.parametrize("name", RUNS)
def test_losses_are_those_recorded(name, shapes_dir, tmp_path):
    if "dropout" in " ".join(RUNS[name]) and torch.__version__.split("+")[0] != RECORDED_WITH:
        pytest.skip(f"torch {torch.__version__} may draw other numbers for dropout than {RECORDED_WITH}")
    recorded, now = json.loads(RECORDED.read_text())[name], record(tmp_path, shapes_dir, name)
    assert now["steps"] == pytest.approx(recorded["steps"], rel=1e-5)
    for epoch, row in zip(now["epochs"], recorded["epochs"], strict=True):
        assert epoch == pytest.approx(row, rel=1e-5)
