"""Commands about shard directories: info, verify, stats, snippet, push, pull, preview, report, bench; and doctor."""

from __future__ import annotations

import json
import shlex
import sys
from pathlib import Path

import click

from mlpdata.choices import FORMATS, LIBRARIES, MAX_RES
from mlpdata.cli.group import main, say, say_lines, tell
from mlpdata.cli.parameters import SHARDS, FiniteRange, json_option, path_or_url, split_option
from mlpdata.derive.derivation import MAX_NEAR_BITS, NEAR_BITS
from mlpdata.errors import Error
from mlpdata.loader.options import PIXELS, TIERS
from mlpdata.system.format import format_bytes, plural


@main.command()
@click.argument("directory", type=path_or_url)
@json_option("Print the manifest as JSON, for programs.")
def info(directory, as_json):
    """Say what is in a shard directory.

    Of a URL only the manifest and the list of classes are read.

    \b
    mlpdata info shards/cifar10-32
    mlpdata info s3://bucket/shards/cifar10-32
    """
    from mlpdata.inspect import info

    say_lines(info.info(directory, as_json))


@main.command()
@click.argument("directory", type=SHARDS)
@json_option()
def verify(directory, as_json):
    """Check a shard directory: checksums, samples, both formats equal.

    It computes every checksum, decodes every image, and compares the labels and positions in the index, the beton and
    the tars. If there are problems, it lists them, one per line, and the exit status is 1.

    \b
    mlpdata verify shards/cifar10-32
    """
    from mlpdata.inspect.verify import verify as run

    checked, findings = run(directory, quiet=as_json)
    n, num_listed = findings.num_problems, len(findings.problems)
    if as_json:
        facts = {"whole": not n, "checked": checked, "num_problems": n, "problems": findings.problems}
        say_lines(json.dumps(facts, indent=1))
    else:
        for problem in findings.problems:
            say(problem)
    if n:
        some = f"{num_listed:,} of them " if n > num_listed else ""
        listed = f"{plural(n, 'problem')}, {some}listed above"
        if findings.is_denied:
            raise Error(f"{directory} cannot be checked: {listed}; make these files readable, and run it again")
        raise Error(f"{directory} is damaged: {listed}; delete it, and get or convert it again")
    if not as_json:
        say(f"{directory} is whole: {checked}")


@main.command()
@click.argument("directory", type=path_or_url)
@json_option("Print JSON, for programs, with the keys of the duplicates.")
def stats(directory, as_json):
    """Count classes and duplicates; give mean and std.

    Duplicates are images with equal pixels at the stored resolution. Duplicates in two splits are leaks. Of a URL the
    manifest and the indices are fetched, and no shards.

    \b
    mlpdata stats shards/cifar10-32
    """
    from mlpdata.inspect.stats import stats as run
    from mlpdata.shards.streamed import without_shards

    say_lines(run(without_shards(directory, tell), as_json))


@main.command()
@click.argument("directory", type=path_or_url)
@click.option("--for", "library", type=click.Choice(LIBRARIES), required=True, help="The library to read it with.")
@split_option
def snippet(directory, library, split):
    """Print code that reads a shard directory with another library.

    The code runs as printed. Of a URL only the manifest is read: the code reads the copy that `mlpdata pull` makes.

    \b
    mlpdata snippet shards/cifar10-32 --for webdataset > read.py
    """
    from mlpdata.inspect import snippets
    from mlpdata.shards import remote

    root, manifest, is_there = remote.place_of(directory)
    code = snippets.snippet(root, library, split, manifest)
    if not is_there:
        num_bytes = sum(entry["bytes"] for entry in manifest.files.values())
        tell(f"first: mlpdata pull {shlex.quote(directory)}, {format_bytes(num_bytes)}, which the code reads in {root}")
    say_lines(code)


@main.command()
@click.argument("directory", type=click.Path(path_type=Path))
@click.argument("name", metavar="OWNER/NAME")
@click.option("--private", is_flag=True, help="If the repository is new, make it private.")
def push(directory, name, private):
    """Upload a shard directory or a parquet export to the Hub.

    load_dataset("OWNER/NAME") then reads it. The Hub's viewer shows exports: `mlpdata export DIR --to parquet`.

    \b
    mlpdata push shards/cifar10-32 me/cifar10-32
    """
    from mlpdata.export.record import is_export

    if is_export(directory):
        from mlpdata.export.push import push_export as run
    else:
        from mlpdata.shards.upload import push as run
    say(run(directory, name, private, say))


@main.command()
@click.argument("name", metavar="OWNER/NAME")
def pull(name):
    """Copy a shard directory from the Hub or a URL into the cache.

    NAME is OWNER/NAME[@REVISION] on the Hub, or a URL. The path of the copy is printed. Training needs no pull:
    `data.shards: hf:OWNER/NAME` in a recipe makes and finds the same copy.

    \b
    mlpdata pull me/cifar10-32
    mlpdata pull s3://bucket/shards/cifar10-32
    """
    from mlpdata.fetch import hub
    from mlpdata.shards import remote

    root = name if remote.is_remote(name) else f"{hub.PREFIX}{name}"
    click.echo(remote.local_copy(root, tell))  # the path as it is: it is for programs


