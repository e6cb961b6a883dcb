"""Random numbers by counting: every draw is a hash of (seed, epoch, sample id, purpose), the same on any device.

A sample's augmentation therefore does not depend on the batch it is in, on workers, ranks or a resume. What is
computed from the draws keeps to arithmetic whose result is the same however it is vectorised, fused or split: integers,
the basic float operations and the square root; anything else goes through a table.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import cache

import torch

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

_ADD, _MUL1, _MUL2 = 0x9E3779B97F4A7C15, 0xBF58476D1CE4E5B9, 0x94D049BB133111EB
_MASK = (1 << 64) - 1


@dataclass(frozen=True)
class Draws:
    """Draws of some samples for some purposes. values: float32 (N, len(purposes)), from 0 to below 1."""

    values: torch.Tensor
    purposes: tuple[int, ...]

    @classmethod
    def of(cls, ids: torch.Tensor, seed: int, epoch: int, purposes: tuple[int, ...]) -> Draws:
        """Draw for each id, int64 (N,). Values are multiples of 2^-24.

        SplitMix64's finaliser (Steele, Lea, Flood 2014) over a counter made of all four inputs.
        """
        # torch.full passes its number with the launch: nothing is copied, nothing waits for the device.
        key = torch.full((), _signed(_mix(_mix(seed) ^ epoch)), dtype=torch.int64, device=ids.device)
        bits = _mix_tensor(ids.unsqueeze(1) ^ _mix_tensor(key ^ _tensor(purposes, ids.device)))
        return cls(((bits >> 40) & 0xFFFFFF).to(torch.float32) * (1 / (1 << 24)), purposes)

    def uniform(self, purpose: int) -> torch.Tensor:
        """A number in [0, 1) for each sample: float32 (N,)."""
        return self.values[:, self.purposes.index(purpose)]

    def tries(self, purpose: int) -> torch.Tensor:
        """Numbers in [0, 1) for the TRIES purposes from `purpose` on: float32 (N, TRIES)."""
        first = self.purposes.index(purpose)
        return self.values[:, first : first + TRIES]

    def integer(self, purpose: int, count: torch.Tensor | int) -> torch.Tensor:
        """A number from 0 to count - 1: int64 (N,)."""
        return (self.uniform(purpose) * count).long()


def uniform(ids: torch.Tensor, seed: int, epoch: int, purpose: int) -> torch.Tensor:
    """A number in [0, 1) for each id: int64 (N,) -> float32 (N,)."""
    return Draws.of(ids, seed, epoch, (purpose,)).uniform(purpose)


@cache
def _tensor(purposes: tuple[int, ...], device: torch.device) -> torch.Tensor:
    return torch.tensor(purposes, dtype=torch.int64, device=device)


def _signed(x: int) -> int:
    return x - (1 << 64) if x >= 1 << 63 else x


def _mix(x: int) -> int:
    x = (x + _ADD) & _MASK
    x = ((x ^ (x >> 30)) * _MUL1) & _MASK
    x = ((x ^ (x >> 27)) * _MUL2) & _MASK
    return x ^ (x >> 31)


def _mix_tensor(x: torch.Tensor) -> torch.Tensor:
    """_mix on int64 tensors: products wrap, and a logical shift is an arithmetic one with its sign bits cut off."""
    x = x + _signed(_ADD)
    x = (x ^ ((x >> 30) & ((1 << 34) - 1))) * _signed(_MUL1)
    x = (x ^ ((x >> 27) & ((1 << 37) - 1))) * _signed(_MUL2)
    return x ^ ((x >> 31) & ((1 << 33) - 1))


# ---------------------------------------------------------------------------------------------------------- tables


@cache
def beta_table(alpha: float, device: torch.device, points: int = 4097) -> torch.Tensor:
    """Quantiles of Beta(alpha, alpha) at points equally spaced probabilities, float32, by integrating its density.

    With x = sin^2 t the density is (sin t cos t)^(2 alpha - 1), which is tame where that of x is not.
    """
    t = (torch.arange(1 << 18, dtype=torch.float64) + 0.5) * (math.pi / 2 / (1 << 18))
    mass = (t.sin() * t.cos()).pow(2 * alpha - 1)
    total = mass.cumsum(0) / mass.sum()
    at = torch.searchsorted(total, torch.linspace(0, 1, points, dtype=torch.float64)).clamp_(max=len(t) - 1)
    quantiles = t[at].sin().square()
    quantiles[0], quantiles[-1] = 0, 1
    return quantiles.float().to(device)


@cache
def ratio_table(low: float, high: float, device: torch.device, points: int = 4097) -> torch.Tensor:
    """Quantiles of a ratio that is uniform in its logarithm from low to high, float32. Between points: within 1e-7."""
    return torch.linspace(math.log(low), math.log(high), points, dtype=torch.float64).exp().float().to(device)


def look_up(table: torch.Tensor, u: torch.Tensor) -> torch.Tensor:
    """Uniform draws to the distribution whose quantiles are given: float32 of any shape -> the same shape."""
    place = u * (len(table) - 1)
    low = place.long().clamp(max=len(table) - 2)
    start = table[low]
    return start + (table[low + 1] - start) * (place - low)


# ----------------------------------------------------------------------------------------------------------- boxes


def crop_boxes(draws: Draws, height: int, width: int, scale, ratios: torch.Tensor, ratio) -> torch.Tensor:
    """A random box for each sample, as torchvision's RandomResizedCrop draws it: int64 (N, 4), top left height width.

    scale: (low, high) share of the area. ratio: (low, high), ratios: ratio_table of it. Up to ten boxes are tried;
    where none fits the image, the centre with the nearest allowed ratio is taken.
    """
    wide, high = _sides(draws, AREA, RATIO, height * width, scale, ratios)
    found, high, wide = _first(high, wide, (wide > 0) & (wide <= width) & (high > 0) & (high <= height))
    centre_wide = min(width, round(height * ratio[1])) if width / height > ratio[1] else width
    centre_high = min(height, round(width / ratio[0])) if width / height < ratio[0] else height
    high, wide = torch.where(found, high, centre_high), torch.where(found, wide, centre_wide)
    top = torch.where(found, draws.integer(TOP, height - high + 1), (height - centre_high) // 2)
    left = torch.where(found, draws.integer(LEFT, width - wide + 1), (width - centre_wide) // 2)
    return torch.stack((top, left, high, wide), 1)


def erase_boxes(draws: Draws, size: tuple[int, int], share: float, scale, ratios: torch.Tensor) -> torch.Tensor:
    """torchvision's RandomErasing: with probability `share` a random box, else an empty one, int64 (N, 4)."""
    height, width = size
    high, wide = _sides(draws, ERASE_AREA, ERASE_RATIO, height * width, scale, ratios)
    found, high, wide = _first(high, wide, (wide < width) & (high < height))
    found = found & (draws.uniform(ERASE) < share)
    top, left = draws.integer(ERASE_TOP, height - high + 1), draws.integer(ERASE_LEFT, width - wide + 1)
    return torch.stack((top, left, high * found, wide * found), 1)


