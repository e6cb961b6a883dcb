import os
import shutil
from pathlib import Path

import pytest
from conftest import run_cli

import mlpdata
from mlpdata.errors import Error
from trainer import recipes
from trainer.recipe import load_recipe

ROOT = Path(__file__).parents[2]


def test_every_recipe_is_listed_and_read_by_its_name(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)  # where there is no folder of recipes
    names = {path.stem for path in (ROOT / "recipes").glob("*.yaml")}
    assert set(recipes.bundled()) == names
    assert [line.split()[0] for line in recipes.table().splitlines()] == sorted(names)
    assert all(load_recipe(name).name == name for name in names)


def test_recipes_inside_a_wheel_are_found(tmp_path, monkeypatch):
    package = tmp_path / "site-packages" / "mlpdata"
    shutil.copytree(ROOT / "recipes", package / "recipes")
    monkeypatch.setattr(mlpdata, "__file__", str(package / "__init__.py"))
    assert recipes.find("shapes") == package / "recipes" / "shapes.yaml"
    (package / "recipes" / "shapes.yaml").unlink()
    with pytest.raises(Error, match="'shapes' is neither a file nor a recipe"):
        recipes.find("shapes")


def test_a_file_goes_before_a_recipe_of_its_name_and_what_is_neither_has_a_hint(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    Path("shapes").write_text("data:\n  shards: mine\n")
    assert recipes.find("shapes") == Path("shapes") and load_recipe("shapes").data.shards == "mine"
    Path("in21k").mkdir()  # a folder is no recipe
    assert recipes.find("in21k").name == "in21k.yaml"
    assert recipes.find("other/none.yaml") == Path("other/none.yaml")
    with pytest.raises(Error, match="did you mean 'cifar10-small'"):
        recipes.find("cifar10-smal")
    with pytest.raises(Error, match="comes with mlpdata say 'in21k' alone"):
        recipes.find("recipes/in21k.yaml")


def test_the_command_lists_and_shows(tmp_path):
    listed = run_cli("recipes", cwd=tmp_path)
    assert listed.returncode == 0 and "cifar10-small" in listed.stdout
    shown = run_cli("recipes", "show", "shapes", cwd=tmp_path)
    assert shown.stdout == (ROOT / "recipes" / "shapes.yaml").read_text()
    (tmp_path / "shapes").write_text("not this")
    assert run_cli("recipes", "show", "shapes", cwd=tmp_path).stdout == shown.stdout
    (tmp_path / "shapes").unlink()
    for name in ("nope", "..", "../x", ""):
        wrong = run_cli("recipes", "show", name, cwd=tmp_path)
        assert (wrong.returncode, wrong.stderr.count("\n")) == (1, 1)
        assert f"no recipe {name!r} comes with mlpdata; " in wrong.stderr
    done = run_cli("train", "shapes", cwd=tmp_path, env={**os.environ, "MLPDATA_HOME": str(tmp_path)})
    assert done.returncode == 1 and "shards/shapes-32" in done.stderr and "mlpdata convert shapes" in done.stderr
