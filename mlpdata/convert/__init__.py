"""Samples to shards: plan, units and parts, then shuffled shards, then the finish."""

from __future__ import annotations

_FACE = {"convert": "run", "Options": "options"}


def __getattr__(name):
    # Looked up when asked for: modules of this package are imported by others, which need not load all of it.
    if name in _FACE:
        from importlib import import_module

        return getattr(import_module(f"{__name__}.{_FACE[name]}"), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
