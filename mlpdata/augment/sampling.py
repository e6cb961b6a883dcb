"""Bilinear samples of images at given positions, in three forms that give the same bits.

gather    four pixels a sample; for GPUs where the Triton kernel does not run
passes    of `turned` images, first across and then down; for torch.compile on CPUs
products  as products with matrices of weights; for CPUs without a compiler

Shapes: N images, or n of them by `which` (int64 (n,); None for all), H x W stored image, C channels, R output rows or
columns. Positions are int32 in 1/256 pixel. Beyond the image everything is black.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

# (image, which, rows (n, R), columns (n, R)) -> C times float32 (n, R, R)
Sampler = Callable[[Tensor, Tensor | None, Tensor, Tensor], list[Tensor]]
SCALE = 1 / 65536  # two weights of 256


def gather(image: Tensor, which: Tensor | None, rows: Tensor, columns: Tensor) -> list[Tensor]:
    """Samples of uint8 (N, H, W, C) images: C times float32 (n, R, R)."""
    n = _indices(image, which)
    y0, y1, wy0, wy1 = _two(rows.unsqueeze(2), image.shape[1])
    x0, x1, wx0, wx1 = _two(columns.unsqueeze(1), image.shape[2])
    planes = []
    for plane in image.unbind(3):
        upper = plane[n, y0, x0].float() * wx0 + plane[n, y0, x1].float() * wx1
        lower = plane[n, y1, x0].float() * wx0 + plane[n, y1, x1].float() * wx1
        planes.append((upper * wy0 + lower * wy1) * SCALE)
    return planes


def turned(image: Tensor) -> Tensor:
    """Images as `passes` reads them, uint8 (N, H, W, C) -> float32 (N, W, C, H): a column is contiguous."""
    return image.permute(0, 2, 3, 1).contiguous().float()


def size_of(image: Tensor) -> tuple[int, int]:
    """(H, W) of images, turned or not."""
    height, width = (3, 1) if image.dtype == torch.float32 else (1, 2)
    return image.shape[height], image.shape[width]


def passes(image: Tensor, which: Tensor | None, rows: Tensor, columns: Tensor) -> list[Tensor]:
    """`gather` of turned images, first across and then down, so that all reads are contiguous.

    Compilers for CPUs find vector instructions for contiguous reads and none for gathers of bytes: with AVX2 half the
    time of `gather` or less.
    """
    _, width, channels, height = image.shape
    across = _between(image.view(-1, width, channels * height), which, columns)
    across = _materialised(_materialised(across).transpose(1, 2))
    return [_between(across[:, c * height : (c + 1) * height], None, rows) * SCALE for c in range(channels)]


def products(image: Tensor, which: Tensor | None, rows: Tensor, columns: Tensor) -> list[Tensor]:
    """`gather` as two matrix products: several times as fast where nothing is compiled."""
    image = image if which is None else image[which]
    across, down = _hat(columns, image.shape[2]), _hat(rows, image.shape[1])
    n, height, width, channels = image.shape
    x = image.permute(0, 3, 1, 2).float().reshape(n, channels * height, width)
    x = torch.bmm(x, across.transpose(1, 2)).view(n, channels, height, columns.shape[1])
    return list(torch.matmul(down.unsqueeze(1), x).mul_(SCALE).unbind(1))


def cover(position: Tensor, size: int) -> Tensor:
    """How much of a sample at each position comes from inside the image: int32 (N, R) -> float32, 0 to 1."""
    return torch.minimum(position + 256, 256 * size - position).clamp(0, 256).float() * (1 / 256)


def _indices(image: Tensor, which: Tensor | None) -> Tensor:
    return (torch.arange(len(image), device=image.device) if which is None else which).view(-1, 1, 1)


def _two(position: Tensor, size: int) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """The two pixels next to a position and their weights of 0 to 256; a pixel beyond the image weighs 0."""
    first = position >> 8
    weight = (position & 255).float()
    before, after = first.clamp(0, size - 1), (first + 1).clamp(0, size - 1)
    return before, after, torch.where(first == before, 256 - weight, 0.0), torch.where(first + 1 == after, weight, 0.0)


def _between(x: Tensor, which: Tensor | None, position: Tensor) -> Tensor:
    """Weighted sums of neighbouring rows, float32 (N, S, K) at int32 (n, R) -> (n, R, K); times 256."""
    n, k = _indices(x, which), torch.arange(x.shape[2], device=x.device)
    before, after, weight_before, weight_after = _two(position.unsqueeze(2), x.shape[1])
    return x[n, before, k] * weight_before + x[n, after, k] * weight_after


def _materialised(x: Tensor) -> Tensor:
    """x in memory. `as_strided` is opaque to torch.compile, which would otherwise recompute x in every consumer."""
    x = x.contiguous()
    return x.as_strided(x.shape, x.stride())


def _hat(position: Tensor, size: int) -> Tensor:
    """Weights of `size` pixels at each position: int32 (N, R) -> float32 (N, R, size), max(0, 256 - distance)."""
    pixel = torch.arange(0, 256 * size, 256, device=position.device, dtype=torch.int32)
    return (position.unsqueeze(2) - pixel).abs_().neg_().add_(256).clamp_(min=0).float()
