"""One training step: a batch to new weights, sums on the device, the average of the weights."""

from __future__ import annotations

import contextlib
import copy
from collections.abc import Callable, Iterator
from dataclasses import dataclass, fields
from typing import Any

import torch
from torch import nn

from mlpdata.augment.batch import Batch
from mlpdata.errors import Error
from trainer.compiling import compile_or_warn
from trainer.loss import ModelWithLoss
from trainer.model import GPUS, MLP
from trainer.optim import make_optimizer
from trainer.recipe import Recipe
from trainer.step_graph import StepGraph
from trainer.world import World

NEVER = 1 << 62
DTYPES = {"bf16": torch.bfloat16, "tf32": torch.float32, "fp32": torch.float32}  # precision -> of matrix products


def cut(batch: Batch, count: int) -> Iterator[Batch]:
    """Cut a batch into `count` equal batches."""
    if count == 1:
        yield batch
        return
    tensors = [getattr(batch, f.name) for f in fields(batch)]
    for values in zip(*([None] * count if t is None else t.chunk(count) for t in tensors), strict=True):
        yield Batch(*values)


@dataclass
class EpochSums:
    """Sums over an epoch so far, on the device. Reading them waits for the device, so it is done rarely."""

    loss: torch.Tensor
    correct: torch.Tensor
    bad_step: torch.Tensor  # the first step whose loss was no number, or NEVER
    samples: int = 0

    @classmethod
    def zero(cls, device: torch.device) -> EpochSums:
        zero = torch.zeros((), dtype=torch.float64, device=device)
        return cls(zero, zero.clone(), torch.full((), NEVER, dtype=torch.int64, device=device))

    @torch.no_grad()
    def add(self, loss: torch.Tensor, right: torch.Tensor, samples: int, step: int) -> None:
        """Count a batch: its mean loss, its number of right answers and of samples."""
        value = loss.double()
        self.loss += value * samples
        self.correct += right
        self.bad_step.masked_fill_((self.bad_step == NEVER) & ~torch.isfinite(value), step)
        self.samples += samples

    def over(self, world: World) -> EpochSums:
        """The sums over all processes, each of which must call it."""
        if world.size == 1:
            return self
        sums = torch.stack((self.loss, self.correct, self.loss.new_tensor(self.samples)))
        loss, correct, samples = world.reduce(sums)
        return EpochSums(loss, correct, world.reduce(self.bad_step, "min"), int(samples))

    def means(self) -> tuple[float, float]:
        """(mean loss, share of right answers); waits for the device."""
        n = max(1, self.samples)
        return float(self.loss) / n, float(self.correct) / n

    def state(self) -> list:
        return [self.loss, self.correct, self.bad_step, self.samples]


class WeightAverage:
    """An exponential moving average of a model's weights (Polyak and Juditsky 1992), a model of its own.

    Over its first 1 / (1 - decay) steps it is their plain mean, so that the random start leaves no trace.
    """

    def __init__(self, model: MLP, decay: float):
        self.model, self.decay = copy.deepcopy(model).requires_grad_(False), decay
        self._averages: list[torch.Tensor] = list(self.model.parameters())
        self._weights: list[torch.Tensor] = list(model.parameters())
        self._buffers = list(zip(self.model.buffers(), model.buffers(), strict=True))

    @torch.no_grad()
    def update(self, step: int) -> None:
        """Take in the weights after a step, counted from 1."""
        weight = 1 - min(self.decay, (step - 1) / step)
        torch._foreach_lerp_(self._averages, self._weights, weight)  # pyright: ignore[reportPrivateImportUsage] - no other name
        for average, value in self._buffers:
            average.copy_(value)


def uses_graph(recipe: Recipe, device: torch.device, world: World) -> bool:
    """Whether steps run as one CUDA graph. Raises Error where the recipe wants one and there can be none."""
    needs = {
        "a GPU": device.type in GPUS,
        "a single process": world.size == 1,
        "another train.precision than fp16, whose scale changes every step": recipe.train.precision != "fp16",
        "a model without dropout, whose seed changes every step": not recipe.model.dropout,
    }
    missing = next((name for name, is_there in needs.items() if not is_there), None)
    if recipe.train.cuda_graphs and missing:
        raise Error(f"train.cuda_graphs needs {missing}; leave it at null, or set it to false")
    return recipe.train.cuda_graphs is not False and missing is None