@main.command()
@click.argument("directory", type=SHARDS)
@click.option("-o", "--out", type=click.Path(path_type=Path), required=True, help="The PNG to write.")
@click.option(
    "--augment", type=click.Path(path_type=Path), metavar="RECIPE", help="Show this recipe's augmentation too."
)
@split_option
@click.option(
    "--classes", metavar="NAME,...", help="Classes to show: names in the source, or numbers.  [default: ten at random]"
)
@click.option("--page", type=click.IntRange(min=1), help="Show this page of all classes: ten a page, in label order.")
def preview(directory, out, augment, split, classes, page):
    """Draw a contact sheet, before and after augmentation.

    \b
    mlpdata preview shards/cifar10-32 -o cifar10.png --augment recipes/cifar10-small.yaml
    mlpdata preview shards/cifar10-32 -o cats.png --classes cat,dog
    """
    from mlpdata.inspect.preview import preview as run

    wanted = classes.split(",") if classes else ()
    say(run(directory, out, split, _augmentation(augment), classes=wanted, page=page))


@main.command()
@click.argument("directory", type=SHARDS)
@click.option("-o", "--out", type=click.Path(path_type=Path), required=True, help="The HTML file to write.")
@click.option("--augment", type=click.Path(path_type=Path), metavar="RECIPE",
              help="Show this recipe's augmentation.  [default: random crops and flips]")  # fmt: skip
@click.option(
    "--source", help="The original archive, as for convert. The worst images are shown beside its exact decode."
)
@click.option("--near", type=click.IntRange(0, MAX_NEAR_BITS), is_flag=False, flag_value=NEAR_BITS, metavar="[BITS]",
              help="Show pairs of images that look alike: their perceptual hashes of 64 bits differ in at most BITS "
              f"({NEAR_BITS} without a number). Reads every image.")  # fmt: skip
def report(directory, out, augment, source, near):
    """Write one self-contained web page to judge a data set by.

    It shows what speaks for and against the data set, samples before and after augmentation, classes, sizes of the
    originals, fidelity of the decode, duplicates and leaks, what was left out, where it comes from and how to load it.

    \b
    mlpdata report shards/cifar10-32 -o cifar10.html
    mlpdata report shards/cifar10-32 -o cifar10.html --near
    """
    from mlpdata.inspect.report import report as run

    say(run(directory, out, _augmentation(augment), source, near=near))


def _augmentation(recipe: Path | None):
    """The augmentation of a recipe; None without one."""
    if recipe is None:
        return None
    from trainer.recipe import load_recipe

    return load_recipe(recipe, []).augment


@main.command()
@click.argument("directory", type=path_or_url)
@click.option("--device", default="auto", help="cpu, cuda, cuda:1, ...; auto: the GPU if there is one.")
@split_option
@click.option("--format", "format_", type=click.Choice(FORMATS["both"]), help="[default: the beton if there is one]")
@click.option("--tier", type=click.Choice([t for t in TIERS if t != "auto"]), help="[default: chosen by size]")
@click.option("--cache-bytes", type=click.IntRange(min=1),
              help="Local disk space for tars of a remote directory.  [default: 80% of the free space]")  # fmt: skip
@click.option("--pixels", type=click.Choice(PIXELS), default="rgb",
              help="ycc420 holds chroma at half resolution: half the bytes.")  # fmt: skip
@click.option("--batch-size", type=click.IntRange(min=1), default=1024)
@click.option(
    "--res", type=click.IntRange(1, MAX_RES), help="Resolution of the augmented images.  [default: the stored one]"
)
@click.option("--threads", type=click.IntRange(min=1), help="Threads that read and decode.  [default: the cores]")
@click.option("--seconds", type=FiniteRange(0.1), default=3.0, help="Length of each measurement.")
@json_option("Print one row of JSON.")
def bench(directory, device, split, format_, tier, cache_bytes, pixels, batch_size, res, threads, seconds, as_json):
    """Measure images/s of loading and augmentation.

    \b
    mlpdata bench shards/cifar10-32
    mlpdata bench shards/imagenet21k-64 --device cuda --tier pinned --batch-size 16384
    mlpdata bench s3://bucket/shards/imagenet21k-64 --tier stream --cache-bytes 50000000000
    """
    from mlpdata.inspect.bench import bench as run
    from mlpdata.shards.streamed import local_directory

    root = local_directory(directory, tier, cache_bytes, tell)
    say_lines(
        run(root, device=device, split=split, format=format_, tier=tier, cache_bytes=cache_bytes, pixels=pixels,
            batch_size=batch_size, res=res, num_threads=threads, seconds=seconds, as_json=as_json)
    )  # fmt: skip


@main.command()
@json_option()
def doctor(as_json):
    """Say what is installed and what is missing.

    Required and optional packages are listed apart. The exit status is 1 if a required one is missing.

    \b
    mlpdata doctor
    """
    from mlpdata.inspect.doctor import doctor as run

    report, well = run(as_json)
    say_lines(report)
    if not well:
        sys.exit(1)
