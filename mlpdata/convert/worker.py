"""What workers are told: settings and tasks of both stages, and the context that every one of them has."""

from __future__ import annotations

import os
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import numpy as np

from mlpdata import image
from mlpdata.convert.part import Part
from mlpdata.convert.shuffle import ShuffleTable
from mlpdata.convert.workdir import WorkDir
from mlpdata.errors import Error
from mlpdata.shards.manifest import tar_path
from mlpdata.sources import Source, Unit
from mlpdata.system.disk import Buffers


@dataclass(frozen=True, kw_only=True)
class ImageSettings:
    """What is done to every image; the same in all workers."""

    resize: image.Resize
    beton_codec: str | None  # "raw", "jpg", or None where no beton is wanted
    tar_codec: str | None  # "raw", "jpg", "png", or None where no tars are wanted
    quality: int  # of the JPEGs that are encoded
    exact: bool  # JPEGs that are resized are decoded in full
    seed: int  # of the shuffle
    measure_one_in: int  # fidelity is measured on one sample in so many
    durable: bool  # sync parts to disk before they count as done
    splits: tuple[str, ...]  # samples of other splits are left out
    training_split: str | None  # whose pixels make mean and standard deviation; None where these are known

    @property
    def codecs(self) -> tuple[str | None, str | None]:
        return self.beton_codec, self.tar_codec

    @cached_property  # it is asked for every image
    def keeps_pixels(self) -> bool:
        """Whether raw pixels are wanted, by the beton or by PPM members of tars."""
        return "raw" in self.codecs

    @cached_property
    def encoding(self) -> str | None:
        """What else is wanted of each image: "jpg", "png" or None. The two formats never want two encodings."""
        return next((codec for codec in self.codecs if codec in ("jpg", "png")), None)


@dataclass(frozen=True)
class UnitTask:
    """Stage 1: one unit to convert."""

    unit: Unit
    limits: dict[str, int] | None = None  # split -> at most how many readable samples of it; None: all of all splits
    decodes_all: bool = False  # nothing is deferred: the unit is known to hold a JPEG that does not decode

    def __str__(self) -> str:
        return f"unit {self.unit.name}"


@dataclass(frozen=True)
class ShardTask:
    """Stage 2: one shard to write, of consecutive samples of the split's order."""

    split: str
    number: int
    first: int
    num_samples: int
    durable: bool  # sync the shard to disk before it counts as done
    beton_end: int  # the byte of the beton behind its samples, and behind all tables for the last one; 0: no beton

    @property
    def name(self) -> str:
        """The name of its tar; the shard is known by it where there is none, too."""
        return tar_path(Path(), self.split, self.number).name

    def __str__(self) -> str:
        return f"shard {self.name}"


@dataclass
class WorkerContext:
    """What every worker knows, and the memory that it uses again from task to task."""

    source: Source
    settings: ImageSettings
    work: WorkDir
    unit_names: list[str]  # of the whole plan, in its order: a part is known by its number in this list
    plan_digest: str  # what an earlier run left counts only if its checksums were taken with this

    def __post_init__(self):
        self._image_library = image.library_versions()
        self._parts: dict[int, Part] = {}
        self._scratch: dict[str, np.ndarray] = {}

    def arrive(self) -> None:
        """Check that a worker on another machine of a cluster can do the work. Raises Error."""
        node, advice = os.uname().nodename, "--engine ray needs it at the same path on all nodes, on a shared disk"
        for path in (str(self.work.path), *filter(os.path.isabs, self.source.files)):
            if not os.path.exists(path):
                raise Error(f"node {node} does not see {path}: {advice}")
        if image.library_versions() != self._image_library:
            theirs, ours = (", ".join(v.values()) for v in (image.library_versions(), self._image_library))
            raise Error(f"node {node} has {theirs}, this machine {ours}: install the same versions on both")

    @cached_property
    def label_map(self) -> np.ndarray:
        """(classes,) the output's label of each of the source's."""
        return np.load(self.work.labels, allow_pickle=False)

    @cached_property
    def buffers(self) -> Buffers:
        return Buffers()

    def scratch(self, kind: str, num_bytes: int) -> np.ndarray:
        """A (num_bytes,) uint8 buffer that is used again and again: fresh memory costs more than the copy into it."""
        if kind not in self._scratch or len(self._scratch[kind]) < num_bytes:
            self._scratch[kind] = np.empty(num_bytes, np.uint8)
        return self._scratch[kind][:num_bytes]

    def shuffle_table(self, split: str) -> ShuffleTable:
        return ShuffleTable(self.work, split, len(self.unit_names))

    def part(self, number: int) -> Part:
        if number not in self._parts:
            self._parts[number] = Part(self.work.part(self.unit_names[number]))
        return self._parts[number]

    def part_key(self, task: UnitTask) -> str:
        """What a part belongs to: see part.keyed_check."""
        return f"{self.plan_digest} {task.unit.name} {sorted(task.limits.items()) if task.limits else ''}"
