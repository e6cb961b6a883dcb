"""Draws and `geometry.geometry_of` as one Triton kernel, for GPUs: a hundred small torch operations in one launch.

Its results are those of the torch form to the bit: additions and multiplications are not contracted
(enable_fp_fusion=False), and divisions and square roots are the correctly rounded ones.
"""

# Kernels are in Triton's language, whose types are not Python's:
# pyright: reportArgumentType=false, reportAssignmentType=false, reportCallIssue=false, reportGeneralTypeIssues=false

from __future__ import annotations

from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

from mlpdata.augment import draws as d
from mlpdata.augment.geometry import ERASE_SCALE, Geometry, Size, Tables, centre_box, jitter_range, needs_positions
from mlpdata.augment.settings import Augmentation

BLOCK = 2048  # positions that a program makes


def geometry_of(
    a: Augmentation, ids: Tensor, seed: int, epoch: int, tables: Tables, stored: Size, has_chroma: bool
) -> tuple[Geometry, Tensor | None]:
    """As `geometry.geometry_of`, of the samples' ids, int64 (N,); boxes are int32."""
    geometry, lam = _empty(a, ids, stored, has_chroma)
    grid, constants = launch_of(a, len(ids), stored)
    if len(ids):
        with torch.cuda.device_of(ids):
            _geometry[grid](ids, d.key_of(seed, epoch), *tensors_of(tables), *geometry, lam, len(ids), **constants)
    return geometry, lam


def tensors_of(tables: Tables) -> list[Tensor | None]:
    return [tables.get(name) for name in ("crop", "erase", "mixup", "cutmix")]


def _empty(a: Augmentation, ids: Tensor, stored: Size, has_chroma: bool) -> tuple[Geometry, Tensor | None]:
    size, mixes, num_holes = a.output_size(stored), a.mixup or a.cutmix, (a.cutout > 0) + (a.erase > 0)

    def new(dtype: torch.dtype, *shape: int, where: object) -> Tensor | None:
        return torch.empty((len(ids), *shape), dtype=dtype, device=ids.device) if where else None

    has_positions = needs_positions(a, stored, has_chroma)
    geometry = Geometry(
        rows=new(torch.int32, size[0], where=has_positions),
        columns=new(torch.int32, size[1], where=has_positions),
        factors=new(torch.float32, 3, where=a.has_jitter),
        holes=new(torch.int32, num_holes, 4, where=num_holes),
        paste=new(torch.int32, 4, where=a.cutmix),
        share=new(torch.float32, where=mixes),
    )
    return geometry, new(torch.float32, where=mixes)


