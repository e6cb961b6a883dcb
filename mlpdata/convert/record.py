"""What the manifest will say of a conversion, as far as it is known before the work starts."""

from __future__ import annotations

import contextlib
import os
import shlex
from pathlib import Path
from shlex import quote
from typing import Any

import mlpdata
from mlpdata import image
from mlpdata.archive.blob import fingerprint
from mlpdata.convert.options import EXACT_ABOVE_RES, FORMATS, Options
from mlpdata.convert.worker import ImageSettings
from mlpdata.datasets import SPECS, DatasetSpec
from mlpdata.derive.parents import Parent
from mlpdata.derive.source import ShardSource
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
    if isinstance(source, ShardSource):
        return _derived_draft(options, spec, source, settings)
    return Manifest(
        format_version=FORMAT_VERSION,
        dataset=spec.name,
        release=source.release,
        source_files=_source_files(source, stamps),
        source_filter=_filter_record(options, class_filter, len(source.classes)),
        image_library=image.library_versions(),
        command=_command(spec, options, res, splits, class_filter),
        source=source.given,
        **_common(options, settings),
    )


def _common(options: Options, settings: ImageSettings) -> dict[str, Any]:
    """What is on record alike of every conversion."""
    return dict(
        num_classes=0,
        classes_sha256="",
        res=settings.resize.res,
        resize=options.resize,
        filter=options.filter,
        formats=FORMATS[options.format],
        codec=options.codec,
        beton_codec=settings.beton_codec,
        tar_codec=settings.tar_codec,
        quality=None,
        seed=options.seed,
        shard_size=options.shard_size,
        fidelity=None,
        mean=[],
        std=[],
        splits={},
        files={},
        tool_version=mlpdata.__version__,
    )


def spec_of(parents: list[Parent]) -> DatasetSpec:
    """The data set that shard directories are of: its name, and what people call it."""
    names = list(dict.fromkeys(parent.manifest.dataset for parent in parents))
    titles = [SPECS[name].title if name in SPECS else name for name in names]
    return DatasetSpec(name="+".join(names), title=" + ".join(titles), open=ShardSource)


def _derived_draft(options: Options, spec: DatasetSpec, source: ShardSource, settings: ImageSettings) -> Manifest:
    """The draft of what is made of shard directories: its parents, and what they say of the archives."""
    assert options.derivation is not None
    first, keeps = source.parents[0].manifest, source.keeps_pixels
    files: dict[str, dict] = {}
    for parent in source.parents:
        for name, entry in parent.manifest.source_files.items():
            files[name if files.get(name, entry) == entry else f"{parent.name}/{name}"] = entry
    words = options.derivation.words([parent.name for parent in source.parents])
    if not keeps:
        words += [f"--res {options.res}", f"--resize {options.resize}", f"--filter {options.filter}"]
        words.append(f"--decode {'exact' if is_exact(options, settings.resize.res) else 'fast'}")
    words += [f"--format {options.format}", f"--codec {options.codec}", f"--quality {options.quality}"]
    words += [f"--seed {options.seed}", f"--shard-size {options.shard_size}"]
    carried = first.source_filter if len(source.parents) == 1 else {}
    return Manifest(
        format_version=FORMAT_VERSION,
        dataset=spec.name,
        release=source.release,
        source_files=files,
        source_filter={**carried, "derived": source.choice_digest},
        image_library=source.libraries(image.library_versions()),
        command=" ".join(words),
        parents=[parent.record for parent in source.parents],
        **_common(options, settings),
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
    """What makes these bytes of the source: without paths, and without what does not change the bytes."""
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
    words += [f"--image-column {quote(options.image_column)}"] if options.image_column else []
    words += [f"--label-column {quote(options.label_column)}"] if options.label_column else []
    words += [f"--classes {quote(Path(options.classes).name)}"] if options.classes else []
    return " ".join(words)


def option_difference(asked: str, there: str) -> str:
    """In which options two recorded commands differ; "" where they do not.

    >>> option_difference("mlpdata convert folder --res 12 --limit 5", "mlpdata convert folder --res 16")
    'asked for --res 12 --limit 5, found --res 16, no --limit'
    >>> option_difference("mlpdata convert cifar10 --res 32", "mlpdata subset cifar10-32 --limit 9")
    'asked for convert cifar10, found subset cifar10-32'
    """
    options = [_options_of(command) for command in (asked, there)]
    data_sets = [{k: v for k, v in values.items() if not k.startswith("--")} for values in options]
    options = data_sets if data_sets[0] != data_sets[1] else options  # the rest differs because of that
    names = [name for name in {**options[0], **options[1]} if options[0].get(name) != options[1].get(name)]
    sides = []
    for values in options:
        given = " ".join(f"{name} {values[name]}" for name in names if name in values)
        missing = [f"no {name}" for name in names if name not in values and name.startswith("--")]
        sides.append(", ".join(filter(None, [given, *missing])))
    return f"asked for {sides[0]}, found {sides[1]}" if names else ""


def _options_of(command: str) -> dict[str, str]:
    """{option: value} of a command that `_command` made; of an option that is repeated, all values."""
    with contextlib.suppress(ValueError):  # as a version wrote it that did not quote
        command = " ".join(shlex.split(command))
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
