"""Does the device ever wait for data? Images/s from shards against images/s on one batch that is already there.

Both take the same training steps, augmentation included, in short turns one after the other, so that whatever else the
machine does falls on both. Their ratio is the saturation: 1 means that data costs nothing.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Generator
from dataclasses import dataclass
from typing import Any

import torch

from mlpdata.augment.batch import Batch
from mlpdata.loader.loader import Loader
from mlpdata.loader.pinned import NUM_AHEAD
from mlpdata.system.format import format_rate
from trainer.world import World

# A turn lasts at least so long, or one step. A GPU idles until a turn's first step is launched, so turns are longer.
TURN_S = {"cpu": 0.05, "cuda": 0.25}
LEAST_TURNS = 5
ENOUGH_S = 2.0  # of shorter measurements, chance decides the second digit
# Shards cannot be faster than one stored batch, and the median of ratios is near the ratio of medians; if either is off
# by so much, something else disturbed the turns.
DISTURBED = 0.05


@dataclass(frozen=True, kw_only=True)
class Saturation:
    """Speeds in images/s, each the median over the turns, and how they compare."""

    saturation: float  # median of each turn's shards / fixed
    saturation_min: float
    saturation_max: float
    wait_share: float  # of the time of the steps on shards; blurred less than the ratio by other work on the machine
    shards: float  # training from shards
    fixed: float  # training on one stored batch, augmented anew each step
    loader: float  # augmented batches, no training
    pixels: float  # stored batches, no augmentation
    turns: int
    seconds: float  # of all turns

    def doubt(self) -> str:
        """What to say of a measurement that was too short to go by, or disturbed; "" of any other."""
        spread = f"single turns are between {self.saturation_min:.2f} and {self.saturation_max:.2f}"
        if self.seconds < ENOUGH_S:
            return f"the saturation was measured for only {self.seconds:.2g} s and is not reliable: {spread}"
        medians = self.shards / self.fixed
        if max(self.saturation, medians) > 1 + DISTURBED or abs(self.saturation / medians - 1) > DISTURBED:
            return f"the saturation is not reliable, because other work disturbed its measurement: {spread}"
        return ""

    def sentence(self) -> str:
        doubt = f"\n{doubt}; --profile measures for longer" if (doubt := self.doubt()) else ""
        return (
            f"saturation {self.saturation:.3f}: training takes {format_rate(self.shards)} from shards, "
            f"{self.fixed:,.0f} from one batch in memory; it waits {self.wait_share:.1%} of the time; loader and "
            f"augmentation alone give {format_rate(self.loader)}{doubt}"
        )

    def table(self) -> list[str]:
        """The lines of --profile."""
        doubt = self.doubt()
        return [
            f"{format_rate(self.shards):>23}  training from shards",
            f"{format_rate(self.fixed):>23}  training on one fixed batch, augmented each step",
            f"{format_rate(self.loader):>23}  loader with augmentation, no training",
            f"{format_rate(self.pixels):>23}  loader alone",
            f"{self.saturation:14.3f} saturation, the first over the second; {self.wait_share:.2%} waiting",
            *([f"warning: {doubt}"] if doubt else []),
        ]


def measure(train_step: Callable[[Batch], None], loader: Loader, world: World, seconds: float) -> Saturation:
    """Take training steps for about so long and compare. Every process must call it.

    train_step: one step on a batch; it changes the model, so nothing of the model may be saved afterwards.
    """
    augment, device, waited_s = loader.augment, loader.device, 0.0
    loader.augment = None
    fixed_batch = next(_batches(loader))
    loader.augment = augment
    batches = _batches(loader)

    def step_fixed():
        train_step(augment.apply(fixed_batch, 0, 0) if augment else fixed_batch)

    def step_shards():
        nonlocal waited_s
        before = loader.wait_s
        batch = next(batches)
        waited_s += loader.wait_s - before
        train_step(batch)

    step_fixed()
    step_shards()
    step_s = max(1e-4, _timed(step_fixed, 1, device))  # where the clock stood still: no step without end
    # Counted in steps, alike in all processes: one that took one more would wait for the others for ever.
    turn_s = TURN_S[device.type]
    plan = torch.tensor([turn_s / step_s, seconds / (2 * max(turn_s, step_s))], device=device)
    steps, num_turns = (int(x) for x in world.reduce(plan, "min").tolist())
    steps, turns, waited_s = max(1, steps), [], 0.0
    for k in range(max(LEAST_TURNS, num_turns)):
        order = (step_fixed, step_shards) if k % 2 else (step_shards, step_fixed)
        times = [_timed(step, steps, device) for step in order]
        turns.append(times if k % 2 else times[::-1])
    wait_share = waited_s / (steps * sum(shards for _, shards in turns))
    augmented = _timed_batches(batches, device)
    loader.augment = None
    stored = _timed_batches(_batches(loader), device)
    loader.augment = augment
    ratios = [fixed / shards for fixed, shards in turns]
    return Saturation(
        saturation=statistics.median(ratios),
        saturation_min=min(ratios),
        saturation_max=max(ratios),
        wait_share=wait_share,
        shards=loader.batch_size / statistics.median(shards for _, shards in turns),
        fixed=loader.batch_size / statistics.median(fixed for fixed, _ in turns),
        loader=loader.batch_size / augmented,
        pixels=loader.batch_size / stored,
        turns=len(turns),
        seconds=steps * sum(map(sum, turns)),
    )


def _batches(loader: Loader) -> Generator[Batch]:
    while True:
        yield from loader


def _timed_batches(batches: Generator[Batch], device: torch.device) -> float:
    """Seconds a batch takes without training: of some, after those that were prefetched while something else ran."""
    for _ in range(NUM_AHEAD):
        next(batches)
    seconds = _timed(lambda: next(batches), max(LEAST_TURNS, 2 * NUM_AHEAD), device)
    batches.close()
    return seconds


def _timed(act: Callable[[], Any], times: int, device: torch.device) -> float:
    """Seconds of one of so many calls, the device's work included."""
    _synchronize(device)
    started = time.perf_counter()
    for _ in range(times):
        act()
    _synchronize(device)
    return max(1e-9, time.perf_counter() - started) / times  # some clocks stand still for milliseconds


def _synchronize(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)
