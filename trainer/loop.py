"""The loop: data, model, step, then epoch after epoch, without waiting for the device inside a step.

The sequence of batches, augmentations and losses follows from the recipe. A resume continues in the middle of an epoch
with the very next batch, and any number of processes takes the same steps.
"""

from __future__ import annotations

import contextlib
import math
import time
from pathlib import Path
from typing import Any

import torch

from mlpdata.augment.batch import Batch
from mlpdata.errors import Error, first_line
from mlpdata.loader.loader import Loader
from mlpdata.loader.tiers import this_machine
from mlpdata.system.format import format_rate, plural
from trainer import checkpoint, report, saturation, states
from trainer.data import FeatureLoader, data_facts, find_splits, open_loaders
from trainer.evaluate import autocast_of, evaluate
from trainer.flops import executed_flops, flop_share, forward_flops, training_flops
from trainer.model import num_parameters
from trainer.optim import lr_factor, set_lr
from trainer.plan import plan_splits, state_bytes
from trainer.recipe import Recipe
from trainer.record import RunRecord
from trainer.saturation import Saturation
from trainer.step import NEVER, EpochSums, TrainingStep
from trainer.world import World

AGREE_EVERY = 10  # steps after which several processes agree whether to stop or to save


class Trainer:
    """A recipe at work: loaders, model, step and the record of the epochs so far."""

    def __init__(
        self,
        recipe: Recipe,
        folder: Path | None,
        device: torch.device,
        *,
        world: World | None = None,
        state: dict[str, Any] | None = None,
        new_data: bool = False,
        quiet: bool = False,
    ):
        """folder: where the run's files go; None until it is known. state: what save_state wrote, to resume from.

        new_data: take other shards than the state's, as far as `states.check_same_data` allows that.
        """
        self.recipe, self.device, self.quiet, self.world = recipe, device, quiet, world or World()
        train = recipe.train
        if train.batch_size % (self.world.size * train.accumulate):
            raise Error(f"train.batch_size {train.batch_size} is not divisible by {self.world.size} processes "
                        f"times train.accumulate {train.accumulate}")  # fmt: skip
        self.changes: list[str] = []  # of the data, that --force allowed
        splits = find_splits(recipe)
        self.manifest, self.warning, self.data = splits.manifest, splits.warning, data_facts(splits, recipe.data.format)
        if state:
            shards, saved = recipe.data.shards, state["data"]
            self.changes = states.check_same_data(folder, shards, self.data, saved, forced=new_data)
        needs = plan_splits(recipe, splits, this_machine(device, self.world.size), self.world.size).all_needs
        self.train_loader, self.eval_loader = open_loaders(recipe, splits, device, self.world, needs)

        self.res = recipe.augment.res or self.manifest.res
        self.config, model = checkpoint.initial_model(recipe, self.res, self.manifest, state)
        if self.config.norm == "batch" and self.world.size > 1:
            raise Error("model.norm batch needs a single process: its statistics would depend on their number")
        self.model, self.autocast = model.to(device), autocast_of(device, train.precision)
        self.cached = train.probe and self._freeze_body()  # whether the body's features are computed once
        net = self.model.linear_out if self.cached else self.model
        self.training_step = TrainingStep(self.model, net, recipe, device, self.world, self.autocast)

        self.record = RunRecord(folder, recipe, self.config, self.res, self.manifest)
        self.clock = EpochClock(self.train_loader)
        self.stop_signal: int | None = None
        self.saves_each_epoch = state_bytes(recipe, self.model) <= states.SMALL_BYTES
        self.saved_at = time.monotonic()
        if state:
            try:
                self._restore(state)
            except (KeyError, TypeError, ValueError, RuntimeError) as e:
                raise Error(f"the state in {folder} does not fit its recipe ({first_line(e):.200})") from None

    def _freeze_body(self) -> bool:
        """Train the head only. Where augmentation and memory allow it, compute the features once, and return True."""
        self.model.requires_grad_(False)
        self.model.linear_out.requires_grad_(True)
        if self.recipe.augment.random() or self.recipe.model.dropout or self.train_loader.tier == "stream":
            return False
        self.train_loader = FeatureLoader(self.train_loader, self.model, self.autocast)
        if self.eval_loader:
            self.eval_loader = FeatureLoader(self.eval_loader, self.model, self.autocast)
        return True

    @property
    def step(self) -> int:
        """Steps taken so far."""
        return self.training_step.count

    def say(self, *lines: str) -> None:
        if not self.quiet:
            report.print_lines(*lines)

    # ------------------------------------------------------------------------------------------------------- loop

    def fit(self) -> None:
        """Train the epochs that are left, then draw the curve and say whether data kept up."""
        record, is_first = self.record, self.world.rank == 0
        if record.is_finished():
            self.say(f"{record.folder} has its {plural(len(record.rows), 'epoch')}: nothing to do")
            return
        trackers = None
        self.time_left = report.TimeLeft(self.step, self.recipe.train.epochs * len(self.train_loader))
        if is_first:
            record.begin()
            trackers = report.Trackers(record.folder, self.recipe, self.step)
        with contextlib.closing(trackers) if trackers else contextlib.nullcontext():
            while len(record.rows) < self.recipe.train.epochs:
                row = self._run_epoch()
                if trackers:
                    trackers.write(row)
                if self.saves_each_epoch and len(record.rows) < self.recipe.train.epochs:
                    self.save()
        self.save()
        measured = self.measure_saturation(seconds=min(3.0, 0.02 * sum(row["seconds"] for row in record.rows)))
        if is_first:
            self.say(*record.finish(measured))

    def _run_epoch(self) -> dict[str, Any]:
        """Take the steps that the epoch has left, evaluate, and return its row. Epochs are counted by their rows."""
        loader, recipe, line = self.train_loader, self.recipe, report.EpochLine(self.quiet)
        epoch, total_steps = len(self.record.rows), recipe.train.epochs * len(loader)
        title, samples_before = f"epoch {epoch + 1}/{recipe.train.epochs}", self.training_step.sums.samples
        self.clock.begin()
        self.model.train(not recipe.train.probe)  # a frozen body does not drop out either
        # A state saved after an epoch's last batch resumes at the end of that epoch: no steps are left.
        for batch in loader if loader.epoch == epoch else ():
            set_lr(self.training_step.optimizer, lr_factor(recipe.schedule, self.step, total_steps, len(loader)))
            self.train_step(batch)
            stop, save_due = self._decide()
            if stop or save_due:
                self.clock.stop()
                self.save()
                self.clock.start()
            if stop:
                if self.world.rank == 0:
                    self.record.draw()
                where = f"epoch {epoch + 1}, step {self.step}"
                raise Error(f"stopped and saved at {where}; the same command with --resume goes on from there")
            if line.due():
                (seconds, waited_s), sums = self.clock.since_begin(), self.training_step.sums
                images_per_s = (sums.samples - samples_before) * self.world.size / seconds
                line.show(f"{title}  {self.step - epoch * len(loader)}/{len(loader)}  {_measures(*sums.means())}  "
                          f"{self._speed(images_per_s, waited_s / seconds)}")  # fmt: skip
        row = self._row(epoch)
        if (epoch + 1) % recipe.eval.every == 0 or epoch + 1 == recipe.train.epochs:
            self._evaluate(row)
        self.record.rows.append(row)
        self.training_step.sums = EpochSums.zero(self.device)
        self.clock.total = [0.0, 0.0]
        if self.world.rank == 0:
            report.write_metrics(self.record.folder, self.record.rows)
            self.record.draw_in_time()
        speed = self._speed(row["images_per_s"], row["wait_share"])
        line.end(f"{title}  {len(loader)}/{len(loader)}  {_epoch_measures(row)}  {speed}")
        return row

    def train_step(self, batch: Batch) -> None:
        """Take one step; nothing here waits for the device."""
        self.training_step(batch)

    def _decide(self) -> tuple[bool, bool]:
        """(stop now, save now). Several processes must decide alike, so now and then they ask each other."""
        save, stop, step = self.recipe.save, self.stop_signal is not None, self.step
        minutes = time.monotonic() - self.saved_at >= 60 * save.every_minutes
        if self.world.size > 1:
            stop, minutes = self.world.any(stop, minutes) if step % AGREE_EVERY == 0 else (False, False)
        return stop, minutes or (save.every_steps is not None and step % save.every_steps == 0)

    def _row(self, epoch: int) -> dict[str, Any]:
        """The measures of an epoch's training, alike in all processes. Waits for the device."""
        sums = self._checked_sums()
        self.clock.stop()
        seconds, waited_s = self.world.reduce(torch.tensor(self.clock.total, device=self.device), "max").tolist()
        image_flops = training_flops(self.model, probe=self.recipe.train.probe, cached=self.cached)
        loss, top1 = sums.means()
        return {
            "epoch": epoch + 1,
            "step": self.step,
            "train_loss": loss,
            "train_top1": top1,
            "lr": float(self.training_step.optimizer.param_groups[0]["lr"]),
            "images_per_s": sums.samples / seconds,
            "wait_share": waited_s / seconds,
            "seconds": seconds,
            "flops": float(image_flops * self.step * self.recipe.train.batch_size),
            "parameters": num_parameters(self.model),
        }

    def _evaluate(self, row: dict[str, Any]) -> None:
        """Add the accuracy on the held-out split, if any, to an epoch's row; remember the weights if they are best."""
        if self.eval_loader is None:
            return
        model = self.training_step.averaged_model()
        forward = model.linear_out if self.cached else model
        row |= evaluate(model, self.eval_loader, self.autocast, forward=forward, world=self.world).metrics
        if not math.isfinite(row["val_loss"]):
            raise Error(f"the held-out loss of epoch {row['epoch']} is no finite number; {self._way_out()}")
        self.record.note_evaluation(model, row)

    def measure_saturation(self, seconds: float) -> Saturation:
        """Whether data keep up, by steps that change the model: its weights must have been saved."""
        self.model.train(not self.recipe.train.probe)
        measured = saturation.measure(self.train_step, self.train_loader, self.world, seconds)
        self.training_step.losses.clear()
        return measured

    def flop_share(self, images_per_s: float) -> float | None:
        """Model FLOPs over the devices' peak at a speed (MFU); None where the peak is not known."""
        train = self.recipe.train
        image_flops = executed_flops(self.model, probe=train.probe, cached=self.cached)
        return flop_share(images_per_s, image_flops, self.device, train.precision, self.world.size)

    def _speed(self, images_per_s: float, wait_share: float) -> str:
        mfu = f"  MFU {share:.1%}" if (share := self.flop_share(images_per_s)) else ""
        return f"{format_rate(images_per_s)}{self.time_left.text(self.step)}  wait {wait_share:.1%}{mfu}"

    # ------------------------------------------------------------------------------------------------------- state

    def _checked_sums(self) -> EpochSums:
        """The epoch's sums over all processes; waits for the device. Raises Error where a loss was no number."""
        sums = self.training_step.sums.over(self.world)
        bad_step = int(sums.bad_step)
        if bad_step != NEVER:
            raise Error(f"the loss is not a finite number from step {bad_step} on; {self._way_out()}")
        return sums

    def _way_out(self) -> str:
        saved = states.list_states(self.record.folder)
        return "lower optim.lr; " + (
            f"the last good checkpoint is {saved[-1]}" if saved else "there is no checkpoint yet"
        )

    def save(self) -> None:
        """Write everything a resume needs; every process must call it. Raises Error where a loss was no number."""
        sums = self._checked_sums()
        losses = self.training_step.take_losses()
        if self.world.rank == 0:
            if losses:
                report.append_steps(self.record.folder, self.step - len(losses) + 1, losses)
            state = {
                "data": self.data,
                "loader": self.train_loader.state_dict(),
                "totals": sums.state(),
                "seconds": self.clock.total,
                **self.training_step.state(),
            }
            model, has_held_out = self.training_step.averaged_model(), self.eval_loader is not None
            self.record.write_checkpoints(model, state, self.step, has_held_out)
        self.saved_at = time.monotonic()

    def _restore(self, state: dict[str, Any]) -> None:
        self.training_step.restore(state)
        position = {key: state["loader"][key] for key in ("epoch", "step", "blocks")}
        self.train_loader.load_state_dict(
            self.train_loader.state_dict() | position if self.changes else state["loader"]
        )
        self.clock.total = state["seconds"]
        self.record.best, self.record.rows = state["best"], state["rows"]
        if self.world.rank == 0:
            # The saved sums are those of all processes; the first carries them on.
            loss, correct, bad_step, samples = state["totals"]
            sums = (tensor.to(self.device) for tensor in (loss, correct, bad_step))
            self.training_step.sums = EpochSums(*sums, samples=samples)
            # The run takes the steps after the state again.
            states.remove_later(self.record.folder, self.step)
            report.write_metrics(self.record.folder, self.record.rows)
            if self.recipe.train.record_steps or (self.record.folder / report.STEPS).exists():
                report.cut_steps(self.record.folder, self.step, self.say)


