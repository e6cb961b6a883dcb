import json
import shutil
from collections import Counter

import numpy as np
import pyarrow.parquet as pq
import pytest
from archives import make_folder
from conftest import Inline, change_manifest, convert_quietly, relist, run_cli

import mlpdata
from mlpdata.errors import Error
from mlpdata.inspect import info, snippets, stats, verify
from mlpdata.shards import card, index
from mlpdata.shards.manifest import Manifest


@pytest.fixture(scope="module")
def twins_dir(tmp_path_factory):
    """3 x 6 train and 3 x 6 val images: one three times in train, once of another class; two of val's are in train."""
    base = tmp_path_factory.mktemp("twins")
    make_folder(base / "in", per_class=6)
    train, val = base / "in" / "train", base / "in" / "val"
    shutil.copy(train / "cat" / "img.0.jpg", train / "cat" / "twin.jpg")
    shutil.copy(train / "cat" / "img.0.jpg", train / "dog" / "twin.jpg")
    shutil.copy(train / "dog" / "img.3.jpg", val / "dog" / "twin.jpg")
    shutil.copy(train / "dog" / "img.3.jpg", val / "dog" / "twin2.jpg")
    convert_quietly(dataset="folder", source=str(base / "in"), res=32, out=base / "out", workers=1, shard_size=7)
    return base / "out"


def test_duplicates_within_and_across_splits(twins_dir):
    seen = json.loads(stats.stats(twins_dir, as_json=True))
    assert seen["repeated"] == {"train": 2, "val": 1}
    assert seen["across"] == {"train in val": 1, "val in train": 2}
    assert seen["num_groups"] == 2 and seen["groups_labelled_differently"] == 1
    names = ["cat", "dog", "émeu x"]
    groups = [{(s["split"], names[s["label"]], s["key"].rpartition("/")[2]) for s in g} for g in seen["groups"]]
    expected = [
        {("train", "cat", "img%2E0"), ("train", "cat", "twin"), ("train", "dog", "twin")},
        {("train", "dog", "img%2E3"), ("val", "dog", "twin"), ("val", "dog", "twin2")},
    ]
    assert groups in (expected, expected[::-1])
    assert seen["splits"]["train"] == {
        "num_samples": 20,
        "num_classes": 3,
        "class_counts": {"min": 6, "median": 7.0, "max": 7},
    }
    assert (seen["mean"], seen["std"]) == (Manifest.load(twins_dir).mean, Manifest.load(twins_dir).std)


def test_the_command_tells_people(twins_dir):
    done = run_cli("stats", twins_dir)
    assert done.returncode == 0 and not done.stderr
    for part in (
        "split train  20 samples in 3 classes",
        "6 to 7 a class, median 7",
        "fewest: émeu x 6",
        "train: 2 of 20 images (10.00%) repeat an earlier one",
        "leak: 2 val images also appear in train",
        "1 of 2 groups of equal images has more than one label",
        "3 times: ",
    ):
        assert part in done.stdout, done.stdout


def test_without_duplicates(photos_dir):
    seen = json.loads(stats.stats(photos_dir, as_json=True))
    assert seen["repeated"] == {"train": 0, "val": 0} and seen["across"] == {"train in val": 0, "val in train": 0}
    assert seen["groups"] == [] and seen["groups_labelled_differently"] == 0
    assert "times:" not in stats.stats(photos_dir)


@pytest.mark.parametrize("seed", range(5))
def test_any_mixture_of_duplicates_is_counted(photos_dir, tmp_path, seed):
    rng = np.random.default_rng(seed)
    root = tmp_path / "copy"
    shutil.copytree(photos_dir, root)
    manifest, columns = Manifest.load(root), {}
    for split in manifest.splits:
        table = pq.read_table(root / f"{split}.index.parquet")
        digests = rng.integers(0, 40, len(table)).astype(np.uint64) << np.uint64(58)  # in the upper bits as well
        number = table.schema.get_field_index("digest")
        pq.write_table(
            table.set_column(number, table.schema.field(number), [digests]),
            root / f"{split}.index.parquet",
            row_group_size=9,
        )
        columns[split] = list(zip(digests.tolist(), table["label"].to_pylist(), table["key"].to_pylist(), strict=True))
    relist(root)
    seen = json.loads(stats.stats(root, as_json=True))
    of = {split: Counter(d for d, _, _ in rows) for split, rows in columns.items()}
    assert seen["repeated"] == {s: sum(n - 1 for n in c.values()) for s, c in of.items()}
    assert seen["across"] == {
        f"{a} in {b}": sum(n for d, n in of[a].items() if d in of[b]) for a, b in (("train", "val"), ("val", "train"))
    }
    expected: dict[int, list] = {}
    for split, rows in columns.items():
        for digest, label, key in rows:
            expected.setdefault(digest, []).append({"split": split, "key": key, "label": label})
    expected = [group for group in expected.values() if len(group) > 1]
    assert sorted(map(str, seen["groups"])) == sorted(map(str, expected))
    assert [len(g) for g in seen["groups"]] == sorted(map(len, expected), reverse=True)
    assert seen["groups_labelled_differently"] == sum(len({s["label"] for s in g}) > 1 for g in expected)


def test_a_split_without_samples(photos_dir, tmp_path, monkeypatch):
    root = tmp_path / "copy"
    shutil.copytree(photos_dir, root)
    pq.write_table(index.SCHEMA.empty_table(), root / "extra.index.parquet")
    (root / "extra.beton").write_bytes(b"")
    raw = json.loads((root / "manifest.json").read_text())
    extra = {"num_samples": 0, "num_skipped": 0, "class_counts": [0] * 3, "beton": "extra.beton",
             "index": "extra.index.parquet"}  # fmt: skip
    files = {name: {"bytes": 0, "sha256": "0" * 64} for name in ("extra.beton", "extra.index.parquet")}
    change_manifest(root, splits={**raw["splits"], "extra": extra}, files={**raw["files"], **files})
    (root / "_info.json").write_text(json.dumps(card.timm_info(Manifest.load(root))))
    relist(root)
    assert "extra: 0 of 0 images (0.00%) repeat" in stats.stats(root)
    assert json.loads(stats.stats(root, as_json=True))["across"]["train in extra"] == 0
    assert "split extra  0 samples, 0 a class" in info.info(root)
    monkeypatch.setattr(verify, "LocalEngine", Inline)
    assert verify.verify(root, quiet=True)[1].problems == []
    for library in snippets.SNIPPETS:
        with pytest.raises(Error, match="has no samples of split 'extra'"):
            snippets.snippet(root, library, "extra")
    with pytest.raises(Error, match="extra"):
        mlpdata.load(root, "extra", batch_size=1)


def test_an_index_that_does_not_fit_is_an_error(photos_dir, tmp_path):
    root = tmp_path / "copy"
    shutil.copytree(photos_dir, root)
    path = root / "val.index.parquet"
    data = path.read_bytes()
    path.write_bytes(data[:-1])
    with pytest.raises(Error, match=r"val\.index\.parquet has .* bytes, the manifest says"):
        stats.stats(root)
    path.write_bytes(bytes(len(data)))
    with pytest.raises(Error, match=r"cannot read .*val\.index\.parquet: .*; get or convert it again"):
        stats.stats(root)
    path.write_bytes(data)
    (root / "classes.txt").write_bytes(b"\xff" * (root / "classes.txt").stat().st_size)
    with pytest.raises(Error, match=r"cannot read .*classes\.txt: .*utf-8"):
        stats.stats(root)
    path.unlink()
    with pytest.raises(Error, match="is missing"):
        stats.stats(root)
