"""Where each augmented pixel comes from: random draws to positions, boxes and factors, a row a sample."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from mlpdata.augment import draws as d
from mlpdata.augment.draws import Draws
from mlpdata.augment.settings import Augmentation

ERASE_SCALE, ERASE_RATIO = (0.02, 0.33), (0.3, 3.3)  # torchvision's RandomErasing

Tables = dict[str, Tensor]
Size = tuple[int, int]  # (height, width)
Range = tuple[float, float]  # (low, high)


class Geometry(NamedTuple):
    """What is done to each sample; the first dimension is N throughout, and None is for what is not asked for."""

    rows: Tensor | None = None  # int32 (N, R): where each output row is taken from, in 1/256 pixel
    columns: Tensor | None = None  # int32 (N, R): the same across; None together with rows
    factors: Tensor | None = None  # float32 (N, 3): of brightness, contrast, saturation
    holes: Tensor | None = None  # int64 (N, K, 4): boxes (top, left, height, width) to blank
    paste: Tensor | None = None  # int64 (N, 4): the box where the partner shows
    share: Tensor | None = None  # float32 (N,): the own image's share outside of that box

    def of(self, which: Tensor | slice) -> Geometry:
        """The rows of some samples."""
        return Geometry(*(None if field is None else field[which] for field in self))


def purposes_of(a: Augmentation) -> tuple[int, ...]:
    """What an augmentation needs random numbers for."""
    wanted = (
        (a.crop_scale, d.CROP),
        (a.pad, (d.PAD_TOP, d.PAD_LEFT)),
        (a.flip, (d.FLIP,)),
        (a.has_jitter, d.JITTER),
        (a.cutout, (d.CUTOUT_TOP, d.CUTOUT_LEFT)),
        (a.erase, d.ERASING),
        (a.mixup, (d.MIXUP,)),
        (a.cutmix, (d.CUTMIX, d.CUTMIX_TOP, d.CUTMIX_LEFT, d.WHICH_MIX)),
    )
    return tuple(purpose for is_asked, purposes in wanted if is_asked for purpose in purposes)


def tables_of(a: Augmentation, device: torch.device) -> Tables:
    """The quantiles in which draws are looked up, on the device."""
    tables = {}
    if a.crop_scale is not None:
        tables["crop"] = d.ratio_table(*a.crop_ratio, device)
    if a.erase:
        tables["erase"] = d.ratio_table(*ERASE_RATIO, device)
    if a.mixup:
        tables["mixup"] = d.beta_table(a.mixup, device)
    if a.cutmix:
        tables["cutmix"] = d.beta_table(a.cutmix, device)
    return tables


def geometry_of(
    a: Augmentation, draws: Draws, tables: Tables, stored: Size, has_chroma: bool
) -> tuple[Geometry, Tensor | None]:
    """What the draws mean for each sample: (Geometry, weight of the own label, float32 (N,), or None).

    stored: (H, W) of the images.
    """
    size = a.output_size(stored)
    rows = columns = factors = holes = paste = share = lam = None
    if needs_positions(a, stored, has_chroma):
        rows, columns = _positions(a, draws, tables, stored, size)
    if a.has_jitter:
        jitter = zip(d.JITTER, (a.brightness, a.contrast, a.saturation), strict=True)
        ranges = [(draws.uniform(purpose), *jitter_range(x)) for purpose, x in jitter]
        factors = torch.stack([low + (high - low) * u for u, low, high in ranges], 1)
    boxes = []
    if a.cutout:
        boxes.append(cutout_boxes(draws, size, a.cutout))
    if a.erase:
        boxes.append(erase_boxes(draws, size, a.erase, ERASE_SCALE, tables["erase"]))
    if boxes:
        holes = torch.stack(boxes, 1)
    if a.mixup:
        lam = share = d.look_up(tables["mixup"], draws.uniform(d.MIXUP))
    if a.cutmix:
        paste = cutmix_boxes(draws, size, d.look_up(tables["cutmix"], draws.uniform(d.CUTMIX)))
        if share is None:
            share = torch.ones_like(draws.uniform(d.CUTMIX))
        else:  # the first of a pair decides for both
            first = torch.arange(len(share), device=share.device) & -2
            is_cut = draws.uniform(d.WHICH_MIX)[first] < 0.5
            paste, share = paste * is_cut.unsqueeze(1), torch.where(is_cut, 1.0, share)
        lam = (1 - paste[:, 2] * paste[:, 3] / (size[0] * size[1])) * share
    return Geometry(rows, columns, factors, holes, paste, share), lam


def jitter_range(x: float) -> Range:
    """Of the factor that a jitter of x draws, as torchvision's ColorJitter."""
    return max(0.0, 1 - x), 1 + x


# ------------------------------------------------------------------------------------------------------- positions


def needs_positions(a: Augmentation, stored: Size, has_chroma: bool) -> bool:
    """Whether pixels are sampled, and not just taken as they are stored."""
    is_moved = a.crop_scale is not None or a.pad or a.flip or a.output_size(stored) != stored
    return bool(has_chroma or is_moved)


def _positions(a: Augmentation, draws: Draws, tables: Tables, stored: Size, size: Size) -> tuple[Tensor, Tensor]:
    """Where the output's rows and columns lie in the stored image: int32 (N, R) each, in 1/256 pixel."""
    if a.crop_scale is not None:
        boxes = crop_boxes(draws, stored, a.crop_scale, tables["crop"], a.crop_ratio)
        top, left, high, wide = boxes.unbind(1)
    else:
        top = left = torch.zeros(len(draws.values), dtype=torch.int64, device=draws.values.device)
        if a.pad:
            top = draws.integer(d.PAD_TOP, 2 * a.pad + 1) - a.pad
            left = draws.integer(d.PAD_LEFT, 2 * a.pad + 1) - a.pad
        high, wide = (torch.full_like(top, length) for length in stored)
    rows, columns = spread(top, high, size[0]), spread(left, wide, size[1])
    if a.flip:
        is_mirrored = draws.uniform(d.FLIP) < 0.5
        columns = torch.where(is_mirrored.unsqueeze(1), columns.flip(1), columns)
    return rows, columns


