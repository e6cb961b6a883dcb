"""`make setup` as far as it goes without a package index: Pythons that are too old, and a half-made environment."""

import shutil
import subprocess
import sys

import pytest
from conftest import ROOT

pytestmark = pytest.mark.skipif(shutil.which("make") is None, reason="there is no make")


def make_setup(folder, python):
    """Run it in a clone that holds the Makefile alone; returns the completed process."""
    shutil.copy(ROOT / "Makefile", folder)
    (folder / "pyproject.toml").write_text("")
    words = ["make", "setup", f"PYTHON={python}", "TORCH=--no-index no-such-torch"]
    return subprocess.run(words, cwd=folder, capture_output=True, text=True, check=False)


def test_a_python_that_is_too_old_is_told_before_anything_is_made(tmp_path):
    old = tmp_path / "old"
    old.write_text(f'#!/bin/sh\nexec {sys.executable!r} -c "import sys; sys.version_info = (3, 10, 13); $2"\n')
    old.chmod(0o755)
    done = make_setup(tmp_path, "./old")  # make would split a path with a space
    told = "mlpdata needs Python 3.11 or newer; ./old is 3.10: make setup PYTHON=python3.12"
    assert done.returncode != 0 and done.stderr.splitlines()[0] == told
    assert not (tmp_path / ".venv").exists()


def test_what_another_python_left_half_made_is_not_mixed_with_this_one(tmp_path):
    (tmp_path / ".venv" / "bin").mkdir(parents=True)
    (tmp_path / ".venv" / "bin" / "python").symlink_to("/no/such/python3.10")
    done = make_setup(tmp_path, sys.executable)
    assert "no-such-torch" in done.stderr  # this far: pip of the new environment looked for it
    version = [tmp_path / ".venv" / "bin" / "python", "-c", "import sys; print(sys.version)"]
    assert subprocess.run(version, capture_output=True, text=True, check=False).stdout.strip() == sys.version
