"""The trainer: recipe -> data -> model -> step -> report. It reads shards and knows nothing of how they are made."""

__all__ = ["build", "load", "run"]

_LAZY = {"build": "model", "load": "checkpoint", "run": "train"}


def __getattr__(name):
    if name in _LAZY:
        from importlib import import_module

        return getattr(import_module(f"trainer.{_LAZY[name]}"), name)
    raise AttributeError(f"module 'trainer' has no attribute {name!r}")
