"""`Options`: what `mlpdata convert` is asked for. Nothing heavy is imported, so that the command line can use it."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from mlpdata.choices import CODECS, ENGINES, FILTERS, FORMATS, MAX_RES, RESIZES
from mlpdata.errors import Error

__all__ = ["CODECS", "ENGINES", "FILTERS", "FORMATS", "MAX_RES", "RESIZES", "Options"]


@dataclass(frozen=True, kw_only=True)
class Options:
    """What `mlpdata convert` was asked for. Raises Error for values that make no sense.

    >>> Options(dataset="cifar10", res=32, format="tar").quality
    90
    >>> Options(dataset="cifar10", codec="gif")
    Traceback (most recent call last):
    mlpdata.errors.Error: codec 'gif' is not one of auto, raw, jpg, png
    """

    dataset: str
    source: str | None = None
    res: int | None = None  # pixels a side; None: the data set's own
    format: str = "both"
    codec: str = "auto"  # auto: raw in the beton; in tars jpg where the source has JPEGs, else png
    quality: int = 90  # of the JPEGs that are encoded
    resize: str = "squash"
    filter: str = "box"
    out: Path | str | None = None  # a string is a URL
    splits: tuple[str, ...] = ()  # (): all
    workers: int | None = None  # None: the cores of this machine, or of the cluster
    seed: int = 0  # of the shuffle
    shard_size: int = 10_000  # samples
    limit: int | None = None  # samples a split
    max_skipped: float = 0.01  # a share of the images
    # Without `min_class_size`, `val_per_class` and `classes` the data set's own class filter applies.
    min_class_size: int | None = None  # classes with fewer images are left out
    val_per_class: int | None = None  # images of each class, first by name, that become the split `val`
    classes: Path | None = None  # file whose lines begin with the names of the classes to take, in label order
    image_column: str | None = None  # of parquet files; None: found from their features
    label_column: str | None = None
    engine: str = "local"
    part: tuple[int, int] | None = None  # (K, N): convert only the K-th of N shares of the units, and stop there
    assemble: bool = False  # go on only if all shares are there
    quiet: bool = False

    def __post_init__(self):
        allowed: dict[str, Iterable[str]] = {
            "format": FORMATS,
            "codec": ("auto", *CODECS),
            "resize": RESIZES,
            "filter": FILTERS,
            "engine": ENGINES,
        }
        for name, choices in allowed.items():
            if getattr(self, name) not in choices:
                raise Error(f"{name} {getattr(self, name)!r} is not one of {', '.join(choices)}")
        if self.res is not None and not 1 <= self.res <= MAX_RES:
            raise Error(f"res must be from 1 to {MAX_RES} pixels, not {self.res}")
        least = dict.fromkeys(("shard_size", "quality", "limit", "workers"), 1)
        for name, low in (least | {"min_class_size": 0, "val_per_class": 0}).items():
            if getattr(self, name) is not None and getattr(self, name) < low:
                raise Error(f"{name} must be at least {low}, not {getattr(self, name)}")
        if not 0 <= self.max_skipped <= 1:
            raise Error(f"max-skipped is a share from 0 to 1, not {self.max_skipped}")
        if self.part is not None and not 1 <= self.part[0] <= self.part[1]:
            raise Error(f"part is K/N with K from 1 to N, not {self.part[0]}/{self.part[1]}")
        if self.limit is not None and (self.part is not None or self.assemble):
            raise Error("--limit takes the first samples, which one machine counts: leave out --part and --assemble")
        if self.part is not None and self.assemble:
            raise Error("--part converts a share, --assemble finishes when all shares are there: give one of them")
        if not 0 <= self.seed < 2**63:
            raise Error(f"seed must be from 0 to 2^63 - 1, not {self.seed}")
