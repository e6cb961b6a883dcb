"""What a run leaves to look at: metrics.jsonl, steps.jsonl, curve.png, event files, and the line on the terminal."""

from __future__ import annotations

import importlib.util
import json
import os
import sys
import time
from pathlib import Path
from typing import Any

from mlpdata.errors import Error
from mlpdata.manifest import write_atomic
from trainer.recipe import Recipe

METRICS, STEPS, CURVE, SUMMARY = "metrics.jsonl", "steps.jsonl", "curve.png", "summary.json"


def read_metrics(run: Path) -> list[dict[str, Any]]:
    """The epochs recorded so far; a line torn by a power cut is left out."""
    rows = []
    path = run / METRICS
    for line in path.read_text(encoding="utf-8").splitlines() if path.exists() else []:
        try:
            rows.append(json.loads(line))
        except ValueError:
            break
    return rows


def write_metrics(run: Path, rows: list[dict[str, Any]]) -> None:
    """Write all epochs anew, in one piece: they are few, and an append could be torn."""
    tmp = run / f"{METRICS}.tmp"
    tmp.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    tmp.replace(run / METRICS)


def append_steps(run: Path, first: int, losses: list[float]) -> None:
    """Record the losses of steps from `first` on, a JSON object a line."""
    with open(run / STEPS, "a", encoding="utf-8") as f:
        f.writelines(json.dumps({"step": first + k, "loss": loss}) + "\n" for k, loss in enumerate(losses))
        f.flush()
        os.fsync(f.fileno())


def cut_steps(run: Path, last: int) -> None:
    """Forget the steps after `last`: they came after the state that is gone back to and will come again."""
    path, end = run / STEPS, 0
    if not path.exists():
        return
    with open(path, "rb") as f:
        for line in f:
            if not line.endswith(b"}\n") or json.loads(line)["step"] > last:
                break
            end += len(line)
    os.truncate(path, end)


def write_summary(run: Path, summary: dict[str, Any]) -> None:
    write_atomic(run / SUMMARY, (json.dumps(summary, indent=1) + "\n").encode())


def draw_curve(run: Path, title: str) -> Path:
    """Draw loss and accuracy over the epochs to curve.png."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot as plt

    rows = read_metrics(run)
    evaluated = [r for r in rows if "val_top1" in r]
    figure, (left, right) = plt.subplots(1, 2, figsize=(11, 4), layout="constrained")
    left.plot([r["epoch"] for r in rows], [r["train_loss"] for r in rows], label="train")
    left.plot([r["epoch"] for r in evaluated], [r["val_loss"] for r in evaluated], label="val")
    left.set(xlabel="epoch", ylabel="cross-entropy", title=title)
    right.plot([r["epoch"] for r in rows], [100 * r["train_top1"] for r in rows], label="train top-1, augmented")
    right.plot([r["epoch"] for r in evaluated], [100 * r["val_top1"] for r in evaluated], label="val top-1")
    right.plot([r["epoch"] for r in evaluated], [100 * r["val_top5"] for r in evaluated], label="val top-5", alpha=0.5)
    best = max((r["val_top1"] for r in evaluated), default=0)
    right.set(xlabel="epoch", ylabel="accuracy, %", title=f"best val top-1 {best:.2%}")
    for axes in (left, right):
        axes.grid(alpha=0.3)
        axes.legend()
    path = run / CURVE
    figure.savefig(path, dpi=110)
    plt.close(figure)
    return path


class Boards:
    """TensorBoard's event files and Weights & Biases, where they are installed and wanted."""

    def __init__(self, run: Path, recipe: Recipe, step: int):
        """step: the one the run goes on from; what a board has beyond it is struck out."""
        self._events = self._wandb = None
        wanted, there = recipe.log.tensorboard, importlib.util.find_spec("tensorboard") is not None
        if wanted and not there:
            raise Error("log.tensorboard is true, but tensorboard is not installed: pip install 'mlpdata[tb]'")
        if recipe.log.wandb and importlib.util.find_spec("wandb") is None:
            raise Error("log.wandb is true, but wandb is not installed: pip install wandb")
        if there and wanted is not False:
            from torch.utils.tensorboard import SummaryWriter

            self._events = SummaryWriter(str(run / "tensorboard"), purge_step=step + 1 if step else None)
        if recipe.log.wandb:
            import wandb

            self._wandb = wandb.init(
                project="mlpdata", name=run.name, id=run.name, dir=str(run), config=recipe.to_dict(), resume="allow"
            )

    def write(self, row: dict[str, Any]) -> None:
        """Show an epoch's row."""
        if self._events is not None:
            for key, value in row.items():
                if key not in ("epoch", "step"):
                    self._events.add_scalar(key.replace("_", "/", 1), value, row["step"])
            self._events.flush()
        if self._wandb is not None:
            self._wandb.log(row, step=row["step"])

    def close(self) -> None:
        if self._events is not None:
            self._events.close()
        if self._wandb is not None:
            self._wandb.finish()


class Line:
    """The live line of an epoch; without a terminal, only its end is printed."""

    EVERY_S = 1.0

    def __init__(self, quiet: bool = False):
        self.live, self.quiet = sys.stderr.isatty(), quiet
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
        print(text, flush=True)
