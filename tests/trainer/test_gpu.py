"""What only a GPU can show of the trainer; and the command that measures everything there, tried without one."""

import json
import subprocess
import sys
import warnings

import pytest
import torch
from conftest import HANG_S, ROOT, read_jsonl

from trainer.train import run

RECIPE = """\
name: gpu
data:
  shards: {shards}
augment:
  crop_scale: [0.6, 1.0]
  mixup: 0.8
model:
  depth: 2
  width: 64
optim:
  name: adamw
  lr: 1e-3
train:
  epochs: 2
  batch_size: 100
  device: {device}
  compile: false
  precision: fp32
  label_smoothing: 0.1
log:
  tensorboard: false
"""
on_a_gpu = [pytest.mark.gpu, pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")]


def losses(folder, root, device, *overrides, **options):
    """[(training loss, held-out loss)] of every epoch."""
    folder.mkdir(exist_ok=True)
    recipe = folder / "gpu.yaml"
    recipe.write_text(RECIPE.format(shards=root, device=device))
    with warnings.catch_warnings():
        warnings.filterwarnings("error", message="train")  # of what did not work and runs slower
        run_folder = run(recipe, list(overrides), runs=folder / "runs", quiet=True, **options)
    return [(row["train_loss"], row["val_loss"]) for row in read_jsonl(run_folder / "metrics.jsonl")]


# A way of training -> how far its losses may be from those of eager float32 on the CPU.
WAYS = {
    "fp32": ([], 1e-3),
    "compiled": (["train.compile=true"], 1e-3),
    "tf32": (["train.precision=tf32"], 5e-3),
    "bf16": (["train.precision=bf16"], 2e-2),
    "bf16 compiled": (["train.precision=bf16", "train.compile=true"], 2e-2),
    "fp16": (["train.precision=fp16"], 2e-2),
    "accumulated": (["train.accumulate=4"], 1e-3),
    "lion": (["optim.name=lion", "optim.lr=1e-4", "train.compile=true"], 1e-3),
    "without graph": (["train.cuda_graphs=false"], 1e-3),
    "compiled without graph": (["train.compile=true", "train.cuda_graphs=false"], 1e-3),
    "pinned": (["data.tier=pinned"], 1e-3),
    "stream": (["data.tier=stream"], 1e-3),
}


@pytest.mark.parametrize("way", [pytest.param(w, marks=on_a_gpu) for w in WAYS])
def test_losses_on_a_gpu_are_those_of_the_cpu(way, shapes_dir, tmp_path):
    overrides, tolerance = WAYS[way]
    on_gpu = losses(tmp_path / "gpu", shapes_dir, "cuda", *overrides)
    data = [word for word in overrides if word.startswith(("data.", "optim."))]  # the stream has an order of its own
    on_cpu = losses(tmp_path / "cpu", shapes_dir, "cpu", *data)
    assert on_gpu == [pytest.approx(row, rel=tolerance) for row in on_cpu]


@pytest.mark.parametrize("precision", [pytest.param(p, marks=on_a_gpu) for p in ("bf16", "fp16")])
def test_a_run_on_a_gpu_goes_on_where_it_stopped(precision, shapes_dir, tmp_path):
    words = [f"train.precision={precision}", "train.compile=true"]
    whole = losses(tmp_path / "whole", shapes_dir, "cuda", *words)
    losses(tmp_path / "halves", shapes_dir, "cuda", *words, "train.epochs=1")
    rest = losses(tmp_path / "halves", shapes_dir, "cuda", *words, "train.epochs=2", resume=True, force=True)
    assert rest == [pytest.approx(row, rel=1e-4) for row in whole]


def measure(out, *words):
    """(exit status, report) of the command that measures everything, small and on the CPU."""
    done = subprocess.run(
        [sys.executable, "tests/bench/gpu.py", "--device", "cpu", "--tiny", "--out", str(out), *words],
        cwd=ROOT, capture_output=True, text=True, timeout=HANG_S, check=False,
    )  # fmt: skip
    assert (out / "report.json").exists(), done.stderr
    return done.returncode, json.loads((out / "report.json").read_text()), done.stdout


def test_a_part_that_fails_leaves_its_error_and_the_others_go_on(tmp_path):
    status, report, shown = measure(tmp_path, "--only", "machine,tiers")  # no shards: tiers must fail
    parts = report["parts"]
    assert status == 1 and "error" in parts["tiers"] and "raw" in parts["tiers"]["error"]
    assert "error" not in parts["machine"] and parts["machine"]["device_copy_gb_per_s"] > 0
    assert "| what | images/s | of |" in shown


@pytest.mark.slow
def test_everything_is_measured(tmp_path):
    status, report, shown = measure(tmp_path, "--budget", "2000")
    assert status == 0, report
    assert set(report["parts"]) == {"machine", "shards", "steps", "tests", "tiers", "augment"}
    assert shown.count("\n| ") >= 7
