"""The environment of other projects' libraries (`make interop`), and how the tests start a script in it."""

import os
import subprocess
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
PYTHON = ROOT / ".venv-interop" / "bin" / "python"
REQUIRED = os.environ.get("MLPDATA_REQUIRE_INTEROP") == "1"
TIMEOUT_S = 900


def need(library="numpy"):
    """Skip the test, or fail it where the libraries are required, if this one cannot be imported there."""
    if PYTHON.exists():
        done = subprocess.run([PYTHON, "-c", f"import {library}"], capture_output=True, text=True, check=False)
        if done.returncode == 0:
            return
        reason = f"{library} cannot be imported there: {done.stderr.strip().splitlines()[-1:]}"
    else:
        reason = "there is no .venv-interop: run `make interop`"
    if REQUIRED:
        pytest.fail(reason)
    pytest.skip(reason)


def run(words, with_mlpdata=False, python=PYTHON, home=None, **options):
    """Run Python there with these words, and return its output. with_mlpdata: it may import this repository.

    home: folder for what Hugging Face's libraries keep; they then stay off the network.
    """
    environment = {**os.environ, "PYTHONPATH": str(ROOT) if with_mlpdata else ""}
    if home is not None:
        environment |= {"HF_HOME": str(home), "HF_HUB_OFFLINE": "1"}
    done = subprocess.run(
        [python, *words], env=environment, text=True, capture_output=True, timeout=TIMEOUT_S, check=False, **options
    )
    assert done.returncode == 0, done.stderr[-2000:]
    return done.stdout


def run_script(name, *words, **options):
    """Run a script of this folder there."""
    return run([ROOT / "tests" / "interop" / name, *words], **options)
