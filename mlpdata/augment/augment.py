"""A batch to its augmented version, on the device, in one pass.

Shapes: N batch, H x W stored image, R augmented image. `_plan` turns a few random numbers a sample into positions and
boxes; `_pixels` reads uint8 and writes the training dtype, and is one kernel under torch.compile.

Positions are in 1/256 pixel, so a bilinear weight has 8 bits, as in a GPU's texture unit, and a sum of four pixels by
two weights each has 24: float32 holds it exactly. That is why results are equal bit for bit whether compiled or not,
as gathers or as matrix products, and however batches are cut.
"""

from __future__ import annotations

import time
import types
import warnings
from dataclasses import dataclass
from functools import cache
from typing import NamedTuple

import torch

from mlpdata.augment import draws
from mlpdata.augment.batch import Batch
from mlpdata.augment.chroma import to_rgb
from mlpdata.augment.draws import Draws
from mlpdata.augment.pixels import (
    blend,
    cover,
    gather,
    grey,
    grey_mean,
    inside,
    passes,
    products,
    size_of,
    spread,
    turned,
)
from mlpdata.augment.settings import Augmentation

DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}
LAYOUTS = ("nchw", "channels_last", "flat")
ERASE_SCALE, ERASE_RATIO = (0.02, 0.33), (0.3, 3.3)  # torchvision's RandomErasing
# Images a step of the pass on the CPU, whose float32 pixels stay in the cache; even, for the pairs.
CHUNK = 32  # eager
CHUNK_BYTES = 4 << 20  # compiled
FEW = 3  # images: as many run as they are, for the compiler would make a version of their own for them
COMPILE_PAYS_S = 30.0  # of eager work on the CPU before it is worth the compiler's 10 to 20 seconds


class _Plan(NamedTuple):
    """What is done to each sample; first dimension N throughout, None for what is not asked for."""

    rows: torch.Tensor | None = None  # int32 (N, R): where each output row is taken from, in 1/256 pixel
    columns: torch.Tensor | None = None  # the same across
    factors: torch.Tensor | None = None  # float32 (N, 3): of brightness, contrast, saturation
    holes: torch.Tensor | None = None  # int64 (N, K, 4): boxes (top, left, height, width) to blank
    paste: torch.Tensor | None = None  # int64 (N, 4): the box where the partner shows
    share: torch.Tensor | None = None  # float32 (N,): the own image's share outside of it