def cutout_boxes(draws: Draws, size: tuple[int, int], side: int) -> torch.Tensor:
    """A square around a random pixel, of which the image's edge may cut a part: int64 (N, 4)."""
    top = draws.integer(CUTOUT_TOP, size[0]) - side // 2
    left = draws.integer(CUTOUT_LEFT, size[1]) - side // 2
    return torch.stack((top, left, torch.full_like(top, side), torch.full_like(top, side)), 1)


def cutmix_boxes(draws: Draws, size: tuple[int, int], lam: torch.Tensor) -> torch.Tensor:
    """torchvision's CutMix: a box of the share 1 - lam around a random pixel, cut at the edges: int64 (N, 4)."""
    half = torch.sqrt(1 - lam) * 0.5
    sides = []
    for purpose, length in ((CUTMIX_TOP, size[0]), (CUTMIX_LEFT, size[1])):
        centre, reach = draws.integer(purpose, length), (half * length).long()
        sides.append(((centre - reach).clamp(min=0), (centre + reach).clamp(max=length)))
    (top, bottom), (left, right) = sides
    return torch.stack((top, left, bottom - top, right - left), 1)


def _sides(draws: Draws, area: int, ratio: int, pixels: int, scale, ratios) -> tuple[torch.Tensor, torch.Tensor]:
    """Sides of the boxes tried, float32 (N, TRIES) each; the ratio is that of the first to the second."""
    size = pixels * (scale[0] + (scale[1] - scale[0]) * draws.tries(area))
    aspect = look_up(ratios, draws.tries(ratio))
    return torch.round(torch.sqrt(size * aspect)), torch.round(torch.sqrt(size / aspect))


def _first(high, wide, fits) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Whether any box fits, bool (N,), and the sides of the first that does, int64 (N,) each, 0 where none does."""
    first = fits & (fits.cumsum(1) == 1)
    return fits.any(1), (high * first).sum(1).long(), (wide * first).sum(1).long()