class EpochClock:
    """How long an epoch trained, and how much of that it waited for data; evaluating and saving are left out.

    total: [seconds, seconds waited] of the epoch, up to the last `stop`.
    """

    def __init__(self, loader: Loader):
        self._loader, self.total = loader, [0.0, 0.0]
        self.begin()

    def begin(self) -> None:
        """Start; `since_begin` counts from here on."""
        self._total_before = self.total
        self.start()

    def start(self) -> None:
        self._started, self._waited = time.perf_counter(), self._loader.wait_s

    def since_begin(self) -> list[float]:
        """[seconds, seconds waited] since the last `begin`, like the total."""
        self.stop()
        self.start()
        return [total - before for total, before in zip(self.total, self._total_before, strict=True)]

    def stop(self) -> None:
        # Some clocks stand still for milliseconds.
        since_start = max(1e-9, time.perf_counter() - self._started), self._loader.wait_s - self._waited
        self.total = [total + more for total, more in zip(self.total, since_start, strict=True)]


def _measures(loss: float, top1: float) -> str:
    return f"loss {loss:.4f}  train {top1:.2%}"


def _epoch_measures(row: dict[str, Any]) -> str:
    held_out = f"  val {row['val_top1']:.2%} top-5 {row['val_top5']:.2%}" if "val_top1" in row else ""
    return f"{_measures(row['train_loss'], row['train_top1'])}{held_out}"


