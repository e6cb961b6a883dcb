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
