"""Accuracy of a model on a split: top-1, top-5, a class at a time, by ReaL labels, over test-time crops."""

from __future__ import annotations

import contextlib
import json
import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import torch
from torch import nn

from mlpdata.augment.augment import Augment
from mlpdata.augment.batch import Batch
from mlpdata.augment.settings import Augmentation
from mlpdata.errors import Error, UsageError, printable_lines
from mlpdata.loader.loader import Loader
from mlpdata.shards import index
from mlpdata.shards.classes import distinct_names, read_classes, read_real
from mlpdata.shards.manifest import Manifest
from mlpdata.splits import find
from mlpdata.system.files import check_output
from mlpdata.system.format import plural
from trainer.checkpoint import Checkpoint, open_checkpoint, recipe_of
from trainer.data import make_augment, trained_on
from trainer.loss import loss_and_right
from trainer.recipe import Eval, Recipe
from trainer.run_directory import write_file
from trainer.world import World, device_of, matmul_precision, precision_of

IMAGENET = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)  # mean, std: of the paper's runs, but for CIFAR and STL-10
AUTOCAST = {"bf16": torch.bfloat16, "fp16": torch.float16}


def autocast_of(device: torch.device, precision: str) -> Callable[[], Any]:
    """A function that gives the context a forward pass runs in; see matmul_precision for a backward pass."""
    if precision == "tf32":
        return lambda: matmul_precision(precision)
    kind = AUTOCAST.get(precision)
    return lambda: torch.autocast(device.type, kind) if kind else contextlib.nullcontext()


@dataclass(frozen=True, kw_only=True)
class EvalResult:
    """What a pass over a split measured. C classes, N samples in the order of the split."""

    metrics: dict[str, float]  # val_loss; val_top1, val_top5 and, where there are ReaL labels, val_real from 0 to 1
    class_right: np.ndarray  # (C,) int64: samples of each class that were right
    class_total: np.ndarray  # (C,) int64
    predictions: tuple[np.ndarray, ...] | None  # (N, k): the k best classes, int64; their probabilities, float32


@dataclass(frozen=True, kw_only=True)
class TestTimeCrops:
    """Test-time augmentation of stored pixels: the mean over random crops.

    average: "probabilities" as in the paper, or "logits".
    """

    __test__ = False  # no test, whatever pytest makes of the name

    crop: Augment
    crops: int
    average: str = "probabilities"

    def logits(self, model: Callable, batch: Batch, autocast: Callable[[], Any], seed: int) -> torch.Tensor:
        """(N, C) scores of a batch; the log of the mean probability where probabilities are averaged."""
        total: Any = 0
        for k in range(self.crops):  # crop k of a sample is what training would see of it in epoch k
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
    crops: TestTimeCrops | None = None,
    real: torch.Tensor | None = None,
    top_k: int = 0,
) -> EvalResult:
    """One pass over a loader; waits for the device only at its end.

    forward: called in the model's place. crops: for a loader that gives pixels as stored. real: int64 (N, most labels
    of a sample), filled up with -1. top_k: of how many classes to keep the predictions.
    """
    world, forward, device = world or World(), forward or model, loader.device
    was_training = model.training
    model.eval()
    sums = torch.zeros(4, dtype=torch.float64, device=device)  # loss, top-1, top-5, ReaL
    class_right = torch.zeros(loader.num_classes, dtype=torch.int64, device=device)
    top = []
    for batch in loader:
        if crops is not None:
            logits = crops.logits(forward, batch, autocast, loader.seed)
        else:
            with autocast():
                logits = forward(batch.images)
        best = logits.topk(min(max(5, top_k), logits.shape[1]), dim=1).indices
        hits = best[:, :5] == batch.labels.unsqueeze(1)
        real_hits = hits[:0, 0] if real is None else (best[:, :1] == real[batch.ids]).any(1)
        loss = loss_and_right(logits, batch.labels)[0].double() * len(batch.labels)
        sums += torch.stack((loss, hits[:, 0].sum(), hits.sum(), real_hits.sum()))
        class_right.index_add_(0, batch.labels, hits[:, 0].long())
        if top_k:
            top.append((best[:, :top_k], logits.float().softmax(1).gather(1, best[:, :top_k])))
    model.train(was_training)
    loss, top1, top5, real_right = world.reduce(sums).tolist()
    n = loader.num_samples
    metrics = {"val_loss": loss / n, "val_top1": top1 / n, "val_top5": top5 / n}
    if real is not None:
        metrics["val_real"] = real_right / max(1, int((real >= 0).any(1).sum()))
    ids_probs = tuple(torch.cat(t).cpu().numpy() for t in zip(*top, strict=True)) if top else None
    return EvalResult(
        metrics=metrics, class_right=world.reduce(class_right).cpu().numpy(),
        class_total=np.bincount(loader.labels, minlength=loader.num_classes), predictions=ids_probs,
    )  # fmt: skip