@dataclass(frozen=True, kw_only=True)
class Augment(Augmentation):
    """Augments batches as its settings say. Without random parts it is the evaluation transform.

    dtype:  of the output, one of DTYPES.
    layout: "nchw", "channels_last" (in memory), or "flat" (N, 3 * R * R), channels first.

    Test-time crops are the same thing: crop k of a sample is what `apply` makes of it as epoch k.
    """

    dtype: str = "float32"
    layout: str = "nchw"

    def __post_init__(self):
        super().__post_init__()
        if self.dtype not in DTYPES or self.layout not in LAYOUTS:
            raise ValueError(f"dtype is one of {', '.join(DTYPES)}, layout of {', '.join(LAYOUTS)}")

    @torch.no_grad()
    def apply(self, batch: Batch, epoch: int, seed: int) -> Batch:
        """Augment a batch of uint8 (N, H, W, 3) images, or of luma and chroma. Never waits for the device."""
        run = _runner(self, *batch.images.shape[1:3], batch.chroma is not None, batch.images.device)
        draw = Draws.of(batch.ids, seed, epoch, run.purposes)
        with torch.autocast(batch.images.device.type, enabled=False):  # which would round the products
            x, lam = run(batch.images, batch.chroma, draw.values)
        mix_labels = None if lam is None else batch.labels.index_select(0, _neighbour(batch.ids))
        return Batch(x, batch.labels, batch.ids, mix_labels, lam)

    # -------------------------------------------------------------------------------------------------------- plan

    def _plan(self, values, purposes, tables: dict[str, torch.Tensor], height: int, width: int, ycc: bool):
        """What the draws mean for each sample: (_Plan, lam or None)."""
        draw = Draws(values, purposes)
        size = (self.res or height, self.res or width)
        rows = columns = factors = holes = paste = share = lam = None
        if ycc or self.crop_scale is not None or self.pad or self.flip or size != (height, width):
            rows, columns = self._positions(draw, tables, height, width, size)
        if self.brightness or self.contrast or self.saturation:
            jitter = zip(draws.JITTER, (self.brightness, self.contrast, self.saturation), strict=True)
            spans = [(draw.uniform(purpose), max(0.0, 1 - x), 1 + x) for purpose, x in jitter]
            factors = torch.stack([low + (high - low) * u for u, low, high in spans], 1)
        boxes = []
        if self.cutout:
            boxes.append(draws.cutout_boxes(draw, size, self.cutout))
        if self.erase:
            boxes.append(draws.erase_boxes(draw, size, self.erase, ERASE_SCALE, tables["erase"]))
        if boxes:
            holes = torch.stack(boxes, 1)
        if self.mixup:
            lam = share = draws.look_up(tables["mixup"], draw.uniform(draws.MIXUP))
        if self.cutmix:
            paste = draws.cutmix_boxes(draw, size, draws.look_up(tables["cutmix"], draw.uniform(draws.CUTMIX)))
            if self.mixup:
                first = torch.arange(len(values), device=values.device) & -2
                cut = draw.uniform(draws.WHICH_MIX)[first] < 0.5
                paste, share = paste * cut.unsqueeze(1), torch.where(cut, 1.0, share)
            else:
                share = torch.ones_like(draw.uniform(draws.CUTMIX))
            kept = 1 - paste[:, 2] * paste[:, 3] / (size[0] * size[1])
            lam = kept * share
        return _Plan(rows, columns, factors, holes, paste, share), lam

    def _positions(self, draw, tables, height, width, size) -> tuple[torch.Tensor, torch.Tensor]:
        """Where the output's rows and columns lie in the stored image: int32 (N, R) each, in 1/256 pixel."""
        if self.crop_scale is not None:
            top, left, high, wide = draws.crop_boxes(
                draw, height, width, self.crop_scale, tables["crop"], self.crop_ratio
            ).unbind(1)
        else:
            top = left = torch.zeros(len(draw.values), dtype=torch.int64, device=draw.values.device)
            if self.pad:
                top = draw.integer(draws.PAD_TOP, 2 * self.pad + 1) - self.pad
                left = draw.integer(draws.PAD_LEFT, 2 * self.pad + 1) - self.pad
            high, wide = torch.full_like(top, height), torch.full_like(top, width)
        rows, columns = spread(top, high, size[0]), spread(left, wide, size[1])
        if self.flip:
            mirror = draw.uniform(draws.FLIP) < 0.5
            columns = torch.where(mirror.unsqueeze(1), columns.flip(1), columns)
        return rows, columns

    # ------------------------------------------------------------------------------------------------------ pixels

    def _pixels(self, images, chroma, plan: _Plan) -> torch.Tensor:
        """Stored pixels, turned where they are sampled by `passes`, to the finished batch."""
        compiled = torch.compiler.is_compiling() or images.dtype == torch.float32 or images.device.type != "cpu"
        if plan.share is None:
            return self._laid_out([self._shade(images, chroma, plan, None, compiled)])[: len(images)]
        # A pair is made by the same step, which reads each of its images once. An odd last image is its own partner.
        even = torch.arange(0, len(images), 2, device=images.device)
        odd = (even + 1).clamp(max=len(images) - 1)
        if compiled:
            first, second = (self._shade(images, chroma, plan, which, True) for which in (even, odd))
        else:
            shaded = self._shade(images, chroma, plan, None, False)
            first, second = ([c.index_select(0, which) for c in shaded] for which in (even, odd))
        mixed = []
        for own, other, which in ((first, second, even), (second, first, odd)):
            share = plan.share[which].view(-1, 1, 1)
            if plan.paste is not None:
                share = torch.where(inside(plan.paste[which], own[0]), 0.0, share)
            mixed.append([share * a + (1 - share) * b for a, b in zip(own, other, strict=True)])
        return self._laid_out(mixed)[: len(images)]

    def _fill(self, out, images, chroma, plan: _Plan) -> None:
        out.copy_(self._pixels(images, chroma, plan))

    def _shade(self, images, chroma, plan: _Plan, which, compiled: bool) -> list[torch.Tensor]:
        """Some images (`which`, int64 (n,); None for all) but for mixing: three times float32 (n, R, R)."""
        if which is not None:
            plan = _Plan(*(t if t is None else t[which] for t in plan))
        take = passes if images.dtype == torch.float32 else gather if compiled else products
        if plan.rows is None:
            planes = list((images if which is None else images[which]).float().unbind(3))
        else:
            planes = take(images, which, plan.rows, plan.columns)
        if chroma is not None:
            planes = self._with_chroma(planes[0], size_of(images), chroma, plan, which, take)
        if self.brightness:
            planes = [(c * plan.factors[:, 0].view(-1, 1, 1)).clamp(0, 255) for c in planes]
        if self.contrast:
            planes = blend(planes, grey_mean(planes).view(-1, 1, 1), plan.factors[:, 1])
        if self.saturation:
            planes = blend(planes, grey(planes), plan.factors[:, 2])
        if self.mean is None:
            planes = [c * (1 / 255) for c in planes]
        else:
            planes = [c * (1 / (255 * s)) + -m / s for c, m, s in zip(planes, self.mean, self.std, strict=True)]
        if plan.holes is not None:
            for hole in plan.holes.unbind(1):
                blank = inside(hole, planes[0])
                planes = [torch.where(blank, 0.0, c) for c in planes]
        return planes

    def _with_chroma(self, luma, size, chroma, plan: _Plan, which, take) -> list[torch.Tensor]:
        """Luma as sampled to red, green, blue. Chroma pixel k lies between the luma pixels 2k and 2k + 1."""
        half = (((p - 128) >> 1) for p in (plan.rows, plan.columns))
        half = [p.clamp(0, 256 * (length - 1)) for p, length in zip(half, size_of(chroma), strict=True)]
        cb, cr = (c - 128 for c in take(chroma, which, *half))
        if self.pad:  # black has no colour
            there = cover(plan.rows, size[0]).unsqueeze(2) * cover(plan.columns, size[1]).unsqueeze(1)
            cb, cr = cb * there, cr * there
        return to_rgb(luma, cb, cr)

    def _laid_out(self, turns: list[list[torch.Tensor]]) -> torch.Tensor:
        """Planes of every k-th image to the batch, in the output's type and layout."""
        turns = [[c.to(DTYPES[self.dtype]) for c in planes] for planes in turns]
        if self.layout == "channels_last":
            x = torch.stack([torch.stack(planes, 3) for planes in turns], 1).flatten(0, 1)
            return x.permute(0, 3, 1, 2)
        x = torch.stack([c for planes in turns for c in planes], 1)
        x = x.view(-1, 3, *x.shape[2:])
        return x.flatten(1) if self.layout == "flat" else x

    def _purposes(self) -> tuple[int, ...]:
        """What random numbers are needed for."""
        wanted = (
            (self.crop_scale, draws.CROP),
            (self.pad, (draws.PAD_TOP, draws.PAD_LEFT)),
            (self.flip, (draws.FLIP,)),
            (self.brightness or self.contrast or self.saturation, draws.JITTER),
            (self.cutout, (draws.CUTOUT_TOP, draws.CUTOUT_LEFT)),
            (self.erase, draws.ERASING),
            (self.mixup, (draws.MIXUP,)),
            (self.cutmix, (draws.CUTMIX, draws.CUTMIX_TOP, draws.CUTMIX_LEFT, draws.WHICH_MIX)),
        )
        return tuple(purpose for asked, purposes in wanted if asked for purpose in purposes)

    def _tables(self, device: torch.device) -> dict[str, torch.Tensor]:
        """The quantiles that the draws are looked up in; made once a device."""
        tables = {}
        if self.crop_scale is not None:
            tables["crop"] = draws.ratio_table(*self.crop_ratio, device)
        if self.erase:
            tables["erase"] = draws.ratio_table(*ERASE_RATIO, device)
        for name in ("mixup", "cutmix"):
            if getattr(self, name):
                tables[name] = draws.beta_table(getattr(self, name), device)
        return tables


