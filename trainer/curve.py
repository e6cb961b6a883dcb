"""`curve.png` of a run: loss, accuracy and learning rate over the epochs."""

from __future__ import annotations

import io
import textwrap
from pathlib import Path
from typing import Any

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator, PercentFormatter, StrMethodFormatter

from trainer.recipe import Recipe
from trainer.run_directory import CURVE, write_file

MAX_MARKERS = 60  # of a curve; markers of more points would hide the line


def draw_curve(run: Path, recipe: Recipe, rows: list[dict[str, Any]]) -> Path:
    """Draw the rows of metrics.jsonl to curve.png; returns its path."""
    png = io.BytesIO()
    curve_figure(recipe, rows).savefig(png, dpi=110, format="png")
    write_file(run / CURVE, png.getbuffer())
    return run / CURVE


def curve_figure(recipe: Recipe, rows: list[dict[str, Any]]) -> Figure:
    """The figure of curve.png; without evaluations, its curves are those of training alone."""
    evaluated = [row for row in rows if "val_top1" in row]
    figure = Figure(figsize=(14, 4.8), layout="constrained")
    loss, accuracy, rate = figure.subplots(1, 3, width_ratios=(4, 4, 3))

    def plot(axes: Axes, key: str, label: str | None, color: str) -> None:
        points = [(row["epoch"], row[key]) for row in rows if key in row]
        marker = "o" if len(points) <= MAX_MARKERS else ""
        axes.plot(*zip(*points, strict=True), label=label, color=color, marker=marker, markersize=4)

    why_loss, why_top1 = (
        training_differences(recipe, of_loss=of_loss) if evaluated else [] for of_loss in (True, False)
    )
    plot(loss, "train_loss", _training_label("train", why_loss), "C0")
    plot(accuracy, "train_top1", _training_label("train top-1", why_top1), "C0")
    if evaluated:
        held_out = ", averaged weights" if recipe.train.ema else ""
        plot(loss, "val_loss", f"val{held_out}", "C1")
        plot(accuracy, "val_top1", f"val top-1{held_out}", "C1")
        plot(accuracy, "val_top5", f"val top-5{held_out}", "C2")
    if any("val_real" in row for row in evaluated):
        plot(accuracy, "val_real", "val ReaL", "C3")
    plot(rate, "lr", None, "C0")

    figure.suptitle(recipe.name, parse_math=False)  # a name with dollars in it is no formula
    loss.set(title="loss", ylabel="cross-entropy, nats")
    best = max(evaluated, key=lambda row: row["val_top1"], default=None)
    accuracy.set_title(f"best val top-1 {best['val_top1']:.2%}, epoch {best['epoch']}" if best else "nothing held out")
    accuracy.set_ylabel("accuracy")
    accuracy.yaxis.set_major_formatter(PercentFormatter(xmax=1))
    body = " of the body" if recipe.optim.head_lr and not recipe.train.probe else ""
    top = max(row["lr"] for row in rows) or 1.0
    rate.set(title=f"learning rate{body}", ylabel="at the last step of the epoch", ylim=(-0.03 * top, 1.1 * top))
    rate.yaxis.set_major_formatter(StrMethodFormatter("{x:.2g}"))
    for axes in (loss, accuracy, rate):
        margin = max(0.5, 0.02 * len(rows))
        axes.set(xlabel="epoch", xlim=(rows[0]["epoch"] - margin, rows[-1]["epoch"] + margin))
        axes.xaxis.set_major_locator(MaxNLocator(steps=[1, 2, 5, 10], integer=True, min_n_ticks=1))
        axes.grid(alpha=0.3)
    for axes in (loss, accuracy):
        axes.legend(loc="upper center", bbox_to_anchor=(0.5, -0.13), fontsize=9)  # below the axes: it hides nothing
    return figure


def training_differences(recipe: Recipe, *, of_loss: bool) -> list[str]:
    """Why a number of training is not comparable with the held-out one, which is of plain images and labels."""
    a, train = recipe.augment, recipe.train
    reasons = {
        f"mixup {a.mixup:g}": a.mixup,
        f"cutmix {a.cutmix:g}": a.cutmix,
        f"label smoothing {train.label_smoothing:g}": of_loss and train.label_smoothing,
        "augmentation": a.crop_scale or a.flip or a.pad or a.cutout or a.erase or a.brightness or a.contrast
                        or a.saturation,
        f"dropout {recipe.model.dropout:g}": recipe.model.dropout and not train.probe,
    }  # fmt: skip
    return [reason for reason, present in reasons.items() if present]


def _training_label(name: str, reasons: list[str]) -> str:
    """The legend of a curve of training. Its points are means over an epoch, in which the weights still change."""
    why = f"not comparable with val: {', '.join(reasons)}" if reasons else ""
    return "\n".join([f"{name}, mean over the epoch", *textwrap.wrap(why, 50)])
