"""Train a recipe: one flat loop that never waits for the device inside a step.

The sequence of batches, augmentations and losses follows from the recipe; `--resume` goes on in the middle of an epoch
with the very next batch.
"""

from __future__ import annotations

import contextlib
import signal
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
import yaml
from torch import nn

from mlpdata.augment import Augment
from mlpdata.loader import Loader, load
from mlpdata.manifest import Error, write_atomic
from trainer import checkpoint, report
from trainer.evaluate import evaluate
from trainer.model import build, forward_flops, num_parameters
from trainer.optim import lr_factor, make_optimizer, set_lr
from trainer.recipe import Recipe, load_recipe

AUTOCAST = {"bf16": torch.bfloat16, "fp16": torch.float16}


def run(
    recipe_path: str | Path,
    overrides: list[str] = (),
    *,
    resume: bool = False,
    runs: str | Path = "runs",
    quiet: bool = False,
) -> Path:
    """Train a recipe file and return the run directory.

    overrides: `section.key=value` on top of the file. resume: go on with the recipe's latest run.
    Raises mlpdata.Error for a bad recipe or shards, when the loss is no number, and when stopped by a signal.
    """
    recipe = load_recipe(recipe_path, list(overrides))
    folder, state = _run_folder(Path(runs), recipe, resume)
    trainer = Trainer(recipe, folder, quiet)
    if state is not None:
        trainer.restore(state)
    trainer.say(trainer.describe())
    with _stopping(trainer):
        trainer.fit()
    return folder


def _run_folder(runs: Path, recipe: Recipe, resume: bool) -> tuple[Path, dict | None]:
    """(run directory, state to resume or None). A name that is taken gets a number, so nothing is overwritten."""
    taken = [runs / recipe.name] + [runs / f"{recipe.name}-{k}" for k in range(2, 10_000)]
    free = next(k for k, folder in enumerate(taken) if not folder.exists())
    if not resume:
        return taken[free], None
    if free == 0:
        raise Error(f"nothing to resume: there is no run {taken[0]}")
    folder = taken[free - 1]
    state = checkpoint.load_state(folder / checkpoint.STATE)
    theirs, ours = state["recipe"], recipe.to_dict()
    changed = [
        f"{section}.{key}" if isinstance(value, dict) else section
        for section, value in ours.items()
        for key in (value if isinstance(value, dict) else [section])
        if (value[key] if isinstance(value, dict) else value)
        != (theirs.get(section, {}).get(key) if isinstance(value, dict) else theirs.get(section))
    ]
    # More epochs is how a finished run is prolonged; anything else would be another experiment under the same name.
    if [c for c in changed if c not in ("train.epochs", "data.shards")]:
        raise Error(
            f"{folder} was started with another {', '.join(changed)}; resume with its own recipe, or leave --resume"
        )
    return folder, state


@dataclass
class Totals:
    """Sums over an epoch so far, on the device: reading them waits, so that is done rarely."""

    loss: torch.Tensor
    correct: torch.Tensor
    bad_step: torch.Tensor  # the first step whose loss was no number; -1: none
    samples: int = 0

    @classmethod
    def zero(cls, device: torch.device) -> Totals:
        zero = torch.zeros((), dtype=torch.float64, device=device)
        return cls(zero, zero.clone(), torch.full((), -1, dtype=torch.int64, device=device))


