"""Stage 1, in the parent: every unit of the plan becomes a part, and what the parts hold is counted."""

from __future__ import annotations

import pickle
from collections.abc import Callable, Collection, Iterator
from dataclasses import dataclass

import numpy as np

from mlpdata.convert.limit import first_samples
from mlpdata.convert.plan import ConversionPlan, splits_of
from mlpdata.convert.sums import Summary
from mlpdata.convert.unit import PartCounts, check_unit, convert_unit
from mlpdata.convert.worker import UnitTask, WorkerContext
from mlpdata.errors import Error
from mlpdata.shards import card
from mlpdata.sources import NothingLeft, Sample, TooSmall
from mlpdata.system.engines import Engine
from mlpdata.system.files import sync_dir
from mlpdata.system.format import plural
from mlpdata.system.progress import Progress

SMALLEST_UNITS = 20  # whose first class is looked at for one that --val-per-class empties


# -------------------------------------------------------------------------------------------------- class filter


def check_classes(plan: ConversionPlan) -> None:
    """Raise Error before any work where no class is large enough, or --val-per-class empties one of the smallest.

    Some sources know how many images a class has only when they read its names. Of these the largest units are tried
    until one has a class that is large enough: in most archives the first. `check_totals` knows all classes.
    """
    class_filter = plan.class_filter
    by_size = sorted((task.unit for task in plan.tasks), key=lambda unit: unit.num_bytes)
    source = pickle.loads(pickle.dumps(plan.source))  # this process opens nothing that workers would inherit
    if class_filter.val_per_class >= max(1, class_filter.min_class_size):
        for unit in by_size[:SMALLEST_UNITS]:
            next(source.samples(unit), None)  # raises Error for a class that is emptied
    if class_filter.min_class_size and source.drops_empty_classes:
        small: dict[str, int] = {}
        for unit in reversed(by_size):
            for sample in source.samples(unit):
                if isinstance(sample, Sample):
                    return
                if isinstance(sample, TooSmall):
                    small[sample.class_name] = sample.num_images
        if small:
            raise class_filter.none_left(small)


# -------------------------------------------------------------------------------------------------------- convert


def convert_parts(
    plan: ConversionPlan, engine: Engine, known: Collection[str], say: Callable[[str], None], again: bool
) -> None:
    """Convert the units of this run's share whose parts are not there yet.

    known: names of units whose parts are whole: this run made them, or looked at them.
    again: this run had all of them before; some have to be made anew.
    """
    unknown = [task for task in plan.own_tasks if task.unit.name not in known]
    done = _check_parts(plan, unknown, engine)
    todo = [task for task in unknown if task.unit.name not in done]
    if plan.assemble and todo and not again:
        raise Error(_missing(plan, todo))
    with _progress(plan, todo if again else plan.own_tasks) as progress:
        if done and not again:
            say(f"going on: {len(done):,} of {plural(len(plan.own_tasks), 'unit')} done")
            for task in unknown:
                if counts := done.get(task.unit.name):
                    progress.resume(*_amount(task, counts))
        _make_parts(plan, todo, engine, progress)


def convert_first_samples(plan: ConversionPlan, engine: Engine) -> list[UnitTask]:
    """Convert just what --limit wants. Returns the tasks that it took, with how many samples of each are wanted."""
    assert plan.limit is not None
    wanted_splits = [tuple(s for s in splits_of(plan.source, t.unit) if s in plan.splits) for t in plan.tasks]
    with _progress(plan, []) as progress:

        def convert(tasks: list[UnitTask]) -> list[dict[str, int]]:
            done = _check_parts(plan, tasks, engine)
            done |= _make_parts(plan, [task for task in tasks if task.unit.name not in done], engine, progress)
            return [done[task.unit.name].samples for task in tasks]

        return first_samples([task.unit for task in plan.tasks], wanted_splits, plan.limit, convert)


def _check_parts(plan: ConversionPlan, tasks: list[UnitTask], engine: Engine) -> dict[str, PartCounts]:
    """What an earlier run left of the parts of tasks, by unit."""
    checks = [task for task in tasks if plan.work.part(task.unit.name).exists()]
    with Progress("checking", len(checks), unit="unit", quiet=plan.quiet) as progress:
        results = engine.map(check_unit, checks, progress)
        return {task.unit.name: counts for task, counts in results if counts is not None}


def _make_parts(
    plan: ConversionPlan, tasks: list[UnitTask], engine: Engine, progress: Progress
) -> dict[str, PartCounts]:
    made = {task.unit.name: counts for task, counts in engine.map(convert_unit, tasks, progress, _amount)}
    sync_dir(plan.work.parts)
    return made


def _progress(plan: ConversionPlan, tasks: list[UnitTask]) -> Progress:
    total_bytes = sum(task.unit.num_bytes for task in tasks)
    return Progress("converting", plan.num_expected, quiet=plan.quiet, total_bytes=total_bytes)


def _amount(task: UnitTask, counts: PartCounts) -> tuple[int, int, int]:
    """(samples, bytes read, skipped), for the progress line."""
    return sum(counts.samples.values()), task.unit.num_bytes, counts.num_skipped


