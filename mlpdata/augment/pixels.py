"""Pixels: bilinear samples at planned positions, boxes, colour, and images with chroma at half resolution.

Shapes: N batch, H x W stored image, R output rows or columns, C channels. Positions are int32 in 1/256 pixel, so a
bilinear weight has 8 bits, as in a GPU's texture unit, and a sum of four pixels by two weights each has 24, which
float32 holds exactly: gathers, passes and matrix products give the same bits.
"""

from __future__ import annotations

import torch

GREY = (0.2989, 0.587, 0.114)  # torchvision's rgb_to_grayscale

# ---------------------------------------------------------------------------------------------------------- samples


def spread(start: torch.Tensor, length: torch.Tensor, res: int) -> torch.Tensor:
    """Positions of res samples across each stretch of pixels, in 1/256 pixel: int64 (N,) each -> int32 (N, res).

    Half-pixel centres, clamped to the stretch: torch's interpolate(mode="bilinear", align_corners=False,
    antialias=False) of the cut-out stretch, (i + 1/2) length / res - 1/2, rounded.
    """
    step = torch.arange(1, 2 * res, 2, device=start.device)
    length = length.unsqueeze(1)
    inside = torch.div(step * length * 256 + res, 2 * res, rounding_mode="floor") - 128
    inside = torch.minimum(inside.clamp(min=0), (length - 1) * 256)
    return (inside + start.unsqueeze(1) * 256).to(torch.int32)


def gather(image, which, rows, columns) -> list[torch.Tensor]:
    """Bilinear samples of each channel, four pixels each: uint8 (N, H, W, C) -> C times float32 (N, R, R)."""
    n = torch.arange(len(image), device=image.device) if which is None else which
    n = n.view(-1, 1, 1)
    (y0, y1, wy0, wy1), (x0, x1, wx0, wx1) = (
        _two(rows.unsqueeze(2), image.shape[1]),
        _two(columns.unsqueeze(1), image.shape[2]),
    )
    planes = []
    for c in range(image.shape[3]):
        plane = image[..., c]
        upper = plane[n, y0, x0].float() * wx0 + plane[n, y0, x1].float() * wx1
        lower = plane[n, y1, x0].float() * wx0 + plane[n, y1, x1].float() * wx1
        planes.append((upper * wy0 + lower * wy1) * (1 / 65536))
    return planes


def _two(position: torch.Tensor, size: int) -> tuple[torch.Tensor, ...]:
    """The two pixels next to a position and their weights of 0 to 256; beyond the image they are black."""
    first = position >> 8
    weight = (position & 255).float()
    before, after = first.clamp(0, size - 1), (first + 1).clamp(0, size - 1)
    return before, after, torch.where(first == before, 256 - weight, 0.0), torch.where(first + 1 == after, weight, 0.0)


def turned(image: torch.Tensor) -> torch.Tensor:
    """What `passes` reads, uint8 (N, H, W, C) -> float32 (N, W, C, H): its columns are stretches of memory."""
    return image.permute(0, 2, 3, 1).contiguous().float()


def size_of(image: torch.Tensor) -> tuple[int, int]:
    """(H, W) of images, turned or not."""
    return (image.shape[3], image.shape[1]) if image.dtype == torch.float32 else tuple(image.shape[1:3])


def passes(image, which, rows, columns) -> list[torch.Tensor]:
    """gather of turned images, first across and then down, so that all reads are of stretches of memory.

    For processors, where compilers find vector instructions for stretches and none for gathers of bytes: with AVX2 half
    the time of `gather` or less. A GPU gathers, in one kernel and without memory in between.
    """
    n, width, channels, height = image.shape
    across = _between(image.view(n, width, channels * height), which, columns)
    across = _kept(_kept(across).transpose(1, 2))
    return [_between(across[:, c * height : (c + 1) * height], None, rows) * (1 / 65536) for c in range(channels)]


def _between(x, which, position) -> torch.Tensor:
    """Weighted sums of neighbouring rows, float32 (N, S, K) at int32 (n, R) -> (n, R, K); times 256."""
    n = torch.arange(len(x), device=x.device) if which is None else which
    n, k = n.view(-1, 1, 1), torch.arange(x.shape[2], device=x.device)
    before, after, weight_before, weight_after = _two(position.unsqueeze(2), x.shape[1])
    return x[n, before, k] * weight_before + x[n, after, k] * weight_after


def _kept(x: torch.Tensor) -> torch.Tensor:
    """x in memory: as_strided is what the compiler does not see through, else it makes x anew for every reader."""
    x = x.contiguous()
    return x.as_strided(x.shape, x.stride())


def products(image, which, rows, columns) -> list[torch.Tensor]:
    """gather as two products with matrices of weights: several times as fast where nothing is compiled."""
    across, down = (_hat(p, size) for p, size in ((columns, image.shape[2]), (rows, image.shape[1])))
    n, height, width, channels = image.shape
    x = image.permute(0, 3, 1, 2).float().reshape(n, channels * height, width)
    x = torch.bmm(x, across.transpose(1, 2)).view(n, channels, height, columns.shape[1])
    return list(torch.matmul(down.unsqueeze(1), x).mul_(1 / 65536).unbind(1))


def _hat(position: torch.Tensor, size: int) -> torch.Tensor:
    """Weights of `size` pixels at each position: int32 (N, R) -> float32 (N, R, size), max(0, 256 - distance)."""
    pixel = torch.arange(0, 256 * size, 256, device=position.device, dtype=torch.int32)
    return (position.unsqueeze(2) - pixel).abs_().neg_().add_(256).clamp_(min=0).float()


def cover(position: torch.Tensor, size: int) -> torch.Tensor:
    """How much of a sample at each position comes from inside the image: int32 (N, R) -> float32, 0 to 1."""
    return torch.minimum(position + 256, 256 * size - position).clamp(0, 256).float() * (1 / 256)


def inside(box: torch.Tensor, like: torch.Tensor) -> torch.Tensor:
    """Which pixels lie in each box: int64 (N, 4) -> bool (N, R, R)."""
    top, left, high, wide = (b.view(-1, 1, 1) for b in box.unbind(1))
    y = torch.arange(like.shape[1], device=box.device).view(1, -1, 1) - top
    x = torch.arange(like.shape[2], device=box.device).view(1, 1, -1) - left
    return (y >= 0) & (y < high) & (x >= 0) & (x < wide)


def grey(planes) -> torch.Tensor:
    return GREY[0] * planes[0] + GREY[1] * planes[1] + GREY[2] * planes[2]


def grey_mean(planes) -> torch.Tensor:
    """Mean grey level of each image, float32 (N,), summed as integers: in any order the same."""
    levels = grey(planes)
    return (levels * 256).to(torch.int32).sum((1, 2)).float() * (1 / (256 * levels.shape[1] * levels.shape[2]))


def blend(planes, other, share) -> list[torch.Tensor]:
    share = share.view(-1, 1, 1)
    return [(share * c + (1 - share) * other).clamp(0, 255) for c in planes]
