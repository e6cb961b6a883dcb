import itertools
import json
from types import SimpleNamespace

import pytest
import torch
from conftest import run_cli

from mlpdata.inspect import bench as module
from mlpdata.inspect.bench import bench, bottleneck
from mlpdata.loader import jpeg_batch


@pytest.mark.parametrize("tier", ["resident", "stream"])
def test_bench_measures_all_three_and_names_the_bottleneck(photos_dir, tier):
    row = json.loads(
        bench(photos_dir, batch_size=16, seconds=0.1, tier=tier, format="tar", res=16, device="cpu", as_json=True)
    )
    assert row["tier"] == tier and tier in row["tier_reason"] and row["codecs"] == ["jpg"]
    assert min(row[f"{name}_images_per_s"] for name in ("loader", "augment", "overlapped")) > 0
    assert row["bottleneck"].startswith(("the loader", "the augmentation", "loader ("))
    text = bench(photos_dir, batch_size=16, seconds=0.1, tier=tier, device="cpu")
    assert [line.split()[0] for line in text.splitlines()][:6] == [
        "loader", "augment", "both", "bottleneck", "tier", "measured"
    ]  # fmt: skip


def test_a_measurement_of_few_batches_says_so(photos_dir, monkeypatch):
    """By a clock that goes on by a second each time that it is read: so long does a batch take."""
    seconds = itertools.count()
    clock = SimpleNamespace(perf_counter=lambda: float(next(seconds)))
    options = {"batch_size": 16, "tier": "resident", "device": "cpu"}
    for length, is_rough in ((0.5, True), (2.0, True), (50.0, False)):
        with monkeypatch.context() as patch:
            patch.setattr(module, "time", clock)
            row = json.loads(bench(photos_dir, seconds=length, as_json=True, **options))
            text = bench(photos_dir, seconds=length, **options)
        assert row["is_rough"] == is_rough == (row["fewest_batches"] < 20)
        doubt = f"1 batch measured, too few for a reliable rate; use --seconds {20 * length:.0f}, or a"
        assert (doubt in text) == is_rough


def test_the_bottleneck_is_the_slower_part(monkeypatch):
    loader = SimpleNamespace(tier="stream", num_threads=4, device=torch.device("cpu"))
    monkeypatch.setattr(jpeg_batch, "batch_decoder", lambda: (print, "here"))
    assert bottleneck(loader, {"jpg"}, 100, 1000, 95) == "the loader: decoding JPG on 4 threads"
    monkeypatch.setattr(jpeg_batch, "batch_decoder", lambda: (None, "no library"))
    assert bottleneck(loader, {"jpg"}, 100, 1000, 95).endswith("JPG on 4 threads, image by image: no library")
    assert bottleneck(loader, {"raw"}, 100, 1000, 95) == "the loader: reading the files"
    assert bottleneck(loader, {"raw"}, 1000, 100, 50).startswith("the augmentation; together they reach 50%")
    loader.tier = "resident"
    assert bottleneck(loader, {"raw"}, 100, 105, 99).startswith("loader (the gather in memory) and aug")


def test_bench_of_what_is_not_there(tmp_path):
    done = run_cli("bench", tmp_path / "none")
    assert done.returncode == 1 and done.stderr.count("\n") == 1 and "no shard directory" in done.stderr
    done = run_cli("bench", tmp_path / "none", "--device", "abacus")
    assert done.returncode == 1 and "no device 'abacus'" in done.stderr