class Trainer:
    """A recipe at work: model, optimizer, loaders and how far they are."""

    def __init__(self, recipe: Recipe, folder: Path, quiet: bool = False):
        self.recipe, self.folder, self.quiet = recipe, folder, quiet
        self.device = torch.device(_device(recipe.train.device))
        if recipe.train.precision == "fp16" and self.device.type == "cpu":
            raise Error("train.precision fp16 needs a GPU; use fp32 or bf16 on the CPU")
        self.train_loader, self.eval_loader = self._loaders()
        self.res = recipe.augment.res or self.train_loader.manifest.res
        self.num_classes = self.train_loader.num_classes
        self.model = build(recipe.model, self.res, self.num_classes, seed=recipe.seed).to(self.device)
        self.optimizer = make_optimizer(self.model, recipe.optim)
        self.scaler = torch.amp.GradScaler(self.device.type, enabled=recipe.train.precision == "fp16")
        self.forward = torch.compile(self.model) if recipe.train.compile else self.model
        self.totals = Totals.zero(self.device)
        self.step = 0
        self.rows: list[dict[str, Any]] = []
        self.best = -1.0
        self.stop_signal: int | None = None
        self.epoch_s = self.wait_s = 0.0  # of the epoch under way, from before a resume
        if recipe.model.dropout:
            torch.manual_seed(recipe.seed)

    def _loaders(self) -> tuple[Loader, Loader]:
        recipe = self.recipe
        train = self._open(recipe.data.train_split, recipe.train.batch_size, shuffle=True, drop_last=True)
        a, m = recipe.augment, train.manifest
        common = {"res": a.res or m.res, "mean": tuple(m.mean), "std": tuple(max(s, 1e-3) for s in m.std)}
        with _recipe_errors("augment"):
            train.augment = Augment(
                **common, crop_scale=a.crop_scale, crop_ratio=a.crop_ratio, flip=a.flip, mixup=a.mixup
            )
            evaluation = Augment(**common, crop_scale=None, flip=False)
        held_out = self._open(recipe.data.eval_split, recipe.eval.batch_size, shuffle=False, drop_last=False)
        held_out.augment = evaluation
        return train, held_out

    def _open(self, split: str, batch_size: int, *, shuffle: bool, drop_last: bool) -> Loader:
        data = self.recipe.data
        return load(
            data.shards,
            split,
            batch_size,
            self.device,
            format=None if data.format == "auto" else data.format,
            tier=None if data.tier == "auto" else data.tier,
            shuffle=shuffle,
            drop_last=drop_last,
            seed=self.recipe.seed,
        )

    def describe(self) -> str:
        r, loader = self.recipe, self.train_loader
        return (
            f"{r.name}: {loader.num_samples:,} samples of {loader.manifest.dataset} at {self.res} px, "
            f"{r.model.name or r.model.kind} with {num_parameters(self.model):,} parameters "
            f"({forward_flops(self.model) / 1e6:.1f} MFLOP an image), {r.optim.name}, {r.train.epochs} epochs of "
            f"{len(loader)} steps of {r.train.batch_size} on {self.device}\n"
            f"data: {loader.tier_reason}\nrun: {self.folder}"
        )

    def say(self, text: str) -> None:
        if not self.quiet:
            print(text, flush=True)

    # ------------------------------------------------------------------------------------------------------- loop

    def fit(self) -> None:
        """Train the epochs that are left, then draw the curve."""
        self.folder.mkdir(parents=True, exist_ok=True)
        write_atomic(self.folder / "recipe.yaml", _yaml(self.recipe).encode())
        if self.train_loader.epoch >= self.recipe.train.epochs:
            self.say(f"{self.folder} has its {self.recipe.train.epochs} epochs: nothing to do")
        while self.train_loader.epoch < self.recipe.train.epochs:
            self._epoch()
        if self.rows:
            path = report.draw_curve(self.folder, self.recipe.name)
            self.say(f"best val top-1 {self.best:.2%}; {self.folder / checkpoint.BEST}, {path}")

    def _epoch(self) -> None:
        loader, recipe, line = self.train_loader, self.recipe, report.Line(self.quiet)
        epoch = loader.epoch
        total_steps = recipe.train.epochs * len(loader)
        started, waited = time.perf_counter(), loader.wait_s
        before = self.totals.samples  # from before a resume: not this session's speed
        self.model.train()
        for batch in loader:
            factor = lr_factor(recipe.schedule, self.step, total_steps, len(loader))
            set_lr(self.optimizer, recipe.optim.lr * factor)
            self._step(batch)
            if self.stop_signal is not None:
                self.epoch_s += time.perf_counter() - started
                self.wait_s += loader.wait_s - waited
                self._stop()
            if line.due():
                seconds = time.perf_counter() - started
                loss, top1 = self._read_totals()
                line.show(
                    f"epoch {epoch + 1}/{recipe.train.epochs}  step {self.step}  loss {loss:.4f}  top-1 {top1:.2%}  "
                    f"{(self.totals.samples - before) / seconds:,.0f} images/s  "
                    f"wait {(loader.wait_s - waited) / seconds:.1%}"
                )
        loss, top1 = self._read_totals()  # waits for the device: the epoch's time is whole
        seconds = time.perf_counter() - started + self.epoch_s
        row = {
            "epoch": epoch + 1,
            "step": self.step,
            "train_loss": loss,
            "train_top1": top1,
            "lr": self.optimizer.param_groups[0]["lr"],
            "images_per_s": self.totals.samples / seconds,
            "wait_share": (loader.wait_s - waited + self.wait_s) / seconds,
            "seconds": seconds,
        }
        if (epoch + 1) % recipe.eval.every == 0 or epoch + 1 == recipe.train.epochs:
            row |= evaluate(self.forward, self.eval_loader, self._autocast)
        self.rows.append(row)
        self.totals, self.epoch_s, self.wait_s = Totals.zero(self.device), 0.0, 0.0
        self._save(row)
        shown = f"  val top-1 {row['val_top1']:.2%} top-5 {row['val_top5']:.2%}" if "val_top1" in row else ""
        line.end(
            f"epoch {epoch + 1}/{recipe.train.epochs}  loss {loss:.4f}  top-1 {top1:.2%}{shown}  "
            f"{row['images_per_s']:,.0f} images/s  wait {row['wait_share']:.1%}"
        )

    def _step(self, batch) -> None:
        train = self.recipe.train
        with self._autocast():
            logits = self.forward(batch.images)
            loss = mixed_loss(logits, batch, train.label_smoothing)
        self.optimizer.zero_grad(set_to_none=True)
        self.scaler.scale(loss).backward()
        if train.clip_norm is not None:
            self.scaler.unscale_(self.optimizer)
            nn.utils.clip_grad_norm_(self.model.parameters(), train.clip_norm)
        self.scaler.step(self.optimizer)
        self.scaler.update()
        self.step += 1
        with torch.no_grad():
            totals, value = self.totals, loss.detach().double()
            totals.loss += value * len(batch.labels)
            totals.correct += (logits.argmax(1) == batch.labels).sum()
            first = (totals.bad_step < 0) & ~torch.isfinite(value)
            totals.bad_step.masked_fill_(first, self.step)
            totals.samples += len(batch.labels)

    def _read_totals(self) -> tuple[float, float]:
        """Mean loss and top-1 of the epoch so far; waits for the device. Raises Error where a loss was no number."""
        totals = self.totals
        bad, loss, correct = int(totals.bad_step), float(totals.loss), float(totals.correct)
        if bad >= 0:
            state = self.folder / checkpoint.STATE
            good = (
                f"the last good checkpoint is {state.parent / checkpoint.LAST}"
                if state.exists()
                else "there is no checkpoint yet"
            )
            raise Error(f"the loss is not a finite number from step {bad} on; lower optim.lr; {good}")
        return loss / max(1, totals.samples), correct / max(1, totals.samples)

    def _autocast(self):
        kind = AUTOCAST.get(self.recipe.train.precision)
        return torch.autocast(self.device.type, kind) if kind else contextlib.nullcontext()

    # ------------------------------------------------------------------------------------------------------- state

    def _save(self, row: dict[str, Any]) -> None:
        report.write_metrics(self.folder, self.rows)
        facts = {"res": self.res, "num_classes": self.num_classes, "epoch": row["epoch"], "step": self.step}
        manifest = self.train_loader.manifest
        facts |= {"mean": manifest.mean, "std": manifest.std, "metrics": row}
        checkpoint.save_weights(self.folder / checkpoint.LAST, self.model, self.recipe, facts)
        if row.get("val_top1", -1.0) > self.best:
            self.best = row["val_top1"]
            checkpoint.save_weights(self.folder / checkpoint.BEST, self.model, self.recipe, facts)
        self.save_state()

    def save_state(self) -> None:
        """Write everything a resume needs, in one file."""
        totals = self.totals
        state = {
            "recipe": self.recipe.to_dict(),
            "model": self.model.state_dict(),
            "optimizer": self.optimizer.state_dict(),
            "scaler": self.scaler.state_dict(),
            "loader": self.train_loader.state_dict(),
            "rng": torch.get_rng_state(),
            "step": self.step,
            "best": self.best,
            "rows": self.rows,
            "totals": [totals.loss, totals.correct, totals.bad_step, totals.samples],
            "seconds": [self.epoch_s, self.wait_s],
        }
        checkpoint.save_state(self.folder / checkpoint.STATE, state)

    def restore(self, state: dict[str, Any]) -> None:
        """Go on from what save_state wrote."""
        self.model.load_state_dict(state["model"])
        self.optimizer.load_state_dict(state["optimizer"])
        self.scaler.load_state_dict(state["scaler"])
        self.train_loader.load_state_dict(state["loader"])
        torch.set_rng_state(state["rng"])
        self.step, self.best, self.rows = state["step"], state["best"], state["rows"]
        loss, correct, bad, samples = state["totals"]
        self.totals = Totals(*(t.to(self.device) for t in (loss, correct, bad)), samples)
        self.epoch_s, self.wait_s = state["seconds"]
        report.write_metrics(self.folder, self.rows)  # a line from behind the state would be written twice

    def _stop(self) -> None:
        self._read_totals()
        self.save_state()
        where = f"epoch {self.train_loader.epoch + 1}, step {self.step}"
        raise Error(f"stopped and saved at {where}; the same command with --resume goes on from there")


