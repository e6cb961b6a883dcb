"""Shards to batches on a device."""

from __future__ import annotations

_FACE = {"load": "loader", "Loader": "loader"}


def __getattr__(name):
    # Looked up when asked for: modules of this package are imported by others, which need not load all of it.
    if name in _FACE:
        from importlib import import_module

        return getattr(import_module(f"{__name__}.{_FACE[name]}"), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
