"""The loss of a batch: one pass over the logits gives the cross-entropy and counts the right answers.

Shapes: N samples, C classes. All arithmetic is in float32, whatever the logits' dtype, and the logits are never copied
whole. Inside torch.compile the plain formula fuses with the model: one kernel forward, one backward. Outside, the same
formula runs on blocks of rows that stay in the cache, and makes the gradient on the way.
"""

from __future__ import annotations

import contextlib
from typing import Any

import torch
from torch import nn
from torch.compiler import is_compiling

from trainer.model import MLP

LEAST_CLASSES = 512  # for the kernel: fewer are little work
# Bytes of a block of rows in float32. On the CPU it stays in the L2 cache: of 0.25, 1, 4 and 64 MB, 1 and 4 were
# fastest (1,024 x 11,230 logits). On a GPU the L2 cache has 50 MB and more, but every kernel costs a launch.
BLOCK_BYTES = {"cpu": 1 << 20, "cuda": 32 << 20}
FP16_SCALE = 4096.0  # of a gradient that is stored in fp16, whose least number is 6e-8


def loss_and_right(
    logits: torch.Tensor,
    labels: torch.Tensor,
    mix_labels: torch.Tensor | None = None,
    mix_lam: torch.Tensor | None = None,
    label_smoothing: float = 0.0,
) -> tuple[torch.Tensor, torch.Tensor]:
    """(mean cross-entropy, number of right answers) of (N, C) logits, two float32 scalars on the device.

    labels, mix_labels: int64 (N,). mix_lam: float32 (N,), the weight of `labels`. A mixed image has the loss
    lam CE(y) + (1 - lam) CE(y'), and counts as right by the weight of the label that was found.

    >>> loss, right = loss_and_right(torch.tensor([[2.0, 0.0], [0.0, 0.0]]), torch.tensor([0, 1]))
    >>> round(float(loss), 4), float(right)  # of equal logits the first counts
    (0.41, 1.0)
    """
    if is_compiling():
        with torch.autocast(logits.device.type, enabled=False):
            return _whole(logits, labels, mix_labels, mix_lam, label_smoothing)
    if mix_labels is None or mix_lam is None:
        targets, weights = labels.unsqueeze(1), torch.ones_like(labels, dtype=torch.float32).unsqueeze(1)
    else:
        targets, weights = torch.stack((labels, mix_labels), 1), torch.stack((mix_lam, 1 - mix_lam), 1)
    return _Blockwise.apply(logits, targets, weights, label_smoothing)


def _whole(logits, labels, mix_labels, mix_lam, label_smoothing) -> tuple[torch.Tensor, torch.Tensor]:
    """The formula over all logits at once: elementwise operations and sums of rows, which the compiler fuses."""
    # The count comes first: after the loss, Inductor's scheduler (torch 2.13) reads the logits once more for it.
    z, classes, best = logits.float(), torch.arange(logits.shape[1], device=logits.device), logits.detach().argmax(1)
    right, lam = (best == labels).float(), torch.ones_like(labels, dtype=torch.float32) if mix_lam is None else mix_lam
    if mix_lam is not None:
        right = torch.lerp((best == mix_labels).float(), right, lam)
    num_right = right.sum()
    target = torch.where(classes == labels.unsqueeze(1), lam.unsqueeze(1), 0.0)
    if mix_lam is not None:
        target = target + torch.where(classes == mix_labels.unsqueeze(1), (1 - lam).unsqueeze(1), 0.0)
    weights = (1 - label_smoothing) * target + label_smoothing / logits.shape[1]
    return (z.logsumexp(1) - (weights * z).sum(1)).mean(), num_right


class _Blockwise(torch.autograd.Function):
    """The formula over blocks of rows, with the gradient made in the forward pass, where it is needed at all.

    targets: int64 (N, K), the K labels of a sample. weights: float32 (N, K).
    """

    @staticmethod
    def forward(ctx, logits, targets, weights, label_smoothing: float):  # pyright: ignore[reportIncompatibleMethodOverride]
        n, num_classes = logits.shape
        rows = max(1, BLOCK_BYTES.get(logits.device.type, BLOCK_BYTES["cuda"]) // (4 * num_classes))
        spread, (loss, num_right) = label_smoothing / num_classes, torch.zeros(2, device=logits.device)
        gradient = torch.empty_like(logits) if ctx.needs_input_grad[0] else None
        scale = FP16_SCALE if logits.dtype == torch.float16 else 1.0
        for first in range(0, n, rows):
            block = slice(first, first + rows)
            target, weight = targets[block], weights[block]
            top, best = logits[block].max(1, keepdim=True)
            z = logits[block].float() - top
            loss -= (1 - label_smoothing) * (weight * z.gather(1, target)).sum() + spread * z.sum()
            sums = z.exp_().sum(1, keepdim=True)
            loss += sums.log().sum()
            num_right += ((best == target) * weight).sum()
            if gradient is not None:
                z.div_(sums).sub_(spread).scatter_add_(1, target, (label_smoothing - 1) * weight)
                gradient[block] = z if scale == 1 else z.mul_(scale)
        ctx.save_for_backward(gradient)
        ctx.divisor = n * scale
        ctx.mark_non_differentiable(num_right)
        return loss / max(1, n), num_right

    @staticmethod
    def backward(ctx, loss_gradient, _):  # pyright: ignore[reportIncompatibleMethodOverride]
        return ctx.saved_tensors[0].mul_(loss_gradient / ctx.divisor), None, None, None


class ModelWithLoss(nn.Module):
    """A model whose forward pass ends with the loss, so that a compiler sees both as one graph.

    forward: inputs for the net (N, ...), labels and the rest of the batch -> (mean loss, right answers).
    kernel_dtype: for a GPU, what the head multiplies; compiled, a head of many classes and the loss then have a kernel
    of their own. None, and float16 whose range is too small for that: never.
    """

    def __init__(self, net: nn.Module, label_smoothing: float, kernel_dtype: torch.dtype | None = None):
        super().__init__()
        self.net, self.label_smoothing, self._dtype = net, label_smoothing, kernel_dtype
        self._kernel: Any = None
        num_classes: Any = (net.linear_out if isinstance(net, MLP) else net).out_features
        if kernel_dtype in (torch.float32, torch.bfloat16) and num_classes >= LEAST_CLASSES:
            with contextlib.suppress(ImportError):  # of Triton
                from trainer.loss_kernel import head_with_loss

                self._kernel = head_with_loss

    def forward(self, images, labels, mix_labels, mix_lam) -> tuple[torch.Tensor, torch.Tensor]:
        targets = labels, mix_labels, mix_lam, self.label_smoothing
        if self._kernel is None or not is_compiling():
            return loss_and_right(self.net(images), *targets)
        net = self.net
        head, features = (net.linear_out, net.features(images)) if isinstance(net, MLP) else (net, images)
        return self._kernel(head, self._dtype, features, *targets)
