"""The command line: parse, call, print. Everything heavy is imported inside the command that needs it."""

from __future__ import annotations

import atexit
import gc
import os
import signal
import sys
from pathlib import Path

import click

from mlpdata import Error, __version__
from mlpdata.choices import CODECS, ENGINES, FILTERS, FORMATS, MAX_RES, RESIZES
from mlpdata.errors import UsageError, lacks_memory


class _Commands(click.Group):
    """Turns expected failures into one line and exit status 1; anything else is a bug and shows its traceback."""

    def main(self, *args, **kwargs):
        _open_standard_streams()
        return super().main(*args, **kwargs)

    def invoke(self, ctx):
        try:
            return super().invoke(ctx)
        except Error as e:
            click.echo(f"mlpdata: error: {e}", err=True)
            ctx.exit(2 if isinstance(e, UsageError) else 1)
        except KeyboardInterrupt:
            click.echo("mlpdata: stopped", err=True)
            ctx.exit(1)
        except (MemoryError, RuntimeError) as e:
            if not lacks_memory(e):
                raise
            click.echo("mlpdata: error: out of memory", err=True)
            ctx.exit(1)
        except BrokenPipeError:
            # The reader of our output went away (`mlpdata list | head`): nothing to say, nobody to say it to.
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
            ctx.exit(1)


def _open_standard_streams() -> None:
    """Open what the caller closed (`2>&-`): else the next file that is opened is where messages are written to."""
    for number, name, mode in ((0, "stdin", "r"), (1, "stdout", "w"), (2, "stderr", "w")):
        try:
            os.fstat(number)
        except OSError:
            fd = os.open(os.devnull, os.O_RDWR)
            if fd != number:
                os.dup2(fd, number)
                os.close(fd)
        if getattr(sys, name) is None:
            setattr(sys, name, os.fdopen(number, mode, closefd=False))


def _stop(number, frame) -> None:
    """A signal asks to end: as Ctrl-C does, but for a module that is being imported.

    Such a one may take the interpreter with it (numpy: "Fatal Python error"), so it ends here. Whatever is under way
    then survives it as it survives a kill.
    """
    while frame is not None:
        if frame.f_code.co_filename.startswith("<frozen importlib"):
            os.write(2, b"mlpdata: stopped\n")
            os._exit(1)
        frame = frame.f_back
    raise KeyboardInterrupt


class _Share(click.ParamType):
    name = "K/N"

    def convert(self, value, param, ctx):
        if isinstance(value, tuple):
            return value
        k, _, n = value.partition("/")
        if not (k.isdecimal() and n.isdecimal() and 1 <= int(k) <= int(n)):
            self.fail(f"{value!r} is not K/N with K from 1 to N, as 2/4", param, ctx)
        return int(k), int(n)


@click.group(cls=_Commands, context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 110})
@click.version_option(__version__, prog_name="mlpdata")
def main():
    """Image archives to low-resolution FFCV and WebDataset shards, and a trainer that eats them at full speed.

    \b
    mlpdata convert cifar10 --source cifar-10-python.tar.gz
    mlpdata train recipes/cifar10-small.yaml --set data.shards=shards/cifar10-32
    """
    gc.set_threshold(100_000)  # imports and listings of archives make many objects and next to no garbage
    # Asked to end, end as after Ctrl-C: clean, and saying how to go on. Also where Ctrl-C is ignored, as it is for what
    # a script starts with `&`; but not for what nohup keeps going.
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        if signal.getsignal(number) is not signal.SIG_IGN:
            signal.signal(number, _stop)


class _ShardDirectory(click.ParamType):
    """A shard directory: here, or hf:OWNER/NAME or a URL, of which a verified copy is made."""

    name = "directory"

    def convert(self, value, param, ctx):
        from mlpdata.shards import remote

        return remote.local_copy(value, lambda line: click.echo(line, err=True))


SHARDS = _ShardDirectory()
LIBRARIES = ["ffcv", "webdataset", "datasets", "timm", "torch", "numpy"]


def _path_or_url(text: str):
    from mlpdata.shards import remote

    return text if remote.is_remote(text) else Path(text)


@main.command("list")
def list_():
    """The data sets: samples, classes, sources, bytes at each resolution.

    \b
    mlpdata list
    """
    from mlpdata import datasets

    click.echo(datasets.table())


