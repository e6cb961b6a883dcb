"""`pixels.fill` as one Triton kernel, for GPUs: the gather from a store, samples, colour, normalisation, boxes, mixing.

A program makes a block of pixels of one image, or of both images of a pair, which so share their reads. A source pixel
comes from memory once and an output is written once: the other reads of a pixel, by its neighbours, hit the cache.

Multiplications and additions are not contracted (enable_fp_fusion=False), so in float32 the results are those of the
torch form to the bit. Triton's interpreter (TRITON_INTERPRET=1) runs the kernel on a CPU.
"""

# Kernels are in Triton's language, whose types are not Python's:
# pyright: reportArgumentType=false, reportAssignmentType=false, reportCallIssue=false, reportGeneralTypeIssues=false

from __future__ import annotations

from functools import cache
from typing import TYPE_CHECKING

import torch
import triton
import triton.language as tl
from torch import Tensor

from mlpdata.augment.geometry import Geometry
from mlpdata.augment.pixels import GREY, normalisation

if TYPE_CHECKING:
    from mlpdata.augment.augment import Augment

BLOCK, PIXELS_A_WARP = 1024, 128
GREY_R, GREY_G, GREY_B = (tl.constexpr(weight) for weight in GREY)


def fill(
    a: Augment, out: Tensor, images: Tensor, chroma: Tensor | None, which: Tensor | None, geometry: Geometry
) -> None:
    """Write the finished batch to `out`, which has the output's dtype and layout.

    images, chroma: as in Batch. which: int64 (N,), the samples' rows in both; None: sample k is row k.
    """
    num_samples, (height, width) = len(out), images.shape[1:3]
    if num_samples:
        with torch.cuda.device_of(out):
            grid, constants = launch_of(a, num_samples, height, width)
            images, chroma = images.contiguous(), None if chroma is None else chroma.contiguous()
            tensors = out, images, chroma, which, *geometry, _norm(a, out.device)
            _fill[grid](*tensors, num_samples, **constants)


