"""What a run leaves to look at: metrics.jsonl, steps.jsonl, curve.png, event files, and the line on the terminal."""

from __future__ import annotations

import contextlib
import importlib.util
import io
import json
import os
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from mlpdata.errors import Error
from trainer.recipe import Recipe
from trainer.runs import WriteError, write, writing

METRICS, STEPS, CURVE, SUMMARY = "metrics.jsonl", "steps.jsonl", "curve.png", "summary.json"
LINE_BYTES = 1000  # more than a line of steps.jsonl has


def read_metrics(run: Path) -> list[dict[str, Any]]:
    """The epochs recorded so far, [] where there is no such file. Raises Error for what is no record of epochs."""
    path = run / METRICS
    try:
        lines = path.read_bytes().splitlines() if path.exists() else []
        rows = [json.loads(line) for line in lines]
    except (OSError, ValueError, RecursionError):
        rows = [None]
    if not all(isinstance(row, dict) for row in rows):
        raise Error(f"{path} is damaged; `mlpdata train ... --resume` writes it anew from the run's last state")
    return rows


def write_metrics(run: Path, rows: list[dict[str, Any]]) -> None:
    """Write all epochs anew, in one piece: they are few, and an append could be torn."""
    write(run / METRICS, "".join(json.dumps(row) + "\n" for row in rows).encode())


def append_steps(run: Path, first: int, losses: list[float]) -> None:
    """Record the losses of steps from `first` on, a JSON object a line."""
    with writing(run / STEPS), open(run / STEPS, "a", encoding="utf-8") as f:
        f.writelines(json.dumps({"step": first + k, "loss": loss}) + "\n" for k, loss in enumerate(losses))
        f.flush()
        os.fsync(f.fileno())


def cut_steps(run: Path, last: int, say: Callable[[str], None]) -> None:
    """Forget the steps after `last`: they came after the state that is gone back to and will come again.

    Of a damaged file what comes before the damage is kept; `say` is told what is lost.
    """
    path, end, before = run / STEPS, 0, 0
    with writing(path), open(path, "a+b") as f:
        f.seek(0)
        for line in f:
            step = _step(line)
            if step is None or step > last:
                break
            end, before = end + len(line), step
        f.truncate(end)
    if before < last:
        say(f"warning: {path} lacks the losses of step {before + 1} up to step {last}, which do not come again")


def _step(line: bytes) -> int | None:
    """The step of a line of steps.jsonl; None for what is none."""
    with contextlib.suppress(ValueError, KeyError, TypeError, RecursionError):
        step = json.loads(line)["step"] if len(line) < LINE_BYTES and line.endswith(b"}\n") else None
        return step if type(step) is int else None
    return None


def write_summary(run: Path, summary: dict[str, Any]) -> None:
    write(run / SUMMARY, (json.dumps(summary, indent=1) + "\n").encode())


def draw_curve(run: Path, title: str, rows: list[dict[str, Any]]) -> Path:
    """Draw loss and accuracy over the epochs to curve.png; without evaluations, those of training alone."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot as plt

    evaluated = [r for r in rows if "val_top1" in r]
    figure, (left, right) = plt.subplots(1, 2, figsize=(11, 4), layout="constrained")
    left.plot([r["epoch"] for r in rows], [r["train_loss"] for r in rows], label="train")
    left.plot([r["epoch"] for r in evaluated], [r["val_loss"] for r in evaluated], label="val")
    left.set(xlabel="epoch", ylabel="cross-entropy")
    left.set_title(title, parse_math=False)  # a name with dollars in it is no formula
    right.plot([r["epoch"] for r in rows], [100 * r["train_top1"] for r in rows], label="train top-1, augmented")
    right.plot([r["epoch"] for r in evaluated], [100 * r["val_top1"] for r in evaluated], label="val top-1")
    right.plot([r["epoch"] for r in evaluated], [100 * r["val_top5"] for r in evaluated], label="val top-5", alpha=0.5)
    best = f"best val top-1 {max(r['val_top1'] for r in evaluated):.2%}" if evaluated else "nothing held out"
    right.set(xlabel="epoch", ylabel="accuracy, %", title=best)
    for axes in (left, right):
        axes.grid(alpha=0.3)
        axes.legend()
    drawn = io.BytesIO()
    figure.savefig(drawn, dpi=110)
    plt.close(figure)
    write(run / CURVE, drawn.getbuffer())
    return run / CURVE


class Boards:
    """TensorBoard's event files and Weights & Biases, where they are installed and wanted."""

    def __init__(self, run: Path, recipe: Recipe, step: int):
        """step: the one the run goes on from; what a board has beyond it is struck out."""
        self._events = self._wandb = None
        wanted = recipe.log.tensorboard
        if wanted or (wanted is None and importlib.util.find_spec("tensorboard")):
            from torch.utils.tensorboard import SummaryWriter

            self._path = run / "tensorboard"
            with writing(self._path):
                self._events = SummaryWriter(str(self._path), purge_step=step + 1 if step else None)
        if recipe.log.wandb:
            import wandb

            self._wandb = wandb.init(
                project="mlpdata", name=run.name, id=run.name, dir=str(run), config=recipe.to_dict(), resume="allow"
            )

    @staticmethod
    def check(recipe: Recipe) -> None:
        """Raise Error where a board is wanted that is not installed."""
        if recipe.log.tensorboard and importlib.util.find_spec("tensorboard") is None:
            raise Error("log.tensorboard is true, but tensorboard is not installed: pip install 'mlpdata[tb]'")
        if recipe.log.wandb and importlib.util.find_spec("wandb") is None:
            raise Error("log.wandb is true, but wandb is not installed: pip install wandb")

    def write(self, row: dict[str, Any]) -> None:
        """Show an epoch's row."""
        if self._events is not None:
            with writing(self._path):
                for key, value in row.items():
                    if key not in ("epoch", "step"):
                        self._events.add_scalar(key.replace("_", "/", 1), value, row["step"])
                self._events.flush()
        if self._wandb is not None:
            self._wandb.log(row, step=row["step"])

    def close(self) -> None:
        if self._events is not None:
            with writing(self._path):
                self._events.close()
        if self._wandb is not None:
            self._wandb.finish()


def tell(text: str) -> None:
    """Print a line. Raises WriteError where standard output takes no more, as a log on a full disk."""
    try:
        print(text, flush=True)
    except OSError as e:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # else Python fails again as it ends
        raise WriteError(f"cannot write to standard output: {e.strerror}") from None


class Line:
    """The live line of an epoch; without a terminal, only its end is printed."""

    EVERY_S = 1.0

    def __init__(self, quiet: bool = False):
        self.live, self.quiet = sys.stderr is not None and sys.stderr.isatty(), quiet  # None: it was closed
        self._last = time.monotonic()

    def due(self) -> bool:
        """Whether it is time to speak again: asking costs nothing, and the numbers are fetched only then."""
        return self.live and not self.quiet and time.monotonic() - self._last >= self.EVERY_S

    def show(self, text: str) -> None:
        self._last = time.monotonic()
        print(f"\r\x1b[2K{text}", end="", file=sys.stderr, flush=True)

    def end(self, text: str) -> None:
        """Close the epoch with a line that stays."""
        if self.quiet:
            return
        if self.live:
            print("\r\x1b[2K", end="", file=sys.stderr)
        tell(text)
