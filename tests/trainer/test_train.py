import dataclasses
import hashlib
import importlib.machinery
import importlib.util
import io
import itertools
import json
import math
import os
import random
import re
import shutil
import signal
import subprocess
import sys
import time
import types

import pytest
import torch
from conftest import HANG_S, change_manifest, convert_quietly, read_jsonl, until, without_progress

import trainer
from mlpdata import Error
from mlpdata.loader.loader import Loader
from mlpdata.shards.manifest import Manifest
from trainer import checkpoint, curve, evaluate, loop, record, report, run_directory, saturation, states
from trainer.model import BMLP
from trainer.optim import lr_factor, make_optimizer, set_lr
from trainer.plan import state_bytes
from trainer.recipe import Model, Optim, Schedule, load_recipe
from trainer.step import WeightAverage
from trainer.train import Trainer, run

RECIPE = """\
name: tiny
data:
  shards: {shards}
augment:
  crop_scale: [0.6, 1.0]
model:
  depth: 2
  width: 64
optim:
  name: adamw
  lr: 2e-3
schedule:
  name: cosine
  warmup_epochs: 0.5
train:
  epochs: 4
  batch_size: 100
  device: cpu
save:
  every_minutes: 1000000
log:
  tensorboard: false
"""


def go(recipe, *overrides, **options):
    return run(recipe, list(overrides), runs=recipe.parent / "runs", quiet=True, **options)


def test_a_run_learns_and_leaves_what_it_should(recipe):
    folder = go(recipe, "train.epochs=8")
    rows = read_jsonl(folder / "metrics.jsonl")
    assert [r["epoch"] for r in rows] == list(range(1, 9)) and rows[-1]["step"] == 8 * 15
    for key in ("train_loss", "val_top1", "val_top5", "images_per_s", "wait_share", "lr", "val_loss"):
        assert all(isinstance(r[key], float) for r in rows)
    assert rows[-1]["train_loss"] < rows[0]["train_loss"] - 0.2
    # Chance is 0.1, with a standard deviation of 0.008 on 1,500 samples.
    assert 0.14 < rows[-1]["val_top1"] <= rows[-1]["val_top5"] <= 1
    assert 0 <= rows[-1]["wait_share"] < 1
    assert (folder / "curve.png").read_bytes()[:4] == b"\x89PNG"
    assert {p.name for p in folder.iterdir()} == {
        "best.safetensors", "last.safetensors", "state-000000105.pt", "state-000000120.pt", "metrics.jsonl",
        "curve.png", "recipe.yaml", "summary.json",
    }  # fmt: skip
    assert json.loads((folder / "summary.json").read_text())["saturation"] > 0


def test_checkpoints_hold_the_model_and_its_recipe(recipe, shapes_dir):
    import mlpdata
    from mlpdata import Augment

    folder = go(recipe)
    facts = checkpoint.read_facts(folder / "best.safetensors")
    assert facts["recipe"]["optim"]["lr"] == 2e-3 and facts["num_classes"] == 10 and facts["res"] == 16
    best = max(r["val_top1"] for r in read_jsonl(folder / "metrics.jsonl"))
    model = trainer.load(folder / "best.safetensors")
    plain = Augment(crop_scale=None, flip=False, mean=tuple(facts["mean"]), std=tuple(facts["std"]))
    with torch.inference_mode():
        right = sum(
            int((model(b.images).argmax(1) == b.labels).sum())
            for b in mlpdata.load(shapes_dir, "val", 200, augment=plain)
        )
    assert right / 1500 == pytest.approx(best)


def test_the_same_recipe_gives_the_same_losses_and_its_own_folder(recipe):
    first, second = go(recipe), go(recipe)
    assert (first.name, second.name) == ("tiny", "tiny-2")
    same = ("train_loss", "train_top1", "val_loss", "val_top1")
    a, b = ([{k: r[k] for k in same} for r in read_jsonl(f / "metrics.jsonl")] for f in (first, second))
    assert a == b
    other = go(recipe, "seed=1")
    assert read_jsonl(other / "metrics.jsonl")[0]["train_loss"] != a[0]["train_loss"]


@pytest.mark.parametrize(("optimizer", "stop_at"), [("adamw", 1), ("lion", 15), ("sgd", 22)])
def test_resume_in_the_middle_changes_nothing(recipe, optimizer, stop_at):
    extra = [f"optim.name={optimizer}", "optim.lr=1e-3", "augment.mixup=0.5", "model.dropout=0.1", "train.epochs=3"]
    whole = go(recipe, *extra, "name=whole")

    def stop(self, batch, original=Trainer.train_step):
        original(self, batch)
        if self.step == stop_at and not self.record.rows[2:]:
            self.stop_signal = signal.SIGINT

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Trainer, "train_step", stop)
        with pytest.raises(Error, match=rf"stopped and saved at epoch \d, step {stop_at}; .*--resume"):
            go(recipe, *extra, "name=cut")
    cut = go(recipe, *extra, "name=cut", resume=True)
    assert cut.name == "cut"
    a, b = (trainer.load(f / "last.safetensors").state_dict() for f in (whole, cut))
    assert all(torch.equal(a[k], b[k]) for k in a)
    same = ("epoch", "step", "train_loss", "train_top1", "val_loss", "val_top1", "lr")
    a, b = ([{k: r[k] for k in same} for r in read_jsonl(f / "metrics.jsonl")] for f in (whole, cut))
    assert a == b


def test_the_curve_is_drawn_as_the_run_goes_and_when_it_is_stopped(recipe, shapes_dir, monkeypatch):
    drawn = []

    def draw(folder, recipe, rows, original=curve.draw_curve):
        drawn.append(len(rows))
        return original(folder, recipe, rows)

    monkeypatch.setattr(curve, "draw_curve", draw)
    clock = [0.0]
    monkeypatch.setattr(record, "time", types.SimpleNamespace(monotonic=lambda: clock[0]))
    folder = cut_short(recipe)
    assert drawn == [1] and (folder / "curve.png").read_bytes()[:4] == b"\x89PNG"
    trainer_record = record.RunRecord(folder, load_recipe(recipe, []), Model(), 16, Manifest.load(shapes_dir))
    trainer_record.rows = read_jsonl(folder / "metrics.jsonl")
    for now, times in ((59.0, 1), (61.0, 2), (100.0, 2), (122.0, 3)):
        clock[0] = now
        trainer_record.draw_in_time()
        assert len(drawn) == times
    trainer_record._drawing_s = 2.0  # two seconds are drawn once in 200
    for now, times in ((300.0, 3), (323.0, 4)):
        clock[0] = now
        trainer_record.draw_in_time()
        assert len(drawn) == times


