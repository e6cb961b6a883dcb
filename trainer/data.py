"""What a recipe says about data, as loaders: pixels, or features computed once for a linear probe."""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Iterator

import numpy as np
import torch
from torch import nn

from mlpdata.augment import Augment, Batch
from mlpdata.errors import Error
from mlpdata.loader import Loader
from mlpdata.manifest import Manifest
from trainer.recipe import Augmentation, Data, Recipe
from trainer.world import World

DTYPES = {"bf16": "bfloat16", "fp16": "float16"}  # what the first layer would cast to anyway


def augment_of(a: Augmentation, manifest: Manifest, precision: str, *, training: bool) -> Augment:
    """The recipe's augmentation of training images, or what evaluation does to images. Raises Error."""
    if (a.mean is None) != (a.std is None):
        raise Error("recipe: augment.mean and augment.std come together")
    changed = {} if training else {"crop_scale": None, "flip": False}
    for f in dataclasses.fields(a) if training else ():
        if getattr(a, f.name) != f.default:
            changed[f.name] = getattr(a, f.name)
    changed["res"] = a.res or manifest.res
    changed["mean"] = tuple(a.mean or manifest.mean)
    changed["std"] = tuple(a.std or (max(s, 1e-3) for s in manifest.std))
    try:
        return Augment(**changed, dtype=DTYPES.get(precision, "float32"))
    except ValueError as e:
        raise Error(f"recipe: augment: {e}") from None


def open_loaders(recipe: Recipe, device: torch.device, world: World) -> tuple[Loader, Loader]:
    """(training, evaluation) of a recipe, this process's share of each. Raises Error."""
    loaders = []
    for split, batch_size, training in (
        (recipe.data.train_split, recipe.train.batch_size, True),
        (recipe.data.eval_split, -(-recipe.eval.batch_size // world.size) * world.size, False),
    ):
        loader = open_loader(
            recipe.data, split, batch_size, device, shuffle=training, drop_last=training, seed=recipe.seed,
            rank=world.rank, world_size=world.size,
        )  # fmt: skip
        loader.augment = augment_of(recipe.augment, loader.manifest, recipe.train.precision, training=training)
        loaders.append(loader)
    return loaders[0], loaders[1]


def open_loader(data: Data, split: str, batch_size: int, device: torch.device, **options) -> Loader:
    """A split as the recipe's section says."""
    if data.pixels != "rgb":
        options["pixels"] = data.pixels
    chosen = {k: None if v == "auto" else v for k, v in (("format", data.format), ("tier", data.tier))}
    return of_ours(Loader(data.shards, split, batch_size=batch_size, device=device, **chosen, **options))


def of_ours(loader: Loader) -> Loader:
    """A loader of a shard directory with a manifest: it has the mean, the std and the classes. Raises Error."""
    if loader.manifest is None:
        raise Error(f"{loader.root} has no manifest.json: training and evaluation need a directory that convert wrote")
    return loader


class FeatureLoader:
    """A loader's batches with the body's features (n, m) for images, computed once: for augmentation that is none.

    The same order, slices and state as the loader it is made from.
    """

    def __init__(self, loader: Loader, model: nn.Module, autocast):
        self.loader, self.epoch, self._step, self.wait_s = loader, loader.epoch, 0, 0.0
        self.device, self.manifest, self.tier_reason = loader.device, loader.manifest, "features of the body, resident"
        self.num_samples, self.num_classes = loader.num_samples, loader.num_classes
        self._labels = torch.from_numpy(loader.labels).to(loader.device)
        pieces = []
        model.eval()
        with torch.no_grad():
            for start in range(0, loader.num_samples, 1024):
                ids = np.arange(start, min(start + 1024, loader.num_samples))
                images, there = (torch.from_numpy(a).to(loader.device) for a in (loader.read(ids), ids))
                with autocast():
                    pieces.append(model.features(loader.augment.apply(Batch(images, there, there), 0, 0).images))
        self._features = torch.cat(pieces)

    def __len__(self) -> int:
        return len(self.loader)

    def state_dict(self) -> dict[str, int]:
        return {"seed": self.loader.seed, "epoch": self.epoch, "step": self._step}

    def load_state_dict(self, state: dict[str, int]) -> None:
        self.loader.load_state_dict(state)
        self.epoch, self._step = state["epoch"], state["step"]

    def __iter__(self) -> Iterator[Batch]:
        order, size = self.loader.order(self.epoch), self.loader.batch_size
        for step in range(self._step, len(self)):
            started = time.perf_counter()
            whole = order[step * size : (step + 1) * size]
            ids = torch.from_numpy(np.array_split(whole, self.loader.world_size)[self.loader.rank]).to(self.device)
            batch = Batch(self._features.index_select(0, ids), self._labels.index_select(0, ids), ids)
            self.wait_s += time.perf_counter() - started
            self._step += 1
            yield batch
        self.epoch, self._step = self.epoch + 1, 0
