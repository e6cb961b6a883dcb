"""mlpdata: image archives to low-resolution FFCV and WebDataset shards, and back to batches on a device."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from mlpdata.errors import Error
from mlpdata.system.lazy import lazy_names

if TYPE_CHECKING:
    from mlpdata.augment.augment import Augment
    from mlpdata.augment.batch import Batch
    from mlpdata.loader.loader import Loader, load

    __version__: str

__all__ = ["Augment", "Batch", "Error", "Loader", "__version__", "load"]

# The loader imports torch, which takes a second: `mlpdata --help` and `convert` must not pay for it.
_lookup = lazy_names(
    __name__,
    {"load": "loader.loader", "Loader": "loader.loader", "Batch": "augment.batch", "Augment": "augment.augment"},
)


def __getattr__(name: str) -> Any:
    return _version() if name == "__version__" else _lookup(name)


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})


def _version() -> str:
    """The version in pyproject.toml, which the installed package knows."""
    from importlib.metadata import PackageNotFoundError, version

    try:
        return version("mlpdata")
    except PackageNotFoundError:
        return "0+source"  # the source tree on PYTHONPATH, without an installation