def kill_and_resume(recipe, kills, epochs):
    """SIGKILL a run at random moments, resume it to its end: every step's loss is that of an undisturbed run."""
    extra = [f"train.epochs={epochs}", "train.batch_size=20", "train.record_steps=true", "augment.mixup=0.5"]
    extra += ["save.every_steps=7", "eval.every=3"]
    whole = go(recipe, *extra, "name=whole")
    code = (
        "import signal, sys; from trainer.train import Trainer, run\n"
        "recipe, runs, last, *overrides = [a for a in sys.argv[1:] if a != '--resume']\n"
        "step = Trainer.train_step\n"
        "def held(self, batch):\n"
        "    step(self, batch)\n"
        "    while self.step >= int(last): signal.pause()  # it waits here to be killed, if it comes so far\n"
        "Trainer.train_step = held\n"
        "run(recipe, overrides, runs=runs, resume='--resume' in sys.argv)\n"
    )
    folder, rng, resume = recipe.parent / "runs" / "killed", random.Random(0), []
    total, killed = epochs * 75, []
    for k in range(kills):
        aim = total * (k + 1) // (kills + 1) + rng.randrange(total // (2 * kills))  # a step to be killed near
        words = [recipe, recipe.parent / "runs", str(aim + 20), *extra, "name=killed", *resume]
        process = subprocess.Popen(
            [sys.executable, "-c", code, *words], stdout=subprocess.DEVNULL, stderr=subprocess.PIPE
        )
        until(lambda aim=aim: any(int(p.stem[6:]) >= aim for p in states.list_states(folder)), process)
        time.sleep(rng.random() * 0.05)  # any moment will do
        process.kill()
        process.wait()
        process.stderr.close()
        killed.append(max(int(p.stem[6:]) for p in states.list_states(folder)))
        resume = ["--resume"]
    assert killed == sorted(set(killed)) and killed[-1] < total
    go(recipe, *extra, "name=killed", resume=True)
    a, b = (read_jsonl(f / "steps.jsonl") for f in (whole, folder))
    assert [r["step"] for r in a] == list(range(1, total + 1)) and a == b
    same = ("epoch", "step", "train_loss", "train_top1")
    a, b = ([{k: r[k] for k in same} for r in read_jsonl(f / "metrics.jsonl")] for f in (whole, folder))
    assert a == b and len(a) == epochs
    assert not list(folder.rglob("*.tmp"))


def test_killed_and_resumed_the_losses_are_those_of_an_undisturbed_run(recipe):
    kill_and_resume(recipe, kills=2, epochs=6)


@pytest.mark.slow
def test_ten_kills_at_random_steps(recipe):
    kill_and_resume(recipe, kills=10, epochs=30)


def test_terminate_saves_and_says_how_to_go_on(recipe):
    process = subprocess.Popen(
        [sys.executable, "-m", "mlpdata.cli", "train", recipe, "--set", "train.epochs=10000"],
        cwd=recipe.parent, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True,
    )  # fmt: skip
    metrics = recipe.parent / "runs" / "tiny" / "metrics.jsonl"
    until(metrics.exists, process)
    process.terminate()
    out, _ = process.communicate(timeout=HANG_S)
    assert process.returncode == 1
    assert "--resume goes on" in out and "Traceback" not in out
    assert states.list_states(metrics.parent)


def test_a_loss_that_is_no_number_stops_the_run(recipe):
    with pytest.raises(Error, match=r"not a finite number from step \d+ on; lower optim.lr"):
        go(recipe, "optim.name=sgd", "optim.lr=1e20", "schedule.warmup_epochs=0")


def test_mistakes(recipe, tmp_path):
    with pytest.raises(Error, match="no shard directory"):
        go(recipe, f"data.shards={tmp_path}/none")
    with pytest.raises(Error, match=r"no split 'nope' in .*; it has train, val"):
        go(recipe, "data.eval_split=nope")
    with pytest.raises(Error, match="augment: crop_scale must be"):
        go(recipe, "augment.crop_scale=[0, 2]")
    with pytest.raises(Error, match="nothing to resume"):
        go(recipe, "name=new", resume=True)
    go(recipe, "train.epochs=1", "name=old")
    with pytest.raises(Error, match=r"started with another optim.lr"):
        go(recipe, "train.epochs=1", "name=old", "optim.lr=1", resume=True)
    assert not list((recipe.parent / "runs").glob("tiny*"))


def test_a_finished_run_can_be_prolonged(recipe):
    go(recipe, "train.epochs=2", "schedule.name=constant")
    longer = go(recipe, "train.epochs=3", "schedule.name=constant", resume=True, force=True)
    assert [r["epoch"] for r in read_jsonl(longer / "metrics.jsonl")] == [1, 2, 3]
    summary = longer / "summary.json"
    before = summary.stat().st_mtime_ns
    go(recipe, "train.epochs=3", "schedule.name=constant", resume=True)
    assert summary.stat().st_mtime_ns == before  # nothing to do
    summary.unlink()  # as if killed after the last step and before the end
    go(recipe, "train.epochs=3", "schedule.name=constant", resume=True)
    assert summary.exists() and len(read_jsonl(longer / "metrics.jsonl")) == 3


def test_a_resume_says_where_it_goes_on_and_what_force_changes(recipe, other_shards, tmp_path, capsys):
    """Other epochs, optimizer and shards need --set and --force; both are named, with the old and the new value."""
    folder, runs = cut_short(recipe), recipe.parent / "runs"
    before = {p.name: p.read_bytes() for p in folder.iterdir()}
    for words, force, message in (
        (
            ["train.epochs=5"],
            False,
            r"another train.epochs \(4, now 5\); .*--resume --force --set train.epochs=5; else",
        ),
        (["optim.lr=1.0"], False, r"another optim.lr \(0.002, now 1.0\); .*--force --set optim.lr=1.0; else"),
        (["optim.lr=1.0", "model.width=32"], True, r"another model.width \(64, now 32\); resume with its own recipe"),
        ([f"data.shards={other_shards / 'pictures'}"], False, r"other data than .*--force --set data.shards=\S+; else"),
        ([f"data.shards={other_shards / 'number'}"], True, r"images 1500, now 1400; .*; give it its own shards back"),
    ):
        with pytest.raises(Error, match=message):
            go(recipe, *SAME, *words, resume=True, force=force)
    recipe.write_text(recipe.read_text().replace("epochs: 4", "epochs: 5"))
    with pytest.raises(Error, match=r"another train.epochs \(4, now 5\)"):  # --set does not name it
        go(recipe, *SAME, resume=True, force=True)
    assert {p.name: p.read_bytes() for p in folder.iterdir()} == before
    with pytest.raises(Error, match="--force goes with --resume"):
        go(recipe, force=True)
    with pytest.raises(
        Error, match=r"has taken 25 steps of 15 an epoch, more than train.epochs=1 asks for: .*least 2$"
    ):
        go(recipe, *SAME, "train.epochs=1", resume=True, force=True)
    assert {p.name: p.read_bytes() for p in folder.iterdir()} == before
    words = ["train.epochs=2", "optim.lr=1e-12", f"data.shards={other_shards / 'pictures'}"]
    run(recipe, [*SAME, *words], resume=True, force=True, runs=runs)
    out = capsys.readouterr().out
    assert "resumed: goes on after step 25 of 30, in epoch 2/2\n" in out
    assert "train.epochs from 4 to 2" in out and "optim.lr from 0.002 to 1e-12" in out
    assert "another set of training files" in out
    assert read_jsonl(folder / "metrics.jsonl")[-1]["lr"] < 1e-12
    words = ["train.epochs=3", "optim.lr=1e-12", "optim.name=sgd", words[-1]]  # other momenta: they begin anew
    go(recipe, *SAME, *words, resume=True, force=True)
    assert [r["step"] for r in read_jsonl(folder / "metrics.jsonl")] == [15, 30, 45]


