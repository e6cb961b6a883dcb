"""What a run leaves to look at: metrics.jsonl, curve.png, and the line on the terminal."""

from __future__ import annotations

import json
import sys
import time
from pathlib import Path
from typing import Any

METRICS, CURVE = "metrics.jsonl", "curve.png"


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


class Line:
    """The live line of an epoch; without a terminal, only its end is printed."""

    EVERY_S = 0.5

    def __init__(self, quiet: bool = False):
        self.live, self.quiet = sys.stderr.isatty(), quiet
        self._last = 0.0

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
