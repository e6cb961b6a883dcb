"""The plan of a conversion: every choice settled, every unit of work listed, before anything is written."""

from __future__ import annotations

import json
import os
import re
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path

import xxhash

import mlpdata
from mlpdata import datasets, image
from mlpdata.archive.blob import fingerprint
from mlpdata.convert.options import FORMATS, Options
from mlpdata.convert.units import Recipe, Task
from mlpdata.errors import Error
from mlpdata.fetch import http
from mlpdata.shards.manifest import FORMAT_VERSION, work_path
from mlpdata.sources import ClassFilter, Source, Unit, keys
from mlpdata.splits import checked, find
from mlpdata.system.threads import cores

DURABLE_FROM_BYTES = 2 << 30  # smaller outputs are not synced part by part: a power cut costs them seconds
MEASURED = (16, 1024)  # fidelity is measured on one sample in 256, but on about this many at least and at most
MAX_UNIT_NAME = 200  # bytes


@dataclass(frozen=True)
class Plan:
    """The work, settled before it starts."""

    spec: datasets.DatasetSpec
    source: Source
    options: Options
    res: int
    root: Path
    beton_codec: str | None
    tar_codec: str | None
    tasks: list[Task]
    splits: list[str]
    class_filter: ClassFilter  # as it is applied
    filter_note: str  # what is to be said of a filter that nobody asked for
    recipe: Recipe
    num_expected: int  # samples, about; 0 where nobody knows
    identity: dict  # equal identities give equal output; a work directory is only continued under its own
    stamps: dict[str, str]  # see Source.stamps: when the source was opened

    @cached_property
    def digest(self) -> str:
        """Of the identity: what a journal in the work directory has to be of."""
        return xxhash.xxh3_128_hexdigest(json.dumps(self.identity, sort_keys=True).encode())

    @property
    def work(self) -> Path:
        return work_path(self.root)

    @property
    def share(self) -> list[Task]:
        """The tasks of this run: all, or every N-th where several machines share them."""
        k, n = self.options.part or (1, 1)
        return self.tasks[k - 1 :: n]

    @property
    def num_workers(self) -> int:
        return self.options.workers or cores()

    @property
    def parts(self) -> Path:
        return self.work / "parts"

    @property
    def estimate(self) -> tuple[int, int]:
        """About how many bytes the beton and the tars will have."""
        return estimated_bytes(self.num_expected, self.res, self.beton_codec, self.tar_codec)

    @property
    def peak_bytes(self) -> int:
        """About how much of the disk the work takes at its largest moment."""
        return largest(sum(self.estimate))

    @property
    def assembling(self) -> Path:
        """Stands once all parts were whole, before the first of them is cut off: see workdir.begin_with."""
        return self.work / "assembling"