def test_the_first_ctrl_c_says_that_it_saves_and_the_second_stops_without(recipe, monkeypatch, capfd):
    saved = []

    def train_step(self, batch):
        signal.raise_signal(signal.SIGINT)
        assert "is saved after the step under way; Ctrl-C again stops without saving\n" in capfd.readouterr().err
        assert not states.list_states(self.record.folder)
        saved.append(self.record.folder)
        signal.raise_signal(signal.SIGINT)

    monkeypatch.setattr(Trainer, "train_step", train_step)
    with pytest.raises(KeyboardInterrupt):
        go(recipe)
    assert capfd.readouterr().err.endswith("stopping without saving\n") and not states.list_states(saved[0])


def test_a_small_state_is_saved_each_epoch_and_a_large_one_in_its_time(recipe, monkeypatch):
    folder = go(recipe, "save.keep=9", "train.epochs=3")
    assert [states.step_of(p) for p in states.list_states(folder)] == [15, 30, 45]
    size = states.list_states(folder)[0].stat().st_size
    trained = Trainer(load_recipe(recipe), None, torch.device("cpu"), quiet=True)
    assert size == pytest.approx(state_bytes(trained.recipe, trained.model), rel=0.05)
    monkeypatch.setattr(states, "SMALL_BYTES", 1e6)
    folder = go(recipe, "save.keep=9", "train.epochs=3")
    assert [states.step_of(p) for p in states.list_states(folder)] == [45]


def test_no_loss_is_written_that_is_no_number(recipe):
    """The run stops with the step, and the checkpoint it names is from before."""
    real = Trainer.train_step

    def spoil(self, batch):
        if self.step == 24:
            batch.images[0, 0, 0, 0] = float("nan")
        real(self, batch)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Trainer, "train_step", spoil)
        with pytest.raises(Error, match=r"from step 25 on; .* the last good checkpoint is .*state-000000020.pt"):
            go(recipe, "save.every_steps=10", "save.keep=9")
    for path in states.list_states(recipe.parent / "runs" / "tiny"):
        state = torch.load(path, weights_only=True)
        assert all(torch.isfinite(t).all() for t in state["model"].values()) and state["step"] <= 20


def test_too_little_memory_on_the_gpu_is_an_error_with_a_way_out(recipe, monkeypatch):
    def full(self, batch):
        raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2 GiB.\nmore")

    monkeypatch.setattr(Trainer, "train_step", full)
    with pytest.raises(Error, match=r"raise train.accumulate, .* \(CUDA out of memory"):
        go(recipe)


def test_a_checkpoint_is_written_every_so_many_minutes(recipe):
    folder = go(recipe, "save.every_minutes=1e-9", "save.keep=100", "train.epochs=2")
    assert len(states.list_states(folder)) == 30


def test_accumulated_pieces_make_the_same_step(recipe):
    whole = go(recipe, "train.record_steps=true", "augment.mixup=0.5", "train.epochs=1")
    cut = go(recipe, "train.record_steps=true", "augment.mixup=0.5", "train.epochs=1", "train.accumulate=5")
    a, b = ([r["loss"] for r in read_jsonl(f / "steps.jsonl")] for f in (whole, cut))
    assert len(a) == 15 and b == pytest.approx(a, rel=1e-4)


@pytest.mark.parametrize("extra", [["train.precision=bf16"], ["train.clip_norm=0.1"], ["augment.mixup=0.2"]])
def test_ways_to_train_learn(recipe, extra):
    rows = read_jsonl(go(recipe, *extra, "train.epochs=5") / "metrics.jsonl")
    assert rows[-1]["train_loss"] < rows[0]["train_loss"] - 0.05


@pytest.mark.slow
def test_compiled_takes_the_same_steps(recipe):
    a, b = (
        [r["loss"] for r in read_jsonl(go(recipe, *x, "train.record_steps=true", "train.epochs=2") / "steps.jsonl")]
        for x in ([], ["train.compile=true"])
    )
    assert b == pytest.approx(a, rel=1e-3)


def test_the_average_of_the_weights_is_what_is_evaluated_and_saved(recipe):
    folder = go(recipe, "train.ema=0.9", "train.epochs=2", "save.every_steps=17")
    state = states.load_state(folder)
    saved = trainer.load(folder / "last.safetensors").state_dict()
    assert all(torch.equal(saved[k], state["average"][k]) for k in saved)
    assert not torch.equal(saved["linear_in.weight"], state["model"]["linear_in.weight"])


def test_the_average_is_that_of_the_formula():
    model = torch.nn.Linear(1, 1, bias=False)
    average, seen = WeightAverage(model, 0.8), []
    for step in range(1, 21):
        model.weight.data.fill_(float(step))
        average.update(step)
        seen.append(float(average.model.weight))
    assert seen[:5] == pytest.approx([1.0, 1.5, 2.0, 2.5, 3.0])  # the mean so far
    for k in range(5, 20):
        assert seen[k] == pytest.approx(0.8 * seen[k - 1] + 0.2 * (k + 1))


# ----------------------------------------------------------------------------------- resume, and what may go wrong


def stop_at(patch, step):
    """Ask every trainer to stop after a step, as a signal does."""
    original = Trainer.train_step

    def stop(self, batch):
        original(self, batch)
        self.stop_signal = self.step == step or None

    patch.setattr(Trainer, "train_step", stop)


def cut_short(recipe, *words, step=25):
    """A run that was stopped after a step, with states of step 20 and of the first epoch's end, 15, before it."""
    with pytest.MonkeyPatch.context() as patch:
        stop_at(patch, step)
        with pytest.raises(Error, match="stopped and saved"):
            go(recipe, "train.record_steps=true", "save.every_steps=10", "save.keep=3", *words)
    return recipe.parent / "runs" / "tiny"


SAME = ["train.record_steps=true", "save.every_steps=10", "save.keep=3"]


