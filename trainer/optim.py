"""Optimizers and learning-rate schedules."""

# torch has no other names for operations on lists of tensors:
# pyright: reportPrivateImportUsage=false

from __future__ import annotations

import inspect
import math

import torch
from torch import nn
from torch.compiler import is_compiling

from trainer.compiling import compile_or_warn
from trainer.model import HEAD
from trainer.recipe import Optim, Schedule


class _WithoutCompiler:
    """torch's optimizer methods without the wrappers by which torch.compile traces them.

    The first call of a wrapper imports the compiler: 1.2 of the 3 seconds of CPU time from the command to the first
    step. No compiled code of ours traces these methods.
    """

    add_param_group = inspect.unwrap(torch.optim.Optimizer.add_param_group)
    zero_grad = inspect.unwrap(torch.optim.Optimizer.zero_grad)
    state_dict = inspect.unwrap(torch.optim.Optimizer.state_dict)
    load_state_dict = inspect.unwrap(torch.optim.Optimizer.load_state_dict)


class _AdamW(_WithoutCompiler, torch.optim.AdamW):
    step = torch.no_grad()(inspect.unwrap(torch.optim.AdamW.step))


class _SGD(_WithoutCompiler, torch.optim.SGD):
    step = torch.no_grad()(inspect.unwrap(torch.optim.SGD.step))


class Lion(_WithoutCompiler, torch.optim.Optimizer):
    """Lion (Chen et al. 2023, arXiv 2302.06675, algorithm 2), all tensors of a group at once.

    compiled: one kernel a tensor, which reads weight, gradient and momentum and writes weight and momentum: 20 bytes a
    parameter. Uncompiled they are 44, with weight decay 52.
    """

    _step_supports_amp_scaling = True  # GradScaler then leaves its scale to `step` and does not wait for the device

    def __init__(self, groups: list[dict], betas: tuple[float, float] = (0.9, 0.99), *, compiled: bool = False):
        super().__init__(groups, {"lr": 1e-4, "betas": betas, "weight_decay": 0.0})
        self._update = compile_or_warn(_lion_update) if compiled else _lion_update
        self._lr_type = torch.tensor if compiled else float  # a number would be a constant of the compiled code

    @torch.no_grad()
    def step(self, closure=None):
        # GradScaler sets these before it calls `step`, and deletes them afterwards.
        grad_scale, found_inf = getattr(self, "grad_scale", None), getattr(self, "found_inf", None)
        keep = 1.0 if found_inf is None else 1 - found_inf  # 0 leaves everything as it is
        groups = []
        for group in self.param_groups:
            params = [p for p in group["params"] if p.grad is not None]
            for p in params:
                if not self.state[p]:
                    self.state[p]["exp_avg"] = torch.zeros_like(p)
            momenta = [self.state[p]["exp_avg"] for p in params]
            rate = group["lr"] if isinstance(group["lr"], torch.Tensor) else self._lr_type(group["lr"])
            lr, decay = rate * keep, rate * (group["weight_decay"] * keep)
            own_weight, kept_weight = ((1 - beta) * keep for beta in group["betas"])
            gradients = [p.grad if grad_scale is None else p.grad.div_(grad_scale) for p in params]
            if found_inf is not None:  # a gradient must be finite for `keep` to leave it out
                gradients = [gradient.nan_to_num_(0.0, 0.0, 0.0) for gradient in gradients]
            groups.append((params, gradients, momenta, lr, decay, own_weight, kept_weight))
        self._update(groups)


def _lion_update(groups: list[tuple]) -> None:
    """p -= lr sign(beta1 m + (1 - beta1) g) + lr weight_decay p, then m = beta2 m + (1 - beta2) g; both in place."""
    for params, gradients, momenta, lr, decay, own_weight, kept_weight in groups:
        if is_compiling():  # tensor by tensor: of long lists the compiler does not fuse everything
            for p, g, m in zip(params, gradients, momenta, strict=True):
                update = torch.lerp(m, g, own_weight).sign()
                p.mul_(1 - decay).sub_(lr * update)
                m.lerp_(g, kept_weight)
            continue
        if not isinstance(kept_weight, float):  # as a list: a lone tensor would be turned into a number, which waits
            own_weight, kept_weight = [own_weight] * len(params), [kept_weight] * len(params)
        updates = torch._foreach_lerp(momenta, gradients, own_weight)
        torch._foreach_sign_(updates)
        if not isinstance(decay, float) or decay:
            torch._foreach_mul_(params, 1 - decay)
        if not isinstance(lr, float):
            torch._foreach_mul_(updates, lr)
            lr = 1.0
        torch._foreach_add_(params, updates, alpha=-lr)
        torch._foreach_lerp_(momenta, gradients, kept_weight)


def make_optimizer(model: nn.Module, optim: Optim, *, compiled: bool = False) -> torch.optim.Optimizer:
    """The recipe's optimizer over the parameters that are trained. compiled: compile what torch has no kernel for.

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
    if optim.name == "lion":
        return Lion(groups, optim.betas or (0.9, 0.99), compiled=compiled)
    if optim.name == "adamw":
        return _AdamW(groups, betas=optim.betas or (0.9, 0.999), fused=True)
    return _SGD(groups, momentum=optim.momentum, fused=True)


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
    """Give each group its base rate times a factor; a tensor keeps its place."""
    for group in optimizer.param_groups:
        lr = group["base_lr"] * factor
        if isinstance(group["lr"], torch.Tensor):
            group["lr"].fill_(lr)
        else:
            group["lr"] = lr
