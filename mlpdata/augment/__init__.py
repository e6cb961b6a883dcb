"""A batch to an augmented batch, on its device."""

from mlpdata.system.lazy import lazy_names

__getattr__ = lazy_names(__name__, {"Augment": "augment", "Augmentation": "settings", "Batch": "batch"})
