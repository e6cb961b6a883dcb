"""Commands that turn archives into shards: list, download, convert."""

from __future__ import annotations

import atexit
import gc
from pathlib import Path

import click

from mlpdata.choices import CODECS, DECODES, ENGINES, FILTERS, FORMATS, MAX_RES, MAX_SKIPPED, RESIZES
from mlpdata.cli.group import main, say, say_lines
from mlpdata.cli.parameters import FiniteRange, Share, json_option, path_or_url, quiet_option
from mlpdata.errors import Error


@main.command("list")
@json_option()
def list_(as_json):
    """List the data sets: sizes, sources, and what is here already.

    \b
    mlpdata list
    """
    from mlpdata.inspect.catalogue import catalogue

    say_lines(catalogue(as_json))


@main.command()
@click.argument("dataset")
@click.option(
    "--to", type=click.Path(path_type=Path), help="Folder to save to.  [default: $MLPDATA_HOME, or the user's cache]"
)
@click.option("--only", multiple=True, metavar="FILE", help="Fetch only this file of the data set; may be repeated.")
@click.option(
    "--cookies", type=click.Path(path_type=Path), help="A cookies.txt, exported by your browser, to log in with."
)
@click.option(
    "--header", "headers", multiple=True, metavar="'NAME: VALUE'", help="HTTP header to send; may be repeated."
)
@click.option("--dry-run", is_flag=True, help="Only say what would be fetched.")
@quiet_option
def download(dataset, to, only, cookies, headers, dry_run, quiet):
    """Fetch the original archive of a data set, and verify it.

    If interrupted, run the same command again: it continues. `convert` finds the file by itself. HTTP_PROXY,
    HTTPS_PROXY and NO_PROXY are honoured. Servers named in MLPDATA_MIRROR (base URLs, separated by spaces) are tried
    first.

    \b
    mlpdata download cifar10
    mlpdata download imagenet1k --cookies cookies.txt --to /data
    """
    from mlpdata import datasets
    from mlpdata.fetch import official
    from mlpdata.fetch.login import Login, parse_headers

    spec = datasets.get(dataset)
    if not spec.archives:
        raise Error(f"{spec.name} has no archive to download")
    login = Login(headers=parse_headers(headers), cookies=cookies) if headers or cookies else None
    folder = to or official.download_folder()
    official.download(spec.archives, folder, only=only, login=login, dry_run=dry_run, say=say, quiet=quiet)


