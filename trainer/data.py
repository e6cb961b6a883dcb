"""What a recipe says about data, as loaders: pixels, or features computed once for a linear probe."""

from __future__ import annotations

import dataclasses
import hashlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn

from mlpdata.augment.augment import Augment
from mlpdata.augment.batch import Batch
from mlpdata.errors import Error
from mlpdata.loader.loader import Loader
from mlpdata.loader.order import EpochSteps
from mlpdata.shards.manifest import Manifest
from mlpdata.shards.remote import local_copy
from mlpdata.splits import HELD_OUT, canonical, find
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


@dataclasses.dataclass(frozen=True, kw_only=True)
class Shards:
    """The shard directory of a recipe, before anything of it is read but the manifest."""

    root: Path
    manifest: Manifest
    train_split: str
    eval_split: str | None  # None: there is nothing that is held out
    warning: str | None  # what the user has to know about that


def find_shards(recipe: Recipe) -> Shards:
    """The shards of a recipe and the splits it asks for. Raises Error for what would end the work later."""
    data, batch_size = recipe.data, recipe.train.batch_size
    try:
        root = Path(local_copy(data.shards))
        manifest = Manifest.load(root)
    except Error as e:
        raise Error(f"{e}{_how_made(data.shards)}") from None
    train = _split(manifest, data.train_split, data.shards)
    if (n := manifest.splits[train].num_samples) < batch_size:
        many = f"{n:,} images" if n else "no images"
        raise Error(
            f"split {train!r} of {data.shards} has {many}, fewer than one batch of {batch_size}"
            + ("; lower train.batch_size" if n else "")
        )
    others = [split for split, info in manifest.splits.items() if split != train and info.num_samples]
    held_out, warning = None, None
    if find(data.eval_split, [train]) == train:
        held_out, warning = train, f"the accuracy will be that on {train}, the images trained on"
    elif others or canonical(data.eval_split) not in HELD_OUT:
        held_out = _split(manifest, data.eval_split, data.shards)
        if not manifest.splits[held_out].num_samples:
            raise Error(f"split {held_out!r} of {data.shards} has no images; data.eval_split chooses another")
    else:
        warning = f"{data.shards} has no held-out images, only {train}: nothing is evaluated, and best is the last"
    return Shards(root=root, manifest=manifest, train_split=train, eval_split=held_out, warning=warning)


def _split(manifest: Manifest, name: str, shards: str) -> str:
    split = find(name, manifest.splits)
    if split is None:
        raise Error(f"no split {name!r} in {shards}; it has {', '.join(sorted(manifest.splits)) or 'none'}")
    return split


def _how_made(shards: str) -> str:
    """How to make the shards that are not there, if their path is one that `convert` gives by itself."""
    from mlpdata.datasets import SPECS

    name, _, res = Path(shards).name.rpartition("-")
    if name not in SPECS or not res.isdecimal() or Path(shards).exists():
        return ""
    return f"; `mlpdata convert {name} --res {res}` makes it"


def facts_of(shards: Shards, format: str) -> dict[str, Any]:
    """What a run's data are, by the manifest's sums, for a resume to be compared with. format: the recipe's."""
    m = shards.manifest
    facts: dict[str, Any] = {"classes": m.num_classes, "list of classes": m.classes_sha256[:16], "resolution": m.res}
    for role, split in (("training", shards.train_split), ("held-out", shards.eval_split)):
        facts[f"{role} split"] = split
        if split:
            info = m.splits[split]
            files = info.tars if format == "tar" or not info.beton else [info.beton]
            sums = "".join(f"{name} {m.files.get(name, {}).get('sha256')}\n" for name in files)
            facts[f"{role} images"] = info.num_samples
            facts[f"set of {role} files"] = hashlib.sha256(sums.encode()).hexdigest()[:16]
    return facts


def open_loaders(recipe: Recipe, shards: Shards, device: torch.device, world: World) -> tuple[Loader, Loader | None]:
    """(training, evaluation) of a recipe, this process's share of each. Raises Error."""
    loaders = []
    for split, batch_size, training in (
        (shards.train_split, recipe.train.batch_size, True),
        (shards.eval_split, -(-recipe.eval.batch_size // world.size) * world.size, False),
    ):
        if split is None:
            loaders.append(None)
            continue
        loader = open_loader(
            recipe.data, shards.root, split, batch_size, device, shuffle=training, drop_last=training,
            seed=recipe.seed, rank=world.rank, world_size=world.size,
        )  # fmt: skip
        loader.augment = augment_of(recipe.augment, loader.manifest, recipe.train.precision, training=training)
        loaders.append(loader)
    return loaders[0], loaders[1]


def open_loader(data: Data, root: Path, split: str, batch_size: int, device: torch.device, **options) -> Loader:
    """A split as the recipe's section says."""
    if data.pixels != "rgb":
        options["pixels"] = data.pixels
    chosen = {k: None if v == "auto" else v for k, v in (("format", data.format), ("tier", data.tier))}
    return Loader(root, split, batch_size=batch_size, device=device, **chosen, **options)


class FeatureLoader(Loader):
    """A loader's batches with the body's features (n, m) for images, computed once: for augmentation that is none.

    The same order, slices and state as the loader it is made from.
    """

    def __init__(self, loader: Loader, model: nn.Module, autocast):
        self.__dict__.update(loader.__dict__)
        pieces = []
        model.eval()
        with torch.no_grad():
            for start in range(0, loader.num_samples, 1024):
                ids = np.arange(start, min(start + 1024, loader.num_samples))
                images, there = (torch.from_numpy(a).to(loader.device) for a in (loader.read(ids), ids))
                with autocast():
                    pieces.append(model.features(loader.augment.apply(Batch(images, there, there), 0, 0).images))
        self.augment, self.pixels, self.tier_reason = None, "rgb", "features of the body, resident"
        self._tier = _Features(torch.cat(pieces), torch.from_numpy(loader.labels.copy()).to(loader.device))


class _Features:
    """A tier of a Loader: features (N, m) and labels (N,) on the device."""

    blocks = None

    def __init__(self, features: torch.Tensor, labels: torch.Tensor):
        self._features, self._labels = features, labels

    def batches(self, steps: EpochSteps) -> Iterator[Batch]:
        for step in steps.range:
            ids = torch.from_numpy(steps.rows(step)).to(self._features.device)
            yield Batch(self._features.index_select(0, ids), self._labels.index_select(0, ids), ids)
