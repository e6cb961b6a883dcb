"""What the benchmarks share: how arguments are read, contestants take turns, and a row of results looks."""

from __future__ import annotations

import argparse
import importlib.metadata
import json
import os
import platform
import statistics
import sys
import time
from collections.abc import Callable, Iterable

try:
    CORES = len(os.sched_getaffinity(0))
except AttributeError:  # macOS
    CORES = os.cpu_count() or 1

SMOOTHING = 0.3  # of labels; the paper's
AUGMENTATIONS = {  # options of mlpdata.Augment
    "crop+flip": {},
    "crop+flip+mixup": {"mixup": 0.8},
    "pad+flip+cutout": {"crop_scale": None, "pad": 4, "cutout": 16},
    "everything": {"mixup": 0.8, "cutmix": 1.0, "brightness": 0.4, "contrast": 0.4, "saturation": 0.4, "erase": 0.25},
}


def parser(doc: str | None) -> argparse.ArgumentParser:
    """A parser whose --help is the text at the head of the script."""
    return argparse.ArgumentParser(description=doc, formatter_class=argparse.RawDescriptionHelpFormatter)


def machine(*packages: str) -> dict[str, object]:
    """Where and with what a row was measured; None for a package that is not installed."""
    row: dict[str, object] = {"date": time.strftime("%Y-%m-%d"), "cores": CORES, "machine": platform.machine()}
    row["python"] = platform.python_version()
    for package in packages:
        try:
            row[package] = importlib.metadata.version(package)
        except importlib.metadata.PackageNotFoundError:
            row[package] = None
    return row


def spread(values: Iterable[float], digits: int | None = None) -> dict[str, float]:
    """Median, least and most of some values."""
    values = list(values)
    return {name: round(f(values), digits) for name, f in (("median", statistics.median), ("min", min), ("max", max))}


def median_ratio(ours: Iterable[float], theirs: Iterable[float], digits: int = 3) -> float:
    """The median of the ratios of values that were measured in the same turn."""
    return round(statistics.median(a / b for a, b in zip(ours, theirs, strict=True)), digits)


def report(row: dict[str, object]) -> None:
    """Print a row as one line of JSON."""
    print(json.dumps(row), flush=True)


def started(contestants: dict[str, Callable], warm_up: Callable, required: str = "ours") -> dict:
    """{name: what a contestant starts}, warmed up. One that lacks its package is left out, and that is said."""
    running = {}
    for name, start in contestants.items():
        try:
            contestant = start()
            warm_up(contestant)
            running[name] = contestant
        except ImportError as e:
            if name.startswith(required):
                raise
            print(f"{name} left out: {e}", file=sys.stderr)
    return running


def take_turns(running: dict, turn: Callable, turns: int) -> dict[str, list]:
    """{name: what turn(contestant) returned, once a round}: a machine that slows down slows every contestant."""
    results: dict[str, list] = {name: [] for name in running}
    for _ in range(turns):
        for name, contestant in running.items():
            results[name].append(turn(contestant))
    return results
