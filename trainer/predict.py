"""What a checkpoint sees in image files: the best classes of each, by name.

Images are decoded and resized as the shards were that the model was trained on, so a prediction here is the one that
`mlpdata eval` makes of the same image in a shard directory.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from mlpdata import image
from mlpdata.augment.augment import Augment
from mlpdata.augment.batch import Batch
from mlpdata.errors import Error, printable_lines, reading
from mlpdata.image import Resize
from mlpdata.shards.classes import distinct_names, read_classes
from mlpdata.shards.manifest import Manifest, manifest_path
from mlpdata.shards.text import open_file
from trainer.checkpoint import Checkpoint, open_checkpoint, recipe_of
from trainer.data import DTYPES
from trainer.evaluate import IMAGENET, as_trained, autocast_of
from trainer.world import device_of

BATCH_SIZE = 256  # images decoded and predicted at a time
TOP = 5


@dataclass(frozen=True)
class Prediction:
    """The best classes of one image, the best first."""

    path: Path
    labels: list[int]
    probabilities: list[float]


def run(
    checkpoint: Path, images: Sequence[Path], shards: Path | None = None, device: str = "auto", as_json: bool = False
) -> str:
    """Predict images by a checkpoint; returns the report, or JSON. Raises Error, naming the image that cannot be read.

    shards: the directory that names the classes; None: the one that the model was trained on, where it still exists.
    """
    ckpt = open_checkpoint(checkpoint)
    root = shards or _training_shards(ckpt, checkpoint)
    manifest = Manifest.load(root) if root else None
    names = [str(label) for label in range(ckpt.num_classes)]
    if root and manifest:
        _check_classes(checkpoint, ckpt, root, manifest)
        names = distinct_names(read_classes(root, manifest))
    predictions = predict(ckpt, images, manifest, device)
    if as_json:
        rows = [
            {
                "image": str(prediction.path),
                "top": [
                    {"class": names[label], "label": label, "probability": round(probability, 6)}
                    for label, probability in zip(prediction.labels, prediction.probabilities, strict=True)
                ],
            }
            for prediction in predictions
        ]
        return json.dumps(rows)
    lines = []
    for prediction in predictions:
        lines.append(str(prediction.path))
        for label, probability in zip(prediction.labels, prediction.probabilities, strict=True):
            lines.append(f"  {probability:7.2%}  {names[label]}")
    if manifest is None:
        lines.append("classes are shown by their numbers: --shards DIR names them, the directory of the training data")
    return printable_lines(lines)


@torch.inference_mode()
def predict(
    ckpt: Checkpoint, images: Sequence[Path], manifest: Manifest | None = None, device: str = "auto"
) -> list[Prediction]:
    """The best classes of each image file, in the precision of the training. Raises Error for one that cannot be read.

    manifest: of the shards that the model was trained on, which says how images are resized and normalised; None:
    squashed to the model's resolution with a box filter, normalised as the checkpoint says.
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
    predictions = []
    for first in range(0, len(images), BATCH_SIZE):
        paths = images[first : first + BATCH_SIZE]
        pixels = torch.from_numpy(np.stack([_read_image(path, resize) for path in paths])).to(where)
        numbers = torch.zeros(len(paths), dtype=torch.int64, device=where)
        with autocast():
            logits = model(augment.apply(Batch(pixels, numbers, numbers), 0, 0).images)
        top = logits.float().softmax(1).topk(min(TOP, ckpt.num_classes), dim=1)
        for path, labels, probabilities in zip(paths, top.indices.tolist(), top.values.tolist(), strict=True):
            predictions.append(Prediction(path, labels, probabilities))
    return predictions


def _read_image(path: Path, resize: Resize) -> np.ndarray:
    """uint8 (res, res, 3)."""
    if path.is_dir():
        raise Error(f"{path} is a folder; name the image files in it, as {path / '*'}")
    with reading(path), open_file(path) as f:
        data = f.read(image.MAX_IMAGE_BYTES + 1)
    if len(data) > image.MAX_IMAGE_BYTES:
        raise Error(f"{path} has more than {image.MAX_IMAGE_BYTES >> 20} MB, too many for an image")
    try:
        return image.decode(data, resize)[0]
    except image.ImageError as e:
        raise Error(f"{path}: {e}") from None


def _training_shards(ckpt: Checkpoint, path: Path) -> Path | None:
    """The shard directory of a checkpoint's recipe, where it is still on this machine with the same classes."""
    if not ckpt.facts:
        return None
    root = Path(recipe_of(ckpt.facts, path).data.shards)
    if not manifest_path(root).exists():
        return None
    return root if Manifest.load(root).classes_sha256 == ckpt.facts.get("classes_sha256") else None


def _check_classes(checkpoint: Path, ckpt: Checkpoint, root: Path, manifest: Manifest) -> None:
    same = ckpt.facts.get("classes_sha256") in (None, manifest.classes_sha256)
    if not same or manifest.num_classes != ckpt.num_classes:
        raise Error(f"{root} has other classes than {checkpoint} was trained on: its names would be wrong")
