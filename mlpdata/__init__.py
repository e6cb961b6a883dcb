"""mlpdata: image archives to low-resolution FFCV and WebDataset shards, and back to batches on a device."""

from mlpdata.errors import Error

__version__ = "0.1.1"
__all__ = ["Augment", "Batch", "Error", "Loader", "__version__", "load"]

_LAZY = {"load": "loader.loader", "Loader": "loader.loader", "Batch": "augment.batch", "Augment": "augment.augment"}


def __getattr__(name):
    # The loader imports torch, which takes a second: `mlpdata --help` and `convert` must not pay for it.
    if name in _LAZY:
        from importlib import import_module

        return getattr(import_module(f"mlpdata.{_LAZY[name]}"), name)
    raise AttributeError(f"module 'mlpdata' has no attribute {name!r}")
