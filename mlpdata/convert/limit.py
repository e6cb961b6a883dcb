"""`--limit`: which units, and how many samples of each, are exactly the first so many of every split.

How many samples a unit has, of which splits and how many of them can be read is known only when it was converted. So
units are converted in waves, in the order of the source, until every split has enough, and the last ones are cut. What
a wave is follows from what the waves before it held: the same in every run, whoever does the work.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

from mlpdata.convert.worker import UnitTask
from mlpdata.sources import Unit

FIRST_WAVE = 8  # units of which it is guessed what they hold; a wave may have twice as many as were read before it
UNKNOWN_SAMPLES = 500  # of a unit whose number of samples only reading tells


def first_samples(
    units: Sequence[Unit],
    holds: Sequence[Sequence[str]],
    limit: int,
    convert: Callable[[list[UnitTask]], list[dict[str, int]]],
) -> list[UnitTask]:
    """Convert as many units as it takes. Returns the tasks whose parts hold the first `limit` samples of every split.

    holds:   of each unit, the wanted splits that its samples may be of.
    convert: makes the parts of tasks and returns how many samples of each split each of them holds.
    """
    limits: list[dict[str, int]] = [{} for _ in units]  # what each unit was asked for
    found: list[dict[str, int]] = [{} for _ in units]  # and what came
    queues: dict[str, list[int]] = {}  # split -> the units that may hold it
    for i, names in enumerate(holds):
        for split in names:
            queues.setdefault(split, []).append(i)
    asked = dict.fromkeys(queues, 0)  # how many of a split's units were
    while True:
        wave: set[int] = set()
        for split, queue in queues.items():
            done = queue[: asked[split]]
            come = sum(found[i].get(split, 0) for i in done)
            missing, expected, guesses = limit - come, 0, max(FIRST_WAVE, 2 * len(done))
            for i in queue[len(done) :]:
                if expected >= missing or not guesses:
                    break
                asked[split] += 1
                limits[i][split] = missing
                wave.add(i)
                if units[i].num_samples and len(holds[i]) == 1:
                    expected += units[i].num_samples
                else:
                    expected += come / len(done) if done else units[i].num_samples or UNKNOWN_SAMPLES
                    guesses -= 1
        if not wave:
            break
        for i, counts in zip(sorted(wave), convert([UnitTask(units[i], limits[i]) for i in sorted(wave)]), strict=True):
            found[i] = counts
    changed = set()
    for split, queue in queues.items():
        left = limit
        for i in queue[: asked[split]]:
            count = found[i].get(split, 0)
            if left == 0 or count > left:
                limits[i][split] = left
                changed.add(i)
            left -= min(left, count)
    limits = [{split: n for split, n in wanted.items() if n} for wanted in limits]
    convert([UnitTask(units[i], limits[i]) for i in sorted(changed) if limits[i]])
    return [UnitTask(unit, wanted) for unit, wanted in zip(units, limits, strict=True) if wanted]
