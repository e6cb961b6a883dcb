"""Every example in a docstring is run."""

import doctest
import importlib
import pkgutil

import pytest

import mlpdata
import trainer

MODULES = [
    module.name
    for package in (mlpdata, trainer)
    for module in pkgutil.walk_packages(package.__path__, f"{package.__name__}.")
    if not module.name.endswith("__main__")
]


@pytest.mark.parametrize("name", MODULES)
def test_examples_run(name):
    if name.startswith("mlpdata.augment.") and name.endswith("_kernel"):
        pytest.importorskip("triton")
    results = doctest.testmod(importlib.import_module(name))
    assert results.failed == 0, f"{results.failed} of {results.attempted} examples"
