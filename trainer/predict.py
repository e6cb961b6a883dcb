"""What a checkpoint sees in image files: the best classes of each, by name.

Images are decoded and resized as the shards were that the model was trained on, so a prediction here is the one that
`mlpdata eval` makes of the same image in a shard directory.
"""

from __future__ import annotations

import contextlib
import itertools
import json
import sys
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch

from mlpdata import image
from mlpdata.augment.augment import Augment
from mlpdata.augment.batch import Batch
from mlpdata.errors import Error, printable_lines, reading
from mlpdata.image import Resize
from mlpdata.image.formats import HEAD_BYTES
from mlpdata.shards.classes import distinct_names
from mlpdata.shards.manifest import Manifest
from mlpdata.shards.remote import read_lists
from mlpdata.shards.text import open_file
from mlpdata.sources.files import is_folder, is_system, looks_like_image, tree, why_no_file
from mlpdata.sources.keys import listed
from trainer.checkpoint import Checkpoint, open_checkpoint, recipe_of
from trainer.data import DTYPES
from trainer.evaluate import IMAGENET, as_trained, autocast_of
from trainer.world import device_of

BATCH_SIZE = 256  # images decoded and predicted at a time
TOP = 5
STDIN = Path("-")


@dataclass(frozen=True)
class Prediction:
    """The best classes of one image, the best first; or why it cannot be read, in one line that names it."""

    path: Path
    labels: list[int] = field(default_factory=list)
    probabilities: list[float] = field(default_factory=list)
    error: str = ""


def run(
    checkpoint: Path,
    images: Sequence[Path],
    shards: str | Path | None = None,
    device: str = "auto",
    as_json: bool = False,
    say: Callable[[str], None] = print,
    tell: Callable[[str], None] = print,
) -> int:
    """Predict images by a checkpoint; returns how many of them cannot be read. Raises Error.

    images: see `find_images`. shards: the directory that names the classes, also elsewhere; None: the one that the
    model was trained on, where it still exists. say: is given the results, as lines or as one line of JSON. tell: a
    line for each image that cannot be read, and for what there is to know besides.
    """
    ckpt = open_checkpoint(checkpoint)
    manifest, names = _classes(ckpt, checkpoint, shards, tell)
    rows, num_errors = [], 0
    for prediction in predict(ckpt, find_images(images, tell), manifest, device):
        if prediction.error:
            num_errors += 1
            tell(f"mlpdata: error: {prediction.error}")
        if as_json:
            rows.append(_row(prediction, names))
        elif not prediction.error:
            best = zip(prediction.labels, prediction.probabilities, strict=True)
            lines = [str(prediction.path), *(f"  {share:7.2%}  {names[label]}" for label, share in best)]
            say(printable_lines(lines))
    if as_json:
        say(json.dumps(rows))
    return num_errors


def _row(prediction: Prediction, names: list[str]) -> dict[str, Any]:
    """What --json says of an image."""
    if prediction.error:
        return {"image": str(prediction.path), "error": prediction.error}
    top = [
        {"class": names[label], "label": label, "probability": round(probability, 6)}
        for label, probability in zip(prediction.labels, prediction.probabilities, strict=True)
    ]
    return {"image": str(prediction.path), "top": top}


def _classes(
    ckpt: Checkpoint, checkpoint: Path, shards: str | Path | None, tell: Callable[[str], None]
) -> tuple[Manifest | None, list[str]]:
    """The manifest of the training's shards and the names of their classes; (None, numbers) where they are gone."""
    try:
        root = shards or (recipe_of(ckpt.facts, checkpoint).data.shards if ckpt.facts else None)
        if root is None:
            raise Error(f"{checkpoint} does not say what it was trained on")
        manifest, classes = read_lists(root)
        same = ckpt.facts.get("classes_sha256") in (None, manifest.classes_sha256)
        if not same or manifest.num_classes != ckpt.num_classes:
            raise Error(f"{root} has other classes than {checkpoint} was trained on: its names would be wrong")
    except Error as e:
        if shards is not None:
            raise
        what = f"classes are shown by their numbers, and images are squashed to {ckpt.res} px"
        tell(f"{what}: {e}; --shards DIR names the shards of the training")
        return None, [str(label) for label in range(ckpt.num_classes)]
    return manifest, distinct_names(classes)


# ---------------------------------------------------------------------------------------------------------- images