@main.command()
@click.argument("dataset")
@click.option("--to", type=click.Path(path_type=Path), help="Folder.  [default: $MLPDATA_HOME, or the user's cache]")
@click.option("--only", multiple=True, metavar="FILE", help="Only this of the data set's files; may be repeated.")
@click.option(
    "--cookies", type=click.Path(path_type=Path), help="A cookies.txt, as browsers export it, to log in with."
)
@click.option("--header", "headers", multiple=True, metavar="'NAME: VALUE'", help="Header to send; may be repeated.")
@click.option("--dry-run", is_flag=True, help="Say what would be done.")
@click.option("--quiet", is_flag=True, help="No progress line.")
def download(dataset, to, only, cookies, headers, dry_run, quiet):
    """Fetch the original archive. Interrupted, the same command goes on where it stopped.

    Size and checksum are verified; `convert` finds the file by itself. HTTP_PROXY, HTTPS_PROXY and NO_PROXY are
    honoured, and servers named in MLPDATA_MIRROR (base URLs, separated by spaces) are tried first.

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
    official.download(spec.archives, folder, only=only, login=login, dry_run=dry_run, say=click.echo, quiet=quiet)


@main.command()
@click.argument("dataset")
@click.option(
    "--source",
    help="Archive, directory, URL or hf:OWNER/NAME[@REVISION].  [default: the official archive, fetched if need be]",
)
@click.option("--res", type=click.IntRange(1, MAX_RES), help="Pixels a side.  [default: the data set's own]")
@click.option("--format", "format_", type=click.Choice(list(FORMATS)), default="both", show_default=True)
@click.option(
    "--codec",
    type=click.Choice(["auto", *CODECS]),
    default="auto",
    show_default=True,
    help="How images are stored. auto: raw in the beton; in tars JPEG where the source is JPEG, else PNG.",
)
@click.option(
    "--quality", type=click.IntRange(1, 100), default=90, show_default=True, help="Quality of JPEGs that are encoded."
)
@click.option("--resize", type=click.Choice(RESIZES), default="squash", show_default=True)
@click.option(
    "--filter",
    "filter_",
    type=click.Choice(FILTERS),
    default="box",
    show_default=True,
)
@click.option("--out", help="Shard directory, or a URL of an object storage.  [default: shards/NAME-RES]")
@click.option("--split", "splits", multiple=True, help="Only this split; may be repeated.")
@click.option("--workers", type=click.IntRange(min=1), help="Processes.  [default: the cores]")
@click.option("--seed", type=click.IntRange(min=0), default=0, show_default=True, help="Seed of the shuffle.")
@click.option("--shard-size", type=click.IntRange(min=1), default=10_000, show_default=True, help="Samples a tar.")
@click.option("--limit", type=click.IntRange(min=1), help="Only the first N samples of each split.")
@click.option(
    "--max-skipped",
    type=click.FloatRange(0, 1),
    default=0.01,
    show_default=True,
    help="Fail if a larger share of the images cannot be read.",
)
@click.option(
    "--min-class-size",
    type=click.IntRange(min=0),
    help="Leave out classes with fewer images.  [default: 0; imagenet21k without class options: 500]",
)
@click.option(
    "--val-per-class",
    type=click.IntRange(min=0),
    help="Hold out N images a class as val, first by name.  [default: 0; imagenet21k without class options: 50]",
)
@click.option(
    "--classes", type=click.Path(path_type=Path), help="File with the classes to take, one a line, in label order."
)
@click.option(
    "--engine",
    type=click.Choice(ENGINES),
    default="local",
    show_default=True,
    help="Where the work runs. ray: on a running Ray cluster, whose nodes all see --out and --source.",
)
@click.option(
    "--part",
    type=_Share(),
    help="Convert only the K-th of N shares: run each share on a machine of its own; all use one shared disk.",
)
@click.option(
    "--assemble", is_flag=True, help="After all --part runs: write the shards. Refuses while a share is missing."
)
@click.option("--image-column", help="Of parquet files.  [default: found from their features]")
@click.option("--label-column", help="Of parquet files.  [default: found from their features]")
@click.option("--quiet", is_flag=True, help="No progress line.")
def convert(dataset, source, res, format_, codec, quality, resize, filter_, out, splits, workers, seed, shard_size,
            limit, max_skipped, min_class_size, val_per_class, classes, image_column, label_column, engine, part,
            assemble, quiet):  # fmt: skip
    """Turn an archive into a shard directory. Interrupted, the same command goes on where it stopped.

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
    """
    from mlpdata.convert.options import Options
    from mlpdata.convert.run import convert as run

    atexit.register(gc.freeze)  # else Python looks through every object for garbage as it ends: a twentieth of a second
    run(
        Options(dataset=dataset, source=source, res=res, format=format_, codec=codec, quality=quality, resize=resize,
                filter=filter_, out=out and _path_or_url(out), splits=splits, workers=workers, seed=seed,
                shard_size=shard_size, limit=limit, max_skipped=max_skipped, min_class_size=min_class_size,
                val_per_class=val_per_class, classes=classes, image_column=image_column, label_column=label_column,
                engine=engine, part=part, assemble=assemble, quiet=quiet),
        say=click.echo,
    )  # fmt: skip


@main.command()
@click.argument("directory", type=SHARDS)
@click.option("--json", "as_json", is_flag=True, help="The manifest, for programs.")
def info(directory, as_json):
    """What is in a shard directory.

    \b
    mlpdata info shards/cifar10-32
    """
    from mlpdata.inspect import info

    click.echo(info.info(directory, as_json))


@main.command()
@click.argument("directory", type=SHARDS)
def verify(directory):
    """Check every checksum and every sample of a shard directory, and that both formats hold the same.

    Images are decoded and compared with the index, labels and places of all files with each other. What is wrong is
    listed, a line a problem, and the exit status is 1.

    \b
    mlpdata verify shards/cifar10-32
    """
    from mlpdata.inspect.verify import verify as run

    what, found = run(directory)
    for problem in found.problems:
        click.echo(problem)
    if found.num_problems:
        n, told = found.num_problems, len(found.problems)
        listed = f"{n:,} problem{'s' if n > 1 else ''}, {f'{told:,} of them ' if n > told else ''}listed above"
        raise Error(f"{directory} is damaged: {listed}; delete it, and get or convert it again")
    click.echo(f"{directory} is whole: {what}")


@main.command()
@click.argument("directory", type=SHARDS)
@click.option("--json", "as_json", is_flag=True, help="For programs, with the keys of the duplicates.")
def stats(directory, as_json):
    """Class counts, mean and std, and images that are there more than once, within a split and across splits.

    Duplicates have equal pixels at the stored resolution.

    \b
    mlpdata stats shards/cifar10-32
    """
    from mlpdata.inspect.stats import stats as run

    click.echo(run(directory, as_json))


@main.command()
@click.argument("directory", type=SHARDS)
@click.option("--for", "library", type=click.Choice(LIBRARIES), required=True, help="The library to read it with.")
@click.option("--split", default="train", show_default=True)
def snippet(directory, library, split):
    """Print code that reads a shard directory elsewhere; it runs as printed.

    \b
    mlpdata snippet shards/cifar10-32 --for webdataset > read.py
    """
    from mlpdata.inspect import snippets

    click.echo(snippets.snippet(directory, library, split))


@main.command()
@click.argument("directory", type=click.Path(path_type=Path))
@click.argument("name", metavar="OWNER/NAME")
@click.option("--private", is_flag=True, help="Make the repository a private one, where it is made.")
def push(directory, name, private):
    """Upload a finished shard directory to the Hugging Face Hub; load_dataset("OWNER/NAME") then reads it.

    \b
    mlpdata push shards/cifar10-32 me/cifar10-32
    """
    from mlpdata.shards import upload

    click.echo(upload.push(directory, name, private, click.echo))


@main.command()
@click.argument("name", metavar="OWNER/NAME")
def pull(name):
    """Copy a shard directory from the Hub (OWNER/NAME[@REVISION]) or a URL to the cache, and say where it is.

    Training needs no pull: `data.shards: hf:OWNER/NAME` makes and finds the same copy.

    \b
    mlpdata pull me/cifar10-32
    mlpdata pull s3://bucket/shards/cifar10-32
    """
    from mlpdata.fetch import hub
    from mlpdata.shards import remote

    root = name if remote.is_remote(name) else f"{hub.PREFIX}{name}"
    click.echo(remote.local_copy(root, lambda line: click.echo(line, err=True)))


@main.command()
@click.argument("directory", type=SHARDS)
@click.option("-o", "--out", type=click.Path(path_type=Path), required=True, help="The PNG to write.")
@click.option(
    "--augment", type=click.Path(path_type=Path), metavar="RECIPE", help="Show this recipe's augmentation too."
)
@click.option("--split", default="train", show_default=True)
def preview(directory, out, augment, split):
    """Draw a contact sheet of a shard directory, before and after augmentation.

    \b
    mlpdata preview shards/cifar10-32 -o cifar10.png --augment recipes/cifar10-small.yaml
    """
    from mlpdata.inspect.preview import preview as run

    recipe_augment = None
    if augment:
        from trainer.recipe import load_recipe

        recipe_augment = load_recipe(augment, []).augment
    click.echo(run(directory, out, split, recipe_augment))


@main.command()
@click.argument("directory", type=SHARDS)
@click.option("--device", default="auto", show_default=True, help="cpu, cuda, cuda:1, ...; auto takes the GPU if any.")
@click.option("--split", default="train", show_default=True)
@click.option("--format", "format_", type=click.Choice(["beton", "tar"]), help="[default: the beton if there is one]")
@click.option("--tier", type=click.Choice(["resident", "pinned", "stream"]), help="[default: chosen by size]")
@click.option("--pixels", type=click.Choice(["rgb", "ycc420"]), default="rgb", show_default=True,
              help="How the resident tier holds them; ycc420 takes half the memory.")  # fmt: skip
@click.option("--batch-size", type=click.IntRange(min=1), default=1024, show_default=True)
@click.option("--res", type=click.IntRange(1, MAX_RES), help="Of the augmented images.  [default: the stored one]")
@click.option("--threads", type=click.IntRange(min=1), help="That read and decode.  [default: the cores]")
@click.option("--seconds", type=click.FloatRange(0.1), default=3.0, show_default=True, help="For each measurement.")
@click.option("--json", "as_json", is_flag=True, help="One JSON row.")
def bench(directory, device, split, format_, tier, pixels, batch_size, res, threads, seconds, as_json):
    """Measure loader, augmentation and both overlapped in images/s, and name the bottleneck.

    \b
    mlpdata bench shards/cifar10-32
    mlpdata bench shards/imagenet21k-64 --device cuda --tier pinned --batch-size 16384
    """
    from mlpdata.inspect.bench import bench as run

    click.echo(
        run(directory, device=device, split=split, format=format_, tier=tier, pixels=pixels, batch_size=batch_size,
            res=res, num_threads=threads, seconds=seconds, as_json=as_json)
    )  # fmt: skip


@main.command()
@click.argument("recipe", type=click.Path(path_type=Path))
@click.option("--set", "overrides", multiple=True, metavar="KEY=VALUE", help="Change one setting; may be repeated.")
@click.option("--resume", is_flag=True, help="Go on from the last checkpoint of this recipe's run.")
@click.option("--profile", is_flag=True, help="Train nothing: measure images/s from shards, and with data at no cost.")
def train(recipe, overrides, resume, profile):
    """Train a recipe. Several GPUs: torchrun --nproc-per-node N -m trainer RECIPE ...

    \b
    mlpdata train recipes/cifar10-small.yaml --set data.shards=shards/cifar10-32 --set train.epochs=40
    """
    from trainer.train import run

    run(recipe, list(overrides), resume=resume, profile=profile)


@main.command("eval")
@click.argument("checkpoint", type=click.Path(path_type=Path))
@click.option("--shards", type=SHARDS, required=True, help="Shard directory.")
@click.option("--split", default="val", show_default=True)
@click.option("--tta", type=click.IntRange(min=0), default=0, help="Average over N random crops; the paper: 100.")
@click.option("--average", type=click.Choice(["probabilities", "logits"]), default="probabilities", show_default=True)
@click.option(
    "--crop-scale", type=click.FloatRange(0, 1, min_open=True), help="Least area of a crop.  [default: as in training]"
)
@click.option(
    "--normalize",
    type=click.Choice(["own", "imagenet"]),
    help="Mean and std: the data set's, or ImageNet's.  [default: as the checkpoint says, else own]",
)
@click.option("--per-class", is_flag=True, help="The accuracy of each class, worst first.")
@click.option("--predictions", type=click.Path(path_type=Path), help="Parquet file to write: key, label, top five.")
@click.option("--batch-size", type=click.IntRange(min=1), default=2048, show_default=True)
@click.option("--device", type=click.Choice(["auto", "cpu", "cuda"]), default="auto", show_default=True)
@click.option("--precision", type=click.Choice(["fp32", "bf16", "fp16"]), default="fp32", show_default=True)
@click.option("--json", "as_json", is_flag=True, help="For programs.")
def eval_(**options):
    """Evaluate a checkpoint: top-1, top-5, and ReaL accuracy where the shards have its labels.

    \b
    mlpdata eval runs/cifar10-small/best.safetensors --shards shards/cifar10-32 --tta 100
    """
    from trainer.evaluate import EvalOptions, run

    click.echo(run(EvalOptions(**options)))


@main.command()
@click.argument("runs", nargs=-1, required=True, type=click.Path(path_type=Path))
@click.option("-o", "--out", type=click.Path(path_type=Path), default="scaling.png", show_default=True)
def scaling(runs, out):
    """Fit E(C) = a (b + C)^-alpha + E_inf to finished runs and draw it.

    \b
    mlpdata scaling runs/scale-* -o scaling.png
    """
    from trainer.scaling import run

    click.echo(run(list(runs), out))


@main.command()
def doctor():
    """What is installed, which image library is really loaded, what is missing."""
    from mlpdata.inspect.doctor import doctor as run

    report, well = run()
    click.echo(report)
    if not well:
        sys.exit(1)


if __name__ == "__main__":
    main()
