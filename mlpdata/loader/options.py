"""What `load` can be asked for: the only lists of its choices, and the record of its less common options.

Nothing heavy is imported here: the command line takes its choices from these lists.
"""

from __future__ import annotations

import dataclasses
import difflib
import numbers
from collections.abc import Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any, Literal, get_args

from mlpdata.choices import MAX_RES
from mlpdata.errors import Error

if TYPE_CHECKING:
    import numpy as np
    import torch

    from mlpdata.loader.memory_plan import Needs

Tier = Literal["auto", "resident", "split", "pinned", "stream"]
Pixels = Literal["auto", "rgb", "ycc420"]
TIERS: tuple[Tier, ...] = get_args(Tier)
PIXELS: tuple[Pixels, ...] = get_args(Pixels)

MAX_THREADS = 1024
MAX_SEED = (1 << 63) - 1


@dataclasses.dataclass(frozen=True, kw_only=True, slots=True)
class LoadOptions:
    """The less common options of `load`, which also takes each of them as a keyword. Raises Error for a wrong value.

    classes:     load only the samples with these labels: numbers, or names in the source (wnids). Labels stay
                 unchanged.
    relabel:     with classes: a label becomes its position in that list, and num_classes the list's length.
    image_column, label_column: the fields of a `.beton` file by others that hold the image and the class. None: `image`
                 and `label`, or else the only RGB image field and the only int field, with a warning.
    res:         resize every image to res x res while it is read, for images of different sizes.
    tier:        where the pixels are during an epoch; "auto" (or None) chooses. See mlpdata.loader.memory_plan. Of a
                 remote directory, "stream" fetches tars when they are needed; all others make a copy first, "auto" only
                 if it fits.
    cache_bytes: local disk for the tars of remote directories while they are streamed, including those that earlier
                 runs left; with "auto" a larger directory is streamed. None: 80% of what is free.
    pixels:      "ycc420" keeps chroma at half resolution: half the bytes. tier_reason says what that loses on these
                 data. JPEGs in 4:2:0 are decoded straight to it (with mlpdata[turbo]); the stream tier has it for those
                 only. Without augment, batches are converted back to RGB. "auto": "rgb" where it fits and is fast
                 enough.
    needs:       memory that the training needs besides pixels (mlpdata.loader.memory_plan.Needs), which "auto" leaves
                 free; None: unknown.
    check:       first compare the files of the split with the SHA-256 sums of the manifest (about a second per gigabyte
                 and core).
    num_threads: threads that read and decode; None: as many as there are cores.
    rank, world_size: this process takes its slice of every global batch; batch_size must be divisible by world_size. In
                 the stream tier every rank reads all blocks and decodes only its own samples. None: a single process;
                 if torch.distributed runs several, each of them gets every sample, and a warning says so.

    >>> LoadOptions(tier="stream").num_threads is None
    True
    """

    classes: Sequence[int | str] | np.ndarray | torch.Tensor | None = None
    relabel: bool = False
    image_column: str | None = None
    label_column: str | None = None
    res: int | None = None
    tier: Tier | None = "auto"
    cache_bytes: int | None = None
    pixels: Pixels = "rgb"
    needs: Needs | None = None
    check: bool = False
    num_threads: int | None = None
    rank: int = 0
    world_size: int | None = None

    def __post_init__(self):
        for name in ("relabel", "check"):
            check_flag(name, getattr(self, name))
        if self.tier is None:
            object.__setattr__(self, "tier", "auto")
        for name, choices in (("tier", TIERS), ("pixels", PIXELS)):
            value = getattr(self, name)
            if not isinstance(value, str) or value not in choices:
                raise Error(f"{name} {shown(value)} is none of {', '.join(choices)}")
        for name, least, most in (
            ("res", 1, MAX_RES), ("cache_bytes", 1, MAX_SEED), ("num_threads", 1, MAX_THREADS),
            ("rank", 0, MAX_SEED), ("world_size", 1, MAX_SEED),
        ):  # fmt: skip
            value = getattr(self, name)
            if value is not None or name == "rank":
                object.__setattr__(self, name, whole(name, value, least, most))
        if self.needs is not None:
            from mlpdata.loader.memory_plan import Needs  # which takes the lists from here

            if not isinstance(self.needs, Needs):
                raise Error(f"needs is an mlpdata.loader.memory_plan.Needs, not {shown(self.needs)}")
        if self.rank >= (self.world_size or 1):
            raise Error(f"rank {self.rank} is not one of {self.world_size or 1} processes, which count from 0")
        if self.relabel and self.classes is None:
            raise Error("relabel numbers the labels by the list of classes; give classes too")


def merge(options: LoadOptions | None, named: Mapping[str, Any], others: Iterable[str] = ()) -> LoadOptions:
    """Options, changed by those given by name. others: further names that the caller takes, for suggestions.

    >>> merge(None, {"teir": "stream"})
    Traceback (most recent call last):
    mlpdata.errors.Error: load has no option 'teir'; did you mean 'tier'?
    """
    if options is not None and not isinstance(options, LoadOptions):
        raise Error(f"options is an mlpdata.loader.options.LoadOptions, not {shown(options)}")
    known = [f.name for f in dataclasses.fields(LoadOptions)]
    for name in named:
        if name not in known:
            near = difflib.get_close_matches(name, [*known, *others], 1, 0.5)
            hint = f"did you mean {near[0]!r}?" if near else f"it has {', '.join([*others, *known])}"
            raise Error(f"load has no option {name!r}; {hint}")
    return dataclasses.replace(options or LoadOptions(), **named)


def shown(value: object, length: int = 60) -> str:
    """A value as one short line, for messages.

    >>> shown([1, 2]), shown("x" * 100, 5)
    ('[1, 2]', "'xxxx...")
    """
    try:
        text = " ".join(repr(value).split())
    except Exception:  # a whole number of thousands of digits, or a foreign object
        text = f"a {type(value).__name__}"
    return text if len(text) <= length else f"{text[:length]}..."


def is_whole(value: object) -> bool:
    """Whether a value is a whole number of Python or numpy; a bool is none.

    >>> is_whole(3), is_whole(3.0), is_whole(True)
    (True, False, False)
    """
    return isinstance(value, numbers.Integral) and not isinstance(value, bool)


def whole(name: str, value: Any, least: int, most: int = MAX_SEED) -> int:
    """A whole number from least to most as an int. Raises Error, with the option's name, for anything else."""
    if not is_whole(value) or not least <= value <= most:
        limits = f"of {least} or more" if most == MAX_SEED else f"from {least} to {most}"
        raise Error(f"{name} must be a whole number {limits}, not {shown(value)}")
    return int(value)


def check_flag(name: str, value: object) -> None:
    """Raise Error where a value is neither True nor False, of Python or numpy."""
    if not isinstance(value, bool) and type(value).__name__ not in ("bool", "bool_"):
        raise Error(f"{name} is True or False, not {shown(value)}")
