import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from archives import SYNSETS, encoded, make_folder, make_imagenet, picture, tar_bytes
from conftest import convert_quietly, sums

from mlpdata import Error
from mlpdata.convert.limit import FIRST_WAVE, first_samples
from mlpdata.convert.options import Options
from mlpdata.sources import Unit


def made_of(held, log):
    """A convert() over units that hold these splits, one a sample, in order."""

    def convert(tasks):
        log.append([task.unit.content for task in tasks])
        counts = []
        for task in tasks:
            found = dict.fromkeys(task.limits, 0)
            for split in held[task.unit.content]:
                if found.get(split, task.limits.get(split, 0)) < task.limits.get(split, 0):
                    found[split] += 1
            counts.append(found)
        return counts

    return convert


@pytest.mark.parametrize("seed", range(30))
def test_exactly_the_first_samples_of_every_split(seed):
    """Whatever the listing promised and wherever the splits lie."""
    rng = np.random.default_rng(seed)
    names = ("train", "val", "test")[: rng.integers(1, 4)]
    holds = [tuple(rng.permutation(names)[: rng.integers(1, len(names) + 1)].tolist()) for _ in range(60)]
    held = [rng.choice(list(h), rng.integers(0, 30)).tolist() for h in holds]
    units = [Unit(str(i), holds[i][0], int(rng.integers(0, 40)), 0, i) for i in range(60)]
    for limit in (1, 7, 50, 10_000):
        tasks = first_samples(units, holds, limit, made_of(held, log := []))
        for split in names:
            everything = [(i, k) for i in range(60) for k, s in enumerate(held[i]) if s == split]
            taken = [
                (t.unit.content, k)
                for t in tasks
                for k in [k for k, s in enumerate(held[t.unit.content]) if s == split][: t.limits.get(split, 0)]
            ]
            assert taken == everything[:limit]
        if limit == 1:
            read = {i for wave in log for i in wave}
            assert len(read) <= len(names) * 3 * FIRST_WAVE  # and no more is read than it takes


def num_rows(root):
    return {path.name.split(".")[0]: pq.read_metadata(path).num_rows for path in root.glob("*.index.parquet")}


def rows_of(root, split):
    return set(pq.read_table(root / f"{split}.index.parquet", columns=["source"]).column(0).to_pylist())


def test_parquet_files(tmp_path):
    (tmp_path / "in").mkdir()
    for f in range(70):  # more than are opened beforehand
        images = [encoded(picture(9, 9, 3 * f + i), "PNG") for i in range(3)]
        pq.write_table(pa.table({"image": images, "label": [0, 1, 0]}), tmp_path / "in" / f"train-{f:05d}.parquet")
    convert_quietly(dataset="hub", source=str(tmp_path / "in"), res=8, limit=10, out=tmp_path / "out")
    assert num_rows(tmp_path / "out") == {"train": 10}
    assert rows_of(tmp_path / "out", "train") == {f"train-{i // 3:05d}.parquet[{i % 3}]" for i in range(10)}


@pytest.mark.parametrize("sizes", [(90, 9), (9, 90)])
def test_tars_whose_first_images_are_not_like_the_rest(tmp_path, sizes):
    (tmp_path / "in").mkdir()
    for t in range(3):
        files = {}
        for i in range(60):
            files[f"{t}{i:05d}.jpg"] = encoded(picture(*[sizes[i >= 16]] * 2, i), quality=95)
            files[f"{t}{i:05d}.cls"] = b"%d" % (i % 3)
        (tmp_path / "in" / f"train-{t}.tar").write_bytes(tar_bytes(files))
    convert_quietly(dataset="hub", source=str(tmp_path / "in"), res=8, limit=80, out=tmp_path / "out")
    assert num_rows(tmp_path / "out") == {"train": 80}


def test_units_that_hold_several_splits(tmp_path):
    make_imagenet(tmp_path / "f.tar", per_class=12)
    options = {"dataset": "imagenet21k", "source": str(tmp_path / "f.tar"), "res": 8, "val_per_class": 4, "limit": 14}
    seen = []
    for workers in (1, 3):
        root = tmp_path / f"out{workers}"
        manifest, _ = convert_quietly(**options, out=root, workers=workers)
        assert num_rows(root) == {"train": 14, "val": 14} and manifest.source_filter["limit"] == 14
        assert {s.split("/")[0] for s in rows_of(root, "train")} == {f"{w}.tar" for w in SYNSETS[:2]}
        assert {s.split("/")[0] for s in rows_of(root, "val")} == {f"{w}.tar" for w in SYNSETS[:4]}
        seen.append(sums(root))
    assert seen[0] == seen[1]


def test_what_is_skipped_does_not_count_and_the_rest_is_not_listed(tmp_path):
    make_folder(tmp_path / "in", classes=("a", "b"), per_class=10)
    for name in ("a/img.1", "a/img.3", "b/img.9"):
        (tmp_path / "in" / "train" / f"{name}.jpg").write_bytes(b"broken")
    manifest, _ = convert_quietly(dataset="folder", source=str(tmp_path / "in"), res=8, limit=9, out=tmp_path / "out",
                                  max_skipped=0.5)  # fmt: skip
    train = manifest.splits["train"]
    assert (train.num_samples, train.num_skipped, train.class_counts) == (9, 2, [8, 1])
    assert num_rows(tmp_path / "out") == {"train": 9, "val": 9}


def test_interrupted_it_goes_on(tmp_path, monkeypatch):
    options = {"dataset": "shapes", "res": 8, "limit": 2500, "workers": 1}
    convert_quietly(**options, out=tmp_path / "whole")
    monkeypatch.setattr("mlpdata.convert.run.count_parts", lambda *_: (_ for _ in ()).throw(KeyboardInterrupt))
    with pytest.raises(Error, match="stopped"):
        convert_quietly(**options, out=tmp_path / "out")
    monkeypatch.undo()
    convert_quietly(**options, out=tmp_path / "out")
    assert sums(tmp_path / "out") == sums(tmp_path / "whole")


def test_shares_are_refused():
    for more in ({"part": (1, 2)}, {"assemble": True}):
        with pytest.raises(Error, match="--limit counts the first samples"):
            Options(dataset="shapes", limit=5, **more)