@pytest.fixture(scope="module")
def whole(tmp_path_factory, shapes_dir):
    """The directory of an undisturbed run of two epochs."""
    path = tmp_path_factory.mktemp("whole") / "tiny.yaml"
    path.write_text(RECIPE.format(shards=shapes_dir))
    return go(path, *SAME, "train.epochs=2")


def losses(folder):
    return [(r["step"], r["loss"]) for r in read_jsonl(folder / "steps.jsonl")]


def test_any_flipped_bit_of_a_state_is_found_and_the_state_before_taken(recipe, whole):
    folder = cut_short(recipe, "train.epochs=2")
    last = states.list_states(folder)[-1]
    data, rng = last.read_bytes(), random.Random(0)
    for at in [*rng.sample(range(len(data)), 40), len(data) - 1, len(data) - states.DIGEST_BYTES - 1]:
        flipped = bytearray(data)
        flipped[at] ^= 1 << rng.randrange(8)
        last.write_bytes(flipped)
        said = []
        assert states.load_state(folder, said.append)["step"] == 20, at
        assert len(said) == 1 and "state-000000025.pt cannot be read" in said[0] and "state before" in said[0]
    assert losses(go(recipe, *SAME, "train.epochs=2", resume=True)) == losses(whole)
    assert torch.load(states.list_states(folder)[-1], weights_only=True)["step"] == 30  # as torch reads any file
    assert [states.step_of(p) for p in states.list_states(folder)] == [15, 20, 30]


@pytest.mark.parametrize(
    "what", ["cut", "empty", "zeros", "another version", "a list", "no file of ours", "a directory"]
)
def test_a_state_that_cannot_be_read_is_left_for_the_one_before(recipe, what):
    folder = cut_short(recipe)
    last = states.list_states(folder)[-1]
    data = last.read_bytes()
    if what == "another version":
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(states, "STATE_VERSION", 1)
            states.save_state(folder, 25, {"step": 25}, keep=3)
    elif what in ("a list", "no file of ours"):
        torch.save([1], last)
        if what == "a list":
            last.write_bytes(last.read_bytes() + hashlib.sha256(last.read_bytes()).hexdigest().encode())
    elif what == "a directory":
        last.unlink()
        last.mkdir()
    else:
        last.write_bytes({"cut": data[:-100], "empty": b"", "zeros": bytes(len(data))}[what])
    said = []
    assert states.load_state(folder, said.append)["step"] == 20 and len(said) == 1 and "\n" not in said[0]
    for path in states.list_states(folder)[:-1]:
        path.write_bytes(b"")
    with pytest.raises(Error, match=r"nothing to resume: .*state-000000015.pt cannot be read") as caught:
        go(recipe, *SAME, resume=True)
    assert "\n" not in str(caught.value)


def test_records_are_written_anew_from_the_state(recipe, whole):
    """Torn, damaged and later lines of metrics.jsonl and steps.jsonl leave no trace; lost steps are said."""
    folder = cut_short(recipe, "train.epochs=2")
    with open(folder / "steps.jsonl", "a") as f:
        f.write('{"step": 26, "loss": 5.0}\n{"step": 27, "lo')
    (folder / "metrics.jsonl").write_bytes(b'\xff[[[\n{"epoch": 7}\n{"epo')
    go(recipe, *SAME, "train.epochs=2", resume=True)
    assert losses(folder) == losses(whole)
    same = ("epoch", "step", "train_loss", "val_top1")
    a, b = ([{k: r[k] for k in same} for r in read_jsonl(f / "metrics.jsonl")] for f in (whole, folder))
    assert a == b
    for damage in (b"[" * 100_000 + b"}\n", b"5}\n", b"\xff}\n", b'{"step": "x"}\n'):
        (folder / "steps.jsonl").write_bytes(b'{"step": 1, "loss": 2.0}\n' + damage + b'{"step": 3, "loss": 2.0}\n')
        said = []
        report.cut_steps(folder, 9, said.append)
        assert losses(folder) == [(1, 2.0)] and "lacks the losses of step 2 up to step 9" in said[0]
    (folder / "steps.jsonl").unlink()
    report.cut_steps(folder, 9, said.append)
    assert "lacks the losses of step 1 up to step 9" in said[1]


def test_a_stop_at_an_epochs_last_step_loses_nothing(recipe, whole):
    for step in (15, 30):
        folder = cut_short(recipe, "train.epochs=2", step=step)
        go(recipe, *SAME, "train.epochs=2", resume=True)
        same = ("epoch", "step", "train_loss", "train_top1", "val_loss", "val_top1")
        a, b = ([{k: r[k] for k in same} for r in read_jsonl(f / "metrics.jsonl")] for f in (whole, folder))
        assert a == b and losses(folder) == losses(whole)
        shutil.rmtree(folder)


@pytest.fixture(scope="module")
def other_shards(tmp_path_factory, shapes_dir):
    """{what is other: a shard directory}: pictures, number of them, resolution, order of the classes, no val."""
    base = tmp_path_factory.mktemp("other")
    options = {"dataset": "shapes", "format": "beton", "workers": 1}
    convert_quietly(**options, res=16, limit=1500, seed=5, out=base / "pictures")
    convert_quietly(**options, res=16, limit=1400, out=base / "number")
    convert_quietly(**options, res=8, limit=1500, out=base / "resolution")
    shutil.copytree(shapes_dir, base / "classes")
    names = (base / "classes" / "classes.txt").read_bytes().splitlines(True)
    text = b"".join([names[1], names[0], *names[2:]])
    (base / "classes" / "classes.txt").write_bytes(text)
    change_manifest(base / "classes", classes_sha256=hashlib.sha256(text).hexdigest())
    shutil.copytree(shapes_dir, base / "no val")
    train = json.loads((shapes_dir / "manifest.json").read_text())["splits"]["train"]
    change_manifest(base / "no val", splits={"train": train})
    return base


@pytest.mark.parametrize(
    ("other", "message"),
    [
        ("pictures", "another set of training files; another set of held-out files"),
        ("number", "training images 1500, now 1400"),
        ("resolution", "resolution 16, now 8"),
        ("classes", "another list of classes;"),
        ("no val", "held-out split val, now None"),
    ],
)
def test_resume_refuses_other_shards(recipe, other_shards, other, message):
    folder = cut_short(recipe)
    before = {p.name: p.read_bytes() for p in folder.iterdir()}
    with pytest.raises(
        Error, match=rf"tiny was trained on other data than .*: .*{message}.*without --resume"
    ) as caught:
        go(recipe, *SAME, f"data.shards={other_shards / other}", resume=True)
    assert "\n" not in str(caught.value)
    assert {p.name: p.read_bytes() for p in folder.iterdir()} == before


def test_the_same_shards_elsewhere_are_gone_on_with(recipe, shapes_dir, tmp_path):
    cut_short(recipe)
    shutil.copytree(shapes_dir, tmp_path / "moved")
    folder = go(recipe, *SAME, f"data.shards={tmp_path / 'moved'}", resume=True)
    assert len(losses(folder)) == 60


