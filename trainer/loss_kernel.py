"""A head with its loss for GPUs: one Triton kernel takes the logits and gives loss, right answers and their gradient.

It reads the logits from memory once, and again from the cache. Inductor's kernels for the same formula, with a copy of
the bias, took 1.6 ms of a step of B_6-Wi_512 with 11,230 classes on an H200, of 6.7 ms in all; a form of this one with
one exponential more took 0.37 and the sum for the bias 0.1. Triton's interpreter (TRITON_INTERPRET=1) runs it on a CPU.

Shapes: N samples, m width, C classes, W >= C columns of the head's product.
"""

# Kernels are in Triton's language, whose types are not Python's:
# pyright: reportArgumentType=false, reportAssignmentType=false, reportCallIssue=false, reportGeneralTypeIssues=false

from __future__ import annotations

import torch
import torch.nn.functional as F
import triton
import triton.language as tl
from torch import Tensor

from trainer.model import Head

BLOCK, NUM_WARPS = 1024, 4  # logits at a time: of six pairs the fastest for that form
LEAST = tl.constexpr(-3e38)  # instead of minus infinity, which less itself is no number


def head_with_loss(
    head: Head, dtype: torch.dtype, features: Tensor, labels: Tensor, mix_labels: Tensor | None,
    mix_lam: Tensor | None, label_smoothing: float,
) -> tuple[Tensor, Tensor]:  # fmt: skip
    """(mean loss, number of right answers) of features (N, m), like `loss.loss_and_right` of the head's logits.

    dtype: what is multiplied.
    """
    with torch.autocast(features.device.type, enabled=False):
        weight, bias = (t.to(dtype) for t in head.padded())
        rest = labels, mix_labels, mix_lam, head.out_features, label_smoothing
        return _HeadWithLoss.apply(features.to(dtype), weight, bias, *rest)  # pyright: ignore[reportReturnType]


class _HeadWithLoss(torch.autograd.Function):
    """weight: (W, m). bias: (W,). Rows from the C-th on are padding, and their gradient is 0.

    The logits' gradient is kept as p - t, in [-1, 1]; what follows from it is divided by N, which is a smaller tensor.
    """

    @staticmethod
    def forward(ctx, features, weight, bias, labels, mix_labels, mix_lam, num_classes: int, label_smoothing: float):  # pyright: ignore[reportIncompatibleMethodOverride]
        logits = F.linear(features, weight, bias)
        targets = labels, mix_labels, mix_lam
        losses, right, gradient = loss_and_gradient(logits, *targets, num_classes, label_smoothing)
        num_right = right.sum()
        ctx.save_for_backward(features, weight, gradient)
        ctx.mark_non_differentiable(num_right)
        return losses.mean(), num_right

    @staticmethod
    def backward(ctx, loss_gradient, _):  # pyright: ignore[reportIncompatibleMethodOverride]
        features, weight, gradient = ctx.saved_tensors
        scale = loss_gradient / len(features)
        of_features = ((gradient @ weight) * scale).to(features.dtype)
        of_weight = ((gradient.t() @ features) * scale).to(weight.dtype)
        of_bias = (gradient.sum(0, dtype=torch.float32) * scale).to(weight.dtype)
        return of_features, of_weight, of_bias, None, None, None, None, None


@torch.library.custom_op("mlpdata::loss_and_gradient", mutates_args=())
def loss_and_gradient(
    logits: Tensor, labels: Tensor, mix_labels: Tensor | None, mix_lam: Tensor | None, num_classes: int,
    label_smoothing: float,
) -> tuple[Tensor, Tensor, Tensor]:  # fmt: skip
    """(losses, right answers, gradient): float32 (N,) twice; p - t like the logits (N, W), 0 behind the classes."""
    losses, right, gradient = _empty(logits)
    tensors = logits.contiguous(), labels, mix_labels, mix_lam, losses, right, gradient
    weights = 1 - label_smoothing, label_smoothing / num_classes
    with torch.cuda.device_of(logits):
        _loss_and_gradient[(len(logits),)](*tensors, *weights, **constants_of(logits.shape[1], num_classes))
    return losses, right, gradient


