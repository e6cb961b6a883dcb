"""torchvision's transforms, v1 and v2, and timm's do what they say to a loader's data set: dataset_with.py."""

import json
import os
import subprocess
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
PYTHON = ROOT / ".venv-interop" / "bin" / "python"

pytestmark = pytest.mark.interop


def test_transforms_of_torchvision_and_timm_are_right():
    if not PYTHON.exists():
        reason = "there is no .venv-interop: run `make interop`"
        if os.environ.get("MLPDATA_REQUIRE_INTEROP") == "1":
            pytest.fail(reason)
        pytest.skip(reason)
    words = [PYTHON, ROOT / "tests" / "interop" / "dataset_with.py"]
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    done = subprocess.run(words, env=environment, text=True, capture_output=True, timeout=900, check=False)
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout)
    assert len(found) == 14 and all(found.values()), found