def test_one_trainer_in_a_directory(recipe):
    """A second --resume is refused while one is at work; a second new run gets a directory of its own."""
    cut_short(recipe)
    original, seen = Trainer.train_step, []

    def train_step(self, batch):
        if not seen:
            seen.append(None)
            with pytest.raises(Error, match=r"another trainer is at work in .*/tiny: wait for it"):
                go(recipe, *SAME, resume=True)
            seen.append(go(recipe, "train.epochs=1").name)
        original(self, batch)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Trainer, "train_step", train_step)
        go(recipe, *SAME, resume=True)
    assert seen[1] == "tiny-2"
    assert not list((recipe.parent / "runs").rglob(run_directory.LOCK))
    assert {p.name for p in (recipe.parent / "runs").iterdir()} == {"tiny", "tiny-2"}


def test_runs_are_numbered_on_and_the_last_is_gone_on_with(tmp_path):
    for name in ("x", "x-3", "x-1", "x-03", "x-y", "xx-9"):
        (tmp_path / name).mkdir()
    folder, release = run_directory.reopen(tmp_path, "x")
    release()
    assert folder.name == "x-3" and not folder.exists()  # nothing was in it
    (tmp_path / "x-3").mkdir()
    assert run_directory.create(tmp_path, "x")[0].name == "x-4" and run_directory.create(tmp_path, "z")[0].name == "z"
    with pytest.raises(Error, match="nothing to resume: there is no run"):
        run_directory.reopen(tmp_path, "w")
    (tmp_path / "file").write_text("")
    with pytest.raises(Error, match=r"cannot make the folder .*file is a file"):
        run_directory.create(tmp_path / "file", "x")
    with pytest.raises(Error, match="file is no directory"):
        run_directory.reopen(tmp_path, "file")


# -------------------------------------------------------------------------------------------- nothing that is held out


def test_without_a_held_out_split_it_trains_with_one_warning(recipe, other_shards, capsys, tmp_path):
    folder = run(recipe, [f"data.shards={other_shards / 'no val'}", "train.epochs=2"], runs=tmp_path / "runs")
    out = capsys.readouterr().out
    assert out.count("warning:") == 1 and "no held-out images, only train: nothing is evaluated" in out
    assert "nothing held out" in out.splitlines()[-1]
    rows = read_jsonl(folder / "metrics.jsonl")
    assert len(rows) == 2 and not [k for r in rows for k in r if k.startswith("val")]
    assert json.loads((folder / "summary.json").read_text())["best_val_top1"] is None
    assert (folder / "curve.png").read_bytes()[:4] == b"\x89PNG"
    a, b = (trainer.load(folder / name).state_dict() for name in ("best.safetensors", "last.safetensors"))
    assert all(torch.equal(a[k], b[k]) for k in a)
    words = [f"data.shards={other_shards / 'no val'}", "train.epochs=3", "schedule.name=cosine"]
    more = go(recipe, *words, resume=True, force=True)
    assert len(read_jsonl(more / "metrics.jsonl")) == 3


def test_held_out_splits_that_were_asked_for_and_are_not_there(recipe, other_shards, capsys):
    with pytest.raises(Error, match=r"no split 'mine' in .*; it has train"):
        go(recipe, f"data.shards={other_shards / 'no val'}", "data.eval_split=mine")
    run(recipe, ["data.train_split=val", "train.epochs=1"], runs=recipe.parent / "runs")
    assert "warning: the accuracy will be that on val, the images trained on" in capsys.readouterr().out


EMPTY = {"num_samples": 0, "class_counts": [0] * 10, "tars": [], "tar_lengths": []}


def test_splits_too_small(recipe, tmp_path, shapes_dir):
    shutil.copytree(shapes_dir, tmp_path / "s")
    splits = json.loads((shapes_dir / "manifest.json").read_text())["splits"]
    change_manifest(tmp_path / "s", splits={**splits, "train": {**splits["train"], **EMPTY}})
    with pytest.raises(Error, match=r"split 'train' of .* has no images"):
        go(recipe, f"data.shards={tmp_path / 's'}")
    with pytest.raises(Error, match=r"1,500 images, fewer than one batch of 5000; lower train.batch_size"):
        go(recipe, "train.batch_size=5000")


def test_images_of_several_sizes_are_one_line(recipe, tmp_path):
    from conftest import make_folder

    make_folder(tmp_path / "in", per_class=8)
    convert_quietly(
        dataset="folder", source=str(tmp_path / "in"), res=16, resize="longest", out=tmp_path / "out", workers=1
    )
    with pytest.raises(Error) as caught:
        go(recipe, f"data.shards={tmp_path / 'out'}", "train.batch_size=8")
    assert "--resize" in str(caught.value) and "\n" not in str(caught.value)


# ------------------------------------------------------------------------------------ files that cannot be written


@pytest.mark.parametrize(
    "name",
    ["metrics.jsonl", "steps.jsonl", "last.safetensors", "best.safetensors", "curve.png", "summary.json", "state"],
)
def test_a_full_disk_is_one_line_and_the_run_goes_on_later(recipe, whole, name):
    replace = os.replace

    def full(tmp, path):
        if path.name.startswith(name) and step() > 10:
            raise OSError(28, "No space left on device")
        return replace(tmp, path)

    def step():
        return max(map(states.step_of, states.list_states(recipe.parent / "runs" / "tiny")), default=0)

    def append(*args, original=report.append_steps):
        if name == "steps.jsonl" and step() > 10:
            with run_directory.write_errors(args[0] / name):
                raise OSError(28, "No space left on device")
        return original(*args)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(os, "replace", full)
        patch.setattr(report, "append_steps", append)
        with pytest.raises(Error, match=rf"cannot write .*/{name}.*: No space left.*--resume goes on") as caught:
            go(recipe, *SAME, "train.epochs=2")
    assert "\n" not in str(caught.value)
    folder = recipe.parent / "runs" / "tiny"
    assert not list(folder.glob("*.tmp"))
    (folder / "metrics.jsonl.tmp").write_text("half")  # of a trainer that was killed
    assert losses(go(recipe, *SAME, "train.epochs=2", resume=True)) == losses(whole)
    assert not list(folder.glob("*.tmp"))


def test_a_run_directory_that_vanishes_is_one_line(recipe, monkeypatch):
    original = Trainer.train_step

    def train_step(self, batch):
        original(self, batch)
        if self.step == 12:
            shutil.rmtree(self.record.folder)

    monkeypatch.setattr(Trainer, "train_step", train_step)
    with pytest.raises(Error, match=r"cannot write .*/tiny/.*: No such file or directory"):
        go(recipe)


