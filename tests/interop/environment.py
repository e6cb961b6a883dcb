"""The environments of other projects' libraries, and how the tests start a script in them.

`make interop` makes the one of ffcv, webdataset, datasets and timm; `make strangers` the one of a dozen more.
"""

import os
import subprocess
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
PYTHON = ROOT / ".venv-interop" / "bin" / "python"
STRANGERS = ROOT / ".venv-strangers" / "bin" / "python"
REQUIRED = os.environ.get("MLPDATA_REQUIRE_INTEROP") == "1"
TIMEOUT_S = 900


def need(library="numpy", python=PYTHON):
    """Skip the test if a library cannot be imported there, or fail it where `make interop`'s libraries are required."""
    folder = python.parents[1].name
    if python.exists():
        done = subprocess.run([python, "-c", f"import {library}"], capture_output=True, text=True, check=False)
        if done.returncode == 0:
            return
        reason = f"{library} cannot be imported in {folder}: {done.stderr.strip().splitlines()[-1:]}"
    else:
        reason = f"there is no {folder}: run `make {folder.removeprefix('.venv-')}`"
    if REQUIRED and python == PYTHON:  # the strangers' fills gigabytes more: `make test-strangers` makes it, by hand
        pytest.fail(reason)
    pytest.skip(reason)


def run(words, **options):
    """Run Python there with these words, and return its output. options: as of `completed`."""
    return completed(words, **options).stdout


def completed(words, with_mlpdata=False, python=PYTHON, home=None, **options):
    """Run Python there with these words to its end. with_mlpdata: it may import this repository.

    home: folder for what Hugging Face's libraries keep; they then stay off the network.
    """
    environment = {**os.environ, "PYTHONPATH": str(ROOT) if with_mlpdata else ""}
    if home is not None:
        environment |= {"HF_HOME": str(home), "HF_HUB_OFFLINE": "1"}
    done = subprocess.run(
        [python, *words], env=environment, text=True, capture_output=True, timeout=TIMEOUT_S, check=False, **options
    )
    assert done.returncode == 0, done.stderr[-2000:]
    return done


def run_script(name, *words, **options):
    """Run a script of this folder there."""
    return run([ROOT / "tests" / "interop" / name, *words], **options)
