"""Loaders of what a recipe names: pixels, or features that are computed once for a linear probe."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch

from mlpdata.augment.augment import Augment
from mlpdata.augment.batch import Batch
from mlpdata.augment.settings import Augmentation
from mlpdata.errors import Error
from mlpdata.loader.loader import Loader
from mlpdata.loader.memory_plan import Needs
from mlpdata.loader.resident import Resident
from mlpdata.shards.manifest import Manifest
from mlpdata.shards.remote import is_remote
from mlpdata.shards.streamed import local_directory, open_tars
from mlpdata.shards.tar_cache import TarCache
from mlpdata.splits import HELD_OUT, canonical, chosen, find
from mlpdata.system.format import plural
from trainer.model import MLP
from trainer.recipe import Data, Recipe
from trainer.world import World

DTYPES = {"bf16": "bfloat16", "fp16": "float16"}  # to which autocast would cast the images anyway
FEATURES_BATCH = 1024


@dataclass(frozen=True, kw_only=True)
class DataSplits:
    """The shard directory of a recipe and the splits that it uses; nothing is read yet but the manifest."""

    root: Path
    manifest: Manifest
    train_split: str
    eval_split: str | None  # None: there are no held-out images
    warning: str | None  # what the user has to know about eval_split
    tars: TarCache | None = None  # where the tars come from, if they are streamed


def find_splits(recipe: Recipe, *, to_train: bool = True) -> DataSplits:
    """The splits that a recipe asks for. Raises Error for those that would end the work later.

    to_train: False also takes a training split of fewer images than a batch.
    """
    data, batch_size = recipe.data, recipe.train.batch_size
    try:
        root = local_directory(data.shards, data.tier, data.cache_bytes)
        manifest = Manifest.load(root)
    except Error as e:
        raise Error(f"{e}{_how_to_make(data.shards)}") from None
    (train,) = chosen([data.train_split], manifest.splits, data.shards)
    if (n := manifest.splits[train].num_samples) < (batch_size if to_train else 1):
        count = plural(n, "image") if n else "no images"
        raise Error(
            f"split {train!r} of {data.shards} has {count}, fewer than one batch of {batch_size}"
            + ("; lower train.batch_size" if n else "")
        )
    tars = open_tars(root, manifest, train, data.format, data.cache_bytes)
    others = [split for split, info in manifest.splits.items() if split != train and info.num_samples]
    held_out, warning = None, None
    if find(data.eval_split, [train]) == train:
        held_out, warning = train, f"the accuracy will be that on {train}, the images trained on"
    elif others or canonical(data.eval_split) not in HELD_OUT:
        (held_out,) = chosen([data.eval_split], manifest.splits, data.shards)
        if not manifest.splits[held_out].num_samples:
            raise Error(f"split {held_out!r} of {data.shards} has no images; data.eval_split chooses another")
    else:
        warning = (
            f"{data.shards} has no held-out images, only {train}: nothing is evaluated, and the last checkpoint "
            "counts as the best"
        )
    return DataSplits(root=root, manifest=manifest, train_split=train, eval_split=held_out, warning=warning, tars=tars)


def trained_on(data: Data, checkpoint: Path, say: Callable[[str], None] = lambda line: None) -> Path:
    """The shard directory of a checkpoint's recipe, here or in the cache. Raises Error where it is gone or moved."""
    try:
        root = local_directory(data.shards, data.tier, data.cache_bytes, say)
        Manifest.load(root)
    except Error as e:
        here = is_remote(data.shards) or os.path.isabs(data.shards)
        seen = "" if here else f" (seen from the folder that `mlpdata train` ran in; this is {os.getcwd()})"
        raise Error(
            f"{checkpoint} was trained on {data.shards}{seen}: {e}; --shards DIR says where they are now"
            f"{_how_to_make(data.shards)}"
        ) from None
    return root


def _how_to_make(shards: str) -> str:
    """The command that makes missing shards, where their path is one that `convert` chooses by itself."""
    from mlpdata.datasets import SPECS

    name, _, res = Path(shards).name.rpartition("-")
    if name not in SPECS or not res.isdecimal() or Path(shards).exists():
        return ""
    return f"; `mlpdata convert {name} --res {res}` makes it"