def describe(trainer: Trainer) -> list[str]:
    """The lines that a run begins with."""
    r, loader, record = trainer.recipe, trainer.train_loader, trainer.record
    start = f" from {r.init}" if r.init else ""
    processes = f" in {trainer.world.size} processes" if trainer.world.size > 1 else ""
    lines = [
        f"{r.name}: {plural(loader.num_samples, 'sample')} of {trainer.manifest.dataset} at {trainer.res} px, "
        f"{r.model.name or trainer.config.kind} with {plural(num_parameters(trainer.model), 'parameter')} "
        f"({forward_flops(trainer.model) / 1e6:.1f} MFLOP an image){start}, {r.optim.name}, "
        f"{plural(r.train.epochs, 'epoch')} of {plural(len(loader), 'step')} of {r.train.batch_size} "
        f"on {trainer.device}{processes}",
        f"data: {loader.tier_reason}",
    ]
    if record.folder:
        lines.append(f"run: {record.folder}")
    if trainer.warning:
        lines.append(f"warning: {trainer.warning}")
    if trainer.step and not record.is_finished():
        epoch = min(len(record.rows) + 1, r.train.epochs)
        total = r.train.epochs * len(loader)
        lines.append(f"resumed: goes on after step {trainer.step:,} of {total:,}, in epoch {epoch}/{r.train.epochs}")
    return lines