@main.command()
@click.argument("dataset")
@click.option(
    "--source",
    help="Archive, directory, URL or hf:OWNER/NAME[@REVISION].  [default: the official archive, fetched if not here]",
)
@click.option(
    "--res",
    type=click.IntRange(1, MAX_RES),
    help="Pixels a side.  [default: the data set's own; 64 for folder, hub, beton, wds]",
)
@click.option("--format", "format_", type=click.Choice(list(FORMATS)), default="both")
@click.option(
    "--codec",
    type=click.Choice(["auto", *CODECS]),
    default="auto",
    help="How images are stored. auto: raw in the beton; in tars JPEG where the source is JPEG, else PNG.",
)
@click.option("--quality", type=click.IntRange(1, 100), default=90, help="Quality of the JPEGs that are encoded.")
@click.option(
    "--resize",
    type=click.Choice(RESIZES),
    default="squash",
    help="squash: to the square; crop: the centre square; longest: longer side to --res, shape kept, sizes differ.",
)
@click.option("--filter", "filter_", type=click.Choice(FILTERS), default="box", help="Filter of the resize.")
@click.option(
    "--decode",
    type=click.Choice(DECODES),
    help="How JPEGs are decoded before they are resized. fast: at 1/2, 1/4 or 1/8 scale where that leaves enough "
    "pixels (the loss is measured and recorded); exact: in full, up to 67 megapixels.  [default: fast up to --res 128, "
    "else exact]",
)
@click.option(
    "--out",
    help="Shard directory, or a URL of an object storage.  [default: shards/DATASET-RES; for your own data "
    "shards/DATASET-SOURCE-RES, as shards/folder-photos-64]",
)
@click.option("--overwrite", is_flag=True, help="Delete the conversion that --out holds, and start again.")
@click.option("--split", "splits", multiple=True, help="Only this split; may be repeated.")
@click.option("--workers", type=click.IntRange(min=1), help="Worker processes.  [default: the cores]")
@click.option("--seed", type=click.IntRange(min=0), default=0, help="Seed of the shuffle.")
@click.option("--shard-size", type=click.IntRange(min=1), default=10_000, help="Samples in each tar.")
@click.option("--limit", type=click.IntRange(min=1), help="Convert only the first N samples of each split.")
@click.option(
    "--max-skipped",
    type=FiniteRange(0, 1),
    default=MAX_SKIPPED,
    help="Fail if a larger share of the images is unreadable.",
)
@click.option(
    "--min-class-size",
    type=click.IntRange(min=0),
    help="Leave out classes with fewer images.  [default: 0; imagenet21k without class options: 500]",
)
@click.option(
    "--val-per-class",
    type=click.IntRange(min=0),
    help="Hold out the first N images of each class as val.  [default: 0; imagenet21k without class options: 50]",
)
@click.option(
    "--classes",
    type=click.Path(path_type=Path),
    help="File that lists the classes to take, one per line, in label order. Where classes are numbers (beton, wds): "
    "the names of classes 0, 1, ...",
)
@click.option(
    "--engine",
    type=click.Choice(ENGINES),
    default="local",
    help="Where the work runs. ray: on a running Ray cluster, all nodes of which must see --source and --out.",
)
@click.option(
    "--part",
    type=Share(),
    help="Convert only share K of N: run one share on each of N machines, with the same --out on a shared disk.",
)
@click.option("--assemble", is_flag=True, help="When every --part is done: write the shards.")
@click.option(
    "--image-column",
    help="Image column of parquet files, field of betons, member of tars.  [default: found by its type]",
)
@click.option(
    "--label-column",
    help="Label column of parquet files, field of betons, member of tars.  [default: found by its type]",
)
@quiet_option
def convert(dataset, source, res, format_, codec, quality, resize, filter_, decode, out, overwrite, splits, workers,
            seed, shard_size, limit, max_skipped, min_class_size, val_per_class, classes, image_column, label_column,
            engine, part, assemble, quiet):  # fmt: skip
    """Turn an archive into a shard directory.

    If interrupted, run the same command again: it continues. `mlpdata list` has the names of the data sets; `folder`
    is for your own images, `hub` for those of the Hugging Face Hub.

    \b
    mlpdata convert cifar10 --source cifar-10-python.tar.gz --res 32 --format both
    mlpdata convert tinyimagenet --source tiny-imagenet-200.zip --out shards/tiny
    mlpdata convert folder --source photos/ --res 64 --resize crop
    mlpdata convert imagenet1k --source ILSVRC2012/
    mlpdata convert imagenet21k --res 64
    mlpdata convert imagenet21k --source winter21_whole.tar.gz --min-class-size 0 --val-per-class 0
    mlpdata convert imagenet21k --source /shared/fall11_whole.tar --out /shared/in21k --engine ray
    mlpdata convert imagenet21k --source /shared/fall11_whole.tar --out /shared/in21k --part 1/4
    mlpdata convert hub --source hf:uoft-cs/cifar10@main --res 32
    mlpdata convert beton --source 'ffcv/*.beton' --image-column img --res 32
    mlpdata convert wds --source 'tars/train-{000000..000099}.tar' --res 64
    """
    from mlpdata.convert.options import Options
    from mlpdata.convert.run import convert as run

    atexit.register(gc.freeze)  # else Python looks through every object for garbage as it ends: a twentieth of a second
    run(
        Options(dataset=dataset, source=source, res=res, format=format_, codec=codec, quality=quality, resize=resize,
                filter=filter_, decode=decode, out=out and path_or_url(out), overwrite=overwrite, splits=splits,
                workers=workers, seed=seed, shard_size=shard_size, limit=limit, max_skipped=max_skipped,
                min_class_size=min_class_size, val_per_class=val_per_class, classes=classes,
                image_column=image_column, label_column=label_column, engine=engine, part=part, assemble=assemble,
                quiet=quiet),
        say=say,
    )  # fmt: skip