def spread(start: Tensor, length: Tensor, res: int) -> Tensor:
    """Positions of res samples across each interval of pixels, in 1/256 pixel: int64 (N,) each -> int32 (N, res).

    Half-pixel centres, clamped to the interval: torch's interpolate(mode="bilinear", align_corners=False,
    antialias=False) of the cut-out interval, (i + 1/2) length / res - 1/2, rounded.

    >>> spread(torch.tensor([10]), torch.tensor([4]), 2)
    tensor([[2688, 3200]], dtype=torch.int32)
    """
    step = torch.arange(1, 2 * res, 2, device=start.device)
    length = length.unsqueeze(1)
    offset = torch.div(step * length * 256 + res, 2 * res, rounding_mode="floor") - 128
    offset = torch.minimum(offset.clamp(min=0), (length - 1) * 256)
    return (offset + start.unsqueeze(1) * 256).to(torch.int32)


# ----------------------------------------------------------------------------------------------------------- boxes


def crop_boxes(draws: Draws, size: Size, scale: Range, ratios: Tensor, ratio: Range) -> Tensor:
    """A random box for each sample, as torchvision's RandomResizedCrop draws it: int64 (N, 4), top left height width.

    scale: share of the area. ratio: width over height; ratios: ratio_table of it. Up to ten boxes are tried; if none
    fits the image, the centre with the nearest allowed ratio is taken.
    """
    height, width = size
    wide, high = _sides(draws, d.AREA, d.RATIO, height * width, scale, ratios)
    fits, high, wide = _first(high, wide, (wide > 0) & (wide <= width) & (high > 0) & (high <= height))
    centre_high, centre_wide = centre_box(size, ratio)
    high, wide = torch.where(fits, high, centre_high), torch.where(fits, wide, centre_wide)
    top = torch.where(fits, draws.integer(d.TOP, height - high + 1), (height - centre_high) // 2)
    left = torch.where(fits, draws.integer(d.LEFT, width - wide + 1), (width - centre_wide) // 2)
    return torch.stack((top, left, high, wide), 1)


def centre_box(size: Size, ratio: Range) -> Size:
    """The (height, width) of the largest box of an allowed ratio.

    >>> centre_box((10, 100), (3 / 4, 4 / 3))
    (10, 13)
    """
    height, width = size
    if width / height > ratio[1]:
        return height, min(width, round(height * ratio[1]))
    if width / height < ratio[0]:
        return min(height, round(width / ratio[0])), width
    return size


def erase_boxes(draws: Draws, size: Size, probability: float, scale: Range, ratios: Tensor) -> Tensor:
    """torchvision's RandomErasing: with the probability a random box, else an empty one, int64 (N, 4)."""
    height, width = size
    high, wide = _sides(draws, d.ERASE_AREA, d.ERASE_RATIO, height * width, scale, ratios)
    fits, high, wide = _first(high, wide, (wide < width) & (high < height))
    is_erased = fits & (draws.uniform(d.ERASE) < probability)
    top, left = draws.integer(d.ERASE_TOP, height - high + 1), draws.integer(d.ERASE_LEFT, width - wide + 1)
    return torch.stack((top, left, high * is_erased, wide * is_erased), 1)


def cutout_boxes(draws: Draws, size: Size, side: int) -> Tensor:
    """A square around a random pixel, which may reach over the image's edge: int64 (N, 4)."""
    top = draws.integer(d.CUTOUT_TOP, size[0]) - side // 2
    left = draws.integer(d.CUTOUT_LEFT, size[1]) - side // 2
    return torch.stack((top, left, torch.full_like(top, side), torch.full_like(top, side)), 1)


def cutmix_boxes(draws: Draws, size: Size, lam: Tensor) -> Tensor:
    """torchvision's CutMix: a box of the share 1 - lam around a random pixel, cut at the edges: int64 (N, 4)."""
    half = torch.sqrt(1 - lam) * 0.5
    sides = []
    for purpose, length in ((d.CUTMIX_TOP, size[0]), (d.CUTMIX_LEFT, size[1])):
        centre, reach = draws.integer(purpose, length), (half * length).long()
        sides.append(((centre - reach).clamp(min=0), (centre + reach).clamp(max=length)))
    (top, bottom), (left, right) = sides
    return torch.stack((top, left, bottom - top, right - left), 1)


def _sides(draws: Draws, area: int, ratio: int, num_pixels: int, scale: Range, ratios: Tensor) -> list[Tensor]:
    """Sides of the boxes tried, float32 (N, TRIES) each; the ratio is that of the first to the second."""
    size = num_pixels * (scale[0] + (scale[1] - scale[0]) * draws.tries(area))
    aspect = d.look_up(ratios, draws.tries(ratio))
    return [torch.round(torch.sqrt(area)) for area in (size * aspect, size / aspect)]


def _first(high: Tensor, wide: Tensor, fits: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Whether any box fits, bool (N,), and the sides of the first that does, int64 (N,) each; 0 if none does."""
    first = fits & (fits.cumsum(1) == 1)
    return fits.any(1), (high * first).sum(1).long(), (wide * first).sum(1).long()
