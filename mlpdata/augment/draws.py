"""Counter-based random numbers: every draw is a hash of (seed, epoch, sample id, purpose), the same on any device.

A sample's augmentation therefore does not depend on the batch it is in, on workers, ranks or a resume. What is
computed from the draws uses only arithmetic with one right result: integers, the basic float operations and the square
root. Everything else goes through a table that is made on the CPU.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import cache

import torch
from torch import Tensor

TABLE_POINTS = 4097  # of a table of quantiles
TRIES = 10  # random boxes tried until one fits, as in torchvision's RandomResizedCrop and RandomErasing

# What a draw is for; draws for different purposes are independent. Part of a run's identity: never renumber.
AREA, RATIO, TOP, LEFT, FLIP, MIXUP = 0, TRIES, 2 * TRIES, 2 * TRIES + 1, 2 * TRIES + 2, 2 * TRIES + 3
PAD_TOP, PAD_LEFT = 24, 25
JITTER = BRIGHTNESS, CONTRAST, SATURATION = 26, 27, 28
CUTOUT_TOP, CUTOUT_LEFT, ERASE, ERASE_TOP, ERASE_LEFT = 29, 30, 31, 32, 33
CUTMIX, CUTMIX_TOP, CUTMIX_LEFT, WHICH_MIX = 34, 35, 36, 37
ERASE_AREA, ERASE_RATIO = 40, 40 + TRIES

CROP = (*range(AREA, AREA + TRIES), *range(RATIO, RATIO + TRIES), TOP, LEFT)
ERASING = (
    ERASE,
    ERASE_TOP,
    ERASE_LEFT,
    *range(ERASE_AREA, ERASE_AREA + TRIES),
    *range(ERASE_RATIO, ERASE_RATIO + TRIES),
)


@dataclass(frozen=True)
class Draws:
    """Draws of some samples for some purposes. values: float32 (N, len(purposes)), from 0 to below 1."""

    values: Tensor
    purposes: tuple[int, ...]

    @classmethod
    def of(cls, ids: Tensor, seed: int, epoch: int, purposes: tuple[int, ...]) -> Draws:
        """Draw for each id, int64 (N,). Values are multiples of 2^-24.

        SplitMix64's finaliser (Steele, Lea, Flood 2014) over a counter made of all four inputs.
        """
        bits = _mix(ids.unsqueeze(1) ^ _mix(_tensor(purposes, ids.device) ^ key_of(seed, epoch)))
        return cls(((bits >> 40) & 0xFFFFFF).to(torch.float32) * (1 / (1 << 24)), purposes)

    def uniform(self, purpose: int) -> Tensor:
        """A number in [0, 1) for each sample: float32 (N,)."""
        return self.values[:, self.purposes.index(purpose)]

    def tries(self, purpose: int) -> Tensor:
        """Numbers in [0, 1) for the TRIES purposes from `purpose` on: float32 (N, TRIES)."""
        first = self.purposes.index(purpose)
        return self.values[:, first : first + TRIES]

    def integer(self, purpose: int, count: Tensor | int) -> Tensor:
        """A number from 0 to count - 1: int64 (N,)."""
        return (self.uniform(purpose) * count).long()


def key_of(seed: int, epoch: int) -> int:
    """What seed and epoch contribute to every draw, an int64."""
    return int(_mix(_mix(torch.tensor(_signed(seed))) ^ epoch))


@cache
def _tensor(purposes: tuple[int, ...], device: torch.device) -> Tensor:
    return torch.tensor(purposes, dtype=torch.int64, device=device)


def _signed(x: int) -> int:
    """The int64 that has the lower 64 bits of x."""
    return (x + (1 << 63)) % (1 << 64) - (1 << 63)


SUMMAND, FACTOR_1, FACTOR_2 = map(_signed, (0x9E3779B97F4A7C15, 0xBF58476D1CE4E5B9, 0x94D049BB133111EB))


def _mix(x: Tensor) -> Tensor:
    """SplitMix64 on int64: products wrap, and a logical shift is an arithmetic one with its sign bits cut off."""
    x = x + SUMMAND
    x = (x ^ ((x >> 30) & ((1 << 34) - 1))) * FACTOR_1
    x = (x ^ ((x >> 27) & ((1 << 37) - 1))) * FACTOR_2
    return x ^ ((x >> 31) & ((1 << 33) - 1))


# ---------------------------------------------------------------------------------------------------------- tables


@cache
def beta_table(alpha: float, device: torch.device) -> Tensor:
    """Quantiles of Beta(alpha, alpha) at TABLE_POINTS equally spaced probabilities, float32: its density, integrated.

    With x = sin^2 t the density is (sin t cos t)^(2 alpha - 1), which is tame where that of x is not.
    """
    t = (torch.arange(1 << 18, dtype=torch.float64) + 0.5) * (math.pi / 2 / (1 << 18))
    mass = (t.sin() * t.cos()).pow(2 * alpha - 1)
    total = mass.cumsum(0) / mass.sum()
    index = torch.searchsorted(total, torch.linspace(0, 1, TABLE_POINTS, dtype=torch.float64)).clamp_(max=len(t) - 1)
    quantiles = t[index].sin().square()
    quantiles[0], quantiles[-1] = 0, 1
    return quantiles.float().to(device)


@cache
def ratio_table(low: float, high: float, device: torch.device) -> Tensor:
    """Quantiles of a ratio that is uniform in its logarithm from low to high, float32. Between points: within 1e-7."""
    return torch.linspace(math.log(low), math.log(high), TABLE_POINTS, dtype=torch.float64).exp().float().to(device)


def look_up(table: Tensor, u: Tensor) -> Tensor:
    """Uniform draws to the distribution whose quantiles are given: float32 of any shape -> the same shape."""
    position = u * (len(table) - 1)
    low = position.long().clamp(max=len(table) - 2)
    start = table[low]
    return start + (table[low + 1] - start) * (position - low)
