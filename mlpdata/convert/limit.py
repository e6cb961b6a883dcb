"""`--limit`: which units, and how many samples of each, hold exactly the first so many samples of every split.

Only converting a unit tells how many samples it has, of which splits, and how many of them can be read. So units are
converted in waves, in the order of the source, until every split has enough; then the last units are cut. The size of a
wave follows from what earlier waves held, so every run makes the same waves, whoever does the work.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

from mlpdata.convert.worker import UnitTask
from mlpdata.sources import Unit

FIRST_WAVE = 8  # units whose content is guessed; a later wave may have twice as many as were converted before it
UNKNOWN_SAMPLES = 500  # the guess for a unit whose number of samples only reading tells


def first_samples(
    units: Sequence[Unit],
    unit_splits: Sequence[Sequence[str]],
    limit: int,
    convert: Callable[[list[UnitTask]], list[dict[str, int]]],
) -> list[UnitTask]:
    """Convert as many units as it takes. Returns the tasks whose parts hold the first `limit` samples of every split.

    unit_splits: of each unit, the wanted splits that its samples may be of.
    convert:     makes the parts of tasks and returns how many samples of each split each of them holds.
    """
    limits: list[dict[str, int]] = [{} for _ in units]  # split -> how many samples each unit was asked for
    counts: list[dict[str, int]] = [{} for _ in units]  # split -> how many it gave
    queues: dict[str, list[int]] = {}  # split -> the units that may hold samples of it, in order
    for i, splits in enumerate(unit_splits):
        for split in splits:
            queues.setdefault(split, []).append(i)
    num_asked = dict.fromkeys(queues, 0)  # how many units of a split's queue were converted
    while True:
        wave: set[int] = set()
        for split, queue in queues.items():
            asked = queue[: num_asked[split]]
            num_given = sum(counts[i].get(split, 0) for i in asked)
            missing, expected, guesses = limit - num_given, 0, max(FIRST_WAVE, 2 * len(asked))
            for i in queue[len(asked) :]:
                if expected >= missing or not guesses:
                    break
                num_asked[split] += 1
                limits[i][split] = missing
                wave.add(i)
                if units[i].num_samples and len(unit_splits[i]) == 1:
                    expected += units[i].num_samples
                else:
                    expected += num_given / len(asked) if asked else units[i].num_samples or UNKNOWN_SAMPLES
                    guesses -= 1
        if not wave:
            break
        tasks = [UnitTask(units[i], limits[i]) for i in sorted(wave)]
        for i, given in zip(sorted(wave), convert(tasks), strict=True):
            counts[i] = given
    cut = set()
    for split, queue in queues.items():
        left = limit
        for i in queue[: num_asked[split]]:
            count = counts[i].get(split, 0)
            if left == 0 or count > left:
                limits[i][split] = left
                cut.add(i)
            left -= min(left, count)
    limits = [{split: n for split, n in wanted.items() if n} for wanted in limits]
    convert([UnitTask(units[i], limits[i]) for i in sorted(cut) if limits[i]])
    return [UnitTask(unit, wanted) for unit, wanted in zip(units, limits, strict=True) if wanted]
