"""Train a recipe: one flat loop that never waits for the device inside a step.

The sequence of batches, augmentations and losses follows from the recipe; `--resume` goes on in the middle of an epoch
with the very next batch, and any number of processes takes the same steps.
"""

from __future__ import annotations

import contextlib
import dataclasses
import math
import signal
import time
from pathlib import Path
from typing import Any

import torch
import yaml
from torch import nn

from mlpdata.errors import Error, first_line, lacks_memory
from trainer import checkpoint, report, saturation
from trainer import runs as run_directories
from trainer.data import FeatureLoader, facts_of, find_shards, open_loaders
from trainer.evaluate import autocast_of, evaluate
from trainer.model import HEAD, forward_flops, num_parameters
from trainer.optim import lr_factor, make_optimizer, set_lr
from trainer.recipe import Recipe, load_recipe
from trainer.step import NEVER, Average, Totals, mixed_loss, pieces
from trainer.world import World, device_of, join, precision_of

AGREE_EVERY = 10  # steps after which several processes agree whether to stop or to save


def run(
    recipe_path: str | Path,
    overrides: list[str] = (),
    *,
    resume: bool = False,
    profile: bool = False,
    runs: str | Path = "runs",
    quiet: bool = False,
) -> Path | None:
    """Train a recipe file and return the run directory.

    overrides: `section.key=value` on top of the file. resume: go on with the recipe's latest run. profile: only
    measure how fast it would go, and return None. Raises mlpdata.Error for a bad recipe or shards, when the loss is no
    number, when another process is lost, and when stopped by a signal.
    """
    recipe = load_recipe(recipe_path, list(overrides))
    device = device_of(recipe.train.device)
    precision = precision_of(recipe.train.precision, device)
    recipe = dataclasses.replace(recipe, train=dataclasses.replace(recipe.train, precision=precision))
    report.Boards.check(recipe)
    if not resume:
        _check_init(recipe, Path(recipe_path))
    with join(device.type) as world, contextlib.ExitStack() as held, _memory_in_words():

        def hold(choose) -> Path:
            """The directory that `choose` locks, until the run ends; the first process locks it for all."""
            folder, release = choose(Path(runs), recipe.name)
            held.callback(release)
            return folder

        quiet, folder, state = quiet or world.rank > 0, None, None
        if resume:
            folder = world.from_first(lambda: hold(run_directories.go_on))
            state = checkpoint.load_state(folder, (lambda line: None) if world.rank else print)
            checkpoint.check_same(folder, recipe, state["recipe"])
        trainer = Trainer(recipe, folder, device, world=world, state=state, quiet=quiet)
        if profile:
            trainer.say(trainer.describe())
            trainer.say(saturation.table(saturation.measure(trainer, seconds=20.0)))
            return None
        if not resume:  # late: a recipe that does not work leaves nothing behind
            trainer.folder = world.from_first(lambda: hold(run_directories.begin))
        with _stopping(trainer):
            try:
                trainer.say(trainer.describe())
                trainer.fit()
            except run_directories.WriteError as e:
                saved = trainer.folder.is_dir() and checkpoint.states(trainer.folder)
                how = "the same command with --resume goes on" if saved else "start it again"
                raise Error(f"{e}; when that is mended, {how}") from None
    return trainer.folder


def _check_init(recipe: Recipe, path: Path) -> None:
    """Raise Error where the checkpoint to start from is missing, and say which command makes it."""
    if not recipe.init or Path(recipe.init).exists():
        return
    maker, how = path.parent / f"{Path(recipe.init).parent.name}.yaml", "give the path of one"
    if maker.is_file() and maker != path:
        how = f"`mlpdata train {maker}` makes it, or give the path of one"
    raise Error(f"recipe: init: there is no checkpoint {recipe.init}: {how} with --set init=FILE")


@contextlib.contextmanager
def _memory_in_words():
    """Memory that is not enough, on the device or on the host, as an Error that says what to change."""
    try:
        yield
    except torch.OutOfMemoryError as e:
        less = "raise train.accumulate, lower train.batch_size, or set data.tier to pinned"
        raise Error(f"the GPU's memory is not enough: {less} ({first_line(e):.120})") from None
    except (MemoryError, RuntimeError) as e:
        if not lacks_memory(e) and "allocate memory" not in str(e):
            raise
        less = "lower train.batch_size or the model's size, or set data.tier to stream"
        raise Error(f"the memory is not enough: {less} ({first_line(e):.120})") from None


