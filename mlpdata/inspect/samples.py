"""Some samples of some classes of a split, as they are stored and as training sees them: for pictures."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, fields, replace
from pathlib import Path

import numpy as np

from mlpdata.augment.settings import Augmentation
from mlpdata.loader.loader import Loader
from mlpdata.shards.classes import read_classes, short_names
from mlpdata.shards.manifest import Manifest, manifest_path


@dataclass(frozen=True)
class ClassSamples:
    """Samples of one class: uint8 (K, H, W, 3) each; augmented is None where no augmentation was asked for."""

    label: int
    name: str
    stored: np.ndarray
    augmented: np.ndarray | None


def open_loader(root: Path, split: str) -> Loader:
    """A loader of stored images; those of different sizes are resized to the size of the directory."""
    manifest = Manifest.load(root) if manifest_path(root).exists() else None  # None: other people's files
    res = manifest.res if manifest and manifest.resize == "longest" else None
    return Loader(root, split, batch_size=1, shuffle=False, tier="stream", res=res)


def class_names(loader: Loader) -> list[str]:
    """What pictures call the classes; their numbers where nothing names them."""
    if loader.manifest is None:
        return [str(label) for label in range(loader.num_classes)]
    return short_names(read_classes(loader.root, loader.manifest))


def draw_samples(
    loader: Loader, classes: Sequence[int], per_class: int, augment: Augmentation | None, seed: int
) -> list[ClassSamples]:
    """At most `per_class` samples of each class, drawn by `seed`; a class without samples is left out."""
    rng, names = np.random.default_rng(seed), class_names(loader)
    ids_of = {label: rng.permutation(loader.ids[loader.labels == label])[:per_class] for label in classes}
    ids = np.concatenate([*ids_of.values(), np.empty(0, np.int64)])
    stored = loader.read(ids)
    augmented = None if augment is None else _augment(stored, ids, augment, seed)
    samples, start = [], 0
    for label, own in ids_of.items():
        part = slice(start, start := start + len(own))
        if len(own):
            after = None if augmented is None else augmented[part]
            samples.append(ClassSamples(label, names[label], stored[part], after))
    return samples


def _augment(images: np.ndarray, ids: np.ndarray, settings: Augmentation, seed: int) -> np.ndarray:
    """The first epoch of an augmentation, uint8 (N, R, R, 3): without normalisation, which no eye can read."""
    import torch

    from mlpdata.augment.augment import Augment
    from mlpdata.augment.batch import Batch

    visible = replace(settings, mean=None, std=None, compile=False)
    augment = Augment(**{field.name: getattr(visible, field.name) for field in fields(Augmentation)})
    batch = Batch(torch.from_numpy(images), torch.zeros(len(ids), dtype=torch.int64), torch.from_numpy(ids))
    after = augment.apply(batch, epoch=0, seed=seed).images
    return (after.permute(0, 2, 3, 1) * 255).round().clamp(0, 255).byte().numpy()