def launch_of(a: Augment, num_samples: int, height: int, width: int) -> tuple[tuple[int, int], dict[str, int | bool]]:
    """(grid, constants and options) of the kernel for images of a stored size."""
    out_height, out_width = a.output_size((height, width))
    block = min(BLOCK, triton.next_power_of_2(out_height * out_width))
    blocks = triton.cdiv(out_height * out_width, block)
    blocks_a_program = blocks if a.contrast else 1  # the contrast needs the mean of the whole image
    num_programs = triton.cdiv(num_samples, 2) if a.mixup or a.cutmix else num_samples
    jitter = (a.brightness > 0) | (a.contrast > 0) << 1 | (a.saturation > 0) << 2
    constants = {
        "H": height, "W": width, "OUT_H": out_height, "OUT_W": out_width, "JITTER": jitter, "PAD": a.pad > 0,
        "HOLES": (a.cutout > 0) + (a.erase > 0), "CHANNELS_LAST": a.layout == "channels_last",
        "BLOCKS": blocks_a_program, "BLOCK": block,
        "num_warps": max(1, block // PIXELS_A_WARP), "enable_fp_fusion": False,
    }  # fmt: skip
    return (num_programs, blocks // blocks_a_program), constants


@cache
def _norm(a: Augment, device: torch.device) -> Tensor:
    """float32 (3, 2): scale and shift of each channel."""
    return torch.tensor(normalisation(a), dtype=torch.float32, device=device)


# fmt: off
# k: a sample's place in the batch. i: int32 (BLOCK,), pixels of an output image; those behind the last repeat it.
# JITTER: 1 for brightness, 2 for contrast, 4 for saturation.


@triton.jit(do_not_specialize=["num_samples"])
def _fill(
    out, images, chroma, which, rows, columns, factors, holes, paste, share, norm, num_samples,
    H: tl.constexpr, W: tl.constexpr, OUT_H: tl.constexpr, OUT_W: tl.constexpr, JITTER: tl.constexpr,
    PAD: tl.constexpr, HOLES: tl.constexpr, CHANNELS_LAST: tl.constexpr, BLOCKS: tl.constexpr, BLOCK: tl.constexpr,
):
    k = tl.program_id(0)
    if share is not None:
        k = k * 2
    partner = tl.minimum(k + 1, num_samples - 1)  # an odd last image is its own
    grey, partner_grey = 0.0, 0.0
    if JITTER & 2:
        grey = _grey_mean(
            images, chroma, which, rows, columns, factors, k, H, W, OUT_H, OUT_W, JITTER, PAD, BLOCKS, BLOCK)
        if share is not None:
            partner_grey = _grey_mean(
                images, chroma, which, rows, columns, factors, partner, H, W, OUT_H, OUT_W, JITTER, PAD, BLOCKS, BLOCK)
    for block in range(BLOCKS):
        pixel = (tl.program_id(1) * BLOCKS + block) * BLOCK + tl.arange(0, BLOCK)
        i = tl.minimum(pixel, OUT_H * OUT_W - 1)
        r, g, b = _shade(images, chroma, which, rows, columns, factors, holes, norm, grey, k, i,
                         H, W, OUT_H, OUT_W, JITTER, PAD, HOLES)
        if share is None:
            _store(out, r, g, b, k, i, pixel < OUT_H * OUT_W, OUT_H * OUT_W, CHANNELS_LAST)
        else:
            r2, g2, b2 = _shade(images, chroma, which, rows, columns, factors, holes, norm, partner_grey, partner, i,
                                H, W, OUT_H, OUT_W, JITTER, PAD, HOLES)
            s = _own_share(share, paste, k, i, OUT_W)
            _store(out, s * r + (1 - s) * r2, s * g + (1 - s) * g2, s * b + (1 - s) * b2,
                   k, i, pixel < OUT_H * OUT_W, OUT_H * OUT_W, CHANNELS_LAST)
            s = _own_share(share, paste, partner, i, OUT_W)
            _store(out, s * r2 + (1 - s) * r, s * g2 + (1 - s) * g, s * b2 + (1 - s) * b,
                   partner, i, pixel < tl.where(partner > k, OUT_H * OUT_W, 0), OUT_H * OUT_W, CHANNELS_LAST)


@triton.jit
def _shade(
    images, chroma, which, rows, columns, factors, holes, norm, grey, k, i,
    H: tl.constexpr, W: tl.constexpr, OUT_H: tl.constexpr, OUT_W: tl.constexpr, JITTER: tl.constexpr,
    PAD: tl.constexpr, HOLES: tl.constexpr,
):
    """Red, green and blue of pixels of one image, finished but for mixing. grey: its mean level, for the contrast."""
    r, g, b = _rgb(images, chroma, which, rows, columns, factors, k, i, H, W, OUT_H, OUT_W, JITTER, PAD)
    if JITTER & 2:
        factor = tl.load(factors + 3 * k + 1)
        r, g, b = _blend(r, grey, factor), _blend(g, grey, factor), _blend(b, grey, factor)
    if JITTER & 4:
        factor = tl.load(factors + 3 * k + 2)
        level = r * GREY_R + g * GREY_G + b * GREY_B
        r, g, b = _blend(r, level, factor), _blend(g, level, factor), _blend(b, level, factor)
    r = r * tl.load(norm) + tl.load(norm + 1)
    g = g * tl.load(norm + 2) + tl.load(norm + 3)
    b = b * tl.load(norm + 4) + tl.load(norm + 5)
    for hole in tl.static_range(HOLES):
        is_blank = _inside(holes + 4 * (HOLES * k + hole), i, OUT_W)
        r, g, b = tl.where(is_blank, 0.0, r), tl.where(is_blank, 0.0, g), tl.where(is_blank, 0.0, b)
    return r, g, b


@triton.jit
def _rgb(
    images, chroma, which, rows, columns, factors, k, i,
    H: tl.constexpr, W: tl.constexpr, OUT_H: tl.constexpr, OUT_W: tl.constexpr, JITTER: tl.constexpr, PAD: tl.constexpr,
):
    """Red, green and blue of pixels of one image, from 0 to 255: sampled, and with its brightness."""
    row = k.to(tl.int64)
    if which is not None:
        row = tl.load(which + k)
    if rows is None:
        image = images + row * (H * W * 3) + 3 * i
        r, g, b = tl.load(image).to(tl.float32), tl.load(image + 1).to(tl.float32), tl.load(image + 2).to(tl.float32)
    else:
        y, x = tl.load(rows + k * OUT_H + i // OUT_W), tl.load(columns + k * OUT_W + i % OUT_W)
        if chroma is None:
            image = images + row * (H * W * 3)
            r, g = _sample(image, y, x, H, W, 3), _sample(image + 1, y, x, H, W, 3)
            b = _sample(image + 2, y, x, H, W, 3)
        else:
            HALF_H: tl.constexpr = (H + 1) // 2
            HALF_W: tl.constexpr = (W + 1) // 2
            luma = _sample(images + row * (H * W), y, x, H, W, 1)
            half_y = tl.minimum(tl.maximum((y - 128) >> 1, 0), 256 * (HALF_H - 1))
            half_x = tl.minimum(tl.maximum((x - 128) >> 1, 0), 256 * (HALF_W - 1))
            image = chroma + row * (HALF_H * HALF_W * 2)
            cb = _sample(image, half_y, half_x, HALF_H, HALF_W, 2) - 128
            cr = _sample(image + 1, half_y, half_x, HALF_H, HALF_W, 2) - 128
            if PAD:
                covered = _cover(y, H) * _cover(x, W)
                cb, cr = cb * covered, cr * covered
            r = _clamp(luma + 1.402 * cr)
            g = _clamp(luma - 0.344136 * cb - 0.714136 * cr)
            b = _clamp(luma + 1.772 * cb)
    if JITTER & 1:
        factor = tl.load(factors + 3 * k)
        r, g, b = _clamp(r * factor), _clamp(g * factor), _clamp(b * factor)
    return r, g, b


@triton.jit
def _grey_mean(
    images, chroma, which, rows, columns, factors, k,
    H: tl.constexpr, W: tl.constexpr, OUT_H: tl.constexpr, OUT_W: tl.constexpr, JITTER: tl.constexpr,
    PAD: tl.constexpr, BLOCKS: tl.constexpr, BLOCK: tl.constexpr,
):
    """Mean grey level of one image, summed as integers."""
    total = tl.full((BLOCK,), 0, tl.int64)
    for block in range(BLOCKS):
        pixel = block * BLOCK + tl.arange(0, BLOCK)
        i = tl.minimum(pixel, OUT_H * OUT_W - 1)
        r, g, b = _rgb(images, chroma, which, rows, columns, factors, k, i, H, W, OUT_H, OUT_W, JITTER, PAD)
        level = ((r * GREY_R + g * GREY_G + b * GREY_B) * 256).to(tl.int32)
        total += tl.where(pixel < OUT_H * OUT_W, level, 0)
    return tl.reduce(total, 0, _add).to(tl.float32) * (1 / (256 * OUT_H * OUT_W))


@triton.jit
def _sample(image, y, x, H: tl.constexpr, W: tl.constexpr, CHANNELS: tl.constexpr):
    """Bilinear samples of one channel at positions in 1/256 pixel; as `sampling.gather`."""
    y0, y1, wy0, wy1 = _two(y, H)
    x0, x1, wx0, wx1 = _two(x, W)
    upper, lower = image + y0 * (W * CHANNELS), image + y1 * (W * CHANNELS)
    x0, x1 = x0 * CHANNELS, x1 * CHANNELS
    above = tl.load(upper + x0).to(tl.float32) * wx0 + tl.load(upper + x1).to(tl.float32) * wx1
    below = tl.load(lower + x0).to(tl.float32) * wx0 + tl.load(lower + x1).to(tl.float32) * wx1
    return (above * wy0 + below * wy1) * (1 / 65536)


@triton.jit
def _two(position, SIZE: tl.constexpr):
    first = position >> 8
    weight = (position & 255).to(tl.float32)
    before = tl.minimum(tl.maximum(first, 0), SIZE - 1)
    after = tl.minimum(tl.maximum(first + 1, 0), SIZE - 1)
    return before, after, tl.where(first == before, 256 - weight, 0.0), tl.where(first + 1 == after, weight, 0.0)


@triton.jit
def _cover(position, SIZE: tl.constexpr):
    return tl.minimum(tl.maximum(tl.minimum(position + 256, 256 * SIZE - position), 0), 256).to(tl.float32) * (1 / 256)


@triton.jit
def _inside(box, i, OUT_W: tl.constexpr):
    y, x = i // OUT_W - tl.load(box), i % OUT_W - tl.load(box + 1)
    return (y >= 0) & (y < tl.load(box + 2)) & (x >= 0) & (x < tl.load(box + 3))


@triton.jit
def _own_share(share, paste, k, i, OUT_W: tl.constexpr):
    own = tl.load(share + k)
    return own if paste is None else tl.where(_inside(paste + 4 * k, i, OUT_W), 0.0, own)


@triton.jit
def _add(x, y):  # for tl.reduce; tl.sum would be a function that was compiled before a test turns the interpreter on
    return x + y


@triton.jit
def _clamp(x):
    return tl.minimum(tl.maximum(x, 0.0), 255.0)


@triton.jit
def _blend(x, other, factor):
    return _clamp(factor * x + (1 - factor) * other)


@triton.jit
def _store(out, r, g, b, k, i, mask, PIXELS: tl.constexpr, CHANNELS_LAST: tl.constexpr):
    image = out + k.to(tl.int64) * (3 * PIXELS) + (3 * i if CHANNELS_LAST else i)
    step: tl.constexpr = 1 if CHANNELS_LAST else PIXELS
    tl.store(image, r.to(out.dtype.element_ty), mask=mask)
    tl.store(image + step, g.to(out.dtype.element_ty), mask=mask)
    tl.store(image + 2 * step, b.to(out.dtype.element_ty), mask=mask)
