"""Equal archives and options give the bytes that an earlier version wrote, and what it wrote is still read."""

import json
import sys
import tarfile

import numpy as np
import pytest
from conftest import ROOT, Inline

import mlpdata
from mlpdata.convert import run
from mlpdata.inspect.info import info
from mlpdata.inspect.verify import verify
from mlpdata.shards.manifest import Manifest

sys.path.insert(0, str(ROOT / "tests" / "golden"))
import cases

GOLDEN = json.loads((cases.FOLDER / "sums.json").read_text())


@pytest.fixture(scope="module")
def sources(tmp_path_factory):
    """Each archive, made when it is first asked for."""
    folder = tmp_path_factory.mktemp("golden")

    def make(name):
        for parent in cases.CASES[name].get("of", ()):
            make(parent)
        source = cases.CASES[name].get("source")
        if source and not (folder / source).exists():
            cases.MAKERS[source](folder / source)
        return folder

    return make


@pytest.mark.parametrize(
    ("name", "workers"), [*((name, None) for name in cases.CASES), *cases.WORKERS.items()], ids=lambda v: str(v)
)
def test_bytes_are_those_of_the_version_that_is_on_record(tmp_path, monkeypatch, sources, name, workers):
    if workers is None:
        monkeypatch.setattr(run, "LocalEngine", Inline)
    cases.run(name, sources(name), tmp_path / "out", workers=workers or 1)
    expected, found = GOLDEN["sums"][name], cases.sums(tmp_path / "out")
    assert found.keys() == expected.keys()
    now, then = cases.versions(), GOLDEN["versions"]
    comparable = set(expected)
    if now["index"] != then["index"]:
        comparable -= {file for file in expected if file.endswith(".parquet")}
    if any(now[kind] != then[kind] for kind in ("jpeg", "png", "resize")):
        exact = name in cases.EXACT
        comparable &= {file for file in expected if exact or file.endswith(("classes.txt", "_info.json"))}
    changed = [file for file in sorted(comparable) if found[file] != expected[file]]
    assert not changed
    if len(comparable) < len(expected):
        pytest.skip(f"sums are of {then}, this is {now}: {len(expected) - len(comparable)} files are not compared")


@pytest.mark.parametrize("name", cases.OLD)
def test_directories_of_an_earlier_version_are_read(tmp_path, name):
    with tarfile.open(cases.FOLDER / "old" / f"{name}.tar.xz") as tar:
        tar.extractall(tmp_path, filter="data")
    assert cases.sums(tmp_path) == GOLDEN["sums"][name]
    manifest = Manifest.load(tmp_path)
    assert "mlpdata" in info(tmp_path, False)
    assert not verify(tmp_path)[1].problems
    if cases.CASES[name].get("resize") == "longest":
        return  # images of several sizes make no batch
    for split, split_info in manifest.splits.items():
        beton, labels = mlpdata.load(tmp_path, split, 4, format="beton").arrays()
        tar, _ = mlpdata.load(tmp_path, split, 4, format="tar").arrays()
        assert len(labels) == len(beton) == len(tar) == split_info.num_samples
        assert np.array_equal(beton, tar) or manifest.tar_codec == "jpg"