def mixed_loss(logits: torch.Tensor, batch, label_smoothing: float) -> torch.Tensor:
    """Cross-entropy of (N, C) logits; with mixup lam CE(y) + (1 - lam) CE(y'), lam a sample's own weight."""
    if batch.mix_lam is None:
        return F.cross_entropy(logits, batch.labels, label_smoothing=label_smoothing)
    own = F.cross_entropy(logits, batch.labels, label_smoothing=label_smoothing, reduction="none")
    other = F.cross_entropy(logits, batch.mix_labels, label_smoothing=label_smoothing, reduction="none")
    return (batch.mix_lam * own + (1 - batch.mix_lam) * other).mean()


def _device(name: str) -> str:
    if name == "auto":
        return "cuda" if torch.cuda.is_available() else "cpu"
    if name == "cuda" and not torch.cuda.is_available():
        raise Error("train.device is cuda, but torch finds no CUDA device; leave it at auto")
    return name


def _yaml(recipe: Recipe) -> str:
    values = recipe.to_dict()
    plain = {
        k: {n: list(x) if isinstance(x, tuple) else x for n, x in v.items()} if isinstance(v, dict) else v
        for k, v in values.items()
    }
    return yaml.safe_dump(plain, sort_keys=False)


@contextlib.contextmanager
def _recipe_errors(section: str):
    try:
        yield
    except ValueError as e:
        raise Error(f"recipe: {section}: {e}") from None


@contextlib.contextmanager
def _stopping(trainer: Trainer):
    """While training, SIGINT and SIGTERM ask for a stop after the step; a second one stops at once."""

    def ask(number, _):
        if trainer.stop_signal is not None:
            raise KeyboardInterrupt
        trainer.stop_signal = number

    try:
        old = {s: signal.signal(s, ask) for s in (signal.SIGINT, signal.SIGTERM)}
    except ValueError:  # not the main thread: signals are somebody else's
        yield
        return
    try:
        yield
    finally:
        for number, handler in old.items():
            signal.signal(number, handler)
