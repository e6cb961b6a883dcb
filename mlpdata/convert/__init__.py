"""Samples to shards: plan, units and parts, then shuffled shards, then the finish."""

from mlpdata.system.lazy import lazy_names

__getattr__ = lazy_names(__name__, {"convert": "run", "Options": "options"})
