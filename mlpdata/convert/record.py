"""What the manifest will say of a conversion, as far as it is known before the work starts."""

from __future__ import annotations

import os
from pathlib import Path

import mlpdata
from mlpdata import image
from mlpdata.archive.blob import fingerprint
from mlpdata.convert.options import EXACT_ABOVE_RES, FORMATS, Options
from mlpdata.convert.worker import ImageSettings
from mlpdata.datasets import DatasetSpec
from mlpdata.fetch import http
from mlpdata.shards.manifest import FORMAT_VERSION, Manifest
from mlpdata.sources import ClassFilter, Source, keys


def draft_manifest(
    options: Options,
    spec: DatasetSpec,
    source: Source,
    settings: ImageSettings,
    splits: list[str],
    class_filter: ClassFilter,
    stamps: dict[str, str],
) -> Manifest:
    """The manifest without counts, sums and files, which `finish` fills in."""
    res = settings.resize.res
    return Manifest(
        format_version=FORMAT_VERSION,
        dataset=spec.name,
        release=source.release,
        source_files=_source_files(source, stamps),
        source_filter=_filter_record(options, class_filter, len(source.classes)),
        num_classes=0,
        classes_sha256="",
        res=res,
        resize=options.resize,  # pyright: ignore[reportArgumentType] - Options holds these to the same lists
        filter=options.filter,  # pyright: ignore[reportArgumentType]
        formats=FORMATS[options.format],  # pyright: ignore[reportArgumentType]
        codec=options.codec,  # pyright: ignore[reportArgumentType]
        beton_codec=settings.beton_codec,  # pyright: ignore[reportArgumentType]
        tar_codec=settings.tar_codec,  # pyright: ignore[reportArgumentType]
        quality=None,
        seed=options.seed,
        shard_size=options.shard_size,
        image_library=image.library_versions(),
        fidelity=None,
        mean=[],
        std=[],
        splits={},
        files={},
        tool_version=mlpdata.__version__,
        command=_command(spec, options, res, splits, class_filter),
    )


def _source_files(source: Source, stamps: dict[str, str]) -> dict[str, dict]:
    """What the manifest says of the files read: by name, and by as much of the path as tells them apart."""
    names = {path: http.file_name(path) for path in source.files}
    if len(set(names.values())) < len(names):
        above = os.path.commonpath(names) if not any(map(http.is_url, names)) else ""
        names = {path: os.path.relpath(path, above) if above else path for path in names}
    marks = {}
    for path, name in names.items():
        marks[keys.text(name)] = fingerprint(path)
        if os.path.isdir(path):
            marks[keys.text(name)] = {"xxh3_of_names_and_sizes": stamps.get(path, "").partition(" ")[0]}
    return marks


def _filter_record(options: Options, class_filter: ClassFilter, num_classes: int) -> dict:
    """The filters on record. `classes_kept` is counted at the end, not assumed."""
    sizes = {"min_class_size": class_filter.min_class_size, "val_per_class": class_filter.val_per_class}
    record: dict = {name: n for name, n in {"limit": options.limit, **sizes}.items() if n}
    if class_filter.min_class_size:
        record |= {"classes_found": num_classes, "classes_kept": None}
    if options.classes:
        record["classes"] = Path(options.classes).name
    return record


def _command(spec: DatasetSpec, options: Options, res: int, splits: list[str], class_filter: ClassFilter) -> str:
    """The command that makes these bytes anywhere: without paths, and without what does not change the bytes."""
    words = ["mlpdata", "convert", spec.name, f"--res {res}", f"--format {options.format}", f"--codec {options.codec}"]
    words += [f"--resize {options.resize}", f"--filter {options.filter}", f"--quality {options.quality}"]
    if is_exact(options, res) or res > EXACT_ABOVE_RES:  # else fast, as all were when there was no choice
        words.append(f"--decode {'exact' if is_exact(options, res) else 'fast'}")
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


def option_difference(asked: str, there: str) -> str:
    """In which options two recorded commands differ; "" where they do not.

    >>> option_difference("mlpdata convert folder --res 12 --limit 5", "mlpdata convert folder --res 16")
    'asked for --res 12 --limit 5, there --res 16, no --limit'
    """
    options = [_options_of(command) for command in (asked, there)]
    names = [name for name in {**options[0], **options[1]} if options[0].get(name) != options[1].get(name)]
    sides = []
    for values in options:
        given = " ".join(f"{name} {values[name]}" for name in names if name in values)
        sides.append(", ".join(filter(None, [given, *(f"no {name}" for name in names if name not in values)])))
    return f"asked for {sides[0]}, there {sides[1]}" if names else ""


def _options_of(command: str) -> dict[str, str]:
    """{option: value} of a command that `_command` made; of an option that is repeated, all values."""
    first, *options = command.removeprefix("mlpdata ").split(" --")
    name, _, value = first.partition(" ")
    values = {name: value}
    for option in options:
        name, _, value = option.partition(" ")
        values[f"--{name}"] = f"{values[f'--{name}']} --{name} {value}" if f"--{name}" in values else value
    if int(values.get("--res", "0")) <= EXACT_ABOVE_RES:
        values.setdefault("--decode", "fast")
    return values


def is_exact(options: Options, res: int) -> bool:
    """Whether JPEGs that are resized are decoded in full."""
    return options.decode == "exact" if options.decode else res > EXACT_ABOVE_RES
