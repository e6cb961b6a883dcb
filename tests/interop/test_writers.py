"""Betons that unmodified ffcv wrote open in our loader, by their path, and hold the pixels that went in."""

import os
import signal
import subprocess

import numpy as np
import pytest
from archives import picture
from environment import PYTHON, ROOT, TIMEOUT_S, need

import mlpdata
from mlpdata import Error
from mlpdata.convert import Options, convert
from mlpdata.inspect.verify import verify
from mlpdata.shards import index

pytestmark = pytest.mark.interop
N = 300


@pytest.fixture(scope="session")
def written(tmp_path_factory):
    need("ffcv")
    out = tmp_path_factory.mktemp("ffcv")
    images = np.stack([picture(40, 40, i) for i in range(N)])
    np.savez(out / "images.npz", images=images)
    command = [PYTHON, ROOT / "tests" / "interop" / "write_ffcv.py", out / "images.npz", out]
    writer = subprocess.Popen(
        command, env={**os.environ, "PYTHONPATH": ""}, text=True, stderr=subprocess.PIPE, start_new_session=True
    )
    try:
        _, said = writer.communicate(timeout=TIMEOUT_S)
    except subprocess.TimeoutExpired:  # its parent waits for ever when a worker of it fails
        os.killpg(writer.pid, signal.SIGKILL)
        pytest.fail(f"ffcv's writer hangs: {writer.communicate()[1][-2000:]}")
    assert writer.returncode == 0, said
    return out, images


@pytest.mark.parametrize("tier", ["resident", "stream"])
@pytest.mark.parametrize("name", ["raw", "jpg", "mixed"])
def test_ffcv_betons_open_with_their_pixels(written, name, tier):
    out, images = written
    loader = mlpdata.load(out / f"{name}.beton", batch_size=64, tier=tier, seed=1)
    assert loader.num_samples == N and loader.num_classes == 10
    seen = []
    for batch in loader:
        ids = batch.ids.numpy()
        assert np.array_equal(batch.labels.numpy(), ids % 10)
        error = np.abs(batch.images.numpy().astype(int) - images[ids]).mean((1, 2, 3))
        assert error.max() < 4 and (name != "raw" or error.max() == 0)
        assert name != "mixed" or len(ids) < 60 or 10 < (error == 0).sum() < len(ids) - 10
        seen.append(ids)
    assert np.array_equal(np.sort(np.concatenate(seen)), np.arange(N))


def test_ffcv_betons_of_many_sizes_need_a_size(written):
    out, images = written
    with pytest.raises(Error, match="different sizes"):
        mlpdata.load(out / "sizes.beton")
    small, labels = mlpdata.load(out / "sizes.beton", res=32).arrays()
    assert small.shape == (N, 32, 32, 3) and np.array_equal(labels, np.arange(N) % 10)
    assert np.abs(small.mean((1, 2, 3)) - images.mean((1, 2, 3))).max() < 8


@pytest.mark.parametrize("name", ["raw", "jpg", "mixed", "sizes", "smart"])
def test_ffcv_betons_become_shard_directories(written, name, tmp_path):
    out, images = written
    columns = {"image_column": "photo", "label_column": "target"} if name == "smart" else {}
    said = []
    options = Options(
        dataset="beton",
        source=str(out / f"{name}.beton"),
        res=40,
        out=tmp_path / "out",
        workers=2,
        quiet=True,
        **columns,
    )
    manifest = convert(options, say=said.append)
    assert not verify(tmp_path / "out")[1].problems
    assert any("JPEGs, the others are raw" in line for line in said) == (name in ("mixed", "smart"))
    left_out = {"mixed": "fields left out: note, weight, bytes, vector", "smart": "fields left out: row"}.get(name)
    assert any("left out:" in line for line in said) == bool(left_out) and (
        left_out is None or any(left_out in line for line in said)
    )
    rows = np.array([int(key.rpartition("_")[2]) for key in index.keys(tmp_path / "out", manifest, "train")])
    assert np.array_equal(np.sort(rows), np.arange(N))
    for format in ("beton", "tar"):
        got, labels = mlpdata.load(tmp_path / "out", "train", 64, format=format).arrays()
        assert np.array_equal(labels, rows % 10)
        error = np.abs(got.astype(int) - images[rows]).mean((1, 2, 3))
        if name in ("sizes", "smart"):  # those of other sizes were resized
            error = error[rows % 8 == 0]
        assert error.max() < 8 and (name not in ("raw", "sizes") or error.max() == 0)