def _missing(plan: ConversionPlan, todo: list[UnitTask]) -> str:
    """Which shares lack units, as far as the lock files of the machines that were at work tell."""
    counts = plan.work.share_counts()
    text = f"{len(todo):,} of {plural(len(plan.tasks), 'unit')} missing, the first is {todo[0].unit.name}"
    if len(counts) == 1:
        n, numbers = counts.pop(), {task.unit.name: i for i, task in enumerate(plan.tasks)}
        shares = sorted({numbers[task.unit.name] % n + 1 for task in todo})
        text += f"; run {', '.join(f'--part {k}/{n}' for k in shares)} first"
    return text + " (without --assemble this machine converts them)"


# ---------------------------------------------------------------------------------------------------------- count


@dataclass
class Totals:
    """What all parts together hold."""

    class_counts: dict[str, np.ndarray]  # split -> (classes,) by the source's labels
    num_skipped: dict[str, int]  # by split
    num_left_out: int  # files that are none of the data
    first_reasons: dict[str, str]  # by split: why the first of those that were skipped was
    small: dict[str, int]  # images of each class that was found too small when it was read
    decoded: set[str]  # units of which nothing was deferred
    payload_bytes: int  # of all samples, as pixels and encoded
    summary: Summary
    label_map: np.ndarray  # (classes,) the source's label -> the output's; -1 for a class that is left out
    num_enlarged: int = 0  # images smaller than they are stored
    smallest: int = 0  # pixels of the shorter side of the smallest of them

    @property
    def num_samples(self) -> int:
        return sum(int(counts.sum()) for counts in self.class_counts.values())


def count_parts(plan: ConversionPlan, context: WorkerContext) -> Totals:
    """Count what the parts hold, one after the other. Raises Error where that is no whole data set."""
    n = len(plan.source.classes)
    class_counts = {split: np.zeros(n, np.int64) for split in plan.splits}
    totals = Totals(class_counts, dict.fromkeys(plan.splits, 0), 0, {}, {}, set(), 0, Summary(), np.arange(n))
    for number, task in enumerate(plan.tasks):
        part = context.part(number)
        record = part.record
        totals.summary.add(record.summary)
        totals.small.update(record.small)
        totals.decoded |= {task.unit.name} if record.decodes_all else set()
        for skipped in record.skipped:
            if skipped.get("is_data", True):
                totals.num_skipped[skipped["split"]] += 1
                totals.first_reasons.setdefault(skipped["split"], skipped["reason"])
            else:
                totals.num_left_out += 1
        for split, (start, stop) in record.splits.items():
            rows = part.rows(start, stop)
            class_counts[split] += np.bincount(rows["label"], minlength=n)
            for column in ("pixels_bytes", "encoded_bytes"):
                totals.payload_bytes += int(rows[column].sum(dtype=np.int64))
            _count_enlarged(totals, rows)
    if plan.source.drops_empty_classes:
        is_kept = sum(class_counts.values()) > 0
        totals.label_map = np.where(is_kept, np.cumsum(is_kept) - 1, -1)
    return totals


def _count_enlarged(totals: Totals, rows: np.ndarray) -> None:
    is_enlarged = (rows["width"] > rows["source_width"]) | (rows["height"] > rows["source_height"])
    if is_enlarged.any():
        smallest = int(np.minimum(rows["source_width"], rows["source_height"]).min())
        totals.smallest = min(smallest, totals.smallest or smallest)
        totals.num_enlarged += int(is_enlarged.sum())


def iter_skipped(context: WorkerContext) -> Iterator[dict]:
    """The rows of skipped.jsonl, in the order of the source."""
    for number in range(len(context.unit_names)):
        yield from context.part(number).record.skipped


def check_totals(plan: ConversionPlan, context: WorkerContext, totals: Totals) -> None:
    """Raise Error where a split or a class is left empty, or more images than --max-skipped could not be read."""
    if totals.small and not totals.num_samples:
        raise plan.class_filter.none_left(totals.small)
    for split, counts in totals.class_counts.items():
        if not counts.sum():
            if reason := totals.first_reasons.get(split):
                raise Error(f"split {split!r} is empty: none of its images could be read; the first: {reason}")
            raise NothingLeft(f"split {split!r} is empty: the source has no image of it")
    if plan.class_filter.val_per_class and plan.limit is None and {"train", "val"} <= totals.class_counts.keys():
        emptied = (totals.class_counts["train"] == 0) & (totals.class_counts["val"] > 0)
        if emptied.any():
            label = int(emptied.argmax())
            name, n = plan.source.classes[label][0], int(totals.class_counts["val"][label])
            raise NothingLeft(
                f"class {name} has {plural(n, 'image')} that can be read: "
                f"--val-per-class {plan.class_filter.val_per_class} leaves none of them for training; hold out fewer, "
                "or leave such classes out with --min-class-size"
            )
    num_skipped = sum(totals.num_skipped.values())
    total = num_skipped + totals.num_samples
    if num_skipped / total > plan.max_skipped:  # not multiplied: 0.29 * 100 is less than 29
        card.write_skipped(plan.work.skipped, iter_skipped(context))
        first_reason = next(iter(totals.first_reasons.values()))
        raise Error(
            f"{num_skipped:,} of {plural(total, 'image')} ({num_skipped / total:.2%}) could not be read, "
            f"more than --max-skipped {plan.max_skipped:g}; the first: {first_reason}; all are listed in "
            f"{plan.work.skipped}. The same command with a larger --max-skipped goes on from here"
        )