@pytest.mark.parametrize("after", [0, 1])
def test_a_standard_output_that_takes_no_more_is_one_line(recipe, after):
    """Before the first checkpoint and behind it; what the interpreter still holds is let go."""
    code = (
        "import os, sys\nfrom mlpdata.errors import Error\nfrom trainer import report, train\n"
        "saved = train.Trainer.save\n"
        "full = lambda: os.dup2(os.open('/dev/full', os.O_WRONLY), 1)\n"
        "train.Trainer.save = lambda self: (saved(self), full())\n"
        "if sys.argv[2] == '0': full()\n"
        "try: train.run(sys.argv[1], ['save.every_steps=10'])\n"
        "except Error as e: print(e, file=sys.stderr)\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", code, recipe, str(after)], cwd=recipe.parent, capture_output=True, text=True, check=False
    )
    how = "the same command with --resume goes on" if after else "start it again"
    wanted = f"cannot write to standard output: No space left on device; when that is mended, {how}\n"
    assert (done.returncode, without_progress(done.stderr)) == (0, wanted)


def test_training_goes_on_when_the_reader_of_its_lines_went_away(recipe):
    reader, writer = os.pipe()
    os.close(reader)
    command = [sys.executable, "-m", "mlpdata", "train", recipe, "--set", "train.epochs=1"]
    done = subprocess.run(command, stdout=writer, stderr=subprocess.PIPE, cwd=recipe.parent, check=False)
    os.close(writer)
    assert done.returncode == 0 and b"error" not in done.stderr
    assert (recipe.parent / "runs" / "tiny" / "summary.json").exists()


def test_a_name_that_looks_like_a_formula_is_drawn_as_it_is(recipe):
    assert (go(recipe, "name=a$b^{$", "train.epochs=1") / "curve.png").exists()


def test_a_held_out_loss_that_is_no_number_stops_the_run(recipe, monkeypatch):
    original = Trainer._evaluate

    def spoil(self, row):
        with torch.no_grad():
            self.model.linear_out.bias[0] = float("nan")
        original(self, row)

    monkeypatch.setattr(Trainer, "_evaluate", spoil)
    with pytest.raises(Error, match=r"held-out loss of epoch 1 is no finite number; lower optim.lr; there is no"):
        go(recipe)


def test_a_model_that_does_not_fit_the_memory_is_refused_before_it_is_made(recipe):
    with pytest.raises(Error, match=r"the model has [\d,]+ parameters, whose training takes at least .* lower model"):
        go(recipe, "model.width=1000000")


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGHUP])
def test_terminate_ends_a_background_job_of_a_script(recipe, number):
    """There SIGINT is ignored: SIGTERM still saves, and says how to go on. So does the end of a terminal."""
    process = subprocess.Popen(
        [sys.executable, "-m", "trainer", recipe, "--set", "train.epochs=100000"],
        cwd=recipe.parent, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_IGN),
    )  # fmt: skip
    metrics = recipe.parent / "runs" / "tiny" / "metrics.jsonl"
    until(metrics.exists, process)
    process.send_signal(signal.SIGINT)  # another's Ctrl-C
    process.send_signal(number)
    _, err = process.communicate(timeout=HANG_S)
    assert process.returncode == 1 and "stopped and saved" in err and "--resume goes on" in err
    assert states.list_states(metrics.parent)


# ---------------------------------------------------------------------------------------------- from a checkpoint


@pytest.fixture
def pretrained(recipe):
    return go(recipe, "name=pretrained", "train.epochs=3") / "best.safetensors"


def test_fine_tuning_starts_from_the_body(recipe, pretrained, photos_dir):
    folder = go(
        recipe, f"init={pretrained}", f"data.shards={photos_dir}", "augment.res=16", "train.epochs=1",
        "train.batch_size=30", "optim.name=sgd", "optim.lr=1e-12", "optim.head_lr=0.1", "model.depth=6",
        "model.width=512", "name=tuned",
    )  # fmt: skip
    old, new = trainer.load(pretrained).state_dict(), trainer.load(folder / "last.safetensors").state_dict()
    assert new["linear_out.weight"].shape == (3, 64)  # other classes: another head
    assert torch.allclose(old["linear_in.weight"], new["linear_in.weight"], atol=1e-6)
    started = trainer.build("B_2-Wi_64", 16, 3, seed=0).state_dict()["linear_out.weight"]
    assert not torch.allclose(started, new["linear_out.weight"], atol=1e-4)


def test_the_same_classes_keep_their_head_and_a_resume_does_not_need_the_checkpoint(recipe, pretrained):
    words = [f"init={pretrained}", "name=again", "model.depth=6", "model.width=512", "optim.lr=1e-12"]
    folder = go(recipe, *words, "train.epochs=1")
    rows = read_jsonl(folder / "metrics.jsonl")
    facts = checkpoint.read_facts(pretrained)
    assert rows[0]["val_top1"] == pytest.approx(facts["metrics"]["val_top1"])
    assert checkpoint.read_facts(folder / "last.safetensors")["recipe"]["model"]["width"] == 64
    pretrained.unlink()
    assert go(recipe, *words, "train.epochs=2", resume=True, force=True) == folder


def test_init_that_does_not_fit(recipe, pretrained):
    for words, message in (
        ([], "model differs from that of"),  # the recipe has a section of its own
        (["model.depth=6", "model.width=512", "augment.res=32"], "takes 16 px, this recipe gives 32; set augment.res"),
    ):
        with pytest.raises(Error, match=message):
            go(recipe, f"init={pretrained}", "model.depth=3", *words)


def test_a_probe_trains_the_head_alone_and_computes_features_once(recipe, pretrained):
    words = [f"init={pretrained}", "model.depth=6", "model.width=512", "train.probe=true", "train.epochs=3"]
    words += ["train.record_steps=true", "optim.name=lion", "optim.lr=1e-3"]
    off = ["augment.crop_scale=null", "augment.flip=false"]
    calls = []
    with pytest.MonkeyPatch.context() as patch:
        features = BMLP.features
        patch.setattr(BMLP, "features", lambda self, x: calls.append(len(x)) or features(self, x))
        cached = go(recipe, *words, *off, "name=cached")
        assert sum(calls) == 3000  # each image of both splits once
        calls.clear()
        patch.setattr("mlpdata.augment.settings.Augmentation.random", lambda self: True)
        fresh = go(recipe, *words, *off, "name=fresh")
        assert sum(calls) > 3 * 3000
    a, b = ([r["loss"] for r in read_jsonl(f / "steps.jsonl")] for f in (fresh, cached))
    assert b == pytest.approx(a, rel=1e-4) and a[-1] < a[0]
    old, new = trainer.load(pretrained).state_dict(), trainer.load(cached / "last.safetensors").state_dict()
    assert [k for k in old if not torch.equal(old[k], new[k])] == ["linear_out.weight", "linear_out.bias"]


