"""Shards to batches on a device."""

from mlpdata.system.lazy import lazy_names

__getattr__ = lazy_names(__name__, {"load": "loader", "Loader": "loader"})
