"""`--limit`: which units, and how many samples of each, hold exactly the first so many samples of every split.

Only converting a unit tells how many samples it has, of which splits, and how many of them can be read. So units are
converted in waves, in the order of the source, until every split has enough; then the last units are cut. The size of a
wave follows from what earlier waves held, so every run makes the same waves, whoever does the work.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence

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
    search = _Search(units, unit_splits, limit)
    while wave := search.next_wave():
        tasks = [UnitTask(units[i], search.limits[i]) for i in wave]
        for i, given in zip(wave, convert(tasks), strict=True):
            search.counts[i] = given
    cut = search.cut()
    limits = [{split: n for split, n in wanted.items() if n} for wanted in search.limits]
    convert([UnitTask(units[i], limits[i]) for i in cut if limits[i]])
    return [UnitTask(unit, wanted) for unit, wanted in zip(units, limits, strict=True) if wanted]


class _Search:
    """Which units were asked for samples of which splits, and what they gave."""

    def __init__(self, units: Sequence[Unit], unit_splits: Sequence[Sequence[str]], limit: int):
        self.limits: list[dict[str, int]] = [{} for _ in units]  # split -> how many samples each unit was asked for
        self.counts: list[dict[str, int]] = [{} for _ in units]  # split -> how many it gave
        self._units, self._unit_splits, self._limit = units, unit_splits, limit
        self._queues: dict[str, list[int]] = {}  # split -> the units that may hold samples of it, in order
        for i, splits in enumerate(unit_splits):
            for split in splits:
                self._queues.setdefault(split, []).append(i)
        self._num_asked = dict.fromkeys(self._queues, 0)  # how many units of a split's queue were converted

    def next_wave(self) -> list[int]:
        """Ask as many more units as should hold what is missing of each split. Returns them; [] once nothing is."""
        return sorted({i for split in self._queues for i in self._ask(split)})

    def _ask(self, split: str) -> Iterator[int]:
        queue, num_asked = self._queues[split], self._num_asked[split]
        num_given = sum(self.counts[i].get(split, 0) for i in queue[:num_asked])
        missing, expected, guesses = self._limit - num_given, 0, max(FIRST_WAVE, 2 * num_asked)
        for i in queue[num_asked:]:
            if expected >= missing or not guesses:
                return
            self._num_asked[split] += 1
            self.limits[i][split] = missing
            yield i
            num_samples = self._units[i].num_samples
            if num_samples and len(self._unit_splits[i]) == 1:
                expected += num_samples
            else:
                expected += num_given / num_asked if num_asked else num_samples or UNKNOWN_SAMPLES
                guesses -= 1

    def cut(self) -> list[int]:
        """Lower the limits of units that gave more than is wanted. Returns these units."""
        cut = set()
        for split, queue in self._queues.items():
            left = self._limit
            for i in queue[: self._num_asked[split]]:
                count = self.counts[i].get(split, 0)
                if left == 0 or count > left:
                    self.limits[i][split] = left
                    cut.add(i)
                left -= min(left, count)
        return sorted(cut)
