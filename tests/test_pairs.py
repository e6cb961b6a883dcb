"""The promise: `mlpdata convert NAME`, then `mlpdata train` of each recipe for it, as they stand but for sizes."""

import signal
from pathlib import Path

import pytest
from archives import SYNSETS, encoded, make_cifar, make_ilsvrc, make_stl10, make_tinyimagenet, picture, tar_bytes
from conftest import read_jsonl

from mlpdata import Error
from mlpdata.cli import main
from mlpdata.shards.manifest import Manifest
from mlpdata.sources.shapes import Shapes
from trainer import curve, saturation
from trainer.recipe import load_recipe
from trainer.train import run

RECIPES = sorted((Path(__file__).parents[1] / "recipes").glob("*.yaml"))
# Sizes alone: two steps on the few images there are, without the compiler's minutes.
SMALLER = [
    "train.epochs=1", "train.device=cpu", "train.compile=false", "train.cuda_graphs=false", "augment.compile=false",
    "log.tensorboard=false",
]  # fmt: skip


def make_fall11(path):
    """fall11_whole.tar with two classes of at least 500 images and one of fewer, which the paper leaves out."""
    data = encoded(picture(8, 8, 1), quality=75)
    sizes = dict(zip(SYNSETS[:3], (500, 520, 499), strict=True))
    path.write_bytes(
        tar_bytes({f"{w}.tar": tar_bytes({f"{w}_{i}.JPEG": data for i in range(n)}) for w, n in sizes.items()})
    )


ARCHIVES = {  # name of the data set -> (what --source gets, what makes it)
    "imagenet21k": ("fall11_whole.tar", make_fall11),
    "cifar10": ("cifar-10-python.tar.gz", make_cifar),
    "cifar100": ("cifar-100-python.tar.gz", lambda path: make_cifar(path, "cifar100")),
    "tinyimagenet": ("tiny-imagenet-200.zip", make_tinyimagenet),
    "stl10": ("stl10_binary.tar.gz", make_stl10),
    "imagenet1k": ("ilsvrc", make_ilsvrc),
    "shapes": (None, None),
}


def recipes_of(name):
    """The recipes for a data set: what `convert` calls its shards is what they read."""
    return [path for path in RECIPES if load_recipe(path).data.shards.startswith(f"shards/{name}-")]


def convert(name):
    """The bare command, in this process."""
    source, make = ARCHIVES[name]
    if make:
        make(Path(source))
    before = signal.getsignal(signal.SIGTERM)
    try:
        main(["convert", name, *(["--source", source] if source else []), "--quiet"], standalone_mode=False)
    finally:
        signal.signal(signal.SIGTERM, before)


def train(path):
    """A recipe of the repository with two steps of half of the images each; returns its epochs."""
    recipe = load_recipe(path)
    n = Manifest.load(recipe.data.shards).splits[recipe.data.train_split].num_samples
    smaller = [] if recipe.init else ["model.name=B_1-Wi_8"]
    return read_jsonl(run(path, [*SMALLER, *smaller, f"train.batch_size={n // 2}"], quiet=True) / "metrics.jsonl")


def be_quick(patch):
    """Leave out the curve, and measure the speed for a moment only: both are tested elsewhere."""
    patch.setattr(curve, "draw_curve", lambda *_: None)
    patch.setattr(saturation, "LEAST_TURNS", 1)


@pytest.fixture(scope="module")
def workplace(tmp_path_factory):
    """A directory where ImageNet-21k is converted and pretrained on, as fine-tuning and probes want it."""
    folder = tmp_path_factory.mktemp("pairs")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        be_quick(patch)
        convert("imagenet21k")
        train(next(path for path in RECIPES if path.stem == "in21k"))
    return folder


def test_every_recipe_has_a_data_set():
    assert sorted(path for name in ARCHIVES for path in recipes_of(name)) == RECIPES


@pytest.mark.parametrize("name", ARCHIVES)
def test_convert_then_train(name, workplace, monkeypatch):
    monkeypatch.chdir(workplace)
    monkeypatch.setattr(Shapes.__init__, "__defaults__", (32, 0, 200, 100))  # images of train and val
    be_quick(monkeypatch)
    if name != "imagenet21k":
        convert(name)
    assert recipes_of(name)
    for path in recipes_of(name):
        (row,) = train(path)
        assert row["step"] == 2 and 0 <= row["val_top1"] <= row["val_top5"] <= 1, path


def test_imagenet21k_is_the_papers_set(workplace):
    manifest = Manifest.load(workplace / "shards" / "imagenet21k-64")
    assert manifest.num_classes == 2 and manifest.res == 64
    assert {split: info.class_counts for split, info in manifest.splits.items()} == {
        "train": [450, 470],
        "val": [50] * 2,
    }


def test_a_checkpoint_that_is_missing_is_named_with_the_command_that_makes_it(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for path in RECIPES:
        if load_recipe(path).init:
            makes = path.parent / "in21k.yaml"
            with pytest.raises(Error, match=rf"init: .* runs/in21k/best.safetensors: `mlpdata train {makes}` makes it"):
                run(path)
        else:
            name, _, res = load_recipe(path).data.shards.removeprefix("shards/").rpartition("-")
            with pytest.raises(
                Error, match=rf"no shard directory at .*; `mlpdata convert {name} --res {res}` makes it"
            ):
                run(path)
    assert not list(tmp_path.iterdir())
