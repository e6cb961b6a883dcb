"""Commands of the trainer: recipes, train, eval, scaling."""

from __future__ import annotations

import os
import sys
from pathlib import Path

import click

from mlpdata.cli.group import main, say_lines, tell
from mlpdata.cli.parameters import SHARDS, FiniteRange, json_option, path_or_url


@main.group(invoke_without_command=True)
@click.pass_context
def recipes(ctx):
    """List the recipes that come with mlpdata.

    `mlpdata train` takes a recipe by its name.

    \b
    mlpdata recipes
    mlpdata recipes show cifar10-small > mine.yaml
    """
    from trainer.recipes import table

    if ctx.invoked_subcommand is None:
        say_lines(table())


@recipes.command()
@click.argument("name")
def show(name):
    """Print a recipe, as a start for your own.

    \b
    mlpdata recipes show cifar10-small > mine.yaml
    """
    from trainer.recipes import by_name

    click.echo(by_name(name, f"no recipe {name!r} comes with mlpdata").read_text(), nl=False)


@main.command()
@click.argument("recipe")
@click.option("--set", "overrides", multiple=True, metavar="KEY=VALUE", help="Change one setting; may be repeated.")
@click.option("--resume", is_flag=True, help="Continue the last run of this recipe.")
@click.option(
    "--force", is_flag=True, help="With --resume: accept what --set changes of train.epochs, optim.* or data.shards."
)
@click.option(
    "--profile",
    is_flag=True,
    help="Train nothing: measure images/s from shards, and from one batch that stays on the device.",
)
@click.option("--plan", "show_plan", is_flag=True,
              help="Train nothing: print where the pixels would lie, the rates needed, the bottleneck.")  # fmt: skip
def train(recipe, overrides, resume, force, profile, show_plan):
    """Train a recipe.

    RECIPE is a YAML file, or a name that `mlpdata recipes` lists. Several GPUs, one process each:
    torchrun --nproc-per-node N --no-python mlpdata train RECIPE

    \b
    mlpdata train cifar10-small
    mlpdata train recipes/cifar10-small.yaml --set data.shards=shards/cifar10-32 --set train.epochs=40
    """
    if show_plan:
        from trainer.plan import plan

        say_lines(plan(recipe, list(overrides)))
        return
    if "RANK" in os.environ and "WORLD_SIZE" in os.environ:
        from trainer.__main__ import run_as_one_of_many

        run_as_one_of_many(recipe, list(overrides), resume=resume, force=force, profile=profile)
    from trainer.train import run

    run(recipe, list(overrides), resume=resume, force=force, profile=profile)


@main.command("eval")
@click.argument("checkpoint", type=click.Path(path_type=Path))
@click.option("--shards", type=SHARDS, help="Shard directory to evaluate on.  [default: that of the training]")
@click.option("--split", help="[default: the one evaluated in training, else val]")
@click.option("--tta", type=click.IntRange(min=0), default=0, help="Average over N random crops (the paper: 100).")
@click.option("--average", type=click.Choice(["probabilities", "logits"]), default="probabilities",
              help="What --tta averages over the crops.")  # fmt: skip
@click.option(
    "--crop-scale",
    type=FiniteRange(0, 1, min_open=True),
    help="Smallest area of a crop, as a share of the image.  [default: as in training]",
)
@click.option(
    "--normalize",
    type=click.Choice(["own", "imagenet"]),
    help="Mean and std: the data set's, or ImageNet's.  [default: as the checkpoint says, else own]",
)
@click.option("--per-class", is_flag=True, help="Print the accuracy of each class, worst first.")
@click.option("--predictions", type=click.Path(path_type=Path), help="Write a parquet file: key, label, top five.")
@click.option("--batch-size", type=click.IntRange(min=1), help="[default: as in training, else 2048]")
@click.option("--device", type=click.Choice(["auto", "cpu", "cuda"]), default="auto")
@click.option("--precision", type=click.Choice(["fp32", "tf32", "bf16", "fp16"]),
              help="[default: as in training, else fp32]")  # fmt: skip
@json_option()
def eval_(**options):
    """Evaluate a checkpoint: top-1, top-5, ReaL.

    CHECKPOINT is a file, or a run directory, whose best checkpoint is taken. ReaL accuracy is measured if the shards
    have ReaL labels.

    \b
    mlpdata eval runs/cifar10-small
    mlpdata eval runs/cifar10-small/best.safetensors --shards shards/cifar10-32 --tta 100
    """
    from trainer.evaluate import EvalOptions, run

    say_lines(run(EvalOptions(**options), tell))


@main.command()
@click.argument("runs", nargs=-1, required=True, type=click.Path(path_type=Path))
@click.option("-o", "--out", type=click.Path(path_type=Path), default="scaling.png", help="The PNG to write.")
def scaling(runs, out):
    """Fit a scaling law to finished runs, and draw it.

    The law is E(C) = a (b + C)^-alpha + E_inf: error by compute.

    \b
    mlpdata scaling runs/scale-* -o scaling.png
    """
    from trainer.scaling import run

    say_lines(run(list(runs), out))


@main.command()
@click.argument("checkpoint", type=click.Path(path_type=Path))
@click.argument("images", metavar="IMAGE...", nargs=-1, required=True, type=click.Path(path_type=Path))
@click.option("--shards", type=path_or_url,
              help="Shard directory that names the classes.  [default: that of the training]")  # fmt: skip
@click.option("--device", type=click.Choice(["auto", "cpu", "cuda"]), default="auto")
@json_option()
def predict(checkpoint, images, shards, device, as_json):
    """Classify image files: the five best classes, by name.

    CHECKPOINT is a file, or a run directory, whose best checkpoint is taken. IMAGE is a file, a folder, of which all
    images are taken, also those in folders below it, or - for standard input. Images that cannot be read are listed;
    the others are predicted, and the exit status is 1.

    \b
    mlpdata predict runs/cifar10-small cat.jpg dog.png
    mlpdata predict runs/cifar10-small photos/ --json
    """
    from trainer.predict import run

    if run(checkpoint, images, shards, device, as_json, say_lines, tell):
        sys.exit(1)
