"""Accuracy of a model on a split: top-1, top-5, a class at a time, by ReaL labels, over test-time crops."""

from __future__ import annotations

import contextlib
import json
import os
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import torch
import torch.nn.functional as F
from torch import nn

from mlpdata.augment.augment import Augment
from mlpdata.errors import Error
from mlpdata.loader.loader import Loader
from mlpdata.shards import card, index
from mlpdata.shards.classes import read_classes
from mlpdata.shards.classes import read_real as read_real_file
from mlpdata.shards.manifest import Manifest
from mlpdata.splits import find
from trainer import runs
from trainer.checkpoint import Checkpoint, open_checkpoint, recipe_of
from trainer.data import augment_of
from trainer.recipe import Augmentation
from trainer.world import World, device_of

IMAGENET = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)  # mean and std that the paper uses on all but CIFAR and STL-10
AUTOCAST = {"bf16": torch.bfloat16, "fp16": torch.float16}


def autocast_of(device: torch.device, precision: str) -> Callable[[], Any]:
    """A function that gives the context a forward pass runs in."""
    kind = AUTOCAST.get(precision)
    return lambda: torch.autocast(device.type, kind) if kind else contextlib.nullcontext()


@dataclass
class Result:
    """What a pass over a split found. Shares are between 0 and 1."""

    metrics: dict[str, float]  # val_loss, val_top1, val_top5; val_real where there are ReaL labels
    class_right: np.ndarray  # (C,) int64: samples of each class that were right
    class_total: np.ndarray  # (C,) int64
    top_ids: np.ndarray | None = None  # (N, k) int64, the k best classes of each sample in the order of the split
    top_probs: np.ndarray | None = None  # (N, k) float32


@dataclass(frozen=True, kw_only=True)
class Views:
    """Test-time augmentation: how a batch of stored pixels is seen. crops 0: once, whole.

    average: "probabilities" as in the paper, or "logits".
    """

    whole: Augment
    crop: Augment | None = None
    crops: int = 0
    average: str = "probabilities"

    def logits(self, model: Callable, batch, autocast, seed: int) -> torch.Tensor:
        """(N, C) float32 scores of a batch; the log of the mean probability where probabilities are averaged."""
        if not self.crops:
            with autocast():
                return model(self.whole.apply(batch, 0, seed).images).float()
        total = 0
        for k in range(self.crops):  # the k-th crop of a sample is what training would see of it in epoch k
            with autocast():
                logits = model(self.crop.apply(batch, k, seed).images).float()
            total = total + (logits if self.average == "logits" else logits.softmax(1))
        mean = total / self.crops
        return mean if self.average == "logits" else mean.clamp_(min=1e-30).log()


@torch.inference_mode()
def evaluate(
    model: nn.Module,
    loader: Loader,
    autocast: Callable[[], Any],
    *,
    forward: Callable | None = None,
    world: World | None = None,
    views: Views | None = None,
    real: torch.Tensor | None = None,
    top_k: int = 0,
) -> Result:
    """One pass over a loader.

    forward: what is called in the model's place. views: for a loader that gives pixels as stored. real: int64
    (N, most labels a sample has), filled up with -1. top_k: of how many classes to keep the predictions.
    """
    world, forward, device = world or World(), forward or model, loader.device
    was_training = model.training
    model.eval()
    total = torch.zeros(4, dtype=torch.float64, device=device)
    right, of = (torch.zeros(loader.num_classes, dtype=torch.int64, device=device) for _ in range(2))
    kept = []
    for batch in loader:
        if views is not None:
            logits = views.logits(forward, batch, autocast, loader.seed)
        else:
            with autocast():
                logits = forward(batch.images).float()
        loss = F.cross_entropy(logits, batch.labels, reduction="sum")
        best = logits.topk(min(max(5, top_k), logits.shape[1]), dim=1).indices
        found = best[:, :5] == batch.labels.unsqueeze(1)
        hits = (best[:, :1] == real[batch.ids]).any(1).sum() if real is not None else loss.new_zeros(())
        total += torch.stack((loss, found[:, 0].sum(), found.sum(), hits)).double()
        of += torch.bincount(batch.labels, minlength=len(of))
        right += torch.bincount(batch.labels[found[:, 0]], minlength=len(of))
        if top_k:
            kept.append((best[:, :top_k], logits.softmax(1).gather(1, best[:, :top_k])))
    model.train(was_training)
    loss, top1, top5, hits = world.reduce(total).tolist()
    n = loader.num_samples
    metrics = {"val_loss": loss / n, "val_top1": top1 / n, "val_top5": top5 / n}
    if real is not None:
        metrics["val_real"] = hits / max(1, int((real >= 0).any(1).sum()))
    ids, probs = (torch.cat(t).cpu().numpy() for t in zip(*kept, strict=True)) if kept else (None, None)
    return Result(metrics, world.reduce(right).cpu().numpy(), world.reduce(of).cpu().numpy(), ids, probs)


# ------------------------------------------------------------------------------------------------- the command line


@dataclass(frozen=True, kw_only=True)
class Options:
    """What `mlpdata eval` was asked for."""

    checkpoint: Path
    shards: Path
    split: str = "val"
    tta: int = 0
    average: str = "probabilities"
    crop_scale: float | None = None  # the least; None: as the checkpoint was trained, else the paper's 0.4
    normalize: str | None = None  # "own" or "imagenet" mean and std; None: the checkpoint's, else the data set's own
    per_class: bool = False
    predictions: Path | None = None
    batch_size: int = 2048
    device: str = "auto"
    precision: str = "fp32"
    as_json: bool = False