def test_a_probe_resumes_in_the_middle(recipe, pretrained):
    words = [f"init={pretrained}", "model.depth=6", "model.width=512", "train.probe=true", "augment.crop_scale=null"]
    words += ["augment.flip=false", "train.record_steps=true", "train.epochs=2"]
    whole = go(recipe, *words, "name=whole")
    with pytest.MonkeyPatch.context() as patch:
        step = Trainer.train_step
        patch.setattr(
            Trainer,
            "train_step",
            lambda self, b: (step(self, b), setattr(self, "stop_signal", self.step == 20 or None)),
        )
        with pytest.raises(Error, match="stopped and saved"):
            go(recipe, *words, "name=cut")
    cut = go(recipe, *words, "name=cut", resume=True)
    assert read_jsonl(whole / "steps.jsonl") == read_jsonl(cut / "steps.jsonl")


# ---------------------------------------------------------------------------------------------------- seeing it


def test_event_files_hold_the_curve(recipe):
    pytest.importorskip("tensorboard", reason="tensorboard is not installed")
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    folder = go(recipe, "log.tensorboard=true", "train.epochs=2")
    events = EventAccumulator(str(folder / "tensorboard")).Reload()
    rows = read_jsonl(folder / "metrics.jsonl")
    for tag, key in (("train/loss", "train_loss"), ("val/top1", "val_top1")):
        found = [(e.step, e.value) for e in events.Scalars(tag)]
        assert found == [(r["step"], pytest.approx(r[key], rel=1e-5)) for r in rows]


def test_weights_and_biases_where_installed_and_asked_for(recipe, monkeypatch):
    if importlib.util.find_spec("wandb") is None:
        with pytest.raises(Error, match=r"log\.wandb needs wandb: pip install wandb"):
            go(recipe, "log.wandb=true", "train.epochs=1")
    logged = []
    fake = types.ModuleType("wandb")
    fake.__spec__ = importlib.machinery.ModuleSpec("wandb", None)
    fake.init = lambda **options: types.SimpleNamespace(
        log=lambda row, step: logged.append((step, row["val_top1"])), finish=lambda: logged.append(options["project"])
    )
    monkeypatch.setitem(sys.modules, "wandb", fake)
    go(recipe, "log.wandb=true", "train.epochs=2")
    assert [x[0] for x in logged[:2]] == [15, 30] and logged[2] == "mlpdata"


@pytest.mark.parametrize(
    ("columns", "shown"),
    [
        (40, "epoch 2/20  57/97  loss 2.3742"),
        (80, "epoch 2/20  57/97  loss 2.3742  train 8.50%  1,699 images/s  7:02 min left"),
        (12, "epoch 2/20"),
        (6, "epoch"),
    ],
)
def test_the_live_line_never_scrolls_and_cuts_no_number(monkeypatch, columns, shown):
    terminal = io.StringIO()
    terminal.isatty = lambda: True
    monkeypatch.setattr(sys, "stderr", terminal)
    monkeypatch.setenv("COLUMNS", str(columns))
    report.EpochLine().show(
        "epoch 2/20  57/97  loss 2.3742  train 8.50%  1,699 images/s  7:02 min left  wait 0.0%  MFU 41.0%"
    )
    assert terminal.getvalue() == f"\r\x1b[2K{shown}"


def test_the_time_left_follows_from_the_steps_of_this_process(monkeypatch):
    now = [100.0]
    monkeypatch.setattr(report, "time", types.SimpleNamespace(monotonic=lambda: now[0]))
    resumed = report.TimeLeft(step=40, total_steps=100)
    assert resumed.text(40) == ""
    now[0] += 20
    assert resumed.text(50) == "  1:40 min left"
    assert resumed.text(100) == ""


def test_lines_of_training_say_steps_accuracies_and_time_left(recipe, capsys, monkeypatch):
    monkeypatch.setattr(report.EpochLine, "PLAIN_EVERY_S", math.inf)  # else a slow machine shows more of them
    run(recipe, ["train.epochs=2"], runs=recipe.parent / "runs")
    first, second = (line for line in capsys.readouterr().out.splitlines() if line.startswith("epoch "))
    number = r"\d[\d,.:]*"
    shape = rf"epoch 1/2  (\d+)/\1  loss {number}  train {number}%  val {number}% top-5 {number}%  {number} images/s"
    assert re.match(rf"{shape}  {number} (s|min|h) left  wait {number}%", first)
    assert " left" not in second


def test_a_profile_says_what_data_costs_and_leaves_nothing(recipe, capsys):
    with pytest.MonkeyPatch.context() as patch:
        measure = saturation.measure
        patch.setattr(saturation, "measure", lambda *args: measure(*args[:-1], 0.1))
        assert run(recipe, runs=recipe.parent / "runs", profile=True) is None
    out = capsys.readouterr().out
    assert "saturation" in out and "one fixed batch" in out and "loader alone" in out
    assert not (recipe.parent / "runs").exists()


def test_waiting_for_data_is_seen(recipe, monkeypatch):
    """A loader that takes twice the time of a step, by a clock that only these two move: saturation is a third."""
    trainer_ = Trainer(load_recipe(recipe), recipe.parent, torch.device("cpu"), quiet=True)

    now = [0.0]

    class Slow(Loader):
        def __iter__(self):
            for batch in super().__iter__():
                now[0] += 0.1
                yield batch

    trainer_.train_loader.__class__ = Slow
    monkeypatch.setattr(saturation, "time", types.SimpleNamespace(perf_counter=lambda: now[0]))
    monkeypatch.setattr(trainer_, "train_step", lambda batch: now.__setitem__(0, now[0] + 0.05))
    measured = trainer_.measure_saturation(0.1)
    assert measured.saturation == pytest.approx(1 / 3)
    assert (measured.pixels, measured.fixed) == (pytest.approx(1000), pytest.approx(2000))
    assert measured.seconds == pytest.approx(1.0)
    for seconds, is_rough in ((0.31, True), (2.1, False)):
        texts = (m := dataclasses.replace(measured, seconds=seconds)).sentence(), "\n".join(m.table())
        doubt = "measured for only 0.31 s and is not reliable: single turns are between 0.33"
        assert all((doubt in text) == is_rough for text in texts)


@pytest.mark.parametrize(
    ("ratio", "shards", "is_disturbed"), [(0.995, 990, False), (0.5, 500, False), (1.37, 1000, True), (0.99, 700, True)]
)
def test_a_saturation_that_cannot_be_is_not_called_reliable(ratio, shards, is_disturbed):
    """Of one above 1, or far from the ratio of the speeds beside it, something else had its part."""
    speeds = {"shards": shards, "fixed": 1000, "loader": 5000, "pixels": 9000}
    spread = {"saturation": ratio, "saturation_min": 0.4, "saturation_max": 2.2, "wait_share": 0.0}
    measured = saturation.Saturation(**speeds, **spread, turns=20, seconds=3.0)
    disturbed = "because other work disturbed its measurement: single turns are between 0.40 and 2.20"
    assert (disturbed in measured.sentence()) == (disturbed in "\n".join(measured.table())) == is_disturbed