def make_plan(options: Options, say: Callable[[str], None] = print) -> Plan:
    """Open the source, list its units and settle every choice. Raises Error for a bad source or impossible options."""
    spec = datasets.get(options.dataset)
    res = options.res or spec.res
    class_filter = _class_filter(options, spec)
    root, archive = Path(options.out or Path("shards") / f"{spec.name}-{res}"), options.source
    if options.engine == "ray":  # its workers start elsewhere
        root = root.absolute()
        archive = os.path.abspath(archive) if archive and os.path.exists(archive) else archive
    source = datasets.open_source(
        spec,
        archive,
        res=res,
        seed=options.seed,
        class_filter=class_filter,
        splits=options.splits,
        limit=options.limit,
        image_column=options.image_column,
        label_column=options.label_column,
        say=say,
        quiet=options.quiet,
    )
    stamps = source.stamps(str(root))
    asked, note = class_filter, ""
    if asked.is_default and not source.class_filter.is_default:
        class_filter = asked.beside_splits()
        note = f"{spec.name}: the source has splits of its own: nothing is held out, no class is left out for its size"
    elif asked.is_default:
        note = f"{spec.name}: {_filter_in_words(asked)}; --min-class-size 0 --val-per-class 0 takes everything"
    units = _checked_units(source)
    available = list(source.splits or dict.fromkeys(unit.split for unit in units))
    splits = _asked_for(options.splits, available, spec.name)
    order = {split: i for i, split in enumerate(source.splits or splits)}
    wanted = [unit for unit in units if set(splits_of(source, unit)) & set(splits)]
    tasks = [Task(unit) for unit in sorted(wanted, key=lambda unit: order[unit.split])]
    if not tasks:
        raise Error(f"{spec.name}: nothing to convert; the source has no images")
    formats = FORMATS[options.format]
    tar_codec = options.codec
    if options.codec == "auto":
        tar_codec = "jpg" if source.codec == "jpg" else "png"
    tar_codec = tar_codec if "tar" in formats else None
    beton_codec = ("jpg" if options.codec == "jpg" else "raw") if "beton" in formats else None
    expected = sum(unit.num_samples for unit in wanted)
    if options.limit is not None:
        most = options.limit * len(splits)
        expected = min(expected, most) if all(unit.num_samples for unit in wanted) else most
    identity = {
        "format_version": FORMAT_VERSION,
        "tool_version": mlpdata.__version__,
        "command": _command(spec, options, res, splits, class_filter),
        "release": source.release,
        "source_files": _source_files(source, stamps),
        "units": _digest(tasks),
        "classes": xxhash.xxh3_64_hexdigest(repr(source.classes).encode()),
        "image_library": image.library_versions(),
    }
    keep_pixels = beton_codec == "raw" or tar_codec == "raw"
    encoding = next((c for c in (tar_codec, beton_codec) if c in ("jpg", "png")), None)
    recipe = Recipe(
        resize=image.Resize(res, options.resize, options.filter),
        keep_pixels=keep_pixels,
        encoding=encoding,
        quality=options.quality,
        seed=options.seed,
        measure_one_in=max(1, expected // min(max(expected // 256, MEASURED[0]), MEASURED[1])),
        durable=is_large(sum(estimated_bytes(expected, res, beton_codec, tar_codec))),
        defers=keep_pixels and encoding != "png",
        splits=tuple(splits),
        training_split="train" if "train" in splits else splits[0],
    )
    return Plan(spec, source, options, res, root, beton_codec, tar_codec, tasks, splits, class_filter, note, recipe,
                expected, identity, stamps)  # fmt: skip


def _source_files(source: Source, stamps: dict[str, str]) -> dict[str, dict]:
    """What the manifest says of the files read: by name, and by as much of the path as tells them apart."""
    names = {path: http.file_name(path) for path in source.files}
    if len(set(names.values())) < len(names):
        above = os.path.commonpath(names) if not any(map(http.is_url, names)) else ""
        names = {path: os.path.relpath(path, above) if above else path for path in names}
    found = {}
    for path, name in names.items():
        found[keys.text(name)] = fingerprint(path)
        if os.path.isdir(path):
            found[keys.text(name)] = {"xxh3_of_names_and_sizes": stamps.get(path, "").partition(" ")[0]}
    return found


def _class_filter(options: Options, spec: datasets.DatasetSpec) -> ClassFilter:
    """The filter that was asked for; the data set's own where none was."""
    names = None
    if options.classes is not None:
        try:
            lines = Path(options.classes).read_text(encoding="utf-8").split("\n")
        except (OSError, UnicodeDecodeError) as e:
            raise Error(f"cannot read --classes {options.classes}: {getattr(e, 'strerror', None) or e}") from None
        names = tuple(filter(None, (line.split("\t")[0].strip(" \r") for line in lines)))
        if not names or len(set(names)) < len(names):
            raise Error(f"--classes {options.classes} names {'a class twice' if names else 'no classes'}")
    if names is None and options.min_class_size is None and options.val_per_class is None:
        return replace(spec.class_filter, is_default=True) if spec.class_filter else ClassFilter()
    return ClassFilter(
        min_class_size=options.min_class_size or 0, val_per_class=options.val_per_class or 0, classes=names
    )


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


def _filter_in_words(class_filter: ClassFilter) -> str:
    small, held_out = class_filter.min_class_size, class_filter.val_per_class
    words = [f"classes of at least {small} images"] if small else []
    words += [f"the first {held_out} images by name of each class held out as val"] if held_out else []
    return ", ".join(words)


def _asked_for(names: tuple[str, ...], available: list[str], dataset: str) -> list[str]:
    """The source's splits that `--split` names, each once; all where it names none. Raises Error."""
    found = {name: find(name, available) for name in names}
    for name, split in found.items():
        if split is None:
            raise Error(f"{dataset} has no split {name!r} with images; it has {', '.join(available)}")
    return list(dict.fromkeys(found.values())) or available


def _digest(tasks: list[Task]) -> str:
    whole = xxhash.xxh3_64()
    for task in tasks:
        whole.update(repr(task).encode())
    return whole.hexdigest()


def estimated_bytes(n: int, res: int, beton_codec: str | None, tar_codec: str | None) -> tuple[int, int]:
    """About how many bytes the beton and the tars will have, from mean sizes of photographs at 32 and 64 pixels."""
    area = res * res
    payload = {"raw": 3 * area, "jpg": 0.4 * area + 750, "png": 2.15 * area + 650}
    beton_bytes = n * payload[beton_codec] if beton_codec else 0
    tar_bytes = n * (payload[tar_codec] + 4 * 512) if tar_codec else 0
    return int(beton_bytes), int(tar_bytes)


def is_large(num_bytes: int) -> bool:
    """Whether an output is worth syncing part by part, and cutting parts off as they are used."""
    return num_bytes > DURABLE_FROM_BYTES


def largest(num_bytes: int) -> int:
    """How much of the disk the work on an output of so many bytes takes at its largest moment."""
    return int(num_bytes * (1.15 if is_large(num_bytes) else 2))


def _command(
    spec: datasets.DatasetSpec, options: Options, res: int, splits: list[str], class_filter: ClassFilter
) -> str:
    """The command that makes these bytes anywhere: without paths, and without what does not change the bytes."""
    words = ["mlpdata", "convert", spec.name, f"--res {res}", f"--format {options.format}", f"--codec {options.codec}"]
    words += [f"--resize {options.resize}", f"--filter {options.filter}", f"--quality {options.quality}"]
    words += [f"--split {name}" for name in splits]
    words += [f"--seed {options.seed}", f"--shard-size {options.shard_size}"]
    words += [f"--limit {options.limit}"] if options.limit else []
    for option, name in (("--min-class-size", "min_class_size"), ("--val-per-class", "val_per_class")):
        if getattr(class_filter, name) or getattr(spec.class_filter, name):
            words.append(f"{option} {getattr(class_filter, name)}")
    words += [f"--image-column {options.image_column}"] if options.image_column else []
    words += [f"--label-column {options.label_column}"] if options.label_column else []
    words += [f"--classes {Path(options.classes).name}"] if options.classes else []
    return " ".join(words)