def run(options: Options) -> str:
    """Evaluate a checkpoint on a split and say what was found. Raises Error."""
    device, manifest = device_of(options.device), Manifest.load(options.shards)
    split = _split(options, manifest)
    if options.predictions:
        _check_writable(options.predictions)
    found = open_checkpoint(options.checkpoint)
    _check_classes(options, found, manifest)
    loader = Loader(options.shards, split, batch_size=options.batch_size, device=device, shuffle=False)
    whole, crop = _views_of(options, found, manifest)
    views = Views(whole=whole, crop=crop, crops=options.tta, average=options.average)
    real = read_real(options.shards, manifest, loader.split)
    result = evaluate(
        found.model.to(device), loader, autocast_of(device, options.precision), views=views,
        real=None if real is None else torch.from_numpy(real).to(device),
        top_k=min(5, found.num_classes) if options.predictions else 0,
    )  # fmt: skip
    if options.predictions:
        write_predictions(options.predictions, result, loader)
    return _shown(options, found, result, loader)


def _split(options: Options, manifest: Manifest) -> str:
    split = find(options.split, manifest.splits)
    if split is not None and manifest.splits[split].num_samples:
        return split
    lacks = f"no split {options.split!r}" if split is None else f"no images in split {split!r}"
    others = [name for name, info in manifest.splits.items() if info.num_samples]
    raise Error(f"{options.shards} has {lacks}, only {', '.join(others) or 'nothing'}; --split chooses one of these")


def _check_writable(path: Path) -> None:
    """Raise Error where a file cannot be written: the evaluation before it may take hours."""
    if path.is_dir():
        raise Error(f"cannot write {path}: it is a directory")
    if not path.parent.is_dir() or not os.access(path.parent, os.W_OK):
        raise Error(f"cannot write {path}: there is no directory {path.parent} that can be written")


def _check_classes(options: Options, found: Checkpoint, manifest: Manifest) -> None:
    trained, n = found.facts.get("classes_sha256"), found.num_classes
    if n == manifest.num_classes and trained in (None, manifest.classes_sha256):
        return
    other = f"{manifest.num_classes}" if n != manifest.num_classes else "as many, but another list of them"
    raise Error(
        f"{options.checkpoint} knows {n} classes and {options.shards} has {other}; "
        "the class lists must be equal: fine-tune first, with `init:` in a recipe"
    )


def _views_of(options: Options, found: Checkpoint, manifest: Manifest) -> tuple[Augment, Augment]:
    """(whole image, random crop) as the checkpoint's model wants them."""
    trained = recipe_of(found.facts, options.checkpoint).augment if found.facts else None
    scale, ratio = (0.4, 1.0), (1.0, 1.0)  # the paper's, of fine-tuning
    if trained is not None and trained.crop_scale is not None:
        scale, ratio = trained.crop_scale, trained.crop_ratio
    if options.crop_scale is not None:
        scale = (options.crop_scale, 1.0)
    mean, std = {
        None: (found.facts.get("mean"), found.facts.get("std")), "own": (None, None), "imagenet": IMAGENET,
    }[options.normalize]  # fmt: skip
    crops = Augmentation(res=found.res, mean=mean, std=std, crop_scale=scale, crop_ratio=ratio, flip=True)
    whole, crop = (augment_of(crops, manifest, options.precision, training=t) for t in (False, True))
    return whole, crop


def read_real(root: Path, manifest: Manifest, split: str) -> np.ndarray | None:
    """ReaL labels (Beyer et al. 2020) of a split, int64 (N, most labels), filled up with -1; None where there are none.

    A sample without labels has a row of -1 and does not count.
    """
    labels = read_real_file(root, manifest, split)
    if labels is None:
        return None
    rows = [labels.get(key, []) for key in index.keys(root, manifest, split)]
    out = np.full((len(rows), max(1, max(map(len, rows), default=0))), -1, np.int64)
    for row, there in zip(out, rows, strict=True):
        row[: len(there)] = there
    return out


def write_predictions(path: Path, result: Result, loader: Loader) -> None:
    """A parquet row a sample, in the order of the split: key, label, the best classes and their probabilities."""
    keys = index.keys(loader.root, loader.manifest, loader.split)
    table = pa.table(
        {
            "key": keys,
            "label": pa.array(loader.labels),
            "top": pa.array(list(result.top_ids)),
            "prob": pa.array(list(result.top_probs)),
        }
    )
    out = pa.BufferOutputStream()
    pq.write_table(table, out)
    runs.write(path, memoryview(out.getvalue()))


def _shown(options: Options, found: Checkpoint, result: Result, loader: Loader) -> str:
    names = card.distinct_names(read_classes(loader.root, loader.manifest))
    of_class = {
        name: right / total
        for name, right, total in zip(names, result.class_right.tolist(), result.class_total.tolist(), strict=True)
        if total
    }
    if options.as_json:
        extra = {"tta": options.tta, "samples": loader.num_samples}
        return json.dumps(result.metrics | extra | ({"per_class": of_class} if options.per_class else {}))
    m = result.metrics
    how = f", {options.tta} crops, {options.average} averaged" if options.tta else ""
    lines = [
        f"{options.checkpoint} on {loader.num_samples:,} samples of {loader.manifest.dataset} {loader.split}{how}: "
        f"top-1 {m['val_top1']:.2%}  top-5 {m['val_top5']:.2%}  loss {m['val_loss']:.4f}"
        + (f"  ReaL {m['val_real']:.2%}" if "val_real" in m else "")
    ]
    if options.per_class:
        worst_first = sorted(of_class.items(), key=lambda pair: pair[1])
        lines += [f"  {share:7.2%}  {name}" for name, share in worst_first]
    if not found.facts:
        lines.append("the checkpoint does not name its classes: they were taken to be those of the shards, in order")
    if options.predictions:
        lines.append(f"predictions: {options.predictions}")
    return "\n".join(lines)