def test_states_are_replaced_in_one_piece_and_the_last_ones_kept(tmp_path, monkeypatch):
    for step in range(5):
        states.save_state(tmp_path, step, {"step": step}, keep=3)
    assert [p.name for p in states.list_states(tmp_path)] == [f"state-00000000{k}.pt" for k in (2, 3, 4)]
    monkeypatch.setattr(os, "replace", lambda *_: (_ for _ in ()).throw(KeyboardInterrupt))
    with pytest.raises(KeyboardInterrupt):
        states.save_state(tmp_path, 4, {"step": 99}, keep=3)
    assert states.load_state(tmp_path) == {"step": 4}
    said = []
    states.state_path(tmp_path, 4).write_bytes(b"x" * 50)
    assert states.load_state(tmp_path, said.append) == {"step": 3}
    assert len(said) == 1 and "state-000000004.pt cannot be read" in said[0]
    for path in states.list_states(tmp_path):
        path.write_bytes(b"")
    with pytest.raises(Error, match=r"nothing to resume: .* cannot be read"):
        states.load_state(tmp_path, said.append)


# ----------------------------------------------------------------------------------------------------------- parts


def test_lion_follows_its_paper():
    """Chen et al. 2023, algorithm 2."""
    model = torch.nn.Linear(3, 2)
    optimizer = make_optimizer(model, Optim(name="lion", lr=0.01, weight_decay=0.1))
    weight = model.weight.detach().clone()
    momentum = torch.zeros_like(weight)
    for step in range(5):
        gradient = torch.randn(2, 3, generator=torch.Generator().manual_seed(step))
        model.weight.grad, model.bias.grad = gradient.clone(), torch.zeros(2)
        optimizer.step()
        update = torch.sign(0.9 * momentum + 0.1 * gradient)
        weight = weight - 0.01 * (update + 0.1 * weight)
        momentum = 0.99 * momentum + 0.01 * gradient
        assert torch.allclose(model.weight, weight, atol=1e-6)


def test_weight_decay_spares_vectors():
    model = trainer.build("B_1-Wi_8", 4, 5, seed=0)
    groups = make_optimizer(model, Optim(name="adamw", weight_decay=0.1)).param_groups
    for group in groups:
        assert {p.ndim for p in group["params"]} == ({2} if group["weight_decay"] else {1})
    assert sum(len(g["params"]) for g in groups) == len(list(model.parameters()))


def test_head_and_body_have_rates_of_their_own():
    model = trainer.build("B_1-Wi_8", 4, 5, seed=0)
    optimizer = make_optimizer(model, Optim(name="sgd", lr=0.001, head_lr=0.01, weight_decay=0.1))
    set_lr(optimizer, 0.5)
    rate = {id(p): (g["lr"], g["weight_decay"]) for g in optimizer.param_groups for p in g["params"]}
    assert rate[id(model.linear_out.weight)] == (0.005, 0.1) and rate[id(model.linear_out.bias)] == (0.005, 0.0)
    assert rate[id(model.linear_in.weight)] == (0.0005, 0.1) and len(rate) == len(list(model.parameters()))
    with torch.no_grad():
        before = model.linear_in.weight.clone()
        for p in model.parameters():
            p.grad = torch.zeros_like(p)
    optimizer.step()
    assert torch.allclose(model.linear_in.weight, before * (1 - 0.0005 * 0.1))  # weight decay is not ignored


def test_schedules():
    constant = Schedule(name="constant", warmup_epochs=2)
    assert [lr_factor(constant, s, 100, 2) for s in (0, 1, 3, 4, 99)] == [0.2, 0.4, 0.8, 1.0, 1.0]
    cosine = Schedule(name="cosine")
    assert lr_factor(cosine, 0, 100, 10) == 1.0
    assert lr_factor(cosine, 50, 100, 10) == pytest.approx(0.5)
    assert lr_factor(Schedule(name="linear"), 75, 100, 10) == 0.25
    assert lr_factor(cosine, 99, 100, 10) == pytest.approx(0.5 * (1 + math.cos(math.pi * 0.99)))


def test_without_a_terminal_an_epoch_prints_plain_lines(monkeypatch, capsys):
    monkeypatch.setattr(report.EpochLine, "PLAIN_EVERY_S", 0.0, raising=False)
    line = report.EpochLine()
    assert line.due()
    line.show("epoch 1/2  step 3")
    out, err = capsys.readouterr()
    assert "epoch 1/2  step 3\n" in out + err and "\x1b" not in out + err
    assert not report.EpochLine(quiet=True).due()


def test_the_live_rate_counts_the_time_before_a_save_too(recipe, monkeypatch):
    """By a clock that moves a second when it is read: at most a batch of 100 a second, saved after each step or not."""
    now, rates = itertools.count(1.0), []
    monkeypatch.setattr(loop, "time", types.SimpleNamespace(perf_counter=lambda: next(now), monotonic=float))
    monkeypatch.setattr(report.EpochLine, "due", lambda line: True)
    monkeypatch.setattr(
        report.EpochLine, "show", lambda line, text: rates.append(int(text.split(" images/s")[0].split()[-1]))
    )
    run(recipe, ["train.epochs=1", "save.every_steps=1"], runs=recipe.parent / "runs")
    assert len(rates) == 15 and 0 < min(rates) <= max(rates) <= 100


def test_tf32_ends_with_the_training(recipe, tmp_path):
    assert torch.get_float32_matmul_precision() == "highest"
    seen = []
    with pytest.MonkeyPatch.context() as patch:
        for name in ("fit", "_run_epoch"):
            function = getattr(Trainer, name)

            def noting(self, *args, function=function, **options):
                seen.append(torch.get_float32_matmul_precision())
                return function(self, *args, **options)

            patch.setattr(Trainer, name, noting)
        words = ["train.precision=tf32", "train.epochs=1"]
        folder = run(recipe, words, runs=tmp_path / "runs", quiet=True)
        assert set(seen) == {"high"} and torch.get_float32_matmul_precision() == "highest"
        patch.setattr(Trainer, "fit", lambda self: 1 / 0)
        with pytest.raises(ZeroDivisionError):
            run(recipe, words, runs=tmp_path / "runs", quiet=True)
    assert torch.get_float32_matmul_precision() == "highest"
    evaluate.run(evaluate.EvalOptions(checkpoint=folder, precision="tf32", device="cpu"))
    assert torch.get_float32_matmul_precision() == "highest"
    with evaluate.autocast_of(torch.device("cpu"), "tf32")():
        assert torch.get_float32_matmul_precision() == "high"
    assert torch.get_float32_matmul_precision() == "highest"
