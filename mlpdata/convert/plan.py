"""The plan of a conversion: every choice made, every unit of work listed, before anything is written.

This is as far as the options go. What each stage needs of them is a field of the plan.
"""

from __future__ import annotations

import json
import os
import re
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path

import xxhash

from mlpdata import datasets, image
from mlpdata.choices import stored_codecs
from mlpdata.convert.options import Options
from mlpdata.convert.record import draft_manifest, is_exact, spec_of
from mlpdata.convert.workdir import WorkDir
from mlpdata.convert.worker import ImageSettings, UnitTask
from mlpdata.derive.source import ShardSource
from mlpdata.errors import Error
from mlpdata.shards import beton
from mlpdata.shards.classes import read_class_list
from mlpdata.shards.manifest import Manifest
from mlpdata.sources import ClassFilter, Source, Unit
from mlpdata.splits import checked, chosen
from mlpdata.system.format import plural

DURABLE_FROM_BYTES = 2 << 30  # smaller outputs are not synced part by part: a power cut costs them seconds
MEASURED = (16, 1024)  # fidelity is measured on one sample in 256, but on about this many at least and at most
MAX_UNIT_NAME = 200  # bytes


@dataclass(frozen=True, kw_only=True)
class ConversionPlan:
    """The work, decided before it starts."""

    spec: datasets.DatasetSpec
    source: Source
    tasks: list[UnitTask]
    splits: list[str]
    class_filter: ClassFilter  # as it is applied
    settings: ImageSettings
    root: Path  # of the shard directory
    shard_size: int
    limit: int | None  # samples a split
    max_skipped: float
    num_expected: int  # samples, about; 0 where nobody knows
    draft: Manifest  # what the manifest will say, as far as it is known: counts, sums and files are missing
    identity: dict  # equal identities give equal output; a work directory is continued only under its own
    stamps: dict[str, str]  # Source.stamps of when the source was opened
    filter_note: str  # tells the user of a class filter that is applied, or not, by default
    # How the work is done. Nothing below changes the output.
    engine: str
    workers: int | None  # None: the cores of this machine, or of the cluster
    share: tuple[int, int] | None  # (K, N): this run converts the K-th of N shares of the units, and stops there
    assemble: bool  # go on only if all shares are there
    overwrite: bool  # remove an earlier conversion first
    quiet: bool

    @cached_property
    def digest(self) -> str:
        """A hash of the identity. Every journal in the work directory has to belong to it."""
        return xxhash.xxh3_128_hexdigest(json.dumps(self.identity, sort_keys=True).encode())

    @property
    def work(self) -> WorkDir:
        return WorkDir(self.root)

    @property
    def own_tasks(self) -> list[UnitTask]:
        """The tasks of this run: all, or every N-th where several machines share them."""
        k, n = self.share or (1, 1)
        return self.tasks[k - 1 :: n]

    @property
    def all_splits(self) -> set[str]:
        """Of the source and of the output."""
        return {*self.source.splits, *self.splits}

    @property
    def estimate(self) -> tuple[int, int]:
        """About how many bytes the samples take in the beton and in the tars."""
        settings = self.settings
        return estimated_bytes(self.num_expected, settings.resize.res, settings.beton_codec, settings.tar_codec)

    @property
    def beton_bytes(self) -> int:
        """About how large the betons will be: tables, and the samples of each split rounded up to whole pages."""
        if not self.settings.beton_codec:
            return 0
        payload_bytes = self.estimate[0]
        counts = Counter({split: 1 for split in self.splits})  # none is empty, though a unit may have several splits
        for task in self.tasks:
            counts[task.unit.split if task.unit.split in counts else self.splits[0]] += task.unit.num_samples
        total = counts.total()
        shares = [(n * self.num_expected // total, n * payload_bytes // total) for n in counts.values()]
        return sum(beton.estimated_bytes(n, num_bytes) for n, num_bytes in shares)

    @property
    def peak_bytes(self) -> int:
        """About how much of the disk the work takes at its largest moment. Empty pages count, as `ls` counts them."""
        return peak_disk_bytes(self, sum(self.estimate)) + self.beton_bytes - self.estimate[0]


def _default_root(spec: datasets.DatasetSpec, source: str | None, res: int) -> Path:
    """Where shards go without --out. Of a data set that is the user's own, the name says which one it is.

    >>> _default_root(datasets.get("folder"), "data/my photos/", 64).as_posix()
    'shards/folder-my_photos-64'
    >>> _default_root(datasets.get("cifar10"), "cifar-10-python.tar.gz", 32).as_posix()
    'shards/cifar10-32'
    """
    names = [spec.name]
    if source and spec.wants_path and not spec.archives:
        path = source.rpartition("@")[0] or source if source.startswith("hf:") else os.path.abspath(source)
        names += filter(None, [re.sub(r"[^\w.-]+", "_", path.rstrip("/").rpartition("/")[2]).strip("._-")])
    return Path("shards") / "-".join([*names, str(res)])


def _opened(options: Options, say: Callable[[str], None]) -> tuple[datasets.DatasetSpec, Source, ClassFilter, Path]:
    """The data set, its source, the class filter that was asked for, and where shards go."""
    if options.derivation is not None:
        assert options.res is not None and options.out is not None
        resize = image.Resize(options.res, options.resize, options.filter)
        out = Path(options.out)
        source = ShardSource(options.derivation, out, resize, options.format, options.codec, options.seed)
        return spec_of(source.parents), source, ClassFilter(), out
    spec = datasets.get(options.dataset)
    res = options.res or spec.res
    asked = _asked_filter(options, spec)
    root, archive = Path(options.out or _default_root(spec, options.source, res)), options.source
    if options.engine == "ray":  # its workers start elsewhere
        root = root.absolute()
        archive = os.path.abspath(archive) if archive and os.path.exists(archive) else archive
    source = datasets.open_source(
        spec,
        archive,
        res=res,
        seed=options.seed,
        class_filter=asked,
        splits=options.splits,
        limit=options.limit,
        image_column=options.image_column,
        label_column=options.label_column,
        say=say,
        quiet=options.quiet,
    )
    return spec, source, asked, root


def make_plan(options: Options, say: Callable[[str], None] = print) -> ConversionPlan:
    """Open the source, list its units and make every choice. Raises Error for a bad source or impossible options."""
    spec, source, asked, root = _opened(options, say)
    res = options.res or spec.res
    stamps = source.stamps(str(root))
    class_filter, filter_note = _applied_filter(asked, source, spec.name)
    units = _checked_units(source)
    splits = chosen(options.splits, source.splits or dict.fromkeys(unit.split for unit in units), spec.name)
    order = {split: i for i, split in enumerate(source.splits or splits)}
    units = sorted((u for u in units if set(splits_of(source, u)) & set(splits)), key=lambda u: order[u.split])
    if not units:
        raise Error(f"{spec.name}: nothing to convert; the source has no images")
    num_expected = _num_expected(units, options.limit, len(splits))
    beton_codec, tar_codec = stored_codecs(options.format, options.codec, source.codec == "jpg")
    settings = ImageSettings(
        resize=image.Resize(res, options.resize, options.filter),
        beton_codec=beton_codec,
        tar_codec=tar_codec,
        quality=options.quality,
        exact=is_exact(options, res),
        seed=options.seed,
        measure_one_in=max(1, num_expected // min(max(num_expected // 256, MEASURED[0]), MEASURED[1])),
        durable=is_large(sum(estimated_bytes(num_expected, res, beton_codec, tar_codec))),
        splits=tuple(splits),
        training_split=_training_split(source, splits),
    )
    draft = draft_manifest(options, spec, source, settings, splits, class_filter, stamps)
    recorded = ("format_version", "tool_version", "command", "release", "source_files", "image_library")
    identity = {
        **{name: getattr(draft, name) for name in recorded},
        "units": xxhash.xxh3_64_hexdigest("".join(map(repr, units)).encode()),
        "classes": xxhash.xxh3_64_hexdigest(repr(source.classes).encode()),
    }
    if draft.parents:
        identity |= {"parents": draft.parents, "source_filter": draft.source_filter}
    return ConversionPlan(
        spec=spec,
        source=source,
        tasks=[UnitTask(unit) for unit in units],
        splits=splits,
        class_filter=class_filter,
        settings=settings,
        root=root,
        shard_size=options.shard_size,
        limit=options.limit,
        max_skipped=options.max_skipped,
        num_expected=num_expected,
        draft=draft,
        identity=identity,
        stamps=stamps,
        filter_note=filter_note,
        engine=options.engine,
        workers=options.workers,
        share=options.part,
        assemble=options.assemble,
        overwrite=options.overwrite,
        quiet=options.quiet,
    )


# ------------------------------------------------------------------------------------------------- units and splits


def splits_of(source: Source, unit: Unit) -> tuple[str, ...]:
    """Every split that samples of a unit may be of."""
    return unit.splits or source.splits or (unit.split,)


def _checked_units(source: Source) -> list[Unit]:
    """The source's units. Their names and those of splits become names of files: Error where one cannot be that."""
    units, names = source.units(), set()
    for unit in units:
        if not re.fullmatch(r"[\w-]+", unit.name) or len(unit.name.encode()) > MAX_UNIT_NAME or unit.name in names:
            raise Error(f"{unit.name!r:.80} cannot name a unit of work, or names two; this is a bug of the source")
        names.add(unit.name)
        if not {unit.split, *unit.splits} <= set(source.splits or (unit.split,)):
            raise Error(f"unit {unit.name} is of split {unit.split!r:.80}, which the source does not have")
    for split in {*source.splits, *(unit.split for unit in units)}:
        checked(split)
    return units


def _training_split(source: Source, splits: list[str]) -> str | None:
    """The split whose mean and standard deviation are taken; None where they are known."""
    if isinstance(source, ShardSource) and source.keeps_sums:
        return None
    return "train" if "train" in splits else splits[0]


def _num_expected(units: list[Unit], limit: int | None, num_splits: int) -> int:
    expected = sum(unit.num_samples for unit in units)
    if limit is None:
        return expected
    return min(expected, limit * num_splits) if all(unit.num_samples for unit in units) else limit * num_splits


# ----------------------------------------------------------------------------------------------------- class filter


def _asked_filter(options: Options, spec: datasets.DatasetSpec) -> ClassFilter:
    """The filter that was asked for; the data set's own where none was."""
    names = None
    if options.classes is not None:
        names = read_class_list(options.classes)
        if not names or len(set(names)) < len(names):
            raise Error(f"--classes {options.classes} names {'a class twice' if names else 'no classes'}")
    if names is None and options.min_class_size is None and options.val_per_class is None:
        return replace(spec.class_filter, is_default=True) if spec.class_filter else ClassFilter()
    return ClassFilter(
        min_class_size=options.min_class_size or 0, val_per_class=options.val_per_class or 0, classes=names
    )


def _applied_filter(asked: ClassFilter, source: Source, dataset: str) -> tuple[ClassFilter, str]:
    """The filter as the source applies it, and a note for the user where it is the default one."""
    if not asked.is_default:
        return asked, ""
    if not source.class_filter.is_default:
        note = f"{dataset}: the source has splits of its own: nothing is held out, no class is left out for its size"
        return asked.beside_splits(), note
    small, held_out = asked.min_class_size, asked.val_per_class
    words = [f"classes of at least {plural(small, 'image')}"] if small else []
    words += [f"the first {plural(held_out, 'image')} by name of each class held out as val"] if held_out else []
    return asked, f"{dataset}: {', '.join(words)}; --min-class-size 0 --val-per-class 0 takes everything"


# ------------------------------------------------------------------------------------------------------ disk space


def is_large(num_bytes: int) -> bool:
    """Whether an output of so many bytes is synced part by part, and its parts truncated as they are used."""
    return num_bytes > DURABLE_FROM_BYTES


def estimated_bytes(n: int, res: int, beton_codec: str | None, tar_codec: str | None) -> tuple[int, int]:
    """About how many bytes n samples take in betons and in tars, from mean sizes of photographs at 32 and 64 pixels.

    >>> estimated_bytes(1000, 32, "raw", "jpg")
    (3072000, 3207600)
    """
    area = res * res
    payload = {"raw": 3 * area, "jpg": 0.4 * area + 750, "png": 2.15 * area + 650}
    beton_bytes = n * payload[beton_codec] if beton_codec else 0
    tar_bytes = n * (payload[tar_codec] + 4 * 512) if tar_codec else 0
    return int(beton_bytes), int(tar_bytes)


def peak_disk_bytes(plan: ConversionPlan, num_bytes: int) -> int:
    """How much of the disk the work takes at its largest moment, for an output of so many bytes."""
    writes_once = isinstance(plan.source, ShardSource) and plan.source.lends_all
    return int(num_bytes * (1.05 if writes_once else 1.15 if is_large(num_bytes) else 2))
