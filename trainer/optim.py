"""Optimizers and learning-rate schedules."""

from __future__ import annotations

import math

import torch
from lion_pytorch.foreach import Lion
from torch import nn

from trainer.recipe import Optim, Schedule


def make_optimizer(model: nn.Module, optim: Optim) -> torch.optim.Optimizer:
    """The recipe's optimizer over two groups: weight matrices with weight decay, biases and norms without."""
    matrices = [p for p in model.parameters() if p.ndim >= 2 and p.requires_grad]
    vectors = [p for p in model.parameters() if p.ndim < 2 and p.requires_grad]
    groups = [{"params": matrices, "weight_decay": optim.weight_decay}, {"params": vectors, "weight_decay": 0.0}]
    if optim.name == "lion":  # Chen et al. 2023, arXiv 2302.06675
        return Lion(groups, lr=optim.lr, betas=optim.betas or (0.9, 0.99))
    if optim.name == "adamw":
        fused = matrices[0].device.type == "cuda"
        return torch.optim.AdamW(groups, lr=optim.lr, betas=optim.betas or (0.9, 0.999), fused=fused or None)
    return torch.optim.SGD(groups, lr=optim.lr, momentum=optim.momentum)


def lr_factor(schedule: Schedule, step: int, total_steps: int, steps_an_epoch: int) -> float:
    """What the learning rate is multiplied by at a step (from 0): linear warm-up, then constant or a half cosine."""
    warmup = schedule.warmup_epochs * steps_an_epoch
    if step < warmup:
        return (step + 1) / (warmup + 1)
    if schedule.name == "constant":
        return 1.0
    share = (step - warmup) / max(1.0, total_steps - warmup)
    return 0.5 * (1 + math.cos(math.pi * min(1.0, share)))


def set_lr(optimizer: torch.optim.Optimizer, lr: float) -> None:
    for group in optimizer.param_groups:
        group["lr"] = lr