# ------------------------------------------------------------------------------------------------- the command line


@dataclass(frozen=True, kw_only=True)
class EvalOptions:
    """What `mlpdata eval` was asked for."""

    checkpoint: Path
    shards: Path | None = None  # None: those of the training
    split: str | None = None  # None: the one that was evaluated in training if the shards have it, else val
    tta: int = 0  # random crops; 0: the whole image once
    average: str = "probabilities"
    crop_scale: float | None = None  # the least; None: as the checkpoint was trained, else the paper's 0.4
    normalize: str | None = None  # "own" or "imagenet" mean and std; None: the checkpoint's, else the data set's own
    per_class: bool = False
    predictions: Path | None = None
    batch_size: int | None = None  # None: as the checkpoint was trained, else Eval's
    device: str = "auto"
    precision: str | None = None  # None: as_trained
    as_json: bool = False


def run(options: EvalOptions, say: Callable[[str], None] = lambda line: None) -> str:
    """Evaluate a checkpoint on a split; returns the report. say: gets lines about a copy that is made. Raises Error."""
    device = device_of(options.device)
    if options.predictions:
        _check_writable(options.predictions)
    ckpt = open_checkpoint(options.checkpoint)
    trained = recipe_of(ckpt.facts, options.checkpoint) if ckpt.facts else None
    root = options.shards or _trained_on(options, trained, say)
    manifest = Manifest.load(root)
    split = _find_split(options.split, trained, root, manifest)
    _check_classes(options, ckpt, root, manifest)
    options = replace(options, precision=options.precision or as_trained(trained, device))
    augment, crops = _transforms(options, ckpt, trained, manifest)
    loader = Loader(
        root, split, options.batch_size or (trained.eval if trained else Eval()).batch_size, device=device,
        format=_format(trained, manifest), pixels=trained.data.pixels if trained else "rgb", shuffle=False,
        augment=None if crops else augment, cache_bytes=trained.data.cache_bytes if trained else None,
    )  # fmt: skip
    real = read_real_labels(root, manifest, loader.split)
    result = evaluate(
        ckpt.model.to(device), loader, autocast_of(device, options.precision or ""),
        crops=crops,
        real=None if real is None else torch.from_numpy(real).to(device),
        top_k=min(5, ckpt.num_classes) if options.predictions else 0,
    )  # fmt: skip
    if options.predictions:
        keys = index.keys(root, manifest, loader.split)
        write_predictions(options.predictions, result, keys, loader.labels)
    return _report(options, ckpt, root, manifest, loader, result)


def _trained_on(options: EvalOptions, trained: Recipe | None, say: Callable[[str], None]) -> Path:
    if trained is None:
        raise UsageError(f"{options.checkpoint} does not say what it was trained on: --shards DIR names the shards")
    return trained_on(trained.data, options.checkpoint, say)


def _find_split(asked: str | None, trained: Recipe | None, root: Path, manifest: Manifest) -> str:
    if asked is None and trained and find(trained.data.eval_split, manifest.splits):
        asked = trained.data.eval_split
    asked = asked or "val"
    split = find(asked, manifest.splits)
    if split is not None and manifest.splits[split].num_samples:
        return split
    lacks = f"no split {asked!r}" if split is None else f"no images in split {split!r}"
    others = [name for name, info in manifest.splits.items() if info.num_samples]
    raise Error(f"{root} has {lacks}, only {', '.join(others) or 'nothing'}; --split chooses one of these")


def _check_writable(path: Path) -> None:
    """Raise Error where a file cannot be written: the evaluation before it may take hours."""
    check_output(path)
    if path.suffix.lower() != ".parquet":
        raise Error(f"predictions are a parquet file: call it {path.with_suffix('.parquet')}, not {path}")
    if not path.parent.is_dir() or not os.access(path.parent, os.W_OK):
        raise Error(f"cannot write {path}: there is no directory {path.parent} that can be written")


def _check_classes(options: EvalOptions, ckpt: Checkpoint, root: Path, manifest: Manifest) -> None:
    digest, n = ckpt.facts.get("classes_sha256"), ckpt.num_classes
    if n == manifest.num_classes and digest in (None, manifest.classes_sha256):
        return
    other = f"{manifest.num_classes}" if n != manifest.num_classes else "as many, but another list of them"
    raise Error(
        f"{options.checkpoint} knows {plural(n, 'class')} and {root} has {other}; "
        "the class lists must be equal: fine-tune first, with `init:` in a recipe"
    )