@loss_and_gradient.register_fake
def _(logits, labels, mix_labels, mix_lam, num_classes, label_smoothing):
    return _empty(logits)


def _empty(logits: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    losses, right = (logits.new_empty(len(logits), dtype=torch.float32) for _ in range(2))
    return losses, right, logits.new_empty(logits.shape)


def constants_of(width: int, num_classes: int) -> dict[str, int]:
    """Constants and options of the kernel."""
    return {"C": num_classes, "W": width, "BLOCK": min(BLOCK, triton.next_power_of_2(width)), "num_warps": NUM_WARPS}


# fmt: off
@triton.jit
def _loss_and_gradient(
    logits, labels, mix_labels, mix_lam, losses, right, gradient, sharpness, spread,
    C: tl.constexpr, W: tl.constexpr, BLOCK: tl.constexpr,
):
    """A program does a sample: over its logits once for their sums, and once more, from the cache, for the gradient.

    sharpness: the weight of a sample's own labels. spread: that of every class besides.
    """
    n = tl.program_id(0)
    row, lane = n.to(tl.int64) * W, tl.arange(0, BLOCK)
    # Of each lane: greatest logit and where it first came, sum of exp(logit - greatest), sum.
    top, at = tl.full((BLOCK,), LEAST, tl.float32), tl.full((BLOCK,), 0, tl.int32)
    exps, total = tl.full((BLOCK,), 0.0, tl.float32), tl.full((BLOCK,), 0.0, tl.float32)
    for first in range(0, C, BLOCK):
        column = first + lane
        z = tl.load(logits + row + column, mask=column < C, other=LEAST).to(tl.float32)
        total += tl.where(column < C, z, 0.0)
        smaller, is_more = tl.exp(-tl.abs(z - top)), z > top  # of two exponentials one is 1
        exps = tl.where(is_more, exps * smaller + 1.0, exps + smaller)
        at, top = tl.where(is_more, column, at), tl.where(is_more, z, top)
    greatest = tl.reduce(top, 0, _greater)
    best = tl.reduce(tl.where(top == greatest, at, W), 0, _less)  # of equal logits the first counts
    sum = tl.reduce(exps * tl.exp(top - greatest), 0, _add)
    label, share = tl.load(labels + n), 1.0
    of_label = tl.load(logits + row + label).to(tl.float32)
    found = tl.where(best == label, 1.0, 0.0)
    if mix_labels is not None:
        share, other = tl.load(mix_lam + n), tl.load(mix_labels + n)
        of_label = share * of_label + (1 - share) * tl.load(logits + row + other).to(tl.float32)
        found = share * found + (1 - share) * tl.where(best == other, 1.0, 0.0)
    mean = spread * tl.reduce(total, 0, _add)
    tl.store(losses + n, greatest + tl.log(sum) - sharpness * of_label - mean)
    tl.store(right + n, found)
    for first in range(0, W, BLOCK):
        column = first + lane
        z = tl.load(logits + row + column, mask=column < C, other=LEAST).to(tl.float32)
        g = tl.exp(z - greatest) / sum - tl.where(column < C, spread, 0.0)
        g -= tl.where(column == label, share * sharpness, 0.0)
        if mix_labels is not None:
            g -= tl.where(column == other, (1 - share) * sharpness, 0.0)
        tl.store(gradient + row + column, g, mask=column < W)


# tl.max and the like would be functions that were compiled before a test turns the interpreter on.


@triton.jit
def _add(x, y):
    return x + y


@triton.jit
def _greater(x, y):
    return tl.maximum(x, y)


@triton.jit
def _less(x, y):
    return tl.minimum(x, y)