class Trainer:
    """A recipe at work: model, optimizer, loaders and how far they are."""

    def __init__(
        self,
        recipe: Recipe,
        folder: Path | None,
        device: torch.device,
        *,
        world: World | None = None,
        state: dict[str, Any] | None = None,
        quiet: bool = False,
    ):
        """folder: where the run's files go; None until it is known. state: what save_state wrote, to go on from."""
        self.recipe, self.folder, self.device, self.quiet = recipe, folder, device, quiet
        self.world, train = world or World(), recipe.train
        if train.precision == "tf32":
            torch.set_float32_matmul_precision("high")
        if train.batch_size % (self.world.size * train.accumulate):
            raise Error(f"train.batch_size {train.batch_size} is not divisible by {self.world.size} processes "
                        f"times train.accumulate {train.accumulate}")  # fmt: skip
        shards = find_shards(recipe)
        self.manifest, self.warning, self.data = shards.manifest, shards.warning, facts_of(shards, recipe.data.format)
        if state:
            checkpoint.check_same_data(folder, recipe.data.shards, self.data, state["data"])
        self.train_loader, self.eval_loader = open_loaders(recipe, shards, device, self.world)
        self.res = recipe.augment.res or self.manifest.res
        self.config, model = checkpoint.make_model(recipe, self.res, self.manifest, state)
        self.model = model.to(device)
        if self.config.norm == "batch" and self.world.size > 1:
            raise Error("model.norm batch needs a single process: its statistics would depend on their number")
        self.autocast = autocast_of(device, train.precision)
        self.net: nn.Module = self.model  # what is trained
        if train.probe:
            self._freeze_body()
        self.net = self.net.to(device)
        self.optimizer = make_optimizer(self.model, recipe.optim)
        self.scaler = torch.amp.GradScaler(device.type, enabled=train.precision == "fp16")
        self.average = Average(self.model, train.ema) if train.ema else None
        self.totals, self.step, self.best = Totals.zero(device), 0, None
        self.rows: list[dict[str, Any]] = []
        self.best_weights: tuple[dict, dict] | None = None  # (tensors, facts) that are not yet on the disk
        self.step_losses: list[torch.Tensor] = []
        self.stop_signal: int | None = None
        self.epoch_s = self.wait_s = 0.0  # of the epoch under way, up to _stop_clock
        self.saved_at = time.monotonic()
        if state:
            try:
                self._restore(state)
            except (KeyError, TypeError, ValueError, RuntimeError) as e:
                raise Error(f"the state in {folder} does not fit its recipe ({first_line(e):.200})") from None
        self.forward = self.ddp = self.net
        if self.world.size > 1:
            self.forward = self.ddp = nn.parallel.DistributedDataParallel(self.net)
        if train.compile or train.cuda_graphs:
            self.forward = torch.compile(self.forward, mode="reduce-overhead" if train.cuda_graphs else None)

    def _freeze_body(self) -> None:
        """Train the head only, on features computed once where augmentation and memory allow that."""
        self.model.requires_grad_(False)
        getattr(self.model, HEAD).requires_grad_(True)
        if not self.recipe.augment.random() and not self.recipe.model.dropout and self.train_loader.tier != "stream":
            self.train_loader = FeatureLoader(self.train_loader, self.model, self.autocast)
            if self.eval_loader:
                self.eval_loader = FeatureLoader(self.eval_loader, self.model, self.autocast)
            self.net = getattr(self.model, HEAD)

    def describe(self) -> str:
        r, loader = self.recipe, self.train_loader
        start = f" from {r.init}" if r.init else ""
        many = f" in {self.world.size} processes" if self.world.size > 1 else ""
        return (
            f"{r.name}: {loader.num_samples:,} samples of {self.manifest.dataset} at {self.res} px, "
            f"{r.model.name or self.config.kind} with {num_parameters(self.model):,} parameters "
            f"({forward_flops(self.model) / 1e6:.1f} MFLOP an image){start}, {r.optim.name}, {r.train.epochs} epochs "
            f"of {len(loader)} steps of {r.train.batch_size} on {self.device}{many}\n"
            f"data: {loader.tier_reason}"
            + (f"\nrun: {self.folder}" if self.folder else "")
            + (f"\nwarning: {self.warning}" if self.warning else "")
        )

    def say(self, text: str) -> None:
        if not self.quiet:
            report.tell(text)

    # ------------------------------------------------------------------------------------------------------- loop

    def fit(self) -> None:
        """Train the epochs that are left, then draw the curve and say whether data kept up."""
        epochs, first = self.recipe.train.epochs, self.world.rank == 0
        if len(self.rows) >= epochs and (self.folder / report.SUMMARY).exists():
            self.say(f"{self.folder} has its {len(self.rows)} epochs: nothing to do")
            return
        if first:
            text = yaml.safe_dump(self.recipe.to_dict(), sort_keys=False)
            run_directories.write(self.folder / "recipe.yaml", text.encode())
            with run_directories.writing(self.folder / report.SUMMARY):  # it says that a run is finished
                (self.folder / report.SUMMARY).unlink(missing_ok=True)
        boards = report.Boards(self.folder, self.recipe, self.step) if first else None
        try:
            while len(self.rows) < epochs:
                row = self._epoch()
                if boards:
                    boards.write(row)
        finally:
            if boards:
                boards.close()
        self.save()
        trained_s = sum(r["seconds"] for r in self.rows)
        found = saturation.measure(self, seconds=min(3.0, 0.02 * trained_s))
        if first:
            report.write_summary(self.folder, {"best_val_top1": self.best, **found})
            path = report.draw_curve(self.folder, self.recipe.name, self.rows)
            best = "nothing held out" if self.best is None else f"best val top-1 {self.best:.2%}"
            self.say(f"{saturation.sentence(found)}\n{best}; {self.folder / checkpoint.BEST}, {path}")

    def _epoch(self) -> dict[str, Any]:
        """Take the steps that the epoch has left, then evaluate. Epochs are counted by their rows."""
        loader, recipe, line = self.train_loader, self.recipe, report.Line(self.quiet)
        epoch, total_steps = len(self.rows), recipe.train.epochs * len(loader)
        before = self.totals.samples  # from before a resume: not this session's speed
        self._start_clock()
        self.model.train(not recipe.train.probe)  # a frozen body is one that does not drop out either
        # A state that was saved behind an epoch's last batch goes on with the end of that epoch.
        for batch in loader if loader.epoch == epoch else ():
            set_lr(self.optimizer, lr_factor(recipe.schedule, self.step, total_steps, len(loader)))
            self.train_step(batch)
            stop, due = self._decide()
            if stop or due:
                self._stop_clock()
                self.save()
                self._start_clock()
            if stop:
                where = f"epoch {epoch + 1}, step {self.step}"
                raise Error(f"stopped and saved at {where}; the same command with --resume goes on from there")
            if line.due():
                seconds, waited = time.perf_counter() - self._started, loader.wait_s - self._waited
                done, n = self.totals.samples - before, max(1, self.totals.samples)
                line.show(
                    f"epoch {epoch + 1}/{recipe.train.epochs}  step {self.step}  "
                    f"loss {float(self.totals.loss) / n:.4f}  top-1 {float(self.totals.correct) / n:.2%}  "
                    + self._speed(done * self.world.size / seconds, waited / seconds)
                )
        row = self._row(epoch)
        if self.eval_loader and ((epoch + 1) % recipe.eval.every == 0 or epoch + 1 == recipe.train.epochs):
            self._evaluate(row)
        self.rows.append(row)
        self.totals, self.epoch_s, self.wait_s = Totals.zero(self.device), 0.0, 0.0
        if self.world.rank == 0:
            report.write_metrics(self.folder, self.rows)
        shown = f"  val top-1 {row['val_top1']:.2%} top-5 {row['val_top5']:.2%}" if "val_top1" in row else ""
        head = f"epoch {epoch + 1}/{recipe.train.epochs}  loss {row['train_loss']:.4f}  top-1 {row['train_top1']:.2%}"
        line.end(f"{head}{shown}  {self._speed(row['images_per_s'], row['wait_share'])}")
        return row

    def train_step(self, batch) -> None:
        """Forward, backward, update; nothing here waits for the device."""
        train, loss, logits = self.recipe.train, 0.0, []
        if self.config.dropout:  # its draws follow from the step alone, so a resume repeats them
            torch.manual_seed((self.recipe.seed * 1_000_003 + self.step) * 4_099 + self.world.rank)
        self.optimizer.zero_grad(set_to_none=True)
        for k, piece in enumerate(pieces(batch, train.accumulate)):
            alone = self.world.size > 1 and k + 1 < train.accumulate
            with self.ddp.no_sync() if alone else contextlib.nullcontext():
                if train.cuda_graphs:
                    torch.compiler.cudagraph_mark_step_begin()
                with self.autocast():
                    out = self.forward(piece.images)
                    part = mixed_loss(out, piece, train.label_smoothing) / train.accumulate
                self.scaler.scale(part).backward()
            loss, logits = loss + part.detach(), [*logits, out.detach().clone() if train.cuda_graphs else out.detach()]
        if train.clip_norm is not None:
            self.scaler.unscale_(self.optimizer)
            nn.utils.clip_grad_norm_(self.net.parameters(), train.clip_norm)
        self.scaler.step(self.optimizer)
        self.scaler.update()
        self.step += 1
        if self.average:
            self.average.update(self.step)
        self.totals.add(loss, torch.cat(logits), batch, self.step)
        if train.record_steps:
            self.step_losses.append(loss)

    def _decide(self) -> tuple[bool, bool]:
        """(stop now, save now). Several processes must decide alike, so now and then they ask each other."""
        save, stop = self.recipe.save, self.stop_signal is not None
        minutes = time.monotonic() - self.saved_at >= 60 * save.every_minutes
        if self.world.size > 1:
            stop, minutes = self.world.any(stop, minutes) if self.step % AGREE_EVERY == 0 else (False, False)
        return stop, minutes or (save.every_steps is not None and self.step % save.every_steps == 0)

    def _evaluate(self, row: dict[str, Any]) -> None:
        """Add the accuracy on the held-out split to an epoch's row, and remember the weights if they are the best."""
        model = self.average.model if self.average else self.model
        forward = getattr(model, HEAD) if isinstance(self.eval_loader, FeatureLoader) else model
        row |= evaluate(model, self.eval_loader, self.autocast, forward=forward, world=self.world).metrics
        if not math.isfinite(row["val_loss"]):
            raise Error(f"the held-out loss of epoch {row['epoch']} is no finite number; lower optim.lr{self._good()}")
        if self.best is None or row["val_top1"] > self.best:
            self.best = row["val_top1"]
            self.best_weights = ({k: v.detach().clone() for k, v in model.state_dict().items()}, self._facts(row))

    def _row(self, epoch: int) -> dict[str, Any]:
        """What is known at the end of an epoch, alike in all processes. Waits for the device."""
        totals = self._checked_totals()
        self._stop_clock()
        seconds, waited = self.world.reduce(
            torch.tensor([self.epoch_s, self.wait_s], device=self.device), "max"
        ).tolist()
        flops = 3 * forward_flops(self.model)  # forward once, backward twice that: the paper's count
        if self.recipe.train.probe:
            flops = forward_flops(self.model) * (self.net is self.model) + 3 * forward_flops(getattr(self.model, HEAD))
        return {
            "epoch": epoch + 1,
            "step": self.step,
            "train_loss": float(totals.loss) / max(1, totals.samples),
            "train_top1": float(totals.correct) / max(1, totals.samples),
            "lr": self.optimizer.param_groups[0]["lr"],
            "images_per_s": totals.samples / seconds,
            "wait_share": waited / seconds,
            "seconds": seconds,
            "flops": float(flops * self.step * self.recipe.train.batch_size),
            "parameters": num_parameters(self.model),
        }

    def _speed(self, images_per_s: float, wait_share: float) -> str:
        share = saturation.flop_share(self, images_per_s)
        return f"{images_per_s:,.0f} images/s  wait {wait_share:.1%}" + (f"  MFU {share:.1%}" if share else "")

    def _start_clock(self) -> None:
        self._started, self._waited = time.perf_counter(), self.train_loader.wait_s

    def _stop_clock(self) -> None:
        self.epoch_s += time.perf_counter() - self._started
        self.wait_s += self.train_loader.wait_s - self._waited

    def _checked_totals(self) -> Totals:
        """The epoch's sums over all processes; waits for the device. Raises Error where a loss was no number."""
        totals = self.totals.whole(self.world)
        bad = int(totals.bad_step)
        if bad != NEVER:
            raise Error(f"the loss is not a finite number from step {bad} on; lower optim.lr{self._good()}")
        return totals

    def _good(self) -> str:
        last = checkpoint.states(self.folder)
        return f"; the last good checkpoint is {last[-1]}" if last else "; there is no checkpoint yet"

    # ------------------------------------------------------------------------------------------------------- state

    def _facts(self, row: dict[str, Any]) -> dict[str, Any]:
        augment, m = self.recipe.augment, self.manifest
        facts = {"res": self.res, "num_classes": m.num_classes, "classes_sha256": m.classes_sha256}
        facts |= {"mean": augment.mean or m.mean, "std": augment.std or [max(s, 1e-3) for s in m.std]}
        return facts | {"epoch": row.get("epoch", 0), "step": self.step, "metrics": row}

    def save(self) -> None:
        """Write everything a resume needs; every process must call it. Raises Error where a loss was no number."""
        totals = self._checked_totals()
        losses: list[float] = []
        if self.step_losses:
            losses = (self.world.reduce(torch.stack(self.step_losses)) / self.world.size).tolist()
            self.step_losses.clear()
        if self.world.rank == 0:
            if losses:
                report.append_steps(self.folder, self.step - len(losses) + 1, losses)
            self._write(totals)
        self.saved_at = time.monotonic()

    def _write(self, totals: Totals) -> None:
        recipe = dataclasses.replace(self.recipe, model=self.config)
        model = self.average.model if self.average else self.model
        row = self.rows[-1] if self.rows else {}
        checkpoint.save_weights(self.folder / checkpoint.LAST, model.state_dict(), recipe, self._facts(row))
        if not self.eval_loader:
            self.best_weights = model.state_dict(), self._facts(row)
        if self.best_weights:
            checkpoint.save_weights(self.folder / checkpoint.BEST, self.best_weights[0], recipe, self.best_weights[1])
            self.best_weights = None
        state = {
            "recipe": self.recipe.to_dict(),
            "data": self.data,
            "config": dataclasses.asdict(self.config),
            "model": self.model.state_dict(),
            "average": self.average.model.state_dict() if self.average else None,
            "optimizer": self.optimizer.state_dict(),
            "scaler": self.scaler.state_dict(),
            "loader": self.train_loader.state_dict(),
            "step": self.step,
            "best": self.best,
            "rows": self.rows,
            "totals": totals.state(),
            "seconds": [self.epoch_s, self.wait_s],
        }
        checkpoint.save_state(self.folder, self.step, state, self.recipe.save.keep)

    def _restore(self, state: dict[str, Any]) -> None:
        if self.average:
            self.average.model.load_state_dict(state["average"])
        self.optimizer.load_state_dict(state["optimizer"])
        self.scaler.load_state_dict(state["scaler"])
        self.train_loader.load_state_dict(state["loader"])
        self.step, self.best, self.rows = state["step"], state["best"], state["rows"]
        if self.world.rank == 0:  # the sums are everybody's: one process carries them on
            *sums, samples = state["totals"]
            self.totals = Totals(*(t.to(self.device) for t in sums), samples)
            # What came after the state will come again.
            checkpoint.drop_later(self.folder, self.step)
            report.write_metrics(self.folder, self.rows)
            if self.recipe.train.record_steps or (self.folder / report.STEPS).exists():
                report.cut_steps(self.folder, self.step, self.say)
        self.epoch_s, self.wait_s = state["seconds"]


@contextlib.contextmanager
def _stopping(trainer: Trainer):
    """While training, SIGINT, SIGTERM and SIGHUP ask for a stop after the step; a second one stops at once.

    One that is ignored is left alone. The shell has background jobs ignore SIGINT: their Ctrl-C is meant for others;
    and nohup SIGHUP.
    """

    def ask(number, _):
        if trainer.stop_signal is not None:
            raise KeyboardInterrupt
        trainer.stop_signal = number

    try:
        wanted = [s for s in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP) if signal.getsignal(s) != signal.SIG_IGN]
        old = {s: signal.signal(s, ask) for s in wanted}
    except ValueError:  # not the main thread: signals are somebody else's
        yield
        return
    try:
        yield
    finally:
        for number, handler in old.items():
            signal.signal(number, handler)
