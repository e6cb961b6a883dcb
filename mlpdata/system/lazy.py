"""Packages whose names are imported when they are asked for, so that a light module costs no torch or numpy."""

from __future__ import annotations

import sys
from collections.abc import Callable
from importlib import import_module
from typing import Any


def lazy_names(package: str, modules: dict[str, str]) -> Callable[[str], Any]:
    """The `__getattr__` of a package (PEP 562) that takes each name from the module that `modules` gives for it.

    >>> lookup = lazy_names("mlpdata", {"Error": "errors"})
    >>> lookup("Error").__name__
    'Error'
    """

    def lookup(name: str) -> Any:
        if name not in modules:
            raise AttributeError(f"module {package!r} has no attribute {name!r}")
        value = getattr(import_module(f"{package}.{modules[name]}"), name)
        setattr(sys.modules[package], name, value)  # the next time it is found without this function
        return value

    return lookup
