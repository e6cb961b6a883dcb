"""From bytes on disk to samples: one module a kind of archive, all behind `Source`."""

from mlpdata.sources.base import (
    Broken,
    ClassFilter,
    NothingLeft,
    Sample,
    Source,
    Stored,
    TooSmall,
    Unit,
    most_samples,
)

__all__ = ["Broken", "ClassFilter", "NothingLeft", "Sample", "Source", "Stored", "TooSmall", "Unit", "most_samples"]