# --------------------------------------------------------------------------------------------------------- running


class _Runner:
    """Runs an Augment on images of one kind, compiled or not; the results are the same."""

    def __init__(self, augment: Augment, height: int, width: int, ycc: bool, device: torch.device):
        self.augment, self.eager_s = augment, 0.0
        self.purposes = augment._purposes()
        self.kind = self.purposes, augment._tables(device), height, width, ycc
        self.on_cpu = device.type == "cpu"
        self.step = max(8, CHUNK_BYTES // (12 * height * width)) // 2 * 2
        self.allowed, self.compiled = augment.compile is not False, None

    def __call__(self, images, chroma, values) -> tuple[torch.Tensor, torch.Tensor | None]:
        n = len(images)
        pays = self.augment.compile or not self.on_cpu or self.eager_s > COMPILE_PAYS_S
        if self.allowed and pays and n > FEW:
            try:
                if self.compiled is None:  # importing the compiler takes seconds: not before it is needed
                    pixels = self.augment._fill if self.on_cpu else self.augment._pixels
                    self.compiled = _compiled(self.augment._plan), _compiled(pixels)
                plan, lam = self.compiled[0](*_any_length(values), *self.kind)
                if self.on_cpu:
                    return self._by_steps(self._compiled_fill, self.step, images, chroma, plan), lam
                images, chroma, *plan = _any_length(images, chroma, *plan)
                return self.compiled[1](images, chroma, _Plan(*plan)), lam
            except torch.OutOfMemoryError:
                raise
            except Exception as e:
                self.allowed = False
                reason = " ".join([line for line in str(e).splitlines() if line.strip()][:2]) or type(e).__name__
                _say_once(f"augmentation runs uncompiled, which is slower: {reason}")
        started = time.perf_counter()
        plan, lam = self.augment._plan(values, *self.kind)
        if self.on_cpu:
            x = self._by_steps(self.augment._fill, CHUNK, images, chroma, plan)
        else:
            x = self.augment._pixels(images, chroma, plan)
        self.eager_s += time.perf_counter() - started
        return x, lam

    def _compiled_fill(self, out, images, chroma, plan: _Plan) -> None:
        if len(images) <= FEW:  # what is left over; the results are the same
            self.augment._fill(out, images, chroma, plan)
            return
        if plan.rows is not None:
            images, chroma = turned(images), chroma if chroma is None else turned(chroma)
        out, images, chroma, *plan = _any_length(out, images, chroma, *plan)
        self.compiled[1](out, images, chroma, _Plan(*plan))

    def _by_steps(self, fill, step: int, images, chroma, plan: _Plan) -> torch.Tensor:
        """The finished batch on the CPU, so many images at a time."""
        a, n = self.augment, len(images)
        shape = (n, 3, a.res or self.kind[2], a.res or self.kind[3])
        order = torch.channels_last if a.layout == "channels_last" else torch.contiguous_format
        x = torch.empty(shape, dtype=DTYPES[a.dtype], memory_format=order)
        x = x.flatten(1) if a.layout == "flat" else x
        for k in range(0, n, step):
            out, images_here, chroma_here, *plan_here = (
                t if t is None else t[k : k + step] for t in (x, images, chroma, *plan)
            )
            fill(out, images_here, chroma_here, _Plan(*plan_here))
        return x


_runner = cache(_Runner)


@cache
def _say_once(line: str) -> None:
    warnings.warn(line, RuntimeWarning, stacklevel=2)


def _compiled(method):
    """A method under torch.compile for one image size and any number of images.

    The compiler counts the versions of a code object and gives up at eight: each Augment has its own copy.
    """
    f = method.__func__
    copy = types.FunctionType(f.__code__.replace(), f.__globals__, f.__name__)
    return torch.compile(types.MethodType(copy, method.__self__), fullgraph=True, dynamic=False)


def _any_length(*tensors: torch.Tensor | None) -> list[torch.Tensor | None]:
    """Views of tensors which the compiler does not tie to their number of samples."""
    views = [t if t is None else t.detach() for t in tensors]
    for view in views:
        if view is not None:
            torch._dynamo.maybe_mark_dynamic(view, 0)
    return views


# --------------------------------------------------------------------------------------------------------- pixels


def _neighbour(t: torch.Tensor) -> torch.Tensor:
    """Partners swap places: batches cut at even places mix the same pairs. An odd last one is its own partner."""
    return (torch.arange(len(t), device=t.device) ^ 1).clamp(max=len(t) - 1)
