"""From stored pixels and a Geometry to the finished batch: sample, colour, normalise, blank, mix, lay out.

Written as torch operations on planes, float32 (n, R, R) of one channel each, which torch.compile fuses into one pass.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

import torch
from torch import Tensor

from mlpdata.augment.batch import DTYPES
from mlpdata.augment.chroma import to_rgb
from mlpdata.augment.geometry import Geometry
from mlpdata.augment.sampling import Sampler, cover, size_of

if TYPE_CHECKING:
    from mlpdata.augment.augment import Augment

GREY = (0.2989, 0.587, 0.114)  # torchvision's rgb_to_grayscale

Planes = list[Tensor]


class StoredImages(NamedTuple):
    """Images as in Batch, or turned for the sampler `passes`, and how they are sampled."""

    images: Tensor
    chroma: Tensor | None
    sample: Sampler


def fill(a: Augment, out: Tensor, stored: StoredImages, geometry: Geometry) -> None:
    """Write the finished batch to `out`, which has the output's dtype and layout."""
    if geometry.share is None:
        turns = [_shade(a, stored, geometry, None)]
    else:
        # Both images of a pair are made in one step, which reads each of them once. An odd last one is its own partner.
        even = torch.arange(0, len(out), 2, device=out.device)
        odd = (even + 1).clamp(max=len(out) - 1)
        first, second = (_shade(a, stored, geometry.of(which), which) for which in (even, odd))
        turns = [_mix(first, second, geometry.of(even)), _mix(second, first, geometry.of(odd))]
    out.copy_(_lay_out(a, turns)[: len(out)])


def _shade(a: Augment, stored: StoredImages, geometry: Geometry, which: Tensor | None) -> Planes:
    """Red, green and blue of some images, finished but for mixing.

    which: int64 (n,), None for all. geometry: of those images.
    """
    images = stored.images
    if geometry.rows is None or geometry.columns is None:
        planes = list((images if which is None else images[which]).float().unbind(3))
    else:
        planes = stored.sample(images, which, geometry.rows, geometry.columns)
        if stored.chroma is not None:
            chroma = _chroma(a, stored, stored.chroma, geometry.rows, geometry.columns, which)
            planes = to_rgb(planes[0], *chroma)
    if geometry.factors is not None:
        brightness, contrast, saturation = geometry.factors.view(-1, 3, 1, 1).unbind(1)
        if a.brightness:
            planes = [(c * brightness).clamp(0, 255) for c in planes]
        if a.contrast:
            planes = _blend(planes, _grey_mean(planes).view(-1, 1, 1), contrast)
        if a.saturation:
            planes = _blend(planes, _grey(planes), saturation)
    planes = [c * scale + shift for c, (scale, shift) in zip(planes, normalisation(a), strict=True)]
    if geometry.holes is not None:
        for hole in geometry.holes.unbind(1):
            is_blank = _inside(hole, planes[0])
            planes = [torch.where(is_blank, 0.0, c) for c in planes]
    return planes


def _chroma(
    a: Augment, stored: StoredImages, chroma: Tensor, rows: Tensor, columns: Tensor, which: Tensor | None
) -> Planes:
    """Sampled Cb and Cr, 0 for grey. Chroma pixel k lies between the luma pixels 2k and 2k + 1."""
    height, width = size_of(chroma)
    half_rows = ((rows - 128) >> 1).clamp(0, 256 * (height - 1))
    half_columns = ((columns - 128) >> 1).clamp(0, 256 * (width - 1))
    planes = [c - 128 for c in stored.sample(chroma, which, half_rows, half_columns)]
    if a.pad:  # black has no colour
        height, width = size_of(stored.images)
        covered = cover(rows, height).unsqueeze(2) * cover(columns, width).unsqueeze(1)
        planes = [c * covered for c in planes]
    return planes


def normalisation(a: Augment) -> list[tuple[float, float]]:
    """(scale, shift) of each channel, from 0 to 255 to the output's range."""
    if a.mean is None or a.std is None:
        return [(1 / 255, 0.0)] * 3
    return [(1 / (255 * s), -m / s) for m, s in zip(a.mean, a.std, strict=True)]


def _mix(own: Planes, other: Planes, geometry: Geometry) -> Planes:
    assert geometry.share is not None
    share = geometry.share.view(-1, 1, 1)
    if geometry.paste is not None:
        share = torch.where(_inside(geometry.paste, own[0]), 0.0, share)
    return [share * a + (1 - share) * b for a, b in zip(own, other, strict=True)]


def _lay_out(a: Augment, turns: list[Planes]) -> Tensor:
    """Planes of every k-th image, k turns, to the batch in the output's dtype and layout."""
    turns = [[c.to(DTYPES[a.dtype]) for c in planes] for planes in turns]
    if a.layout == "channels_last":
        x = torch.stack([torch.stack(planes, 3) for planes in turns], 1).flatten(0, 1)
        return x.permute(0, 3, 1, 2)
    x = torch.stack([c for planes in turns for c in planes], 1)
    x = x.view(-1, 3, *x.shape[2:])
    return x.flatten(1) if a.layout == "flat" else x


def _inside(box: Tensor, like: Tensor) -> Tensor:
    """Which pixels lie in each box: int64 (N, 4) -> bool (N, R, R), R as in `like`."""
    top, left, high, wide = box.view(-1, 4, 1, 1).unbind(1)
    y = torch.arange(like.shape[1], device=box.device).view(1, -1, 1) - top
    x = torch.arange(like.shape[2], device=box.device).view(1, 1, -1) - left
    return (y >= 0) & (y < high) & (x >= 0) & (x < wide)


def _grey(planes: Planes) -> Tensor:
    return GREY[0] * planes[0] + GREY[1] * planes[1] + GREY[2] * planes[2]


def _grey_mean(planes: Planes) -> Tensor:
    """Mean grey level of each image, float32 (n,), summed as integers: in any order the same."""
    levels = _grey(planes)
    return (levels * 256).to(torch.int32).sum((1, 2)).float() * (1 / (256 * levels.shape[1] * levels.shape[2]))


def _blend(planes: Planes, other: Tensor, share: Tensor) -> Planes:
    return [(share * c + (1 - share) * other).clamp(0, 255) for c in planes]