def as_trained(trained: Recipe | None, device: torch.device) -> str:
    """The precision in which a checkpoint's recipe evaluated it, fp32 where there is none or the device lacks it."""
    precision = trained.train.precision if trained else "fp32"
    return "fp32" if precision == "fp16" and device.type == "cpu" else precision_of(precision, device)


def _format(trained: Recipe | None, manifest: Manifest) -> str | None:
    """The format that the recipe reads, as formats may store an image with other losses; None where it is not here."""
    return trained.data.format if trained and trained.data.format in manifest.formats else None


def _transforms(
    options: EvalOptions, ckpt: Checkpoint, trained: Recipe | None, manifest: Manifest
) -> tuple[Augment, TestTimeCrops | None]:
    """What is done to whole images; and crops as the model was trained on, unless asked otherwise. Raises Error."""
    scale, ratio = (0.4, 1.0), (1.0, 1.0)  # the paper's, of fine-tuning
    if trained is not None and trained.augment.crop_scale is not None:
        scale, ratio = trained.augment.crop_scale, trained.augment.crop_ratio
    if options.crop_scale is not None:
        scale = (options.crop_scale, 1.0)
    mean, std = {
        None: (ckpt.facts.get("mean"), ckpt.facts.get("std")), "own": (None, None), "imagenet": IMAGENET,
    }[options.normalize]  # fmt: skip
    try:
        settings = Augmentation(res=ckpt.res, mean=mean, std=std, crop_scale=scale, crop_ratio=ratio)
    except ValueError as e:  # of a checkpoint of somebody else
        raise Error(f"{options.checkpoint}: {e}") from None
    whole, crop = (make_augment(s, manifest, options.precision or "") for s in (settings.without_random(), settings))
    return whole, TestTimeCrops(crop=crop, crops=options.tta, average=options.average) if options.tta else None


def read_real_labels(root: Path, manifest: Manifest, split: str) -> np.ndarray | None:
    """ReaL labels (Beyer et al. 2020) of a split, int64 (N, most labels), filled up with -1; None where there are none.

    A sample without labels has a row of -1 and does not count.
    """
    labels = read_real(root, manifest, split)
    if labels is None:
        return None
    rows = [labels.get(key, []) for key in index.keys(root, manifest, split)]
    table = np.full((len(rows), max(1, max(map(len, rows), default=0))), -1, np.int64)
    for table_row, row in zip(table, rows, strict=True):
        table_row[: len(row)] = row
    return table


def write_predictions(path: Path, result: EvalResult, keys: Sequence[str], labels: np.ndarray) -> None:
    """A parquet row a sample, in the order of the split: key, label, the best classes and their probabilities."""
    ids, probs = result.predictions or ((), ())
    columns = {"key": keys, "label": pa.array(labels), "top": pa.array(list(ids)), "prob": pa.array(list(probs))}
    stream = pa.BufferOutputStream()
    pq.write_table(pa.table(columns), stream)
    write_file(path, memoryview(stream.getvalue()))


def _report(
    options: EvalOptions, ckpt: Checkpoint, root: Path, manifest: Manifest, loader: Loader, result: EvalResult
) -> str:
    names = distinct_names(read_classes(root, manifest))
    counts = zip(names, result.class_right.tolist(), result.class_total.tolist(), strict=True)
    per_class = {name: right / total for name, right, total in counts if total}
    if options.as_json:
        extra = {"shards": str(root), "split": loader.split, "tta": options.tta, "precision": options.precision}
        extra["samples"] = loader.num_samples
        return json.dumps(result.metrics | extra | ({"per_class": per_class} if options.per_class else {}))
    m = result.metrics
    how = f", {options.precision}" + (f", {options.tta} crops, {options.average} averaged" if options.tta else "")
    lines = [
        f"{options.checkpoint} on {plural(loader.num_samples, 'sample')} of {root}, {loader.split}{how}: "
        f"top-1 {m['val_top1']:.2%}  top-5 {m['val_top5']:.2%}  loss {m['val_loss']:.4f}"
        + (f"  ReaL {m['val_real']:.2%}" if "val_real" in m else "")
    ]
    if options.per_class:
        worst_first = sorted(per_class.items(), key=lambda pair: pair[1])
        lines += [f"  {share:7.2%}  {name}" for name, share in worst_first]
    if not ckpt.facts:
        lines.append("the checkpoint does not name its classes: they were taken to be those of the shards, in order")
    if options.predictions:
        lines.append(f"predictions: {options.predictions}")
    return printable_lines(lines)
