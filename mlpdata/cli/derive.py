"""Commands that make shard directories of shard directories: subset, merge, relabel, resize."""

from __future__ import annotations

import os
from pathlib import Path

import click

from mlpdata.choices import CODECS, DECODES, FILTERS, FORMATS, MAX_RES, RESIZES
from mlpdata.cli.group import main, say
from mlpdata.cli.parameters import SHARDS, path_or_url, quiet_option
from mlpdata.derive.derivation import DEDUPES, Derivation, SplitOff
from mlpdata.errors import Error, UsageError

UNCHANGED = "  [default: unchanged]"
_OUT = (
    click.option("--out", required=True, help="Shard directory to make, or a URL of an object storage."),
    click.option("--overwrite", is_flag=True, help="Delete the conversion that --out holds, and start again."),
    click.option("--format", type=click.Choice(list(FORMATS)), help=f"Formats to write.{UNCHANGED}"),
    click.option("--codec", type=click.Choice(["auto", *CODECS]), help=f"How images are stored.{UNCHANGED}"),
    click.option(
        "--quality",
        type=click.IntRange(1, 100),
        help="Quality of newly encoded JPEGs; stored JPEGs keep theirs.  [default: that of the stored JPEGs, or 90]",
    ),
    click.option(
        "--seed", type=click.IntRange(min=0), help=f"Seed of the shuffle and of every random choice.{UNCHANGED}"
    ),
    click.option("--shard-size", type=click.IntRange(min=1), help=f"Samples in each tar.{UNCHANGED}"),
    click.option("--workers", type=click.IntRange(min=1), help="Worker processes.  [default: the cores]"),
    quiet_option,
)


def output_options(command):
    """The options of what is written, which all of these commands have."""
    for option in reversed(_OUT):
        command = option(command)
    return command


def _run(derivation: Derivation, out: str, **options) -> None:
    from mlpdata.convert.derived import derive

    derive(derivation, path_or_url(out), **options, say=say)


def _class_names(given: str | None) -> tuple[tuple[str, ...] | None, str]:
    """(the names, the name of the file that lists them) of --classes: a file, one a line, or names with commas."""
    if given is None:
        return None, ""
    path = Path(given)
    if os.path.isfile(given):  # names with commas may be too long for a path
        from mlpdata.shards.classes import read_class_list

        return read_class_list(path), path.name
    if path.suffix in (".txt", ".tsv", ".csv"):
        raise Error(f"--classes {given}: there is no such file")
    return tuple(filter(None, (name.strip() for name in given.split(",")))), ""


@main.command()
@click.argument("directory", type=SHARDS)
@click.option(
    "--classes", help="Only these classes, in label order: names separated by commas, or a file with one name per line."
)
@click.option("--split", "splits", multiple=True, help="Only this split; may be repeated.")
@click.option(
    "--dedupe",
    type=click.Choice(DEDUPES),
    help="exact: keep one of the images with equal pixels, one in val before one in train. perceptual: keep one of the "
    "images that look alike, which reads every image. skipped.jsonl lists what is left out.",
)
@click.option(
    "--split-off",
    metavar="NAME=N",
    help="Move N images (or P%) of each class from train to a new split: val=50, val=10%.",
)
@click.option("--per-class", type=click.IntRange(min=1), help="At most N samples of each class of each split.")
@click.option(
    "--fraction", type=float, help="This share of each class of each split, such as 0.1; rounded, at least one sample."
)
@click.option("--limit", type=click.IntRange(min=1), help="At most N samples of each split.")
@output_options
def subset(directory, classes, splits, dedupe, split_off, per_class, fraction, limit, out, **options):
    """Make a shard directory from some samples of another.

    The archive is not needed. The options apply in the order in which they are listed here. Random choices
    depend only on --seed and the keys of the samples: --fraction 0.1 takes the same train images that --split-off
    val=10% would hold out. For sets that do not overlap, give both options in one command. Without any choice the
    whole directory is written, in another --format or with another --seed or --shard-size. If interrupted, run the
    same command again: it continues.

    \b
    mlpdata subset shards/cifar10-32 --classes cat,dog --out shards/cats-dogs
    mlpdata subset shards/cifar10-32 --fraction 0.1 --out shards/cifar10-tenth
    mlpdata subset shards/photos-64 --dedupe exact --split-off test=50 --out shards/photos-64-clean
    mlpdata subset shards/cifar10-32 --split train --split-off val=10% --out shards/cifar10-tuning
    mlpdata subset shards/cifar10-32 --format beton --out shards/cifar10-32-beton
    """
    names, file = _class_names(classes)
    derivation = Derivation(
        command="subset", directories=(directory,), classes=names, classes_file=file, splits=splits, dedupe=dedupe,
        split_off=SplitOff.parse(split_off) if split_off else None, per_class=per_class, fraction=fraction, limit=limit,
    )  # fmt: skip
    _run(derivation, out, **options)


