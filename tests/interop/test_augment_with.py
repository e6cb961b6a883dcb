"""Given our draws, every operation equals torchvision's per-image function within one grey level: augment_with.py."""

import json
import os
import subprocess
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
PYTHON = ROOT / ".venv-interop" / "bin" / "python"

pytestmark = pytest.mark.interop


@pytest.fixture(scope="module")
def found():
    if not PYTHON.exists():
        reason = "there is no .venv-interop: run `make interop`"
        if os.environ.get("MLPDATA_REQUIRE_INTEROP") == "1":
            pytest.fail(reason)
        pytest.skip(reason)
    words = [PYTHON, ROOT / "tests" / "interop" / "augment_with.py"]
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    done = subprocess.run(words, env=environment, text=True, capture_output=True, timeout=900, check=False)
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


def test_each_operation_equals_torchvisions_within_a_grey_level(found):
    assert len(found["levels"]) == 14
    assert all(level <= 1 for level in found["levels"].values()), found["levels"]
    exact = ("pad", "normalize", "erase", "mixup", "cutmix", "brightness")
    assert all(found["levels"][name] < 0.01 for name in exact), found["levels"]


def test_boxes_have_torchvisions_distribution(found):
    """Quantiles within two pixels of a side of 48: 8,000 draws leave a standard error of about half a pixel."""
    for name, distances in found["distributions"].items():
        assert max(distances) <= 2 / 48 + 1e-9, (name, distances)
