"""`Options`: what `mlpdata convert` is asked for. Nothing heavy is imported, so that the command line can use it."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from mlpdata.choices import CODECS, DECODES, ENGINES, FILTERS, FORMATS, MAX_RES, MAX_SKIPPED, RESIZES
from mlpdata.derive.derivation import Derivation
from mlpdata.errors import Error

__all__ = ["CODECS", "DECODES", "ENGINES", "FILTERS", "FORMATS", "MAX_RES", "RESIZES", "Options"]

# The scaled decode of photographs that are several times larger than the output differs from the exact one by 34 to 38
# dB at 160 to 384 pixels, of the worst by 28, which can be seen at that size. ImageNet's photographs are hardly larger
# than that: 9% of them are decoded at a scale for 160 pixels, 3% for 224, so the exact decode costs next to nothing.
EXACT_ABOVE_RES = 128


@dataclass(frozen=True, kw_only=True)
class Options:
    """The options of `mlpdata convert`, whose --help explains them. Raises Error for values that make no sense.

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
    decode: str | None = None  # of JPEGs that are resized; None: fast up to EXACT_ABOVE_RES pixels, else exact
    out: Path | str | None = None  # a string is a URL
    splits: tuple[str, ...] = ()  # (): all
    workers: int | None = None  # None: the cores of this machine, or of the cluster
    seed: int = 0  # of the shuffle
    shard_size: int = 10_000  # samples
    limit: int | None = None  # samples a split
    max_skipped: float = MAX_SKIPPED  # a share of the images
    # Without `min_class_size`, `val_per_class` and `classes` the data set's own class filter applies.
    min_class_size: int | None = None  # classes with fewer images are left out
    val_per_class: int | None = None  # images of each class, first by name, that become the split `val`
    classes: Path | None = None  # file whose lines begin with the names of the classes to take, in label order
    image_column: str | None = None  # of parquet files, betons and tars; None: found from their types
    label_column: str | None = None
    derivation: Derivation | None = None  # the source is shard directories: see derived.py
    engine: str = "local"
    part: tuple[int, int] | None = None  # (K, N): convert only the K-th of N shares of the units, and stop there
    assemble: bool = False  # go on only if all shares are there
    overwrite: bool = False  # remove what the output directory holds of an earlier conversion, and begin anew
    quiet: bool = False

    @property
    def sharing(self) -> bool:
        """Whether other machines work on the same directory."""
        return self.part is not None or self.assemble

    def __post_init__(self):
        allowed: dict[str, Iterable[str]] = {
            "format": FORMATS,
            "codec": ("auto", *CODECS),
            "resize": RESIZES,
            "filter": FILTERS,
            "decode": DECODES,
            "engine": ENGINES,
        }
        for name, choices in allowed.items():
            if getattr(self, name) not in choices and not (name == "decode" and self.decode is None):
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
        if self.limit is not None and self.sharing:
            raise Error("--limit counts the first samples on one machine: it cannot be used with --part or --assemble")
        if self.part is not None and self.assemble:
            raise Error("--part converts a share, --assemble finishes when all shares are there: give one of them")
        if self.overwrite and self.sharing:
            raise Error(
                "--overwrite would delete the work of other machines: delete the directory, and leave --overwrite out"
            )
        if not 0 <= self.seed < 2**63:
            raise Error(f"seed must be from 0 to 2^63 - 1, not {self.seed}")
