"""Stored images beside the exact decode of their originals, where the archive is at hand."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from itertools import islice
from pathlib import Path

import numpy as np

from mlpdata import datasets, image
from mlpdata.convert.sums import psnr_db
from mlpdata.errors import Error
from mlpdata.fetch.official import download_folder
from mlpdata.inspect.samples import open_loader
from mlpdata.shards import index
from mlpdata.shards.manifest import Manifest
from mlpdata.sources import ClassFilter, Sample

MAX_UNASKED_BYTES = 4 << 30  # of an archive: opening a large one may take hours
OTHER_DB = 13.0  # half of the images are this different where they are others: two photographs are at about 10 dB
NUM_UNITS, NUM_SAMPLES = 32, 256  # of each split that are looked into


@dataclass(frozen=True)
class Comparison:
    """A stored image and the exact decode of its original, resized by the same rule and filter; uint8 (H, W, 3)."""

    split: str
    key: str
    origin: str
    stored: np.ndarray
    exact: np.ndarray

    @property
    def psnr_db(self) -> float:
        diff = self.exact.astype(np.int32) - self.stored
        return psnr_db(float((diff * diff).mean()))

    @property
    def max_diff(self) -> int:
        return int(np.abs(self.exact.astype(np.int32) - self.stored).max(initial=0))


def has_originals(manifest: Manifest) -> bool:
    """Whether the source is made on the spot, or is a small archive in the download folder: neither is asked for."""
    spec = datasets.SPECS.get(manifest.dataset)
    if spec is None or not spec.wants_path:
        return spec is not None
    paths = [download_folder() / archive.name for archive in spec.archives]
    return any(path.is_file() and path.stat().st_size <= MAX_UNASKED_BYTES for path in paths)


def compare(root: Path, manifest: Manifest, source: str | None) -> list[Comparison]:
    """Some stored images beside their originals, the worst first.

    source: as `--source` of convert takes it; None for the archive in the download folder. Raises Error where it holds
    none of the stored images.
    """
    spec = datasets.get(manifest.dataset)
    resize = image.Resize(manifest.res, manifest.resize, manifest.filter)
    originals = {}
    for split, sample in _samples(manifest, source):
        if split in manifest.splits and (exact := _exact(sample.data, resize)) is not None:
            originals[split, sample.key] = (sample.origin, exact)
    comparisons = []
    for split in manifest.splits:
        rows = _rows_of(root, manifest, split, [key for s, key in originals if s == split])
        if rows:
            loader = open_loader(root, split)
            for (key, _), stored in zip(rows.items(), loader.read(np.array(list(rows.values()))), strict=True):
                origin, exact = originals[split, key]
                if exact.shape == stored.shape:
                    comparisons.append(Comparison(split, key, origin, stored, exact))
    if comparisons and np.median([comparison.psnr_db for comparison in comparisons]) < OTHER_DB:
        raise Error(f"{source or spec.name} has other images than {root}, of the same names; pass its own source")
    if not comparisons:
        raise Error(f"{source or spec.name} has none of the images of {root}; pass the source that it was made of")
    return sorted(comparisons, key=lambda comparison: (comparison.psnr_db, comparison.key))


def _samples(manifest: Manifest, source: str | None) -> Iterator[tuple[str, Sample]]:
    """(split, sample) of the first samples of some units, evenly spaced or, where the conversion was cut, the first."""
    record = manifest.source_filter
    limit = _number(record, "limit")
    class_filter = ClassFilter(
        min_class_size=_number(record, "min_class_size"), val_per_class=_number(record, "val_per_class")
    )
    opened = datasets.open_source(
        datasets.get(manifest.dataset),
        source,
        res=manifest.res,
        seed=manifest.seed,
        class_filter=class_filter,
        limit=limit or None,
    )
    units = opened.units()
    for split in dict.fromkeys(unit.split for unit in units):
        of_split = [unit for unit in units if unit.split == split]
        chosen = of_split[:: 1 if limit else -(-len(of_split) // NUM_UNITS)][:NUM_UNITS]
        for unit in chosen:
            for sample in islice(opened.samples(unit), -(-NUM_SAMPLES // len(chosen))):
                if isinstance(sample, Sample):
                    yield sample.split or unit.split, sample


def _number(record: dict, name: str) -> int:
    """A count of the filter on record, which may hold anything; 0 where there is none."""
    return n if isinstance(n := record.get(name), int) and n > 0 else 0


def _exact(data: bytes | np.ndarray, resize: image.Resize) -> np.ndarray | None:
    try:
        pixels = data if isinstance(data, np.ndarray) else image.decode_exact(data)
    except image.ImageError:
        return None
    return image.resized(pixels, resize, pixels.shape[1], pixels.shape[0])


def _rows_of(root: Path, manifest: Manifest, split: str, keys: list[str]) -> dict[str, int]:
    """The place in a split of each key that it has."""
    rows, wanted, start = {}, set(keys), 0
    for n in index.row_group_sizes(root, manifest, split) if keys else ():
        of_group = index.keys(root, manifest, split, np.arange(start, start + n))
        rows.update({key: row for row, key in enumerate(of_group, start) if key in wanted})
        start += n
    return rows
