"""The command that turns shard directories into what other libraries read: export."""

from __future__ import annotations

import click

from mlpdata.choices import EXPORT_CODECS, EXPORTS, FORMATS
from mlpdata.cli.group import main, say
from mlpdata.cli.parameters import SHARDS, FiniteRange, path_or_url, quiet_option


@main.command()
@click.argument("directory", type=SHARDS)
@click.option("--to", type=click.Choice(EXPORTS), required=True, help="The format to write.")
@click.option("-o", "--out", required=True, help="The folder to write to; for beton and tar, also a URL.")
@click.option("--split", "splits", multiple=True, help="Only this split; may be repeated.")
@click.option("--codec", type=click.Choice(EXPORT_CODECS), default="stored",
              help="How images are written. stored: unchanged; raw pixels become PNGs.")  # fmt: skip
@click.option("--quality", type=click.IntRange(1, 100), help="Quality of newly encoded JPEGs.  [default: 90]")
@click.option("--format", "format_", type=click.Choice(FORMATS["both"]),
              help="Which of the directory's formats to read.  [default: the one with least to decode]")  # fmt: skip
@click.option("--file-mb", type=FiniteRange(0, min_open=True),
              help="Approximate size of each file, in MB.  [default: by format]")  # fmt: skip
@click.option("--workers", type=click.IntRange(min=1), help="Worker processes.  [default: the cores]")
@quiet_option
def export(directory, to, out, splits, codec, quality, format_, file_mb, workers, quiet):
    """Write a shard directory in another format.

    folder: SPLIT/CLASS/KEY.png, for torchvision's ImageFolder. parquet: the layout of the Hugging Face Hub, for
    load_dataset and `mlpdata push`. arrow: for load_from_disk of Hugging Face's datasets. npz: arrays of pixels, for
    numpy. mds: for MosaicML's StreamingDataset. litdata: for Lightning's StreamingDataset. tfrecord: for tf.data and
    TensorFlow Datasets. beton, tar: a shard directory of FFCV files or WebDataset tars.

    Fields of a sample are image and label, in mds, litdata and tfrecord also key; arrays of npz are images, labels,
    keys, classes and class_names. Names of classes, where the library has no place for them, are in classes.txt.
    `mlpdata snippet DIRECTORY --for litdata`, or streaming, prints code that reads the export.

    If interrupted, run the same command again: it continues. export.json is written last.

    \b
    mlpdata export shards/cifar10-32 --to parquet -o cifar10-parquet
    mlpdata export shards/imagenet1k-64 --to folder -o imagenet-64 --split val
    """
    from mlpdata.export.options import ExportOptions

    file_bytes = max(1, round(file_mb * 1e6)) if file_mb else None
    options = ExportOptions(root=directory, to=to, out=path_or_url(out), splits=splits, codec=codec, quality=quality,
                            format=format_, file_bytes=file_bytes, workers=workers, quiet=quiet)  # fmt: skip
    if to in FORMATS["both"]:
        from mlpdata.export.other_format import export_shards as run
    else:
        from mlpdata.export.run import export as run
    run(options, say=say)