@main.command()
@click.argument("directories", type=SHARDS, nargs=-1, required=True)
@click.option(
    "--classes",
    type=click.Choice(["union"]),
    help="union: class lists may differ; the result has the classes of all, matched by name.",
)
@click.option("--split", "splits", multiple=True, help="Only this split; may be repeated.")
@output_options
def merge(directories, classes, splits, out, **options):
    """Merge shard directories into one.

    Splits of the same name are merged. Class lists and resolutions must be equal. If two samples of a split have the
    same key, the name of its directory is put before each. If interrupted, run the same command again: it continues.

    \b
    mlpdata merge shards/photos-2023 shards/photos-2024 --out shards/photos
    mlpdata merge shards/cats shards/dogs --classes union --out shards/pets
    """
    if len(directories) < 2:
        raise UsageError("merge takes two or more shard directories; `mlpdata subset` copies one")
    _run(Derivation(command="merge", directories=directories, union=classes == "union", splits=splits), out, **options)


@main.command()
@click.argument("directory", type=SHARDS)
@click.option(
    "--map",
    "label_map",
    required=True,
    metavar="FILE|LIST",
    help="File with one class per line: old name, TAB or comma, new name. Or a published list: cifar100-coarse, "
    "fall11, fall11-p, winter21-p, ilsvrc2012, ... Lines for classes that the directory lacks have no effect and are "
    "listed.",
)
@click.option("--drop-unmapped", is_flag=True, help="Leave out classes that the map lacks.")
@output_options
def relabel(directory, label_map, drop_unmapped, out, **options):
    """Rename or merge the classes of a shard directory.

    Labels follow the order of the published list, or the order in which the new names first appear in the file. If
    interrupted, run the same command again: it continues.

    \b
    mlpdata relabel shards/cifar10-32 --map animals.tsv --out shards/animals-32
    mlpdata relabel shards/cifar100-32 --map cifar100-coarse --out shards/cifar20-32
    mlpdata relabel shards/in21k-64 --map fall11-p --drop-unmapped --out shards/in21k-p-64
    """
    derivation = Derivation(
        command="relabel", directories=(directory,), label_map=label_map, drop_unmapped=drop_unmapped
    )
    _run(derivation, out, **options)


@main.command()
@click.argument("directory", type=SHARDS)
@click.option("--res", type=click.IntRange(1, MAX_RES), required=True, help="Pixels a side.")
@click.option(
    "--resize", "rule", type=click.Choice(RESIZES), help=f"How images are fitted to --res, as for convert.{UNCHANGED}"
)
@click.option("--filter", type=click.Choice(FILTERS), help=f"Filter of the resize.{UNCHANGED}")
@click.option(
    "--decode",
    type=click.Choice(DECODES),
    help="How stored JPEGs are decoded where no lossless image is stored.  [default: fast up to --res 128, else exact]",
)
@output_options
def resize(directory, rule, out, **options):
    """Make a shard directory at another resolution.

    If interrupted, run the same command again: it continues.

    \b
    mlpdata resize shards/tinyimagenet-64 --res 32 --out shards/tinyimagenet-32
    """
    _run(Derivation(command="resize", directories=(directory,)), out, resize=rule, **options)