class TrainingStep:
    """Forward, backward, update. Calling it with a batch takes one step and never waits for the device.

    count: steps taken. sums: over the epoch so far. losses: of the steps since the last `take_losses`, if the recipe
    records them.
    """

    def __init__(self, model: MLP, net: nn.Module, recipe: Recipe, device: torch.device, world: World,
                 autocast: Callable[[], Any]):  # fmt: skip
        """net: what runs forward, the model or its head alone."""
        train = recipe.train
        self.recipe, self.world, self.autocast, self.model = recipe, world, autocast, model
        self.optimizer = make_optimizer(model, recipe.optim, compiled=train.compile)
        self.scaler = torch.amp.GradScaler(device.type, enabled=train.precision == "fp16")
        self.average = WeightAverage(model, train.ema) if train.ema else None
        self.sums, self.count = EpochSums.zero(device), 0
        self.losses: list[torch.Tensor] = []
        self._parameters = [p for p in model.parameters() if p.requires_grad]
        kernel_dtype = DTYPES.get(train.precision) if train.compile and device.type in GPUS else None
        self._forward: Callable = ModelWithLoss(net, train.label_smoothing, kernel_dtype)
        self._no_sync: Callable = contextlib.nullcontext
        if world.size > 1:
            self._forward = nn.parallel.DistributedDataParallel(self._forward, gradient_as_bucket_view=True)
            self._no_sync = self._forward.no_sync
        if train.compile:
            self._forward = compile_or_warn(self._forward, fullgraph=world.size == 1)
        self._has_graph = uses_graph(recipe, device, world)
        self._take = StepGraph(self._update, enabled=self._has_graph)
        self._rates_on_device()

    def __call__(self, batch: Batch) -> None:
        if self.recipe.model.dropout:  # its draws follow from the step alone, so a resume repeats them
            torch.manual_seed((self.recipe.seed * 1_000_003 + self.count) * 4_099 + self.world.rank)
        losses, right = self._take(batch)
        self.count += 1
        if self.average:
            self.average.update(self.count)
        loss = losses.sum()  # new memory, also where a CUDA graph owns that of the losses
        self.sums.add(loss, right.sum(), len(batch.labels), self.count)
        if self.recipe.train.record_steps:
            self.losses.append(loss)

    def _update(self, batch: Batch) -> tuple[torch.Tensor, torch.Tensor]:
        """Everything from the batch to new weights: the pieces' shares of the loss, and their right answers."""
        train, losses, right = self.recipe.train, [], []
        self.optimizer.zero_grad(set_to_none=True)
        for k, piece in enumerate(cut(batch, train.accumulate)):
            with self._no_sync() if k + 1 < train.accumulate else contextlib.nullcontext():
                with self.autocast():
                    loss, num_right = self._forward(piece.images, piece.labels, piece.mix_labels, piece.mix_lam)
                loss = loss / train.accumulate
                self.scaler.scale(loss).backward()
            losses.append(loss.detach())
            right.append(num_right.detach())
        if train.clip_norm is not None:
            self.scaler.unscale_(self.optimizer)
            nn.utils.clip_grad_norm_(self._parameters, train.clip_norm)
        self.scaler.step(self.optimizer)
        self.scaler.update()
        return torch.stack(losses), torch.stack(right)

    def _rates_on_device(self) -> None:
        """Learning rates as tensors, where a graph reads them: a number would be the captured step's for ever."""
        if self._has_graph:
            device = self._parameters[0].device
            for group in self.optimizer.param_groups:
                group |= {"lr": torch.tensor(float(group["lr"]), device=device), "capturable": True}

    def averaged_model(self) -> MLP:
        """The model to evaluate and save: the average of the weights where there is one."""
        return self.average.model if self.average else self.model

    def take_losses(self) -> list[float]:
        """The recorded losses since the last call, over all processes; every one must call it."""
        if not self.losses:
            return []
        losses = (self.world.reduce(torch.stack(self.losses)) / self.world.size).tolist()
        self.losses.clear()
        return losses

    def state(self) -> dict[str, Any]:
        """What a resume needs, except the sums."""
        average, optimizer = self.average.model.state_dict() if self.average else None, self.optimizer.state_dict()
        for group in optimizer["param_groups"]:
            group["lr"] = float(group["lr"])
        return {
            "model": self.model.state_dict(), "average": average, "optimizer": optimizer,
            "scaler": self.scaler.state_dict(), "step": self.count,
        }  # fmt: skip

    def restore(self, state: dict[str, Any]) -> None:
        """Continue from a state, from which the model was made already."""
        if self.average:
            self.average.model.load_state_dict(state["average"])
        saved = state["optimizer"]
        if state["recipe"]["optim"]["name"] == self.recipe.optim.name:  # one that --force chose anew begins anew
            # Settings are the recipe's, which --force may have changed; momenta and the last step's rate the state's.
            groups = zip(self.optimizer.state_dict()["param_groups"], saved["param_groups"], strict=True)
            groups = [own | {"lr": old["lr"]} for own, old in groups]
            self.optimizer.load_state_dict(saved | {"param_groups": groups})
            self._rates_on_device()
        self.scaler.load_state_dict(state["scaler"])
        self.count = state["step"]
