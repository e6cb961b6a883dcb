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

    paths = sorted((Path(__file__).parents[2] / "recipes").glob("*.yaml"))
    assert len(paths) >= 2
    for path in paths:
        load_recipe(path)


# ------------------------------------------------------------------------------------------------ recipes of strangers


def laughs(levels):
    return "a0: &a0 {x: 1}\n" + "".join(f"a{i}: &a{i} {{x: *a{i - 1}, y: *a{i - 1}}}\n" for i in range(1, levels))


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (laughs(40), r"r.yaml:2: write the value out: aliases \(\*a0\) are not read"),
        ("data: &a {shards: *a}\n", r"aliases \(\*a\) are not read"),
        ("x: &x {a: 1}\n<<: *x\n" + GOOD, r"r.yaml:2: .*aliases"),
        ("name: !!str x\n" + GOOD, r"r.yaml:1: .*tags \(tag:yaml.org,2002:str\) are not read"),
        ("a: " + "[" * 20_000, "nested too deeply"),
        ("{a: " * 20_000, "nested too deeply"),
        ("a: x\n" * 300_000, "more than 1 MB"),
        ("a: \0", "not YAML"),
        ('name: "a\\0b"\n' + GOOD, r"r.yaml:1: name must be text on one line, not 'a\\x00b'"),
        ('name: "a\\nb"\n' + GOOD, "name must be text on one line"),
        ('name: "\\ud800"\n' + GOOD, "name must be text on one line"),
        (f"name: {'x' * 201}\n" + GOOD, "does not make a directory name"),
        ("? [a]\n: 1\n" + GOOD, "r.yaml:1: bad key"),
        (GOOD + "---\n" + GOOD, "not YAML: .*another document"),
        ("extends: r.yaml\n" + GOOD, "extends itself"),
        ("extends: .\n" + GOOD, "is no plain file"),
        ("extends: /dev/zero\n" + GOOD, "/dev/zero: it is no plain file"),
        ('extends: "\\0"\n' + GOOD, "extends must be text"),
        ("extends: {a: b}\n" + GOOD, "r.yaml:1: extends takes the path of a recipe"),
        (f"extends: {'x' * 5000}\n" + GOOD, "File name too long"),
        ("extends: none.yaml\n" + GOOD, r"cannot read recipe .*none.yaml: No such file"),
        ("init: ''\n" + GOOD, "init is empty"),
    ],
)
def test_recipes_that_mean_harm_are_one_line(tmp_path, text, message):
    with pytest.raises(Error, match=message) as caught:
        load_recipe(write(tmp_path, text))
    assert "\n" not in str(caught.value)


def test_a_recipe_that_is_no_text(tmp_path):
    (tmp_path / "r.yaml").write_bytes(b"\xff\xfe")
    with pytest.raises(Error, match="is not UTF-8 text"):
        load_recipe(tmp_path / "r.yaml")
    for k in range(20):
        write(tmp_path, f"extends: {k + 1}.yaml\n", f"{k}.yaml")
    write(tmp_path, GOOD, "20.yaml")
    with pytest.raises(Error, match="more than 16 recipes extend each other"):
        load_recipe(tmp_path / "0.yaml")
    assert load_recipe(tmp_path / "5.yaml").train.epochs == 3


@pytest.mark.parametrize(
    "setting",
    [
        "train.epochs=" + "9" * 5000, "train.epochs=010", "train.epochs=0x10", "train.epochs=1e3", "train.epochs=٣",
        "train.batch_size=1000000000000", "model.depth=1000000", "model.width=100000000", "model.expansion=1000000000",
        "model.name=B_1-Wi_99999999", "model.name=B_99999999999999999999-Wi_8", "augment.res=100000", "augment.res=0",
        "augment.pad=1000000", "augment.mixup=1e300", "seed=18446744073709551616", "eval.batch_size=999999999999999",
        *(f"{key}={value}" for key in ("optim.lr", "augment.erase", "train.ema", "save.every_minutes")
          for value in (".nan", "nan", ".inf", "-inf", "1e400")),
        "optim.betas=[.nan, 0]", "augment.crop_scale=[nan, 1]",
    ],
)  # fmt: skip
def test_numbers_that_no_experiment_has(tmp_path, setting):
    from trainer.model import config_of

    with pytest.raises(Error) as caught:
        config_of(load_recipe(write(tmp_path, GOOD), [setting]).model)
    assert "\n" not in str(caught.value) and len(str(caught.value)) < 300
