"""Optimizers and learning-rate schedules."""

from __future__ import annotations

import math

import torch
from lion_pytorch.foreach import Lion
from torch import nn

from trainer.model import HEAD
from trainer.recipe import Optim, Schedule


def make_optimizer(model: nn.Module, optim: Optim) -> torch.optim.Optimizer:
    """The recipe's optimizer over the parameters that are trained.

    Up to four groups: body and head, of each the matrices with weight decay and the biases and norms without. A group's
    `base_lr` is its rate before the schedule.
    """
    groups = []
    for in_head, lr in ((False, optim.lr), (True, optim.head_lr or optim.lr)):
        for is_matrix, decay in ((True, optim.weight_decay), (False, 0.0)):
            chosen = [
                p for name, p in model.named_parameters()
                if p.requires_grad and name.startswith(HEAD) == in_head and (p.ndim >= 2) == is_matrix
            ]  # fmt: skip
            if chosen:
                groups.append({"params": chosen, "lr": lr, "base_lr": lr, "weight_decay": decay})
    if optim.name == "lion":  # Chen et al. 2023, arXiv 2302.06675
        return Lion(groups, betas=optim.betas or (0.9, 0.99))
    if optim.name == "adamw":
        return torch.optim.AdamW(groups, betas=optim.betas or (0.9, 0.999), fused=True)
    return torch.optim.SGD(groups, momentum=optim.momentum, fused=True)


def lr_factor(schedule: Schedule, step: int, total_steps: int, steps_per_epoch: int) -> float:
    """What the learning rate is multiplied by at a step (from 0): linear warm-up, then the schedule's shape.

    A half cosine or a line ends just above 0 at the last step.

    >>> [lr_factor(Schedule(name="linear"), step, total_steps=4, steps_per_epoch=2) for step in range(4)]
    [1.0, 0.75, 0.5, 0.25]
    """
    warmup = schedule.warmup_epochs * steps_per_epoch
    if step < warmup:
        return (step + 1) / (warmup + 1)
    if schedule.name == "constant":
        return 1.0
    share = min(1.0, (step - warmup) / max(1.0, total_steps - warmup))
    return 1 - share if schedule.name == "linear" else 0.5 * (1 + math.cos(math.pi * share))


def set_lr(optimizer: torch.optim.Optimizer, factor: float) -> None:
    """Give each group its base rate times a factor."""
    for group in optimizer.param_groups:
        group["lr"] = group["base_lr"] * factor