def launch_of(a: Augmentation, num_samples: int, stored: Size) -> tuple[tuple[int], dict[str, Any]]:
    """(grid, numbers, constants and options) of the kernel for images of a stored size."""
    size = a.output_size(stored)
    positions = triton.next_power_of_2(max(size))
    samples = max(1, BLOCK // positions)
    centre_high, centre_wide = centre_box(stored, a.crop_ratio)
    ranges = {"crop": a.crop_scale or (1.0, 1.0), "erase": ERASE_SCALE}
    ranges |= {name: jitter_range(getattr(a, name)) for name in ("brightness", "contrast", "saturation")}
    numbers = {f"{name}_low": low for name, (low, _) in ranges.items()}
    numbers |= {f"{name}_span": high - low for name, (low, high) in ranges.items()}
    return (triton.cdiv(num_samples, samples),), numbers | {
        "erase_probability": float(a.erase), "H": stored[0], "W": stored[1], "OUT_H": size[0], "OUT_W": size[1],
        "CENTRE_H": centre_high, "CENTRE_W": centre_wide, "PAD": a.pad, "FLIP": a.flip, "CUTOUT": a.cutout,
        "HOLES": (a.cutout > 0) + (a.erase > 0), "S": samples, "P": positions, "num_warps": 4,
        "enable_fp_fusion": False,
    }  # fmt: skip


# fmt: off
# Of other modules a kernel can only use constants of its own.
AREA, RATIO, TOP, LEFT, MIRROR = map(tl.constexpr, (d.AREA, d.RATIO, d.TOP, d.LEFT, d.FLIP))
PAD_TOP, PAD_LEFT, CUTOUT_TOP, CUTOUT_LEFT = map(tl.constexpr, (d.PAD_TOP, d.PAD_LEFT, d.CUTOUT_TOP, d.CUTOUT_LEFT))
BRIGHTNESS, CONTRAST, SATURATION = map(tl.constexpr, d.JITTER)
MIXUP, CUTMIX, WHICH_MIX = map(tl.constexpr, (d.MIXUP, d.CUTMIX, d.WHICH_MIX))
CUTMIX_TOP, CUTMIX_LEFT = map(tl.constexpr, (d.CUTMIX_TOP, d.CUTMIX_LEFT))
ERASE, ERASE_TOP, ERASE_LEFT = map(tl.constexpr, (d.ERASE, d.ERASE_TOP, d.ERASE_LEFT))
ERASE_AREA, ERASE_RATIO, TRIES = map(tl.constexpr, (d.ERASE_AREA, d.ERASE_RATIO, d.TRIES))
SUMMAND, FACTOR_1, FACTOR_2 = map(tl.constexpr, (d.SUMMAND, d.FACTOR_1, d.FACTOR_2))
LAST = tl.constexpr(d.TABLE_POINTS - 1)


@triton.jit(do_not_specialize=["key", "num_samples"])
def _geometry(
    ids, key, crop_table, erase_table, mixup_table, cutmix_table,
    rows, columns, factors, holes, paste, share, lam, num_samples,
    crop_low, crop_span, erase_low, erase_span, erase_probability,
    brightness_low, brightness_span, contrast_low, contrast_span, saturation_low, saturation_span,
    H: tl.constexpr, W: tl.constexpr, OUT_H: tl.constexpr, OUT_W: tl.constexpr, CENTRE_H: tl.constexpr,
    CENTRE_W: tl.constexpr, PAD: tl.constexpr, FLIP: tl.constexpr, CUTOUT: tl.constexpr, HOLES: tl.constexpr,
    S: tl.constexpr, P: tl.constexpr,
):
    k = tl.program_id(0) * S + tl.arange(0, S)  # int32 (S,): samples of the batch
    is_sample = k < num_samples
    k = tl.minimum(k, num_samples - 1)
    id = tl.load(ids + k)
    if rows is not None:
        top, left = tl.full((S,), 0, tl.int32), tl.full((S,), 0, tl.int32)
        high, wide = tl.full((S,), H, tl.int32), tl.full((S,), W, tl.int32)
        if crop_table is not None:
            top, left, high, wide = _crop(id, key, crop_table, crop_low, crop_span, H, W, CENTRE_H, CENTRE_W, S)
        elif PAD > 0:
            top = _integer(id, key, PAD_TOP, 2 * PAD + 1) - PAD
            left = _integer(id, key, PAD_LEFT, 2 * PAD + 1) - PAD
        j = tl.arange(0, P)[None, :]
        is_row, is_column = is_sample[:, None] & (j < OUT_H), is_sample[:, None] & (j < OUT_W)
        tl.store(rows + k[:, None] * OUT_H + j, _position(top[:, None], high[:, None], j, OUT_H), mask=is_row)
        source = tl.broadcast_to(j, (S, P))
        if FLIP:
            source = tl.where((_uniform(id, key, MIRROR) < 0.5)[:, None], OUT_W - 1 - source, source)
        column = _position(left[:, None], wide[:, None], source, OUT_W)
        tl.store(columns + k[:, None] * OUT_W + j, column, mask=is_column)
    if factors is not None:
        factor = factors + 3 * k
        tl.store(factor, brightness_low + brightness_span * _uniform(id, key, BRIGHTNESS), mask=is_sample)
        tl.store(factor + 1, contrast_low + contrast_span * _uniform(id, key, CONTRAST), mask=is_sample)
        tl.store(factor + 2, saturation_low + saturation_span * _uniform(id, key, SATURATION), mask=is_sample)
    if CUTOUT > 0:
        top = _integer(id, key, CUTOUT_TOP, OUT_H) - CUTOUT // 2
        left = _integer(id, key, CUTOUT_LEFT, OUT_W) - CUTOUT // 2
        side = tl.full((S,), CUTOUT, tl.int32)
        _store_box(holes + 4 * HOLES * k, top, left, side, side, is_sample)
    if erase_table is not None:
        top, left, high, wide = _erase(id, key, erase_table, erase_low, erase_span, erase_probability, OUT_H, OUT_W, S)
        _store_box(holes + 4 * (HOLES * k + HOLES - 1), top, left, high, wide, is_sample)
    if share is not None:
        own = tl.full((S,), 1.0, tl.float32)
        if mixup_table is not None:
            own = _look_up(mixup_table, _uniform(id, key, MIXUP))
        weight = own
        if cutmix_table is not None:
            half = tl.sqrt_rn(1 - _look_up(cutmix_table, _uniform(id, key, CUTMIX))) * 0.5
            top, bottom = _reach(_integer(id, key, CUTMIX_TOP, OUT_H), half, OUT_H)
            left, right = _reach(_integer(id, key, CUTMIX_LEFT, OUT_W), half, OUT_W)
            high, wide = bottom - top, right - left
            if mixup_table is not None:  # the first of a pair decides for both
                is_cut = _uniform(tl.load(ids + (k & -2)), key, WHICH_MIX) < 0.5
                top, left = tl.where(is_cut, top, 0), tl.where(is_cut, left, 0)
                high, wide = tl.where(is_cut, high, 0), tl.where(is_cut, wide, 0)
                own = tl.where(is_cut, 1.0, own)
            _store_box(paste + 4 * k, top, left, high, wide, is_sample)
            pixels = tl.full((S,), OUT_H * OUT_W, tl.float32)
            weight = (1 - tl.div_rn((high * wide).to(tl.float32), pixels)) * own
        tl.store(share + k, own, mask=is_sample)
        tl.store(lam + k, weight, mask=is_sample)


@triton.jit
def _crop(
    id, key, table, low, span, H: tl.constexpr, W: tl.constexpr, CENTRE_H: tl.constexpr, CENTRE_W: tl.constexpr,
    S: tl.constexpr,
):
    """As `geometry.crop_boxes`."""
    wide, high = tl.full((S,), 0, tl.int32), tl.full((S,), 0, tl.int32)
    for t in tl.static_range(TRIES):
        w, h = _sides(id, key, AREA + t, RATIO + t, H * W, table, low, span)
        is_first = (high == 0) & (w > 0) & (w <= W) & (h > 0) & (h <= H)
        wide, high = tl.where(is_first, w.to(tl.int32), wide), tl.where(is_first, h.to(tl.int32), high)
    fits = high > 0
    high, wide = tl.where(fits, high, CENTRE_H), tl.where(fits, wide, CENTRE_W)
    top = tl.where(fits, _integer(id, key, TOP, H - high + 1), (H - CENTRE_H) // 2)
    left = tl.where(fits, _integer(id, key, LEFT, W - wide + 1), (W - CENTRE_W) // 2)
    return top, left, high, wide


@triton.jit
def _erase(id, key, table, low, span, probability, OUT_H: tl.constexpr, OUT_W: tl.constexpr, S: tl.constexpr):
    """As `geometry.erase_boxes`."""
    high, wide = tl.full((S,), 0, tl.int32), tl.full((S,), 0, tl.int32)
    fits = tl.full((S,), 0, tl.int32) > 0
    for t in tl.static_range(TRIES):
        h, w = _sides(id, key, ERASE_AREA + t, ERASE_RATIO + t, OUT_H * OUT_W, table, low, span)
        is_first = (fits == 0) & (w < OUT_W) & (h < OUT_H)
        high, wide = tl.where(is_first, h.to(tl.int32), high), tl.where(is_first, w.to(tl.int32), wide)
        fits = fits | is_first
    top = _integer(id, key, ERASE_TOP, OUT_H - high + 1)
    left = _integer(id, key, ERASE_LEFT, OUT_W - wide + 1)
    is_erased = fits & (_uniform(id, key, ERASE) < probability)
    return top, left, tl.where(is_erased, high, 0), tl.where(is_erased, wide, 0)


@triton.jit
def _sides(id, key, area, ratio, PIXELS: tl.constexpr, table, low, span):
    """As `geometry._sides`, of one try."""
    size = (low + span * _uniform(id, key, area)) * PIXELS
    aspect = _look_up(table, _uniform(id, key, ratio))
    return _round(tl.sqrt_rn(size * aspect)), _round(tl.sqrt_rn(tl.div_rn(size, aspect)))


@triton.jit
def _round(x):
    """To whole numbers, halves to even ones; for 0 to 2^23."""
    return (x + 8388608.0) - 8388608.0


@triton.jit
def _position(start, length, j, RES: tl.constexpr):
    """As `geometry.spread`."""
    offset = ((2 * j + 1).to(tl.int64) * length * 256 + RES) // (2 * RES) - 128
    offset = tl.minimum(tl.maximum(offset, 0), (length - 1) * 256)
    return (offset + start * 256).to(tl.int32)


@triton.jit
def _reach(centre, half, LENGTH: tl.constexpr):
    reach = (half * LENGTH).to(tl.int32)
    return tl.maximum(centre - reach, 0), tl.minimum(centre + reach, LENGTH)


@triton.jit
def _look_up(table, u):
    """As `draws.look_up`."""
    position = u * LAST
    low = tl.minimum(position.to(tl.int32), LAST - 1)
    start = tl.load(table + low)
    return start + (tl.load(table + low + 1) - start) * (position - low.to(tl.float32))


@triton.jit
def _integer(id, key, purpose, count):
    return (_uniform(id, key, purpose) * count).to(tl.int32)


@triton.jit
def _uniform(id, key, purpose):
    """As `Draws.of`."""
    zero = tl.full((1,), 0, tl.int64)
    bits = _mix(id ^ _mix(zero + key ^ purpose))
    return ((bits >> 40) & 0xFFFFFF).to(tl.float32) * (1 / (1 << 24))


@triton.jit
def _mix(x):
    """As `draws._mix`."""
    x = x + SUMMAND
    x = (x ^ ((x >> 30) & ((1 << 34) - 1))) * FACTOR_1
    x = (x ^ ((x >> 27) & ((1 << 37) - 1))) * FACTOR_2
    return x ^ ((x >> 31) & ((1 << 33) - 1))


@triton.jit
def _store_box(box, top, left, high, wide, mask):
    tl.store(box, top, mask=mask)
    tl.store(box + 1, left, mask=mask)
    tl.store(box + 2, high, mask=mask)
    tl.store(box + 3, wide, mask=mask)
