"""A batch to its augmented version, on the device, in one pass.

Shapes: N batch, H x W stored image, R augmented image. Every random number is a hash of (seed, epoch, sample id,
purpose): a sample's augmentation does not depend on the batch it is in, on workers, ranks or a resume.

The crop is two small matrix products, rows then columns, with the bilinear weights as matrices. Flipping mirrors the
columns' weights and normalising scales the rows', so both are free.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import cache

import torch

DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}
LAYOUTS = ("nchw", "channels_last", "flat")
TRIES = 10  # random boxes tried until one fits, as in torchvision.transforms.RandomResizedCrop.get_params

# What a draw is for; draws for different purposes are independent.
AREA, RATIO, TOP, LEFT, FLIP, MIXUP = 0, TRIES, 2 * TRIES, 2 * TRIES + 1, 2 * TRIES + 2, 2 * TRIES + 3


@dataclass(slots=True)
class Batch:
    """N samples on the device.

    images: uint8 (N, H, W, 3), or what the augmentation made of them. labels, ids: int64 (N,); an id is the sample's
    position in its split. mix_labels, mix_lam: the partner's label, int64 (N,), and the own label's weight, float32
    (N,); None without mixup.
    """

    images: torch.Tensor
    labels: torch.Tensor
    ids: torch.Tensor
    mix_labels: torch.Tensor | None = None
    mix_lam: torch.Tensor | None = None


@dataclass(frozen=True, kw_only=True)
class Augment:
    """What is done to a batch. Without random parts it is the evaluation transform.

    res:        output pixels a side; None keeps the stored size.
    crop_scale: share of the area a random crop takes, (low, high); None for no crop.
    crop_ratio: width over height of a crop, (low, high), drawn log-uniformly.
    flip:       mirror every other image at random.
    mixup:      alpha of Beta(alpha, alpha); 0 for none. One weight a sample, where the paper draws one a batch: the
                same distribution, and independent of how batches are cut. The partner is the batch's neighbour.
    mean, std:  per channel, on the scale of 0 to 1; None leaves values from 0 to 1.
    dtype:      of the output. layout: "nchw", "channels_last" (in memory), "flat" (N, 3 * R * R), channels first.
    """

    res: int | None = None
    crop_scale: tuple[float, float] | None = (0.08, 1.0)
    crop_ratio: tuple[float, float] = (3 / 4, 4 / 3)
    flip: bool = True
    mixup: float = 0.0
    mean: tuple[float, float, float] | None = None
    std: tuple[float, float, float] | None = None
    dtype: str = "float32"
    layout: str = "nchw"

    def __post_init__(self):
        if self.res is not None and self.res < 1:
            raise ValueError(f"res must be positive, not {self.res}")
        if self.crop_scale is not None and not 0 < self.crop_scale[0] <= self.crop_scale[1] <= 1:
            raise ValueError(f"crop_scale must be (low, high) with 0 < low <= high <= 1, not {self.crop_scale}")
        if not 0 < self.crop_ratio[0] <= self.crop_ratio[1]:
            raise ValueError(f"crop_ratio must be (low, high) with 0 < low <= high, not {self.crop_ratio}")
        if self.mixup < 0:
            raise ValueError(f"mixup must not be negative: {self.mixup}")
        if (self.mean is None) != (self.std is None):
            raise ValueError("mean and std come together")
        if self.std is not None and min(self.std) <= 0:
            raise ValueError(f"std must be positive, not {self.std}")
        if self.dtype not in DTYPES or self.layout not in LAYOUTS:
            raise ValueError(f"dtype is one of {', '.join(DTYPES)}, layout of {', '.join(LAYOUTS)}")

    def apply(self, batch: Batch, epoch: int, seed: int) -> Batch:
        """Augment a batch of uint8 (N, H, W, 3) images. Never waits for the device."""
        images, ids = batch.images, batch.ids
        x = _to_unit(images, self.mean, self.std)
        height, width = images.shape[1:3]
        res = self.res
        if self.crop_scale is not None or self.flip or (res is not None and (height, width) != (res, res)):
            rows, columns = self._weights(ids, height, width, epoch, seed)
            x = torch.matmul(torch.matmul(rows, x), columns)
        mix_labels = lam = None
        if self.mixup:
            lam = beta(uniform(ids, seed, epoch, MIXUP), self.mixup)
            # Neighbours swap: batches cut at even places mix the same pairs. An odd last one is its own partner.
            partner = (torch.arange(len(ids), device=ids.device) ^ 1).clamp_(max=len(ids) - 1)
            weight = lam.view(-1, 1, 1, 1)
            x = weight * x + (1 - weight) * x.index_select(0, partner)
            mix_labels = batch.labels.index_select(0, partner)
        x = x.to(DTYPES[self.dtype])
        if self.layout == "flat":
            x = x.flatten(1)
        elif self.layout == "channels_last":
            x = x.contiguous(memory_format=torch.channels_last)
        return Batch(x, batch.labels, ids, mix_labels, lam)

    def _weights(self, ids, height: int, width: int, epoch: int, seed: int) -> tuple[torch.Tensor, torch.Tensor]:
        """Bilinear weights: rows (N, 1, R, H) and columns (N, 1, W, R) with result = rows @ image @ columns."""
        n = len(ids)
        if self.crop_scale is None:
            top = left = torch.zeros(n, device=ids.device)
            high, wide = torch.full_like(top, height), torch.full_like(top, width)
        else:
            top, left, high, wide = crop_boxes(ids, height, width, self.crop_scale, self.crop_ratio, epoch, seed)
        rows = _hat(top, high, self.res or height, height)
        columns = _hat(left, wide, self.res or width, width)
        if self.flip:
            mirror = uniform(ids, seed, epoch, FLIP) < 0.5
            columns = torch.where(mirror.view(-1, 1, 1), columns.flip(1), columns)
        return rows.unsqueeze(1), columns.transpose(1, 2).unsqueeze(1)


# ---------------------------------------------------------------------------------------------------------- draws


def uniform(ids: torch.Tensor, seed: int, epoch: int, purpose: int) -> torch.Tensor:
    """A number in [0, 1) for each id: int64 (N,) -> float32 (N,), the same on any device.

    SplitMix64's finaliser (Steele, Lea, Flood 2014) over a counter made of all four inputs.
    """
    key = _mix(_mix(_mix(seed) ^ epoch) ^ purpose)
    bits = _mix_tensor(ids ^ _signed(key))
    return ((bits >> 40) & 0xFFFFFF).to(torch.float32) * (1 / (1 << 24))


_ADD, _MUL1, _MUL2 = 0x9E3779B97F4A7C15, 0xBF58476D1CE4E5B9, 0x94D049BB133111EB
_MASK = (1 << 64) - 1


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


@cache
def _beta_quantiles(alpha: float, points: int = 4097) -> torch.Tensor:
    """Quantiles of Beta(alpha, alpha) at points equally spaced probabilities, float32, by integrating its density.

    With x = sin^2 t the density is (sin t cos t)^(2 alpha - 1), which is tame where that of x is not.
    """
    t = (torch.arange(1 << 18, dtype=torch.float64) + 0.5) * (math.pi / 2 / (1 << 18))
    mass = (t.sin() * t.cos()).pow(2 * alpha - 1)
    total = mass.cumsum(0) / mass.sum()
    at = torch.searchsorted(total, torch.linspace(0, 1, points, dtype=torch.float64)).clamp_(max=len(t) - 1)
    quantiles = t[at].sin().square()
    quantiles[0], quantiles[-1] = 0, 1
    return quantiles.float()


def beta(u: torch.Tensor, alpha: float) -> torch.Tensor:
    """Uniform draws to draws from Beta(alpha, alpha), by its quantile function: float32 (N,) -> float32 (N,)."""
    table = _beta_quantiles(alpha).to(u.device, non_blocking=True)
    place = u * (len(table) - 1)
    low = place.long().clamp_(max=len(table) - 2)
    return torch.lerp(table[low], table[low + 1], place - low)


def crop_boxes(ids, height, width, scale, ratio, epoch, seed) -> tuple[torch.Tensor, ...]:
    """A random box for each id, as torchvision's RandomResizedCrop draws it: top, left, height, width, float32 (N,).

    Up to ten boxes are tried; where none fits the image, the centre with the nearest allowed ratio is taken.
    """
    area = torch.stack([uniform(ids, seed, epoch, AREA + k) for k in range(TRIES)])
    log_ratio = torch.stack([uniform(ids, seed, epoch, RATIO + k) for k in range(TRIES)])
    area = height * width * (scale[0] + (scale[1] - scale[0]) * area)
    aspect = torch.exp(math.log(ratio[0]) + (math.log(ratio[1]) - math.log(ratio[0])) * log_ratio)
    wide, high = torch.round(torch.sqrt(area * aspect)), torch.round(torch.sqrt(area / aspect))
    fits = (wide > 0) & (wide <= width) & (high > 0) & (high <= height)
    first = fits & (fits.cumsum(0) == 1)
    centre_wide = min(width, round(height * ratio[1])) if width / height > ratio[1] else width
    centre_high = min(height, round(width / ratio[0])) if width / height < ratio[0] else height
    none = ~fits.any(0)
    wide = torch.where(none, float(centre_wide), (wide * first).sum(0))
    high = torch.where(none, float(centre_high), (high * first).sum(0))
    top = torch.floor(uniform(ids, seed, epoch, TOP) * (height - high + 1))
    left = torch.floor(uniform(ids, seed, epoch, LEFT) * (width - wide + 1))
    top = torch.where(none, float((height - centre_high) // 2), top)
    left = torch.where(none, float((width - centre_wide) // 2), left)
    return top, left, high, wide


# --------------------------------------------------------------------------------------------------------- pixels


def _hat(start: torch.Tensor, length: torch.Tensor, res: int, size: int) -> torch.Tensor:
    """Bilinear weights of `size` pixels for `res` samples across each box: (N, res, size) float32.

    Half-pixel centres, clamped to the box: torch's interpolate(mode="bilinear", align_corners=False, antialias=False)
    of the cut-out box. The weight of pixel k at position p is max(0, 1 - |p - k|).
    """
    step = torch.arange(res, device=start.device, dtype=torch.float32) + 0.5
    inside = step * (length / res).unsqueeze(1) - 0.5
    inside = torch.minimum(inside.clamp_(min=0), (length - 1).unsqueeze(1))
    position = (inside + start.unsqueeze(1)).unsqueeze(2)
    pixel = torch.arange(size, device=start.device, dtype=torch.float32)
    return (position - pixel).abs_().neg_().add_(1).clamp_(min=0)


def _to_unit(images: torch.Tensor, mean, std) -> torch.Tensor:
    """uint8 (N, H, W, 3) -> float32 (N, 3, H, W), scaled to 0..1 and normalised."""
    x = images.permute(0, 3, 1, 2).to(torch.float32, memory_format=torch.contiguous_format)
    if mean is None:
        return x.mul_(1 / 255)
    scale = torch.tensor([1 / (255 * s) for s in std], device=x.device).view(1, 3, 1, 1)
    shift = torch.tensor([-m / s for m, s in zip(mean, std, strict=True)], device=x.device).view(1, 3, 1, 1)
    return x.mul_(scale).add_(shift)
