"""What happens in a step besides the model: the loss, sums on the device, the average of the weights."""

from __future__ import annotations

import copy
from collections.abc import Iterator
from dataclasses import dataclass, fields

import torch
import torch.nn.functional as F
from torch import nn

from mlpdata.augment.batch import Batch
from trainer.world import World

NEVER = 1 << 62


def mixed_loss(logits: torch.Tensor, batch: Batch, label_smoothing: float) -> torch.Tensor:
    """Cross-entropy of (N, C) logits; mixed images give lam CE(y) + (1 - lam) CE(y'), lam a sample's own weight."""
    if batch.mix_lam is None:
        return F.cross_entropy(logits, batch.labels, label_smoothing=label_smoothing)
    own = F.cross_entropy(logits, batch.labels, label_smoothing=label_smoothing, reduction="none")
    other = F.cross_entropy(logits, batch.mix_labels, label_smoothing=label_smoothing, reduction="none")
    return (batch.mix_lam * own + (1 - batch.mix_lam) * other).mean()


def pieces(batch: Batch, count: int) -> Iterator[Batch]:
    """A batch cut into so many equal ones."""
    if count == 1:
        yield batch
        return
    cut = [getattr(batch, f.name) for f in fields(batch)]
    cut = [[None] * count if t is None else t.chunk(count) for t in cut]
    for values in zip(*cut, strict=True):
        yield Batch(*values)


@dataclass
class Totals:
    """Sums over an epoch so far, on the device: reading them waits, so that is done rarely."""

    loss: torch.Tensor
    correct: torch.Tensor
    bad_step: torch.Tensor  # the first step whose loss was no number
    samples: int = 0

    @classmethod
    def zero(cls, device: torch.device) -> Totals:
        zero = torch.zeros((), dtype=torch.float64, device=device)
        return cls(zero, zero.clone(), torch.full((), NEVER, dtype=torch.int64, device=device))

    @torch.no_grad()
    def add(self, loss: torch.Tensor, logits: torch.Tensor, batch: Batch, step: int) -> None:
        """Count a batch: its mean loss and (n, C) logits. A mixed image is right by the weight of the label found."""
        labels, value, best = batch.labels, loss.double(), logits.argmax(1)
        right = (best == labels).double()
        if batch.mix_lam is not None:
            right = batch.mix_lam * right + (1 - batch.mix_lam) * (best == batch.mix_labels)
        self.loss += value * len(labels)
        self.correct += right.sum()
        self.bad_step.masked_fill_((self.bad_step == NEVER) & ~torch.isfinite(value), step)
        self.samples += len(labels)

    def whole(self, world: World) -> Totals:
        """The sums over all processes; every one must call it."""
        if world.size == 1:
            return self
        sums = torch.stack((self.loss, self.correct, self.loss.new_tensor(self.samples)))
        loss, correct, samples = world.reduce(sums)
        return Totals(loss, correct, world.reduce(self.bad_step, "min"), int(samples))

    def state(self) -> list:
        return [self.loss, self.correct, self.bad_step, self.samples]


class Average:
    """An exponential moving average of a model's weights (Polyak and Juditsky 1992), a model of its own.

    Over its first 1 / (1 - decay) steps it is their plain mean, so that the random start leaves no trace.
    """

    def __init__(self, model: nn.Module, decay: float):
        self.model, self.decay = copy.deepcopy(model).requires_grad_(False), decay
        self._ours, self._theirs = list(self.model.parameters()), list(model.parameters())
        self._buffers = list(zip(self.model.buffers(), model.buffers(), strict=True))

    @torch.no_grad()
    def update(self, step: int) -> None:
        """Take in the weights after a step, counted from 1."""
        torch._foreach_lerp_(self._ours, self._theirs, 1 - min(self.decay, (step - 1) / step))
        for ours, theirs in self._buffers:
            ours.copy_(theirs)
