import pytest

from mlpdata import Error
from trainer.recipe import Recipe, load_recipe

GOOD = """\
data:
  shards: some/where
augment:
  crop_scale: [0.5, 1]
optim:
  name: lion
  lr: 1e-3
train:
  epochs: 3
"""


def write(folder, text, name="r.yaml"):
    path = folder / name
    path.write_text(text)
    return path


def test_values_types_and_defaults(tmp_path):
    recipe = load_recipe(write(tmp_path, GOOD))
    assert recipe.name == "r" and recipe.data.shards == "some/where"
    assert recipe.optim.lr == 0.001 and isinstance(recipe.optim.lr, float)
    assert recipe.augment.crop_scale == (0.5, 1.0) and recipe.train.epochs == 3
    assert recipe.model.depth == 6 and recipe.schedule.name == "constant"
    assert Recipe.from_dict(recipe.to_dict()) == recipe


def test_overrides(tmp_path):
    path = write(tmp_path, GOOD)
    recipe = load_recipe(path, ["optim.lr=5e-5", "augment.crop_scale=null", "model.name=B_2-Wi_8", "name=x", "seed=3"])
    assert recipe.optim.lr == 5e-5 and recipe.augment.crop_scale is None
    assert (recipe.model.name, recipe.name, recipe.seed) == ("B_2-Wi_8", "x", 3)
    assert recipe.train.epochs == 3


def test_extends(tmp_path):
    write(tmp_path, "name: base\n" + GOOD, "base.yaml")
    (tmp_path / "sub").mkdir()
    path = write(tmp_path / "sub", "extends: ../base.yaml\ntrain:\n  batch_size: 7\n", "variant.yaml")
    recipe = load_recipe(path)
    assert (recipe.name, recipe.train.epochs, recipe.train.batch_size) == ("variant", 3, 7)
    write(tmp_path, "extends: b.yaml\n", "a.yaml")
    write(tmp_path, "extends: a.yaml\n", "b.yaml")
    with pytest.raises(Error, match="extends itself"):
        load_recipe(tmp_path / "a.yaml")


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (GOOD.replace("lr:", "lrr:"), r"r.yaml:7: unknown key 'optim.lrr'; did you mean 'lr'\?"),
        (GOOD.replace("optim:", "optin:"), r"r.yaml:5: unknown key 'optin'; did you mean 'optim'\?"),
        (GOOD.replace("1e-3", "fast"), "r.yaml:7: optim.lr must be a number, not 'fast'"),
        (GOOD.replace("epochs: 3", "epochs: 3.5"), "r.yaml:9: train.epochs must be a whole number, not '3.5'"),
        (GOOD.replace("epochs: 3", "compile: 1"), "r.yaml:9: train.compile must be true or false"),
        (GOOD.replace("lion", "tiger"), "r.yaml:6: optim.name must be one of lion, adamw, sgd, not 'tiger'"),
        (GOOD.replace("[0.5, 1]", "[0.5]"), "r.yaml:4: augment.crop_scale must be a list of 2 numbers"),
        (GOOD.replace("[0.5, 1]", "0.5"), "r.yaml:4: augment.crop_scale must be a list of 2 numbers, not '0.5'"),
        (GOOD + "seed: 1\nseed: 2\n", "r.yaml:11: key 'seed' is given twice"),
        (GOOD + "model: B_2\n", "r.yaml:10: model is a section"),
        (GOOD + "seed:\n  x: 1\n", "r.yaml:10: seed takes a value"),
        (GOOD.replace("  shards: some/where", "  format: tar"), "data.shards is missing"),
        (GOOD.replace("epochs: 3", "epochs: 0"), "train.epochs must be at least 1"),
        (GOOD + "name: ../evil\n", "does not make a directory name"),
        ("just text", "expected `key: value` lines"),
        ("a: [1", "r.yaml:2: not YAML|r.yaml:1: not YAML"),
        ("data: !!python/object/apply:os.system ['true']", r"r.yaml:1: write the value out: tags \(.*os.system\)"),
    ],
)
def test_mistakes_say_where_and_what(tmp_path, text, message):
    with pytest.raises(Error, match=message) as caught:
        load_recipe(write(tmp_path, text))
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("optim.lr", "expected section.key=value"),
        ("optim.speed=1", "--set optim.speed=1: unknown key 'optim.speed'"),
        ("data.shards.x=1", "shards is no section"),
        ("optim.lr=[", "not YAML"),
    ],
)
def test_bad_overrides(tmp_path, override, message):
    with pytest.raises(Error, match=message):
        load_recipe(write(tmp_path, GOOD), [override])


def test_missing_file(tmp_path):
    with pytest.raises(Error, match="cannot read recipe"):
        load_recipe(tmp_path / "none.yaml")


def test_the_recipes_of_the_repository_are_valid():
    from pathlib import Path

    paths = sorted((Path(__file__).parents[1] / "recipes").glob("*.yaml"))
    assert len(paths) >= 2
    for path in paths:
        load_recipe(path)
