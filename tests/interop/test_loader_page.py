"""Every example of mlpdata/loader/README.md runs as it stands."""

import re
import sys

import pytest
from archives import make_folder
from conftest import convert_quietly
from environment import ROOT, STRANGERS, completed, need

PAGE = ROOT / "mlpdata" / "loader" / "README.md"
EXAMPLES = re.findall(r"```python\n(.*?)```", PAGE.read_text(), re.DOTALL)
ELSEWHERE = ("torchdata", "lightning", "accelerate")


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    base = tmp_path_factory.mktemp("page")
    make_folder(base / "photos", splits=("train", "val"), per_class=12)
    convert_quietly(dataset="folder", source=str(base / "photos"), res=64, out=base / "shards" / "photos-64")
    return base


def test_the_page_has_its_examples():
    assert len(EXAMPLES) == 7
    assert all(any(f"import {name}" in code or f"from {name}" in code for code in EXAMPLES) for name in ELSEWHERE)


@pytest.mark.parametrize("code", EXAMPLES, ids=lambda code: " ".join(code.split()[:4]))
def test_an_example_runs(folder, code, tmp_path):
    library = next((name for name in ELSEWHERE if re.search(rf"(import|from) {name}", code)), None)
    python = sys.executable
    if library:
        need(library, STRANGERS)
        python = STRANGERS
    done = completed(
        ["-W", "error::RuntimeWarning", "-c", code], python=python, with_mlpdata=True, home=tmp_path, cwd=folder
    )
    assert "Warning: mlpdata" not in done.stderr