def find_images(paths: Sequence[Path], tell: Callable[[str], None] = lambda line: None) -> Iterator[Prediction]:
    """What is asked for, in that order, an image twice if it is named twice: predictions without classes yet.

    Of a folder: its images and those below it, folder by folder, by name. As in folders that are converted, hidden
    files count, and what a system left there does not. tell: a line about files in a folder that are no images.
    """
    for path in paths:
        if path == STDIN or not path.is_dir():
            yield Prediction(path)
            continue
        others, n = [], 0
        try:
            for below, entries in tree(str(path)):
                for entry in entries:
                    if is_folder(entry) or is_system(entry.name):
                        continue
                    file = path / below / entry.name
                    if not looks_like_image(entry.name) and not _begins_as_image(file):
                        others.append(str(file.relative_to(path)))
                        continue
                    n += 1
                    why = why_no_file(entry)
                    yield Prediction(file, error=f"cannot read {file}: {why}" if why else "")
        except Error as e:
            yield Prediction(path, error=str(e))
            continue
        if others:
            are = "file is no image" if len(others) == 1 else "files are no images"
            tell(f"{path}: {len(others):,} {are}: {listed(others, 3)}")
        if not n:
            yield Prediction(path, error=f"{path} has no images in it")


def _begins_as_image(path: Path) -> bool:
    try:
        with open_file(path) as f:
            return image.format_of(f.read(HEAD_BYTES)) is not None
    except OSError:
        return False


def _read_image(path: Path, resize: Resize) -> np.ndarray:
    """uint8 (res, res, 3). Raises Error."""
    name = "standard input" if path == STDIN else str(path)
    with reading(name), open_file(path) if path != STDIN else contextlib.nullcontext(sys.stdin.buffer) as f:
        data = f.read(image.MAX_IMAGE_BYTES + 1)
    if len(data) > image.MAX_IMAGE_BYTES:
        raise Error(f"{name} has more than {image.MAX_IMAGE_BYTES >> 20} MB, too many for an image")
    try:
        return image.decode(data, resize)[0]
    except image.ImageError as e:
        raise Error(f"{name}: {e}") from None


# ----------------------------------------------------------------------------------------------------- predictions


@torch.inference_mode()
def predict(
    ckpt: Checkpoint, images: Iterable[Prediction], manifest: Manifest | None = None, device: str = "auto"
) -> Iterator[Prediction]:
    """The best classes of each image file, in the precision of the training. Raises Error.

    images: of `find_images`; those with an error come out as they are. manifest: of the shards that the model was
    trained on, which says how images are resized and normalised; None: squashed to the model's resolution with a box
    filter, normalised as the checkpoint says.
    """
    where = device_of(device)
    model = ckpt.model.to(where)
    resize = Resize(ckpt.res)
    if manifest is not None:  # of the rule `longest` the loader squashes what is stored
        resize = Resize(manifest.res, "squash" if manifest.resize == "longest" else manifest.resize, manifest.filter)
    mean: Any = ckpt.facts.get("mean")
    std: Any = ckpt.facts.get("std")
    if mean is None or std is None:
        mean, std = (manifest.mean, [max(s, 1e-3) for s in manifest.std]) if manifest else IMAGENET
    precision = as_trained(recipe_of(ckpt.facts, Path("the checkpoint")) if ckpt.facts else None, where)
    dtype, autocast = DTYPES.get(precision, "float32"), autocast_of(where, precision)
    try:
        augment = Augment(res=ckpt.res, crop_scale=None, flip=False, mean=mean, std=std, compile=False, dtype=dtype)
    except ValueError as e:  # of a checkpoint of somebody else
        raise Error(f"this checkpoint cannot be used: {e}") from None
    images = iter(images)
    while some := list(itertools.islice(images, BATCH_SIZE)):
        pixels: dict[int, np.ndarray] = {}  # by the place in `some`
        for i, one in enumerate(some):
            if not one.error:
                try:
                    pixels[i] = _read_image(one.path, resize)
                except Error as e:
                    some[i] = Prediction(one.path, error=str(e))
        if pixels:
            stacked = torch.from_numpy(np.stack(list(pixels.values()))).to(where)
            numbers = torch.zeros(len(pixels), dtype=torch.int64, device=where)
            with autocast():
                logits = model(augment.apply(Batch(stacked, numbers, numbers), 0, 0).images)
            top = logits.float().softmax(1).topk(min(TOP, ckpt.num_classes), dim=1)
            for i, labels, probabilities in zip(pixels, top.indices.tolist(), top.values.tolist(), strict=True):
                some[i] = Prediction(some[i].path, labels, probabilities)
        yield from some
