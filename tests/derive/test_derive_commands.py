"""The commands subset, merge, relabel and resize, as a user types them: what they say, and their exit status."""

import json

import pytest
from conftest import convert_quietly, run_cli

from mlpdata.shards.manifest import Manifest


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    """Ten classes at 8 px, tars alone; an object storage of one process cannot be seen by another, so it is local."""
    out = tmp_path_factory.mktemp("commands") / "shapes-8"
    convert_quietly(dataset="shapes", res=8, out=out, limit=60, format="tar", workers=1)
    return out


def done(*words):
    process = run_cli(*words, "--quiet")
    assert process.returncode == 0, process.stderr
    return process.stdout


def refused(*words, status=1):
    process = run_cli(*words)
    assert process.returncode == status, process.stdout
    assert process.stderr.startswith("mlpdata: error: ")
    assert process.stderr.count("\n") == 1, "one line"
    return process.stderr


def test_a_subset_halves_and_their_merge(tmp_path, root):
    names = [line.split("\t")[0] for line in (root / "classes.txt").read_text().splitlines()]
    (tmp_path / "list").write_text("\n".join(names[:2]) + "\n")
    out = done("subset", root, "--classes", tmp_path / "list", "--out", tmp_path / "a")
    assert f"labels are numbered anew, in the order of --classes: 2 of {len(names)} classes" in out or len(names) == 2
    done("subset", root, "--classes", ",".join(names[2:]), "--split-off", "dev=1", "--out", tmp_path / "b")
    assert set(Manifest.load(tmp_path / "b").splits) == {"train", "val", "dev"}
    assert "--classes union takes all classes, matched by name" in refused(
        "merge", tmp_path / "a", tmp_path / "b", "--out", tmp_path / "c"
    )
    done("merge", tmp_path / "a", tmp_path / "b", "--classes", "union", "--out", tmp_path / "c")
    assert run_cli("verify", tmp_path / "c").returncode == 0
    manifest = json.loads(run_cli("info", tmp_path / "c", "--json").stdout)
    assert manifest["command"].startswith("mlpdata merge a b --classes union --format tar --codec ")
    assert [parent["parents"][0]["name"] for parent in manifest["parents"]] == ["shapes-8", "shapes-8"]
    assert str(tmp_path) not in json.dumps(manifest)


def test_relabel_and_resize(tmp_path, root):
    names = [line.split("\t")[0] for line in (root / "classes.txt").read_text().splitlines()]
    (tmp_path / "map.csv").write_text("".join(f"{name},{'thing'}\n" for name in names[1:]))
    said = refused("relabel", root, "--map", tmp_path / "map.csv", "--out", tmp_path / "a")
    assert f"does not map 1 of the {len(names)} classes: {names[0]}" in said
    said = done("relabel", root, "--map", tmp_path / "map.csv", "--drop-unmapped", "--out", tmp_path / "a")
    assert f"left out, not in --map: 1 class: {names[0]}" in said
    assert Manifest.load(tmp_path / "a").num_classes == 1
    assert "no image is resized" in done("resize", root, "--res", 8, "--out", tmp_path / "b")
    done("resize", root, "--res", 4, "--format", "both", "--out", tmp_path / "c")
    assert Manifest.load(tmp_path / "c").beton_codec == "raw"


def test_wrong_uses(tmp_path, root):
    assert "merge takes two or more shard directories" in refused("merge", root, "--out", tmp_path / "a", status=2)
    assert "--fraction must be above 0" in refused("subset", root, "--fraction", "0", "--out", tmp_path / "a")
    assert "is not NAME=N or NAME=P%" in refused("subset", root, "--split-off", "val", "--out", tmp_path / "a")
    assert "--classes names a class twice" in refused("subset", root, "--classes", "x,x", "--out", tmp_path / "a")
    names = ",".join(f"n{i:08d}" for i in range(40))  # longer than the name of a file may be
    assert "lacks 40 of the 40 classes" in refused("subset", root, "--classes", names, "--out", tmp_path / "a")
    assert "no such map" in refused("relabel", root, "--map", names, "--out", tmp_path / "a")
    assert "no such map" in refused("relabel", root, "--map", tmp_path / "no", "--out", tmp_path / "a")
    assert not (tmp_path / "a").exists()
