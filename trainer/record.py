"""What a run has to show so far: a row an epoch and the best weights, and how they get into the run directory."""

from __future__ import annotations

import time
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import torch
import yaml
from torch import nn

from mlpdata.shards.manifest import Manifest
from trainer import report, run_directory, states
from trainer.checkpoint import BEST, LAST, save_weights
from trainer.recipe import Model, Recipe
from trainer.run_directory import CURVE
from trainer.saturation import Saturation

DRAW_EVERY_S = 60.0  # at most so often, and after as many times the seconds that it took:
DRAW_PAUSES = 100


class RunRecord:
    """The rows of a run, its best weights, and its files. Of several processes only the first writes.

    folder: of the run. rows: of metrics.jsonl, one an epoch. best: the highest held-out top-1 so far.
    """

    def __init__(self, folder: Path | None, recipe: Recipe, config: Model, res: int, manifest: Manifest):
        """folder: None until it is known. config: the model's, without a name. res: that the model sees."""
        self.folder: Any = folder  # a Path by the time that anything is written
        self.rows: list[dict[str, Any]] = []
        self.best: float | None = None
        self._drawn_at, self._drawing_s = time.monotonic(), 0.0
        self._recipe, self._config = recipe, config
        self._best_weights: tuple[dict[str, torch.Tensor], dict[str, Any]] | None = None  # not yet on the disk
        self._facts = {
            "res": res,
            "num_classes": manifest.num_classes,
            "classes_sha256": manifest.classes_sha256,
            "mean": recipe.augment.mean or manifest.mean,
            "std": recipe.augment.std or [max(s, 1e-3) for s in manifest.std],
        }

    def is_finished(self) -> bool:
        return len(self.rows) >= self._recipe.train.epochs and (self.folder / report.SUMMARY).exists()

    def begin(self) -> None:
        """Write the recipe, and remove the summary, which says that a run is finished."""
        text = yaml.safe_dump(self._recipe.to_dict(), sort_keys=False)
        run_directory.write_file(self.folder / "recipe.yaml", text.encode())
        with run_directory.write_errors(self.folder / report.SUMMARY):
            (self.folder / report.SUMMARY).unlink(missing_ok=True)

    def note_evaluation(self, model: nn.Module, row: dict[str, Any]) -> None:
        """Remember an evaluated model's weights if they are the best so far."""
        if self.best is None or row["val_top1"] > self.best:
            self.best = row["val_top1"]
            self._best_weights = ({k: v.detach().clone() for k, v in model.state_dict().items()}, self._with_row(row))

    def write_checkpoints(self, model: nn.Module, state: dict[str, Any], step: int, evaluated: bool) -> None:
        """Write the last weights, the best if they are new, and the state of a resume.

        model: whose weights are saved. evaluated: whether the run has held-out images; else the last weights are best.
        """
        recipe = replace(self._recipe, model=self._config)
        last = model.state_dict(), self._with_row(self.rows[-1] if self.rows else {}) | {"step": step}
        save_weights(self.folder / LAST, last[0], recipe, last[1])
        best = self._best_weights if evaluated else last
        if best:
            save_weights(self.folder / BEST, best[0], recipe, best[1])
            self._best_weights = None
        own = {"recipe": self._recipe.to_dict(), "config": asdict(self._config), "best": self.best, "rows": self.rows}
        states.save_state(self.folder, step, own | state, self._recipe.save.keep)

    def _with_row(self, row: dict[str, Any]) -> dict[str, Any]:
        return self._facts | {"epoch": row.get("epoch", 0), "step": row.get("step", 0), "metrics": row}

    def draw_in_time(self) -> None:
        """Draw the curve so far, where that was not done a while ago: it takes a hundredth of the time at most."""
        pause = max(DRAW_EVERY_S, DRAW_PAUSES * self._drawing_s)
        if time.monotonic() - self._drawn_at >= pause:
            self.draw()

    def draw(self) -> None:
        """Draw the curve of the epochs so far."""
        if self.rows:
            from trainer.curve import draw_curve  # matplotlib is slow to import: not before the first step

            started = time.monotonic()
            draw_curve(self.folder, self._recipe, self.rows)
            self._drawn_at = time.monotonic()
            self._drawing_s = self._drawn_at - started

    def finish(self, saturation: Saturation) -> list[str]:
        """Write the summary and the curve; returns the lines that a run ends with."""
        report.write_summary(self.folder, {"best_val_top1": self.best, **asdict(saturation)})
        self.draw()
        best = "nothing held out"
        if self.best is not None:
            epoch = next(row["epoch"] for row in self.rows if row.get("val_top1") == self.best)
            best = f"best val top-1 {self.best:.2%}, epoch {epoch}, {self._recipe.train.precision}"
        return [*saturation.sentence().split("\n"), f"{best}; {self.folder / BEST}, {self.folder / CURVE}"]
