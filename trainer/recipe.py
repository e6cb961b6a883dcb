"""Recipes: one experiment as frozen dataclasses, read from strict YAML. What a key means is said here, once."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import yaml

from mlpdata.augment.settings import Augmentation
from mlpdata.errors import Error
from mlpdata.loader.options import Pixels, Tier
from mlpdata.shards.manifest import MAX_RES
from trainer import recipes, strict

MAX_NAME_BYTES = 200  # of a run; file systems take 255, and a number may follow
ANY = float("inf")
# (least, most) of the numbers of a recipe. A greater one would end in an overflow, or after minutes without memory.
LIMITS = {
    "seed": (0, (1 << 32) - 1), "data.cache_bytes": (1, 1 << 62),
    "augment.res": (1, MAX_RES), "augment.pad": (-ANY, MAX_RES), "augment.cutout": (-ANY, MAX_RES),
    "augment.mixup": (-ANY, 1e3), "augment.cutmix": (-ANY, 1e3), "augment.brightness": (-ANY, 10),
    "augment.contrast": (-ANY, 10), "augment.saturation": (-ANY, 10),
    "model.depth": (1, 1000), "model.width": (1, 1 << 20), "model.expansion": (1, 1 << 10),
    "optim.weight_decay": (0, ANY), "schedule.warmup_epochs": (0, 1e9),
    "train.epochs": (1, 10**9), "train.batch_size": (1, 1 << 30), "train.accumulate": (1, 1 << 30),
    "eval.every": (1, 10**9), "eval.batch_size": (1, 1 << 20),
    "save.every_steps": (1, 10**12), "save.every_minutes": (-ANY, 1e9), "save.keep": (1, 10**6),
}  # fmt: skip
SHARES = ("model.dropout", "train.label_smoothing", "train.ema", "optim.momentum")  # from 0 to below 1
POSITIVE = ("optim.lr", "optim.head_lr", "train.clip_norm", "save.every_minutes")


@dataclass(frozen=True, kw_only=True)
class Data:
    """Which shards, and how they are read."""

    shards: str  # shard directory
    format: Literal["auto", "beton", "tar"] = "auto"  # which files to read; auto: the beton if there is one
    tier: Tier = "auto"  # where pixels are held; auto: chosen by free memory; stream: fetched during the epoch
    cache_bytes: int | None = None  # local disk for tars that are streamed from a URL; null: 80% of what is free
    pixels: Pixels = "rgb"  # ycc420: chroma at half resolution, half the memory; auto: ycc420 only if rgb does not fit
    train_split: str = "train"  # split to train on
    eval_split: str = "val"  # split to evaluate on


@dataclass(frozen=True, kw_only=True)
class Model:
    """A name such as B_12-Wi_1024, or the fields below."""

    name: str | None = None  # in the paper's notation; of the other fields only norm, activation and dropout then apply
    kind: Literal["b_mlp", "s_mlp"] = "b_mlp"  # b_mlp: inverted bottlenecks with skip connections; s_mlp: a plain MLP
    depth: int = 6  # blocks of a B-MLP; linear layers before the head of an S-MLP
    width: int = 512  # features of a layer
    expansion: int = 4  # of a B-MLP: hidden features of a block, as a multiple of width
    norm: Literal["layer", "batch", "none"] = "layer"  # before each block or layer
    activation: Literal["gelu", "relu"] = "gelu"  # in each block or layer
    dropout: float = 0.0  # share of the features that is zeroed in training


@dataclass(frozen=True, kw_only=True)
class Optim:
    """The optimizer. Weight decay spares biases and norms."""

    name: Literal["lion", "adamw", "sgd"] = "lion"  # which optimizer
    lr: float = 5e-5  # learning rate
    head_lr: float | None = None  # learning rate of the last layer; null: lr
    weight_decay: float = 0.0  # decoupled for Lion and AdamW
    betas: tuple[float, float] | None = None  # null: (0.9, 0.99) for Lion, (0.9, 0.999) for AdamW
    momentum: float = 0.9  # of SGD only


@dataclass(frozen=True, kw_only=True)
class Schedule:
    """The factor by which the learning rate is multiplied, step by step."""

    name: Literal["constant", "cosine", "linear"] = "constant"  # after the warm-up; cosine and linear fall to 0
    warmup_epochs: float = 0.0  # epochs of a linear warm-up from 0


@dataclass(frozen=True, kw_only=True)
class Train:
    """The loop."""

    epochs: int = 100  # passes over the training split
    batch_size: int = 1024  # samples a step, over all processes
    accumulate: int = 1  # gradient accumulation: cut a batch into so many pieces; the same step in less memory
    label_smoothing: float = 0.0  # share of the target that is spread evenly over all classes
    clip_norm: float | None = None  # largest norm of the gradient; null: no clipping
    ema: float = 0.0  # decay per step of a moving average of the weights; the average is evaluated and saved; 0: none
    probe: bool = False  # linear probe: train the last layer only; without augmentation, features are computed once
    # bf16, fp16: autocast, with weights in fp32; auto: bf16 where the hardware supports it, else fp32
    precision: Literal["auto", "fp32", "tf32", "bf16", "fp16"] = "fp32"
    compile: bool = False  # torch.compile of model, loss and Lion
    # the whole step as one CUDA graph, with the same results; null: on one GPU, without fp16 and dropout
    cuda_graphs: bool | None = None
    device: Literal["auto", "cpu", "cuda"] = "auto"  # auto: the GPU if there is one
    record_steps: bool = False  # write the loss of every step to steps.jsonl


@dataclass(frozen=True, kw_only=True)
class Eval:
    """When and how to evaluate."""

    every: int = 1  # evaluate after so many epochs
    batch_size: int = 2048  # samples evaluated at a time


@dataclass(frozen=True, kw_only=True)
class Save:
    """When to write a checkpoint, besides at the end, when stopped, and (up to 100 MB) after each epoch."""

    every_minutes: float = 5.0  # minutes between checkpoints: what a crash can cost
    every_steps: int | None = None  # steps between checkpoints; null: by time alone
    keep: int = 2  # how many states to keep, in case the last is damaged; the best weights are always kept


@dataclass(frozen=True, kw_only=True)
class Log:
    """Where numbers go besides metrics.jsonl and curve.png."""

    tensorboard: bool | None = None  # event files for TensorBoard; null: if it is installed
    wandb: bool = False  # log to Weights & Biases, which must be installed


@dataclass(frozen=True, kw_only=True)
class Recipe:
    """One experiment. Raises Error for settings that no experiment has.

    The fields of `augment` are those of mlpdata.Augment; evaluation only resizes and normalises.

    >>> recipe = Recipe(name="tiny", data=Data(shards="shards/cifar10-32"), train=Train(epochs=3))
    >>> recipe.train.epochs, recipe.optim.name, recipe.augment.flip
    (3, 'lion', True)
    """

    name: str  # name of the run directory
    seed: int = 0  # seed of weights, orders and augmentation
    init: str | None = None  # checkpoint to start from; it sets the model; other classes get a new head
    data: Data
    augment: Augmentation = field(default_factory=Augmentation)
    model: Model = field(default_factory=Model)
    optim: Optim = field(default_factory=Optim)
    schedule: Schedule = field(default_factory=Schedule)
    train: Train = field(default_factory=Train)
    eval: Eval = field(default_factory=Eval)
    save: Save = field(default_factory=Save)
    log: Log = field(default_factory=Log)

    def __post_init__(self):
        for key, (least, most) in LIMITS.items():
            value = self._get(key)
            if value is not None and not least <= value <= most:
                bound = f"at least {least}" if value < least else f"at most {most}"
                raise Error(f"recipe: {key} must be {bound}, not {value}")
        for key in SHARES:
            if not 0 <= self._get(key) < 1:
                raise Error(f"recipe: {key} must be from 0 to below 1, not {self._get(key)}")
        for key in POSITIVE:
            value = self._get(key)
            if value is not None and not value > 0:
                raise Error(f"recipe: {key} must be positive, not {value}")
        if self.optim.betas is not None and not all(0 <= b < 1 for b in self.optim.betas):
            raise Error(f"recipe: optim.betas must be from 0 to below 1, not {list(self.optim.betas)}")
        if self.train.batch_size % self.train.accumulate:
            raise Error(f"recipe: train.accumulate must divide train.batch_size, {self.train.batch_size}")
        if self.model.norm == "batch" and self.train.accumulate > 1:
            raise Error("recipe: train.accumulate with model.norm batch would change the model; use norm layer")
        if self.init == "":
            raise Error("recipe: init is empty; give the path of a checkpoint, or null for none")
        fits = len(self.name.encode()) <= MAX_NAME_BYTES
        if not self.name or not fits or "/" in self.name or self.name.startswith("."):
            raise Error(f"recipe: name {self.name!r:.80} does not make a directory name")

    def _get(self, key: str) -> Any:
        section, _, name = key.rpartition(".")
        return getattr(getattr(self, section) if section else self, name)

    def to_dict(self) -> dict[str, Any]:
        """Plain nested dictionaries and lists, for checkpoints and the run directory."""
        return _plain(dataclasses.asdict(self))

    @classmethod
    def from_dict(cls, values: dict[str, Any]) -> Recipe:
        """The inverse of to_dict, as strict as a file. Raises Error."""
        text = yaml.safe_dump(_plain(values), sort_keys=False)
        return strict.build(strict.parse(text, "checkpoint"), cls)


def load_recipe(path: str | Path, overrides: list[str] | tuple[str, ...] = ()) -> Recipe:
    """Read a recipe file, what it extends, and `section.key=value` overrides on top. Raises Error.

    path: of a file, or the name of a recipe that comes with the package.
    """
    path = recipes.find(path)
    tree = strict.read(path)
    for setting in overrides:
        strict.override(tree, setting)
    if "name" not in tree:
        tree["name"] = (yaml.ScalarNode("tag:yaml.org,2002:str", path.stem), str(path))
    return strict.build(tree, Recipe)


def _plain(value: Any) -> Any:
    if isinstance(value, dict):
        return {k: _plain(v) for k, v in value.items()}
    return [_plain(v) for v in value] if isinstance(value, (list, tuple)) else value
