"""Several processes at one model, over gloo on the CPU."""

import os
import socket
import subprocess
import sys

import pytest
import torch
from conftest import HANG_S, read_jsonl, until

from mlpdata import Error
from trainer import states
from trainer.recipe import load_recipe
from trainer.train import Trainer, run
from trainer.world import World, join

RECIPE = """\
name: tiny
data:
  shards: {shards}
augment:
  mixup: 0.5
model:
  depth: 1
  width: 32
optim:
  name: adamw
  lr: 2e-3
train:
  epochs: 2
  batch_size: 100
  clip_norm: 1.0
  device: cpu
  record_steps: true
eval:
  batch_size: 999
log:
  tensorboard: false
"""


def start(recipe, *words, size=2, command=("trainer",)):
    """The processes that torchrun would start. command: the module to run, and what comes before the recipe."""
    kept = socket.socket()  # while it is bound, nobody else is given this port; torch may listen there all the same
    kept.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    kept.bind(("127.0.0.1", 0))
    port = str(kept.getsockname()[1])
    shared = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port, "WORLD_SIZE": str(size), "OMP_NUM_THREADS": "1"}
    processes = [
        subprocess.Popen(
            [sys.executable, "-m", *command, recipe, *words],
            cwd=recipe.parent, env=os.environ | shared | {"RANK": str(rank), "LOCAL_RANK": str(rank)},
            stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
        )
        for rank in range(size)
    ]  # fmt: skip
    processes[0].port = kept
    return processes


def finish(processes, timeout=HANG_S):
    """[(status, stdout, stderr)]; kills what has not ended by then."""
    try:
        said = [p.communicate(timeout=timeout) for p in processes]
        return [(p.returncode, *texts) for p, texts in zip(processes, said, strict=True)]
    finally:
        for p in processes:
            p.kill()
        processes[0].port.close()


def losses(folder):
    return [r["loss"] for r in read_jsonl(folder / "steps.jsonl")]


def test_two_processes_take_the_steps_of_one_and_pass_on_checkpoints(recipe, monkeypatch):
    monkeypatch.chdir(recipe.parent)
    alone = run(recipe, ["name=alone"], quiet=True)
    ended = finish(start(recipe, "--set", "train.epochs=1"))
    assert [status for status, *_ in ended] == [0, 0], ended
    assert "in 2 processes" in ended[0][1] and "saturation" in ended[0][1] and ended[1][1] == ""
    together = run(recipe, ["train.epochs=2"], resume=True, force=True, quiet=True)  # the second epoch by one process
    assert len(losses(alone)) == 30 and losses(together) == pytest.approx(losses(alone), rel=1e-4)
    for a, b in zip(*(read_jsonl(f / "metrics.jsonl") for f in (alone, together)), strict=True):
        for key in ("step", "train_loss", "train_top1", "val_loss", "val_top1", "val_top5"):
            assert a[key] == pytest.approx(b[key], rel=1e-3, abs=2e-3), key


COMPILED = """\
import runpy, sys, torch
compile = torch.compile
def backend(graph, inputs):  # the graphs alone: a C++ compiler takes a minute
    from torch._dynamo.backends.debugging import aot_eager
    print("compiled a graph", file=sys.stderr, flush=True)
    return aot_eager(graph, inputs)
torch.compile = lambda function, **options: compile(function, **options | {"backend": backend})
runpy.run_module("trainer", run_name="__main__", alter_sys=True)
"""


@pytest.mark.parametrize("words", [[], ["train.accumulate=2", "optim.name=lion"]])
def test_two_processes_that_compile_take_the_steps_of_one_that_does_not(recipe, monkeypatch, words):
    monkeypatch.chdir(recipe.parent)
    (recipe.parent / "compiled.py").write_text(COMPILED)
    alone = run(recipe, ["name=alone", "train.epochs=1", *words], quiet=True)
    settings = [word for value in ["train.epochs=1", "train.compile=true", *words] for word in ("--set", value)]
    ended = finish(start(recipe, *settings, command=("compiled",)))
    assert [status for status, *_ in ended] == [0, 0], ended
    for _, _, err in ended:
        assert "uncompiled" not in err
        assert err.count("compiled a graph") >= 1 + ("optim.name=lion" in words), err
    together = losses(recipe.parent / "runs" / "tiny")
    assert len(together) == 15 and together == pytest.approx(losses(alone), rel=1e-4)


def test_a_process_that_dies_ends_the_others_with_a_message(recipe):
    processes = start(recipe, "--set", "train.epochs=100000", "--set", "save.every_steps=10")
    until(lambda: states.list_states(recipe.parent / "runs" / "tiny"), *processes)
    processes[1].kill()
    (status, _, err), _ = finish(processes)
    assert status == 1
    (line,) = [x for x in err.splitlines() if x.startswith("trainer: error:")]
    assert "process 0 of 2 lost another one" in line and "--resume" in line


def test_asked_to_end_all_processes_save_at_the_same_step(recipe):
    command = ("mlpdata.cli", "train")  # as `torchrun --no-python mlpdata train` starts it
    processes = start(recipe, "--set", "train.epochs=100000", "--set", "save.every_steps=10", command=command)
    until(lambda: states.list_states(recipe.parent / "runs" / "tiny"), *processes)
    processes[1].terminate()  # one is told; all stop
    ended = finish(processes)
    assert [status for status, *_ in ended] == [1, 1]
    for _, _, err in ended:
        assert "stopped and saved at epoch" in err and "Traceback" not in err


@pytest.mark.parametrize(
    ("setting", "message"),
    [
        ("train.batch_size=101", "101 is not divisible by 2 processes"),
        ("model.norm=batch", "batch needs a single process"),
    ],
)
def test_what_many_processes_cannot_share(recipe, tmp_path, setting, message):
    with pytest.raises(Error, match=message):
        Trainer(load_recipe(recipe, [setting]), tmp_path, torch.device("cpu"), world=World(0, 2))


def test_alone_there_is_nobody_to_ask(monkeypatch):
    with join("cpu") as world:
        assert world == World() and world.any(True, False) == [True, False]
        assert world.from_first(lambda: 3) == 3
    monkeypatch.setenv("WORLD_SIZE", "two")
    with pytest.raises(Error, match="must be numbers"), join("cpu"):
        pass
