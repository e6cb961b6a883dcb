"""What a run reports: metrics.jsonl, steps.jsonl, event files, and the line on the terminal."""

from __future__ import annotations

import contextlib
import importlib.util
import json
import os
import shutil
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from mlpdata.errors import Error, printable_lines
from mlpdata.system.format import format_seconds
from mlpdata.system.optional import missing
from trainer.recipe import Recipe
from trainer.run_directory import WriteError, write_errors, write_file

METRICS, STEPS, SUMMARY = "metrics.jsonl", "steps.jsonl", "summary.json"
MAX_LINE_BYTES = 1000  # of steps.jsonl; ours are far shorter


def read_metrics(run: Path) -> list[dict[str, Any]]:
    """A row for each epoch so far, [] where there is no metrics.jsonl. Raises Error where it is damaged."""
    path = run / METRICS
    try:
        lines = path.read_bytes().splitlines() if path.exists() else []
        rows: list[Any] = [json.loads(line) for line in lines]
    except (OSError, ValueError, RecursionError):
        rows = [None]
    if not all(isinstance(row, dict) for row in rows):
        raise Error(f"{path} is damaged; `mlpdata train ... --resume` writes it anew from the run's last state")
    return rows


def write_metrics(run: Path, rows: list[dict[str, Any]]) -> None:
    """Rewrite the file with all epochs: they are few, and an append could be torn."""
    write_file(run / METRICS, "".join(json.dumps(row) + "\n" for row in rows).encode())


def append_steps(run: Path, first: int, losses: list[float]) -> None:
    """Record the losses of steps from `first` on, a JSON object a line."""
    with write_errors(run / STEPS), open(run / STEPS, "a", encoding="utf-8") as f:
        f.writelines(json.dumps({"step": first + k, "loss": loss}) + "\n" for k, loss in enumerate(losses))
        f.flush()
        os.fsync(f.fileno())


def cut_steps(run: Path, last: int, say: Callable[[str], None]) -> None:
    """Remove the steps after `last`, the step of the state that a resume starts from: it takes them again.

    Of a damaged file the lines before the damage are kept; `say` gets a line about the lost steps.
    """
    path, end, kept = run / STEPS, 0, 0
    with write_errors(path), open(path, "a+b") as f:
        f.seek(0)
        for line in f:
            step = _step(line)
            if step is None or step > last:
                break
            end, kept = end + len(line), step
        f.truncate(end)
    if kept < last:
        say(f"warning: {path} lacks the losses of step {kept + 1} up to step {last}, which cannot be recovered")


def _step(line: bytes) -> int | None:
    """The step of a line of steps.jsonl; None for a damaged line."""
    with contextlib.suppress(ValueError, KeyError, TypeError, RecursionError):
        step = json.loads(line)["step"] if len(line) < MAX_LINE_BYTES and line.endswith(b"}\n") else None
        return step if type(step) is int else None
    return None


def write_summary(run: Path, summary: dict[str, Any]) -> None:
    write_file(run / SUMMARY, (json.dumps(summary, indent=1) + "\n").encode())


class Trackers:
    """TensorBoard's event files and Weights & Biases, where they are installed and wanted."""

    def __init__(self, run: Path, recipe: Recipe, step: int):
        """step: the one that the run resumes from; TensorBoard hides later events of the run."""
        self._events = self._wandb = None
        self._path, self._purge_step = run / "tensorboard", step + 1 if step else None
        wanted = recipe.log.tensorboard
        self._wants_events = wanted or (wanted is None and importlib.util.find_spec("tensorboard") is not None)
        if recipe.log.wandb:
            import wandb

            self._wandb = wandb.init(
                project="mlpdata", name=run.name, id=run.name, dir=str(run), config=recipe.to_dict(), resume="allow"
            )

    @staticmethod
    def check(recipe: Recipe) -> None:
        """Raise Error where a tracker is wanted that is not installed."""
        if recipe.log.tensorboard and importlib.util.find_spec("tensorboard") is None:
            raise missing("tensorboard", "log.tensorboard")
        if recipe.log.wandb and importlib.util.find_spec("wandb") is None:
            raise missing("wandb", "log.wandb")

    def write(self, row: dict[str, Any]) -> None:
        """Send an epoch's row."""
        if self._wants_events:
            from torch.utils.tensorboard import SummaryWriter  # slow to import: not before the first step

            with write_errors(self._path):
                if self._events is None:
                    self._events = SummaryWriter(str(self._path), purge_step=self._purge_step)
                for key, value in row.items():
                    if key not in ("epoch", "step"):
                        self._events.add_scalar(key.replace("_", "/", 1), value, row["step"])
                self._events.flush()
        if self._wandb is not None:
            self._wandb.log(row, step=row["step"])

    def close(self) -> None:
        if self._events is not None:
            with write_errors(self._path):
                self._events.close()
        if self._wandb is not None:
            self._wandb.finish()


def print_lines(*lines: str) -> None:
    """Print lines. Raises WriteError where standard output fails, such as a log on a full disk."""
    try:
        print(printable_lines(lines), flush=True)
    except OSError as e:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # else Python fails again as it ends
        if not isinstance(e, BrokenPipeError):  # its reader went away: no reason to stop
            raise WriteError(f"cannot write to standard output: {e.strerror}") from None


class TimeLeft:
    """The time until a run ends, from the steps that this process has taken: evaluating and saving count as well."""

    def __init__(self, step: int, total_steps: int):
        """step: the one that the run begins or resumes after."""
        self._first, self._total, self._started = step, total_steps, time.monotonic()

    def text(self, step: int) -> str:
        """What a line says of it after so many steps; "" where nothing is left, or nothing known."""
        taken, left = step - self._first, self._total - step
        if not taken or not left:
            return ""
        return f"  {format_seconds((time.monotonic() - self._started) / taken * left)} left"


class EpochLine:
    """The live line of an epoch; without a terminal, a plain line every few seconds, as when converting.

    due: costs nothing to ask; the numbers, which wait for the device, are fetched only then.
    """

    EVERY_S, PLAIN_EVERY_S = 1.0, 10.0

    def __init__(self, quiet: bool = False):
        self.live, self.quiet = sys.stderr is not None and sys.stderr.isatty(), quiet  # None: it was closed
        self._last = time.monotonic()

    def due(self) -> bool:
        return not self.quiet and time.monotonic() - self._last >= (self.EVERY_S if self.live else self.PLAIN_EVERY_S)

    def show(self, text: str) -> None:
        self._last = time.monotonic()
        if self.live:
            columns = shutil.get_terminal_size().columns - 1  # a longer line would scroll
            while len(text) > columns and "  " in text:  # no measure without its number
                text = text.rpartition("  ")[0]
            print(f"\r\x1b[2K{text[:columns]}", end="", file=sys.stderr, flush=True)
        else:
            print_lines(text)

    def end(self, text: str) -> None:
        """Replace the live line by the final line of the epoch."""
        if self.quiet:
            return
        if self.live:
            print("\r\x1b[2K", end="", file=sys.stderr)
        print_lines(text)
