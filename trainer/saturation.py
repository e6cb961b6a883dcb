"""Does the device ever wait for data? Images/s from shards against images/s on one batch that is already there.

Both take the same training steps, augmentation included, in short turns one after the other, so that whatever else the
machine does falls on both. Their ratio is the saturation: 1 means that data costs nothing.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, Any

import torch

from trainer.data import FeatureLoader
from trainer.model import forward_flops

if TYPE_CHECKING:
    from trainer.train import Trainer

TURN_S = 0.05  # a turn lasts at least so long, or one step
LEAST_TURNS = 5
# Peak of dense products in bf16, FLOP/s, from the vendors' data sheets; TF32 runs at half of it. First match counts.
PEAKS = (
    ("B200", 2250e12), ("H200", 989e12), ("H100 NVL", 835e12), ("H100 PCIe", 756e12), ("H100", 989e12),
    ("A100", 312e12), ("L40S", 362e12), ("L4", 121e12), ("RTX 4090", 165e12), ("A5000", 111e12), ("A6000", 155e12),
)  # fmt: skip
OF_PEAK = {"bf16": 1.0, "fp16": 1.0, "tf32": 0.5}


def flop_share(trainer: Trainer, images_per_s: float) -> float | None:
    """Model FLOPs over the devices' peak, a share; None where the peak is not known."""
    if trainer.device.type != "cuda" or trainer.recipe.train.precision not in OF_PEAK:
        return None
    name = torch.cuda.get_device_name(trainer.device)
    peak = next((flops for part, flops in PEAKS if part in name), None)
    if peak is None:
        return None
    peak *= OF_PEAK[trainer.recipe.train.precision] * trainer.world.size
    return images_per_s * 3 * forward_flops(trainer.model) / peak


def measure(trainer: Trainer, seconds: float) -> dict[str, Any]:
    """Take steps for about so long and compare. The model is trained on by this: nothing of it is saved.

    Gives images/s, each the median of some turns: `shards`, `fixed` (one stored batch, augmented anew each step),
    `loader` (augmented batches, no step), `pixels` (stored batches alone); and `saturation`, the median of each turn's
    shards over fixed. `wait_share` is the time that shards' steps waited for pixels: where nothing is read ahead, a
    machine that is busy with other work blurs it less than the ratio. Every process must call it.
    """
    loader, size = trainer.train_loader, trainer.recipe.train.batch_size
    waited = 0.0
    augment = None if isinstance(loader, FeatureLoader) else loader.augment
    with_augment = _endless(loader)
    trainer.model.train(not trainer.recipe.train.probe)
    fixed = _stored(loader)

    def step_fixed():
        trainer.train_step(augment.apply(fixed, 0, 0) if augment else fixed)

    def step_shards():
        nonlocal waited
        before = loader.wait_s
        batch = next(with_augment)
        waited += loader.wait_s - before
        trainer.train_step(batch)

    step_fixed()
    step_shards()
    each = _timed(trainer, step_fixed, 1)
    # Counted in steps, alike in all processes: one that took one more would wait for the others for ever.
    plan = torch.tensor([TURN_S / each, seconds / (2 * max(TURN_S, each))], device=trainer.device)
    steps, count = (int(x) for x in trainer.world.reduce(plan, "min").tolist())
    steps, turns, waited = max(1, steps), [], 0.0
    for k in range(max(LEAST_TURNS, count)):
        acts = (step_fixed, step_shards) if k % 2 else (step_shards, step_fixed)
        took = [_timed(trainer, act, steps) for act in acts]
        turns.append(took if k % 2 else took[::-1])
    wait_share = waited / (steps * sum(s for _, s in turns))
    whole = [_timed(trainer, lambda: next(with_augment), 1) for _ in range(LEAST_TURNS)]
    with_augment.close()
    loader.augment = None
    plain = _endless(loader)
    next(plain)
    alone = [_timed(trainer, lambda: next(plain), 1) for _ in range(LEAST_TURNS)]
    plain.close()
    loader.augment = augment
    trainer.step_losses.clear()
    rate = lambda times: size / statistics.median(times)  # noqa: E731
    return {
        "saturation": statistics.median(f / s for f, s in turns),
        "saturation_min": min(f / s for f, s in turns),
        "saturation_max": max(f / s for f, s in turns),
        "wait_share": wait_share,
        "shards": rate([s for _, s in turns]),
        "fixed": rate([f for f, _ in turns]),
        "loader": rate(whole),
        "pixels": rate(alone),
        "turns": len(turns),
    }


def _endless(loader) -> Iterator[Any]:
    while True:
        yield from loader


def _stored(loader):
    """One batch as it is stored, on the device."""
    augment, loader.augment = getattr(loader, "augment", None), None
    batches = iter(loader)
    try:
        return next(batches)
    finally:
        batches.close()
        loader.augment = augment


def _timed(trainer: Trainer, act: Callable[[], Any], times: int) -> float:
    """Seconds of one of so many acts, the device's work included."""
    _wait(trainer.device)
    started = time.perf_counter()
    for _ in range(times):
        act()
    _wait(trainer.device)
    return (time.perf_counter() - started) / times


def _wait(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def sentence(found: dict[str, Any]) -> str:
    return (
        f"saturation {found['saturation']:.3f}: {found['shards']:,.0f} images/s from shards, {found['fixed']:,.0f} on "
        f"one fixed batch, {found['wait_share']:.1%} waiting; the loader alone {found['loader']:,.0f}"
    )


def table(found: dict[str, Any]) -> str:
    rows = (
        ("training from shards", "shards"), ("training on one fixed batch, augmented each step", "fixed"),
        ("loader with augmentation, no training", "loader"), ("loader alone", "pixels"),
    )  # fmt: skip
    lines = [f"{found[key]:14,.0f} images/s  {what}" for what, key in rows]
    return "\n".join(
        [
            *lines,
            f"{found['saturation']:14.3f} saturation, the first over the second; {found['wait_share']:.2%} waiting",
        ]
    )