def data_facts(splits: DataSplits, format: str) -> dict[str, Any]:
    """What the data of a run are, by the sums in the manifest, for a resume to compare. format: of the recipe."""
    m = splits.manifest
    facts: dict[str, Any] = {"classes": m.num_classes, "list of classes": m.classes_sha256[:16], "resolution": m.res}
    for role, split in (("training", splits.train_split), ("held-out", splits.eval_split)):
        facts[f"{role} split"] = split
        if split:
            info = m.splits[split]
            files = info.tars if format == "tar" or not info.beton else [info.beton]
            sums = "".join(f"{name} {m.files.get(name, {}).get('sha256')}\n" for name in files)
            facts[f"{role} images"] = info.num_samples
            facts[f"set of {role} files"] = hashlib.sha256(sums.encode()).hexdigest()[:16]
    return facts


def make_augment(settings: Augmentation, manifest: Manifest, precision: str) -> Augment:
    """The Augment of a recipe's section; resolution, mean and std default to the data set's. Raises Error."""
    mean, std = settings.mean or manifest.mean, settings.std or [max(s, 1e-3) for s in manifest.std]
    settings = replace(settings, res=settings.res or manifest.res, mean=tuple(mean), std=tuple(std))
    return Augment(**vars(settings), dtype=DTYPES.get(precision, "float32"))


def open_loaders(
    recipe: Recipe,
    splits: DataSplits,
    device: torch.device,
    world: World,
    needs: tuple[Needs | None, Needs | None] = (None, None),
) -> tuple[Loader, Loader | None]:
    """(training, evaluation) loaders of a recipe; each process gets its share of every batch. Raises Error.

    needs: what has to stay free besides the pixels of each; None: unknown.
    """

    def open_loader(split: str, batch_size: int, settings: Augmentation, training: bool) -> Loader:
        return Loader(
            splits.root, split, batch_size, device=device, format=None if data.format == "auto" else data.format,
            tier=data.tier, cache_bytes=data.cache_bytes, pixels=data.pixels, needs=needs[0 if training else 1],
            augment=make_augment(settings, splits.manifest, recipe.train.precision),
            shuffle=training, drop_last=training, seed=recipe.seed, rank=world.rank, world_size=world.size,
        )  # fmt: skip

    data, settings = recipe.data, recipe.augment
    train_loader = open_loader(splits.train_split, recipe.train.batch_size, settings, training=True)
    if splits.eval_split is None:
        return train_loader, None
    divisible = -(-recipe.eval.batch_size // world.size) * world.size
    return train_loader, open_loader(splits.eval_split, divisible, settings.without_random(), training=False)


class FeatureLoader(Loader):
    """A loader whose batches hold the body's features (n, m) instead of images, for augmentation without random parts.

    Features are computed once. Order, slices and state are those of the loader that it is made from.
    """

    def __init__(self, loader: Loader, model: MLP, autocast):
        self.__dict__.update(loader.__dict__)
        augment, pieces = loader.augment or Augment(crop_scale=None, flip=False), []
        model.eval()
        with torch.no_grad():
            for start in range(0, loader.num_samples, FEATURES_BATCH):
                rows = np.arange(start, min(start + FEATURES_BATCH, loader.num_samples))
                images, ids = (torch.from_numpy(a).to(loader.device) for a in (loader.read(rows), rows))
                with autocast():
                    pieces.append(model.features(augment.apply(Batch(images, ids, ids), 0, 0).images))
        self.augment, self.pixels, self.tier_reason = None, "rgb", "features of the body, resident"
        self._tier = _FeatureTier(torch.cat(pieces), torch.from_numpy(loader.labels.copy()).to(loader.device))


class _FeatureTier(Resident):
    """The resident tier with features (N, m) in the place of pixels."""

    def __init__(self, features: torch.Tensor, labels: torch.Tensor):
        self.device, self.stores = features.device, [features]
        self._labels, self._ids, self._buffers = labels, None, None
